//! A lease in force: what every seal and open reads, and the slots that live under it.
//!
//! The state machine is in `lease/`; this room publishes its outcome to the data path in three atomics, takes the keys out of
//! their slots when it says so, and admits a freshly unwrapped key only in the epoch in which it was asked for.

use crate::{
    clock::{Clock, Instant},
    config::Settings,
    error::{Error, Refusal, Result},
    lease::{
        Actions, Lease, Phase, Verdict,
        standby::{FirstWord, Voice},
    },
    name::{AccountId, KekVersion, TokenName},
    secret::{Aek, KeySlot, NewKey, TakenOut},
    store::word::StoreWord,
    sync::{AtomicBool, AtomicU64, Mutex, MutexGuard},
    token::{
        TokenError, Verdict as TokenVerdict,
        budget::{Budget, Place, Rate},
        seats::{Route, Seat},
    },
};
use std::{
    num::NonZeroU64,
    sync::{
        Arc, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use self::{denial::DenialNotes, key_memory::KeyMemory, vouch::VouchNotes};

pub(crate) mod denial;
pub(crate) mod key_memory;
pub(crate) mod vouch;

/// An instant that does not come: 584 years after boot.
const NEVER_NS: u64 = u64::MAX;
/// Keys that are taken out before they are wiped, with one look at who uses them.
const WIPED_AT_ONCE: usize = 1024;

/// What was being done when a proof did not count.
const FRESH_PROOF: &str = "fresh proof";

/// The token answers, out of a context that may hide what it says by now.
fn no_fresh_proof(age: Duration) -> TokenError {
    TokenError {
        verdict: TokenVerdict::Unreachable,
        operation: FRESH_PROOF,
        code: None,
        what: format!(
            "the module's context is {} s old and could not be renewed, so proofs from it count no more",
            age.as_secs()
        ),
        remedy: "see in the log why; where calls hang in the module (`keyleash status`), restart the process".into(),
    }
}

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

/// Who is under a lease, in the order in which they came.
#[derive(Debug)]
struct Members<M> {
    all: Vec<Weak<M>>,
    /// So many of the first ones came before the newest proof was asked, …
    elders: usize,
    /// … and so many before the one that was asked last.
    asked: usize,
}

impl<M> Default for Members<M> {
    fn default() -> Self {
        Self { all: Vec::new(), elders: 0, asked: 0 }
    }
}

impl<M> Members<M> {
    fn forget_the_dead(&mut self) {
        let (mut place, mut elders, mut asked) = (0, 0, 0);
        self.all.retain(|member| {
            let lives = member.strong_count() > 0;
            elders += usize::from(lives && place < self.elders);
            asked += usize::from(lives && place < self.asked);
            place += 1;
            lives
        });
        (self.elders, self.asked) = (elders, asked);
    }
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

/// Why a key was not admitted.
pub(crate) enum NotAdmitted {
    /// The lease was denied or ended, or the engine is gone; or there is no memory for the key.
    Refused(Error),
    /// Nobody knows what the token says by now: it is to be asked again first.
    AskAgain,
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

/// What is told about a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseStatus {
    /// The KEK version.
    pub kek: KekVersion,
    /// The token that it is in.
    pub token: TokenName,
    /// The standby, while it is the one that grants because the first token is silent.
    pub on_standby: Option<TokenName>,
    /// Where the lease stands.
    pub phase: Phase,
    /// Time since the newest proof was asked; `None` when there is none.
    pub proved_ago: Option<Duration>,
    /// Time since the context was initialised in which it was asked, where contexts may hide what changed since; else as
    /// `proved_ago`. A lease ends with `grace` after `fresh_proof_every * poll_interval` of this, whatever proofs say.
    pub fresh_ago: Option<Duration>,
    /// Time until nothing may be used any more; zero when nothing may.
    pub ends_in: Duration,
    /// AEKs in memory under it.
    pub filled_slots: usize,
    /// Why the token last did not grant, or was not asked.
    pub trouble: Option<String>,
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

    /// Adds a slot to those that a denial wipes.
    pub(crate) fn enlist(&self, member: Weak<M>) {
        let mut members = self.members();
        // Forgets the dead when they may be half of all: amortised, one look at each per addition.
        if members.all.len() == members.all.capacity() {
            members.forget_the_dead();
            let living = members.all.len();
            members.all.reserve(living.max(8)); // room for as many again, or the next addition would look at all once more
        }
        members.all.push(member);
    }

    fn members(&self) -> MutexGuard<'_, Members<M>> {
        // Nothing panics while it is held.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn living_members(&self) -> Vec<Arc<M>> {
        self.members().all.iter().filter_map(Weak::upgrade).collect()
    }

    /// A proof is about to be asked of the first token.
    pub(crate) fn proof_begins(&self) {
        let mut members = self.members();
        members.asked = members.all.len();
    }

    /// It came: those who were here before it may prove from now on.
    pub(crate) fn proof_came(&self) {
        let mut members = self.members();
        members.elders = members.asked;
    }

    /// A living member to prove with, `turn` members on: another one with each turn.
    pub(crate) fn member(&self, turn: usize) -> Option<Arc<M>> {
        self.members_from(turn, 1).pop()
    }

    /// As many as there are, up to `count`, each of them once.
    pub(crate) fn members_from(&self, turn: usize, count: usize) -> Vec<Arc<M>> {
        self.members_that(turn, count, |_| true)
    }

    /// As [`Leash::members_from`], of those that are `wanted`.
    pub(crate) fn members_that(&self, turn: usize, count: usize, wanted: impl Fn(&M) -> bool) -> Vec<Arc<M>> {
        let members = self.members();
        in_turn(&members.all, turn, count, wanted)
    }

    /// As [`Leash::members_that`], of those that were here before the newest proof was asked. Whoever came since may have been wrapped
    /// by another key that came in the KEK's place since, and would prove that.
    pub(crate) fn elders(&self, turn: usize, count: usize, wanted: impl Fn(&M) -> bool) -> Vec<Arc<M>> {
        let members = self.members();
        in_turn(members.all.get(..members.elders).unwrap_or_default(), turn, count, wanted)
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

    /// Fills the slot of `member`, unless the lease was denied or ended since the token was asked in `epoch`, or has no young proof; then
    /// tells `admitted`, before a denial can take the key away again, whether the key was put in (or was there already).
    ///
    /// A lease that nobody was under is not polled. So whoever brings the first key late, because the store was slow, must not
    /// put it in on what the token said before that.
    pub(crate) fn admit(
        &self,
        epoch: u64,
        member: &M,
        aek: &Aek,
        admitted: impl FnOnce(bool),
    ) -> Result<(), NotAdmitted> {
        let slot = member.key();
        let set_up = || NewKey::set_up(aek, self.memory.policy).map_err(NotAdmitted::Refused);
        // Outside the lock, unless it is taken away in this moment.
        let key = if slot.holds(aek) { None } else { Some(set_up()?) };
        let inner = self.inner();
        let now = self.clock.now();
        let unproven = inner.lease.phase() == Phase::Unproven;
        let admits = epoch == inner.lease.epoch() && (unproven || now < inner.lease.end()) && !inner.closed;
        let filled_in = NonZeroU64::new(epoch).filter(|_| admits);
        let Some(filled_in) = filled_in else {
            // Denied and granted again since: the token says yes to whoever asks now.
            let phase = inner.lease.step(Verdict::Nothing, now).0.phase();
            let granted = !inner.closed && matches!(phase, Phase::Active | Phase::Resuming { .. });
            return Err(if granted { NotAdmitted::AskAgain } else { NotAdmitted::Refused(self.refusal(&inner, now)) });
        };
        if inner.lease.proved().is_none_or(|proved| now >= proved.plus(self.proof_age_max)) {
            return Err(NotAdmitted::AskAgain);
        }
        if slot.epoch() == Some(filled_in) && slot.holds(aek) {
            admitted(false); // a refresh: the key in use stays where it is
            return Ok(());
        }
        let key = key.map_or_else(set_up, Ok)?;
        self.memory.fills_one();
        // A denial waits for this lock, and then takes out what is filled here.
        let before = slot.fill(key, filled_in);
        admitted(true);
        drop(inner);
        self.memory.wipe(&self.kek, before.into_iter().map(|taken| (taken, member.owner())).collect());
        Ok(())
    }

    /// Why a cold slot cannot be filled now.
    #[cold]
    pub(crate) fn why_not(&self) -> Error {
        self.refusal(&self.inner(), self.clock.now())
    }

    /// Why a slot that is not usable at `now` is not, unless it is merely cold. Changes and wipes nothing: a seal or open
    /// that is refused returns at once.
    #[cold]
    pub(crate) fn why_refused(&self, now: Instant) -> Option<Error> {
        let inner = self.inner();
        if inner.closed {
            return Some(Error::Closed);
        }
        let phase = inner.lease.step(Verdict::Nothing, now).0.phase();
        let cold = matches!(phase, Phase::Unproven | Phase::Active | Phase::Resuming { .. });
        (!cold).then(|| self.refusal(&inner, now))
    }

    fn refusal(&self, inner: &Inner, now: Instant) -> Error {
        let trouble = inner.trouble.as_ref();
        let refusal = |since: Option<Instant>, reason: &str, remedy: &str| {
            Box::new(Refusal {
                subject: format!("KEK {}", self.kek),
                kek: Some(self.kek.clone()),
                code: trouble.and_then(|trouble| trouble.code.clone()),
                lasting: since.map(|since| now.since(since)),
                reason: trouble.map_or_else(|| reason.to_owned(), |trouble| format!("{reason} ({trouble})")),
                remedy: trouble.map_or(remedy, |trouble| &trouble.remedy).to_owned(),
            })
        };
        match inner.lease.step(Verdict::Nothing, now).0.phase() {
            Phase::Denied { since } => Error::Denied(refusal(
                Some(since),
                "the token refuses the use of this KEK",
                "the owner of the key must enable it again; service resumes by itself then",
            )),
            Phase::Lapsed { since } => Error::Lapsed(refusal(
                Some(since),
                match trouble.is_some_and(|trouble| trouble.operation == FRESH_PROOF) {
                    true => "no fresh proof for the whole grace",
                    false => "the token has been silent for the whole grace",
                },
                "make the token reachable again; service resumes by itself then",
            )),
            Phase::Grace { since, .. } => Error::Unreachable(refusal(
                Some(since),
                "the token does not answer and this account's key is not in memory",
                "make the token reachable, or try again later",
            )),
            Phase::Unproven | Phase::Active | Phase::Resuming { .. } => Error::Unreachable(refusal(
                None,
                "this account's key is not in memory and the token has not given it yet",
                "try again",
            )),
        }
    }

    pub(crate) fn status(&self) -> LeaseStatus {
        let filled_slots = self.living_members().iter().filter(|member| member.key().epoch().is_some()).count();
        let inner = self.inner();
        let now = self.clock.now();
        // As of now, but not stepped: that is for those who tell of what changed.
        let lease = inner.lease.step(Verdict::Nothing, now).0;
        LeaseStatus {
            kek: self.kek.clone(),
            token: self.route.first.name.clone(),
            on_standby: self
                .route
                .standby
                .as_ref()
                .filter(|_| inner.first.is_on_standby())
                .map(|seat| seat.name.clone()),
            phase: lease.phase(),
            proved_ago: lease.proved().map(|proved| now.since(proved)),
            fresh_ago: lease.fresh().map(|context| now.since(context)),
            ends_in: lease.end().since(now),
            filled_slots,
            trouble: inner.trouble.as_ref().map(ToString::to_string).or_else(|| inner.unprovable.clone()),
        }
    }
}

fn in_turn<M: Member>(members: &[Weak<M>], turn: usize, count: usize, wanted: impl Fn(&M) -> bool) -> Vec<Arc<M>> {
    let len = members.len();
    let is_one = |member: &Arc<M>| member.proves() && wanted(member);
    let at = |step| members.get(turn.wrapping_add(step) % len)?.upgrade().filter(is_one);
    (0..len).filter_map(at).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::ManualClock, lease::Terms, name::KekName};

    #[derive(Debug, Default)]
    struct Slot(KeySlot);
    impl Member for Slot {
        fn key(&self) -> &KeySlot {
            &self.0
        }
        fn lost(&self) {}
    }

    fn leash() -> (Leash<Slot>, ManualClock, Arc<Slot>) {
        let manual = ManualClock::new(Instant::from_nanos(1));
        let kek = KekVersion::new(KekName::new("k").unwrap(), 1);
        let clock = Clock::Manual(manual.clone());
        let terms = Terms { grace: Duration::from_secs(10), fresh_span: Duration::from_secs(100) };
        let settings =
            Settings { poll_interval: Duration::from_secs(4), aek_ttl: Duration::from_secs(5), ..Settings::default() };
        let memory = KeyMemory::of_test(&clock);
        let leash =
            Leash::new(kek, Route::of_test(&clock), Lease::new(terms), clock, &settings, memory, Arc::default());
        let slot = Arc::<Slot>::default();
        leash.enlist(Arc::downgrade(&slot));
        (leash, manual, slot)
    }

    fn prove(leash: &Leash<Slot>) -> u64 {
        let (epoch, _) = leash.asking();
        let now = leash.clock.now();
        leash.step(Voice::First, Verdict::Granted { asked: now, context: now, epoch }, None);
        epoch
    }

    #[test]
    fn members_to_prove_with_are_each_there_once_whatever_dead_ones_lie_between() {
        let (leash, _, first) = leash();
        let mut living = vec![first];
        for n in 0..30 {
            let slot = Arc::<Slot>::default();
            leash.enlist(Arc::downgrade(&slot));
            living.extend((n % 10 == 9).then_some(slot));
        }
        for turn in 0..64 {
            let members = leash.members_from(turn, 3);
            assert_eq!(members.len(), 3);
            assert!((0..3).all(|n| !Arc::ptr_eq(&members[n], &members[(n + 1) % 3])), "turn {turn}");
            assert_eq!(leash.members_from(turn, 100).len(), living.len());
        }
    }

    #[test]
    fn who_came_since_the_newest_proof_was_asked_is_no_elder_whoever_died_meanwhile() {
        let (leash, _, first) = leash();
        let come = || {
            let slot = Arc::<Slot>::default();
            leash.enlist(Arc::downgrade(&slot));
            slot
        };
        let elders = || leash.elders(0, usize::MAX, |_| true).len();
        assert_eq!(elders(), 0);
        leash.proof_begins();
        let second = come();
        leash.proof_came();
        assert_eq!(elders(), 1);
        leash.proof_begins();
        (0..100).for_each(|_| drop(come()));
        let third = come();
        leash.proof_came();
        assert_eq!(elders(), 2);
        drop(first);
        (0..1000).for_each(|_| drop(come()));
        assert_eq!(elders(), 1);
        leash.proof_begins();
        leash.proof_came();
        assert_eq!(elders(), 2);
        drop((second, third));
    }

    #[test]
    fn a_denial_wipes_and_an_unwrap_that_began_before_it_does_not_readmit() {
        let (leash, _, slot) = leash();
        let aek = Aek::generate().unwrap();
        let epoch = prove(&leash);
        assert!(leash.admit(epoch, &*slot, &aek, |_| ()).is_ok());
        assert!(slot.0.holds(&aek));
        leash.step(Voice::First, Verdict::Denied, None);
        assert!(slot.0.epoch().is_none() && !leash.runs_at(leash.clock.now()));
        let denied = leash.admit(epoch, &*slot, &aek, |_| ());
        assert!(matches!(denied, Err(NotAdmitted::Refused(Error::Denied(_)))));
        // Not even after the token granted again: it was asked in an earlier epoch.
        let epoch_now = prove(&leash);
        assert!(matches!(leash.admit(epoch, &*slot, &aek, |_| ()), Err(NotAdmitted::AskAgain)));
        assert!(slot.0.epoch().is_none());
        assert!(leash.admit(epoch_now, &*slot, &aek, |_| ()).is_ok());
    }

    #[test]
    fn no_key_is_admitted_on_an_old_proof() {
        let (leash, manual, slot) = leash();
        let aek = Aek::generate().unwrap();
        let epoch = prove(&leash);
        manual.advance(Duration::from_secs(4));
        let late = leash.admit(epoch, &*slot, &aek, |_| panic!("admitted"));
        assert!(matches!(late, Err(NotAdmitted::AskAgain)) && leash.runs_at(manual.now()));
        assert_eq!(prove(&leash), epoch);
        manual.advance(Duration::from_secs(4) - Duration::from_nanos(1));
        assert!(leash.admit(epoch, &*slot, &aek, |_| ()).is_ok());
    }

    #[test]
    fn a_grant_that_renewed_nothing_ends_no_denial_by_the_first_token() {
        let (leash, manual, _slot) = leash();
        let epoch = prove(&leash);
        let asked = leash.clock.now();
        leash.step(Voice::First, Verdict::Denied, None);
        let late = [
            Verdict::Granted { asked, context: asked, epoch },
            // Of the epoch now, and so old that its lease would be over.
            Verdict::Granted { asked, context: asked, epoch: leash.epoch() },
        ];
        manual.advance(Duration::from_secs(10));
        for grant in late {
            assert!(!leash.step(Voice::First, grant, None).counts);
            leash.note_first(FirstWord::is_silent);
            leash.note_first(|first, now| first.looked(now.plus(Duration::from_secs(1))));
            assert_eq!(leash.first().may_go_over(manual.now()), Some(false), "{grant:?} let the standby speak");
        }
        let asked = manual.now();
        assert!(
            leash.step(Voice::First, Verdict::Granted { asked, context: asked, epoch: leash.epoch() }, None).counts
        );
        assert!(!leash.first().has_denied());
        leash.note_first(FirstWord::is_silent);
        leash.note_first(|first, now| first.looked(now.plus(Duration::from_secs(1))));
        assert_eq!(leash.first().may_go_over(manual.now()), Some(true), "but what renewed does");
    }

    #[test]
    fn no_key_is_admitted_when_the_engine_is_gone_or_the_lease_is_over() {
        let (leash, manual, slot) = leash();
        let aek = Aek::generate().unwrap();
        let epoch = prove(&leash);
        manual.advance(Duration::from_secs(10));
        let at_its_end = leash.admit(epoch, &*slot, &aek, |_| panic!("admitted"));
        assert!(matches!(at_its_end, Err(NotAdmitted::Refused(Error::Lapsed(_)))));
        let epoch = prove(&leash);
        assert!(leash.admit(epoch, &*slot, &aek, |_| ()).is_ok());
        leash.close();
        assert!(slot.0.epoch().is_none());
        let gone = leash.admit(epoch, &*slot, &aek, |_| panic!("admitted"));
        assert!(matches!(gone, Err(NotAdmitted::Refused(_))) && slot.0.epoch().is_none(), "nobody asks again");
    }

    #[test]
    fn a_refresh_leaves_the_key_where_it_is_and_another_aek_takes_its_place() {
        let (leash, _, slot) = leash();
        let (aek, other) = (Aek::generate().unwrap(), Aek::generate().unwrap());
        let epoch = prove(&leash);
        let put_in = |aek| {
            let mut put_in = None;
            assert!(leash.admit(epoch, &*slot, aek, |was| put_in = Some(was)).is_ok());
            put_in
        };
        assert_eq!([&aek, &aek, &other, &aek].map(put_in), [Some(true), Some(false), Some(true), Some(true)]);
        assert!(slot.0.holds(&aek));
    }

    #[test]
    fn a_token_that_refuses_or_is_silent_is_asked_once_per_pause_whoever_comes() {
        let (leash, manual, _slot) = leash();
        let pause = Duration::from_secs(2);
        let ask = |times| (0..times).map(|_| leash.may_ask(manual.now(), pause)).collect::<Vec<_>>();
        assert_eq!(ask(3), [true; 3], "nothing is known of it yet");
        prove(&leash);
        assert_eq!(ask(3), [true; 3], "it answers");
        for verdict in [Verdict::Unreachable, Verdict::Denied] {
            leash.step(Voice::First, verdict, None);
            assert_eq!(ask(3), [true, false, false], "{verdict:?}");
            manual.advance(pause - Duration::from_nanos(1));
            assert_eq!(ask(1), [false], "{verdict:?}");
            manual.advance(Duration::from_nanos(1));
            assert_eq!(ask(2), [true, false], "{verdict:?}");
            manual.advance(pause);
            leash.asked(manual.now());
            assert_eq!(ask(1), [false], "the watch asks it: {verdict:?}");
            manual.advance(pause);
        }
        assert!(leash.refuses() && leash.is_denied());
        prove(&leash);
        assert!(!leash.refuses() && !leash.is_denied() && leash.may_ask(manual.now(), pause));
        manual.advance(Duration::from_secs(10));
        leash.asking();
        assert!(leash.refuses() && !leash.is_denied(), "lapsed");
    }

    #[test]
    fn a_silence_is_known_from_its_beginning_until_the_token_answers() {
        let (leash, manual, _slot) = leash();
        prove(&leash);
        let came = manual.now();
        assert!(!leash.was_silent(came));
        manual.advance(Duration::from_secs(1));
        leash.step(Voice::First, Verdict::Unreachable, None);
        assert!(leash.was_silent(came) && !leash.was_silent(manual.now()), "whoever comes after it finds out");
        prove(&leash);
        assert!(!leash.was_silent(came));
        leash.step(Voice::First, Verdict::Unreachable, None);
        leash.step(Voice::First, Verdict::Denied, None);
        assert!(!leash.was_silent(came), "a denial is an answer");
    }

    #[test]
    fn the_reason_of_a_denial_stands_until_a_proof_whatever_comes_late() {
        let (leash, manual, _slot) = leash();
        let trouble = |verdict, what: &str| TokenError::new(verdict, "unwrap", what, "see");
        let (no, nothing) = (trouble(TokenVerdict::Denied, "no"), trouble(TokenVerdict::Unreachable, "nothing"));
        let epoch = prove(&leash);
        let asked = manual.now();
        assert!(!leash.step(Voice::First, Verdict::Unreachable, Some(&nothing)).counts);
        assert_eq!(leash.trouble(), Some(TokenVerdict::Unreachable));
        assert!(leash.step(Voice::First, Verdict::Denied, Some(&no)).counts);
        leash.step(Voice::First, Verdict::Unreachable, Some(&nothing));
        leash.step(Voice::First, Verdict::Granted { asked, context: asked, epoch }, None);
        assert!(!leash.step(Voice::First, Verdict::Nothing, None).counts);
        assert_eq!(leash.trouble(), Some(TokenVerdict::Denied));
        prove(&leash);
        assert_eq!(leash.trouble(), None);
        leash.remember(no);
        assert_eq!(leash.trouble(), Some(TokenVerdict::Denied));
    }

    #[test]
    fn that_there_is_no_record_to_prove_with_is_news_once() {
        let (leash, ..) = leash();
        let why = || Some("none".to_owned());
        assert_eq!(
            [None, why(), why(), None, None].map(|why| leash.note_unprovable(why)),
            [false, true, false, true, false]
        );
    }

    #[test]
    fn a_renewal_that_one_token_owes_is_remembered_until_it_is_done_and_is_not_the_other_ones() {
        let (leash, ..) = leash();
        let owed = || [Voice::First, Voice::Standby].map(|voice| leash.renewal_owed(voice).load(Ordering::SeqCst));
        for (voice, expected) in [(Voice::First, [true, false]), (Voice::Standby, [false, true])] {
            leash.renewal_owed(voice).store(true, Ordering::SeqCst);
            assert_eq!(owed(), expected);
            leash.renewal_owed(voice).store(false, Ordering::SeqCst);
        }
        assert_eq!(owed(), [false; 2]);
    }

    #[test]
    fn members_that_are_not_wanted_prove_nothing_and_dead_ones_are_forgotten() {
        let (leash, _, slot) = leash();
        assert_eq!(leash.members_that(0, 9, |_| true).len(), 1);
        assert!(leash.members_that(0, 9, |_| false).is_empty());
        (0..10_000).for_each(|_| leash.enlist(Arc::downgrade(&Arc::<Slot>::default())));
        assert!(leash.members().all.len() < 100, "the dead are kept");
        assert!(Arc::ptr_eq(&leash.member(7).unwrap(), &slot));
    }

    #[test]
    fn a_lapse_for_want_of_fresh_proofs_is_told_from_a_silent_token() {
        for fresh in [true, false] {
            let (leash, manual, _slot) = leash();
            prove(&leash);
            if !fresh {
                // Ordinary proofs, out of the context of the first one, until they count no more.
                let (context, epoch) = (manual.now(), leash.epoch());
                for _ in 0..109 {
                    manual.advance(Duration::from_secs(1));
                    leash.step(Voice::First, Verdict::Granted { asked: manual.now(), context, epoch }, None);
                }
            }
            assert!(leash.why_refused(manual.now()).is_none());
            manual.advance(Duration::from_secs(10));
            let text = leash.why_refused(manual.now()).unwrap().to_string();
            let (told, other) = ("no fresh proof", "token has been silent");
            let (told, other) = if fresh { (other, told) } else { (told, other) };
            assert!(text.contains(told) && !text.contains(other), "{text}");
        }
    }

    #[test]
    fn a_lease_ends_by_the_clock_alone() {
        let (leash, manual, slot) = leash();
        let epoch = prove(&leash);
        assert!(leash.admit(epoch, &*slot, &Aek::generate().unwrap(), |_| ()).is_ok());
        manual.advance(Duration::from_secs(10));
        assert!(!leash.runs_at(manual.now()), "nobody stepped the lease, and it is over");
        assert!(matches!(leash.why_not(), Error::Lapsed(_)));
        leash.asking();
        assert!(slot.0.epoch().is_none(), "and whoever steps it wipes");
    }

    #[test]
    fn refusals_say_since_when_why_and_what_to_do() {
        let (leash, manual, _slot) = leash();
        prove(&leash);
        let trouble = TokenError {
            verdict: crate::token::Verdict::Denied,
            operation: "unwrap",
            what: "CKR_KEY_FUNCTION_NOT_PERMITTED".into(),
            remedy: "enable it".into(),
            code: Some("CKR_KEY_FUNCTION_NOT_PERMITTED".into()),
        };
        leash.step(Voice::First, Verdict::Denied, Some(&trouble));
        manual.advance(Duration::from_secs(7));
        let text = leash.why_not().to_string();
        let Error::Denied(refusal) = leash.why_not() else { panic!("{text}") };
        assert_eq!(refusal.kek.unwrap().to_string(), "k/1");
        assert_eq!(refusal.code.as_deref(), Some("CKR_KEY_FUNCTION_NOT_PERMITTED"));
        for part in ["denied", "KEK k/1", "for 7 s", "CKR_KEY_FUNCTION_NOT_PERMITTED", "enable it"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
