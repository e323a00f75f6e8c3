//! Writers and readers of a store on a server that is harmed meanwhile; for the tests that name this file by its path.

use crate::{account, kek, put};
use keyleash::{
    Error,
    secret::fill_random,
    store::{Filter, KeyStore, StoreVersion},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// Each with an account of its own, which it counts up.
const WRITERS: usize = 4;
const STEP_MAX: u64 = u64::MAX - 1;

pub(crate) fn random_ms(below: u64) -> Duration {
    let mut random = [0; 8];
    fill_random(&mut random).unwrap();
    Duration::from_millis(u64::from_le_bytes(random) % below)
}

async fn pause(span: Duration) {
    tokio::task::spawn_blocking(move || thread::sleep(span)).await.unwrap();
}

/// Asked until there is an answer.
pub(crate) async fn at_last<T>(mut ask: impl AsyncFnMut() -> Result<T, Error>) -> T {
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(Error::Store(_)) => pause(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// What the account of a writer holds; asked until there is an answer.
async fn step_of(store: &dyn KeyStore, writer: usize) -> (u64, StoreVersion) {
    loop {
        match store.get(&account(format!("w{writer}"))).await {
            Ok(found) => {
                let found = found.expect("an account is gone");
                return (u64::from_be_bytes(found.value.try_into().unwrap()), found.version);
            }
            Err(Error::Store(_)) => pause(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Counts up as far as it gets. What was acknowledged is told in `acknowledged`.
async fn count_up(store: Arc<dyn KeyStore>, writer: usize, acknowledged: Arc<AtomicU64>, over: Arc<AtomicBool>) -> u64 {
    let (mut tried, mut unknown) = (0, 0);
    while !over.load(SeqCst) {
        let (step, version) = step_of(&*store, writer).await;
        let known = acknowledged.load(SeqCst);
        assert!(
            (known..=tried).contains(&step),
            "writer {writer}: {known} was acknowledged, {tried} tried, {step} found"
        );
        // What was unknown is known by now, unless it is still on its way.
        acknowledged.store(step, SeqCst);
        tried = tried.max(step + 1);
        let put = put((step + 1).to_be_bytes(), &[kek("k", 1 + (step % 3) as u32)]);
        match store.replace(&account(format!("w{writer}")), &version, put).await {
            Ok(_) => acknowledged.store(step + 1, SeqCst),
            Err(Error::Store(_)) => unknown += 1,
            Err(Error::Conflict(_)) if unknown > 0 => {} // one that was on its way
            Err(error) => panic!("writer {writer}: {error}"),
        }
    }
    unknown
}

/// Writers count up by the first URL, and readers look on by each, while `harm` is done, until servers are well again; in the end all that
/// was acknowledged is there, and the index is right.
pub(crate) async fn trial(open: impl AsyncFn(&str) -> Arc<dyn KeyStore>, urls: &[String], harm: impl FnOnce()) {
    let url = &urls[0];
    let first = open(url).await;
    for writer in 0..WRITERS {
        first.create(&account(format!("w{writer}")), put(0_u64.to_be_bytes(), &[])).await.unwrap();
    }
    let over = Arc::new(AtomicBool::new(false));
    let acknowledged: Vec<_> = (0..WRITERS).map(|_| Arc::new(AtomicU64::new(0))).collect();
    let mut tasks = Vec::new();
    for (writer, acknowledged) in acknowledged.iter().enumerate() {
        let store = open(url).await;
        tasks.push(tokio::spawn(count_up(store, writer, acknowledged.clone(), over.clone())));
    }
    // Who reads by another URL hears nothing of what is over.
    let mut readers = Vec::new();
    for url in urls {
        let (store, over, acknowledged) = (open(url).await, over.clone(), acknowledged.clone());
        let url = url.clone();
        readers.push(tokio::spawn(async move {
            let mut answers = 0;
            while !over.load(SeqCst) {
                for (writer, acknowledged) in acknowledged.iter().enumerate() {
                    let known = acknowledged.load(SeqCst);
                    match store.get(&account(format!("w{writer}"))).await {
                        Ok(found) => {
                            let step = u64::from_be_bytes(found.unwrap().value.try_into().unwrap());
                            assert!(step >= known, "{url}: {step} is of the past, {known} was acknowledged");
                            answers += 1;
                        }
                        Err(Error::Store(_)) => pause(Duration::from_millis(5)).await,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            answers
        }));
    }
    // On this thread, with which servers end.
    tokio::task::block_in_place(harm);
    over.store(true, SeqCst);
    let mut unknown = 0;
    for task in tasks {
        unknown += task.await.unwrap();
    }
    let mut answers = 0;
    for reader in readers {
        answers += reader.await.unwrap();
    }
    // What was on its way has arrived, or never does.
    pause(Duration::from_millis(200)).await;
    let mut steps = Vec::new();
    for (writer, acknowledged) in acknowledged.iter().enumerate() {
        let (step, _) = step_of(&*first, writer).await;
        let known = acknowledged.load(SeqCst);
        assert!((known..=known + 1).contains(&step), "writer {writer}: {known} was acknowledged, {step} is there");
        for version in 1..=3 {
            let page = first.list(&Filter::WrappedBy(kek("k", version)), None, 1000).await.unwrap();
            let is_under = step > 0 && u64::from(version) == 1 + (step - 1) % 3;
            assert_eq!(
                page.keys.contains(&account(format!("w{writer}"))),
                is_under,
                "the index of w{writer} at {step}"
            );
        }
        steps.push(step);
    }
    assert!(steps.iter().all(|step| (1..STEP_MAX).contains(step)) && answers > 0, "{steps:?}, {answers} answers");
    println!("steps {steps:?}, {unknown} writes whose outcome was not known, {answers} answers to readers");
}
