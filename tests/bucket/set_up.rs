//! What is set up wrong is named, with what to do.

use crate::{account, certificates::certificates, config_at, kek, put, server::S3};
use keyleash::{
    Error,
    config::store::{BucketConfig, PasswordSource, StoreTls, StoreUser},
    store::{KeyStore, bucket::BucketStore},
};
use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    thread,
    time::Duration,
};

fn with(mut config: BucketConfig, change: impl FnOnce(&mut BucketConfig)) -> BucketConfig {
    change(&mut config);
    config
}

async fn refusal(config: &BucketConfig) -> String {
    match BucketStore::open_or_create(config).await {
        Err(Error::Misconfigured(what)) => what,
        other => panic!("{other:?}"),
    }
}

fn says(what: &str, words: &[&str]) {
    words.iter().for_each(|word| assert!(what.contains(word), "{what:?} does not say {word:?}"));
}

#[tokio::test]
async fn who_does_not_answer_is_named_with_why() {
    let free = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let outcome = BucketStore::open(&config_at("s3://vault/a", &free.to_string())).await;
    let Err(Error::Store(what)) = outcome else { panic!("{outcome:?}") };
    says(&what, &["s3://vault/a", "no answer", "refused"]);
    let elsewhere = with(config_at("s3://vault/a", "no-such-host.invalid"), |config| {
        config.reach.tls = StoreTls::PlaintextAnywhere;
        config.reach.timeout = Duration::from_secs(4);
    });
    let outcome = BucketStore::open(&elsewhere).await;
    assert!(matches!(&outcome, Err(Error::Store(what)) if what.contains("no answer")), "{outcome:?}");
}

#[tokio::test]
async fn no_region_no_bucket_and_a_server_of_something_else_are_named() {
    let server = S3::begin();
    says(&refusal(&config_at("s3://other/a", &server.endpoint())).await, &["no bucket other", "make it"]);
    let of_aws = with(config_at("s3://vault/a", ""), |config| {
        config.reach.endpoint = None;
        config.reach.tls = StoreTls::On;
    });
    if std::env::var_os("AWS_REGION").is_none() && std::env::var_os("AWS_DEFAULT_REGION").is_none() {
        says(&refusal(&of_aws).await, &["store.region", "store.endpoint"]);
    }
    for (answer, said) in [
        ("404 Not Found\r\nContent-Length: 4\r\n\r\nnope", "none that speaks S3"),
        ("301 Moved\r\nContent-Length: 0\r\n\r\n", "store.region"),
        ("501 Not Implemented\r\nContent-Length: 0\r\n\r\n", "conditional writes"),
        (
            "400 Bad Request\r\nContent-Length: 58\r\n\r\n<Error><Code>AuthorizationHeaderMalformed</Code></Error>   ",
            "store.region",
        ),
        (
            "403 Forbidden\r\nContent-Length: 58\r\n\r\n<Error><Code>RequestTimeTooSkewed</Code></Error>           ",
            "the clock",
        ),
    ] {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                let _ = client.read(&mut [0; 4096]);
                let _ = client.write_all(format!("HTTP/1.1 {answer}").as_bytes());
            }
        });
        says(&refusal(&config_at("s3://vault/a", &endpoint)).await, &[said]);
    }
}

/// Whatever it says: it is a failure, soon, and not all of it is taken.
#[tokio::test]
async fn an_answer_that_is_longer_than_any_is_not_taken_whole() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let server = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let _ = client.read(&mut [0; 4096]);
        let _ = client.write_all(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = [b"10000\r\n", [b'x'; 65536].as_slice(), b"\r\n"].concat();
        (0..2000).take_while(|_| client.write_all(&chunk).is_ok()).count()
    });
    let outcome = BucketStore::open(&config_at("s3://vault/a", &endpoint)).await;
    assert!(matches!(&outcome, Err(Error::Store(_))), "{outcome:?}");
    assert!(server.join().unwrap() < 2000);
}

