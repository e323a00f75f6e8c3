//! The keyring: which accounts' keys are in memory, and the one way in which they get there.
//!
//! moka is an index with single-flight and a bound; it enforces nothing. Use is bounded by the lease and the
//! TTL on the data path (`account.rs`), and keys are wiped in their slots, wherever the index still points. It need not hear of
//! every look-up: the keys that anybody has are found beside it (`living.rs`).

use crate::{
    account_keys::AccountKeys,
    budget::Place,
    clock::{Clock, Instant, Jitter},
    config::{REFRESH_PERCENT, Settings},
    error::{Corrupt, Error, Result},
    lease::{Actions, Lease, Phase, Verdict as LeaseVerdict},
    leash::{LeaseStatus, Stepped},
    name::{AccountId, KekVersion},
    rotate::deleted,
    secret::Aek,
    slot::{AekSlot, Leash},
    standby::Voice,
    store::{
        self, KeyStore,
        record::{AccountRecord, WrappedAek},
    },
    telemetry::{Event, Teller},
    token::{TokenError, Verdict},
    tokens::{Route, Tokens},
    usage::{Ledger, Limits},
};
use moka::{future::Cache, notification::RemovalCause, policy::EvictionPolicy};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;

mod ask;
mod flights;
mod living;
mod usage;
mod versions;

pub(crate) use self::ask::{Heard, both_silent, is_silence, no_answer};
use self::{flights::Flights, living::Living, usage::DueAccounts};

/// While a KEK version is denied, lapsed or silent, callers make the token be asked at most once in this time; the watch asks too.
const REFUSED_ASK_PAUSE: Duration = Duration::from_secs(1);
/// An account that nobody looked up for this long leaves the index. Not shorter than any grace can be, so that an
/// outage takes nothing away; handles keep their keys all the same.
const INDEX_IDLE_MAX: Duration = Duration::from_secs(60 * 60);

/// The keys of one engine.
pub(crate) struct Keyring {
    pub(crate) tokens: Tokens,
    pub(crate) store: Arc<dyn KeyStore>,
    pub(crate) clock: Clock,
    pub(crate) settings: Settings,
    pub(crate) teller: Teller,
    pub(crate) jitter: Jitter,
    /// Wakes the watch: a lease was made, or changed.
    pub(crate) stir: Notify,
    /// Wakes the tending of slots: a lease changed.
    pub(crate) stir_tend: Notify,
    /// Wakes callers of `ready`: a lease changed.
    pub(crate) changed: Notify,
    closed: AtomicBool,
    /// In the order of their names, so that a simulation sees the same again.
    leashes: RwLock<BTreeMap<KekVersion, Arc<Leash>>>,
    index: Cache<AccountId, Arc<AccountKeys>>,
    flights: Arc<Flights>,
    /// For each KEK version a wrapped AEK that was read for a proof: while the store fails, it proves on.
    samples: Mutex<HashMap<KekVersion, (AccountId, WrappedAek)>>,
    /// What is common to all that counts what is sealed.
    ledger: Arc<Ledger>,
    /// Accounts that were found to be due for rotation when their counts were written down.
    pub(crate) due: DueAccounts,
    living: Living,
}

/// A wrapped AEK to prove a KEK version with.
pub(crate) struct Sample {
    pub(crate) account: AccountId,
    pub(crate) wrapped: WrappedAek,
    /// Where it belongs, unless nobody has the account open any more.
    pub(crate) slot: Option<Arc<AekSlot>>,
}

/// What the store says of a slot now.
pub(crate) struct Found {
    wrapped: WrappedAek,
    /// Its successor, enlisted with the lease of the KEK version that the record names, when that is another one than the
    /// slot's: somebody re-wrapped the account. Takes the slot's place once the token has spoken.
    heir: Option<Arc<AekSlot>>,
}

impl Found {
    pub(crate) fn moved(&self) -> bool {
        self.heir.is_some()
    }

