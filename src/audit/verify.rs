//! Whether a trail is as it was written: what was changed, removed, added, reordered or cut, and where.
//!
//! One way through the lines and the checkpoints together, in memory that does not grow with the trail. Where a line is found wrong, the
//! tree is lost from there to the next tally, which has the frontier of all lines in front of it: behind the next checkpoint, which a false
//! one does not lead to, what follows is proved as well as before.

use super::{
    checkpoint::{Checkpoint, Retained},
    live::{READS_MAX, Snapshot},
    note::Note,
    notes::{Next, Notes},
    report::{Expected, FAULTS_MAX, Fault, FaultKind, Report},
    tally::{Group, Tally},
    tree::{Frontier, Hash, leaf_hash},
    walk::{Head, Place, Step, Walk, belongs},
};
use crate::{
    audit::line::Time,
    error::{Error, Result},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
};

/// The file of the checkpoints.
pub(super) const CHECKPOINTS: &str = "checkpoints";
/// The file of what retention left.
pub(super) const RETAINED: &str = "retained";
/// Gaps in the numbers that are remembered.
const GAPS_MAX: usize = 10_000;

/// Verifies the trail in a node's directory, as it is when this begins: beside a writer too. Blocks for as long as reading it takes; needs
/// no token where the keys are public.
///
/// # Errors
/// [`Error::NotFound`] where there is no trail; [`Error::Trail`] where the directory cannot be read; [`Error::Invalid`] where no key is
/// given, or one that takes its token. What is wrong with the trail is no error: it is in the report.
pub fn verify(node: &Path, expected: &Expected) -> Result<Report> {
    if expected.keys.is_empty() {
        return Err(Error::Invalid(
            "a trail is verified by the key that signs it: `keyleash audit key show` prints it".into(),
        ));
    }
    let mut reads = 1;
    loop {
        let mut trail = Snapshot::take(node)?;
        let report = verify_now(node, expected, &mut trail)?;
        // What is read while the writer removes it, or cuts it off, is no fault of the trail's.
        if report.is_whole() || reads == READS_MAX || !trail.has_moved()? {
            return Ok(report);
        }
        reads += 1;
    }
}

fn verify_now(node: &Path, expected: &Expected, trail: &mut Snapshot) -> Result<Report> {
    let failed = |error: io::Error| Error::Trail(format!("reading the trail {}: {error}", node.display()));
    let mut walk = Walk::of(node, trail.files.clone());
    let name = node.canonicalize().map_err(failed)?.file_name().and_then(|name| name.to_str().map(str::to_owned));
    let mut judge = Judge::new(name, expected, &mut trail.notes);
    judge.report.files = walk.files() as u64;
    if let Some(retained) = &trail.retained {
        judge.begin_behind(retained)?;
    }
    judge.checkpoints_at()?;
    while !judge.is_behind(trail.durable)? {
        match walk.step() {
            Step::Line => judge.line(&walk)?,
            Step::TooLong => judge.no_line(&walk)?,
            Step::Torn(bytes) if walk.is_last_file() => judge.report.torn = bytes,
            Step::Torn(_) => judge.fault(FaultKind::Cut, walk.place(), "the file ends within a line"),
            Step::Unreadable(why) => judge.fault(FaultKind::Unreadable, walk.place(), &why),
            Step::End => break,
        }
    }
    judge.report.bytes = walk.bytes;
    if walk.files() == 0 && judge.report.checkpoints == 0 && trail.retained.is_none() && judge.report.is_whole() {
        return Err(Error::NotFound(format!("a trail in {}: it has no lines and no checkpoints", node.display())));
    }
    judge.end(walk.place())
}

/// Lines that retention was about to remove as its process ended, or that somebody put there.
struct Leftover {
    /// `None` where it is not known, or they do not follow each other.
    tree: Option<Frontier>,
    lines: u64,
    place: Place,
}

impl Leftover {
    fn add(&mut self, line: &[u8], head: &Head) {
        if self.lines == 0 && head.seq > 0 {
            self.tree = Tally::parse(line).map(|tally| tally.frontier);
        }
        self.tree = self.tree.take().filter(|tree| tree.size() == head.seq);
        if let Some(tree) = &mut self.tree {
            tree.append(leaf_hash(line));
        }
        self.lines += 1;
    }
}

/// A line that is not the next one; what it is says the line behind it.
struct Held {
    seq: Option<u64>,
    place: Place,
}

