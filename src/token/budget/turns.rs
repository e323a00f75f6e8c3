//! A semaphore whose permits go to groups in turn, and within a group to whoever came first: a crowd of one group delays those of
//! another by a turn, and not by its length.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;

#[derive(Debug)]
pub(super) struct Turns<G: Ord + Clone>(Arc<Mutex<State<G>>>);

#[derive(Debug)]
struct State<G: Ord + Clone> {
    /// None while anybody waits.
    free: usize,
    waiting: BTreeMap<G, VecDeque<oneshot::Sender<Permit<G>>>>,
    /// Whose turn it was last.
    last: Option<G>,
}

/// Given to the next when it is dropped.
#[derive(Debug)]
pub(super) struct Permit<G: Ord + Clone>(Option<Arc<Mutex<State<G>>>>);

fn lock<G: Ord + Clone>(state: &Mutex<State<G>>) -> MutexGuard<'_, State<G>> {
    // Nothing panics while it is held, and the value is whole after every step.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<G: Ord + Clone> State<G> {
    fn next(&mut self) -> Option<oneshot::Sender<Permit<G>>> {
        let after = self.last.take().map_or(Bound::Unbounded, Bound::Excluded);
        let mut later = self.waiting.range((after, Bound::Unbounded));
        let group = later.next().or_else(|| self.waiting.first_key_value()).map(|(group, _)| group.clone())?;
        let queue = self.waiting.get_mut(&group)?;
        let first = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&group);
        }
        self.last = Some(group);
        first
    }
}

impl<G: Ord + Clone> Turns<G> {
    pub(super) fn new(permits: usize) -> Self {
        Self(Arc::new(Mutex::new(State { free: permits, waiting: BTreeMap::new(), last: None })))
    }

    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        lock(&self.0).free
    }

    pub(super) async fn take(&self, group: G) -> Permit<G> {
        let turn = {
            let mut state = lock(&self.0);
            if state.free > 0 {
                state.free -= 1;
                return Permit(Some(self.0.clone()));
            }
            let (sender, turn) = oneshot::channel();
            state.waiting.entry(group).or_default().push_back(sender);
            turn
        };
        // A sender is dropped with this alone; if it were before, there would be no limit rather than no service.
        turn.await.unwrap_or(Permit(None))
    }
}

impl<G: Ord + Clone> Drop for Permit<G> {
    fn drop(&mut self) {
        let Some(state) = self.0.take() else { return };
        loop {
            let next = {
                let mut locked = lock(&state);
                let next = locked.next();
                if next.is_none() {
                    locked.free += 1;
                }
                next
            };
            let Some(next) = next else { return };
            match next.send(Permit(Some(state.clone()))) {
                Ok(()) => return,
                // Whoever it was waits no more.
                Err(mut permit) => drop(permit.0.take()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_crowd_of_one_group_delays_another_by_a_turn() {
        let turns = Arc::new(Turns::new(1));
        let held = turns.take("crowd").await;
        let order = Arc::new(Mutex::new(Vec::new()));
        for group in ["crowd", "crowd", "crowd", "late", "later", "late"] {
            let (turns, order) = (turns.clone(), order.clone());
            tokio::spawn(async move {
                let _permit = turns.take(group).await;
                order.lock().unwrap().push(group);
            });
        }
        settle().await;
        drop(held);
        settle().await;
        assert_eq!(*order.lock().unwrap(), ["crowd", "late", "later", "crowd", "late", "crowd"]);
        assert_eq!(turns.free(), 1);
    }

    #[tokio::test]
    async fn whoever_waits_no_more_takes_no_turn_and_no_permit_is_lost() {
        let turns = Arc::new(Turns::new(1));
        let held = turns.take(0).await;
        for group in 0..4 {
            assert!(tokio::time::timeout(Duration::from_millis(1), turns.take(group)).await.is_err());
        }
        let waiting = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take(2).await }
        });
        settle().await;
        drop(held);
        drop(waiting.await.unwrap());
        assert_eq!(turns.free(), 1);
    }
}
