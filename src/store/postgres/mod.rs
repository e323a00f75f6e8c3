//! The store in a database of PostgreSQL, for services on many machines.
//!
//! A write is one transaction: it takes locks on the record and on its guards, compares their versions, and writes the record and what is
//! different in the index. So the index is exact at every instant, and a listing is of what is. Only the primary is read: each
//! transaction is one that could write, which a standby refuses, and sees all that was committed before it began. [`StoreVersion`] is
//! 16 random bytes of each write, so that none comes twice, on a server that was restored or had been behind neither.
//!
//! The connections live on a thread of the store's own, so that they stand still with nobody's runtime. Nothing is kept in memory between
//! two calls. What was deleted or replaced stays in the tables until these are vacuumed, and in the write-ahead log and its archive: who
//! can make an end of it is whoever runs the server, so [`shred`](KeyStore::shred) does nothing here.

use self::{
    feed::Feed,
    schema::{Change, ID_BYTES, LAYOUT, NOT_DURABLE, Schema},
    servers::{Servers, Statement},
};
use super::{
    Changes, Filter, Key, KeyStore, PAGE_KEYS_MAX, Page, Probe, Put, StoreVersion, VALUE_BYTES_MAX, Versioned,
    WRAPPED_BY_MAX, check_limit, check_put, conflict,
    envelope::Envelope,
    exists, not_found,
    remote::{Failure, PROBES, Remote, median},
};
use crate::{
    clock::{Clock, Instant},
    config::store::{PostgresConfig, StoreTls},
    error::{Corrupt, Error, Result},
    secret::fill_random,
};
use async_trait::async_trait;
use std::{fmt, sync::Arc};
use tokio::sync::Semaphore;
use tokio_postgres::{Row, types::FromSql};

mod connect;
mod feed;
mod schema;
mod servers;
mod trouble;

/// Most changes in one transaction, and most bytes of their values: locks are held until it is over.
const CHANGES_MAX: usize = 32;
const CHANGES_BYTES: usize = 1024 * 1024;
/// Longest value with what stands around it: of each KEK version its name with its length, and its number.
const STORED_BYTES_MAX: usize = VALUE_BYTES_MAX + WRAPPED_BY_MAX * (1 + 64 + 4) + 64;

/// A key store in PostgreSQL. Shared by reference or `Arc`; its connections (at most 8) end with the last one.
pub struct PostgresStore {
    remote: Remote<Shared>,
}

struct Shared {
    name: String,
    servers: Servers,
    schema: Schema,
}

impl PostgresStore {
    /// Opens the store in a schema.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such schema, or nothing in it. [`Error::Misconfigured`] when it is somebody else's, or of a layout
    /// that this release does not know; when the server refuses the user, the database or the certificates, or loses what it acknowledged
    /// (`synchronous_commit = off`); when the settings are none. [`Error::Store`] when no primary answers.
    pub async fn open(config: &PostgresConfig) -> Result<Self> {
        Self::connect(config, false).await
    }

    /// As [`PostgresStore::open`], and makes the store, and the schema, where there is nothing. For setting up: a service that makes a store
    /// where none is takes a schema that is misspelt for one without accounts.
    ///
    /// # Errors
    /// As [`PostgresStore::open`].
    pub async fn open_or_create(config: &PostgresConfig) -> Result<Self> {
        Self::connect(config, true).await
    }

    async fn connect(config: &PostgresConfig, create: bool) -> Result<Self> {
        config.validate()?;
        let shared = Shared {
            name: config.to_string(),
            servers: Servers::new(config.clone()),
            schema: Schema { name: config.schema.clone() },
        };
        // Those that wait for a connection do so in their time.
        let store = Self { remote: Remote::begin("postgres", shared.name.clone(), Semaphore::MAX_PERMITS, shared)? };
        store.remote.run(move |shared| async move { shared.find(create).await }).await?;
        Ok(store)
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PostgresStore").field(&self.remote.name()).finish()
    }
}

