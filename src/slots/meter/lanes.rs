//! Counters, and lanes of them for an account that is sealed much: one for each thread, so that no two cores fight over a line.

use crate::store::record::Usage;
use std::sync::{
    Mutex, TryLockError,
    atomic::{AtomicU64, Ordering},
};

/// Threads that have a lane of their own, for each processor; further ones share one.
const LANES_PER_PROCESSOR: usize = 2;
const LANES_MAX: usize = 128;

/// One pair of counters.
#[derive(Debug, Default)]
pub(super) struct Counter {
    pub(super) blocks: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// `blocks` does not pass it (by one for each thread that counts at the same instant).
    pub(super) ceiling: AtomicU64,
}

impl Counter {
    /// Counts, as the only thread that ever does here: no line is locked. False at the ceiling.
    #[inline]
    pub(super) fn count_alone(&self, bytes: u64) -> bool {
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
    pub(super) fn count_among_others(&self, bytes: u64) -> Option<u64> {
        if self.blocks.load(Ordering::Relaxed) >= self.ceiling.load(Ordering::Relaxed) {
            return None;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Some(self.blocks.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn counted(&self) -> Usage {
        Usage { blocks: self.blocks.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// Two cache lines, because the prefetcher of x86 fetches pairs.
#[repr(align(128))]
#[derive(Debug, Default)]
pub(super) struct Lane(pub(super) Counter);

/// A lane for each of the first threads, and one for all others.
#[derive(Debug)]
pub(super) struct Lanes {
    pub(super) own: Box<[Lane]>,
    pub(super) shared: Box<Lane>,
}

/// Lanes for the next account that turns out to be sealed much.
pub(super) static SPARE: Mutex<Option<Box<Lanes>>> = Mutex::new(None);

impl Lanes {
    fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let own = (processors * LANES_PER_PROCESSOR).min(LANES_MAX);
        Self { own: (0..own).map(|_| Lane::default()).collect(), shared: Box::default() }
    }

    pub(super) fn counters(&self) -> impl Iterator<Item = &Counter> {
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
