//! `drill compare`: two reports side by side. What fails is a promise of the new one that does not hold, one that held and is not
//! shown to hold any more, and what the new one says nothing of: a promise or, but for `--common`, a scenario that is missing. A time or a
//! rate alone only by a `--threshold`.

use super::args::CompareBy;
use crate::{
    exit::Failure,
    output::{Output, REPORT_COLUMNS, within},
};
use keyleash::{Error, drill::FORMAT};
use serde_json::{Value, json};
use std::{fs::File, io::Read, path::Path};

/// A report of all drills, each with an hour's timeline, is far below this.
const REPORT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// A value that both reports have, or one.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    scenario: String,
    name: String,
    old: Value,
    new: Value,
    /// Fails the comparison: see [`is_worse`] and [`PLAYED`].
    worse: bool,
}

/// The row of a scenario that only one report has.
const PLAYED: &str = "played";

pub(crate) fn run(old: &Path, new: &Path, by: CompareBy, output: Output) -> Result<(), Failure> {
    let rows = compare(&read(old)?, &read(new)?, by);
    let worse: Vec<_> =
        rows.iter().filter(|row| row.worse).map(|row| format!("{}: {}", row.scenario, row.name)).collect();
    let json: Vec<_> = rows
        .iter()
        .map(|row| json!({ "scenario": row.scenario, "name": row.name, "old": row.old, "new": row.new, "worse": row.worse }))
        .collect();
    let mut lines = vec![["scenario", "what", "old", "new", "change"].map(String::from).to_vec()];
    lines.extend(rows.iter().map(line));
    output.result(
        &json!({ "format": "keyleash.drill-compare.v1", "worse": worse, "rows": json }),
        &within(&lines, REPORT_COLUMNS),
    )?;
    match worse.is_empty() {
        true => Ok(()),
        false => Err(Failure::Broken(format!("does not hold, is missing or is worse now: {}", worse.join("; ")))),
    }
}

fn line(row: &Row) -> Vec<String> {
    let change = match (row.old.as_f64(), row.new.as_f64()) {
        _ if row.worse => "WORSE".into(),
        (Some(old), Some(new)) if old != 0.0 => format!("{:+.0} %", (new / old - 1.0) * 100.0),
        _ => String::new(),
    };
    vec![row.scenario.clone(), row.name.clone(), shown(&row.old), shown(&row.new), change]
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn read(path: &Path) -> Result<Value, Failure> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| Failure::input(path, error))?;
    file.take(REPORT_BYTES_MAX).read_to_string(&mut text).map_err(|error| Failure::io(path.display(), error))?;
    let refused = |what: String| Failure::from(Error::Invalid(format!("{}: {what}", path.display())));
    let report: Value = serde_json::from_str(&text).map_err(|error| refused(format!("is no JSON report: {error}")))?;
    match report.get("format").and_then(Value::as_str) {
        Some(FORMAT) => Ok(report),
        Some(other) => Err(refused(format!("is a {other:?}, this release reads {FORMAT:?}"))),
        None => Err(refused("is no report of `keyleash drill --json`".into())),
    }
}

