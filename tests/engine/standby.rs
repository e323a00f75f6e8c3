//! A KEK with a standby, another token that has the same key: it speaks while the first token is silent, and never against it.

use super::{denial::heard_elsewhere, hand::HandStore, *};
use keyleash::{
    Error,
    engine::EngineBuilder,
    lease::Phase,
    name::{KekVersion, TokenName},
    rotate::PASS_EVERY,
    store::{Key, KeyStore, record::KekPolicy},
    telemetry::Event,
    token::{
        Verdict,
        scripted::{Act, Call},
    },
};

fn standby_name() -> TokenName {
    TokenName::new("standby").unwrap()
}

/// A rig whose KEK has a standby: `rig.script` moves the first token's hand, `standby` that of the other one.
struct Pair {
    rig: Rig,
    standby: Script,
    token: Arc<ScriptedToken>,
}

impl Pair {
    async fn new() -> Self {
        let mut rig = Rig::new().await;
        let clock = Clock::Manual(rig.clock.clone());
        let (token, standby) = ScriptedToken::new(clock, Settings::default().store_timeout, 9);
        rig.script.clone_keks_to(&standby);
        rig.engine = over(&rig, &token, rig.store.clone()).build().unwrap();
        Self { rig, standby, token }
    }

    /// The process is started again.
    fn restart(&mut self) {
        self.rig.engine = self.another();
    }

    /// Another process on the same store and tokens.
    fn another(&self) -> Engine {
        over(&self.rig, &self.token, self.rig.store.clone()).build().unwrap()
    }

    fn phase(&self) -> Phase {
        self.rig.engine.leases()[0].phase
    }

    /// Seals four times a second.
    async fn serves_for(&self, accounts: &[&Account], secs: u32) {
        for quarter in 0..4 * secs {
            self.rig.pass(SECOND / 4).await;
            for account in accounts {
                seal(account).unwrap_or_else(|error| panic!("after {} s: {error}", quarter / 4));
            }
        }
    }
}

fn over(rig: &Rig, standby: &Arc<ScriptedToken>, store: Arc<dyn KeyStore>) -> EngineBuilder {
    Engine::builder(rig.token.clone(), store)
        .on_current_runtime()
        .token(standby_name(), standby.clone())
        .standby(rig.kek.clone(), standby_name())
        .clock(Clock::Manual(rig.clock.clone()))
        .jitter_seed(1)
        .start_up_proof(false)
}

/// The ways in which a token is silent.
fn silences() -> [Act; 3] {
    [Act::Hang, Act::fail(Verdict::Unreachable), Act::fail(Verdict::Fatal)]
}

#[tokio::test]
async fn an_outage_of_the_first_token_however_long_is_noticed_by_nobody_and_its_end_within_a_poll() {
    for silent in silences() {
        let pair = Pair::new().await;
        let mut accounts = Vec::new();
        for n in 0..20 {
            accounts.push(pair.rig.account(&format!("a{n}")).await);
        }
        let accounts: Vec<_> = accounts.iter().collect();
        pair.serves_for(&accounts[..2], 20).await;
        assert_eq!(pair.standby.calls(Call::Unwrap), 0, "asked while the first token answers");
        let mut events = pair.rig.engine.events();
        pair.rig.script.standing(Call::Unwrap, silent.clone());
        for minute in 0..40 {
            pair.rig.pass_by(60 * SECOND, SECOND / 2).await;
            accounts.iter().for_each(|account| {
                seal(account).unwrap_or_else(|error| panic!("{silent:?}, after {minute} min: {error}"));
            });
        }
        let lease = pair.rig.engine.leases().remove(0);
        assert_eq!((lease.phase, lease.on_standby), (Phase::Active, Some(standby_name())));
        assert_eq!(pair.standby.calls(Call::Wrap), 0);
        pair.rig.script.release();
        pair.rig.script.standing(Call::Unwrap, Act::Serve);
        pair.rig.pass(21 * SECOND).await;
        assert_eq!(pair.rig.engine.leases()[0].on_standby, None);
        let asked = pair.standby.calls(Call::Unwrap);
        pair.rig.pass(60 * SECOND).await;
        assert_eq!(pair.standby.calls(Call::Unwrap), asked, "it is asked no more");
        let mut told = Vec::new();
        while let Some(event) = events.try_next() {
            match event {
                Event::StandbyTookOver { .. } => told.push(true),
                Event::StandbyDone { .. } => told.push(false),
                _ => {}
            }
        }
        assert_eq!(told, [true, false], "{silent:?}");
    }
}

