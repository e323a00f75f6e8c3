//! A loaded module: one per library and process, with the gate that re-initialisation stands behind.
//!
//! C_Finalize while another thread is in a call is a crash. So every call happens between [`Module::enter`] and the
//! drop of what it gives, and C_Finalize runs only while nobody is inside and nobody may enter. A call that hangs
//! stays inside: then re-initialisation is refused. Sessions belong to the generation of C_Initialize that they were
//! opened in; they are opened so that dropping one calls nothing, because a stale one would close the new session of
//! the same number.
//!
//! C_Finalize by somebody else in the process is seen only by what it did: by CKR_CRYPTOKI_NOT_INITIALIZED, by a session that is not
//! known any more, by a session's number that is given out twice (`numbers`), by a handle that is another object's (`handles`, `kek`).
//!
//! Two gates before one library would be none. So a library is known again by its file (device and inode, as the loader has it), and, as
//! the loader goes by names too and libraries may share what is in them, by the function list that it gives.
//!
//! Modules are never unloaded: a thread that hangs in one would lose the code it runs on.

use super::fault;
use super::numbers::Numbers;
use super::pauses::{Caller, PAUSE_WAITED_MAX, Pause, Pauses};
use super::raw::{self, Origin, Raw};
use super::threads::THREADS;
use super::verdict::{self, Class};
use crate::clock::{Clock, Instant, SLEEP_SLICE_MAX};
use crate::token::TokenError;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::RvError;
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// How long re-initialisation waits for calls that are under way, or for a moment in which none is.
const GATE_WAIT_MAX: Duration = Duration::from_millis(500);
/// Who waits at the gate, or for another's login, gives up this long before the deadline, so that the worker answers for itself and is not taken for
/// one that hangs in the module.
const GATE_MARGIN: Duration = Duration::from_millis(20);

/// How long the end of the process waits for calls that are under way: about as long as calls may take.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);
const EXIT_LOOK: Duration = Duration::from_millis(5);
/// How long it waits where none but those that hang are inside. One that comes back as the process ends, perhaps because of what ends
/// both, would do so under the exit handlers.
const EXIT_PATIENCE_HUNG: Duration = Duration::from_millis(250);

static MODULES: Mutex<Modules> = Mutex::new(Modules { loaded: Vec::new(), shut: false });

struct Modules {
    loaded: Vec<Arc<Module>>,
    /// The process ends: none is loaded any more.
    shut: bool,
}

/// Of any mutex of this room.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while these are held, and the values are whole after every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for `changed`, at most until `deadline`; false when that has come.
pub(super) fn wait_until<'a, T>(
    changed: &Condvar,
    guard: MutexGuard<'a, T>,
    clock: &Clock,
    deadline: Instant,
) -> (MutexGuard<'a, T>, bool) {
    let left = deadline.since(clock.now());
    if left.is_zero() {
        return (guard, false);
    }
    // The condition variable's clock stands still in suspend: hence slices.
    let (guard, _) = changed.wait_timeout(guard, left.min(SLEEP_SLICE_MAX)).unwrap_or_else(PoisonError::into_inner);
    (guard, true)
}

/// A little before `deadline`: until when to wait for another worker, so that there is time left to say so.
pub(super) fn before(clock: &Clock, deadline: Instant) -> Instant {
    let now = clock.now();
    now.plus(deadline.since(now).saturating_sub(GATE_MARGIN))
}

/// Runs as the process ends, however `main` was left: exit handlers of modules take away what a call under way stands on.
extern "C" fn farewell() {
    let deadline = Clock::Boottime.now().plus(EXIT_PATIENCE);
    // A forked child has the parent's count of calls, and none of the threads that would end them.
    if lock_by(deadline).is_some_and(|modules| modules.loaded.iter().all(|module| module.pid == std::process::id())) {
        Module::shut_all(deadline);
    }
}

/// Has [`farewell`] run before all exit handlers that are registered by now: they run in reverse order.
fn register_farewell() {
    if !raw::before_exit(farewell) {
        tracing::warn!("no exit handler: call `end_of_process` at the end of `main`");
    }
}

/// The modules. The lock is held while one loads, which may hang: that is no reason never to end.
fn lock_by(deadline: Instant) -> Option<MutexGuard<'static, Modules>> {
    loop {
        match MODULES.try_lock() {
            Ok(modules) => return Some(modules),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if Clock::Boottime.now() >= deadline => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(EXIT_LOOK),
        }
    }
}

