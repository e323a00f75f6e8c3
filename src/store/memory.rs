//! The store in memory: for tests, and for services that keep records elsewhere. Nothing outlives the process.

use super::{
    Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned, check_limit, check_put, conflict, exists, not_found,
};
use crate::{error::Result, name::KekVersion};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A key store in memory. Shared by reference or `Arc`.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the keys' bytes, so that listings have their order.
    values: BTreeMap<Vec<u8>, Value>,
    wrapped_by: BTreeSet<(KekVersion, Vec<u8>)>,
    /// Never repeats, so that a value that was deleted and made anew has another version.
    revision: u64,
}

#[derive(Debug)]
struct Value {
    key: Key,
    revision: u64,
    put: Put,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Value {
    fn version(&self) -> StoreVersion {
        StoreVersion(self.revision.to_be_bytes().to_vec())
    }
}

impl State {
    /// The value, when it has version `expected`.
    fn expect(&self, key: &Key, expected: &StoreVersion) -> Result<&Value> {
        match self.values.get(&key.to_bytes()) {
            None => Err(not_found(key)),
            Some(value) if value.version() != *expected => Err(conflict(key)),
            Some(value) => Ok(value),
        }
    }

    fn check_guards(&self, put: &Put) -> Result<()> {
        let check =
            |(key, expected): &(Key, StoreVersion)| self.expect(key, expected).map(drop).map_err(|_| conflict(key));
        put.guards.iter().try_for_each(check)
    }

    fn remove(&mut self, key: &Key) {
        let bytes = key.to_bytes();
        for kek in self.values.remove(&bytes).into_iter().flat_map(|value| value.put.wrapped_by) {
            self.wrapped_by.remove(&(kek, bytes.clone()));
        }
    }

    fn insert(&mut self, key: &Key, put: Put) -> StoreVersion {
        self.remove(key);
        let bytes = key.to_bytes();
        self.wrapped_by.extend(put.wrapped_by.iter().map(|kek| (kek.clone(), bytes.clone())));
        self.revision += 1;
        let value = Value { key: key.clone(), revision: self.revision, put };
        let version = value.version();
        self.values.insert(bytes, value);
        version
    }

    fn keys_behind(&self, prefix: Vec<u8>, after: Option<&Key>, limit: usize) -> Vec<Key> {
        let first = match after {
            Some(after) => Bound::Excluded(after.to_bytes().max(prefix.clone())),
            None => Bound::Included(prefix.clone()),
        };
        let range = self.values.range((first, Bound::Unbounded)).take_while(|(bytes, _)| bytes.starts_with(&prefix));
        range.take(limit).map(|(_, value)| value.key.clone()).collect()
    }

    fn keys_wrapped_by(&self, kek: &KekVersion, after: Option<&Key>, limit: usize) -> Vec<Key> {
        let after = after.map(Key::to_bytes).unwrap_or_default(); // no key is empty
        let range = self.wrapped_by.range((Bound::Excluded((kek.clone(), after)), Bound::Unbounded));
        let bytes = range.take_while(|(indexed, _)| indexed == kek).map(|(_, bytes)| bytes);
        bytes.filter_map(|bytes| self.values.get(bytes)).take(limit).map(|value| value.key.clone()).collect()
    }
}

#[async_trait]
impl KeyStore for MemoryStore {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        let state = self.state();
        let value = state.values.get(&key.to_bytes());
        Ok(value.map(|value| Versioned { value: value.put.value.clone(), version: value.version() }))
    }

    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        check_put(key, &put)?;
        let mut state = self.state();
        if state.values.contains_key(&key.to_bytes()) {
            return Err(exists(key));
        }
        state.check_guards(&put)?;
        Ok(state.insert(key, put))
    }

    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
        check_put(key, &put)?;
        let mut state = self.state();
        state.expect(key, expected)?;
        state.check_guards(&put)?;
        Ok(state.insert(key, put))
    }

    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
        let mut state = self.state();
        state.expect(key, expected)?;
        state.remove(key);
        Ok(())
    }

    /// Nothing of a value outlives it here.
    async fn shred(&self, _: Vec<Vec<u8>>) -> Result<()> {
        Ok(())
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        let limit = check_limit(limit)?;
        let state = self.state();
        // One more than asked for tells whether there is a next page.
        let keys = match filter {
            Filter::WrappedBy(kek) => state.keys_wrapped_by(kek, after, limit + 1),
            filter => state.keys_behind(filter.prefix(), after, limit + 1),
        };
        Ok(Page::of(keys, limit))
    }
}
