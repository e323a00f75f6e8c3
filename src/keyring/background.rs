//! Unwraps that nobody waits for: of what is due for one, and of what moved to another KEK version. They run in the background share
//! of the budget.

use super::{For, Keyring, Placed, Start};
use crate::{
    error::{Error, Result},
    slots::slot::{AekSlot, Due, Leash},
    telemetry::Event,
};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Background unwraps that one leash has under way at once; the budget bounds those of all together.
pub(crate) const FLIGHTS_MAX: usize = 8;

/// Reads the records of all that are in memory or wanted, and takes those that moved to the KEK versions that they name:
/// before a denial of the old one can concern them, or, where it came first, out of it.
pub(crate) async fn follow(keyring: Arc<Keyring>, leash: Arc<Leash>) {
    let mut flights = JoinSet::new();
    for slot in leash.living_members() {
        if !slot.is_retired() && (slot.is_filled() || slot.is_wanted()) {
            unwrap_in_background(&keyring, &mut flights, slot, Why::Moved).await;
        }
    }
    while flights.join_next().await.is_some() {}
}

/// Why an account is unwrapped in the background.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// It is wanted back, or due for a refresh.
    Due,
    /// Others of its KEK version moved to another one: only if it did too.
    Moved,
    /// Its record was changed, by whoever: as that, and where it fails it is noticed within its TTL.
    Heard,
}

/// Starts an unwrap; waits while too many are under way. The record is read first, so that a store that hangs holds no
/// place of the budget.
pub(crate) async fn unwrap_in_background(
    keyring: &Arc<Keyring>,
    flights: &mut JoinSet<()>,
    slot: Arc<AekSlot>,
    why: Why,
) {
    if flights.len() >= FLIGHTS_MAX {
        flights.join_next().await;
    }
    let keyring = keyring.clone();
    flights.spawn(async move {
        match attempt(&keyring, &slot, why).await {
            Ok(()) => {}
            // The lease says it already, and resumption or the next round will be back. A fatal error too: hung workers may
            // come back, and a task that died says nothing about the account.
            // And one whose TTL went by while it waited is tried again.
            Err(
                Error::Denied(_)
                | Error::Lapsed(_)
                | Error::Unreachable(_)
                | Error::Store(_)
                | Error::Fatal(_)
                | Error::Cold { .. },
            ) => {
                if why == Why::Moved {
                    keyring.note_move(&slot.leash); // and tried again
                }
            }
            Err(error @ Error::NotFound(_)) => slot.shut_if_gone(&error),
            Err(error) => {
                slot.give_up();
                if !slot.is_usable(keyring.clock.now()) {
                    slot.wipe(); // past its TTL, and there will be no other unwrap
                }
                let account = slot.account().to_string();
                keyring.teller.tell(Event::AccountFailed { account, error: error.to_string() });
            }
        }
    });
}

async fn attempt(keyring: &Arc<Keyring>, slot: &Arc<AekSlot>, why: Why) -> Result<()> {
    let mut found = keyring.find(slot).await?;
    let ready = loop {
        if found.moved() && why == Why::Due {
            keyring.note_move(&slot.leash);
        }
        if !found.moved() && why != Why::Due {
            return Ok(());
        }
        found = match keyring.placed(slot, found, For::Nobody).await? {
            Placed::Ready(ready) => break ready,
            Placed::Changed(reading) => keyring.find_in(slot, reading).await?,
        };
    };
    let is_due = || slot.is_wanted() && slot.leash.answers() || slot.due(keyring.clock.now()) == Due::Refresh;
    if slot.is_retired() || !ready.found.moved() && !is_due() {
        return Ok(()); // somebody who waited for it was faster, or it was taken away again
    }
    keyring.refill(slot, Start::Ready(ready)).await
}
