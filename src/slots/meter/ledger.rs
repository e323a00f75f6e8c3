//! What is common to the meters of an engine: the limits of the suite, and counts whose meter is gone before they were written down.

use crate::{
    block::{AEK_BLOCKS_MAX, AEK_BYTES_MAX},
    name::AccountId,
    store::record::Usage,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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

    pub(super) fn reached(self, used: Usage) -> bool {
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
    pub(super) limits: Limits,
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

/// The sum of two counts.
pub(crate) fn plus(one: Usage, other: Usage) -> Usage {
    Usage { blocks: one.blocks.saturating_add(other.blocks), bytes: one.bytes.saturating_add(other.bytes) }
}

/// What is left of one count without the other.
pub(crate) fn minus(from: Usage, what: Usage) -> Usage {
    Usage { blocks: from.blocks.saturating_sub(what.blocks), bytes: from.bytes.saturating_sub(what.bytes) }
}
