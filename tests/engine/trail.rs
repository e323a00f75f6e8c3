//! What the engine tells its trail: every call that changes something, before and after it; what happens to data, of which nobody waits.

use crate::{
    Rig, account_id,
    grants::{self, caller, calls, give, grant, table},
    seal, settle,
};
use async_trait::async_trait;
use keyleash::{
    Account, Engine, Error, Result,
    access::Operation,
    clock::Clock,
    config::Settings,
    name::{AccountId, KekName, Whence},
    rotate::PASS_EVERY,
    store::{Filter, Key, KeyStore, memory::MemoryStore, record::AekPolicy},
    telemetry::trail::{Correlation, Deed, Noted, OfGrants, Outcome, Record, Sums, Trail},
    token::{
        KekInfo, Token,
        scripted::{Act, Call, ScriptedToken},
    },
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// What is in a store, and the keys of a token.
pub(crate) type Contents = (BTreeMap<String, Vec<u8>>, Vec<KekInfo>);

pub(crate) async fn contents(store: &MemoryStore, token: &ScriptedToken) -> Contents {
    let mut values = BTreeMap::new();
    for filter in [
        Filter::Accounts,
        Filter::Keks,
        Filter::SecretsOf(account_id("a")),
        Filter::SecretValuesOf(account_id("a")),
        Filter::Grants,
    ] {
        let keys = store.list(&filter, None, 1000).await.unwrap().keys;
        for key in keys.into_iter().chain([Key::Policy]) {
            let found = store.get(&key).await.unwrap();
            values.insert(key.to_string(), found.map(|found| found.value).unwrap_or_default());
        }
    }
    (values, token.list_keks().await.unwrap())
}

/// A trail in memory, which does as a test says.
#[derive(Default)]
pub(crate) struct Scripted {
    taken: Mutex<Vec<Record>>,
    /// Records that may still be written before it refuses all.
    writes_left: Mutex<Option<usize>>,
    pub(crate) hangs: AtomicBool,
    pub(crate) withholds: AtomicBool,
    /// Records of this deed, and whether what they are of is to be refused.
    pub(crate) loses: Mutex<Option<(Deed, bool)>>,
    /// It has no room, and a flush makes none.
    pub(crate) is_crowded: AtomicBool,
    /// It takes what is asked for, and never says so.
    stops: AtomicBool,
    /// How many records it had at each.
    flushes: Mutex<Vec<usize>>,
    /// What was there as something was asked for.
    seen: Mutex<Option<Contents>>,
    sees: Mutex<Option<(Arc<MemoryStore>, Arc<ScriptedToken>)>>,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

pub(crate) fn full() -> Error {
    Error::Trail("the disk is full".into())
}

#[async_trait]
impl Trail for Scripted {
    fn note(&self, record: Record) -> Noted {
        match *self.loses.lock().unwrap() {
            Some((deed, refuses)) if deed == record.deed => {
                if refuses {
                    Noted::Refused(full())
                } else {
                    Noted::Lost(full())
                }
            }
            _ => {
                self.taken.lock().unwrap().push(record);
                Noted::Taken
            }
        }
    }

    async fn write(&self, record: Record) -> Result<()> {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if let Some(left) = &mut *self.writes_left.lock().unwrap() {
            *left = left.checked_sub(1).ok_or_else(full)?;
        }
        let sees = self.sees.lock().unwrap().clone();
        if let (Outcome::Asked, Some((store, token))) = (&record.outcome, sees) {
            let seen = contents(&store, &token).await;
            *self.seen.lock().unwrap() = Some(seen);
        }
        let stops = record.outcome == Outcome::Asked && self.stops.load(Ordering::SeqCst);
        assert_eq!(self.note(record), Noted::Taken);
        if stops {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        let taken = self.taken.lock().unwrap().len();
        self.flushes.lock().unwrap().push(taken);
        Ok(())
    }

    fn serves(&self) -> Result<()> {
        if self.withholds.load(Ordering::SeqCst) { Err(full()) } else { Ok(()) }
    }

    fn has_room(&self) -> bool {
        !self.is_crowded.load(Ordering::SeqCst)
    }
}

impl Scripted {
    pub(crate) fn refuse_after(&self, writes: usize) {
        *self.writes_left.lock().unwrap() = Some(writes);
    }

    /// What was told by one request, but for what the token was asked on the way.
    fn of(&self, id: Correlation) -> Vec<(Deed, Outcome)> {
        let taken = self.taken.lock().unwrap();
        let its = taken.iter().filter(|record| record.by.correlation == id);
        let its = its.filter(|record| !matches!(record.deed, Deed::KeyWrap | Deed::KeyUnwrap | Deed::Granted));
        its.map(|record| (record.deed, record.outcome.clone())).collect()
    }

    pub(crate) fn records(&self, deed: Deed) -> Vec<Record> {
        self.taken.lock().unwrap().iter().filter(|record| record.deed == deed).cloned().collect()
    }

    fn forget(&self) {
        self.taken.lock().unwrap().clear();
    }
}

/// Another engine over the rig's token and store, with a trail.
pub(crate) fn engine(rig: &Rig, trail: &Arc<Scripted>) -> Engine {
    Engine::builder(rig.token.clone(), rig.store.clone())
        .on_current_runtime()
        .clock(Clock::Manual(rig.clock.clone()))
        .jitter_seed(1)
        .start_up_proof(false)
        .settings(Settings::default().purge_protection(false))
        .trail(trail.clone())
        .build()
        .unwrap()
}

pub(crate) const ID: Correlation = Correlation::new([7; 16]);

/// What a call is on the trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Is {
    /// It changes something.
    Act(Deed),
    /// It does something with data, of which nobody waits for the line.
    Told(Deed),
    /// It is told where it is refused, and by what it does on the way.
    Read,
}

pub(crate) fn is(call: &str) -> Is {
    match call {
        "Engine::account" | "Engine::account_blocking" => Is::Told(Deed::AccountOpen),
        "Engine::evict" => Is::Told(Deed::AccountEvict),
        "Secrets::get" => Is::Told(Deed::SecretGet),
        "Engine::account_record"
        | "Engine::accounts"
        | "Engine::retirable_aeks"
        | "Engine::purgeable_account"
        | "Engine::kek"
        | "Engine::keks"
        | "Engine::count_wrapped_by"
        | "Engine::retirable_kek"
        | "Engine::unknown_keks"
        | "Engine::unknown_keks_in"
        | "Engine::unaddressable_keys_in"
        | "Engine::token_info"
        | "Engine::schedule"
        | "Engine::policy"
        | "Secrets::list"
        | "Secrets::show"
        | "Secrets::purgeable" => Is::Read,
        "Engine::create_account" | "Engine::get_or_create_account" => Is::Act(Deed::AccountCreate),
        "Engine::rotate_account" | "Engine::rotate_account_from" => Is::Act(Deed::AccountRotate),
        "Engine::retire_aeks" | "Engine::retire_aeks_as_shown" => Is::Act(Deed::AeksRetire),
        "Engine::move_account" => Is::Act(Deed::AccountMove),
        "Engine::delete_account" => Is::Act(Deed::AccountDelete),
        "Engine::undelete_account" => Is::Act(Deed::AccountUndelete),
        "Engine::purge_account" | "Engine::purge_account_as_shown" => Is::Act(Deed::AccountPurge),
        "Engine::set_aek_policy" => Is::Act(Deed::AekPolicySet),
        "Engine::create_kek" | "Engine::get_or_create_kek" => Is::Act(Deed::KekCreate),
        "Engine::rotate_kek" | "Engine::rotate_kek_from" => Is::Act(Deed::KekRotate),
        "Engine::adopt_kek" => Is::Act(Deed::KekAdopt),
        "Engine::set_kek_policy" => Is::Act(Deed::KekPolicySet),
        "Engine::attest_backup" => Is::Act(Deed::KekBackupAttest),
        "Engine::rewrap_kek" => Is::Act(Deed::KekRewrap),
        "Engine::retire_kek" | "Engine::retire_kek_as_shown" => Is::Act(Deed::KekRetire),
        "Engine::probe" | "Engine::probe_on" => Is::Act(Deed::TokenProbe),
        "Engine::run_schedule" => Is::Act(Deed::ScheduleRun),
        "Engine::add_grants" => Is::Act(Deed::GrantAdded),
        "Engine::remove_grant" => Is::Act(Deed::GrantRemoved),
        "Engine::set_role" => Is::Act(Deed::RoleSet),
        "Engine::remove_role" => Is::Act(Deed::RoleRemoved),
        "Secrets::set" => Is::Act(Deed::SecretSet),
        "Secrets::set_enabled" => Is::Act(Deed::SecretSwitch),
        "Secrets::rotate" => Is::Act(Deed::SecretRotate),
        "Secrets::set_rotation" => Is::Act(Deed::SecretRotationSet),
        "Secrets::delete" => Is::Act(Deed::SecretDelete),
        "Secrets::undelete" => Is::Act(Deed::SecretUndelete),
        "Secrets::purge" | "Secrets::purge_as_shown" => Is::Act(Deed::SecretPurge),
        "Secrets::reseal" => Is::Act(Deed::SecretReseal),
        "Secrets::run_schedule" => Is::Act(Deed::SecretScheduleRun),
        other => panic!("{other}: say here what it is on the trail"),
    }
}

/// The acts that only take the use of something away.
pub(crate) const TAKE_AWAY: [&str; 4] =
    ["Engine::delete_account", "Engine::remove_grant", "Secrets::delete", "Secrets::set_enabled"];

/// Every call of the manual's table that can be tried here, with what it takes.
pub(crate) fn each_call() -> Vec<(String, Vec<Operation>)> {
    let is_tried = |call: &str| {
        (call.starts_with("Engine::") || cfg!(feature = "secrets") && call.starts_with("Secrets::"))
            && call != "Engine::account_blocking" // which blocks
    };
    table().into_iter().filter(|(call, takes)| is_tried(call) && !takes.is_empty()).collect()
}

/// With a secret `s`, one that is deleted, `gone`, in account `a`, beside what the tests of grants have.
pub(crate) async fn rig() -> Rig {
    let rig = grants::rig().await;
    give(&rig, vec![grant("all", &Operation::ALL)]).await;
    #[cfg(feature = "secrets")]
    secrets::fill(&rig.engine.caller(caller("all"))).await;
    rig
}

pub(crate) async fn call(engine: &Engine, rig: &Rig, name: &str) -> Result<()> {
    match name.split_once("::").unwrap() {
        // The KEK that is there is found, and nothing is made.
        ("Engine", "get_or_create_kek") => {
            let options = keyleash::token::Profile::AesGcm;
            engine.get_or_create_kek(&KekName::new("new").unwrap(), options).await.map(drop)
        }
        ("Engine", name) => grants::call(engine, rig, name).await,
        #[cfg(feature = "secrets")]
        ("Secrets", name) => secrets::call(engine, name).await,
        _ => panic!("{name}"),
    }
}

#[cfg(feature = "secrets")]
pub(crate) mod secrets {
    use super::*;
    use keyleash::{
        When,
        name::{SecretId, SecretName},
        secrets::{RotationPolicy, SecretValue, SetOptions},
    };

    fn id(name: &str) -> SecretId {
        SecretId::new(account_id("a"), SecretName::new(name).unwrap())
    }

    fn value() -> SecretValue {
        SecretValue::new(b"value".to_vec()).unwrap()
    }

    pub(super) async fn fill(engine: &Engine) {
        for name in ["s", "gone"] {
            engine.secrets().set(&id(name), value(), SetOptions::default()).await.unwrap();
        }
        engine.secrets().delete(&id("gone")).await.unwrap();
    }

    pub(crate) async fn call(engine: &Engine, name: &str) -> Result<()> {
        let secrets = engine.secrets();
        let shown = |name: &'static str| {
            let of_all = engine.caller(caller("all")).secrets();
            async move { of_all.show(&id(name)).await.unwrap() }
        };
        match name {
            "get" => secrets.get(&id("s"), None).await.map(drop),
            "set" => secrets.set(&id("s"), value(), SetOptions::default()).await.map(drop),
            "set_enabled" => secrets.set_enabled(&id("s"), 1, false).await,
            "rotate" => secrets.rotate(&id("s")).await.map(drop),
            "set_rotation" => {
                let policy = RotationPolicy::new(Duration::from_secs(60), "/bin/false");
                secrets.set_rotation(&id("s"), Some(policy)).await
            }
            "list" => secrets.list(&account_id("a"), None, 9).await.map(drop),
            "show" => secrets.show(&id("s")).await.map(drop),
            "delete" => secrets.delete(&id("s")).await.map(drop),
            "undelete" => secrets.undelete(&id("gone")).await,
            "purge" => secrets.purge(&id("gone"), When::Now).await,
            "purge_as_shown" => secrets.purge_as_shown(&shown("gone").await, When::Now).await,
            "purgeable" => secrets.purgeable(&id("gone"), When::Now).await.map(drop),
            "reseal" => secrets.reseal(&account_id("a")).await.map(drop),
            "run_schedule" => secrets.run_schedule().await.map(drop),
            other => panic!("Secrets::{other} is called by no test: call it here"),
        }
    }
}

#[test]
fn every_call_of_the_table_is_something_on_the_trail() {
    let acts = each_call().iter().filter(|(call, _)| matches!(is(call), Is::Act(_))).count();
    assert!(acts >= if cfg!(feature = "secrets") { 38 } else { 28 }, "{acts}");
    // What reads must not be among those that change something: `Engine::act` is how that is done.
    let sources = include_str!("../../src/engine/accounts.rs").to_owned() + include_str!("../../src/engine/keks.rs");
    for body in sources.split("    pub async fn ").skip(1) {
        let (name, body) = body.split_once('(').unwrap();
        let name = format!("Engine::{}", name.split('<').next().unwrap());
        let body = body.split("\n    }\n").next().unwrap();
        let asks = body.contains("self.permit(");
        assert!(
            !asks || is(&name) == Is::Read || name.ends_with("_kek"),
            "{name} is an act, and only asks for a permit"
        );
    }
    assert!(calls(&sources).count() > 20);
}

/// Also where it fails, and nothing is there before the line.
#[tokio::test]
async fn what_changes_something_is_on_the_trail_before_it_is_done_and_when_it_has_ended() {
    let (mut done, mut failed) = (0, 0);
    for (name, _) in each_call() {
        let (rig, trail) = (rig().await, Arc::new(Scripted::default()));
        let engine = engine(&rig, &trail);
        let asks = engine.caller(caller("all")).from_where(Whence::new("10.0.0.7").unwrap()).correlation(ID);
        settle().await;
        trail.forget();
        *trail.sees.lock().unwrap() = Some((rig.store.clone(), rig.token.clone()));
        let before = contents(&rig.store, &rig.token).await;
        let outcome = rig.meanwhile(call(&asks, &rig, &name)).await;
        let lines = trail.of(ID);
        let ended = Outcome::of(&outcome);
        match is(&name) {
            Is::Act(deed) => {
                assert_eq!(lines[..2], [(deed, Outcome::Asked), (deed, ended)], "{name}: {outcome:?}");
                assert_eq!(trail.seen.lock().unwrap().as_ref(), Some(&before), "{name} began before its line");
                *(if outcome.is_ok() { &mut done } else { &mut failed }) += 1;
                assert!(lines.len() == 2 || name == "Engine::get_or_create_account", "{name}: {lines:?}");
                let records = trail.records(deed);
                assert!(records.iter().all(|record| record.by.caller == Some(caller("all"))
                    && record.by.from == Some(Whence::new("10.0.0.7").unwrap())));
                assert!(records[1].took.is_some() && records[0].took.is_none());
            }
            Is::Told(deed) => assert_eq!(lines, [(deed, ended)], "{name}"),
            Is::Read => assert!(lines.is_empty(), "{name}: {lines:?}"),
        }
    }
    assert!(done > 15 && failed > 3, "{done} done, {failed} failed");
}

#[tokio::test]
async fn what_the_trail_does_not_take_is_not_begun() {
    for (name, _) in each_call() {
        let Is::Act(deed) = is(&name) else { continue };
        let (rig, trail) = (rig().await, Arc::new(Scripted::default()));
        let engine = engine(&rig, &trail).caller(caller("all")).correlation(ID);
        settle().await;
        trail.refuse_after(0);
        let before = contents(&rig.store, &rig.token).await;
        let outcome = rig.meanwhile(call(&engine, &rig, &name)).await;
        if TAKE_AWAY.contains(&name.as_str()) {
            assert_ne!(outcome, Err(full()), "{name}");
            continue;
        }
        assert_eq!(outcome, Err(full()), "{name}");
        settle().await;
        assert_eq!(contents(&rig.store, &rig.token).await, before, "{name} is half-done");
        assert_eq!(trail.of(ID), [(deed, Outcome::of(&Err::<(), _>(full())))], "{name}");
    }
}

#[tokio::test]
async fn what_was_done_stands_though_the_trail_does_not_take_its_end() {
    for (name, _) in each_call() {
        let Is::Act(deed) = is(&name) else { continue };
        let (rig, other, trail) = (rig().await, rig().await, Arc::new(Scripted::default()));
        let engine = engine(&rig, &trail).caller(caller("all")).correlation(ID);
        settle().await;
        trail.refuse_after(1);
        let outcome = rig.meanwhile(call(&engine, &rig, &name)).await;
        let as_ever = self::engine(&other, &Arc::new(Scripted::default())).caller(caller("all"));
        let as_ever = other.meanwhile(call(&as_ever, &other, &name)).await;
        assert_eq!(outcome.is_ok(), as_ever.is_ok(), "{name}: {outcome:?}, {as_ever:?}");
        assert_eq!(trail.of(ID)[0], (deed, Outcome::Asked), "{name}");
    }
}

/// Of reads too.
#[tokio::test]
async fn a_refusal_is_a_line_and_nothing_else_is() {
    for (name, takes) in each_call() {
        let (rig, trail) = (rig().await, Arc::new(Scripted::default()));
        let engine = engine(&rig, &trail).caller(caller("nobody")).correlation(ID);
        settle().await;
        let outcome = rig.meanwhile(call(&engine, &rig, &name)).await;
        assert!(matches!(outcome, Err(Error::Forbidden(_))), "{name}: {outcome:?}");
        let asked = match is(&name) {
            // Whoever may get none of the list is not told on.
            Is::Read if matches!(name.as_str(), "Engine::accounts" | "Engine::keks") => continue,
            Is::Read => None,
            Is::Told(deed) | Is::Act(deed) => Some(deed),
        };
        // It asks whether there is one first, which is a read.
        let asked = asked.filter(|_| name != "Engine::get_or_create_kek");
        assert_eq!(trail.of(ID), [(Deed::Forbidden, Outcome::of(&outcome))], "{name}");
        let record = &trail.records(Deed::Forbidden)[0];
        assert_eq!((record.on.asked, record.by.caller.clone()), (asked, Some(caller("nobody"))), "{name}, {takes:?}");
    }
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_told_as_dropped() {
    for (name, _) in each_call() {
        let Is::Act(deed) = is(&name) else { continue };
        let (rig, trail) = (Arc::new(rig().await), Arc::new(Scripted::default()));
        let engine = engine(&rig, &trail).caller(caller("all")).correlation(ID);
        settle().await;
        trail.stops.store(true, Ordering::SeqCst);
        let before = contents(&rig.store, &rig.token).await;
        let under_way = tokio::spawn({
            let (rig, name) = (rig.clone(), name.clone());
            async move { call(&engine, &rig, &name).await }
        });
        while trail.of(ID).is_empty() {
            tokio::task::yield_now().await;
        }
        under_way.abort();
        assert!(under_way.await.is_err());
        assert_eq!(trail.of(ID), [(deed, Outcome::Asked), (deed, Outcome::Dropped)], "{name}");
        settle().await;
        assert_eq!(contents(&rig.store, &rig.token).await, before, "{name} goes on for nobody");
    }
}

#[tokio::test]
async fn who_goes_away_while_the_token_is_asked_is_told_as_dropped() {
    let (rig, trail) = (rig().await, Arc::new(Scripted::default()));
    let engine = engine(&rig, &trail).caller(caller("all")).correlation(ID);
    rig.script.push(Call::Wrap, Act::Hang);
    let under_way = tokio::spawn(async move { engine.rotate_account(&account_id("a")).await });
    while rig.script.in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    under_way.abort();
    assert!(under_way.await.is_err());
    settle().await;
    assert_eq!(trail.of(ID), [(Deed::AccountRotate, Outcome::Asked), (Deed::AccountRotate, Outcome::Dropped)]);
}

/// Its queue has a bound: of many sums some are waited for.
#[tokio::test]
async fn the_sums_of_many_handles_never_wait_all_at_once_in_the_queue_of_a_trail() {
    let (rig, trail) = (Rig::new().await, Arc::new(Scripted::default()));
    rig.account("a").await;
    let engine = engine(&rig, &trail);
    let mut handles = Vec::new();
    for n in 0..2500_u128 {
        let engine = engine.correlation(Correlation::new(n.to_be_bytes()));
        handles.push(rig.meanwhile(engine.account(&account_id("a"))).await.unwrap());
    }
    handles.iter().for_each(|handle| assert!(seal(handle).is_ok()));
    trail.forget();
    rig.pass(Duration::from_secs(62)).await;
    assert_eq!(trail.records(Deed::Blocks).len(), 2500);
    handles.iter().for_each(|handle| assert!(seal(handle).is_ok()));
    rig.meanwhile(engine.close(Duration::from_secs(9))).await.unwrap();
    assert_eq!(trail.records(Deed::Blocks).len(), 5000);
    let flushes = [&[0], &trail.flushes.lock().unwrap()[..]].concat();
    let most = flushes.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    // What is left over of one minute, and the first of the next.
    assert!(most <= 2048, "{most} at once: {flushes:?}");
}

#[tokio::test]
async fn grants_are_a_line_each_with_who_was_given_what() {
    let (rig, trail) = (rig().await, Arc::new(Scripted::default()));
    let engine = engine(&rig, &trail).caller(caller("all"));
    let given = [grant("web-*", &[Operation::Seal]), grant("x", &[Operation::Open]), grant("y", &[Operation::Get])];
    let ids = engine.add_grants(given.to_vec()).await.unwrap();
    let told: Vec<_> = trail.records(Deed::GrantAdded);
    assert_eq!(told.len(), 6);
    for (n, (given, id)) in given.iter().zip(&ids).enumerate() {
        for (record, id) in [(&told[n], "new"), (&told[n + 3], id.as_str())] {
            let Some(OfGrants::Grant(grant)) = &record.on.grants else { panic!("{record:?}") };
            assert_eq!((grant.id.as_str(), &grant.callers, &grant.actions), (id, &given.callers, &given.actions));
        }
    }
}

/// Sums are of an account and whoever opened it: each minute, and what is left as the engine is closed.
#[tokio::test]
async fn blocks_are_summed_by_handle_and_minute() {
    let (rig, trail) = (Rig::new().await, Arc::new(Scripted::default()));
    rig.account("a").await;
    let engine = engine(&rig, &trail).from_where(Whence::new("host").unwrap());
    let sums = |trail: &Scripted| {
        let taken = trail.records(Deed::Blocks);
        trail.forget();
        taken.into_iter().map(|record| (record.by.caller, record.sums.unwrap())).collect::<Vec<_>>()
    };
    let open = |engine: Engine| async move { engine.account(&account_id("a")).await.unwrap() };
    let (one, same) = (rig.meanwhile(open(engine.clone())).await, open(engine.clone()).await);
    let of_app = open(engine.caller(caller("app"))).await;
    let block = one.seal_to_vec(1_u64, b"data").unwrap();
    one.clone().open_to_vec(1_u64, &block).unwrap();
    same.seal_in_place(1_u64, &mut [0; 10]).unwrap();
    of_app.open_to_vec(1_u64, &block).unwrap();
    assert!(of_app.open_to_vec(2_u64, &block).is_err(), "which is not counted");
    rig.pass(Duration::from_secs(62)).await;
    let mut told = sums(&trail);
    told.sort_by_key(|(caller, _)| caller.clone());
    let expected = |sealed, sealed_bytes, opened, opened_bytes| {
        let mut sums = Sums::default();
        (sums.sealed, sums.sealed_bytes, sums.opened, sums.opened_bytes) = (sealed, sealed_bytes, opened, opened_bytes);
        sums
    };
    assert_eq!(told, [(None, expected(2, 14, 1, 4)), (Some(caller("app")), expected(0, 0, 1, 4))]);
    rig.pass(Duration::from_secs(62)).await;
    assert_eq!(sums(&trail), [], "nothing was done");
    // What handles did that are gone by then.
    same.seal_in_place(1_u64, &mut [0; 3]).unwrap();
    drop((one, same, of_app));
    rig.pass(Duration::from_secs(62)).await;
    assert_eq!(sums(&trail), [(None, expected(1, 3, 0, 0))]);
    let again = rig.meanwhile(open(engine.clone())).await;
    again.seal_in_place(1_u64, &mut [0; 5]).unwrap();
    rig.meanwhile(engine.close(Duration::from_secs(9))).await.unwrap();
    assert_eq!(trail.records(Deed::EngineClose).len(), 1);
    assert_eq!(sums(&trail), [(None, expected(1, 5, 0, 0))], "as the engine is closed");
    assert_eq!(trail.flushes.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_handles_did_is_told_as_the_last_of_them_goes_with_the_engine() {
    let (rig, trail) = (Rig::new().await, Arc::new(Scripted::default()));
    rig.account("a").await;
    let engine = engine(&rig, &trail);
    let account = rig.meanwhile(engine.account(&account_id("a"))).await.unwrap();
    seal(&account).unwrap();
    drop((engine, account));
    assert_eq!(trail.records(Deed::Blocks).len(), 1);
    assert_eq!(trail.records(Deed::EngineBegin).len(), 1);
}

#[tokio::test]
async fn seals_that_are_forbidden_are_a_line_at_once_and_then_counted() {
    let (rig, trail) = (rig().await, Arc::new(Scripted::default()));
    let engine = engine(&rig, &trail);
    give(&rig, vec![grant("reader", &[Operation::Unwrap, Operation::Open])]).await;
    rig.pass(Duration::from_secs(2)).await;
    let account = rig.meanwhile(engine.caller(caller("reader")).account(&account_id("a"))).await.unwrap();
    (0..5).for_each(|_| assert!(matches!(seal(&account), Err(Error::Forbidden(_)))));
    let told = trail.records(Deed::Forbidden);
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].on.asked, told[0].by.caller.clone()), (Some(Deed::Blocks), Some(caller("reader"))));
    rig.pass(Duration::from_secs(62)).await;
    assert_eq!(trail.records(Deed::Blocks)[0].sums.unwrap().forbidden, 5);
}

/// While the trail cannot be kept and its operator wants that.
#[tokio::test]
async fn nothing_is_sealed_opened_or_read_unseen_and_leases_go_on() {
    let (rig, trail) = (rig().await, Arc::new(Scripted::default()));
    let engine = engine(&rig, &trail).caller(caller("all"));
    let account = rig.meanwhile(engine.account(&account_id("a"))).await.unwrap();
    let block = account.seal_to_vec(1_u64, b"data").unwrap();
    trail.withholds.store(true, Ordering::SeqCst);
    rig.pass(Duration::from_secs(2)).await;
    let proofs = rig.script.calls(Call::Unwrap);
    assert_eq!(account.seal_to_vec(1_u64, b"data"), Err(full()));
    assert_eq!(account.open_to_vec(1_u64, &block), Err(full()));
    assert_eq!(account.warm().await, Err(full()));
    assert!(matches!(engine.account(&account_id("a")).await, Err(Error::Trail(_))));
    #[cfg(feature = "secrets")]
    assert_eq!(secrets::call(&engine, "get").await, Err(full()));
    rig.pass(Duration::from_secs(60)).await;
    assert!(rig.script.calls(Call::Unwrap) > proofs, "the lease is renewed");
    trail.withholds.store(false, Ordering::SeqCst);
    rig.pass(Duration::from_secs(2)).await;
    assert_eq!(account.open_to_vec(1_u64, &block).unwrap(), b"data");
    assert!(seal(&account).is_ok() && engine.account(&account_id("a")).await.is_ok());
}

/// A handle without a name, too, and what is opened meanwhile.
#[tokio::test]
async fn what_is_withheld_is_withheld_without_a_policy_and_from_new_handles() {
    let (rig, trail) = (Rig::new().await, Arc::new(Scripted::default()));
    rig.account("a").await;
    trail.withholds.store(true, Ordering::SeqCst);
    let engine = engine(&rig, &trail);
    assert!(matches!(rig.meanwhile(engine.account(&account_id("a"))).await, Err(Error::Trail(_))), "from the first on");
    trail.withholds.store(false, Ordering::SeqCst);
    rig.pass(Duration::from_secs(2)).await;
    let (unnamed, named) = (engine.clone(), engine.caller(caller("x")));
    let handles: Vec<Account> = vec![
        rig.meanwhile(unnamed.account(&account_id("a"))).await.unwrap(),
        rig.meanwhile(named.account(&account_id("a"))).await.unwrap(),
    ];
    trail.withholds.store(true, Ordering::SeqCst);
    rig.pass(Duration::from_secs(2)).await;
    assert!(handles.iter().all(|handle| seal(handle) == Err(full())));
    // The first grant comes meanwhile, and it is withheld all the same.
    rig.engine.add_grants(vec![grant("x", &Operation::ALL)]).await.unwrap();
    rig.pass(Duration::from_secs(2)).await;
    assert!(handles.iter().all(|handle| seal(handle) == Err(full())));
    trail.withholds.store(false, Ordering::SeqCst);
    rig.pass(Duration::from_secs(2)).await;
    assert!(matches!(seal(&handles[0]), Err(Error::Forbidden(_))) && seal(&handles[1]).is_ok());
}

/// Promise 1 does not wait for a disk.
#[tokio::test]
async fn a_trail_that_hangs_delays_no_proof_no_denial_and_no_wipe() {
    let (rig, trail) = (Rig::new().await, Arc::new(Scripted::default()));
    rig.account("a").await;
    let engine = engine(&rig, &trail);
    let account = rig.meanwhile(engine.account(&account_id("a"))).await.unwrap();
    trail.hangs.store(true, Ordering::SeqCst);
    let under_way = tokio::spawn({
        let engine = engine.clone();
        async move { engine.rotate_account(&account_id("a")).await }
    });
    rig.pass(Duration::from_secs(1)).await;
    assert!(seal(&account).is_ok() && !under_way.is_finished());
    let settings = engine.settings().clone();
    rig.script.disable(&rig.kek_id);
    rig.pass(settings.poll_interval + settings.poll_interval / 10 + settings.store_timeout).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))));
    assert_eq!(engine.leases()[0].filled_slots, 0, "it is wiped");
    assert_eq!(trail.records(Deed::Denied).len(), 1);
    assert!(matches!(under_way.await.unwrap(), Err(Error::Trail(_))), "refused within a store_timeout");
    rig.script.enable(&rig.kek_id);
    rig.pass(Duration::from_secs(60)).await;
    assert!(seal(&account).is_ok());
    assert_eq!((trail.records(Deed::Resuming).len(), trail.records(Deed::Resumed).len()), (1, 1));
}

