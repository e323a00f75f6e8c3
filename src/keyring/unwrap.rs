//! From a wrapped AEK to a slot that is filled: one unwrap for all who wait, and what it goes by.

use super::{
    Keyring,
    ask::Heard,
    on_trail::{asked_by, asker},
    records::{Found, Reading},
};
use crate::{
    clock::Instant,
    config::REFRESH_PERCENT,
    error::{Corrupt, Error, Result},
    secret::Aek,
    slots::slot::AekSlot,
    store::record::WrappedAek,
    token::{TokenError, budget::Place},
};
use std::{sync::Arc, time::Duration};
use tracing::Instrument;

/// While a KEK version is denied, lapsed or silent, callers make the token be asked at most once in this time; the watch asks too.
pub(super) const REFUSED_ASK_PAUSE: Duration = Duration::from_secs(1);
/// How often a key is unwrapped for somebody who waits, when its TTL has gone by each time (a suspend, a queue that is as long).
const WARM_ROUNDS_MAX: usize = 3;

/// What an unwrap begins with.
pub(crate) enum Start {
    /// Nothing, or the record that the account's keys were just made of. Somebody waits for it.
    OnDemand(Option<Reading>),
    /// All that it needs.
    Ready(Ready),
}

/// Where an AEK goes.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    /// `old`, or its successor.
    pub(super) slot: &'a Arc<AekSlot>,
    pub(super) old: &'a AekSlot,
    /// As [`Found`] has it.
    pub(super) newer: &'a [Arc<AekSlot>],
}

/// What an unwrap needs: the record first, because a store that hangs must not hold up those who have it, and then the place.
pub(crate) struct Ready {
    pub(crate) found: Found,
    pub(crate) place: Place,
}

/// A wrapped AEK that could not be unwrapped.
pub(crate) enum Trouble {
    /// What the token said.
    Token(TokenError),
    /// The token gave 32 bytes that are not the AEK: it was moved, or another KEK stands in this one's place.
    OtherKey,
}

impl Keyring {
    /// Fills a slot for somebody who waits, if it is not usable. Single-flight; the unwrap runs on, whoever of those that
    /// wait goes away.
    pub(crate) async fn warm(self: &Arc<Self>, slot: &Arc<AekSlot>) -> Result<()> {
        self.warm_from(slot, None).await
    }

    /// As [`Keyring::warm`]: at once where there is nothing to do, else at home.
    pub(crate) async fn warm_for_caller(self: &Arc<Self>, slot: &Arc<AekSlot>) -> Result<()> {
        if slot.is_usable(self.clock.now()) {
            return Ok(());
        }
        let (keyring, slot) = (self.clone(), slot.clone());
        self.call(async move { keyring.warm(&slot).await }).await
    }

    pub(super) async fn warm_from(self: &Arc<Self>, slot: &Arc<AekSlot>, mut reading: Option<Reading>) -> Result<()> {
        let mut outcome = Ok(());
        for _ in 0..WARM_ROUNDS_MAX {
            if slot.is_usable(self.clock.now()) {
                return Ok(());
            }
            outcome = self.refill(slot, Start::OnDemand(reading.take())).await;
            if slot.is_retired() || !matches!(outcome, Err(Error::Cold { .. })) {
                break;
            }
        }
        outcome
    }

