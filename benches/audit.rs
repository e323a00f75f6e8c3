//! Opens of blocks by a handle of an engine that keeps a trail, beside those without one, in turn; and of handles, of which each is a line.
//! Durable records a second of the trail, beside a bare loop that writes as many bytes in the same groups and syncs each with fdatasync.
//! Side by side in one run, on the file system of the target folder; the ratio is what counts. And how fast a trail is verified and
//! extracted by one thread, beside what SHA-256 alone makes of the same lines, one hash each, and what memory that takes of a trail, and of
//! one that is four times as long.
//!
//!     cargo bench --bench audit

// a benchmark that cannot go on must stop
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use async_trait::async_trait;
use common::pairs::Spread;
use keyleash::{
    Account, Engine, Result,
    audit::{
        self, Expected, Keys, Mac, Options, Request, Signer, Vkey, Writer, extract, key_name, line::Line,
        tree::leaf_hash, verify,
    },
    clock::{Clock, unix_now},
    name::{AccountId, CallerId, KekName, NodeName},
    store::{Key, KeyStore, memory::MemoryStore, record::StoreRecord},
    telemetry::trail::{Asker, Correlation, Deed, Noted, Outcome, Record, Trail},
    token::{Profile, scripted::ScriptedToken},
};
use std::{
    fs::{self, File},
    hint::black_box,
    io::{self, Write},
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use zeroize::Zeroizing;

/// Callers that wait for a record each, at once.
const CALLERS: u64 = 64;
/// Records of each in a round.
const RECORDS: u64 = 100;
/// Lines of a trail that is read, and how many of the longer one.
const LINES: u64 = 150_000;
const LONGER: u64 = 4 * LINES;
/// Accounts that they are of.
const ACCOUNTS: u64 = 1_000;
/// Records that are taken together where nobody waits: far from what the queue takes.
const BATCH: u64 = 4 * 1024;
/// Blocks that are opened in a round, and their bytes.
const BLOCKS: u64 = 20_000;
const BLOCK_BYTES: usize = 4096;
/// Handles that are opened in a round.
const HANDLES: u64 = 20_000;
/// Rounds of each side, in turn.
const ROUNDS: usize = 15;
const PATIENCE: Duration = Duration::from_secs(60);

/// No token: what it costs to sign is the token's, and nothing that is written waits for it.
#[derive(Debug)]
struct Memory(Zeroizing<Vec<u8>>, String);

#[async_trait]
impl Signer for Memory {
    fn vkey(&self) -> &str {
        &self.1
    }

    async fn sign(&self, text: &[u8]) -> Result<Vec<u8>> {
        self.0.mac(text).map(Into::into)
    }
}

fn record(number: u64) -> Record {
    let by = Asker::nobody(Correlation::random()).caller(Some(CallerId::new("web-frontend").unwrap()));
    let mut record = Record::new(unix_now() * 1000, Deed::AccountOpen, Outcome::Done, by);
    record.on.account = Some(AccountId::new(format!("tenant-{number}")).unwrap());
    record.took = Some(Duration::from_micros(1234));
    record
}

/// Seconds, and how often was synced.
async fn trail(directory: &Path, node: usize) -> (f64, u64) {
    let signer = Memory(Zeroizing::new(vec![7; 32]), Vkey::hmac("keyleash/bench", b"id").unwrap().to_string());
    let syncs = Arc::new(AtomicU64::new(0));
    let counted = syncs.clone();
    let hook = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let options = Options::new(directory, NodeName::new(format!("node-{node}")).unwrap()).before_sync(hook);
    let writer = Arc::new(Writer::open(options, Arc::new(MemoryStore::new()), Arc::new(signer)).await.unwrap());
    writer.write(record(0)).await.unwrap(); // the folders of the hour
    let (clock, before) = (Clock::default(), syncs.load(Ordering::Relaxed));
    let begin = clock.now();
    let callers = (0..CALLERS).map(|caller| {
        let writer = writer.clone();
        tokio::spawn(async move {
            for number in 0..RECORDS {
                writer.write(record(caller * RECORDS + number)).await.unwrap();
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    let (secs, syncs) = (clock.now().since(begin).as_secs_f64(), syncs.load(Ordering::Relaxed) - before);
    writer.close(PATIENCE).await.unwrap();
    (secs, syncs)
}

fn bare(directory: &Path, round: usize, groups: u64) -> f64 {
    let line = [Line::of(&record(CALLERS), 1_000).unwrap().encode().unwrap(), b"\n".to_vec()].concat();
    let mut file = File::create(directory.join(format!("bare-{round}"))).unwrap();
    file.write_all(&line).unwrap();
    file.sync_all().unwrap();
    let (clock, lines) = (Clock::default(), CALLERS * RECORDS);
    let begin = clock.now();
    let mut written = 0;
    for group in 1..=groups {
        let until = lines * group / groups;
        file.write_all(&line.repeat((until - written) as usize)).unwrap();
        file.sync_data().unwrap();
        written = until;
    }
    clock.now().since(begin).as_secs_f64()
}

/// A trail of so many lines of data.
async fn long(directory: &Path, lines: u64) -> (std::path::PathBuf, Expected) {
    let (store, id) = (MemoryStore::new(), [7; 8]);
    store.create(&Key::Store, StoreRecord { id }.put().unwrap()).await.unwrap();
    let (key, vkey) = (Zeroizing::new(vec![7; 32]), Vkey::hmac(&key_name(id), b"id").unwrap());
    let signer = Memory(key.clone(), vkey.to_string());
    let options = Options::new(directory, NodeName::new(format!("long-{lines}")).unwrap());
    let writer = Writer::open(options, Arc::new(store), Arc::new(signer)).await.unwrap();
    for batch in 0..lines.div_ceil(BATCH) {
        (batch * BATCH..lines.min((batch + 1) * BATCH))
            .for_each(|number| assert_eq!(writer.note(record(number % ACCOUNTS)), Noted::Taken));
        writer.flush().await.unwrap();
    }
    writer.close(PATIENCE).await.unwrap();
    (directory.join(format!("long-{lines}")), Expected::by(Keys::new().with_mac(vkey, Arc::new(key))))
}

/// An engine over a token in memory, with an account. It keeps a trail, or none.
async fn engine(trail: Option<Arc<Writer>>) -> (Engine, Account) {
    let (token, _) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 1);
    let builder = Engine::builder(token, Arc::new(MemoryStore::new()));
    let engine = trail.into_iter().fold(builder, |builder, trail| builder.trail(trail)).build().unwrap();
    let kek = KekName::new("kek").unwrap();
    engine.create_kek(&kek, Profile::AesGcm).await.unwrap();
    let account = engine.create_account(&AccountId::new("tenant-1").unwrap(), &kek).await.unwrap();
    (engine, account)
}

/// Blocks that are opened in a second.
fn blocks(account: &Account) -> f64 {
    let (mut sealed, mut plain) = (vec![7; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    let header = account.seal_in_place(1_u64, &mut sealed).unwrap();
    let clock = Clock::default();
    let begin = clock.now();
    for _ in 0..BLOCKS {
        account.open_into(1_u64, &header, &sealed, &mut plain).unwrap();
    }
    BLOCKS as f64 / clock.now().since(begin).as_secs_f64()
}

/// Handles that are opened in a second, whose key is in memory.
async fn handles(engine: &Engine, id: &AccountId) -> f64 {
    let clock = Clock::default();
    let begin = clock.now();
    for _ in 0..HANDLES {
        engine.account(id).await.unwrap();
    }
    HANDLES as f64 / clock.now().since(begin).as_secs_f64()
}

/// With a trail, against without: of blocks, and of handles, and how many handles a second that was.
async fn opens(directory: &Path) -> [Vec<f64>; 3] {
    let signer = Memory(Zeroizing::new(vec![7; 32]), Vkey::hmac("keyleash/bench", b"id").unwrap().to_string());
    let options = Options::new(directory, NodeName::new("opens").unwrap());
    let writer = Arc::new(Writer::open(options, Arc::new(MemoryStore::new()), Arc::new(signer)).await.unwrap());
    let (with, without) = (engine(Some(writer.clone())).await, engine(None).await);
    let mut ratios = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        ratios[0].push(blocks(&with.1) / blocks(&without.1));
        let (told, untold) = (handles(&with.0, with.1.id()).await, handles(&without.0, without.1.id()).await);
        ratios[1].push(told / untold);
        ratios[2].push(told);
        writer.flush().await.unwrap(); // the rest is nobody's in the next round
    }
    assert_eq!(writer.standing().unwrap().lost, 0);
    with.0.close(PATIENCE).await.unwrap();
    writer.close(PATIENCE).await.unwrap();
    ratios
}

/// KiB of memory that it takes at most, beyond what there is.
fn most_memory<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let status = |name: &str| {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    fs::write("/proc/self/clear_refs", "5").unwrap(); // the most from now on
    let before = status("VmRSS:");
    let done = work();
    (done, status("VmHWM:").saturating_sub(before))
}

/// What this thread had of a processor, in seconds: what else the machine does is not counted.
fn processor() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Verifies and extracts; MB in a second of the processor of both, and KiB.
fn read(node: &Path, expected: &Expected) -> ([f64; 2], [u64; 2]) {
    let begin = processor();
    let (report, verify_kib) = most_memory(|| verify(node, expected).unwrap());
    assert!(report.is_whole() && report.uncovered() == 0);
    let megabytes = report.bytes as f64 / 1e6;
    let verified = megabytes / (processor() - begin);
    let begin = processor();
    let request = Request::all(AccountId::new("tenant-7").unwrap());
    let (extracted, extract_kib) = most_memory(|| extract(node, &request, &mut io::sink()).unwrap());
    assert!(extracted.lines > 0);
    ([verified, megabytes / (processor() - begin)], [verify_kib, extract_kib])
}

/// MB in a second of the processor, of each line's SHA-256 alone.
fn hash(node: &Path) -> f64 {
    let mut lines = Vec::new();
    audit::read(node, &mut |line, _| {
        lines.push(line.to_vec());
        if lines.len() < BATCH as usize { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
    .unwrap();
    let begin = processor();
    for _ in 0..LINES / BATCH {
        for line in &lines {
            black_box(leaf_hash(line));
        }
    }
    let bytes = lines.iter().map(Vec::len).sum::<usize>() as u64 * (LINES / BATCH);
    bytes as f64 / 1e6 / (processor() - begin)
}

/// Leaves a row for `benches/report`, which sets `BENCH_REPORT_DIR`, and gives what is in the middle.
fn row(key: &str, values: Vec<f64>, note: &str) -> f64 {
    let Spread { low, median, high } = Spread::of(values);
    if let Some(report) = std::env::var_os("BENCH_REPORT_DIR") {
        let row = serde_json::json!({ "value": median, "low": low, "high": high, "note": note });
        let rows = Path::new(&report).join("rows");
        fs::create_dir_all(&rows).unwrap();
        fs::write(rows.join(format!("{key}.json")), row.to_string()).unwrap();
    }
    median
}

fn median(values: &[f64]) -> f64 {
    Spread::of(values.to_vec()).median
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let [of_blocks, of_handles, handles] = runtime.block_on(opens(directory.path()));
    let note = format!("of {BLOCK_BYTES} bytes, {BLOCKS} in each of {ROUNDS} rounds");
    println!("opens of blocks:{:>9.2} (target 0.90)", row("trail, opens", of_blocks, &note));
    let note = format!("{:.0} handles a second with it, a line each", median(&handles));
    println!("of handles:     {:>9.2}, {note}", row("trail, handles", of_handles, &note));
    let (mut ours, mut bares, mut groups) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (secs, syncs) = runtime.block_on(trail(directory.path(), round));
        bares.push((CALLERS * RECORDS) as f64 / bare(directory.path(), round, syncs));
        ours.push((CALLERS * RECORDS) as f64 / secs);
        groups.push((CALLERS * RECORDS) as f64 / syncs as f64);
    }
    let ratios = ours.iter().zip(&bares).map(|(ours, bare)| ours / bare).collect();
    println!("trail:          {:>9.0} durable records/s", median(&ours));
    println!("write+fdatasync {:>9.0} durable records/s, in the same groups of {:.0}", median(&bares), median(&groups));
    let note = format!("{:.0} records a second, {:.0} in a group", median(&ours), median(&groups));
    println!("ratio:          {:>9.2} (target 0.80)", row("trail", ratios, &note));
    let mut most = Vec::new();
    for lines in [LINES, LONGER] {
        let (node, expected) = runtime.block_on(long(directory.path(), lines));
        let rounds: Vec<_> = (0..ROUNDS / 3).map(|_| read(&node, &expected)).collect();
        let of = |which: usize| rounds.iter().map(|(speed, _)| speed[which]).collect();
        let hashed = median(&(0..ROUNDS / 3).map(|_| hash(&node)).collect::<Vec<_>>());
        let note = format!("{lines} lines of {ACCOUNTS} accounts; SHA-256 alone makes {hashed:.0} MB/s of them");
        println!("verify:         {:>9.0} MB/s (target 200) of {note}", row("trail, verify", of(0), &note));
        println!("extract:        {:>9.0} MB/s of {lines} lines", row("trail, extract", of(1), &note));
        most.push([0, 1].map(|which| rounds.iter().map(|(_, kib)| kib[which]).max().unwrap()));
        println!(
            "memory:         {:>9} KiB to verify, {} KiB to extract",
            most.last().unwrap()[0],
            most.last().unwrap()[1]
        );
    }
    let before = 1024; // what is not told apart from nothing
    let ratios = [0, 1].map(|which| (before + most[1][which]) as f64 / (before + most[0][which]) as f64);
    let note = format!("KiB to verify {} and {}, to extract {} and {}", most[0][0], most[1][0], most[0][1], most[1][1]);
    println!("memory, longer: {:>9.2} (target 1.10)", row("trail, memory", ratios.to_vec(), &note));
}
