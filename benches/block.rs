//! Seals and opens through the whole data path (lease check, nonce, derivation, AEAD), beside the raw limit in the same
//! group: aws-lc-rs with a fresh key for each block, and with one fixed key.
//!
//!     cargo bench --bench block
//!
//! Groups are named after what is done, threads and size: `cargo bench --bench block -- 'seal in place, 4096 B'`. These are curves
//! for whoever works on the path; ratios that hold on a noisy machine are measured by `benches/report`.

// criterion's macros; and a benchmark that cannot go on must stop
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{
    blocks::{Buffers, Raw, Work, our_side, raw_sealing, raw_side, sealing},
    pairs::{Side, together_ns},
    rig,
};
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use keyleash::{
    Account,
    block::{Backend, Suite},
};
use std::time::Duration;

const SIZES: [usize; 5] = [512, 4096, 16_384, 65_536, 1 << 20];
const SUITES: [Suite; 2] = [Suite::XaesGcm, Suite::XaesGcmCommit];
/// Criterion's 3 s and 5 s would take an hour for all of it.
const WARM_UP: Duration = Duration::from_millis(300);
const MEASURED: Duration = Duration::from_secs(1);

fn group<'a>(criterion: &'a mut Criterion, name: &str, bytes: usize) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(bytes as u64)).warm_up_time(WARM_UP).measurement_time(MEASURED);
    group
}

fn one_thread(criterion: &mut Criterion) {
    let runtime = rig::runtime();
    let mut accounts: Vec<(String, Account)> = Vec::new();
    for &backend in Backend::available() {
        for suite in SUITES {
            let name = format!("keyleash, {backend}, suite {}", suite as u8);
            accounts
                .extend(runtime.block_on(rig::accounts(backend, suite, 1)).into_iter().map(|one| (name.clone(), one)));
        }
    }
    for work in Work::ALL {
        for size in SIZES {
            let mut buffers = Buffers::new(size, accounts.len());
            let mut sides = Vec::new();
            for (sealer, (name, account)) in accounts.iter().enumerate() {
                let header = buffers.seal_for(account, sealer);
                sides.push(our_side(name, account, (sealer, header), work));
            }
            sides.extend([Raw::FreshKey, Raw::FixedKey].map(|raw| raw_side(raw, work, &mut buffers)));
            let mut group = group(criterion, &format!("{}, {size} B", work.name()), size);
            for side in &mut sides {
                group.bench_function(side.name.clone(), |bench| bench.iter(|| side.call(&mut buffers)));
            }
        }
    }
}

/// Both threads' blocks count: twice the throughput of one thread is what two can have at most.
fn two_threads(criterion: &mut Criterion) {
    const THREADS: usize = 2;
    let runtime = rig::runtime();
    let accounts = runtime.block_on(rig::accounts(Backend::default(), Suite::XaesGcm, THREADS));
    for size in SIZES {
        let mut group = group(criterion, &format!("seal in place on {THREADS} threads, {size} B"), THREADS * size);
        let mut run = |name: &str, works: &mut Vec<(Side<'_, Buffers>, Buffers)>| {
            group.bench_function(name, |bench| {
                bench.iter_custom(|calls| Duration::from_nanos(together_ns(calls, works) as u64));
            });
        };
        run("keyleash, one account", &mut (0..THREADS).map(|_| sealing(&accounts[0], size)).collect());
        run("keyleash, an account each", &mut accounts.iter().map(|account| sealing(account, size)).collect());
        let raw = || raw_sealing(Raw::FreshKey, size);
        run("aws-lc-rs, fresh key", &mut (0..THREADS).map(|_| raw()).collect());
    }
}

criterion_group!(benches, one_thread, two_threads);
criterion_main!(benches);
