//! Who may do what: by the table of the manual, for every call that there is.

use crate::{Rig, account_id, build, seal};
use keyleash::{
    Account, Engine, Error, Result, When,
    access::{Actions, Grant, Operation, Operations, Pattern, Policy, Role},
    clock::Clock,
    config::Settings,
    engine::PolicySource,
    name::{AccountId, CallerId, GrantId, KekName, KekVersion, RoleName, TokenName},
    rotate::RewrapOptions,
    store::{
        Filter, Key, KeyStore,
        record::{AekPolicy, KekPolicy},
    },
    telemetry::Event,
    token::{KekId, Profile},
};
use std::{collections::BTreeMap, time::Duration};

const MANUAL: &str = include_str!("../../src/manual/grants.md");
/// Where the calls are.
const SOURCES: [&str; 6] = [
    include_str!("../../src/engine/mod.rs"),
    include_str!("../../src/engine/accounts.rs"),
    include_str!("../../src/engine/keks.rs"),
    include_str!("../../src/engine/schedule.rs"),
    include_str!("../../src/engine/close.rs"),
    include_str!("../../src/engine/grants.rs"),
];

/// Each call of the table, and what it takes by it.
fn table() -> BTreeMap<String, Vec<Operation>> {
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let mut table = BTreeMap::new();
    for row in MANUAL.lines().filter(|row| {
        row.starts_with('|') && ["`Engine::", "`Account::", "`Secrets::"].iter().any(|call| row.contains(call))
    }) {
        let cells: Vec<_> = row.split('|').collect();
        let operations: Vec<_> = quoted(cells[2]).iter().map(|name| Operation::parse(name).unwrap()).collect();
        assert!(!operations.is_empty() || cells[2].trim() == "none", "{row}");
        for call in quoted(cells[1]) {
            assert!(table.insert(call.clone(), operations.clone()).is_none(), "{call} is in two rows");
        }
    }
    table
}

fn calls(source: &str) -> impl Iterator<Item = &str> {
    let code = source.split("#[cfg(test)]").next().unwrap();
    code.lines()
        .filter_map(|line| line.strip_prefix("    pub async fn "))
        .map(|line| line.split(['(', '<']).next().unwrap())
}

#[test]
fn every_call_is_in_the_table_of_the_manual() {
    let table = table();
    let engine = SOURCES.into_iter().flat_map(calls).map(|call| format!("Engine::{call}"));
    let account = calls(include_str!("../../src/account/warm.rs")).map(|call| format!("Account::{call}"));
    let secrets = [
        include_str!("../../src/secrets/versions.rs"),
        include_str!("../../src/secrets/life.rs"),
        include_str!("../../src/secrets/rotation.rs"),
    ];
    let secrets = secrets.into_iter().flat_map(calls).map(|call| format!("Secrets::{call}"));
    let blocking = ["Engine::account_blocking".into(), "Account::warm_blocking".into()];
    let known: Vec<_> = engine.chain(account).chain(secrets).chain(blocking).collect();
    let missing: Vec<_> = known.iter().filter(|call| !table.contains_key(*call)).collect();
    assert!(missing.is_empty(), "in no row: {missing:?}");
    let listed = include_str!("../../.ci/api/expected");
    for call in table.keys() {
        let name = call.replace("::", "_");
        assert!(listed.contains(&format!("{}(", call)) || known.contains(call), "{name} does not exist");
    }
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/engine")).unwrap() {
        let path = file.unwrap().path();
        for call in calls(&std::fs::read_to_string(&path).unwrap()) {
            assert!(known.contains(&format!("Engine::{call}")), "{} is looked at by no test", path.display());
        }
    }
}

fn caller(id: &str) -> CallerId {
    CallerId::new(id).unwrap()
}

pub(crate) fn grant(callers: &str, operations: &[Operation]) -> Grant {
    scoped(callers, operations, "*", "*")
}

fn scoped(callers: &str, operations: &[Operation], keks: &str, accounts: &str) -> Grant {
    let [callers, keks, accounts] = [callers, keks, accounts].map(|pattern| Pattern::new(pattern).unwrap());
    let actions = Actions::Operations(Operations::of(operations));
    Grant { id: GrantId::new("new").unwrap(), callers, keks, accounts, actions }
}

