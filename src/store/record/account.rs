//! The record of an account: its wrapped AEKs.

use super::{
    CHECK_BYTES, check_ascending, corrupt, other_kind, same_name,
    wire::{self, Record},
};
use crate::{
    clock::utc,
    error::{Error, Result},
    name::{AccountId, KekVersion},
    store::{Key, Put},
    token::{KekId, Profile, Wrapped},
};

/// Most AEK versions of an account.
pub const AEK_VERSIONS_MAX: usize = 256;
/// Most AEK versions of which an account remembers when they were retired; older ones are still known to have been.
pub const RETIRED_AEKS_MAX: usize = 1024;

/// An account: its wrapped AEKs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRecord {
    /// The account.
    pub account: AccountId,
    /// When it was made, in seconds since 1970; shown, never decided by.
    pub created_unix: u64,
    /// 1 to [`AEK_VERSIONS_MAX`] AEK versions, strictly ascending, from 1 up. The last is the current one.
    pub versions: Vec<WrappedAek>,
    /// Deleted, and not purged yet: it can be undeleted.
    pub deleted: Option<Deletion>,
    /// When its AEK is rotated by schedule.
    pub policy: AekPolicy,
    /// AEK versions that are no more, at most [`RETIRED_AEKS_MAX`], strictly ascending, none of them in `versions` and all before the
    /// current one. Those of releases that did not write them down are missing here.
    pub retired: Vec<RetiredAek>,
}

/// An AEK version that was retired: what was sealed under it is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetiredAek {
    /// Its number.
    pub aek_version: u32,
    /// Since when, in seconds since 1970.
    pub since_unix: u64,
}

/// A deletion that can be undone until its account is purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    /// Since when, in seconds since 1970.
    pub since_unix: u64,
    /// From when on the account may be purged, in seconds since 1970. Fixed when it was deleted: no later setting moves it.
    pub purge_after_unix: u64,
}

/// When an account's AEK is rotated by schedule; 0 is never. Whichever limit is reached first counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AekPolicy {
    /// Age of the current AEK version, in seconds.
    pub max_age_secs: u64,
    /// Blocks sealed under it.
    pub max_blocks: u64,
    /// Bytes sealed under it.
    pub max_bytes: u64,
}

/// How much was sealed under an AEK version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Blocks.
    pub blocks: u64,
    /// Plaintext bytes.
    pub bytes: u64,
}

/// One version of an account's AEK, wrapped by one KEK version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedAek {
    /// Which AEK version it is; block headers name it.
    pub aek_version: u32,
    /// The KEK version that wraps it.
    pub kek: KekVersion,
    /// CKA_ID of that KEK version.
    pub kek_id: KekId,
    /// How it is wrapped.
    pub profile: Profile,
    /// What the token gave.
    pub wrapped: Wrapped,
    /// [`check_value`](super::check_value) of the AEK and its [`context`](super::context()).
    pub check: [u8; CHECK_BYTES],
    /// When the AEK version was made, in seconds since 1970.
    pub created_unix: u64,
    /// What was sealed under it, as far as the engines that did it have written it down.
    pub used: Usage,
}

impl AccountRecord {
    /// A new account with its first AEK version.
    pub(crate) fn new(created_unix: u64, account: AccountId, first: WrappedAek) -> Self {
        let (versions, policy) = (vec![first], AekPolicy::default());
        Self { account, created_unix, versions, deleted: None, policy, retired: Vec::new() }
    }

    /// The key that it is stored under.
    pub fn key(&self) -> Key {
        Key::Account(self.account.clone())
    }

