//! The workers: OS threads that call the module, so that no tokio thread ever does.
//!
//! A call waits in line ([`Line`]: proofs first), runs on one worker and is answered through a oneshot. What it may take counts from
//! when a worker has it, so that nothing hangs for the line's sake; what waits too long for one fails as busy. One more thread, the
//! watch, never calls the module: it answers each call that is past its deadline, counts the worker in it as hung, abandons it and
//! puts a new one in its place while the budget lasts. So deadlines do not depend on the caller: its future may be dropped at any
//! time, and the call is not made where it has not begun by then. When a hung call comes back, its answer is dropped (a secret in it is wiped by its own drop), the budget is given
//! back, and the worker ends, unless its place was never filled.

use super::fault;
use super::module::{Module, lock, wait_until};
use super::threads::THREADS;
use crate::clock::{Clock, Instant};
use crate::token::line::{Lane, Line};
use crate::token::{TokenError, Workers};
use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Calls that may stand in line, proofs not counted; more wait before it, as long as they would have in it.
const QUEUED_MAX: usize = 256;
/// The watch looks again after this long when no deadline is near.
const WATCH_IDLE: Duration = Duration::from_secs(3600);

/// What a worker owns and a call works with; it lives and dies on the worker's thread.
pub(super) trait Seat: Send + 'static {
    /// Gives back what the module holds for this worker, where that is safe.
    fn leave(&mut self);
}

type MakeSeat<S> = dyn Fn() -> S + Send + Sync;
/// Until this instant.
type Run<S> = Box<dyn FnOnce(&mut S, Instant) + Send>;

/// Answers the caller with an error, unless it was answered.
trait Refuse: Send + Sync {
    fn refuse(&self, error: TokenError);
    /// False when the caller is gone.
    fn is_awaited(&self) -> bool;
}

struct Reply<T> {
    sender: Mutex<Option<oneshot::Sender<Result<T, TokenError>>>>,
}

impl<T> Reply<T> {
    fn send(&self, result: Result<T, TokenError>) {
        if let Some(sender) = lock(&self.sender).take() {
            // Nobody listens when the caller was dropped; the answer is dropped, and wiped, here.
            drop(sender.send(result));
        }
    }
}

impl<T: Send> Refuse for Reply<T> {
    fn refuse(&self, error: TokenError) {
        self.send(Err(error));
    }

    fn is_awaited(&self) -> bool {
        lock(&self.sender).as_ref().is_some_and(|sender| !sender.is_closed())
    }
}

struct Job<S> {
    operation: &'static str,
    /// In the module.
    timeout: Duration,
    run: Run<S>,
    reply: Arc<dyn Refuse>,
    _place: Option<OwnedSemaphorePermit>,
}

struct Running {
    operation: &'static str,
    lane: Lane,
    entered: Instant,
    deadline: Instant,
    reply: Arc<dyn Refuse>,
    hung: bool,
}

struct State<S> {
    line: Line<Job<S>>,
    running: HashMap<u64, Running>,
    next: u64,
    alive: usize,
    /// Workers that wait for a job. To wake one costs more than some tokens' answers, so nobody is woken who is not needed.
    idle: usize,
    hung: usize,
    /// When the watch looks next by itself; it has not begun while this is zero.
    watched_at: Instant,
    closed: bool,
}

struct Shared<S> {
    state: Mutex<State<S>>,
    /// For workers: a job came, or the end.
    work: Condvar,
    /// For the watch: a deadline that is nearer than its next look, or the end.
    look: Condvar,
    places: Arc<Semaphore>,
    wanted: usize,
    hung_max: usize,
    clock: Clock,
    module: Arc<Module>,
    make_seat: Box<MakeSeat<S>>,
}

/// The workers of one token. Dropping it ends them as they come back.
pub(super) struct Pool<S: Seat> {
    shared: Arc<Shared<S>>,
}

