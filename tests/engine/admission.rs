//! Which keys become usable: none on a proof that is older than the watch would let it become.

use crate::{Rig, SECOND, account_id, hand::held_up, open, seal, settle};
use keyleash::{
    Account, Error,
    token::scripted::{Act, Call},
};

const MINUTE: std::time::Duration = std::time::Duration::from_secs(60);

/// Nobody was under its KEK, so nobody asked meanwhile.
#[tokio::test]
async fn an_account_whose_creation_took_long_to_be_written_is_not_usable_under_a_kek_that_was_disabled_meanwhile() {
    let rig = Rig::new().await;
    let (engine, hand) = held_up(&rig);
    hand.hold_creates();
    let before = rig.script.served(Call::Unwrap);
    let creation = tokio::spawn({
        let (engine, kek) = (engine.clone(), rig.kek.clone());
        async move { engine.create_account(&account_id("a"), &kek).await }
    });
    settle().await;
    assert_eq!(rig.script.served(Call::Unwrap), before + 1, "it is proved, and about to be written");
    rig.script.disable(&rig.kek_id);
    rig.pass(5 * MINUTE).await;
    hand.let_go();
    settle().await;
    let refused = |account: &Account| assert!(seal(account).is_err(), "sealed on a proof of 5 min ago");
    match rig.meanwhile(creation).await.unwrap() {
        Ok(account) => refused(&account),
        Err(error) => assert!(matches!(error, Error::Denied(_)), "{error}"),
    }
    assert!(matches!(engine.account(&account_id("a")).await, Err(Error::Denied(_))), "it is there");
}

#[tokio::test]
async fn an_account_whose_creation_took_long_to_be_written_is_usable_at_once() {
    let rig = Rig::new().await;
    let (engine, hand) = held_up(&rig);
    hand.hold_creates();
    let creation = tokio::spawn({
        let (engine, kek) = (engine.clone(), rig.kek.clone());
        async move { engine.create_account(&account_id("a"), &kek).await }
    });
    rig.pass(5 * MINUTE).await;
    hand.let_go();
    seal(&rig.meanwhile(creation).await.unwrap().unwrap()).unwrap();
}

#[tokio::test]
async fn an_aek_whose_rotation_took_long_to_be_written_is_not_usable_under_a_kek_version_that_was_disabled_meanwhile() {
    for disabled in [true, false] {
        let rig = Rig::new().await;
        rig.pass(61 * SECOND).await; // in which the store hears of purge protection
        let (engine, hand) = held_up(&rig);
        let account = engine.create_account(&account_id("a"), &rig.kek).await.unwrap();
        let second = engine.rotate_kek(&rig.kek).await.unwrap();
        seal(&account).unwrap();
        hand.hold_account_writes();
        let rotation = tokio::spawn({
            let engine = engine.clone();
            async move { engine.rotate_account(&account_id("a")).await }
        });
        rig.pass(SECOND).await;
        if disabled {
            rig.script.disable(&second.id);
        }
        rig.pass(4 * MINUTE).await; // while the store has no other date
        seal(&account).unwrap();
        hand.let_go();
        settle().await;
        let _ = rig.meanwhile(rotation).await.unwrap();
        let block = account.seal_to_vec(1_u64, b"data");
        assert_eq!((account.aek_version(), block.is_ok()), (2, !disabled), "{block:?}");
    }
}

/// A lease that nobody was under is polled from when somebody is: what was proved just before may be old by its next turn.
#[tokio::test]
async fn a_key_that_is_admitted_late_under_a_lease_that_nobody_was_under_is_denied_within_poll_interval_and_call_timeout()
 {
    let rig = Rig::new().await;
    let other = rig.account("other").await;
    let (engine, hand) = held_up(&rig);
    for delay in 1..15 {
        let id = account_id(&format!("a{delay}"));
        // Others under it have come and gone, so that it is known, and is not asked for.
        drop(engine.create_account(&account_id(&format!("b{delay}")), &rig.kek).await);
        rig.pass(40 * SECOND).await;
        hand.hold_creates();
        let creation = tokio::spawn({
            let (engine, id, kek) = (engine.clone(), id.clone(), rig.kek.clone());
            async move { engine.create_account(&id, &kek).await }
        });
        settle().await;
        rig.script.disable(&rig.kek_id);
        rig.pass(delay * SECOND).await;
        hand.let_go();
        settle().await;
        let created = rig.meanwhile(creation).await.unwrap();
        rig.pass((16 - delay) * SECOND).await;
        if let Ok(account) = created {
            assert!(matches!(seal(&account), Err(Error::Denied(_))), "written after {delay} s");
        }
        rig.script.enable(&rig.kek_id);
        rig.pass(20 * SECOND).await;
    }
    drop(other);
}

/// The answer to what was asked in an earlier epoch comes when the lease runs again.
#[tokio::test]
async fn an_unwrap_that_was_asked_before_a_denial_admits_nothing_after_the_token_granted_again_and_is_asked_anew() {
    let mut rig = Rig::new().await;
    for id in ["cold", "other"] {
        drop(rig.account(id).await);
    }
    rig.restart();
    rig.script.push(Call::Unwrap, Act::Hang);
    let opening = open(&rig.engine, "cold");
    settle().await;
    rig.script.disable(&rig.kek_id);
    assert!(matches!(rig.engine.account(&account_id("other")).await, Err(Error::Denied(_))));
    rig.script.enable(&rig.kek_id);
    rig.pass(2 * SECOND).await;
    seal(&rig.engine.account(&account_id("other")).await.unwrap()).unwrap();
    assert!(!opening.is_finished());
    let before = rig.script.calls(Call::Unwrap);
    rig.script.release();
    settle().await;
    opening.await.unwrap().unwrap();
    assert_eq!(rig.script.calls(Call::Unwrap) - before, 1, "admitted on the token's word from before the denial");
}
