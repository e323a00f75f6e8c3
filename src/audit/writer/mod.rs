//! Writes the trail of one node: lines into the file of their hour, durable together, and signed checkpoints over them.
//!
//! | file | what |
//! | --- | --- |
//! | `queue.rs` | what stands between callers and the two threads |
//! | `scribe.rs` | the thread that writes: lines, tallies, notes, in order |
//! | `disk.rs` | the files: durable writes, the lock, what happens to them under our feet |
//! | `notary.rs` | the thread that signs, and stores the newest checkpoint |
//! | `recover.rs` | what a start finds, and what it does not go on with |
//! | `upkeep.rs` | compression and retention, of files that are not written any more |

use self::{
    disk::{Disk, Hook},
    notary::{Notary, patiently},
    queue::Shared,
    scribe::Scribe,
    upkeep::Upkeep,
};
use super::{
    checkpoint::{Checkpoint, Retained, key_name},
    note::Note,
    signer::Signer,
    vkey::{Keys, Vkey},
};
use crate::{
    clock::Clock,
    config::{AuditConfig, COMPRESS_AFTER_DEFAULT, OnFailure},
    error::{Corrupt, Error, Result},
    name::NodeName,
    secret::fork,
    store::{KeyStore, load_checkpoint, store_id},
    telemetry::trail::{Noted, Record, Standing, Trail},
};
use async_trait::async_trait;
use std::{io, path::PathBuf, sync::Arc, thread, time::Duration};
use tokio::sync::oneshot;

mod disk;
mod notary;
mod queue;
mod recover;
mod scribe;
mod upkeep;

pub use self::queue::{QUEUE_RECORDS_MAX, STALL_MAX};
pub(super) use self::{
    disk::{sync_folder, temporary},
    recover::retained_note,
};

/// A trail that is dropped, and was not closed, waits so long for its last checkpoint, on its own threads.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

/// Where a trail is kept, and how.
#[derive(Debug, Clone)]
pub struct Options {
    directory: PathBuf,
    /// The first is taken whose trail nobody else writes.
    nodes: Vec<NodeName>,
    on_failure: OnFailure,
    compress_after: Duration,
    retention: Option<Duration>,
    lock_patience: Duration,
    clock: Clock,
    earlier: Keys,
    before_sync: Option<Hook>,
}

impl Options {
    /// In the folder of this node, below a directory that is there.
    pub fn new(directory: impl Into<PathBuf>, node: NodeName) -> Self {
        Self {
            directory: directory.into(),
            nodes: vec![node],
            on_failure: OnFailure::default(),
            compress_after: COMPRESS_AFTER_DEFAULT,
            retention: None,
            lock_patience: Duration::ZERO,
            clock: Clock::default(),
            earlier: Keys::new(),
            before_sync: None,
        }
    }

    /// As a configuration says, for this node.
    ///
    /// # Errors
    /// [`Error::Misconfigured`] where one of `earlier_keys` is no key.
    pub fn of(config: &AuditConfig, node: NodeName) -> Result<Self> {
        let AuditConfig { directory, on_failure, compress_after, retention, earlier_keys, node: _ } = config;
        let (on_failure, compress_after, retention) = (*on_failure, *compress_after, *retention);
        let mut options = Self { on_failure, compress_after, retention, ..Self::new(directory, node) };
        for key in earlier_keys {
            let vkey = Vkey::parse(key);
            options = options.earlier_key(vkey.map_err(|error| {
                Error::Misconfigured(format!(
                    "audit.earlier_keys: {key:?}: {error}; write each as `keyleash audit key show` printed it"
                ))
            })?);
        }
        Ok(options)
    }

    /// Writes the trail of this node where another process writes those of the ones before. For short commands, of which many may run at
    /// once.
    #[must_use]
    pub fn or_node(mut self, node: NodeName) -> Self {
        self.nodes.push(node);
        self
    }

    /// What becomes of data operations while the trail cannot be kept. They are refused unless said otherwise.
    #[must_use]
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.on_failure = on_failure;
        self
    }

    /// Compresses files so long after their hour. A day unless said otherwise.
    #[must_use]
    pub fn compress_after(mut self, after: Duration) -> Self {
        self.compress_after = after;
        self
    }

    /// Removes files so long after their hour. Never unless said otherwise.
    #[must_use]
    pub fn retention(mut self, retention: Option<Duration>) -> Self {
        self.retention = retention;
        self
    }

    /// Waits so long for another process that writes the trail of this node, and at least a tenth of a second, which is all unless said
    /// otherwise.
    #[must_use]
    pub fn lock_patience(mut self, patience: Duration) -> Self {
        self.lock_patience = patience;
        self
    }

    /// Where time comes from.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Trusts checkpoints of this key too, which signed before the one that signs now.
    #[must_use]
    pub fn earlier_key(mut self, vkey: Vkey) -> Self {
        self.earlier = self.earlier.with(vkey);
        self
    }

    /// Called before what was written is synced; for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn before_sync(mut self, hook: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Self {
        self.before_sync = Some(Hook(Arc::new(hook)));
        self
    }
}

