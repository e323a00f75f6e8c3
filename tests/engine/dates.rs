//! Dates that decide something are the store's, whatever the wall clocks of its engines say.

use crate::{Rig, SECOND, account_id, build, hand::HandStore, settle};
use keyleash::{
    Engine, Error,
    clock::{Clock, ManualClock},
    config::Settings,
    store::{Key, KeyStore, load_common, record::CommonRecord},
};
use std::{sync::Arc, time::Duration};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

fn overlap() -> Duration {
    Settings::default().aek_overlap()
}

fn quiet() -> Settings {
    Settings::default().scheduled_work(false)
}

/// On a machine of its own, whose wall clock is right, behind, ahead, or dead.
fn machines(rig: &Rig) -> [ManualClock; 4] {
    let right = Clock::Manual(rig.clock.clone()).wall_unix();
    let hour = HOUR.as_secs();
    [right, right - 2 * hour, right + 2 * hour, 0].map(|wall| rig.clock.elsewhere().with_wall(wall))
}

fn refused(outcome: Result<(), Error>, why: &str) {
    assert!(matches!(&outcome, Err(Error::Invalid(what)) if what.contains(why)), "{outcome:?}");
}

#[tokio::test]
async fn no_wall_clock_retires_a_version_under_which_another_engine_seals() {
    let rig = Rig::with(quiet()).await;
    for (rotates, rotator) in machines(&rig).iter().enumerate() {
        for (retires, retirer) in machines(&rig).iter().enumerate() {
            let id = account_id(&format!("a{rotates}{retires}"));
            rig.engine.create_account(&id, &rig.kek).await.unwrap();
            let seals = rig.engine.account(&id).await.unwrap();
            let rotator = build(&rig.token, &rig.store, rotator, quiet());
            assert_eq!(rotator.rotate_account(&id).await.unwrap(), 2);
            let retirer = build(&rig.token, &rig.store, retirer, quiet());
            refused(retirer.retire_aeks(&id, &[1], keyleash::When::Due).await, "another engine may still seal");
            let sealed = seals.seal_to_vec(1_u64, b"data").unwrap();
            assert_eq!(seals.aek_version(), 1);
            assert_eq!(seals.open_to_vec(1_u64, &sealed).unwrap(), b"data");
        }
    }
    // It does end, for whoever stayed.
    let [clock, ..] = machines(&rig);
    let stays = build(&rig.token, &rig.store, &clock, quiet());
    rig.pass_by(overlap() - MINUTE, 30 * SECOND).await;
    refused(stays.retire_aeks(&account_id("a00"), &[1], keyleash::When::Due).await, "another engine may still seal");
    rig.pass_by(10 * MINUTE, 30 * SECOND).await;
    stays.retire_aeks(&account_id("a00"), &[1], keyleash::When::Due).await.unwrap();
}

#[tokio::test]
async fn an_account_that_was_deleted_under_a_dead_clock_is_kept_as_long_as_any() {
    let rig = Rig::with(quiet()).await;
    let dead = rig.clock.elsewhere().with_wall(0);
    // A store of its own, that knows no other date: an earlier release began it.
    let store = Arc::new(keyleash::store::memory::MemoryStore::new());
    let begun = CommonRecord {
        date_unix: 0,
        boot: [0; 16],
        boottime_ns: 0,
        wall_unix: 0,
        aek_overlap_secs: 3600,
        purge_protection: false,
        is_governed: false,
    };
    store.create(&Key::Common, begun.put().unwrap()).await.unwrap();
    let first = build(&rig.token, &store, &dead, quiet());
    let kek = keyleash::name::KekName::new("dead").unwrap();
    first.create_kek(&kek, keyleash::token::Profile::AesGcm).await.unwrap();
    let id = account_id("a");
    first.create_account(&id, &kek).await.unwrap();
    first.delete_account(&id).await.unwrap();
    drop(first);
    let right = build(&rig.token, &store, &rig.clock.elsewhere(), quiet());
    refused(right.purge_account(&id, keyleash::When::Due).await, "is kept until");
    let retention = Settings::default().retention;
    rig.pass_by(retention - HOUR, HOUR).await;
    let other = build(&rig.token, &store, &rig.clock.elsewhere(), quiet());
    refused(other.purge_account(&id, keyleash::When::Due).await, "is kept until");
    rig.pass_by(2 * HOUR, 30 * SECOND).await;
    right.purge_account(&id, keyleash::When::Due).await.unwrap();
}

