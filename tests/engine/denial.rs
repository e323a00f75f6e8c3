//! Denials in the store: sticky across restarts, whatever deletes come late and whoever else writes them.

use super::{hand::HandStore, *};
use keyleash::{
    Error,
    name::KekVersion,
    store::{
        Key, KeyStore, Put, StoreVersion, load_denial,
        record::{DenialRecord, RECORD_FORMAT},
    },
};

fn key(rig: &Rig) -> KekVersion {
    KekVersion::new(rig.kek.clone(), 1)
}

async fn record(rig: &Rig) -> Option<DenialRecord> {
    load_denial(&*rig.store, &key(rig)).await.unwrap().map(|(record, _)| record)
}

async fn version(rig: &Rig) -> Option<StoreVersion> {
    load_denial(&*rig.store, &key(rig)).await.unwrap().map(|(_, version)| version)
}

/// What another process writes that hears a denial, whose clock says `since_unix`.
pub(super) fn heard_elsewhere(rig: &Rig, since_unix: u64) -> DenialRecord {
    let reason = "another process".into();
    DenialRecord { kek: key(rig), since_unix, reason, by_standby: false, witness: None }
}

async fn write(rig: &Rig, since_unix: u64) {
    put(rig, heard_elsewhere(rig, since_unix).encode().unwrap()).await;
}

async fn put(rig: &Rig, value: Vec<u8>) {
    let (key, put) = (Key::Denial(key(rig)), Put { value, wrapped_by: Vec::new(), guards: Vec::new() });
    match rig.store.get(&key).await.unwrap() {
        Some(found) => rig.store.replace(&key, &found.version, put).await.unwrap(),
        None => rig.store.create(&key, put).await.unwrap(),
    };
}

async fn opens(rig: &mut Rig) -> keyleash::Result<()> {
    rig.restart();
    rig.engine.account(&account_id("a")).await.map(drop)
}

#[tokio::test]
async fn a_delete_that_comes_late_does_not_take_the_next_denial_with_it() {
    let mut rig = Rig::new().await;
    let store = HandStore::over(&rig.store);
    let build = Engine::builder(rig.token.clone(), store.clone()).on_current_runtime();
    rig.engine = build.clock(Clock::Manual(rig.clock.clone())).jitter_seed(1).build().unwrap();
    let account = rig.account("a").await;
    rig.script.disable(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    assert!(record(&rig).await.is_some());
    store.hold_deletes();
    rig.script.enable(&rig.kek_id);
    rig.pass(40 * SECOND).await;
    account.seal_in_place(1_u64, &mut [0; 64]).unwrap();
    assert!(record(&rig).await.is_some(), "its deletes are under way");
    rig.script.disable(&rig.kek_id);
    rig.pass(22 * SECOND).await; // one delete after the other is waited for, for 5 s
    assert!(matches!(account.seal_in_place(1_u64, &mut [0; 64]), Err(Error::Denied(_))));
    rig.script.set_unreachable(true);
    store.let_go();
    settle().await;
    assert!(record(&rig).await.is_some(), "the denial in force was deleted on behalf of the one before it");
    let error = opens(&mut rig).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error}");
}

/// A paused machine, say: the write of a denial was given up, the token granted since, and then it happens.
#[tokio::test]
async fn a_denial_that_comes_into_the_store_after_the_grant_denies_nobody_and_ends_with_the_next_that_meets_its_kek() {
    let mut rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.pass(16 * SECOND).await;
    write(&rig, 0).await;
    for _ in 0..8 {
        rig.pass(15 * SECOND).await;
        seal(&account).unwrap();
    }
    drop(account);
    rig.script.set_unreachable(true);
    let error = opens(&mut rig).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "until the token was asked nobody can know that it is over: {error}");
    rig.script.set_unreachable(false);
    opens(&mut rig).await.unwrap();
    rig.pass(SECOND).await;
    assert!(record(&rig).await.is_none());
}

#[tokio::test]
async fn a_proof_does_not_clear_the_denial_that_another_process_saw_after_it_whatever_its_clock_says() {
    for since_unix in [1, u64::MAX / 2] {
        let mut rig = Rig::new().await;
        let account = rig.account("a").await;
        rig.pass(40 * SECOND).await;
        seal(&account).unwrap();
        write(&rig, since_unix).await;
        rig.script.set_unreachable(true);
        rig.pass(60 * SECOND).await;
        assert_eq!(record(&rig).await.map(|record| record.since_unix), Some(since_unix));
        let error = opens(&mut rig).await.unwrap_err();
        assert!(matches!(&error, Error::Denied(_)), "{error}");
        assert!(error.to_string().contains("another process"), "it says why: {error}");
        // Nobody else may be there to clear it.
        rig.script.set_unreachable(false);
        rig.pass(2 * SECOND).await;
        opens(&mut rig).await.unwrap();
        rig.pass(SECOND).await;
        assert_eq!(record(&rig).await, None);
    }
}

