//! What was done with single accounts, counted where somebody asked for it: of so many accounts each by itself, of all others together.

use crate::{
    error::{Error, Result},
    name::AccountId,
};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// What was counted of an account since the engine was begun.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AccountCounts {
    /// Which; `None` for all that are not counted by themselves.
    pub account: Option<AccountId>,
    /// Handles that were opened.
    pub opens: u64,
    /// Unwraps of its AEKs in a token, for use.
    pub unwraps: u64,
    /// Handles that were not opened, because its KEK was denied or had lapsed.
    pub denied: u64,
    /// Opens, seals and the like that were refused because they are not granted.
    pub forbidden: u64,
}

#[derive(Debug, Default)]
struct Counted {
    each: HashMap<AccountId, AccountCounts>,
    others: AccountCounts,
}

#[derive(Debug)]
pub(crate) struct ByAccount {
    /// 0 where nobody asked for it.
    most: usize,
    counted: Mutex<Counted>,
}

impl ByAccount {
    pub(crate) fn new(most: u32) -> Self {
        Self { most: most as usize, counted: Mutex::default() }
    }

    fn count(&self, id: &AccountId, add: impl FnOnce(&mut AccountCounts)) {
        if self.most == 0 {
            return;
        }
        // Whole after every step.
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let Counted { each, others } = &mut *counted;
        if each.len() < self.most && !each.contains_key(id) {
            each.insert(id.clone(), AccountCounts { account: Some(id.clone()), ..AccountCounts::default() });
        }
        add(each.get_mut(id).unwrap_or(others));
    }

    /// A handle was opened, or was not.
    pub(crate) fn opened<T>(&self, id: &AccountId, outcome: &Result<T>) {
        match outcome {
            Ok(_) => self.count(id, |counts| counts.opens += 1),
            Err(Error::Denied(_) | Error::Lapsed(_)) => self.count(id, |counts| counts.denied += 1),
            Err(Error::Forbidden(_)) => self.forbidden(id),
            Err(_) => {}
        }
    }

    pub(crate) fn unwrapped(&self, id: &AccountId) {
        self.count(id, |counts| counts.unwraps += 1);
    }

    pub(crate) fn forbidden(&self, id: &AccountId) {
        self.count(id, |counts| counts.forbidden += 1);
    }

    /// Each account by its id, and the others behind them. Nothing where nobody asked for it.
    pub(crate) fn so_far(&self) -> Vec<AccountCounts> {
        if self.most == 0 {
            return Vec::new();
        }
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = counted.each.values().cloned().collect();
        all.sort_by(|one, other| one.account.cmp(&other.account));
        all.push(counted.others.clone());
        all
    }
}
