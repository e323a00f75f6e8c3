//! Rotation, re-wrap, retirement and purge against others who do the same: on one store, at the same time, or just before.

use crate::{Rig, SECOND, account_id, build, hand::held_up, open, opens, settle};
use keyleash::{
    Account, Engine, Error,
    block::BlockHeader,
    config::Settings,
    name::{AccountId, KekVersion},
    rotate::{RewrapOptions, RewrapReport},
    store::{Key, KeyStore, record::KekRecord},
    token::{KekSpec, Profile, Token, scripted::Call},
};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::task::JoinHandle;

const FAST: RewrapOptions = RewrapOptions::new().rate(1_000_000);

fn seal(account: &Account) -> Result<Vec<u8>, Error> {
    account.seal_to_vec(1_u64, b"data")
}

fn other(rig: &Rig, settings: Settings) -> Engine {
    build(&rig.token, &rig.store, &rig.clock, settings)
}

fn version(rig: &Rig, version: u32) -> KekVersion {
    KekVersion::new(rig.kek.clone(), version)
}

fn rotating(engine: &Engine, id: &AccountId) -> JoinHandle<Result<u32, Error>> {
    let (engine, id) = (engine.clone(), id.clone());
    tokio::spawn(async move { engine.rotate_account(&id).await })
}

async fn wrapped_by(rig: &Rig, version: u32) -> u64 {
    rig.engine.count_wrapped_by(&KekVersion::new(rig.kek.clone(), version)).await.unwrap()
}

async fn rewrap(rig: &Rig, engine: &Engine) -> RewrapReport {
    rig.meanwhile(engine.rewrap_kek(&rig.kek, FAST, |_| {})).await.unwrap()
}

#[tokio::test]
async fn a_rewrap_that_was_overtaken_by_a_rotation_moves_nothing_back() {
    let rig = Rig::new().await;
    rig.account("a").await;
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    rig.script.set_latency(3 * SECOND);
    let overtaken = tokio::spawn({
        let (engine, kek) = (rig.engine.clone(), rig.kek.clone());
        async move { engine.rewrap_kek(&kek, FAST, |_| {}).await }
    });
    rig.pass(7 * SECOND).await; // its third call is under way
    rig.script.set_latency(Duration::ZERO);
    let there = other(&rig, Settings::default());
    rig.meanwhile(there.rotate_kek(&rig.kek)).await.unwrap();
    rewrap(&rig, &there).await;
    rig.meanwhile(there.retire_kek(&version(&rig, 2))).await.unwrap();
    assert!(!overtaken.is_finished());
    rig.script.set_latency(SECOND);
    while !overtaken.is_finished() {
        rig.pass(SECOND / 4).await;
        assert_eq!(wrapped_by(&rig, 2).await, 0, "back under a version that was retired, whose key may be gone");
    }
    assert_eq!(overtaken.await.unwrap().unwrap().stopped, None);
    assert_eq!(wrapped_by(&rig, 3).await, 1);
}

#[tokio::test]
async fn a_kek_version_that_is_lost_does_not_keep_the_accounts_of_others_from_being_rewrapped() {
    let rig = Rig::new().await;
    rig.account("lost").await;
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    for index in 0..20 {
        rig.account(&format!("a{index}")).await;
    }
    rig.script.destroy(&rig.kek_id);
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    let report = rewrap(&rig, &rig.engine).await;
    assert!(matches!(report.stopped, Some(Error::Denied(_))), "{:?}", report.stopped);
    assert_eq!((report.accounts, report.failed), (20, 0));
    assert_eq!((wrapped_by(&rig, 1).await, wrapped_by(&rig, 2).await, wrapped_by(&rig, 3).await), (1, 0, 20));
}

