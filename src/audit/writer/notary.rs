//! The thread that signs: it asks the token and the key store, which may take their time, and writes no file.

use super::{
    disk::CHECKPOINTS,
    on_thread,
    queue::{Shared, Signed},
    recover::retained_note,
};
use crate::{
    audit::{
        checkpoint::{Checkpoint, Retained},
        note::Note,
        notes::{Next, Notes},
        signer::Signer,
        tree::Frontier,
        vkey::Vkey,
        walk::open_file,
    },
    error::{Error, Result},
    name::NodeName,
    store::{KeyStore, StoreVersion, load_checkpoint, record::CheckpointRecord},
};
use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// A signature, or an answer of the store, that takes longer is given up, and asked for again with the next checkpoint.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether the disk answers.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What could not be stored is tried again so long after.
const STORE_AGAIN: Duration = Duration::from_secs(60);
/// How often a checkpoint is put again at once, because another of ours came late in between.
const PUTS_MAX: usize = 8;

/// Who signs, and where the newest checkpoint is stored.
pub(super) struct Notary {
    pub(super) shared: Arc<Shared>,
    pub(super) signer: Arc<dyn Signer>,
    pub(super) vkey: Vkey,
    pub(super) origin: String,
    pub(super) node: NodeName,
    pub(super) store: Arc<dyn KeyStore>,
    /// Of what is stored.
    pub(super) version: Option<StoreVersion>,
    /// The node's directory.
    pub(super) folder: PathBuf,
    /// What could not be stored.
    pub(super) failed: Option<Signed>,
}

