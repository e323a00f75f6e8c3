//! What a start finds: the tree over the lines that are there, up to a checkpoint that was signed and beyond.
//!
//! Nothing is signed over lines that were changed while nobody wrote: the tree has to go through the newest checkpoint, of those that are
//! in the directory and the one in the key store.

use super::{disk::Disk, scribe::Found};
use crate::{
    audit::{
        checkpoint::{Checkpoint, Retained},
        line::Time,
        note::{NOTE_BYTES_MAX, Note},
        notes::read_note,
        tally::{Group, Tally},
        tree::{Frontier, leaf_hash},
        walk::{Head, HourFile, Step, Walk, hour_files},
    },
    error::{Corrupt, Error, Result},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The last checkpoint that is whole stands in so many bytes, at the end of all.
const NOTES_END_BYTES: usize = 64 * 1024;
/// In a node's directory: what stands in the place of lines that retention removed.
pub(in crate::audit) const RETAINED: &str = "retained";
/// By which a line is found that may be a tally.
const TALLY_MARK: &str = "\"operation\":\"Tally\"";

/// Takes the last checkpoint that is whole off the end of the notes; what a crash tore behind it is cut off.
pub(super) fn last_note(disk: &mut Disk) -> Result<Option<Note>> {
    let failed = |error: io::Error| Error::Trail(format!("checkpoints: {error}; see to the disk"));
    let bytes = disk.notes_end(NOTES_END_BYTES).map_err(failed)?;
    // A note is a text, an empty line, signatures, and behind it an empty line: so each ends with the second of two.
    let ends: Vec<_> = bytes.windows(2).enumerate().filter(|(_, pair)| pair == b"\n\n").map(|(at, _)| at + 1).collect();
    for (place, end) in ends.iter().enumerate().rev() {
        // Its first line stands behind the empty line of the note before. What was read may begin anywhere, within a letter too.
        let begin = place.checked_sub(2).and_then(|before| ends.get(before)).map_or(0, |before| before + 1);
        let Some(note) = bytes.get(begin..*end).and_then(|note| Note::parse(note).ok()) else { continue };
        if Checkpoint::of(&note).is_err() {
            continue;
        }
        disk.cut_notes((bytes.len() - end - 1) as u64).map_err(failed)?;
        return Ok(Some(note));
    }
    match bytes.len() {
        0 => Ok(None),
        NOTES_END_BYTES => Err(changed("checkpoints", "no checkpoint is whole in its last 64 KiB")),
        torn => {
            disk.cut_notes(torn as u64).map_err(failed)?;
            Ok(None)
        }
    }
}

/// What retention left, if it removed something.
pub(in crate::audit) fn retained_note(node: &Path) -> Result<Option<Note>> {
    let path = node.join(RETAINED);
    let failed = |error: io::Error| Error::Trail(format!("{}: {error}; see to the disk", path.display()));
    let Some(bytes) = read_note(&path).map_err(failed)? else { return Ok(None) };
    if bytes.len() > NOTE_BYTES_MAX {
        return Err(changed(RETAINED, "it has more than 16 KiB"));
    }
    Note::parse(&bytes).map(Some)
}

fn changed(place: impl std::fmt::Display, what: &str) -> Error {
    Corrupt::Record {
        record: format!("{place} of the trail"),
        what: format!(
            "{what}: somebody changed the trail while nobody wrote it, and it is left as it is: see `keyleash audit verify`, and put it \
             back from a copy, or move it away and begin another under another audit.node"
        ),
    }
    .into()
}

/// Where reading begins.
struct Begin {
    /// Of the files.
    file: usize,
    /// The line's number in it, from 1; 0 for its first one, where that is no tally.
    line: u64,
}

/// Reads the lines from the last tally on that is not behind the `anchor`, the newest checkpoint, and goes on where they end.
pub(super) fn recover(mut disk: Disk, anchor: Option<&Checkpoint>, retained: Option<Retained>) -> Result<Found> {
    let node: PathBuf = disk.node().to_owned();
    let mut files = hour_files(&node)?;
    // Begun, and nothing written to it before a crash.
    while let Some(newest) = files.pop() {
        let path = node.join(newest.name());
        let failed = |error: io::Error| Error::Trail(format!("{}: {error}; see to the disk", path.display()));
        if fs::metadata(&path).map_err(failed)?.len() > 0 || files.is_empty() {
            files.push(newest);
            break;
        }
        fs::remove_file(&path).map_err(failed)?;
    }
    let begin = find_begin(&node, &files, anchor)?;
    let mut frontier = retained.map_or_else(Frontier::new, |retained| retained.frontier);
    let mut group = Group::new(frontier.size(), None);
    let is_at = |frontier: &Frontier| anchor.is_some_and(|anchor| anchor.size == frontier.size());
    let is_right = |frontier: &Frontier| anchor.is_none_or(|anchor| anchor.root == frontier.root());
    let mut torn = 0;
    let mut walk = Walk::of(&node, files.get(begin.file..).unwrap_or_default().to_vec());
    let mut is_first = true;
    let mut is_anchored = anchor.is_none();
    loop {
        match walk.step() {
            Step::Line if is_first && walk.place().line < begin.line && walk.files_begun() == 1 => continue,
            Step::Line => {}
            Step::Torn(bytes) if walk.is_last_file() => {
                torn = bytes;
                continue;
            }
            Step::End => break,
            Step::Torn(_) => return Err(changed(walk.place(), "a file ends within a line")),
            Step::TooLong => return Err(changed(walk.place(), "a line is too long")),
            Step::Unreadable(why) => return Err(Error::Trail(format!("{}: {why}; see to the disk", walk.place()))),
        }
        let Some(head) = Head::parse(walk.line()) else {
            return Err(changed(walk.place(), "it is no line of a trail"));
        };
        if is_first && begin.line > 0 {
            let tally = Tally::parse(walk.line());
            frontier = tally.ok_or_else(|| changed(walk.place(), "it is no tally"))?.frontier;
        }
        if is_first && is_at(&frontier) {
            is_anchored = true;
            if !is_right(&frontier) {
                return Err(changed(walk.place(), "the lines in front of it are not those that were signed"));
            }
        }
        is_first = false;
        // Files that retention was about to remove are as good as gone.
        if begin.line == 0 && head.seq < frontier.size() && group.lines() == 0 {
            is_first = true;
            continue;
        }
        if head.seq != frontier.size() {
            return Err(changed(walk.place(), &format!("line {} should be {}", head.seq, frontier.size())));
        }
        let leaf = leaf_hash(walk.line());
        frontier.append(leaf);
        if head.is_tally() {
            let time = Time::parse(&head.time).ok_or_else(|| changed(walk.place(), "its time is none"))?;
            group = Group::new(frontier.size(), Some(time));
        } else {
            group.add(head.account(), &leaf);
        }
        if is_at(&frontier) {
            is_anchored = true;
            if !is_right(&frontier) {
                return Err(changed(walk.place(), "it, or a line in front of it, is not as it was signed"));
            }
        }
    }
    let size = anchor.map_or(0, |anchor| anchor.size);
    let is_whole = is_anchored || size == frontier.size() && is_right(&frontier);
    if !is_whole {
        let what = format!("a checkpoint tells of {size} lines, and {} are there", frontier.size());
        return Err(changed(node.display(), &what));
    }
    if let Some(newest) = files.last() {
        if newest.is_compressed {
            return Err(Error::Misconfigured(format!(
                "{}: the newest file of the trail was compressed by hand, and is written on: uncompress it with gunzip",
                node.join(newest.name()).display()
            )));
        }
        let failed = |error: io::Error| {
            Error::Trail(format!("{}: {error}; see to the disk", node.join(newest.name()).display()))
        };
        disk.go_on(&newest.hour, torn).map_err(failed)?;
    }
    if anchor.is_none() && frontier.size() > 0 {
        tracing::warn!(
            lines = frontier.size(),
            "the trail in {} has lines and no checkpoint: a crash before its first one?",
            node.display()
        );
    }
    Ok(Found { disk, frontier, group, checkpointed: size })
}

/// The last tally that is not behind the anchor; where there is none, the first line of all.
fn find_begin(node: &Path, files: &[HourFile], anchor: Option<&Checkpoint>) -> Result<Begin> {
    for (file, of) in files.iter().enumerate().rev() {
        let mut walk = Walk::of(node, vec![of.clone()]);
        let mut found = None;
        loop {
            match walk.step() {
                Step::Line => {
                    let is_marked = std::str::from_utf8(walk.line()).is_ok_and(|line| line.contains(TALLY_MARK));
                    if is_marked
                        && Head::parse(walk.line())
                            .is_some_and(|head| head.is_tally() && anchor.is_none_or(|anchor| head.seq <= anchor.size))
                    {
                        found = Some(walk.place().line);
                    }
                }
                Step::End => break,
                _ => {}
            }
        }
        if let Some(line) = found {
            return Ok(Begin { file, line });
        }
    }
    Ok(Begin { file: 0, line: 0 })
}
