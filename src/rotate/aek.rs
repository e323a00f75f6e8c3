//! New AEK versions of an account, and their retirement.

use super::{When, hold::Claim, not_as_shown};
use crate::{
    clock::utc,
    engine::Engine,
    error::{Error, Result},
    keyring::Agreed,
    name::AccountId,
    store::{
        CONFLICTS_MAX, again_and_again,
        record::{AEK_VERSIONS_MAX, AccountRecord, deleted, was_retired},
    },
};

impl Engine {
    /// Gives an account a new AEK version, wrapped by the current version of its KEK, and makes it current: durable in the
    /// store when this returns, and used by every handle of this engine. Other engines use it within one `aek_ttl`. Blocks
    /// that were sealed before open by the version in their header.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Exhausted`] with [`AEK_VERSIONS_MAX`] versions: retire some; [`Error::Conflict`] when
    /// others change the account all the time; [`Error::Store`]: nothing was acknowledged, and another try may add one
    /// more; what the token fails with.
    pub async fn rotate_account(&self, id: &AccountId) -> Result<u32> {
        let id = id.clone();
        self.at_home(|engine| async move {
            let (first, _) = engine.load_account(&id).await?;
            let before = first.current().map_or(0, |current| current.aek_version);
            let (current, _) = engine.rotate_aek(&id, before, Claim::NONE).await?;
            Ok(current)
        })
        .await
    }

    /// As [`Engine::rotate_account`], if the current AEK version is `expected`; `None` when it is another one by now. However
    /// many rotate one version at once, one does.
    ///
    /// # Errors
    /// As [`Engine::rotate_account`].
    pub async fn rotate_account_from(&self, id: &AccountId, expected: u32) -> Result<Option<u32>> {
        let id = id.clone();
        self.at_home(|engine| async move {
            let (current, made) = engine.rotate_aek(&id, expected, Claim::NONE).await?;
            Ok(made.then_some(current))
        })
        .await
    }

    /// The current AEK version afterwards, and whether this call made it. Every write rests on the claim.
    pub(super) async fn rotate_aek(&self, id: &AccountId, expected: u32, claim: Claim<'_>) -> Result<(u32, bool)> {
        for _ in 0..CONFLICTS_MAX {
            let guard = self.keyring().shut_guard(id);
            let (mut record, seen) = self.load_account(id).await?;
            if let Some(deletion) = record.deleted {
                return Err(deleted(id, deletion));
            }
            let Some(current) = record.current() else { break };
            if current.aek_version != expected {
                // Somebody else rotated it since; that is what was asked for.
                self.keyring().learn(id).await?;
                return Ok((current.aek_version, false));
            }
            if record.versions.len() >= AEK_VERSIONS_MAX {
                return Err(Error::Exhausted(format!(
                    "account {id} has {AEK_VERSIONS_MAX} AEK versions, which is the most: retire those that no block uses"
                )));
            }
            let Some(next) = current.aek_version.checked_add(1) else {
                return Err(Error::Exhausted(format!("account {id} has no further AEK version number")));
            };
            let target = self.target(&current.kek.name).await?;
            let (mut wrapped, proof) = self.new_aek(id, next, &target).await?;
            // Others seal under the version before for as long as they do not know of this one, so its age counts from when it is
            // stored, and not from before the token was waited for.
            let stamp = self.keyring().stamp_for_write().await?;
            wrapped.created_unix = stamp.unix;
            record.versions.push(wrapped.clone());
            let put = claim.guard(stamp.guard(target.guard(record.put()?))).await?;
            match self.keyring().store.replace(&record.key(), &seen, put).await {
                Ok(_) => {
                    // Before the first block is sealed under it.
                    match guard.keys() {
                        Some(keys) => self.keyring().admit_version(keys, &record, &wrapped, &proof).await?,
                        None => self.keyring().learn(id).await?,
                    }
                    return Ok((next, true));
                }
                Err(Error::Conflict(what)) => claim.met_conflict(&what),
                Err(error) => {
                    // It may be there all the same. Where the store does not say, every engine hears of it within a TTL, before which
                    // the version that it succeeds is not retired.
                    let _ = self.keyring().learn(id).await;
                    return Err(error);
                }
            }
        }
        Err(again_and_again("account", id))
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
        let (id, aek_versions) = (id.clone(), aek_versions.to_vec());
        self.at_home(|engine| async move { engine.retire_aek_versions(&id, &aek_versions, when, None).await }).await
    }

