//! Key slots: filled and emptied in place while other threads use them.
//!
//! A slot points to the cell of its key. Whoever takes the key away lets the slot point to nothing, at once and without waiting;
//! what was taken out is wiped when no operation uses it any more (`in_flight.rs`), and the slot can be filled anew meanwhile,
//! with another cell. So one seal that is stuck keeps its own key's bytes in memory, and nothing else.
#![allow(unsafe_code)] // part of the room `secret`; each block says why it is sound

use super::{
    Aek, Schedule,
    cells::{CELL_ALIGN, MemlockPolicy},
    scrub_stack,
};
use crate::{
    error::Result,
    secret::in_flight::{Operation, Use, Uses},
    sync::{self, AtomicPtr, AtomicU64, Mutex, MutexGuard, Witness},
};
use std::{
    cell::UnsafeCell,
    fmt,
    mem::MaybeUninit,
    num::NonZeroU64,
    ptr::{self, NonNull},
    sync::{PoisonError, atomic::Ordering},
};

/// The epoch that says "empty".
const EMPTY: u64 = 0;

/// What stands in a key's cell.
#[repr(C, align(16))]
struct Body {
    /// The lease epoch in which the slot was filled. In the page, so that a fork zeroes it: a child finds every slot empty.
    epoch: AtomicU64,
    schedule: UnsafeCell<MaybeUninit<Schedule>>,
    witness: Witness,
}

#[cfg(not(keyleash_loom))]
const _: () = assert!(size_of::<Body>() <= super::CELL_BYTES);
const _: () = assert!(align_of::<Body>() <= CELL_ALIGN);

// SAFETY: the epoch is an atomic; the schedule is written before a body is shared, and after it is shared no more.
unsafe impl Sync for Body {}

#[cfg(keyleash_loom)]
impl Body {
    fn empty() -> Self {
        Self {
            epoch: AtomicU64::new(EMPTY),
            schedule: UnsafeCell::new(MaybeUninit::uninit()),
            witness: Witness::default(),
        }
    }
}

// What a slot points to that has no key. Never written.
#[cfg(not(keyleash_loom))]
static NOTHING: Body =
    Body { epoch: AtomicU64::new(EMPTY), schedule: UnsafeCell::new(MaybeUninit::uninit()), witness: Witness() };
#[cfg(keyleash_loom)]
loom::lazy_static! { static ref NOTHING: Body = Body::empty(); }

fn nothing() -> *mut Body {
    let nothing: &Body = &NOTHING;
    ptr::from_ref(nothing).cast_mut()
}

/// A cell with a key in it, which this value alone owns. Wiped as it is dropped.
struct Key(NonNull<Body>);

// SAFETY: what it points to is plain memory that this value owns; readers go by the protocol of `KeySlot`.
unsafe impl Send for Key {}

impl Key {
    /// A cell for a key, with the epoch of emptiness.
    #[cfg(not(keyleash_loom))]
    fn cell(policy: MemlockPolicy) -> Result<Self> {
        // Zeroed, which is a valid Body: an epoch of 0 and uninitialised bytes. Big and aligned enough, as asserted above.
        Ok(Self(super::Cell::take(policy, super::cells::CELLS_SPARED)?.leak().cast()))
    }

    /// What loom must see stands where it sees it. Never freed, so that a fault that is planted is reported, not met.
    #[cfg(keyleash_loom)]
    fn cell(_: MemlockPolicy) -> Result<Self> {
        Ok(Self(NonNull::from(Box::leak(Box::new(Body::empty())))))
    }

    fn body(&self) -> &Body {
        // SAFETY: the cell holds a Body for as long as this value owns it.
        unsafe { self.0.as_ref() }
    }

    fn address(&self) -> u64 {
        self.0.addr().get() as u64
    }

    fn into_slot(self) -> *mut Body {
        let body = self.0.as_ptr();
        std::mem::forget(self);
        body
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.body().witness.write();
        self.body().epoch.store(EMPTY, Ordering::Relaxed);
        #[cfg(not(keyleash_loom))]
        // SAFETY: the cell was leaked for this value, and whoever drops it knows that nobody reads it. All its bytes are wiped as
        // it is given back; a Schedule owns nothing else.
        drop(unsafe { super::Cell::from_start(self.0.cast()) });
    }
}

/// A key that is set up and not yet in a slot.
pub(crate) struct NewKey(Key);

impl NewKey {
    /// Sets the schedule of `aek` up in a cell.
    ///
    /// # Errors
    /// [`Error::Fatal`](crate::Error::Fatal) without memory; [`Error::Misconfigured`](crate::Error::Misconfigured) when it
    /// cannot be locked and the policy refuses that.
    pub(crate) fn set_up(aek: &Aek, policy: MemlockPolicy) -> Result<Self> {
        let key = Key::cell(policy)?;
        key.body().witness.write();
        // SAFETY: nobody else knows the cell, and no schedule stands in it.
        unsafe { Schedule::set_up(key.body().schedule.get().cast(), aek) };
        scrub_stack();
        Ok(Self(key))
    }
}

/// A key that was taken out of its slot: nobody begins to use it any more. Give it to [`TakenOut::wipe_unused`], which does not
/// wait; to drop one that is used waits for the operations that use it.
#[must_use = "dropped where it stands, it may wait for an operation"]
pub(crate) struct TakenOut {
    key: Option<Key>,
    /// Those that used it as it was looked at, and may still do; `None` before it was looked at.
    uses: Option<Vec<Use>>,
}

impl TakenOut {
    fn of(body: *mut Body) -> Option<Self> {
        let key = NonNull::new(body).filter(|body| body.as_ptr() != nothing()).map(Key)?;
        Some(Self { key: Some(key), uses: None })
    }

