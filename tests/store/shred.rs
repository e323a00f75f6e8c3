//! What was deleted or replaced is not in the store's file once it was shredded.

use crate::{account, kek, put};
use keyleash::store::{Key, KeyStore, StoreVersion, redb::RedbStore};
use std::{collections::BTreeMap, fs, future::poll_fn, path::Path, task::Poll};

/// A small generator, so that each run is the same.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.roll(256) as u8).collect()
    }
}

fn found(path: &Path, needles: &[Vec<u8>]) -> usize {
    let file = fs::read(path).unwrap();
    let mut places = BTreeMap::<&[u8], Vec<usize>>::new();
    for needle in needles {
        places.entry(&needle[..8]).or_default();
    }
    let is_there = |needle: &Vec<u8>| file.windows(needle.len()).any(|window| window == needle);
    let begins: Vec<_> = file.windows(8).filter(|window| places.contains_key(window)).collect();
    needles.iter().filter(|needle| begins.contains(&&needle[..8]) && is_there(needle)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_deleted_or_replaced_is_not_in_the_file_once_it_is_shredded_and_all_else_is() {
    for seed in 0..6 {
        let mut dice = Dice(seed);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let store = RedbStore::open_or_create(&path).await.unwrap();
        let wrapped_by = [kek("k", 1)];
        let (mut live, mut gone) = (BTreeMap::<Key, (StoreVersion, Vec<u8>)>::new(), Vec::new());
        for _ in 0..4 {
            for _ in 0..60 {
                let key = account(format!("{}", dice.roll(80)));
                let longest = if dice.roll(9) == 0 { 9000 } else { 900 };
                let len = 40 + dice.roll(longest);
                let value = dice.bytes(len as usize);
                match live.remove(&key) {
                    None => {
                        let version = store.create(&key, put(value.clone(), &wrapped_by)).await.unwrap();
                        live.insert(key, (version, value));
                    }
                    Some((version, old)) if dice.roll(3) > 0 => {
                        let version = store.replace(&key, &version, put(value.clone(), &wrapped_by)).await.unwrap();
                        live.insert(key, (version, value));
                        gone.push(old[8..40].to_vec());
                    }
                    Some((version, old)) => {
                        store.delete(&key, &version).await.unwrap();
                        gone.push(old[8..40].to_vec());
                    }
                }
            }
            // Many at once, which share transactions and pages.
            let many: Vec<_> = live.keys().take(20).cloned().collect();
            let changes = many.iter().map(|key| {
                let (version, old) = live.remove(key).unwrap();
                gone.push(old[8..40].to_vec());
                (key.clone(), version, dice.bytes(50 + dice.0 as usize % 300))
            });
            let changes: Vec<_> = changes.collect();
            let puts = changes
                .iter()
                .map(|(key, version, value)| (key.clone(), version.clone(), put(value.clone(), &wrapped_by)));
            for (outcome, (key, _, value)) in store.replace_many(puts.collect()).await.into_iter().zip(&changes) {
                live.insert(key.clone(), (outcome.unwrap(), value.clone()));
            }
            let doomed: Vec<_> = live.keys().rev().take(15).cloned().collect();
            let doomed: Vec<_> = doomed.iter().map(|key| (key.clone(), live.remove(key).unwrap())).collect();
            let deletes = doomed.iter().map(|(key, (version, _))| store.delete(key, version));
            let mut tasks = Vec::from_iter(deletes.map(Box::pin));
            poll_fn(|cx| {
                tasks.retain_mut(|task| match task.as_mut().poll(cx) {
                    Poll::Ready(outcome) => outcome.map(|()| false).unwrap(),
                    Poll::Pending => true,
                });
                if tasks.is_empty() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            gone.extend(doomed.iter().map(|(_, (_, old))| old[8..40].to_vec()));
            assert!(found(&path, &gone) > 0, "seed {seed}: nothing was left behind: this test would prove nothing");
            let before = fs::metadata(&path).unwrap().len();
            store.shred(gone.clone()).await.unwrap();
            assert_eq!(found(&path, &gone), 0, "seed {seed}: of {}", gone.len());
            let after = fs::metadata(&path).unwrap().len();
            assert!(after <= 2 * before, "seed {seed}: the file had {before} bytes, and has {after}");
            let values: Vec<_> = live.values().map(|(_, value)| value[8..40].to_vec()).collect();
            assert_eq!(found(&path, &values), values.len(), "seed {seed}");
        }
        drop(store);
        let store = RedbStore::open(&path).await.unwrap();
        for (key, (version, value)) in &live {
            let read = store.get(key).await.unwrap().unwrap();
            assert_eq!((&read.version, &read.value), (version, value), "seed {seed}");
        }
    }
}
