//! What stands behind a KEK version before anything is wrapped by it: a record that was there.
//!
//! That a key gives back what it wrapped just now says nothing of whether it is the KEK: another key in its place does the same.
//! So nothing is wrapped under a KEK version unless a record that it wrapped before was unwrapped within half a poll; and
//! what was wrapped here counts as a proof only once such a record was unwrapped after it (promise 4). A KEK version that wraps
//! nothing yet has no such record, and no data that a denial of it could keep: there a round trip counts, once what it wrapped came into
//! the store before all else.
//!
//! What another process wrapped looks like what was always there. So a lease keeps a *witness*: the first record that proved its KEK
//! version, for as long as that is there. By it alone a denial ends, whoever opened what else meanwhile; the denial's record names it to
//! those who come later. Where it is gone, or nobody knew of one, the oldest record that the store has takes its place.

use super::{
    Keyring, Trouble,
    ask::{Heard, replaced},
    keks::Target,
    unwrap::REFUSED_ASK_PAUSE,
};
use crate::{
    clock::Instant,
    error::{Corrupt, Error, Result},
    lease::standby::Voice,
    leash::vouch::{FirstPlace, Vouched},
    name::{AccountId, KekVersion},
    slots::slot::Leash,
    store::{
        self, Filter, Key, PAGE_KEYS_MAX,
        record::{AccountRecord, Witness, WrappedAek},
    },
    token::Verdict,
};
use std::sync::Arc;
use tokio::sync::OwnedMutexGuard;

/// Most records that are tried, while each turns out to be damaged.
const VOUCHERS_MAX: usize = 16;
/// Pages in which the oldest record is looked for.
const OLDEST_PAGES_MAX: usize = 16;

impl Keyring {
    /// Sees to it that a record which the KEK version wrapped before was unwrapped within half a `poll_interval`. Asks for one else,
    /// if there is one: one unwrap in that time, however much is wrapped.
    ///
    /// # Errors
    /// What the token says; [`Error::Misconfigured`] when it unwraps none of the records that are there; [`Error::Store`].
    pub(crate) async fn vouch(self: &Arc<Self>, kek: &KekVersion) -> Result<Vouched> {
        let leash = self.leash(kek).await?;
        self.vouch_for(&leash, self.young_enough(), false).await
    }

    /// As of when a proof is young enough: half, so that what is wrapped now can be written and admitted before it is too old for that.
    fn young_enough(&self) -> Instant {
        let age_max = (self.settings.poll_interval / 2).as_nanos() as u64;
        Instant::from_nanos(self.clock.now().as_nanos().saturating_sub(age_max))
    }

    /// As [`Keyring::vouch`], by a proof that was asked at `since` or later.
    pub(crate) async fn vouch_since(self: &Arc<Self>, kek: &KekVersion, since: Instant) -> Result<Vouched> {
        let leash = self.leash(kek).await?;
        self.vouch_for(&leash, since, false).await
    }

    /// As [`Keyring::vouch`], where the token was just asked for something, and answered: so it may be asked at once.
    pub(crate) async fn vouch_answered(self: &Arc<Self>, leash: &Arc<Leash>) -> Result<Vouched> {
        self.vouch_for(leash, self.young_enough(), true).await
    }

    async fn vouch_for(self: &Arc<Self>, leash: &Arc<Leash>, since: Instant, answered: bool) -> Result<Vouched> {
        let came = self.clock.now();
        if let Some(vouched) = self.vouched_since(leash, since) {
            return Ok(vouched);
        }
        let mut last = leash.vouch.attempt.lock().await;
        if let Some(vouched) = self.vouched_since(leash, since) {
            return Ok(vouched);
        }
        if let Some((began, outcome)) = &*last
            && *began > came
        {
            return outcome.clone();
        }
        let began = self.clock.now();
        if !answered && !leash.may_ask(began, REFUSED_ASK_PAUSE) {
            // Where nothing is there nothing is asked.
            let bare = self.bare(leash);
            return if self.wraps_nothing(leash.kek()).await? { Ok(bare) } else { Err(leash.why_not()) };
        }
        let outcome = match (leash.is_denied(), leash.vouch.witness_record()) {
            (true, _) => self.ask_the_witness(leash).await,
            // What proved first is as good as any, and takes no look into the store.
            (false, Some((id, wrapped))) => match self.ask_one(leash, &id, &wrapped).await {
                Err(Error::Corrupt(_)) => self.ask_for_a_record(leash).await,
                outcome => outcome,
            },
            (false, None) => self.ask_for_a_record(leash).await,
        };
        *last = Some((began, outcome.clone()));
        outcome
    }

