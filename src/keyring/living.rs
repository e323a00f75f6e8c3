//! Every account with a handle or an index entry, so that one account never has two sets of slots.

use crate::{name::AccountId, slots::account_keys::AccountKeys};
use hashbrown::HashTable;
use std::{
    hash::{BuildHasher, RandomState},
    ptr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

/// Tables, each behind a lock of its own: threads that look accounts up seldom meet, and a table that grows holds up few.
const SHARDS: usize = 64;
/// The bits of a hash that choose the table; others find the place in it.
const SHARD_SHIFT: u32 = 32;
/// Room that an empty table is given.
const ROOM_MIN: usize = 8;

#[derive(Debug, Default)]
struct Table {
    keys: HashTable<Weak<AccountKeys>>,
    /// How often somebody looked an account up.
    looked_up: u64,
}

/// Found by the ids in the keys themselves: an entry is one pointer.
#[derive(Debug)]
pub(super) struct Living {
    tables: [Mutex<Table>; SHARDS],
    /// Seeded at random, so that nobody who chooses ids chooses where they meet.
    hasher: RandomState,
}

impl Default for Living {
    fn default() -> Self {
        Self { tables: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }
}

impl Living {
    fn table(&self, hash: u64) -> MutexGuard<'_, Table> {
        let [first, ..] = &self.tables;
        let table = self.tables.get((hash >> SHARD_SHIFT) as usize % SHARDS).unwrap_or(first);
        table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Living::get`], for somebody who asks for the account: it is counted, on a line that is this processor's anyway.
    pub(super) fn look_up(&self, id: &AccountId) -> Option<Arc<AccountKeys>> {
        let hash = self.hasher.hash_one(id);
        let mut table = self.table(hash);
        table.looked_up = table.looked_up.wrapping_add(1);
        find(&table.keys, hash, id)
    }

    /// How often accounts were looked up so far.
    pub(super) fn looked_up(&self) -> u64 {
        let of = |table: &Mutex<Table>| table.lock().unwrap_or_else(PoisonError::into_inner).looked_up;
        self.tables.iter().map(of).fold(0, u64::wrapping_add)
    }

    /// How many accounts there are.
    pub(super) fn count(&self) -> u64 {
        let of = |table: &Mutex<Table>| {
            let table = table.lock().unwrap_or_else(PoisonError::into_inner);
            table.keys.iter().filter(|keys| keys.strong_count() > 0).count() as u64
        };
        self.tables.iter().map(of).sum()
    }

    /// The keys of an account, if anybody has them.
    pub(super) fn get(&self, id: &AccountId) -> Option<Arc<AccountKeys>> {
        let hash = self.hasher.hash_one(id);
        let table = self.table(hash);
        find(&table.keys, hash, id)
    }

    /// Makes keys the living ones of their account, unless others were faster.
    pub(super) fn adopt(&self, keys: Arc<AccountKeys>) -> Arc<AccountKeys> {
        let hash = self.hasher.hash_one(&keys.id);
        let mut table = self.table(hash);
        let table = &mut table.keys;
        if let Some(alive) = find(table, hash, &keys.id) {
            return alive;
        }
        // Where one that died meanwhile is put does not matter.
        let hash_of = |keys: &Weak<AccountKeys>| keys.upgrade().map_or(0, |keys| self.hasher.hash_one(&keys.id));
        if table.len() == table.capacity() {
            table.retain(|keys| keys.strong_count() > 0);
            let alive = table.len();
            table.reserve(alive.max(ROOM_MIN), hash_of); // as `Leash::enlist`
        }
        table.insert_unique(hash, Arc::downgrade(&keys), hash_of);
        keys
    }

    /// Forgets these keys of an account: the next to open it gets others. Those that somebody else was given since stay.
    pub(super) fn remove(&self, keys: &Arc<AccountKeys>) {
        let hash = self.hasher.hash_one(&keys.id);
        let are_these = |alive: &Weak<AccountKeys>| ptr::eq(alive.as_ptr(), Arc::as_ptr(keys));
        if let Ok(found) = self.table(hash).keys.find_entry(hash, are_these) {
            found.remove();
        }
    }
}

fn find(table: &HashTable<Weak<AccountKeys>>, hash: u64, id: &AccountId) -> Option<Arc<AccountKeys>> {
    table.iter_hash(hash).filter_map(Weak::upgrade).find(|keys| keys.id == *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(id: &str) -> Arc<AccountKeys> {
        Arc::new(AccountKeys::of_test(id, &[1]))
    }

    #[test]
    fn an_account_has_one_set_of_keys_for_as_long_as_anybody_holds_it() {
        let living = Living::default();
        let names: Vec<_> = (0..2000).map(|n| format!("account-{n}")).collect();
        let held: Vec<_> = names.iter().map(|name| living.adopt(keys(name))).collect();
        for (name, held) in names.iter().zip(&held) {
            assert!(Arc::ptr_eq(&living.adopt(keys(name)), held));
            assert!(Arc::ptr_eq(&living.get(&AccountId::new(name).unwrap()).unwrap(), held));
        }
        living.remove(&keys(&names[8]));
        assert!(living.get(&held[8].id).is_some(), "others of this account");
        living.remove(&held[7]);
        assert!(living.get(&held[7].id).is_none() && living.get(&held[8].id).is_some());
        assert!(!Arc::ptr_eq(&living.adopt(keys(&names[7])), &held[7]));
        drop(held);
        assert!(names.iter().all(|name| living.get(&AccountId::new(name).unwrap()).is_none()));
    }

    #[test]
    fn accounts_that_come_and_go_leave_nothing_behind() {
        let living = Living::default();
        (0..20_000).for_each(|n| drop(living.adopt(keys(&format!("account-{n}")))));
        let room: usize = living.tables.iter().map(|table| table.lock().unwrap().keys.capacity()).sum();
        assert!(room <= SHARDS * 4 * ROOM_MIN, "{room}");
    }
}
