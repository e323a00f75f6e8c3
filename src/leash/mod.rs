//! A lease in force: what every seal and open reads, and the slots that live under it.
//!
//! The state machine is in `lease/`; this room publishes its outcome to the data path in three atomics, takes the keys out of
//! their slots when it says so, and admits a freshly unwrapped key only in the epoch in which it was asked for.

use crate::{
    clock::{Clock, Instant},
    config::Settings,
    lease::{
        Actions, Lease, Phase, Verdict,
        standby::{FirstWord, Voice},
    },
    name::{AccountId, KekVersion},
    secret::{KeySlot, TakenOut},
    store::word::StoreWord,
    sync::{AtomicBool, AtomicU64, Mutex, MutexGuard},
    token::{
        TokenError, Verdict as TokenVerdict,
        budget::{Budget, Place, Rate},
        seats::{Route, Seat},
    },
};
use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use self::{denial::DenialNotes, key_memory::KeyMemory, members::Members, told::no_fresh_proof, vouch::VouchNotes};

mod admit;
pub(crate) mod denial;
pub(crate) mod key_memory;
mod members;
mod told;
pub(crate) mod vouch;

pub(crate) use self::admit::NotAdmitted;
pub use self::told::LeaseStatus;

/// An instant that does not come: 584 years after boot.
const NEVER_NS: u64 = u64::MAX;
/// Keys that are taken out before they are wiped, with one look at who uses them.
const WIPED_AT_ONCE: usize = 1024;

/// Something that holds a key under a lease.
pub(crate) trait Member: Send + Sync {
    /// Its key slot.
    fn key(&self) -> &KeySlot;
    /// Called when a denial or lapse took a key away that was in use.
    fn lost(&self);
    /// Whose key it is.
    fn owner(&self) -> Option<&AccountId> {
        None
    }
    /// True while a key that a denial or lapse took away from whoever used it is not back.
    fn wanted_back(&self) -> bool {
        false
    }
    /// True while a proof of the KEK version may be had with its AEK.
    fn proves(&self) -> bool {
        true
    }
}

/// The lease of one KEK version, shared by all accounts under it.
#[derive(Debug)]
pub(crate) struct Leash<M> {
    kek: KekVersion,
    /// Whom to ask.
    pub(crate) route: Route,
    clock: Clock,
    aek_ttl: Duration,
    /// No key is admitted on a proof that is as old as this: by then the watch would have asked again.
    proof_age_max: Duration,
    memory: Arc<KeyMemory>,
    /// For how long beyond its TTL an AEK may be used at most, whatever the token does: one silence, which no lease survives
    /// beyond grace, and one TTL in which to refresh what passed its TTL in it. A token that flaps puts off the instant from
    /// which TTLs bind again and again; this is not put off, so no AEK goes without an own unwrap for ever.
    pub(crate) waiver_max: Duration,
    /// What the data path reads. Written only while `inner` is held.
    end_ns: AtomicU64,
    epoch: AtomicU64,
    /// From when on the TTL of an AEK binds; [`NEVER_NS`] while the token does not answer.
    ttl_binds_from_ns: AtomicU64,
    /// Puts TTLs off as well, while the store is silent.
    store_word: Arc<StoreWord>,
    inner: Mutex<Inner>,
    members: Mutex<Members<M>>,
    /// Proofs of this KEK version so far, from an arbitrary number on.
    pub(crate) proofs: AtomicUsize,
    /// Members whose account went over to another KEK version; they hold their lease until they are dropped.
    pub(crate) retired: AtomicUsize,
    /// Some account under it was found to be under another KEK version by now.
    pub(crate) moved: AtomicBool,
    /// The record that proofs are made with while the store fails is gone: another one is wanted before it does.
    pub(crate) sample_lost: AtomicBool,
    /// The store told of a denial that is not known here, or of the end of the one that is: the token is to be asked.
    pub(crate) heard: AtomicBool,
    /// The first token's context, and the standby's, could not be renewed for a fresh proof that was due.
    renewal_owed: [AtomicBool; 2],
    /// The standby was looked at, while it was not needed.
    pub(crate) standby_looked_at: AtomicBool,
    /// The standby was seen to have the KEK.
    pub(crate) standby_has_it: AtomicBool,
    /// It was told that the standby is none.
    pub(crate) standby_unfit: AtomicBool,
    /// The standby unwrapped an AEK that verified: it has the same key.
    pub(crate) standby_proved: AtomicBool,
    /// When the token was last asked on behalf of a refused caller.
    asked_ns: AtomicU64,
    /// What is known of its denial's record in the store.
    pub(crate) denial: DenialNotes,
    /// What is known of the records that prove it.
    pub(crate) vouch: VouchNotes,
    /// The record of its KEK said that the version is retired, when the lease was made: its key may be deleted in the token.
    pub(crate) of_retired_kek: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    lease: Lease,
    first: FirstWord,
    /// Why the token last did not grant, in words; shown with refusals.
    trouble: Option<TokenError>,
    /// When it was last silent.
    silent: Option<Instant>,
    /// Why it cannot be proved although the token may answer: no record is to be had.
    unprovable: Option<String>,
    /// The engine is gone: nothing is admitted any more.
    closed: bool,
    /// From when on the TTL binds while the token answers: one TTL after a silence, in which those that passed in the
    /// silence are refreshed at the rate, so that an outage leaves nobody cold (promise 3).
    ttl_binds_from: Instant,
}

