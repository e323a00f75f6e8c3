//! What is set up wrong is named, with what to do.

use crate::{account, certificates::certificates, config, kek, put, server::Etcd, shared_url};
use keyleash::{
    Error,
    config::store::{EtcdConfig, PasswordSource, StoreTls, StoreUser},
    store::{KeyStore, etcd::EtcdStore},
};
use std::{fs, path::Path, time::Duration};

fn with(mut config: EtcdConfig, change: impl FnOnce(&mut EtcdConfig)) -> EtcdConfig {
    change(&mut config);
    config
}

async fn refusal(config: &EtcdConfig) -> String {
    match EtcdStore::open_or_create(config).await {
        Err(Error::Misconfigured(what)) => what,
        other => panic!("{other:?}"),
    }
}

fn says(what: &str, words: &[&str]) {
    words.iter().for_each(|word| assert!(what.contains(word), "{what:?} does not say {word:?}"));
}

#[test]
fn a_bad_url_is_named_and_no_password_of_it_shown() {
    for (url, said) in [
        ("postgres://a:1/b", "is no URL of an etcd"),
        ("etcd://a:1", "names no namespace"),
        ("etcd://a:1/", "names no namespace"),
        ("etcd://a/b", "member \"a\" is no host and port"),
        ("etcd://a:0/b", "member \"a:0\" is no host and port"),
        ("etcd://a:1,/b", "member \"\" is no host and port"),
        ("etcd://::1:2379/b", "an IPv6 address stands in brackets"),
        ("etcd://a:1/b//c", "namespace \"b//c\""),
        ("etcd://a:1/b/@record", "use store.user"),
        ("etcd://a:1/b?timeout=1", "all else is set by keys of [store]"),
        ("etcd://me:hunter2@a:1/b", "a password does not stand in an URL; use store.user"),
    ] {
        let error = EtcdConfig::new(url).unwrap_err().to_string();
        assert!(error.contains(said) && !error.contains("hunter2"), "{url}: {error}");
    }
    let members = vec!["a:1"; 17].join(",");
    says(&EtcdConfig::new(&format!("etcd://{members}/b")).unwrap_err().to_string(), &["at most 16"]);
    let elsewhere = EtcdConfig::new("etcd://[2001:db8::1]:2379/b").unwrap();
    says(
        &with(elsewhere, |config| config.reach.tls = StoreTls::Plaintext).validate().unwrap_err().to_string(),
        &["is not this machine"],
    );
    config("etcd://[::1]:2379/b").validate().unwrap();
}

#[tokio::test]
async fn who_does_not_answer_is_named_with_why() {
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let outcome = EtcdStore::open(&config(&format!("etcd://{free}/a"))).await;
    let Err(Error::Store(what)) = outcome else { panic!("{outcome:?}") };
    says(&what, &["no etcd answers", &free.to_string(), "refused"]);
    let outcome = EtcdStore::open(&with(config("etcd://localhost:1,no-such-host.invalid:1/a"), |config| {
        config.reach.tls = StoreTls::PlaintextAnywhere
    }))
    .await;
    let Err(Error::Store(what)) = outcome else { panic!("{outcome:?}") };
    says(&what, &["no etcd answers", "no-such-host.invalid:1"]);
}

#[tokio::test]
async fn a_namespace_that_is_empty_somebody_elses_or_of_another_layout_is_no_store() {
    let url = shared_url();
    let endpoint = url.trim_start_matches("etcd://").split('/').next().unwrap().to_owned();
    let namespace = url.splitn(4, '/').nth(3).unwrap().to_owned();
    let ctl = |args: &[&str]| {
        let mut command = std::process::Command::new("etcdctl");
        assert!(
            command.args(["--endpoints", &endpoint]).args(args).env("ETCDCTL_API", "3").status().unwrap().success()
        );
    };
    let outcome = EtcdStore::open(&config(&url)).await;
    assert!(matches!(&outcome, Err(Error::NotFound(what)) if what.contains("the namespace is empty")), "{outcome:?}");
    ctl(&["put", &format!("{namespace}/theirs"), "x"]);
    says(&refusal(&config(&url)).await, &["keys that are no store's", "use one of its own"]);
    ctl(&["del", &format!("{namespace}/theirs")]);
    let store = EtcdStore::open_or_create(&config(&url)).await.unwrap();
    let version = store.create(&account("a"), put([1], &[])).await.unwrap();
    ctl(&["put", &format!("{namespace}/@layout"), "keyleash 2"]);
    says(&refusal(&config(&url)).await, &["keyleash 2", "use the release that wrote it"]);
    // Nor is it written by who was there before.
    let outcome = store.replace(&account("a"), &version, put([2], &[])).await;
    assert!(
        matches!(&outcome, Err(Error::Store(what)) if what.contains("was removed from its namespace")),
        "{outcome:?}"
    );
    ctl(&["put", &format!("{namespace}/@layout"), "keyleash 1"]);
    store.replace(&account("a"), &version, put([2], &[])).await.unwrap();
    // A namespace within it is another store.
    let within = EtcdStore::open_or_create(&config(&format!("{url}/within"))).await.unwrap();
    assert_eq!(within.get(&account("a")).await.unwrap(), None);
    // What was changed in etcd is no record.
    ctl(&["put", &format!("{namespace}/@record/aa"), "x"]);
    let outcome = store.get(&account("a")).await;
    assert!(matches!(&outcome, Err(Error::Corrupt(_))), "{outcome:?}");
}

