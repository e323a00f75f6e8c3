//! Settings of the engine with their bounds, and the configuration of the command line.
//!
//! A bound that is broken is refused with the promise that would break with it; nothing is clamped silently.

use crate::{
    access::Policy,
    error::{Error, Result},
    lease::Terms,
    name::{KekName, TokenName},
    planted::{self, Fault},
    secret::MemlockPolicy,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

pub mod alert;
mod audit;
mod file;
mod given;
mod grants;
mod items;
pub mod mail;
pub mod page;
pub mod store;
mod tokens;

pub use audit::{
    AUDIT_RETENTION_MIN, AuditConfig, COMPRESS_AFTER_DEFAULT, COMPRESS_AFTER_MAX, COMPRESS_AFTER_MIN, EARLIER_KEYS_MAX,
    OnFailure,
};
pub use file::{CONFIG_BYTES_MAX, ConfigFile};
pub use store::StoreConfig;

/// Shortest time between two proofs of a KEK version.
pub const POLL_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Longest time between two proofs of a KEK version: resumption takes one of them.
pub const POLL_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Shortest deadline of a token call.
pub const CALL_TIMEOUT_MIN: Duration = Duration::from_millis(100);
/// Longest deadline of a token call.
pub const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// An AEK in use is refreshed when this part of its TTL has passed, in percent; spread, so that accounts which were
/// unwrapped together do not come back together.
pub(crate) const REFRESH_PERCENT: std::ops::Range<u64> = 50..75;
/// Shortest TTL of an AEK; also at least twice the deadline of a token call.
pub const AEK_TTL_MIN: Duration = Duration::from_secs(1);
/// Within this time a revocation holds, whatever happens, and whatever a module hides from a context that was open: at most
/// `fresh_proof_every * poll_interval + grace + poll_interval + call_timeout`.
pub const REVOCATION_MAX: Duration = Duration::from_secs(60 * 60);
/// Within this time after the token grants again every account works again.
pub const RESUMPTION_MAX: Duration = Duration::from_secs(30 * 60);
/// While an engine is up, the store's date is written at least this often: a write that was held up for twice as long is refused.
pub(crate) const DATE_EVERY: Duration = Duration::from_secs(5 * 60);
/// Shortest time for which a deleted account can be undeleted.
pub const RETENTION_MIN: Duration = Duration::from_secs(7 * DAY_SECS);
/// Longest time for which a deleted account is kept from being purged.
pub const RETENTION_MAX: Duration = Duration::from_secs(90 * DAY_SECS);
const DAY_SECS: u64 = 24 * 60 * 60;
/// Most AEKs that may be set as the limit of the cache: some 27 GB of locked memory.
pub const CACHED_AEKS_MAX: u64 = 100_000_000;
/// The most accounts of which metrics have the ids.
pub const METRIC_ACCOUNTS_MAX: u32 = 10_000;
/// Most threads that call the token.
pub const WORKERS_MAX: usize = 30;
/// Threads that call the token, where nothing is said: a command asks one thing at a time, and with several workers SoftHSM
/// was once seen to free memory twice while other processes changed its token. A service sets its own.
pub const WORKERS_DEFAULT: usize = 1;
/// The store of the command line, where nothing is said.
pub const STORE_DEFAULT: &str = "./keyleash.redb";

/// How the engine behaves. [`Settings::validate`] says whether the promises hold with it.
///
/// ```
/// # use keyleash::config::Settings;
/// # use std::time::Duration;
/// let settings = Settings::default().poll_interval(Duration::from_secs(10)).max_cached_aeks(50_000);
/// settings.validate()?;
/// # Ok::<_, keyleash::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// Time between two proofs of a KEK version, 1 s to 60 s. Default 15 s.
    pub poll_interval: Duration,
    /// Deadline of a call of the key store that a key waits for, 100 ms to 60 s and at most `poll_interval`. Default 5 s. That of a
    /// call of a token the token knows ([`Token::call_timeout`](crate::token::Token::call_timeout)).
    pub store_timeout: Duration,
    /// How long a lease lasts after its last proof while the token is unreachable, at least `poll_interval +
    /// 2 * call_timeout` (a proof may wait for its turn as long as for its answer), and with `poll_interval + call_timeout` and
    /// `fresh_proof_every * poll_interval` at most 60 min. Default 30 min.
    pub grace: Duration,
    /// How long an AEK is used without an unwrap of its own, at least 1 s and twice `call_timeout`, at most `grace`. Counts from when
    /// its account's record was read for that unwrap, so that what others changed there is heard of within it. Default 10 min.
    pub aek_ttl: Duration,
    /// Most unwraps per second of each token when accounts resume or are refreshed ahead of their TTL, at least 1. Default 3000, which
    /// lets as many as the default `max_cached_aeks` be in use with the default `aek_ttl`. A token that is slower sets its
    /// own pace.
    pub resume_rate: u32,
    /// Most AEKs in memory, 1 to 100 million, each AEK version counted, whoever holds handles. Default 1 million. For one more, one
    /// is wiped that was not used lately: its handles are [`Error::Cold`] until they are warmed, which the async forms do by
    /// themselves. As many accounts are in the index, without a key or with one.
    pub max_cached_aeks: u64,
    /// What happens when key memory of this engine cannot be locked. Default: a warning.
    pub memlock: MemlockPolicy,
    /// Every so many proofs one comes from a freshly initialised context of the token, because some modules hide a
    /// revocation from a context that was open before it. A lease ends with `grace` after so many poll intervals without one, so at
    /// most as many as leave all of it within 60 min. At least 1. Default 20.
    pub fresh_proof_every: u32,
    /// Refuse new accounts under a KEK version that is not recoverable: CKA_DESTROYABLE is false, and an operator attested
    /// a backup of it. Default false.
    pub require_recoverable: bool,
    /// How long a deleted account can be undeleted before it may be purged, 7 to 90 days. Default 90 days.
    pub retention: Duration,
    /// Nobody purges an account before its retention is over. Default true.
    pub purge_protection: bool,
    /// The engine takes its turn at the scheduled work of the store: rotates what is due by policy, and whatever has sealed half
    /// of what its suite allows. Of all engines that would, one does. Default true; the command line has it off, and does it
    /// with `keyleash schedule --run`.
    pub scheduled_work: bool,
    /// Of so many accounts, 0 to 10,000, each is counted by itself, with its id in a label of the metrics; the others together. Default 0: who
    /// reads metrics is not to read ids, and each account is four series more.
    pub metric_accounts: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            poll_interval: Duration::from_secs(15),
            store_timeout: Duration::from_secs(5),
            grace: Duration::from_secs(30 * 60),
            aek_ttl: Duration::from_secs(10 * 60),
            resume_rate: 3000,
            max_cached_aeks: 1_000_000,
            memlock: MemlockPolicy::Warn,
            fresh_proof_every: 20,
            require_recoverable: false,
            retention: RETENTION_MAX,
            purge_protection: true,
            scheduled_work: true,
            metric_accounts: 0,
        }
    }
}