struct Judge<'e> {
    /// What the directory is called.
    node: Option<String>,
    expected: &'e Expected,
    report: Report,
    notes: &'e mut Notes,
    /// The checkpoint that was read and not yet reached.
    ahead: Option<(Checkpoint, Place)>,
    /// Size of the one before.
    last_size: u64,
    /// Number of the next line.
    next: u64,
    /// `None` behind a fault, up to the next tally.
    tree: Option<Frontier>,
    /// `None` where the group's beginning is not known.
    group: Option<Group>,
    /// The first line that is not proved, and where it is.
    unproved: u64,
    unproved_place: Option<Place>,
    /// What may be wrong with tallies, until the lines are proved to be those that were written.
    miscounted: Vec<Fault>,
    more_miscounted: u64,
    /// Numbers that were passed over: up to which, and where the line is that came instead.
    gaps: BTreeMap<u64, (u64, Place)>,
    /// Lines that say another number than that of their place: the one, and the other.
    misplaced: BTreeSet<(u64, u64)>,
    held: Option<Held>,
    leftover: Option<Leftover>,
}

impl<'e> Judge<'e> {
    fn new(node: Option<String>, expected: &'e Expected, notes: &'e mut Notes) -> Self {
        Self {
            node,
            expected,
            report: Report::default(),
            notes,
            ahead: None,
            last_size: 0,
            next: 0,
            tree: Some(Frontier::new()),
            group: Some(Group::new(0, None)),
            unproved: 0,
            unproved_place: None,
            miscounted: Vec::new(),
            more_miscounted: 0,
            gaps: BTreeMap::new(),
            misplaced: BTreeSet::new(),
            held: None,
            leftover: None,
        }
    }

    /// Whether all durable lines were read, and those that checkpoints tell of: what stands behind them may be cut off again.
    fn is_behind(&mut self, durable: Option<u64>) -> Result<bool> {
        Ok(durable.is_some_and(|durable| durable <= self.next) && self.held.is_none() && self.peek()?.is_none())
    }

    fn fault(&mut self, kind: FaultKind, place: Place, what: &str) {
        self.report.fault(Fault { kind, place, what: what.to_owned() });
    }

    /// Whether a note is of this trail and a key's, which is told where it is not.
    fn is_ours(&mut self, note: &Note, origin: &str, place: &Place) -> Result<bool> {
        let what = match note.verify(&self.expected.keys) {
            Ok(()) if self.expected.is_of(origin, self.node.as_deref()) => return Ok(true),
            Ok(()) => format!("it is of another trail, {origin}"),
            Err(Error::Corrupt(what)) => what.to_string(),
            Err(error) => return Err(error),
        };
        self.fault(FaultKind::Forged, place.clone(), &what);
        Ok(false)
    }

    /// Lines were removed by retention.
    fn begin_behind(&mut self, retained: &[u8]) -> Result<()> {
        let place = Place { file: RETAINED.into(), line: 0 };
        match Note::parse(retained).and_then(|note| Ok((Retained::of(&note)?, note))) {
            Ok((retained, note)) => {
                if self.is_ours(&note, &retained.origin, &place)? {
                    self.report.origin = Some(retained.origin);
                }
                self.next = retained.frontier.size();
                (self.report.retained, self.unproved) = (self.next, self.next);
                self.tree = Some(retained.frontier);
                if self.next > 0 {
                    self.group = None;
                }
            }
            Err(error) => self.fault(FaultKind::Changed, place, &error.to_string()),
        }
        Ok(())
    }

    fn line(&mut self, walk: &Walk) -> Result<()> {
        let line = walk.line();
        self.report.lines += 1;
        let Some(head) = Head::parse(line) else { return self.not_next(None, walk) };
        if self.held.is_some() {
            self.settle(Some(head.seq))?;
        }
        if head.seq < self.report.retained && self.next == self.report.retained {
            let begin = || Leftover { tree: Some(Frontier::new()), lines: 0, place: walk.place() };
            self.leftover.get_or_insert_with(begin).add(line, &head);
            return Ok(());
        }
        self.settle_leftover();
        if !belongs(&head.time, walk.hour(), walk.is_first_line()) {
            self.fault(FaultKind::Reordered, walk.place(), "its time is not of the hour of this file");
        }
        if head.seq != self.next {
            return self.not_next(Some(head.seq), walk);
        }
        if self.unproved_place.is_none() {
            self.unproved_place = Some(walk.place());
        }
        let leaf = leaf_hash(line);
        if head.is_tally() {
            self.tally(line, Time::parse(&head.time), walk);
        } else {
            self.count(head.account(), &leaf, walk);
        }
        if let Some(tree) = &mut self.tree {
            tree.append(leaf);
        }
        self.advance(self.next + 1)
    }

    /// A line that is too long is none.
    fn no_line(&mut self, walk: &Walk) -> Result<()> {
        self.report.lines += 1;
        self.not_next(None, walk)
    }

