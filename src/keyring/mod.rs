//! The keyring: which accounts' keys are in memory, and the one way in which they get there.
//!
//! moka is an index with single-flight; it enforces nothing. Use is bounded by the lease and the TTL on the data path
//! (`account/`), the number of keys in memory by `room.rs`, and keys are taken out of their slots, wherever the index still points. It need not hear of
//! every look-up: the keys that anybody has are found beside it (`living.rs`).

use crate::{
    access::Operation,
    clock::{Clock, Jitter},
    config::Settings,
    error::{Corrupt, Error, Result},
    home::Home,
    lease::{Actions, Change, Phase, Verdict as LeaseVerdict, standby::Voice},
    leash::{Stepped, key_memory::KeyMemory},
    name::{AccountId, CallerId, KekName, KekVersion},
    planted,
    secret::fork,
    slots::{
        account_keys::AccountKeys,
        meter::{Ledger, Limits},
        slot::{AekSlot, Leash},
    },
    store::{KeyStore, word::StoreWord},
    telemetry::{
        Event, Teller,
        trail::{Deed, Outcome, Why},
    },
    token::{TokenError, Verdict, seats::Tokens},
};
use moka::{future::Cache, notification::RemovalCause, policy::EvictionPolicy};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;
use tracing::Instrument;

pub(crate) mod access;
mod ask;
pub(crate) mod background;
pub(crate) mod by_account;
mod common;
mod create;
mod denial;
mod flights;
pub(crate) mod keks;
mod leashes;
mod living;
mod make_kek;
pub(crate) mod on_trail;
mod records;
mod rewraps;
mod room;
mod store_word;
mod unwrap;
mod usage;
mod versions;
mod vouch;

use self::{
    access::{InForce, PolicySource},
    common::Common,
    flights::Flights,
    living::Living,
    on_trail::{OnTrail, of_kek},
    records::Samples,
    rewraps::Rewraps,
    room::Room,
    usage::DueAccounts,
};
pub(crate) use self::{
    access::{On, POLICY_LOOK_EVERY},
    ask::{Heard, Unwrapped, both_silent, is_silence, no_answer, replaced},
    common::{Agreed, LOOK_EVERY as COMMON_LOOK_EVERY},
    records::{For, Placed, Reading, Sample},
    unwrap::{Start, Trouble},
    versions::{NewProof, gives_not_back},
};

/// An account that nobody looked up for this long leaves the index. Not shorter than any grace can be, so that an
/// outage takes nothing away; handles keep their keys all the same.
const INDEX_IDLE_MAX: Duration = Duration::from_secs(60 * 60);

/// The keys of one engine.
pub(crate) struct Keyring {
    pub(crate) tokens: Tokens,
    pub(crate) store: Arc<dyn KeyStore>,
    pub(crate) access: InForce,
    pub(crate) clock: Clock,
    pub(crate) settings: Settings,
    /// What the store last said.
    pub(crate) store_word: Arc<StoreWord>,
    /// It is being asked, because a proof did not wait for it.
    inquiring: AtomicBool,
    pub(crate) home: Home,
    pub(crate) teller: Teller,
    pub(crate) on_trail: OnTrail,
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
    pub(crate) memory: Arc<KeyMemory>,
    room: Room,
    /// By what a KEK version is asked while the store fails.
    samples: Mutex<Samples>,
    /// What is common to all that counts what is sealed.
    ledger: Arc<Ledger>,
    /// Held while counts are on their way to the store.
    writing_usage: Arc<tokio::sync::Mutex<()>>,
    /// Accounts that were found to be due for rotation when their counts were written down.
    pub(crate) due: DueAccounts,
    living: Living,
    /// What all engines of the store must agree on.
    common: Common,
    /// Counts what living keys are told of their account: first it is counted, then they are looked for. Keys that are made of a
    /// record that was read before come too late to be told, and see that the count is another one.
    news: AtomicU64,
    /// Of the accounts that were looked up, those that had to be waited for.
    misses: AtomicU64,
    pub(crate) rewraps: Rewraps,
    pub(crate) by_account: by_account::ByAccount,
}