impl Notary {
    /// Until the writing thread has ended. `upkeep` goes on beside.
    pub(super) async fn run(mut self, upkeep: impl Future<Output = ()>) {
        let shared = self.shared.clone();
        let look = async {
            while !shared.has_ended() {
                tokio::time::sleep(LOOK_EVERY).await;
                shared.give_up_stalled();
            }
        };
        let work = async {
            loop {
                if tokio::time::timeout(STORE_AGAIN, shared.notary.notified()).await.is_err()
                    && let Some(signed) = self.failed.take()
                {
                    self.shared.lock().unstored.get_or_insert(signed);
                }
                while self.work().await {}
                if shared.has_ended() {
                    return;
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = async { tokio::join!(look, upkeep); } => {}
        }
    }

    /// One thing that is to be done; false where there is none.
    async fn work(&mut self) -> bool {
        let (unstored, unsigned) = {
            let mut inner = self.shared.lock();
            let unstored = inner.unstored.take();
            let unsigned = if unstored.is_none() { inner.unsigned.take() } else { None };
            inner.signing = unstored.is_some() || unsigned.is_some();
            (unstored, unsigned)
        };
        let (stored, signed) = match (unstored, unsigned) {
            (Some(signed), _) => {
                self.failed = None;
                (self.put(signed).await, None)
            }
            (None, Some(frontier)) => (None, Some(self.sign(&frontier).await)),
            (None, None) => return false,
        };
        self.shared.notarized(|inner| {
            inner.signing = false;
            inner.stored = stored.unwrap_or(inner.stored);
            inner.signed = signed.or(inner.signed.take());
        });
        true
    }

    async fn sign(&self, frontier: &Frontier) -> Result<Signed> {
        let unix = self.shared.clock.wall_unix();
        let text = Checkpoint::new(&*self.origin, frontier, unix).text();
        let signature = self.signature(&text).await?;
        let note = Note::new(text)?.signed(self.vkey.signature(&signature)?).to_string();
        Ok(Signed { size: frontier.size(), unix, note })
    }

    /// What the token makes of a text.
    pub(super) async fn signature(&self, text: &str) -> Result<Vec<u8>> {
        let (signer, text) = (self.signer.clone(), text.to_owned());
        // A task of its own, so that one that panics takes nothing else with it.
        patiently("the token", async move { signer.sign(text.as_bytes()).await }).await
    }

    /// Stores it. Where it cannot be, a later one takes its place, or it is tried again.
    async fn put(&mut self, signed: Signed) -> Option<u64> {
        for _ in 0..PUTS_MAX {
            let error = match self.try_put(&signed).await {
                Ok(()) => return Some(signed.size),
                Err(Error::Conflict(_) | Error::Exists(_) | Error::NotFound(_)) => match self.look().await {
                    Ok(true) => continue,
                    Ok(false) => {
                        self.shared.doubled(format!(
                            "another process writes a trail of node {} with this store: give each a node of its own (audit.node), and \
                             restart",
                            self.node
                        ));
                        return None;
                    }
                    Err(error) => error,
                },
                Err(error) => error,
            };
            tracing::warn!("{}: its newest checkpoint could not be stored: {error}", self.shared.name);
            break;
        }
        self.failed = Some(signed);
        None
    }

    async fn try_put(&mut self, signed: &Signed) -> Result<()> {
        let record = CheckpointRecord { node: self.node.clone(), note: signed.note.clone() };
        let (key, put, store, version) = (record.key(), record.put()?, self.store.clone(), self.version.clone());
        let stored = patiently("the key store", async move {
            match version {
                Some(version) => store.replace(&key, &version, put).await,
                None => store.create(&key, put).await,
            }
        });
        self.version = Some(stored.await?);
        Ok(())
    }

    /// Looks what is stored. False where that is of somebody else.
    async fn look(&mut self) -> Result<bool> {
        let (store, node) = (self.store.clone(), self.node.clone());
        let found = patiently("the key store", async move { load_checkpoint(&*store, &node).await }).await?;
        let (note, version) = found.map(|(record, version)| (record.note, version)).unzip();
        self.version = version;
        let Some(note) = note else { return Ok(true) };
        let folder = self.folder.clone();
        on_thread(move || Ok(is_among(&folder.join(CHECKPOINTS), &note)? || is_thinned(&folder, &note)?)).await
    }
}

/// Whether a checkpoint is one of those in a directory. Each stands there before it is stored: so one that was stored late is known, however
/// late, and also one of a process that ended as it stored it.
fn is_among(place: &Path, note: &str) -> Result<bool> {
    let failed = |error: io::Error| Error::Trail(format!("{}: {error}; see to the disk", place.display()));
    // One that is just being put back tells of nothing.
    let mut notes = open_file(place).and_then(Notes::of).map_err(failed)?;
    while let Some(next) = notes.next().map_err(failed)? {
        if matches!(next, Next::Note(there) if there.to_string() == note) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a checkpoint is of those that retention took away from the directory: signed before it, of fewer lines.
fn is_thinned(folder: &Path, note: &str) -> Result<bool> {
    let Some(retained) = retained_note(folder)? else { return Ok(false) };
    let (retained, checkpoint) = (Retained::of(&retained)?, Checkpoint::of(&Note::parse(note.as_bytes())?)?);
    Ok(checkpoint.size < retained.frontier.size() && checkpoint.time <= retained.time)
}

/// Waits for something that may hang, or panic.
pub(super) async fn patiently<T: Send + 'static>(
    who: &str,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let mut task = tokio::spawn(work);
    match tokio::time::timeout(PATIENCE, &mut task).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(Error::Trail(format!("{who} failed over it; see the log"))),
        Err(_) => {
            task.abort();
            Err(Error::Trail(format!("{who} has not answered for {} s; see to it", PATIENCE.as_secs())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{note::Signature, vkey::KeyId};

    #[test]
    fn a_stored_checkpoint_of_lines_that_retention_removed_is_ours_and_one_of_later_is_another_s() {
        let folder = tempfile::tempdir().unwrap();
        let tree = |lines: u64| {
            let mut tree = Frontier::new();
            (0..lines).for_each(|_| tree.append([1; 32]));
            tree
        };
        let signed = |text: String| {
            let signature = Signature { name: "k".into(), id: KeyId([0; 4]), bytes: vec![0; 64] };
            Note::new(text).unwrap().signed(signature).to_string()
        };
        let note = |lines, time| signed(Checkpoint::new("keyleash/0/n", &tree(lines), time).text());
        assert!(!is_thinned(folder.path(), &note(1, 10)).unwrap());
        let retained = Retained::new("keyleash/0/n", tree(5), 20).text();
        std::fs::write(folder.path().join("retained"), signed(retained)).unwrap();
        for (lines, time, is_ours) in [(4, 19, true), (5, 19, false), (4, 21, false)] {
            assert_eq!(is_thinned(folder.path(), &note(lines, time)).unwrap(), is_ours, "{lines} {time}");
        }
    }
}
