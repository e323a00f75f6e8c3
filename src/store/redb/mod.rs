//! The embedded store: one file of redb, which one process has open at a time.
//!
//! Writes that come together share one transaction and one fsync. redb does blocking I/O, so it runs on threads beside those of
//! whoever asks: one for writes, while there are any, and one per read. No future holds what another waits for, so that one which is
//! polled no more, or dropped with its runtime, holds up nobody. After an I/O error redb refuses everything until it is
//! opened again; the store does that on its next use, so that a disk that was full for a while needs no restart.
//!
//! Damage: opening verifies the checksums of all pages, in which every key, value and index entry stands, along the tree from
//! the root, so that nothing can be missing; what is read later is compared with what was verified (`pages.rs`).

use super::{
    Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned, check_limit, check_put,
    envelope::{self, Envelope},
};
use crate::error::{Error, Result};
use crate::secret::fill_random;
use ::redb::{Database, Error as RedbError, ReadableDatabase, StorageBackend};
use async_trait::async_trait;
use std::{
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    thread,
};
use tokio::sync::oneshot;

mod file;
mod header;
mod pages;
mod queue;
mod read_only;
mod shred;
mod write;

use self::file::{INDEX, RECORDS};
use self::pages::Known;
use self::queue::{Queue, Writer};
use self::write::{Job, Outcome, Write};

/// A key store in a redb file. Shared by reference or `Arc`; the file is free again when the last one is dropped.
pub struct RedbStore {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
}

type Reopen = dyn Fn(&Path, &Arc<Known>) -> Result<Database> + Send + Sync;

struct Shared {
    path: PathBuf,
    known: Arc<Known>,
    /// Opens it again.
    reopen: Box<Reopen>,
    /// `None` after an I/O error, and while the store rests, until the next use opens it again.
    database: RwLock<Option<Database>>,
    /// The path is that of the file: not so in tests whose disk fails.
    is_file: bool,
    is_read_only: bool,
}

