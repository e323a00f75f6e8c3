//! Another key in a KEK's place: what it wraps and gives back proves nothing, and nothing is wrapped by it where a record tells.

use super::*;
use keyleash::{
    Error,
    name::KekVersion,
    rotate::RewrapOptions,
    store::{Filter, load_account, load_denial},
    token::{
        Verdict,
        scripted::{Act, Call},
    },
};

/// The token as a process that starts now finds it: the same keys, of which it has seen nothing work.
pub(super) fn anew(rig: &Rig) -> (Arc<ScriptedToken>, Script) {
    let (token, script) = ScriptedToken::new(Clock::Manual(rig.clock.clone()), Settings::default().store_timeout, 21);
    rig.script.clone_keks_to(&script);
    (token, script)
}

/// The process starts again, on that token.
pub(super) fn start_on(rig: &mut Rig, (token, script): (Arc<ScriptedToken>, Script)) {
    (rig.token, rig.script) = (token, script);
    rig.restart();
}

pub(super) async fn has_denial(rig: &Rig, version: u32) -> bool {
    load_denial(&*rig.store, &KekVersion::new(rig.kek.clone(), version)).await.unwrap().is_some()
}

pub(super) async fn exists(rig: &Rig, id: &str) -> bool {
    load_account(&*rig.store, &account_id(id)).await.unwrap().is_some()
}

#[tokio::test]
async fn an_impostor_ends_no_remembered_denial_by_what_it_wraps_itself() {
    let mut rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.pass(16 * SECOND).await;
    let genuine = anew(&rig);
    rig.script.replace(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))) && has_denial(&rig, 1).await);
    drop(account);
    let impostor = anew(&rig);
    start_on(&mut rig, impostor);
    for _ in 0..3 {
        let made = rig.engine.create_account(&account_id("b"), &rig.kek).await;
        assert!(matches!(made, Err(Error::Denied(_))), "{made:?}");
        let rotated = rig.meanwhile(rig.engine.rotate_account(&account_id("a"))).await;
        assert!(matches!(rotated, Err(Error::Denied(_))), "{rotated:?}");
        rig.pass(20 * SECOND).await;
    }
    assert!(has_denial(&rig, 1).await && !exists(&rig, "b").await);
    // The KEK is back: a record that was there proves it, whoever asks first.
    start_on(&mut rig, genuine);
    let account = rig.account("b").await;
    rig.pass(SECOND).await;
    seal(&account).unwrap();
    assert!(!has_denial(&rig, 1).await);
}

#[tokio::test]
async fn an_impostor_that_nobody_has_met_yet_gets_no_account() {
    let mut rig = Rig::new().await;
    drop(rig.account("a").await);
    let genuine = anew(&rig);
    rig.script.replace(&rig.kek_id);
    let impostor = anew(&rig);
    start_on(&mut rig, impostor);
    let error = rig.engine.create_account(&account_id("b"), &rig.kek).await.unwrap_err();
    assert!(
        matches!(&error, Error::Misconfigured(what) if what.contains("another key stands in its place")),
        "{error}"
    );
    assert!(!exists(&rig, "b").await);
    start_on(&mut rig, genuine);
    seal(&rig.account("b").await).unwrap();
}

#[tokio::test]
async fn what_an_impostor_wrapped_within_a_poll_of_its_coming_proves_it_to_nobody() {
    let rig = Rig::new().await;
    let (old, handle) = (rig.account("a").await, rig.account("z").await);
    drop(handle);
    rig.pass(16 * SECOND).await;
    rig.script.replace(&rig.kek_id);
    // Not noticed yet.
    let mut young = Vec::new();
    for n in 0..8 {
        young.push(rig.account(&format!("b{n}")).await);
    }
    rig.pass(20 * SECOND).await;
    for _ in 0..20 {
        for account in young.iter().chain([&old]) {
            assert!(matches!(seal(account), Err(Error::Denied(_))), "{:?}", seal(account));
            assert!(matches!(account.warm().await, Err(Error::Denied(_))));
        }
        rig.pass(15 * SECOND).await;
    }
    assert!(has_denial(&rig, 1).await);
}

#[tokio::test]
async fn accounts_made_here_prove_their_kek_once_an_older_one_did_or_where_there_is_no_older_one() {
    let rig = Rig::new().await;
    let first = rig.account("a").await;
    let (second, third) = (rig.account("b").await, rig.account("c").await);
    // The one that proved the KEK is gone before any other did.
    let id = account_id("a");
    rig.engine.delete_account(&id).await.unwrap();
    drop(first);
    for _ in 0..35 {
        rig.pass_by(60 * SECOND, SECOND).await;
        seal(&second).unwrap();
        seal(&third).unwrap();
        assert!(rig.engine.leases()[0].proved_ago.unwrap() <= 20 * SECOND);
    }
}

