//! Cold opens on a real token, beside the bare loop of the same C_Decrypt.

use crate::{
    Scale,
    common::{
        bare::{self, Bare},
        fleets::{Fleet, Opened},
        pairs::{Rounds, Spread, process_cpu, quantile},
        rig,
    },
    plot::{Curve, Panel},
    table::Table,
};
use keyleash::{clock::Clock, name::AccountId};
use tokio::runtime::Runtime;

/// Tasks that open accounts one after the other: enough to keep the token's workers busy.
const TASKS: usize = 64;
/// Tasks that want one account.
const CALLERS: usize = 1_000;
const NS_PER_MS: f64 = 1e6;
/// Points of a curve of latencies.
const CURVE_POINTS: usize = 400;

/// The places in a round.
const BARE: usize = 0;
const BUSY: usize = 1;
const AT_ONCE: usize = 2;
const ALONE: usize = 3;

/// What the rounds with one number of workers gave.
struct Cold {
    rounds: Rounds,
    /// The same in processor time of the whole process.
    cpu: Rounds,
    /// Of all opens of a place, in nanoseconds.
    latencies_ns: Vec<Vec<f64>>,
    /// Of those at once: the p99 of each round, and the unwraps of all rounds.
    p99_ns: Vec<f64>,
    unwraps: u64,
}

/// Rows and the curve of latencies.
pub(crate) fn cold_opens(runtime: &Runtime, scale: &Scale, table: &mut Table) -> Panel {
    let accounts = scale.cold_accounts;
    let note = format!("{accounts} accounts");
    let mut curves = Vec::new();
    for workers in [1, 2] {
        let token = runtime.block_on(rig::softhsm(workers));
        let fleet = Fleet::new(token, Clock::default());
        let ids = runtime.block_on(fleet.create(&format!("cold-{workers}"), 0..accounts));
        let cold = measure(runtime, scale, &fleet, &ids, workers);
        let rounds = &cold.rounds;
        if workers == 1 {
            table.put("cold, one worker", rounds.ratio(BUSY, BARE), "");
            table.put("cold, alone", rounds.ratio(ALONE, BARE), "");
            table.put("cold, at once, one worker", rounds.ratio(AT_ONCE, BARE), &note);
            one_account(runtime, &fleet, &ids[0], table);
            curves.push(curve("one after the other, 1 worker", &cold.latencies_ns[ALONE]));
            curves.push(curve(&format!("{TASKS} tasks, 1 worker"), &cold.latencies_ns[BUSY]));
        } else {
            table.put("cold, two workers", rounds.ratio(BUSY, BARE), "");
            table.put("cold, cpu", cold.cpu.ratio(BUSY, BARE), "");
            table.put("cold, at once", rounds.ratio(AT_ONCE, BARE), &note);
            let calls = cold.unwraps as f64 / (accounts * rounds.count()) as f64;
            table.put_value("cold, at once, calls", calls, "");
            table.put("cold, at once, p99", Spread::of(cold.p99_ns.iter().map(|ns| ns / NS_PER_MS).collect()), "");
            curves.push(curve(&format!("{TASKS} tasks, 2 workers"), &cold.latencies_ns[BUSY]));
            curves.push(curve(&format!("all {accounts} at once, 2 workers"), &cold.latencies_ns[AT_ONCE]));
        }
    }
    Panel::latencies("Cold opens on SoftHSM", curves)
}

fn measure(runtime: &Runtime, scale: &Scale, fleet: &Fleet, ids: &[AccountId], workers: usize) -> Cold {
    let (kek, samples) = runtime.block_on(bare::samples(&*fleet.store, ids));
    let mut bare = Bare::open(&kek, workers).expect("sessions for the bare loop");
    // Nothing of the one engine is left when the next begins.
    let open =
        |at_once: usize| -> Opened { runtime.block_on(async { fleet.open(&fleet.engine(), ids, at_once).await }) };
    bare.run(&samples); // warm up
    open(TASKS);
    let mut ns = vec![Vec::new(); ALONE + 1];
    let mut cpu_ns = vec![Vec::new(); ALONE + 1];
    let mut latencies_ns = vec![Vec::new(); ALONE + 1];
    let (mut p99_ns, mut unwraps) = (Vec::new(), 0);
    for round in 0..scale.cold_rounds {
        let mut turn = |place: usize| {
            let cpu = process_cpu();
            if place == BARE {
                ns[BARE].push(bare.run(&samples) / ids.len() as f64);
                cpu_ns[BARE].push((process_cpu() - cpu).as_nanos() as f64 / ids.len() as f64);
                return;
            }
            let at_once = match place {
                ALONE => 1,
                BUSY => TASKS,
                _ => ids.len(),
            };
            let opened = open(at_once);
            cpu_ns[place].push((process_cpu() - cpu).as_nanos() as f64 / ids.len() as f64);
            if place == AT_ONCE {
                p99_ns.push(quantile(&opened.latencies_ns, 0.99));
                unwraps += opened.unwraps;
            }
            ns[place].push(opened.ns / ids.len() as f64);
            latencies_ns[place].extend(opened.latencies_ns);
        };
        if round % 2 == 0 { (BARE..=ALONE).for_each(&mut turn) } else { (BARE..=ALONE).rev().for_each(&mut turn) }
    }
    latencies_ns.iter_mut().for_each(|of| of.sort_by(f64::total_cmp));
    Cold { rounds: Rounds::from_ns(ns), cpu: Rounds::from_ns(cpu_ns), latencies_ns, p99_ns, unwraps }
}

fn one_account(runtime: &Runtime, fleet: &Fleet, id: &AccountId, table: &mut Table) {
    let before = fleet.token.unwraps();
    runtime.block_on(async {
        let engine = fleet.engine();
        let same = vec![id.clone(); CALLERS];
        fleet.open(&engine, &same, CALLERS).await
    });
    table.put_value("one cold account", (fleet.token.unwraps() - before) as f64, "");
}

/// The share of opens that took no longer.
fn curve(name: &str, sorted_ns: &[f64]) -> Curve {
    let point = |place: usize| {
        let share = place as f64 / CURVE_POINTS as f64;
        (quantile(sorted_ns, share) / 1e3, share * 100.0)
    };
    Curve { name: name.into(), limit: false, points: (0..=CURVE_POINTS).map(point).collect() }
}
