//! The record that an unwrap goes by: read once, and what becomes of the account between the reading and the key's use.

use crate::{
    Rig, SECOND, account_id, build,
    hand::{HandStore, held_up},
    open, opens, seal, settle,
};
use keyleash::{Account, Engine, Error, config::Settings, rotate::RewrapOptions, store::Key};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;

fn is_account(key: &Key) -> bool {
    matches!(key, Key::Account(_))
}

/// An opening that has read the record of `a`, and does not know yet what is in it. Whoever reads later is not held up.
async fn reading(rig: &Rig) -> (Engine, Arc<HandStore>, JoinHandle<Result<Account, Error>>) {
    let (engine, hand) = held_up(rig);
    hand.hold_answers(is_account);
    let opening = open(&engine, "a");
    settle().await;
    assert_eq!(hand.accounts_read(), 1);
    hand.hold_answers(|_| false);
    (engine, hand, opening)
}

#[tokio::test]
async fn a_cold_open_reads_its_record_once() {
    let rig = Rig::new().await;
    let (engine, hand) = held_up(&rig);
    for (opened, id) in (1..).zip(["a", "b"]) {
        rig.account(id).await;
        rig.engine.rotate_account(&account_id(id)).await.unwrap();
        seal(&engine.account(&account_id(id)).await.unwrap()).unwrap();
        assert_eq!(hand.accounts_read(), opened);
    }
}

#[tokio::test]
async fn an_account_that_is_deleted_while_it_is_opened_is_not_opened() {
    let rig = Rig::new().await;
    let held = rig.account("a").await;
    let (engine, hand, opening) = reading(&rig).await;
    engine.delete_account(&account_id("a")).await.unwrap();
    hand.let_go();
    let opened = rig.meanwhile(opening).await.unwrap();
    assert!(matches!(&opened, Err(Error::NotFound(what)) if what.contains("deleted")), "{opened:?}");
    drop(held);
}

#[tokio::test]
async fn an_account_that_is_purged_and_made_anew_while_it_is_opened_is_not_the_old_one() {
    let rig = Rig::with(Settings::default().purge_protection(false)).await;
    let id = account_id("a");
    drop(rig.account("a").await);
    rig.pass(2 * SECOND).await;
    let (engine, hand, opening) = reading(&rig).await;
    engine.delete_account(&id).await.unwrap();
    engine.purge_account(&id, keyleash::When::Now).await.unwrap();
    let elsewhere = rig.engine.create_account(&id, &rig.kek).await.unwrap();
    hand.let_go();
    // Either it failed, and the next one opens what is there now, or it opened that.
    let opened = match rig.meanwhile(opening).await.unwrap() {
        Ok(opened) => opened,
        Err(Error::NotFound(_)) => engine.account(&id).await.unwrap(),
        Err(error) => panic!("{error}"),
    };
    let block = opened.seal_to_vec(1_u64, b"data").unwrap();
    assert_eq!(elsewhere.open_to_vec(1_u64, &block).unwrap(), b"data");
}

/// What another process deleted, and this one purges.
#[tokio::test]
async fn an_account_that_is_purged_while_its_keys_are_made_is_not_opened() {
    let rig = Rig::with(Settings::default().purge_protection(false)).await;
    let id = account_id("a");
    drop(rig.account("a").await);
    let (engine, hand) = held_up(&rig);
    hand.hold_reads(|key| matches!(key, Key::Kek(_)));
    let opening = open(&engine, "a");
    settle().await;
    assert_eq!(hand.accounts_read(), 1, "it has its record, and waits for its KEK's");
    rig.engine.delete_account(&id).await.unwrap();
    hand.hold_done_deletes();
    let purge = tokio::spawn({
        let (engine, id) = (engine.clone(), id.clone());
        async move { engine.purge_account(&id, keyleash::When::Now).await }
    });
    settle().await; // done in the store, and not yet here
    rig.script.set_latency(SECOND);
    hand.hold_reads(|_| false);
    settle().await;
    hand.let_go();
    rig.meanwhile(purge).await.unwrap().unwrap();
    let opened = rig.meanwhile(opening).await.unwrap();
    assert!(matches!(&opened, Err(Error::NotFound(_))), "{opened:?}");
}

