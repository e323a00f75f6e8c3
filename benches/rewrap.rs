//! Re-wrap of many accounts on a real token, beside a bare loop of the same token calls (unwrap, wrap, unwrap) by the same workers,
//! and beside threads that make the same calls of the module with nothing of ours around them, in turns in one process; and the memory that it takes from 10 % to the end.
//!
//!     softhsm/with-token cargo bench --bench rewrap
//!     softhsm/with-token cargo bench --bench rewrap -- --accounts 100000
//!
//! `--workers N` (2 unless said otherwise) are the token's threads, and the module's, `--rounds N` (3) rotations are measured, `--directory D`
//! holds the store. Every 97th account is opened at the end, and the block that was sealed before the first rotation is compared.
//! The ratios go into the rows `rewrap N` and `rewrap N, module` of `benches/report`, which sets `BENCH_REPORT_DIR`.

// A benchmark that cannot go on must stop.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{
    bare::{self, Bare},
    counting::Counting,
    pairs::Spread,
    rig,
};
use keyleash::{
    Engine,
    block::BlockHeader,
    clock::Clock,
    name::{AccountId, KekName},
    rotate::RewrapOptions,
    store::{
        self,
        record::{binding, context},
        redb::RedbStore,
    },
    token::{KekHandle, Profile, Token},
};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::task::JoinSet;

/// Accounts that are made at once.
const MADE_AT_ONCE: usize = 512;
/// Calls in flight of the bare loop for each worker, so that none waits for the next.
const CALLS_IN_FLIGHT_PER_WORKER: usize = 8;
/// Faster than any token: the rate is not what is measured.
const RATE: u32 = 1_000_000_000;
const ADDRESS: u64 = 7;
const TARGET: f64 = 0.7;
const NANOS_PER_SEC: f64 = 1e9;

struct Arguments {
    accounts: usize,
    workers: usize,
    rounds: usize,
    directory: Option<PathBuf>,
}

fn arguments() -> Arguments {
    let mut found = Arguments { accounts: 10_000, workers: 2, rounds: 3, directory: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--accounts" => found.accounts = value().parse().unwrap(),
            "--workers" => found.workers = value().parse().unwrap(),
            "--rounds" => found.rounds = value().parse().unwrap(),
            "--directory" => found.directory = Some(value().into()),
            "--bench" => {} // cargo's
            other => panic!("no option {other}: see the top of benches/rewrap.rs"),
        }
    }
    found
}

/// Gives back to the system what is free, so that growth is seen.
#[allow(unsafe_code)] // glibc's own call
fn trim() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: glibc's; it takes any number and touches free memory alone.
    unsafe { malloc_trim(0) };
}

/// Resident memory of this process, in MiB.
fn resident_mib() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages as f64 * rustix::param::page_size() as f64 / (1 << 20) as f64
}

fn id(number: usize) -> AccountId {
    AccountId::new(format!("bench-{number:07}")).unwrap()
}

struct Bench {
    engine: Engine,
    token: Arc<Counting>,
    store: Arc<RedbStore>,
    kek: KekName,
    accounts: usize,
    workers: usize,
    clock: Clock,
}

impl Bench {
    async fn new(arguments: &Arguments, directory: &Path) -> Self {
        let token = rig::softhsm(arguments.workers).await;
        let store = Arc::new(RedbStore::open_or_create(directory.join("store.redb")).await.unwrap());
        let engine = Engine::builder(token.clone(), store.clone()).build().unwrap();
        let kek = KekName::new(format!("bench-{}", std::process::id())).unwrap();
        engine.create_kek(&kek, keyleash::KekOptions::new(Profile::AesGcm).destroyable()).await.unwrap();
        let (accounts, workers) = (arguments.accounts, arguments.workers);
        Self { engine, token, store, kek, accounts, workers, clock: Clock::default() }
    }

    /// Makes the accounts; gives the blocks that were sealed under some of them.
    async fn populate(&self) -> Vec<(usize, Vec<u8>)> {
        let (mut making, mut kept) = (JoinSet::new(), Vec::new());
        for number in 0..self.accounts {
            if making.len() >= MADE_AT_ONCE {
                kept.extend(making.join_next().await.unwrap().unwrap());
            }
            let (engine, kek) = (self.engine.clone(), self.kek.clone());
            making.spawn(async move {
                let account = engine.create_account(&id(number), &kek).await.unwrap();
                number
                    .is_multiple_of(97)
                    .then(|| (number, account.seal_to_vec(ADDRESS, id(number).as_str().as_bytes()).unwrap()))
            });
        }
        while let Some(made) = making.join_next().await {
            kept.extend(made.unwrap());
        }
        kept
    }

    /// As a process that was just started: no account is open, whose refresh and whose memory would be measured as well.
    fn restart(&mut self) {
        self.engine = Engine::builder(self.token.clone(), self.store.clone()).build().unwrap();
    }

