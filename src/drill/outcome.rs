//! What came of an operation, and runs of the same.

use crate::error::Error;

/// What came of one seal or open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    Denied,
    Lapsed,
    Unreachable,
    Cold,
    Corrupt,
    Other,
}

impl Outcome {
    pub(crate) const COUNT: usize = 7;
    /// Every outcome, in the order of its numbers.
    pub(crate) const ALL: [Self; Self::COUNT] =
        [Self::Ok, Self::Denied, Self::Lapsed, Self::Unreachable, Self::Cold, Self::Corrupt, Self::Other];

    pub(crate) const fn of(error: &Error) -> Self {
        match error {
            Error::Denied(_) => Self::Denied,
            Error::Lapsed(_) => Self::Lapsed,
            Error::Unreachable(_) => Self::Unreachable,
            Error::Cold { .. } => Self::Cold,
            Error::Corrupt(_) => Self::Corrupt,
            _ => Self::Other,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Denied => "denied",
            Self::Lapsed => "lapsed",
            Self::Unreachable => "unreachable",
            Self::Cold => "cold",
            Self::Corrupt => "corrupt",
            Self::Other => "other",
        }
    }

    pub(crate) fn from_number(number: usize) -> Option<Self> {
        Self::ALL.get(number).copied()
    }
}

/// A set of outcomes: those that are right at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Outcomes(u8);

impl Outcomes {
    pub(crate) const fn of(outcomes: &[Outcome]) -> Self {
        let (mut bits, mut index) = (0, 0);
        while index < outcomes.len() {
            #[allow(clippy::indexing_slicing)] // the loop's bound; a const fn has no iterators
            let outcome = outcomes[index];
            bits |= 1 << outcome as u8;
            index += 1;
        }
        Self(bits)
    }

    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn has(self, outcome: Outcome) -> bool {
        self.0 & (1 << outcome as u8) != 0
    }
}

/// Operations of one account with the same outcome, one after the other. Times are nanoseconds of CLOCK_BOOTTIME, which all
/// processes share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) outcome: Outcome,
    /// When the first of them began.
    pub(crate) from: u64,
    /// When the first of them ended.
    pub(crate) first: u64,
    /// When the last of them ended.
    pub(crate) to: u64,
    pub(crate) count: u64,
}

impl Run {
    pub(crate) const fn one(outcome: Outcome, from: u64, to: u64) -> Self {
        Self { outcome, from, first: to, to, count: 1 }
    }

    /// Goes on with `next`, if that has the same outcome.
    pub(crate) fn extend(&mut self, next: &Self) -> bool {
        if self.outcome != next.outcome {
            return false;
        }
        self.to = next.to;
        self.count += next.count;
        true
    }
}

/// Appends, as part of the last run where the outcome is the same.
pub(crate) fn append(runs: &mut Vec<Run>, run: Run) {
    if !runs.last_mut().is_some_and(|last| last.extend(&run)) {
        runs.push(run);
    }
}
