//! One simulated world: a token, a store, engines that come and go, live handles, and the hands that move them all.

use crate::{
    model::{Began, Kek, Model},
    seams::{Fault, Health, Shared, SimStore, SimToken, Stage, lock, show},
};
use keyleash::{
    Account, Engine, Error,
    block::BlockHeader,
    clock::{Clock, Instant, ManualClock},
    config::Settings,
    engine::PolicySource,
    name::{AccountId, KekName},
    store::memory::MemoryStore,
    telemetry::{Event, Events},
    token::{
        Profile,
        scripted::{Act, Call, Script, ScriptedToken},
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex},
    task::{Poll, Waker},
    time::Duration,
};

/// Wakes whoever waits for silence; given to the runtime, which calls it when no task can run any more.
#[derive(Clone, Default)]
pub(crate) struct Quiet(Arc<Mutex<Option<Waker>>>);

impl Quiet {
    pub(crate) fn fell(&self) {
        let waker = self.0.lock().unwrap().take();
        waker.into_iter().for_each(Waker::wake);
    }

    /// Resolves when every task that could run has run.
    pub(crate) async fn wait(&self) {
        let mut armed = false;
        poll_fn(|cx| {
            let mut waker = self.0.lock().unwrap();
            if armed && waker.is_none() {
                return Poll::Ready(());
            }
            (*waker, armed) = (Some(cx.waker().clone()), true);
            Poll::Pending
        })
        .await;
    }
}

/// How much an account is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Busy,
    Seldom,
    Idle,
}

struct Block {
    address: u64,
    plaintext: Vec<u8>,
    header: BlockHeader,
    ciphertext: Vec<u8>,
}

struct Customer {
    id: AccountId,
    handle: Option<Account>,
    uses: Use,
    blocks: VecDeque<Block>,
}

/// An asynchronous call that ended.
struct Done {
    account: usize,
    engine: usize,
    what: &'static str,
    began: Began,
    outcome: Result<Option<Account>, Error>,
}

const BLOCKS_KEPT_MAX: usize = 4;

pub(crate) struct World {
    pub(crate) rng: StdRng,
    pub(crate) clock: ManualClock,
    pub(crate) script: Script,
    pub(crate) shared: Shared,
    pub(crate) settings: Settings,
    token: Arc<ScriptedToken>,
    store: Arc<MemoryStore>,
    heal: Arc<tokio::sync::Notify>,
    quiet: Quiet,
    engine: Option<Engine>,
    events: Events,
    customers: Vec<Customer>,
    done: Arc<Mutex<Vec<Done>>>,
    /// Calls of the living engines that have not ended.
    pending: usize,
    pub(crate) moves: usize,
    pub(crate) probes: u64,
}

/// A duration between two others, each order of magnitude as likely.
pub(crate) fn between(rng: &mut StdRng, min: Duration, max: Duration) -> Duration {
    let (min, max) = (min.as_secs_f64().ln(), max.as_secs_f64().ln());
    // Whole milliseconds, so that happenings coincide now and then.
    Duration::from_millis((rng.random_range(min..=max).exp() * 1000.0).round() as u64)
}

const FRESH_PROOF_EVERY: u32 = 20;

fn settings(rng: &mut StdRng, accounts: u64) -> (Settings, bool) {
    let secs = Duration::from_secs;
    let poll_interval = between(rng, secs(1), secs(60));
    let call_timeout = between(rng, Duration::from_millis(100), poll_interval);
    let proof = poll_interval + call_timeout;
    let left = secs(3600) - proof - poll_interval * FRESH_PROOF_EVERY;
    let whole_proof = proof + call_timeout;
    let grace = between(rng, whole_proof, (poll_interval * 40).clamp(whole_proof, left));
    let aek_ttl = between(rng, (grace / 5).max(secs(1)).max(call_timeout * 2), grace);
    let evicts = rng.random_bool(0.15);
    let settings = Settings::default()
        .poll_interval(poll_interval)
        .store_timeout(call_timeout)
        .grace(grace)
        .aek_ttl(aek_ttl)
        .resume_rate([1, 5, 50, 600, 600][rng.random_range(0..5)])
        .max_cached_aeks(if evicts { rng.random_range(1..=accounts) } else { 1000 })
        .fresh_proof_every(FRESH_PROOF_EVERY);
    settings.validate().expect("settings within their bounds");
    (settings, evicts)
}

