//! The token and the store as the engine sees them: the real ones, with every call told to the model, and with faults.

use crate::model::{Landing, Model};
use async_trait::async_trait;
use keyleash::{
    Error, Result,
    clock::{Clock, Instant},
    secret::Aek,
    store::{Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned, memory::MemoryStore},
    token::{
        Binding, KekHandle, KekId, KekInfo, KekSpec, Probe, Profile, Token, TokenError, TokenInfo, Workers, Wrapped,
        scripted::{Act, Call, Script, ScriptedToken},
    },
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

/// What a scripted panic panics with, so that the test's hook keeps silent about it.
pub(crate) struct Scripted;

#[derive(Debug, Clone)]
pub(crate) enum Fault {
    Act(Act),
    /// The task that calls the token dies.
    Panic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    Healthy,
    Fails,
    Hangs,
    Slow(Duration),
}

/// What the test and the seams share.
pub(crate) struct Stage {
    pub(crate) model: Model,
    /// One-off faults of the next unwraps.
    pub(crate) faults: VecDeque<Fault>,
    /// The next look at the workers kills the task that looks: the watch.
    pub(crate) watch_dies: bool,
    pub(crate) health: Health,
    /// Engines whose processes were killed: nothing that they do reaches anything any more.
    pub(crate) killed_below: usize,
    pub(crate) trace: Option<Vec<String>>,
}

pub(crate) type Shared = Arc<Mutex<Stage>>;

pub(crate) fn lock(shared: &Shared) -> MutexGuard<'_, Stage> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Stage {
    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(what());
        }
    }
}

/// Nothing comes back to a process that was killed.
async fn gate(shared: &Shared, engine: usize) {
    if engine < lock(shared).killed_below {
        std::future::pending::<()>().await;
    }
}

/// One engine's connection to the token.
pub(crate) struct SimToken {
    pub(crate) inner: Arc<ScriptedToken>,
    pub(crate) script: Script,
    pub(crate) shared: Shared,
    pub(crate) engine: usize,
    pub(crate) clock: Clock,
}

/// A call under way, which may be given up.
struct Flight<'a> {
    token: &'a SimToken,
    call: u64,
    landed: bool,
}

impl Flight<'_> {
    fn land(mut self, landing: &Landing<'_>) {
        self.landed = true;
        self.tell(landing);
    }

    fn tell(&self, landing: &Landing<'_>) {
        let now = self.token.clock.now();
        let mut stage = lock(&self.token.shared);
        let Flight { call, .. } = self;
        stage.note(|| {
            let how = match landing {
                Landing::Aek => "the AEK".into(),
                Landing::Wrong => "wrong bytes".into(),
                Landing::Failed(error) => format!("{:?}: {}", error.verdict, error.what),
                Landing::Panicked => "a panic".into(),
                Landing::Cancelled => "given up".into(),
            };
            format!("{} unwrap {call} ends: {how}", show(now))
        });
        stage.model.land(*call, landing, now);
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if !self.landed {
            self.tell(&Landing::Cancelled);
        }
    }
}

pub(crate) fn show(now: Instant) -> String {
    format!("{:>12.3}", now.as_nanos() as f64 / 1e9)
}

impl SimToken {
    async fn ask(
        &self,
        is_proof: bool,
        kek: &KekHandle,
        wrapped: &Wrapped,
        binding: &Binding,
    ) -> Result<Aek, TokenError> {
        gate(&self.shared, self.engine).await;
        let (flight, fault) = {
            let now = self.clock.now();
            let mut stage = lock(&self.shared);
            let fault = stage.faults.pop_front();
            let call = stage.model.begin(self.engine, &kek.id, &wrapped.bytes, (is_proof, fault.is_some()), now);
            let account = stage.model.accounts.get(&wrapped.bytes).copied();
            let engine = self.engine;
            stage.note(|| format!("{} unwrap {call} of account {account:?} by engine {engine}: {fault:?}", show(now)));
            (Flight { token: self, call, landed: false }, fault)
        };
        let mut wrong = false;
        match fault {
            Some(Fault::Panic) => {
                flight.land(&Landing::Panicked);
                std::panic::panic_any(Scripted);
            }
            Some(Fault::Act(act)) => {
                wrong = act == Act::WrongPlaintext;
                // Taken by the call below, before anybody else runs.
                self.script.push(Call::Unwrap, act);
            }
            None => {}
        }
        let outcome = match is_proof {
            true => self.inner.prove(kek, wrapped, binding).await,
            false => self.inner.unwrap(kek, wrapped, binding).await,
        };
        gate(&self.shared, self.engine).await;
        flight.land(&match &outcome {
            Ok(_) if wrong => Landing::Wrong,
            Ok(_) => Landing::Aek,
            Err(error) => Landing::Failed(error),
        });
        outcome
    }
}

#[async_trait]
impl Token for SimToken {
    async fn unwrap(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.ask(false, kek, wrapped, binding).await
    }

    async fn prove(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.ask(true, kek, wrapped, binding).await
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

    fn context_began(&self) -> Option<Instant> {
        self.inner.context_began()
    }

    fn call_timeout(&self) -> Duration {
        self.inner.call_timeout()
    }

    fn workers(&self) -> Workers {
        let dies = {
            let mut stage = lock(&self.shared);
            // The test itself looks too, outside any task.
            let dies = stage.watch_dies && self.engine == stage.model.engine && tokio::task::try_id().is_some();
            if dies {
                stage.watch_dies = false;
                stage.model.troubled = self.clock.now();
            }
            dies
        };
        if dies {
            std::panic::panic_any(Scripted);
        }
        self.inner.workers()
    }
}

/// One engine's connection to the store.
pub(crate) struct SimStore {
    pub(crate) inner: Arc<MemoryStore>,
    pub(crate) shared: Shared,
    pub(crate) engine: usize,
    pub(crate) clock: Clock,
    /// Moves when the health does.
    pub(crate) healed: Arc<tokio::sync::Notify>,
}

impl SimStore {
    async fn play(&self) -> Result<()> {
        gate(&self.shared, self.engine).await;
        loop {
            let healed = self.healed.notified();
            tokio::pin!(healed);
            healed.as_mut().enable();
            let health = lock(&self.shared).health;
            match health {
                Health::Healthy => return Ok(()),
                Health::Fails => return Err(Error::Store("the script says so".into())),
                Health::Slow(time) => {
                    self.clock.sleep_until(self.clock.now().plus(time)).await;
                    break;
                }
                Health::Hangs => healed.await,
            }
        }
        gate(&self.shared, self.engine).await;
        Ok(())
    }
}

#[async_trait]
impl KeyStore for SimStore {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        self.play().await?;
        self.inner.get(key).await
    }

    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        self.play().await?;
        self.inner.create(key, put).await
    }

    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
        self.play().await?;
        self.inner.replace(key, expected, put).await
    }

    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
        self.play().await?;
        self.inner.delete(key, expected).await
    }

    async fn shred(&self, _: Vec<Vec<u8>>) -> Result<()> {
        Ok(())
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        self.play().await?;
        self.inner.list(filter, after, limit).await
    }
}
