//! Against a recorder, and the text.

use super::*;
use crate::telemetry::trail::{Noted, Record, Trail};
use ::metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

/// What a recorder was told, by the series as it prints.
#[derive(Debug, Clone, Default)]
struct Told(Arc<Mutex<BTreeMap<String, Vec<f64>>>>);

struct Of(Told, String);

impl Of {
    fn tell(&self, value: f64, again: bool) {
        let mut told = self.0.0.lock().unwrap();
        let values = told.entry(self.1.clone()).or_default();
        if !again {
            values.clear();
        }
        values.push(value);
    }
}

impl CounterFn for Of {
    fn increment(&self, _: u64) {
        panic!("counters are told as they stand");
    }

    fn absolute(&self, value: u64) {
        self.tell(value as f64, false);
    }
}

impl GaugeFn for Of {
    fn increment(&self, _: f64) {
        panic!("gauges are told as they stand");
    }

    fn decrement(&self, _: f64) {
        panic!("gauges are told as they stand");
    }

    fn set(&self, value: f64) {
        self.tell(value, false);
    }
}

impl HistogramFn for Of {
    fn record(&self, value: f64) {
        self.tell(value, true);
    }
}

impl Told {
    fn of(&self, key: &Key) -> Arc<Of> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Arc::new(Of(self.clone(), format!("{} {}", key.name(), labels.join(" ")).trim_end().to_owned()))
    }

    fn get(&self, series: &str) -> Vec<f64> {
        self.0.lock().unwrap().get(series).cloned().unwrap_or_default()
    }
}

impl Recorder for Told {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.of(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.of(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.of(key))
    }
}

fn took(counts: [(u64, u64); 2]) -> Vec<UnwrapsTook> {
    let bounds = [Some(Duration::from_millis(10)), None];
    let class = |(up_to, (count, total_ms)): (Option<Duration>, (u64, u64))| UnwrapsTook {
        up_to,
        count,
        total: Duration::from_millis(total_ms),
    };
    bounds.into_iter().zip(counts).map(class).collect()
}

#[test]
fn each_unwrap_is_recorded_once_however_often_it_is_published_and_its_time_counts_in_its_class() {
    let (told, mut publisher) = (Told::default(), Publisher::default());
    let publish = |publisher: &mut Publisher, took: Vec<UnwrapsTook>| {
        let mut metrics = Metrics::default();
        metrics.sample(UNWRAP_TIME, &[("token", "a")], Value::Took(took));
        ::metrics::with_local_recorder(&told, || publisher.metrics(&metrics));
        told.get("keyleash_unwrap_seconds token=a")
    };
    assert_eq!(publish(&mut publisher, took([(2, 12), (0, 0)])), [0.006, 0.006]);
    assert_eq!(publish(&mut publisher, took([(2, 12), (0, 0)])), [0.006, 0.006], "nothing new");
    assert_eq!(publish(&mut publisher, took([(3, 16), (1, 30)])), [0.006, 0.006, 0.004, 0.03]);
}

#[test]
fn a_gauge_of_what_is_gone_says_so() {
    let (told, mut publisher) = (Told::default(), Publisher::default());
    let mut metrics = Metrics::default();
    metrics.number(REWRAP_DONE, &[("kek", "tenants")], 7.0);
    ::metrics::with_local_recorder(&told, || publisher.metrics(&metrics));
    assert_eq!(told.get("keyleash_rewrap_accounts_done kek=tenants"), [7.0]);
    ::metrics::with_local_recorder(&told, || publisher.metrics(&Metrics::default()));
    assert!(told.get("keyleash_rewrap_accounts_done kek=tenants")[0].is_nan());
}