fn over_tls(etcd: &Etcd, ca: &Path) -> EtcdConfig {
    let mut config = EtcdConfig::new(&etcd.url("tls")).unwrap();
    config.reach.ca = Some(ca.to_owned());
    config
}

fn begin_tls(folder: &Path, more: &[&str]) -> Etcd {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (cert, key) = (path("own.pem"), path("own.key"));
    let args = [&["--cert-file", &cert, "--key-file", &key], more].concat();
    let ctl = ["--insecure-transport=false", "--insecure-skip-tls-verify", "--cert", &cert, "--key", &key];
    Etcd::begin_with(1, &args, &ctl)
}

#[tokio::test]
async fn certificates_are_of_the_host_of_the_authority_and_of_today() {
    let good = certificates("IP:127.0.0.1", 2);
    let etcd = begin_tls(good.path(), &[]);
    let store = EtcdStore::open_or_create(&over_tls(&etcd, &good.path().join("ca.pem"))).await.unwrap();
    store.create(&account("a"), put([1], &[kek("k", 1)])).await.unwrap();
    let stranger = certificates("IP:127.0.0.1", 2);
    says(&refusal(&over_tls(&etcd, &stranger.path().join("ca.pem"))).await, &["certificate", "store.ca"]);
    let platform = with(over_tls(&etcd, Path::new("")), |config| config.reach.ca = None);
    says(&refusal(&platform).await, &["certificate", "store.ca"]);
    says(&refusal(&over_tls(&etcd, &good.path().join("none.pem"))).await, &["store.ca", "none.pem", "No such file"]);
    says(&refusal(&over_tls(&etcd, &good.path().join("own.key"))).await, &["store.ca"]);
    // No TLS where the other side has it, and the other way round.
    let plain = EtcdStore::open(&config(&etcd.url("tls"))).await;
    assert!(matches!(&plain, Err(Error::Store(what)) if what.contains("no etcd answers")), "{plain:?}");
    let mut tls = EtcdConfig::new(&shared_url()).unwrap();
    tls.reach.timeout = Duration::from_secs(1);
    let outcome = EtcdStore::open(&tls).await;
    assert!(matches!(&outcome, Err(Error::Store(_) | Error::Misconfigured(_))), "{outcome:?}");

    for (host, days, said) in [("DNS:other.example.org", 2, "not valid for name"), ("IP:127.0.0.1", -1, "Expired")] {
        let bad = certificates(host, days);
        let etcd = begin_tls(bad.path(), &[]);
        says(&refusal(&over_tls(&etcd, &bad.path().join("ca.pem"))).await, &["certificate", said]);
    }
}

#[tokio::test]
async fn certificates_that_were_replaced_are_read_anew_by_who_was_connected() {
    let (ours, next) = (certificates("IP:127.0.0.1", 2), certificates("IP:127.0.0.1", 2));
    let ca = ours.path().join("ca.pem");
    let more = ["--client-cert-auth", "--trusted-ca-file", ca.to_str().unwrap()];
    let mut etcd = begin_tls(ours.path(), &more);
    let config = with(over_tls(&etcd, &ca), |config| {
        config.reach.identity = Some((ours.path().join("own.pem"), ours.path().join("own.key")));
    });
    let store = EtcdStore::open_or_create(&config).await.unwrap();
    store.create(&account("a"), put([1], &[])).await.unwrap();
    etcd.kill(0);
    for file in ["ca.pem", "own.pem", "own.key"] {
        fs::copy(next.path().join(file), ours.path().join(file)).unwrap();
    }
    etcd.restart(0);
    // The first ones find that the connection is gone.
    let mut tries = 0..5;
    while let Err(error) = store.get(&account("a")).await {
        tries.next().unwrap_or_else(|| panic!("{error}"));
    }
    store.create(&account("b"), put([1], &[])).await.unwrap();
}

