//! Accounts: made, opened, rotated, moved, deleted and purged.

use super::{Act, Engine};
use crate::{
    access::Operation,
    account::Account,
    error::{Error, Result},
    keyring::On,
    name::{AccountId, KekName},
    rotate::When,
    store::{
        Key,
        record::{AccountRecord, Deletion},
    },
    telemetry::trail::Deed,
};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::task::coop;

/// A part of the list of accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AccountPage {
    /// The ids.
    pub ids: Vec<AccountId>,
    /// Give it to the next call; `None` when this was the last page, however few ids a page has.
    pub next: Option<AccountId>,
}

impl Engine {
    /// Makes an account: a new AEK, wrapped by the current version of `kek`, unwrapped again and compared. It is durable
    /// in the store before this returns, and so before its first block can be sealed.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::NotFound`] for the KEK; [`Error::Denied`], [`Error::Unreachable`],
    /// [`Error::Misconfigured`] from the token; [`Error::Store`]: then nothing was acknowledged.
    pub async fn create_account(&self, id: &AccountId, kek: &KekName) -> Result<Account> {
        let act = Act::new(Deed::AccountCreate, &[Operation::Create, Operation::Wrap], On::Under(id, kek));
        let (account, kek) = (id.clone(), kek.clone());
        match self.act(act, |keyring| async move { keyring.create_account(&account, &kek).await }).await {
            // When it was deleted is for those to know who may see it.
            Err(exists @ Error::Exists(_)) => match self.may(&[Operation::Get], On::Account(id)).await {
                Err(_) => Err(Error::Exists(format!("account {id}"))),
                Ok(()) => Err(exists),
            },
            made => Ok(self.handle(made?)),
        }
    }

    /// Opens an account, and makes it first, under `kek`, where there is none of this id. Of several that do so at once, in whatever
    /// engine, one makes it. Of an account that is there `kek` is not looked at: it may have been moved to another since.
    ///
    /// # Errors
    /// As [`Engine::account`] of one that is there, [`Error::NotFound`] of one that was deleted too: it is not made anew. Else as
    /// [`Engine::create_account`].
    pub async fn get_or_create_account(&self, id: &AccountId, kek: &KekName) -> Result<Account> {
        match self.open_account(id).await {
            // Forbidden is said of what is not there, too.
            Err(Error::NotFound(_) | Error::Forbidden(_)) => {}
            found => return self.telling_open(id, async { found }).await,
        }
        match self.create_account(id, kek).await {
            Err(Error::Exists(_)) => self.account(id).await, // somebody else was faster, or it was deleted, which this says
            made => made,
        }
    }

    /// Opens an account: its key is unwrapped if it is not in memory. However many open one cold account at once, the
    /// token is asked once.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Denied`], [`Error::Unreachable`], [`Error::Lapsed`]; [`Error::Corrupt`] when the
    /// record or the wrapped AEK was damaged; [`Error::Store`]; [`Error::Cold`] when an unwrap, with the wait for its turn, took
    /// longer than an `aek_ttl`, several times: the token is overloaded.
    pub async fn account(&self, id: &AccountId) -> Result<Account> {
        coop::consume_budget().await;
        match self.is_on_trail() {
            false => self.open_account(id).await,
            true => self.telling_open(id, Box::pin(self.open_account(id))).await,
        }
    }

    async fn open_account(&self, id: &AccountId) -> Result<Account> {
        let opened = self.open_uncounted(id).await;
        if self.own.is_none() {
            self.keyring().by_account.opened(id, &opened);
        }
        opened
    }

    async fn open_uncounted(&self, id: &AccountId) -> Result<Account> {
        let keys = match self.own {
            Some(_) => self.keyring().open_for_caller(id).await?,
            None => self.keyring().open_permitted(self.who.caller.as_ref(), id).await?,
        };
        let account = self.handle(keys.clone());
        // By the KEK that it is under now; it may have been moved since it was asked for.
        account.may(Operation::Unwrap)?;
        let leash = &keys.current().leash;
        if leash.of_retired_kek.load(Ordering::SeqCst) {
            // Left there by a release whose writes did not rest on the KEK's record. What is sealed from now on must not hang on a
            // key that may be deleted in the token.
            let (id, kek) = (id.clone(), leash.kek().name.clone());
            self.at_home(|keyring| async move { keyring.relocate(&id, &kek).await }).await?;
        }
        Ok(account)
    }

