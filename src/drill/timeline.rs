//! What happened when: operations per interval, runs per account, phases of the lease, acts. Written while a drill runs, read
//! when it is over.

use super::outcome::{Outcome, Outcomes, Run, append};
use crate::clock::{Clock, Instant};
use std::{
    collections::BTreeSet,
    ops::RangeBounds,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Runs that are kept per account; what flaps more often than that is counted, not kept, and the account said not to work.
pub(crate) const RUNS_MAX: usize = 10_000;

/// A load thread that is without a success for less is not said to be.
pub(crate) const GAP_MIN: Duration = Duration::from_millis(10);

/// An act on the token or on the process, and what an operator would call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Act {
    /// `act` takes the key away, `undoing` gives it back, `step` is anything else.
    pub(crate) kind: &'static str,
    pub(crate) what: String,
    /// Just before it was done …
    pub(crate) at: Instant,
    /// … and how much later it was done for certain.
    pub(crate) took: Duration,
}

/// Which lease it is: there is one for each KEK version in use, and in each process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LeaseOf {
    /// Of this version of the KEK.
    KekVersion(u32),
    /// In this process of several, the first of which is 1.
    Node(u32),
}

/// The lease from an instant on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaseSample {
    pub(crate) at: Instant,
    pub(crate) of: LeaseOf,
    /// As `keyleash status` names it; `none` while no process runs, `stopped` while it stands still, `gone` when no account is under it any more.
    pub(crate) phase: String,
    /// AEKs in memory.
    pub(crate) aeks: usize,
}

/// A block that the load sealed: the AEK version that its header names, and when its seal began, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) aek_version: u32,
    pub(crate) from: u64,
}

/// Everything that was recorded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timeline {
    pub(crate) origin: Instant,
    pub(crate) interval: Duration,
    pub(crate) end: Instant,
    /// Operations per interval and outcome.
    pub(crate) intervals: Vec<[u64; Outcome::COUNT]>,
    /// Per account, oldest first.
    pub(crate) runs: Vec<Vec<Run>>,
    pub(crate) lease: Vec<LeaseSample>,
    pub(crate) acts: Vec<Act>,
    /// Operations whose outcome was not right at their time.
    pub(crate) wrong: [u64; Outcome::COUNT],
    /// The first of them, in words.
    pub(crate) wrong_example: Option<String>,
    /// Bytes that were held against what went in, …
    pub(crate) compared_bytes: u64,
    /// … and those that came out other.
    pub(crate) unverified_bytes: u64,
    /// Accounts whose load thread was still in an operation after the end.
    pub(crate) stuck: Vec<usize>,
    /// Operations that waited for an unwrap of their own.
    pub(crate) warmed: u64,
    /// The longest that an operation took; zero where nobody timed each.
    pub(crate) longest: Duration,
    /// The newest block that each account sealed; `None` where nobody looked.
    pub(crate) sealed: Vec<Option<Sealed>>,
    /// From when to when (in nanoseconds) a load thread was without a success, where it was so for [`GAP_MIN`].
    pub(crate) gaps: Vec<(u64, u64)>,
    /// When each load thread last succeeded.
    pub(crate) succeeded_at: Vec<u64>,
    /// When a thread that only looks at the clock ran again, and for how long the machine had kept it from that.
    pub(crate) late: Vec<(Instant, Duration)>,
    /// Places of the service's memory in which an AEK or a round key of one stood: before the act, and when all was refused.
    pub(crate) keys_before: Option<u64>,
    pub(crate) keys_left: Option<u64>,
    /// What is right from an instant (in nanoseconds) on.
    pub(crate) expected: Vec<(u64, Outcomes)>,
}

impl Timeline {
    /// When the key was first taken away.
    pub(crate) fn act(&self) -> Option<Instant> {
        self.taking().map(|act| act.at)
    }

    pub(crate) fn taking(&self) -> Option<&Act> {
        self.acts.iter().find(|act| act.kind == "act")
    }

    /// When it was last given back.
    pub(crate) fn undoing(&self) -> Option<Instant> {
        self.giving().map(|act| act.at)
    }

    pub(crate) fn giving(&self) -> Option<&Act> {
        self.acts.iter().rev().find(|act| act.kind == "undoing")
    }

    /// The leases that there were, in their order.
    pub(crate) fn leases(&self) -> Vec<LeaseOf> {
        let leases: BTreeSet<_> = self.lease.iter().map(|sample| sample.of).collect();
        leases.into_iter().collect()
    }

    /// What was told of a lease, the newest last.
    pub(crate) fn samples(&self, of: LeaseOf) -> impl DoubleEndedIterator<Item = &LeaseSample> {
        self.lease.iter().filter(move |sample| sample.of == of)
    }

