//! Errors: few, and each says what the caller should do.
//!
//! The kinds keep four things apart that other systems confuse: the token says no ([`Error::Denied`]),
//! the token does not answer ([`Error::Unreachable`], and [`Error::Lapsed`] once that has lasted for the
//! whole grace), the bytes are wrong ([`Error::Corrupt`]), and the request was wrong ([`Error::Invalid`]).
//! No error carries a key, a PIN or plaintext.

use std::{fmt, time::Duration};

/// What `Result`s of this crate fail with.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by what the caller should do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The token says no: the KEK is disabled, deleted or replaced, or the login is refused.
    /// Sticky: it stays until the token grants again. Do not retry in a loop; the owner of the key acts.
    #[error("denied: {0}")]
    Denied(Refusal),
    /// The token was silent for the whole grace. Fails closed until it answers and grants.
    #[error("lapsed: {0}")]
    Lapsed(Refusal),
    /// The token does not answer, or has too much to do, and this account's key is not in memory. Retry; nothing is lost.
    #[error("unreachable: {0}")]
    Unreachable(Refusal),
    /// The account's key is not in memory (not used for a TTL, evicted, or of an AEK version that another process made):
    /// await `Account::warm`, or `Account::warm_for` the header of a block that is to be opened, then retry.
    #[error("cold: the key of account {account} is not in memory; await warm() and try again")]
    Cold {
        /// The account.
        account: String,
    },
    /// Bytes at rest were damaged, moved, truncated or forged. Retrying cannot help; restore from a copy.
    #[error("corrupt: {0}")]
    Corrupt(Corrupt),
    /// What was named does not exist.
    #[error("not found: {0}")]
    NotFound(String),
    /// What should be made exists already.
    #[error("exists already: {0}")]
    Exists(String),
    /// Somebody else changed the record in between: read again and decide anew.
    #[error("changed by somebody else meanwhile: {0}")]
    Conflict(String),
    /// The request breaks a limit or a rule. Says which, and what is allowed.
    #[error("invalid: {0}")]
    Invalid(String),
    /// The token, the KEK or the configuration is set up in a way that keyleash refuses. Says what to change.
    #[error("misconfigured: {0}")]
    Misconfigured(String),
    /// The key store failed: disk full, locked by another process, I/O error. Nothing was acknowledged.
    #[error("key store: {0}")]
    Store(String),
    /// The process must be restarted: every token worker hangs, the module cannot be used, or the process was forked.
    #[error("fatal: {0}")]
    Fatal(String),
}

/// Why a key may not be used, since when, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The KEK version or the token that is concerned, as people name it.
    pub subject: String,
    /// How long it has been so, where that is known.
    pub lasting: Option<Duration>,
    /// What happened, in words, with the token's return code where there is one.
    pub reason: String,
    /// What the caller or the operator should do.
    pub remedy: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.reason)?;
        if let Some(secs) = self.lasting.map(|lasting| lasting.as_secs()).filter(|secs| *secs > 0) {
            write!(f, " (for {secs} s)")?;
        }
        write!(f, "; {}", self.remedy)
    }
}

/// What exactly was refused as damaged, moved, truncated or forged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Corrupt {
    /// The block header is shorter than its suite needs.
    #[error("block header is truncated: {got} bytes, need {need}")]
    HeaderTruncated {
        /// Bytes that are needed.
        need: usize,
        /// Bytes that are there.
        got: usize,
    },
    /// The block header's format version is none that this release reads.
    #[error("block header has format version {0}, this release reads 1")]
    HeaderVersion(u8),
    /// The block header names a suite that does not exist.
    #[error("block header names suite {0}, which does not exist")]
    HeaderSuite(u8),
    /// The two bytes of the block header that must be zero are not.
    #[error("block header has non-zero reserved bytes")]
    HeaderReserved,
    /// The header names an AEK version that the account does not have.
    #[error("block header names AEK version {0}, which the account does not have")]
    AekVersion(u32),
    /// The key commitment does not match: another key, nonce or header.
    #[error("block was refused: its key commitment does not match")]
    Commitment,
    /// The tag does not match: bytes, address, account or key are not those that were sealed.
    #[error("block was refused: it was changed, moved to another address or account, or sealed under another key")]
    Block,
    /// A record of the key store cannot be decoded, or says something impossible.
    #[error("record {record}: {what}")]
    Record {
        /// Which record.
        record: String,
        /// What is wrong with it.
        what: String,
    },
    /// A record of the key store is in a format version that a newer release wrote. It is left as it is, whatever it says.
    #[error(
        "record {record}: has format version {format}, this release reads 1 to {reads}; a newer release wrote it, and it is left \
         as it is: use that release"
    )]
    NewerRecord {
        /// Which record.
        record: String,
        /// Its format version.
        format: u8,
        /// The newest that this release reads.
        reads: u8,
    },
    /// A wrapped AEK is not the one that was wrapped for this account, version and KEK.
    #[error(
        "wrapped AEK of {0}: the token refused it or its check value does not match; it was changed, moved, or belongs to another KEK"
    )]
    WrappedAek(String),
    /// A sealed file is damaged.
    #[error("sealed file: {0}")]
    File(String),
}

impl From<Corrupt> for Error {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(corrupt)
    }
}
