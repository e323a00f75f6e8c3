//! The lease of one KEK version: a pure state machine. No I/O, no clock, no locks.
//!
//! Time comes in as an argument, what is to be done goes out as a value. A lease is renewed by a proof alone,
//! and a proof counts from the instant at which it was *asked*, because the token may have decided then.
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
use std::time::Duration;

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

/// What was learned from the token, or that nothing was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// A proof: a real wrapped AEK was unwrapped.
    Granted {
        /// When the token was asked.
        asked: Instant,
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

/// A lease. Compare `now` with [`Lease::end`]: from that instant on nothing may be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    phase: Phase,
    /// Counts denials and lapses, from 1.
    epoch: u64,
    /// When the newest proof of this epoch was asked; `None` before the first and after a denial or lapse.
    proved: Option<Instant>,
    grace: Duration,
}

impl Lease {
    /// A lease without a proof, under which nothing may be used.
    pub const fn new(grace: Duration) -> Self {
        Self { phase: Phase::Unproven, epoch: 1, proved: None, grace }
    }

    /// A lease that was denied before this process started: it stays so until a proof.
    pub const fn denied_before(grace: Duration, now: Instant) -> Self {
        Self { phase: Phase::Denied { since: now }, epoch: 1, proved: None, grace }
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
    pub const fn proved(&self) -> Option<Instant> {
        self.proved
    }

    /// The first instant at which nothing may be used any more: grace after the newest proof was asked.
    /// Boot, when there is no proof.
    pub fn end(&self) -> Instant {
        self.proved.map_or(Instant::default(), |proved| proved.plus(self.grace))
    }

    /// How long it lasts after a proof.
    pub const fn grace(&self) -> Duration {
        self.grace
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
            Verdict::Granted { asked, epoch } => lease.granted(asked, epoch, now),
            Verdict::Denied => lease.denied(now),
            Verdict::Unreachable => lease.unreachable(now),
            Verdict::AllBack { epoch } => lease.all_back(epoch),
        };
        let change = actions.change.or(lapse.change);
        (lease, Actions { wipe: actions.wipe || lapse.wipe, resume: actions.resume, change })
    }

    fn lapse_if_ended(mut self, now: Instant) -> (Self, Actions) {
        if self.proved.is_none() || now < self.end() {
            return (self, Actions::default());
        }
        self.phase = Phase::Lapsed { since: self.end() };
        self.proved = None;
        self.epoch += 1;
        (self, Actions { wipe: true, change: Some(Change::Lapsed), ..Actions::default() })
    }

    fn granted(mut self, asked: Instant, epoch: u64, now: Instant) -> (Self, Actions) {
        // Asked before a denial or lapse, or so long ago that its lease is over: proves nothing about now.
        if epoch != self.epoch || asked > now || asked.plus(self.grace) <= now {
            return (self, Actions::default());
        }
        self.proved = self.proved.max(Some(asked));
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
        self.proved = None;
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

    fn at(ns: u64) -> Instant {
        Instant::from_nanos(ns)
    }

    fn granted(lease: Lease, asked: u64, now: u64) -> Lease {
        lease.step(Verdict::Granted { asked: at(asked), epoch: lease.epoch() }, at(now)).0
    }

    /// One lease in each phase, as of instant 5 (the lapsed one ended earlier).
    fn one_of_each() -> Vec<Lease> {
        let new = Lease::new(GRACE);
        let active = granted(new, 1, 2);
        let grace = active.step(Verdict::Unreachable, at(3)).0;
        let denied = active.step(Verdict::Denied, at(3)).0;
        let lapsed = Lease { grace: Duration::from_nanos(2), ..active }.step(Verdict::Nothing, at(4)).0;
        let lapsed = Lease { grace: GRACE, ..lapsed };
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
                Verdict::Granted { asked: at(6), epoch },
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
    fn every_phase_with_a_proof_lapses_at_its_end_whatever_arrives_then() {
        for lease in one_of_each().into_iter().filter(|lease| lease.proved().is_some()) {
            let epoch = lease.epoch();
            let end = lease.end();
            for verdict in [
                Verdict::Nothing,
                Verdict::Unreachable,
                Verdict::Granted { asked: at(end.as_nanos() - 1), epoch },
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
        let lease = granted(Lease::new(GRACE), 3, 9);
        assert_eq!(lease.end(), at(13));
        assert_eq!(granted(lease, 2, 9).end(), at(13), "an older proof takes nothing away");
        assert_eq!(name(granted(Lease::new(GRACE), 1, 11).phase()), "unproven", "its lease would be over");
    }

    #[test]
    fn a_late_success_of_an_old_proof_does_not_renew() {
        let active = granted(Lease::new(GRACE), 1, 2);
        let denied = active.step(Verdict::Denied, at(3)).0;
        let (after, actions) = denied.step(Verdict::Granted { asked: at(2), epoch: active.epoch() }, at(4));
        assert_eq!((after, actions), (denied, Actions::default()));
        // Nor one that was asked between two denials.
        let twice = denied.step(Verdict::Denied, at(5)).0;
        let (after, _) = twice.step(Verdict::Granted { asked: at(4), epoch: denied.epoch() }, at(6));
        assert_eq!(after, twice);
    }

    #[test]
    fn a_denial_from_before_this_process_stays_until_a_proof() {
        let lease = Lease::denied_before(GRACE, at(1));
        let lease = lease.step(Verdict::Unreachable, at(2)).0.step(Verdict::Nothing, at(100)).0;
        assert_eq!(name(lease.phase()), "denied");
        assert_eq!(name(granted(lease, 101, 102).phase()), "resuming");
    }

    /// Walks every schedule of up to [`DEPTH`] steps, with every verdict, proofs asked in any earlier state of the
    /// schedule, and time that stands still, moves a little or jumps beyond grace (a suspend), and checks on each
    /// step what the promises say. Time is kept relative, so that states are finitely many.
    #[test]
    fn no_schedule_breaks_a_promise() {
        const DEPTH: usize = 9;
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        struct World {
            lease: Lease,
            now: u64,
            /// A proof under way: asked when, in which epoch.
            asked: Option<(u64, u64)>,
            /// The token would have denied at some instant since the last proof was asked.
            denial_seen: bool,
            usable_until: u64,
        }
        let start = World { lease: Lease::new(GRACE), now: 1, asked: None, denial_seen: false, usable_until: 0 };
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
                next.push(World { now, asked: Some((now, lease.epoch())), ..world });
                let mut verdicts = vec![Verdict::Denied, Verdict::Unreachable, Verdict::Nothing];
                verdicts.push(Verdict::AllBack { epoch: lease.epoch() });
                verdicts.extend(asked.map(|(asked, epoch)| Verdict::Granted { asked: at(asked), epoch }));
                for verdict in verdicts {
                    let (after, actions) = lease.step(verdict, at(now));
                    let mut new = World { lease: after, now, ..world };
                    let usable = after.end() > at(now);
                    // Promise 1: usable only within grace of a proof, and never after a denial without a newer proof.
                    let within = |asked: u64| asked + 10 > now;
                    match verdict {
                        Verdict::Denied => {
                            new.denial_seen = true;
                            assert!(!usable && actions.wipe);
                        }
                        Verdict::Granted { asked, epoch }
                            if after.proved() != lease.proved() && after.proved().is_some() =>
                        {
                            assert!(epoch == lease.epoch() && within(asked.as_nanos()));
                            new.denial_seen = false;
                            new.usable_until = after.end().as_nanos();
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