#[tokio::test]
async fn an_account_that_a_lost_kek_version_wraps_too_keeps_nobody_else_from_being_rewrapped() {
    // The old one is lost, then the newer one.
    for lost in [1, 2] {
        let rig = Rig::new().await;
        rig.account("a-both").await;
        rig.account("b-old").await;
        let second = rig.engine.rotate_kek(&rig.kek).await.unwrap();
        rig.engine.rotate_account(&account_id("a-both")).await.unwrap();
        for index in 0..20 {
            rig.account(&format!("c{index}")).await;
        }
        rig.script.destroy(if lost == 1 { &rig.kek_id } else { &second.id });
        rig.engine.rotate_kek(&rig.kek).await.unwrap();
        let report = rewrap(&rig, &rig.engine).await;
        assert!(matches!(report.stopped, Some(Error::Denied(_))), "{:?}", report.stopped);
        let left = (wrapped_by(&rig, 1).await, wrapped_by(&rig, 2).await, wrapped_by(&rig, 3).await);
        let expected = if lost == 1 { (2, 0, 21) } else { (0, 21, 2) };
        assert_eq!((left, report.accounts, report.failed), (expected, expected.2, 0), "KEK version {lost} is lost");
    }
}

#[tokio::test]
async fn two_that_rotate_a_kek_at_once_and_make_one_key_are_both_told_so() {
    let rig = Rig::new().await;
    let there = other(&rig, Settings::default());
    rig.script.set_latency(SECOND);
    let both = async { tokio::join!(rig.engine.rotate_kek(&rig.kek), there.rotate_kek(&rig.kek)) };
    let mut made = Vec::new();
    let (one, two) = rig.meanwhile(both).await;
    rig.script.set_latency(Duration::ZERO);
    let record = rig.engine.kek(&rig.kek).await.unwrap();
    let named: Vec<_> = record.versions.iter().map(|version| version.record.id.clone()).collect();
    for outcome in [one, two] {
        match outcome {
            Ok(version) => made.push(version.id),
            // Whoever reads that no KEK names a key will delete it.
            Err(error @ Error::Conflict(_)) => {
                assert!(!named.iter().any(|id| error.to_string().contains(&id.to_string())), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(!made.is_empty() && made.iter().all(|id| named.contains(id)), "{made:?} of {named:?}");

    // The slower one finds the key of the faster one, which is not in the store yet, and takes it for one that a crash left.
    let key = Key::Kek(rig.kek.clone());
    let spec = KekSpec { label: rig.label(3).await, profile: Profile::AesGcm, destroyable: false };
    let id = rig.token.create_kek(&spec).await.unwrap().id;
    rig.script.set_latency(SECOND);
    let slower = tokio::spawn({
        let (there, kek) = (there.clone(), rig.kek.clone());
        async move { there.rotate_kek(&kek).await }
    });
    settle().await;
    let found = rig.store.get(&key).await.unwrap().unwrap();
    let mut record = KekRecord::decode(&key, &found.value).unwrap();
    let mut third = record.versions.last().unwrap().clone();
    (third.version, third.id) = (3, id.clone());
    record.versions.push(third);
    record.current = 3;
    rig.store.replace(&key, &found.version, record.put().unwrap()).await.unwrap();
    let version = rig.meanwhile(slower).await.unwrap().unwrap();
    assert_eq!((version.version, version.id), (3, id));
}

#[tokio::test]
async fn a_key_that_was_adopted_is_not_taken_for_one_that_a_crash_left() {
    let rig = Rig::new().await;
    let spec = KekSpec { label: rig.label(3).await, profile: Profile::AesGcm, destroyable: false };
    let id = rig.token.create_kek(&spec).await.unwrap().id;
    assert_eq!(rig.engine.adopt_kek(&rig.kek, &id).await.unwrap().version, 2);
    let third = rig.engine.rotate_kek(&rig.kek).await.unwrap();
    assert_eq!(third.version, 3);
    assert_ne!(third.id, id);
}

#[tokio::test]
async fn an_aek_version_is_not_retired_while_another_engine_may_seal_under_it() {
    let rig = Rig::new().await;
    let id = account_id("a");
    rig.account("a").await;
    let there = other(&rig, Settings::default()).account(&id).await.unwrap();
    seal(&there).unwrap();
    rig.pass(20 * SECOND).await;
    rig.engine.rotate_account(&id).await.unwrap();
    // The other engine hears of nothing: its token is silent, and its lease runs.
    rig.script.set_unreachable(true);
    let mut blocks = Vec::new();
    for _ in 0..3600 {
        rig.pass_by(SECOND, SECOND).await;
        let retired = rig.engine.retire_aeks(&id, &[1], keyleash::When::Due).await;
        match seal(&there) {
            Ok(block) => {
                assert!(
                    matches!(&retired, Err(Error::Invalid(what)) if what.contains("may still seal")),
                    "{retired:?}"
                );
                blocks.push(block);
            }
            Err(_) if retired.is_ok() => return assert!(blocks.len() > 20 * 60, "{}", blocks.len()),
            Err(_) => {}
        }
    }
    panic!("never retired");
}

#[tokio::test]
async fn an_aek_version_is_as_old_as_its_record_and_not_as_its_first_token_call() {
    let rig = Rig::new().await;
    let id = account_id("a");
    rig.account("a").await;
    rig.script.set_latency(4 * SECOND);
    rig.meanwhile(rig.engine.rotate_account(&id)).await.unwrap();
    let record = rig.engine.account_record(&id).await.unwrap();
    let [first, second] = &record.versions[..] else { panic!("{record:?}") };
    // It was wrapped in four seconds and unwrapped in four.
    assert!(second.created_unix >= first.created_unix + 8, "{record:?}");
}

#[tokio::test]
async fn an_account_that_is_made_anew_under_live_handles_of_the_old_one_seals_under_its_own_aek() {
    let settings = Settings::default().purge_protection(false);
    let rig = Rig::with(settings.clone()).await;
    let id = account_id("a");
    let old = rig.account("a").await;
    let elsewhere = other(&rig, settings);
    let old_there = elsewhere.account(&id).await.unwrap();
    for _ in 0..2 {
        rig.engine.rotate_account(&id).await.unwrap();
    }
    old_there.warm_for(&keyleash::block::BlockHeader::split(&seal(&old).unwrap()).unwrap().0).await.unwrap();
    assert_eq!(old_there.aek_version(), 3);
    rig.engine.delete_account(&id).await.unwrap();
    rig.engine.purge_account(&id, keyleash::When::Now).await.unwrap();

    // Where the old keys are still in memory.
    let anew = elsewhere.create_account(&id, &rig.kek).await.unwrap();
    assert_eq!(anew.aek_version(), 1);
    let block = seal(&anew).unwrap();
    let here = rig.engine.account(&id).await.unwrap();
    assert_eq!(here.open_to_vec(1_u64, &block).unwrap(), b"data");
    for stale in [&old, &old_there] {
        assert!(seal(stale).is_err());
        assert!(matches!(stale.warm().await, Err(Error::NotFound(_))), "it is another account");
    }
    for _ in 0..700 {
        rig.pass(SECOND).await;
        seal(&anew).unwrap();
        seal(&here).unwrap();
    }
}

#[tokio::test]
async fn a_handle_of_a_purged_account_does_not_turn_into_one_of_the_account_that_was_made_anew() {
    let settings = Settings::default().purge_protection(false);
    let rig = Rig::with(settings.clone()).await;
    let id = account_id("a");
    rig.account("a").await;
    let elsewhere = other(&rig, settings);
    let stale = elsewhere.account(&id).await.unwrap();
    rig.pass(2 * SECOND).await;
    rig.engine.delete_account(&id).await.unwrap();
    rig.engine.purge_account(&id, keyleash::When::Now).await.unwrap();
    rig.account("a").await; // of the same AEK version
    rig.pass(25 * 60 * SECOND).await;
    assert!(matches!(stale.warm().await, Err(Error::NotFound(what)) if what.contains("made anew")));
    assert!(seal(&stale).is_err());
    seal(&elsewhere.account(&id).await.unwrap()).unwrap();
}

#[tokio::test]
async fn an_engine_that_did_not_see_the_purge_opens_the_account_that_was_made_anew() {
    let settings = Settings::default().purge_protection(false);
    let rig = Rig::with(settings.clone()).await;
    let id = account_id("a");
    rig.account("a").await;
    rig.engine.rotate_account(&id).await.unwrap();
    let elsewhere = other(&rig, settings);
    let stale = elsewhere.account(&id).await.unwrap();
    rig.engine.delete_account(&id).await.unwrap();
    rig.engine.purge_account(&id, keyleash::When::Now).await.unwrap();
    let anew = rig.account("a").await;
    let block = seal(&anew).unwrap();
    rig.pass(25 * 60 * SECOND).await; // idle: its key is wiped
    assert!(matches!(stale.warm().await, Err(Error::NotFound(_))));
    let there = elsewhere.account(&id).await.unwrap();
    assert_eq!(there.open_to_vec(1_u64, &block).unwrap(), b"data");
}

#[tokio::test]
async fn a_rotation_that_a_purge_overtook_gives_its_aek_to_no_account_that_was_made_anew() {
    let settings = Settings::default().purge_protection(false);
    let rig = Rig::with(settings).await;
    let id = account_id("a");
    let (engine, hand) = held_up(&rig);
    let old = engine.create_account(&id, &rig.kek).await.unwrap();
    rig.script.set_latency(SECOND);
    let rotation = rotating(&engine, &id);
    settle().await; // it is in the token
    hand.hold_reads(|key| matches!(key, Key::Kek(_)));
    rig.pass(5 * SECOND).await;
    assert_eq!(
        engine.account_record(&id).await.unwrap().versions.len(),
        2,
        "it is in the store, and not yet in memory"
    );
    rig.script.set_latency(Duration::ZERO);
    engine.delete_account(&id).await.unwrap();
    engine.purge_account(&id, keyleash::When::Now).await.unwrap();
    rig.engine.create_account(&id, &rig.kek).await.unwrap();
    let anew = engine.account(&id).await.unwrap();
    hand.let_go();
    let _ = rig.meanwhile(rotation).await.unwrap();
    let block = seal(&anew).unwrap();
    let elsewhere = rig.engine.account(&id).await.unwrap();
    assert_eq!(elsewhere.open_to_vec(1_u64, &block).unwrap(), b"data", "sealed under an AEK that nobody has stored");
    assert!(seal(&old).is_err());
}

#[tokio::test]
async fn whoever_comes_too_late_to_make_an_account_takes_nothing_from_whoever_made_it() {
    let rig = Rig::new().await;
    let id = account_id("a");
    let (engine, hand) = held_up(&rig);
    hand.hold_answers(|key| matches!(key, Key::Account(_)));
    let late = tokio::spawn({
        let (engine, id, kek) = (engine.clone(), id.clone(), rig.kek.clone());
        async move { engine.create_account(&id, &kek).await }
    });
    settle().await; // it has read that there is none
    hand.hold_answers(|_| false);
    let made = engine.create_account(&id, &rig.kek).await.unwrap();
    let block = seal(&made).unwrap();
    hand.let_go();
    assert!(matches!(rig.meanwhile(late).await.unwrap(), Err(Error::Exists(_))));
    assert_eq!(made.open_to_vec(1_u64, &block).unwrap(), b"data");
    made.warm().await.unwrap();
}

#[tokio::test]
async fn a_purge_takes_nothing_from_an_account_that_was_made_anew_before_it_came_back() {
    let rig = Rig::new().await;
    let id = account_id("a");
    let (engine, hand) = held_up(&rig);
    let old = engine.create_account(&id, &rig.kek).await.unwrap();
    engine.delete_account(&id).await.unwrap();
    hand.hold_done_deletes();
    let purge = tokio::spawn({
        let (engine, id) = (engine.clone(), id.clone());
        async move { engine.purge_account(&id, keyleash::When::Now).await }
    });
    settle().await; // done in the store, and not yet here
    let anew = engine.create_account(&id, &rig.kek).await.unwrap();
    hand.let_go();
    rig.meanwhile(purge).await.unwrap().unwrap();
    seal(&anew).unwrap();
    anew.warm().await.unwrap();
    assert!(seal(&old).is_err());
}

#[tokio::test]
async fn whoever_was_about_to_open_a_purged_account_takes_nothing_from_the_one_that_is_made_anew() {
    let rig = Rig::with(Settings::default().purge_protection(false)).await;
    let id = account_id("a");
    let (engine, hand) = held_up(&rig);
    rig.account("a").await;
    rig.pass(2 * SECOND).await;
    let is_account = |key: &Key| matches!(key, Key::Account(_));
    hand.hold_answers(is_account);
    let opening = open(&engine, "a");
    settle().await; // it has read the record
    hand.hold_answers(|_| false);
    rig.engine.delete_account(&id).await.unwrap();
    rig.engine.purge_account(&id, keyleash::When::Now).await.unwrap();
    rig.script.set_latency(SECOND);
    let making = tokio::spawn({
        let (engine, id, kek) = (engine.clone(), id.clone(), rig.kek.clone());
        async move { engine.create_account(&id, &kek).await }
    });
    settle().await; // it is in the token
    hand.hold_reads(is_account); // the opening goes on, and looks into the store once more
    let made = rig.meanwhile(making).await.unwrap().unwrap();
    seal(&made).unwrap();
    hand.let_go();
    let _ = rig.meanwhile(opening).await.unwrap();
    seal(&made).unwrap();
    made.warm().await.unwrap();
}

#[tokio::test]
async fn no_proof_is_had_with_the_aek_of_a_purged_account() {
    let settings = Settings::default().purge_protection(false);
    let rig = Rig::with(settings).await;
    let id = account_id("a");
    let held = rig.account("a").await;
    rig.pass(40 * SECOND).await;
    rig.engine.delete_account(&id).await.unwrap();
    rig.engine.purge_account(&id, keyleash::When::Now).await.unwrap();
    let calls = rig.script.calls(Call::Unwrap);
    rig.pass(120 * SECOND).await;
    assert_eq!(rig.script.calls(Call::Unwrap), calls, "its wrapped AEK is still unwrapped");
    drop(held);
}

#[tokio::test]
async fn an_account_that_another_engine_deleted_is_not_rotated() {
    let rig = Rig::new().await;
    let id = account_id("a");
    let account = rig.account("a").await;
    let there = other(&rig, Settings::default());
    rig.script.set_latency(2 * SECOND);
    let rotation = rotating(&rig.engine, &id);
    rig.pass(SECOND).await;
    there.delete_account(&id).await.unwrap();
    let outcome = rig.meanwhile(rotation).await.unwrap();
    assert!(matches!(outcome, Err(Error::NotFound(_))), "{outcome:?}");
    assert_eq!(account.aek_version(), 1);
    assert_eq!(rig.engine.account_record(&id).await.unwrap().versions.len(), 1);
}

/// Calls `form` on a sealed block while a lapse comes in the midst of it, sooner and later: refused, it leaves the block as it
/// was, which opens once the token has granted again.
fn cut_short_by_a_lapse(form: impl Fn(&Account, &BlockHeader, &mut [u8]) -> keyleash::Result<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let rig = Rig::new().await;
        let account = rig.account("a").await;
        // Long enough for the clock to be moved on in the midst of it, with either back end.
        let len = if cfg!(feature = "aws-lc") { 16 << 20 } else { 1 << 20 };
        let mut buf: Vec<u8> = (0..len).map(|index: u32| index.to_le_bytes()[1]).collect();
        let plaintext = buf.clone();
        let header = account.seal_in_place(1_u64, &mut buf).unwrap();
        let sealed = buf.clone();
        rig.engine.rotate_account(&account_id("a")).await.unwrap();
        for delay_us in (0..40).map(|step| step * 500) {
            rig.pass(30 * SECOND).await;
            account.warm().await.unwrap();
            account.warm_for(&header).await.unwrap();
            let begun = AtomicBool::new(false);
            let outcome = std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !begun.load(Ordering::SeqCst) {
                        std::hint::spin_loop();
                    }
                    std::thread::sleep(Duration::from_micros(delay_us));
                    rig.clock.advance(31 * 60 * SECOND);
                });
                begun.store(true, Ordering::SeqCst);
                form(&account, &header, &mut buf)
            });
            match outcome {
                Ok(()) => buf.copy_from_slice(&sealed),
                Err(Error::Lapsed(_)) => assert!(buf == sealed, "after {delay_us} µs the block is neither old nor new"),
                Err(error) => panic!("{error}"),
            }
        }
        rig.pass(30 * SECOND).await;
        account.warm_for(&header).await.unwrap();
        account.open_in_place(1_u64, &header, &mut buf).unwrap();
        assert!(buf == plaintext);
    });
}

