//! What is set up wrong is named, with what to do.

use crate::{account, certificates::certificates, config, kek, put, server::Postgres, shared_url};
use keyleash::{
    Error,
    config::store::{PasswordSource, PostgresConfig, StoreTls, StoreUser},
    store::{KeyStore, postgres::PostgresStore},
};
use std::{fs, path::Path, time::Duration};

fn with(mut config: PostgresConfig, change: impl FnOnce(&mut PostgresConfig)) -> PostgresConfig {
    change(&mut config);
    config
}

async fn refusal(config: &PostgresConfig) -> String {
    match PostgresStore::open_or_create(config).await {
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
        ("etcd://a:1/b/c", "is no URL of a PostgreSQL"),
        ("postgres://a:1", "names no namespace"),
        ("postgres://a:1/", "names no database"),
        ("postgres://a:1/b", "names no schema"),
        ("postgres://a:1/b/", "names no schema"),
        ("postgres://a/b/c", "\"a\" is no host and port"),
        ("postgres://a:1,/b/c", "\"\" is no host and port"),
        ("postgres://::1:5432/b/c", "an IPv6 address stands in brackets"),
        ("postgres://a:1/b/c/d", "schema \"c/d\""),
        ("postgres://a:1/b/C", "lower-case letters"),
        ("postgres://a:1/b/1c", "begins with no digit"),
        ("postgres://a:1/b/pg_c", "is PostgreSQL's"),
        ("postgres://a:1/b/c\"; DROP SCHEMA x; --", "has ' ' in it"),
        ("postgres://a:1/b/c\";DROP", "schema \"c\\\";DROP\""),
        ("postgres://a:1/b;c/d", "database \"b;c\""),
        ("postgres://a:1/b/c?sslmode=disable", "all else is set by keys of [store]"),
        ("postgresql://me:hunter2@a:1/b/c", "a password does not stand in an URL; use store.user"),
    ] {
        let error = PostgresConfig::new(url).unwrap_err().to_string();
        assert!(error.contains(said) && !error.contains("hunter2"), "{url}: {error}");
    }
    let servers = vec!["a:1"; 17].join(",");
    says(&PostgresConfig::new(&format!("postgres://{servers}/b/c")).unwrap_err().to_string(), &["at most 16"]);
    let long = "c".repeat(64);
    says(&PostgresConfig::new(&format!("postgres://a:1/b/{long}")).unwrap_err().to_string(), &["at most 63"]);
    let elsewhere = PostgresConfig::new("postgresql://[2001:db8::1]:5432/b/c").unwrap();
    assert_eq!(elsewhere.to_string(), "postgres://[2001:db8::1]:5432/b/c");
    let elsewhere = with(elsewhere, |config| config.reach.tls = StoreTls::Plaintext);
    says(&elsewhere.validate().unwrap_err().to_string(), &["is not this machine"]);
    config("postgres://[::1]:5432/b/c").validate().unwrap();
}

#[tokio::test]
async fn who_does_not_answer_is_named_with_why() {
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let outcome = PostgresStore::open(&config(&format!("postgres://{free}/a/b"))).await;
    let Err(Error::Store(what)) = outcome else { panic!("{outcome:?}") };
    says(&what, &["no PostgreSQL answers", &free.to_string(), "refused"]);
    let away = config(&format!("postgres://localhost:{},no-such-host.invalid:1/a/b", free.port()));
    let outcome = PostgresStore::open(&with(away, |config| config.reach.tls = StoreTls::PlaintextAnywhere)).await;
    let Err(Error::Store(what)) = outcome else { panic!("{outcome:?}") };
    says(&what, &["no PostgreSQL answers", "no-such-host.invalid:1"]);
    // Somebody who speaks, and not this.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = std::io::Write::write_all(&mut stream.unwrap(), b"SSH-2.0-\x1b[31m\r\n");
        }
    });
    let outcome = PostgresStore::open(&config(&format!("postgres://127.0.0.1:{port}/a/b"))).await;
    let Err(Error::Store(what)) = outcome else { panic!("{outcome:?}") };
    assert!(!what.contains('\x1b'), "{what:?}");
}

