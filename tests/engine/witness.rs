//! By what a denial ends: the record that was unwrapped before it, and nothing that another key in the KEK's place may have wrapped
//! since, whichever process opens that first.

use super::{
    impostor::{anew, has_denial, start_on},
    vouch::just_proved,
    *,
};
use keyleash::{
    Error,
    name::KekVersion,
    store::{
        load_denial,
        record::{DenialRecord, Witness},
    },
};

type Tokens = (Arc<ScriptedToken>, Script);

/// The KEK was replaced, account `b` was made by the impostor before anybody could know it, and then it was noticed. Gives the
/// token as it was before that.
async fn noticed(older: &[&str]) -> (Rig, Vec<Account>, Tokens) {
    let rig = Rig::new().await;
    let mut accounts = Vec::new();
    for id in older {
        accounts.push(rig.account(id).await);
        rig.pass(2 * SECOND).await; // none is as old as the next
    }
    just_proved(&rig, 1).await;
    let genuine = anew(&rig);
    rig.script.replace(&rig.kek_id);
    accounts.push(rig.account("b").await);
    rig.pass(20 * SECOND).await;
    for account in &accounts {
        assert!(matches!(seal(account), Err(Error::Denied(_))));
    }
    assert!(has_denial(&rig, 1).await);
    (rig, accounts, genuine)
}

/// The process starts again while the impostor is there, and is asked for what that wrapped, again and again.
async fn stays_denied(rig: &mut Rig) {
    let impostor = anew(rig);
    start_on(rig, impostor);
    for _ in 0..4 {
        let opened = rig.engine.account(&account_id("b")).await;
        assert!(matches!(opened, Err(Error::Denied(_))), "{opened:?}");
        rig.pass(16 * SECOND).await;
        assert!(has_denial(rig, 1).await);
    }
}

/// And once more, with this token: the first to be opened is opened at once, and ends the denial.
async fn ends_by(rig: &mut Rig, tokens: Tokens, id: &str) {
    start_on(rig, tokens);
    rig.pass(2 * SECOND).await;
    seal(&rig.engine.account(&account_id(id)).await.unwrap()).unwrap();
    rig.pass(SECOND).await;
    assert!(!has_denial(rig, 1).await);
}

/// By another process, which tells this one nothing.
async fn purge(rig: &Rig, id: &str) {
    let key = Key::Account(account_id(id));
    let version = rig.store.get(&key).await.unwrap().unwrap().version;
    rig.store.delete(&key, &version).await.unwrap();
}

async fn denial(rig: &Rig) -> DenialRecord {
    load_denial(&*rig.store, &KekVersion::new(rig.kek.clone(), 1)).await.unwrap().unwrap().0
}

#[tokio::test]
async fn a_remembered_denial_does_not_end_by_an_account_that_an_impostor_made_whoever_opens_it_first() {
    let (mut rig, accounts, genuine) = noticed(&["y", "z"]).await;
    drop(accounts);
    let of_y = &rig.engine.account_record(&account_id("y")).await.unwrap().versions[0];
    assert_eq!(denial(&rig).await.witness, Some(Witness::of(&account_id("y"), of_y)));
    stays_denied(&mut rig).await;
    ends_by(&mut rig, genuine, "z").await;
}

#[tokio::test]
async fn an_engine_that_had_the_account_of_an_impostor_open_stays_denied() {
    let rig = Rig::new().await;
    drop((rig.account("y").await, rig.account("z").await));
    let other = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    let y = other.account(&account_id("y")).await.unwrap();
    let _z = rig.engine.account(&account_id("z")).await.unwrap();
    just_proved(&rig, 1).await;
    rig.script.replace(&rig.kek_id);
    drop(rig.account("b").await);
    let b = other.account(&account_id("b")).await.unwrap();
    seal(&b).unwrap();
    rig.pass(20 * SECOND).await;
    for _ in 0..10 {
        assert!(matches!(seal(&y), Err(Error::Denied(_))) && matches!(seal(&b), Err(Error::Denied(_))));
        assert!(matches!(b.warm().await, Err(Error::Denied(_))) && has_denial(&rig, 1).await);
        rig.pass(15 * SECOND).await;
    }
}

#[tokio::test]
async fn where_its_witness_was_purged_a_denial_ends_by_the_oldest_that_is_left() {
    let (mut rig, accounts, genuine) = noticed(&["x", "y", "z"]).await;
    drop(accounts);
    purge(&rig, "x").await;
    stays_denied(&mut rig).await;
    purge(&rig, "z").await;
    ends_by(&mut rig, genuine, "y").await;
}

