//! The thread that writes: it alone touches the newest file and the checkpoints, and waits for nothing but the disk.

use super::{
    disk::{Disk, Trouble},
    queue::{Batch, Entry, Shared, Signed},
};
use crate::{
    audit::{
        line::{BROKEN, Line, RESUMED, Time},
        tally::Group,
        tree::{Frontier, Hash, leaf_hash},
        unnumbered::Unnumbered,
        walk::hour_of,
    },
    clock::Instant,
    error::Result,
    name::AccountId,
    store::number_of,
};
use std::{collections::VecDeque, sync::Arc, time::Duration};

/// A checkpoint is signed so long after the one before, where lines were written since that nobody waited for.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);
/// And at the soonest so long after it, where somebody waited: one over a thousand lines that came together, and not a thousand.
const CHECKPOINT_SOONEST: Duration = Duration::from_secs(1);
/// Where the checkpoints of a day have so many bytes, administrative lines wait for the next minute's.
const CHECKPOINTS_DAY_BYTES: usize = 512 * 1024;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// About so many bytes are written at once.
const SEGMENT_BYTES: usize = 1024 * 1024;

const HOUR_MS: u64 = 60 * 60 * 1000;

/// The hour of a time, as the files' folders have it.
fn hour(time: Time) -> String {
    hour_of(&time.to_string()).unwrap_or_default().to_owned()
}

/// What becomes a line.
#[derive(Debug)]
enum Item {
    Entry(Entry),
    /// The trail was broken.
    Broken(Option<Unnumbered>),
    /// It is whole again, and so many records were lost.
    Resumed(Option<Unnumbered>, u64),
}

// Lines of the writer's own are far from the longest that may be.
impl Item {
    /// From then on, for this reason.
    fn broken(at: Time, why: &str) -> Self {
        let mut line = Line::own(0, at, BROKEN);
        line.reason = Some(why.chars().filter(|char| !char.is_control()).take(1024).collect());
        Self::Broken(Unnumbered::own(&line).ok())
    }

    fn resumed(at: Time, dropped: u64) -> Self {
        let mut line = Line::own(0, at, RESUMED);
        line.dropped = Some(dropped);
        Self::Resumed(Unnumbered::own(&line).ok(), dropped)
    }

    const fn line(&self) -> Option<&Unnumbered> {
        match self {
            Self::Entry(Entry { line, .. }) | Self::Broken(line) | Self::Resumed(line, _) => line.as_ref(),
        }
    }

    fn time(&self) -> Option<Time> {
        self.line().map(|line| line.time)
    }
}

/// Lines of one hour that are written together. In front of them may be the tally of the group before.
#[derive(Debug)]
struct Segment {
    hour: String,
    bytes: Vec<u8>,
    /// The time of its tally.
    tally: Option<Time>,
    /// Of each line behind that: its account, and its leaf.
    leaves: Vec<(Option<AccountId>, Hash)>,
    frontier: Frontier,
    items: Vec<Item>,
}

impl Segment {
    fn put(&mut self, line: &Unnumbered) -> Hash {
        let begin = self.bytes.len();
        line.put(self.frontier.size(), &mut self.bytes);
        let leaf = leaf_hash(self.bytes.get(begin..).unwrap_or_default());
        self.bytes.push(b'\n');
        self.frontier.append(leaf);
        leaf
    }
}

/// What a start finds.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) disk: Disk,
    pub(super) frontier: Frontier,
    pub(super) group: Group,
    /// Of how many lines the newest checkpoint tells.
    pub(super) checkpointed: u64,
}

#[derive(Debug)]
pub(super) struct Scribe {
    shared: Arc<Shared>,
    disk: Disk,
    frontier: Frontier,
    group: Group,
    /// What could not be written, and is not to be lost.
    pending: VecDeque<Entry>,
    /// What was lost, and no line tells of it yet.
    dropped: u64,
    /// Since when it cannot be written, and why.
    broken: Option<(Time, Trouble)>,
    /// A line says that it was broken, and none yet that it is whole again.
    is_told: bool,
    /// A note that was signed and could not be written.
    unwritten: Option<Signed>,
    /// Of how many lines the newest note tells that was asked for, and when it was.
    asked: u64,
    asked_at: Option<Instant>,
    /// It tells not yet of an administrative line.
    owed: bool,
    /// Bytes of notes since then.
    day: (Instant, usize),
}

