//! What the nodes of `fleet --nodes` share: a store on a server. It has nothing in it but what drills left, and nothing when they are over.

use super::args::Fleet;
use crate::{
    exit::Failure,
    open_store::open_store,
    setup::{Setup, Store},
};
use keyleash::{
    Error,
    config::StoreConfig,
    store::{Filter, Key, KeyStore, PAGE_KEYS_MAX},
};
use std::{path::PathBuf, process::Command, sync::Arc};

/// Everything that is listed, and what there is one of.
const LISTED: [Filter; 7] = [
    Filter::Keks,
    Filter::Accounts,
    Filter::Denials,
    Filter::Secrets,
    Filter::SecretValues,
    Filter::Grants,
    Filter::Checkpoints,
];
const SINGLE: [Key; 4] = [Key::Work, Key::Common, Key::Policy, Key::Store];
/// What the names of a drill's KEKs and accounts begin with.
const OF_DRILLS: &str = "drill-";

/// The nodes of a drill.
pub(crate) struct Nodes {
    pub(crate) count: u32,
    pub(crate) lose_leader: Option<String>,
    pub(crate) url: PathBuf,
    place: StoreConfig,
}

impl Nodes {
    /// `None` where one process is to have its own store.
    pub(crate) fn of(fleet: &Fleet, setup: &Setup) -> Result<Option<Self>, Failure> {
        let (Some(count), Some(url)) = (fleet.nodes, &fleet.store) else { return Ok(None) };
        let place = setup.store_at(url)?;
        if let Some(path) = place.path() {
            let path = path.display();
            return Err(Failure::Usage(format!(
                "--store {path} is a file, which belongs to one process: name a store on a server, as in etcd://HOST:PORT/NAMESPACE"
            )));
        }
        Ok(Some(Self { count, lose_leader: fleet.lose_leader.clone(), url: url.clone(), place }))
    }

    /// The store, made where it is not there. What an interrupted drill left is removed.
    pub(crate) async fn store(&self) -> Result<Arc<dyn KeyStore>, Failure> {
        let (store, _) = open_store(&self.place, Store::Create).await?;
        let is_of_drills = |key: &Key| match key {
            Key::Kek(name) => name.as_str().starts_with(OF_DRILLS),
            Key::Account(id) => id.as_str().starts_with(OF_DRILLS),
            _ => true,
        };
        for filter in [Filter::Keks, Filter::Accounts] {
            if let Some(key) = all(&*store, &filter).await?.into_iter().find(|key| !is_of_drills(key)) {
                return Err(Failure::Usage(format!(
                    "store {}: it has {key}, which is no drill's, and drills leave their store empty: use one of their own",
                    self.place
                )));
            }
        }
        empty(&*store).await?;
        Ok(store)
    }

    /// Removes what the drill made.
    pub(crate) async fn clear(&self) -> Result<(), Failure> {
        let (store, _) = open_store(&self.place, Store::Existing).await?;
        Ok(empty(&*store).await?)
    }
}

/// Does what the command line has a shell do.
pub(crate) fn run(command: &str) -> Result<(), Failure> {
    let failed = |error| Failure::io("--lose-leader", error);
    let status = Command::new("sh").arg("-c").arg(command).status().map_err(failed)?;
    match status.success() {
        true => Ok(()),
        false => Err(failed(std::io::Error::other(format!("it ended with {status}")))),
    }
}

async fn empty(store: &dyn KeyStore) -> Result<(), Error> {
    let mut keys = Vec::from(SINGLE);
    for filter in &LISTED {
        keys.extend(all(store, filter).await?);
    }
    for key in keys {
        if let Some(found) = store.get(&key).await? {
            store.delete(&key, &found.version).await?;
        }
    }
    Ok(())
}

async fn all(store: &dyn KeyStore, filter: &Filter) -> Result<Vec<Key>, Error> {
    let (mut keys, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(filter, after.as_ref(), PAGE_KEYS_MAX).await?;
        keys.extend(page.keys);
        after = page.next;
        if after.is_none() {
            return Ok(keys);
        }
    }
}
