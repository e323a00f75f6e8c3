//! Who enters the module next: proofs first, and one worker of several is theirs alone.
//!
//! No thread and no clock of its own: the workers of a real module and those of the scripted token keep the same order by it, so
//! that what is simulated is what runs.

use crate::clock::Instant;
use std::{collections::VecDeque, time::Duration};

/// A call that is no proof waits for its turn for so many `call_timeout`s at most. One engine has at most 16 of them under way, so a
/// token whose calls take less than half of `call_timeout` is never too busy for any.
pub(super) const PATIENCE: u32 = 8;

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Of a lease, and what must come before it.
    Proof,
    /// An AEK that is no proof's.
    Unwrap,
    /// All else.
    Other,
}

struct Waiting<J> {
    job: J,
    lane: Lane,
    since: Instant,
}

/// Those that wait to enter, and what is known of those that did.
pub(super) struct Line<J> {
    call_timeout: Duration,
    proofs: VecDeque<Waiting<J>>,
    others: VecDeque<Waiting<J>>,
    /// Calls in the module that are no proofs and were not given up.
    others_inside: usize,
    /// Calls that hang, and are neither proofs nor unwraps.
    others_hung: usize,
    /// As many of these may hang.
    others_hung_max: usize,
    /// When a call last came back.
    answered: Instant,
}

impl<J> Line<J> {
    /// To workers of which `hung_max` may hang before one is missed.
    pub(super) fn new(call_timeout: Duration, hung_max: usize) -> Self {
        Self {
            call_timeout,
            proofs: VecDeque::new(),
            others: VecDeque::new(),
            others_inside: 0,
            others_hung: 0,
            others_hung_max: (hung_max / 2).max(1),
            answered: Instant::default(),
        }
    }

    /// False while so many calls hang that are neither proofs nor unwraps that another one like them is not risked: a token on which
    /// they all hang would take one worker after the other, and in the end those that keep the leases.
    pub(super) fn takes(&self, lane: Lane) -> bool {
        lane != Lane::Other || self.others_hung < self.others_hung_max
    }

    /// How long a call waits for its turn. A proof for a `call_timeout`: it waits for other proofs alone, or where there is one
    /// worker for what that is at.
    pub(super) fn patience(&self, lane: Lane) -> Duration {
        match lane {
            Lane::Proof => self.call_timeout,
            Lane::Unwrap | Lane::Other => self.call_timeout.saturating_mul(PATIENCE),
        }
    }

    /// A call that came at `since`.
    pub(super) fn join(&mut self, lane: Lane, since: Instant, job: J) {
        let queue = match lane {
            Lane::Proof => &mut self.proofs,
            Lane::Unwrap | Lane::Other => &mut self.others,
        };
        queue.push_back(Waiting { job, lane, since });
    }

    /// True when somebody waits whom one of `alive` workers that is free may take.
    pub(super) fn has_turn(&self, alive: usize) -> bool {
        !self.proofs.is_empty() || !self.others.is_empty() && self.others_inside < alive.saturating_sub(1).max(1)
    }

    /// The call whose turn it is at one of `alive` workers.
    pub(super) fn enter(&mut self, alive: usize) -> Option<(Lane, J)> {
        if !self.has_turn(alive) {
            return None;
        }
        if let Some(proof) = self.proofs.pop_front() {
            return Some((Lane::Proof, proof.job));
        }
        let other = self.others.pop_front()?;
        self.others_inside += 1;
        Some((other.lane, other.job))
    }

    /// A call that entered is not made after all.
    pub(super) fn turn_back(&mut self, lane: Lane) {
        self.forget(lane);
    }

    /// A call came back that had not been given up.
    pub(super) fn leave(&mut self, lane: Lane, now: Instant) {
        self.answered = now;
        self.forget(lane);
    }

    /// A call came back that had been given up.
    pub(super) fn come_back(&mut self, lane: Lane, now: Instant) {
        self.answered = now;
        self.others_hung -= usize::from(lane == Lane::Other).min(self.others_hung);
    }

    /// A call that entered then is given up: it hangs. Gives those that waited as long as it did while nothing else came back
    /// either: that is a token which does not answer, for them as well. One that is only slow answers somebody.
    pub(super) fn give_up(&mut self, lane: Lane, entered: Instant) -> Vec<J> {
        self.forget(lane);
        self.others_hung += usize::from(lane == Lane::Other);
        if self.answered > entered {
            return Vec::new();
        }
        let mut silenced = Vec::new();
        for queue in [&mut self.proofs, &mut self.others] {
            silenced.extend(take_while(queue, |since| since <= entered));
        }
        silenced
    }

    fn forget(&mut self, lane: Lane) {
        if lane != Lane::Proof {
            self.others_inside = self.others_inside.saturating_sub(1);
        }
    }

