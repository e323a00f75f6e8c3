//! Secrets: versions, what is refused and why, crashes, damage, rotation of the account's AEK, its end.

use crate::{Rig, account_id, build, of_suite};
use async_trait::async_trait;
use keyleash::{
    Corrupt, Engine, Error, When,
    access::{Actions, Grant, Operation, Operations, Pattern},
    block::Suite,
    clock::{Clock, unix_now},
    config::Settings,
    name::{CallerId, GrantId, SecretId, SecretName},
    secrets::{SecretValue, SetOptions},
    store::{
        Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned,
        check::check,
        memory::MemoryStore,
        record::{SECRET_BYTES_MAX, SECRET_VERSIONS_MAX, SecretRecord, SecretValueRecord},
    },
};
use proptest::{prelude::*, test_runner::Config};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};
use tokio::task::JoinSet;

fn id(account: &str, name: &str) -> SecretId {
    SecretId::new(account_id(account), SecretName::new(name).unwrap())
}

fn value(bytes: impl AsRef<[u8]>) -> SecretValue {
    SecretValue::new(bytes.as_ref().to_vec()).unwrap()
}

async fn set(engine: &Engine, id: &SecretId, bytes: &str) -> u32 {
    engine.secrets().set(id, value(bytes), SetOptions::default()).await.unwrap()
}

async fn get(engine: &Engine, id: &SecretId, version: Option<u32>) -> Result<(u32, String), Error> {
    let opened = engine.secrets().get(id, version).await?;
    Ok((opened.version.version, String::from_utf8(opened.value.as_bytes().to_vec()).unwrap()))
}