    /// As [`Engine::account`], for a caller without a runtime: blocks the thread until the account is open, or `patience` is over. Not
    /// on a thread of an executor.
    ///
    /// # Errors
    /// As [`Engine::account`]; [`Error::Cold`] when `patience` is over; [`Error::Invalid`] for an engine on the current runtime.
    pub fn account_blocking(&self, id: &AccountId, patience: Duration) -> Result<Account> {
        self.telling_open_blocking(id, || {
            let opened = self.keyring().open_blocking(self.who.caller.as_ref(), id, patience).and_then(|keys| {
                let account = self.handle(keys);
                account.may(Operation::Unwrap)?;
                Ok(account)
            });
            self.keyring().by_account.opened(id, &opened);
            opened
        })
    }

    /// The record of an account: everything but secrets.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Corrupt`], [`Error::Store`].
    pub async fn account_record(&self, id: &AccountId) -> Result<AccountRecord> {
        self.permit(&[Operation::Get], On::Account(id)).await?;
        let id = id.clone();
        self.at_home(|keyring| async move { Ok(keyring.load_account(&id).await?.0) }).await
    }

    /// A page of the accounts that the caller may `get`: at most `limit` ids (and [`PAGE_KEYS_MAX`](crate::store::PAGE_KEYS_MAX)), in the order of their bytes, after
    /// `after`: [`AccountPage::next`] of the page before.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Invalid`] for a limit of 0.
    pub async fn accounts(&self, after: Option<&AccountId>, limit: usize) -> Result<AccountPage> {
        let (caller, after) = (self.who.caller.clone(), after.map(|id| Key::Account(id.clone())));
        let (ids, next) =
            self.at_home(|keyring| async move { keyring.accounts_for(caller.as_ref(), after, limit).await }).await?;
        Ok(AccountPage { ids, next })
    }

    /// Gives an account a new AEK version, wrapped by the current version of its KEK, and makes it current: durable in the
    /// store when this returns, and used by every handle of this engine. Other engines use it within one `aek_ttl`. Blocks
    /// that were sealed before open by the version in their header.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Exhausted`] with [`AEK_VERSIONS_MAX`](crate::store::record::AEK_VERSIONS_MAX) versions: retire some; [`Error::Conflict`] when
    /// others change the account all the time; [`Error::Store`]: nothing was acknowledged, and another try may add one
    /// more; what the token fails with.
    pub async fn rotate_account(&self, id: &AccountId) -> Result<u32> {
        let act = Act::new(Deed::AccountRotate, &[Operation::Rotate, Operation::Wrap], On::Account(id));
        let id = id.clone();
        let rotate = self.at_home(|keyring| async move { keyring.rotate_account(&id).await });
        self.acting(act, rotate, |made, on| on.aek_versions = vec![*made]).await
    }

    /// As [`Engine::rotate_account`], if the current AEK version is `expected`; `None` when it is another one by now. However
    /// many rotate one version at once, one does.
    ///
    /// # Errors
    /// As [`Engine::rotate_account`].
    pub async fn rotate_account_from(&self, id: &AccountId, expected: u32) -> Result<Option<u32>> {
        let act = Act::new(Deed::AccountRotate, &[Operation::Rotate, Operation::Wrap], On::Account(id));
        let id = id.clone();
        let rotate = self.at_home(|keyring| async move { keyring.rotate_account_from(&id, expected).await });
        self.acting(act, rotate, |made, on| on.aek_versions = made.iter().copied().collect()).await
    }

    /// Deletes AEK versions of an account that no block uses any more, as the service has counted, and wipes them, in memory and where
    /// the store keeps its values, as [`Engine::purge_account`] does. Blocks that were sealed under one are lost.
    ///
    /// No count knows what another engine is about to seal, which may not have heard of the version that came after: so a
    /// version is kept until every engine of the store has, an outage of the token included ([`Settings::aek_overlap`]), by the
    /// store's date, which no wall clock moves: it goes forward while an engine is up, and between commands of one boot.
    /// With [`When::Now`] it is not kept: for a service that knows that no other engine has the account open. What this engine itself may have
    /// sealed under it until now, because it had not heard of its successor yet, is refused all the same: it hears of that, and whoever
    /// counts again may retire it.
    ///
    /// # Errors
    /// [`Error::NotFound`], also for a version that the account does not have, or not any more; [`Error::Invalid`] for the current
    /// version, for one that another engine may still seal under, with the time until which, and for one that this engine may have
    /// sealed under until now; what the token fails with, where it is asked for the successor; [`Error::Conflict`]; [`Error::Store`]:
    /// they may be deleted or not, and are wiped so that the record is read before one is used again.
    ///
    /// [`Settings::aek_overlap`]: crate::config::Settings::aek_overlap
    pub async fn retire_aeks(&self, id: &AccountId, aek_versions: &[u32], when: When) -> Result<()> {
        let act = Act::new(Deed::AeksRetire, &[Operation::Purge], On::Account(id)).aeks(aek_versions);
        let (id, aek_versions) = (id.clone(), aek_versions.to_vec());
        self.act(act, |keyring| async move { keyring.retire_aeks(&id, &aek_versions, when, None).await }).await
    }

