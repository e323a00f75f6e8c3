//! Why a drill could not be played.

use crate::{error, token::TokenError};
use std::{fmt, io};

/// Why a drill could not be played to its end. A promise that does not hold is no error, but a verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine or the token failed at what is no part of the load.
    #[error(transparent)]
    Engine(#[from] error::Error),
    /// The system failed.
    #[error("{what}: {error}")]
    #[non_exhaustive]
    Io {
        /// At what.
        what: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The load panicked: what it would have shown is not known. What it said is on standard error.
    #[error("the load of the drill panicked")]
    Load,
    /// What the drill was given cannot show that a promise is kept. Nothing was taken.
    #[error("the drill would show nothing: {0}")]
    Nothing(String),
    /// The operator is asked for what it does not do.
    #[error("the operator of the drill {0}")]
    Operator(&'static str),
}

impl Error {
    pub(crate) fn io(what: impl fmt::Display, error: io::Error) -> Self {
        Self::Io { what: what.to_string(), error }
    }
}

impl From<TokenError> for Error {
    fn from(error: TokenError) -> Self {
        error::Error::from(error).into()
    }
}
