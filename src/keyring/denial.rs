//! Denials written down, so that they are sticky across restarts, engines and standbys (promise 4).
//!
//! Several processes may share a store; their clocks differ, and a write or delete that was given up on may still happen. So
//! every denial that a token says is a new version of the record, one that repeats another too, and what a proof ends is told by
//! versions alone: the record that this process had read or written before it asked for that proof, in a context that began after that:
//! an older one may hide what the record tells. A record with any other version is newer than the proof, whoever wrote it and whatever
//! its date; and no delete on behalf of a proof can hit it.
//!
//! A grant by the first token ends every denial so; one by the standby only what a standby said. And no unwrap is a grant while a denial is in
//! force but that of its witness, which the record names: see `keyring::vouch`.

use crate::{
    clock::Instant,
    error::{Corrupt, Error, Result},
    keyring::Keyring,
    lease::{Change, Verdict, standby::Voice},
    planted::{self, Fault},
    slots::slot::Leash,
    store::{
        self, CONFLICTS_MAX, Key, StoreVersion, again_and_again,
        record::{DenialRecord, Witness},
    },
};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
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
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Who said the denial that is not in the store yet.
    heard: Option<Voice>,
    /// Counts denials and grants that counted.
    words: u64,
    /// The record, when the store was last seen to have one.
    record: Option<Seen>,
    /// The version that a proof ended last.
    ended: Option<StoreVersion>,
    /// The store told then of a denial that has not ended since, whatever else a token denied meanwhile.
    told: Option<Instant>,
}

/// What a grant does to a denial's record.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Nothing,
    Now,
    /// One from a younger context is wanted for that.
    ByAFreshProof,
}

/// A record that was read or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    version: StoreVersion,
    by: Voice,
    witness: Option<Witness>,
    /// When this version was first known.
    since: Instant,
    /// It was read before there was a lease, so that whoever asks for a proof asks after that.
    at_start: bool,
}

impl Seen {
    /// As it was found. One that cannot be read may be the first token's.
    pub(crate) fn found((record, version): store::Found<DenialRecord>, since: Instant) -> Self {
        let (by_standby, witness) = record.map_or((false, None), |record| (record.by_standby, record.witness));
        let by = if by_standby { Voice::Standby } else { Voice::First };
        Self { version, by, witness, since, at_start: false }
    }

    /// As [`Seen::found`], by who makes the lease.
    pub(crate) fn at_start(found: store::Found<DenialRecord>, since: Instant) -> Self {
        Self { at_start: true, ..Self::found(found, since) }
    }

    /// True when it was known before that proof was asked, in a context that began after that.
    fn is_before(&self, asked: Instant, context: Instant) -> bool {
        (self.at_start || self.since < asked) && self.since <= context
    }

    pub(crate) fn witness(&self) -> Option<&Witness> {
        self.witness.as_ref()
    }

    pub(crate) fn by(&self) -> Voice {
        self.by
    }
}

impl Known {
    fn denied(&mut self, by: Voice) {
        self.words += 1;
        self.heard = Some(if self.heard == Some(Voice::First) { Voice::First } else { by });
    }

    /// What that did to what the store has.
    fn granted(&mut self, by: Voice, asked: Instant, context: Instant) -> End {
        self.words += 1;
        self.told = None;
        let ends = |denied_by: Voice| by == Voice::First || denied_by == Voice::Standby;
        self.heard = self.heard.filter(|heard| !ends(*heard));
        match self.record.as_ref().filter(|seen| ends(seen.by)) {
            Some(seen) if seen.is_before(asked, context) => {
                self.ended = Some(seen.version.clone());
                End::Now
            }
            Some(seen) if context < seen.since && !self.is_ended(seen) => End::ByAFreshProof,
            _ => End::Nothing,
        }
    }

    /// What was known of a version before stays so.
    fn saw(&mut self, seen: Option<Seen>) {
        if self.record.as_ref().map(|known| &known.version) != seen.as_ref().map(|seen| &seen.version) {
            self.record = seen;
        }
    }

    fn is_ended(&self, seen: &Seen) -> bool {
        self.ended.as_ref() == Some(&seen.version)
    }
}

impl DenialNotes {
    /// A denial that was there before this lease, and its record where that can be read.
    pub(crate) fn loaded(&self, told: Instant, record: Option<Seen>) {
        let mut known = self.known();
        (known.told, known.record) = (Some(told), record);
    }

    /// The store told of a denial that is in force from now on.
    pub(crate) fn told(&self, now: Instant) {
        self.known().told = Some(now);
    }

