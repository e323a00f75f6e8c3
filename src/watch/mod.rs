//! The watch: asks the token for a proof of every KEK version in use, once per poll interval, and feeds the answers to
//! the leases.
//!
//! It makes revocation quick; it is not what makes it certain. Were this whole file dead, every lease would end by the
//! clock on the data path. So a watch that dies or stalls is started again and reported, and cannot extend anything.

use self::supervise::{STALL_MIN, supervised};
use crate::{
    clock::Instant,
    error::{Corrupt, Error},
    home::beat::Beat,
    keyring::{Keyring, Sample, Trouble, Unwrapped, both_silent, is_silence, lease_verdict, no_answer, replaced},
    lease::{Phase, Verdict as LeaseVerdict, standby::Voice},
    leash::vouch::Vouched,
    name::{AccountId, KekVersion},
    slots::{
        account_keys::ShutGuard,
        slot::{AekSlot, Leash},
    },
    store::record::WrappedAek,
    telemetry::Event,
    token::{TokenError, Verdict, seats::Seat},
};
use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::task::{Id, JoinSet};

mod feed;
mod keks;
mod supervise;
mod tend;

pub(crate) use self::supervise::supervise;

/// The watch looks at its leases at least this often, so that a lease that ends is wiped within this time.
const TICK: Duration = Duration::from_secs(1);
/// The watch does not look more often than this, however many leases there are.
const GRAIN: Duration = Duration::from_millis(5);
/// A proof is asked this much of the interval early at most, in thousandths, so that engines do not ask in step. Never
/// late: promise 1 counts on the interval.
const JITTER_PERMILLE: u64 = 200;
/// How many AEKs a proof tries while each turns out to be damaged.
const SAMPLES_MAX: usize = 3;
/// A KEK version that was refused or silent for this long is asked less and less often …
const BACK_OFF_AFTER: Duration = Duration::from_secs(10 * 60);
/// … down to once in this time.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// However often the store tells of denials, a KEK version is asked no more often for it than this, and each time that it made no
/// difference half as often, down to the usual.
const HEARD_PAUSE: Duration = Duration::from_secs(1);

/// Starts the watch, the tending of slots, the hearing of what others change and the look after keys that come and go in each token. They
/// end with the engine.
pub(crate) fn start(keyring: &Arc<Keyring>) {
    let of = keyring.clone();
    keyring.home.proofs.spawn(async move {
        let patience = STALL_MIN.max(of.settings.store_timeout);
        let sleep = |time| of.clock.sleep_until(of.clock.now().plus(time));
        let tell = || {
            let why = "calls stand still: a token, or who writes the log, blocks the thread".into();
            of.teller.tell(Event::WatchRestarted { why });
        };
        of.home.look_after_calls(patience, sleep, tell).await;
    });
    let watched = supervised(keyring.clone(), "watch", |keyring, beat, restarted| {
        keyring.home.proofs.spawn(watch(keyring.clone(), beat, restarted)).abort_handle()
    });
    keyring.home.upkeep.spawn(watched); // not where the watch is: who is stuck cannot say so
    supervise(keyring, "tend", |keyring, beat, _| {
        keyring.home.upkeep.spawn(tend::tend(keyring.clone(), beat)).abort_handle()
    });
    supervise(keyring, "feed", |keyring, beat, _| {
        keyring.home.upkeep.spawn(feed::hear(keyring.clone(), beat)).abort_handle()
    });
    for seat in keyring.tokens.seats() {
        let seat = seat.clone();
        supervise(keyring, "keks", move |keyring, beat, _| {
            keyring.home.upkeep.spawn(keks::look_after(keyring.clone(), seat.clone(), beat)).abort_handle()
        });
    }
}

