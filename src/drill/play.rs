//! One drill from its first block to its last: load, act, end state, undoing, everybody back.

use super::{
    error::Error,
    operator::{Done, Operator},
    outcome::{Outcome, Outcomes},
    scenario::{FLAPS, Owed, Scenario},
    tap::Tap,
    timeline::Recorder,
    wait::Wait,
};
use crate::{
    clock::{Clock, Instant},
    config::Settings,
    engine::Engine,
    name::KekName,
    token::KekId,
};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub(crate) const OK: Outcomes = Outcomes::of(&[Outcome::Ok]);
/// While accounts come back one after the other, each says why it is not back yet.
pub(crate) const RESUMING: Outcomes =
    Outcomes::of(&[Outcome::Ok, Outcome::Denied, Outcome::Lapsed, Outcome::Unreachable, Outcome::Cold]);
/// How much longer than promised the end state is waited for, so that a promise that is missed is told in numbers.
const LATE: Duration = Duration::from_secs(5);
/// The lease is looked at this often, or more rarely where looking at all accounts takes long.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const LOOK_EVERY_FLEET: Duration = Duration::from_millis(50);
/// A fleet has more accounts than this.
const FLEET_MIN: usize = 1000;

/// Writes down where the leases of the KEK stand, until it is dropped.
pub(crate) struct Look(tokio::task::JoinHandle<()>);

impl Look {
    /// Tells KEK version, phase and AEKs in memory of each lease again and again.
    pub(crate) fn start(
        engine: &Engine,
        kek: &KekName,
        accounts: usize,
        tell: impl Fn(Instant, &[(u32, &str, usize)]) + Send + 'static,
    ) -> Self {
        let (engine, kek) = (engine.clone(), kek.clone());
        let pause = if accounts > FLEET_MIN { LOOK_EVERY_FLEET } else { LOOK_EVERY };
        Self(tokio::spawn(async move {
            let clock = Clock::default();
            loop {
                let leases = engine.leases();
                // After the look: what is told as wiped was.
                let at = clock.now();
                let of_it = leases.iter().filter(|lease| lease.kek.name == kek);
                let leases: Vec<_> =
                    of_it.map(|lease| (lease.kek.version, lease.phase.name(), lease.filled_slots)).collect();
                tell(at, &leases);
                clock.sleep_until(at.plus(pause)).await;
            }
        }))
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How long is waited for what.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) settings: Settings,
    /// The token's call timeout.
    pub(crate) timeout: Duration,
    pub(crate) slack: Duration,
    /// How long everybody may take to come back before the drill gives up.
    pub(crate) patience: Duration,
}

/// On which a drill is played.
pub(crate) struct Stage<'a, O> {
    pub(crate) operator: &'a mut O,
    pub(crate) recorder: &'a Arc<Recorder>,
    pub(crate) tap: &'a Arc<Tap>,
    /// Every version of the KEK.
    pub(crate) keks: &'a [KekId],
    pub(crate) terms: &'a Terms,
    pub(crate) wait: &'a Wait,
    /// An act is being done, and is not left in its midst.
    pub(crate) acting: Arc<AtomicBool>,
    /// What was taken, and not given back.
    pub(crate) taken: bool,
    pub(crate) away: bool,
}