impl Keyring {
    #[allow(clippy::too_many_arguments)] // of one caller
    pub(crate) fn new(
        tokens: Tokens,
        store: Arc<dyn KeyStore>,
        clock: Clock,
        settings: Settings,
        home: Home,
        seed: Option<u64>,
        policy: PolicySource,
        on_trail: OnTrail,
    ) -> Self {
        let by_account = by_account::ByAccount::new(settings.metric_accounts);
        let listener_clock = clock.clone();
        let index = Cache::builder()
            .max_capacity(settings.max_cached_aeks)
            // Not TinyLFU: it may refuse a new entry, and an account that was just opened must be usable.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(INDEX_IDLE_MAX)
            .eviction_listener(move |_, keys: Arc<AccountKeys>, cause| {
                keys.left_index();
                if cause == RemovalCause::Expired {
                    let now = listener_clock.now();
                    keys.slots().filter(|slot| !slot.is_usable(now)).for_each(|slot| slot.wipe());
                }
            })
            .build();
        let store = home.house(store, &clock, settings.aek_ttl);
        let teller = Teller::new();
        Self {
            memory: KeyMemory::new(settings.memlock, clock.clone(), teller.clone()),
            room: Room::new(settings.max_cached_aeks),
            tokens,
            store,
            access: InForce::new(policy),
            clock,
            store_word: Arc::new(StoreWord::new(settings.grace, settings.aek_ttl)),
            settings,
            home,
            teller,
            on_trail,
            jitter: Jitter::new(seed),
            stir: Notify::new(),
            stir_tend: Notify::new(),
            changed: Notify::new(),
            samples: Mutex::default(),
            inquiring: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            leashes: RwLock::default(),
            index,
            flights: Arc::default(),
            ledger: Ledger::new(Limits::SUITE),
            writing_usage: Arc::default(),
            due: DueAccounts::default(),
            living: Living::default(),
            common: Common::default(),
            news: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            rewraps: Rewraps::default(),
            by_account,
        }
    }

    /// How many accounts are in the index.
    pub(crate) async fn cached_accounts(&self) -> u64 {
        self.index.run_pending_tasks().await;
        self.index.entry_count()
    }

    /// How many accounts are in the index or have a handle, at once: the index counts its own when it gets to it.
    pub(crate) fn living_accounts(&self) -> u64 {
        self.living.count()
    }

    /// The keys of an account, if anybody has them.
    pub(crate) fn alive(&self, id: &AccountId) -> Option<Arc<AccountKeys>> {
        self.living.get(id)
    }

    /// True for the keys that whoever opens their account gets.
    fn is_alive(&self, keys: &Arc<AccountKeys>) -> bool {
        self.alive(&keys.id).is_some_and(|alive| Arc::ptr_eq(&alive, keys))
    }

    /// The keys of an account, its current AEK unwrapped. However many ask at once, the token is asked once; all who
    /// waited for that attempt share its outcome, and the next to ask starts a new one.
    /// At once where there is nothing to do, else at home.
    pub(crate) async fn open_for_caller(self: &Arc<Self>, id: &AccountId) -> Result<Arc<AccountKeys>> {
        fork::refuse_child()?;
        if let Some(keys) = self.open_at_once(id) {
            return Ok(keys);
        }
        let (keyring, id) = (self.clone(), id.clone());
        let span = tracing::debug_span!("open", account = %id);
        self.call(async move { keyring.open(&id).await }.instrument(span)).await
    }

    /// The keys of an account where there is nothing to do for them.
    pub(crate) fn open_at_once(&self, id: &AccountId) -> Option<Arc<AccountKeys>> {
        let now = self.clock.now();
        let keys = self.living.look_up(id).filter(|keys| keys.index_knows(now) && keys.current().is_usable(now));
        if keys.is_none() {
            self.misses.fetch_add(1, Ordering::Relaxed);
        }
        keys
    }

