//! How much is sealed under an AEK version: counted where it is sealed, on lines that no two cores fight over.
//!
//! An account that is sealed little has one pair of counters. One that is sealed much gets a lane for each thread, so that
//! cores which share the account do not wait for each other; the lanes are made ahead, because the data path allocates
//! nothing. `keyring/usage.rs` writes down what was counted, in the account's record, after the fact. So that what a crash
//! loses of it is bounded, a counter has a ceiling, [`UNWRITTEN_BLOCKS_MAX`] above what was last written down: behind it
//! sealing is refused. The limits of the suite are ceilings as well.

use self::lanes::{Counter, Lanes, SPARE};
pub(crate) use self::{
    lanes::provide_lanes,
    ledger::{Counted, Ledger, Limits, minus, plus},
};
use crate::{
    clock::Instant,
    error::{Error, Result},
    store::record::{AekPolicy, Usage},
};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

mod lanes;
mod ledger;

/// Blocks that one counter may be ahead of what was written down: nine minutes of 2 million blocks a second, by when a
/// store that fails has stopped an account whose token answers, because its TTL is over.
pub(crate) const UNWRITTEN_BLOCKS_MAX: u64 = 1 << 30;
/// What was counted is written down when it is this many blocks …
const STEP_BLOCKS: u64 = 1 << 20;
/// … or bytes, …
const STEP_BYTES: u64 = 1 << 36;
/// … or this part of what the account's policy allows, …
const STEPS_PER_POLICY: u64 = 16;
/// … or has waited for so long. A million accounts that are sealed all the time cost the store 280 writes a second.
const WRITE_EVERY: Duration = Duration::from_secs(60 * 60);
/// An account that is sealed this many times …
const HOT_BLOCKS: u64 = 4096;
/// … within this time (66,000 blocks a second) gets lanes.
const HOT_WITHIN_MS: u32 = 62;

/// Counts what this engine seals under one AEK version.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) aek: Counted,
    ledger: Arc<Ledger>,
    few: Counter,
    lanes: OnceLock<Box<Lanes>>,
    /// When `few` last passed a multiple of [`HOT_BLOCKS`], in milliseconds, of which the high half is left out.
    passed_ms: AtomicU32,
    books: Mutex<Books>,
}

/// What is known of the record. Never held while anything waits.
#[derive(Debug)]
struct Books {
    /// What the record said last, all engines together.
    seen: Usage,
    /// Of most of a million accounts there is nothing of this to know.
    notes: Option<Box<Notes>>,
}

/// As with nothing counted and no policy.
#[derive(Debug, Clone, Copy, Default)]
struct Notes {
    /// Of what was counted here: written down, or on the way there. More than was counted, where that was written down ahead.
    taken: Usage,
    policy: AekPolicy,
    /// Since when something waits to be written down.
    waiting: Option<Instant>,
}

impl Books {
    fn notes(&self) -> Notes {
        self.notes.as_deref().copied().unwrap_or_default()
    }

    fn notes_mut(&mut self) -> &mut Notes {
        self.notes.get_or_insert_default()
    }

    fn saw(&mut self, seen: Usage, policy: AekPolicy) {
        self.seen = seen;
        if self.notes.is_some() || policy != AekPolicy::default() {
            self.notes_mut().policy = policy;
        }
    }
}

impl Meter {
    /// For an AEK version of which the record says that `seen` was sealed.
    pub(crate) fn new(ledger: &Arc<Ledger>, aek: Counted, seen: Usage, policy: AekPolicy) -> Self {
        provide_lanes();
        let few = Counter { ceiling: AtomicU64::new(UNWRITTEN_BLOCKS_MAX), ..Counter::default() };
        let meter = Self {
            aek,
            ledger: ledger.clone(),
            few,
            lanes: OnceLock::new(),
            passed_ms: AtomicU32::new(0),
            books: Mutex::new(Books { seen, notes: None }),
        };
        meter.learn(seen, policy);
        meter
    }

    /// Counts a block that is about to be sealed by `thread`, as [`crate::secret::in_flight::Operation::thread`] numbers it.
    ///
    /// # Errors
    /// [`Error::Exhausted`] at a limit of the suite; [`Error::Store`] when too much could not be written down.
    #[inline]
    pub(crate) fn count(&self, thread: usize, bytes: usize, now: impl FnOnce() -> Instant) -> Result<()> {
        if self.counts(thread, bytes as u64, now) { Ok(()) } else { Err(self.refusal()) }
    }

    #[inline]
    fn counts(&self, thread: usize, bytes: u64, now: impl FnOnce() -> Instant) -> bool {
        match self.lanes.get() {
            Some(lanes) => match lanes.own.get(thread) {
                Some(lane) => lane.0.count_alone(bytes),
                None => lanes.shared.0.count_among_others(bytes).is_some(),
            },
            None => match self.few.count_among_others(bytes) {
                Some(before) => {
                    if before % HOT_BLOCKS == HOT_BLOCKS - 1 {
                        self.passed(now());
                    }
                    true
                }
                None => false,
            },
        }
    }

    /// Takes the spare lanes, if the account is sealed that much. Waits for nobody: there will be another time.
    #[cold]
    #[inline(never)]
    fn passed(&self, now: Instant) {
        let now_ms = (now.as_nanos() / 1_000_000) as u32;
        let last_ms = self.passed_ms.swap(now_ms, Ordering::Relaxed);
        if now_ms.wrapping_sub(last_ms) > HOT_WITHIN_MS {
            return;
        }
        let Ok(mut spare) = SPARE.try_lock() else { return };
        if let Some(lanes) = spare.take() {
            let ceiling = self.few.ceiling.load(Ordering::Relaxed);
            let room = ceiling.saturating_sub(self.few.blocks.load(Ordering::Relaxed));
            lanes.counters().for_each(|counter| counter.ceiling.store(room, Ordering::Relaxed));
            *spare = self.lanes.set(lanes).err();
        }
    }

