//! One worker's session: open, log in, try, try once more on a new one, diagnose, and only then judge.

use super::attributes::Attributes;
use super::connect::{Found, connect, find_slot, not_listed};
use super::dates::{Term, today};
use super::fault::{self, Fault, at};
use super::handles::{Handles, KEKS_KEPT_MAX};
use super::kek::{self, Kek};
use super::login::{Entry, is_logged_in, no_pin_denied};
use super::module::{Inside, Module, lock};
use super::numbers::Number;
use super::pauses::{Caller, Pauses};
use super::pin::Pins;
use super::refusals::Refusals;
use super::select::Selector;
use super::told::{Told, told};
use super::verdict::{self, Class, Facts, Good};
use super::workers::Seat;
use super::wrap;
use crate::clock::{Clock, Instant};
use crate::secret::Aek;
use crate::token::{Binding, KekHandle, TokenError, Verdict, Wrapped, line::Lane};
use cryptoki::{error::RvError, session::Session, slot::Slot};
use std::{
    cell::Cell,
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How often a known good record must be refused, each time while a fresh one makes the round trip, before that is another key's
/// doing: a token that comes back, or flaps, while it is diagnosed looks the same once. Fewer times where there is no time for more.
const ANOTHER_KEY_SHOWN: usize = 3;

/// A record that has unwrapped before, to tell a bad record from a KEK in trouble. Nothing in it is secret.
#[derive(Clone)]
struct GoodRecord {
    wrapped: Wrapped,
    binding: Binding,
    /// Of the key that unwrapped it.
    attributes: Attributes,
}

/// What all workers of one token share.
pub(super) struct Shared {
    pub(super) module: Arc<Module>,
    pub(super) selector: Selector,
    pub(super) pins: Pins,
    pub(super) refusals: Refusals,
    pauses: Pauses,
    pub(super) found: Mutex<Option<Found>>,
    /// The selected token is not listed, and others are: these, in words.
    pub(super) lists_instead: Mutex<Option<String>>,
    pub(super) handles: Handles,
    /// The token has said what it is: should it not do so any more, it may be away.
    pub(super) describes_itself: AtomicBool,
    goods: Mutex<HashMap<KekHandle, GoodRecord>>,
    clock: Clock,
}

impl Shared {
    pub(super) fn new(module: Arc<Module>, selector: Selector, pins: Pins, refusals: Refusals) -> Self {
        Self {
            module,
            selector,
            pins,
            refusals,
            pauses: Pauses::default(),
            found: Mutex::default(),
            lists_instead: Mutex::default(),
            handles: Handles::default(),
            describes_itself: AtomicBool::new(false),
            goods: Mutex::default(),
            clock: Clock::Boottime,
        }
    }

    fn remember_good(&self, handle: &KekHandle, kek: &Kek, wrapped: &Wrapped, binding: &Binding) {
        let mut goods = lock(&self.goods);
        // The first one stays: that it is refused later, while a fresh one is not, gives another key away.
        if !goods.contains_key(handle) && goods.len() < KEKS_KEPT_MAX {
            let (wrapped, binding, attributes) = (wrapped.clone(), *binding, kek.attributes.clone());
            goods.insert(handle.clone(), GoodRecord { wrapped, binding, attributes });
        }
    }

    fn good(&self, handle: &KekHandle) -> Option<GoodRecord> {
        lock(&self.goods).get(handle).cloned()
    }
}

/// A session, open and logged in, of one generation of the module.
pub(super) struct Open {
    /// Opened so that its drop calls nothing: see `module`.
    pub(super) session: Session,
    pub(super) number: Number,
    pub(super) slot: Slot,
    /// What the token said of itself before the session was opened.
    pub(super) told: Option<Told>,
    pub(super) generation: u64,
}

/// What one attempt at a call works with.
pub(super) struct Context<'a> {
    pub(super) inside: &'a Inside<'a>,
    pub(super) session: &'a Session,
    pub(super) slot: Slot,
    /// What the token said of itself a moment ago, where the session was opened for this attempt.
    told_before: Option<&'a Told>,
    shared: &'a Shared,
    /// When the caller asked: what was read of the KEK before that is read again.
    asked: Instant,
    spoiled: Cell<bool>,
    /// The KEK was looked for, and found.
    found: Cell<bool>,
}

