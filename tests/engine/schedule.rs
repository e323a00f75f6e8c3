//! Rotation by schedule: policies, one engine at a time, crashes, races, and keys that come and go in the token.

use crate::{Rig, SECOND, account_id, build, hand::HandStore, settle, usage::pretend};
use keyleash::{
    Account, Engine, Error,
    block::AEK_BLOCKS_MAX,
    clock::Clock,
    config::Settings,
    name::{KekVersion, TokenName},
    rotate::{Due, PASS_EVERY},
    store::{
        Key, KeyStore, Put, load_work,
        record::{AccountRecord, AekPolicy, KekPolicy, Usage},
    },
    telemetry::{Event, Events},
    token::{
        KekSpec, Profile, Token,
        scripted::{Act, Call},
    },
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MINUTE: Duration = Duration::from_secs(60);

fn days(days: u64) -> AekPolicy {
    AekPolicy { max_age_secs: days * DAY.as_secs(), ..AekPolicy::default() }
}

fn seal(account: &Account, blocks: u64) {
    for block in 0..blocks {
        account.seal_to_vec(block, b"ten  bytes").unwrap();
    }
}

async fn versions(engine: &Engine, id: &str) -> usize {
    engine.account_record(&account_id(id)).await.unwrap().versions.len()
}

async fn fence(rig: &Rig) -> u64 {
    load_work(&*rig.store).await.unwrap().map_or(0, |(record, _)| record.fence)
}

fn told(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.try_next()).filter(|event| !matches!(event, Event::Lease { .. })).collect()
}

/// Without the engine's own task: what is due is done by `run_schedule` alone.
fn by_hand(rig: &Rig) -> Engine {
    build(&rig.token, &rig.store, &rig.clock, Settings::default().scheduled_work(false))
}

fn service(rig: &Rig, store: Arc<dyn KeyStore>) -> Engine {
    Engine::builder(rig.token.clone(), store)
        .on_current_runtime()
        .clock(Clock::Manual(rig.clock.clone()))
        .jitter_seed(2)
        .start_up_proof(false)
        .build()
        .unwrap()
}

#[tokio::test]
async fn what_is_due_by_blocks_or_bytes_of_several_engines_is_rotated_at_once_and_told() {
    let rig = Rig::new().await;
    let mut events = rig.engine.events();
    for (id, policy) in [
        ("blocks", AekPolicy { max_blocks: 10, ..AekPolicy::default() }),
        ("bytes", AekPolicy { max_bytes: 100, ..AekPolicy::default() }),
    ] {
        rig.account(id).await;
        rig.engine.set_aek_policy(&account_id(id), policy).await.unwrap();
        let there = by_hand(&rig);
        let there_account = there.account(&account_id(id)).await.unwrap();
        // Opened anew, so that the handle knows the policy.
        let again = by_hand(&rig);
        let here = again.account(&account_id(id)).await.unwrap();
        seal(&here, 5);
        seal(&there_account, 4);
        rig.meanwhile(async { (again.write_usage().await.unwrap(), there.write_usage().await.unwrap()) }).await;
        rig.pass(PASS_EVERY).await;
        assert_eq!(versions(&rig.engine, id).await, 1);
        rig.meanwhile(here.warm()).await.unwrap();
        seal(&here, 1);
        again.write_usage().await.unwrap();
        rig.pass(PASS_EVERY).await;
        assert_eq!(versions(&rig.engine, id).await, 2);
        rig.pass(2 * PASS_EVERY).await;
        assert_eq!(versions(&rig.engine, id).await, 2, "its count begins anew");
    }
    let rotated = |account: &str, why| Event::AekRotated { account: account.into(), aek_version: 2, why };
    assert_eq!(told(&mut events), [rotated("blocks", Due::Blocks), rotated("bytes", Due::Bytes)]);
}

#[tokio::test]
async fn a_limit_that_is_reached_where_the_work_is_done_does_not_wait_for_the_next_pass() {
    let mut rig = Rig::new().await;
    rig.account("a").await;
    rig.engine.set_aek_policy(&account_id("a"), AekPolicy { max_blocks: 10, ..AekPolicy::default() }).await.unwrap();
    rig.restart();
    rig.pass_by(3 * MINUTE, SECOND).await; // it has the work, and has passed over the store
    let account = rig.engine.account(&account_id("a")).await.unwrap();
    seal(&account, 10);
    rig.pass_by(MINUTE, SECOND).await;
    assert_eq!(account.aek_version(), 2);
}