#[tokio::test]
async fn one_caller_waits_for_the_silence_of_the_first_token_and_nobody_after_it() {
    let pair = Pair::new().await;
    let (one, other) = (pair.rig.account("a").await, pair.rig.account("b").await);
    pair.rig.pass_by(25 * 60 * SECOND, SECOND).await; // idle for a TTL: both are cold
    pair.rig.script.standing(Call::Unwrap, Act::Hang);
    let began = pair.rig.clock.now();
    pair.rig.meanwhile(one.warm()).await.unwrap();
    assert!(pair.rig.clock.now().since(began) <= 5 * SECOND + SECOND / 2);
    let began = pair.rig.clock.now();
    pair.rig.meanwhile(other.warm()).await.unwrap();
    assert!(pair.rig.clock.now().since(began) <= SECOND / 2, "it waited for a token that is known to be silent");
    seal(&one).unwrap();
    seal(&other).unwrap();
}

#[tokio::test]
async fn a_process_that_starts_in_the_outage_opens_and_creates_accounts_by_the_standby() {
    let mut pair = Pair::new().await;
    let block = pair.rig.account("a").await.seal_to_vec(9_u64, b"before").unwrap();
    let bare = KekName::new("bare").unwrap();
    pair.rig.engine.create_kek(&bare, Profile::AesGcm).await.unwrap();
    pair.rig.script.clone_keks_to(&pair.standby);
    pair.rig.script.set_unreachable(true);
    let started = over(&pair.rig, &pair.token, pair.rig.store.clone()).standby(bare.clone(), standby_name());
    pair.rig.engine = started.build().unwrap();
    let id = account_id("new");
    let new = pair.rig.engine.create_account(&id, &bare);
    let error = pair.rig.meanwhile(new).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "a standby that proved nothing wraps nothing: {error}");
    let account = pair.rig.meanwhile(pair.rig.engine.account(&account_id("a"))).await.unwrap();
    assert_eq!(account.open_to_vec(9_u64, &block).unwrap(), b"before");
    // Without an account of it that anybody opened: a record that is there is asked for first.
    pair.rig.engine = over(&pair.rig, &pair.token, pair.rig.store.clone()).build().unwrap();
    let new = pair.rig.engine.create_account(&id, &pair.rig.kek);
    let block = pair.rig.meanwhile(new).await.unwrap().seal_to_vec(9_u64, b"meanwhile").unwrap();
    // The first token gives back what the standby wrapped.
    pair.rig.script.set_unreachable(false);
    pair.standby.set_unreachable(true);
    pair.restart();
    let account = pair.rig.engine.account(&account_id("new")).await.unwrap();
    assert_eq!(account.open_to_vec(9_u64, &block).unwrap(), b"meanwhile");
}

#[tokio::test]
async fn a_slow_token_that_refuses_damaged_records_is_not_silent_so_its_standby_is_not_asked() {
    let mut pair = Pair::new().await;
    for id in ["a", "b", "c"] {
        drop(pair.rig.account(id).await);
        pair.rig.flip_wrapping(id, 1).await;
    }
    pair.restart();
    pair.rig.script.standing(Call::Unwrap, Act::Delay(4 * SECOND));
    // Somebody tries to open each of them all the time.
    let mut opening = ["a", "b", "c"].map(|id| (id, open(&pair.rig.engine, id)));
    for _ in 0..4 * 60 {
        pair.rig.pass(SECOND / 4).await;
        for (id, opening) in &mut opening {
            if opening.is_finished() {
                let opened = std::mem::replace(opening, open(&pair.rig.engine, id)).await.unwrap();
                assert!(matches!(opened, Err(Error::Corrupt(_) | Error::Denied(_))), "{opened:?}");
            }
        }
    }
    assert!(pair.rig.script.calls(Call::Unwrap) > 20);
    assert_eq!(pair.standby.calls(Call::Unwrap), 0);
}

