//! What outlives a process of the PINs that a token refused, so that the next one does not send such a PIN again: a cron job would
//! lock the token.
//!
//! A note is no PIN: it is a salted hash of one, made slow, because PINs are short. It ends when the token takes a PIN, when the source
//! gives another one, and when the token, which counted the wrong one, counts none any more: somebody has logged in since. A token whose
//! flags say nothing of wrong PINs says nothing by being clear; there the note stands until somebody removes it.

use super::fault;
use super::pin::hint;
use super::select::Selector;
use super::told::{Count, Told};
use crate::clock::{unix_now, utc};
use crate::error::Result;
use crate::secret::{Pin, fill_random};
use crate::token::TokenError;
use sha2::{Digest, Sha256};
use std::{
    fmt::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use subtle::ConstantTimeEq;

/// Most of what was kept that is read.
pub const REFUSAL_NOTES_BYTES_MAX: usize = 64 * 1024;
/// As many notes are kept, the newest ones: each token has one or two.
const NOTES_MAX: usize = 64;
/// Rounds of SHA-256: a tenth of a second or less, for each note of the token, where there is one.
const ROUNDS: u32 = 200_000;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
/// The first word of a note, and the version of what follows.
const NOTE: &str = "refused-1";

/// Keeps notes of PINs that a token refused from one process to the next. Called on a worker thread around each login: it may block,
/// within `call_timeout`.
pub trait RefusalNotes: fmt::Debug + Send + Sync + 'static {
    /// What was kept last; empty when nothing was, or it cannot be read. At most [`REFUSAL_NOTES_BYTES_MAX`].
    fn read(&self) -> String;

    /// Keeps this, where nobody else reads it, in the place of what was kept; nothing, when it is empty. When that fails, telling
    /// of it is the keeper's.
    fn write(&self, notes: &str);

    /// Where that is: who removes it has the PIN tried once more.
    fn place(&self) -> String;
}

/// The notes of one token.
#[derive(Default)]
pub(super) struct Refusals {
    notes: Option<Arc<dyn RefusalNotes>>,
    /// Somebody asked that a refused PIN be tried once more.
    forgiven: AtomicBool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Note {
    /// A digest of which one.
    token: String,
    since_unix: u64,
    /// The token's flags said that it counted it.
    counted: bool,
    salt: [u8; SALT_BYTES],
    hash: [u8; HASH_BYTES],
}

impl Refusals {
    pub(super) fn new(notes: Option<Arc<dyn RefusalNotes>>) -> Self {
        Self { notes, forgiven: AtomicBool::new(false) }
    }

    pub(super) fn are_kept(&self) -> bool {
        self.notes.is_some()
    }

    /// Lets a PIN that was refused be tried once more.
    pub(super) fn forget(&self) {
        self.forgiven.store(true, Ordering::SeqCst);
    }

    /// Why this PIN is not to be sent, if an earlier process had it refused. `count` is what the token says of wrong PINs now.
    pub(super) fn refusal(&self, token: &TokenKey, pin: &Pin, count: Option<Count>) -> Option<TokenError> {
        let kept = self.notes.as_ref()?;
        let notes = read(&**kept);
        let is_this = |note: &&Note| note.token == token.0 && hash(&note.salt, pin).ct_eq(&note.hash).into();
        let note = notes.iter().find(is_this)?;
        if self.forgiven.swap(false, Ordering::SeqCst) || note.counted && count == Some(Count::Clear) {
            let others: Vec<_> = notes.iter().filter(|other| *other != note).cloned().collect();
            write(&**kept, &others);
            return None;
        }
        let what = format!("the token refused this PIN on {}, and it is not sent again", utc(note.since_unix));
        let remedy = format!(
            "correct the PIN; where it is the token that was mended, remove {} to have this one tried once more{}",
            kept.place(),
            hint(pin)
        );
        Some(TokenError { remedy, ..fault::denied("login", what) })
    }

    /// The token refused it. `counted`: and its flags say that it counts wrong ones.
    pub(super) fn note(&self, token: &TokenKey, pin: &Pin, counted: impl FnOnce() -> bool) -> Result<()> {
        let Some(kept) = &self.notes else { return Ok(()) };
        let mut salt = [0; SALT_BYTES];
        fill_random(&mut salt)?;
        let mut notes = read(&**kept);
        if notes.len() >= NOTES_MAX {
            notes.drain(..=notes.len() - NOTES_MAX);
        }
        let (hash, counted) = (hash(&salt, pin), counted());
        notes.push(Note { token: token.0.clone(), since_unix: unix_now(), counted, salt, hash });
        write(&**kept, &notes);
        Ok(())
    }

