//! Copies a whole store into another, of whatever kind.

use super::{Filter, Key, KeyStore, Pages, Put, Versioned, number_of, record::AccountRecord};
use crate::error::{Error, Result};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Writes that are under way at once.
const WRITES_AT_ONCE: usize = 64;
/// What is listed, in the order in which it is written; beside it there are [`SINGLES`], before all of it. KEKs come last: without them
/// nothing is done with a copy that was cut short, and its check says that they are missing. Who retired a KEK version in one, where
/// accounts are missing, would destroy what those of the store are wrapped by.
const FILTERS: [Filter; 7] = [
    Filter::Denials,
    Filter::Accounts,
    Filter::Secrets,
    Filter::SecretValues,
    Filter::Grants,
    Filter::Checkpoints,
    Filter::Keks,
];
/// Of which there is one each. The store's own is written before any other record: by it a copy that was cut short is known.
const SINGLES: [Key; 4] = [Key::Store, Key::Common, Key::Work, Key::Policy];
/// Records that are in memory at once: each may have 256 KiB.
const RECORDS_AT_ONCE: usize = 128;

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Copied {
    /// Records that were written.
    pub written: u64,
    /// Records that were there already, of a copy that was cut short.
    pub already: u64,
}

/// Copies every record of `from` to `to`, which is empty, or holds a part of the same copy: then it goes on. Each is read again in both
/// before this returns. `from` is only read, and nothing is replaced in `to`. Nobody is to write to `from` meanwhile, nor later: the copy is
/// the same store, by its id too.
///
/// # Errors
/// [`Error::Exists`] when `to` is another store, or has a record that differs from that of `from`: what it has is left as it is.
/// [`Error::Conflict`] when `from` was changed meanwhile. [`Error::Corrupt`], naming a record of `from` that cannot be read: `check` says
/// what more there is. [`Error::Store`]: call it again, and it goes on.
pub async fn copy(from: Arc<dyn KeyStore>, to: Arc<dyn KeyStore>) -> Result<Copied> {
    let (source, target) = (from.get(&Key::Store).await?, to.get(&Key::Store).await?);
    let same = |one: &Option<Versioned>, other: &Option<Versioned>| {
        one.as_ref().map(|one| &one.value) == other.as_ref().map(|other| &other.value)
    };
    if (source.is_none() || !same(&source, &target)) && (target.is_some() || !is_empty(&*to).await?) {
        return Err(Error::Exists("what is to be the copy is a store of its own: name a place where none is".into()));
    }
    let mut copied = Copied::default();
    for key in SINGLES {
        copy_keys(&from, &to, &[key], &mut copied).await?;
    }
    for filter in &FILTERS {
        let mut pages = Pages::of(&*from, filter);
        while let Some(page) = pages.next().await? {
            for keys in page.chunks(RECORDS_AT_ONCE) {
                copy_keys(&from, &to, keys, &mut copied).await?;
            }
        }
    }
    verify(&*from, &*to).await?;
    Ok(copied)
}

async fn is_empty(store: &dyn KeyStore) -> Result<bool> {
    for filter in FILTERS {
        if !store.list(&filter, None, 1).await?.keys.is_empty() {
            return Ok(false);
        }
    }
    let singles = store.get_many(&SINGLES).await.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(singles.iter().all(Option::is_none))
}

async fn copy_keys(from: &Arc<dyn KeyStore>, to: &Arc<dyn KeyStore>, keys: &[Key], copied: &mut Copied) -> Result<()> {
    let (sources, targets) = (from.get_many(keys).await, to.get_many(keys).await);
    let mut writes = JoinSet::new();
    for ((key, source), target) in keys.iter().zip(sources).zip(targets) {
        match (source?, target?) {
            (None, _) => {} // deleted since it was listed, or there never was one
            (Some(source), Some(target)) if source.value == target.value => copied.already += 1,
            (Some(_), Some(_)) => return Err(differs(key)),
            (Some(source), None) => {
                let wrapped_by = match key {
                    Key::Account(_) => AccountRecord::decode(key, &source.value)?.wrapped_by(),
                    _ => Vec::new(),
                };
                let put = Put { value: source.value, wrapped_by, guards: Vec::new() };
                if writes.len() >= WRITES_AT_ONCE {
                    ended(writes.join_next().await, copied)?;
                }
                let (to, key) = (to.clone(), key.clone());
                writes.spawn(async move { to.create(&key, put).await.map(drop) });
            }
        }
    }
    while let Some(write) = writes.join_next().await {
        ended(Some(write), copied)?;
    }
    Ok(())
}

