//! What is changed in a store in PostgreSQL, as others hear of it.

use crate::{
    account, config,
    heard::{hear, hears_of_deletions, until_broken},
    kek, put,
    server::Postgres,
    shared_url,
    trial::at_last,
    trouble::open_at_last,
};
use keyleash::{
    Engine, Error,
    clock::Clock,
    name::KekName,
    store::{Changes, Key, KeyStore, postgres::PostgresStore},
    token::{Profile, scripted::ScriptedToken},
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

async fn open(url: &str, secs: u64) -> PostgresStore {
    let mut config = config(url);
    config.reach.timeout = Duration::from_secs(secs);
    open_at_last(&config).await
}

async fn feed(store: &PostgresStore) -> Box<dyn Changes> {
    at_last(async || store.changes().await).await.expect("it has a feed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_that_are_changed_and_denials_are_told_to_all_and_other_stores_and_what_is_refused_to_nobody() {
    let url = shared_url();
    let (here, there, beside) = (open(&url, 20).await, open(&url, 20).await, open(&shared_url(), 20).await);
    let mut feeds = [feed(&here).await, feed(&there).await];
    let keys = [account("a"), Key::Denial(kek("k", 1))];
    // What is new nobody has in memory.
    let mut versions = Vec::new();
    for key in &keys {
        let of = if matches!(key, Key::Account(_)) { vec![kek("k", 1)] } else { Vec::new() };
        versions.push(there.create(key, put([1], &of)).await.unwrap());
        let other = beside.create(key, put([1], &of)).await.unwrap();
        beside.replace(key, &other, put([2], &of)).await.unwrap();
    }
    for feed in &mut feeds {
        hear(feed, &keys[1..]).await;
    }
    assert!(matches!(there.create(&keys[1], put([1], &[])).await, Err(Error::Exists(_))));
    let before = versions[0].clone();
    versions[0] = here.replace(&keys[0], &before, put([2], &[kek("k", 2)])).await.unwrap();
    for feed in &mut feeds {
        hear(feed, &keys[..1]).await;
    }
    assert!(matches!(here.replace(&keys[0], &before, put([3], &[])).await, Err(Error::Conflict(_))));
    for (key, version) in keys.iter().zip(&versions) {
        here.delete(key, version).await.unwrap();
    }
    for feed in &mut feeds {
        hear(feed, &keys).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_whose_server_is_killed_or_stands_still_is_broken_and_another_tells_of_what_comes_then() {
    let mut postgres = Postgres::begin();
    let store = open(&postgres.url("broken"), 2).await;
    let mut version = store.create(&account("a"), put([1], &[])).await.unwrap();
    let held = feed(&store).await;
    postgres.kill();
    until_broken(held).await;
    assert!(matches!(store.changes().await, Err(Error::Store(_))));
    postgres.restart();
    postgres.await_health();
    let mut held = feed(&store).await;
    version = store.replace(&account("a"), &version, put([2], &[])).await.unwrap();
    hear(&mut held, &[account("a")]).await;
    // Longer than it is given for a word, and nothing is changed: it has one.
    let quiet = timeout(Duration::from_secs(7), held.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    postgres.stop();
    until_broken(held).await;
    postgres.go_on();
    let mut held = feed(&store).await;
    store.replace(&account("a"), &version, put([3], &[])).await.unwrap();
    hear(&mut held, &[account("a")]).await;
}

/// It answers for ever, and tells nothing to whoever listens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_pooler_that_shares_connections_there_is_no_feed_and_that_is_said() {
    let postgres = Postgres::begin();
    let pooler = postgres.pooler();
    let store = open(&format!("postgres://127.0.0.1:{}/postgres/pooled", pooler.port), 3).await;
    let Err(Error::Store(why)) = store.changes().await else { panic!("nothing can be heard by it") };
    assert!(why.contains("pooler"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_one_engine_deleted_is_gone_from_another_before_its_ttl() {
    let url = shared_url();
    let (token, _) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 7);
    let mut engines = Vec::new();
    for _ in 0..2 {
        engines.push(Engine::builder(token.clone(), Arc::new(open(&url, 3).await)).build().unwrap());
    }
    let name = KekName::new("tenants").unwrap();
    engines[0].create_kek(&name, Profile::AesGcm).await.unwrap();
    hears_of_deletions(&engines, &name).await;
}
