//! What every key store must do.

use crate::{PASSING, account, kek, put, stores};
use keyleash::{
    Error,
    name::{AccountId, KekName, SecretId, SecretName},
    store::{Filter, Key, KeyStore, PAGE_KEYS_MAX, Put, StoreVersion, VALUE_BYTES_MAX, WRAPPED_BY_MAX},
};
use std::{collections::BTreeSet, sync::Arc};

fn secret_id(account: &str, name: &str) -> SecretId {
    SecretId::new(AccountId::new(account).unwrap(), SecretName::new(name).unwrap())
}

async fn all_keys(store: &dyn KeyStore, filter: &Filter, limit: usize) -> Vec<Key> {
    let (mut keys, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(filter, after.as_ref(), limit).await.unwrap();
        assert!(page.keys.len() <= limit && (page.next.is_none() || page.next.as_ref() == page.keys.last()));
        keys.extend(page.keys);
        match page.next {
            Some(next) => after = Some(next),
            None => return keys,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_is_read_and_what_was_not_is_none() {
    let (stores, _directory) = stores().await;
    for store in stores {
        let keys = [account("a"), Key::Kek(KekName::new("a").unwrap()), Key::Denial(kek("a", 1))];
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(store.get(key).await.unwrap(), None);
            let version = store.create(key, put([n as u8], &[])).await.unwrap();
            let found = store.get(key).await.unwrap().unwrap();
            assert_eq!((found.value, found.version), (vec![n as u8], version));
        }
        let empty = store.create(&account("empty"), put([], &[])).await.unwrap();
        assert_eq!(store.get(&account("empty")).await.unwrap().unwrap().version, empty);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_concurrent_creates_exactly_one_wins() {
    let (stores, _directory) = stores().await;
    for store in stores {
        for round in 0..5 {
            let tasks: Vec<_> = (0..32_u8)
                .map(|n| {
                    let store = store.clone();
                    tokio::spawn(async move { store.create(&account(format!("a{round}")), put([n], &[])).await })
                })
                .collect();
            let mut winner = None;
            for (n, task) in tasks.into_iter().enumerate() {
                match task.await.unwrap() {
                    Ok(version) => assert!(winner.replace((n, version)).is_none(), "two winners"),
                    Err(error) => assert!(matches!(error, Error::Exists(_)), "{error}"),
                }
            }
            let (n, version) = winner.unwrap();
            let found = store.get(&account(format!("a{round}"))).await.unwrap().unwrap();
            assert_eq!((found.value, found.version), (vec![n as u8], version));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rests_on_a_record_is_written_only_while_that_is_as_it_was_read() {
    let (stores, _directory) = stores().await;
    for store in stores {
        let kek = Key::Kek(KekName::new("k").unwrap());
        let resting =
            |value: u8, on: &StoreVersion| Put { guards: vec![(kek.clone(), on.clone())], ..put([value], &[]) };
        let is = async |value: Option<u8>| {
            let found = store.get(&account("a")).await.unwrap().map(|found| found.value);
            assert_eq!(found, value.map(|value| vec![value]));
        };
        let refused = |outcome: Result<StoreVersion, Error>| {
            assert!(matches!(&outcome, Err(Error::Conflict(what)) if what.contains("KEK k")), "{outcome:?}");
        };
        let gone = StoreVersion(vec![0; 8]);
        refused(store.create(&account("a"), resting(1, &gone)).await);
        let first = store.create(&kek, put([0], &[])).await.unwrap();
        let second = store.replace(&kek, &first, put([1], &[])).await.unwrap();
        refused(store.create(&account("a"), resting(1, &first)).await);
        is(None).await;
        let made = store.create(&account("a"), resting(2, &second)).await.unwrap();
        refused(store.replace(&account("a"), &made, resting(3, &first)).await);
        is(Some(2)).await;
        let made = store.replace(&account("a"), &made, resting(4, &second)).await.unwrap();
        let many = vec![(account("a"), made.clone(), resting(5, &first)), (account("b"), made, resting(5, &second))];
        let mut outcomes = store.replace_many(many).await.into_iter();
        refused(outcomes.next().unwrap());
        assert!(matches!(outcomes.next().unwrap(), Err(Error::NotFound(_))));
        store.delete(&kek, &second).await.unwrap();
        let made = store.get(&account("a")).await.unwrap().unwrap().version;
        refused(store.replace(&account("a"), &made, resting(6, &second)).await);
        is(Some(4)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_concurrent_replaces_of_one_version_exactly_one_wins() {
    let (stores, _directory) = stores().await;
    for store in stores {
        let key = account("a");
        let version = store.create(&key, put([0], &[])).await.unwrap();
        let tasks: Vec<_> = (0..32_u8)
            .map(|n| {
                let (store, key, version) = (store.clone(), key.clone(), version.clone());
                tokio::spawn(async move { store.replace(&key, &version, put([n], &[])).await })
            })
            .collect();
        let mut won = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(_) => won += 1,
                Err(error) => assert!(matches!(error, Error::Conflict(_)), "{error}"),
            }
        }
        assert_eq!(won, 1);
    }
}

#[tokio::test]
async fn a_stale_version_neither_replaces_nor_deletes_even_after_delete_and_create() {
    let (stores, _directory) = stores().await;
    for store in stores {
        let key = account("a");
        let garbage = StoreVersion(b"what".to_vec());
        assert!(matches!(store.replace(&key, &garbage, put([], &[])).await, Err(Error::NotFound(_))));
        assert!(matches!(store.delete(&key, &garbage).await, Err(Error::NotFound(_))));

        let first = store.create(&key, put([1], &[])).await.unwrap();
        assert!(matches!(store.replace(&key, &garbage, put([], &[])).await, Err(Error::Conflict(_))));
        let second = store.replace(&key, &first, put([1], &[])).await.unwrap();
        assert_ne!(first, second, "a write that changes no byte changes the version");
        assert!(matches!(store.replace(&key, &first, put([3], &[])).await, Err(Error::Conflict(_))));
        assert!(matches!(store.delete(&key, &first).await, Err(Error::Conflict(_))));

        store.delete(&key, &second).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap(), None);
        let third = store.create(&key, put([1], &[])).await.unwrap();
        assert!(third != first && third != second);
        assert!(matches!(store.delete(&key, &second).await, Err(Error::Conflict(_))));
        assert_eq!(store.get(&key).await.unwrap().unwrap().value, [1]);
    }
}

#[tokio::test]
async fn listings_are_complete_ordered_and_of_one_kind() {
    let (stores, _directory) = stores().await;
    for store in stores {
        let mut accounts = Vec::new();
        for n in 0..25 {
            // Names that share beginnings with each other and with the other kinds' keys.
            let key = account(["a", "aa", "k", "d", "ü"][n % 5].repeat(n / 5 + 1));
            if store.create(&key, put([], &[])).await.is_ok() {
                accounts.push(key);
            }
        }
        accounts.sort_by_key(Key::to_bytes);
        let keks: Vec<_> = ["a", "d", "k"].map(|name| Key::Kek(KekName::new(name).unwrap())).to_vec();
        let denials: Vec<_> = [1, 10, 2].map(|version| Key::Denial(kek("a", version))).to_vec();
        // Of an account whose id another's begins with.
        let secrets: Vec<_> = [("a", "n"), ("a", "n.b"), ("aa", "n")]
            .map(|(account, name)| Key::Secret(secret_id(account, name)))
            .to_vec();
        let values: Vec<_> = [("a", "n", 9), ("a", "n", 10), ("a", "n.b", 1), ("aa", "n", u32::MAX)]
            .map(|(account, name, version)| Key::SecretValue(secret_id(account, name), version))
            .to_vec();
        let of_a = AccountId::new("a").unwrap();
        for key in keks.iter().chain(&denials).chain(&secrets).chain(&values) {
            store.create(key, put([], &[])).await.unwrap();
        }
        for limit in [1, 2, 3, accounts.len(), accounts.len() + 1, PAGE_KEYS_MAX] {
            assert_eq!(all_keys(&*store, &Filter::Accounts, limit).await, accounts, "limit {limit}");
            assert_eq!(all_keys(&*store, &Filter::Keks, limit).await, keks);
            assert_eq!(all_keys(&*store, &Filter::Denials, limit).await, denials);
            assert_eq!(all_keys(&*store, &Filter::Secrets, limit).await, secrets);
            assert_eq!(all_keys(&*store, &Filter::SecretsOf(of_a.clone()), limit).await, secrets[..2]);
            assert_eq!(all_keys(&*store, &Filter::SecretValues, limit).await, values);
            assert_eq!(all_keys(&*store, &Filter::SecretValuesOf(of_a.clone()), limit).await, values[..3]);
            assert_eq!(all_keys(&*store, &Filter::SecretsOf(AccountId::new("ü").unwrap()), limit).await, []);
        }
        // Those of one secret are behind its version 0.
        let after = Key::SecretValue(secret_id("a", "n"), 0);
        let of_n = store.list(&Filter::SecretValuesOf(of_a), Some(&after), 2).await.unwrap();
        assert_eq!((of_n.keys.as_slice(), of_n.next), (&values[..2], Some(values[1].clone())));
        assert_eq!(all_keys(&*store, &Filter::WrappedBy(kek("a", 1)), 10).await, []);
        // A place to go on from need not exist, nor be of the kind.
        let page = store.list(&Filter::Keks, Some(&Key::Kek(KekName::new("b").unwrap())), 10).await.unwrap();
        assert_eq!(page.keys, keks[1..]);
        assert_eq!(store.list(&Filter::Keks, Some(&account("z")), 10).await.unwrap().keys, keks);
        assert_eq!(store.list(&Filter::Accounts, Some(&keks[0]), 10).await.unwrap().keys, []);
        assert!(matches!(store.list(&Filter::Keks, None, 0).await, Err(Error::Invalid(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_has_at_most_the_limit_whoever_asks_for_more() {
    let (stores, _directory) = stores().await;
    for store in stores {
        let tasks: Vec<_> = (0..=PAGE_KEYS_MAX)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move {
                    store.create(&account(format!("{n:05}")), put([], &[kek("k", 1)])).await.map(drop)
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        for filter in [Filter::Accounts, Filter::WrappedBy(kek("k", 1))] {
            let page = store.list(&filter, None, usize::MAX).await.unwrap();
            assert_eq!((page.keys.len(), page.next), (PAGE_KEYS_MAX, Some(account("00999"))));
            let rest = store.list(&filter, Some(&account("00999")), usize::MAX).await.unwrap();
            assert_eq!((rest.keys, rest.next), (vec![account("01000")], None));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_live_through_a_listing_appear_once_while_others_come_and_go() {
    let (stores, _directory) = stores().await;
    for store in stores {
        let k1 = kek("k", 1);
        let stay: Vec<_> = (0..PASSING).map(|n| account(format!("{n:03}-stay"))).collect();
        for key in &stay {
            store.create(key, put([], std::slice::from_ref(&k1))).await.unwrap();
        }
        let busy: Arc<dyn KeyStore> = store.clone();
        let writer = tokio::spawn(async move {
            for n in (0..PASSING).rev().chain(0..PASSING) {
                let key = account(format!("{n:03}-pass"));
                let version = busy.create(&key, put([], &[kek("k", 1)])).await.unwrap();
                if n % 2 == 0 {
                    busy.delete(&key, &version).await.unwrap();
                } else {
                    let version = busy.replace(&key, &version, put([], &[])).await.unwrap();
                    busy.delete(&key, &version).await.unwrap();
                }
            }
        });
        while !writer.is_finished() {
            for filter in [Filter::Accounts, Filter::WrappedBy(k1.clone())] {
                let keys = all_keys(&*store, &filter, 7).await;
                assert!(keys.is_sorted_by_key(Key::to_bytes));
                assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len(), "twice");
                assert_eq!(keys.into_iter().filter(|key| key.to_string().ends_with("stay")).collect::<Vec<_>>(), stay);
            }
        }
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn the_index_follows_every_write_at_once() {
    let (stores, _directory) = stores().await;
    for store in stores {
        // `k`, version 1 and `k1`, and versions whose bytes are beginnings of others.
        let keks = [kek("k", 1), kek("k", 256), kek("k1", 1), kek("k", u32::MAX)];
        let listed = async |version| all_keys(&*store, &Filter::WrappedBy(version), 2).await;
        let (a, b) = (account("a"), account("b"));
        let a1 = store.create(&a, put([], &[keks[0].clone(), keks[1].clone(), keks[0].clone()])).await.unwrap();
        store.create(&b, put([], &[keks[0].clone(), keks[2].clone()])).await.unwrap();
        assert_eq!(listed(keks[0].clone()).await, [a.clone(), b.clone()]);
        assert_eq!(listed(keks[1].clone()).await, std::slice::from_ref(&a));
        assert_eq!(listed(keks[2].clone()).await, std::slice::from_ref(&b));
        assert_eq!(listed(keks[3].clone()).await, []);

        let refused = store.replace(&a, &StoreVersion(vec![]), put([], &keks[3..])).await;
        assert!(matches!(refused, Err(Error::Conflict(_))));
        assert_eq!(listed(keks[3].clone()).await, [], "a refused write is not indexed");

        let a2 = store.replace(&a, &a1, put([], &keks[3..])).await.unwrap();
        assert_eq!(listed(keks[0].clone()).await, std::slice::from_ref(&b));
        assert_eq!(listed(keks[1].clone()).await, []);
        assert_eq!(listed(keks[3].clone()).await, std::slice::from_ref(&a));
        store.delete(&a, &a2).await.unwrap();
        assert_eq!(listed(keks[3].clone()).await, []);
        assert_eq!(all_keys(&*store, &Filter::Accounts, 9).await, [b]);
    }
}

#[tokio::test]
async fn what_is_too_long_is_refused_before_anything_is_written() {
    let (stores, _directory) = stores().await;
    for store in stores {
        let key = account("a");
        let many: Vec<_> = (1..=WRAPPED_BY_MAX as u32 + 1).map(|version| kek("k", version)).collect();
        let refused = [put(vec![0; VALUE_BYTES_MAX + 1], &[]), put([], &many)];
        for put in refused.clone() {
            assert!(matches!(store.create(&key, put).await, Err(Error::Invalid(_))));
        }
        let denial = Key::Denial(kek("k", 1));
        assert!(matches!(store.create(&denial, put([], &many[..1])).await, Err(Error::Invalid(_))));
        assert_eq!(store.get(&key).await.unwrap(), None);
        let version = store.create(&key, put(vec![7; VALUE_BYTES_MAX], &many[1..])).await.unwrap();
        for put in refused {
            assert!(matches!(store.replace(&key, &version, put).await, Err(Error::Invalid(_))));
        }
        assert_eq!(store.get(&key).await.unwrap().unwrap().value, vec![7; VALUE_BYTES_MAX]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_stops_waiting_stops_nobody_else() {
    let (stores, _directory) = stores().await;
    for store in stores {
        let tasks: Vec<_> = (0..200)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move { store.create(&account(format!("{n:03}")), put([1], &[])).await.map(drop) })
            })
            .collect();
        tokio::task::yield_now().await;
        for (n, task) in tasks.into_iter().enumerate() {
            if n % 2 == 0 {
                task.abort();
                let _ = task.await;
            } else {
                task.await.unwrap().unwrap();
                assert!(store.get(&account(format!("{n:03}"))).await.unwrap().is_some());
            }
        }
        // Whole or not at all, and the store goes on.
        for key in all_keys(&*store, &Filter::Accounts, 7).await {
            assert_eq!(store.get(&key).await.unwrap().unwrap().value, [1]);
        }
        store.create(&account("after"), put([], &[])).await.unwrap();
    }
}
