//! What the store says of a slot, and the records that prove a KEK version.

use super::{Keyring, made_anew, unwrap::Ready};
use crate::{
    clock::Instant,
    error::{Corrupt, Error, Result},
    name::{AccountId, KekVersion},
    slots::{
        account_keys::{AccountKeys, ShutGuard},
        slot::{AekSlot, Leash},
    },
    store::{
        self, StoreVersion,
        record::{AccountRecord, WrappedAek, deleted},
    },
};
use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

/// An AEK may be used for a TTL from when its record was read. One that waited for its place of the budget for more than this
/// part of it is read again, so that most of it is left.
const READING_AGE_PARTS: u32 = 4;
/// A part of `store_timeout`: how long a reading may take that others wait for, who have theirs.
const SHORT_READING_PARTS: u32 = 4;
/// A part of `store_timeout`: how long a proof waits for a record where there is one that was proved before. So much earlier it
/// begins, so that the token has all of its time.
const PROOF_READING_PARTS: u32 = 20;

/// An account's record, as the store gave it.
pub(crate) struct Reading {
    pub(super) record: AccountRecord,
    /// When it was asked for: what was stored before is in it.
    pub(super) at: Instant,
    /// [`Keyring::count_news`] counted so many until then.
    news: u64,
    /// Of the keys that were there then.
    pub(super) guard: ShutGuard,
}

/// A wrapped AEK to prove a KEK version with.
pub(crate) struct Sample {
    pub(crate) account: AccountId,
    pub(crate) wrapped: WrappedAek,
    /// Where it belongs. Not where it is an older reading's, because who knows what the store says of the account now, nor where
    /// there is a newer AEK version that is to be learned of first. What was read before it was deleted or retired fills no slot.
    pub(crate) slot: Option<(Arc<AekSlot>, ShutGuard)>,
}

/// For each KEK version one wrapped AEK of an account.
type OneOfEach = HashMap<KekVersion, (AccountId, WrappedAek)>;

/// What is kept in memory to ask KEK versions by.
#[derive(Default)]
pub(super) struct Samples {
    /// What was read for a proof, and proves on while the store fails.
    pub(super) proved: OneOfEach,
    /// Where there is none of those: by what was wrapped here a denial is asked for, and it proves nothing else.
    unproved: OneOfEach,
}

impl Samples {
    pub(super) fn forget(&mut self, kek: &KekVersion) {
        self.proved.remove(kek);
        self.unproved.remove(kek);
    }
}

/// What the store says of a slot now.
pub(crate) struct Found {
    pub(super) wrapped: WrappedAek,
    /// When its record was asked for.
    pub(super) read: Instant,
    /// Of the keys that were there then.
    pub(super) guard: ShutGuard,
    /// Its successor, enlisted with the lease of the KEK version that the record names, when that is another one than the
    /// slot's: somebody re-wrapped the account. Takes the slot's place once the token has spoken.
    pub(super) heir: Option<Arc<AekSlot>>,
    /// The slots of newer AEK versions that could not be unwrapped just now. They are put in front before the one that is not
    /// usable any more is filled again: that is for opening, and nobody knows any more for how long others expect seals under it.
    pub(super) newer: Vec<Arc<AekSlot>>,
    /// The newest AEK version that the record has.
    newest: u32,
}

/// Who an unwrap is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum For {
    /// Somebody who waits.
    Caller,
    /// Whoever uses the key next.
    Nobody,
}

/// What came of the wait for a place.
pub(crate) enum Placed {
    Ready(Ready),
    /// The record says something else by now, and so there is something else to do.
    Changed(Reading),
}

impl Found {
    pub(crate) fn moved(&self) -> bool {
        self.heir.is_some()
    }

    /// True when `record` has the AEK under the same KEK version, and no AEK version that is newer than those before.
    fn is_as_in(&self, record: &AccountRecord) -> bool {
        newest_in(record) == self.newest
            && record.version(self.wrapped.aek_version).is_some_and(|wrapped| wrapped.kek == self.wrapped.kek)
    }

