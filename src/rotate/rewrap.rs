//! Re-wrap: every AEK of a KEK to its current version, and one account to another KEK.
//!
//! Of each AEK: unwrap, verify, wrap, verify by a second unwrap, compare-and-put. What is left to do is what the store's
//! index still finds under the other versions, so that nothing needs to be remembered for going on after a crash. That all is
//! moved is said when every record was read: an index that lacks one would cost its blocks.

use super::batch::{Batch, Landed, Pace, Which, is_the_accounts_own, move_aeks};
use crate::{
    error::{Error, Result},
    keyring::{Keyring, keks::Target},
    name::{AccountId, KekName, KekVersion},
    planted,
    store::{Filter, Key, PAGE_KEYS_MAX, Page, Pages, read_accounts},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::task::JoinSet;

/// Accounts that are read together and written together, in one commit of the store each …
const BATCH_MAX: usize = 128;
/// … but no more than are re-wrapped in this part of a second at the rate: none waits long to be written, and progress is seen.
const BATCHES_PER_SECOND: u32 = 10;
/// While one batch is written, the token works on the next.
const BATCHES_IN_FLIGHT_MAX: usize = 2;
/// Unwrap, wrap, unwrap.
const CALLS_PER_AEK: u32 = 3;
/// Failures that are reported one by one; more are counted.
pub const REWRAP_FAILURES_MAX: usize = 1000;
/// Accounts that the index lacks and are moved together; further ones are found when all records are read again.
const UNINDEXED_MAX: usize = 10_000;
/// How often the whole index is gone through, while accounts keep appearing under versions that are not current.
const PASSES_MAX: usize = 16;

/// How to re-wrap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RewrapOptions {
    /// Most token calls per second, three for each AEK. `None`: they share the engine's `resume_rate` with whatever else
    /// runs in the background.
    pub rate: Option<u32>,
    /// Change nothing and ask the token nothing: count what would be done.
    pub dry_run: bool,
}

impl RewrapOptions {
    /// All of it, at the engine's own pace.
    #[must_use]
    pub const fn new() -> Self {
        Self { rate: None, dry_run: false }
    }

    /// See [`RewrapOptions::rate`](Self#structfield.rate).
    #[must_use]
    pub const fn rate(mut self, rate: u32) -> Self {
        self.rate = Some(rate);
        self
    }

    /// See [`RewrapOptions::dry_run`](Self#structfield.dry_run).
    #[must_use]
    pub const fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }
}

/// How far it has got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RewrapProgress {
    /// Accounts that were found at the beginning.
    pub accounts: u64,
    /// Of them, and of those that appeared since: done, failed ones too.
    pub done: u64,
}

/// An account that could not be re-wrapped. It is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RewrapFailure {
    /// The account.
    pub account: AccountId,
    /// Why.
    pub error: Error,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RewrapReport {
    /// The version to which AEKs were moved.
    pub to: KekVersion,
    /// Accounts that were moved, or with [`RewrapOptions::dry_run`] would be.
    pub accounts: u64,
    /// AEKs that were moved, or would be.
    pub aeks: u64,
    /// Accounts that failed.
    pub failed: u64,
    /// The first [`REWRAP_FAILURES_MAX`] of them.
    pub failures: Vec<RewrapFailure>,
    /// Why it stopped before the end; the rest waits for the next time, which goes on from there. After a denial of one KEK
    /// version all that the others wrap was moved all the same, other AEKs of its own accounts too.
    pub stopped: Option<Error>,
}