/// What came of a step. It is in force: no seal and no open begins any more that it does not allow.
pub(crate) struct Stepped<'a, M: Member> {
    pub(crate) actions: Actions,
    /// It was a denial that was the lease's business, or a grant that renewed it.
    pub(crate) counts: bool,
    /// The standby took over (true) or the first token is back (false).
    pub(crate) took_over: Option<bool>,
    /// Dropped when all was told that is to be told first.
    pub(crate) then: ThenWipe<'a, M>,
}

/// Wipes the keys of ended epochs as it is dropped, if the step said so.
pub(crate) struct ThenWipe<'a, M: Member>(Option<&'a Leash<M>>);

impl<M: Member> Drop for ThenWipe<'_, M> {
    fn drop(&mut self) {
        self.0.iter().for_each(|leash| leash.wipe_ended());
    }
}

impl<M: Member> Leash<M> {
    pub(crate) fn new(
        kek: KekVersion,
        route: Route,
        lease: Lease,
        clock: Clock,
        settings: &Settings,
        memory: Arc<KeyMemory>,
        store_word: Arc<StoreWord>,
    ) -> Self {
        let Settings { aek_ttl, poll_interval, .. } = *settings;
        let leash = Self {
            kek,
            route,
            clock,
            aek_ttl,
            proof_age_max: poll_interval,
            memory,
            waiver_max: lease.grace().saturating_add(aek_ttl),
            end_ns: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            ttl_binds_from_ns: AtomicU64::new(0),
            store_word,
            inner: Mutex::new(Inner {
                lease,
                first: FirstWord::new(matches!(lease.phase(), Phase::Denied { .. })),
                trouble: None,
                silent: None,
                unprovable: None,
                closed: false,
                ttl_binds_from: Instant::default(),
            }),
            members: Mutex::default(),
            proofs: AtomicUsize::new(0),
            retired: AtomicUsize::new(0),
            moved: AtomicBool::new(false),
            sample_lost: AtomicBool::new(false),
            heard: AtomicBool::new(false),
            renewal_owed: [AtomicBool::new(false), AtomicBool::new(false)],
            standby_looked_at: AtomicBool::new(false),
            standby_has_it: AtomicBool::new(false),
            standby_unfit: AtomicBool::new(false),
            standby_proved: AtomicBool::new(false),
            asked_ns: AtomicU64::new(0),
            denial: DenialNotes::default(),
            vouch: VouchNotes::default(),
            of_retired_kek: AtomicBool::new(false),
        };
        leash.publish(&leash.inner());
        leash
    }

    pub(crate) fn kek(&self) -> &KekVersion {
        &self.kek
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // The state machine does not panic, and it is replaced whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, inner: &Inner) {
        let lease = &inner.lease;
        self.epoch.store(lease.epoch(), Ordering::SeqCst);
        self.end_ns.store(lease.end().as_nanos(), Ordering::SeqCst);
        let ttl_binds_from = if lease.answering() { inner.ttl_binds_from.as_nanos() } else { NEVER_NS };
        self.ttl_binds_from_ns.store(ttl_binds_from, Ordering::SeqCst);
    }