    /// The token took a PIN: it counts from nothing again.
    pub(super) fn end(&self, token: &TokenKey) {
        let Some(kept) = &self.notes else { return };
        let notes = read(&**kept);
        let others: Vec<_> = notes.iter().filter(|note| note.token != token.0).cloned().collect();
        if others.len() < notes.len() {
            write(&**kept, &others);
        }
    }
}

/// Which token a note is of: by what it says of itself, else by how it was chosen.
pub(super) struct TokenKey(String);

impl TokenKey {
    pub(super) fn new(told: Option<&Told>, selector: &Selector) -> Self {
        let name = told.map_or_else(|| selector.to_string(), |told| format!("{}\0{}", told.label, told.serial));
        Self(hex(&Sha256::digest(name.as_bytes())))
    }
}

/// The PIN goes in once, and what comes after works on the same stack.
fn hash(salt: &[u8; SALT_BYTES], pin: &Pin) -> [u8; HASH_BYTES] {
    let mut hasher = Sha256::new();
    hasher.update(salt);
    hasher.update(pin.expose());
    let mut hash: [u8; HASH_BYTES] = hasher.finalize_reset().into();
    for _ in 1..ROUNDS {
        hasher.update(salt);
        hasher.update(hash);
        hash = hasher.finalize_reset().into();
    }
    hash
}

fn read(kept: &dyn RefusalNotes) -> Vec<Note> {
    let text = kept.read();
    text.lines().filter_map(Note::parse).take(NOTES_MAX).collect()
}

fn write(kept: &dyn RefusalNotes, notes: &[Note]) {
    let mut text = String::new();
    for Note { token, since_unix, counted, salt, hash } in notes {
        let counted = if *counted { "counted" } else { "silent" };
        let _ = writeln!(text, "{NOTE} {token} {since_unix} {counted} {} {}", hex(salt), hex(hash));
    }
    kept.write(&text);
}

impl Note {
    /// `None` for a line that is none.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let mut next = || words.next();
        if next()? != NOTE {
            return None;
        }
        let (token, since_unix) = (next()?.to_owned(), next()?.parse().ok()?);
        let counted = match next()? {
            "counted" => true,
            "silent" => false,
            _ => return None,
        };
        Some(Self { token, since_unix, counted, salt: unhex(next()?)?, hash: unhex(next()?)? })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Kept(Mutex<String>);

    impl RefusalNotes for Kept {
        fn read(&self) -> String {
            self.0.lock().unwrap().clone()
        }

        fn write(&self, notes: &str) {
            notes.clone_into(&mut self.0.lock().unwrap());
        }

        fn place(&self) -> String {
            "there".into()
        }
    }

    fn pin(text: &str) -> Pin {
        Pin::take_from(&mut text.as_bytes().to_vec()).unwrap()
    }

    fn key(serial: &str) -> TokenKey {
        TokenKey::new(None, &Selector::Serial(serial.into()))
    }

    /// As the next process would find it.
    fn next(kept: &Arc<Kept>) -> Refusals {
        Refusals::new(Some(kept.clone()))
    }

    #[test]
    fn a_pin_that_a_token_refused_is_sent_to_it_by_no_later_process_until_something_changes() {
        let (kept, token) = (Arc::new(Kept::default()), key("1"));
        next(&kept).note(&token, &pin("1234"), || true).unwrap();
        for count in [None, Some(Count::Low), Some(Count::FinalTry), Some(Count::Locked)] {
            let error = next(&kept).refusal(&token, &pin("1234"), count).unwrap();
            assert!(error.remedy.contains("there") && !format!("{error:?}").contains("1234"), "{error:?}");
            assert!(next(&kept).refusal(&token, &pin("1235"), count).is_none(), "another PIN");
            assert!(next(&kept).refusal(&key("2"), &pin("1234"), count).is_none(), "another token");
        }
        assert!(next(&kept).refusal(&token, &pin("1234"), Some(Count::Clear)).is_none(), "somebody logged in since");
        assert!(next(&kept).refusal(&token, &pin("1234"), Some(Count::Low)).is_none(), "and once is enough");
        assert_eq!(kept.read(), "");
    }

    #[test]
    fn flags_that_never_tell_end_nothing_and_a_pin_that_works_does() {
        let (kept, token, other) = (Arc::new(Kept::default()), key("1"), key("2"));
        next(&kept).note(&token, &pin("1234"), || false).unwrap();
        next(&kept).note(&other, &pin("1234"), || false).unwrap();
        assert!(next(&kept).refusal(&token, &pin("1234"), Some(Count::Clear)).is_some());
        next(&kept).end(&token);
        assert!(next(&kept).refusal(&token, &pin("1234"), None).is_none());
        assert!(next(&kept).refusal(&other, &pin("1234"), None).is_some(), "no other token's");
        let asked = next(&kept);
        asked.forget();
        assert!(asked.refusal(&other, &pin("1234"), None).is_none(), "somebody asked for it");
    }

    #[test]
    fn no_pin_stands_in_a_note_and_what_is_none_is_passed_over() {
        let (kept, token) = (Arc::new(Kept::default()), key("1"));
        next(&kept).note(&token, &pin("a-long-pin"), || true).unwrap();
        next(&kept).note(&token, &pin("a-long-pin"), || true).unwrap();
        let notes = kept.read();
        assert!(!notes.contains("long") && notes.lines().all(|line| Note::parse(line).is_some()));
        let (one, other) = notes.split_once('\n').unwrap();
        assert_ne!(one, other.trim_end(), "each has a salt of its own");
        for damaged in
            ["", "refused-1", "refused-2 a 1 counted 00 00", &one[..one.len() - 1], &one.replace("counted", "x")]
        {
            kept.write(damaged);
            assert!(next(&kept).refusal(&token, &pin("a-long-pin"), None).is_none(), "{damaged}");
        }
        for number in 0..NOTES_MAX + 9 {
            let note = Note { token: number.to_string(), ..Note::parse(one).unwrap() };
            write(&*kept, &[read(&*kept), vec![note]].concat());
        }
        assert_eq!(read(&*kept).len(), NOTES_MAX);
        next(&kept).note(&token, &pin("x"), || true).unwrap();
        assert_eq!(read(&*kept).last().unwrap().token, token.0, "the newest stay");
    }
}
