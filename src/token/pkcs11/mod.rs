//! A token behind a PKCS#11 module: the only code that names cryptoki.
//!
//! [`Pkcs11Token`] gives each call to a worker thread (`workers`), which makes it on its own session (`connect`, `login`, `session`,
//! `wrap`, `kek`) inside the module's gate (`module`), and turns what comes back into a verdict (`verdict`).

mod attributes;
mod connect;
mod dates;
mod fault;
mod handles;
pub(in crate::token) mod kek;
mod login;
mod module;
mod numbers;
pub mod operator;
mod pauses;
mod pin;
mod probe;
mod raw;
mod refusals;
mod select;
mod session;
mod sign;
mod threads;
mod told;
mod verdict;
mod workers;
mod wrap;

pub use pin::{PinCallback, PinSource};
pub use refusals::{REFUSAL_NOTES_BYTES_MAX, RefusalNotes};
pub use select::Selector;

use super::{
    Binding, KekHandle, KekId, KekInfo, KekSpec, Probe, Profile, SigningKey, Token, TokenError, TokenInfo,
    UnaddressableKey, Verdict, Workers, Wrapped,
};
use crate::{
    clock::{Clock, Instant},
    secret::Aek,
    token::line::Lane,
};
use async_trait::async_trait;
use attributes::Attributes;
use dates::today;
use fault::at;
use module::Module;
use pauses::Caller;
use pin::Pins;
use refusals::Refusals;
use session::{About, Context, Shared, Worker};
use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};
use threads::THREADS;
use workers::Pool;

/// How a token is reached. Construct with [`Pkcs11Settings::new`] and change what differs from the defaults.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Pkcs11Settings {
    /// The PKCS#11 library.
    pub module: PathBuf,
    /// Which of the module's tokens.
    pub token: Selector,
    /// Where the user PIN comes from.
    pub pin: PinSource,
    /// Worker threads, each with a session of its own: 1 to 30, default 3. Of several, one is kept for proofs, so that these wait
    /// for no other work; a single one does all, proofs first. SoftHSM and YubiHSM are best at 2 or 3, big network HSMs at more. The
    /// session of a single worker is all that keeps the login: after each call that failed it logs in again.
    pub workers: usize,
    /// How many workers may hang in the module, abandoned and replaced, before hanging ones are missed: 0 to 64, default 8. While half
    /// of them hang in calls that are neither unwraps nor proofs, no other such call is made.
    pub hung_max: usize,
    /// How long any call may take once a worker has it, from 100 ms to 60 s, default 5 s. Making an RSA key may take
    /// [`KEYGEN_TIMEOUT`]. For how long it may wait for a worker, [`Token`] says.
    pub call_timeout: Duration,
    /// Whether keyleash may end the module's context and begin another. Default [`FreshContext::Reinitialise`].
    pub fresh: FreshContext,
    /// Where word is kept of PINs that the token refused, so that a next process does not send one again and locks the token.
    /// Default `None`: a process that is started anew tries its PIN once.
    pub refusal_notes: Option<Arc<dyn RefusalNotes>>,
}

/// Whether keyleash may end the module's context (C_Finalize) and begin another (C_Initialize): for the fresh proofs that some
/// modules need ([`Token::renew_context`]), and to get back a token that went away.
///
/// A context is the whole process's: ending it ends the sessions and logins of everybody who uses the module there, and is a crash
/// while another thread is in a call. keyleash's own calls wait at a gate; of others it knows nothing. It never ends a context that it
/// found initialised (CKR_CRYPTOKI_ALREADY_INITIALIZED), whatever is chosen here.
///
/// When somebody else ends the context between two calls, keyleash initialises the module where that is due and logs in again, once for
/// each worker at most, whatever is chosen here; under a call it is a crash. The manual says what that costs and what it cannot
/// mend: [modules](crate::manual::modules#others-that-use-the-module-in-the-process).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FreshContext {
    /// It may: nobody else in this process uses the module.
    #[default]
    Reinitialise,
    /// It never does, and no other [`Pkcs11Token`] on the module in this process does from then on: the program uses the
    /// module itself. Then it is the program that must re-initialise the module after an outage and, for modules that hide
    /// changes from an open context (tpm2-pkcs11, nShield by default; on any module, a changed PIN), now and then without one:
    /// until it does, a revocation of that kind is not noticed.
    Never,
}

