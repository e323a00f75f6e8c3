//! What is done for the trail once a second: whether data may be used is looked at, and once a minute the sums of handles are told. What
//! lasts and is no event, that a KEK version is not proved or a token has no workers, is told as it begins and as it is over.

use crate::{
    clock::Instant,
    home::beat::Beat,
    keyring::{Keyring, on_trail::of_kek},
    name::{KekVersion, TokenName},
    telemetry::trail::{Deed, Record},
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
/// A KEK version that was not proved for so many poll intervals is told of.
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
    /// When it was said last.
    not_proved: BTreeMap<KekVersion, Instant>,
    spent: BTreeSet<TokenName>,
}

impl Lasting {
    fn look(&mut self, keyring: &Keyring) {
        let (leases, missed) = (keyring.leases(), keyring.settings.poll_interval * POLLS_MISSED);
        let now = keyring.clock.now();
        let late: BTreeMap<_, _> = leases
            .into_iter()
            .filter_map(|lease| Some((lease.kek, lease.proved_ago.filter(|ago| *ago > missed)?)))
            .collect();
        self.not_proved.retain(|kek, _| {
            let is_late = late.contains_key(kek);
            if !is_late {
                keyring.note_of_itself(Deed::Proved, |record| record.on = of_kek(kek));
            }
            is_late
        });
        for (kek, ago) in late {
            // Again while it lasts: who follows and began anew meanwhile has not heard of it, and may wait for it to last.
            if self.not_proved.get(&kek).is_none_or(|said| now.since(*said) >= SAID_AGAIN) {
                self.not_proved.insert(kek.clone(), now);
                let tell = |record: &mut Record| (record.on, record.took) = (of_kek(&kek), Some(ago));
                keyring.note_of_itself(Deed::NotProved, tell);
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
}
