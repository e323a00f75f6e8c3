//! The record of a KEK: its versions, and in which token each is.

use super::{
    check_ascending, corrupt, other_kind, same_name,
    wire::{self, Record},
};
use crate::{
    error::{Error, Result},
    name::{KekName, TokenName},
    store::{Key, Put},
    token::{KekId, Profile},
};

/// Most versions of a KEK.
pub const KEK_VERSIONS_MAX: usize = 1024;

/// A KEK: its versions in the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KekRecord {
    /// The KEK.
    pub name: KekName,
    /// 1 to [`KEK_VERSIONS_MAX`] versions, strictly ascending, from 1 up, each with a CKA_ID of its own.
    pub versions: Vec<KekVersionRecord>,
    /// The version that wraps new AEKs; one of `versions`, and not retired.
    pub current: u32,
    /// When it is rotated by schedule.
    pub policy: KekPolicy,
}

/// When a KEK is rotated by schedule, which re-wraps what it wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KekPolicy {
    /// Age of the current version, in seconds; 0 is never.
    pub max_age_secs: u64,
}

/// One version of a KEK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KekVersionRecord {
    /// Its number.
    pub version: u32,
    /// CKA_ID.
    pub id: KekId,
    /// How it wraps.
    pub profile: Profile,
    /// When it was made or adopted, in seconds since 1970.
    pub created_unix: u64,
    /// The token that it is in.
    pub token: TokenName,
    /// Since when it is retired, in seconds since 1970: it wraps nothing, and never will again.
    pub retired_unix: Option<u64>,
    /// When an operator attested that a backup of it exists, in seconds since 1970.
    pub backup_attested_unix: Option<u64>,
}

impl KekVersionRecord {
    pub(crate) fn new(created_unix: u64, version: u32, id: KekId, profile: Profile, token: TokenName) -> Self {
        Self { version, id, profile, created_unix, token, retired_unix: None, backup_attested_unix: None }
    }
}

impl KekRecord {
    /// The key that it is stored under.
    pub fn key(&self) -> Key {
        Key::Kek(self.name.clone())
    }

    /// Its bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a rule of the fields is broken.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check().map_err(|what| Error::Invalid(format!("{}: {what}", self.key())))?;
        wire::encode_kek(self)
    }

    /// Its bytes, to be stored.
    ///
    /// # Errors
    /// As [`KekRecord::encode`].
    pub fn put(&self) -> Result<Put> {
        Ok(Put { value: self.encode()?, wrapped_by: Vec::new(), guards: Vec::new() })
    }

    /// Reads what was found under `key`.
    ///
    /// # Errors
    /// [`Corrupt::Record`](crate::Corrupt::Record), also when it is another KEK's record.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self> {
        let Record::Kek(record) = wire::decode(key, bytes)? else { return other_kind(key) };
        record.check().map_err(|what| corrupt(key, what))?;
        same_name(key, record.key())?;
        Ok(record)
    }

    /// The version that wraps new AEKs. A record that was decoded has one.
    pub fn current(&self) -> Option<&KekVersionRecord> {
        self.version(self.current)
    }

    /// The version with this number.
    pub fn version(&self, version: u32) -> Option<&KekVersionRecord> {
        self.versions.iter().find(|record| record.version == version)
    }

    fn check(&self) -> Result<(), String> {
        check_ascending("KEK", self.versions.iter().map(|version| version.version), KEK_VERSIONS_MAX)?;
        match self.current() {
            None => return Err(format!("its current version {} is not among its versions", self.current)),
            Some(current) if current.retired_unix.is_some() => {
                return Err(format!("its current version {} is retired", self.current));
            }
            Some(_) => {}
        }
        let mut ids: Vec<_> = self.versions.iter().map(|version| (&version.token, &version.id)).collect();
        ids.sort_unstable();
        match ids.windows(2).find_map(|pair| pair.first().filter(|id| pair.last() == Some(*id))) {
            Some((_, id)) => Err(format!("two of its versions have CKA_ID {id}")),
            None => Ok(()),
        }
    }
}
