//! What can go wrong on the way to a verdict, and the words for it.

use super::verdict::{self, Class};
use crate::{
    error::Error,
    token::{TokenError, Verdict},
};
use cryptoki::error::{Error as Cryptoki, RvError};

/// A step that failed, before its meaning is decided.
#[derive(Debug)]
pub(super) enum Fault {
    /// The module returned a code.
    Code {
        /// What was being done.
        step: &'static str,
        code: RvError,
    },
    /// The selected token is not listed; what is, in words.
    NotListed(String),
    /// A listed, logged-in token has no such KEK.
    KekMissing,
    /// A KEK's handle was another object's: somebody else began a new context.
    HandlesMoved,
    /// A login failed a moment ago, and the next must wait: neither a retry nor re-initialising brings it sooner.
    LoginPaused(TokenError),
    /// The module contradicts itself on what the token holds: no new session tells which is true, but a fresh context does.
    ContextInDoubt(TokenError),
    /// A PIN is about to be tried for the first time, in a context that may hide that it was changed.
    OldContext,
    /// The meaning is known already: no retry and no diagnosis can change it.
    Settled(TokenError),
}

impl Fault {
    /// As [`verdict::is_lost_session`].
    pub(super) const fn loses_session(&self) -> bool {
        matches!(self, Self::Code { code, .. } if verdict::is_lost_session(*code))
    }

    /// The token says no, of a key that it knows by its handle.
    pub(super) const fn is_denial(&self) -> bool {
        matches!(self, Self::Code { code, .. } if matches!(verdict::class(*code), Class::Denied))
    }
}

impl From<TokenError> for Fault {
    fn from(error: TokenError) -> Self {
        Self::Settled(error)
    }
}

impl From<Error> for Fault {
    /// Only what `secret` fails with: no memory, no randomness.
    fn from(error: Error) -> Self {
        Self::Settled(fatal("take key memory", error.to_string()))
    }
}

/// For `map_err`: the step that failed.
pub(super) fn at(step: &'static str) -> impl Fn(Cryptoki) -> Fault {
    move |error| Fault::Code { step, code: code_of(&error) }
}

/// The code behind an error of the binding; what the binding itself refuses counts as an unknown code.
pub(super) const fn code_of(error: &Cryptoki) -> RvError {
    match error {
        Cryptoki::Pkcs11(code, _) => *code,
        Cryptoki::NullFunctionPointer | Cryptoki::NotSupported | Cryptoki::MissingSymbol(_) => {
            RvError::FunctionNotSupported
        }
        _ => RvError::UnknownErrorCode(u32::MAX as _),
    }
}

pub(super) fn error(verdict: Verdict, operation: &'static str, what: impl Into<String>) -> TokenError {
    let remedy = match verdict {
        Verdict::Denied => "ask the owner of the key: the KEK or the login must be enabled or restored on the token",
        Verdict::Replaced => "restore the KEK in the token from its backup; never replace a KEK under its CKA_ID",
        Verdict::Unreachable => "check that the token and the way to it are up; keyleash tries again by itself",
        Verdict::BadRecord => "restore this wrapped AEK from a copy; other accounts are not concerned",
        Verdict::Misconfigured => "correct the set-up; `keyleash token check` says what the token can do",
        Verdict::Busy => "try again; where it comes often, give the token more workers, or ask less of it at once",
        Verdict::Fatal => "restart the process",
    };
    TokenError::new(verdict, operation, what, remedy)
}

pub(super) fn denied(operation: &'static str, what: impl Into<String>) -> TokenError {
    error(Verdict::Denied, operation, what)
}

pub(super) fn unreachable(operation: &'static str, what: impl Into<String>) -> TokenError {
    error(Verdict::Unreachable, operation, what)
}

pub(super) fn busy(operation: &'static str) -> TokenError {
    error(Verdict::Busy, operation, "no worker was free for too long, though calls came back")
}

pub(super) fn like_it_hang(operation: &'static str) -> TokenError {
    TokenError {
        remedy: "see why they hang; keyleash makes such calls again when one comes back, or after a restart".into(),
        ..unreachable(
            operation,
            "too many calls like it hang in the module: another one might cost a worker that keys in use need",
        )
    }
}

pub(super) fn bad_record(operation: &'static str, what: impl Into<String>) -> TokenError {
    error(Verdict::BadRecord, operation, what)
}

pub(super) fn misconfigured(operation: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> TokenError {
    TokenError::new(Verdict::Misconfigured, operation, what, remedy)
}

pub(super) fn fatal(operation: &'static str, what: impl Into<String>) -> TokenError {
    error(Verdict::Fatal, operation, what)
}

/// The error for a code whose verdict is decided.
pub(super) fn concluded(verdict: Verdict, operation: &'static str, step: &str, code: RvError) -> TokenError {
    let mut what = format!("{step}: {}", verdict::name(code));
    if verdict == Verdict::BadRecord {
        what.push_str(", while the KEK works");
    }
    with_code(error(verdict, operation, what), code)
}

/// The same, decided by this code.
pub(super) fn with_code(error: TokenError, code: RvError) -> TokenError {
    TokenError { code: Some(verdict::name(code)), ..error }
}
