//! The tokens of a fleet as they are in truth, and each process's connection to them: its workers, its context, its queue.

use super::{
    oracle::FIRST,
    room::{Lane, Room},
    stage::{Shared, Stage, gate, lock},
};
use async_trait::async_trait;
use keyleash::{
    clock::{Clock, Instant, ManualClock},
    secret::Aek,
    token::{
        Binding, KekHandle, KekId, KekInfo, KekSpec, Probe, Profile, Token, TokenError, TokenInfo, Verdict, Workers,
        Wrapped,
    },
};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::oneshot;

const NONCE_BYTES: usize = 12;

/// A key in a token.
#[derive(Clone)]
pub(crate) struct Key {
    secret: [u8; 32],
    /// What it was made with; another one since is an impostor's.
    born: [u8; 32],
    label: String,
    profile: Profile,
    pub(crate) enabled: bool,
    pub(crate) present: bool,
}

impl Key {
    pub(crate) fn is_true(&self) -> bool {
        self.secret == self.born
    }
}

/// What of a token a context may have in its memory.
#[derive(Clone)]
struct View {
    keys: BTreeMap<KekId, Key>,
    pin_good: bool,
}

/// What the next unwrap meets, whosever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It never returns, until the script releases it.
    Hang,
    /// It takes this long.
    Slow(Duration),
    /// It fails once, as when a cable is moved.
    Fails,
}

/// A token.
pub(crate) struct Hsm {
    view: View,
    /// It answers nobody.
    pub(crate) away: bool,
    /// Hosts that it does not answer, as when a network is cut in two.
    pub(crate) cut_off: BTreeSet<usize>,
    pub(crate) latency: Duration,
    /// Contexts go on with what they saw when they were initialised.
    pub(crate) hides: bool,
    /// Its module says when a context was initialised; one that says nothing hides nothing.
    pub(crate) dates: bool,
    /// Workers that each process has for it.
    pub(crate) workers: usize,
    pub(crate) faults: VecDeque<Fault>,
    /// Moves when what hangs is released.
    pub(crate) released: Arc<tokio::sync::Notify>,
    drawn: u64,
    seed: u64,
}

impl Hsm {
    pub(crate) fn new(seed: u64, workers: usize, (hides, dates): (bool, bool)) -> Self {
        Self {
            view: View { keys: BTreeMap::new(), pin_good: true },
            away: false,
            cut_off: BTreeSet::new(),
            latency: Duration::ZERO,
            hides,
            dates,
            workers,
            faults: VecDeque::new(),
            released: Arc::default(),
            drawn: 0,
            seed,
        }
    }

    /// Another store makes a key here.
    pub(crate) fn made_by_another_store(&mut self, label: String) -> KekId {
        let (id, secret) = (KekId::new(self.draw("CKA_ID")[..16].to_vec()).unwrap(), self.draw("KEK"));
        let key = Key { secret, born: secret, label, profile: Profile::AesGcm, enabled: true, present: true };
        self.view.keys.insert(id.clone(), key);
        id
    }

    fn draw(&mut self, what: &str) -> [u8; 32] {
        self.drawn += 1;
        hash(&[&self.seed.to_be_bytes(), &self.drawn.to_be_bytes(), what.as_bytes()])
    }

    /// It does not answer this host.
    pub(crate) fn is_away(&self, host: usize) -> bool {
        self.away || self.cut_off.contains(&host)
    }

    /// It answers everybody again.
    pub(crate) fn comes_back(&mut self) {
        self.away = false;
        self.cut_off.clear();
    }

    /// What is true now, whatever a context thinks.
    pub(crate) fn grants(&self, kek: &KekId) -> bool {
        let granted = |key: &Key| key.enabled && key.present && key.is_true();
        self.view.pin_good && self.view.keys.get(kek).is_some_and(granted)
    }

    pub(crate) fn key(&self, kek: &KekId) -> Option<&Key> {
        self.view.keys.get(kek)
    }

    pub(crate) fn change(&mut self, kek: &KekId, change: impl FnOnce(&mut Key)) {
        self.view.keys.get_mut(kek).map(change);
    }

    /// Another key takes the place of this one, or the right one comes back.
    pub(crate) fn replace(&mut self, kek: &KekId, by_impostor: bool) {
        let other = self.draw("impostor");
        self.change(kek, |key| key.secret = if by_impostor { other } else { key.born });
    }

