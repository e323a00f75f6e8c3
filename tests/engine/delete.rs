//! Deletion, undeletion, purge.

use crate::{Rig, SECOND, account_id, build, hand::HandStore, opens};
use keyleash::{
    Account, Engine, Error, When,
    clock::Clock,
    config::Settings,
    rotate::RewrapOptions,
    store::{Key, KeyStore},
    token::scripted::Call,
};

const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

fn seal(account: &Account) -> Result<Vec<u8>, Error> {
    account.seal_to_vec(1_u64, b"data")
}

fn is_gone(outcome: Result<(), Error>, words: &str) -> bool {
    matches!(&outcome, Err(Error::NotFound(what)) if what.contains(words))
}

#[tokio::test]
async fn a_deleted_account_stops_at_once_here_and_within_one_ttl_elsewhere_and_undelete_brings_all_back() {
    let rig = Rig::new().await;
    let id = account_id("a");
    let account = rig.account("a").await;
    let other = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    let there = other.account(&id).await.unwrap();
    let block = seal(&account).unwrap();
    rig.engine.rotate_account(&id).await.unwrap();
    rig.engine.delete_account(&id).await.unwrap();
    assert!(matches!(seal(&account), Err(Error::Cold { .. })));
    assert!(is_gone(account.warm().await, "account undelete a"));
    assert!(is_gone(rig.engine.account(&id).await.map(drop), "deleted on 2023-11-14T"));
    assert!(matches!(rig.engine.create_account(&id, &rig.kek).await, Err(Error::Exists(_))));
    assert!(is_gone(rig.engine.rotate_account(&id).await.map(drop), "deleted on"));
    for _ in 0..600 {
        rig.pass(SECOND).await;
        let _ = seal(&there);
    }
    assert!(matches!(seal(&there), Err(Error::Cold { .. })));
    assert!(is_gone(there.warm().await, "account undelete a"));
    rig.pass(120 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Cold { .. })), "no proof brings it back");

    rig.engine.undelete_account(&id).await.unwrap();
    for handle in [&account, &there] {
        handle.warm().await.unwrap();
        seal(handle).unwrap();
        opens(&rig, handle, &block).await;
    }
    assert!(matches!(rig.engine.undelete_account(&id).await, Err(Error::NotDeleted(_))));
}

#[tokio::test]
async fn an_outage_does_not_keep_a_deleted_account_alive() {
    let rig = Rig::new().await;
    let id = account_id("a");
    rig.account("a").await;
    let kept = rig.account("kept").await;
    let other = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    let there = other.account(&id).await.unwrap();
    rig.pass(20 * SECOND).await;
    rig.script.set_unreachable(true);
    rig.pass(20 * SECOND).await;
    rig.engine.delete_account(&id).await.unwrap();
    seal(&there).unwrap();
    for _ in 0..600 {
        rig.pass(SECOND).await;
        seal(&kept).unwrap();
    }
    assert!(seal(&there).is_err());
    for _ in 0..10 * 60 {
        rig.pass(SECOND).await;
        seal(&kept).unwrap();
    }
}

#[tokio::test]
async fn a_deletion_during_an_unwrap_is_not_undone_by_its_answer() {
    let rig = Rig::new().await;
    let id = account_id("a");
    let account = rig.account("a").await;
    rig.pass(25 * 60 * SECOND).await;
    rig.script.set_latency(2 * SECOND);
    let warming = tokio::spawn({
        let account = account.clone();
        async move { account.warm().await }
    });
    rig.pass(SECOND).await;
    rig.engine.delete_account(&id).await.unwrap();
    rig.pass(3 * SECOND).await;
    let _ = warming.await.unwrap();
    assert!(seal(&account).is_err());
}

#[tokio::test]
async fn an_account_whose_deletion_was_not_acknowledged_is_not_used_before_its_record_was_read() {
    let mut rig = Rig::new().await;
    let store = HandStore::over(&rig.store);
    let build = Engine::builder(rig.token.clone(), store.clone()).on_current_runtime();
    rig.engine = build.clock(Clock::Manual(rig.clock.clone())).jitter_seed(1).build().unwrap();
    let account = rig.account("a").await;
    rig.pass(61 * SECOND).await; // in which it writes down that nobody purges early
    store.lose_acks();
    let outcome = rig.engine.delete_account(&account_id("a")).await;
    assert!(matches!(outcome, Err(Error::Store(_))), "{outcome:?}");
    assert!(seal(&account).is_err());
    assert!(is_gone(account.warm().await, "deleted"));
    assert!(is_gone(rig.engine.account(&account_id("a")).await.map(drop), "deleted"));
}

