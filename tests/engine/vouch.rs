//! What stands behind a KEK version in the poll in which another key came in its place, and nobody noticed yet.

use super::{
    hand::held_up,
    impostor::{anew, exists, has_denial, start_on},
    *,
};
use keyleash::{
    Error,
    rotate::{RewrapOptions, RewrapReport},
    token::{
        Verdict,
        scripted::{Act, Call},
    },
};

/// Passes time until KEK version `version` was proved within a second: what is wrapped now is vouched for already.
pub(super) async fn just_proved(rig: &Rig, version: u32) {
    rig.pass(16 * SECOND).await;
    let proved_ago =
        || rig.engine.leases().into_iter().find(|lease| lease.kek.version == version).unwrap().proved_ago.unwrap();
    while proved_ago() > SECOND {
        rig.pass(SECOND / 4).await;
    }
}

#[tokio::test]
async fn an_account_that_waits_for_a_worker_while_its_kek_is_denied_is_not_made() {
    let mut rig = Rig::new().await;
    rig.token = rig.token.with_workers(2);
    rig.restart();
    let old = rig.account("a").await;
    just_proved(&rig, 1).await;
    rig.script.standing(Call::Probe, Act::Delay(SECOND * 49 / 10));
    for _ in 0..6 {
        let engine = rig.engine.clone();
        tokio::spawn(async move { engine.probe(Profile::AesGcm).await });
    }
    settle().await;
    let (engine, kek) = (rig.engine.clone(), rig.kek.clone());
    let creating = tokio::spawn(async move { engine.create_account(&account_id("b"), &kek).await });
    settle().await;
    rig.script.replace(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    assert!(matches!(seal(&old), Err(Error::Denied(_))) && has_denial(&rig, 1).await);
    assert!(!creating.is_finished() && !exists(&rig, "b").await);
    rig.pass(40 * SECOND).await;
    assert!(matches!(creating.await.unwrap(), Err(Error::Denied(_))) && !exists(&rig, "b").await);
}

#[tokio::test]
async fn a_denial_between_the_record_that_vouches_and_the_wrap_counts() {
    let mut rig = Rig::new().await;
    drop((rig.account("a").await, rig.account("c").await));
    rig.restart();
    rig.script.push(Call::Unwrap, Act::Delay(2 * SECOND));
    let (engine, kek) = (rig.engine.clone(), rig.kek.clone());
    let creating = tokio::spawn(async move { engine.create_account(&account_id("b"), &kek).await });
    settle().await;
    rig.script.push(Call::Unwrap, Act::fail(Verdict::Denied));
    assert!(matches!(rig.engine.account(&account_id("c")).await, Err(Error::Denied(_))));
    rig.pass(3 * SECOND).await;
    assert!(matches!(creating.await.unwrap(), Err(Error::Denied(_))) && !exists(&rig, "b").await);
}

#[tokio::test]
async fn what_was_begun_while_a_kek_wrapped_nothing_ends_no_denial_of_what_it_wrapped_since() {
    let mut rig = Rig::new().await;
    let elsewhere = rig.token.with_workers(2);
    rig.token = rig.token.with_workers(2);
    rig.restart();
    rig.script.standing(Call::Probe, Act::Delay(SECOND * 49 / 10));
    for _ in 0..6 {
        let engine = rig.engine.clone();
        tokio::spawn(async move { engine.probe(Profile::AesGcm).await });
    }
    settle().await;
    // It is wrapped by whatever key is there when its turn has come.
    let (engine, kek) = (rig.engine.clone(), rig.kek.clone());
    let creating = tokio::spawn(async move { engine.create_account(&account_id("b"), &kek).await });
    settle().await;
    let other = build(&elsewhere, &rig.store, &rig.clock, Settings::default());
    drop(other.create_account(&account_id("c"), &rig.kek).await.unwrap());
    drop(other);
    rig.script.replace(&rig.kek_id);
    // An unwrap overtakes the wraps that wait.
    let opened = rig.meanwhile(rig.engine.account(&account_id("c"))).await;
    assert!(matches!(opened, Err(Error::Denied(_))), "{opened:?}");
    rig.pass(60 * SECOND).await;
    let created = creating.await.unwrap();
    assert!(matches!(created, Err(Error::Denied(_))) && !exists(&rig, "b").await, "{created:?}");
    assert!(has_denial(&rig, 1).await);
}

#[tokio::test]
async fn a_page_full_of_what_an_impostor_wrapped_hides_no_older_record() {
    let rig = Rig::new().await;
    let old = rig.account("z").await;
    rig.pass(16 * SECOND).await;
    rig.script.replace(&rig.kek_id);
    for n in 0..1001 {
        drop(rig.account(&format!("a{n:04}")).await);
    }
    rig.pass(20 * SECOND).await;
    assert!(matches!(seal(&old), Err(Error::Denied(_))) && has_denial(&rig, 1).await);
    rig.pass(22 * SECOND).await;
    let made = rig.engine.create_account(&account_id("b"), &rig.kek).await;
    assert!(made.is_err() && has_denial(&rig, 1).await, "{made:?}");
}

#[tokio::test]
async fn a_token_that_takes_longer_than_half_of_the_shortest_poll_makes_accounts() {
    let settings = Settings::default().poll_interval(SECOND).store_timeout(SECOND);
    let mut rig = Rig::with(settings.clone()).await;
    rig.script.set_latency(Duration::from_millis(600));
    drop(rig.meanwhile(rig.engine.create_account(&account_id("a"), &rig.kek)).await.unwrap());
    rig.engine = build(&rig.token, &rig.store, &rig.clock, settings);
    for n in 0..10 {
        drop(rig.meanwhile(rig.engine.create_account(&account_id(&format!("b{n}")), &rig.kek)).await.unwrap());
        rig.pass(2 * SECOND).await;
    }
}

/// Of two accounts one is open, and was rotated in the poll before the impostor is noticed.
async fn rotated_under_an_impostor() -> (Rig, Account) {
    let mut rig = Rig::new().await;
    drop((rig.account("a").await, rig.account("z").await));
    rig.restart();
    let a = rig.engine.account(&account_id("a")).await.unwrap();
    just_proved(&rig, 1).await;
    rig.script.replace(&rig.kek_id);
    rig.engine.rotate_account(&account_id("a")).await.unwrap();
    (rig, a)
}

#[tokio::test]
async fn an_impostor_does_not_prove_itself_once_the_older_aeks_are_retired() {
    let (rig, a) = rotated_under_an_impostor().await;
    rig.pass(20 * SECOND).await;
    assert!(matches!(seal(&a), Err(Error::Denied(_))) && has_denial(&rig, 1).await);
    rig.engine.retire_aeks(&account_id("a"), &[1], keyleash::When::Now).await.unwrap();
    for _ in 0..10 {
        rig.pass(4 * SECOND).await;
        assert!(seal(&a).is_err() && has_denial(&rig, 1).await);
    }
}

#[tokio::test]
async fn an_account_made_just_before_a_denial_resumes_though_the_older_ones_in_use_were_deleted_in_it() {
    let mut rig = Rig::new().await;
    drop((rig.account("a").await, rig.account("z").await));
    rig.restart();
    let a = rig.engine.account(&account_id("a")).await.unwrap();
    just_proved(&rig, 1).await;
    let b = rig.account("b").await;
    rig.script.disable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    assert!(matches!(seal(&b), Err(Error::Denied(_))));
    rig.engine.delete_account(&account_id("a")).await.unwrap();
    drop(a);
    rig.script.enable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    seal(&b).unwrap();
}

/// 40 accounts under version 1 and one under version 2, which was just proved by it; and the token as it is then.
async fn rotated() -> (Rig, KekId, Account, (Arc<ScriptedToken>, Script)) {
    let rig = Rig::new().await;
    for n in 0..40 {
        drop(rig.account(&format!("a{n:02}")).await);
    }
    let second = rig.engine.rotate_kek(&rig.kek).await.unwrap().id;
    let account = rig.account("z").await;
    just_proved(&rig, 2).await;
    let genuine = anew(&rig);
    (rig, second, account, genuine)
}

/// All 40 open, once every KEK is back in its place.
async fn nothing_is_lost(rig: &mut Rig, genuine: (Arc<ScriptedToken>, Script)) {
    start_on(rig, genuine);
    for n in 0..40 {
        rig.engine.account(&account_id(&format!("a{n:02}"))).await.unwrap();
        rig.pass(SECOND).await;
    }
}

#[tokio::test]
async fn a_rewrap_to_an_impostor_that_came_since_the_last_proof_loses_no_account() {
    let (mut rig, second, _z, genuine) = rotated().await;
    rig.script.replace(&second);
    let report = rig.meanwhile(rig.engine.rewrap_kek(&rig.kek, RewrapOptions::default(), |_| {})).await.unwrap();
    assert!(report.accounts == 0 && report.stopped.is_some(), "{report:?}");
    nothing_is_lost(&mut rig, genuine).await;
}

#[tokio::test]
async fn a_slow_rewrap_whose_target_is_denied_meanwhile_loses_no_account() {
    let (mut rig, second, z, genuine) = rotated().await;
    let (engine, kek) = (rig.engine.clone(), rig.kek.clone());
    let options = RewrapOptions::new().rate(1);
    let rewrap = tokio::spawn(async move { engine.rewrap_kek(&kek, options, |_| {}).await });
    rig.pass(2 * SECOND).await;
    rig.script.replace(&second);
    rig.pass(120 * SECOND).await;
    assert!(matches!(seal(&z), Err(Error::Denied(_))));
    assert!(rewrap.await.unwrap().unwrap().stopped.is_some());
    nothing_is_lost(&mut rig, genuine).await;
}

/// An account under version 1, and version 2, which wraps nothing: to this process another key stands in its place, to the other one that is
/// given it does not.
async fn bare_and_replaced() -> (Rig, Engine) {
    let mut rig = Rig::new().await;
    drop(rig.account("a").await);
    let second = rig.engine.rotate_kek(&rig.kek).await.unwrap().id;
    let (genuine, _) = anew(&rig);
    rig.script.replace(&second);
    let impostor = anew(&rig);
    start_on(&mut rig, impostor);
    let other = build(&genuine, &rig.store, &rig.clock, Settings::default());
    (rig, other)
}

/// Begins `work`, and has the other process make account `b` while that waits for what it wraps.
async fn overtaken<T: Send + 'static>(
    rig: &Rig,
    other: &Engine,
    work: impl Future<Output = keyleash::Result<T>> + Send + 'static,
) -> keyleash::Result<T> {
    rig.script.push(Call::Wrap, Act::Delay(2 * SECOND));
    let work = tokio::spawn(work);
    rig.pass(SECOND).await;
    drop(other.create_account(&account_id("b"), &rig.kek).await.unwrap());
    rig.meanwhile(work).await.unwrap()
}

