//! The store of the trials of tests/rotation where it is on a server: a place of its own for each.

pub(crate) use crate::KILLS;
use crate::{make_store, open_store, settings, shared_url};
use keyleash::store::KeyStore;
use std::{fs, path::Path, sync::Arc};

pub(crate) fn configure(directory: &Path) {
    let text = format!("[store]\nurl = \"{}\"\n{}", shared_url(), settings());
    fs::write(directory.join("keyleash.toml"), text).unwrap();
}

pub(crate) async fn make(_: &Path) -> Arc<dyn KeyStore> {
    make_store(&shared_url()).await
}

pub(crate) async fn share(directory: &Path) -> Arc<dyn KeyStore> {
    let text = fs::read_to_string(directory.join("keyleash.toml")).unwrap();
    open_store(text.split('"').nth(1).unwrap()).await
}
