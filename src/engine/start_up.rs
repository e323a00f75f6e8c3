//! The round trip at start-up: a mechanism list proves nothing, and a token that cannot do what its KEKs need should be
//! known before the first account is opened.

use crate::{
    error::{Error, Result},
    keyring::{Keyring, keks::round_trip},
    name::{KekVersion, TokenName},
    store::{self, Filter, Key, Pages},
    telemetry::Event,
    token::{KekHandle, Profile, Verdict, seats::Seat},
};
use std::{collections::BTreeMap, sync::Arc};

/// Proves every wrap profile that a KEK of the token has, once, as soon as it answers, and tells what fails. Denials are the
/// leases' business; nothing here grants or takes anything.
pub(super) async fn prove_profiles(keyring: Arc<Keyring>, seat: Arc<Seat>) {
    while !keyring.is_closed() {
        if try_to_prove(&keyring, &seat).await {
            return;
        }
        keyring.clock.sleep_until(keyring.clock.now().plus(keyring.settings.poll_interval)).await;
    }
}

/// False when token or store did not answer.
async fn try_to_prove(keyring: &Keyring, seat: &Seat) -> bool {
    let Ok(keks) = one_of_each_profile(keyring, &seat.name).await else { return false };
    if keks.is_empty() {
        return true;
    }
    let place = seat.budget.background(None).await;
    let token = seat.token(&place);
    if token.info().await.is_err_and(|trouble| matches!(trouble.verdict, Verdict::Unreachable | Verdict::Busy)) {
        return false;
    }
    for (profile, (kek, handle)) in keks {
        match round_trip(token, &kek, &handle).await {
            Ok(()) | Err(Error::Denied(_)) => {}
            Err(Error::Unreachable(_)) => return false,
            Err(error) => keyring.teller.tell(Event::ProfileFailed { profile, kek, error: error.to_string() }),
        }
    }
    true
}

/// The current version of a KEK for each profile that is in use in the token.
async fn one_of_each_profile(
    keyring: &Keyring,
    token: &TokenName,
) -> Result<BTreeMap<Profile, (KekVersion, KekHandle)>> {
    let (mut found, mut pages) = (BTreeMap::new(), Pages::of(&*keyring.store, &Filter::Keks));
    // Nobody else may ask the store for long after the start: what is learned of it here is told.
    while found.len() < Profile::ALL.len()
        && let Some(keys) = keyring.in_time(pages.next()).await?
    {
        for key in keys {
            let Key::Kek(name) = key else { continue };
            let record = match keyring.in_time(store::load_kek(&*keyring.store, &name)).await {
                Ok(Some((record, _))) => record,
                Err(error @ Error::Store(_)) => return Err(error),
                // A damaged record is told by whoever needs it.
                Ok(None) | Err(_) => continue,
            };
            if let Some(current) = record.current().filter(|current| current.token == *token) {
                let kek = KekVersion::new(name, current.version);
                let handle = KekHandle { id: current.id.clone(), profile: current.profile };
                found.entry(current.profile).or_insert((kek, handle));
            }
        }
    }
    Ok(found)
}
