//! Re-wrap: every AEK of a KEK to its current version, and one account to another KEK.
//!
//! Of each AEK: unwrap, verify, wrap, verify by a second unwrap, compare-and-put. What is left to do is what the store's
//! index still finds under the other versions, so that nothing needs to be remembered for going on after a crash.

use super::{CONFLICTS_MAX, delete::again_and_again, hold::Hold};
use crate::{
    budget::{Budget, Place},
    engine::Engine,
    error::{Error, Result},
    keyring::Keyring,
    name::{AccountId, KekName, KekVersion},
    slot::Leash,
    store::{
        Filter, Key, PAGE_KEYS_MAX,
        record::{AccountRecord, KekVersionRecord, WrappedAek, binding, check_value, context},
    },
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::task::JoinSet;

/// Accounts under way at once: more than the token has calls, so that their writes share a commit of the store.
const ACCOUNTS_IN_FLIGHT_MAX: usize = 256;
/// Failures that are reported one by one; more are counted.
pub const REWRAP_FAILURES_MAX: usize = 1000;
/// How often the whole index is gone through, while accounts keep appearing under versions that are not current.
const PASSES_MAX: usize = 16;

/// How to re-wrap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RewrapOptions {
    /// Most token calls per second, three for each AEK. `None`: they share the engine's `resume_rate` with whatever else
    /// runs in the background.
    pub rate: Option<u32>,
    /// Change nothing and ask the token nothing: count what would be done.
    pub dry_run: bool,
}

/// How far it has got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RewrapProgress {
    /// Accounts that were found at the beginning.
    pub accounts: u64,
    /// Of them, and of those that appeared since: done, failed ones too.
    pub done: u64,
}

/// An account that could not be re-wrapped. It is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RewrapFailure {
    /// The account.
    pub account: AccountId,
    /// Why.
    pub error: Error,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Why it stopped before the end; the rest waits for the next time, which goes on from there.
    pub stopped: Option<Error>,
}

/// Where AEKs are moved to.
#[derive(Clone)]
struct Target {
    kek: KekVersion,
    record: KekVersionRecord,
}

/// Which AEKs of an account are moved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Those that another version of the target's KEK wraps.
    OfThisKek,
    /// All that something else than the target wraps.
    All,
}

/// The pace of token calls, and whether there may be any.
pub(super) struct Pace {
    own: Option<Budget>,
    /// Of scheduled work: it stops when its holder is another engine.
    hold: Option<Arc<Hold>>,
}

impl Pace {
    /// Of scheduled work.
    pub(super) fn held(hold: Arc<Hold>) -> Self {
        Self { own: None, hold: Some(hold) }
    }

    /// A place for a call under that lease.
    async fn place(&self, leash: &Leash) -> Place {
        self.own.as_ref().unwrap_or(leash.budget()).background().await
    }

    fn may_write(&self, keyring: &Keyring) -> Result<()> {
        self.hold.as_ref().map_or(Ok(()), |hold| hold.check(keyring.clock.now()))
    }
}

