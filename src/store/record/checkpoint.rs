//! The newest checkpoint of a trail, so that a trail which is cut or put back whole is noticed.

use super::{
    other_kind, refuse, same_name,
    wire::{self, Record},
};
use crate::{
    error::{Error, Result},
    name::NodeName,
    store::{Key, KeyStore, Put, StoreVersion, load},
};

/// Longest checkpoint, in bytes.
pub const CHECKPOINT_BYTES_MAX: usize = 16 * 1024;

/// The newest checkpoint of a node's trail. The store knows nothing of what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointRecord {
    /// Whose trail it is.
    pub node: NodeName,
    /// The signed note, 1 to [`CHECKPOINT_BYTES_MAX`] bytes.
    pub note: String,
}

impl CheckpointRecord {
    /// The key that it is stored under.
    pub fn key(&self) -> Key {
        Key::Checkpoint(self.node.clone())
    }

    fn check(&self) -> Result<(), String> {
        match self.note.len() {
            1..=CHECKPOINT_BYTES_MAX => Ok(()),
            len => Err(format!("its note has {len} bytes, 1 to {CHECKPOINT_BYTES_MAX} are allowed")),
        }
    }

    /// Its bytes, to be stored under [`CheckpointRecord::key`].
    ///
    /// # Errors
    /// [`Error::Invalid`] when a limit is broken.
    pub fn put(&self) -> Result<Put> {
        self.check().map_err(|what| Error::Invalid(format!("{}: {what}", self.key())))?;
        Ok(Put { value: wire::encode_checkpoint(self)?, wrapped_by: Vec::new(), guards: Vec::new() })
    }

    /// Reads what was found under `key`.
    ///
    /// # Errors
    /// [`Corrupt::Record`](crate::error::Corrupt::Record).
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self> {
        let Record::Checkpoint(record) = wire::decode(key, bytes)? else { return other_kind(key) };
        same_name(key, record.key())?;
        match record.check() {
            Ok(()) => Ok(record),
            Err(what) => refuse(key, what),
        }
    }
}

/// Reads the newest checkpoint of a node's trail; `None` before the first.
///
/// # Errors
/// [`Error::Store`]; [`Error::Corrupt`] when its record is damaged or another's.
pub async fn load_checkpoint(
    store: &dyn KeyStore,
    node: &NodeName,
) -> Result<Option<(CheckpointRecord, StoreVersion)>> {
    load(store, Key::Checkpoint(node.clone()), CheckpointRecord::decode).await
}
