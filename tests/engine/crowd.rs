//! Proofs and other calls at the same workers: many KEK versions on a token that takes its time, and calls that hang.

use super::*;
use keyleash::{
    lease::Change,
    telemetry::Event,
    token::scripted::{Act, Call},
};

/// So many KEKs, each with an account.
async fn crowd(rig: &Rig, keks: usize) -> (Vec<KekId>, Vec<Account>) {
    let (mut ids, mut accounts) = (Vec::new(), Vec::new());
    for n in 0..keks {
        let kek = KekName::new(format!("k{n}")).unwrap();
        ids.push(rig.engine.create_kek(&kek, Profile::AesGcm).await.unwrap().id);
        accounts.push(rig.engine.create_account(&account_id(&format!("a{n}")), &kek).await.unwrap());
    }
    (ids, accounts)
}

#[tokio::test]
async fn a_hundred_kek_versions_on_a_token_that_answers_in_300_ms_are_denied_in_time() {
    let mut rig = Rig::new().await;
    rig.token = rig.token.with_workers(3);
    rig.restart();
    let (ids, accounts) = crowd(&rig, 100).await;
    rig.script.set_latency(Duration::from_millis(300));
    rig.pass_by(120 * SECOND, SECOND / 10).await;
    ids.iter().for_each(|id| rig.script.disable(id));
    let Settings { poll_interval, store_timeout: call_timeout, .. } = Settings::default();
    rig.pass_by(poll_interval + call_timeout, SECOND / 10).await;
    let sealing = accounts.iter().filter(|account| seal(account).is_ok()).count();
    assert_eq!(sealing, 0, "of 100, {:?} after the revocation", poll_interval + call_timeout);
}

#[tokio::test]
async fn with_the_shortest_grace_no_lease_lapses_while_its_proof_waits_for_another() {
    let settings = Settings::default().grace(25 * SECOND).aek_ttl(25 * SECOND);
    let mut rig = Rig::with(settings.clone()).await;
    rig.token = rig.token.with_workers(2);
    rig.engine = build(&rig.token, &rig.store, &rig.clock, settings);
    let _crowd = crowd(&rig, 4).await;
    let mut events = rig.engine.events();
    rig.script.standing(Call::Unwrap, Act::Delay(SECOND * 48 / 10));
    for _ in 0..300 {
        rig.pass(SECOND).await;
        while let Some(event) = events.try_next() {
            assert!(!matches!(event, Event::Lease { change: Change::Lapsed, .. }), "{event:?}");
        }
    }
}

#[tokio::test]
async fn wraps_that_hang_end_no_lease_and_are_made_again_once_they_come_back() {
    let mut rig = Rig::new().await;
    rig.token = rig.token.with_workers(3);
    rig.restart();
    let account = rig.account("a").await;
    let mut events = rig.engine.events();
    rig.script.standing(Call::Wrap, Act::Hang);
    for n in 0..30 {
        let made = rig.meanwhile(rig.engine.create_account(&account_id(&format!("b{n}")), &rig.kek)).await;
        assert!(matches!(made, Err(keyleash::Error::Unreachable(_))), "{made:?}");
    }
    for _ in 0..35 {
        rig.pass(60 * SECOND).await;
        seal(&account).unwrap();
    }
    assert!(rig.token.workers().alive > 0);
    while let Some(event) = events.try_next() {
        assert!(!matches!(event, Event::Lease { .. }), "{event:?}");
    }
    rig.script.standing(Call::Wrap, Act::Serve);
    rig.script.release();
    settle().await;
    rig.meanwhile(rig.engine.create_account(&account_id("c"), &rig.kek)).await.unwrap();
}
