//! The store of the trials of tests/rotation: a namespace of its own for each.

use crate::{config, shared_url};
use keyleash::store::{KeyStore, etcd::EtcdStore};
use std::{fs, path::Path, sync::Arc};

pub(crate) const KILLS: u32 = 15;

pub(crate) fn configure(directory: &Path) {
    let text = format!("[store]\nurl = \"{}\"\ntls = \"plaintext\"\n", shared_url());
    fs::write(directory.join("keyleash.toml"), text).unwrap();
}

pub(crate) async fn make(_: &Path) -> Arc<dyn KeyStore> {
    Arc::new(EtcdStore::open_or_create(&config(&shared_url())).await.unwrap())
}

pub(crate) async fn share(directory: &Path) -> Arc<dyn KeyStore> {
    let text = fs::read_to_string(directory.join("keyleash.toml")).unwrap();
    let url = text.split('"').nth(1).unwrap();
    Arc::new(EtcdStore::open(&config(url)).await.unwrap())
}
