//! Which names a grant is for.

use crate::error::{Error, Result};
use std::{collections::HashMap, fmt, sync::Arc};

/// Longest pattern, in bytes, its `*` included: any name fits, and any beginning of one.
pub const PATTERN_BYTES_MAX: usize = 256;

/// A name, or with a `*` at its end all names that begin so; `*` alone is every name. A name that has a `*` itself is covered by
/// beginnings of it alone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern {
    /// Without the `*`.
    text: Arc<str>,
    is_beginning: bool,
}

impl Pattern {
    /// Checks and takes a pattern.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is empty, has a `*` before its end or a control character; [`Error::TooLong`] over
    /// [`PATTERN_BYTES_MAX`] bytes.
    pub fn new(pattern: impl AsRef<str>) -> Result<Self> {
        let pattern = pattern.as_ref();
        let (text, is_beginning) = match pattern.strip_suffix('*') {
            Some(text) => (text, true),
            None => (pattern, false),
        };
        if pattern.is_empty() {
            return Err(Error::Invalid("a pattern is a name, the beginning of names with a * behind it, or *".into()));
        }
        if pattern.len() > PATTERN_BYTES_MAX {
            let (len, max) = (pattern.len(), PATTERN_BYTES_MAX);
            return Err(Error::TooLong { what: "a pattern", len, max, remedy: "use the beginning of it, with a *" });
        }
        if text.contains('*') {
            return Err(Error::Invalid(format!("pattern {pattern:?}: a * stands at its end alone")));
        }
        if text.chars().any(char::is_control) {
            return Err(Error::Invalid(format!(
                "pattern {pattern:?} has a control character, as no name has: leave it out"
            )));
        }
        Ok(Self { text: text.into(), is_beginning })
    }

    /// Every name.
    pub fn all() -> Self {
        Self { text: "".into(), is_beginning: true }
    }

    /// True for `*`.
    pub fn is_all(&self) -> bool {
        self.is_beginning && self.text.is_empty()
    }

    /// The only name that it covers, where it is one.
    pub fn name(&self) -> Option<&str> {
        (!self.is_beginning).then_some(&*self.text)
    }

    /// True when it covers `name`; what has no name is covered by `*` alone.
    pub fn covers(&self, name: Option<&str>) -> bool {
        match name {
            None => self.is_all(),
            Some(name) if self.is_beginning => name.starts_with(&*self.text),
            Some(name) => *name == *self.text,
        }
    }

    /// Refuses the beginning of no name.
    pub(super) fn expect_at_most(&self, bytes: usize, what: &str) -> Result<()> {
        match self.is_beginning && self.text.len() > bytes {
            true => Err(Error::Invalid(format!("pattern {self}: no {what} has more than {bytes} bytes: shorten it"))),
            false => Ok(()),
        }
    }

    /// What both cover, if there can be anything.
    pub(super) fn meet(&self, other: &Self) -> Option<Self> {
        let (wide, narrow) = match (self.is_beginning, other.is_beginning) {
            (true, true) if self.text.len() > other.text.len() => (other, self),
            (false, true) => (other, self),
            _ => (self, other),
        };
        wide.covers(Some(&narrow.text)).then(|| narrow.clone())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        f.write_str(if self.is_beginning { "*" } else { "" })
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.to_string())
    }
}

/// What stands under patterns, found by a name in as many looks as there are lengths of beginnings, however many patterns there are.
#[derive(Debug, Clone)]
pub(super) struct ByPattern<T> {
    names: HashMap<Arc<str>, T>,
    beginnings: HashMap<Arc<str>, T>,
    /// Of the beginnings, ascending.
    lengths: Vec<usize>,
}

impl<T> Default for ByPattern<T> {
    fn default() -> Self {
        Self { names: HashMap::new(), beginnings: HashMap::new(), lengths: Vec::new() }
    }
}

impl<T: Default> ByPattern<T> {
    /// What stands under exactly this pattern.
    pub(super) fn entry(&mut self, pattern: &Pattern) -> &mut T {
        if !pattern.is_beginning {
            return self.names.entry(pattern.text.clone()).or_default();
        }
        let length = pattern.text.len();
        if let Err(place) = self.lengths.binary_search(&length) {
            self.lengths.insert(place, length);
        }
        self.beginnings.entry(pattern.text.clone()).or_default()
    }

    /// What stands under any pattern.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.names.values().chain(self.beginnings.values())
    }

    /// What stands under each pattern that covers the name.
    pub(super) fn covering<'a>(&'a self, name: Option<&'a str>) -> impl Iterator<Item = &'a T> {
        let exact = name.and_then(|name| self.names.get(name));
        // What has no name is covered by the beginning of no length.
        let text = name.unwrap_or_default();
        let lengths = self.lengths.iter().take_while(move |length| **length <= text.len());
        // No beginning of a name ends within a character.
        exact.into_iter().chain(lengths.filter_map(|length| self.beginnings.get(text.get(..*length)?)))
    }
}
