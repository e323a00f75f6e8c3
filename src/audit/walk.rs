//! The way through the files of a trail, line by line and hour by hour, in memory that does not grow with it.

use super::line::{CATEGORY, LINE_BYTES_MAX, LINES_MAX, TALLY};
use crate::{
    error::{Error, Result},
    name::ACCOUNT_ID_BYTES_MAX,
};
use flate2::bufread::GzDecoder;
use serde::Deserialize;
use std::{
    borrow::Cow,
    cmp::Ordering,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read},
    ops::ControlFlow,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// What is read of a file at once, in bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// Characters of a line's time, and of the hour that it begins with.
const TIME_CHARS: usize = 24;
const HOUR_CHARS: usize = 13;
/// How a time is written: digits where there is a 0.
const TIME_FORM: &[u8; TIME_CHARS] = b"0000-00-00T00:00:00.000Z";

/// What verification needs of a line.
#[derive(Debug, Deserialize)]
pub(super) struct Head<'l> {
    pub(super) seq: u64,
    #[serde(borrow)]
    pub(super) time: Cow<'l, str>,
    #[serde(borrow)]
    category: Cow<'l, str>,
    #[serde(borrow)]
    pub(super) operation: Cow<'l, str>,
    #[serde(borrow)]
    account: Option<Text<'l>>,
}

/// Borrowed where there is nothing to unescape.
#[derive(Debug, Deserialize)]
struct Text<'l>(#[serde(borrow)] Cow<'l, str>);

impl<'l> Head<'l> {
    pub(super) fn parse(line: &'l [u8]) -> Option<Self> {
        // Of bytes each string would be looked at by itself.
        let head: Self = serde_json::from_str(std::str::from_utf8(line).ok()?).ok()?;
        let fits = head.account().is_none_or(|account| account.len() <= ACCOUNT_ID_BYTES_MAX);
        (fits && head.category == CATEGORY && hour_of(&head.time).is_some() && head.seq < LINES_MAX).then_some(head)
    }

    pub(super) fn account(&self) -> Option<&str> {
        self.account.as_ref().map(|account| &*account.0)
    }

    pub(super) fn is_tally(&self) -> bool {
        self.operation == TALLY
    }
}

/// The hour of a time that is written as lines have it; `None` of any other text.
pub(super) fn hour_of(time: &str) -> Option<&str> {
    let fits = |(is, form): (u8, &u8)| if *form == b'0' { is.is_ascii_digit() } else { is == *form };
    (time.len() == TIME_CHARS && time.bytes().zip(TIME_FORM).all(fits)).then(|| time.get(..HOUR_CHARS)).flatten()
}

/// The file of an hour of UTC.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HourFile {
    /// As times begin: `2026-11-26T01`.
    pub(super) hour: String,
    pub(super) is_compressed: bool,
}

impl HourFile {
    /// Of an hour that is written, or was not compressed yet.
    pub(super) fn plain(hour: &str) -> Self {
        Self { hour: hour.to_owned(), is_compressed: false }
    }

    /// Below the node's directory.
    pub(super) fn name(&self) -> String {
        let mut parts = self.hour.split(['-', 'T']);
        let mut part = || parts.next().unwrap_or_default();
        let (y, m, d, h) = (part(), part(), part(), part());
        format!("y={y}/m={m}/d={d}/h={h}/m=00/PT1H.json{}", if self.is_compressed { ".gz" } else { "" })
    }
}

/// The folders below `folder` that are called `prefix` and then so many digits, as those digits.
fn numbered(folder: &Path, prefix: &str, digits: usize) -> Result<Vec<String>> {
    let failed = |error: io::Error| Error::Trail(format!("reading the folder {}: {error}", folder.display()));
    let mut found = Vec::new();
    let entries = match fs::read_dir(folder) {
        // It was removed with all that was in it, since the folder above it was read.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
        let fits = |number: &&str| number.len() == digits && number.bytes().all(|byte| byte.is_ascii_digit());
        found.extend(number.filter(fits).map(str::to_owned));
    }
    Ok(found)
}

/// The files of all hours, in order.
pub(super) fn hour_files(node: &Path) -> Result<Vec<HourFile>> {
    hour_files_from(node, "")
}

