//! The whole command line on a store in a bucket, with the token of the tests.

use crate::{
    SECRET,
    day::{Said, day},
    settings, shared_url,
    shell::Shell,
};
use std::fs;

fn shell(url: &str, more: &str) -> Shell {
    let shell = Shell::new(url);
    fs::write(shell.folder.path().join("keyleash.toml"), format!("[store]\n{}{more}", settings())).unwrap();
    shell
}

#[test]
fn the_command_line_does_in_a_bucket_what_it_does_on_a_file() {
    let url = shared_url();
    let said = Said {
        url: &url,
        alias: None,
        elsewhere: format!("{url}-elsewhere"),
        nothing_there: "the namespace is empty",
        shred: "lifecycle rule",
        snapshot: "keyleash store copy",
    };
    day(&shell(&url, ""), &said);
}

#[test]
fn what_is_set_up_wrong_is_said_by_the_command_line_too() {
    let url = shared_url();
    let shell = shell(&url, "region = \"eu-central-1\"\n");
    shell.refused(
        "KEYLEASH_STORE=mysql://x/y keyleash kek list",
        2,
        &["no store of the kind \"mysql\"", "s3://BUCKET"],
    );
    let run = shell.try_run("KEYLEASH_STORE=s3://AKID:hunter2@vault/b keyleash kek list");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(said.contains("a password does not stand in an URL") && !said.contains("hunter2"), "{said}");
    let shown = shell.run("keyleash config show");
    assert!(shown.contains(&url) && shown.contains("eu-central-1"), "{shown}");
    let shown = shell.try_run("KEYLEASH_STORE_ENDPOINT=https://AKID:hunter2@s3.example.org keyleash config show");
    let said = format!("{}{}", String::from_utf8_lossy(&shown.stdout), String::from_utf8_lossy(&shown.stderr));
    assert!(!said.contains("hunter2"), "{said}");
    shell.refused("KEYLEASH_STORE=s3://other/a keyleash kek list", 2, &["there is no bucket other", "store.url"]);
    shell.refused("KEYLEASH_STORE_ENDPOINT=127.0.0.1:1 keyleash kek list", 8, &["no answer", "refused"]);
    shell.refused("KEYLEASH_STORE_ENDPOINT=s3.example.org keyleash kek list", 2, &["store.tls", "is not this machine"]);
    shell.refused("KEYLEASH_STORE_TLS=on keyleash kek list", 8, &["no answer"]);
    // The keys of the environment, where no user is set.
    let text = settings().replace("user = \"anybody\"\n", "").replace(&format!("password_file = \"{SECRET}\"\n"), "");
    fs::write(shell.folder.path().join("keyleash.toml"), format!("[store]\n{text}")).unwrap();
    let keys = "AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any";
    shell.refused(&format!("{keys} keyleash kek list"), 6, &["the namespace is empty"]);
    shell.refused("AWS_ACCESS_KEY_ID=any keyleash kek list", 2, &["store s3://vault/"]);
}