#[test]
fn a_reseal_that_a_lapse_cuts_short_leaves_the_block_as_it_was() {
    cut_short_by_a_lapse(|account, header, buf| account.reseal_in_place(1_u64, header, buf).map(drop));
}

#[test]
fn an_open_in_place_that_a_lapse_cuts_short_leaves_the_block_as_it_was() {
    cut_short_by_a_lapse(|account, header, buf| account.open_in_place(1_u64, header, buf));
}

#[tokio::test]
async fn an_account_that_is_made_anew_while_the_old_one_is_opened_can_be_opened() {
    let rig = Rig::new().await;
    let id = account_id("a");
    drop(rig.account("a").await);
    rig.pass(2 * SECOND).await;
    let (engine, _) = held_up(&rig);
    rig.script.set_latency(2 * SECOND);
    let opening = open(&engine, "a");
    settle().await; // it is in the token
    rig.script.set_latency(Duration::ZERO);
    engine.delete_account(&id).await.unwrap();
    engine.purge_account(&id, keyleash::When::Now).await.unwrap();
    drop(engine.create_account(&id, &rig.kek).await.unwrap());
    drop(rig.meanwhile(opening).await.unwrap());
    let opened = engine.account(&id).await.unwrap();
    let block = seal(&opened).unwrap();
    let elsewhere = other(&rig, Settings::default()).account(&id).await.unwrap();
    assert_eq!(elsewhere.open_to_vec(1_u64, &block).unwrap(), b"data");
}

