//! A service over a real engine: accounts, and a thread that seals, opens and verifies every byte all the time and writes down
//! when what came out. What the promises owe is then asked of that log.
//!
//! Bounds are those of the promises plus [`SLACK`], because machines are noisy: a bound says what is owed, never what is fast.

use crate::bench::{Bench, MEASURED};
use keyleash::{
    Account, Engine, Error,
    clock::{Clock, Instant},
    config::Settings,
    name::{AccountId, KekName},
    store::{KeyStore, redb::RedbStore},
    telemetry::Event,
    token::{
        KekId, Profile,
        pkcs11::{Pkcs11Settings, Pkcs11Token},
    },
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// What a test forgives a machine that is busy with other things.
pub(crate) const SLACK: Duration = Duration::from_secs(3);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// How long a test waits for something before it gives up: longer than any bound, so that a bound that is missed is told in numbers.
const PATIENCE: Duration = Duration::from_secs(40);
const ACCOUNTS: usize = 4;

/// The KEK that is acted on, and one that must not be concerned.
pub(crate) const KEK: &str = "kek";
pub(crate) const OTHER: &str = "other";

pub(crate) fn now() -> Instant {
    Clock::Boottime.now()
}

/// What came of one round of seals and opens under a KEK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    Denied,
    Lapsed,
    Unreachable,
    Cold,
    /// Bytes came out wrong, or an error that no scenario knows.
    Wrong,
}

impl Outcome {
    fn of(result: Result<(), Error>) -> Self {
        match result {
            Ok(()) => Self::Ok,
            Err(Error::Denied(_)) => Self::Denied,
            Err(Error::Lapsed(_)) => Self::Lapsed,
            Err(Error::Unreachable(_)) => Self::Unreachable,
            Err(Error::Cold { .. }) => Self::Cold,
            Err(other) => {
                println!("{MEASURED}wrong: {other}");
                Self::Wrong
            }
        }
    }
}

/// Rounds with the same outcome, one after the other.
#[derive(Debug, Clone, Copy)]
struct Run {
    outcome: Outcome,
    /// When the first of them began.
    from: Instant,
    /// When the last of them ended.
    to: Instant,
    rounds: u64,
}

type Log = Arc<Mutex<Vec<Run>>>;

pub(crate) struct Service {
    name: &'static str,
    pub(crate) engine: Option<Engine>,
    pub(crate) token: Arc<Pkcs11Token>,
    pub(crate) settings: Settings,
    pub(crate) kek_id: KekId,
    pub(crate) accounts: Vec<Account>,
    pub(crate) events: Vec<Event>,
    listen: keyleash::telemetry::Events,
    stop: Arc<AtomicBool>,
    load: Option<JoinHandle<()>>,
    logs: [Log; 2],
}

/// Polls every second, times out after one, and lets an outage last for eight.
pub(crate) fn settings() -> Settings {
    Settings::default()
        .poll_interval(SECOND)
        .store_timeout(SECOND)
        .grace(8 * SECOND)
        .aek_ttl(8 * SECOND)
        .fresh_proof_every(1000)
}

impl Service {
    pub(crate) async fn start(name: &'static str, bench: &Bench) -> Self {
        Self::of(Profile::AesGcm, name, settings(), Self::token_settings(bench, &settings()), bench).await
    }

    pub(crate) fn token_settings(bench: &Bench, settings: &Settings) -> Pkcs11Settings {
        let mut token = bench.settings();
        token.call_timeout = settings.store_timeout;
        token
    }

    pub(crate) async fn with(name: &'static str, settings: Settings, token: Pkcs11Settings, bench: &Bench) -> Self {
        Self::of(Profile::AesGcm, name, settings, token, bench).await
    }

    pub(crate) async fn of(
        profile: Profile,
        name: &'static str,
        settings: Settings,
        token: Pkcs11Settings,
        bench: &Bench,
    ) -> Self {
        let token = Arc::new(Pkcs11Token::open(token).await.unwrap());
        let store: Arc<dyn KeyStore> = Arc::new(RedbStore::open_or_create(bench.dir.join("keys.redb")).await.unwrap());
        let engine = Engine::builder(token.clone(), store).settings(settings.clone()).build().unwrap();
        let listen = engine.events();
        let mut kek_id = None;
        let mut accounts = Vec::new();
        for kek in [KEK, OTHER] {
            let kek = KekName::new(kek).unwrap();
            // Destroyable, for the scenario that does it.
            let info = engine.create_kek(&kek, keyleash::KekOptions::new(profile).destroyable()).await.unwrap();
            kek_id.get_or_insert(info.id);
            for number in 0..ACCOUNTS {
                let id = AccountId::new(format!("{kek}-{number}")).unwrap();
                accounts.push(engine.create_account(&id, &kek).await.unwrap());
            }
        }
        let logs = [Log::default(), Log::default()];
        let stop = Arc::new(AtomicBool::new(false));
        let load = std::thread::spawn({
            let (accounts, logs, stop) = (accounts.clone(), logs.clone(), stop.clone());
            move || load(&accounts, &logs, &stop)
        });
        let service = Self {
            name,
            engine: Some(engine),
            token,
            settings,
            kek_id: kek_id.unwrap(),
            accounts,
            events: Vec::new(),
            listen,
            stop,
            load: Some(load),
            logs,
        };
        service.comes(Outcome::Ok).await;
        // A proof or two of the watch, as in a service that has run for a while.
        service.rest(2 * SECOND).await;
        service
    }

