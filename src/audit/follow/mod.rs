//! Follows the trails of nodes, and brings each event to where it is wanted: in order, at least once, from where it was acknowledged last.

use self::{
    cursor::{At, Cursor},
    tail::{GONE, Tail},
};
use super::{line::Time, tree::leaf_hash};
use crate::{
    clock::Clock,
    error::{Error, Result},
    name::NodeName,
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

mod cursor;
mod sinks;
mod tail;

pub(in crate::audit) use self::sinks::CommandFailure;
pub use self::sinks::{COMMAND_MAX, CommandSink, FileSink};

/// Most events that are delivered at once.
pub const BATCH_EVENTS_MAX: usize = 1000;
/// About so many bytes of events are delivered at once.
const BATCH_BYTES: usize = 1024 * 1024;
/// How often it is looked whether there is something new.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A sink that failed is tried again so long after, twice as long after each failure, up to a minute.
const SINK_AGAIN: Duration = Duration::from_secs(1);
const SINK_AGAIN_MAX: Duration = Duration::from_secs(60);
/// A sink is told so often that there is nothing.
const IDLE_EVERY: Duration = Duration::from_secs(10);

/// A line of a trail, on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// The node that wrote it.
    pub node: NodeName,
    /// Its number in the node's trail.
    pub seq: u64,
    /// What the node's wall clock said.
    pub time: Time,
    /// The line as it stands in the trail: a JSON object, without a line break.
    pub line: Vec<u8>,
}

impl Event {
    /// What is the same whenever it is delivered, and no other event has that one key store knows: `web-1/17`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.node, self.seq)
    }

    /// The line with its id and node in front, and a line break behind: `{"id":"web-1/17","node":"web-1","seq":17,…}`. Behind
    /// `"node":"web-1",` stand the bytes of the line but for its first.
    pub fn json(&self) -> Vec<u8> {
        // The names of nodes need no escapes.
        let front = format!("{{\"id\":\"{}\",\"node\":\"{}\",", self.id(), self.node);
        [front.as_bytes(), self.line.get(1..).unwrap_or_default(), b"\n"].concat()
    }
}

/// Where events are brought.
#[async_trait]
pub trait AuditSink: Send {
    /// Takes events, 1 to [`BATCH_EVENTS_MAX`], in their order. They are acknowledged when it returns: the cursor moves on behind them, and
    /// they are not delivered again. Where it fails, or the process ends before the cursor is written, all of them are, with the same ids.
    /// Dropped, it gives up.
    ///
    /// # Errors
    /// Why they could not be taken, and the remedy. They are brought again, later.
    async fn deliver(&mut self, events: &[Event]) -> Result<(), String>;

    /// There is nothing to bring: all that is there was delivered. Called about every 10 s, and before what is followed to an end ends.
    ///
    /// # Errors
    /// As [`AuditSink::deliver`]; where there is no next time the follower ends with it.
    async fn idle(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// These nodes do not go on, and why: called at the beginning, and as that changes.
    fn held(&mut self, _held: &BTreeMap<NodeName, String>) {}

    /// What it wants to be kept with the cursor, one value of JSON, where that changed since it was asked last. It is written with the
    /// cursor, whole, so that both are of one moment, also where the process is killed; and is asked for after whatever it was called for,
    /// also where that failed.
    ///
    /// # Errors
    /// Why there is none; the follower ends with it.
    fn state(&mut self) -> Result<Option<String>, String> {
        Ok(None)
    }

    /// Takes up what was kept, in the place of all that it knows, before anything is delivered, where there is something; `acknowledged` has
    /// for each node the number of the line behind those that were acknowledged.
    ///
    /// # Errors
    /// Why it is none of its own: nothing is delivered.
    fn take_up(&mut self, _state: &str, _acknowledged: &BTreeMap<NodeName, u64>) -> Result<(), String> {
        Err("it has what alerts know: give what follows besides a cursor of its own".into())
    }
}

/// How long is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Until {
    /// Until the future is dropped.
    Dropped,
    /// Until all is delivered that was there at this time by the wall clock; with a time that has passed, all that is there.
    Time(Time),
}

/// What is told while it is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Told {
    /// A node does not go on, and why, with the remedy. The others do.
    Held(NodeName, String),
    /// It goes on again.
    GoesOn(NodeName),
    /// The sink did not take events, and why; they are brought again, so long after, or not by this call where that is `None`.
    Refused(String, Option<Duration>),
    /// The cursor could not be written, and why; it is written again so long after, and nothing is delivered before.
    NotWritten(String, Duration),
}

