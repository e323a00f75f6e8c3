//! Fresh proofs: each KEK version gets one in every so many of its own, and ordinary ones do not stand for them.

use super::{denial::heard_elsewhere, hand::HandStore, impostor::has_denial, *};
use async_trait::async_trait;
use keyleash::{
    Error,
    name::TokenName,
    secret::Aek,
    store::{Key, KeyStore},
    telemetry::Event,
    token::{
        Binding, KekHandle, KekInfo, KekSpec, Probe, Token, TokenError, TokenInfo, Verdict, Workers, Wrapped,
        scripted::Call,
    },
};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Mutex,
};

/// Notes which KEK was unwrapped with right after a renewal, and how often each was. It may have contexts.
struct Noted {
    inner: Arc<ScriptedToken>,
    /// By which tasks: a proof is one.
    renewed: Mutex<HashSet<tokio::task::Id>>,
    /// Fresh unwraps, and all.
    unwraps: Mutex<BTreeMap<KekId, (u32, u32)>>,
    contexts: Mutex<Option<Contexts>>,
}

/// Contexts that hide what changed since they began.
struct Contexts {
    clock: ManualClock,
    began: Instant,
    /// Renewals so far, those that failed too.
    renewals: u32,
    /// Renewals that are to fail, because a call hangs in the module.
    stuck: u32,
    /// How long a renewal takes.
    takes: Duration,
    /// When the token was told to deny.
    revoked: Option<Instant>,
}

impl Noted {
    fn new(rig: &Rig) -> Arc<Self> {
        Arc::new(Self::of(rig.token.clone()))
    }

    fn of(inner: Arc<ScriptedToken>) -> Self {
        Self { inner, renewed: Mutex::default(), unwraps: Mutex::default(), contexts: Mutex::default() }
    }

    fn with_contexts(rig: &Rig) -> Arc<Self> {
        Self::over(rig.token.clone(), rig)
    }

    /// Over another token than the rig's.
    fn over(inner: Arc<ScriptedToken>, rig: &Rig) -> Arc<Self> {
        let noted = Arc::new(Self::of(inner));
        let clock = rig.clock.clone();
        let began = clock.now();
        *noted.contexts.lock().unwrap() =
            Some(Contexts { clock, began, renewals: 0, stuck: 0, takes: Duration::ZERO, revoked: None });
        noted
    }

    fn contexts<T>(&self, change: impl FnOnce(&mut Contexts) -> T) -> T {
        change(self.contexts.lock().unwrap().as_mut().unwrap())
    }
}

fn failed(verdict: Verdict, what: &str) -> TokenError {
    TokenError::new(verdict, "test", what, "none")
}

impl Noted {
    fn note(&self, kek: &KekHandle) -> Result<(), TokenError> {
        let fresh = tokio::task::try_id().is_some_and(|task| self.renewed.lock().unwrap().remove(&task));
        let mut unwraps = self.unwraps.lock().unwrap();
        let counts = unwraps.entry(kek.id.clone()).or_default();
        *counts = (counts.0 + u32::from(fresh), counts.1 + 1);
        if self.contexts.lock().unwrap().as_ref().is_some_and(|all| all.revoked.is_some_and(|at| at <= all.began)) {
            return Err(failed(Verdict::Denied, "the PIN was changed"));
        }
        Ok(())
    }
}

#[async_trait]
impl Token for Noted {
    async fn unwrap(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.note(kek)?;
        self.inner.unwrap(kek, wrapped, binding).await
    }

    async fn prove(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.note(kek)?;
        self.inner.prove(kek, wrapped, binding).await
    }

    async fn renew_context(&self) -> Result<(), TokenError> {
        self.renewed.lock().unwrap().insert(tokio::task::id());
        let (clock, takes) = match &mut *self.contexts.lock().unwrap() {
            None => return Ok(()),
            Some(contexts) => {
                contexts.renewals += 1;
                if contexts.stuck > 0 {
                    contexts.stuck -= 1;
                    return Err(failed(Verdict::Fatal, "a call hangs in the module"));
                }
                (contexts.clock.clone(), contexts.takes)
            }
        };
        let began = clock.now();
        Clock::Manual(clock).sleep_until(began.plus(takes)).await;
        self.contexts(|contexts| contexts.began = began);
        Ok(())
    }

