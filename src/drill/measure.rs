//! What was measured: times in milliseconds from the act or from the undoing, and counts. Pure.

use super::{
    finished::Finished,
    outcome::{Outcome, Run},
    scenario::{Owed, Scenario},
    timeline::{RUNS_MAX, Timeline},
};
use crate::clock::Instant;
use std::time::Duration;

/// How a phase was served, in which everything had to work.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Service {
    /// The longest that a load thread was without a success, in milliseconds.
    pub gap_ms: f64,
    /// When that began.
    pub gap_from: Instant,
    /// Successes in a second, where they were fewest for a poll interval, in percent of those before the act; `None` where there
    /// was nothing to compare.
    pub rate_percent: Option<f64>,
    /// The part of that poll interval for which the machine itself stood still.
    pub lost: f64,
}

/// The measurements of one drill. Times are `None` when what they time did not happen.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Measured {
    /// Last success after the act and before the undoing; `None` when nothing succeeded after the act.
    pub last_success_ms: Option<f64>,
    /// First refusal after the act, up to the undoing.
    pub first_refusal_ms: Option<f64>,
    /// When the lease was first in grace after the act: the silence of the token was noticed.
    pub noticed_ms: Option<f64>,
    /// When no AEK was left in memory, after the act.
    pub wiped_ms: Option<f64>,
    /// First success after the undoing, by an account that had been refused.
    pub first_success_ms: Option<f64>,
    /// When every account worked again, after the undoing.
    pub all_back_ms: Option<f64>,
    /// The same per account: the median, …
    pub back_p50_ms: Option<f64>,
    /// … the 99th of a hundred, …
    pub back_p99_ms: Option<f64>,
    /// … and the last.
    pub back_max_ms: Option<f64>,
    /// When all accounts of a node worked again, of the first node …
    pub first_node_back_ms: Option<f64>,
    /// … and of the last; `None` of a drill without nodes, and where one did not come back.
    pub last_node_back_ms: Option<f64>,
    /// When the lease was active again, after the undoing.
    pub active_ms: Option<f64>,
    /// From the act to the undoing, or to where the promise ends, where everything had to work.
    pub service: Option<Service>,
    /// The same from the undoing to the end.
    pub service_after: Option<Service>,
    /// Places in the memory in which an AEK or a round key stood after the wipe; `None` where the search found none before it either.
    pub keys_left: Option<u64>,
    /// The longest that the machine kept a thread from running that only looks at the clock.
    pub machine_delay_ms: f64,
    /// Accounts of which no operation was refused between the act and the undoing; `None` without either.
    pub never_refused: Option<u64>,
    /// Accounts that did not work when the drill ended.
    pub accounts_missing: u64,
    /// Operations in all, …
    pub operations: u64,
    /// … those that succeeded, …
    pub succeeded: u64,
    /// … and those that were refused.
    pub refused: u64,
    /// Operations whose outcome was not right at their time.
    pub wrong: u64,
    /// Bytes that came out other than they went in; `None` where the load held nothing that came out against what went in.
    pub unverified_bytes: Option<u64>,
    /// Operations that waited for an unwrap of their own.
    pub warmed: u64,
    /// The longest operation, where each was timed.
    pub longest_ms: Option<f64>,
    /// Of `rotation`: how long the re-wrap of all accounts took, …
    pub rewrap_ms: Option<f64>,
    /// … how many it moved in a second, …
    pub rewrap_per_s: Option<f64>,
    /// … how long every AEK took to be rotated …
    pub aek_rotation_ms: Option<f64>,
    /// … the accounts that were not moved …
    pub left_behind: Option<u64>,
    /// … and those that do not seal under their new AEK version.
    pub not_rotated: Option<u64>,
}

fn ms(from: Instant, to_ns: u64) -> f64 {
    Instant::from_nanos(to_ns).since(from).as_secs_f64() * 1e3
}

/// Measures a drill.
pub(crate) fn measure(finished: &Finished) -> Measured {
    let mut measured = of(&finished.timeline);
    (measured.service, measured.service_after) = services(finished);
    if finished.scenario == Scenario::Nodes {
        (measured.first_node_back_ms, measured.last_node_back_ms) = nodes_back(&finished.timeline, finished.accounts);
    }
    let Some(rotated) = &finished.rotated else { return measured };
    let ms = |time: Duration| Some(time.as_secs_f64() * 1e3);
    Measured {
        rewrap_ms: ms(rotated.rewrap),
        rewrap_per_s: Some(rotated.rewrapped as f64 / rotated.rewrap.as_secs_f64().max(f64::MIN_POSITIVE)),
        aek_rotation_ms: ms(rotated.aek_rotation),
        left_behind: Some(rotated.left_behind),
        not_rotated: Some(rotated.not_rotated),
        ..measured
    }
}