    /// The token refuses everybody (its PIN was changed), or nobody.
    pub(crate) fn set_pin_good(&mut self, good: bool) {
        self.view.pin_good = good;
    }

    /// As vendors clone keys to another token.
    pub(crate) fn clone_to(&self, other: &mut Self) {
        for (id, key) in &self.view.keys {
            let clone = || Key { secret: key.born, enabled: true, present: true, ..key.clone() };
            other.view.keys.entry(id.clone()).or_insert_with(clone);
        }
    }
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part)).finalize().into()
}

pub(super) fn error(verdict: Verdict, operation: &'static str, what: &str) -> TokenError {
    TokenError::new(verdict, operation, what, "this token is simulated")
}

fn usable<'a>(view: &'a View, handle: &KekHandle, operation: &'static str) -> Result<&'a Key, TokenError> {
    if !view.pin_good {
        return Err(error(Verdict::Denied, operation, "CKR_PIN_INCORRECT"));
    }
    let key = view.keys.get(&handle.id).filter(|key| key.present);
    key.ok_or_else(|| error(Verdict::Denied, operation, "the token is there and has no such KEK"))
}

fn pad(key: &Key, nonce: &[u8]) -> [u8; 32] {
    hash(&[&key.secret, nonce, b"pad"])
}

fn tag(key: &Key, nonce: &[u8], aek: &[u8; 32], binding: &Binding) -> [u8; 32] {
    hash(&[&key.secret, nonce, aek, binding])
}

fn xor(one: &[u8; 32], other: &[u8; 32]) -> [u8; 32] {
    std::array::from_fn(|n| one[n] ^ other[n])
}

fn wrap(view: &View, nonce: &[u8], handle: &KekHandle, aek: &[u8; 32], to: &Binding) -> Result<Wrapped, TokenError> {
    let key = usable(view, handle, "wrap")?;
    let bytes = [xor(aek, &pad(key, nonce)), tag(key, nonce, aek, to)].concat();
    Ok(Wrapped { iv: nonce.to_vec(), bytes })
}

