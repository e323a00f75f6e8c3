//! What is signed of a trail: how many lines it has and the root over them ([tlog-checkpoint](https://c2sp.org/tlog-checkpoint)), and what
//! stands in the place of lines that retention removed.

use super::{
    base64,
    note::{Note, is_key_name},
    tree::{Frontier, Hash, LEAVES_MAX},
};
use crate::error::{Corrupt, Error, Result};
use std::fmt::{self, Write as _};

/// What the name of every key of a trail, and so every origin, begins with.
const PREFIX: &str = "keyleash/";
/// What `retained` says behind the origin.
const RETAINED: &str = "/retained";
/// The extension line that says when, by the wall clock.
const TIME: &str = "time ";

/// The name of a store's signing key.
pub fn key_name(store: [u8; 8]) -> String {
    format!("{PREFIX}{:016x}", u64::from_be_bytes(store))
}

fn malformed(what: &str) -> Error {
    Error::Corrupt(Corrupt::Note(format!("it is no checkpoint: {what}")))
}

/// A number as a checkpoint has it: in decimal, and in one way alone.
fn number(line: Option<&str>, max: u64) -> Option<u64> {
    let line = line?;
    let number: u64 = line.parse().ok().filter(|number| *number <= max)?;
    (number.to_string() == line).then_some(number)
}

fn time(lines: &[&str]) -> Option<u64> {
    lines.iter().find_map(|line| number(line.strip_prefix(TIME), u64::MAX))
}

/// How many lines a trail has, and the root of the tree over them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checkpoint {
    /// Whose trail: `keyleash/STORE/NODE`.
    pub origin: String,
    /// How many lines.
    pub size: u64,
    /// The root over them.
    pub root: Hash,
    /// Seconds since 1970 when it was signed, by the signer's wall clock, where it says so.
    pub time: Option<u64>,
}

impl Checkpoint {
    /// One of now.
    pub fn new(origin: impl Into<String>, frontier: &Frontier, time: u64) -> Self {
        Self { origin: origin.into(), size: frontier.size(), root: frontier.root(), time: Some(time) }
    }

    /// The text that is signed.
    pub fn text(&self) -> String {
        self.to_string()
    }

    /// Reads a note's text. Whoever trusts it has verified the note.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it is none.
    pub fn of(note: &Note) -> Result<Self> {
        let lines: Vec<_> = note.text().lines().collect();
        let [origin, size, root, further @ ..] = &lines[..] else {
            return Err(malformed("it has three lines or more"));
        };
        if !is_key_name(origin) || further.iter().any(|line| line.is_empty()) {
            return Err(malformed("it begins with an origin, and no line is empty"));
        }
        let size = number(Some(size), LEAVES_MAX).ok_or_else(|| malformed("the second line is the number of lines"))?;
        let root = base64::decode_hash(root).ok_or_else(|| malformed("the third line is the root in base64"))?;
        Ok(Self { origin: (*origin).to_owned(), size, root, time: time(further) })
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, size, root, time } = self;
        writeln!(f, "{origin}\n{size}\n{}", base64::encode(root))?;
        time.map_or(Ok(()), |time| writeln!(f, "{TIME}{time}"))
    }
}

/// The tree over the lines that retention removed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retained {
    /// Whose trail.
    pub origin: String,
    /// The tree over what is gone: its size is the number of the first line that is there.
    pub frontier: Frontier,
    /// Seconds since 1970 when it was signed, by the signer's wall clock, where it says so.
    pub time: Option<u64>,
}

impl Retained {
    /// One of now.
    pub fn new(origin: impl Into<String>, frontier: Frontier, time: u64) -> Self {
        Self { origin: origin.into(), frontier, time: Some(time) }
    }

    /// The text that is signed.
    pub fn text(&self) -> String {
        let mut text = format!("{}{RETAINED}\n{}\n", self.origin, self.frontier.size());
        for hash in self.frontier.hashes() {
            text.push_str(&base64::encode(hash));
            text.push('\n');
        }
        if let Some(time) = self.time {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{TIME}{time}");
        }
        text
    }

    /// Reads a note's text. Whoever trusts it has verified the note.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it is none.
    pub fn of(note: &Note) -> Result<Self> {
        let wrong = || malformed("nor does it say what retention left");
        let lines: Vec<_> = note.text().lines().collect();
        let [origin, size, further @ ..] = &lines[..] else { return Err(wrong()) };
        let origin = origin.strip_suffix(RETAINED).filter(|origin| is_key_name(origin)).ok_or_else(wrong)?;
        let size = number(Some(size), LEAVES_MAX).ok_or_else(wrong)?;
        let count = usize::try_from(size.count_ones()).map_err(|_| wrong())?;
        let (hashes, further) = further.split_at_checked(count).ok_or_else(wrong)?;
        let hashes: Option<Vec<_>> = hashes.iter().map(|line| base64::decode_hash(line)).collect();
        let frontier = hashes.and_then(|hashes| Frontier::from_hashes(size, hashes)).ok_or_else(wrong)?;
        Ok(Self { origin: origin.to_owned(), frontier, time: time(further) })
    }
}