#[tokio::test]
async fn a_key_that_the_first_token_denied_is_never_asked_of_the_standby_whatever_comes_after() {
    let mut pair = Pair::new().await;
    let account = pair.rig.account("a").await;
    pair.serves_for(&[&account], 20).await;
    pair.rig.script.disable(&pair.rig.kek_id);
    pair.rig.pass(16 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))));
    pair.rig.script.set_unreachable(true);
    for minute in 0..40 {
        pair.rig.pass_by(60 * SECOND, SECOND).await;
        assert!(matches!(seal(&account), Err(Error::Denied(_))), "after {minute} min");
        assert!(matches!(pair.rig.meanwhile(account.warm()).await, Err(Error::Denied(_))));
    }
    // Nor after a restart, of which the store alone knows.
    pair.restart();
    let again = pair.rig.meanwhile(pair.rig.engine.account(&account_id("a"))).await;
    assert!(matches!(again, Err(Error::Denied(_))), "{again:?}");
    pair.rig.pass(60 * SECOND).await;
    let error = pair.rig.meanwhile(pair.rig.engine.create_account(&account_id("b"), &pair.rig.kek)).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_) | Error::Unreachable(_)), "{error}");
    let asked = (pair.standby.calls(Call::Unwrap), pair.standby.calls(Call::Wrap));
    assert_eq!(asked, (0, 0), "the standby was asked after a denial");
    // Granted again by the first, and silent after that: now it may be.
    pair.rig.script.set_unreachable(false);
    pair.rig.script.enable(&pair.rig.kek_id);
    pair.rig.pass(2 * SECOND).await;
    let account = pair.rig.meanwhile(pair.rig.engine.account(&account_id("a"))).await.unwrap();
    pair.rig.pass(16 * SECOND).await;
    pair.rig.script.set_unreachable(true);
    pair.serves_for(&[&account], 120).await;
}

#[tokio::test]
async fn a_grant_by_the_standby_that_was_asked_before_the_first_token_denied_does_not_readmit() {
    let pair = Pair::new().await;
    let account = pair.rig.account("a").await;
    pair.serves_for(&[&account], 20).await;
    pair.rig.script.set_unreachable(true);
    pair.serves_for(&[&account], 20).await;
    // Both are asked at once from now on: the standby takes its time, and the first token is back, and denies.
    pair.standby.standing(Call::Unwrap, Act::Delay(4 * SECOND));
    pair.rig.script.disable(&pair.rig.kek_id);
    pair.rig.script.set_unreachable(false);
    pair.rig.pass(15 * SECOND + SECOND / 2).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))), "not noticed within a poll");
    for _ in 0..80 {
        pair.rig.pass(SECOND / 4).await;
        assert!(matches!(seal(&account), Err(Error::Denied(_))));
    }
    assert!(matches!(pair.phase(), Phase::Denied { .. }));
}

#[tokio::test]
async fn a_denial_by_the_standby_while_the_first_is_silent_is_a_denial_within_a_poll_and_both_deadlines() {
    for silent in silences() {
        let pair = Pair::new().await;
        let account = pair.rig.account("a").await;
        pair.serves_for(&[&account], 20).await;
        // At once: the worst case, because the standby was not in use yet.
        pair.rig.script.standing(Call::Unwrap, silent.clone());
        pair.standby.disable(&pair.rig.kek_id);
        pair.rig.pass(20 * SECOND + SECOND / 4).await;
        assert!(matches!(seal(&account), Err(Error::Denied(_))), "{silent:?}");
        pair.standby.enable(&pair.rig.kek_id);
        pair.rig.pass(21 * SECOND).await;
        seal(&account).unwrap();
        // And once it is in use, within a poll.
        pair.standby.disable(&pair.rig.kek_id);
        pair.rig.pass(15 * SECOND + SECOND / 4).await;
        assert!(matches!(seal(&account), Err(Error::Denied(_))), "{silent:?}");
        // Both silent: denied stays denied.
        pair.standby.set_unreachable(true);
        pair.rig.pass(60 * SECOND).await;
        assert!(matches!(seal(&account), Err(Error::Denied(_))), "{silent:?}");
        // The first one's grant is a proof.
        pair.rig.script.release();
        pair.rig.script.standing(Call::Unwrap, Act::Serve);
        pair.rig.pass(21 * SECOND).await;
        seal(&account).unwrap();
    }
}

#[tokio::test]
async fn a_standby_that_denies_denies_nobody_while_the_first_token_answers() {
    let pair = Pair::new().await;
    let account = pair.rig.account("a").await;
    pair.standby.disable(&pair.rig.kek_id);
    pair.serves_for(&[&account], 60).await;
    // One proof goes amiss, and the standby takes over. With the next one the first token is back before it denies.
    pair.standby.enable(&pair.rig.kek_id);
    pair.rig.script.push(Call::Unwrap, Act::fail(Verdict::Unreachable));
    while pair.rig.engine.leases()[0].on_standby.is_none() {
        pair.serves_for(&[&account], 1).await;
    }
    pair.standby.disable(&pair.rig.kek_id);
    pair.standby.standing(Call::Unwrap, Act::Delay(4 * SECOND));
    let asked = pair.standby.calls(Call::Unwrap);
    pair.serves_for(&[&account], 30).await;
    assert_eq!(pair.standby.calls(Call::Unwrap), asked + 1, "it was asked, and denied");
    assert_eq!(pair.rig.engine.leases()[0].on_standby, None);
}