#[tokio::test]
async fn a_namespace_that_is_empty_somebody_elses_or_of_another_layout_is_no_store() {
    let server = S3::begin();
    let config = config_at("s3://vault/a", &server.endpoint());
    let outcome = BucketStore::open(&config).await;
    assert!(matches!(&outcome, Err(Error::NotFound(what)) if what.contains("the namespace is empty")), "{outcome:?}");
    server.put("a/theirs", b"x");
    says(&refusal(&config).await, &["objects that are no store's", "use one of its own"]);
    server.delete("a/theirs");
    // Nor is what only begins like it.
    server.put("ab", b"x");
    let store = BucketStore::open_or_create(&config).await.unwrap();
    store.create(&account("a"), put([1], &[])).await.unwrap();
    server.put("a/@layout", b"keyleash 2");
    says(&refusal(&config).await, &["keyleash 2", "use the release that wrote it"]);
    server.put("a/@layout", b"x");
    says(&refusal(&config).await, &["objects that are no store's"]);
    server.put("a/@layout", b"keyleash 1");
    // A namespace within it is another store.
    let within = config_at("s3://vault/a/within", &server.endpoint());
    let within = BucketStore::open_or_create(&within).await.unwrap();
    assert_eq!(within.get(&account("a")).await.unwrap(), None);
    // What was changed in the bucket, or moved, is no record; nor is what is longer than any.
    let found = server.get("a/@record/6161");
    server.put("a/@record/6162", &found);
    server.put("a/@record/6163", b"x");
    server.put("a/@record/6164", &vec![0; 2 * 1024 * 1024]);
    for id in ["b", "c"] {
        let outcome = store.get(&account(id)).await;
        assert!(matches!(&outcome, Err(Error::Corrupt(_))), "{outcome:?}");
    }
    let outcome = store.get(&account("d")).await;
    assert!(matches!(&outcome, Err(Error::Store(what)) if what.contains("more than any of a store")), "{outcome:?}");
    server.put("a/@record/61zz", &found);
    let outcome = store.list(&keyleash::store::Filter::Accounts, None, 100).await;
    assert!(matches!(&outcome, Err(Error::Store(what)) if what.contains("is no store's")), "{outcome:?}");
}

/// Found by what it does, not by what it says of itself.
#[tokio::test]
async fn a_server_that_does_not_compare_before_it_writes_is_refused_at_each_start() {
    for lacking in ["--no-if-match", "--no-if-none-match"] {
        let server = S3::begin_with(&[lacking]);
        let config = config_at("s3://vault/a", &server.endpoint());
        says(&refusal(&config).await, &["does not compare before it writes", "use a server that has"]);
        assert!(matches!(BucketStore::open(&config).await, Err(Error::Misconfigured(_))), "{lacking}");
        assert_eq!(server.get("a/@layout"), b"keyleash 1", "the trial leaves what it found");
    }
}

#[tokio::test]
async fn a_server_that_lists_without_order_is_refused_before_a_page_has_a_gap() {
    let server = S3::begin_with(&["--backwards"]);
    let store = BucketStore::open_or_create(&config_at("s3://vault/a", &server.endpoint())).await.unwrap();
    for id in ["a", "b", "c"] {
        store.create(&account(id), put([1], &[kek("k", 1)])).await.unwrap();
    }
    for filter in [keyleash::store::Filter::Accounts, keyleash::store::Filter::WrappedBy(kek("k", 1))] {
        let outcome = store.list(&filter, None, 100).await;
        assert!(matches!(&outcome, Err(Error::Store(what)) if what.contains("order of names")), "{outcome:?}");
    }
}

