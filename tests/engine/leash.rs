//! The leash: revocation, outage, resumption, TTL, as callers see them; and the classic mistakes of others, by name.

use super::*;
use keyleash::{
    Error,
    account::State,
    lease::{Change, Phase},
    store::{Key, KeyStore, Put},
    telemetry::Event,
    token::scripted::{Act, Call},
};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_disabled_kek_is_denied_within_poll_interval_and_call_timeout_and_resumes_within_one_interval() {
    let rig = Rig::new().await;
    let (one, other) = (rig.account("a").await, rig.account("b").await);
    let mut events = rig.engine.events();
    rig.pass(40 * SECOND).await;
    seal(&one).unwrap();
    rig.script.disable(&rig.kek_id);
    rig.pass(15 * SECOND).await;
    for account in [&one, &other] {
        let error = seal(account).unwrap_err();
        assert!(matches!(error, Error::Denied(_)), "{error}");
        assert!(matches!(account.state(), State::Refused(Error::Denied(_))));
    }
    assert_eq!(rig.engine.status().await.leases[0].filled_slots, 0, "wiped");
    rig.script.enable(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    seal(&one).unwrap();
    seal(&other).unwrap();
    let mut changes = Vec::new();
    while let Some(event) = events.try_next() {
        if let Event::Lease { change, .. } = event {
            changes.push(change);
        }
    }
    assert_eq!(changes, [Change::Denied, Change::Resuming, Change::Resumed]);
}

#[tokio::test]
async fn an_outage_within_grace_disturbs_nobody_and_beyond_it_fails_closed_with_its_own_error() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.pass(20 * SECOND).await;
    rig.script.set_unreachable(true);
    rig.pass(29 * MINUTE).await; // far beyond the TTL of 10 min
    seal(&account).unwrap();
    assert!(matches!(rig.engine.status().await.leases[0].phase, Phase::Grace { .. }));
    rig.pass(MINUTE + SECOND).await;
    let error = seal(&account).unwrap_err();
    assert!(matches!(error, Error::Lapsed(_)), "{error}");
    assert_eq!(rig.engine.status().await.leases[0].filled_slots, 0, "wiped");
    rig.script.set_unreachable(false);
    rig.pass(MINUTE).await;
    seal(&account).unwrap();
}

#[tokio::test]
async fn an_aek_whose_ttl_passed_in_an_outage_is_refreshed_without_anybody_finding_it_cold() {
    let rig = Rig::new().await;
    let accounts = [rig.account("a").await, rig.account("b").await, rig.account("c").await];
    rig.pass(20 * SECOND).await;
    rig.script.set_unreachable(true);
    for _ in 0..25 {
        rig.pass(MINUTE).await;
        accounts.iter().for_each(|account| seal(account).unwrap());
    }
    rig.script.set_unreachable(false);
    for _ in 0..240 {
        rig.pass_by(Duration::from_millis(500), Duration::from_millis(50)).await;
        accounts.iter().for_each(|account| seal(account).unwrap());
    }
    let before = rig.script.calls(Call::Unwrap);
    rig.pass(15 * MINUTE).await;
    assert!(accounts.iter().all(|account| matches!(seal(account), Err(Error::Cold { .. }))), "and the TTL binds again");
    assert!(rig.script.calls(Call::Unwrap) - before <= 15 * 60 / 12 + 4);
}

#[tokio::test]
async fn a_cold_account_in_an_outage_is_unreachable_not_denied() {
    let mut rig = Rig::new().await;
    rig.account("a").await;
    rig.restart();
    rig.script.set_unreachable(true);
    let error = rig.engine.account(&account_id("a")).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error}");
    rig.script.set_unreachable(false);
    rig.pass(2 * SECOND).await;
    rig.engine.account(&account_id("a")).await.unwrap();
}

#[tokio::test]
async fn a_revoked_key_is_not_readmitted_by_a_later_outage() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.script.disable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))));
    rig.script.set_unreachable(true);
    for _ in 0..120 {
        rig.pass(MINUTE).await;
        assert!(matches!(seal(&account), Err(Error::Denied(_))));
    }
}

