//! A server that fails, also behind having done what it was asked, that stands still, and whose answers get lost.

use crate::{
    account, config_at, kek,
    proxy::proxy,
    put,
    server::S3,
    trial::{self, at_last, random_ms},
};
use keyleash::{
    Error,
    config::store::BucketConfig,
    store::{Filter, KeyStore, Put, StoreVersion, bucket::BucketStore},
};
use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    thread,
    time::Duration,
};

fn impatient(endpoint: &str) -> BucketConfig {
    let mut config = config_at("s3://vault/trouble", endpoint);
    config.reach.timeout = Duration::from_secs(2);
    config
}

/// With a short time for each call, of which a busy machine may need several.
async fn open_at_last(config: &BucketConfig) -> BucketStore {
    at_last(async || BucketStore::open_or_create(config).await).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_acknowledged_write_is_lost_while_the_server_fails_before_and_behind_what_it_does_and_stands_still() {
    let mut server = S3::begin();
    let endpoint = server.endpoint();
    let open = async |_: &str| Arc::new(open_at_last(&impatient(&endpoint)).await) as Arc<dyn KeyStore>;
    let harm = || {
        for fault in ["late", "early", "dear", "late"] {
            thread::sleep(Duration::from_millis(500));
            server.fault(fault);
            thread::sleep(Duration::from_millis(1000) + random_ms(500));
            server.fault("well");
            server.stop();
            thread::sleep(random_ms(700));
            server.go_on();
        }
        thread::sleep(Duration::from_secs(1));
    };
    trial::trial(open, &["one".to_owned(), "two".to_owned()], harm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_is_lost_is_not_known_and_is_not_done_again() {
    let server = S3::begin();
    let (port, is_mute) = proxy(server.endpoint());
    let direct = BucketStore::open_or_create(&config_at("s3://vault/trouble", &server.endpoint())).await.unwrap();
    let through = impatient(&format!("127.0.0.1:{port}"));
    let store = open_at_last(&through).await;
    let made = direct.create(&account("a"), put([0], &[])).await.unwrap();
    let mut known = false;
    // Whether it is the read or the write that gets no answer is chance.
    for step in 1..10_u8 {
        let version = direct.get(&account("a")).await.unwrap().unwrap().version;
        let mute = is_mute.clone();
        let muting = thread::spawn(move || {
            thread::sleep(random_ms(12));
            mute.store(true, SeqCst);
            thread::sleep(Duration::from_millis(300));
        });
        let outcome = store.replace(&account("a"), &version, put([step], &[])).await;
        muting.join().unwrap();
        is_mute.store(false, SeqCst);
        let found = direct.get(&account("a")).await.unwrap().unwrap();
        match outcome {
            Ok(version) => assert_eq!((found.value.as_slice(), found.version), ([step].as_slice(), version)),
            Err(Error::Store(_)) => known |= found.value == [step],
            Err(error) => panic!("{error}"),
        }
        assert!(
            matches!(direct.replace(&account("a"), &made, put([0], &[])).await, Err(Error::Conflict(_))) || step == 1
        );
    }
    println!("one was done of which nobody was told: {known}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_waits_on_a_server_that_stands_still_is_told_so_in_time_and_goes_on_with_it_later() {
    let server = S3::begin();
    let store = open_at_last(&impatient(&server.endpoint())).await;
    let _ = store.create(&account("a"), put([1], &[])).await;
    let made = version_of_a(&store).await;
    server.stop();
    for _ in 0..2 {
        let error = store.get(&account("a")).await.unwrap_err();
        assert!(matches!(&error, Error::Store(what) if what.contains("no answer")), "{error}");
    }
    assert!(matches!(store.replace(&account("a"), &made, put([2], &[])).await, Err(Error::Store(_))));
    assert!(matches!(store.list(&Filter::Accounts, None, 10).await, Err(Error::Store(_))));
    server.go_on();
    let mut replaced = Err(Error::Store(String::new()));
    while let Err(Error::Store(_) | Error::Conflict(_)) = &replaced {
        let version = version_of_a(&store).await;
        replaced = store.replace(&account("a"), &version, put([3], &[])).await;
    }
    replaced.unwrap();
}

async fn version_of_a(store: &dyn KeyStore) -> StoreVersion {
    at_last(async || store.get(&account("a")).await).await.expect("it was made").version
}

/// As a process that is killed leaves it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_given_up_at_any_instant_is_done_or_not_and_never_after_what_it_rests_on_was_changed() {
    let server = S3::begin();
    let config = config_at("s3://vault/trouble", &server.endpoint());
    let (one, two) = (BucketStore::open_or_create(&config).await.unwrap(), BucketStore::open(&config).await.unwrap());
    let (a, b) = (account("a"), account("b"));
    let mut a_is = one.create(&a, put([0, 0], &[kek("k", 1)])).await.unwrap();
    let mut b_is = one.create(&b, put([0], &[])).await.unwrap();
    let mut done = 0;
    for step in 1..60_u8 {
        let change = Put {
            guards: vec![(b.clone(), b_is.clone())],
            ..put([step, step - 1], &[kek("k", 1 + u32::from(step % 2))])
        };
        // Each takes some 10 ms here.
        let _ = tokio::time::timeout(random_ms(25), one.replace(&a, &a_is, change)).await;
        let looked_at = step % 3 == 0;
        if looked_at {
            two.get(&a).await.unwrap().unwrap();
        }
        b_is = two.replace(&b, &b_is, put([step], &[])).await.unwrap();
        // From here on it is one or the other, for good.
        let found = two.get(&a).await.unwrap().unwrap();
        done += u32::from(found.value[0] == step);
        assert!(found.value[0] == step || found.version == a_is, "{found:?}");
        for n in 0..3 {
            thread::sleep(random_ms(4));
            assert_eq!([&two, &one][n % 2].get(&a).await.unwrap().unwrap(), found, "at {step}");
        }
        let under = async |version| two.list(&Filter::WrappedBy(kek("k", version)), None, 9).await;
        let of = if found.value[0] == 0 { 1 } else { 1 + u32::from(found.value[0] % 2) };
        assert_eq!(under(of).await.unwrap().keys, std::slice::from_ref(&a));
        assert!(under(3 - of).await.unwrap().keys.is_empty());
        a_is = found.version;
    }
    println!("{done} of 59 were done");
}