    fn context_began(&self) -> Option<Instant> {
        self.contexts.lock().unwrap().as_ref().map(|contexts| contexts.began)
    }

    async fn wrap(&self, kek: &KekHandle, aek: &Aek, binding: &Binding) -> Result<Wrapped, TokenError> {
        self.inner.wrap(kek, aek, binding).await
    }

    async fn info(&self) -> Result<TokenInfo, TokenError> {
        self.inner.info().await
    }

    async fn probe(&self, profile: Profile) -> Result<Probe, TokenError> {
        self.inner.probe(profile).await
    }

    async fn create_kek(&self, spec: &KekSpec) -> Result<KekInfo, TokenError> {
        self.inner.create_kek(spec).await
    }

    async fn find_kek(&self, id: &KekId) -> Result<Option<KekInfo>, TokenError> {
        self.inner.find_kek(id).await
    }

    async fn list_keks(&self) -> Result<Vec<KekInfo>, TokenError> {
        self.inner.list_keks().await
    }

    fn call_timeout(&self) -> Duration {
        self.inner.call_timeout()
    }

    fn workers(&self) -> Workers {
        self.inner.workers()
    }
}

#[tokio::test]
async fn every_kek_version_gets_a_fresh_proof_in_every_so_many_of_its_own() {
    const EVERY: u32 = 4;
    let rig = Rig::new().await;
    let token = Noted::new(&rig);
    // An even number of KEK versions, each asked once an interval: a count for all of them would favour some.
    let settings = Settings::default().fresh_proof_every(EVERY);
    let engine = over(&rig, &token, settings);
    let mut accounts = Vec::new();
    for n in 0..4 {
        let kek = KekName::new(format!("kek-{n}")).unwrap();
        engine.create_kek(&kek, Profile::AesGcm).await.unwrap();
        accounts.push(engine.create_account(&account_id(&format!("account-{n}")), &kek).await.unwrap());
    }
    token.unwraps.lock().unwrap().clear();
    rig.pass(8 * 60 * SECOND).await;
    let unwraps = token.unwraps.lock().unwrap();
    assert_eq!(unwraps.len(), 4);
    for (fresh, all) in unwraps.values() {
        assert!(fresh.abs_diff(all / EVERY) <= 1, "{fresh} of {all}: {unwraps:?}");
    }
    drop(accounts);
}

fn over(rig: &Rig, token: &Arc<Noted>, settings: Settings) -> Engine {
    let build = Engine::builder(token.clone(), rig.store.clone()).on_current_runtime();
    build
        .settings(settings)
        .start_up_proof(false)
        .clock(Clock::Manual(rig.clock.clone()))
        .jitter_seed(1)
        .build()
        .unwrap()
}

fn settings() -> Settings {
    Settings::default().fresh_proof_every(4).grace(300 * SECOND).aek_ttl(120 * SECOND)
}

/// An engine over a token with contexts, and so many accounts that it has not opened.
async fn hidden(cold: usize) -> (Rig, Arc<Noted>, Engine) {
    let rig = Rig::new().await;
    for n in 0..cold {
        rig.account(&format!("cold-{n}")).await;
    }
    let token = Noted::with_contexts(&rig);
    let engine = over(&rig, &token, settings());
    (rig, token, engine)
}

