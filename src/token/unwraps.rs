//! Unwraps as they are counted, of each token: how they ended, and how long they took.

use super::{TokenError, Verdict};
use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Up to how long the unwraps of a class took: from a token in the same memory to the longest deadline that there is. One class more has
/// what took longer.
pub const UNWRAP_CLASSES: [Duration; 17] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(60),
];
const CLASSES: usize = UNWRAP_CLASSES.len() + 1;

/// How an unwrap ended, in a word.
const RESULTS: [&str; 8] =
    ["granted", "denied", "replaced", "unreachable", "busy", "bad_record", "misconfigured", "fatal"];

const fn result(outcome: Result<(), Verdict>) -> usize {
    match outcome {
        Ok(()) => 0,
        Err(Verdict::Denied) => 1,
        Err(Verdict::Replaced) => 2,
        Err(Verdict::Unreachable) => 3,
        Err(Verdict::Busy) => 4,
        Err(Verdict::BadRecord) => 5,
        Err(Verdict::Misconfigured) => 6,
        Err(Verdict::Fatal) => 7,
    }
}

/// The unwraps of a token so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Unwraps {
    /// Each way in which they can end, of proofs and of all others.
    pub ended: Vec<UnwrapsEnded>,
    /// What each class of [`UNWRAP_CLASSES`] has, and one more; without those that never came to the token (`busy`).
    pub took: Vec<UnwrapsTook>,
}

/// Unwraps that ended alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnwrapsEnded {
    /// They were proofs of the watch; else somebody was to use the key.
    pub proofs: bool,
    /// `granted`, or as the [`Verdict`] is called. That the token gave other bytes than the AEK is `granted` here.
    pub result: &'static str,
    /// How many.
    pub count: u64,
}

/// Unwraps of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnwrapsTook {
    /// None took longer; `None` for the last class, which has no bound.
    pub up_to: Option<Duration>,
    /// How many, without those of the classes before.
    pub count: u64,
    /// How long they took together.
    pub total: Duration,
}

/// Counts them.
#[derive(Debug, Default)]
pub(crate) struct UnwrapCounts {
    proofs: [AtomicU64; RESULTS.len()],
    others: [AtomicU64; RESULTS.len()],
    took: [Class; CLASSES],
}

#[derive(Debug, Default)]
struct Class {
    count: AtomicU64,
    total_ns: AtomicU64,
}

impl UnwrapCounts {
    /// One has ended.
    pub(super) fn count<T>(&self, is_proof: bool, outcome: &Result<T, TokenError>, took: Duration) {
        let outcome = outcome.as_ref().map(|_| ()).map_err(|error| error.verdict);
        let of = if is_proof { &self.proofs } else { &self.others };
        if let Some(count) = of.get(result(outcome)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if outcome == Err(Verdict::Busy) {
            return;
        }
        let class = UNWRAP_CLASSES.partition_point(|up_to| *up_to < took);
        if let Some(class) = self.took.get(class) {
            class.count.fetch_add(1, Ordering::Relaxed);
            class.total_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// What was counted so far.
    pub(crate) fn so_far(&self) -> Unwraps {
        let ended = |proofs: bool, counts: &[AtomicU64; RESULTS.len()]| -> [UnwrapsEnded; RESULTS.len()] {
            let mut results = RESULTS.iter().zip(counts);
            array::from_fn(|_| {
                let (result, count) =
                    results.next().map_or(("", 0), |(name, count)| (*name, count.load(Ordering::Relaxed)));
                UnwrapsEnded { proofs, result, count }
            })
        };
        let bounds = UNWRAP_CLASSES.iter().copied().map(Some).chain([None]);
        let took = bounds.zip(&self.took).map(|(up_to, class)| UnwrapsTook {
            up_to,
            count: class.count.load(Ordering::Relaxed),
            total: Duration::from_nanos(class.total_ns.load(Ordering::Relaxed)),
        });
        let ended = ended(true, &self.proofs).into_iter().chain(ended(false, &self.others)).collect();
        Unwraps { ended, took: took.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unwrap_is_counted_once_by_how_it_ended_and_in_the_first_class_that_it_did_not_outlast() {
        let counts = UnwrapCounts::default();
        let failed = |verdict| Err::<(), _>(TokenError::new(verdict, "unwrap", "so", "none"));
        counts.count(true, &Ok(()), Duration::from_micros(100));
        counts.count(false, &Ok(()), Duration::from_micros(101));
        counts.count(false, &failed(Verdict::Unreachable), Duration::from_secs(61));
        counts.count(false, &failed(Verdict::Busy), Duration::from_secs(40));
        let so_far = counts.so_far();
        let ended = |proofs, result| {
            let mut of = so_far.ended.iter().filter(|ended| ended.proofs == proofs && ended.result == result);
            of.next().unwrap().count
        };
        assert_eq!((ended(true, "granted"), ended(false, "granted"), ended(true, "denied")), (1, 1, 0));
        assert_eq!((ended(false, "unreachable"), ended(false, "busy")), (1, 1));
        assert_eq!(so_far.ended.iter().map(|ended| ended.count).sum::<u64>(), 4);
        let took: Vec<_> = so_far.took.iter().map(|class| class.count).collect();
        assert_eq!((took.len(), took[0], took[1], took[CLASSES - 1]), (18, 1, 1, 1));
        assert_eq!(took.iter().sum::<u64>(), 3, "what never came to the token took none of its time");
        assert_eq!(so_far.took[1].total, Duration::from_micros(101));
    }

    #[test]
    fn classes_rise() {
        assert!(UNWRAP_CLASSES.is_sorted_by(|a, b| a < b));
    }
}