/// How long [`Token::create_kek`] and [`Token::probe`] may take where they make an RSA key, when `call_timeout` is shorter.
pub const KEYGEN_TIMEOUT: Duration = Duration::from_secs(60);

impl Pkcs11Settings {
    /// The defaults for this module, token and PIN.
    pub fn new(module: impl Into<PathBuf>, token: Selector, pin: PinSource) -> Self {
        let (call_timeout, fresh) = (Duration::from_secs(5), FreshContext::default());
        Self { module: module.into(), token, pin, workers: 3, hung_max: 8, call_timeout, fresh, refusal_notes: None }
    }

    fn check(&self) -> Result<(), TokenError> {
        let refuse = |what: &str, remedy: &str| Err(fault::misconfigured("check settings", what, remedy));
        if !(1..=30).contains(&self.workers) {
            return refuse(&format!("{} workers", self.workers), "set 1 to 30 workers; 3 suit most tokens");
        }
        if self.hung_max > 64 {
            return refuse(&format!("hung_max is {}", self.hung_max), "set 0 to 64; 8 suit most tokens");
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&self.call_timeout) {
            return refuse(
                &format!("call_timeout is {:?}", self.call_timeout),
                "set 100 ms to 60 s; 5 s suit most tokens",
            );
        }
        Ok(())
    }
}

/// A token behind a PKCS#11 module. Dropping it closes its sessions; the module stays loaded.
///
/// Two of them may stand on one module, and on one token: they share the module's state, never its sessions.
pub struct Pkcs11Token {
    shared: Arc<Shared>,
    pool: Pool<Worker>,
    call_timeout: Duration,
}

impl std::fmt::Debug for Pkcs11Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pkcs11Token({} in {})", self.shared.selector, self.shared.module.path().display())
    }
}

impl Pkcs11Token {
    /// Loads the module, starts the workers and logs in once.
    ///
    /// A token that is unreachable now, because it is not listed or does not answer, is no error: a service must be able to start
    /// during an outage. Its calls say so.
    ///
    /// # Errors
    /// [`Verdict::Misconfigured`]: settings out of bounds, no PIN to be had, several tokens that match, a module that is not there or
    /// is none. [`Verdict::Denied`]: the token refuses the PIN, which is not tried again. [`Verdict::Fatal`]: the module does not load
    /// in `call_timeout`, or the process is ending.
    pub async fn open(settings: Pkcs11Settings) -> Result<Self, TokenError> {
        settings.check()?;
        let Pkcs11Settings { module: path, token, pin, workers, hung_max, call_timeout, fresh, refusal_notes } =
            settings;
        // dlopen runs the module's own code, and files may be on dead servers.
        let loaded = off_runtime("load module", call_timeout, move || {
            drop(pin.read()?);
            Ok((Module::load(&path)?, Pins::new(pin)))
        });
        let (module, pins) = loaded.await?;
        if fresh == FreshContext::Never {
            module.never_finalize();
        }
        let shared = Arc::new(Shared::new(module.clone(), token, pins, Refusals::new(refusal_notes)));
        let seats = shared.clone();
        let pool = Pool::start(workers, hung_max, call_timeout, module, Box::new(move || Worker::new(seats.clone())))?;
        let opened = Self { shared, pool, call_timeout };
        match opened.call("open", call_timeout, None, |_| Ok(())).await {
            Err(error) if error.verdict != Verdict::Unreachable => Err(error),
            Err(error) => {
                tracing::warn!(%error, remedy = error.remedy, "starting while the token is unreachable");
                Ok(opened)
            }
            Ok(()) => {
                opened.shared.pins.note_at_work();
                Ok(opened)
            }
        }
    }

