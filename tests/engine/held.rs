//! Writes that are held up (a paused machine, a slow store) and happen later, when the KEK version that they rest on is gone; and
//! writes that happen, and whose answer is lost.

use crate::{
    Rig, SECOND, account_id, build,
    hand::{held_up, held_up_with},
    seal, settle,
};
use keyleash::{
    Engine, Error, When,
    block::BlockHeader,
    config::Settings,
    name::{AccountId, KekName, KekVersion},
    rotate::RewrapOptions,
};
use std::{future::Future, pin::Pin};

type Work = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// Something that wraps under the current KEK version and writes that down.
type Act = fn(Engine, AccountId, KekName) -> Work;

const ACTS: [(&str, Act); 4] = [
    ("rewrap", |engine, _, kek| {
        let options = RewrapOptions::new().rate(1_000_000);
        Box::pin(async move { engine.rewrap_kek(&kek, options, |_| ()).await?.stopped.map_or(Ok(()), Err) })
    }),
    ("move", |engine, id, kek| Box::pin(async move { engine.move_account(&id, &kek).await.map(drop) })),
    ("rotate", |engine, id, _| Box::pin(async move { engine.rotate_account(&id).await.map(drop) })),
    ("create", |engine, _, kek| {
        Box::pin(async move { engine.create_account(&account_id("new"), &kek).await.map(drop) })
    }),
];

#[tokio::test]
async fn nothing_is_written_under_a_kek_version_that_was_retired_while_the_write_was_held_up() {
    for (name, act) in ACTS {
        let rig = Rig::new().await;
        drop(rig.account("a").await);
        let (there, hand) = held_up(&rig);
        let wraps = there.rotate_kek(&rig.kek).await.unwrap();
        hand.hold_writes();
        hand.hold_creates();
        let held = tokio::spawn(act(there, account_id("a"), rig.kek.clone()));
        rig.pass(5 * SECOND).await;
        assert!(!held.is_finished(), "{name} is held up before its write");
        rig.meanwhile(rig.engine.rotate_kek(&rig.kek)).await.unwrap();
        let retired = KekVersion::new(rig.kek.clone(), wraps.version);
        rig.meanwhile(rig.engine.retire_kek(&retired)).await.unwrap();
        rig.script.destroy(&wraps.id); // as the manual allows
        hand.let_go();
        settle().await;
        rig.meanwhile(held).await.unwrap().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(rig.engine.count_wrapped_by(&retired).await.unwrap(), 0, "{name}");
        let fresh = build(&rig.token, &rig.store, &rig.clock, Settings::default());
        for id in fresh.accounts(None, 10).await.unwrap().ids {
            let account = rig.meanwhile(fresh.account(&id)).await;
            assert!(account.is_ok(), "{name}, account {id}: {account:?}");
        }
    }
}