#[tokio::test]
async fn denial_is_sticky_across_restarts() {
    let mut rig = Rig::new().await;
    drop(rig.account("a").await);
    let account = rig.engine.account(&account_id("a")).await.unwrap();
    rig.script.disable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))));
    drop(account);
    rig.script.set_unreachable(true);
    rig.restart();
    let error = rig.engine.account(&account_id("a")).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error}");
    rig.script.set_unreachable(false);
    rig.script.enable(&rig.kek_id);
    rig.pass(2 * SECOND).await;
    seal(&rig.engine.account(&account_id("a")).await.unwrap()).unwrap();
    rig.restart();
    rig.script.set_unreachable(true);
    let error = rig.engine.account(&account_id("a")).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "the denial is over and forgotten: {error}");
}

/// kubernetes#138950: a write key went on being renewed while its KMS plugin reported unhealthy.
#[tokio::test]
async fn a_lease_is_not_renewed_by_use_while_the_token_is_silent() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.script.set_unreachable(true);
    let mut last_success = Duration::ZERO;
    let mut passed = Duration::ZERO;
    while passed < 40 * MINUTE {
        if seal(&account).is_ok() {
            last_success = passed;
        }
        let _ = rig.engine.account(&account_id("a")).await;
        rig.pass(10 * SECOND).await;
        passed += 10 * SECOND;
    }
    assert!(last_success < 30 * MINUTE, "{last_success:?}");
    assert!(last_success >= 29 * MINUTE, "an outage is not a revocation: {last_success:?}");
}

/// A time-out that became a permanent wrong-key error (TiKV's encryption).
#[tokio::test]
async fn a_timeout_is_not_a_wrong_key() {
    let mut rig = Rig::new().await;
    rig.account("a").await;
    rig.restart();
    rig.script.push(Call::Unwrap, Act::Hang);
    let open = {
        let engine = rig.engine.clone();
        tokio::spawn(async move { engine.account(&account_id("a")).await })
    };
    settle().await;
    rig.pass(6 * SECOND).await;
    let error = open.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error}");
    rig.pass(2 * SECOND).await;
    rig.engine.account(&account_id("a")).await.unwrap();
}

/// Reads that extend a TTL (moka's idle time, and many a cache).
#[tokio::test]
async fn a_ttl_is_not_extended_by_reads() {
    let rig = Rig::with(Settings::default().fresh_proof_every(100)).await;
    let (sample, account) = (rig.account("sample").await, rig.account("a").await);
    // Proofs go on (the token answers), but the refresh ahead of the TTL finds only damaged bytes for `a`.
    let before = rig.script.calls(Call::Unwrap);
    let mut reads = 0;
    for _ in 0..30 {
        rig.pass(MINUTE).await;
        reads += u32::from(seal(&account).is_ok()) + u32::from(seal(&sample).is_ok());
    }
    assert_eq!(reads, 60, "an account in use is refreshed ahead of its TTL, so that no caller waits");
    let proofs = 30 * 60 / 12;
    let unwraps = rig.script.calls(Call::Unwrap) - before;
    assert!(unwraps >= 6, "each AEK was unwrapped anew, whatever read it: {unwraps}");
    assert!(unwraps <= proofs + 3 * 6 + 10, "but not with every read: {unwraps}");
}

#[tokio::test]
async fn an_account_that_nobody_used_for_a_ttl_is_wiped_and_costs_the_token_nothing() {
    let rig = Rig::new().await;
    let mut idle = Vec::new();
    for n in 0..50 {
        idle.push(rig.account(&format!("idle-{n}")).await);
    }
    rig.pass(12 * MINUTE).await;
    let status = rig.engine.status().await;
    assert!(status.leases[0].filled_slots <= 2, "{:?}", status.leases);
    let before = rig.script.calls(Call::Unwrap);
    rig.pass(10 * MINUTE).await;
    assert!(rig.script.calls(Call::Unwrap) - before <= 10 * 60 / 12 + 1, "proofs alone");
    assert!(matches!(seal(&idle[7]), Err(Error::Cold { .. })));
    assert_eq!(idle[7].state(), State::Cold);
    idle[7].ready().await.unwrap();
    seal(&idle[7]).unwrap();
}