    fn newest(&self) -> impl Iterator<Item = &LeaseSample> {
        self.leases().into_iter().filter_map(|of| self.samples(of).next_back())
    }

    pub(crate) fn operations(&self, outcome: Outcome) -> u64 {
        self.intervals.iter().filter_map(|counts| counts.get(outcome as usize)).sum()
    }

    /// For how long the machine itself stood still between two instants, as far as a thread saw that does nothing.
    pub(crate) fn late_between(&self, from: Instant, to: Instant) -> Duration {
        let overlap = |(at, late): &(Instant, Duration)| {
            let began = Instant::from_nanos(at.as_nanos().saturating_sub(Duration::as_nanos(late) as u64));
            (*at).min(to).since(began.max(from))
        };
        self.late.iter().map(overlap).sum()
    }

    /// Right is what was expected at any time that an operation touches, from when to when (in nanoseconds).
    fn is_right(&self, outcome: Outcome, began: u64, ended: u64) -> bool {
        let mut right = Outcomes::default();
        for (index, (from, outcomes)) in self.expected.iter().enumerate() {
            let until = self.expected.get(index + 1).map_or(u64::MAX, |next| next.0);
            if *from <= ended && until >= began {
                right = right.with(*outcomes);
            }
        }
        right.has(outcome)
    }

    fn count(&mut self, account: usize, run: Run) {
        let since = Instant::from_nanos(run.to).since(self.origin).as_nanos();
        let index = usize::try_from(since / self.interval.as_nanos().max(1)).unwrap_or(usize::MAX);
        // A day of the shortest intervals; a clock that jumps does not take all memory.
        if index < 1_000_000 {
            if self.intervals.len() <= index {
                self.intervals.resize(index + 1, [0; Outcome::COUNT]);
            }
            if let Some(count) = self.intervals.get_mut(index).and_then(|counts| counts.get_mut(run.outcome as usize)) {
                *count += run.count;
            }
        }
        // The first apart: one that was held up for long does not speak for those behind it.
        let parts = [(run.from, run.first, 1), (run.first, run.to, run.count.saturating_sub(1))];
        for (began, ended, count) in parts {
            if !self.is_right(run.outcome, began, ended)
                && let Some(wrong) = self.wrong.get_mut(run.outcome as usize)
            {
                *wrong += count;
            }
        }
        if let Some(runs) = self.runs.get_mut(account)
            && runs.len() < RUNS_MAX
        {
            append(runs, run);
        }
    }
}

/// Where the load tells what it learned.
pub(crate) trait Listener: Send + Sync {
    fn absorb(&self, chunk: Chunk);
}

/// The pen: shared by all who write a timeline.
#[derive(Debug)]
pub(crate) struct Recorder(Mutex<Timeline>);

/// What a load thread learned since it last told.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    /// Account and run, in the order of time per account.
    pub(crate) runs: Vec<(usize, Run)>,
    pub(crate) compared_bytes: u64,
    pub(crate) unverified_bytes: u64,
    pub(crate) warmed: u64,
    pub(crate) longest: Duration,
    /// Account and newest block.
    pub(crate) sealed: Vec<(usize, Sealed)>,
    pub(crate) gaps: Vec<(u64, u64)>,
    /// Which load thread tells, and when an operation of its last succeeded.
    pub(crate) thread: Option<(usize, u64)>,
    /// Outcome and words of a refusal, one of each kind.
    pub(crate) examples: Vec<(Outcome, String)>,
}

