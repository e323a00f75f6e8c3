//! The PIN: where it comes from, and the rule that a refused one is never tried again.
//!
//! Some modules answer to a wrong PIN with a code that says nothing (CKR_GENERAL_ERROR, CKR_DEVICE_ERROR), and count it. So after
//! any C_Login that failed the same PIN waits, twice as long each time; a call that retries and diagnoses logs in once.
//!
//! Tokens lock themselves after a few wrong PINs. So a refused PIN is remembered (in locked memory) and compared, in
//! constant time, with what the source says before each login: only another PIN, or [`Pins::forget_refusal`], leads
//! to another attempt. So is the one that the token took: what is known of a PIN ([`Standing`]) is known of that one alone. Logins
//! of one token run one after the other, so that two workers cannot both try it. One that is not back when its caller gives up
//! hangs, perhaps for good: it counts as one that failed, and the next has its turn.

use super::fault::{self, Fault};
use super::module::{before, wait_until};
use super::verdict;
use crate::clock::{Clock, Instant};
use crate::secret::Pin;
use crate::token::{TokenError, Verdict};
use cryptoki::error::RvError;
use std::{
    fmt,
    io::Read,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// How long a PIN waits after a C_Login that failed with whatever code; doubles while it fails.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// As long waits a PIN that the token took before and says that it did not count: below the shortest poll interval (1 s − 10 %), so that
/// every poll finds a token that is back.
const PAUSE_UNCOUNTED: Duration = Duration::from_millis(800);
/// A PIN that nothing was tried with for so long has rested.
const REST: Duration = Duration::from_secs(600);
/// As many refused PINs are remembered as a source may flap between.
const REFUSED_MAX: usize = 4;

/// What a [`PinSource::Callback`] is: gives the PIN's bytes, or says in words why it cannot. Called on a worker thread, before
/// each login; what it returns is wiped. A call that never returns costs a worker.
pub type PinCallback = dyn Fn() -> Result<Vec<u8>, String> + Send + Sync;

/// Where the PIN comes from. Never the command line.
#[derive(Clone)]
#[non_exhaustive]
pub enum PinSource {
    /// A regular file with the PIN alone, 1 to 255 bytes; one line end behind it is not part of it. A warning is logged when
    /// others may read it.
    File(PathBuf),
    /// The environment variable of this name, whose value is read as a file's content is. A file is better: the environment is
    /// inherited and shows in /proc.
    Env(String),
    /// A function of the program's own.
    Callback(Arc<PinCallback>),
}

impl fmt::Debug for PinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinSource({self})")
    }
}

impl fmt::Display for PinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "PIN file {}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Callback(_) => f.write_str("PIN callback"),
        }
    }
}