    /// The lease that is asked for what belongs into `slot`.
    pub(crate) fn leash<'a>(&'a self, slot: &'a AekSlot) -> &'a Arc<Leash> {
        self.heir.as_ref().map_or(&slot.leash, |heir| &heir.leash)
    }
}

/// What an unwrap needs: the record first, because a store that hangs must not hold up those who have it, and then the place.
pub(crate) struct Ready {
    pub(crate) found: Found,
    pub(crate) place: Place,
}

/// A wrapped AEK that could not be unwrapped.
pub(crate) enum Trouble {
    /// What the token said.
    Token(TokenError),
    /// The token gave 32 bytes that are not the AEK: it was moved, or another KEK stands in this one's place.
    OtherKey,
}

impl Keyring {
    pub(crate) fn new(
        tokens: Tokens,
        store: Arc<dyn KeyStore>,
        clock: Clock,
        settings: Settings,
        seed: Option<u64>,
    ) -> Self {
        let listener_clock = clock.clone();
        let index = Cache::builder()
            .max_capacity(settings.max_cached_aeks)
            // Not TinyLFU: it may refuse a new entry, and an account that was just opened must be usable.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(INDEX_IDLE_MAX)
            .eviction_listener(move |_, keys: Arc<AccountKeys>, cause| {
                keys.left_index();
                match cause {
                    RemovalCause::Size => keys.slots().for_each(|slot| slot.wipe()),
                    RemovalCause::Expired => {
                        let now = listener_clock.now();
                        keys.slots().filter(|slot| !slot.is_usable(now)).for_each(|slot| slot.wipe());
                    }
                    RemovalCause::Explicit | RemovalCause::Replaced => {}
                }
            })
            .build();
        Self {
            tokens,
            store,
            clock,
            settings,
            teller: Teller::new(),
            jitter: Jitter::new(seed),
            stir: Notify::new(),
            stir_tend: Notify::new(),
            changed: Notify::new(),
            samples: Mutex::default(),
            closed: AtomicBool::new(false),
            leashes: RwLock::default(),
            index,
            flights: Arc::default(),
            ledger: Ledger::new(Limits::SUITE),
            due: DueAccounts::default(),
            living: Living::default(),
        }
    }

