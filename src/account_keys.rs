//! The slots of one account: one for each AEK version, and another one when a version's wrapping moves to another KEK version.

use crate::{name::AccountId, slot::AekSlot};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// An account's slots. They are only ever added, so that the data path walks without a lock; of several slots of one AEK
/// version the last counts. A slot that was overtaken costs its cell of locked memory until the last handle goes.
#[derive(Debug)]
pub(crate) struct AccountKeys {
    pub(crate) id: AccountId,
    first: Node,
    /// Held while a slot is added.
    growing: Mutex<()>,
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
        Some(Self { id, first: rest?, growing: Mutex::default() })
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
        self.slots().filter(|slot| slot.aek_version == aek_version).last()
    }

    /// Puts `heir` in the place of the slot of its AEK version, which is retired; unless that is under the same lease already.
    pub(crate) fn hand_over(&self, heir: Arc<AekSlot>) {
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(old) = self.version(heir.aek_version) else { return };
        if Arc::ptr_eq(&old.leash, &heir.leash) {
            return;
        }
        heir.inherit(old);
        let Some(last) = self.nodes().last() else { return };
        // Nobody else adds one meanwhile.
        let _ = last.next.set(Box::new(Node { slot: heir, next: OnceLock::new() }));
        old.retire();
    }
}
