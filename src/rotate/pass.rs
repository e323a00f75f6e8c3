//! One pass over the store: rotates what is due, and re-wraps what a rotated KEK left behind.
//!
//! What is left to do is in the store: what is due says the record, what is to be re-wrapped says the index. So a pass that a
//! crash cut short is simply done again, by whoever comes next.

use super::{
    batch::{Pace, Which, is_the_accounts_own, move_aeks},
    hold::{Claim, STALLED_MAX, Stint},
    rewrap::{RewrapReport, is_this_accounts},
};
use crate::{
    clock::Instant,
    error::{Corrupt, Error, Refusal, Result},
    keyring::{Keyring, on_trail::of_kek_name},
    name::{AccountId, KekName, KekVersion},
    store::{
        Filter, Key, PAGE_KEYS_MAX, kek_names, load_account,
        record::{
            KekRecord, KekVersionRecord, WorkRecord,
            due::{Due, aek_due, kek_due},
        },
    },
    telemetry::{
        Event,
        trail::{Deed, Subject},
    },
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::task::JoinSet;

/// Accounts that are rotated at once, so that their writes share a commit of the store.
const ROTATIONS_IN_FLIGHT_MAX: usize = 8;
/// Between two pages of accounts the store has this many times as long for others as the page took, …
const REST_FACTOR: u32 = 9;
/// … and at least this long.
const REST_MIN: Duration = Duration::from_millis(10);
/// Failures that are told one by one; more are counted. Also how many are remembered as told.
pub const WORK_FAILURES_MAX: usize = 1000;
/// … and at most this long, in which the pass does not pass for stalled.
const REST_MAX: Duration = Duration::from_secs(60);
/// A re-wrap in which records failed is tried again after this time: they are damaged, and stay so until somebody acts.
const REWRAP_AGAIN_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// What was done by schedule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkReport {
    /// Another engine does the scheduled work, so nothing was done.
    pub held_by: Option<WorkRecord>,
    /// KEK versions that were made.
    pub keks: Vec<(KekVersion, Due)>,
    /// Accounts whose AEK was rotated.
    pub accounts: u64,
    /// Accounts that were re-wrapped.
    pub rewrapped: u64,
    /// Keys that are due and could not be rotated, and re-wraps that left accounts behind.
    pub failed: u64,
    /// The first [`WORK_FAILURES_MAX`] of them: what, and why.
    pub failures: Vec<(String, Error)>,
    /// Why the work stopped before its end; the next time goes on from there.
    pub stopped: Option<Error>,
}

/// What an engine remembers between passes.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    /// What was told of a subject, until it succeeds.
    told: HashMap<String, String>,
    /// KEK versions to which some accounts could not be moved, and when that was.
    left_behind: HashMap<KekVersion, Instant>,
}

impl Notes {
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when this is news.
    fn is_news(&self, subject: &str, error: &str) -> bool {
        let told = &mut self.noted().told;
        if told.len() >= WORK_FAILURES_MAX && !told.contains_key(subject) {
            return false;
        }
        told.insert(subject.to_owned(), error.to_owned()).as_deref() != Some(error)
    }

    fn succeeded(&self, subject: &str) {
        self.noted().told.remove(subject);
    }

    /// Tells, once, that a pass got nowhere.
    pub(super) fn tell_stalled(&self, keyring: &Keyring) {
        let subject = "scheduled work";
        let error = format!(
            "nothing was done for {} s, for the store or a token does not answer: it is given up for another engine, and tried again",
            STALLED_MAX.as_secs()
        );
        if self.is_news(subject, &error) {
            keyring.teller.tell(Event::ScheduleFailed { subject: subject.into(), error });
        }
    }

    /// Tells, once, that the work is a newer release's, which this one leaves to it.
    pub(super) fn tell_if_newer(&self, keyring: &Keyring, error: &Error) {
        let (subject, text) = ("scheduled work", error.to_string());
        if matches!(error, Error::Corrupt(Corrupt::NewerRecord { .. })) && self.is_news(subject, &text) {
            keyring.teller.tell(Event::ScheduleFailed { subject: subject.into(), error: text });
        }
    }
}

/// The rotation of an account, when it has come to its end.
struct Landed {
    id: AccountId,
    kek: KekName,
    /// The current AEK version, and whether this rotation made it.
    rotated: Result<(u32, bool)>,
    why: Due,
}

