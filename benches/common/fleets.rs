//! Many accounts in a store, which engines open: cold, all at once, and until a million are in memory.

use super::{
    counting::Counting,
    pairs::thread_cpu,
    rig::{account_id, kek_name},
};
use keyleash::{
    Account, Engine, Error,
    clock::{Clock, Instant},
    config::Settings,
    engine::PolicySource,
    name::{AccountId, KekName},
    store::{self, memory::MemoryStore},
    token::{Profile, scripted::Script},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::{
    hint::black_box,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// While accounts are made no more than these stay in memory: what is measured later begins with little.
const CACHED_WHILE_MADE: u64 = 1_000;
/// Accounts that are opened one after the other by one task each, where all are only to be opened.
const OPENERS: usize = 64;
/// A denied KEK is asked for at most once in a second.
const RETRY: Duration = Duration::from_millis(100);

/// See the module's page.
pub(crate) struct Fleet {
    pub(crate) token: Arc<Counting>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) clock: Clock,
}

/// How opens went.
pub(crate) struct Opened {
    /// From the first request to the last answer.
    pub(crate) ns: f64,
    /// Of each open, in nanoseconds, in ascending order.
    pub(crate) latencies_ns: Vec<f64>,
    /// Unwraps that the token was asked for.
    pub(crate) unwraps: u64,
    /// The handles, in no order.
    pub(crate) accounts: Vec<Account>,
}

impl Fleet {
    pub(crate) fn new(token: Arc<Counting>, clock: Clock) -> Self {
        Self { token, store: Arc::new(MemoryStore::new()), clock }
    }

    /// An engine with nothing in memory. Needs a runtime around it.
    pub(crate) fn engine(&self) -> Engine {
        self.engine_with(Settings::default(), self.clock.clone())
    }

    /// The same, on another clock.
    pub(crate) fn engine_on(&self, clock: Clock) -> Engine {
        self.engine_with(Settings::default(), clock)
    }

    /// An engine with nothing in memory, under these grants.
    pub(crate) fn engine_under(&self, policy: PolicySource) -> Engine {
        let engine = Engine::builder(self.token.clone(), self.store.clone()).clock(self.clock.clone());
        engine.start_up_proof(false).jitter_seed(super::rig::SEED).policy(policy).build().expect("an engine")
    }

    fn engine_with(&self, settings: Settings, clock: Clock) -> Engine {
        let engine = Engine::builder(self.token.clone(), self.store.clone()).settings(settings).clock(clock);
        engine.start_up_proof(false).jitter_seed(super::rig::SEED).build().expect("an engine")
    }

    /// Makes a KEK and the accounts with these numbers under it.
    pub(crate) async fn create(&self, kek: &str, numbers: Range<usize>) -> Vec<AccountId> {
        let engine = self.engine_with(Settings::default().max_cached_aeks(CACHED_WHILE_MADE), self.clock.clone());
        let kek: KekName = kek_name(kek);
        engine.create_kek(&kek, Profile::AesGcm).await.expect("a KEK");
        let ids: Vec<_> = numbers.map(account_id).collect();
        for id in &ids {
            engine.create_account(id, &kek).await.expect("an account");
        }
        ids
    }

    /// Opens accounts, `at_once` at a time, each by a task that waits for it. When all are opened at once, each one's latency
    /// counts from the first request: so long its caller waits.
    pub(crate) async fn open(&self, engine: &Engine, ids: &[AccountId], at_once: usize) -> Opened {
        let (ids, next) = (Arc::<[AccountId]>::from(ids), Arc::new(AtomicUsize::new(0)));
        let asked = self.token.unwraps();
        let start = self.clock.now();
        let all_at_once = (at_once >= ids.len()).then_some(start);
        let tasks: Vec<_> = (0..at_once.min(ids.len()))
            .map(|_| {
                let (ids, next, engine, clock) = (ids.clone(), next.clone(), engine.clone(), self.clock.clone());
                tokio::spawn(open_some(engine, ids, next, clock, all_at_once))
            })
            .collect();
        let (mut latencies_ns, mut accounts) = (Vec::with_capacity(ids.len()), Vec::with_capacity(ids.len()));
        for task in tasks {
            let opened = task.await.expect("a task that opens accounts");
            opened.into_iter().for_each(|(ns, account)| {
                latencies_ns.push(ns);
                accounts.push(account);
            });
        }
        let ns = self.clock.now().since(start).as_nanos() as f64;
        latencies_ns.sort_by(f64::total_cmp);
        Opened { ns, latencies_ns, unwraps: self.token.unwraps() - asked, accounts }
    }

    /// Brings accounts into an engine's memory.
    pub(crate) async fn warm(&self, engine: &Engine, ids: &[AccountId]) -> Vec<Account> {
        self.open(engine, ids, OPENERS).await.accounts
    }

    /// Lets the token deny a KEK from now on, or serve it again.
    pub(crate) async fn set_enabled(&self, script: &Script, kek: &str, enabled: bool) {
        let (record, _) = store::load_kek(&*self.store, &kek_name(kek)).await.expect("a record").expect("a KEK");
        let id = &record.current().expect("a KEK version").id;
        if enabled { script.enable(id) } else { script.disable(id) }
    }

    /// How long it takes a denial to empty and wipe every slot of a KEK that is disabled: from the question that the token
    /// denies to the answer that says so. `cold` is an account of that KEK that has no slot yet.
    pub(crate) async fn deny(&self, engine: &Engine, cold: &AccountId) -> Duration {
        let start = self.clock.now();
        match engine.account(cold).await {
            Err(Error::Denied(_)) => self.clock.now().since(start),
            other => panic!("a disabled KEK gives {other:?}"),
        }
    }

    /// Brings back into memory what a denial wiped: the KEK is enabled, and its lease goes on.
    pub(crate) async fn restore(&self, engine: &Engine, ids: &[AccountId]) -> Vec<Account> {
        let first = ids.first().expect("an account");
        while engine.account(first).await.is_err() {
            tokio::time::sleep(RETRY).await;
        }
        self.warm(engine, ids).await
    }
}

async fn open_some(
    engine: Engine,
    ids: Arc<[AccountId]>,
    next: Arc<AtomicUsize>,
    clock: Clock,
    asked: Option<Instant>,
) -> Vec<(f64, Account)> {
    let mut opened = Vec::new();
    while let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
        let asked = asked.unwrap_or_else(|| clock.now());
        // As a service has it: out of a request, not shared with whoever made the accounts.
        let id = AccountId::new(id.as_str()).expect("an account id");
        let account = engine.account(&id).await.expect("an account");
        opened.push((clock.now().since(asked).as_nanos() as f64, account));
    }
    opened
}