#[tokio::test]
async fn unwraps_and_what_becomes_of_leases_are_told_with_why_and_by_whom() {
    let (rig, trail) = (Rig::new().await, Arc::new(Scripted::default()));
    rig.account("a").await;
    let engine = engine(&rig, &trail).caller(caller("app")).correlation(ID);
    let account: AccountId = account_id("a");
    let handle = rig.meanwhile(engine.account(&account)).await.unwrap();
    let unwrap = &trail.records(Deed::KeyUnwrap)[0];
    assert_eq!((unwrap.by.caller.clone(), unwrap.by.correlation), (Some(caller("app")), ID));
    assert_eq!((unwrap.on.account.clone(), unwrap.on.aek_versions.clone()), (Some(account.clone()), vec![1]));
    assert_eq!((unwrap.on.kek.clone(), unwrap.on.kek_version), (Some(rig.kek.clone()), Some(1)));
    assert_eq!(unwrap.on.token_serial.as_deref(), rig.token.serial().as_deref());
    assert_eq!((unwrap.outcome.clone(), unwrap.took.is_some()), (Outcome::Done, true));
    assert_eq!(trail.records(Deed::Granted).len(), 1);
    engine.evict(&account).await.unwrap();
    trail.forget();
    rig.script.disable(&rig.kek_id);
    let denied = rig.meanwhile(handle.warm()).await;
    assert!(matches!(denied, Err(Error::Denied(_))));
    let unwrap = &trail.records(Deed::KeyUnwrap)[0];
    assert!(matches!(&unwrap.outcome, Outcome::Failed(why) if why.kind == "denied"), "{unwrap:?}");
    assert_eq!(unwrap.by.caller, Some(caller("app")), "whose handle it is");
    assert!(matches!(&trail.records(Deed::Denied)[0].outcome, Outcome::Failed(why) if why.kind == "denied"));
    rig.script.enable(&rig.kek_id);
    rig.pass(Duration::from_secs(60)).await;
    rig.script.replace(&rig.kek_id);
    rig.pass(Duration::from_secs(60)).await;
    assert_eq!(trail.records(Deed::KekReplaced).len(), 1);
}

