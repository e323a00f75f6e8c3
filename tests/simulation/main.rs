//! The simulation: many seeds, each a world with its own settings, KEKs and accounts and a random schedule of what can
//! happen to them, on a clock that moves from one happening to the next. After every move the promises are checked
//! as inequalities on times by somebody who knows only what was true and what went over the seams.
//!
//! There are two kinds of worlds. *One* engine over one token is judged to the millisecond, against a model of what it was told
//! (`model.rs`). A *fleet* (`fleet/`) has all that is unkind: two hosts with clocks of their own, a standby, contexts that answer from
//! memory, calls that hang for ever, storms, impostors, a token that is silent to one host alone, a store whose writes are held and whose
//! answers are lost; its oracle knows when the tokens would have denied, and reads the promises as a person does.
//!
//! `KEYLEASH_SIM_SEEDS=1000000 cargo test --release --test simulation` runs that many; `KEYLEASH_SIM_FROM` says where to
//! begin, `KEYLEASH_SIM_SEED=n cargo test --test simulation of_a_fleet` (or `of_one_`) runs one and prints its trace.
//!
//! # What it finds
//!
//! `tests/simulation/faults/list` has faults that are put back by hand, each as the place and what takes its place; and
//! `tests/simulation/faults/run [NAME …]` builds them into a copy, tries one after the other, and prints this table: the first seeds of
//! fleets (or of one engine) that find each. CI sees that each can still be put back (`run --check`).
//!
//! | fault | seeds |
//! | --- | --- |
//! | ordinary proofs from an old context renew for ever | 30, 72, 294 |
//! | what was just wrapped proves a KEK, an impostor too | 79, 87, 97 † |
//! | what was found bare long ago proves | 900, 1409, 2800 † |
//! | two processes come first under a KEK version that wraps nothing | 316127, 329701 † |
//! | a re-wrap goes to an impostor that came since the target was vouched for | 87, 97, 174 † |
//! | any record ends a denial, and not its witness alone | 114 † |
//! | a denial that repeats another ends no epoch | 463 † |
//! | a denial is not written down | 0, 2, 11 † |
//! | a denial that repeats another is no new version | 0, 2, 11 † |
//! | a denial in the store is deleted without its proof | 192, 374, 606 † |
//! | a denial in the store ends by a proof that was asked before it was read | 192, 209, 264 † |
//! | a call that did not come to the token is its silence | 56, 193, 223 † |
//! | an outage of the store stops all I/O after one TTL | 8, 299, 397 † |
//! | a renewal that failed is tried again when the next fresh proof is due | 146, 594, 1344 † |
//! | a stuck seal holds up every revocation | stands still † |
//! | more keys in memory than max_cached_aeks | of one 23, 26, 27 † |
//! | the data path does not look at the lease | 10, 32, 34 † |
//! | a TTL does not bind | of one 3, 22, 24 † |
//! | the watch is too slow | 0, 17, 19 † |
//! | another store's key is taken for one that a crash left | 1, 8, 13 † |
//! | a write that was held brings an account under a retired KEK | 93, 116, 251 † |
//! | who retires a KEK version looks before alone, and not after | 834 † |
//! | who retires a KEK version believes the index | 619 † |
//! | an AEK version is retired while others seal under it | 151, 158, 238 † |
//! | a count whose write was given up is lost | 217, 264, 534 † |
//! | a key is admitted on an old proof | 146, 428, 635 |
//! | the store is looked at once in each silence | 131, 341, 1007 |
//! | a standby speaks for a first token that denied | 18, 108, 654 † |
//! | a grant that renewed nothing takes the first token's denial back | 1194 |
//! | what a token said in an epoch that is over renews | 268, 306, 1194 |
//! | a rotation whose answer was lost is not looked at | 93, 233, 448 † |
//! | AEK versions whose retirement got no answer stay in use | 38, 217, 868 † |
//! | a count of what nobody has open any more is lost with its write | 136, 262, 456 † |
//!
//! What has a † was found by the schedules before the last that were changed, and has other seeds by now, which `run` prints.
//!
//! Where two lines stand one behind the other, a fault takes both out, since one alone breaks no promise: what a first token denied is
//! in the store too, which is looked into before a standby is asked; and who was not told of its own rotation is refused the retirement
//! of what it seals under.
//!
//! A key that is filled in an epoch that is over breaks nothing: it is of no use in another one, and a denial leaves no young proof that it could
//! be admitted on (`a_denial_wipes_and_an_unwrap_that_began_before_it_does_not_readmit`). Another AEK under the same version comes from who
//! can write the store alone (`another_aek_under_the_same_version_does_not_take_the_place_of_the_one_in_use`).
//!
//! What it does not know stands below its seams or beside them, and is tested there: PINs and their counters, which are below the seam of
//! the token, whose one word for them is a denial (`tests/softhsm/pins.rs`: `a_wrong_new_pin_is_not_tried_when_it_would_lock_the_token`,
//! `a_pin_that_the_token_counted_denies_until_somebody_has_entered_a_right_one`, `a_locked_or_expired_pin_serves_once_the_token_takes_it_again`,
//! `a_pin_that_worked_outlives_a_login_that_fails_after_somebody_else_mistyped`), paths of modules, locked
//! memory (`token/pkcs11`, `tests/softhsm`), hosts and their runtimes (`tests/hosts.rs`), damaged bytes (`tests/store`), batches that are
//! called twice (`tests/engine/twice.rs`), schedules by age (`tests/engine/schedule.rs`), and threads that meet (loom).
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

