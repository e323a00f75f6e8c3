//! What happens in a world: random actions with random times between them, then calm, in which everything must come back.

use crate::{
    Report,
    seams::{Fault, Health, lock},
    world::{Quiet, World, between},
};
use keyleash::token::{Verdict, scripted::Act};
use rand::RngExt;
use std::time::Duration;

/// A schedule ends after this many moves of the clock …
const MOVES_MAX: usize = 100;
/// … or this many actions.
const ACTIONS_MAX: usize = 60;
const MILLISECOND: Duration = Duration::from_millis(1);

pub(crate) async fn run(seed: u64, quiet: Quiet, trace: bool) -> Report {
    let mut world = World::new(seed, quiet, trace).await;
    for account in 0..world.accounts() {
        world.call(account, 1);
    }
    world.settle().await;
    let mut actions = 0;
    while world.moves < MOVES_MAX && actions < ACTIONS_MAX {
        actions += 1;
        act(&mut world).await;
        world.settle().await;
        world.probe_all();
        let poll = world.settings.poll_interval;
        let time = match world.rng.random_range(0..10) {
            0..=1 => Duration::ZERO,
            2..=7 => between(&mut world.rng, MILLISECOND, poll * 2),
            8 => between(&mut world.rng, MILLISECOND, world.settings.store_timeout),
            _ => between(&mut world.rng, poll, world.settings.grace * 2).min(Duration::from_secs(120)),
        };
        world.pass(time).await;
    }
    calm(&mut world).await;
    let trace = lock(&world.shared).trace.take().unwrap_or_default();
    Report { trace, moves: world.moves, probes: world.probes }
}

async fn act(world: &mut World) {
    let settings = world.settings.clone();
    let (timeout, poll) = (settings.store_timeout, settings.poll_interval);
    let kek = world.rng.random_range(0..lock(&world.shared).model.keks.len());
    let account = world.rng.random_range(0..world.accounts());
    match world.rng.random_range(0..103) {
        0..=9 => {
            world.note(|_| format!("KEK {kek} is disabled"));
            world.turn(kek, |script, kek| {
                script.disable(&kek.id);
                // A KEK that is gone comes back as it went.
                kek.enabled &= !kek.present;
            });
        }
        10..=22 => enable(world, kek),
        23..=25 => {
            world.note(|_| format!("KEK {kek} is destroyed"));
            world.turn(kek, |script, kek| {
                script.destroy(&kek.id);
                kek.present = false;
            });
        }
        26..=29 => restore(world, kek),
        30 => {
            world.note(|_| format!("KEK {kek} is replaced"));
            world.turn(kek, |script, kek| {
                script.replace(&kek.id);
                kek.replaced |= kek.present;
            });
        }
        31..=38 => {
            let latency = lock(&world.shared).model.latency;
            world.note(|_| "the token is away".into());
            world.reach(true, latency);
        }
        39..=47 => {
            let latency = lock(&world.shared).model.latency;
            world.note(|_| "the token is back".into());
            world.reach(false, latency);
        }
        48..=53 => {
            let unreachable = lock(&world.shared).model.unreachable;
            let latency = match world.rng.random_range(0..8) {
                0..=2 => Duration::ZERO,
                3..=4 => between(&mut world.rng, MILLISECOND, timeout),
                5 => timeout,
                6 => timeout - MILLISECOND,
                _ => timeout + between(&mut world.rng, MILLISECOND, timeout),
            };
            world.note(|_| format!("the token takes {latency:?}"));
            world.reach(unreachable, latency);
        }
        54..=61 => {
            let fault = match world.rng.random_range(0..10) {
                0..=1 => Fault::Act(Act::Hang),
                2..=3 => Fault::Act(Act::Delay(between(&mut world.rng, MILLISECOND, timeout * 2))),
                4 => Fault::Act(Act::WrongPlaintext),
                5 => Fault::Act(Act::fail(Verdict::Unreachable)),
                6 => Fault::Act(Act::fail(Verdict::Denied)),
                7 => Fault::Act(Act::fail(Verdict::BadRecord)),
                _ => Fault::Panic,
            };
            world.note(|_| format!("the next unwrap goes wrong: {fault:?}"));
            world.fault(fault);
        }
        62 => {
            world.note(|_| "the watch dies".into());
            lock(&world.shared).watch_dies = true;
        }
        63..=65 => {
            world.note(|_| "what hangs is released".into());
            world.script.release();
        }
        66..=69 => flap(world, kek, poll).await,
        70..=73 => {
            let time = between(&mut world.rng, MILLISECOND * 10, Duration::from_secs(3 * 3600));
            world.note(|_| format!("suspended for {time:?}"));
            world.suspend(time).await;
        }
        74..=77 => {
            let health = match world.rng.random_range(0..4) {
                0 => Health::Fails,
                1 => Health::Hangs,
                2 => Health::Slow(between(&mut world.rng, MILLISECOND, timeout * 2)),
                _ => Health::Healthy,
            };
            world.note(|_| format!("the store: {health:?}"));
            world.set_health(health);
        }
        78..=79 => {
            world.note(|_| "the store: Healthy".into());
            world.set_health(Health::Healthy);
        }
        80..=90 => {
            let times = [1, 1, 2, 20][world.rng.random_range(0..4)];
            world.call(account, times);
        }
        91..=93 => {
            for account in 0..world.accounts() {
                world.call(account, 1);
            }
        }
        94..=96 => {
            world.note(|_| format!("the handle of account {account} is dropped"));
            world.drop_handle(account);
        }
        97..=99 => overtake(world, kek).await,
        _ => {
            let killed = world.rng.random_bool(0.5);
            world.note(|_| format!("another engine; the old one is {}", if killed { "killed" } else { "dropped" }));
            world.restart(killed).await;
            for account in 0..world.accounts() {
                if world.rng.random_bool(0.7) {
                    world.call(account, 1);
                }
            }
        }
    }
}

