//! New KEK versions, made by us or by an operator; their retirement; attested backups.

use super::hold::{Claim, is_of_work};
use crate::{
    error::{Error, Result},
    keyring::{Keyring, background::follow, keks::round_trip},
    name::{KekName, KekVersion},
    planted::{self, Fault},
    slots::slot::AekSlot,
    store::{
        CONFLICTS_MAX, StoreVersion, again_and_again, kek_names, number_of, read_accounts,
        record::{KEK_VERSIONS_MAX, KekRecord, KekVersionRecord},
    },
    token::{KekHandle, KekId},
};
use std::sync::Arc;

impl Keyring {
    /// As [`Engine::rotate_kek`](crate::Engine::rotate_kek), at home.
    pub(crate) async fn rotate_kek(&self, name: &KekName) -> Result<KekVersionRecord> {
        let (record, seen) = self.load_kek(name).await?;
        self.next_kek(record, &seen, Claim::NONE).await
    }

    /// As [`Engine::rotate_kek_from`](crate::Engine::rotate_kek_from), at home.
    pub(crate) async fn rotate_kek_from(&self, name: &KekName, expected: u32) -> Result<Option<KekVersionRecord>> {
        self.rotate_kek_held(name, expected, Claim::NONE).await
    }

    /// As [`Keyring::rotate_kek_from`]. Every write rests on the claim.
    pub(super) async fn rotate_kek_held(
        &self,
        name: &KekName,
        expected: u32,
        claim: Claim<'_>,
    ) -> Result<Option<KekVersionRecord>> {
        let (record, seen) = self.load_kek(name).await?;
        if record.current != expected {
            return Ok(None);
        }
        match self.next_kek(record, &seen, claim).await {
            Err(conflict @ Error::Conflict(_)) => {
                let current = self.kek_record(name).await?.current;
                if current == expected { Err(conflict) } else { Ok(None) }
            }
            made => made.map(Some),
        }
    }

    async fn next_kek(&self, record: KekRecord, seen: &StoreVersion, claim: Claim<'_>) -> Result<KekVersionRecord> {
        let (name, current) = self.current_kek(&record.name).await?;
        let next = KekVersion::new(name.name, next_version(&record)?);
        let seat = self.tokens.holder(&next, &current.token)?;
        let old = seat.token(&seat.budget.on_demand(None).await).find_kek(&current.id).await?;
        let destroyable = old.is_some_and(|info| info.destroyable == Some(true));
        let known: Vec<_> = record.versions.iter().map(|version| version.id.clone()).collect();
        let now = self.stamp().await?;
        claim.check()?;
        let info = self.make_kek(seat, &next, current.profile, destroyable, &known).await?;
        let version = KekVersionRecord::new(now, next.version, info.id, current.profile, current.token);
        self.add_version(record, seen, version, claim).await
    }

    /// As [`Engine::adopt_kek`](crate::Engine::adopt_kek), at home.
    pub(crate) async fn adopt_kek(&self, name: &KekName, id: &KekId) -> Result<KekVersionRecord> {
        let (record, seen) = self.load_kek(name).await?;
        let (_, current) = self.current_kek(name).await?;
        let next = KekVersion::new(name.clone(), next_version(&record)?);
        for known in kek_names(&*self.store).await? {
            let kek = self.kek_record(&known).await?;
            let is_it = |version: &&KekVersionRecord| version.id == *id && version.token == current.token;
            if let Some(version) = kek.versions.iter().find(is_it) {
                let known = KekVersion::new(known, version.version);
                return Err(Error::Exists(format!("the key with CKA_ID {id} is KEK {known}")));
            }
        }
        let seat = self.tokens.holder(&next, &current.token)?;
        let place = seat.budget.on_demand(None).await;
        let Some(info) = seat.token(&place).find_kek(id).await? else {
            return Err(Error::NotFound(format!(
                "a key with CKA_ID {id} in the token: `keyleash kek list` shows those that no KEK names"
            )));
        };
        if let Some(why) = info.refused.as_ref().or(info.half.as_ref()) {
            return Err(Error::Misconfigured(format!("the key with CKA_ID {id} cannot be a KEK: {why}")));
        }
        self.refuse_of_another_store(&info).await?;
        if info.profile != Some(current.profile) {
            let is = info.profile.map_or_else(|| "fits no profile".into(), |profile| format!("is for {profile}"));
            return Err(Error::Misconfigured(format!(
                "the key with CKA_ID {id} {is}, KEK {name} is {}: make the key of that type, or a KEK of another name, and \
                 move the accounts",
                current.profile
            )));
        }
        if !info.enabled {
            let why = if info.warnings.is_empty() { String::new() } else { format!(" ({})", info.warnings.join("; ")) };
            return Err(Error::Misconfigured(format!(
                "the key with CKA_ID {id} is disabled, or out of its dates{why}: enable it, or set them, first"
            )));
        }
        round_trip(seat.token(&place), &next, &KekHandle { id: id.clone(), profile: current.profile }).await?;
        let now = self.stamp().await?;
        let version = KekVersionRecord::new(now, next.version, id.clone(), current.profile, current.token);
        self.add_version(record, &seen, version, Claim::NONE).await
    }

