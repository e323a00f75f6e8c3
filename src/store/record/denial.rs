//! The record of a denial, and the witness by which it ends.

use super::{
    WrappedAek, corrupt, other_kind, refuse, same_name,
    wire::{self, Record},
};
use crate::{
    error::{Error, Result},
    name::{AccountId, KekVersion},
    store::{Key, Put},
    token::Wrapped,
};
use sha2::{Digest, Sha256};

/// Longest reason of a denial, in bytes; a longer one is cut.
pub const REASON_BYTES_MAX: usize = 1024;
/// Length of a witness's digest, in bytes.
pub const WITNESS_BYTES: usize = 32;

/// The same, of what a witness's digest is of.
const WITNESS_PREFIX: &[u8] = b"keyleash.witness.v1";

/// The last denial of a KEK version, kept until a proof so that a restart does not forget it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DenialRecord {
    /// The KEK version.
    pub kek: KekVersion,
    /// When a token said so last, in seconds since 1970; shown, never decided by.
    pub since_unix: u64,
    /// Why, in words. Cut to [`REASON_BYTES_MAX`] when it is encoded: a denial must stick however long its reason is.
    pub reason: String,
    /// The KEK's standby said so, while the first token was silent: the standby's own grant ends it too.
    pub by_standby: bool,
    /// What was unwrapped before it; `None` where nobody knew of any, and in records of releases that did not write it.
    pub witness: Option<Witness>,
}

/// The AEK version by which a denial ends: its unwrap is the proof that the KEK is the one of before. What was wrapped later, perhaps
/// by another key in the KEK's place before that was noticed, is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The account.
    pub account: AccountId,
    /// Its AEK version.
    pub aek_version: u32,
    /// SHA-256 of its wrapping: one that was moved, or changed, is no witness any more.
    pub digest: [u8; WITNESS_BYTES],
}

impl DenialRecord {
    /// The key that it is stored under.
    pub fn key(&self) -> Key {
        Key::Denial(self.kek.clone())
    }

    /// Its bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the KEK version is 0.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check().map_err(|what| Error::Invalid(format!("{}: {what}", self.key())))?;
        wire::encode_denial(self)
    }

    /// Its bytes, to be stored.
    ///
    /// # Errors
    /// As [`DenialRecord::encode`].
    pub fn put(&self) -> Result<Put> {
        Ok(Put { value: self.encode()?, wrapped_by: Vec::new(), guards: Vec::new() })
    }

    /// Reads what was found under `key`.
    ///
    /// # Errors
    /// [`Corrupt::Record`](crate::Corrupt::Record), also when it is the denial of another KEK version. A caller that cannot read a denial takes
    /// the KEK version as denied.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self> {
        let Record::Denial(record) = wire::decode(key, bytes)? else { return other_kind(key) };
        if record.reason.len() > REASON_BYTES_MAX {
            return refuse(key, format!("its reason has {} bytes, at most {REASON_BYTES_MAX}", record.reason.len()));
        }
        record.check().map_err(|what| corrupt(key, what))?;
        same_name(key, record.key())?;
        Ok(record)
    }

    fn check(&self) -> Result<(), String> {
        if self.kek.version == 0 { Err("KEK versions count from 1".into()) } else { Ok(()) }
    }
}

impl Witness {
    /// This wrapping of an account's AEK version.
    pub fn of(account: &AccountId, wrapped: &WrappedAek) -> Self {
        let WrappedAek { aek_version, kek_id, profile, wrapped: Wrapped { iv, bytes }, check, .. } = wrapped;
        let mut hash = Sha256::new_with_prefix(WITNESS_PREFIX);
        for part in [kek_id.as_bytes(), &[wire::profile_code(*profile)], iv, bytes, check] {
            // At most 1024 bytes each: a record is checked as it is read.
            hash.update(u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
            hash.update(part);
        }
        Self { account: account.clone(), aek_version: *aek_version, digest: hash.finalize().into() }
    }
}
