//! The simulation: many seeds, each a world with its own settings, KEKs and accounts and a random schedule of what can
//! happen to them, on a clock that moves from one happening to the next. After every move the promises are checked
//! as inequalities on times by somebody who knows only what was true and what went over the seams.
//!
//! There are two kinds of worlds. *One* engine over one token is judged to the millisecond, against a model of what it was told
//! (`model.rs`). A *fleet* (`fleet/`) has all that is unkind: two hosts with clocks of their own, a standby, contexts that answer from
//! memory, calls that hang for ever, storms, impostors, a store whose writes are held and whose answers are lost; its oracle knows when the
//! tokens would have denied, and reads the promises as a person does.
//!
//! `KEYLEASH_SIM_SEEDS=1000000 cargo test --release --test simulation` runs that many; `KEYLEASH_SIM_FROM` says where to
//! begin, `KEYLEASH_SIM_SEED=n cargo test --test simulation of_a_fleet` (or `of_one_`) runs one and prints its trace.
//!
//! # What it finds
//!
//! Faults that were put back by hand, each with the first seeds of fleets (or of one engine) that find it:
//!
//! | fault | how to put it back | seeds |
//! | --- | --- | --- |
//! | ordinary proofs from an old context renew for ever | `Lease::end_of` counts from `asked` alone | 115, 200, 232 |
//! | a key is admitted on an old proof | `Leash::admit` does not ask for `ProofTooOld` | 5050 |
//! | what was just wrapped proves a KEK, an impostor too | `vouch_since` says `Bare`, and nothing is young | 52, 120, 202 |
//! | the store is looked at once in each silence: a standby serves after a newer denial | `look_for_denials` returns where it looked before | 1382 |
//! | a standby speaks for a first token that denied | `FirstWord::may_go_over` and `lets_count` ignore `denied` | 63, 196, 220 |
//! | a denial is not written down | `note_denial` takes no denial for unsaved | 9, 30, 63 |
//! | an outage of the store stops all I/O after one TTL | `StoreWord::lets_bind` goes by the token alone | 12, 263, 271 |
//! | a stuck seal holds up every revocation | `KeyMemory::wipe` drops what was taken out | 10 (stands still) |
//! | more keys in memory than `max_cached_aeks` | `Room::make_room` does nothing | of one 23, 26, 27 |
//! | the data path does not look at the lease | `Leash::runs_at` is true | 74, 120, 154 |
//! | a TTL does not bind | `AekSlot::is_stale` is false | of one 3, 22, 24 |
//! | the watch is too slow | `Turn::due` gives two intervals | 9, 27, 80 |
//! | another store's key is taken for one that a crash left | `label_of` names no store | 0, 7, 8 |
//! | a write that was held brings an account under a retired KEK | `Target::guard` guards nothing | 16, 53, 177 |
//! | an AEK version is retired while others seal under it | `refuse_while_sealing` refuses nothing | 341, 576, 660 |
//!
//! In 3,000 seeds these were not found, which have tests of their own in `tests/engine`: a call that did not come to the token is taken
//! for its silence; what was bare long ago proves (schedules with more than one storm under a KEK that wraps nothing found it: seed
//! 7888 before others were added); a re-wrap to an impostor that came since the target was vouched for; the epoch is not compared in
//! `Leash::admit` (the key is of an epoch that is over, and not usable); an index that lost entries is believed by `kek retire`;
//! a repeated denial is no new version.
//!
//! What it does not know stands below its seams or beside them, and is tested there: PINs and their counters, paths of modules, locked
//! memory (`token/pkcs11`, `tests/softhsm`), hosts and their runtimes (`tests/hosts.rs`), damaged bytes (`tests/store`), batches that are
//! called twice (`tests/engine/twice.rs`), the scheduled work (`tests/engine/schedule.rs`), and threads that meet (loom).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // in tests

mod fleet;
mod model;
mod schedule;
mod seams;
mod world;

use seams::Scripted;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use world::Quiet;

/// Seeds where nothing is said.
const SEEDS: u64 = 1000;
/// In real time: a seed takes milliseconds, unless it stands still.
const SEED_MAX: Duration = Duration::from_secs(60);

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// What a seed came to.
struct Report {
    trace: Vec<String>,
    moves: usize,
    probes: u64,
}

