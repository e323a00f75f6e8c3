//! Re-wraps as they are counted: how far each has got that is under way.

use crate::name::KekName;
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// By the number of the re-wrap: how many accounts were found, and are done.
type ByNumber = BTreeMap<u64, (KekName, (u64, u64))>;

#[derive(Debug, Default)]
pub(crate) struct Rewraps {
    under_way: Mutex<ByNumber>,
    begun: AtomicU64,
    moved: AtomicU64,
}

impl Rewraps {
    fn map(&self) -> MutexGuard<'_, ByNumber> {
        // Whole after every step.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One begins. It is under way until what this gives is dropped.
    pub(crate) fn begin(&self, kek: &KekName) -> UnderWay<'_> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        self.map().insert(number, (kek.clone(), (0, 0)));
        UnderWay { rewraps: self, number }
    }

    /// An account was moved.
    pub(crate) fn one_moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// How many accounts were moved.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Each KEK that is being re-wrapped: how many accounts were found, and are done.
    pub(crate) fn under_way(&self) -> BTreeMap<KekName, (u64, u64)> {
        let mut of = BTreeMap::<KekName, (u64, u64)>::new();
        for (kek, (accounts, done)) in self.map().values() {
            let sum = of.entry(kek.clone()).or_default();
            *sum = (sum.0.saturating_add(*accounts), sum.1.saturating_add(*done));
        }
        of
    }
}

pub(crate) struct UnderWay<'a> {
    rewraps: &'a Rewraps,
    number: u64,
}

impl UnderWay<'_> {
    pub(crate) fn at(&self, accounts: u64, done: u64) {
        self.rewraps.map().entry(self.number).and_modify(|(_, at)| *at = (accounts, done));
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.rewraps.map().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rewrap_is_under_way_until_it_ends_however_it_does() {
        let (rewraps, kek) = (Rewraps::default(), KekName::new("kek").unwrap());
        let (first, second) = (rewraps.begin(&kek), rewraps.begin(&kek));
        first.at(10, 3);
        second.at(5, 5);
        assert_eq!(rewraps.under_way()[&kek], (15, 8));
        drop(second);
        assert_eq!(rewraps.under_way()[&kek], (10, 3));
        drop(first);
        assert!(rewraps.under_way().is_empty());
    }
}