#[tokio::test]
async fn an_account_is_purged_after_its_retention_and_then_nothing_brings_it_back() {
    let rig = Rig::with(Settings::default().retention(7 * DAY)).await;
    let id = account_id("a");
    let account = rig.account("a").await;
    let block = seal(&account).unwrap();
    let error = rig.engine.purge_account(&id, keyleash::When::Due).await.unwrap_err();
    assert!(matches!(&error, Error::NotDeleted(what) if what.contains("account delete a")), "{error}");
    let deletion = rig.engine.delete_account(&id).await.unwrap();
    assert_eq!(deletion.purge_after_unix - deletion.since_unix, 7 * 86_400);
    let again = rig.engine.delete_account(&id).await.unwrap();
    assert_eq!(again, deletion, "a second deletion moves nothing");
    for when in [When::Due, When::Now] {
        let error = rig.engine.purge_account(&id, when).await.unwrap_err();
        assert!(matches!(&error, Error::Invalid(what) if what.contains("purge_protection is on")), "{error}");
    }
    // Another process, which has another setting: what was written down counts.
    let long = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    rig.clock.advance(7 * DAY - SECOND);
    assert!(long.purge_account(&id, keyleash::When::Due).await.is_err());
    rig.clock.advance(SECOND);
    long.purge_account(&id, keyleash::When::Due).await.unwrap();
    assert_eq!(rig.store.get(&Key::Account(id.clone())).await.unwrap(), None);
    assert!(is_gone(rig.engine.undelete_account(&id).await, "nothing brings a purged account back"));
    assert!(is_gone(rig.engine.delete_account(&id).await.map(drop), "account a"));
    assert!(is_gone(account.warm().await, "a"));
    rig.pass(60 * SECOND).await; // for the leases, which no proof has renewed for a week
    // Somebody may have the name anew; the old blocks are shredded all the same.
    let anew = rig.account("a").await;
    anew.warm().await.unwrap();
    assert!(matches!(anew.open_to_vec(1_u64, &block), Err(Error::Corrupt(_))));
}

#[tokio::test]
async fn without_purge_protection_an_account_can_be_purged_now() {
    let rig = Rig::with(Settings::default().purge_protection(false)).await;
    let id = account_id("a");
    rig.account("a").await;
    rig.engine.delete_account(&id).await.unwrap();
    let error = rig.engine.purge_account(&id, keyleash::When::Due).await.unwrap_err().to_string();
    assert!(error.contains("--now"), "{error}");
    rig.engine.purge_account(&id, keyleash::When::Now).await.unwrap();
    assert!(is_gone(rig.engine.account(&id).await.map(drop), "account a"));
}

#[tokio::test]
async fn what_was_deleted_under_purge_protection_is_purged_early_by_no_engine_whatever_its_settings() {
    let rig = Rig::new().await;
    let id = account_id("a");
    rig.account("a").await;
    rig.engine.delete_account(&id).await.unwrap();
    let without = Settings::default().purge_protection(false);
    for _ in 0..2 {
        let other = build(&rig.token, &rig.store, &rig.clock, without.clone());
        let error = other.purge_account(&id, When::Now).await.unwrap_err();
        assert!(matches!(&error, Error::Invalid(what) if what.contains("uses this store, or did")), "{error}");
        rig.pass(10 * 60 * SECOND).await; // in which both write the store's date
    }
}

#[tokio::test]
async fn an_engine_that_stays_has_its_purge_protection_written_down_for_those_that_come() {
    let rig = Rig::new().await;
    let id = account_id("a");
    rig.account("a").await;
    rig.pass(120 * SECOND).await;
    let other = build(&rig.token, &rig.store, &rig.clock, Settings::default().purge_protection(false));
    other.delete_account(&id).await.unwrap();
    assert!(matches!(other.purge_account(&id, When::Now).await, Err(Error::Invalid(_))));
    assert!(matches!(
        other.purge_account_as_shown(&rig.engine.account_record(&id).await.unwrap(), When::Now).await,
        Err(Error::Invalid(_))
    ));
}

#[tokio::test]
async fn consent_to_a_purge_is_for_what_was_shown_and_for_nothing_that_came_after() {
    let rig = Rig::with(Settings::default().purge_protection(false)).await;
    let id = account_id("a");
    let account = rig.account("a").await;
    rig.engine.delete_account(&id).await.unwrap();
    let shown = rig.engine.purgeable_account(&id, When::Now).await.unwrap();
    // Somebody brings it back, goes on with it, and deletes it again.
    rig.engine.undelete_account(&id).await.unwrap();
    account.warm().await.unwrap();
    let block = seal(&account).unwrap();
    rig.engine.write_usage().await.unwrap();
    rig.engine.delete_account(&id).await.unwrap();
    let refused = rig.engine.purge_account_as_shown(&shown, When::Now).await.unwrap_err();
    assert!(matches!(&refused, Error::Conflict(what) if what.contains("nothing of it was destroyed")), "{refused}");
    rig.engine.undelete_account(&id).await.unwrap();
    account.warm().await.unwrap();
    opens(&rig, &account, &block).await;
    rig.engine.delete_account(&id).await.unwrap();
    let shown = rig.engine.purgeable_account(&id, When::Now).await.unwrap();
    rig.engine.purge_account_as_shown(&shown, When::Now).await.unwrap();
    assert!(is_gone(rig.engine.account(&id).await.map(drop), "account a"));
}