impl Scribe {
    pub(super) fn new(shared: Arc<Shared>, found: Found) -> Self {
        let Found { mut disk, frontier, group, checkpointed } = found;
        disk.tell(frontier.size());
        let now = shared.clock.now();
        shared.turned(frontier.size(), &VecDeque::new(), 0, None);
        Self {
            shared,
            disk,
            frontier,
            group,
            pending: VecDeque::new(),
            dropped: 0,
            broken: None,
            is_told: false,
            unwritten: None,
            asked: checkpointed,
            owed: false,
            // What a crash left without a checkpoint gets one soon.
            asked_at: None,
            day: (now, 0),
        }
    }

    /// Until the end.
    pub(super) fn run(mut self) {
        loop {
            let batch = self.shared.wait();
            let closing = batch.closing;
            self.turn(batch);
            if let Some(patience) = closing {
                self.end(patience);
                return;
            }
        }
    }

    fn now(&self) -> Time {
        Time::from_unix_ms(self.shared.clock.wall_unix_ms())
    }

    fn turn(&mut self, batch: Batch) {
        let Batch { entries, signed, dropped, closing: _ } = batch;
        self.dropped = self.dropped.saturating_add(dropped);
        let is_urgent = entries.iter().any(|entry| entry.waiter.is_some() && entry.line.is_some());
        let is_idle = entries.is_empty() && self.pending.is_empty() && self.broken.is_none();
        if is_idle && let Err(why) = self.disk.look() {
            self.broke(why);
        }
        self.write(entries);
        if self.broken.is_none() {
            self.tally_of_hour();
            self.take_note(signed);
            self.ask_for_note(is_urgent);
            self.thin();
        } else if let Some(Ok(signed)) = signed {
            self.unwritten = Some(signed);
        }
        let broken = self.broken.as_ref().map(|(_, why)| why.clone());
        self.shared.turned(self.frontier.size(), &self.pending, std::mem::take(&mut self.dropped), broken);
    }

    /// Where that fails the checkpoints stay as they are: so it is no trouble.
    fn thin(&mut self) {
        let thinned = self.shared.lock().thinned.take();
        let done = thinned.map_or(Ok(()), |thinned| self.disk.take_thinned(thinned));
        if let Err(error) = done {
            tracing::warn!("{}: its oldest checkpoints were not taken away: {error}", self.shared.name);
        }
    }

    fn broke(&mut self, why: Trouble) {
        // Before anybody hears of it who then asks whether it serves.
        self.shared.broke(&why);
        match &mut self.broken {
            Some((_, known)) => *known = why,
            None => {
                tracing::error!("{}: it cannot be kept: {why}", self.shared.name);
                self.broken = Some((self.now(), why));
            }
        }
    }

    /// Writes what there is, with the word of what was missed around it.
    fn write(&mut self, entries: VecDeque<Entry>) {
        let mut items = VecDeque::new();
        let is_back = self.broken.is_some() || self.dropped > 0 || self.is_told;
        if is_back && !self.is_told {
            let slow = || (self.now(), "records came faster than the disk took them".to_owned());
            let (at, why) = self.broken.clone().unwrap_or_else(slow);
            // It was before the first of those that waited: no tally of later may stand in front of them.
            let first = self.pending.iter().chain(&entries).find_map(|entry| entry.line.as_ref());
            let first = first.map_or(at, |line| line.time);
            items.push_back(Item::broken(at.min(first), &why));
        }
        items.extend(self.pending.drain(..).chain(entries).map(Item::Entry));
        let dropped = std::mem::take(&mut self.dropped);
        if is_back {
            items.push_back(Item::resumed(self.now(), dropped));
        }
        // It is whole again when all of it can be written.
        if let (true, Some(signed)) = (is_back, &self.unwritten) {
            match self.disk.write_note(&signed.note) {
                Ok(()) => self.wrote_note(),
                Err(why) => {
                    self.broke(why.clone());
                    self.missed(items.into_iter(), &why);
                    return;
                }
            }
        }
        while !items.is_empty() {
            let segment = self.segment(&mut items);
            let written = match segment.bytes.is_empty() {
                true => Ok(()), // of those who wait for what was there before
                false => self.disk.write_lines(&segment.hour, &segment.bytes),
            };
            match written {
                Ok(()) => self.wrote(segment),
                Err(why) => {
                    self.broke(why.clone());
                    self.missed(segment.items.into_iter().chain(items), &why);
                    return;
                }
            }
        }
        if is_back {
            tracing::warn!(dropped, "{}: it is kept again", self.shared.name);
            (self.broken, self.is_told) = (None, false);
        }
    }

