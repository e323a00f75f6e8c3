//! Signed notes, as [C2SP](https://c2sp.org/signed-note) writes them: a text that somebody signed. What is in the text counts only once a
//! key that is trusted has been found to have signed it.

use super::{
    base64,
    vkey::{KeyId, Keys, Verdict},
};
use crate::error::{Corrupt, Error, Result};
use std::fmt;

/// Longest note, in bytes.
pub const NOTE_BYTES_MAX: usize = 16 * 1024;
/// Most signatures of a note.
pub const SIGNATURES_MAX: usize = 16;
/// What a line with a signature begins with.
pub(super) const DASH: &str = "\u{2014} ";

/// A text, and who is said to have signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<Signature>,
}

/// One signature: by which key, and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The key's name.
    pub name: String,
    /// The key's id.
    pub id: KeyId,
    /// What the key made of the text.
    pub bytes: Vec<u8>,
}

fn malformed(what: &str) -> Error {
    Error::Corrupt(Corrupt::Note(what.to_owned()))
}

/// Whether a key can have this name: it stands between blanks in a note, and between `+` in a vkey.
pub(super) fn is_key_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|char: char| char.is_whitespace() || char.is_control() || char == '+')
}

impl Note {
    /// A text that nobody signed yet. It ends with a line break.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where no note can have this text.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        if !text.ends_with('\n') || text.contains(|char: char| char < ' ' && char != '\n') {
            return Err(malformed("a text ends with a line break, and has no other control character"));
        }
        Ok(Self { text, signatures: Vec::new() })
    }

    /// Reads a note. Nothing of it is verified yet: see [`Note::verify`].
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it is no note, or a longer one than 16 KiB, or has more than 16 signatures.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > NOTE_BYTES_MAX {
            return Err(malformed("it has more than 16 KiB"));
        }
        let whole = std::str::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8"))?;
        // The last empty line: the text may have some too.
        let (text, signatures) = whole
            .rfind("\n\n")
            .and_then(|at| Some((whole.get(..=at)?, whole.get(at + 2..)?)))
            .ok_or_else(|| malformed("no empty line stands between text and signatures"))?;
        let mut note = Self::new(text)?;
        let lines = signatures.strip_suffix('\n').ok_or_else(|| malformed("it ends within a signature"))?;
        for line in lines.split('\n') {
            if note.signatures.len() == SIGNATURES_MAX {
                return Err(malformed("it has more than 16 signatures"));
            }
            note.signatures.push(Signature::parse(line)?);
        }
        Ok(note)
    }

    /// What was signed, with the line break at its end.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// By whom, as the note says.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Adds a signature.
    #[must_use]
    pub fn signed(mut self, signature: Signature) -> Self {
        self.signatures.push(signature);
        self
    }

    /// Whether one of `keys` signed it, and none that is said to have signed it did not. Signatures of other keys are passed over.
    ///
    /// # Errors
    /// [`Error::Corrupt`] otherwise; [`Error::Invalid`] where it takes the token to tell; what the token says.
    pub fn verify(&self, keys: &Keys) -> Result<()> {
        let mut is_signed = false;
        for Signature { name, id, bytes } in &self.signatures {
            let mut known = keys.find(name, *id).peekable();
            if known.peek().is_none() {
                continue;
            }
            // Of keys that share name and id, which happens on purpose alone, one has to have made it.
            let mut last = None;
            for key in known {
                match key.verify(self.text.as_bytes(), bytes)? {
                    Verdict::Good => is_signed = true,
                    verdict => {
                        last = Some(verdict);
                        continue;
                    }
                }
                last = None;
                break;
            }
            match last {
                Some(Verdict::NeedsToken) => {
                    return Err(Error::Invalid(format!(
                        "key {name}+{id} makes HMACs, which only who may use it in its token can verify: give a configuration that \
                         names the token"
                    )));
                }
                Some(_) => return Err(malformed(&format!("the signature of key {name}+{id} is not of this text"))),
                None => {}
            }
        }
        if is_signed { Ok(()) } else { Err(malformed("none of the keys that are trusted signed it")) }
    }
}

impl Signature {
    fn parse(line: &str) -> Result<Self> {
        let no = || malformed("a line behind the text is no signature");
        let (name, signature) = line.strip_prefix(DASH).and_then(|line| line.split_once(' ')).ok_or_else(no)?;
        let bytes = base64::decode(signature).ok_or_else(no)?;
        let (id, bytes) = bytes.split_first_chunk().ok_or_else(no)?;
        if !is_key_name(name) || bytes.is_empty() {
            return Err(no());
        }
        Ok(Self { name: name.to_owned(), id: KeyId(*id), bytes: bytes.to_vec() })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, id, bytes } = self;
        let signature = [&id.0[..], bytes].concat();
        writeln!(f, "{DASH}{name} {}", base64::encode(&signature))
    }
}

/// The note's bytes.
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|signature| signature.fmt(f))
    }
}

#[cfg(test)]
#[path = "note_tests.rs"]
mod tests;
