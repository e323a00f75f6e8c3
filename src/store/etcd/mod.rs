//! The store in an etcd cluster, for services on many machines.
//!
//! A write is one transaction: it compares the revision of the record, those of its guards, and the layout, and writes the record and what
//! is different in the index. So the index is exact at every instant, and a listing is of what is. Reads are linearizable, which here means
//! that a majority of the members had a part in each. [`StoreVersion`] is the revision at which the record was written last: it counts for
//! the whole cluster, so that none comes twice.
//!
//! The connections live on a thread of the store's own, so that they stand still with nobody's runtime. Nothing is kept in memory between
//! two calls. What was deleted or replaced stays in etcd's history until that is compacted, and in its files until they are defragmented:
//! who can do both is whoever runs the cluster, so [`shred`](KeyStore::shred) does nothing here.

use self::{
    cluster::Cluster,
    feed::Feed,
    keys::{Expected, Keys, LAYOUT, OPERATIONS_MAX, found, open, revision_of, version_of},
};
use super::{
    Changes, Filter, Key, KeyStore, Page, Probe, Put, StoreVersion, Versioned, check_limit, check_put, conflict,
    exists, not_found,
    remote::{Failure, PROBES, Remote, median},
};
use crate::{
    clock::{Clock, Instant},
    config::store::EtcdConfig,
    error::{Error, Result},
    name::KekVersion,
};
use async_trait::async_trait;
use etcd_client::{KeyValue, TxnResponse};
use std::{collections::HashMap, fmt, sync::Arc};

mod cluster;
mod feed;
mod keys;

/// Most requests that one call has under way.
const REQUESTS_AT_ONCE: usize = 64;

/// A key store in etcd. Shared by reference or `Arc`; its connections end with the last one.
pub struct EtcdStore {
    remote: Remote<Shared>,
}

struct Shared {
    name: String,
    cluster: Cluster,
    keys: Keys,
}

impl EtcdStore {
    /// Opens the store in a namespace.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the namespace is empty. [`Error::Misconfigured`] when it is somebody else's, or of a layout that this
    /// release does not know; when the cluster refuses the user or wants one; when the settings are none. [`Error::Store`] when nobody
    /// answers.
    pub async fn open(config: &EtcdConfig) -> Result<Self> {
        Self::connect(config, false).await
    }

    /// As [`EtcdStore::open`], and makes the store where the namespace is empty. For setting up: a service that makes a store where none
    /// is takes a namespace that is misspelt for one without accounts.
    ///
    /// # Errors
    /// As [`EtcdStore::open`].
    pub async fn open_or_create(config: &EtcdConfig) -> Result<Self> {
        Self::connect(config, true).await
    }

    async fn connect(config: &EtcdConfig, create: bool) -> Result<Self> {
        config.validate()?;
        let shared = Shared {
            name: config.to_string(),
            cluster: Cluster::new(config.clone()),
            keys: Keys::new(&config.namespace),
        };
        let store = Self { remote: Remote::begin("etcd", shared.name.clone(), REQUESTS_AT_ONCE, shared)? };
        store.remote.run(move |shared| async move { shared.find(create).await }).await?;
        Ok(store)
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EtcdStore").field(&self.remote.name()).finish()
    }
}

impl Shared {
    fn named(&self, failure: Failure) -> Error {
        failure.named(&self.name)
    }

    /// Looks for the layout, and makes it where there is nothing and `create` is true.
    async fn find(&self, create: bool) -> Result<()> {
        let set_up_wrong = |failure: Failure| failure.of_set_up(&self.name);
        let until = self.cluster.deadline();
        let answer = self.cluster.read(self.keys.look(), until).await.map_err(set_up_wrong)?;
        let mut seen = found(&answer).into_iter();
        let (layout, any) = (seen.next().unwrap_or_default(), seen.next().unwrap_or_default());
        match layout.first().map(KeyValue::value) {
            Some(layout) if layout == LAYOUT.as_bytes() => Ok(()),
            Some(layout) => Err(self.strange(layout)),
            None if !any.is_empty() => Err(self.strange(b"")),
            None if !create => Err(Error::NotFound(format!("store {}: the namespace is empty", self.name))),
            None => {
                let made = self.cluster.write(self.keys.make(), self.keys.look(), until).await.map_err(set_up_wrong)?;
                // Else somebody was faster: perhaps to make the same.
                if made.succeeded() { Ok(()) } else { Box::pin(self.find(false)).await }
            }
        }
    }

    fn strange(&self, layout: &[u8]) -> Error {
        let what = match layout.starts_with(b"keyleash ") {
            true => format!(
                "its layout is {:?}, this release knows {LAYOUT:?}: use the release that wrote it, or another namespace",
                layout.escape_ascii().to_string()
            ),
            false => "the namespace holds keys that are no store's: use one of its own".to_owned(),
        };
        Error::Misconfigured(format!("store {}: {what}", self.name))
    }

