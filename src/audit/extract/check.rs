//! Whether an extract proves what it shows.

use super::{
    earliest_behind, latest_before,
    row::{Header, ROW_BYTES_MAX, Row},
};
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
    name::{AccountId, NodeName},
};
use std::io::{BufRead, Read};

/// Most parts of an extract: one for each node.
const PARTS_MAX: usize = 16_384;

/// By what an extract is judged. What is not said here is taken as the extract says it.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Asked {
    /// The keys that sign the trail's checkpoints.
    pub keys: Keys,
    /// Whose lines it is to show.
    pub account: Option<AccountId>,
    /// The nodes whose trails it has to show. It may show others too.
    pub nodes: Vec<NodeName>,
    /// From when on: of `nodes`, or where none is named of all that it shows.
    pub from: Option<Time>,
    /// Up to when: of the same.
    pub to: Option<Time>,
    /// Checkpoints from before that it has to go on from, each of its own node.
    pub since: Vec<Checkpoint>,
}

impl Asked {
    /// By keys alone.
    pub fn by(keys: Keys) -> Self {
        Self { keys, ..Self::default() }
    }
}

/// What an extract is found to show of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shown {
    /// Whose trail it is of, as its checkpoints say.
    pub origin: String,
    /// The node.
    pub node: NodeName,
    /// Whose lines.
    pub account: String,
    /// How many lines.
    pub lines: u64,
    /// From when on none was left out; `None` from the trail's beginning. Ten seconds behind a tally, because lines may wait so long.
    pub from: Option<Time>,
    /// Up to when: ten seconds in front of a tally.
    pub to: Time,
    /// The numbers of the trail between which none was left out.
    pub span: std::ops::Range<u64>,
    /// The newest checkpoint, to be kept: what is asked for next time can go on from it.
    pub checkpoint: Checkpoint,
}

fn wrong(what: impl Into<String>) -> Error {
    Error::Corrupt(Corrupt::Extract(what.into()))
}

/// Verifies an extract, and gives what it shows of each node, in its order: no two of one node, all of one store and one account. `each`
/// gets its lines, with the node that wrote each, while it is read: they count only once this has returned without an error.
///
/// Of a node that is not in it, and not among [`Asked::nodes`], it says nothing.
///
/// # Errors
/// [`Error::Corrupt`] where it does not prove what it shows; [`Error::Invalid`] where it is of another account, or less is in it than what
/// is asked, or it takes the token to tell; [`Error::Trail`] where it cannot be read.
pub fn verify_extract(
    reader: &mut dyn BufRead,
    asked: &Asked,
    each: &mut dyn FnMut(&NodeName, &str),
) -> Result<Vec<Shown>> {
    let (mut parts, mut check, mut row, mut number) = (Parts::default(), None::<Check<'_>>, Vec::new(), 0_u64);
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
        match (Row::parse(whole).map_err(at)?, &mut check) {
            (Row::Header(header), check) => {
                if let Some(done) = check.take() {
                    parts.take(done).map_err(at)?;
                }
                *check = Some(Check::begin(asked, header).map_err(at)?);
            }
            (row, Some(check)) => check.row(row, each).map_err(at)?,
            (_, None) => return Err(at(wrong("it stands in the wrong place"))),
        }
    }
    parts.take(check.ok_or_else(|| wrong("it is empty"))?)?;
    parts.end(asked)
}

/// What was read to its end.
#[derive(Default)]
struct Parts {
    shown: Vec<Shown>,
    /// Of `Asked::since`, by their places there.
    gone_on_from: Vec<usize>,
}

impl Parts {
    fn take(&mut self, check: Check<'_>) -> Result<()> {
        let (shown, gone_on_from) = check.end()?;
        if let Some(first) = self.shown.first() {
            if first.account != shown.account {
                return Err(wrong(format!("it shows account {} and account {}", first.account, shown.account)));
            }
            // The same store's: the names of nodes are told apart within one.
            if store_of(&first.origin) != store_of(&shown.origin) {
                return Err(wrong(format!("{} and {} are not of one store", first.origin, shown.origin)));
            }
        }
        if self.shown.iter().any(|other| other.node == shown.node) {
            return Err(wrong(format!("node {} is shown twice", shown.node)));
        }
        if self.shown.len() == PARTS_MAX {
            return Err(wrong(format!("it shows more than {PARTS_MAX} nodes")));
        }
        self.shown.push(shown);
        self.gone_on_from.extend(gone_on_from);
        Ok(())
    }

    fn end(self, asked: &Asked) -> Result<Vec<Shown>> {
        let is_shown = |node: &NodeName| self.shown.iter().any(|shown| shown.node == *node);
        let missing: Vec<_> = asked.nodes.iter().filter(|node| !is_shown(node)).map(NodeName::as_str).collect();
        if !missing.is_empty() {
            let there: Vec<_> = self.shown.iter().map(|shown| shown.node.as_str()).collect();
            return Err(not_shown(format!("node {}; it shows {}", missing.join(", "), there.join(", "))));
        }
        for (at, since) in asked.since.iter().enumerate() {
            if !self.gone_on_from.contains(&at) {
                let Checkpoint { size, origin, .. } = since;
                return Err(not_shown(format!("that the trail {origin} goes on from your checkpoint of {size} lines")));
            }
        }
        Ok(self.shown)
    }
}

fn store_of(origin: &str) -> Option<&str> {
    origin.rsplit_once('/').map(|(store, _)| store)
}

