//! The store of the trials of tests/rotation: a schema of its own for each.

use crate::{config, shared_url};
use keyleash::store::{KeyStore, postgres::PostgresStore};
use std::{fs, path::Path, sync::Arc};

pub(crate) const KILLS: u32 = 3;

pub(crate) fn configure(directory: &Path) {
    let text = format!("[store]\nurl = \"{}\"\ntls = \"plaintext\"\nuser = \"postgres\"\n", shared_url());
    fs::write(directory.join("keyleash.toml"), text).unwrap();
}

pub(crate) async fn make(_: &Path) -> Arc<dyn KeyStore> {
    Arc::new(PostgresStore::open_or_create(&config(&shared_url())).await.unwrap())
}

pub(crate) async fn share(directory: &Path) -> Arc<dyn KeyStore> {
    let text = fs::read_to_string(directory.join("keyleash.toml")).unwrap();
    let url = text.split('"').nth(1).unwrap();
    Arc::new(PostgresStore::open(&config(url)).await.unwrap())
}