#[tokio::test]
async fn a_clock_that_is_behind_the_record_shortens_no_retention() {
    let rig = Rig::with(Settings::default().retention(7 * DAY)).await;
    let id = account_id("a");
    rig.account("a").await;
    // Made in the year 2096 by this clock's reckoning: the clock was set back since.
    let key = Key::Account(id.clone());
    let found = rig.store.get(&key).await.unwrap().unwrap();
    let mut record = keyleash::store::record::AccountRecord::decode(&key, &found.value).unwrap();
    let made_unix = 4_000_000_000;
    record.versions[0].created_unix = made_unix;
    rig.store.replace(&key, &found.version, record.put().unwrap()).await.unwrap();
    let deletion = rig.engine.delete_account(&id).await.unwrap();
    assert_eq!((deletion.since_unix, deletion.purge_after_unix), (made_unix, made_unix + 7 * 86_400));
}

/// An engine that has the account open, which another one made; it is told of nothing by that one.
async fn elsewhere(rig: &Rig, ids: &[String], settings: Settings) -> (Engine, Vec<Account>) {
    let there = build(&rig.token, &rig.store, &rig.clock, settings.scheduled_work(false));
    let mut held = Vec::new();
    for id in ids {
        drop(rig.account(id).await);
        let account = there.account(&account_id(id)).await.unwrap();
        seal(&account).unwrap();
        held.push(account);
    }
    (there, held)
}

#[tokio::test]
async fn a_newer_aek_version_that_is_learned_meanwhile_does_not_outlive_a_deletion() {
    let rig = Rig::new().await;
    let id = account_id("a");
    let (there, held) = elsewhere(&rig, &["a".into()], Settings::default()).await;
    rig.engine.rotate_account(&id).await.unwrap();
    rig.script.set_latency(4 * SECOND);
    let before = rig.script.calls(Call::Unwrap);
    let mut steps = 0;
    while rig.script.calls(Call::Unwrap) < before + 2 {
        rig.pass(SECOND / 4).await; // a proof, and then what it gave notice of
        steps += 1;
        assert!(steps < 400);
    }
    rig.pass(SECOND).await;
    there.delete_account(&id).await.unwrap();
    rig.script.set_latency(std::time::Duration::ZERO);
    for _ in 0..120 {
        assert!(seal(&held[0]).is_err());
        rig.pass(SECOND).await;
    }
}

#[tokio::test]
async fn a_rewrap_that_is_followed_meanwhile_does_not_outlive_a_deletion() {
    let rig = Rig::new().await;
    let ids: Vec<_> = (0..8).map(|n| format!("a-{n}")).collect();
    // One after the other: the others have read their records by then.
    let (there, held) = elsewhere(&rig, &ids, Settings::default().resume_rate(1).max_cached_aeks(100)).await;
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    let options = RewrapOptions::new().rate(1_000_000);
    rig.meanwhile(rig.engine.rewrap_kek(&rig.kek, options, |_| {})).await.unwrap();
    let followed = || there.leases().iter().any(|lease| lease.kek.version == 2 && lease.filled_slots > 0);
    let mut steps = 0;
    while !followed() {
        rig.pass(SECOND / 4).await;
        steps += 1;
        assert!(steps < 400);
    }
    for id in &ids {
        there.delete_account(&account_id(id)).await.unwrap();
    }
    for _ in 0..120 {
        assert!(held.iter().all(|account| seal(account).is_err()));
        rig.pass(SECOND).await;
    }
}

#[tokio::test]
async fn the_end_of_an_outage_gives_no_second_ttl_to_an_idle_account_that_was_deleted_in_it() {
    let rig = Rig::new().await;
    let ids: Vec<_> = (0..300).map(|n| format!("a-{n}")).collect();
    for id in &ids {
        drop(rig.account(id).await);
    }
    let there = build(&rig.token, &rig.store, &rig.clock, Settings::default().scheduled_work(false));
    let mut held = Vec::new();
    for id in &ids {
        held.push(there.account(&account_id(id)).await.unwrap()); // and not used
    }
    rig.pass(500 * SECOND).await;
    rig.script.set_unreachable(true);
    rig.pass(350 * SECOND).await; // past its last look into the store
    rig.engine.delete_account(&account_id(&ids[0])).await.unwrap();
    rig.pass(200 * SECOND).await;
    rig.script.set_unreachable(false);
    rig.pass(400 * SECOND).await;
    assert!(seal(&held[0]).is_err(), "deleted a TTL ago");
}
