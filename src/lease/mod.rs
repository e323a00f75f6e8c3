//! The lease of one KEK version: a pure state machine. No I/O, no clock, no locks.
//!
//! It decides when a seal or an open stops working: at [`Lease::end`].
//!
//! Time comes in as an argument, what is to be done goes out as a value. A lease is renewed by a proof alone,
//! and a proof counts from the instant at which it was *asked*, because the token may have decided then. Some modules show a
//! context the token as it was when the context was initialised. So a proof counts from no later than `fresh_span` after that:
//! ordinary proofs, however many, end a lease at the last fresh one + `fresh_span` + grace.
//!
//! ```text
//!            granted              unreachable
//! unproven ───────────▶ active ◀──────────────▶ grace
//!     │                  ▲  │      granted        │ end passed
//!     │ denied    all    │  │ denied              ▼
//!     ▼           back   │  ▼                  lapsed
//!  denied ◀── denied ── resuming ◀── granted ──┘ │
//!     └────── granted ───▲                        │
//!     ▲───────────────────────── denied ──────────┘
//! ```
//! An epoch counts denials and lapses. What was asked in an earlier epoch changes nothing any more.

use crate::clock::Instant;
use std::{fmt, time::Duration};

pub(crate) mod standby;

/// Where a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No proof yet in this process.
    Unproven,
    /// Proved, and the token answers.
    Active,
    /// Proved, but the token does not answer; runs out at the lease's end.
    Grace {
        /// When the silence was noticed.
        since: Instant,
        /// Accounts were still being re-unwrapped when it began.
        resuming: bool,
    },
    /// The token says no. Only a proof leads out of it.
    Denied {
        /// When the denial arrived.
        since: Instant,
    },
    /// The token was silent for the whole grace. Only a proof, or a denial, leads out of it.
    Lapsed {
        /// When the lease ended.
        since: Instant,
    },
    /// Granted again after a denial or lapse; the accounts are being re-unwrapped.
    Resuming {
        /// When the proof arrived.
        since: Instant,
    },
}

impl Phase {
    /// Its name in a word, as `keyleash status` has it; stable.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unproven => "unproven",
            Self::Active => "active",
            Self::Grace { .. } => "grace",
            Self::Denied { .. } => "denied",
            Self::Lapsed { .. } => "lapsed",
            Self::Resuming { .. } => "resuming",
        }
    }
}

/// What was learned from the token, or that nothing was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// A proof: a real wrapped AEK was unwrapped.
    Granted {
        /// When the token was asked.
        asked: Instant,
        /// When the context was initialised in which it was asked; `asked`, where a context hides nothing.
        context: Instant,
        /// The lease's epoch when the token was asked.
        epoch: u64,
    },
    /// The token said no. No epoch: a denial counts whenever it was asked.
    Denied,
    /// The token did not answer by the deadline, or answered that it cannot.
    Unreachable,
    /// Nothing was learned; time passed.
    Nothing,
    /// Every account that was in use is back.
    AllBack {
        /// The epoch in which they were unwrapped.
        epoch: u64,
    },
}

/// What changed, for people and for subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// First proof in this process, or the token answers again after a silence within grace.
    Granted,
    /// The token became silent.
    Unreachable,
    /// The token says no.
    Denied,
    /// The silence lasted for the whole grace.
    Lapsed,
    /// Granted again after a denial or lapse.
    Resuming,
    /// Every account is back.
    Resumed,
}

/// One word.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Granted => "granted",
            Self::Unreachable => "unreachable",
            Self::Denied => "denied",
            Self::Lapsed => "lapsed",
            Self::Resuming => "resuming",
            Self::Resumed => "resumed",
        })
    }
}

/// What the caller must do after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Actions {
    /// Empty and wipe every slot of the KEK version.
    pub wipe: bool,
    /// Re-unwrap the accounts that are in use.
    pub resume: bool,
    /// Tell that this changed.
    pub change: Option<Change>,
}

/// How long proofs last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Terms {
    /// A lease lasts for so long after the newest proof …
    pub grace: Duration,
    /// … and a proof from a context that is older than this counts as if it had been asked when the context was this old.
    pub fresh_span: Duration,
}

/// A proof that renewed a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Proof {
    asked: Instant,
    context: Instant,
}

/// A lease. Compare `now` with [`Lease::end`]: from that instant on nothing may be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    phase: Phase,
    /// Counts denials and lapses, from 1.
    epoch: u64,
    /// Of this epoch the one that lasts longest; `None` before the first and after a denial or lapse.
    proof: Option<Proof>,
    terms: Terms,
}