/// Each sets the field of its name.
macro_rules! setters {
    ($($name:ident: $type:ty,)*) => {
        impl Settings {$(
            #[doc = concat!("Sets [`Settings::", stringify!($name), "`](Settings#structfield.", stringify!($name), ").")]
            #[must_use]
            pub const fn $name(mut self, $name: $type) -> Self {
                self.$name = $name;
                self
            }
        )*}
    };
}

setters! {
    poll_interval: Duration,
    store_timeout: Duration,
    grace: Duration,
    aek_ttl: Duration,
    resume_rate: u32,
    max_cached_aeks: u64,
    memlock: MemlockPolicy,
    fresh_proof_every: u32,
    require_recoverable: bool,
    retention: Duration,
    purge_protection: bool,
    scheduled_work: bool,
    metric_accounts: u32,
}

impl Settings {
    /// How long an engine with these settings may go on sealing under an AEK version after the date of a newer one: that was written
    /// ten minutes later, because the write was held up, this engine read the record just before, its token fell silent just
    /// before its AEK's TTL was over, and the lease ran for its whole grace. The store keeps the longest of all engines that use it.
    #[must_use]
    pub fn aek_overlap(&self) -> Duration {
        let silence = self.grace.saturating_add(self.aek_ttl); // `Leash::waiver_max`
        self.aek_ttl.saturating_add(silence).saturating_add(DATE_EVERY * 2)
    }