impl World {
    pub(crate) async fn new(seed: u64, quiet: Quiet, trace: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let accounts = if rng.random_bool(0.1) { rng.random_range(20..40) } else { rng.random_range(1..8) };
        let (settings, evicts) = settings(&mut rng, accounts);
        let clock = ManualClock::new(Instant::from_nanos(1_000_000_000_000));
        let (token, script) = ScriptedToken::new(Clock::Manual(clock.clone()), settings.store_timeout, seed);
        script.standing(Call::Info, Act::Delay(Duration::ZERO));
        let model = Model::new(settings.clone(), Vec::new(), evicts, clock.now());
        let trace = trace.then(Vec::new);
        let stage = Stage {
            model,
            faults: VecDeque::new(),
            watch_dies: false,
            health: Health::Healthy,
            killed_below: 0,
            trace,
        };
        let shared = Arc::new(Mutex::new(stage));
        let heal = Arc::default();
        let store = Arc::new(MemoryStore::new());
        // KEKs are made by an engine over the bare token: that is not what is simulated.
        let maker = token.with_call_timeout(Settings::default().store_timeout); // which its settings allow
        let maker = Engine::builder(maker, store.clone())
            .on_current_runtime()
            .policy(PolicySource::None)
            .clock(Clock::Manual(clock.clone()))
            .start_up_proof(false)
            .build()
            .unwrap();
        let events = maker.events();
        let mut world = Self {
            rng,
            clock,
            script,
            shared,
            settings,
            token,
            store,
            heal,
            quiet,
            engine: None,
            events,
            customers: Vec::new(),
            done: Arc::default(),
            pending: 0,
            moves: 0,
            probes: 0,
        };
        let mut names = Vec::new();
        for n in 0..world.rng.random_range(1..=3) {
            let name = KekName::new(format!("kek-{n}")).unwrap();
            let id = maker.create_kek(&name, Profile::AesGcm).await.unwrap().id;
            let turned = world.clock.now();
            lock(&world.shared).model.keks.push(Kek { id, enabled: true, present: true, replaced: false, turned });
            names.push(name);
        }
        let model =
            Model::new(world.settings.clone(), lock(&world.shared).model.keks.clone(), evicts, world.clock.now());
        lock(&world.shared).model = model;
        for n in 0..accounts {
            let id = AccountId::new(format!("account-{n}")).unwrap();
            let kek = world.rng.random_range(0..names.len());
            maker.create_account(&id, &names[kek]).await.unwrap();
            let record = maker.account_record(&id).await.unwrap();
            {
                let mut stage = lock(&world.shared);
                stage.model.kek_of.push(kek);
                stage.model.accounts.insert(record.versions[0].wrapped.bytes.clone(), n as usize);
            }
            let uses = [Use::Busy, Use::Busy, Use::Seldom, Use::Idle][world.rng.random_range(0..4)];
            world.customers.push(Customer { id, handle: None, uses, blocks: VecDeque::new() });
        }
        drop(maker);
        world.note(|world| format!("{:?}", world.settings));
        world.start_engine(seed);
        world.settle().await;
        world
    }

    pub(crate) fn note(&self, what: impl FnOnce(&Self) -> String) {
        let mut stage = lock(&self.shared);
        if stage.trace.is_some() {
            drop(stage);
            let text = format!("{} {}", show(self.clock.now()), what(self));
            stage = lock(&self.shared);
            stage.note(|| text);
        }
    }

    fn start_engine(&mut self, seed: u64) {
        let (shared, clock) = (self.shared.clone(), Clock::Manual(self.clock.clone()));
        let engine = lock(&shared).model.engine;
        let token = SimToken {
            inner: self.token.clone(),
            script: self.script.clone(),
            shared: shared.clone(),
            engine,
            clock: clock.clone(),
        };
        let store =
            SimStore { inner: self.store.clone(), shared, engine, clock: clock.clone(), healed: self.heal.clone() };
        let built = Engine::builder(Arc::new(token), Arc::new(store))
            .on_current_runtime()
            .policy(PolicySource::None)
            .start_up_proof(false) // it grants and takes nothing, and the schedule counts calls
            .settings(self.settings.clone())
            .clock(clock)
            .jitter_seed(seed ^ engine as u64)
            .build()
            .unwrap();
        self.events = built.events();
        self.engine = Some(built);
    }

