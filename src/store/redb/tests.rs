//! Writes that nobody waits for, and stores without a runtime.

use super::*;
use crate::name::KekName;
use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll, Wake, Waker},
};

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// As an executor that is none of tokio's does it.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

fn key(name: &str) -> Key {
    Key::Kek(KekName::new(name).unwrap())
}

/// Polls it once.
fn begin<T>(write: Pin<&mut (impl Future<Output = T> + ?Sized)>) {
    let _ = write.poll(&mut Context::from_waker(Waker::noop()));
}

async fn store(directory: &tempfile::TempDir) -> RedbStore {
    RedbStore::open_or_create(directory.path().join("store.redb")).await.unwrap()
}

#[tokio::test]
async fn a_write_that_was_given_up_is_not_done_later() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory).await;
    let put = Put { value: b"x".to_vec(), wrapped_by: Vec::new(), guards: Vec::new() };
    let (first, given_up) = (key("first"), key("given-up"));
    let mut write = pin!(store.create(&first, put.clone()));
    {
        let busy = store.shared.database.write().unwrap();
        begin(write.as_mut());
        while !store.queue.waiting().jobs.is_empty() {
            thread::yield_now(); // until the writer has taken it
        }
        begin(pin!(store.create(&given_up, put.clone())));
        drop(busy);
    }
    write.await.unwrap();
    store.create(&key("other"), put).await.unwrap();
    assert_eq!(store.get(&given_up).await.unwrap(), None);
}

#[tokio::test]
async fn writes_that_are_polled_no_more_hold_up_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory).await;
    let put = Put { value: b"x".to_vec(), wrapped_by: Vec::new(), guards: Vec::new() };
    let names: Vec<_> = (0..5).map(|n| key(&format!("frozen-{n}"))).collect();
    let mut frozen: Vec<_> = names.iter().map(|name| store.create(name, put.clone())).collect();
    frozen.iter_mut().for_each(|write| begin(write.as_mut()));
    store.create(&key("other"), put).await.unwrap();
}

#[test]
fn a_store_needs_no_runtime_and_its_file_is_free_when_it_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    for n in 0..20 {
        let put = Put { value: b"x".to_vec(), wrapped_by: Vec::new(), guards: Vec::new() };
        block_on(async {
            let store = store(&directory).await;
            store.create(&key(&n.to_string()), put).await.unwrap();
            assert!(store.get(&key("0")).await.unwrap().is_some());
        });
    }
}