/// When the first and the last node were back, of which each has so many accounts.
fn nodes_back(timeline: &Timeline, accounts: u32) -> (Option<f64>, Option<f64>) {
    let Some(undoing) = timeline.undoing() else { return (None, None) };
    let node_back = |runs: &[Vec<Run>]| {
        let back = runs.iter().map(|runs| back_at(runs, undoing.as_nanos()));
        back.collect::<Option<Vec<_>>>()?.into_iter().max()
    };
    let nodes = timeline.runs.chunks((accounts as usize).max(1)).map(node_back);
    let Some(back) = nodes.collect::<Option<Vec<_>>>() else { return (None, None) };
    let time = |at: Option<&u64>| at.map(|at| ms(undoing, *at));
    (time(back.iter().min()), time(back.iter().max()))
}

/// For how long an outage has to be served at least: the last proof was so much before it began.
pub(crate) fn least_service(finished: &Finished) -> Duration {
    finished.settings.grace.saturating_sub(finished.settings.poll_interval + finished.timeout)
}

/// How the phases were served in which everything has to work.
fn services(finished: &Finished) -> (Option<Service>, Option<Service>) {
    let (timeline, settings) = (&finished.timeline, &finished.settings);
    let Some(act) = timeline.act() else { return (None, None) };
    let service = |from, to| Some(service(timeline, settings.poll_interval, act, from, to));
    match (finished.scenario.owed(settings, finished.timeout), timeline.undoing()) {
        (Owed::Service(_), Some(undoing)) => (service(act, undoing), service(undoing, timeline.end)),
        (Owed::Undisturbed, _) => (service(act, timeline.end), None),
        (Owed::Lapsed, _) => (service(act, act.plus(least_service(finished))), None),
        _ => (None, None),
    }
}

fn service(timeline: &Timeline, poll: Duration, act: Instant, from: Instant, to: Instant) -> Service {
    let inside = timeline.gaps.iter().map(|(began, ended)| {
        let began = Instant::from_nanos(*began).max(from);
        (Instant::from_nanos(*ended).min(to).since(began), began)
    });
    let (gap, gap_from) = inside.max().unwrap_or_default();
    let before = rate(timeline, timeline.origin, act).filter(|rate| *rate > 0.0);
    let (slowest, slow_from) = slowest(timeline, poll, from, to).unzip();
    let slow_from = slow_from.unwrap_or(from);
    let lost = timeline.late_between(slow_from, slow_from.plus(poll).min(to)).as_secs_f64();
    Service {
        gap_ms: gap.as_secs_f64() * 1e3,
        gap_from,
        rate_percent: slowest.zip(before).map(|(rate, before)| rate / before * 100.0),
        lost: (lost / poll.as_secs_f64().max(f64::MIN_POSITIVE)).min(1.0),
    }
}

/// The poll interval of a phase in which the fewest operations succeeded, in a second, and when it began; all of a phase that is
/// shorter.
fn slowest(timeline: &Timeline, poll: Duration, from: Instant, to: Instant) -> Option<(f64, Instant)> {
    let step = timeline.interval;
    if step.is_zero() {
        return None; // nothing was counted
    }
    let mut slowest = rate(timeline, from, to.min(from.plus(poll))).map(|rate| (rate, from));
    let mut at = from.plus(step);
    while at.plus(poll) <= to {
        let here = rate(timeline, at, at.plus(poll)).map(|rate| (rate, at));
        slowest = [slowest, here].into_iter().flatten().min_by(|one, other| one.0.total_cmp(&other.0));
        at = at.plus(step);
    }
    slowest
}

/// Successes in a second, by the intervals that lie inside.
fn rate(timeline: &Timeline, from: Instant, to: Instant) -> Option<f64> {
    let interval = timeline.interval.as_nanos();
    let first = from.since(timeline.origin).as_nanos().div_ceil(interval.max(1));
    let end = to.since(timeline.origin).as_nanos().checked_div(interval)?;
    let count = usize::try_from(end.checked_sub(first)?).ok().filter(|count| *count > 0)?;
    let inside = timeline.intervals.iter().skip(usize::try_from(first).ok()?).take(count);
    let succeeded: u64 = inside.filter_map(|counts| counts.get(Outcome::Ok as usize)).sum();
    Some(succeeded as f64 / (count as f64 * timeline.interval.as_secs_f64()))
}