#[tokio::test]
async fn a_lease_ends_with_grace_after_the_span_of_the_last_fresh_proof_whatever_ordinary_proofs_say() {
    let (rig, token, engine) = hidden(60).await;
    let account = engine.create_account(&account_id("a"), &rig.kek).await.unwrap();
    rig.pass(200 * SECOND).await;
    let mut events = engine.events();
    // A call hangs, so that no context can be renewed any more, and the PIN is changed.
    token.contexts(|contexts| (contexts.stuck, contexts.revoked) = (u32::MAX, Some(rig.clock.now())));
    let revoked = rig.clock.now();
    let began = token.contexts(|contexts| contexts.began);
    let bound = 4 * 15 * SECOND + 300 * SECOND;
    let (mut last, mut cold) = (revoked, 0);
    for _ in 0..60 {
        // Each is an unwrap that succeeds.
        let opened = engine.account(&account_id(&format!("cold-{cold}"))).await;
        cold += 1;
        if seal(&account).is_ok() || opened.is_ok_and(|account| seal(&account).is_ok()) {
            last = rig.clock.now();
        }
        rig.pass(10 * SECOND).await;
    }
    assert!(last.since(began) <= bound, "{:?} after the last fresh proof", last.since(began));
    assert!(last.since(began) >= bound - 11 * SECOND, "an ordinary proof is one while the last fresh one is young");
    let error = seal(&account).unwrap_err();
    assert!(matches!(error, Error::Lapsed(_)) && error.to_string().contains("no fresh proof"), "{error}");
    let mut told = Vec::new();
    while let Some(event) = events.try_next() {
        told.extend(matches!(event, Event::ContextNotRenewed { .. } | Event::ContextRenewed { .. }).then_some(event));
    }
    assert!(matches!(&told[..], [Event::ContextNotRenewed { .. }]), "{told:?}");
    // The call comes back: the next proof is a fresh one.
    token.contexts(|contexts| contexts.stuck = 0);
    rig.pass(16 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))));
    assert!(matches!(events.try_next(), Some(Event::ContextRenewed { .. })));
}

#[tokio::test]
async fn a_lease_that_begins_in_an_old_context_hears_of_a_revocation_as_soon_as_any_other() {
    for age in [40, 50, 55, 58, 59, 60] {
        let (rig, token, engine) = hidden(0).await;
        token.contexts(|contexts| contexts.revoked = Some(contexts.clock.now().plus(SECOND)));
        rig.pass(age * SECOND).await;
        let made = engine.create_account(&account_id("a"), &rig.kek).await;
        // Four polls and a call from when the token would have denied, in a context that began then.
        rig.pass((1 + 4 * 15 + 5 - age) * SECOND).await;
        let sealed = made.and_then(|account| seal(&account));
        assert!(matches!(sealed, Err(Error::Denied(_))), "{age}: {:?}", engine.leases());
    }
}

#[tokio::test]
async fn the_status_tells_how_old_the_last_fresh_proof_is_and_why_there_is_none() {
    let (rig, token, engine) = hidden(0).await;
    let account = engine.create_account(&account_id("a"), &rig.kek).await.unwrap();
    rig.pass(100 * SECOND).await;
    token.contexts(|contexts| contexts.stuck = u32::MAX);
    rig.pass(200 * SECOND).await;
    let [lease] = &engine.leases()[..] else { panic!() };
    let fresh = rig.clock.now().since(token.contexts(|contexts| contexts.began));
    assert_eq!(lease.fresh_ago, Some(fresh));
    assert!(fresh >= 200 * SECOND && lease.proved_ago.unwrap() <= 20 * SECOND, "{lease:?}");
    assert_eq!(lease.ends_in, 360 * SECOND - fresh);
    assert!(lease.trouble.as_ref().unwrap().contains("could not be renewed"), "{lease:?}");
    token.contexts(|contexts| contexts.stuck = 0);
    rig.pass(16 * SECOND).await;
    assert_eq!(engine.leases()[0].trouble, None);
    drop(account);
}

#[tokio::test]
async fn a_renewal_that_failed_is_tried_again_with_the_next_proof() {
    let (rig, token, engine) = hidden(0).await;
    let account = engine.create_account(&account_id("a"), &rig.kek).await.unwrap();
    rig.pass(200 * SECOND).await;
    let before = token.contexts(|contexts| {
        contexts.stuck = 3;
        contexts.renewals
    });
    while token.contexts(|contexts| contexts.renewals) == before {
        rig.pass(SECOND).await;
    }
    token.contexts(|contexts| contexts.revoked = Some(contexts.clock.now()));
    rig.pass(3 * 16 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))), "{:?}", token.contexts(|contexts| contexts.renewals));
}

