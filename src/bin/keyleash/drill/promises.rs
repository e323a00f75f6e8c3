//! What each scenario owes, computed from the settings, and whether it was kept. Pure.
//!
//! Times that must not be exceeded carry the scheduling slack that the report states; counts carry none.

use super::{
    conduct::Finished,
    measure::Measured,
    scenario::{Owed, Scenario},
};
use keyleash::config::RESUMPTION_MAX;
use std::time::Duration;

/// How a measurement is held against its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    AtMost,
    AtLeast,
}

/// A line of the verdict.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Promise {
    /// For programs; stable.
    pub(crate) name: &'static str,
    /// Which of the six promises of `manual::promises` it belongs to.
    pub(crate) promise: u8,
    /// For people.
    pub(crate) what: &'static str,
    /// How the bound comes about.
    pub(crate) formula: &'static str,
    pub(crate) unit: Unit,
    pub(crate) relation: Relation,
    /// Without the slack.
    pub(crate) bound: f64,
    pub(crate) slack_ms: f64,
    /// `None` when it did not happen.
    pub(crate) measured: Option<f64>,
    pub(crate) kept: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Ms,
    Count,
}

/// What must hold when something did not happen at all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    /// It is owed: the promise is broken.
    Broken,
    /// It would have been the trouble: the promise is kept.
    Kept,
}

struct Lines {
    lines: Vec<Promise>,
    slack_ms: f64,
}

