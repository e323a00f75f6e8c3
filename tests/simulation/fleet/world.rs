//! A fleet: one or two hosts, each with an engine, over one store and one token, which may have a standby. Every host has a clock of
//! its own, which counts from another start, and so has another opinion of the date.

use super::{
    hsm::{Connection, Fault, Hsm, Seam},
    oracle::{FIRST, Oracle, QUEUE_MAX, STANDBY},
    shelf::{Feed, Shelf, Shelves},
    stage::{Shared, Stage, lock},
};
use crate::world::{Quiet, between};
use keyleash::{
    Account, Engine, Error, When,
    account::StuckOperation,
    block::BlockHeader,
    clock::{Clock, Instant, ManualClock},
    config::Settings,
    engine::PolicySource,
    name::{AccountId, KekName, KekVersion, TokenName},
    rotate::RewrapOptions,
    store::{
        Key, KeyStore,
        memory::MemoryStore,
        record::{AekPolicy, StoreRecord},
    },
    telemetry::{Event, Events},
    token::Profile,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{
    collections::{BTreeSet, VecDeque},
    mem::{Discriminant, discriminant},
    sync::{Arc, Mutex},
    time::Duration,
};

/// Blocks of an account that are kept for opening.
const BLOCKS_KEPT_MAX: usize = 4;
/// Those of AEK versions that are gone: of these nobody needs any, and none may open.
const GONE_KEPT_MAX: usize = 2;
/// Accounts that are used; a storm makes more.
const CUSTOMERS_MAX: usize = 10;
/// So far at most are the hosts' clocks apart.
const SKEW_MAX: Duration = Duration::from_secs(2 * 3600);

struct Block {
    address: u64,
    plaintext: Vec<u8>,
    header: BlockHeader,
    ciphertext: Vec<u8>,
}

pub(crate) struct Customer {
    pub(crate) id: AccountId,
    /// Somebody was told that it exists.
    pub(crate) made: bool,
    blocks: VecDeque<Block>,
    gone: VecDeque<Block>,
}

impl Customer {
    fn new(id: AccountId, made: bool) -> Self {
        Self { id, made, blocks: VecDeque::new(), gone: VecDeque::new() }
    }
}

/// A machine.
pub(crate) struct Host {
    pub(crate) clock: ManualClock,
    pub(crate) process: usize,
    engine: Option<Engine>,
    events: Events,
    handles: Vec<Option<Account>>,
    /// Why each account failed last, so that it is noted once.
    told: Vec<Option<Discriminant<Error>>>,
    /// While it is suspended: what its clock does not know of yet.
    lag: Option<Duration>,
}

impl Host {
    /// For another customer.
    fn welcome(&mut self) {
        self.handles.push(None);
        self.told.push(None);
    }
}

/// What a call is for.
#[derive(Debug, Clone)]
pub(crate) enum What {
    Open,
    Warm,
    Seal,
    /// Opens the block that was kept first.
    OpenBlock,
    /// Takes it out of memory.
    Evict(AccountId),
    Create(KekName),
    /// Makes so many accounts, one after the other, and keeps none.
    Storm(KekName, u32),
    RotateAccount,
    /// The oldest AEK version; at once by who knows that no other engine has the account open.
    Retire(When),
    /// Has written down what was sealed.
    WriteCounts,
    /// Has it written down, ahead, that so many blocks are sealed.
    CountAhead(u64),
    RotateKek(KekName),
    Rewrap(KekName),
    Move(KekName),
    /// With `true` its key is destroyed as soon as that may be.
    RetireKek(KekVersion, bool),
}

impl What {
    fn is_a_command(&self) -> bool {
        !matches!(self, Self::Open | Self::Warm | Self::Seal | Self::OpenBlock | Self::Evict(_))
    }
}

/// An asynchronous call that ended.
struct Done {
    order: u64,
    host: usize,
    process: usize,
    /// `None` for one of a storm, which nobody uses.
    customer: Option<usize>,
    what: What,
    outcome: Result<Option<Account>, Error>,
}

pub(crate) struct World {
    pub(crate) rng: StdRng,
    pub(crate) real: ManualClock,
    pub(crate) shared: Shared,
    pub(crate) settings: Settings,
    pub(crate) hosts: Vec<Host>,
    pub(crate) keks: Vec<KekName>,
    pub(crate) customers: Vec<Customer>,
    store: Arc<MemoryStore>,
    quiet: Quiet,
    done: Arc<Mutex<Vec<Done>>>,
    calls: u64,
    /// Calls of living processes that have not ended.
    pending: BTreeSet<(usize, u64)>,
    /// Seals that do not end, and their hosts.
    stuck: Vec<(usize, StuckOperation)>,
    /// No call that comes after so many may fail.
    all_well: Option<u64>,
    pub(crate) moves: usize,
    pub(crate) probes: u64,
}

fn settings(rng: &mut StdRng, has_standby: bool, scheduled_work: bool) -> Settings {
    let (secs, millis) = (Duration::from_secs, Duration::from_millis);
    let poll_max = if rng.random_bool(0.03) { secs(20) } else { secs(5) };
    // What is done by schedule takes half an hour: there is to happen little in a minute.
    let (poll_min, poll_max) = if scheduled_work { (secs(10), secs(60)) } else { (secs(1), poll_max) };
    let poll_interval = between(rng, poll_min, poll_max);
    // A proof may take the standby's deadline too.
    let share = if has_standby { 2 } else { 1 };
    let call_timeout = between(rng, millis(200), (poll_interval / share).min(secs(3)));
    let whole_proof = poll_interval + call_timeout * share * 2;
    let fresh_proof_every = rng.random_range(1..=8);
    let grace = between(rng, whole_proof, poll_interval * 10);
    let aek_ttl = between(rng, (grace / 3).max(secs(2).min(grace)).max(call_timeout * share * 2), grace);
    let settings = Settings::default()
        .poll_interval(poll_interval)
        .store_timeout(call_timeout)
        .grace(grace)
        .aek_ttl(aek_ttl)
        .resume_rate([50, 600][rng.random_range(0..2)])
        .max_cached_aeks(10_000)
        .fresh_proof_every(fresh_proof_every)
        .scheduled_work(scheduled_work);
    settings.validate().expect("settings within their bounds");
    settings
}

impl World {
    pub(crate) async fn new(seed: u64, quiet: Quiet, trace: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let hosts = match rng.random_range(0..10) {
            0..=4 => 1,
            5..=8 => 2,
            _ => 3,
        };
        let has_standby = rng.random_bool(if hosts > 1 { 0.6 } else { 0.2 });
        let scheduled = rng.random_bool(0.1);
        let settings = settings(&mut rng, has_standby, scheduled);
        let hides = rng.random_bool(0.25);
        let contexts = (hides, hides || rng.random_bool(0.7));
        // With three a call may overtake a proof that is slow.
        let workers = rng.random_range(1..=3);
        let hsms: Vec<_> =
            (0..=u64::from(has_standby)).map(|hsm| Hsm::new(seed ^ (hsm << 32), workers, contexts)).collect();
        let real = ManualClock::new(Instant::from_nanos(1_000_000_000_000));
        let stage = Stage {
            oracle: Oracle::new(settings.clone(), hosts, &hsms, real.now()),
            hsms,
            shelves: Shelves { feed: Feed::of(seed), ..Shelves::default() },
            killed: BTreeSet::new(),
            suspended: BTreeSet::new(),
            woken: Arc::default(),
            real: real.clone(),
            trace: trace.then(Vec::new),
        };
        let shared = Arc::new(Mutex::new(stage));
        let mut world = Self {
            rng,
            real,
            shared,
            settings,
            hosts: Vec::new(),
            keks: Vec::new(),
            customers: Vec::new(),
            store: Arc::default(),
            quiet,
            done: Arc::default(),
            calls: 0,
            pending: BTreeSet::new(),
            stuck: Vec::new(),
            all_well: None,
            moves: 0,
            probes: 0,
        };
        world.note(|world| {
            format!("hosts: {hosts}, standby: {has_standby}, (hides, dates): {contexts:?}, {:?}", world.settings)
        });
        // Else it draws a number of its own, which is in the labels of its keys.
        let of_this_store = StoreRecord { id: seed.to_be_bytes() };
        world.store.create(&Key::Store, of_this_store.put().unwrap()).await.unwrap();
        for host in 0..hosts {
            let skew = between(&mut world.rng, Duration::from_millis(1), SKEW_MAX);
            let clock = ManualClock::new(world.real.now().plus(skew));
            let (process, engine) = world.process(host, &clock);
            let events = engine.events();
            let (handles, told) = (Vec::new(), Vec::new());
            world.hosts.push(Host { clock, process, engine: Some(engine), events, handles, told, lag: None });
        }
        world.settle().await;
        if world.rng.random_bool(0.2) {
            let mut stage = lock(&world.shared);
            for n in 0..9 {
                // As releases before this one named them, and as this one does.
                let of = ["", "@0123456789abcdef"][n % 2];
                let id = stage.hsms[FIRST].made_by_another_store(format!("keyleash/kek-{}/{}{of}", n % 3, 1 + n / 3));
                stage.oracle.stranger(id);
            }
        }
        for n in 0..world.rng.random_range(1..=3) {
            let name = KekName::new(format!("kek-{n}")).unwrap();
            world.engine(0).create_kek(&name, Profile::AesGcm).await.unwrap();
            world.keks.push(name);
        }
        for n in 0..world.rng.random_range(1..=5) {
            // The last KEK may have none: nothing asks for it then.
            let kek = world.rng.random_range(0..world.keks.len());
            let id = AccountId::new(format!("account-{n}")).unwrap();
            let handle = world.engine(0).create_account(&id, &world.keks[kek]).await.unwrap();
            if scheduled {
                let policy = AekPolicy { max_blocks: world.rng.random_range(100..400), ..AekPolicy::default() };
                world.engine(0).set_aek_policy(&id, policy).await.unwrap();
            }
            world.customers.push(Customer::new(id, true));
            world.hosts.iter_mut().for_each(Host::welcome);
            world.hosts[0].handles[n] = Some(handle);
        }
        world.settle().await;
        if world.rng.random_bool(0.5) {
            // Nothing that waits for a token is over in no time, as it were.
            let most = world.queued_latency();
            let latency = between(&mut world.rng, Duration::from_millis(1), most);
            lock(&world.shared).hsms.iter_mut().for_each(|hsm| hsm.latency = latency);
        }
        world
    }

    /// The latency at which no queue in front of a token costs anybody a deadline.
    pub(crate) fn queued_latency(&self) -> Duration {
        let workers = u32::try_from(lock(&self.shared).hsms[FIRST].workers).unwrap();
        self.settings.store_timeout * workers / 2 / QUEUE_MAX
    }

    pub(crate) fn note(&self, what: impl FnOnce(&Self) -> String) {
        let is_traced = lock(&self.shared).trace.is_some();
        if is_traced {
            let text = what(self);
            lock(&self.shared).note(|| text);
        }
    }

    pub(crate) fn engine(&self, host: usize) -> Engine {
        self.hosts[host].engine.clone().expect("an engine")
    }

    /// A new process on a host with this clock.
    fn process(&mut self, host: usize, clock: &ManualClock) -> (usize, Engine) {
        let (process, tokens) = {
            let mut stage = lock(&self.shared);
            let now = stage.now();
            let process = stage.oracle.process_started(host, now);
            if self.settings.scheduled_work {
                stage.oracle.command(process, true); // for as long as it lives
            }
            (process, stage.hsms.len())
        };
        let clock = Clock::Manual(clock.clone());
        let connect = |hsm| {
            let clocks = (clock.clone(), self.real.clone());
            Arc::new(Seam(Connection::new(&self.shared, (host, process), hsm, clocks, self.settings.store_timeout)))
        };
        let (inner, shared, real) = (self.store.clone(), self.shared.clone(), self.real.clone());
        let shelf = Shelf { inner, shared, process, real };
        let mut builder = Engine::builder(connect(FIRST), Arc::new(shelf))
            .on_current_runtime()
            .policy(PolicySource::None)
            .start_up_proof(false)
            .settings(self.settings.clone())
            .clock(clock.clone())
            .jitter_seed(self.rng.random());
        if tokens > 1 {
            let name = TokenName::new("standby").unwrap();
            builder = builder.token(name.clone(), connect(STANDBY));
            for n in 0..3 {
                builder = builder.standby(KekName::new(format!("kek-{n}")).unwrap(), name.clone());
            }
        }
        (process, builder.build().unwrap())
    }

    /// Another process on the same host. The old one ends, or is killed: then nothing that it still does reaches anything.
    pub(crate) async fn restart(&mut self, host: usize, killed: bool) {
        self.wake(host).await;
        self.stuck.retain(|(of, _)| *of != host);
        let old = self.hosts[host].process;
        if killed {
            lock(&self.shared).killed.insert(old);
            self.pending.retain(|(process, _)| *process != old);
        }
        self.hosts[host].handles.iter_mut().for_each(|handle| *handle = None);
        let clock = self.hosts[host].clock.clone();
        let (process, engine) = self.process(host, &clock);
        let events = engine.events();
        let host = &mut self.hosts[host];
        (host.process, host.engine, host.events) = (process, Some(engine), events);
        self.settle().await;
    }

    /// Lets everything run that can, and looks at what ended.
    pub(crate) async fn settle(&mut self) {
        self.quiet.wait().await;
        for host in 0..self.hosts.len() {
            while let Some(event) = self.hosts[host].events.try_next() {
                // Told by a thread of its own, at a time that is not the simulation's.
                if !matches!(event, Event::WipeWaits { .. } | Event::WipeDone { .. }) {
                    self.note(|_| format!("host {host} tells: {event:?}"));
                }
            }
        }
        let mut ended = std::mem::take(&mut *self.done.lock().unwrap());
        ended.sort_by_key(|done| done.order);
        for Done { order, host, process, customer, what, outcome } in ended {
            self.pending.remove(&(process, order));
            if what.is_a_command() {
                lock(&self.shared).oracle.command(process, false);
            }
            let told = outcome.as_ref().map(|_| ()).map_err(ToString::to_string);
            self.note(|_| format!("host {host}: {what:?} {order} of {customer:?} ends: {told:?}"));
            let is_lost =
                customer.is_some_and(|customer| lock(&self.shared).oracle.is_lost(&self.customers[customer].id));
            let must_work = self.all_well.is_some_and(|since| order > since) && !is_lost;
            if let (true, Err(error)) = (must_work, &told) {
                panic!("all is well, and {what:?} of account {customer:?} on host {host} fails: {error}");
            }
            if let (What::RetireKek(kek, is_destroyed), Ok(_)) = (&what, &outcome) {
                self.change(|stage| {
                    let id = stage.oracle.kek_retired(kek);
                    let is_gone = |hsm: &mut Hsm| hsm.change(&id, |key| key.present &= !is_destroyed);
                    stage.hsms.iter_mut().for_each(is_gone);
                });
            }
            if let (What::Retire(_), Some(customer)) = (&what, customer) {
                lock(&self.shared).oracle.retirement_ended(process, &self.customers[customer].id);
            }
            if let (What::WriteCounts, Ok(_)) = (&what, &outcome) {
                lock(&self.shared).oracle.counts_written(process, order);
            }
            let (Some(customer), Ok(handle)) = (customer, outcome) else { continue };
            self.customers[customer].made = true;
            if process != self.hosts[host].process {
                continue;
            }
            if let Some(handle) = handle {
                self.hosts[host].handles[customer] = Some(handle);
            }
            if let (What::Create(_) | What::RotateAccount, Some(handle)) = (&what, &self.hosts[host].handles[customer])
            {
                let aek = (handle.id().clone(), handle.aek_version());
                let mut stage = lock(&self.shared);
                let now = stage.now();
                stage.oracle.delivered(process, aek, now);
            }
            self.probe(host, customer, true);
        }
        self.judge();
    }

    /// Ends the seed if a promise was broken.
    fn judge(&self) {
        let violations = {
            let mut stage = lock(&self.shared);
            let now = stage.now();
            for host in self.hosts.iter().filter(|host| host.lag.is_none()) {
                stage.oracle.denials_are_written_down(host.process, now);
                for lease in host.engine.iter().flat_map(Engine::leases) {
                    stage.oracle.keys_are_wiped(host.process, &lease, (host.clock.now(), now));
                    stage.oracle.denials_are_told(host.process, &lease, now);
                }
            }
            if self.hosts.iter().all(|host| host.lag.is_none()) {
                stage.oracle.what_is_due_is_done(now);
            }
            std::mem::take(&mut stage.oracle.violations)
        };
        let first = violations.iter().take(3).cloned().collect::<Vec<_>>();
        assert!(violations.is_empty(), "{}", first.join("\n"));
    }

    /// Moves every clock that runs.
    fn advance(&mut self, by: Duration) {
        self.real.advance(by);
        for host in &mut self.hosts {
            match &mut host.lag {
                Some(lag) => *lag += by,
                None => host.clock.advance(by),
            }
        }
        self.moves += 1;
    }

    /// The time to the next thing that somebody waits for.
    fn next(&self) -> Option<Duration> {
        let running = self.hosts.iter().filter(|host| host.lag.is_none()).map(|host| &host.clock);
        let clocks = running.chain([&self.real]);
        clocks.filter_map(|clock| Some(clock.next_deadline()?.since(clock.now()))).min()
    }

    /// Lets time pass, from one happening to the next, and uses an account now and then.
    pub(crate) async fn pass(&mut self, time: Duration) {
        let target = self.real.now().plus(time);
        loop {
            let left = target.since(self.real.now());
            let step = self.next().map_or(left, |next| next.min(left));
            self.advance(step);
            self.settle().await;
            let (host, customer) =
                (self.rng.random_range(0..self.hosts.len()), self.rng.random_range(0..self.customers.len()));
            self.probe(host, customer, false);
            self.judge();
            if step == left {
                return;
            }
        }
    }

    /// A host stands still.
    pub(crate) fn suspend(&mut self, host: usize) {
        self.hosts[host].lag.get_or_insert_default();
        lock(&self.shared).suspended.insert(self.hosts[host].process);
    }

    /// It goes on, and its callers may be faster than every task.
    pub(crate) async fn wake(&mut self, host: usize) {
        let Some(lag) = self.hosts[host].lag.take() else { return };
        let process = self.hosts[host].process;
        {
            let mut stage = lock(&self.shared);
            let now = stage.now();
            stage.suspended.remove(&process);
            stage.oracle.woke(process, now);
            stage.woken.notify_waiters();
        }
        self.hosts[host].clock.advance(lag);
        (0..self.customers.len()).for_each(|customer| self.probe(host, customer, false));
        self.settle().await;
    }

    pub(crate) fn is_suspended(&self, host: usize) -> bool {
        self.hosts[host].lag.is_some()
    }

    pub(crate) fn probe_all(&mut self) {
        for host in 0..self.hosts.len() {
            (0..self.customers.len()).for_each(|customer| self.probe(host, customer, false));
        }
        self.judge();
    }

    /// Seals a block, or opens one and compares every byte, and lets the oracle judge what comes of it.
    pub(crate) fn probe(&mut self, host: usize, customer: usize, seals: bool) {
        let Some(handle) = self.hosts[host].handles[customer].clone().filter(|_| !self.is_suspended(host)) else {
            return;
        };
        self.probes += 1;
        let Customer { blocks: kept, gone, .. } = &mut self.customers[customer];
        // Of a version that was retired since: whoever retires it knows that nobody needs them.
        let is_gone =
            |block: &Block| !lock(&self.shared).oracle.is_stored(&(handle.id().clone(), block.header.aek_version()));
        if kept.iter().any(is_gone) {
            let (lost, stored): (VecDeque<_>, VecDeque<_>) = std::mem::take(kept).into_iter().partition(is_gone);
            (*kept, _) = (stored, gone.extend(lost));
        }
        gone.drain(..gone.len().saturating_sub(GONE_KEPT_MAX));
        if !seals && !gone.is_empty() && self.rng.random_bool(0.3) {
            let block = &gone[self.rng.random_range(0..gone.len())];
            let mut buf = block.ciphertext.clone();
            let outcome = handle.open_in_place(block.address, &block.header, &mut buf);
            let mut stage = lock(&self.shared);
            let (process, now) = (self.hosts[host].process, stage.now());
            if outcome.is_ok() {
                assert_eq!(buf, block.plaintext, "an opened block is byte for byte right");
                let aek = (handle.id().clone(), block.header.aek_version());
                stage.oracle.worked(process, &aek, false, now);
                stage.oracle.opened_gone(process, &aek, now);
            }
            return;
        }
        let seals = seals || kept.is_empty() || self.rng.random_bool(0.4);
        let (aek_version, outcome) = if seals {
            let address: u64 = self.rng.random();
            let plaintext = address.to_be_bytes().to_vec();
            let mut ciphertext = plaintext.clone();
            match handle.seal_in_place(address, &mut ciphertext) {
                Ok(header) => {
                    let aek_version = header.aek_version();
                    kept.push_back(Block { address, plaintext, header, ciphertext });
                    if kept.len() > BLOCKS_KEPT_MAX {
                        // The oldest stays, of an AEK version before.
                        kept.remove(1);
                    }
                    (aek_version, Ok(()))
                }
                Err(error) => {
                    assert_eq!(ciphertext, plaintext, "a refused seal leaves the plaintext");
                    (handle.aek_version(), Err(error))
                }
            }
        } else {
            let block = &kept[self.rng.random_range(0..kept.len())];
            let mut buf = block.ciphertext.clone();
            let outcome = handle.open_in_place(block.address, &block.header, &mut buf);
            if outcome.is_ok() {
                assert_eq!(buf, block.plaintext, "an opened block is byte for byte right");
            }
            (block.header.aek_version(), outcome)
        };
        let (process, aek) = (self.hosts[host].process, (handle.id().clone(), aek_version));
        let told = self.hosts[host].told[customer].take();
        let mut stage = lock(&self.shared);
        let now = stage.now();
        match outcome {
            Ok(()) => stage.oracle.worked(process, &aek, seals, now),
            Err(error) => {
                if told != Some(discriminant(&error)) {
                    stage.note(|| format!("host {host}: account {customer} fails: {error}"));
                }
                self.hosts[host].told[customer] = Some(discriminant(&error));
                stage.oracle.failed(process, &aek, &error, now);
            }
        }
    }

    /// A customer that is yet to be made; `None` when there are as many as are used.
    pub(crate) fn newcomer(&mut self) -> Option<usize> {
        if self.customers.len() >= CUSTOMERS_MAX {
            return None;
        }
        let id = AccountId::new(format!("account-{}", self.customers.len())).unwrap();
        self.customers.push(Customer::new(id, false));
        self.hosts.iter_mut().for_each(Host::welcome);
        Some(self.customers.len() - 1)
    }

    /// Begins a call, and waits for nothing.
    pub(crate) fn call(&mut self, host: usize, customer: Option<usize>, what: What) {
        if self.is_suspended(host) {
            return;
        }
        self.calls += 1;
        let (order, process, engine) = (self.calls, self.hosts[host].process, self.engine(host));
        let handle = customer.and_then(|customer| self.hosts[host].handles[customer].clone());
        let id = match customer {
            Some(customer) => self.customers[customer].id.clone(),
            None => AccountId::new(format!("storm-{order}")).unwrap(),
        };
        let block = customer.and_then(|customer| self.customers[customer].blocks.front());
        let block = block.map(|block| (block.address, block.header, block.ciphertext.clone()));
        self.note(|_| format!("host {host}: {what:?} {order} of {customer:?} begins"));
        self.pending.insert((process, order));
        if what.is_a_command() {
            lock(&self.shared).oracle.command(process, true);
        }
        if matches!(what, What::WriteCounts) {
            lock(&self.shared).oracle.counts_are_written(process, order);
        }
        let done = self.done.clone();
        tokio::spawn(async move {
            let outcome = match (&what, handle) {
                (What::Create(kek), _) => engine.create_account(&id, kek).await.map(Some),
                (What::Storm(kek, accounts), _) => {
                    let mut outcome = Ok(None);
                    for n in 0..*accounts {
                        let id = AccountId::new(format!("{id}-{n}")).unwrap();
                        outcome = engine.create_account(&id, kek).await.map(|_| None);
                    }
                    outcome
                }
                (What::RotateAccount, handle) => engine.rotate_account(&id).await.map(|_| handle),
                (What::Evict(id), _) => {
                    let outcome = engine.evict(id).await.map(|()| None);
                    engine.status().await; // runs the index's maintenance, which lets go of it
                    outcome
                }
                (What::WriteCounts, _) => engine.write_usage().await.map(|()| None),
                (What::CountAhead(blocks), Some(handle)) => handle.count_ahead(*blocks, 0).await.map(|()| None),
                (What::Retire(when), _) => {
                    match engine.account_record(&id).await.map(|record| record.versions[0].aek_version) {
                        Ok(oldest) => engine.retire_aeks(&id, &[oldest], *when).await.map(|()| None),
                        Err(error) => Err(error),
                    }
                }
                (What::RotateKek(kek), _) => engine.rotate_kek(kek).await.map(|_| None),
                (What::Rewrap(kek), _) => engine.rewrap_kek(kek, RewrapOptions::default(), |_| ()).await.map(|_| None),
                (What::Move(kek), handle) => engine.move_account(&id, kek).await.map(|_| handle),
                (What::RetireKek(kek, _), _) => engine.retire_kek(kek).await.map(|()| None),
                (What::Warm, Some(handle)) => handle.warm().await.map(|()| None),
                (What::Seal, Some(handle)) => handle.seal(1_u64, &mut [0; 8]).await.map(|_| None),
                (What::OpenBlock, Some(handle)) => match block {
                    Some((address, header, mut buf)) => handle.open(address, &header, &mut buf).await.map(|()| None),
                    None => Ok(None),
                },
                _ => engine.account(&id).await.map(Some),
            };
            drop(engine);
            done.lock().unwrap().push(Done { order, host, process, customer, what, outcome });
        });
    }

    /// A seal begins that does not end.
    pub(crate) fn stick(&mut self, host: usize, customer: usize) {
        let begun = self.hosts[host].handles[customer].as_ref().and_then(Account::stuck_operation);
        self.stuck.extend(begun.filter(|_| !self.is_suspended(host)).map(|begun| (host, begun)));
    }

    /// All of those end.
    pub(crate) fn unstick(&mut self) {
        self.stuck.clear();
    }

    /// Whatever was made opens on every host, and what was sealed. Tried once before that: of those who come to a KEK that was denied
    /// last, and that nobody uses, the first has it asked, and the others are refused until then.
    pub(crate) async fn open_everything(&mut self) {
        let time = self.settings.store_timeout * 3 + Duration::from_secs(1);
        for what in [What::Open, What::Open, What::OpenBlock] {
            for host in 0..self.hosts.len() {
                for customer in 0..self.customers.len() {
                    if self.customers[customer].made {
                        self.call(host, Some(customer), what.clone());
                    }
                }
            }
            self.pass(time).await;
            self.probe_all();
            self.all_well.get_or_insert(self.calls);
        }
        for host in 0..self.hosts.len() {
            let (engine, status) = (self.engine(host), Arc::new(Mutex::new(None)));
            let told = status.clone();
            tokio::spawn(async move { *told.lock().unwrap() = Some(engine.status().await) });
            self.pass(time).await;
            let status = status.lock().unwrap().take().expect("a status, where all is well");
            assert_eq!(status.waiting_wipes, [], "promise 6: keys wait to be wiped that nobody uses");
        }
    }

    pub(crate) fn drop_handle(&mut self, host: usize, customer: usize) {
        self.hosts[host].handles[customer] = None;
    }

    /// Nobody has it open on a host any more, nor does the engine.
    pub(crate) fn forget(&mut self, host: usize, customer: usize) {
        self.drop_handle(host, customer);
        let id = self.customers[customer].id.clone();
        lock(&self.shared).oracle.evicted(self.hosts[host].process, &id);
        self.call(host, None, What::Evict(id));
    }

    /// Calls that have not ended.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The script does something to the tokens or the store.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Stage)) {
        let mut stage = lock(&self.shared);
        change(&mut stage);
        stage.look();
    }

    pub(crate) fn fault(&mut self, hsm: usize, fault: Fault) {
        lock(&self.shared).hsms[hsm].faults.push_back(fault);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(&self.shared).trace.iter().flatten().for_each(|line| println!("{line}"));
        }
    }
}
