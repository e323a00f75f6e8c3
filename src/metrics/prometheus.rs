//! The text exposition format of Prometheus, version 0.0.4.

use super::{FAMILIES, Kind, Sample, UnwrapsTook, Value};
use std::{fmt::Write, time::Duration};

/// Families one after the other, each with its help and type; those without a sample are left out.
pub(super) fn text(samples: &[Sample]) -> String {
    let mut text = String::new();
    for family in FAMILIES {
        let mut of = samples.iter().filter(|sample| sample.family == *family).peekable();
        if of.peek().is_none() {
            continue;
        }
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a string does not fail, here and below.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}", name = family.name, help = family.help);
        of.for_each(|sample| one(&mut text, sample));
    }
    text
}

fn one(text: &mut String, Sample { family, labels, value }: &Sample) {
    match value {
        Value::Count(count) => line(text, family.name, labels, None, count),
        Value::Number(number) => line(text, family.name, labels, None, number),
        Value::Took(took) => {
            let bucket = format!("{}_bucket", family.name);
            let mut count = 0_u64;
            for class in took {
                count = count.saturating_add(class.count);
                let up_to = class.up_to.map_or_else(|| "+Inf".into(), |up_to| up_to.as_secs_f64().to_string());
                line(text, &bucket, labels, Some(&up_to), &count);
            }
            line(text, &format!("{}_sum", family.name), labels, None, &total(took).as_secs_f64());
            line(text, &format!("{}_count", family.name), labels, None, &count);
        }
    }
}

fn total(took: &[UnwrapsTook]) -> Duration {
    took.iter().fold(Duration::ZERO, |sum, class| sum.saturating_add(class.total))
}

fn line(
    text: &mut String,
    name: &str,
    labels: &[(&'static str, String)],
    up_to: Option<&str>,
    value: &dyn std::fmt::Display,
) {
    text.push_str(name);
    let up_to = up_to.map(|up_to| ("le", up_to));
    let labels = labels.iter().map(|(name, label)| (*name, label.as_str())).chain(up_to);
    for (place, (name, label)) in labels.clone().enumerate() {
        let _ = write!(text, "{}{name}=\"{}\"", if place == 0 { '{' } else { ',' }, escaped(label));
    }
    let end = if labels.count() == 0 { "" } else { "}" };
    let _ = writeln!(text, "{end} {value}");
}

fn escaped(label: &str) -> String {
    label.replace('\\', r"\\").replace('"', "\\\"").replace('\n', "\\n")
}
