//! One account's lines of trails, with the proof that none of them was left out, changed or added: made here node by node, checked by
//! [`verify_extract`] with the public key alone.

mod check;
mod row;

pub use check::{Asked, Shown, verify_extract};

use super::{
    checkpoint::{Checkpoint, Retained},
    line::Time,
    live::{READS_MAX, Snapshot},
    note::Note,
    notes::{Next, Notes},
    tally::{Accounts, Group, Tally},
    tree::{Mark, Prover, Wanted, leaf_hash},
    verify::CHECKPOINTS,
    walk::{Head, Step, Walk},
};
use crate::{
    error::{Corrupt, Error, Result},
    name::AccountId,
};
use row::{Header, Row};
use std::{
    io::{self, Write},
    path::Path,
};

/// A line may stand so long, in milliseconds, behind lines of a later time: who wrote it looked at the clock, and had to wait. So a tally
/// says of the lines in front of it, and of those behind it, from when to when they are, but for so much.
const LATE_MS: u64 = 10_000;

/// From when on no line stands in front of a tally of this time.
const fn earliest_behind(tally: Time) -> Time {
    Time::from_unix_ms(tally.unix_ms() + LATE_MS)
}

/// Up to when no line stands behind a tally of this time.
const fn latest_before(tally: Time) -> Time {
    Time::from_unix_ms(tally.unix_ms().saturating_sub(LATE_MS))
}

/// What an extract is to show.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Request {
    /// Whose lines.
    pub account: AccountId,
    /// From when on; `None` for the trail's beginning. Of a trail that ended before, its last group of lines is shown.
    pub from: Option<Time>,
    /// Up to when; `None` for the last tally.
    pub to: Option<Time>,
    /// A checkpoint of this node that whoever gets the extract has already, which the trail is shown to go on from.
    pub since: Option<Note>,
}

impl Request {
    /// All lines of an account.
    pub const fn all(account: AccountId) -> Self {
        Self { account, from: None, to: None, since: None }
    }
}

/// What an extract has in it of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extracted {
    /// Lines of the account.
    pub lines: u64,
    /// Tallies: groups of lines of the trail.
    pub groups: u64,
    /// From when on it shows that nothing was left out: later than what was asked for where retention removed what was before. `None`
    /// from the trail's beginning.
    pub from: Option<Time>,
    /// Up to when: earlier than what was asked for where there is no tally of later yet, or the trail ended.
    pub to: Time,
}

fn broken(what: impl Into<String>) -> Error {
    Error::Corrupt(Corrupt::Extract(format!(
        "{}; `keyleash audit verify` says what is wrong with the trail",
        what.into()
    )))
}

fn failed(what: &str, error: &io::Error) -> Error {
    Error::Trail(format!("{what}: {error}"))
}

/// A checkpoint as it is shown.
struct Shot {
    note: Note,
    checkpoint: Checkpoint,
    mark: Option<Mark>,
    /// From the one before.
    consistency: Vec<super::tree::Hash>,
}

/// A line that is shown.
struct Pick {
    seq: u64,
    line: String,
    wanted: Wanted,
}

/// A group that is shown.
struct Picked {
    tally: Pick,
    beside: super::tally::Beside,
    lines: Vec<Pick>,
}

/// The newest checkpoint of the trail, and how many lines it covers.
fn newest(notes: &mut Notes) -> Result<(Note, Checkpoint)> {
    let mut newest = None;
    while let Some(next) = notes.next().map_err(|error| failed("reading the checkpoints", &error))? {
        if let Next::Note(note) = next {
            let checkpoint = Checkpoint::of(&note)?;
            newest = Some((note, checkpoint));
        }
    }
    newest.ok_or_else(|| Error::NotFound("a checkpoint of the trail".into()))
}

fn checkpoints(node: &Path) -> Result<Notes> {
    Notes::open(&node.join(CHECKPOINTS)).map_err(|error| failed("reading the checkpoints", &error))
}