impl Context<'_> {
    /// Notes that an operation failed on the session, although the call succeeds: it may be left active there.
    pub(super) fn spoil(&self) {
        self.spoiled.set(true);
    }

    /// The KEK, found and judged sound, by the handles that are kept where they hold.
    pub(super) fn kek(&self, handle: &KekHandle) -> Result<Arc<Kek>, Fault> {
        let kek = match self.shared.handles.get(handle, self.inside.generation) {
            Ok(kek) => kek,
            Err(era) => {
                self.expect_own_token()?;
                let kek = Arc::new(kek::find(self.session, &handle.id)?.ok_or(Fault::KekMissing)?);
                self.judge(handle, &kek)?;
                self.shared.handles.keep(handle, era, &kek);
                self.found.set(true);
                kek
            }
        };
        let dates = kek.dates(self.inside.raw(), self.session, self.asked)?;
        if let Some(why) = dates.refusal() {
            return Err(self.refuse(handle, &why));
        }
        let why = |why| format!("KEK {}: {why}", handle.id);
        match dates.term(today()) {
            Term::Runs => Ok(kek),
            Term::Over(over) => Err(fault::denied("find KEK", why(over)).into()),
            Term::Unknown(unknown) => {
                let remedy = "set the machine's clock; keyleash tries again by itself".into();
                Err(TokenError { remedy, ..fault::unreachable("find KEK", why(unknown)) }.into())
            }
        }
    }

    fn judge(&self, handle: &KekHandle, kek: &Kek) -> Result<(), Fault> {
        let rsa = handle.profile == crate::token::Profile::RsaOaepSha256;
        let refusal = if kek.attributes.rsa == rsa {
            kek.attributes.refusal()
        } else {
            let is = if kek.attributes.rsa { "CKK_RSA" } else { "CKK_AES" };
            Some(format!("CKA_KEY_TYPE is {is}, which {} does not use", handle.profile))
        };
        refusal.map_or(Ok(()), |why| Err(self.refuse(handle, &why)))
    }

    fn refuse(&self, handle: &KekHandle, why: &str) -> Fault {
        let what = format!("KEK {} is refused: {why}", handle.id);
        // A KEK that worked before and is refused now was changed: that is the owner's doing, not the set-up's.
        if self.shared.good(handle).is_some() {
            return fault::denied("judge KEK", what).into();
        }
        let remedy = "make a KEK with `keyleash kek create` and rotate to it";
        fault::misconfigured("judge KEK", what, remedy).into()
    }

    /// What the token says of itself: now, or where it does not any more (SoftHSM, once it has logged in where the token's folder is
    /// read-only) just before it was logged in to for this.
    pub(super) fn told(&self) -> Result<Told, Fault> {
        match (told(self.inside, self.slot), self.told_before) {
            (Ok(token), _) => Ok(token),
            (Err(_), Some(before)) => Ok(before.clone()),
            (Err(code), None) => Err(Fault::Code { step: "C_GetTokenInfo", code }),
        }
    }

    /// Fails when the session is one of another token: in a context that somebody else began, its number may have been given to
    /// one. For what goes by no handle, which would not hold there; a KEK would be made in that token, or looked for, or proved
    /// by the clone that is there.
    pub(super) fn expect_own_token(&self) -> Result<(), Fault> {
        let info = self.session.get_session_info().map_err(at("C_GetSessionInfo"))?;
        if info.slot_id() == self.slot { Ok(()) } else { Err(Fault::HandlesMoved) }
    }

    /// Fails when the token is not listed any more or the login is gone: then that something was not found says nothing.
    pub(super) fn would_be_found(&self) -> Result<(), Fault> {
        if let Some(words) = find_slot(self.shared, self.inside)?.doubt {
            return Err(Fault::NotListed(words));
        }
        // By slot id nothing is asked there. SoftHSM goes on listing a token whose folder is away.
        let describes_itself = self.shared.describes_itself.load(Ordering::SeqCst);
        if describes_itself && told(self.inside, self.slot).is_err() {
            return Err(Fault::NotListed("a token there that does not describe itself any more".into()));
        }
        self.still_logged_in()
    }

    /// Fails when the login is gone: then not everything was found.
    pub(super) fn still_logged_in(&self) -> Result<(), Fault> {
        if is_logged_in(self.session) {
            return Ok(());
        }
        Err(Fault::Code { step: "find KEK", code: RvError::UserNotLoggedIn })
    }

    /// Every key of a KEK's type.
    pub(super) fn keys(&self) -> Result<Vec<Attributes>, Fault> {
        self.expect_own_token()?;
        let found = kek::list(self.session)?;
        if found.is_empty() { self.would_be_found() } else { self.still_logged_in() }?;
        Ok(found)
    }

    pub(super) fn wrap(&self, handle: &KekHandle, aek: &Aek, binding: &Binding) -> Result<Wrapped, Fault> {
        let kek = self.kek(handle)?;
        let wrapped = wrap::wrap(self.session, &kek, handle.profile, aek, binding);
        let wrapped = wrapped.map_err(|fault| self.half_a_key(handle, fault))?;
        // In a context that somebody else began since, the handle may be another key's. An unwrap fails then; a wrap does not, and
        // whoever finds the KEK anew could not unwrap what came of it. Looked at afterwards, so that it holds for the wrap.
        if !kek::is_named(self.inside.raw(), self.session, &kek, &handle.id)? {
            return Err(Fault::HandlesMoved);
        }
        Ok(wrapped)
    }

    /// A key that unwraps and cannot wrap denies nobody what it wrapped: it is set up wrongly, and the error says which half is missing.
    fn half_a_key(&self, handle: &KekHandle, fault: Fault) -> Fault {
        let is_refused = matches!(&fault, Fault::Code { code, .. } if matches!(verdict::class(*code), Class::Denied));
        if !is_refused {
            return fault;
        }
        match kek::find(self.session, &handle.id) {
            Ok(Some(kek)) => {
                kek.attributes.half().map_or(fault, |why| wrap::half_a_key(handle.id.as_bytes(), &why).into())
            }
            _ => fault,
        }
    }

    pub(super) fn unwrap(&self, handle: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, Fault> {
        let kek = self.kek(handle)?;
        let aek = wrap::unwrap(self.inside.raw(), self.session, &kek, handle.profile, wrapped, binding)?;
        self.shared.remember_good(handle, &kek, wrapped, binding);
        Ok(aek)
    }

    /// Wraps and unwraps random bytes.
    fn round_trip(&self, handle: &KekHandle) -> Result<(), Fault> {
        let kek = self.kek(handle)?;
        let (aek, binding) = (Aek::generate()?, [0; 32]);
        let wrapped = wrap::wrap(self.session, &kek, handle.profile, &aek, &binding)?;
        let back = wrap::unwrap(self.inside.raw(), self.session, &kek, handle.profile, &wrapped, &binding)?;
        if back == aek { Ok(()) } else { Err(fault::bad_record("diagnose", "another key came back").into()) }
    }
}

