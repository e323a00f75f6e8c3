//! What is in force in an engine: the policies that count, and the permits of its handles, which follow them.
//!
//! A permit is in two lists before it is worked out: in that of its account's keys, which work it out anew when the account comes under
//! another KEK, and in that of the policies. Each working out takes the permit's lock, and reads policies and KEK behind it: whoever
//! changed one of them, and then looked for permits, either found this one, or was seen by it.

use super::{Operation, Operations, Policy, Scope, forbidden};
use crate::{
    error::{Error, Result},
    name::{AccountId, CallerId, KekName},
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
    },
};

/// In the word of a permit: it was worked out once.
const SETTLED: u32 = 1 << 31;
/// Permits that are listed before those are looked for that nobody holds any more.
const LISTED_MIN: usize = 64;

/// What counts.
#[derive(Debug)]
enum State {
    /// It is not known yet.
    Unread,
    /// There is no policy: everybody may do everything, without a name too.
    Open,
    /// What any of them grants.
    Governed(Vec<Arc<Policy>>),
    /// It cannot be known, and this is said to everybody.
    Refused(Error),
}

/// The policies that count, and whose permits they decide.
#[derive(Debug)]
pub(crate) struct Force {
    state: RwLock<Arc<State>>,
    /// There is no policy.
    is_open: AtomicBool,
    /// What a caller without a name may do: all, or nothing.
    unnamed: AtomicU32,
    /// Why nobody may do anything to data, whatever is granted.
    withheld: RwLock<Option<Error>>,
    permits: Mutex<Vec<Weak<Permit>>>,
    refused: AtomicU64,
}

impl Force {
    /// Nothing is known yet.
    pub(crate) fn unread() -> Arc<Self> {
        Arc::new(Self {
            state: RwLock::new(Arc::new(State::Unread)),
            is_open: AtomicBool::new(false),
            unnamed: AtomicU32::new(0),
            withheld: RwLock::default(),
            permits: Mutex::default(),
            refused: AtomicU64::new(0),
        })
    }

    /// No policy counts.
    pub(crate) fn open() -> Arc<Self> {
        let force = Self::unread();
        force.set(State::Open);
        force
    }

    /// From now on these count; none at all is no policy.
    pub(crate) fn govern(&self, policies: Vec<Arc<Policy>>) {
        self.set(if policies.is_empty() { State::Open } else { State::Governed(policies) });
    }

    /// From now on everybody is refused.
    pub(crate) fn refuse(&self, why: Error) {
        self.set(State::Refused(why));
    }

    fn set(&self, state: State) {
        {
            let mut now = self.state.write().unwrap_or_else(PoisonError::into_inner);
            self.is_open.store(matches!(state, State::Open), Ordering::Release);
            *now = Arc::new(state);
        }
        self.work_out();
    }

    /// From now on all handles are refused, for this reason; or by what is granted alone, again.
    pub(crate) fn withhold(&self, why: Option<Error>) {
        *self.withheld.write().unwrap_or_else(PoisonError::into_inner) = why;
        self.work_out();
    }

    /// Why nobody may do anything to data.
    pub(crate) fn withheld(&self) -> Option<Error> {
        self.withheld.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes anew what each handle reads.
    fn work_out(&self) {
        {
            // Nobody else's until it is written, so that of two changes the last is what is written.
            let withheld = self.withheld.write().unwrap_or_else(PoisonError::into_inner);
            let has_all = self.is_open() && withheld.is_none();
            let unnamed = if has_all { Operations::ALL } else { Operations::NONE };
            self.unnamed.store(unnamed.bits(), Ordering::Release);
        }
        let permits: Vec<_> = self.permits().iter().filter_map(Weak::upgrade).collect();
        permits.iter().for_each(|permit| permit.work_out(|| None));
    }

    fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn permits(&self) -> MutexGuard<'_, Vec<Weak<Permit>>> {
        // Whole after every step.
        self.permits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody was refused.
    pub(crate) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How often somebody was refused.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// True where there is no policy.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// True before anything is known.
    pub(crate) fn is_unread(&self) -> bool {
        !self.is_open() && matches!(*self.state(), State::Unread)
    }

    /// Whether a caller may do this.
    ///
    /// # Errors
    /// [`Error::Forbidden`]; where it cannot be known, why.
    pub(crate) fn ask(&self, caller: Option<&CallerId>, operation: Operation, on: Scope<'_>) -> Result<()> {
        self.ask_of(caller, operation, on, |policy, caller| policy.operations(caller, on).has(operation))
    }

    /// Whether a caller may do this to anything at all: who may not is refused before it is looked what there is.
    ///
    /// # Errors
    /// As [`Force::ask`].
    pub(crate) fn ask_anywhere(&self, caller: Option<&CallerId>, operation: Operation, on: Scope<'_>) -> Result<()> {
        self.ask_of(caller, operation, on, |policy, caller| policy.has_anywhere(caller, operation))
    }

    fn ask_of(
        &self,
        caller: Option<&CallerId>,
        operation: Operation,
        on: Scope<'_>,
        is_granted: impl Fn(&Policy, &CallerId) -> bool,
    ) -> Result<()> {
        match &*self.state() {
            State::Open => Ok(()),
            State::Refused(why) => Err(why.clone()),
            State::Governed(policies) => match caller {
                Some(caller) if policies.iter().any(|policy| is_granted(policy, caller)) => Ok(()),
                _ => Err(forbidden(caller, operation, on)),
            },
            State::Unread => Err(forbidden(caller, operation, on)), // nobody asks before it is read
        }
    }

    fn operations(&self, caller: &CallerId, on: Scope<'_>) -> Operations {
        if self.withheld().is_some() {
            return Operations::NONE;
        }
        match &*self.state() {
            State::Open => Operations::ALL,
            State::Governed(policies) => {
                policies.iter().fold(Operations::NONE, |all, policy| all.and(policy.operations(caller, on)))
            }
            State::Unread | State::Refused(_) => Operations::NONE,
        }
    }

    /// What a handle without a caller may do.
    #[inline(always)]
    pub(crate) fn unnamed_has(&self, operation: Operation) -> bool {
        self.unnamed.load(Ordering::Acquire) & Operations::of(&[operation]).bits() != 0
    }

    /// What a handle may do: one with a permit, or one without a caller.
    #[inline(always)]
    pub(crate) fn lets(&self, permit: Option<&Permit>, operation: Operation) -> bool {
        permit.map_or_else(|| self.unnamed_has(operation), |permit| permit.has(operation))
    }

    fn list(&self, permit: &Arc<Permit>) {
        let mut permits = self.permits();
        if permits.len() >= LISTED_MIN && permits.len() == permits.capacity() {
            permits.retain(|permit| permit.strong_count() > 0);
            let alive = permits.len();
            permits.reserve(alive.max(LISTED_MIN));
        }
        permits.push(Arc::downgrade(permit));
    }
}

/// What one caller may do with one account now. Shared by the handles of both.
#[derive(Debug)]
pub(crate) struct Permit {
    /// A bit for each operation, and [`SETTLED`].
    word: AtomicU32,
    /// `None` for the engine's own hand.
    caller: Option<CallerId>,
    account: Option<AccountId>,
    /// The KEK that the account is under.
    kek: Mutex<Option<KekName>>,
    force: Arc<Force>,
}

impl Permit {
    /// That of the engine's own hand, which no policy takes anything from.
    #[cfg(feature = "secrets")]
    pub(crate) fn of_engine(force: &Arc<Force>) -> Arc<Self> {
        let word = AtomicU32::new(Operations::ALL.bits() | SETTLED);
        Arc::new(Self { word, caller: None, account: None, kek: Mutex::default(), force: force.clone() })
    }

