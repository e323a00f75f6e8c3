//! The bound on the keys in memory: for one more, one is wiped that was not used lately, whoever holds a handle of its account.

use crate::{leash::key_memory::KeyMemory, slots::slot::AekSlot};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering},
};

/// So many keys are looked at for one that was not used lately; then the next one goes all the same.
const LOOKS_MAX: usize = 64;
/// Room that an empty queue is given.
const QUEUE_MIN: usize = 8;

/// Room for so many keys.
#[derive(Debug)]
pub(super) struct Room {
    keys_max: usize,
    /// Every filled slot, and some that were, in the order in which they are looked at to make room. One that was used since it
    /// was last looked at goes to the end (the second chance of CLOCK), so that no use costs more than a flag.
    queue: Mutex<VecDeque<Weak<AekSlot>>>,
}

impl Room {
    pub(super) fn new(keys_max: u64) -> Self {
        Self { keys_max: usize::try_from(keys_max).unwrap_or(usize::MAX), queue: Mutex::default() }
    }

    /// Lets `fill` fill `slot`, with room for it. Nothing fills a slot but in here.
    pub(super) fn admit<T>(&self, slot: &Arc<AekSlot>, memory: &KeyMemory, fill: impl FnOnce() -> T) -> T {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !slot.is_filled() {
            self.make_room(&mut queue, memory);
        }
        let outcome = fill();
        if slot.is_filled() && !slot.queued.swap(true, Ordering::Relaxed) {
            if queue.len() == queue.capacity() {
                // As `Leash::enlist`: forgets what is gone when that may be half of all.
                queue.retain(|slot| slot.upgrade().is_some_and(|slot| slot.is_filled() || !leaves(&slot)));
                let filled = queue.len();
                queue.reserve(filled.max(QUEUE_MIN));
            }
            queue.push_back(Arc::downgrade(slot));
        }
        outcome
    }

    fn make_room(&self, queue: &mut VecDeque<Weak<AekSlot>>, memory: &KeyMemory) {
        while memory.filled() >= self.keys_max {
            let Some(slot) = unused(queue).or_else(|| queue.pop_front()?.upgrade()) else {
                if queue.is_empty() {
                    return;
                }
                continue;
            };
            slot.queued.store(false, Ordering::Relaxed);
            slot.wipe();
        }
    }
}

/// The first that gives its room to others.
fn unused(queue: &mut VecDeque<Weak<AekSlot>>) -> Option<Arc<AekSlot>> {
    for _ in 0..LOOKS_MAX {
        let next = queue.pop_front()?;
        let Some(slot) = next.upgrade() else { continue };
        if !slot.is_filled() || !slot.keeps_its_room() {
            return Some(slot);
        }
        queue.push_back(next);
    }
    None
}

/// It is in the queue no more: always true.
fn leaves(slot: &AekSlot) -> bool {
    slot.queued.store(false, Ordering::Relaxed);
    true
}