    /// The epoch in which a slot must have been filled to be used now.
    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// True while the lease runs at `now`. THE check of the data path: it needs no task, timer or eviction to have run.
    #[inline]
    pub(crate) fn runs_at(&self, now: Instant) -> bool {
        now.as_nanos() < self.end_ns.load(Ordering::Acquire)
    }

    /// True when an AEK past its TTL may not be used at `now`: the token answers and so does the store, so it can be unwrapped
    /// anew; or the token does, and the store has been silent for too long.
    #[inline]
    pub(crate) fn ttl_binds_at(&self, now: Instant) -> bool {
        let token = self.ttl_binds_from_ns.load(Ordering::Acquire);
        self.store_word.lets_bind(now, (token != NEVER_NS).then(|| Instant::from_nanos(token)))
    }

    /// True while the token answers.
    pub(crate) fn answers(&self) -> bool {
        self.ttl_binds_from_ns.load(Ordering::Acquire) != NEVER_NS
    }

    /// The epoch in which to ask the token, after the state machine caught up with the time.
    pub(crate) fn asking(&self) -> (u64, Stepped<'_, M>) {
        let stepped = self.step(Voice::First, Verdict::Nothing, None);
        (self.epoch(), stepped)
    }

    /// What is known of the first token, as of now.
    pub(crate) fn first(&self) -> FirstWord {
        self.inner().first
    }

    /// Takes in what was learned of the first token beside the lease's verdicts.
    pub(crate) fn note_first(&self, note: impl FnOnce(&mut FirstWord, Instant)) {
        let now = self.clock.now();
        note(&mut self.inner().first, now);
    }

    /// The standby, if the first token is known to be silent and the standby may be asked instead of it.
    pub(crate) fn standby_to_ask(&self) -> Option<&Arc<Seat>> {
        self.route.standby.as_ref().filter(|_| self.first().whom_to_ask(self.clock.now()) == Voice::Standby)
    }

    /// Whether the next proof by this token must come from a context that is initialised for it.
    pub(crate) fn renewal_owed(&self, voice: Voice) -> &AtomicBool {
        let [first, standby] = &self.renewal_owed;
        match voice {
            Voice::First => first,
            Voice::Standby => standby,
        }
    }

    /// The budget of whoever is to be asked for an AEK now.
    fn budget(&self) -> &Budget {
        self.standby_to_ask().map_or(&self.route.first.budget, |standby| &standby.guests)
    }

    /// A place for a call that somebody waits for.
    pub(crate) async fn on_demand(&self) -> Place {
        self.budget().on_demand(Some(&self.kek)).await
    }

    /// A place for one that nobody waits for.
    pub(crate) async fn background(&self) -> Place {
        self.budget().background(Some(&self.kek)).await
    }

    /// The same, at a rate of its own.
    pub(crate) async fn background_at(&self, rate: &Rate) -> Place {
        self.budget().background_at(rate, Some(&self.kek)).await
    }

    /// True when nothing was granted since the token denied, or since the lease lapsed.
    pub(crate) fn refuses(&self) -> bool {
        matches!(self.lease().phase(), Phase::Denied { .. } | Phase::Lapsed { .. })
    }

    pub(crate) fn is_denied(&self) -> bool {
        matches!(self.lease().phase(), Phase::Denied { .. })
    }

