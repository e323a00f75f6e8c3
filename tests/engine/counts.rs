//! What an engine counts, and how well it says that it serves.

use super::{grants::grant, *};
use keyleash::{
    Error,
    access::Operation,
    engine::{Counts, Health, KekHealth},
    name::CallerId,
};

const MINUTE: Duration = Duration::from_secs(60);

fn event(counts: &Counts, name: &str) -> u64 {
    counts.events.iter().find(|(event, _)| *event == name).unwrap().1
}

fn unwraps(counts: &Counts, proofs: bool, result: &str) -> u64 {
    let mut of = counts.tokens[0].unwraps.ended.iter();
    of.find(|ended| ended.proofs == proofs && ended.result == result).unwrap().count
}

#[tokio::test]
async fn health_is_degraded_in_an_outage_and_dark_from_a_denial_or_lapse_until_a_proof() {
    let rig = Rig::new().await;
    let health = || rig.engine.health().health;
    assert_eq!(health(), Health::Ready, "nothing was asked of it yet");
    let account = rig.account("a").await;
    rig.pass(20 * SECOND).await;
    assert_eq!(health(), Health::Ready);
    rig.script.set_unreachable(true);
    rig.pass(20 * SECOND).await;
    seal(&account).unwrap();
    assert_eq!(health(), Health::Degraded, "within grace");
    rig.pass(30 * MINUTE).await;
    assert!(matches!(seal(&account), Err(Error::Lapsed(_))));
    assert_eq!(health(), Health::Dark, "lapsed");
    rig.script.set_unreachable(false);
    rig.pass(MINUTE).await;
    seal(&account).unwrap();
    assert_eq!(health(), Health::Ready);
    rig.script.disable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    let of = KekHealth::clone(&rig.engine.health().keks[0]);
    assert_eq!((health(), of.kek, of.health), (Health::Dark, rig.kek.clone(), Health::Dark), "denied");
    // One of two that is dark leaves the other, and the whole, to requests.
    let other = KekName::new("other").unwrap();
    rig.engine.create_kek(&other, Profile::AesGcm).await.unwrap();
    let _other = rig.engine.create_account(&account_id("b"), &other).await.unwrap();
    let of = rig.engine.health();
    assert_eq!(of.health, Health::Degraded);
    assert_eq!(of.keks.iter().map(|kek| kek.health).collect::<Vec<_>>(), [Health::Dark, Health::Ready]);
    let _ = rig.meanwhile(rig.engine.close(SECOND)).await;
    assert_eq!(health(), Health::Dark, "closed");
}

#[tokio::test]
async fn what_happens_is_counted_once() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let before = rig.engine.counts();
    for _ in 0..3 {
        rig.engine.account(&account_id("a")).await.unwrap();
    }
    let counts = rig.engine.counts();
    assert_eq!((counts.index_hits - before.index_hits, counts.index_misses), (3, before.index_misses));
    assert_eq!((counts.accounts, counts.keys, counts.wipes), (1, 1, 0));
    drop(account);
}

#[tokio::test]
async fn unwraps_are_counted_by_purpose_and_result_and_wipes_and_events_beside_them() {
    let rig = Rig::new().await;
    drop(rig.account("a").await);
    let engine = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    assert!(matches!(engine.account(&account_id("nobody")).await, Err(Error::NotFound(_))));
    let account = engine.account(&account_id("a")).await.unwrap();
    let counts = engine.counts();
    assert_eq!((counts.index_hits, counts.index_misses), (0, 2));
    assert_eq!((unwraps(&counts, false, "granted"), unwraps(&counts, false, "denied")), (1, 0));
    rig.pass(40 * SECOND).await;
    let counts = engine.counts();
    let proofs = unwraps(&counts, true, "granted");
    assert!((2..=4).contains(&proofs), "{proofs} in 40 s");
    let took: u64 = counts.tokens[0].unwraps.took.iter().map(|class| class.count).sum();
    assert_eq!(took, counts.tokens[0].unwraps.ended.iter().map(|ended| ended.count).sum::<u64>());
    assert_eq!((event(&counts, "lease_granted"), event(&counts, "lease_denied")), (1, 0));
    rig.script.disable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    let counts = engine.counts();
    assert_eq!((event(&counts, "lease_denied"), counts.wipes, counts.keys), (1, 1, 0));
    assert!(unwraps(&counts, true, "denied") >= 1);
    assert_eq!((counts.leases[0].wanted_slots, counts.leases[0].filled_slots), (1, 0), "it is awaited");
    rig.script.enable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    seal(&account).unwrap();
    let counts = engine.counts();
    assert_eq!((event(&counts, "lease_resumed"), counts.leases[0].wanted_slots, counts.keys), (1, 0, 1));
}

#[tokio::test]
async fn whoever_is_refused_is_counted_and_whoever_only_looks_is_not() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.engine.add_grants(vec![grant("boss", &[Operation::GrantWrite])]).await.unwrap();
    let nobody = rig.engine.caller(CallerId::new("nobody").unwrap());
    assert_eq!(rig.engine.counts().forbidden, 0);
    assert!(nobody.leases().is_empty() && nobody.counts().leases.is_empty());
    assert_eq!(rig.engine.counts().forbidden, 0, "it was shown less, and refused nothing");
    assert!(matches!(nobody.account(&account_id("a")).await, Err(Error::Forbidden(_))));
    assert!(matches!(nobody.keks().await, Err(Error::Forbidden(_))));
    assert!(matches!(seal(&account), Err(Error::Forbidden(_))));
    assert_eq!(rig.engine.counts().forbidden, 3);
}

#[tokio::test]
async fn a_rewrap_is_counted_while_it_is_under_way_and_its_accounts_for_good() {
    let rig = Rig::new().await;
    for id in ["a", "b", "c"] {
        rig.account(id).await;
    }
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    let seen = std::sync::Mutex::new(Vec::new());
    let engine = rig.engine.clone();
    let progress = |_| seen.lock().unwrap().push(engine.counts().rewraps);
    let report = rig.meanwhile(rig.engine.rewrap_kek(&rig.kek, Default::default(), progress)).await.unwrap();
    assert_eq!(report.accounts, 3);
    let counts = rig.engine.counts();
    assert_eq!((counts.rewrapped, counts.rewraps.len()), (3, 0));
    let seen = seen.into_inner().unwrap();
    let of_this = |(kek, at): &(KekName, keyleash::rotate::RewrapProgress)| *kek == rig.kek && at.done <= at.accounts;
    assert!(seen.iter().flatten().all(of_this) && !seen.is_empty(), "{seen:?}");
}
