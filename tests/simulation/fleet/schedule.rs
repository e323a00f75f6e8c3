//! What happens to a fleet. Each seed draws which kinds of happenings it has, so that few meet often, and then their order and
//! times; at last everything is well, and must be.

use super::{
    hsm::Fault,
    oracle::{FIRST, QUEUE_MAX, STANDBY, WORK_MAX},
    shelf::{Fate, Health},
    stage::lock,
    world::{What, World},
};
use crate::{
    Report,
    world::{Quiet, between},
};
use keyleash::{When, name::KekName, token::KekId};
use rand::RngExt;
use std::time::Duration;

/// A schedule ends after this many moves of the clock …
const MOVES_MAX: usize = 300;
/// … or this many happenings.
const HAPPENINGS_MAX: usize = 30;
const MILLISECOND: Duration = Duration::from_millis(1);
/// So many accounts at most does one caller of a storm make.
const STORM_ACCOUNTS_MAX: u32 = 7;
const HOUR: Duration = Duration::from_secs(3600);
/// The longest that a call waits behind a write of the store that was held up.
const PATIENCE: Duration = Duration::from_secs(61);

/// The kinds of happenings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A KEK is disabled, or destroyed.
    Revoked,
    /// An impostor stands in the place of a KEK.
    Impostor,
    /// A token refuses everybody, as when its PIN was changed.
    Pin,
    Away,
    Latency,
    /// One call hangs for ever, is slow, or fails.
    OneCall,
    Reads,
    Writes,
    /// A write is held, or its answer lost.
    Fates,
    Create,
    /// Many accounts are made at once.
    Storm,
    /// So are they, on a token that takes most of what a call may take for each.
    Crowd,
    /// So are they under a KEK version that wraps nothing, in whose place an impostor comes meanwhile.
    Bare,
    /// An account or a version is made, and the KEK is revoked before that is written.
    Late,
    Rotate,
    /// The oldest AEK version of an account is retired, if that is allowed.
    Retire,
    Rewrap,
    /// A KEK is rotated and re-wrapped, and an impostor comes in the new version's place before that.
    Swapped,
    /// An account goes to another KEK.
    Move,
    /// A KEK version is retired, if that is allowed, and perhaps destroyed.
    RetireKek,
    /// What is wrapped waits for the store while the KEK version that it is wrapped by is retired.
    Overtaken,
    /// An account is rotated and the version before retired, of which the store says nothing.
    Unanswered,
    /// What was sealed is written down, or ahead.
    Counts,
    /// The store's index of what each KEK version wraps loses its entries, and perhaps somebody retires one.
    Index,
    /// A seal does not end.
    Stuck,
    Restart,
    Suspend,
    /// The first token denies, some hear it, and it falls silent.
    Vanish,
    /// The token denies, grants to some, and denies again.
    Again,
    /// It denies while a call is under way that it granted.
    Overheard,
    Calls,
    /// Something that ails is well again.
    Heals,
}

/// Each kind, how often it is drawn where a seed has it, and how likely a seed has it, in percent.
const KINDS: [(Kind, u32, u32); 32] = [
    (Kind::Revoked, 10, 60),
    (Kind::Impostor, 4, 20),
    (Kind::Pin, 4, 20),
    (Kind::Away, 8, 50),
    (Kind::Latency, 3, 30),
    (Kind::OneCall, 5, 30),
    (Kind::Reads, 6, 30),
    (Kind::Writes, 6, 30),
    (Kind::Fates, 6, 30),
    (Kind::Create, 5, 50),
    (Kind::Storm, 6, 20),
    (Kind::Crowd, 3, 15),
    (Kind::Bare, 4, 15),
    (Kind::Late, 5, 20),
    (Kind::Rotate, 4, 40),
    (Kind::Retire, 3, 20),
    (Kind::Rewrap, 4, 30),
    (Kind::Swapped, 4, 15),
    (Kind::Move, 3, 15),
    (Kind::RetireKek, 5, 30),
    (Kind::Overtaken, 3, 15),
    (Kind::Unanswered, 4, 20),
    (Kind::Counts, 5, 30),
    (Kind::Index, 4, 10),
    (Kind::Stuck, 4, 20),
    (Kind::Restart, 4, 40),
    (Kind::Suspend, 3, 20),
    (Kind::Vanish, 6, 25),
    (Kind::Again, 5, 20),
    (Kind::Overheard, 10, 40),
    (Kind::Calls, 20, 100),
    (Kind::Heals, 18, 100),
];