/// What a statement of a write found.
struct Found {
    ours: bool,
    durable: bool,
    locked: bool,
    version: Option<Vec<u8>>,
    guards: Vec<Option<Vec<u8>>>,
    written: bool,
}

impl Shared {
    fn named(&self, failure: Failure) -> Error {
        failure.named(&self.name)
    }

    /// What the store is known by, once it was found.
    fn id(&self) -> &[u8] {
        self.servers.id.get().map(Vec::as_slice).unwrap_or_default()
    }

    fn strange_answer(&self) -> Error {
        Error::Store(format!("{}: an answer that is none of its statements", self.name))
    }

    fn column<'a, T: FromSql<'a>>(&self, row: &'a Row, at: usize) -> Result<T> {
        row.try_get(at).map_err(|_| self.strange_answer())
    }

    /// Looks for the layout, and makes it where there is nothing and `create` is true.
    async fn find(&self, create: bool) -> Result<()> {
        let (until, name) = (self.servers.deadline(), &self.schema.name);
        let set_up = |failure: Failure| failure.of_set_up(&self.name);
        let look = Statement::Query { text: schema::LOOK.into(), params: vec![schema::text(name)] };
        let rows = self.servers.read(look, until).await.map_err(set_up)?;
        let row = rows.first().ok_or_else(|| self.strange_answer())?;
        let (is_there, relations, is_ours) =
            (self.column(row, 0)?, self.column::<i64>(row, 1)?, self.column::<bool>(row, 2)?);
        if is_ours {
            let look = Statement::Query { text: schema::id(name), params: Vec::new() };
            let rows = self.servers.read(look, until).await.map_err(set_up)?;
            let Some(row) = rows.first() else { return Err(self.strange("it has no layout".into())) };
            let (layout, id) = (row.try_get::<_, i32>(0), row.try_get::<_, Vec<u8>>(1));
            return match (layout, id) {
                (Ok(LAYOUT), Ok(id)) if id.len() == ID_BYTES => {
                    let _ = self.servers.id.set(id);
                    self.servers.read(self.schema.look(), until).await.map(drop).map_err(set_up)
                }
                (Ok(layout), Ok(_)) if layout != LAYOUT => Err(Error::Misconfigured(format!(
                    "store {}: its layout is {layout}, this release knows {LAYOUT}: use the release that wrote it, or another schema",
                    self.name
                ))),
                _ => Err(self.strange("its layout cannot be read".into())),
            };
        }
        match (relations, create) {
            (1.., _) => Err(self.strange("the schema holds tables that are no store's".into())),
            (_, true) => self.make(is_there, until).await,
            (_, false) if is_there => Err(Error::NotFound(format!("store {}: the schema is empty", self.name))),
            (_, false) => Err(Error::NotFound(format!("store {}: there is no such schema", self.name))),
        }
    }

    fn strange(&self, what: String) -> Error {
        Error::Misconfigured(format!("store {}: {what}: use a schema of its own", self.name))
    }

    async fn make(&self, is_there: bool, until: Instant) -> Result<()> {
        let statements = [self.schema.lock_whole(), schema::make(&self.schema.name, !is_there)];
        let Err(failure) = self.servers.write(&statements, until).await else {
            return Box::pin(self.find(false)).await;
        };
        // Somebody may have been faster: perhaps to make the same.
        match Box::pin(self.find(false)).await {
            Err(Error::NotFound(_) | Error::Store(_)) => Err(failure.of_set_up(&self.name)),
            found => found,
        }
    }