/// Whose schedules are run.
#[derive(Debug, Clone, Copy)]
enum Of {
    /// One engine and one token, judged to the millisecond.
    One,
    /// A fleet.
    Fleet,
}

impl Of {
    /// What the test of these is called by.
    fn name(self) -> &'static str {
        match self {
            Self::One => "of_one_",
            Self::Fleet => "of_a_fleet",
        }
    }
}

fn run(of: Of, seed: u64, trace: bool) -> Report {
    let quiet = Quiet::default();
    let hook = quiet.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().on_thread_park(move || hook.fell()).build().unwrap();
    match of {
        Of::One => runtime.block_on(schedule::run(seed, quiet, trace)),
        Of::Fleet => runtime.block_on(fleet::schedule::run(seed, quiet, trace)),
    }
}

/// Panics that the script asked for are not reported.
fn quiet_scripted_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload().is::<Scripted>() {
                usual(info);
            }
        }));
    });
}

#[test]
fn no_schedule_of_one_breaks_a_promise() {
    run_all(Of::One);
}

#[test]
fn no_schedule_of_a_fleet_breaks_a_promise() {
    run_all(Of::Fleet);
}

fn run_all(of: Of) {
    quiet_scripted_panics();
    let (from, seeds, trace) = match env("KEYLEASH_SIM_SEED") {
        Some(seed) => (seed, 1, true),
        None => (env("KEYLEASH_SIM_FROM").unwrap_or(0), env("KEYLEASH_SIM_SEEDS").unwrap_or(SEEDS), false),
    };
    let next = AtomicU64::new(from);
    let (failed, moves, probes) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let dog = Watchdog::new(of);
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    dog.sees(seed);
                    if seed >= from + seeds || failed.load(Ordering::Relaxed) >= 10 {
                        return;
                    }
                    match catch_unwind(AssertUnwindSafe(|| run(of, seed, trace))) {
                        Ok(report) => {
                            report.trace.iter().for_each(|line| println!("{line}"));
                            moves.fetch_add(report.moves as u64, Ordering::Relaxed);
                            probes.fetch_add(report.probes, Ordering::Relaxed);
                        }
                        Err(_) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            let name = of.name();
                            eprintln!(
                                "seed {seed} failed: KEYLEASH_SIM_SEED={seed} cargo test --test simulation {name}"
                            );
                        }
                    }
                }
            });
        }
    });
    println!("{seeds} seeds, {} moves, {} seals and opens", moves.into_inner(), probes.into_inner());
    assert_eq!(failed.into_inner(), 0, "seeds failed (at 10 the run stops)");
}

/// Ends the process where a seed stands still: an engine that waits for ever, for itself perhaps, breaks every promise.
struct Watchdog(std::sync::mpsc::Sender<u64>);

impl Watchdog {
    fn new(of: Of) -> Self {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut last = None;
            loop {
                match told.recv_timeout(SEED_MAX) {
                    Ok(seed) => last = Some(seed),
                    Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
                    Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                        eprintln!("seed {last:?} {} stands still for {SEED_MAX:?}", of.name());
                        std::process::abort(); // what stands still drops nothing
                    }
                }
            }
        });
        Self(tell)
    }

    fn sees(&self, seed: u64) {
        self.0.send(seed).unwrap();
    }
}

#[test]
fn one_seed_has_one_trace() {
    quiet_scripted_panics();
    let (from, seeds) = (env("KEYLEASH_SIM_FROM").unwrap_or(0), env("KEYLEASH_SIM_TRACED").unwrap_or(40));
    let (mut happened, mut differ) = (0, Vec::new());
    for (of, seed) in [Of::One, Of::Fleet].into_iter().flat_map(|of| (from..from + seeds).map(move |seed| (of, seed))) {
        let (one, other) = (run(of, seed, true), run(of, seed, true));
        let line = one.trace.iter().zip(&other.trace).position(|(one, other)| one != other);
        if let Some(line) = line.or((one.trace.len() != other.trace.len()).then_some(one.trace.len())) {
            let (one, other) = (one.trace.get(line), other.trace.get(line));
            println!("{of:?}: seed {seed}, line {line}:\n  {one:?}\n  {other:?}");
            differ.push((of.name(), seed));
        }
        happened += one.trace.len() as u64;
    }
    assert!(differ.is_empty(), "{} of {seeds} have two traces: {differ:?}", differ.len());
    assert!(happened > seeds * 200, "little happens in these seeds: {happened} lines");
}