#[tokio::test]
async fn a_record_is_asked_for_once_before_the_first_account_and_by_the_watch_after_that() {
    let mut rig = Rig::new().await;
    drop(rig.account("a").await);
    rig.restart();
    let unwraps = rig.script.calls(Call::Unwrap);
    let mut accounts = Vec::new();
    for n in 0..10 {
        accounts.push(rig.account(&format!("b{n}")).await);
    }
    assert_eq!(rig.script.calls(Call::Unwrap) - unwraps, 1 + 10);
    // Many at once that find the token silent do not ask one after the other.
    rig.restart();
    rig.script.standing(Call::Unwrap, Act::Hang);
    let began = rig.clock.now();
    let many: Vec<_> = (0..50)
        .map(|n| {
            let (engine, kek) = (rig.engine.clone(), rig.kek.clone());
            tokio::spawn(async move { engine.create_account(&account_id(&format!("c{n}")), &kek).await })
        })
        .collect();
    for one in many {
        assert!(matches!(rig.meanwhile(one).await.unwrap(), Err(Error::Unreachable(_))));
    }
    assert!(rig.clock.now().since(began) <= 11 * SECOND);
}

#[tokio::test]
async fn a_kek_that_wraps_nothing_is_granted_by_a_round_trip_after_a_denial() {
    let mut rig = Rig::new().await;
    rig.script.disable(&rig.kek_id);
    let error = rig.engine.create_account(&account_id("a"), &rig.kek).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error}");
    assert!(has_denial(&rig, 1).await && !exists(&rig, "a").await);
    rig.restart();
    let error = rig.engine.create_account(&account_id("a"), &rig.kek).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error}");
    rig.script.enable(&rig.kek_id);
    rig.pass(2 * SECOND).await;
    let account = rig.account("a").await;
    rig.pass(20 * SECOND).await;
    seal(&account).unwrap();
    assert!(!has_denial(&rig, 1).await);
}

#[tokio::test]
async fn damaged_records_keep_nothing_from_being_wrapped_while_one_is_whole_and_a_new_version_helps_where_none_is() {
    let mut rig = Rig::new().await;
    for id in ["a", "b", "c", "d"] {
        drop(rig.account(id).await);
    }
    for id in ["a", "b", "c"] {
        rig.flip_check(id, 1).await;
    }
    rig.restart();
    drop(rig.account("e").await);
    rig.flip_check("d", 1).await;
    rig.flip_check("e", 1).await;
    rig.restart();
    let error = rig.engine.create_account(&account_id("f"), &rig.kek).await.unwrap_err();
    assert!(matches!(&error, Error::Misconfigured(what) if what.contains("kek rotate kek")), "{error}");
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    drop(rig.account("f").await);
}

#[tokio::test]
async fn a_rewrap_ends_no_denial_of_its_target_and_moves_nothing_to_an_impostor() {
    for denied in [true, false] {
        let mut rig = Rig::new().await;
        drop(rig.account("a").await);
        let second = rig.engine.rotate_kek(&rig.kek).await.unwrap().id;
        let account = rig.account("b").await;
        rig.pass(16 * SECOND).await;
        rig.script.replace(&second);
        if denied {
            rig.pass(16 * SECOND).await;
            assert!(has_denial(&rig, 2).await);
        }
        drop(account);
        let impostor = anew(&rig);
        start_on(&mut rig, impostor);
        let report = rig.meanwhile(rig.engine.rewrap_kek(&rig.kek, RewrapOptions::default(), |_| {})).await.unwrap();
        let stopped = report.stopped.unwrap();
        assert!(if denied { matches!(stopped, Error::Denied(_)) } else { matches!(stopped, Error::Misconfigured(_)) });
        let record = rig.engine.account_record(&account_id("a")).await.unwrap();
        assert_eq!((record.versions[0].kek.version, has_denial(&rig, 2).await), (1, denied));
    }
}