async fn watch(keyring: Arc<Keyring>, beat: Arc<Beat>, restarted: bool) {
    let mut turns: HashMap<KekVersion, Turn> = HashMap::new();
    if restarted {
        // Nobody knows how long the watch before this one was dead: all are due now.
        turns.extend(keyring.leashes().iter().map(|leash| (leash.kek().clone(), Turn::unknown())));
    }
    let mut asking = JoinSet::new();
    let mut asked: HashMap<Id, KekVersion> = HashMap::new();
    let mut hung: Vec<_> = keyring.tokens.seats().map(|seat| seat.workers().hung).collect();
    loop {
        let now = keyring.clock.now();
        beat.at(now);
        if keyring.is_closed() {
            return;
        }
        tell_of_lost_workers(&keyring, &mut hung);
        keyring.tell_of_store(now);
        let mut next = now.plus(TICK);
        for leash in keyring.leashes() {
            let kek = leash.kek();
            // Of one that is being asked too: what lapses meanwhile is wiped and told as it does, and not when the answer comes.
            keyring.catch_up(&leash);
            let lease = leash.lease();
            if lease.end() > now {
                next = next.min(lease.end());
            }
            if asked.values().any(|busy| busy == kek) {
                continue;
            }
            let mut begin =
                || Turn { last: Some(now), early: keyring.jitter.below(JITTER_PERMILLE), ..Turn::unknown() };
            let turn = turns.entry(kek.clone()).or_insert_with(&mut begin);
            let is_wanted = turn.nobody_there || leash.sample_lost.load(Ordering::SeqCst);
            let mut at = if is_wanted && leash.member(0).is_some() { now } else { turn.due(&keyring, &leash, now) };
            if leash.heard.load(Ordering::SeqCst) {
                at = at.min(turn.last.map_or(now, |last| last.plus(turn.heard_pause(&keyring))));
            }
            if at > now {
                next = next.min(at);
                continue;
            }
            let (nobody_there, refused_for) = (leash.member(0).is_none(), turn.refused_for(&keyring, &leash, now));
            let is_heard = leash.heard.swap(false, Ordering::SeqCst);
            let heard = turn.next_heard(is_heard, leash.is_denied());
            turns.insert(kek.clone(), Turn { nobody_there, refused_for, heard, ..begin() });
            leash.sample_lost.store(false, Ordering::SeqCst);
            if is_heard {
                // Not what an old context says, which others may have seen through.
                leash.renewal_owed(Voice::First).store(true, Ordering::SeqCst);
            }
            // Whatever comes of the proof: the store may have failed, and there may be nobody to prove with.
            keyring.save_if_needed(&leash);
            if nobody_there {
                if keyring.forget_unused(&leash) {
                    turns.remove(kek);
                }
                continue;
            }
            // Each KEK version counts its own proofs: with one count for all, it might be another's that is fresh every time.
            let turn = leash.proofs.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
            let task = asking.spawn(ask(keyring.clone(), leash.clone(), turn));
            asked.insert(task.id(), kek.clone());
        }
        tokio::select! {
            biased; // every branch leads to the same look around, and a simulation sees the same again
            () = keyring.clock.sleep_until(next.max(now.plus(GRAIN))) => {}
            () = keyring.stir.notified() => {}
            Some(done) = asking.join_next_with_id() => {
                let id = done.as_ref().map_or_else(tokio::task::JoinError::id, |(id, _)| *id);
                match (asked.remove(&id), done) {
                    // It is asked again when it is due, like any other.
                    (Some(kek), Err(_)) => {
                        let why = format!("the proof of KEK {kek} died");
                        keyring.teller.tell(Event::WatchRestarted { why });
                    }
                    (Some(kek), Ok((_, true))) => drop(turns.insert(kek, Turn::unknown())),
                    _ => {}
                }
            }
        }
    }
}

/// When a KEK version was last asked (`None`: nobody knows), and how much of its interval early it is asked next.
struct Turn {
    last: Option<Instant>,
    early: u64,
    /// It was not asked, because nobody was under it: it is, as soon as somebody is.
    nobody_there: bool,
    /// For how long it had been denied, or lapsed, as it was asked last.
    refused_for: Duration,
    /// Whether it was denied as it was asked because of what the store told, and how often that made no difference of late.
    heard: Option<(bool, u32)>,
}