fn is_forbidden<T>(outcome: &Result<T>, operation: Operation) -> bool {
    matches!(outcome, Err(Error::Forbidden(forbidden)) if forbidden.operation == operation.name())
}

/// With an account `a`, one that is deleted, `gone`, and a second KEK, `other`; and somebody who may change grants.
async fn rig() -> Rig {
    let rig = Rig::new().await;
    rig.account("a").await;
    rig.account("gone").await;
    rig.engine.delete_account(&account_id("gone")).await.unwrap();
    rig.engine.create_kek(&KekName::new("other").unwrap(), Profile::AesGcm).await.unwrap();
    rig.engine.add_grants(vec![grant("boss", &[Operation::GrantWrite])]).await.unwrap();
    rig
}

fn boss(rig: &Rig) -> Engine {
    rig.engine.caller(caller("boss"))
}

async fn give(rig: &Rig, grants: Vec<Grant>) -> Vec<GrantId> {
    boss(rig).add_grants(grants).await.unwrap()
}

async fn call(engine: &Engine, rig: &Rig, name: &str) -> Result<()> {
    let (a, gone, new, kek, other) =
        (&account_id("a"), &account_id("gone"), &account_id("new"), &rig.kek, &KekName::new("other").unwrap());
    let (version, token) = (&KekVersion::new(kek.clone(), 1), &TokenName::default());
    let role = RoleName::new("r").unwrap();
    match name {
        "account" => engine.account(a).await.map(drop),
        "create_account" => engine.create_account(new, kek).await.map(drop),
        "get_or_create_account" => engine.get_or_create_account(new, kek).await.map(drop),
        "account_record" => engine.account_record(a).await.map(drop),
        "accounts" => engine.accounts(None, 9).await.map(drop),
        "rotate_account" => engine.rotate_account(a).await.map(drop),
        "rotate_account_from" => engine.rotate_account_from(a, 1).await.map(drop),
        "retire_aeks" => engine.retire_aeks(a, &[7], When::Now).await,
        "retire_aeks_as_shown" => {
            let shown = rig.store.get(&Key::Account(a.clone())).await.unwrap().unwrap();
            let shown = keyleash::store::record::AccountRecord::decode(&Key::Account(a.clone()), &shown.value).unwrap();
            engine.retire_aeks_as_shown(&shown, &[7], When::Now).await
        }
        "retirable_aeks" => engine.retirable_aeks(a, &[7], When::Now).await.map(drop),
        "move_account" => engine.move_account(a, other).await.map(drop),
        "delete_account" => engine.delete_account(a).await.map(drop),
        "undelete_account" => engine.undelete_account(gone).await,
        "purge_account" => engine.purge_account(gone, When::Now).await,
        "purge_account_as_shown" => {
            let shown = rig.store.get(&Key::Account(gone.clone())).await.unwrap().unwrap();
            let shown =
                keyleash::store::record::AccountRecord::decode(&Key::Account(gone.clone()), &shown.value).unwrap();
            engine.purge_account_as_shown(&shown, When::Now).await
        }
        "purgeable_account" => engine.purgeable_account(gone, When::Now).await.map(drop),
        "evict" => engine.evict(a).await,
        "set_aek_policy" => engine.set_aek_policy(a, AekPolicy::default()).await,
        "create_kek" => engine.create_kek(&KekName::new("new").unwrap(), Profile::AesGcm).await.map(drop),
        "get_or_create_kek" => engine.get_or_create_kek(kek, Profile::AesGcm).await.map(drop),
        "kek" => engine.kek(kek).await.map(drop),
        "count_wrapped_by" => engine.count_wrapped_by(version).await.map(drop),
        "keks" => engine.keks().await.map(drop),
        "rotate_kek" => engine.rotate_kek(kek).await.map(drop),
        "rotate_kek_from" => engine.rotate_kek_from(kek, 1).await.map(drop),
        "adopt_kek" => engine.adopt_kek(kek, &KekId::new([1]).unwrap()).await.map(drop),
        "set_kek_policy" => engine.set_kek_policy(kek, KekPolicy::default()).await,
        "attest_backup" => engine.attest_backup(version).await,
        "rewrap_kek" => engine.rewrap_kek(kek, RewrapOptions::default(), |_| {}).await.map(drop),
        "retire_kek" => engine.retire_kek(version).await,
        "retire_kek_as_shown" => {
            let shown = rig.store.get(&Key::Kek(kek.clone())).await.unwrap().unwrap();
            let shown = keyleash::store::record::KekRecord::decode(&Key::Kek(kek.clone()), &shown.value).unwrap();
            engine.retire_kek_as_shown(kek, shown.current().unwrap()).await
        }
        "retirable_kek" => engine.retirable_kek(version).await.map(drop),
        "unknown_keks" => engine.unknown_keks().await.map(drop),
        "unknown_keks_in" => engine.unknown_keks_in(token).await.map(drop),
        "unaddressable_keys_in" => engine.unaddressable_keys_in(token).await.map(drop),
        "token_info" => engine.token_info(token).await.map(drop),
        "probe" => engine.probe(Profile::AesGcm).await.map(drop),
        "probe_on" => engine.probe_on(token, Profile::AesGcm).await.map(drop),
        "schedule" => engine.schedule(9).await.map(drop),
        "run_schedule" => engine.run_schedule().await.map(drop),
        "policy" => engine.policy().await.map(drop),
        "add_grants" => engine.add_grants(vec![grant("x", &[Operation::Get])]).await.map(drop),
        "remove_grant" => engine.remove_grant(&GrantId::new("00000000").unwrap()).await,
        "set_role" => engine.set_role(own_role("r")).await,
        "remove_role" => engine.remove_role(&role).await,
        other => panic!("Engine::{other} is called by no test: call it here"),
    }
}

