//! Rotation beside a load, with a store that holds writes up, loses answers and reads late, and clocks that differ by hours; and two
//! stores on one token.

use crate::together::{Sealers, assert_all_open, engine, id, settings, token};
use async_trait::async_trait;
use keyleash::{
    Engine, Error, Result,
    clock::{Clock, Instant, ManualClock},
    name::{KekName, KekVersion},
    rotate::RewrapOptions,
    store::{Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned, redb::RedbStore},
    token::Profile,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

const HELD_MS_MAX: u64 = 400;
const HOUR: u64 = 60 * 60;

/// A store whose calls are held up, before they are done or after, and whose answers are lost.
struct Faulty {
    inner: Arc<dyn KeyStore>,
    rng: Mutex<StdRng>,
    lost: AtomicU64,
    held: AtomicU64,
}

impl Faulty {
    fn over(inner: Arc<dyn KeyStore>, seed: u64) -> Arc<Self> {
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        Arc::new(Self { inner, rng, lost: AtomicU64::new(0), held: AtomicU64::new(0) })
    }

    fn one_in(&self, many: u32) -> bool {
        self.rng.lock().unwrap().random_range(0..many) == 0
    }

    async fn hold(&self) {
        if self.one_in(6) {
            self.held.fetch_add(1, Ordering::SeqCst);
            let held_ms = self.rng.lock().unwrap().random_range(1..HELD_MS_MAX);
            tokio::time::sleep(Duration::from_millis(held_ms)).await;
        }
    }

    fn answer<T>(&self, answer: Result<T>) -> Result<T> {
        if !self.one_in(8) {
            return answer;
        }
        self.lost.fetch_add(1, Ordering::SeqCst);
        Err(Error::Store("the answer was lost".into()))
    }
}

#[async_trait]
impl KeyStore for Faulty {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        let read = self.inner.get(key).await;
        self.hold().await; // what was read is old when it arrives
        read
    }

    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        self.hold().await;
        self.answer(self.inner.create(key, put).await)
    }

    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
        self.hold().await;
        self.answer(self.inner.replace(key, expected, put).await)
    }

    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
        self.hold().await;
        self.answer(self.inner.delete(key, expected).await)
    }

    async fn shred(&self, traces: Vec<Vec<u8>>) -> Result<()> {
        self.inner.shred(traces).await
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        self.inner.list(filter, after, limit).await
    }
}