/// Writes the extract of the trail in a node's directory: that of several nodes is theirs one after the other. Blocks for as long as reading
/// the trail takes; keeps what is extracted in memory. Which key signed the checkpoints is not looked at, but that the lines lead to the
/// newest of them.
///
/// # Errors
/// [`Error::NotFound`] where there is no checkpoint, or no tally of the span or of before; [`Error::Invalid`] where the span ends before it
/// begins; [`Error::Corrupt`] where the trail is not as it was written; [`Error::Trail`] where it cannot be read, or the extract not be
/// written.
pub fn extract(node: &Path, request: &Request, out: &mut dyn Write) -> Result<Extracted> {
    if let (Some(from), Some(to)) = (request.from, request.to)
        && from > to
    {
        return Err(Error::Invalid(format!("the span ends at {to}, before it begins at {from}")));
    }
    let mut reads = 1;
    let extracted = loop {
        let mut trail = Snapshot::take(node)?;
        // What is read while the writer removes it is read again.
        match extract_one(node, request, &mut trail).and_then(Way::checked) {
            Err(Error::Corrupt(_)) if reads < READS_MAX && trail.has_moved()? => reads += 1,
            way => break way.and_then(|way| way.write(out)),
        }
    };
    extracted.map_err(|error| match error {
        Error::Corrupt(Corrupt::Extract(what)) => Corrupt::Extract(format!("{}: {what}", node.display())).into(),
        Error::NotFound(what) => Error::NotFound(format!("{what} in {}", node.display())),
        error => error,
    })
}

fn extract_one<'r>(node: &Path, request: &'r Request, trail: &mut Snapshot) -> Result<Way<'r>> {
    let newest = newest(&mut trail.notes)?;
    let retained = trail.retained.as_ref().map(|bytes| Retained::of(&Note::parse(bytes)?)).transpose()?;
    let own = match (request.from, request.to) {
        (None, None) => None, // all are
        _ => own_lines(Walk::of(node, trail.files.clone()), request, newest.1.size)?,
    };
    let mut way = Way::new(request, own, newest, checkpoints(node)?, retained.as_ref())?;
    let mut walk = Walk::of(node, trail.files.clone());
    while way.prover.size() < way.newest.1.size {
        match walk.step() {
            Step::Line => way.line(walk.line()).map_err(|error| match error {
                Error::Corrupt(Corrupt::Extract(what)) => {
                    Error::Corrupt(Corrupt::Extract(format!("{}: {what}", walk.place())))
                }
                error => error,
            })?,
            step => return Err(broken(format!("{}: {step:?}, before line {}", walk.place(), way.newest.1.size))),
        }
    }
    Ok(way)
}

/// The first and the last of the account's lines of the span, by their numbers, wherever they stand: of a clock that was set back, lines of
/// the span stand far behind it.
fn own_lines(mut walk: Walk, request: &Request, size: u64) -> Result<Option<(u64, u64)>> {
    let mut own = None;
    loop {
        match walk.step() {
            Step::Line => {}
            Step::TooLong | Step::Torn(_) => continue, // which the way through the tree does not pass by
            Step::Unreadable(why) => return Err(broken(format!("{}: {why}", walk.place()))),
            Step::End => return Ok(own),
        }
        let Some(head) = Head::parse(walk.line()) else { continue };
        if head.seq >= size {
            return Ok(own);
        }
        if head.account() != Some(request.account.as_str()) {
            continue;
        }
        let Some(time) = Time::parse(&head.time) else { continue };
        if request.from.is_none_or(|from| from <= time) && request.to.is_none_or(|to| time <= to) {
            own = Some((own.map_or(head.seq, |(first, _)| first), head.seq));
        }
    }
}

/// Where a group stands to the span that is asked for. It never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// In front of it. The last one is shown where the trail ends with it.
    Before,
    In,
    Behind,
}

struct Way<'r> {
    request: &'r Request,
    /// The first and the last of the account's lines of the span.
    own: Option<(u64, u64)>,
    newest: (Note, Checkpoint),
    notes: Notes,
    ahead: Option<(Note, Checkpoint)>,
    prover: Prover,
    /// Lines in front of this number were removed by retention.
    begins: u64,
    /// `None` in front of the first whole group.
    group: Option<Group>,
    lines: Vec<Pick>,
    picked: Vec<Picked>,
    stage: Stage,
    /// The one that the reader has, and the first that covers the last tally that is shown.
    since: Option<Shot>,
    cover: Option<Shot>,
}