    #[cold]
    #[inline(never)]
    fn refusal(&self) -> Error {
        let books = self.books();
        let (used, unwritten) = (self.used(&books), minus(self.counted(), books.notes().taken));
        let Self { aek: Counted { account, aek_version, .. }, ledger, .. } = self;
        if ledger.limits.reached(used) {
            let Limits { blocks, bytes } = ledger.limits;
            return Error::Exhausted(format!(
                "AEK version {aek_version} of account {account} has sealed as much as one may, {blocks} blocks or {bytes} bytes: \
                 `keyleash account rotate {account}`"
            ));
        }
        Error::Store(format!(
            "account {account}: {} blocks were sealed that could not be written down, which is the most: see that the store \
             works, and try again",
            unwritten.blocks
        ))
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Nothing panics while it is held.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counters(&self) -> impl Iterator<Item = &Counter> {
        self.lanes.get().into_iter().flat_map(|lanes| lanes.counters()).chain([&self.few])
    }

    fn counted(&self) -> Usage {
        self.counters().map(Counter::counted).fold(Usage::default(), plus)
    }

    /// The record was read: what all engines together have sealed. Takes room away near a limit, and never gives any.
    pub(crate) fn learn(&self, seen: Usage, policy: AekPolicy) {
        let mut books = self.books();
        books.saw(seen, policy);
        let room = self.room(&books);
        for counter in self.counters() {
            let ceiling = counter.counted().blocks.saturating_add(room);
            counter.ceiling.fetch_min(ceiling, Ordering::Relaxed);
        }
    }

    /// What was sealed, all engines together, as far as it is known here.
    fn used(&self, books: &Books) -> Usage {
        let (counted, taken) = (self.counted(), books.notes().taken);
        let ahead = minus(taken, counted);
        plus(minus(books.seen, ahead), minus(counted, taken))
    }

    /// All that is known to be sealed.
    pub(crate) fn sealed(&self) -> Usage {
        self.used(&self.books())
    }

    /// Blocks that may be sealed until a limit of the suite.
    fn room(&self, books: &Books) -> u64 {
        let Limits { blocks, .. } = self.ledger.limits;
        let used = self.used(books);
        if self.ledger.limits.reached(used) { 0 } else { blocks - used.blocks }
    }

    /// True when what was counted is to be written down.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let mut books = self.books();
        let unwritten = minus(self.counted(), books.notes().taken);
        if unwritten == Usage::default() {
            if let Some(notes) = &mut books.notes {
                notes.waiting = None;
            }
            return false;
        }
        let since = *books.notes_mut().waiting.get_or_insert(now);
        let (policy, seen) = (books.notes().policy, books.seen);
        let step = |step: u64, max: u64, seen: u64| match max {
            0 => step,
            // Also when that reaches what the policy allows, so that it is known at once.
            max => step.min(max / STEPS_PER_POLICY).min(max.saturating_sub(seen)).max(1),
        };
        unwritten.blocks >= step(STEP_BLOCKS, policy.max_blocks, seen.blocks)
            || unwritten.bytes >= step(STEP_BYTES, policy.max_bytes, seen.bytes)
            || now.since(since) >= WRITE_EVERY
    }

    /// What is to be written down; [`Meter::wrote`] or [`Meter::give_back`] follows. Nobody else gets the same.
    pub(crate) fn take(&self) -> Usage {
        let mut books = self.books();
        let unwritten = minus(self.counted(), books.notes().taken);
        if unwritten != Usage::default() {
            let notes = books.notes_mut();
            notes.taken = plus(notes.taken, unwritten);
        }
        unwritten
    }

    /// So much is in the record, which says `seen` now, ahead of its being sealed.
    pub(crate) fn wrote_ahead(&self, used: Usage, seen: Usage, policy: AekPolicy) {
        let mut books = self.books();
        let notes = books.notes_mut();
        notes.taken = plus(notes.taken, used);
        drop(books);
        self.wrote(seen, policy);
    }

    /// What was written down ahead and was not sealed: it is nobody's any more, and may be taken off the record, once.
    pub(crate) fn take_ahead(&self) -> Usage {
        let mut books = self.books();
        let counted = self.counted();
        let ahead = minus(books.notes().taken, counted);
        if ahead != Usage::default() {
            let notes = books.notes_mut();
            notes.taken = minus(notes.taken, ahead);
        }
        ahead
    }

    /// What was taken is in the record, which says `seen` now.
    pub(crate) fn wrote(&self, seen: Usage, policy: AekPolicy) {
        let mut books = self.books();
        books.saw(seen, policy);
        books.notes_mut().waiting = None;
        let room = self.room(&books).min(UNWRITTEN_BLOCKS_MAX);
        for counter in self.counters() {
            counter.ceiling.store(counter.counted().blocks.saturating_add(room), Ordering::Relaxed);
        }
    }

    /// What was taken could not be written down.
    pub(crate) fn give_back(&self, taken: Usage) {
        let mut books = self.books();
        let notes = books.notes_mut();
        notes.taken = minus(notes.taken, taken);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if crate::secret::fork::in_child() {
            return; // what was counted is the parent's to write down
        }
        let left = self.take();
        if left != Usage::default() {
            self.ledger.leave(self.aek.clone(), left);
        }
    }
}

#[cfg(test)]
mod tests;
