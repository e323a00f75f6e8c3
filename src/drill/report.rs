//! The report: as JSON (described in `manual::drills`) and as lines.

use super::{
    finished::Finished,
    measure::{Measured, measure},
    operator::Who,
    outcome::Outcome,
    promises::{Promise, Relation, Unit, Verdict, judge},
    scenario::Scenario,
    text::{REPORT_COLUMNS, count, within, wrapped},
    timeline::LeaseOf,
};
use crate::clock::Instant;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use std::fmt;

/// Names the format of reports as JSON, and its version.
pub const FORMAT: &str = "keyleash.drill.v1";

/// A drill with its measurements and verdicts: what [`Display`](fmt::Display) shows to people, and what it serializes to for programs
/// (`drills[]` of [`manual::drills`](crate::manual::drills#the-json)).
#[derive(Debug, Clone)]
pub struct Report {
    pub(crate) finished: Finished,
    pub(crate) measured: Measured,
    pub(crate) promises: Vec<Promise>,
}

impl Report {
    pub(crate) fn new(finished: Finished) -> Self {
        let measured = measure(&finished);
        let promises = judge(&finished, &measured);
        Self { finished, measured, promises }
    }

    /// What was rehearsed.
    pub fn scenario(&self) -> Scenario {
        self.finished.scenario
    }

    /// What was measured.
    pub fn measured(&self) -> &Measured {
        &self.measured
    }

    /// Every line of the verdict.
    pub fn promises(&self) -> &[Promise] {
        &self.promises
    }

    /// The worst of its lines.
    pub fn verdict(&self) -> Verdict {
        self.promises.iter().map(|promise| promise.verdict).max().unwrap_or(Verdict::Pass)
    }

    /// Every promise was kept for certain.
    pub fn passed(&self) -> bool {
        self.verdict() == Verdict::Pass
    }

    /// Milliseconds from the drill's first operation.
    pub(crate) fn ms(&self, at: Instant) -> f64 {
        at.since(self.finished.timeline.origin).as_secs_f64() * 1e3
    }

    fn json(&self) -> Value {
        let Finished { scenario, settings, timeline, .. } = &self.finished;
        let acts = timeline
            .acts
            .iter()
            .map(|act| json!({ "kind": act.kind, "what": act.what, "at_ms": round(self.ms(act.at)) }));
        let lease = timeline.lease.iter().map(|sample| {
            let (kek_version, node) = match sample.of {
                LeaseOf::KekVersion(version) => (Some(version), None),
                LeaseOf::Node(node) => (None, Some(node)),
            };
            json!({
                "at_ms": round(self.ms(sample.at)), "kek_version": kek_version, "node": node, "phase": sample.phase,
                "aeks": sample.aeks,
            })
        });
        let intervals = timeline.intervals.iter().map(|counts| {
            let of = |outcome: Outcome| counts.get(outcome as usize).copied().unwrap_or(0);
            json!(Outcome::ALL.map(of))
        });
        json!({
            "scenario": scenario.name(),
            "passed": self.passed(),
            "started_unix": self.finished.started_unix,
            "operator": self.finished.who == Who::Person,
            "token": self.finished.token,
            "settings": {
                "accounts": self.finished.accounts,
                "threads": self.finished.threads,
                "nodes": self.finished.nodes,
                "profile": self.finished.profile.name(),
                "poll_interval_ms": ms(settings.poll_interval),
                "call_timeout_ms": ms(self.finished.timeout),
                "grace_ms": ms(settings.grace),
                "aek_ttl_ms": ms(settings.aek_ttl),
                "resume_rate": settings.resume_rate,
                "fresh_proof_every": settings.fresh_proof_every,
                "slack_ms": ms(self.finished.slack),
            },
            "acts": acts.collect::<Vec<_>>(),
            "measurements": self.measurements(),
            "promises": self.promises.iter().map(promise_json).collect::<Vec<_>>(),
            "wrong_example": timeline.wrong_example,
            "timeline": {
                "interval_ms": ms(timeline.interval),
                "end_ms": round(self.ms(timeline.end)),
                "outcomes": Outcome::ALL.map(Outcome::name),
                "operations": intervals.collect::<Vec<_>>(),
                "lease": lease.collect::<Vec<_>>(),
            },
        })
    }

