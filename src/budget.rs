//! The budget of token calls that unwrap AEKs: how many at once, and how many a second.
//!
//! Whoever waits for a key goes first: on-demand unwraps are counted but never held back by the rate, while refresh,
//! resumption and re-wrap share what is left and never take more than half of the places. Proofs are outside the
//! budget: the leash must not wait in a queue.

use crate::clock::{Clock, Instant};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Unwraps in flight at most, proofs not counted. More than a token has workers, so that none idles.
pub(crate) const IN_FLIGHT_MAX: usize = 16;
pub(crate) const BACKGROUND_IN_FLIGHT_MAX: usize = IN_FLIGHT_MAX / 2;
/// How many calls on-demand work may run ahead of the rate: background work waits for no more than these.
const DEBT_CALLS_MAX: u32 = 4;

#[derive(Debug)]
pub(crate) struct Budget {
    clock: Clock,
    /// Between two background calls, so that they come at the rate.
    spacing: Duration,
    /// When the next background call may start.
    next: Mutex<Instant>,
    places: Arc<Semaphore>,
    background: Arc<Semaphore>,
}

/// A place; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _place: Option<OwnedSemaphorePermit>,
    background: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Somebody waits for the call that it is for.
    pub(crate) fn is_on_demand(&self) -> bool {
        self.background.is_none()
    }
}

impl Budget {
    /// `rate` is in calls per second, at least 1.
    pub(crate) fn new(rate: u32, clock: Clock) -> Self {
        Self {
            clock,
            spacing: Duration::from_secs(1) / rate.max(1),
            next: Mutex::default(),
            places: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            background: Arc::new(Semaphore::new(BACKGROUND_IN_FLIGHT_MAX)),
        }
    }

    /// A place for a call that somebody waits for.
    pub(crate) async fn on_demand(&self) -> Place {
        let now = self.clock.now();
        self.take_slot(now, now.plus(self.spacing * DEBT_CALLS_MAX));
        // The semaphore is never closed; if it were, there would be no limit rather than no service.
        Place { _place: self.places.clone().acquire_owned().await.ok(), background: None }
    }

    /// A place for a call that nobody waits for, at the rate.
    pub(crate) async fn background(&self) -> Place {
        let background = self.background.clone().acquire_owned().await.ok();
        let start = self.take_slot(self.clock.now(), Instant::from_nanos(u64::MAX));
        self.clock.sleep_until(start).await;
        Place { _place: self.places.clone().acquire_owned().await.ok(), background }
    }

    /// Takes the next start time, and moves the one after it on, at most to `latest`.
    fn take_slot(&self, now: Instant, latest: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*next).max(now);
        *next = start.plus(self.spacing).min(latest).max(*next);
        start
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
                drop(budget.background().await);
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
            drop(budget.on_demand().await);
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
            held.push(budget.background().await);
        }
        for _ in 0..IN_FLIGHT_MAX - BACKGROUND_IN_FLIGHT_MAX {
            held.push(budget.on_demand().await);
        }
        assert_eq!(budget.places.available_permits(), 0);
        held.clear();
        assert_eq!(budget.places.available_permits(), IN_FLIGHT_MAX);
    }
}
