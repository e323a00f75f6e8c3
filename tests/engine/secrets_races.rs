//! Secrets, where something comes between two calls of the store: others that set, purge, or make the account anew; answers that are
//! lost; damage.

use crate::{Rig, account_id, of_suite};
use async_trait::async_trait;
use keyleash::{
    Engine, Error, When,
    block::Suite,
    clock::Clock,
    config::Settings,
    name::{SecretId, SecretName},
    secrets::{SecretValue, SetOptions},
    store::{
        Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned,
        check::check,
        memory::MemoryStore,
        record::{SecretRecord, SecretValueRecord},
    },
};
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex},
};
use tokio::{sync::Notify, task::JoinSet};

fn id(account: &str, name: &str) -> SecretId {
    SecretId::new(account_id(account), SecretName::new(name).unwrap())
}

async fn set(engine: &Engine, id: &SecretId, bytes: &str) -> Result<u32, Error> {
    engine.secrets().set(id, SecretValue::new(bytes.as_bytes().to_vec()).unwrap(), SetOptions::default()).await
}

async fn get(engine: &Engine, id: &SecretId, version: Option<u32>) -> Result<(u32, String), Error> {
    let opened = engine.secrets().get(id, version).await?;
    Ok((opened.version.version, String::from_utf8(opened.value.as_bytes().to_vec()).unwrap()))
}

/// All that is stored of secrets.
async fn stored(store: &dyn KeyStore) -> Vec<(Key, Vec<u8>)> {
    let mut stored = Vec::new();
    for filter in [Filter::Secrets, Filter::SecretValues] {
        for key in store.list(&filter, None, 1000).await.unwrap().keys {
            stored.push((key.clone(), store.get(&key).await.unwrap().unwrap().value));
        }
    }
    stored
}

type Picks = Box<dyn FnMut(&str) -> bool + Send>;
type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A store whose calls a test picks by their words, as in `delete value of secret n of account a, version 1`.
struct Between {
    store: Arc<MemoryStore>,
    /// What is done before the first call that is picked.
    before: Mutex<Option<(Picks, Work)>>,
    /// Calls that are not done.
    fails: Mutex<Option<Picks>>,
    /// Writes that are done twice, as by a client that lost the first answer.
    doubles: Mutex<Option<Picks>>,
    /// What was to be shredded.
    shredded: Mutex<Vec<u8>>,
}

impl Between {
    fn new(rig: &Rig) -> Arc<Self> {
        let (before, fails, doubles, shredded) = Default::default();
        Arc::new(Self { store: rig.store.clone(), before, fails, doubles, shredded })
    }

    /// An engine over it.
    fn engine(self: &Arc<Self>, rig: &Rig) -> Engine {
        Engine::builder(rig.token.clone(), self.clone())
            .on_current_runtime()
            .clock(Clock::Manual(rig.clock.clone()))
            .jitter_seed(5)
            .start_up_proof(false)
            .settings(Settings::default().purge_protection(false))
            .build()
            .unwrap()
    }

    fn before(
        &self,
        picks: impl FnMut(&str) -> bool + Send + 'static,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        *self.before.lock().unwrap() = Some((Box::new(picks), Box::pin(work)));
    }

    /// False where the call shall fail.
    async fn begin(&self, call: &str) -> keyleash::Result<()> {
        let work = {
            let mut before = self.before.lock().unwrap();
            if before.as_mut().is_some_and(|(picks, _)| picks(call)) { before.take() } else { None }
        };
        if let Some((_, work)) = work {
            work.await;
        }
        match picked(&self.fails, call) {
            true => Err(Error::Store("no answer".into())),
            false => Ok(()),
        }
    }
}

fn picked(picks: &Mutex<Option<Picks>>, call: &str) -> bool {
    picks.lock().unwrap().as_mut().is_some_and(|picks| picks(call))
}

