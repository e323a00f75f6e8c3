//! The records of a policy: its head, and the parts in which its grants are.

use super::{
    corrupt, other_kind, same_name,
    wire::{self, Record},
};
use crate::{
    access::{Grant, ROLES_MAX, Role},
    error::{Error, Result},
    secret::fill_random,
    store::{Key, PART_ID_BYTES, PartId, Put},
};
use sha2::{Digest, Sha256};

/// Most grants of a part: of the longest names they still fit into a value.
pub const PART_GRANTS_MAX: usize = 400;
/// Most parts of a policy.
pub const PARTS_MAX: usize = 100;
/// Length of a part's digest, in bytes.
pub const PART_DIGEST_BYTES: usize = 32;

/// The head of a policy: what it consists of. Whoever changes the policy makes the parts that are new, and replaces the head then, in one
/// step: so a reader sees the whole policy of before, or that of after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRecord {
    /// Counts the changes up, from 1.
    pub generation: u64,
    /// The roles of its own, at most [`ROLES_MAX`].
    pub roles: Vec<Role>,
    /// 1 to [`PARTS_MAX`] parts, in which its grants are.
    pub parts: Vec<PolicyPart>,
}

/// A part of a policy, as its head names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyPart {
    /// Its id.
    pub id: PartId,
    /// SHA-256 of its record's bytes.
    pub digest: [u8; PART_DIGEST_BYTES],
    /// How many grants are in it.
    pub grants: u32,
}

/// A part of a policy. It never changes: what changes is another part, under another id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantsRecord {
    /// Its id, drawn at random.
    pub id: PartId,
    /// 1 to [`PART_GRANTS_MAX`] grants, with ids of a store: eight hex digits.
    pub grants: Vec<Grant>,
}

impl PolicyRecord {
    /// Its bytes, to be stored under [`Key::Policy`].
    ///
    /// # Errors
    /// [`Error::Invalid`] when it has too many parts or roles.
    pub fn put(&self) -> Result<Put> {
        self.check().map_err(|what| Error::Invalid(format!("{}: {what}", Key::Policy)))?;
        Ok(Put { value: wire::encode_policy(self)?, wrapped_by: Vec::new(), guards: Vec::new() })
    }

    /// Reads what was found under [`Key::Policy`].
    ///
    /// # Errors
    /// [`Corrupt::Record`](crate::Corrupt::Record). A caller that cannot read a policy grants nothing.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self> {
        let Record::Policy(record) = wire::decode(key, bytes)? else { return other_kind(key) };
        record.check().map_err(|what| corrupt(key, what))?;
        same_name(key, Key::Policy)?;
        Ok(record)
    }

    fn check(&self) -> Result<(), String> {
        if self.parts.is_empty() || self.parts.len() > PARTS_MAX {
            return Err(format!("it has {} parts, 1 to {PARTS_MAX} are allowed", self.parts.len()));
        }
        if self.roles.len() > ROLES_MAX {
            return Err(format!("it has {} roles, at most {ROLES_MAX} are allowed", self.roles.len()));
        }
        Ok(())
    }
}

impl GrantsRecord {
    /// A new part with these grants.
    pub(crate) fn new(grants: Vec<Grant>) -> Result<Self> {
        let mut id = [0; PART_ID_BYTES];
        fill_random(&mut id)?;
        Ok(Self { id: PartId(id), grants })
    }

    /// The key that it is stored under.
    pub fn key(&self) -> Key {
        Key::Grants(self.id)
    }

    /// Its bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it has no grant, too many, or one whose id is none of a store.
    pub fn put(&self) -> Result<Put> {
        self.check().map_err(|what| Error::Invalid(format!("{}: {what}", self.key())))?;
        Ok(Put { value: wire::encode_grants(self)?, wrapped_by: Vec::new(), guards: Vec::new() })
    }

    /// Reads what was found under `key`.
    ///
    /// # Errors
    /// As [`PolicyRecord::decode`].
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self> {
        let Record::Grants(record) = wire::decode(key, bytes)? else { return other_kind(key) };
        record.check().map_err(|what| corrupt(key, what))?;
        same_name(key, record.key())?;
        Ok(record)
    }

    fn check(&self) -> Result<(), String> {
        if self.grants.is_empty() || self.grants.len() > PART_GRANTS_MAX {
            return Err(format!("it has {} grants, 1 to {PART_GRANTS_MAX} are allowed", self.grants.len()));
        }
        match self.grants.iter().find(|grant| grant.id.number().is_none()) {
            Some(grant) => Err(format!("grant {} has an id that is none of a store", grant.id)),
            None => Ok(()),
        }
    }
}

impl PolicyPart {
    /// What the head says of a part with these bytes.
    pub(crate) fn of(record: &GrantsRecord, bytes: &[u8]) -> Self {
        Self { id: record.id, digest: Sha256::digest(bytes).into(), grants: record.grants.len() as u32 }
    }
}
