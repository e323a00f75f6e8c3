//! Soft deletion of accounts, undeletion, and the purge that shreds their blocks.

use super::When;
use crate::{
    clock::utc,
    engine::Engine,
    error::{Error, Result},
    keyring::Agreed,
    name::AccountId,
    store::{
        CONFLICTS_MAX, StoreVersion, again_and_again,
        record::{AccountRecord, Deletion, WrappedAek},
    },
};

impl Engine {
    /// Deletes an account so that it can be brought back for `retention`. Its handles stop at once in this engine, and
    /// in every other one within one `aek_ttl`, an outage of the token included. Nothing of it is destroyed yet.
    ///
    /// With `purge_protection` on, that is written down for the store before: from then on no engine, whatever its settings, purges
    /// early. When it may be purged is written down now, by the store's date: neither a restart, nor a later setting, nor any wall clock
    /// moves it. An account that was deleted before stays as it was.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Store`]: it may be deleted or not, and its keys are wiped so that its record is read before it
    /// is used again; [`Error::Conflict`].
    pub async fn delete_account(&self, id: &AccountId) -> Result<Deletion> {
        let id = id.clone();
        self.at_home(|engine| async move { engine.delete(&id).await }).await
    }

    async fn delete(&self, id: &AccountId) -> Result<Deletion> {
        self.keyring().protect().await?;
        let (now, retention) = (self.keyring().stamp().await?, self.keyring().settings.retention.as_secs());
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
            self.keyring().shut(id).await;
        }
        changed.map(|_| deletion)
    }

    /// Brings a deleted account back, with all its AEK versions. Handles that are still held work again once they are warmed.
    ///
    /// # Errors
    /// [`Error::NotFound`], also for one that was purged; [`Error::NotDeleted`]; [`Error::Store`],
    /// [`Error::Conflict`].
    pub async fn undelete_account(&self, id: &AccountId) -> Result<()> {
        let id = id.clone();
        self.at_home(|engine| async move {
            let change = |record: &mut AccountRecord| match record.deleted.take() {
                Some(_) => Ok(true),
                None => Err(Error::NotDeleted(format!("account {id}"))),
            };
            match engine.change_account(&id, change).await {
                Err(Error::NotFound(_)) => Err(Error::NotFound(format!(
                    "account {id}: it was never made, or it was purged; nothing brings a purged account back"
                ))),
                other => other.map(drop),
            }
        })
        .await
    }

    /// Destroys every wrapped AEK of a deleted account: its blocks are shredded, for good. After its retention, of which
    /// only that time counts which some engine saw pass, or [`When::Now`], where `purge_protection` is off, here and in the store: an
    /// engine that has it on writes that down, for all and for good.
    ///
    /// Nor are they left where the store keeps its values ([`KeyStore::shred`](crate::store::KeyStore::shred)): the embedded one writes
    /// over what was freed in its file, and searches the file for them. What copies there are elsewhere, the store's backups above all, still hold the
    /// wrapped AEKs, and the KEK still opens them: they are shredded when those copies go, or when the KEK versions that
    /// wrapped them are deleted in the token. Such copies are also what the file system and the disk below it keep of pages that
    /// were written over: snapshots, the blocks of a copy-on-write file system, an SSD's spare ones.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotDeleted`]; [`Error::Invalid`] when its retention is not over, or when
    /// [`When::Now`] is asked for under `purge_protection`; [`Error::Conflict`]; [`Error::Store`], also when the account is gone
    /// and the store could not make an end of what was freed, which is said.
    pub async fn purge_account(&self, id: &AccountId, when: When) -> Result<()> {
        let id = id.clone();
        self.at_home(|engine| async move { engine.purge(&id, when, None).await }).await
    }

    /// As [`Engine::purge_account`], of what [`Engine::purgeable_account`] gave and somebody agreed to: an account of which anything is
    /// another than it was shown is kept.
    ///
    /// # Errors
    /// As [`Engine::purge_account`]; [`Error::Conflict`] also when it is not as it was shown.
    pub async fn purge_account_as_shown(&self, shown: &AccountRecord, when: When) -> Result<()> {
        let shown = shown.clone();
        self.at_home(|engine| async move { engine.purge(&shown.account, when, Some(&shown)).await }).await
    }

    /// What [`Engine::purge_account`] would destroy: the account as it is. Changes nothing.
    ///
    /// # Errors
    /// As [`Engine::purge_account`].
    pub async fn purgeable_account(&self, id: &AccountId, when: When) -> Result<AccountRecord> {
        let id = id.clone();
        self.at_home(|engine| async move {
            let (record, _) = engine.load_account(&id).await?;
            engine.refuse_to_purge(&record, when).await?;
            Ok(record)
        })
        .await
    }

    async fn refuse_to_purge(&self, record: &AccountRecord, when: When) -> Result<()> {
        let (keyring, id) = (self.keyring(), &record.account);
        let Some(deletion) = record.deleted else {
            return Err(Error::NotDeleted(format!("account {id}: `keyleash account delete {id}` first")));
        };
        // Asked for after the record was read.
        let Agreed { date_unix, purge_protection, .. } = keyring.agreed().await?;
        let may_be_early = when == When::Now && !purge_protection;
        if !may_be_early && date_unix < deletion.purge_after_unix {
            let (until, date) = (utc(deletion.purge_after_unix), utc(date_unix));
            let remedy = match (purge_protection, keyring.settings.purge_protection) {
                (true, true) => "purge_protection is on, so that nobody purges it before that",
                (true, false) => {
                    "an engine with purge_protection uses this store, or did, so that nobody purges it before that, whatever the \
                     setting is here"
                }
                (false, _) => "`--now` purges it before that",
            };
            return Err(Error::Invalid(format!(
                "account {id} is kept until {until} by the store's date, which is {date}: {remedy}"
            )));
        }
        Ok(())
    }

    async fn purge(&self, id: &AccountId, when: When, shown: Option<&AccountRecord>) -> Result<()> {
        let keyring = self.keyring();
        for _ in 0..CONFLICTS_MAX {
            let (record, seen) = self.load_account(id).await?;
            self.refuse_to_purge(&record, when).await?;
            if shown.is_some_and(|shown| *shown != record) {
                return Err(not_as_shown(id));
            }
            // Whatever is alive now is of the account that is deleted; if it is another one's by then, so is the record.
            let keys = keyring.to_tell(id);
            match keyring.store.delete(&record.key(), &seen).await {
                Ok(()) => {
                    keyring.forget_account(id, keys).await;
                    return self.shred(&record.versions, format!("account {id} is purged")).await;
                }
                Err(Error::Conflict(_)) => {} // undeleted, perhaps
                Err(error) => return Err(error),
            }
        }
        Err(again_and_again("account", id))
    }

    /// Makes an end of wrapped AEKs that no record has any more.
    pub(super) async fn shred(&self, wrapped: &[WrappedAek], done: String) -> Result<()> {
        let remains = wrapped.iter().map(|wrapped| wrapped.wrapped.bytes.clone()).collect();
        self.keyring().store.shred(remains).await.map_err(|error| {
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
            match self.keyring().store.replace(&record.key(), &seen, record.put()?).await {
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
