//! Cold opens on a real token, beside a bare loop of the same C_DecryptInit and C_Decrypt on as many threads as the engine has
//! workers.
//!
//!     softhsm/with-token cargo bench --bench unwrap

// criterion's macros; and a benchmark that cannot go on must stop
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{bare, fleets::Fleet, rig};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use keyleash::clock::Clock;
use std::time::Duration;

/// Accounts that one measurement opens.
const ACCOUNTS: usize = 2_000;
/// Tasks that open accounts: one alone shows the way there and back, many show what the way can carry.
const AT_ONCE: [usize; 3] = [1, 64, ACCOUNTS];
const WORKERS: [usize; 2] = [1, 2];
const SAMPLES: usize = 10;

fn cold_opens(criterion: &mut Criterion) {
    let runtime = rig::runtime();
    for workers in WORKERS {
        let token = runtime.block_on(rig::softhsm(workers));
        let fleet = Fleet::new(token, Clock::default());
        let ids = runtime.block_on(fleet.create("unwrap", 0..ACCOUNTS));
        let (kek, samples) = runtime.block_on(bare::samples(&*fleet.store, &ids));
        let mut loops = bare::Bare::open(&kek, workers).unwrap();

        let mut group = criterion.benchmark_group(format!("cold opens, {workers} worker(s)"));
        group.throughput(Throughput::Elements(ACCOUNTS as u64)).sample_size(SAMPLES);
        group.bench_function("bare loop", |bench| {
            bench.iter_custom(|calls| (0..calls).map(|_| Duration::from_nanos(loops.run(&samples) as u64)).sum());
        });
        for at_once in AT_ONCE {
            group.bench_function(format!("keyleash, {at_once} at once"), |bench| {
                bench.iter_custom(|calls| {
                    let run = || {
                        let _runtime = runtime.enter();
                        let engine = fleet.engine();
                        let opened = runtime.block_on(fleet.open(&engine, &ids, at_once));
                        assert_eq!(opened.unwraps, ACCOUNTS as u64, "one HSM call for each account");
                        Duration::from_nanos(opened.ns as u64)
                    };
                    (0..calls).map(|_| run()).sum()
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, cold_opens);
criterion_main!(benches);