#[tokio::test]
async fn commands_of_one_boot_see_time_pass_between_them() {
    let rig = Rig::with(quiet()).await;
    let id = account_id("a");
    let command = |clock: &ManualClock| build(&rig.token, &rig.store, clock, quiet());
    command(&rig.clock).create_account(&id, &rig.kek).await.unwrap();
    command(&rig.clock).rotate_account(&id).await.unwrap();
    drop(rig.engine);
    settle().await;
    rig.clock.advance(overlap() - MINUTE);
    refused(command(&rig.clock).retire_aeks(&id, &[1], keyleash::When::Due).await, "another engine may still seal");
    rig.clock.advance(2 * MINUTE);
    refused(
        command(&rig.clock.elsewhere()).retire_aeks(&id, &[1], keyleash::When::Due).await,
        "another engine may still seal",
    );
    command(&rig.clock).retire_aeks(&id, &[1], keyleash::When::Due).await.unwrap();
}

#[tokio::test]
async fn a_command_with_defaults_waits_for_a_service_whose_keys_live_longer() {
    let rig = Rig::with(quiet()).await;
    let id = account_id("a");
    rig.account("a").await;
    let long = quiet().aek_ttl(30 * MINUTE);
    assert!(long.aek_overlap() > overlap() + 10 * MINUTE);
    let service = build(&rig.token, &rig.store, &rig.clock, long.clone());
    let seals = service.account(&id).await.unwrap();
    assert_eq!(load_common(&*rig.store).await.unwrap().unwrap().0.aek_overlap_secs, long.aek_overlap().as_secs());
    rig.engine.rotate_account(&id).await.unwrap();
    // Its token falls silent, and it goes on under what it has.
    rig.pass_by(overlap() + MINUTE, 30 * SECOND).await;
    drop((service, seals));
    let command = build(&rig.token, &rig.store, &rig.clock, quiet());
    refused(command.retire_aeks(&id, &[1], keyleash::When::Due).await, "another engine may still seal");
    assert_eq!(load_common(&*rig.store).await.unwrap().unwrap().0.aek_overlap_secs, long.aek_overlap().as_secs());
    rig.pass_by(long.aek_overlap() - overlap(), 30 * SECOND).await;
    command.retire_aeks(&id, &[1], keyleash::When::Due).await.unwrap();
}

/// Somebody puts the store back to what it was, under a service that goes on.
#[tokio::test]
async fn what_was_agreed_is_agreed_again_with_a_store_that_was_put_back() {
    let rig = Rig::with(quiet()).await;
    let id = account_id("a");
    rig.account("a").await;
    let (before, _) = load_common(&*rig.store).await.unwrap().unwrap();
    let long = quiet().aek_ttl(30 * MINUTE);
    let service = build(&rig.token, &rig.store, &rig.clock, long.clone());
    let seals = service.account(&id).await.unwrap();
    let (agreed, seen) = load_common(&*rig.store).await.unwrap().unwrap();
    assert!(before.aek_overlap_secs < agreed.aek_overlap_secs);
    rig.store.replace(&Key::Common, &seen, before.put().unwrap()).await.unwrap();
    rig.pass_by(3 * MINUTE, 10 * SECOND).await;
    assert_eq!(load_common(&*rig.store).await.unwrap().unwrap().0.aek_overlap_secs, long.aek_overlap().as_secs());
    drop((service, seals));
}

fn over(rig: &Rig, store: Arc<dyn KeyStore>, clock: &ManualClock) -> Engine {
    Engine::builder(rig.token.clone(), store)
        .on_current_runtime()
        .settings(quiet())
        .clock(Clock::Manual(clock.clone()))
        .start_up_proof(false)
        .build()
        .unwrap()
}

/// A paused machine, or a slow store: others hear of the version when it is written, and not when its writer thought to.
#[tokio::test]
async fn a_version_whose_write_was_held_up_is_not_dated_from_before_the_stores_last_date() {
    let rig = Rig::with(quiet()).await;
    let id = account_id("a");
    rig.account("a").await;
    let hand = HandStore::over(&rig.store);
    let paused = over(&rig, hand.clone(), &rig.clock.elsewhere());
    paused.account(&id).await.unwrap();
    hand.hold_account_writes();
    let rotating = tokio::spawn({
        let (paused, id) = (paused.clone(), id.clone());
        async move { paused.rotate_account(&id).await }
    });
    settle().await;
    assert_eq!(hand.held(), 1);
    // The others seal, under what the store says.
    let seals = rig.engine.account(&id).await.unwrap();
    rig.pass_by(9 * MINUTE + 30 * SECOND, 10 * SECOND).await;
    hand.let_go();
    settle().await;
    let current = rotating.await.unwrap().unwrap();
    assert_eq!(current, 2);
    let sealed = seals.seal_to_vec(1_u64, b"data").unwrap();
    let record = rig.engine.account_record(&id).await.unwrap();
    let date = load_common(&*rig.store).await.unwrap().unwrap().0.date_unix;
    let heir = record.version(2).unwrap().created_unix;
    assert!(heir >= date, "it is dated {heir}, at {date}");
    assert_eq!(rig.engine.account(&id).await.unwrap().open_to_vec(1_u64, &sealed).unwrap(), b"data");
}
