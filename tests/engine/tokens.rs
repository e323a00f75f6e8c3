//! Several tokens under one engine: trouble on one neither delays nor denies the accounts of another.

use super::*;
use keyleash::{
    Error,
    lease::Phase,
    name::TokenName,
    store::record::AekPolicy,
    telemetry::Event,
    token::{
        KekSpec, Token, Verdict,
        scripted::{Act, Call},
    },
};

fn token_name(name: &str) -> TokenName {
    TokenName::new(name).unwrap()
}

/// A rig whose token is named `default`, with another one named `other`, and a KEK in it.
struct Two {
    rig: Rig,
    script: Script,
    token: Arc<ScriptedToken>,
    kek: KekName,
    kek_id: KekId,
}

impl Two {
    async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    async fn with(settings: Settings) -> Self {
        let mut rig = Rig::with(settings.clone()).await;
        let (token, script) = ScriptedToken::new(Clock::Manual(rig.clock.clone()), settings.store_timeout, 8);
        rig.engine = both(&rig, &token, settings).build().unwrap();
        let kek = KekName::new("other-kek").unwrap();
        let made = rig
            .engine
            .create_kek(&kek, keyleash::KekOptions::new(Profile::AesGcm).token(token_name("other")))
            .await
            .unwrap();
        Self { rig, script, token, kek, kek_id: made.id }
    }

    async fn account(&self, id: &str) -> Account {
        self.rig.engine.create_account(&account_id(id), &self.kek).await.unwrap()
    }
}

fn both(rig: &Rig, other: &Arc<ScriptedToken>, settings: Settings) -> keyleash::engine::EngineBuilder {
    Engine::builder(rig.token.clone(), rig.store.clone())
        .on_current_runtime()
        .token(token_name("other"), other.clone())
        .settings(settings)
        .clock(Clock::Manual(rig.clock.clone()))
        .jitter_seed(1)
        .start_up_proof(false)
}

#[tokio::test]
async fn a_listing_of_keys_that_hangs_in_the_token_ends_by_its_deadline_and_holds_up_no_proof() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.script.standing(Call::ListKeks, Act::Hang);
    let began = rig.clock.now();
    let listed = rig.meanwhile(rig.engine.unknown_keks()).await;
    assert!(matches!(listed, Err(Error::Unreachable(_))), "{listed:?}");
    assert!(rig.clock.now().since(began) <= Settings::default().store_timeout + SECOND);
    // The engine lists them too, every 20 polls.
    for _ in 0..40 {
        rig.pass(15 * SECOND).await;
        seal(&account).unwrap();
    }
    rig.script.disable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))));
}

#[tokio::test]
async fn each_kek_is_asked_of_the_token_that_it_is_in_and_rotated_there() {
    let two = Two::new().await;
    let (one, other) = (two.rig.account("a").await, two.account("b").await);
    seal(&one).unwrap();
    seal(&other).unwrap();
    let rotated = two.rig.engine.rotate_kek(&two.kek).await.unwrap();
    assert_eq!(rotated.token, token_name("other"));
    let rewrap = two.rig.engine.rewrap_kek(&two.kek, Default::default(), |_| ());
    let report = two.rig.meanwhile(rewrap).await.unwrap();
    assert_eq!((report.accounts, report.failed, report.stopped), (1, 0, None));
    let asked = two.rig.script.calls(Call::Unwrap);
    two.rig.pass(31 * SECOND).await;
    let (own, others) = (two.rig.script.calls(Call::Unwrap) - asked, two.script.calls(Call::Unwrap));
    assert!((2..=4).contains(&own) && others > 2, "{own} {others}");
    let tokens: Vec<_> = two.rig.engine.leases().into_iter().map(|lease| lease.token.to_string()).collect();
    assert_eq!(tokens, ["default", "other"]);
    let keys = two.rig.engine.unknown_keks_in(&token_name("other")).await.unwrap();
    assert_eq!(keys, [], "all in the other token are known");
    let found = two.rig.engine.kek(&two.kek).await.unwrap();
    assert!(found.versions.iter().all(|version| matches!(version.in_token, Ok(Some(_)))));
    let error = two
        .rig
        .engine
        .create_kek(&two.kek, keyleash::KekOptions::new(Profile::AesGcm).token(token_name("third")))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::NotFound(what) if what.contains("third") && what.contains("default, other")),
        "{error}"
    );
}

