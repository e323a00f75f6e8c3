//! The store in a bucket that speaks S3, for services on many machines that have no other.
//!
//! One object is one record. Each write is a conditional one (`If-None-Match`, `If-Match`), which the server decides; one that rests on other
//! records takes three steps, and is atomic all the same ([`records`]). [`StoreVersion`] is 16 random bytes of each write, which stand in the
//! object. A key that was deleted keeps an object that says so, for ever: so what was not there once never comes back, and no ETag twice. The
//! index by KEK version is exact, though it cannot be written in one step with its record ([`index`]).
//!
//! Connections live on a thread of the store's own, so that they stand still with nobody's runtime. Nothing is kept in memory between two
//! calls. What was deleted or replaced is gone from the bucket, but for versions and replicas that it keeps: who can make an end of those is
//! whoever runs it, so [`shred`](KeyStore::shred) does nothing here. Of changes it cannot tell.

use self::{
    names::{LAYOUT, Names},
    objects::{Objects, On},
    records::{Expected, Records},
    s3::S3,
};
use super::{
    Filter, Key, KeyStore, PAGE_KEYS_MAX, Page, Probe, Put, StoreVersion, Versioned, check_limit,
    remote::{Failure, PROBES, Remote, median},
};
use crate::{
    clock::Clock,
    config::store::{BucketConfig, StoreTls},
    error::{Error, Result},
    name::KekVersion,
};
use async_trait::async_trait;
use std::{fmt, sync::Arc, time::Duration};
use tokio::time::timeout;

mod index;
mod names;
mod object;
mod objects;
mod records;
mod s3;
#[cfg(all(test, not(keyleash_loom)))]
mod schedules;

/// Most requests that are under way at a time.
const REQUESTS_AT_ONCE: usize = 64;
/// What to do about a server that does not compare before it writes.
const WITHOUT_CONDITIONS: &str =
    "two writers would overwrite each other: use a server that has If-Match and If-None-Match of PutObject";
/// An ETag that no object has.
const NO_TAG: &str = "\"00000000000000000000000000000000\"";

/// A key store in a bucket. Shared by reference or `Arc`; its connections end with the last one.
pub struct BucketStore {
    remote: Remote<Shared>,
}

struct Shared {
    records: Records<S3>,
    tls: StoreTls,
    timeout: Duration,
}

impl BucketStore {
    /// Opens the store in a namespace.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the namespace is empty. [`Error::Misconfigured`] when it is somebody else's, or of a layout that this
    /// release does not know; when the server has no conditional writes, which is tried; when there is no such bucket, or it refuses the access
    /// key; when the settings are none. [`Error::Store`] when nobody answers.
    pub async fn open(config: &BucketConfig) -> Result<Self> {
        Self::connect(config, false).await
    }

    /// As [`BucketStore::open`], and makes the store where the namespace is empty. For setting up: a service that makes a store where none
    /// is takes a namespace that is misspelt for one without accounts. The bucket has to be there.
    ///
    /// # Errors
    /// As [`BucketStore::open`].
    pub async fn open_or_create(config: &BucketConfig) -> Result<Self> {
        Self::connect(config, true).await
    }

    async fn connect(config: &BucketConfig, create: bool) -> Result<Self> {
        config.validate()?;
        let name = config.to_string();
        let objects = S3::new(config).map_err(|failure| failure.of_set_up(&name))?;
        let records = Records { name: name.clone(), names: Names::new(&config.namespace), objects };
        let shared = Shared { records, tls: config.reach.tls, timeout: config.reach.timeout };
        let store = Self { remote: Remote::begin("bucket", name, REQUESTS_AT_ONCE, shared)? };
        store.run(move |shared| async move { shared.records.find(create).await }).await?;
        Ok(store)
    }