impl<O: Operator> Stage<'_, O> {
    /// Plays every scenario but `restart`, `nodes` and `rotation`.
    pub(crate) async fn play(&mut self, scenario: Scenario) -> Result<(), O::Error> {
        let (recorder, terms) = (self.recorder, self.terms);
        let Settings { poll_interval, grace, .. } = terms.settings;
        let owed = scenario.owed(&terms.settings, terms.timeout);
        let begun = now();
        self.wait.until(begun.plus(terms.patience), || recorder.all_are(Outcome::Ok, begun)).await;
        self.is_tapped()?;
        // A proof or two of the watch, as in a service that has run for a while.
        self.wait.rest("load", poll_interval * 2).await;
        match owed {
            Owed::Denied(within) => self.gone(Outcome::Denied, within).await?,
            Owed::Lapsed => self.gone(Outcome::Lapsed, grace).await?,
            Owed::Service(_) if scenario == Scenario::Flapping => {
                for flap in 0..FLAPS {
                    self.take(OK).await?;
                    self.wait.rest("unreachable", poll_interval * 3 / 2).await;
                    if flap + 1 < FLAPS {
                        self.give(OK).await?;
                        self.wait.rest("reachable", poll_interval * 3 / 2).await;
                    }
                }
            }
            Owed::Undisturbed => {} // played in `rotation`
            Owed::Service(lasting) => {
                let act = self.take(OK).await?;
                self.wait.rest("unreachable", act.plus(lasting).since(now())).await;
            }
        }
        let expected = if matches!(owed, Owed::Service(_)) { OK } else { RESUMING };
        let undone = self.give(expected).await?;
        let back = || recorder.all_are(Outcome::Ok, undone) && recorder.is_active();
        if self.wait.until(undone.plus(terms.patience), back).await {
            recorder.expect(now(), OK);
        }
        self.wait.rest("active", poll_interval * 2).await;
        Ok(())
    }

    /// Takes the key away until all is refused, which is owed after this long, and looks for keys then.
    async fn gone(&mut self, refused: Outcome, within: Duration) -> Result<(), O::Error> {
        let recorder = self.recorder;
        recorder.keys_before(self.keys_in(std::process::id()).await?);
        let act = self.take(OK.with(Outcomes::of(&[refused]))).await?;
        let give_up = act.plus(self.late(within));
        self.wait.until(give_up, || recorder.all_are(refused, act)).await;
        // Once the engine says that it wiped everything, or should have: where keys stand by the memory itself.
        self.wait.until(give_up, || recorder.aeks() == 0).await;
        recorder.keys_left(self.keys_in(std::process::id()).await?);
        self.wait.rest(refused.name(), self.terms.settings.poll_interval).await;
        Ok(())
    }

    /// How long is waited for what is promised after this long.
    pub(crate) fn late(&self, promised: Duration) -> Duration {
        promised.saturating_add(self.terms.slack).saturating_add(LATE)
    }

    /// Takes the key away. From then on `right` is right.
    pub(crate) async fn take(&mut self, right: Outcomes) -> Result<Instant, O::Error> {
        self.recorder.expect(now(), right);
        self.do_take("act").await
    }

    /// The same, as an act of this kind.
    pub(crate) async fn do_take(&mut self, kind: &'static str) -> Result<Instant, O::Error> {
        let done = whole(&self.acting, self.operator.take()).await?;
        self.taken = true;
        Ok(self.note(kind, done))
    }

    /// Gives the key back.
    pub(crate) async fn give(&mut self, right: Outcomes) -> Result<Instant, O::Error> {
        self.recorder.expect(now(), right);
        self.do_give("undoing").await
    }

    /// The same, as an act of this kind.
    pub(crate) async fn do_give(&mut self, kind: &'static str) -> Result<Instant, O::Error> {
        self.taken = false;
        let done = whole(&self.acting, self.operator.give()).await?;
        Ok(self.note(kind, done))
    }

    /// A drill that broke gives back what it took. What cannot be given back is the operator's to tell.
    pub(crate) async fn give_back(&mut self) {
        if std::mem::take(&mut self.away) && self.operator.reach(true).await.is_err() {
            tracing::warn!("a drill broke, and its operator could not make the token reachable again");
        }
        if std::mem::take(&mut self.taken) && self.operator.give().await.is_err() {
            tracing::warn!("a drill broke, and its operator could not give back what it had taken away");
        }
    }

    /// All has been served, so keys came through the tap, if the engine is built over it.
    pub(crate) fn is_tapped(&self) -> Result<(), Error> {
        let none = "no AEK went through the Tap: build the engine over it, and have the load work before the drill's patience ends";
        self.tap.keys.is_any(self.keks).then_some(()).ok_or_else(|| Error::Nothing(none.into()))
    }

    pub(crate) fn note(&self, kind: &'static str, Done { what, at }: Done) -> Instant {
        // One that is told as yet to come would make every time shorter.
        let at = at.min(now());
        self.recorder.act(kind, what, at);
        at
    }

    pub(crate) fn step(&self, what: impl Into<String>, at: Instant) {
        self.recorder.act("step", what, at);
    }

    /// Places in a process's memory where an AEK under the KEK, or a round key of one, stands.
    pub(crate) async fn keys_in(&self, process: u32) -> Result<u64, Error> {
        let (tap, keks) = (self.tap.clone(), self.keks.to_vec());
        blocking(move || tap.keys.find(&keks, process)).await?
    }
}

/// Does an act, of which it is known meanwhile that it is being done.
pub(crate) async fn whole<T>(acting: &AtomicBool, act: impl Future<Output = T>) -> T {
    acting.store(true, Ordering::SeqCst);
    let done = act.await;
    acting.store(false, Ordering::SeqCst);
    done
}

/// Does on a thread of its own what takes long.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::io("a thread of the drill", io::Error::other(error)))
}

pub(crate) fn now() -> Instant {
    Clock::default().now()
}
