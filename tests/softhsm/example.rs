//! The example service, on a real token, through everything that it is an example for.

#[path = "../../examples/service.rs"]
#[allow(unreachable_pub, missing_docs)]
mod service_example;

use self::service_example::{Block, Service};
use crate::{
    bench::{Bench, MEASURED, alone_with_shim},
    service::now,
};
use async_trait::async_trait;
use keyleash::{
    Engine, Error, KekOptions,
    config::Settings,
    name::{AccountId, KekName},
    store::{Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned, memory::MemoryStore},
    token::{
        Profile,
        pkcs11::{Pkcs11Token, operator::Operator},
    },
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

const SECOND: Duration = Duration::from_secs(1);
/// Longer than any trouble here lasts.
const PATIENCE: Duration = Duration::from_secs(60);
const WRITERS: u64 = 2;

/// A store that is away while it is told to be.
#[derive(Default)]
struct Away(MemoryStore, AtomicBool);

impl Away {
    fn there(&self) -> keyleash::Result<&MemoryStore> {
        if self.1.load(Ordering::SeqCst) { Err(Error::Store("it is away".into())) } else { Ok(&self.0) }
    }
}

#[async_trait]
impl KeyStore for Away {
    async fn get(&self, key: &Key) -> keyleash::Result<Option<Versioned>> {
        self.there()?.get(key).await
    }
    async fn create(&self, key: &Key, put: Put) -> keyleash::Result<StoreVersion> {
        self.there()?.create(key, put).await
    }
    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> keyleash::Result<StoreVersion> {
        self.there()?.replace(key, expected, put).await
    }
    async fn delete(&self, key: &Key, expected: &StoreVersion) -> keyleash::Result<()> {
        self.there()?.delete(key, expected).await
    }
    async fn shred(&self, remains: Vec<Vec<u8>>) -> keyleash::Result<()> {
        self.there()?.shred(remains).await
    }
    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> keyleash::Result<Page> {
        self.there()?.list(filter, after, limit).await
    }
}

fn data(place: u64) -> Vec<u8> {
    place.to_le_bytes().repeat(64)
}

/// What the writers were given, in their order: the blocks that they wrote, and the one that each gave back as the service ended.
struct Writers {
    next: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
    given_back: Arc<Mutex<Vec<u64>>>,
    done: mpsc::Receiver<()>,
}

/// A thread and a task, that write one block after the other until the service ends.
fn write_all_the_time(service: &Arc<Service>) -> Writers {
    let (tell, done) = mpsc::channel();
    let writers = Writers { next: Arc::default(), written: Arc::default(), given_back: Arc::default(), done };
    let take = {
        let next = writers.next.clone();
        move || {
            let place = next.fetch_add(1, Ordering::SeqCst);
            Block { place, data: data(place) }
        }
    };
    let came = {
        let (written, given_back) = (writers.written.clone(), writers.given_back.clone());
        move |block: &Block, outcome: Result<(), Error>| match outcome {
            Ok(()) => {
                written.fetch_add(1, Ordering::SeqCst);
                true
            }
            Err(Error::Closed) => {
                given_back.lock().unwrap().push(block.place);
                false
            }
            Err(other) => panic!("block {}: {other}", block.place),
        }
    };
    let (on_thread, of_thread, come, told) = (service.clone(), take.clone(), came.clone(), tell.clone());
    std::thread::spawn(move || {
        loop {
            let block = of_thread();
            if !come(&block, on_thread.write(&block)) {
                return told.send(()).unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let in_task = service.clone();
    tokio::spawn(async move {
        loop {
            let block = take();
            let outcome = in_task.write_async(&block).await;
            if !came(&block, outcome) {
                return tell.send(()).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    writers
}

impl Writers {
    /// Waits until both write no more.
    async fn stand_still(&self) {
        let began = now();
        loop {
            let before = self.written.load(Ordering::SeqCst);
            tokio::time::sleep(SECOND).await;
            if self.written.load(Ordering::SeqCst) == before {
                return;
            }
            assert!(now().since(began) < PATIENCE, "they write on");
        }
    }

    /// Waits until both write again.
    async fn go_on(&self) {
        let (began, from) = (now(), self.written.load(Ordering::SeqCst));
        while self.written.load(Ordering::SeqCst) < from + 10 * WRITERS {
            tokio::time::sleep(SECOND / 20).await;
            assert!(now().since(began) < PATIENCE, "they stand still");
        }
    }
}

#[test]
fn a_service_that_is_written_as_the_example_loses_no_block_and_never_tries_in_a_hot_loop() {
    alone_with_shim(
        "example::a_service_that_is_written_as_the_example_loses_no_block_and_never_tries_in_a_hot_loop",
        |bench| async move { through_everything(bench).await },
    );
}

async fn through_everything(bench: Bench) {
    let mut settings = bench.settings();
    settings.call_timeout = SECOND;
    let token = Arc::new(Pkcs11Token::open(settings).await.unwrap());
    let store = Arc::new(Away::default());
    let settings =
        Settings::default().poll_interval(SECOND).store_timeout(SECOND).grace(6 * SECOND).aek_ttl(3 * SECOND);
    let engine = Engine::builder(token, store.clone()).settings(settings).build().unwrap();
    let kek = KekName::new("kek").unwrap();
    let made = engine.get_or_create_kek(&kek, KekOptions::new(Profile::AesGcm).destroyable()).await.unwrap();
    let account = engine.get_or_create_account(&AccountId::new("tenant").unwrap(), &kek).await.unwrap();
    let service = Service::new(engine.clone(), account);
    let operator = Operator::new(bench.open().await);
    let began = now();
    let writers = write_all_the_time(&service);
    writers.go_on().await;

    operator.disable(&made.id, Profile::AesGcm).await.unwrap();
    writers.stand_still().await;
    operator.enable(&made.id, Profile::AesGcm).await.unwrap();
    writers.go_on().await;

    bench.fail("* rv=0x30"); // CKR_DEVICE_ERROR
    writers.stand_still().await; // when grace is over
    bench.fail("");
    writers.go_on().await;

    store.1.store(true, Ordering::SeqCst);
    engine.wipe_now(&kek);
    writers.stand_still().await; // cold, and no record to warm it by
    store.1.store(false, Ordering::SeqCst);
    writers.go_on().await;

    // It ends in the midst of a revocation, with a block in each hand.
    operator.disable(&made.id, Profile::AesGcm).await.unwrap();
    writers.stand_still().await;
    let (refused, secs) = (service.refused(), now().since(began).as_secs());
    let closed = service.stop().await.unwrap();
    assert!(closed.is_clean(), "{closed:?}");
    (0..WRITERS).for_each(|_| writers.done.recv_timeout(PATIENCE).unwrap());
    // Twenty a second is the shortest pause that the example knows.
    println!("{MEASURED}{} blocks in {secs} s, {refused} tries refused", writers.written.load(Ordering::SeqCst));
    assert!(refused <= WRITERS * 20 * (secs + 1), "{refused} in {secs} s");

    operator.enable(&made.id, Profile::AesGcm).await.unwrap();
    let token = Arc::new(bench.open().await);
    let after = Engine::builder(token, store).build().unwrap();
    let account = after.account(&AccountId::new("tenant").unwrap()).await.unwrap();
    let given_back = writers.given_back.lock().unwrap().clone();
    assert_eq!(given_back.len() as u64, WRITERS);
    for place in 0..writers.next.load(Ordering::SeqCst) {
        match service.sealed(place) {
            Some(sealed) => assert_eq!(account.open_to_vec(place, &sealed).unwrap(), data(place)),
            None => assert!(given_back.contains(&place), "block {place} is lost"),
        }
    }
}
