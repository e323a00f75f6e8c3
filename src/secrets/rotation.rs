//! Rotation by hook: who runs it, once at a time, and what becomes of what it prints.
//!
//! Before a hook begins, the secret's head says which version it makes, in which run, and until when nobody else runs it: a fence that
//! is passed by compare-and-put, per secret, so that any process may look what is due and a hook that hangs holds up no other secret's.
//! Whoever was killed has changed nothing else; the next run, after that time, is given the same version to make.

use super::{
    Access, SecretValue, Secrets,
    hook::{self, Told, WATCHDOG_SECS},
    records::Seen,
    versions::{Stored, choose, next_after, push},
};
use crate::{
    access::Operation,
    block::{Address, BlockHeader, ObjectId},
    clock::{Instant, unix_now, utc},
    engine::Act,
    error::{Corrupt, Error, Result},
    keyring::{Keyring, On},
    name::SecretId,
    secret::fill_random,
    store::{
        CONFLICTS_MAX, again_and_again,
        record::{Making, Rotation, SecretRecord, SecretVersion},
    },
    telemetry::{
        Event,
        trail::{self, Deed, Subject},
    },
};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// Least time from one version to the next, and that a hook is given.
pub const ROTATION_MIN: Duration = Duration::from_secs(1);
/// Most time from one version to the next, and that the one before stays valid.
pub const ROTATION_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// Most time that a hook is given.
pub const HOOK_TIMEOUT_MAX: Duration = Duration::from_secs(60 * 60);

/// So long is what a hook printed tried to be stored, and others wait beyond the hook's own time.
const SLACK_SECS: u64 = 15;
/// A hook that has not begun so soon after its time was noted is not begun: it would end, or be killed, when others may run it.
const BEGIN_WITHIN: Duration = Duration::from_secs(10);
/// Between two tries to store it.
const STORE_AGAIN: Duration = Duration::from_millis(500);
/// After a first failure the next run waits so long, and twice as long after each further one …
const BACK_OFF_SECS: u64 = 60;
/// … up to this.
const BACK_OFF_SECS_MAX: u64 = 6 * 60 * 60;

/// How a secret is rotated by schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RotationPolicy {
    /// From one version to the next: 1 s to 100 years.
    pub every: Duration,
    /// What makes the next version: the absolute path of a program, the same on every machine that may run it.
    pub hook: PathBuf,
    /// For how long the version before stays valid: up to 100 years, a day unless said otherwise.
    pub overlap: Duration,
    /// How long the hook may take: 1 s to 1 h, a minute unless said otherwise.
    pub timeout: Duration,
}

impl RotationPolicy {
    /// A new version after so long, made by this program.
    pub fn new(every: Duration, hook: impl Into<PathBuf>) -> Self {
        let (overlap, timeout) = (Duration::from_secs(24 * 60 * 60), Duration::from_secs(60));
        Self { every, hook: hook.into(), overlap, timeout }
    }

    /// For how long the version before stays valid.
    #[must_use]
    pub fn overlap(mut self, overlap: Duration) -> Self {
        self.overlap = overlap;
        self
    }

    /// How long the hook may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn check(&self) -> Result<(), String> {
        let within = |what: &str, time: Duration, min: Duration, max: Duration| match time {
            time if time < min || time > max || time.subsec_nanos() != 0 => Err(format!(
                "{what} is {} to {}, in whole seconds",
                humantime::format_duration(min),
                humantime::format_duration(max)
            )),
            _ => Ok(()),
        };
        within("the time from one version to the next", self.every, ROTATION_MIN, ROTATION_MAX)?;
        within("the overlap", self.overlap, Duration::ZERO, ROTATION_MAX)?;
        within("the hook's time", self.timeout, ROTATION_MIN, HOOK_TIMEOUT_MAX)
    }
}

/// What came of the secrets that were due.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SecretsReport {
    /// Those that have a new version, and its number.
    pub rotated: Vec<(SecretId, u32)>,
    /// Those that do not, and why: they are as they were, and tried again later.
    pub failures: Vec<(SecretId, Error)>,
    /// Those that somebody else is at.
    pub busy: u64,
}

/// What came of one secret.
#[derive(Debug)]
enum Outcome {
    Rotated(u32),
    NotDue,
    Busy(u64),
}

