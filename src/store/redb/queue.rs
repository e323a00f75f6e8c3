//! Writes that wait for their turn, and the one thread that does them together.

use super::{
    Shared,
    write::{self, Job},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Most writes that share a transaction: bounds its memory, and how long the first of them waits.
const WRITES_PER_COMMIT_MAX: usize = 1000;

/// Writes that are to be done. Apart from the database, which is closed when the last store is dropped, and not a moment later.
#[derive(Default)]
pub(super) struct Queue(Mutex<Waiting>);

#[derive(Default)]
pub(super) struct Waiting {
    pub(super) jobs: Vec<Job>,
    /// A thread is there that does them.
    pub(super) has_writer: bool,
}

impl Queue {
    pub(super) fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is queued; where nothing is, there is no writer from then on.
    fn take(&self) -> Option<Vec<Job>> {
        let mut waiting = self.waiting();
        waiting.has_writer = !waiting.jobs.is_empty();
        waiting.has_writer.then(|| std::mem::take(&mut waiting.jobs))
    }
}

/// The one that does the writes of a store, while there are any.
pub(super) struct Writer {
    pub(super) queue: Arc<Queue>,
    pub(super) shared: Weak<Shared>,
    pub(super) is_done: bool,
}

impl Writer {
    pub(super) fn write(mut self) {
        while let Some(mut jobs) = self.queue.take() {
            // Nobody waits for it any more: done now, it would come after whatever its caller did instead.
            jobs.retain(|job| !job.reply.is_closed());
            while !jobs.is_empty() {
                let later = jobs.split_off(jobs.len().min(WRITES_PER_COMMIT_MAX));
                self.write_together(jobs);
                jobs = later;
            }
        }
        self.is_done = true;
    }

    fn write_together(&self, jobs: Vec<Job>) {
        let (writes, replies): (Vec<_>, Vec<_>) = jobs.into_iter().map(|job| (job.write, job.reply)).unzip();
        // Whoever waits has the store.
        let Some(shared) = self.shared.upgrade() else { return };
        let outcomes = match shared.with_database(|database| write::commit(database, &writes)) {
            Ok(outcomes) => outcomes,
            Err(error) => writes.iter().map(|_| Err(error.clone())).collect(),
        };
        drop(shared); // before anybody hears of it who drops the store then
        for (reply, outcome) in replies.into_iter().zip(outcomes) {
            // Whoever asked may have stopped waiting.
            let _ = reply.send(outcome);
        }
    }
}

impl Drop for Writer {
    /// It panicked, or there was no thread for it: what is queued is given up, and the next write finds another.
    fn drop(&mut self) {
        if !self.is_done {
            *self.queue.waiting() = Waiting::default();
        }
    }
}
