//! The rows that were measured, beside their targets: for a terminal, for the READMEs and for machines.

use crate::{
    common::pairs::Spread,
    targets::{Bound, HEADLINES, TARGETS, Target, Unit},
};
use serde_json::{Value, json};
use std::{collections::HashMap, fmt::Write as _, fs, path::Path};

/// What came of a row.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    pub(crate) spread: Spread,
    /// How it was got, where that is not plain.
    pub(crate) note: String,
}

/// What came of the run.
#[derive(Debug, Default)]
pub(crate) struct Table {
    figures: HashMap<String, Figure>,
    /// Why rows of a kind are missing.
    missing: Vec<String>,
}

/// Which rows are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    All,
    /// When only some parts were to be measured.
    Measured,
    /// What a reader of benches/README.md needs.
    Readme,
    /// What README.md says of it.
    Headlines,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Met,
    Missed,
    Reported,
    NotMeasured,
}

impl Table {
    /// Puts a figure into its row.
    pub(crate) fn put(&mut self, key: &str, spread: Spread, note: impl Into<String>) {
        assert!(TARGETS.iter().any(|target| target.key == key), "no row {key:?} in the list of targets");
        self.figures.insert(key.into(), Figure { spread, note: note.into() });
    }

    /// Puts one value into its row.
    pub(crate) fn put_value(&mut self, key: &str, value: f64, note: impl Into<String>) {
        self.put(key, Spread { low: value, median: value, high: value }, note);
    }

    /// Says why something was not measured.
    pub(crate) fn leave_out(&mut self, why: impl Into<String>) {
        self.missing.push(why.into());
    }

    /// Takes the rows that other benchmarks left: `{"value": 0.81, "low": 0.79, "high": 0.82, "note": "…"}` in KEY.json.
    pub(crate) fn take_rows_of_others(&mut self, dir: &Path) {
        for target in TARGETS {
            let Ok(text) = fs::read_to_string(dir.join(format!("{}.json", target.key))) else { continue };
            let Ok(row) = serde_json::from_str::<Value>(&text) else {
                self.leave_out(format!("{}.json is no JSON", target.key));
                continue;
            };
            let number = |name: &str| row[name].as_f64();
            let Some(median) = number("value") else {
                self.leave_out(format!("{}.json has no \"value\"", target.key));
                continue;
            };
            let spread =
                Spread { low: number("low").unwrap_or(median), median, high: number("high").unwrap_or(median) };
            self.put(target.key, spread, row["note"].as_str().unwrap_or_default());
        }
    }

    /// How many targets were missed, and how many rows with a target were not measured.
    pub(crate) fn missed(&self) -> (usize, usize) {
        let count = |wanted| TARGETS.iter().filter(|target| self.verdict(target) == wanted).count();
        (count(Verdict::Missed), count(Verdict::NotMeasured))
    }

    fn verdict(&self, target: &Target) -> Verdict {
        let Some(Figure { spread, .. }) = self.figures.get(target.key) else {
            return match target.bound {
                Bound::Reported | Bound::Beside => Verdict::Reported,
                _ => Verdict::NotMeasured,
            };
        };
        // As it is shown: a ratio that reads 0.95 is 0.95.
        let value = rounded(spread.median, target.unit);
        let met = match target.bound {
            Bound::AtLeast(least) => value >= least,
            Bound::AtMost(most) => value <= most,
            Bound::MoreThan(other) => value > other,
            Bound::Exactly(exact) => value == exact,
            Bound::Reported | Bound::Beside => return Verdict::Reported,
        };
        if met { Verdict::Met } else { Verdict::Missed }
    }

    /// Target, figure and verdict, as text.
    fn cells(&self, target: &Target) -> [String; 4] {
        let figure = self.figures.get(target.key);
        let measured = figure.map_or_else(|| "–".into(), |figure| show_spread(figure.spread, target.unit));
        let verdict = match (self.verdict(target), figure) {
            (Verdict::Met, _) => "met".into(),
            (Verdict::Missed, Some(figure)) => {
                let missed = format!("**missed by {}**", by_how_much(target, figure.spread.median));
                if target.miss.is_empty() { missed } else { format!("{missed}: {}", target.miss) }
            }
            (Verdict::Reported, Some(_)) => "reported".into(),
            _ => format!("not measured: {}", target.by),
        };
        let what = match figure.map(|figure| figure.note.as_str()) {
            Some(note) if !note.is_empty() => format!("{} ({note})", target.what),
            _ => target.what.into(),
        };
        [what, show_bound(target), measured, verdict]
    }

