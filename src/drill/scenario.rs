//! The scenarios: what each rehearses and which end it owes.

use crate::config::Settings;
use std::time::Duration;

/// An outage shorter than grace takes this part of it, in percent.
const OUTAGE_PERCENT: u32 = 60;
/// A hang lasts for so many poll intervals: each may cost the token a worker, of which it has eight to lose.
const HANG_POLLS: u32 = 4;
/// Neither takes more than this part of the time for which grace owes service, in percent: a short grace beside a long poll interval
/// would end before they do.
const OWED_PERCENT: u32 = 75;
/// How often flapping goes away and comes back.
pub(crate) const FLAPS: u32 = 4;

/// What is rehearsed: what the operator takes away and gives back, and what is owed in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scenario {
    /// The KEK is disabled in the token, then enabled again: denied within `poll_interval + call_timeout`.
    Revocation,
    /// The KEK is destroyed in the token, then restored: the same.
    Destroy,
    /// The token vanishes from its module, for longer than grace, then comes back: service until grace ends, then lapsed.
    TokenRemoved,
    /// The user PIN is changed, then the service is given the new one: denied within
    /// `fresh_proof_every × poll_interval + poll_interval + call_timeout`.
    PinChanged,
    /// The token is unreachable for 60 % of grace: service all the time.
    Outage,
    /// The token is unreachable for longer than grace: service until grace ends, then lapsed.
    LongOutage,
    /// The token goes away and comes back, four times: service all the time.
    Flapping,
    /// Calls into the module hang for four poll intervals: service all the time.
    Hang,
    /// The process of the service is killed and started while active, denied, denied and unreachable, and unreachable: what was owed
    /// before it. Needs [`Operator::start`](super::Operator::start) and [`Operator::reach`](super::Operator::reach).
    Restart,
    /// As [`Scenario::Revocation`], of many accounts.
    Fleet,
    /// As [`Scenario::Revocation`], of several processes with one store and one token ([`Drill::nodes`](super::Drill::nodes)). Before it one
    /// is killed and begins anew, and the store loses its leader; behind it one is stopped until its lease has ended, with the key taken
    /// away meanwhile. Needs [`Operator::start`](super::Operator::start), and may
    /// [`Operator::lose_leader`](super::Operator::lose_leader).
    Nodes,
    /// The KEK is rotated, every AEK re-wrapped and rotated, the old KEK version retired and destroyed: service all the time.
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
    /// Every scenario.
    pub const ALL: [Self; 12] = [
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
        Self::Nodes,
        Self::Rotation,
    ];

    /// As the command line names it; stable.
    pub const fn name(self) -> &'static str {
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
            Self::Nodes => "nodes",
            Self::Rotation => "rotation",
        }
    }

    /// What happens, for somebody who was not there.
    pub const fn story(self) -> &'static str {
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
            Self::Nodes => {
                "Several nodes have one store and one token. One is killed and starts again; where it has one, the store loses its \
                 leader; the KEK is disabled, then enabled; and one node stands still until its lease has ended, with the KEK disabled."
            }
            Self::Rotation => {
                "The KEK is rotated, every AEK re-wrapped and rotated, and the old KEK version retired and destroyed in the \
                 token. Nobody must notice."
            }
        }
    }

    /// What serves is in processes of its own.
    pub(crate) const fn is_apart(self) -> bool {
        matches!(self, Self::Restart | Self::Nodes)
    }

    /// `timeout` is the token's call timeout.
    pub(crate) fn owed(self, settings: &Settings, timeout: Duration) -> Owed {
        let answer = settings.poll_interval + timeout;
        let most = settings.grace.saturating_sub(answer) * OWED_PERCENT / 100;
        match self {
            Self::Revocation | Self::Destroy | Self::Restart | Self::Fleet | Self::Nodes => Owed::Denied(answer),
            // A context that is open does not notice; the next fresh proof does.
            Self::PinChanged => Owed::Denied(settings.poll_interval * settings.fresh_proof_every + answer),
            Self::TokenRemoved | Self::LongOutage => Owed::Lapsed,
            Self::Outage => Owed::Service(most.min(settings.grace * OUTAGE_PERCENT / 100)),
            Self::Hang => Owed::Service(most.min(settings.poll_interval * HANG_POLLS)),
            Self::Flapping => Owed::Service(settings.poll_interval * 3 * FLAPS),
            Self::Rotation => Owed::Undisturbed,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Polls every second, and lets an outage last for ten.
    pub(crate) fn fast() -> Settings {
        let second = Duration::from_secs(1);
        let settings = Settings::default().poll_interval(second).store_timeout(second);
        settings.grace(10 * second).aek_ttl(10 * second).fresh_proof_every(3)
    }

    #[test]
    fn an_outage_ends_before_grace_may() {
        let second = Duration::from_secs(1);
        // The token's deadline stands where the store's does, as in a service that says nothing of either.
        let (tight, slow) =
            (fast().store_timeout(5 * second), Settings::default().poll_interval(60 * second).grace(240 * second));
        let all = [fast(), Settings::default(), tight, slow];
        for (scenario, settings) in Scenario::ALL.into_iter().flat_map(|it| all.clone().map(|settings| (it, settings)))
        {
            if let Owed::Service(away) = scenario.owed(&settings, settings.store_timeout) {
                let least = settings.grace - settings.poll_interval - settings.store_timeout;
                assert!(scenario == Scenario::Flapping || away < least, "{scenario:?} {away:?}");
            }
        }
    }
}