impl RedbStore {
    /// Opens the store at `path`. Every page of it is read and verified, which takes 1.5 to 3 s for 1,000,000 accounts.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no file. [`Error::Misconfigured`] when the path cannot be a store of ours: a file that
    /// is no redb file or another program's, of a newer format, or that this user may not write. [`Error::Store`] when it is
    /// open in another process, the disk is full, or I/O fails. [`Error::Corrupt`] when it is damaged.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self> {
        Self::over(path.into(), true, file::open, file::open).await
    }

    /// As [`RedbStore::open`], and makes the store (mode 0600) when there is no file; it appears whole or not at all. For
    /// setting up: a service that makes a store where none is takes a volume that is not mounted for one without accounts.
    ///
    /// # Errors
    /// [`Error::Misconfigured`] also for a missing directory; else as [`RedbStore::open`].
    pub async fn open_or_create(path: impl Into<PathBuf>) -> Result<Self> {
        Self::over(path.into(), true, file::open_or_create, file::open).await
    }

    /// As [`RedbStore::open`], for one who only reads: needs no right to write to the file or its directory, and keeps writers out while
    /// it is open, but no other readers. Writing fails. No store for a service, which has denials to write down.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub async fn open_read_only(path: impl Into<PathBuf>) -> Result<Self> {
        let mut store = Self::over(path.into(), true, file::open_read_only, file::open_read_only).await?;
        if let Some(shared) = Arc::get_mut(&mut store.shared) {
            shared.is_read_only = true;
        }
        Ok(store)
    }

    /// Whether nothing can be written to it.
    pub fn is_read_only(&self) -> bool {
        self.shared.is_read_only
    }

    /// Over a backend in the place of the file, which `backend` gives anew each time that the store is opened: for tests, whose
    /// disk fails, or loses what it was not asked to sync. `name` stands for the path in errors.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    #[doc(hidden)]
    pub async fn open_backend<B: StorageBackend>(
        name: impl Into<PathBuf>,
        backend: impl Fn() -> B + Clone + Send + Sync + 'static,
    ) -> Result<Self> {
        let open = move |name: &Path, known: &Arc<Known>| file::open_backend(name, &backend, known);
        Self::over(name.into(), false, open.clone(), open).await
    }

    async fn over(
        path: PathBuf,
        is_file: bool,
        open: impl FnOnce(&Path, &Arc<Known>) -> Result<Database> + Send + 'static,
        reopen: impl Fn(&Path, &Arc<Known>) -> Result<Database> + Send + Sync + 'static,
    ) -> Result<Self> {
        let known = Arc::<Known>::default();
        let (path, known, database) = blocking(move || {
            let database = open(&path, &known)?;
            Ok((path, known, database))
        })
        .await?;
        let database = RwLock::new(Some(database));
        let shared = Shared { path, known, reopen: Box::new(reopen), database, is_file, is_read_only: false };
        Ok(Self { shared: Arc::new(shared), queue: Arc::default() })
    }

    /// Lets go of the file until the store is used next, so that other processes can open it. Waits for operations in flight.
    pub fn rest(&self) {
        self.shared.close();
    }

    /// Opens the file again after [`RedbStore::rest`], as the next use would. Nothing is verified anew if nobody else wrote
    /// meanwhile.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub async fn wake(&self) -> Result<()> {
        self.read(|_| Ok(())).await
    }

    /// Copies the store to a place where nothing is, as it is at one instant: the copy (mode 0600) is a store that opens like any
    /// other, and appears whole or not at all. Reads and writes wait meanwhile, for as long as the file takes to be copied and
    /// synced.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::Misconfigured`] for a directory that is missing or has no room for links; [`Error::Store`].
    pub async fn snapshot(&self, to: impl Into<PathBuf>) -> Result<()> {
        let (shared, to) = (self.shared.clone(), to.into());
        blocking(move || {
            let mut copied = Ok(());
            shared.with_database_alone(|_| {
                copied = file::copy(&shared.path, &to);
                Ok(())
            })?;
            copied
        })
        .await
    }

    /// Makes a copy fit to take the store's place: no version of what is written to it was ever given by the store that it was
    /// copied from, or by another copy. Else a write that was held up, and that names the version of a record which is gone,
    /// would replace another one that has that version since.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Fatal`] without randomness.
    pub async fn diverge(&self) -> Result<()> {
        let mut random = [0; 8];
        fill_random(&mut random)?;
        // More than a store is written in its life, and 2^19 copies of copies before they run out.
        let by = (u64::from_be_bytes(random) >> 20) | 1 << 32;
        let shared = self.shared.clone();
        shared.expect_writable()?;
        blocking(move || shared.with_database_alone(|database| write::skip_revisions(database, by))).await
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, RedbError> + Send + 'static,
    ) -> Result<T> {
        let shared = self.shared.clone();
        blocking(move || shared.with_database(read)).await
    }

    async fn write(&self, write: Write) -> Outcome {
        self.write_many(vec![write]).await.pop().unwrap_or_else(|| Err(given_up()))
    }

    /// Queues the writes, and has them done together with whatever else is queued.
    async fn write_many(&self, writes: Vec<Write>) -> Vec<Outcome> {
        if let Err(error) = self.shared.expect_writable() {
            return writes.iter().map(|_| Err(error.clone())).collect();
        }
        let mut answers = Vec::with_capacity(writes.len());
        let has_writer = {
            let mut waiting = self.queue.waiting();
            for write in writes {
                let (reply, answer) = oneshot::channel();
                waiting.jobs.push(Job { write, reply });
                answers.push(answer);
            }
            std::mem::replace(&mut waiting.has_writer, true)
        };
        if !has_writer {
            // Dropped where there is no thread: then what is queued is given up.
            let writer = Writer { queue: self.queue.clone(), shared: Arc::downgrade(&self.shared), is_done: false };
            if let Err(error) = thread::Builder::new().name("keyleash-store".into()).spawn(move || writer.write()) {
                tracing::error!(%error, "no thread that writes to the key store");
            }
        }
        let mut outcomes = Vec::with_capacity(answers.len());
        for answer in answers {
            outcomes.push(answer.await.unwrap_or_else(|_| Err(given_up())));
        }
        outcomes
    }
}

