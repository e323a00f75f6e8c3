//! The tokens of an engine, by name: each has a budget and a deadline of its own, so that trouble on one neither delays nor
//! denies the accounts of another.

use crate::{
    clock::{Clock, Instant},
    config::Settings,
    error::{Error, Result},
    name::{KekName, KekVersion, TokenName},
    secret::Aek,
    token::{
        Binding, KekHandle, Token, TokenError, TokenInfo, Verdict, Workers, Wrapped,
        budget::{Budget, Place},
        unwraps::UnwrapCounts,
    },
};
use std::{
    collections::BTreeMap,
    iter,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tracing::Instrument;

/// One token, and what its accounts alone share.
pub(crate) struct Seat {
    pub(crate) name: TokenName,
    /// Reached with a place or for a proof only.
    token: Arc<dyn Token>,
    pub(crate) budget: Budget,
    /// Of those that come because their own token is silent: they take no place from those that are at home here.
    pub(crate) guests: Budget,
    /// Held while a KEK begins in it.
    pub(crate) making: tokio::sync::Mutex<()>,
    /// The deadline that the token's calls have, as it says; those that hang in it are given up after that.
    pub(crate) call_timeout: Duration,
    /// Its context could not be renewed, when that was last tried.
    pub(crate) not_renewed: AtomicBool,
    pub(crate) unwraps: UnwrapCounts,
    clock: Clock,
}

/// By what right a token is called.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// For a proof.
    Proof,
    Place(&'a Place),
}

impl Seat {
    /// For whoever has a place, while it has it.
    pub(crate) fn token<'a>(&'a self, _: &'a Place) -> &'a dyn Token {
        &*self.token
    }

    pub(crate) async fn unwrap(
        &self,
        right: Right<'_>,
        kek: &KekHandle,
        wrapped: &Wrapped,
        binding: &Binding,
    ) -> Result<Aek, TokenError> {
        let is_proof = matches!(right, Right::Proof);
        let span = tracing::debug_span!("unwrap", token = %self.name, is_proof);
        let began = self.clock.now();
        let call = async {
            match right {
                Right::Proof => self.token.prove(kek, wrapped, binding).await,
                Right::Place(place) => self.token(place).unwrap(kek, wrapped, binding).await,
            }
        };
        let outcome = call.instrument(span).await;
        self.unwraps.count(is_proof, &outcome, self.clock.now().since(began));
        outcome
    }

    /// Who the token says it is, for somebody who looks at it in trouble: so this ends, however many wait for the token.
    pub(crate) async fn info_in_time(&self, clock: &Clock) -> Result<TokenInfo, TokenError> {
        let asking = async { self.token(&self.budget.on_demand(None).await).info().await };
        let busy = || TokenError {
            verdict: Verdict::Busy,
            operation: "token info",
            what: "others wait for the token, who came before".into(),
            code: None,
            remedy: "try again".into(),
        };
        clock.until(clock.now().plus(self.call_timeout * 2), asking).await.unwrap_or_else(|| Err(busy()))
    }

    /// For a proof.
    pub(crate) async fn renew_context(&self) -> Result<(), TokenError> {
        self.token.renew_context().await
    }

    pub(crate) fn context_began(&self) -> Option<Instant> {
        self.token.context_began()
    }

    pub(crate) fn workers(&self) -> Workers {
        self.token.workers()
    }

    pub(crate) fn serial(&self) -> Option<String> {
        self.token.serial()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.token.in_flight()
    }

    /// The longest that a proof may take: its wait for a single worker, or for other proofs, and its call.
    pub(crate) fn proof_max(&self) -> Duration {
        self.call_timeout * 2
    }
}

/// The tokens as the builder of an engine is told of them.
pub(crate) struct Wiring {
    pub(crate) default: (TokenName, Arc<dyn Token>),
    pub(crate) others: Vec<(TokenName, Arc<dyn Token>)>,
    /// The standby of a KEK, each KEK once.
    pub(crate) standbys: BTreeMap<KekName, TokenName>,
}

impl Wiring {
    pub(crate) fn new(default: Arc<dyn Token>) -> Self {
        Self { default: (TokenName::default(), default), others: Vec::new(), standbys: BTreeMap::new() }
    }

    /// # Errors
    /// [`Error::Misconfigured`] when two have one name, a standby is a token that is not there, or a token's own deadline breaks a
    /// promise.
    pub(crate) fn connect(self, settings: &Settings, clock: &Clock) -> Result<Tokens> {
        let seat = |(name, token): (TokenName, Arc<dyn Token>)| -> Result<Arc<Seat>> {
            let call_timeout = token.call_timeout();
            settings.validate_token(&name, call_timeout)?;
            let budget = || Budget::new(settings.resume_rate, clock.clone());
            Ok(Arc::new(Seat {
                name,
                token,
                budget: budget(),
                guests: budget(),
                making: tokio::sync::Mutex::default(),
                call_timeout,
                not_renewed: AtomicBool::new(false),
                unwraps: UnwrapCounts::default(),
                clock: clock.clone(),
            }))
        };
        let mut tokens = Tokens { default: seat(self.default)?, others: Vec::new(), standbys: self.standbys };
        for (name, token) in self.others {
            if tokens.seat(&name).is_some() {
                return Err(Error::Misconfigured(format!("two tokens are named {name}: give each a name of its own")));
            }
            tokens.others.push(seat((name, token))?);
        }
        for (kek, name) in &tokens.standbys {
            let Some(standby) = tokens.seat(name) else {
                let names = tokens.names();
                return Err(Error::Misconfigured(format!(
                    "the standby of KEK {kek} is token {name}: there is none, but {names}"
                )));
            };
            // Which of them the KEK is in, its record says; no one's silence may take the standby's time.
            for first in tokens.seats().filter(|seat| seat.name != *name) {
                settings.validate_standby(kek, (&first.name, first.call_timeout), (name, standby.call_timeout))?;
            }
        }
        Ok(tokens)
    }
}

/// The tokens of one engine.
pub(crate) struct Tokens {
    default: Arc<Seat>,
    others: Vec<Arc<Seat>>,
    standbys: BTreeMap<KekName, TokenName>,
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

    pub(crate) fn standby_of(&self, kek: &KekName) -> Option<&Arc<Seat>> {
        self.standbys.get(kek).and_then(|name| self.seat(name))
    }

    /// True when this token has a KEK of which the store says that it is in `holder`, or as its standby a clone of it, in good order.
    pub(crate) fn may_have(&self, token: &TokenName, kek: &KekName, holder: &TokenName) -> bool {
        holder == token || self.standbys.get(kek) == Some(token)
    }

    /// The way to a KEK version that is in the token of this seat.
    ///
    /// # Errors
    /// [`Error::Misconfigured`] when its standby is the token itself.
    pub(crate) fn route(&self, kek: &KekVersion, first: &Arc<Seat>) -> Result<Route> {
        let standby = self.standby_of(&kek.name).cloned();
        if standby.as_ref().is_some_and(|standby| standby.name == first.name) {
            return Err(Error::Misconfigured(format!(
                "the standby of KEK {} is token {}, which is the one that {kek} is in: name another one, or none",
                kek.name, first.name
            )));
        }
        Ok(Route { first: first.clone(), standby })
    }

    /// The longest that a proof may take, with the standby's after the first token's silence.
    pub(crate) fn proof_max(&self) -> Duration {
        let longest = self.seats().map(|seat| seat.proof_max()).max().unwrap_or_default();
        if self.standbys.is_empty() { longest } else { longest * 2 }
    }

    fn names(&self) -> String {
        self.seats().map(|seat| seat.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// Which tokens a lease is asked of.
pub(crate) struct Route {
    /// The one that the KEK version is in.
    pub(crate) first: Arc<Seat>,
    /// One that has the same key, for when the first is silent.
    pub(crate) standby: Option<Arc<Seat>>,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let standby = self.standby.as_ref().map(|seat| &seat.name);
        f.debug_struct("Route").field("first", &self.first.name).field("standby", &standby).finish()
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
        Self { first: Tokens::of_test(token, clock).default, standby: None }
    }
}