    async fn add_version(
        &self,
        mut record: KekRecord,
        seen: &StoreVersion,
        version: KekVersionRecord,
        claim: Claim<'_>,
    ) -> Result<KekVersionRecord> {
        let (before, mut seen) = (record.clone(), seen.clone());
        record.current = version.version;
        record.versions.push(version.clone());
        for _ in 0..CONFLICTS_MAX {
            let put = claim.guard(record.put()?).await?;
            match self.store.replace(&record.key(), &seen, put).await {
                Ok(_) => return Ok(version),
                Err(Error::Conflict(what)) if is_of_work(&what) => claim.met_conflict(&what),
                Err(Error::Conflict(_)) => match self.load_kek(&record.name).await? {
                    (now, version) if now == before => seen = version, // written once more, for the first that it wraps
                    _ => return self.see_whose_key_counts(&record.name, version).await,
                },
                Err(error) => return Err(error),
            }
        }
        Err(again_and_again("KEK", &record.name))
    }

    /// Somebody else rotated the KEK meanwhile: to this very key, where one found what the other had just made, or to another.
    async fn see_whose_key_counts(&self, name: &KekName, version: KekVersionRecord) -> Result<KekVersionRecord> {
        let record = self.kek_record(name).await?;
        match record.versions.into_iter().find(|known| known.id == version.id) {
            Some(known) => Ok(known),
            None => Err(Error::Conflict(format!(
                "KEK {name}, which somebody else changed; the key with CKA_ID {} stays in the token, and no KEK names it: \
                 see `keyleash kek show {name}`, and remove that key or adopt it",
                version.id
            ))),
        }
    }

    /// As [`Engine::retirable_kek`](crate::Engine::retirable_kek), at home.
    pub(crate) async fn retirable_kek(&self, kek: &KekVersion) -> Result<KekVersionRecord> {
        self.refuse_while_named(kek).await?;
        let mut record = self.kek_record(&kek.name).await?;
        refuse_current(&record, kek)?;
        let version = version_mut(&mut record, kek)?.clone();
        self.refuse_while_used(kek).await?;
        Ok(version)
    }

    /// As [`Engine::retire_kek`](crate::Engine::retire_kek), at home; of what was shown, if it was.
    pub(crate) async fn retire_kek(self: &Arc<Self>, kek: &KekVersion, shown: Option<&KekVersionRecord>) -> Result<()> {
        self.refuse_while_named(kek).await?;
        if self.kek_record(&kek.name).await?.current != kek.version {
            if let Err(used) = self.refuse_while_used(kek).await {
                if matches!(used, Error::Invalid(_)) {
                    // By one that was cut off before its last look: a key that is told to be retired may be deleted by anybody.
                    self.set_retired(kek, None, None).await?;
                }
                return Err(used);
            }
            self.refuse_while_in_use(kek).await?;
        }
        self.set_retired(kek, Some(self.stamp().await?), shown).await?;
        // Whoever wrapped under it has written that down before, and is seen here. A write that comes now rests on the KEK's
        // record as it was, and is refused.
        if let Err(used) = self.refuse_while_used(kek).await {
            self.set_retired(kek, None, None).await?;
            return Err(used);
        }
        Ok(())
    }

    /// One key may stand under two names, where a release before this one took it for what a crash had left.
    async fn refuse_while_named(&self, kek: &KekVersion) -> Result<()> {
        let record = self.kek_record(&kek.name).await?;
        let Some(retires) = record.version(kek.version) else { return Ok(()) };
        for name in kek_names(&*self.store).await? {
            let is_it = |other: &&KekVersionRecord| {
                let is_another = name != kek.name || other.version != kek.version;
                is_another && other.id == retires.id && other.token == retires.token && other.retired_unix.is_none()
            };
            if let Some(other) = self.kek_record(&name).await?.versions.iter().find(is_it) {
                return Err(Error::Invalid(format!(
                    "the key of KEK {kek}, with CKA_ID {}, is that of KEK {name}/{} as well: re-wrap and retire that first",
                    retires.id, other.version
                )));
            }
        }
        Ok(())
    }

