//! How much is sealed under an AEK version: counted where it is sealed, on lines that no two cores fight over.
//!
//! An account that is sealed little has one pair of counters. One that is sealed much gets a lane for each thread, so that
//! cores which share the account do not wait for each other; the lanes are made ahead, because the data path allocates
//! nothing. `keyring/usage.rs` writes down what was counted, in the account's record, after the fact. So that what a crash
//! loses of it is bounded, a counter has a ceiling, [`UNWRITTEN_BLOCKS_MAX`] above what was last written down: behind it
//! sealing is refused. The limits of the suite are ceilings as well.

use crate::{
    block::{AEK_BLOCKS_MAX, AEK_BYTES_MAX},
    clock::Instant,
    error::{Error, Result},
    name::AccountId,
    store::record::{AekPolicy, Usage},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

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
/// Threads that have a lane of their own, for each processor; further ones share one.
const LANES_PER_PROCESSOR: usize = 2;
const LANES_MAX: usize = 128;
/// AEK versions whose last counts wait to be written after nobody has them open any more. Further ones are lost, as in a crash.
const LEFT_MAX: usize = 100_000;

/// How much may be sealed under one AEK version, whatever its policy says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
}

impl Limits {
    /// Those of the suites.
    pub(crate) const SUITE: Self = Self { blocks: AEK_BLOCKS_MAX, bytes: AEK_BYTES_MAX };

    fn reached(self, used: Usage) -> bool {
        used.blocks >= self.blocks || used.bytes >= self.bytes
    }
}

/// Which AEK is counted. One of the same account and version that was made at another time is another one: the account was
/// purged, and made anew.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Counted {
    pub(crate) account: AccountId,
    pub(crate) aek_version: u32,
    pub(crate) created_unix: u64,
}

/// What is common to the meters of an engine.
#[derive(Debug)]
pub(crate) struct Ledger {
    limits: Limits,
    /// In an order of its own, so that a simulation sees the same again.
    left: Mutex<BTreeMap<Counted, Usage>>,
}

impl Ledger {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, left: Mutex::default() })
    }

    /// What meters that are gone had counted and not written down. Each is back where it was when it is dropped.
    pub(crate) fn take_left(self: &Arc<Self>) -> Vec<Left> {
        let left = std::mem::take(&mut *self.left());
        left.into_iter().map(|(aek, used)| Left { ledger: self.clone(), aek, used }).collect()
    }

    /// Keeps a count that nobody else will write down.
    pub(crate) fn leave(&self, aek: Counted, used: Usage) {
        let mut left = self.left();
        if left.len() < LEFT_MAX || left.contains_key(&aek) {
            let place = left.entry(aek).or_default();
            *place = plus(*place, used);
        }
    }

    fn left(&self) -> MutexGuard<'_, BTreeMap<Counted, Usage>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A count of a meter that is gone, on its way to the store; goes back when it does not arrive, or nobody waits for it any more.
#[derive(Debug)]
pub(crate) struct Left {
    ledger: Arc<Ledger>,
    pub(crate) aek: Counted,
    pub(crate) used: Usage,
}

impl Left {
    pub(crate) fn arrived(mut self) {
        self.used = Usage::default();
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        if self.used != Usage::default() {
            self.ledger.leave(self.aek.clone(), self.used);
        }
    }
}

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

/// One pair of counters.
#[derive(Debug, Default)]
struct Counter {
    blocks: AtomicU64,
    bytes: AtomicU64,
    /// `blocks` does not pass it (by one for each thread that counts at the same instant).
    ceiling: AtomicU64,
}