    /// The lease that is asked for what belongs into `slot`.
    pub(crate) fn leash<'a>(&'a self, slot: &'a AekSlot) -> &'a Arc<Leash> {
        self.heir.as_ref().map_or(&slot.leash, |heir| &heir.leash)
    }
}

impl Keyring {
    /// The record of an account, for whoever named it.
    pub(crate) async fn load_account(&self, id: &AccountId) -> Result<(AccountRecord, StoreVersion)> {
        let found = store::load_account(&*self.store, id).await?;
        let (record, seen) = found.ok_or_else(|| Error::NotFound(format!("account {id}")))?;
        Ok((record, seen))
    }

    /// What the unwrap for somebody who waits needs, with the slot's shut guard held. `reading` is what the account's keys were
    /// just made of.
    pub(super) async fn prepare(self: &Arc<Self>, slot: &Arc<AekSlot>, reading: Option<Reading>) -> Result<Ready> {
        let reading = match reading.filter(|reading| self.is_current(reading)) {
            Some(reading) => reading,
            None => self.record(slot).await?,
        };
        let mut found = self.find_in(slot, reading).await?;
        loop {
            if found.moved() {
                self.note_move(&slot.leash);
            }
            found = match self.placed(slot, found, For::Caller).await? {
                Placed::Ready(ready) => return Ok(ready),
                Placed::Changed(reading) => self.find_in(slot, reading).await?,
            };
        }
    }

    /// Waits for a place of the budget for what was found. Where that took long, reads the record again.
    pub(crate) async fn placed(&self, slot: &Arc<AekSlot>, found: Found, asker: For) -> Result<Placed> {
        let came = self.clock.now();
        let leash = found.leash(slot);
        let place = match asker {
            For::Caller => leash.on_demand().await,
            For::Nobody => leash.background().await,
        };
        let is_young = self.clock.now().since(found.read) < self.settings.aek_ttl / READING_AGE_PARTS;
        if is_young || found.leash(slot).was_silent(came) {
            return Ok(Placed::Ready(Ready { found, place }));
        }
        // With the place, because behind the queue once more it would be as old again. So it is a short reading, and nothing that
        // takes a second place.
        match self.shortly(self.record(slot)).await {
            Some(Ok(reading)) if found.is_as_in(&reading.record) => {
                let found = Found { newer: found.newer, ..self.found_in(slot, reading).await? };
                Ok(Placed::Ready(Ready { found, place }))
            }
            Some(Ok(reading)) => Ok(Placed::Changed(reading)),
            // What was found stays what it was.
            Some(Err(Error::Store(_))) | None => Ok(Placed::Ready(Ready { found, place })),
            Some(Err(error)) => Err(error),
        }
    }

    /// Reads what belongs into a slot, and makes its successor where the record names another KEK version by now.
    ///
    /// On the way, learns of newer AEK versions.
    pub(crate) async fn find(self: &Arc<Self>, slot: &Arc<AekSlot>) -> Result<Found> {
        let reading = self.record(slot).await?;
        self.find_in(slot, reading).await
    }

    /// As [`Keyring::find`], in what was read.
    pub(crate) async fn find_in(self: &Arc<Self>, slot: &Arc<AekSlot>, reading: Reading) -> Result<Found> {
        let learned = self.learn_beside(slot, &reading).await;
        // It may have been deleted meanwhile, and until it is unwrapped may take long.
        reading.guard.settle();
        let is_current = |keys: Arc<AccountKeys>| keys.current().aek_version == slot.aek_version;
        let mut newer = Vec::new();
        if let Err(error) = learned
            && self.alive(slot.account()).is_some_and(is_current)
        {
            let now = self.clock.now();
            if slot.is_usable(now) {
                // For as long as it is, and no longer: others count on it that a newer version is heard of within a TTL.
                if is_told(&error) {
                    slot.refresh_from(now.plus(self.settings.aek_ttl / 4)); // which is not told again at once
                }
                return Err(slot.cold());
            }
            for wrapped in reading.record.versions.iter().filter(|wrapped| wrapped.aek_version > slot.aek_version) {
                // One that has no lease here is for the time being under this one, as if it had been re-wrapped.
                let leash = self.leash(&wrapped.kek).await.unwrap_or_else(|_| slot.leash.clone());
                newer.push(AekSlot::new(leash, self.meter(&reading.record, wrapped)));
            }
        }
        Ok(Found { newer, ..self.found_in(slot, reading).await? })
    }

