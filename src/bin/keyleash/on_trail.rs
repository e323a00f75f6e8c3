//! The trail of a command: opened where `[audit]` is configured, before anything is done; and what a command does by its own hand,
//! without an engine, written to it.

use crate::{exit::Failure, os_caller::os_caller, output::Output};
use async_trait::async_trait;
use keyleash::{
    Error, Result,
    audit::{Options, TokenSigner, Writer},
    clock::{Clock, Instant},
    config::{AuditConfig, OnFailure},
    name::{CallerId, NodeName, WHENCE_BYTES_MAX, Whence},
    store::KeyStore,
    telemetry::trail::{Asker, Correlation, Deed, Noted, Outcome, Record, Subject, Trail, Why},
    token::Token,
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// A trail has one writer, and commands run at once (`keyleash seal … | keyleash open …`), some for days: each takes the first of so many
/// nodes that nobody has.
const NODES_MAX: usize = 32;
/// Commands that only take the use of something away, which can be given back: they wait for no trail, and are done whether there is a line
/// of them or not.
const TAKE_AWAY: [&str; 5] = ["kek disable", "account delete", "secret disable", "secret delete", "grant remove"];
/// For how long such a command waits for its trail to be opened, and for its line.
const TAKING_AWAY_PATIENCE: Duration = Duration::from_secs(2);

/// Who gave the command, and from where.
#[derive(Debug, Clone)]
pub(crate) struct Whose {
    pub(crate) caller: CallerId,
    pub(crate) from: Whence,
    /// The command is one of [`TAKE_AWAY`].
    pub(crate) takes_away: bool,
}

impl Whose {
    /// The user of this host, by the command of these words.
    pub(crate) fn here(command: &str) -> Result<Self, Failure> {
        let caller = os_caller()?;
        let pid = std::process::id();
        let place = format!("{}@{}, process {pid}: keyleash {command}", caller.as_str(), host());
        let mut place: String = place.chars().map(|char| if char.is_control() { '-' } else { char }).collect();
        while place.len() > WHENCE_BYTES_MAX {
            place.pop();
        }
        Ok(Self { caller, from: Whence::new(place)?, takes_away: TAKE_AWAY.contains(&command) })
    }

    fn asks(&self) -> Asker {
        Asker::nobody(Correlation::random()).caller(Some(self.caller.clone())).from(Some(self.from.clone()))
    }
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The nodes of commands: beside that of the service, which has the name alone.
fn nodes(node: Option<&NodeName>, host: &str) -> Result<Vec<NodeName>, Error> {
    let name = match node {
        Some(node) => node.as_str().to_owned(),
        None => {
            let plain = |char: char| char.is_ascii_alphanumeric() || "._-".contains(char);
            let host: String = host.chars().map(|char| if plain(char) { char } else { '-' }).collect();
            host.trim_start_matches(['.', '_', '-']).to_owned()
        }
    };
    let numbered = |n: usize| if n == 1 { format!("{name}.cli") } else { format!("{name}.cli-{n}") };
    (1..=NODES_MAX).map(|n| NodeName::new(numbered(n))).collect::<Result<_, _>>().map_err(|_| {
        Error::Misconfigured(format!(
            "audit.node: commands write the trail of node {name}.cli, and that is no name of one; set audit.node, to 1 to 57 of \
             A-Z a-z 0-9 . _ -"
        ))
    })
}

/// A trail that is open, or the reason why data are used without one.
#[derive(Debug, Clone)]
pub(crate) enum Opened {
    Kept(Arc<Writer>),
    Missing(Arc<Missing>),
}

impl Opened {
    pub(crate) async fn open(
        config: &AuditConfig,
        store: Arc<dyn KeyStore>,
        token: Arc<dyn Token>,
        (patience, takes_away): (Duration, bool),
        output: Output,
    ) -> Result<Self, Failure> {
        let opening = Self::try_open(config, store, token, patience);
        if takes_away {
            let opened = timeout(TAKING_AWAY_PATIENCE, opening).await.unwrap_or_else(|_| Err(too_slow()));
            return Ok(opened.unwrap_or_else(|error| {
                output.warn(&format!("this is done without a trail: {error}"));
                Self::Missing(Arc::new(Missing(error)))
            }));
        }
        match opening.await {
            Err(error) if config.on_failure == OnFailure::Continue => {
                output.note(&format!("keyleash: warning: data are used without a trail: {error}"));
                Ok(Self::Missing(Arc::new(Missing(error))))
            }
            opened => Ok(opened?),
        }
    }

    async fn try_open(
        config: &AuditConfig,
        store: Arc<dyn KeyStore>,
        token: Arc<dyn Token>,
        patience: Duration,
    ) -> Result<Self> {
        let mut nodes = nodes(config.node.as_ref(), &host())?.into_iter();
        let first = nodes.next().ok_or(Error::Closed)?;
        let options = Options::of(config, first)?.lock_patience(patience);
        let options = nodes.fold(options, Options::or_node);
        let signer = TokenSigner::open(token, &*store).await?;
        Ok(Self::Kept(Arc::new(Writer::open(options, store, Arc::new(signer)).await?)))
    }

    pub(crate) fn trail(&self) -> Arc<dyn Trail> {
        match self {
            Self::Kept(writer) => writer.clone(),
            Self::Missing(missing) => missing.clone(),
        }
    }

    /// It could not be opened.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
    }

    /// Writes what is waiting, and a checkpoint, for which it waits so long.
    pub(crate) async fn close(&self, patience: Duration) -> Result<()> {
        match self {
            Self::Kept(writer) => writer.close(patience).await,
            Self::Missing(_) => Ok(()),
        }
    }
}

/// In the place of a trail that could not be opened, where data are used without one.
#[derive(Debug)]
pub(crate) struct Missing(Error);

impl Missing {
    fn refuse(&self) -> Result<()> {
        Err(match &self.0 {
            error @ Error::Trail(_) => error.clone(),
            other => Error::Trail(other.to_string()),
        })
    }
}

#[async_trait]
impl Trail for Missing {
    fn note(&self, _: Record) -> Noted {
        Noted::Lost(self.0.clone())
    }

    async fn write(&self, _: Record) -> Result<()> {
        self.refuse()
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn serves(&self) -> Result<()> {
        Ok(())
    }
}

fn too_slow() -> Error {
    Error::Trail(format!("nothing came of it within {} s", TAKING_AWAY_PATIENCE.as_secs()))
}

/// Something that a command does by its own hand, of which the trail has that it was asked for.
#[must_use]
pub(crate) struct Asked {
    trail: Option<Arc<dyn Trail>>,
    record: Record,
    began: Instant,
}

impl Asked {
    /// Has it written that this is asked for.
    ///
    /// # Errors
    /// [`Error::Trail`]: it is not to be begun.
    pub(crate) async fn ask(
        trail: Option<Arc<dyn Trail>>,
        whose: &Whose,
        deed: Deed,
        on: Subject,
        output: Output,
    ) -> Result<Self> {
        let clock = Clock::default();
        let mut record = Record::new(clock.wall_unix_ms(), deed, Outcome::Asked, whose.asks());
        record.on = on;
        match &trail {
            Some(trail) if whose.takes_away => {
                let written = timeout(TAKING_AWAY_PATIENCE, trail.write(record.clone())).await;
                if let Err(error) = written.unwrap_or_else(|_| Err(too_slow())) {
                    output.warn(&format!("{deed}: done though it is not on the trail that it was asked for: {error}"));
                }
            }
            Some(trail) => trail.write(record.clone()).await?,
            None => {}
        }
        Ok(Self { trail, record, began: clock.now() })
    }

    /// Has it written that this was done, of which the trail could not be told before.
    ///
    /// # Errors
    /// [`Error::Trail`]: it is done, and is not on the trail.
    pub(crate) async fn done(trail: Option<Arc<dyn Trail>>, whose: &Whose, deed: Deed, on: Subject) -> Result<()> {
        let mut record = Record::new(Clock::default().wall_unix_ms(), deed, Outcome::Done, whose.asks());
        record.on = on;
        match trail {
            Some(trail) => trail.write(record).await,
            None => Ok(()),
        }
    }

    /// Has it written how it ended. What was done is done: where that cannot be written, the trail says so, and that it was asked for is
    /// there.
    pub(crate) async fn end<T>(self, outcome: &Result<T, Failure>) {
        self.end_on(outcome, None).await;
    }

    /// As [`Asked::end`], on a trail that was opened anew.
    pub(crate) async fn end_on<T>(mut self, outcome: &Result<T, Failure>, anew: Option<Arc<dyn Trail>>) {
        let Some(trail) = anew.or_else(|| self.trail.take()) else { return };
        let clock = Clock::default();
        self.record.unix_ms = clock.wall_unix_ms();
        self.record.took = Some(clock.now().since(self.began));
        self.record.outcome = match outcome {
            Ok(_) => Outcome::Done,
            Err(Failure::Engine(error)) => Outcome::Failed(Why::of(error)),
            Err(_) => Outcome::Failed(Why::unknown()),
        };
        if let Err(error) = trail.write(self.record).await {
            tracing::warn!("{error}");
        }
    }
}

/// Tells that a command was refused what its user has no grant for.
pub(crate) fn note_forbidden(trail: &dyn Trail, whose: &Whose, error: &Error, on: Subject) {
    let outcome = Outcome::Failed(Why::of(error));
    let mut record = Record::new(Clock::default().wall_unix_ms(), Deed::Forbidden, outcome, whose.asks());
    record.on = on;
    let _ = trail.note(record); // it is refused either way
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_command_writes_the_trail_of_a_service_and_each_has_one_to_write() {
        let names = |node: Option<&str>, host: &str| {
            let node = node.map(|node| NodeName::new(node).unwrap());
            nodes(node.as_ref(), host)
                .map(|nodes| nodes.iter().map(|node| node.as_str().to_owned()).collect::<Vec<_>>())
        };
        let of_node = names(Some("web-1"), "host").unwrap();
        assert_eq!((of_node.len(), &*of_node[0], &*of_node[1]), (NODES_MAX, "web-1.cli", "web-1.cli-2"));
        assert_eq!(names(None, "-a b.c\u{e4}").unwrap()[0], "a-b.c-.cli");
        for (node, host) in [(Some("x".repeat(60)), "host"), (None, ""), (None, "---")] {
            let refused = names(node.as_deref(), host).map(|names| names[0].clone());
            match (&node, refused) {
                (Some(_), Err(error)) => assert!(error.to_string().contains("audit.node"), "{error}"),
                (_, refused) => assert!(refused.is_err(), "{refused:?}"),
            }
        }
    }
}