fn enable(world: &mut World, kek: usize) {
    world.note(|_| format!("KEK {kek} is enabled"));
    world.turn(kek, |script, kek| {
        script.enable(&kek.id);
        kek.enabled |= kek.present;
    });
}

fn restore(world: &mut World, kek: usize) {
    world.note(|_| format!("KEK {kek} is restored"));
    world.turn(kek, |script, kek| {
        script.restore(&kek.id);
        kek.present = true;
    });
}

/// On and off faster than the poll.
async fn flap(world: &mut World, kek: usize, poll: Duration) {
    for _ in 0..world.rng.random_range(2..8) {
        let off = world.rng.random_bool(0.5);
        world.note(|_| format!("KEK {kek} flaps: {}", if off { "off" } else { "on" }));
        world.turn(kek, |script, kek| {
            if off {
                script.disable(&kek.id)
            } else {
                script.enable(&kek.id)
            }
            if kek.present {
                kek.enabled = !off;
            }
        });
        let time = between(&mut world.rng, MILLISECOND, poll / 3);
        world.pass(time).await;
    }
}

/// An answer that was given before a denial arrives after it, and after the next proof too: calls on demand overtake it.
async fn overtake(world: &mut World, kek: usize) {
    world.note(|_| "another engine, in which an answer is overtaken".into());
    world.restart(false).await;
    world.set_health(Health::Healthy);
    world.reach(false, Duration::ZERO);
    restore(world, kek);
    enable(world, kek);
    lock(&world.shared).faults.clear();
    let under: Vec<_> = {
        let stage = lock(&world.shared);
        (0..world.accounts()).filter(|account| stage.model.kek_of[*account] == kek).collect()
    };
    let [overtaken, denied, others @ ..] = &under[..] else { return };
    let timeout = world.settings.store_timeout;
    world.fault(Fault::Act(Act::Delay(timeout - MILLISECOND)));
    world.call(*overtaken, 1);
    world.settle().await;
    let off = world.rng.random_bool(0.8);
    if off {
        world.turn(kek, |script, kek| {
            script.disable(&kek.id);
            kek.enabled = false;
        });
    }
    world.call(*denied, 1);
    world.settle().await;
    enable(world, kek);
    // Whoever is refused asks again after a second at the earliest.
    let time = between(&mut world.rng, MILLISECOND, Duration::from_millis(1500));
    world.pass(time).await;
    world.call(others.first().copied().unwrap_or(*denied), 1);
    world.settle().await;
    world.pass(timeout).await;
}

/// Everything is healed but what cannot be; the model demands, from its bound on, that whatever was in use works again.
async fn calm(world: &mut World) {
    world.note(|_| "calm from now on".into());
    {
        let mut stage = lock(&world.shared);
        stage.faults.clear();
        stage.watch_dies = false;
    }
    let keks = lock(&world.shared).model.keks.len();
    for kek in 0..keks {
        restore(world, kek);
        enable(world, kek);
    }
    world.script.release();
    let latency = between(&mut world.rng, MILLISECOND, world.settings.store_timeout / 4 + MILLISECOND);
    world.reach(false, latency);
    world.set_health(Health::Healthy);
    world.settle().await;
    let settings = world.settings.clone();
    let bound = settings.store_timeout * 3
        + lock(&world.shared).model.interval_max(world.clock.now())
        + (latency + Duration::from_secs(1) / settings.resume_rate) * world.accounts() as u32
        + Duration::from_secs(3).max(settings.aek_ttl / 50);
    let mut left = bound;
    while !left.is_zero() {
        let step = left.min(Duration::from_secs(5));
        world.pass(step).await;
        world.probe_all();
        left -= step;
    }
    assert_eq!(world.pending(), 0, "every open ends once the token and the store answer");
    let (before, began) = (lock(&world.shared).model.unwraps, world.clock.now());
    let evicts = lock(&world.shared).model.evicts;
    let time = (settings.poll_interval * 2).min(Duration::from_secs(30));
    world.pass(time).await;
    let (unwraps, max) = {
        let stage = lock(&world.shared);
        (stage.model.unwraps - before, stage.model.calm_unwraps_max(world.clock.now().since(began)))
    };
    assert!(evicts || unwraps <= max, "{unwraps} unwraps in {time:?} of calm, expected were at most {max}");
}