#[tokio::test]
async fn a_schema_that_is_empty_somebody_elses_or_of_another_layout_is_no_store() {
    let postgres = Postgres::begin();
    let at = config(&postgres.url("s"));
    let outcome = PostgresStore::open(&at).await;
    assert!(matches!(&outcome, Err(Error::NotFound(what)) if what.contains("there is no such schema")), "{outcome:?}");
    postgres.sql("CREATE SCHEMA s");
    let outcome = PostgresStore::open(&at).await;
    assert!(matches!(&outcome, Err(Error::NotFound(what)) if what.contains("the schema is empty")), "{outcome:?}");
    for theirs in ["CREATE TABLE s.t (a int)", "CREATE VIEW s.t AS SELECT 1", "CREATE SEQUENCE s.t"] {
        postgres.sql(theirs);
        says(&refusal(&at).await, &["tables that are no store's", "use a schema of its own"]);
        let drop = theirs.replace("CREATE", "DROP").replace(" (a int)", "").replace(" AS SELECT 1", "");
        postgres.sql(&drop);
    }
    postgres.sql("CREATE TABLE s.keyleash_store (a int)");
    says(&refusal(&at).await, &["store"]);
    postgres.sql("DROP TABLE s.keyleash_store");

    let store = PostgresStore::open_or_create(&at).await.unwrap();
    let version = store.create(&account("a"), put([1], &[])).await.unwrap();
    // A table that somebody adds is left alone.
    postgres.sql("CREATE TABLE s.more (a int)");
    postgres.sql("UPDATE s.keyleash_store SET layout = 2");
    says(&refusal(&at).await, &["its layout is 2", "use the release that wrote it"]);
    // Nor is it written by who was there before.
    let outcome = store.replace(&account("a"), &version, put([2], &[])).await;
    assert!(matches!(&outcome, Err(Error::Store(what)) if what.contains("was removed from its schema")), "{outcome:?}");
    postgres.sql("UPDATE s.keyleash_store SET layout = 1");
    let version = store.replace(&account("a"), &version, put([2], &[])).await.unwrap();

    // What was changed there is no record.
    postgres.sql("UPDATE s.record SET value = '\\x00'");
    assert!(matches!(store.get(&account("a")).await, Err(Error::Corrupt(_))));
    postgres.sql("UPDATE s.record SET value = decode(repeat('00', 400000), 'hex')");
    assert!(matches!(store.get(&account("a")).await, Err(Error::Corrupt(_))));
    postgres.sql("UPDATE s.record SET version = decode(repeat('00', 400000), 'hex')");
    assert!(matches!(store.get(&account("a")).await, Err(Error::Corrupt(_))));
    assert!(matches!(store.replace(&account("a"), &version, put([3], &[])).await, Err(Error::Conflict(_))));

    postgres.sql("DROP TABLE s.record CASCADE");
    let outcome = store.get(&account("a")).await;
    assert!(matches!(&outcome, Err(Error::Store(what)) if what.contains("was removed from its schema")), "{outcome:?}");
    says(&refusal(&at).await, &["was removed from its schema"]);
    postgres.sql("DROP SCHEMA s CASCADE");
    let outcome = store.create(&account("b"), put([1], &[])).await;
    assert!(matches!(&outcome, Err(Error::Store(what)) if what.contains("was removed from its schema")), "{outcome:?}");
}