    fn measurements(&self) -> Value {
        let measured = &self.measured;
        let time = |value: Option<f64>| value.map(round);
        json!({
            "last_success_ms": time(measured.last_success_ms),
            "first_refusal_ms": time(measured.first_refusal_ms),
            "noticed_ms": time(measured.noticed_ms),
            "wiped_ms": time(measured.wiped_ms),
            "first_success_ms": time(measured.first_success_ms),
            "all_back_ms": time(measured.all_back_ms),
            "account_back_p50_ms": time(measured.back_p50_ms),
            "account_back_p99_ms": time(measured.back_p99_ms),
            "account_back_max_ms": time(measured.back_max_ms),
            "first_node_back_ms": time(measured.first_node_back_ms),
            "last_node_back_ms": time(measured.last_node_back_ms),
            "active_ms": time(measured.active_ms),
            "accounts_never_refused": measured.never_refused,
            "accounts_missing": measured.accounts_missing,
            "operations": measured.operations,
            "succeeded": measured.succeeded,
            "refused": measured.refused,
            "wrong_outcomes": measured.wrong,
            "unverified_bytes": measured.unverified_bytes,
            "warmed": measured.warmed,
            "longest_operation_ms": time(measured.longest_ms),
            "service_gap_ms": time(measured.service.map(|service| service.gap_ms)),
            "service_rate_percent": time(measured.service.and_then(|service| service.rate_percent)),
            "service_gap_after_ms": time(measured.service_after.map(|service| service.gap_ms)),
            "service_rate_after_percent": time(measured.service_after.and_then(|service| service.rate_percent)),
            "keys_left": measured.keys_left,
            "machine_delay_ms": round(measured.machine_delay_ms),
            "rewrap_ms": time(measured.rewrap_ms),
            "rewrap_accounts_per_s": time(measured.rewrap_per_s),
            "aek_rotation_ms": time(measured.aek_rotation_ms),
            "accounts_left_behind": measured.left_behind,
            "accounts_not_rotated": measured.not_rotated,
            "unwraps_served": self.unwraps().map(|unwraps| unwraps.0),
            "unwraps_failed": self.unwraps().map(|unwraps| unwraps.1),
        })
    }

    /// Nobody counts those of processes that were killed.
    pub(crate) fn unwraps(&self) -> Option<(u64, u64)> {
        (self.finished.unwraps != (0, 0)).then_some(self.finished.unwraps)
    }

    /// Settings, verdicts and counts for people.
    fn lines(&self) -> String {
        let Finished { scenario, accounts, threads, nodes, token, .. } = &self.finished;
        let mut lines = String::new();
        let mut say = |indent: &str, words: String| {
            for line in wrapped(&words, REPORT_COLUMNS - indent.len()) {
                lines.push_str(&format!("{indent}{line}\n"));
            }
        };
        say("", format!("drill {}: {}", scenario.name(), scenario.story()));
        let (accounts, threads) = (count((*accounts).into(), "account"), count((*threads).into(), "thread"));
        let threads = match nodes {
            1 => threads,
            nodes => format!("{threads} in each of {nodes} nodes"),
        };
        say("  ", format!("{accounts}, {threads}, token {:?}; {}", token.label, self.settings_words()));
        lines.push('\n');
        let rows: Vec<_> = self.promises.iter().map(promise_row).collect();
        lines.push_str(&within(&rows, REPORT_COLUMNS));
        lines.push('\n');
        let mut say = |words: String| {
            for line in wrapped(&words, REPORT_COLUMNS - 2) {
                lines.push_str(&format!("  {line}\n"));
            }
        };
        say(self.count_words());
        if let Some(example) = &self.finished.timeline.wrong_example {
            say(format!("a wrong outcome: {example}"));
        }
        lines.push_str(&format!("{}: {}\n", scenario.name(), self.verdict().word()));
        lines
    }

    pub(crate) fn settings_words(&self) -> String {
        let settings = &self.finished.settings;
        format!(
            "poll_interval {}, call_timeout {}, grace {}, slack at most {}",
            seconds(ms(settings.poll_interval)),
            seconds(ms(self.finished.timeout)),
            seconds(ms(settings.grace)),
            seconds(ms(self.finished.slack)),
        )
    }

    pub(crate) fn count_words(&self) -> String {
        let measured = &self.measured;
        let mut words = format!(
            "{}, {} refused; the machine itself stood still for at most {}",
            count(measured.operations, "operation"),
            measured.refused,
            seconds(measured.machine_delay_ms)
        );
        if let Some((served, failed)) = self.unwraps() {
            words.push_str(&format!("; the token served {} and refused {failed}", count(served, "unwrap")));
        }
        if let (Some(p50), Some(p99), Some(max)) = (measured.back_p50_ms, measured.back_p99_ms, measured.back_max_ms) {
            words.push_str(&format!(
                "; accounts back after {} (p50), {} (p99), {} (max)",
                seconds(p50),
                seconds(p99),
                seconds(max)
            ));
        }
        if let (Some(first), Some(last)) = (measured.first_node_back_ms, measured.last_node_back_ms) {
            words.push_str(&format!("; nodes back after {} (the first), {} (the last)", seconds(first), seconds(last)));
        }
        if let (Some(rewrap), Some(rate), Some(aeks)) =
            (measured.rewrap_ms, measured.rewrap_per_s, measured.aek_rotation_ms)
        {
            let (accounts, longest) =
                (count(self.finished.accounts.into(), "account"), measured.longest_ms.unwrap_or(0.0));
            words.push_str(&format!(
                "; {accounts} re-wrapped in {} ({rate:.0}/s), their AEKs rotated in {}; the longest seal or open took {}",
                seconds(rewrap),
                seconds(aeks),
                seconds(longest)
            ));
        }
        words
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines())
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}

