//! Many who wait for one token: what was read for those at the end of the queue is old when their turn comes.

use crate::{Rig, SECOND, account_id, build, hand::HandStore, open, seal, settle};
use keyleash::{
    Account, Engine, Error,
    block::BlockHeader,
    clock::Clock,
    config::Settings,
    lease::Phase,
    name::KekName,
    store::{Key, KeyStore},
    token::Profile,
};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;

/// A call of the token takes so long; 16 are under way at once.
const SLOW: Duration = Duration::from_secs(4);

fn short() -> Settings {
    Settings::default().aek_ttl(60 * SECOND).scheduled_work(false)
}

fn over(rig: &Rig, store: Arc<dyn KeyStore>, settings: Settings) -> Engine {
    Engine::builder(rig.token.clone(), store)
        .on_current_runtime()
        .settings(settings)
        .clock(Clock::Manual(rig.clock.clone()))
        .start_up_proof(false)
        .build()
        .unwrap()
}

/// As many openings as `accounts`, with the token slow. All have read their records.
async fn crowd(rig: &Rig, engine: &Engine, accounts: usize) -> Vec<JoinHandle<Result<Account, Error>>> {
    rig.script.set_latency(SLOW);
    let waiting = (0..accounts).map(|n| open(engine, &format!("crowd-{n}"))).collect();
    settle().await;
    waiting
}

async fn make_crowd(rig: &Rig, kek: &KekName, accounts: usize) {
    for n in 0..accounts {
        drop(rig.engine.create_account(&account_id(&format!("crowd-{n}")), kek).await.unwrap());
    }
}

#[tokio::test]
async fn accounts_that_are_rotated_while_they_wait_for_long_hold_up_nobody() {
    const EARLY: usize = 640;
    const LATE: usize = 64;
    let rig = Rig::new().await;
    make_crowd(&rig, &rig.kek, EARLY + LATE).await;
    for id in ["used", "fresh"] {
        drop(rig.account(id).await);
    }
    let there = build(&rig.token, &rig.store, &rig.clock, Settings::default().scheduled_work(false));
    let used = there.account(&account_id("used")).await.unwrap();
    let waiting = crowd(&rig, &there, EARLY + LATE).await;
    rig.pass(100 * SECOND).await;
    rig.script.set_latency(Duration::ZERO);
    for n in EARLY..EARLY + LATE {
        rig.engine.rotate_account(&account_id(&format!("crowd-{n}"))).await.unwrap();
    }
    rig.script.set_latency(SLOW);
    rig.pass(120 * SECOND).await;
    rig.script.set_latency(Duration::ZERO);
    for (n, one) in waiting.into_iter().enumerate() {
        let opened = rig.meanwhile(one).await.unwrap().unwrap();
        assert_eq!(opened.aek_version(), 1 + u32::from(n >= EARLY), "{n}");
        seal(&opened).unwrap();
    }
    rig.meanwhile(open(&there, "fresh")).await.unwrap().unwrap();
    for _ in 0..600 {
        rig.pass(SECOND).await;
        seal(&used).unwrap();
    }
}

#[tokio::test]
async fn openings_that_have_their_records_need_no_store_while_they_wait() {
    const CROWD: usize = 160;
    let rig = Rig::with(short()).await;
    make_crowd(&rig, &rig.kek, CROWD).await;
    let hand = HandStore::over(&rig.store);
    let waiting = crowd(&rig, &over(&rig, hand.clone(), short()), CROWD).await;
    hand.hold_reads(|key| matches!(key, Key::Account(_)));
    // A proof waits for the store for a moment, too, before it asks with what it has.
    rig.script.set_latency(SLOW - SECOND);
    for one in waiting {
        seal(&rig.meanwhile(one).await.unwrap().unwrap()).unwrap();
    }
}