    /// What decides that a key may be destroyed reads all records: an index that lacks one would cost its blocks.
    async fn refuse_while_used(&self, kek: &KekVersion) -> Result<()> {
        if planted::is(Fault::SomeLeftBehind) {
            return Ok(());
        }
        match self.count_wrapped_by(kek).await? {
            0 => Ok(()),
            accounts => Err(Error::Invalid(format!(
                "KEK {kek} still wraps AEKs of {}: `keyleash account list --kek {kek}` shows them, and \
                 `keyleash kek rewrap {}` moves them to the current version",
                number_of(accounts, "account"),
                kek.name
            ))),
        }
    }

    /// Takes what this engine has in memory to the KEK versions that the records name by now, and refuses while anything is left
    /// under this one: the key's deletion in the token would deny it.
    async fn refuse_while_in_use(self: &Arc<Self>, kek: &KekVersion) -> Result<()> {
        let Some(leash) = self.known_leash(kek).filter(|_| !planted::is(Fault::SomeLeftBehind)) else {
            return Ok(());
        };
        let followed = self.home.upkeep.spawn(follow(self.clone(), leash.clone()));
        if followed.await.is_err() {
            return Err(Error::Fatal("the task that follows moved accounts died, see the log: try again".into()));
        }
        let is_in_use = |slot: &Arc<AekSlot>| !slot.is_retired() && (slot.is_filled() || slot.is_wanted());
        match leash.living_members().into_iter().filter(is_in_use).count() {
            0 => Ok(()),
            slots => Err(Error::Invalid(format!(
                "KEK {kek} wraps nothing any more, and this engine still uses {slots} AEKs under its lease: see in `status` that the \
                 KEK versions that wrap them now are granted, and try again"
            ))),
        }
    }

    async fn set_retired(&self, kek: &KekVersion, since: Option<u64>, shown: Option<&KekVersionRecord>) -> Result<()> {
        let change = |record: &mut KekRecord| {
            refuse_current(record, kek)?;
            let version = version_mut(record, kek)?;
            if shown.is_some_and(|shown| (&shown.id, &shown.token) != (&version.id, &version.token)) {
                return Err(Error::Conflict(format!(
                    "KEK {kek} has CKA_ID {} by now, and was not retired: look at it again, and say so again",
                    version.id
                )));
            }
            if version.retired_unix.is_some() == since.is_some() {
                return Ok(false);
            }
            version.retired_unix = since;
            Ok(true)
        };
        self.change_kek(&kek.name, change).await.map(drop)
    }

    /// As [`Engine::count_wrapped_by`](crate::Engine::count_wrapped_by), at home.
    pub(crate) async fn count_wrapped_by(&self, kek: &KekVersion) -> Result<u64> {
        let mut accounts = 0;
        read_accounts(&*self.store, |_, record| {
            accounts += u64::from(record?.versions.iter().any(|aek| aek.kek == *kek));
            Ok(())
        })
        .await?;
        Ok(accounts)
    }

    /// As [`Engine::attest_backup`](crate::Engine::attest_backup), at home.
    pub(crate) async fn attest_backup(&self, kek: &KekVersion) -> Result<()> {
        let now = self.stamp().await?;
        let change = |record: &mut KekRecord| {
            version_mut(record, kek)?.backup_attested_unix = Some(now);
            Ok(true)
        };
        self.change_kek(&kek.name, change).await.map(drop)
    }
}

fn refuse_current(record: &KekRecord, kek: &KekVersion) -> Result<()> {
    if record.current != kek.version {
        return Ok(());
    }
    let name = &kek.name;
    Err(Error::Invalid(format!("KEK {kek} is the version that wraps new AEKs: `keyleash kek rotate {name}` first")))
}

/// Refused before a key is made that no record could name.
fn next_version(record: &KekRecord) -> Result<u32> {
    let last = record.versions.last().map_or(0, |version| version.version);
    let next = last.checked_add(1).filter(|_| record.versions.len() < KEK_VERSIONS_MAX);
    next.ok_or_else(|| {
        Error::Exhausted(format!(
            "KEK {} has {KEK_VERSIONS_MAX} versions, which is the most: make another KEK, and move its accounts",
            record.name
        ))
    })
}

fn version_mut<'a>(record: &'a mut KekRecord, kek: &KekVersion) -> Result<&'a mut KekVersionRecord> {
    let found = record.versions.iter_mut().find(|version| version.version == kek.version);
    found.ok_or_else(|| Error::NotFound(format!("KEK {kek}: `keyleash kek show {}` shows its versions", kek.name)))
}
