//! Durable records a second of the trail, beside a bare loop that writes as many bytes in the same groups and syncs each with fdatasync.
//! Side by side in one run, on the file system of the target folder; the ratio is what counts.
//!
//!     cargo bench --bench audit

// a benchmark that cannot go on must stop
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use async_trait::async_trait;
use keyleash::{
    Result,
    audit::{Mac, Options, Signer, Vkey, Writer, line::Line},
    clock::{Clock, unix_now},
    name::{AccountId, CallerId, NodeName},
    store::memory::MemoryStore,
    telemetry::trail::{Asker, Correlation, Deed, Outcome, Record, Trail},
};
use std::{
    fs::File,
    io::Write,
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
    let line = [Line::of(&record(CALLERS), 1_000).encode().unwrap(), b"\n".to_vec()].concat();
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (mut ours, mut bares, mut groups) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (secs, syncs) = runtime.block_on(trail(directory.path(), round));
        bares.push((CALLERS * RECORDS) as f64 / bare(directory.path(), round, syncs));
        ours.push((CALLERS * RECORDS) as f64 / secs);
        groups.push((CALLERS * RECORDS) as f64 / syncs as f64);
    }
    let ratios = ours.iter().zip(&bares).map(|(ours, bare)| ours / bare).collect();
    println!("trail:          {:>9.0} durable records/s", median(ours));
    println!("write+fdatasync {:>9.0} durable records/s, in the same groups of {:.0}", median(bares), median(groups));
    println!("ratio:          {:>9.2} (target 0.80)", median(ratios));
}
