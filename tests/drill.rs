//! Drills through the real binary on a real token: the documented JSON (`manual::drills`), verdicts and exit statuses.

// Helpers of a test may fail it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use serde_json::Value;
use std::{
    env, fs,
    path::Path,
    process::{Command, Output, Stdio},
};

/// On a token of its own, because a drill makes its token unreachable for whoever shares it.
fn drill(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/softhsm/with-token"))
        .arg(env!("CARGO_BIN_EXE_keyleash"))
        .arg("drill")
        .args(arguments)
        .current_dir(directory)
        .env_remove("KEYLEASH_STORE")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs a fast drill and gives its part of the report. The machine may be busy: hence the slack.
fn fast(directory: &Path, scenario: &str, more: &[&str]) -> Value {
    let output = drill(directory, &[&[scenario, "--fast", "--slack", "3000", "--json"], more].concat());
    let words = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {words}"));
    assert!(output.status.success(), "{words}\n{report:#}");
    fs::write(directory.join(format!("{scenario}.json")), &output.stdout).unwrap();
    assert_eq!(report["format"], "keyleash.drill.v1");
    assert_eq!(report["passed"], true);
    report["drills"][0].clone()
}

fn verdict<'a>(drill: &'a Value, name: &str) -> &'a Value {
    let promises = drill["promises"].as_array().unwrap();
    let promise =
        promises.iter().find(|promise| promise["name"] == name).unwrap_or_else(|| panic!("{name}: {drill:#}"));
    &promise["verdict"]
}

#[test]
fn a_revocation_is_measured_and_keeps_its_promises() {
    let directory = tempfile::tempdir().unwrap();
    let drill = fast(directory.path(), "revocation", &["--picture", "p.svg", "--report", "r.html", "--accounts", "7"]);
    assert_eq!((&drill["scenario"], &drill["settings"]["accounts"]), (&"revocation".into(), &7.into()));
    for name in ["last-success", "first-refusal", "wiped", "first-success", "all-back", "wrong-outcomes"] {
        assert_eq!(verdict(&drill, name), "pass", "{name}");
    }
    let measured = &drill["measurements"];
    for name in ["first_refusal_ms", "wiped_ms", "first_success_ms", "all_back_ms", "account_back_p99_ms"] {
        assert!(measured[name].is_number(), "{name}: {measured:#}");
    }
    assert_eq!((&measured["unverified_bytes"], &measured["accounts_missing"]), (&0.into(), &0.into()));
    assert!(measured["refused"].as_u64().unwrap() > 0 && measured["unwraps_served"].as_u64().unwrap() >= 7);
    let kinds: Vec<_> = drill["acts"].as_array().unwrap().iter().map(|act| act["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["act", "undoing"]);
    let phases: Vec<_> = drill["timeline"]["lease"].as_array().unwrap().iter().map(|sample| &sample["phase"]).collect();
    for phase in ["active", "denied"] {
        assert!(phases.iter().any(|seen| *seen == phase), "{phase}: {phases:?}");
    }
    assert!(fs::read_to_string(directory.path().join("p.svg")).unwrap().ends_with("</svg>\n"));
    assert!(fs::read_to_string(directory.path().join("r.html")).unwrap().contains("drill revocation"));

    let report = directory.path().join("revocation.json");
    let same = self::drill(directory.path(), &["compare", "revocation.json", "revocation.json"]);
    assert!(same.status.success());
    let broken = fs::read_to_string(report).unwrap().replace("\"verdict\":\"pass\"", "\"verdict\":\"fail\"");
    fs::write(directory.path().join("broken.json"), broken).unwrap();
    let worse = self::drill(directory.path(), &["compare", "revocation.json", "broken.json"]);
    assert_eq!(worse.status.code(), Some(9));
}

#[test]
fn an_outage_disturbs_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let drill = fast(directory.path(), "outage", &[]);
    for name in ["noticed", "refused-operations", "active-again", "wrong-outcomes", "unverified-bytes"] {
        assert_eq!(verdict(&drill, name), "pass", "{name}");
    }
    let measured = &drill["measurements"];
    assert_eq!((&measured["refused"], &measured["first_refusal_ms"]), (&0.into(), &Value::Null));
    assert!(measured["noticed_ms"].is_number());
}

/// A token that with-token did not make: the directory does not say that it is this token's.
#[test]
fn a_drill_keeps_its_hands_off_a_token_that_with_token_did_not_make() {
    let directory = tempfile::tempdir().unwrap();
    let script = r#"rm "$(dirname "$SOFTHSM2_CONF")/label"; for scenario in revocation outage destroy; do
        "$0" drill $scenario --fast; [ $? = 2 ] || exit 1; done; "$0" drill destroy --operator; [ $? = 2 ] || exit 1
        "$0" drill revocation --token-serial 1; [ $? = 2 ] || exit 1"#;
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/softhsm/with-token"))
        .args(["bash", "-c", script, env!("CARGO_BIN_EXE_keyleash")])
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    assert_eq!(words.matches("--operator").count(), 3, "{words}");
    assert_eq!(words.matches("--token-serial").count(), 3, "{words}");
}
