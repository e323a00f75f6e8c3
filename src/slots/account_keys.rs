//! The slots of one account: one for each AEK version, also for those that come later, and another one when a version's
//! wrapping moves to another KEK version.

use crate::{
    access::{Force, Permit, Permits},
    clock::Instant,
    error::{Corrupt, Error},
    name::{AccountId, CallerId, KekName},
    planted::{self, Fault},
    slots::{
        slot::AekSlot,
        tally::{Tallies, Tally},
    },
    store::record::{RetiredAek, was_retired},
    telemetry::trail::Who,
};
use std::{
    collections::BTreeSet,
    iter,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering, fence},
    },
};

/// The index hears of an account that is looked up once in this time: the order in which accounts leave a full index is so
/// exact, and one that left too early costs an unwrap, as its refresh does that often. Telling it takes a dozen reads of memory
/// that wait for one another, a look-up without it six.
const TELL_PAUSE_SECS: u32 = 5 * 60;
const NANOS_PER_SEC: u64 = 1_000_000_000;

/// How many times as long as the one before it each chunk of slots is.
const CHUNK_GROWTH: usize = 8;

/// An account's slots. They are only ever added, so that the data path looks without a lock; of several slots of one AEK
/// version the last counts.
#[derive(Debug)]
pub(crate) struct AccountKeys {
    pub(crate) id: AccountId,
    first: Arc<AekSlot>,
    /// Those that came later; most accounts have none.
    later: OnceLock<Box<Later>>,
    /// Held while a slot is added.
    growing: Mutex<()>,
    /// Counts how often the account was deleted under its handles.
    shuts: AtomicU32,
    /// When the index last heard that the account is used, in seconds; 0 when it is not in the index.
    told_secs: AtomicU32,
    /// Of callers that have a name.
    permits: OnceLock<Box<Permits>>,
    /// Where there is a trail.
    tallies: OnceLock<Box<Tallies>>,
}

/// Slots behind the first one.
#[derive(Debug)]
struct Later {
    chunk: Chunk,
    /// The place of the current AEK version's slot among them, from 1; 0 is the first slot.
    current: AtomicUsize,
    /// What the record last said of retired AEK versions.
    retired: Mutex<Vec<RetiredAek>>,
    /// AEK versions that were recalled, and how often any was.
    recalled: Mutex<BTreeSet<u32>>,
    recalls: AtomicU32,
}

/// Slots that stay where they are, so that whoever finds one may keep looking at it. A thousand are in five chunks.
#[derive(Debug)]
struct Chunk {
    slots: Box<[OnceLock<Arc<AekSlot>>]>,
    next: OnceLock<Box<Chunk>>,
}

impl Default for Later {
    fn default() -> Self {
        Self {
            chunk: Chunk::new(1),
            current: AtomicUsize::new(0),
            retired: Mutex::default(),
            recalled: Mutex::default(),
            recalls: AtomicU32::new(0),
        }
    }
}

impl Later {
    #[inline]
    fn current(&self) -> Option<&Arc<AekSlot>> {
        self.chunk.get(self.current.load(Ordering::Acquire).checked_sub(1)?)
    }
}

impl Chunk {
    fn new(len: usize) -> Self {
        Self { slots: (0..len).map(|_| OnceLock::new()).collect(), next: OnceLock::new() }
    }

    fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        iter::successors(Some(self), |chunk| chunk.next.get().map(|next| &**next))
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<AekSlot>> {
        self.chunks().flat_map(|chunk| &chunk.slots).map_while(OnceLock::get)
    }

    fn get(&self, mut index: usize) -> Option<&Arc<AekSlot>> {
        self.chunks()
            .find_map(|chunk| {
                let found = chunk.slots.get(index);
                index = index.saturating_sub(chunk.slots.len());
                found
            })?
            .get()
    }

    /// Only one at a time may add. Gives how many there are then.
    fn push(&self, slot: Arc<AekSlot>) -> usize {
        let (mut chunk, mut before) = (self, 0);
        loop {
            if let Some(free) = chunk.slots.iter().position(|place| place.get().is_none()) {
                let _ = chunk.slots.get(free).map(|place| place.set(slot));
                return before + free + 1;
            }
            before += chunk.slots.len();
            chunk = chunk.next.get_or_init(|| Box::new(Self::new(chunk.slots.len() * CHUNK_GROWTH)));
        }
    }
}

/// Since boot; never 0.
fn secs(now: Instant) -> u32 {
    ((now.as_nanos() / NANOS_PER_SEC) as u32).max(1)
}

/// Sees to it that what was read before an account was deleted, or one of its AEK versions retired, fills no slot after it: whoever
/// is later, the deletion or the end of this guard, wipes. Made before the record is read.
#[derive(Debug)]
pub(crate) struct ShutGuard {
    keys: Option<Arc<AccountKeys>>,
    seen: u32,
    seen_recalls: u32,
}