    /// On the store's own thread, in its time.
    async fn run<T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Shared>) -> F + Send + 'static,
    ) -> Result<T> {
        self.remote.run(|shared| async move { shared.clone().in_time(work(shared)).await }).await
    }

    async fn run_each<A: Send + 'static, T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
        &self,
        each: Vec<A>,
        work: impl Fn(Arc<Shared>, A) -> F + Copy + Send + 'static,
    ) -> Vec<Result<T>> {
        let done =
            self.remote.run_each(each, |shared, one| async move { shared.clone().in_time(work(shared, one)).await });
        done.await.into_iter().map(Result::flatten).collect()
    }

    /// The accounts that a KEK version has wrapped. They are read beside each other.
    async fn list_wrapped_by(&self, kek: &KekVersion, after: Option<&Key>, limit: usize) -> Result<Page> {
        let limit = check_limit(limit)?;
        let (of, behind) = (kek.clone(), after.cloned());
        let mut at =
            Some(self.run(move |shared| async move { Ok(shared.records.first_mark(&of, behind.as_ref())) }).await?);
        let mut keys: Vec<Key> = Vec::new();
        while let Some(from) = at.take()
            && keys.len() <= limit
        {
            // One more than asked for tells whether there is a next page.
            let (of, wanted) = (kek.clone(), limit + 1 - keys.len());
            let found =
                self.run(move |shared| async move { shared.records.candidates(&of, &from, wanted).await }).await?;
            let accounts: Vec<_> = found.accounts.iter().map(|(account, _)| account.clone()).collect();
            let each = found.accounts.into_iter().map(|(account, marks)| (account, marks, kek.clone())).collect();
            let is_wrapped = self
                .run_each(each, |shared, (account, marks, kek)| async move {
                    shared.records.is_wrapped_by(&account, &kek, &marks).await
                })
                .await;
            for (account, is_wrapped) in accounts.into_iter().zip(is_wrapped) {
                // Marks of one account may stand in two parts of the listing.
                if is_wrapped? && keys.last() != Some(&account) {
                    keys.push(account);
                }
            }
            at = found.next;
        }
        Ok(Page::of(keys, limit))
    }
}

impl fmt::Debug for BucketStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BucketStore").field(&self.remote.name()).finish()
    }
}

impl Shared {
    async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let (name, limit) = (&self.records.name, self.timeout);
        timeout(limit, work)
            .await
            .unwrap_or_else(|_| Err(Error::Store(format!("{name}: no answer within {limit:.1?}"))))
    }

    async fn probe(&self) -> Result<Probe> {
        let (clock, mut reads, mut writes) = (Clock::default(), Vec::new(), Vec::new());
        let (objects, layout) = (&self.records.objects, self.records.names.layout());
        let mut tag = String::new();
        for _ in 0..PROBES {
            let begun = clock.now();
            let got = objects.get(&layout).await.map_err(|failure| self.records.named(failure))?;
            tag = got.map(|(_, tag)| tag).unwrap_or_default();
            reads.push(clock.now().since(begun));
        }
        for _ in 0..PROBES {
            let begun = clock.now();
            // The same bytes. Whoever else does so at the same time is no harm.
            let put = objects.put(&layout, On::Tag(&tag), LAYOUT.into()).await;
            tag = put.map_err(|failure| failure.of_set_up(&self.records.name))?.unwrap_or(tag);
            writes.push(clock.now().since(begun));
        }
        let mut lacks = Vec::new();
        if self.tls == StoreTls::PlaintextAnywhere {
            lacks.push("no TLS: whoever is in between decides what the store says".into());
        }
        Ok(Probe { read: median(reads), write: median(writes), lacks })
    }
}

