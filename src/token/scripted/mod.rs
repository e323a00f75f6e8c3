//! A token in memory that follows a script, for schedules that no real token can be made to follow.
//!
//! It wraps for real (AES-256-GCM under KEKs of its own, whichever profile is named), keeps its own deadline on the
//! [`Clock`] that it is given, and draws its randomness from a seed: the same script gives the same bytes and times.
//!
//! Calls stand in the line that those of a real module stand in, and have workers as those have: a call that nobody waits for any
//! more goes on, and one that is not over by its deadline hangs until it is.
//!
//! What a call finds is settled as it begins; latency and hangs only delay the answer. So a script can let an unwrap
//! succeed and its answer arrive after a denial.

use super::line::Lane;
use super::{
    Binding, KekHandle, KekId, KekInfo, KekSpec, Probe, Profile, Token, TokenError, TokenInfo, Verdict, Workers,
    Wrapped,
};
use crate::clock::{Clock, Instant};
use crate::secret::Aek;
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{Notify, oneshot};

mod keys;
mod room;
mod script;

pub use self::script::{Act, Call, Script};
use self::{
    keys::{Kek, info, unwrap, wrap},
    room::{Room, Worker},
    script::State,
};

/// Deeper than the cipher's frames, unoptimised.
const SCRUB_BYTES: usize = 64 * 1024;
/// More than an engine has calls under way, so that none waits unless a script wants that.
const WORKERS: usize = 48;

fn error(verdict: Verdict, operation: &'static str, what: impl Into<String>) -> TokenError {
    TokenError::new(verdict, operation, what, "this token is scripted: change the script")
}

/// A token in memory that follows a [`Script`].
pub struct ScriptedToken {
    script: Script,
    clock: Clock,
    call_timeout: Duration,
    room: Arc<Room>,
}

impl ScriptedToken {
    /// An empty token and its script, with more workers than one engine has calls. `call_timeout` runs on `clock`; the same `seed`
    /// gives the same bytes.
    pub fn new(clock: Clock, call_timeout: Duration, seed: u64) -> (Arc<Self>, Script) {
        let state = State {
            seed,
            drawn: 0,
            keks: BTreeMap::new(),
            graves: BTreeMap::new(),
            next: HashMap::new(),
            standing: HashMap::new(),
            latency: Duration::ZERO,
            unreachable: false,
            counts: HashMap::new(),
            in_flight: 0,
            in_flight_max: 0,
            releases: 0,
        };
        let script = Script { state: Arc::new(Mutex::new(state)), released: Arc::new(Notify::new()) };
        let room = Room::new(&clock, call_timeout, WORKERS);
        (Arc::new(Self { script: script.clone(), clock, call_timeout, room }), script)
    }

    /// The same token as another process reaches it, with so many workers of its own.
    pub fn with_workers(&self, workers: usize) -> Arc<Self> {
        let (clock, call_timeout) = (self.clock.clone(), self.call_timeout);
        let room = Room::new(&clock, call_timeout, workers);
        Arc::new(Self { script: self.script(), clock, call_timeout, room })
    }

    /// The same token as another process reaches it, with another deadline of its calls.
    pub fn with_call_timeout(&self, call_timeout: Duration) -> Arc<Self> {
        let clock = self.clock.clone();
        let room = Room::new(&clock, call_timeout, WORKERS);
        Arc::new(Self { script: self.script(), clock, call_timeout, room })
    }

    /// The script, once more.
    pub fn script(&self) -> Script {
        self.script.clone()
    }

    async fn play<T: Send + 'static>(
        &self,
        call: Call,
        operation: &'static str,
        serve: impl FnOnce(&mut State, bool) -> Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        self.play_in(Lane::Other, call, operation, serve).await
    }

    async fn unwrap_in(
        &self,
        lane: Lane,
        kek: &KekHandle,
        wrapped: &Wrapped,
        binding: &Binding,
    ) -> Result<Aek, TokenError> {
        let serve = |state: &mut State, wrong: bool| {
            let aek = unwrap(state, kek, wrapped, binding)?;
            if !wrong {
                return Ok(aek);
            }
            let other = state.draw("wrong plaintext");
            Aek::copy_from(&other).map_err(|failed| error(Verdict::Fatal, "unwrap", failed.to_string()))
        };
        self.play_in(lane, Call::Unwrap, "unwrap", serve).await
    }

    async fn play_in<T: Send + 'static>(
        &self,
        lane: Lane,
        call: Call,
        operation: &'static str,
        serve: impl FnOnce(&mut State, bool) -> Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        let worker = self.room.enter(lane, operation).await?;
        let (answer, delay, hangs, releases) = {
            let mut state = self.script.lock();
            state.count(call).begun += 1;
            let pushed = state.next.get_mut(&call).and_then(VecDeque::pop_front);
            let act = pushed.or_else(|| state.standing.get(&call).cloned()).unwrap_or(Act::Serve);
            let (latency, away) = (state.latency, state.unreachable);
            let (answer, delay) = match &act {
                Act::Fail(failure) => (Err(failure.clone()), latency),
                Act::Serve if away => (Err(error(Verdict::Unreachable, operation, "the token is away")), latency),
                Act::Delay(delay) => (serve(&mut state, false), *delay),
                act => (serve(&mut state, *act == Act::WrongPlaintext), latency),
            };
            (answer, delay, act == Act::Hang, state.releases)
        };
        // This token's cipher runs on the caller's thread, and would leave what a real one keeps to itself.
        zeroize::zeroize_stack::<SCRUB_BYTES>();
        let mut flight = Flight::take_off(&self.script, worker, call);
        if delay.is_zero() && !hangs {
            flight.land(answer.is_ok());
            return answer;
        }
        let (script, clock, entered) = (self.script.clone(), self.clock.clone(), flight.worker.entered());
        let deadline = entered.plus(self.call_timeout);
        let (sender, answered) = oneshot::channel();
        // As on a thread: whatever becomes of the caller, the call goes on.
        tokio::spawn(async move {
            let over = async {
                match hangs {
                    true => script.release_after(releases).await,
                    false => clock.sleep_until(entered.plus(delay)).await,
                }
            };
            tokio::pin!(over);
            if clock.until(deadline, &mut over).await.is_some() {
                flight.land(answer.is_ok());
                // Nobody listens when the caller was dropped.
                drop(sender.send(answer));
            } else {
                drop(sender.send(Err(silent(operation))));
                flight.hangs();
                over.await;
            }
        });
        answered.await.unwrap_or_else(|_| Err(error(Verdict::Unreachable, operation, "its runtime was dropped")))
    }
}