    /// As [`Engine::retire_aeks`], of what [`Engine::retirable_aeks`] gave and somebody agreed to: AEK versions of which anything is
    /// another than it was shown, what is counted as sealed under them above all, are kept.
    ///
    /// # Errors
    /// As [`Engine::retire_aeks`]; [`Error::Conflict`] also when one of them is not as it was shown.
    pub async fn retire_aeks_as_shown(&self, shown: &AccountRecord, aek_versions: &[u32], when: When) -> Result<()> {
        let (shown, aek_versions) = (shown.clone(), aek_versions.to_vec());
        self.at_home(|engine| async move {
            engine.retire_aek_versions(&shown.account, &aek_versions, when, Some(&shown)).await
        })
        .await
    }

    /// What [`Engine::retire_aeks`] would destroy: the account as it is. Changes nothing.
    ///
    /// # Errors
    /// As [`Engine::retire_aeks`].
    pub async fn retirable_aeks(&self, id: &AccountId, aek_versions: &[u32], when: When) -> Result<AccountRecord> {
        let (id, aek_versions) = (id.clone(), aek_versions.to_vec());
        self.at_home(|engine| async move {
            let (record, _) = engine.load_account(&id).await?;
            engine.refuse_to_retire(&record, &aek_versions, when).await?;
            Ok(record)
        })
        .await
    }

    async fn retire_aek_versions(
        &self,
        id: &AccountId,
        aek_versions: &[u32],
        when: When,
        shown: Option<&AccountRecord>,
    ) -> Result<()> {
        for _ in 0..CONFLICTS_MAX {
            let (mut record, seen) = self.load_account(id).await?;
            self.refuse_to_retire(&record, aek_versions, when).await?;
            let is_as_shown = |shown: &AccountRecord| {
                shown.created_unix == record.created_unix
                    && aek_versions.iter().all(|version| shown.version(*version) == record.version(*version))
            };
            if !shown.is_none_or(is_as_shown) {
                return Err(not_as_shown(id));
            }
            let (gone, _): (Vec<_>, Vec<_>) =
                record.versions.iter().cloned().partition(|version| aek_versions.contains(&version.aek_version));
            record.retire(aek_versions, self.keyring().stamp().await?);
            match self.keyring().store.replace(&record.key(), &seen, record.put()?).await {
                Ok(_) => {
                    // Where this engine made the successor and was not told so, a handle still takes the old one for current.
                    let learned = self.keyring().learn(id).await;
                    self.keyring().retire_versions(id, aek_versions);
                    self.shred(&gone, format!("AEK versions of account {id} are retired")).await?;
                    return learned;
                }
                Err(Error::Conflict(_)) => {}
                Err(error) => {
                    // They may be gone all the same: whoever uses one next reads the record.
                    self.keyring().shut_versions(id, aek_versions);
                    return Err(error);
                }
            }
        }
        Err(again_and_again("account", id))
    }

    async fn refuse_to_retire(&self, record: &AccountRecord, aek_versions: &[u32], when: When) -> Result<()> {
        let id = &record.account;
        // Asked for after the record was read.
        let agreed = if when == When::Now { None } else { Some(self.keyring().agreed().await?) };
        let current = record.current().map_or(0, |current| current.aek_version);
        for &aek_version in aek_versions {
            if aek_version == current {
                return Err(Error::Invalid(format!(
                    "AEK version {aek_version} of account {id} is the current one: `keyleash account rotate {id}` first"
                )));
            }
            if record.version(aek_version).is_none() {
                return Err(match (1..current).contains(&aek_version) {
                    true => was_retired(id, aek_version, &record.retired),
                    false => Error::NotFound(format!(
                        "AEK version {aek_version} of account {id}: `keyleash account show {id}` shows those that there are"
                    )),
                });
            }
            if let Some(agreed) = agreed {
                refuse_while_sealing(record, aek_version, agreed)?;
            }
        }
        // Of its own seals an engine knows better than whoever counted: also where it was not told of the successor, because the answer to
        // its own rotation was lost, or another process made it.
        if self.keyring().seals_under(id, aek_versions) {
            self.keyring().learn(id).await?;
            return Err(Error::Invalid(format!(
                "this engine sealed account {id} under an AEK version that is to be retired until it read the record just now, and seals \
                 under version {current} from now on: count again, and retire it then"
            )));
        }
        Ok(())
    }
}

/// Refuses a version that an engine may still take for the current one.
fn refuse_while_sealing(record: &AccountRecord, aek_version: u32, agreed: Agreed) -> Result<()> {
    let id = &record.account;
    let Some(heir) = record.versions.iter().find(|version| version.aek_version > aek_version) else {
        return Ok(());
    };
    let until_unix = heir.created_unix.saturating_add(agreed.aek_overlap.as_secs());
    if agreed.date_unix >= until_unix {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "another engine may still seal under AEK version {aek_version} of account {id}, until {} by the store's date, which is {}: \
         count again and retire it after that, or with `--now`, if no other process has the account open",
        utc(until_unix),
        utc(agreed.date_unix)
    )))
}