#[tokio::test]
async fn both_silent_is_an_outage_with_one_grace_and_lapses() {
    let pair = Pair::new().await;
    let account = pair.rig.account("a").await;
    pair.serves_for(&[&account], 20).await;
    pair.rig.script.set_unreachable(true);
    pair.serves_for(&[&account], 60).await;
    pair.standby.standing(Call::Unwrap, Act::Hang);
    pair.rig.pass_by(29 * 60 * SECOND, SECOND).await;
    seal(&account).unwrap();
    let lease = pair.rig.engine.leases().remove(0);
    assert!(matches!(lease.phase, Phase::Grace { .. }));
    let trouble = lease.trouble.unwrap();
    assert!(trouble.contains("the token is away") && trouble.contains("standby"), "{trouble}");
    pair.rig.pass_by(75 * SECOND, SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Lapsed(_))));
    pair.standby.release();
    pair.standby.standing(Call::Unwrap, Act::Serve);
    pair.rig.pass(61 * SECOND).await;
    seal(&account).unwrap();
}

#[tokio::test]
async fn a_standby_without_the_key_or_with_another_one_is_none_and_denies_nobody_in_the_outage() {
    type Spoil = fn(&Pair);
    let cases: [(&str, Spoil); 4] = [
        ("no such key", |pair| pair.standby.destroy(&pair.rig.kek_id)),
        ("refuses", |pair| pair.standby.replace(&pair.rig.kek_id)),
        ("other bytes", |pair| pair.standby.standing(Call::Unwrap, Act::WrongPlaintext)),
        ("the script says so", |pair| pair.standby.standing(Call::Unwrap, Act::fail(Verdict::Misconfigured))),
    ];
    for (words, spoil) in cases {
        let pair = Pair::new().await;
        spoil(&pair);
        let mut events = pair.rig.engine.events();
        let (account, idle) = (pair.rig.account("a").await, pair.rig.account("b").await);
        pair.serves_for(&[&account, &idle], 20).await;
        pair.rig.script.set_unreachable(true);
        pair.rig.pass_by(28 * 60 * SECOND, SECOND).await;
        seal(&account).unwrap_or_else(|error| panic!("{words}: {error}"));
        seal(&idle).unwrap_or_else(|error| panic!("{words}: {error}"));
        let error = pair.rig.meanwhile(pair.rig.engine.create_account(&account_id("new"), &pair.rig.kek)).await;
        assert!(matches!(error, Err(Error::Unreachable(_))), "{words}: {error:?}");
        pair.rig.pass_by(3 * 60 * SECOND, SECOND).await;
        assert!(matches!(seal(&account), Err(Error::Lapsed(_))), "{words}");
        let mut told = Vec::new();
        while let Some(event) = events.try_next() {
            if let Event::StandbyUnfit { why, .. } = event {
                told.push(why);
            }
        }
        assert!(matches!(&told[..], [why] if why.contains(words)), "{words}: {told:?}");
        pair.rig.script.set_unreachable(false);
        pair.rig.pass(61 * SECOND).await;
        seal(&account).unwrap();
    }
}

#[tokio::test]
async fn a_key_that_was_seen_on_the_standby_and_is_deleted_there_in_the_outage_is_denied() {
    let pair = Pair::new().await;
    let account = pair.rig.account("a").await;
    pair.serves_for(&[&account], 20).await; // it is looked at, though not needed
    pair.rig.script.set_unreachable(true);
    pair.standby.destroy(&pair.rig.kek_id);
    pair.rig.pass(20 * SECOND + SECOND / 4).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))));
}

#[tokio::test]
async fn what_another_process_heard_of_the_first_token_keeps_this_one_from_the_standby() {
    let pair = Pair::new().await;
    let account = pair.rig.account("a").await;
    pair.serves_for(&[&account], 20).await;
    // The other process polls first, by a clock that is far behind; before this one does, the token is silent.
    let record = heard_elsewhere(&pair.rig, 1);
    pair.rig.store.create(&record.key(), record.put().unwrap()).await.unwrap();
    pair.rig.script.set_unreachable(true);
    pair.rig.pass(21 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))));
    assert_eq!(pair.standby.calls(Call::Unwrap), 0);
    let kept = keyleash::store::load_denial(&*pair.rig.store, &record.kek).await.unwrap();
    assert!(kept.is_some(), "and the record stays");
}