    /// Takes items off the front that are written together.
    fn segment(&mut self, items: &mut VecDeque<Item>) -> Segment {
        let first = items.iter().find_map(Item::time).unwrap_or_else(|| self.now());
        let mut segment = self.begin(first);
        // Formatted are only those of another hour.
        let hour_ms = first.unix_ms() / HOUR_MS;
        let mut lines = if segment.tally.is_some() { 0 } else { self.group.lines() };
        while let Some(item) = items.pop_front() {
            let is_later =
                item.time().is_some_and(|time| time.unix_ms() / HOUR_MS > hour_ms && hour(time) > segment.hour);
            if is_later || lines >= crate::audit::tally::GROUP_LINES_MAX || segment.bytes.len() >= SEGMENT_BYTES {
                items.push_front(item);
                break;
            }
            if let Some(line) = item.line() {
                let leaf = segment.put(line);
                segment.leaves.push((line.account.clone(), leaf));
                lines += 1;
            }
            segment.items.push(item);
        }
        segment
    }

    /// A segment whose first line has this time; in front of it the tally, if one is due.
    fn begin(&self, time: Time) -> Segment {
        let of_time = hour(time);
        // A clock that was set back begins no file.
        let hour = self.disk.hour().unwrap_or_default().max(of_time.as_str()).to_owned();
        let is_due = self.group.lines() > 0 && (self.group.is_full() || self.disk.hour() != Some(hour.as_str()));
        let frontier = self.frontier.clone();
        let mut segment =
            Segment { hour, bytes: Vec::new(), tally: None, leaves: Vec::new(), frontier, items: Vec::new() };
        if is_due {
            self.put_tally(&mut segment, time);
        }
        segment
    }

    fn put_tally(&self, segment: &mut Segment, time: Time) {
        match Unnumbered::own(&self.group.tally(time, &self.frontier)) {
            Ok(line) => {
                segment.put(&line);
                segment.tally = Some(time);
            }
            // It has the same few names each time.
            Err(error) => tracing::error!("{}: a tally: {error}", self.shared.name),
        }
    }

    fn wrote(&mut self, segment: Segment) {
        if let Some(time) = segment.tally {
            self.group = Group::new(self.frontier.size() + 1, Some(time));
        }
        self.frontier = segment.frontier;
        self.disk.tell(self.frontier.size());
        self.is_told |= segment.items.iter().any(|item| matches!(item, Item::Broken(..)));
        let waiters = segment.items.into_iter().filter_map(|item| match item {
            Item::Entry(entry) => entry.waiter,
            _ => None,
        });
        self.shared.answer(waiters, &Ok(()));
        // Only the next tally waits for it.
        for (account, leaf) in segment.leaves {
            self.group.add(account.as_ref().map(AccountId::as_str), &leaf);
        }
    }

    /// Nothing of these was written: who waits is refused; what was done all the same is kept for later.
    fn missed(&mut self, items: impl Iterator<Item = Item>, why: &str) {
        let mut waiters = Vec::new();
        for item in items {
            match item {
                Item::Entry(entry) => {
                    waiters.extend(entry.waiter);
                    // What was asked for is not done.
                    let is_kept = entry.line.is_some() && (entry.waiter.is_none() || !entry.is_asked);
                    self.pending.extend(is_kept.then_some(Entry { waiter: None, ..entry }));
                }
                Item::Resumed(_, dropped) => self.dropped = self.dropped.saturating_add(dropped),
                Item::Broken(..) => {}
            }
        }
        self.shared.answer(waiters, &Err(self.shared.error(why)));
    }