#[tokio::test]
async fn a_schedule_that_was_missed_while_nobody_ran_is_caught_up_once() {
    let mut rig = Rig::new().await;
    rig.account("a").await;
    rig.engine.set_aek_policy(&account_id("a"), days(30)).await.unwrap();
    rig.pass_by(29 * DAY, 6 * 60 * MINUTE).await;
    assert_eq!(versions(&rig.engine, "a").await, 1, "not before its time");
    rig.engine = by_hand(&rig);
    settle().await;
    rig.clock.advance(100 * DAY);
    rig.restart();
    rig.pass_by(2 * DAY, 10 * MINUTE).await;
    assert_eq!(versions(&rig.engine, "a").await, 2);
    rig.pass_by(27 * DAY, 6 * 60 * MINUTE).await;
    assert_eq!(versions(&rig.engine, "a").await, 2);
    rig.pass_by(2 * DAY, 6 * 60 * MINUTE).await;
    assert_eq!(versions(&rig.engine, "a").await, 3);
}

#[tokio::test]
async fn half_of_what_the_suite_allows_rotates_without_a_policy() {
    let rig = Rig::new().await;
    rig.account("a").await;
    rig.account("b").await;
    pretend(&rig, "a", Usage { blocks: AEK_BLOCKS_MAX / 2, bytes: 0 }).await;
    rig.pass_by(MINUTE, SECOND).await;
    assert_eq!((versions(&rig.engine, "a").await, versions(&rig.engine, "b").await), (2, 1));
}

#[tokio::test]
async fn of_several_engines_one_works_and_one_that_crashes_is_replaced() {
    let mut rig = Rig::new().await;
    rig.account("a").await;
    rig.engine.set_aek_policy(&account_id("a"), days(1)).await.unwrap();
    rig.pass_by(MINUTE, SECOND).await;
    let second = service(&rig, rig.store.clone());
    rig.pass_by(2 * DAY, MINUTE / 6).await;
    assert_eq!((versions(&rig.engine, "a").await, fence(&rig).await), (3, 1), "the first kept the work");
    rig.engine = by_hand(&rig); // the first ends without a word
    rig.pass_by(3 * MINUTE, SECOND).await;
    assert_eq!(fence(&rig).await, 2);
    rig.pass_by(DAY, MINUTE / 6).await;
    assert_eq!(versions(&rig.engine, "a").await, 4);
    drop(second);
}

#[tokio::test]
async fn a_holder_that_hung_is_replaced_and_its_write_that_comes_late_is_refused() {
    let mut rig = Rig::new().await;
    rig.account("a").await;
    rig.engine = by_hand(&rig);
    let hand = HandStore::over(&rig.store);
    let stale = service(&rig, hand.clone());
    rig.pass_by(MINUTE, SECOND).await; // it has the work
    assert_eq!(fence(&rig).await, 1);
    rig.engine.set_aek_policy(&account_id("a"), days(1)).await.unwrap();
    // It is in the token, on the way to its write, when the store stops answering it.
    rig.script.standing(Call::Wrap, Act::Delay(3 * SECOND));
    rig.clock.advance(DAY);
    for _ in 0..2000 {
        if rig.script.in_flight() > 0 {
            break;
        }
        rig.pass_by(SECOND, SECOND).await;
    }
    assert!(rig.script.in_flight() > 0, "it never began");
    hand.hold_reads(|_| true);
    hand.hold_writes();
    rig.pass_by(10 * SECOND, SECOND).await;
    rig.script.standing(Call::Wrap, Act::Serve);
    let heir = service(&rig, rig.store.clone());
    rig.pass_by(3 * MINUTE, SECOND).await;
    assert_eq!((versions(&rig.engine, "a").await, fence(&rig).await), (2, 2), "the heir did the work");
    hand.let_go();
    rig.pass_by(3 * MINUTE, SECOND).await;
    assert_eq!((versions(&rig.engine, "a").await, fence(&rig).await), (2, 2), "the stale one changed something");
    drop((stale, heir));
}

