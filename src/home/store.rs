//! The key store as the engine asks it: on a thread where nothing else runs, with a deadline for every call. To the rest of the
//! engine one that blocks its thread, against its contract, or never answers, is one that is silent.

use super::{Call, Room};
use crate::{
    clock::Clock,
    error::{Error, Result},
    store::{Apart, Changes, Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned},
};
use async_trait::async_trait;
use std::{future::Future, sync::Arc, time::Duration};

pub(crate) struct HomeStore {
    pub(super) store: Arc<dyn KeyStore>,
    pub(super) room: Room,
    pub(super) clock: Clock,
    pub(super) patience: Duration,
}

impl HomeStore {
    async fn ask<T, F>(&self, call: impl FnOnce(Arc<dyn KeyStore>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let call = call(self.store.clone());
        // Dropped, and with it what the store does, when nobody waits any more.
        let mut call = Call(self.room.spawn(async move { Ok(call.await) }));
        match self.clock.until(self.clock.now().plus(self.patience), &mut call.0).await {
            Some(Ok(answer)) => answer,
            Some(Err(died)) if died.is_panic() => {
                Err(Error::Store("it panicked, see the log: read again to see what was done".into()))
            }
            Some(Err(_)) => Err(Error::Store("the engine has ended".into())),
            None => Err(Error::Store(format!(
                "no answer within {} s: see that the store is reachable, and read again to see what was done",
                self.patience.as_secs()
            ))),
        }
    }
}

#[async_trait]
impl KeyStore for HomeStore {
    fn check_settings(&self) -> Result<()> {
        self.store.check_settings()
    }

    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        let key = key.clone();
        self.ask(|store| async move { store.get(&key).await }).await?
    }

    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        let key = key.clone();
        self.ask(|store| async move { store.create(&key, put).await }).await?
    }

    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
        let (key, expected) = (key.clone(), expected.clone());
        self.ask(|store| async move { store.replace(&key, &expected, put).await }).await?
    }

    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Versioned>>> {
        let asked = keys.to_vec();
        let found = self.ask(|store| async move { store.get_many(&asked).await }).await;
        found.unwrap_or_else(|error| keys.iter().map(|_| Err(error.clone())).collect())
    }

    async fn replace_many(&self, changes: Vec<(Key, StoreVersion, Put)>) -> Vec<Result<StoreVersion>> {
        let many = changes.len();
        let done = self.ask(|store| async move { store.replace_many(changes).await }).await;
        done.unwrap_or_else(|error| vec![Err(error); many])
    }

    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
        let (key, expected) = (key.clone(), expected.clone());
        self.ask(|store| async move { store.delete(&key, &expected).await }).await?
    }

    async fn shred(&self, remains: Vec<Vec<u8>>) -> Result<()> {
        self.ask(|store| async move { store.shred(remains).await }).await?
    }

    async fn changes(&self) -> Result<Option<Box<dyn Changes>>> {
        let opened = self.ask(|store| async move { store.changes().await }).await??;
        Ok(opened.map(|changes| Apart::hear(changes, |hearing| self.room.spawn(hearing).abort_handle())))
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        let (filter, after) = (filter.clone(), after.cloned());
        self.ask(|store| async move { store.list(&filter, after.as_ref(), limit).await }).await?
    }
}