impl<'r> Way<'r> {
    fn new(
        request: &'r Request,
        own: Option<(u64, u64)>,
        newest: (Note, Checkpoint),
        notes: Notes,
        retained: Option<&Retained>,
    ) -> Result<Self> {
        let since = request.since.as_ref().map(|note| -> Result<_> {
            Ok(Shot { note: note.clone(), checkpoint: Checkpoint::of(note)?, mark: None, consistency: Vec::new() })
        });
        let since = since.transpose()?;
        let begins = retained.map_or(0, |retained| retained.frontier.size());
        if let Some(Shot { checkpoint, .. }) = &since {
            let Checkpoint { size, origin, .. } = checkpoint;
            if *origin != newest.1.origin || *size > newest.1.size || *size <= begins {
                return Err(Error::Invalid(format!(
                    "the checkpoint to go on from is of {size} lines of {origin}, and the trail can go on from {begins} to {} lines of {}",
                    newest.1.size, newest.1.origin
                )));
            }
        }
        Ok(Self {
            request,
            own,
            newest,
            notes,
            ahead: None,
            prover: retained.map_or_else(Prover::default, |retained| Prover::new(&retained.frontier)),
            begins,
            group: (begins == 0).then(|| Group::new(0, None)),
            lines: Vec::new(),
            picked: Vec::new(),
            stage: Stage::Before,
            since,
            cover: None,
        })
    }

    fn line(&mut self, line: &[u8]) -> Result<()> {
        let head = Head::parse(line).ok_or_else(|| broken("it is no line of a trail"))?;
        let seq = self.prover.size();
        if head.seq < self.begins && seq == self.begins {
            return Ok(());
        }
        if head.seq != seq {
            return Err(broken(format!("it says that it is line {}, and should be {seq}", head.seq)));
        }
        let leaf = leaf_hash(line);
        // What is JSON is UTF-8.
        let pick = |wanted| Pick { seq, line: String::from_utf8_lossy(line).into_owned(), wanted };
        if head.is_tally() {
            let tally = Tally::parse(line).ok_or_else(|| broken("it is no tally that can be read"))?;
            match self.group.take() {
                Some(group) if !tally.tells(&group) => return Err(broken("this tally does not tell of its lines")),
                Some(group) => {
                    let accounts = self.is_shown(&tally).then(|| group.accounts(&tally.salt)).flatten();
                    match accounts {
                        Some(accounts) => {
                            let wanted = self.prover.append_wanted(leaf);
                            self.pick(&tally, &accounts, pick(wanted));
                        }
                        None => {
                            self.drop_lines();
                            self.prover.append(leaf);
                        }
                    }
                }
                None => {
                    self.drop_lines();
                    self.prover.append(leaf);
                }
            }
            self.group = Some(Group::new(seq + 1, Some(tally.time)));
        } else {
            if let Some(group) = &mut self.group {
                group.add(head.account(), &leaf);
            }
            if self.stage != Stage::Behind && head.account() == Some(self.request.account.as_str()) {
                let wanted = self.prover.append_wanted(leaf);
                self.lines.push(pick(wanted));
            } else {
                self.prover.append(leaf);
            }
        }
        self.checkpoints_at()
    }

    /// Whether the group of a tally is shown: of the span, whose groups follow each other, or as yet the last one in front of it.
    fn is_shown(&mut self, tally: &Tally) -> bool {
        let Request { from, to, .. } = self.request;
        let has_begun = from.is_none_or(|from| from < earliest_behind(tally.time))
            || self.own.is_some_and(|(first, _)| first < tally.seq);
        if self.stage == Stage::Before {
            self.forget_picked();
            if has_begun {
                self.stage = Stage::In;
            }
        }
        let begins_behind = to.zip(tally.since).is_some_and(|(to, since)| latest_before(since) >= to)
            && self.own.is_none_or(|(_, last)| last < tally.first);
        if self.stage == Stage::In && begins_behind {
            self.stage = Stage::Behind;
        }
        self.stage != Stage::Behind
    }

    fn forget_picked(&mut self) {
        for Picked { tally, lines, .. } in self.picked.drain(..) {
            lines.iter().chain([&tally]).for_each(|pick| self.prover.forget(pick.wanted));
        }
    }

    fn pick(&mut self, tally: &Tally, accounts: &Accounts, pick: Pick) {
        let beside = accounts.beside(&tally.salt, self.request.account.as_str());
        self.picked.push(Picked { tally: pick, beside, lines: std::mem::take(&mut self.lines) });
        // It is the first to cover the last tally no more.
        if let Some(mark) = self.cover.take().and_then(|cover| cover.mark) {
            self.prover.forget(mark.wanted());
        }
    }

    fn drop_lines(&mut self) {
        for pick in self.lines.drain(..) {
            self.prover.forget(pick.wanted);
        }
    }

