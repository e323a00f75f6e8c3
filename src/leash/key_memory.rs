//! The key memory of one engine: how many keys are in it, whether it must be locked, and which keys wait to be wiped.
//!
//! A key that is taken away is out of its slot at once. It is wiped at once too, unless a seal or open still uses it: then it
//! waits here, beside the others and in no order, until that one ends. Nobody waits for it: neither a denial, nor an eviction,
//! nor another engine. Where an operation is stuck (a buffer whose page does not come, a thread that was stopped), an event and
//! the status say so.

use crate::{
    clock::{Clock, Instant},
    name::{AccountId, KekVersion},
    secret::{MemlockPolicy, Refuser, TakenOut},
    sync::{Mutex, MutexGuard},
    telemetry::{Event, Teller},
};
use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// A wipe that waits for longer than this is told: a block of 64 MiB takes some 20 ms.
const LONG: Duration = Duration::from_secs(1);
/// How often the keys that wait are looked at: soon after one came, …
#[cfg(not(keyleash_loom))]
const LOOK_MIN: Duration = Duration::from_millis(1);
/// … and more and more seldom while none comes.
#[cfg(not(keyleash_loom))]
const LOOK_MAX: Duration = Duration::from_millis(100);

/// A key that was taken away and is not wiped yet, because a seal or open has not ended that uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaitingWipe {
    /// The KEK version that it is wrapped under.
    pub kek: KekVersion,
    /// Its account.
    pub account: Option<AccountId>,
    /// For how long it has waited.
    pub waits: Duration,
    /// The threads that it waits for, as the kernel numbers them (`/proc/PID/task/N/stack`, `wchan`).
    pub threads: Vec<u64>,
}

/// See the top of the file.
#[derive(Debug)]
pub(crate) struct KeyMemory {
    pub(crate) policy: MemlockPolicy,
    _refuser: Option<Refuser>,
    /// Slots that hold a key.
    filled: AtomicUsize,
    /// Keys that were taken out of their slots so far.
    wiped: AtomicU64,
    waiting: Arc<Waiting>,
}

struct Waiting {
    clock: Clock,
    teller: Teller,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    keys: Vec<(TakenOut, Owner)>,
    /// A thread looks after them.
    is_looked_after: bool,
    /// Some came since they were last looked at.
    is_new: bool,
}

/// Whose key waits.
struct Owner {
    kek: KekVersion,
    account: Option<AccountId>,
    since: Instant,
    told: bool,
}

impl KeyMemory {
    pub(crate) fn new(policy: MemlockPolicy, clock: Clock, teller: Teller) -> Arc<Self> {
        let waiting = Arc::new(Waiting { clock, teller, list: Mutex::default() });
        let (filled, wiped) = Default::default();
        Arc::new(Self { policy, _refuser: Refuser::for_policy(policy), filled, wiped, waiting })
    }

    /// How many slots hold a key.
    pub(crate) fn filled(&self) -> usize {
        self.filled.load(Ordering::SeqCst)
    }

    /// How many keys were taken out of their slots so far.
    pub(crate) fn wiped(&self) -> u64 {
        self.wiped.load(Ordering::Relaxed)
    }

    /// One more slot is about to be filled.
    pub(crate) fn fills_one(&self) {
        self.filled.fetch_add(1, Ordering::SeqCst);
    }

    /// Wipes keys that were taken out of their slots: at once, or as soon as the operations that use them have ended. Waits for
    /// nobody.
    pub(crate) fn wipe(&self, kek: &KekVersion, taken: Vec<(TakenOut, Option<&AccountId>)>) {
        self.filled.fetch_sub(taken.len(), Ordering::SeqCst);
        self.wiped.fetch_add(taken.len() as u64, Ordering::Relaxed);
        let used = TakenOut::wipe_unused(taken);
        if used.is_empty() {
            return;
        }
        let since = self.waiting.clock.now();
        let owned = |(taken, account): (TakenOut, Option<&AccountId>)| {
            (taken, Owner { kek: kek.clone(), account: account.cloned(), since, told: false })
        };
        self.waiting.take(used.into_iter().map(owned));
    }

    /// Wipes what has waited and is used no more. Gives how many keys wait on.
    pub(crate) fn wipe_waiting(&self) -> usize {
        self.waiting.look()
    }

    /// The keys that wait to be wiped.
    pub(crate) fn waiting(&self) -> Vec<WaitingWipe> {
        let now = self.waiting.clock.now();
        let shown = |(taken, owner): &(TakenOut, Owner)| WaitingWipe {
            kek: owner.kek.clone(),
            account: owner.account.clone(),
            waits: now.since(owner.since),
            threads: taken.threads(),
        };
        self.waiting.list().keys.iter().map(shown).collect()
    }
}

impl Waiting {
    fn list(&self) -> MutexGuard<'_, List> {
        // The list is whole after every step.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, keys: impl Iterator<Item = (TakenOut, Owner)>) {
        let mut list = self.list();
        list.keys.extend(keys);
        list.is_new = true;
        #[cfg(not(keyleash_loom))]
        if !list.is_looked_after {
            let waiting = self.clone();
            // Where there is no thread to be had, the tending looks after them, and the next key that comes tries again.
            let thread = std::thread::Builder::new().name("keyleash-wipe".into()).spawn(move || waiting.look_after());
            list.is_looked_after = thread.is_ok();
        }
    }

    /// Until no key waits any more.
    #[cfg(not(keyleash_loom))]
    fn look_after(&self) {
        let mut pause = LOOK_MIN;
        while self.look() > 0 || !self.ends() {
            std::thread::sleep(pause);
            let is_new = std::mem::take(&mut self.list().is_new);
            pause = if is_new { LOOK_MIN } else { (pause * 2).min(LOOK_MAX) };
        }
    }

    /// True when nothing waits: the next key that comes starts another thread.
    #[cfg(not(keyleash_loom))]
    fn ends(&self) -> bool {
        let mut list = self.list();
        list.is_looked_after = !list.keys.is_empty();
        !list.is_looked_after
    }

    fn look(&self) -> usize {
        let mut list = self.list();
        if list.keys.is_empty() {
            return 0;
        }
        let now = self.clock.now();
        let mut told = Vec::new();
        let before: Vec<_> = std::mem::take(&mut list.keys);
        for (taken, mut owner) in before {
            let waits = now.since(owner.since);
            match taken.wiped_unless_used() {
                Some(taken) => {
                    if waits >= LONG && !owner.told {
                        owner.told = true;
                        let (kek, account, threads) = (owner.kek.clone(), owner.account.clone(), taken.threads());
                        told.push(Event::WipeWaits { kek, account, threads });
                    }
                    list.keys.push((taken, owner));
                }
                None if owner.told => {
                    told.push(Event::WipeDone { kek: owner.kek, account: owner.account, waited: waits });
                }
                None => {}
            }
        }
        let wait_on = list.keys.len();
        drop(list);
        told.into_iter().for_each(|event| self.teller.tell(event));
        wait_on
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("keys", &self.list().keys.len()).finish()
    }
}

#[cfg(test)]
impl KeyMemory {
    pub(crate) fn of_test(clock: &Clock) -> Arc<Self> {
        Self::new(MemlockPolicy::Warn, clock.clone(), Teller::new())
    }
}
