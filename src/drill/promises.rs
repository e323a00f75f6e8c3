//! What each scenario owes, computed from the settings, and whether it was kept. Pure.
//!
//! What is over its bound by no more than the machine's own delay meanwhile is inconclusive: neither kept nor broken. Counts
//! are never that.

use super::{
    finished::Finished,
    measure::{Measured, Service, least_service},
    scenario::{Owed, Scenario},
    timeline::{Act, Timeline},
};
use crate::{clock::Instant, config::RESUMPTION_MAX};
use std::time::Duration;

/// Successes in a second that are owed in a phase, in percent of those before the act. A machine that others use too is slower for
/// a while; a service whose blocks wait for the token is so by orders of magnitude.
const RATE_PERCENT_MIN: f64 = 5.0;

/// How a measurement is held against its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// It may not be over it.
    AtMost,
    /// It may not be below it.
    AtLeast,
}

/// What a line, a drill or all of them come to; the worst counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The promise was kept.
    Pass,
    /// Over the promise, but by no more than the machine's own delay: run it again.
    Inconclusive,
    /// The promise was broken.
    Fail,
}

impl Verdict {
    /// For programs; stable.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Inconclusive => "inconclusive",
            Self::Fail => "fail",
        }
    }

    /// For people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Inconclusive => "INCONCLUSIVE",
            Self::Fail => "FAIL",
        }
    }

    fn of(excess: f64, slack: f64) -> Self {
        match excess {
            excess if excess <= 0.0 => Self::Pass,
            excess if excess <= slack => Self::Inconclusive,
            _ => Self::Fail,
        }
    }
}

/// A line of the verdict.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Promise {
    /// For programs; stable.
    pub name: &'static str,
    /// Which of the promises of [`manual::promises`](crate::manual::promises) it belongs to.
    pub promise: u8,
    /// For people.
    pub what: &'static str,
    /// How the bound comes about.
    pub formula: &'static str,
    /// Of bound and measurement.
    pub unit: Unit,
    /// Which side of the bound is right.
    pub relation: Relation,
    /// Without the slack.
    pub bound: f64,
    /// The machine's own delay meanwhile, in the unit of the bound: what is over the bound by no more is inconclusive.
    pub slack: f64,
    /// `None` when it did not happen.
    pub measured: Option<f64>,
    /// Whether it was kept.
    pub verdict: Verdict,
}

/// What a bound counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// Things.
    Count,
    /// Percent.
    Percent,
}

/// What must hold when something did not happen at all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    /// It is owed: the promise is broken.
    Broken,
    /// It would have been the trouble: the promise is kept.
    Kept,
}

/// What a measurement is held against; slack in the unit of the bound.
struct Bound {
    unit: Unit,
    relation: Relation,
    bound: f64,
    slack: f64,
}

impl Bound {
    fn at_most_ms(bound: Duration, slack: f64) -> Self {
        Self { unit: Unit::Ms, relation: Relation::AtMost, bound: bound.as_secs_f64() * 1e3, slack }
    }
}

/// Name, number of the promise, what, and formula.
type Line = (&'static str, u8, &'static str, &'static str);

struct Lines<'a> {
    lines: Vec<Promise>,
    timeline: &'a Timeline,
    slack_max: Duration,
}