async fn nothing_was_moved(rig: &Rig, report: &RewrapReport) {
    assert!(matches!(report.stopped, Some(Error::Misconfigured(_))) && report.accounts == 0, "{report:?}");
    assert_eq!(rig.engine.account_record(&account_id("a")).await.unwrap().versions[0].kek.version, 1);
}

#[tokio::test]
async fn a_rewrap_to_an_impostor_loses_no_account_though_its_target_wrapped_nothing_as_it_began() {
    let (rig, other) = bare_and_replaced().await;
    let (engine, kek) = (rig.engine.clone(), rig.kek.clone());
    let rewrap = async move { engine.rewrap_kek(&kek, RewrapOptions::default(), |_| {}).await };
    nothing_was_moved(&rig, &overtaken(&rig, &other, rewrap).await.unwrap()).await;
}

#[tokio::test]
async fn an_account_that_an_impostor_was_the_first_to_wrap_here_is_not_made_once_the_kek_wrapped_another() {
    let (rig, other) = bare_and_replaced().await;
    let (engine, kek) = (rig.engine.clone(), rig.kek.clone());
    let create = async move { engine.create_account(&account_id("x"), &kek).await };
    let made = overtaken(&rig, &other, create).await;
    assert!(matches!(made, Err(Error::Misconfigured(_))) && !exists(&rig, "x").await, "{made:?}");
    for _ in 0..3 {
        let rewrap = rig.engine.rewrap_kek(&rig.kek, RewrapOptions::default(), |_| {});
        nothing_was_moved(&rig, &rig.meanwhile(rewrap).await.unwrap()).await;
        rig.pass(16 * SECOND).await;
    }
}