/// What a call is about, for retry and diagnosis.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) operation: &'static str,
    pub(super) kek: Option<&'a KekHandle>,
    /// It gives a record to the token, which the token may refuse.
    pub(super) unwraps: bool,
    pub(super) lane: Lane,
    /// When the caller asked.
    pub(super) asked: Instant,
}

/// How often one call re-initialises. More than once: SoftHSM leaves a token out of its list, or takes it for one without a user
/// PIN, when another process logs in to it during C_Initialize.
const REINITIALISATIONS_MAX: u32 = 3;
/// As many fresh contexts that give the same doubtful answer are no accident of one: it is believed.
const DOUBTS_MAX: u32 = 2;

/// Whether the call is made once more before the fault is judged, on a new session too: a handle may be stale, and it takes two
/// answers to take a key away.
fn is_hint(about: About<'_>, fault: &Fault) -> bool {
    let Fault::Code { code, .. } = fault else { return false };
    match verdict::class(*code) {
        Class::Retry => true,
        Class::Denied | Class::Misconfigured => about.kek.is_some(),
        Class::Unreachable | Class::BadRecord | Class::Fatal => false,
    }
}

/// A worker's place at the token.
pub(super) struct Worker {
    shared: Arc<Shared>,
    open: Option<Open>,
    /// Whoever is served now.
    entry: Entry,
    /// Their KEK was found since then.
    found: bool,
}

