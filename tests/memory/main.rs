//! Promise 6: after denial, lapse, eviction or drop no AEK and no round key of its schedule is left in the process's
//! memory; while it is there, it is in locked pages that are left out of core dumps and wiped on fork.
//!
//! The search goes through every writable mapping of the process. To know what to look for without keeping it in memory,
//! the test holds each AEK and its round keys inverted. One test at a time, because a search sees the whole process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // in tests

mod search;

use async_trait::async_trait;
use keyleash::{
    Account, Engine, Error,
    clock::{Clock, Instant, ManualClock},
    config::Settings,
    name::{AccountId, KekName},
    secret::Aek,
    store::{Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned, memory::MemoryStore},
    token::{
        Binding, KekHandle, KekId, KekInfo, KekSpec, Probe, Profile, Token, TokenError, TokenInfo, Workers, Wrapped,
        scripted::{Script, ScriptedToken},
    },
};
use search::Needle;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{Mutex as Turn, Notify};

/// Where one search reads to, another would find what it has just read.
static SEARCHING: Turn<()> = Turn::const_new(());

/// A token that remembers what it wrapped, inverted.
struct Witness {
    token: Arc<ScriptedToken>,
    wrapped: Mutex<Vec<Needle>>,
}

#[async_trait]
impl Token for Witness {
    async fn info(&self) -> Result<TokenInfo, TokenError> {
        self.token.info().await
    }
    async fn wrap(&self, kek: &KekHandle, aek: &Aek, binding: &Binding) -> Result<Wrapped, TokenError> {
        self.wrapped.lock().unwrap().push(Needle::of(aek.expose()));
        self.token.wrap(kek, aek, binding).await
    }
    async fn unwrap(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.token.unwrap(kek, wrapped, binding).await
    }
    async fn prove(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.token.prove(kek, wrapped, binding).await
    }
    async fn probe(&self, profile: Profile) -> Result<Probe, TokenError> {
        self.token.probe(profile).await
    }
    async fn create_kek(&self, spec: &KekSpec) -> Result<KekInfo, TokenError> {
        self.token.create_kek(spec).await
    }
    async fn find_kek(&self, id: &KekId) -> Result<Option<KekInfo>, TokenError> {
        self.token.find_kek(id).await
    }
    async fn list_keks(&self) -> Result<Vec<KekInfo>, TokenError> {
        self.token.list_keks().await
    }
    fn context_began(&self) -> Option<Instant> {
        self.token.context_began()
    }
    fn call_timeout(&self) -> Duration {
        self.token.call_timeout()
    }
    fn workers(&self) -> Workers {
        self.token.workers()
    }
}

/// A store whose creations wait while they are held up.
#[derive(Default)]
struct Held {
    inner: MemoryStore,
    is_held: Mutex<bool>,
    let_go: Notify,
}

#[async_trait]
impl KeyStore for Held {
    async fn get(&self, key: &Key) -> keyleash::Result<Option<Versioned>> {
        self.inner.get(key).await
    }
    async fn create(&self, key: &Key, put: Put) -> keyleash::Result<StoreVersion> {
        let is_held = matches!(key, Key::Account(_)) && *self.is_held.lock().unwrap();
        if is_held {
            self.let_go.notified().await;
        }
        self.inner.create(key, put).await
    }
    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> keyleash::Result<StoreVersion> {
        self.inner.replace(key, expected, put).await
    }
    async fn delete(&self, key: &Key, expected: &StoreVersion) -> keyleash::Result<()> {
        self.inner.delete(key, expected).await
    }
    async fn shred(&self, remains: Vec<Vec<u8>>) -> keyleash::Result<()> {
        self.inner.shred(remains).await
    }
    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> keyleash::Result<Page> {
        self.inner.list(filter, after, limit).await
    }
}

struct Rig {
    store: Arc<Held>,
    engine: Engine,
    witness: Arc<Witness>,
    script: Script,
    clock: ManualClock,
    kek: KekName,
    kek_id: KekId,
}

impl Rig {
    async fn new(settings: Settings) -> Self {
        let clock = ManualClock::new(Instant::from_nanos(1_000_000_000));
        let (token, script) = ScriptedToken::new(Clock::Manual(clock.clone()), settings.store_timeout, 3);
        let witness = Arc::new(Witness { token, wrapped: Mutex::default() });
        let store = Arc::<Held>::default();
        let engine = Engine::builder(witness.clone(), store.clone())
            .on_current_runtime()
            .settings(settings)
            .clock(Clock::Manual(clock.clone()))
            .build()
            .unwrap();
        let kek = KekName::new("kek").unwrap();
        let kek_id = engine.create_kek(&kek, Profile::AesGcm).await.unwrap().id;
        Self { store, engine, witness, script, clock, kek, kek_id }
    }

