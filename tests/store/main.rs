//! The key store: its records, its contract on every implementation, and what the redb file survives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // helpers of tests

mod child;
mod conformance;
mod crash;
mod damage;
mod files;
mod model;
mod records;
mod shred;

use keyleash::{
    name::{AccountId, KekName, KekVersion},
    store::{Key, KeyStore, Put, memory::MemoryStore, redb::RedbStore},
};
use std::sync::Arc;

fn account(id: impl AsRef<str>) -> Key {
    Key::Account(AccountId::new(id).unwrap())
}

fn kek(name: &str, version: u32) -> KekVersion {
    KekVersion::new(KekName::new(name).unwrap(), version)
}

fn put(value: impl Into<Vec<u8>>, wrapped_by: &[KekVersion]) -> Put {
    Put { value: value.into(), wrapped_by: wrapped_by.to_vec(), guards: Vec::new() }
}

/// One of each implementation, empty. The directory goes when the guard goes.
async fn stores() -> (Vec<Arc<dyn KeyStore>>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let redb = RedbStore::open_or_create(directory.path().join("store.redb")).await.unwrap();
    (vec![Arc::new(MemoryStore::new()), Arc::new(redb)], directory)
}

/// Where the model's store is, which is opened again and again.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn open(&self) -> RedbStore {
        RedbStore::open_or_create(self.0.path().join("store.redb")).await.unwrap()
    }
}
