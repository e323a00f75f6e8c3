//! A storm of other work on the same token: proofs go before it, what waits is told so, and slow is not hung.

use super::*;
use keyleash::{
    Error,
    lease::{Change, Phase},
    telemetry::Event,
};

/// Of a call.
const LATENCY: Duration = Duration::from_millis(100);

/// An engine over a token that has so many workers, an account under its KEK, and another KEK.
async fn ready(workers: usize) -> (Rig, Account, KekName) {
    let mut rig = Rig::new().await;
    let other = KekName::new("other").unwrap();
    rig.engine.create_kek(&other, Profile::AesGcm).await.unwrap();
    drop(rig.account("a").await);
    rig.engine = build(&rig.token.with_workers(workers), &rig.store, &rig.clock, Settings::default());
    let account = rig.engine.account(&account_id("a")).await.unwrap();
    rig.pass(16 * SECOND).await;
    (rig, account, other)
}

fn create(rig: &Rig, accounts: usize, kek: &KekName) -> Vec<JoinHandle<keyleash::Result<Account>>> {
    (0..accounts)
        .map(|n| {
            let (engine, id, kek) = (rig.engine.clone(), account_id(&format!("storm-{n}")), kek.clone());
            tokio::spawn(async move { engine.create_account(&id, &kek).await })
        })
        .collect()
}

/// What tells of trouble with the token, where there is none.
fn troubles(events: &mut keyleash::telemetry::Events) -> Vec<Event> {
    let is_trouble = |event: &Event| match event {
        Event::Lease { change, .. } => !matches!(change, Change::Granted),
        Event::WorkerLost { .. } | Event::ProofCrowdedOut { .. } | Event::WatchRestarted { .. } => true,
        _ => false,
    };
    std::iter::from_fn(|| events.try_next()).filter(is_trouble).collect()
}

#[tokio::test]
async fn a_storm_of_creations_under_one_kek_delays_neither_proof_nor_revocation_nor_opening_of_another() {
    for workers in [1, 2, 3] {
        let (rig, account, other) = ready(workers).await;
        // By another engine, so that it is not in the memory of this one.
        let there = build(&rig.token, &rig.store, &rig.clock, Settings::default());
        drop(there.create_account(&account_id("cold"), &rig.kek).await.unwrap());
        drop(there);
        let engine = rig.engine.clone();
        let mut events = engine.events();
        rig.script.set_latency(LATENCY);
        let storm = create(&rig, 600, &other);
        for _ in 0..30 {
            rig.pass_by(SECOND, LATENCY).await;
            let leases = engine.leases();
            let lease = leases.iter().find(|lease| lease.kek.name == rig.kek).unwrap();
            let proved_ago = lease.proved_ago.unwrap();
            assert!(proved_ago <= 15 * SECOND + 4 * LATENCY, "{workers}: {proved_ago:?} without a proof");
            seal(&account).unwrap();
        }
        // Behind the two calls of those that have the 16 places, at most.
        let began = rig.clock.now();
        let opened = tokio::spawn({
            let engine = engine.clone();
            async move { engine.account(&account_id("cold")).await }
        });
        while !opened.is_finished() {
            rig.pass_by(LATENCY, LATENCY).await;
        }
        opened.await.unwrap().unwrap();
        let waited = rig.clock.now().since(began);
        assert!(waited <= 40 * LATENCY, "{workers}: opened after {waited:?}");
        let status = tokio::spawn({
            let engine = engine.clone();
            async move { engine.status().await }
        });
        for _ in 0..100 {
            rig.pass_by(LATENCY, LATENCY).await;
        }
        assert_eq!(status.await.unwrap().tokens[0].workers.hung, 0);
        // The token grants what it is asked: nothing hung, nothing lapsed, nobody waited in vain.
        assert_eq!(troubles(&mut events), []);
        assert!(storm.iter().any(|one| !one.is_finished()), "no storm any more");

        rig.script.disable(&rig.kek_id);
        rig.pass_by(20 * SECOND, LATENCY).await;
        assert!(matches!(seal(&account), Err(Error::Denied(_))), "{workers}: not within a poll and a call");
        for one in storm {
            let mut one = one;
            loop {
                tokio::select! {
                    biased;
                    made = &mut one => break drop(made.unwrap().unwrap()),
                    () = rig.pass_by(LATENCY, LATENCY) => {}
                }
            }
        }
    }
}

#[tokio::test]
async fn what_waits_too_long_for_a_slow_token_is_told_so_and_no_lease_learns_of_it() {
    let (rig, account, other) = ready(2).await;
    let mut events = rig.engine.events();
    rig.script.set_latency(4 * SECOND); // of 5
    let storm = create(&rig, 40, &other);
    let (mut made, mut busy) = (0, 0);
    for one in storm {
        match rig.meanwhile(one).await.unwrap() {
            Ok(_) => made += 1,
            Err(Error::Unreachable(refusal)) => {
                assert!(refusal.reason.contains("no worker was free"), "{refusal}");
                assert!(refusal.remedy.contains("try again") || refusal.remedy.contains("script"), "{refusal}");
                busy += 1;
            }
            Err(error) => panic!("{error}"),
        }
        seal(&account).unwrap();
    }
    assert!(made > 5 && busy > 5, "{made} made, {busy} waited too long");
    assert_eq!(troubles(&mut events), []);
    let status = rig.meanwhile(rig.engine.status()).await;
    assert_eq!(status.tokens[0].workers.hung, 0);
    assert!(status.leases.iter().all(|lease| lease.phase == Phase::Active), "{:?}", status.leases);
}

#[tokio::test]
async fn keys_in_use_are_refreshed_through_a_storm_under_their_own_kek() {
    let mut rig = Rig::new().await;
    let settings = Settings::default().aek_ttl(20 * SECOND);
    drop(rig.account("a").await);
    rig.engine = build(&rig.token.with_workers(2), &rig.store, &rig.clock, settings);
    let account = rig.engine.account(&account_id("a")).await.unwrap();
    rig.script.set_latency(LATENCY);
    let _storm = create(&rig, 600, &rig.kek);
    for _ in 0..80 {
        rig.pass_by(SECOND, LATENCY).await;
        seal(&account).unwrap();
    }
}

/// The one that is kept for proofs takes what is there once no other is left.
#[tokio::test]
async fn the_last_worker_of_a_token_that_lost_the_others_serves_all() {
    use keyleash::token::scripted::{Act, Call};
    let (rig, account, _) = ready(2).await;
    let there = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    // As many as may hang, and one more.
    for n in 0..9 {
        let id = account_id(&format!("hangs-{n}"));
        drop(there.create_account(&id, &rig.kek).await.unwrap());
        rig.script.push(Call::Unwrap, Act::Hang);
        assert!(rig.meanwhile(rig.engine.account(&id)).await.is_err());
    }
    drop(there);
    assert_eq!(rig.engine.status().await.tokens[0].workers.alive, 1);
    seal(&account).unwrap();
    drop(rig.account("b").await);
    rig.script.disable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))));
}
