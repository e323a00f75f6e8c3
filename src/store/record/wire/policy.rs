//! The bytes of a policy's records, as `wire.rs` says of all others.

use crate::{
    access::{Actions, Grant, Operations, Pattern, Role},
    error::Error,
    name::{GrantId, RoleName},
    store::{
        PART_ID_BYTES, PartId,
        record::{GrantsRecord, PART_DIGEST_BYTES, PolicyPart, PolicyRecord},
    },
};
use bincode::{Decode, Encode};

#[derive(Encode, Decode)]
pub(super) struct PolicyWire {
    generation: u64,
    roles: Vec<RoleWire>,
    parts: Vec<PartWire>,
}

#[derive(Encode, Decode)]
struct RoleWire {
    name: String,
    operations: u32,
    includes: Vec<String>,
    not: u32,
    keks: String,
    accounts: String,
}

#[derive(Encode, Decode)]
struct PartWire {
    id: [u8; PART_ID_BYTES],
    digest: [u8; PART_DIGEST_BYTES],
    grants: u32,
}

#[derive(Encode, Decode)]
pub(super) struct GrantsWire {
    id: [u8; PART_ID_BYTES],
    grants: Vec<GrantWire>,
}

#[derive(Encode, Decode)]
struct GrantWire {
    id: u32,
    callers: String,
    keks: String,
    accounts: String,
    actions: ActionsWire,
}

#[derive(Encode, Decode)]
enum ActionsWire {
    Operations(u32),
    Role(String),
}

fn said(error: Error) -> String {
    error.to_string()
}

/// One that a newer release knows is not left out: `not` would give what it takes away.
fn operations(bits: u32) -> Result<Operations, String> {
    Operations::from_bits(bits).ok_or_else(|| {
        format!(
            "names operations that this release does not know (bits {bits:#x}); a newer one wrote it: use that release"
        )
    })
}

fn pattern(text: String) -> Result<Pattern, String> {
    Pattern::new(text).map_err(said)
}

fn role_name(name: String) -> Result<RoleName, String> {
    RoleName::new(name).map_err(said)
}

impl From<&PolicyRecord> for PolicyWire {
    fn from(record: &PolicyRecord) -> Self {
        let role = |role: &Role| RoleWire {
            name: role.name.to_string(),
            operations: role.operations.bits(),
            includes: role.includes.iter().map(RoleName::to_string).collect(),
            not: role.not.bits(),
            keks: role.keks.to_string(),
            accounts: role.accounts.to_string(),
        };
        let part = |part: &PolicyPart| PartWire { id: part.id.0, digest: part.digest, grants: part.grants };
        Self {
            generation: record.generation,
            roles: record.roles.iter().map(role).collect(),
            parts: record.parts.iter().map(part).collect(),
        }
    }
}

impl TryFrom<PolicyWire> for PolicyRecord {
    type Error = String;

    fn try_from(wire: PolicyWire) -> Result<Self, String> {
        let role = |wire: RoleWire| {
            Ok::<_, String>(Role {
                name: role_name(wire.name)?,
                operations: operations(wire.operations)?,
                includes: wire.includes.into_iter().map(role_name).collect::<Result<_, _>>()?,
                not: operations(wire.not)?,
                keks: pattern(wire.keks)?,
                accounts: pattern(wire.accounts)?,
            })
        };
        let part = |PartWire { id, digest, grants }| PolicyPart { id: PartId(id), digest, grants };
        Ok(Self {
            generation: wire.generation,
            roles: wire.roles.into_iter().map(role).collect::<Result<_, _>>()?,
            parts: wire.parts.into_iter().map(part).collect(),
        })
    }
}

impl From<&GrantsRecord> for GrantsWire {
    fn from(record: &GrantsRecord) -> Self {
        let grant = |grant: &Grant| GrantWire {
            id: grant.id.number().unwrap_or_default(), // it was checked
            callers: grant.callers.to_string(),
            keks: grant.keks.to_string(),
            accounts: grant.accounts.to_string(),
            actions: match &grant.actions {
                Actions::Operations(operations) => ActionsWire::Operations(operations.bits()),
                Actions::Role(role) => ActionsWire::Role(role.to_string()),
            },
        };
        Self { id: record.id.0, grants: record.grants.iter().map(grant).collect() }
    }
}

impl TryFrom<GrantsWire> for GrantsRecord {
    type Error = String;

    fn try_from(wire: GrantsWire) -> Result<Self, String> {
        let grant = |wire: GrantWire| {
            Ok::<_, String>(Grant {
                id: GrantId::of_store(wire.id),
                callers: pattern(wire.callers)?,
                keks: pattern(wire.keks)?,
                accounts: pattern(wire.accounts)?,
                actions: match wire.actions {
                    ActionsWire::Operations(bits) => Actions::Operations(operations(bits)?),
                    ActionsWire::Role(role) => Actions::Role(role_name(role)?),
                },
            })
        };
        Ok(Self { id: PartId(wire.id), grants: wire.grants.into_iter().map(grant).collect::<Result<_, _>>()? })
    }
}