impl std::fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedbStore({:?})", self.shared.path)
    }
}

impl Shared {
    fn expect_writable(&self) -> Result<()> {
        match self.is_read_only {
            false => Ok(()),
            true => Err(Error::Store(format!("{}: it is open for reading alone", self.path.display()))),
        }
    }

    /// Uses the database; opens it first when an error closed it, and closes it on an error.
    fn with_database<T>(&self, work: impl FnOnce(&Database) -> Result<T, RedbError>) -> Result<T> {
        loop {
            if let Some(database) = &*self.database.read().unwrap_or_else(PoisonError::into_inner) {
                match file::guarded(&self.path, || work(database).map_err(|error| file::failed(&self.path, error))) {
                    Ok(value) => return Ok(value),
                    refused => break refused,
                }
            }
            let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
            if database.is_none() {
                let opened = (self.reopen)(&self.path, &self.known).map_err(|error| self.outage(error))?;
                *database = Some(opened);
            }
        }
        .map_err(|error| {
            self.close();
            self.outage(error)
        })
    }

    /// As [`KeyStore::shred`].
    fn shred(&self, remains: &[Vec<u8>]) -> Result<()> {
        for round in 0..shred::ROUNDS_MAX {
            self.with_database_alone(|database| {
                if round > 0 {
                    shred::rewrite_records(database)?;
                }
                shred::write_over_free_pages(database, || self.known.len())
            })?;
            let is_there = match self.is_file {
                true => shred::is_in(&self.path, remains).map_err(|error| file::io_failed(&self.path, &error))?,
                false => false,
            };
            if !is_there {
                return Ok(());
            }
        }
        let path = self.path.display();
        Err(Error::Store(format!(
            "{path}: what was destroyed is still found in the file; `keyleash store shred` tries again"
        )))
    }

    /// As [`Shared::with_database`], and nobody else uses it meanwhile.
    fn with_database_alone(&self, work: impl FnOnce(&mut Database) -> Result<(), RedbError>) -> Result<()> {
        let mut place = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if place.is_none() {
            *place = Some((self.reopen)(&self.path, &self.known).map_err(|error| self.outage(error))?);
        }
        let Some(database) = &mut *place else { return Ok(()) };
        let worked = file::guarded(&self.path, || work(database).map_err(|error| file::failed(&self.path, error)));
        worked.map_err(|error| {
            file::close(&self.path, place.take());
            self.outage(error)
        })
    }

    /// What befalls the file while the store is in use is an outage of the store, of which no account is to blame: keys in use
    /// go on, as promise 3 says.
    fn outage(&self, error: Error) -> Error {
        self.known.forget();
        match error {
            Error::Corrupt(damage) => Error::Store(damage.to_string()),
            // No account is gone because the file is.
            Error::NotFound(what) | Error::Misconfigured(what) => Error::Store(what),
            error => error,
        }
    }

    fn close(&self) {
        file::close(&self.path, self.database.write().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        file::close(&self.path, self.database.get_mut().unwrap_or_else(PoisonError::into_inner).take());
    }
}

fn given_up() -> Error {
    Error::Store("the write was given up; read again to see its effect".into())
}

/// Runs blocking work beside the runtime's own threads; where there is no runtime, on a thread for it alone.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let failed =
        || Error::Store("redb failed inside; if it happens again, the file is damaged: restore it from a copy".into());
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        let (reply, answer) = oneshot::channel();
        let read = thread::Builder::new().name("keyleash-store".into()).spawn(move || drop(reply.send(work())));
        read.map_err(|error| Error::Store(format!("no thread that reads the key store: {error}")))?;
        return answer.await.unwrap_or_else(|_| Err(failed()));
    };
    match runtime.spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(failed()),
        Err(_) => Err(Error::Store("the runtime is shutting down".into())),
    }
}