impl Counter {
    /// Counts, as the only thread that ever does here: no line is locked. False at the ceiling.
    #[inline]
    fn count_alone(&self, bytes: u64) -> bool {
        let blocks = self.blocks.load(Ordering::Relaxed);
        if blocks >= self.ceiling.load(Ordering::Relaxed) {
            return false;
        }
        self.bytes.store(self.bytes.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
        self.blocks.store(blocks + 1, Ordering::Relaxed);
        true
    }

    /// As [`Counter::count_alone`], beside other threads; gives the count before.
    #[inline]
    fn count_among_others(&self, bytes: u64) -> Option<u64> {
        if self.blocks.load(Ordering::Relaxed) >= self.ceiling.load(Ordering::Relaxed) {
            return None;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Some(self.blocks.fetch_add(1, Ordering::Relaxed))
    }

    fn counted(&self) -> Usage {
        Usage { blocks: self.blocks.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// Two cache lines, because the prefetcher of x86 fetches pairs.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Lane(Counter);

/// A lane for each of the first threads, and one for all others.
#[derive(Debug)]
struct Lanes {
    own: Box<[Lane]>,
    shared: Box<Lane>,
}

/// Lanes for the next account that turns out to be sealed much.
static SPARE: Mutex<Option<Box<Lanes>>> = Mutex::new(None);

impl Lanes {
    fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let own = (processors * LANES_PER_PROCESSOR).min(LANES_MAX);
        Self { own: (0..own).map(|_| Lane::default()).collect(), shared: Box::default() }
    }

    fn counters(&self) -> impl Iterator<Item = &Counter> {
        self.own.iter().chain([&*self.shared]).map(|lane| &lane.0)
    }
}

/// Sees to it that there are spare lanes. Not called on the data path.
pub(crate) fn provide_lanes() {
    match SPARE.try_lock() {
        Ok(mut spare) if spare.is_none() => *spare = Some(Box::new(Lanes::new())),
        Ok(_) | Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => {}
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

/// The sum of two counts.
pub(crate) fn plus(one: Usage, other: Usage) -> Usage {
    Usage { blocks: one.blocks.saturating_add(other.blocks), bytes: one.bytes.saturating_add(other.bytes) }
}

/// What is left of one count without the other.
pub(crate) fn minus(from: Usage, what: Usage) -> Usage {
    Usage { blocks: from.blocks.saturating_sub(what.blocks), bytes: from.bytes.saturating_sub(what.bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: AekPolicy = AekPolicy { max_age_secs: 0, max_blocks: 0, max_bytes: 0 };

    fn at(secs: u64) -> Instant {
        Instant::from_nanos(secs * 1_000_000_000)
    }

    fn used(blocks: u64, bytes: u64) -> Usage {
        Usage { blocks, bytes }
    }

    fn aek() -> Counted {
        Counted { account: AccountId::new("a").unwrap(), aek_version: 1, created_unix: 7 }
    }

    fn meter(limits: Limits, seen: Usage, policy: AekPolicy) -> (Arc<Ledger>, Arc<Meter>) {
        let ledger = Ledger::new(limits);
        let meter = Meter::new(&ledger, aek(), seen, policy);
        (ledger, Arc::new(meter))
    }

    /// Counts until it is refused.
    fn fill(meter: &Meter, bytes: usize) -> u64 {
        (0..).take_while(|_| meter.count(0, bytes, || at(1)).is_ok()).count() as u64
    }

    #[test]
    fn no_block_is_sealed_behind_the_limit_of_the_suite_and_the_error_says_what_to_do() {
        let limits = Limits { blocks: 100, bytes: 1000 };
        let (_, meter) = meter(limits, used(40, 0), NONE);
        assert_eq!(fill(&meter, 1), 60);
        let error = meter.count(0, 1, || at(1)).unwrap_err();
        assert!(matches!(error, Error::Exhausted(_)) && error.to_string().contains("account rotate a"), "{error}");
        let taken = meter.take();
        assert_eq!(taken, used(60, 60));
        meter.wrote(used(100, 60), NONE);
        assert_eq!(fill(&meter, 1), 0, "writing it down gives no room");
    }

    #[test]
    fn bytes_behind_the_limit_stop_sealing_once_they_are_known() {
        let (_, meter) = meter(Limits { blocks: 100, bytes: 1000 }, used(0, 900), NONE);
        meter.count(0, 100, || at(1)).unwrap();
        meter.take();
        meter.wrote(used(1, 1000), NONE);
        assert!(matches!(meter.count(0, 1, || at(1)), Err(Error::Exhausted(_))));
    }

    #[test]
    fn what_other_engines_sealed_counts_as_soon_as_the_record_is_read() {
        let (_, meter) = meter(Limits { blocks: 100, bytes: 1000 }, used(0, 0), NONE);
        meter.count(0, 1, || at(1)).unwrap();
        meter.learn(used(97, 0), NONE);
        assert_eq!(fill(&meter, 1), 2);
        meter.learn(used(0, 0), NONE);
        assert_eq!(fill(&meter, 1), 0, "an older record gives nothing back");
    }

    #[test]
    fn sealing_stops_when_too_much_could_not_be_written_down_and_goes_on_when_it_is() {
        let (_, meter) = meter(Limits::SUITE, used(0, 0), NONE);
        meter.few.blocks.store(UNWRITTEN_BLOCKS_MAX - 2, Ordering::Relaxed);
        assert_eq!(fill(&meter, 1), 2);
        assert!(matches!(meter.count(0, 1, || at(1)), Err(Error::Store(_))));
        let taken = meter.take();
        meter.give_back(taken);
        assert!(matches!(meter.count(0, 1, || at(1)), Err(Error::Store(_))), "the store failed");
        let taken = meter.take();
        assert_eq!(taken, used(UNWRITTEN_BLOCKS_MAX, 2));
        meter.wrote(taken, NONE);
        meter.count(0, 1, || at(1)).unwrap();
    }

    #[test]
    fn what_is_counted_ahead_is_sealed_up_to_the_limit_and_never_counted_again() {
        let (_, meter) = meter(Limits { blocks: 100, bytes: 1000 }, used(90, 0), NONE);
        meter.wrote_ahead(used(10, 100), used(100, 100), NONE);
        assert_eq!(fill(&meter, 1), 10, "the limit leaves room for what was counted for it");
        assert_eq!((meter.take(), meter.take_ahead()), (used(0, 0), used(0, 90)));
        let (_, meter) = super::tests::meter(Limits::SUITE, used(0, 0), NONE);
        meter.wrote_ahead(used(4, 400), used(4, 400), NONE);
        (0..6).for_each(|_| meter.count(0, 100, || at(1)).unwrap());
        assert_eq!((meter.take(), meter.take()), (used(2, 200), used(0, 0)));
        meter.wrote_ahead(used(4, 400), used(10, 1000), NONE);
        meter.count(0, 100, || at(1)).unwrap();
        assert_eq!((meter.take(), meter.take_ahead(), meter.take_ahead()), (used(0, 0), used(3, 300), used(0, 0)));
    }

    #[test]
    fn counts_are_due_by_number_by_policy_and_after_an_hour() {
        let (_, meter) = meter(Limits::SUITE, used(0, 0), NONE);
        assert!(!meter.is_due(at(0)));
        meter.count(0, 7, || at(1)).unwrap();
        assert!(!meter.is_due(at(10)) && !meter.is_due(at(3609)) && meter.is_due(at(3610)));
        meter.learn(used(0, 0), AekPolicy { max_blocks: 160, ..NONE });
        assert!(!meter.is_due(at(11)));
        fill_to(&meter, 10);
        assert!(meter.is_due(at(11)), "a sixteenth of what the policy allows");
        meter.learn(used(0, 0), NONE);
        assert!(!meter.is_due(at(11)));
        fill_to(&meter, STEP_BLOCKS);
        assert!(meter.is_due(at(11)));
        let taken = meter.take();
        meter.wrote(taken, AekPolicy { max_bytes: taken.bytes + 7, ..NONE });
        assert!(!meter.is_due(at(9999)), "nothing waits");
        meter.count(0, 7, || at(1)).unwrap();
        assert!(meter.is_due(at(12)), "the policy's limit is reached");
    }

    #[test]
    fn a_policy_that_is_read_before_anything_is_counted_says_when_counts_are_due() {
        let (_, meter) = meter(Limits::SUITE, used(0, 0), AekPolicy { max_blocks: 160, ..NONE });
        fill_to(&meter, 9);
        assert!(!meter.is_due(at(1)));
        fill_to(&meter, 10);
        assert!(meter.is_due(at(1)));
    }

    fn fill_to(meter: &Meter, blocks: u64) {
        while meter.counted().blocks < blocks {
            meter.count(0, 7, || at(1)).unwrap();
        }
    }

    #[test]
    fn no_count_is_lost_or_doubled_when_threads_share_an_account_and_others_write_it_down_meanwhile() {
        const EACH: u64 = 100_000;
        let (_, meter) = meter(Limits::SUITE, used(0, 0), NONE);
        let threads: Vec<_> = (0..6)
            .map(|_| {
                let meter = meter.clone();
                std::thread::spawn(move || {
                    for _ in 0..EACH {
                        let operation = crate::secret::in_flight::Operation::enter();
                        meter.count(operation.thread(), 3, || at(1)).unwrap();
                        provide_lanes();
                    }
                })
            })
            .collect();
        let mut written = used(0, 0);
        while threads.iter().any(|thread| !thread.is_finished()) {
            written = plus(written, meter.take());
            meter.wrote(written, NONE);
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(meter.lanes.get().is_some(), "they shared no lanes");
        assert_eq!(plus(written, meter.take()), used(6 * EACH, 18 * EACH));
    }

    #[test]
    fn an_account_gets_lanes_only_when_it_is_sealed_much_and_they_keep_its_ceiling() {
        let (_, slow) = meter(Limits::SUITE, used(0, 0), NONE);
        for secs in 0..3 * HOT_BLOCKS {
            slow.count(0, 1, || at(secs)).unwrap();
        }
        assert!(slow.lanes.get().is_none());
        let (_, hot) = meter(Limits { blocks: 3 * HOT_BLOCKS, bytes: u64::MAX }, used(0, 0), NONE);
        while hot.lanes.get().is_none() {
            provide_lanes();
            hot.count(0, 1, || at(1)).unwrap();
        }
        assert_eq!(fill(&hot, 1) + hot.few.counted().blocks, 3 * HOT_BLOCKS);
    }

    #[test]
    fn an_account_is_sealed_much_at_so_many_blocks_within_so_many_milliseconds() {
        // Spare lanes are had in a later round where somebody else takes or makes them in this one.
        for (apart_ms, rounds, much) in [(HOT_WITHIN_MS, 5000, true), (HOT_WITHIN_MS + 1, 10, false)] {
            let (_, meter) = meter(Limits::SUITE, used(0, 0), NONE);
            for round in 0..rounds {
                provide_lanes();
                let now = at(1).plus(round * Duration::from_millis(apart_ms.into()));
                (0..HOT_BLOCKS).for_each(|_| meter.count(0, 1, || now).unwrap());
                if meter.lanes.get().is_some() {
                    break;
                }
            }
            assert_eq!(meter.lanes.get().is_some(), much, "{apart_ms} ms");
        }
    }

    #[test]
    fn what_was_counted_when_the_last_handle_went_is_left_to_be_written_down() {
        let (ledger, meter) = meter(Limits::SUITE, used(5, 5), NONE);
        meter.count(0, 9, || at(1)).unwrap();
        drop(meter);
        let on_its_way = ledger.take_left();
        assert!(on_its_way.len() == 1 && ledger.take_left().is_empty());
        assert_eq!((on_its_way[0].aek.clone(), on_its_way[0].used), (aek(), used(1, 9)));
        drop(on_its_way);
        let back = ledger.take_left();
        assert_eq!(back.iter().map(|left| left.used).collect::<Vec<_>>(), [used(1, 9)], "it did not arrive");
        drop(back);
        ledger.take_left().into_iter().for_each(Left::arrived);
        assert!(ledger.take_left().is_empty());
    }
}