    /// Another engine over the same store and token. The old one is dropped, or its process is killed: then nothing that
    /// it still does reaches store or token.
    pub(crate) async fn restart(&mut self, killed: bool) {
        let seed = self.rng.random();
        {
            let mut stage = lock(&self.shared);
            stage.model.restarted(self.clock.now());
            if killed {
                stage.killed_below = stage.model.engine;
                self.pending = 0; // they never end
            }
        }
        self.customers.iter_mut().for_each(|customer| customer.handle = None);
        self.start_engine(seed);
        self.settle().await;
    }

    /// Lets everything run that can, and looks at what ended.
    pub(crate) async fn settle(&mut self) {
        self.quiet.wait().await;
        // The index drops what is over its bound whenever it likes; here, so that one seed has one trace.
        if let Some(engine) = &self.engine
            && lock(&self.shared).model.evicts
        {
            // Where callers have every place of the token's budget it waits for time, which stands still here.
            tokio::select! {
                biased;
                _ = engine.status() => {}
                () = self.quiet.wait() => {}
            }
            let filled: usize = engine.leases().iter().map(|lease| lease.filled_slots).sum();
            let max = self.settings.max_cached_aeks;
            assert!(filled as u64 <= max, "{filled} keys in memory, of which {max} may be there");
        }
        while let Some(event) = self.events.try_next() {
            self.note(|_| match event {
                Event::Lease { kek, change, trouble } => format!("event: {kek} {change:?} {trouble:?}"),
                other => format!("event: {other:?}"),
            });
        }
        let mut ended = std::mem::take(&mut *self.done.lock().unwrap());
        // moka wakes those who share a failed attempt in an order that depends on real time (async-lock's fairness).
        ended.sort_by_key(|done| done.began.count);
        for done in ended {
            let Done { account, engine, what, began, outcome } = done;
            if engine >= lock(&self.shared).killed_below {
                self.pending -= 1;
            }
            self.note(|_| format!("{what} of account {account} ends: {:?}", outcome.as_ref().map(|_| ())));
            if engine != lock(&self.shared).model.engine {
                continue; // of an engine that is gone
            }
            lock(&self.shared).model.ended(account, &began, outcome.as_ref().err(), self.clock.now());
            if let Ok(Some(handle)) = outcome {
                self.customers[account].handle = Some(handle);
            }
        }
        self.judge();
    }

    /// Ends the seed if a promise was broken.
    fn judge(&self) {
        let violations = std::mem::take(&mut lock(&self.shared).model.violations);
        assert!(violations.is_empty(), "{}", violations.join("\n"));
    }

    /// Lets time pass, from one happening to the next, and uses the accounts in between as they are used.
    pub(crate) async fn pass(&mut self, time: Duration) {
        let target = self.clock.now().plus(time);
        loop {
            let now = self.clock.now();
            let next = self.clock.next_deadline().map_or(target, |next| next.clamp(now, target));
            self.clock.advance(next.since(now));
            self.moves += 1;
            self.settle().await;
            let busy = self.customers.iter().filter(|customer| customer.uses == Use::Busy).count();
            for account in 0..self.customers.len() {
                let due = match self.customers[account].uses {
                    Use::Busy => self.rng.random_ratio(2, busy.max(2) as u32),
                    Use::Seldom => self.rng.random_bool(0.02),
                    Use::Idle => false,
                };
                if due {
                    self.probe(account);
                }
            }
            self.judge();
            if next >= target {
                return;
            }
        }
    }

    /// The machine is suspended: the clock jumps, and callers may be faster than every task.
    pub(crate) async fn suspend(&mut self, time: Duration) {
        self.clock.advance(time);
        {
            let mut stage = lock(&self.shared);
            (stage.model.woke, stage.model.slept) = (self.clock.now(), time);
        }
        self.moves += 1;
        self.probe_all();
        self.settle().await;
        self.probe_all();
    }

    pub(crate) fn probe_all(&mut self) {
        (0..self.customers.len()).for_each(|account| self.probe(account));
        self.judge();
    }