#[async_trait]
impl KeyStore for RedbStore {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        self.get_many(std::slice::from_ref(key)).await.pop().unwrap_or(Ok(None))
    }

    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Versioned>>> {
        let wanted: Vec<_> = keys.iter().map(Key::to_bytes).collect();
        let found = self.read(move |database| {
            let table = database.begin_read()?.open_table(RECORDS)?;
            let read = |bytes: &Vec<u8>| Ok(table.get(bytes.as_slice())?.map(|value| value.value().to_vec()));
            wanted.iter().map(read).collect::<Result<Vec<_>, RedbError>>()
        });
        let decoded = |(key, bytes): (&Key, Option<Vec<u8>>)| {
            let Some(bytes) = bytes else { return Ok(None) };
            let Envelope { revision, record, .. } = Envelope::decode(key, &bytes, write::CHANGED)?;
            Ok(Some(Versioned { value: record.to_vec(), version: version_of(revision) }))
        };
        match found.await {
            Ok(found) => keys.iter().zip(found).map(decoded).collect(),
            Err(error) => keys.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn shred(&self, remains: Vec<Vec<u8>>) -> Result<()> {
        let shared = self.shared.clone();
        shared.expect_writable()?;
        blocking(move || shared.shred(&remains)).await
    }

    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        check_put(key, &put)?;
        self.write(Write::Create { key: key.clone(), put }).await
    }

    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
        check_put(key, &put)?;
        self.write(Write::Replace { key: key.clone(), expected: expected.clone(), put }).await
    }

    async fn replace_many(&self, changes: Vec<(Key, StoreVersion, Put)>) -> Vec<Result<StoreVersion>> {
        let refused: Vec<_> = changes.iter().map(|(key, _, put)| check_put(key, put).err()).collect();
        let sound = changes.into_iter().zip(&refused).filter(|(_, refused)| refused.is_none());
        let writes = sound.map(|((key, expected, put), _)| Write::Replace { key, expected, put }).collect();
        let mut written = self.write_many(writes).await.into_iter();
        let answer = |refused: Option<Error>| match refused {
            Some(error) => Err(error),
            None => written.next().unwrap_or_else(|| Err(given_up())),
        };
        refused.into_iter().map(answer).collect()
    }

    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
        self.write(Write::Delete { key: key.clone(), expected: expected.clone() }).await.map(drop)
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        let limit = check_limit(limit)?;
        // In the index a key's bytes stand behind its KEK version's.
        let (prefix, skip) = match filter {
            Filter::WrappedBy(kek) => {
                let prefix = envelope::index_prefix(kek);
                let skip = prefix.len();
                (prefix, skip)
            }
            filter => (filter.prefix(), 0),
        };
        let after = after.map(|key| [prefix.get(..skip).unwrap_or_default(), &key.to_bytes()].concat());
        let found = self.read(move |database| {
            let transaction = database.begin_read()?;
            let first = match &after {
                // `after` may be of a kind before this one.
                Some(after) => Bound::Excluded(after.as_slice().max(prefix.as_slice())),
                None => Bound::Included(prefix.as_slice()),
            };
            let range = (first, Bound::Unbounded);
            if skip > 0 {
                page(transaction.open_table(INDEX)?.range::<&[u8]>(range)?, &prefix, skip, limit)
            } else {
                page(transaction.open_table(RECORDS)?.range::<&[u8]>(range)?, &prefix, skip, limit)
            }
        });
        let keys = found.await?.iter().map(|bytes| Key::from_bytes(bytes)).collect::<Result<_>>()?;
        Ok(Page::of(keys, limit))
    }
}

/// Up to `limit + 1` keys that begin with `prefix`, without their first `skip` bytes.
fn page<V: ::redb::Value>(
    range: ::redb::Range<'_, &'static [u8], V>,
    prefix: &[u8],
    skip: usize,
    limit: usize,
) -> Result<Vec<Vec<u8>>, RedbError> {
    let mut keys = Vec::new();
    for entry in range {
        let (key, _value) = entry?;
        if keys.len() > limit || !key.value().starts_with(prefix) {
            break;
        }
        keys.push(key.value().get(skip..).unwrap_or_default().to_vec());
    }
    Ok(keys)
}

fn version_of(revision: u64) -> StoreVersion {
    StoreVersion(revision.to_be_bytes().to_vec())
}

#[cfg(test)]
mod tests;
