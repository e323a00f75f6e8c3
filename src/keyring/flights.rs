//! Unwraps under way: at most one for a slot, for all who want to wait for it.

use crate::{error::Result, slots::slot::AekSlot};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// How an unwrap under way ended, once it has.
pub(super) type Outcome = watch::Receiver<Option<Result<()>>>;

/// By the slots' places in memory. Not in the slots, of which few have one.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<usize, Outcome>>);

impl Flights {
    /// The outcome of the unwrap under way for `slot`; `start` begins one when there is none.
    pub(super) fn join(self: &Arc<Self>, slot: &Arc<AekSlot>, start: impl FnOnce(Landing)) -> Outcome {
        let mut flights = self.flights();
        if let Some(outcome) = flights.get(&place(slot)) {
            return outcome.clone();
        }
        let (tell, outcome) = watch::channel(None);
        flights.insert(place(slot), outcome.clone());
        drop(flights);
        start(Landing { flights: self.clone(), slot: slot.clone(), tell });
        outcome
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<usize, Outcome>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stays the slot's own while its landing holds it.
fn place(slot: &Arc<AekSlot>) -> usize {
    Arc::as_ptr(slot).addr()
}

/// An unwrap under way. Ends in every case, a panic of its task included: the slot can be asked for again.
pub(super) struct Landing {
    flights: Arc<Flights>,
    pub(super) slot: Arc<AekSlot>,
    tell: watch::Sender<Option<Result<()>>>,
}

impl Landing {
    /// Tells all who wait. Whoever comes later starts a new unwrap.
    pub(super) fn land(self, outcome: Result<()>) {
        let tell = self.tell.clone();
        drop(self);
        tell.send_replace(Some(outcome));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.flights.flights().remove(&place(&self.slot));
    }
}
