//! What a store tells of its changes; for the tests that name this file by its path.

use keyleash::{
    Engine, Error,
    name::{AccountId, KekName},
    secret::fill_random,
    store::{Changes, Key},
};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{sleep, timeout};

/// Far from every time that is meant, and shorter than a TTL.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(120);

/// Takes what is told until it is all of these; of others there is none.
pub(crate) async fn hear(changes: &mut Box<dyn Changes>, keys: &[Key]) {
    let mut left: BTreeSet<_> = keys.iter().cloned().collect();
    while !left.is_empty() {
        for key in timeout(FOR_EVER, changes.next()).await.expect("it is told").unwrap() {
            assert!(keys.contains(&key), "{key}");
            left.remove(&key);
        }
    }
}

pub(crate) async fn until_broken(mut changes: Box<dyn Changes>) -> String {
    loop {
        match timeout(FOR_EVER, changes.next()).await.expect("it is noticed") {
            Ok(_) => {}
            Err(Error::Store(why)) => return why,
            Err(error) => panic!("{error}"),
        }
    }
}

/// What the first engine deletes the second one has in memory, and hears of; once its feed is open, of which nobody is told.
pub(crate) async fn hears_of_deletions(engines: &[Engine], kek: &KekName) {
    let deleted = async || {
        let mut random = [0; 8];
        fill_random(&mut random).unwrap();
        let id = AccountId::new(hex::encode(random)).unwrap();
        engines[0].create_account(&id, kek).await.unwrap();
        let handle = engines[1].account(&id).await.unwrap();
        handle.seal_in_place(1_u64, &mut [0; 64]).unwrap();
        engines[0].delete_account(&id).await.unwrap();
        handle
    };
    let is_heard = async || {
        let handle = deleted().await;
        for _ in 0..100 {
            if handle.seal_in_place(1_u64, &mut [0; 64]).is_err() {
                return true;
            }
            sleep(Duration::from_millis(50)).await;
        }
        false
    };
    let heard = async { while !is_heard().await {} };
    timeout(FOR_EVER, heard).await.expect("it is heard of");
}