fn ended(write: Option<std::result::Result<Result<()>, tokio::task::JoinError>>, copied: &mut Copied) -> Result<()> {
    match write {
        None => Ok(()),
        Some(Ok(written)) => {
            copied.written += u64::from(written.is_ok());
            written
        }
        Some(Err(error)) => Err(Error::Store(format!("a write was given up: {error}"))),
    }
}

fn differs(key: &Key) -> Error {
    Error::Exists(format!(
        "{key}, and it differs: somebody writes to one of the two, or wrote since the copy began; begin anew at a place where nothing is"
    ))
}

/// Every record of each is in the other.
async fn verify(from: &dyn KeyStore, to: &dyn KeyStore) -> Result<()> {
    let mut differing = differing(from, to, &SINGLES).await?;
    for (store, filter) in FILTERS.iter().flat_map(|filter| [(from, filter), (to, filter)]) {
        let mut pages = Pages::of(store, filter);
        while let Some(page) = pages.next().await? {
            for keys in page.chunks(RECORDS_AT_ONCE) {
                differing += self::differing(from, to, keys).await?;
            }
        }
    }
    match differing {
        0 => Ok(()),
        _ => Err(Error::Conflict(format!(
            "{} while it was copied: see that nobody writes to either, and begin anew at a place where nothing is",
            number_of(differing, "record")
        ))),
    }
}