    /// The tally of an hour that has ended, where no line came since.
    fn tally_of_hour(&mut self) {
        let time = self.now();
        // What waits may be of that hour: it comes first.
        if self.group.lines() > 0 && !self.shared.is_waiting() && self.disk.hour() < Some(hour(time).as_str()) {
            self.tally(time);
        }
    }

    fn tally(&mut self, time: Time) {
        let mut segment = self.begin(time);
        if segment.tally.is_none() {
            self.put_tally(&mut segment, time);
        }
        match self.disk.write_lines(&segment.hour, &segment.bytes) {
            Ok(()) => self.wrote(segment),
            Err(why) => self.broke(why),
        }
    }

    /// Writes a checkpoint that was signed, and has it stored.
    fn take_note(&mut self, signed: Option<Result<Signed>>) {
        match signed {
            Some(Ok(signed)) => self.unwritten = Some(signed),
            Some(Err(error)) => {
                tracing::warn!("{}: no checkpoint could be signed: {error}", self.shared.name);
                // The next minute tries again.
                self.asked = self.shared.lock().checkpoint.map_or(0, |(size, _)| size);
            }
            None => {}
        }
        let Some(signed) = &self.unwritten else { return };
        match self.disk.write_note(&signed.note) {
            Ok(()) => self.wrote_note(),
            Err(why) => self.broke(why),
        }
    }

    fn wrote_note(&mut self) {
        let Some(signed) = self.unwritten.take() else { return };
        self.day.1 = self.day.1.saturating_add(signed.note.len());
        self.shared.notarized(|inner| {
            inner.checkpoint = Some((signed.size, signed.unix));
            inner.unstored = Some(signed);
        });
        self.shared.notary.notify_one();
    }

    fn ask_for_note(&mut self, is_urgent: bool) {
        let now = self.shared.clock.now();
        if now.since(self.day.0) >= DAY {
            self.day = (now, 0);
        }
        self.owed |= is_urgent;
        let is_soon = self.owed && self.day.1 < CHECKPOINTS_DAY_BYTES;
        let wait = if is_soon { CHECKPOINT_SOONEST } else { CHECKPOINT_EVERY };
        let is_due = self.asked_at.is_none_or(|at| now.since(at) >= wait);
        if self.frontier.size() > self.asked && is_due {
            (self.asked, self.asked_at, self.owed) = (self.frontier.size(), Some(now), false);
            let frontier = self.frontier.clone();
            self.shared.notarized(|inner| inner.unsigned = Some(frontier));
            self.shared.notary.notify_one();
        }
    }

    /// The last lines, and a checkpoint over them, for which it waits so long.
    fn end(mut self, patience: Duration) {
        if self.broken.is_none() && self.group.lines() > 0 {
            self.tally(self.now());
        }
        if self.broken.is_none() && self.frontier.size() > self.shared.lock().checkpoint.map_or(0, |(size, _)| size) {
            // One that is being signed is of fewer lines: it comes first.
            for _ in 0..2 {
                self.shared.wait_for_notary(patience);
                let signed = self.shared.lock().signed.take();
                self.take_note(signed);
            }
            self.asked_at = None;
            self.ask_for_note(true);
            self.shared.wait_for_notary(patience);
            let signed = self.shared.lock().signed.take();
            self.take_note(signed);
        }
        self.shared.wait_for_notary(patience);
        let broken = self.broken.as_ref().map(|(_, why)| why.clone());
        self.shared.turned(self.frontier.size(), &self.pending, self.dropped, broken.clone());
        let (held, dropped) = self.shared.waiting();
        let lost = held as u64 + dropped;
        let outcome = match broken {
            None if lost == 0 => Ok(()),
            // No line can tell of them any more.
            None => Err("some came as it was being closed".to_owned()),
            Some(why) => Err(why),
        };
        // Only what the trail adds of its own, a tally or a checkpoint, was too much for the disk, say: the next start writes it.
        let of_records = if lost == 0 { "every record is kept".into() } else { number_of(lost, "record") + " lost" };
        let outcome = outcome.map_err(|why| self.shared.error(&format!("{why}; {of_records}")));
        drop(self.disk); // gives the lock back, before anybody hears of the end
        self.shared.end(&outcome);
    }
}
