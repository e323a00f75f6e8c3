//! Metrics of an engine: what it counts anyway, read when somebody asks for it. The data path has no part in them, no recorder runs on a
//! thread of the engine's, and no series has an account's id unless `metric_accounts` asks for it.
//!
//! [`Metrics::prometheus`] is the text that Prometheus scrapes. A service that has a recorder of the [`metrics`](https://docs.rs/metrics)
//! facade gives it the same by a [`Publisher`].
//!
//! ```
//! # async fn f(engine: keyleash::Engine) {
//! let mut publisher = keyleash::metrics::Publisher::default();
//! loop {
//!     publisher.publish(&engine); // nothing happens where no recorder is installed
//!     tokio::time::sleep(std::time::Duration::from_secs(15)).await;
//! }
//! # }
//! ```

use crate::{
    engine::{Counts, Engine, Health, TokenCounts},
    leash::LeaseStatus,
    telemetry::trail::Standing,
    token::unwraps::UnwrapsTook,
};

mod prometheus;
mod publish;

pub use self::publish::Publisher;

/// The names of all phases of a lease.
const PHASES: [&str; 6] = ["unproven", "active", "grace", "denied", "lapsed", "resuming"];

/// Samples of one name.
#[derive(Debug, PartialEq, Eq)]
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

macro_rules! families {
    ($($id:ident $kind:ident $name:literal $help:literal,)+) => {
        $(const $id: &Family = &Family { name: $name, kind: Kind::$kind, help: $help };)+
        /// In the order in which they are shown.
        const FAMILIES: &[&Family] = &[$($id),+];
    };
}

families! {
    HEALTH Gauge "keyleash_health" "1 for how well the engine serves: ready, degraded or dark.",
    KEK_HEALTH Gauge "keyleash_kek_health" "1 for how well a KEK in use serves: ready, degraded or dark.",
    PHASE Gauge "keyleash_lease_phase" "1 for the phase that the lease of a KEK version is in.",
    PROOF_AGE Gauge "keyleash_lease_proof_age_seconds" "Time since the newest proof of a KEK version was asked; none before the first.",
    FRESH_AGE Gauge "keyleash_lease_fresh_age_seconds" "Time since the context began in which it was asked, where contexts may hide what changed.",
    ENDS Gauge "keyleash_lease_ends_seconds" "Time until nothing may be used any more under a KEK version.",
    STANDBY Gauge "keyleash_lease_on_standby" "1 while the standby of a KEK version grants in the place of its silent token.",
    AEKS Gauge "keyleash_lease_aeks" "AEKs in memory under a KEK version.",
    AWAITED Gauge "keyleash_lease_aeks_awaited" "AEKs that a denial or lapse took away from whoever used them, and that are not back yet.",
    UNWRAPS Counter "keyleash_unwraps_total" "Unwraps in a token, by purpose (proof, use) and how they ended.",
    UNWRAP_TIME Histogram "keyleash_unwrap_seconds" "How long unwraps took that came to the token, with the wait for a worker.",
    WORKERS Gauge "keyleash_token_workers" "Workers of a token: alive, or hung in a call and lost.",
    HUNG_MAX Gauge "keyleash_token_workers_hung_max" "How many workers may hang before the process must be restarted.",
    IN_FLIGHT Gauge "keyleash_token_calls_in_flight" "Calls inside of a token's module: so many workers are busy, or hang.",
    ACCOUNTS Gauge "keyleash_index_accounts" "Accounts in the index, or with a handle.",
    HITS Counter "keyleash_index_hits_total" "Calls that found an account with its key in memory.",
    MISSES Counter "keyleash_index_misses_total" "Calls that had to wait for an account or its key.",
    KEYS Gauge "keyleash_aeks" "AEKs in memory.",
    WIPES Counter "keyleash_wipes_total" "AEKs that were taken out of memory: denied, lapsed, evicted, idle or dropped.",
    WAITING Gauge "keyleash_wipes_waiting" "AEKs that were taken away and are still used by a seal or open that does not end.",
    UNLOCKED Gauge "keyleash_unlocked_bytes" "Bytes of key memory that could not be locked.",
    STORE_SILENT Gauge "keyleash_store_silent_seconds" "For how long the key store has been silent; 0 while it answers.",
    POLICY_DAMAGED Gauge "keyleash_policy_damaged" "1 while the policy of the store cannot be read.",
    FORBIDDEN Counter "keyleash_forbidden_total" "Calls that were refused because they are not granted.",
    EVENTS Counter "keyleash_events_total" "Events that the engine told, by kind; lease_denied and lease_lapsed are among them.",
    TRAIL_LAG Gauge "keyleash_trail_lag_seconds" "How long the oldest record of the trail has waited that is not durable yet; 0 while all are.",
    TRAIL_WAITING Gauge "keyleash_trail_records_waiting" "Records of the trail that are not durable yet.",
    TRAIL_LOST Counter "keyleash_trail_records_lost_total" "Records of the trail that were lost.",
    TRAIL_BROKEN Gauge "keyleash_trail_broken" "1 while the trail cannot be kept.",
    ACCOUNT_OPENS Counter "keyleash_account_opens_total" "Handles of an account that were opened; without an account, of all that are not counted by themselves.",
    ACCOUNT_UNWRAPS Counter "keyleash_account_unwraps_total" "Unwraps of an account's AEKs in a token, for use.",
    ACCOUNT_DENIED Counter "keyleash_account_denied_total" "Handles of an account that were not opened, because its KEK was denied or had lapsed.",
    ACCOUNT_FORBIDDEN Counter "keyleash_account_forbidden_total" "Calls with an account that were refused because they are not granted.",
    REWRAPPED Counter "keyleash_rewrapped_accounts_total" "Accounts that were re-wrapped.",
    REWRAP_FOUND Gauge "keyleash_rewrap_accounts" "Accounts that a re-wrap has found that is under way.",
    REWRAP_DONE Gauge "keyleash_rewrap_accounts_done" "Of them those that are done, failed ones too.",
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Count(u64),
    Number(f64),
    Took(Vec<UnwrapsTook>),
}

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    family: &'static Family,
    labels: Vec<(&'static str, String)>,
    value: Value,
}