    /// How long the leases of these settings last.
    pub(crate) fn terms(&self) -> Terms {
        let grace = match () {
            () if planted::is(Fault::LapsesEarly) => self.grace / 2,
            () if planted::is(Fault::LapsesLate) => self.grace * 2,
            () => self.grace,
        };
        Terms { grace, fresh_span: self.poll_interval.saturating_mul(self.fresh_proof_every) }
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// [`Error::Misconfigured`] with the setting, its value, the bound, and the promise that would break.
    pub fn validate(&self) -> Result<()> {
        self.validate_timeout("store_timeout", self.store_timeout)
    }

    /// The same for whatever has this deadline: a proof waits for the store and for a token.
    fn validate_timeout(&self, name: &str, call_timeout: Duration) -> Result<()> {
        let Self { poll_interval, grace, aek_ttl, .. } = *self;
        within("poll_interval", poll_interval, POLL_INTERVAL_MIN, POLL_INTERVAL_MAX, || {
            if poll_interval < POLL_INTERVAL_MIN {
                "the token would be flooded with proofs, and an outage would not be told from a busy token (promise 3)"
            } else {
                "promise 2 (live handles work again in one poll interval, at most 60 s) would not hold"
            }
        })?;
        within(name, call_timeout, CALL_TIMEOUT_MIN, CALL_TIMEOUT_MAX, || {
            if call_timeout < CALL_TIMEOUT_MIN {
                "a token that is merely busy would pass for unreachable (promise 3)"
            } else {
                "promise 1 (revocation within poll_interval + call_timeout) would be too late"
            }
        })?;
        if call_timeout > poll_interval {
            return broken(
                name,
                call_timeout,
                format!("at most poll_interval ({})", show(poll_interval)),
                "a proof that hangs would delay the next one, and promise 1 (revocation within poll_interval + call_timeout) \
                 would not hold",
            );
        }
        let proof = poll_interval.saturating_add(call_timeout);
        let whole_proof = proof.saturating_add(call_timeout); // `Seat::proof_max`
        if grace < whole_proof {
            return broken(
                "grace",
                grace,
                format!("at least poll_interval + 2 * call_timeout ({})", show(whole_proof)),
                "a lease would lapse between two proofs, where one waits for its turn and the token takes its time, and promise 3 \
                 (an outage is not a revocation) would not hold",
            );
        }
        if grace.saturating_add(proof) > REVOCATION_MAX {
            return broken(
                "grace",
                grace,
                format!(
                    "at most {}, so that grace + poll_interval ({}) + call_timeout ({}) stay within {}",
                    show(REVOCATION_MAX.saturating_sub(proof)),
                    show(poll_interval),
                    show(call_timeout),
                    show(REVOCATION_MAX)
                ),
                "promise 1 (revocation in under one hour, whatever happens) would not hold",
            );
        }
        let Terms { fresh_span, .. } = self.terms();
        if fresh_span.saturating_add(grace).saturating_add(proof) > REVOCATION_MAX {
            let (every, left) = (self.fresh_proof_every, REVOCATION_MAX.saturating_sub(proof));
            return Err(Error::Misconfigured(format!(
                "fresh_proof_every is {every} and grace is {}: that many poll intervals of {} ({}), grace, poll_interval and                  call_timeout ({}) are more than {} together; set fresh_proof_every to {} or less, or grace to {} or less: else                  promise 1 (revocation in under one hour, whatever happens) would not hold with a module that hides a revocation                  from an open context",
                show(grace),
                show(poll_interval),
                show(fresh_span),
                show(call_timeout),
                show(REVOCATION_MAX),
                left.saturating_sub(grace).as_millis() / poll_interval.as_millis().max(1),
                show(left.saturating_sub(fresh_span)),
            )));
        }
        let aek_ttl_min = AEK_TTL_MIN.max(call_timeout.saturating_mul(2));
        if aek_ttl < aek_ttl_min {
            return broken(
                "aek_ttl",
                aek_ttl,
                format!("at least {} (1 s, and twice call_timeout)", show(aek_ttl_min)),
                "a token that takes its time would leave handles in use cold between two unwraps, and promise 2 (live handles \
                 work again by themselves) would not hold",
            );
        }
        if aek_ttl > grace {
            return broken(
                "aek_ttl",
                aek_ttl,
                format!("at most grace ({})", show(grace)),
                "an AEK would be meant to outlast its lease, which promise 1 (revocation) forbids",
            );
        }
        if self.resume_rate == 0 {
            return Err(Error::Misconfigured(
                "resume_rate is 0 unwraps/s, allowed is at least 1: else no account would ever resume, and promise 2 \
                 (every account within 30 min) would not hold"
                    .into(),
            ));
        }
        if self.fresh_proof_every == 0 {
            return Err(Error::Misconfigured(
                "fresh_proof_every is 0, allowed is at least 1: else a module that hides a revocation from an open context \
                 would keep promise 1 (revocation) from holding"
                    .into(),
            ));
        }
        within("retention", self.retention, RETENTION_MIN, RETENTION_MAX, || {
            if self.retention < RETENTION_MIN {
                "an account that was deleted by mistake would be lost before anybody noticed (promise 5, nothing is lost)"
            } else {
                "an account whose owner asked for its deletion would be kept for longer than is allowed"
            }
        })?;
        if self.max_cached_aeks == 0 || self.max_cached_aeks > CACHED_AEKS_MAX {
            return Err(Error::Misconfigured(format!(
                "max_cached_aeks is {}, allowed are 1 to {CACHED_AEKS_MAX}: else no account could be used, or key memory could \
                 not be locked (promise 6, nothing lingers)",
                self.max_cached_aeks
            )));
        }
        if self.metric_accounts > METRIC_ACCOUNTS_MAX {
            return Err(Error::Misconfigured(format!(
                "metric_accounts is {}, allowed are 0 to {METRIC_ACCOUNTS_MAX}: each account is four series more of the metrics",
                self.metric_accounts
            )));
        }
        Ok(())
    }

    /// Whether the promises hold with a token whose calls have this deadline.
    ///
    /// # Errors
    /// As [`Settings::validate`], with the token's name.
    pub fn validate_token(&self, token: &TokenName, call_timeout: Duration) -> Result<()> {
        self.validate_timeout("call_timeout", call_timeout).map_err(|error| match error {
            Error::Misconfigured(what) if call_timeout != self.store_timeout => {
                Error::Misconfigured(format!("token {token}: {what}"))
            }
            error => error,
        })
    }

    /// Whether the promises hold with a KEK that goes over to its standby after the first token's deadline passed.
    ///
    /// # Errors
    /// As [`Settings::validate`], with the names.
    pub fn validate_standby(
        &self,
        kek: &KekName,
        (first, first_timeout): (&TokenName, Duration),
        (standby, standby_timeout): (&TokenName, Duration),
    ) -> Result<()> {
        let judged = self.validate_timeout("call_timeout", first_timeout.saturating_add(standby_timeout));
        judged.map_err(|error| match error {
            Error::Misconfigured(what) => Error::Misconfigured(format!(
                "KEK {kek} and its standby: a proof may take the call_timeout of token {first} and that of token {standby} \
                 together; so counted, {what}"
            )),
            error => error,
        })
    }

    /// What holds but should be known.
    pub fn warnings(&self) -> Vec<String> {
        let accounts = self.max_cached_aeks;
        self.resumption_warning(accounts).into_iter().chain(self.refresh_warning(accounts)).collect()
    }

    /// Says when `accounts` accounts that are all in use cannot be refreshed as often as `aek_ttl` asks for at `resume_rate`,
    /// with the numbers to set.
    pub fn refresh_warning(&self, accounts: u64) -> Option<String> {
        let rate = u64::from(self.resume_rate);
        // Half way between the first and the last instant of a refresh.
        let refreshed_after = self.aek_ttl.mul_f64((REFRESH_PERCENT.start + REFRESH_PERCENT.end) as f64 / 200.0);
        let refreshed = (refreshed_after.as_secs_f64() * rate as f64) as u64;
        (accounts > refreshed).then(|| {
            format!(
                "{accounts} accounts in use need {} unwraps/s to be refreshed ahead of their TTL of {}, resume_rate is {rate}: some \
                 would be cold for a while, and their callers would wait; set resume_rate to that or more, or aek_ttl to {} or more, \
                 or max_cached_aeks to {refreshed} or less",
                (accounts as f64 / refreshed_after.as_secs_f64()).ceil(),
                show(self.aek_ttl),
                show(Duration::from_secs(self.aek_ttl.mul_f64(accounts as f64 / refreshed.max(1) as f64).as_secs() + 1)),
            )
        })
    }

    /// Says when `accounts` accounts cannot resume within 30 minutes at `resume_rate`, with the numbers to set.
    pub fn resumption_warning(&self, accounts: u64) -> Option<String> {
        let rate = u64::from(self.resume_rate);
        let resumed = rate.saturating_mul(RESUMPTION_MAX.as_secs());
        (accounts > resumed).then(|| {
            format!(
                "{accounts} accounts need {} at resume_rate = {rate} unwraps/s to resume, promised are {} (promise 2): set \
                 resume_rate to {} or more, or max_cached_aeks to {resumed} or less",
                // Rounded up, so that it never reads as 30 min.
                show(Duration::from_secs(accounts.div_ceil(rate.max(1)).div_ceil(60).saturating_mul(60))),
                show(RESUMPTION_MAX),
                accounts.div_ceil(RESUMPTION_MAX.as_secs()),
            )
        })
    }
}

fn within(
    setting: &str,
    value: Duration,
    min: Duration,
    max: Duration,
    promise: impl FnOnce() -> &'static str,
) -> Result<()> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        broken(setting, value, format!("{} to {}", show(min), show(max)), promise())
    }
}