/// The files of this hour, which is written as times begin, and of later ones, in order.
pub(super) fn hour_files_from(node: &Path, from: &str) -> Result<Vec<HourFile>> {
    let mut files = Vec::new();
    // What begins a time that is not before.
    let is_due = |begin: &str| begin >= from.get(..begin.len()).unwrap_or(from);
    for y in numbered(node, "y=", 4)?.into_iter().filter(|y| is_due(y)) {
        let year = node.join(format!("y={y}"));
        for m in numbered(&year, "m=", 2)?.into_iter().filter(|m| is_due(&format!("{y}-{m}"))) {
            let month = year.join(format!("m={m}"));
            for d in numbered(&month, "d=", 2)?.into_iter().filter(|d| is_due(&format!("{y}-{m}-{d}"))) {
                let day = month.join(format!("d={d}"));
                for h in numbered(&day, "h=", 2)? {
                    let hour = format!("{y}-{m}-{d}T{h}");
                    if !is_due(&hour) {
                        continue;
                    }
                    let file = |is_compressed| HourFile { hour: hour.clone(), is_compressed };
                    // Where both are there, the compressing was interrupted.
                    files.extend([false, true].map(file).into_iter().find(|file| node.join(file.name()).exists()));
                }
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Where in a trail: the file, below the node's directory, and the line in it, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: String,
    /// The line, from 1; 0 for the file as a whole.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{} line {line}", self.file),
        }
    }
}

/// Opens what is to be read of a trail, which is a regular file: opening a pipe that nobody writes to would take for ever, and so would reading
/// a device that has no end.
pub(super) fn open_file(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other(format!("{} is no regular file", path.display()))),
    }
}

/// An open file.
pub(super) enum Source {
    Plain(BufReader<File>),
    Compressed(Box<BufReader<GzDecoder<BufReader<File>>>>),
}

impl Source {
    pub(super) fn open(node: &Path, file: &mut HourFile) -> io::Result<Self> {
        let opened = match open_file(&node.join(file.name())) {
            // It was compressed since the folder was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !file.is_compressed => {
                file.is_compressed = true;
                open_file(&node.join(file.name()))?
            }
            opened => opened?,
        };
        let plain = BufReader::with_capacity(BUFFER_BYTES, opened);
        Ok(if file.is_compressed {
            Self::Compressed(Box::new(BufReader::with_capacity(BUFFER_BYTES, GzDecoder::new(plain))))
        } else {
            Self::Plain(plain)
        })
    }

    pub(super) fn reader(&mut self) -> &mut dyn BufRead {
        match self {
            Self::Plain(reader) => reader,
            Self::Compressed(reader) => reader,
        }
    }

    /// Whether something stands behind what was compressed.
    fn has_more(&mut self) -> io::Result<bool> {
        match self {
            Self::Plain(_) => Ok(false),
            Self::Compressed(reader) => Ok(!reader.get_mut().get_mut().fill_buf()?.is_empty()),
        }
    }
}

/// What comes next on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A line: [`Walk::line`].
    Line,
    /// A line of more than 16 KiB, which is none.
    TooLong,
    /// So many bytes at the end of a file without a line break behind them.
    Torn(u64),
    /// The rest of a file cannot be read, or what is behind its end belongs to nobody.
    Unreadable(String),
    /// There are no more files.
    End,
}

/// The way through the lines of a node's directory.
pub(super) struct Walk {
    node: PathBuf,
    files: Vec<HourFile>,
    /// How many of them were begun.
    begun: usize,
    source: Option<Source>,
    line: Vec<u8>,
    /// Of the line in its file, from 1.
    number: u64,
    /// Bytes that were read.
    pub(super) bytes: u64,
}

impl Walk {
    /// Finds the files.
    pub(super) fn new(node: &Path) -> Result<Self> {
        Ok(Self::of(node, hour_files(node)?))
    }

    /// The way through these of them.
    pub(super) fn of(node: &Path, files: Vec<HourFile>) -> Self {
        Self { node: node.to_owned(), files, begun: 0, source: None, line: Vec::new(), number: 0, bytes: 0 }
    }

    /// How many of its files it has come to.
    pub(super) const fn files_begun(&self) -> usize {
        self.begun
    }

    /// How many files there are.
    pub(super) fn files(&self) -> usize {
        self.files.len()
    }

    fn file(&self) -> Option<&HourFile> {
        self.files.get(self.begun.checked_sub(1)?)
    }

    /// The hour of the file that is being read.
    pub(super) fn hour(&self) -> &str {
        self.file().map_or("", |file| &file.hour)
    }

    /// Whether no other file follows.
    pub(super) fn is_last_file(&self) -> bool {
        self.begun == self.files.len()
    }

    /// Whether the line that was read last is the first of its file.
    pub(super) const fn is_first_line(&self) -> bool {
        self.number == 1
    }