#[tokio::test]
async fn a_proof_by_the_standby_clears_no_denial_that_another_process_heard() {
    let pair = Pair::new().await;
    let account = pair.rig.account("a").await;
    pair.serves_for(&[&account], 20).await;
    pair.rig.script.set_unreachable(true);
    pair.serves_for(&[&account], 20).await;
    let record = heard_elsewhere(&pair.rig, 1);
    pair.rig.store.create(&record.key(), record.put().unwrap()).await.unwrap();
    // A change of the lease by the standby, which has it look at the record.
    pair.standby.set_unreachable(true);
    pair.rig.pass(31 * SECOND).await;
    pair.standby.set_unreachable(false);
    pair.rig.pass(31 * SECOND).await;
    let kept = keyleash::store::load_denial(&*pair.rig.store, &record.kek).await.unwrap();
    assert!(kept.is_some(), "the standby cannot speak for it");
}

#[tokio::test]
async fn a_store_that_does_not_say_whether_the_first_token_denied_keeps_the_standby_out() {
    let pair = Pair::new().await;
    let store = HandStore::over(&pair.rig.store);
    let engine = over(&pair.rig, &pair.token, store.clone()).build().unwrap();
    let account = engine.create_account(&account_id("a"), &pair.rig.kek).await.unwrap();
    pair.serves_for(&[&account], 20).await;
    store.hold_reads(|key| matches!(key, Key::Denial(_)));
    pair.rig.script.set_unreachable(true);
    pair.serves_for(&[&account], 60).await;
    assert_eq!(pair.standby.calls(Call::Unwrap), 0);
    assert!(matches!(engine.leases()[0].phase, Phase::Grace { .. }));
    store.let_go();
    pair.serves_for(&[&account], 30).await;
    assert_eq!(engine.leases()[0].on_standby, Some(standby_name()));
}

/// Two engines on one store and two tokens, each with a clock of its own, which differ by an hour: time passes for one at a time, so
/// that a test says who polls.
struct Two {
    pair: Pair,
    rigs: [Rig; 2],
    accounts: [Account; 2],
}

impl Two {
    async fn new() -> Self {
        let pair = Pair::new().await;
        drop(pair.rig.account("a").await);
        let rig = |hours: u32| {
            let clock = ManualClock::new(Instant::from_nanos(1_000_000_000).plus(hours * 3600 * SECOND));
            let engine = over(&pair.rig, &pair.token, pair.rig.store.clone()).clock(Clock::Manual(clock.clone()));
            let Rig { script, store, token, kek, kek_id, .. } = &pair.rig;
            Rig {
                engine: engine.build().unwrap(),
                clock,
                script: script.clone(),
                store: store.clone(),
                token: token.clone(),
                kek: kek.clone(),
                kek_id: kek_id.clone(),
            }
        };
        let rigs = [rig(0), rig(1)];
        let accounts = [
            rigs[0].engine.account(&account_id("a")).await.unwrap(),
            rigs[1].engine.account(&account_id("a")).await.unwrap(),
        ];
        let two = Self { pair, rigs, accounts };
        two.both_pass(40 * SECOND).await;
        two
    }

    async fn both_pass(&self, time: std::time::Duration) {
        for rig in &self.rigs {
            rig.pass(time).await;
        }
    }

    /// The token is there for engine 1 alone, and denies it.
    async fn one_is_denied(&self) {
        self.pair.rig.script.disable(&self.pair.rig.kek_id);
        self.pair.rig.script.set_unreachable(false);
        self.rigs[1].pass(16 * SECOND).await;
        assert!(matches!(seal(&self.accounts[1]), Err(Error::Denied(_))));
        self.pair.rig.script.set_unreachable(true);
    }

    async fn has_denial(&self) -> bool {
        let kek = KekVersion::new(self.pair.rig.kek.clone(), 1);
        keyleash::store::load_denial(&*self.pair.rig.store, &kek).await.unwrap().is_some()
    }
}