fn unwrap(view: &View, handle: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<[u8; 32], TokenError> {
    let key = usable(view, handle, "unwrap")?;
    if !key.enabled {
        return Err(error(Verdict::Denied, "unwrap", "CKR_KEY_FUNCTION_NOT_PERMITTED"));
    }
    let (sealed, claimed) = wrapped.bytes.split_at(32);
    let aek = xor(sealed.try_into().unwrap(), &pad(key, &wrapped.iv));
    if tag(key, &wrapped.iv, &aek, binding) != claimed {
        return Err(error(Verdict::BadRecord, "unwrap", "CKR_ENCRYPTED_DATA_INVALID"));
    }
    Ok(aek)
}

/// How a process's connection stands.
struct Line {
    /// What its context saw as it was initialised.
    context: View,
    /// When that was, in the world's time and in the host's.
    began: Instant,
    began_here: Instant,
    /// Keys that gave something back on this connection: a record that they refuse then says that they were replaced.
    worked: BTreeSet<KekId>,
}

/// A process's connection to one token.
pub(crate) struct Connection {
    host: usize,
    pub(crate) process: usize,
    pub(crate) hsm: usize,
    pub(crate) shared: Shared,
    /// The host's.
    clock: Clock,
    /// The world's, which no host's suspend stops.
    real: ManualClock,
    call_timeout: Duration,
    room: Arc<Room>,
    line: Arc<Mutex<Line>>,
}

/// What a call found, as it was begun.
struct Found<T> {
    answer: Result<T, TokenError>,
    takes: Duration,
    hangs: bool,
}

impl Connection {
    pub(crate) fn new(
        shared: &Shared,
        (host, process): (usize, usize),
        hsm: usize,
        (clock, real): (Clock, ManualClock),
        call_timeout: Duration,
    ) -> Arc<Self> {
        let (context, workers) = {
            let stage = lock(shared);
            (stage.hsms[hsm].view.clone(), stage.hsms[hsm].workers)
        };
        let room = Room::new(workers, call_timeout, real.clone());
        let (began, began_here) = (real.now(), clock.now());
        let line = Line { context, began, began_here, worked: BTreeSet::new() };
        Arc::new(Self {
            host,
            process,
            hsm,
            shared: shared.clone(),
            clock,
            real,
            call_timeout,
            room,
            line: Arc::new(Mutex::new(line)),
        })
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stands in line for a worker and waits for its answer. Whatever becomes of the caller, the call goes on.
    async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        lane: Lane,
        operation: &'static str,
        serve: impl FnOnce(&Self, &mut Stage) -> Found<T> + Send + 'static,
    ) -> Result<T, TokenError> {
        gate(&self.shared, self.process).await;
        let (answer, waiting) = oneshot::channel();
        tokio::spawn(self.clone().job(lane, operation, serve, answer));
        let answer = waiting.await;
        gate(&self.shared, self.process).await;
        let is_silence = |trouble: &TokenError| matches!(trouble.verdict, Verdict::Unreachable | Verdict::Fatal);
        if self.hsm == FIRST && !matches!(&answer, Ok(answer) if !answer.as_ref().is_err_and(is_silence)) {
            lock(&self.shared).oracle.silent(self.process);
        }
        answer.unwrap_or_else(|_| Err(error(Verdict::Unreachable, operation, "the worker is gone")))
    }

    /// What a worker does. The time that a call may take runs from when it has one.
    async fn job<T>(
        self: Arc<Self>,
        lane: Lane,
        operation: &'static str,
        serve: impl FnOnce(&Self, &mut Stage) -> Found<T>,
        answer: oneshot::Sender<Result<T, TokenError>>,
    ) {
        let mut inside = match self.room.enter(lane, operation).await {
            Ok(inside) => inside,
            Err(trouble) => {
                let _ = answer.send(Err(trouble));
                return;
            }
        };
        let (found, released) = {
            let mut stage = lock(&self.shared);
            let found = serve(&self, &mut stage);
            (found, stage.hsms[self.hsm].released.clone())
        };
        let end = self.real.now().plus(self.call_timeout);
        let real = Clock::Manual(self.real.clone());
        let module = async {
            if found.hangs {
                released.notified().await;
            } else if !found.takes.is_zero() {
                real.sleep_until(real.now().plus(found.takes)).await;
            }
        };
        tokio::pin!(module);
        if real.until(end, &mut module).await.is_some() {
            inside.answered();
            drop(inside);
            let _ = answer.send(found.answer);
            return;
        }
        inside.hangs();
        let _ = answer.send(Err(error(Verdict::Unreachable, operation, "it hangs in the module")));
        module.await;
    }

    /// Lets a token be asked that is there; what it says is for `serve`.
    fn reach<T>(
        &self,
        stage: &mut Stage,
        operation: &'static str,
        serve: impl FnOnce(&View) -> Result<T, TokenError>,
    ) -> Found<T> {
        let hsm = &stage.hsms[self.hsm];
        let (takes, away, hides) = (hsm.latency, hsm.is_away(self.host), hsm.hides);
        let answer = match (away, hides) {
            (true, _) => Err(error(Verdict::Unreachable, operation, "CKR_DEVICE_REMOVED")),
            (false, true) => {
                let mut line = self.line();
                // What was made since is seen.
                for (id, key) in &hsm.view.keys {
                    line.context.keys.entry(id.clone()).or_insert_with(|| key.clone());
                }
                serve(&line.context)
            }
            (false, false) => serve(&hsm.view),
        };
        Found { answer, takes, hangs: false }
    }
}

/// Who gave an AEK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grant {
    /// The token, which grants it.
    True,
    /// A context that remembers a token that did.
    Memory,
    /// Another key in the KEK's place, which wrapped it itself.
    Impostor,
}

/// What an unwrap gave, and what the oracle is to know of it.
struct Given {
    aek: [u8; 32],
    how: Grant,
    /// When its context was initialised.
    context: Instant,
}

/// The seam; the connection behind it is shared with its jobs.
pub(crate) struct Seam(pub(crate) Arc<Connection>);

