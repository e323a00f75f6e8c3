//! The AEKs of some accounts, re-wrapped: read together, worked off, and written together.

use super::hold::{Claim, Stint};
use crate::{
    clock::{Clock, Instant},
    error::{Error, Result},
    keyring::{Keyring, NewProof, gives_not_back, keks::Target},
    leash::vouch::Vouched,
    name::{AccountId, KekVersion},
    secret::Aek,
    slots::slot::Leash,
    store::{
        CONFLICTS_MAX, Key, Put, StoreVersion, Versioned, again_and_again,
        record::{AccountRecord, WrappedAek, check_value, context},
    },
    token::budget::{BACKGROUND_IN_FLIGHT_MAX, Place, Rate},
};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinSet;

/// What became of an account: how many of its AEKs were moved.
pub(super) type Landed = (AccountId, Result<u64>);

/// Which AEKs of an account are moved.
#[derive(Clone, Copy)]
pub(super) enum Which<'a> {
    /// Those that another version of the target's KEK wraps, in the pass over what this version wraps.
    OfThisKek(&'a KekVersion),
    /// All that something else than the target wraps.
    All,
}

impl Which<'_> {
    /// True when an AEK under `kek` stays where it is while that is denied: another pass is over it, and says so.
    pub(super) fn may_leave(self, kek: &KekVersion) -> bool {
        matches!(self, Self::OfThisKek(from) if from != kek)
    }
}

/// The pace of token calls, and whether there may be any.
pub(crate) struct Pace {
    /// A rate of its own, in calls per second.
    pub(crate) own: Option<(u32, Rate)>,
    /// Of scheduled work: it stops when its holder is another engine.
    pub(super) stint: Option<Arc<Stint>>,
}

impl Pace {
    /// Of work that somebody asked for: a rate of its own, in calls per second, or the engine's.
    pub(crate) fn of(own: Option<u32>, clock: &Clock) -> Self {
        Self { own: own.map(|rate| (rate, Rate::new(rate, clock.clone()))), stint: None }
    }

    /// Of scheduled work.
    pub(super) fn held(stint: Arc<Stint>) -> Self {
        Self { own: None, stint: Some(stint) }
    }

    /// A place for a call under that lease.
    pub(super) async fn place(&self, leash: &Leash) -> Place {
        match &self.own {
            Some((_, rate)) => leash.background_at(rate).await,
            None => leash.background().await,
        }
    }

    /// Most token calls per second.
    pub(super) fn rate(&self, keyring: &Keyring) -> u32 {
        self.own.as_ref().map_or(keyring.settings.resume_rate, |(rate, _)| *rate)
    }

    pub(super) fn claim(&self) -> Claim<'_> {
        Claim(self.stint.as_deref())
    }

    /// Something was done, or left, and the next is begun.
    pub(super) fn progressed(&self) {
        self.stint.iter().for_each(|stint| stint.progressed());
    }
}

/// Accounts that are re-wrapped together.
#[derive(Clone)]
pub(super) struct Batch {
    pub(super) keyring: Arc<Keyring>,
    /// The pass that it is of.
    pub(super) from: KekVersion,
    pub(super) target: Target,
    pub(super) pace: Arc<Pace>,
}

