//! Accounts that another process re-wrapped: live handles follow their records.

use super::{hand::HandStore, *};
use keyleash::{
    Error,
    lease::Phase,
    store::{
        Key, KeyStore, Put,
        record::{WrappedAek, binding, check_value, context},
    },
    token::{KekHandle, Token, scripted::Call},
};

/// Another KEK, and what the accounts' records will be once they are re-wrapped under it.
async fn prepare(rig: &Rig, ids: &[&str]) -> (KekId, Vec<(Key, Put)>) {
    let name = KekName::new("next").unwrap();
    let id = rig.engine.create_kek(&name, Profile::AesGcm).await.unwrap().id;
    let mut puts = Vec::new();
    for account in ids {
        let account = account_id(account);
        let mut record = rig.engine.account_record(&account).await.unwrap();
        for version in &mut record.versions {
            let old = context(&version.kek, &account, version.aek_version);
            let handle = KekHandle { id: version.kek_id.clone(), profile: version.profile };
            let aek = rig.token.unwrap(&handle, &version.wrapped, &binding(&old)).await.unwrap();
            let kek = keyleash::name::KekVersion::new(name.clone(), 1);
            let new = context(&kek, &account, version.aek_version);
            let handle = KekHandle { id: id.clone(), profile: Profile::AesGcm };
            *version = WrappedAek {
                kek,
                kek_id: id.clone(),
                wrapped: rig.token.wrap(&handle, &aek, &binding(&new)).await.unwrap(),
                check: check_value(&aek, &new),
                ..version.clone()
            };
        }
        puts.push((
            Key::Account(account),
            Put { value: record.encode().unwrap(), wrapped_by: record.wrapped_by(), guards: Vec::new() },
        ));
    }
    (id, puts)
}

async fn rewrap(rig: &Rig, puts: Vec<(Key, Put)>) {
    for (key, put) in puts {
        let version = rig.store.get(&key).await.unwrap().unwrap().version;
        rig.store.replace(&key, &version, put).await.unwrap();
    }
}

const IDS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

#[tokio::test]
async fn live_handles_follow_a_rewrap_by_another_process_undisturbed_and_leave_the_old_kek_behind() {
    let rig = Rig::new().await;
    let mut accounts = Vec::new();
    for id in IDS {
        accounts.push(rig.account(id).await);
    }
    let blocks: Vec<_> = accounts.iter().map(|account| account.seal_to_vec(9_u64, b"before").unwrap()).collect();
    let (next, puts) = prepare(&rig, &IDS).await;
    rewrap(&rig, puts).await;
    for _ in 0..160 {
        rig.pass(SECOND / 4).await;
        accounts.iter().for_each(|account| seal(account).unwrap());
    }
    // The old KEK can go: nobody is under it any more.
    rig.script.destroy(&rig.kek_id);
    for _ in 0..12 {
        rig.pass_by(60 * SECOND, SECOND).await;
        accounts.iter().for_each(|account| seal(account).unwrap());
    }
    let leases = rig.engine.leases();
    assert_eq!(leases.len(), 1, "the lease that nobody is under is forgotten: {leases:?}");
    assert_eq!(leases[0].phase, Phase::Active);
    for (account, block) in accounts.iter().zip(&blocks) {
        assert_eq!(account.open_to_vec(9_u64, block).unwrap(), b"before", "the AEK is the same");
    }
    rig.script.disable(&next);
    rig.pass(16 * SECOND).await;
    for account in &accounts {
        assert!(matches!(seal(account), Err(Error::Denied(_))), "the leash is the new KEK's");
    }
    rig.script.enable(&next);
    rig.pass(16 * SECOND).await;
    accounts.iter().for_each(|account| seal(account).unwrap());
}

#[tokio::test]
async fn handles_that_were_denied_come_back_by_themselves_under_the_kek_that_their_records_name_by_now() {
    let rig = Rig::new().await;
    let mut accounts = Vec::new();
    for id in IDS {
        accounts.push(rig.account(id).await);
    }
    accounts.iter().for_each(|account| seal(account).unwrap());
    let (_, puts) = prepare(&rig, &IDS).await;
    rig.script.disable(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    assert!(accounts.iter().all(|account| matches!(seal(account), Err(Error::Denied(_)))));
    rewrap(&rig, puts).await;
    rig.pass(32 * SECOND).await;
    accounts.iter().for_each(|account| seal(account).unwrap());
}

/// In turn it would take as many proofs as there are accounts.
#[tokio::test]
async fn an_account_that_was_moved_alone_while_its_kek_is_denied_comes_back_within_a_ttl_or_with_the_next_open() {
    for opened in [true, false] {
        let ttl = 60 * SECOND;
        let rig = Rig::with(Settings::default().aek_ttl(ttl)).await;
        let mut accounts = Vec::new();
        for n in 0..100 {
            accounts.push(rig.account(&format!("a{n}")).await);
        }
        accounts.iter().for_each(|account| seal(account).unwrap());
        let (_, puts) = prepare(&rig, &["a60"]).await;
        rig.script.disable(&rig.kek_id);
        rig.pass(16 * SECOND).await;
        rewrap(&rig, puts).await;
        let moved = accounts.remove(60);
        assert!(matches!(seal(&moved), Err(Error::Denied(_))));
        if opened {
            // A caller has the token asked once in a second, whoever else comes.
            rig.pass(2 * SECOND).await;
            rig.meanwhile(rig.engine.account(&account_id("a60"))).await.unwrap();
        } else {
            rig.pass(ttl + 30 * SECOND).await;
        }
        seal(&moved).unwrap();
        assert!(accounts.iter().all(|account| matches!(seal(account), Err(Error::Denied(_)))));
    }
}

#[tokio::test]
async fn a_rewrapped_account_is_opened_and_warmed_on_demand() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let block = account.seal_to_vec(1_u64, b"before").unwrap();
    rig.pass(25 * 60 * SECOND).await; // idle for a TTL
    assert!(matches!(seal(&account), Err(Error::Cold { .. })));
    let (_, puts) = prepare(&rig, &["a"]).await;
    rewrap(&rig, puts).await;
    assert_eq!(rig.engine.account(&account_id("a")).await.unwrap().open_to_vec(1_u64, &block).unwrap(), b"before");
    seal(&account).unwrap();
}

