//! Operations in flight: lets a wipe wait for the seals and opens that may still read a key, and for no others.
//!
//! Each thread owns one cache line with a phase counter: odd while the thread is inside a seal or open, even
//! outside. Entering costs one store and one fence on a line that nobody else writes, so cores do not contend.
//! A wiper first empties the slot, then calls [`wait_past`]: it looks at every thread once and waits for those
//! that were inside to leave. Whoever enters later sees the emptied slot. (The idea is McKenney's sleepable RCU.)
//!
//! Why it is right: the reader does `phase = odd; fence; read slot`, the wiper `empty slot; fence; read phase`,
//! all sequentially consistent. So either the reader sees the slot empty, or the wiper sees the reader inside.

use crate::sync::{self, AtomicU64, Mutex, MutexGuard, fence};
use std::{
    cell::Cell,
    marker::PhantomData,
    sync::{PoisonError, atomic::Ordering},
};

/// One thread's phase. In memory that a fork zeroes: of the parent's threads none is in a child, inside or not, and a child
/// that wipes must not wait for them.
type Phase = AtomicU64;

fn new_phase() -> &'static Phase {
    #[cfg(not(keyleash_loom))]
    if let Ok(phase) = crate::secret::counter_that_a_fork_zeroes() {
        return phase;
    }
    new_plain_phase()
}

/// Without such memory: two cache lines, because the prefetcher of x86 fetches pairs.
fn new_plain_phase() -> &'static Phase {
    #[repr(align(128))]
    #[derive(Default)]
    struct Lines(AtomicU64);
    let lines: &'static Lines = Box::leak(Box::default());
    &lines.0
}

/// What a thread has while it lives.
#[derive(Clone, Copy)]
struct Seat {
    phase: &'static Phase,
    /// Counts from 0. No two living threads have the same.
    number: usize,
}

/// Every phase there ever was (threads that ended give their seats to new ones), and the seats that are free.
struct Registry {
    all: Vec<&'static Phase>,
    free: Vec<Seat>,
}

sync::global!(REGISTRY: Mutex<Registry> = Mutex::new(Registry { all: Vec::new(), free: Vec::new() }));
// Waits that have begun, and the highest number of a wait that has ended.
sync::global!(BEGUN: AtomicU64 = AtomicU64::new(0));
sync::global!(ENDED: AtomicU64 = AtomicU64::new(0));

fn registry() -> MutexGuard<'static, Registry> {
    // Nothing panics while it is held, and the lists are whole after every step.
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread's claim on a seat; given back when the thread ends.
struct Claim(Seat);

impl Claim {
    fn new() -> Self {
        #[cfg(not(keyleash_loom))]
        if crate::fork::in_child() {
            // The list may be locked for good, and no key is here that a wipe would wait for.
            return Self(Seat { phase: new_plain_phase(), number: usize::MAX });
        }
        let mut registry = registry();
        Self(registry.free.pop().unwrap_or_else(|| {
            let seat = Seat { phase: new_phase(), number: registry.all.len() };
            registry.all.push(seat.phase);
            seat
        }))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // loom takes its statics down before the locals of its main thread.
        #[cfg(not(keyleash_loom))]
        if !crate::fork::in_child() {
            registry().free.push(self.0);
        }
    }
}

#[cfg(not(keyleash_loom))]
thread_local! {
    static CLAIM: Claim = Claim::new();
    /// Depth of nested operations: only the outermost moves the phase.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

#[cfg(keyleash_loom)]
loom::thread_local! {
    static CLAIM: Claim = Claim::new();
    static DEPTH: Cell<u32> = Cell::new(0);
}

/// A seal or open in flight on this thread. Keys that it saw stay in place until it is dropped.
pub(crate) struct Operation {
    seat: Seat,
    /// Held when the thread is ending and has no claim of its own any more.
    _claim: Option<Claim>,
    not_send: PhantomData<*const ()>,
}

impl Operation {
    /// Enters.
    #[inline]
    pub(crate) fn enter() -> Self {
        let (seat, claim) = match CLAIM.try_with(|claim| claim.0) {
            Ok(seat) => (seat, None),
            Err(_) => {
                let claim = Claim::new();
                (claim.0, Some(claim))
            }
        };
        let nested = claim.is_none() && DEPTH.with(|depth| depth.replace(depth.get() + 1)) > 0;
        if !nested {
            // The only writer is this thread. Release, because a wiper that waited for the operation before this one may see
            // this value instead of the one that left it: a relaxed store would not order that operation's reads before the wipe.
            let phase = seat.phase;
            phase.store(phase.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
            fence(Ordering::SeqCst);
        }
        Self { seat, _claim: claim, not_send: PhantomData }
    }

    /// The number of the thread that it runs on, from 0: no two threads have the same at the same time.
    #[inline]
    pub(crate) fn thread(&self) -> usize {
        self.seat.number
    }
}

impl Drop for Operation {
    #[inline]
    fn drop(&mut self) {
        let outermost = self._claim.is_some() || DEPTH.with(|depth| depth.replace(depth.get() - 1)) == 1;
        if outermost {
            let phase = self.seat.phase;
            phase.store(phase.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        }
    }
}

/// The ticket of a slot that is emptied now: take it after the slot was emptied, give it to [`wait_past`].
pub(crate) fn ticket() -> u64 {
    fence(Ordering::SeqCst);
    BEGUN.load(Ordering::SeqCst)
}

/// Returns when every operation has ended that was in flight when the ticket was taken. Many tickets share one wait.
/// Blocks for as long as the longest of them (a 64 MiB block: some 20 ms).
pub(crate) fn wait_past(ticket: u64) {
    if ENDED.load(Ordering::SeqCst) > ticket {
        return;
    }
    let number = BEGUN.fetch_add(1, Ordering::SeqCst) + 1;
    fence(Ordering::SeqCst);
    let phases = registry().all.clone();
    for phase in phases {
        let seen = phase.load(Ordering::Acquire);
        let mut rounds = 0_u32;
        while seen % 2 == 1 && phase.load(Ordering::Acquire) == seen {
            sync::pause(rounds);
            rounds = rounds.saturating_add(1);
        }
    }
    ENDED.fetch_max(number, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_wait_ends_when_the_operations_before_it_have_ended_and_ignores_later_ones() {
        let (entered_tx, entered) = mpsc::channel();
        let (leave, leave_rx) = mpsc::channel::<()>();
        let reader = std::thread::spawn(move || {
            let first = Operation::enter();
            entered_tx.send(()).unwrap();
            leave_rx.recv().unwrap();
            drop(first);
            let _second = Operation::enter();
            entered_tx.send(()).unwrap();
            leave_rx.recv().unwrap();
        });
        entered.recv().unwrap();
        let ticket = ticket();
        let (done_tx, done) = mpsc::channel();
        let wiper = std::thread::spawn(move || {
            wait_past(ticket);
            done_tx.send(()).unwrap();
        });
        assert!(done.recv_timeout(std::time::Duration::from_millis(50)).is_err(), "waited for nobody");
        leave.send(()).unwrap();
        entered.recv().unwrap(); // inside again
        done.recv().unwrap();
        leave.send(()).unwrap();
        wiper.join().unwrap();
        reader.join().unwrap();
    }

    #[test]
    fn nested_operations_count_as_one() {
        let outer = Operation::enter();
        let inner = Operation::enter();
        drop(inner);
        assert_eq!(outer.seat.phase.load(Ordering::SeqCst) % 2, 1);
        drop(outer);
        CLAIM.with(|claim| assert_eq!(claim.0.phase.load(Ordering::SeqCst) % 2, 0));
    }
}
