//! What stands between callers, the thread that writes, and the one that signs: one short lock.

use super::disk::{Thinned, Trouble};
use crate::{
    audit::{tree::Frontier, unnumbered::Unnumbered},
    clock::{Clock, Instant},
    error::{Error, Result},
    telemetry::trail::{Outcome, Record, Standing},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{Notify, oneshot};

/// Most records that wait to be written. One has about half a kilobyte.
pub const QUEUE_RECORDS_MAX: usize = 16 * 1024;
/// A disk that has not answered for so long does not answer: who waits for it is refused, and the trail is broken.
pub const STALL_MAX: Duration = Duration::from_secs(10);
/// Records that nobody waits for are written together, so long after the first of them.
const GROUP_EVERY: Duration = Duration::from_millis(200);
/// So many are written at once.
const GROUP_RECORDS: usize = 1024;
/// While there is nothing to write the files are looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What becomes of records is not known any more.
const FAILED: &str = "its thread failed; see the log, and restart";

/// A record that waits to be written.
#[derive(Debug)]
pub(super) struct Entry {
    /// `None` for one who waits for all that was there before.
    pub(super) line: Option<Unnumbered>,
    /// Of what is not done yet.
    pub(super) is_asked: bool,
    pub(super) waiter: Option<u64>,
    /// When it was taken.
    pub(super) since: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    entries: VecDeque<Entry>,
    /// Records that the writing thread holds, and since when the first of them waits.
    held: usize,
    held_since: Option<Instant>,
    /// Somebody waits.
    urgent: bool,
    /// The writing thread sleeps, and nobody has woken it.
    asleep: bool,
    /// Nothing is taken any more; how long the end may take.
    closing: Option<Duration>,
    /// Records that were lost, and not told of yet.
    dropped: u64,
    /// All that were lost.
    lost: u64,
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
    /// The writing thread ended by a fault.
    failed: bool,
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
    ///
    /// # Errors
    /// Why it is lost.
    pub(super) fn note(&self, record: Record) -> Result<()> {
        let line = self.line(&record)?;
        let mut inner = self.lock();
        if let Some(why) = inner.takes_nothing() {
            inner.lose(1);
            return Err(self.error(&why));
        }
        let was_empty = inner.entries.is_empty();
        self.push(&mut inner, Some(line), false, None);
        if was_empty || inner.entries.len() >= GROUP_RECORDS {
            self.wake(inner);
        }
        Ok(())
    }

    /// Takes one that is waited for, or none, for all that was taken before.
    pub(super) fn write(&self, record: Option<Record>) -> Result<oneshot::Receiver<Result<()>>> {
        let is_asked = record.as_ref().is_some_and(|record| record.outcome == Outcome::Asked);
        let line = record.map(|record| self.line(&record)).transpose()?;
        let mut inner = self.lock();
        let why = inner.doubled.clone().or_else(|| inner.takes_nothing());
        if let Some(why) = why {
            // What was only asked for is not done, so that nothing is missed of it.
            if line.is_some() && !is_asked {
                inner.lose(1);
            }
            return Err(self.error(&why));
        }
        let (waiter, receiver) = inner.waiter();
        inner.urgent = true;
        self.push(&mut inner, line, is_asked, Some(waiter));
        self.wake(inner);
        Ok(receiver)
    }

    /// One of the limits of a record would have to be missing for a line to be too long.
    fn line(&self, record: &Record) -> Result<Unnumbered> {
        Unnumbered::of(record).inspect_err(|error| {
            tracing::error!("{}: {error}", self.name);
            self.lock().lose(1);
        })
    }

    fn push(&self, inner: &mut Inner, line: Option<Unnumbered>, is_asked: bool, waiter: Option<u64>) {
        let since = self.clock.now();
        inner.entries.push_back(Entry { line, is_asked, waiter, since });
        inner.waiting_since.get_or_insert(since);
    }

    /// Wakes the writing thread, which is no call of the kernel's where it does not sleep.
    fn wake(&self, mut inner: MutexGuard<'_, Inner>) {
        let was_asleep = std::mem::take(&mut inner.asleep);
        drop(inner);
        if was_asleep {
            self.wake.notify_all();
        }
    }

    /// Begins the end, for which the receiver waits. `None` where somebody began it before, and it has come.
    ///
    /// # Errors
    /// It ended by itself.
    pub(super) fn close(&self, patience: Duration) -> Result<Option<oneshot::Receiver<Result<()>>>> {
        let mut inner = self.lock();
        if inner.failed {
            return Err(self.error(FAILED));
        }
        if inner.ended {
            return Ok(None);
        }
        let (_, receiver) = inner.waiter();
        inner.closing.get_or_insert(patience);
        inner.urgent = true;
        if inner.waiting_since.is_none() {
            inner.waiting_since = Some(self.clock.now());
        }
        self.wake(inner);
        Ok(Some(receiver))
    }

    /// Waits for something to do; at most for [`LOOK_EVERY`].
    pub(super) fn wait(&self) -> Batch {
        let is_idle = |inner: &Inner| inner.entries.is_empty() && inner.signed.is_none() && inner.closing.is_none();
        let inner = self.sleep(self.lock(), LOOK_EVERY, is_idle);
        let mut inner = self.sleep(inner, GROUP_EVERY, |inner| {
            !inner.urgent && !inner.entries.is_empty() && inner.entries.len() < GROUP_RECORDS && inner.signed.is_none()
        });
        inner.urgent = false;
        let entries = std::mem::take(&mut inner.entries);
        // They are the writing thread's until it says what became of them.
        inner.held += entries.len();
        inner.held_since = inner.held_since.or(entries.front().map(|entry| entry.since));
        let (signed, dropped) = (inner.signed.take(), std::mem::take(&mut inner.dropped));
        Batch { entries, signed, dropped, closing: inner.closing }
    }

    /// The writing thread sleeps while it may, at most so long.
    fn sleep<'i>(
        &self,
        inner: MutexGuard<'i, Inner>,
        most: Duration,
        may_sleep: impl Fn(&Inner) -> bool,
    ) -> MutexGuard<'i, Inner> {
        let waited = self.wake.wait_timeout_while(inner, most, |inner| {
            inner.asleep = may_sleep(inner);
            inner.asleep
        });
        let mut inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        inner.asleep = false;
        inner
    }

    /// Waits until the signing thread has nothing to do, or has signed something; at most so long.
    pub(super) fn wait_for_notary(&self, most: Duration) {
        let mut inner = self.lock();
        // It is not the disk that is waited for.
        inner.waiting_since = None;
        let mut inner = self.sleep(inner, most, |inner| {
            inner.signed.is_none() && (inner.signing || inner.unsigned.is_some() || inner.unstored.is_some())
        });
        inner.waiting_since = Some(self.clock.now());
    }

    /// Whether there are records that the writing thread has not taken.
    pub(super) fn is_waiting(&self) -> bool {
        !self.lock().entries.is_empty()
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

    /// How things stand after a turn of the writing thread, which still holds these.
    pub(super) fn turned(&self, size: u64, holds: &VecDeque<Entry>, dropped: u64, broken: Option<Trouble>) {
        let mut inner = self.lock();
        let held = holds.len();
        (inner.size, inner.held, inner.broken) = (size, held, broken);
        inner.held_since = holds.front().map(|entry| entry.since);
        inner.dropped = inner.dropped.saturating_add(dropped);
        inner.waiting_since = match (inner.entries.is_empty(), held) {
            (true, 0) if inner.closing.is_none() => None,
            // What could not be written is told by `broken`; the disk did answer.
            _ => Some(self.clock.now()),
        };
    }

    /// The signing thread has done something.
    pub(super) fn notarized(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        change(&mut inner);
        self.wake(inner);
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

    /// The writing thread has ended by a fault, and with it went what it held.
    pub(super) fn fail(&self) {
        {
            let mut inner = self.lock();
            inner.failed = true;
            let went = inner.held + inner.entries.len();
            inner.entries.clear();
            (inner.held, inner.held_since) = (0, None);
            inner.lose(went as u64);
        }
        self.end(&Err(self.error(FAILED)));
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Why the trail is not kept; `None` when it is.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        let inner = self.lock();
        let closed = inner.doubled.clone().or_else(|| inner.closed());
        let dropped = || (inner.dropped > 0).then(|| inner.full());
        closed.or_else(|| inner.broken.clone()).or_else(dropped).or_else(|| inner.stalled(&self.clock))
    }

    /// How many records wait, and how many were lost that no line tells of yet.
    pub(super) fn waiting(&self) -> (usize, u64) {
        let inner = self.lock();
        (inner.waiting(), inner.dropped)
    }

    /// At most half of what may wait does.
    pub(super) fn has_room(&self) -> bool {
        self.lock().waiting() <= QUEUE_RECORDS_MAX / 2
    }

    pub(super) fn standing(&self) -> Standing {
        let is_broken = self.trouble().is_some();
        let inner = self.lock();
        let since = inner.held_since.or_else(|| inner.entries.front().map(|entry| entry.since));
        Standing {
            lag: since.map_or(Duration::ZERO, |since| self.clock.now().since(since)),
            waiting: inner.waiting() as u64,
            lost: inner.lost,
            is_broken,
        }
    }
}

impl Inner {
    fn waiting(&self) -> usize {
        self.entries.len() + self.held
    }

    /// Why nothing is taken any more.
    fn closed(&self) -> Option<Trouble> {
        let closed = self.closing.is_some() || self.ended;
        self.failed.then(|| FAILED.to_owned()).or_else(|| closed.then(|| "it was closed".to_owned()))
    }

    /// Why nothing can be taken.
    fn takes_nothing(&self) -> Option<Trouble> {
        self.closed().or_else(|| (self.waiting() >= QUEUE_RECORDS_MAX).then(|| self.full()))
    }

    fn lose(&mut self, records: u64) {
        self.dropped = self.dropped.saturating_add(records);
        self.lost = self.lost.saturating_add(records);
    }

    fn full(&self) -> Trouble {
        let why = "the disk is too slow, or does not answer; see to it";
        self.broken.clone().unwrap_or_else(|| format!("{QUEUE_RECORDS_MAX} records wait to be written: {why}"))
    }

    fn stalled(&self, clock: &Clock) -> Option<Trouble> {
        let waited = clock.now().since(self.waiting_since?);
        // The same words for as long as it lasts: who looks again has nothing new to say.
        (waited > STALL_MAX)
            .then(|| format!("the disk has not answered for {} s and more; see to it", STALL_MAX.as_secs()))
    }

    fn waiter(&mut self) -> (u64, oneshot::Receiver<Result<()>>) {
        let (sender, receiver) = oneshot::channel();
        self.waiters_so_far += 1;
        self.waiters.insert(self.waiters_so_far, sender);
        (self.waiters_so_far, receiver)
    }
}
