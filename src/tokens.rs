//! The tokens of an engine, by name: each has a budget and a deadline of its own, so that trouble on one neither delays nor
//! denies the accounts of another.

use crate::{
    budget::Budget,
    clock::Clock,
    config::Settings,
    error::{Error, Result},
    name::{KekVersion, TokenName},
    token::Token,
};
use std::{iter, sync::Arc, time::Duration};

/// One token, and what its accounts alone share.
pub(crate) struct Seat {
    pub(crate) name: TokenName,
    pub(crate) token: Arc<dyn Token>,
    pub(crate) budget: Budget,
    /// The deadline that the token's calls have; those that hang in it are given up after that.
    pub(crate) call_timeout: Duration,
}

/// The tokens as the builder of an engine is told of them.
pub(crate) struct Wiring {
    pub(crate) default: (TokenName, Arc<dyn Token>),
    pub(crate) others: Vec<(TokenName, Arc<dyn Token>)>,
    /// Of those that have another than the settings'.
    pub(crate) call_timeouts: Vec<(TokenName, Duration)>,
}

impl Wiring {
    pub(crate) fn new(default: Arc<dyn Token>) -> Self {
        Self { default: (TokenName::default(), default), others: Vec::new(), call_timeouts: Vec::new() }
    }

    /// # Errors
    /// [`Error::Misconfigured`] when two have one name, something is said of a token that is not there, or a deadline breaks
    /// a promise.
    pub(crate) fn connect(self, settings: &Settings, clock: &Clock) -> Result<Tokens> {
        let timeouts = self.call_timeouts;
        let seat = |(name, token): (TokenName, Arc<dyn Token>)| -> Result<Arc<Seat>> {
            let own = timeouts.iter().rfind(|(of, _)| *of == name);
            let call_timeout = own.map_or(settings.call_timeout, |(_, timeout)| *timeout);
            settings.validate_token(&name, call_timeout)?;
            let budget = Budget::new(settings.resume_rate, clock.clone());
            Ok(Arc::new(Seat { name, token, budget, call_timeout }))
        };
        let mut tokens = Tokens { default: seat(self.default)?, others: Vec::new() };
        for (name, token) in self.others {
            if tokens.seat(&name).is_some() {
                return Err(Error::Misconfigured(format!("two tokens are named {name}: give each a name of its own")));
            }
            tokens.others.push(seat((name, token))?);
        }
        if let Some((name, _)) = timeouts.iter().find(|(name, _)| tokens.seat(name).is_none()) {
            let names = tokens.names();
            return Err(Error::Misconfigured(format!("call_timeout of token {name}: there is none, but {names}")));
        }
        Ok(tokens)
    }
}

/// The tokens of one engine.
pub(crate) struct Tokens {
    default: Arc<Seat>,
    others: Vec<Arc<Seat>>,
}

impl Tokens {
    /// Where KEKs are made unless somebody says otherwise.
    pub(crate) fn default_seat(&self) -> &Arc<Seat> {
        &self.default
    }

    /// All, the default first.
    pub(crate) fn seats(&self) -> impl Iterator<Item = &Arc<Seat>> {
        iter::once(&self.default).chain(&self.others)
    }

    pub(crate) fn seat(&self, name: &TokenName) -> Option<&Arc<Seat>> {
        self.seats().find(|seat| seat.name == *name)
    }

    /// As [`Tokens::seat`], for somebody who named it.
    pub(crate) fn named(&self, name: &TokenName) -> Result<&Arc<Seat>> {
        self.seat(name).ok_or_else(|| Error::NotFound(format!("token {name}: configured are {}", self.names())))
    }

    /// The token that a KEK version is in, as its record names it.
    ///
    /// # Errors
    /// [`Error::Misconfigured`] when there is no such token here. It must not be looked for in another one: there it would
    /// be missing, which is a denial.
    pub(crate) fn holder(&self, kek: &KekVersion, token: &TokenName) -> Result<&Arc<Seat>> {
        self.seat(token).ok_or_else(|| {
            Error::Misconfigured(format!(
                "KEK {kek} is in token {token}, which is not configured (configured are {}): add it, or give the token that \
                 the KEK is in this name",
                self.names()
            ))
        })
    }

    /// The only token, where there is but one.
    pub(crate) fn only(&self) -> Option<&Arc<Seat>> {
        self.others.is_empty().then_some(&self.default)
    }

    /// The longest that a proof may take.
    pub(crate) fn proof_max(&self) -> Duration {
        self.seats().map(|seat| seat.call_timeout).max().unwrap_or_default()
    }

    fn names(&self) -> String {
        self.seats().map(|seat| seat.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// Which token a lease is asked of.
pub(crate) struct Route {
    pub(crate) first: Arc<Seat>,
}

impl Route {
    pub(crate) fn new(first: Arc<Seat>) -> Self {
        Self { first }
    }
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Route").field("first", &self.first.name).finish()
    }
}

#[cfg(test)]
impl Tokens {
    pub(crate) fn of_test(token: Arc<dyn Token>, clock: &Clock) -> Self {
        Wiring::new(token).connect(&Settings::default(), clock).unwrap()
    }
}

#[cfg(test)]
impl Route {
    /// To a token that nobody asks.
    pub(crate) fn of_test(clock: &Clock) -> Self {
        let (token, _) = crate::token::scripted::ScriptedToken::new(clock.clone(), Duration::from_secs(5), 1);
        Self::new(Tokens::of_test(token, clock).default)
    }
}
