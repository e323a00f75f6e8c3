//! A process that writes is killed at random instants; every write that it acknowledged is there afterwards.

use crate::{account, child, kek, put};
use keyleash::{
    secret::fill_random,
    store::{Filter, KeyStore, redb::RedbStore},
};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    sync::Arc,
    time::Duration,
};

/// Writers at once, so that writes share transactions. Each has accounts of its own.
const WRITERS: u64 = 4;
const KILLS: u64 = 15;

/// What a writer's accounts hold after its first `steps` steps: each account is created, replaced, and then deleted or
/// replaced once more.
fn after(steps: u64) -> BTreeMap<u64, u64> {
    let mut values = BTreeMap::new();
    for step in 0..steps {
        let n = step / 3;
        if step % 3 == 2 && n % 2 == 0 {
            values.remove(&n)
        } else {
            values.insert(n, step)
        };
    }
    values
}

fn id(writer: u64, n: u64) -> String {
    format!("w{writer}-{n:06}")
}

async fn step(store: &dyn KeyStore, writer: u64, step: u64) {
    let n = step / 3;
    let key = account(id(writer, n));
    let put = put(step.to_be_bytes(), &[kek("k", 1 + (step % 3) as u32)]);
    if step.is_multiple_of(3) {
        store.create(&key, put).await.unwrap();
        return;
    }
    let version = store.get(&key).await.unwrap().unwrap().version;
    if step % 3 == 2 && n.is_multiple_of(2) {
        store.delete(&key, &version).await.unwrap();
    } else {
        store.replace(&key, &version, put).await.unwrap();
    }
}

/// What a writer's accounts hold, and that the index says the same.
async fn found(store: &dyn KeyStore, writer: u64) -> BTreeMap<u64, u64> {
    let mut values = BTreeMap::new();
    for filter in [1, 2, 3].map(|version| Filter::WrappedBy(kek("k", version))).iter().chain([&Filter::Accounts]) {
        let mut next = Some(account(format!("w{writer}-")));
        while let Some(after) = next {
            let page = store.list(filter, Some(&after), 1000).await.unwrap();
            next = page.next;
            for key in page.keys {
                let name = key.to_string();
                let Some(n) = name.strip_prefix(&format!("account w{writer}-")) else { continue };
                let value = store.get(&key).await.unwrap().unwrap().value;
                let step = u64::from_be_bytes(value.try_into().unwrap());
                match filter {
                    Filter::WrappedBy(kek) => assert_eq!(u64::from(kek.version), 1 + step % 3, "index of {name}"),
                    _ => assert_eq!(values.get(&n.parse().unwrap()), Some(&step), "{name} is not in the index"),
                }
                values.insert(n.parse().unwrap(), step);
            }
        }
    }
    values
}

/// How many steps a writer has done, by what is in the store. Between the last step that it acknowledged and the next.
async fn steps_done(store: &dyn KeyStore, writer: u64, acknowledged: u64) -> u64 {
    let found = found(store, writer).await;
    for steps in [acknowledged, acknowledged + 1] {
        if after(steps) == found {
            return steps;
        }
    }
    panic!("writer {writer}: {acknowledged} steps were acknowledged, the store holds {found:?}");
}

/// The child: goes on where the store says that each writer was, and acknowledges every step on standard output.
pub(crate) async fn write_forever(path: &Path) {
    let store: Arc<dyn KeyStore> = Arc::new(RedbStore::open_or_create(path).await.unwrap());
    let starts = std::env::var("STORE_TEST_STARTS").unwrap();
    let writers = starts.split(',').zip(0..).map(|(start, writer)| {
        let (store, start) = (store.clone(), start.parse::<u64>().unwrap());
        tokio::spawn(async move {
            for n in start.. {
                step(&*store, writer, n).await;
                let line = format!("\nack {writer} {}\n", n + 1);
                #[allow(clippy::disallowed_methods)]
                std::io::stdout().write_all(line.as_bytes()).unwrap();
            }
        })
    });
    let writers = writers.collect::<Vec<_>>();
    // What is written over meanwhile is nobody's.
    tokio::spawn(async move {
        loop {
            store.shred(Vec::new()).await.unwrap();
            tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(5))).await.unwrap();
        }
    });
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn every_acknowledged_write_survives_a_kill_at_any_instant() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let mut done = [0; WRITERS as usize];
    for kill in 0..KILLS {
        let mut command = child::command(&[], &child::this_exe(), "write", &path);
        let mut process = command.env("STORE_TEST_STARTS", done.map(|n: u64| n.to_string()).join(",")).spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut first = String::new();
        // The first kills come while the store is made and opened, the others while it is written.
        while kill >= 3 && !first.starts_with("ack") {
            first.clear();
            assert_ne!(output.read_line(&mut first).unwrap(), 0, "the child ended by itself");
        }
        let mut random = [0_u8; 2];
        fill_random(&mut random).unwrap();
        std::thread::sleep(Duration::from_micros(u64::from(u16::from_le_bytes(random)) * 2));
        process.kill().unwrap();
        process.wait().unwrap();
        let mut acknowledged = done;
        for line in std::iter::once(first).chain(output.lines().map(Result::unwrap)) {
            let words: Vec<_> = line.split_whitespace().collect();
            if let ["ack", writer, steps] = words[..] {
                acknowledged[writer.parse::<usize>().unwrap()] = steps.parse().unwrap();
            }
        }
        let store = RedbStore::open_or_create(&path).await.unwrap();
        for writer in 0..WRITERS {
            done[writer as usize] = steps_done(&store, writer, acknowledged[writer as usize]).await;
        }
    }
    assert!(done.iter().all(|steps| *steps > 0), "nothing was written: {done:?}");
    println!("{KILLS} kills, steps of each writer: {done:?}");
}