#[tokio::test]
async fn two_that_think_one_version_due_at_once_rotate_it_once() {
    let rig = Rig::new().await;
    rig.account("a").await;
    let there = by_hand(&rig);
    rig.script.set_latency(SECOND); // both have read the record before either writes
    let id = account_id("a");
    let both = async { tokio::join!(rig.engine.rotate_account_from(&id, 1), there.rotate_account_from(&id, 1)) };
    let (one, two) = rig.meanwhile(both).await;
    let mut outcomes = [one.unwrap(), two.unwrap()];
    outcomes.sort();
    assert_eq!(outcomes, [None, Some(2)]);
    assert_eq!(versions(&rig.engine, "a").await, 2);
    assert_eq!(rig.meanwhile(rig.engine.rotate_account_from(&id, 1)).await.unwrap(), None);

    let both = async { tokio::join!(rig.engine.rotate_kek_from(&rig.kek, 1), there.rotate_kek_from(&rig.kek, 1)) };
    let (one, two) = rig.meanwhile(both).await;
    let made = [one.unwrap(), two.unwrap()].into_iter().flatten().map(|made| made.version);
    assert_eq!(made.collect::<Vec<_>>(), [2]);
    assert_eq!(rig.meanwhile(rig.engine.kek(&rig.kek)).await.unwrap().versions.len(), 2);
}

#[tokio::test]
async fn a_kek_is_rotated_and_re_wrapped_by_schedule_and_the_next_holder_goes_on_where_a_crash_stopped() {
    let rig = Rig::with(Settings::default().scheduled_work(false).resume_rate(10)).await;
    for index in 0..60 {
        rig.account(&format!("a{index:02}")).await;
    }
    let policy = KekPolicy { max_age_secs: DAY.as_secs() };
    rig.engine.set_kek_policy(&rig.kek, policy).await.unwrap();
    let slow = Settings::default().resume_rate(10);
    let first = build(&rig.token, &rig.store, &rig.clock, slow);
    rig.clock.advance(DAY);
    let left = async || rig.engine.count_wrapped_by(&KekVersion::new(rig.kek.clone(), 1)).await.unwrap();
    for _ in 0..300 {
        if left().await < 50 {
            break;
        }
        rig.pass(SECOND).await;
    }
    let then = left().await;
    assert!((1..50).contains(&then), "{then}");
    drop(first); // in the midst of it
    rig.pass_by(2 * SECOND, SECOND).await;
    let then = left().await;
    rig.pass_by(MINUTE, SECOND).await;
    assert_eq!(left().await, then, "a crash ends its work");
    let second = service(&rig, rig.store.clone());
    let mut events = second.events();
    rig.pass(3 * MINUTE).await;
    assert_eq!((left().await, fence(&rig).await), (0, 2));
    assert_eq!(rig.engine.kek(&rig.kek).await.unwrap().versions.len(), 2, "it was not rotated again");
    let to = KekVersion::new(rig.kek.clone(), 2);
    assert_eq!(told(&mut events), [Event::Rewrapped { kek: to, accounts: then, failed: 0 }]);
}

#[tokio::test]
async fn what_fails_is_told_once_and_left_as_it_is_and_others_are_done() {
    let rig = Rig::new().await;
    let mut events = rig.engine.events();
    for id in ["a", "b", "full"] {
        rig.account(id).await;
        rig.engine.set_aek_policy(&account_id(id), days(1)).await.unwrap();
    }
    let key = Key::Account(account_id("a"));
    let found = rig.store.get(&key).await.unwrap().unwrap();
    let put = Put { value: b"?".to_vec(), wrapped_by: Vec::new(), guards: Vec::new() };
    rig.store.replace(&key, &found.version, put).await.unwrap();
    let key = Key::Account(account_id("full"));
    let found = rig.store.get(&key).await.unwrap().unwrap();
    let mut record = AccountRecord::decode(&key, &found.value).unwrap();
    let first = record.versions[0].clone();
    record.versions =
        (1..=256).map(|aek_version| keyleash::store::record::WrappedAek { aek_version, ..first.clone() }).collect();
    rig.store.replace(&key, &found.version, record.put().unwrap()).await.unwrap();
    rig.clock.advance(DAY);
    rig.pass_by(3 * PASS_EVERY, 5 * SECOND).await;
    assert_eq!(versions(&rig.engine, "b").await, 2);
    let failed: Vec<_> = told(&mut events)
        .into_iter()
        .filter_map(
            |event| if let Event::ScheduleFailed { subject, error } = event { Some((subject, error)) } else { None },
        )
        .collect();
    assert_eq!(failed.len(), 2, "{failed:?}");
    assert!(failed[0].0 == "account a" && failed[0].1.contains("corrupt"), "{failed:?}");
    assert!(failed[1].0 == "account full" && failed[1].1.contains("retire those"), "{failed:?}");
}