impl<O: Objects> Records<O> {
    /// Looks for the layout, and makes it where there is nothing and `create` is true.
    async fn find(&self, create: bool) -> Result<()> {
        let set_up = |failure: Failure| failure.of_set_up(&self.name);
        let layout = self.names.layout();
        match self.objects.get(&layout).await.map_err(set_up)? {
            Some((found, _)) if found == LAYOUT.as_bytes() => return self.expect_conditions().await,
            Some((found, _)) => return Err(self.no_store(&found)),
            None => {}
        }
        let any = self.objects.list(&self.names.all, "", 1).await.map_err(set_up)?;
        match (any.objects.is_empty(), create) {
            // Somebody may have made it meanwhile.
            (false, _) => match self.objects.get(&layout).await.map_err(set_up)? {
                Some((found, _)) if found == LAYOUT.as_bytes() => self.expect_conditions().await,
                found => Err(self.no_store(&found.unwrap_or_default().0)),
            },
            (true, false) => Err(Error::NotFound(format!("store {}: the namespace is empty", self.name))),
            (true, true) => {
                // Else somebody was faster: perhaps to make the same.
                self.objects.put(&layout, On::Absent, LAYOUT.into()).await.map_err(set_up)?;
                Box::pin(self.find(false)).await
            }
        }
    }

    /// Tries conditions that do not hold, with the bytes that are there anyway.
    async fn expect_conditions(&self) -> Result<()> {
        for on in [On::Absent, On::Tag(NO_TAG)] {
            let put = self.objects.put(&self.names.layout(), on, LAYOUT.into()).await;
            if put.map_err(|failure| failure.of_set_up(&self.name))?.is_some() {
                let what = format!(
                    "the server does not compare before it writes (no conditional writes): {WITHOUT_CONDITIONS}"
                );
                return Err(Error::Misconfigured(format!("store {}: {what}", self.name)));
            }
        }
        Ok(())
    }

    fn no_store(&self, layout: &[u8]) -> Error {
        let what = match layout.starts_with(b"keyleash ") {
            true => format!(
                "its layout is {:?}, this release knows {LAYOUT:?}: use the release that wrote it, or another namespace",
                layout.get(..64.min(layout.len())).unwrap_or_default().escape_ascii().to_string()
            ),
            false => "the namespace holds objects that are no store's: use one of its own".to_owned(),
        };
        Error::Misconfigured(format!("store {}: {what}", self.name))
    }
}

#[async_trait]
impl KeyStore for BucketStore {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        let key = key.clone();
        self.run(|shared| async move { Ok(shared.records.read(&key).await?.map(Versioned::from)) }).await
    }

    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        let key = key.clone();
        self.run(|shared| async move { shared.records.write(&key, Expected::Absent, Some(&put)).await }).await
    }

    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
        let (key, expected) = (key.clone(), expected.clone());
        self.run(|shared| async move { shared.records.write(&key, Expected::Version(&expected), Some(&put)).await })
            .await
    }

    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Versioned>>> {
        let read =
            |shared: Arc<Shared>, key: Key| async move { Ok(shared.records.read(&key).await?.map(Versioned::from)) };
        self.run_each(keys.to_vec(), read).await
    }

    /// Beside each other, each for itself.
    async fn replace_many(&self, changes: Vec<(Key, StoreVersion, Put)>) -> Vec<Result<StoreVersion>> {
        let replace = |shared: Arc<Shared>, (key, expected, put): (Key, StoreVersion, Put)| async move {
            shared.records.write(&key, Expected::Version(&expected), Some(&put)).await
        };
        self.run_each(changes, replace).await
    }

    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
        let (key, expected) = (key.clone(), expected.clone());
        let delete =
            |shared: Arc<Shared>| async move { shared.records.write(&key, Expected::Version(&expected), None).await };
        self.run(delete).await.map(drop)
    }

    /// Nothing: what the bucket keeps of what was replaced, whoever runs it makes an end of.
    async fn shred(&self, _: Vec<Vec<u8>>) -> Result<()> {
        Ok(())
    }

    async fn probe(&self) -> Result<Option<Probe>> {
        self.run(|shared| async move { shared.probe().await }).await.map(Some)
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        if let Filter::WrappedBy(kek) = filter {
            return self.list_wrapped_by(kek, after, limit.min(PAGE_KEYS_MAX)).await;
        }
        let (filter, after) = (filter.clone(), after.cloned());
        self.run(move |shared| async move { shared.records.list(&filter, after.as_ref(), limit).await }).await
    }
}