    /// The table in Markdown.
    pub(crate) fn markdown(&self, rows: Rows) -> String {
        let mut text = "| what | target | measured | |\n| --- | --- | --- | --- |\n".to_owned();
        let shown = |target: &&Target| match rows {
            Rows::All => true,
            Rows::Measured => self.figures.contains_key(target.key),
            Rows::Readme => target.bound != Bound::Beside,
            Rows::Headlines => HEADLINES.contains(&target.key),
        };
        for target in TARGETS.iter().filter(shown) {
            let [what, bound, measured, verdict] = self.cells(target);
            let _ = writeln!(text, "| {what} | {bound} | {measured} | {verdict} |");
        }
        if rows == Rows::Headlines {
            return text;
        }
        for why in &self.missing {
            let _ = writeln!(text, "\nNot measured: {why}.");
        }
        text
    }

    /// The table for machines.
    pub(crate) fn json(&self) -> Value {
        let row = |target: &Target| {
            let figure = self.figures.get(target.key);
            json!({
                "key": target.key,
                "what": target.what,
                "target": show_bound(target),
                "median": figure.map(|figure| figure.spread.median),
                "low_quartile": figure.map(|figure| figure.spread.low),
                "high_quartile": figure.map(|figure| figure.spread.high),
                "note": figure.map(|figure| figure.note.clone()),
                "verdict": format!("{:?}", self.verdict(target)).to_lowercase(),
            })
        };
        json!({ "rows": TARGETS.iter().map(row).collect::<Vec<_>>(), "not_measured": self.missing })
    }
}

fn digits(unit: Unit) -> usize {
    match unit {
        Unit::Ratio => 2,
        Unit::Milliseconds => 2,
        Unit::Nanoseconds | Unit::Bytes | Unit::MegabytesASecond => 0,
        Unit::Calls => 2,
    }
}

fn rounded(value: f64, unit: Unit) -> f64 {
    let scale = 10_f64.powi(digits(unit) as i32);
    (value * scale).round() / scale
}

fn show(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Ratio => format!("{value:.2}"),
        Unit::Nanoseconds => format!("{value:.0} ns"),
        Unit::Milliseconds => format!("{value:.2} ms"),
        Unit::Bytes => format!("{value:.0} bytes"),
        Unit::MegabytesASecond => format!("{value:.0} MB/s"),
        Unit::Calls if value.fract() == 0.0 => format!("{value:.0}"),
        Unit::Calls => format!("{value:.2}"),
    }
}

fn show_spread(Spread { low, median, high }: Spread, unit: Unit) -> String {
    if low == high {
        show(median, unit)
    } else {
        format!("{} ({}–{})", show(median, unit), bare(low, unit), bare(high, unit))
    }
}

fn bare(value: f64, unit: Unit) -> String {
    format!("{value:.*}", digits(unit))
}

fn show_bound(target: &Target) -> String {
    match target.bound {
        Bound::AtLeast(least) => format!("≥ {}", show(least, target.unit)),
        Bound::AtMost(most) => format!("≤ {}", show(most, target.unit)),
        Bound::MoreThan(other) => format!("> {}", show(other, target.unit)),
        Bound::Exactly(exact) => show(exact, target.unit),
        Bound::Reported | Bound::Beside => "reported".into(),
    }
}

fn by_how_much(target: &Target, value: f64) -> String {
    match target.bound {
        Bound::AtLeast(bound) | Bound::AtMost(bound) | Bound::MoreThan(bound) if bound != 0.0 => {
            format!("{:.0} %", ((value - bound) / bound).abs() * 100.0)
        }
        Bound::Exactly(exact) => show((value - exact).abs(), target.unit),
        _ => show(value, target.unit),
    }
}