#[tokio::test]
async fn a_machine_that_slept_for_hours_is_back_within_a_poll_of_when_its_context_can_be_renewed() {
    let (rig, token, engine) = hidden(0).await;
    let account = engine.create_account(&account_id("a"), &rig.kek).await.unwrap();
    rig.pass(100 * SECOND).await;
    seal(&account).unwrap();
    token.contexts(|contexts| contexts.stuck = u32::MAX);
    rig.clock.advance(3 * 3600 * SECOND);
    rig.pass(5 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Lapsed(_))));
    token.contexts(|contexts| contexts.stuck = 0);
    rig.pass(16 * SECOND).await;
    seal(&account).unwrap();
}

#[tokio::test]
async fn the_first_unwrap_in_an_old_context_makes_it_young_and_grants_nothing_where_it_cannot() {
    for stuck in [0, u32::MAX] {
        let (rig, token, engine) = hidden(1).await;
        rig.pass(3600 * SECOND).await;
        token.contexts(|contexts| (contexts.stuck, contexts.revoked) = (stuck, Some(contexts.clock.now())));
        let opened = rig.meanwhile(engine.account(&account_id("cold-0"))).await;
        match opened {
            Err(Error::Denied(_)) => assert_eq!(stuck, 0),
            Err(error) => assert!(stuck > 0, "{error}"),
            Ok(_) => panic!("on the word of a context from an hour ago"),
        }
        token.contexts(|contexts| (contexts.stuck, contexts.revoked) = (0, None));
        rig.pass(16 * SECOND).await;
        seal(&rig.meanwhile(engine.account(&account_id("cold-0"))).await.unwrap()).unwrap();
    }
}

#[tokio::test]
async fn a_revocation_is_heard_in_time_in_the_poll_of_a_fresh_proof_too_however_long_its_renewal_takes() {
    let (rig, token, engine) = hidden(0).await;
    let account = engine.create_account(&account_id("a"), &rig.kek).await.unwrap();
    let slow = Duration::from_millis(4900);
    rig.script.set_latency(slow);
    token.contexts(|contexts| contexts.takes = slow);
    let Settings { poll_interval, store_timeout: call_timeout, .. } = settings();
    let step = Duration::from_millis(250);
    let mut renewals = 0;
    for n in 0..12 {
        // Every one of four has its turn to hear it.
        let asked = rig.script.calls(Call::Unwrap);
        while rig.script.calls(Call::Unwrap) <= asked + n % 4 {
            rig.pass(step).await;
        }
        // It was just asked, and has answered when its time comes.
        let before = token.contexts(|contexts| contexts.renewals);
        rig.script.disable(&rig.kek_id);
        let revoked = rig.clock.now();
        while seal(&account).is_ok() {
            rig.pass(step).await;
        }
        let heard = rig.clock.now().since(revoked);
        assert!(heard <= poll_interval + call_timeout + step, "heard after {heard:?}");
        renewals += u32::from(token.contexts(|contexts| contexts.renewals) > before);
        rig.script.enable(&rig.kek_id);
        while seal(&account).is_err() {
            rig.pass(step).await;
        }
    }
    assert!((2..12).contains(&renewals), "{renewals} of 12 were fresh proofs");
}