#[tokio::test]
async fn a_token_that_hangs_costs_the_accounts_of_another_neither_a_place_nor_a_proof_nor_time() {
    let two = Two::new().await;
    let mut stuck = Vec::new();
    for n in 0..40 {
        stuck.push(two.account(&format!("stuck-{n}")).await);
    }
    let quick = two.rig.account("quick").await;
    two.rig.pass_by(25 * 60 * SECOND, SECOND).await; // idle for a TTL: all are cold
    assert!(matches!(seal(&quick), Err(Error::Cold { .. })));
    two.script.standing(Call::Unwrap, Act::Hang);
    let opens: Vec<_> = stuck.into_iter().map(|stuck| tokio::spawn(async move { stuck.warm().await })).collect();
    settle().await;
    assert!(two.script.in_flight() >= 16, "they take every place that the token has");
    let warming = {
        let quick = quick.clone();
        tokio::spawn(async move { quick.warm().await })
    };
    settle().await; // no time goes by
    assert!(warming.is_finished(), "it waits for a place that another token's accounts hold");
    warming.await.unwrap().unwrap();
    let mut proofs = two.rig.script.served(Call::Unwrap);
    for _ in 0..8 {
        two.rig.pass(16 * SECOND).await;
        seal(&quick).unwrap();
        let served = two.rig.script.served(Call::Unwrap);
        assert!(served > proofs, "a poll interval without a proof");
        proofs = served;
    }
    for open in opens {
        assert!(matches!(open.await.unwrap(), Err(Error::Unreachable(_) | Error::Fatal(_) | Error::Lapsed(_))));
    }
}

#[tokio::test]
async fn a_token_that_hangs_holds_up_no_refresh_of_another_s_accounts() {
    let settings = Settings::default().aek_ttl(10 * SECOND);
    let two = Two::with(settings).await;
    let (mut stuck, mut quick) = (Vec::new(), Vec::new());
    for n in 0..20 {
        stuck.push(two.account(&format!("a-stuck-{n}")).await);
        quick.push(two.rig.account(&format!("quick-{n}")).await);
    }
    // As long as no proof comes, nobody knows that it hangs, and its accounts are refreshed.
    two.script.standing(Call::Unwrap, Act::Hang);
    for _ in 0..160 {
        two.rig.pass(SECOND / 4).await;
        quick.iter().for_each(|account| seal(account).unwrap());
        stuck.iter().for_each(|account| drop(seal(account)));
    }
}

#[tokio::test]
async fn an_outage_or_a_denial_of_one_token_is_none_of_another_s() {
    for verdict in [Verdict::Unreachable, Verdict::Denied, Verdict::Misconfigured, Verdict::Replaced, Verdict::Fatal] {
        let two = Two::new().await;
        let (one, other) = (two.rig.account("a").await, two.account("b").await);
        two.rig.pass(20 * SECOND).await;
        two.script.standing(Call::Unwrap, Act::fail(verdict));
        for minute in 0..33 {
            two.rig.pass_by(60 * SECOND, SECOND).await;
            seal(&one).unwrap_or_else(|error| panic!("{verdict:?}, after {minute} min: {error}"));
        }
        let leases = two.rig.engine.leases();
        let phase = |kek: &KekName| leases.iter().find(|lease| lease.kek.name == *kek).unwrap().phase;
        assert_eq!(phase(&two.rig.kek), Phase::Active);
        let silent = matches!(verdict, Verdict::Unreachable | Verdict::Fatal);
        match seal(&other).unwrap_err() {
            Error::Lapsed(_) => assert!(silent),
            Error::Denied(_) => assert!(!silent),
            error => panic!("{verdict:?}: {error}"),
        }
        two.script.standing(Call::Unwrap, Act::Serve);
        two.rig.pass(61 * SECOND).await;
        seal(&other).unwrap();
    }
}

