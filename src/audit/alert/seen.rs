//! What lines, events, leases and workers say to the rules.

use super::super::line::{BROKEN, Line, RESUMED};
use crate::{
    lease::Change,
    leash::LeaseStatus,
    name::{KekVersion, TokenName},
    telemetry::{Event, trail::Deed},
    token::Workers,
};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Seen {
    pub(super) kind: Kind,
    pub(super) subject: String,
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
    ProvedAgo(Duration),
}

impl Seen {
    fn new(kind: Kind, subject: String) -> Self {
        Self { kind, subject, event: None }
    }

    pub(super) fn of_line(node: &str, line: &Line) -> Vec<Self> {
        let id = format!("{node}/{}", line.seq);
        let mut seen = Vec::new();
        let mut see = |kind, subject| seen.push(Self { kind, subject, event: Some(id.clone()) });
        let (operation, is_done) = (line.operation.as_str(), line.result.as_deref() == Some("done"));
        let of_caller =
            || line.caller.as_ref().map_or_else(|| "a caller without a name".into(), |id| format!("caller {id}"));
        let of_version = || match (&line.kek, line.kek_version) {
            (Some(kek), Some(version)) => format!("KEK {kek}/{version}"),
            (kek, _) => format!("KEK {}", kek.as_deref().unwrap_or("?")),
        };
        let why = |what: &str| match (&line.code, &line.reason) {
            (Some(why), _) | (None, Some(why)) => format!("{what}: {why}"),
            (None, None) => what.to_owned(),
        };
        let is = |deed: Deed| operation == deed.name();
        // The engine's own unwraps, ahead of a TTL, are nobody's use.
        let is_use = [Deed::AccountOpen, Deed::SecretGet, Deed::Blocks].into_iter().any(is)
            || is(Deed::KeyUnwrap) && line.caller.is_some();
        // What a handle only tried and was refused is no use.
        let blocks = line.sealed.unwrap_or(0).saturating_add(line.opened.unwrap_or(0));
        if is_use && is_done && (!is(Deed::Blocks) || blocks > 0) {
            see(Kind::Used { caller: line.caller.clone(), operation: operation.to_owned() }, of_caller());
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
        } else if [Deed::Granted, Deed::Resuming, Deed::Resumed].into_iter().any(is) {
            see(Kind::Granted, of_version());
        } else if operation == BROKEN {
            see(Kind::TrailBroken(why("it could not be kept")), format!("trail of {node}"));
        } else if operation == RESUMED {
            let lost = line.dropped.unwrap_or(0);
            see(Kind::TrailWhole(format!("it is kept again, {lost} records were lost")), format!("trail of {node}"));
        }
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
            Event::KekUnknown { token, id, .. } => {
                one(Kind::KekUnknown("a new key that no KEK names".into()), format!("token {token}, CKA_ID {id}"))
            }
            Event::WorkerLost { token, workers } => vec![Self::of_workers(token, *workers)],
            _ => Vec::new(),
        }
    }

    pub(super) fn of_lease(lease: &LeaseStatus) -> Self {
        Self::new(Kind::ProvedAgo(lease.proved_ago.unwrap_or_default()), format!("KEK {}", lease.kek))
    }

    pub(super) fn of_workers(token: &TokenName, workers: Workers) -> Self {
        let kind = if workers.restart_needed() { Kind::WorkersSpent } else { Kind::WorkersAlive };
        Self::new(kind, format!("token {token}"))
    }
}
