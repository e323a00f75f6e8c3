//! The tending of slots: brings accounts back after a denial or lapse, refreshes the AEKs in use ahead of their TTL, wipes
//! those that nobody used for a TTL, follows accounts that somebody else re-wrapped to their new KEK version, has written
//! down what was sealed, keeps the store's date, and follows the policy of the store.
//!
//! All of it runs in the background share of the budget, behind whoever waits for a key. Nothing here bounds anything:
//! a slot that was not refreshed in time is simply cold.

use crate::{
    clock::Instant,
    home::beat::Beat,
    keyring::{
        COMMON_LOOK_EVERY, Keyring, POLICY_LOOK_EVERY,
        background::{FLIGHTS_MAX, Why, follow, unwrap_in_background},
    },
    lease::{Phase, Verdict as LeaseVerdict, standby::Voice},
    name::{KekVersion, TokenName},
    slots::{
        meter,
        slot::{AekSlot, Due, Leash},
    },
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::task::{Id, JoinSet};

/// The tending looks around at least this often …
const TICK: Duration = Duration::from_secs(1);
/// … and goes through all slots for their TTL this many times in a TTL, so that what is due for a refresh is found while
/// there is time for it …
const ROUNDS_PER_TTL: u32 = 50;
/// … but not more often than this.
const ROUND_MIN: Duration = Duration::from_millis(100);
/// Slots that something is due for, by the token that they are asked of.
type ByToken = BTreeMap<TokenName, Vec<Arc<AekSlot>>>;

/// Runs for as long as the engine lives.
pub(crate) async fn tend(keyring: Arc<Keyring>, beat: Arc<Beat>) {
    let mut work = JoinSet::new();
    let mut resuming: HashMap<KekVersion, (u64, Id)> = HashMap::new();
    let mut following: HashMap<KekVersion, (Instant, Option<Id>)> = HashMap::new();
    let mut refused: HashMap<KekVersion, Instant> = HashMap::new();
    let mut refreshing: HashMap<TokenName, Id> = HashMap::new();
    let (mut writing, mut keeping, mut looking) = (None, None, None);
    let mut next_round = keyring.clock.now();
    let mut next_keep = next_round.plus(COMMON_LOOK_EVERY);
    let mut next_look = next_round;
    loop {
        let now = keyring.clock.now();
        beat.at(now);
        if keyring.is_closed() {
            return;
        }
        for leash in keyring.leashes() {
            let lease = leash.lease();
            let begun = resuming.get(leash.kek()).is_some_and(|(epoch, _)| *epoch == lease.epoch());
            if matches!(lease.phase(), Phase::Resuming { .. }) && !begun {
                let task = work.spawn(resume(keyring.clone(), leash.clone(), lease.epoch()));
                resuming.insert(leash.kek().clone(), (lease.epoch(), task.id()));
            }
            if !leash.refuses() {
                refused.remove(leash.kek());
            } else if now >= refused.entry(leash.kek().clone()).or_insert(now).plus(keyring.settings.aek_ttl) {
                // Nothing is refreshed meanwhile, which would find what was moved elsewhere.
                refused.insert(leash.kek().clone(), now);
                leash.moved.store(true, Ordering::SeqCst);
            }
            let may_follow = following.get(leash.kek()).is_none_or(|(next, task)| task.is_none() && now >= *next);
            if may_follow && leash.moved.swap(false, Ordering::SeqCst) {
                let task = work.spawn(follow(keyring.clone(), leash.clone()));
                // A re-wrap that is under way is followed once an interval, not record by record.
                following.insert(leash.kek().clone(), (now.plus(keyring.settings.poll_interval), Some(task.id())));
            }
        }
        if now >= next_round {
            next_round = now.plus(ROUND_MIN.max(keyring.settings.aek_ttl / ROUNDS_PER_TTL));
            let (due, counted) = go_round(&keyring);
            for (token, due) in due {
                // One at a time of each token: one that is slow holds up nobody else's accounts.
                refreshing.entry(token).or_insert_with(|| work.spawn(refresh(keyring.clone(), due)).id());
            }
            if writing.is_none() {
                writing = Some(work.spawn(write_usage(keyring.clone(), counted)).id());
            }
        }
        if now >= next_keep && keeping.is_none() {
            next_keep = now.plus(COMMON_LOOK_EVERY);
            keeping = Some(work.spawn(keep_common(keyring.clone())).id());
        }
        if now >= next_look && looking.is_none() && keyring.access.reads_store() {
            next_look = now.plus(POLICY_LOOK_EVERY);
            looking = Some(work.spawn(look_at_policy(keyring.clone())).id());
        }
        tokio::select! {
            biased; // every branch leads to the same look around, and a simulation sees the same again
            () = keyring.clock.sleep_until(now.plus(TICK).min(next_round.max(now.plus(ROUND_MIN)))) => {}
            () = keyring.stir_tend.notified() => {}
            Some(done) = work.join_next_with_id() => {
                // One that panicked has left its accounts cold; they are begun again with the next look around.
                let id = done.map_or_else(|error| error.id(), |(id, ())| id);
                resuming.retain(|_, (_, task)| *task != id);
                following.values_mut().for_each(|(_, task)| *task = task.filter(|task| *task != id));
                following.retain(|_, (next, task)| task.is_some() || *next > now);
                refreshing.retain(|_, task| *task != id);
                writing = writing.filter(|task| *task != id);
                keeping = keeping.filter(|task| *task != id);
                looking = looking.filter(|task| *task != id);
            }
        }
    }
}

/// Wipes what was idle for a TTL, and lists what is to be refreshed, by token, and whose counts are to be written down.
fn go_round(keyring: &Keyring) -> (ByToken, Vec<Arc<AekSlot>>) {
    meter::provide_lanes();
    let now = keyring.clock.now();
    let (mut due, mut counted) = (ByToken::new(), Vec::new());
    keyring.memory.wipe_waiting(); // where there is no thread that does
    for leash in keyring.leashes() {
        let mut idle = Vec::new();
        for slot in leash.living_members() {
            if slot.meter().is_due(now) {
                counted.push(slot.clone());
            }
            match slot.due(now) {
                Due::Nothing => {}
                Due::Refresh | Due::Check => due.entry(leash.route.first.name.clone()).or_default().push(slot),
                Due::Wipe => idle.push(slot),
            }
        }
        leash.wipe(&idle);
    }
    (due, counted)
}

/// A count that could not be written down stays with its meter for the next round.
async fn write_usage(keyring: Arc<Keyring>, counted: Vec<Arc<AekSlot>>) {
    if let Err(error) = keyring.write_usage(counted).await {
        tracing::warn!(%error, "what was sealed could not be written down; the next round tries again");
    }
}

/// The store's date goes forward by what its engines write of the time that they saw pass.
async fn keep_common(keyring: Arc<Keyring>) {
    if let Err(error) = keyring.keep_common().await {
        tracing::warn!(%error, "the store's date could not be kept; nothing is done early by that");
    }
}

/// Grants that another engine gave or took away are in force here from then on. Who asks first reads the policy by itself where nothing
/// is known yet, and says why it cannot.
async fn look_at_policy(keyring: Arc<Keyring>) {
    let _ = keyring.follow_policy().await;
}

async fn refresh(keyring: Arc<Keyring>, due: Vec<Arc<AekSlot>>) {
    let mut flights = JoinSet::new();
    for slot in due {
        match slot.due(keyring.clock.now()) {
            Due::Refresh => unwrap_in_background(&keyring, &mut flights, slot, Why::Due).await,
            Due::Check => {
                if flights.len() >= FLIGHTS_MAX {
                    flights.join_next().await;
                }
                let keyring = keyring.clone();
                flights.spawn(async move { keyring.recheck(&slot).await });
            }
            Due::Nothing | Due::Wipe => {} // refreshed, denied or silent since
        }
    }
    while flights.join_next().await.is_some() {}
}

/// Brings back the accounts that a denial or lapse took away, in `epoch`; then the lease is active again.
async fn resume(keyring: Arc<Keyring>, leash: Arc<Leash>, epoch: u64) {
    let mut flights = JoinSet::new();
    for slot in leash.living_members() {
        // Back already, because somebody waited for it; or never in use.
        if !slot.is_wanted() {
            continue;
        }
        if leash.epoch() != epoch || !matches!(leash.lease().phase(), Phase::Resuming { .. }) {
            return; // taken away again: the next proof begins anew with all that are still wanted
        }
        unwrap_in_background(&keyring, &mut flights, slot, Why::Due).await;
    }
    while flights.join_next().await.is_some() {}
    let missing = leash.living_members().iter().any(|slot| slot.is_wanted());
    if missing {
        // Not at once: whatever failed may fail again.
        keyring.clock.sleep_until(keyring.clock.now().plus(TICK)).await;
    } else {
        keyring.feed(&leash, Voice::First, LeaseVerdict::AllBack { epoch }, None);
    }
}