    /// The lease of a KEK version; made when it is first asked for, denied if the store remembers a denial.
    pub(crate) async fn leash(&self, kek: &KekVersion) -> Result<Arc<Leash>> {
        if let Some(leash) = self.known_leash(kek) {
            return Ok(leash);
        }
        let grace = self.settings.grace;
        let (lease, saved) = match self.in_time(store::load_denial(&*self.store, kek)).await {
            Ok(None) => (Lease::new(grace), None),
            Ok(Some((_, version))) => (Lease::denied_before(grace, self.clock.now()), Some(version)),
            // A record that cannot be read was a denial all the same.
            Err(Error::Corrupt(_)) => (Lease::denied_before(grace, self.clock.now()), None),
            Err(error) => return Err(error),
        };
        let route = self.route(kek).await?;
        let mut leashes = self.leashes.write().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let leash = Leash::new(kek.clone(), route, lease, self.clock.clone(), self.settings.aek_ttl);
            // So that the fresh proofs of many KEK versions do not all come with one poll.
            let first = self.jitter.below(u64::from(self.settings.fresh_proof_every)) as usize;
            leash.proofs.store(first, Ordering::SeqCst);
            leash.denial.loaded(saved);
            Arc::new(leash)
        };
        let leash = leashes.entry(kek.clone()).or_insert_with(new).clone();
        drop(leashes);
        self.stir.notify_one();
        Ok(leash)
    }

    /// The token that a KEK version is in, as the KEK's record says. A record that says nothing (it is gone, or damaged) matters
    /// only where there is a choice.
    async fn route(&self, kek: &KekVersion) -> Result<Route> {
        let found = self.in_time(store::load_kek(&*self.store, &kek.name)).await;
        let version = match found {
            Ok(record) => record.and_then(|(record, _)| record.version(kek.version).cloned()),
            Err(Error::Corrupt(_)) if self.tokens.only().is_some() => None,
            Err(error) => return Err(error),
        };
        let seat = match (version, self.tokens.only()) {
            (Some(version), _) => self.tokens.holder(kek, &version.token)?,
            (None, Some(only)) => only,
            (None, None) => {
                let what = format!("it does not say in which token version {} is", kek.version);
                return Err(Corrupt::Record { record: format!("KEK {}", kek.name), what }.into());
            }
        };
        self.tokens.route(kek, seat)
    }

    /// The lease of a KEK version, if it was asked for before.
    fn known_leash(&self, kek: &KekVersion) -> Option<Arc<Leash>> {
        self.leashes.read().unwrap_or_else(PoisonError::into_inner).get(kek).cloned()
    }

    /// The leases of all KEK versions in use.
    pub(crate) fn leashes(&self) -> Vec<Arc<Leash>> {
        self.leashes.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Forgets a lease that no slot is under; it begins anew, unproven, when an account of its KEK is opened. One that is
    /// denied is kept, because its denial is. True when it was forgotten.
    pub(crate) fn forget_unused(&self, leash: &Arc<Leash>) -> bool {
        let mut leashes = self.leashes.write().unwrap_or_else(PoisonError::into_inner);
        // The map's, the caller's and those of slots whose account moved away: no other slot has it, and nobody gets it
        // while the map is locked. Counted before the retired, who then can only be too few.
        let holders = Arc::strong_count(leash);
        let unused = holders == 2 + leash.retired.load(Ordering::SeqCst);
        let forgotten =
            unused && !matches!(leash.lease().phase(), Phase::Denied { .. }) && leashes.remove(leash.kek()).is_some();
        if forgotten {
            self.samples().remove(leash.kek());
        }
        forgotten
    }

    pub(crate) fn leases(&self) -> Vec<LeaseStatus> {
        let mut leases: Vec<_> = self.leashes().iter().map(|leash| leash.status()).collect();
        leases.sort_by(|a, b| a.kek.cmp(&b.kek));
        leases
    }

    /// How many accounts are in the index.
    pub(crate) async fn cached_accounts(&self) -> u64 {
        self.index.run_pending_tasks().await;
        self.index.entry_count()
    }

    /// The keys of an account, if anybody has them.
    pub(crate) fn alive(&self, id: &AccountId) -> Option<Arc<AccountKeys>> {
        self.living.get(id)
    }

    /// The keys of an account, its current AEK unwrapped. However many ask at once, the token is asked once; all who
    /// waited for that attempt share its outcome, and the next to ask starts a new one.
    pub(crate) async fn open(self: &Arc<Self>, id: &AccountId) -> Result<Arc<AccountKeys>> {
        let (now, alive) = (self.clock.now(), self.alive(id));
        if let Some(keys) = alive.as_ref().filter(|keys| keys.index_knows(now)) {
            if !keys.current().is_usable(now) {
                self.warm_current(keys).await?;
            }
            return Ok(keys.clone());
        }
        // Noted before the index is told: whoever leaves it afterwards takes the note away.
        alive.iter().for_each(|keys| keys.told_index(now));
        if let Some(keys) = self.index.get(id).await {
            self.warm_current(&keys).await?;
            return Ok(keys);
        }
        alive.iter().for_each(|keys| keys.left_index());
        let init = async {
            let keys = match self.alive(id) {
                Some(keys) => keys,
                None => self.load(id).await?,
            };
            self.warm_current(&keys).await?;
            keys.told_index(now);
            Ok(keys)
        };
        self.index.try_get_with_by_ref(id, init).await.map_err(|error: Arc<Error>| (*error).clone())
    }

    /// Warms the current AEK version; the next one, where it turns out on the way that there is one by now.
    async fn warm_current(self: &Arc<Self>, keys: &AccountKeys) -> Result<()> {
        loop {
            let slot = keys.current();
            let outcome = self.warm(slot).await;
            if Arc::ptr_eq(slot, keys.current()) {
                return outcome;
            }
        }
    }

    async fn load(&self, id: &AccountId) -> Result<Arc<AccountKeys>> {
        let Some((mut record, _)) = self.in_time(store::load_account(&*self.store, id)).await? else {
            return Err(Error::NotFound(format!("account {id}: create it first (`keyleash account create`)")));
        };
        if let Some(deletion) = record.deleted {
            return Err(deleted(id, deletion));
        }
        record.account = id.clone(); // one text in memory, for its slots and the index alike
        let mut slots = Vec::new();
        for wrapped in &record.versions {
            slots.push(AekSlot::new(self.leash(&wrapped.kek).await?, self.meter(&record, wrapped))?);
        }
        let Some(keys) = AccountKeys::new(id.clone(), slots) else {
            // The codec refuses such a record; this says so again rather than panicking.
            let what = "it has no AEK".to_owned();
            return Err(Corrupt::Record { record: format!("account {id}"), what }.into());
        };
        Ok(self.living.adopt(keys))
    }

    /// Fills a slot for somebody who waits, if it is not usable. Single-flight; the unwrap runs on, whoever of those that
    /// wait goes away.
    pub(crate) async fn warm(self: &Arc<Self>, slot: &Arc<AekSlot>) -> Result<()> {
        if slot.is_usable(self.clock.now()) {
            return Ok(());
        }
        self.refill(slot, None).await
    }

    /// Unwraps a slot's AEK anew, whether or not it is usable; with what is ready for that already, or, for a caller who
    /// waits, with a record and a place of the budget of its own.
    pub(crate) async fn refill(self: &Arc<Self>, slot: &Arc<AekSlot>, ready: Option<Ready>) -> Result<()> {
        let mut outcome = self.flights.join(slot, |landing| {
            let keyring = self.clone();
            tokio::spawn(async move {
                let outcome = keyring.unwrap_into(&landing.slot, ready).await;
                landing.land(outcome);
            });
        });
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            _ => Err(Error::Fatal("the task that unwraps keys died: restart the process".into())),
        }
    }

    async fn unwrap_into(self: &Arc<Self>, slot: &Arc<AekSlot>, ready: Option<Ready>) -> Result<()> {
        let came = self.clock.now();
        let _guard = self.shut_guard(slot.account());
        let Ready { found: Found { wrapped, heir }, place } = match ready {
            Some(ready) => ready,
            None if slot.leash.may_ask(came, REFUSED_ASK_PAUSE) => {
                let found = self.find(slot).await.inspect_err(|error| slot.shut_if_gone(error))?;
                if found.moved() {
                    self.note_move(&slot.leash);
                }
                let place = found.leash(slot).budget().on_demand().await;
                Ready { found, place }
            }
            None => return Err(slot.leash.why_not()),
        };
        let outcome = self.unwrap_found(slot, heir.as_ref().unwrap_or(slot), &wrapped, came, place).await;
        // What the KEK version of the record says counts from now on. While it says nothing, or refuses the record, the slot
        // stays as it is, under its own lease and TTL: an outage takes nothing away.
        if let Some(heir) = heir
            && matches!(outcome, Ok(()) | Err(Error::Denied(_)))
            && let Some(keys) = self.alive(slot.account())
        {
            keys.hand_over(heir);
            self.changed.notify_waiters();
        }
        outcome
    }

    /// Unwraps into `slot`, which is `old` or its successor.
    async fn unwrap_found(
        self: &Arc<Self>,
        old: &AekSlot,
        slot: &AekSlot,
        wrapped: &WrappedAek,
        came: Instant,
        place: Place,
    ) -> Result<()> {
        // A queue in front of a silent token is not worked off one deadline after the other.
        if slot.leash.was_silent(came) {
            return Err(slot.leash.why_not());
        }
        let epoch = self.asking(&slot.leash);
        let asked = self.clock.now();
        let Heard { voice, outcome } = self.unwrap_verified(&slot.leash, slot.account(), wrapped, place).await;
        match outcome {
            Ok(aek) => {
                self.feed(&slot.leash, voice, LeaseVerdict::Granted { asked, epoch }, None);
                if !self.samples().contains_key(&wrapped.kek) {
                    self.keep_sample(&wrapped.kek, slot.account(), wrapped);
                }
                if old.differs_from(&aek) || slot.differs_from(&aek) {
                    // An AEK version has one AEK for good. Another one that verifies was made by who can write the store.
                    return Err(Corrupt::WrappedAek(format!("account {}", slot.account())).into());
                }
                self.admit(slot, &aek, epoch, asked)
            }
            Err(Trouble::OtherKey) => Err(Corrupt::WrappedAek(format!("account {}", slot.account())).into()),
            Err(Trouble::Token(trouble)) => Err(self.learn_trouble(&slot.leash, voice, slot.account(), &trouble).await),
        }
    }

    /// Puts an AEK that was asked for at `asked` into its slot. Its TTL counts from then.
    ///
    /// # Errors
    /// As [`AekSlot::admit`].
    pub(crate) fn admit(&self, slot: &AekSlot, aek: &Aek, epoch: u64, asked: Instant) -> Result<()> {
        let ttl = self.settings.aek_ttl;
        let percent = REFRESH_PERCENT.start + self.jitter.below(REFRESH_PERCENT.end - REFRESH_PERCENT.start);
        let refresh_after = ttl.mul_f64(percent as f64 / 100.0);
        slot.admit(aek, epoch, asked.plus(refresh_after), asked.plus(ttl))
    }

    /// A read of the store on the way to an unwrap: somebody waits for it, so it ends.
    async fn in_time<T>(&self, reading: impl Future<Output = Result<T>>) -> Result<T> {
        let timeout = self.settings.call_timeout;
        self.clock.until(self.clock.now().plus(timeout), reading).await.unwrap_or_else(|| {
            Err(Error::Store(format!(
                "no answer within {} ms: see that the store is reachable and not overloaded, and try again",
                timeout.as_millis()
            )))
        })
    }

    /// Reads what belongs into a slot, and makes its successor where the record names another KEK version by now.
    ///
    /// On the way, learns of newer AEK versions.
    pub(crate) async fn find(self: &Arc<Self>, slot: &Arc<AekSlot>) -> Result<Found> {
        let record = self.record(slot).await?;
        self.learn_beside(slot, &record).await;
        let policy = record.policy;
        let wrapped = self.wrapped_in(record, slot).await?;
        slot.meter().learn(wrapped.used, policy);
        let heir = if wrapped.kek == *slot.leash.kek() {
            None
        } else {
            Some(slot.successor(self.leash(&wrapped.kek).await?)?)
        };
        Ok(Found { wrapped, heir })
    }

    /// An account of this lease was re-wrapped or rotated by somebody else; others may have been too, and the tending goes
    /// and sees.
    pub(crate) fn note_move(&self, leash: &Leash) {
        leash.moved.store(true, Ordering::SeqCst);
        self.stir_tend.notify_one();
    }

    /// The record of a slot's account.
    async fn record(&self, slot: &AekSlot) -> Result<AccountRecord> {
        match self.in_time(store::load_account(&*self.store, slot.account())).await? {
            Some((AccountRecord { deleted: Some(deletion), .. }, _)) => Err(deleted(slot.account(), deletion)),
            Some((record, _)) => Ok(record),
            None => {
                self.disown(slot).await;
                Err(Error::NotFound(format!("account {}: it was purged", slot.account())))
            }
        }
    }

    /// The wrapped AEK of a slot's AEK version.
    async fn wrapped_in(&self, record: AccountRecord, slot: &AekSlot) -> Result<WrappedAek> {
        if record.current().is_none_or(|current| current.aek_version < slot.aek_version) {
            // AEK versions only ever count up.
            self.disown(slot).await;
            return Err(made_anew(slot.account()));
        }
        let Some(wrapped) = record.versions.into_iter().find(|wrapped| wrapped.aek_version == slot.aek_version) else {
            // Not before its successor is here: handles seal under the newest that there is.
            let keys = self.alive(slot.account());
            if keys.is_some_and(|keys| keys.current().aek_version > slot.aek_version) {
                slot.retire();
            }
            return Err(Corrupt::AekVersion(slot.aek_version).into());
        };
        if wrapped.created_unix != slot.meter().aek.created_unix {
            // Of the same number, and another one: an AEK keeps the time of its making for good.
            self.disown(slot).await;
            return Err(made_anew(slot.account()));
        }
        // A KEK version is one key in the token. A record that names another one is damaged, and must not speak for the KEK.
        let proved = self.sample(&wrapped.kek);
        if proved.is_some_and(|(_, good)| (&good.kek_id, good.profile) != (&wrapped.kek_id, wrapped.profile)) {
            return Err(Corrupt::WrappedAek(format!("account {}", slot.account())).into());
        }
        Ok(wrapped)
    }

    /// As [`Keyring::find`], for a proof: a store that fails or is slow is not a token that is silent, so whatever record
    /// of the KEK version was read last is taken then, with the slot that it belongs into, if that is still alive.
    pub(crate) async fn wrapped_for_proof(&self, slot: Arc<AekSlot>) -> Result<Sample> {
        let patience = self.clock.now().plus(self.settings.call_timeout / 4);
        let kek = slot.leash.kek();
        let wrapped = async {
            let record = self.record(&slot).await.inspect_err(|error| slot.shut_if_gone(error))?;
            let newest = record.current().map_or(0, |current| current.aek_version);
            if self.alive(slot.account()).is_some_and(|keys| keys.current().aek_version < newest) {
                self.note_move(&slot.leash); // the tending learns of it; a proof has no time for that
            }
            self.wrapped_in(record, &slot).await
        };
        let failed = match self.clock.until(patience, wrapped).await {
            Some(Ok(wrapped)) if wrapped.kek != *kek => {
                self.note_move(&slot.leash);
                return Err(Error::NotFound(format!("account {}: it is not under KEK {kek} any more", slot.account())));
            }
            Some(Ok(wrapped)) => {
                return Ok(Sample { account: slot.account().clone(), wrapped, slot: Some(slot) });
            }
            Some(Err(Error::Store(failed))) => failed,
            Some(Err(error)) => return Err(error),
            None => "does not answer".into(),
        };
        let kept = self.samples().get(kek).cloned();
        let Some((account, wrapped)) = kept else { return Err(Error::Store(failed)) };
        let its = |slot: &&Arc<AekSlot>| *slot.account() == account && slot.aek_version == wrapped.aek_version;
        let slot = slot.leash.living_members().iter().find(its).cloned();
        Ok(Sample { account, wrapped, slot })
    }

    fn samples(&self) -> MutexGuard<'_, HashMap<KekVersion, (AccountId, WrappedAek)>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A record of the KEK version that was proved in this process.
    pub(crate) fn sample(&self, kek: &KekVersion) -> Option<(AccountId, WrappedAek)> {
        self.samples().get(kek).cloned()
    }

    /// Keeps a record that was proved, so that the KEK version can be proved while the store fails.
    pub(crate) fn keep_sample(&self, kek: &KekVersion, account: &AccountId, wrapped: &WrappedAek) {
        self.samples().insert(kek.clone(), (account.clone(), wrapped.clone()));
    }

    /// The epoch in which to ask the token now.
    pub(crate) fn asking(&self, leash: &Leash) -> u64 {
        let epoch = self.catch_up(leash);
        leash.asked(self.clock.now());
        epoch
    }

    /// Lets a lease lapse if its end has come. Gives its epoch.
    pub(crate) fn catch_up(&self, leash: &Leash) -> u64 {
        let (epoch, actions) = leash.asking();
        self.tell(leash, actions, None);
        epoch
    }

    /// Tells a lease what was learned, tells subscribers of a change, and has a denial written down. Waits for nothing: a
    /// store that is slow delays no verdict.
    pub(crate) fn feed(
        self: &Arc<Self>,
        leash: &Arc<Leash>,
        voice: Voice,
        verdict: LeaseVerdict,
        trouble: Option<&TokenError>,
    ) {
        let replaced = trouble.is_some_and(|trouble| trouble.verdict == Verdict::Replaced);
        if replaced && leash.trouble() != Some(Verdict::Replaced) {
            self.teller.tell(Event::KekReplaced { kek: leash.kek().clone() });
        }
        let Stepped { actions, took_over } = leash.step(voice, verdict, trouble);
        self.tell(leash, actions, trouble);
        if let (Some(took_over), Some(standby)) = (took_over, &leash.route.standby) {
            let (kek, standby) = (leash.kek().clone(), standby.name.clone());
            self.teller.tell(match took_over {
                true => Event::StandbyTookOver { kek, standby },
                false => Event::StandbyDone { kek, standby },
            });
        }
        self.note_denial(leash, voice, verdict, actions.change);
        self.save_if_needed(leash);
    }

    /// Tells of a change, and stirs the watch for what must follow it.
    pub(crate) fn tell(&self, leash: &Leash, actions: Actions, trouble: Option<&TokenError>) {
        if let Some(change) = actions.change {
            let trouble = trouble.map(ToString::to_string);
            self.teller.tell(Event::Lease { kek: leash.kek().clone(), change, trouble });
            self.stir.notify_one();
            self.stir_tend.notify_one();
            self.changed.notify_waiters();
        }
    }

    /// Tells the lease of a failed unwrap, and makes the caller's error of it.
    async fn learn_trouble(
        self: &Arc<Self>,
        leash: &Arc<Leash>,
        voice: Voice,
        account: &AccountId,
        trouble: &TokenError,
    ) -> Error {
        let Some(verdict) = lease_verdict(leash, trouble) else {
            return match trouble.verdict {
                Verdict::BadRecord => Corrupt::WrappedAek(format!("account {account}")).into(),
                _ => Error::from(trouble.clone()),
            };
        };
        let saved = leash.denial.saved.notified();
        tokio::pin!(saved);
        // Enlist before the save can end.
        saved.as_mut().enable();
        self.feed(leash, voice, verdict, Some(trouble));
        if verdict == LeaseVerdict::Denied && leash.denial.is_saving() {
            // The caller may be a command that ends now: its denial must outlast it. A slow store is waited for so long.
            let patience = self.clock.now().plus(self.settings.call_timeout);
            self.clock.until(patience, saved).await;
        }
        match trouble.verdict {
            Verdict::Fatal => Error::from(trouble.clone()),
            _ => leash.why_not(),
        }
    }

    /// The keys of an account that was just created, its slot filled with the AEK that the token gave back.
    pub(crate) async fn admit_new(
        &self,
        record: &AccountRecord,
        wrapped: &WrappedAek,
        proof: &NewProof,
    ) -> Result<Arc<AccountKeys>> {
        let id = &record.account;
        let slot = AekSlot::new(proof.leash.clone(), self.meter(record, wrapped))?;
        self.admit(&slot, &proof.aek, proof.epoch, proof.asked)?;
        self.keep_sample(&wrapped.kek, id, wrapped);
        // Somebody may have been about to open the account that was purged, and have its keys here by now.
        let is_another = |keys: &Arc<AccountKeys>| !keys.slots().any(|one| one.meter().aek == slot.meter().aek);
        if let Some(keys) = self.alive(id).filter(is_another) {
            self.forget_account(id, Some(keys)).await;
        }
        let Some(keys) = AccountKeys::new(id.clone(), vec![slot]) else {
            return Err(Error::Fatal(format!("account {id} has no slot")));
        };
        let keys = self.living.adopt(keys);
        keys.told_index(proof.asked);
        self.index.insert(id.clone(), keys.clone()).await;
        Ok(keys)
    }

    /// Unwraps a wrapping that is not stored yet: a proof like any other.
    pub(crate) async fn prove_new(self: &Arc<Self>, account: &AccountId, wrapped: &WrappedAek) -> Result<NewProof> {
        let leash = self.leash(&wrapped.kek).await?;
        let refuses = matches!(leash.lease().phase(), Phase::Denied { .. } | Phase::Lapsed { .. });
        if refuses && leash.member(0).is_some() {
            // What a key wraps just now says nothing of the AEKs that are there: another KEK in its place would do it too.
            return Err(leash.why_not());
        }
        let place = leash.budget().on_demand().await;
        let epoch = self.asking(&leash);
        let asked = self.clock.now();
        let Heard { voice, outcome } = self.unwrap_verified(&leash, account, wrapped, place).await;
        match outcome {
            Ok(aek) => {
                self.feed(&leash, voice, LeaseVerdict::Granted { asked, epoch }, None);
                Ok(NewProof { leash, aek, epoch, asked })
            }
            Err(Trouble::OtherKey) => {
                Err(Error::Misconfigured(format!("KEK {} does not give back what it wrapped", wrapped.kek)))
            }
            Err(Trouble::Token(trouble)) => Err(self.learn_trouble(&leash, voice, account, &trouble).await),
        }
    }

    /// True when the engine and all its handles are gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Wipes every key, whatever still runs: the engine and all its handles are gone.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.leashes().iter().for_each(|leash| leash.close());
        self.stir.notify_one();
    }
}

