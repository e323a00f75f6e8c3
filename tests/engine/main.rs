//! The engine over the scripted token and the memory store, on a manual clock: what callers see.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // in tests

mod admission;
mod close;
mod counts;
mod crowd;
mod dates;
mod delete;
mod denial;
mod feed;
mod fresh;
mod grants;
mod hand;
mod held;
mod impostor;
mod lasting;
mod leash;
mod memlock;
mod moved;
mod once;
mod open;
mod outage;
mod queue;
mod race;
mod reading;
mod room;
mod rotate;
mod schedule;
#[cfg(feature = "secrets")]
mod secrets;
#[cfg(feature = "secrets")]
mod secrets_races;
mod standby;
mod start_up;
mod storm;
mod stuck;
mod tamper;
mod tokens;
mod trail;
mod trail_lost;
mod twice;
mod usage;
mod vouch;
mod witness;

use keyleash::{
    Account, Engine,
    block::{BlockHeader, Suite},
    clock::{Clock, Instant, ManualClock},
    config::Settings,
    name::{AccountId, KekName},
    store::{Key, KeyStore, Put, memory::MemoryStore, record::WrappedAek},
    token::{
        KekId, Profile, Token,
        scripted::{Script, ScriptedToken},
    },
};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;

/// An engine whose time and token a test holds in its hands.
struct Rig {
    engine: Engine,
    clock: ManualClock,
    script: Script,
    store: Arc<MemoryStore>,
    token: Arc<ScriptedToken>,
    kek: KekName,
    kek_id: KekId,
}

const SECOND: Duration = Duration::from_secs(1);

fn seal(account: &Account) -> keyleash::Result<()> {
    account.seal_in_place(1_u64, &mut [0; 64]).map(drop)
}

impl Rig {
    async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    async fn with(settings: Settings) -> Self {
        let clock = ManualClock::new(Instant::from_nanos(1_000_000_000));
        let (token, script) = ScriptedToken::new(Clock::Manual(clock.clone()), settings.store_timeout, 7);
        let store = Arc::new(MemoryStore::new());
        let engine = build(&token, &store, &clock, settings);
        let kek = KekName::new("kek").unwrap();
        let kek_id = engine.create_kek(&kek, Profile::AesGcm).await.unwrap().id;
        Self { engine, clock, script, store, token, kek, kek_id }
    }

    /// The same token and store after the process was started again.
    fn restart(&mut self) {
        self.engine = build(&self.token, &self.store, &self.clock, Settings::default());
    }

    /// The label of that version of the KEK, as keyleash makes it.
    async fn label(&self, version: u32) -> String {
        let made = self.token.list_keks().await.unwrap().into_iter().find(|info| info.id == self.kek_id).unwrap().label;
        made.replace("/1@", &format!("/{version}@"))
    }

    async fn account(&self, id: &str) -> Account {
        self.engine.create_account(&account_id(id), &self.kek).await.unwrap()
    }

    /// What comes of `work`, while time goes by.
    async fn meanwhile<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                outcome = &mut work => return outcome,
                () = self.pass(SECOND / 4) => {}
            }
        }
    }

    /// Damages the check value of an AEK version in the store; repairs it the second time.
    async fn flip_check(&self, id: &str, aek_version: u32) {
        self.damage(id, aek_version, |aek| aek.check[0] ^= 1).await;
    }

    /// The same of its wrapping, which the token then refuses.
    async fn flip_wrapping(&self, id: &str, aek_version: u32) {
        self.damage(id, aek_version, |aek| aek.wrapped.bytes[0] ^= 1).await;
    }

    async fn damage(&self, id: &str, aek_version: u32, damage: impl FnMut(&mut WrappedAek)) {
        let mut record = self.engine.account_record(&account_id(id)).await.unwrap();
        record.versions.iter_mut().filter(|one| one.aek_version == aek_version).for_each(damage);
        let key = Key::Account(record.account.clone());
        let version = self.store.get(&key).await.unwrap().unwrap().version;
        let put = Put { value: record.encode().unwrap(), wrapped_by: record.wrapped_by(), guards: Vec::new() };
        self.store.replace(&key, &version, put).await.unwrap();
    }

    /// Moves the clock on in small steps and lets every task run in between.
    async fn pass(&self, time: Duration) {
        self.pass_by(time, Duration::from_millis(250)).await;
    }

    async fn pass_by(&self, time: Duration, step: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let now = step.min(left);
            self.clock.advance(now);
            left -= now;
            settle().await;
        }
    }
}

fn build(token: &Arc<ScriptedToken>, store: &Arc<MemoryStore>, clock: &ManualClock, settings: Settings) -> Engine {
    Engine::builder(token.clone(), store.clone())
        .on_current_runtime()
        .settings(settings)
        .clock(Clock::Manual(clock.clone()))
        .jitter_seed(1)
        .start_up_proof(false) // so that a test counts its own calls
        .build()
        .unwrap()
}

/// Another engine over the same token and store, which seals in a suite of its own.
fn of_suite(rig: &Rig, suite: Suite) -> Engine {
    Engine::builder(rig.token.clone(), rig.store.clone())
        .on_current_runtime()
        .clock(Clock::Manual(rig.clock.clone()))
        .jitter_seed(2)
        .start_up_proof(false)
        .suite(suite)
        .build()
        .unwrap()
}

fn account_id(id: &str) -> AccountId {
    AccountId::new(id).unwrap()
}

/// An opening under way.
fn open(engine: &Engine, id: &str) -> JoinHandle<keyleash::Result<Account>> {
    let (engine, id) = (engine.clone(), account_id(id));
    tokio::spawn(async move { engine.account(&id).await })
}

/// Opens what was sealed to a vector, with a warm where that takes one.
async fn opens(rig: &Rig, account: &Account, block: &[u8]) {
    let (header, ciphertext) = BlockHeader::split(block).unwrap();
    let mut plaintext = ciphertext.to_vec();
    rig.meanwhile(account.open(1_u64, &header, &mut plaintext)).await.unwrap();
    assert_eq!(plaintext, b"data");
}

/// Lets every task that can run, run.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