#[tokio::test]
async fn workers_that_are_lost_are_told_with_their_token() {
    let two = Two::new().await;
    let account = two.account("b").await;
    let mut events = two.rig.engine.events();
    two.script.push(Call::Unwrap, Act::Hang);
    two.rig.pass(25 * SECOND).await;
    let mut lost = Vec::new();
    while let Some(event) = events.try_next() {
        if let Event::WorkerLost { token, workers } = event {
            lost.push((token, workers.hung));
        }
    }
    assert_eq!(lost, [(token_name("other"), 1)]);
    let status = two.rig.engine.status().await;
    let tokens: Vec<_> = status.tokens.iter().map(|token| (token.name.to_string(), token.workers.hung)).collect();
    assert_eq!(tokens, [("default".into(), 0), ("other".into(), 1)]);
    seal(&account).unwrap();
}

#[tokio::test]
async fn an_account_moves_to_a_kek_in_another_token_and_back_and_its_handle_follows() {
    let two = Two::new().await;
    let (engine, id) = (&two.rig.engine, account_id("a"));
    let account = two.rig.account("a").await;
    let block = account.seal_to_vec(9_u64, b"before").unwrap();
    assert!(two.rig.meanwhile(engine.move_account(&id, &two.kek)).await.unwrap());
    let record = engine.account_record(&id).await.unwrap();
    assert_eq!(record.wrapped_by().iter().map(|kek| &kek.name).collect::<Vec<_>>(), [&two.kek]);
    for _ in 0..8 {
        two.rig.pass(SECOND * 2).await;
        assert_eq!(account.open_to_vec(9_u64, &block).unwrap(), b"before");
    }
    // The token that it left can go, and the one that it is in counts.
    two.rig.script.destroy(&two.rig.kek_id);
    two.rig.pass(31 * SECOND).await;
    seal(&account).unwrap();
    two.script.disable(&two.kek_id);
    two.rig.pass(16 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))));
    // Not away from a KEK that is denied, nor to one that is: then it stays as it is.
    let error = two.rig.meanwhile(engine.move_account(&id, &two.rig.kek)).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error}");
    two.script.enable(&two.kek_id);
    two.rig.pass(16 * SECOND).await;
    let error = two.rig.meanwhile(engine.move_account(&id, &two.rig.kek)).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error}");
    two.rig.script.restore(&two.rig.kek_id);
    assert!(two.rig.meanwhile(engine.move_account(&id, &two.rig.kek)).await.unwrap());
    two.rig.pass(16 * SECOND).await;
    two.script.destroy(&two.kek_id);
    two.rig.pass(31 * SECOND).await;
    assert_eq!(account.open_to_vec(9_u64, &block).unwrap(), b"before");
}

#[tokio::test]
async fn a_kek_in_a_token_that_is_not_configured_is_misconfigured_by_name_and_denied_nowhere() {
    let two = Two::new().await;
    drop(two.account("b").await);
    let alone = build(&two.rig.token, &two.rig.store, &two.rig.clock, Settings::default());
    let error = alone.account(&account_id("b")).await.unwrap_err();
    let Error::Misconfigured(what) = &error else { panic!("{error}") };
    for word in ["KEK other-kek/1", "token other", "not configured", "default"] {
        assert!(what.contains(word), "{what}");
    }
    for error in [
        alone.create_account(&account_id("c"), &two.kek).await.err(),
        alone.rotate_kek(&two.kek).await.err(),
        alone.move_account(&account_id("b"), &two.rig.kek).await.err(),
    ] {
        assert!(matches!(&error, Some(Error::Misconfigured(what)) if what.contains("token other")), "{error:?}");
    }
    let found = alone.kek(&two.kek).await.unwrap();
    assert!(found.versions[0].in_token.as_ref().is_err_and(|trouble| trouble.what.contains("token other")));
    // Renamed to what the record names, it serves.
    let renamed = Engine::builder(two.token.clone(), two.rig.store.clone())
        .on_current_runtime()
        .default_token(token_name("other"))
        .clock(Clock::Manual(two.rig.clock.clone()))
        .build()
        .unwrap();
    seal(&renamed.account(&account_id("b")).await.unwrap()).unwrap();
}

