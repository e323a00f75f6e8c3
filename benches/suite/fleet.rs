//! What many accounts cost: look-up, memory, token calls, and the wipe of many slots.

use crate::{
    Scale,
    common::{
        fleets::{Fleet, LookUps, resident_bytes},
        pairs::{Spread, thread_cpu},
        rig,
        wipe::{Seals, seal_during},
    },
    plot::{Curve, Panel},
    table::Table,
};
use keyleash::{
    clock::{Clock, ManualClock},
    config::Settings,
    name::AccountId,
};
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use std::{
    hint::{black_box, spin_loop},
    time::Duration,
};
use tokio::runtime::Runtime;

/// Batches of look-ups that are timed.
const BATCHES: usize = 2_000;
const SEALING_THREADS: usize = 2;
/// Nominal poll intervals that are watched; shorter in all than the time to the first refresh.
const INTERVALS: u32 = 10;
const STEP: Duration = Duration::from_secs(1);
/// Real time for the tasks of an engine to do what a step of the manual clock lets them do.
const REST: Duration = Duration::from_millis(5);

/// Rows and the curves by number of accounts.
pub(crate) fn many_accounts(runtime: &Runtime, scale: &Scale, table: &mut Table) -> Vec<Panel> {
    let (token, _) = rig::scripted(Clock::default());
    let fleet = Fleet::new(token, Clock::default());
    let ids = runtime.block_on(fleet.create("fleet", 0..scale.fleet_accounts));
    let note = format!("{} accounts", ids.len());

    // The most first: key memory that was mapped once is used again, and would not be seen twice.
    let before = resident_bytes();
    let engine = runtime.block_on(async { fleet.engine() });
    drop(runtime.block_on(fleet.warm(&engine, &ids)));
    let cached = runtime.block_on(engine.status()).cached_accounts;
    assert_eq!(cached, ids.len() as u64, "every account is in the index");
    let each = (resident_bytes() - before) as f64 / cached as f64;
    table.put_value("memory", each, &note);
    let all = look_ups(runtime, &engine, &ids);
    table.put("look-up", all, &note);
    table.put("memory read", chained_reads(ids.len(), each as usize), "");
    drop(engine);

    let mut look_up = vec![(ids.len() as f64, all.median)];
    let mut calls = Vec::new();
    for count in [1, 1_000, 10_000, 100_000, ids.len()].into_iter().filter(|count| *count <= ids.len()) {
        let some = &ids[..count];
        let (per_poll, polls) = proofs(runtime, &fleet, some);
        calls.push((count as f64, per_poll));
        let note = format!("{polls} polls in {INTERVALS} intervals, which end 0 to 20 % early");
        match count {
            1 => table.put_value("proofs, 1", per_poll, &note),
            1_000 => table.put_value("proofs, 1000", per_poll, &note),
            _ if count == ids.len() => table.put_value("proofs, all", per_poll, format!("{count} accounts; {note}")),
            _ => {}
        }
        if count < ids.len() {
            let engine = runtime.block_on(async { fleet.engine() });
            let handles = runtime.block_on(fleet.warm(&engine, some));
            let spread = look_ups(runtime, &engine, some);
            if count == 1_000 {
                table.put("look-up, few", spread, "");
            }
            look_up.push((count as f64, spread.median));
            drop(handles);
        }
    }
    look_up.sort_by(|one, other| one.0.total_cmp(&other.0));
    calls.dedup();
    vec![
        Panel::by_accounts(
            "Warm look-up",
            "nanoseconds",
            vec![Curve { name: "Engine::account, a random account".into(), limit: false, points: look_up }],
        ),
        Panel::by_accounts(
            "Token calls per poll",
            "calls",
            vec![Curve { name: "accounts under one KEK".into(), limit: false, points: calls }],
        ),
    ]
}

fn look_ups(runtime: &Runtime, engine: &keyleash::Engine, ids: &[AccountId]) -> Spread {
    let mut look_ups = LookUps::new(ids);
    let one = |look_ups: &mut LookUps| runtime.block_on(look_ups.batch_ns(engine)) / LookUps::BATCH as f64;
    batches(|| one(&mut look_ups))
}

