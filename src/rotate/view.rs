//! Policies, and what is due by them, shown without doing it.

use crate::{
    error::{Corrupt, Error, Result},
    keyring::Keyring,
    name::{AccountId, KekName, KekVersion},
    store::{
        Filter, Key, PAGE_KEYS_MAX, kek_names, load_account, load_work,
        record::{
            AccountRecord, AekPolicy, KekPolicy, KekRecord, WorkRecord,
            due::{Due, aek_due, aek_due_at, check_aek_policy, check_kek_policy, kek_due, kek_due_at},
        },
    },
};
use std::collections::BinaryHeap;

/// Accounts that a view names one by one: that many that are due, that many that come next. More are counted.
pub const VIEW_ACCOUNTS_MAX: usize = 1000;

/// A KEK that has a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KekSchedule {
    /// Its current version.
    pub kek: KekVersion,
    /// From when on it is due, in seconds since 1970.
    pub due_at_unix: u64,
    /// Why it is due now, if it is.
    pub due: Option<Due>,
    /// Accounts that older versions still wrap: they are moved to the current one.
    pub left_behind: u64,
}

/// An account whose AEK is due, now or some day.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AekSchedule {
    /// The account.
    pub account: AccountId,
    /// Its current AEK version.
    pub aek_version: u32,
    /// From when on it is due by age, in seconds since 1970.
    pub due_at_unix: Option<u64>,
    /// Why it is due now, if it is.
    pub due: Option<Due>,
}

/// What is scheduled for a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Schedule {
    /// The store's date that it was made for, in seconds since 1970.
    pub now_unix: u64,
    /// Who does the scheduled work, or did it last.
    pub holder: Option<WorkRecord>,
    /// KEKs that have a policy, in the order of their names.
    pub keks: Vec<KekSchedule>,
    /// Accounts that are due.
    pub accounts_due: u64,
    /// The first [`VIEW_ACCOUNTS_MAX`] of them, in the order of their ids.
    pub due: Vec<AekSchedule>,
    /// The accounts that come next by their age, the next one first.
    pub next: Vec<AekSchedule>,
    /// Records that could not be read, and so may be due.
    pub unreadable: u64,
    /// The first [`VIEW_ACCOUNTS_MAX`] of them, and what is wrong with each.
    pub failures: Vec<(String, Error)>,
}

impl Schedule {
    /// True when the holder has not given the work up, and its time is not over.
    pub fn is_held(&self) -> bool {
        self.holder.as_ref().is_some_and(|holder| holder.until_unix > self.now_unix)
    }

    /// By the records, and no index.
    fn count_left_behind(&mut self, record: &AccountRecord) {
        let mut names: Vec<_> = Vec::new();
        for kek in record.wrapped_by() {
            let Ok(found) = self.keks.binary_search_by(|known| known.kek.name.cmp(&kek.name)) else { continue };
            if let Some(known) = self.keks.get_mut(found).filter(|known| known.kek.version != kek.version)
                && !names.contains(&kek.name)
            {
                known.left_behind += 1;
                names.push(kek.name);
            }
        }
    }

    fn cannot_read(&mut self, what: &Key, error: Error) {
        self.unreadable += 1;
        if self.failures.len() < VIEW_ACCOUNTS_MAX {
            self.failures.push((what.to_string(), error));
        }
    }
}

impl Keyring {
    /// As [`Engine::set_aek_policy`](crate::Engine::set_aek_policy), at home.
    pub(crate) async fn set_aek_policy(&self, id: &AccountId, policy: AekPolicy) -> Result<()> {
        check_aek_policy(policy)?;
        let change = |record: &mut AccountRecord| Ok(std::mem::replace(&mut record.policy, policy) != policy);
        self.change_account(id, change).await.map(drop)
    }

    /// As [`Engine::set_kek_policy`](crate::Engine::set_kek_policy), at home.
    pub(crate) async fn set_kek_policy(&self, name: &KekName, policy: KekPolicy) -> Result<()> {
        check_kek_policy(policy)?;
        let change = |record: &mut KekRecord| Ok(std::mem::replace(&mut record.policy, policy) != policy);
        self.change_kek(name, change).await.map(drop)
    }

    /// As [`Engine::schedule`](crate::Engine::schedule), at home.
    pub(crate) async fn schedule(&self, accounts_max: usize) -> Result<Schedule> {
        let (store, now_unix) = (&*self.store, self.date().await?);
        let mut schedule = Schedule { now_unix, ..Schedule::default() };
        match load_work(store).await {
            Ok(found) => schedule.holder = found.map(|(record, _)| record),
            Err(Error::Corrupt(damage)) if !matches!(damage, Corrupt::NewerRecord { .. }) => {
                schedule.cannot_read(&Key::Work, damage.into());
            }
            Err(error) => return Err(error),
        }
        self.view_keks(&mut schedule).await?;
        self.view_accounts(&mut schedule, accounts_max.min(VIEW_ACCOUNTS_MAX)).await?;
        Ok(schedule)
    }

    async fn view_keks(&self, schedule: &mut Schedule) -> Result<()> {
        for name in kek_names(&*self.store).await? {
            let record = match self.kek_record(&name).await {
                Ok(record) => record,
                Err(error @ Error::Store(_)) => return Err(error),
                Err(error) => {
                    schedule.cannot_read(&Key::Kek(name), error);
                    continue;
                }
            };
            let Some(due_at_unix) = kek_due_at(&record) else { continue };
            let due = kek_due(&record, schedule.now_unix);
            let kek = KekVersion::new(name, record.current);
            schedule.keks.push(KekSchedule { kek, due_at_unix, due, left_behind: 0 });
        }
        Ok(())
    }

    async fn view_accounts(&self, schedule: &mut Schedule, accounts_max: usize) -> Result<()> {
        // The latest of those that come next is on top, and goes when there are too many.
        let mut next = BinaryHeap::new();
        let (store, mut after) = (&*self.store, None);
        loop {
            let page = store.list(&Filter::Accounts, after.as_ref(), PAGE_KEYS_MAX).await?;
            for key in page.keys {
                let Key::Account(id) = key else { continue };
                let record = match load_account(store, &id).await {
                    Ok(Some((record, _))) => record,
                    Ok(None) => continue,
                    Err(error @ Error::Store(_)) => return Err(error),
                    Err(error) => {
                        schedule.cannot_read(&Key::Account(id), error);
                        continue;
                    }
                };
                schedule.count_left_behind(&record);
                let aek_version = record.current().map_or(0, |current| current.aek_version);
                let due_at_unix = aek_due_at(&record);
                if let Some(due) = aek_due(&record, schedule.now_unix) {
                    schedule.accounts_due += 1;
                    if schedule.due.len() < accounts_max {
                        schedule.due.push(AekSchedule { account: id, aek_version, due_at_unix, due: Some(due) });
                    }
                } else if let Some(due_at_unix) = due_at_unix {
                    next.push((due_at_unix, id, aek_version));
                    if next.len() > accounts_max {
                        next.pop();
                    }
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let in_order = next.into_sorted_vec().into_iter().map(|(due_at_unix, account, aek_version)| AekSchedule {
            account,
            aek_version,
            due_at_unix: Some(due_at_unix),
            due: None,
        });
        schedule.next = in_order.collect();
        Ok(())
    }
}
