//! A trail as it is at one instant, read beside a writer that goes on.
//!
//! What is looked at first was written last: the end of the checkpoints, how many lines are durable, what retention left, and then the files.
//! So every line that a checkpoint tells of is in the files that were found, and what comes meanwhile is not looked at. What was removed
//! or cut off while it was read is seen by [`Snapshot::has_moved`]: then it is read again.

use super::{
    checkpoint::Retained,
    note::Note,
    notes::{Notes, read_note},
    progress,
    verify::{CHECKPOINTS, RETAINED},
    walk::{HourFile, first_seq, hour_files},
};
use crate::error::{Error, Result};
use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

/// How often at most a trail is read again that moved on while it was read.
pub(super) const READS_MAX: u32 = 8;
/// Retention that is removing files is waited for, so long and so often, as long as none goes; and so is the first checkpoint.
const WAIT: Duration = Duration::from_millis(50);
const WAITS_MAX: u32 = 100;

pub(super) struct Snapshot {
    node: PathBuf,
    /// Up to the end as it was.
    pub(super) notes: Notes,
    /// How many lines are durable, where somebody writes: what stands behind them may be cut off again.
    pub(super) durable: Option<u64>,
    /// What retention left.
    pub(super) retained: Option<Vec<u8>>,
    pub(super) files: Vec<HourFile>,
    /// Of the newest file, where nobody writes.
    newest: Option<(u64, SystemTime)>,
}

impl Snapshot {
    pub(super) fn take(node: &Path) -> Result<Self> {
        let failed = |error: io::Error| Error::Trail(format!("reading the trail {}: {error}", node.display()));
        if !node.is_dir() {
            return Err(Error::NotFound(format!("a trail in {}", node.display())));
        }
        let mut waits = 0;
        let (notes, durable) = loop {
            let notes = Notes::open(&node.join(CHECKPOINTS)).map_err(failed)?;
            let durable = durable(node);
            // The first checkpoint is just being signed.
            if !notes.is_empty() || durable.is_none_or(|durable| durable == 0) || waits == WAITS_MAX {
                break (notes, durable);
            }
            waits += 1;
            thread::sleep(WAIT);
        };
        let (mut first, mut waits) = (None, 0);
        let (retained, files) = loop {
            let retained = read_note(&node.join(RETAINED)).map_err(failed)?;
            let files = hour_files(node)?;
            // Without a writer nobody removes what was left.
            let is_going = durable.is_some() && is_gone(node, retained.as_deref(), files.first());
            if !is_going || waits == WAITS_MAX {
                break (retained, files);
            }
            waits = if first.as_ref() == files.first() { waits + 1 } else { 0 };
            first = files.first().cloned();
            thread::sleep(WAIT);
        };
        let newest = newest(node, durable, &files);
        Ok(Self { node: node.to_owned(), notes, durable, retained, files, newest })
    }

    /// Whether what is there now is not all that was there then: what is wrong with what was read may come of that.
    pub(super) fn has_moved(&self) -> Result<bool> {
        let failed = |error: io::Error| Error::Trail(format!("reading the trail {}: {error}", self.node.display()));
        let hours = |files: &[HourFile]| files.iter().map(|file| file.hour.clone()).collect::<Vec<_>>();
        let durable = durable(&self.node);
        let files = hour_files(&self.node)?;
        Ok(durable.is_some() != self.durable.is_some()
            || hours(&files) != hours(&self.files)
            || newest(&self.node, durable, &files) != self.newest
            || read_note(&self.node.join(RETAINED)).map_err(failed)? != self.retained)
    }
}

/// Where that cannot be asked, as of a copy that one may not lock, it is read as one that nobody writes.
fn durable(node: &Path) -> Option<u64> {
    progress::ask(node).unwrap_or_default()
}

fn newest(node: &Path, durable: Option<u64>, files: &[HourFile]) -> Option<(u64, SystemTime)> {
    let there = fs::metadata(node.join(files.last().filter(|_| durable.is_none())?.name())).ok()?;
    Some((there.len(), there.modified().ok()?))
}

/// Whether the first file is one that retention removes.
fn is_gone(node: &Path, retained: Option<&[u8]>, first: Option<&HourFile>) -> bool {
    let retained = retained.and_then(|bytes| Retained::of(&Note::parse(bytes).ok()?).ok());
    retained.is_some_and(|retained| first_seq(node, first).is_some_and(|first| first < retained.frontier.size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_whose_writer_cannot_be_asked_for_is_read_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        // It leads to itself, so that nobody can open it.
        std::os::unix::fs::symlink("lock", folder.path().join(progress::LOCK)).unwrap();
        let trail = Snapshot::take(folder.path()).unwrap();
        assert_eq!((trail.durable, trail.has_moved().unwrap()), (None, false));
    }
}
