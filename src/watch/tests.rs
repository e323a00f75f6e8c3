//! The watch over a keyring of its own: who is stuck is reported, and what is kept for proofs goes.

use super::*;
use crate::{
    clock::{Clock, ManualClock},
    config::Settings,
    home::Home,
    keyring::{access::PolicySource, on_trail::OnTrail},
    name::{AccountId, KekName},
    store::{
        memory::MemoryStore,
        record::{Usage, WrappedAek},
    },
    token::{KekId, Profile, Wrapped, scripted::ScriptedToken, seats::Tokens},
};
use std::sync::{Mutex, atomic::AtomicUsize, mpsc};

fn keyring() -> (Arc<Keyring>, ManualClock) {
    let manual = ManualClock::new(Instant::from_nanos(1));
    let clock = Clock::Manual(manual.clone());
    let (token, _) = ScriptedToken::new(clock.clone(), Duration::from_secs(5), 1);
    let tokens = Tokens::of_test(token, &clock);
    let (store, home) = (Arc::new(MemoryStore::new()), Home::here().unwrap());
    let policy = PolicySource::None;
    let keyring = Keyring::new(tokens, store, clock, Settings::default(), home, Some(1), policy, OnTrail::default());
    (Arc::new(keyring), manual)
}

/// Lets time pass until `come`; real time is given to tasks on other threads, however long they take.
async fn until(manual: &ManualClock, mut come: impl FnMut() -> bool) {
    while !come() {
        manual.advance(TICK);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_task_that_is_stuck_in_a_call_is_reported_and_gets_no_second_beside_it() {
    let (keyring, manual) = keyring();
    let mut events = keyring.teller.subscribe();
    let (release, stuck) = mpsc::channel::<()>();
    let (stuck, begun) = (Arc::new(Mutex::new(stuck)), Arc::new(AtomicUsize::new(0)));
    let counted = begun.clone();
    let supervisor = tokio::spawn(supervised(keyring.clone(), "test", move |_, _, _| {
        let (stuck, first) = (stuck.clone(), counted.fetch_add(1, Ordering::SeqCst) == 0);
        let task = tokio::spawn(async move {
            if first {
                let _ = stuck.lock().unwrap().recv(); // blocks its thread, as a call would that hangs
            }
            std::future::pending::<()>().await;
        });
        task.abort_handle()
    }));
    let mut told = Vec::new();
    until(&manual, || {
        told.extend(events.try_next());
        !told.is_empty()
    })
    .await;
    assert!(matches!(&told[..], [Event::WatchRestarted { why }] if why.contains("`test` stalled")), "{told:?}");
    let before = manual.now();
    until(&manual, || manual.now().since(before) > Duration::from_secs(120)).await;
    assert_eq!(begun.load(Ordering::SeqCst), 1, "a second one beside the first");
    assert!(events.try_next().is_none(), "reported once");
    release.send(()).unwrap();
    until(&manual, || begun.load(Ordering::SeqCst) == 2).await;
    keyring.close();
    until(&manual, || supervisor.is_finished()).await;
}

#[tokio::test]
async fn what_was_kept_for_proofs_goes_with_its_lease() {
    let (keyring, _) = keyring();
    let kek = KekVersion::new(KekName::new("k").unwrap(), 1);
    let leash = keyring.leash(&kek).await.unwrap();
    let wrapped = WrappedAek {
        aek_version: 1,
        kek: kek.clone(),
        kek_id: KekId::new([1]).unwrap(),
        profile: Profile::AesGcm,
        wrapped: Wrapped { iv: vec![], bytes: vec![1] },
        check: [0; 32],
        created_unix: 1,
        used: Usage::default(),
    };
    keyring.keep_sample(&kek, &AccountId::new("a").unwrap(), &wrapped);
    assert!(keyring.sample(&kek).is_some());
    assert!(keyring.forget_unused(&leash));
    assert!(keyring.sample(&kek).is_none());
}