impl ShutGuard {
    pub(crate) fn new(keys: Option<Arc<AccountKeys>>) -> Self {
        let seen = keys.as_ref().map_or(0, |keys| keys.shuts.load(Ordering::SeqCst));
        let seen_recalls = keys.as_ref().map_or(0, |keys| keys.recalls());
        Self { keys, seen, seen_recalls }
    }

    /// Wipes now, if the account was deleted since it was made, and what was recalled since.
    pub(crate) fn settle(&self) {
        let Some(keys) = &self.keys else { return };
        if keys.shuts.load(Ordering::SeqCst) != self.seen {
            keys.slots().for_each(|slot| slot.shut());
        }
        if keys.recalls() != self.seen_recalls {
            keys.wipe_recalled();
        }
    }

    /// The account's keys as it was made.
    pub(crate) fn keys(&self) -> Option<&AccountKeys> {
        self.keys.as_deref()
    }
}

impl Drop for ShutGuard {
    fn drop(&mut self) {
        self.settle();
    }
}

impl AccountKeys {
    /// `None` without a slot: an account has at least one AEK version.
    pub(crate) fn new(id: AccountId, slots: Vec<Arc<AekSlot>>) -> Option<Self> {
        let mut slots = slots.into_iter();
        let keys = Self {
            id,
            first: slots.next()?,
            later: OnceLock::new(),
            growing: Mutex::default(),
            shuts: AtomicU32::new(0),
            told_secs: AtomicU32::new(0),
            permits: OnceLock::new(),
            tallies: OnceLock::new(),
        };
        slots.for_each(|slot| keys.push(slot));
        Some(keys)
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = &Arc<AekSlot>> {
        iter::once(&self.first).chain(self.later.get().into_iter().flat_map(|later| later.chunk.iter()))
    }

    /// The slot of the current AEK version, under which new blocks are sealed: the last one of the highest version.
    #[inline]
    pub(crate) fn current(&self) -> &Arc<AekSlot> {
        match self.later.get() {
            None => &self.first,
            Some(later) => later.current().unwrap_or(&self.first),
        }
    }

    /// The KEK that the account is under.
    pub(crate) fn kek(&self) -> &KekName {
        &self.current().leash.kek().name
    }

    /// What a caller may do with the account; it follows `force`, and the account from KEK to KEK.
    #[inline]
    pub(crate) fn permit(&self, force: &Arc<Force>, caller: &CallerId) -> Arc<Permit> {
        self.permits.get_or_init(Box::default).of(force, caller, &self.id, || self.kek().clone())
    }

    /// Where it is counted what is done by handles that were opened for one who asks; the second is true for a new one.
    pub(crate) fn tally(&self, who: &Who) -> (Arc<Tally>, bool) {
        self.tallies.get_or_init(Box::default).of(&self.id, who)
    }

    /// The slot of an AEK version that a block names.
    #[inline]
    pub(crate) fn version(&self, aek_version: u32) -> Option<&Arc<AekSlot>> {
        let names_it = |slot: &&Arc<AekSlot>| slot.aek_version == aek_version && !slot.is_retired();
        // Most blocks are of the current version, and no later slot is of it.
        Some(self.current()).filter(names_it).or_else(|| self.slots().filter(names_it).last())
    }

    /// Remembers what the account's record says of retired AEK versions.
    pub(crate) fn note_retired(&self, retired: &[RetiredAek]) {
        if !retired.is_empty() {
            let later = self.later.get_or_init(Box::default);
            *later.retired.lock().unwrap_or_else(PoisonError::into_inner) = retired.to_vec();
        }
    }

    /// Takes the keys of AEK versions away that the account may not have any more, also of an unwrap that is under way, until its record
    /// was read anew.
    pub(crate) fn recall(&self, aek_versions: &[u32]) {
        let later = self.later.get_or_init(Box::default);
        later.recalled.lock().unwrap_or_else(PoisonError::into_inner).extend(aek_versions);
        // Counted before they are wiped: who fills one later finds that it was, and who did before finds the wipe.
        later.recalls.fetch_add(1, Ordering::SeqCst);
        self.wipe_recalled();
    }

    fn recalls(&self) -> u32 {
        self.later.get().map_or(0, |later| later.recalls.load(Ordering::SeqCst))
    }

    fn wipe_recalled(&self) {
        let Some(later) = self.later.get() else { return };
        let recalled = later.recalled.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.slots().filter(|slot| recalled.contains(&slot.aek_version)).for_each(|slot| slot.recall());
    }

    /// What is said of an AEK version that is not here, to whoever would open a block of it.
    #[cold]
    pub(crate) fn absent(&self, aek_version: u32) -> Error {
        if !(1..self.current().aek_version).contains(&aek_version) {
            return Corrupt::AekVersion(aek_version).into();
        }
        let known = self.later.get().map(|later| later.retired.lock().unwrap_or_else(PoisonError::into_inner));
        was_retired(&self.id, aek_version, known.as_deref().map_or(&[], Vec::as_slice))
    }

    /// True when the account is in the index, which heard not long ago that it is used.
    #[inline]
    pub(crate) fn index_knows(&self, now: Instant) -> bool {
        let told = self.told_secs.load(Ordering::Relaxed);
        told != 0 && secs(now).wrapping_sub(told) < TELL_PAUSE_SECS
    }

    /// The index hears of it at `now`.
    pub(crate) fn told_index(&self, now: Instant) {
        self.told_secs.store(secs(now), Ordering::Relaxed);
    }

    pub(crate) fn left_index(&self) {
        self.told_secs.store(0, Ordering::Relaxed);
    }

    /// Adds the slot of an AEK version that was not here before; the newest is the current one from then on. One that is cold is
    /// wanted, if the one that it takes the place of was in use.
    pub(crate) fn add(&self, slot: Arc<AekSlot>) {
        if planted::is(Fault::RotationNotTakenUp) && slot.aek_version > self.current().aek_version {
            return;
        }
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.version(slot.aek_version).is_none() {
            if slot.aek_version > self.current().aek_version {
                slot.inherit(self.current());
            }
            self.push(slot);
        }
    }

    /// Wipes everything: the account was deleted. Its handles stay, and say so when they are warmed.
    pub(crate) fn shut(&self) {
        // Emptied before it is counted: whoever counts from now on finds no slot that is in use.
        self.slots().for_each(|slot| slot.shut());
        self.shuts.fetch_add(1, Ordering::SeqCst);
        self.slots().for_each(|slot| slot.shut());
    }

    /// With `growing` held: nobody else adds one meanwhile.
    fn push(&self, slot: Arc<AekSlot>) {
        let is_newest = slot.aek_version >= self.current().aek_version;
        let later = self.later.get_or_init(Box::default);
        let place = later.chunk.push(slot);
        if is_newest {
            later.current.store(place, Ordering::Release);
            // Who makes a permit now sees what is current above, or is seen below.
            fence(Ordering::SeqCst);
            if let Some(permits) = self.permits.get() {
                permits.follow(|| self.kek().clone());
            }
        }
    }

    /// Puts `heir` in the place of the slot of its AEK version, which is retired; unless that is under the same lease already.
    pub(crate) fn hand_over(&self, heir: Arc<AekSlot>) {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(old) = self.version(heir.aek_version) else { return };
        if Arc::ptr_eq(&old.leash, &heir.leash) {
            return;
        }
        heir.inherit(old);
        self.push(heir);
        old.retire();
    }
}

#[cfg(test)]
impl AccountKeys {
    /// Keys of an account with slots of these AEK versions, under a lease of their own.
    pub(crate) fn of_test(id: &str, aek_versions: &[u32]) -> Self {
        use crate::{
            clock::{Clock, ManualClock},
            config::Settings,
            lease::Lease,
            leash::key_memory::KeyMemory,
            name::{KekName, KekVersion},
            slots::{
                meter::{Counted, Ledger, Limits, Meter},
                slot::Leash,
            },
            store::record::{AekPolicy, Usage},
            token::seats::Route,
        };
        let (clock, settings) = (Clock::Manual(ManualClock::default()), Settings::default());
        let kek = KekVersion::new(KekName::new("k").unwrap(), 1);
        let memory = KeyMemory::of_test(&clock);
        let (route, lease) = (Route::of_test(&clock), Lease::new(settings.terms()));
        let leash = Arc::new(Leash::new(kek, route, lease, clock, &settings, memory, Arc::default()));
        let (id, ledger) = (AccountId::new(id).unwrap(), Ledger::new(Limits::SUITE));
        let slot = |version: &u32| {
            let aek = Counted { account: id.clone(), aek_version: *version, created_unix: 0 };
            let meter = Meter::new(&ledger, aek, Usage::default(), AekPolicy::default());
            AekSlot::new(leash.clone(), meter)
        };
        Self::new(id.clone(), aek_versions.iter().map(slot).collect()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_sealed_under_the_last_slot_of_the_highest_version_and_every_version_is_found() {
        let versions: Vec<u32> = (0..700_u32).map(|n| 1 + n * 7 % 701 / 3).collect();
        for len in (1..=100).chain([600, 700]) {
            let versions = &versions[..len];
            let keys = AccountKeys::of_test("a", versions);
            let slots: Vec<_> = keys.slots().collect();
            assert_eq!(slots.iter().map(|slot| slot.aek_version).collect::<Vec<_>>(), versions);
            let last = |version| slots.iter().rev().find(|slot| slot.aek_version == version).unwrap();
            assert!(Arc::ptr_eq(keys.current(), last(*versions.iter().max().unwrap())), "{len}");
            versions.iter().for_each(|version| assert!(Arc::ptr_eq(keys.version(*version).unwrap(), last(*version))));
            assert!(keys.version(1000).is_none());
        }
    }

    #[test]
    fn a_slot_that_was_retired_is_not_found_and_the_one_before_it_is() {
        let keys = AccountKeys::of_test("a", &[1, 2, 2]);
        let slots: Vec<_> = keys.slots().cloned().collect();
        slots[2].retire();
        assert!(Arc::ptr_eq(keys.version(2).unwrap(), &slots[1]));
        slots[1].retire();
        assert!(keys.version(2).is_none() && keys.version(1).is_some());
    }
}
