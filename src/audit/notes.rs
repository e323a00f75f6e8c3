//! The file `checkpoints`, note by note.

use super::{
    note::{DASH, NOTE_BYTES_MAX, Note},
    walk::open_file,
};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

/// What comes next in the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A note, of which nothing is verified yet.
    Note(Note),
    /// What is none.
    Malformed(String),
    /// The beginning of a note at the end of the file: a crash tore it, or it is just being written.
    Torn,
}

/// Lines up to an empty one, which is not among them.
#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    /// Number of its first line in the file.
    line: u64,
    /// Bytes in front of it.
    begin: u64,
    is_ended: bool,
    is_too_long: bool,
}

/// The notes of a file.
pub(super) struct Notes {
    reader: Option<BufReader<io::Take<File>>>,
    /// A block that was read too far.
    held: Option<Block>,
    /// Lines and bytes that were read.
    lines: u64,
    bytes: u64,
    /// The line that the last note begins with, and how many bytes stand in front of it.
    pub(super) line: u64,
    pub(super) begin: u64,
}

impl Notes {
    /// Of a file that may not be there, up to its end as it is now.
    pub(super) fn open(file: &Path) -> io::Result<Self> {
        match open_file(file) {
            Ok(file) => Self::of(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Self { reader: None, held: None, lines: 0, bytes: 0, line: 0, begin: 0 })
            }
            Err(error) => Err(error),
        }
    }

    /// Of this one, up to its end as it is now.
    pub(super) fn of(file: File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        let reader = Some(BufReader::new(file.take(bytes)));
        Ok(Self { reader, held: None, lines: 0, bytes: 0, line: 0, begin: 0 })
    }

    /// Whether nothing is left of it.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_none() && self.reader.as_ref().is_none_or(|reader| reader.get_ref().limit() == 0)
    }

    fn block(&mut self) -> io::Result<Option<Block>> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let Some(reader) = &mut self.reader else { return Ok(None) };
        let (line, begin) = (self.lines + 1, self.bytes);
        let mut block = Block { bytes: Vec::new(), line, begin, is_ended: false, is_too_long: false };
        let mut is_empty = true;
        loop {
            let from = block.bytes.len();
            // A piece of a line that is too long is as good as a line here.
            let read = reader.by_ref().take(NOTE_BYTES_MAX as u64).read_until(b'\n', &mut block.bytes)?;
            self.bytes += read as u64;
            let line = block.bytes.get(from..).unwrap_or_default();
            self.lines += u64::from(line.ends_with(b"\n"));
            if line == b"\n" {
                block.bytes.truncate(from);
                block.is_ended = true;
            }
            if read == 0 || block.is_ended {
                return Ok((block.is_ended || !is_empty).then_some(block));
            }
            is_empty = false;
            if block.bytes.len() > NOTE_BYTES_MAX {
                block.is_too_long = true;
                block.bytes.clear();
            }
        }
    }

    /// `None` at the end of the file.
    pub(super) fn next(&mut self) -> io::Result<Option<Next>> {
        let malformed = |what: &str| Ok(Some(Next::Malformed(what.to_owned())));
        let Some(text) = self.block()? else { return Ok(None) };
        (self.line, self.begin) = (text.line, text.begin);
        let is_signatures = |block: &Block| block.bytes.starts_with(DASH.as_bytes());
        if text.is_too_long || text.bytes.is_empty() {
            return malformed("no text of a note begins here");
        }
        // No text of ours has a signature in it: the empty line in front of that is none any more.
        if text.bytes.windows(DASH.len()).any(|there| there == DASH.as_bytes()) {
            return malformed("no empty line stands between text and signatures");
        }
        if !text.is_ended {
            return Ok(Some(Next::Torn));
        }
        let Some(signatures) = self.block()? else { return Ok(Some(Next::Torn)) };
        if !is_signatures(&signatures) && signatures.is_ended {
            self.held = Some(signatures);
            return malformed("the text of a note is not followed by signatures");
        }
        let last = signatures.bytes.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let begins = last.starts_with(DASH.as_bytes()) || DASH.as_bytes().starts_with(last);
        if !signatures.is_ended && !last.is_empty() && begins {
            return Ok(Some(Next::Torn));
        }
        match Note::parse(&[&text.bytes, &b"\n"[..], &signatures.bytes].concat()) {
            Ok(note) => Ok(Some(Next::Note(note))),
            Err(error) => malformed(&error.to_string()),
        }
    }
}

/// A file that is one note; `None` where it is not there.
pub(super) fn read_note(file: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match open_file(file) {
        Ok(file) => file.take(NOTE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map(|_| Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
