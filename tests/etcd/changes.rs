//! What is changed in a store in etcd, as others hear of it.

use crate::{
    account, config,
    heard::{FOR_EVER, hear, hears_of_deletions, until_broken},
    kek, put,
    server::Etcd,
    trial::at_last,
    trouble::open_at_last,
};
use keyleash::{
    Engine, Error,
    clock::Clock,
    name::KekName,
    store::{Changes, Key, KeyStore, etcd::EtcdStore},
    telemetry::Event,
    token::{Profile, scripted::ScriptedToken},
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

async fn open(etcd_url: &str) -> EtcdStore {
    let mut config = config(etcd_url);
    config.reach.timeout = Duration::from_secs(2);
    open_at_last(&config).await
}

async fn feed(store: &EtcdStore) -> Box<dyn Changes> {
    at_last(async || store.changes().await).await.expect("it has a feed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_written_or_deleted_is_told_to_all_and_what_is_next_to_it_to_nobody() {
    let etcd = Etcd::begin(1);
    let (here, there) = (open(&etcd.url("heard")).await, open(&etcd.url("heard")).await);
    let beside = open(&etcd.url("heard/beside")).await;
    let mut feeds = [feed(&here).await, feed(&there).await];
    let keys = [account("a"), Key::Kek(KekName::new("k").unwrap()), Key::Denial(kek("k", 1))];
    beside.create(&account("b"), put([1], &[kek("k", 1)])).await.unwrap();
    let mut versions = Vec::new();
    for key in &keys {
        let of = if matches!(key, Key::Account(_)) { vec![kek("k", 1)] } else { Vec::new() };
        versions.push(there.create(key, put([1], &of)).await.unwrap());
    }
    for feed in &mut feeds {
        hear(feed, &keys).await;
    }
    versions[0] = here.replace(&keys[0], &versions[0], put([2], &[kek("k", 2)])).await.unwrap();
    for feed in &mut feeds {
        hear(feed, &keys[..1]).await;
    }
    for (key, version) in keys.iter().zip(&versions) {
        here.delete(key, version).await.unwrap();
    }
    for feed in &mut feeds {
        hear(feed, &keys).await;
    }
}

/// Nothing is written: it is asked whether it is still there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_whose_member_is_killed_or_stands_still_is_broken_and_another_tells_of_what_comes_then() {
    let mut etcd = Etcd::begin(1);
    let store = open(&etcd.url("broken")).await;
    let held = feed(&store).await;
    etcd.kill(0);
    until_broken(held).await;
    assert!(matches!(store.changes().await, Err(Error::Store(_))));
    etcd.restart(0);
    etcd.await_health();
    let mut held = feed(&store).await;
    store.create(&account("a"), put([1], &[])).await.unwrap();
    hear(&mut held, &[account("a")]).await;
    // Longer than it is given for a word, and nothing is changed: it has one.
    let quiet = timeout(Duration::from_secs(7), held.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    etcd.stop(0);
    let why = until_broken(held).await;
    etcd.go_on(0);
    assert!(why.contains("broke"), "{why}");
    etcd.await_health();
    let mut held = feed(&store).await;
    store.create(&account("b"), put([1], &[])).await.unwrap();
    hear(&mut held, &[account("b")]).await;
}

/// It answers by itself, and hears of nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_of_a_member_that_is_cut_off_from_the_others_is_broken() {
    let etcd = Etcd::begin(3);
    let leader = etcd.leader();
    let endpoints = etcd.endpoints();
    let follower = (leader + 1) % 3;
    let endpoint = endpoints.split(',').nth(follower).unwrap();
    let store = open(&format!("etcd://{endpoint}/cut")).await;
    let held = feed(&store).await;
    let others = (0..3).filter(|member| *member != follower);
    others.clone().for_each(|member| etcd.stop(member));
    let why = until_broken(held).await;
    others.for_each(|member| etcd.go_on(member));
    assert!(why.contains("leader") || why.contains("no word"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_one_engine_deleted_is_gone_from_another_before_its_ttl() {
    let mut etcd = Etcd::begin(1);
    let (token, _) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 7);
    let mut engines = Vec::new();
    for _ in 0..2 {
        let store = Arc::new(open(&etcd.url("engines")).await);
        engines.push(Engine::builder(token.clone(), store).build().unwrap());
    }
    let name = KekName::new("tenants").unwrap();
    engines[0].create_kek(&name, Profile::AesGcm).await.unwrap();
    let mut events = engines[1].events();
    hears_of_deletions(&engines, &name).await;
    // The feed breaks, and is there again.
    etcd.kill(0);
    let mut heard = async |is_over: bool| loop {
        match events.next().await.expect("the engine lives") {
            Event::ChangesUnheard { .. } if !is_over => return,
            Event::ChangesHeard if is_over => return,
            _ => {}
        }
    };
    timeout(FOR_EVER, heard(false)).await.expect("it is told");
    etcd.restart(0);
    etcd.await_health();
    timeout(FOR_EVER, heard(true)).await.expect("it is told");
    hears_of_deletions(&engines, &name).await;
}
