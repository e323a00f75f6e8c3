//! What lasts and is told on the trail as it begins and as it is over, so that who follows it can be alarmed.

use crate::{
    Rig, SECOND, account_id,
    hand::HandStore,
    trail::{Scripted, engine},
};
use keyleash::{
    Engine, Error,
    clock::Clock,
    telemetry::{
        Event,
        trail::{Deed, Outcome},
    },
    token::{
        Token,
        scripted::{Act, Call},
    },
};
use std::sync::{Arc, atomic::Ordering};

#[tokio::test]
async fn a_kek_version_that_is_not_proved_is_told_once_and_once_that_it_is_again() {
    let (rig, trail) = (Rig::new().await, Arc::new(Scripted::default()));
    rig.account("a").await;
    let engine = engine(&rig, &trail);
    let account = rig.meanwhile(engine.account(&account_id("a"))).await.unwrap();
    rig.pass(60 * SECOND).await;
    assert_eq!(trail.records(Deed::NotProved), []);
    rig.script.set_unreachable(true);
    rig.pass(5 * 60 * SECOND).await;
    let told = trail.records(Deed::NotProved);
    assert_eq!(told.len(), 1, "once");
    assert_eq!((told[0].on.kek.as_ref(), told[0].on.kek_version), (Some(&rig.kek), Some(1)));
    let polls = engine.settings().poll_interval * 3;
    assert!(told[0].took.is_some_and(|ago| (polls..polls + 10 * SECOND).contains(&ago)), "{told:?}");
    assert_eq!(trail.records(Deed::Proved), []);
    rig.pass(8 * 60 * SECOND).await;
    assert_eq!(trail.records(Deed::NotProved).len(), 2, "again, for who follows and began anew");
    rig.script.set_unreachable(false);
    rig.pass(2 * 60 * SECOND).await;
    assert_eq!((trail.records(Deed::NotProved).len(), trail.records(Deed::Proved).len()), (2, 1));
    drop(account);
}

/// Its token was away as it began: whoever wants an account tries again and again.
#[tokio::test]
async fn a_kek_version_that_an_engine_never_proved_is_told_while_it_is_wanted() {
    for (every, open_at_once) in [(5, 3), (50, 1)] {
        let (rig, trail) = (Rig::new().await, Arc::new(Scripted::default()));
        rig.account("a").await;
        rig.script.set_unreachable(true);
        let engine = engine(&rig, &trail);
        let attempt = async || {
            for _ in 0..open_at_once {
                let Err(error) = rig.meanwhile(engine.account(&account_id("a"))).await else { panic!("it is away") };
                assert!(matches!(error, Error::Unreachable(_)), "{error}");
            }
        };
        // Once is not again and again: nobody wants it any more.
        attempt().await;
        rig.pass(15 * 60 * SECOND).await;
        assert_eq!(trail.records(Deed::NotProved), []);

        let retry = async |seconds: u32| {
            for _ in 0..seconds / every {
                attempt().await;
                rig.pass(every * SECOND).await;
            }
        };
        retry(5 * 60).await;
        let told = trail.records(Deed::NotProved);
        assert_eq!(told.len(), 1, "{every} s: {told:?}");
        assert_eq!((told[0].on.kek.as_ref(), told[0].on.kek_version), (Some(&rig.kek), Some(1)));
        assert!(told[0].took.is_some_and(|ago| ago > engine.settings().poll_interval * 3), "{told:?}");
        retry(10 * 60).await;
        assert_eq!((trail.records(Deed::NotProved).len(), trail.records(Deed::Proved)), (2, Vec::new()), "again");
        // Given up: that is said, and no proof.
        let outcomes = || trail.records(Deed::Proved).into_iter().map(|record| record.outcome).collect::<Vec<_>>();
        rig.pass(5 * 60 * SECOND).await;
        assert_eq!(outcomes(), []);
        rig.pass(10 * 60 * SECOND).await;
        assert_eq!(outcomes(), [Outcome::Dropped]);
        let told = trail.records(Deed::NotProved).len();
        rig.pass(30 * 60 * SECOND).await;
        assert_eq!(trail.records(Deed::NotProved).len(), told);
        // Wanted again, and proved.
        retry(5 * 60).await;
        assert_eq!(trail.records(Deed::NotProved).len(), told + 1);
        rig.script.set_unreachable(false);
        let account = rig.meanwhile(engine.account(&account_id("a"))).await.unwrap();
        rig.pass(60 * SECOND).await;
        assert_eq!(
            (outcomes(), trail.records(Deed::NotProved).len()),
            (vec![Outcome::Dropped, Outcome::Done], told + 1)
        );
        drop(account);
    }
}

/// Who follows tells by it which of them is gone.
#[tokio::test]
async fn what_engines_of_a_process_say_of_themselves_is_known_to_be_theirs_each_its_own() {
    let (rig, trail) = (Rig::new().await, Arc::new(Scripted::default()));
    let engines = [engine(&rig, &trail), engine(&rig, &trail)];
    let [one, two] = [0, 1].map(|at| trail.records(Deed::EngineBegin)[at].by.correlation.bytes());
    assert_eq!((one[..8] == two[..8], one == two), (true, false));
    drop(engines);
}

#[tokio::test]
async fn a_token_without_workers_is_told_once_and_once_that_it_has_some_again() {
    let (rig, trail) = (Rig::new().await, Arc::new(Scripted::default()));
    rig.account("a").await;
    let engine = engine(&rig, &trail);
    let account = rig.meanwhile(engine.account(&account_id("a"))).await.unwrap();
    rig.script.standing(Call::Unwrap, Act::Hang);
    rig.pass(10 * 60 * SECOND).await;
    assert!(rig.token.workers().restart_needed());
    let told = trail.records(Deed::WorkersSpent);
    assert_eq!((told.len(), told[0].on.token.is_some()), (1, true));
    rig.script.standing(Call::Unwrap, Act::Serve);
    rig.script.release();
    rig.pass(60 * SECOND).await;
    assert_eq!((trail.records(Deed::WorkersSpent).len(), trail.records(Deed::WorkersBack).len()), (1, 1));
    drop(account);
}