#[tokio::test]
async fn accounts_that_resume_behind_a_crowd_are_all_back_when_the_lease_says_so() {
    const HELD: usize = 40;
    const CROWD: usize = 400;
    let rig = Rig::with(short()).await;
    let other = KekName::new("other").unwrap();
    rig.engine.create_kek(&other, Profile::AesGcm).await.unwrap();
    make_crowd(&rig, &other, CROWD).await;
    let there = build(&rig.token, &rig.store, &rig.clock, short());
    let mut held = Vec::new();
    for n in 0..HELD {
        let id = format!("held-{n}");
        drop(rig.account(&id).await);
        let account = there.account(&account_id(&id)).await.unwrap();
        seal(&account).unwrap();
        held.push(account);
    }
    rig.script.disable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    assert!(held.iter().all(|account| matches!(seal(account), Err(Error::Denied(_)))));
    let _waiting = crowd(&rig, &there, CROWD).await;
    rig.script.enable(&rig.kek_id);
    let phase = || there.leases().iter().find(|lease| lease.kek.name == rig.kek).map(|lease| lease.phase);
    for _ in 0..600 {
        rig.pass(SECOND).await;
        let usable = held.iter().filter(|account| seal(account).is_ok()).count();
        if phase() == Some(Phase::Active) {
            return assert_eq!(usable, HELD);
        }
    }
    panic!("{:?} after ten minutes", phase());
}

#[tokio::test]
async fn a_refresh_behind_a_crowd_leaves_no_handle_cold_for_good() {
    const CROWD: usize = 400;
    let rig = Rig::with(short()).await;
    make_crowd(&rig, &rig.kek, CROWD).await;
    drop(rig.account("held").await);
    let there = build(&rig.token, &rig.store, &rig.clock, short());
    let held = there.account(&account_id("held")).await.unwrap();
    seal(&held).unwrap();
    rig.engine.rotate_account(&account_id("held")).await.unwrap();
    rig.pass(25 * SECOND).await; // soon due
    let _waiting = crowd(&rig, &there, CROWD).await;
    for _ in 0..120 {
        rig.pass(SECOND).await;
        let _ = seal(&held);
    }
    for _ in 0..120 {
        rig.pass(SECOND).await;
        seal(&held).unwrap();
    }
    assert_eq!(held.aek_version(), 2);
}

/// An account that is not used, and whose newer AEK version others made long ago.
async fn overtaken_behind(crowd_len: usize, is_damaged: bool) {
    let rig = Rig::with(short()).await;
    make_crowd(&rig, &rig.kek, crowd_len).await;
    drop(rig.account("held").await);
    let there = build(&rig.token, &rig.store, &rig.clock, short());
    let held = there.account(&account_id("held")).await.unwrap();
    rig.pass(100 * SECOND).await;
    assert!(seal(&held).is_err(), "idle, and wiped");
    rig.engine.rotate_account(&account_id("held")).await.unwrap();
    if is_damaged {
        rig.flip_check("held", 2).await;
    }
    rig.pass(20 * SECOND).await;
    let _waiting = crowd(&rig, &there, crowd_len).await;
    let _ = rig.meanwhile(held.warm()).await;
    assert!(seal(&held).is_err() || held.aek_version() == 2, "sealed under the version before, long after");
}

#[tokio::test]
async fn an_aek_version_is_not_filled_for_seals_when_its_successor_waited_for_longer_than_a_ttl() {
    overtaken_behind(400, false).await;
}

#[tokio::test]
async fn an_aek_version_is_not_filled_for_seals_when_its_successor_is_damaged_and_both_waited() {
    overtaken_behind(200, true).await;
}

#[tokio::test]
async fn an_old_block_opens_on_a_slow_token_though_the_newest_aek_version_is_damaged() {
    let settings = Settings::default().aek_ttl(10 * SECOND).scheduled_work(false);
    let rig = Rig::with(settings.clone()).await;
    let id = account_id("a");
    let block = rig.account("a").await.seal_to_vec(1_u64, b"data").unwrap();
    rig.engine.rotate_account(&id).await.unwrap();
    let there = build(&rig.token, &rig.store, &rig.clock, settings);
    let held = there.account(&id).await.unwrap();
    rig.engine.rotate_account(&id).await.unwrap();
    rig.flip_check("a", 3).await;
    rig.script.set_latency(SLOW - SECOND); // more than a quarter of a TTL
    let (header, ciphertext) = BlockHeader::split(&block).unwrap();
    let mut plaintext = ciphertext.to_vec();
    let opened = tokio::select! {
        opened = held.open(1_u64, &header, &mut plaintext) => opened,
        () = rig.pass(300 * SECOND) => panic!("no end"),
    };
    opened.unwrap();
    assert_eq!(plaintext, b"data");
}