/// What an engine counted, as metrics.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Vec<Sample>);

impl Metrics {
    /// Of this moment. As [`Engine::counts`]: at once, and without asking anybody.
    pub fn of(engine: &Engine) -> Self {
        Self::of_counts(&engine.counts())
    }

    /// Of what was counted.
    pub fn of_counts(counts: &Counts) -> Self {
        let mut metrics = Self::default();
        metrics.health(HEALTH, &[], counts.health.health);
        for kek in &counts.health.keks {
            metrics.health(KEK_HEALTH, &[("kek", kek.kek.as_str())], kek.health);
        }
        counts.leases.iter().for_each(|lease| metrics.lease(lease));
        counts.tokens.iter().for_each(|token| metrics.token(token));
        metrics.number(ACCOUNTS, &[], counts.accounts as f64);
        metrics.count(HITS, &[], counts.index_hits);
        metrics.count(MISSES, &[], counts.index_misses);
        metrics.number(KEYS, &[], counts.keys as f64);
        metrics.count(WIPES, &[], counts.wipes);
        metrics.number(WAITING, &[], counts.waiting_wipes as f64);
        metrics.number(UNLOCKED, &[], counts.unlocked_bytes as f64);
        let silent = counts.store_silence.as_ref().map_or(0.0, |silence| silence.lasting.as_secs_f64());
        metrics.number(STORE_SILENT, &[], silent);
        metrics.number(POLICY_DAMAGED, &[], f64::from(counts.policy_damaged));
        metrics.count(FORBIDDEN, &[], counts.forbidden);
        for (event, count) in &counts.events {
            metrics.count(EVENTS, &[("event", event)], *count);
        }
        metrics.count(REWRAPPED, &[], counts.rewrapped);
        for (kek, progress) in &counts.rewraps {
            metrics.number(REWRAP_FOUND, &[("kek", kek.as_str())], progress.accounts as f64);
            metrics.number(REWRAP_DONE, &[("kek", kek.as_str())], progress.done as f64);
        }
        counts.trail.iter().for_each(|trail| metrics.trail(trail));
        for of in &counts.by_account {
            let label = [("account", of.account.as_ref().map_or("", |account| account.as_str()))];
            metrics.count(ACCOUNT_OPENS, &label, of.opens);
            metrics.count(ACCOUNT_UNWRAPS, &label, of.unwraps);
            metrics.count(ACCOUNT_DENIED, &label, of.denied);
            metrics.count(ACCOUNT_FORBIDDEN, &label, of.forbidden);
        }
        metrics
    }