    pub(crate) fn say(&self, what: &str) {
        println!("{MEASURED}{:<34} {what}", self.name);
    }

    pub(crate) async fn rest(&self, time: Duration) {
        Clock::Boottime.sleep_until(now().plus(time)).await;
    }

    fn log(&self, kek: usize) -> Vec<Run> {
        self.logs[kek].lock().unwrap().clone()
    }

    /// Waits until rounds under the KEK come out like this, every account's. Gives when they began to.
    pub(crate) async fn comes(&self, outcome: Outcome) -> Instant {
        const ROUNDS: u64 = 5 * ACCOUNTS as u64;
        let give_up = now().plus(PATIENCE);
        loop {
            let last = self.log(0).last().copied();
            if let Some(run) = last.filter(|run| run.outcome == outcome && run.rounds >= ROUNDS) {
                return run.from;
            }
            assert!(now() < give_up, "{}: never {outcome:?}: {:?}", self.name, self.log(0));
            self.rest(Duration::from_millis(20)).await;
        }
    }

    /// Promise 1. The act was done at `act`: no round succeeds later than `bound` after it, and what is refused is refused as
    /// `outcome` all the time.
    pub(crate) async fn refuses(&self, outcome: Outcome, act: Instant, bound: Duration) {
        self.comes(outcome).await;
        self.rest(2 * SECOND).await;
        let runs = self.log(0);
        let until = now();
        let last = runs.iter().rev().find(|run| run.outcome == Outcome::Ok).unwrap().to;
        let took = last.since(act);
        self.say(&format!(
            "{outcome:?}: last success {:.2} s after the act (promised {} s)",
            took.as_secs_f64(),
            bound.as_secs()
        ));
        assert!(took <= bound + SLACK, "{}: success {took:?} after the act, promised {bound:?}: {runs:?}", self.name);
        for run in runs.iter().filter(|run| run.from > last) {
            assert_eq!(run.outcome, outcome, "{}: until {until:?} {runs:?}", self.name);
        }
    }

    /// As [`Service::refuses`], in whatever words.
    pub(crate) async fn refused_by(&self, act: Instant, bound: Duration) {
        self.rest(act.plus(bound + SLACK).since(now())).await;
        self.rest(2 * SECOND).await;
        let runs = self.log(0);
        let last = runs.iter().rev().find(|run| run.outcome == Outcome::Ok).unwrap().to;
        let took = last.since(act);
        let words: Vec<_> = runs.iter().filter(|run| run.from > last).map(|run| run.outcome).collect();
        let promised = bound.as_secs();
        self.say(&format!("{words:?}: last success {:.2} s after the act (promised {promised} s)", took.as_secs_f64()));
        assert!(took <= bound + SLACK, "{}: success {took:?} after the act, promised {bound:?}: {runs:?}", self.name);
    }

    /// Promise 4, and that nothing else readmits: from `from` until now every round came out like this.
    pub(crate) fn stayed(&self, outcome: Outcome, from: Instant) {
        let runs = self.log(0);
        let mut since = runs.iter().filter(|run| run.to >= from).peekable();
        assert!(since.peek().is_some(), "{}: no load at all: {runs:?}", self.name);
        assert!(since.all(|run| run.outcome == outcome), "{}: since {from:?}: {runs:?}", self.name);
        self.say(&format!("stayed {outcome:?} for {:.2} s", now().since(from).as_secs_f64()));
    }

    /// Promise 2. The act that grants again was done at `act`: live handles work within `bound`.
    pub(crate) async fn resumes(&self, act: Instant, bound: Duration) {
        let took = self.comes(Outcome::Ok).await.since(act);
        self.say(&format!("resumed {:.2} s after the act (promised {} s)", took.as_secs_f64(), bound.as_secs()));
        assert!(took <= bound + SLACK, "{}: resumed after {took:?}, promised {bound:?}: {:?}", self.name, self.log(0));
        // And goes on.
        let from = now();
        self.rest(2 * SECOND).await;
        self.undisturbed(from, 2 * SECOND);
    }

    /// Every round that touches the time from `from` on for `time` succeeded, and there were some.
    pub(crate) fn undisturbed(&self, from: Instant, time: Duration) {
        Self::all_well(&self.log(0), from, from.plus(time), self.name);
        self.say(&format!("undisturbed for {:.2} s", time.as_secs_f64()));
    }