pub(crate) async fn run(seed: u64, quiet: Quiet, trace: bool) -> Report {
    let mut world = World::new(seed, quiet, trace).await;
    let mut kinds: Vec<_> = KINDS.iter().filter(|(_, _, likely)| world.rng.random_ratio(*likely, 100)).collect();
    // Who believes that a KEK wraps nothing takes an impostor for it.
    if kinds.iter().any(|(kind, ..)| *kind == Kind::Index) {
        kinds.retain(|(kind, ..)| !matches!(kind, Kind::Impostor | Kind::Bare | Kind::Swapped));
    }
    for host in 0..world.hosts.len() {
        (0..world.customers.len()).for_each(|customer| world.call(host, Some(customer), What::Open));
    }
    world.settle().await;
    let mut happenings = 0;
    while world.moves < MOVES_MAX && happenings < HAPPENINGS_MAX {
        happenings += 1;
        let mut drawn = world.rng.random_range(0..kinds.iter().map(|(_, weight, _)| weight).sum());
        let (kind, ..) = kinds
            .iter()
            .find(|(_, weight, _)| {
                let found = drawn < *weight;
                drawn = drawn.saturating_sub(*weight);
                found
            })
            .expect("one of them");
        happen(&mut world, *kind).await;
        world.settle().await;
        world.probe_all();
        let poll = world.settings.poll_interval;
        let long = world.settings.grace + poll * (world.settings.fresh_proof_every + 1);
        let time = match world.rng.random_range(0..20) {
            0..=4 => Duration::ZERO,
            5..=12 => between(&mut world.rng, MILLISECOND, poll),
            13..=17 => between(&mut world.rng, poll, poll * 6),
            _ => between(&mut world.rng, poll, long),
        };
        world.pass(time).await;
        world.probe_all();
    }
    // It costs as much as all before it.
    if seed.is_multiple_of(2) {
        calm(&mut world).await;
    }
    let trace = lock(&world.shared).trace.take().unwrap_or_default();
    Report { trace, moves: world.moves, probes: world.probes }
}

/// A KEK version at random, mostly a current one.
fn any_kek(world: &mut World) -> KekId {
    let ids = lock(&world.shared).oracle.kek_ids();
    ids[world.rng.random_range(0..ids.len())].clone()
}

fn any_hsm(world: &mut World) -> usize {
    let hsms = lock(&world.shared).hsms.len();
    if hsms > 1 && world.rng.random_bool(0.3) { STANDBY } else { FIRST }
}

fn any_health(world: &mut World) -> Health {
    let timeout = world.settings.store_timeout;
    match world.rng.random_range(0..4) {
        0 => Health::Fails,
        1..=2 => Health::Hangs,
        _ => Health::Slow(between(&mut world.rng, MILLISECOND, timeout * 2)),
    }
}

