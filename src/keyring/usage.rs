//! Writes down, in the accounts' records, what was sealed.

use super::Keyring;
use crate::{
    error::{Error, Result},
    name::AccountId,
    slots::{
        meter::{Counted, Meter, minus, plus},
        slot::AekSlot,
    },
    store::{
        self, CONFLICTS_MAX, again_and_again,
        record::{AccountRecord, AekPolicy, Usage, WrappedAek, due::aek_due},
    },
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{sync::Notify, task::JoinSet};

/// Records that are written at once, so that they share a commit of the store.
const WRITES_IN_FLIGHT_MAX: usize = 16;
/// Accounts that wait for their rotation; further ones are found when the store is gone through.
const DUE_MAX: usize = 10_000;

/// Accounts that are due for rotation. Told at once, because the next time that the store is gone through may be minutes away.
#[derive(Debug, Default)]
pub(crate) struct DueAccounts {
    accounts: Mutex<BTreeSet<AccountId>>,
    /// Wakes the scheduled work.
    pub(crate) stir: Notify,
}

impl DueAccounts {
    fn add(&self, account: AccountId) {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if accounts.len() < DUE_MAX {
            accounts.insert(account);
            self.stir.notify_one();
        }
    }

    pub(crate) fn take(&self) -> Vec<AccountId> {
        let accounts = std::mem::take(&mut *self.accounts.lock().unwrap_or_else(PoisonError::into_inner));
        accounts.into_iter().collect()
    }
}

impl Keyring {
    /// A meter of an AEK version, for a slot.
    pub(crate) fn meter(&self, record: &AccountRecord, wrapped: &WrappedAek) -> Meter {
        let WrappedAek { aek_version, created_unix, used, .. } = *wrapped;
        let aek = Counted { account: record.account.clone(), aek_version, created_unix };
        Meter::new(&self.ledger, aek, used, record.policy)
    }

    /// What every meter counted, those that are in use and those that are gone; what was counted ahead and not sealed is taken off.
    pub(crate) async fn write_all_usage(self: &Arc<Self>) -> Result<()> {
        let slots: Vec<_> = self.leashes().into_iter().flat_map(|leash| leash.living_members()).collect();
        self.write_usage(slots.clone()).await?;
        for slot in slots {
            let ahead = slot.meter().take_ahead();
            if ahead != Usage::default() {
                // Once: taken off twice it would be too little. Where it is not done, too much is counted.
                self.change_usage(&slot.meter().aek, |used| minus(used, ahead)).await?;
            }
        }
        Ok(())
    }

    /// Writes down, ahead, that so much is sealed under an AEK version.
    pub(crate) async fn count_ahead(&self, slot: &AekSlot, used: Usage) -> Result<()> {
        let meter = slot.meter();
        let counted = self.change_usage(&meter.aek, |before| plus(before, used)).await?;
        if let Some((seen, policy)) = counted {
            meter.wrote_ahead(used, seen, policy);
        }
        Ok(())
    }

    /// Writes down what the meters of these slots counted, and those that are gone. Each that fails keeps its count; the first error is
    /// told. None waits for longer than a `store_timeout` for its account, so that one that hangs holds up no others; what was written
    /// all the same is counted twice then.
    ///
    /// One at a time, each until the last of what it took is written or back: who is told that all is written down must not have come while
    /// another had taken it.
    pub(crate) async fn write_usage(self: &Arc<Self>, slots: Vec<Arc<AekSlot>>) -> Result<()> {
        let turn = Arc::new(self.writing_usage.clone().lock_owned().await);
        let (mut flights, mut outcome) = (JoinSet::new(), Ok(()));
        for slot in slots {
            if flights.len() >= WRITES_IN_FLIGHT_MAX {
                land(&mut flights, &mut outcome).await;
            }
            let (keyring, turn) = (self.clone(), turn.clone());
            flights.spawn(async move {
                let _turn = turn; // dropped after what is given back
                keyring.write_meter(slot.meter()).await
            });
        }
        for left in self.ledger.take_left() {
            if flights.len() >= WRITES_IN_FLIGHT_MAX {
                land(&mut flights, &mut outcome).await;
            }
            let (keyring, turn) = (self.clone(), turn.clone());
            flights.spawn(async move {
                let _turn = turn;
                let left = left; // dropped before it
                keyring.add_usage(&left.aek, left.used).await?;
                left.arrived();
                Ok(())
            });
        }
        while !flights.is_empty() {
            land(&mut flights, &mut outcome).await;
        }
        outcome
    }

    async fn write_meter(&self, meter: &Meter) -> Result<()> {
        let taken = Taken { meter, used: meter.take() };
        if taken.used == Usage::default() {
            return Ok(());
        }
        if let Some((seen, policy)) = self.add_usage(&meter.aek, taken.used).await? {
            meter.wrote(seen, policy);
        }
        std::mem::forget(taken);
        Ok(())
    }

    /// Adds to what an AEK version's record says, and gives the sum; `None` when the account has that AEK no more.
    async fn add_usage(&self, aek: &Counted, used: Usage) -> Result<Option<(Usage, AekPolicy)>> {
        let give_up = self.clock.now().plus(self.settings.store_timeout);
        let added = self.clock.until(give_up, self.change_usage(aek, |before| plus(before, used))).await;
        added.unwrap_or_else(|| {
            Err(Error::Store(format!("no answer in time, for what account {} sealed: it is tried again", aek.account)))
        })
    }

    async fn change_usage(&self, aek: &Counted, change: impl Fn(Usage) -> Usage) -> Result<Option<(Usage, AekPolicy)>> {
        let Counted { account, aek_version, created_unix } = aek;
        for _ in 0..CONFLICTS_MAX {
            let Some((mut record, seen)) = store::load_account(&*self.store, account).await? else { return Ok(None) };
            let is_it = |version: &&mut WrappedAek| {
                version.aek_version == *aek_version && version.created_unix == *created_unix
            };
            let Some(version) = record.versions.iter_mut().find(is_it) else { return Ok(None) };
            version.used = change(version.used);
            let sum = (version.used, record.policy);
            match self.store.replace(&record.key(), &seen, record.put()?).await {
                Ok(_) => {
                    // What is due by age alone is found by the next pass.
                    if aek_due(&record, self.date().await.unwrap_or_default()).is_some() {
                        self.due.add(record.account);
                    }
                    return Ok(Some(sum));
                }
                Err(Error::Conflict(_)) => {} // to what it is by now
                Err(Error::NotFound(_)) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Err(again_and_again("account", account))
    }
}

async fn land(flights: &mut JoinSet<Result<()>>, outcome: &mut Result<()>) {
    match flights.join_next().await {
        None | Some(Ok(Ok(()))) => {}
        Some(Ok(Err(error))) => *outcome = outcome.clone().and(Err(error)),
        Some(Err(died)) => {
            *outcome = outcome.clone().and(Err(Error::Fatal(format!("a count was not written: {died}"))))
        }
    }
}

/// A count on its way to the store; goes back when it does not arrive, or nobody waits for it any more.
struct Taken<'a> {
    meter: &'a Meter,
    used: Usage,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.meter.give_back(self.used);
    }
}