fn own_role(name: &str) -> Role {
    Role {
        name: RoleName::new(name).unwrap(),
        operations: Operations::of(&[Operation::Get]),
        includes: Vec::new(),
        not: Operations::NONE,
        keks: Pattern::all(),
        accounts: Pattern::all(),
    }
}

/// By whoever has no grant, whoever has no name, and whoever lacks one of the operations that it takes, of which the refusal says so.
#[tokio::test]
async fn every_call_is_refused_without_its_grants_and_done_with_them() {
    for (call_name, operations) in table() {
        let Some(name) = call_name.strip_prefix("Engine::") else { continue };
        if operations.is_empty() || name == "account_blocking" {
            continue; // nobody's; and one that blocks, which is tried below
        }
        let rig = rig().await;
        let lacking = |operation| Operations::ALL.without(Operations::of(&[operation])).iter().collect::<Vec<_>>();
        let mut grants = vec![grant("all", &operations)];
        for operation in &operations {
            grants.push(grant(&format!("no-{operation}"), &lacking(*operation)));
        }
        give(&rig, grants).await;
        let first = if name == "get_or_create_account" { Operation::Create } else { operations[0] };
        for unknown in [rig.engine.clone(), rig.engine.caller(caller("nobody"))] {
            let outcome = call(&unknown, &rig, name).await;
            assert!(is_forbidden(&outcome, first), "{name}: {outcome:?}");
        }
        for operation in &operations {
            if (name, *operation) == ("get_or_create_account", Operation::Unwrap) {
                continue; // of one that is not there it is not asked
            }
            let outcome = call(&rig.engine.caller(caller(&format!("no-{operation}"))), &rig, name).await;
            assert!(is_forbidden(&outcome, *operation), "{name} without {operation}: {outcome:?}");
        }
        let fresh = self::rig().await;
        give(&fresh, vec![grant("all", &operations)]).await;
        let outcome = fresh.meanwhile(call(&fresh.engine.caller(caller("all")), &fresh, name)).await;
        assert!(!matches!(outcome, Err(Error::Forbidden(_))), "{name} with all that it takes: {outcome:?}");
    }
}