impl Turn {
    fn unknown() -> Self {
        Self { last: None, early: 0, nobody_there: false, refused_for: Duration::ZERO, heard: None }
    }

    /// How soon it is asked again for what the store tells. Where one engine alone is denied, the others end its denial and it writes
    /// another one, without end: so what makes no difference again and again has time until the next poll.
    fn heard_pause(&self, keyring: &Keyring) -> Duration {
        let times = self.heard.map_or(0, |(_, times)| times);
        HEARD_PAUSE.saturating_mul(1 << times.min(6)).min(keyring.settings.poll_interval)
    }

    fn next_heard(&self, is_heard: bool, is_denied: bool) -> Option<(bool, u32)> {
        let times = self.heard.and_then(|(was, times)| (was == is_denied).then_some(times));
        match is_heard {
            true => Some((is_denied, times.map_or(0, |times| times.saturating_add(1)))),
            false => times?.checked_sub(1).map(|times| (is_denied, times)),
        }
    }

    /// For how long it has been refused, where it is asked again at `now`. A machine's sleep is none of it, in which nobody asked: the
    /// token, or the network, may be back as soon as it wakes.
    fn refused_for(&self, keyring: &Keyring, leash: &Leash, now: Instant) -> Duration {
        let longest = BACK_OFF_MAX.max(keyring.settings.poll_interval);
        let since_asked = self.last.map_or(Duration::ZERO, |last| now.since(last).min(longest));
        if leash.refuses() { self.refused_for + since_asked } else { Duration::ZERO }
    }

    /// When it is asked next, as its lease stands now: the back-off of a denial must not outlast the denial, because a
    /// lease that was granted again is in use again, and promise 1 counts on the interval.
    fn due(&self, keyring: &Keyring, leash: &Leash, now: Instant) -> Instant {
        let poll = keyring.settings.poll_interval;
        let doublings = if leash.refuses() { self.refused_for.as_secs() / BACK_OFF_AFTER.as_secs().max(1) } else { 0 };
        let backed_off = poll.saturating_mul(1_u32 << doublings.min(6)).min(BACK_OFF_MAX).max(poll);
        // The store is asked first, and a context that is due renewed, for each of the tokens.
        let reading = keyring.proof_reading_max() * if leash.route.standby.is_some() { 2 } else { 1 };
        let next = leash.proofs.load(Ordering::SeqCst).wrapping_add(1);
        let seats = [(Voice::First, Some(&leash.route.first)), (Voice::Standby, leash.route.standby.as_ref())];
        let renewals = seats.into_iter().filter_map(|(voice, seat)| {
            seat.filter(|seat| is_renewal_due(keyring, leash, voice, seat, next)).map(|seat| renewal_max(keyring, seat))
        });
        let before = reading + renewals.sum::<Duration>();
        // Two tokens' renewals may be as long as a poll: proofs would follow on one another without a pause.
        let interval =
            (backed_off - backed_off.mul_f64(self.early as f64 / 1000.0)).saturating_sub(before).max(poll / 4);
        self.last.map_or(now, |last| last.plus(interval))
    }
}

/// Whether the proof with that number is to come from a context that is initialised for it.
fn is_renewal_due(keyring: &Keyring, leash: &Leash, voice: Voice, seat: &Seat, turn: usize) -> bool {
    turn.is_multiple_of(keyring.settings.fresh_proof_every.max(1) as usize)
        || leash.renewal_owed(voice).load(Ordering::SeqCst)
        // By the next one it would be: a lease that began anew counts its proofs anew, in the context that was there.
        || keyring.is_fresh_proof_overdue(seat, keyring.settings.poll_interval)
        || keyring.may_hide(seat, leash)
}