/// As it begins: nobody has asked for anything yet. And later, by whoever asks.
#[tokio::test]
async fn a_store_that_does_not_answer_is_told_once_and_once_that_it_does_again() {
    for hangs in [false, true] {
        let (rig, trail) = (Rig::new().await, Arc::new(Scripted::default()));
        rig.account("a").await;
        let hand = HandStore::over(&rig.store);
        let begin = || match hangs {
            true => (hand.hold_lists(), hand.hold_reads(|_| true)),
            false => (hand.set_away(true), ()),
        };
        begin();
        let engine = Engine::builder(rig.token.clone(), hand.clone())
            .on_current_runtime()
            .clock(Clock::Manual(rig.clock.clone()))
            .trail(trail.clone())
            .build()
            .unwrap();
        let mut events = engine.events();
        let told = |deed| trail.records(deed).len();
        rig.pass(10 * SECOND).await;
        assert_eq!(told(Deed::StoreSilent), 0, "{hangs}: not at once");
        rig.pass(10 * 60 * SECOND).await;
        assert_eq!((told(Deed::StoreSilent), told(Deed::StoreAnswers)), (1, 0), "{hangs}");
        hand.set_away(false);
        hand.let_go();
        rig.pass(2 * 60 * SECOND).await;
        assert_eq!((told(Deed::StoreSilent), told(Deed::StoreAnswers)), (1, 1), "{hangs}");

        let account = rig.meanwhile(engine.account(&account_id("a"))).await.unwrap();
        begin();
        rig.pass(5 * 60 * SECOND).await;
        assert_eq!((told(Deed::StoreSilent), told(Deed::StoreAnswers)), (2, 1), "{hangs}");
        let silent = |event: &Event| matches!(event, Event::StoreSilent { .. });
        let events = std::iter::from_fn(|| events.try_next()).filter(silent).count();
        assert_eq!(events, 2, "{hangs}: subscribers hear the same");
        drop(account);
        hand.set_away(false);
        hand.let_go();
    }
}

#[tokio::test]
async fn a_kek_that_goes_from_its_token_and_comes_back_is_told() {
    let (rig, trail) = (Rig::new().await, Arc::new(Scripted::default()));
    rig.account("a").await;
    let engine = engine(&rig, &trail);
    let look = engine.settings().poll_interval * 21;
    rig.pass_by(look, SECOND).await;
    rig.script.destroy(&rig.kek_id);
    rig.pass_by(look, SECOND).await;
    let told = trail.records(Deed::KekMissing);
    assert_eq!((told.len(), told[0].on.kek.as_ref()), (1, Some(&rig.kek)));
    rig.script.restore(&rig.kek_id);
    rig.pass_by(look, SECOND).await;
    assert_eq!((trail.records(Deed::KekMissing).len(), trail.records(Deed::KekBack).len()), (1, 1));
}

/// It cannot tell of itself.
#[tokio::test]
async fn a_trail_that_breaks_is_an_event_at_once() {
    let (rig, trail) = (Rig::new().await, Arc::new(Scripted::default()));
    let engine = engine(&rig, &trail);
    let mut events = engine.events();
    let mut told = || -> Vec<_> {
        let of_trail = |event: &Event| matches!(event, Event::TrailBroken { .. } | Event::TrailWhole);
        std::iter::from_fn(|| events.try_next()).filter(of_trail).map(|event| event.to_string()).collect()
    };
    rig.pass(5 * SECOND).await;
    assert_eq!(told(), [""; 0]);
    trail.withholds.store(true, Ordering::SeqCst);
    rig.pass(5 * SECOND).await;
    let broken = told();
    assert!(broken.len() == 1 && broken[0].contains("the disk is full"), "{broken:?}");
    trail.withholds.store(false, Ordering::SeqCst);
    rig.pass(5 * SECOND).await;
    assert_eq!(told(), ["the trail is kept again"]);
}

#[cfg(feature = "secrets")]
#[tokio::test]
async fn a_secret_past_its_expiry_is_told_by_who_runs_its_schedule_once_for_each_version() {
    use keyleash::{
        clock::unix_now,
        name::{SecretId, SecretName},
        secrets::{SecretValue, SetOptions},
    };
    let (rig, trail) = (Rig::new().await, Arc::new(Scripted::default()));
    rig.account("a").await;
    let engine = engine(&rig, &trail);
    let secrets = engine.secrets();
    let id = SecretId::new(account_id("a"), SecretName::new("db").unwrap());
    let set = async |expires: u64| {
        let value = SecretValue::new(b"v".to_vec()).unwrap();
        rig.meanwhile(secrets.set(&id, value, SetOptions::default().expires(expires))).await.unwrap()
    };
    let (over, later) = (5, unix_now() + 100_000);
    for (expires, lines) in [(later, 0), (over, 1), (later, 1), (over, 2)] {
        set(expires).await;
        for _ in 0..3 {
            rig.meanwhile(secrets.run_schedule()).await.unwrap();
        }
        assert_eq!(trail.records(Deed::SecretExpired).len(), lines);
    }
    let told = &trail.records(Deed::SecretExpired)[1].on;
    assert_eq!(
        (told.account.clone(), told.secret.clone(), told.secret_version),
        (Some(id.account), Some(id.name), Some(4))
    );
}