#[tokio::test]
async fn a_kek_that_wraps_wrongly_gets_no_account_no_version_and_no_rewrap() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    let before = rig.engine.account_record(&account_id("a")).await.unwrap();
    rig.script.standing(Call::Wrap, Act::WrongPlaintext);
    let wrong = |error: &Error| matches!(error, Error::Misconfigured(what) if what.contains("does not give back"));
    let error = rig.engine.create_account(&account_id("b"), &rig.kek).await.unwrap_err();
    assert!(wrong(&error), "{error}");
    let error = rig.meanwhile(rig.engine.rotate_account(&account_id("a"))).await.unwrap_err();
    assert!(wrong(&error), "{error}");
    let report = rig.meanwhile(rig.engine.rewrap_kek(&rig.kek, RewrapOptions::default(), |_| {})).await.unwrap();
    assert!(report.stopped.as_ref().is_some_and(wrong), "{report:?}");
    let error = rig.meanwhile(rig.engine.move_account(&account_id("a"), &rig.kek)).await.unwrap_err();
    assert!(wrong(&error), "{error}");
    assert_eq!(rig.engine.account_record(&account_id("a")).await.unwrap(), before);
    assert!(!exists(&rig, "b").await);
    seal(&account).unwrap();
    rig.script.standing(Call::Wrap, Act::Serve);
    let report = rig.meanwhile(rig.engine.rewrap_kek(&rig.kek, RewrapOptions::default(), |_| {})).await.unwrap();
    assert_eq!((report.accounts, report.stopped), (1, None));
}

#[tokio::test]
async fn a_kek_version_is_not_retired_while_this_engine_has_keys_under_it() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    // Another engine moves the account; this one has not heard of it.
    let another = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    rig.meanwhile(another.rewrap_kek(&rig.kek, RewrapOptions::default(), |_| {})).await.unwrap();
    let first = KekVersion::new(rig.kek.clone(), 1);
    rig.script.standing(Call::Unwrap, Act::fail(Verdict::Unreachable));
    let error = rig.meanwhile(rig.engine.retire_kek(&first)).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid(what) if what.contains("this engine still uses 1 AEKs")), "{error}");
    rig.script.standing(Call::Unwrap, Act::Serve);
    rig.pass(SECOND).await;
    rig.meanwhile(rig.engine.retire_kek(&first)).await.unwrap();
    // It may be deleted in the token.
    rig.script.destroy(&rig.kek_id);
    for _ in 0..40 {
        rig.pass(SECOND).await;
        seal(&account).unwrap();
    }
}

/// An account that a process made under a KEK version that was retired meanwhile, and that died before it looked.
async fn left_under_a_retired_version() -> Rig {
    let mut rig = Rig::new().await;
    let held_up = rig.engine.create_account(&account_id("held-up"), &rig.kek).await.unwrap();
    let key = Key::Account(account_id("held-up"));
    let made = rig.store.get(&key).await.unwrap().unwrap();
    let wrapped_by = rig.engine.account_record(held_up.id()).await.unwrap().wrapped_by();
    drop(held_up);
    rig.store.delete(&key, &made.version).await.unwrap();
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    rig.restart();
    rig.meanwhile(rig.engine.retire_kek(&KekVersion::new(rig.kek.clone(), 1))).await.unwrap();
    rig.store.create(&key, Put { value: made.value, wrapped_by, guards: Vec::new() }).await.unwrap();
    rig
}

async fn is_left(rig: &Rig) -> bool {
    let filter = Filter::WrappedBy(KekVersion::new(rig.kek.clone(), 1));
    !rig.store.list(&filter, None, 1).await.unwrap().keys.is_empty()
}

#[tokio::test]
async fn an_account_that_a_crash_left_under_a_retired_kek_version_is_moved_before_anybody_gets_it() {
    let mut rig = left_under_a_retired_version().await;
    rig.restart();
    let account = rig.meanwhile(rig.engine.account(&account_id("held-up"))).await.unwrap();
    assert!(!is_left(&rig).await);
    let block = account.seal_to_vec(1_u64, b"data").unwrap();
    rig.pass(16 * SECOND).await;
    rig.script.destroy(&rig.kek_id);
    rig.restart();
    let account = rig.meanwhile(rig.engine.account(&account_id("held-up"))).await.unwrap();
    opens(&rig, &account, &block).await;
}

#[tokio::test]
async fn an_account_that_a_crash_left_under_a_retired_kek_version_is_moved_by_the_scheduled_work() {
    let rig = left_under_a_retired_version().await;
    assert!(is_left(&rig).await);
    let report = rig.meanwhile(rig.engine.run_schedule()).await.unwrap();
    assert_eq!((report.rewrapped, report.failed), (1, 0));
    assert!(!is_left(&rig).await);
}