#[tokio::test]
async fn a_rewrap_by_an_impostor_whose_write_waits_while_the_kek_wraps_its_first_loses_no_account() {
    let (rig, other) = bare_and_replaced().await;
    let (engine, hand) = held_up(&rig);
    hand.hold_account_writes();
    let kek = rig.kek.clone();
    let rewrap = tokio::spawn(async move { engine.rewrap_kek(&kek, RewrapOptions::default(), |_| {}).await });
    rig.pass(2 * SECOND).await;
    assert!(!rewrap.is_finished());
    drop(other.create_account(&account_id("b"), &rig.kek).await.unwrap());
    hand.let_go();
    nothing_was_moved(&rig, &rig.meanwhile(rewrap).await.unwrap().unwrap()).await;
}

#[tokio::test]
async fn a_rewrap_by_an_impostor_loses_no_account_beside_a_first_one_of_this_process_that_the_kek_wrapped() {
    let rig = Rig::new().await;
    drop((rig.account("a").await, rig.account("b").await));
    let (engine, hand) = held_up(&rig);
    let second = engine.rotate_kek(&rig.kek).await.unwrap().id;
    hand.hold_creates();
    let (creator, kek) = (engine.clone(), rig.kek.clone());
    let creating = tokio::spawn(async move { creator.create_account(&account_id("x"), &kek).await });
    rig.pass(2 * SECOND).await;
    rig.script.replace(&second);
    let (engine, kek) = (engine.clone(), rig.kek.clone());
    let rewrap = tokio::spawn(async move { engine.rewrap_kek(&kek, RewrapOptions::default(), |_| {}).await });
    rig.pass(2 * SECOND).await;
    assert!(!creating.is_finished() && !rewrap.is_finished());
    hand.let_go();
    let report = rig.meanwhile(rewrap).await.unwrap().unwrap();
    assert!(matches!(report.stopped, Some(Error::Denied(_))) && report.accounts == 0, "{report:?}");
    for id in ["a", "b"] {
        assert_eq!(rig.engine.account_record(&account_id(id)).await.unwrap().versions[0].kek.version, 1);
    }
    assert!(exists(&rig, "x").await);
}