#[tokio::test]
async fn a_rewrap_in_an_outage_takes_nothing_away() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.pass(20 * SECOND).await;
    let (_, puts) = prepare(&rig, &["a"]).await;
    rig.script.set_unreachable(true);
    rewrap(&rig, puts).await;
    for _ in 0..25 {
        rig.pass(60 * SECOND).await;
        seal(&account).unwrap();
    }
    rig.script.set_unreachable(false);
    for _ in 0..60 {
        rig.pass(SECOND).await;
        seal(&account).unwrap();
    }
}

#[tokio::test]
async fn a_store_that_hangs_ends_an_open_by_the_deadline_and_holds_up_nobody_who_has_a_record() {
    let rig = Rig::new().await;
    let ids: Vec<_> = (0..40).map(|n| format!("slow-{n}")).collect();
    for id in ids.iter().map(String::as_str).chain(["quick"]) {
        drop(rig.account(id).await);
    }
    let store = HandStore::over(&rig.store);
    let engine = Engine::builder(rig.token.clone(), store.clone())
        .on_current_runtime()
        .clock(Clock::Manual(rig.clock.clone()))
        .jitter_seed(1)
        .build()
        .unwrap();
    let mut slow = Vec::new();
    for id in &ids {
        slow.push(engine.account(&account_id(id)).await.unwrap());
    }
    let quick = engine.account(&account_id("quick")).await.unwrap();
    rig.pass_by(25 * 60 * SECOND, SECOND).await; // idle for a TTL
    assert!(matches!(seal(&quick), Err(Error::Cold { .. })));
    store.hold_reads(|key| matches!(key, Key::Account(id) if id.as_str().starts_with("slow")));
    let opens: Vec<_> = slow.into_iter().map(|slow| tokio::spawn(async move { slow.warm().await })).collect();
    settle().await;
    let warming = {
        let quick = quick.clone();
        tokio::spawn(async move { quick.warm().await })
    };
    settle().await;
    assert!(warming.is_finished(), "it waits for others' records");
    warming.await.unwrap().unwrap();
    seal(&quick).unwrap();
    rig.pass(6 * SECOND).await;
    for open in opens {
        assert!(open.is_finished(), "an open that the store holds up does not end");
        let error = open.await.unwrap().unwrap_err();
        assert!(matches!(&error, Error::Store(what) if what.contains("5000 ms")), "{error}");
    }
    drop(engine);
    // Nor does the refresh of what is in use, nor a slot that is there.
    store.hold_reads(|key| matches!(key, Key::Account(_)));
    let before = rig.script.calls(Call::Unwrap);
    for _ in 0..9 {
        rig.pass(60 * SECOND).await;
        seal(&quick).unwrap();
    }
    assert!(rig.script.calls(Call::Unwrap) > before, "proofs go on with the record that is known");
    store.let_go();
    rig.pass(30 * SECOND).await;
    seal(&quick).unwrap();
}

#[tokio::test]
async fn refreshes_that_the_store_holds_up_do_not_keep_others_from_theirs() {
    let rig = Rig::new().await;
    let store = HandStore::over(&rig.store);
    let build = Engine::builder(rig.token.clone(), store.clone()).on_current_runtime();
    let engine = build.clock(Clock::Manual(rig.clock.clone())).jitter_seed(1).build().unwrap();
    // The first of so many that no proof happens to be its own unwrap within a TTL.
    let quick = engine.create_account(&account_id("quick"), &rig.kek).await.unwrap();
    let mut slow = Vec::new();
    for n in 0..100 {
        slow.push(engine.create_account(&account_id(&format!("slow-{n}")), &rig.kek).await.unwrap());
    }
    store.hold_reads(|key| matches!(key, Key::Account(id) if id.as_str() != "quick"));
    // Nobody goes cold, because TTLs are put off while the store holds up so many; what is read says who is refreshed.
    let before = store.accounts_read();
    for minute in 0..12 {
        seal(&quick).unwrap_or_else(|error| panic!("after {minute} min: {error}"));
        slow.iter().for_each(|account| drop(seal(account)));
        rig.pass_by(60 * SECOND, SECOND).await;
    }
    assert!(store.accounts_read() > before, "it waits for others' records");
}
