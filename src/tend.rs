//! The tending of slots: brings accounts back after a denial or lapse, refreshes the AEKs in use ahead of their TTL, and
//! wipes those that nobody used for a TTL.
//!
//! All of it runs in the background share of the budget, behind whoever waits for a key. Nothing here bounds anything:
//! a slot that was not refreshed in time is simply cold.

use crate::{
    error::Error,
    keyring::Keyring,
    lease::{Phase, Verdict as LeaseVerdict},
    name::KekVersion,
    slot::{AekSlot, Due, Leash},
    telemetry::Event,
    watch::Beat,
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::task::{Id, JoinSet};

/// The tending looks around at least this often …
const TICK: Duration = Duration::from_secs(1);
/// … and goes through all slots for their TTL this many times in a TTL, so that what is due for a refresh is found while
/// there is time for it …
const ROUNDS_PER_TTL: u32 = 50;
/// … but not more often than this.
const ROUND_MIN: Duration = Duration::from_millis(100);
/// Background unwraps that one leash has under way at once; the budget bounds those of all together.
const FLIGHTS_MAX: usize = 8;

/// Runs for as long as the engine lives.
pub(crate) async fn tend(keyring: Arc<Keyring>, beat: Arc<Beat>) {
    let mut work = JoinSet::new();
    let mut resuming: HashMap<KekVersion, (u64, Id)> = HashMap::new();
    let mut refreshing = None;
    let mut next_round = keyring.clock.now();
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
        }
        if now >= next_round && refreshing.is_none() {
            next_round = now.plus(ROUND_MIN.max(keyring.settings.aek_ttl / ROUNDS_PER_TTL));
            let due = go_round(&keyring);
            if !due.is_empty() {
                refreshing = Some(work.spawn(refresh(keyring.clone(), due)).id());
            }
        }
        tokio::select! {
            biased; // every branch leads to the same look around, and a simulation sees the same again
            () = keyring.clock.sleep_until(now.plus(TICK).min(next_round.max(now.plus(ROUND_MIN)))) => {}
            () = keyring.stir_tend.notified() => {}
            Some(done) = work.join_next_with_id() => {
                // One that panicked has left its accounts cold; they are begun again with the next look around.
                let id = done.map_or_else(|error| error.id(), |(id, ())| id);
                resuming.retain(|_, (_, task)| *task != id);
                refreshing = refreshing.filter(|task| *task != id);
            }
        }
    }
}

/// Wipes what was idle for a TTL and lists what is to be refreshed.
fn go_round(keyring: &Keyring) -> Vec<Arc<AekSlot>> {
    let now = keyring.clock.now();
    let (mut due, mut idle) = (Vec::new(), Vec::new());
    for leash in keyring.leashes() {
        for slot in leash.living_members() {
            match slot.due(now) {
                Due::Nothing => {}
                Due::Refresh => due.push(slot),
                Due::Wipe => idle.push(slot),
            }
        }
    }
    // All are emptied, then all wiped: one wait for the operations in flight instead of one each, which would hold up this
    // thread, and with it the watch, for as long as big blocks are sealed.
    idle.iter().for_each(|slot| slot.empty());
    idle.iter().for_each(|slot| slot.scrub());
    due
}

async fn refresh(keyring: Arc<Keyring>, due: Vec<Arc<AekSlot>>) {
    let mut flights = JoinSet::new();
    for slot in due {
        if slot.due(keyring.clock.now()) != Due::Refresh {
            continue; // refreshed, denied or silent since
        }
        unwrap_in_background(&keyring, &mut flights, slot).await;
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
        unwrap_in_background(&keyring, &mut flights, slot).await;
    }
    while flights.join_next().await.is_some() {}
    let missing = leash.living_members().iter().any(|slot| slot.is_wanted());
    if missing {
        // Not at once: whatever failed may fail again.
        keyring.clock.sleep_until(keyring.clock.now().plus(TICK)).await;
    } else {
        keyring.feed(&leash, LeaseVerdict::AllBack { epoch }, None);
    }
}

/// Starts an unwrap once the budget gives it a place; waits while too many are under way.
async fn unwrap_in_background(keyring: &Arc<Keyring>, flights: &mut JoinSet<()>, slot: Arc<AekSlot>) {
    if flights.len() >= FLIGHTS_MAX {
        flights.join_next().await;
    }
    let place = keyring.budget.background().await;
    if !slot.is_wanted() && slot.due(keyring.clock.now()) != Due::Refresh {
        return; // somebody who waited for it was faster
    }
    let keyring = keyring.clone();
    flights.spawn(async move {
        match keyring.refill(&slot, Some(place)).await {
            Ok(()) => {}
            // The lease says it already, and resumption or the next round will be back. A fatal error too: hung workers may
            // come back, and a task that died says nothing about the account.
            Err(Error::Denied(_) | Error::Lapsed(_) | Error::Unreachable(_) | Error::Store(_) | Error::Fatal(_)) => {}
            Err(error) => {
                slot.give_up();
                if !slot.is_usable(keyring.clock.now()) {
                    slot.wipe(); // past its TTL, and there will be no other unwrap
                }
                let account = slot.account.to_string();
                keyring.teller.tell(Event::AccountFailed { account, error: error.to_string() });
            }
        }
    });
}
