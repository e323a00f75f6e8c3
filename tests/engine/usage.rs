//! What is sealed is counted in the account's record, and the limits of the suite hold, on the manual clock.

use crate::{
    Rig, SECOND, account_id, build,
    hand::{HandStore, held_up},
    settle,
};
use keyleash::{
    Account, Engine, Error,
    block::AEK_BLOCKS_MAX,
    clock::Clock,
    config::Settings,
    store::{
        Key, KeyStore,
        record::{AccountRecord, AekPolicy, Usage},
    },
};

fn seal(account: &Account, blocks: u64) {
    for block in 0..blocks {
        account.seal_to_vec(block, b"ten  bytes").unwrap();
    }
}

async fn used(engine: &Engine, aek_version: u32) -> (u64, u64) {
    let record = engine.account_record(&account_id("a")).await.unwrap();
    let Usage { blocks, bytes } = record.version(aek_version).unwrap().used;
    (blocks, bytes)
}

/// Has the record say that so much was sealed under the current AEK version.
pub(crate) async fn pretend(rig: &Rig, id: &str, used: Usage) {
    let key = Key::Account(account_id(id));
    let found = rig.store.get(&key).await.unwrap().unwrap();
    let mut record = AccountRecord::decode(&key, &found.value).unwrap();
    record.versions.last_mut().unwrap().used = used;
    rig.store.replace(&key, &found.version, record.put().unwrap()).await.unwrap();
}

#[tokio::test]
async fn the_counts_of_several_engines_and_their_handles_add_up_in_the_record() {
    let rig = Rig::new().await;
    let here = rig.account("a").await;
    let there = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    let there_account = there.account(&account_id("a")).await.unwrap();
    seal(&here, 3);
    seal(&here.clone(), 1);
    seal(&there_account, 5);
    // Opening is not counted, nor is a block that is refused.
    let sealed = here.seal_to_vec(1_u64, b"x").unwrap();
    there_account.open_to_vec(1_u64, &sealed).unwrap();
    assert!(here.seal_in_place(1_u64, &mut vec![0; keyleash::block::BLOCK_BYTES_MAX + 1]).is_err());
    assert_eq!(used(&rig.engine, 1).await, (0, 0), "it is written down after the fact");
    rig.engine.write_usage().await.unwrap();
    there.write_usage().await.unwrap();
    rig.engine.write_usage().await.unwrap();
    assert_eq!(used(&rig.engine, 1).await, (10, 91));
    assert_eq!(rig.engine.rotate_account(&account_id("a")).await.unwrap(), 2);
    seal(&here, 2);
    rig.engine.write_usage().await.unwrap();
    assert_eq!((used(&rig.engine, 1).await, used(&rig.engine, 2).await), ((10, 91), (2, 20)));
}

#[tokio::test]
async fn what_was_sealed_is_written_down_by_itself_within_an_hour_also_when_its_handles_are_gone() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    seal(&account, 3);
    rig.pass_by(30 * 60 * SECOND, 10 * SECOND).await;
    assert_eq!(used(&rig.engine, 1).await, (0, 0));
    rig.pass_by(31 * 60 * SECOND, 10 * SECOND).await;
    assert_eq!(used(&rig.engine, 1).await, (3, 30));
    let last = rig.engine.account(&account_id("a")).await.unwrap();
    seal(&last, 4);
    drop((account, last));
    rig.pass_by(3 * 60 * 60 * SECOND, 60 * SECOND).await;
    assert_eq!(used(&rig.engine, 1).await, (7, 70));
}

#[tokio::test]
async fn what_a_purged_account_sealed_does_not_count_for_the_one_that_was_made_anew() {
    let settings = Settings::default().purge_protection(false);
    let rig = Rig::with(settings.clone()).await;
    let id = account_id("a");
    let old = rig.account("a").await;
    let elsewhere = build(&rig.token, &rig.store, &rig.clock, settings);
    let old_there = elsewhere.account(&id).await.unwrap();
    seal(&old, 5);
    seal(&old_there, 6);
    rig.pass(2 * SECOND).await;
    rig.engine.delete_account(&id).await.unwrap();
    rig.engine.purge_account(&id, keyleash::When::Now).await.unwrap();
    let anew = rig.account("a").await;
    seal(&anew, 1);
    for engine in [&rig.engine, &elsewhere] {
        engine.write_usage().await.unwrap();
    }
    drop((old, old_there));
    for engine in [&rig.engine, &elsewhere] {
        engine.write_usage().await.unwrap();
    }
    assert_eq!(used(&rig.engine, 1).await, (1, 10));
}

#[tokio::test]
async fn a_rewrap_keeps_the_count() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    seal(&account, 3);
    rig.engine.write_usage().await.unwrap();
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    rig.meanwhile(rig.engine.rewrap_kek(&rig.kek, Default::default(), |_| {})).await.unwrap();
    seal(&account, 2);
    rig.pass(60 * SECOND).await; // the handle follows
    seal(&account, 1);
    rig.engine.write_usage().await.unwrap();
    assert_eq!(used(&rig.engine, 1).await, (6, 60));
}

