//! Errors: few, and each says what the caller should do.
//!
//! The kinds keep four things apart that other systems confuse: the token says no ([`Error::Denied`]),
//! the token does not answer ([`Error::Unreachable`], and [`Error::Lapsed`] once that has lasted for the
//! whole grace), the bytes are wrong ([`Error::Corrupt`]), and the request was wrong ([`Error::Invalid`]).
//! The [service](self#a-service) below does the right thing after each, on threads and in tasks; a test takes it through a revocation,
//! an outage, a store outage and a shutdown. [`Error::is_retryable`] and [`Error::retry_after`] say whether to try again, and when.
//! No error carries a key, a PIN or plaintext.
//!
//! # A service
//!
//! ```ignore
#![doc = include_str!("../examples/service.rs")]
//! ```

use crate::name::{AccountId, CallerId, KekVersion};
use std::{fmt, time::Duration};

/// When an outage, of a token or of the key store, is worth another look: the engine notices its end within a `poll_interval`.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What `Result`s of this crate fail with.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by what the caller should do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The token says no: the KEK is disabled, deleted or replaced, or the login is refused.
    /// Sticky: it stays until the token grants again. Do not retry in a loop; the owner of the key acts. Keep what was to be written, and
    /// wait on [`Account::ready`](crate::Account::ready): see [a service](self#a-service).
    #[error("denied: {0}")]
    Denied(Box<Refusal>),
    /// The token was silent for the whole grace. Fails closed until it answers and grants. Nothing is lost: keep what was to be written
    /// ([a service](self#a-service)).
    #[error("lapsed: {0}")]
    Lapsed(Box<Refusal>),
    /// The token does not answer, or has too much to do, and this account's key is not in memory. Retry, not
    /// sooner than [`Error::retry_after`] ([a service](self#a-service)); nothing is lost.
    #[error("unreachable: {0}")]
    Unreachable(Box<Refusal>),
    /// The account's key is not in memory (not used for a TTL, evicted, or of an AEK version that another process made):
    /// await `Account::warm`, or `Account::warm_for` the header of a block that is to be opened, then retry
    /// ([a service](self#a-service)). The async forms do so by themselves.
    #[error("cold: the key of account {account} is not in memory; await warm() and try again")]
    Cold {
        /// The account.
        account: AccountId,
    },
    /// Bytes at rest were damaged, moved, truncated or forged. Retrying cannot help; restore from a copy.
    #[error("corrupt: {0}")]
    Corrupt(Corrupt),
    /// The caller has no grant for it ([`Engine::caller`](crate::Engine::caller)). Nothing was done, and nothing is said of what there
    /// is: what does not exist is forbidden in the same words. Whoever has `grant.write` acts.
    #[error("forbidden: {0}")]
    Forbidden(Box<Forbidden>),
    /// What was named does not exist.
    #[error("not found: {0}")]
    NotFound(String),
    /// What should be made exists already.
    #[error("exists already: {0}")]
    Exists(String),
    /// Somebody else changed the record in between: read again and decide anew.
    #[error("changed by somebody else meanwhile: {0}")]
    Conflict(String),
    /// A limit that grows with use is reached: an AEK version has sealed as much as one may (rotate the account), or there are as
    /// many AEK or KEK versions as there may be (retire some). Says which.
    #[error("exhausted: {0}")]
    Exhausted(String),
    /// What was given is longer than anything of its kind may be.
    #[error("too long: {what} has at most {max} bytes, this one has {len}: {remedy}")]
    TooLong {
        /// What it is: `a block`, `an address`.
        what: &'static str,
        /// Its bytes.
        len: usize,
        /// The most that there may be.
        max: usize,
        /// What to do instead.
        remedy: &'static str,
    },
    /// What is to be undeleted or purged is not deleted.
    #[error("not deleted: {0}")]
    NotDeleted(String),
    /// The request breaks a limit or a rule. Says which, and what is allowed.
    #[error("invalid: {0}")]
    Invalid(String),
    /// The token, the KEK or the configuration is set up in a way that keyleash refuses. Says what to change.
    #[error("misconfigured: {0}")]
    Misconfigured(String),
    /// The key store failed: disk full, locked by another process, I/O error. Nothing was acknowledged. Keys in
    /// memory go on; retry what needs the store ([a service](self#a-service)).
    #[error("key store: {0}")]
    Store(String),
    /// The trail cannot be written, or where it cannot nothing is to be done with keys (`on_failure = "refuse"`). Nothing was done: keep
    /// what was to be written, and retry once it can be. Says what is wrong with it.
    #[error("trail: {0}")]
    Trail(String),
    /// The engine was closed ([`Engine::close`](crate::Engine::close)): whoever still works with it ends too, and keeps
    /// what it had not written ([a service](self#a-service)).
    #[error("closed: the engine was closed, and does nothing any more")]
    Closed,
    /// The process must be restarted: every token worker hangs, the module cannot be used, or the process was forked.
    #[error("fatal: {0}")]
    Fatal(String),
}

impl Error {
    /// True where the very same call may succeed later and nobody needs to change anything for it: keep what was to be written, wait for
    /// [`Error::retry_after`], and call again. False for a denial: it may last for days, so what waits for its end is told to a human
    /// and waits on [`Account::ready`](crate::Account::ready), which returns when it is over.
    pub const fn is_retryable(&self) -> bool {
        self.retry_after().is_some()
    }