    /// Promise 3 in an outage from `act` to `back`, shorter than grace.
    ///
    /// One thing is forgiven here, and told: an AEK whose TTL passes while the engine thinks that the token answers is cold until
    /// it is refreshed. It thinks so for up to a poll and a time-out after `act`, and again from `back` on. These settings' TTL is so short
    /// that one or the other happens now and then. (`ttl_passed_in_an_outage` does not forgive it.)
    pub(crate) async fn rides_out(&self, act: Instant, back: Instant) {
        self.comes(Outcome::Ok).await;
        self.outage(act, back);
        let runs = self.log(0);
        let cold: Vec<_> = runs.iter().filter(|run| run.from > back && run.outcome == Outcome::Cold).collect();
        let lasted = cold.iter().map(|run| run.to.since(back)).max().unwrap_or_default();
        assert!(lasted <= self.answer() + SLACK, "{}: cold {lasted:?} after the outage: {runs:?}", self.name);
        let rounds: u64 = cold.iter().map(|run| run.rounds).sum();
        if rounds > 0 {
            self.say(&format!("cold in {rounds} rounds until {lasted:.2?} after the outage"));
        }
    }

    /// Every round in an outage that began at `act` and was not over at `until` succeeded; but see [`Service::rides_out`].
    fn outage(&self, act: Instant, until: Instant) {
        let runs = self.log(0);
        let noticed = act.plus(self.answer());
        let sound = |run: &&Run| run.outcome == Outcome::Ok || (run.outcome == Outcome::Cold && run.to <= noticed);
        let mut touching = runs.iter().filter(|run| run.to >= act && run.from < until).peekable();
        assert!(touching.peek().is_some(), "{}: no load at all: {runs:?}", self.name);
        assert!(touching.all(|run| sound(&run)), "{}: {act:?} to {until:?}: {runs:?}", self.name);
        self.say(&format!("undisturbed by {:.2} s of outage", until.since(act).as_secs_f64()));
    }

    /// The other KEK's accounts never noticed anything.
    pub(crate) fn other_undisturbed(&self) {
        let runs = self.log(1);
        let from = runs[0].from;
        Self::all_well(&runs, from, now(), "the other KEK");
    }

    fn all_well(runs: &[Run], from: Instant, to: Instant, whose: &str) {
        let touching: Vec<_> = runs.iter().filter(|run| run.to >= from && run.from <= to).collect();
        assert!(!touching.is_empty(), "{whose}: no load at all: {runs:?}");
        assert!(touching.iter().all(|run| run.outcome == Outcome::Ok), "{whose}: {from:?} to {to:?}: {runs:?}");
    }

    /// How long an outage must leave the service alone, at least: the last proof was asked an interval ago at most.
    pub(crate) fn owed_in_outage(&self) -> Duration {
        self.settings.grace - self.settings.poll_interval - self.settings.store_timeout - SECOND / 2
    }

    /// How long a revocation may take where the token answers.
    pub(crate) fn answer(&self) -> Duration {
        self.settings.poll_interval + self.settings.store_timeout
    }

    /// Promises 1 and 3 in an outage that began at `act`: undisturbed for what grace owes, then refused as lapsed.
    pub(crate) async fn lapses(&self, act: Instant) {
        self.refuses(Outcome::Lapsed, act, self.settings.grace).await;
        self.outage(act, act.plus(self.owed_in_outage()));
    }

    /// The events until now.
    pub(crate) fn heard(&mut self) -> &[Event] {
        while let Some(event) = self.listen.try_next() {
            self.events.push(event);
        }
        &self.events
    }

    /// Ends the service; fails if any byte ever came out wrong.
    pub(crate) fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.load.take().unwrap().join().unwrap();
        for log in [0, 1] {
            let runs = self.log(log);
            assert!(runs.iter().all(|run| run.outcome != Outcome::Wrong), "{}: {runs:?}", self.name);
        }
        let rounds: u64 = self.log(0).iter().filter(|run| run.outcome == Outcome::Ok).map(|run| run.rounds).sum();
        self.say(&format!("{rounds} rounds verified"));
    }
}

fn load(accounts: &[Account], logs: &[Log; 2], stop: &AtomicBool) {
    let plain: Vec<u8> = (0..4096_u32).map(|n| (n * 7) as u8).collect();
    let kept: Vec<_> = accounts.iter().map(|account| account.seal_to_vec(1_u64, &plain).unwrap()).collect();
    while !stop.load(Ordering::SeqCst) {
        for (number, account) in accounts.iter().enumerate() {
            let from = now();
            let outcome = Outcome::of(round(account, &plain, &kept[number]));
            let to = now();
            let mut runs = logs[number / ACCOUNTS].lock().unwrap();
            match runs.last_mut() {
                Some(run) if run.outcome == outcome => (run.to, run.rounds) = (to, run.rounds + 1),
                _ => runs.push(Run { outcome, from, to, rounds: 1 }),
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Seals, opens and compares a new block, and opens one that was sealed at the beginning.
fn round(account: &Account, plain: &[u8], kept: &[u8]) -> Result<(), Error> {
    let mut block = plain.to_vec();
    let header = account.seal_in_place(2_u64, &mut block)?;
    account.open_in_place(2_u64, &header, &mut block)?;
    let opened = account.open_to_vec(1_u64, kept)?;
    if block != plain || opened != plain {
        return Err(Error::Fatal("other bytes came out".into()));
    }
    Ok(())
}