/// The policy of src/manual/stores.md.
const POLICY: &str = r#"{
  "Version": "2012-10-17",
  "Statement": [
    {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": "arn:aws:s3:::vault/keyleash/*"},
    {"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::vault/keyleash/@wrapped-by/*"},
    {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::vault"}
  ]
}"#;

#[tokio::test]
async fn who_asks_is_known_by_a_key_that_can_be_replaced_and_needs_no_more_than_the_manual_says() {
    let folder = tempfile::tempdir().unwrap();
    let (policy, secret) = (folder.path().join("policy.json"), folder.path().join("secret"));
    fs::write(&policy, POLICY).unwrap();
    let manual = include_str!("../../src/manual/stores.md");
    let bare = |text: &str| text.split_whitespace().collect::<String>();
    assert!(bare(manual).contains(&bare(POLICY)), "src/manual/stores.md has another policy");
    let server = S3::begin_with(&["--user", policy.to_str().unwrap()]);
    let as_user = |name: &str, url: &str| {
        let user = StoreUser { name: name.into(), password: Some(PasswordSource::File(secret.clone())) };
        with(config_at(url, &server.endpoint()), |config| config.reach.user = Some(user))
    };
    fs::write(&secret, &server.secret).unwrap();
    let own = as_user(&server.key_id, "s3://vault/keyleash");
    let store = BucketStore::open_or_create(&own).await.unwrap();
    let (a, b) = (account("a"), account("b"));
    let guard = store.create(&b, put([1], &[])).await.unwrap();
    let mut change = put([1], &[kek("k", 1)]);
    let made = store.create(&a, change.clone()).await.unwrap();
    (change.wrapped_by, change.guards) = (vec![kek("k", 2)], vec![(b, guard)]);
    let made = store.replace(&a, &made, change).await.unwrap();
    assert_eq!(
        store.list(&keyleash::store::Filter::WrappedBy(kek("k", 2)), None, 9).await.unwrap().keys,
        std::slice::from_ref(&a)
    );
    assert!(store.list(&keyleash::store::Filter::WrappedBy(kek("k", 1)), None, 9).await.unwrap().keys.is_empty());
    assert!(store.probe().await.unwrap().is_some());
    store.delete(&a, &made).await.unwrap();

    let elsewhere = refusal(&as_user(&server.key_id, "s3://vault/elsewhere")).await;
    says(&elsewhere, &["may not do this", &server.key_id, "s3:PutObject on elsewhere/*"]);
    says(&refusal(&as_user("AKIDUNKNOWN", "s3://vault/keyleash")).await, &["does not know access key AKIDUNKNOWN"]);
    // The secret is another one now, for whoever is connected too.
    fs::write(&secret, "hunter2hunter2").unwrap();
    let outcome = store.get(&a).await;
    assert!(matches!(&outcome, Err(Error::Store(what)) if what.contains("does not take the signature")), "{outcome:?}");
    let refused = refusal(&own).await;
    says(&refused, &["does not take the signature", "where its secret is from"]);
    assert!(!refused.contains("hunter2") && !refused.contains("AWS4"), "{refused}");
    fs::write(&secret, &server.secret).unwrap();
    assert_eq!(store.get(&a).await.unwrap(), None);
    fs::remove_file(&secret).unwrap();
    says(&refusal(&own).await, &["store.password_file", "No such file"]);
    assert!(!format!("{store:?}{own:?}").contains(&server.secret));
}

fn over_tls(server: &S3, ca: &Path) -> BucketConfig {
    with(config_at("s3://vault/tls", &server.endpoint()), |config| {
        config.reach.tls = StoreTls::On;
        config.reach.ca = Some(ca.to_owned());
    })
}

fn begin_tls(folder: &Path) -> S3 {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    S3::begin_with(&["--cert", &path("own.pem"), "--key", &path("own.key")])
}

#[tokio::test]
async fn certificates_are_of_the_host_of_the_authority_and_of_today() {
    let good = certificates("IP:127.0.0.1", 2);
    let server = begin_tls(good.path());
    let store = BucketStore::open_or_create(&over_tls(&server, &good.path().join("ca.pem"))).await.unwrap();
    store.create(&account("a"), put([1], &[kek("k", 1)])).await.unwrap();
    let stranger = certificates("IP:127.0.0.1", 2);
    says(&refusal(&over_tls(&server, &stranger.path().join("ca.pem"))).await, &["certificate", "store.ca"]);
    let platform = with(over_tls(&server, Path::new("")), |config| config.reach.ca = None);
    says(&refusal(&platform).await, &["certificate", "store.ca"]);
    says(&refusal(&over_tls(&server, &good.path().join("none.pem"))).await, &["store.ca", "none.pem", "No such file"]);
    says(&refusal(&over_tls(&server, &good.path().join("own.key"))).await, &["store.ca"]);
    // No TLS where the other side has it.
    let outcome = BucketStore::open(&with(over_tls(&server, Path::new("")), |config| {
        (config.reach.ca, config.reach.tls) = (None, StoreTls::Plaintext);
        config.reach.timeout = Duration::from_secs(4);
    }))
    .await;
    assert!(matches!(&outcome, Err(Error::Store(_) | Error::Misconfigured(_))), "{outcome:?}");
    for (host, days) in [("DNS:other.example.org", 2), ("IP:127.0.0.1", -1)] {
        let bad = certificates(host, days);
        let server = begin_tls(bad.path());
        says(&refusal(&over_tls(&server, &bad.path().join("ca.pem"))).await, &["certificate", "store.ca"]);
    }
}
