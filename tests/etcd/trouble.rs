//! Members that are killed or stand still, answers that get lost, and clusters that are not what they were.

use crate::{
    account, config,
    proxy::{proxy, slow_proxy},
    put,
    server::Etcd,
    trial::{self, at_last, random_ms},
};
use keyleash::{
    Error,
    config::store::EtcdConfig,
    store::{Filter, KeyStore, StoreVersion, etcd::EtcdStore},
};
use std::{
    fs,
    process::Command,
    sync::{Arc, atomic::Ordering::SeqCst},
    thread,
    time::Duration,
};

/// With a short time for each call, of which a busy machine may need several.
pub(crate) async fn open_at_last(config: &EtcdConfig) -> EtcdStore {
    at_last(async || EtcdStore::open_or_create(config).await).await
}

/// One reader asks whoever answers, and one each member by itself.
async fn trial(mut etcd: Etcd, harm: impl FnOnce(&mut Etcd)) {
    let open = async |url: &str| Arc::new(EtcdStore::open_or_create(&config(url)).await.unwrap()) as Arc<dyn KeyStore>;
    let (all, endpoints) = (etcd.url("trial"), etcd.endpoints());
    let each = endpoints.split(',').map(|one| format!("etcd://{one}/trial"));
    let urls: Vec<_> = [all].into_iter().chain(each).collect();
    let harm = || {
        harm(&mut etcd);
        etcd.await_health();
    };
    trial::trial(open, &urls, harm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_acknowledged_write_is_lost_however_often_the_server_is_killed() {
    trial(Etcd::begin(1), |etcd| {
        for _ in 0..6 {
            thread::sleep(Duration::from_millis(100) + random_ms(300));
            etcd.kill(0);
            thread::sleep(random_ms(200));
            etcd.restart(0);
        }
        thread::sleep(Duration::from_millis(500));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_acknowledged_write_is_lost_and_none_of_the_past_is_read_while_leaders_die_and_stand_still() {
    trial(Etcd::begin(3), |etcd| {
        for _ in 0..2 {
            thread::sleep(Duration::from_millis(300) + random_ms(300));
            let leader = etcd.leader();
            etcd.kill(leader);
            thread::sleep(Duration::from_millis(1500));
            etcd.restart(leader);
            let leader = etcd.leader();
            etcd.stop(leader);
            thread::sleep(Duration::from_millis(2500));
            // It wakes up, and takes itself for the leader.
            etcd.go_on(leader);
            thread::sleep(random_ms(300));
        }
        etcd.await_health();
        thread::sleep(Duration::from_millis(500));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_is_lost_is_not_known_and_is_not_done_again() {
    let etcd = Etcd::begin(1);
    let (port, is_mute) = proxy(etcd.endpoints());
    let direct = EtcdStore::open_or_create(&config(&etcd.url("lost"))).await.unwrap();
    let mut through = config(&format!("etcd://127.0.0.1:{port}/lost"));
    through.reach.timeout = Duration::from_secs(1);
    let store = open_at_last(&through).await;
    let key = account("a");
    for step in 0..3 {
        is_mute.store(true, SeqCst);
        let outcome = match direct.get(&key).await.unwrap() {
            None => store.create(&key, put([step], &[])).await,
            // Its reads are mute as well: a guard is compared without one.
            Some(_) => store.create(&account(format!("a{step}")), put([step], &[])).await,
        };
        let Err(Error::Store(what)) = &outcome else { panic!("{outcome:?}") };
        assert!(what.contains("not known") || step > 0, "{what}");
        is_mute.store(false, SeqCst);
        // It is there once, and whoever asks is told so.
        let found = loop {
            match store.get(&key).await {
                Ok(found) => break found.expect("it was written"),
                Err(Error::Store(_)) => {}
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(found.value, [0]);
        assert_eq!(direct.get(&key).await.unwrap().unwrap().version, found.version);
        assert!(matches!(store.create(&key, put([9], &[])).await, Err(Error::Exists(_))));
    }
}

async fn version_of_a(store: &dyn KeyStore) -> StoreVersion {
    loop {
        match store.get(&account("a")).await {
            Ok(found) => return found.expect("it was made").version,
            Err(Error::Store(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_waits_on_a_server_that_stands_still_is_told_so_in_time_and_goes_on_with_it_later() {
    let etcd = Etcd::begin(1);
    let mut config = config(&etcd.url("still"));
    config.reach.timeout = Duration::from_secs(1);
    let store = open_at_last(&config).await;
    let _ = store.create(&account("a"), put([1], &[])).await;
    let made = version_of_a(&store).await;
    etcd.stop(0);
    for _ in 0..3 {
        let error = store.get(&account("a")).await.unwrap_err();
        assert!(matches!(&error, Error::Store(what) if what.contains("no answer within")), "{error}");
    }
    assert!(matches!(store.replace(&account("a"), &made, put([2], &[])).await, Err(Error::Store(_))));
    assert!(matches!(store.list(&Filter::Accounts, None, 10).await, Err(Error::Store(_))));
    etcd.go_on(0);
    let mut replaced = Err(Error::Store(String::new()));
    while let Err(Error::Store(_) | Error::Conflict(_)) = &replaced {
        let version = version_of_a(&store).await;
        replaced = store.replace(&account("a"), &version, put([3], &[])).await;
    }
    replaced.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_gives_up_early_is_answered_by_another_member_later() {
    let mut etcd = Etcd::begin(3);
    let mut config = config(&etcd.url("early"));
    // Longer for each member than the callers wait.
    config.reach.timeout = Duration::from_secs(60);
    let store = EtcdStore::open_or_create(&config).await.unwrap();
    store.create(&account("a"), put([1], &[])).await.unwrap();
    // All tries together take less than it takes to see that a connection is of no use.
    let patience = Duration::from_millis(400);
    // The first of the URL, which answered last.
    etcd.stop(0);
    let mut tries = 0..25;
    while tokio::time::timeout(patience, store.get(&account("a"))).await.is_err() {
        tries.next().expect("the member that stands still is asked again and again");
    }
    etcd.go_on(0);
    etcd.await_health();
    let store = EtcdStore::open(&config).await.unwrap();
    etcd.stop(0);
    let mut tries = 0..25;
    while tokio::time::timeout(patience, store.create(&account("b"), put([1], &[]))).await.is_err() {
        tries.next().expect("the member that stands still is written to again and again");
    }
    etcd.go_on(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_two_requests_has_one_deadline() {
    let etcd = Etcd::begin(1);
    let (port, _, late) = slow_proxy(etcd.endpoints());
    let mut config = config(&format!("etcd://127.0.0.1:{port}/late"));
    config.reach.timeout = Duration::from_secs(2);
    let store = open_at_last(&config).await;
    let made = store.create(&account("a"), put([1], &[])).await.unwrap();
    late.store(1200, SeqCst);
    let outcome = store.replace(&account("a"), &made, put([2], &[])).await;
    assert!(matches!(outcome, Err(Error::Store(_))), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_was_restored_under_its_clients_says_so_however_far_it_got_since() {
    let mut etcd = Etcd::begin(1);
    let store = EtcdStore::open_or_create(&config(&etcd.url("again"))).await.unwrap();
    store.create(&account("a"), put([1], &[])).await.unwrap();
    etcd.save_and_restore(0);
    for n in 0..20 {
        etcd.ctl(&["put", "more", &n.to_string()]);
    }
    let error = loop {
        match store.get(&account("a")).await {
            Err(Error::Store(what)) if what.contains("no etcd answers") => {}
            other => break other.unwrap_err().to_string(),
        }
    };
    assert!(error.contains("restored from a copy") && error.contains("restart"), "{error}");
    let anew = EtcdStore::open(&config(&etcd.url("again"))).await.unwrap();
    assert!(anew.get(&account("a")).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_was_set_back_under_its_clients_is_told_from_what_it_was() {
    let mut etcd = Etcd::begin(1);
    let store = EtcdStore::open_or_create(&config(&etcd.url("back"))).await.unwrap();
    store.create(&account("a"), put([1], &[])).await.unwrap();
    let (folder, copy) = (etcd.folder(0), tempfile::tempdir().unwrap());
    etcd.kill(0);
    let cp = |from: &std::path::Path, to: &std::path::Path| {
        assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    cp(&folder, copy.path());
    etcd.restart(0);
    for n in 0..5 {
        while let Err(Error::Store(_)) = store.create(&account(format!("b{n}")), put([1], &[])).await {}
    }
    etcd.kill(0);
    fs::remove_dir_all(&folder).unwrap();
    cp(&copy.path().join("m0"), folder.parent().unwrap());
    etcd.restart(0);
    let error = loop {
        match store.get(&account("a")).await {
            Err(Error::Store(what)) if what.contains("no etcd answers") => {}
            other => break other.unwrap_err().to_string(),
        }
    };
    assert!(error.contains("older state than before") && error.contains("restart"), "{error}");
    // Nothing is written by whoever knows of another past.
    let outcome = store.create(&account("c"), put([1], &[])).await;
    assert!(matches!(&outcome, Err(Error::Store(what)) if what.contains("older state")), "{outcome:?}");
    let anew = EtcdStore::open(&config(&etcd.url("back"))).await.unwrap();
    assert!(anew.get(&account("b0")).await.unwrap().is_none() && anew.get(&account("a")).await.unwrap().is_some());
}