    /// Those that waited too long, though calls came back.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<J> {
        let patience = [self.patience(Lane::Proof), self.patience(Lane::Other)];
        let mut overdue = Vec::new();
        for (queue, patience) in [&mut self.proofs, &mut self.others].into_iter().zip(patience) {
            overdue.extend(take_while(queue, |since| since.plus(patience) <= now));
        }
        overdue
    }

    /// When the next of them has waited too long.
    pub(super) fn next_overdue(&self) -> Option<Instant> {
        let first =
            |queue: &VecDeque<Waiting<J>>, lane| queue.front().map(|waiting| waiting.since.plus(self.patience(lane)));
        first(&self.proofs, Lane::Proof).into_iter().chain(first(&self.others, Lane::Other)).min()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.proofs.is_empty() && self.others.is_empty()
    }

    /// All of them: nobody is left to take any.
    pub(super) fn clear(&mut self) -> Vec<J> {
        self.proofs.drain(..).chain(self.others.drain(..)).map(|waiting| waiting.job).collect()
    }
}

/// The first of a queue, for as long as they came at such a time.
fn take_while<J>(queue: &mut VecDeque<Waiting<J>>, came: impl Fn(Instant) -> bool) -> impl Iterator<Item = J> {
    std::iter::from_fn(move || {
        let is_due = queue.front().is_some_and(|waiting| came(waiting.since));
        if is_due { queue.pop_front().map(|waiting| waiting.job) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn at(second: u64) -> Instant {
        Instant::from_nanos(second * 1_000_000_000)
    }

    /// Numbers below 100 are proofs.
    fn line(waiting: &[(u64, u32)]) -> Line<u32> {
        let mut line = Line::new(TIMEOUT, 8);
        for (second, job) in waiting {
            line.join(if *job < 100 { Lane::Proof } else { Lane::Other }, at(*second), *job);
        }
        line
    }

    fn enter(line: &mut Line<u32>, alive: usize) -> Option<u32> {
        line.enter(alive).map(|(_, job)| job)
    }

    #[test]
    fn a_proof_overtakes_all_that_waits_and_proofs_keep_their_order() {
        let mut line = line(&[(1, 100), (1, 101), (2, 1), (3, 2)]);
        let order: Vec<_> = std::iter::from_fn(|| {
            let (lane, job) = line.enter(1)?;
            line.leave(lane, at(4));
            Some(job)
        })
        .collect();
        assert_eq!(order, [1, 2, 100, 101]);
    }

    #[test]
    fn of_several_workers_the_last_is_for_proofs_alone() {
        for alive in [2, 3, 17] {
            let mut line = line(&[(1, 100); 20]);
            let mut entered = 0;
            while line.enter(alive).is_some() {
                entered += 1;
            }
            assert_eq!(entered, alive - 1);
            assert!(!line.has_turn(alive));
            line.join(Lane::Proof, at(2), 1);
            assert_eq!(enter(&mut line, alive), Some(1));
            line.leave(Lane::Proof, at(3));
            assert_eq!(enter(&mut line, alive), None);
            line.leave(Lane::Other, at(3));
            assert_eq!(enter(&mut line, alive), Some(100));
        }
    }

    #[test]
    fn a_single_worker_takes_all_one_after_the_other() {
        let mut line = line(&[(1, 100), (1, 101)]);
        assert_eq!(enter(&mut line, 1), Some(100));
        assert_eq!(enter(&mut line, 1), None);
        line.give_up(Lane::Other, at(1));
        line.join(Lane::Other, at(7), 102);
        assert_eq!(enter(&mut line, 1), Some(102), "what hangs takes nobody's turn");
    }

    #[test]
    fn calls_that_hang_and_are_no_unwraps_take_half_of_what_may_hang() {
        for (hung_max, may_hang) in [(0, 1), (1, 1), (2, 1), (8, 4), (64, 32)] {
            let mut line: Line<u32> = Line::new(TIMEOUT, hung_max);
            for lane in [Lane::Proof, Lane::Unwrap].into_iter().cycle().take(100) {
                line.give_up(lane, at(1));
            }
            for _ in 0..may_hang {
                assert!(line.takes(Lane::Other));
                line.give_up(Lane::Other, at(1));
            }
            assert!(!line.takes(Lane::Other) && line.takes(Lane::Unwrap) && line.takes(Lane::Proof));
            line.come_back(Lane::Unwrap, at(2));
            assert!(!line.takes(Lane::Other));
            line.come_back(Lane::Other, at(2));
            assert!(line.takes(Lane::Other));
        }
    }

    #[test]
    fn who_waits_too_long_at_a_token_that_answers_is_told_so_each_in_its_time() {
        let mut line = line(&[(1, 100), (2, 1), (10, 101)]);
        assert_eq!(line.next_overdue(), Some(at(7)));
        assert!(line.overdue(at(6)).is_empty());
        assert_eq!(line.overdue(at(7)), [1]);
        assert_eq!(line.next_overdue(), Some(at(41)));
        assert_eq!(line.overdue(at(41)), [100]);
        assert_eq!(line.overdue(at(50)), [101]);
        assert!(line.is_empty() && line.next_overdue().is_none());
    }

    #[test]
    fn a_token_that_answers_nobody_is_silent_for_those_that_waited_as_long_too() {
        let waiting = [(1, 1), (2, 2), (1, 100), (3, 101)];
        assert_eq!(line(&waiting).give_up(Lane::Other, at(1)), [1, 100]);
        let mut answering = line(&waiting);
        answering.leave(Lane::Proof, at(3));
        assert!(answering.give_up(Lane::Other, at(1)).is_empty(), "it is slow, and answers");
        assert_eq!(answering.clear(), [1, 2, 100, 101]);
    }
}