/// A denial that shut a whole service instead of the one customer's data.
#[tokio::test]
async fn a_denied_kek_denies_its_own_accounts_alone() {
    let rig = Rig::new().await;
    let other_kek = KekName::new("other").unwrap();
    rig.engine.create_kek(&other_kek, Profile::AesGcm).await.unwrap();
    let mine = rig.account("mine").await;
    let theirs = rig.engine.create_account(&account_id("theirs"), &other_kek).await.unwrap();
    rig.script.disable(&rig.kek_id);
    for _ in 0..10 {
        rig.pass(MINUTE).await;
        assert!(matches!(seal(&mine), Err(Error::Denied(_))));
        seal(&theirs).unwrap();
    }
}

/// `KEYLEASH_IDLE_ACCOUNTS=1000000` adds a fleet of so many.
#[tokio::test]
async fn one_token_call_per_interval_whatever_the_number_of_idle_accounts() {
    let asked_for = std::env::var("KEYLEASH_IDLE_ACCOUNTS").map(|count| count.parse::<usize>().unwrap());
    for count in [1, 1000].into_iter().chain(asked_for) {
        let rig = Rig::new().await;
        for n in 0..count {
            rig.account(&format!("account-{n}")).await;
        }
        assert_eq!(rig.engine.status().await.cached_accounts, count as u64);
        let others = [Call::Info, Call::Probe, Call::Wrap, Call::CreateKek, Call::FindKek];
        let calls = || (rig.script.calls(Call::Unwrap), others.map(|call| rig.script.calls(call)));
        let (proofs_before, others_before) = calls();
        rig.pass(2 * MINUTE).await;
        let (proofs, others) = calls();
        let proofs = proofs - proofs_before;
        assert!((8..=11).contains(&proofs), "{proofs} proofs of {count} accounts in two minutes at 15 s");
        assert_eq!(others, others_before, "{count} accounts");
    }
}

#[tokio::test]
async fn a_kek_replaced_under_its_name_is_a_denial() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.pass(20 * SECOND).await;
    let mut events = rig.engine.events();
    rig.script.replace(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))));
    rig.pass(5 * MINUTE).await;
    assert_eq!(replacements(&mut events), 1, "told once, not with every proof");
}

fn replacements(events: &mut keyleash::telemetry::Events) -> usize {
    std::iter::from_fn(|| events.try_next()).filter(|event| matches!(event, Event::KekReplaced { .. })).count()
}

/// It unwraps nothing that was wrapped before it, and nothing can be wrapped to try it with.
#[tokio::test]
async fn a_kek_replaced_by_one_that_only_decrypts_is_a_denial() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.pass(20 * SECOND).await;
    let mut events = rig.engine.events();
    rig.script.replace(&rig.kek_id);
    rig.script.disable_wrap(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))));
    assert_eq!(replacements(&mut events), 1);
}

/// The token itself cannot tell (its context is fresh, say); the proof can, because these bytes opened before.
#[tokio::test]
async fn a_kek_that_refuses_the_bytes_that_it_gave_an_aek_for_was_replaced() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.pass(20 * SECOND).await;
    let mut events = rig.engine.events();
    rig.script.standing(Call::Unwrap, Act::fail(keyleash::token::Verdict::BadRecord));
    rig.pass(16 * SECOND).await;
    let error = seal(&account).unwrap_err();
    assert!(matches!(&error, Error::Denied(_)) && error.to_string().contains("another key"), "{error}");
    assert_eq!(replacements(&mut events), 1);
    rig.script.standing(Call::Unwrap, Act::Serve);
    rig.pass(16 * SECOND).await;
    seal(&account).unwrap();
}

#[tokio::test]
async fn a_proof_that_gives_other_bytes_is_a_denial_and_says_so() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let mut events = rig.engine.events();
    rig.script.standing(Call::Unwrap, Act::WrongPlaintext);
    rig.pass(16 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))));
    assert_eq!(replacements(&mut events), 1);
}

