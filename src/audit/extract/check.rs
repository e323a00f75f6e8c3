//! Whether an extract proves what it shows.

use super::row::{Header, ROW_BYTES_MAX, Row};
use crate::{
    audit::{
        checkpoint::Checkpoint,
        line::Time,
        note::Note,
        tally::{Beside, GROUP_LINES_MAX, Tally},
        tree::{Hash, leaf_hash, verify_consistency, verify_inclusion},
        vkey::Keys,
        walk::Head,
    },
    error::{Corrupt, Error, Result},
    name::AccountId,
};
use std::io::{BufRead, Read};

/// By what an extract is judged. What is not said here is taken as the extract says it.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Asked {
    /// The keys that sign the trail's checkpoints.
    pub keys: Keys,
    /// Whose lines it is to show.
    pub account: Option<AccountId>,
    /// From when on.
    pub from: Option<Time>,
    /// Up to when.
    pub to: Option<Time>,
    /// Checkpoints from before that it has to go on from.
    pub since: Vec<Checkpoint>,
}

impl Asked {
    /// By keys alone.
    pub fn by(keys: Keys) -> Self {
        Self { keys, ..Self::default() }
    }
}

/// What an extract is found to show.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shown {
    /// Whose trail it is of.
    pub origin: String,
    /// Whose lines.
    pub account: String,
    /// How many lines.
    pub lines: u64,
    /// From when on none was left out; `None` from the trail's beginning.
    pub from: Option<Time>,
    /// Up to when.
    pub to: Time,
    /// The numbers of the trail between which none was left out.
    pub span: std::ops::Range<u64>,
    /// The newest checkpoint, to be kept: what is asked for next time can go on from it.
    pub checkpoint: Checkpoint,
}

fn wrong(what: impl Into<String>) -> Error {
    Error::Corrupt(Corrupt::Extract(what.into()))
}

/// Verifies an extract. `each` gets its lines, in order, while it is read: they count only once this has returned without an error.
///
/// # Errors
/// [`Error::Corrupt`] where it does not prove what it shows; [`Error::Invalid`] where it is of another account or span than what is asked,
/// or it takes the token to tell; [`Error::Trail`] where it cannot be read.
pub fn verify_extract(reader: &mut dyn BufRead, asked: &Asked, each: &mut dyn FnMut(&str)) -> Result<Shown> {
    let mut check =
        Check { asked, header: None, checkpoints: Vec::new(), first: None, group: None, last: None, lines: 0 };
    let (mut row, mut number) = (Vec::new(), 0_u64);
    loop {
        row.clear();
        // A line, its break, and a byte by which one that is too long is known.
        let read = Read::take(&mut *reader, ROW_BYTES_MAX as u64 + 2).read_until(b'\n', &mut row);
        if read.map_err(|error| Error::Trail(format!("reading the extract: {error}")))? == 0 {
            break;
        }
        number += 1;
        let at = |error| match error {
            Error::Corrupt(Corrupt::Extract(what)) => wrong(format!("line {number}: {what}")),
            Error::Corrupt(other) => wrong(format!("line {number}: {other}")),
            error => error,
        };
        let whole = row.strip_suffix(b"\n").filter(|row| row.len() <= ROW_BYTES_MAX);
        let whole = whole.ok_or_else(|| at(wrong("it was cut off, or is too long")))?;
        Row::parse(whole).and_then(|row| check.row(row, each)).map_err(at)?;
    }
    check.end()
}

/// The group that is being read.
struct Open {
    tally: Tally,
    beside: Beside,
    lines: Vec<Hash>,
    /// Number of the last line.
    seq: Option<u64>,
}

struct Check<'a> {
    asked: &'a Asked,
    header: Option<Header>,
    checkpoints: Vec<Checkpoint>,
    first: Option<Tally>,
    group: Option<Open>,
    /// The tally of the group before.
    last: Option<Tally>,
    lines: u64,
}

