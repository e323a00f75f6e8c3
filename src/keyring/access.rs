//! Which policies are in force, and the questions that need the store: under which KEK an account is.

use super::Keyring;
use crate::{
    access::{Force, Operation, Policy, Scope, forbidden},
    error::{Error, Result},
    name::{AccountId, CallerId, GrantId, KekName},
    secret::fork,
    store::{
        Filter, Key, KeyStore, PAGE_KEYS_MAX, StoreVersion, check_limit, load_account,
        policy::{self, Change, Read},
        record::AccountRecord,
    },
    telemetry::Event,
};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// How often the store is asked whether the policy is another one.
pub(crate) const POLICY_LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// Where an engine's policy comes from.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum PolicySource {
    /// The store of the engine: one policy for a fleet. Without any grant there everybody may do everything, as before there were grants.
    #[default]
    Store,
    /// These grants, and those of the store. They govern this engine alone, also while the store has none.
    Given(Policy),
    /// None: this engine refuses nobody, whatever the store says. For tests, and for a process that decides for itself who may do what,
    /// and does so for every caller that it has: of promise 7 nothing is left.
    None,
}

/// What an operation is done to, as a caller names it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum On<'a> {
    /// An account, under whichever KEK it is.
    Account(&'a AccountId),
    /// An account under this KEK, where it is or is to be.
    Under(&'a AccountId, &'a KekName),
    /// A KEK, and whatever it wraps.
    Kek(&'a KekName),
    /// All that there is.
    All,
}

impl<'a> On<'a> {
    /// An account, a KEK, the one under the other, or all that there is.
    pub(crate) fn of(account: Option<&'a AccountId>, kek: Option<&'a KekName>) -> Self {
        match (account, kek) {
            (Some(account), Some(kek)) => Self::Under(account, kek),
            (Some(account), None) => Self::Account(account),
            (None, Some(kek)) => Self::Kek(kek),
            (None, None) => Self::All,
        }
    }

    /// What [`On::of`] makes it of, to keep.
    pub(crate) fn names(self) -> (Option<AccountId>, Option<KekName>) {
        let (account, kek) = match self {
            Self::Account(account) => (Some(account), None),
            Self::Under(account, kek) => (Some(account), Some(kek)),
            Self::Kek(kek) => (None, Some(kek)),
            Self::All => (None, None),
        };
        (account.cloned(), kek.cloned())
    }
}

/// What is in force in an engine.
#[derive(Debug)]
pub(crate) struct InForce {
    pub(crate) force: Arc<Force>,
    reads_store: bool,
    given: Option<Arc<Policy>>,
    /// Held while the store is read: what was read later is put in force later.
    known: tokio::sync::Mutex<Known>,
    damage: Mutex<Option<Error>>,
    /// Of the store's policy; 0 where there is none.
    generation: AtomicU64,
}

/// What the store said last.
#[derive(Debug, Default)]
enum Known {
    #[default]
    Nothing,
    None,
    Version(StoreVersion),
}

impl InForce {
    pub(crate) fn new(source: PolicySource) -> Self {
        let force = if matches!(source, PolicySource::None) { Force::open() } else { Force::unread() };
        let reads_store = !matches!(source, PolicySource::None);
        let given = match source {
            PolicySource::Given(policy) => Some(Arc::new(policy)).filter(|policy| !policy.grants().is_empty()),
            PolicySource::Store | PolicySource::None => None,
        };
        let (known, damage, generation) = Default::default();
        Self { force, reads_store, given, known, damage, generation }
    }

    /// True where the store's policy counts.
    pub(crate) fn reads_store(&self) -> bool {
        self.reads_store
    }

    /// True once a policy of the store was read.
    pub(crate) fn knows_a_policy(&self) -> bool {
        self.generation.load(Ordering::SeqCst) > 0
    }

    /// What is wrong with the store's policy.
    pub(crate) fn damage(&self) -> Option<Error> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same as before?
    fn set_damage(&self, damage: Option<Error>) -> bool {
        let mut now = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = *now == damage;
        *now = damage;
        is_same
    }
}

impl Keyring {
    /// Reads the store's policy, unless it is the one that is known, and puts it in force. While the store does not answer, what was read
    /// last stays in force.
    ///
    /// # Errors
    /// [`Error::Store`] and the like while nothing is known yet. That it is damaged is what is in force then, and no error here.
    pub(crate) async fn follow_policy(&self) -> Result<()> {
        if !self.access.reads_store {
            return Ok(());
        }
        // Who waits for another's look at a store that hangs waits no longer than by a look of its own.
        let timeout = self.settings.store_timeout;
        let looked = self.clock.until(self.clock.now().plus(timeout), self.look_at_policy()).await;
        let looked = looked.unwrap_or_else(|| {
            let ms = timeout.as_millis();
            Err(Error::Store(format!("the policy could not be read within {ms} ms: see that the store is reachable")))
        });
        match looked {
            Err(error) if self.access.force.is_unread() => Err(error),
            _ => Ok(()), // a store that is silent is told where that matters
        }
    }

    async fn look_at_policy(&self) -> Result<()> {
        let access = &self.access;
        let mut known = access.known.lock().await;
        let of_store = match &*known {
            Known::Nothing => policy::Known::Nothing,
            Known::None if self.is_known_governed() => policy::Known::Nothing,
            Known::None => policy::Known::None,
            Known::Version(version) => policy::Known::Version(version),
        };
        let read = policy::read(&*self.store, of_store).await;
        let given = || access.given.iter().cloned();
        match read {
            Ok(Read::Same) => drop(access.set_damage(None)),
            Ok(Read::None) => {
                access.set_damage(None);
                if !matches!(*known, Known::None) {
                    access.force.govern(given().collect());
                    *known = Known::None;
                }
            }
            Ok(Read::Policy(stored)) => {
                let generation = stored.record.generation;
                access.generation.store(generation, Ordering::SeqCst);
                access.force.govern(given().chain([Arc::new(stored.policy)]).collect());
                *known = Known::Version(stored.version);
                access.set_damage(None);
                self.teller.tell(Event::PolicyInForce { generation });
            }
            Err(error @ Error::Corrupt(_)) => {
                if !access.knows_a_policy() {
                    // There is one, and nobody knows what it grants.
                    access.force.refuse(error.clone());
                    *known = Known::Nothing;
                }
                if !access.set_damage(Some(error.clone())) {
                    self.teller.tell(Event::PolicyDamaged { error: error.to_string() });
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Before anybody is judged: what is in force is known.
    ///
    /// # Errors
    /// As [`Keyring::follow_policy`].
    pub(crate) async fn policy_known(&self) -> Result<()> {
        if self.access.force.is_open() || !self.access.force.is_unread() { Ok(()) } else { self.follow_policy().await }
    }

    /// Changes the store's policy; in force in this engine when it returns.
    ///
    /// # Errors
    /// As [`policy::change`].
    pub(crate) async fn change_policy(&self, caller: Option<&CallerId>, change: &Change) -> Result<Vec<GrantId>> {
        let given = self.access.given.as_deref();
        let may = |of_store: Option<&Policy>| {
            let policies: Vec<_> = given.into_iter().chain(of_store).collect();
            let writes = |caller: &CallerId| {
                policies.iter().any(|policy| policy.operations(caller, Scope::ALL).has(Operation::GrantWrite))
            };
            match policies.is_empty() || !self.access.reads_store || caller.is_some_and(writes) {
                true => Ok(()),
                false => Err(forbidden(caller, Operation::GrantWrite, Scope::ALL)),
            }
        };
        // What a policy's loss is noticed by can be written: it is written behind the policy, whose loss it would be before.
        self.date().await?;
        let changed = policy::change(&*self.store, change, &may).await;
        // Also where it failed: it may have been done.
        let followed = self.follow_policy().await;
        let added = changed.inspect_err(|error| self.count_forbidden(error))?;
        followed?;
        self.note_governed().await?;
        Ok(added)
    }

    /// Whether a caller may do all of these. At once, but where it must be read under which KEK an account is.
    ///
    /// # Errors
    /// [`Error::Forbidden`], in the same words whether there is such an account, under another KEK, or none; [`Error::Store`].
    pub(crate) async fn permit(&self, caller: Option<&CallerId>, operations: &[Operation], on: On<'_>) -> Result<()> {
        if self.access.force.is_open() {
            return Ok(());
        }
        fork::refuse_child()?; // a lock may be held there for good
        self.policy_known().await?;
        let judged = judge(&self.access.force, &*self.store, caller, operations, on).await;
        judged.inspect_err(|error| self.count_forbidden(error))
    }

    fn count_forbidden(&self, error: &Error) {
        if matches!(error, Error::Forbidden(_)) {
            self.access.force.count_refused();
        }
    }

    /// Of these KEKs those that a caller may `get`.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for a caller that may get nothing at all.
    pub(crate) async fn keks_for(&self, caller: Option<&CallerId>, mut keks: Vec<KekName>) -> Result<Vec<KekName>> {
        self.policy_known().await?;
        let force = &self.access.force;
        force.ask_anywhere(caller, Operation::Get, Scope::ALL).inspect_err(|error| self.count_forbidden(error))?;
        keks.retain(|kek| force.ask(caller, Operation::Get, Scope::kek(kek)).is_ok());
        Ok(keks)
    }

    /// A page of the accounts that a caller may `get`, and the account to go on behind.
    ///
    /// # Errors
    /// As [`Keyring::keks_for`]; [`Error::Store`]; [`Error::Invalid`] for a limit of 0.
    pub(crate) async fn accounts_for(
        &self,
        caller: Option<&CallerId>,
        mut after: Option<Key>,
        limit: usize,
    ) -> Result<(Vec<AccountId>, Option<AccountId>)> {
        self.policy_known().await?;
        let force = &self.access.force;
        force.ask_anywhere(caller, Operation::Get, Scope::ALL).inspect_err(|error| self.count_forbidden(error))?;
        let sees_all = force.ask(caller, Operation::Get, Scope::ALL).is_ok();
        let limit = check_limit(limit)?;
        let mut ids = Vec::new();
        loop {
            let page = if sees_all { limit } else { PAGE_KEYS_MAX };
            let page = self.store.list(&Filter::Accounts, after.as_ref(), page).await?;
            let found = if sees_all { Vec::new() } else { self.store.get_many(&page.keys).await };
            let mut found = found.into_iter();
            for key in &page.keys {
                let Key::Account(id) = key else { continue };
                if !sees_all {
                    let record = match found.next() {
                        Some(Err(error @ Error::Store(_))) => return Err(error),
                        Some(Ok(Some(found))) => AccountRecord::decode(key, &found.value).ok(),
                        _ => None,
                    };
                    let kek = record.as_ref().and_then(|record| record.current()).map(|current| &current.kek.name);
                    if force.ask(caller, Operation::Get, Scope::account(id, kek)).is_err() {
                        continue;
                    }
                    if ids.len() == limit {
                        let last = ids.last().cloned();
                        return Ok((ids, last));
                    }
                }
                ids.push(id.clone());
            }
            after = page.next;
            if sees_all || after.is_none() {
                let next = after.and_then(|key| if let Key::Account(id) = key { Some(id) } else { None });
                return Ok((ids, next));
            }
        }
    }
}

/// As [`Keyring::permit`], of what is in force.
async fn judge(
    force: &Force,
    store: &dyn KeyStore,
    caller: Option<&CallerId>,
    operations: &[Operation],
    on: On<'_>,
) -> Result<()> {
    let mut under = None;
    for operation in operations.iter().copied() {
        let scope = match on {
            On::Account(id) => Scope::account(id, None),
            On::Under(id, kek) => Scope::account(id, Some(kek)),
            On::Kek(kek) => Scope::kek(kek),
            On::All => Scope::ALL,
        };
        let asked = force.ask(caller, operation, scope);
        let (On::Account(id), Err(Error::Forbidden(_))) = (on, &asked) else {
            asked?;
            continue;
        };
        // Who may do it nowhere learns nothing by how long it takes.
        force.ask_anywhere(caller, operation, scope)?;
        if under.is_none() {
            under = Some(kek_of(store, id).await?);
        }
        force.ask(caller, operation, Scope::account(id, under.iter().flatten().next()))?;
    }
    Ok(())
}

/// The KEK that an account is under, by its record; `None` where there is none, or none that can be read.
async fn kek_of(store: &dyn KeyStore, id: &AccountId) -> Result<Option<KekName>> {
    match load_account(store, id).await {
        Ok(found) => Ok(found.and_then(|(record, _)| record.current().map(|current| current.kek.name.clone()))),
        Err(Error::Corrupt(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The same questions, for a command that reads the store without an engine: whoever may read its file may read it by other means, too.
#[doc(hidden)]
pub struct Judge {
    force: Arc<Force>,
    store: Arc<dyn KeyStore>,
    caller: CallerId,
}

impl Judge {
    /// Over the grants of a file and those of a store.
    ///
    /// # Errors
    /// As [`load_policy`](crate::store::load_policy).
    pub async fn new(store: Arc<dyn KeyStore>, given: &Policy, caller: CallerId) -> Result<Self> {
        let force = Force::unread();
        let given = Some(given.clone()).filter(|given| !given.grants().is_empty());
        let of_store = crate::store::load_policy(&*store).await?;
        force.govern(given.into_iter().chain(of_store).map(Arc::new).collect());
        Ok(Self { force, store, caller })
    }

    /// Whether the caller may do this to an account, to a KEK, or to all that there is.
    ///
    /// # Errors
    /// As [`Keyring::permit`].
    pub async fn permit(&self, operation: Operation, account: Option<&AccountId>, kek: Option<&KekName>) -> Result<()> {
        judge(&self.force, &*self.store, Some(&self.caller), &[operation], On::of(account, kek)).await
    }

    /// The KEK that an account is under; `None` where there is none that could be read.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn kek_of(&self, account: &AccountId) -> Result<Option<KekName>> {
        kek_of(&*self.store, account).await
    }

    /// Of these accounts those that the caller may `get`.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for a caller that may get nothing at all; [`Error::Store`].
    pub async fn seen(&self, ids: Vec<AccountId>) -> Result<Vec<AccountId>> {
        self.force.ask_anywhere(Some(&self.caller), Operation::Get, Scope::ALL)?;
        if self.permit(Operation::Get, None, None).await.is_ok() {
            return Ok(ids);
        }
        let mut seen = Vec::new();
        for id in ids {
            match self.permit(Operation::Get, Some(&id), None).await {
                Ok(()) => seen.push(id),
                Err(Error::Forbidden(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(seen)
    }
}