#[tokio::test]
async fn a_handle_does_what_is_granted_to_whoever_opened_it() {
    let rig = rig().await;
    let handles =
        [("reader", vec![Operation::Unwrap, Operation::Open]), ("writer", vec![Operation::Unwrap, Operation::Seal])];
    give(&rig, handles.iter().map(|(name, operations)| grant(name, operations)).collect()).await;
    let open = async |name| rig.engine.caller(caller(name)).account(&account_id("a")).await.unwrap();
    let (reader, writer) = (open("reader").await, open("writer").await);
    let sealed = writer.seal_to_vec(1_u64, b"data").unwrap();
    assert_eq!(reader.open_to_vec(1_u64, &sealed).unwrap(), b"data");
    assert!(is_forbidden(&writer.open_to_vec(1_u64, &sealed), Operation::Open));
    assert!(is_forbidden(&reader.seal_to_vec(1_u64, b"data"), Operation::Seal));
    assert_eq!(reader.caller(), Some(&caller("reader")));
    let (header, ciphertext) = keyleash::block::BlockHeader::split(&sealed).unwrap();
    let mut buf = ciphertext.to_vec();
    assert!(is_forbidden(&reader.reseal_in_place(1_u64, &header, &mut buf), Operation::Seal) && buf == ciphertext);
    assert!(is_forbidden(&writer.reseal_in_place(1_u64, &header, &mut buf), Operation::Open) && buf == ciphertext);
    assert!(is_forbidden(&writer.open_in_place(1_u64, &header, &mut buf), Operation::Open) && buf == ciphertext);
    assert!(is_forbidden(&writer.open(1_u64, &header, &mut buf).await, Operation::Open) && buf == ciphertext);
    assert!(is_forbidden(&writer.open_into(1_u64, &header, ciphertext, &mut [0; 4]), Operation::Open));
    assert!(is_forbidden(&reader.seal(1_u64, &mut [0; 4]).await, Operation::Seal));
    assert!(is_forbidden(&reader.seal_into(1_u64, &[0; 4], &mut [0; 4]), Operation::Seal));
    assert!(is_forbidden(&reader.seal_in_place(1_u64, &mut [0; 4]), Operation::Seal));
    assert!(is_forbidden(&reader.count_ahead(1, 1).await, Operation::Seal));
}

/// What it needs a key for that is not in memory, a handle does by `unwrap`.
#[tokio::test]
async fn a_handle_whose_unwrap_was_taken_away_is_not_warmed() {
    let rig = rig().await;
    let ids =
        give(&rig, vec![grant("app", &[Operation::Unwrap]), grant("app", &[Operation::Seal, Operation::Open])]).await;
    let account = rig.engine.caller(caller("app")).account(&account_id("a")).await.unwrap();
    let block = account.seal_to_vec(1_u64, b"data").unwrap();
    boss(&rig).remove_grant(&ids[0]).await.unwrap();
    let (header, _) = keyleash::block::BlockHeader::split(&block).unwrap();
    for outcome in
        [account.warm().await, account.warm_for(&header).await, account.ready().await, account.confirm(&header).await]
    {
        assert!(is_forbidden(&outcome, Operation::Unwrap), "{outcome:?}");
    }
    assert!(is_forbidden(&account.warm_blocking(Duration::ZERO), Operation::Unwrap));
    assert!(account.open_to_vec(1_u64, &block).is_ok(), "its key is in memory still");
}

/// In this engine when the call returns, in another one on the store within a second or two.
#[tokio::test]
async fn a_grant_that_is_taken_away_stops_handles_that_are_open() {
    let rig = rig().await;
    let other = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    let ids = give(&rig, vec![grant("app*", &[Operation::Unwrap, Operation::Seal, Operation::Open])]).await;
    rig.pass(Duration::from_secs(2)).await;
    let app = caller("app-7");
    let id = account_id("a");
    let here = rig.engine.caller(app.clone()).account(&id).await.unwrap();
    let there = rig.meanwhile(other.caller(app.clone()).account(&id)).await.unwrap();
    // The handles of before there was a policy have no caller.
    assert!(seal(&here).is_ok() && seal(&there).is_ok() && seal(&here.clone()).is_ok());
    boss(&rig).remove_grant(&ids[0]).await.unwrap();
    assert!(is_forbidden(&seal(&here), Operation::Seal), "at once");
    rig.pass(Duration::from_secs(2)).await;
    assert!(is_forbidden(&seal(&there), Operation::Seal));
    assert!(is_forbidden(&other.caller(app.clone()).account(&id).await, Operation::Unwrap));
    give(&rig, vec![grant("app-7", &[Operation::Seal])]).await;
    assert!(seal(&here).is_ok(), "given back, to the same handle");
    rig.pass(Duration::from_secs(2)).await;
    assert!(seal(&there).is_ok());
}