fn broken(setting: &str, value: Duration, allowed: String, promise: &str) -> Result<()> {
    Err(Error::Misconfigured(format!("{setting} is {}, allowed is {allowed}: else {promise}", show(value))))
}

/// A duration in its largest whole unit.
fn show(duration: Duration) -> String {
    match (duration.subsec_nanos(), duration.as_secs()) {
        (0, secs) if secs > 0 && secs % DAY_SECS == 0 => format!("{} d", secs / DAY_SECS),
        (0, secs) if secs > 0 && secs % 60 == 0 => format!("{} min", secs / 60),
        (0, secs) => format!("{secs} s"),
        (nanos, _) if nanos % 1_000_000 == 0 => format!("{} ms", duration.as_millis()),
        _ => format!("{duration:?}"),
    }
}

/// What the command line works with: the file, with the environment over it, and defaults below.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// The default token and how to log in.
    pub token: TokenConfig,
    /// The other tokens, in the order of the file.
    pub other_tokens: Vec<TokenConfig>,
    /// The standby of each KEK that has one.
    pub standbys: BTreeMap<KekName, TokenName>,
    /// Where the store is; relative paths are relative to the working directory.
    pub store: StoreConfig,
    /// How stores elsewhere are reached.
    pub(crate) stores: store::Reach,
    /// How the engine behaves; validated.
    pub settings: Settings,
    /// The grants of the file, which count beside those of the store
    /// ([`PolicySource::Given`](crate::engine::PolicySource::Given)).
    pub policy: Policy,
    /// Where the trail is kept; `None` where none is.
    pub audit: Option<AuditConfig>,
    /// The alerts of the file, by which a trail is watched.
    pub alerts: Vec<alert::Rule>,
    /// Where notices go as mail; `None` where nothing was said.
    pub mail: Option<mail::MailConfig>,
}

