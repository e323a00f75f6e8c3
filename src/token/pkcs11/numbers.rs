//! The numbers of the workers' sessions: which of them were given to somebody else meanwhile.
//!
//! A module gives no number to two sessions that are open. So when it gives a worker one that another worker still
//! takes for its own, then that one's session is gone: somebody else in the process ended the context and began another, without our
//! noticing. Used or closed by its number, it would be the new session that suffers, under whatever call is on it.

use super::module::lock;
use cryptoki_sys::CK_SESSION_HANDLE;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

/// Those of one module.
#[derive(Default)]
pub(super) struct Numbers(Mutex<HashMap<CK_SESSION_HANDLE, Arc<AtomicBool>>>);

/// One session's, until it is dropped.
pub(super) struct Number {
    numbers: Arc<Numbers>,
    number: CK_SESSION_HANDLE,
    given_away: Arc<AtomicBool>,
}

impl Numbers {
    /// Notes that the module gave `number` to a new session. True when another had it.
    pub(super) fn take(self: &Arc<Self>, number: CK_SESSION_HANDLE) -> (Number, bool) {
        let given_away = Arc::new(AtomicBool::new(false));
        let mut numbers = lock(&self.0);
        let before = numbers.insert(number, given_away.clone());
        // With the lock held: whoever drops its number looks at this and removes the entry in one go.
        before.iter().for_each(|before| before.store(true, Ordering::SeqCst));
        drop(numbers);
        (Number { numbers: self.clone(), number, given_away }, before.is_some())
    }
}

impl Number {
    /// False once the module gave it to another session.
    pub(super) fn is_ours(&self) -> bool {
        !self.given_away.load(Ordering::SeqCst)
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        let mut numbers = lock(&self.numbers.0);
        if self.is_ours() {
            numbers.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_the_last_one_s_it_was_given_to() {
        let numbers = Arc::new(Numbers::default());
        let ((first, one), (other, two)) = (numbers.take(1), numbers.take(2));
        assert!(!one && !two && first.is_ours() && other.is_ours());
        let (again, displaced) = numbers.take(1);
        assert!(displaced && again.is_ours() && !first.is_ours() && other.is_ours());
        drop(first);
        let (last, displaced) = numbers.take(1);
        assert!(displaced && !again.is_ours(), "what was dropped had no part in it any more");
        drop((again, last));
        assert!(!numbers.take(1).1, "given back");
    }
}
