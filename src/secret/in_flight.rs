//! Operations in flight: which key each seal and open uses, so that a wipe waits for those of its own key and for no others.
//!
//! Each thread owns a cache line with a few places. An operation takes one, writes there where the key is that it is about to
//! use, and looks whether the slot still has it there. That costs a store and a fence on a line that nobody else writes, so
//! cores do not contend. A wiper first takes the key out of its slot, then looks at all places once: it waits for those that
//! have the key, each until it has it no more. (Hazard pointers, of Maged Michael.)
//!
//! Why it is right: the reader does `place = key; fence; read slot`, the wiper `slot = nothing; fence; read places`. So either
//! the reader sees that the key was taken out, or the wiper sees the reader's place. A key that was taken out comes into no
//! place any more, but for a moment in which its reader finds out; so a place that was once seen without it is done with.

use crate::sync::{self, AtomicPtr, AtomicU64, Mutex, MutexGuard, fence};
use std::{
    marker::PhantomData,
    sync::{PoisonError, atomic::Ordering},
};

/// Operations that a thread has under way at once: a reseal is two. Further ones take a seat of their own.
const PLACES: usize = 2;
const WORDS: usize = PLACES + 1;
/// In a place that no operation has.
const FREE: u64 = 0;
/// In a place whose operation has no key yet. No key is at this address.
const TAKEN: u64 = 1;

/// A thread's places, and then the thread as the kernel numbers it. In memory that a fork zeroes: of the parent's threads none is
/// in a child, and a child that wipes must not wait for them.
type Words = &'static [AtomicU64; WORDS];

fn new_words() -> Words {
    #[cfg(not(keyleash_loom))]
    if let Ok(words) = crate::secret::words_that_a_fork_zeroes() {
        return words;
    }
    new_plain_words()
}

/// Without such memory: two cache lines, because the prefetcher of x86 fetches pairs.
fn new_plain_words() -> Words {
    #[repr(align(128))]
    struct Lines([AtomicU64; WORDS]);
    let lines: &'static Lines = Box::leak(Box::new(Lines(std::array::from_fn(|_| AtomicU64::new(FREE)))));
    &lines.0
}

/// What a thread has while it lives.
#[derive(Clone, Copy)]
struct Seat {
    words: Words,
    /// Counts from 0. No two living threads have the same.
    number: usize,
}

impl Seat {
    #[inline]
    fn places(self) -> impl Iterator<Item = &'static AtomicU64> {
        self.words.iter().take(PLACES)
    }

    fn thread(&self) -> &'static AtomicU64 {
        let [.., thread] = self.words;
        thread
    }
}

/// Every seat there ever was (threads that ended give theirs to new ones), and those that are free.
struct Registry {
    all: Vec<Seat>,
    free: Vec<Seat>,
}

sync::global!(REGISTRY: Mutex<Registry> = Mutex::new(Registry { all: Vec::new(), free: Vec::new() }));

fn registry() -> MutexGuard<'static, Registry> {
    // Nothing panics while it is held, and the lists are whole after every step.
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread's claim on a seat; given back when the thread ends.
struct Claim(Seat);

impl Claim {
    fn new() -> Self {
        #[cfg(not(keyleash_loom))]
        if crate::secret::fork::in_child() {
            // The list may be locked for good, and no key is here that a wipe would wait for.
            return Self(Seat { words: new_plain_words(), number: usize::MAX });
        }
        let mut registry = registry();
        let seat = registry.free.pop().unwrap_or_else(|| {
            let seat = Seat { words: new_words(), number: registry.all.len() };
            registry.all.push(seat);
            seat
        });
        #[cfg(not(keyleash_loom))]
        seat.thread().store(rustix::thread::gettid().as_raw_nonzero().get() as u64, Ordering::Relaxed);
        Self(seat)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // loom takes its statics down before the locals of its main thread.
        #[cfg(not(keyleash_loom))]
        if !crate::secret::fork::in_child() {
            registry().free.push(self.0);
        }
    }
}

#[cfg(not(keyleash_loom))]
thread_local! {
    static CLAIM: Claim = Claim::new();
}

#[cfg(keyleash_loom)]
loom::thread_local! {
    static CLAIM: Claim = Claim::new();
}

/// A seal or open in flight on this thread. The key that it protects stays in place until it is dropped, or protects another.
pub(crate) struct Operation {
    place: &'static AtomicU64,
    thread: usize,
    /// Held when the thread is ending and has no claim of its own any more, or has as many operations as places.
    _claim: Option<Claim>,
    not_send: PhantomData<*const ()>,
}

impl Operation {
    /// Enters.
    #[inline]
    pub(crate) fn enter() -> Self {
        match CLAIM.try_with(|claim| claim.0) {
            Ok(seat) => {
                let [place, ..] = seat.words;
                if place.load(Ordering::Relaxed) == FREE { Self::at(place, seat) } else { Self::beside(seat) }
            }
            Err(_) => Self::apart(),
        }
    }

    #[inline]
    fn at(place: &'static AtomicU64, seat: Seat) -> Self {
        // The only writer is this thread. Release, here and below, because a wiper that waited for the operation before this one
        // may see this value instead of the one that left it: a relaxed store would not order that operation's reads before the
        // wipe.
        place.store(TAKEN, Ordering::Release);
        Self { place, thread: seat.number, _claim: None, not_send: PhantomData }
    }