async fn happen(world: &mut World, kind: Kind) {
    let (hsm, kek) = (any_hsm(world), any_kek(world));
    let host = world.rng.random_range(0..world.hosts.len());
    let customer = world.rng.random_range(0..world.customers.len());
    let timeout = world.settings.store_timeout;
    world.note(|_| format!("{kind:?}: token {hsm}, KEK {kek}, host {host}, account {customer}"));
    match kind {
        Kind::Revoked => {
            let destroyed = world.rng.random_bool(0.2);
            // Whoever revokes does so everywhere, mostly.
            let everywhere = world.rng.random_bool(0.5);
            world.change(|stage| {
                for (of, token) in stage.hsms.iter_mut().enumerate() {
                    if of == hsm || everywhere {
                        token.change(&kek, |key| if destroyed { key.present = false } else { key.enabled = false });
                    }
                }
            });
        }
        Kind::Impostor => world.change(|stage| stage.hsms[hsm].replace(&kek, true)),
        Kind::Pin => world.change(|stage| stage.hsms[hsm].set_pin_good(false)),
        Kind::Away => silence(world, hsm),
        Kind::Latency => {
            let latency = match world.rng.random_range(0..4) {
                0 => Duration::ZERO,
                1..=2 => world.queued_latency(),
                _ => between(&mut world.rng, MILLISECOND, timeout),
            };
            world.note(|_| format!("it takes {latency:?}"));
            world.change(|stage| stage.hsms[hsm].latency = latency);
        }
        Kind::OneCall => {
            let fault = match world.rng.random_range(0..4) {
                0..=1 => Fault::Hang,
                2 => Fault::Slow(between(&mut world.rng, MILLISECOND, timeout * 2)),
                _ => Fault::Fails,
            };
            world.fault(hsm, fault);
        }
        Kind::Reads | Kind::Writes => {
            let health = any_health(world);
            world.note(|_| format!("they are {health:?}"));
            let both = world.rng.random_bool(0.2);
            world.change(|stage| {
                if kind == Kind::Reads || both {
                    stage.shelves.reads = health;
                }
                if kind == Kind::Writes || both {
                    stage.shelves.writes = health;
                }
                stage.shelves.changed.notify_waiters();
            });
        }
        Kind::Fates => {
            let fate = match world.rng.random_range(0..3) {
                0 => Fate::AnswerLost,
                1 => Fate::Held(between(&mut world.rng, MILLISECOND, HOUR)),
                _ => Fate::Held(between(&mut world.rng, MILLISECOND, timeout * 10)),
            };
            lock(&world.shared).shelves.fates.push_back(fate);
        }
        Kind::Create => create(world, host),
        Kind::Storm => {
            let name = any_name(world);
            storm(world, host, &name);
            let latency = world.queued_latency();
            world.note(|_| format!("each call takes {latency:?}"));
            world.change(|stage| stage.hsms[FIRST].latency = latency);
        }
        Kind::Crowd => {
            let latency = between(&mut world.rng, timeout / 2, timeout * 9 / 10);
            world.note(|_| format!("each call takes {latency:?}"));
            world.change(|stage| stage.hsms[FIRST].latency = latency);
            let name = any_name(world);
            storm(world, host, &name);
            (0..world.customers.len()).for_each(|customer| world.call(host, Some(customer), What::Open));
        }
        Kind::Bare => bare(world, host).await,
        Kind::Late => late(world, host, customer, &kek).await,
        Kind::Rotate => match world.rng.random_bool(0.4) {
            true => {
                let name = world.keks[world.rng.random_range(0..world.keks.len())].clone();
                world.call(host, None, What::RotateKek(name));
            }
            false => world.call(host, Some(customer), What::RotateAccount),
        },
        Kind::Retire => {
            if world.rng.random_bool(0.5) {
                // By another host, soon after.
                let other = world.rng.random_range(0..world.hosts.len());
                world.call(other, Some(customer), What::RotateAccount);
                let time = between(&mut world.rng, MILLISECOND, world.settings.poll_interval);
                world.pass(time).await;
            }
            let alone = world.hosts.len() == 1 && world.rng.random_bool(0.5);
            world.call(host, Some(customer), What::Retire(if alone { When::Now } else { When::Due }));
        }
        Kind::Rewrap => {
            let name = any_name(world);
            world.call(host, None, What::Rewrap(name));
        }
        Kind::Move => {
            let name = any_name(world);
            world.call(host, Some(customer), What::Move(name));
        }
        Kind::Swapped => swapped(world, host).await,
        Kind::Unanswered => unanswered(world, host, customer).await,
        Kind::Counts => {
            match world.rng.random_range(0..10) {
                0..=2 => {
                    let blocks = world.rng.random_range(1..20);
                    return world.call(host, Some(customer), What::CountAhead(blocks));
                }
                3..=6 => {
                    world.forget(host, customer);
                    world.pass(timeout).await;
                    let held = hold_writes(world);
                    world.call(host, None, What::WriteCounts);
                    let_writes_go(world, held).await;
                }
                _ => {}
            }
            world.call(host, None, What::WriteCounts);
        }
        Kind::RetireKek => retire(world, host, &kek),
        Kind::Overtaken => overtaken(world, host).await,
        Kind::Index => {
            world.change(|stage| stage.shelves.index_lost = true);
            if world.rng.random_bool(0.5) {
                let version = lock(&world.shared).oracle.kek_version(&kek);
                world.call(host, None, What::RotateKek(version.name));
                let latency = lock(&world.shared).hsms[FIRST].latency;
                world.pass(latency * 8 + MILLISECOND).await;
                let other = world.rng.random_range(0..world.hosts.len());
                retire(world, other, &kek);
            }
        }
        Kind::Stuck => world.stick(host, customer),
        Kind::Restart => {
            let killed = world.rng.random_bool(0.6);
            world.restart(host, killed).await;
            match world.rng.random_range(0..3) {
                0 => create(world, host),
                1 => world.call(host, Some(customer), What::Open),
                _ => (0..world.customers.len()).for_each(|customer| world.call(host, Some(customer), What::Open)),
            }
        }
        Kind::Suspend => {
            world.suspend(host);
            let time = match world.rng.random_bool(0.7) {
                true => between(&mut world.rng, MILLISECOND * 10, world.settings.grace * 2),
                false => between(&mut world.rng, MILLISECOND * 10, HOUR),
            };
            if world.hosts.len() == 1 || time > Duration::from_secs(60) {
                // Nobody else lives through that.
                (0..world.hosts.len()).for_each(|host| world.suspend(host));
            }
            world.pass(time).await;
            for host in 0..world.hosts.len() {
                world.wake(host).await;
            }
        }
        Kind::Vanish => vanish(world, host, &kek).await,
        Kind::Again => again(world, &kek).await,
        Kind::Overheard => overheard(world, host, customer).await,
        Kind::Calls => calls(world, host, customer),
        Kind::Heals => heal(world, hsm, &kek),
    }
}