/// Reads the trails of all nodes below a directory, behind what a cursor says was acknowledged.
///
/// In which order events come: those of a node in the order of their numbers, without a gap. Of several nodes the one comes next whose time
/// is the earliest, of what is there when it is looked; at the same time the node of the lesser name. Nobody waits for a node that has
/// nothing: what it writes late, or what appears late of it, comes late, behind later events of the others.
pub struct Follower {
    directory: PathBuf,
    cursor: Cursor,
    tails: BTreeMap<NodeName, Tail>,
    skips_removed: bool,
    held: BTreeMap<NodeName, String>,
    delivered: u64,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Follower {
    /// Follows the nodes below `directory`, by a file that keeps how far events were acknowledged. Where that file is not there it begins
    /// with the first line that each node has. Blocks.
    ///
    /// # Errors
    /// [`Error::Conflict`] where another process follows by this cursor; [`Error::Invalid`] where the file is none; [`Error::Trail`] where
    /// it cannot be read.
    pub fn open(directory: impl Into<PathBuf>, cursor: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self {
            directory: directory.into(),
            cursor: Cursor::open(&cursor.into())?,
            tails: BTreeMap::new(),
            skips_removed: false,
            held: BTreeMap::new(),
            delivered: 0,
        })
    }

    /// Goes on behind lines that retention removed before they were delivered. A node is held there unless this is said.
    #[must_use]
    pub fn skip_removed(mut self, skip: bool) -> Self {
        self.skips_removed = skip;
        self
    }

    /// The next events, in their order; none where there is nothing now. Blocks.
    ///
    /// # Errors
    /// [`Error::Trail`] where the directory cannot be read, and no node of it is known.
    pub fn next_batch(&mut self) -> Result<Vec<Event>> {
        self.look_for_nodes()?;
        let (mut batch, mut bytes, mut dry) = (Vec::new(), 0, BTreeSet::new());
        while batch.len() < BATCH_EVENTS_MAX && bytes < BATCH_BYTES {
            for (name, tail) in &mut self.tails {
                // Once in a batch: what comes meanwhile comes with the next.
                if tail.first().is_none() && !dry.contains(name) {
                    tail.fill();
                    if tail.first().is_none() {
                        dry.insert(name.clone());
                    }
                }
            }
            let first = self.tails.values_mut().filter(|tail| tail.first().is_some());
            let Some(event) = first.min_by_key(|tail| tail.first().map(|event| event.time)).and_then(Tail::take) else {
                break;
            };
            bytes += event.line.len();
            batch.push(event);
        }
        Ok(batch)
    }

    /// These events, which are the next ones, were acknowledged. The cursor is durable when this returns. Blocks.
    ///
    /// # Errors
    /// [`Error::Trail`] where it cannot be written: they are delivered again after a restart.
    pub fn acknowledge(&mut self, events: &[Event]) -> Result<()> {
        // As after a restart: of a node that comes from now on nothing was there before.
        self.cursor.is_new = false;
        for event in events {
            let at = At { next: event.seq + 1, leaf: Some(leaf_hash(&event.line)) };
            self.cursor.nodes.insert(event.node.clone(), at);
        }
        self.delivered += events.len() as u64;
        self.cursor.write()
    }

    /// Keeps what a sink says, which has these events, and did not acknowledge them.
    fn keep(&mut self, state: Option<String>, events: &[Event]) -> Result<()> {
        if state.is_none() {
            return Ok(());
        }
        for event in events {
            self.cursor.nodes.entry(event.node.clone()).or_insert(At { next: event.seq, leaf: None });
        }
        self.cursor.state = state;
        self.cursor.write()
    }

    /// Does what ends with writing the cursor. Where that fails it is written again later, as long as it may: until then nothing more is
    /// delivered, and what was is not brought again.
    async fn writing(
        self,
        is_time: impl Fn() -> bool,
        told: &mut (dyn FnMut(Told) + Send),
        work: impl FnOnce(&mut Self) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let mut again = SINK_AGAIN;
        let (mut follower, mut written) = blocking(self, |follower| Ok(work(follower))).await?;
        while let Err(error) = written {
            if is_time() {
                return Err(error);
            }
            let why = if let Error::Trail(why) = error { why } else { error.to_string() };
            told(Told::NotWritten(why, again));
            tokio::time::sleep(again).await;
            again = SINK_AGAIN_MAX.min(again * 2);
            (follower, written) = blocking(follower, |follower| Ok(follower.cursor.write())).await?;
        }
        Ok(follower)
    }

    /// The nodes that do not go on, and why.
    pub fn held(&self) -> impl Iterator<Item = (&NodeName, &str)> {
        self.held.iter().map(|(node, why)| (node, why.as_str()))
    }

    /// How many events were acknowledged.
    pub const fn delivered(&self) -> u64 {
        self.delivered
    }

