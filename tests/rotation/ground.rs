//! The store that the trials of kills and of several at once are on: here a file. tests/etcd has the same trials on its own.

use keyleash::store::{KeyStore, redb::RedbStore};
use std::{path::Path, sync::Arc};

/// Kills that hit a command which was still running.
#[cfg(feature = "cli")]
pub(crate) const KILLS: u32 = 50;

/// What commands in a directory have to know of the store.
#[cfg(feature = "cli")]
pub(crate) fn configure(_: &Path) {}

/// A store for engines of this process.
pub(crate) async fn make(directory: &Path) -> Arc<dyn KeyStore> {
    Arc::new(RedbStore::open_or_create(directory.join("store.redb")).await.unwrap())
}

/// The store that commands in a directory have.
#[cfg(feature = "cli")]
pub(crate) async fn share(directory: &Path) -> Arc<dyn KeyStore> {
    Arc::new(crate::shared_store::SharedStore::open(directory.join("keyleash.redb"), false).await.unwrap())
}