#[tokio::test]
async fn a_denial_that_repeats_one_from_before_this_engines_grant_keeps_it_from_the_standby() {
    let two = Two::new().await;
    two.one_is_denied().await;
    two.pair.rig.script.set_unreachable(false);
    // This one never saw the first denial in force: the key is back before it polls, and it ends what the store has.
    two.pair.rig.script.enable(&two.pair.rig.kek_id);
    two.rigs[0].pass(40 * SECOND).await;
    seal(&two.accounts[0]).unwrap();
    assert!(!two.has_denial().await);
    two.one_is_denied().await;
    two.rigs[0].pass(21 * SECOND).await;
    assert!(matches!(seal(&two.accounts[0]), Err(Error::Denied(_))), "served by the standby after a newer denial");
    assert_eq!(two.pair.standby.calls(Call::Unwrap), 0);
    // Both are back with the first token's grant, and nothing is left behind.
    two.pair.rig.script.enable(&two.pair.rig.kek_id);
    two.pair.rig.script.set_unreachable(false);
    two.both_pass(31 * SECOND).await;
    two.both_pass(31 * SECOND).await;
    two.accounts.iter().for_each(|account| seal(account).unwrap());
    assert!(!two.has_denial().await);
}

#[tokio::test]
async fn a_denial_that_another_engine_hears_takes_this_one_off_the_standby_within_a_poll() {
    let two = Two::new().await;
    two.pair.rig.script.set_unreachable(true);
    two.both_pass(60 * SECOND).await;
    two.accounts.iter().for_each(|account| seal(account).unwrap());
    assert_eq!(two.rigs[0].engine.leases()[0].on_standby, Some(standby_name()));
    two.one_is_denied().await;
    two.rigs[0].pass(16 * SECOND).await;
    assert!(matches!(seal(&two.accounts[0]), Err(Error::Denied(_))), "it looked once in this silence alone");
    let asked = two.pair.standby.calls(Call::Unwrap);
    two.both_pass(120 * SECOND).await;
    assert_eq!(two.pair.standby.calls(Call::Unwrap), asked);
    assert!(two.has_denial().await);
}

#[tokio::test]
async fn who_hears_of_anothers_denial_as_the_first_token_grants_again_resumes_in_that_poll() {
    let two = Two::new().await;
    let script = &two.pair.rig.script;
    script.set_unreachable(true);
    two.both_pass(60 * SECOND).await;
    two.one_is_denied().await;
    script.enable(&two.pair.rig.kek_id);
    script.set_unreachable(false);
    // Its answer comes after the look into the store, which says so of the silence before.
    script.push(Call::Unwrap, Act::Hang);
    while script.in_flight() == 0 {
        two.rigs[0].pass(SECOND / 4).await;
    }
    assert!(matches!(seal(&two.accounts[0]), Err(Error::Denied(_))));
    script.release();
    two.rigs[0].pass(2 * SECOND).await;
    seal(&two.accounts[0]).unwrap();
}

#[tokio::test]
async fn a_denial_by_the_standby_that_others_wrote_down_ends_with_its_grant() {
    let mut two = Two::new().await;
    two.pair.rig.script.set_unreachable(true);
    two.both_pass(40 * SECOND).await;
    two.pair.standby.disable(&two.pair.rig.kek_id);
    // Each writes over the other's.
    for _ in 0..3 {
        two.both_pass(16 * SECOND).await;
        two.accounts.iter().for_each(|account| assert!(matches!(seal(account), Err(Error::Denied(_)))));
    }
    assert!(two.has_denial().await);
    // Denied, then silent: also after a restart.
    two.pair.standby.set_unreachable(true);
    two.pair.restart();
    let again = two.pair.rig.meanwhile(two.pair.rig.engine.account(&account_id("a"))).await;
    assert!(matches!(again, Err(Error::Denied(_))), "{again:?}");
    two.pair.standby.set_unreachable(false);
    two.pair.standby.enable(&two.pair.rig.kek_id);
    two.both_pass(31 * SECOND).await;
    two.both_pass(31 * SECOND).await;
    two.accounts.iter().for_each(|account| seal(account).unwrap());
    assert!(!two.has_denial().await);
    // And whoever finds it as it starts may be granted by the standby too.
    two.pair.rig.pass(2 * SECOND).await;
    two.pair.rig.meanwhile(two.pair.rig.engine.account(&account_id("a"))).await.unwrap();
}