impl Lines {
    fn time(
        &mut self,
        (name, promise, what, formula): (&'static str, u8, &'static str, &'static str),
        relation: Relation,
        bound: Duration,
        measured: Option<f64>,
        absent: Absent,
    ) {
        let (bound, slack_ms) = (bound.as_secs_f64() * 1e3, self.slack_ms);
        let kept = match (measured, relation) {
            (None, _) => absent == Absent::Kept,
            (Some(measured), Relation::AtMost) => measured <= bound + slack_ms,
            (Some(measured), Relation::AtLeast) => measured >= bound - slack_ms,
        };
        let unit = Unit::Ms;
        self.lines.push(Promise { name, promise, what, formula, unit, relation, bound, slack_ms, measured, kept });
    }

    fn none(&mut self, name: &'static str, promise: u8, what: &'static str, measured: u64) {
        self.lines.push(Promise {
            name,
            promise,
            what,
            formula: "none",
            unit: Unit::Count,
            relation: Relation::AtMost,
            bound: 0.0,
            slack_ms: 0.0,
            measured: Some(measured as f64),
            kept: measured == 0,
        });
    }
}

/// Every line that the drill owes.
pub(crate) fn judge(finished: &Finished, measured: &Measured) -> Vec<Promise> {
    let settings = &finished.settings;
    let mut lines = Lines { lines: Vec::new(), slack_ms: finished.slack.as_secs_f64() * 1e3 };
    let (poll, timeout, grace) = (settings.poll_interval, settings.call_timeout, settings.grace);
    match finished.scenario.owed(settings) {
        Owed::Denied(within) => {
            let formula = match finished.scenario {
                Scenario::PinChanged => "fresh_proof_every × poll_interval + poll_interval + call_timeout",
                _ => "poll_interval + call_timeout",
            };
            let last = ("last-success", 1, "last success after the act", formula);
            lines.time(last, Relation::AtMost, within, measured.last_success_ms, Absent::Kept);
            let first = ("first-refusal", 1, "first refusal after the act", formula);
            lines.time(first, Relation::AtMost, within, measured.first_refusal_ms, Absent::Broken);
            let wiped = ("wiped", 6, "every AEK wiped after the act", formula);
            lines.time(wiped, Relation::AtMost, within, measured.wiped_ms, Absent::Broken);
            resumption(&mut lines, poll, measured);
        }
        Owed::Lapsed => {
            noticed(&mut lines, poll + timeout, measured);
            let least = grace.saturating_sub(poll + timeout);
            let formula = "grace − poll_interval − call_timeout";
            let first = ("served-in-outage", 3, "first refusal in the outage, not earlier than", formula);
            lines.time(first, Relation::AtLeast, least, measured.first_refusal_ms, Absent::Broken);
            let last = ("last-success", 1, "last success after the act", "grace");
            lines.time(last, Relation::AtMost, grace, measured.last_success_ms, Absent::Kept);
            let wiped = ("wiped", 6, "every AEK wiped after the act", "grace");
            lines.time(wiped, Relation::AtMost, grace, measured.wiped_ms, Absent::Broken);
            resumption(&mut lines, poll, measured);
        }
        Owed::Service(_) => {
            noticed(&mut lines, poll + timeout, measured);
            lines.none("refused-operations", 3, "operations refused while the token was unreachable", measured.refused);
            let active = ("active-again", 2, "lease active again after the undoing", "poll_interval");
            lines.time(active, Relation::AtMost, poll, measured.active_ms, Absent::Broken);
        }
        Owed::Undisturbed => {
            lines.none("refused-operations", 3, "operations refused while keys were rotated", measured.refused);
            let behind = "accounts with an AEK that is not under the new KEK version";
            lines.none("accounts-left-behind", 5, behind, measured.left_behind.unwrap_or(u64::MAX));
            let old = "accounts that do not seal under a new AEK version";
            lines.none("accounts-not-rotated", 5, old, measured.not_rotated.unwrap_or(u64::MAX));
        }
    }
    lines.none("accounts-missing", 2, "accounts that did not work at the end", measured.accounts_missing);
    let wrong = match finished.scenario {
        Scenario::Restart => "operations with the wrong outcome, across every restart",
        _ => "operations with the wrong outcome",
    };
    let promise = if finished.scenario == Scenario::Restart { 4 } else { 3 };
    lines.none("wrong-outcomes", promise, wrong, measured.wrong);
    lines.none("unverified-bytes", 5, "bytes that did not verify", measured.unverified_bytes);
    lines.lines
}

/// Without it, an act that took no hold would pass for an outage that nobody noticed.
fn noticed(lines: &mut Lines, within: Duration, measured: &Measured) {
    let line = ("noticed", 3, "the outage noticed after the act", "poll_interval + call_timeout");
    lines.time(line, Relation::AtMost, within, measured.noticed_ms, Absent::Broken);
}

fn resumption(lines: &mut Lines, poll: Duration, measured: &Measured) {
    let first = ("first-success", 2, "first success after the undoing", "poll_interval");
    lines.time(first, Relation::AtMost, poll, measured.first_success_ms, Absent::Broken);
    let all = ("all-back", 2, "every account back after the undoing", "30 min");
    lines.time(all, Relation::AtMost, RESUMPTION_MAX, measured.all_back_ms, Absent::Broken);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::{measure::measure, report::tests::finished};

    fn kept(promises: &[Promise], name: &str) -> bool {
        promises.iter().find(|promise| promise.name == name).unwrap_or_else(|| panic!("{name}")).kept
    }

    fn revocation() -> (Finished, Measured) {
        let finished = finished(Scenario::Revocation);
        let measured = Measured {
            last_success_ms: Some(2999.0),
            first_refusal_ms: Some(3000.0),
            wiped_ms: Some(3000.0),
            first_success_ms: Some(2000.0),
            all_back_ms: Some(1_800_000.0),
            ..measure(&finished)
        };
        (finished, measured)
    }

    #[test]
    fn a_revocation_owes_poll_interval_and_call_timeout_and_the_stated_slack_and_no_more() {
        let (finished, measured) = revocation();
        let promises = judge(&finished, &measured);
        assert!(promises.iter().all(|promise| promise.kept), "{promises:#?}");
        let late = Measured { last_success_ms: Some(3001.0), first_success_ms: Some(2001.0), ..measured };
        let promises = judge(&finished, &late);
        assert!(!kept(&promises, "last-success") && !kept(&promises, "first-success") && kept(&promises, "wiped"));
    }

    #[test]
    fn what_is_owed_and_did_not_happen_is_a_broken_promise() {
        let (finished, measured) = revocation();
        let never =
            Measured { first_refusal_ms: None, wiped_ms: None, all_back_ms: None, last_success_ms: None, ..measured };
        let promises = judge(&finished, &never);
        for name in ["first-refusal", "wiped", "all-back"] {
            assert!(!kept(&promises, name), "{name}");
        }
        assert!(kept(&promises, "last-success"), "no success after the act is the best that can be");
    }

    #[test]
    fn an_outage_owes_service_and_counts_carry_no_slack() {
        let finished = finished(Scenario::Outage);
        let well = Measured { noticed_ms: Some(1.0), active_ms: Some(0.0), ..Measured::default() };
        assert!(judge(&finished, &well).iter().all(|promise| promise.kept));
        let refused = Measured { refused: 1, ..well.clone() };
        assert!(!kept(&judge(&finished, &refused), "refused-operations"));
        let corrupt = Measured { unverified_bytes: 1, ..well };
        assert!(!kept(&judge(&finished, &corrupt), "unverified-bytes"));
    }

    #[test]
    fn a_rotation_owes_service_and_every_account_under_the_new_versions() {
        let finished = finished(Scenario::Rotation);
        let well = Measured { left_behind: Some(0), not_rotated: Some(0), ..Measured::default() };
        assert!(judge(&finished, &well).iter().all(|promise| promise.kept));
        for (broken, name) in [
            (Measured { refused: 1, ..well.clone() }, "refused-operations"),
            (Measured { left_behind: Some(1), ..well.clone() }, "accounts-left-behind"),
            (Measured { not_rotated: None, ..well.clone() }, "accounts-not-rotated"),
        ] {
            assert!(!kept(&judge(&finished, &broken), name), "{name}");
        }
    }

    #[test]
    fn a_long_outage_must_be_served_until_grace_and_not_beyond() {
        let finished = finished(Scenario::LongOutage);
        let (_, measured) = revocation();
        let well = Measured {
            noticed_ms: Some(1.0),
            first_refusal_ms: Some(7000.0),
            last_success_ms: Some(10_999.0),
            ..measured
        };
        assert!(judge(&finished, &well).iter().all(|promise| promise.kept));
        let early = Measured { first_refusal_ms: Some(6999.0), ..well.clone() };
        assert!(!kept(&judge(&finished, &early), "served-in-outage"));
        let late = Measured { last_success_ms: Some(11_001.0), ..well };
        assert!(!kept(&judge(&finished, &late), "last-success"));
    }
}