/// A pass under way.
pub(super) struct Pass {
    keyring: Arc<Keyring>,
    stint: Arc<Stint>,
    /// Of a task that tells its engine's subscribers what fails; whoever runs a single pass reads its report.
    notes: Option<Arc<Notes>>,
    /// KEKs that refused or did not answer in this pass: the other accounts under them are not tried.
    troubled: BTreeSet<KekName>,
    flights: JoinSet<Landed>,
    report: WorkReport,
}

impl Pass {
    pub(super) fn new(keyring: Arc<Keyring>, stint: Arc<Stint>, notes: Option<Arc<Notes>>) -> Self {
        let (troubled, flights, report) = Default::default();
        Self { keyring, stint, notes, troubled, flights, report }
    }

    /// Everything that is due.
    pub(super) async fn run(mut self) -> WorkReport {
        let mut outcome = self.keks().await;
        if outcome.is_ok() {
            outcome = self.accounts().await;
        }
        self.end(outcome).await
    }

    /// Those of these accounts that are due.
    pub(super) async fn run_for(mut self, accounts: Vec<AccountId>) -> WorkReport {
        let outcome = self.some(accounts).await;
        self.end(outcome).await
    }

    async fn end(mut self, outcome: Result<()>) -> WorkReport {
        while let Some(landed) = self.flights.join_next().await {
            self.land(landed).await;
        }
        if let Err(error) = outcome {
            self.report.stopped.get_or_insert(error);
        }
        if self.report.stopped.is_none() {
            self.succeeded("scheduled work");
        }
        if let Some(stopped) = &self.report.stopped {
            tracing::warn!(%stopped, "the scheduled work stopped; the next pass goes on");
        }
        self.report
    }

    fn check(&self) -> Result<()> {
        if let Some(stopped) = &self.report.stopped {
            return Err(stopped.clone());
        }
        self.stint.check()
    }

    fn tell(&self, event: Event) {
        self.keyring.teller.tell(event);
    }

    fn succeeded(&self, subject: &str) {
        if let Some(notes) = &self.notes {
            notes.succeeded(subject);
        }
    }

    fn failed(&mut self, subject: String, error: Error) {
        let text = without_time(error.clone()).to_string();
        // Silence passes, and the lease tells of it.
        let passes = matches!(error, Error::Lapsed(_) | Error::Unreachable(_));
        if !passes && self.notes.as_ref().is_some_and(|notes| notes.is_news(&subject, &text)) {
            self.tell(Event::ScheduleFailed { subject: subject.clone(), error: text });
        }
        self.report.failed += 1;
        if self.report.failures.len() < WORK_FAILURES_MAX {
            self.report.failures.push((subject, error));
        }
    }

    async fn keks(&mut self) -> Result<()> {
        for name in kek_names(&*self.keyring.store).await? {
            self.check()?;
            self.stint.progressed();
            let subject = format!("KEK {name}");
            match self.kek(&name).await {
                Ok(()) => self.succeeded(&subject),
                Err(error @ Error::Store(_)) if !self.keyring.store_answers().await => return Err(error),
                Err(error) => {
                    self.check()?; // lost meanwhile: that is why
                    self.failed(subject, error);
                }
            }
        }
        Ok(())
    }

    async fn kek(&mut self, name: &KekName) -> Result<()> {
        let mut record = self.keyring.in_account_time(self.keyring.kek_record(name)).await?;
        self.leave_retired(&record).await?;
        if record.policy.max_age_secs == 0 {
            return Ok(());
        }
        if let Some(why) = kek_due(&record, self.keyring.date().await?) {
            let rotate = self.keyring.rotate_kek_held(name, record.current, Claim(Some(&self.stint)));
            let version = |made: &Option<KekVersionRecord>, on: &mut Subject| {
                on.kek_version = made.as_ref().map(|made| made.version);
            };
            let made = self.keyring.by_itself(Deed::KekRotate, of_kek_name(name), rotate, version).await?;
            if let Some(made) = made {
                let kek = KekVersion::new(name.clone(), made.version);
                self.report.keks.push((kek.clone(), why));
                self.tell(Event::KekRotated { kek, why });
            }
            record = self.keyring.kek_record(name).await?;
        }
        self.rewrap(&record).await
    }