#[tokio::test]
async fn a_rotation_of_what_was_made_anew_meanwhile_is_heard_of_by_its_handles() {
    let rig = Rig::new().await;
    let id = account_id("a");
    let (engine, _) = held_up(&rig);
    let old = engine.create_account(&id, &rig.kek).await.unwrap();
    rig.script.set_latency(SECOND);
    let rotation = rotating(&engine, &id);
    settle().await; // it is in the token
    rig.script.set_latency(Duration::ZERO);
    engine.delete_account(&id).await.unwrap();
    engine.purge_account(&id, keyleash::When::Now).await.unwrap();
    let anew = engine.create_account(&id, &rig.kek).await.unwrap();
    assert_eq!(rig.meanwhile(rotation).await.unwrap().unwrap(), 2);
    assert_eq!(anew.aek_version(), 2);
    seal(&anew).unwrap();
    assert!(seal(&old).is_err());
}

#[tokio::test]
async fn a_rotation_over_one_that_was_not_heard_of_loses_no_aek_version_between() {
    let rig = Rig::new().await;
    let id = account_id("a");
    let here = rig.account("a").await;
    let there = other(&rig, Settings::default().scheduled_work(false));
    let held = there.account(&id).await.unwrap();
    rig.engine.rotate_account(&id).await.unwrap();
    let block = seal(&here).unwrap();
    assert_eq!(there.rotate_account(&id).await.unwrap(), 3);
    opens(&rig, &held, &block).await;
}

