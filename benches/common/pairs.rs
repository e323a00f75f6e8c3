//! Ratios that a noisy machine leaves alone: the things that are compared take turns (A B, B A, A B, …) on the same buffers and
//! the same core, and a ratio is the median of the ratios of the rounds. Whatever slows the machine down for longer than a
//! round slows both. What runs on one thread is timed by the processor time of the thread, which stands still while somebody else
//! has the core; nothing that is measured so waits for anything.

use keyleash::clock::Clock;
use rustix::{
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};
use std::{sync::Barrier, time::Duration};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Rounds; each thing has one turn in each.
    pub(crate) rounds: usize,
    /// How long a turn lasts, about.
    pub(crate) turn: Duration,
}

impl Plan {
    /// For ratios that are published.
    pub(crate) const FULL: Self = Self { rounds: 31, turn: Duration::from_millis(8) };
    /// To see that it works: ratios may be off by some percent.
    pub(crate) const QUICK: Self = Self { rounds: 10, turn: Duration::from_millis(1) };
}

/// One of the things that are compared. `B` are the buffers that all of them work on.
pub(crate) struct Side<'a, B: ?Sized> {
    pub(crate) name: String,
    call: Box<dyn FnMut(&mut B) + Send + 'a>,
}

impl<'a, B: ?Sized> Side<'a, B> {
    pub(crate) fn new(name: impl Into<String>, call: impl FnMut(&mut B) + Send + 'a) -> Self {
        Self { name: name.into(), call: Box::new(call) }
    }

    /// One call of it.
    pub(crate) fn call(&mut self, buffers: &mut B) {
        (self.call)(buffers);
    }

    fn turn_ns(&mut self, calls: u64, buffers: &mut B) -> f64 {
        let start = thread_cpu();
        (0..calls).for_each(|_| (self.call)(buffers));
        thread_cpu().saturating_sub(start).as_nanos() as f64
    }

    /// Warms up, and finds how many calls fill a turn.
    fn calls_in(&mut self, turn: Duration, buffers: &mut B) -> u64 {
        let turn_ns = turn.as_nanos() as f64;
        let mut calls = 1;
        loop {
            let ns = self.turn_ns(calls, buffers);
            if ns >= turn_ns / 2.0 {
                return ((calls as f64 * turn_ns / ns) as u64).max(1);
            }
            calls *= 2;
        }
    }
}

/// Processor time of this thread so far.
pub(crate) fn thread_cpu() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().expect("the processor time of a thread")
}

/// Processor time of all threads of this process so far.
pub(crate) fn process_cpu() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().expect("the processor time of a process")
}

/// Nanoseconds of one call, for each thing and round.
#[derive(Debug, Clone)]
pub(crate) struct Rounds(Vec<Vec<f64>>);

/// A median, and the quartiles around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Spread {
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self { low: quantile(&values, 0.25), median: quantile(&values, 0.5), high: quantile(&values, 0.75) }
    }
}

/// A quantile of values that are sorted: the one in the middle of two where it falls between them.
pub(crate) fn quantile(sorted: &[f64], at: f64) -> f64 {
    let place = at * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

impl Rounds {
    /// From one measurement of each thing in each round, however it was made.
    pub(crate) fn from_ns(ns: Vec<Vec<f64>>) -> Self {
        Self(ns)
    }

    /// How many times as fast `side` is as `other`.
    pub(crate) fn ratio(&self, side: usize, other: usize) -> Spread {
        Spread::of(self.0[other].iter().zip(&self.0[side]).map(|(other, side)| other / side).collect())
    }

    /// The time of one call.
    pub(crate) fn ns(&self, side: usize) -> Spread {
        Spread::of(self.0[side].clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.first().map_or(0, Vec::len)
    }
}

/// Lets the things take turns. The order turns round with each round, so that nobody always follows the same one.
pub(crate) fn take_turns<B: ?Sized>(plan: Plan, sides: &mut [Side<'_, B>], buffers: &mut B) -> Rounds {
    let calls: Vec<u64> = sides.iter_mut().map(|side| side.calls_in(plan.turn, buffers)).collect();
    let mut ns = vec![Vec::with_capacity(plan.rounds); sides.len()];
    for round in 0..plan.rounds {
        let mut turn = |place: usize| {
            ns[place].push(sides[place].turn_ns(calls[place], buffers) / calls[place] as f64);
        };
        if round % 2 == 0 { (0..calls.len()).for_each(&mut turn) } else { (0..calls.len()).rev().for_each(&mut turn) }
    }
    Rounds(ns)
}

/// Lets things run at the same time, each with buffers of its own on a core of its own, `calls` times. Gives the time from the
/// first's begin to the last's end, in nanoseconds.
pub(crate) fn together_ns<B: Send>(calls: u64, works: &mut [(Side<'_, B>, B)]) -> f64 {
    let (start, cores) = (Barrier::new(works.len()), cores());
    let spans: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = works
            .iter_mut()
            .enumerate()
            .map(|(number, (side, buffers))| {
                let (start, core) = (&start, cores[cores.len() - 1 - number % cores.len()]);
                scope.spawn(move || {
                    let _pinned = Pinned::to(core);
                    let clock = Clock::default();
                    side.call(buffers);
                    start.wait();
                    let begun = clock.now();
                    (0..calls).for_each(|_| side.call(buffers));
                    (begun, clock.now())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread that measures")).collect()
    });
    let first = spans.iter().map(|(begun, _)| *begun).min().expect("a thread");
    let last = spans.iter().map(|(_, ended)| *ended).max().expect("a thread");
    last.since(first).as_nanos() as f64
}

/// The cores that this process may run on.
pub(crate) fn cores() -> Vec<usize> {
    let set = sched_getaffinity(None).expect("the cores of this process");
    (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
}

/// This thread stays on one core until the guard goes.
pub(crate) struct Pinned(CpuSet);

impl Pinned {
    pub(crate) fn to(core: usize) -> Self {
        let before = sched_getaffinity(None).expect("the cores of this thread");
        let mut one = CpuSet::new();
        one.set(core);
        sched_setaffinity(None, &one).expect("a core that this thread may run on");
        Self(before)
    }

    /// The last core: the first has most of the interrupts.
    pub(crate) fn to_last() -> Self {
        Self::to(*cores().last().expect("a core"))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.0); // the thread ends, or runs on where it is
    }
}
