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
use crate::secret::{AEK_BYTES, Aek};
use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use async_trait::async_trait;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{Notify, oneshot};
use zeroize::Zeroizing;

mod room;

use room::{Room, Worker};

/// Deeper than the cipher's frames, unoptimised.
const SCRUB_BYTES: usize = 64 * 1024;
const NONCE_BYTES: usize = 12;
/// More than an engine has calls under way, so that none waits unless a script wants that.
const WORKERS: usize = 48;

/// The kinds of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[allow(missing_docs)] // each is the method of `Token` that it is named after
pub enum Call {
    Info,
    Wrap,
    Unwrap,
    Probe,
    CreateKek,
    FindKek,
    ListKeks,
}

/// How a call goes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Act {
    /// As the KEKs stand.
    Serve,
    /// It fails with this.
    Fail(TokenError),
    /// As the KEKs stand as it begins, but the answer takes this long. After the call timeout it is unreachable, and its worker
    /// hangs for the rest.
    Delay(Duration),
    /// As the KEKs stand as it begins, but the answer takes until [`Script::release`].
    Hang,
    /// An unwrap gives another AEK than was wrapped, and a wrap wraps another one. Other calls are served.
    WrongPlaintext,
}

impl Act {
    /// Fails with `verdict` and words that name it as scripted.
    pub fn fail(verdict: Verdict) -> Self {
        Self::Fail(error(verdict, "scripted", "the script says so"))
    }
}

struct Kek {
    key: Zeroizing<[u8; 32]>,
    label: String,
    profile: Profile,
    destroyable: bool,
    unwraps: bool,
    wraps: bool,
    refused: Option<String>,
    /// It has unwrapped a record.
    worked: bool,
    /// It was replaced after it had: then a refused record says that this is another key.
    replaced: bool,
}

impl Kek {
    /// It as another token has it that never used it.
    fn twin(&self) -> Self {
        Self {
            key: self.key.clone(),
            label: self.label.clone(),
            profile: self.profile,
            destroyable: self.destroyable,
            unwraps: self.unwraps,
            wraps: self.wraps,
            refused: self.refused.clone(),
            worked: false,
            replaced: false,
        }
    }
}

#[derive(Default)]
struct Counts {
    begun: u64,
    served: u64,
}

struct State {
    seed: u64,
    drawn: u64,
    keks: BTreeMap<KekId, Kek>,
    /// KEKs that were destroyed, for restoring.
    graves: BTreeMap<KekId, Kek>,
    next: HashMap<Call, VecDeque<Act>>,
    standing: HashMap<Call, Act>,
    latency: Duration,
    unreachable: bool,
    counts: HashMap<Call, Counts>,
    in_flight: usize,
    in_flight_max: usize,
    /// How often hanging calls were released.
    releases: u64,
}

impl State {
    fn draw(&mut self, what: &str) -> Zeroizing<[u8; 32]> {
        self.drawn += 1;
        let digest = Sha256::new()
            .chain_update(self.seed.to_be_bytes())
            .chain_update(self.drawn.to_be_bytes())
            .chain_update(what.as_bytes())
            .finalize();
        Zeroizing::new(digest.into())
    }

    fn count(&mut self, call: Call) -> &mut Counts {
        self.counts.entry(call).or_default()
    }
}

fn error(verdict: Verdict, operation: &'static str, what: impl Into<String>) -> TokenError {
    TokenError::new(verdict, operation, what, "this token is scripted: change the script")
}

/// The hand that moves a [`ScriptedToken`]. Cheap to clone.
#[derive(Clone)]
pub struct Script {
    state: Arc<Mutex<State>>,
    /// Wakes hanging calls. In the order in which they began, so that a simulation sees the same again (a `watch` channel
    /// would wake them in any).
    released: Arc<Notify>,
}

impl Script {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and the value is whole after every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next call of this kind goes like this; further ones queue behind it.
    pub fn push(&self, call: Call, act: Act) {
        self.lock().next.entry(call).or_default().push_back(act);
    }

    /// Every call of this kind goes like this, but for those pushed; [`Act::Serve`] ends it.
    pub fn standing(&self, call: Call, act: Act) {
        self.lock().standing.insert(call, act);
    }

