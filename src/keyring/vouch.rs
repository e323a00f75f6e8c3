//! What stands behind a KEK version before anything is wrapped by it: a record that was there.
//!
//! That a key gives back what it wrapped just now says nothing of whether it is the KEK: another key in its place does the same.
//! So nothing is wrapped under a KEK version unless a record that it wrapped before was unwrapped within half a poll; and
//! what was wrapped here counts as a proof only once such a record was unwrapped after it (promise 4). A KEK version that wraps
//! nothing yet has no such record, and no data that a denial of it could keep: there a round trip counts.

use super::{Keyring, Trouble, ask::Heard, unwrap::REFUSED_ASK_PAUSE};
use crate::{
    clock::Instant,
    error::{Corrupt, Error, Result},
    lease::Phase,
    name::{AccountId, KekVersion},
    slot::Leash,
    store::{self, Filter, Key, PAGE_KEYS_MAX, record::WrappedAek},
    token::Verdict,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Most records that are tried, while each turns out to be damaged.
const VOUCHERS_MAX: usize = 16;

/// What vouches for a KEK version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vouched {
    /// A record that was there before was unwrapped.
    ByRecord,
    /// Nothing: it wraps nothing yet.
    Bare,
}

/// What one lease knows of it.
#[derive(Debug, Default)]
pub(crate) struct VouchNotes {
    /// When the last attempt began, and what came of it. Held while one is under way.
    attempt: tokio::sync::Mutex<Option<(Instant, Result<Vouched>)>>,
    /// AEK versions that were wrapped here since the last proof by a record that was there before.
    young: Mutex<HashMap<AccountId, Young>>,
}

#[derive(Debug, Clone, Copy)]
struct Young {
    /// It and the newer ones.
    from_version: u32,
    at: Instant,
}

impl VouchNotes {
    fn young(&self) -> MutexGuard<'_, HashMap<AccountId, Young>> {
        // Nothing panics while it is held.
        self.young.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when this was wrapped here, and no record that was there before has been unwrapped since: it proves nothing.
    pub(crate) fn is_young(&self, account: &AccountId, aek_version: u32) -> bool {
        self.young().get(account).is_some_and(|young| aek_version >= young.from_version)
    }

    pub(super) fn wrapped(&self, account: &AccountId, aek_version: u32, at: Instant) {
        let mut young = self.young();
        let from_version = young.get(account).map_or(aek_version, |young| young.from_version.min(aek_version));
        young.insert(account.clone(), Young { from_version, at });
    }

    /// A proof that was asked then: what had been wrapped before was wrapped by the KEK.
    pub(super) fn proved(&self, asked: Instant) {
        self.young().retain(|_, young| young.at >= asked);
    }
}

impl Keyring {
    /// Sees to it that a record which the KEK version wrapped before was unwrapped within half a `poll_interval`. Asks for one else,
    /// if there is one: one unwrap in that time, however much is wrapped.
    ///
    /// # Errors
    /// What the token says; [`Error::Misconfigured`] when it unwraps none of the records that are there; [`Error::Store`].
    pub(crate) async fn vouch(self: &Arc<Self>, kek: &KekVersion) -> Result<Vouched> {
        // Half, so that what is wrapped now can be written and admitted before that proof is too old for it.
        let age_max = (self.settings.poll_interval / 2).as_nanos() as u64;
        let since = Instant::from_nanos(self.clock.now().as_nanos().saturating_sub(age_max));
        self.vouch_since(kek, since).await
    }

    /// As [`Keyring::vouch`], by a proof that was asked at `since` or later.
    pub(crate) async fn vouch_since(self: &Arc<Self>, kek: &KekVersion, since: Instant) -> Result<Vouched> {
        let leash = self.leash(kek).await?;
        let came = self.clock.now();
        if self.is_vouched_for(&leash, since) {
            return Ok(Vouched::ByRecord);
        }
        let mut last = leash.vouch.attempt.lock().await;
        if self.is_vouched_for(&leash, since) {
            return Ok(Vouched::ByRecord);
        }
        if let Some((began, outcome)) = &*last
            && *began > came
        {
            return outcome.clone();
        }
        let began = self.clock.now();
        if !leash.may_ask(began, REFUSED_ASK_PAUSE) {
            return Err(leash.why_not());
        }
        let outcome = self.ask_for_a_record(&leash).await;
        *last = Some((began, outcome.clone()));
        outcome
    }

