//! The newest checkpoint in the key store, where the store answers late, or not at all: nobody waits for it, and no process is taken for
//! another.

use crate::rig::{PATIENCE, Rig, admin, until};
use async_trait::async_trait;
use keyleash::{
    Error, Result,
    audit::Writer,
    clock::{Clock, ManualClock},
    store::{Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned, memory::MemoryStore},
    telemetry::trail::Trail,
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// What becomes of a checkpoint that is put.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Stored,
    /// It is stored, and nobody hears of it.
    AnswerLost,
    /// It is on its way, and comes when [`Late::come`] says so.
    OnItsWay,
    /// It is lost.
    Lost,
}

#[derive(Debug)]
struct Late {
    inner: MemoryStore,
    mode: Mutex<Mode>,
    on_their_way: Mutex<Vec<(Key, Option<StoreVersion>, Put)>>,
    puts: Mutex<u64>,
}

impl Late {
    fn new(mode: Mode) -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryStore::new(),
            mode: Mutex::new(mode),
            on_their_way: Mutex::default(),
            puts: Mutex::default(),
        })
    }

    fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    fn puts(&self) -> u64 {
        *self.puts.lock().unwrap()
    }

    async fn apply(&self, key: &Key, expected: Option<&StoreVersion>, put: Put) -> Result<StoreVersion> {
        match expected {
            Some(version) => self.inner.replace(key, version, put).await,
            None => self.inner.create(key, put).await,
        }
    }

    async fn put(&self, key: &Key, expected: Option<&StoreVersion>, put: Put) -> Result<StoreVersion> {
        if !matches!(key, Key::Checkpoint(_)) {
            return self.apply(key, expected, put).await;
        }
        let mode = *self.mode.lock().unwrap();
        let outcome = match mode {
            Mode::Stored => self.apply(key, expected, put).await,
            Mode::AnswerLost => {
                self.apply(key, expected, put).await.unwrap();
                Err(Error::Store("the answer was lost".into()))
            }
            Mode::OnItsWay => {
                self.on_their_way.lock().unwrap().push((key.clone(), expected.cloned(), put));
                Err(Error::Store("no answer yet".into()))
            }
            Mode::Lost => Err(Error::Store("not there".into())),
        };
        *self.puts.lock().unwrap() += 1;
        outcome
    }

    /// What was on its way comes, each as far as it still can.
    async fn come(&self) {
        let all = std::mem::take(&mut *self.on_their_way.lock().unwrap());
        let mut stored = 0;
        for (key, expected, put) in all {
            stored += u64::from(self.apply(&key, expected.as_ref(), put).await.is_ok());
        }
        assert_eq!(stored, 1, "the first of them");
    }
}

#[async_trait]
impl KeyStore for Late {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        self.inner.get(key).await
    }

    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        self.put(key, None, put).await
    }

    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
        self.put(key, Some(expected), put).await
    }

    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
        self.inner.delete(key, expected).await
    }

    async fn shred(&self, remains: Vec<Vec<u8>>) -> Result<()> {
        self.inner.shred(remains).await
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        self.inner.list(filter, after, limit).await
    }
}

struct Setting {
    store: Arc<Late>,
    rig: Rig,
    clock: ManualClock,
}

impl Setting {
    fn new(mode: Mode) -> Self {
        let (store, mut rig) = (Late::new(mode), Rig::new());
        rig.store = store.clone();
        Self { store, rig, clock: ManualClock::default() }
    }

    async fn open(&self) -> Writer {
        self.rig.open(self.rig.options().clock(Clock::Manual(self.clock.clone()))).await.unwrap()
    }

    /// Writes a line, and sees its checkpoint come to the store.
    async fn write(&self, writer: &Writer, number: u128) {
        let before = self.store.puts();
        // The checkpoint before was a second ago, so that this one comes at once.
        self.clock.advance(Duration::from_secs(2));
        writer.write(admin(number)).await.unwrap();
        until("a checkpoint is put", || self.store.puts() > before);
    }

    /// Writes one, and sees it stored.
    async fn write_stored(&self, writer: &Writer, number: u128) {
        let before = writer.status().unwrap().lines;
        self.clock.advance(Duration::from_secs(2));
        writer.write(admin(number)).await.unwrap();
        until("stored", || {
            let status = writer.status().unwrap();
            status.lines > before && status.stored == status.lines
        });
        writer.serves().unwrap();
    }
}

#[tokio::test]
async fn a_checkpoint_whose_answer_was_lost_is_known_however_many_could_not_be_stored_since() {
    for since in [0, 12] {
        let setting = Setting::new(Mode::AnswerLost);
        let writer = setting.open().await;
        setting.write(&writer, 0).await;
        setting.store.set(Mode::Lost);
        for number in 1..=since {
            setting.write(&writer, number).await;
        }
        setting.store.set(Mode::Stored);
        setting.write_stored(&writer, 99).await;
        writer.close(PATIENCE).await.unwrap();
        setting.rig.read();
    }
}

#[tokio::test]
async fn one_that_comes_late_is_known_however_many_were_on_their_way() {
    let setting = Setting::new(Mode::OnItsWay);
    let writer = setting.open().await;
    for number in 0..12 {
        setting.write(&writer, number).await;
    }
    setting.store.set(Mode::Stored);
    setting.store.come().await;
    setting.write_stored(&writer, 99).await;
    writer.close(PATIENCE).await.unwrap();
    setting.rig.read();
}

/// What a process had on its way to the store as it ended comes when the next one has read what is there.
#[tokio::test]
async fn one_of_a_process_that_ended_is_known_by_the_next_one() {
    let setting = Setting::new(Mode::OnItsWay);
    let writer = setting.open().await;
    setting.write(&writer, 0).await;
    setting.write(&writer, 1).await;
    writer.close(PATIENCE).await.unwrap();
    setting.store.set(Mode::Stored);
    let writer = setting.open().await;
    setting.store.come().await;
    setting.write_stored(&writer, 2).await;
    writer.close(PATIENCE).await.unwrap();
    setting.rig.read();
}

#[tokio::test]
async fn a_store_that_is_away_holds_up_no_line_and_gets_the_newest_checkpoint_when_it_is_back() {
    let setting = Setting::new(Mode::Lost);
    let writer = setting.open().await;
    for number in 0..3 {
        setting.write(&writer, number).await;
        writer.serves().unwrap();
    }
    assert_eq!(writer.status().unwrap().stored, 0);
    setting.store.set(Mode::Stored);
    setting.write_stored(&writer, 3).await;
    writer.close(PATIENCE).await.unwrap();
    let (lines, checkpoints) = setting.rig.read();
    assert_eq!(checkpoints.last(), Some(&(lines.len() as u64)));
}