#[tokio::test]
async fn a_cluster_that_wants_a_certificate_is_shown_one() {
    let (good, stranger) = (certificates("IP:127.0.0.1", 2), certificates("IP:127.0.0.1", 2));
    let ca = good.path().join("ca.pem");
    let etcd = begin_tls(good.path(), &["--client-cert-auth", "--trusted-ca-file", ca.to_str().unwrap()]);
    let identity = |folder: &Path| Some((folder.join("own.pem"), folder.join("own.key")));
    let showing = |identity| with(over_tls(&etcd, &ca), |config| config.reach.identity = identity);
    EtcdStore::open_or_create(&showing(identity(good.path()))).await.unwrap();
    for wrong in [None, identity(stranger.path())] {
        let outcome = EtcdStore::open(&showing(wrong)).await;
        assert!(matches!(&outcome, Err(Error::Store(_) | Error::Misconfigured(_))), "{outcome:?}");
    }
    says(&refusal(&showing(Some((good.path().join("own.pem"), ca.clone())))).await, &["store.cert"]);
}

#[tokio::test]
async fn users_are_known_by_their_password_and_do_what_they_may() {
    let etcd = Etcd::begin_with(1, &[], &["--user", "root:r"]);
    for args in [
        "user add root:r",
        "role add root",
        "user grant-role root root",
        "user add me:one",
        "role add own",
        "user grant-role me own",
        "role grant-permission own readwrite users/ users0",
        "user add reader:one",
        "role add look",
        "user grant-role reader look",
        "role grant-permission look read users/ users0",
    ] {
        // Before authentication is enabled nobody is asked.
        let run = std::process::Command::new("etcdctl")
            .args(["--endpoints", &etcd.endpoints()])
            .args(args.split(' '))
            .output();
        let run = run.unwrap();
        assert!(run.status.success(), "{args}: {run:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    let as_user = |name: &str, url: &str| {
        let user = StoreUser { name: name.into(), password: Some(PasswordSource::File(password.clone())) };
        with(config(&etcd.url(url)), |config| config.reach.user = Some(user))
    };
    fs::write(&password, "one\n").unwrap();
    says(&refusal(&as_user("me", "users")).await, &["knows no users", "store.user"]);
    let run = std::process::Command::new("etcdctl")
        .args(["--endpoints", &etcd.endpoints(), "auth", "enable"])
        .status()
        .unwrap();
    assert!(run.success());

    says(&refusal(&config(&etcd.url("users"))).await, &["store.user"]);
    let store = EtcdStore::open_or_create(&as_user("me", "users")).await.unwrap();
    let version = store.create(&account("a"), put([1], &[kek("k", 1)])).await.unwrap();
    says(&refusal(&as_user("me", "elsewhere")).await, &["user me may not", "readwrite on the prefix elsewhere/"]);
    let reader = EtcdStore::open(&as_user("reader", "users")).await.unwrap();
    assert!(reader.get(&account("a")).await.unwrap().is_some());
    let outcome = reader.create(&account("b"), put([1], &[])).await;
    assert!(matches!(&outcome, Err(Error::Store(what)) if what.contains("user reader may not")), "{outcome:?}");

    // The password is another one now, for whoever is connected too.
    let change =
        format!("echo two | etcdctl --endpoints {} --user root:r user passwd me --interactive=false", etcd.endpoints());
    let run = std::process::Command::new("bash").args(["-c", &change]).output().unwrap();
    assert!(run.status.success(), "{run:?}");
    let outcome = store.get(&account("a")).await;
    assert!(matches!(&outcome, Err(Error::Store(what)) if what.contains("does not take user me")), "{outcome:?}");
    fs::write(&password, "two\n").unwrap();
    assert!(store.get(&account("a")).await.unwrap().is_some());

    fs::write(&password, "wrong\n").unwrap();
    says(&refusal(&as_user("me", "users")).await, &["does not take user me and the password"]);
    let error = refusal(&as_user("me", "users")).await;
    assert!(!error.contains("wrong\n") && !error.contains("\"wrong\""), "{error}");
    fs::remove_file(&password).unwrap();
    says(&refusal(&as_user("me", "users")).await, &["store.password_file", "No such file"]);
    let unset = StoreUser { name: "me".into(), password: Some(PasswordSource::Env("ETCD_TEST_UNSET".into())) };
    says(
        &refusal(&with(config(&etcd.url("users")), |config| config.reach.user = Some(unset))).await,
        &["store.password_env ETCD_TEST_UNSET", "not set"],
    );
    store.replace(&account("a"), &version, put([2], &[])).await.unwrap();
}

#[tokio::test]
async fn a_database_that_is_full_says_so_and_what_was_there_is_read() {
    let etcd = Etcd::begin_with(1, &["--quota-backend-bytes", "2000000"], &[]);
    let store = EtcdStore::open_or_create(&config(&etcd.url("full"))).await.unwrap();
    let mut kept = 0;
    let error = loop {
        match store.create(&account(format!("a{kept}")), put(vec![7; 200_000], &[])).await {
            Ok(_) => kept += 1,
            Err(error) => break error.to_string(),
        }
        assert!(kept < 100);
    };
    says(&error, &["its database is full", "compact"]);
    for n in 0..kept {
        assert!(store.get(&account(format!("a{n}"))).await.unwrap().is_some());
    }
}