/// Until it is acknowledged, or somebody else was there first.
async fn at_last<T>(mut attempt: impl AsyncFnMut() -> Result<T>) -> Option<T> {
    for _ in 0..200 {
        match attempt().await {
            Ok(done) => return Some(done),
            Err(Error::Store(_)) => {}
            Err(Error::Conflict(_) | Error::Exists(_)) => return None,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the store never acknowledged it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotators_whose_store_holds_writes_up_and_loses_answers_and_whose_clocks_differ_lose_no_block() {
    const ACCOUNTS: usize = 8;
    const ROUNDS: u32 = 3;
    let directory = tempfile::tempdir().unwrap();
    let token = token().await;
    let store: Arc<dyn KeyStore> =
        Arc::new(RedbStore::open_or_create(directory.path().join("store.redb")).await.unwrap());
    let served = engine(&token, store.clone());
    let kek = KekName::new(format!("faults-{}", std::process::id())).unwrap();
    served.create_kek(&kek, keyleash::KekOptions::new(Profile::AesGcm).destroyable()).await.unwrap();
    for number in 0..ACCOUNTS {
        served.create_account(&id(number), &kek).await.unwrap();
    }
    let sealers = Sealers::start(&served, ACCOUNTS).await;

    // The rotators' time goes on as this machine's does, on machines of their own.
    let time = ManualClock::new(Instant::from_nanos(Clock::default().now().as_nanos()));
    let ticks = Arc::new(AtomicBool::new(true));
    let ticker = std::thread::spawn({
        let (time, ticks) = (time.clone(), ticks.clone());
        move || {
            while ticks.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
                time.advance(Duration::from_millis(5));
            }
        }
    });
    let right = Clock::default().wall_unix();
    let rotator = |wall: u64, seed: u64| {
        let faulty = Faulty::over(store.clone(), seed);
        let clock = Clock::Manual(time.elsewhere().with_wall(wall));
        let engine = Engine::builder(token.clone(), faulty.clone()).settings(settings()).clock(clock).build().unwrap();
        (engine, faulty)
    };
    let rotators = [rotator(right - 2 * HOUR, 1), rotator(right + 2 * HOUR, 2)];
    let options = RewrapOptions::new().rate(1_000_000);
    let rotate = async |first: usize, engine: &Engine| {
        for _ in 0..ROUNDS {
            at_last(async || engine.rotate_kek(&kek).await).await;
            at_last(async || {
                let report = engine.rewrap_kek(&kek, options, |_| {}).await?;
                report.stopped.or(report.failures.into_iter().map(|one| one.error).next()).map_or(Ok(()), Err)
            })
            .await;
            for number in (first..ACCOUNTS).step_by(2) {
                let rotated = at_last(async || engine.rotate_account(&id(number)).await).await;
                // By no clock is the version before old enough, while others seal under it.
                let before = rotated.unwrap() - 1;
                let refused =
                    at_last(async || match engine.retire_aeks(&id(number), &[before], keyleash::When::Due).await {
                        Err(Error::Invalid(why)) => Ok(why),
                        Err(error) => Err(error),
                        Ok(()) => panic!("AEK version {before} of {} was retired at once", id(number)),
                    });
                assert!(refused.await.is_some_and(|why| why.contains("may still seal")));
            }
        }
    };
    tokio::join!(rotate(0, &rotators[0].0), rotate(1, &rotators[1].0));
    let report = served.rewrap_kek(&kek, options, |_| {}).await.unwrap();
    assert_eq!((report.failed, report.stopped), (0, None));
    let (engine_two, _) = &rotators[1];
    let versions = served.kek(&kek).await.unwrap().versions;
    for old in versions.iter().filter(|version| !version.current) {
        let old = KekVersion::new(kek.clone(), old.record.version);
        at_last(async || engine_two.retire_kek(&old).await).await;
        assert_eq!(served.count_wrapped_by(&old).await.unwrap(), 0, "{old} was retired");
    }
    let kept = sealers.stop();
    let (lost, held) = rotators.iter().fold((0, 0), |(lost, held), (_, faulty)| {
        (lost + faulty.lost.load(Ordering::SeqCst), held + faulty.held.load(Ordering::SeqCst))
    });
    println!("{lost} answers lost, {held} calls held up, {} KEK versions", versions.len());
    assert!(lost > 0 && held > 0);
    drop(rotators);
    ticks.store(false, Ordering::SeqCst);
    ticker.join().unwrap();
    assert_all_open(&engine(&token, store), &kept).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stores_on_one_token_with_one_name_for_their_keks_have_no_key_in_common() {
    const ROUNDS: u32 = 3;
    let directory = tempfile::tempdir().unwrap();
    let token = token().await;
    let kek = KekName::new(format!("two-{}", std::process::id())).unwrap();
    let mut shops = Vec::new();
    for name in ["one", "two"] {
        let store = Arc::new(RedbStore::open_or_create(directory.path().join(name)).await.unwrap());
        let (engine, kek) = (engine(&token, store), kek.clone());
        shops.push(tokio::spawn(async move {
            engine.create_kek(&kek, keyleash::KekOptions::new(Profile::AesGcm).destroyable()).await.unwrap();
            let account = engine.create_account(&id(0), &kek).await.unwrap();
            let block = account.seal_to_vec(1_u64, b"data").unwrap();
            for _ in 0..ROUNDS {
                let made = engine.rotate_kek(&kek).await.unwrap();
                let report = engine.rewrap_kek(&kek, RewrapOptions::default(), |_| {}).await.unwrap();
                assert_eq!((report.failed, report.stopped), (0, None));
                tokio::time::sleep(2 * settings().poll_interval).await; // its own keys follow
                engine.retire_kek(&KekVersion::new(kek.clone(), made.version - 1)).await.unwrap();
            }
            account.warm().await.unwrap();
            assert_eq!(account.open_to_vec(1_u64, &block).unwrap(), b"data");
            let keys = engine.kek(&kek).await.unwrap().versions;
            keys.into_iter().map(|version| version.record.id.to_string()).collect::<BTreeSet<_>>()
        }));
    }
    let mut all = BTreeSet::new();
    for shop in shops {
        let keys = shop.await.unwrap();
        assert_eq!(keys.len(), ROUNDS as usize + 1);
        assert!(keys.iter().all(|key| all.insert(key.clone())), "both stores have one of {keys:?}");
    }
}
