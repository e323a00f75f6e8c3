//! The budget of token calls: how many at once, and how many a second. A seat's token is called with a place of one, or for a proof.
//!
//! Whoever waits for a key goes first: on-demand calls are counted but never held back by the rate, while refresh,
//! resumption and re-wrap share what is left and never take more than half of the places. Where places are scarce, KEK versions get
//! them in turn, and so do those who wait and the background: 600 accounts that are made at once under one KEK neither keep an
//! account of another closed nor let keys in use go cold. Proofs are outside the budget: the leash must not wait in a queue.

use crate::{
    clock::{Clock, Instant},
    name::KekVersion,
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

mod turns;

use turns::{Permit, Turns};

/// Calls in flight at most, proofs not counted. More than a token has workers, so that none idles.
pub(crate) const IN_FLIGHT_MAX: usize = 16;
pub(crate) const BACKGROUND_IN_FLIGHT_MAX: usize = IN_FLIGHT_MAX / 2;
/// How many calls on-demand work may run ahead of the rate: background work waits for no more than these.
const DEBT_CALLS_MAX: u32 = 4;

/// So many calls a second.
#[derive(Debug)]
pub(crate) struct Rate {
    clock: Clock,
    /// Between two calls.
    spacing: Duration,
    /// When the next call may start.
    next: Mutex<Instant>,
}

impl Rate {
    /// `rate` is in calls per second, at least 1.
    pub(crate) fn new(rate: u32, clock: Clock) -> Self {
        Self { clock, spacing: Duration::from_secs(1) / rate.max(1), next: Mutex::default() }
    }

    async fn turn(&self) {
        let start = self.take_slot(self.clock.now(), Instant::from_nanos(u64::MAX));
        self.clock.sleep_until(start).await;
    }

    /// Takes the next start time, and moves the one after it on, at most to `latest`.
    fn take_slot(&self, now: Instant, latest: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*next).max(now);
        *next = start.plus(self.spacing).min(latest).max(*next);
        start
    }
}

#[derive(Debug)]
pub(crate) struct Budget {
    rate: Rate,
    places: Turns<Group>,
    background: Arc<Semaphore>,
}

/// Who gets places in turn: the KEK version that is concerned, if one is, and whether it is the background.
type Group = (Option<KekVersion>, bool);

/// A place, for one call at a time; given back when it is dropped. Who has one waits for no other: all might be held by those who do.
#[derive(Debug)]
pub(crate) struct Place {
    of: Option<KekVersion>,
    is_on_demand: bool,
    _place: Permit<Group>,
    _background: Option<OwnedSemaphorePermit>,
}

impl Budget {
    /// `rate` is in background calls per second, at least 1.
    pub(crate) fn new(rate: u32, clock: Clock) -> Self {
        Self {
            rate: Rate::new(rate, clock),
            places: Turns::new(IN_FLIGHT_MAX),
            background: Arc::new(Semaphore::new(BACKGROUND_IN_FLIGHT_MAX)),
        }
    }

    /// A place for a call that somebody waits for.
    pub(crate) async fn on_demand(&self, kek: Option<&KekVersion>) -> Place {
        let now = self.rate.clock.now();
        self.rate.take_slot(now, now.plus(self.rate.spacing * DEBT_CALLS_MAX));
        let place = self.places.take((kek.cloned(), false)).await;
        Place { of: kek.cloned(), is_on_demand: true, _place: place, _background: None }
    }

    /// A place for a call that nobody waits for, at the rate.
    pub(crate) async fn background(&self, kek: Option<&KekVersion>) -> Place {
        // The semaphore is never closed; if it were, there would be no limit rather than no service.
        let background = self.background.clone().acquire_owned().await.ok();
        self.rate.turn().await;
        self.behind(kek, background).await
    }

    /// As [`Budget::background`], at another rate. Its turn is waited for first: whoever has a slow one holds no place meanwhile.
    pub(crate) async fn background_at(&self, rate: &Rate, kek: Option<&KekVersion>) -> Place {
        rate.turn().await;
        let background = self.background.clone().acquire_owned().await.ok();
        self.behind(kek, background).await
    }

    async fn behind(&self, kek: Option<&KekVersion>, background: Option<OwnedSemaphorePermit>) -> Place {
        let place = self.places.take((kek.cloned(), true)).await;
        Place { of: kek.cloned(), is_on_demand: false, _place: place, _background: background }
    }

    /// A place of this budget for one of another, which is given back first.
    pub(crate) async fn instead_of(&self, place: Place) -> Place {
        let (kek, is_on_demand) = (place.of.clone(), place.is_on_demand);
        drop(place);
        if is_on_demand { self.on_demand(kek.as_ref()).await } else { self.background(kek.as_ref()).await }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn background_calls_come_at_the_rate_and_on_demand_calls_at_once() {
        let manual = ManualClock::new(Instant::from_nanos(1));
        let budget = Arc::new(Budget::new(10, Clock::Manual(manual.clone())));
        let started = Arc::new(Mutex::new(0));
        for _ in 0..30 {
            let (budget, started) = (budget.clone(), started.clone());
            tokio::spawn(async move {
                drop(budget.background(None).await);
                *started.lock().unwrap() += 1;
            });
        }
        settle().await;
        let mut counts = Vec::new();
        for _ in 0..4 {
            counts.push(*started.lock().unwrap());
            manual.advance(Duration::from_millis(100));
            settle().await;
        }
        assert_eq!(counts, [1, 2, 3, 4]);
        for _ in 0..100 {
            drop(budget.on_demand(None).await);
        }
        settle().await;
        let before = *started.lock().unwrap();
        for _ in 0..40 {
            manual.advance(Duration::from_millis(100));
            settle().await;
        }
        assert!(*started.lock().unwrap() > before, "a rush does not stop the background for good");
    }

    #[tokio::test]
    async fn background_calls_leave_half_of_the_places() {
        let budget = Budget::new(u32::MAX, Clock::Boottime);
        let mut held = Vec::new();
        for _ in 0..BACKGROUND_IN_FLIGHT_MAX {
            held.push(budget.background(None).await);
        }
        for _ in 0..IN_FLIGHT_MAX - BACKGROUND_IN_FLIGHT_MAX {
            held.push(budget.on_demand(None).await);
        }
        assert_eq!(budget.places.free(), 0);
        held.clear();
        assert_eq!(budget.places.free(), IN_FLIGHT_MAX);
    }
}
