//! Who is under a lease: whom a denial wipes, and whose records prove.

use super::{Leash, Member};
use crate::sync::MutexGuard;
use std::sync::{Arc, PoisonError, Weak};

/// Who is under a lease, in the order in which they came.
#[derive(Debug)]
pub(super) struct Members<M> {
    pub(super) all: Vec<Weak<M>>,
    /// So many of the first ones came before the newest proof was asked, …
    elders: usize,
    /// … and so many before the one that was asked last.
    asked: usize,
}

impl<M> Default for Members<M> {
    fn default() -> Self {
        Self { all: Vec::new(), elders: 0, asked: 0 }
    }
}

impl<M> Members<M> {
    fn forget_the_dead(&mut self) {
        let (mut place, mut elders, mut asked) = (0, 0, 0);
        self.all.retain(|member| {
            let lives = member.strong_count() > 0;
            elders += usize::from(lives && place < self.elders);
            asked += usize::from(lives && place < self.asked);
            place += 1;
            lives
        });
        (self.elders, self.asked) = (elders, asked);
    }
}

impl<M: Member> Leash<M> {
    /// Adds a slot to those that a denial wipes.
    pub(crate) fn enlist(&self, member: Weak<M>) {
        let mut members = self.members();
        // Forgets the dead when they may be half of all: amortised, one look at each per addition.
        if members.all.len() == members.all.capacity() {
            members.forget_the_dead();
            let living = members.all.len();
            members.all.reserve(living.max(8)); // room for as many again, or the next addition would look at all once more
        }
        members.all.push(member);
    }

    pub(super) fn members(&self) -> MutexGuard<'_, Members<M>> {
        // Nothing panics while it is held.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn living_members(&self) -> Vec<Arc<M>> {
        self.members().all.iter().filter_map(Weak::upgrade).collect()
    }

    /// A proof is about to be asked of the first token.
    pub(crate) fn proof_begins(&self) {
        let mut members = self.members();
        members.asked = members.all.len();
    }

    /// It came: those who were here before it may prove from now on.
    pub(crate) fn proof_came(&self) {
        let mut members = self.members();
        members.elders = members.asked;
    }

    /// A living member to prove with, `turn` members on: another one with each turn.
    pub(crate) fn member(&self, turn: usize) -> Option<Arc<M>> {
        self.members_from(turn, 1).pop()
    }

    /// As many as there are, up to `count`, each of them once.
    pub(crate) fn members_from(&self, turn: usize, count: usize) -> Vec<Arc<M>> {
        self.members_that(turn, count, |_| true)
    }

    /// As [`Leash::members_from`], of those that are `wanted`.
    pub(crate) fn members_that(&self, turn: usize, count: usize, wanted: impl Fn(&M) -> bool) -> Vec<Arc<M>> {
        let members = self.members();
        in_turn(&members.all, turn, count, wanted)
    }

    /// As [`Leash::members_that`], of those that were here before the newest proof was asked. Whoever came since may have been wrapped
    /// by another key that came in the KEK's place since, and would prove that.
    pub(crate) fn elders(&self, turn: usize, count: usize, wanted: impl Fn(&M) -> bool) -> Vec<Arc<M>> {
        let members = self.members();
        in_turn(members.all.get(..members.elders).unwrap_or_default(), turn, count, wanted)
    }
}

fn in_turn<M: Member>(members: &[Weak<M>], turn: usize, count: usize, wanted: impl Fn(&M) -> bool) -> Vec<Arc<M>> {
    let len = members.len();
    let is_one = |member: &Arc<M>| member.proves() && wanted(member);
    let at = |step| members.get(turn.wrapping_add(step) % len)?.upgrade().filter(is_one);
    (0..len).filter_map(at).take(count).collect()
}
