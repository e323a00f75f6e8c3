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
use super::pauses::Caller;
use super::verdict;
use crate::clock::{Clock, Instant};
use crate::secret::Pin;
use crate::token::{TokenError, Verdict};
use cryptoki::error::RvError;
use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use subtle::ConstantTimeEq;

mod source;

pub use self::source::{PinCallback, PinSource};

/// How long a PIN waits after a C_Login that failed with whatever code; doubles while it fails.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// As long waits a PIN that the token took before and says that it did not count. A proof does not wait then ([`Caller::proof`]).
const PAUSE_UNCOUNTED: Duration = Duration::from_millis(800);
/// A PIN that nothing was tried with for so long has rested.
const REST: Duration = Duration::from_secs(600);
/// As many refused PINs are remembered as a source may flap between.
const REFUSED_MAX: usize = 4;

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
    began: Instant,
    /// When its caller gives up.
    until: Instant,
    /// What it has given to the token.
    tried: Option<Pin>,
}

/// C_Login failed with this PIN, and the token did not say that the PIN is wrong.
struct Failed {
    /// Itself, in locked memory: a digest of so few bytes would give it away just as well.
    pin: Pin,
    /// When the last one began.
    tried: Instant,
    /// When it had failed.
    at: Instant,
    pause: Duration,
    /// How often in a row.
    times: u32,
    /// The token counted a wrong PIN meanwhile.
    counted: bool,
    /// The last one was refused, in a context that may be older than the PIN.
    doubted: bool,
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
    /// The last of these was a refusal, in a context that may be older than the PIN.
    pub(super) doubted: bool,
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
    /// As refused, by a context that may be older than the PIN: it is tried again, once, in a fresh one.
    Doubted(TokenError),
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

/// How a login failed that does not end its PIN.
struct Failure {
    error: TokenError,
    counted: bool,
    doubted: bool,
    pause_max: Duration,
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
        caller: &Caller,
        counts_none: impl Fn() -> bool,
        attempt: impl FnOnce(&Pin, Standing) -> Attempt,
    ) -> Result<(), Fault> {
        let turn = self.take_turn(caller.deadline)?;
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
        self.check_pause(&pin, caller, standing.accepted, counts_none)?;
        turn.tries(&pin)?;
        let note = |pin, failure| self.note_failure(pin, standing, turn.began, failure);
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
                note(pin, Failure { error: error.clone(), counted, doubted: false, pause_max: PAUSE_MIN });
                Err(error.into())
            }
            Attempt::Doubted(error) => {
                note(pin, Failure { error: error.clone(), counted: false, doubted: true, pause_max: PAUSE_MIN });
                Err(error.into())
            }
            Attempt::Failed { code, uncounted } => {
                let error = fault::unreachable("login", format!("C_Login: {}", verdict::name(code)));
                let pause_max = if uncounted { PAUSE_UNCOUNTED } else { PAUSE_MAX };
                note(pin, Failure { error, counted: false, doubted: false, pause_max });
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
                doubted: failed.doubted,
                counted: failed.counted,
                rested: self.clock.now().since(failed.at) >= REST,
            },
        }
    }

    fn note_failure(&self, pin: Pin, before: Standing, tried: Instant, failure: Failure) {
        let Failure { error, counted, doubted, pause_max } = failure;
        let mut state = self.lock();
        let again = state.failed.take().filter(|failed| is_same(&failed.pin, &pin));
        // One that hung, and was noted as it was passed over, may come back after others have failed.
        let (failures, was_counted) = again.as_ref().map_or((0, false), |failed| (failed.times, failed.counted));
        let times = before.failures.max(failures).saturating_add(1);
        let counted = before.counted || was_counted || counted;
        let pause = again.map_or(PAUSE_MIN, |failed| failed.pause.saturating_mul(2)).min(pause_max);
        state.failed = Some(Failed { pin, tried, at: self.clock.now(), pause, times, counted, doubted, error });
    }

    fn check_pause(
        &self,
        pin: &Pin,
        caller: &Caller,
        accepted: bool,
        counts_none: impl Fn() -> bool,
    ) -> Result<(), Fault> {
        let (tried, at, pause, mut error) = {
            let state = self.lock();
            let Some(failed) = state.failed.as_ref().filter(|failed| is_same(&failed.pin, pin)) else { return Ok(()) };
            (failed.tried, failed.at, failed.pause, failed.error.clone())
        };
        let mut left = at.plus(pause).since(self.clock.now());
        // One that hung, or whose flags were not to be had then, may not have been counted either.
        if !left.is_zero() && accepted && counts_none() {
            let pause = match (caller.goes_by(tried), error.verdict) {
                (false, _) => Duration::ZERO,
                (true, Verdict::Unreachable) => pause.min(PAUSE_UNCOUNTED),
                (true, _) => pause,
            };
            left = at.plus(pause).since(self.clock.now());
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
        let began = self.clock.now();
        let hangs = state.busy.replace(Busy { number, began, until: deadline, tried: None });
        drop(state);
        if let Some(Busy { began, tried: Some(pin), .. }) = hangs {
            let error = fault::unreachable("login", "C_Login did not come back");
            let failure = Failure { error, counted: false, doubted: false, pause_max: PAUSE_MAX };
            self.note_failure(pin, Standing::default(), began, failure);
        }
        Ok(Turn { pins: self, number, began })
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
    began: Instant,
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
mod tests;
