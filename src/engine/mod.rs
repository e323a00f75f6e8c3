//! The engine: puts tokens, store, keyring and clock together, and makes KEKs and accounts.
//!
//! ```text
//! service ── Account::seal / open ──▶ slot ◀── Keyring ──▶ Tokens (KEKs, which never leave them)
//!                (account/)            │         (keyring/)   │
//!                                    lease ◀── verdicts ──────┘
//!                                (leash/ over lease/)
//! ```

use crate::{
    access::{Operation, Permit, Scope},
    account::Account,
    block::{self, Backend, Suite},
    clock::Clock,
    config::Settings,
    error::{Error, Result},
    home::Home,
    keyring::{
        Keyring, On, Owner,
        on_trail::{OnTrail, asked_by, asker},
    },
    name::{CallerId, KekName, TokenName},
    planted, rotate,
    secret::{self, fork},
    slots::account_keys::AccountKeys,
    store::{KeyStore, word::StoreSilence},
    telemetry::{
        Events,
        trail::{Deed, Trail, Who},
    },
    token::{Probe, Profile, Token, TokenError, TokenInfo, Verdict, Workers, seats::Wiring},
    watch,
};
use std::{fmt, sync::Arc};

mod accounts;
mod asked;
mod close;
mod counts;
mod grants;
mod health;
mod keks;
mod schedule;
mod start_up;
mod trail;

pub use self::accounts::AccountPage;
pub(crate) use self::asked::Act;
pub use self::close::Closed;
pub use self::counts::{Counts, TokenCounts};
pub use self::health::{EngineHealth, Health, KekHealth};
pub use self::keks::{KekOptions, KekStatus, KekVersionStatus};
#[doc(hidden)]
pub use crate::keyring::access::Judge;
pub use crate::keyring::access::PolicySource;
pub use crate::keyring::by_account::AccountCounts;
pub use crate::leash::{LeaseStatus, key_memory::WaitingWipe};

/// The engine. Cheap to clone; clones share everything. It lives on threads of its own: what awaits may be awaited on any
/// executor.
#[derive(Clone)]
pub struct Engine {
    owner: Arc<Owner>,
    backend: Backend,
    suite: Suite,
    warnings: Arc<[String]>,
    /// Who asks by this one.
    who: Who,
    /// It is the engine's own hand.
    own: Option<Arc<Permit>>,
}

/// Makes an [`Engine`].
pub struct EngineBuilder {
    wiring: Wiring,
    store: Arc<dyn KeyStore>,
    settings: Settings,
    clock: Clock,
    backend: Backend,
    suite: Suite,
    seed: Option<u64>,
    start_up_proof: bool,
    on_current_runtime: bool,
    policy: PolicySource,
    trail: Option<Arc<dyn Trail>>,
}

impl EngineBuilder {
    /// Intervals, grace, TTL and sizes.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// What the token is called that the engine was begun with, which is the default one: `default` unless said otherwise. KEKs
    /// that are in it name it so in the store.
    #[must_use]
    pub fn default_token(mut self, name: TokenName) -> Self {
        self.wiring.default.0 = name;
        self
    }

    /// Another token, with workers, deadline and leases of its own: trouble on one neither delays nor denies the accounts of
    /// another.
    #[must_use]
    pub fn token(mut self, name: TokenName, token: Arc<dyn Token>) -> Self {
        self.wiring.others.push((name, token));
        self
    }

    /// The standby of a KEK: a token that has the same key material under the same CKA_ID, as HSM vendors clone it. It is
    /// used while the token that the KEK is in is unreachable, and never when that one denied;
    /// [`manual::promises`](mod@crate::manual::promises#a-standby) says what holds. Of a KEK that is named twice the last one
    /// counts.
    #[must_use]
    pub fn standby(mut self, kek: KekName, token: TokenName) -> Self {
        self.wiring.standbys.insert(kek, token);
        self
    }

    /// Where time comes from: CLOCK_BOOTTIME unless a test says otherwise.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Which AEAD implementation; the bytes are the same. The fastest that is compiled in unless said otherwise.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// The suite of new blocks. Blocks of every suite can be opened.
    #[must_use]
    pub fn suite(mut self, suite: Suite) -> Self {
        self.suite = suite;
        self
    }