#[tokio::test]
async fn a_kek_version_that_was_denied_before_it_wrapped_anything_is_rewrapped_to_once_the_token_grants() {
    let rig = Rig::new().await;
    drop((rig.account("a").await, rig.account("b").await));
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    rig.script.push(Call::Unwrap, Act::fail(Verdict::Denied));
    assert!(matches!(rig.engine.create_account(&account_id("x"), &rig.kek).await, Err(Error::Denied(_))));
    rig.pass(2 * SECOND).await;
    assert!(has_denial(&rig, 2).await);
    let report = rig.meanwhile(rig.engine.rewrap_kek(&rig.kek, RewrapOptions::default(), |_| {})).await.unwrap();
    assert!(report.stopped.is_none() && report.accounts == 2, "{report:?}");
    rig.pass(SECOND).await;
    assert!(!has_denial(&rig, 2).await);
}

#[tokio::test]
async fn what_was_the_first_under_a_kek_version_may_be_purged_just_before_a_rewrap_to_it() {
    let rig = Rig::new().await;
    let (engine, _hand) = held_up(&rig);
    drop(engine.create_account(&account_id("a"), &rig.kek).await.unwrap());
    engine.rotate_kek(&rig.kek).await.unwrap();
    drop(engine.create_account(&account_id("x"), &rig.kek).await.unwrap());
    engine.delete_account(&account_id("x")).await.unwrap();
    engine.purge_account(&account_id("x"), keyleash::When::Now).await.unwrap();
    let report = rig.meanwhile(engine.rewrap_kek(&rig.kek, RewrapOptions::default(), |_| {})).await.unwrap();
    assert!(report.stopped.is_none() && report.accounts == 1 && report.failed == 0, "{report:?}");
}

