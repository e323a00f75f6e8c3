//! The bytes of secrets' records, as `wire.rs` says of all others.

use super::{DeletionWire, said};
use crate::{
    name::{AccountId, SecretId, SecretName},
    store::record::{Deletion, Making, Rotation, SecretRecord, SecretValueRecord, SecretVersion},
};
use bincode::{Decode, Encode};

#[derive(Encode, Decode)]
pub(super) struct SecretWire {
    account: String,
    account_created_unix: u64,
    name: String,
    versions: Vec<SecretVersionWire>,
    deleted: Option<DeletionWire>,
    rotation: Option<RotationWire>,
}

#[derive(Encode, Decode)]
struct SecretVersionWire {
    version: u32,
    created_unix: u64,
    not_before_unix: Option<u64>,
    expires_unix: Option<u64>,
    enabled: bool,
    content_type: String,
    tags: Vec<(String, String)>,
}

#[derive(Encode, Decode)]
struct RotationWire {
    every_secs: u64,
    overlap_secs: u64,
    timeout_secs: u64,
    hook: String,
    proof: Vec<u8>,
    due_unix: u64,
    failures: u32,
    making: Option<MakingWire>,
}

#[derive(Encode, Decode)]
struct MakingWire {
    version: u32,
    run: u64,
    until_unix: u64,
}

#[derive(Encode, Decode)]
pub(super) struct SecretValueWire {
    account: String,
    name: String,
    version: u32,
    block: Vec<u8>,
}

fn secret_id(account: String, name: String) -> Result<SecretId, String> {
    Ok(SecretId::new(AccountId::new(account).map_err(said)?, SecretName::new(name).map_err(said)?))
}

impl TryFrom<SecretWire> for SecretRecord {
    type Error = String;

    fn try_from(wire: SecretWire) -> Result<Self, String> {
        let version = |wire: SecretVersionWire| {
            let SecretVersionWire { version, created_unix, not_before_unix, expires_unix, enabled, content_type, tags } =
                wire;
            SecretVersion { version, created_unix, not_before_unix, expires_unix, enabled, content_type, tags }
        };
        let making = |MakingWire { version, run, until_unix }| Making { version, run, until_unix };
        let rotation = |wire: RotationWire| {
            let RotationWire { every_secs, overlap_secs, timeout_secs, hook, proof, due_unix, failures, making: made } =
                wire;
            let making = made.map(making);
            Rotation { every_secs, overlap_secs, timeout_secs, hook, proof, due_unix, failures, making }
        };
        let deletion = |DeletionWire { since_unix, purge_after_unix }| Deletion { since_unix, purge_after_unix };
        Ok(SecretRecord {
            id: secret_id(wire.account, wire.name)?,
            account_created_unix: wire.account_created_unix,
            versions: wire.versions.into_iter().map(version).collect(),
            deleted: wire.deleted.map(deletion),
            rotation: wire.rotation.map(rotation),
        })
    }
}

impl From<&SecretRecord> for SecretWire {
    fn from(record: &SecretRecord) -> Self {
        let version = |version: &SecretVersion| {
            let SecretVersion { version, created_unix, not_before_unix, expires_unix, enabled, content_type, tags } =
                version.clone();
            SecretVersionWire { version, created_unix, not_before_unix, expires_unix, enabled, content_type, tags }
        };
        let making = |Making { version, run, until_unix }| MakingWire { version, run, until_unix };
        let rotation = |rotation: Rotation| RotationWire {
            every_secs: rotation.every_secs,
            overlap_secs: rotation.overlap_secs,
            timeout_secs: rotation.timeout_secs,
            hook: rotation.hook,
            proof: rotation.proof,
            due_unix: rotation.due_unix,
            failures: rotation.failures,
            making: rotation.making.map(making),
        };
        let deletion = |Deletion { since_unix, purge_after_unix }| DeletionWire { since_unix, purge_after_unix };
        Self {
            account: record.id.account.to_string(),
            account_created_unix: record.account_created_unix,
            name: record.id.name.to_string(),
            versions: record.versions.iter().map(version).collect(),
            deleted: record.deleted.map(deletion),
            rotation: record.rotation.clone().map(rotation),
        }
    }
}

impl TryFrom<SecretValueWire> for SecretValueRecord {
    type Error = String;

    fn try_from(wire: SecretValueWire) -> Result<Self, String> {
        let SecretValueWire { account, name, version, block } = wire;
        Ok(Self { id: secret_id(account, name)?, version, block })
    }
}

impl From<&SecretValueRecord> for SecretValueWire {
    fn from(record: &SecretValueRecord) -> Self {
        let SecretValueRecord { id, version, block } = record;
        let (account, name) = (id.account.to_string(), id.name.to_string());
        Self { account, name, version: *version, block: block.clone() }
    }
}