impl Batch {
    fn which(&self) -> Which<'_> {
        Which::OfThisKek(&self.from)
    }

    pub(super) async fn would_move(&self, ids: Vec<AccountId>) -> Vec<Landed> {
        let left = |found: Option<(AccountRecord, StoreVersion)>| {
            let Some((record, _)) = found else { return 0 };
            let left = left_behind(&record, &self.target, self.which());
            // All of them in the first pass that meets the account, as the work itself would; that is over the oldest version.
            let first = left.iter().map(|aek| aek.kek.version).min();
            if first == Some(self.from.version) { left.len() as u64 } else { 0 }
        };
        self.read(ids).await.into_iter().map(|(id, found)| (id, found.map(left))).collect()
    }

    /// Reads them together, has each re-wrapped by the token, and writes them together. One that was changed meanwhile is done
    /// again by itself.
    pub(super) async fn move_all(&self, ids: Vec<AccountId>) -> Vec<Landed> {
        let (mut found, mut landed, mut overtaken) = (Vec::new(), Vec::new(), Vec::new());
        for (id, read) in self.read(ids).await {
            match read {
                Ok(Some((record, seen))) => found.push((id, record, seen)),
                Ok(None) => landed.push((id, Ok(0))), // purged since it was listed
                Err(error) => landed.push((id, Err(error))),
            }
        }
        // One comes first, and vouches for the others then.
        if !found.is_empty()
            && let Ok(Vouched::Bare { .. }) = self.keyring.vouch(&self.target.kek).await
            && let Some((id, ..)) = found.pop()
        {
            match self.move_again(&id).await {
                Ok(aeks) => landed.push((id, Ok(aeks))),
                Err(error) => overtaken.push(((id, 0), Err(error))), // once more, where it is the store's for once
            }
            self.pace.progressed();
        }
        let heap = Arc::new(Mutex::new(found.into_iter()));
        let mut hands = JoinSet::new();
        for _ in 0..BACKGROUND_IN_FLIGHT_MAX {
            hands.spawn(self.clone().work_off(heap.clone()));
        }
        let (mut changes, mut changed) = (Vec::new(), Vec::new());
        while let Some(done) = hands.join_next().await {
            for (id, change) in unless_it_died(done) {
                match change {
                    Ok(Some((change, aeks))) => {
                        changes.push(change);
                        changed.push((id, aeks));
                    }
                    Ok(None) => landed.push((id, Ok(0))),
                    Err(conflict @ Error::Conflict(_)) => overtaken.push(((id, 0), Err(conflict))),
                    Err(error) => landed.push((id, Err(error))),
                }
            }
        }
        let outcomes = self.write_vouched(changes).await;
        for ((id, aeks), outcome) in changed.into_iter().zip(outcomes).chain(overtaken) {
            let outcome = match outcome {
                Ok(_) => Ok(aeks),
                Err(Error::NotFound(_)) => Ok(0),
                // By itself: of those that it was written with one may be the store's trouble.
                Err(Error::Conflict(what)) => {
                    self.pace.claim().met_conflict(&what);
                    self.move_again(&id).await
                }
                Err(Error::Store(_)) if self.keyring.store_answers().await => self.move_again(&id).await,
                Err(error) => Err(error),
            };
            self.pace.progressed();
            landed.push((id, outcome));
        }
        landed
    }

    async fn write_vouched(&self, changes: Vec<(Change, Vouched)>) -> Vec<Result<StoreVersion>> {
        if changes.is_empty() {
            return Vec::new();
        }
        let (keyring, mut target) = (&self.keyring, self.target.clone());
        let vouched = async {
            let vouched = vouch_to_write(keyring, &target, changes.iter().map(|(_, wrapped)| *wrapped)).await?;
            keyring.rest_on(&mut target, vouched).await.map(drop)
        };
        match vouched.await {
            Ok(()) => {
                let guarded = changes.into_iter().map(|((key, seen, put), _)| (key, seen, target.guard(put)));
                self.write(guarded.collect()).await
            }
            Err(lost) => vec![Err(lost); changes.len()],
        }
    }

    async fn write(&self, changes: Vec<Change>) -> Vec<Result<StoreVersion>> {
        let (keyring, many) = (&self.keyring, changes.len());
        let mut guarded = Vec::with_capacity(many);
        for (key, seen, put) in changes {
            match self.pace.claim().guard(put).await {
                Ok(put) => guarded.push((key, seen, put)),
                Err(lost) => return vec![Err(lost); many],
            }
        }
        let written = self.keyring.in_patience(keyring.store.replace_many(guarded)).await;
        written.unwrap_or_else(|| vec![Err(Error::Store("no answer in time, for accounts together".into())); many])
    }

    /// On what the account is by now, and to where its KEK's AEKs are moved by now.
    async fn move_again(&self, id: &AccountId) -> Result<u64> {
        let again = async {
            let target = self.keyring.target(&self.target.kek.name).await?;
            move_aeks(&self.keyring, id, &target, self.which(), &self.pace).await
        };
        self.keyring.in_account_time(again).await
    }

    async fn read(&self, ids: Vec<AccountId>) -> Vec<(AccountId, Result<Option<(AccountRecord, StoreVersion)>>)> {
        let keys: Vec<_> = ids.iter().cloned().map(Key::Account).collect();
        let keyring = &self.keyring;
        let together = self.keyring.in_patience(keyring.store.get_many(&keys)).await;
        let mut found = together.unwrap_or_else(|| {
            keys.iter().map(|_| Err(Error::Store("no answer in time, for accounts together".into()))).collect()
        });
        // By itself: of those that it was read with one may be the store's trouble.
        if found.iter().any(|found| matches!(found, Err(Error::Store(_)))) && self.keyring.store_answers().await {
            for (key, found) in keys.iter().zip(&mut found).filter(|(_, found)| matches!(found, Err(Error::Store(_)))) {
                *found = self.keyring.in_account_time(keyring.store.get(key)).await;
                self.pace.progressed();
            }
        }
        let decode = |(key, found): (&Key, Result<Option<Versioned>>)| {
            found?.map(|found| Ok((AccountRecord::decode(key, &found.value)?, found.version))).transpose()
        };
        ids.into_iter().zip(keys.iter().zip(found).map(decode)).collect()
    }

    /// Takes one account after the other until none is left; leaves the rest when one meets what would befall all.
    async fn work_off(self, heap: Arc<Mutex<Heap>>) -> Vec<(AccountId, Result<Option<((Change, Vouched), u64)>>)> {
        let heap = || heap.lock().unwrap_or_else(PoisonError::into_inner);
        let next = || heap().next();
        let mut done = Vec::new();
        while let Some((id, record, seen)) = next() {
            let change = self.change(record, seen).await;
            if change.as_ref().is_err_and(|error| !is_the_accounts_own(error)) {
                *heap() = Vec::new().into_iter();
            }
            done.push((id, change));
        }
        done
    }

    /// The change to an account's record, and how many AEKs it moves; `None` when there is nothing to move.
    async fn change(&self, mut record: AccountRecord, seen: StoreVersion) -> Result<Option<((Change, Vouched), u64)>> {
        let rewrapped = rewrap_all(&self.keyring, &mut record, &self.target, None, self.which(), &self.pace).await?;
        match rewrapped.vouched {
            None => Ok(None),
            // It is to come first, which is for one alone.
            Some(Vouched::Bare { .. }) => Err(is_not_vouched_for(&self.target)),
            Some(vouched) => Ok(Some((((record.key(), seen, record.put()?), vouched), rewrapped.left.len() as u64))),
        }
    }
}