#[tokio::test]
async fn a_damaged_record_is_that_accounts_trouble_alone() {
    let rig = Rig::new().await;
    let (damaged, other) = (rig.account("a").await, rig.account("b").await);
    let key = Key::Account(account_id("a"));
    let mut record = rig.engine.account_record(&account_id("a")).await.unwrap();
    record.versions[0].wrapped.bytes[3] ^= 1;
    let version = rig.store.get(&key).await.unwrap().unwrap().version;
    let put = Put { value: record.encode().unwrap(), wrapped_by: record.wrapped_by(), guards: Vec::new() };
    rig.store.replace(&key, &version, put).await.unwrap();
    for _ in 0..12 {
        rig.pass(MINUTE).await;
        seal(&other).unwrap();
        drop(seal(&damaged));
    }
    assert!(matches!(seal(&damaged), Err(Error::Cold { .. })), "its own unwraps fail, so its TTL ends");
    assert!(matches!(damaged.warm().await, Err(Error::Corrupt(_))));
    drop(other);
    rig.pass(5 * MINUTE).await;
    assert_eq!(rig.engine.leases()[0].phase, Phase::Active, "with nobody else left it is still no denial");
}

#[tokio::test]
async fn a_hang_is_an_outage_and_the_lost_worker_is_told() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let mut events = rig.engine.events();
    rig.script.push(Call::Unwrap, Act::Hang);
    rig.pass(22 * SECOND).await;
    seal(&account).unwrap();
    let mut told = Vec::new();
    while let Some(event) = events.try_next() {
        told.push(event);
    }
    assert!(told.iter().any(|event| matches!(event, Event::Lease { change: Change::Unreachable, .. })), "{told:?}");
    assert!(told.iter().any(|event| matches!(event, Event::WorkerLost { .. })), "{told:?}");
    rig.pass(16 * SECOND).await;
    assert_eq!(rig.engine.status().await.leases[0].phase, Phase::Active);
}