impl Seam {
    async fn ask(&self, lane: Lane, kek: &KekHandle, wrapped: &Wrapped, to: &Binding) -> Result<Aek, TokenError> {
        let line = &self.0;
        gate(&line.shared, line.process).await;
        let call = {
            let mut stage = lock(&line.shared);
            stage.unwrap_begins(line.process, line.hsm, &kek.id, &wrapped.bytes)
        };
        let (handle, wrapped, binding) = (kek.clone(), wrapped.clone(), *to);
        let serve = move |line: &Connection, stage: &mut Stage| {
            let fault = stage.hsms[line.hsm].faults.pop_front();
            if let Some(fault) = fault {
                stage.fault_strikes(line.process, fault, line.call_timeout);
            }
            let hsm = &stage.hsms[line.hsm];
            let truly = hsm.grants(&handle.id);
            let remembers = hsm.hides && line.line().context.keys.get(&handle.id).is_none_or(Key::is_true);
            let how = if truly {
                Grant::True
            } else if remembers {
                Grant::Memory
            } else {
                Grant::Impostor
            };
            let mut found = line.reach(stage, "unwrap", |view| unwrap(view, &handle, &wrapped, &binding));
            match fault {
                Some(Fault::Hang) => found.hangs = true,
                Some(Fault::Slow(time)) => found.takes = time,
                Some(Fault::Fails) => found.answer = Err(error(Verdict::Unreachable, "unwrap", "CKR_DEVICE_ERROR")),
                None => {}
            }
            let mut own = line.line();
            if found.answer.is_ok() {
                own.worked.insert(handle.id.clone());
            }
            let was_good = own.worked.contains(&handle.id);
            let answer = found.answer.map(|aek| Given { aek, how, context: own.began });
            let answer = answer.map_err(|trouble| match trouble.verdict {
                Verdict::BadRecord if was_good && !truly => TokenError { verdict: Verdict::Replaced, ..trouble },
                _ => trouble,
            });
            Found { answer, takes: found.takes, hangs: found.hangs }
        };
        let outcome = line.call(lane, "unwrap", serve).await;
        {
            let mut stage = lock(&line.shared);
            let told = outcome.as_ref().map(|given| (given.how, given.context));
            stage.unwrap_ends(call, told);
        }
        Aek::copy_from(&outcome?.aek).map_err(|failed| error(Verdict::Fatal, "unwrap", &failed.to_string()))
    }
}

#[async_trait]
impl Token for Seam {
    async fn unwrap(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.ask(Lane::Other, kek, wrapped, binding).await
    }

    async fn prove(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.ask(Lane::Proof, kek, wrapped, binding).await
    }

    async fn wrap(&self, kek: &KekHandle, aek: &Aek, binding: &Binding) -> Result<Wrapped, TokenError> {
        let (handle, aek, binding) = (kek.clone(), *aek.expose(), *binding);
        let serve = move |line: &Connection, stage: &mut Stage| {
            let drawn = stage.hsms[line.hsm].draw("nonce");
            let found = line.reach(stage, "wrap", |view| wrap(view, &drawn[..NONCE_BYTES], &handle, &aek, &binding));
            let hsm = &stage.hsms[line.hsm];
            let is_true = match hsm.hides {
                true => line.line().context.keys.get(&handle.id).is_none_or(Key::is_true),
                false => hsm.key(&handle.id).is_some_and(Key::is_true),
            };
            if let Some(wrapped) = found.answer.as_ref().ok().filter(|_| !is_true) {
                let now = stage.now();
                stage.oracle.false_wrap(&handle.id, &wrapped.bytes, now);
            }
            found
        };
        self.0.call(Lane::Other, "wrap", serve).await
    }

    async fn info(&self) -> Result<TokenInfo, TokenError> {
        let serve = |line: &Connection, stage: &mut Stage| {
            line.reach(stage, "token info", |_| {
                Ok(TokenInfo {
                    module: "simulated (no PKCS#11)".into(),
                    slot: 0,
                    label: "simulated".into(),
                    serial: line.hsm.to_string(),
                    model: "keyleash simulated token".into(),
                    mechanisms: Vec::new(),
                })
            })
        };
        self.0.call(Lane::Other, "token info", serve).await
    }

    async fn probe(&self, _: Profile) -> Result<Probe, TokenError> {
        let serve = |line: &Connection, stage: &mut Stage| {
            line.reach(stage, "probe", |_| Ok(Probe { wrap: Duration::ZERO, unwrap: Duration::ZERO }))
        };
        self.0.call(Lane::Other, "probe", serve).await
    }