#[tokio::test]
async fn the_engine_reckons_with_the_deadline_that_a_token_says_which_the_promises_bound() {
    let mut two = Two::new().await;
    let (default, other) = (two.rig.token.clone(), two.token.clone());
    let mut build = |name: &str, timeout| {
        let its = |of: &str, token: &Arc<ScriptedToken>| match of == name {
            true => token.with_call_timeout(timeout),
            false => token.clone(),
        };
        two.rig.token = its("default", &default);
        both(&two.rig, &its("other", &other), Settings::default()).build()
    };
    for (name, timeout, word) in [
        ("other", 16 * SECOND, "promise 1"),
        ("other", Duration::from_millis(99), "promise 3"),
        ("default", 16 * SECOND, "promise 1"),
    ] {
        let error = build(name, timeout).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains(&format!("token {name}")), "{error}");
    }
    let engine = build("other", SECOND).unwrap();
    let error = both(&two.rig, &two.token, Settings::default()).token(token_name("other"), two.token.clone()).build();
    assert!(error.unwrap_err().to_string().contains("two tokens are named other"));
    let account = engine.create_account(&account_id("b"), &two.kek).await.unwrap();
    two.script.standing(Call::Unwrap, Act::Hang);
    two.rig.pass(16 * SECOND + SECOND / 2).await;
    let lease = engine.leases().into_iter().find(|lease| lease.kek.name == two.kek).unwrap();
    assert!(matches!(lease.phase, Phase::Grace { .. }), "noticed by the deadline of its own token: {lease:?}");
    seal(&account).unwrap();
}

#[tokio::test]
async fn a_key_is_adopted_without_asking_the_tokens_of_other_keks() {
    let two = Two::new().await;
    let spec = KekSpec { label: "vendor".into(), profile: Profile::AesGcm, destroyable: false };
    let made = two.rig.token.create_kek(&spec).await.unwrap();
    two.script.set_unreachable(true);
    let calls = two.script.calls(Call::FindKek);
    let adopted = two.rig.meanwhile(two.rig.engine.adopt_kek(&two.rig.kek, &made.id)).await.unwrap();
    assert_eq!((adopted.version, two.script.calls(Call::FindKek)), (2, calls));
}

#[tokio::test]
async fn accounts_whose_token_is_not_configured_fail_by_schedule_once_for_all_of_them() {
    let mut two = Two::new().await;
    for id in ["a", "b", "c"] {
        two.account(id).await;
        let policy = AekPolicy { max_age_secs: 3600, ..AekPolicy::default() };
        two.rig.engine.set_aek_policy(&account_id(id), policy).await.unwrap();
    }
    let settings = Settings::default().scheduled_work(false);
    two.rig.engine = build(&two.rig.token, &two.rig.store, &two.rig.clock, settings);
    two.rig.clock.advance(3602 * SECOND);
    let report = two.rig.meanwhile(two.rig.engine.run_schedule()).await.unwrap();
    let [(subject, Error::Misconfigured(_))] = &report.failures[..] else { panic!("{report:?}") };
    assert_eq!((subject.as_str(), report.failed, report.accounts), ("accounts under KEK other-kek", 3, 0));
}
