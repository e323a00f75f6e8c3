//! The whole command line on a store in PostgreSQL, with the token of the tests.

use crate::{
    day::{Said, day, expect_token},
    fleet,
    server::Postgres,
    shared_url,
    shell::Shell,
};
use std::fs;

/// As the server's owner, which needs no password here.
fn shell(url: &str) -> Shell {
    let shell = Shell::new(url);
    fs::write(shell.folder.path().join("keyleash.toml"), "[store]\nuser = \"postgres\"\n").unwrap();
    shell
}

#[test]
fn the_command_line_does_in_postgresql_what_it_does_on_a_file() {
    let url = shared_url();
    let said = Said {
        url: &url,
        alias: Some(url.replace("127.0.0.1", "localhost").replace("postgres:", "postgresql:")),
        elsewhere: format!("{url}_elsewhere"),
        nothing_there: "there is no such schema",
        shred: "vacuumed",
        snapshot: "pg_dump",
    };
    day(&shell(&url), &said);
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
    shell(&url).run(&format!("keyleash kek create k{}", url.rsplit('/').next().unwrap()));
    fleet::refused(&url, "tls = \"plaintext\"\nuser = \"postgres\"\n");
}

#[test]
fn three_nodes_lose_the_key_together_and_none_uses_it_later() {
    fleet::three_nodes(&shared_url(), "tls = \"plaintext\"\nuser = \"postgres\"\ntimeout = \"1s\"\n", &[]);
}