impl Lease {
    /// A lease without a proof, under which nothing may be used.
    pub const fn new(terms: Terms) -> Self {
        Self { phase: Phase::Unproven, epoch: 1, proof: None, terms }
    }

    /// A lease that was denied before this process started: it stays so until a proof.
    pub const fn denied_before(terms: Terms, now: Instant) -> Self {
        Self { phase: Phase::Denied { since: now }, epoch: 1, proof: None, terms }
    }

    /// Where it stands, as of the last step.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Counts denials and lapses, from 1. A slot is usable only in the epoch in which it was filled.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// When the newest proof was asked.
    pub fn proved(&self) -> Option<Instant> {
        self.proof.map(|proof| proof.asked)
    }

    /// As of when the newest proof shows the token for certain: when its context was initialised.
    pub fn fresh(&self) -> Option<Instant> {
        self.proof.map(|proof| proof.context)
    }

    /// The first instant at which nothing may be used any more: grace after the newest proof was asked, or could have been to
    /// count. Boot, when there is no proof.
    pub fn end(&self) -> Instant {
        self.proof.map_or(Instant::default(), |proof| self.end_of(proof))
    }

    fn end_of(&self, proof: Proof) -> Instant {
        proof.asked.min(proof.context.plus(self.terms.fresh_span)).plus(self.terms.grace)
    }

    /// True when a proof that was asked then, in a context that was initialised then, renews no longer: a fresh one is overdue.
    pub fn is_overdue(&self, asked: Instant, context: Instant) -> bool {
        asked > context.plus(self.terms.fresh_span)
    }

    /// How long it lasts after a proof.
    pub const fn grace(&self) -> Duration {
        self.terms.grace
    }

    /// True when the token answered last; then the TTL of an AEK binds, else only the lease does.
    pub const fn answering(&self) -> bool {
        matches!(self.phase, Phase::Active | Phase::Resuming { .. })
    }

    /// One step. The new lease replaces the old one before anything else happens.
    #[must_use]
    pub fn step(self, verdict: Verdict, now: Instant) -> (Self, Actions) {
        let (lease, lapse) = self.lapse_if_ended(now);
        let (lease, actions) = match verdict {
            Verdict::Nothing => (lease, Actions::default()),
            Verdict::Granted { asked, context, epoch } => lease.granted(Proof { asked, context }, epoch, now),
            Verdict::Denied => lease.denied(now),
            Verdict::Unreachable => lease.unreachable(now),
            Verdict::AllBack { epoch } => lease.all_back(epoch),
        };
        let change = actions.change.or(lapse.change);
        (lease, Actions { wipe: actions.wipe || lapse.wipe, resume: actions.resume, change })
    }

    fn lapse_if_ended(mut self, now: Instant) -> (Self, Actions) {
        if self.proof.is_none() || now < self.end() {
            return (self, Actions::default());
        }
        self.phase = Phase::Lapsed { since: self.end() };
        self.proof = None;
        self.epoch += 1;
        (self, Actions { wipe: true, change: Some(Change::Lapsed), ..Actions::default() })
    }

    fn granted(mut self, proof: Proof, epoch: u64, now: Instant) -> (Self, Actions) {
        // Asked before a denial or lapse, or so long ago that its lease is over: proves nothing about now.
        if epoch != self.epoch || proof.asked > now || self.end_of(proof) <= now {
            return (self, Actions::default());
        }
        let lasts = |proof: Proof| (self.end_of(proof), proof.asked);
        let longer = self.proof.filter(|before| lasts(*before) > lasts(proof));
        self.proof = Some(longer.unwrap_or(proof));
        let (phase, resume, change) = match self.phase {
            Phase::Active => (Phase::Active, false, None),
            Phase::Resuming { since } => (Phase::Resuming { since }, false, None),
            Phase::Unproven | Phase::Grace { resuming: false, .. } => (Phase::Active, false, Some(Change::Granted)),
            Phase::Grace { resuming: true, .. } | Phase::Denied { .. } | Phase::Lapsed { .. } => {
                (Phase::Resuming { since: now }, true, Some(Change::Resuming))
            }
        };
        self.phase = phase;
        (self, Actions { wipe: false, resume, change })
    }

    fn denied(mut self, now: Instant) -> (Self, Actions) {
        if let Phase::Denied { .. } = self.phase {
            // A new epoch all the same: a proof that was asked before this denial must not renew.
            self.epoch += 1;
            return (self, Actions { wipe: true, ..Actions::default() });
        }
        self.phase = Phase::Denied { since: now };
        self.proof = None;
        self.epoch += 1;
        (self, Actions { wipe: true, resume: false, change: Some(Change::Denied) })
    }

