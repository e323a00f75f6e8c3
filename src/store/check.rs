//! Reads a whole store, and names what is wrong in it.

use super::{
    CONFLICTS_MAX, Filter, Key, KeyStore, PAGE_KEYS_MAX, Pages, Versioned, all_keys, load_account, load_secret,
    number_of, policy,
    record::{
        AccountRecord, CheckpointRecord, CommonRecord, DenialRecord, KekRecord, SecretRecord, SecretValueRecord,
        StoreRecord, WorkRecord,
    },
};
use crate::{
    error::{Corrupt, Error, Result},
    name::{AccountId, KekVersion},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

/// Findings that are named. More are counted.
pub const FINDINGS_MAX: usize = 1000;
/// Values of secrets that are in memory at once: each may have 64 KiB.
const VALUES_AT_ONCE: usize = 64;

/// What is in a store, and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// Accounts, deleted ones that were not purged included.
    pub accounts: u64,
    /// KEKs.
    pub keks: u64,
    /// Denials that are remembered.
    pub denials: u64,
    /// Secrets, deleted ones that were not purged included.
    pub secrets: u64,
    /// Grants of the policy.
    pub grants: u64,
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

/// Reads every record, and compares the index with what they say. Changes nothing. Others may write meanwhile.
///
/// # Errors
/// [`Error::Store`]; [`Error::Corrupt`] when a list cannot be read, so that nothing can be told.
pub async fn check(store: &dyn KeyStore) -> Result<Check> {
    let mut check = Check::default();
    // Which accounts each KEK version wraps, by the KEKs' records and by those of the accounts.
    let mut wraps = BTreeMap::<String, (KekVersion, Tally)>::new();
    let mut retired = BTreeSet::new();
    let mut known = |kek: KekVersion, account: Option<&Key>| {
        let (_, tally) = wraps.entry(kek.to_string()).or_insert((kek, Tally::default()));
        account.into_iter().for_each(|account| tally.add(account));
    };
    each(store, &Filter::Keks, |key, value| {
        check.keks += 1;
        match value.and_then(|value| KekRecord::decode(key, &value)) {
            Ok(record) => record.versions.iter().for_each(|version| {
                let kek = KekVersion::new(record.name.clone(), version.version);
                if version.retired_unix.is_some() {
                    retired.insert(kek.clone());
                }
                known(kek, None);
            }),
            Err(error) => check.find(error),
        }
    })
    .await?;
    each(store, &Filter::Accounts, |key, value| {
        check.accounts += 1;
        match value.and_then(|value| AccountRecord::decode(key, &value)) {
            Ok(record) => record.wrapped_by().into_iter().for_each(|kek| known(kek, Some(key))),
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
    check_secrets(store, &mut check).await?;
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
    each(store, &Filter::Checkpoints, |key, value| {
        if let Err(error) = value.and_then(|value| CheckpointRecord::decode(key, &value)) {
            check.find(error);
        }
    })
    .await?;
    // Parts that no head names are of a change that is under way, or was cut short: nobody is granted anything by them.
    match policy::check(store).await {
        Ok(grants) => check.grants = grants,
        Err(error @ Error::Store(_)) => return Err(error),
        Err(error) => check.find(error),
    }
    for (kek, accounts) in wraps.into_values() {
        if accounts.accounts > 0 {
            check_kek(store, &kek, accounts.accounts, retired.contains(&kek), &mut check).await?;
        }
        check_index(store, &kek, accounts, &mut check).await?;
    }
    Ok(check)
}

/// That every version of a secret has its value, and the account the AEK version that this is sealed under. A value that no head names
/// was not acknowledged, and is no fault.
async fn check_secrets(store: &dyn KeyStore, check: &mut Check) -> Result<()> {
    let (mut named, mut sealed) = (BTreeMap::new(), BTreeMap::<_, Vec<_>>::new());
    each(store, &Filter::Secrets, |key, value| {
        check.secrets += 1;
        match value.and_then(|value| SecretRecord::decode(key, &value)) {
            Ok(record) => {
                let values = record.versions.iter().map(|of| Key::SecretValue(record.id.clone(), of.version));
                named.extend(values.map(|key| (key, record.account_created_unix)));
            }
            Err(error) => check.find(error),
        }
    })
    .await?;
    each(store, &Filter::SecretValues, |key, value| {
        let made = named.remove(key);
        match value.and_then(|value| sealed_under(key, &value)) {
            Ok((account, aek_version)) => {
                let under = made.map(|made| sealed.entry((account, made, aek_version)).or_default());
                under.into_iter().for_each(|keys| keys.push(key.clone()));
            }
            Err(error) => check.find(error),
        }
    })
    .await?;
    for ((account, made, aek_version), keys) in sealed {
        let record = match load_account(store, &account).await {
            Err(error @ Error::Store(_)) => return Err(error),
            record => record.ok().flatten(), // was named above
        };
        // An account that was purged takes its secrets along.
        let record = record.filter(|(record, _)| record.created_unix == made);
        if record.is_none_or(|(record, _)| record.version(aek_version).is_some()) {
            continue;
        }
        for key in keys {
            let Ok(Some(found)) = store.get(&key).await else { continue };
            // Others may have moved it meanwhile, before that AEK version was retired.
            if sealed_under(&key, &found.value).is_ok_and(|(_, now)| now == aek_version) {
                let what = format!(
                    "is sealed under AEK version {aek_version} of account {account}, which the account has no more: restore the store from a copy"
                );
                check.find(Corrupt::Record { record: key.to_string(), what }.into());
            }
        }
    }
    // Others may have taken versions away meanwhile.
    for key in named.into_keys() {
        let Key::SecretValue(id, version) = &key else { continue };
        let head = match load_secret(store, id).await {
            Err(error @ Error::Store(_)) => return Err(error),
            head => head.ok().flatten(), // what cannot be read by now is for the next time
        };
        let is_named = head.is_some_and(|(head, _)| head.version(*version).is_some());
        if is_named && matches!(store.get(&key).await, Ok(None)) {
            let what = "is missing; restore the store from a copy".into();
            check.find(Corrupt::Record { record: key.to_string(), what }.into());
        }
    }
    Ok(())
}

/// Which AEK version of which account a value of a secret is sealed under.
fn sealed_under(key: &Key, value: &[u8]) -> Result<(AccountId, u32)> {
    let value = SecretValueRecord::decode(key, value)?;
    Ok((value.id.account.clone(), value.aek_version()?))
}

/// Tells one set of accounts from another, by a chance of 2^-64 wrongly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    accounts: u64,
    hashes: u64,
}

impl Tally {
    fn add(&mut self, account: &Key) {
        let mut hasher = DefaultHasher::new();
        account.hash(&mut hasher);
        self.accounts += 1;
        self.hashes ^= hasher.finish();
    }
}

/// That a KEK version which wraps accounts is there, and is not told to be one whose key may be deleted. It was read as retired before the
/// accounts were, or not; it is read again because others may have made it since, or have taken its retirement back.
async fn check_kek(
    store: &dyn KeyStore,
    kek: &KekVersion,
    accounts: u64,
    was_retired: bool,
    check: &mut Check,
) -> Result<()> {
    let key = Key::Kek(kek.name.clone());
    let record = match store.get(&key).await {
        Ok(found) => found.map(|found| KekRecord::decode(&key, &found.value)).transpose(),
        Err(error) => Err(error),
    };
    let wrapped = number_of(accounts, "account");
    let what = match record {
        Err(error @ Error::Store(_)) => return Err(error),
        // Found before.
        Err(_) => return Ok(()),
        Ok(record) => match record.as_ref().and_then(|record| record.version(kek.version)) {
            None => format!("is missing, and wraps AEKs of {wrapped}; restore the store from a copy"),
            Some(version) if was_retired && version.retired_unix.is_some() => format!(
                "is retired, and still wraps AEKs of {wrapped}: see to it that its key is not deleted in the token, and \
                 `keyleash kek rewrap {}` moves them",
                kek.name
            ),
            Some(_) => return Ok(()),
        },
    };
    check.find(Corrupt::Record { record: format!("KEK {kek}"), what }.into());
    Ok(())
}

async fn check_index(store: &dyn KeyStore, kek: &KekVersion, accounts: Tally, check: &mut Check) -> Result<()> {
    let mut listed = BTreeSet::new();
    let (mut found, mut strange) = (Tally::default(), 0);
    each(store, &Filter::WrappedBy(kek.clone()), |key, value| {
        listed.insert(key.clone());
        // A record that cannot be read was found before.
        if let Ok(record) = value.and_then(|value| AccountRecord::decode(key, &value)) {
            if is_under(&record, kek) { found.add(key) } else { strange += 1 }
        }
    })
    .await?;
    if found == accounts && strange == 0 {
        return Ok(());
    }
    // It was not read at one instant: others may have moved accounts meanwhile, who are to hear of no damage.
    let mut suspects = listed.clone();
    each(store, &Filter::Accounts, |key, value| {
        let is_listed = listed.contains(key);
        let is_as_listed = |record| is_under(&record, kek) == is_listed;
        if value.and_then(|value| AccountRecord::decode(key, &value)).is_ok_and(is_as_listed) {
            suspects.remove(key);
        } else {
            suspects.insert(key.clone());
        }
    })
    .await?;
    let (lacks, strange) = differences(store, kek, suspects).await?;
    if lacks + strange > 0 {
        let what = format!(
            "lacks {} that the KEK version wraps, and names {strange} that it does not; restore the store from a copy, \
             or move the accounts to another KEK and back",
            number_of(lacks, "account")
        );
        check.find(Corrupt::Record { record: format!("index of KEK {kek}"), what }.into());
    }
    Ok(())
}

fn is_under(record: &AccountRecord, kek: &KekVersion) -> bool {
    record.versions.iter().any(|aek| aek.kek == *kek)
}

/// Of these, those that the index lacks, and those that it names wrongly: each as it was, and stayed, while the index was listed. Who is
/// changed all the time by others is neither.
async fn differences(store: &dyn KeyStore, kek: &KekVersion, mut suspects: BTreeSet<Key>) -> Result<(u64, u64)> {
    let (mut lacks, mut strange) = (0, 0);
    for _ in 0..CONFLICTS_MAX {
        if suspects.is_empty() {
            break;
        }
        let before = read(store, &suspects).await?;
        let listed: BTreeSet<_> = all_keys(store, &Filter::WrappedBy(kek.clone())).await?.into_iter().collect();
        let now = read(store, &suspects).await?;
        let mut changed = BTreeSet::new();
        for ((key, before), now) in suspects.into_iter().zip(before).zip(now) {
            match (before, now) {
                (Ok(before), Ok(now)) if before != now => drop(changed.insert(key)),
                (Ok(_), Ok(now)) => {
                    let record = now.map(|now| AccountRecord::decode(&key, &now.value)).transpose();
                    let Ok(record) = record else { continue };
                    match (record.is_some_and(|record| is_under(&record, kek)), listed.contains(&key)) {
                        (true, false) => lacks += 1,
                        (false, true) => strange += 1,
                        _ => {}
                    }
                }
                // Found before.
                _ => {}
            }
        }
        suspects = changed;
    }
    Ok((lacks, strange))
}

async fn read(store: &dyn KeyStore, keys: &BTreeSet<Key>) -> Result<Vec<Result<Option<Versioned>>>> {
    let (keys, mut found) = (keys.iter().cloned().collect::<Vec<_>>(), Vec::with_capacity(keys.len()));
    for keys in keys.chunks(PAGE_KEYS_MAX) {
        for one in store.get_many(keys).await {
            if let Err(error @ Error::Store(_)) = one {
                return Err(error);
            }
            found.push(one);
        }
    }
    Ok(found)
}

/// Every key that a filter lists, with what it holds.
async fn each(store: &dyn KeyStore, filter: &Filter, mut each: impl FnMut(&Key, Result<Vec<u8>>) + Send) -> Result<()> {
    let mut pages = Pages::of(store, filter);
    let at_once = if *filter == Filter::SecretValues { VALUES_AT_ONCE } else { PAGE_KEYS_MAX };
    while let Some(page) = pages.next().await? {
        for keys in page.chunks(at_once) {
            for (key, found) in keys.iter().zip(store.get_many(keys).await) {
                match found {
                    Err(error @ Error::Store(_)) => return Err(error),
                    Err(error) => each(key, Err(error)),
                    Ok(Some(found)) => each(key, Ok(found.value)),
                    Ok(None) => {} // deleted since it was listed
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        name::{AccountId, KekName, TokenName},
        store::{
            Page, Put, StoreVersion,
            memory::MemoryStore,
            record::{AekPolicy, KekPolicy, KekVersionRecord, Usage, WrappedAek},
        },
        token::{KekId, Profile, Wrapped},
    };
    use async_trait::async_trait;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn kek(version: u32) -> KekVersion {
        KekVersion::new(KekName::new("k").unwrap(), version)
    }

    /// With a version for each of these dates of retirement, and one more.
    fn kek_record(retired: &[Option<u64>]) -> KekRecord {
        let versions = (1..).zip(retired.iter().chain([&None])).map(|(version, retired_unix)| {
            let id = KekId::new(vec![version as u8]).unwrap();
            let made = KekVersionRecord::new(0, version, id, Profile::AesGcm, TokenName::default());
            KekVersionRecord { retired_unix: *retired_unix, ..made }
        });
        let (versions, current) = (versions.collect(), retired.len() as u32 + 1);
        KekRecord { name: kek(1).name, versions, current, policy: KekPolicy::default() }
    }

    async fn create(store: &dyn KeyStore, key: Key, put: Result<Put>) {
        store.create(&key, put.unwrap()).await.unwrap();
    }

    #[tokio::test]
    async fn a_kek_version_that_wraps_accounts_and_is_missing_or_told_to_be_free_for_deletion_is_named() {
        for (retired, finding) in [
            (&[Some(1)][..], "KEK k/1: is retired, and still wraps AEKs of 1 account:"),
            (&[None], ""),
            (&[], "KEK k/2: is missing, and wraps AEKs of 1 account;"),
        ] {
            let store = MemoryStore::new();
            let (kek, [a, b]) = (kek_record(retired), [account("a", 1), account("b", 2)]);
            create(&store, kek.key(), kek.put()).await;
            create(&store, a.key(), a.put()).await;
            create(&store, b.key(), b.put()).await;
            let words: Vec<_> = check(&store).await.unwrap().findings.iter().map(ToString::to_string).collect();
            assert_eq!(words.len(), usize::from(!finding.is_empty()), "{words:?}");
            assert!(words.iter().all(|word| word.contains(finding)), "{words:?}");
        }
    }

    fn account(id: &str, version: u32) -> AccountRecord {
        let wrapped = WrappedAek {
            aek_version: 1,
            kek: kek(version),
            kek_id: KekId::new(vec![1]).unwrap(),
            profile: Profile::AesGcm,
            wrapped: Wrapped { iv: vec![1; 12], bytes: vec![1; 48] },
            check: [0; 32],
            created_unix: 0,
            used: Usage::default(),
        };
        AccountRecord {
            account: AccountId::new(id).unwrap(),
            created_unix: 0,
            versions: vec![wrapped],
            deleted: None,
            policy: AekPolicy::default(),
            retired: Vec::new(),
        }
    }

    /// Somebody re-wraps an account, to and fro, between any two lists.
    struct Busy {
        store: MemoryStore,
        lists: AtomicU32,
        moves_max: u32,
    }

    #[async_trait]
    impl KeyStore for Busy {
        async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
            self.store.get(key).await
        }

        async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
            self.store.create(key, put).await
        }

        async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
            self.store.replace(key, expected, put).await
        }

        async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
            self.store.delete(key, expected).await
        }

        async fn shred(&self, remains: Vec<Vec<u8>>) -> Result<()> {
            self.store.shred(remains).await
        }

        async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
            let lists = self.lists.fetch_add(1, Ordering::SeqCst);
            if lists < self.moves_max {
                let record = account("a", 1 + lists % 2);
                let seen = self.store.get(&record.key()).await?.unwrap().version;
                self.store.replace(&record.key(), &seen, record.put()?).await?;
            }
            self.store.list(filter, after, limit).await
        }
    }

    #[tokio::test]
    async fn what_others_move_meanwhile_is_no_damage_and_what_the_index_lacks_all_the_while_is() {
        for moves_max in 0..=40 {
            let busy = Busy { store: MemoryStore::new(), lists: AtomicU32::new(0), moves_max };
            let keks = kek_record(&[None]);
            create(&busy, keks.key(), keks.put()).await;
            for id in ["a", "b"] {
                let record = account(id, 1);
                create(&busy, record.key(), record.put()).await;
            }
            assert_eq!(check(&busy).await.unwrap().findings, [], "{moves_max}");
            let lost = account("lost", 1);
            let put = Put { wrapped_by: vec![kek(2)], ..lost.put().unwrap() };
            busy.store.create(&lost.key(), put).await.unwrap();
            busy.lists.store(0, Ordering::SeqCst);
            let found = check(&busy).await.unwrap();
            let words: Vec<_> = found.findings.iter().map(ToString::to_string).collect();
            assert!(
                words.iter().any(|word| word.contains("index of KEK k/1: lacks 1 account that")),
                "{moves_max} {words:?}"
            );
        }
    }
}