fn of(timeline: &Timeline) -> Measured {
    let operations: u64 = timeline.intervals.iter().flatten().sum();
    let succeeded = timeline.operations(Outcome::Ok);
    let mut measured = Measured {
        operations,
        succeeded,
        refused: operations - succeeded,
        wrong: timeline.wrong.iter().sum(),
        unverified_bytes: (timeline.compared_bytes > 0).then_some(timeline.unverified_bytes),
        warmed: timeline.warmed,
        // A search that found nothing while keys were in use is blind.
        keys_left: timeline.keys_before.filter(|found| *found > 0).and(timeline.keys_left),
        machine_delay_ms: timeline.late.iter().map(|(_, late)| late.as_secs_f64() * 1e3).fold(0.0, f64::max),
        longest_ms: (!timeline.longest.is_zero()).then_some(timeline.longest.as_secs_f64() * 1e3),
        ..Measured::default()
    };
    let is_ok = |run: &&Run| run.outcome == Outcome::Ok;
    let is_missing = |(number, runs): &(usize, &Vec<Run>)| {
        // What is not written down any more, or did not end, is not known to work.
        runs.len() >= RUNS_MAX
            || timeline.stuck.contains(number)
            || runs.last().as_ref().is_none_or(|last| !is_ok(last))
    };
    let missing = timeline.runs.iter().enumerate().filter(is_missing).count();
    measured.accounts_missing = missing as u64;
    let (Some(act), Some(undoing)) = (timeline.act(), timeline.undoing()) else { return measured };
    let (act_ns, undoing_ns) = (act.as_nanos(), undoing.as_nanos());
    let runs = || timeline.runs.iter().flatten();
    // One that began before the undoing and ended behind it (a secret, whose record is read first) may have had the key after that alone.
    let last = runs().filter(is_ok).filter(|run| run.first <= undoing_ns).map(|run| run.to.min(undoing_ns)).max();
    measured.last_success_ms = last.filter(|last| *last > act_ns).map(|last| ms(act, last));
    let refusal = |run: &&Run| run.outcome != Outcome::Ok && run.from >= act_ns && run.from < undoing_ns;
    measured.first_refusal_ms = runs().filter(refusal).map(|run| run.first).min().map(|first| ms(act, first));
    let never = timeline.runs.iter().filter(|runs| !runs.iter().any(|run| refusal(&run))).count();
    measured.never_refused = Some(never as u64);
    // What succeeded used a key until it ended, whatever a sample says that was taken meanwhile.
    let wiped = wiped_at(timeline, act, undoing).map(|at| ms(act, at.as_nanos()));
    measured.wiped_ms = wiped.map(|wiped| measured.last_success_ms.map_or(wiped, |last| wiped.max(last)));
    let in_grace = timeline.lease.iter().find(|sample| sample.at > act && sample.phase == "grace");
    measured.noticed_ms = in_grace.map(|sample| ms(act, sample.at.as_nanos()));
    measured.active_ms = active_again(timeline, undoing).map(|at| ms(undoing, at.as_nanos()));
    let mut back: Vec<f64> =
        timeline.runs.iter().filter_map(|runs| back_at(runs, undoing_ns)).map(|at| ms(undoing, at)).collect();
    back.sort_by(f64::total_cmp);
    let percentile = |percent: usize| back.get((back.len().saturating_sub(1) * percent).div_ceil(100)).copied();
    measured.first_success_ms = back.first().copied();
    measured.back_p50_ms = percentile(50);
    measured.back_p99_ms = percentile(99);
    measured.back_max_ms = back.last().copied();
    if missing == 0 {
        measured.all_back_ms = measured.back_max_ms;
    }
    measured
}

