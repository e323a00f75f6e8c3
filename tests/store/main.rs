//! The key store: its records, its contract on every implementation, and what the redb file survives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // helpers of tests

mod child;
mod conformance;
mod crash;
mod damage;
mod files;
mod made;
mod model;
mod records;
mod shred;

use self::made::{account, kek, put};
use keyleash::store::{KeyStore, memory::MemoryStore, redb::RedbStore};
use std::sync::Arc;

const MODEL_CASES: u32 = 48;
const PASSING: u32 = 60;

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