#[tokio::test]
async fn a_standbys_denial_is_not_written_over_the_first_tokens() {
    let two = Two::new().await;
    two.pair.rig.script.set_unreachable(true);
    two.both_pass(40 * SECOND).await;
    two.one_is_denied().await;
    two.pair.standby.disable(&two.pair.rig.kek_id);
    two.rigs[0].pass(16 * SECOND).await;
    two.pair.standby.enable(&two.pair.rig.kek_id);
    two.both_pass(60 * SECOND).await;
    two.accounts.iter().for_each(|account| assert!(matches!(seal(account), Err(Error::Denied(_)))));
    assert!(two.has_denial().await);
}

#[tokio::test]
async fn while_the_store_is_silent_the_standby_is_asked_for_two_polls_and_serves_for_a_grace_after() {
    let pair = Pair::new().await;
    let store = HandStore::over(&pair.rig.store);
    let engine = over(&pair.rig, &pair.token, store.clone()).build().unwrap();
    let account = engine.create_account(&account_id("a"), &pair.rig.kek).await.unwrap();
    pair.serves_for(&[&account], 20).await;
    pair.rig.script.set_unreachable(true);
    pair.serves_for(&[&account], 60).await;
    store.hold_reads(|key| matches!(key, Key::Denial(_)));
    pair.serves_for(&[&account], 35).await;
    let asked = pair.standby.calls(Call::Unwrap);
    pair.rig.pass_by(29 * 60 * SECOND, SECOND).await;
    seal(&account).unwrap();
    assert_eq!(pair.standby.calls(Call::Unwrap), asked, "asked, though nobody knows what the first token said");
    assert!(matches!(engine.leases()[0].phase, Phase::Grace { .. }));
    pair.rig.pass_by(60 * SECOND, SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Lapsed(_))));
    store.let_go();
    pair.rig.pass(61 * SECOND).await;
    seal(&account).unwrap();
}

