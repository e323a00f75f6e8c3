//! The slots of one account: one for each AEK version, also for those that come later, and another one when a version's
//! wrapping moves to another KEK version.

use crate::{name::AccountId, slot::AekSlot};
use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// An account's slots. They are only ever added, so that the data path walks without a lock; of several slots of one AEK
/// version the last counts. A slot that was overtaken costs its cell of locked memory until the last handle goes.
#[derive(Debug)]
pub(crate) struct AccountKeys {
    pub(crate) id: AccountId,
    first: Node,
    /// Held while a slot is added.
    growing: Mutex<()>,
    /// Counts how often the account was deleted under its handles.
    shuts: AtomicU64,
}

/// Sees to it that what was read before an account was deleted fills no slot after it: whoever is later, the deletion or
/// the end of this guard, wipes. Made before the record is read.
#[derive(Debug)]
pub(crate) struct ShutGuard {
    keys: Option<Arc<AccountKeys>>,
    seen: u64,
}

impl ShutGuard {
    pub(crate) fn new(keys: Option<Arc<AccountKeys>>) -> Self {
        let seen = keys.as_ref().map_or(0, |keys| keys.shuts.load(Ordering::SeqCst));
        Self { keys, seen }
    }

    /// The account's keys as it was made.
    pub(crate) fn keys(&self) -> Option<&AccountKeys> {
        self.keys.as_deref()
    }
}

impl Drop for ShutGuard {
    fn drop(&mut self) {
        if let Some(keys) = &self.keys
            && keys.shuts.load(Ordering::SeqCst) != self.seen
        {
            keys.slots().for_each(|slot| slot.shut());
        }
    }
}

#[derive(Debug)]
struct Node {
    slot: Arc<AekSlot>,
    next: OnceLock<Box<Node>>,
}

impl AccountKeys {
    /// `None` without a slot: an account has at least one AEK version.
    pub(crate) fn new(id: AccountId, slots: Vec<Arc<AekSlot>>) -> Option<Self> {
        let mut rest = None;
        for slot in slots.into_iter().rev() {
            let next = rest.take().map_or_else(OnceLock::new, |next| OnceLock::from(Box::new(next)));
            rest = Some(Node { slot, next });
        }
        Some(Self { id, first: rest?, growing: Mutex::default(), shuts: AtomicU64::new(0) })
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        std::iter::successors(Some(&self.first), |node| node.next.get().map(|next| &**next))
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = &Arc<AekSlot>> {
        self.nodes().map(|node| &node.slot)
    }

    /// The slot of the current AEK version, under which new blocks are sealed.
    #[inline]
    pub(crate) fn current(&self) -> &Arc<AekSlot> {
        self.slots()
            .fold(&self.first.slot, |newest, slot| if slot.aek_version >= newest.aek_version { slot } else { newest })
    }

    /// The slot of an AEK version that a block names.
    #[inline]
    pub(crate) fn version(&self, aek_version: u32) -> Option<&Arc<AekSlot>> {
        self.slots().filter(|slot| slot.aek_version == aek_version && !slot.is_retired()).last()
    }

    /// Adds the slot of an AEK version that was not here before; the newest is the current one from then on.
    pub(crate) fn add(&self, slot: Arc<AekSlot>) {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.version(slot.aek_version).is_none() {
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
        if let Some(last) = self.nodes().last() {
            let _ = last.next.set(Box::new(Node { slot, next: OnceLock::new() }));
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