/// This process's resident memory, in bytes.
pub(crate) fn resident_bytes() -> u64 {
    const PAGE_BYTES: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("resident pages");
    pages * PAGE_BYTES
}

/// Look-ups of accounts that are in memory, in random order. The ids are where a service has just put them, in its cache; the
/// accounts are wherever a million of them are.
pub(crate) struct LookUps {
    ids: Vec<AccountId>,
    random: StdRng,
    batch: Vec<AccountId>,
}

impl LookUps {
    /// Ids that are looked up between two looks at the clock: few enough to be in the processor's cache.
    pub(crate) const BATCH: usize = 256;

    pub(crate) fn new(ids: &[AccountId]) -> Self {
        Self { ids: ids.to_vec(), random: StdRng::seed_from_u64(super::rig::SEED), batch: Vec::new() }
    }

    /// Processor time of one batch, in nanoseconds.
    pub(crate) async fn batch_ns(&mut self, engine: &Engine) -> f64 {
        self.batch.clear();
        for _ in 0..Self::BATCH {
            let id = &self.ids[self.random.next_u64() as usize % self.ids.len()];
            self.batch.push(AccountId::new(id.as_str()).expect("an account id"));
        }
        let start = thread_cpu();
        for id in &self.batch {
            black_box(engine.account(id).await.expect("an account"));
        }
        thread_cpu().saturating_sub(start).as_nanos() as f64
    }
}