    /// Seals a block, or opens one and compares every byte, and lets the model judge what comes of it.
    pub(crate) fn probe(&mut self, account: usize) {
        let customer = &mut self.customers[account];
        let Some(handle) = &customer.handle else { return };
        self.probes += 1;
        let now = self.clock.now();
        let seals = customer.blocks.is_empty() || self.rng.random_bool(0.3);
        let outcome = if seals {
            let address: u64 = self.rng.random();
            let plaintext = vec![account as u8 ^ address as u8; self.rng.random_range(0..200)];
            let mut ciphertext = plaintext.clone();
            let outcome = handle.seal_in_place(address, &mut ciphertext);
            if outcome.is_err() {
                assert_eq!(ciphertext, plaintext, "a refused seal leaves the plaintext");
            }
            outcome.map(|header| {
                customer.blocks.push_back(Block { address, plaintext, header, ciphertext });
                if customer.blocks.len() > BLOCKS_KEPT_MAX {
                    customer.blocks.pop_front();
                }
            })
        } else {
            let block = &customer.blocks[self.rng.random_range(0..customer.blocks.len())];
            let mut buf = block.ciphertext.clone();
            let outcome = handle.open_in_place(block.address, &block.header, &mut buf);
            if outcome.is_ok() {
                assert_eq!(buf, block.plaintext, "an opened block is byte for byte right");
            }
            outcome
        };
        {
            let mut stage = lock(&self.shared);
            match &outcome {
                Ok(()) => stage.model.worked(account, now),
                Err(error) => stage.model.failed(account, error, now),
            }
        }
        if let Err(error) = outcome {
            self.note(|_| format!("account {account} fails: {error}"));
        }
    }

    /// Begins to open an account, to warm it, or to seal with it, and waits for nothing.
    pub(crate) fn call(&mut self, account: usize, times: usize) {
        for _ in 0..times {
            let now = self.clock.now();
            let (began, generation) = {
                let mut stage = lock(&self.shared);
                (stage.model.began(account, now), stage.model.engine)
            };
            let customer = &self.customers[account];
            let (id, handle) = (customer.id.clone(), customer.handle.clone());
            let handle = handle.filter(|_| self.rng.random_bool(0.5));
            let seals = self.rng.random_bool(0.5);
            let what = match (&handle, seals) {
                (None, _) => "opening",
                (Some(_), true) => "sealing",
                (Some(_), false) => "warming",
            };
            self.note(|_| format!("{what} of account {account} begins"));
            let engine = self.engine.clone().expect("an engine");
            let done = self.done.clone();
            self.pending += 1;
            tokio::spawn(async move {
                let outcome = match handle {
                    None => engine.account(&id).await.map(Some),
                    Some(handle) if seals => handle.seal(1_u64, &mut [0; 8]).await.map(|_| None),
                    Some(handle) => handle.warm().await.map(|()| None),
                };
                drop(engine);
                done.lock().unwrap().push(Done { account, engine: generation, what, began, outcome });
            });
        }
    }

    pub(crate) fn drop_handle(&mut self, account: usize) {
        self.customers[account].handle = None;
    }

    pub(crate) fn accounts(&self) -> usize {
        self.customers.len()
    }

    /// Calls that have not ended.
    pub(crate) fn pending(&self) -> usize {
        self.pending
    }

    pub(crate) fn set_health(&mut self, health: Health) {
        {
            let mut stage = lock(&self.shared);
            stage.health = health;
            if health == Health::Healthy {
                stage.model.store_healthy = true;
                stage.model.store_healed = Some(self.clock.now());
            } else {
                stage.model.store_ails();
            }
        }
        self.heal.notify_waiters();
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        lock(&self.shared).faults.push_back(fault);
    }

    /// Changes what the token says of a KEK.
    pub(crate) fn turn(&mut self, kek: usize, change: impl FnOnce(&Script, &mut Kek)) {
        let now = self.clock.now();
        let mut stage = lock(&self.shared);
        let kek = &mut stage.model.keks[kek];
        let granted = kek.grants();
        change(&self.script, kek);
        if kek.grants() != granted {
            kek.turned = now;
        }
    }

    /// Changes whether and how fast the token answers.
    pub(crate) fn reach(&mut self, unreachable: bool, latency: Duration) {
        self.script.set_unreachable(unreachable);
        self.script.set_latency(latency);
        let now = self.clock.now();
        let mut stage = lock(&self.shared);
        stage.model.unreachable = unreachable;
        if stage.model.latency != latency {
            stage.model.latency = latency;
        }
        stage.model.answers_turned = now;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(&self.shared).trace.iter().flatten().for_each(|line| println!("{line}"));
        }
    }
}