    /// Unwraps a slot's AEK anew, whether or not it is usable.
    pub(crate) async fn refill(self: &Arc<Self>, slot: &Arc<AekSlot>, start: Start) -> Result<()> {
        let mut outcome = self.flights.join(slot, |landing| {
            let keyring = self.clone();
            let flight = async move {
                let outcome = keyring.unwrap_into(&landing.slot, start).await;
                landing.land(outcome);
            };
            self.home.calls.spawn(asked_by(asker(), flight.in_current_span()));
        });
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            // It panicked: all else goes on, and so may this account with the next attempt.
            _ => Err(Error::Fatal("the unwrap of this account panicked, see the log: try again, and report it".into())),
        }
    }

    async fn unwrap_into(self: &Arc<Self>, slot: &Arc<AekSlot>, start: Start) -> Result<()> {
        let came = self.clock.now();
        let _guard = self.shut_guard(slot.account());
        let Ready { found: Found { wrapped, read, guard: _reading_guard, heir, newer, .. }, place } = match start {
            Start::Ready(ready) => ready,
            Start::OnDemand(reading) if slot.leash.may_ask(came, REFUSED_ASK_PAUSE) => {
                self.prepare(slot, reading).await.inspect_err(|error| slot.shut_if_gone(error))?
            }
            Start::OnDemand(_) => return Err(slot.leash.why_not()),
        };
        let target = Target { slot: heir.as_ref().unwrap_or(slot), old: slot, newer: &newer };
        let outcome = self.unwrap_found(target, &wrapped, (came, read), place).await;
        // What the KEK version of the record says counts from now on. While it says nothing, or refuses the record, the slot
        // stays as it is, under its own lease and TTL: an outage takes nothing away.
        if let Some(heir) = heir
            && matches!(outcome, Ok(()) | Err(Error::Denied(_)))
            && let Some(keys) = self.alive(slot.account())
        {
            keys.hand_over(heir);
            self.changed.notify_waiters();
        }
        outcome
    }

    /// Unwraps for a call that `came` then, from a record that was `read` then.
    pub(super) async fn unwrap_found(
        self: &Arc<Self>,
        Target { slot, old, newer }: Target<'_>,
        wrapped: &WrappedAek,
        (came, read): (Instant, Instant),
        place: Place,
    ) -> Result<()> {
        // A queue in front of a silent token is not worked off one deadline after the other.
        if slot.leash.was_silent(came) {
            return Err(slot.leash.why_not());
        }
        if self.clock.now() >= read.plus(self.settings.aek_ttl) {
            return Err(slot.cold());
        }
        let epoch = self.asking(&slot.leash);
        let Heard { voice, outcome } = self.unwrap_verified(&slot.leash, slot.account(), wrapped, place).await;
        match outcome {
            Ok(unwrapped) => {
                if !self.grant(&slot.leash, voice, (slot.account(), wrapped), &unwrapped, epoch) {
                    self.keep_unproved(&wrapped.kek, slot.account(), wrapped);
                    self.vouch_answered(&slot.leash).await?; // it is admitted on the proof of another record
                } else if !self.samples().proved.contains_key(&wrapped.kek) {
                    self.keep_sample(&wrapped.kek, slot.account(), wrapped);
                }
                let aek = unwrapped.aek;
                if old.differs_from(&aek) || slot.differs_from(&aek) {
                    // An AEK version has one AEK for good. Another one that verifies was made by who can write the store.
                    return Err(Corrupt::WrappedAek(format!("account {}", slot.account())).into());
                }
                if let Some(keys) = self.alive(slot.account()).filter(|_| !newer.is_empty()) {
                    newer.iter().for_each(|newer| keys.add(newer.clone()));
                    self.changed.notify_waiters();
                }
                self.admit(slot, &aek, epoch, read)
            }
            Err(Trouble::OtherKey) => Err(Corrupt::WrappedAek(format!("account {}", slot.account())).into()),
            Err(Trouble::Token(trouble)) => Err(self.learn_trouble(&slot.leash, voice, slot.account(), &trouble).await),
        }
    }

    /// Puts an AEK into its slot that was asked for, and its record read, at `since` or later. Its TTL counts from then, however
    /// long it waited in between: what others store of the account meanwhile (its deletion, a newer AEK version) is heard of
    /// within one TTL.
    ///
    /// # Errors
    /// As [`AekSlot::admit`]; [`Error::Cold`] when that TTL is over.
    pub(crate) fn admit(&self, slot: &Arc<AekSlot>, aek: &Aek, epoch: u64, since: Instant) -> Result<()> {
        let ttl = self.settings.aek_ttl;
        if self.clock.now() >= since.plus(ttl) {
            return Err(slot.cold());
        }
        let percent = REFRESH_PERCENT.start + self.jitter.below(REFRESH_PERCENT.end - REFRESH_PERCENT.start);
        let refresh_after = ttl.mul_f64(percent as f64 / 100.0);
        self.room.admit(slot, &self.memory, || slot.admit(aek, epoch, since.plus(refresh_after), since.plus(ttl)))
    }
}
