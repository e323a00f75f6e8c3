//! What stands between callers, the thread that writes, and the one that signs: one short lock.

use super::disk::{Thinned, Trouble};
use crate::{
    audit::tree::Frontier,
    clock::{Clock, Instant},
    error::{Error, Result},
    telemetry::trail::{Outcome, Record},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{Notify, oneshot};

/// Most records that wait to be written. One has some hundred bytes.
pub const QUEUE_RECORDS_MAX: usize = 16 * 1024;
/// A disk that has not answered for so long does not answer: who waits for it is refused, and the trail is broken.
pub const STALL_MAX: Duration = Duration::from_secs(10);
/// Records that nobody waits for are written together, so long after the first of them.
const GROUP_EVERY: Duration = Duration::from_millis(200);
/// So many are written at once.
const GROUP_RECORDS: usize = 1024;
/// While there is nothing to write the files are looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A record that waits to be written.
#[derive(Debug)]
pub(super) struct Entry {
    /// `None` for one who waits for all that was there before.
    pub(super) record: Option<Record>,
    pub(super) waiter: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    entries: VecDeque<Entry>,
    /// Records that the writing thread holds, because they could not be written.
    held: usize,
    /// Somebody waits.
    urgent: bool,
    /// Nothing is taken any more; how long the end may take.
    closing: Option<Duration>,
    /// Records that were lost, and not told of yet.
    dropped: u64,
    /// Since when something is not durable.
    waiting_since: Option<Instant>,
    /// Who waits.
    waiters: BTreeMap<u64, oneshot::Sender<Result<()>>>,
    waiters_so_far: u64,
    /// Why it cannot be written.
    broken: Option<Trouble>,
    /// Why it must not be written any more: another process writes under the same name.
    doubled: Option<Trouble>,
    /// What is to be signed.
    pub(super) unsigned: Option<Frontier>,
    /// What was signed, and is to be written; or that it could not be.
    pub(super) signed: Option<Result<Signed>>,
    /// What is to take the place of the checkpoints.
    pub(super) thinned: Option<Thinned>,
    /// What is to be stored.
    pub(super) unstored: Option<Signed>,
    /// The signing thread is at work.
    pub(super) signing: bool,
    /// How many lines are durable.
    pub(super) size: u64,
    /// Of how many the newest checkpoint tells that is written, and when it was signed.
    pub(super) checkpoint: Option<(u64, u64)>,
    /// Of how many the newest tells that is stored.
    pub(super) stored: u64,
    ended: bool,
}

/// A signed checkpoint.
#[derive(Debug, Clone)]
pub(super) struct Signed {
    pub(super) size: u64,
    pub(super) unix: u64,
    pub(super) note: String,
}

/// What the writing thread is woken for.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) entries: VecDeque<Entry>,
    pub(super) signed: Option<Result<Signed>>,
    /// Lost before the entries.
    pub(super) dropped: u64,
    pub(super) closing: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Shared {
    inner: Mutex<Inner>,
    wake: Condvar,
    /// Wakes the signing thread.
    pub(super) notary: Notify,
    pub(super) clock: Clock,
    /// What errors begin with: which trail.
    pub(super) name: String,
}

impl Shared {
    pub(super) fn new(clock: Clock, name: String) -> Self {
        Self { inner: Mutex::default(), wake: Condvar::new(), notary: Notify::new(), clock, name }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn error(&self, why: &str) -> Error {
        Error::Trail(format!("{}: {why}", self.name))
    }

    /// Takes a record that nobody waits for.
    pub(super) fn note(&self, record: Record) {
        let mut inner = self.lock();
        if inner.is_full() || inner.closing.is_some() {
            inner.dropped = inner.dropped.saturating_add(1);
            return;
        }
        let was_empty = inner.entries.is_empty();
        self.push(&mut inner, Entry { record: Some(record), waiter: None });
        if was_empty || inner.entries.len() >= GROUP_RECORDS {
            self.wake.notify_all();
        }
    }

    /// Takes one that is waited for, or none, for all that was taken before.
    pub(super) fn write(&self, record: Option<Record>) -> Result<oneshot::Receiver<Result<()>>> {
        let mut inner = self.lock();
        let why = match (&inner.doubled, inner.closing, inner.is_full()) {
            (Some(why), ..) => Some(why.clone()),
            (None, Some(_), _) => Some("it was closed".to_owned()),
            (None, None, true) => Some(inner.full()),
            _ => None,
        };
        if let Some(why) = why {
            // What was only asked for is not done, so that nothing is missed of it.
            if record.is_some_and(|record| record.outcome != Outcome::Asked) {
                inner.dropped = inner.dropped.saturating_add(1);
            }
            return Err(self.error(&why));
        }
        let (waiter, receiver) = inner.waiter();
        inner.urgent = true;
        self.push(&mut inner, Entry { record, waiter: Some(waiter) });
        self.wake.notify_all();
        Ok(receiver)
    }

    fn push(&self, inner: &mut Inner, entry: Entry) {
        inner.entries.push_back(entry);
        if inner.waiting_since.is_none() {
            inner.waiting_since = Some(self.clock.now());
        }
    }

    /// Begins the end, for which the receiver waits. `None` where somebody began it before, and it has come.
    pub(super) fn close(&self, patience: Duration) -> Option<oneshot::Receiver<Result<()>>> {
        let mut inner = self.lock();
        if inner.ended {
            return None;
        }
        let (_, receiver) = inner.waiter();
        inner.closing.get_or_insert(patience);
        inner.urgent = true;
        if inner.waiting_since.is_none() {
            inner.waiting_since = Some(self.clock.now());
        }
        self.wake.notify_all();
        Some(receiver)
    }

    /// Waits for something to do; at most for [`LOOK_EVERY`].
    pub(super) fn wait(&self) -> Batch {
        let is_idle = |inner: &mut Inner| inner.entries.is_empty() && inner.signed.is_none() && inner.closing.is_none();
        let wait = |inner, most, condition: &dyn Fn(&mut Inner) -> bool| {
            let waited = self.wake.wait_timeout_while(inner, most, condition);
            waited.unwrap_or_else(PoisonError::into_inner).0
        };
        let inner = wait(self.lock(), LOOK_EVERY, &is_idle);
        let mut inner = wait(inner, GROUP_EVERY, &|inner| {
            !inner.urgent && !inner.entries.is_empty() && inner.entries.len() < GROUP_RECORDS && inner.signed.is_none()
        });
        inner.urgent = false;
        let entries = std::mem::take(&mut inner.entries);
        // They are the writing thread's until it says what became of them.
        inner.held += entries.len();
        let (signed, dropped) = (inner.signed.take(), std::mem::take(&mut inner.dropped));
        Batch { entries, signed, dropped, closing: inner.closing }
    }

    /// Waits until the signing thread has nothing to do, or has signed something; at most so long.
    pub(super) fn wait_for_notary(&self, most: Duration) {
        let mut inner = self.lock();
        // It is not the disk that is waited for.
        inner.waiting_since = None;
        let waited = self.wake.wait_timeout_while(inner, most, |inner| {
            inner.signed.is_none() && (inner.signing || inner.unsigned.is_some() || inner.unstored.is_some())
        });
        waited.unwrap_or_else(PoisonError::into_inner).0.waiting_since = Some(self.clock.now());
    }

    /// What became of what was waited for.
    pub(super) fn answer(&self, waiters: impl IntoIterator<Item = u64>, outcome: &Result<()>) {
        let senders: Vec<_> = {
            let mut inner = self.lock();
            waiters.into_iter().filter_map(|waiter| inner.waiters.remove(&waiter)).collect()
        };
        for sender in senders {
            // Who asked may have gone away.
            let _ = sender.send(outcome.clone());
        }
    }

    /// It cannot be written.
    pub(super) fn broke(&self, why: &str) {
        self.lock().broken = Some(why.to_owned());
    }

    /// How things stand after a turn of the writing thread, which still holds `held` records.
    pub(super) fn turned(&self, size: u64, held: usize, dropped: u64, broken: Option<Trouble>) {
        let mut inner = self.lock();
        (inner.size, inner.held, inner.broken) = (size, held, broken);
        inner.dropped = inner.dropped.saturating_add(dropped);
        inner.waiting_since = match (inner.entries.is_empty(), held) {
            (true, 0) if inner.closing.is_none() => None,
            // What could not be written is told by `broken`; the disk did answer.
            _ => Some(self.clock.now()),
        };
    }

    /// The signing thread has done something.
    pub(super) fn notarized(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.lock());
        self.wake.notify_all();
    }

    /// Another process writes the trail of this node.
    pub(super) fn doubled(&self, why: Trouble) {
        self.lock().doubled = Some(why);
    }

    /// Refuses all who wait, where the disk does not answer.
    pub(super) fn give_up_stalled(&self) {
        let (why, waiters) = {
            let mut inner = self.lock();
            let Some(why) = inner.stalled(&self.clock) else { return };
            (why, std::mem::take(&mut inner.waiters))
        };
        for sender in waiters.into_values() {
            let _ = sender.send(Err(self.error(&why)));
        }
    }

    /// The writing thread has ended.
    pub(super) fn end(&self, outcome: &Result<()>) {
        let waiters = {
            let mut inner = self.lock();
            inner.ended = true;
            inner.waiting_since = None;
            std::mem::take(&mut inner.waiters)
        };
        for sender in waiters.into_values() {
            let _ = sender.send(outcome.clone());
        }
        self.notary.notify_one();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Why the trail is not kept; `None` when it is.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        let inner = self.lock();
        let dropped = || (inner.dropped > 0).then(|| inner.full());
        inner.doubled.clone().or_else(|| inner.broken.clone()).or_else(dropped).or_else(|| inner.stalled(&self.clock))
    }

    /// How many records wait, and how many were lost that no line tells of yet.
    pub(super) fn waiting(&self) -> (usize, u64) {
        let inner = self.lock();
        (inner.entries.len() + inner.held, inner.dropped)
    }
}

impl Inner {
    fn is_full(&self) -> bool {
        self.entries.len() + self.held >= QUEUE_RECORDS_MAX
    }

    fn full(&self) -> Trouble {
        let why = "the disk is too slow, or does not answer; see to it";
        self.broken.clone().unwrap_or_else(|| format!("{QUEUE_RECORDS_MAX} records wait to be written: {why}"))
    }

    fn stalled(&self, clock: &Clock) -> Option<Trouble> {
        let waited = clock.now().since(self.waiting_since?);
        (waited > STALL_MAX).then(|| format!("the disk has not answered for {} s; see to it", waited.as_secs()))
    }

    fn waiter(&mut self) -> (u64, oneshot::Receiver<Result<()>>) {
        let (sender, receiver) = oneshot::channel();
        self.waiters_so_far += 1;
        self.waiters.insert(self.waiters_so_far, sender);
        (self.waiters_so_far, receiver)
    }
}
