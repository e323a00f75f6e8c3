//! The whole command line on a store in PostgreSQL, with the token of the tests.

use crate::{fleet, server::Postgres, shared_url, shell::Shell};
use std::fs;

fn expect_token() {
    assert!(
        std::env::var_os("KEYLEASH_MODULE").is_some(),
        "run it as softhsm/with-token cargo test --features postgres --test postgres"
    );
}

/// As the server's owner, which needs no password here.
fn shell(url: &str) -> Shell {
    let shell = Shell::new(url);
    fs::write(shell.folder.path().join("keyleash.toml"), "[store]\nuser = \"postgres\"\n").unwrap();
    shell
}

#[test]
fn the_command_line_does_in_postgresql_what_it_does_on_a_file() {
    expect_token();
    let url = shared_url();
    let name = url.rsplit('/').next().unwrap().to_owned();
    let shell = shell(&url);
    shell.refused("keyleash kek list", 6, &["not found", "there is no such schema", "keyleash kek create NAME"]);
    let made = shell.run(&format!("keyleash kek create k{name}"));
    assert!(made.contains(&format!("store {url}: made, for there was none")) && made.contains("CKA_ID"), "{made}");
    shell.run(&format!("keyleash account create alice --kek k{name}"));
    shell.run("echo attack at dawn > plan && keyleash seal --account alice plan -o plan.sealed");
    assert_eq!(shell.prints("keyleash open plan.sealed -o -"), "attack at dawn\n");
    // Two commands at once on one store.
    assert_eq!(
        shell.prints("keyleash seal --account alice plan.sealed -o - | keyleash open - -o - | keyleash open - -o -"),
        "attack at dawn\n"
    );
    shell.run("keyleash account rotate alice");
    shell.run(&format!("keyleash kek rotate k{name} && keyleash kek rewrap k{name}"));
    assert_eq!(shell.prints("keyleash open plan.sealed -o -"), "attack at dawn\n");
    shell.run(&format!("keyleash kek retire k{name}/1 --yes"));
    assert!(shell.run("keyleash account list").contains("alice"));
    let status = shell.run("keyleash status");
    assert!(status.contains(&name), "{status}");
    shell.run("printf hunter2 | keyleash secret set db/password --account alice");
    let check = shell.run("keyleash store check");
    assert!(check.contains("all of it is whole") && check.contains("a read takes"), "{check}");
    let json = shell.prints("keyleash store check --json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["write_ms"].as_f64().is_some_and(|ms| ms > 0.0) && json["store"] == url.as_str(), "{json}");

    // What is for a file alone says so.
    shell.refused("keyleash store shred", 2, &["is for a store in a file", "vacuumed"]);
    shell.refused("keyleash store snapshot copy.redb", 2, &["is for a store in a file", "pg_dump"]);
    shell.refused("keyleash store restore copy.redb --yes", 2, &["is for a store in a file", "keyleash store copy"]);

    // To a file and back to another schema; what is there is no place for a copy.
    let copied = shell.run(&format!("keyleash store copy {url} here.redb"));
    assert!(copied.contains("copied from") && copied.contains("all of it is whole"), "{copied}");
    assert!(shell.run(&format!("keyleash store copy {url} here.redb")).contains("nothing was copied from"));
    let alias = url.replace("127.0.0.1", "localhost").replace("postgres:", "postgresql:");
    let copied = shell.run(&format!("keyleash store copy {alias} {url}"));
    assert!(copied.contains("both name one store") && !copied.contains("any more"), "{copied}");
    assert_eq!(shell.prints("KEYLEASH_STORE=here.redb keyleash open plan.sealed -o -"), "attack at dawn\n");
    let elsewhere = format!("{url}_elsewhere");
    shell.run(&format!("keyleash store copy redb:here.redb {elsewhere}"));
    assert_eq!(shell.prints(&format!("KEYLEASH_STORE={elsewhere} keyleash open plan.sealed -o -")), "attack at dawn\n");
    shell.run("KEYLEASH_STORE=other.redb keyleash quickstart /etc/hostname >/dev/null");
    shell.refused(&format!("keyleash store copy other.redb {elsewhere}"), 7, &["a store of its own"]);
    shell.refused(&format!("keyleash store copy {url} {url}"), 2, &["no copy of itself"]);
}

#[test]
fn what_is_set_up_wrong_is_said_by_the_command_line_too() {
    let postgres = Postgres::begin();
    let shell = shell(&postgres.url("a"));
    shell.refused(
        "KEYLEASH_STORE=mysql://x/y keyleash kek list",
        2,
        &["no store of the kind \"mysql\"", "postgres://"],
    );
    let run = shell.try_run("KEYLEASH_STORE=postgres://me:hunter2@h:1/a/b keyleash kek list");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(said.contains("a password does not stand in an URL") && !said.contains("hunter2"), "{said}");
    let shown = shell.run("keyleash config show");
    assert!(shown.contains(&postgres.url("a")), "{shown}");
    shell.refused(
        "KEYLEASH_STORE=postgres://127.0.0.1:1/a/b keyleash kek list",
        8,
        &["no PostgreSQL answers", "refused"],
    );
    shell.refused("KEYLEASH_STORE_TLS=on keyleash kek list", 2, &["it has no TLS"]);
    shell.refused(
        "KEYLEASH_STORE=postgres://db.example.org:5432/a/b keyleash kek list",
        2,
        &["store.tls", "is not this machine"],
    );
    postgres.sql("CREATE ROLE me LOGIN");
    shell.refused("KEYLEASH_STORE_USER=me keyleash kek create k", 2, &["user me may not do this"]);
    shell.refused("KEYLEASH_STORE_USER=you keyleash kek create k", 2, &["does not let user you in"]);
    expect_token();
    shell.run("keyleash kek create pg");
    let check = shell.run("keyleash store check");
    assert!(check.contains("fsync is off"), "{check}");
}

#[test]
fn a_drill_takes_no_store_that_somebody_uses() {
    expect_token();
    let url = shared_url();
    let shell = Shell::new(&url);
    shell.run(&format!("keyleash kek create k{}", url.rsplit('/').next().unwrap()));
    fleet::refused(&url, "tls = \"plaintext\"\nuser = \"postgres\"\n");
}

#[test]
fn three_nodes_lose_the_key_together_and_none_uses_it_later() {
    fleet::three_nodes(&shared_url(), "tls = \"plaintext\"\nuser = \"postgres\"\ntimeout = \"1s\"\n", &[]);
}