#[tokio::test]
async fn a_proof_ends_the_denial_that_was_read_before_it_was_asked_and_no_other() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.script.disable(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    // Another process hears it too, and writes it down later than this one; then both may go on.
    write(&rig, 1).await;
    let theirs = version(&rig).await;
    rig.script.enable(&rig.kek_id);
    let mut proved = false;
    for _ in 0..80 {
        rig.pass(SECOND / 4).await;
        if seal(&account).is_ok() && !proved {
            proved = true;
            assert_eq!(version(&rig).await, theirs, "it may be newer than the proof");
        }
    }
    assert!(proved);
    rig.pass(16 * SECOND).await;
    assert_eq!(version(&rig).await, None, "the proof after that was asked once it had been read");
}

#[tokio::test]
async fn every_denial_is_a_new_one_in_the_store_though_it_repeats_another() {
    let rig = Rig::new().await;
    let _account = rig.account("a").await;
    rig.script.disable(&rig.kek_id);
    let mut seen = Vec::new();
    for _ in 0..3 {
        rig.pass(16 * SECOND).await;
        let version = version(&rig).await.unwrap();
        assert!(!seen.contains(&version), "another engine may have been granted since, and took it for older");
        seen.push(version);
    }
}

#[tokio::test]
async fn a_denial_of_a_newer_release_is_left_alone_and_stays_one() {
    let mut rig = Rig::new().await;
    drop(rig.account("a").await);
    let newer = [&[RECORD_FORMAT + 1], b"whatever it says".as_slice()].concat();
    put(&rig, newer.clone()).await;
    rig.script.set_unreachable(true);
    let error = opens(&mut rig).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error}");
    assert!(error.to_string().contains(&format!("format version {}", RECORD_FORMAT + 1)), "told by name: {error}");
    // A proof ends it in this process, and every denial after that; the record is the newer release's to end.
    rig.script.set_unreachable(false);
    rig.pass(2 * SECOND).await;
    let account = rig.engine.account(&account_id("a")).await.unwrap();
    for _ in 0..2 {
        rig.pass(40 * SECOND).await;
        seal(&account).unwrap();
        rig.script.disable(&rig.kek_id);
        rig.pass(16 * SECOND).await;
        assert!(matches!(seal(&account), Err(Error::Denied(_))));
        rig.script.enable(&rig.kek_id);
    }
    let kept = rig.store.get(&Key::Denial(key(&rig))).await.unwrap().unwrap();
    assert_eq!(kept.value, newer);
}

#[tokio::test]
async fn a_denial_that_another_process_cleared_is_written_again_while_it_goes_on() {
    let mut rig = Rig::new().await;
    drop(rig.account("b").await);
    let _account = rig.account("a").await;
    rig.script.disable(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    let key = Key::Denial(key(&rig));
    let version = rig.store.get(&key).await.unwrap().unwrap().version;
    rig.store.delete(&key, &version).await.unwrap();
    rig.pass(16 * SECOND).await;
    assert!(record(&rig).await.is_some());
    rig.script.set_unreachable(true);
    let error = opens(&mut rig).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error}");
    // What was found at the start is the new process's to clear.
    rig.script.set_unreachable(false);
    rig.script.enable(&rig.kek_id);
    rig.pass(2 * SECOND).await;
    opens(&mut rig).await.unwrap();
    rig.pass(SECOND).await;
    assert_eq!(record(&rig).await, None);
}

#[tokio::test]
async fn a_denial_that_is_heard_while_one_is_being_written_is_written_too() {
    let rig = Rig::new().await;
    drop(rig.account("b").await);
    let store = HandStore::over(&rig.store);
    let build = Engine::builder(rig.token.clone(), store.clone()).on_current_runtime().start_up_proof(false);
    let engine = build.clock(Clock::Manual(rig.clock.clone())).jitter_seed(1).build().unwrap();
    let account = engine.account(&account_id("b")).await.unwrap();
    store.hold_creates();
    rig.script.disable(&rig.kek_id);
    while seal(&account).is_ok() {
        rig.pass(SECOND / 4).await;
    }
    rig.pass(2 * SECOND).await;
    let again = open(&engine, "b");
    settle().await;
    store.let_go();
    settle().await;
    let reason = record(&rig).await.unwrap().reason;
    assert!(reason.contains("for 2 s"), "the one before it is two seconds old: {reason}");
    assert!(matches!(again.await.unwrap(), Err(Error::Denied(_))));
}
