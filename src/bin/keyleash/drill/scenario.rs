//! The scenarios: what each rehearses and which end it owes.

use keyleash::config::Settings;
use std::time::Duration;

/// Accounts where nothing is said.
const ACCOUNTS: u32 = 50;
const FLEET_ACCOUNTS: u32 = 10_000;
/// Enough for a re-wrap to take a while.
const ROTATION_ACCOUNTS: u32 = 1000;
/// An outage shorter than grace takes this part of it, in percent.
const OUTAGE_PERCENT: u32 = 60;
/// A hang lasts for so many poll intervals: each may cost the token a worker, of which it has eight to lose.
const HANG_POLLS: u32 = 4;
/// How often flapping goes away and comes back.
pub(crate) const FLAPS: u32 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    Revocation,
    Destroy,
    TokenRemoved,
    PinChanged,
    Outage,
    LongOutage,
    Flapping,
    Hang,
    Restart,
    Fleet,
    Rotation,
}

/// The end that a scenario owes between the act and the undoing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owed {
    /// Everything is refused as denied, at the latest after this long.
    Denied(Duration),
    /// Everything works until grace ends, and is refused as lapsed then.
    Lapsed,
    /// Everything works, all the time that the trouble lasts.
    Service(Duration),
    /// Everything works, all the time.
    Undisturbed,
}

impl Scenario {
    pub(crate) const ALL: [Self; 11] = [
        Self::Revocation,
        Self::Destroy,
        Self::TokenRemoved,
        Self::PinChanged,
        Self::Outage,
        Self::LongOutage,
        Self::Flapping,
        Self::Hang,
        Self::Restart,
        Self::Fleet,
        Self::Rotation,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Revocation => "revocation",
            Self::Destroy => "destroy",
            Self::TokenRemoved => "token-removed",
            Self::PinChanged => "pin-changed",
            Self::Outage => "outage",
            Self::LongOutage => "long-outage",
            Self::Flapping => "flapping",
            Self::Hang => "hang",
            Self::Restart => "restart",
            Self::Fleet => "fleet",
            Self::Rotation => "rotation",
        }
    }

    /// What happens, for somebody who was not there.
    pub(crate) const fn story(self) -> &'static str {
        match self {
            Self::Revocation => "The KEK is disabled in the token by another process, then enabled again.",
            Self::Destroy => {
                "The KEK is destroyed in the token by another process, then the token is restored from a backup."
            }
            Self::TokenRemoved => "The token vanishes from its module for longer than grace, then comes back.",
            Self::PinChanged => "The user PIN is changed by another process, then the service is given the new one.",
            Self::Outage => "The token is unreachable for less than grace. Nobody must notice.",
            Self::LongOutage => {
                "The token is unreachable for longer than grace: service ends with grace, and comes back with the token."
            }
            Self::Flapping => "The token goes away and comes back, again and again. Nobody must notice.",
            Self::Hang => "Calls into the PKCS#11 module hang for a while. Nobody must notice.",
            Self::Restart => {
                "The process is killed and started again while active, while denied, while denied and unreachable, and while unreachable."
            }
            Self::Fleet => "The KEK of a whole fleet of accounts is disabled, then enabled again.",
            Self::Rotation => {
                "The KEK is rotated, every AEK re-wrapped and rotated, and the old KEK version retired and destroyed in the \
                 token. Nobody must notice."
            }
        }
    }

    pub(crate) const fn accounts(self) -> u32 {
        match self {
            Self::Fleet => FLEET_ACCOUNTS,
            Self::Rotation => ROTATION_ACCOUNTS,
            _ => ACCOUNTS,
        }
    }

    /// True for what could cost more than the drill's own KEK for a while.
    pub(crate) const fn is_destructive(self) -> bool {
        matches!(self, Self::Destroy | Self::TokenRemoved | Self::PinChanged)
    }

    pub(crate) fn owed(self, settings: &Settings) -> Owed {
        let answer = settings.poll_interval + settings.store_timeout;
        match self {
            Self::Revocation | Self::Destroy | Self::Restart | Self::Fleet => Owed::Denied(answer),
            // A context that is open does not notice; the next fresh proof does.
            Self::PinChanged => Owed::Denied(settings.poll_interval * settings.fresh_proof_every + answer),
            Self::TokenRemoved | Self::LongOutage => Owed::Lapsed,
            Self::Outage => Owed::Service(settings.grace * OUTAGE_PERCENT / 100),
            Self::Hang => Owed::Service(settings.poll_interval * HANG_POLLS),
            Self::Flapping => Owed::Service(settings.poll_interval * 3 * FLAPS),
            Self::Rotation => Owed::Undisturbed,
        }
    }

    /// The settings of the drill: those in force, or the fast ones.
    pub(crate) fn settings(self, in_force: &Settings, fast: bool, accounts: u32) -> Settings {
        // Room for the drill's accounts, in two AEK versions, not for a service's: less memory to lock.
        let mut settings = in_force.clone().max_cached_aeks(2 * u64::from(accounts) + 64);
        // Its KEK is destroyed in the end.
        settings.require_recoverable = false;
        if fast {
            settings.poll_interval = Duration::from_secs(1);
            settings.store_timeout = Duration::from_secs(1);
            settings.grace = Duration::from_secs(10);
            settings.aek_ttl = settings.grace;
            if self == Self::PinChanged {
                settings.fresh_proof_every = 3;
            }
            if self == Self::Fleet {
                // A TTL of seconds refreshes a fleet every few seconds.
                settings.resume_rate = 5000;
            }
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_valid_settings_and_an_outage_ends_before_grace_may() {
        for scenario in Scenario::ALL {
            for (fast, in_force) in [(true, Settings::default()), (false, Settings::default())] {
                let settings = scenario.settings(&in_force, fast, 50);
                settings.validate().unwrap();
                if let Owed::Service(away) = scenario.owed(&settings) {
                    let least = settings.grace - settings.poll_interval - settings.store_timeout;
                    assert!(scenario == Scenario::Flapping || away < least, "{scenario:?} {away:?}");
                }
            }
        }
    }
}