    /// They are as good as gone where they lead to what retention left.
    fn settle_leftover(&mut self) {
        let Some(Leftover { tree, lines, place }) = self.leftover.take() else { return };
        if tree.is_some() && tree == self.tree {
            self.report.leftover = lines;
            return;
        }
        let retained = self.report.retained;
        let what = format!(
            "{lines} lines stand from here on with numbers below {retained}, up to which all were removed: by a retention that was cut short, \
             which the next one of the node's writer ends, or somebody put them there"
        );
        self.fault(FaultKind::Added, place, &what);
    }

    fn not_next(&mut self, seq: Option<u64>, walk: &Walk) -> Result<()> {
        self.settle(seq)?;
        self.held = Some(Held { seq, place: walk.place() });
        Ok(())
    }

    /// Judges the line that was held, by the number of the one behind it.
    fn settle(&mut self, behind: Option<u64>) -> Result<()> {
        let Some(Held { seq, place }) = self.held.take() else { return Ok(()) };
        let next = self.next;
        match seq {
            Some(seq) if self.misplaced.contains(&(next, seq)) => {
                self.fault(
                    FaultKind::Reordered,
                    place,
                    &format!("line {seq} stands here, and line {next} in its place"),
                );
                self.lose();
                self.advance(next + 1)
            }
            Some(seq) if behind == Some(next + 1) => {
                if self.misplaced.len() < GAPS_MAX {
                    self.misplaced.insert((seq, next));
                }
                self.fault(FaultKind::Changed, place, &format!("it is line {next}, and says that it is {seq}"));
                self.lose();
                self.advance(next + 1)
            }
            None if behind == Some(next) => {
                self.fault(FaultKind::Added, place, "it is no line of a trail");
                Ok(())
            }
            None => {
                self.fault(FaultKind::Changed, place, &format!("it should be line {next}, and is no line of a trail"));
                self.lose();
                self.advance(next + 1)
            }
            Some(seq) if seq > next => {
                if self.gaps.len() < GAPS_MAX {
                    self.gaps.insert(next, (seq, place));
                }
                self.lose();
                self.advance(seq + 1)
            }
            Some(seq) => {
                if self.fill_gap(seq) {
                    self.fault(
                        FaultKind::Reordered,
                        place,
                        &format!("line {seq} stands here, behind line {}", next - 1),
                    );
                } else {
                    self.fault(FaultKind::Added, place, &format!("a line {seq} stands here, and stood before"));
                }
                Ok(())
            }
        }
    }

    /// Whether a number was passed over. It is not missing any more.
    fn fill_gap(&mut self, seq: u64) -> bool {
        let Some((from, (to, place))) = self.gaps.range(..=seq).next_back().map(|(from, gap)| (*from, gap.clone()))
        else {
            return false;
        };
        if seq >= to {
            return false;
        }
        self.gaps.remove(&from);
        if from < seq {
            self.gaps.insert(from, (seq, place.clone()));
        }
        if seq + 1 < to {
            self.gaps.insert(seq + 1, (to, place));
        }
        true
    }

    /// What follows cannot be proved, up to the next tally.
    fn lose(&mut self) {
        self.tree = None;
        self.group = None;
        self.miscounted.clear();
        self.more_miscounted = 0;
    }

    fn miscounted(&mut self, place: Place, what: String) {
        match self.miscounted.len() {
            FAULTS_MAX => self.more_miscounted += 1,
            _ => self.miscounted.push(Fault { kind: FaultKind::Miscounted, place, what }),
        }
    }

    fn tell_miscounted(&mut self) {
        for fault in std::mem::take(&mut self.miscounted) {
            self.report.fault(fault);
        }
        self.report.more_faults += std::mem::take(&mut self.more_miscounted);
    }

    fn count(&mut self, account: Option<&str>, leaf: &Hash, walk: &Walk) {
        match &mut self.group {
            Some(group) if group.is_full() => {
                let what = format!("more than {} lines follow each other without a tally", group.lines());
                self.group = None;
                self.miscounted(walk.place(), what);
            }
            Some(group) => group.add(account, leaf),
            None => {}
        }
    }

    fn tally(&mut self, line: &[u8], time: Option<Time>, walk: &Walk) {
        let tally = Tally::parse(line);
        let what = match (&tally, &self.group) {
            (None, _) => Some("it is no tally that can be read".to_owned()),
            (Some(tally), Some(group)) if !tally.tells(group) => Some(format!(
                "the tally of lines {} to {} does not tell of them",
                group.first(),
                self.next.saturating_sub(1)
            )),
            (Some(tally), _) => {
                let is_other = self.tree.as_ref().is_some_and(|tree| *tree != tally.frontier);
                is_other.then(|| "its frontier is not that of the lines in front of it".to_owned())
            }
        };
        if let Some(what) = what {
            self.miscounted(walk.place(), what);
        }
        if let Some(tally) = tally.filter(|_| self.tree.is_none()) {
            self.tree = Some(tally.frontier);
            (self.unproved, self.unproved_place) = (self.next, Some(walk.place()));
        }
        self.group = Some(Group::new(self.next + 1, time));
    }