    /// Makes an account and uses it for blocks of many sizes.
    async fn account(&self, id: &str) -> Account {
        let account = self.engine.create_account(&AccountId::new(id).unwrap(), &self.kek).await.unwrap();
        for len in [0, 100, 4096, 100_000] {
            let mut buf = vec![1; len];
            let header = account.seal_in_place(1_u64, &mut buf).unwrap();
            account.open_in_place(1_u64, &header, &mut buf).unwrap();
            assert!(account.open_in_place(2_u64, &header, &mut buf).is_err());
        }
        account
    }

    async fn pass(&self, seconds: u64) {
        for _ in 0..seconds {
            self.clock.advance(Duration::from_secs(1));
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// The places where the `n`th wrapped AEK or a round key of it stands. The first is that of `create_kek`'s round trip.
    fn found(&self, n: usize) -> usize {
        self.witness.wrapped.lock().unwrap()[n].find()
    }
}

#[tokio::test]
async fn no_key_outlives_its_lease_eviction_or_handle_anywhere_in_memory() {
    let _turn = SEARCHING.lock().await;
    let rig = Rig::new(Settings::default()).await;
    assert_eq!(rig.found(0), 0, "the key of the KEK's round trip");

    let account = rig.account("denied").await;
    assert!(rig.found(1) > 0, "in use, so the search must find it: else it finds nothing ever");
    search::assert_locked_undumped_and_wiped_on_fork();

    rig.script.disable(&rig.kek_id);
    rig.pass(20).await;
    assert!(matches!(account.seal_in_place(1_u64, &mut [0; 9]), Err(Error::Denied(_))));
    assert_eq!(rig.found(1), 0, "after denial, with the handle still held");

    rig.script.enable(&rig.kek_id);
    rig.pass(20).await;
    assert!(rig.found(1) > 0, "resumed");
    rig.script.set_unreachable(true);
    rig.pass(31 * 60).await;
    assert!(matches!(account.seal_in_place(1_u64, &mut [0; 9]), Err(Error::Lapsed(_))));
    assert_eq!(rig.found(1), 0, "after the lapse");

    let rig = Rig::new(Settings::default()).await;
    let _polled = rig.account("polled").await;
    *rig.store.is_held.lock().unwrap() = true;
    let creation = tokio::spawn({
        let (engine, kek) = (rig.engine.clone(), rig.kek.clone());
        async move { engine.create_account(&AccountId::new("new").unwrap(), &kek).await }
    });
    rig.pass(1).await;
    assert!(rig.found(2) > 0 && !creation.is_finished(), "its record is being written");
    rig.script.disable(&rig.kek_id);
    rig.pass(20).await;
    assert!(!creation.is_finished());
    assert_eq!(rig.found(2), 0, "after denial, while its record is being written");
    rig.store.let_go.notify_waiters();
    assert!(matches!(creation.await.unwrap(), Err(Error::Denied(_))));

    let rig = Rig::new(Settings::default().max_cached_aeks(1)).await;
    let first = rig.account("evicted").await;
    let _second = rig.account("stays").await;
    rig.script.set_unreachable(false);
    rig.engine.status().await; // runs the index's maintenance
    assert!(matches!(first.seal_in_place(1_u64, &mut [0; 9]), Err(Error::Cold { .. })));
    assert_eq!(rig.found(1), 0, "after the eviction");
    assert!(rig.found(2) > 0);

    let Rig { engine, witness, .. } = rig;
    drop(engine);
    assert!(witness.wrapped.lock().unwrap()[2].find() > 0, "a handle still holds it");
    drop((first, _second));
    assert_eq!(witness.wrapped.lock().unwrap()[2].find(), 0, "after the last handle was dropped");
}

#[cfg(feature = "secrets")]
#[tokio::test]
async fn no_secret_stays_anywhere_in_memory_once_it_was_set_nor_once_what_was_given_out_is_dropped() {
    use keyleash::{
        name::{SecretId, SecretName},
        secret::fill_random,
        secrets::{SecretValue, SetOptions},
    };
    let _turn = SEARCHING.lock().await;
    let rig = Rig::new(Settings::default()).await;
    let _account = rig.account("a").await;
    let (secrets, name) = (rig.engine.secrets(), SecretName::new("n").unwrap());
    let id = SecretId::new(AccountId::new("a").unwrap(), name);
    let mut bytes = vec![0; search::VALUE_BYTES];
    fill_random(&mut bytes).unwrap();
    let needle = Needle::of_value(&bytes);
    assert!(needle.find() > 0, "there, so the search must find it: else it finds nothing ever");
    secrets.set(&id, SecretValue::new(bytes).unwrap(), SetOptions::default()).await.unwrap();
    assert_eq!(needle.find(), 0, "once it was set");
    let given = secrets.get(&id, None).await.unwrap();
    assert!(needle.find() > 0, "given out");
    drop(given);
    assert_eq!(needle.find(), 0, "once it was dropped");

    let refused = secrets.get(&id, Some(9)).await.unwrap_err();
    rig.engine.rotate_account(&id.account).await.unwrap();
    assert_eq!(secrets.reseal(&id.account).await.unwrap(), 1);
    assert_eq!(needle.find(), 0, "once it was resealed, {refused}");
}
