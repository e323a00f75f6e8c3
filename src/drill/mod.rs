//! Drills: the day the key is taken away, rehearsed on a service's own engine, token, store and load, in its own tests.
//!
//! A drill puts an engine under a load, has an [`Operator`] take the key away and give it back, and holds what it measured against the
//! [promises](crate::manual::promises): the [`Report`] has a verdict for each. How it measures, and what its JSON says, is in
//! [`manual::drills`](crate::manual::drills); `keyleash drill` does it with a load and acts of its own.
//!
//! ```
//! use async_trait::async_trait;
//! use keyleash::{
//!     Engine, Error,
//!     clock::Clock,
//!     config::Settings,
//!     drill::{self, Done, Drill, Hand, Operator, Scenario, Tap},
//!     name::{AccountId, KekName},
//!     store::memory::MemoryStore,
//!     token::{KekId, Profile, scripted::{Script, ScriptedToken}},
//! };
//! use std::{sync::Arc, time::Duration};
//!
//! /// Takes the KEK away, and gives it back. Of a real token: as the owner of the key would, by the HSM's own tools.
//! struct Owner(Script, KekId);
//!
//! #[async_trait]
//! impl Operator for Owner {
//!     type Error = drill::Error;
//!
//!     async fn take(&mut self) -> Result<Done, drill::Error> {
//!         Done::by("disable the KEK", async { Ok(self.0.disable(&self.1)) }).await
//!     }
//!
//!     async fn give(&mut self) -> Result<Done, drill::Error> {
//!         Done::by("enable the KEK", async { Ok(self.0.enable(&self.1)) }).await
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), drill::Error> {
//!     let second = Duration::from_secs(1);
//!     let settings = Settings::default().poll_interval(second).store_timeout(second).grace(10 * second).aek_ttl(10 * second);
//!     let (token, script) = ScriptedToken::new(Clock::default(), second, 1);
//!     let tap = Tap::new(token);
//!     let engine = Engine::builder(tap.clone(), Arc::new(MemoryStore::new())).settings(settings).build()?;
//!     let (kek, id) = (KekName::new("tenants")?, AccountId::new("tenant-7")?);
//!     let made = engine.create_kek(&kek, Profile::AesGcm).await?;
//!     let account = engine.create_account(&id, &kek).await?;
//!
//!     let mut load = move |hand: &mut Hand| {
//!         let sealed = hand.operation(|| match account.seal_to_vec(42_u64, b"a block") {
//!             Err(Error::Cold { .. }) => {
//!                 account.warm_blocking(second)?;
//!                 account.seal_to_vec(42_u64, b"a block")
//!             }
//!             sealed => sealed,
//!         });
//!         let Some(sealed) = sealed else { return };
//!         if let Some(opened) = hand.operation(|| account.open_to_vec(42_u64, &sealed)) {
//!             hand.verify(&opened, b"a block");
//!         }
//!     };
//!     let drill = Drill::new(&engine, &tap, &kek).account(id, load);
//!     let report = drill.run(Scenario::Revocation, &mut Owner(script, made.id)).await?;
//!     assert_ne!(report.verdict(), drill::Verdict::Fail, "{report}");
//!     Ok(())
//! }
//! ```

// From the ground up: each file uses those above it alone.
mod error;
mod outcome;
mod text;

mod keys;
mod tap;
mod timeline;
mod wait;

mod load;
mod machine;
mod operator;
mod process;
mod scenario;

mod finished;
mod measure;
mod promises;
mod report;

mod html;
mod picture;

mod nodes;
mod play;
mod restart;
mod rotation;

pub use self::{
    error::Error,
    html::html,
    load::Hand,
    measure::{Measured, Service},
    operator::{Done, Operator, Who},
    picture::svg,
    promises::{Promise, Relation, Unit, Verdict},
    report::{FORMAT, Report},
    scenario::Scenario,
    tap::Tap,
    wait::Waiting,
};

use self::{
    finished::Finished,
    load::{Load, STOP_PATIENCE, Serve},
    machine::Machine,
    play::{Look, OK, Stage, Terms},
    process::Teller,
    rotation::Rotation,
    timeline::{Listener, Recorder},
    wait::Wait,
};
use crate::{
    access::Operation,
    clock::{Clock, unix_now},
    config::RESUMPTION_MAX,
    engine::{Act, Engine},
    keyring::On,
    name::{AccountId, KekName},
    telemetry::trail::{Deed, Outcome, Why},
    token::Token,
};
use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

/// The most that the machine's own delay excuses, where nothing is said.
const SLACK: Duration = Duration::from_secs(1);
const THREADS: usize = 2;
const NODES: usize = 3;
/// Intervals of the timeline in a poll interval.
const INTERVALS_PER_POLL: u32 = 10;

/// A rehearsal that is being prepared. It measures in real time, CLOCK_BOOTTIME, and so must the engine.
pub struct Drill {
    engine: Engine,
    tap: Arc<Tap>,
    kek: KekName,
    ids: Vec<AccountId>,
    accounts: Vec<Serve>,
    threads: usize,
    nodes: usize,
    slack: Duration,
    patience: Option<Duration>,
    wait: Wait,
}

impl Drill {
    /// Of an engine that was built over `tap`, and of the KEK that is to be taken away.
    #[must_use]
    pub fn new(engine: &Engine, tap: &Arc<Tap>, kek: &KekName) -> Self {
        Self {
            engine: engine.clone(),
            tap: tap.clone(),
            kek: kek.clone(),
            ids: Vec::new(),
            accounts: Vec::new(),
            threads: THREADS,
            nodes: NODES,
            slack: SLACK,
            patience: None,
            wait: Wait::default(),
        }
    }

    /// An account under the KEK, and what the service does for it. It is called again and again, on a thread of the drill, and says by
    /// [`Hand::operation`] what it does and by [`Hand::verify`] what came out; a panic ends the drill.
    #[must_use]
    pub fn account(mut self, id: AccountId, serve: impl FnMut(&mut Hand) + Send + 'static) -> Self {
        self.ids.push(id);
        self.accounts.push(Box::new(serve));
        self
    }

    /// Threads that serve the accounts; 2 unless said otherwise.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Processes that serve in [`Scenario::Nodes`]; 3 unless said otherwise.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes.max(1);
        self
    }

    /// The most that the machine's own delay, which is measured, makes inconclusive instead of failed; 1 s unless said otherwise.
    #[must_use]
    pub fn slack(mut self, slack: Duration) -> Self {
        self.slack = slack;
        self
    }

    /// How long everybody may take to work, and to come back, before the drill goes on without them; 30 min, as is promised, unless said
    /// otherwise.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// Is told what the drill waits for, every second or more often.
    #[must_use]
    pub fn on_wait(mut self, tell: impl Fn(Waiting<'_>) + Send + Sync + 'static) -> Self {
        self.wait.teller = Some(Arc::new(tell));
        self
    }

    /// Plays it. That takes a few poll intervals, for the outages and for [`Scenario::Nodes`] the grace. For that and for
    /// [`Scenario::Restart`] it lets go of its engine first; a store that belongs to one process wants the caller to do so too.
    ///
    /// # Errors
    /// What the operator's acts fail with; [`Error`] when the KEK is not there, the drill would show nothing of it, the load panicked, the
    /// system does not let the process search its own memory, or a rotation failed.
    pub async fn run<O: Operator>(self, scenario: Scenario, operator: &mut O) -> Result<Report, O::Error> {
        let act = Act::new(Deed::DrillPlay, &[Operation::Drill], On::Kek(&self.kek));
        let asked = self.engine.ask(act).await.map_err(Error::from)?;
        let played = self.play(scenario, operator).await;
        let outcome = if played.is_ok() { Outcome::Done } else { Outcome::Failed(Why::unknown()) };
        let lines = asked.into_iter().flat_map(|(_, lines)| lines);
        lines.for_each(|line| line.note_end(outcome.clone()));
        played
    }

    async fn play<O: Operator>(self, scenario: Scenario, operator: &mut O) -> Result<Report, O::Error> {
        let settings = self.engine.settings().clone();
        let patience = self.patience.unwrap_or(RESUMPTION_MAX.saturating_add(self.slack));
        let terms = Terms { settings, timeout: self.tap.call_timeout(), slack: self.slack, patience };
        let token = self.tap.info().await.map_err(Error::from)?;
        let versions = self.engine.kek(&self.kek).await.map_err(Error::from)?.versions;
        let keks: Vec<_> = versions.iter().map(|version| version.record.id.clone()).collect();
        let current = versions.into_iter().find(|version| version.current).map(|version| version.record);
        let none = || crate::error::Error::NotFound(format!("the current version of KEK {}", self.kek));
        let current = current.ok_or_else(none).map_err(Error::from)?;
        self.shows().await?;
        let Self { engine, tap, kek, ids, accounts, threads, wait, .. } = self;
        let nodes = if scenario == Scenario::Nodes { self.nodes } else { 1 };
        let clock = Clock::default();
        let started_unix = unix_now();
        let interval = terms.settings.poll_interval / INTERVALS_PER_POLL;
        let recorder = Arc::new(Recorder::new(clock.now(), interval, nodes * ids.len()));
        recorder.expect(clock.now(), OK);
        let machine = Machine::watch(recorder.clone())?;
        let who = operator.who();
        let mut stage = Stage {
            operator,
            recorder: &recorder,
            tap: &tap,
            keks: &keks,
            terms: &terms,
            wait: &wait,
            acting: Arc::default(),
            taken: false,
            away: false,
        };
        let (mut rotated, mut unwraps) = (None, (0, 0));
        let end;
        if scenario.is_apart() {
            // The store may belong to one process at a time.
            drop((engine, accounts));
            // Nobody counts unwraps: the processes that are killed take theirs with them.
            let played = match scenario {
                Scenario::Nodes => stage.nodes(nodes, ids.len()).await,
                _ => stage.restarts().await,
            };
            if let Err(error) = played {
                stage.give_back().await;
                return Err(error);
            }
            end = clock.now();
        } else {
            let before = tap.unwraps();
            let listener: Arc<dyn Listener> = recorder.clone();
            let leases = recorder.clone();
            let look = Look::start(&engine, &kek, ids.len(), move |at, told| leases.leases(at, told));
            let load = Load::start(accounts, threads, &listener)?;
            let acting = stage.acting.clone();
            let played = async {
                if scenario == Scenario::Rotation {
                    let of = Rotation { engine: &engine, kek: &kek, ids: &ids, current: &current };
                    stage.rotate(&of).await.map(Some)
                } else {
                    stage.play(scenario).await.map(|()| None)
                }
            };
            let played = tokio::select! {
                played = played => played,
                () = load.broken(&acting) => Err(Error::Load.into()),
            };
            rotated = match played {
                Ok(rotated) => rotated,
                Err(error) => {
                    stage.give_back().await;
                    return Err(error);
                }
            };
            // Before the load ends: what it does not do after this is no trouble.
            end = clock.now();
            recorder.stuck(load.stop(STOP_PATIENCE).await?);
            drop(look);
            let after = tap.unwraps();
            unwraps = (after.0 - before.0, after.1 - before.1);
        }
        drop(machine);
        Ok(Report::new(Finished {
            scenario,
            timeout: terms.timeout,
            settings: terms.settings,
            who,
            accounts: u32::try_from(ids.len()).unwrap_or(u32::MAX),
            threads: u32::try_from(threads).unwrap_or(u32::MAX),
            nodes: u32::try_from(nodes).unwrap_or(u32::MAX),
            profile: current.profile,
            slack: terms.slack,
            token,
            started_unix,
            timeline: recorder.read(end),
            unwraps,
            rotated,
        }))
    }

    /// The other side of [`Scenario::Restart`] and [`Scenario::Nodes`]: serves, and gives `tell` what is to be written to standard output, until `until` or the
    /// process ends.
    ///
    /// # Errors
    /// [`Error::Io`] when the system gives no thread, [`Error::Load`].
    pub async fn serve(
        self,
        tell: impl Fn(&str) + Send + Sync + 'static,
        until: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let teller = Arc::new(Teller(tell));
        let listener: Arc<dyn Listener> = teller.clone();
        let look = Look::start(&self.engine, &self.kek, self.ids.len(), move |at, told| teller.leases(at, told));
        let load = Load::start(self.accounts, self.threads, &listener)?;
        let acting = AtomicBool::new(false);
        tokio::select! {
            () = until => {}
            () = load.broken(&acting) => return Err(Error::Load),
        }
        drop(look);
        load.stop(STOP_PATIENCE).await.map(drop)
    }

    /// # Errors
    /// [`Error::Nothing`] when there is no account, or one that has nothing to do with the KEK.
    async fn shows(&self) -> Result<(), Error> {
        if self.ids.is_empty() {
            return Err(Error::Nothing("it has no account (Drill::account)".into()));
        }
        for id in &self.ids {
            let record = self.engine.account_record(id).await?;
            if record.versions.last().is_none_or(|current| current.kek.name != self.kek) {
                return Err(Error::Nothing(format!("account {id} is not under the KEK {}", self.kek)));
            }
        }
        Ok(())
    }
}