#[tokio::test]
async fn users_are_known_by_their_password_and_do_what_they_may() {
    let postgres = Postgres::begin();
    postgres.sql("CREATE ROLE me LOGIN PASSWORD 'one'; CREATE ROLE reader LOGIN PASSWORD 'one'; CREATE ROLE nobody PASSWORD 'one'");
    postgres.sql("CREATE DATABASE own; REVOKE ALL ON DATABASE own FROM public; CREATE SCHEMA theirs");
    postgres.admit("host all all 127.0.0.1/32 scram-sha-256");
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    let as_user = |name: &str, schema: &str| {
        let user = StoreUser { name: name.into(), password: Some(PasswordSource::File(password.clone())) };
        with(config(&postgres.url(schema)), |config| config.reach.user = Some(user))
    };
    fs::write(&password, "one\n").unwrap();
    says(&refusal(&as_user("me", "users")).await, &["user me may not do this", "permission denied for database"]);
    says(&refusal(&as_user("me", "theirs")).await, &["user me may not do this", "permission denied for schema theirs"]);
    says(&refusal(&as_user("nobody", "users")).await, &["does not let user nobody in", "not permitted to log in"]);
    says(&refusal(&as_user("no-such-user", "users")).await, &["user no-such-user and the password"]);
    let database = |name: &str| with(as_user("me", "users"), |config| config.database = name.into());
    says(&refusal(&database("none")).await, &["there is no database none"]);
    says(&refusal(&database("own")).await, &["user me may not use database own", "GRANT CONNECT"]);

    postgres.sql("CREATE SCHEMA users AUTHORIZATION me");
    let store = PostgresStore::open_or_create(&as_user("me", "users")).await.unwrap();
    let version = store.create(&account("a"), put([1], &[kek("k", 1)])).await.unwrap();
    says(&refusal(&as_user("reader", "users")).await, &["user reader may not do this", "schema users"]);
    postgres.sql("GRANT USAGE ON SCHEMA users TO reader; GRANT SELECT ON ALL TABLES IN SCHEMA users TO reader");
    let reader = PostgresStore::open(&as_user("reader", "users")).await.unwrap();
    assert!(reader.get(&account("a")).await.unwrap().is_some());
    let outcome = reader.create(&account("b"), put([1], &[])).await;
    assert!(matches!(&outcome, Err(Error::Store(what)) if what.contains("user reader may not")), "{outcome:?}");
    postgres.sql("GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA users TO reader");
    let made = reader.create(&account("b"), put([1], &[kek("k", 1)])).await.unwrap();
    reader.delete(&account("b"), &made).await.unwrap();
    reader.probe().await.unwrap().unwrap();

    // The password is another one now, for whoever connects anew.
    postgres.sql("ALTER ROLE me PASSWORD 'two'");
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'me'";
    postgres.sql(end);
    let mut outcome = store.get(&account("a")).await;
    if outcome.is_ok() || outcome.as_ref().is_err_and(|error| !error.to_string().contains("does not take")) {
        outcome = store.get(&account("a")).await;
    }
    assert!(matches!(&outcome, Err(Error::Store(what)) if what.contains("does not take user me")), "{outcome:?}");
    fs::write(&password, "two\n").unwrap();
    assert!(store.get(&account("a")).await.unwrap().is_some());
    store.replace(&account("a"), &version, put([2], &[])).await.unwrap();

    fs::write(&password, "hunter2\n").unwrap();
    let error = refusal(&as_user("me", "users")).await;
    says(&error, &["does not take user me and the password"]);
    assert!(!error.contains("hunter2"), "{error}");
    let bare = with(as_user("me", "users"), |config| config.reach.user.as_mut().unwrap().password = None);
    says(&refusal(&bare).await, &["it wants a password of user me", "store.password_file"]);
    fs::remove_file(&password).unwrap();
    says(&refusal(&as_user("me", "users")).await, &["store.password_file", "No such file"]);
    let unset = StoreUser { name: "me".into(), password: Some(PasswordSource::Env("POSTGRES_TEST_UNSET".into())) };
    let unset = with(config(&postgres.url("users")), |config| config.reach.user = Some(unset));
    says(&refusal(&unset).await, &["store.password_env POSTGRES_TEST_UNSET", "not set"]);
    postgres.admit("host all all 127.0.0.1/32 reject");
    fs::write(&password, "two\n").unwrap();
    says(&refusal(&as_user("me", "users")).await, &["does not let user me in", "pg_hba.conf"]);
}