impl<S: Seat> Pool<S> {
    /// Starts `wanted` workers and the watch.
    pub(super) fn start(
        wanted: usize,
        hung_max: usize,
        call_timeout: Duration,
        module: Arc<Module>,
        make_seat: Box<MakeSeat<S>>,
    ) -> Result<Self, TokenError> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                line: Line::new(call_timeout, hung_max),
                running: HashMap::new(),
                next: 0,
                alive: 0,
                idle: 0,
                hung: 0,
                watched_at: Instant::default(),
                closed: false,
            }),
            work: Condvar::new(),
            look: Condvar::new(),
            places: Arc::new(Semaphore::new(QUEUED_MAX)),
            wanted,
            hung_max,
            clock: Clock::Boottime,
            module,
            make_seat,
        });
        let pool = Self { shared };
        let watched = pool.shared.clone();
        let watch = std::thread::Builder::new().name("keyleash-watch".into()).spawn(move || watch(&watched));
        watch.map_err(|error| fault::fatal("start workers", format!("no thread: {error}")))?;
        fill_places(&pool.shared, &mut lock(&pool.shared.state));
        Ok(pool)
    }

    /// Calls that a worker has taken to the module and not brought back.
    pub(super) fn in_flight(&self) -> usize {
        lock(&self.shared.state).running.len()
    }

    /// The workers' health.
    pub(super) fn health(&self) -> Workers {
        let state = lock(&self.shared.state);
        Workers { alive: state.alive, hung: state.hung, hung_max: self.shared.hung_max }
    }

    /// Runs `call` on a worker, which has `timeout` for it. Resolves by then, and by what the line's patience adds to it, whatever
    /// the module does.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        lane: Lane,
        timeout: Duration,
        call: impl FnOnce(&mut S, Instant) -> Result<T, TokenError> + Send + 'static,
    ) -> Result<T, TokenError> {
        let shared = &self.shared;
        shared.module.check_pid(operation)?;
        let came = shared.clock.now();
        let place = match lane {
            // There are no more of them than KEK versions.
            Lane::Proof => None,
            Lane::Unwrap | Lane::Other => {
                let patience = lock(&shared.state).line.patience(lane);
                match shared.clock.until(came.plus(patience), shared.places.clone().acquire_owned()).await {
                    Some(Ok(place)) => Some(place),
                    _ => return Err(fault::busy(operation)),
                }
            }
        };
        let (sender, answer) = oneshot::channel();
        let reply = Arc::new(Reply { sender: Mutex::new(Some(sender)) });
        let run: Run<S> = Box::new({
            let reply = reply.clone();
            move |seat, deadline| reply.send(call(seat, deadline))
        });
        let (wakes_worker, wakes_watch) = {
            let mut state = lock(&shared.state);
            fill_places(shared, &mut state);
            if state.alive == 0 {
                return Err(all_hang(operation, state.hung));
            }
            if !state.line.takes(lane) {
                return Err(fault::like_it_hang(operation));
            }
            state.line.join(lane, came, Job { operation, timeout, run, reply, _place: place });
            // A worker that is not idle looks into the line before it waits, and whoever enters sees that the watch looks in time.
            let wakes_worker = state.needs_another();
            (wakes_worker, !wakes_worker && state.is_watched_too_late(came.plus(timeout), &shared.clock))
        };
        if wakes_worker {
            shared.work.notify_one();
        }
        if wakes_watch {
            shared.look.notify_one();
        }
        // A worker that panicked drops the sender.
        answer.await.unwrap_or_else(|_| Err(fault::unreachable(operation, "the worker failed; see the log")))
    }
}

impl<S> State<S> {
    /// True when a worker idles whom somebody waits for.
    fn needs_another(&self) -> bool {
        self.idle > 0 && self.line.has_turn(self.alive)
    }

    /// True when the watch must be woken, because of a call that ends then or earlier, or of one that waits. One that should have
    /// looked by now may have slept through a suspend, which its condition variable does not count.
    fn is_watched_too_late(&self, deadline: Instant, clock: &Clock) -> bool {
        let next = self.line.next_overdue().map_or(deadline, |overdue| overdue.min(deadline));
        next < self.watched_at || self.watched_at <= clock.now()
    }

    fn refuse_overdue(&mut self, now: Instant) {
        for job in self.line.overdue(now) {
            job.reply.refuse(fault::busy(job.operation));
        }
    }
}

impl<S: Seat> Drop for Pool<S> {
    fn drop(&mut self) {
        lock(&self.shared.state).closed = true;
        self.shared.work.notify_all();
        self.shared.look.notify_all();
    }
}

fn all_hang(operation: &'static str, hung: usize) -> TokenError {
    fault::fatal(operation, format!("every worker hangs in the module ({hung} calls)"))
}