    /// All of them in one transaction, each answered by itself.
    async fn write(&self, changes: &[Change<'_>]) -> Result<Vec<Result<StoreVersion>>> {
        let until = self.servers.deadline();
        let mut mark = [0; ID_BYTES];
        fill_random(&mut mark)?;
        let mark: String = mark.iter().map(|byte| format!("{byte:02x}")).collect();
        let id = self.id();
        let mut statements = vec![self.schema.lock(changes, &mark)];
        statements.extend(changes.iter().map(|change| self.schema.write(change, id, &mark)));
        let rows = self.servers.write(&statements, until).await.map_err(|failure| self.named(failure))?;
        if rows.len() != statements.len() {
            return Err(self.strange_answer());
        }
        let mut outcomes = Vec::with_capacity(changes.len());
        for (change, rows) in changes.iter().zip(rows.iter().skip(1)) {
            let row = rows.first().ok_or_else(|| self.strange_answer())?;
            let found = Found {
                ours: self.column(row, 0)?,
                durable: self.column(row, 1)?,
                locked: self.column(row, 2)?,
                version: self.column(row, 3)?,
                guards: self.column(row, 4)?,
                written: self.column(row, 5)?,
            };
            outcomes.push(match found.written {
                true => Ok(StoreVersion(change.version.to_vec())),
                false => Err(self.refusal(change, &found)),
            });
        }
        Ok(outcomes)
    }

    /// Which of the comparisons did not hold.
    fn refusal(&self, change: &Change<'_>, found: &Found) -> Error {
        let (key, named) = (change.key, |what: &str| Error::Store(format!("{}: {what}", self.name)));
        match found {
            Found { ours: false, .. } => return named("the store was removed from its schema"),
            Found { durable: false, .. } => return named(&format!("{NOT_DURABLE}: nothing was written")),
            Found { locked: false, .. } => return named("its transaction was not begun: nothing was written"),
            _ => {}
        }
        match (change.expected, &found.version) {
            (None, Some(_)) => return exists(key),
            (Some(_), None) => return not_found(key),
            (Some(expected), Some(version)) if *version != expected.0 => return conflict(key),
            _ => {}
        }
        let mut guards = change.put.map(|put| put.guards.as_slice()).unwrap_or_default().iter().zip(&found.guards);
        let changed = guards.find(|((_, version), now)| now.as_ref() != Some(&version.0));
        conflict(changed.map_or(key, |((guard, _), _)| guard))
    }

    /// One change. `put` is `None` where it is deleted.
    async fn change(&self, key: &Key, expected: Option<&StoreVersion>, put: Option<&Put>) -> Result<StoreVersion> {
        if let Some(put) = put {
            check_put(key, put)?;
        }
        let change = Change { key, expected, put, version: new_version()? };
        self.write(&[change]).await?.pop().unwrap_or_else(|| Err(self.strange_answer()))
    }

    async fn replace_some(&self, changes: &[(Key, StoreVersion, Put)]) -> Vec<Result<StoreVersion>> {
        let change = |(key, _, put): &(Key, StoreVersion, Put)| {
            check_put(key, put)?;
            new_version()
        };
        let versions: Vec<_> = changes.iter().map(change).collect();
        let able = changes.iter().zip(&versions).filter_map(|((key, expected, put), version)| {
            let version = *version.as_ref().ok()?;
            Some(Change { key, expected: Some(expected), put: Some(put), version })
        });
        let able: Vec<_> = able.collect();
        let written = if able.is_empty() { Ok(Vec::new()) } else { self.write(&able).await };
        let mut written = written.map(Vec::into_iter);
        let outcome = |version: Result<[u8; ID_BYTES]>| match (version, &mut written) {
            (Err(error), _) => Err(error),
            (_, Err(error)) => Err(error.clone()),
            (_, Ok(written)) => written.next().unwrap_or_else(|| Err(self.strange_answer())),
        };
        versions.into_iter().map(outcome).collect()
    }

    /// As many at a time as one answer has room for.
    async fn get_some(&self, keys: &[Key]) -> Result<Vec<Result<Option<Versioned>>>> {
        let until = self.servers.deadline();
        let mut found: Vec<_> = keys.iter().map(|_| Ok(None)).collect();
        let mut wanted: Vec<usize> = (0..keys.len()).collect();
        while !wanted.is_empty() {
            let asked: Vec<_> = wanted.iter().filter_map(|at| keys.get(*at).cloned()).collect();
            let get = self.schema.get(&asked, STORED_BYTES_MAX);
            let rows = self.servers.read(get, until).await.map_err(|failure| self.named(failure))?;
            let mut left_out = Vec::new();
            for row in &rows {
                let n = usize::try_from(self.column::<i64>(row, 0)?).ok().and_then(|n| n.checked_sub(1));
                let at = n.and_then(|n| wanted.get(n)).copied().ok_or_else(|| self.strange_answer())?;
                let (Some(key), Some(place)) = (keys.get(at), found.get_mut(at)) else { continue };
                let (bytes, value) = (self.column::<i64>(row, 2)?, self.column::<Option<&[u8]>>(row, 3)?);
                match value {
                    Some(value) => *place = open(key, value, self.column(row, 1)?).map(Some),
                    None if bytes > STORED_BYTES_MAX as i64 => *place = Err(changed(key)),
                    None => left_out.push(at),
                }
            }
            // The first of each answer is in it, so that there are fewer each time.
            if left_out.len() >= wanted.len() {
                return Err(self.strange_answer());
            }
            wanted = left_out;
        }
        Ok(found)
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        let limit = check_limit(limit)?;
        // One more than asked for tells whether there is a next page.
        let list = self.schema.list(filter, after, limit + 1);
        let rows = self.servers.read(list, self.servers.deadline()).await.map_err(|failure| self.named(failure))?;
        let keys = rows.iter().map(|row| Key::from_bytes(self.column(row, 0)?));
        Ok(Page::of(keys.collect::<Result<_>>()?, limit))
    }

    async fn probe(&self) -> Result<Probe> {
        let (clock, mut reads, mut writes) = (Clock::default(), Vec::new(), Vec::new());
        for _ in 0..PROBES {
            let begun = clock.now();
            let read = self.servers.read(self.schema.look(), self.servers.deadline()).await;
            read.map_err(|failure| self.named(failure))?;
            reads.push(clock.now().since(begun));
        }
        for _ in 0..PROBES {
            let begun = clock.now();
            let written = self.servers.write(&[self.schema.probe()], self.servers.deadline()).await;
            written.map_err(|failure| failure.of_set_up(&self.name))?;
            writes.push(clock.now().since(begun));
        }
        Ok(Probe { read: median(reads), write: median(writes), lacks: self.lacks().await? })
    }

    /// What is known of the server that whoever set it up may want otherwise.
    async fn lacks(&self) -> Result<Vec<String>> {
        let mut lacks = Vec::new();
        if self.servers.config.reach.tls == StoreTls::PlaintextAnywhere {
            lacks.push("no TLS: whoever is in between decides what the store says".into());
        }
        let settings = Statement::Query { text: schema::SETTINGS.into(), params: Vec::new() };
        let rows = self.servers.read(settings, self.servers.deadline()).await.map_err(|failure| self.named(failure))?;
        let row = rows.first().ok_or_else(|| self.strange_answer())?;
        let setting = |at| self.column::<String>(row, at);
        for (at, name) in [(0, "fsync"), (1, "full_page_writes")] {
            if setting(at)? == "off" {
                lacks
                    .push(format!("{name} is off: what was acknowledged, or all, is lost with the machine: set it on"));
            }
        }
        let (commit, standbys, replicas) = (setting(2)?, setting(3)?, self.column::<i64>(row, 4)?);
        let several = replicas > 0 || self.servers.config.servers.len() > 1;
        match (several, standbys.is_empty(), commit.as_str()) {
            (true, true, _) => lacks.push(
                "its replicas are asynchronous: one that becomes the primary lacks what it had not got yet: set synchronous_standby_names"
                    .into(),
            ),
            (_, false, "local") => lacks.push(
                "synchronous_commit is local: one of its replicas that becomes the primary lacks what it had not got yet: set it on".into(),
            ),
            _ => {}
        }
        Ok(lacks)
    }
}

fn new_version() -> Result<[u8; ID_BYTES]> {
    let mut version = [0; ID_BYTES];
    fill_random(&mut version)?;
    Ok(version)
}

const CHANGED: &str = "its bytes in PostgreSQL were changed; restore them from a copy";

fn changed(key: &Key) -> Error {
    Corrupt::Record { record: key.to_string(), what: CHANGED.into() }.into()
}

fn open(key: &Key, value: &[u8], version: Vec<u8>) -> Result<Versioned> {
    if version.len() != ID_BYTES {
        return Err(changed(key));
    }
    let envelope = Envelope::decode(key, value, CHANGED)?;
    Ok(Versioned { value: envelope.record.to_vec(), version: StoreVersion(version) })
}

/// In parts that are one transaction each.
fn parts(changes: Vec<(Key, StoreVersion, Put)>) -> Vec<Vec<(Key, StoreVersion, Put)>> {
    let (mut parts, mut bytes) = (Vec::<Vec<_>>::new(), 0);
    for change in changes {
        bytes += change.2.value.len();
        match parts.last_mut() {
            Some(part) if part.len() < CHANGES_MAX && bytes <= CHANGES_BYTES => part.push(change),
            _ => {
                bytes = change.2.value.len();
                parts.push(vec![change]);
            }
        }
    }
    parts
}

#[async_trait]
impl KeyStore for PostgresStore {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        let found = self.get_many(std::slice::from_ref(key)).await.pop();
        found.unwrap_or(Ok(None))
    }

    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        let key = key.clone();
        self.remote.run(|shared| async move { shared.change(&key, None, Some(&put)).await }).await
    }

    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
        let (key, expected) = (key.clone(), expected.clone());
        self.remote.run(|shared| async move { shared.change(&key, Some(&expected), Some(&put)).await }).await
    }

    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Versioned>>> {
        let parts: Vec<_> = keys.chunks(PAGE_KEYS_MAX).map(<[Key]>::to_vec).collect();
        let lengths: Vec<_> = parts.iter().map(Vec::len).collect();
        let read = |shared: Arc<Shared>, keys: Vec<Key>| async move { shared.get_some(&keys).await };
        let found = self.remote.run_each(parts, read).await.into_iter().map(Result::flatten);
        let each = found.zip(lengths).flat_map(|(found, len)| match found {
            Ok(found) => found,
            Err(error) => vec![Err(error); len],
        });
        each.collect()
    }

    /// Some in one transaction each, whose parts that are refused leave the others as they are.
    async fn replace_many(&self, changes: Vec<(Key, StoreVersion, Put)>) -> Vec<Result<StoreVersion>> {
        let parts = parts(changes);
        let lengths: Vec<_> = parts.iter().map(Vec::len).collect();
        let replace = |shared: Arc<Shared>, part: Vec<_>| async move { shared.replace_some(&part).await };
        let done = self.remote.run_each(parts, replace).await;
        let each = done.into_iter().zip(lengths).flat_map(|(done, len)| match done {
            Ok(done) => done,
            Err(error) => vec![Err(error); len],
        });
        each.collect()
    }

    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
        let (key, expected) = (key.clone(), expected.clone());
        self.remote.run(|shared| async move { shared.change(&key, Some(&expected), None).await }).await.map(drop)
    }

    /// Nothing: what was replaced is in the tables and the write-ahead log until whoever runs the server makes an end of it.
    async fn shred(&self, _: Vec<Vec<u8>>) -> Result<()> {
        Ok(())
    }

    async fn changes(&self) -> Result<Option<Box<dyn Changes>>> {
        let feed = self.remote.run(Feed::open).await?;
        Ok(Some(self.remote.hear(feed)))
    }

    async fn probe(&self) -> Result<Option<Probe>> {
        self.remote.run(|shared| async move { shared.probe().await }).await.map(Some)
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        let (filter, after) = (filter.clone(), after.cloned());
        self.remote.run(|shared| async move { shared.list(&filter, after.as_ref(), limit).await }).await
    }
}