impl PinSource {
    /// Reads the PIN. May block: not for tokio's threads.
    pub(super) fn read(&self) -> Result<Pin, TokenError> {
        let refused = |what: String, remedy: &str| fault::misconfigured("read PIN", format!("{self}: {what}"), remedy);
        let mut bytes = match self {
            Self::File(path) => {
                // Opening a pipe that nobody writes to would take for ever.
                let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
                let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
                let file = file.map_err(|error| {
                    refused(error.to_string(), "write the PIN to the file, readable by this user alone")
                })?;
                let regular = "name a regular file that holds the PIN alone: it is read again for each login";
                let metadata = file.metadata().map_err(|error| refused(error.to_string(), regular))?;
                if !metadata.is_file() {
                    return Err(refused("is no regular file".into(), regular));
                }
                if metadata.permissions().mode() & 0o044 != 0 {
                    tracing::warn!(file = %path.display(), "others may read the PIN file: chmod 600 it");
                }
                // Room for all that is read, so that no copy is left behind by growth.
                let mut bytes = Zeroizing::new(Vec::with_capacity(Pin::BYTES_MAX + 64));
                let limit = Pin::BYTES_MAX as u64 + 3;
                file.take(limit).read_to_end(&mut bytes).map_err(|error| refused(error.to_string(), regular))?;
                bytes
            }
            Self::Env(name) => {
                use std::os::unix::ffi::OsStringExt;
                let value = std::env::var_os(name).map(OsStringExt::into_vec);
                Zeroizing::new(value.ok_or_else(|| refused("is not set".into(), "set it, or use a PIN file"))?)
            }
            Self::Callback(callback) => {
                Zeroizing::new(callback().map_err(|why| refused(why, "see to what the callback asks"))?)
            }
        };
        // What a program gives is the PIN as it is.
        if !matches!(self, Self::Callback(_)) {
            if bytes.last() == Some(&b'\n') {
                bytes.pop();
            }
            // Written on Windows; a shell's `$(cat FILE)` takes the half of that line end away. A PIN that ends so would have to be
            // given some other way.
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
            if bytes.contains(&b'\n') {
                return Err(refused("has several lines".into(), "put the token's PIN there and nothing else"));
            }
        }
        let len = bytes.len();
        match len {
            0 => Err(refused("is empty".into(), "put the token's PIN there: 1 to 255 bytes")),
            1..=Pin::BYTES_MAX => {
                Ok(Pin::take_from(&mut bytes).map_err(|error| fault::fatal("read PIN", error.to_string()))?)
            }
            _ => {
                bytes.zeroize();
                Err(refused(
                    format!("has more than {} bytes", Pin::BYTES_MAX),
                    "put the token's PIN there and nothing else: 1 to 255 bytes",
                ))
            }
        }
    }
}

#[derive(Default)]
struct State {
    busy: Option<Busy>,
    /// Logins that have begun.
    turns: u64,
    /// The token has worked with what the source gave.
    at_work: bool,
    /// The last PIN that the token took: used while the source cannot be read.
    accepted: Option<Pin>,
    /// Those that it refused since it took one, the newest last.
    refused: Vec<(Pin, TokenError)>,
    failed: Option<Failed>,
}

/// The login that is under way.
struct Busy {
    number: u64,
    /// When its caller gives up.
    until: Instant,
    /// What it has given to the token.
    tried: Option<Pin>,
}

/// C_Login failed with this PIN, and the token did not say that the PIN is wrong.
struct Failed {
    /// Itself, in locked memory: a digest of so few bytes would give it away just as well.
    pin: Pin,
    at: Instant,
    pause: Duration,
    /// How often in a row.
    times: u32,
    /// The token counted a wrong PIN meanwhile.
    counted: bool,
    /// What the last one failed with.
    error: TokenError,
}

/// What this process knows of the PIN that is about to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Standing {
    /// It is the one that the token took last.
    pub(super) accepted: bool,
    /// How often C_Login failed with it since, the token not saying why.
    pub(super) failures: u32,
    /// The last of these was a denial.
    pub(super) denied: bool,
    /// The token counted a wrong PIN during one of these.
    pub(super) counted: bool,
    /// The last of these was 10 minutes ago.
    pub(super) rested: bool,
}

pub(super) struct Pins {
    source: PinSource,
    state: Mutex<State>,
    changed: Condvar,
    clock: Clock,
}

/// What came of a login attempt with a PIN.
pub(super) enum Attempt {
    Accepted,
    /// Somebody has logged the process in: this PIN was not compared.
    NotNeeded,
    /// The token refused this PIN: it is not tried again.
    Refused(TokenError),
    /// No PIN was compared, because the token's flags forbid an attempt or it has none to compare with: nothing is known of this PIN.
    Withheld(Fault),
    /// The token lets nobody in, for now, or counted a wrong PIN that may have been this one: not this PIN's end.
    Denied {
        error: TokenError,
        counted: bool,
    },
    /// C_Login failed otherwise: perhaps the token counted it as a wrong PIN, perhaps it is in trouble.
    Failed {
        code: RvError,
        /// The token took this PIN before, and says that it counted none.
        uncounted: bool,
    },
}