/// Every measurement and verdict of every scenario that either report has.
fn compare(old: &Value, new: &Value, by: CompareBy) -> Vec<Row> {
    let mut scenarios: Vec<&str> = Vec::new();
    for name in drills(old).chain(drills(new)).filter_map(|drill| drill.get("scenario").and_then(Value::as_str)) {
        if !scenarios.contains(&name) {
            scenarios.push(name);
        }
    }
    let mut rows = Vec::new();
    for scenario in scenarios {
        let of = |report| drills(report).find(|drill| drill.get("scenario").and_then(Value::as_str) == Some(scenario));
        let (old, new) = (of(old), of(new));
        if by.common && (old.is_none() || new.is_none()) {
            continue;
        }
        if old.is_some() != new.is_some() {
            let (old, new) = (json!(old.is_some()), json!(new.is_some()));
            let worse = new == false;
            rows.push(Row { scenario: scenario.into(), name: PLAYED.into(), old, new, worse });
        }
        let names = keys(old, measurements).into_iter().chain(keys(new, measurements));
        push(
            &mut rows,
            scenario,
            names,
            |name, old, new| by.threshold.is_some_and(|percent| is_slower(name, old, new, percent)),
            |name| (find(old, measurements, name), find(new, measurements, name)),
        );
        let names = keys(old, verdicts).into_iter().chain(keys(new, verdicts));
        push(
            &mut rows,
            scenario,
            names,
            |_, old, new| is_worse(old, new),
            |name| (find(old, verdicts, name), find(new, verdicts, name)),
        );
    }
    // What could not be played is not in the report's drills.
    let error = new.get("error").and_then(|error| error.get("scenario")).and_then(Value::as_str);
    // Unless nobody asked for it.
    let error = error.filter(|_| !by.common);
    if let Some(scenario) = error
        && !rows.iter().any(|row| row.scenario == scenario && row.worse)
    {
        let (old, new) = (Value::Null, json!(false));
        rows.push(Row { scenario: scenario.into(), name: PLAYED.into(), old, new, worse: true });
    }
    rows
}

/// A verdict that fails the comparison.
fn is_worse(old: &Value, new: &Value) -> bool {
    new == "fail" || (old == "pass" && new != "pass") || (!old.is_null() && new.is_null())
}

/// A time that both have and that is longer, or a rate that is lower, by more than so many percent.
fn is_slower(name: &str, old: &Value, new: &Value, percent: u32) -> bool {
    let (Some(old), Some(new)) = (old.as_f64(), new.as_f64()) else { return false };
    let factor = 1.0 + f64::from(percent) / 100.0;
    match name {
        // The machine's, not keyleash's.
        "machine_delay_ms" => false,
        time if time.ends_with("_ms") => new > old * factor,
        rate if rate.ends_with("_per_s") || rate.ends_with("_percent") => new * factor < old,
        _ => false,
    }
}

type Pairs = Vec<(String, Value)>;

fn drills(report: &Value) -> impl Iterator<Item = &Value> {
    report.get("drills").and_then(Value::as_array).into_iter().flatten()
}