impl Secrets {
    /// Sets how a secret is rotated by schedule, or with `None` that it is not. The first time it is due is so long after its newest
    /// version was made. The policy is sealed under the account's AEK: whoever can write to the store, and has no key, can name no other
    /// program.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is out of bounds, and for a path that is not absolute; [`Error::NotFound`]; what sealing fails with;
    /// [`Error::Conflict`] while the hook runs; [`Error::Store`].
    pub async fn set_rotation(&self, id: &SecretId, policy: Option<RotationPolicy>) -> Result<()> {
        let act = Self::act(Deed::SecretRotationSet, id, Access::Set);
        // Whoever names a program, and sets what it reads, does what he likes as the user of whoever runs it, who has the keys.
        let act = act.and(&[Operation::GrantWrite], On::All);
        self.engine.acting(act, self.set_policy(id, policy), |(), _| {}).await
    }

    async fn set_policy(&self, id: &SecretId, policy: Option<RotationPolicy>) -> Result<()> {
        let invalid = |what: String| Error::Invalid(format!("secret {id}: {what}"));
        let rotation = match policy {
            None => None,
            Some(policy) => {
                policy.check().map_err(invalid)?;
                let hook = policy.hook.to_str().ok_or_else(|| invalid("the path of a hook is UTF-8".into()))?;
                Some(Rotation {
                    every_secs: policy.every.as_secs(),
                    overlap_secs: policy.overlap.as_secs(),
                    timeout_secs: policy.timeout.as_secs(),
                    hook: hook.to_owned(),
                    proof: Vec::new(),
                    due_unix: 0,
                    failures: 0,
                    making: None,
                })
            }
        };
        for _ in 0..CONFLICTS_MAX {
            let seen = self.look(id).await?;
            let mut head = seen.live(id)?.clone();
            let (_, earliest) = self.dates().await?;
            refuse_while_running(&head, earliest)?;
            let made = head.versions.last().map_or(0, |version| version.created_unix);
            head.rotation = rotation.clone();
            if let Some(rotation) = &mut head.rotation {
                rotation.due_unix = made.saturating_add(rotation.every_secs);
            }
            if self.seal_policy(&seen, &mut head).await? && self.put_policy(&seen, &head).await? {
                return Ok(());
            }
        }
        Err(again_and_again("secret", id))
    }

    /// Seals the rotation anew; false when the account has another AEK version by now.
    async fn seal_policy(&self, seen: &Seen, head: &mut SecretRecord) -> Result<bool> {
        let id = head.id.clone();
        let Some(rotation) = &mut head.rotation else { return Ok(true) };
        let account = self.account(&seen.account).await?;
        let header = account.seal(address(&id, rotation), &mut []).await?;
        rotation.proof = header.as_bytes().to_vec();
        if Some(header.aek_version()) == seen.account.current().map(|current| current.aek_version) {
            return Ok(true);
        }
        self.engine.at_home(|keyring| async move { keyring.learn(&id.account).await }).await?;
        Ok(false)
    }