    /// What stands there, as it is stored; at most [`OPERATIONS_MAX`].
    async fn stored(&self, keys: &[Key], until: Instant) -> Result<Vec<Option<KeyValue>>> {
        let answer = self.cluster.read(self.keys.get(keys), until).await.map_err(|failure| self.named(failure))?;
        let found = found(&answer);
        if found.len() != keys.len() {
            return Err(Error::Store(format!("{}: an answer with {} of {} keys", self.name, found.len(), keys.len())));
        }
        Ok(found.into_iter().map(|kvs| kvs.into_iter().next()).collect())
    }

    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        check_put(key, &put)?;
        let revision = self.write(key, Expected::Absent, Some(&put), &[], self.cluster.deadline()).await?;
        Ok(version_of(revision))
    }

    /// Replaces, or without a `put` deletes. Which KEK versions an account is found under is in its record: what is `stored`, where it was
    /// read before.
    async fn change(
        &self,
        key: &Key,
        expected: &StoreVersion,
        put: Option<Put>,
        stored: Option<KeyValue>,
    ) -> Result<i64> {
        if let Some(put) = &put {
            check_put(key, put)?;
        }
        let (expected, until) = (revision_of(expected), self.cluster.deadline());
        let was = match (key, stored) {
            (Key::Account(_), Some(stored)) if stored.mod_revision() == expected => open(key, &stored)?.1,
            (Key::Account(_), _) => {
                match self.stored(std::slice::from_ref(key), until).await?.into_iter().next().flatten() {
                    None => return Err(not_found(key)),
                    Some(stored) if stored.mod_revision() != expected => return Err(conflict(key)),
                    Some(stored) => open(key, &stored)?.1,
                }
            }
            _ => Vec::new(),
        };
        self.write(key, Expected::Version(expected), put.as_ref(), &was, until).await
    }

    async fn write(
        &self,
        key: &Key,
        expected: Expected,
        put: Option<&Put>,
        was: &[KekVersion],
        until: Instant,
    ) -> Result<i64> {
        let written = self.cluster.write(self.keys.write(key, expected, put, was), self.keys.look(), until).await;
        let answer = written.map_err(|failure| self.named(failure))?;
        match answer.succeeded() {
            true => answer
                .header()
                .map(etcd_client::ResponseHeader::revision)
                .ok_or_else(|| Error::Store(format!("{}: an answer without a revision", self.name))),
            false => Err(self.refusal(key, expected, put, &answer)),
        }
    }

    /// Which of the comparisons did not hold.
    fn refusal(&self, key: &Key, expected: Expected, put: Option<&Put>, answer: &TxnResponse) -> Error {
        let mut seen = found(answer).into_iter().map(|kvs| kvs.into_iter().next());
        let (layout, record) = (seen.next().flatten(), seen.next().flatten());
        if layout.is_none_or(|layout| layout.value() != LAYOUT.as_bytes()) {
            return Error::Store(format!("{}: the store was removed from its namespace", self.name));
        }
        match (expected, record) {
            (Expected::Absent, Some(_)) => return exists(key),
            (Expected::Version(_), None) => return not_found(key),
            (Expected::Version(revision), Some(record)) if record.mod_revision() != revision => return conflict(key),
            _ => {}
        }
        let mut guards = put.map(|put| put.guards.as_slice()).unwrap_or_default().iter().zip(seen);
        let changed =
            guards.find(|((_, version), now)| now.as_ref().map_or(0, KeyValue::mod_revision) != revision_of(version));
        conflict(changed.map_or(key, |((guard, _), _)| guard))
    }

    async fn probe(&self) -> Result<Probe> {
        let (clock, mut reads, mut writes) = (Clock::default(), Vec::new(), Vec::new());
        for _ in 0..PROBES {
            let begun = clock.now();
            self.cluster
                .read(self.keys.look(), self.cluster.deadline())
                .await
                .map_err(|failure| self.named(failure))?;
            reads.push(clock.now().since(begun));
        }
        let write = async |txn| match self.cluster.write(txn, self.keys.look(), self.cluster.deadline()).await {
            Err(Failure::Refused(what)) => Err(Error::Misconfigured(format!("store {}: {what}", self.name))),
            outcome => outcome.map_err(|failure| self.named(failure)),
        };
        for _ in 0..PROBES {
            let begun = clock.now();
            write(self.keys.probe()).await?;
            writes.push(clock.now().since(begun));
        }
        write(self.keys.end_probe()).await?;
        Ok(Probe { read: median(reads), write: median(writes), lacks: self.cluster.lacks().await })
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        let limit = check_limit(limit)?;
        let (prefix, of) = match filter {
            Filter::WrappedBy(kek) => (Vec::new(), Some(kek)),
            filter => (filter.prefix(), None),
        };
        // One more than asked for tells whether there is a next page.
        let (txn, place) = self.keys.list(&prefix, of, after, limit + 1);
        let answer = self.cluster.read(txn, self.cluster.deadline()).await.map_err(|failure| self.named(failure))?;
        let listed = found(&answer).into_iter().next().unwrap_or_default();
        let keys = listed.iter().map(|kv| Key::from_bytes(kv.key().get(place..).unwrap_or_default()));
        Ok(Page::of(keys.collect::<Result<_>>()?, limit))
    }
}

