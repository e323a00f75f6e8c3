//! The store file, open for one operation at a time: so that `keyleash seal … | keyleash open …` and any number of
//! commands at once share it, though redb lets one process open it.

use async_trait::async_trait;
use keyleash::{
    Error, Result,
    clock::Clock,
    store::{Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned, redb::RedbStore},
};
use rustix::io::Errno;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::{Mutex, MutexGuard};

/// How long to wait while another process has the file open. A command has it for some milliseconds, a service for ever.
pub(crate) const WAIT: Duration = Duration::from_secs(3);
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// The store at a path.
#[derive(Debug)]
pub(crate) struct SharedStore {
    store: RedbStore,
    /// On a file system that nobody writes to; there is no need to make room.
    stays_open: bool,
    clock: Clock,
    /// One operation at a time in this process: the file is closed behind each.
    turn: Mutex<()>,
    is_new: bool,
}

impl SharedStore {
    /// Opens the store once, so that what is wrong with it is said before anything else is done, and so that all of it is
    /// verified once. Made if it is missing and `create` is true.
    pub(crate) async fn open(path: PathBuf, create: bool) -> Result<Self> {
        Self::open_as(path, create, None).await
    }

    /// As [`SharedStore::open`], for a command that only reads: where this user may not write, or nobody may, it need not.
    pub(crate) async fn open_to_read(path: PathBuf) -> Result<Self> {
        let refused = rustix::fs::access(&path, rustix::fs::Access::WRITE_OK).err();
        let refused = refused.filter(|why| [Errno::ROFS, Errno::ACCESS].contains(why));
        Self::open_as(path, false, refused).await
    }

    /// For reading alone, if writing is `refused`.
    async fn open_as(path: PathBuf, create: bool, refused: Option<Errno>) -> Result<Self> {
        let (clock, mut is_new) = (Clock::default(), false);
        let give_up = clock.now().plus(WAIT);
        loop {
            let opened = match refused {
                Some(_) => RedbStore::open_read_only(&path).await,
                None => RedbStore::open(&path).await,
            };
            let opened = match opened {
                Err(Error::NotFound(_)) if create => {
                    is_new = true;
                    RedbStore::open_or_create(&path).await
                }
                opened => opened,
            };
            match opened {
                Ok(store) => {
                    let stays_open = refused == Some(Errno::ROFS);
                    if !stays_open {
                        store.rest();
                    }
                    return Ok(Self { store, stays_open, clock, turn: Mutex::default(), is_new });
                }
                Err(Error::Store(_)) if clock.now() < give_up => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(with_holders(error, &path)),
            }
        }
    }

    /// Whether it was made just now.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Copies it to a place where nothing is.
    pub(crate) async fn snapshot(&self, to: PathBuf) -> Result<()> {
        self.turn().await?.store.snapshot(to).await
    }

    async fn turn(&self) -> Result<Turn<'_>> {
        let turn = self.turn.lock().await;
        let give_up = self.clock.now().plus(WAIT);
        loop {
            match self.store.wake().await {
                Ok(()) => return Ok(Turn { store: &self.store, stays_open: self.stays_open, _turn: turn }),
                Err(Error::Store(_)) if self.clock.now() < give_up => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(with_holders(error, self.store.path())),
            }
        }
    }
}

/// Most processes that are named.
const HOLDERS_MAX: usize = 3;

/// Names who has the store open, where that is why it could not be used and where the system tells.
pub(crate) fn with_holders(error: Error, path: &Path) -> Error {
    let Error::Store(what) = &error else { return error };
    let holders = holders(path);
    if holders.is_empty() {
        return error;
    }
    Error::Store(format!("{what}; open in {}", holders.join(", ")))
}

/// Other processes that have the file open, by name and number.
fn holders(path: &Path) -> Vec<String> {
    let (Ok(file), Ok(processes)) = (fs::metadata(path), fs::read_dir("/proc")) else { return Vec::new() };
    let same = |other: &fs::Metadata| (other.dev(), other.ino()) == (file.dev(), file.ino());
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let holds = |process: &u32| {
        let Ok(open) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
        open.flatten().any(|open| fs::metadata(open.path()).is_ok_and(|other| same(&other)))
    };
    let named = |process: u32| {
        let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        format!("{} (process {process})", name.trim_end())
    };
    let others = processes.flatten().filter_map(number).filter(|process| *process != std::process::id());
    others.filter(holds).take(HOLDERS_MAX).map(named).collect()
}

/// The open file, which is free when this is dropped, and before the next turn begins.
struct Turn<'a> {
    store: &'a RedbStore,
    stays_open: bool,
    _turn: MutexGuard<'a, ()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.stays_open {
            self.store.rest();
        }
    }
}

#[async_trait]
impl KeyStore for SharedStore {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        self.turn().await?.store.get(key).await
    }

    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        self.turn().await?.store.create(key, put).await
    }

    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
        self.turn().await?.store.replace(key, expected, put).await
    }

    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Versioned>>> {
        match self.turn().await {
            Ok(turn) => turn.store.get_many(keys).await,
            Err(error) => keys.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn replace_many(&self, changes: Vec<(Key, StoreVersion, Put)>) -> Vec<Result<StoreVersion>> {
        match self.turn().await {
            Ok(turn) => turn.store.replace_many(changes).await,
            Err(error) => changes.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
        self.turn().await?.store.delete(key, expected).await
    }

    async fn shred(&self, remains: Vec<Vec<u8>>) -> Result<()> {
        self.turn().await?.store.shred(remains).await
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        self.turn().await?.store.list(filter, after, limit).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyleash::name::{AccountId, KekName};

    #[tokio::test(flavor = "multi_thread")]
    async fn two_processes_share_a_file_though_redb_opens_it_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keyleash.redb");
        let one = SharedStore::open(path.clone(), true).await.unwrap();
        let other = SharedStore::open(path.clone(), false).await.unwrap();
        let put = Put { value: b"x".to_vec(), wrapped_by: Vec::new(), guards: Vec::new() };
        for (number, store) in [&one, &other, &one].into_iter().enumerate() {
            store.create(&Key::Kek(KekName::new(format!("k{number}")).unwrap()), put.clone()).await.unwrap();
        }
        assert_eq!(other.list(&Filter::Keks, None, 10).await.unwrap().keys.len(), 3);
        assert!(one.is_new() && !other.is_new());
        let both = tokio::join!(one.list(&Filter::Keks, None, 10), other.list(&Filter::Keks, None, 10));
        assert_eq!(both.0.unwrap(), both.1.unwrap());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_that_must_exist_is_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keyleash.redb");
        assert!(matches!(SharedStore::open(path.clone(), false).await, Err(Error::NotFound(_))));
        assert!(!path.exists());
        let store = SharedStore::open(path.clone(), true).await.unwrap();
        assert_eq!(store.get(&Key::Account(AccountId::new("a").unwrap())).await.unwrap(), None);
    }
}
