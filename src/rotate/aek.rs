//! New AEK versions of an account, and their retirement.

use super::{When, hold::Claim, not_as_shown};
use crate::{
    clock::utc,
    error::{Error, Result},
    keyring::{Agreed, Keyring},
    name::AccountId,
    store::{
        CONFLICTS_MAX, again_and_again,
        record::{AEK_VERSIONS_MAX, AccountRecord, deleted, was_retired},
    },
};
use std::sync::Arc;

impl Keyring {
    /// As [`Engine::rotate_account`](crate::Engine::rotate_account), at home.
    pub(crate) async fn rotate_account(self: &Arc<Self>, id: &AccountId) -> Result<u32> {
        let (first, _) = self.load_account(id).await?;
        let before = first.current().map_or(0, |current| current.aek_version);
        let (current, _) = self.rotate_aek(id, before, Claim::NONE).await?;
        Ok(current)
    }

    /// As [`Engine::rotate_account_from`](crate::Engine::rotate_account_from), at home.
    pub(crate) async fn rotate_account_from(self: &Arc<Self>, id: &AccountId, expected: u32) -> Result<Option<u32>> {
        let (current, made) = self.rotate_aek(id, expected, Claim::NONE).await?;
        Ok(made.then_some(current))
    }

    /// The current AEK version afterwards, and whether this call made it. Every write rests on the claim.
    pub(super) async fn rotate_aek(
        self: &Arc<Self>,
        id: &AccountId,
        expected: u32,
        claim: Claim<'_>,
    ) -> Result<(u32, bool)> {
        for _ in 0..CONFLICTS_MAX {
            let guard = self.shut_guard(id);
            let (mut record, seen) = self.load_account(id).await?;
            if let Some(deletion) = record.deleted {
                return Err(deleted(id, deletion));
            }
            let Some(current) = record.current() else { break };
            if current.aek_version != expected {
                // Somebody else rotated it since; that is what was asked for.
                self.learn(id).await?;
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
            let mut target = self.target(&current.kek.name).await?;
            let (mut wrapped, mut proof) = self.new_aek(id, next, &target).await?;
            let vouched = proof.vouched;
            let write = async {
                // Others seal under the version before for as long as they do not know of this one, so its age counts from when it is
                // stored, and not from before the token was waited for.
                let stamp = self.stamp_for_write().await?;
                wrapped.created_unix = stamp.unix;
                record.versions.push(wrapped.clone());
                let _place = match self.rest_on(&mut target, vouched).await {
                    Err(overtaken @ Error::Conflict(_)) => return Ok(Err(overtaken)),
                    place => place?,
                };
                let put = claim.guard(stamp.guard(target.guard(record.put()?))).await?;
                Ok::<_, Error>(self.store.replace(&record.key(), &seen, put).await)
            };
            match self.hold(&mut proof, write).await? {
                Ok(_) => {
                    self.stored(id, &wrapped, &proof);
                    // Before the first block is sealed under it.
                    match guard.keys() {
                        Some(keys) => self.admit_version(keys, &record, &wrapped, &proof).await?,
                        None => self.learn(id).await?,
                    }
                    return Ok((next, true));
                }
                Err(Error::Conflict(what)) => claim.met_conflict(&what),
                Err(error) => {
                    // It may be there all the same. Where the store does not say, every engine hears of it within a TTL, before which
                    // the version that it succeeds is not retired.
                    let _ = self.learn(id).await;
                    return Err(error);
                }
            }
        }
        Err(again_and_again("account", id))
    }

    /// As [`Engine::retire_aeks`](crate::Engine::retire_aeks), at home; of what was shown, if it was.
    pub(crate) async fn retire_aeks(
        self: &Arc<Self>,
        id: &AccountId,
        aek_versions: &[u32],
        when: When,
        shown: Option<&AccountRecord>,
    ) -> Result<()> {
        for _ in 0..CONFLICTS_MAX {
            let (mut record, seen) = self.load_account(id).await?;
            self.refuse_to_retire(&record, aek_versions, when).await?;
            self.refuse_for_secrets(&record, aek_versions).await?;
            let is_as_shown = |shown: &AccountRecord| {
                shown.created_unix == record.created_unix
                    && aek_versions.iter().all(|version| shown.version(*version) == record.version(*version))
            };
            if !shown.is_none_or(is_as_shown) {
                return Err(not_as_shown(id));
            }
            let (gone, _): (Vec<_>, Vec<_>) =
                record.versions.iter().cloned().partition(|version| aek_versions.contains(&version.aek_version));
            record.retire(aek_versions, self.stamp().await?);
            match self.store.replace(&record.key(), &seen, record.put()?).await {
                Ok(_) => {
                    // Where this engine made the successor and was not told so, a handle still takes the old one for current.
                    let learned = self.learn(id).await;
                    self.retire_versions(id, aek_versions);
                    self.shred(&gone, format!("AEK versions of account {id} are retired")).await?;
                    return learned;
                }
                Err(Error::Conflict(_)) => {}
                Err(error) => {
                    // They may be gone all the same: whoever uses one next reads the record.
                    self.recall_versions(id, aek_versions);
                    let is_left =
                        |now: &AccountRecord| aek_versions.iter().any(|version| now.version(*version).is_some());
                    if self.load_account(id).await.is_ok_and(|(now, _)| !is_left(&now)) {
                        // Nobody who tries again finds out what is to be shredded.
                        self.shred(&gone, format!("AEK versions of account {id} are retired")).await?;
                    }
                    return Err(error);
                }
            }
        }
        Err(again_and_again("account", id))
    }

    /// As [`Engine::retirable_aeks`](crate::Engine::retirable_aeks), at home.
    pub(crate) async fn retirable_aeks(
        self: &Arc<Self>,
        id: &AccountId,
        aek_versions: &[u32],
        when: When,
    ) -> Result<AccountRecord> {
        let (record, _) = self.load_account(id).await?;
        self.refuse_to_retire(&record, aek_versions, when).await?;
        Ok(record)
    }

    async fn refuse_to_retire(
        self: &Arc<Self>,
        record: &AccountRecord,
        aek_versions: &[u32],
        when: When,
    ) -> Result<()> {
        let id = &record.account;
        // Asked for after the record was read.
        let agreed = if when == When::Now { None } else { Some(self.agreed().await?) };
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
        if self.seals_under(id, aek_versions) {
            self.learn(id).await?;
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