async fn differing(from: &dyn KeyStore, to: &dyn KeyStore, keys: &[Key]) -> Result<u64> {
    let (sources, targets) = (from.get_many(keys).await, to.get_many(keys).await);
    let mut differing = 0;
    for (source, target) in sources.into_iter().zip(targets) {
        differing += u64::from(source?.map(|one| one.value) != target?.map(|one| one.value));
    }
    Ok(differing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        name::{AccountId, KekName, KekVersion, NodeName},
        store::{Page, StoreVersion, memory::MemoryStore, record::StoreRecord},
    };
    use async_trait::async_trait;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    fn kek_key(name: &str) -> Key {
        Key::Kek(KekName::new(name).unwrap())
    }

    async fn store() -> Arc<dyn KeyStore> {
        let store: Arc<dyn KeyStore> = Arc::new(MemoryStore::new());
        store.create(&Key::Store, StoreRecord::random().unwrap().put().unwrap()).await.unwrap();
        store
    }

    fn put(value: u8) -> Put {
        Put { value: vec![value], wrapped_by: Vec::new(), guards: Vec::new() }
    }

    async fn values(store: &dyn KeyStore) -> Vec<(Key, Vec<u8>, StoreVersion)> {
        let mut values = Vec::new();
        for filter in FILTERS {
            for key in crate::store::all_keys(store, &filter).await.unwrap() {
                let found = store.get(&key).await.unwrap().unwrap();
                values.push((key, found.value, found.version));
            }
        }
        values
    }

    #[tokio::test]
    async fn a_copy_that_was_cut_short_goes_on_and_replaces_nothing() {
        let from = store().await;
        for n in 0..300 {
            from.create(&kek_key(&format!("k{n:03}")), put(n as u8)).await.unwrap();
        }
        let denial = Key::Denial(KekVersion::new(KekName::new("k000").unwrap(), 1));
        from.create(&denial, put(9)).await.unwrap();
        let before = values(&*from).await;
        let to: Arc<dyn KeyStore> = Arc::new(MemoryStore::new());
        let id = from.get(&Key::Store).await.unwrap().unwrap().value;
        to.create(&Key::Store, Put { value: id, ..put(0) }).await.unwrap();
        to.create(&kek_key("k007"), put(7)).await.unwrap();
        let copied = copy(from.clone(), to.clone()).await.unwrap();
        assert_eq!((copied.written, copied.already), (300, 2));
        assert_eq!(values(&*from).await, before, "what is copied stays as it was");
        let again = copy(from.clone(), to.clone()).await.unwrap();
        assert_eq!((again.written, again.already), (0, 302));
        // One that has what the other has not is no copy of it.
        to.create(&kek_key("more"), put(1)).await.unwrap();
        assert!(
            matches!(copy(from.clone(), to.clone()).await, Err(Error::Conflict(what)) if what.contains("1 record"))
        );
        let version = to.get(&kek_key("k001")).await.unwrap().unwrap().version;
        to.replace(&kek_key("k001"), &version, put(99)).await.unwrap();
        let refused = copy(from, to.clone()).await;
        assert!(matches!(&refused, Err(Error::Exists(what)) if what.contains("k001")), "{refused:?}");
        assert_eq!(to.get(&kek_key("k001")).await.unwrap().unwrap().value, [99]);
    }

    /// Does not do one of the writes.
    struct Cut {
        inner: Arc<dyn KeyStore>,
        /// How many come before that one.
        before: AtomicUsize,
    }

    #[async_trait]
    impl KeyStore for Cut {
        async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
            self.inner.get(key).await
        }
        async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
            match self.before.fetch_sub(1, SeqCst) {
                0 => Err(Error::Store("cut".into())),
                _ => self.inner.create(key, put).await,
            }
        }
        async fn replace(&self, _: &Key, _: &StoreVersion, _: Put) -> Result<StoreVersion> {
            unreachable!("a copy replaces nothing")
        }
        async fn delete(&self, _: &Key, _: &StoreVersion) -> Result<()> {
            unreachable!("a copy deletes nothing")
        }
        async fn shred(&self, _: Vec<Vec<u8>>) -> Result<()> {
            unreachable!("a copy shreds nothing")
        }
        async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
            self.inner.list(filter, after, limit).await
        }
    }

    #[tokio::test]
    async fn a_copy_that_is_cut_short_at_any_write_goes_on_and_has_no_kek_until_all_else_is_there() {
        let from = store().await;
        for key in [Key::Common, Key::Work, Key::Policy, Key::Checkpoint(NodeName::new("n").unwrap())] {
            from.create(&key, put(1)).await.unwrap();
        }
        for n in 0..5 {
            from.create(&kek_key(&format!("k{n}")), put(n)).await.unwrap();
            let denial = Key::Denial(KekVersion::new(KekName::new(format!("k{n}")).unwrap(), 1));
            from.create(&denial, put(n)).await.unwrap();
        }
        for cut in 0..15 {
            let to: Arc<dyn KeyStore> = Arc::new(MemoryStore::new());
            let through = Cut { inner: to.clone(), before: AtomicUsize::new(cut) };
            assert!(matches!(copy(from.clone(), Arc::new(through)).await, Err(Error::Store(_))), "write {cut}");
            let (there, all) = (values(&*to).await, values(&*from).await);
            let is_kek = |(key, ..): &&(Key, Vec<u8>, StoreVersion)| matches!(key, Key::Kek(_));
            let others = |of: &[(Key, Vec<u8>, StoreVersion)]| of.iter().filter(|one| !is_kek(one)).count();
            assert!(!there.iter().any(|one| is_kek(&one)) || others(&there) == others(&all), "write {cut}: {there:?}");
            let copied = copy(from.clone(), to).await.unwrap_or_else(|error| panic!("write {cut}: {error}"));
            assert_eq!(copied.written + copied.already, 15, "write {cut}");
        }
    }

    #[tokio::test]
    async fn a_store_of_its_own_is_no_place_for_a_copy_and_a_damaged_record_is_named() {
        let (from, other) = (store().await, store().await);
        assert!(matches!(copy(from.clone(), other).await, Err(Error::Exists(_))));
        let without_id: Arc<dyn KeyStore> = Arc::new(MemoryStore::new());
        without_id.create(&kek_key("k"), put(1)).await.unwrap();
        assert!(matches!(copy(from.clone(), without_id.clone()).await, Err(Error::Exists(_))));
        // Nor is one that has none a part of another that has none.
        let other: Arc<dyn KeyStore> = Arc::new(MemoryStore::new());
        other.create(&kek_key("other"), put(1)).await.unwrap();
        assert!(matches!(copy(without_id, other.clone()).await, Err(Error::Exists(_))));
        assert!(other.get(&kek_key("k")).await.unwrap().is_none());
        from.create(&Key::Account(AccountId::new("a").unwrap()), put(1)).await.unwrap();
        let refused = copy(from, Arc::new(MemoryStore::new())).await;
        assert!(matches!(&refused, Err(Error::Corrupt(what)) if what.to_string().contains("account a")), "{refused:?}");
    }
}