/// Seeds where nothing is said: half a minute of a build that is not optimised, for its checks of overflow. CI runs 10,000 optimised ones too.
const SEEDS: u64 = 100;
/// So many seeds that fail end a run, where nothing is said.
const FAILURES_MAX: u64 = 10;
/// moka's housekeeping goes by real time too: where the machine stands still for 300 ms in the midst of a seed, two tasks of one instant
/// may change places. What is drawn by lot differs again.
const PAIRS_MAX: usize = 3;
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
    let failures_max = env("KEYLEASH_SIM_FAILURES").unwrap_or(FAILURES_MAX);
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
                    if seed >= from + seeds || failed.load(Ordering::Relaxed) >= failures_max {
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
    assert_eq!(failed.into_inner(), 0, "seeds failed (at {failures_max} the run stops)");
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
    let (from, seeds) = (env("KEYLEASH_SIM_FROM").unwrap_or(0), env("KEYLEASH_SIM_TRACED").unwrap_or(20));
    let (mut happened, mut differ) = (0, Vec::new());
    for (of, seed) in [Of::One, Of::Fleet].into_iter().flat_map(|of| (from..from + seeds).map(move |seed| (of, seed))) {
        let (mut one, mut other) = (run(of, seed, true), run(of, seed, true));
        let line_of = |one: &Report, other: &Report| {
            let line = one.trace.iter().zip(&other.trace).position(|(one, other)| one != other);
            line.or((one.trace.len() != other.trace.len()).then_some(one.trace.len()))
        };
        let mut line = line_of(&one, &other);
        for _ in 1..PAIRS_MAX {
            let Some(line_then) = line else { break };
            println!("{of:?}: seed {seed}, line {line_then}: tried again");
            (one, other) = (run(of, seed, true), run(of, seed, true));
            line = line_of(&one, &other);
        }
        if let Some(line) = line {
            let (one, other) = (one.trace.get(line), other.trace.get(line));
            println!("{of:?}: seed {seed}, line {line}:\n  {one:?}\n  {other:?}");
            differ.push((of.name(), seed));
        }
        happened += one.trace.len() as u64;
    }
    assert!(differ.is_empty(), "{} of {seeds} have two traces: {differ:?}", differ.len());
    assert!(happened > seeds * 200, "little happens in these seeds: {happened} lines");
}