pub(super) struct Module {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
    origin: Origin,
    pkcs11: Pkcs11,
    raw: Option<Raw>,
    numbers: Arc<Numbers>,
    /// The process that loaded it: a forked child has neither its threads nor the right to its sessions.
    pid: u32,
    clock: Clock,
    gate: Mutex<Gate>,
    changed: Condvar,
    hung: AtomicUsize,
    /// The host uses the module as well, outside the gate: never C_Finalize.
    shared_with_host: AtomicBool,
    initialised_before: AtomicBool,
}

struct Gate {
    /// Counts successful initialisations; sessions and handles of another generation are dead.
    generation: u64,
    initialised: bool,
    /// When the context began, if it did here: before the call that initialised it, so that it shows all that was there by then.
    began: Instant,
    /// C_Initialize was ours: else another part of the process owns the context, and may be in a call.
    ours: bool,
    /// Calls that are inside.
    inside: usize,
    /// Those who look for a moment in which nobody is.
    seekers: usize,
    /// Somebody initialises or finalizes: nobody enters.
    closed: bool,
    /// The process ends: nobody enters any more.
    shut: bool,
    /// Initialisations in a row that brought no working token.
    pause: Pause,
    last_refusal: Option<RvError>,
}

/// The right to call the module, until it is dropped.
pub(super) struct Inside<'a> {
    module: &'a Module,
    pub(super) generation: u64,
}

impl Inside<'_> {
    pub(super) fn pkcs11(&self) -> &Pkcs11 {
        &self.module.pkcs11
    }

    pub(super) fn raw(&self) -> Option<&Raw> {
        self.module.raw.as_ref()
    }

    pub(super) fn numbers(&self) -> &Arc<Numbers> {
        &self.module.numbers
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let awaited = {
            let mut gate = lock(&self.module.gate);
            gate.inside -= 1;
            gate.awaited()
        };
        // A system call, which nobody needs after most calls.
        if awaited {
            self.module.changed.notify_all();
        }
    }
}

impl Gate {
    /// True when somebody may wait for those inside to leave.
    fn awaited(&self) -> bool {
        self.closed || self.shut || self.seekers > 0
    }
}

impl Module {
    /// Loads the module, or gives the one that this process loaded before where it is the same library. May block: not for
    /// tokio's threads.
    pub(super) fn load(path: &Path) -> Result<Arc<Self>, TokenError> {
        let refused = |what: String, remedy: &str| {
            fault::misconfigured("load module", format!("module {}: {what}", path.display()), remedy)
        };
        let file = path.canonicalize().and_then(|path| Ok((path.metadata()?, path)));
        let (metadata, canonical) = file.map_err(|error| {
            refused(error.to_string(), "name the PKCS#11 library of the token, and see that it may be read")
        })?;
        let file = (metadata.dev(), metadata.ino());
        let mut modules = lock(&MODULES);
        if modules.shut {
            return Err(fault::fatal("load module", "the process is ending"));
        }
        let known = |modules: &Modules, is: &dyn Fn(&Self) -> bool| {
            let known = modules.loaded.iter().find(|module| is(module))?;
            Some(known.check_pid("load module").map(|()| known.clone()))
        };
        if let Some(known) = known(&modules, &|module| module.path == canonical || module.file == file) {
            return known;
        }
        let no_module = |error| {
            refused(
                format!("is no PKCS#11 module: {error}"),
                "name the PKCS#11 library of the token (SoftHSM: libsofthsm2.so), built for this machine",
            )
        };
        let pkcs11 = Pkcs11::new(&canonical).map_err(no_module)?;
        let (raw, origin) = Raw::load(&canonical).map_err(no_module)?;
        // Nothing of it was called but C_GetFunctionList.
        if let Some(known) = known(&modules, &|module| module.origin.is(origin)) {
            return known;
        }
        let module = Arc::new(Self {
            path: canonical,
            file,
            origin,
            pkcs11,
            raw,
            numbers: Arc::default(),
            pid: std::process::id(),
            clock: Clock::Boottime,
            gate: Mutex::new(Gate {
                generation: 0,
                initialised: false,
                began: Instant::default(),
                ours: false,
                inside: 0,
                seekers: 0,
                closed: false,
                shut: false,
                pause: Pause::default(),
                last_refusal: None,
            }),
            changed: Condvar::new(),
            hung: AtomicUsize::new(0),
            shared_with_host: AtomicBool::new(false),
            initialised_before: AtomicBool::new(false),
        });
        modules.loaded.push(module.clone());
        // Anew with each module, to run before the handlers that it brought.
        register_farewell();
        Ok(module)
    }