impl Keyring {
    /// As [`Engine::rewrap_kek`](crate::Engine::rewrap_kek), at home and at a given pace.
    pub(crate) async fn rewrap_at(
        self: &Arc<Self>,
        kek: &KekName,
        dry_run: bool,
        pace: Pace,
        progress: impl Fn(RewrapProgress) + Send,
    ) -> Result<RewrapReport> {
        let mut run = Run::new(self, self.target(kek).await?, pace, dry_run);
        let under_way = (!dry_run).then(|| self.rewraps.begin(kek));
        let progress = |made: RewrapProgress| {
            under_way.iter().for_each(|under_way| under_way.at(made.accounts, made.done));
            progress(made);
        };
        for version in self.old_versions(kek, &run.target).await? {
            run.found += self.count_indexed(&version).await?;
        }
        progress(run.progress());
        for _ in 0..PASSES_MAX {
            let (done_before, target_before) = (run.report.accounts, run.target.kek.clone());
            for version in self.old_versions(kek, &run.target).await? {
                match run.pass(&version, &progress).await {
                    Ok(()) => {}
                    // The KEK version that is denied, or lost, keeps only what it wraps itself.
                    Err(denied @ Error::Denied(_)) => drop(run.report.stopped.get_or_insert(denied)),
                    Err(error) => {
                        run.report.stopped = Some(error);
                        return Ok(run.report);
                    }
                }
            }
            if let Err(error) = run.retarget().await {
                run.report.stopped.get_or_insert(error);
            }
            let is_done = run.target.kek == target_before && run.report.accounts == done_before;
            if dry_run || run.report.stopped.is_some() {
                break;
            }
            if is_done {
                match run.unindexed(&progress).await {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) => {
                        run.report.stopped = Some(error);
                        break;
                    }
                }
            }
        }
        if run.report.stopped.is_none() {
            // An account that several versions wrap was found with each, and done with the first.
            run.found = run.done;
            progress(run.progress());
        }
        Ok(run.report)
    }

    /// As [`Engine::move_account`](crate::Engine::move_account), at home.
    pub(crate) async fn move_account(self: &Arc<Self>, id: &AccountId, kek: &KekName) -> Result<bool> {
        let (version, record) = self.current_kek(kek).await?;
        self.check_recoverable(&version, &record).await?;
        self.relocate(id, kek).await
    }

    /// As [`Keyring::move_account`], without asking whether the KEK is good enough for a new account.
    pub(crate) async fn relocate(self: &Arc<Self>, id: &AccountId, kek: &KekName) -> Result<bool> {
        let target = self.target(kek).await?;
        Ok(move_aeks(self, id, &target, Which::All, &Pace::of(None, &self.clock)).await? > 0)
    }

    /// How many accounts the index finds under a KEK version: for who wants to see how far it is.
    async fn count_indexed(&self, kek: &KekVersion) -> Result<u64> {
        let filter = Filter::WrappedBy(kek.clone());
        let (mut count, mut pages) = (0, Pages::of(&*self.store, &filter));
        while let Some(keys) = pages.next().await? {
            count += keys.len() as u64;
        }
        Ok(count)
    }

    /// Every version before the target; retired ones too, under which a crash may have left an account.
    async fn old_versions(&self, kek: &KekName, target: &Target) -> Result<Vec<KekVersion>> {
        let record = self.kek_record(kek).await?;
        let versions = record.versions.iter().map(|version| KekVersion::new(kek.clone(), version.version));
        Ok(versions.filter(|version| version.version < target.kek.version).collect())
    }
}

/// A re-wrap under way.
struct Run<'a> {
    keyring: &'a Arc<Keyring>,
    target: Target,
    pace: Arc<Pace>,
    dry_run: bool,
    /// Accounts in a batch.
    batch: usize,
    found: u64,
    done: u64,
    report: RewrapReport,
    /// Failed in this run: not tried again in a further pass.
    failed: BTreeSet<AccountId>,
}

impl<'a> Run<'a> {
    fn new(keyring: &'a Arc<Keyring>, target: Target, pace: Pace, dry_run: bool) -> Self {
        let rate = pace.rate(keyring);
        let batch = usize::try_from(rate / CALLS_PER_AEK / BATCHES_PER_SECOND).unwrap_or(BATCH_MAX).clamp(1, BATCH_MAX);
        let report = RewrapReport {
            to: target.kek.clone(),
            accounts: 0,
            aeks: 0,
            failed: 0,
            failures: Vec::new(),
            stopped: None,
        };
        Self {
            keyring,
            target,
            pace: Arc::new(pace),
            dry_run,
            batch,
            found: 0,
            done: 0,
            report,
            failed: BTreeSet::new(),
        }
    }

    /// Meanwhile the KEK may have been rotated again, accounts been made under what was current before, and that been
    /// retired: looked at before each page, so that a crash leaves no more than one page under it.
    async fn retarget(&mut self) -> Result<()> {
        self.target = self.keyring.target(&self.target.kek.name).await?;
        self.report.to = self.target.kek.clone();
        Ok(())
    }

    fn progress(&self) -> RewrapProgress {
        RewrapProgress { accounts: self.found.max(self.done), done: self.done }
    }

