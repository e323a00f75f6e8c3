//! Each process's connection to the key store, which is slow, silent or failing for reads and for writes apart, and whose answers
//! may be lost or long in coming. What it answers is the newest, as its contract says: of older answers the engine need not beware. What
//! it tells of changes by itself need not be so.

use super::stage::{Shared, gate, lock};
use async_trait::async_trait;
use keyleash::{
    Error, Result,
    clock::{Clock, ManualClock},
    name::{KekName, KekVersion},
    store::{
        Changes, Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned,
        memory::MemoryStore,
        record::{AccountRecord, KekRecord},
    },
};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::sync::{
    Notify,
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Health {
    #[default]
    Healthy,
    Fails,
    Hangs,
    Slow(Duration),
}

/// What becomes of one write, whosever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It happens so much later, whoever still waits for it.
    Held(Duration),
    /// It happens, and its answer is lost.
    AnswerLost,
    /// So it does, and nothing can be read any more.
    Gone,
}

/// The state of the store, for the script.
#[derive(Default)]
pub(crate) struct Shelves {
    pub(crate) reads: Health,
    pub(crate) writes: Health,
    pub(crate) fates: VecDeque<Fate>,
    /// Moves when the health does.
    pub(crate) changed: Arc<Notify>,
    /// Writes that are held.
    pub(crate) held: usize,
    /// The index of what each KEK version wraps has lost its entries.
    pub(crate) index_lost: bool,
    /// In a world whose store tells of changes.
    pub(crate) feed: Option<Feed>,
}

/// Tells every process what is changed: but not all of it, also what was not, and it breaks.
pub(crate) struct Feed {
    hearers: Vec<UnboundedSender<Key>>,
    told: u64,
}

impl Feed {
    /// Of every third seed.
    pub(crate) fn of(seed: u64) -> Option<Self> {
        (seed % 3 == 1).then(|| Self { hearers: Vec::new(), told: seed })
    }

    fn tell(&mut self, key: &Key) {
        self.told += 1;
        let lie = Key::Denial(KekVersion::new(KekName::new("kek-0").unwrap(), 1));
        let said = match self.told % 16 {
            3 | 11 => return,
            7 => return self.hearers.clear(),
            5 | 13 => &lie,
            _ => key,
        };
        self.hearers.retain(|hearer| hearer.send(said.clone()).is_ok());
    }
}

struct Hearing {
    heard: UnboundedReceiver<Key>,
    shared: Shared,
    process: usize,
}

#[async_trait]
impl Changes for Hearing {
    async fn next(&mut self) -> Result<Vec<Key>> {
        let key = self.heard.recv().await;
        gate(&self.shared, self.process).await;
        Ok(vec![key.ok_or_else(|| Error::Store("the feed broke".into()))?])
    }
}

/// One process's connection.
#[derive(Clone)]
pub(crate) struct Shelf {
    pub(crate) inner: Arc<MemoryStore>,
    pub(crate) shared: Shared,
    pub(crate) process: usize,
    pub(crate) real: ManualClock,
}

/// A write that is on its way.
enum Write {
    Create(Put),
    Replace(StoreVersion, Put),
    Delete(StoreVersion),
}

impl Shelf {
    /// Waits until the store does what is asked, or fails; gives how long its answer takes then.
    async fn play(&self, health: impl Fn(&Shelves) -> Health) -> Result<Duration> {
        gate(&self.shared, self.process).await;
        loop {
            let changed = lock(&self.shared).shelves.changed.clone();
            let changed = changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let health = health(&lock(&self.shared).shelves);
            match health {
                Health::Healthy => return Ok(Duration::ZERO),
                Health::Fails => return Err(Error::Store("the script says so".into())),
                Health::Slow(time) => return Ok(time),
                Health::Hangs => changed.await,
            }
        }
    }

    async fn answer<T>(&self, takes: Duration, answer: T) -> T {
        if !takes.is_zero() {
            Clock::Manual(self.real.clone()).sleep_until(self.real.now().plus(takes)).await;
            gate(&self.shared, self.process).await;
        }
        answer
    }

