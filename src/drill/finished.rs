//! A drill that is over, before anybody judges it.

use super::{operator::Who, scenario::Scenario, timeline::Timeline};
use crate::{
    config::Settings,
    token::{Profile, TokenInfo},
};
use std::time::Duration;

/// A drill that is over.
#[derive(Debug, Clone)]
pub(crate) struct Finished {
    pub(crate) scenario: Scenario,
    pub(crate) settings: Settings,
    /// The token's call timeout.
    pub(crate) timeout: Duration,
    pub(crate) who: Who,
    pub(crate) accounts: u32,
    pub(crate) threads: u32,
    /// Processes that serve, each with all accounts.
    pub(crate) nodes: u32,
    pub(crate) profile: Profile,
    pub(crate) slack: Duration,
    pub(crate) token: TokenInfo,
    pub(crate) started_unix: u64,
    pub(crate) timeline: Timeline,
    /// Unwraps that the token served, and that it did not.
    pub(crate) unwraps: (u64, u64),
    /// What `rotation` did.
    pub(crate) rotated: Option<Rotated>,
}

/// What a rotation did, and how long it took.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rotated {
    pub(crate) rewrapped: u64,
    pub(crate) rewrap: Duration,
    pub(crate) aek_rotation: Duration,
    /// Accounts that are under the old KEK version at the end.
    pub(crate) left_behind: u64,
    /// Accounts whose handles did not take up their new AEK version, by the headers of what they sealed.
    pub(crate) not_rotated: u64,
}
