//! What the command line says of a scenario: how many accounts, which settings, and whom it may cost something.

use keyleash::{config::Settings, drill::Scenario};
use std::time::Duration;

/// Accounts where nothing is said.
const ACCOUNTS: u32 = 50;
const FLEET_ACCOUNTS: u32 = 10_000;
/// Enough for a re-wrap to take a while.
const ROTATION_ACCOUNTS: u32 = 1000;

pub(crate) const fn accounts(scenario: Scenario) -> u32 {
    match scenario {
        Scenario::Fleet => FLEET_ACCOUNTS,
        Scenario::Rotation => ROTATION_ACCOUNTS,
        _ => ACCOUNTS,
    }
}

/// True for what could cost more than the drill's own KEK for a while.
pub(crate) const fn is_destructive(scenario: Scenario) -> bool {
    matches!(scenario, Scenario::Destroy | Scenario::TokenRemoved | Scenario::PinChanged)
}

/// The settings of the drill: those in force, or the fast ones.
pub(crate) fn in_force(scenario: Scenario, settings: &Settings, fast: bool, accounts: u32) -> Settings {
    // Room for the drill's accounts, in two AEK versions, not for a service's: less memory to lock.
    let mut settings = settings.clone().max_cached_aeks(2 * u64::from(accounts) + 64);
    // Its KEK is destroyed in the end.
    settings.require_recoverable = false;
    if fast {
        settings.poll_interval = Duration::from_secs(1);
        settings.store_timeout = Duration::from_secs(1);
        settings.grace = Duration::from_secs(10);
        settings.aek_ttl = settings.grace;
        if scenario == Scenario::PinChanged {
            settings.fresh_proof_every = 3;
        }
        if scenario == Scenario::Fleet {
            // A TTL of seconds refreshes a fleet every few seconds.
            settings.resume_rate = 5000;
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_valid_settings() {
        for scenario in Scenario::ALL {
            for fast in [true, false] {
                in_force(scenario, &Settings::default(), fast, 50).validate().unwrap();
            }
        }
    }
}
