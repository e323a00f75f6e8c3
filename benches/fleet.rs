//! What many accounts cost: the look-up of one that is in memory, and a denial that wipes many slots while two threads seal under
//! another KEK. What is counted and not timed (memory, token calls) is in `benches/report`.
//!
//!     cargo bench --bench fleet

// criterion's macros; and a benchmark that cannot go on must stop
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{
    fleets::{Fleet, LookUps},
    rig,
    wipe::{Seals, seal_during},
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use keyleash::clock::Clock;
use std::time::Duration;

/// A million takes a minute to make; `benches/report` does.
const ACCOUNTS: [usize; 3] = [1, 1_000, 100_000];
const WIPED: usize = 20_000;
const WIPES: usize = 10;
const SEALING_THREADS: usize = 2;

fn look_ups(criterion: &mut Criterion) {
    let runtime = rig::runtime();
    let mut group = criterion.benchmark_group("warm look-up");
    group.throughput(Throughput::Elements(1));
    for count in ACCOUNTS {
        let (token, _) = rig::scripted(Clock::default());
        let fleet = Fleet::new(token, Clock::default());
        let ids = runtime.block_on(fleet.create("fleet", 0..count));
        let engine = runtime.block_on(async { fleet.engine() });
        let handles = runtime.block_on(fleet.warm(&engine, &ids));
        let mut look_ups = LookUps::new(&ids);
        group.bench_function(BenchmarkId::new("accounts", count), |bench| {
            bench.iter_custom(|calls| {
                let batches = calls.div_ceil(LookUps::BATCH as u64);
                let mut ns = 0.0;
                (0..batches).for_each(|_| ns += runtime.block_on(look_ups.batch_ns(&engine)));
                Duration::from_nanos((ns * calls as f64 / (batches * LookUps::BATCH as u64) as f64) as u64)
            });
        });
        drop(handles);
    }
}

fn wipes(criterion: &mut Criterion) {
    let runtime = rig::runtime();
    let (token, script) = rig::scripted(Clock::default());
    let fleet = Fleet::new(token, Clock::default());
    let sealing = runtime.block_on(fleet.create("sealing", 0..SEALING_THREADS));
    let mut ids = runtime.block_on(fleet.create("wiped", SEALING_THREADS..SEALING_THREADS + WIPED + 1));
    let cold = ids.pop().unwrap();
    let engine = runtime.block_on(async { fleet.engine() });
    let sealing = runtime.block_on(fleet.warm(&engine, &sealing));
    let mut group = criterion.benchmark_group(format!("denial that wipes {WIPED} slots"));
    group.throughput(Throughput::Elements(WIPED as u64)).sample_size(WIPES);
    let mut all = Seals::default();
    group.bench_function(format!("while {SEALING_THREADS} threads seal"), |bench| {
        bench.iter_custom(|calls| {
            let mut spent = Duration::ZERO;
            for _ in 0..calls {
                runtime.block_on(fleet.set_enabled(&script, "wiped", true));
                let handles = runtime.block_on(fleet.restore(&engine, &ids));
                runtime.block_on(fleet.set_enabled(&script, "wiped", false));
                let (wipe, seals) = seal_during(&sealing, || runtime.block_on(fleet.deny(&engine, &cold)));
                spent += wipe;
                all = all.and(seals);
                drop(handles);
            }
            spent
        });
    });
    group.finish();
    println!(
        "of {} seals the longest: {:?} on the wall, {:?} on the processor; {} waits",
        all.count, all.wall_max, all.cpu_max, all.waits
    );
}

criterion_group!(benches, look_ups, wipes);
criterion_main!(benches);