/// What another engine writes that heard a denial.
async fn write_denial(rig: &Rig) {
    let record = heard_elsewhere(rig, 1);
    rig.store.create(&record.key(), record.put().unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_proof_out_of_an_old_context_ends_no_denial_that_another_engine_wrote() {
    let (rig, token, engine) = hidden(0).await;
    let account = engine.create_account(&account_id("a"), &rig.kek).await.unwrap();
    rig.pass(30 * SECOND).await;
    token.contexts(|contexts| (contexts.stuck, contexts.revoked) = (u32::MAX, Some(rig.clock.now())));
    write_denial(&rig).await;
    // A silence that is over has this engine look at what others left.
    rig.script.set_unreachable(true);
    rig.pass(16 * SECOND).await;
    rig.script.set_unreachable(false);
    rig.pass(60 * SECOND).await;
    seal(&account).unwrap();
    assert!(has_denial(&rig, 1).await, "by the word of a context from before it");
    token.contexts(|contexts| contexts.stuck = 0);
    rig.pass(16 * SECOND).await;
    assert!(matches!(seal(&account), Err(Error::Denied(_))) && has_denial(&rig, 1).await);
    token.contexts(|contexts| contexts.revoked = None);
    rig.pass(32 * SECOND).await;
    seal(&account).unwrap();
    assert!(!has_denial(&rig, 1).await, "the proof after that is a fresh one");
}

#[tokio::test]
async fn a_denial_that_the_store_tells_of_ends_by_no_proof_out_of_a_context_from_before_that() {
    for (revoked, stuck) in [(true, 0), (true, u32::MAX), (false, 0)] {
        let (rig, token, engine) = hidden(1).await;
        rig.pass(20 * SECOND).await;
        let now = rig.clock.now();
        token.contexts(|contexts| (contexts.stuck, contexts.revoked) = (stuck, revoked.then_some(now)));
        write_denial(&rig).await;
        rig.pass(SECOND).await;
        for _ in 0..3 {
            let opened = rig.meanwhile(engine.account(&account_id("cold-0"))).await;
            match revoked {
                true => assert!(matches!(opened, Err(Error::Denied(_))), "{opened:?}"),
                false => seal(&opened.unwrap()).unwrap(),
            }
            rig.pass(16 * SECOND).await;
        }
        assert_eq!(has_denial(&rig, 1).await, revoked);
    }
}

#[tokio::test]
async fn a_denial_that_the_store_tells_of_stays_while_no_context_can_be_renewed_and_ends_with_the_first_that_can() {
    let (rig, token, engine) = hidden(1).await;
    rig.pass(20 * SECOND).await;
    token.contexts(|contexts| contexts.stuck = u32::MAX);
    write_denial(&rig).await;
    for _ in 0..3 {
        rig.pass(16 * SECOND).await;
        let opened = rig.meanwhile(engine.account(&account_id("cold-0"))).await;
        assert!(matches!(opened, Err(Error::Denied(_))), "{opened:?}");
    }
    token.contexts(|contexts| contexts.stuck = 0);
    rig.pass(16 * SECOND).await;
    seal(&rig.meanwhile(engine.account(&account_id("cold-0"))).await.unwrap()).unwrap();
    assert!(!has_denial(&rig, 1).await);
}

#[tokio::test]
async fn a_denial_ends_by_no_proof_out_of_a_context_that_began_while_the_store_told_of_it() {
    let (rig, token, _) = hidden(1).await;
    let store = HandStore::over(&rig.store);
    let build = Engine::builder(token.clone(), store.clone()).on_current_runtime().settings(settings());
    let engine = build.start_up_proof(false).clock(Clock::Manual(rig.clock.clone())).jitter_seed(1).build().unwrap();
    rig.pass(20 * SECOND).await;
    store.hold_reads(|key| matches!(key, Key::Denial(_)));
    let opening = open(&engine, "cold-0");
    rig.pass(SECOND).await;
    token.contexts(|contexts| contexts.began = contexts.clock.now());
    rig.pass(SECOND).await;
    token.contexts(|contexts| (contexts.stuck, contexts.revoked) = (u32::MAX, Some(contexts.clock.now())));
    write_denial(&rig).await;
    store.let_go();
    let opened = rig.meanwhile(opening).await.unwrap();
    assert!(matches!(opened, Err(Error::Denied(_))), "{opened:?}");
    assert!(has_denial(&rig, 1).await);
}

#[tokio::test]
async fn proofs_do_not_follow_on_one_another_without_a_pause_though_two_tokens_contexts_are_due() {
    let rig = Rig::new().await;
    let poll = 10 * SECOND;
    // With a standby the deadlines are half a poll each at most: so are the renewals then.
    let settings = settings().poll_interval(poll);
    let (twin, script) = ScriptedToken::new(Clock::Manual(rig.clock.clone()), poll / 2, 9);
    rig.script.clone_keks_to(&script);
    let (first, standby) = (Noted::with_contexts(&rig), Noted::over(twin, &rig));
    let name = TokenName::new("standby").unwrap();
    let build = Engine::builder(first.clone(), rig.store.clone() as Arc<dyn KeyStore>)
        .token(name.clone(), standby.clone())
        .standby(rig.kek.clone(), name);
    let build = build.settings(settings).on_current_runtime().start_up_proof(false).jitter_seed(1);
    let engine = build.clock(Clock::Manual(rig.clock.clone())).build().unwrap();
    let account = engine.create_account(&account_id("a"), &rig.kek).await.unwrap();
    // Owed again with each proof.
    [&first, &standby].iter().for_each(|token| token.contexts(|contexts| contexts.stuck = u32::MAX));
    rig.pass(120 * SECOND).await;
    let asked = rig.script.calls(Call::Unwrap);
    rig.pass(6 * poll).await;
    let proofs = rig.script.calls(Call::Unwrap) - asked;
    assert!((6..=6 * 4 + 1).contains(&proofs), "{proofs} proofs in 6 polls");
    drop(account);
}

#[tokio::test]
async fn a_denial_that_the_store_told_of_ends_by_no_old_context_though_the_token_denied_something_else_since() {
    let (rig, token, engine) = hidden(1).await;
    rig.pass(20 * SECOND).await;
    token.contexts(|contexts| (contexts.stuck, contexts.revoked) = (u32::MAX, Some(contexts.clock.now())));
    write_denial(&rig).await;
    rig.pass(SECOND).await;
    rig.script.disable(&rig.kek_id);
    for _ in 0..2 {
        let opened = rig.meanwhile(engine.account(&account_id("cold-0"))).await;
        assert!(matches!(opened, Err(Error::Denied(_))), "{opened:?}");
        rig.pass(2 * SECOND).await;
        // What an old context shows of it.
        rig.script.enable(&rig.kek_id);
    }
    token.contexts(|contexts| (contexts.stuck, contexts.revoked) = (0, None));
    rig.pass(2 * SECOND).await;
    seal(&rig.meanwhile(engine.account(&account_id("cold-0"))).await.unwrap()).unwrap();
}

/// Nobody asks a standby for a KEK that nobody uses: its context is as old as the process.
#[tokio::test]
async fn what_nobody_had_open_is_opened_by_the_standby_and_stays_open_however_old_the_standbys_context_is() {
    let rig = Rig::new().await;
    let (twin, script) = ScriptedToken::new(Clock::Manual(rig.clock.clone()), 5 * SECOND, 9);
    rig.script.clone_keks_to(&script);
    let (first, standby) = (Noted::with_contexts(&rig), Noted::over(twin, &rig));
    let name = TokenName::new("standby").unwrap();
    let build = Engine::builder(first.clone(), rig.store.clone() as Arc<dyn KeyStore>)
        .token(name.clone(), standby.clone())
        .standby(rig.kek.clone(), name);
    let build = build.settings(settings()).on_current_runtime().start_up_proof(false).jitter_seed(1);
    let engine = build.clock(Clock::Manual(rig.clock.clone())).build().unwrap();
    drop(rig.account("a").await);
    for minutes in [5, 10] {
        rig.pass_by(minutes * 60 * SECOND, SECOND).await;
        rig.script.set_unreachable(true);
        let account = rig.meanwhile(engine.account(&account_id("a"))).await.unwrap();
        for _ in 0..60 {
            seal(&account).unwrap();
            rig.pass(SECOND).await;
        }
        rig.script.set_unreachable(false);
        drop(account);
        engine.evict(&account_id("a")).await.unwrap();
        engine.status().await; // runs the index's maintenance
    }
}