impl Pins {
    pub(super) fn new(source: PinSource) -> Self {
        Self { source, state: Mutex::default(), changed: Condvar::new(), clock: Clock::Boottime }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and the value is whole after every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a refused PIN be tried once more: an operator has mended the token.
    pub(super) fn forget_refusal(&self) {
        let mut state = self.lock();
        state.refused.clear();
        state.failed = None;
    }

    /// Notes that the token works: from now on a source that gives no PIN is trouble that may pass.
    pub(super) fn note_at_work(&self) {
        self.lock().at_work = true;
    }

    /// Calls `attempt` with the PIN of the source and what is known of it, unless the token refused that one before or it is to wait.
    /// `counts_none` asks the token whether it says that it counted no wrong PIN.
    pub(super) fn login(
        &self,
        deadline: Instant,
        counts_none: impl Fn() -> bool,
        attempt: impl FnOnce(&Pin, Standing) -> Attempt,
    ) -> Result<(), Fault> {
        let turn = self.take_turn(deadline)?;
        let pin = match self.source.read() {
            Ok(pin) => pin,
            Err(error) => {
                let state = self.lock();
                let Some(last) = &state.accepted else {
                    // Found logged in so far. The owner of the keys has denied nothing.
                    let verdict = if state.at_work { Verdict::Unreachable } else { error.verdict };
                    return Err(TokenError { verdict, ..error }.into());
                };
                tracing::warn!(%error, "the PIN that worked last is used");
                copy(last)?
            }
        };
        let refused =
            self.lock().refused.iter().find(|(refused, _)| is_same(refused, &pin)).map(|(_, why)| why.clone());
        if let Some(error) = refused {
            return Err(error.into());
        }
        let standing = self.standing(&pin);
        self.check_pause(&pin, standing.accepted, counts_none)?;
        turn.tries(&pin)?;
        let result = match attempt(&pin, standing) {
            Attempt::NotNeeded => Ok(()),
            Attempt::Accepted => {
                let mut state = self.lock();
                state.refused.clear();
                state.failed = None;
                state.accepted = Some(pin);
                Ok(())
            }
            Attempt::Refused(mut error) => {
                error.remedy = format!(
                    "correct the {}; this PIN is not tried again, so that the token does not lock itself{}",
                    self.source,
                    hint(&pin)
                );
                let mut state = self.lock();
                state.accepted.take_if(|accepted| is_same(accepted, &pin));
                if state.refused.len() == REFUSED_MAX {
                    state.refused.remove(0);
                }
                state.refused.push((pin, error.clone()));
                Err(error.into())
            }
            Attempt::Withheld(fault) => Err(fault),
            Attempt::Denied { error, counted } => {
                // The token compared nothing that it could count, so that there is no reason to wait ever longer.
                self.note_failure(pin, standing, error.clone(), counted, PAUSE_MIN);
                Err(error.into())
            }
            Attempt::Failed { code, uncounted } => {
                let error = fault::unreachable("login", format!("C_Login: {}", verdict::name(code)));
                self.note_failure(pin, standing, error, false, if uncounted { PAUSE_UNCOUNTED } else { PAUSE_MAX });
                Err(Fault::Code { step: "C_Login", code })
            }
        };
        drop(turn);
        result
    }

    fn standing(&self, pin: &Pin) -> Standing {
        let state = self.lock();
        let accepted = state.accepted.as_ref().is_some_and(|accepted| is_same(accepted, pin));
        match state.failed.as_ref().filter(|failed| is_same(&failed.pin, pin)) {
            None => Standing { accepted, ..Standing::default() },
            Some(failed) => Standing {
                accepted,
                failures: failed.times,
                denied: failed.error.verdict == Verdict::Denied,
                counted: failed.counted,
                rested: self.clock.now().since(failed.at) >= REST,
            },
        }
    }

    fn note_failure(&self, pin: Pin, before: Standing, error: TokenError, counted: bool, pause_max: Duration) {
        let mut state = self.lock();
        let again = state.failed.take().filter(|failed| is_same(&failed.pin, &pin));
        // One that hung, and was noted as it was passed over, may come back after others have failed.
        let (failures, was_counted) = again.as_ref().map_or((0, false), |failed| (failed.times, failed.counted));
        let times = before.failures.max(failures).saturating_add(1);
        let counted = before.counted || was_counted || counted;
        let pause = again.map_or(PAUSE_MIN, |failed| failed.pause.saturating_mul(2)).min(pause_max);
        state.failed = Some(Failed { pin, at: self.clock.now(), pause, times, counted, error });
    }

    fn check_pause(&self, pin: &Pin, accepted: bool, counts_none: impl Fn() -> bool) -> Result<(), Fault> {
        let (at, pause, mut error) = {
            let state = self.lock();
            let Some(failed) = state.failed.as_ref().filter(|failed| is_same(&failed.pin, pin)) else { return Ok(()) };
            (failed.at, failed.pause, failed.error.clone())
        };
        let mut left = at.plus(pause).since(self.clock.now());
        // One that hung, or whose flags were not to be had then, may not have been counted either.
        if !left.is_zero() && accepted && error.verdict == Verdict::Unreachable && counts_none() {
            left = at.plus(pause.min(PAUSE_UNCOUNTED)).since(self.clock.now());
        }
        if left.is_zero() {
            return Ok(());
        }
        error.what.push_str(&format!(
            " a moment ago; this PIN waits {:.1} s more, lest the token counts attempts and locks itself",
            left.as_secs_f64()
        ));
        Err(Fault::LoginPaused(error))
    }

    fn take_turn(&self, deadline: Instant) -> Result<Turn<'_>, TokenError> {
        let patience = before(&self.clock, deadline);
        let mut state = self.lock();
        while let Some(until) = state.busy.as_ref().map(|busy| busy.until)
            && self.clock.now() < until
        {
            let in_time;
            (state, in_time) = wait_until(&self.changed, state, &self.clock, patience.min(until));
            if !in_time && patience < until {
                return Err(fault::unreachable("login", "another login did not end until the deadline"));
            }
        }
        state.turns += 1;
        let number = state.turns;
        let hangs = state.busy.replace(Busy { number, until: deadline, tried: None });
        drop(state);
        if let Some(pin) = hangs.and_then(|busy| busy.tried) {
            let error = fault::unreachable("login", "C_Login did not come back");
            self.note_failure(pin, Standing::default(), error, false, PAUSE_MAX);
        }
        Ok(Turn { pins: self, number })
    }
}

