//! The login: whether a PIN may be tried at all, and what its failure says of it.

use super::fault::{self, Fault, code_of};
use super::module::Inside;
use super::pauses::Caller;
use super::pin::{Attempt, Standing};
use super::refusals::TokenKey;
use super::select::Selector;
use super::session::Shared;
use super::told::{Count, told};
use super::verdict::{self, Login};
use crate::clock::Instant;
use crate::token::{TokenError, Verdict};
use cryptoki::{
    error::RvError,
    session::{Session, SessionState, UserType},
    slot::Slot,
    types::RawAuthPin,
};
use std::sync::atomic::Ordering;

/// How often in a row a PIN that the token took before may fail without its flags to be had. One that it never took: once.
const BLIND_MAX: u32 = 2;

/// Who wants to be let in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) caller: Caller,
    pub(super) asked: Instant,
    /// A new PIN is not tried in a context that began before they asked: they see to a younger one first.
    pub(super) sees_to_context: bool,
}

pub(super) fn is_logged_in(session: &Session) -> bool {
    let state = session.get_session_info().map(|info| info.session_state());
    matches!(state, Ok(SessionState::RoUser | SessionState::RwUser))
}

pub(super) fn log_in(
    shared: &Shared,
    inside: &Inside<'_>,
    slot: Slot,
    session: &Session,
    entry: &Entry,
) -> Result<(), Fault> {
    if is_logged_in(session) {
        return Ok(());
    }
    let tells = || {
        let token = told(inside, slot);
        shared.describes_itself.fetch_or(token.is_ok(), Ordering::SeqCst);
        token
    };
    let count = || tells().map(|token| token.count());
    let counts_none = || count() == Ok(Count::Clear);
    shared.pins.login(&entry.caller, counts_none, |pin, standing| {
        // Another worker may have logged the process in while this one waited.
        if is_logged_in(session) {
            return Attempt::NotNeeded;
        }
        let token = tells();
        let (key, before) = (TokenKey::new(token.as_ref().ok(), &shared.selector), token.map(|token| token.count()));
        if let Err(code) = before
            && verdict::is_lost_session(code)
        {
            return Attempt::Withheld(Fault::Code { step: "C_GetTokenInfo", code });
        }
        let blindly_once = matches!(shared.selector, Selector::Slot(_));
        if let Err(error) = may_try(before, standing, blindly_once) {
            // No attempt of ours: when the operator has unlocked the token, the same PIN is right.
            return Attempt::Withheld(error.into());
        }
        if !standing.accepted
            && let Some(error) = shared.refusals.refusal(&key, pin, before.ok())
        {
            return Attempt::Withheld(error.into());
        }
        // SoftHSM compares with what it read when the context began: it would refuse the right PIN, which another process has set since.
        let is_old = shared.module.context_began().is_some_and(|began| began < entry.asked);
        let is_doubtful = is_old && !standing.accepted && (standing.failures == 0 || standing.doubted);
        if is_doubtful && entry.sees_to_context {
            return Attempt::Withheld(Fault::OldContext);
        } else if is_doubtful && standing.doubted {
            return Attempt::Withheld(doubted("the token refused this PIN, ".into()).into());
        }
        // Wiped on drop.
        let raw = RawAuthPin::new(Box::new(pin.expose().to_vec()));
        let login = session.login_with_raw(UserType::User, &raw);
        // Whatever came of it, there was no login a moment ago.
        shared.handles.lose();
        let Err(error) = login else {
            shared.refusals.end(&key);
            tracing::info!(token = %shared.selector, "logged in to the token");
            return Attempt::Accepted;
        };
        let code = code_of(&error);
        let says = || format!("C_Login: {}", verdict::name(code));
        let attempt = match verdict::login(code) {
            Login::AlreadyIn => Attempt::NotNeeded,
            Login::NoPin => Attempt::Withheld(no_user_pin(inside, slot)),
            // Whatever the token's flags say of somebody else's attempts.
            Login::NotCompared => Attempt::Withheld(Fault::Code { step: "C_Login", code }),
            Login::WrongPin if is_doubtful => Attempt::Doubted(fault::with_code(doubted(says() + ", "), code)),
            Login::WrongPin => Attempt::Refused(fault::with_code(fault::denied("login", says()), code)),
            Login::Denied => Attempt::Denied { error: fault::with_code(denied(says()), code), counted: false },
            Login::Unclear => unclear(code, standing, before.ok(), count().ok()),
        };
        if !shared.refusals.are_kept() {
            return attempt;
        }
        // Of a code that does not say so, only where the token counted meanwhile: what it counted before may be somebody else's, and
        // a note outlives the trouble.
        let after = count().ok();
        let is_refused = verdict::login(code) == Login::WrongPin || before.ok() < after && before.is_ok();
        if is_refused && matches!(attempt, Attempt::Refused(_) | Attempt::Denied { .. }) {
            let counted = || after.is_some_and(|count| count > Count::Clear);
            if let Err(error) = shared.refusals.note(&key, pin, counted) {
                tracing::warn!(%error, "that the token refused this PIN is not noted");
            }
        }
        attempt
    })
}

