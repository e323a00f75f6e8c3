//! Several stores on one place, each with connections of its own, that write the same records at once; for the tests that name this file
//! by its path.

use crate::{CROWD, GUARD_ROUNDS, ROUNDS, account, make_store, open_store, put, shared_url};
use keyleash::{
    Error,
    name::KekName,
    store::{Key, KeyStore, Put, StoreVersion},
};
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

fn kek() -> Key {
    Key::Kek(KekName::new("k").unwrap())
}

async fn several(url: &str, stores: usize) -> Vec<Arc<dyn KeyStore>> {
    let mut opened = vec![make_store(url).await];
    while opened.len() < stores {
        opened.push(open_store(url).await);
    }
    opened
}

async fn found(store: &dyn KeyStore, key: &Key) -> Option<(u64, StoreVersion)> {
    let found = store.get(key).await.unwrap()?;
    Some((u64::from_be_bytes(found.value.try_into().unwrap()), found.version))
}

/// Many that rest on one record, and one that changes it: as re-wraps do, and the retirement of their KEK version.
pub(crate) async fn trial_of_guards(stores: Vec<Arc<dyn KeyStore>>, rounds: u64) {
    const WRITERS: usize = 12;
    let mut version = stores[0].create(&kek(), put(0_u64.to_be_bytes(), &[])).await.unwrap();
    let (over, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let (store, over, written) = (stores[1 + writer % 3].clone(), over.clone(), written.clone());
        tasks.push(tokio::spawn(async move {
            let key = account(format!("a{writer}"));
            let mut seen = store.create(&key, put(0_u64.to_be_bytes(), &[])).await.unwrap();
            while !over.load(SeqCst) {
                let (round, guard) = found(&*store, &kek()).await.unwrap();
                let put = Put { guards: vec![(kek(), guard)], ..put(round.to_be_bytes(), &[]) };
                match store.replace(&key, &seen, put).await {
                    Ok(version) => {
                        seen = version;
                        written.fetch_add(1, SeqCst);
                    }
                    Err(Error::Conflict(what)) => assert!(what.contains("KEK k"), "{what}"),
                    Err(error) => panic!("{error}"),
                }
            }
        }));
    }
    let all = async || {
        let mut all = Vec::new();
        for writer in 0..WRITERS {
            all.push(found(&*stores[0], &account(format!("a{writer}"))).await);
        }
        all
    };
    for round in 1..=rounds {
        // It waits for those that have begun, and for no one else: this is over in its time.
        version = stores[0].replace(&kek(), &version, put(round.to_be_bytes(), &[])).await.unwrap();
        let before = all().await;
        let after = all().await;
        for (before, after) in before.into_iter().zip(after) {
            let is_late = before.is_some() && after != before && after.as_ref().is_some_and(|(of, _)| *of < round);
            assert!(!is_late, "written after round {round} was begun: {after:?}");
        }
    }
    over.store(true, SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    let written = written.load(SeqCst);
    assert!(written > rounds as usize, "{written}");
    println!("{written} writes over {rounds} changes of what they rest on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_that_rests_on_what_was_changed_before_and_who_changes_it_waits_for_few() {
    trial_of_guards(several(&shared_url(), 4).await, GUARD_ROUNDS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_version_is_replaced_or_deleted_once_and_each_creation_follows_a_deletion() {
    const WRITERS: usize = 12;
    let stores = several(&shared_url(), 4).await;
    let key = account("a");
    let tasks: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, key) = (stores[writer % stores.len()].clone(), key.clone());
            tokio::spawn(async move {
                let mut done = Vec::new();
                for round in 0..ROUNDS as usize {
                    let value = put([round as u8], &[crate::kek("k", 1 + (round % 2) as u32)]);
                    let outcome = match store.get(&key).await.unwrap() {
                        None => store.create(&key, value).await.map(|made| (None, Some(made))),
                        Some(seen) if (round + writer) % 3 == 0 => {
                            store.delete(&key, &seen.version).await.map(|()| (Some(seen.version), None))
                        }
                        Some(seen) => {
                            let made = store.replace(&key, &seen.version, value).await;
                            made.map(|made| (Some(seen.version), Some(made)))
                        }
                    };
                    match outcome {
                        Ok(step) => done.push(step),
                        Err(Error::Exists(_) | Error::NotFound(_) | Error::Conflict(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                done
            })
        })
        .collect();
    let mut next: HashMap<StoreVersion, Option<StoreVersion>> = HashMap::new();
    let (mut created, mut deleted, mut made) = (0_usize, 0_usize, HashSet::new());
    for task in tasks {
        for (from, to) in task.await.unwrap() {
            created += usize::from(from.is_none());
            deleted += usize::from(to.is_none());
            assert!(to.iter().all(|to| made.insert(to.clone())), "a version that comes twice");
            if let Some(from) = from {
                assert!(next.insert(from, to).is_none(), "two that replaced one version");
            }
        }
    }
    let last = stores[0].get(&key).await.unwrap().map(|found| found.version);
    assert_eq!(created - deleted, usize::from(last.is_some()));
    let ends: Vec<_> = made.iter().filter(|version| !next.contains_key(version)).collect();
    assert_eq!(ends, last.iter().collect::<Vec<_>>(), "each version but the last was replaced or deleted");
    assert!(!next.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_rest_on_each_other_one_is_written_at_most() {
    let stores = several(&shared_url(), 2).await;
    let keys = [account("a"), account("b")];
    let mut seen = Vec::new();
    for key in &keys {
        seen.push(stores[0].create(key, put([0], &[])).await.unwrap());
    }
    for round in 0..ROUNDS {
        let write = |n: usize| {
            let (store, other) = (stores[n].clone(), (keys[1 - n].clone(), seen[1 - n].clone()));
            let put = Put { guards: vec![other], ..put([round as u8], &[]) };
            let (key, version) = (keys[n].clone(), seen[n].clone());
            tokio::spawn(async move { store.replace(&key, &version, put).await })
        };
        let (one, two) = tokio::join!(write(0), write(1));
        match (one.unwrap(), two.unwrap()) {
            (Ok(version), Err(Error::Conflict(_))) => seen[0] = version,
            (Err(Error::Conflict(_)), Ok(version)) => seen[1] = version,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_make_one_store_at_once_each_opens_the_same() {
    for _ in 0..2 {
        let url = shared_url();
        let tasks: Vec<_> = (0..CROWD)
            .map(|n| {
                let url = url.clone();
                tokio::spawn(async move {
                    let store = make_store(&url).await;
                    store.create(&account(format!("a{n}")), put([n], &[])).await.unwrap();
                    store
                })
            })
            .collect();
        for task in tasks {
            let store = task.await.unwrap();
            for n in 0..CROWD {
                while store.get(&account(format!("a{n}"))).await.unwrap().is_none() {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}