impl Check<'_> {
    fn row(&mut self, row: Row, each: &mut dyn FnMut(&str)) -> Result<()> {
        match row {
            Row::Header(header) if self.header.is_none() => self.begin(header),
            Row::Checkpoint { note, consistency } if self.first.is_none() => self.checkpoint(&note, &consistency),
            Row::Tally { seq, line, proof, beside } => self.tally(seq, &line, &proof, beside),
            Row::Line { seq, line, proof } => {
                self.line(seq, &line, &proof)?;
                each(&line);
                Ok(())
            }
            Row::Header(_) | Row::Checkpoint { .. } => Err(wrong("it stands in the wrong place")),
        }
    }

    fn begin(&mut self, header: Header) -> Result<()> {
        let account = AccountId::new(&header.account).map_err(|_| wrong("it names no account"))?;
        if let Some(asked) = self.asked.account.as_ref().filter(|asked| **asked != account) {
            return Err(Error::Invalid(format!("it is an extract of account {account}, not of {asked}")));
        }
        self.header = Some(header);
        Ok(())
    }

    fn checkpoint(&mut self, note: &str, consistency: &[Hash]) -> Result<()> {
        let note = Note::parse(note.as_bytes())?;
        note.verify(&self.asked.keys)?;
        let (next, header) = (Checkpoint::of(&note)?, self.header.as_ref());
        let of_key = |name: &str| next.origin.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
        if header.is_none_or(|header| header.origin != next.origin)
            || !self.asked.keys.iter().any(|key| of_key(key.name()))
        {
            return Err(wrong(format!("it is a checkpoint of another trail, {}", next.origin)));
        }
        let goes_on = match self.checkpoints.last() {
            Some(last) => verify_consistency(last.size, &last.root, next.size, &next.root, consistency),
            None => consistency.is_empty(),
        };
        if !goes_on {
            return Err(wrong("this checkpoint does not go on from the one before"));
        }
        self.checkpoints.push(next);
        Ok(())
    }

    /// That a line is in the tree, at its number.
    fn is_in(&self, seq: u64, line: &str, proof: &[Hash]) -> Result<Hash> {
        let leaf = leaf_hash(line.as_bytes());
        let newest = self.checkpoints.last().ok_or_else(|| wrong("no checkpoint stands in front of it"))?;
        if !verify_inclusion(seq, newest.size, &leaf, proof, &newest.root) {
            return Err(wrong(format!("it is not line {seq} of the trail")));
        }
        Ok(leaf)
    }

    fn tally(&mut self, seq: u64, line: &str, proof: &[Hash], beside: Beside) -> Result<()> {
        self.close_group()?;
        self.is_in(seq, line, proof)?;
        let tally = Tally::parse(line.as_bytes()).filter(|tally| tally.seq == seq && tally.first < seq);
        let tally = tally.ok_or_else(|| wrong("it is no tally"))?;
        let follows = match &self.last {
            Some(last) => tally.first == last.seq + 1 && tally.since == Some(last.time),
            None => tally.since.is_some() || tally.first == 0,
        };
        if !follows || seq - tally.first > GROUP_LINES_MAX {
            return Err(wrong(format!("the lines in front of number {} were left out, with their tally", tally.first)));
        }
        self.first.get_or_insert_with(|| tally.clone());
        self.group = Some(Open { tally, beside, lines: Vec::new(), seq: None });
        Ok(())
    }

    fn line(&mut self, seq: u64, line: &str, proof: &[Hash]) -> Result<()> {
        let leaf = self.is_in(seq, line, proof)?;
        let account = self.header.as_ref().map(|header| &*header.account);
        let head = Head::parse(line.as_bytes())
            .filter(|head| head.seq == seq && head.account() == account && !head.is_tally());
        head.ok_or_else(|| wrong("it is no line of this account"))?;
        let Some(group) = &mut self.group else { return Err(wrong("no tally stands in front of it")) };
        let is_next = group.seq.is_none_or(|last| last < seq) && (group.tally.first..group.tally.seq).contains(&seq);
        if !is_next {
            return Err(wrong("it is not of the group of lines that it stands in"));
        }
        group.lines.push(leaf);
        group.seq = Some(seq);
        self.lines += 1;
        Ok(())
    }

    /// That a group has all lines of the account.
    fn close_group(&mut self) -> Result<()> {
        let Some(Open { tally, beside, lines, .. }) = self.group.take() else { return Ok(()) };
        let account = self.header.as_ref().map(|header| &*header.account).unwrap_or_default();
        if !tally.tells_of(account, &lines, &beside) {
            let (first, last) = (tally.first, tally.seq.saturating_sub(1));
            return Err(wrong(format!(
                "of the account's lines between number {first} and {last} some were left out or added"
            )));
        }
        self.last = Some(tally);
        Ok(())
    }

    fn end(mut self) -> Result<Shown> {
        self.close_group()?;
        let (Some(header), Some(first), Some(last)) = (self.header, self.first, self.last) else {
            return Err(wrong("it shows nothing: no tally is in it"));
        };
        let Some(checkpoint) = self.checkpoints.last().cloned() else { return Err(wrong("no checkpoint is in it")) };
        let missing =
            |what: String| Err(Error::Invalid(format!("the extract does not show what is asked for: {what}")));
        let from = self.asked.from.or(header.from);
        if first.since.is_some_and(|since| from.is_none_or(|from| since > from)) {
            let from = from.map_or_else(|| "the trail's beginning".into(), |from| from.to_string());
            return missing(format!("it begins behind {from}"));
        }
        let to = self.asked.to.unwrap_or(header.to);
        if to > last.time {
            return missing(format!("it ends at {}, before {to}", last.time));
        }
        for since in &self.asked.since {
            if !self.checkpoints.iter().any(|there| (there.size, there.root) == (since.size, since.root)) {
                return missing(format!("that the trail goes on from your checkpoint of {} lines", since.size));
            }
        }
        Ok(Shown {
            origin: header.origin,
            account: header.account,
            lines: self.lines,
            from: first.since,
            to: last.time,
            span: first.first..last.seq,
            checkpoint,
        })
    }
}