    /// What belongs into a slot, in what was read.
    async fn found_in(&self, slot: &Arc<AekSlot>, reading: Reading) -> Result<Found> {
        let Reading { record, at: read, guard, .. } = reading;
        let (policy, newest) = (record.policy, newest_in(&record));
        let wrapped = self.wrapped_in(record, slot).await?;
        slot.meter().learn(wrapped.used, policy);
        let heir =
            if wrapped.kek == *slot.leash.kek() { None } else { Some(slot.successor(self.leash(&wrapped.kek).await?)) };
        Ok(Found { wrapped, read, guard, heir, newer: Vec::new(), newest })
    }

    /// Reads an account's record; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the account is deleted; [`Error::Store`], [`Error::Corrupt`].
    pub(super) async fn read(&self, id: &AccountId) -> Result<Option<Reading>> {
        let (at, news, guard) = (self.clock.now(), self.news.load(Ordering::SeqCst), self.shut_guard(id));
        match self.in_time(store::load_account(&*self.store, id)).await? {
            Some((AccountRecord { deleted: Some(deletion), .. }, _)) => Err(deleted(id, deletion)),
            found => Ok(found.map(|(record, _)| Reading { record, at, news, guard })),
        }
    }

    /// What comes of a short reading; `None` when it takes longer.
    pub(super) async fn shortly<T>(&self, reading: impl Future<Output = T>) -> Option<T> {
        let patience = self.clock.now().plus(self.settings.store_timeout / SHORT_READING_PARTS);
        self.clock.until(patience, reading).await
    }

    /// How long before the token a proof asks the store.
    pub(crate) fn proof_reading_max(&self) -> Duration {
        self.settings.store_timeout / PROOF_READING_PARTS
    }