    async fn create_kek(&self, spec: &KekSpec) -> Result<KekInfo, TokenError> {
        let spec = spec.clone();
        let serve = move |line: &Connection, stage: &mut Stage| {
            let hsm = &mut stage.hsms[line.hsm];
            let (id, secret) = (KekId::new(hsm.draw("CKA_ID")[..16].to_vec()).unwrap(), hsm.draw("KEK"));
            let (label, profile) = (spec.label.clone(), spec.profile);
            let key = Key { secret, born: secret, label, profile, enabled: true, present: true };
            let made = info(&id, &key);
            let mut found = line.reach(stage, "create KEK", |view| if view.pin_good { Ok(made) } else { refused() });
            if found.answer.is_ok() {
                stage.hsms[line.hsm].view.keys.insert(id, key);
                stage.kek_made();
            }
            found.hangs = false;
            found
        };
        self.0.call(Lane::Other, "create KEK", serve).await
    }

    async fn find_kek(&self, id: &KekId) -> Result<Option<KekInfo>, TokenError> {
        let id = id.clone();
        let serve = move |line: &Connection, stage: &mut Stage| {
            line.reach(stage, "find KEK", |view| {
                let found = view.keys.get(&id).filter(|key| key.present).map(|key| info(&id, key));
                if view.pin_good { Ok(found) } else { refused() }
            })
        };
        self.0.call(Lane::Other, "find KEK", serve).await
    }

    async fn list_keks(&self) -> Result<Vec<KekInfo>, TokenError> {
        let serve = |line: &Connection, stage: &mut Stage| {
            line.reach(stage, "list KEKs", |view| {
                let mut keks: Vec<_> =
                    view.keys.iter().filter(|(_, key)| key.present).map(|(id, key)| info(id, key)).collect();
                keks.sort_by(|one, other| (&one.label, &one.id).cmp(&(&other.label, &other.id)));
                if view.pin_good { Ok(keks) } else { refused() }
            })
        };
        self.0.call(Lane::Other, "list KEKs", serve).await
    }

    async fn renew_context(&self) -> Result<(), TokenError> {
        let line = self.0.clone();
        gate(&line.shared, line.process).await;
        let asked = line.real.now();
        let refuse = |what| {
            let mut stage = lock(&line.shared);
            let now = stage.now();
            stage.note(|| format!("process {} gets no fresh context: {what}", line.process));
            stage.oracle.renewal_refused(line.process, now);
            Err(error(Verdict::Fatal, "renew context", what))
        };
        let Some(_quiet) = line.room.quiet().await else {
            return refuse("a call hangs in the module, or never leaves it");
        };
        gate(&line.shared, line.process).await;
        if line.line().began > asked {
            return Ok(()); // somebody else's, who was faster
        }
        let mut stage = lock(&line.shared);
        stage.note(|| format!("process {} has a fresh context of token {}", line.process, line.hsm));
        let hsm = &stage.hsms[line.hsm];
        if hsm.is_away(line.host) {
            let now = stage.now();
            if line.hsm == FIRST {
                stage.oracle.silent(line.process);
                stage.oracle.renewal_refused(line.process, now);
            }
            return Err(error(Verdict::Unreachable, "renew context", "CKR_DEVICE_REMOVED"));
        }
        let mut own = line.line();
        (own.context, own.began, own.began_here) = (hsm.view.clone(), line.real.now(), line.clock.now());
        Ok(())
    }

    fn context_began(&self) -> Option<Instant> {
        let is_dated = lock(&self.0.shared).hsms[self.0.hsm].dates;
        is_dated.then(|| self.0.line().began_here)
    }

    fn call_timeout(&self) -> Duration {
        self.0.call_timeout
    }

    fn workers(&self) -> Workers {
        self.0.room.health()
    }
}

fn refused<T>() -> Result<T, TokenError> {
    Err(error(Verdict::Denied, "login", "CKR_PIN_INCORRECT"))
}

fn info(id: &KekId, key: &Key) -> KekInfo {
    KekInfo {
        id: id.clone(),
        label: key.label.clone(),
        profile: Some(key.profile),
        bits: 256,
        destroyable: Some(false),
        modifiable: Some(true),
        enabled: key.enabled,
        refused: None,
        half: None,
        warnings: Vec::new(),
        known_outside: None,
    }
}