    fn vouched_since(&self, leash: &Leash, since: Instant) -> Option<Vouched> {
        let (now, lease) = (self.clock.now(), leash.lease());
        let is_young = lease.proved().is_some_and(|proved| proved >= since && now < lease.end());
        is_young.then(|| Vouched::ByRecord { epoch: lease.epoch() })
    }

    /// Just before something is stored that was wrapped under the target: what the write is to rest on. Under a KEK version that wraps
    /// nothing yet, the first place, which is to be held until that is stored, and a look after it was taken: two that both find nothing there,
    /// and before one of which another key stood in the KEK's place, would both come first else.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the KEK was changed since the target was read, or something is there by now: begin anew.
    pub(crate) async fn rest_on(
        &self,
        target: &mut Target,
        vouched: Vouched,
    ) -> Result<Option<OwnedMutexGuard<FirstPlace>>> {
        let leash = self.leash(&target.kek).await?;
        if !vouched.is_bare() {
            if leash.epoch() != vouched.epoch() {
                return Err(leash.why_not()); // refused since it was vouched for
            }
            let place = leash.vouch.first_place.try_lock();
            if let Some(at) = place.ok().as_deref().and_then(|place| place.for_reader(&target.seen)) {
                target.seen = at.clone(); // it was written once more, unchanged, since it was read
            }
            return Ok(None);
        }
        // The wait for who has it now included: of many that come at once each has its deadline.
        let taken = self.in_patience(self.take_first_place(&leash, target)).await;
        let place =
            taken.unwrap_or_else(|| Err(Error::Store(format!("no answer in time, for KEK {}", target.kek.name))))?;
        if !self.wraps_nothing(&target.kek).await? {
            return Err(overtaken(target));
        }
        match leash.epoch() == vouched.epoch() {
            true => Ok(Some(place)),
            false => Err(leash.why_not()), // refused since it was vouched for
        }
    }

    /// As far as the store's index says.
    async fn wraps_nothing(&self, kek: &KekVersion) -> Result<bool> {
        let (filter, mut after) = (Filter::WrappedBy(kek.clone()), None);
        loop {
            let page = self.in_time(self.store.list(&filter, after.as_ref(), PAGE_KEYS_MAX)).await?;
            if !page.keys.is_empty() || page.next.is_none() {
                return Ok(page.keys.is_empty());
            }
            after = page.next;
        }
    }

    async fn take_first_place(&self, leash: &Leash, target: &mut Target) -> Result<OwnedMutexGuard<FirstPlace>> {
        let mut place = leash.vouch.first_place.clone().lock_owned().await;
        // Whoever had it may have come first: then it is not taken once more, which would put off those who wait for nothing but the write.
        if !self.wraps_nothing(&target.kek).await? {
            return Err(overtaken(target));
        }
        let (record, seen) = self.load_kek(&target.kek.name).await?;
        if seen != target.seen && place.for_reader(&target.seen) != Some(&seen) {
            return Err(overtaken(target));
        }
        target.seen = self.store.replace(&record.key(), &seen, record.put()?).await?;
        place.taken(seen, target.seen.clone());
        Ok(place)
    }

    /// What it is if nothing is found that it wraps.
    fn bare(&self, leash: &Leash) -> Vouched {
        Vouched::Bare { epoch: leash.epoch(), at: self.clock.now() }
    }

