//! What an engine counted so far, for metrics.

use super::Engine;
use crate::{
    engine::{EngineHealth, Health, LeaseStatus},
    keyring::by_account::AccountCounts,
    name::{KekName, TokenName},
    rotate::RewrapProgress,
    secret::{self, fork},
    store::word::StoreSilence,
    telemetry::trail::Standing,
    token::{Workers, unwraps::Unwraps},
};

/// What an engine counted since it was begun, and how it stands. Numbers of accounts and names of KEKs and tokens; no account's id but in
/// [`Counts::by_account`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Counts {
    /// How well it serves.
    pub health: EngineHealth,
    /// Every token, the default first.
    pub tokens: Vec<TokenCounts>,
    /// The leases of all KEK versions in use, that the caller may `get`.
    pub leases: Vec<LeaseStatus>,
    /// Accounts in the index, or with a handle.
    pub accounts: u64,
    /// Calls that found an account with its key in memory.
    pub index_hits: u64,
    /// Calls that did not, and had to wait.
    pub index_misses: u64,
    /// AEKs in memory.
    pub keys: u64,
    /// AEKs that were taken out of memory: denied, lapsed, evicted, idle or dropped.
    pub wipes: u64,
    /// Of them those that are still used by a seal or open that does not end.
    pub waiting_wipes: u64,
    /// Bytes of key memory that could not be locked, in the whole process.
    pub unlocked_bytes: u64,
    /// The key store's silence, while it does not answer.
    pub store_silence: Option<StoreSilence>,
    /// The store's policy cannot be read.
    pub policy_damaged: bool,
    /// Calls that were refused because they are not granted.
    pub forbidden: u64,
    /// How often each kind of [`Event`](crate::telemetry::Event) was told, by its name.
    pub events: Vec<(&'static str, u64)>,
    /// Re-wraps that are under way in this process, and how far they have got.
    pub rewraps: Vec<(KekName, RewrapProgress)>,
    /// Accounts that were re-wrapped.
    pub rewrapped: u64,
    /// How the trail stands; `None` without one, and where it does not say.
    pub trail: Option<Standing>,
    /// By account, of up to [`Settings::metric_accounts`](crate::config::Settings#structfield.metric_accounts), and of all others together: those
    /// of which the first handle was asked for, or the first key unwrapped. Empty where that is 0.
    pub by_account: Vec<AccountCounts>,
}

/// What was counted of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenCounts {
    /// Its name in this engine.
    pub name: TokenName,
    /// Its workers.
    pub workers: Workers,
    /// Calls that are inside of its module, hanging ones too: so many workers are busy.
    pub in_flight: usize,
    /// Its unwraps. A time is that of the whole call, with the wait for a worker.
    pub unwraps: Unwraps,
}

impl Engine {
    /// What was counted so far, at once and without asking anybody. It goes through the accounts in use, as a round of the engine's own
    /// tending does (tens of milliseconds for a million), so ask some times a minute. Nothing is said in a forked child.
    pub fn counts(&self) -> Counts {
        if fork::in_child() {
            return Counts::of_child();
        }
        let keyring = self.keyring();
        let leases = self.leases();
        let (index_hits, index_misses) = keyring.looked_up();
        let token = |seat: &std::sync::Arc<crate::token::seats::Seat>| TokenCounts {
            name: seat.name.clone(),
            workers: seat.workers(),
            in_flight: seat.in_flight(),
            unwraps: seat.unwraps.so_far(),
        };
        let progress = |(kek, (accounts, done)): (KekName, (u64, u64))| (kek, RewrapProgress { accounts, done });
        Counts {
            health: self.health_of(&leases),
            tokens: keyring.tokens.seats().map(token).collect(),
            leases,
            accounts: keyring.living_accounts(),
            index_hits,
            index_misses,
            keys: keyring.memory.filled() as u64,
            wipes: keyring.memory.wiped(),
            waiting_wipes: keyring.memory.waiting().len() as u64,
            unlocked_bytes: secret::unlocked_bytes() as u64,
            store_silence: keyring.store_word.status(keyring.clock.now()),
            policy_damaged: keyring.access.damage().is_some(),
            forbidden: keyring.access.force.refused(),
            events: keyring.teller.counts(),
            rewraps: keyring.rewraps.under_way().into_iter().map(progress).collect(),
            rewrapped: keyring.rewraps.moved(),
            trail: keyring.on_trail.standing(),
            by_account: keyring.by_account.so_far(),
        }
    }
}

impl Counts {
    fn of_child() -> Self {
        Self {
            health: EngineHealth { health: Health::Dark, keks: Vec::new() },
            tokens: Vec::new(),
            leases: Vec::new(),
            accounts: 0,
            index_hits: 0,
            index_misses: 0,
            keys: 0,
            wipes: 0,
            waiting_wipes: 0,
            unlocked_bytes: 0,
            store_silence: None,
            policy_damaged: false,
            forbidden: 0,
            events: Vec::new(),
            rewraps: Vec::new(),
            rewrapped: 0,
            trail: None,
            by_account: Vec::new(),
        }
    }
}
