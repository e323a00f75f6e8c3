//! What is done for the trail once a second: whether data may be used is looked at, and once a minute the sums of handles are told.

use crate::{
    home::beat::Beat,
    keyring::Keyring,
    telemetry::trail::{Deed, Outcome},
    watch,
};
use std::{sync::Arc, time::Duration};

/// How often it is looked whether the trail lets data be used.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the sums of handles are told.
const SUMS_EVERY: Duration = Duration::from_secs(60);

/// For as long as the engine lives. What the trail says now counts from now on.
pub(super) fn begin(keyring: &Arc<Keyring>) {
    let _ = keyring.look_at_trail(); // whoever asks is told
    keyring.note_of(Deed::EngineBegin, || Outcome::Done, |_| {});
    watch::supervise(keyring, "trail", |keyring, beat, _| {
        keyring.home.upkeep.spawn(look_after(keyring.clone(), beat)).abort_handle()
    });
}

async fn look_after(keyring: Arc<Keyring>, beat: Arc<Beat>) {
    let mut next_sums = keyring.clock.now().plus(SUMS_EVERY);
    while !keyring.is_closed() {
        let now = keyring.clock.now();
        beat.at(now);
        let _ = keyring.look_at_trail();
        if now >= next_sums {
            next_sums = now.plus(SUMS_EVERY);
            keyring.tell_sums(false, |now| beat.at(now)).await;
        }
        keyring.clock.sleep_until(now.plus(LOOK_EVERY)).await;
    }
}