/// Whether a PIN of this standing may be tried on a token that says `count` of wrong ones.
///
/// # Errors
/// What to say instead. A PIN that the token took before is not denied for what it does not say: that is an outage.
fn may_try(count: Result<Count, RvError>, standing: Standing, blindly_once: bool) -> Result<(), TokenError> {
    let right_so_far = standing.accepted && !standing.counted && !standing.denied;
    let verdict = if right_so_far { Verdict::Unreachable } else { Verdict::Denied };
    let withheld = |verdict, what: String, remedy: &str| {
        Err(TokenError { remedy: remedy.into(), ..fault::error(verdict, "login", what) })
    };
    const LOG_IN: &str =
        "unlock the user PIN, or log in once with the right PIN by another tool; keyleash looks again by itself";
    match count {
        Ok(Count::Locked) => withheld(Verdict::Denied, "the token has locked its user PIN".into(), LOG_IN),
        Ok(Count::FinalTry) if !standing.accepted || standing.failures > 0 => {
            let what = "one more wrong PIN would lock the token, so keyleash does not try its own";
            withheld(verdict, what.into(), LOG_IN)
        }
        Ok(count) if count > Count::Clear && standing.counted => {
            let what = format!("the token counted a wrong PIN when this one was tried ({})", count.flag());
            withheld(Verdict::Denied, what, LOG_IN)
        }
        Ok(_) => Ok(()),
        Err(_) if standing.accepted && standing.failures < BLIND_MAX => Ok(()),
        Err(_) if right_so_far && standing.rested => Ok(()),
        Err(_) if blindly_once && standing.failures == 0 => Ok(()),
        Err(code) => withheld(
            Verdict::Unreachable,
            format!(
                "C_GetTokenInfo: {}; a PIN is not tried while the token does not say how many wrong ones it counted",
                verdict::name(code)
            ),
            "see why the token does not describe itself; keyleash looks again by itself, and tries this PIN once more after \
             10 minutes where the token took it before, a restart or `reload_pin`",
        ),
    }
}

/// After a code that does not say whether it was the PIN.
fn unclear(code: RvError, standing: Standing, before: Option<Count>, after: Option<Count>) -> Attempt {
    let counts = |count: Count| {
        let what = format!("C_Login: {}, and the token counts wrong PINs ({})", verdict::name(code), count.flag());
        fault::with_code(denied(what), code)
    };
    match (before, after) {
        // One that was never right may be what it counts.
        (_, Some(after)) if !standing.accepted && after > Count::Clear => Attempt::Refused(counts(after)),
        (Some(before), Some(after)) if after > before => Attempt::Denied { error: counts(after), counted: true },
        _ => Attempt::Failed { code, uncounted: standing.accepted && after == Some(Count::Clear) },
    }
}

/// Refused where the module may have compared with a PIN that is no more.
fn doubted(mut what: String) -> TokenError {
    what.push_str(
        "in a context that is older than the PIN may be, for calls in the module left no moment to begin another one",
    );
    let remedy = "nothing where it is the right one: it is tried once more in a fresh context; else correct it";
    TokenError { remedy: remedy.into(), ..fault::denied("login", what) }
}

fn denied(what: String) -> TokenError {
    let remedy =
        "unlock or renew the user PIN on the token, or correct the one that keyleash has; it tries again by itself";
    TokenError { remedy: remedy.into(), ..fault::denied("login", what) }
}

/// What CKR_USER_PIN_NOT_INITIALIZED means, by what the token says of itself.
///
/// SoftHSM empties the token's file for an instant whenever a process logs in. A context that is begun in that instant takes
/// the token for one without a user PIN, and keeps to that in every session as long as it lives; the flags it reads anew.
fn no_user_pin(inside: &Inside<'_>, slot: Slot) -> Fault {
    const SAYS: &str = "C_Login: CKR_USER_PIN_NOT_INITIALIZED";
    if told(inside, slot).is_ok_and(|token| !token.user_pin_initialized()) {
        return no_pin_denied(format!("{SAYS}, and the token's flags say so too")).into();
    }
    Fault::ContextInDoubt(TokenError {
        remedy: "begin a fresh context: keyleash does where the module is its own, else restart the process".into(),
        ..fault::unreachable("login", format!("{SAYS}, and the token's flags do not say so"))
    })
}