impl Lines<'_> {
    fn push(&mut self, line: Line, bound: Bound, measured: Option<f64>, absent: Absent) {
        let Bound { unit, relation, bound, slack } = bound;
        let (name, promise, what, formula) = line;
        let verdict = match (measured, relation) {
            (None, _) if absent == Absent::Kept => Verdict::Pass,
            (None, _) => Verdict::Fail,
            (Some(measured), Relation::AtMost) => Verdict::of(measured - bound, slack),
            (Some(measured), Relation::AtLeast) => Verdict::of(bound - measured, slack),
        };
        self.lines.push(Promise { name, promise, what, formula, unit, relation, bound, slack, measured, verdict });
    }

    /// The machine's delay between two instants, and for how long it is not known when the act was done.
    fn slack_ms(&self, from: Instant, to: Instant, took: Duration) -> f64 {
        (self.timeline.late_between(from, to) + took).min(self.slack_max).as_secs_f64() * 1e3
    }

    /// A time from an act or its undoing.
    fn time(&mut self, line: Line, bound: Duration, since: Option<&Act>, measured: Option<f64>, absent: Absent) {
        let slack = since.zip(measured).map_or(0.0, |(act, measured)| {
            self.slack_ms(act.at, act.at.plus(Duration::from_secs_f64(measured.max(0.0) / 1e3)), act.took)
        });
        self.push(line, Bound::at_most_ms(bound, slack), measured, absent);
    }

    fn none(&mut self, name: &'static str, promise: u8, what: &'static str, measured: Option<u64>) {
        let (line, measured) = ((name, promise, what, "none"), measured.map(|measured| measured as f64));
        let bound = Bound { unit: Unit::Count, relation: Relation::AtMost, bound: 0.0, slack: 0.0 };
        self.push(line, bound, measured, Absent::Broken);
    }

    /// No refusal is not yet service: blocks that wait are none.
    fn service(&mut self, names: [(&'static str, &'static str); 2], timeout: Duration, service: Option<Service>) {
        let [(gap, gap_what), (rate, rate_what)] = names;
        // An operation that awaits an unwrap of its own has the token's answer, or none, after so long.
        let line = (gap, 3, gap_what, "call_timeout");
        let lasting = |service: Service| Duration::from_secs_f64(service.gap_ms / 1e3);
        let slack = service.map_or(0.0, |service| {
            self.slack_ms(service.gap_from, service.gap_from.plus(lasting(service)), Duration::ZERO)
        });
        let gap_ms = service.map(|service| service.gap_ms);
        self.push(line, Bound::at_most_ms(timeout, slack), gap_ms, Absent::Broken);
        let line = (rate, 3, rate_what, "of the rate before the act");
        let slack = service.map_or(0.0, |service| RATE_PERCENT_MIN * service.lost);
        let slack = if self.slack_max.is_zero() { 0.0 } else { slack };
        let percent = service.and_then(|service| service.rate_percent);
        let bound = Bound { unit: Unit::Percent, relation: Relation::AtLeast, bound: RATE_PERCENT_MIN, slack };
        self.push(line, bound, percent, Absent::Broken);
    }
}

const IN_TROUBLE: [(&str, &str); 2] = [
    ("service-gap", "longest that a load thread was without a success, while all had to work"),
    ("service-rate", "seals and opens in a second in the slowest poll interval, while all had to work"),
];
const AFTER_TROUBLE: [(&str, &str); 2] = [
    ("service-gap-after", "longest that a load thread was without a success, after the undoing"),
    ("service-rate-after", "seals and opens in a second in the slowest poll interval, after the undoing"),
];