/// What handles hold: when the last of them goes, every key is wiped, whatever task still runs.
pub(crate) struct Owner(pub(crate) Arc<Keyring>, Ends);

/// Whether the keyring ends with its holder.
#[derive(PartialEq, Eq)]
enum Ends {
    Keyring,
    /// The engine's own tasks keep nothing alive.
    Nothing,
}

impl Owner {
    pub(crate) fn new(keyring: Arc<Keyring>) -> Arc<Self> {
        Arc::new(Self(keyring, Ends::Keyring))
    }

    /// For a task of the engine itself.
    pub(crate) fn guest(&self) -> Arc<Self> {
        Arc::new(Self(self.0.clone(), Ends::Nothing))
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.1 == Ends::Keyring {
            self.0.close();
        }
    }
}

/// A new AEK as the token gave it back, and what its admission is judged by.
pub(crate) struct NewProof {
    /// Held, so that the epoch stays one of this lease.
    pub(crate) leash: Arc<Leash>,
    pub(crate) aek: Aek,
    pub(crate) epoch: u64,
    pub(crate) asked: Instant,
}

/// What is said to a handle of the account that had this id before.
pub(crate) fn made_anew(account: &AccountId) -> Error {
    Error::NotFound(format!("account {account}: it was purged, and made anew since: open it again"))
}

/// What a failed call says about the KEK; `None` when it says nothing about it.
pub(crate) fn lease_verdict(leash: &Leash, trouble: &TokenError) -> Option<LeaseVerdict> {
    match trouble.verdict {
        Verdict::Denied | Verdict::Replaced => Some(LeaseVerdict::Denied),
        // What worked before and is set up wrongly now was changed by somebody: that is a denial.
        Verdict::Misconfigured => (leash.lease().phase() != Phase::Unproven).then_some(LeaseVerdict::Denied),
        Verdict::Unreachable | Verdict::Fatal => Some(LeaseVerdict::Unreachable),
        Verdict::BadRecord => None,
    }
}