    fn advance(&mut self, next: u64) -> Result<()> {
        self.next = next;
        self.checkpoints_at()
    }

    /// The next checkpoint that is ours, not yet taken.
    fn peek(&mut self) -> Result<Option<u64>> {
        while self.ahead.is_none() {
            let next = self.notes.next().map_err(|error| Error::Trail(format!("reading the checkpoints: {error}")))?;
            let place = Place { file: CHECKPOINTS.into(), line: self.notes.line };
            match next {
                None => return Ok(None),
                // Crashes tear, and whoever cuts is found out by the lines behind.
                Some(Next::Torn) => {}
                Some(Next::Malformed(what)) => self.fault(FaultKind::Changed, place, &what),
                Some(Next::Note(note)) => match Checkpoint::of(&note) {
                    Ok(checkpoint) => {
                        if self.is_ours(&note, &checkpoint.origin, &place)? {
                            self.take_note(checkpoint, place);
                        }
                    }
                    Err(error) => self.fault(FaultKind::Changed, place, &error.to_string()),
                },
            }
        }
        Ok(self.ahead.as_ref().map(|(ahead, _)| ahead.size))
    }

    fn take_note(&mut self, checkpoint: Checkpoint, place: Place) {
        self.report.checkpoints += 1;
        if checkpoint.size < self.last_size {
            let what = format!("it is of {} lines, and stands behind one of {}", checkpoint.size, self.last_size);
            self.fault(FaultKind::Reordered, place, &what);
            return;
        }
        self.last_size = checkpoint.size;
        self.report.origin.get_or_insert_with(|| checkpoint.origin.clone());
        self.ahead = Some((checkpoint, place));
    }

    /// Compares the checkpoints of as many lines as there were up to here.
    fn checkpoints_at(&mut self) -> Result<()> {
        while self.peek()?.is_some_and(|size| size <= self.next) {
            let Some((checkpoint, place)) = self.ahead.take() else { break };
            if checkpoint.size == self.next && self.compare(&checkpoint, &place.to_string()) {
                self.report.newest = Some(checkpoint);
            }
        }
        // They are few.
        let expected = self.expected;
        for kept in &expected.kept {
            if kept.size == self.next {
                self.compare(kept, "that was kept elsewhere");
            }
        }
        Ok(())
    }

    /// Whether the lines up to here lead to it, which is told where they do not.
    fn compare(&mut self, checkpoint: &Checkpoint, which: &str) -> bool {
        let Some(root) = self.tree.as_ref().map(Frontier::root) else { return false };
        if root == checkpoint.root {
            self.tell_miscounted();
            (self.unproved, self.unproved_place) = (self.next, None);
            return true;
        }
        let from = self.unproved_place.take().unwrap_or(Place { file: CHECKPOINTS.into(), line: 0 });
        let what = match self.next.saturating_sub(1) {
            to if to > self.unproved => {
                format!("from here on one of the lines {} to {to} is not as it was written", self.unproved)
            }
            to => format!("line {to} is not as it was written"),
        };
        self.fault(FaultKind::Changed, from, &format!("{what}: the checkpoint {which} has another root"));
        self.lose();
        false
    }

    fn end(mut self, last: Place) -> Result<Report> {
        self.settle(None)?;
        self.settle_leftover();
        let mut signed = 0;
        while let Some(size) = self.peek()? {
            signed = size;
            self.ahead = None;
        }
        self.report.end = self.next;
        let is_before = |kept: &&Checkpoint| kept.size < self.report.retained;
        self.report.kept_before = self.expected.kept.iter().filter(is_before).count() as u64;
        let kept = self.expected.kept.iter().map(|kept| kept.size).max().unwrap_or_default();
        for (size, which) in [(signed, "a checkpoint"), (kept, "a checkpoint that was kept elsewhere")] {
            if size > self.next {
                let what = format!(
                    "{which} is of {size} lines, and behind line {} there is none",
                    self.next.saturating_sub(1)
                );
                self.fault(FaultKind::Cut, last.clone(), &what);
            }
        }
        for (from, (to, place)) in std::mem::take(&mut self.gaps) {
            let what = match to - from {
                1 => format!("line {from} is missing in front of it"),
                _ => format!("lines {from} to {} are missing in front of it", to - 1),
            };
            self.fault(FaultKind::Removed, place, &what);
        }
        self.tell_miscounted();
        if self.report.checkpoints == 0 && self.report.lines + self.report.retained > 0 {
            let place = Place { file: CHECKPOINTS.into(), line: 0 };
            self.fault(FaultKind::Cut, place, "there is no checkpoint that a key signed: nothing is proved");
        }
        Ok(self.report)
    }
}
