//! What the store says of a slot, and the records that prove a KEK version.

use super::{Keyring, Ready, made_anew};
use crate::{
    account_keys::AccountKeys,
    clock::Instant,
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
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering},
};

/// An AEK may be used for a TTL from when its record was read. One that waited for its place of the budget for more than this
/// part of it is read again, so that most of it is left.
const READING_AGE_PARTS: u32 = 4;

/// An account's record, as the store gave it.
pub(crate) struct Reading {
    pub(super) record: AccountRecord,
    /// When it was asked for: what was stored before is in it.
    pub(super) at: Instant,
    /// [`Keyring::count_news`] counted so many until then.
    news: u64,
}

/// A wrapped AEK to prove a KEK version with.
pub(crate) struct Sample {
    pub(crate) account: AccountId,
    pub(crate) wrapped: WrappedAek,
    /// Where it belongs; not where it is an older reading's, because who knows what the store says of the account now.
    pub(crate) slot: Option<Arc<AekSlot>>,
}

/// What the store says of a slot now.
pub(crate) struct Found {
    pub(super) wrapped: WrappedAek,
    /// When its record was asked for.
    pub(super) read: Instant,
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
    /// What the unwrap for somebody who waits needs, with the slot's shut guard held. `reading` is what the account's keys were
    /// just made of.
    pub(super) async fn prepare(self: &Arc<Self>, slot: &Arc<AekSlot>, reading: Option<Reading>) -> Result<Ready> {
        let reading = match reading.filter(|reading| self.is_current(reading)) {
            Some(reading) => reading,
            None => self.record(slot).await?,
        };
        let mut found = self.find_in(slot, reading).await?;
        let place = found.leash(slot).budget().on_demand().await;
        if self.clock.now().since(found.read) >= self.settings.aek_ttl / READING_AGE_PARTS {
            found = self.find(slot).await?;
        }
        if found.moved() {
            self.note_move(&slot.leash);
        }
        Ok(Ready { found, place })
    }

    /// Reads what belongs into a slot, and makes its successor where the record names another KEK version by now.
    ///
    /// On the way, learns of newer AEK versions.
    pub(crate) async fn find(self: &Arc<Self>, slot: &Arc<AekSlot>) -> Result<Found> {
        let reading = self.record(slot).await?;
        self.find_in(slot, reading).await
    }

    /// As [`Keyring::find`], in what was read.
    pub(super) async fn find_in(self: &Arc<Self>, slot: &Arc<AekSlot>, reading: Reading) -> Result<Found> {
        self.learn_beside(slot, &reading).await;
        let Reading { record, at: read, .. } = reading;
        let policy = record.policy;
        let wrapped = self.wrapped_in(record, slot).await?;
        slot.meter().learn(wrapped.used, policy);
        let heir = if wrapped.kek == *slot.leash.kek() {
            None
        } else {
            Some(slot.successor(self.leash(&wrapped.kek).await?)?)
        };
        Ok(Found { wrapped, read, heir })
    }

    /// Reads an account's record; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the account is deleted; [`Error::Store`], [`Error::Corrupt`].
    pub(super) async fn read(&self, id: &AccountId) -> Result<Option<Reading>> {
        let (at, news) = (self.clock.now(), self.news.load(Ordering::SeqCst));
        match self.in_time(store::load_account(&*self.store, id)).await? {
            Some((AccountRecord { deleted: Some(deletion), .. }, _)) => Err(deleted(id, deletion)),
            found => Ok(found.map(|(record, _)| Reading { record, at, news })),
        }
    }

    /// The record of a slot's account.
    pub(super) async fn record(&self, slot: &AekSlot) -> Result<Reading> {
        let reading = self.read(slot.account()).await?;
        if reading.is_none() {
            self.disown(slot).await;
        }
        reading.ok_or_else(|| purged(slot.account()))
    }

    /// True when no living keys were told any news since, of this account or another. Asked once the keys that were made of the
    /// record are alive: those who have news later find them.
    fn is_current(&self, reading: &Reading) -> bool {
        self.news.load(Ordering::SeqCst) == reading.news
    }

    /// Before living keys are looked for that must be told what was stored of their account.
    pub(super) fn count_news(&self) {
        self.news.fetch_add(1, Ordering::SeqCst);
    }

    /// The keys of an account, if anybody has them, to be told news.
    pub(super) fn to_tell(&self, id: &AccountId) -> Option<Arc<AccountKeys>> {
        self.count_news();
        self.alive(id)
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
    /// of the KEK version was read last is taken then.
    pub(crate) async fn wrapped_for_proof(&self, slot: Arc<AekSlot>) -> Result<Sample> {
        let patience = self.clock.now().plus(self.settings.call_timeout / 4);
        let kek = slot.leash.kek();
        let wrapped = async {
            let Reading { record, .. } = self.record(&slot).await.inspect_err(|error| slot.shut_if_gone(error))?;
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
        Ok(Sample { account, wrapped, slot: None })
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

pub(super) fn purged(account: &AccountId) -> Error {
    Error::NotFound(format!("account {account}: it was purged"))
}
