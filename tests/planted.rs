//! The lines that a drill prints are seen to fail: with a fault that the engine was built to have, the drill, through the real binary
//! on a real token, ends with 9 and names the line. Drills are the product's proof, so they are tested like it.
//!
//! A few in CI; all with `cargo test --features planted-faults --test planted -- --include-ignored`. `PLANTED_ONLY=OpensWrong,GrantLate` plays
//! those alone.

// Helpers of a test may fail it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use serde_json::Value;
use std::{
    process::{Command, Stdio},
    sync::Mutex,
};

/// The fault, the drill, and the lines that it breaks.
type Planted = (&'static str, &'static str, &'static [&'static str]);

/// One for each kind of measurement: times, memory, service, headers.
const FEW: &[Planted] = &[
    ("VerdictHeld", "revocation", &["last-success", "first-refusal", "wiped"]),
    ("WipeOmitted", "revocation", &["keys-left"]),
    ("SealsBlockInGrace", "outage", &["service-gap"]),
    ("RotationNotTakenUp", "rotation", &["accounts-not-rotated"]),
];

const OTHERS: &[Planted] = &[
    ("DenialIgnored", "revocation", &["last-success", "first-refusal", "wiped"]),
    ("GrantLate", "revocation", &["first-success"]),
    ("SomeStayAway", "revocation", &["all-back", "accounts-missing"]),
    ("OpensWrong", "revocation", &["unverified-bytes"]),
    ("RefusesAtTimes", "revocation", &["wrong-outcomes"]),
    ("SilenceIgnored", "outage", &["noticed"]),
    ("RefusesInGrace", "outage", &["refused-operations"]),
    ("SealsSlowInGrace", "outage", &["service-rate"]),
    ("SealsBlockAfter", "outage", &["service-gap-after"]),
    ("SealsSlowAfter", "outage", &["service-rate-after"]),
    ("GrantLate", "outage", &["active-again"]),
    ("SealsBlockInGrace", "hang", &["service-gap"]),
    ("RefusesInGrace", "flapping", &["refused-operations"]),
    ("LapsesEarly", "long-outage", &["served-in-outage"]),
    ("LapsesLate", "long-outage", &["last-success", "wiped"]),
    ("WipeOmitted", "long-outage", &["keys-left"]),
    ("DenialNotWritten", "restart", &["wrong-outcomes"]),
    ("RefusesAtTimes", "rotation", &["refused-operations"]),
    ("SomeLeftBehind", "rotation", &["accounts-left-behind"]),
];

/// Beside another drill the machine is late, which excuses what is late by as much.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn drill(fault: &str, scenario: &str) -> (Option<i32>, Value, String) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let accounts = if scenario == "rotation" { "40" } else { "20" };
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/softhsm/with-token"))
        .arg(env!("CARGO_BIN_EXE_keyleash"))
        .args(["drill", scenario, "--fast", "--json", "--accounts", accounts])
        .env("PLANTED_FAULT", fault)
        .env_remove("KEYLEASH_STORE")
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("BREAKS ITS PROMISES ON PURPOSE"), "the build does not say what it is: {words}");
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{fault}: {error}: {words}"));
    (output.status.code(), report, words)
}

fn is_found((fault, scenario, lines): &Planted) -> Result<(), String> {
    let (status, report, words) = drill(fault, scenario);
    let promises = report["drills"][0]["promises"].as_array().cloned().unwrap_or_default();
    let failed: Vec<_> =
        promises.iter().filter(|line| line["verdict"] == "fail").filter_map(|line| line["name"].as_str()).collect();
    println!("{fault}, {scenario}: {failed:?}");
    match status == Some(9) && lines.iter().all(|line| failed.contains(line)) {
        true => Ok(()),
        false => {
            Err(format!("{fault}, {scenario}: status {status:?}, {failed:?} failed, and {lines:?} should\n{words}"))
        }
    }
}

fn all_are_found(planted: &[Planted]) {
    let only = std::env::var("PLANTED_ONLY").unwrap_or_default();
    let wanted = planted.iter().filter(|(fault, ..)| only.is_empty() || only.split(',').any(|name| name == *fault));
    let missed: Vec<_> = wanted.filter_map(|planted| is_found(planted).err()).collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn a_drill_finds_a_promise_that_the_engine_breaks() {
    all_are_found(FEW);
}

#[test]
#[ignore = "some ten minutes"]
fn every_line_of_a_drill_fails_when_the_engine_breaks_what_it_says() {
    assert!(FEW.len() + OTHERS.len() >= 20);
    all_are_found(OTHERS);
}