/// For how long a proof waits for a context that is renewed for it. It begins so much earlier, so that the bound of a fresh one is
/// that of any: the renewal has a deadline of its own. No longer than half a poll, so that proofs do not follow on one another.
fn renewal_max(keyring: &Keyring, seat: &Seat) -> Duration {
    let has_contexts = seat.context_began().is_some();
    if has_contexts { seat.call_timeout.min(keyring.settings.poll_interval / 2) } else { Duration::ZERO }
}

fn tell_of_lost_workers(keyring: &Keyring, hung: &mut [usize]) {
    for (seat, hung) in keyring.tokens.seats().zip(hung) {
        let workers = seat.workers();
        if workers.hung > *hung {
            keyring.teller.tell(Event::WorkerLost { token: seat.name.clone(), workers });
        }
        *hung = workers.hung;
    }
}

/// What a proof brought to light.
enum Learned {
    /// This AEK was unwrapped and verified; of this slot, if it may be filled with it.
    Proof(Option<(Arc<AekSlot>, ShutGuard)>, Box<(AccountId, WrappedAek)>, Unwrapped),
    /// The token failed.
    Trouble(TokenError),
    /// The records are at fault, or gone: nothing about the KEK.
    Nothing(Error),
}

/// One proof: of the first token within its deadline, and where it is silent, of the standby within that one's. While the
/// first is known to be silent both are asked at once, so that neither waits for the other: the standby keeps the lease, and
/// the first one's return, or its denial, is heard within a poll.
///
/// True when it is to be made again at once: it found no worker, or an answer came, and before it did the lease lapsed, or was denied by
/// what the store knew of the silence that this answer ends, so that it proves nothing.
async fn ask(keyring: Arc<Keyring>, leash: Arc<Leash>, turn: usize) -> bool {
    let (epoch, asked) = (keyring.asking(&leash), keyring.clock.now());
    let (crowded_out, granted) = (AtomicBool::new(false), AtomicBool::new(false));
    let question = Question { keyring: &keyring, leash: &leash, turn, epoch, asked, crowded_out, granted };
    let first = &leash.route.first;
    let asking = async {
        match leash.standby_to_ask() {
            Some(standby) => {
                let other = question.put(Voice::Standby, standby);
                match tokio::join!(question.put(Voice::First, first), other) {
                    (Some(first), Some(other)) => Some(both_silent(first, standby, &other)),
                    _ => None,
                }
            }
            None => match (question.put(Voice::First, first).await, &leash.route.standby) {
                (Some(first), Some(standby)) if keyring.may_go_over(&leash).await => {
                    let other = question.put(Voice::Standby, standby).await;
                    other.map(|other| both_silent(first, standby, &other))
                }
                (silence, _) => silence,
            },
        }
    };
    // Beside it: a store that is slow holds up no proof.
    let (silence, ()) = tokio::join!(asking, keyring.look_for_denials(&leash));
    if let Some(trouble) = silence {
        keyring.feed(&leash, Voice::First, LeaseVerdict::Unreachable, Some(&trouble));
        return false;
    }
    if let Some(standby) = leash.route.standby.as_ref().filter(|_| !leash.first().is_on_standby() && leash.answers()) {
        let is_due = turn.is_multiple_of(keyring.settings.fresh_proof_every.max(1) as usize);
        let is_first = !leash.standby_looked_at.swap(true, Ordering::SeqCst);
        let kek = keyring.sample(leash.kek()).map(|(_, wrapped)| wrapped.kek_id);
        if let Some(kek) = kek.filter(|_| is_due || is_first) {
            keyring.look_at_standby(&leash, standby, &kek).await;
        }
    }
    // It waited a whole deadline for its turn: to wait for the next poll as well would be too late for promise 1.
    let is_over = match leash.lease().phase() {
        Phase::Lapsed { .. } => true,
        Phase::Denied { .. } => question.granted.load(Ordering::SeqCst),
        _ => false,
    };
    question.crowded_out.load(Ordering::SeqCst) || leash.epoch() != epoch && is_over
}