    /// The one load of the data path.
    #[inline(always)]
    pub(crate) fn has(&self, operation: Operation) -> bool {
        self.word.load(Ordering::Acquire) & Operations::of(&[operation]).bits() != 0
    }

    /// Who has it.
    pub(crate) fn caller(&self) -> Option<&CallerId> {
        self.caller.as_ref()
    }

    fn is_of(&self, caller: &CallerId) -> bool {
        self.caller.as_ref().is_some_and(|own| own.is(caller))
    }

    /// Why an operation is refused, or that it is not by now.
    #[cold]
    pub(crate) fn ask(&self, operation: Operation) -> Result<()> {
        let kek = self.kek().clone();
        self.force.ask(self.caller(), operation, Scope { kek: kek.as_ref(), account: self.account.as_ref() })
    }

    fn kek(&self) -> MutexGuard<'_, Option<KekName>> {
        // Whole after every step.
        self.kek.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `under` gives the KEK where it may be another one.
    fn work_out(&self, under: impl FnOnce() -> Option<KekName>) {
        let mut kek = self.kek();
        *kek = under().or_else(|| kek.take());
        let Some(caller) = &self.caller else { return };
        let operations = self.force.operations(caller, Scope { kek: kek.as_ref(), account: self.account.as_ref() });
        self.word.store(operations.bits() | SETTLED, Ordering::Release);
    }
}

/// The permits of one account.
#[derive(Debug, Default)]
pub(crate) struct Permits {
    /// That of the caller who came first: most accounts have one caller.
    first: OnceLock<Arc<Permit>>,
    others: Mutex<HashMap<CallerId, Weak<Permit>>>,
}

impl Permits {
    fn others(&self) -> MutexGuard<'_, HashMap<CallerId, Weak<Permit>>> {
        // Whole after every step.
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The permit of a caller, made where there is none. `kek` is what the account is under by the time that it is asked.
    #[inline]
    pub(crate) fn of(
        &self,
        force: &Arc<Force>,
        caller: &CallerId,
        account: &AccountId,
        kek: impl Fn() -> KekName,
    ) -> Arc<Permit> {
        let first = self.first.get().filter(|permit| permit.is_of(caller));
        let permit = first.map_or_else(|| self.find_or_make(force, caller, account, &kek), Arc::clone);
        if permit.word.load(Ordering::Acquire) & SETTLED == 0 {
            fence(Ordering::SeqCst); // it is listed before the KEK is looked at: see who changes that
            permit.work_out(|| Some(kek()));
        }
        permit
    }

    fn find_or_make(
        &self,
        force: &Arc<Force>,
        caller: &CallerId,
        account: &AccountId,
        kek: impl Fn() -> KekName,
    ) -> Arc<Permit> {
        let make = || {
            let (caller, account, kek) = (Some(caller.clone()), Some(account.clone()), Mutex::new(Some(kek())));
            let permit = Arc::new(Permit { word: AtomicU32::new(0), caller, account, kek, force: force.clone() });
            force.list(&permit);
            permit
        };
        let first = self.first.get_or_init(&make);
        if first.is_of(caller) {
            return first.clone();
        }
        let mut others = self.others();
        if let Some(permit) = others.get(caller).and_then(Weak::upgrade) {
            return permit;
        }
        if others.len() == others.capacity() {
            others.retain(|_, permit| permit.strong_count() > 0);
        }
        let permit = make();
        others.insert(caller.clone(), Arc::downgrade(&permit));
        permit
    }

    /// The account is under another KEK, it may be.
    pub(crate) fn follow(&self, kek: impl Fn() -> KekName) {
        let others: Vec<_> = self.others().values().filter_map(Weak::upgrade).collect();
        self.first.get().into_iter().chain(&others).for_each(|permit| permit.work_out(|| Some(kek())));
    }
}