impl Config {
    /// A store at another place, a path or an URL, that is reached as the one that is configured.
    ///
    /// # Errors
    /// [`Error::Misconfigured`], naming what is wrong with it.
    pub fn store_at(&self, place: &Path) -> Result<StoreConfig> {
        self.stores.at(place)
    }
}

/// Which token, and how to log in. What is `None` was said nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenConfig {
    /// What the records of its KEKs call it.
    pub name: TokenName,
    /// The PKCS#11 module.
    pub module: Option<PathBuf>,
    /// Which of its tokens.
    pub selector: Option<TokenSelector>,
    /// Where the PIN comes from.
    pub pin: Option<PinSource>,
    /// Threads that call the token, 1 to [`WORKERS_MAX`].
    pub workers: usize,
    /// The deadline of its calls: its own, or that of the section `lease`.
    pub call_timeout: Duration,
}

/// Which token of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSelector {
    /// The one with this label, 1 to 32 bytes.
    Label(String),
    /// The one with this serial number, 1 to 16 bytes.
    Serial(String),
    /// The one in the slot with this id. Some modules renumber their slots.
    Slot(u64),
}

/// Where the PIN comes from. Never the PIN itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinSource {
    /// A file of one line.
    File(PathBuf),
    /// An environment variable of this name.
    Env(String),
}
