//! Secrets and their hooks, the real binary: killed with SIGKILL as it sets one, and as its hook is at work.

use crate::{
    kill::{ALONE, TokenFile, alone, kill},
    shop::Shop,
};
use keyleash::clock::Clock;
use std::{fs, thread::sleep, time::Duration};

const KILLS: u32 = 12;

#[test]
fn a_kill_at_any_instant_of_set_leaves_the_secret_before_or_the_new_one() {
    if std::env::var_os(ALONE).is_none() {
        return alone("secrets::a_kill_at_any_instant_of_set_leaves_the_secret_before_or_the_new_one");
    }
    let shop = Shop::new("set");
    shop.run(&["account", "create", "a", "--kek", &shop.kek]);
    let set = |value: &str| {
        fs::write(shop.path("value"), value).unwrap();
        ["secret", "set", "s", "--account", "a", "value"]
    };
    let begun = Clock::default().now();
    shop.run(&set("at first"));
    let takes = Clock::default().now().since(begun);
    let mut token = TokenFile::find();
    let (mut known, mut kills) = ("at first".to_owned(), 0);
    for round in 0.. {
        if kills >= KILLS {
            break;
        }
        let value = format!("value {round}");
        let was_killed = kill(&shop, &mut token, &set(&value), takes);
        kills += u32::from(was_killed);
        let found = shop.run(&["secret", "get", "s", "--account", "a"]);
        assert!(found == value || was_killed && found == known, "{found}, was {known}");
        known = found;
    }
    shop.run(&set("at last"));
    assert_eq!(shop.run(&["secret", "get", "s", "--account", "a"]), "at last");
    let shown = shop.json(&["secret", "show", "s", "--account", "a"]);
    for version in shown["versions"].as_array().unwrap() {
        shop.run(&["secret", "get", "s", "--account", "a", "--version", &version["version"].to_string()]);
    }
    assert_eq!(shop.json(&["store", "check"])["found"], 0);
}

#[test]
fn a_hook_whose_runner_was_killed_is_run_again_for_the_same_version_and_none_is_lost_or_doubled() {
    if std::env::var_os(ALONE).is_none() {
        return alone(
            "secrets::a_hook_whose_runner_was_killed_is_run_again_for_the_same_version_and_none_is_lost_or_doubled",
        );
    }
    let shop = Shop::new("hook");
    shop.run(&["account", "create", "a", "--kek", &shop.kek]);
    fs::write(shop.path("value"), "first").unwrap();
    shop.run(&["secret", "set", "s", "--account", "a", "value"]);
    let directory = shop.directory.path().display().to_string();
    let lines = format!(
        "#!/bin/sh\nd={directory}\nread old\necho \"$SECRET_NEXT_VERSION $old\" >> $d/begun\n\
         while [ ! -e $d/go ]; do sleep 0.05; done\nprintf 'made %s' $SECRET_NEXT_VERSION\n"
    );
    fs::write(shop.path("text"), lines).unwrap();
    let hook = format!("{directory}/hook");
    // No fork of another test has it open.
    let made = std::process::Command::new("/bin/sh")
        .args(["-c", "cp text new; chmod 700 new; mv new hook"])
        .current_dir(shop.directory.path())
        .status();
    assert!(made.unwrap().success());
    shop.run(&["secret", "policy", "s", "--account", "a", "--every", "30d", "--timeout", "5s", "--hook", &hook]);
    let rotate = ["secret", "rotate", "s", "--account", "a"];
    let mut runner = shop.command(&rotate).spawn().unwrap();
    let begun = || fs::read_to_string(shop.path("begun")).unwrap_or_default();
    while begun().is_empty() {
        assert!(runner.try_wait().unwrap().is_none(), "it ended before its hook began");
        sleep(Duration::from_millis(20));
    }
    runner.kill().unwrap();
    runner.wait().unwrap();
    // It comes to its end, and nobody takes what it prints.
    fs::write(shop.path("go"), "").unwrap();
    assert_eq!(shop.run(&["secret", "get", "s", "--account", "a"]), "first");
    let mut refused = 0;
    loop {
        let output = shop.output(&rotate);
        if output.status.success() {
            break;
        }
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(7) && words.contains("its hook runs"), "{words}");
        refused += 1;
        sleep(Duration::from_millis(500));
    }
    println!("refused {refused} times, until the time of the run that was killed was over");
    assert_eq!(begun(), "2 first\n2 first\n");
    assert_eq!(shop.run(&["secret", "get", "s", "--account", "a"]), "made 2");
    assert_eq!(shop.run(&["secret", "get", "s", "--account", "a", "--version", "1"]), "first");
    let shown = shop.json(&["secret", "show", "s", "--account", "a"]);
    assert_eq!(shown["versions"].as_array().unwrap().len(), 2);
    assert_eq!(shown["rotation"]["making"], serde_json::Value::Null);
    assert_eq!(shop.json(&["store", "check"])["found"], 0);
}