    /// While a denial is in force.
    async fn ask_the_witness(self: &Arc<Self>, leash: &Arc<Leash>) -> Result<Vouched> {
        let bare = self.bare(leash);
        let Some((id, wrapped)) = self.find_witness(leash).await? else { return Ok(bare) };
        match self.ask_one(leash, &id, &wrapped).await {
            Err(Error::Corrupt(_)) => Err(leash.why_not()),
            Err(refused) if leash.trouble() == Some(Verdict::Replaced) => {
                self.ask_an_older(leash).await.unwrap_or(Err(refused))
            }
            outcome => outcome,
        }
    }

    /// After the witness was refused, as another key's: it may itself be what another key wrapped, where it was the first that this
    /// process met. What is older, and unwraps, proves more. `None` where nobody looked, or nothing is older.
    pub(crate) async fn ask_an_older(self: &Arc<Self>, leash: &Arc<Leash>) -> Option<Result<Vouched>> {
        let (refused, wrapped) = leash.vouch.witness_record()?;
        if !leash.vouch.may_look_for_older(self.clock.now()) {
            return None;
        }
        let (id, oldest) = self.oldest(leash).await.ok().flatten()?;
        if id == refused || oldest.created_unix >= wrapped.created_unix {
            return None;
        }
        let outcome = self.ask_one(leash, &id, &oldest).await;
        if outcome.is_ok() {
            leash.vouch.read_witness(&id, &oldest);
        }
        Some(outcome)
    }

    /// The witness as the store has it; or where that is not there as it was, the oldest that is. `None` where the KEK version wraps
    /// nothing.
    async fn find_witness(&self, leash: &Leash) -> Result<Option<(AccountId, WrappedAek)>> {
        let found = match self.witness_in_store(leash).await? {
            None => self.oldest(leash).await?,
            found => found,
        };
        if let Some((id, wrapped)) = &found {
            leash.vouch.read_witness(id, wrapped);
        }
        Ok(found)
    }

    /// The witness, if it is in the store as it was. While the store is away, as it is known here.
    async fn witness_in_store(&self, leash: &Leash) -> Result<Option<(AccountId, WrappedAek)>> {
        let Some(witness) = leash.vouch.witness() else { return Ok(None) };
        match self.in_time(store::load_account(&*self.store, &witness.account)).await {
            Err(error @ Error::Store(_)) => leash.vouch.witness_record().map(Some).ok_or(error),
            Ok(Some((record, _))) => Ok(wrapped_in(record, leash.kek(), |id, aek| Witness::of(id, aek) == witness)),
            Ok(None) | Err(_) => Ok(None),
        }
    }

    /// After the witness was refused: somebody may have taken it out of the store since, so that another one takes its place.
    pub(crate) async fn recheck_witness(&self, leash: &Leash) {
        let named = leash.vouch.witness();
        if let Some(Ok(None)) = self.shortly(self.witness_in_store(leash)).await {
            leash.vouch.known_witness().take_if(|(witness, _)| named.as_ref() == Some(&*witness));
        }
    }

