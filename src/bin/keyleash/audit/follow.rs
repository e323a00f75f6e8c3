//! `audit follow`: brings each event of the trails to a sink.

use super::{
    NOT_WHOLE,
    args::{Follow, SinkKind},
};
use crate::{
    exit::Failure,
    output::{Output, count},
    setup::Setup,
    streams::Standard,
};
use async_trait::async_trait;
use keyleash::{
    Error,
    audit::{
        AuditSink, CommandSink, Event, FileSink, Follower, Told, Until,
        alert::{NotTaken, Notice, NoticeSink},
        line::Time,
    },
    clock::Clock,
};
use serde_json::json;
use std::{
    ffi::OsString,
    io::{self, Write},
    path::Path,
    time::Duration,
};

/// How often it is looked whether anybody reads.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Standard output, a line each. Acknowledged when it took them.
pub(crate) struct StdoutSink;

#[async_trait]
impl AuditSink for StdoutSink {
    async fn deliver(&mut self, events: &[Event]) -> Result<(), String> {
        to_stdout(events.iter().flat_map(Event::json).collect()).await
    }
}

#[async_trait]
impl NoticeSink for StdoutSink {
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), NotTaken> {
        to_stdout(notices.iter().flat_map(Notice::json).collect()).await.map_err(NotTaken::Away)
    }
}

async fn to_stdout(bytes: Vec<u8>) -> Result<(), String> {
    // A reader that stands still must not keep a signal from being heard.
    let write = move || {
        let mut out = Standard::Output.file().map_err(|failure| io::Error::other(failure.to_string()))?;
        out.write_all(&bytes)
    };
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(())) => Ok(()),
        // Nobody will ever take them.
        Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => std::future::pending().await,
        Ok(Err(error)) => Err(format!("{}: {error}", Standard::Output.name())),
        Err(error) => Err(error.to_string()),
    }
}

/// Returns when nobody reads standard output any more.
async fn reader_is_gone() {
    while !Standard::Output.reader_is_gone() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Where it is brought: checked before anything is.
pub(crate) enum Destination {
    Stdout,
    File(FileSink),
    Command(CommandSink),
}

impl Destination {
    pub(crate) fn of(sink: SinkKind, to: Vec<OsString>, setup: &Setup) -> Result<Self, Failure> {
        let mut to = to.into_iter();
        Ok(match (sink, to.next()) {
            (SinkKind::Stdout, None) => Self::Stdout,
            (SinkKind::File, Some(path)) if to.len() == 0 => {
                setup.own_files().refuse_to_replace(Path::new(&path))?;
                Self::File(FileSink::new(path))
            }
            (SinkKind::Command, Some(program)) => {
                let command = CommandSink::new(program, to.by_ref());
                Self::Command(setup.pin_variables().fold(command, CommandSink::without))
            }
            (kind, _) => return Err(Failure::Usage(format!("--sink {kind}"))),
        })
    }
}

pub(super) async fn run(mut args: Follow, setup: &Setup, output: Output) -> Result<(), Failure> {
    let to = std::mem::take(&mut args.to);
    let mut sink: Box<dyn AuditSink> = match Destination::of(args.sink, to, setup)? {
        Destination::Stdout => Box::new(StdoutSink),
        Destination::File(file) => Box::new(file),
        Destination::Command(command) => Box::new(command),
    };
    follow(args, &mut *sink, setup, output).await
}

/// Follows, and brings events to a sink.
pub(crate) async fn follow(
    args: Follow,
    sink: &mut dyn AuditSink,
    setup: &Setup,
    output: Output,
) -> Result<(), Failure> {
    let Follow { cursor, directory, sink: kind, to: _, once, until, skip_removed } = args;
    let directory = match (directory, setup.audit()) {
        (Some(directory), _) => directory,
        (None, Some(audit)) => audit.directory.clone(),
        (None, None) => {
            return Err(Failure::Usage(
                "name the directory of the nodes, or set that of [audit] in the configuration".into(),
            ));
        }
    };
    setup.own_files().refuse_to_replace(&cursor)?;
    let is_stdout = kind == SinkKind::Stdout;
    let until = match (once, until) {
        (true, _) => Until::Time(Time::default()),
        (false, Some(time)) => Until::Time(time),
        (false, None) => Until::Dropped,
    };
    let follower = tokio::task::spawn_blocking(move || Follower::open(directory, cursor)).await;
    let follower =
        follower.map_err(|error| Failure::io("the cursor", io::Error::other(error)))??.skip_removed(skip_removed);
    let mut refused = None;
    let mut told = |told: Told| match told {
        Told::Held(node, why) => output.failure(&held(format!("node {node} is held: {why}"))),
        Told::GoesOn(node) => output.note(&format!("keyleash: node {node} goes on")),
        Told::Refused(why, Some(again)) => {
            output.failure(&sink_failed(format!("{why}; again in {} s", again.as_secs())));
        }
        Told::Refused(why, None) => refused = Some(why),
        Told::NotWritten(why, again) => {
            output.failure(&Error::Trail(format!("{why}; again in {} s", again.as_secs())).into());
        }
        _ => {}
    };
    let clock = Clock::default();
    let follower = tokio::select! {
        followed = follower.deliver(sink, until, &clock, &mut told) => followed,
        () = reader_is_gone(), if is_stdout => return Err(Failure::Closed),
    };
    if let Some(why) = refused {
        return Err(sink_failed(why));
    }
    let follower = follower?;
    let (delivered, nodes) =
        (follower.delivered(), follower.held().map(|(node, _)| node.to_string()).collect::<Vec<_>>());
    output.result_beside_data(&json!({ "delivered": delivered, "held": nodes }))?;
    output.note(&format!("keyleash: {} delivered", count(delivered, "event")));
    match nodes.len() {
        0 => Ok(()),
        held_nodes => Err(held(format!("{} held: see what was said of each", count(held_nodes as u64, "node")))),
    }
}

pub(crate) fn sink_failed(why: String) -> Failure {
    Failure::io("the sink", io::Error::other(why))
}

pub(crate) fn held(what: String) -> Failure {
    Failure::Partial { what, code: NOT_WHOLE }
}