    /// How often somebody asked for an account whose key was in memory, and whose was not.
    pub(crate) fn looked_up(&self) -> (u64, u64) {
        let misses = self.misses.load(Ordering::Relaxed);
        (self.living.looked_up().saturating_sub(misses), misses)
    }

    /// As [`Keyring::open_for_caller`], for a caller that may open it.
    pub(crate) async fn open_permitted(
        self: &Arc<Self>,
        caller: Option<&CallerId>,
        id: &AccountId,
    ) -> Result<Arc<AccountKeys>> {
        fork::refuse_child()?;
        if let Some(keys) = self.open_at_once(id) {
            return Ok(keys); // whose permit says
        }
        let (keyring, caller, id) = (self.clone(), caller.cloned(), id.clone());
        let span = tracing::debug_span!("open", account = %id);
        self.call(async move { keyring.ask_and_open(caller.as_ref(), &id).await }.instrument(span)).await
    }

    async fn ask_and_open(self: &Arc<Self>, caller: Option<&CallerId>, id: &AccountId) -> Result<Arc<AccountKeys>> {
        self.permit(caller, &[Operation::Unwrap], On::Account(id)).await?;
        self.open(id).await
    }

    /// As [`Keyring::open_for_caller`], for one that blocks its thread.
    ///
    /// # Errors
    /// [`Error::Cold`] when `patience` is over; as [`Home::call_blocking`].
    pub(crate) fn open_blocking(
        self: &Arc<Self>,
        caller: Option<&CallerId>,
        id: &AccountId,
        patience: Duration,
    ) -> Result<Arc<AccountKeys>> {
        fork::refuse_child()?;
        let _ = self.open_at_once(id); // counts it
        let (keyring, caller, id) = (self.clone(), caller.cloned(), id.clone());
        self.home.call_blocking(on_trail::asked_by(on_trail::asker(), async move {
            let give_up = keyring.clock.now().plus(patience);
            let opened = keyring.clock.until(give_up, keyring.ask_and_open(caller.as_ref(), &id)).await;
            opened.unwrap_or_else(|| Err(Error::Cold { account: id.clone() }))
        }))
    }

    /// As [`Keyring::open_for_caller`], at home.
    pub(crate) async fn open(self: &Arc<Self>, id: &AccountId) -> Result<Arc<AccountKeys>> {
        self.agree().await?;
        let (now, alive) = (self.clock.now(), self.alive(id));
        if let Some(keys) = alive.as_ref().filter(|keys| keys.index_knows(now)) {
            if !keys.current().is_usable(now) {
                self.warm_current(keys, None).await?;
            }
            return Ok(keys.clone());
        }
        // Noted before the index is told: whoever leaves it afterwards takes the note away.
        alive.iter().for_each(|keys| keys.told_index(now));
        if let Some(keys) = self.index.get(id).await {
            if self.is_alive(&keys) {
                self.warm_current(&keys, None).await?;
                return Ok(keys);
            }
            self.index.invalidate(id).await;
        }
        alive.iter().for_each(|keys| keys.left_index());
        let init = async {
            loop {
                let (keys, reading) = match self.alive(id) {
                    Some(keys) => (keys, None),
                    None => self.load(id).await?,
                };
                let warmed = self.warm_current(&keys, reading).await;
                // Else the account was purged meanwhile, and perhaps made anew.
                if self.is_alive(&keys) {
                    warmed?;
                    keys.told_index(now);
                    return Ok(keys);
                }
            }
        };
        self.index.try_get_with_by_ref(id, init).await.map_err(|error: Arc<Error>| (*error).clone())
    }