#[tokio::test]
async fn the_limit_of_the_suite_stops_sealing_whatever_the_policy_says_and_rotation_goes_on() {
    let mut rig = Rig::new().await;
    rig.account("a").await;
    pretend(&rig, "a", Usage { blocks: AEK_BLOCKS_MAX - 3, bytes: 0 }).await;
    rig.restart();
    let account = rig.engine.account(&account_id("a")).await.unwrap();
    let block = account.seal_to_vec(1_u64, b"data").unwrap();
    seal(&account, 2);
    let mut buf = *b"data";
    let refused = account.seal_in_place(1_u64, &mut buf).unwrap_err();
    assert!(matches!(refused, Error::Exhausted(_)) && refused.to_string().contains("account rotate a"), "{refused}");
    assert_eq!(&buf, b"data");
    rig.engine.write_usage().await.unwrap();
    assert!(account.seal_in_place(1_u64, &mut buf).is_err());
    assert_eq!(account.open_to_vec(1_u64, &block).unwrap(), b"data", "opening goes on");
    rig.engine.rotate_account(&account_id("a")).await.unwrap();
    seal(&account, 3);
}

#[tokio::test]
async fn a_write_of_counts_that_is_given_up_loses_none_of_them() {
    let rig = Rig::new().await;
    let hand = HandStore::over(&rig.store);
    let engine = Engine::builder(rig.token.clone(), hand.clone())
        .on_current_runtime()
        .settings(Settings::default().max_cached_aeks(1).scheduled_work(false))
        .clock(Clock::Manual(rig.clock.clone()))
        .start_up_proof(false)
        .build()
        .unwrap();
    for id in ["a", "b"] {
        rig.account(id).await;
        seal(&engine.account(&account_id(id)).await.unwrap(), 3);
    }
    engine.status().await; // the first has left the index, and its counter is gone
    hand.hold_account_writes();
    let writing = tokio::spawn({
        let engine = engine.clone();
        async move { engine.write_usage().await }
    });
    settle().await;
    assert_eq!(hand.held(), 2);
    writing.abort();
    settle().await;
    hand.let_go();
    settle().await;
    engine.write_usage().await.unwrap();
    for id in ["a", "b"] {
        let record = rig.engine.account_record(&account_id(id)).await.unwrap();
        assert_eq!(record.versions[0].used, Usage { blocks: 3, bytes: 30 }, "{id}");
    }
}

#[tokio::test]
async fn who_is_told_that_counts_are_written_down_was_not_told_before_what_another_had_taken_is() {
    let rig = Rig::new().await;
    drop(rig.account("a").await);
    let (engine, hand) = held_up(&rig);
    seal(&engine.account(&account_id("a")).await.unwrap(), 3);
    hand.hold_account_writes();
    let write = || {
        let engine = engine.clone();
        tokio::spawn(async move { engine.write_usage().await })
    };
    let hourly = write();
    settle().await;
    assert_eq!(hand.held(), 1);
    let last = write();
    settle().await;
    assert!(!last.is_finished(), "nothing of it is in the store");
    hourly.abort();
    settle().await;
    hand.let_go();
    settle().await;
    last.await.unwrap().unwrap();
    let record = rig.engine.account_record(&account_id("a")).await.unwrap();
    assert_eq!(record.versions[0].used, Usage { blocks: 3, bytes: 30 });
}

#[tokio::test]
async fn a_store_that_never_answers_for_one_account_holds_up_no_other_accounts_counts() {
    let rig = Rig::new().await;
    let (engine, hand) = held_up(&rig);
    let policy = AekPolicy { max_blocks: 160, ..AekPolicy::default() };
    for id in ["a", "b"] {
        rig.account(id).await;
        rig.engine.set_aek_policy(&account_id(id), policy).await.unwrap();
    }
    let hangs = engine.account(&account_id("b")).await.unwrap();
    let other = engine.account(&account_id("a")).await.unwrap();
    hand.hold_reads(|key| *key == Key::Account(account_id("b")));
    seal(&hangs, 10);
    rig.pass(2 * SECOND).await;
    seal(&other, 10);
    rig.pass(20 * SECOND).await;
    assert_eq!(used(&rig.engine, 1).await, (10, 100));
    hand.let_go();
    rig.pass(20 * SECOND).await;
    let record = rig.engine.account_record(&account_id("b")).await.unwrap();
    assert_eq!(record.versions[0].used, Usage { blocks: 10, bytes: 100 });
}

#[tokio::test]
async fn what_is_counted_ahead_is_in_the_record_before_it_is_sealed_and_taken_off_where_it_was_not() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    account.count_ahead(8, 80).await.unwrap();
    assert_eq!(used(&rig.engine, 1).await, (8, 80), "whatever befalls the process now");
    seal(&account, 5);
    let other = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    seal(&other.account(&account_id("a")).await.unwrap(), 2);
    other.write_usage().await.unwrap();
    assert_eq!(used(&rig.engine, 1).await, (10, 100));
    rig.engine.write_usage().await.unwrap();
    assert_eq!(used(&rig.engine, 1).await, (7, 70));
    seal(&account, 1);
    rig.engine.write_usage().await.unwrap();
    assert_eq!(used(&rig.engine, 1).await, (8, 80));
}