    /// Seconds that a re-wrap of all takes, and the memory at 10 % and at its end.
    async fn rewrap(&self) -> (f64, f64, f64) {
        self.engine.rotate_kek(&self.kek).await.unwrap();
        trim();
        let tenth = std::sync::Mutex::new(None);
        let begun = self.clock.now();
        let options = RewrapOptions::new().rate(RATE);
        let progress = |progress: keyleash::rotate::RewrapProgress| {
            if progress.done * 10 == progress.accounts {
                *tenth.lock().unwrap() = Some(resident_mib());
            }
        };
        let report = self.engine.rewrap_kek(&self.kek, options, progress).await.unwrap();
        let secs = self.clock.now().since(begun).as_secs_f64();
        assert_eq!((report.accounts, report.failed, report.stopped), (self.accounts as u64, 0, None));
        let tenth = tenth.lock().unwrap().unwrap_or_default();
        (secs, tenth, resident_mib())
    }

    /// Seconds that the same token calls take, by the same workers, with no store and nothing verified.
    async fn calls(&self) -> f64 {
        let mut records = Vec::with_capacity(self.accounts);
        for number in 0..self.accounts {
            records.push(store::load_account(&*self.store, &id(number)).await.unwrap().unwrap().0);
        }
        let (records, next) = (Arc::new(records), Arc::new(AtomicUsize::new(0)));
        let begun = self.clock.now();
        let mut loops = JoinSet::new();
        for _ in 0..self.workers * CALLS_IN_FLIGHT_PER_WORKER {
            let (records, next, token) = (records.clone(), next.clone(), self.token.clone());
            loops.spawn(async move {
                while let Some(record) = records.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let old = record.current().unwrap();
                    let kek = KekHandle { id: old.kek_id.clone(), profile: old.profile };
                    let binding = binding(&context(&old.kek, &record.account, old.aek_version));
                    let aek = token.unwrap(&kek, &old.wrapped, &binding).await.unwrap();
                    let wrapped = token.wrap(&kek, &aek, &binding).await.unwrap();
                    token.unwrap(&kek, &wrapped, &binding).await.unwrap();
                }
            });
        }
        while let Some(done) = loops.join_next().await {
            done.unwrap();
        }
        self.clock.now().since(begun).as_secs_f64()
    }

    /// Seconds that the same calls of the module take with nothing around them.
    async fn module(&self) -> f64 {
        let ids: Vec<_> = (0..self.accounts).map(id).collect();
        let (kek, samples) = bare::samples(&*self.store, &ids).await;
        let workers = self.workers;
        // Its sessions are closed when it is dropped: the re-wrap is not to find the login kept by others.
        let loops = move || Bare::open(&kek, workers).unwrap().rewrap(&samples);
        tokio::task::spawn_blocking(loops).await.unwrap() / NANOS_PER_SEC
    }

    async fn verify(&self, kept: &[(usize, Vec<u8>)]) {
        for (number, block) in kept {
            let account = self.engine.account(&id(*number)).await.unwrap();
            let (header, ciphertext) = BlockHeader::split(block).unwrap();
            let mut plaintext = ciphertext.to_vec();
            account.open(ADDRESS, &header, &mut plaintext).await.unwrap();
            assert_eq!(plaintext, id(*number).as_str().as_bytes());
        }
    }
}

async fn run() {
    let arguments = arguments();
    let own = tempfile::tempdir().unwrap();
    let directory = arguments.directory.clone().unwrap_or_else(|| own.path().to_owned());
    let mut bench = Bench::new(&arguments, &directory).await;
    let kept = bench.populate().await;
    bench.restart();
    let Arguments { accounts, workers, rounds, .. } = arguments;
    println!("re-wrap of {accounts} accounts, SoftHSM, {workers} workers, {rounds} rounds");
    let (mut against_calls, mut against_module, mut resident) = (Vec::new(), Vec::new(), String::new());
    for round in 1..=rounds {
        let (calls, module) = (bench.calls().await, bench.module().await);
        let (rewrap, tenth, end) = bench.rewrap().await;
        resident = format!("resident {tenth:.0} MiB at 10 %, {end:.0} MiB at the end");
        let rate = |secs: f64| accounts as f64 / secs;
        println!(
            "round {round}: re-wrap {:.0} accounts/s, token calls {:.0}/s, ratio {:.2}, module {:.0}/s, ratio {:.2}; {resident}",
            rate(rewrap),
            rate(calls),
            calls / rewrap,
            rate(module),
            module / rewrap
        );
        against_calls.push(calls / rewrap);
        against_module.push(module / rewrap);
    }
    bench.verify(&kept).await;
    let note = format!("{accounts} accounts, {rounds} rounds; {resident} of the last one");
    let (against_calls, against_module) = (Spread::of(against_calls), Spread::of(against_module));
    leave_row(&format!("rewrap {workers}"), against_calls, &note);
    leave_row(&format!("rewrap {workers}, module"), against_module, &format!("{accounts} accounts, {rounds} rounds"));
    println!(
        "median: against the token calls {:.2} (target {TARGET}), against the module {:.2}; {} blocks verified",
        against_calls.median,
        against_module.median,
        kept.len()
    );
}

/// Leaves a row for `benches/report`.
fn leave_row(key: &str, ratios: Spread, note: &str) {
    let Some(report) = std::env::var_os("BENCH_REPORT_DIR") else { return };
    let Spread { low, median, high } = ratios;
    let row = serde_json::json!({ "value": median, "low": low, "high": high, "note": note });
    let rows = Path::new(&report).join("rows");
    std::fs::create_dir_all(&rows).unwrap();
    std::fs::write(rows.join(format!("{key}.json")), row.to_string()).unwrap();
}

fn main() {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(run());
}