#[tokio::test]
async fn accounts_that_go_over_to_a_standby_take_no_place_from_those_that_are_at_home_there() {
    let pair = Pair::new().await;
    let home = KekName::new("home").unwrap();
    pair.rig.engine.create_kek(&home, keyleash::KekOptions::new(Profile::AesGcm).token(standby_name())).await.unwrap();
    let at_home = pair.rig.engine.create_account(&account_id("home"), &home).await.unwrap();
    let mut guests = Vec::new();
    for n in 0..40 {
        guests.push(pair.rig.account(&format!("guest-{n}")).await);
    }
    pair.rig.pass_by(25 * 60 * SECOND, SECOND).await; // idle for a TTL: all are cold
    pair.rig.script.set_unreachable(true);
    pair.rig.pass(16 * SECOND).await;
    pair.standby.set_latency(2 * SECOND);
    let warming: Vec<_> = guests.into_iter().map(|guest| tokio::spawn(async move { guest.warm().await })).collect();
    settle().await;
    assert!(pair.standby.in_flight() >= 16);
    let began = pair.rig.clock.now();
    pair.rig.meanwhile(at_home.warm()).await.unwrap();
    let waited = pair.rig.clock.now().since(began);
    assert!(waited <= 2 * SECOND + SECOND / 2, "behind the guests: {waited:?}");
    for warming in warming {
        pair.rig.meanwhile(warming).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_standby_that_cannot_be_one_is_refused_by_name() {
    let pair = Pair::new().await;
    let build = || over(&pair.rig, &pair.token, pair.rig.store.clone());
    let third = TokenName::new("third").unwrap();
    let error = build().standby(pair.rig.kek.clone(), third).build().unwrap_err().to_string();
    assert!(
        error.contains("KEK kek") && error.contains("token third") && error.contains("default, standby"),
        "{error}"
    );
    let slow = over(&pair.rig, &pair.token.with_call_timeout(11 * SECOND), pair.rig.store.clone());
    let error = slow.build().unwrap_err().to_string();
    for word in ["KEK kek", "token default", "token standby", "16 s", "poll_interval (15 s)", "promise 1"] {
        assert!(error.contains(word), "{error} should say {word}");
    }
    let engine = build().standby(pair.rig.kek.clone(), TokenName::default()).build().unwrap();
    let error = engine.create_account(&account_id("a"), &pair.rig.kek).await.unwrap_err();
    assert!(matches!(&error, Error::Misconfigured(what) if what.contains("name another one")), "{error}");
}

#[tokio::test]
async fn a_kek_shows_what_its_standby_has() {
    let pair = Pair::new().await;
    let shown = pair.rig.engine.kek(&pair.rig.kek).await.unwrap();
    assert!(matches!(&shown.versions[0].in_standby, Some((name, Ok(Some(_)))) if *name == standby_name()));
    pair.rig.engine.rotate_kek(&pair.rig.kek).await.unwrap();
    let shown = pair.rig.engine.kek(&pair.rig.kek).await.unwrap();
    assert!(matches!(&shown.versions[1].in_standby, Some((_, Ok(None)))), "not cloned yet");
}

#[tokio::test]
async fn a_schedule_moves_nothing_to_a_kek_version_that_the_standby_does_not_have() {
    let pair = Pair::new().await;
    let rig = &pair.rig;
    rig.account("a").await;
    rig.engine.set_kek_policy(&rig.kek, KekPolicy { max_age_secs: 86_400 }).await.unwrap();
    let mut events = rig.engine.events();
    rig.clock.advance(86_400 * SECOND);
    rig.pass_by(3 * PASS_EVERY, 5 * SECOND).await;
    let versions = rig.engine.kek(&rig.kek).await.unwrap().versions.len();
    let left = async || rig.engine.count_wrapped_by(&KekVersion::new(rig.kek.clone(), 1)).await.unwrap();
    assert_eq!((versions, left().await), (2, 1));
    let told: Vec<_> = std::iter::from_fn(|| events.try_next())
        .filter_map(|event| if let Event::ScheduleFailed { error, .. } = event { Some(error) } else { None })
        .collect();
    assert!(matches!(&told[..], [error] if error.contains("not in its standby, token standby")), "{told:?}");
    rig.script.clone_keks_to(&pair.standby);
    rig.pass_by(2 * PASS_EVERY, 5 * SECOND).await;
    assert_eq!(left().await, 0);
}

#[tokio::test]
async fn clones_in_a_standby_pass_for_no_unknown_keys() {
    let pair = Pair::new().await;
    // So that the standby has a KEK of its own, and is looked after.
    let home = KekName::new("home").unwrap();
    pair.rig.engine.create_kek(&home, keyleash::KekOptions::new(Profile::AesGcm).token(standby_name())).await.unwrap();
    assert_eq!(pair.rig.engine.unknown_keks_in(&standby_name()).await.unwrap(), []);
    let mut events = pair.rig.engine.events();
    pair.rig.pass_by(11 * 60 * SECOND, SECOND).await;
    while let Some(event) = events.try_next() {
        assert!(!matches!(event, Event::KekUnknown { .. } | Event::KekMissing { .. }), "{event:?}");
    }
    // Without a word of the standby they are keys that nobody adopted.
    let plain = Engine::builder(pair.rig.token.clone(), pair.rig.store.clone())
        .on_current_runtime()
        .token(standby_name(), pair.token.clone())
        .clock(Clock::Manual(pair.rig.clock.clone()))
        .build()
        .unwrap();
    assert_eq!(plain.unknown_keks_in(&standby_name()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_standby_proves_itself_anew_in_each_silence_before_it_wraps() {
    let pair = Pair::new().await;
    let account = pair.rig.account("a").await;
    pair.serves_for(&[&account], 20).await;
    pair.rig.script.set_unreachable(true);
    pair.serves_for(&[&account], 40).await; // it proves itself
    pair.rig.script.set_unreachable(false);
    pair.serves_for(&[&account], 60).await;
    while pair.rig.engine.leases()[0].proved_ago.unwrap() > SECOND {
        pair.rig.pass(SECOND / 4).await;
    }
    pair.standby.replace(&pair.rig.kek_id);
    pair.rig.script.set_unreachable(true);
    let made = pair.rig.meanwhile(pair.rig.engine.create_account(&account_id("b"), &pair.rig.kek)).await;
    assert!(matches!(made, Err(Error::Unreachable(_))), "{made:?}");
}

#[tokio::test]
async fn another_key_in_the_first_token_is_found_by_its_next_proof_though_a_standby_proved_in_between() {
    let pair = Pair::new().await;
    let y = pair.rig.account("y").await;
    super::vouch::just_proved(&pair.rig, 1).await;
    pair.rig.script.replace(&pair.rig.kek_id);
    let mut made = Vec::new();
    for n in 0..8 {
        made.push(pair.rig.account(&format!("b{n}")).await);
    }
    pair.rig.script.set_unreachable(true);
    pair.serves_for(&[&y], 60).await;
    pair.rig.script.set_unreachable(false);
    pair.rig.pass(20 * SECOND).await;
    made.iter().chain([&y]).for_each(|account| assert!(matches!(seal(account), Err(Error::Denied(_)))));
}