#[tokio::test]
async fn a_damaged_aek_version_hides_none_between_it_and_the_newest() {
    let rig = Rig::new().await;
    let id = account_id("a");
    let here = rig.account("a").await;
    let there = other(&rig, Settings::default().scheduled_work(false));
    let held = there.account(&id).await.unwrap();
    rig.pass(700 * SECOND).await; // idle, and wiped
    let mut blocks = Vec::new();
    for _ in 0..3 {
        rig.engine.rotate_account(&id).await.unwrap();
        blocks.push(seal(&here).unwrap());
    }
    rig.flip_check("a", 2).await;
    rig.meanwhile(held.warm()).await.unwrap();
    assert_eq!(held.aek_version(), 4);
    opens(&rig, &held, &blocks[1]).await;
    rig.flip_check("a", 2).await;
    for block in &blocks {
        opens(&rig, &held, block).await;
    }
}

#[tokio::test]
async fn an_aek_version_that_was_heard_of_in_a_denial_is_brought_back_after_it() {
    let rig = Rig::new().await;
    let id = account_id("a");
    drop(rig.account("a").await);
    let there = other(&rig, Settings::default().scheduled_work(false));
    let held = there.account(&id).await.unwrap();
    seal(&held).unwrap();
    rig.engine.rotate_account(&id).await.unwrap();
    rig.script.disable(&rig.kek_id);
    rig.pass(40 * SECOND).await;
    assert!(matches!(seal(&held), Err(Error::Denied(_))));
    rig.script.enable(&rig.kek_id);
    rig.pass(30 * SECOND).await;
    assert_eq!(held.aek_version(), 2);
    seal(&held).unwrap();
}