/// Starts workers for the places that are empty, while the budget lasts.
fn fill_places<S: Seat>(shared: &Arc<Shared<S>>, state: &mut State<S>) {
    while !state.closed && state.alive + state.hung.saturating_sub(shared.hung_max) < shared.wanted {
        let of = shared.clone();
        match THREADS.spawn("keyleash-token", move || work(&of)) {
            Ok(()) => state.alive += 1,
            Err(error) => {
                tracing::error!(%error, "no thread for a token worker");
                return;
            }
        }
    }
}

fn work<S: Seat>(shared: &Arc<Shared<S>>) {
    let mut seat = (shared.make_seat)();
    let mut state = lock(&shared.state);
    loop {
        let now = shared.clock.now();
        state.refuse_overdue(now);
        let alive = state.alive;
        let Some((lane, job)) = state.line.enter(alive) else {
            // Whoever waits at its end has a worker that comes back.
            if state.closed {
                break;
            }
            state.idle += 1;
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            continue;
        };
        let Job { operation, timeout, run, reply, _place: place } = job;
        drop(place);
        // Whoever waits no more takes nobody's turn.
        if !reply.is_awaited() || !state.line.takes(lane) {
            state.line.turn_back(lane);
            reply.refuse(fault::like_it_hang(operation));
            continue;
        }
        let (number, deadline) = (state.next, now.plus(timeout));
        state.next += 1;
        state.running.insert(number, Running { operation, lane, entered: now, deadline, reply, hung: false });
        if state.needs_another() {
            shared.work.notify_one();
        }
        if state.is_watched_too_late(deadline, &shared.clock) {
            shared.look.notify_one();
        }
        drop(state);

        let ended = catch_unwind(AssertUnwindSafe(|| run(&mut seat, deadline)));
        if ended.is_err() {
            tracing::error!(operation, "a token worker panicked: its session is given up");
            // Whatever state it was in, it is not used again.
            std::mem::forget(std::mem::replace(&mut seat, (shared.make_seat)()));
        }

        state = lock(&shared.state);
        let hung = state.running.remove(&number).is_some_and(|running| running.hung);
        if !hung {
            state.line.leave(lane, shared.clock.now());
        } else {
            state.line.come_back(lane, shared.clock.now());
            state.hung -= 1;
            shared.module.note_hung(false);
            tracing::info!(operation, hung = state.hung, "a call that hung came back");
            if state.alive >= shared.wanted {
                drop(state);
                seat.leave();
                return;
            }
            state.alive += 1;
        }
    }
    state.alive -= 1;
    drop(state);
    seat.leave();
}

fn watch<S: Seat>(shared: &Arc<Shared<S>>) {
    let mut state = lock(&shared.state);
    loop {
        if state.closed && state.line.is_empty() && state.running.is_empty() {
            return;
        }
        let now = shared.clock.now();
        abandon_overdue(shared, &mut state, now);
        state.refuse_overdue(now);
        let running = state.running.values().filter(|running| !running.hung).map(|running| running.deadline);
        let next = running.chain(state.line.next_overdue()).min();
        let next = next.unwrap_or_else(|| now.plus(WATCH_IDLE));
        state.watched_at = next;
        (state, _) = wait_until(&shared.look, state, &shared.clock, next);
    }
}

fn abandon_overdue<S: Seat>(shared: &Arc<Shared<S>>, state: &mut State<S>, now: Instant) {
    const SILENT: &str = "the token did not answer until the deadline";
    let State { running, line, .. } = state;
    let (mut abandoned, mut silenced) = (0, Vec::new());
    for running in running.values_mut().filter(|running| !running.hung && running.deadline <= now) {
        running.hung = true;
        abandoned += 1;
        running.reply.refuse(fault::unreachable(running.operation, SILENT));
        silenced.extend(line.give_up(running.lane, running.entered));
        tracing::warn!(operation = running.operation, "a token call hangs: its worker is abandoned");
    }
    if abandoned == 0 {
        return;
    }
    for job in silenced {
        job.reply.refuse(fault::unreachable(job.operation, SILENT));
    }
    state.hung += abandoned;
    state.alive -= abandoned.min(state.alive);
    (0..abandoned).for_each(|_| shared.module.note_hung(true));
    fill_places(shared, state);
    // Who idled beside it may be the last one now, for all that waits.
    shared.work.notify_all();
    if state.alive == 0 {
        tracing::error!(hung = state.hung, "every token worker hangs: the process must be restarted");
        for job in state.line.clear() {
            job.reply.refuse(all_hang(job.operation, state.hung));
        }
    }
}
