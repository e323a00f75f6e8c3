//! Outages of the key store, while the token answers: keys in use go on, and no longer than grace after the store's last word.

use crate::{Rig, SECOND, account_id, hand::HandStore, hand::held_up, seal, settle};
use keyleash::{
    Account, Engine, Error,
    clock::Instant,
    config::Settings,
    lease::Phase,
    store::Key,
    telemetry::{Event, Events},
};
use std::{sync::Arc, time::Duration};

const MINUTE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(30 * 60);
const TTL: Duration = Duration::from_secs(10 * 60);

/// How a store is away.
#[derive(Debug, Clone, Copy)]
enum Away {
    Fails,
    Hangs,
}

impl Away {
    const ALL: [Self; 2] = [Self::Fails, Self::Hangs];

    fn begin(self, hand: &HandStore) {
        match self {
            Self::Fails => hand.set_away(true),
            Self::Hangs => hand.hold_reads(|_| true),
        }
    }
}

fn end(hand: &HandStore) {
    hand.set_away(false);
    hand.let_go();
}

/// Three accounts in use, and the engine that has them.
async fn in_use(rig: &Rig) -> (Engine, Arc<HandStore>, Vec<Account>) {
    let (engine, hand) = held_up(rig);
    let mut accounts = Vec::new();
    for id in ["a", "b", "c"] {
        accounts.push(engine.create_account(&account_id(id), &rig.kek).await.unwrap());
    }
    for _ in 0..40 {
        accounts.iter().for_each(|account| seal(account).unwrap());
        rig.pass(15 * SECOND).await;
    }
    (engine, hand, accounts)
}

/// When each of the accounts last sealed, while they are used for `time`.
async fn last_seals(rig: &Rig, accounts: &[Account], time: Duration) -> Vec<Instant> {
    let mut last = vec![Instant::default(); accounts.len()];
    let end = rig.clock.now().plus(time);
    while rig.clock.now() < end {
        for (account, last) in accounts.iter().zip(&mut last) {
            match seal(account) {
                Ok(()) => *last = rig.clock.now(),
                Err(error) => assert!(matches!(error, Error::Cold { .. } | Error::Lapsed(_)), "{error}"),
            }
        }
        rig.pass(5 * SECOND).await;
    }
    last
}

fn stories(events: &mut Events) -> Vec<Event> {
    let mut told = Vec::new();
    while let Some(event) = events.try_next() {
        told.extend(matches!(event, Event::StoreSilent { .. } | Event::StoreAnswers).then_some(event));
    }
    told
}

#[tokio::test]
async fn keys_in_use_outlast_an_outage_of_the_store_until_grace_after_its_last_word_and_no_longer() {
    for away in Away::ALL {
        let rig = Rig::new().await;
        let (engine, hand, accounts) = in_use(&rig).await;
        let mut events = engine.events();
        away.begin(&hand);
        let act = rig.clock.now();
        for last in last_seals(&rig, &accounts, GRACE + 2 * TTL).await {
            let lasted = last.since(act);
            assert!(lasted <= GRACE, "{away:?}: {lasted:?} after the store's last word");
            // Its last word was asked for by a proof, an interval ago at most.
            assert!(lasted >= GRACE - 25 * SECOND, "{away:?}: an outage is not a revocation: {lasted:?}");
        }
        assert_eq!(engine.leases()[0].phase, Phase::Active, "{away:?}: the token answers");
        assert!(matches!(&stories(&mut events)[..], [Event::StoreSilent { .. }]), "{away:?}: told once");
        let silence = engine.status().await.store_silence.unwrap();
        assert!(silence.lasting >= GRACE && silence.keys_last.is_zero(), "{silence:?}");
        end(&hand);
        rig.pass(MINUTE).await;
        accounts.iter().for_each(|account| seal(account).unwrap());
        assert_eq!(stories(&mut events), [Event::StoreAnswers], "{away:?}");
        assert_eq!(engine.status().await.store_silence, None);
    }
}

#[tokio::test]
async fn an_outage_of_the_store_within_grace_leaves_nobody_cold_and_ttls_bind_after_it() {
    for away in Away::ALL {
        let rig = Rig::new().await;
        let (_engine, hand, accounts) = in_use(&rig).await;
        away.begin(&hand);
        for minute in 0..40 {
            if minute == 25 {
                end(&hand);
            }
            for _ in 0..6 {
                rig.pass(10 * SECOND).await;
                accounts.iter().for_each(|account| seal(account).unwrap());
            }
        }
        rig.pass(2 * TTL).await; // nobody uses them
        assert!(accounts.iter().all(|account| matches!(seal(account), Err(Error::Cold { .. }))), "{away:?}");
    }
}