#[tokio::test]
async fn an_account_that_is_rotated_while_it_is_opened_seals_under_its_new_aek() {
    let rig = Rig::new().await;
    drop(rig.account("a").await);
    let (engine, hand, opening) = reading(&rig).await;
    assert_eq!(engine.rotate_account(&account_id("a")).await.unwrap(), 2);
    hand.let_go();
    let opened = rig.meanwhile(opening).await.unwrap().unwrap();
    assert_eq!(opened.aek_version(), 2, "the rotation was acknowledged");
    seal(&opened).unwrap();
}

#[tokio::test]
async fn an_account_that_is_rewrapped_while_it_is_opened_is_on_the_leash_of_its_new_kek_version() {
    let rig = Rig::new().await;
    drop(rig.account("a").await);
    let (engine, hand, opening) = reading(&rig).await;
    engine.rotate_kek(&rig.kek).await.unwrap();
    let options = RewrapOptions::new().rate(1_000_000);
    let report = rig.meanwhile(engine.rewrap_kek(&rig.kek, options, |_| {})).await.unwrap();
    assert_eq!(report.aeks, 1);
    rig.script.destroy(&rig.kek_id);
    hand.let_go();
    let opened = rig.meanwhile(opening).await.unwrap().unwrap();
    for _ in 0..60 {
        rig.pass(SECOND).await;
        seal(&opened).unwrap();
    }
}

/// A queue in front of the token is no longer life for a key: its TTL counts from what the store said of it.
#[tokio::test]
async fn a_key_that_waited_for_the_token_is_used_for_one_ttl_from_when_its_record_was_read() {
    let settings = Settings::default();
    let rig = Rig::new().await;
    drop(rig.account("a").await);
    for n in 0..64 {
        drop(rig.account(&format!("other-{n}")).await);
    }
    let there = build(&rig.token, &rig.store, &rig.clock, settings.clone());
    rig.script.set_latency(4 * SECOND);
    let read = rig.clock.now();
    let _others: Vec<_> = (0..64).map(|n| open(&there, &format!("other-{n}"))).collect();
    for _ in 0..5 {
        settle().await; // as many as may are in the token, and the others wait for that
    }
    let opening = open(&there, "a");
    for _ in 0..5 {
        settle().await; // it has read its record
    }
    rig.engine.delete_account(&account_id("a")).await.unwrap();
    let opened = rig.meanwhile(opening).await.unwrap().unwrap();
    rig.script.set_latency(Duration::ZERO);
    let waited = rig.clock.now().since(read);
    assert!(waited > 4 * SECOND, "it was in no queue: {waited:?}");
    rig.pass(settings.aek_ttl - waited).await;
    assert!(matches!(seal(&opened), Err(Error::Cold { .. })), "deleted a TTL ago");
}

/// It would be young again with every proof, though nobody knows what the store says of its account.
#[tokio::test]
async fn a_store_that_does_not_answer_keeps_no_key_beyond_grace_after_its_last_word() {
    let rig = Rig::new().await;
    drop(rig.account("a").await);
    let (engine, hand) = held_up(&rig);
    let account = engine.account(&account_id("a")).await.unwrap();
    rig.pass(40 * SECOND).await;
    seal(&account).unwrap();
    hand.hold_reads(is_account);
    rig.engine.delete_account(&account_id("a")).await.unwrap();
    for _ in 0..6 * 60 {
        rig.pass(5 * SECOND).await;
        let _ = seal(&account);
    }
    assert!(matches!(seal(&account), Err(Error::Cold { .. })), "deleted a grace ago");
}

/// A newer AEK version that cannot be had takes the place of the one before it, but for opening: others count on it.
#[tokio::test]
async fn an_aek_version_is_not_sealed_under_for_longer_than_a_ttl_though_its_successor_is_damaged() {
    let rig = Rig::new().await;
    let id = account_id("a");
    drop(rig.account("a").await);
    let there = build(&rig.token, &rig.store, &rig.clock, Settings::default().scheduled_work(false));
    let account = there.account(&id).await.unwrap();
    let block = account.seal_to_vec(1_u64, b"data").unwrap();
    rig.engine.rotate_account(&id).await.unwrap();
    rig.flip_check("a", 2).await;
    for _ in 0..600 {
        rig.pass(SECOND).await;
        let _ = seal(&account);
    }
    for _ in 0..120 {
        rig.pass(SECOND).await;
        assert!(seal(&account).is_err(), "another engine may have retired this version by now");
    }
    opens(&rig, &account, &block).await;
    assert!(matches!(rig.meanwhile(account.warm()).await, Err(Error::Corrupt(_))));
    assert!(seal(&account).is_err());
}
