//! How the records of secrets are read and changed. Every write of a head rests on the account's record, so that none comes after the
//! account's deletion.

use super::Secrets;
use crate::{
    account::Account,
    clock::utc,
    error::{Error, Result},
    keyring::made_anew,
    name::{AccountId, SecretId},
    store::{
        self, CONFLICTS_MAX, Filter, Key, PAGE_KEYS_MAX, Page, Put, StoreVersion, Versioned, again_and_again,
        record::{AccountRecord, SecretRecord, deleted},
    },
};

/// An account, and one of its secrets, as they were at one look.
pub(super) struct Seen {
    pub(super) account: AccountRecord,
    pub(super) account_version: StoreVersion,
    /// `None` where the account has no such secret.
    pub(super) head: Option<SecretRecord>,
    /// Of what is in the head's place: of an account that was purged, it may be.
    pub(super) head_version: Option<StoreVersion>,
}

impl Seen {
    /// Rests on the account as it was.
    pub(super) fn on_account(&self, put: Put) -> Put {
        put.resting_on(self.account.key(), self.account_version.clone())
    }

    /// The secret, deleted or not.
    pub(super) fn any(&self, id: &SecretId) -> Result<&SecretRecord> {
        self.head.as_ref().ok_or_else(|| Error::NotFound(format!("secret {id}")))
    }

    /// The secret, which is not deleted.
    pub(super) fn live(&self, id: &SecretId) -> Result<&SecretRecord> {
        let head = self.any(id)?;
        refuse_deleted(head)?;
        Ok(head)
    }
}

/// Refuses a secret that is deleted.
pub(super) fn refuse_deleted(head: &SecretRecord) -> Result<()> {
    let Some(deletion) = head.deleted else { return Ok(()) };
    let SecretId { account, name } = &head.id;
    Err(Error::NotFound(format!(
        "secret {}: it was deleted on {}; `keyleash secret undelete {name} --account {account}` brings it back, until {} at least",
        head.id,
        utc(deletion.since_unix),
        utc(deletion.purge_after_unix)
    )))
}

impl Secrets {
    /// Reads a secret and its account, which must be there and not deleted.
    pub(super) async fn look(&self, id: &SecretId) -> Result<Seen> {
        let keys = [Key::Account(id.account.clone()), Key::Secret(id.clone())];
        let asked = keys.clone();
        let mut found = self.engine.at_home(|keyring| async move { Ok(keyring.store.get_many(&asked).await) }).await?;
        let (head, account) = (found.pop().unwrap_or(Ok(None)), found.pop().unwrap_or(Ok(None)));
        let [account_key, head_key] = &keys;
        let Some(Versioned { value, version: account_version }) = account? else {
            return Err(Error::NotFound(format!("account {}", id.account)));
        };
        let account = AccountRecord::decode(account_key, &value)?;
        if let Some(deletion) = account.deleted {
            return Err(deleted(&id.account, deletion));
        }
        let head = head?;
        let head_version = head.as_ref().map(|head| head.version.clone());
        let head = head.map(|head| SecretRecord::decode(head_key, &head.value)).transpose()?;
        let head = head.filter(|head| head.account_created_unix == account.created_unix);
        Ok(Seen { account, account_version, head, head_version })
    }

    /// Opens the account that was seen. What is in memory here may be of one that had its id before and was purged: what is sealed under
    /// that one's AEK nobody would open again.
    pub(super) async fn account(&self, seen: &AccountRecord) -> Result<Account> {
        for _ in 0..CONFLICTS_MAX {
            let account = self.engine.own_hand().account(&seen.account).await?;
            let (keys, record) = (account.keys().clone(), seen.clone());
            if self.engine.at_home(|keyring| async move { keyring.are_of(&keys, &record).await }).await? {
                return Ok(account);
            }
        }
        Err(made_anew(&seen.account))
    }

