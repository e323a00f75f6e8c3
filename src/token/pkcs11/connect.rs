//! To the token: its slot, a session, and the login.

use super::fault::{self, Fault, at, code_of};
use super::module::{Inside, lock};
use super::pin::Attempt;
use super::select::{Listed, ListedToken, NoChoice, Selector, select};
use super::session::{Open, Shared};
use super::verdict::{self, Class};
use crate::clock::Instant;
use crate::token::TokenError;
use cryptoki::{
    context::Pkcs11,
    error::RvError,
    session::{Session, SessionState, UserType},
    slot::{Slot, TokenInfo},
    types::RawAuthPin,
};

impl ListedToken {
    fn of(token: &TokenInfo) -> Self {
        Self {
            label: token.label().trim_end().to_owned(),
            serial: token.serial_number().trim().to_owned(),
            initialized: token.token_initialized(),
        }
    }
}

pub(super) fn not_listed(selector: &Selector, operation: &'static str, words: &str) -> TokenError {
    TokenError {
        remedy: "connect the token, or choose one that is listed; keyleash tries again by itself".into(),
        ..fault::unreachable(operation, format!("no token with {selector}; the module lists {words}"))
    }
}

/// The slot where the token was found last, if it is there still: then no other token of the module is asked, whose answer may
/// not come.
fn found_before(shared: &Shared, pkcs11: &Pkcs11, slots: &[Slot]) -> Option<Slot> {
    let (id, serial) = lock(&shared.found).clone()?;
    let slot = slots.iter().find(|slot| slot.id() == id)?;
    let token = pkcs11.get_token_info(*slot).ok()?;
    let same = ListedToken::of(&token);
    let listed = Listed { slot: id, token: Some(same.clone()) };
    (same.serial == serial && select(&shared.selector, &[listed]).is_ok()).then_some(*slot)
}

/// The slot of the selected token, as the module lists it now.
pub(super) fn find_slot(shared: &Shared, inside: &Inside<'_>) -> Result<Slot, Fault> {
    let pkcs11 = inside.pkcs11();
    let slots = pkcs11.get_slots_with_token().map_err(at("C_GetSlotList"))?;
    if let Some(slot) = found_before(shared, pkcs11, &slots) {
        return Ok(slot);
    }
    // By slot id nothing is asked of the others: some modules fail at C_GetTokenInfo.
    let describe = !matches!(shared.selector, Selector::Slot(_));
    let listed: Vec<Listed> = slots
        .iter()
        .map(|slot| Listed {
            slot: slot.id(),
            token: describe.then(|| pkcs11.get_token_info(*slot).ok()).flatten().map(|token| ListedToken::of(&token)),
        })
        .collect();
    match select(&shared.selector, &listed) {
        Ok(id) => {
            let chosen = listed.into_iter().find(|entry| entry.slot == id).and_then(|entry| entry.token);
            // One without a serial number could be another one the next time.
            *lock(&shared.found) = chosen.filter(|token| !token.serial.is_empty()).map(|token| (id, token.serial));
            Slot::try_from(id).map_err(at("slot id"))
        }
        Err(NoChoice::None(words)) => Err(Fault::NotListed(words)),
        Err(NoChoice::Several(words)) => Err(fault::misconfigured(
            "select token",
            format!("several tokens have {}: {words}", shared.selector),
            "choose the token by its serial number",
        )
        .into()),
    }
}

/// Opens a session and logs in.
pub(super) fn connect(shared: &Shared, inside: &Inside<'_>, deadline: Instant) -> Result<Open, Fault> {
    let slot = find_slot(shared, inside)?;
    let pkcs11 = inside.pkcs11();
    let session = match pkcs11.open_rw_session_no_drop(slot) {
        Err(error) if code_of(&error) == RvError::TokenWriteProtected => pkcs11.open_ro_session_no_drop(slot),
        opened => opened,
    };
    let session = session.map_err(at("C_OpenSession"))?;
    let (number, anothers) = inside.numbers().take(session.handle());
    if anothers {
        shared.handles.lose();
    }
    match log_in(shared, inside, slot, &session, deadline) {
        Ok(()) => Ok(Open { session, number, slot, generation: inside.generation }),
        Err(fault) => {
            // By its number a session that is lost may be another's by now. The error that counts is the login's.
            if !fault.loses_session() && number.is_ours() {
                let _ = session.close();
            }
            Err(fault)
        }
    }
}