    /// As [`Engine::retire_aeks`], of what [`Engine::retirable_aeks`] gave and somebody agreed to: AEK versions of which anything is
    /// another than it was shown, what is counted as sealed under them above all, are kept.
    ///
    /// # Errors
    /// As [`Engine::retire_aeks`]; [`Error::Conflict`] also when one of them is not as it was shown.
    pub async fn retire_aeks_as_shown(&self, shown: &AccountRecord, aek_versions: &[u32], when: When) -> Result<()> {
        let act = Act::new(Deed::AeksRetire, &[Operation::Purge], On::Account(&shown.account)).aeks(aek_versions);
        let (shown, aek_versions) = (shown.clone(), aek_versions.to_vec());
        self.act(
            act,
            |keyring| async move { keyring.retire_aeks(&shown.account, &aek_versions, when, Some(&shown)).await },
        )
        .await
    }

    /// What [`Engine::retire_aeks`] would destroy: the account as it is. Changes nothing.
    ///
    /// # Errors
    /// As [`Engine::retire_aeks`].
    pub async fn retirable_aeks(&self, id: &AccountId, aek_versions: &[u32], when: When) -> Result<AccountRecord> {
        self.permit(&[Operation::Purge], On::Account(id)).await?;
        let (id, aek_versions) = (id.clone(), aek_versions.to_vec());
        self.at_home(|keyring| async move { keyring.retirable_aeks(&id, &aek_versions, when).await }).await
    }

    /// Moves an account, all its AEKs, to the current version of `kek`: another KEK, profile or token, or the KEK that it is
    /// under. The old wrapping is gone from the store when this returns. True when anything was to be moved.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the account or the KEK; [`Error::Corrupt`]; [`Error::Denied`], [`Error::Unreachable`] and
    /// the like from either KEK: then the account is as it was; [`Error::Store`], [`Error::Conflict`].
    pub async fn move_account(&self, id: &AccountId, kek: &KekName) -> Result<bool> {
        // Where it shall be, and where it is.
        let act = Act::new(Deed::AccountMove, &[Operation::Move], On::Under(id, kek));
        let act = act.and(&[Operation::Move], On::Account(id));
        let (id, kek) = (id.clone(), kek.clone());
        self.act(act, |keyring| async move { keyring.move_account(&id, &kek).await }).await
    }

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
        let act = Act::new(Deed::AccountDelete, &[Operation::Delete], On::Account(id)).taking_away();
        let id = id.clone();
        self.act(act, |keyring| async move { keyring.delete_account(&id).await }).await
    }

    /// Brings a deleted account back, with all its AEK versions. Handles that are still held work again once they are warmed.
    ///
    /// # Errors
    /// [`Error::NotFound`], also for one that was purged; [`Error::NotDeleted`]; [`Error::Store`],
    /// [`Error::Conflict`].
    pub async fn undelete_account(&self, id: &AccountId) -> Result<()> {
        let act = Act::new(Deed::AccountUndelete, &[Operation::Undelete], On::Account(id));
        let id = id.clone();
        self.act(act, |keyring| async move { keyring.undelete_account(&id).await }).await
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
        let act = Act::new(Deed::AccountPurge, &[Operation::Purge], On::Account(id));
        let id = id.clone();
        self.act(act, |keyring| async move { keyring.purge_account(&id, when, None).await }).await
    }

    /// As [`Engine::purge_account`], of what [`Engine::purgeable_account`] gave and somebody agreed to: an account of which anything is
    /// another than it was shown is kept.
    ///
    /// # Errors
    /// As [`Engine::purge_account`]; [`Error::Conflict`] also when it is not as it was shown.
    pub async fn purge_account_as_shown(&self, shown: &AccountRecord, when: When) -> Result<()> {
        let act = Act::new(Deed::AccountPurge, &[Operation::Purge], On::Account(&shown.account));
        let shown = shown.clone();
        self.act(act, |keyring| async move { keyring.purge_account(&shown.account, when, Some(&shown)).await }).await
    }

    /// What [`Engine::purge_account`] would destroy: the account as it is. Changes nothing.
    ///
    /// # Errors
    /// As [`Engine::purge_account`].
    pub async fn purgeable_account(&self, id: &AccountId, when: When) -> Result<AccountRecord> {
        self.permit(&[Operation::Purge], On::Account(id)).await?;
        let id = id.clone();
        self.at_home(|keyring| async move { keyring.purgeable_account(&id, when).await }).await
    }
}