    /// True when a context that began then may hide a denial in force, of which the store told.
    pub(crate) fn may_be_hidden(&self, context: Instant) -> bool {
        self.known().told.is_some_and(|told| context < told)
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

    fn doubt(&self) {
        self.unsaved.store(true, Ordering::SeqCst);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing panics while it is held.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keyring {
    /// Notes what a verdict that counted means for the record.
    pub(crate) fn note_denial(&self, leash: &Leash, voice: Voice, verdict: Verdict, change: Option<Change>) {
        let notes = &leash.denial;
        let is_unsaved = match verdict {
            Verdict::Denied => {
                notes.known().denied(voice);
                !planted::is(Fault::DenialNotWritten)
            }
            Verdict::Granted { asked, context, .. } => {
                let end = notes.known().granted(voice, asked, context);
                if end == End::ByAFreshProof {
                    leash.renewal_owed(voice).store(true, Ordering::SeqCst);
                }
                // Others may have left one there, who ended before their own proof.
                end == End::Now || matches!(change, Some(Change::Resuming | Change::Granted))
            }
            _ => false,
        };
        if is_unsaved {
            notes.doubt();
        }
    }

    /// Looks whether the store knows of a denial by the first token that is newer than its last grant here, as far as that can be
    /// told: then the standby is not asked.
    pub(crate) async fn knows_no_newer_denial(&self, leash: &Leash) -> Result<bool> {
        let seen = match self.find_denial(leash).await {
            // Who wrote it, and when, cannot be told.
            Err(Error::Corrupt(_)) => return Ok(false),
            found => found?,
        };
        let mut known = leash.denial.known();
        known.saw(seen.clone());
        Ok(seen.is_none_or(|seen| seen.by == Voice::Standby || known.is_ended(&seen)))
    }

    async fn find_denial(&self, leash: &Leash) -> Result<Option<Seen>> {
        let key = Key::Denial(leash.kek().clone());
        let found = store::find(&*self.store, &key, DenialRecord::decode).await?;
        Ok(found.map(|found| Seen::found(found, self.clock.now())))
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

    /// Makes the store say what the tokens said last. False when the store failed, and nothing was learned meanwhile: then the
    /// watch tries again.
    async fn save_denial(&self, leash: &Leash) -> bool {
        // Before the look at what is known: what is said later says again that there is something to save.
        leash.denial.unsaved.store(false, Ordering::SeqCst);
        let (words, heard) = {
            let known = leash.denial.known();
            (known.words, known.heard)
        };
        let saved = async {
            match heard {
                Some(by) => self.write_denial(leash, by).await.map(Some),
                None => self.clear_denial(leash).await,
            }
        };
        let patience = self.clock.now().plus(self.settings.store_timeout);
        match self.clock.until(patience, saved).await {
            Some(Ok(seen)) => {
                let mut known = leash.denial.known();
                known.saw(seen);
                if known.words == words {
                    known.heard = None;
                }
                return true;
            }
            // A command that ends takes its runtime with it. A denial was waited for before that.
            Some(Err(_)) if self.is_closed() => {}
            Some(Err(error)) => {
                tracing::warn!(kek = %leash.kek(), %error, "the record of the denial is not as it should be");
                if matches!(error, Error::Corrupt(Corrupt::NewerRecord { .. })) {
                    return false; // which is a denial, and that release's to end
                }
            }
            None => tracing::warn!(kek = %leash.kek(), "the record of the denial: the store does not answer"),
        }
        leash.denial.doubt();
        leash.denial.known().words != words
    }

    /// Writes a denial that was heard, and gives the record that stands for it.
    async fn write_denial(&self, leash: &Leash, by: Voice) -> Result<Seen> {
        let key = Key::Denial(leash.kek().clone());
        let mut record = DenialRecord {
            kek: leash.kek().clone(),
            since_unix: self.clock.wall_unix(),
            reason: leash.why_not().to_string(),
            by_standby: by == Voice::Standby,
            witness: None,
        };
        for _ in 0..CONFLICTS_MAX {
            let found = self.find_denial(leash).await?;
            let in_force = found.as_ref().filter(|seen| !leash.denial.known().is_ended(seen));
            // Whoever noticed first, noticed when there was the least that another key could have wrapped.
            if let Some(witness) = in_force.and_then(Seen::witness) {
                leash.vouch.adopt(witness);
            }
            // The standby does not speak for the first token.
            if let Some(seen) = in_force.filter(|seen| by == Voice::Standby && seen.by == Voice::First) {
                return Ok(seen.clone());
            }
            record.witness = leash.vouch.witness();
            let written = match &found {
                Some(seen) => self.store.replace(&key, &seen.version, record.put()?).await,
                None => self.store.create(&key, record.put()?).await,
            };
            match written {
                Ok(version) => {
                    let (since, at_start) = (self.clock.now(), false);
                    return Ok(Seen { version, by, witness: record.witness, since, at_start });
                }
                Err(Error::Conflict(_) | Error::Exists(_) | Error::NotFound(_)) => {} // others hear it too, or heard its end
                Err(error) => return Err(error),
            }
        }
        Err(again_and_again("denial of KEK", leash.kek()))
    }

    /// Deletes the record, if a proof ended it; gives the one that is there then.
    async fn clear_denial(&self, leash: &Leash) -> Result<Option<Seen>> {
        let key = Key::Denial(leash.kek().clone());
        let Some(seen) = self.find_denial(leash).await? else { return Ok(None) };
        if !leash.denial.known().is_ended(&seen) {
            return Ok(Some(seen)); // until the next proof, which is asked for after it was seen
        }
        match self.store.delete(&key, &seen.version).await {
            // Another process was faster.
            Ok(()) | Err(Error::NotFound(_)) => Ok(None),
            Err(Error::Conflict(_)) => self.find_denial(leash).await,
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
