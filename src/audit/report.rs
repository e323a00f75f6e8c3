//! By what a trail is judged, and what is found.

use super::{checkpoint::Checkpoint, vkey::Keys, walk::Place};
use std::fmt;

/// Faults that are told one by one; what is more is counted.
pub(super) const FAULTS_MAX: usize = 100;

/// By what a trail is judged.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Expected {
    /// The keys that sign its checkpoints.
    pub keys: Keys,
    /// Whose trail it is. Where nothing is said, the node is called as its directory is, and a key of `keys` as its store.
    pub origin: Option<String>,
    /// Checkpoints that were kept elsewhere: in the key store, by a customer. Who gives one has verified it.
    pub kept: Vec<Checkpoint>,
}

impl Expected {
    /// By keys alone.
    pub fn by(keys: Keys) -> Self {
        Self { keys, ..Self::default() }
    }

    /// Whether this is the origin of the trail in a directory of this name.
    pub(super) fn is_of(&self, origin: &str, node: Option<&str>) -> bool {
        let of_key = |key: &str| origin.strip_prefix(key).and_then(|rest| rest.strip_prefix('/')) == node;
        match &self.origin {
            Some(expected) => expected == origin,
            None => node.is_some() && self.keys.iter().any(|key| of_key(key.name())),
        }
    }
}

/// What was done to a trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// The bytes of a line, or of a checkpoint, are others.
    Changed,
    /// Lines are not there.
    Removed,
    /// There is something more.
    Added,
    /// Lines stand elsewhere than where they were written.
    Reordered,
    /// The end is not there.
    Cut,
    /// None of the keys signed it, or it is of another trail.
    Forged,
    /// A tally does not tell of its lines: by whoever wrote it.
    Miscounted,
    /// The disk, or what compressed the file, does not give it.
    Unreadable,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Changed => "changed",
            Self::Removed => "removed",
            Self::Added => "added",
            Self::Reordered => "reordered",
            Self::Cut => "cut",
            Self::Forged => "forged",
            Self::Miscounted => "miscounted",
            Self::Unreadable => "unreadable",
        })
    }
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// What was done.
    pub kind: FaultKind,
    /// Where.
    pub place: Place,
    /// In words.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.kind, self.place, self.what)
    }
}

/// What verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Whose trail it is, as its checkpoints say.
    pub origin: Option<String>,
    /// Files of lines.
    pub files: u64,
    /// Bytes of lines that were read.
    pub bytes: u64,
    /// How many lines there are.
    pub lines: u64,
    /// How many lines retention removed in front of them.
    pub retained: u64,
    /// How many checkpoints there are that a key signed.
    pub checkpoints: u64,
    /// The newest checkpoint that the lines lead to. Lines behind it are covered by no signature: they were written since, or added.
    pub newest: Option<Checkpoint>,
    /// The number behind the last line.
    pub end: u64,
    /// How many lines there are that retention was about to remove as its process ended. They are those that were written.
    pub leftover: u64,
    /// How many checkpoints that were kept elsewhere are of fewer lines than what retention removed: there is nothing to compare them with.
    pub kept_before: u64,
    /// Bytes behind the last line that are no whole line: torn by a crash, or just being written. They count for nothing.
    pub torn: u64,
    /// What is wrong: the first hundred.
    pub faults: Vec<Fault>,
    /// How many more.
    pub more_faults: u64,
}

impl Report {
    /// Whether nothing is wrong.
    pub const fn is_whole(&self) -> bool {
        self.faults.is_empty()
    }

    /// How many lines at the end no checkpoint covers.
    pub fn uncovered(&self) -> u64 {
        let covered = self.newest.as_ref().map_or(self.retained, |newest| newest.size);
        self.end.saturating_sub(covered)
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(fault);
        } else {
            self.more_faults += 1;
        }
    }
}