pub(super) fn no_pin_denied(what: String) -> TokenError {
    let remedy = "set the token's user PIN, as its security officer; keyleash looks again by itself";
    TokenError { remedy: remedy.into(), ..fault::denied("login", what) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER_TAKEN: Standing =
        Standing { accepted: false, failures: 0, denied: false, doubted: false, counted: false, rested: false };
    const TAKEN: Standing = Standing { accepted: true, ..NEVER_TAKEN };
    const FAILED: Standing = Standing { failures: 1, ..TAKEN };
    const COUNTED: Standing = Standing { denied: true, counted: true, ..FAILED };
    const NO_FLAGS: Result<Count, RvError> = Err(RvError::GeneralError);

    /// `None`: it is tried.
    fn withheld(count: Result<Count, RvError>, standing: Standing) -> Option<Verdict> {
        may_try(count, standing, false).err().map(|error| error.verdict)
    }

    #[test]
    fn the_last_try_before_the_token_locks_is_for_the_pin_that_it_took_last_and_nothing_has_failed_with_since() {
        assert_eq!(withheld(Ok(Count::FinalTry), TAKEN), None);
        assert_eq!(withheld(Ok(Count::FinalTry), NEVER_TAKEN), Some(Verdict::Denied));
        assert_eq!(withheld(Ok(Count::FinalTry), FAILED), Some(Verdict::Unreachable), "no code said that it is wrong");
        assert_eq!(withheld(Ok(Count::FinalTry), COUNTED), Some(Verdict::Denied));
        for standing in [TAKEN, NEVER_TAKEN, FAILED, COUNTED] {
            assert_eq!(withheld(Ok(Count::Locked), standing), Some(Verdict::Denied));
            assert_eq!(withheld(Ok(Count::Clear), standing), None);
        }
    }

    #[test]
    fn a_pin_that_the_token_counted_waits_until_somebody_has_entered_a_right_one() {
        assert_eq!(withheld(Ok(Count::Low), COUNTED), Some(Verdict::Denied));
        assert_eq!(withheld(Ok(Count::Clear), COUNTED), None);
        assert_eq!(withheld(Ok(Count::Low), FAILED), None);
        assert_eq!(withheld(Ok(Count::Low), NEVER_TAKEN), None);
    }

    #[test]
    fn without_the_token_s_flags_a_pin_is_tried_less_and_not_more() {
        assert_eq!(withheld(NO_FLAGS, NEVER_TAKEN), Some(Verdict::Unreachable));
        assert_eq!(withheld(NO_FLAGS, TAKEN), None);
        assert_eq!(withheld(NO_FLAGS, FAILED), None);
        assert_eq!(withheld(NO_FLAGS, Standing { failures: BLIND_MAX, ..TAKEN }), Some(Verdict::Unreachable));
        let rested = Standing { failures: 9, rested: true, ..TAKEN };
        assert_eq!(withheld(NO_FLAGS, rested), None, "else a token that never describes itself is never tried again");
        assert_eq!(withheld(NO_FLAGS, Standing { counted: true, ..rested }), Some(Verdict::Unreachable));
        assert_eq!(withheld(NO_FLAGS, Standing { accepted: false, ..rested }), Some(Verdict::Unreachable));
        // By slot id, where the operator knows that the token does not describe itself.
        assert!(may_try(NO_FLAGS, NEVER_TAKEN, true).is_ok());
        assert!(may_try(NO_FLAGS, Standing { failures: 1, ..NEVER_TAKEN }, true).is_err());
    }

    #[test]
    fn a_pin_that_was_taken_is_never_refused_for_good_by_a_code_that_does_not_say_so() {
        let counts = [None, Some(Count::Clear), Some(Count::Low), Some(Count::FinalTry), Some(Count::Locked)];
        for before in counts {
            for after in counts {
                let told = (before, after);
                match unclear(RvError::GeneralError, FAILED, before, after) {
                    Attempt::Denied { counted: true, .. } => assert!(before.is_some() && after > before, "{told:?}"),
                    Attempt::Failed { uncounted, .. } => {
                        assert!(before.is_none() || after <= before, "{told:?}");
                        assert_eq!(uncounted, after == Some(Count::Clear), "{told:?}");
                    }
                    _ => panic!("{told:?}"),
                }
                match unclear(RvError::GeneralError, NEVER_TAKEN, before, after) {
                    Attempt::Refused(error) => {
                        assert!(after > Some(Count::Clear) && error.verdict == Verdict::Denied, "{told:?}");
                    }
                    Attempt::Failed { uncounted, .. } => {
                        assert!(after <= Some(Count::Clear) && !uncounted, "{told:?}");
                    }
                    _ => panic!("{told:?}"),
                }
            }
        }
    }
}