    /// Lets a PIN that the token refused be tried once more, when an operator has mended the token rather than the PIN. (Another
    /// PIN from the source is tried without this.)
    pub fn reload_pin(&self) {
        self.shared.pins.forget_refusal();
        self.shared.refusals.forget();
    }

    /// What the module lists, in words, where the selected token is not among it and others are: as of the last time that it was
    /// looked for. For a service that is an outage like any other, for the token may come back; a command, which has no later, takes
    /// it for a name that is wrong.
    pub fn lists_instead(&self) -> Option<String> {
        module::lock(&self.shared.lists_instead).clone()
    }

    /// A call that gives the token no record.
    async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        timeout: Duration,
        kek: Option<KekHandle>,
        op: impl Fn(&Context<'_>) -> Result<T, fault::Fault> + Send + 'static,
    ) -> Result<T, TokenError> {
        let asked = Clock::Boottime.now();
        let call = move |worker: &mut Worker, deadline| {
            let lane = Lane::Other;
            worker.call(About { operation, kek: kek.as_ref(), unwraps: false, lane, asked }, deadline, op)
        };
        self.pool.call(operation, Lane::Other, timeout, call).await
    }

    async fn unwrap_in(
        &self,
        lane: Lane,
        kek: &KekHandle,
        wrapped: &Wrapped,
        binding: &Binding,
    ) -> Result<Aek, TokenError> {
        let (kek, wrapped, binding) = (kek.clone(), wrapped.clone(), *binding);
        let asked = Clock::Boottime.now();
        let call = move |worker: &mut Worker, deadline| {
            let about = About { operation: "unwrap", kek: Some(&kek), unwraps: true, lane, asked };
            worker.call(about, deadline, |context| context.unwrap(&kek, &wrapped, &binding))
        };
        self.pool.call("unwrap", lane, self.call_timeout, call).await
    }

    fn keygen_timeout(&self, profile: Profile) -> Duration {
        match profile {
            Profile::RsaOaepSha256 => self.call_timeout.max(KEYGEN_TIMEOUT),
            Profile::AesGcm | Profile::AesKw => self.call_timeout,
        }
    }
}

/// Ends all use of PKCS#11 in this process, for the last lines of `main`: no module is loaded and no call enters one again, and
/// those that are inside are waited for, at most for `timeout`, and where all of them hang for a quarter of a second. May block.
/// False when any are still inside, hanging ones too: then [`exit_at_once`] is the way to end.
///
/// Modules have exit handlers that take away what a call under way stands on (measured: SoftHSM and its OpenSSL crash), so a
/// process that is told to end while the token is working would end with a segmentation fault. An exit handler of keyleash does
/// the same, with a patience of 5 s, where this was not called; a `timeout` of one's own and the answer are what this is for.
pub fn end_of_process(timeout: Duration) -> bool {
    Module::shut_all(Clock::Boottime.now().plus(timeout))
}

/// Ends the process with this status and without any exit handler: for when a call is still inside of a module, which would crash
/// under its handlers. No destructor runs, and what is buffered (standard output) is lost unless it was flushed.
pub fn exit_at_once(status: u8) -> ! {
    raw::exit_at_once(status)
}