/// A token falls silent, to everybody or to one host alone.
fn silence(world: &mut World, hsm: usize) {
    let host = world.rng.random_range(0..world.hosts.len());
    let alone = world.hosts.len() > 1 && world.rng.random_bool(0.3);
    world.change(|stage| match alone {
        true => _ = stage.hsms[hsm].cut_off.insert(host),
        false => stage.hsms[hsm].away = true,
    });
}

/// For so long the next write comes later, or the store takes none at all; or neither.
fn hold_writes(world: &mut World) -> Duration {
    let poll = world.settings.poll_interval;
    let held = between(&mut world.rng, poll, poll * 6);
    let how = world.rng.random_range(0..6);
    world.change(|stage| match how {
        0 => stage.shelves.fates.push_back(Fate::Held(held)),
        1 => stage.shelves.writes = Health::Hangs,
        2 => stage.shelves.writes = Health::Fails,
        _ => {}
    });
    if how < 3 { held } else { Duration::ZERO }
}

/// After that time it is as it should be.
async fn let_writes_go(world: &mut World, held: Duration) {
    if held.is_zero() {
        return;
    }
    world.pass(held).await;
    world.change(|stage| {
        stage.shelves.writes = Health::Healthy;
        stage.shelves.changed.notify_waiters();
    });
    world.pass(world.settings.poll_interval + world.settings.store_timeout * 4).await;
}

