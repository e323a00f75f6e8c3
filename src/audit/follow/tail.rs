//! The lines of one node behind the one that was acknowledged last, as far as they are durable.

use super::{Event, cursor::At};
use crate::{
    audit::{
        checkpoint::Retained,
        line::{LINE_BYTES_MAX, Time},
        progress,
        tree::leaf_hash,
        walk::{Head, HourFile, Source, first_seq, hour_files, hour_files_from},
        writer::retained_note,
    },
    error::Result,
    name::NodeName,
};
use std::{
    collections::VecDeque,
    fs,
    io::{self, BufRead, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// About so many bytes of a node are held.
const HELD_BYTES: usize = 256 * 1024;

/// Why a node that was there does not go on.
pub(super) const GONE: &str =
    "its directory is gone: put it back, or take the node out of the cursor's file while nobody follows by it";

/// Why a node does not go on, in words.
type Trouble = String;

/// What may be read: what may not be cut off again.
#[derive(Debug)]
enum Bound {
    /// Somebody writes, and so many lines are durable.
    Lines(u64),
    /// Nobody does: all files, and of this hour's so many bytes.
    Bytes(Option<(String, u64)>),
}

/// A file that is being read.
struct Open {
    file: HourFile,
    source: Source,
    /// Behind the last whole line that was taken.
    offset: u64,
    /// The line behind that, where it was read already.
    held: Option<Vec<u8>>,
}

pub(super) struct Tail {
    name: NodeName,
    folder: PathBuf,
    /// Behind what was read; `None` where it begins with what is there.
    at: Option<At>,
    open: Option<Open>,
    events: VecDeque<Event>,
    /// Goes on behind what retention removed.
    skips_removed: bool,
    trouble: Option<Trouble>,
}

/// The line that comes next of a file, if there is one.
enum Next {
    Line(Vec<u8>),
    /// None yet, or none any more.
    None,
}

impl Tail {
    pub(super) fn new(name: NodeName, folder: PathBuf, at: Option<At>, skips_removed: bool) -> Self {
        Self { name, folder, at, open: None, events: VecDeque::new(), skips_removed, trouble: None }
    }

    /// Why it does not go on.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(super) fn first(&self) -> Option<&Event> {
        self.events.front()
    }

    pub(super) fn take(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Reads on, where nothing is held.
    pub(super) fn fill(&mut self) {
        if !self.events.is_empty() {
            return;
        }
        // Twice: a folder may be removed, or a file compressed, while they are looked through.
        for _ in 0..2 {
            self.trouble = self.read_on().err().map(|Stop(what)| what);
            if self.trouble.is_none() {
                return;
            }
            self.open = None;
        }
    }

    fn read_on(&mut self) -> Result<(), Stop> {
        // A file that is open is read on wherever it was moved to, and nothing comes any more.
        if !self.folder.try_exists()? {
            return Err(Stop(GONE.to_owned()));
        }
        let bound = self.bound()?;
        match (&self.open, self.at, &bound) {
            (Some(_), Some(At { next, .. }), Bound::Lines(durable)) if next >= *durable => return Ok(()),
            (Some(_), ..) => {}
            (None, ..) => self.find()?,
        }
        self.read(&bound)
    }

    fn bound(&self) -> io::Result<Bound> {
        if let Some(lines) = progress::ask(&self.folder)? {
            return Ok(Bound::Lines(lines));
        }
        let hour = self.open.as_ref().map_or("", |open| &open.file.hour);
        // What was there before nobody wrote stays: so that is asked again.
        let newest = hour_files_from(&self.folder, hour).map_err(io::Error::other)?.pop();
        let newest = match newest {
            Some(file) => match fs::metadata(self.folder.join(file.name())) {
                Ok(there) => Some((file.hour, if file.is_compressed { u64::MAX } else { there.len() })),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None, // it was just compressed
                Err(error) => return Err(error),
            },
            None => None,
        };
        Ok(match progress::ask(&self.folder)? {
            Some(lines) => Bound::Lines(lines),
            None => Bound::Bytes(newest),
        })
    }

    /// Finds the place in the files.
    fn find(&mut self) -> Result<(), Stop> {
        let files = hour_files(&self.folder).map_err(io::Error::other)?;
        let there = first_seq(&self.folder, files.first());
        let at = match (self.at, there) {
            (None, None) => return Ok(()), // no line yet
            (None, Some(first)) => At { next: first, leaf: None },
            (Some(At { next: 0, .. }), None) => return Ok(()),
            (Some(At { next, .. }), None) => return Err(self.cut(next, 0)),
            (Some(at), Some(first)) if first > at.next => self.behind_gap(at.next, first)?,
            (Some(at), Some(_)) => at,
        };
        // The file of the line before it, by which it is seen that it is the trail that was read before; its own where that is gone.
        let before = if at.leaf.is_some() && there < Some(at.next) { at.next - 1 } else { at.next };
        let place =
            files.partition_point(|file| first_seq(&self.folder, Some(file)).is_some_and(|first| first <= before));
        let Some(place) = place.checked_sub(1) else { return Err(self.cut(at.next, 0)) };
        let Some(file) = files.get(place) else { return Err(self.cut(at.next, 0)) };
        self.at = Some(at);
        let mut open = self.open(file)?;
        let mut seen = None;
        while seen.map_or(0, |seq| seq + 1) < at.next {
            let Next::Line(line) = open.next()? else { break };
            let seq = self.head(&line)?.0;
            if seq >= at.next {
                // The file begins with it.
                open.back(line);
                break;
            }
            if seq + 1 == at.next && at.leaf.is_some_and(|leaf| leaf != leaf_hash(&line)) {
                return Err(Stop(format!(
                    "line {seq} is not the one that was delivered: the trail was changed, or another was begun under its name; see \
                     `keyleash audit verify`, and follow the new one by a new cursor"
                )));
            }
            seen = Some(seq);
        }
        let is_newest = place + 1 == files.len();
        match seen {
            // What was delivered is not there any more, and nothing behind it.
            Some(seq) if seq + 1 < at.next && is_newest => return Err(self.cut(at.next, seq + 1)),
            _ => {}
        }
        self.open = Some(open);
        Ok(())
    }

    /// The file, at its beginning.
    fn open(&self, file: &HourFile) -> Result<Open, Stop> {
        let mut file = file.clone();
        let source = Source::open(&self.folder, &mut file)?;
        Ok(Open { file, source, offset: 0, held: None })
    }

    fn read(&mut self, bound: &Bound) -> Result<(), Stop> {
        let (mut held, mut is_synced) = (0, false);
        while held < HELD_BYTES {
            let (Some(open), Some(at)) = (&mut self.open, self.at) else { return Ok(()) };
            match bound {
                Bound::Lines(durable) if at.next < *durable => {}
                Bound::Bytes(Some((newest, _))) if open.file.hour < *newest => {}
                Bound::Bytes(Some((_, bytes))) if open.offset < *bytes => {
                    // What a writer left that was killed is on the disk before it is told to anybody.
                    if let (Source::Plain(file), false) = (&open.source, is_synced) {
                        file.get_ref().sync_data()?;
                        is_synced = true;
                    }
                }
                _ => break,
            }
            let Next::Line(line) = open.next()? else {
                if self.turn()? {
                    continue;
                }
                break;
            };
            let (seq, time) = self.head(&line)?;
            if seq < at.next {
                return Err(Stop(format!(
                    "line {seq} stands where line {} should: see `keyleash audit verify`",
                    at.next
                )));
            }
            if seq > at.next {
                self.at = Some(self.behind_gap(at.next, seq)?);
            }
            held += line.len();
            self.at = Some(At { next: seq + 1, leaf: Some(leaf_hash(&line)) });
            self.events.push_back(Event { node: self.name.clone(), seq, time, line });
        }
        if let Some(open) = &mut self.open {
            // What is read ahead may be cut off, and other lines written in its place.
            open.forget()?;
        }
        Ok(())
    }

    /// To the file of the next hour, if there is one, or to that which took this one's place.
    fn turn(&mut self) -> Result<bool, Stop> {
        let Some(open) = &mut self.open else { return Ok(false) };
        let hour = open.file.hour.clone();
        let files = hour_files_from(&self.folder, &hour).map_err(io::Error::other)?;
        let Some(later) = files.into_iter().find(|file| file.hour > hour) else {
            // It was removed or moved under the writer's feet, which puts it back, or was empty and is begun anew.
            if open.is_replaced(&self.folder)? {
                self.open = None;
            }
            return Ok(false);
        };
        // Nothing is written to a file once a later one is there: what came before that is read now.
        if let Next::Line(line) = open.next()? {
            open.back(line);
            return Ok(true);
        }
        self.open = Some(self.open(&later)?);
        Ok(true)
    }

    fn head(&self, line: &[u8]) -> Result<(u64, Time), Stop> {
        let head = Head::parse(line).and_then(|head| Some((head.seq, Time::parse(&head.time)?)));
        head.ok_or_else(|| {
            let next = self.at.map_or(0, |at| at.next);
            Stop(format!("what should be line {next} is no line of a trail: see `keyleash audit verify`"))
        })
    }

    /// Lines from `next` on are not there, and `first` is: goes on behind them where they were removed and that is said to be well.
    fn behind_gap(&self, next: u64, first: u64) -> Result<At, Stop> {
        let lines =
            if first - next == 1 { format!("line {next} is") } else { format!("lines {next} to {} are", first - 1) };
        let retained = retained_note(&self.folder).ok().flatten().and_then(|note| Retained::of(&note).ok());
        let is_removed = retained.is_some_and(|retained| retained.frontier.size() >= first);
        if !is_removed {
            return Err(Stop(format!(
                "{lines} not there, and line {first} is: it goes on when they come (a copy that is not complete, a disk that is not \
                 mounted?); see `keyleash audit verify`"
            )));
        }
        if self.skips_removed {
            tracing::warn!("node {}: {lines} not delivered: retention removed them", self.name);
            return Ok(At { next: first, leaf: None });
        }
        Err(Stop(format!(
            "{lines} gone, and not delivered: retention removed them; to go on behind them, say so (--skip-removed), and give retention \
             more time"
        )))
    }

    fn cut(&self, next: u64, there: u64) -> Stop {
        Stop(format!(
            "{next} lines were delivered, and {there} are there: it was cut, or put back from before; see `keyleash audit verify`"
        ))
    }
}

/// Why reading stopped, in words.
struct Stop(Trouble);

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self(format!("{error}; it is read again"))
    }
}