/// A KEK that is rotated daily, with an account under each of its first two versions.
async fn two_versions(rig: &Rig) {
    rig.account("old").await;
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    rig.account("newer").await;
    rig.engine.set_kek_policy(&rig.kek, KekPolicy { max_age_secs: DAY.as_secs() }).await.unwrap();
}

#[tokio::test]
async fn a_kek_version_that_stays_denied_is_told_once() {
    let rig = Rig::new().await;
    two_versions(&rig).await;
    let mut events = rig.engine.events();
    rig.script.disable(&rig.kek_id);
    rig.clock.advance(DAY);
    rig.pass_by(4 * PASS_EVERY, 5 * SECOND).await;
    let failed: Vec<_> =
        told(&mut events).into_iter().filter(|event| matches!(event, Event::ScheduleFailed { .. })).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    rig.script.enable(&rig.kek_id);
    rig.pass_by(2 * PASS_EVERY, 5 * SECOND).await;
    assert_eq!(rig.engine.count_wrapped_by(&KekVersion::new(rig.kek.clone(), 1)).await.unwrap(), 0);
}

#[tokio::test]
async fn accounts_that_fail_are_named_also_where_a_denied_kek_version_keeps_others_back() {
    let rig = Rig::with(Settings::default().scheduled_work(false)).await;
    two_versions(&rig).await;
    rig.account("damaged").await;
    let key = Key::Account(account_id("damaged"));
    let found = rig.store.get(&key).await.unwrap().unwrap();
    let mut record = AccountRecord::decode(&key, &found.value).unwrap();
    record.versions[0].wrapped.bytes[3] ^= 1;
    rig.store.replace(&key, &found.version, record.put().unwrap()).await.unwrap();
    rig.script.disable(&rig.kek_id);
    rig.clock.advance(DAY);
    let report = rig.meanwhile(rig.engine.run_schedule()).await.unwrap();
    let mut failed: Vec<_> = report.failures.iter().map(|(subject, _)| subject.as_str()).collect();
    failed.sort_unstable();
    assert_eq!((failed, report.failed, report.rewrapped), (vec!["KEK kek", "account damaged"], 2, 1), "{report:?}");
}

#[tokio::test]
async fn what_was_done_before_the_work_was_lost_is_in_the_report() {
    let rig = Rig::with(Settings::default().scheduled_work(false).resume_rate(10)).await;
    for index in 0..60 {
        rig.account(&format!("a{index:02}")).await;
    }
    rig.engine.set_kek_policy(&rig.kek, KekPolicy { max_age_secs: DAY.as_secs() }).await.unwrap();
    rig.clock.advance(DAY);
    let stolen = async {
        while rig.engine.count_wrapped_by(&KekVersion::new(rig.kek.clone(), 1)).await.unwrap() > 50 {
            rig.pass(SECOND).await;
        }
        let (mut work, version) = load_work(&*rig.store).await.unwrap().unwrap();
        work.fence += 1;
        work.holder = [7; 16];
        work.until_unix += 1000;
        rig.store.replace(&Key::Work, &version, work.put().unwrap()).await.unwrap();
    };
    let (report, ()) = rig.meanwhile(async { tokio::join!(rig.engine.run_schedule(), stolen) }).await;
    let report = report.unwrap();
    assert!(matches!(report.stopped, Some(Error::Conflict(_))), "{report:?}");
    assert_eq!((report.keks.len(), report.failed), (1, 0), "{report:?}");
    let moved = rig.engine.count_wrapped_by(&KekVersion::new(rig.kek.clone(), 2)).await.unwrap();
    assert_eq!(report.rewrapped, moved);
    assert!((10..60).contains(&moved), "{moved}");
}