/// What is to be done of a batch.
type Heap = std::vec::IntoIter<(AccountId, AccountRecord, StoreVersion)>;

/// A change of a record by compare-and-put, which is to rest on the target.
type Change = (Key, StoreVersion, Put);

/// What was wrapped anew for one account.
#[derive(Default)]
struct Rewrapped {
    /// The KEK versions that the AEKs were under, one for each.
    left: Vec<KekVersion>,
    /// What vouched for the target.
    vouched: Option<Vouched>,
    /// The round trips while nothing did, of which one is to be the proof.
    firsts: Vec<(WrappedAek, NewProof)>,
}

/// A task that panicked takes its batch with it: what that had not written is as it was.
fn unless_it_died<T>(done: Result<T, tokio::task::JoinError>) -> T {
    match done {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Anything else would befall every account.
pub(super) fn is_the_accounts_own(error: &Error) -> bool {
    matches!(
        error,
        Error::Corrupt(_)
            | Error::Invalid(_)
            | Error::Exhausted(_)
            | Error::TooLong { .. }
            | Error::NotDeleted(_)
            | Error::Conflict(_)
    )
}

/// The AEKs that are to be moved. Never from a newer version of the target's KEK: somebody rotated it since, and the target may
/// be retired by now.
fn left_behind<'a>(record: &'a AccountRecord, target: &Target, which: Which<'_>) -> Vec<&'a WrappedAek> {
    let is_left = |aek: &&WrappedAek| match aek.kek.name == target.kek.name {
        true => aek.kek.version < target.kek.version,
        false => matches!(which, Which::All),
    };
    record.versions.iter().filter(is_left).collect()
}

/// Moves AEKs of one account, and says how many.
pub(super) async fn move_aeks(
    keyring: &Arc<Keyring>,
    id: &AccountId,
    target: &Target,
    which: Which<'_>,
    pace: &Pace,
) -> Result<u64> {
    let (mut target, mut since) = (target.clone(), None);
    for _ in 0..CONFLICTS_MAX {
        let Some((mut record, seen)) = crate::store::load_account(&*keyring.store, id).await? else {
            return match which {
                Which::OfThisKek(_) => Ok(0), // purged since it was listed
                Which::All => Err(Error::NotFound(format!("account {id}"))),
            };
        };
        let rewrapped = rewrap_all(keyring, &mut record, &target, since, which, pace).await;
        // By what is there from now on: what the last proof was by may be purged.
        since = Some(keyring.clock.now());
        if matches!(rewrapped, Err(Error::Conflict(_))) {
            continue;
        }
        let Rewrapped { left, vouched, firsts } = rewrapped?;
        let Some(wrapped) = vouched else { return Ok(0) };
        let write = async {
            let vouched = vouch_to_write(keyring, &target, std::iter::once(wrapped)).await?;
            let _place = keyring.rest_on(&mut target, vouched).await?;
            let put = pace.claim().guard(target.guard(record.put()?)).await?;
            keyring.store.replace(&record.key(), &seen, put).await
        };
        match write.await {
            Ok(_) => {
                firsts.iter().for_each(|(wrapped, proof)| keyring.stored(id, wrapped, proof));
                if matches!(which, Which::All) {
                    left.iter().for_each(|kek| keyring.note_moved(kek));
                }
                return Ok(left.len() as u64);
            }
            // On what it is by now, and to where it is moved by now.
            Err(Error::Conflict(what)) => {
                pace.claim().met_conflict(&what);
                target = keyring.target(&target.kek.name).await?;
            }
            Err(Error::NotFound(_)) if matches!(which, Which::OfThisKek(_)) => return Ok(0),
            Err(error) => return Err(error),
        }
    }
    Err(again_and_again("account", id))
}

/// What vouches for the target as something is written that was `wrapped` on those words. The old wrappings go with that write, for good:
/// so it is asked since, and not only before the new ones.
async fn vouch_to_write(
    keyring: &Arc<Keyring>,
    target: &Target,
    mut wrapped: impl Iterator<Item = Vouched>,
) -> Result<Vouched> {
    let vouched = keyring.vouch_since(&target.kek, keyring.clock.now()).await?;
    match wrapped.all(|wrapped| vouched.goes_on_from(wrapped)) {
        true => Ok(vouched),
        false => Err(is_not_vouched_for(target)),
    }
}

/// What was wrapped while nothing was there that vouched for the target is not stored behind what came since, which another key may have
/// wrapped; nor what was wrapped before a refusal: it is wrapped once more.
fn is_not_vouched_for(target: &Target) -> Error {
    Error::Conflict(format!("KEK {}, as it was when AEKs were wrapped by it", target.kek.name))
}

/// Puts every AEK of `record` that is to be moved under the target, which is vouched for as ever, or by what was asked at `since` or later.
///
/// # Errors
/// [`Error::Conflict`] when what vouched for the target changed meanwhile: to be done again.
async fn rewrap_all(
    keyring: &Arc<Keyring>,
    record: &mut AccountRecord,
    target: &Target,
    since: Option<Instant>,
    which: Which<'_>,
    pace: &Pace,
) -> Result<Rewrapped> {
    let (mut moved, mut rewrapped) = (Vec::new(), Rewrapped::default());
    for old in left_behind(record, target, which) {
        let aek = match unwrap(keyring, &record.account, old, pace).await {
            Err(Error::Denied(_)) if which.may_leave(&old.kek) => continue,
            unwrapped => unwrapped?,
        };
        let (new, proof) = rewrap(keyring, &record.account, old, &aek, (target, since), pace).await?;
        if !rewrapped.vouched.is_none_or(|before| proof.vouched.goes_on_from(before)) {
            return Err(is_not_vouched_for(target));
        }
        rewrapped.vouched = Some(proof.vouched);
        moved.push((old.kek.clone(), new.clone()));
        if proof.vouched.is_bare() {
            rewrapped.firsts.push((new, proof));
        }
    }
    for (kek, aek) in moved {
        if let Some(place) = record.versions.iter_mut().find(|version| version.aek_version == aek.aek_version) {
            *place = aek;
            rewrapped.left.push(kek);
        }
    }
    Ok(rewrapped)
}

async fn unwrap(keyring: &Arc<Keyring>, id: &AccountId, old: &WrappedAek, pace: &Pace) -> Result<Aek> {
    let from = keyring.leash(&old.kek).await?;
    keyring.unwrap_apart(id, old, pace.place(&from).await).await
}

/// An AEK, which was `old`, under the target, verified by an unwrap.
async fn rewrap(
    keyring: &Arc<Keyring>,
    id: &AccountId,
    old: &WrappedAek,
    aek: &Aek,
    (target, since): (&Target, Option<Instant>),
    pace: &Pace,
) -> Result<(WrappedAek, NewProof)> {
    let to = keyring.leash(&target.kek).await?;
    let context = context(&target.kek, id, old.aek_version);
    let vouched = match since {
        Some(since) => keyring.vouch_since(&target.kek, since).await?,
        None => keyring.vouch(&target.kek).await?,
    };
    let place = pace.place(&to).await;
    let of = (id, old.aek_version);
    let (wrapped, place) = keyring.wrap(&target.kek, &target.record, of, aek, vouched, place).await?;
    drop(place);
    let new = WrappedAek {
        kek: target.kek.clone(),
        kek_id: target.record.id.clone(),
        profile: target.record.profile,
        wrapped,
        check: check_value(aek, &context),
        ..old.clone()
    };
    let mut back = keyring.prove_new(id, &new, vouched, pace.place(&to).await).await?;
    // Wiped here: in no slot yet, and of a store that takes its time.
    let is_it = back.aek.take().as_ref() == Some(aek);
    if is_it { Ok((new, back)) } else { Err(gives_not_back(&target.kek)) }
}