/// Every line that the drill owes.
pub(crate) fn judge(finished: &Finished, measured: &Measured) -> Vec<Promise> {
    let settings = &finished.settings;
    let timeline = &finished.timeline;
    let (act, undoing) = (timeline.taking(), timeline.giving());
    let mut lines = Lines { lines: Vec::new(), timeline, slack_max: finished.slack };
    let (poll, timeout, grace) = (settings.poll_interval, finished.timeout, settings.grace);
    match finished.scenario.owed(settings, timeout) {
        Owed::Denied(within) => {
            let formula = match finished.scenario {
                Scenario::PinChanged => "fresh_proof_every × poll_interval + poll_interval + call_timeout",
                _ => "poll_interval + call_timeout",
            };
            let last = ("last-success", 1, "last success after the act", formula);
            lines.time(last, within, act, measured.last_success_ms, Absent::Kept);
            let first = ("first-refusal", 1, "first refusal after the act", formula);
            lines.time(first, within, act, measured.first_refusal_ms, Absent::Broken);
            never_refused(&mut lines, measured);
            wiped(&mut lines, (within, formula), act, measured);
            resumption(&mut lines, poll, undoing, measured);
        }
        Owed::Lapsed => {
            noticed(&mut lines, poll + timeout, act, measured);
            let formula = "grace − poll_interval − call_timeout";
            let first = ("served-in-outage", 3, "first refusal in the outage, not earlier than", formula);
            let (least, refusal) = (least_service(finished).as_secs_f64() * 1e3, measured.first_refusal_ms);
            // The last proof before the act may have been late.
            let slack = act.map_or(0.0, |act| {
                let before = (poll + timeout).as_nanos() as u64;
                let from = Instant::from_nanos(act.at.as_nanos().saturating_sub(before));
                lines.slack_ms(from, act.at.plus(act.took), Duration::ZERO)
            });
            let bound = Bound { unit: Unit::Ms, relation: Relation::AtLeast, bound: least, slack };
            lines.push(first, bound, refusal, Absent::Broken);
            lines.service(IN_TROUBLE, timeout, measured.service);
            let last = ("last-success", 1, "last success after the act", "grace");
            lines.time(last, grace, act, measured.last_success_ms, Absent::Kept);
            never_refused(&mut lines, measured);
            wiped(&mut lines, (grace, "grace"), act, measured);
            resumption(&mut lines, poll, undoing, measured);
        }
        Owed::Service(_) => {
            noticed(&mut lines, poll + timeout, act, measured);
            let refused = "operations refused while the token was unreachable";
            lines.none("refused-operations", 3, refused, Some(measured.refused));
            lines.service(IN_TROUBLE, timeout, measured.service);
            lines.service(AFTER_TROUBLE, timeout, measured.service_after);
            let active = ("active-again", 2, "lease active again after the undoing", "poll_interval");
            lines.time(active, poll, undoing, measured.active_ms, Absent::Broken);
        }
        Owed::Undisturbed => {
            lines.none("refused-operations", 3, "operations refused while keys were rotated", Some(measured.refused));
            lines.service(IN_TROUBLE, timeout, measured.service);
            let behind = "accounts with an AEK that is not under the new KEK version";
            lines.none("accounts-left-behind", 5, behind, measured.left_behind);
            let old = "accounts that do not seal under their new AEK version, by the blocks' headers";
            lines.none("accounts-not-rotated", 5, old, measured.not_rotated);
        }
    }
    lines.none("accounts-missing", 2, "accounts that did not work at the end", Some(measured.accounts_missing));
    let wrong = match finished.scenario {
        Scenario::Restart => "operations with the wrong outcome, across every restart",
        Scenario::Nodes => "operations with the wrong outcome, of any node, one that stood still among them",
        _ => "operations with the wrong outcome",
    };
    let promise = match finished.scenario {
        Scenario::Nodes => 1,
        Scenario::Restart => 4,
        _ => 3,
    };
    lines.none("wrong-outcomes", promise, wrong, Some(measured.wrong));
    lines.none("unverified-bytes", 5, "bytes that did not verify", measured.unverified_bytes);
    lines.lines
}

/// No success is what is owed, and what an account shows, too, that nobody tried.
fn never_refused(lines: &mut Lines<'_>, measured: &Measured) {
    lines.none("never-refused", 1, "accounts that were not seen to be refused after the act", measured.never_refused);
}

/// When the engine says that it wiped everything, and whether that is true.
fn wiped(lines: &mut Lines<'_>, (within, formula): (Duration, &'static str), act: Option<&Act>, measured: &Measured) {
    let wiped = ("wiped", 6, "every AEK wiped after the act", formula);
    lines.time(wiped, within, act, measured.wiped_ms, Absent::Broken);
    let left = "places in the memory where an AEK or a round key still stands after that";
    lines.none("keys-left", 6, left, measured.keys_left);
}