fn measurements(drill: &Value) -> Pairs {
    let object = drill.get("measurements").and_then(Value::as_object);
    object.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn verdicts(drill: &Value) -> Pairs {
    let promises = drill.get("promises").and_then(Value::as_array).into_iter().flatten();
    let pair = |promise: &Value| {
        let name = promise.get("name").and_then(Value::as_str)?;
        Some((format!("promise {name}"), promise.get("verdict")?.clone()))
    };
    promises.filter_map(pair).collect()
}

fn keys(drill: Option<&Value>, pairs: impl Fn(&Value) -> Pairs) -> Vec<String> {
    drill.map(pairs).unwrap_or_default().into_iter().map(|(name, _)| name).collect()
}

fn find(drill: Option<&Value>, pairs: impl Fn(&Value) -> Pairs, name: &str) -> Value {
    let pairs = drill.map(pairs).unwrap_or_default();
    pairs.into_iter().find(|(known, _)| known == name).map_or(Value::Null, |(_, value)| value)
}

fn push(
    rows: &mut Vec<Row>,
    scenario: &str,
    names: impl Iterator<Item = String>,
    is_worse: impl Fn(&str, &Value, &Value) -> bool,
    values: impl Fn(&str) -> (Value, Value),
) {
    for name in names {
        if rows.iter().any(|row| row.scenario == scenario && row.name == name) {
            continue;
        }
        let (old, new) = values(&name);
        let worse = is_worse(&name, &old, &new);
        rows.push(Row { scenario: scenario.into(), name, old, new, worse });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(scenario: &str, ms: f64, verdict: &str) -> Value {
        json!({ "format": FORMAT, "drills": [{
            "scenario": scenario,
            "measurements": { "last_success_ms": ms },
            "promises": [{ "name": "last-success", "verdict": verdict }],
        }] })
    }

    fn worse(old: &Value, new: &Value) -> Vec<String> {
        worse_by(old, new, CompareBy::default())
    }

    fn worse_by(old: &Value, new: &Value, by: CompareBy) -> Vec<String> {
        let rows = compare(old, new, by);
        rows.into_iter().filter(|row| row.worse).map(|row| format!("{}: {}", row.scenario, row.name)).collect()
    }

    #[test]
    fn a_slower_time_alone_is_not_worse() {
        let fast = report("outage", 1.0, "pass");
        assert_eq!(worse(&fast, &report("outage", 900.0, "pass")), [""; 0]);
    }

    #[test]
    fn a_time_that_is_longer_by_more_than_the_threshold_is_worse() {
        let old = report("outage", 100.0, "pass");
        let by = |percent| CompareBy { threshold: Some(percent), common: false };
        assert_eq!(worse_by(&old, &report("outage", 150.0, "pass"), by(50)), [""; 0]);
        assert_eq!(worse_by(&old, &report("outage", 151.0, "pass"), by(50)), ["outage: last_success_ms"]);
        assert_eq!(worse_by(&old, &report("outage", 20.0, "pass"), by(50)), [""; 0]);
        assert!(is_slower("service_rate_percent", &json!(100.0), &json!(60.0), 50));
        assert!(
            !is_slower("machine_delay_ms", &json!(1.0), &json!(60.0), 50)
                && !is_slower("refused", &json!(1), &json!(9), 50)
        );
    }

    #[test]
    fn of_two_reports_what_both_have_is_compared_where_that_is_asked_for() {
        let (outage, hang) = (report("outage", 1.0, "pass"), report("hang", 1.0, "pass"));
        let common = CompareBy { common: true, threshold: None };
        assert_eq!(worse_by(&outage, &hang, common), [""; 0]);
        assert_eq!(worse_by(&outage, &report("outage", 1.0, "fail"), common), ["outage: promise last-success"]);
    }

    #[test]
    fn a_promise_that_fails_now_is_worse_whatever_it_did_before() {
        let fails = report("outage", 900.0, "fail");
        let silent =
            json!({ "format": FORMAT, "drills": [{ "scenario": "outage", "measurements": {}, "promises": [] }] });
        for old in [report("outage", 1.0, "pass"), report("outage", 1.0, "inconclusive"), fails.clone(), silent] {
            assert_eq!(worse(&old, &fails), ["outage: promise last-success"], "{old}");
        }
    }

    #[test]
    fn a_promise_that_held_and_is_not_shown_to_hold_any_more_is_worse() {
        let held = report("outage", 1.0, "pass");
        let vanished = json!({ "format": FORMAT, "drills": [{ "scenario": "outage", "promises": [] }] });
        for new in [report("outage", 1.0, "inconclusive"), vanished] {
            assert_eq!(worse(&held, &new), ["outage: promise last-success"], "{new}");
        }
        let open = report("outage", 1.0, "inconclusive");
        assert_eq!(worse(&open, &open), [""; 0]);
    }

    #[test]
    fn a_scenario_that_the_new_report_lacks_is_worse_and_one_that_it_has_more_is_not() {
        let (outage, both) = (report("outage", 1.0, "pass"), {
            let mut both = report("outage", 1.0, "pass");
            let more = report("hang", 1.0, "pass")["drills"][0].clone();
            both["drills"].as_array_mut().unwrap().push(more);
            both
        });
        let missing = worse(&both, &outage);
        assert_eq!(missing, ["hang: played", "hang: promise last-success"]);
        assert_eq!(worse(&outage, &both), [""; 0]);
        let mut stopped = outage.clone();
        stopped["error"] = json!({ "scenario": "hang", "message": "m" });
        assert_eq!(worse(&both, &stopped), missing);
        assert_eq!(worse(&outage, &stopped), ["hang: played"]);
    }
}