    /// False when somebody was faster.
    async fn put_policy(&self, seen: &Seen, head: &SecretRecord) -> Result<bool> {
        match self.put_head(seen, head, |put| put).await {
            Ok(_) => Ok(true),
            Err(Error::Conflict(_) | Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Moves the seal of a policy to the account's current AEK version.
    pub(super) async fn reseal_policy(&self, id: &SecretId) -> Result<()> {
        for _ in 0..CONFLICTS_MAX {
            let seen = self.look(id).await?;
            let Some(mut head) = seen.head.clone() else { return Ok(()) };
            let Some(rotation) = &head.rotation else { return Ok(()) };
            let current = seen.account.current().map(|current| current.aek_version);
            if rotation.aek_version().ok() == current {
                return Ok(());
            }
            self.open_policy(&seen, id, rotation).await?;
            if self.seal_policy(&seen, &mut head).await? && self.put_policy(&seen, &head).await? {
                return Ok(());
            }
        }
        Err(again_and_again("secret", id))
    }

    /// Refuses a policy that was not sealed under the account's AEK.
    async fn open_policy(&self, seen: &Seen, id: &SecretId, rotation: &Rotation) -> Result<()> {
        let forged = |what: String| Corrupt::Record { record: format!("rotation of secret {id}"), what }.into();
        let header = BlockHeader::parse(&rotation.proof).map_err(|error| forged(error.to_string()))?;
        match self.account(&seen.account).await?.open(address(id, rotation), &header, &mut []).await {
            Err(Error::Corrupt(what)) => Err(forged(format!("{what}; its hook is not run: set the policy anew"))),
            other => other,
        }
    }

    /// Rotates what is due, one secret after the other, once: for a service to call now and then, and for `keyleash schedule --run`. Of
    /// all processes that do so at once, one runs a secret's hook. What fails is told ([`Event::ScheduleFailed`]), changes nothing, and
    /// is tried again later: after a minute, and after twice as long each further time, up to six hours.
    ///
    /// Secrets of accounts that are deleted or cannot be opened now are left for the next time.
    ///
    /// # Errors
    /// [`Error::Store`] when the secrets cannot be listed. What fails later is in the report.
    pub async fn run_schedule(&self) -> Result<SecretsReport> {
        let act = Act::new(Deed::SecretScheduleRun, &[Operation::Rotate], On::All);
        self.engine.acting(act, self.rotate_due(), |_, _| {}).await
    }

    async fn rotate_due(&self) -> Result<SecretsReport> {
        let mut report = SecretsReport::default();
        for id in self.heads(None).await? {
            match self.rotate_if_due(&id).await {
                Ok(Outcome::Rotated(version)) => report.rotated.push((id, version)),
                Ok(Outcome::Busy(_)) => report.busy += 1,
                Ok(Outcome::NotDue) => {}
                Err(error) => {
                    self.tell(Event::ScheduleFailed { subject: format!("secret {id}"), error: error.to_string() });
                    report.failures.push((id, error));
                }
            }
        }
        Ok(report)
    }

    /// Runs a secret's hook now, due or not. Returns the number of the version that it made.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the secret is not rotated by a hook, and when the hook failed, with what came of it; [`Error::Conflict`]
    /// while somebody else runs it; else as [`Secrets::get`] and [`Secrets::set`].
    pub async fn rotate(&self, id: &SecretId) -> Result<u32> {
        let act = Self::act(Deed::SecretRotate, id, Access::Set);
        let rotate = async {
            match self.rotate_if(id, false).await? {
                Outcome::Rotated(version) => Ok(version),
                Outcome::Busy(until) => Err(running(id, until)),
                Outcome::NotDue => Err(Error::Invalid(format!(
                    "secret {id} is not rotated by a hook: `keyleash secret policy {} --account {}` sets one",
                    id.name, id.account
                ))),
            }
        };
        self.engine.acting(act, rotate, |made, on| on.secret_version = Some(*made)).await
    }

    /// A line on the trail of its own for each that is due, and for no other.
    async fn rotate_if_due(&self, id: &SecretId) -> Result<Outcome> {
        let (_, earliest) = self.dates().await?;
        let is_due = match self.look(id).await {
            Ok(Seen { head: Some(head), .. }) => {
                self.tell_if_expired(id, &head, earliest);
                let rotation = head.rotation.as_ref();
                head.deleted.is_none() && rotation.is_some_and(|rotation| earliest >= rotation.due_unix)
            }
            Ok(_) | Err(Error::NotFound(_)) => false,
            Err(error) => return Err(error),
        };
        if !is_due {
            return Ok(Outcome::NotDue);
        }
        let act = Self::act(Deed::SecretRotate, id, Access::None);
        let made = |outcome: &Outcome, on: &mut Subject| {
            if let Outcome::Rotated(version) = outcome {
                on.secret_version = Some(*version);
            }
        };
        self.engine.acting(act, self.rotate_if(id, true), made).await
    }

    /// A line on the trail where the newest version is past its expiry, the first time that this process sees it.
    fn tell_if_expired(&self, id: &SecretId, head: &SecretRecord, earliest: u64) {
        let newest = head.versions.iter().max_by_key(|version| version.version);
        let is_over = |version: &&SecretVersion| version.expires_unix.is_some_and(|until| until <= earliest);
        let expired = newest.filter(is_over).filter(|_| head.deleted.is_none()).map(|version| version.version);
        let keyring = self.engine.keyring();
        if keyring.on_trail.is_news(id, expired) {
            let on = Subject {
                account: Some(id.account.clone()),
                secret: Some(id.name.clone()),
                secret_version: expired,
                ..Subject::default()
            };
            keyring.note_of(Deed::SecretExpired, || trail::Outcome::Done, |record| record.on = on);
        }
    }

    async fn rotate_if(&self, id: &SecretId, only_due: bool) -> Result<Outcome> {
        let clock = self.engine.keyring().clock.clone();
        let (begun, rotation, old, begin_until) = 'fenced: {
            for _ in 0..CONFLICTS_MAX {
                let begin_until = clock.now().plus(BEGIN_WITHIN);
                let seen = match self.look(id).await {
                    Err(Error::NotFound(_)) if only_due => return Ok(Outcome::NotDue), // its account is deleted
                    seen => seen?,
                };
                let mut head = match seen.live(id) {
                    Err(_) if only_due => return Ok(Outcome::NotDue),
                    head => head?.clone(),
                };
                let (date, earliest) = self.dates().await?;
                let newest = head.newest();
                let Some(rotation) = &mut head.rotation else { return Ok(Outcome::NotDue) };
                if only_due && earliest < rotation.due_unix {
                    return Ok(Outcome::NotDue);
                }
                if let Some(Making { until_unix, .. }) = rotation.making
                    && earliest < until_unix
                {
                    return Ok(Outcome::Busy(until_unix));
                }
                self.open_policy(&seen, id, rotation).await?;
                let until_unix = date.saturating_add(rotation.timeout_secs).saturating_add(WATCHDOG_SECS + SLACK_SECS);
                let version = rotation.making.map_or_else(|| next_after(id, newest), |before| Ok(before.version))?;
                let mut run = [0; 8];
                fill_random(&mut run)?;
                let making = Making { version, run: u64::from_be_bytes(run), until_unix };
                rotation.making = Some(making);
                let rotation = rotation.clone();
                // Before anything is changed, for what there is nothing to give to the hook, or no room for what it makes.
                let old = choose(&head, None, unix_now()).cloned();
                let old = old.map_err(|why| Error::Invalid(format!("there is nothing to give to a hook: {why}")))?;
                push(&mut head.clone(), next_of(&old, version, date))?;
                let old = old.version;
                if self.put_policy(&seen, &head).await? {
                    break 'fenced (making, rotation, old, begin_until);
                }
            }
            return Err(again_and_again("secret", id));
        };
        match self.make(id, &begun, &rotation, old, begin_until).await {
            Ok(()) => {
                self.tell(Event::SecretRotated { secret: id.clone(), version: begun.version });
                Ok(Outcome::Rotated(begun.version))
            }
            Err(error) => {
                self.note_failure(id, &begun).await;
                Err(error)
            }
        }
    }

    /// Runs the hook, and stores what it printed.
    async fn make(
        &self,
        id: &SecretId,
        begun: &Making,
        rotation: &Rotation,
        old: u32,
        begin_until: Instant,
    ) -> Result<()> {
        let timeout = Duration::from_secs(rotation.timeout_secs);
        let given = self.give(id, Some(old)).await?;
        let told = Told {
            account: id.account.to_string(),
            name: id.name.to_string(),
            version: old,
            next_version: begun.version,
        };
        let clock = self.engine.keyring().clock.clone();
        if clock.now() >= begin_until {
            return Err(Error::Store(format!(
                "secret {id}: the store or the token took more than {} s, so that its hook was not begun",
                BEGIN_WITHIN.as_secs()
            )));
        }
        let made = hook::run(&rotation.hook, told, given.value, timeout).await;
        let value = made.map_err(|why| Error::Invalid(format!("secret {id}: hook {why}; nothing was changed")))?;
        // It may have changed what it is the secret of: what it printed is not given up before others may run it again.
        let give_up = clock.now().plus(Duration::from_secs(SLACK_SECS));
        let mut tried = false;
        loop {
            match self.finish(id, begun, &given.version, &value, &mut tried).await {
                Err(error) if error.is_retryable() && clock.now() < give_up => {
                    let pause = |keyring: Arc<Keyring>| async move {
                        keyring.clock.sleep_until(keyring.clock.now().plus(STORE_AGAIN)).await;
                        Ok(())
                    };
                    self.engine.at_home(pause).await?;
                }
                settled => return settled,
            }
        }
    }

    /// Stores the value as the version that the run was begun for.
    async fn finish(
        &self,
        id: &SecretId,
        begun: &Making,
        old: &SecretVersion,
        value: &SecretValue,
        tried: &mut bool,
    ) -> Result<()> {
        for _ in 0..CONFLICTS_MAX {
            let seen = self.look(id).await?;
            let mut head = seen.live(id)?.clone();
            if *tried && head.version(begun.version).is_some() {
                return Ok(()); // the answer was lost
            }
            let (date, _) = self.dates().await?;
            let Some(rotation) =
                head.rotation.as_mut().filter(|now| now.making.is_some_and(|making| is_of(&making, begun)))
            else {
                return Err(Error::Invalid(format!(
                    "secret {id}: somebody else makes version {} by now, or it was set by hand; what this run's hook printed is not taken",
                    begun.version
                )));
            };
            (rotation.making, rotation.failures) = (None, 0);
            rotation.due_unix = date.saturating_add(rotation.every_secs);
            let until = unix_now().saturating_add(rotation.overlap_secs);
            for before in head.versions.iter_mut().filter(|before| before.version == old.version) {
                // One that is not valid before then has no time at all.
                let from = before.not_before_unix.map_or(0, |from| from.saturating_add(1));
                before.expires_unix = Some(before.expires_unix.map_or(until, |own| own.min(until)).max(from));
            }
            push(&mut head, next_of(old, begun.version, date))?;
            *tried = true;
            if self.store_version(&seen, &head, value, true).await? == Stored::Done {
                return Ok(());
            }
        }
        Err(again_and_again("secret", id))
    }

    /// Lets go of a run that failed, so that the next one need not wait until its time is over.
    async fn note_failure(&self, id: &SecretId, begun: &Making) {
        let Ok((date, _)) = self.dates().await else { return };
        let change = |head: &mut SecretRecord| {
            if let Some(rotation) = &mut head.rotation
                && let Some(making) = &mut rotation.making
                && is_of(making, begun)
            {
                making.until_unix = 0;
                rotation.failures = rotation.failures.saturating_add(1);
                let doubled = BACK_OFF_SECS.saturating_mul(1 << (rotation.failures - 1).min(16));
                rotation.due_unix = date.saturating_add(doubled.min(BACK_OFF_SECS_MAX));
            }
            Ok(())
        };
        // Where the store does not take it, the run's time ends by itself.
        let _ = self.change(id, change).await;
    }

    fn tell(&self, event: Event) {
        self.engine.keyring().teller.tell(event);
    }
}

/// The version that a hook makes, behind the one that it was given.
fn next_of(old: &SecretVersion, version: u32, date: u64) -> SecretVersion {
    let (not_before_unix, expires_unix, enabled) = (None, None, true);
    SecretVersion { version, created_unix: date, not_before_unix, expires_unix, enabled, ..old.clone() }
}

/// The same run: what else is said of it may have been changed.
fn is_of(making: &Making, begun: &Making) -> bool {
    (making.version, making.run) == (begun.version, begun.run)
}

/// Refuses what would take a version from under a hook that runs.
pub(super) fn refuse_while_running(head: &SecretRecord, earliest: u64) -> Result<()> {
    match head.rotation.as_ref().and_then(|rotation| rotation.making) {
        Some(Making { until_unix, .. }) if earliest < until_unix => Err(running(&head.id, until_unix)),
        _ => Ok(()),
    }
}

fn running(id: &SecretId, until_unix: u64) -> Error {
    Error::Conflict(format!(
        "secret {id}: its hook runs, until {} by the store's date at most; try again after that",
        utc(until_unix)
    ))
}

/// The empty block that stands for a policy.
fn address(id: &SecretId, rotation: &Rotation) -> Address {
    let Rotation { every_secs, overlap_secs, timeout_secs, hook, .. } = rotation;
    let times = [every_secs, overlap_secs, timeout_secs].map(|secs| secs.to_be_bytes());
    let [every, overlap, timeout] = &times;
    let parts = [b"keyleash.secret.rotation.v1", id.name.as_str().as_bytes(), every, overlap, timeout, hook.as_bytes()];
    ObjectId::hashed(&parts).into()
}