#[tokio::test]
async fn ready_waits_through_a_denial() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.script.disable(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    let waiting = {
        let account = account.clone();
        tokio::spawn(async move { account.ready().await })
    };
    rig.pass(5 * MINUTE).await;
    assert!(!waiting.is_finished());
    rig.script.enable(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    waiting.await.unwrap().unwrap();
    seal(&account).unwrap();
}

#[tokio::test]
async fn a_fleet_resumes_at_the_rate_with_bounded_calls_in_flight() {
    const FINE: Duration = Duration::from_millis(10);
    let settings = Settings::default().resume_rate(50);
    let rig = Rig::with(settings).await;
    let mut accounts = Vec::new();
    for n in 0..300 {
        accounts.push(rig.account(&format!("account-{n}")).await);
    }
    accounts.iter().for_each(|account| seal(account).unwrap());
    rig.script.disable(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    rig.script.set_latency(Duration::from_millis(20));
    rig.script.enable(&rig.kek_id);
    let before = rig.script.calls(Call::Unwrap);
    let mut waited = Duration::ZERO;
    while accounts.iter().all(|account| seal(account).is_err()) {
        rig.pass_by(SECOND, FINE).await;
        waited += SECOND;
        assert!(waited <= 16 * SECOND, "nobody is back");
    }
    rig.pass_by(2 * SECOND, FINE).await;
    let soon = accounts.iter().filter(|account| seal(account).is_ok()).count();
    assert!(soon > 0 && soon < 300, "{soon}");
    rig.pass_by(10 * SECOND, FINE).await;
    assert!(accounts.iter().all(|account| seal(account).is_ok()));
    assert!(rig.script.calls(Call::Unwrap) - before <= 300 + 5, "each was unwrapped once");
    rig.script.set_latency(Duration::ZERO);
    assert!(rig.script.in_flight_max() <= 17, "{}", rig.script.in_flight_max());
    assert_eq!(rig.engine.status().await.leases[0].phase, Phase::Active);
}

/// Each silence puts off the instant from which TTLs bind; that must not go on for ever.
#[tokio::test]
async fn a_flapping_token_keeps_no_aek_in_use_without_an_own_unwrap_for_ever() {
    let rig = Rig::new().await;
    let store = super::hand::HandStore::over(&rig.store);
    let build = Engine::builder(rig.token.clone(), store.clone()).on_current_runtime();
    let engine = build.clock(Clock::Manual(rig.clock.clone())).jitter_seed(1).build().unwrap();
    let account = engine.create_account(&account_id("a"), &rig.kek).await.unwrap();
    let _sample = engine.create_account(&account_id("sample"), &rig.kek).await.unwrap();
    // Its own unwraps fail from now on, and those of the other one prove the KEK.
    store.hold_reads(|key| *key == Key::Account(account_id("a")));
    let (mut passed, mut last_success) = (Duration::ZERO, Duration::ZERO);
    while passed < 90 * MINUTE {
        rig.script.set_unreachable(passed.as_secs() % 120 < 40);
        rig.pass_by(10 * SECOND, SECOND).await;
        passed += 10 * SECOND;
        if seal(&account).is_ok() {
            last_success = passed;
        }
    }
    assert!(last_success > 45 * MINUTE, "nor does it go cold while a silence and a TTL are not over: {last_success:?}");
    assert!(last_success < 51 * MINUTE, "TTL + grace + TTL after its own unwrap: {last_success:?}");
    store.let_go();
}

/// Its answer proves nothing any more, and another poll is not waited for.
#[tokio::test]
async fn a_token_that_answers_just_after_the_lease_lapsed_is_asked_again_at_once() {
    // One of them ends while a proof is under way, whatever the jitter.
    for grace in 40..60 {
        let settings = Settings::default().grace(grace * SECOND).aek_ttl(20 * SECOND);
        let rig = Rig::with(settings.clone()).await;
        let account = rig.account("a").await;
        rig.script.set_unreachable(true);
        rig.pass((grace - 6) * SECOND).await;
        rig.script.set_latency(4 * SECOND);
        rig.script.set_unreachable(false);
        let before = rig.script.calls(Call::Unwrap);
        let mut waited = Duration::ZERO;
        while rig.script.calls(Call::Unwrap) == before {
            rig.pass(SECOND / 4).await;
            waited += SECOND / 4;
            assert!(waited <= settings.poll_interval);
        }
        // This proof, another one if the lease lapses meanwhile, and the unwrap of the account.
        rig.pass(3 * 4 * SECOND + 2 * SECOND).await;
        assert!(seal(&account).is_ok(), "grace {grace} s: {:?}", rig.engine.leases());
    }
}

#[tokio::test]
async fn keys_of_a_lease_that_lapses_while_the_token_is_asked_are_wiped_then_and_not_when_it_answers() {
    let settings = Settings::default()
        .poll_interval(20 * SECOND)
        .store_timeout(20 * SECOND)
        .grace(70 * SECOND)
        .aek_ttl(60 * SECOND);
    let rig = Rig::with(settings).await;
    let account = rig.account("a").await;
    rig.pass(5 * SECOND).await;
    rig.script.set_latency(90 * SECOND);
    let lapsed = loop {
        rig.pass(SECOND / 4).await;
        let _ = seal(&account);
        if matches!(rig.engine.leases()[0].phase, Phase::Lapsed { .. }) {
            break rig.engine.leases()[0].clone();
        }
    };
    assert!(rig.script.in_flight() > 0, "it is being asked: {lapsed:?}");
    rig.pass(2 * SECOND).await;
    assert!(rig.script.in_flight() > 0 && rig.engine.leases()[0].filled_slots == 0, "{:?}", rig.engine.leases());
}

#[tokio::test]
async fn a_machine_that_slept_for_hours_is_back_within_a_poll_of_when_the_token_answers_it_again() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.pass(20 * SECOND).await;
    seal(&account).unwrap();
    // Nobody asks in its sleep; and its network takes a while to wake.
    rig.script.set_unreachable(true);
    rig.clock.advance(180 * MINUTE);
    rig.pass(5 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Lapsed(_))));
    rig.script.set_unreachable(false);
    rig.pass(16 * SECOND).await;
    seal(&account).unwrap();
}

#[tokio::test]
async fn a_token_that_was_silent_for_long_is_asked_less_often_down_to_once_a_minute() {
    let rig = Rig::new().await;
    let _account = rig.account("a").await;
    rig.script.set_unreachable(true);
    let asked_in = async |time| {
        let before = rig.script.calls(Call::Unwrap);
        rig.pass_by(time, SECOND).await;
        rig.script.calls(Call::Unwrap) - before
    };
    // Grace is no refusal.
    let often = asked_in(40 * MINUTE).await;
    assert!(often >= 40 * 4, "{often}");
    asked_in(60 * MINUTE).await;
    let seldom = asked_in(20 * MINUTE).await;
    assert!((20..=30).contains(&seldom), "{seldom}");
}