fn silent(operation: &'static str) -> TokenError {
    error(Verdict::Unreachable, operation, "the token did not answer until the deadline")
}

/// A call under way.
struct Flight {
    script: Script,
    worker: Worker,
    call: Call,
    is_over: bool,
}

impl Flight {
    fn take_off(script: &Script, worker: Worker, call: Call) -> Self {
        let mut state = script.lock();
        state.in_flight += 1;
        state.in_flight_max = state.in_flight_max.max(state.in_flight);
        Self { script: script.clone(), worker, call, is_over: false }
    }

    fn land(mut self, served: bool) {
        let call = self.call;
        self.script.lock().count(call).served += u64::from(served);
        self.end();
    }

    /// The worker in it is given up until it is dropped.
    fn hangs(&mut self) {
        self.end();
        self.worker.hangs();
    }

    fn end(&mut self) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.script.lock().in_flight -= 1;
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.end();
    }
}

#[async_trait]
impl Token for ScriptedToken {
    async fn info(&self) -> Result<TokenInfo, TokenError> {
        let serve = |state: &mut State, _| {
            Ok(TokenInfo {
                module: "scripted (no PKCS#11)".into(),
                slot: 0,
                label: "scripted".into(),
                serial: format!("{:016x}", state.seed),
                model: "keyleash scripted token".into(),
                mechanisms: ["CKM_AES_GCM", "CKM_AES_KEY_WRAP", "CKM_RSA_PKCS_OAEP"].map(String::from).to_vec(),
            })
        };
        self.play(Call::Info, "token info", serve).await
    }

    async fn wrap(&self, kek: &KekHandle, aek: &Aek, binding: &Binding) -> Result<Wrapped, TokenError> {
        let serve = |state: &mut State, wrong: bool| {
            if !wrong {
                return wrap(state, kek, aek, binding);
            }
            let other = state.draw("another plaintext");
            let other = Aek::copy_from(&other).map_err(|failed| error(Verdict::Fatal, "wrap", failed.to_string()))?;
            wrap(state, kek, &other, binding)
        };
        self.play(Call::Wrap, "wrap", serve).await
    }

    async fn unwrap(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.unwrap_in(Lane::Unwrap, kek, wrapped, binding).await
    }

    async fn prove(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.unwrap_in(Lane::Proof, kek, wrapped, binding).await
    }

    async fn probe(&self, _: Profile) -> Result<Probe, TokenError> {
        let serve = |state: &mut State, _| Ok(Probe { wrap: state.latency, unwrap: state.latency });
        self.play(Call::Probe, "probe", serve).await
    }

    async fn create_kek(&self, spec: &KekSpec) -> Result<KekInfo, TokenError> {
        super::pkcs11::kek::check_label(&spec.label)?;
        let serve = |state: &mut State, _| {
            let id = state.draw("CKA_ID").first_chunk::<16>().map(|id| id.to_vec()).unwrap_or_default();
            let id = KekId::new(id).map_err(|failed| error(Verdict::Fatal, "create KEK", failed.to_string()))?;
            let kek = Kek {
                key: state.draw("KEK"),
                label: spec.label.clone(),
                profile: spec.profile,
                destroyable: spec.destroyable,
                unwraps: true,
                wraps: true,
                refused: None,
                worked: false,
                replaced: false,
            };
            let made = info(&id, &kek);
            state.keks.insert(id, kek);
            Ok(made)
        };
        self.play(Call::CreateKek, "create KEK", serve).await
    }

    async fn find_kek(&self, id: &KekId) -> Result<Option<KekInfo>, TokenError> {
        self.play(Call::FindKek, "find KEK", |state, _| Ok(state.keks.get(id).map(|kek| info(id, kek)))).await
    }

    async fn list_keks(&self) -> Result<Vec<KekInfo>, TokenError> {
        let serve = |state: &mut State, _| {
            let mut keks: Vec<_> = state.keks.iter().map(|(id, kek)| info(id, kek)).collect();
            keks.sort_by(|one, other| (&one.label, &one.id).cmp(&(&other.label, &other.id)));
            Ok(keks)
        };
        self.play(Call::ListKeks, "list KEKs", serve).await
    }

    fn context_began(&self) -> Option<Instant> {
        None
    }

    fn call_timeout(&self) -> Duration {
        self.call_timeout
    }

    fn serial(&self) -> Option<String> {
        Some(format!("{:016x}", self.script.lock().seed))
    }

    fn in_flight(&self) -> usize {
        self.script.in_flight()
    }

    fn workers(&self) -> Workers {
        self.room.health()
    }
}

#[cfg(test)]
mod tests;
