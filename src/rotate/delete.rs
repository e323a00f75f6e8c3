//! Soft deletion of accounts, undeletion, and the purge that shreds their blocks.

use super::When;
use crate::{
    clock::utc,
    error::{Error, Result},
    keyring::{Agreed, Keyring},
    name::AccountId,
    store::{
        self, CONFLICTS_MAX, StoreVersion, again_and_again,
        record::{AccountRecord, Deletion, WrappedAek},
    },
};

impl Keyring {
    /// As [`Engine::delete_account`](crate::Engine::delete_account), at home.
    pub(crate) async fn delete_account(&self, id: &AccountId) -> Result<Deletion> {
        self.protect().await?;
        let (now, retention) = (self.stamp().await?, self.settings.retention.as_secs());
        let mut deletion = Deletion { since_unix: now, purge_after_unix: now.saturating_add(retention) };
        let change = |record: &mut AccountRecord| {
            let is_new = record.deleted.is_none();
            // Of a release before this one, which dated by its wall clock.
            let newest = record.versions.iter().map(|version| version.created_unix).max();
            let since_unix = now.max(record.created_unix).max(newest.unwrap_or_default());
            let purge_after_unix = since_unix.saturating_add(retention);
            deletion = *record.deleted.get_or_insert(Deletion { since_unix, purge_after_unix });
            Ok(is_new)
        };
        let changed = self.change_account(id, change).await;
        // Also when the store failed: the record may say so all the same, and whoever uses the account next reads it.
        if matches!(changed, Ok(_) | Err(Error::Store(_))) {
            self.shut(id).await;
        }
        changed.map(|_| deletion)
    }

    /// As [`Engine::undelete_account`](crate::Engine::undelete_account), at home.
    pub(crate) async fn undelete_account(&self, id: &AccountId) -> Result<()> {
        let change = |record: &mut AccountRecord| match record.deleted.take() {
            Some(_) => Ok(true),
            None => Err(Error::NotDeleted(format!("account {id}"))),
        };
        match self.change_account(id, change).await {
            Err(Error::NotFound(_)) => Err(Error::NotFound(format!(
                "account {id}: it was never made, or it was purged; nothing brings a purged account back"
            ))),
            other => other.map(drop),
        }
    }

    /// As [`Engine::purgeable_account`](crate::Engine::purgeable_account), at home.
    pub(crate) async fn purgeable_account(&self, id: &AccountId, when: When) -> Result<AccountRecord> {
        let (record, _) = self.load_account(id).await?;
        self.refuse_to_purge(&record, when).await?;
        Ok(record)
    }

    async fn refuse_to_purge(&self, record: &AccountRecord, when: When) -> Result<()> {
        let id = &record.account;
        let Some(deletion) = record.deleted else {
            return Err(Error::NotDeleted(format!("account {id}: `keyleash account delete {id}` first")));
        };
        self.refuse_early(&format!("account {id}"), deletion, when).await
    }

    /// Refuses to purge what is kept for longer.
    pub(crate) async fn refuse_early(&self, what: &str, deletion: Deletion, when: When) -> Result<()> {
        // Asked for after the record was read.
        let Agreed { date_unix, purge_protection, .. } = self.agreed().await?;
        let may_be_early = when == When::Now && !purge_protection;
        if !may_be_early && date_unix < deletion.purge_after_unix {
            let (until, date) = (utc(deletion.purge_after_unix), utc(date_unix));
            let remedy = match (purge_protection, self.settings.purge_protection) {
                (true, true) => "purge_protection is on, so that nobody purges it before that",
                (true, false) => {
                    "an engine with purge_protection uses this store, or did, so that nobody purges it before that, whatever the \
                     setting is here"
                }
                (false, _) => "`--now` purges it before that",
            };
            return Err(Error::Invalid(format!(
                "{what} is kept until {until} by the store's date, which is {date}: {remedy}"
            )));
        }
        Ok(())
    }

    /// As [`Engine::purge_account`](crate::Engine::purge_account), at home; of what was shown, if it was.
    pub(crate) async fn purge_account(&self, id: &AccountId, when: When, shown: Option<&AccountRecord>) -> Result<()> {
        for _ in 0..CONFLICTS_MAX {
            // Before the account is looked for: what is found of one that is gone is not of one that is made anew meanwhile.
            let secrets = self.secrets_records(id).await?;
            let (record, seen) = match self.load_account(id).await {
                // The last purge was killed, or could not remove them.
                Err(Error::NotFound(_)) if !secrets.is_empty() => return self.remove_secrets(id, secrets).await,
                loaded => loaded?,
            };
            self.refuse_to_purge(&record, when).await?;
            if shown.is_some_and(|shown| *shown != record) {
                return Err(not_as_shown(id));
            }
            // None comes after this: what a secret is set with rests on the account's record as it was before it was deleted. Until then
            // some may have come.
            let secrets = self.secrets_records(id).await?;
            // Whatever is alive now is of the account that is deleted; if it is another one's by then, so is the record.
            let keys = self.to_tell(id);
            match self.store.delete(&record.key(), &seen).await {
                Ok(()) => {
                    self.forget_account(id, keys).await;
                    self.remove_secrets(id, secrets).await?;
                    return self.shred(&record.versions, format!("account {id} is purged")).await;
                }
                Err(Error::Conflict(_)) => {} // undeleted, perhaps
                Err(error) => {
                    // It may be gone all the same, and nobody who tries again finds out what is to be shredded.
                    if let Ok(None) = store::load_account(&*self.store, id).await {
                        self.forget_account(id, keys).await;
                        self.remove_secrets(id, secrets).await?;
                        self.shred(&record.versions, format!("account {id} is purged")).await?;
                    }
                    return Err(error);
                }
            }
        }
        Err(again_and_again("account", id))
    }

    /// Makes an end of wrapped AEKs that no record has any more.
    pub(super) async fn shred(&self, wrapped: &[WrappedAek], done: String) -> Result<()> {
        let remains = wrapped.iter().map(|wrapped| wrapped.wrapped.bytes.clone()).collect();
        self.store.shred(remains).await.map_err(|error| {
            Error::Store(format!(
                "{done}, but its wrapped AEK may still be found where the store keeps its values: {error}"
            ))
        })
    }

    /// Changes an account's record; again, on what it is by then, when somebody else was faster. `change` says whether it
    /// changed anything.
    pub(super) async fn change_account(
        &self,
        id: &AccountId,
        mut change: impl FnMut(&mut AccountRecord) -> Result<bool>,
    ) -> Result<(AccountRecord, Option<StoreVersion>)> {
        for _ in 0..CONFLICTS_MAX {
            let (mut record, seen) = self.load_account(id).await?;
            if !change(&mut record)? {
                return Ok((record, None));
            }
            match self.store.replace(&record.key(), &seen, record.put()?).await {
                Ok(version) => return Ok((record, Some(version))),
                Err(Error::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(again_and_again("account", id))
    }
}

/// What is said where somebody agreed to something else.
pub(super) fn not_as_shown(id: &AccountId) -> Error {
    Error::Conflict(format!(
        "account {id} is not as it was shown: nothing of it was destroyed; look at what there is now, and say so again"
    ))
}