fn versioned(key: &Key, stored: Option<KeyValue>) -> Result<Option<Versioned>> {
    let Some(stored) = stored else { return Ok(None) };
    let (value, _, revision) = open(key, &stored)?;
    Ok(Some(Versioned { value, version: version_of(revision) }))
}

#[async_trait]
impl KeyStore for EtcdStore {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        let found = self.get_many(std::slice::from_ref(key)).await.pop();
        found.unwrap_or(Ok(None))
    }

    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        let key = key.clone();
        self.remote.run(|shared| async move { shared.create(&key, put).await }).await
    }

    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
        let (key, expected) = (key.clone(), expected.clone());
        self.remote
            .run(|shared| async move { shared.change(&key, &expected, Some(put), None).await })
            .await
            .map(version_of)
    }

    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Versioned>>> {
        let parts = keys.chunks(OPERATIONS_MAX).map(<[Key]>::to_vec).collect();
        let read = |shared: Arc<Shared>, keys: Vec<Key>| async move {
            (shared.stored(&keys, shared.cluster.deadline()).await, keys)
        };
        let mut outcomes = Vec::with_capacity(keys.len());
        for part in self.remote.run_each(parts, read).await {
            match part {
                Ok((Ok(stored), keys)) => {
                    outcomes.extend(keys.iter().zip(stored).map(|(key, one)| versioned(key, one)))
                }
                Ok((Err(error), keys)) => outcomes.extend(keys.iter().map(|_| Err(error.clone()))),
                Err(error) => {
                    outcomes.extend((0..OPERATIONS_MAX.min(keys.len() - outcomes.len())).map(|_| Err(error.clone())))
                }
            }
        }
        outcomes
    }

    /// Beside each other, each for itself, once all accounts were read together.
    async fn replace_many(&self, changes: Vec<(Key, StoreVersion, Put)>) -> Vec<Result<StoreVersion>> {
        let accounts: Vec<_> =
            changes.iter().map(|(key, ..)| key).filter(|key| matches!(key, Key::Account(_))).collect();
        let parts = accounts.chunks(OPERATIONS_MAX).map(|keys| keys.iter().copied().cloned().collect()).collect();
        let read = |shared: Arc<Shared>, keys: Vec<Key>| async move {
            shared.stored(&keys, shared.cluster.deadline()).await.map(|stored| (keys, stored))
        };
        let mut known = HashMap::new();
        // What could not be read is read again.
        for (keys, stored) in self.remote.run_each(parts, read).await.into_iter().flatten().flatten() {
            known.extend(keys.into_iter().zip(stored));
        }
        let changes = changes.into_iter().map(|(key, expected, put)| {
            let stored = known.remove(&key).flatten();
            (key, expected, put, stored)
        });
        let change = |shared: Arc<Shared>, (key, expected, put, stored): (Key, StoreVersion, Put, Option<KeyValue>)| async move {
            shared.change(&key, &expected, Some(put), stored).await.map(version_of)
        };
        self.remote.run_each(changes.collect(), change).await.into_iter().map(Result::flatten).collect()
    }

    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
        let (key, expected) = (key.clone(), expected.clone());
        self.remote.run(|shared| async move { shared.change(&key, &expected, None, None).await }).await.map(drop)
    }

    /// Nothing: what was replaced is in etcd's history until whoever runs the cluster compacts and defragments it.
    async fn shred(&self, _: Vec<Vec<u8>>) -> Result<()> {
        Ok(())
    }

    async fn changes(&self) -> Result<Option<Box<dyn Changes>>> {
        let opened = self.remote.run(|shared| async move {
            let stream = shared.cluster.watch(shared.keys.records(), shared.keys.look()).await;
            let stream = stream.map_err(|failure| shared.named(failure))?;
            let (name, keys, patience) = (shared.name.clone(), shared.keys.clone(), shared.cluster.timeout());
            Ok(Feed { name, stream, keys, patience })
        });
        Ok(Some(self.remote.hear(opened.await?)))
    }

    async fn probe(&self) -> Result<Option<Probe>> {
        self.remote.run(|shared| async move { shared.probe().await }).await.map(Some)
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        let (filter, after) = (filter.clone(), after.cloned());
        self.remote.run(|shared| async move { shared.list(&filter, after.as_ref(), limit).await }).await
    }
}
