//! The workers of the scripted token: no threads, but who has one, who waits and who hangs is as with a real module's.

use super::{error, silent};
use crate::clock::{Clock, Instant};
use crate::token::line::{Lane, Line};
use crate::token::{TokenError, Verdict, Workers};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

pub(super) const HUNG_MAX: usize = 8;

fn all_hang(operation: &'static str) -> TokenError {
    error(Verdict::Fatal, operation, "every worker hangs")
}

fn like_it_hang(operation: &'static str) -> TokenError {
    error(Verdict::Unreachable, operation, "too many calls like it hang")
}

/// The workers of one process, and the line before them.
pub(super) struct Room {
    clock: Clock,
    workers: usize,
    state: Mutex<RoomState>,
}

struct RoomState {
    line: Line<Waiting>,
    /// Calls at workers that were not given up.
    inside: usize,
    hung: usize,
}

struct Waiting {
    operation: &'static str,
    turn: oneshot::Sender<Result<Worker, TokenError>>,
}

impl Waiting {
    fn refuse(self, refusal: fn(&'static str) -> TokenError) {
        // Nobody listens when the caller was dropped.
        drop(self.turn.send(Err(refusal(self.operation))));
    }
}

impl Room {
    pub(super) fn new(clock: &Clock, call_timeout: Duration, workers: usize) -> Arc<Self> {
        let state = RoomState { line: Line::new(call_timeout, HUNG_MAX), inside: 0, hung: 0 };
        Arc::new(Self { clock: clock.clone(), workers, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, RoomState> {
        // Nothing panics while it is held, and the value is whole after every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self, state: &RoomState) -> usize {
        self.workers.saturating_sub(state.hung.saturating_sub(HUNG_MAX))
    }

    pub(super) fn health(&self) -> Workers {
        let state = self.lock();
        Workers { alive: self.alive(&state), hung: state.hung, hung_max: HUNG_MAX }
    }

    /// Waits for a worker.
    pub(super) async fn enter(self: &Arc<Self>, lane: Lane, operation: &'static str) -> Result<Worker, TokenError> {
        let now = self.clock.now();
        let (turn, called) = oneshot::channel();
        let until = {
            let mut state = self.lock();
            if self.alive(&state) == 0 {
                return Err(all_hang(operation));
            }
            if !state.line.takes(lane) {
                return Err(like_it_hang(operation));
            }
            state.line.join(lane, now, Waiting { operation, turn });
            now.plus(state.line.patience(lane))
        };
        self.let_in();
        match self.clock.until(until, called).await {
            Some(turn) => turn.unwrap_or_else(|_| Err(all_hang(operation))),
            None => Err(error(Verdict::Busy, operation, "no worker was free for too long")),
        }
    }

    /// Lets in whose turn it is.
    fn let_in(self: &Arc<Self>) {
        loop {
            let (worker, turn) = {
                let mut state = self.lock();
                let alive = self.alive(&state);
                if state.inside >= alive {
                    return;
                }
                let Some((lane, waiting)) = state.line.enter(alive) else { return };
                // Whoever waits no more takes nobody's turn.
                if waiting.turn.is_closed() || !state.line.takes(lane) {
                    state.line.turn_back(lane);
                    drop(state);
                    waiting.refuse(like_it_hang);
                    continue;
                }
                let turn = waiting.turn;
                state.inside += 1;
                let entered = self.clock.now();
                (Worker { room: self.clone(), lane, entered, hung: false }, turn)
            };
            drop(turn.send(Ok(worker)));
        }
    }
}

/// A worker that has a call; free again when this is dropped.
pub(super) struct Worker {
    room: Arc<Room>,
    lane: Lane,
    entered: Instant,
    hung: bool,
}

impl Worker {
    pub(super) fn entered(&self) -> Instant {
        self.entered
    }

    /// It is given up, and another one takes its place while there may be one.
    pub(super) fn hangs(&mut self) {
        let (silenced, rest) = {
            let mut state = self.room.lock();
            self.hung = true;
            (state.hung, state.inside) = (state.hung + 1, state.inside - 1);
            let silenced = state.line.give_up(self.lane, self.entered);
            let rest = if self.room.alive(&state) == 0 { state.line.clear() } else { Vec::new() };
            (silenced, rest)
        };
        silenced.into_iter().for_each(|waiting| waiting.refuse(silent));
        rest.into_iter().for_each(|waiting| waiting.refuse(all_hang));
        self.room.let_in();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        {
            let mut state = self.room.lock();
            let now = self.room.clock.now();
            if self.hung {
                state.line.come_back(self.lane, now);
                state.hung -= 1;
            } else {
                state.line.leave(self.lane, now);
                state.inside -= 1;
            }
        }
        self.room.let_in();
    }
}