    /// Every call takes this long, but for those that are scripted otherwise.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// While on, every call that is not scripted otherwise is unreachable.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.lock().unreachable = unreachable;
    }

    /// Lets every call that hangs now go on.
    pub fn release(&self) {
        self.lock().releases += 1;
        self.released.notify_waiters();
    }

    /// Waits for a release after the first `releases`.
    async fn release_after(&self, releases: u64) {
        loop {
            let released = self.released.notified();
            tokio::pin!(released);
            // Enlist before the look, else a release in between would be missed.
            released.as_mut().enable();
            if self.lock().releases > releases {
                return;
            }
            released.await;
        }
    }

    /// Unwraps are denied from now on (CKA_DECRYPT or CKA_UNWRAP off); wraps are not.
    pub fn disable(&self, kek: &KekId) {
        self.change(kek, |kek| kek.unwraps = false);
    }

    /// Undoes [`Script::disable`] and [`Script::disable_wrap`].
    pub fn enable(&self, kek: &KekId) {
        self.change(kek, |kek| (kek.unwraps, kek.wraps) = (true, true));
    }

    /// It is half a key from now on (CKA_ENCRYPT or CKA_WRAP off): wraps are refused, as misconfigured while unwraps are not.
    pub fn disable_wrap(&self, kek: &KekId) {
        self.change(kek, |kek| kek.wraps = false);
    }

    /// The KEK is refused for this reason from now on, as one with a forbidden attribute is.
    pub fn refuse(&self, kek: &KekId, why: &str) {
        self.change(kek, |kek| kek.refused = Some(why.into()));
    }

    /// Deletes the KEK; [`Script::restore`] brings it back.
    pub fn destroy(&self, kek: &KekId) {
        let mut state = self.lock();
        if let Some(dead) = state.keks.remove(kek) {
            state.graves.insert(kek.clone(), dead);
        }
    }

    /// Brings a destroyed KEK back, as from a backup.
    pub fn restore(&self, kek: &KekId) {
        let mut state = self.lock();
        if let Some(risen) = state.graves.remove(kek) {
            state.keks.insert(kek.clone(), risen);
        }
    }

    /// Copies every KEK that is not there yet to another token, as HSM vendors clone them: the same keys, attributes and CKA_IDs.
    pub fn clone_keks_to(&self, other: &Self) {
        let clones: Vec<_> = self.lock().keks.iter().map(|(id, kek)| (id.clone(), kek.twin())).collect();
        let mut other = other.lock();
        for (id, clone) in clones {
            other.keks.entry(id).or_insert(clone);
        }
    }

    /// Puts another key under the same id and label.
    pub fn replace(&self, kek: &KekId) {
        let mut state = self.lock();
        let key = state.draw("replaced KEK");
        if let Some(kek) = state.keks.get_mut(kek) {
            kek.key = key;
            kek.replaced = kek.worked;
        }
    }

    fn change(&self, id: &KekId, change: impl FnOnce(&mut Kek)) {
        self.lock().keks.get_mut(id).map(change);
    }

    /// Calls of this kind so far.
    pub fn calls(&self, call: Call) -> u64 {
        self.lock().count(call).begun
    }

    /// Calls of this kind that succeeded so far.
    pub fn served(&self, call: Call) -> u64 {
        self.lock().count(call).served
    }

    /// Calls that are under way.
    pub fn in_flight(&self) -> usize {
        self.lock().in_flight
    }

    /// The most calls that were ever under way at once.
    pub fn in_flight_max(&self) -> usize {
        self.lock().in_flight_max
    }
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

fn usable<'a>(state: &'a State, handle: &KekHandle, operation: &'static str) -> Result<&'a Kek, TokenError> {
    let Some(kek) = state.keks.get(&handle.id) else {
        return Err(error(Verdict::Denied, operation, format!("the token is there and has no KEK {}", handle.id)));
    };
    if let Some(why) = &kek.refused {
        return Err(error(Verdict::Misconfigured, operation, format!("KEK {} is refused: {why}", handle.id)));
    }
    if kek.profile != handle.profile {
        let what = format!("CKR_KEY_FUNCTION_NOT_PERMITTED: the KEK is for {}", kek.profile);
        return Err(error(Verdict::Denied, operation, what));
    }
    Ok(kek)
}