async fn vanish(world: &mut World, host: usize, kek: &KekId) {
    let (poll, timeout) = (world.settings.poll_interval, world.settings.store_timeout);
    if world.hosts.len() > 1 && world.rng.random_bool(0.3) {
        // One host does not hear what the others do.
        world.change(|stage| _ = stage.hsms[FIRST].cut_off.insert(host));
        let time = between(&mut world.rng, MILLISECOND, poll * 4);
        world.pass(time).await;
    }
    let held = hold_writes(world);
    grants(world, kek, false);
    let time = between(&mut world.rng, MILLISECOND, poll + timeout * 2);
    world.pass(time).await;
    silence(world, FIRST);
    let_writes_go(world, held).await;
}

fn storm(world: &mut World, host: usize, name: &KekName) {
    let accounts = world.rng.random_range(1..=STORM_ACCOUNTS_MAX);
    for _ in 0..world.rng.random_range(20..60) {
        world.call(host, None, What::Storm(name.clone(), accounts));
    }
}

/// Only the first token denies a KEK version, or grants it again.
fn grants(world: &mut World, kek: &KekId, granted: bool) {
    world.change(|stage| stage.hsms[FIRST].change(kek, |key| key.enabled = granted));
}

/// A version of a KEK that wraps nothing yet, which is the newest.
async fn newest(world: &mut World, host: usize, name: &KekName) -> Option<KekId> {
    let latency = lock(&world.shared).hsms[FIRST].latency;
    world.call(host, None, What::RotateKek(name.clone()));
    world.pass(latency * 8 + MILLISECOND).await;
    let oracle = &lock(&world.shared).oracle;
    // The newest comes last.
    oracle.kek_ids().into_iter().rfind(|id| oracle.kek_version(id).name == *name)
}

async fn bare(world: &mut World, host: usize) {
    let (name, timeout) = (any_name(world), world.settings.store_timeout);
    let Some(kek) = newest(world, host, &name).await else { return };
    let latency = between(&mut world.rng, MILLISECOND, timeout / 4);
    world.change(|stage| stage.hsms[FIRST].latency = latency);
    for _ in 0..world.rng.random_range(1..=3) {
        storm(world, host, &name);
        let time = between(&mut world.rng, MILLISECOND, latency * 10);
        world.pass(time).await;
    }
    world.change(|stage| stage.hsms[FIRST].replace(&kek, true));
    let time = between(&mut world.rng, timeout, world.settings.poll_interval * 4);
    world.pass(time).await;
}

async fn swapped(world: &mut World, host: usize) {
    let (name, poll) = (any_name(world), world.settings.poll_interval);
    let Some(kek) = newest(world, host, &name).await else { return };
    create_under(world, host, name.clone());
    let time = between(&mut world.rng, MILLISECOND, poll);
    world.pass(time).await;
    let other = world.rng.random_range(0..world.hosts.len());
    if world.rng.random_bool(0.5) {
        world.change(|stage| stage.hsms[FIRST].replace(&kek, true));
        world.call(other, None, What::Rewrap(name));
    } else {
        let latency = between(&mut world.rng, MILLISECOND, world.settings.store_timeout / 4);
        world.change(|stage| stage.hsms[FIRST].latency = latency);
        world.call(other, None, What::Rewrap(name));
        let time = between(&mut world.rng, MILLISECOND, latency * 6);
        world.pass(time).await;
        world.change(|stage| stage.hsms[FIRST].replace(&kek, true));
    }
    world.pass(poll).await;
}