/// A proof that is asked for.
struct Question<'a> {
    keyring: &'a Arc<Keyring>,
    leash: &'a Arc<Leash>,
    turn: usize,
    epoch: u64,
    asked: Instant,
    crowded_out: AtomicBool,
    /// By the first token.
    granted: AtomicBool,
}

impl Question<'_> {
    /// Asks one token, within its deadline, and feeds what it says. Gives its words when it is silent, which it may be alone.
    async fn put(&self, voice: Voice, seat: &Seat) -> Option<TokenError> {
        let Self { keyring, leash, turn, epoch, asked, .. } = *self;
        let renewal = match is_renewal_due(keyring, leash, voice, seat, turn) {
            true => renewal_max(keyring, seat),
            false => Duration::ZERO,
        };
        let deadline = keyring.clock.now().plus(renewal + keyring.proof_reading_max() + seat.proof_max());
        let refused = OnceLock::new();
        let learned = keyring.clock.until(deadline, prove(keyring, leash, voice, seat, turn, &refused)).await;
        if refused.get().is_some() && voice == Voice::First {
            leash.note_first(|first, _| first.answers()); // whatever it says of one record
        }
        let learned = match (learned, refused.into_inner()) {
            (None, None) => return Some(no_answer(seat)),
            // One that nobody has open may do, and while a denial is in force may be the one that must. Nor was silent who answered,
            // though the time did not suffice for the next record.
            (Some(Learned::Nothing(error)), _) | (None, Some(error)) => {
                let until = keyring.clock.now().plus(keyring.settings.poll_interval);
                let vouched = keyring.clock.until(until, keyring.vouch_answered(leash)).await;
                match vouched {
                    Some(Ok(Vouched::ByRecord { .. })) => {
                        leash.note_unprovable(None);
                        return None;
                    }
                    Some(Err(error)) => Learned::Nothing(error),
                    Some(Ok(Vouched::Bare { .. })) | None => Learned::Nothing(error),
                }
            }
            (Some(learned), _) => learned,
        };
        match &learned {
            Learned::Trouble(trouble) if is_silence(trouble.verdict) => return Some(trouble.clone()),
            // It never came to the token, which may be asked by others all the time: that is not its silence.
            Learned::Trouble(trouble) if trouble.verdict == Verdict::Busy => {
                let (kek, token, why) = (leash.kek().clone(), seat.name.clone(), trouble.to_string());
                // Not one that was turned away without a wait: to ask that again at once would be to ask for ever, in no time.
                let waited = keyring.clock.now().since(asked) >= seat.call_timeout;
                self.crowded_out.fetch_or(waited, Ordering::SeqCst);
                keyring.teller.tell(Event::ProofCrowdedOut { kek, token, why });
                return None;
            }
            Learned::Trouble(trouble) if voice == Voice::Standby && trouble.verdict == Verdict::Replaced => {
                keyring.tell_unfit(leash, seat, &trouble.to_string());
                return Some(trouble.clone());
            }
            Learned::Proof(..) | Learned::Trouble(_) if voice == Voice::First => {
                leash.note_first(|first, _| first.answers());
            }
            _ => {}
        }
        let unprovable = match &learned {
            Learned::Nothing(error) => Some(error.to_string()),
            Learned::Proof(..) | Learned::Trouble(_) => None,
        };
        if leash.note_unprovable(unprovable.clone())
            && let Some(why) = unprovable
        {
            keyring.teller.tell(Event::NoRecordToProve { kek: leash.kek().clone(), why });
        }
        match learned {
            Learned::Proof(slot, of, unwrapped) => {
                self.granted.fetch_or(voice == Voice::First, Ordering::SeqCst);
                // No proof only where a denial came in between.
                let is_proof = keyring.grant(leash, voice, (&of.0, &of.1), &unwrapped, epoch);
                // What the standby grants says nothing of what the first token wrapped.
                if is_proof && voice == Voice::First {
                    leash.proof_came();
                }
                // The sample's own unwrap renews its TTL, if somebody used it: proofs keep no idle account in memory.
                // Refused only by a denial that came in between.
                if let Some((slot, _guard)) =
                    slot.filter(|(slot, _)| is_proof && (slot.is_in_use() || slot.is_wanted()))
                {
                    let _ = keyring.admit(&slot, &unwrapped.aek, epoch, asked);
                }
            }
            Learned::Trouble(trouble) => {
                if let Some(verdict) = lease_verdict(leash, &trouble) {
                    keyring.feed(leash, voice, verdict, Some(&trouble));
                }
                if voice == Voice::First && trouble.verdict == Verdict::Replaced {
                    let until = keyring.clock.now().plus(keyring.settings.poll_interval / 2);
                    let _ = keyring.clock.until(until, keyring.ask_an_older(leash)).await;
                }
            }
            Learned::Nothing(error) => {
                tracing::warn!(kek = %leash.kek(), %error, "no record to prove the KEK with");
            }
        }
        None
    }
}

