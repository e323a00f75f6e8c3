//! What stands in the key store's values, byte for byte, and what a wrapped AEK is bound to.
//!
//! Types and rules are here, the bytes in `wire.rs`.

use super::{Key, Put};
use crate::{
    clock::BOOT_BYTES,
    error::{Corrupt, Error, Result},
    secret::fill_random,
};
use std::fmt;

mod account;
mod checkpoint;
mod context;
mod denial;
pub(crate) mod due;
mod kek;
mod policy;
mod secret;
mod wire;

pub(crate) use self::account::{deleted, was_retired};
use self::wire::Record;
pub use self::{
    account::{AEK_VERSIONS_MAX, AccountRecord, AekPolicy, Deletion, RETIRED_AEKS_MAX, RetiredAek, Usage, WrappedAek},
    checkpoint::{CHECKPOINT_BYTES_MAX, CheckpointRecord, load_checkpoint},
    context::{CHECK_BYTES, binding, check_matches, check_value, context},
    denial::{DenialRecord, REASON_BYTES_MAX, WITNESS_BYTES, Witness},
    kek::{KEK_VERSIONS_MAX, KekPolicy, KekRecord, KekVersionRecord},
    policy::{GrantsRecord, PART_DIGEST_BYTES, PART_GRANTS_MAX, PARTS_MAX, PolicyPart, PolicyRecord},
    secret::{
        CONTENT_TYPE_BYTES_MAX, HOOK_BYTES_MAX, Making, Rotation, SECRET_BYTES_MAX, SECRET_VERSIONS_MAX,
        SECRET_WORDS_BYTES_MAX, SecretRecord, SecretValueRecord, SecretVersion, TAG_NAME_BYTES_MAX,
        TAG_VALUE_BYTES_MAX, TAGS_MAX,
    },
    wire::RECORD_FORMAT,
};

/// Length of a holder's name in [`WorkRecord`], in bytes.
pub const HOLDER_BYTES: usize = 16;
/// Length of a store's id, in bytes.
pub const STORE_ID_BYTES: usize = 8;

/// Who does the scheduled work of a store: one engine at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkRecord {
    /// Counts its holders up: the fencing token. Work that began under a lower one stops.
    pub fence: u64,
    /// Who has it: random, drawn by each engine.
    pub holder: [u8; HOLDER_BYTES],
    /// Until when, in seconds since 1970, unless it is renewed. After that another engine takes it.
    pub until_unix: u64,
}

impl WorkRecord {
    /// Its bytes, to be stored under [`Key::Work`].
    ///
    /// # Errors
    /// None but those of the codec.
    pub fn put(&self) -> Result<Put> {
        Ok(Put { value: wire::encode_work(self)?, wrapped_by: Vec::new(), guards: Vec::new() })
    }

    /// Reads what was found under [`Key::Work`].
    ///
    /// # Errors
    /// [`Corrupt::Record`].
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self> {
        let Record::Work(record) = wire::decode(key, bytes)? else { return other_kind(key) };
        same_name(key, Key::Work)?;
        Ok(record)
    }
}

/// What a store is known by in tokens, which several stores may share: a random number that was made with its first KEK. It stands
/// in the labels of the keys that keyleash makes for it. A copy of a store has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreRecord {
    /// The number.
    pub id: [u8; STORE_ID_BYTES],
}

impl StoreRecord {
    /// A new one.
    ///
    /// # Errors
    /// [`Error::Fatal`] without randomness.
    pub fn random() -> Result<Self> {
        let mut id = [0; STORE_ID_BYTES];
        fill_random(&mut id)?;
        Ok(Self { id })
    }

    /// Its bytes, to be stored under [`Key::Store`].
    ///
    /// # Errors
    /// None but those of the codec.
    pub fn put(&self) -> Result<Put> {
        Ok(Put { value: wire::encode_store(self)?, wrapped_by: Vec::new(), guards: Vec::new() })
    }

    /// Reads what was found under [`Key::Store`].
    ///
    /// # Errors
    /// [`Corrupt::Record`].
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self> {
        let Record::Store(record) = wire::decode(key, bytes)? else { return other_kind(key) };
        same_name(key, Key::Store)?;
        Ok(record)
    }
}

/// What all engines of a store must agree on, whatever the settings and the wall clock of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommonRecord {
    /// The store's date when this was written, in seconds since 1970. It begins with a wall clock's, or where there were records
    /// before with the newest date of those, and from then on goes forward by what engines saw pass, and by nothing else.
    pub date_unix: u64,
    /// The boot of the machine on which it was written; zeros where that is not known.
    pub boot: [u8; BOOT_BYTES],
    /// When, in nanoseconds of CLOCK_BOOTTIME there.
    pub boottime_ns: u64,
    /// When, in seconds since 1970 by the wall clock there.
    pub wall_unix: u64,
    /// Longest [`aek_overlap`](crate::config::Settings::aek_overlap) of any engine that uses the store, in seconds. Never less than
    /// with the default settings, and never less than it was.
    pub aek_overlap_secs: u64,
    /// An engine with [`purge_protection`](crate::config::Settings::purge_protection) uses the store, or did: nobody purges before a
    /// retention is over. Never taken back.
    pub purge_protection: bool,
    /// There is a policy: that it is not there is damage. Never taken back, and written in a format version by which releases that know of
    /// no grants make nothing in this store.
    pub is_governed: bool,
}

impl CommonRecord {
    /// Its bytes, to be stored under [`Key::Common`].
    ///
    /// # Errors
    /// None but those of the codec.
    pub fn put(&self) -> Result<Put> {
        Ok(Put { value: wire::encode_common(self)?, wrapped_by: Vec::new(), guards: Vec::new() })
    }

    /// Reads what was found under [`Key::Common`].
    ///
    /// # Errors
    /// [`Corrupt::Record`].
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self> {
        let Record::Common(record) = wire::decode(key, bytes)? else { return other_kind(key) };
        same_name(key, Key::Common)?;
        Ok(record)
    }
}

impl fmt::Display for StoreRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.id))
    }
}

fn check_ascending(what: &str, versions: impl ExactSizeIterator<Item = u32>, max: usize) -> Result<(), String> {
    if versions.len() == 0 || versions.len() > max {
        return Err(format!("it has {} {what} versions, 1 to {max} are allowed", versions.len()));
    }
    let mut last = 0;
    for version in versions {
        if version <= last {
            return Err(format!("{what} version {version} follows {last}: they count up from 1"));
        }
        last = version;
    }
    Ok(())
}

fn corrupt(key: &Key, what: impl Into<String>) -> Error {
    Corrupt::Record { record: key.to_string(), what: what.into() }.into()
}

fn refuse<T>(key: &Key, what: impl Into<String>) -> Result<T> {
    Err(corrupt(key, what))
}

fn other_kind<T>(key: &Key) -> Result<T> {
    refuse(key, "holds a record of another kind")
}

fn same_name(key: &Key, own: Key) -> Result<()> {
    if *key == own { Ok(()) } else { refuse(key, format!("is the record of {own}: it was moved or exchanged")) }
}