/// By another engine. Nobody can hear of it here, whatever the token does meanwhile, and whenever the store comes back.
#[tokio::test]
async fn an_account_that_was_deleted_while_the_store_cannot_be_read_is_not_used_for_longer_than_grace() {
    for (back, token_silent) in [(5, false), (29, false), (29, true), (35, false), (35, true)] {
        let rig = Rig::new().await;
        let (_engine, hand, accounts) = in_use(&rig).await;
        Away::Hangs.begin(&hand);
        let deleted = rig.clock.now();
        rig.engine.delete_account(&account_id("a")).await.unwrap();
        rig.script.set_unreachable(token_silent);
        let mut last = last_seals(&rig, &accounts[..1], back * MINUTE - 20 * SECOND).await[0];
        rig.script.set_unreachable(false);
        rig.pass(20 * SECOND).await;
        end(&hand);
        last = last.max(last_seals(&rig, &accounts[..1], GRACE).await[0]);
        assert!(last.since(deleted) <= GRACE, "back after {back} min: used for {:?}", last.since(deleted));
    }
}

#[tokio::test]
async fn a_denial_holds_within_poll_interval_and_call_timeout_while_the_store_is_away_and_the_token_slow() {
    for away in Away::ALL {
        let rig = Rig::new().await;
        let (_engine, hand, accounts) = in_use(&rig).await;
        rig.script.set_latency(4 * SECOND + SECOND * 9 / 10);
        rig.pass(40 * SECOND).await;
        away.begin(&hand);
        rig.pass(SECOND).await;
        rig.script.disable(&rig.kek_id);
        rig.pass(20 * SECOND).await;
        assert!(accounts.iter().all(|account| matches!(seal(account), Err(Error::Denied(_)))), "{away:?}");
        end(&hand);
        settle().await;
    }
}

#[tokio::test]
async fn a_kek_is_proved_on_after_the_purge_of_the_account_that_it_was_proved_with_and_the_loss_of_the_store() {
    let rig = Rig::with(Settings::default().purge_protection(false)).await;
    let (engine, hand, accounts) = in_use(&rig).await;
    // Whichever of them it is kept of.
    for id in ["a", "b"] {
        engine.delete_account(&account_id(id)).await.unwrap();
        engine.purge_account(&account_id(id), keyleash::When::Now).await.unwrap();
    }
    settle().await;
    hand.set_away(true);
    rig.pass(5 * MINUTE).await;
    let [lease] = &engine.leases()[..] else { panic!() };
    assert!(lease.proved_ago.unwrap() <= 20 * SECOND, "{lease:?}");
    seal(&accounts[2]).unwrap();
}

#[tokio::test]
async fn it_is_told_when_there_is_no_record_to_prove_a_kek_with() {
    let rig = Rig::new().await;
    let (engine, hand) = held_up(&rig);
    // The first one vouches for the KEK when the second is made.
    drop(engine.create_account(&account_id("kept"), &rig.kek).await.unwrap());
    let account = engine.create_account(&account_id("a"), &rig.kek).await.unwrap();
    let mut events = engine.events();
    engine.delete_account(&account_id("kept")).await.unwrap();
    hand.hold_reads(|key| *key == Key::Account(account_id("a"))); // which cannot be kept instead
    engine.purge_account(&account_id("kept"), keyleash::When::Now).await.unwrap();
    rig.pass(3 * MINUTE).await;
    let told = std::iter::from_fn(|| events.try_next()).filter(|event| matches!(event, Event::NoRecordToProve { .. }));
    assert_eq!(told.count(), 1);
    assert!(engine.leases()[0].trouble.as_ref().unwrap().contains("no answer within"));
    hand.let_go();
    rig.pass(16 * SECOND).await;
    assert_eq!(engine.leases()[0].trouble, None);
    seal(&account).unwrap();
}

/// Nobody uses it, and its TTL is put off.
#[tokio::test]
async fn an_idle_account_that_is_deleted_after_an_outage_of_the_token_is_wiped_before_its_ttl_binds_again() {
    let rig = Rig::new().await;
    let (engine, _hand, accounts) = in_use(&rig).await;
    rig.script.set_unreachable(true);
    rig.pass(20 * MINUTE).await;
    rig.script.set_unreachable(false);
    rig.pass(MINUTE).await; // those that were used are refreshed
    let filled = engine.leases()[0].filled_slots;
    rig.engine.delete_account(&account_id("a")).await.unwrap();
    rig.pass(6 * MINUTE).await;
    assert_eq!((filled, engine.leases()[0].filled_slots), (3, 2));
    drop(accounts);
}