async fn again(world: &mut World, kek: &KekId) {
    let (poll, timeout) = (world.settings.poll_interval, world.settings.store_timeout);
    grants(world, kek, false);
    world.pass(poll + timeout * 2).await;
    let held = between(&mut world.rng, MILLISECOND, poll * 6);
    if world.rng.random_bool(0.7) {
        lock(&world.shared).shelves.fates.push_back(Fate::Held(held));
    }
    grants(world, kek, true);
    let time = between(&mut world.rng, MILLISECOND, poll);
    world.pass(time).await;
    grants(world, kek, false);
    let time = between(&mut world.rng, MILLISECOND, poll + timeout * 2);
    world.pass(time).await;
    if world.rng.random_bool(0.5) {
        silence(world, FIRST);
    }
    world.pass(held).await;
}

async fn overheard(world: &mut World, host: usize, customer: usize) {
    let (poll, timeout) = (world.settings.poll_interval, world.settings.store_timeout);
    let all = lock(&world.shared).oracle.kek_ids();
    let from_the_start = world.rng.random_bool(0.5);
    let mut held = if from_the_start { hold_writes(world) } else { Duration::ZERO };
    let before = world.rng.random_range(0..3);
    if before == 0 {
        all.iter().for_each(|kek| grants(world, kek, false));
        world.pass(poll + timeout * 2).await;
        all.iter().for_each(|kek| grants(world, kek, true));
    } else if before == 1 {
        let killed = world.rng.random_bool(0.5);
        world.restart(host, killed).await;
    }
    let takes = between(&mut world.rng, timeout / 4, timeout);
    world.fault(FIRST, Fault::Slow(takes));
    world.call(host, Some(customer), What::Open);
    if world.rng.random_bool(0.5) {
        let other = world.rng.random_range(0..world.customers.len());
        world.call(host, Some(other), What::Open);
    }
    if world.rng.random_bool(0.5) {
        // Until it strikes somebody, a proof perhaps.
        for _ in 0..20 {
            if lock(&world.shared).hsms[FIRST].faults.is_empty() {
                break;
            }
            world.pass(poll / 16).await;
        }
    } else {
        let time_max = if world.rng.random_bool(0.5) { MILLISECOND * 2 } else { poll };
        let time = between(&mut world.rng, MILLISECOND, time_max);
        world.pass(time).await;
    }
    if !from_the_start {
        held = hold_writes(world);
    }
    all.iter().for_each(|kek| grants(world, kek, false));
    // Somebody may ask beside that call, and hear it.
    for _ in 0..world.rng.random_range(0..4) {
        match world.rng.random_range(0..3) {
            0 => create(world, host),
            1 => world.call(host, Some(customer), What::RotateAccount),
            _ => {
                let other = world.rng.random_range(0..world.customers.len());
                world.call(host, Some(other), What::Open);
            }
        }
    }
    // It ends in a silence then, or before that.
    let time = if world.rng.random_bool(0.5) { takes / 4 } else { takes.max(poll / 2) };
    world.pass(time).await;
    if world.rng.random_bool(0.7) {
        silence(world, FIRST);
    }
    world.pass(poll + timeout).await;
    let_writes_go(world, held).await;
}

async fn unanswered(world: &mut World, host: usize, customer: usize) {
    let timeout = world.settings.store_timeout;
    let when = if world.hosts.len() == 1 { When::Now } else { When::Due };
    let latency = lock(&world.shared).hsms[FIRST].latency;
    let fate = if world.rng.random_bool(0.5) { Fate::AnswerLost } else { Fate::Gone };
    lock(&world.shared).shelves.fates.push_back(fate);
    world.call(host, Some(customer), What::RotateAccount);
    world.pass(latency * 8 + timeout).await;
    let slow = world.rng.random_bool(0.5);
    let takes = between(&mut world.rng, MILLISECOND, timeout);
    world.change(|stage| {
        stage.shelves.reads = Health::Healthy;
        match slow {
            true => stage.shelves.writes = Health::Slow(takes),
            false => stage.shelves.fates.push_back(Fate::AnswerLost),
        }
        stage.shelves.changed.notify_waiters();
    });
    world.call(host, Some(customer), What::Retire(when));
    for _ in 0..6 {
        world.pass(timeout / 4).await;
        world.probe(host, customer, true);
        world.probe(host, customer, false);
    }
    world.change(|stage| {
        stage.shelves.writes = Health::Healthy;
        stage.shelves.changed.notify_waiters();
    });
}

