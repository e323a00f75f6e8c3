//! A process's workers for one token, and the line in front of them, as the seam promises them: proofs and renewals overtake all
//! else, of several workers one is theirs alone, and a renewal waits for quiet.

use super::hsm::error;
use keyleash::{
    clock::{Clock, Instant, ManualClock},
    token::{TokenError, Verdict, Workers},
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{Notify, oneshot};

/// As the token room: so many calls may hang before no worker takes a lost one's place.
const HUNG_MAX: usize = 8;
/// All but proofs and renewals wait for their turn for so many call timeouts.
const PATIENCE: u32 = 8;

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Proof,
    Other,
}

struct State {
    inside: usize,
    hung: usize,
    /// A context is being renewed.
    closed: bool,
    waiting: [VecDeque<oneshot::Sender<()>>; 2],
    /// When somebody was last answered.
    answered: Instant,
}

pub(crate) struct Room {
    workers: usize,
    call_timeout: Duration,
    real: ManualClock,
    state: Mutex<State>,
    left: Notify,
}

/// A call in the module.
pub(crate) struct Inside {
    room: Arc<Room>,
    hangs: bool,
}

impl Room {
    pub(crate) fn new(workers: usize, call_timeout: Duration, real: ManualClock) -> Arc<Self> {
        let state = State { inside: 0, hung: 0, closed: false, waiting: Default::default(), answered: real.now() };
        Arc::new(Self { workers, call_timeout, real, state: Mutex::new(state), left: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn health(&self) -> Workers {
        let hung = self.state().hung;
        Workers { alive: self.alive(hung), hung, hung_max: HUNG_MAX }
    }

    fn alive(&self, hung: usize) -> usize {
        self.workers.saturating_sub(hung.saturating_sub(HUNG_MAX))
    }

    fn may_enter(&self, state: &State, lane: Lane) -> bool {
        let alive = self.alive(state.hung);
        let theirs = if lane == Lane::Other && alive > 1 { alive - 1 } else { alive };
        !state.closed && state.inside < theirs
    }

    /// Lets in whoever is next, for as long as anybody may.
    fn admit(&self, state: &mut State) {
        for lane in [Lane::Proof, Lane::Other] {
            while self.may_enter(state, lane) {
                let Some(next) = state.waiting[lane as usize].pop_front() else { break };
                // Else nobody waits there any more.
                state.inside += usize::from(next.send(()).is_ok());
            }
        }
    }

    /// Waits for a worker.
    pub(crate) async fn enter(self: &Arc<Self>, lane: Lane, operation: &'static str) -> Result<Inside, TokenError> {
        let came = self.real.now();
        let turn = {
            let mut state = self.state();
            if self.alive(state.hung) == 0 {
                return Err(error(Verdict::Fatal, operation, "every worker hangs"));
            }
            let (next, turn) = oneshot::channel();
            state.waiting[lane as usize].push_back(next);
            self.admit(&mut state);
            turn
        };
        let patience = if lane == Lane::Proof { self.call_timeout } else { self.call_timeout * PATIENCE };
        let real = Clock::Manual(self.real.clone());
        match real.until(came.plus(patience), turn).await {
            Some(Ok(())) => Ok(Inside { room: self.clone(), hangs: false }),
            // While others were answered, that says nothing of the token.
            _ if self.state().answered > came => Err(error(Verdict::Busy, operation, "its turn did not come")),
            _ => Err(error(Verdict::Unreachable, operation, "nobody is answered")),
        }
    }

    /// Waits until nobody is inside, and keeps all out until the answer is dropped; one after the other. `None` when that takes too long,
    /// or a call hangs.
    pub(crate) async fn quiet(self: &Arc<Self>) -> Option<Quiet> {
        let real = Clock::Manual(self.real.clone());
        let closing = async {
            loop {
                let left = self.left.notified();
                {
                    let mut state = self.state();
                    if state.hung > 0 {
                        return None;
                    }
                    if !std::mem::replace(&mut state.closed, true) {
                        return Some(Quiet(self.clone()));
                    }
                }
                left.await;
            }
        };
        let closed = real.until(self.real.now().plus(self.call_timeout), closing).await??;
        let end = self.real.now().plus(self.call_timeout / 4);
        let quiet = async {
            loop {
                let left = self.left.notified();
                if self.state().inside == 0 {
                    return;
                }
                left.await;
            }
        };
        real.until(end, quiet).await?;
        let hung = self.state().hung; // not beside what is dropped, which looks at it too
        (hung == 0).then_some(closed)
    }
}

/// Nobody is inside.
pub(crate) struct Quiet(Arc<Room>);

impl Drop for Quiet {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.closed = false;
        self.0.admit(&mut state);
        drop(state);
        self.0.left.notify_waiters();
    }
}

impl Inside {
    pub(crate) fn answered(&self) {
        self.room.state().answered = self.room.real.now();
    }

    /// Its worker is given up until the call returns, and another one takes its place while there may be more of them.
    pub(crate) fn hangs(&mut self) {
        self.hangs = true;
        let mut state = self.room.state();
        (state.inside, state.hung) = (state.inside - 1, state.hung + 1);
        self.room.admit(&mut state);
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut state = self.room.state();
        if self.hangs {
            state.hung -= 1;
        } else {
            state.inside -= 1;
        }
        self.room.admit(&mut state);
        drop(state);
        self.room.left.notify_waiters();
    }
}