    /// Warms the current AEK version; the next one, where it turns out on the way that there is one by now.
    async fn warm_current(self: &Arc<Self>, keys: &AccountKeys, mut reading: Option<Reading>) -> Result<()> {
        loop {
            let slot = keys.current();
            let outcome = self.warm_from(slot, reading.take()).await;
            if Arc::ptr_eq(slot, keys.current()) {
                return outcome;
            }
        }
    }

    /// Makes the keys of an account that nobody has. With the record that they were made of, unless somebody was faster.
    async fn load(&self, id: &AccountId) -> Result<(Arc<AccountKeys>, Option<Reading>)> {
        let Some(mut reading) = self.read(id).await? else {
            return Err(Error::NotFound(format!("account {id}: create it first (`keyleash account create`)")));
        };
        let record = &mut reading.record;
        record.account = id.clone(); // one text in memory, for its slots and the index alike
        let mut slots = Vec::new();
        for wrapped in &record.versions {
            slots.push(self.empty_slot(record, wrapped).await?);
        }
        let Some(keys) = AccountKeys::new(id.clone(), slots) else {
            // The codec refuses such a record; this says so again rather than panicking.
            let what = "it has no AEK".to_owned();
            return Err(Corrupt::Record { record: format!("account {id}"), what }.into());
        };
        keys.note_retired(&record.retired);
        let made = Arc::new(keys);
        let keys = self.living.adopt(made.clone());
        let reading = Arc::ptr_eq(&keys, &made).then_some(reading);
        Ok((keys, reading))
    }

    /// An account of this lease was re-wrapped or rotated by somebody else; others may have been too, and the tending goes
    /// and sees.
    pub(crate) fn note_move(&self, leash: &Leash) {
        leash.moved.store(true, Ordering::SeqCst);
        self.stir_tend.notify_one();
    }

    /// The epoch in which to ask the token now.
    pub(crate) fn asking(&self, leash: &Leash) -> u64 {
        let epoch = self.catch_up(leash);
        leash.asked(self.clock.now());
        epoch
    }

    /// Lets a lease lapse if its end has come. Gives its epoch.
    pub(crate) fn catch_up(&self, leash: &Leash) -> u64 {
        let (epoch, stepped) = leash.asking();
        self.tell(leash, stepped.actions, None);
        epoch
    }

    /// Tells a lease what was learned, which is in force then; tells subscribers of a change, and has a denial written down; then
    /// wipes. Waits for nothing: a store that is slow delays no verdict, and an operation that is stuck no other key's wipe. True when
    /// it was a denial that was the lease's business, or a grant that renewed it.
    pub(crate) fn feed(
        self: &Arc<Self>,
        leash: &Arc<Leash>,
        voice: Voice,
        verdict: LeaseVerdict,
        trouble: Option<&TokenError>,
    ) -> bool {
        let Some(verdict) = planted::heard(verdict, || leash.lease().phase()) else { return false };
        let replaced = trouble.is_some_and(|trouble| trouble.verdict == Verdict::Replaced);
        if replaced && leash.trouble() != Some(Verdict::Replaced) {
            self.teller.tell(Event::KekReplaced { kek: leash.kek().clone() });
            self.note_of(Deed::KekReplaced, || Outcome::Done, |record| record.on = of_kek(leash.kek()));
        }
        let stepped = leash.step(voice, verdict, trouble);
        self.tell_step(leash, &stepped, trouble);
        let counts = stepped.counts;
        if counts {
            self.note_denial(leash, voice, verdict, stepped.actions.change);
        }
        drop(stepped); // wipes
        self.save_if_needed(leash);
        counts
    }

    fn tell_step(&self, leash: &Leash, stepped: &Stepped<'_, AekSlot>, trouble: Option<&TokenError>) {
        self.tell(leash, stepped.actions, trouble);
        if let (Some(took_over), Some(standby)) = (stepped.took_over, &leash.route.standby) {
            if !took_over {
                leash.standby_proved.store(false, Ordering::SeqCst); // anew in each silence
            }
            let (kek, standby) = (leash.kek().clone(), standby.name.clone());
            self.teller.tell(match took_over {
                true => Event::StandbyTookOver { kek, standby },
                false => Event::StandbyDone { kek, standby },
            });
        }
    }

