//! What there is, and its end: listing, deletion, undeletion, purge.

use super::{Access, SecretPage, Secrets, records::Seen};
use crate::{
    error::{Error, Result},
    keyring::Keyring,
    name::{AccountId, SecretId, SecretName},
    rotate::When,
    store::{
        CONFLICTS_MAX, Filter, Key, Put, StoreVersion, Versioned, again_and_again,
        record::{Deletion, SecretRecord, deleted},
    },
    telemetry::trail::Deed,
};
use std::sync::Arc;

/// What is destroyed is looked for in the store's file in pieces of so many bytes.
const REMAINS_BYTES: usize = 4096;
/// Shorter pieces may be there by chance.
const REMAINS_BYTES_MIN: usize = 32;

impl Secrets {
    /// A page of at most `limit` names of an account's secrets (and [`PAGE_KEYS_MAX`](crate::store::PAGE_KEYS_MAX)), in their order, after
    /// `after`: [`SecretPage::next`] of the page before. Deleted ones are among them. A page may be shorter, and empty, and not the last.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the account, also when it is deleted; [`Error::Store`]; [`Error::Invalid`] for a limit of 0.
    pub async fn list(&self, account: &AccountId, after: Option<&SecretName>, limit: usize) -> Result<SecretPage> {
        self.permit(account, Access::See).await?;
        let of = account.clone();
        let record = self.engine.at_home(|keyring| async move { Ok(keyring.load_account(&of).await?.0) }).await?;
        if let Some(deletion) = record.deleted {
            return Err(deleted(account, deletion));
        }
        let after = after.map(|name| Key::Secret(SecretId::new(account.clone(), name.clone())));
        let page = self.page(Filter::SecretsOf(account.clone()), after, limit).await?;
        let name_of = |key| if let Key::Secret(id) = key { Some(id.name) } else { None };
        let mut names = Vec::new();
        for key in page.keys {
            // What cannot be read is there all the same.
            let is_own = match self.read(key.clone()).await {
                Ok(Some(found)) => SecretRecord::decode(&key, &found.value)
                    .map_or(true, |head| head.account_created_unix == record.created_unix),
                Ok(None) => false,
                Err(Error::Corrupt(_)) => true,
                Err(error) => return Err(error),
            };
            names.extend(if is_own { name_of(key) } else { None });
        }
        Ok(SecretPage { names, next: page.next.and_then(name_of) })
    }

    /// All of a secret but its values, deleted or not.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the account or the secret; [`Error::Corrupt`], [`Error::Store`].
    pub async fn show(&self, id: &SecretId) -> Result<SecretRecord> {
        self.permit(&id.account, Access::See).await?;
        Ok(self.look(id).await?.any(id)?.clone())
    }

    /// Deletes a secret so that it can be brought back for `retention`: none of its versions is given out any more. Under
    /// `purge_protection` nobody purges it before that, as with accounts.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Store`]: it may be deleted or not; [`Error::Conflict`].
    pub async fn delete(&self, id: &SecretId) -> Result<Deletion> {
        let act = Self::act(Deed::SecretDelete, id, Access::Delete).taking_away();
        self.engine.acting(act, self.delete_now(id), |_, _| {}).await
    }

    async fn delete_now(&self, id: &SecretId) -> Result<Deletion> {
        let retention = self.engine.settings().retention.as_secs();
        let protect = |keyring: Arc<Keyring>| async move {
            keyring.protect().await?;
            keyring.stamp().await
        };
        let since_unix = self.engine.at_home(protect).await?;
        let new = Deletion { since_unix, purge_after_unix: since_unix.saturating_add(retention) };
        let mut deletion = new;
        let change = |head: &mut SecretRecord| {
            deletion = *head.deleted.get_or_insert(new);
            Ok(())
        };
        self.change(id, change).await?;
        Ok(deletion)
    }

    /// Brings a deleted secret back, with all its versions.
    ///
    /// # Errors
    /// [`Error::NotFound`], also for one that was purged; [`Error::NotDeleted`]; [`Error::Store`], [`Error::Conflict`].
    pub async fn undelete(&self, id: &SecretId) -> Result<()> {
        let act = Self::act(Deed::SecretUndelete, id, Access::Undelete);
        let change = |head: &mut SecretRecord| match head.deleted.take() {
            Some(_) => Ok(()),
            None => Err(Error::NotDeleted(format!("secret {id}"))),
        };
        let undelete = async { self.change(id, change).await.map(drop) };
        self.engine.acting(act, undelete, |(), _| {}).await
    }

    /// Destroys a deleted secret, all its versions, for good: after its retention, or [`When::Now`], where `purge_protection` is off,
    /// here and in the store. Its sealed values are removed, and not left where the store keeps its values either
    /// ([`KeyStore::shred`](crate::store::KeyStore::shred)); what copies of the store there are elsewhere still hold them, and the
    /// account's AEK opens them.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotDeleted`]; [`Error::Invalid`] when its retention is not over, or when [`When::Now`] is asked for
    /// under `purge_protection`; [`Error::Conflict`]; [`Error::Store`]: purge it again, for what may be left of it; also when it is gone
    /// and its values may still be found, which is said.
    pub async fn purge(&self, id: &SecretId, when: When) -> Result<()> {
        let act = Self::act(Deed::SecretPurge, id, Access::Purge);
        self.engine.acting(act, self.purge_as(id, when, None), |(), _| {}).await
    }