fn create(world: &mut World, host: usize) {
    let name = any_name(world);
    create_under(world, host, name);
}

fn create_under(world: &mut World, host: usize, name: KekName) {
    if let Some(newcomer) = world.newcomer() {
        world.call(host, Some(newcomer), What::Create(name));
    }
}

/// What is made waits for the store, and meanwhile the KEK is revoked, or an impostor's.
async fn late(world: &mut World, host: usize, customer: usize, kek: &KekId) {
    let (timeout, poll) = (world.settings.store_timeout, world.settings.poll_interval);
    let name = lock(&world.shared).oracle.kek_version(kek).name;
    // Of one that nobody has anything under nobody asks meanwhile.
    let newest = if world.rng.random_bool(0.5) { newest(world, host, &name).await } else { None };
    let kek = newest.as_ref().unwrap_or(kek);
    let held_max =
        if world.rng.random_bool(0.5) { world.settings.aek_ttl.max(poll * 2) } else { (poll + timeout) * 10 };
    let held = between(&mut world.rng, poll, held_max);
    lock(&world.shared).shelves.fates.push_back(Fate::Held(held));
    if world.rng.random_bool(0.6) {
        create_under(world, host, name);
    } else {
        world.call(host, Some(customer), What::RotateAccount);
    }
    world.settle().await;
    let latency = lock(&world.shared).hsms[FIRST].latency;
    world.pass(latency * 4 + MILLISECOND).await;
    let all = world.rng.random_bool(0.5);
    world.change(|stage| {
        let ids = if all { stage.oracle.kek_ids() } else { vec![kek.clone()] };
        for id in ids {
            stage.hsms.iter_mut().for_each(|hsm| hsm.change(&id, |key| key.enabled = false));
        }
    });
    if world.rng.random_bool(0.5) {
        silence(world, FIRST);
    }
    world.pass(held + MILLISECOND).await;
}

fn any_name(world: &mut World) -> KekName {
    world.keks[world.rng.random_range(0..world.keks.len())].clone()
}

fn retire(world: &mut World, host: usize, kek: &KekId) {
    let is_destroyed = world.rng.random_bool(0.5);
    let version = lock(&world.shared).oracle.kek_version(kek);
    world.call(host, None, What::RetireKek(version, is_destroyed));
}

/// A KEK gets a version, which something is wrapped by that does not come into the store before that version is retired.
async fn overtaken(world: &mut World, host: usize) {
    let (name, poll, timeout) = (any_name(world), world.settings.poll_interval, world.settings.store_timeout);
    let latency = lock(&world.shared).hsms[FIRST].latency;
    let a_while = latency * 8 + MILLISECOND;
    let Some(middle) = newest(world, host, &name).await else { return };
    let held = between(&mut world.rng, poll, poll * 10);
    lock(&world.shared).shelves.fates.push_back(Fate::Held(held));
    match world.rng.random_bool(0.5) {
        true => create_under(world, host, name.clone()),
        false => world.call(host, None, What::Rewrap(name.clone())),
    }
    world.pass(a_while).await;
    let other = world.rng.random_range(0..world.hosts.len());
    world.call(other, None, What::RotateKek(name));
    world.pass(a_while).await;
    if world.rng.random_bool(0.5) {
        // It comes while who retires looks at all that there is.
        let reads = held.saturating_sub(a_while * 2) / world.rng.random_range(2..20);
        world.change(|stage| stage.shelves.reads = Health::Slow(reads.min(timeout)));
    }
    retire(world, other, &middle);
    world.pass(held + MILLISECOND).await;
    world.change(|stage| {
        stage.shelves.reads = Health::Healthy;
        stage.shelves.changed.notify_waiters();
    });
}