#[tokio::test]
async fn the_first_grant_ends_what_handles_without_a_name_could_do() {
    let rig = Rig::new().await;
    let other = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    let here = rig.account("a").await;
    let there = rig.meanwhile(other.account(&account_id("a"))).await.unwrap();
    let named = rig.engine.caller(caller("app")).account(&account_id("a")).await.unwrap();
    assert!(seal(&here).is_ok() && seal(&there).is_ok() && seal(&named).is_ok(), "there is no policy");
    let boss = grant("boss", &[Operation::GrantWrite]);
    rig.engine.add_grants(vec![boss, grant("app", &[Operation::Seal])]).await.unwrap();
    assert!(is_forbidden(&seal(&here), Operation::Seal) && seal(&named).is_ok());
    rig.pass(Duration::from_secs(2)).await;
    assert!(is_forbidden(&seal(&there), Operation::Seal));
    assert!(matches!(here.state(), keyleash::account::State::Refused(Error::Forbidden(_))));
}

/// Also while the KEK's grants are others'.
#[tokio::test]
async fn an_account_that_moves_to_another_kek_is_judged_by_that_one() {
    let rig = rig().await;
    let (all, other) = ([Operation::Unwrap, Operation::Seal], KekName::new("other").unwrap());
    give(
        &rig,
        vec![
            scoped("of-kek", &all, "kek", "*"),
            scoped("of-other", &all, "other", "*"),
            scoped("mover", &[Operation::Move], "kek", "*"),
            scoped("both", &[Operation::Move], "*", "a"),
        ],
    )
    .await;
    let by = |name: &str| rig.engine.caller(caller(name));
    let before = by("of-kek").account(&account_id("a")).await.unwrap();
    assert!(seal(&before).is_ok());
    assert!(is_forbidden(&by("of-other").account(&account_id("a")).await, Operation::Unwrap));
    assert!(is_forbidden(&by("mover").move_account(&account_id("a"), &other).await, Operation::Move));
    assert!(rig.meanwhile(by("both").move_account(&account_id("a"), &other)).await.unwrap());
    rig.pass(Duration::from_secs(40)).await;
    assert!(is_forbidden(&seal(&before), Operation::Seal), "the handle follows the account");
    assert!(is_forbidden(&by("of-kek").account(&account_id("a")).await, Operation::Unwrap));
    let after = rig.meanwhile(by("of-other").account(&account_id("a"))).await.unwrap();
    assert!(seal(&after).is_ok());
}