    /// By the date of its making; what was wrapped here since the last proof comes last. Of so many that a store can be asked for
    /// while somebody waits.
    async fn oldest(&self, leash: &Leash) -> Result<Option<(AccountId, WrappedAek)>> {
        let filter = Filter::WrappedBy(leash.kek().clone());
        let age = |(id, wrapped): &(AccountId, WrappedAek)| {
            (leash.vouch.is_young(id, wrapped.aek_version), wrapped.created_unix, id.clone(), wrapped.aek_version)
        };
        let (mut oldest, mut damaged, mut after) = (None, None, None);
        for _ in 0..OLDEST_PAGES_MAX {
            let page = self.in_time(self.store.list(&filter, after.as_ref(), PAGE_KEYS_MAX)).await?;
            let found = self.in_time(async { Ok(self.store.get_many(&page.keys).await) }).await?;
            for (key, found) in page.keys.iter().zip(found) {
                let record = match found {
                    Err(error @ Error::Store(_)) => return Err(error),
                    Ok(None) => continue, // purged since it was listed
                    Ok(Some(found)) => AccountRecord::decode(key, &found.value),
                    Err(error) => Err(error),
                };
                match record {
                    Ok(record) => {
                        let these = wrapped_in(record, leash.kek(), |_, _| true);
                        oldest = oldest.into_iter().chain(these).min_by_key(age);
                    }
                    Err(error) => damaged = Some(error),
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        match (oldest, damaged) {
            (None, Some(_)) => Err(leash.why_not()),
            (oldest, _) => Ok(oldest),
        }
    }

    async fn ask_for_a_record(self: &Arc<Self>, leash: &Arc<Leash>) -> Result<Vouched> {
        let kek = leash.kek();
        let bare = self.bare(leash);
        let filter = Filter::WrappedBy(kek.clone());
        // What was wrapped here is asked only where there is nothing else: it was there before a denial, at least. However much
        // that is: it may fill pages.
        let (mut young, mut old, mut after) = (Vec::new(), Vec::new(), None);
        loop {
            let page = self.in_time(self.store.list(&filter, after.as_ref(), PAGE_KEYS_MAX)).await?;
            let ids = page.keys.into_iter().filter_map(|key| if let Key::Account(id) = key { Some(id) } else { None });
            let (youngs, olds): (Vec<_>, Vec<_>) = ids.partition(|id| leash.vouch.is_own(id));
            young.extend(youngs.into_iter().take(VOUCHERS_MAX));
            old.extend(olds);
            after = page.next;
            if after.is_none() || !old.is_empty() {
                break;
            }
        }
        let (mut tried, mut last, others) = (0, None, old.len());
        for (n, id) in old.into_iter().chain(young).enumerate() {
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
            let comes_after_others = others > 0 && n >= others;
            if tried > 0 && (comes_after_others || leash.vouch.is_young(&id, wrapped.aek_version)) {
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
        match last {
            None => Ok(bare),
            Some(_) if leash.refuses() => Err(leash.why_not()),
            Some(error) => Err(Error::Misconfigured(format!(
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
        // Of which nothing can have changed but the key: this very wrapping was there before.
        let is_witness = || voice == Voice::First && leash.is_denied() && leash.vouch.is_witness(id, wrapped);
        match outcome {
            Ok(unwrapped) => {
                self.grant_by(leash, voice, (id, wrapped), unwrapped.when, epoch);
                self.samples().proved.entry(wrapped.kek.clone()).or_insert_with(|| (id.clone(), wrapped.clone()));
                // Else it was denied in between. Whatever the token took for it: what is too slow for half a poll wraps all the same.
                match leash.epoch() == epoch && leash.runs_at(self.clock.now()) {
                    true => Ok(Vouched::ByRecord { epoch }),
                    false => Err(leash.why_not()),
                }
            }
            Err(trouble) => {
                let refused = match &trouble {
                    Trouble::OtherKey => Some("the token gives other bytes than the AEK".into()),
                    Trouble::Token(trouble) if trouble.verdict == Verdict::BadRecord => Some(trouble.to_string()),
                    Trouble::Token(_) => None,
                };
                let trouble = match (trouble, refused) {
                    (_, Some(found)) if is_witness() => replaced(&found, id, wrapped.aek_version),
                    (Trouble::Token(trouble), None) => trouble,
                    _ => return Err(Corrupt::WrappedAek(format!("account {id}")).into()),
                };
                Err(self.learn_trouble(leash, voice, id, &trouble).await)
            }
        }
    }
}

fn overtaken(target: &Target) -> Error {
    Error::Conflict(format!("KEK {}", target.kek.name))
}

/// The first AEK version of an account under that KEK version which is wanted.
fn wrapped_in(
    record: AccountRecord,
    kek: &KekVersion,
    wanted: impl Fn(&AccountId, &WrappedAek) -> bool,
) -> Option<(AccountId, WrappedAek)> {
    let AccountRecord { account, versions, .. } = record;
    let wrapped = versions.into_iter().find(|wrapped| wrapped.kek == *kek && wanted(&account, wrapped))?;
    Some((account, wrapped))
}