    /// Where that is which was read last.
    pub(super) fn place(&self) -> Place {
        Place { file: self.file().map(HourFile::name).unwrap_or_default(), line: self.number }
    }

    /// The line that was read last, without its line break.
    pub(super) fn line(&self) -> &[u8] {
        self.line.strip_suffix(b"\n").unwrap_or(&self.line)
    }

    pub(super) fn step(&mut self) -> Step {
        loop {
            let Some(source) = &mut self.source else {
                let Some(file) = self.files.get_mut(self.begun) else { return Step::End };
                (self.begun, self.number) = (self.begun + 1, 0);
                match Source::open(&self.node, file) {
                    Ok(source) => self.source = Some(source),
                    // It was removed since the folder was read: as if it had been before. The numbers of the lines tell what is missing.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Step::Unreadable(error.to_string()),
                }
                continue;
            };
            self.line.clear();
            // A line, its break, and a byte by which one that is too long is known.
            let most = LINE_BYTES_MAX as u64 + 2;
            let read = source.reader().take(most).read_until(b'\n', &mut self.line);
            let ended = match read {
                Ok(0) => {
                    source.has_more().map(|has_more| has_more.then(|| "something stands behind its end".to_owned()))
                }
                Ok(_) if self.line.last() == Some(&b'\n') && self.line().len() <= LINE_BYTES_MAX => {
                    self.took();
                    return Step::Line;
                }
                Ok(read) if read as u64 == most || self.line.last() == Some(&b'\n') => match self.skip_line() {
                    Ok(()) => {
                        self.took();
                        return Step::TooLong;
                    }
                    Err(error) => Err(error),
                },
                Ok(read) => {
                    self.source = None;
                    self.number += 1;
                    return Step::Torn(read as u64);
                }
                Err(error) => Err(error),
            };
            self.source = None;
            match ended {
                Ok(None) => {}
                Ok(Some(what)) => return Step::Unreadable(what),
                Err(error) => return Step::Unreadable(error.to_string()),
            }
        }
    }

    fn took(&mut self) {
        self.number += 1;
        self.bytes += self.line.len() as u64;
    }

    /// To the end of a line that is too long.
    fn skip_line(&mut self) -> io::Result<()> {
        let Some(source) = &mut self.source else { return Ok(()) };
        if self.line.last() == Some(&b'\n') {
            return Ok(());
        }
        loop {
            let buffer = source.reader().fill_buf()?;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let (used, is_over) = (end.map_or(buffer.len(), |end| end + 1), end.is_some() || buffer.is_empty());
            source.reader().consume(used);
            if is_over {
                return Ok(());
            }
        }
    }
}

/// Number of the first line of a file; `None` where it has none.
pub(super) fn first_seq(folder: &Path, file: Option<&HourFile>) -> Option<u64> {
    let mut walk = Walk::of(folder, vec![file?.clone()]);
    (walk.step() == Step::Line).then(|| Head::parse(walk.line()).map(|head| head.seq)).flatten()
}

/// Whether lines of these times may stand in the file of this hour: the first is of the hour, and the others are not of a later one.
pub(super) fn belongs(time: &str, hour: &str, is_first: bool) -> bool {
    match hour_of(time).map(|of| of.cmp(hour)) {
        Some(Ordering::Equal) => true,
        Some(Ordering::Less) => !is_first,
        Some(Ordering::Greater) | None => false,
    }
}

/// Reads the lines of the trail in a node's directory, in order, with where each stands, for as long as `each` goes on. Blocks for as long
/// as that takes. It proves nothing: see [`verify`](super::verify()).
///
/// # Errors
/// [`Error::Trail`] where the directory, or a file, cannot be read.
pub fn read(node: &Path, each: &mut dyn FnMut(&[u8], &Place) -> ControlFlow<()>) -> Result<()> {
    let mut walk = Walk::new(node)?;
    loop {
        match walk.step() {
            Step::Line if each(walk.line(), &walk.place()).is_break() => return Ok(()),
            Step::Line | Step::TooLong | Step::Torn(_) => {}
            Step::Unreadable(why) => return Err(Error::Trail(format!("reading {}: {why}", walk.place()))),
            Step::End => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_utf_8_is_no_line_even_where_nobody_reads() {
        let known = br#"{"seq":0,"time":"2026-11-26T01:02:03.004Z","category":"AuditEvent","operation":"A","new":""#;
        let line = |byte: u8| [&known[..], &[byte], b"\"}"].concat();
        assert!(Head::parse(&line(b'a')).is_some());
        assert!(Head::parse(&line(0xff)).is_none());
    }
}