    fn look_for_nodes(&mut self) -> Result<()> {
        let failed =
            |error: io::Error| Error::Trail(format!("{}: {error}; see to the directory", self.directory.display()));
        let entries = match fs::read_dir(&self.directory).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            // A disk that is not mounted: each node that was there is held, by its name, until it is back.
            Err(_) if !self.tails.is_empty() || !self.cursor.nodes.is_empty() => Vec::new(),
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let Some(name) = entry.file_name().to_str().and_then(|name| NodeName::new(name).ok()) else { continue };
            let folder = entry.path();
            if self.tails.contains_key(&name)
                || !folder.join(super::progress::LOCK).exists() && !folder.join(super::verify::CHECKPOINTS).exists()
            {
                continue;
            }
            let at = match self.cursor.nodes.get(&name) {
                Some(at) => Some(*at),
                // A node that came since has nothing that was delivered before.
                None if !self.cursor.is_new => Some(At { next: 0, leaf: None }),
                None => None,
            };
            self.tails.insert(name.clone(), Tail::new(name, folder, at, self.skips_removed));
        }
        Ok(())
    }

    /// What is told of nodes since it was asked last.
    fn news(&mut self) -> Vec<Told> {
        let trouble = |(name, tail): (&NodeName, &Tail)| Some((name.clone(), tail.trouble()?.to_owned()));
        let mut held: BTreeMap<_, _> = self.tails.iter().filter_map(trouble).collect();
        for name in self.cursor.nodes.keys().filter(|name| !self.tails.contains_key(*name)) {
            held.insert(name.clone(), GONE.to_owned());
        }
        let new = held.iter().filter(|(name, why)| self.held.get(*name) != Some(why));
        let mut news: Vec<_> = new.map(|(name, why)| Told::Held(name.clone(), why.clone())).collect();
        news.extend(self.held.keys().filter(|name| !held.contains_key(*name)).cloned().map(Told::GoesOn));
        self.held = held;
        news
    }

    /// Brings events to a sink. Gives the follower back, by which is seen what was delivered and which nodes do not go on.
    ///
    /// With [`Until::Time`] a sink that fails when the time has come is not tried again. Dropped, it gives up what is on its way, which is
    /// then delivered again.
    ///
    /// # Errors
    /// As [`Follower::next_batch`] and [`Follower::acknowledge`]; [`Error::Trail`] with the sink's words; [`Error::Invalid`] where what is kept
    /// with the cursor is not this sink's.
    pub async fn deliver(
        mut self,
        sink: &mut dyn AuditSink,
        until: Until,
        clock: &Clock,
        told: &mut (dyn FnMut(Told) + Send),
    ) -> Result<Self> {
        if let Some(state) = &self.cursor.state {
            let acknowledged = self.cursor.nodes.iter().map(|(node, at)| (node.clone(), at.next)).collect();
            sink.take_up(state, &acknowledged).map_err(|why| self.cursor.unusable(&why))?;
        }
        let (mut next_idle, mut is_first) = (clock.now(), true);
        loop {
            // Asked before it is looked: what was there at that time is delivered.
            let is_time = || matches!(until, Until::Time(end) if clock.wall_unix_ms() >= end.unix_ms());
            let is_last = is_time();
            let (follower, batch) = blocking(self, |follower| follower.next_batch()).await?;
            self = follower;
            let news = self.news();
            if !news.is_empty() || std::mem::take(&mut is_first) {
                sink.held(&self.held);
                next_idle = clock.now();
            }
            news.into_iter().for_each(&mut *told);
            if batch.is_empty() {
                if is_last || clock.now() >= next_idle {
                    next_idle = clock.now().plus(IDLE_EVERY);
                    let idled = sink.idle().await;
                    let state = kept(sink)?;
                    self = self.writing(is_time, told, move |follower| follower.keep(state, &[])).await?;
                    if let Err(why) = idled {
                        told(Told::Refused(why.clone(), (!is_last).then_some(IDLE_EVERY)));
                        if is_last {
                            return Err(refused(&why));
                        }
                    }
                }
                if is_last {
                    return Ok(self);
                }
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            let (mut again, batch) = (SINK_AGAIN, Arc::new(batch));
            while let Err(why) = sink.deliver(&batch).await {
                let (state, events) = (kept(sink)?, batch.clone());
                self = self.writing(is_time, told, move |follower| follower.keep(state, &events)).await?;
                if is_time() {
                    told(Told::Refused(why.clone(), None));
                    return Err(refused(&why));
                }
                told(Told::Refused(why, Some(again)));
                tokio::time::sleep(again).await;
                again = SINK_AGAIN_MAX.min(again * 2);
            }
            let state = kept(sink)?;
            let acknowledge = move |follower: &mut Self| {
                follower.cursor.state = state.or(follower.cursor.state.take());
                follower.acknowledge(&batch)
            };
            self = self.writing(is_time, told, acknowledge).await?;
        }
    }
}

fn kept(sink: &mut dyn AuditSink) -> Result<Option<String>> {
    sink.state().map_err(Error::Trail)
}

fn refused(why: &str) -> Error {
    Error::Trail(format!("the sink did not take events of it: {why}"))
}

/// Does with the follower what blocks.
async fn blocking<T: Send + 'static>(
    mut follower: Follower,
    work: impl FnOnce(&mut Follower) -> Result<T> + Send + 'static,
) -> Result<(Follower, T)> {
    let done = tokio::task::spawn_blocking(move || work(&mut follower).map(|done| (follower, done)));
    done.await.unwrap_or_else(|_| Err(Error::Trail("a thread that follows it failed; see the log".into())))
}
