//! What is done for the trail once a second: whether data may be used is looked at, and once a minute the sums of handles are told. What
//! lasts and is no event, that a KEK version is not proved or a token has no workers, is told as it begins and as it is over.

use crate::{
    clock::Instant,
    home::beat::Beat,
    keyring::{Keyring, on_trail::of_kek},
    name::{KekVersion, TokenName},
    telemetry::trail::{Deed, Outcome},
    watch,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How often it is looked whether the trail lets data be used.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the sums of handles are told.
const SUMS_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked what lasts.
const LASTING_EVERY: Duration = Duration::from_secs(5);
/// What lasts that who follows waits for is said again so often.
const SAID_AGAIN: Duration = Duration::from_secs(10 * 60);
/// A KEK version that was not proved for so many poll intervals is told of; and nobody wants it any more where nobody did for
/// [`SAID_AGAIN`].
const POLLS_MISSED: u32 = 3;

/// For as long as the engine lives. What the trail says now counts from now on.
pub(super) fn begin(keyring: &Arc<Keyring>) {
    keyring.look_at_trail();
    keyring.note_of_itself(Deed::EngineBegin, |_| {});
    // Whoever looks after it when the one before failed knows what was told.
    let lasting = Arc::new(Mutex::new(Lasting::default()));
    watch::supervise(keyring, "trail", move |keyring, beat, _| {
        keyring.home.upkeep.spawn(look_after(keyring.clone(), beat, lasting.clone())).abort_handle()
    });
}

async fn look_after(keyring: Arc<Keyring>, beat: Arc<Beat>, lasting: Arc<Mutex<Lasting>>) {
    let mut next_sums = keyring.clock.now().plus(SUMS_EVERY);
    let mut next_lasting = keyring.clock.now();
    while !keyring.is_closed() {
        let now = keyring.clock.now();
        beat.at(now);
        keyring.look_at_trail();
        if now >= next_sums {
            next_sums = now.plus(SUMS_EVERY);
            keyring.tell_sums(false, |now| beat.at(now)).await;
        }
        if now >= next_lasting {
            next_lasting = now.plus(LASTING_EVERY);
            lasting.lock().unwrap_or_else(PoisonError::into_inner).look(&keyring);
        }
        keyring.clock.sleep_until(now.plus(LOOK_EVERY)).await;
    }
}

/// What was told that lasts.
#[derive(Debug, Default)]
struct Lasting {
    unproved: BTreeMap<KekVersion, Unproved>,
    spent: BTreeSet<TokenName>,
}

/// A KEK version that is wanted, and of which no proof came of late, or ever.
#[derive(Debug)]
struct Unproved {
    /// The newest proof; where there is none, when it was wanted first.
    since: Instant,
    /// When it was wanted last.
    wanted: Instant,
    /// When it was told last.
    told: Option<Instant>,
}

impl Lasting {
    fn look(&mut self, keyring: &Keyring) {
        let (now, missed) = (keyring.clock.now(), keyring.settings.poll_interval * POLLS_MISSED);
        let mut proved = BTreeSet::new();
        // Who cannot be proved is forgotten between two attempts to open an account under it: what was is remembered here.
        for kek in keyring.on_trail.given_up() {
            self.wants(kek, None, now);
        }
        for leash in keyring.leashes() {
            let kek = leash.kek().clone();
            match leash.lease().proved() {
                Some(asked) if now.since(asked) <= missed => drop(proved.insert(kek)),
                Some(asked) => self.wants(kek, Some(asked), now),
                None if leash.has_trouble() || leash.member(0).is_some() => self.wants(kek, None, now),
                // Asked for by nobody: its record was looked at, say.
                None => {}
            }
        }
        self.unproved.retain(|kek, unproved| {
            let outcome = match proved.contains(kek) {
                true => Outcome::Done,
                false if now.since(unproved.wanted) >= SAID_AGAIN => Outcome::Dropped,
                false => return true,
            };
            if unproved.told.is_some() {
                keyring.note_of_itself(Deed::Proved, |record| (record.on, record.outcome) = (of_kek(kek), outcome));
            }
            false
        });
        for (kek, unproved) in &mut self.unproved {
            let is_late = unproved.wanted.since(unproved.since) > missed;
            // Again while it lasts: who follows and began anew meanwhile has not heard of it, and may wait for it to last.
            if is_late && unproved.told.is_none_or(|told| now.since(told) >= SAID_AGAIN) {
                unproved.told = Some(now);
                let took = Some(now.since(unproved.since));
                keyring.note_of_itself(Deed::NotProved, |record| (record.on, record.took) = (of_kek(kek), took));
            }
        }
        for seat in keyring.tokens.seats() {
            let deed = match (seat.workers().restart_needed(), self.spent.contains(&seat.name)) {
                (true, false) if self.spent.insert(seat.name.clone()) => Deed::WorkersSpent,
                (false, true) if self.spent.remove(&seat.name) => Deed::WorkersBack,
                _ => continue,
            };
            keyring.note_of_itself(deed, |record| record.on.token = Some(seat.name.clone()));
        }
    }

    /// It is wanted now, and was not proved since then, or ever.
    fn wants(&mut self, kek: KekVersion, proved: Option<Instant>, now: Instant) {
        let since = proved.unwrap_or(now);
        let unproved = self.unproved.entry(kek).or_insert(Unproved { since, wanted: now, told: None });
        (unproved.since, unproved.wanted) = (unproved.since.max(proved.unwrap_or_default()), now);
    }
}