impl Engine {
    /// Moves every AEK that an older version of `kek` wraps to its current version. Several accounts are under way at
    /// once; the engine's on-demand unwraps go first. Live handles follow, undisturbed. Safe beside other engines and
    /// processes on the same store, account creation and rotation included; after a crash at any instant call it again.
    ///
    /// An account whose record or wrapped AEK is damaged is reported and left as it is. A denial, an outage and a store
    /// that fails stop it: [`RewrapReport::stopped`].
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Store`], [`Error::Corrupt`] for the KEK itself.
    pub async fn rewrap_kek(
        &self,
        kek: &KekName,
        options: RewrapOptions,
        progress: impl Fn(RewrapProgress) + Send,
    ) -> Result<RewrapReport> {
        let own = options.rate.map(|rate| Budget::new(rate, self.keyring().clock.clone()));
        self.rewrap_at(kek, options.dry_run, Pace { own, hold: None }, progress).await
    }

    /// As [`Engine::rewrap_kek`], at a given pace.
    pub(super) async fn rewrap_at(
        &self,
        kek: &KekName,
        dry_run: bool,
        pace: Pace,
        progress: impl Fn(RewrapProgress) + Send,
    ) -> Result<RewrapReport> {
        let pace = Arc::new(pace);
        let mut run = Run::new(self, self.target(kek).await?, pace);
        for version in self.old_versions(kek, &run.target).await? {
            run.found += self.count_wrapped_by(&version).await?;
        }
        progress(run.progress());
        for _ in 0..PASSES_MAX {
            let done_before = run.report.accounts;
            for version in self.old_versions(kek, &run.target).await? {
                run.pass(&version, dry_run, &progress).await?;
                if run.report.stopped.is_some() {
                    return Ok(run.report);
                }
            }
            // Meanwhile the KEK may have been rotated again, and accounts been made under what was current before.
            let target = self.target(kek).await?;
            let moved_on = target.kek != run.target.kek;
            run.target = target;
            run.report.to = run.target.kek.clone();
            if dry_run || !moved_on && run.report.accounts == done_before {
                break;
            }
        }
        Ok(run.report)
    }

    /// Moves an account, all its AEKs, to the current version of `kek`: another KEK, profile or token, or the KEK that it is
    /// under. The old wrapping is gone from the store when this returns. True when anything was to be moved.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the account or the KEK; [`Error::Corrupt`]; [`Error::Denied`], [`Error::Unreachable`] and
    /// the like from either KEK: then the account is as it was; [`Error::Store`], [`Error::Conflict`].
    pub async fn move_account(&self, id: &AccountId, kek: &KekName) -> Result<bool> {
        let (version, record) = self.current_kek(kek).await?;
        self.check_recoverable(&version, &record).await?;
        self.relocate(id, kek).await
    }

    /// As [`Engine::move_account`], without asking whether the KEK is good enough for a new account.
    pub(crate) async fn relocate(&self, id: &AccountId, kek: &KekName) -> Result<bool> {
        let pace = Pace { own: None, hold: None };
        let mut moved = false;
        for _ in 0..CONFLICTS_MAX {
            let target = self.target(kek).await?;
            moved |= move_aeks(self.keyring(), id, &target, Which::All, &pace).await? > 0;
            // Retirement looks who is wrapped before and after; whoever it did not see looks here.
            if self.target(kek).await?.kek == target.kek {
                return Ok(moved);
            }
        }
        Err(Error::Conflict(format!("KEK {kek}, again and again: see who rotates it, and try again")))
    }

    async fn target(&self, kek: &KekName) -> Result<Target> {
        let (kek, record) = self.current_kek(kek).await?;
        Ok(Target { kek, record })
    }

    /// Every version but the target; retired ones too, under which a crash may have left an account.
    async fn old_versions(&self, kek: &KekName, target: &Target) -> Result<Vec<KekVersion>> {
        let record = self.kek_record(kek).await?;
        let versions = record.versions.iter().map(|version| KekVersion::new(kek.clone(), version.version));
        Ok(versions.filter(|version| *version != target.kek).collect())
    }
}

/// A re-wrap under way.
struct Run<'a> {
    engine: &'a Engine,
    target: Target,
    pace: Arc<Pace>,
    found: u64,
    done: u64,
    report: RewrapReport,
    /// Failed in this run: not tried again in a further pass.
    failed: BTreeSet<AccountId>,
    aeks: Arc<AtomicU64>,
}

impl<'a> Run<'a> {
    fn new(engine: &'a Engine, target: Target, pace: Arc<Pace>) -> Self {
        let report = RewrapReport {
            to: target.kek.clone(),
            accounts: 0,
            aeks: 0,
            failed: 0,
            failures: Vec::new(),
            stopped: None,
        };
        Self { engine, target, pace, found: 0, done: 0, report, failed: BTreeSet::new(), aeks: Arc::default() }
    }

    fn progress(&self) -> RewrapProgress {
        RewrapProgress { accounts: self.found.max(self.done), done: self.done }
    }

    /// Moves what one version wraps.
    async fn pass(&mut self, from: &KekVersion, dry_run: bool, progress: &impl Fn(RewrapProgress)) -> Result<()> {
        let keyring = self.engine.keyring();
        let filter = Filter::WrappedBy(from.clone());
        let mut after = None;
        let mut flights = JoinSet::new();
        'pages: loop {
            let page = match keyring.store.list(&filter, after.as_ref(), PAGE_KEYS_MAX).await {
                Ok(page) => page,
                Err(error) => {
                    self.report.stopped = Some(error);
                    break;
                }
            };
            for key in page.keys {
                let Key::Account(id) = key else { continue };
                if self.failed.contains(&id) {
                    continue;
                }
                if flights.len() >= ACCOUNTS_IN_FLIGHT_MAX
                    && let Some(landed) = flights.join_next().await
                {
                    self.land(landed, progress);
                }
                if self.report.stopped.is_some() {
                    break 'pages;
                }
                let (keyring, target, pace) = (keyring.clone(), self.target.clone(), self.pace.clone());
                flights.spawn(async move {
                    let outcome = match dry_run {
                        true => would_move(&keyring, &id, &target).await,
                        false => move_aeks(&keyring, &id, &target, Which::OfThisKek, &pace).await,
                    };
                    (id, outcome)
                });
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        while let Some(landed) = flights.join_next().await {
            self.land(landed, progress);
        }
        self.report.aeks = self.aeks.load(Ordering::SeqCst);
        if !dry_run {
            keyring.note_moved(from);
        }
        Ok(())
    }

    fn land(
        &mut self,
        landed: Result<(AccountId, Result<u64>), tokio::task::JoinError>,
        progress: &impl Fn(RewrapProgress),
    ) {
        let (account, outcome) = match landed {
            Ok(landed) => landed,
            Err(_) => {
                let died = Error::Fatal("the task that re-wraps an account died: try again".into());
                self.report.stopped.get_or_insert(died);
                return;
            }
        };
        if let (Err(lost), Err(_)) = (self.pace.may_write(self.engine.keyring()), &outcome) {
            self.report.stopped.get_or_insert(lost);
            return;
        }
        match outcome {
            Ok(0) => {} // somebody else has moved or purged it
            Ok(aeks) => {
                self.report.accounts += 1;
                self.aeks.fetch_add(aeks, Ordering::SeqCst);
            }
            Err(error @ (Error::Corrupt(_) | Error::Invalid(_) | Error::Conflict(_))) => {
                self.report.failed += 1;
                self.failed.insert(account.clone());
                if self.report.failures.len() < REWRAP_FAILURES_MAX {
                    self.report.failures.push(RewrapFailure { account, error });
                }
            }
            Err(error) => {
                self.report.stopped.get_or_insert(error);
                return;
            }
        }
        self.done += 1;
        progress(self.progress());
    }
}

/// The AEKs that are to be moved.
fn left_behind<'a>(record: &'a AccountRecord, target: &Target, which: Which) -> Vec<&'a WrappedAek> {
    let is_left = |aek: &&WrappedAek| {
        aek.kek != target.kek
            && match which {
                Which::OfThisKek => aek.kek.name == target.kek.name,
                Which::All => true,
            }
    };
    record.versions.iter().filter(is_left).collect()
}

async fn would_move(keyring: &Keyring, id: &AccountId, target: &Target) -> Result<u64> {
    let found = crate::store::load_account(&*keyring.store, id).await?;
    Ok(found.map_or(0, |(record, _)| left_behind(&record, target, Which::OfThisKek).len() as u64))
}

/// Moves AEKs of one account, and says how many.
async fn move_aeks(keyring: &Arc<Keyring>, id: &AccountId, target: &Target, which: Which, pace: &Pace) -> Result<u64> {
    for _ in 0..CONFLICTS_MAX {
        let Some((mut record, seen)) = crate::store::load_account(&*keyring.store, id).await? else {
            return match which {
                Which::OfThisKek => Ok(0), // purged since it was listed
                Which::All => Err(Error::NotFound(format!("account {id}"))),
            };
        };
        let mut moved = Vec::new();
        for aek in left_behind(&record, target, which) {
            moved.push(rewrap(keyring, id, aek, target, pace).await?);
        }
        if moved.is_empty() {
            return Ok(0);
        }
        let old: BTreeSet<_> = left_behind(&record, target, which).into_iter().map(|aek| aek.kek.clone()).collect();
        let count = moved.len() as u64;
        for aek in moved {
            if let Some(place) = record.versions.iter_mut().find(|version| version.aek_version == aek.aek_version) {
                *place = aek;
            }
        }
        pace.may_write(keyring)?;
        match keyring.store.replace(&record.key(), &seen, record.put()?).await {
            Ok(_) => {
                if which == Which::All {
                    old.iter().for_each(|kek| keyring.note_moved(kek));
                }
                return Ok(count);
            }
            Err(Error::Conflict(_)) => {} // on what it is by now
            Err(Error::NotFound(_)) if which == Which::OfThisKek => return Ok(0),
            Err(error) => return Err(error),
        }
    }
    Err(again_and_again(id))
}

/// One AEK under the target, verified by an unwrap.
async fn rewrap(
    keyring: &Arc<Keyring>,
    id: &AccountId,
    old: &WrappedAek,
    target: &Target,
    pace: &Pace,
) -> Result<WrappedAek> {
    let (from, to) = (keyring.leash(&old.kek).await?, keyring.leash(&target.kek).await?);
    let aek = keyring.unwrap_apart(id, old, pace.place(&from).await).await?;
    let context = context(&target.kek, id, old.aek_version);
    let place = pace.place(&to).await;
    let wrapped = keyring.wrap(&target.kek, &target.record, &aek, &binding(&context)).await?;
    drop(place);
    let new = WrappedAek {
        kek: target.kek.clone(),
        kek_id: target.record.id.clone(),
        profile: target.record.profile,
        wrapped,
        check: check_value(&aek, &context),
        ..old.clone()
    };
    let back = keyring.verify_new(id, &new, pace.place(&to).await).await?;
    if back == aek {
        return Ok(new);
    }
    Err(Error::Misconfigured(format!("KEK {} does not give back what it wrapped: do not use it", target.kek)))
}