    /// Whether every wrap profile that a KEK of the store has is proved by a round trip once the token answers; what fails is
    /// an [`Event::ProfileFailed`](crate::telemetry::Event). True unless said otherwise.
    #[must_use]
    pub fn start_up_proof(mut self, wanted: bool) -> Self {
        self.start_up_proof = wanted;
        self
    }

    /// The seed of everything that is spread in time, so that a simulation can be repeated. Keys and nonces do not depend on
    /// it. The operating system's randomness unless said otherwise.
    #[must_use]
    pub fn jitter_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Where its grants come from: from the store unless said otherwise. Where there is any grant, what is not granted is refused, and so
    /// is every call without a caller ([`Engine::caller`]); what the engine does by itself (proofs, rotation by schedule) is nobody's
    /// call.
    #[must_use]
    pub fn policy(mut self, policy: PolicySource) -> Self {
        self.policy = policy;
        self
    }

    /// Where it is kept what is done with keys, and by whom. Nowhere unless said otherwise.
    ///
    /// Each call that changes something is written there durably before it is done, and with its end before it returns; it is refused with
    /// [`Error::Trail`], and nothing of it done, where the first of the two cannot be written. What is done to data is told, and waited for
    /// by nobody: the opening of accounts, unwraps, what becomes of leases, each at once; blocks that are sealed and opened as sums, for
    /// each account and whoever opened it, once a minute and as the engine is closed. While [`Trail::serves`] says no, nothing is sealed,
    /// opened or read; leases, proofs and wipes go on. What the engine does by itself is told likewise.
    #[must_use]
    pub fn trail(mut self, trail: Arc<dyn Trail>) -> Self {
        self.trail = Some(trail);
        self
    }

    /// For tests: the engine has no threads of its own, and runs on the tokio runtime that [`EngineBuilder::build`] is called in,
    /// so that a simulation decides what runs when. In a service it breaks promise 1: a host that blocks would hold up the watch.
    #[must_use]
    pub fn on_current_runtime(mut self) -> Self {
        self.on_current_runtime = true;
        self
    }

    /// Checks the settings, runs the ciphers' known-answer tests, makes the engine and starts its threads, of which it has four,
    /// with the watch on one of them. They end when the engine and all its handles are gone. The token is not asked, so that a
    /// service can start during an outage; its first use tells.
    ///
    /// # Errors
    /// [`Error::Misconfigured`] naming the setting and the promise that it would break; [`Error::Fatal`] when a cipher
    /// fails its self-test, the system gives no thread, or this process was forked from one that had an engine; [`Error::Invalid`] for [`EngineBuilder::on_current_runtime`] outside
    /// of one.
    pub fn build(self) -> Result<Engine> {
        self.settings.validate()?;
        self.store.check_settings()?;
        block::self_test()?;
        let cells = usize::try_from(self.settings.max_cached_aeks).unwrap_or(usize::MAX);
        let mut warnings = self.settings.warnings();
        warnings.extend(planted::warning());
        warnings.extend(secret::check_memlock(cells, self.settings.memlock)?);
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let tokens = self.wiring.connect(&self.settings, &self.clock)?;
        fork::settle()?;
        let home = if self.on_current_runtime { Home::here()? } else { Home::build()? };
        let keyring = Keyring::new(
            tokens,
            self.store,
            self.clock,
            self.settings,
            home,
            self.seed,
            self.policy,
            OnTrail::new(self.trail),
        );
        let keyring = Arc::new(keyring);
        watch::start(&keyring);
        for seat in keyring.tokens.seats().filter(|_| self.start_up_proof) {
            keyring.home.upkeep.spawn(start_up::prove_profiles(keyring.clone(), seat.clone()));
        }
        let engine = Engine {
            owner: Arc::new(Owner(keyring)),
            backend: self.backend,
            suite: self.suite,
            warnings: warnings.into(),
            who: Who::default(),
            own: None,
        };
        if engine.is_on_trail() {
            trail::begin(engine.keyring());
        }
        if engine.keyring().settings.scheduled_work {
            watch::supervise(engine.keyring(), "work", |keyring, beat, _| {
                keyring.home.upkeep.spawn(rotate::work(keyring.clone(), beat)).abort_handle()
            });
        }
        Ok(engine)
    }
}