pub(super) fn is_logged_in(session: &Session) -> bool {
    let state = session.get_session_info().map(|info| info.session_state());
    matches!(state, Ok(SessionState::RoUser | SessionState::RwUser))
}

fn log_in(shared: &Shared, inside: &Inside<'_>, slot: Slot, session: &Session, deadline: Instant) -> Result<(), Fault> {
    if is_logged_in(session) {
        return Ok(());
    }
    shared.pins.login(deadline, |pin| {
        // Another worker may have logged the process in while this one waited.
        if is_logged_in(session) {
            return Attempt::Accepted;
        }
        if let Ok(token) = inside.pkcs11().get_token_info(slot) {
            // No attempt of ours: when the operator has unlocked the token, the same PIN is right.
            if token.user_pin_locked() {
                return withheld("the token has locked its user PIN");
            }
            if token.user_pin_final_try() && !shared.pins.was_accepted() {
                return withheld("one more wrong PIN would lock the token, so keyleash does not try its own");
            }
        }
        // Wiped on drop.
        let raw = RawAuthPin::new(Box::new(pin.expose().to_vec()));
        let login = session.login_with_raw(UserType::User, &raw);
        // Whatever came of it, there was no login a moment ago.
        shared.handles.lose();
        match login {
            Ok(()) => {
                tracing::info!(token = %shared.selector, "logged in to the token");
                Attempt::Accepted
            }
            Err(error) => match code_of(&error) {
                RvError::UserAlreadyLoggedIn => Attempt::Accepted,
                RvError::UserPinNotInitialized => Attempt::Withheld(no_user_pin(inside, slot)),
                // The session went away while the PIN was fetched, so no PIN was compared, whatever the token's flags say of
                // somebody else's attempts.
                code if verdict::is_lost_session(code) => Attempt::Withheld(Fault::Code { step: "C_Login", code }),
                code if verdict::class(code) == Class::Denied => {
                    Attempt::Refused(fault::denied("login", format!("C_Login: {}", verdict::name(code))))
                }
                code => match inside.pkcs11().get_token_info(slot).ok().and_then(|token| counted(&token)) {
                    Some(flag) => Attempt::Refused(fault::denied(
                        "login",
                        format!("C_Login: {}, and the token counts wrong PINs ({flag})", verdict::name(code)),
                    )),
                    None => Attempt::Failed(code),
                },
            },
        }
    })
}

fn withheld(what: &str) -> Attempt {
    let remedy =
        "unlock the user PIN, or log in once with the right PIN by another tool; keyleash looks again by itself";
    Attempt::Withheld(TokenError { remedy: remedy.into(), ..fault::denied("login", what) }.into())
}

/// What CKR_USER_PIN_NOT_INITIALIZED means, by what the token says of itself.
///
/// SoftHSM empties the token's file for an instant whenever a process logs in. A context that is begun in that instant takes
/// the token for one without a user PIN, and keeps to that in every session as long as it lives; the flags it reads anew.
fn no_user_pin(inside: &Inside<'_>, slot: Slot) -> Fault {
    const SAYS: &str = "C_Login: CKR_USER_PIN_NOT_INITIALIZED";
    if inside.pkcs11().get_token_info(slot).is_ok_and(|token| !token.user_pin_initialized()) {
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

/// The flag by which the token says that wrong PINs have been tried.
fn counted(token: &TokenInfo) -> Option<&'static str> {
    match token {
        token if token.user_pin_locked() => Some("CKF_USER_PIN_LOCKED"),
        token if token.user_pin_final_try() => Some("CKF_USER_PIN_FINAL_TRY"),
        token if token.user_pin_count_low() => Some("CKF_USER_PIN_COUNT_LOW"),
        _ => None,
    }
}