    async fn write(&self, key: &Key, write: Write) -> Result<Option<StoreVersion>> {
        let takes = self.play(|shelves| shelves.writes).await?;
        let fate = lock(&self.shared).shelves.fates.pop_front();
        match fate {
            Some(Fate::Held(time)) => {
                let (answer, waiting) = oneshot::channel();
                let (shelf, key) = (self.clone(), key.clone());
                {
                    let mut stage = lock(&self.shared);
                    stage.shelves.held += 1;
                    stage.note(|| format!("a write of {key} is held for {time:?}"));
                    stage.look();
                }
                tokio::spawn(async move {
                    Clock::Manual(shelf.real.clone()).sleep_until(shelf.real.now().plus(time)).await;
                    let outcome = shelf.happen(&key, write).await;
                    {
                        let mut stage = lock(&shelf.shared);
                        stage.shelves.held -= 1;
                        stage.look();
                    }
                    let _ = answer.send(outcome);
                });
                let lost = || Error::Store("the store is gone".into());
                let outcome = waiting.await.map_err(|_| lost())?;
                gate(&self.shared, self.process).await;
                outcome
            }
            Some(fate @ (Fate::AnswerLost | Fate::Gone)) => {
                let happened = self.happen(key, write).await;
                let mut stage = lock(&self.shared);
                if fate == Fate::Gone {
                    stage.shelves.reads = Health::Fails;
                    stage.look();
                }
                stage.note(|| format!("the answer to a write of {key} is lost: {happened:?}"));
                Err(Error::Store("the connection was reset".into()))
            }
            None => {
                // On its way there for as long as the answer is on its way back.
                self.answer(takes / 2, ()).await;
                let outcome = self.happen(key, write).await;
                self.answer(takes / 2, outcome).await
            }
        }
    }

    /// The write itself, and what the oracle learns of it.
    async fn happen(&self, key: &Key, write: Write) -> Result<Option<StoreVersion>> {
        let put = match &write {
            Write::Create(put) | Write::Replace(_, put) => Some(put.value.clone()),
            Write::Delete(_) => None,
        };
        let outcome = match write {
            Write::Create(put) => self.inner.create(key, put).await.map(Some),
            Write::Replace(expected, put) => self.inner.replace(key, &expected, put).await.map(Some),
            Write::Delete(expected) => self.inner.delete(key, &expected).await.map(|()| None),
        };
        let mut stage = lock(&self.shared);
        if outcome.is_ok() {
            let now = stage.now();
            if let Some(feed) = &mut stage.shelves.feed {
                feed.tell(key);
            }
            stage.note(|| {
                format!("process {} {} {key}", self.process, if put.is_some() { "writes" } else { "deletes" })
            });
            match (key, &put) {
                (Key::Account(_), Some(value)) => {
                    let record = AccountRecord::decode(key, value).expect("a record of the engine's");
                    stage.oracle.account_stored(self.process, &record, now);
                }
                (Key::Kek(_), Some(value)) => {
                    let record = KekRecord::decode(key, value).expect("a record of the engine's");
                    stage.oracle.kek_stored(&record, now);
                    stage.look();
                }
                (Key::Denial(kek), value) => stage.oracle.denial_stored(self.process, kek, value.is_some(), now),
                _ => {}
            }
        }
        outcome
    }
}

#[async_trait]
impl KeyStore for Shelf {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        let asked = lock(&self.shared).now();
        let takes = self.play(|shelves| shelves.reads).await?;
        let found = self.inner.get(key).await;
        let found = self.answer(takes, found).await;
        if let Key::Account(account) = key {
            let mut stage = lock(&self.shared);
            let now = stage.now();
            stage.oracle.word(self.process, account, asked, now);
        }
        found
    }

    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        Ok(self.write(key, Write::Create(put)).await?.expect("a version"))
    }

    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
        Ok(self.write(key, Write::Replace(expected.clone(), put)).await?.expect("a version"))
    }

    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
        self.write(key, Write::Delete(expected.clone())).await.map(drop)
    }

    async fn shred(&self, _: Vec<Vec<u8>>) -> Result<()> {
        Ok(())
    }

    async fn changes(&self) -> Result<Option<Box<dyn Changes>>> {
        let takes = self.play(|shelves| shelves.reads).await?;
        let (sender, heard) = unbounded_channel();
        let changes: Option<Box<dyn Changes>> = match &mut lock(&self.shared).shelves.feed {
            None => None,
            Some(feed) => {
                feed.hearers.push(sender);
                Some(Box::new(Hearing { heard, shared: self.shared.clone(), process: self.process }))
            }
        };
        self.answer(takes, Ok(changes)).await
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        let takes = self.play(|shelves| shelves.reads).await?;
        let is_lost = matches!(filter, Filter::WrappedBy(_)) && lock(&self.shared).shelves.index_lost;
        let found = match is_lost {
            true => Ok(Page { keys: Vec::new(), next: None }),
            false => self.inner.list(filter, after, limit).await,
        };
        self.answer(takes, found).await
    }
}