    /// Has the store asked, one at a time, by nobody who waits: whether it is silent must be known all the same.
    fn inquire(self: &Arc<Self>, account: AccountId) {
        if self.inquiring.swap(true, Ordering::SeqCst) {
            return;
        }
        let (keyring, inquiry) = (self.clone(), Inquiry(self.clone()));
        self.home.upkeep.spawn(async move {
            let _inquiry = inquiry;
            drop(keyring.read(&account).await);
        });
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
    pub(crate) fn to_tell(&self, id: &AccountId) -> Option<Arc<AccountKeys>> {
        self.count_news();
        self.alive(id)
    }

    /// The wrapped AEK of a slot's AEK version.
    pub(super) async fn wrapped_in(&self, record: AccountRecord, slot: &AekSlot) -> Result<WrappedAek> {
        if record.current().is_none_or(|current| current.aek_version < slot.aek_version) {
            // AEK versions only ever count up.
            self.disown(slot).await;
            return Err(made_anew(slot.account()));
        }
        let retired = record.retired;
        let Some(wrapped) = record.versions.into_iter().find(|wrapped| wrapped.aek_version == slot.aek_version) else {
            // Not before its successor is here: handles seal under the newest that there is.
            let keys = self.alive(slot.account());
            if let Some(keys) = keys.filter(|keys| keys.current().aek_version > slot.aek_version) {
                keys.note_retired(&retired);
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
    pub(crate) async fn wrapped_for_proof(self: &Arc<Self>, slot: Arc<AekSlot>) -> Result<Sample> {
        let kek = slot.leash.kek();
        let parts = if self.sample(kek).is_some() { PROOF_READING_PARTS } else { SHORT_READING_PARTS };
        let patience = self.clock.now().plus(self.settings.store_timeout / parts);
        let wrapped = async {
            let reading = self.record(&slot).await.inspect_err(|error| slot.shut_if_gone(error))?;
            let Reading { record, guard, .. } = reading;
            let newest = newest_in(&record);
            let is_overtaken = self.alive(slot.account()).is_some_and(|keys| keys.current().aek_version < newest);
            if is_overtaken {
                self.note_move(&slot.leash); // the tending learns of it; a proof has no time for that
            }
            Ok((self.wrapped_in(record, &slot).await?, guard, is_overtaken))
        };
        let failed = match self.clock.until(patience, wrapped).await {
            Some(Ok((wrapped, ..))) if wrapped.kek != *kek => {
                self.note_move(&slot.leash);
                return Err(Error::NotFound(format!("account {}: it is not under KEK {kek} any more", slot.account())));
            }
            Some(Ok((wrapped, guard, is_overtaken))) => {
                let account = slot.account().clone();
                return Ok(Sample { account, wrapped, slot: (!is_overtaken).then_some((slot, guard)) });
            }
            Some(Err(Error::Store(failed))) => failed,
            Some(Err(error)) => return Err(error),
            None => {
                self.inquire(slot.account().clone());
                "does not answer".into()
            }
        };
        let Some((account, wrapped)) = self.sample(kek) else { return Err(Error::Store(failed)) };
        Ok(Sample { account, wrapped, slot: None })
    }

    pub(super) fn samples(&self) -> MutexGuard<'_, Samples> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A record of the KEK version that was proved in this process: the first, where it is known.
    pub(crate) fn sample(&self, kek: &KekVersion) -> Option<(AccountId, WrappedAek)> {
        // While a denial is in force the witness may be one that the store gave, and nobody has proved.
        let leash = self.known_leash(kek).filter(|leash| !leash.is_denied());
        leash.and_then(|leash| leash.vouch.witness_record()).or_else(|| self.samples().proved.get(kek).cloned())
    }

    /// Forgets the records that are kept and are gone from the store. The watch proves anew at once, and keeps another one: without
    /// one, a store that is lost now would let no proof be asked.
    pub(super) fn drop_samples(&self, is_gone: impl Fn(&AccountId, u32) -> bool) {
        let mut lost = Vec::new();
        {
            let mut samples = self.samples();
            samples.unproved.retain(|_, (of, wrapped)| !is_gone(of, wrapped.aek_version));
            samples.proved.retain(|kek, (of, wrapped)| {
                let stays = !is_gone(of, wrapped.aek_version);
                lost.extend((!stays).then(|| kek.clone()));
                stays
            });
        }
        self.leashes().iter().for_each(|leash| leash.vouch.drop_witness(&is_gone));
        for leash in lost.iter().filter_map(|kek| self.known_leash(kek)) {
            leash.sample_lost.store(true, Ordering::SeqCst);
            self.stir.notify_one();
        }
    }

    /// Keeps a record that was proved, so that the KEK version can be proved while the store fails.
    pub(crate) fn keep_sample(&self, kek: &KekVersion, account: &AccountId, wrapped: &WrappedAek) {
        self.samples().proved.insert(kek.clone(), (account.clone(), wrapped.clone()));
    }

    /// Keeps a record that proves nothing yet, because it was wrapped here: a denial is one by whatever it is said to.
    pub(crate) fn keep_unproved(&self, kek: &KekVersion, account: &AccountId, wrapped: &WrappedAek) {
        self.samples().unproved.insert(kek.clone(), (account.clone(), wrapped.clone()));
    }

    pub(crate) fn unproved_sample(&self, kek: &KekVersion) -> Option<(AccountId, WrappedAek)> {
        self.samples().unproved.get(kek).cloned()
    }
}

/// The store is asked; once that ends, by a panic too, it may be asked again.
struct Inquiry(Arc<Keyring>);

impl Drop for Inquiry {
    fn drop(&mut self) {
        self.0.inquiring.store(false, Ordering::SeqCst);
    }
}

fn newest_in(record: &AccountRecord) -> u32 {
    record.current().map_or(0, |current| current.aek_version)
}

/// True for what an account's own record, or its KEK's, is at fault for: an event tells of it.
pub(super) fn is_told(error: &Error) -> bool {
    matches!(error, Error::Corrupt(_) | Error::Misconfigured(_))
}

pub(super) fn purged(account: &AccountId) -> Error {
    Error::NotFound(format!("account {account}: it was purged"))
}
