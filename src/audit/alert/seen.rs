//! What lines, events, leases and workers say to the rules.

use super::super::line::{BROKEN, Line, RESUMED, Time};
use crate::{
    lease::Change,
    leash::LeaseStatus,
    name::{KekVersion, TokenName},
    telemetry::{
        Event,
        trail::{Deed, ENGINE_AT, Outcome},
    },
    token::Workers,
};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Seen {
    pub(super) kind: Kind,
    pub(super) subject: String,
    /// Who says so: a node, or nobody with a name, of what an engine tells. What one says is over may not be with another.
    pub(super) node: String,
    /// Node and number of its line.
    pub(super) event: Option<String>,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// Somebody used a key.
    Used {
        caller: Option<String>,
        operation: String,
    },
    /// Somebody was refused, so often.
    Forbidden(u64),
    Unwrapped,
    Denied(String),
    Lapsed(String),
    Granted,
    /// It is another one, or gone.
    KekChanged(String),
    KekUnknown(String),
    TrailBroken(String),
    TrailWhole(String),
    WorkersSpent,
    WorkersAlive,
    StoreSilent(String),
    StoreAnswers,
    ProvedAgo(Duration),
    NotProvedSince(Time),
    /// Nobody wants it any more.
    GivenUp,
    SecretExpired(String),
    SecretRenewed(String),
    /// An engine: this one, of this process, which are known where its line says so.
    Began(Option<Engine>),
    /// It ended in order.
    Ended(Option<Engine>),
}

/// Who follows, as a node: what it says is over when it says so.
pub(super) const FOLLOWER: &str = "the follower";

fn trail_of(node: &str) -> String {
    format!("trail of {node}")
}

/// The node, of what is a trouble of a node's trail.
pub(super) fn held_node(subject: &str) -> Option<&str> {
    subject.strip_prefix("trail of ")
}

impl Seen {
    fn new(kind: Kind, subject: String) -> Self {
        Self { kind, subject, node: String::new(), event: None }
    }

    /// That a trail cannot be followed, or can again.
    pub(super) fn of_held(node: &str, why: Option<&str>) -> Self {
        let kind = match why {
            Some(why) => Kind::TrailBroken(format!("it cannot be followed: {why}")),
            None => Kind::TrailWhole("it is followed again".into()),
        };
        Self { node: FOLLOWER.into(), ..Self::new(kind, trail_of(node)) }
    }