/// Nobody asks for it, and it is done as a call is.
#[tokio::test]
async fn what_is_rotated_by_schedule_is_on_the_trail_before_it_is_done() {
    let rig = Rig::with(Settings::default().scheduled_work(false)).await;
    let trail = Arc::new(Scripted::default());
    rig.account("a").await;
    rig.engine.set_aek_policy(&account_id("a"), AekPolicy { max_blocks: 3, ..AekPolicy::default() }).await.unwrap();
    let engine = engine(&rig, &trail);
    let account = rig.meanwhile(engine.account(&account_id("a"))).await.unwrap();
    trail.refuse_after(0);
    (0..3).for_each(|_| seal(&account).unwrap());
    rig.meanwhile(engine.write_usage()).await.unwrap();
    rig.pass_by(2 * PASS_EVERY, Duration::from_secs(1)).await;
    let versions = || async { rig.engine.account_record(&account_id("a")).await.unwrap().versions.len() };
    assert_eq!(versions().await, 1, "nothing unseen");
    trail.forget();
    *trail.writes_left.lock().unwrap() = None;
    rig.pass_by(2 * PASS_EVERY, Duration::from_secs(1)).await;
    assert_eq!(versions().await, 2);
    let told = trail.records(Deed::AccountRotate);
    let outcomes: Vec<_> = told.iter().map(|record| record.outcome.clone()).collect();
    assert_eq!(outcomes, [Outcome::Asked, Outcome::Done]);
    assert_eq!((told[1].on.aek_versions.clone(), told[1].by.caller.clone()), (vec![2], None));
}