/// Runs what may block on a thread of its own, which is abandoned when it does not end in time.
async fn off_runtime<T: Send + 'static>(
    operation: &'static str,
    timeout: Duration,
    work: impl FnOnce() -> Result<T, TokenError> + Send + 'static,
) -> Result<T, TokenError> {
    let (sender, answer) = tokio::sync::oneshot::channel();
    // Nobody listens when the caller was dropped.
    let spawned = THREADS.spawn("keyleash-open", move || drop(sender.send(work())));
    spawned.map_err(|error| fault::fatal(operation, format!("no thread: {error}")))?;
    let clock = Clock::Boottime;
    match clock.until(clock.now().plus(timeout), answer).await {
        Some(Ok(result)) => result,
        Some(Err(_)) => Err(fault::fatal(operation, "the thread failed; see the log")),
        None => Err(fault::fatal(operation, format!("it did not end within {timeout:?}"))),
    }
}

/// Two keys under one CKA_ID: which one is meant cannot be known.
fn refuse_twins(keks: &mut [KekInfo]) {
    let mut seen = HashMap::new();
    for kek in &*keks {
        *seen.entry(kek.id.clone()).or_insert(0_usize) += 1;
    }
    for kek in keks.iter_mut().filter(|kek| seen.get(&kek.id).is_some_and(|times| *times > 1)) {
        kek.refused.get_or_insert_with(|| "two keys of the token have its CKA_ID: give one of them another".into());
    }
}