#[tokio::test]
async fn a_rotation_that_stopped_because_the_work_was_lost_is_no_failure_of_its_account() {
    let mut rig = Rig::new().await;
    for id in ["a", "b"] {
        rig.account(id).await;
    }
    rig.engine = by_hand(&rig);
    let hand = HandStore::over(&rig.store);
    let holder = service(&rig, hand.clone());
    let mut events = holder.events();
    rig.pass_by(MINUTE, SECOND).await; // it has the work, and has passed over the store
    for id in ["a", "b"] {
        rig.engine.set_aek_policy(&account_id(id), days(1)).await.unwrap();
    }
    rig.clock.advance(DAY);
    // The store hangs when the rotation of the one is on its way, and the pass is about to read the other.
    let of_b = Key::Account(account_id("b"));
    hand.hold_reads({
        let (of_a, of_b, reads_of_a) = (Key::Account(account_id("a")), of_b.clone(), AtomicUsize::new(0));
        move |key| match key {
            key if *key == of_a => reads_of_a.fetch_add(1, Ordering::SeqCst) >= 1,
            Key::Work => reads_of_a.load(Ordering::SeqCst) >= 1,
            key => *key == of_b,
        }
    });
    rig.pass_by(3 * MINUTE, SECOND).await;
    assert_eq!(versions(&rig.engine, "a").await, 1);
    // First it goes on where nobody has the work, then the work is taken again.
    hand.hold_reads({
        let of_b = of_b.clone();
        move |key| *key == of_b || *key == Key::Work
    });
    rig.pass_by(10 * SECOND, SECOND).await;
    hand.hold_reads(move |key| *key == of_b);
    rig.pass_by(2 * MINUTE, SECOND).await;
    hand.let_go();
    rig.pass_by(10 * SECOND, SECOND).await;
    let failed: Vec<_> =
        told(&mut events).into_iter().filter(|event| matches!(event, Event::ScheduleFailed { .. })).collect();
    assert_eq!(failed, []);
    rig.pass_by(2 * PASS_EVERY, SECOND).await;
    assert_eq!((versions(&rig.engine, "a").await, versions(&rig.engine, "b").await), (2, 2));
}

#[tokio::test]
async fn accounts_of_a_kek_that_wraps_nothing_wait_and_cost_the_token_little() {
    let rig = Rig::with(Settings::default().scheduled_work(false)).await;
    for index in 0..100 {
        let id = format!("a{index:02}");
        rig.account(&id).await;
        rig.engine.set_aek_policy(&account_id(&id), days(1)).await.unwrap();
    }
    rig.clock.advance(DAY);
    rig.pass_by(MINUTE, SECOND).await; // a proof, after so long
    rig.script.disable_wrap(&rig.kek_id);
    let calls = rig.script.calls(Call::Wrap);
    let report = rig.meanwhile(rig.engine.run_schedule()).await.unwrap();
    assert_eq!((report.accounts, report.stopped.clone()), (0, None));
    assert!(matches!(report.trouble(), Some(Error::Misconfigured(_))), "{report:?}");
    assert!(rig.script.calls(Call::Wrap) - calls <= 16, "{}", rig.script.calls(Call::Wrap) - calls);
    rig.script.enable(&rig.kek_id);
    let report = rig.meanwhile(rig.engine.run_schedule()).await.unwrap();
    assert_eq!((report.accounts, report.failed), (100, 0));
}

#[tokio::test]
async fn two_that_run_the_schedule_at_once_take_turns_and_one_that_meets_a_service_leaves_it_the_work() {
    let rig = Rig::with(Settings::default().scheduled_work(false)).await;
    rig.account("a").await;
    rig.engine.set_aek_policy(&account_id("a"), days(1)).await.unwrap();
    rig.clock.advance(DAY);
    let there = by_hand(&rig);
    let both = async { tokio::join!(rig.engine.run_schedule(), there.run_schedule()) };
    let (one, two) = rig.meanwhile(both).await;
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((one.accounts + two.accounts, one.failed + two.failed), (1, 0), "{one:?} {two:?}");
    assert_eq!((&one.held_by, &two.held_by, &one.stopped, &two.stopped), (&None, &None, &None, &None));
    assert_eq!((versions(&rig.engine, "a").await, fence(&rig).await), (2, 2));
    let _service = service(&rig, rig.store.clone());
    rig.pass_by(MINUTE, SECOND).await;
    let report = rig.meanwhile(rig.engine.run_schedule()).await.unwrap();
    assert_eq!(report.held_by.map(|holder| holder.fence), Some(3));
}