    /// The text exposition format of Prometheus, version 0.0.4: `Content-Type: text/plain; version=0.0.4`.
    pub fn prometheus(&self) -> String {
        prometheus::text(&self.0)
    }

    fn sample(&mut self, family: &'static Family, labels: &[(&'static str, &str)], value: Value) {
        let labels = labels.iter().map(|(name, label)| (*name, (*label).to_owned())).collect();
        self.0.push(Sample { family, labels, value });
    }

    fn count(&mut self, family: &'static Family, labels: &[(&'static str, &str)], count: u64) {
        self.sample(family, labels, Value::Count(count));
    }

    fn number(&mut self, family: &'static Family, labels: &[(&'static str, &str)], number: f64) {
        self.sample(family, labels, Value::Number(number));
    }

    fn health(&mut self, family: &'static Family, labels: &[(&'static str, &str)], is: Health) {
        for health in Health::ALL {
            let labels = [labels, &[("health", health.name())]].concat();
            self.number(family, &labels, f64::from(health == is));
        }
    }

    fn trail(&mut self, trail: &Standing) {
        self.number(TRAIL_LAG, &[], trail.lag.as_secs_f64());
        self.number(TRAIL_WAITING, &[], trail.waiting as f64);
        self.count(TRAIL_LOST, &[], trail.lost);
        self.number(TRAIL_BROKEN, &[], f64::from(trail.is_broken));
    }

    fn lease(&mut self, lease: &LeaseStatus) {
        let version = lease.kek.version.to_string();
        let of = [("kek", lease.kek.name.as_str()), ("version", &version), ("token", lease.token.as_str())];
        for phase in PHASES {
            let labels = [&of[..], &[("phase", phase)]].concat();
            self.number(PHASE, &labels, f64::from(phase == lease.phase.name()));
        }
        let ages = [(PROOF_AGE, lease.proved_ago), (FRESH_AGE, lease.fresh_ago)];
        for (family, age) in ages.into_iter().filter_map(|(family, age)| Some((family, age?))) {
            self.number(family, &of, age.as_secs_f64());
        }
        self.number(ENDS, &of, lease.ends_in.as_secs_f64());
        self.number(STANDBY, &of, f64::from(lease.on_standby.is_some()));
        self.number(AEKS, &of, lease.filled_slots as f64);
        self.number(AWAITED, &of, lease.wanted_slots as f64);
    }

    fn token(&mut self, token: &TokenCounts) {
        let of = [("token", token.name.as_str())];
        for ended in &token.unwraps.ended {
            let purpose = if ended.proofs { "proof" } else { "use" };
            let labels = [&of[..], &[("purpose", purpose), ("result", ended.result)]].concat();
            self.count(UNWRAPS, &labels, ended.count);
        }
        self.sample(UNWRAP_TIME, &of, Value::Took(token.unwraps.took.clone()));
        for (state, count) in [("alive", token.workers.alive), ("hung", token.workers.hung)] {
            let labels = [&of[..], &[("state", state)]].concat();
            self.number(WORKERS, &labels, count as f64);
        }
        self.number(HUNG_MAX, &of, token.workers.hung_max as f64);
        self.number(IN_FLIGHT, &of, token.in_flight as f64);
    }
}

#[cfg(test)]
mod tests;