/// What each batch takes, once the machine is warm.
fn batches(mut batch_ns: impl FnMut() -> f64) -> Spread {
    for _ in 0..BATCHES / 4 {
        batch_ns(); // warm up
    }
    Spread::of((0..BATCHES).map(|_| batch_ns()).collect())
}

/// Nanoseconds of one read that waits for the one before it, each at a random place among `count` things of `each` bytes: what a
/// look-up is made of, without anything of ours.
fn chained_reads(count: usize, each: usize) -> Spread {
    let words = each.max(size_of::<usize>()) / size_of::<usize>();
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut StdRng::seed_from_u64(rig::SEED));
    // One circle through all of them: every place says which one is next.
    let mut memory = vec![0; count * words];
    for (place, next) in order.iter().zip(order.iter().cycle().skip(1)) {
        memory[place * words] = next * words;
    }
    let mut place = 0;
    batches(|| {
        let start = thread_cpu();
        (0..LookUps::BATCH).for_each(|_| place = memory[place]);
        black_box(place);
        (thread_cpu() - start).as_nanos() as f64 / LookUps::BATCH as f64
    })
}

/// Token calls per poll while nothing happens, and the polls: calls that come at one time are of one poll.
fn proofs(runtime: &Runtime, fleet: &Fleet, ids: &[AccountId]) -> (f64, usize) {
    runtime.block_on(async {
        let manual = ManualClock::new(Clock::default().now());
        let engine = fleet.engine_on(Clock::Manual(manual.clone()));
        let handles = fleet.warm(&engine, ids).await;
        let before = fleet.token.calls();
        let (mut seen, mut polls) = (before, 0);
        let watched = Settings::default().poll_interval * INTERVALS;
        for _ in 0..watched.as_secs() / STEP.as_secs() {
            manual.advance(STEP);
            tokio::time::sleep(REST).await;
            let calls = fleet.token.calls();
            polls += usize::from(calls > seen);
            seen = calls;
        }
        drop(handles);
        ((seen - before) as f64 / polls as f64, polls)
    })
}

/// A denial that wipes many slots, while two threads seal under another KEK; and the same time with a thread that merely spins.
pub(crate) fn wipes(runtime: &Runtime, scale: &Scale, table: &mut Table) {
    const KEK: &str = "wiped";
    let (token, script) = rig::scripted(Clock::default());
    let fleet = Fleet::new(token, Clock::default());
    let sealing = runtime.block_on(fleet.create("sealing", 0..SEALING_THREADS));
    let first = SEALING_THREADS;
    let mut ids = runtime.block_on(fleet.create(KEK, first..first + scale.wiped_slots + 1));
    let cold = ids.pop().expect("one more account");
    let engine = runtime.block_on(async { fleet.engine() });
    let sealing = runtime.block_on(fleet.warm(&engine, &sealing));
    let (mut wiped, mut spun, mut durations) = (Seals::default(), Seals::default(), Vec::new());
    for _ in 0..scale.wipes {
        runtime.block_on(fleet.set_enabled(&script, KEK, true));
        let handles = runtime.block_on(fleet.restore(&engine, &ids));
        runtime.block_on(fleet.set_enabled(&script, KEK, false));
        let (duration, seals) = seal_during(&sealing, || runtime.block_on(fleet.deny(&engine, &cold)));
        durations.push(duration.as_secs_f64() * 1e3);
        wiped = wiped.and(seals);
        spun = spun.and(seal_during(&sealing, || spin(duration)).1);
        drop(handles);
    }
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let note = format!("{} slots, {} wipes", ids.len(), scale.wipes);
    table.put("wipe", Spread::of(durations), &note);
    table.put_value("wipe, longest seal", ms(wiped.cpu_max), format!("of {} seals of 4 KiB", wiped.count));
    table.put_value("wipe, waits", wiped.waits as f64, "");
    table.put_value("wipe, longest on the wall", ms(wiped.wall_max), "");
    table.put_value("wipe, longest without", ms(spun.wall_max), format!("of {} seals", spun.count));
}

fn spin(duration: Duration) {
    let clock = Clock::default();
    let end = clock.now().plus(duration);
    while clock.now() < end {
        spin_loop();
    }
}