    fn unreachable(mut self, now: Instant) -> (Self, Actions) {
        let resuming = match self.phase {
            Phase::Active => false,
            Phase::Resuming { .. } => true,
            // Denied and lapsed are sticky; unproven has nothing to lose; grace began earlier.
            Phase::Unproven | Phase::Grace { .. } | Phase::Denied { .. } | Phase::Lapsed { .. } => {
                return (self, Actions::default());
            }
        };
        self.phase = Phase::Grace { since: now, resuming };
        (self, Actions { change: Some(Change::Unreachable), ..Actions::default() })
    }

    fn all_back(mut self, epoch: u64) -> (Self, Actions) {
        if epoch == self.epoch && matches!(self.phase, Phase::Resuming { .. }) {
            self.phase = Phase::Active;
            return (self, Actions { change: Some(Change::Resumed), ..Actions::default() });
        }
        (self, Actions::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashSet, VecDeque};

    const GRACE: Duration = Duration::from_nanos(10);
    const SPAN: Duration = Duration::from_nanos(6);
    const TERMS: Terms = Terms { grace: GRACE, fresh_span: SPAN };

    fn at(ns: u64) -> Instant {
        Instant::from_nanos(ns)
    }

    fn grant(asked: u64, context: u64, epoch: u64) -> Verdict {
        Verdict::Granted { asked: at(asked), context: at(context), epoch }
    }

    fn granted(lease: Lease, asked: u64, now: u64) -> Lease {
        lease.step(grant(asked, asked, lease.epoch()), at(now)).0
    }

    /// One lease in each phase, as of instant 5 (the lapsed one ended earlier).
    fn one_of_each() -> Vec<Lease> {
        let new = Lease::new(TERMS);
        let active = granted(new, 1, 2);
        let grace = active.step(Verdict::Unreachable, at(3)).0;
        let denied = active.step(Verdict::Denied, at(3)).0;
        let lapsed = Lease { terms: Terms { grace: Duration::from_nanos(2), ..TERMS }, ..active }
            .step(Verdict::Nothing, at(4))
            .0;
        let lapsed = Lease { terms: TERMS, ..lapsed };
        let resuming = granted(denied, 4, 5);
        let grace_resuming = resuming.step(Verdict::Unreachable, at(5)).0;
        vec![new, active, grace, denied, lapsed, resuming, grace_resuming]
    }

    fn name(phase: Phase) -> &'static str {
        match phase {
            Phase::Unproven => "unproven",
            Phase::Active => "active",
            Phase::Grace { resuming: false, .. } => "grace",
            Phase::Grace { resuming: true, .. } => "grace+",
            Phase::Denied { .. } => "denied",
            Phase::Lapsed { .. } => "lapsed",
            Phase::Resuming { .. } => "resuming",
        }
    }

    #[test]
    fn every_phase_and_every_verdict() {
        #[rustfmt::skip]
        let table = [
            // phase       granted     denied    unreachable  nothing     all back
            ("unproven", ["active",   "denied", "unproven",  "unproven", "unproven"]),
            ("active",   ["active",   "denied", "grace",     "active",   "active"]),
            ("grace",    ["active",   "denied", "grace",     "grace",    "grace"]),
            ("denied",   ["resuming", "denied", "denied",    "denied",   "denied"]),
            ("lapsed",   ["resuming", "denied", "lapsed",    "lapsed",   "lapsed"]),
            ("resuming", ["resuming", "denied", "grace+",    "resuming", "active"]),
            ("grace+",   ["resuming", "denied", "grace+",    "grace+",   "grace+"]),
        ];
        for (lease, (phase, expected)) in one_of_each().into_iter().zip(table) {
            assert_eq!(name(lease.phase()), phase);
            let epoch = lease.epoch();
            let verdicts = [
                grant(6, 6, epoch),
                Verdict::Denied,
                Verdict::Unreachable,
                Verdict::Nothing,
                Verdict::AllBack { epoch },
            ];
            for (verdict, expected) in verdicts.into_iter().zip(expected) {
                let (next, actions) = lease.step(verdict, at(6));
                assert_eq!(name(next.phase()), expected, "{phase} on {verdict:?}");
                assert_eq!(actions.wipe, verdict == Verdict::Denied, "{phase} on {verdict:?}");
                assert_eq!(next.epoch() > epoch, actions.wipe, "an epoch ends where slots are wiped");
            }
        }
    }