    /// Its bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a rule of the fields is broken or it is longer than [`VALUE_BYTES_MAX`](crate::store::VALUE_BYTES_MAX).
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check().map_err(|what| Error::Invalid(format!("{}: {what}", self.key())))?;
        wire::encode_account(self)
    }

    /// Its bytes, to be stored, found by the KEK versions that wrap its AEKs.
    ///
    /// # Errors
    /// As [`AccountRecord::encode`].
    pub fn put(&self) -> Result<Put> {
        Ok(Put { value: self.encode()?, wrapped_by: self.wrapped_by(), guards: Vec::new() })
    }

    /// Reads what was found under `key`.
    ///
    /// # Errors
    /// [`Corrupt::Record`](crate::Corrupt::Record), also when it is another account's record.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self> {
        let Record::Account(record) = wire::decode(key, bytes)? else { return other_kind(key) };
        record.check().map_err(|what| corrupt(key, what))?;
        same_name(key, record.key())?;
        Ok(record)
    }

    /// The KEK versions that wrap its AEKs, sorted, each once.
    pub fn wrapped_by(&self) -> Vec<KekVersion> {
        let mut keks: Vec<_> = self.versions.iter().map(|version| version.kek.clone()).collect();
        keks.sort_unstable();
        keks.dedup();
        keks
    }

    /// The AEK version that new blocks are sealed under. A record that was decoded has one.
    pub fn current(&self) -> Option<&WrappedAek> {
        self.versions.last()
    }

    /// The AEK version with this number.
    pub fn version(&self, aek_version: u32) -> Option<&WrappedAek> {
        self.versions.iter().find(|version| version.aek_version == aek_version)
    }

    /// Takes AEK versions out and remembers that. The current one stays.
    pub(crate) fn retire(&mut self, aek_versions: &[u32], since_unix: u64) {
        let current = self.current().map(|current| current.aek_version);
        let goes =
            |version: &WrappedAek| aek_versions.contains(&version.aek_version) && Some(version.aek_version) != current;
        let gone = self.versions.iter().filter(|version| goes(version));
        self.retired.extend(gone.map(|version| RetiredAek { aek_version: version.aek_version, since_unix }));
        self.versions.retain(|version| !goes(version));
        self.retired.sort_unstable_by_key(|retired| retired.aek_version);
        let too_many = self.retired.len().saturating_sub(RETIRED_AEKS_MAX);
        self.retired.drain(..too_many);
    }

    fn check(&self) -> Result<(), String> {
        check_ascending("AEK", self.versions.iter().map(|version| version.aek_version), AEK_VERSIONS_MAX)?;
        self.check_retired()?;
        self.versions.iter().try_for_each(WrappedAek::check)
    }

    fn check_retired(&self) -> Result<(), String> {
        if self.retired.is_empty() {
            return Ok(());
        }
        let numbers = || self.retired.iter().map(|retired| retired.aek_version);
        check_ascending("retired AEK", numbers(), RETIRED_AEKS_MAX)?;
        let current = self.current().map_or(0, |current| current.aek_version);
        match numbers().find(|number| *number >= current || self.version(*number).is_some()) {
            Some(number) => Err(format!("AEK version {number} is retired, and there, or behind the current one")),
            None => Ok(()),
        }
    }
}

impl WrappedAek {
    fn check(&self) -> Result<(), String> {
        let Self { aek_version, kek, wrapped, .. } = self;
        if kek.version == 0 {
            return Err(format!("AEK version {aek_version} names version 0 of KEK {}; they count from 1", kek.name));
        }
        if wrapped.iv.len() > Wrapped::IV_BYTES_MAX {
            return Err(format!(
                "the IV of AEK version {aek_version} has {} bytes, at most {} are allowed",
                wrapped.iv.len(),
                Wrapped::IV_BYTES_MAX
            ));
        }
        if wrapped.bytes.is_empty() || wrapped.bytes.len() > Wrapped::BYTES_MAX {
            return Err(format!(
                "wrapped AEK version {aek_version} has {} bytes, 1 to {} are allowed",
                wrapped.bytes.len(),
                Wrapped::BYTES_MAX
            ));
        }
        Ok(())
    }
}

/// What is said of a deleted account.
pub(crate) fn deleted(id: &AccountId, deletion: Deletion) -> Error {
    Error::NotFound(format!(
        "account {id}: it was deleted on {}; `keyleash account undelete {id}` brings it back, until {} at least",
        utc(deletion.since_unix),
        utc(deletion.purge_after_unix)
    ))
}

/// What is said of an AEK version that is missing before the current one: they count up by one and only retirement takes any out.
/// `retired` are those of which the date is known.
pub(crate) fn was_retired(account: &AccountId, aek_version: u32, retired: &[RetiredAek]) -> Error {
    let known = retired.iter().find(|known| known.aek_version == aek_version);
    let since = known.map_or_else(String::new, |known| format!(" on {}", utc(known.since_unix)));
    Error::NotFound(format!(
        "AEK version {aek_version} of account {account}: it was retired{since}, and what was sealed under it is lost, unless a backup \
         of the store from before that is restored"
    ))
}
