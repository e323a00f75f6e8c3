//! What handles do to blocks, counted for the trail: on the data path, by two additions, and taken from here once a minute.

use crate::{
    name::AccountId,
    telemetry::trail::{Sums, Who},
};
use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicU64, Ordering},
};

/// Threads that count at once mostly count in different lanes. More of them would cost more memory, for each account that is open.
const LANES: usize = 4;

/// A cache line, so that threads of different lanes do not fight over one.
#[repr(align(64))]
#[derive(Debug, Default)]
struct Lane {
    sealed: AtomicU64,
    sealed_bytes: AtomicU64,
    opened: AtomicU64,
    opened_bytes: AtomicU64,
}

/// Of the handles of an account that were opened for one who asks.
#[derive(Debug)]
pub(crate) struct Tally {
    lanes: [Lane; LANES],
    forbidden: AtomicU64,
    pub(crate) account: AccountId,
    pub(crate) who: Who,
}

impl Tally {
    #[inline(always)]
    fn lane(&self, thread: usize) -> &Lane {
        let [lane, ..] = &self.lanes;
        self.lanes.get(thread % LANES).unwrap_or(lane)
    }

    /// A block was sealed, on the thread of this number.
    #[inline(always)]
    pub(crate) fn sealed(&self, thread: usize, bytes: usize) {
        let lane = self.lane(thread);
        lane.sealed.fetch_add(1, Ordering::Relaxed);
        lane.sealed_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A block was opened, on the thread of this number.
    #[inline(always)]
    pub(crate) fn opened(&self, thread: usize, bytes: usize) {
        let lane = self.lane(thread);
        lane.opened.fetch_add(1, Ordering::Relaxed);
        lane.opened_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// One was forbidden. True for the first since the sums were taken.
    #[cold]
    pub(crate) fn forbidden(&self) -> bool {
        self.forbidden.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// What was counted since this was last asked; `None` where that is nothing.
    pub(crate) fn take(&self) -> Option<Sums> {
        let taken = |counter: &AtomicU64| match counter.load(Ordering::Relaxed) {
            0 => 0,
            _ => counter.swap(0, Ordering::Relaxed),
        };
        let mut sums = Sums { forbidden: taken(&self.forbidden), ..Sums::default() };
        for lane in &self.lanes {
            sums.sealed += taken(&lane.sealed);
            sums.sealed_bytes += taken(&lane.sealed_bytes);
            sums.opened += taken(&lane.opened);
            sums.opened_bytes += taken(&lane.opened_bytes);
        }
        (sums != Sums::default()).then_some(sums)
    }
}

/// The tallies of one account: one for each of those who have a handle of it.
#[derive(Debug, Default)]
pub(crate) struct Tallies(Mutex<Vec<Weak<Tally>>>);

impl Tallies {
    /// That of one who asks; the second is true for one that was made now.
    pub(crate) fn of(&self, account: &AccountId, who: &Who) -> (Arc<Tally>, bool) {
        // Whole after every step.
        let mut tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = tallies.iter().filter_map(Weak::upgrade);
        if let Some(known) = known.find(|tally| tally.who == *who) {
            return (known, false);
        }
        drop(known);
        tallies.retain(|tally| tally.strong_count() > 0);
        let (lanes, forbidden) = Default::default();
        let tally = Arc::new(Tally { lanes, forbidden, account: account.clone(), who: who.clone() });
        tallies.push(Arc::downgrade(&tally));
        (tally, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::trail::Correlation;

    #[test]
    fn what_is_taken_is_what_was_counted_on_all_threads_and_is_taken_once() {
        let (account, who) = (AccountId::new("a").unwrap(), Who::default());
        let tallies = Tallies::default();
        let (tally, is_new) = tallies.of(&account, &who);
        assert!(is_new && !tallies.of(&account, &who).1);
        let other = Who { correlation: Some(Correlation::new([2; 16])), ..Who::default() };
        assert!(tallies.of(&account, &other).1, "a request of its own is counted by itself");
        assert_eq!(tally.take(), None);
        std::thread::scope(|scope| {
            for thread in 0..9 {
                let tally = &tally;
                scope.spawn(move || {
                    for _ in 0..1000 {
                        tally.sealed(thread, 3);
                        tally.opened(thread, 2);
                    }
                });
            }
        });
        assert!(tally.forbidden() && !tally.forbidden());
        let sums = Sums { sealed: 9000, sealed_bytes: 27_000, opened: 9000, opened_bytes: 18_000, forbidden: 2 };
        assert_eq!(tally.take(), Some(sums));
        assert_eq!(tally.take(), None);
        assert!(tally.forbidden(), "the first of the next minute");
    }
}