    /// The head as it is, of whatever account of this id.
    pub(super) async fn head_now(&self, id: &SecretId) -> Result<Option<SecretRecord>> {
        let key = Key::Secret(id.clone());
        self.read(key.clone()).await?.map(|found| SecretRecord::decode(&key, &found.value)).transpose()
    }

    /// Changes a secret's head; again, on what it is by then, when somebody else was faster.
    pub(super) async fn change(
        &self,
        id: &SecretId,
        mut change: impl FnMut(&mut SecretRecord) -> Result<()>,
    ) -> Result<SecretRecord> {
        for _ in 0..CONFLICTS_MAX {
            let seen = self.look(id).await?;
            let mut head = seen.any(id)?.clone();
            change(&mut head)?;
            if seen.head.as_ref() == Some(&head) {
                return Ok(head);
            }
            match self.put_head(&seen, &head, |put| put).await {
                Ok(_) => return Ok(head),
                Err(Error::Conflict(_) | Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(again_and_again("secret", id))
    }

    /// Writes a head in the place of the one that was seen. `rest` may add what it rests on beside the account.
    pub(super) async fn put_head(
        &self,
        seen: &Seen,
        head: &SecretRecord,
        rest: impl FnOnce(Put) -> Put,
    ) -> Result<StoreVersion> {
        let put = rest(seen.on_account(head.put()?));
        match seen.head_version.clone() {
            Some(version) => self.replace(head.key(), version, put).await,
            None => self.create(head.key(), put).await,
        }
    }

    pub(super) async fn read(&self, key: Key) -> Result<Option<Versioned>> {
        self.engine.at_home(|keyring| async move { keyring.store.get(&key).await }).await
    }

    pub(super) async fn create(&self, key: Key, put: Put) -> Result<StoreVersion> {
        self.engine.at_home(|keyring| async move { keyring.store.create(&key, put).await }).await
    }

    pub(super) async fn replace(&self, key: Key, seen: StoreVersion, put: Put) -> Result<StoreVersion> {
        self.engine.at_home(|keyring| async move { keyring.store.replace(&key, &seen, put).await }).await
    }

    /// Removes what may be gone, or another one, by now: then it stays as it is.
    pub(super) async fn remove(&self, key: Key, seen: StoreVersion) -> Result<()> {
        match self.engine.at_home(|keyring| async move { keyring.store.delete(&key, &seen).await }).await {
            Err(Error::NotFound(_) | Error::Conflict(_)) => Ok(()),
            other => other,
        }
    }

    pub(super) async fn page(&self, filter: Filter, after: Option<Key>, limit: usize) -> Result<Page> {
        self.engine.at_home(|keyring| async move { keyring.store.list(&filter, after.as_ref(), limit).await }).await
    }

    /// The secrets of an account, or of all.
    pub(super) async fn heads(&self, account: Option<&AccountId>) -> Result<Vec<SecretId>> {
        let filter = account.map_or(Filter::Secrets, |account| Filter::SecretsOf(account.clone()));
        let keys =
            self.engine.at_home(|keyring| async move { store::all_keys(&*keyring.store, &filter).await }).await?;
        Ok(keys.into_iter().filter_map(|key| if let Key::Secret(id) = key { Some(id) } else { None }).collect())
    }

    /// The numbers of all values of a secret, whether its head names them or not.
    pub(super) async fn numbers(&self, id: &SecretId) -> Result<Vec<u32>> {
        let (mut numbers, mut after) = (Vec::new(), Some(Key::SecretValue(id.clone(), 0)));
        while after.is_some() {
            let page = self.page(Filter::SecretValuesOf(id.account.clone()), after, PAGE_KEYS_MAX).await?;
            after = page.next;
            for key in page.keys {
                match key {
                    Key::SecretValue(of, number) if of == *id => numbers.push(number),
                    _ => return Ok(numbers),
                }
            }
        }
        Ok(numbers)
    }
}
