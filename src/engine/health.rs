//! Health, for whoever routes requests by it.

use super::Engine;
use crate::{lease::Phase, leash::LeaseStatus, name::KekName, secret::fork};
use std::{collections::BTreeMap, fmt};

/// How well a KEK, or the whole engine, serves. The better is the smaller one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// Keys are in force, and can be got.
    Ready,
    /// What is in memory is sealed and opened, and something does not answer, is not proved yet, or not back yet. Send requests; see what
    /// it is before a lease runs out.
    Degraded,
    /// Nothing is sealed or opened.
    Dark,
}

impl Health {
    /// Every one, the best first.
    pub const ALL: [Self; 3] = [Self::Ready, Self::Degraded, Self::Dark];

    /// In a word: `ready`, `degraded` or `dark`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Dark => "dark",
        }
    }

    /// Ready where all are, dark where all are, degraded otherwise; `None` of none.
    fn of_all(all: impl IntoIterator<Item = Self>) -> Option<Self> {
        all.into_iter().reduce(|one, other| if one == other { one } else { Self::Degraded })
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The health of a KEK: ready where all of its versions in use are, dark where all are, degraded otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KekHealth {
    /// The KEK.
    pub kek: KekName,
    /// How well it serves.
    pub health: Health,
}

/// The health of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineHealth {
    /// The whole: dark where all KEKs in use are, or the engine is closed; ready where all are, its tokens take calls and the store
    /// answers; degraded otherwise. An engine that has not been asked for anything yet is ready.
    pub health: Health,
    /// Each KEK in use, that the caller may `get`.
    pub keks: Vec<KekHealth>,
}

impl LeaseStatus {
    /// How well the KEK version serves. Dark without a lease that runs: denied, lapsed, or not proved yet because the token is silent.
    pub fn health(&self) -> Health {
        match self.phase {
            Phase::Denied { .. } | Phase::Lapsed { .. } => Health::Dark,
            Phase::Unproven if self.trouble.is_some() => Health::Dark,
            Phase::Active if self.trouble.is_none() && self.on_standby.is_none() => Health::Ready,
            Phase::Unproven | Phase::Active | Phase::Grace { .. } | Phase::Resuming { .. } => Health::Degraded,
        }
    }
}

impl Engine {
    /// How well it serves, at once and without asking anybody: for the health check of a load balancer, which may come as often as it
    /// likes. Dark in a forked child.
    pub fn health(&self) -> EngineHealth {
        if fork::in_child() {
            return EngineHealth { health: Health::Dark, keks: Vec::new() };
        }
        self.health_of(&self.leases())
    }

    pub(super) fn health_of(&self, leases: &[LeaseStatus]) -> EngineHealth {
        let mut of: BTreeMap<&KekName, Vec<Health>> = BTreeMap::new();
        leases.iter().for_each(|lease| of.entry(&lease.kek.name).or_default().push(lease.health()));
        let kek = |(kek, of): (&KekName, Vec<Health>)| KekHealth {
            kek: kek.clone(),
            health: Health::of_all(of).unwrap_or(Health::Ready),
        };
        let keks: Vec<_> = of.into_iter().map(kek).collect();
        let keyring = self.keyring();
        let answers = keyring.store_word.status(keyring.clock.now()).is_none()
            && keyring.tokens.seats().all(|seat| !seat.workers().restart_needed());
        let health = match Health::of_all(keks.iter().map(|kek| kek.health)).unwrap_or(Health::Ready) {
            _ if keyring.home.is_closed() => Health::Dark,
            Health::Ready if !answers => Health::Degraded,
            health => health,
        };
        EngineHealth { health, keks }
    }
}