    /// Moves what one version wraps; stops at the first trouble that is not an account's own.
    async fn pass(&mut self, from: &KekVersion, progress: &impl Fn(RewrapProgress)) -> Result<()> {
        let mut stopped = None;
        let mut flights = JoinSet::new();
        let mut after = None;
        while stopped.is_none() {
            let page = match self.page(from, after.as_ref()).await {
                Ok(page) => page,
                Err(error) => {
                    stopped = Some(error);
                    break;
                }
            };
            let ids: Vec<_> =
                page.keys.into_iter().filter_map(account_of).filter(|id| !self.failed.contains(id)).collect();
            stopped = self.take_off(from, &ids, &mut flights, progress).await.err();
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        while let Some(landed) = flights.join_next().await {
            let landed = self.land(landed, progress).await;
            stopped = stopped.or(landed.err());
        }
        if !self.dry_run {
            self.keyring.note_moved(from);
        }
        stopped.map_or(Ok(()), Err)
    }

    /// Starts batches of these accounts, and lands those before them.
    async fn take_off(
        &mut self,
        from: &KekVersion,
        ids: &[AccountId],
        flights: &mut JoinSet<Vec<Landed>>,
        progress: &impl Fn(RewrapProgress),
    ) -> Result<()> {
        for batch in ids.chunks(self.batch) {
            if flights.len() >= BATCHES_IN_FLIGHT_MAX
                && let Some(landed) = flights.join_next().await
            {
                self.land(landed, progress).await?;
            }
            let batch = batch.iter().filter(|id| !planted::is_left_behind(id)).cloned().collect();
            flights.spawn(self.flight(from, batch));
        }
        Ok(())
    }

    /// Reads every record, moves what an older version wraps and the index did not find, and says how many accounts that were.
    async fn unindexed(&mut self, progress: &impl Fn(RewrapProgress)) -> Result<usize> {
        let mut found = BTreeMap::<KekVersion, Vec<AccountId>>::new();
        let (mut many, mut unreadable) = (0, Vec::new());
        read_accounts(&*self.keyring.store, |id, record| {
            if self.failed.contains(id) {
                return Ok(());
            }
            match record {
                Ok(record) => {
                    let mut keks = record.wrapped_by().into_iter();
                    let old =
                        keks.find(|kek| kek.name == self.target.kek.name && kek.version < self.target.kek.version);
                    if let Some(old) = old.filter(|_| many < UNINDEXED_MAX) {
                        found.entry(old).or_default().push(id.clone());
                        many += 1;
                    }
                }
                // It may be wrapped by one of them.
                Err(error) if unreadable.len() < REWRAP_FAILURES_MAX => unreadable.push((id.clone(), error)),
                Err(_) => {}
            }
            self.pace.progressed();
            Ok(())
        })
        .await?;
        for (account, error) in unreadable {
            self.fail(account, error);
        }
        let (mut flights, mut outcome) = (JoinSet::new(), Ok(()));
        for (from, ids) in &found {
            outcome = outcome.and(self.take_off(from, ids, &mut flights, progress).await);
            self.keyring.note_moved(from);
        }
        while let Some(landed) = flights.join_next().await {
            outcome = self.land(landed, progress).await.and(outcome);
        }
        outcome.map(|()| many)
    }

    fn fail(&mut self, account: AccountId, error: Error) {
        self.report.failed += 1;
        self.failed.insert(account.clone());
        if self.report.failures.len() < REWRAP_FAILURES_MAX {
            self.report.failures.push(RewrapFailure { account, error });
        }
    }

    async fn page(&mut self, from: &KekVersion, after: Option<&Key>) -> Result<Page> {
        self.retarget().await?;
        self.keyring.store.list(&Filter::WrappedBy(from.clone()), after, PAGE_KEYS_MAX).await
    }

    fn flight(&self, from: &KekVersion, ids: Vec<AccountId>) -> impl Future<Output = Vec<Landed>> + Send + use<> {
        let (keyring, target, pace) = (self.keyring.clone(), self.target.clone(), self.pace.clone());
        let batch = Batch { keyring, from: from.clone(), target, pace };
        let dry_run = self.dry_run;
        async move { if dry_run { batch.would_move(ids).await } else { batch.move_all(ids).await } }
    }

    /// Counts what became of a batch; gives the first trouble that is not an account's own.
    async fn land(
        &mut self,
        landed: Result<Vec<Landed>, tokio::task::JoinError>,
        progress: &impl Fn(RewrapProgress),
    ) -> Result<()> {
        let died = |_| Error::Fatal("the task that re-wraps accounts died: try again".into());
        let is_held = self.pace.claim().check();
        self.pace.progressed();
        let mut trouble = Ok(());
        for (account, outcome) in landed.map_err(died)? {
            match outcome {
                Ok(0) => {} // somebody else has moved or purged it
                Ok(aeks) => {
                    self.report.accounts += 1;
                    self.report.aeks += aeks;
                    if !self.dry_run {
                        self.keyring.rewraps.one_moved();
                    }
                }
                Err(error) if is_held.is_ok() && is_this_accounts(self.keyring, &error).await => {
                    self.fail(account, error);
                }
                Err(error) => {
                    trouble = trouble.and(is_held.clone()).and(Err(error));
                    continue;
                }
            }
            self.done += 1;
            progress(self.progress());
        }
        trouble
    }
}

fn account_of(key: Key) -> Option<AccountId> {
    if let Key::Account(id) = key { Some(id) } else { None }
}

/// True for what concerns one account alone; of a store that fails it is where it answers for others.
pub(super) async fn is_this_accounts(keyring: &Keyring, error: &Error) -> bool {
    is_the_accounts_own(error) || matches!(error, Error::Store(_)) && keyring.store_answers().await
}