#[test]
fn the_text_adds_up_classes_and_escapes_what_would_end_a_label() {
    let mut metrics = Metrics::default();
    metrics.sample(UNWRAP_TIME, &[("token", "a\"b\\c\nd")], Value::Took(took([(2, 12), (1, 30)])));
    metrics.count(FORBIDDEN, &[], 3);
    let text = metrics.prometheus();
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let of = r#"token="a\"b\\c\nd""#;
    assert_eq!(
        lines,
        [
            format!(r#"keyleash_unwrap_seconds_bucket{{{of},le="0.01"}} 2"#),
            format!(r#"keyleash_unwrap_seconds_bucket{{{of},le="+Inf"}} 3"#),
            format!("keyleash_unwrap_seconds_sum{{{of}}} 0.042"),
            format!("keyleash_unwrap_seconds_count{{{of}}} 3"),
            "keyleash_forbidden_total 3".into(),
        ]
    );
}

const RULES: &str = include_str!("alerts.yml");
const DASHBOARD: &str = include_str!("grafana.json");

#[test]
fn the_rules_and_the_dashboard_ask_for_metrics_and_events_that_there_are() {
    for (file, text, least) in [("alerts.yml", RULES, 17), ("grafana.json", DASHBOARD, 19)] {
        let mut named: Vec<_> = text
            .match_indices("keyleash_")
            .map(|(at, _)| {
                let name = &text[at..];
                &name[..name.find(|char: char| char != '_' && !char.is_ascii_alphanumeric()).unwrap()]
            })
            .collect();
        named.sort_unstable();
        named.dedup();
        assert!(named.len() >= least, "{file}: {named:?}");
        for name in named {
            let is = |family: &&Family| name == family.name || name.strip_suffix("_bucket") == Some(family.name);
            assert!(FAMILIES.iter().any(is), "{file} asks for {name}");
        }
    }
    let asked = RULES.split_once("event=~\"").unwrap().1.split_once('"').unwrap().0;
    for event in asked.split('|') {
        assert!(crate::telemetry::EVENT_NAMES.contains(&event), "alerts.yml asks for event {event}");
    }
    serde_json::from_str::<serde_json::Value>(DASHBOARD).unwrap();
}

/// All kinds of samples, of an engine that has done something.
async fn of_an_engine() -> Metrics {
    of_one_that_tells_of(0).await
}

/// It keeps a trail that stands still, and has seen three accounts, one of them twice.
async fn of_one_that_tells_of(accounts: u32) -> Metrics {
    use crate::{
        clock::Clock,
        config::Settings,
        name::{AccountId, KekName},
        store::memory::MemoryStore,
        token::{Profile, scripted::ScriptedToken},
    };
    let (token, _) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 1);
    let builder = Engine::builder(token, Arc::new(MemoryStore::new())).on_current_runtime();
    let settings = Settings::default().metric_accounts(accounts);
    let engine = builder.settings(settings).trail(Arc::new(Still)).build().unwrap();
    let kek = KekName::new("tenants").unwrap();
    engine.create_kek(&kek, Profile::AesGcm).await.unwrap();
    for name in ["alice", "bob", "carol"] {
        let id = AccountId::new(name).unwrap();
        let _account = engine.create_account(&id, &kek).await.unwrap();
        for _ in 0..if name == "alice" { 2 } else { 1 } {
            engine.account(&id).await.unwrap();
        }
    }
    Metrics::of(&engine)
}

#[derive(Debug)]
struct Still;

#[async_trait::async_trait]
impl Trail for Still {
    fn note(&self, _: Record) -> Noted {
        Noted::Taken
    }

    async fn write(&self, _: Record) -> crate::Result<()> {
        Ok(())
    }

    async fn flush(&self) -> crate::Result<()> {
        Ok(())
    }

    fn serves(&self) -> crate::Result<()> {
        Ok(())
    }

    fn standing(&self) -> Option<Standing> {
        Some(Standing { lag: Duration::from_millis(1500), waiting: 3, lost: 2, is_broken: true })
    }
}

#[tokio::test]
async fn how_the_trail_stands_is_told() {
    let text = of_an_engine().await.prometheus();
    for line in [
        "keyleash_trail_lag_seconds 1.5",
        "keyleash_trail_records_waiting 3",
        "keyleash_trail_records_lost_total 2",
        "keyleash_trail_broken 1",
    ] {
        assert!(text.lines().any(|told| told == line), "{line}: {text}");
    }
}

/// The first that come have a series each, however many there are.
#[tokio::test]
async fn accounts_are_told_by_their_ids_on_request_alone_and_no_more_than_were_asked_for() {
    let told = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).map(ToOwned::to_owned);
        line.and_then(|line| Some(line.rsplit_once(' ')?.1.to_owned()))
    };
    let text = of_one_that_tells_of(2).await.prometheus();
    for (account, opens) in [("alice", "2"), ("bob", "1"), ("", "1")] {
        let series = format!("keyleash_account_opens_total{{account=\"{account}\"}}");
        assert_eq!(told(&text, &series).as_deref(), Some(opens), "{account:?}: {text}");
    }
    assert!(!text.contains("carol"), "{text}");
    assert_eq!(told(&of_an_engine().await.prometheus(), "keyleash_account"), None);
}

#[tokio::test]
async fn no_series_names_an_account_and_each_is_of_a_family_and_told_once() {
    let metrics = of_an_engine().await;
    let text = metrics.prometheus();
    assert!(text.contains("kek=\"tenants\"") && !text.contains("alice"), "{text}");
    let series: Vec<_> =
        text.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap().0).collect();
    let mut once = series.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), series.len());
    assert_eq!(metrics.0.iter().filter(|sample| !FAMILIES.contains(&sample.family)).count(), 0);
}

/// `cargo test --lib metrics -- --ignored`, beside a promtool that `softhsm/need-promtool` installs.
#[tokio::test]
#[ignore = "needs promtool: softhsm/need-promtool"]
async fn promtool_takes_the_text_and_the_rules_and_the_queries_of_the_dashboard() {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };
    let promtool = |arguments: &[&str], input: &str| {
        let mut child = Command::new("promtool")
            .args(arguments)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/metrics"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("no promtool: run softhsm/need-promtool, which installs it");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&said));
    };
    promtool(&["check", "metrics"], &of_an_engine().await.prometheus());
    promtool(&["check", "rules", "alerts.yml"], "");
    promtool(&["test", "rules", "alerts.test.yml"], "");
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let targets = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let rule = |target: &serde_json::Value| {
        let query = target["expr"].as_str().unwrap().replace("$__rate_interval", "5m").replace("$instance", ".*");
        serde_json::json!({ "record": "panel", "labels": { "at": query.clone() }, "expr": query })
    };
    let rules: Vec<_> = targets.map(rule).collect();
    assert!(rules.len() > 15);
    let rules = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] }); // JSON is YAML
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rules.to_string()).unwrap();
    promtool(&["check", "rules", file.path().to_str().unwrap()], "");
}
