//! Walks through all that a store has.

use super::{Filter, Key, KeyStore, PAGE_KEYS_MAX, load_kek, record::AccountRecord};
use crate::{
    error::{Error, Result},
    name::{AccountId, KekName},
};

/// The newest date that any account or KEK holds, in seconds since 1970; `None` when there is none.
///
/// # Errors
/// [`Error::Store`]; [`Error::Corrupt`] for a record that cannot be read, and may hold a newer one.
pub(crate) async fn newest_date(store: &dyn KeyStore) -> Result<Option<u64>> {
    let mut newest = None;
    for name in kek_names(store).await? {
        if let Some((record, _)) = load_kek(store, &name).await? {
            newest = newest.max(record.versions.iter().map(|version| version.created_unix).max());
        }
    }
    read_accounts(store, |_, record| {
        let record = record?;
        let deleted = record.deleted.map(|deletion| deletion.since_unix);
        newest = newest.max(record.versions.iter().map(|aek| aek.created_unix).max()).max(deleted);
        Ok(())
    })
    .await?;
    Ok(newest)
}

/// The names of all KEKs, in their order.
///
/// # Errors
/// [`Error::Store`].
pub(crate) async fn kek_names(store: &dyn KeyStore) -> Result<Vec<KekName>> {
    let keys = all_keys(store, &Filter::Keks).await?;
    Ok(keys.into_iter().filter_map(|key| if let Key::Kek(name) = key { Some(name) } else { None }).collect())
}

/// The pages of a listing, one after the other.
pub(crate) struct Pages<'s> {
    store: &'s dyn KeyStore,
    filter: &'s Filter,
    after: Option<Key>,
    is_over: bool,
}

impl<'s> Pages<'s> {
    pub(crate) fn of(store: &'s dyn KeyStore, filter: &'s Filter) -> Self {
        Self { store, filter, after: None, is_over: false }
    }

    /// The keys of the next one; `None` behind the last.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Key>>> {
        if self.is_over {
            return Ok(None);
        }
        let page = self.store.list(self.filter, self.after.as_ref(), PAGE_KEYS_MAX).await?;
        self.after = page.next;
        self.is_over = self.after.is_none();
        Ok(Some(page.keys))
    }
}

/// Every key that a filter lists, in their order.
///
/// # Errors
/// [`Error::Store`].
pub(crate) async fn all_keys(store: &dyn KeyStore, filter: &Filter) -> Result<Vec<Key>> {
    let (mut keys, mut pages) = (Vec::new(), Pages::of(store, filter));
    while let Some(page) = pages.next().await? {
        keys.extend(page);
    }
    Ok(keys)
}

/// Reads every account and gives what each holds, or what is wrong with it; ends with the first error that `each` returns.
///
/// # Errors
/// [`Error::Store`], and what `each` returns.
pub(crate) async fn read_accounts(
    store: &dyn KeyStore,
    mut each: impl FnMut(&AccountId, Result<AccountRecord>) -> Result<()> + Send,
) -> Result<()> {
    let mut pages = Pages::of(store, &Filter::Accounts);
    while let Some(keys) = pages.next().await? {
        for (key, found) in keys.iter().zip(store.get_many(&keys).await) {
            let Key::Account(id) = key else { continue };
            match found {
                Err(error @ Error::Store(_)) => return Err(error),
                Err(error) => each(id, Err(error))?,
                Ok(None) => {} // deleted since it was listed
                Ok(Some(found)) => each(id, AccountRecord::decode(key, &found.value))?,
            }
        }
    }
    Ok(())
}