/// How a trail stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrailStatus {
    /// Whose it is.
    pub node: NodeName,
    /// Lines that are durable.
    pub lines: u64,
    /// Of how many of them the newest checkpoint tells, and when it was signed, in seconds since 1970.
    pub checkpoint: Option<(u64, u64)>,
    /// Of how many of them the newest checkpoint tells that this process put into the key store.
    pub stored: u64,
    /// Records that wait to be written.
    pub waiting: usize,
    /// Records that were lost, and that no line tells of yet.
    pub dropped: u64,
    /// Why it cannot be kept, and the remedy; `None` while it is kept.
    pub broken: Option<String>,
}

/// Writes the trail of one node. Where it is dropped, what it took is written all the same, unless the process ends before; a service
/// calls [`Writer::close`].
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    node: NodeName,
    on_failure: OnFailure,
}

impl Writer {
    /// Takes a node's directory, reads what is behind its last tally, and goes on. Before the first line, `signer` signs nothing.
    ///
    /// # Errors
    /// [`Error::Trail`] where another process writes the trail of this node, or the disk fails; [`Error::Misconfigured`] where there is
    /// no directory, or a trail of another store; [`Error::Corrupt`] where lines or checkpoints are not those that were written, are
    /// missing, or were put back from before; what the key store says, and where the key makes HMACs the token.
    pub async fn open(options: Options, store: Arc<dyn KeyStore>, signer: Arc<dyn Signer>) -> Result<Self> {
        fork::settle()?;
        let Options { directory, nodes, on_failure, lock_patience, clock, earlier, before_sync, .. } = options.clone();
        let vkey = Vkey::parse(signer.vkey())?;
        let key_name = key_name(store_id(&*store).await?.id);
        let place = directory.display().to_string();
        let (node, disk, note, retained) = on_thread(move || {
            let (node, mut disk) = Disk::take(&directory, &nodes, lock_patience, before_sync)?;
            upkeep::remove_leftovers(&disk.node().join(disk::CHECKPOINTS))
                .map_err(|error| Error::Trail(format!("{}: {error}; see to the disk", disk.node().display())))?;
            let note = recover::last_note(&mut disk)?;
            let retained = recover::retained_note(disk.node())?;
            Ok((node, disk, note, retained))
        })
        .await?;
        let (origin, name) = (format!("{key_name}/{node}"), format!("the trail of node {node} in {place}"));
        let stored = load_checkpoint(&*store, &node).await?;
        let stored_note = stored.as_ref().map(|(record, _)| Note::parse(record.note.as_bytes())).transpose()?;
        let trust = Trust { signer: signer.clone(), keys: earlier.with(vkey.clone()), vkey: vkey.clone() };
        let mut anchor: Option<Checkpoint> = None;
        for note in [&note, &stored_note].into_iter().flatten() {
            trust.check(note).await?;
            let checkpoint = Checkpoint::of(note)?;
            if checkpoint.origin != origin {
                return Err(Error::Misconfigured(format!(
                    "{name}: there is the trail of {}, and this one is of {origin}: each node and store has its own",
                    checkpoint.origin
                )));
            }
            match &anchor {
                Some(other) if other.size == checkpoint.size && other.root != checkpoint.root => {
                    return Err(Corrupt::Record {
                        record: name,
                        what: "its newest checkpoint and that in the key store tell of different lines: two processes wrote under one \
                               name, or somebody forged one; see `keyleash audit verify`, and begin another under another audit.node"
                            .into(),
                    }
                    .into());
                }
                Some(other) if other.size >= checkpoint.size => {}
                _ => anchor = Some(checkpoint),
            }
        }
        let retained = match retained {
            Some(note) => {
                trust.check(&note).await?;
                Some(Retained::of(&note)?)
            }
            None => None,
        };
        let found = on_thread(move || recover::recover(disk, anchor.as_ref(), retained)).await?;

        let shared = Arc::new(Shared::new(clock, name));
        let newest = note.as_ref().map(Checkpoint::of).transpose()?;
        shared.lock().checkpoint = newest.map(|checkpoint| (checkpoint.size, checkpoint.time.unwrap_or_default()));
        let folder = found.disk.node().to_owned();
        let scribe = Scribe::new(shared.clone(), found);
        let version = stored.map(|(_, version)| version);
        let notary = Notary {
            shared: shared.clone(),
            signer,
            vkey,
            origin: origin.clone(),
            node: node.clone(),
            store: store.clone(),
            version,
            folder: folder.clone(),
            failed: None,
        };
        let upkeep = Upkeep { shared: shared.clone(), folder, trust, origin, store, options };
        let ended = shared.clone();
        spawn("keyleash-trail", move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| scribe.run()));
            if outcome.is_err() {
                ended.fail();
            }
        })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::Fatal(format!("no runtime for the trail: {error}")))?;
        spawn("keyleash-notary", move || runtime.block_on(notary.run(upkeep.run())))?;
        Ok(Self { shared, node, on_failure })
    }

    /// Writes what was taken, a tally and a checkpoint over all, and gives the directory back. Takes nothing any more. Waits for the token
    /// and the key store no longer than `patience` each: without them the last lines are durable, and get their checkpoint with the next
    /// start.
    ///
    /// # Errors
    /// [`Error::Trail`]: some of it could not be written. It says how many records are lost.
    pub async fn close(&self, patience: Duration) -> Result<()> {
        fork::refuse_child()?;
        match self.shared.close(patience)? {
            Some(receiver) => self.answered(receiver).await,
            None => Ok(()),
        }
    }

    /// How it stands.
    ///
    /// # Errors
    /// [`Error::Fatal`] in a forked child.
    pub fn status(&self) -> Result<TrailStatus> {
        fork::refuse_child()?;
        let (waiting, dropped) = self.shared.waiting();
        let broken = self.shared.trouble();
        let inner = self.shared.lock();
        let (lines, checkpoint, stored) = (inner.size, inner.checkpoint, inner.stored);
        Ok(TrailStatus { node: self.node.clone(), lines, checkpoint, stored, waiting, dropped, broken })
    }

    async fn answered(&self, receiver: oneshot::Receiver<Result<()>>) -> Result<()> {
        receiver.await.unwrap_or_else(|_| Err(self.shared.error("its thread is gone; restart")))
    }
}

