//! Reads a whole store, and names what is wrong in it.

use super::{
    Filter, Key, KeyStore, PAGE_KEYS_MAX,
    record::{AccountRecord, CommonRecord, DenialRecord, KekRecord, StoreRecord, WorkRecord},
};
use crate::{
    error::{Corrupt, Error, Result},
    name::KekVersion,
};
use std::collections::BTreeMap;

/// Findings that are named. More are counted.
pub const FINDINGS_MAX: usize = 1000;

/// What is in a store, and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Check {
    /// Accounts, deleted ones that were not purged included.
    pub accounts: u64,
    /// KEKs.
    pub keks: u64,
    /// Denials that are remembered.
    pub denials: u64,
    /// How many things are wrong.
    pub found: u64,
    /// The first [`FINDINGS_MAX`] of them: each says what and what to do.
    pub findings: Vec<Error>,
}

impl Check {
    fn find(&mut self, error: Error) {
        self.found += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(error);
        }
    }
}

/// Reads every record, and compares the index with what they say. Changes nothing. What others write meanwhile may show as a
/// difference of the index: stop them, or check again.
///
/// # Errors
/// [`Error::Store`]; [`Error::Corrupt`] when a list cannot be read, so that nothing can be told.
pub async fn check(store: &dyn KeyStore) -> Result<Check> {
    let mut check = Check::default();
    // How many accounts each KEK version wraps, by the KEKs' records and by those of the accounts.
    let mut wraps = BTreeMap::<String, (KekVersion, u64)>::new();
    let mut known = |kek: KekVersion, accounts: u64| {
        wraps.entry(kek.to_string()).or_insert((kek, 0)).1 += accounts;
    };
    each(store, &Filter::Keks, |key, value| {
        check.keks += 1;
        match value.and_then(|value| KekRecord::decode(key, &value)) {
            Ok(record) => {
                record.versions.iter().for_each(|kek| known(KekVersion::new(record.name.clone(), kek.version), 0));
            }
            Err(error) => check.find(error),
        }
    })
    .await?;
    each(store, &Filter::Accounts, |key, value| {
        check.accounts += 1;
        match value.and_then(|value| AccountRecord::decode(key, &value)) {
            Ok(record) => record.wrapped_by().into_iter().for_each(|kek| known(kek, 1)),
            Err(error) => check.find(error),
        }
    })
    .await?;
    each(store, &Filter::Denials, |key, value| {
        check.denials += 1;
        if let Err(error) = value.and_then(|value| DenialRecord::decode(key, &value)) {
            check.find(error);
        }
    })
    .await?;
    for (key, decode) in [
        (Key::Work, (|key, value| WorkRecord::decode(key, value).map(drop)) as fn(&Key, &[u8]) -> Result<()>),
        (Key::Store, |key, value| StoreRecord::decode(key, value).map(drop)),
        (Key::Common, |key, value| CommonRecord::decode(key, value).map(drop)),
    ] {
        match store.get(&key).await {
            Ok(found) => {
                if let Some(Err(error)) = found.map(|found| decode(&key, &found.value)) {
                    check.find(error);
                }
            }
            Err(error @ Error::Store(_)) => return Err(error),
            Err(error) => check.find(error),
        }
    }
    for (kek, accounts) in wraps.into_values() {
        check_index(store, &kek, accounts, &mut check).await?;
    }
    Ok(check)
}

async fn check_index(store: &dyn KeyStore, kek: &KekVersion, accounts: u64, check: &mut Check) -> Result<()> {
    let (mut listed, mut strange) = (0, 0);
    each(store, &Filter::WrappedBy(kek.clone()), |key, value| {
        let record = value.and_then(|value| AccountRecord::decode(key, &value));
        // A record that cannot be read was found before.
        if let Ok(record) = record {
            if record.versions.iter().any(|aek| aek.kek == *kek) { listed += 1 } else { strange += 1 }
        }
    })
    .await?;
    if listed < accounts || strange > 0 {
        let what = format!(
            "lacks {} accounts that the KEK version wraps, and names {strange} that it does not; restore the store from a copy, \
             or move the accounts to another KEK and back",
            accounts.saturating_sub(listed)
        );
        check.find(Corrupt::Record { record: format!("index of KEK {kek}"), what }.into());
    }
    Ok(())
}

/// Every key that a filter lists, with what it holds.
async fn each(store: &dyn KeyStore, filter: &Filter, mut each: impl FnMut(&Key, Result<Vec<u8>>) + Send) -> Result<()> {
    let mut after = None;
    loop {
        let page = store.list(filter, after.as_ref(), PAGE_KEYS_MAX).await?;
        for (key, found) in page.keys.iter().zip(store.get_many(&page.keys).await) {
            match found {
                Err(error @ Error::Store(_)) => return Err(error),
                Err(error) => each(key, Err(error)),
                Ok(Some(found)) => each(key, Ok(found.value)),
                Ok(None) => {} // deleted since it was listed
            }
        }
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}
