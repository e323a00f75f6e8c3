//! Denials written down, so that they are sticky across restarts (promise 4).
//!
//! Each process writes the denial that it sees and clears it after its own proof. Several processes may share a store, and a
//! delete that was given up on may still happen. So every denial has a version of its record that no earlier delete can
//! hit, and a proof clears only the record of a denial that it can speak for: one that this process wrote or found as it
//! started, or one that was written before the proof.

use crate::{
    clock::unix_now,
    error::{Error, Result},
    keyring::Keyring,
    lease::{Change, Phase, Verdict},
    slot::Leash,
    standby::Voice,
    store::{self, Key, Put, StoreVersion, record::DenialRecord},
};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use tokio::sync::Notify;

/// What one lease knows of its denial's record.
#[derive(Debug, Default)]
pub(crate) struct DenialNotes {
    /// The store does not say, or may not say, what the lease says.
    unsaved: AtomicBool,
    /// It is being written.
    saving: AtomicBool,
    /// Wakes who waits for the end of that.
    pub(crate) saved: Notify,
    /// Denials of this lease so far, repeated ones not counted.
    count: AtomicU64,
    /// When a proof last granted, by the wall clock.
    granted_unix: AtomicU64,
    /// The record that this process wrote, or found as it started: for which denial, and its version.
    record: Mutex<Option<(u64, StoreVersion)>>,
}

impl DenialNotes {
    /// A record that was there before this process.
    pub(crate) fn loaded(&self, version: Option<StoreVersion>) {
        *self.record() = version.map(|version| (self.count.load(Ordering::SeqCst), version));
    }

    pub(crate) fn is_saving(&self) -> bool {
        self.saving.load(Ordering::SeqCst)
    }

    /// Waits for what is being written.
    pub(crate) async fn settled(&self) {
        loop {
            let saved = self.saved.notified();
            tokio::pin!(saved);
            // Enlist before the look.
            saved.as_mut().enable();
            if !self.is_saving() {
                return;
            }
            saved.await;
        }
    }

    /// The store is to be looked at again: another process may have cleared the record of a denial that goes on.
    pub(crate) fn doubt(&self) {
        self.unsaved.store(true, Ordering::SeqCst);
    }

    fn record(&self) -> MutexGuard<'_, Option<(u64, StoreVersion)>> {
        // Nothing panics while it is held.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keyring {
    /// Notes what a verdict means for the record.
    pub(crate) fn note_denial(&self, leash: &Leash, voice: Voice, verdict: Verdict, change: Option<Change>) {
        let notes = &leash.denial;
        // The standby cannot speak for what another process heard of the first token.
        if voice == Voice::First && matches!(verdict, Verdict::Granted { .. }) && leash.lease().answering() {
            notes.granted_unix.store(unix_now(), Ordering::SeqCst);
        }
        if change == Some(Change::Denied) {
            notes.count.fetch_add(1, Ordering::SeqCst);
        }
        if matches!(change, Some(Change::Denied | Change::Resuming | Change::Granted)) {
            notes.doubt();
        }
    }

    /// Looks whether the store knows of a denial since the first token last granted, which another process heard: then the
    /// standby is not asked. False too when the store does not say.
    pub(crate) async fn knows_no_newer_denial(&self, leash: &Leash) -> Result<bool> {
        let granted_unix = leash.denial.granted_unix.load(Ordering::SeqCst);
        let own = leash.denial.record().clone().map(|(_, version)| version);
        match store::load_denial(&*self.store, leash.kek()).await {
            Ok(None) => Ok(true),
            // Its own is of the standby's denial, or on the way out: the first token's is known without the store.
            Ok(Some((record, version))) => Ok(own == Some(version) || record.since_unix < granted_unix),
            Err(Error::Corrupt(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Begins to write a denial, or its end, down, if it is not; one attempt at a time.
    pub(crate) fn save_if_needed(self: &Arc<Self>, leash: &Arc<Leash>) {
        if !leash.denial.unsaved.load(Ordering::SeqCst) || leash.denial.saving.swap(true, Ordering::SeqCst) {
            return;
        }
        let (keyring, saving) = (self.clone(), Saving(leash.clone()));
        self.home.upkeep.spawn(async move {
            let again = keyring.save_denial(&saving.0).await;
            let leash = saving.0.clone();
            drop(saving);
            if again {
                keyring.save_if_needed(&leash); // what was learned meanwhile
            }
        });
    }

    /// Makes the store say what the lease says: denied, or not. False when the store failed, and nothing was learned meanwhile:
    /// then the watch tries again.
    async fn save_denial(&self, leash: &Leash) -> bool {
        // Before the look at the phase: a verdict that comes later says again that there is something to save.
        leash.denial.unsaved.store(false, Ordering::SeqCst);
        let count = leash.denial.count.load(Ordering::SeqCst);
        let saved = async {
            match leash.lease().phase() {
                Phase::Denied { .. } => self.write_denial(leash, count).await.map(Some),
                _ => self.clear_denial(leash).await.map(|()| None),
            }
        };
        let patience = self.clock.now().plus(self.settings.call_timeout);
        match self.clock.until(patience, saved).await {
            Some(Ok(version)) => {
                *leash.denial.record() = version.map(|version| (count, version));
                return true;
            }
            // A command that ends takes its runtime with it. A denial was waited for before that.
            Some(Err(_)) if self.is_closed() => {}
            Some(Err(error)) => {
                tracing::warn!(kek = %leash.kek(), %error, "the record of the denial is not as it should be")
            }
            None => tracing::warn!(kek = %leash.kek(), "the record of the denial: the store does not answer"),
        }
        leash.denial.doubt();
        leash.denial.count.load(Ordering::SeqCst) != count
    }

    async fn write_denial(&self, leash: &Leash, count: u64) -> Result<StoreVersion> {
        let key = Key::Denial(leash.kek().clone());
        let written = leash.denial.record().clone().filter(|(of, _)| *of == count);
        let found = self.store.get(&key).await?;
        if let (Some(found), Some(_)) = (&found, written) {
            return Ok(found.version.clone()); // ours, or that of another process that was denied too
        }
        let (kek, since_unix) = (leash.kek().clone(), unix_now());
        let record = DenialRecord { kek, since_unix, reason: leash.why_not().to_string() };
        let put = Put { value: record.encode()?, wrapped_by: Vec::new() };
        match found {
            // Of an earlier denial, and its delete may still be under way; or another process may be about to clear it.
            Some(found) => self.store.replace(&key, &found.version, put).await,
            None => self.store.create(&key, put).await,
        }
    }

    async fn clear_denial(&self, leash: &Leash) -> Result<()> {
        let key = Key::Denial(leash.kek().clone());
        let Some(found) = self.store.get(&key).await? else { return Ok(()) };
        let is_known = leash.denial.record().as_ref().is_some_and(|(_, version)| *version == found.version);
        let granted_unix = leash.denial.granted_unix.load(Ordering::SeqCst);
        // One that cannot be read has nobody to speak for it.
        let before = DenialRecord::decode(&key, &found.value).map_or(true, |record| record.since_unix < granted_unix);
        if !is_known && !before {
            return Err(Error::Conflict(format!("{key}: another process was denied since; kept until a later proof")));
        }
        match self.store.delete(&key, &found.version).await {
            // Another process was faster.
            Ok(()) | Err(Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// An attempt to save under way; the next one may begin when it is dropped, by a panic too.
struct Saving(Arc<Leash>);

impl Drop for Saving {
    fn drop(&mut self) {
        self.0.denial.saving.store(false, Ordering::SeqCst);
        self.0.denial.saved.notify_waiters();
    }
}