fn not_shown(what: String) -> Error {
    Error::Invalid(format!("the extract does not show what is asked for: {what}"))
}

/// The group that is being read.
struct Open {
    tally: Tally,
    beside: Beside,
    lines: Vec<Hash>,
    /// Number of the last line.
    seq: Option<u64>,
}

/// One node's part of an extract.
struct Check<'a> {
    asked: &'a Asked,
    header: Header,
    node: NodeName,
    checkpoints: Vec<Checkpoint>,
    first: Option<Tally>,
    group: Option<Open>,
    /// The tally of the group before.
    last: Option<Tally>,
    lines: u64,
}

impl<'a> Check<'a> {
    fn begin(asked: &'a Asked, header: Header) -> Result<Self> {
        let account = AccountId::new(&header.account).map_err(|_| wrong("it names no account"))?;
        if let Some(asked) = asked.account.as_ref().filter(|asked| **asked != account) {
            return Err(Error::Invalid(format!("it is an extract of account {account}, not of {asked}")));
        }
        let of_key = |name: &str| NodeName::new(header.origin.strip_prefix(name)?.strip_prefix('/')?).ok();
        let node = asked.keys.iter().find_map(|key| of_key(key.name()));
        let node = node.ok_or_else(|| wrong(format!("it is of another trail, {}", header.origin)))?;
        let (checkpoints, first, group, last, lines) = (Vec::new(), None, None, None, 0);
        Ok(Self { asked, header, node, checkpoints, first, group, last, lines })
    }

    fn row(&mut self, row: Row, each: &mut dyn FnMut(&NodeName, &str)) -> Result<()> {
        match row {
            Row::Checkpoint { note, consistency } if self.first.is_none() => self.checkpoint(&note, &consistency),
            Row::Tally { seq, line, proof, beside } => self.tally(seq, &line, &proof, beside),
            Row::Line { seq, line, proof } => {
                self.line(seq, &line, &proof)?;
                each(&self.node, &line);
                Ok(())
            }
            Row::Header(_) | Row::Checkpoint { .. } => Err(wrong("it stands in the wrong place")),
        }
    }

    fn checkpoint(&mut self, note: &str, consistency: &[Hash]) -> Result<()> {
        let note = Note::parse(note.as_bytes())?;
        note.verify(&self.asked.keys)?;
        let next = Checkpoint::of(&note)?;
        if self.header.origin != next.origin {
            return Err(wrong(format!("it is a checkpoint of another trail, {}", next.origin)));
        }
        let goes_on = match self.checkpoints.last() {
            Some(last) => verify_consistency(last.size, &last.root, next.size, &next.root, consistency),
            None => consistency.is_empty(),
        };
        if !goes_on {
            return Err(wrong("this checkpoint does not go on from the one before"));
        }
        // Of two of as many lines one is enough: so there are no more than were signed.
        self.checkpoints.pop_if(|last| last.size == next.size);
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
        let account = Some(&*self.header.account);
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
        if !tally.tells_of(&self.header.account, &lines, &beside) {
            let (first, last) = (tally.first, tally.seq.saturating_sub(1));
            return Err(wrong(format!(
                "of the account's lines between number {first} and {last} some were left out or added"
            )));
        }
        self.last = Some(tally);
        Ok(())
    }

    /// What it shows, and which checkpoints from before it goes on from.
    fn end(mut self) -> Result<(Shown, Vec<usize>)> {
        self.close_group()?;
        let Self { asked, header, node, .. } = self;
        let (Some(first), Some(last)) = (self.first, self.last) else {
            return Err(wrong(format!("it shows nothing of node {node}: no tally is in it")));
        };
        let newest = self.checkpoints.last().cloned();
        let checkpoint = newest.ok_or_else(|| wrong(format!("no checkpoint of node {node} is in it")))?;
        let is_asked_for = asked.nodes.is_empty() || asked.nodes.contains(&node);
        let missing = |what: String| {
            let remedy = if asked.nodes.is_empty() { "; ask it of those nodes alone that have to show it" } else { "" };
            Err(not_shown(format!("of node {node} {what}{remedy}")))
        };
        let (begin, end) = (first.since.map(earliest_behind), latest_before(last.time));
        let [asked_from, asked_to] = [asked.from, asked.to].map(|asked| asked.filter(|_| is_asked_for));
        let from = asked_from.or(header.from);
        if begin.is_some_and(|begin| from.is_none_or(|from| begin > from)) {
            let from = from.map_or_else(|| "the trail's beginning".into(), |from| from.to_string());
            return missing(format!("it begins behind {from}"));
        }
        // Of what begins behind the end nothing is shown.
        let to = asked_to.unwrap_or(header.to).max(asked_from.unwrap_or(header.to));
        if to > end {
            return missing(format!("it ends at {end}, before {to}"));
        }
        let is_there = |since: &Checkpoint| {
            let is_it = |there: &Checkpoint| (there.size, there.root) == (since.size, since.root);
            since.origin == header.origin && self.checkpoints.iter().any(is_it)
        };
        let gone_on_from = asked.since.iter().enumerate().filter(|(_, since)| is_there(since)).map(|(at, _)| at);
        let gone_on_from = gone_on_from.collect();
        let shown = Shown {
            origin: header.origin,
            node,
            account: header.account,
            lines: self.lines,
            from: begin,
            to: end,
            span: first.first..last.seq,
            checkpoint,
        };
        Ok((shown, gone_on_from))
    }
}