/// In one word.
#[tokio::test]
async fn what_does_not_exist_is_refused_as_what_the_caller_may_not_see() {
    let rig = rig().await;
    let many: Vec<_> = Operation::ALL.into_iter().filter(|one| *one != Operation::GrantWrite).collect();
    give(&rig, vec![scoped("app", &many, "other", "*"), scoped("ops", &many, "*", "*")]).await;
    // Under `kek`, for which `app` has nothing, deleted, damaged, and not there.
    rig.engine.caller(caller("ops")).create_account(&account_id("b"), &rig.kek).await.unwrap();
    let found = rig.store.get(&Key::Account(account_id("b"))).await.unwrap().unwrap();
    let put = keyleash::store::Put { value: vec![9], wrapped_by: vec![], guards: vec![] };
    rig.store.replace(&Key::Account(account_id("b")), &found.version, put).await.unwrap();
    let fresh = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    let app = fresh.caller(caller("app"));
    let words = async |id: &str| {
        let id: &AccountId = &account_id(id);
        let other = KekName::new("other").unwrap();
        let outcomes = [
            app.account(id).await.map(drop),
            app.account_record(id).await.map(drop),
            app.rotate_account(id).await.map(drop),
            app.retirable_aeks(id, &[1], When::Now).await.map(drop),
            app.move_account(id, &other).await.map(drop),
            app.delete_account(id).await.map(drop),
            app.undelete_account(id).await,
            app.purge_account(id, When::Now).await,
            app.evict(id).await,
            app.set_aek_policy(id, AekPolicy::default()).await,
        ];
        outcomes
            .map(|outcome| format!("{:?}", outcome.unwrap_err()).replace(&format!("account {id}"), "account ID"))
            .to_vec()
    };
    let absent = words("zz").await;
    assert!(absent.iter().all(|words| words.starts_with("Forbidden")), "{absent:?}");
    for there in ["a", "gone", "b"] {
        let there = words(there).await;
        assert_eq!(there, absent);
    }
    assert!(!absent.concat().contains("kek\""), "{absent:?}");
    // Who may see all hears what there is.
    let ops = fresh.caller(caller("ops"));
    assert!(matches!(ops.account(&account_id("zz")).await, Err(Error::NotFound(_))));
    assert!(matches!(ops.account(&account_id("b")).await, Err(Error::Corrupt(_))));
    // An id that is taken is taken, and that is all that is said.
    let taken = app.create_account(&account_id("gone"), &KekName::new("other").unwrap()).await.unwrap_err();
    assert_eq!(taken, Error::Exists("account gone".into()));
    let refused = app.get_or_create_account(&account_id("a"), &KekName::new("other").unwrap()).await;
    assert!(is_forbidden(&refused, Operation::Unwrap), "{refused:?}");
    assert!(app.get_or_create_account(&account_id("c"), &KekName::new("other").unwrap()).await.is_ok());
}

#[tokio::test]
async fn lists_name_what_the_caller_may_get() {
    let rig = rig().await;
    let other = KekName::new("other").unwrap();
    let creates = [Operation::Create, Operation::Wrap, Operation::Get];
    give(
        &rig,
        vec![
            grant("maker", &creates),
            scoped("app", &[Operation::Get], "other", "*"),
            scoped("few", &[Operation::Get], "*", "b*"),
            scoped("mixed", &[Operation::Get], "kek", "a"),
            scoped("mixed", &[Operation::Get], "other", "b2"),
        ],
    )
    .await;
    let by = |name: &str| rig.engine.caller(caller(name));
    for (id, kek) in [("b1", &rig.kek), ("b2", &other), ("b3", &other), ("c", &rig.kek)] {
        by("maker").create_account(&account_id(id), kek).await.unwrap();
    }
    let all = async |name: &str, limit| {
        let (mut ids, mut after) = (Vec::new(), None);
        loop {
            let page = by(name).accounts(after.as_ref(), limit).await.unwrap();
            assert!(page.ids.len() <= limit && page.next.as_ref().is_none_or(|next| page.ids.contains(next)));
            ids.extend(page.ids.into_iter().map(|id| id.to_string()));
            after = page.next;
            if after.is_none() {
                return ids;
            }
        }
    };
    for limit in [1, 2, 9] {
        assert_eq!(all("maker", limit).await, ["a", "b1", "b2", "b3", "c", "gone"]);
        assert_eq!(all("app", limit).await, ["b2", "b3"]);
        assert_eq!(all("few", limit).await, ["b1", "b2", "b3"]);
        assert_eq!(all("mixed", limit).await, ["a", "b2"]);
    }
    assert!(is_forbidden(&by("nobody").accounts(None, 9).await, Operation::Get));
    let keks =
        async |name: &str| by(name).keks().await.unwrap().iter().map(|kek| kek.name.to_string()).collect::<Vec<_>>();
    assert_eq!(keks("maker").await, ["kek", "other"]);
    assert_eq!(keks("app").await, ["other"]);
    assert_eq!(keks("few").await, Vec::<String>::new(), "a KEK is what it wraps");
    let leases = |name: &str| by(name).leases().iter().map(|lease| lease.kek.name.to_string()).collect::<Vec<_>>();
    assert_eq!(
        (leases("maker"), leases("app"), leases("few")),
        (vec!["kek".into(), "other".into()], vec!["other".into()], vec![])
    );
    assert!(rig.engine.leases().is_empty(), "nobody's");
}

