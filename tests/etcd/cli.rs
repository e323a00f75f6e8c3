//! The whole command line on a store in etcd, with the token of the tests.

use crate::{
    config,
    day::{Said, day, expect_token},
    fleet, put,
    server::Etcd,
    shared_url,
    shell::Shell,
};
use keyleash::{
    name::KekName,
    store::{Filter, Key, KeyStore, PAGE_KEYS_MAX, etcd::EtcdStore},
};
use std::fs;

#[test]
fn the_command_line_does_on_etcd_what_it_does_on_a_file() {
    let url = shared_url();
    let shell = Shell::new(&url);
    let said = Said {
        url: &url,
        alias: Some(url.replace("127.0.0.1", "localhost")),
        elsewhere: format!("{url}/elsewhere"),
        nothing_there: "the namespace is empty",
        shred: "etcdctl compact",
        snapshot: "etcdctl snapshot save",
    };
    day(&shell, &said);
    let check = shell.run("keyleash store check");
    assert!(check.contains("1 member"), "{check}");
    // A store by another name is no copy of it.
    shell.run("ln -s here.redb link.redb");
    shell.refused("keyleash store copy here.redb redb:link.redb", 2, &["no copy of itself"]);
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