    fn is_vouched_for(&self, leash: &Leash, since: Instant) -> bool {
        let (now, lease) = (self.clock.now(), leash.lease());
        lease.proved().is_some_and(|proved| proved >= since && now < lease.end())
    }

    async fn ask_for_a_record(self: &Arc<Self>, leash: &Arc<Leash>) -> Result<Vouched> {
        let kek = leash.kek();
        let filter = Filter::WrappedBy(kek.clone());
        // What was wrapped here is asked only where there is nothing else: it was there before a denial, at least. However much
        // that is: it may fill pages.
        let (mut young, mut old, mut after) = (Vec::new(), Vec::new(), None);
        loop {
            let page = self.in_time(self.store.list(&filter, after.as_ref(), PAGE_KEYS_MAX)).await?;
            let ids = page.keys.into_iter().filter_map(|key| if let Key::Account(id) = key { Some(id) } else { None });
            let (youngs, olds): (Vec<_>, Vec<_>) = ids.partition(|id| leash.vouch.young().contains_key(id));
            young.extend(youngs.into_iter().take(VOUCHERS_MAX));
            old.extend(olds);
            after = page.next;
            if after.is_none() || !old.is_empty() {
                break;
            }
        }
        let (mut tried, mut last) = (0, None);
        for id in old.into_iter().chain(young) {
            if tried == VOUCHERS_MAX {
                break;
            }
            let found = match self.in_time(store::load_account(&*self.store, &id)).await {
                Err(error @ Error::Store(_)) => return Err(error),
                found => found,
            };
            let wrapped = match found {
                Ok(found) => found.and_then(|(record, _)| record.versions.into_iter().find(|aek| aek.kek == *kek)),
                Err(error) => {
                    (tried, last) = (tried + 1, Some(error));
                    continue;
                }
            };
            let Some(wrapped) = wrapped else { continue }; // moved or purged since it was listed
            if tried > 0 && leash.vouch.is_young(&id, wrapped.aek_version) {
                break;
            }
            tried += 1;
            // As in `records`: what names another key is damaged, and must not speak for the KEK.
            let proved = self.sample(kek);
            if proved.is_some_and(|(_, good)| (&good.kek_id, good.profile) != (&wrapped.kek_id, wrapped.profile)) {
                last = Some(Corrupt::WrappedAek(format!("account {id}")).into());
                continue;
            }
            match self.ask_one(leash, &id, &wrapped).await {
                Err(error @ Error::Corrupt(_)) => last = Some(error),
                outcome => return outcome,
            }
        }
        match (last, leash.lease().phase()) {
            (None, _) => Ok(Vouched::Bare),
            (Some(_), Phase::Denied { .. } | Phase::Lapsed { .. }) => Err(leash.why_not()),
            (Some(error), _) => Err(Error::Misconfigured(format!(
                "KEK {kek} unwraps none of the {tried} records that were tried of those that it wrapped ({error}): another key \
                 stands in its place, or they are damaged, and nothing is wrapped by it; restore the KEK in the token from its \
                 backup, or the records, or make another version (`keyleash kek rotate {}`)",
                kek.name
            ))),
        }
    }

    async fn ask_one(self: &Arc<Self>, leash: &Arc<Leash>, id: &AccountId, wrapped: &WrappedAek) -> Result<Vouched> {
        let place = leash.on_demand().await;
        let epoch = self.asking(leash);
        let Heard { voice, outcome } = self.unwrap_verified(leash, id, wrapped, place).await;
        let moved = || Corrupt::WrappedAek(format!("account {id}")).into();
        match outcome {
            Ok(unwrapped) => {
                self.feed(leash, voice, unwrapped.granted(epoch), None);
                self.samples().entry(wrapped.kek.clone()).or_insert_with(|| (id.clone(), wrapped.clone()));
                // Else it was denied in between. Whatever the token took for it: what is too slow for half a poll wraps all the same.
                match leash.epoch() == epoch && leash.runs_at(self.clock.now()) {
                    true => Ok(Vouched::ByRecord),
                    false => Err(leash.why_not()),
                }
            }
            Err(Trouble::OtherKey) => Err(moved()),
            Err(Trouble::Token(trouble)) if trouble.verdict == Verdict::BadRecord => Err(moved()),
            Err(Trouble::Token(trouble)) => Err(self.learn_trouble(leash, voice, id, &trouble).await),
        }
    }
}