impl Seat for Worker {
    fn leave(&mut self) {
        let Some(open) = &self.open else { return };
        // Never waits long: at worst the module closes the session with the process.
        let deadline = self.shared.clock.now().plus(Duration::from_millis(100));
        let generation = open.generation;
        let module = self.shared.module.clone();
        if let Ok(inside) = module.enter(&Caller { operation: "close session", deadline, proof: None })
            && inside.generation == generation
        {
            self.close(&inside);
        }
    }
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let nobody = Caller { operation: "", deadline: Instant::default(), proof: None };
        let entry = Entry { caller: nobody, asked: Instant::default(), sees_to_context: false };
        Self { shared, open: None, entry, found: false }
    }

    /// Gives the module a fresh context. Holds no session while it waits; the old one dies with the old context.
    pub(super) fn renew(&mut self, caller: &Caller) -> Result<(), TokenError> {
        self.shared.module.renew(caller)
    }

    /// Makes the call: on the session that is there, once more on a new one, and again after re-initialisation where the
    /// trouble may be cured by that. Diagnoses what remains. A record is called bad when it is refused again after another was taken.
    pub(super) fn call<T>(
        &mut self,
        about: About<'_>,
        deadline: Instant,
        mut op: impl FnMut(&Context<'_>) -> Result<T, Fault>,
    ) -> Result<T, TokenError> {
        let shared = self.shared.clone();
        let proof = (about.lane == Lane::Proof).then_some(about.asked);
        let caller = Caller { operation: about.operation, deadline, proof };
        (self.entry, self.found) = (Entry { caller, asked: about.asked, sees_to_context: true }, false);
        let (mut retried, mut confirmed, mut reinitialised) = (false, false, 0);
        loop {
            let inside = shared.module.enter(&caller)?;
            let generation = inside.generation;
            // A session of a past generation is dropped without a call.
            self.open.take_if(|open| open.generation != generation);
            if self.open.take_if(|open| !open.number.is_ours()).is_some() {
                shared.handles.lose();
            }
            let was_open = self.open.is_some();
            let fault = match self.attempt(&inside, &mut op) {
                Ok(value) => {
                    shared.module.works(&shared.pauses);
                    return Ok(value);
                }
                Err(fault) => fault,
            };
            if matches!(fault, Fault::OldContext) {
                drop(inside);
                shared.module.renew_between_calls(&caller, about.asked);
                self.entry.sees_to_context = false;
                continue;
            }
            let moved = matches!(fault, Fault::HandlesMoved);
            if fault.loses_session() || moved && was_open {
                // By its number the session may be somebody else's by now: not ours to close.
                self.open = None;
            }
            self.close(&inside);
            if fault.loses_session() || moved {
                shared.handles.lose();
            } else if let Some(kek) = about.kek
                && !(self.found && fault.is_denial())
            {
                shared.handles.forget(kek);
            }
            if shared.clock.now() >= deadline {
                return Err(fault::unreachable(about.operation, "the token did not answer until the deadline"));
            }
            // Whatever was said on a session that was open for a while is but a hint.
            let paused = matches!(fault, Fault::LoginPaused(_));
            let in_doubt = matches!(fault, Fault::ContextInDoubt(_));
            let hint = was_open || is_hint(about, &fault);
            if hint && !retried && !paused && !in_doubt && !matches!(fault, Fault::Settled(_)) {
                retried = true;
                continue;
            }
            let coded = matches!(fault, Fault::Code { .. });
            let ended = matches!(fault, Fault::Code { code: RvError::CryptokiNotInitialized, .. });
            let mut error = self.settle(&inside, about, fault);
            if error.verdict == Verdict::BadRecord && coded && !confirmed {
                // The token may have come back between this record and the one that worked.
                confirmed = true;
                continue;
            }
            drop(inside);
            if in_doubt && reinitialised >= DOUBTS_MAX {
                error = no_pin_denied(error.what);
            }
            let given_up = paused || reinitialised == REINITIALISATIONS_MAX || shared.clock.now() >= deadline;
            if error.verdict != Verdict::Unreachable || given_up {
                return Err(error);
            }
            reinitialised += 1;
            if let Err(why) = shared.module.reinitialise(&shared.pauses, generation, ended, &caller) {
                error.what.push_str(&format!(" (re-initialisation: {why})"));
                return Err(error);
            }
        }
    }

    fn attempt<T>(
        &mut self,
        inside: &Inside<'_>,
        op: &mut impl FnMut(&Context<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let (open, is_new) = match self.open.take() {
            Some(open) => (open, false),
            None => (connect(&self.shared, inside, &self.entry)?, true),
        };
        let open = self.open.insert(open);
        let context = Context {
            inside,
            session: &open.session,
            slot: open.slot,
            told_before: open.told.as_ref().filter(|_| is_new),
            shared: &self.shared,
            asked: self.entry.asked,
            spoiled: Cell::new(false),
            found: Cell::new(false),
        };
        let result = op(&context);
        self.found |= context.found.get();
        if context.spoiled.get() {
            self.close(inside);
        }
        result
    }

    /// Closes the session; the caller is inside, in the session's generation.
    fn close(&mut self, inside: &Inside<'_>) {
        if let Some(open) = self.open.take()
            && open.generation == inside.generation
            && open.number.is_ours()
            && let Err(error) = open.session.close()
        {
            tracing::debug!(%error, "a session could not be closed");
        }
    }

    /// Diagnoses and judges. Leaves no session in which anything failed.
    fn settle(&mut self, inside: &Inside<'_>, about: About<'_>, fault: Fault) -> TokenError {
        let operation = about.operation;
        let (step, code) = match fault {
            Fault::Settled(error) | Fault::LoginPaused(error) | Fault::ContextInDoubt(error) => return error,
            Fault::NotListed(words) => return not_listed(&self.shared.selector, operation, &words),
            // Found nothing: on a token that is listed that is a denial, else it means nothing. SoftHSM forgets the KEKs of a
            // token whose directory is away before it forgets the token.
            Fault::KekMissing => ("find KEK", RvError::ObjectHandleInvalid),
            Fault::HandlesMoved => ("C_GetAttributeValue of CKA_ID", RvError::KeyHandleInvalid),
            // Only where a PIN is another one by now than the one that was let in.
            Fault::OldContext => ("C_Login", RvError::UserNotLoggedIn),
            Fault::Code { step, code } => (step, code),
        };
        let facts = match self.diagnose(inside, about, code) {
            Ok(facts) => facts,
            Err(Fault::NotListed(_)) => Facts { listed: Some(false), ..Facts::default() },
            Err(Fault::Settled(error) | Fault::LoginPaused(error) | Fault::ContextInDoubt(error)) => return error,
            Err(Fault::KekMissing | Fault::HandlesMoved | Fault::OldContext | Fault::Code { .. }) => Facts::default(),
        };
        if facts.listed == Some(true) && facts.kek_found == Some(false) {
            let id = about.kek.map_or_else(String::new, |kek| format!(" {}", kek.id));
            return fault::denied(operation, format!("the token is there and has no KEK{id}"));
        }
        let mut error = fault::concluded(verdict::conclude(code, facts), operation, step, code);
        if facts.good == Good::AnotherKey {
            error.what.push_str("; the KEK is another key than before, under the same CKA_ID");
            facts.differs_in.into_iter().for_each(|attribute| error.what.push_str(&format!(": {attribute} differs")));
        }
        if facts.listed == Some(false) {
            error.what.push_str("; the token is no longer listed");
        }
        error
    }

    fn diagnose(&mut self, inside: &Inside<'_>, about: About<'_>, code: RvError) -> Result<Facts, Fault> {
        let mut facts = Facts::default();
        // A denial was heard twice, the second time by a key that was found for it on a new session. To look for that once more would
        // change nothing, and takes as long again: a denial that comes after the deadline is a silence.
        let is_denied = matches!(verdict::class(code), Class::Denied);
        let Some(handle) = about.kek.filter(|_| !is_denied) else {
            // Where the token does not describe itself, nothing is known.
            facts.listed =
                find_slot(&self.shared, inside).map_or(Some(false), |place| place.doubt.is_none().then_some(true));
            return Ok(facts);
        };
        // Connects anew, so it tells whether the token is listed and takes the login.
        let found = self.attempt(inside, &mut |context| {
            let found = kek::find(context.session, &handle.id)?;
            // Listed before and after: else it may have gone away in between, and took the KEK along.
            if found.is_none() {
                context.would_be_found()?;
            }
            Ok(found)
        });
        let found = self.closed_on_error(inside, found)?;
        facts.listed = Some(true);
        facts.kek_found = Some(found.is_some());
        let known = self.shared.good(handle);
        facts.worked_before = known.is_some();
        let may_be_the_record =
            matches!(verdict::class(code), Class::BadRecord | Class::Misconfigured | Class::Unreachable);
        if found.is_none() || !about.unwraps || !may_be_the_record {
            return Ok(facts);
        }
        (facts.good, facts.differs_in) = match known {
            Some(known) => self.compare(inside, handle, &known),
            // Where this fails, perhaps only wrapping is off.
            None if self.makes_round_trip(inside, handle) => (Good::Unwraps, None),
            None => (Good::Unknown, None),
        };
        Ok(facts)
    }

    /// Whether the KEK is still the one that unwrapped `known`, and where it is not, an attribute that says so.
    fn compare(&mut self, inside: &Inside<'_>, handle: &KekHandle, known: &GoodRecord) -> (Good, Option<&'static str>) {
        let mut differs_in = None;
        let mut round = Duration::ZERO;
        for shown in 0..ANOTHER_KEY_SHOWN {
            let began = self.shared.clock.now();
            // What is said after the deadline is silence, and a token that is so slow would hide another key behind it.
            if shown > 0 && self.entry.caller.deadline.since(began) < round.saturating_mul(2) {
                break;
            }
            let again =
                self.attempt(inside, &mut |context| context.unwrap(handle, &known.wrapped, &known.binding).map(drop));
            if self.closed_on_error(inside, again).is_ok() {
                return (Good::Unwraps, None);
            }
            differs_in = self.differs_in(inside, handle, &known.attributes);
            // One that may not wrap makes no round trip, whosever it is.
            if differs_in.is_none() && !self.makes_round_trip(inside, handle) {
                return (Good::Refused, None);
            }
            round = self.shared.clock.now().since(began);
        }
        (Good::AnotherKey, differs_in)
    }

    /// What tells the key that is there now from the one that is known.
    fn differs_in(&mut self, inside: &Inside<'_>, handle: &KekHandle, known: &Attributes) -> Option<&'static str> {
        let found = self.attempt(inside, &mut |context| {
            context.expect_own_token()?;
            kek::find(context.session, &handle.id)
        });
        let found = self.closed_on_error(inside, found).ok().flatten()?;
        found.attributes.other_than(known)
    }

    fn makes_round_trip(&mut self, inside: &Inside<'_>, handle: &KekHandle) -> bool {
        let fresh = self.attempt(inside, &mut |context| context.round_trip(handle));
        self.closed_on_error(inside, fresh).is_ok()
    }

    fn closed_on_error<T>(&mut self, inside: &Inside<'_>, result: Result<T, Fault>) -> Result<T, Fault> {
        if result.is_err() {
            self.close(inside);
        }
        result
    }
}