/// Which is where a fleet has them from.
#[tokio::test]
async fn grants_of_a_file_count_beside_those_of_the_store_and_without_them() {
    let rig = Rig::new().await;
    rig.account("a").await;
    let given = |grants| {
        let builder = Engine::builder(rig.token.clone(), rig.store.clone()).on_current_runtime().start_up_proof(false);
        builder.clock(Clock::Manual(rig.clock.clone())).policy(grants).build().unwrap()
    };
    let file = given(PolicySource::Given(Policy::new(vec![], vec![grant("app", &[Operation::Get])]).unwrap()));
    let id = account_id("a");
    assert!(is_forbidden(&file.account_record(&id).await, Operation::Get), "who has no name");
    assert!(file.caller(caller("app")).account_record(&id).await.is_ok());
    assert!(rig.engine.account_record(&id).await.is_ok(), "another engine's file");
    rig.engine.add_grants(vec![grant("boss", &[Operation::GrantWrite, Operation::Get])]).await.unwrap();
    rig.pass(Duration::from_secs(2)).await;
    assert!(file.caller(caller("boss")).account_record(&id).await.is_ok());
    assert!(file.caller(caller("app")).account_record(&id).await.is_ok());
    assert!(is_forbidden(&rig.engine.caller(caller("app")).account_record(&id).await, Operation::Get));
    let none = given(PolicySource::None);
    assert!(none.account_record(&id).await.is_ok());
    let empty = given(PolicySource::Given(Policy::default()));
    assert!(is_forbidden(&empty.account_record(&id).await, Operation::Get), "the store's count");
}

/// Promise 3's other half: the store is away, and nobody is granted more by that, nor less.
#[tokio::test]
async fn damage_to_the_policy_grants_nothing_and_takes_nothing_from_engines_that_run() {
    for fault in ["missing", "damaged", "newer", "part"] {
        let rig = rig().await;
        give(&rig, vec![grant("app", &[Operation::Get, Operation::Unwrap, Operation::Seal])]).await;
        let app = caller("app");
        let account = rig.engine.caller(app.clone()).account(&account_id("a")).await.unwrap();
        let mut events = rig.engine.events();
        let key = match fault {
            "part" => rig.store.list(&Filter::Grants, None, 9).await.unwrap().keys.remove(0),
            _ => Key::Policy,
        };
        let found = rig.store.get(&key).await.unwrap().unwrap();
        let put = |value| keyleash::store::Put { value, wrapped_by: vec![], guards: vec![] };
        match fault {
            "missing" | "part" => rig.store.delete(&key, &found.version).await.unwrap(),
            "damaged" => drop(rig.store.replace(&key, &found.version, put(vec![4, 0, 9])).await.unwrap()),
            _ => drop(rig.store.replace(&key, &found.version, put(vec![99, 0])).await.unwrap()),
        }
        if fault == "part" {
            // Else the head is as it was, and nothing is read anew.
            let head = rig.store.get(&Key::Policy).await.unwrap().unwrap();
            rig.store.replace(&Key::Policy, &head.version, put(head.value)).await.unwrap();
        }
        rig.pass(Duration::from_secs(3)).await;
        assert!(seal(&account).is_ok(), "{fault}");
        assert!(rig.engine.caller(app.clone()).account_record(&account_id("a")).await.is_ok());
        assert!(is_forbidden(&rig.engine.account_record(&account_id("a")).await, Operation::Get));
        let mut told = 0;
        while let Some(event) = events.try_next() {
            told += usize::from(matches!(event, Event::PolicyDamaged { .. }));
        }
        assert_eq!(told, 1, "{fault}");
        assert!(matches!(rig.engine.status().await.policy_damage, Some(Error::Corrupt(_))));
        let new = build(&rig.token, &rig.store, &rig.clock, Settings::default());
        for engine in [new.clone(), new.caller(app.clone()), new.caller(caller("boss"))] {
            let outcome = engine.account_record(&account_id("a")).await;
            assert!(matches!(outcome, Err(Error::Corrupt(_))), "{fault}: {outcome:?}");
        }
        assert!(!keyleash::store::check::check(&*rig.store).await.unwrap().findings.is_empty(), "{fault}");
        // It is healed, and all is as it was.
        match rig.store.get(&key).await.unwrap() {
            None => drop(rig.store.create(&key, put(found.value)).await.unwrap()),
            Some(now) => drop(rig.store.replace(&key, &now.version, put(found.value)).await.unwrap()),
        }
        rig.pass(Duration::from_secs(3)).await;
        assert!(new.caller(app.clone()).account_record(&account_id("a")).await.is_ok(), "{fault}");
        assert_eq!(rig.engine.status().await.policy_damage, None);
    }
}