fn copy(pin: &Pin) -> crate::error::Result<Pin> {
    Pin::take_from(&mut pin.expose().to_vec())
}

fn is_same(one: &Pin, other: &Pin) -> bool {
    one.expose().ct_eq(other.expose()).into()
}

/// What a person does not see in a PIN that was refused.
pub(super) fn hint(pin: &Pin) -> &'static str {
    let shows = |byte: Option<&u8>| byte.is_none_or(|byte| byte.is_ascii_graphic());
    if shows(pin.expose().first()) && shows(pin.expose().last()) {
        ""
    } else {
        "; it begins or ends with a blank or a character that does not show: see whether that belongs to it"
    }
}

struct Turn<'a> {
    pins: &'a Pins,
    number: u64,
}

impl Turn<'_> {
    /// Notes what the token is about to be given. Fails when it is another's turn: the source took too long.
    fn tries(&self, pin: &Pin) -> Result<(), Fault> {
        let mut state = self.pins.lock();
        match state.busy.as_mut().filter(|busy| busy.number == self.number) {
            Some(busy) => busy.tried = Some(copy(pin)?),
            None => return Err(fault::unreachable("login", "the PIN came after the deadline").into()),
        }
        Ok(())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.pins.lock().busy.take_if(|busy| busy.number == self.number);
        self.pins.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Verdict;

    /// Of a token that does not say what it counted.
    fn unknown() -> bool {
        false
    }
    use std::{cell::Cell, time::Duration};

    fn soon() -> Instant {
        Clock::Boottime.now().plus(Duration::from_secs(60))
    }

    fn refuse(tries: &Cell<u32>) -> impl Fn(&Pin, Standing) -> Attempt {
        |_, _| {
            tries.set(tries.get() + 1);
            Attempt::Refused(fault::denied("login", "C_Login: CKR_PIN_INCORRECT"))
        }
    }

    #[test]
    fn a_pin_file_is_a_regular_file_of_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pin");
        let read = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            PinSource::File(path.clone()).read().map(|pin| pin.expose().to_vec())
        };
        for text in [&b"1234"[..], b"1234\n", b"1234\r\n", b"1234\r"] {
            assert_eq!(read(text).unwrap(), b"1234");
        }
        assert_eq!(read(&[b'7'; 255]).unwrap(), [b'7'; 255]);
        assert_eq!(read(&[&[b'7'; 255][..], b"\r\n"].concat()).unwrap(), [b'7'; 255]);
        for (text, words) in [
            (&b""[..], "is empty"),
            (b"\n", "is empty"),
            (b"1234\n5678\n", "several lines"),
            (b"1234\n\n", "several lines"),
            (&[b'7'; 256], "more than 255"),
            (&[b'7'; 9000], "more than 255"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains("1234"), "{error}");
        }
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        for other in [&pipe, directory.path(), std::path::Path::new("/dev/null")] {
            let error = PinSource::File(other.into()).read().unwrap_err().to_string();
            assert!(error.contains("no regular file"), "{error}");
        }
        let error = PinSource::File(directory.path().join("none")).read().unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
    }

    /// A source whose PIN a test changes.
    fn source(pin: &Arc<Mutex<String>>) -> PinSource {
        let pin = pin.clone();
        PinSource::Callback(Arc::new(move || match pin.lock().unwrap().clone().into_bytes() {
            none if none.is_empty() => Err("away".into()),
            pin => Ok(pin),
        }))
    }

    #[test]
    fn what_is_known_of_one_pin_is_known_of_no_other() {
        let pin = Arc::new(Mutex::new("1234".to_owned()));
        let clock = crate::clock::ManualClock::default();
        let pins = Pins { clock: Clock::Manual(clock.clone()), ..Pins::new(source(&pin)) };
        let far = Instant::from_nanos(u64::MAX);
        let standing = |attempt: Attempt| {
            clock.advance(Duration::from_secs(60));
            let mut seen = None;
            let _ = pins.login(far, unknown, |_, standing| {
                seen = Some(standing);
                attempt
            });
            seen
        };
        let (unknown, accepted) = (Standing::default(), Standing { accepted: true, ..Standing::default() });
        assert_eq!(standing(Attempt::NotNeeded), Some(unknown));
        assert_eq!(standing(Attempt::Accepted), Some(unknown), "who finds the process logged in has proved no PIN");
        let failed = || Attempt::Failed { code: RvError::GeneralError, uncounted: false };
        assert_eq!(standing(failed()), Some(accepted));
        assert_eq!(standing(Attempt::NotNeeded), Some(Standing { failures: 1, ..accepted }));
        *pin.lock().unwrap() = "5678".into();
        assert_eq!(standing(Attempt::NotNeeded), Some(unknown), "another PIN in the source");
        *pin.lock().unwrap() = "1234".into();
        let error = fault::denied("login", "C_Login: CKR_GENERAL_ERROR, and it was counted");
        assert_eq!(standing(Attempt::Denied { error, counted: true }), Some(Standing { failures: 1, ..accepted }));
        let counted = Standing { failures: 2, denied: true, counted: true, ..accepted };
        assert_eq!(standing(failed()), Some(counted));
        assert_eq!(standing(Attempt::Accepted), Some(Standing { failures: 3, denied: false, ..counted }));
        assert_eq!(standing(Attempt::Refused(fault::denied("login", "wrong"))), Some(accepted));
        assert_eq!(standing(Attempt::Accepted), None, "refused, whatever it was before");
        pins.forget_refusal();
        assert_eq!(standing(Attempt::NotNeeded), Some(unknown), "so the last try before the token locks is not for it");
    }

    #[test]
    fn a_source_that_flaps_between_wrong_pins_has_each_tried_once() {
        let pin = Arc::new(Mutex::new("old".to_owned()));
        let (pins, tries) = (Pins::new(source(&pin)), Cell::new(0));
        assert!(pins.login(soon(), unknown, |_, _| Attempt::Accepted).is_ok());
        for _ in 0..5 {
            // While it is away the PIN that worked last stands in, until that was refused too.
            for now in ["new", "", "newer"] {
                *pin.lock().unwrap() = now.into();
                assert!(pins.login(soon(), unknown, refuse(&tries)).is_err());
            }
        }
        assert_eq!(tries.get(), 3);
    }

    #[test]
    fn a_denial_that_is_not_the_pin_s_fault_is_asked_again_after_a_pause_that_does_not_grow() {
        let clock = crate::clock::ManualClock::default();
        let pins = Pins {
            clock: Clock::Manual(clock.clone()),
            ..Pins::new(PinSource::Callback(Arc::new(|| Ok(b"1234".to_vec()))))
        };
        let far = Instant::from_nanos(u64::MAX);
        for _ in 0..8 {
            let locked = fault::denied("login", "C_Login: CKR_PIN_LOCKED");
            let Err(Fault::Settled(_)) =
                pins.login(far, unknown, |_, _| Attempt::Denied { error: locked, counted: false })
            else {
                panic!()
            };
            let Err(Fault::LoginPaused(error)) = pins.login(far, unknown, |_, _| panic!("tried at once")) else {
                panic!()
            };
            assert_eq!(error.verdict, Verdict::Denied, "{error}");
            clock.advance(PAUSE_MIN);
        }
        assert!(pins.login(far, unknown, |_, _| Attempt::Accepted).is_ok());
    }

    #[test]
    fn a_refused_pin_with_a_blank_at_an_end_is_told_of_it() {
        for (pin, told) in [("1234", false), ("1234 ", true), ("\u{feff}1234", true), ("12 34", false)] {
            let pins = Pins::new(PinSource::Callback(Arc::new(move || Ok(pin.as_bytes().to_vec()))));
            let Err(Fault::Settled(error)) = pins.login(soon(), unknown, refuse(&Cell::new(0))) else { panic!() };
            assert_eq!(error.remedy.contains("blank"), told, "{error:?}");
            assert!(!format!("{error:?}").contains("34"), "{error:?}");
        }
    }

    #[test]
    fn a_refused_pin_is_not_tried_again_until_it_changes_or_somebody_asks() {
        let pin = Arc::new(Mutex::new("wrong".to_owned()));
        let (pins, tries) = (Pins::new(source(&pin)), Cell::new(0));
        for _ in 0..5 {
            let Err(Fault::Settled(error)) = pins.login(soon(), unknown, refuse(&tries)) else { panic!() };
            assert_eq!(error.verdict, Verdict::Denied);
            assert!(!format!("{error:?}").contains("wrong"));
        }
        assert_eq!(tries.get(), 1);
        pins.forget_refusal();
        assert!(pins.login(soon(), unknown, refuse(&tries)).is_err());
        assert_eq!(tries.get(), 2);
        *pin.lock().unwrap() = "wrong too".into();
        assert!(pins.login(soon(), unknown, refuse(&tries)).is_err());
        assert_eq!(tries.get(), 3, "another PIN is tried");
        assert!(pins.login(soon(), unknown, refuse(&tries)).is_err());
        assert_eq!(tries.get(), 3);
    }

    #[test]
    fn after_any_failure_the_same_pin_waits_and_longer_each_time() {
        let pin = Arc::new(Mutex::new("1234".to_owned()));
        let clock = crate::clock::ManualClock::default();
        let pins = Pins { clock: Clock::Manual(clock.clone()), ..Pins::new(source(&pin)) };
        let (tries, far) = (Cell::new(0), Instant::from_nanos(u64::MAX));
        let fail = |_: &Pin, _| {
            tries.set(tries.get() + 1);
            Attempt::Failed { code: RvError::GeneralError, uncounted: false }
        };
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            let before = tries.get();
            assert!(matches!(pins.login(far, unknown, fail), Err(Fault::Code { step: "C_Login", .. })));
            clock.advance(Duration::from_millis(pause * 1000 - 100));
            for _ in 0..5 {
                let Err(Fault::LoginPaused(error)) = pins.login(far, unknown, fail) else { panic!() };
                assert_eq!(error.verdict, Verdict::Unreachable);
                assert!(error.what.contains("CKR_GENERAL_ERROR") && error.what.contains("0.1 s"), "{error}");
                assert!(!format!("{error:?}").contains("1234"));
            }
            assert_eq!(tries.get(), before + 1, "one C_Login per pause");
            clock.advance(Duration::from_millis(100));
        }
        assert!(pins.login(far, unknown, fail).is_err());
        *pin.lock().unwrap() = "5678".into();
        assert!(pins.login(far, unknown, |_, _| Attempt::Accepted).is_ok(), "another PIN does not wait");
        assert!(matches!(pins.login(far, unknown, fail), Err(Fault::Code { .. })));
        clock.advance(Duration::from_secs(1));
        assert!(
            matches!(pins.login(far, unknown, fail), Err(Fault::Code { .. })),
            "after a success the pause is short again"
        );
        pins.forget_refusal();
        assert!(pins.login(far, unknown, |_, _| Attempt::Accepted).is_ok(), "nor does one that somebody asks for");
    }

    #[test]
    fn a_pin_that_the_token_did_not_count_is_asked_again_at_every_poll_however_often_it_failed() {
        let clock = crate::clock::ManualClock::default();
        let pins = Pins {
            clock: Clock::Manual(clock.clone()),
            ..Pins::new(PinSource::Callback(Arc::new(|| Ok(b"1234".to_vec()))))
        };
        let far = Instant::from_nanos(u64::MAX);
        for _ in 0..40 {
            let failed = Attempt::Failed { code: RvError::GeneralError, uncounted: true };
            assert!(matches!(pins.login(far, unknown, |_, _| failed), Err(Fault::Code { .. })));
            clock.advance(Duration::from_millis(900));
        }
    }

    /// Logs in at each poll, and each login hangs that is made. Gives how many are.
    fn logins_that_hang(pins: &Pins, clock: &crate::clock::ManualClock, counts_none: bool, polls: u32) -> u32 {
        if polls == 0 {
            return 0;
        }
        let (second, made) = (Duration::from_secs(1), Cell::new(0));
        let others = || made.set(made.get() + logins_that_hang(pins, clock, counts_none, polls - 1));
        let paused = pins.login(
            clock.now().plus(second),
            || counts_none,
            |_, _| {
                clock.advance(second);
                made.set(1);
                others();
                Attempt::NotNeeded
            },
        );
        if made.get() == 0 {
            assert!(matches!(paused, Err(Fault::LoginPaused(_))));
            clock.advance(second);
            others();
        }
        made.get()
    }

    #[test]
    fn a_login_that_never_returned_is_made_again_at_the_next_poll_where_the_token_counted_none() {
        for (counts_none, expected) in [(true, 10), (false, 5)] {
            let clock = crate::clock::ManualClock::default();
            let pins = Pins {
                clock: Clock::Manual(clock.clone()),
                ..Pins::new(PinSource::Callback(Arc::new(|| Ok(b"1234".to_vec()))))
            };
            assert!(pins.login(clock.now().plus(REST), unknown, |_, _| Attempt::Accepted).is_ok());
            assert_eq!(logins_that_hang(&pins, &clock, counts_none, 20), expected);
        }
    }

    #[test]
    fn a_login_that_never_returns_keeps_nobody_out_and_counts_as_one_that_failed() {
        let clock = crate::clock::ManualClock::default();
        let pins = Pins {
            clock: Clock::Manual(clock.clone()),
            ..Pins::new(PinSource::Callback(Arc::new(|| Ok(b"1234".to_vec()))))
        };
        let (far, second) = (Instant::from_nanos(u64::MAX), Duration::from_secs(1));
        let late = pins.login(clock.now().plus(second), unknown, |_, _| {
            clock.advance(second);
            let Err(Fault::LoginPaused(error)) = pins.login(far, unknown, |_, _| panic!("tried at once")) else {
                panic!()
            };
            assert!(error.verdict == Verdict::Unreachable && error.what.contains("did not come back"), "{error}");
            clock.advance(second);
            let next = pins.login(far, unknown, |_, standing| {
                assert_eq!(standing, Standing { failures: 1, ..Standing::default() });
                Attempt::Accepted
            });
            assert!(next.is_ok());
            Attempt::NotNeeded
        });
        assert!(late.is_ok() && pins.lock().busy.is_none());
    }

    #[test]
    fn a_source_that_never_returns_keeps_nobody_out_and_what_it_gives_too_late_is_not_tried() {
        let clock = crate::clock::ManualClock::default();
        let inner: Arc<Mutex<Option<Arc<Pins>>>> = Arc::default();
        let (others, time) = (inner.clone(), clock.clone());
        let source = PinSource::Callback(Arc::new(move || {
            let other = others.lock().unwrap().take();
            if let Some(pins) = other {
                time.advance(Duration::from_secs(1));
                assert!(pins.login(Instant::from_nanos(u64::MAX), unknown, |_, _| Attempt::Accepted).is_ok());
            }
            Ok(b"1234".to_vec())
        }));
        let pins = Arc::new(Pins { clock: Clock::Manual(clock.clone()), ..Pins::new(source) });
        *inner.lock().unwrap() = Some(pins.clone());
        let deadline = clock.now().plus(Duration::from_secs(1));
        let Err(Fault::Settled(error)) = pins.login(deadline, unknown, |_, _| panic!("tried")) else { panic!() };
        assert_eq!(error.verdict, Verdict::Unreachable);
    }

    #[test]
    fn a_source_that_gives_no_pin_is_a_matter_of_set_up_at_the_start_and_an_outage_after_that() {
        let pins = Pins::new(PinSource::Callback(Arc::new(|| Err("away".into()))));
        for verdict in [Verdict::Misconfigured, Verdict::Unreachable] {
            let Err(Fault::Settled(error)) = pins.login(soon(), unknown, |_, _| panic!("tried")) else { panic!() };
            assert_eq!(error.verdict, verdict);
            pins.note_at_work();
        }
    }

    #[test]
    fn a_login_that_was_not_made_leaves_the_pin_free() {
        let pins = Pins::new(PinSource::Callback(Arc::new(|| Ok(b"1234".to_vec()))));
        let locked = |_: &Pin, _| Attempt::Withheld(fault::denied("login", "the token has locked its user PIN").into());
        let Err(Fault::Settled(error)) = pins.login(soon(), unknown, locked) else { panic!() };
        assert_eq!(error.verdict, Verdict::Denied);
        assert!(pins.login(soon(), unknown, |_, _| Attempt::Accepted).is_ok(), "once it is unlocked");
    }

    #[test]
    fn the_pin_that_worked_last_serves_while_its_source_is_away() {
        let pin = Arc::new(Mutex::new("1234".to_owned()));
        let pins = Pins::new(source(&pin));
        assert!(pins.login(soon(), unknown, |_, _| Attempt::Accepted).is_ok());
        pin.lock().unwrap().clear();
        let mut used = Vec::new();
        let result = pins.login(soon(), unknown, |pin, _| {
            used = pin.expose().to_vec();
            Attempt::Accepted
        });
        assert!(result.is_ok());
        assert_eq!(used, b"1234");
    }

    #[test]
    fn a_second_login_waits_for_the_first_and_not_beyond_its_deadline() {
        let pins = Pins::new(PinSource::Callback(Arc::new(|| Ok(b"1234".to_vec()))));
        let result = pins.login(soon(), unknown, |_, _| {
            let past = Clock::Boottime.now();
            let Err(Fault::Settled(error)) = pins.login(past, unknown, |_, _| Attempt::Accepted) else { panic!() };
            assert_eq!(error.verdict, Verdict::Unreachable);
            Attempt::Accepted
        });
        assert!(result.is_ok());
    }
}