    /// Wipes what no operation uses, and gives back the rest.
    pub(crate) fn wipe_unused<T>(taken: Vec<(Self, T)>) -> Vec<(Self, T)> {
        if taken.is_empty() {
            return taken;
        }
        let uses = Uses::now(); // one look for all, after all were taken out
        let still_used = |(mut taken, what): (Self, T)| {
            taken.uses = Some(uses.of(taken.key.as_ref()?.address()));
            Some((taken.wiped_unless_used()?, what))
        };
        taken.into_iter().filter_map(still_used).collect()
    }

    /// Gives itself back while an operation uses it.
    pub(crate) fn wiped_unless_used(mut self) -> Option<Self> {
        let address = self.key.as_ref()?.address();
        let uses = self.uses.get_or_insert_with(|| Uses::now().of(address));
        uses.retain(|one| one.goes_on(address));
        if !uses.is_empty() {
            return Some(self);
        }
        self.key = None; // wiped
        None
    }

    /// The threads whose operations it waits for, as the kernel numbers them.
    pub(crate) fn threads(&self) -> Vec<u64> {
        self.uses.iter().flatten().map(Use::thread).collect()
    }
}

impl Drop for TakenOut {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let address = key.address();
        let mut uses = self.uses.take().unwrap_or_else(|| Uses::now().of(address));
        let mut rounds = 0_u32;
        while {
            uses.retain(|one| one.goes_on(address));
            !uses.is_empty()
        } {
            sync::pause(rounds);
            rounds = rounds.saturating_add(1);
        }
    }
}

/// A place for one AEK's schedule.
pub(crate) struct KeySlot {
    /// Where the key is.
    key: AtomicPtr<Body>,
    /// The epoch in which it was filled, for all who do not use the key: its cell may be wiped under them.
    filled: AtomicU64,
    /// Held by whoever fills and empties.
    writer: Mutex<()>,
}

impl Default for KeySlot {
    fn default() -> Self {
        Self { key: AtomicPtr::new(nothing()), filled: AtomicU64::new(EMPTY), writer: Mutex::default() }
    }
}

impl KeySlot {
    fn writer(&self) -> MutexGuard<'_, ()> {
        // Nothing panics while it is held.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a key in, as of the lease epoch `epoch`. Gives the one that was there before.
    pub(crate) fn fill(&self, key: NewKey, epoch: NonZeroU64) -> Option<TakenOut> {
        key.0.body().epoch.store(epoch.get(), Ordering::Relaxed);
        let _writing = self.writer();
        let before = self.key.swap(key.0.into_slot(), Ordering::SeqCst);
        self.filled.store(epoch.get(), Ordering::SeqCst);
        TakenOut::of(before)
    }

    /// The schedule, when the slot was filled in `epoch` (and this process was not forked since).
    #[inline]
    pub(crate) fn read<'a>(&'a self, operation: &'a mut Operation, epoch: u64) -> Option<&'a Schedule> {
        let body = operation.protect(&self.key)?;
        // SAFETY: the slot points to a body or to nothing, which is one. What it points to is not wiped while the operation
        // protects it: it lasts at least as long as the operation is borrowed.
        let body: &'a Body = unsafe { &*body };
        let filled = body.epoch.load(Ordering::Acquire);
        if filled == EMPTY || filled != epoch {
            return None;
        }
        body.witness.read();
        // SAFETY: a body with another epoch than that of emptiness was given its schedule before it was put into a slot.
        Some(unsafe { (*body.schedule.get()).assume_init_ref() })
    }

    /// The lease epoch in which the slot was filled, if it is filled.
    pub(crate) fn epoch(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(self.filled.load(Ordering::Acquire))
    }

    /// True when the slot holds this AEK, compared in constant time. False when it is empty.
    pub(crate) fn holds(&self, aek: &Aek) -> bool {
        self.compare(aek) == Some(true)
    }

    /// True when the slot holds another AEK than this one. False when it is empty.
    pub(crate) fn differs_from(&self, aek: &Aek) -> bool {
        self.compare(aek) == Some(false)
    }

    fn compare(&self, aek: &Aek) -> Option<bool> {
        let _writing = self.writer();
        self.epoch()?;
        let body = self.key.load(Ordering::Acquire);
        // SAFETY: the slot is filled, and while the writer lock is held nobody takes its key out.
        let body = unsafe { &*body };
        body.witness.read();
        // SAFETY: as for `read`; in a forked child it is zeroed, which is a schedule as well, of no AEK.
        Some(unsafe { (*body.schedule.get()).assume_init_ref() }.is_of(aek))
    }

    /// Takes the key out: nobody begins to use it any more.
    pub(crate) fn take_out(&self) -> Option<TakenOut> {
        let _writing = self.writer();
        self.take_out_locked()
    }

    /// As [`KeySlot::take_out`], unless the slot is empty or was filled in the epoch `current`.
    pub(crate) fn take_out_unless(&self, current: u64) -> Option<TakenOut> {
        let _writing = self.writer();
        self.epoch().filter(|epoch| epoch.get() != current)?;
        self.take_out_locked()
    }

    fn take_out_locked(&self) -> Option<TakenOut> {
        self.filled.store(EMPTY, Ordering::SeqCst);
        TakenOut::of(self.key.swap(nothing(), Ordering::SeqCst))
    }
}

impl Drop for KeySlot {
    fn drop(&mut self) {
        if let Some(TakenOut { key, .. }) = self.take_out().as_mut() {
            // Nobody reads it: an operation that does borrows the slot.
            drop(key.take());
        }
    }
}

impl fmt::Debug for KeySlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.epoch().is_some() { "KeySlot(filled)" } else { "KeySlot(empty)" })
    }
}