    /// As [`Secrets::purge`], of what [`Secrets::purgeable`] gave and somebody agreed to: a secret of which anything is another than it
    /// was shown is kept.
    ///
    /// # Errors
    /// As [`Secrets::purge`]; [`Error::Conflict`] also when it is not as it was shown.
    pub async fn purge_as_shown(&self, shown: &SecretRecord, when: When) -> Result<()> {
        let act = Self::act(Deed::SecretPurge, &shown.id, Access::Purge);
        self.engine.acting(act, self.purge_as(&shown.id, when, Some(shown)), |(), _| {}).await
    }

    /// What [`Secrets::purge`] would destroy: the secret as it is. Changes nothing.
    ///
    /// # Errors
    /// As [`Secrets::purge`].
    pub async fn purgeable(&self, id: &SecretId, when: When) -> Result<SecretRecord> {
        self.permit(&id.account, Access::Purge).await?;
        let seen = self.look(id).await?;
        self.refuse_to_purge(id, &seen, when).await?;
        Ok(seen.any(id)?.clone())
    }

    async fn refuse_to_purge(&self, id: &SecretId, seen: &Seen, when: When) -> Result<()> {
        let SecretId { account, name } = id;
        let deletion = seen.any(id)?.deleted.ok_or_else(|| {
            Error::NotDeleted(format!("secret {id}: `keyleash secret delete {name} --account {account}` first"))
        })?;
        let what = format!("secret {id}");
        self.engine.at_home(|keyring| async move { keyring.refuse_early(&what, deletion, when).await }).await
    }

    async fn purge_as(&self, id: &SecretId, when: When, shown: Option<&SecretRecord>) -> Result<()> {
        for _ in 0..CONFLICTS_MAX {
            // Before the head is looked at: what is found without one is nobody's.
            let mut values = self.values(id).await?;
            let seen = self.look(id).await?;
            let (None, true) = (&seen.head, !values.is_empty()) else {
                self.refuse_to_purge(id, &seen, when).await?;
                if shown.is_some() && shown != seen.head.as_ref() {
                    return Err(Error::Conflict(format!(
                        "secret {id} is not as it was shown: nothing of it was destroyed; look at what there is now, and say so again"
                    )));
                }
                // None comes after this: nobody sets a secret that is deleted.
                values = self.values(id).await?;
                let (key, seen_version) = (Key::Secret(id.clone()), seen.head_version);
                let Some(seen_version) = seen_version else { continue };
                match self
                    .engine
                    .at_home(|keyring| async move { keyring.store.delete(&key, &seen_version).await })
                    .await
                {
                    Ok(()) => return self.destroy(id, values).await,
                    Err(Error::Conflict(_) | Error::NotFound(_)) => continue, // undeleted, perhaps
                    Err(error) => return Err(error),
                }
            };
            // The last purge was killed, of the secret or of the account that had this id before.
            if self.destroy_left(id, seen, values).await? {
                return Ok(());
            }
        }
        Err(again_and_again("secret", id))
    }

    /// Destroys values that no head names; false when one does by now. Whoever sets the secret just now may have stored one of them, and
    /// writes a head that rests on it as it was: so each is written anew first, and what no head names after that none ever will.
    async fn destroy_left(&self, id: &SecretId, seen: Seen, values: Vec<(Key, StoreVersion, Vec<u8>)>) -> Result<bool> {
        if let Some(former) = seen.head_version {
            self.remove(Key::Secret(id.clone()), former).await?;
        }
        let mut left = Vec::new();
        for (key, version, value) in values {
            let put = Put { value: value.clone(), wrapped_by: Vec::new(), guards: Vec::new() };
            match self.replace(key.clone(), version, put).await {
                Ok(version) => left.push((key, version, value)),
                Err(Error::NotFound(_) | Error::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        if self.look(id).await?.head.is_some() {
            return Ok(false);
        }
        self.destroy(id, left).await?;
        Ok(true)
    }

    /// Every value of a secret.
    async fn values(&self, id: &SecretId) -> Result<Vec<(Key, StoreVersion, Vec<u8>)>> {
        let mut values = Vec::new();
        for number in self.numbers(id).await? {
            let key = Key::SecretValue(id.clone(), number);
            if let Some(Versioned { value, version }) = self.read(key.clone()).await? {
                values.push((key, version, value));
            }
        }
        Ok(values)
    }

    async fn destroy(&self, id: &SecretId, values: Vec<(Key, StoreVersion, Vec<u8>)>) -> Result<()> {
        let (mut remains, mut removed) = (Vec::new(), Ok(()));
        for (key, version, value) in values {
            if let Err(error) = self.remove(key.clone(), version).await
                && !matches!(self.read(key).await, Ok(None))
            {
                removed = removed.and(Err(error));
                continue;
            }
            remains.extend(
                value.chunks(REMAINS_BYTES).filter(|piece| piece.len() >= REMAINS_BYTES_MIN).map(<[u8]>::to_vec),
            );
        }
        // Also where some are left: whoever purges them again does not find out what these were.
        let shredded = self.engine.at_home(|keyring| async move { keyring.store.shred(remains).await }).await;
        shredded.map_err(|error| {
            Error::Store(format!(
                "secret {id} is purged, but its sealed values may still be found where the store keeps its values: {error}"
            ))
        })?;
        removed
    }
}