#[tokio::test]
async fn an_engine_that_was_open_and_finds_a_policy_that_cannot_be_read_refuses() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let put = keyleash::store::Put { value: vec![4, 0, 9], wrapped_by: vec![], guards: vec![] };
    rig.store.create(&Key::Policy, put).await.unwrap();
    rig.pass(Duration::from_secs(2)).await;
    assert!(matches!(seal(&account), Err(Error::Corrupt(_))));
    assert!(matches!(rig.engine.account(&account_id("a")).await, Err(Error::Corrupt(_))));
}

/// What nobody asked for by name.
#[tokio::test]
async fn what_the_engine_does_by_itself_goes_on_under_a_policy() {
    let rig = rig().await;
    give(
        &rig,
        vec![grant("ops", &[Operation::Rotate, Operation::Get]), grant("app", &[Operation::Unwrap, Operation::Seal])],
    )
    .await;
    let ops = rig.engine.caller(caller("ops"));
    let account: Account = rig.engine.caller(caller("app")).account(&account_id("a")).await.unwrap();
    ops.set_kek_policy(&rig.kek, KekPolicy { max_age_secs: 3600 }).await.unwrap();
    ops.set_aek_policy(&account_id("a"), AekPolicy { max_age_secs: 3600, ..AekPolicy::default() }).await.unwrap();
    rig.pass_by(Duration::from_secs(2 * 3600), Duration::from_secs(5)).await;
    let record = ops.account_record(&account_id("a")).await.unwrap();
    let current = record.current().unwrap();
    assert!(current.aek_version > 1 && current.kek.version > 1, "{} {}", current.aek_version, current.kek);
    rig.meanwhile(account.seal(1_u64, &mut [0; 4])).await.unwrap();
}

/// Held up for however long: what counts is the policy that the change replaces.
#[tokio::test]
async fn who_lost_the_right_to_change_grants_while_a_change_was_under_way_changes_nothing() {
    for has_policy in [false, true] {
        let rig = Rig::new().await;
        if has_policy {
            let writes = [Operation::GrantWrite];
            rig.engine.add_grants(vec![grant("boss", &writes), grant("late", &writes)]).await.unwrap();
        }
        // Another process, which read the policy before and has not looked since.
        let slow = build(&rig.token, &rig.store, &rig.clock, Settings::default()).caller(caller("late"));
        assert!(slow.policy().await.is_ok());
        match has_policy {
            true => {
                let policy = boss(&rig).policy().await.unwrap();
                let lost = policy.grants().iter().find(|grant| grant.callers.name() == Some("late")).unwrap();
                boss(&rig).remove_grant(&lost.id).await.unwrap();
            }
            false => drop(rig.engine.add_grants(vec![grant("boss", &[Operation::GrantWrite])]).await.unwrap()),
        }
        let refused = slow.add_grants(vec![grant("late", &[Operation::Open])]).await;
        assert!(is_forbidden(&refused, Operation::GrantWrite), "{refused:?}");
        let refused = slow.set_role(own_role("r")).await;
        assert!(is_forbidden(&refused, Operation::GrantWrite), "{refused:?}");
        assert_eq!(boss(&rig).policy().await.unwrap().grants().len(), 1);
    }
}