    /// How long to wait before the same call is made again; `None` where another try is of no use by itself. Zero after
    /// [`Error::Cold`], which [`Account::warm`](crate::Account::warm) is to be called for first, and after [`Error::Conflict`]. A loop
    /// that waits for so long asks the token nothing that the engine did not ask anyway.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Cold { .. } | Self::Conflict(_) => Some(Duration::ZERO),
            Self::Lapsed(_) | Self::Unreachable(_) | Self::Store(_) | Self::Trail(_) => Some(LOOK_AGAIN),
            Self::Denied(_)
            | Self::Forbidden(_)
            | Self::Corrupt(_)
            | Self::NotFound(_)
            | Self::Exists(_)
            | Self::Exhausted(_)
            | Self::TooLong { .. }
            | Self::NotDeleted(_)
            | Self::Invalid(_)
            | Self::Misconfigured(_)
            | Self::Closed
            | Self::Fatal(_) => None,
        }
    }

    /// Its kind in a word, as the trail keeps it. The words never change.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Denied(_) => "denied",
            Self::Lapsed(_) => "lapsed",
            Self::Unreachable(_) => "unreachable",
            Self::Cold { .. } => "cold",
            Self::Corrupt(_) => "corrupt",
            Self::Forbidden(_) => "forbidden",
            Self::NotFound(_) => "not-found",
            Self::Exists(_) => "exists",
            Self::Conflict(_) => "conflict",
            Self::Exhausted(_) => "exhausted",
            Self::TooLong { .. } => "too-long",
            Self::NotDeleted(_) => "not-deleted",
            Self::Invalid(_) => "invalid",
            Self::Misconfigured(_) => "misconfigured",
            Self::Store(_) => "store",
            Self::Trail(_) => "trail",
            Self::Closed => "closed",
            Self::Fatal(_) => "fatal",
        }
    }
}

/// Why a key may not be used, since when, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The KEK version or the token that is concerned, as people name it.
    pub subject: String,
    /// The KEK version whose lease refuses it; `None` where a token was asked outside of any lease.
    pub kek: Option<KekVersion>,
    /// The token's return code by its name (`CKR_PIN_LOCKED`), where one decided it.
    pub code: Option<String>,
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

/// Which grant a caller lacks. Of the policy it says nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Forbidden {
    /// Who asked; `None` for a call without a caller.
    pub caller: Option<CallerId>,
    /// The operation that is not granted, as grants name it.
    pub operation: &'static str,
    /// To what: as the caller named it.
    pub on: String,
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { caller, operation, on } = self;
        match caller {
            Some(caller) => write!(
                f,
                "caller {caller} has no grant of {operation} that covers {on}; whoever has grant.write gives it: `keyleash grant add`"
            ),
            None => write!(f, "{operation} of {on} by a caller without a name: say who asks, by Engine::caller"),
        }
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
    /// A signed note (a checkpoint of the trail) was changed, or none of the keys that are trusted signed it.
    #[error("signed note: {0}")]
    Note(String),
    /// An extract of the trail does not prove what it shows.
    #[error("extract of the trail: {0}")]
    Extract(String),
}

impl From<Corrupt> for Error {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(corrupt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::AccountId;

    /// A number for each kind, 0 up. Who adds a kind gives it the next number, and then a row below.
    fn number(error: &Error) -> usize {
        match error {
            Error::Denied(_) => 0,
            Error::Lapsed(_) => 1,
            Error::Unreachable(_) => 2,
            Error::Cold { .. } => 3,
            Error::Corrupt(_) => 4,
            Error::NotFound(_) => 5,
            Error::Exists(_) => 6,
            Error::Conflict(_) => 7,
            Error::Exhausted(_) => 8,
            Error::TooLong { .. } => 9,
            Error::NotDeleted(_) => 10,
            Error::Invalid(_) => 11,
            Error::Misconfigured(_) => 12,
            Error::Store(_) => 13,
            Error::Closed => 14,
            Error::Fatal(_) => 15,
            Error::Forbidden(_) => 16,
            Error::Trail(_) => 17,
        }
    }

    #[test]
    fn each_kind_says_whether_and_when_the_same_call_may_succeed() {
        let refusal = || {
            let (subject, reason, remedy) = (String::new(), String::new(), String::new());
            Box::new(Refusal { subject, kek: None, code: None, lasting: None, reason, remedy })
        };
        let what = String::new;
        let (at_once, in_a_second) = (Some(Duration::ZERO), Some(Duration::from_secs(1)));
        let rows = [
            (Error::Denied(refusal()), None),
            (Error::Lapsed(refusal()), in_a_second),
            (Error::Unreachable(refusal()), in_a_second),
            (Error::Cold { account: AccountId::new("a").unwrap() }, at_once),
            (Corrupt::Block.into(), None),
            (Error::NotFound(what()), None),
            (Error::Exists(what()), None),
            (Error::Conflict(what()), at_once),
            (Error::Exhausted(what()), None),
            (Error::TooLong { what: "", len: 2, max: 1, remedy: "" }, None),
            (Error::NotDeleted(what()), None),
            (Error::Invalid(what()), None),
            (Error::Misconfigured(what()), None),
            (Error::Store(what()), in_a_second),
            (Error::Closed, None),
            (Error::Fatal(what()), None),
            (Error::Forbidden(Box::new(Forbidden { caller: None, operation: "get", on: what() })), None),
            (Error::Trail(what()), in_a_second),
        ];
        for (place, (error, retry_after)) in rows.iter().enumerate() {
            assert_eq!(number(error), place, "a row for each kind, in their order: {error:?}");
            assert_eq!((error.retry_after(), error.is_retryable()), (*retry_after, retry_after.is_some()), "{error:?}");
        }
        let kinds =
            include_str!("error.rs").split("    fn number(").nth(1).unwrap().split("    #[test]").next().unwrap();
        assert_eq!(rows.len(), kinds.matches("=>").count());
    }
}