fn calls(world: &mut World, host: usize, customer: usize) {
    match world.rng.random_range(0..10) {
        0 if world.rng.random_bool(0.5) => world.forget(host, customer),
        0 => world.drop_handle(host, customer),
        1..=3 => {
            for customer in 0..world.customers.len() {
                if world.customers[customer].made {
                    world.call(host, Some(customer), What::Open);
                }
            }
        }
        call => {
            let what = [What::Open, What::Warm, What::Seal, What::OpenBlock][call % 4].clone();
            world.call(host, Some(customer), what);
        }
    }
}

/// One thing that ails, or everything of a kind.
fn heal(world: &mut World, hsm: usize, kek: &KekId) {
    let drawn = world.rng.random_range(0..9);
    if drawn == 8 {
        world.unstick();
    }
    world.change(|stage| match drawn {
        0..=1 => stage.hsms.iter_mut().for_each(|hsm| {
            hsm.replace(kek, false);
            hsm.change(kek, |key| (key.enabled, key.present) = (true, true));
        }),
        2 => {
            for id in stage.oracle.kek_ids() {
                stage.hsms[hsm].change(&id, |key| (key.enabled, key.present) = (true, true));
            }
        }
        3..=4 => {
            stage.hsms[hsm].comes_back();
            stage.hsms[hsm].set_pin_good(true);
        }
        5 => {
            let now = stage.now();
            stage.hsms.iter().for_each(|hsm| hsm.released.notify_waiters());
            stage.oracle.released(now);
        }
        6 => {
            stage.shelves.reads = Health::Healthy;
            stage.shelves.changed.notify_waiters();
        }
        7 => {
            (stage.shelves.reads, stage.shelves.writes) = (Health::Healthy, Health::Healthy);
            stage.shelves.changed.notify_waiters();
        }
        _ => stage.shelves.index_lost = false,
    });
}

/// Everything is healed but what cannot be; then whatever was in use works again, and whatever was made can be opened.
async fn calm(world: &mut World) {
    world.note(|_| "calm from now on".into());
    for host in 0..world.hosts.len() {
        world.wake(host).await;
    }
    world.unstick();
    let latency = world.settings.store_timeout / 4 / QUEUE_MAX;
    world.change(|stage| {
        stage.shelves.index_lost = false;
        for hsm in &mut stage.hsms {
            hsm.set_pin_good(true);
            hsm.comes_back();
            hsm.latency = latency;
            hsm.faults.clear();
            hsm.released.notify_waiters();
            for id in stage.oracle.kek_ids() {
                hsm.replace(&id, false);
                hsm.change(&id, |key| (key.enabled, key.present) = (true, true));
            }
        }
        let now = stage.now();
        stage.oracle.released(now);
        stage.shelves.fates.clear();
        (stage.shelves.reads, stage.shelves.writes) = (Health::Healthy, Health::Healthy);
        stage.shelves.changed.notify_waiters();
    });
    world.settle().await;
    let bound = lock(&world.shared).oracle.recovery_max(world.real.now());
    for _ in 0..2 {
        world.pass(bound * 3 / 5).await;
        world.probe_all();
    }
    // A storm makes the accounts that are left of it, of which each is wrapped and unwrapped.
    let storm = latency * 2 * STORM_ACCOUNTS_MAX * u32::try_from(world.pending()).unwrap();
    // Those that are to come first under a KEK version wait for who is to write its KEK's record, and for no longer than this.
    let patience = if lock(&world.shared).shelves.held > 0 { PATIENCE } else { Duration::ZERO };
    world.pass(storm + patience).await;
    assert_eq!(
        world.pending(),
        lock(&world.shared).shelves.held.min(world.pending()),
        "every call ends once all is well"
    );
    world.open_everything().await;
    if world.settings.scheduled_work {
        (0..world.hosts.len()).for_each(|host| world.call(host, None, What::WriteCounts));
        world.pass(WORK_MAX + HOUR / 60).await;
    }
}