    pub(super) fn of_line(node: &str, line: &Line) -> Vec<Self> {
        let id = format!("{node}/{}", line.seq);
        let mut seen = Vec::new();
        let says = one_of_commands(node);
        let mut see = |kind, subject| seen.push(Self { kind, subject, node: says.to_owned(), event: Some(id.clone()) });
        let (operation, is_done) = (line.operation.as_str(), line.result.as_deref() == Some("done"));
        let of_caller =
            || line.caller.as_ref().map_or_else(|| "a caller without a name".into(), |id| format!("caller {id}"));
        let of_version = || match (&line.kek, line.kek_version) {
            (Some(kek), Some(version)) => format!("KEK {kek}/{version}"),
            (kek, _) => format!("KEK {}", kek.as_deref().unwrap_or("?")),
        };
        let of_token = || format!("token {}", line.token.as_deref().unwrap_or("?"));
        let of_secret = || {
            let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "?".into());
            format!("secret {} of account {}", name(&line.secret), name(&line.account))
        };
        let why = |what: &str| match (&line.code, &line.reason) {
            (Some(why), _) | (None, Some(why)) => format!("{what}: {why}"),
            (None, None) => what.to_owned(),
        };
        let is = |deed: Deed| operation == deed.name();
        let engine = line.correlation.as_deref().and_then(Engine::of);
        // The engine's own unwraps, ahead of a TTL, are nobody's use.
        let is_use = [Deed::AccountOpen, Deed::SecretGet, Deed::Blocks].into_iter().any(is)
            || is(Deed::KeyUnwrap) && line.caller.is_some();
        // What a handle only tried and was refused is no use.
        let blocks = line.sealed.unwrap_or(0).saturating_add(line.opened.unwrap_or(0));
        if is_use && is_done && (!is(Deed::Blocks) || blocks > 0) {
            let operation = match (&line.secret, &line.account) {
                (Some(_), _) => format!("{operation} of {}", of_secret()),
                (None, Some(account)) => format!("{operation} of account {account}"),
                (None, None) => operation.to_owned(),
            };
            see(Kind::Used { caller: line.caller.clone(), operation }, of_caller());
        }
        match line.forbidden {
            Some(times) if times > 0 => see(Kind::Forbidden(times), of_caller()),
            // Those of handles are summed, and counted there.
            _ if is(Deed::Forbidden) && line.asked.as_deref() != Some(Deed::Blocks.name()) => {
                see(Kind::Forbidden(1), of_caller());
            }
            _ => {}
        }
        if is(Deed::KeyUnwrap) {
            see(Kind::Unwrapped, format!("KEK {}", line.kek.as_deref().unwrap_or("?")));
        } else if is(Deed::Denied) {
            see(Kind::Denied(why("denied")), of_version());
        } else if is(Deed::Lapsed) {
            see(Kind::Lapsed(why("lapsed")), of_version());
        } else if is(Deed::KekReplaced) {
            see(Kind::KekChanged("another key stands in its place".into()), of_version());
        } else if is(Deed::KekMissing) {
            see(Kind::KekChanged("it is in its token no more".into()), of_version());
        } else if is(Deed::KekUnknown) {
            see(Kind::KekUnknown("a new key that no KEK names".into()), of_token());
        } else if is(Deed::NotProved) {
            let since = Time::from_unix_ms(line.time.unix_ms().saturating_sub(line.took_us.unwrap_or(0) / 1000));
            see(Kind::NotProvedSince(since), of_version());
        } else if is(Deed::Proved) {
            let is_given_up = line.result.as_deref() == Some(Outcome::Dropped.name());
            see(if is_given_up { Kind::GivenUp } else { Kind::ProvedAgo(Duration::ZERO) }, of_version());
        } else if is(Deed::WorkersSpent) {
            see(Kind::WorkersSpent, format!("{} on {node}", of_token()));
        } else if is(Deed::WorkersBack) {
            see(Kind::WorkersAlive, format!("{} on {node}", of_token()));
        } else if is(Deed::StoreSilent) {
            see(Kind::StoreSilent("it does not answer".into()), format!("key store of {node}"));
        } else if is(Deed::StoreAnswers) {
            see(Kind::StoreAnswers, format!("key store of {node}"));
        } else if is(Deed::EngineBegin) {
            see(Kind::Began(engine.clone()), String::new());
        } else if is(Deed::EngineClose) {
            see(Kind::Ended(engine.clone()), String::new());
        } else if is(Deed::SecretExpired) {
            let version = line.secret_version.unwrap_or(0);
            see(Kind::SecretExpired(format!("version {version}, its newest, is past its expiry")), of_secret());
        } else if is_done && [Deed::SecretSet, Deed::SecretRotate].into_iter().any(is) {
            see(Kind::SecretRenewed("it has a new version".into()), of_secret());
        } else if is_done && [Deed::SecretDelete, Deed::SecretPurge].into_iter().any(is) {
            see(Kind::SecretRenewed("it is deleted".into()), of_secret());
        } else if [Deed::KekBack, Deed::Granted, Deed::Resuming, Deed::Resumed].into_iter().any(is) {
            see(Kind::Granted, of_version());
        } else if operation == BROKEN {
            see(Kind::TrailBroken(why("it could not be kept")), trail_of(node));
        } else if operation == RESUMED {
            let lost = line.dropped.unwrap_or(0);
            see(Kind::TrailWhole(format!("it is kept again, {lost} records were lost")), trail_of(node));
        }
        // Engines of one process say it each for itself.
        let of_engine = |seen: &&mut Self| {
            let kind = &seen.kind;
            matches!(
                kind,
                Kind::NotProvedSince(_)
                    | Kind::ProvedAgo(_)
                    | Kind::GivenUp
                    | Kind::WorkersSpent
                    | Kind::WorkersAlive
                    | Kind::StoreSilent(_)
                    | Kind::StoreAnswers
            )
        };
        if let Some(engine) = &engine {
            seen.iter_mut().filter(of_engine).for_each(|seen| seen.node = engine.on(says));
        }
        // What a secret is they all say alike.
        let of_all = |seen: &&mut Self| matches!(seen.kind, Kind::SecretExpired(_) | Kind::SecretRenewed(_));
        seen.iter_mut().filter(of_all).for_each(|seen| seen.node.clear());
        seen
    }

    pub(super) fn of_event(event: &Event) -> Vec<Self> {
        let of = |kek: &KekVersion| format!("KEK {kek}");
        let one = |kind, subject| vec![Self::new(kind, subject)];
        match event {
            Event::Lease { kek, change, trouble } => {
                let why = |what: &str| match trouble {
                    Some(trouble) => format!("{what}: {trouble}"),
                    None => what.to_owned(),
                };
                match change {
                    Change::Denied => one(Kind::Denied(why("denied")), of(kek)),
                    Change::Lapsed => one(Kind::Lapsed(why("lapsed")), of(kek)),
                    Change::Granted | Change::Resuming | Change::Resumed => one(Kind::Granted, of(kek)),
                    Change::Unreachable => Vec::new(),
                }
            }
            Event::KekReplaced { kek } => one(Kind::KekChanged("another key stands in its place".into()), of(kek)),
            Event::KekMissing { kek, .. } => one(Kind::KekChanged("it is in its token no more".into()), of(kek)),
            Event::KekBack { kek } => one(Kind::Granted, of(kek)),
            Event::TrailBroken { why } => one(Kind::TrailBroken(why.clone()), "trail of this process".into()),
            Event::StoreSilent { why } => one(Kind::StoreSilent(why.clone()), "key store of this process".into()),
            Event::StoreAnswers => one(Kind::StoreAnswers, "key store of this process".into()),
            Event::TrailWhole => one(Kind::TrailWhole("it is kept again".into()), "trail of this process".into()),
            Event::KekUnknown { token, id, .. } => {
                one(Kind::KekUnknown("a new key that no KEK names".into()), format!("token {token}, CKA_ID {id}"))
            }
            Event::WorkerLost { token, workers } => vec![Self::of_workers(token, *workers)],
            _ => Vec::new(),
        }
    }

    pub(super) fn of_lease(now: Time, lease: &LeaseStatus) -> Self {
        // What was never proved, though it was tried, waits since it is known; of what nobody tried there is nothing to say.
        let kind = match (lease.proved_ago, &lease.trouble) {
            (None, Some(_)) => Kind::NotProvedSince(now),
            (ago, _) => Kind::ProvedAgo(ago.unwrap_or_default()),
        };
        Self::new(kind, format!("KEK {}", lease.kek))
    }

    pub(super) fn of_workers(token: &TokenName, workers: Workers) -> Self {
        let kind = if workers.restart_needed() { Kind::WorkersSpent } else { Kind::WorkersAlive };
        Self::new(kind, format!("token {token}"))
    }
}