#[tokio::test]
async fn where_its_witness_was_changed_in_the_store_a_denial_ends_by_the_oldest_that_is_left() {
    let (mut rig, accounts, genuine) = noticed(&["x", "y", "z"]).await;
    drop(accounts);
    rig.flip_check("x", 1).await;
    stays_denied(&mut rig).await;
    // It is the oldest as well, but no record of the KEK: that is for somebody to mend, who is told what.
    start_on(&mut rig, genuine);
    rig.pass(2 * SECOND).await;
    let error = rig.engine.account(&account_id("y")).await.unwrap_err();
    assert!(error.to_string().contains("account x"), "{error}");
    purge(&rig, "x").await;
    rig.pass(2 * SECOND).await;
    seal(&rig.engine.account(&account_id("y")).await.unwrap()).unwrap();
}

#[tokio::test]
async fn a_denial_that_names_no_witness_ends_by_the_oldest_record() {
    let (mut rig, accounts, genuine) = noticed(&["y", "z"]).await;
    drop(accounts);
    let without = DenialRecord { witness: None, ..denial(&rig).await };
    let found = rig.store.get(&without.key()).await.unwrap().unwrap();
    rig.store.replace(&without.key(), &found.version, without.put().unwrap()).await.unwrap();
    stays_denied(&mut rig).await;
    ends_by(&mut rig, genuine, "z").await;
}

#[tokio::test]
async fn where_nothing_older_is_left_a_denial_ends_by_what_is_there() {
    let (mut rig, accounts, _) = noticed(&["y"]).await;
    drop(accounts);
    purge(&rig, "y").await;
    let impostor = anew(&rig);
    ends_by(&mut rig, impostor, "b").await;
}

#[tokio::test]
async fn what_is_in_memory_of_a_witness_ends_a_denial_while_the_store_is_away() {
    let rig = Rig::new().await;
    let store = hand::HandStore::over(&rig.store);
    let build = Engine::builder(rig.token.clone(), store.clone()).on_current_runtime().start_up_proof(false);
    let engine = build.clock(Clock::Manual(rig.clock.clone())).jitter_seed(1).build().unwrap();
    let account = engine.create_account(&account_id("a"), &rig.kek).await.unwrap();
    rig.script.disable(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))));
    store.set_away(true);
    rig.script.enable(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    assert!(!matches!(seal(&account), Err(Error::Denied(_))));
    store.set_away(false);
    rig.pass(16 * SECOND).await;
    seal(&account).unwrap();
}

#[tokio::test]
async fn another_key_is_found_by_the_next_proof_however_many_of_its_accounts_were_opened_before_that() {
    for shift in 0..3 {
        let rig = Rig::new().await;
        let _y = rig.account("y").await;
        let other = build(&rig.token, &rig.store, &rig.clock, Settings::default());
        let y = other.account(&account_id("y")).await.unwrap();
        rig.pass(15 * SECOND * shift).await;
        just_proved(&rig, 1).await;
        rig.script.replace(&rig.kek_id);
        let mut opened = Vec::new();
        for n in 0..8 {
            drop(rig.account(&format!("b{n}")).await);
            opened.push(other.account(&account_id(&format!("b{n}"))).await.unwrap());
        }
        rig.pass(20 * SECOND).await;
        assert!(matches!(seal(&y), Err(Error::Denied(_))), "shift {shift}: {:?}", other.leases());
        opened.iter().for_each(|b| assert!(matches!(seal(b), Err(Error::Denied(_)))));
    }
}

#[tokio::test]
async fn who_met_an_account_of_an_impostor_first_resumes_by_an_older_record_and_so_does_every_other() {
    let mut rig = Rig::new().await;
    let y = rig.account("y").await;
    just_proved(&rig, 1).await;
    let (_, genuine) = anew(&rig);
    rig.script.replace(&rig.kek_id);
    drop((rig.account("b").await, y));
    rig.restart(); // before anybody noticed
    let late = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    let b = late.account(&account_id("b")).await.unwrap();
    rig.pass(20 * SECOND).await;
    // The KEK comes back.
    rig.script.destroy(&rig.kek_id);
    genuine.clone_keks_to(&rig.script);
    rig.pass(40 * SECOND).await;
    let y = late.account(&account_id("y")).await.unwrap();
    for _ in 0..4 {
        rig.pass(16 * SECOND).await;
        seal(&y).unwrap();
        assert!(seal(&b).is_err(), "it is lost with the impostor");
    }
    assert!(!has_denial(&rig, 1).await);
    let next = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    seal(&next.account(&account_id("y")).await.unwrap()).unwrap();
}