    /// Tells of a change, and stirs the watch for what must follow it.
    pub(crate) fn tell(&self, leash: &Leash, actions: Actions, trouble: Option<&TokenError>) {
        if let Some(change) = actions.change {
            self.note_of(deed_of(change), || why_changed(trouble), |record| record.on = of_kek(leash.kek()));
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
            let patience = self.clock.now().plus(self.settings.store_timeout);
            self.clock.until(patience, saved).await;
        }
        match trouble.verdict {
            Verdict::Fatal => Error::from(trouble.clone()),
            _ => leash.why_not(),
        }
    }

    /// True when the engine and all its handles are gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Lets nothing begin any more and wipes every key. Tasks go on, and admit none.
    pub(crate) fn refuse_all(&self) {
        self.home.close();
        self.leashes().iter().for_each(|leash| leash.close());
        self.changed.notify_waiters();
    }

    /// The engine's own tasks come to an end.
    pub(crate) fn end_tasks(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.stir.notify_one();
        self.stir_tend.notify_one();
    }

    /// Takes the keys of every account out of memory of which a version of this KEK wraps an AEK; how many accounts.
    pub(crate) fn wipe_under(&self, kek: &KekName) -> usize {
        self.count_news();
        let leashes = self.leashes();
        let under = leashes.iter().filter(|leash| leash.kek().name == *kek).flat_map(|leash| leash.living_members());
        let mut accounts: Vec<_> = under.filter_map(|slot| self.alive(slot.account())).collect();
        accounts.sort_by_key(Arc::as_ptr);
        accounts.dedup_by_key(|keys| Arc::as_ptr(keys));
        accounts.iter().for_each(|keys| keys.shut());
        accounts.len()
    }

    /// Wipes every key, whatever still runs: the engine and all its handles are gone. Denials on their way to the store get
    /// there; all else ends.
    pub(crate) fn close(self: &Arc<Self>) {
        if fork::in_child() {
            return; // its keys are gone, and its threads are the parent's
        }
        self.closed.store(true, Ordering::SeqCst);
        self.leashes().iter().for_each(|leash| leash.close());
        self.note_sums();
        self.memory.wipe_waiting(); // those whose operation has ended, as all have
        self.stir.notify_one();
        let keyring = self.clone();
        self.home.proofs.spawn(async move {
            keyring.settle().await;
            keyring.home.end();
        });
    }

    /// Waits, for one `store_timeout` at most, until the store says of each KEK version whether it was denied last.
    async fn settle(&self) {
        self.clock.until(self.clock.now().plus(self.settings.store_timeout), self.denials_settled()).await;
    }

    /// Returns when the store says of each KEK version whether it was denied last.
    pub(crate) async fn denials_settled(&self) {
        for leash in self.leashes() {
            leash.denial.settled().await;
        }
    }
}

/// What handles hold: when the last of them goes, every key is wiped, whatever task still runs. The engine's own tasks have the keyring
/// alone, which keeps nothing alive.
pub(crate) struct Owner(pub(crate) Arc<Keyring>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What a change of a lease is on the trail.
const fn deed_of(change: Change) -> Deed {
    match change {
        Change::Granted => Deed::Granted,
        Change::Unreachable => Deed::Unreachable,
        Change::Denied => Deed::Denied,
        Change::Lapsed => Deed::Lapsed,
        Change::Resuming => Deed::Resuming,
        Change::Resumed => Deed::Resumed,
    }
}

/// It happened; where the token said why, by its code.
fn why_changed(trouble: Option<&TokenError>) -> Outcome {
    trouble.map_or(Outcome::Done, |trouble| Outcome::Failed(Why::of(&trouble.clone().into())))
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
        Verdict::BadRecord | Verdict::Busy => None,
    }
}
