//! A trail that cannot take what it is told: nothing is given out whose line is lost, and what takes away waits for none.

#[cfg(feature = "secrets")]
use crate::trail::secrets;
use crate::{
    Rig, account_id,
    grants::{caller, grant},
    seal, settle,
    trail::{ID, Is, Scripted, TAKE_AWAY, call, contents, each_call, engine, full, is, rig},
};
use keyleash::{access::Operation, telemetry::trail::Deed};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// Neither for one that is full nor for one that hangs: and what it can keep, it has.
#[tokio::test]
async fn what_only_takes_away_waits_for_no_trail() {
    let taking: Vec<_> = each_call().into_iter().filter(|(name, _)| TAKE_AWAY.contains(&name.as_str())).collect();
    assert_eq!(taking.len(), if cfg!(feature = "secrets") { TAKE_AWAY.len() } else { 2 });
    for (name, _) in taking {
        assert!(matches!(is(&name), Is::Act(_)), "{name}");
        for hangs in [false, true] {
            let (rig, trail) = (rig().await, Arc::new(Scripted::default()));
            let engine = engine(&rig, &trail).caller(caller("all")).correlation(ID);
            settle().await;
            if hangs {
                trail.hangs.store(true, Ordering::SeqCst)
            } else {
                trail.refuse_after(0)
            }
            let (began, before) = (rig.clock.now(), contents(&rig.store, &rig.token).await);
            let outcome = match name.as_str() {
                "Engine::remove_grant" => {
                    let grants = engine.policy().await.unwrap().grants().to_vec();
                    rig.meanwhile(engine.remove_grant(&grants[0].id)).await
                }
                name => rig.meanwhile(call(&engine, &rig, name)).await,
            };
            outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
            let took = rig.clock.now().since(began);
            assert!(took <= Duration::from_secs(2) + engine.settings().store_timeout, "{name}: {took:?}");
            assert_ne!(contents(&rig.store, &rig.token).await, before, "{name}");
        }
    }
}

/// Though the trail serves again by the time that it is asked.
#[tokio::test]
async fn nothing_is_given_out_whose_line_is_lost_and_nothing_more_is_done_from_then_on() {
    for deed in [Deed::AccountOpen, Deed::KeyUnwrap] {
        let (rig, trail) = (rig().await, Arc::new(Scripted::default()));
        let engine = engine(&rig, &trail).caller(caller("all"));
        let handle = rig.meanwhile(engine.account(&account_id("a"))).await.unwrap();
        engine.evict(&account_id("a")).await.unwrap();
        // Where that is not to be refused it goes on.
        *trail.loses.lock().unwrap() = Some((deed, false));
        rig.meanwhile(engine.account(&account_id("a"))).await.unwrap();
        seal(&handle).unwrap();
        engine.evict(&account_id("a")).await.unwrap();
        *trail.loses.lock().unwrap() = Some((deed, true));
        let opened = rig.meanwhile(engine.account(&account_id("a"))).await;
        assert_eq!(opened.map(drop), Err(full()), "{deed}");
        assert_eq!(seal(&handle), Err(full()), "{deed}: at once, and not with the next look");
        *trail.loses.lock().unwrap() = None;
        rig.pass(Duration::from_secs(2)).await;
        assert!(rig.meanwhile(engine.account(&account_id("a"))).await.is_ok() && seal(&handle).is_ok());
    }
}

#[cfg(feature = "secrets")]
#[tokio::test]
async fn no_secret_is_given_out_whose_line_is_lost() {
    let (rig, trail) = (rig().await, Arc::new(Scripted::default()));
    let engine = engine(&rig, &trail).caller(caller("all"));
    rig.meanwhile(secrets::call(&engine, "get")).await.unwrap();
    *trail.loses.lock().unwrap() = Some((Deed::SecretGet, true));
    assert_eq!(rig.meanwhile(secrets::call(&engine, "get")).await, Err(full()));
}

/// Each attempt would take the place of something that happened.
#[tokio::test]
async fn what_the_trail_withholds_fills_it_up_with_no_lines() {
    let (rig, trail) = (rig().await, Arc::new(Scripted::default()));
    let engine = engine(&rig, &trail).caller(caller("all"));
    trail.withholds.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        // At once: nobody has looked since.
        assert_eq!(rig.meanwhile(engine.account(&account_id("a"))).await.map(drop), Err(full()));
    }
    assert_eq!(trail.records(Deed::AccountOpen), []);
}

/// A part of an act whose line is lost is not begun either.
#[tokio::test]
async fn nothing_is_begun_of_whose_lines_one_is_lost() {
    let (rig, trail) = (rig().await, Arc::new(Scripted::default()));
    let engine = engine(&rig, &trail).caller(caller("all"));
    let before = engine.policy().await.unwrap().grants().len();
    for refuses in [true, false] {
        *trail.loses.lock().unwrap() = Some((Deed::GrantAdded, refuses));
        let given = [grant("x", &[Operation::Seal]), grant("y", &[Operation::Open])];
        assert_eq!(engine.add_grants(given.to_vec()).await, Err(full()));
        *trail.loses.lock().unwrap() = None;
    }
    assert_eq!(engine.policy().await.unwrap().grants().len(), before);
}

/// They stay where they are counted until there is room for them.
#[tokio::test]
async fn no_sum_is_lost_for_want_of_room() {
    let (rig, trail) = (Rig::new().await, Arc::new(Scripted::default()));
    rig.account("a").await;
    let engine = engine(&rig, &trail);
    let account = rig.meanwhile(engine.account(&account_id("a"))).await.unwrap();
    trail.is_crowded.store(true, Ordering::SeqCst);
    seal(&account).unwrap();
    rig.pass(Duration::from_secs(62)).await;
    assert_eq!(trail.records(Deed::Blocks), []);
    seal(&account).unwrap();
    drop(account);
    trail.is_crowded.store(false, Ordering::SeqCst);
    rig.pass(Duration::from_secs(62)).await;
    let told = trail.records(Deed::Blocks);
    assert_eq!((told.len(), told[0].sums.unwrap().sealed), (1, 2));
}
