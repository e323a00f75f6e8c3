//! What the store says of a slot, and the records that prove a KEK version.

use super::{Keyring, made_anew};
use crate::{
    error::{Corrupt, Error, Result},
    name::{AccountId, KekVersion},
    rotate::deleted,
    slot::{AekSlot, Leash},
    store::{
        self,
        record::{AccountRecord, WrappedAek},
    },
};
use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard, PoisonError},
};

/// A wrapped AEK to prove a KEK version with.
pub(crate) struct Sample {
    pub(crate) account: AccountId,
    pub(crate) wrapped: WrappedAek,
    /// Where it belongs, unless nobody has the account open any more.
    pub(crate) slot: Option<Arc<AekSlot>>,
}

/// What the store says of a slot now.
pub(crate) struct Found {
    pub(super) wrapped: WrappedAek,
    /// Its successor, enlisted with the lease of the KEK version that the record names, when that is another one than the
    /// slot's: somebody re-wrapped the account. Takes the slot's place once the token has spoken.
    pub(super) heir: Option<Arc<AekSlot>>,
}

impl Found {
    pub(crate) fn moved(&self) -> bool {
        self.heir.is_some()
    }

    /// The lease that is asked for what belongs into `slot`.
    pub(crate) fn leash<'a>(&'a self, slot: &'a AekSlot) -> &'a Arc<Leash> {
        self.heir.as_ref().map_or(&slot.leash, |heir| &heir.leash)
    }
}

impl Keyring {
    /// Reads what belongs into a slot, and makes its successor where the record names another KEK version by now.
    ///
    /// On the way, learns of newer AEK versions.
    pub(crate) async fn find(self: &Arc<Self>, slot: &Arc<AekSlot>) -> Result<Found> {
        let record = self.record(slot).await?;
        self.learn_beside(slot, &record).await;
        let policy = record.policy;
        let wrapped = self.wrapped_in(record, slot).await?;
        slot.meter().learn(wrapped.used, policy);
        let heir = if wrapped.kek == *slot.leash.kek() {
            None
        } else {
            Some(slot.successor(self.leash(&wrapped.kek).await?)?)
        };
        Ok(Found { wrapped, heir })
    }

    /// The record of a slot's account.
    pub(super) async fn record(&self, slot: &AekSlot) -> Result<AccountRecord> {
        match self.in_time(store::load_account(&*self.store, slot.account())).await? {
            Some((AccountRecord { deleted: Some(deletion), .. }, _)) => Err(deleted(slot.account(), deletion)),
            Some((record, _)) => Ok(record),
            None => {
                self.disown(slot).await;
                Err(Error::NotFound(format!("account {}: it was purged", slot.account())))
            }
        }
    }

    /// The wrapped AEK of a slot's AEK version.
    async fn wrapped_in(&self, record: AccountRecord, slot: &AekSlot) -> Result<WrappedAek> {
        if record.current().is_none_or(|current| current.aek_version < slot.aek_version) {
            // AEK versions only ever count up.
            self.disown(slot).await;
            return Err(made_anew(slot.account()));
        }
        let Some(wrapped) = record.versions.into_iter().find(|wrapped| wrapped.aek_version == slot.aek_version) else {
            // Not before its successor is here: handles seal under the newest that there is.
            let keys = self.alive(slot.account());
            if keys.is_some_and(|keys| keys.current().aek_version > slot.aek_version) {
                slot.retire();
            }
            return Err(Corrupt::AekVersion(slot.aek_version).into());
        };
        if wrapped.created_unix != slot.meter().aek.created_unix {
            // Of the same number, and another one: an AEK keeps the time of its making for good.
            self.disown(slot).await;
            return Err(made_anew(slot.account()));
        }
        // A KEK version is one key in the token. A record that names another one is damaged, and must not speak for the KEK.
        let proved = self.sample(&wrapped.kek);
        if proved.is_some_and(|(_, good)| (&good.kek_id, good.profile) != (&wrapped.kek_id, wrapped.profile)) {
            return Err(Corrupt::WrappedAek(format!("account {}", slot.account())).into());
        }
        Ok(wrapped)
    }

    /// As [`Keyring::find`], for a proof: a store that fails or is slow is not a token that is silent, so whatever record
    /// of the KEK version was read last is taken then, with the slot that it belongs into, if that is still alive.
    pub(crate) async fn wrapped_for_proof(&self, slot: Arc<AekSlot>) -> Result<Sample> {
        let patience = self.clock.now().plus(self.settings.call_timeout / 4);
        let kek = slot.leash.kek();
        let wrapped = async {
            let record = self.record(&slot).await.inspect_err(|error| slot.shut_if_gone(error))?;
            let newest = record.current().map_or(0, |current| current.aek_version);
            if self.alive(slot.account()).is_some_and(|keys| keys.current().aek_version < newest) {
                self.note_move(&slot.leash); // the tending learns of it; a proof has no time for that
            }
            self.wrapped_in(record, &slot).await
        };
        let failed = match self.clock.until(patience, wrapped).await {
            Some(Ok(wrapped)) if wrapped.kek != *kek => {
                self.note_move(&slot.leash);
                return Err(Error::NotFound(format!("account {}: it is not under KEK {kek} any more", slot.account())));
            }
            Some(Ok(wrapped)) => {
                return Ok(Sample { account: slot.account().clone(), wrapped, slot: Some(slot) });
            }
            Some(Err(Error::Store(failed))) => failed,
            Some(Err(error)) => return Err(error),
            None => "does not answer".into(),
        };
        let kept = self.samples().get(kek).cloned();
        let Some((account, wrapped)) = kept else { return Err(Error::Store(failed)) };
        let its = |slot: &&Arc<AekSlot>| *slot.account() == account && slot.aek_version == wrapped.aek_version;
        let slot = slot.leash.living_members().iter().find(its).cloned();
        Ok(Sample { account, wrapped, slot })
    }

    pub(super) fn samples(&self) -> MutexGuard<'_, HashMap<KekVersion, (AccountId, WrappedAek)>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A record of the KEK version that was proved in this process.
    pub(crate) fn sample(&self, kek: &KekVersion) -> Option<(AccountId, WrappedAek)> {
        self.samples().get(kek).cloned()
    }

    /// Keeps a record that was proved, so that the KEK version can be proved while the store fails.
    pub(crate) fn keep_sample(&self, kek: &KekVersion, account: &AccountId, wrapped: &WrappedAek) {
        self.samples().insert(kek.clone(), (account.clone(), wrapped.clone()));
    }
}