#[tokio::test]
async fn a_server_that_loses_what_it_acknowledged_is_refused_and_one_that_may_is_named() {
    let postgres = Postgres::begin();
    let at = config(&postgres.url("s"));
    let store = PostgresStore::open_or_create(&at).await.unwrap();
    let version = store.create(&account("a"), put([1], &[])).await.unwrap();
    let probe = store.probe().await.unwrap().unwrap();
    assert!(probe.lacks.iter().any(|lack| lack.contains("fsync is off")), "{:?}", probe.lacks);
    assert!(!probe.read.is_zero() && !probe.write.is_zero());
    postgres.sql("ALTER ROLE postgres SET synchronous_commit = off");
    says(&refusal(&at).await, &["synchronous_commit is off", "ALTER ROLE"]);
    // Also for who has the store open, with each connection.
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'keyleash'");
    let mut outcome = store.replace(&account("a"), &version, put([2], &[])).await;
    if outcome.as_ref().is_err_and(|error| !error.to_string().contains("synchronous_commit")) {
        outcome = store.replace(&account("a"), &version, put([2], &[])).await;
    }
    assert!(matches!(&outcome, Err(Error::Store(what)) if what.contains("synchronous_commit is off")), "{outcome:?}");
    postgres.sql("ALTER ROLE postgres RESET synchronous_commit");
    // Or within one.
    postgres.sql("ALTER SYSTEM SET synchronous_commit = off");
    let opened = with(at.clone(), |config| config.reach.timeout = Duration::from_secs(10));
    let open = PostgresStore::open(&opened).await.unwrap();
    postgres.sql("SELECT pg_reload_conf()");
    let outcome = loop {
        match open.replace(&account("a"), &version, put([2], &[])).await {
            Ok(_) => panic!("written"),
            Err(Error::Conflict(_)) => std::thread::sleep(Duration::from_millis(20)),
            other => break other,
        }
    };
    assert!(
        matches!(&outcome, Err(Error::Store(what)) if what.contains("nothing was written") || what.contains("is off")),
        "{outcome:?}"
    );
    postgres.sql("ALTER SYSTEM RESET synchronous_commit; SELECT pg_reload_conf()");
    postgres.sql("ALTER ROLE postgres SET default_transaction_read_only = on");
    let outcome = PostgresStore::open(&at).await;
    assert!(matches!(&outcome, Err(Error::Store(what)) if what.contains("takes no writes")), "{outcome:?}");
}

fn over_tls(postgres: &Postgres, ca: &Path) -> PostgresConfig {
    with(config(&postgres.url("tls")), |config| {
        config.reach.tls = StoreTls::On;
        config.reach.ca = Some(ca.to_owned());
    })
}

fn begin_tls(folder: &Path, more: &[&str]) -> Postgres {
    let tls = ["ssl=on", "ssl_cert_file=own.pem", "ssl_key_file=own.key"];
    let files = ["own.pem", "own.key", "ca.pem"].map(|name| folder.join(name));
    Postgres::begin_with(&[&tls, more].concat(), &files.each_ref().map(|path| path.as_path()))
}