    #[test]
    fn every_change_is_told_once() {
        let mut lease = Lease::new(TERMS);
        let mut step = |verdict, now| {
            let (next, actions) = lease.step(verdict, at(now));
            lease = next;
            actions.change
        };
        let story = [
            (grant(1, 1, 1), 1, Some(Change::Granted)),
            (grant(2, 2, 1), 2, None),
            (Verdict::Unreachable, 3, Some(Change::Unreachable)),
            (Verdict::Unreachable, 4, None),
            (grant(4, 4, 1), 4, Some(Change::Granted)),
            (Verdict::Denied, 5, Some(Change::Denied)),
            (Verdict::Denied, 6, None),
            (grant(6, 6, 3), 6, Some(Change::Resuming)),
            (Verdict::AllBack { epoch: 3 }, 7, Some(Change::Resumed)),
            (Verdict::AllBack { epoch: 3 }, 7, None),
            (Verdict::Nothing, 16, Some(Change::Lapsed)),
            (Verdict::Nothing, 17, None),
        ];
        for (verdict, now, change) in story {
            assert_eq!(step(verdict, now), change, "{verdict:?} at {now}");
        }
    }

    #[test]
    fn of_two_proofs_that_last_as_long_the_later_one_says_how_fresh_the_lease_is() {
        let lease = granted(Lease::new(TERMS), 1, 1);
        let lease = lease.step(grant(5, 1, 1), at(5)).0;
        assert_eq!(lease.step(grant(5, 5, 1), at(5)).0.fresh(), Some(at(5)));
    }

    #[test]
    fn every_phase_with_a_proof_lapses_at_its_end_whatever_arrives_then() {
        for lease in one_of_each().into_iter().filter(|lease| lease.proved().is_some()) {
            let epoch = lease.epoch();
            let end = lease.end();
            for verdict in [
                Verdict::Nothing,
                Verdict::Unreachable,
                grant(end.as_nanos() - 1, end.as_nanos() - 1, epoch),
                Verdict::AllBack { epoch },
            ] {
                let (next, actions) = lease.step(verdict, end);
                assert_eq!(next.phase(), Phase::Lapsed { since: end }, "{lease:?} on {verdict:?}");
                assert!(actions.wipe && next.end() == at(0) && next.epoch() == epoch + 1);
            }
            assert_eq!(name(lease.step(Verdict::Denied, end).0.phase()), "denied");
        }
    }

    #[test]
    fn a_proof_counts_from_when_it_was_asked() {
        let lease = granted(Lease::new(TERMS), 3, 9);
        assert_eq!(lease.end(), at(13));
        assert_eq!(granted(lease, 2, 9).end(), at(13), "an older proof takes nothing away");
        assert_eq!(name(granted(Lease::new(TERMS), 1, 11).phase()), "unproven", "its lease would be over");
    }

    #[test]
    fn ordinary_proofs_do_not_renew_beyond_the_last_fresh_one() {
        let mut lease = granted(Lease::new(TERMS), 1, 1);
        for now in 2..17 {
            lease = lease.step(grant(now, 1, 1), at(now)).0;
            assert_eq!(lease.end(), at((now.min(7)) + 10), "asked at {now}");
            assert_eq!((lease.proved(), lease.fresh()), (Some(at(now)), Some(at(1))));
            assert_eq!(lease.is_overdue(at(now), at(1)), now > 7);
        }
        let lapsed = lease.step(grant(17, 1, 1), at(17)).0;
        assert_eq!(lapsed.phase(), Phase::Lapsed { since: at(17) });
        assert_eq!(lapsed.step(grant(18, 1, 2), at(18)).0, lapsed, "nor do they bring it back");
        assert_eq!(name(lapsed.step(grant(18, 18, 2), at(18)).0.phase()), "resuming");
        // Another token's context is younger: an ordinary proof in the old one takes nothing away, and adds nothing to it.
        let other = lease.step(grant(12, 11, 1), at(16)).0;
        assert_eq!(other.step(grant(16, 1, 1), at(16)).0, other);
    }

    #[test]
    fn a_late_success_of_an_old_proof_does_not_renew() {
        let active = granted(Lease::new(TERMS), 1, 2);
        let denied = active.step(Verdict::Denied, at(3)).0;
        let (after, actions) = denied.step(grant(2, 2, active.epoch()), at(4));
        assert_eq!((after, actions), (denied, Actions::default()));
        // Nor one that was asked between two denials.
        let twice = denied.step(Verdict::Denied, at(5)).0;
        let (after, _) = twice.step(grant(4, 4, denied.epoch()), at(6));
        assert_eq!(after, twice);
    }