/// Unwraps the AEK of a member, another one with each turn; of the next ones, where a record turns out to be damaged, which is
/// noted as `refused`.
async fn prove(
    keyring: &Arc<Keyring>,
    leash: &Leash,
    voice: Voice,
    seat: &Seat,
    turn: usize,
    refused: &OnceLock<Error>,
) -> Learned {
    if is_renewal_due(keyring, leash, voice, seat, turn) {
        let owed = leash.renewal_owed(voice);
        // Owed until it is done, an attempt that is cut short included.
        owed.store(true, Ordering::SeqCst);
        let until = match renewal_max(keyring, seat) {
            Duration::ZERO => Instant::from_nanos(u64::MAX), // there is nothing to renew, or who does so ends in time
            max => keyring.clock.now().plus(max),
        };
        match keyring.clock.until(until, keyring.renew_context(seat)).await {
            Some(Ok(())) => owed.store(false, Ordering::SeqCst),
            // An outage says so; anything else (a worker hangs, so the module cannot be renewed; it takes too long) leaves the usual
            // proof, which the lease takes for what it is.
            Some(Err(trouble)) if trouble.verdict == Verdict::Unreachable => return Learned::Trouble(trouble),
            Some(Err(_)) | None => {}
        }
    }
    let mut last = Error::NotFound(format!("an account under KEK {}", leash.kek()));
    if voice == Voice::First {
        leash.proof_begins();
    }
    if leash.is_denied() {
        return match leash.vouch.witness_record() {
            Some((account, wrapped)) => {
                // Another one is looked at all the same: those that were moved to another KEK version go on there.
                let look = async {
                    let until = keyring.clock.now().plus(keyring.proof_reading_max());
                    if let Some(slot) = leash.member(turn) {
                        let _ = keyring.clock.until(until, keyring.wrapped_for_proof(slot)).await;
                    }
                };
                let proving = prove_by(keyring, leash, voice, seat, account, wrapped);
                let ((), learned) = tokio::join!(look, proving);
                if matches!(&learned, Learned::Trouble(trouble) if trouble.verdict == Verdict::Replaced) {
                    keyring.recheck_witness(leash).await;
                }
                learned
            }
            None => Learned::Nothing(last),
        };
    }
    let mut other_key = None;
    // Different ones, as far as there are: one whose record is damaged says nothing of the KEK, however often it is asked.
    // What was wrapped here proves nothing yet: where nobody has another one open, the store is asked for it.
    let is_old = |slot: &AekSlot| !leash.vouch.is_young(slot.account(), slot.aek_version);
    let mut members = leash.elders(turn, SAMPLES_MAX, is_old);
    if members.is_empty() {
        // All came since, perhaps by another key's hand: but for whoever proved first. Where nobody did yet, anybody may.
        members =
            leash.members_that(turn, SAMPLES_MAX, |slot| is_old(slot) && leash.vouch.may_prove_first(slot.account()));
    }
    for slot in members.iter().cycle().take(SAMPLES_MAX).cloned() {
        let Sample { account, wrapped, slot } = match keyring.wrapped_for_proof(slot).await {
            Ok(sample) => sample,
            Err(error) => {
                last = error;
                continue;
            }
        };
        match keyring.prove_at(leash, voice, seat, &account, &wrapped).await {
            Ok(unwrapped) if !slot.as_ref().is_some_and(|(slot, _)| slot.differs_from(&unwrapped.aek)) => {
                keyring.keep_sample(leash.kek(), &account, &wrapped);
                return Learned::Proof(slot, Box::new((account, wrapped)), unwrapped);
            }
            // One record that was moved is that account's trouble; another sample tells it from another KEK. At once one that was
            // proved before, because the deadline is that of one call.
            Ok(_) | Err(Trouble::OtherKey) => {
                last = Corrupt::WrappedAek(format!("account {account}")).into();
                let _ = refused.set(last.clone());
                other_key = Some((account, wrapped.aek_version));
                if keyring.sample(leash.kek()).is_some() {
                    break;
                }
            }
            // So is one that is damaged, and a token that takes some for damaged by mistake is asked for as many as ever.
            Err(Trouble::Token(trouble)) if trouble.verdict == Verdict::BadRecord => {
                last = Corrupt::WrappedAek(format!("account {account}")).into();
                let _ = refused.set(last.clone());
            }
            Err(Trouble::Token(trouble)) => return Learned::Trouble(trouble),
        }
    }
    // Every record that was tried is gone, moved or damaged. The last one that was proved is still a wrapped AEK of this KEK
    // version, and as good a question: without it a denial would go unnoticed, and damage would pass for another KEK.
    match (keyring.sample(leash.kek()), other_key) {
        (Some((account, wrapped)), _) => prove_by(keyring, leash, voice, seat, account, wrapped).await,
        (None, Some((account, aek_version))) => Learned::Trouble(replaced(OTHER_BYTES, &account, aek_version)),
        (None, None) => match keyring.unproved_sample(leash.kek()) {
            Some((account, wrapped)) => {
                let is_young = leash.vouch.is_young(&account, wrapped.aek_version);
                match prove_by(keyring, leash, voice, seat, account, wrapped).await {
                    // Neither of the KEK is shown by what another key in its place may have wrapped.
                    Learned::Proof(..) if is_young => Learned::Nothing(last),
                    Learned::Trouble(trouble) if is_young && trouble.verdict == Verdict::Replaced => {
                        Learned::Nothing(last)
                    }
                    learned => learned,
                }
            }
            None => Learned::Nothing(last),
        },
    }
}

const OTHER_BYTES: &str = "the token gave other bytes than the AEK";

/// Unwraps these very bytes, which the KEK unwrapped before: what became another one is the key.
async fn prove_by(
    keyring: &Arc<Keyring>,
    leash: &Leash,
    voice: Voice,
    seat: &Seat,
    account: AccountId,
    wrapped: WrappedAek,
) -> Learned {
    match keyring.prove_at(leash, voice, seat, &account, &wrapped).await {
        Ok(unwrapped) => Learned::Proof(None, Box::new((account, wrapped)), unwrapped),
        Err(Trouble::OtherKey) => Learned::Trouble(replaced(OTHER_BYTES, &account, wrapped.aek_version)),
        Err(Trouble::Token(trouble)) if trouble.verdict == Verdict::BadRecord => {
            Learned::Trouble(replaced(&trouble.to_string(), &account, wrapped.aek_version))
        }
        Err(Trouble::Token(trouble)) => Learned::Trouble(trouble),
    }
}

#[cfg(test)]
mod tests;