#[tokio::test]
async fn certificates_are_of_the_host_of_the_authority_and_of_today() {
    let good = certificates("IP:127.0.0.1", 2);
    let postgres = begin_tls(good.path(), &[]);
    postgres.admit("hostssl all all 127.0.0.1/32 trust");
    let store = PostgresStore::open_or_create(&over_tls(&postgres, &good.path().join("ca.pem"))).await.unwrap();
    store.create(&account("a"), put([1], &[kek("k", 1)])).await.unwrap();
    let stranger = certificates("IP:127.0.0.1", 2);
    says(&refusal(&over_tls(&postgres, &stranger.path().join("ca.pem"))).await, &["certificate", "store.ca"]);
    let platform = with(over_tls(&postgres, Path::new("")), |config| config.reach.ca = None);
    says(&refusal(&platform).await, &["certificate", "store.ca"]);
    says(
        &refusal(&over_tls(&postgres, &good.path().join("none.pem"))).await,
        &["store.ca", "none.pem", "No such file"],
    );
    says(&refusal(&over_tls(&postgres, &good.path().join("own.key"))).await, &["store.ca"]);
    // No TLS where the other side wants it, and the other way round.
    says(&refusal(&config(&postgres.url("tls"))).await, &["does not let user postgres in", "store.tls"]);
    let tls = with(config(&shared_url()), |config| config.reach.tls = StoreTls::On);
    says(&refusal(&tls).await, &["it has no TLS"]);
    // By password, which is bound to the certificate.
    postgres.sql("ALTER ROLE postgres PASSWORD 'one'");
    postgres.admit("hostssl all all 127.0.0.1/32 scram-sha-256");
    let password = good.path().join("password");
    fs::write(&password, "one").unwrap();
    let by_password = with(over_tls(&postgres, &good.path().join("ca.pem")), |config| {
        config.reach.user.as_mut().unwrap().password = Some(PasswordSource::File(password.clone()));
    });
    PostgresStore::open(&by_password).await.unwrap();
    fs::write(&password, "two").unwrap();
    says(&refusal(&by_password).await, &["does not take user postgres and the password"]);

    for (host, days, said) in [("DNS:other.example.org", 2, "not valid for name"), ("IP:127.0.0.1", -1, "Expired")] {
        let bad = certificates(host, days);
        postgres.replace_files(&["own.pem", "own.key"].map(|name| bad.path().join(name)));
        postgres.sql("SELECT pg_reload_conf()");
        let config = over_tls(&postgres, &bad.path().join("ca.pem"));
        // Until it has read them, its certificate is another authority's.
        let mut told = refusal(&config).await;
        while told.contains("UnknownIssuer") || told.contains("BadSignature") {
            std::thread::sleep(Duration::from_millis(20));
            told = refusal(&config).await;
        }
        says(&told, &["certificate", said]);
    }
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_is_shown_one_and_files_that_were_replaced_are_read_anew() {
    let (ours, next, stranger) =
        (certificates("IP:127.0.0.1", 2), certificates("IP:127.0.0.1", 2), certificates("IP:127.0.0.1", 2));
    let mut postgres = begin_tls(ours.path(), &["ssl_ca_file=ca.pem"]);
    // Whose certificate it is stands in its subject.
    postgres.admit("hostssl all all 127.0.0.1/32 trust clientcert=verify-ca");
    let ca = ours.path().join("ca.pem");
    let identity = |folder: &Path| Some((folder.join("own.pem"), folder.join("own.key")));
    let showing = |identity| with(over_tls(&postgres, &ca), |config| config.reach.identity = identity);
    let store = PostgresStore::open_or_create(&showing(identity(ours.path()))).await.unwrap();
    says(&refusal(&showing(None)).await, &["does not let user postgres in", "certificate", "store.cert"]);
    says(&refusal(&showing(identity(stranger.path()))).await, &["store.cert"]);
    says(&refusal(&showing(Some((ours.path().join("own.pem"), ca.clone())))).await, &["store.key"]);
    says(
        &refusal(&showing(Some((ours.path().join("own.pem"), stranger.path().join("own.key"))))).await,
        &["store.cert"],
    );

    store.create(&account("a"), put([1], &[])).await.unwrap();
    postgres.kill();
    postgres.replace_files(&["ca.pem", "own.pem", "own.key"].map(|name| next.path().join(name)));
    for file in ["ca.pem", "own.pem", "own.key"] {
        fs::copy(next.path().join(file), ours.path().join(file)).unwrap();
    }
    postgres.restart();
    // The first ones find that the connection is gone.
    let mut tries = 0..5;
    while let Err(error) = store.get(&account("a")).await {
        tries.next().unwrap_or_else(|| panic!("{error}"));
    }
    store.create(&account("b"), put([1], &[])).await.unwrap();
}