    /// Takes the trees of those checkpoints that are shown.
    fn checkpoints_at(&mut self) -> Result<()> {
        let size = self.prover.size();
        if let Some(since) = self.since.as_mut().filter(|since| since.checkpoint.size == size) {
            if since.checkpoint.root != self.prover.root() {
                return Err(broken("the checkpoint to go on from is none of this trail"));
            }
            since.mark = self.prover.mark();
        }
        while let Some((note, checkpoint)) = self.next_note(size)? {
            let is_first = checkpoint.size == size && self.cover.is_none() && !self.picked.is_empty();
            if is_first && checkpoint.root == self.prover.root() {
                let mut consistency = Vec::new();
                if let Some(mark) = self.since.as_ref().and_then(|since| since.mark.as_ref()) {
                    consistency = self.prover.consistency(mark);
                }
                self.cover = Some(Shot { note, checkpoint, mark: self.prover.mark(), consistency });
            }
        }
        Ok(())
    }

    /// The next checkpoint of at most `size` lines.
    fn next_note(&mut self, size: u64) -> Result<Option<(Note, Checkpoint)>> {
        while self.ahead.is_none() {
            match self.notes.next().map_err(|error| failed("reading the checkpoints", &error))? {
                None => return Ok(None),
                Some(Next::Note(note)) => {
                    let checkpoint = Checkpoint::of(&note)?;
                    self.ahead = Some((note, checkpoint));
                }
                Some(Next::Malformed(_) | Next::Torn) => {}
            }
        }
        Ok(self.ahead.take_if(|(_, checkpoint)| checkpoint.size <= size))
    }

    /// The checkpoints that are shown, the newest last, each with the proof that it goes on from the one before.
    fn shots(&mut self) -> Vec<Shot> {
        let (note, checkpoint) = self.newest.clone();
        let mut shots: Vec<_> = self.since.take().into_iter().collect();
        // The reader may have one of later than what is shown.
        let from = shots.first().map_or(0, |since| since.checkpoint.size);
        let is_between = |cover: &Shot| (from + 1..checkpoint.size).contains(&cover.checkpoint.size);
        shots.extend(self.cover.take().filter(is_between));
        let before = shots.last().and_then(|shot| shot.mark.as_ref());
        let consistency = before.map(|mark| self.prover.consistency(mark)).unwrap_or_default();
        shots.push(Shot { note, checkpoint, mark: None, consistency });
        shots
    }

    /// Whether the lines lead to the newest checkpoint.
    fn checked(self) -> Result<Self> {
        match self.prover.root() == self.newest.1.root {
            true => Ok(self),
            false => Err(broken("the lines do not lead to the newest checkpoint")),
        }
    }

    fn write(mut self, out: &mut dyn Write) -> Result<Extracted> {
        let (Some(first), Some(last)) = (self.picked.first(), self.picked.last()) else {
            return Err(Error::NotFound(
                "a tally of the span that is asked for (one is written within the hour, and when the service ends)"
                    .into(),
            ));
        };
        let of =
            |pick: &Pick| Tally::parse(pick.line.as_bytes()).ok_or_else(|| broken("it is no tally that can be read"));
        let (first, last) = (of(&first.tally)?, of(&last.tally)?);
        let Request { account, from, to, .. } = self.request;
        // Not before what is shown, and not behind it.
        let (begin, end) = (first.since.map(earliest_behind), latest_before(last.time));
        let from = match self.stage {
            Stage::Before => begin, // it ended before what is asked for
            _ => begin.map(|begin| from.map_or(begin, |from| from.max(begin))).or(*from),
        };
        let to = to.map_or(end, |to| to.min(end));
        let header = Header { origin: self.newest.1.origin.clone(), account: account.as_str().to_owned(), from, to };
        let mut rows = vec![Row::Header(header)];
        for Shot { note, consistency, .. } in self.shots() {
            rows.push(Row::Checkpoint { note: note.to_string(), consistency });
        }
        let mut put = |row: &Row| -> Result<()> {
            let line = row.encode()?;
            out.write_all(line.as_bytes()).map_err(|error| failed("writing the extract", &error))
        };
        rows.iter().try_for_each(&mut put)?;
        let (groups, mut lines) = (self.picked.len() as u64, 0);
        for Picked { tally, beside, lines: own } in self.picked {
            let proof = self.prover.path(tally.wanted);
            put(&Row::Tally { seq: tally.seq, line: tally.line, proof, beside })?;
            lines += own.len() as u64;
            for Pick { seq, line, wanted } in own {
                put(&Row::Line { seq, line, proof: self.prover.path(wanted) })?;
            }
        }
        out.flush().map_err(|error| failed("writing the extract", &error))?;
        Ok(Extracted { lines, groups, from, to })
    }
}
