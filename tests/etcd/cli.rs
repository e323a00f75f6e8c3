//! The whole command line on a store in etcd, with the token of the tests.

use crate::{config, fleet, put, server::Etcd, shared_url, shell::Shell};
use keyleash::{
    name::KekName,
    store::{Filter, Key, KeyStore, PAGE_KEYS_MAX, etcd::EtcdStore},
};
use std::fs;

fn expect_token() {
    assert!(
        std::env::var_os("KEYLEASH_MODULE").is_some(),
        "run it as softhsm/with-token cargo test --features etcd --test etcd"
    );
}

#[test]
fn the_command_line_does_on_etcd_what_it_does_on_a_file() {
    expect_token();
    let url = shared_url();
    let name = url.rsplit('/').next().unwrap().to_owned();
    let shell = Shell::new(&url);
    shell.refused("keyleash kek list", 6, &["not found", "the namespace is empty", "keyleash kek create NAME"]);
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
    assert!(
        check.contains("all of it is whole") && check.contains("a read takes") && check.contains("1 member"),
        "{check}"
    );
    let json = shell.run("keyleash store check --json 2>/dev/null");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["write_ms"].as_f64().is_some_and(|ms| ms > 0.0) && json["store"] == url.as_str(), "{json}");

    // What is for a file alone says so.
    shell.refused("keyleash store shred", 2, &["is for a store in a file", "etcdctl compact"]);
    shell.refused("keyleash store snapshot copy.redb", 2, &["is for a store in a file", "etcdctl snapshot save"]);
    shell.refused("keyleash store restore copy.redb --yes", 2, &["is for a store in a file", "keyleash store copy"]);

    // To a file and back to another namespace; what is there is no place for a copy.
    let copied = shell.run(&format!("keyleash store copy {url} here.redb"));
    assert!(copied.contains("copied from") && copied.contains("all of it is whole"), "{copied}");
    assert!(shell.run(&format!("keyleash store copy {url} here.redb")).contains("nothing was copied from"));
    // A store by another name is no copy of it.
    shell.run("ln -s here.redb link.redb");
    shell.refused("keyleash store copy here.redb redb:link.redb", 2, &["no copy of itself"]);
    let alias = url.replace("127.0.0.1", "localhost");
    let copied = shell.run(&format!("keyleash store copy {alias} {url}"));
    assert!(copied.contains("both name one store") && !copied.contains("any more"), "{copied}");
    assert_eq!(shell.prints("KEYLEASH_STORE=here.redb keyleash open plan.sealed -o -"), "attack at dawn\n");
    let elsewhere = format!("{url}/elsewhere");
    shell.run(&format!("keyleash store copy redb:here.redb {elsewhere}"));
    assert_eq!(shell.prints(&format!("KEYLEASH_STORE={elsewhere} keyleash open plan.sealed -o -")), "attack at dawn\n");
    shell.run("KEYLEASH_STORE=other.redb keyleash quickstart /etc/hostname >/dev/null");
    shell.refused(&format!("keyleash store copy other.redb {elsewhere}"), 7, &["a store of its own"]);
    shell.refused(&format!("keyleash store copy {url} {url}"), 2, &["no copy of itself"]);
}

#[test]
fn what_is_set_up_wrong_is_said_by_the_command_line_too() {
    let etcd = Etcd::begin(1);
    let shell = Shell::new(&etcd.url("a"));
    shell.refused(
        "KEYLEASH_STORE=mysql://x/y keyleash kek list",
        2,
        &["no store of the kind \"mysql\"", "etcd://HOST:PORT/NAMESPACE"],
    );
    let run = shell.try_run("KEYLEASH_STORE=etcd://me:hunter2@h:1/a keyleash kek list");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(said.contains("a password does not stand in an URL") && !said.contains("hunter2"), "{said}");
    let shown = shell.run("KEYLEASH_STORE=redb:a@b keyleash config show; keyleash config show");
    assert!(shown.contains(&etcd.url("a")) && !shown.contains("hunter2"), "{shown}");
    shell.refused(
        "KEYLEASH_STORE_TLS=on KEYLEASH_STORE=etcd://127.0.0.1:1/a keyleash kek list",
        8,
        &["no etcd answers", "refused"],
    );
    shell.refused(
        "KEYLEASH_STORE=etcd://etcd.example.org:1/a keyleash kek list",
        2,
        &["store.tls", "is not this machine"],
    );
    fs::write(shell.folder.path().join("keyleash.toml"), "[store]\npath = \"a\"\nurl = \"redb:b\"\n").unwrap();
    shell.refused("env -u KEYLEASH_STORE keyleash kek list", 2, &["keyleash.toml line 3", "named twice"]);
    fs::write(shell.folder.path().join("keyleash.toml"), "[store]\nurl = \"redb:b\"\npassword = \"x\"\n").unwrap();
    shell.refused("env -u KEYLEASH_STORE keyleash kek list", 2, &["keyleash.toml line 3", "use password_file"]);
    for (more, said) in [("user = \"u\"", "store.password_file is missing"), ("cert = \"c\"", "store.key is missing")] {
        fs::write(shell.folder.path().join("keyleash.toml"), format!("[store]\n{more}\n")).unwrap();
        shell.refused("keyleash kek list", 2, &[said]);
    }
}

#[tokio::test]
async fn a_store_that_takes_no_write_is_checked_before_that_is_said() {
    let etcd = Etcd::begin_with(1, &["--quota-backend-bytes", "2000000"], &[]);
    let store = EtcdStore::open_or_create(&config(&etcd.url("full"))).await.unwrap();
    for n in 0.. {
        assert!(n < 100);
        let key = Key::Kek(KekName::new(format!("k{n}")).unwrap());
        // One that got no answer may have been written.
        let written = store.create(&key, put(vec![7; 200_000], &[])).await;
        if written.is_err_and(|error| error.to_string().contains("its database is full")) {
            break;
        }
    }
    let n = store.list(&Filter::Keks, None, PAGE_KEYS_MAX).await.unwrap().keys.len();
    assert!(n > 0);
    let run = Shell::new(&etcd.url("full")).try_run("keyleash store check");
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(said.contains(&format!("{n} KEKs")), "{said}");
}

#[test]
fn three_nodes_lose_the_key_together_and_none_uses_it_later() {
    let etcd = Etcd::begin(3);
    let kill = format!("kill -9 {}", etcd.id(etcd.leader()));
    fleet::three_nodes(&etcd.url("fleet"), "tls = \"plaintext\"\n", &["--lose-leader", &kill]);
}

#[test]
fn a_drill_takes_no_store_that_somebody_uses() {
    expect_token();
    let url = shared_url();
    let name = url.rsplit('/').next().unwrap();
    Shell::new(&url).run(&format!("keyleash kek create k{name}"));
    fleet::refused(&url, "tls = \"plaintext\"\n");
}
