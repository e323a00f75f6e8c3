//! To whatever recorder of the `metrics` facade the host has installed.

use super::{FAMILIES, Kind, Metrics, Sample, UnwrapsTook, Value};
use crate::engine::Engine;
use ::metrics::{Label, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use std::collections::{BTreeMap, BTreeSet};

/// What tells one series from all others.
type Series = (&'static str, Vec<(&'static str, String)>);

/// Gives an engine's metrics to the recorder that the host installed; where there is none, to nobody. One publisher for each engine, which
/// it keeps no hold of: it remembers what it told last, because a recorder is told of each unwrap once.
#[derive(Debug, Default)]
pub struct Publisher {
    described: bool,
    gauges: BTreeSet<Series>,
    took: BTreeMap<Series, Vec<UnwrapsTook>>,
}

impl Publisher {
    /// Publishes what was counted so far, on the thread of the caller: call it some times a minute, or before the recorder is asked.
    ///
    /// A gauge of what is there no more (a lease that was forgotten, a re-wrap that ended) is set to NaN, since the facade takes none back.
    /// Of latencies each class has its count and its sum exactly; a recorder sees all unwraps of a class at their mean.
    pub fn publish(&mut self, engine: &Engine) {
        self.metrics(&Metrics::of(engine));
    }

    pub(super) fn metrics(&mut self, metrics: &Metrics) {
        if !std::mem::replace(&mut self.described, true) {
            describe();
        }
        let mut gauges = BTreeSet::new();
        for Sample { family, labels, value } in &metrics.0 {
            let series = (family.name, labels.clone());
            match value {
                Value::Count(count) => counter!(family.name, own(labels)).absolute(*count),
                Value::Number(number) => {
                    gauge!(family.name, own(labels)).set(*number);
                    gauges.insert(series);
                }
                Value::Took(took) => {
                    let before = self.took.insert(series, took.clone()).unwrap_or_default();
                    let histogram = histogram!(family.name, own(labels));
                    for (place, class) in took.iter().enumerate() {
                        if let Some((mean, count)) = since(class, before.get(place)) {
                            histogram.record_many(mean, count);
                        }
                    }
                }
            }
        }
        for (name, labels) in self.gauges.difference(&gauges) {
            gauge!(*name, own(labels)).set(f64::NAN);
        }
        self.gauges = gauges;
    }
}

/// The mean of what a class got since, in seconds, and how many that was.
fn since(class: &UnwrapsTook, before: Option<&UnwrapsTook>) -> Option<(f64, usize)> {
    let (count, total) = before.map_or((0, Default::default()), |before| (before.count, before.total));
    let count = class.count.saturating_sub(count);
    // The count and the sum are read one after the other: an unwrap may be in one of them alone.
    let mean = class.total.saturating_sub(total).as_secs_f64() / count.max(1) as f64;
    let mean = class.up_to.map_or(mean, |up_to| mean.min(up_to.as_secs_f64()));
    (count > 0).then(|| (mean, usize::try_from(count).unwrap_or(usize::MAX)))
}

fn own(labels: &[(&'static str, String)]) -> Vec<Label> {
    labels.iter().map(|(name, label)| Label::new(*name, label.clone())).collect()
}

fn describe() {
    for family in FAMILIES {
        match family.kind {
            Kind::Counter => describe_counter!(family.name, family.help),
            Kind::Gauge => describe_gauge!(family.name, family.help),
            Kind::Histogram => describe_histogram!(family.name, family.help),
        }
    }
}