    /// The host uses the module too: from now on, nobody in this process has keyleash finalize it.
    pub(super) fn never_finalize(&self) {
        self.shared_with_host.store(true, Ordering::SeqCst);
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets nobody load or enter any module again, and waits until all have left but those that hang; false when anybody, of
    /// those that hang too, is still inside or about to be by `deadline`.
    pub(super) fn shut_all(deadline: Instant) -> bool {
        let modules = {
            let Some(mut modules) = lock_by(deadline) else { return false };
            modules.shut = true;
            modules.loaded.clone()
        };
        modules.iter().for_each(|module| lock(&module.gate).shut = true);
        // Of all, lest one that hangs leaves the others without their time.
        let empty = modules.iter().filter(|module| module.is_empty_by(deadline)).count();
        THREADS.hold(&Clock::Boottime, deadline) && empty == modules.len()
    }

    fn is_empty_by(&self, deadline: Instant) -> bool {
        let soon = deadline.min(self.clock.now().plus(EXIT_PATIENCE_HUNG));
        let mut gate = lock(&self.gate);
        while gate.inside > 0 || gate.closed {
            let hang = !gate.closed && gate.inside <= self.hung.load(Ordering::SeqCst);
            let in_time;
            (gate, in_time) = wait_until(&self.changed, gate, &self.clock, if hang { soon } else { deadline });
            if !in_time {
                return false;
            }
        }
        true
    }

    /// Fails in a forked child.
    pub(super) fn check_pid(&self, operation: &'static str) -> Result<(), TokenError> {
        if self.pid == std::process::id() {
            return Ok(());
        }
        Err(TokenError {
            remedy: "open the token in the process that uses it, after the fork; better, do not fork".into(),
            ..fault::fatal(operation, "this process was forked from the one that opened the token")
        })
    }

    /// Enters, having initialised the module where that is due; waits at most until the caller's deadline.
    pub(super) fn enter(&self, caller: &Caller) -> Result<Inside<'_>, TokenError> {
        let Caller { operation, deadline, .. } = *caller;
        let mut gate = lock(&self.gate);
        loop {
            if gate.shut {
                return Err(fault::unreachable(operation, "the process is ending"));
            } else if gate.closed {
                let in_time;
                (gate, in_time) = self.wait_at_gate(gate, deadline);
                if !in_time {
                    return Err(fault::unreachable(
                        operation,
                        "the module was being re-initialised until the deadline",
                    ));
                }
            } else if gate.initialised {
                gate.inside += 1;
                return Ok(Inside { module: self, generation: gate.generation });
            } else if let end = gate.pause.end(caller)
                && let left = end.since(self.clock.now())
                && !left.is_zero()
            {
                if left > PAUSE_WAITED_MAX || end >= before(&self.clock, deadline) {
                    let code = gate.last_refusal.map_or_else(|| "it failed".into(), verdict::name);
                    return Err(fault::unreachable(operation, format!("C_Initialize: {code} a moment ago")));
                }
                (gate, _) = wait_until(&self.changed, gate, &self.clock, end);
            } else {
                gate = self.initialise(gate, operation)?;
            }
        }
    }