/// One of the engine's tokens.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TokenStatus {
    /// Its name in this engine.
    pub name: TokenName,
    /// What it says about itself, or why it does not.
    pub info: Result<TokenInfo, TokenError>,
    /// Its workers.
    pub workers: Workers,
    /// True when every worker hangs in the module: only a restart of the process brings the token back. Leases run out.
    pub restart_needed: bool,
}

/// A snapshot of the engine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Status {
    /// Every token, the default first.
    pub tokens: Vec<TokenStatus>,
    /// The leases of all KEK versions that were used in this process.
    pub leases: Vec<LeaseStatus>,
    /// The key store's silence, while it does not answer.
    pub store_silence: Option<StoreSilence>,
    /// Accounts in the index.
    pub cached_accounts: u64,
    /// Keys that were taken away and are not wiped yet, because a seal or open has not ended that uses them.
    pub waiting_wipes: Vec<WaitingWipe>,
    /// Bytes of key memory that could not be locked.
    pub unlocked_bytes: usize,
    /// What is wrong with the store's policy, while it cannot be read: what was read last stays in force.
    pub policy_damage: Option<Error>,
    /// What an operator should change.
    pub warnings: Vec<String>,
}

impl Engine {
    /// Begins an engine over a token and a key store.
    pub fn builder(token: Arc<dyn Token>, store: Arc<dyn KeyStore>) -> EngineBuilder {
        EngineBuilder {
            wiring: Wiring::new(token),
            store,
            settings: Settings::default(),
            clock: Clock::default(),
            backend: Backend::default(),
            suite: Suite::default(),
            seed: None,
            start_up_proof: true,
            on_current_runtime: false,
            policy: PolicySource::default(),
            trail: None,
        }
    }

    /// The same engine, for a caller: all that is asked by it is asked in this name, and so is what is done with handles that it opens. Who
    /// may ask in which name is for the program to see to that makes callers: the engine believes it.
    #[must_use]
    pub fn caller(&self, caller: CallerId) -> Self {
        let who = Who { caller: Some(caller), ..self.who.clone() };
        Self { who, own: None, ..self.clone() }
    }

    /// In whose name this one asks.
    pub fn caller_id(&self) -> Option<&CallerId> {
        self.who.caller.as_ref()
    }

    /// Writes down in the accounts' records what was sealed under them so far. The engine does so by itself, at the latest after
    /// an hour, and as it is closed.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Conflict`], [`Error::Corrupt`]: the first; all other accounts are written all the same, and
    /// what was not is kept for the next time.
    pub async fn write_usage(&self) -> Result<()> {
        self.at_home(|keyring| async move { keyring.write_all_usage().await }).await
    }

    pub(crate) fn keyring(&self) -> &Arc<Keyring> {
        &self.owner.0
    }

    /// Does what a caller waits for on the engine's own thread, so that nothing that others need is held by an executor of the
    /// host's, which may stand still or go away. Dropped with the caller.
    pub(crate) async fn at_home<T, W>(&self, work: impl FnOnce(Arc<Keyring>) -> W) -> Result<T>
    where
        T: Send + 'static,
        W: Future<Output = Result<T>> + Send + 'static,
    {
        self.keyring().home.call(asked_by(asker(), work(self.keyring().clone()))).await
    }

    fn handle(&self, keys: Arc<AccountKeys>) -> Account {
        let of_caller = || self.who.caller.as_ref().map(|caller| keys.permit(&self.keyring().access.force, caller));
        let permit = self.own.clone().or_else(of_caller);
        // What is done by the engine's own hand is told as what it is done for.
        let tally = if self.own.is_some() { None } else { self.keyring().tally(&keys, &self.who) };
        Account::new(keys, self.owner.clone(), permit, tally, (self.backend, self.suite))
    }

    /// Proves a wrap profile on the default token by a whole round trip with a key that does not outlive it.
    ///
    /// # Errors
    /// What the token fails with: [`Error::Misconfigured`] when it cannot do the profile.
    pub async fn probe(&self, profile: Profile) -> Result<Probe> {
        let seat = self.owner.0.tokens.default_seat().clone();
        let act = Act::new(Deed::TokenProbe, &[Operation::Drill], On::All).token(&seat.name);
        self.act(act, |_| async move { Ok(seat.token(&seat.budget.on_demand(None).await).probe(profile).await?) }).await
    }