#[async_trait]
impl KeyStore for Between {
    async fn get(&self, key: &Key) -> keyleash::Result<Option<Versioned>> {
        self.begin(&format!("get {key}")).await?;
        self.store.get(key).await
    }
    async fn create(&self, key: &Key, put: Put) -> keyleash::Result<StoreVersion> {
        let call = format!("create {key}");
        self.begin(&call).await?;
        let done = self.store.create(key, put.clone()).await;
        if picked(&self.doubles, &call) { self.store.create(key, put).await } else { done }
    }
    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> keyleash::Result<StoreVersion> {
        let call = format!("replace {key}");
        self.begin(&call).await?;
        let done = self.store.replace(key, expected, put.clone()).await;
        if picked(&self.doubles, &call) { self.store.replace(key, expected, put).await } else { done }
    }
    async fn delete(&self, key: &Key, expected: &StoreVersion) -> keyleash::Result<()> {
        self.begin(&format!("delete {key}")).await?;
        self.store.delete(key, expected).await
    }
    async fn shred(&self, remains: Vec<Vec<u8>>) -> keyleash::Result<()> {
        self.shredded.lock().unwrap().extend(remains.concat());
        self.store.shred(remains).await
    }
    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> keyleash::Result<Page> {
        self.begin(&format!("list {filter:?}")).await?;
        self.store.list(filter, after, limit).await
    }
}

fn unprotected() -> Settings {
    Settings::default().purge_protection(false)
}