    /// True when the token may be asked for a caller who waits. While it refuses or is silent: once per `pause`, whoever comes.
    pub(crate) fn may_ask(&self, now: Instant, pause: Duration) -> bool {
        if !self.refuses() && self.inner().silent.is_none() {
            return true;
        }
        let last = self.asked_ns.load(Ordering::SeqCst);
        let due = last == 0 || now.since(Instant::from_nanos(last)) >= pause;
        due && self.asked_ns.compare_exchange(last, now.as_nanos().max(1), Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Notes that the token is being asked now.
    pub(crate) fn asked(&self, now: Instant) {
        self.asked_ns.store(now.as_nanos().max(1), Ordering::SeqCst);
    }

    /// Notes why there is no record to prove with, or that there is. True when that is news.
    pub(crate) fn note_unprovable(&self, why: Option<String>) -> bool {
        let mut inner = self.inner();
        let is_news = inner.unprovable.is_some() != why.is_some();
        inner.unprovable = why;
        is_news
    }

    /// The lease as of the last step.
    pub(crate) fn lease(&self) -> Lease {
        self.inner().lease
    }

    /// What the token last said, other than a grant.
    pub(crate) fn trouble(&self) -> Option<TokenVerdict> {
        self.inner().trouble.as_ref().map(|trouble| trouble.verdict)
    }

    /// It was not proved as it was last to be.
    pub(crate) fn has_trouble(&self) -> bool {
        let inner = self.inner();
        inner.trouble.is_some() || inner.unprovable.is_some()
    }

    /// Notes why it was denied before this process.
    pub(crate) fn remember(&self, trouble: TokenError) {
        self.inner().trouble = Some(trouble);
    }

    /// True when the token was found silent after `since`.
    pub(crate) fn was_silent(&self, since: Instant) -> bool {
        self.inner().silent.is_some_and(|silent| silent > since)
    }

    /// Feeds what was learned. When the state machine says so, keys are wiped as the outcome is dropped.
    pub(crate) fn step(&self, voice: Voice, verdict: Verdict, trouble: Option<&TokenError>) -> Stepped<'_, M> {
        let mut stepped = {
            let mut inner = self.inner();
            let now = self.clock.now();
            let verdict = if inner.first.lets_count(voice, verdict) { verdict } else { Verdict::Nothing };
            let epoch_before = inner.lease.epoch();
            let (lease, actions) = inner.lease.step(verdict, now);
            let in_epoch = matches!(verdict, Verdict::Granted { epoch, .. } if epoch == epoch_before);
            let renewed = in_epoch && lease.answering();
            // In the same step as the lease: an epoch that is asked in after a denial goes with the word that denied.
            let took_over = inner.first.hear(voice, verdict, renewed);
            let was_silent = matches!(inner.lease.phase(), Phase::Grace { .. });
            inner.lease = lease;
            match verdict {
                Verdict::Denied => (inner.trouble, inner.silent) = (trouble.cloned(), None),
                Verdict::Unreachable => {
                    inner.silent = Some(now);
                    // While a denial is in force its own reason is what counts.
                    if !matches!(lease.phase(), Phase::Denied { .. }) {
                        inner.trouble = trouble.cloned();
                    }
                }
                Verdict::Granted { asked, context, .. } if lease.answering() => {
                    inner.silent = None;
                    inner.trouble = lease.is_overdue(asked, context).then(|| no_fresh_proof(now.since(context)));
                }
                _ => {}
            }
            if was_silent && lease.answering() {
                inner.ttl_binds_from = now.plus(self.aek_ttl);
            }
            self.publish(&inner);
            Stepped { actions, counts: renewed || verdict == Verdict::Denied, took_over, then: ThenWipe(None) }
        };
        stepped.then.0 = stepped.actions.wipe.then_some(self);
        stepped
    }

    /// Takes every key of an ended epoch out of its slot, and wipes it.
    fn wipe_ended(&self) {
        self.wipe_by(&self.living_members(), |member| {
            // A key of the current epoch was admitted meanwhile, after a proof: it stays.
            let taken = member.key().take_out_unless(self.epoch())?;
            member.lost();
            Some(taken)
        });
    }

    fn wipe_by<T: std::ops::Deref<Target = M>>(&self, members: &[T], take: impl Fn(&M) -> Option<TakenOut>) {
        for some in members.chunks(WIPED_AT_ONCE) {
            let taken = some.iter().filter_map(|member| Some((take(member)?, member.owner()))).collect();
            self.memory.wipe(&self.kek, taken);
        }
    }

    /// Takes the keys out of these slots, which are cold then, and wipes each: at once, or, while an operation uses it, as soon as
    /// that one ends. Waits for nobody.
    pub(crate) fn wipe<T: std::ops::Deref<Target = M>>(&self, members: &[T]) {
        self.wipe_by(members, |member| member.key().take_out());
    }

    /// Wipes every slot and admits nothing any more: the engine is gone.
    pub(crate) fn close(&self) {
        self.inner().closed = true;
        self.wipe(&self.living_members());
    }
}

#[cfg(test)]
mod tests;