impl Recorder {
    pub(crate) fn new(origin: Instant, interval: Duration, accounts: usize) -> Self {
        let (runs, sealed) = (vec![Vec::new(); accounts], vec![None; accounts]);
        Self(Mutex::new(Timeline { origin, interval, runs, sealed, ..Timeline::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, Timeline> {
        // Counters are whole after every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From `at` on these outcomes are right, and no other.
    pub(crate) fn expect(&self, at: Instant, outcomes: Outcomes) {
        self.lock().expected.push((at.as_nanos(), outcomes));
    }

    pub(crate) fn act(&self, kind: &'static str, what: impl Into<String>, at: Instant) {
        let took = Clock::default().now().since(at);
        self.lock().acts.push(Act { kind, what: what.into(), at, took });
    }

    /// The machine kept a thread from running for so long, until `at`.
    pub(crate) fn late(&self, at: Instant, late: Duration) {
        self.lock().late.push((at, late));
    }

    /// What a search of the memory found before the act …
    pub(crate) fn keys_before(&self, found: u64) {
        self.lock().keys_before = Some(found);
    }

    /// … and when all was refused.
    pub(crate) fn keys_left(&self, found: u64) {
        self.lock().keys_left = Some(found);
    }

    /// Accounts whose load thread did not end.
    pub(crate) fn stuck(&self, accounts: Vec<usize>) {
        self.lock().stuck = accounts;
    }

    /// The newest block that each account sealed.
    pub(crate) fn sealed(&self) -> Vec<Option<Sealed>> {
        self.lock().sealed.clone()
    }

    /// AEKs in memory, by what was last told of each lease.
    pub(crate) fn aeks(&self) -> usize {
        self.lock().newest().map(|sample| sample.aeks).sum()
    }

    pub(crate) fn lease(&self, at: Instant, of: LeaseOf, phase: &str, aeks: usize) {
        let mut timeline = self.lock();
        let last = timeline.samples(of).next_back();
        if last.is_none_or(|last| last.phase != phase || last.aeks != aeks) {
            timeline.lease.push(LeaseSample { at, of, phase: phase.into(), aeks });
        }
    }

    /// The process of a lease does nothing from `at` on, and what it has in memory stays there.
    pub(crate) fn stopped(&self, at: Instant, of: LeaseOf) {
        let aeks = self.lock().samples(of).next_back().map_or(0, |sample| sample.aeks);
        self.lease(at, of, "stopped", aeks);
    }

    /// The leases that there are; those that were told before and are not among them are gone.
    pub(crate) fn leases(&self, at: Instant, leases: &[(u32, &str, usize)]) {
        let told = self.lock().leases();
        for of in told {
            if leases.iter().all(|(there, ..)| LeaseOf::KekVersion(*there) != of) {
                self.lease(at, of, "gone", 0);
            }
        }
        leases.iter().for_each(|(version, phase, aeks)| self.lease(at, LeaseOf::KekVersion(*version), phase, *aeks));
    }

    /// True when the newest operation of every account came out like this, and began after `since`.
    pub(crate) fn all_are(&self, outcome: Outcome, since: Instant) -> bool {
        self.some_are(.., outcome, since)
    }

    /// The same of the accounts with these numbers.
    pub(crate) fn some_are(&self, numbers: impl RangeBounds<usize>, outcome: Outcome, since: Instant) -> bool {
        let timeline = self.lock();
        let mut some = timeline.runs.iter().enumerate().filter(|(number, _)| numbers.contains(number));
        some.all(|(_, runs)| {
            runs.last().is_some_and(|last| {
                last.outcome == outcome && last.to > since.as_nanos() && {
                    // One that began before may still end well.
                    last.from >= since.as_nanos() || last.count > 1
                }
            })
        })
    }

    /// True when every lease is active, of those that there are.
    pub(crate) fn is_active(&self) -> bool {
        let timeline = self.lock();
        let mut there = timeline.newest().filter(|sample| sample.phase != "gone").peekable();
        there.peek().is_some() && there.all(|sample| sample.phase == "active")
    }

    /// What was recorded until `end`.
    pub(crate) fn read(&self, end: Instant) -> Timeline {
        let mut timeline = Timeline { end, ..self.lock().clone() };
        let open = timeline.succeeded_at.iter().map(|from| (*from, end.as_nanos()));
        let open: Vec<_> =
            open.filter(|(from, to)| u128::from(to.saturating_sub(*from)) >= GAP_MIN.as_nanos()).collect();
        timeline.gaps.extend(open);
        timeline
    }
}

impl Listener for Recorder {
    fn absorb(&self, chunk: Chunk) {
        let mut timeline = self.lock();
        timeline.compared_bytes += chunk.compared_bytes;
        timeline.unverified_bytes += chunk.unverified_bytes;
        timeline.warmed += chunk.warmed;
        timeline.longest = timeline.longest.max(chunk.longest);
        timeline.gaps.extend(chunk.gaps);
        if let Some((thread, succeeded_at)) = chunk.thread {
            let threads = timeline.succeeded_at.len().max(thread + 1);
            timeline.succeeded_at.resize(threads, succeeded_at);
            timeline.succeeded_at.get_mut(thread).into_iter().for_each(|at| *at = succeeded_at);
        }
        for (account, newest) in chunk.sealed {
            timeline.sealed.get_mut(account).into_iter().for_each(|sealed| *sealed = Some(newest));
        }
        let wrong_before = timeline.wrong;
        chunk.runs.into_iter().for_each(|(account, run)| timeline.count(account, run));
        if timeline.wrong_example.is_none() {
            let is_new = |outcome: Outcome| timeline.wrong.get(outcome as usize) != wrong_before.get(outcome as usize);
            timeline.wrong_example =
                chunk.examples.into_iter().find(|(outcome, _)| is_new(*outcome)).map(|(_, words)| words);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder() -> Recorder {
        let recorder = Recorder::new(Instant::default(), Duration::from_nanos(10), 1);
        recorder.expect(Instant::default(), Outcomes::of(&[Outcome::Ok]));
        recorder
    }

    fn run(outcome: Outcome, from: u64, to: u64) -> Chunk {
        Chunk { runs: vec![(0, Run::one(outcome, from, to))], ..Chunk::default() }
    }

    #[test]
    fn an_outcome_is_right_when_it_was_expected_at_any_time_it_touches() {
        let recorder = recorder();
        recorder.expect(Instant::from_nanos(20), Outcomes::of(&[Outcome::Denied]));
        recorder.absorb(run(Outcome::Denied, 5, 9));
        recorder.absorb(run(Outcome::Ok, 19, 25));
        recorder.absorb(run(Outcome::Ok, 21, 25));
        recorder.absorb(run(Outcome::Denied, 26, 27));
        let timeline = recorder.read(Instant::from_nanos(30));
        assert_eq!(timeline.wrong, [1, 1, 0, 0, 0, 0, 0]);
        assert_eq!(timeline.intervals[0][Outcome::Denied as usize], 1);
        assert_eq!(timeline.intervals[2][Outcome::Ok as usize], 2);
    }

    #[test]
    fn one_that_was_held_up_from_before_an_act_does_not_make_those_behind_it_right() {
        let recorder = recorder();
        recorder.expect(Instant::from_nanos(20), Outcomes::of(&[Outcome::Denied]));
        let run = Run { outcome: Outcome::Ok, from: 19, first: 25, to: 40, count: 5 };
        recorder.absorb(Chunk { runs: vec![(0, run)], ..Chunk::default() });
        assert_eq!(recorder.read(Instant::from_nanos(50)).wrong[Outcome::Ok as usize], 4);
    }

    #[test]
    fn a_lease_that_is_not_told_any_more_is_gone() {
        let recorder = recorder();
        recorder.leases(Instant::from_nanos(1), &[(1, "active", 5)]);
        recorder.leases(Instant::from_nanos(2), &[(1, "active", 3), (2, "active", 2)]);
        recorder.leases(Instant::from_nanos(3), &[(2, "active", 5)]);
        recorder.leases(Instant::from_nanos(4), &[(2, "active", 5)]);
        let told = recorder.read(Instant::from_nanos(5)).lease;
        let told: Vec<_> = told.iter().map(|sample| (sample.of, &*sample.phase, sample.aeks)).collect();
        let [one, two] = [1, 2].map(LeaseOf::KekVersion);
        assert_eq!(
            told,
            [(one, "active", 5), (one, "active", 3), (two, "active", 2), (one, "gone", 0), (two, "active", 5)]
        );
    }

    #[test]
    fn a_thread_that_does_not_come_back_is_without_a_success_until_the_end() {
        let recorder = recorder();
        let ms = |ms: u64| ms * 1_000_000;
        let told = |thread, at| Chunk { thread: Some((thread, ms(at))), ..Chunk::default() };
        recorder.absorb(told(1, 1));
        recorder.absorb(told(0, 1));
        recorder.absorb(Chunk { gaps: vec![(ms(1), ms(20))], ..told(1, 2000) });
        let gaps = recorder.read(Instant::from_nanos(ms(2001))).gaps;
        assert_eq!(gaps, [(ms(1), ms(20)), (ms(1), ms(2001))]);
    }

    #[test]
    fn the_machine_was_late_for_the_part_that_lies_between() {
        let recorder = recorder();
        recorder.late(Instant::from_nanos(100), Duration::from_nanos(50));
        recorder.late(Instant::from_nanos(300), Duration::from_nanos(50));
        let timeline = recorder.read(Instant::from_nanos(400));
        let between = |from, to| timeline.late_between(Instant::from_nanos(from), Instant::from_nanos(to)).as_nanos();
        assert_eq!([between(0, 400), between(80, 290), between(100, 250), between(260, 270)], [100, 60, 0, 10]);
    }

    #[test]
    fn runs_are_joined_and_the_newest_counts() {
        let recorder = recorder();
        recorder.absorb(run(Outcome::Ok, 1, 2));
        recorder.absorb(run(Outcome::Ok, 3, 4));
        recorder.absorb(run(Outcome::Denied, 5, 6));
        let timeline = recorder.read(Instant::from_nanos(7));
        assert_eq!(timeline.runs[0].len(), 2);
        assert_eq!((timeline.runs[0][0].first, timeline.runs[0][0].to, timeline.runs[0][0].count), (2, 4, 2));
        assert!(recorder.all_are(Outcome::Denied, Instant::from_nanos(5)));
        assert!(!recorder.all_are(Outcome::Denied, Instant::from_nanos(6)));
        assert!(!recorder.all_are(Outcome::Ok, Instant::default()));
    }
}