#[async_trait]
impl Token for Pkcs11Token {
    async fn info(&self) -> Result<TokenInfo, TokenError> {
        let path = self.shared.module.path().display().to_string();
        let op = move |context: &Context<'_>| {
            let pkcs11 = context.inside.pkcs11();
            let library = pkcs11.get_library_info().map_err(at("C_GetInfo"))?;
            let token = context.told()?;
            let mechanisms = pkcs11.get_mechanism_list(context.slot).map_err(at("C_GetMechanismList"))?;
            let mut mechanisms: Vec<_> = mechanisms.iter().map(ToString::to_string).collect();
            mechanisms.sort();
            mechanisms.dedup();
            let description = library.library_description().trim();
            Ok(TokenInfo {
                module: format!("{path} ({description} {})", library.library_version()),
                slot: context.slot.id(),
                label: token.label,
                serial: token.serial,
                model: format!("{} {}", token.manufacturer, token.model),
                mechanisms,
            })
        };
        self.call("token info", self.call_timeout, None, op).await
    }

    async fn wrap(&self, kek: &KekHandle, aek: &Aek, binding: &Binding) -> Result<Wrapped, TokenError> {
        let aek = Aek::copy_from(aek.expose()).map_err(|error| fault::fatal("wrap", error.to_string()))?;
        let (handle, binding) = (kek.clone(), *binding);
        let op = move |context: &Context<'_>| context.wrap(&handle, &aek, &binding);
        self.call("wrap", self.call_timeout, Some(kek.clone()), op).await
    }

    async fn unwrap(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.unwrap_in(Lane::Unwrap, kek, wrapped, binding).await
    }

    async fn prove(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.unwrap_in(Lane::Proof, kek, wrapped, binding).await
    }

    async fn probe(&self, profile: Profile) -> Result<Probe, TokenError> {
        let op = move |context: &Context<'_>| {
            // It ends with an unwrap that must fail.
            context.spoil();
            probe::round_trips(context.inside.raw(), context.session, profile)
        };
        self.call("probe", self.keygen_timeout(profile), None, op).await.map_err(|error| probe::explain(profile, error))
    }

    async fn create_kek(&self, spec: &KekSpec) -> Result<KekInfo, TokenError> {
        let wanted = spec.clone();
        let op = move |context: &Context<'_>| {
            context.expect_own_token()?;
            Ok(kek::create(context.session, &wanted)?.info(today())?)
        };
        self.call("create KEK", self.keygen_timeout(spec.profile), None, op).await
    }

    async fn find_kek(&self, id: &KekId) -> Result<Option<KekInfo>, TokenError> {
        let id = id.clone();
        let op = move |context: &Context<'_>| {
            context.expect_own_token()?;
            match kek::find(context.session, &id)? {
                Some(kek) => Ok(Some(kek.attributes.info(today())?)),
                None => context.would_be_found().map(|()| None),
            }
        };
        self.call("find KEK", self.call_timeout, None, op).await
    }

    async fn list_keks(&self) -> Result<Vec<KekInfo>, TokenError> {
        let op = |context: &Context<'_>| {
            let found = context.keys()?;
            let keks = found.into_iter().filter(Attributes::is_addressable).map(|found| found.info(today()));
            let mut keks = keks.collect::<Result<Vec<_>, _>>()?;
            keks.sort_by(|one, other| (&one.label, &one.id).cmp(&(&other.label, &other.id)));
            refuse_twins(&mut keks);
            Ok(keks)
        };
        self.call("list KEKs", self.call_timeout, None, op).await
    }

    async fn create_signing_key(&self, label: &str) -> Result<SigningKey, TokenError> {
        let label = label.to_owned();
        let op = move |context: &Context<'_>| {
            context.expect_own_token()?;
            context.spoil(); // a trial may fail on the way
            sign::create(context.session, &label)
        };
        self.call("make signing key", self.call_timeout.max(KEYGEN_TIMEOUT), None, op).await
    }

    async fn find_signing_key(&self, label: &str) -> Result<Option<SigningKey>, TokenError> {
        let label = label.to_owned();
        let op = move |context: &Context<'_>| {
            context.expect_own_token()?;
            match sign::find(context.session, &label)? {
                Some((_, key)) => Ok(Some(key)),
                None => context.would_be_found().map(|()| None),
            }
        };
        self.call("find signing key", self.call_timeout, None, op).await
    }

    async fn sign(&self, key: &SigningKey, text: &[u8]) -> Result<Vec<u8>, TokenError> {
        let (key, text) = (key.clone(), text.to_vec());
        let op = move |context: &Context<'_>| {
            context.expect_own_token()?;
            sign::sign(context.session, &key, &text)
        };
        self.call("sign", self.call_timeout, None, op).await
    }

    async fn list_unaddressable(&self) -> Result<Vec<UnaddressableKey>, TokenError> {
        let op = |context: &Context<'_>| {
            let found = context.keys()?;
            let keys = found.into_iter().filter(|found| !found.is_addressable()).map(Attributes::unaddressable);
            let mut keys: Vec<_> = keys.collect();
            keys.sort_by(|one, other| one.label.cmp(&other.label));
            Ok(keys)
        };
        self.call("list keys", self.call_timeout, None, op).await
    }

    /// C_Finalize and C_Initialize behind the gate: calls under way end first, for up to 500 ms and a quarter of
    /// `call_timeout`; those that come meanwhile wait, within their own deadlines. So `call_timeout` must have room for a
    /// re-initialisation, a login and an unwrap together.
    ///
    /// Answers `Ok` without it where the context is not keyleash's to end ([`FreshContext`]).
    ///
    /// # Errors
    /// [`Verdict::Unreachable`] when the module cannot be initialised again or does not answer in `call_timeout`;
    /// [`Verdict::Fatal`], with nothing done, while calls hang in the module or do not end.
    async fn renew_context(&self) -> Result<(), TokenError> {
        const OPERATION: &str = "renew context";
        let asked = Clock::Boottime.now();
        let renew = move |worker: &mut Worker, deadline| {
            worker.renew(&Caller { operation: OPERATION, deadline, proof: Some(asked) })
        };
        self.pool.call(OPERATION, Lane::Proof, self.call_timeout, renew).await
    }

    fn context_began(&self) -> Option<Instant> {
        self.shared.module.context_began()
    }

    fn call_timeout(&self) -> Duration {
        self.call_timeout
    }

    fn serial(&self) -> Option<String> {
        module::lock(&self.shared.found).as_ref().and_then(connect::Found::serial)
    }

    fn in_flight(&self) -> usize {
        self.pool.in_flight()
    }

    fn workers(&self) -> Workers {
        self.pool.health()
    }
}