#[tokio::test]
async fn an_engine_whose_answers_are_lost_seals_under_no_aek_version_that_it_deleted_itself() {
    for (rotation_lost, retirement_lost) in [(false, true), (true, false), (true, true)] {
        let rig = Rig::new().await;
        drop(rig.account("a").await);
        let (engine, hand) = held_up(&rig);
        let id = account_id("a");
        let account = engine.account(&id).await.unwrap();
        let old = account.seal_to_vec(1_u64, b"data").unwrap();
        if rotation_lost {
            hand.lose_acks();
        }
        assert_eq!(engine.rotate_account(&id).await.is_err(), rotation_lost);
        hand.let_go();
        if retirement_lost {
            hand.lose_acks();
        }
        assert_eq!(engine.retire_aeks(&id, &[1], When::Now).await.is_err(), retirement_lost);
        hand.let_go();
        let mut buf = *b"data";
        let header = rig.meanwhile(account.seal(1_u64, &mut buf)).await.unwrap();
        assert_eq!(header.aek_version(), 2, "rotation lost: {rotation_lost}, retirement lost: {retirement_lost}");
        let fresh = build(&rig.token, &rig.store, &rig.clock, Settings::default());
        let elsewhere = fresh.account(&id).await.unwrap();
        elsewhere.open_in_place(1_u64, &header, &mut buf).unwrap();
        let refused = rig.meanwhile(elsewhere.open(1_u64, &BlockHeader::split(&old).unwrap().0, &mut buf)).await;
        assert!(matches!(refused, Err(Error::NotFound(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn an_aek_version_is_not_retired_while_this_engine_has_not_heard_of_its_successor() {
    let rig = Rig::new().await;
    drop(rig.account("a").await);
    let engine = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    let id = account_id("a");
    let account = engine.account(&id).await.unwrap();
    // By a command, say: a process of its own, which ends.
    rig.engine.rotate_account(&id).await.unwrap();
    let mut buf = *b"data";
    let before = account.seal_in_place(1_u64, &mut buf).unwrap();
    let refused = engine.retire_aeks(&id, &[1], When::Now).await;
    assert!(matches!(&refused, Err(Error::Invalid(why)) if why.contains("count again")), "{refused:?}");
    rig.meanwhile(account.open(1_u64, &before, &mut buf)).await.unwrap();
    assert_eq!(account.seal_in_place(2_u64, &mut buf).unwrap().aek_version(), 2);
    engine.retire_aeks(&id, &[1], When::Now).await.unwrap();
}

#[tokio::test]
async fn what_was_destroyed_is_shredded_also_where_the_store_did_not_say_so() {
    let rig = Rig::new().await;
    drop(rig.account("a").await);
    let (engine, hand) = held_up(&rig);
    let id = account_id("a");
    engine.rotate_account(&id).await.unwrap();
    let record = engine.account_record(&id).await.unwrap();
    let [first, second] = &record.versions[..] else { panic!("{record:?}") };
    hand.lose_acks();
    assert!(matches!(engine.retire_aeks(&id, &[1], When::Now).await, Err(Error::Store(_))));
    assert_eq!(hand.shredded(), std::slice::from_ref(&first.wrapped.bytes));
    hand.let_go();
    engine.delete_account(&id).await.unwrap();
    hand.lose_acks();
    assert!(matches!(engine.purge_account(&id, When::Now).await, Err(Error::Store(_))));
    assert_eq!(&hand.shredded()[1..], std::slice::from_ref(&second.wrapped.bytes));
    hand.let_go();
    assert!(matches!(engine.purge_account(&id, When::Now).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn an_account_whose_retirement_got_no_answer_behind_a_denial_comes_back_with_the_token() {
    let rig = Rig::new().await;
    drop((rig.account("0").await, rig.account("a").await));
    let (engine, hand) = held_up(&rig);
    let id = account_id("a");
    // By this one the KEK is proved, whose record says nothing of the other.
    let _other = engine.account(&account_id("0")).await.unwrap();
    let account = engine.account(&id).await.unwrap();
    seal(&account).unwrap();
    // By a command, of which this engine hears nothing.
    rig.engine.rotate_account(&id).await.unwrap();
    rig.script.disable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))));
    hand.lose_acks();
    assert!(matches!(engine.retire_aeks(&id, &[1], When::Now).await, Err(Error::Store(_))));
    hand.let_go();
    rig.script.enable(&rig.kek_id);
    rig.pass(60 * SECOND).await;
    let mut buf = *b"data";
    assert_eq!(account.seal_in_place(1_u64, &mut buf).unwrap().aek_version(), 2, "nobody had to warm it");
}

#[tokio::test]
async fn an_unwrap_that_is_under_way_brings_no_aek_version_back_whose_retirement_got_no_answer() {
    for lost in [true, false] {
        let rig = Rig::new().await;
        let old = rig.account("a").await.seal_to_vec(1_u64, b"data").unwrap();
        rig.engine.rotate_account(&account_id("a")).await.unwrap();
        let (engine, hand) = held_up(&rig);
        let id = account_id("a");
        let account = engine.account(&id).await.unwrap();
        rig.script.set_latency(2 * SECOND);
        let (header, ciphertext) = BlockHeader::split(&old).unwrap();
        let mut buf = ciphertext.to_vec();
        let waits = {
            let (account, mut buf) = (account.clone(), buf.clone());
            tokio::spawn(async move { account.open(1_u64, &header, &mut buf).await })
        };
        rig.pass(SECOND).await;
        if lost {
            hand.lose_acks();
        }
        assert_eq!(engine.retire_aeks(&id, &[1], When::Now).await.is_err(), lost);
        hand.let_go();
        rig.script.set_latency(std::time::Duration::ZERO);
        drop(rig.meanwhile(waits).await);
        let opened = account.open_in_place(1_u64, &header, &mut buf);
        assert!(opened.is_err(), "lost: {lost}");
        seal(&account).unwrap();
    }
}

/// As above, of the proofs, which take one AEK version after the other.
#[tokio::test]
async fn a_proof_that_is_under_way_brings_no_aek_version_back_whose_retirement_got_no_answer() {
    for turn in 0..4 {
        let rig = Rig::new().await;
        let old = rig.account("a").await.seal_to_vec(1_u64, b"data").unwrap();
        rig.engine.rotate_account(&account_id("a")).await.unwrap();
        rig.engine.close(SECOND).await.unwrap();
        let (engine, hand) = held_up(&rig);
        let account = engine.account(&account_id("a")).await.unwrap();
        let (header, ciphertext) = BlockHeader::split(&old).unwrap();
        let mut buf = ciphertext.to_vec();
        account.open(1_u64, &header, &mut buf.clone()).await.unwrap();
        seal(&account).unwrap();
        rig.pass(turn * 15 * SECOND).await;
        rig.script.set_latency(2 * SECOND);
        while rig.script.in_flight() == 0 {
            rig.pass(SECOND / 4).await;
        }
        hand.lose_acks();
        assert!(engine.retire_aeks(&account_id("a"), &[1], When::Now).await.is_err());
        while rig.script.in_flight() > 0 {
            rig.pass(SECOND / 4).await;
        }
        assert!(account.open_in_place(1_u64, &header, &mut buf).is_err(), "turn {turn}");
    }
}

#[tokio::test]
async fn a_token_that_denies_is_heard_though_the_store_is_away_and_all_that_it_wraps_was_wrapped_here() {
    let rig = Rig::new().await;
    drop(rig.account("a").await);
    let (engine, hand) = held_up(&rig);
    let id = account_id("a");
    let account = engine.account(&id).await.unwrap();
    engine.rotate_account(&id).await.unwrap();
    engine.retire_aeks(&id, &[1], When::Now).await.unwrap();
    seal(&account).unwrap();
    hand.set_away(true);
    rig.script.disable(&rig.kek_id);
    rig.pass(25 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))), "{:?}", seal(&account));
}

#[tokio::test]
async fn a_kek_is_proved_on_by_an_account_whose_first_wrapping_did_not_come_into_the_store() {
    let rig = Rig::new().await;
    let settings = Settings::default().poll_interval(5 * SECOND).grace(60 * SECOND).aek_ttl(60 * SECOND);
    let (engine, hand) = held_up_with(&rig, settings.store_timeout(SECOND).fresh_proof_every(2));
    hand.hold_creates();
    let (there, kek) = (engine.clone(), rig.kek.clone());
    let creating = tokio::spawn(async move { there.create_account(&account_id("a"), &kek).await });
    settle().await;
    // Its write is refused, because its KEK's record is another one by now, and what is wrapped next is stored.
    rig.engine.attest_backup(&KekVersion::new(rig.kek.clone(), 1)).await.unwrap();
    hand.let_go();
    let account = creating.await.unwrap().unwrap();
    rig.pass(30 * SECOND).await;
    seal(&account).unwrap();
    hand.set_away(true);
    // Longer than grace after it was made, and shorter than grace after the store's last word.
    rig.pass(45 * SECOND).await;
    seal(&account).unwrap();
    assert!(engine.leases()[0].proved_ago.unwrap() <= 6 * SECOND, "{:?}", engine.leases());
}
