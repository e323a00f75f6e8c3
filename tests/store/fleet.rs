//! `keyleash drill fleet --nodes`, on a token of its own and a store on a server.

use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

fn drill(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/softhsm/with-token"))
        .arg(env!("CARGO_BIN_EXE_keyleash"))
        .args(["drill", "fleet"])
        .args(arguments)
        .current_dir(directory)
        .env_remove("KEYLEASH_STORE")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Three nodes on the store at `url`, reached by `settings` of `[store]`. No promise may be broken; on a busy machine some may be
/// inconclusive. The store is empty when they are over.
pub(crate) fn three_nodes(url: &str, settings: &str, more: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    fs::write(directory.join("keyleash.toml"), format!("[store]\nurl = \"{url}\"\n{settings}")).unwrap();
    let fixed = ["--nodes", "3", "--store", url, "--accounts", "5", "--threads", "1", "--fast", "--slack", "3000"];
    let output = drill(directory, &[&fixed[..], &["--json", "--picture", "p.svg"], more].concat());
    let words = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {words}"));
    let drill = &report["drills"][0];
    let promises = drill["promises"].as_array().unwrap();
    let inconclusive = promises.iter().any(|promise| promise["verdict"] == "inconclusive");
    assert_eq!(output.status.code(), Some(if inconclusive { 10 } else { 0 }), "{words}\n{report:#}");
    for name in ["last-success", "never-refused", "wiped", "keys-left", "all-back", "wrong-outcomes"] {
        assert!(promises.iter().any(|promise| promise["name"] == name), "{name}: {drill:#}");
    }
    let measured = &drill["measurements"];
    let (first, last) = (&measured["first_node_back_ms"], &measured["last_node_back_ms"]);
    assert!(first.as_f64().unwrap() <= last.as_f64().unwrap(), "{measured:#}");
    let lease = drill["timeline"]["lease"].as_array().unwrap();
    for (node, phase) in [(1, "none"), (1, "denied"), (2, "denied"), (3, "stopped"), (3, "denied"), (3, "active")] {
        assert!(lease.iter().any(|sample| sample["node"] == node && sample["phase"] == phase), "{node} {phase}");
    }
    let acts: Vec<_> = drill["acts"].as_array().unwrap().iter().map(|act| act["what"].as_str().unwrap()).collect();
    println!("first node back after {first} ms, last after {last} ms; {acts:?}");
    let leader = acts.iter().any(|act| act.contains("leader"));
    assert_eq!(leader, more.contains(&"--lose-leader"), "{acts:?}");
    let picture = fs::read_to_string(directory.join("p.svg")).unwrap();
    assert!((1..=3).all(|node| picture.contains(&format!("node {node}"))), "a band for each");

    let left = Command::new(env!("CARGO_BIN_EXE_keyleash"))
        .args(["store", "check"])
        .current_dir(directory)
        .env_remove("KEYLEASH_STORE")
        .output()
        .unwrap();
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(left.contains("0 accounts"), "{left}");
}

/// A store that has something in it, and one that is a file.
pub(crate) fn refused(url: &str, settings: &str) {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    fs::write(directory.join("keyleash.toml"), format!("[store]\nurl = \"{url}\"\n{settings}")).unwrap();
    let says = |arguments: &[&str], words: &str| {
        let output = drill(directory, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(words), "{output:?}");
    };
    says(&["--nodes", "2", "--store", url, "--fast"], "which is no drill's");
    says(&["--nodes", "2", "--store", "here.redb", "--fast"], "is a file, which belongs to one process");
    says(&["--nodes", "2"], "--store");
}
