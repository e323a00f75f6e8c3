//! Who takes the key away, and gives it back.

use super::error::Error;
use crate::{
    clock::{Clock, Instant},
    engine::Engine,
    name::{KekName, KekVersion},
    token::KekId,
};
use async_trait::async_trait;
use std::process::Child;

/// An act that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// What, as an operator would call it.
    pub what: String,
    /// An instant before which it was not done; all times count from there, so that errors make them longer.
    pub at: Instant,
}

impl Done {
    /// Does `act` and says when it began.
    ///
    /// # Errors
    /// What `act` fails with.
    pub async fn by<E>(what: impl Into<String>, act: impl Future<Output = Result<(), E>>) -> Result<Self, E> {
        let at = Clock::default().now();
        act.await?;
        Ok(Self { what: what.into(), at })
    }
}

/// Who does the acts, for whoever reads the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Who {
    /// The process of the service.
    #[default]
    Service,
    /// Another process, as in production.
    Process,
    /// A person.
    Person,
}

impl Who {
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Service => "the service's own process",
            Self::Process => "another process",
            Self::Person => "an operator",
        }
    }
}

/// Does to the token what a scenario says, as somebody would who does not ask the service. A drill that breaks, because the load
/// panics or the engine fails, has it give back what was taken, and warns (`tracing`) when that fails. What is left of an act that failed
/// itself, and of a drill that is dropped, is the operator's to undo.
#[async_trait]
pub trait Operator: Send {
    /// What its acts fail with, and the drill with it. [`Error`] where there is nothing to add.
    type Error: From<Error> + Send;

    /// Who it is.
    fn who(&self) -> Who {
        Who::default()
    }

    /// Takes away what the scenario takes away: disables the KEK, makes the token unreachable, has its calls hang.
    ///
    /// # Errors
    /// Ends the drill.
    async fn take(&mut self) -> Result<Done, Self::Error>;

    /// Gives it back.
    ///
    /// # Errors
    /// Ends the drill.
    async fn give(&mut self) -> Result<Done, Self::Error>;

    /// [`Scenario::Rotation`](super::Scenario::Rotation): makes the next version of the KEK and has the engine use it, which does both
    /// unless said otherwise. Gives its number.
    ///
    /// # Errors
    /// Ends the drill.
    async fn rotate(&mut self, engine: &Engine, kek: &KekName) -> Result<u32, Self::Error> {
        Ok(engine.rotate_kek(kek).await.map_err(Error::from)?.version)
    }

    /// The same: destroys the old version in the token, which is retired. It stays there unless said otherwise.
    ///
    /// # Errors
    /// Ends the drill.
    async fn destroy(&mut self, _old: &KekVersion, _id: &KekId) -> Result<Option<Done>, Self::Error> {
        Ok(None)
    }

    /// [`Scenario::Restart`](super::Scenario::Restart): makes the token unreachable, or reachable.
    ///
    /// # Errors
    /// Ends the drill.
    async fn reach(&mut self, _reachable: bool) -> Result<Done, Self::Error> {
        Err(Error::Operator("cannot make the token unreachable while the KEK is disabled").into())
    }

    /// [`Scenario::Nodes`](super::Scenario::Nodes): kills the server that leads the store's others, where there are others; does nothing
    /// unless said otherwise.
    ///
    /// # Errors
    /// Ends the drill.
    async fn lose_leader(&mut self) -> Result<Option<Done>, Self::Error> {
        Ok(None)
    }

    /// Both, for each process: starts the service in a process of its own, with all its accounts in the order in which the drill has them. There it
    /// calls [`Drill::serve`](super::Drill::serve), with its standard output, which is to be piped.
    ///
    /// # Errors
    /// Ends the drill.
    fn start(&mut self) -> Result<Child, Self::Error> {
        Err(Error::Operator("cannot start the service in a process of its own").into())
    }
}
