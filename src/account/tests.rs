//! What comes in the midst of an operation.

use super::*;
use crate::{
    Engine,
    clock::{Clock, ManualClock},
    lease::{Verdict, standby::Voice},
    name::KekName,
    slots::slot::Leash,
    store::memory::MemoryStore,
    token::{Profile, scripted::ScriptedToken},
};
use std::{cell::RefCell, time::Duration};

const PLAIN: [u8; 64] = [7; 64];

type Happening = Box<dyn FnOnce()>;

thread_local! {
    static MIDST: RefCell<Option<Happening>> = const { RefCell::new(None) };
}

/// Called by an operation that has its key, before it works with it.
pub(super) fn midst() {
    if let Some(happening) = MIDST.take() {
        happening();
    }
}

/// The next operation of this thread meets this.
fn meets(happening: impl FnOnce() + 'static) {
    MIDST.set(Some(Box::new(happening)));
}

/// A denial, which takes effect at once and waits for nobody.
fn meets_denial(leash: &Arc<Leash>) {
    let leash = leash.clone();
    meets(move || drop(leash.step(Voice::First, Verdict::Denied, None)));
}

async fn rig() -> (Engine, Account, ManualClock) {
    let manual = ManualClock::new(Instant::from_nanos(1_000_000_000));
    let clock = Clock::Manual(manual.clone());
    let (token, _) = ScriptedToken::new(clock.clone(), Duration::from_secs(5), 1);
    let build = Engine::builder(token, Arc::new(MemoryStore::new())).on_current_runtime().clock(clock);
    let engine = build.jitter_seed(1).start_up_proof(false).build().unwrap();
    let kek = KekName::new("kek").unwrap();
    engine.create_kek(&kek, Profile::AesGcm).await.unwrap();
    let account = engine.create_account(&AccountId::new("a").unwrap(), &kek).await.unwrap();
    (engine, account, manual)
}

fn current(account: &Account) -> Arc<Leash> {
    account.keys.current().leash.clone()
}

fn is_denied<T>(outcome: Result<T>) -> bool {
    matches!(outcome, Err(Error::Denied(_)))
}

#[tokio::test]
async fn a_seal_that_meets_a_denial_fails_and_leaves_the_plaintext_where_it_was() {
    let (_engine, account, _) = rig().await;
    let mut buf = PLAIN;
    meets_denial(&current(&account));
    assert!(is_denied(account.seal_in_place(1_u64, &mut buf)) && buf == PLAIN);

    let (_engine, account, _) = rig().await;
    let mut ciphertext = [9; 64];
    meets_denial(&current(&account));
    assert!(is_denied(account.seal_into(1_u64, &PLAIN, &mut ciphertext)) && ciphertext == [0; 64]);
}

#[tokio::test]
async fn an_open_that_meets_a_denial_fails_and_gives_no_plaintext() {
    let (_engine, account, _) = rig().await;
    let mut buf = PLAIN;
    let header = account.seal_in_place(1_u64, &mut buf).unwrap();
    let ciphertext = buf;
    meets_denial(&current(&account));
    assert!(is_denied(account.open_in_place(1_u64, &header, &mut buf)) && buf == ciphertext);

    let (_engine, account, _) = rig().await;
    let (mut ciphertext, mut plaintext) = ([0; 64], [9; 64]);
    let header = account.seal_into(1_u64, &PLAIN, &mut ciphertext).unwrap();
    meets_denial(&current(&account));
    assert!(is_denied(account.open_into(1_u64, &header, &ciphertext, &mut plaintext)) && plaintext == [0; 64]);
}

/// Of either of its two keys, which are under two KEK versions.
#[tokio::test]
async fn a_reseal_that_meets_a_denial_fails_and_leaves_the_block_as_it_was() {
    for denied in [1, 2] {
        let (engine, account, _) = rig().await;
        let mut buf = PLAIN;
        let header = account.seal_in_place(1_u64, &mut buf).unwrap();
        let ciphertext = buf;
        engine.rotate_kek(&KekName::new("kek").unwrap()).await.unwrap();
        engine.rotate_account(account.id()).await.unwrap();
        meets_denial(&account.keys.version(denied).unwrap().leash);
        assert!(
            is_denied(account.reseal_in_place(1_u64, &header, &mut buf)) && buf == ciphertext,
            "AEK version {denied}"
        );
    }
}

#[tokio::test]
async fn a_long_block_is_not_done_when_its_lease_ended_in_the_midst_of_it() {
    for len in [SECOND_LOOK_BYTES_MIN, SECOND_LOOK_BYTES_MIN - 1] {
        let (_engine, account, manual) = rig().await;
        let mut buf = vec![7; len];
        meets(move || manual.advance(Duration::from_secs(3600)));
        let outcome = account.seal_in_place(1_u64, &mut buf);
        assert_eq!(matches!(outcome, Err(Error::Lapsed(_))), len >= SECOND_LOOK_BYTES_MIN, "{outcome:?}");
    }
}

#[tokio::test]
async fn an_idle_key_that_passed_its_ttl_is_wiped() {
    let (_engine, account, manual) = rig().await;
    let slot = account.keys.current();
    let memory = &account.keyring().memory;
    assert!(slot.is_filled() && memory.filled() == 1);
    for _ in 0..700 {
        manual.advance(Duration::from_secs(1));
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
    assert!(!slot.is_filled() && memory.filled() == 0);
    assert!(memory.waiting().is_empty(), "its bytes stay");
}

#[tokio::test]
async fn a_key_that_waited_for_an_operation_is_wiped_when_the_last_handle_is_dropped() {
    let (engine, account, _) = rig().await;
    let keyring = account.keyring().clone();
    let stuck = account.stuck_operation().unwrap();
    drop(current(&account).step(Voice::First, Verdict::Denied, None));
    assert_eq!(keyring.memory.waiting().len(), 1);
    // By now it is looked at ten times a second.
    std::thread::sleep(Duration::from_millis(500));
    drop((stuck, engine, account));
    assert!(keyring.memory.waiting().is_empty(), "its bytes stay");
}

#[tokio::test]
async fn no_key_is_admitted_by_what_was_under_way_when_the_last_handle_was_dropped() {
    let clock = Clock::Manual(ManualClock::new(Instant::from_nanos(1_000_000_000)));
    let (token, _) = ScriptedToken::new(clock.clone(), Duration::from_secs(5), 1);
    let store = Arc::new(MemoryStore::new());
    let build = || {
        let build = Engine::builder(token.clone(), store.clone()).on_current_runtime().clock(clock.clone());
        build.jitter_seed(1).start_up_proof(false).build().unwrap()
    };
    let (engine, late) = (build(), build());
    let kek = KekName::new("kek").unwrap();
    engine.create_kek(&kek, Profile::AesGcm).await.unwrap();
    let account = engine.create_account(&AccountId::new("a").unwrap(), &kek).await.unwrap();
    // It has no lease yet that would be closed.
    let keyring = late.keyring().clone();
    drop(late);
    assert!(keyring.open(account.id()).await.is_err());
    assert_eq!(keyring.memory.filled(), 0);
}