/// Without it, an act that took no hold would pass for an outage that nobody noticed.
fn noticed(lines: &mut Lines<'_>, within: Duration, act: Option<&Act>, measured: &Measured) {
    let line = ("noticed", 3, "the outage noticed after the act", "poll_interval + call_timeout");
    lines.time(line, within, act, measured.noticed_ms, Absent::Broken);
}

fn resumption(lines: &mut Lines<'_>, poll: Duration, undoing: Option<&Act>, measured: &Measured) {
    let first = ("first-success", 2, "first success after the undoing", "poll_interval");
    lines.time(first, poll, undoing, measured.first_success_ms, Absent::Broken);
    let all = ("all-back", 2, "every account back after the undoing", "30 min");
    lines.time(all, RESUMPTION_MAX, undoing, measured.all_back_ms, Absent::Broken);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::{measure::measure, report::tests::finished};

    const SERVED: Option<Service> =
        Some(Service { gap_ms: 20.0, gap_from: Instant::from_nanos(0), rate_percent: Some(90.0), lost: 0.0 });

    fn verdict(promises: &[Promise], name: &str) -> Verdict {
        promises.iter().find(|promise| promise.name == name).unwrap_or_else(|| panic!("{name}")).verdict
    }

    /// A drill on a machine that was late for 300 ms after the act, and its measurements with every promise kept to the limit.
    fn well(scenario: Scenario) -> (Finished, Measured) {
        let mut finished = finished(scenario);
        let at = finished.timeline.act().unwrap().plus(Duration::from_millis(600));
        finished.timeline.late = vec![(at, Duration::from_millis(300))];
        let (last, refusal) = match scenario.owed(&finished.settings, finished.timeout) {
            Owed::Denied(within) => (within, within),
            _ => (finished.settings.grace, least_service(&finished)),
        };
        let (last, refusal) = (Some(last.as_secs_f64() * 1e3), Some(refusal.as_secs_f64() * 1e3));
        let measured = Measured {
            last_success_ms: last,
            first_refusal_ms: refusal,
            wiped_ms: last,
            noticed_ms: Some(2000.0),
            first_success_ms: Some(1000.0),
            active_ms: Some(1000.0),
            all_back_ms: Some(1_800_000.0),
            service: SERVED,
            service_after: SERVED,
            keys_left: Some(0),
            left_behind: Some(0),
            not_rotated: Some(0),
            refused: 0,
            wrong: 0,
            accounts_missing: 0,
            ..measure(&finished)
        };
        (finished, measured)
    }

    /// Each breaks the promise that it is named after, by more than the machine was late for.
    type Fault = (&'static str, fn(&mut Measured));
    const FAULTS: [Fault; 27] = [
        ("last-success", |m| m.last_success_ms = m.last_success_ms.map(|ms| ms + 301.0)),
        ("first-refusal", |m| m.first_refusal_ms = m.first_refusal_ms.map(|ms| ms + 301.0)),
        ("first-refusal", |m| m.first_refusal_ms = None),
        ("never-refused", |m| m.never_refused = Some(1)),
        ("never-refused", |m| m.never_refused = None),
        ("wiped", |m| m.wiped_ms = m.wiped_ms.map(|ms| ms + 301.0)),
        ("wiped", |m| m.wiped_ms = None),
        ("keys-left", |m| m.keys_left = Some(1)),
        ("keys-left", |m| m.keys_left = None),
        ("first-success", |m| m.first_success_ms = Some(1301.0)),
        ("first-success", |m| m.first_success_ms = None),
        ("all-back", |m| m.all_back_ms = None),
        ("noticed", |m| m.noticed_ms = Some(2301.0)),
        ("noticed", |m| m.noticed_ms = None),
        ("served-in-outage", |m| m.first_refusal_ms = m.first_refusal_ms.map(|ms| ms - 1.0)),
        ("refused-operations", |m| m.refused = 1),
        ("service-gap", |m| m.service = SERVED.map(|service| Service { gap_ms: 1301.0, ..service })),
        ("service-rate", |m| m.service = SERVED.map(|service| Service { rate_percent: Some(4.9), ..service })),
        ("service-gap-after", |m| m.service_after = SERVED.map(|service| Service { gap_ms: 1301.0, ..service })),
        ("service-rate-after", |m| m.service_after = SERVED.map(|service| Service { rate_percent: None, ..service })),
        ("active-again", |m| m.active_ms = Some(1301.0)),
        ("accounts-left-behind", |m| m.left_behind = Some(1)),
        ("accounts-not-rotated", |m| m.not_rotated = None),
        ("accounts-missing", |m| m.accounts_missing = 1),
        ("wrong-outcomes", |m| m.wrong = 1),
        ("unverified-bytes", |m| m.unverified_bytes = None),
        ("unverified-bytes", |m| m.unverified_bytes = Some(1)),
    ];

    #[test]
    fn every_line_that_a_drill_prints_fails_on_its_own_and_no_line_is_without_a_fault() {
        for scenario in Scenario::ALL {
            let (finished, measured) = well(scenario);
            let promises = judge(&finished, &measured);
            assert!(promises.iter().all(|promise| promise.verdict == Verdict::Pass), "{scenario:?} {promises:#?}");
            for promise in &promises {
                let mut faults = FAULTS.iter().filter(|(name, _)| *name == promise.name).peekable();
                assert!(faults.peek().is_some(), "{}", promise.name);
                for (name, fault) in faults {
                    let mut broken = measured.clone();
                    fault(&mut broken);
                    let judged = judge(&finished, &broken);
                    let failed: Vec<_> = judged.iter().filter(|line| line.verdict != Verdict::Pass).collect();
                    let names: Vec<_> = failed.iter().map(|line| line.name).collect();
                    assert_eq!(names, [*name], "{scenario:?}");
                    assert_eq!(failed[0].verdict, Verdict::Fail, "{scenario:?} {name}");
                }
            }
        }
    }

    #[test]
    fn what_is_over_the_promise_by_no_more_than_the_machine_was_late_is_inconclusive_and_never_a_pass() {
        let (mut finished, mut measured) = well(Scenario::Revocation);
        measured.last_success_ms = measured.last_success_ms.map(|ms| ms + 250.0);
        assert_eq!(verdict(&judge(&finished, &measured), "last-success"), Verdict::Inconclusive);
        finished.slack = Duration::from_millis(200);
        assert_eq!(verdict(&judge(&finished, &measured), "last-success"), Verdict::Fail, "--slack is the most");
        finished.slack = Duration::from_secs(9);
        finished.timeline.late.clear();
        assert_eq!(verdict(&judge(&finished, &measured), "last-success"), Verdict::Fail, "the machine was not late");
        finished.timeline.acts[0].took = Duration::from_millis(250);
        assert_eq!(verdict(&judge(&finished, &measured), "last-success"), Verdict::Inconclusive, "when was the act?");
    }

    #[test]
    fn a_machine_that_stood_still_for_most_of_a_phase_makes_its_rate_inconclusive() {
        let (finished, mut measured) = well(Scenario::Outage);
        let slow = |lost| SERVED.map(|service| Service { rate_percent: Some(2.0), lost, ..service });
        for (lost, expected) in [(0.7, Verdict::Inconclusive), (0.5, Verdict::Fail)] {
            measured.service = slow(lost);
            assert_eq!(verdict(&judge(&finished, &measured), "service-rate"), expected);
        }
    }

    #[test]
    fn no_success_after_the_act_is_the_best_that_can_be() {
        let (finished, measured) = well(Scenario::Revocation);
        let never = Measured { last_success_ms: None, ..measured };
        assert_eq!(verdict(&judge(&finished, &never), "last-success"), Verdict::Pass);
    }
}