#[tokio::test]
async fn the_view_says_what_is_due_what_comes_next_and_who_does_it_and_changes_nothing() {
    let rig = Rig::with(Settings::default().scheduled_work(false)).await;
    for (id, age) in [("soon", 2), ("late", 9), ("due", 1), ("next", 3)] {
        rig.account(id).await;
        rig.engine.set_aek_policy(&account_id(id), days(age)).await.unwrap();
    }
    rig.account("never").await;
    rig.engine.set_kek_policy(&rig.kek, KekPolicy { max_age_secs: 3 * DAY.as_secs() }).await.unwrap();
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    rig.clock.advance(DAY);
    settle().await; // the watch is due
    let calls = rig.script.calls(Call::Unwrap) + rig.script.calls(Call::Wrap) + rig.script.calls(Call::FindKek);
    let view = rig.engine.schedule(2).await.unwrap();
    assert_eq!(calls, rig.script.calls(Call::Unwrap) + rig.script.calls(Call::Wrap) + rig.script.calls(Call::FindKek));
    assert_eq!((view.accounts_due, view.unreadable, view.holder.clone(), view.is_held()), (1, 0, None, false));
    let due: Vec<_> = view.due.iter().map(|account| (account.account.as_str(), account.due)).collect();
    assert_eq!(due, [("due", Some(Due::Age))]);
    let next: Vec<_> = view.next.iter().map(|account| account.account.as_str()).collect();
    assert_eq!(next, ["soon", "next"]);
    let [kek] = view.keks.as_slice() else { panic!("{:?}", view.keks) };
    assert_eq!((kek.kek.version, kek.due, kek.left_behind), (2, None, 5));
    assert_eq!(kek.due_at_unix, view.now_unix + 2 * DAY.as_secs());
    let error = rig.engine.set_aek_policy(&account_id("soon"), AekPolicy { max_age_secs: 60, ..days(1) }).await;
    assert!(matches!(error, Err(Error::Invalid(_))));
    assert!(matches!(rig.engine.set_aek_policy(&account_id("x"), days(1)).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn keys_that_come_and_go_in_the_token_are_told_once_each_at_a_call_for_twenty_polls() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let look = 20 * Settings::default().poll_interval;
    let mut events = rig.engine.events();
    let before = rig.script.calls(Call::ListKeks);
    rig.pass_by(look + SECOND, SECOND).await;
    assert_eq!(told(&mut events), []);
    // The vendor's own rotation, of which nobody told the engine.
    let spec = KekSpec { label: "vendor".into(), profile: Profile::AesGcm, destroyable: true };
    let id = rig.token.create_kek(&spec).await.unwrap().id;
    rig.pass_by(3 * look, SECOND).await;
    assert_eq!(
        told(&mut events),
        [Event::KekUnknown { token: TokenName::default(), id: id.clone(), label: "vendor".into() }]
    );
    let kek = KekVersion::new(rig.kek.clone(), 1);
    rig.script.destroy(&rig.kek_id);
    rig.pass_by(3 * look, SECOND).await;
    assert_eq!(told(&mut events), [Event::KekMissing { kek: kek.clone(), current: true }]);
    rig.script.restore(&rig.kek_id);
    rig.pass_by(2 * look, SECOND).await;
    assert_eq!(told(&mut events), [Event::KekBack { kek }]);
    let looks = rig.script.calls(Call::ListKeks) - before;
    assert!((8..=9).contains(&looks), "{looks}");
    // A token that is away says nothing about its keys.
    rig.script.set_unreachable(true);
    rig.pass_by(2 * look, SECOND).await;
    assert_eq!(told(&mut events), []);
    drop(account);
}

#[tokio::test]
async fn a_store_call_that_never_returns_for_one_account_keeps_no_other_from_its_rotation_and_is_told() {
    let rig = Rig::with(Settings::default().scheduled_work(false)).await;
    for id in ["a", "b", "c"] {
        rig.account(id).await;
        rig.engine.set_aek_policy(&account_id(id), days(1)).await.unwrap();
    }
    let hand = HandStore::over(&rig.store);
    hand.hold_reads(|key| *key == Key::Account(account_id("b")));
    let holder = service(&rig, hand.clone());
    let mut events = holder.events();
    rig.clock.advance(DAY + 2 * SECOND);
    rig.pass_by(3 * PASS_EVERY, 2 * SECOND).await;
    for (id, expected) in [("a", 2), ("b", 1), ("c", 2)] {
        assert_eq!(versions(&rig.engine, id).await, expected, "{id}");
    }
    let failed: Vec<_> =
        told(&mut events).into_iter().filter(|event| matches!(event, Event::ScheduleFailed { .. })).collect();
    let [Event::ScheduleFailed { subject, error }] = &failed[..] else { panic!("{failed:?}") };
    assert!(subject == "account b" && error.contains("no end in 60 s"), "{subject}: {error}");
    hand.let_go();
    rig.pass_by(2 * PASS_EVERY, 2 * SECOND).await;
    assert_eq!((versions(&rig.engine, "b").await, fence(&rig).await), (2, 1), "nobody had to take over");
}

#[tokio::test]
async fn a_store_call_that_never_returns_for_one_account_keeps_no_other_from_its_rewrap() {
    let rig = Rig::with(Settings::default().scheduled_work(false)).await;
    for id in ["a", "b", "c"] {
        rig.account(id).await;
    }
    rig.engine.set_kek_policy(&rig.kek, KekPolicy { max_age_secs: DAY.as_secs() }).await.unwrap();
    let hand = HandStore::over(&rig.store);
    hand.hold_reads(|key| *key == Key::Account(account_id("a")));
    let _holder = service(&rig, hand.clone());
    rig.clock.advance(DAY + 2 * SECOND);
    rig.pass_by(2 * PASS_EVERY, 2 * SECOND).await;
    let left = async || rig.engine.count_wrapped_by(&KekVersion::new(rig.kek.clone(), 1)).await.unwrap();
    assert_eq!(left().await, 1);
    hand.let_go();
    rig.pass_by(2 * PASS_EVERY, 2 * SECOND).await;
    assert_eq!(left().await, 0, "it did not wait for a day");
}

#[tokio::test]
async fn a_pass_that_gets_nowhere_is_given_up_for_another_engine_and_told() {
    let rig = Rig::with(Settings::default().scheduled_work(false)).await;
    rig.account("a").await;
    let hand = HandStore::over(&rig.store);
    let holder = service(&rig, hand.clone());
    let mut events = holder.events();
    rig.pass_by(2 * MINUTE, SECOND).await;
    rig.engine.set_aek_policy(&account_id("a"), days(1)).await.unwrap();
    hand.hold_lists();
    rig.clock.advance(DAY + 2 * SECOND);
    rig.pass_by(2 * MINUTE, SECOND).await; // it has the work again, and its pass hangs
    let second = service(&rig, rig.store.clone());
    rig.pass_by(2 * MINUTE, SECOND).await;
    assert_eq!((versions(&rig.engine, "a").await, fence(&rig).await), (1, 1), "it may come yet");
    rig.pass_by(2 * PASS_EVERY, SECOND).await;
    assert_eq!(versions(&rig.engine, "a").await, 2);
    let failed: Vec<_> =
        told(&mut events).into_iter().filter(|event| matches!(event, Event::ScheduleFailed { .. })).collect();
    let [Event::ScheduleFailed { subject, error }] = &failed[..] else { panic!("{failed:?}") };
    assert!(subject == "scheduled work" && error.contains("another engine"), "{subject}: {error}");
    drop(second);
}

#[tokio::test]
async fn a_write_that_is_held_up_until_another_engine_has_the_work_is_not_done() {
    let rig = Rig::with(Settings::default().scheduled_work(false)).await;
    rig.account("a").await;
    rig.engine.set_aek_policy(&account_id("a"), days(1)).await.unwrap();
    let hand = HandStore::over(&rig.store);
    let slow = Engine::builder(rig.token.clone(), hand.clone())
        .on_current_runtime()
        .settings(Settings::default().scheduled_work(false))
        .clock(Clock::Manual(rig.clock.clone()))
        .start_up_proof(false)
        .build()
        .unwrap();
    rig.clock.advance(DAY + 2 * SECOND);
    let running = tokio::spawn({
        let slow = slow.clone();
        async move { slow.run_schedule().await }
    });
    hand.hold_account_writes();
    rig.pass_by(5 * SECOND, SECOND).await;
    assert_eq!(hand.held(), 1);
    let (work, version) = load_work(&*rig.store).await.unwrap().unwrap();
    let taken = keyleash::store::record::WorkRecord { fence: work.fence + 1, holder: [7; 16], ..work };
    rig.store.replace(&Key::Work, &version, taken.put().unwrap()).await.unwrap();
    hand.let_go();
    settle().await;
    assert_eq!(versions(&rig.engine, "a").await, 1);
    let report = rig.meanwhile(running).await.unwrap().unwrap();
    assert!(matches!(report.stopped, Some(Error::Conflict(_))) && report.failed == 0, "{report:?}");
    assert_eq!(versions(&rig.engine, "a").await, 1);
}