#[async_trait]
impl Trail for Writer {
    fn note(&self, record: Record) -> Noted {
        match (fork::refuse_child().and_then(|()| self.shared.note(record)), self.on_failure) {
            (Ok(()), _) => Noted::Taken,
            (Err(why), OnFailure::Refuse) => Noted::Refused(why),
            (Err(why), OnFailure::Continue) => Noted::Lost(why),
        }
    }

    async fn write(&self, record: Record) -> Result<()> {
        fork::refuse_child()?;
        let receiver = self.shared.write(Some(record))?;
        self.answered(receiver).await
    }

    async fn flush(&self) -> Result<()> {
        fork::refuse_child()?;
        let receiver = self.shared.write(None)?;
        self.answered(receiver).await
    }

    fn serves(&self) -> Result<()> {
        fork::refuse_child()?;
        match (self.on_failure, self.shared.trouble()) {
            (OnFailure::Refuse, Some(why)) => Err(self.shared.error(&why)),
            _ => Ok(()),
        }
    }

    fn has_room(&self) -> bool {
        fork::in_child() || self.shared.has_room()
    }

    fn standing(&self) -> Option<Standing> {
        (!fork::in_child()).then(|| self.shared.standing())
    }

    fn trouble(&self) -> Option<String> {
        if fork::in_child() { None } else { self.shared.trouble().map(|why| self.shared.error(&why).to_string()) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // In a child the threads are the parent's, and the lock is as it stood.
        if !fork::in_child() {
            drop(self.shared.close(DROP_PATIENCE));
        }
    }
}

/// Which signatures count.
#[derive(Debug, Clone)]
struct Trust {
    signer: Arc<dyn Signer>,
    vkey: Vkey,
    keys: Keys,
}

impl Trust {
    /// # Errors
    /// [`Error::Corrupt`] where none of the keys signed it; what the token says.
    async fn check(&self, note: &Note) -> Result<()> {
        let own = note.signatures().iter().find(|made| made.name == self.vkey.name() && made.id == self.vkey.id());
        match own {
            // An HMAC is verified by making it again.
            Some(made) if !self.vkey.is_public() => {
                let bytes = self.signer.sign(note.text().as_bytes()).await?;
                match self.vkey.signature(&bytes)?.bytes == made.bytes {
                    true => Ok(()),
                    false => Err(Corrupt::Note("its HMAC is not of this text".into()).into()),
                }
            }
            _ => note.verify(&self.keys),
        }
    }
}

/// Does on a thread of its own what blocks.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, receiver) = oneshot::channel();
    spawn("keyleash-trail-io", move || {
        // Who waits for it may have gone away.
        let _ = sender.send(work());
    })?;
    receiver.await.unwrap_or_else(|_| Err(Error::Trail("a thread of the trail failed; see the log".into())))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    match thread::Builder::new().name(name.to_owned()).spawn(work) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Fatal(format!("no thread for the trail: {error}; raise the limit of threads"))),
    }
}
