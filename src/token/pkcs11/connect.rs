//! To the token: its slot, and a session there.

use super::fault::{self, Fault, at, code_of};
use super::login::{Entry, is_logged_in, log_in};
use super::module::{Inside, lock};
use super::select::{Listed, ListedToken, NoChoice, Selector, select};
use super::session::{Open, Shared};
use super::told::{Told, told};
use crate::token::TokenError;
use cryptoki::{context::Pkcs11, error::RvError, session::Session, slot::Slot};

impl From<&Told> for ListedToken {
    fn from(token: &Told) -> Self {
        Self { label: token.label.clone(), serial: token.serial.clone(), initialized: token.initialized() }
    }
}

/// Where the token was found last, and what it said of itself.
#[derive(Clone)]
pub(super) struct Found {
    slot: Slot,
    /// The context's, in which the slot's number means the same.
    generation: u64,
    told: Told,
}

impl Found {
    /// The token's serial number, where it has one.
    pub(super) fn serial(&self) -> Option<String> {
        Some(self.told.serial.clone()).filter(|serial| !serial.is_empty())
    }
}

/// The slot of the selected token.
pub(super) struct Place {
    pub(super) slot: Slot,
    /// What the token says of itself; `None` by slot id, where nothing is asked, and in doubt.
    told: Option<Told>,
    /// It was found there in this context, and what is there does not describe itself any more (what is listed, in words). SoftHSM
    /// looks like that once it has logged in where the token's folder is read-only, and when the folder is away: what is found
    /// there counts, and that something is not found there says nothing.
    pub(super) doubt: Option<String>,
}

pub(super) fn not_listed(selector: &Selector, operation: &'static str, words: &str) -> TokenError {
    TokenError {
        remedy: "connect the token, or choose one that is listed; keyleash tries again by itself".into(),
        ..fault::unreachable(operation, format!("no token with {selector}; the module lists {words}"))
    }
}

/// Whether what is listed are tokens like the one that was looked for.
fn are_others(selector: &Selector, listed: &[Listed]) -> bool {
    match selector {
        Selector::Slot(_) => !listed.is_empty(),
        Selector::Label(_) | Selector::Serial(_) => {
            listed.iter().any(|entry| entry.token.as_ref().is_some_and(|token| token.initialized))
        }
    }
}

/// What is in the slot where the token was found last, if it is there still: then no other token of the module is asked, whose answer
/// may not come.
fn found_before(shared: &Shared, inside: &Inside<'_>, slots: &[Slot]) -> Option<Place> {
    let found = lock(&shared.found).clone()?;
    let slot = *slots.iter().find(|slot| slot.id() == found.slot.id())?;
    let token = told(inside, slot).ok()?;
    let listed = Listed { slot: slot.id(), token: Some((&token).into()) };
    // One without a serial number could be another one now.
    let same = !token.serial.is_empty() && token.serial == found.told.serial;
    if !same || select(&shared.selector, &[listed]).is_err() {
        return None;
    }
    *lock(&shared.found) = Some(Found { slot, generation: inside.generation, told: token.clone() });
    Some(Place { slot, told: Some(token), doubt: None })
}

/// The slot of the selected token, as the module lists it now.
pub(super) fn find_slot(shared: &Shared, inside: &Inside<'_>) -> Result<Place, Fault> {
    let slots = inside.pkcs11().get_slots_with_token().map_err(at("C_GetSlotList"))?;
    if let Some(place) = found_before(shared, inside, &slots) {
        return Ok(place);
    }
    // By slot id nothing is asked of the others: some modules fail at C_GetTokenInfo.
    let describe = !matches!(shared.selector, Selector::Slot(_));
    let mut described: Vec<(Slot, Option<Told>)> =
        slots.iter().map(|slot| (*slot, describe.then(|| told(inside, *slot).ok()).flatten())).collect();
    let listed: Vec<Listed> = described
        .iter()
        .map(|(slot, token)| Listed { slot: slot.id(), token: token.as_ref().map(Into::into) })
        .collect();
    let choice = select(&shared.selector, &listed);
    *lock(&shared.lists_instead) = match &choice {
        Err(NoChoice::None(words)) if are_others(&shared.selector, &listed) => Some(words.clone()),
        _ => None,
    };
    match choice {
        Ok(id) => {
            let chosen = described.iter_mut().find(|(slot, _)| slot.id() == id);
            let (slot, token) = match chosen {
                Some((slot, token)) => (*slot, token.take()),
                None => (Slot::try_from(id).map_err(at("slot id"))?, None),
            };
            let found = token.clone().map(|told| Found { slot, generation: inside.generation, told });
            *lock(&shared.found) = found;
            Ok(Place { slot, told: token, doubt: None })
        }
        Err(NoChoice::None(words)) => {
            let here = lock(&shared.found).clone().filter(|found| found.generation == inside.generation);
            let silent = |slot: Slot| described.iter().any(|(at, told)| at.id() == slot.id() && told.is_none());
            match here.filter(|found| silent(found.slot)) {
                Some(Found { slot, .. }) => Ok(Place { slot, told: None, doubt: Some(words) }),
                None => Err(Fault::NotListed(words)),
            }
        }
        Err(NoChoice::Several(words)) => Err(fault::misconfigured(
            "select token",
            format!("several tokens have {}: {words}", shared.selector),
            "choose the token by its serial number",
        )
        .into()),
    }
}

/// Opens a session and logs in.
pub(super) fn connect(shared: &Shared, inside: &Inside<'_>, entry: &Entry) -> Result<Open, Fault> {
    let Place { slot, told, doubt } = find_slot(shared, inside)?;
    let session = open_session(inside.pkcs11(), slot).map_err(at("C_OpenSession"))?;
    let (number, anothers) = inside.numbers().take(session.handle());
    if anothers {
        shared.handles.lose();
    }
    let entered = match doubt {
        // Into whatever token is there no PIN goes.
        Some(words) if !is_logged_in(&session) => Err(Fault::NotListed(words)),
        _ => log_in(shared, inside, slot, &session, entry),
    };
    match entered {
        Ok(()) => Ok(Open { session, number, slot, told, generation: inside.generation }),
        Err(fault) => {
            // By its number a session that is lost may be another's by now. The error that counts is the login's.
            if !fault.loses_session() && number.is_ours() {
                let _ = session.close();
            }
            Err(fault)
        }
    }
}

fn open_session(pkcs11: &Pkcs11, slot: Slot) -> Result<Session, cryptoki::error::Error> {
    match pkcs11.open_rw_session_no_drop(slot) {
        Err(error) if code_of(&error) == RvError::TokenWriteProtected => pkcs11.open_ro_session_no_drop(slot),
        opened => opened,
    }
}