/// Which engine of which process says something of itself: [`Correlation::of_engine`](crate::telemetry::trail::Correlation).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Engine {
    process: String,
    engine: String,
}

/// Between a node and an engine of it; no name of a node has one.
const OF_NODE: char = '#';

impl Engine {
    fn of(correlation: &str) -> Option<Self> {
        let (process, engine) = correlation.split_at_checked(2 * ENGINE_AT)?;
        Some(Self { process: process.to_owned(), engine: engine.to_owned() })
    }

    /// As who says something.
    fn on(&self, node: &str) -> String {
        format!("{node}{OF_NODE}{}{}", self.process, self.engine)
    }

    /// Whether `says` is of that node, and gone when this engine of it begins, or has ended.
    pub(super) fn ends(this: Option<&Self>, is_begin: bool, node: &str, says: &str) -> bool {
        let Some(rest) = says.strip_prefix(node) else { return false };
        let other = if rest.is_empty() { None } else { rest.strip_prefix(OF_NODE) };
        match (this, other) {
            (_, None) => rest.is_empty(),
            (None, Some(_)) => true,
            (Some(this), Some(_)) if !is_begin => says == this.on(node),
            (Some(this), Some(other)) => !other.starts_with(&this.process),
        }
    }
}

/// A command has whichever of its host's nodes is free, and what one says may be over with the next: `web.cli-2` is `web.cli`.
fn one_of_commands(node: &str) -> &str {
    let number = |(_, number): &(&str, &str)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let commands = node.rsplit_once('-').filter(number).map(|(commands, _)| commands);
    commands.filter(|commands| commands.ends_with(".cli")).unwrap_or(node)
}