/// aes-gcm alone takes additional data.
fn bound(profile: Profile, binding: &Binding) -> &[u8] {
    if profile == Profile::AesGcm { binding } else { &[] }
}

fn wrap(state: &mut State, handle: &KekHandle, aek: &Aek, binding: &Binding) -> Result<Wrapped, TokenError> {
    let drawn = state.draw("nonce");
    let nonce = drawn.first_chunk::<NONCE_BYTES>().copied().unwrap_or_default();
    let kek = usable(state, handle, "wrap")?;
    if !kek.wraps && kek.unwraps {
        return Err(error(Verdict::Misconfigured, "wrap", format!("KEK {} is half a key", handle.id)));
    }
    if !kek.wraps {
        return Err(error(Verdict::Denied, "wrap", "CKR_KEY_FUNCTION_NOT_PERMITTED"));
    }
    let payload = Payload { msg: aek.expose(), aad: bound(handle.profile, binding) };
    let cipher = Aes256Gcm::new((&*kek.key).into());
    let sealed = cipher.encrypt(&nonce.into(), payload).map_err(|_| error(Verdict::Fatal, "wrap", "AES-GCM failed"))?;
    Ok(match handle.profile {
        Profile::AesGcm => Wrapped { iv: nonce.to_vec(), bytes: sealed },
        Profile::AesKw | Profile::RsaOaepSha256 => Wrapped { iv: Vec::new(), bytes: [&nonce[..], &sealed].concat() },
    })
}

fn unwrap(state: &mut State, handle: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
    let bad = |what| error(Verdict::BadRecord, "unwrap", what);
    let kek = usable(state, handle, "unwrap")?;
    if !kek.unwraps {
        return Err(error(Verdict::Denied, "unwrap", "CKR_KEY_FUNCTION_NOT_PERMITTED"));
    }
    let (nonce, sealed) = match handle.profile {
        Profile::AesGcm => (wrapped.iv.as_slice(), wrapped.bytes.as_slice()),
        Profile::AesKw | Profile::RsaOaepSha256 => {
            wrapped.bytes.split_at_checked(NONCE_BYTES).ok_or_else(|| bad("the wrapped AEK is too short"))?
        }
    };
    let nonce = <[u8; NONCE_BYTES]>::try_from(nonce).map_err(|_| bad("the IV does not have 12 bytes"))?;
    let payload = Payload { msg: sealed, aad: bound(handle.profile, binding) };
    let plain = Aes256Gcm::new((&*kek.key).into()).decrypt(&nonce.into(), payload).map(Zeroizing::new);
    let plain = plain.map_err(|_| match kek.replaced {
        true => error(Verdict::Replaced, "unwrap", "the KEK is another key than before, under the same CKA_ID"),
        false => bad("CKR_ENCRYPTED_DATA_INVALID"),
    })?;
    let bytes = <&[u8; AEK_BYTES]>::try_from(plain.as_slice()).map_err(|_| bad("it does not unwrap to 32 bytes"))?;
    let aek = Aek::copy_from(bytes).map_err(|failed| error(Verdict::Fatal, "unwrap", failed.to_string()));
    state.keks.entry(handle.id.clone()).and_modify(|kek| kek.worked = true);
    aek
}

fn info(id: &KekId, kek: &Kek) -> KekInfo {
    KekInfo {
        id: id.clone(),
        label: kek.label.clone(),
        profile: Some(kek.profile),
        bits: if kek.profile == Profile::RsaOaepSha256 { 3072 } else { 256 },
        destroyable: Some(kek.destroyable),
        modifiable: Some(true),
        enabled: kek.unwraps,
        refused: kek.refused.clone(),
        half: (kek.unwraps && !kek.wraps).then(|| "CKA_ENCRYPT is false: it unwraps, and wraps nothing new".into()),
        warnings: Vec::new(),
        known_outside: None,
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

    fn in_flight(&self) -> usize {
        self.script.in_flight()
    }

    fn workers(&self) -> Workers {
        self.room.health()
    }
}

#[cfg(test)]
mod tests;