#[tokio::test]
async fn a_purge_of_what_is_no_more_takes_no_version_from_who_sets_it_meanwhile() {
    for at in ["replace value", "delete value", "get secret"] {
        let rig = Rig::with(unprotected()).await;
        rig.account("a").await;
        let (id, setting, purging) = (id("a", "n"), Between::new(&rig), Between::new(&rig));
        let (setter, purger) = (setting.engine(&rig), purging.engine(&rig));
        let (stored_value, go_on, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (tell, wait) = (stored_value.clone(), go_on.clone());
        setting.before(|call| call == "create secret n of account a", async move {
            tell.notify_one();
            wait.notified().await;
        });
        let (of, tell) = (id.clone(), done.clone());
        let set_it = tokio::spawn(async move {
            let version = set(&setter, &of, "mine").await;
            tell.notify_one();
            version
        });
        stored_value.notified().await;
        let (tell, wait) = (go_on.clone(), done.clone());
        let (mut begun, at_once) = (false, at != "get secret");
        purging.before(
            move |call| {
                let is_there = call.starts_with(at) && (at_once || begun);
                begun |= call.starts_with("replace value");
                is_there
            },
            async move {
                tell.notify_one();
                wait.notified().await;
            },
        );
        let purged = purger.secrets().purge(&id, When::Now).await;
        go_on.notify_one();
        let version = set_it.await.unwrap().unwrap();
        assert_eq!(get(&rig.engine, &id, Some(version)).await, Ok((version, "mine".into())), "{at}: {purged:?}");
        assert_eq!(check(&*rig.store).await.unwrap().findings, []);
        assert_eq!(stored(&*rig.store).await.len(), 2);
    }
}

#[tokio::test]
async fn who_tidies_up_late_takes_nothing_from_a_secret_that_was_purged_and_set_anew() {
    let rig = Rig::with(unprotected()).await;
    rig.account("a").await;
    let (id, between) = (id("a", "n"), Between::new(&rig));
    let slow = between.engine(&rig);
    assert_eq!(set(&slow, &id, "old").await, Ok(1));
    // Of somebody who was killed: so that a number is left out.
    let orphan = SecretValueRecord { id: id.clone(), version: 2, block: orphan_of(&rig, &id).await };
    rig.store.create(&orphan.key(), orphan.put().unwrap()).await.unwrap();
    let (engine, of) = (rig.engine.clone(), id.clone());
    let mut named = false;
    between.before(
        move |call| {
            named |= call == "replace secret n of account a";
            named && call.starts_with("list SecretValuesOf")
        },
        async move {
            engine.secrets().delete(&of).await.unwrap();
            engine.secrets().purge(&of, When::Now).await.unwrap();
            assert_eq!(set(&engine, &of, "one").await, Ok(1));
            assert_eq!(set(&engine, &of, "two").await, Ok(2));
        },
    );
    assert_eq!(set(&slow, &id, "gone").await, Ok(3));
    assert_eq!(get(&rig.engine, &id, Some(1)).await, Ok((1, "one".into())));
    assert_eq!(get(&rig.engine, &id, None).await, Ok((2, "two".into())));
}

async fn orphan_of(rig: &Rig, id: &SecretId) -> Vec<u8> {
    let key = Key::SecretValue(id.clone(), 1);
    SecretValueRecord::decode(&key, &rig.store.get(&key).await.unwrap().unwrap().value).unwrap().block
}

#[tokio::test]
async fn a_secret_can_be_set_however_often_that_was_broken_off_before() {
    let rig = Rig::new().await;
    rig.account("a").await;
    let (id, between) = (id("a", "n"), Between::new(&rig));
    let engine = between.engine(&rig);
    assert_eq!(set(&engine, &id, "first").await, Ok(1));
    *between.fails.lock().unwrap() = Some(Box::new(|call| call == "replace secret n of account a"));
    for number in 0..40 {
        let failed = set(&engine, &id, "lost").await;
        assert!(matches!(failed, Err(Error::Store(_))), "{number}: {failed:?}");
    }
    *between.fails.lock().unwrap() = None;
    let version = set(&engine, &id, "last").await.unwrap();
    assert_eq!(get(&rig.engine, &id, None).await, Ok((version, "last".into())));
    assert_eq!(stored(&*rig.store).await.len(), 3, "what was left is gone");
}

#[tokio::test]
async fn no_secret_is_sealed_under_the_aek_of_an_account_that_was_purged_and_made_anew() {
    let rig = Rig::with(unprotected()).await;
    rig.account("a").await;
    let (id, a) = (id("a", "n"), account_id("a"));
    let stale = [Suite::XaesGcmCommit, Suite::XaesGcmCommit].map(|suite| of_suite(&rig, suite));
    for engine in &stale {
        set(engine, &id, "of the first").await.unwrap();
    }
    rig.engine.delete_account(&a).await.unwrap();
    rig.engine.purge_account(&a, When::Now).await.unwrap();
    rig.pass(crate::SECOND * 2).await;
    rig.account("a").await;
    let version = rig.meanwhile(set(&stale[0], &id, "of the second")).await.unwrap();
    for engine in [&rig.engine, &stale[0], &stale[1]] {
        let found = rig.meanwhile(get(engine, &id, None)).await;
        assert_eq!(found, Ok((version, "of the second".into())));
    }
}

#[tokio::test]
async fn a_purge_takes_the_secrets_that_were_set_until_the_account_was_deleted() {
    let rig = Rig::with(unprotected()).await;
    rig.account("a").await;
    let (id, between) = (id("a", "n"), Between::new(&rig));
    let purger = between.engine(&rig);
    let (engine, of, mut listed) = (rig.engine.clone(), id.clone(), false);
    between.before(
        move |call| {
            listed |= call.starts_with("list SecretValuesOf");
            listed && call == "get account a"
        },
        async move {
            set(&engine, &of, "late").await.unwrap();
            engine.delete_account(&of.account).await.unwrap();
        },
    );
    purger.purge_account(&id.account, When::Now).await.unwrap();
    assert_eq!(stored(&*rig.store).await, []);
}

#[tokio::test]
async fn whatever_breaks_off_a_purge_and_however_often_each_value_is_shredded_that_it_removed() {
    for cut in 1..=3 {
        let rig = Rig::with(unprotected()).await;
        rig.account("a").await;
        let (id, between) = (id("a", "n"), Between::new(&rig));
        let engine = between.engine(&rig);
        for text in ["one", "two", "three"] {
            set(&engine, &id, text).await.unwrap();
        }
        engine.secrets().delete(&id).await.unwrap();
        let values: Vec<_> = stored(&*rig.store).await.into_iter().skip(1).map(|(_, value)| value).collect();
        assert_eq!(values.len(), 3);
        let broken = format!("delete value of secret n of account a, version {cut}");
        *between.fails.lock().unwrap() = Some(Box::new(move |call| call == broken));
        let failed = engine.secrets().purge(&id, When::Now).await;
        assert!(matches!(failed, Err(Error::Store(_))), "{failed:?}");
        *between.fails.lock().unwrap() = None;
        engine.secrets().purge(&id, When::Now).await.unwrap();
        assert_eq!(stored(&*rig.store).await, []);
        let shredded = between.shredded.lock().unwrap().clone();
        for value in values {
            assert!(shredded.windows(value.len()).any(|piece| piece == value), "{cut}");
        }
    }
}

#[tokio::test]
async fn secrets_of_an_account_that_was_purged_are_not_listed_as_those_of_the_next() {
    let rig = Rig::with(unprotected()).await;
    rig.account("a").await;
    let a = account_id("a");
    for name in ["n", "o"] {
        set(&rig.engine, &id("a", name), "value").await.unwrap();
    }
    let left = stored(&*rig.store).await;
    rig.engine.delete_account(&a).await.unwrap();
    rig.engine.purge_account(&a, When::Now).await.unwrap();
    // As if the purge had been killed before it removed them.
    for (key, value) in left {
        rig.store.create(&key, Put { value, wrapped_by: Vec::new(), guards: Vec::new() }).await.unwrap();
    }
    rig.pass(crate::SECOND * 2).await;
    rig.account("a").await;
    set(&rig.engine, &id("a", "o"), "new").await.unwrap();
    // What cannot be read is there all the same.
    let damaged = Put { value: b"damaged".to_vec(), wrapped_by: Vec::new(), guards: Vec::new() };
    rig.store.create(&Key::Secret(id("a", "p")), damaged).await.unwrap();
    let page = rig.engine.secrets().list(&a, None, 9).await.unwrap();
    assert_eq!(page.names.iter().map(SecretName::as_str).collect::<Vec<_>>(), ["o", "p"]);
    let page = rig.engine.secrets().list(&a, None, 1).await.unwrap();
    assert_eq!((page.names.len(), page.next.is_some()), (0, true), "a page may be short, and the next is asked for");
    rig.engine.secrets().purge(&id("a", "n"), When::Now).await.unwrap();
    assert!(stored(&*rig.store).await.iter().all(|(key, _)| !key.to_string().contains("secret n ")));
}

#[tokio::test]
async fn one_damaged_value_keeps_no_other_secret_under_an_old_aek_version() {
    let rig = Rig::with(unprotected()).await;
    rig.account("a").await;
    let (damaged, whole, a) = (id("a", "damaged"), id("a", "whole"), account_id("a"));
    for of in [&damaged, &whole] {
        set(&rig.engine, of, "value").await.unwrap();
    }
    let key = Key::SecretValue(damaged.clone(), 1);
    let found = rig.store.get(&key).await.unwrap().unwrap();
    let mut value = SecretValueRecord::decode(&key, &found.value).unwrap();
    *value.block.last_mut().unwrap() ^= 1;
    rig.store.replace(&key, &found.version, value.put().unwrap()).await.unwrap();
    rig.meanwhile(rig.engine.rotate_account(&a)).await.unwrap();
    let secrets = rig.engine.secrets();
    let resealed = rig.meanwhile(secrets.reseal(&a)).await;
    assert!(
        matches!(&resealed, Err(Error::Corrupt(what)) if what.to_string().contains("damaged of account a")),
        "{resealed:?}"
    );
    let key = Key::SecretValue(whole.clone(), 1);
    let moved = SecretValueRecord::decode(&key, &rig.store.get(&key).await.unwrap().unwrap().value).unwrap();
    assert_eq!(moved.block[4..8], 2_u32.to_be_bytes());
    // The way out.
    let refused = rig.engine.retire_aeks(&a, &[1], When::Now).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    secrets.delete(&damaged).await.unwrap();
    secrets.purge(&damaged, When::Now).await.unwrap();
    rig.meanwhile(rig.engine.retire_aeks(&a, &[1], When::Now)).await.unwrap();
    assert_eq!(rig.meanwhile(get(&rig.engine, &whole, None)).await, Ok((1, "value".into())));
}

#[tokio::test]
async fn a_store_that_tries_again_and_then_meets_its_own_write_loses_no_version() {
    let rig = Rig::new().await;
    rig.account("a").await;
    let (id, between) = (id("a", "n"), Between::new(&rig));
    let engine = between.engine(&rig);
    *between.doubles.lock().unwrap() = Some(Box::new(|call| call.ends_with("e secret n of account a")));
    for version in 1..=3 {
        assert_eq!(set(&engine, &id, "value").await, Ok(version));
    }
    for version in 1..=3 {
        assert_eq!(get(&rig.engine, &id, Some(version)).await, Ok((version, "value".into())));
    }
    assert_eq!(check(&*rig.store).await.unwrap().findings, []);
    assert_eq!(stored(&*rig.store).await.len(), 4);
}

#[tokio::test]
async fn a_check_of_the_store_names_a_value_whose_aek_version_is_no_more() {
    let rig = Rig::new().await;
    rig.account("a").await;
    let (one, two, a) = (id("a", "one"), id("a", "two"), account_id("a"));
    set(&rig.engine, &one, "value").await.unwrap();
    rig.meanwhile(rig.engine.rotate_account(&a)).await.unwrap();
    rig.meanwhile(set(&rig.engine, &two, "value")).await.unwrap();
    // As by a release that knows of no secrets.
    let heads = [Key::Secret(one.clone())];
    let mut away = Vec::new();
    for key in heads {
        let found = rig.store.get(&key).await.unwrap().unwrap();
        rig.store.delete(&key, &found.version).await.unwrap();
        away.push(SecretRecord::decode(&key, &found.value).unwrap());
    }
    rig.meanwhile(rig.engine.retire_aeks(&a, &[1], When::Now)).await.unwrap();
    for head in away {
        rig.store.create(&head.key(), head.put().unwrap()).await.unwrap();
    }
    let found = check(&*rig.store).await.unwrap();
    let [finding] = &found.findings[..] else { panic!("{found:?}") };
    let finding = finding.to_string();
    assert!(
        finding.contains("value of secret one of account a, version 1") && finding.contains("AEK version 1"),
        "{finding}"
    );
}

#[tokio::test]
async fn of_a_hundred_that_set_one_secret_at_once_each_version_that_was_acknowledged_is_there_once() {
    let rig = Rig::new().await;
    rig.account("a").await;
    let (id, other) = (id("a", "n"), of_suite(&rig, Suite::XaesGcmCommit));
    let mut tasks = JoinSet::new();
    for number in 0..100 {
        let (engine, id) = ([&rig.engine, &other][number % 2].clone(), id.clone());
        tasks.spawn(async move {
            let text = format!("value {number}");
            (set(&engine, &id, &text).await, text)
        });
    }
    let mut acknowledged = BTreeMap::new();
    for (outcome, text) in rig.meanwhile(tasks.join_all()).await {
        match outcome {
            Ok(version) => assert_eq!(acknowledged.insert(version, text), None, "{version} was given twice"),
            // Somebody was faster, again and again.
            Err(error) => assert!(matches!(error, Error::Conflict(_)), "{error}"),
        }
    }
    assert!(!acknowledged.is_empty());
    let shown = rig.engine.secrets().show(&id).await.unwrap();
    assert!(shown.versions.iter().map(|version| version.version).eq(acknowledged.keys().copied()));
    for (version, text) in &acknowledged {
        assert_eq!(get(&other, &id, Some(*version)).await, Ok((*version, text.clone())));
    }
    assert_eq!(check(&*rig.store).await.unwrap().findings, []);
    assert_eq!(stored(&*rig.store).await.len(), 1 + acknowledged.len(), "nothing is left that no head names");
}

#[tokio::test]
async fn a_set_that_is_dropped_at_any_moment_leaves_the_versions_before_or_those_and_the_new_one() {
    let rig = Rig::new().await;
    rig.account("a").await;
    let id = id("a", "n");
    let mut known = vec![set(&rig.engine, &id, "value").await.unwrap()];
    let (mut dropped, mut done) = (0, 0);
    for polls in 0..100 {
        let mut setting = Box::pin(set(&rig.engine, &id, "value"));
        let mut outcome = None;
        for _ in 0..polls {
            tokio::select! {
                biased;
                ended = &mut setting => outcome = Some(ended.unwrap()),
                () = tokio::task::yield_now() => continue,
            }
            break;
        }
        drop(setting);
        crate::settle().await;
        let shown = rig.engine.secrets().show(&id).await.unwrap();
        let now: Vec<_> = shown.versions.iter().map(|version| version.version).collect();
        assert!(now.starts_with(&known) && now.len() <= known.len() + 1, "{polls}: {now:?} after {known:?}");
        match outcome {
            Some(version) => {
                assert_eq!(now.last(), Some(&version));
                done += 1;
            }
            None => dropped += 1,
        }
        assert_eq!(get(&rig.engine, &id, None).await, Ok((now[now.len() - 1], "value".into())));
        assert_eq!(check(&*rig.store).await.unwrap().findings, []);
        known = now;
    }
    assert!(dropped > 0 && done > 0, "{dropped} were dropped, {done} ended");
    known.push(set(&rig.engine, &id, "last").await.unwrap());
    assert_eq!(stored(&*rig.store).await.len(), 1 + known.len(), "what was left is gone");
}