fn promise_json(promise: &Promise) -> Value {
    json!({
        "name": promise.name,
        "promise": promise.promise,
        "what": promise.what,
        "formula": promise.formula,
        "unit": match promise.unit { Unit::Ms => "ms", Unit::Count => "count", Unit::Percent => "percent" },
        "relation": match promise.relation { Relation::AtMost => "at-most", Relation::AtLeast => "at-least" },
        "bound": round(promise.bound),
        "slack_ms": (promise.unit != Unit::Percent).then(|| round(promise.slack)),
        "measured": promise.measured.map(round),
        "verdict": promise.verdict.name(),
    })
}

fn promise_row(promise: &Promise) -> Vec<String> {
    vec![format!("  {}", promise.verdict.word()), promise.what.into(), measured_words(promise), bound_words(promise)]
}

/// What was measured, in words.
pub(crate) fn measured_words(promise: &Promise) -> String {
    match (promise.measured, promise.unit) {
        (None, _) => "never".into(),
        (Some(measured), Unit::Ms) => seconds(measured),
        (Some(measured), Unit::Count) => format!("{measured}"),
        (Some(measured), Unit::Percent) => format!("{measured:.0} %"),
    }
}

/// What was promised, in words.
pub(crate) fn bound_words(promise: &Promise) -> String {
    let relation = match promise.relation {
        Relation::AtMost => "at most",
        Relation::AtLeast => "at least",
    };
    match promise.unit {
        Unit::Count => format!("promised: none (promise {})", promise.promise),
        Unit::Percent => {
            format!("promised: {relation} {} % {} (promise {})", promise.bound, promise.formula, promise.promise)
        }
        Unit::Ms if promise.formula.starts_with(|first: char| first.is_ascii_digit()) => {
            format!("promised: {relation} {} (promise {})", promise.formula, promise.promise)
        }
        Unit::Ms => format!(
            "promised: {relation} {} = {} (promise {})",
            seconds(promise.bound),
            promise.formula,
            promise.promise
        ),
    }
}

fn ms(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// To a tenth of a millisecond: more would be noise.
fn round(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}

/// Milliseconds as people read them.
pub(crate) fn seconds(ms: f64) -> String {
    match ms / 1e3 {
        short if short < 1.0 => format!("{ms:.0} ms"),
        secs if secs >= 120.0 => format!("{:.0} min", secs / 60.0),
        secs if secs.fract() == 0.0 => format!("{secs:.0} s"),
        secs => format!("{secs:.2} s"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        drill::{measure, scenario::tests::fast},
        token::{Profile, TokenInfo},
    };
    use std::time::Duration;

    /// A drill with fast settings, over the timeline of `measure`'s tests.
    pub(crate) fn finished(scenario: Scenario) -> Finished {
        Finished {
            scenario,
            settings: fast(),
            timeout: fast().store_timeout,
            who: Who::Process,
            accounts: 2,
            threads: 1,
            nodes: 1,
            profile: Profile::AesGcm,
            slack: Duration::from_secs(1),
            token: TokenInfo {
                module: "m".into(),
                slot: 1,
                label: "<&\"label\">".into(),
                serial: "s".into(),
                model: "o".into(),
                mechanisms: Vec::new(),
            },
            started_unix: 7,
            timeline: measure::tests::timeline(),
            unwraps: (3, 1),
            rotated: None,
        }
    }

    #[test]
    fn the_json_has_every_documented_part() {
        let json = Report::new(finished(Scenario::Revocation)).json();
        for part in [
            "scenario",
            "passed",
            "started_unix",
            "operator",
            "token",
            "settings",
            "acts",
            "measurements",
            "promises",
            "timeline",
        ] {
            assert!(!json[part].is_null(), "{part}");
        }
        assert_eq!(json["measurements"]["last_success_ms"], 60.0);
        assert_eq!(json["promises"][0]["verdict"], "pass");
    }

    #[test]
    fn no_line_for_people_is_over_a_hundred_columns_and_one_is_one() {
        for scenario in Scenario::ALL {
            let lines = Report::new(Finished { accounts: 1, ..finished(scenario) }).lines();
            assert!(lines.lines().all(|line| line.chars().count() <= REPORT_COLUMNS), "{lines}");
            assert!(lines.contains("1 account, 1 thread,"), "{lines}");
        }
    }

    #[test]
    fn times_read_as_people_say_them() {
        let words = [(0.4, "0 ms"), (999.0, "999 ms"), (2000.0, "2 s"), (2345.0, "2.35 s"), (1_800_000.0, "30 min")];
        for (ms, text) in words {
            assert_eq!(seconds(ms), text);
        }
    }
}