/// Why not, in words.
async fn why_not(engine: &Engine, id: &SecretId, version: Option<u32>) -> String {
    match get(engine, id, version).await {
        Err(Error::NotFound(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn unprotected() -> Settings {
    Settings::default().purge_protection(false)
}

/// The keys of all that is stored of secrets.
async fn stored(store: &dyn KeyStore) -> Vec<Key> {
    let mut keys = store.list(&Filter::Secrets, None, 1000).await.unwrap().keys;
    keys.extend(store.list(&Filter::SecretValues, None, 1000).await.unwrap().keys);
    keys
}

#[tokio::test]
async fn a_version_is_given_out_while_it_is_enabled_and_valid_and_the_error_says_why_not() {
    let rig = Rig::new().await;
    rig.account("a").await;
    let (engine, id, now) = (&rig.engine, id("a", "db/password"), unix_now());
    let secrets = engine.secrets();
    assert!(why_not(engine, &id, None).await.contains("secret db/password of account a"));
    let nobody = SecretId::new(account_id("nobody"), id.name.clone());
    assert!(why_not(engine, &nobody, None).await.contains("account nobody"));

    assert_eq!(set(engine, &id, "first").await, 1);
    assert_eq!(set(engine, &id, "").await, 2);
    let options = SetOptions::default().content_type("text/plain").tag("tier", "db").tag("owner", "ops");
    assert_eq!(secrets.set(&id, value("third"), options).await.unwrap(), 3);
    let later = SetOptions::default().not_before(now + 1000).expires(now + 2000);
    assert_eq!(secrets.set(&id, value("later"), later).await.unwrap(), 4);
    assert_eq!(secrets.set(&id, value("over"), SetOptions::default().expires(now)).await.unwrap(), 5);
    assert_eq!(secrets.set(&id, value("off"), SetOptions::default().enabled(false)).await.unwrap(), 6);

    assert_eq!(get(engine, &id, None).await.unwrap(), (3, "third".into()), "the newest that is given out");
    assert_eq!(get(engine, &id, Some(1)).await.unwrap().1, "first");
    assert_eq!(get(engine, &id, Some(2)).await.unwrap().1, "");
    assert!(
        why_not(engine, &id, Some(4))
            .await
            .contains("version 4 of secret db/password of account a is not valid before")
    );
    assert!(why_not(engine, &id, Some(5)).await.contains("expired on"));
    assert!(why_not(engine, &id, Some(6)).await.contains("is disabled"));
    assert!(why_not(engine, &id, Some(7)).await.contains("secret show db/password --account a"));
    for version in 1..=3 {
        secrets.set_enabled(&id, version, false).await.unwrap();
    }
    assert!(why_not(engine, &id, None).await.contains("the newest, version 6, is disabled"));
    secrets.set_enabled(&id, 2, true).await.unwrap();
    assert_eq!(get(engine, &id, None).await.unwrap().0, 2);
    assert!(matches!(secrets.set_enabled(&id, 9, true).await, Err(Error::NotFound(_))));

    let shown = secrets.show(&id).await.unwrap();
    assert_eq!(shown.versions.len(), 6);
    assert_eq!(shown.version(3).unwrap().tags, [("owner".into(), "ops".into()), ("tier".into(), "db".into())]);
    set(engine, &SecretId::new(account_id("a"), SecretName::new("a").unwrap()), "x").await;
    let page = secrets.list(&account_id("a"), None, 1).await.unwrap();
    assert_eq!((page.names[0].as_str(), page.next.is_some()), ("a", true));
    let page = secrets.list(&account_id("a"), page.next.as_ref(), 1).await.unwrap();
    assert_eq!((page.names[0].as_str(), page.next), ("db/password", None));
    assert_eq!(check(&*rig.store).await.unwrap().findings, []);
}

#[tokio::test]
async fn a_value_has_64_kib_at_most_and_nothing_shows_it() {
    let rig = Rig::new().await;
    rig.account("a").await;
    let most = vec![7; SECRET_BYTES_MAX];
    let error = SecretValue::new(vec![7; SECRET_BYTES_MAX + 1]).unwrap_err();
    assert!(matches!(error, Error::TooLong { len: 65_537, max: SECRET_BYTES_MAX, .. }), "{error}");
    let (secrets, id) = (rig.engine.secrets(), id("a", "most"));
    secrets.set(&id, value(&most), SetOptions::default()).await.unwrap();
    let opened = secrets.get(&id, None).await.unwrap();
    assert_eq!(opened.value.as_bytes(), most);
    assert!(!format!("{opened:?} {:?}", value("visible")).contains("visible"));
    assert!(!format!("{opened:?}").contains("7, 7"));
    for (options, words) in [
        (SetOptions::default().content_type("a\n"), "control character"),
        (SetOptions::default().not_before(5).expires(5), "expires after it begins"),
        (SetOptions::default().tag("", "x"), "tags have names"),
        (SetOptions::default().tag("x", "1").tag("x", "2"), "each another"),
    ] {
        match secrets.set(&id, value("visible"), options).await {
            Err(Error::Invalid(why)) => assert!(why.contains(words) && !why.contains("visible"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn of_many_that_set_one_secret_at_once_each_gets_a_number_of_its_own_and_none_is_lost() {
    let rig = Rig::new().await;
    rig.account("a").await;
    let other = of_suite(&rig, Suite::XaesGcmCommit);
    let id = id("a", "n");
    let mut tasks = JoinSet::new();
    for number in 0..16 {
        let (engine, id) = ([&rig.engine, &other][number % 2].clone(), id.clone());
        tasks.spawn(async move {
            let text = format!("value {number}");
            (engine.secrets().set(&id, value(&text), SetOptions::default()).await.unwrap(), text)
        });
    }
    let all: BTreeMap<_, _> = rig.meanwhile(tasks.join_all()).await.into_iter().collect();
    assert_eq!(all.len(), 16, "none was given twice");
    for (version, text) in all {
        assert_eq!(get(&rig.engine, &id, Some(version)).await.unwrap().1, text);
        assert_eq!(get(&other, &id, Some(version)).await.unwrap().1, text);
    }
    assert_eq!(stored(&*rig.store).await.len(), 17, "no value is left that no head names");
}

/// A store of a process that is killed after so many more writes: nothing that it writes after that is done.
struct Cut {
    store: Arc<MemoryStore>,
    writes: AtomicI64,
    /// The last write that is done is not acknowledged either.
    answer_is_lost: bool,
}

impl Cut {
    async fn write<T>(&self, write: impl Future<Output = keyleash::Result<T>>) -> keyleash::Result<T> {
        let left = self.writes.fetch_sub(1, Ordering::SeqCst);
        if left <= 0 {
            return Err(Error::Store("killed".into()));
        }
        let done = write.await;
        if left == 1 && self.answer_is_lost { Err(Error::Store("killed".into())) } else { done }
    }
}

#[async_trait]
impl KeyStore for Cut {
    async fn get(&self, key: &Key) -> keyleash::Result<Option<Versioned>> {
        self.store.get(key).await
    }
    async fn create(&self, key: &Key, put: Put) -> keyleash::Result<StoreVersion> {
        self.write(self.store.create(key, put)).await
    }
    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> keyleash::Result<StoreVersion> {
        self.write(self.store.replace(key, expected, put)).await
    }
    async fn delete(&self, key: &Key, expected: &StoreVersion) -> keyleash::Result<()> {
        self.write(self.store.delete(key, expected)).await
    }
    async fn shred(&self, remains: Vec<Vec<u8>>) -> keyleash::Result<()> {
        self.store.shred(remains).await
    }
    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> keyleash::Result<Page> {
        self.store.list(filter, after, limit).await
    }
}

#[tokio::test]
async fn a_crash_after_any_write_of_set_and_purge_loses_and_doubles_nothing_and_leaves_nothing_behind() {
    for answer_is_lost in [false, true] {
        for (first, cut) in [true, false].into_iter().flat_map(|first| (0..8).map(move |cut| (first, cut))) {
            let rig = Rig::with(unprotected()).await;
            rig.account("a").await;
            let id = id("a", "n");
            let mut before = 0;
            if !first {
                before = set(&rig.engine, &id, "before").await;
            }
            let store = Arc::new(Cut { store: rig.store.clone(), writes: AtomicI64::new(cut), answer_is_lost });
            let killed = Engine::builder(rig.token.clone(), store.clone())
                .on_current_runtime()
                .clock(Clock::Manual(rig.clock.clone()))
                .jitter_seed(3)
                .start_up_proof(false)
                .settings(unprotected())
                .build()
                .unwrap();
            let outcome = rig.meanwhile(killed.secrets().set(&id, value("cut"), SetOptions::default())).await;
            drop(killed);
            let found = get(&rig.engine, &id, None).await;
            match &outcome {
                Ok(version) => assert_eq!(found, Ok((*version, "cut".into())), "what was acknowledged is there"),
                // The answer may be what was lost.
                Err(_) if matches!(&found, Ok((_, value)) if value == "cut") => {}
                Err(_) if first => assert!(matches!(found, Err(Error::NotFound(_))), "{found:?}"),
                Err(_) => assert_eq!(found, Ok((before, "before".into()))),
            }
            assert_eq!(check(&*rig.store).await.unwrap().findings, [], "{cut} {answer_is_lost}");
            let next = set(&rig.engine, &id, "next").await;
            assert_eq!(get(&rig.engine, &id, None).await, Ok((next, "next".into())));
            let shown = rig.engine.secrets().show(&id).await.unwrap();
            assert_eq!(stored(&*rig.store).await.len(), 1 + shown.versions.len(), "orphans are gone: {cut}");

            rig.engine.secrets().delete(&id).await.unwrap();
            store.writes.store(cut, Ordering::SeqCst);
            let killed = Engine::builder(rig.token.clone(), store)
                .on_current_runtime()
                .clock(Clock::Manual(rig.clock.clone()))
                .jitter_seed(4)
                .start_up_proof(false)
                .settings(unprotected())
                .build()
                .unwrap();
            let purged = rig.meanwhile(killed.secrets().purge(&id, When::Now)).await;
            assert_eq!(check(&*rig.store).await.unwrap().findings, []);
            match rig.engine.secrets().purge(&id, When::Now).await {
                Ok(()) => assert!(purged.is_err()),
                Err(Error::NotFound(_)) => {}
                other => panic!("{other:?}"),
            }
            assert_eq!(stored(&*rig.store).await, [], "{cut}");
        }
    }
}

#[tokio::test]
async fn a_value_that_was_changed_moved_to_another_version_secret_or_account_or_taken_away_is_corrupt_by_name() {
    let rig = Rig::new().await;
    rig.account("a").await;
    rig.account("b").await;
    let (engine, store) = (&rig.engine, &rig.store);
    let (one, other, of_b) = (id("a", "one"), id("a", "other"), id("b", "one"));
    for of in [&one, &other, &of_b] {
        set(engine, of, "first").await;
        set(engine, of, "second").await;
    }
    let read = async |of: &SecretId, version| {
        let key = Key::SecretValue(of.clone(), version);
        let found = store.get(&key).await.unwrap().unwrap();
        (SecretValueRecord::decode(&key, &found.value).unwrap(), found.version)
    };
    let refused = async |words: &str| match get(engine, &one, Some(1)).await {
        Err(Error::Corrupt(what @ (Corrupt::Record { .. } | Corrupt::HeaderSuite(_)))) => {
            let what = what.to_string();
            assert!(what.contains("value of secret one of account a, version 1") && what.contains(words), "{what}");
        }
        other => panic!("{words}: {other:?}"),
    };
    let (whole, mut seen) = read(&one, 1).await;
    let key = whole.key();
    for from in [read(&one, 2).await.0, read(&other, 1).await.0, read(&of_b, 1).await.0] {
        // As it is, and under this one's name.
        let put = from.put().unwrap();
        seen = store.replace(&key, &seen, put).await.unwrap();
        refused("moved or exchanged").await;
        let renamed = SecretValueRecord { id: one.clone(), version: 1, block: from.block };
        seen = store.replace(&key, &seen, renamed.put().unwrap()).await.unwrap();
        refused("moved to another address or account").await;
    }
    for at in (8..whole.block.len()).chain([0, 1, 2]) {
        let mut bytes = whole.put().unwrap().value;
        let from = bytes.len() - whole.block.len();
        bytes[from + at] ^= 1;
        let put = Put { value: bytes, ..whole.put().unwrap() };
        seen = store.replace(&key, &seen, put).await.unwrap();
        refused("").await;
    }
    seen = store.replace(&key, &seen, whole.put().unwrap()).await.unwrap();
    assert_eq!(get(engine, &one, Some(1)).await.unwrap().1, "first");
    store.delete(&key, &seen).await.unwrap();
    refused("is missing").await;
    let found = check(&**store).await.unwrap();
    assert!(found.findings[0].to_string().contains("one of account a, version 1: is missing"), "{found:?}");
    assert_eq!((found.found, found.secrets), (1, 3));
    assert_eq!(get(engine, &one, None).await.unwrap().1, "second", "the others are whole");
}

#[tokio::test]
async fn secrets_go_dark_with_the_kek_and_come_back_with_it() {
    let rig = Rig::new().await;
    rig.account("a").await;
    let id = id("a", "n");
    set(&rig.engine, &id, "value").await;
    rig.script.disable(&rig.kek_id);
    rig.pass(crate::SECOND * 25).await;
    assert!(matches!(get(&rig.engine, &id, None).await, Err(Error::Denied(_))));
    let refused = rig.engine.secrets().set(&id, value("new"), SetOptions::default()).await;
    assert!(matches!(refused, Err(Error::Denied(_))), "{refused:?}");
    assert_eq!(rig.engine.secrets().show(&id).await.unwrap().versions.len(), 1, "what there is can be seen");
    rig.script.enable(&rig.kek_id);
    rig.pass(crate::SECOND * 61).await;
    assert_eq!(rig.meanwhile(get(&rig.engine, &id, None)).await, Ok((1, "value".into())));
}

#[tokio::test]
async fn no_aek_version_is_retired_under_a_secret_and_resealing_moves_them_all() {
    let rig = Rig::new().await;
    rig.account("a").await;
    let (engine, secrets, one, deleted) = (&rig.engine, rig.engine.secrets(), id("a", "one"), id("a", "deleted"));
    let stale = of_suite(&rig, Suite::XaesGcmCommit);
    set(&stale, &one, "first").await;
    set(engine, &deleted, "also").await;
    secrets.delete(&deleted).await.unwrap();
    assert_eq!(rig.meanwhile(engine.rotate_account(&account_id("a"))).await.unwrap(), 2);
    // An engine that has not heard of it.
    assert_eq!(rig.meanwhile(set(&stale, &one, "second")).await, 2);
    let value = Key::SecretValue(one.clone(), 2);
    let sealed = SecretValueRecord::decode(&value, &rig.store.get(&value).await.unwrap().unwrap().value).unwrap();
    assert_eq!(sealed.block[4..8], 2_u32.to_be_bytes(), "under the current one all the same");

    let refused = engine.retire_aeks(&account_id("a"), &[1], When::Now).await;
    assert!(
        matches!(&refused, Err(Error::Invalid(why)) if why.contains("keyleash secret reseal --account a") && why.contains("version 1")),
        "{refused:?}"
    );
    assert_eq!(rig.meanwhile(secrets.reseal(&account_id("a"))).await.unwrap(), 2);
    assert_eq!(rig.meanwhile(secrets.reseal(&account_id("a"))).await.unwrap(), 0);
    rig.meanwhile(engine.retire_aeks(&account_id("a"), &[1], When::Now)).await.unwrap();
    secrets.undelete(&deleted).await.unwrap();
    for engine in [engine, &stale] {
        assert_eq!(rig.meanwhile(get(engine, &one, Some(1))).await.unwrap().1, "first");
        assert_eq!(rig.meanwhile(get(engine, &one, Some(2))).await.unwrap().1, "second");
        assert_eq!(rig.meanwhile(get(engine, &deleted, None)).await.unwrap().1, "also");
    }
}

#[tokio::test]
async fn secrets_end_with_their_account_and_are_none_of_one_that_is_made_anew() {
    let rig = Rig::with(unprotected()).await;
    for account in ["a", "ab"] {
        rig.account(account).await;
        set(&rig.engine, &id(account, "n"), account).await;
    }
    let (engine, a) = (&rig.engine, account_id("a"));
    engine.delete_account(&a).await.unwrap();
    for refused in [
        get(engine, &id("a", "n"), None).await.map(drop),
        engine.secrets().show(&id("a", "n")).await.map(drop),
        engine.secrets().list(&a, None, 9).await.map(drop),
        engine.secrets().set(&id("a", "n"), value("x"), SetOptions::default()).await.map(drop),
    ] {
        assert!(matches!(&refused, Err(Error::NotFound(why)) if why.contains("account undelete a")), "{refused:?}");
    }
    engine.undelete_account(&a).await.unwrap();
    assert_eq!(rig.meanwhile(get(engine, &id("a", "n"), None)).await.unwrap().1, "a");
    engine.delete_account(&a).await.unwrap();
    let left: Vec<_> = async {
        let mut left = Vec::new();
        for key in stored(&*rig.store).await {
            left.push((key.clone(), rig.store.get(&key).await.unwrap().unwrap().value));
        }
        left
    }
    .await;
    engine.purge_account(&a, When::Now).await.unwrap();
    assert_eq!(stored(&*rig.store).await.len(), 2, "the other account's are there");
    assert_eq!(get(engine, &id("ab", "n"), None).await.unwrap().1, "ab");

    // As if the purge had been killed before it removed them: nobody takes them for those of the next account of this id.
    for (key, value) in
        left.iter().filter(|(key, _)| key.to_string().ends_with("account a") || key.to_string().contains("account a,"))
    {
        rig.store.create(key, Put { value: value.clone(), wrapped_by: Vec::new(), guards: Vec::new() }).await.unwrap();
    }
    rig.pass(crate::SECOND * 2).await;
    rig.account("a").await;
    assert!(why_not(engine, &id("a", "n"), None).await.contains("secret n of account a"));
    let version = set(engine, &id("a", "n"), "new").await;
    assert_eq!(get(engine, &id("a", "n"), None).await, Ok((version, "new".into())));
    assert_eq!(engine.secrets().show(&id("a", "n")).await.unwrap().versions.len(), 1);
    assert_eq!(stored(&*rig.store).await.len(), 4);

    // Purged once more, what is left of it is removed.
    engine.delete_account(&a).await.unwrap();
    engine.purge_account(&a, When::Now).await.unwrap();
    for (key, value) in left.iter().filter(|(key, _)| key.to_string().contains("account a,")) {
        rig.store.create(key, Put { value: value.clone(), wrapped_by: Vec::new(), guards: Vec::new() }).await.unwrap();
    }
    engine.purge_account(&a, When::Now).await.unwrap();
    assert_eq!(stored(&*rig.store).await.len(), 2);
    assert!(matches!(engine.purge_account(&a, When::Now).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_deleted_secret_is_kept_for_its_retention_and_purged_as_it_was_shown() {
    let rig = Rig::with(unprotected()).await;
    rig.account("a").await;
    let (secrets, id) = (rig.engine.secrets(), id("a", "n"));
    set(&rig.engine, &id, "value").await;
    assert!(matches!(secrets.purge(&id, When::Now).await, Err(Error::NotDeleted(_))));
    assert!(matches!(secrets.undelete(&id).await, Err(Error::NotDeleted(_))));
    let deletion = secrets.delete(&id).await.unwrap();
    assert_eq!(secrets.delete(&id).await.unwrap(), deletion, "once more is as before");
    assert!(why_not(&rig.engine, &id, None).await.contains("secret undelete n --account a"));
    let set = secrets.set(&id, value("x"), SetOptions::default()).await;
    assert!(matches!(set, Err(Error::NotFound(_))), "{set:?}");
    let early = secrets.purge(&id, When::Due).await;
    assert!(
        matches!(&early, Err(Error::Invalid(why)) if why.contains("secret n of account a is kept until")),
        "{early:?}"
    );
    let shown = secrets.purgeable(&id, When::Now).await.unwrap();
    secrets.undelete(&id).await.unwrap();
    assert_eq!(get(&rig.engine, &id, None).await.unwrap().1, "value");
    assert!(matches!(secrets.purge_as_shown(&shown, When::Now).await, Err(Error::NotDeleted(_))));
    secrets.set_enabled(&id, 1, false).await.unwrap();
    secrets.delete(&id).await.unwrap();
    assert!(matches!(secrets.purge_as_shown(&shown, When::Now).await, Err(Error::Conflict(_))));
    let shown = secrets.purgeable(&id, When::Now).await.unwrap();
    secrets.purge_as_shown(&shown, When::Now).await.unwrap();
    assert!(matches!(secrets.show(&id).await, Err(Error::NotFound(_))));
    assert_eq!(stored(&*rig.store).await, []);

    let protected = build(&rig.token, &rig.store, &rig.clock, Settings::default().purge_protection(true));
    crate::secrets::set(&rig.engine, &id, "value").await;
    protected.secrets().delete(&id).await.unwrap();
    let early = secrets.purge(&id, When::Now).await;
    assert!(matches!(&early, Err(Error::Invalid(why)) if why.contains("purge_protection")), "{early:?}");
}

#[tokio::test]
async fn where_there_are_as_many_versions_as_may_be_the_oldest_expired_one_makes_room_and_no_other() {
    let rig = Rig::new().await;
    rig.account("a").await;
    let (secrets, id) = (rig.engine.secrets(), id("a", "n"));
    let expired = SetOptions::default().expires(unix_now());
    set(&rig.engine, &id, "kept").await;
    secrets.set(&id, value("expired"), expired).await.unwrap();
    // As many as there may be, of which the store has the heads alone.
    let key = Key::Secret(id.clone());
    let found = rig.store.get(&key).await.unwrap().unwrap();
    let mut head = SecretRecord::decode(&key, &found.value).unwrap();
    let version = head.versions[0].clone();
    for number in 3..=SECRET_VERSIONS_MAX as u32 {
        head.versions.push(keyleash::store::record::SecretVersion { version: number, ..version.clone() });
    }
    rig.store.replace(&key, &found.version, head.put().unwrap()).await.unwrap();
    assert_eq!(set(&rig.engine, &id, "new").await, 257);
    assert_eq!(get(&rig.engine, &id, Some(1)).await.unwrap().1, "kept");
    assert!(rig.engine.secrets().show(&id).await.unwrap().version(2).is_none());
    assert_eq!(rig.store.get(&Key::SecretValue(id.clone(), 2)).await.unwrap(), None);
    let full = secrets.set(&id, value("one more"), SetOptions::default()).await;
    assert!(matches!(&full, Err(Error::Exhausted(why)) if why.contains("256")), "{full:?}");
}

#[derive(Debug, Clone)]
enum Step {
    Set(u8, bool),
    Enable(u32, bool),
    Delete,
    Undelete,
    Purge,
    Rotate,
    Retire,
    Restart,
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let step = prop_oneof![
        4 => (any::<u8>(), prop::bool::weighted(0.8)).prop_map(|(byte, enabled)| Step::Set(byte, enabled)),
        2 => (1..6_u32, any::<bool>()).prop_map(|(version, enabled)| Step::Enable(version, enabled)),
        1 => Just(Step::Delete),
        1 => Just(Step::Undelete),
        1 => Just(Step::Purge),
        2 => Just(Step::Rotate),
        2 => Just(Step::Retire),
        1 => Just(Step::Restart),
    ];
    (0..2_usize, step)
}

/// What there should be of one secret.
#[derive(Debug, Default)]
struct Model {
    versions: BTreeMap<u32, (u8, bool)>,
    deleted: bool,
}

async fn follow(steps: Vec<(usize, Step)>) {
    let mut rig = Rig::with(unprotected()).await;
    rig.account("a").await;
    let (ids, account) = ([id("a", "one"), id("a", "two")], account_id("a"));
    let mut models = [Model::default(), Model::default()];
    for (of, step) in steps {
        let (secrets, id, model) = (rig.engine.secrets(), &ids[of], &mut models[of]);
        let there = !model.versions.is_empty();
        match step {
            Step::Set(byte, enabled) => {
                let done = rig.meanwhile(secrets.set(id, value([byte]), SetOptions::default().enabled(enabled))).await;
                if model.deleted {
                    assert!(matches!(done, Err(Error::NotFound(_))), "{done:?}");
                    continue;
                }
                let version = done.unwrap();
                assert!(model.versions.keys().all(|known| *known < version));
                model.versions.insert(version, (byte, enabled));
            }
            Step::Enable(version, enabled) => {
                let done = secrets.set_enabled(id, version, enabled).await;
                match model.versions.get_mut(&version).filter(|_| !model.deleted) {
                    Some((_, now)) => (*now, _) = (enabled, done.unwrap()),
                    None => assert!(matches!(done, Err(Error::NotFound(_)))),
                }
            }
            Step::Delete => {
                assert_eq!(secrets.delete(id).await.is_ok(), there);
                model.deleted = there;
            }
            Step::Undelete => {
                assert_eq!(secrets.undelete(id).await.is_ok(), model.deleted);
                model.deleted = false;
            }
            Step::Purge => {
                assert_eq!(secrets.purge(id, When::Now).await.is_ok(), model.deleted);
                if model.deleted {
                    *model = Model::default();
                }
            }
            Step::Rotate => drop(rig.meanwhile(rig.engine.rotate_account(&account)).await.unwrap()),
            Step::Retire => {
                rig.meanwhile(secrets.reseal(&account)).await.unwrap();
                let record = rig.engine.account_record(&account).await.unwrap();
                let mut old: Vec<_> = record.versions.iter().map(|version| version.aek_version).collect();
                old.pop();
                rig.meanwhile(rig.engine.retire_aeks(&account, &old, When::Now)).await.unwrap();
            }
            Step::Restart => rig.engine = build(&rig.token, &rig.store, &rig.clock, unprotected()),
        }
        for (id, model) in ids.iter().zip(&models) {
            let current = model.versions.iter().rev().find(|(_, (_, enabled))| *enabled);
            let current = current.filter(|_| !model.deleted).map(|(version, (byte, _))| (*version, vec![*byte]));
            let found = rig.meanwhile(rig.engine.secrets().get(id, None)).await;
            let found = found.map(|found| (found.version.version, found.value.as_bytes().to_vec()));
            match current {
                Some(current) => assert_eq!(found, Ok(current)),
                None => assert!(matches!(found, Err(Error::NotFound(_))), "{found:?}"),
            }
            for (version, (byte, enabled)) in &model.versions {
                let found = rig.meanwhile(rig.engine.secrets().get(id, Some(*version))).await;
                match *enabled && !model.deleted {
                    true => assert_eq!(found.unwrap().value.as_bytes(), [*byte]),
                    false => assert!(matches!(found, Err(Error::NotFound(_)))),
                }
            }
        }
        assert_eq!(check(&*rig.store).await.unwrap().findings, []);
    }
}

proptest! {
    #![proptest_config(Config { cases: 24, failure_persistence: None, ..Config::default() })]
    #[test]
    fn whatever_is_done_to_secrets_and_their_account_no_version_is_lost_nor_another(steps in prop::collection::vec(step(), 1..24)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(follow(steps));
    }
}

/// Each call, and what it takes by the table of the manual.
fn table() -> BTreeMap<String, Vec<Operation>> {
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let manual = include_str!("../../src/manual/grants.md");
    let mut table = BTreeMap::new();
    for row in manual.lines().filter(|row| row.contains("`Secrets::")) {
        let cells: Vec<_> = row.split('|').collect();
        let operations: Vec<_> = quoted(cells[2]).iter().map(|name| Operation::parse(name).unwrap()).collect();
        assert!(!operations.is_empty(), "{row}");
        table.extend(quoted(cells[1]).into_iter().map(|call| (call, operations.clone())));
    }
    table
}

async fn call(engine: &Engine, name: &str) -> Result<(), Error> {
    let (secrets, of, deleted) = (engine.secrets(), id("a", "n"), id("a", "deleted"));
    match name {
        "get" => secrets.get(&of, None).await.map(drop),
        "set" => secrets.set(&of, value("x"), SetOptions::default()).await.map(drop),
        "set_enabled" => secrets.set_enabled(&of, 1, true).await,
        "rotate" => secrets.rotate(&of).await.map(drop),
        "set_rotation" => secrets.set_rotation(&of, None).await,
        "list" => secrets.list(&of.account, None, 1).await.map(drop),
        "show" => secrets.show(&of).await.map(drop),
        "delete" => secrets.delete(&of).await.map(drop),
        "undelete" => secrets.undelete(&deleted).await,
        "purge" => secrets.purge(&deleted, When::Now).await,
        "purgeable" => secrets.purgeable(&deleted, When::Now).await.map(drop),
        "purge_as_shown" => {
            // As somebody showed it to whoever asks.
            let shown = engine.caller(CallerId::new("all").unwrap()).secrets().show(&deleted).await.unwrap();
            secrets.purge_as_shown(&shown, When::Now).await
        }
        "reseal" => secrets.reseal(&of.account).await.map(drop),
        "run_schedule" => secrets.run_schedule().await.map(drop),
        other => panic!("{other} is tried by no test"),
    }
}

#[tokio::test]
async fn every_call_takes_what_the_manual_says_and_no_more() {
    let sources = [
        include_str!("../../src/secrets/versions.rs"),
        include_str!("../../src/secrets/life.rs"),
        include_str!("../../src/secrets/rotation.rs"),
    ];
    let there =
        sources.iter().flat_map(|source| source.lines()).filter_map(|line| line.strip_prefix("    pub async fn "));
    let there: Vec<_> = there.map(|line| format!("Secrets::{}", line.split('(').next().unwrap())).collect();
    let table = table();
    assert!(there.iter().all(|call| table.contains_key(call)), "{there:?} {table:?}");
    for (name, operations) in table {
        assert!(there.contains(&name), "{name}");
        let name = name.trim_start_matches("Secrets::");
        let rig = Rig::with(unprotected()).await;
        rig.account("a").await;
        for of in [id("a", "n"), id("a", "deleted")] {
            set(&rig.engine, &of, "value").await;
        }
        rig.engine.secrets().delete(&id("a", "deleted")).await.unwrap();
        let grant = |callers: String, operations: &[Operation]| {
            let [callers, keks, accounts] = [&*callers, "*", "*"].map(|pattern| Pattern::new(pattern).unwrap());
            let actions = Actions::Operations(Operations::of(operations));
            Grant { id: GrantId::new("new").unwrap(), callers, keks, accounts, actions }
        };
        let mut grants = vec![grant("all".into(), &Operation::ALL), grant("just".into(), &operations)];
        for lacks in &operations {
            let others: Vec<_> = Operation::ALL.into_iter().filter(|other| other != lacks).collect();
            grants.push(grant(format!("no-{lacks}"), &others));
        }
        rig.engine.add_grants(grants).await.unwrap();
        for lacks in &operations {
            let caller = rig.engine.caller(CallerId::new(format!("no-{lacks}")).unwrap());
            let refused = call(&caller, name).await;
            assert!(
                matches!(&refused, Err(Error::Forbidden(forbidden)) if forbidden.operation == lacks.name()),
                "{name}: {refused:?}"
            );
        }
        assert!(matches!(call(&rig.engine, name).await, Err(Error::Forbidden(_))), "{name}, by nobody");
        match call(&rig.engine.caller(CallerId::new("just").unwrap()), name).await {
            Ok(()) => {}
            Err(Error::Invalid(why)) if name == "rotate" => assert!(why.contains("is not rotated by a hook")),
            other => panic!("{name}: {other:?}"),
        }
    }
}