    /// As [`Engine::probe`], on the token of that name.
    ///
    /// # Errors
    /// As [`Engine::probe`], and [`Error::NotFound`] for the token.
    pub async fn probe_on(&self, token: &TokenName, profile: Profile) -> Result<Probe> {
        let act = Act::new(Deed::TokenProbe, &[Operation::Drill], On::All).token(token);
        let (tokens, token) = (self.owner.clone(), token.clone());
        let probe = |_| async move {
            let seat = tokens.0.tokens.named(&token)?;
            Ok(seat.token(&seat.budget.on_demand(None).await).probe(profile).await?)
        };
        self.act(act, probe).await
    }

    /// The names of the tokens, the default first.
    pub fn tokens(&self) -> Vec<TokenName> {
        self.owner.0.tokens.seats().map(|seat| seat.name.clone()).collect()
    }

    /// The token in which KEKs are made unless another is named.
    pub fn default_token(&self) -> &TokenName {
        &self.owner.0.tokens.default_seat().name
    }

    /// What a token says about itself.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the token, and what it fails with.
    pub async fn token_info(&self, token: &TokenName) -> Result<TokenInfo> {
        self.permit(&[Operation::Get], On::All).await?;
        let seat = self.owner.0.tokens.named(token)?.clone();
        self.at_home(|_| async move { Ok(seat.token(&seat.budget.on_demand(None).await).info().await?) }).await
    }

    /// What an operator should change, as [`Status`] says it.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.keyring().settings
    }

    /// What happens to leases, workers and the watch, from now on.
    pub fn events(&self) -> Events {
        if fork::in_child() { Events::of_child() } else { self.owner.0.teller.subscribe() }
    }

    /// The leases of all KEK versions that were used in this process, at once and without asking the token: of KEKs that the caller may
    /// `get`. None in a forked child.
    pub fn leases(&self) -> Vec<LeaseStatus> {
        if fork::in_child() {
            return Vec::new();
        }
        let leases = self.owner.0.leases().into_iter();
        leases.filter(|lease| self.may_see(Scope::kek(&lease.kek.name))).collect()
    }

    fn may_see(&self, what: Scope<'_>) -> bool {
        let force = &self.keyring().access.force;
        self.own.is_some() || force.is_open() || force.ask(self.who.caller.as_ref(), Operation::Get, what).is_ok()
    }

    /// A snapshot. Asks all tokens at once who they are, so it takes up to twice the longest `call_timeout` when one is silent or has
    /// too much to do.
    pub async fn status(&self) -> Status {
        let mut asked: Vec<_> = Vec::new();
        let (keyring, home) = (self.keyring().clone(), &self.keyring().home);
        for seat in self.owner.0.tokens.seats() {
            let of = seat.clone();
            let clock = keyring.clock.clone();
            asked.push((seat, home.begin(async move { Ok(of.info_in_time(&clock).await) })));
        }
        let mut tokens = Vec::new();
        for (seat, asked) in asked {
            let info = match asked {
                Ok(asked) => home.wait(asked).await,
                Err(error) => Err(error),
            };
            let workers = seat.workers();
            tokens.push(TokenStatus {
                name: seat.name.clone(),
                info: info.unwrap_or_else(|error| Err(not_asked(&error))),
                workers,
                restart_needed: workers.restart_needed(),
            });
        }
        let mut waiting_wipes = self.owner.0.memory.waiting();
        waiting_wipes.retain(|of| self.may_see(Scope { kek: Some(&of.kek.name), account: of.account.as_ref() }));
        Status {
            tokens,
            leases: self.leases(),
            cached_accounts: home.call(async move { Ok(keyring.cached_accounts().await) }).await.unwrap_or_default(),
            waiting_wipes,
            store_silence: self.owner.0.store_word.status(self.owner.0.clock.now()),
            unlocked_bytes: secret::unlocked_bytes(),
            policy_damage: self.owner.0.access.damage(),
            warnings: self.warnings.to_vec(),
        }
    }
}

fn not_asked(error: &Error) -> TokenError {
    let (what, remedy) = (error.to_string(), "see the log".into());
    TokenError { verdict: Verdict::Fatal, operation: "token info", what, remedy, code: None }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("backend", &self.backend).field("suite", &self.suite).finish_non_exhaustive()
    }
}

impl fmt::Debug for EngineBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}