    /// Waits for a change; false when the deadline is too near.
    fn wait_at_gate<'a>(&self, gate: MutexGuard<'a, Gate>, deadline: Instant) -> (MutexGuard<'a, Gate>, bool) {
        wait_until(&self.changed, gate, &self.clock, before(&self.clock, deadline))
    }

    /// C_Initialize, with the gate closed and not locked, so that others can see that they wait.
    fn initialise<'a>(
        &'a self,
        mut gate: MutexGuard<'a, Gate>,
        operation: &'static str,
    ) -> Result<MutexGuard<'a, Gate>, TokenError> {
        gate.closed = true;
        drop(gate);
        let began = self.clock.now();
        let result = self.pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
        let mut gate = lock(&self.gate);
        gate.closed = false;
        self.changed.notify_all();
        match result.map_err(|error| fault::code_of(&error)) {
            Ok(()) => {
                gate.initialised = true;
                gate.began = began;
                gate.ours = true;
                gate.generation += 1;
                self.register_farewell_again();
                Ok(gate)
            }
            Err(RvError::CryptokiAlreadyInitialized) => {
                gate.initialised = true;
                // Another part of the process has it. When that was so before, our sessions are still good.
                if gate.generation == 0 || std::mem::take(&mut gate.ours) {
                    gate.generation += 1;
                }
                self.register_farewell_again();
                Ok(gate)
            }
            Err(code) => {
                gate.last_refusal = Some(code);
                gate.pause.back_off(began, self.clock.now());
                let what = format!("C_Initialize: {}", verdict::name(code));
                Err(match verdict::class(code) {
                    Class::Fatal => fault::fatal(operation, what),
                    _ => fault::unreachable(operation, what),
                })
            }
        }
    }

    /// Modules register exit handlers, their libraries' too (OpenSSL), when they are first initialised.
    fn register_farewell_again(&self) {
        if !self.initialised_before.swap(true, Ordering::SeqCst) {
            register_farewell();
        }
    }

    /// Notes that a token works: its next trouble is met without a pause.
    pub(super) fn works(&self, token: &Pauses) {
        token.end();
        let mut gate = lock(&self.gate);
        if gate.pause.vain > 0 {
            gate.pause = Pause::default();
        }
    }

    /// C_Finalize and C_Initialize, because there is trouble with `token`. The caller is not inside. `seen` is the generation in which the
    /// trouble was met: when another is on already, somebody else did it. `ended`: the module says that it is not initialised, so that
    /// there is nothing of anybody's to end.
    ///
    /// # Errors
    /// In words, why not now: a call hangs, calls do not end, it was done a moment ago, or the context is not ours.
    pub(super) fn reinitialise(&self, token: &Pauses, seen: u64, ended: bool, caller: &Caller) -> Result<(), String> {
        let deadline = caller.deadline;
        let mut gate = lock(&self.gate);
        loop {
            if gate.generation != seen || !gate.initialised {
                return Ok(());
            }
            let not_before = gate.pause.end(caller).max(token.end_for(caller));
            if gate.closed {
                let in_time;
                (gate, in_time) = self.wait_at_gate(gate, deadline);
                if !in_time {
                    return Err("it is under way".into());
                }
            } else if not_before.since(self.clock.now()) > PAUSE_WAITED_MAX {
                return Err("it was done a moment ago".into());
            } else if self.clock.now() < not_before {
                (gate, _) = wait_until(&self.changed, gate, &self.clock, not_before);
            } else {
                break;
            }
        }
        if !self.may_finalize(&gate) {
            // Should its owner have finalized it, the next to enter initialises it; else that changes nothing.
            gate.initialised = false;
            let now = self.clock.now();
            gate.pause.back_off(now, now);
            gate.pause.not_before = Instant::default();
            if ended {
                // Should its owner begin another one at once, no session of ours is of that.
                gate.generation += 1;
                return Ok(());
            }
            return Err("left to the part of this process that shares the module and owns its context".into());
        }
        token.back_off(self.clock.now());
        self.restart(gate, deadline.min(self.clock.now().plus(GATE_WAIT_MAX))).map_err(|error| error.what)
    }

    /// C_Finalize and C_Initialize, so that what comes next does not see through an old context. The caller is not inside.
    /// Nothing to do where the context is not keyleash's to end, or began since the caller asked.
    ///
    /// # Errors
    /// Unreachable when C_Initialize fails or does not end; fatal when calls hang or do not end, or C_Finalize fails.
    pub(super) fn renew(&self, caller: &Caller) -> Result<(), TokenError> {
        let Caller { operation, deadline, proof } = *caller;
        let mut gate = lock(&self.gate);
        let now = loop {
            let (now, end) = (self.clock.now(), gate.pause.end(caller));
            let in_time;
            if gate.closed {
                (gate, in_time) = self.wait_at_gate(gate, deadline);
                if !in_time {
                    return Err(fault::unreachable(
                        operation,
                        "the module was being re-initialised until the deadline",
                    ));
                }
            } else if !gate.initialised || proof.is_some_and(|asked| gate.began >= asked) {
                return Ok(());
            } else if !self.may_finalize(&gate) {
                tracing::debug!(module = %self.path.display(), "no fresh context: the module is shared with the host");
                return Ok(());
            } else if now >= end {
                break now;
            } else if end.since(now) > PAUSE_WAITED_MAX || end >= before(&self.clock, deadline) {
                return Ok(());
            } else {
                (gate, _) = wait_until(&self.changed, gate, &self.clock, end);
            }
        };
        // Most of the time is for the proof that comes next.
        let patience = GATE_WAIT_MAX.min(deadline.since(now) / 4);
        self.restart(gate, now.plus(patience)).map_err(|error| TokenError { operation, ..error })
    }

    /// As [`Module::renew`], but keeps nobody out who would enter meanwhile: only in a moment in which nobody is inside, which is looked for
    /// with the gate open. Where none comes, a call hangs, or the new context fails, the caller goes on as it can.
    pub(super) fn renew_between_calls(&self, caller: &Caller, asked: Instant) {
        let now = self.clock.now();
        let looked_until = now.plus(GATE_WAIT_MAX.min(caller.deadline.since(now) / 4));
        let mut gate = lock(&self.gate);
        gate.seekers += 1;
        let is_quiet = loop {
            let is_needed = gate.initialised && gate.began < asked && self.may_finalize(&gate);
            if gate.shut || !gate.closed && !is_needed || self.hung.load(Ordering::SeqCst) > 0 {
                break false;
            }
            let (now, end) = (self.clock.now(), gate.pause.end(caller));
            if !gate.closed && gate.inside == 0 && now >= end {
                break true;
            }
            let next = if now < end { end.min(looked_until) } else { looked_until };
            (gate, _) = wait_until(&self.changed, gate, &self.clock, next);
            if self.clock.now() >= looked_until {
                break false;
            }
        };
        gate.seekers -= 1;
        if is_quiet && let Err(error) = self.restart(gate, self.clock.now()) {
            tracing::debug!(%error, "no fresh context");
        }
    }

    /// When the context began that a call from now on is made in, or that before it; `None` where it is not keyleash's to end.
    pub(super) fn context_began(&self) -> Option<Instant> {
        let gate = lock(&self.gate);
        if !gate.initialised && !gate.closed {
            return Some(self.clock.now()); // the next to enter begins it
        }
        self.may_finalize(&gate).then_some(gate.began)
    }

    fn may_finalize(&self, gate: &Gate) -> bool {
        gate.ours && !self.shared_with_host.load(Ordering::SeqCst)
    }

    /// Closes the gate, waits until nobody is inside, finalizes and initialises.
    fn restart(&self, mut gate: MutexGuard<'_, Gate>, wait_end: Instant) -> Result<(), TokenError> {
        let refuse = |what: String| {
            let remedy = "nothing, if it was once; else look for calls that hang, and restart the process".into();
            Err(TokenError { remedy, ..fault::fatal("re-initialise", what) })
        };
        if gate.shut {
            return refuse("refused while the process ends".into());
        }
        let hung = self.hung.load(Ordering::SeqCst);
        if hung > 0 {
            return refuse(format!("refused while {hung} call(s) hang in the module"));
        }
        gate.closed = true;
        while gate.inside > 0 {
            let in_time;
            (gate, in_time) = wait_until(&self.changed, gate, &self.clock, wait_end);
            if !in_time {
                let inside = gate.inside;
                gate.closed = false;
                self.changed.notify_all();
                return refuse(format!("refused while {inside} call(s) are in the module"));
            }
        }
        drop(gate);
        // Nobody is inside and nobody enters while the gate is closed.
        let finalized = self.pkcs11.clone().finalize();
        let mut gate = lock(&self.gate);
        gate.closed = false;
        if let Err(code) = finalized.as_ref().map_err(fault::code_of)
            && code != RvError::CryptokiNotInitialized
        {
            // The context goes on, as old as it is, and is ours: C_Initialize would answer as it does for somebody else's.
            self.changed.notify_all();
            return refuse(format!("C_Finalize: {}", verdict::name(code)));
        }
        gate.initialised = false;
        // Nothing pauses the C_Initialize that follows, but the next round of both.
        let now = self.clock.now();
        gate.pause.back_off(now, now);
        let pause = gate.pause;
        gate.pause.not_before = Instant::default();
        let mut gate = self.initialise(gate, "re-initialise")?;
        gate.pause = pause;
        tracing::info!(module = %self.path.display(), generation = gate.generation, ?finalized, "module re-initialised");
        Ok(())
    }

    /// A worker's call began to hang (`true`) or came back.
    pub(super) fn note_hung(&self, hangs: bool) {
        if hangs {
            self.hung.fetch_add(1, Ordering::SeqCst);
        } else {
            self.hung.fetch_sub(1, Ordering::SeqCst);
        }
    }
}