    /// Moves what a retired version wraps, whatever the policy: its key may be deleted in the token. A crash between the making of an
    /// account and the look whether its KEK version was retired meanwhile leaves it there.
    async fn leave_retired(&mut self, record: &KekRecord) -> Result<()> {
        for retired in record.versions.iter().filter(|version| version.retired_unix.is_some()) {
            let from = KekVersion::new(record.name.clone(), retired.version);
            let filter = Filter::WrappedBy(from.clone());
            let page = self.keyring.store.list(&filter, None, PAGE_KEYS_MAX).await?;
            for key in page.keys {
                let Key::Account(id) = key else { continue };
                let (target, pace) = (self.keyring.target(&record.name).await?, Pace::held(self.stint.clone()));
                let moved = move_aeks(&self.keyring, &id, &target, Which::OfThisKek(&from), &pace);
                let on = Subject { account: Some(id.clone()), ..of_kek_name(&record.name) };
                let moved = self.keyring.by_itself(Deed::KekRewrap, on, moved, |_, _| {});
                let moved = self.keyring.in_account_time(moved).await;
                self.stint.progressed();
                match moved {
                    Ok(0) => {}
                    Ok(_) => {
                        self.report.rewrapped += 1;
                        self.keyring.note_moved(&from);
                    }
                    Err(error) if is_this_accounts(&self.keyring, &error).await => {
                        self.check()?;
                        self.failed(format!("account {id}"), error);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Moves what other versions of a KEK still wrap, whoever rotated it: a holder that a crash took away, too.
    async fn rewrap(&mut self, record: &KekRecord) -> Result<()> {
        let keyring = self.keyring.clone();
        let to = KekVersion::new(record.name.clone(), record.current);
        let now = keyring.clock.now();
        let too_soon = self.notes.as_ref().is_some_and(|notes| {
            notes.noted().left_behind.get(&to).is_some_and(|tried| now.since(*tried) < REWRAP_AGAIN_AFTER)
        });
        if too_soon || !self.keyring.has_left_behind(record).await? {
            return Ok(());
        }
        self.check_standby(record).await?;
        let pace = Pace::held(self.stint.clone());
        let rewrap = self.keyring.rewrap_at(&record.name, false, pace, |_| {});
        let version = |done: &RewrapReport, on: &mut Subject| on.kek_version = Some(done.to.version);
        let done = self.keyring.by_itself(Deed::KekRewrap, of_kek_name(&record.name), rewrap, version).await?;
        self.report.rewrapped += done.accounts;
        self.report.failed += done.failed - (done.failures.len() as u64).min(done.failed);
        // What the store did not answer for may be done with the next pass.
        let stays = done.failed > 0 && !done.failures.iter().all(|failure| matches!(failure.error, Error::Store(_)));
        for failure in done.failures {
            self.failed(format!("account {}", failure.account), failure.error);
        }
        if let Some(stopped) = done.stopped {
            return Err(stopped);
        }
        if let (true, Some(notes)) = (stays, &self.notes) {
            notes.noted().left_behind.insert(to.clone(), keyring.clock.now());
        }
        self.tell(Event::Rewrapped { kek: done.to, accounts: done.accounts, failed: done.failed });
        Ok(())
    }

    /// Nothing is moved to where an outage of the first token would find no standby: the new version is cloned by an operator,
    /// and until then the older ones have theirs.
    async fn check_standby(&self, record: &KekRecord) -> Result<()> {
        let standby = self.keyring.tokens.standby_of(&record.name);
        let (Some(standby), Some(current)) = (standby, record.current()) else { return Ok(()) };
        match standby.token(&standby.guests.background(None).await).find_kek(&current.id).await {
            Ok(Some(_)) => Ok(()),
            Err(trouble) => {
                // No lease tells of a standby that is silent.
                tracing::warn!(kek = %record.name, standby = %standby.name, %trouble, "nothing is moved while the standby does not say whether it has the KEK");
                Err(trouble.into())
            }
            Ok(None) => Err(Error::Misconfigured(format!(
                "KEK {}/{} is not in its standby, token {}: clone it (CKA_ID {}), and what older versions wrap is moved",
                record.name, current.version, standby.name, current.id
            ))),
        }
    }

    async fn accounts(&mut self) -> Result<()> {
        let (mut after, clock) = (None, self.keyring.clock.clone());
        loop {
            let began = clock.now();
            let page = self.keyring.store.list(&Filter::Accounts, after.as_ref(), PAGE_KEYS_MAX).await?;
            let accounts = page.keys.into_iter().filter_map(|key| match key {
                Key::Account(id) => Some(id),
                _ => None,
            });
            self.some(accounts.collect()).await?;
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
            let now = clock.now();
            // A page that took long because one account did is no reason for a long rest.
            let rest = (now.since(began) * REST_FACTOR).clamp(REST_MIN, REST_MAX);
            clock.sleep_until(now.plus(rest)).await;
        }
    }

    async fn some(&mut self, accounts: Vec<AccountId>) -> Result<()> {
        let keyring = self.keyring.clone();
        for id in accounts {
            self.check()?;
            self.stint.progressed();
            let read = self.keyring.in_account_time(load_account(&*keyring.store, &id)).await;
            let record = match read {
                Ok(Some((record, _))) => record,
                Ok(None) => continue, // purged since it was listed
                Err(error @ Error::Store(_)) if !self.keyring.store_answers().await => return Err(error),
                Err(error) => {
                    self.check()?; // lost meanwhile: that is why
                    self.failed(format!("account {id}"), error);
                    continue;
                }
            };
            let Some(why) = aek_due(&record, keyring.date().await?) else { continue };
            let Some(current) = record.current() else { continue };
            let (expected, kek) = (current.aek_version, current.kek.name.clone());
            if self.troubled.contains(&kek) {
                self.report.failed += 1;
                continue;
            }
            while self.flights.len() >= ROTATIONS_IN_FLIGHT_MAX
                && let Some(landed) = self.flights.join_next().await
            {
                self.land(landed).await;
            }
            // At the pace of the background; its two calls then go as any other rotation's do.
            match keyring.leash(&current.kek).await {
                Ok(leash) => drop(leash.background().await),
                Err(error @ Error::Store(_)) => return Err(error),
                Err(error) => {
                    self.not_rotated(&id, kek, error);
                    continue;
                }
            }
            let (keyring, stint) = (self.keyring.clone(), self.stint.clone());
            self.flights.spawn(async move {
                let rotate = keyring.rotate_aek(&id, expected, Claim(Some(&stint)));
                let on = Subject { account: Some(id.clone()), kek: Some(kek.clone()), ..Subject::default() };
                let version = |made: &(u32, bool), on: &mut Subject| on.aek_versions = vec![made.0];
                let rotation = keyring.by_itself(Deed::AccountRotate, on, rotate, version);
                let rotated = keyring.in_account_time(rotation).await;
                Landed { id, kek, rotated, why }
            });
        }
        Ok(())
    }

    async fn land(&mut self, landed: Result<Landed, tokio::task::JoinError>) {
        self.stint.progressed();
        let Ok(Landed { id, kek, rotated, why }) = landed else {
            let died = Error::Fatal("the task that rotates an account died: try again".into());
            self.report.stopped.get_or_insert(died);
            return;
        };
        let subject = format!("account {id}");
        match rotated {
            Ok((aek_version, true)) => {
                self.report.accounts += 1;
                self.succeeded(&subject);
                self.tell(Event::AekRotated { account: id.to_string(), aek_version, why });
            }
            // Rotated, deleted or purged by somebody else.
            Ok((_, false)) | Err(Error::NotFound(_)) => self.succeeded(&subject),
            Err(error @ Error::Store(_)) if !self.keyring.store_answers().await => {
                self.report.stopped.get_or_insert(error);
            }
            Err(error) => {
                if let Err(lost) = self.stint.check() {
                    self.report.stopped.get_or_insert(lost);
                    return;
                }
                self.not_rotated(&id, kek, error);
            }
        }
    }

    fn not_rotated(&mut self, id: &AccountId, kek: KekName, error: Error) {
        if is_the_accounts_own(&error) || matches!(error, Error::Store(_)) {
            self.failed(format!("account {id}"), error);
            return;
        }
        // It is the KEK's trouble, told once for it.
        let subject = format!("accounts under KEK {kek}");
        self.troubled.insert(kek);
        self.failed(subject, error);
    }
}

/// So that a denial that lasts is not news with every second.
fn without_time(error: Error) -> Error {
    let timeless = |mut refusal: Box<Refusal>| {
        refusal.lasting = None;
        refusal
    };
    match error {
        Error::Denied(refusal) => Error::Denied(timeless(refusal)),
        Error::Lapsed(refusal) => Error::Lapsed(timeless(refusal)),
        Error::Unreachable(refusal) => Error::Unreachable(timeless(refusal)),
        other => other,
    }
}

impl Keyring {
    /// True when another version of a KEK than the current one wraps an AEK.
    async fn has_left_behind(&self, record: &KekRecord) -> Result<bool> {
        for version in record.versions.iter().filter(|version| version.version != record.current) {
            let filter = Filter::WrappedBy(KekVersion::new(record.name.clone(), version.version));
            if !self.store.list(&filter, None, 1).await?.keys.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