    #[test]
    fn a_denial_from_before_this_process_stays_until_a_proof() {
        let lease = Lease::denied_before(TERMS, at(1));
        let lease = lease.step(Verdict::Unreachable, at(2)).0.step(Verdict::Nothing, at(100)).0;
        assert_eq!(name(lease.phase()), "denied");
        assert_eq!(name(granted(lease, 101, 102).phase()), "resuming");
    }

    /// Walks every schedule of up to [`DEPTH`] steps, with every verdict, proofs asked in any earlier state of the
    /// schedule, and time that stands still, moves a little or jumps beyond grace (a suspend), and checks on each
    /// step what the promises say. Time is kept relative, so that states are finitely many.
    #[test]
    fn no_schedule_breaks_a_promise() {
        // A step more is three times the states; optimised they take a tenth.
        const DEPTH: usize = if cfg!(debug_assertions) { 6 } else { 8 };
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        struct World {
            lease: Lease,
            now: u64,
            /// When the token's context was initialised.
            context: u64,
            /// A proof under way: asked when, in which context and epoch.
            asked: Option<(u64, u64, u64)>,
            /// The token would have denied at some instant since the last proof was asked.
            denial_seen: bool,
            usable_until: u64,
        }
        let lease = Lease::new(TERMS);
        let start = World { lease, now: 1, context: 1, asked: None, denial_seen: false, usable_until: 0 };
        let mut seen = HashSet::from([start]);
        let mut queue = VecDeque::from([(start, 0)]);
        while let Some((world, depth)) = queue.pop_front() {
            if depth == DEPTH {
                continue;
            }
            let mut next = Vec::new();
            for elapsed in [0, 4, 11] {
                let now = world.now + elapsed;
                let World { lease, asked, .. } = world;
                next.push(World { now, asked: Some((now, world.context, lease.epoch())), ..world });
                next.push(World { now, context: now, ..world });
                let mut verdicts = vec![Verdict::Denied, Verdict::Unreachable, Verdict::Nothing];
                verdicts.push(Verdict::AllBack { epoch: lease.epoch() });
                verdicts.extend(asked.map(|(asked, context, epoch)| grant(asked, context, epoch)));
                for verdict in verdicts {
                    let (after, actions) = lease.step(verdict, at(now));
                    let mut new = World { lease: after, now, ..world };
                    let usable = after.end() > at(now);
                    // Promise 1: usable only within grace of a proof, and of a fresh one and its span; and never after a denial
                    // without a newer proof.
                    let within = |asked: u64, context: u64| asked + 10 > now && context + 6 + 10 > now;
                    match verdict {
                        Verdict::Denied => {
                            new.denial_seen = true;
                            assert!(!usable && actions.wipe);
                        }
                        Verdict::Granted { asked, context, epoch } if after.end() > lease.end() => {
                            let (asked, context) = (asked.as_nanos(), context.as_nanos());
                            assert!(epoch == lease.epoch() && within(asked, context));
                            new.denial_seen = false;
                            new.usable_until = (asked + 10).min(context + 6 + 10);
                        }
                        _ => {}
                    }
                    assert!(!usable || !new.denial_seen, "usable after a denial: {lease:?} {verdict:?}");
                    assert!(
                        after.end().as_nanos() <= new.usable_until,
                        "renewed without a proof: {lease:?} {verdict:?}"
                    );
                    // Promise 3: an outage takes nothing away before the end.
                    if verdict == Verdict::Unreachable && lease.end() > at(now) {
                        assert!(after.end() == lease.end() && !actions.wipe);
                    }
                    // Promise 4: denied stays denied but for a proof of its epoch.
                    if matches!(lease.phase(), Phase::Denied { .. }) && !matches!(after.phase(), Phase::Denied { .. }) {
                        assert!(matches!(verdict, Verdict::Granted { epoch, .. } if epoch == lease.epoch()));
                    }
                    // An epoch ends with every loss of the key, and only then are slots wiped.
                    assert_eq!(after.epoch() > lease.epoch(), actions.wipe);
                    next.push(new);
                }
            }
            for world in next {
                if seen.insert(world) {
                    queue.push_back((world, depth + 1));
                }
            }
        }
        println!("{} states, depth {DEPTH}", seen.len());
        assert!(seen.len() > 10_000, "the search did not search");
    }
}