    /// Beside another one of this thread.
    #[inline(never)]
    fn beside(seat: Seat) -> Self {
        match seat.places().find(|place| place.load(Ordering::Relaxed) == FREE) {
            Some(place) => Self::at(place, seat),
            None => Self::apart(),
        }
    }

    #[cold]
    fn apart() -> Self {
        loop {
            let claim = Claim::new();
            let seat = claim.0;
            if let Some(place) = seat.places().find(|place| place.load(Ordering::Relaxed) == FREE) {
                let mut operation = Self::at(place, seat);
                operation._claim = Some(claim);
                return operation;
            }
            // Of a thread that ended in the midst of its operations: nobody's any more.
            std::mem::forget(claim);
        }
    }

    /// What `slot` points to, which whoever takes it out of there keeps whole from now on, until the operation ends or protects
    /// something else. `None` when it is taken out in this moment.
    #[inline(always)]
    pub(crate) fn protect<T>(&mut self, slot: &AtomicPtr<T>) -> Option<*mut T> {
        let key = slot.load(Ordering::Acquire);
        self.place.store(key.addr() as u64, Ordering::Release);
        fence(Ordering::SeqCst);
        (slot.load(Ordering::Acquire) == key).then_some(key)
    }

    /// The number of the thread that it runs on, from 0: no two threads have the same at the same time.
    #[inline]
    pub(crate) fn thread(&self) -> usize {
        self.thread
    }
}

impl Drop for Operation {
    #[inline]
    fn drop(&mut self) {
        self.place.store(FREE, Ordering::Release);
    }
}

/// Which keys were used at one moment: of those that were taken out before it, all that are used.
pub(crate) struct Uses(Vec<(u64, Use)>);

impl Uses {
    /// As of now. Waits for nobody.
    pub(crate) fn now() -> Self {
        let mut uses = Vec::new();
        #[cfg(not(keyleash_loom))]
        if crate::secret::fork::in_child() {
            return Self(uses); // as for `Claim::new`
        }
        fence(Ordering::SeqCst);
        for seat in &registry().all {
            for place in seat.places() {
                let key = place.load(Ordering::Acquire);
                if key != FREE && key != TAKEN {
                    uses.push((key, Use { place, thread: seat.thread() }));
                }
            }
        }
        Self(uses)
    }

    /// Those of the key at this address.
    pub(crate) fn of(&self, key: u64) -> Vec<Use> {
        self.0.iter().filter(|(at, _)| *at == key).map(|(_, one)| *one).collect()
    }
}

/// An operation that used a key.
#[derive(Clone, Copy)]
pub(crate) struct Use {
    place: &'static AtomicU64,
    thread: &'static AtomicU64,
}

impl Use {
    /// True while it uses the key at this address.
    pub(crate) fn goes_on(&self, key: u64) -> bool {
        self.place.load(Ordering::Acquire) == key
    }

    /// The thread that it runs on, as the kernel numbers it.
    pub(crate) fn thread(&self) -> u64 {
        self.thread.load(Ordering::Relaxed)
    }
}

/// Nobody takes or leaves a seat, or looks at them, until it is dropped: for a test that forks.
#[cfg(test)]
pub(crate) fn hold_still() -> impl Drop {
    registry()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(key: &mut u32) -> usize {
        Uses::now().of(ptr_of(key) as u64).len()
    }

    fn ptr_of(key: &mut u32) -> usize {
        std::ptr::from_mut(key).addr()
    }

    #[test]
    fn a_key_is_used_while_an_operation_protects_it_however_many_the_thread_has() {
        let (mut one, mut other) = (1_u32, 2_u32);
        let (slot, beside) = (AtomicPtr::new(&raw mut one), AtomicPtr::new(&raw mut other));
        let mut operations: Vec<_> = (0..5).map(|_| Operation::enter()).collect();
        assert_eq!(used(&mut one), 0);
        for (n, operation) in operations.iter_mut().enumerate() {
            assert!(operation.protect(&slot).is_some());
            assert_eq!(used(&mut one), n + 1);
        }
        assert!(operations[2].protect(&beside).is_some());
        assert_eq!((used(&mut one), used(&mut other)), (4, 1));
        let uses = Uses::now().of(ptr_of(&mut other) as u64);
        // In whatever order they end.
        operations.drain(1..4);
        assert!(!uses[0].goes_on(ptr_of(&mut other) as u64));
        assert_eq!((used(&mut one), used(&mut other)), (2, 0));
        operations.push(Operation::enter());
        assert_eq!(used(&mut one), 2);
        drop(operations);
        assert_eq!(used(&mut one), 0);
    }

    #[test]
    fn a_use_names_its_thread() {
        let mut key = 1_u32;
        let slot = AtomicPtr::new(&raw mut key);
        let mut operation = Operation::enter();
        operation.protect(&slot).unwrap();
        let uses = Uses::now().of(ptr_of(&mut key) as u64);
        assert_eq!(uses[0].thread(), rustix::thread::gettid().as_raw_nonzero().get() as u64);
    }
}
