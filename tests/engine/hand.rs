//! A store whose reads, writes and deletes a test holds up.

use crate::Rig;
use async_trait::async_trait;
use keyleash::{
    Engine, Error, Result,
    clock::Clock,
    config::Settings,
    store::{Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned, memory::MemoryStore},
};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::Notify;

type Chosen = Box<dyn Fn(&Key) -> bool + Send>;

/// The memory store behind a hand.
#[derive(Default)]
pub(crate) struct HandStore {
    inner: Arc<MemoryStore>,
    reads: Mutex<Option<Chosen>>,
    answers: Mutex<Option<Chosen>>,
    creates: Mutex<bool>,
    writes: Mutex<bool>,
    account_writes: Mutex<bool>,
    lists: Mutex<bool>,
    held: AtomicU64,
    deletes: Mutex<bool>,
    done_deletes: Mutex<bool>,
    lost_acks: Mutex<bool>,
    shredded: Mutex<Vec<Vec<u8>>>,
    away: Mutex<bool>,
    let_go: Arc<Notify>,
    accounts_read: AtomicU64,
}

/// An engine over a store that is held up, without protection from purging.
pub(crate) fn held_up(rig: &Rig) -> (Engine, Arc<HandStore>) {
    held_up_with(rig, Settings::default().purge_protection(false).scheduled_work(false))
}

pub(crate) fn held_up_with(rig: &Rig, settings: Settings) -> (Engine, Arc<HandStore>) {
    let hand = HandStore::over(&rig.store);
    let engine = Engine::builder(rig.token.clone(), hand.clone())
        .on_current_runtime()
        .settings(settings)
        .clock(Clock::Manual(rig.clock.clone()))
        .start_up_proof(false)
        .build()
        .unwrap();
    (engine, hand)
}

impl HandStore {
    pub(crate) fn over(inner: &Arc<MemoryStore>) -> Arc<Self> {
        Arc::new(Self { inner: inner.clone(), ..Self::default() })
    }

    /// Reads of these hang until [`HandStore::let_go`], or until others are to hang instead of them.
    pub(crate) fn hold_reads(&self, which: impl Fn(&Key) -> bool + Send + 'static) {
        *self.reads.lock().unwrap() = Some(Box::new(which));
        self.let_go.notify_waiters();
    }

    /// These are read at once, and what was read arrives after [`HandStore::let_go`].
    pub(crate) fn hold_answers(&self, which: impl Fn(&Key) -> bool + Send + 'static) {
        *self.answers.lock().unwrap() = Some(Box::new(which));
    }

    /// Creations hang until [`HandStore::let_go`], and happen then.
    pub(crate) fn hold_creates(&self) {
        *self.creates.lock().unwrap() = true;
    }

    /// Writes hang until [`HandStore::let_go`], and happen then if somebody still waits for them.
    pub(crate) fn hold_writes(&self) {
        *self.writes.lock().unwrap() = true;
    }

    /// Writes of accounts that are there hang until [`HandStore::let_go`], and happen then if somebody still waits for them.
    pub(crate) fn hold_account_writes(&self) {
        *self.account_writes.lock().unwrap() = true;
    }

    /// Listings hang until [`HandStore::let_go`].
    pub(crate) fn hold_lists(&self) {
        *self.lists.lock().unwrap() = true;
    }

    /// How many writes were held up.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::SeqCst)
    }

    /// Deletes are under way until [`HandStore::let_go`], and happen then, whether or not somebody still waits for them.
    pub(crate) fn hold_deletes(&self) {
        *self.deletes.lock().unwrap() = true;
    }

    /// Deletes are done at once, and say so after [`HandStore::let_go`].
    pub(crate) fn hold_done_deletes(&self) {
        *self.done_deletes.lock().unwrap() = true;
    }

    /// Replaces and deletes are done, and say that the store failed.
    pub(crate) fn lose_acks(&self) {
        *self.lost_acks.lock().unwrap() = true;
    }

    /// Of what an end was to be made.
    pub(crate) fn shredded(&self) -> Vec<Vec<u8>> {
        self.shredded.lock().unwrap().clone()
    }

    /// Reads fail at once, or do not any more.
    pub(crate) fn set_away(&self, away: bool) {
        *self.away.lock().unwrap() = away;
    }

    /// How many records of accounts were read.
    pub(crate) fn accounts_read(&self) -> u64 {
        self.accounts_read.load(Ordering::SeqCst)
    }

    pub(crate) fn let_go(&self) {
        *self.reads.lock().unwrap() = None;
        *self.answers.lock().unwrap() = None;
        *self.creates.lock().unwrap() = false;
        *self.writes.lock().unwrap() = false;
        *self.account_writes.lock().unwrap() = false;
        *self.lists.lock().unwrap() = false;
        *self.deletes.lock().unwrap() = false;
        *self.done_deletes.lock().unwrap() = false;
        *self.lost_acks.lock().unwrap() = false;
        self.let_go.notify_waiters();
    }
}

fn lost() -> Error {
    Error::Store("the answer was lost".into())
}

#[async_trait]
impl KeyStore for HandStore {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        let held = |which: &Mutex<Option<Chosen>>| which.lock().unwrap().as_ref().is_some_and(|which| which(key));
        while held(&self.reads) {
            self.let_go.notified().await;
        }
        if *self.away.lock().unwrap() {
            return Err(Error::Store("the store is away".into()));
        }
        if matches!(key, Key::Account(_)) {
            self.accounts_read.fetch_add(1, Ordering::SeqCst);
        }
        let answer = self.inner.get(key).await;
        if held(&self.answers) {
            self.let_go.notified().await;
        }
        answer
    }

    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        let held = *self.creates.lock().unwrap();
        if held {
            self.let_go.notified().await;
        }
        self.inner.create(key, put).await
    }

    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
        let is_account = matches!(key, Key::Account(_));
        let held = *self.writes.lock().unwrap() || is_account && *self.account_writes.lock().unwrap();
        if held {
            self.held.fetch_add(1, Ordering::SeqCst);
            self.let_go.notified().await;
        }
        let done = self.inner.replace(key, expected, put).await;
        if *self.lost_acks.lock().unwrap() { Err(lost()) } else { done }
    }

    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
        let held = *self.deletes.lock().unwrap();
        if !held {
            let done = self.inner.delete(key, expected).await;
            let held = *self.done_deletes.lock().unwrap();
            if held {
                self.let_go.notified().await;
            }
            return if *self.lost_acks.lock().unwrap() { Err(lost()) } else { done };
        }
        let (inner, let_go) = (self.inner.clone(), self.let_go.clone());
        let (key, expected) = (key.clone(), expected.clone());
        tokio::spawn(async move {
            let_go.notified().await;
            inner.delete(&key, &expected).await
        })
        .await
        .unwrap()
    }

    async fn shred(&self, remains: Vec<Vec<u8>>) -> Result<()> {
        self.shredded.lock().unwrap().extend(remains);
        Ok(())
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        let held = *self.lists.lock().unwrap();
        if held {
            self.let_go.notified().await;
        }
        if *self.away.lock().unwrap() {
            return Err(Error::Store("the store is away".into()));
        }
        self.inner.list(filter, after, limit).await
    }
}