#[tokio::test]
async fn accounts_that_are_made_at_once_under_a_new_kek_are_all_made() {
    let rig = Rig::new().await;
    rig.script.standing(Call::Wrap, Act::Delay(SECOND / 100));
    let creating: Vec<_> = (0..100)
        .map(|n| {
            let (engine, kek) = (rig.engine.clone(), rig.kek.clone());
            tokio::spawn(async move { engine.create_account(&account_id(&format!("a{n}")), &kek).await.map(drop) })
        })
        .collect();
    rig.pass_by(20 * SECOND, SECOND / 100).await;
    for creating in creating {
        creating.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_was_wrapped_before_a_denial_is_not_stored_though_the_kek_is_back() {
    let rig = Rig::new().await;
    drop((rig.account("a").await, rig.account("c").await));
    let mut rig = rig;
    rig.restart();
    drop(rig.engine.account(&account_id("a")).await.unwrap());
    rig.script.push(Call::Wrap, Act::Delay(4 * SECOND));
    let (engine, kek) = (rig.engine.clone(), rig.kek.clone());
    let creating = tokio::spawn(async move { engine.create_account(&account_id("b"), &kek).await });
    settle().await;
    rig.script.push(Call::Unwrap, Act::fail(Verdict::Denied));
    assert!(matches!(rig.engine.account(&account_id("c")).await, Err(Error::Denied(_))));
    rig.pass(2 * SECOND).await;
    drop(rig.engine.account(&account_id("c")).await.unwrap());
    assert!(!creating.is_finished());
    let made = rig.meanwhile(creating).await.unwrap();
    assert!(made.is_err() && !exists(&rig, "b").await, "{made:?}");
}

#[tokio::test]
async fn an_impostor_is_noticed_though_the_only_older_aek_in_use_was_retired_before_anybody_asked_again() {
    let (mut rig, a) = rotated_under_an_impostor().await;
    rig.engine.retire_aeks(&account_id("a"), &[1], keyleash::When::Now).await.unwrap();
    rig.pass(20 * SECOND).await;
    for _ in 0..4 {
        assert!(matches!(seal(&a), Err(Error::Denied(_))) && has_denial(&rig, 1).await);
        rig.pass(15 * SECOND).await;
    }
    // Nor does it end in another process, by the same.
    drop(a);
    let impostor = anew(&rig);
    start_on(&mut rig, impostor);
    for _ in 0..4 {
        assert!(matches!(rig.engine.account(&account_id("a")).await, Err(Error::Denied(_))));
        rig.pass(15 * SECOND).await;
        assert!(has_denial(&rig, 1).await);
    }
}

#[tokio::test]
async fn whoever_opens_an_account_that_was_made_just_before_a_lapse_waits_for_no_poll() {
    let rig = Rig::new().await;
    drop(rig.account("a").await);
    just_proved(&rig, 1).await;
    let young = rig.account("b").await;
    rig.script.set_unreachable(true);
    rig.pass_by(31 * 60 * SECOND, SECOND).await;
    while !matches!(seal(&young), Err(Error::Lapsed(_))) {
        rig.pass(SECOND).await;
    }
    // Not within a second of the watch's own question.
    loop {
        let asked = rig.script.calls(Call::Unwrap);
        rig.pass(SECOND * 5 / 4).await;
        if rig.script.calls(Call::Unwrap) == asked {
            break;
        }
    }
    rig.script.set_unreachable(false);
    assert!(matches!(seal(&young), Err(Error::Lapsed(_))), "nobody has asked since");
    young.warm().await.unwrap();
    seal(&young).unwrap();
}
