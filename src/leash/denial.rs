//! What a lease knows of its denial's record in the store, so that a denial is sticky across restarts, engines and standbys (promise 4).
//! `keyring/denial.rs` writes and reads the record.
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
    lease::standby::Voice,
    store::{
        self, StoreVersion,
        record::{DenialRecord, Witness},
    },
};
use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::Notify;

/// What one lease knows of its denial's record.
#[derive(Debug, Default)]
pub(crate) struct DenialNotes {
    /// The store does not say, or may not say, what the lease says.
    pub(crate) unsaved: AtomicBool,
    /// It is being written.
    pub(crate) saving: AtomicBool,
    /// Wakes who waits for the end of that.
    pub(crate) saved: Notify,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Who said the denial that is not in the store yet.
    pub(crate) heard: Option<Voice>,
    /// Counts denials and grants that counted.
    pub(crate) words: u64,
    /// The record, when the store was last seen to have one.
    record: Option<Seen>,
    /// The version that a proof ended last.
    ended: Option<StoreVersion>,
    /// The store told then of a denial that has not ended since, whatever else a token denied meanwhile.
    told: Option<Instant>,
}

/// What a grant does to a denial's record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Nothing,
    Now,
    /// One from a younger context is wanted for that.
    ByAFreshProof,
}

/// A record that was read or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) version: StoreVersion,
    pub(crate) by: Voice,
    pub(crate) witness: Option<Witness>,
    /// When this version was first known.
    pub(crate) since: Instant,
    /// It was read before there was a lease, so that whoever asks for a proof asks after that.
    pub(crate) at_start: bool,
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
}

impl Known {
    pub(crate) fn denied(&mut self, by: Voice) {
        self.words += 1;
        self.heard = Some(if self.heard == Some(Voice::First) { Voice::First } else { by });
    }

    /// What that did to what the store has.
    pub(crate) fn granted(&mut self, by: Voice, asked: Instant, context: Instant) -> End {
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
    pub(crate) fn saw(&mut self, seen: Option<Seen>) {
        if self.record.as_ref().map(|known| &known.version) != seen.as_ref().map(|seen| &seen.version) {
            self.record = seen;
        }
    }

    pub(crate) fn is_ended(&self, seen: &Seen) -> bool {
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

    pub(crate) fn doubt(&self) {
        self.unsaved.store(true, Ordering::SeqCst);
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing panics while it is held.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