/// When no lease had an AEK any more: the last to lose them.
fn wiped_at(timeline: &Timeline, act: Instant, undoing: Instant) -> Option<Instant> {
    let empty = |of| {
        let mut meanwhile = timeline.samples(of).filter(|sample| sample.at > act && sample.at < undoing);
        meanwhile.find(|sample| sample.aeks == 0).map(|sample| sample.at)
    };
    timeline.leases().into_iter().map(empty).collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// When every lease was active after the undoing: at once, if it was so then.
fn active_again(timeline: &Timeline, undoing: Instant) -> Option<Instant> {
    let active = |of| {
        let before = timeline.samples(of).rev().find(|sample| sample.at <= undoing);
        if before.is_some_and(|sample| sample.phase == "active") {
            return Some(undoing);
        }
        timeline.samples(of).find(|sample| sample.at > undoing && sample.phase == "active").map(|sample| sample.at)
    };
    timeline.leases().into_iter().map(active).collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// The first success of an account after the undoing that followed a refusal.
fn back_at(runs: &[Run], undoing_ns: u64) -> Option<u64> {
    let index = runs.iter().position(|run| run.outcome == Outcome::Ok && run.first > undoing_ns)?;
    (index > 0).then(|| runs.get(index)).flatten().map(|run| run.first)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::drill::timeline::{Act, LeaseOf, LeaseSample};

    const MS: u64 = 1_000_000;

    fn run(outcome: Outcome, from: u64, to: u64) -> Run {
        Run { outcome, from: from * MS, first: (from + 1) * MS, to: to * MS, count: 2 }
    }

    pub(crate) fn timeline() -> Timeline {
        let at = |ms: u64| Instant::from_nanos(ms * MS);
        let act = |kind, ms| Act { kind, what: kind.into(), at: at(ms), took: Duration::ZERO };
        let lease =
            |ms, phase: &str, aeks| LeaseSample { at: at(ms), of: LeaseOf::KekVersion(1), phase: phase.into(), aeks };
        Timeline {
            runs: vec![
                vec![run(Outcome::Ok, 0, 150), run(Outcome::Denied, 151, 300), run(Outcome::Ok, 309, 400)],
                vec![run(Outcome::Ok, 0, 160), run(Outcome::Denied, 161, 300), run(Outcome::Ok, 319, 400)],
            ],
            acts: vec![act("act", 100), act("undoing", 200)],
            lease: vec![
                lease(0, "active", 2),
                lease(165, "denied", 0),
                lease(305, "resuming", 0),
                lease(330, "active", 2),
            ],
            end: at(400),
            interval: Duration::from_millis(50),
            compared_bytes: 64,
            ..Timeline::default()
        }
    }

    #[test]
    fn times_count_from_the_act_and_from_the_undoing() {
        let measured = of(&timeline());
        assert_eq!(measured.last_success_ms, Some(60.0));
        assert_eq!(measured.first_refusal_ms, Some(52.0));
        assert_eq!(measured.wiped_ms, Some(65.0));
        assert_eq!(measured.first_success_ms, Some(110.0));
        assert_eq!((measured.back_p50_ms, measured.all_back_ms), (Some(120.0), Some(120.0)));
        assert_eq!(measured.active_ms, Some(130.0));
        assert_eq!((measured.never_refused, measured.accounts_missing), (Some(0), 0));
    }

    #[test]
    fn a_node_is_back_with_its_last_account_and_its_keys_are_gone_with_the_last_node() {
        let mut timeline = timeline();
        assert_eq!(nodes_back(&timeline, 1), (Some(110.0), Some(120.0)));
        assert_eq!(nodes_back(&timeline, 2), (Some(120.0), Some(120.0)));
        let other = timeline.lease.iter().map(|sample| LeaseSample {
            at: sample.at.plus(Duration::from_millis(9)),
            of: LeaseOf::Node(2),
            ..sample.clone()
        });
        timeline.lease.extend(other.collect::<Vec<_>>());
        assert_eq!((of(&timeline).wiped_ms, of(&timeline).active_ms), (Some(74.0), Some(139.0)));
        timeline.lease.retain(|sample| sample.of != LeaseOf::Node(2) || sample.aeks > 0);
        assert_eq!(of(&timeline).wiped_ms, None, "one that keeps them");
        timeline.runs[1].pop();
        assert_eq!(nodes_back(&timeline, 1), (None, None));
    }

    #[test]
    fn an_account_that_nobody_tried_while_the_key_was_away_was_never_refused() {
        let mut timeline = timeline();
        timeline.runs[1] = vec![run(Outcome::Ok, 0, 90), run(Outcome::Ok, 319, 400)];
        assert_eq!(of(&timeline).never_refused, Some(1));
    }

    #[test]
    fn an_account_that_hangs_in_the_end_or_flaps_too_often_to_be_written_down_does_not_work() {
        let hangs = Timeline { stuck: vec![1], ..timeline() };
        let mut flaps = timeline();
        flaps.runs[0] = vec![run(Outcome::Ok, 0, 150); RUNS_MAX];
        for timeline in [hangs, flaps] {
            assert_eq!((of(&timeline).accounts_missing, of(&timeline).all_back_ms), (1, None));
        }
    }

    #[test]
    fn nothing_is_known_of_bytes_that_nobody_looked_at() {
        assert_eq!(of(&timeline()).unverified_bytes, Some(0));
        assert_eq!(of(&Timeline { compared_bytes: 0, ..timeline() }).unverified_bytes, None);
    }

    #[test]
    fn every_aek_is_wiped_no_earlier_than_the_last_success() {
        let mut timeline = timeline();
        timeline.lease[1].at = Instant::from_nanos(155 * MS); // a sample before the last success, at 160 ms, was written down
        let measured = of(&timeline);
        assert_eq!((measured.last_success_ms, measured.wiped_ms), (Some(60.0), Some(60.0)));
    }

    #[test]
    fn service_is_measured_against_the_phase_before_and_a_thread_that_is_stuck_has_a_gap() {
        let at = |ms: u64| Instant::from_nanos(ms * MS);
        let counts = |ok| [ok, 9, 0, 0, 0, 0, 0];
        let timeline = Timeline {
            interval: Duration::from_millis(50),
            // 100 in an interval before the act at 100 ms, then 20 and 0, then 50.
            intervals: [100, 100, 20, 0, 50, 50, 50, 50].map(counts).to_vec(),
            gaps: vec![(90 * MS, 130 * MS), (140 * MS, 260 * MS), (300 * MS, 310 * MS)],
            late: vec![(at(150), Duration::from_millis(25))],
            ..timeline()
        };
        let poll = Duration::from_millis(100);
        let during = service(&timeline, poll, at(100), at(100), at(200));
        assert_eq!(during, Service { gap_ms: 60.0, gap_from: at(140), rate_percent: Some(10.0), lost: 0.25 });
        let after = service(&timeline, poll, at(100), at(200), at(400));
        assert_eq!(after, Service { gap_ms: 60.0, gap_from: at(200), rate_percent: Some(50.0), lost: 0.0 });
        assert_eq!(service(&timeline, poll, at(0), at(100), at(200)).rate_percent, None, "nothing was before");
        let slowest = service(&timeline, poll / 2, at(100), at(100), at(400));
        assert_eq!(slowest.rate_percent, Some(0.0), "a fast beginning does not make up for what is slow");
    }

    #[test]
    fn a_search_that_found_no_key_in_use_shows_nothing() {
        for (before, left, shown) in
            [(Some(3), Some(0), Some(0)), (Some(3), Some(2), Some(2)), (Some(0), Some(0), None)]
        {
            let timeline = Timeline { keys_before: before, keys_left: left, ..timeline() };
            assert_eq!(of(&timeline).keys_left, shown);
        }
    }

    #[test]
    fn an_account_that_is_not_back_is_missing_and_not_all_are_back() {
        let mut timeline = timeline();
        timeline.runs[1].pop();
        let measured = of(&timeline);
        assert_eq!((measured.accounts_missing, measured.all_back_ms), (1, None));
    }

    #[test]
    fn an_operation_that_ends_behind_the_undoing_shows_no_success_before_it() {
        let mut timeline = timeline();
        let (of_before, straddling) = (of(&timeline), Run::one(Outcome::Ok, 199 * MS, 201 * MS));
        timeline.runs[0] = vec![run(Outcome::Ok, 0, 150), run(Outcome::Denied, 151, 199), straddling];
        let measured = of(&timeline);
        assert_eq!((measured.last_success_ms, measured.wiped_ms), (of_before.last_success_ms, of_before.wiped_ms));
        assert_eq!(measured.first_success_ms, Some(1.0));
    }

    #[test]
    fn an_outage_that_nobody_notices_has_neither_refusal_nor_return() {
        let mut timeline = timeline();
        timeline.runs = vec![vec![run(Outcome::Ok, 0, 400)]];
        let measured = of(&timeline);
        assert_eq!(measured.last_success_ms, Some(100.0), "until the undoing");
        assert_eq!((measured.first_refusal_ms, measured.first_success_ms), (None, None));
    }
}