impl Open {
    /// A whole line; what is torn, or just being written, is none.
    fn next(&mut self) -> Result<Next, Stop> {
        let line = match self.held.take() {
            Some(line) => line,
            None => {
                let mut line = Vec::new();
                self.source.reader().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line)?;
                if line.pop_if(|last| *last == b'\n').is_none() {
                    if line.len() > LINE_BYTES_MAX {
                        let file = self.file.name();
                        return Err(Stop(format!(
                            "{file}: a line has more than {LINE_BYTES_MAX} bytes: see `keyleash audit verify`"
                        )));
                    }
                    self.forget()?;
                    return Ok(Next::None);
                }
                line
            }
        };
        self.offset += line.len() as u64 + 1;
        Ok(Next::Line(line))
    }

    /// As before this line.
    fn back(&mut self, line: Vec<u8>) {
        self.offset -= line.len() as u64 + 1;
        self.held = Some(line);
    }

    /// Reads again what stands behind the last line that was taken.
    fn forget(&mut self) -> io::Result<()> {
        if let Source::Plain(reader) = &mut self.source {
            reader.seek(SeekFrom::Start(self.offset))?;
            self.held = None;
        }
        Ok(())
    }

    /// Whether another file stands in its place, or none, and it was not compressed.
    fn is_replaced(&self, folder: &Path) -> io::Result<bool> {
        let Source::Plain(reader) = &self.source else { return Ok(false) };
        let own = reader.get_ref().metadata()?;
        let place = |is_compressed| folder.join(HourFile { is_compressed, ..self.file.clone() }.name());
        match fs::metadata(place(false)) {
            Ok(there) => Ok((there.dev(), there.ino()) != (own.dev(), own.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(!place(true).exists()),
            Err(error) => Err(error),
        }
    }
}
