//! The engine's end, and keys that are taken out of memory by hand.

use super::*;
use keyleash::{
    Error,
    account::State,
    token::scripted::{Act, Call},
};

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_closed_engine_holds_no_key_does_nothing_and_has_written_down_what_was_sealed() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    (0..7).for_each(|_| seal(&account).unwrap());
    let closed = rig.meanwhile(rig.engine.close(PATIENCE)).await.unwrap();
    assert!(closed.is_clean(), "{closed:?}");
    assert_eq!(seal(&account), Err(Error::Closed));
    assert_eq!(account.state(), State::Refused(Error::Closed));
    assert_eq!(account.warm().await, Err(Error::Closed));
    assert_eq!(account.ready().await, Err(Error::Closed));
    assert_eq!(rig.engine.account(account.id()).await.map(drop), Err(Error::Closed));
    assert_eq!(rig.engine.leases()[0].filled_slots, 0);
    assert!(rig.meanwhile(rig.engine.close(PATIENCE)).await.unwrap().is_clean(), "a second time");
    let there = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    let record = there.account_record(account.id()).await.unwrap();
    assert_eq!(record.current().unwrap().used.blocks, 7);
    assert_eq!(there.account(account.id()).await.unwrap().blocks_sealed(), 7);
}

#[tokio::test]
async fn who_waits_for_a_key_as_the_engine_is_closed_is_told() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.script.disable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    let waits = tokio::spawn({
        let account = account.clone();
        async move { account.ready().await }
    });
    settle().await;
    rig.meanwhile(rig.engine.close(PATIENCE)).await.unwrap();
    assert_eq!(rig.meanwhile(waits).await.unwrap(), Err(Error::Closed));
}

#[tokio::test]
async fn an_unwrap_that_is_under_way_as_the_engine_is_closed_puts_no_key_in() {
    let mut rig = Rig::new().await;
    drop(rig.account("a").await);
    rig.restart();
    rig.script.push(Call::Unwrap, Act::Delay(2 * SECOND));
    let opening = open(&rig.engine, "a");
    rig.pass(SECOND).await;
    let closed = rig.meanwhile(rig.engine.close(PATIENCE)).await.unwrap();
    assert_eq!(closed.calls_inside, 0, "it was waited for");
    assert!(opening.await.unwrap().is_err());
    assert_eq!(rig.engine.leases()[0].filled_slots, 0);
}

#[tokio::test]
async fn what_does_not_end_is_waited_for_no_longer_than_was_said_and_named() {
    let rig = Rig::new().await;
    let (account, stuck) = (rig.account("a").await, rig.account("b").await);
    let operation = stuck.stuck_operation().unwrap();
    rig.script.standing(Call::Unwrap, Act::Hang);
    seal(&account).unwrap();
    let hangs = tokio::spawn({
        let engine = rig.engine.clone();
        async move { engine.probe(Profile::AesGcm).await.map(drop) }
    });
    rig.script.standing(Call::Probe, Act::Hang);
    settle().await;
    let began = rig.clock.now();
    let closed = rig.meanwhile(rig.engine.close(2 * SECOND)).await.unwrap();
    assert!(rig.clock.now().since(began) < 4 * SECOND);
    assert!(!closed.is_clean() && closed.calls_inside > 0 && closed.waiting_wipes.len() == 1, "{closed:?}");
    drop((operation, hangs));
}

#[tokio::test]
async fn an_account_that_is_evicted_is_cold_until_somebody_warms_it() {
    let rig = Rig::new().await;
    let (account, other) = (rig.account("a").await, rig.account("b").await);
    rig.engine.evict(account.id()).await.unwrap();
    assert_eq!(seal(&account), Err(Error::Cold { account: account.id().clone() }));
    rig.pass(60 * SECOND).await;
    assert_eq!(account.state(), State::Cold, "nothing brings it back by itself");
    seal(&other).unwrap();
    account.warm().await.unwrap();
    seal(&account).unwrap();
    rig.engine.evict(&account_id("never-made")).await.unwrap();
}

#[tokio::test]
async fn the_panic_button_takes_the_keys_of_one_kek_and_what_is_under_way_does_not_bring_them_back() {
    let rig = Rig::new().await;
    let other = KekName::new("other").unwrap();
    rig.engine.create_kek(&other, Profile::AesGcm).await.unwrap();
    let (one, two) = (rig.account("a").await, rig.account("b").await);
    let apart = rig.engine.create_account(&account_id("c"), &other).await.unwrap();
    rig.engine.evict(two.id()).await.unwrap();
    rig.script.push(Call::Unwrap, Act::Delay(SECOND));
    let warming = tokio::spawn({
        let two = two.clone();
        async move { two.warm().await }
    });
    rig.pass(SECOND / 2).await;
    assert_eq!(rig.engine.wipe_now(&rig.kek), 2);
    assert!(matches!(seal(&one), Err(Error::Cold { .. })));
    let _ = rig.meanwhile(warming).await.unwrap();
    assert!(matches!(seal(&two), Err(Error::Cold { .. })), "asked before, answered after");
    seal(&apart).unwrap();
    rig.meanwhile(one.warm()).await.unwrap();
    seal(&one).unwrap();
    assert_eq!(rig.engine.wipe_now(&KekName::new("never-made").unwrap()), 0);
}

#[tokio::test]
async fn the_list_of_accounts_says_where_it_goes_on() {
    let rig = Rig::new().await;
    for id in ["a", "b", "c", "d"] {
        rig.account(id).await;
    }
    let (mut after, mut ids, mut pages) = (None, Vec::new(), 0);
    loop {
        let page = rig.engine.accounts(after.as_ref(), 2).await.unwrap();
        ids.extend(page.ids.iter().map(ToString::to_string));
        pages += 1;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((pages, ids.concat()), (2, "abcd".to_owned()));
}
