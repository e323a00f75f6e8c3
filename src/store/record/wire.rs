//! The bytes of records: one byte of format version, then bincode 2 (standard configuration) of a mirror type.
//!
//! This file and those of its folder alone name bincode; `tests/compat/` pins the bytes and `manual::format` spells them out. A kind of record
//! that gets other fields moves to the next format version, which releases before it refuse by name, and is still read
//! in the one before. A new kind of record is a new variant of the mirror type and leaves the version alone.

use super::{
    AccountRecord, AekPolicy, CHECK_BYTES, CheckpointRecord, CommonRecord, Deletion, DenialRecord, GrantsRecord,
    HOLDER_BYTES, KekPolicy, KekRecord, KekVersionRecord, PolicyRecord, REASON_BYTES_MAX, RetiredAek, STORE_ID_BYTES,
    SecretRecord, SecretValueRecord, StoreRecord, Usage, WITNESS_BYTES, Witness, WorkRecord, WrappedAek, corrupt,
    refuse,
};
use crate::{
    error::{Corrupt, Error, Result},
    name::{AccountId, KekName, KekVersion, TokenName},
    store::{Key, VALUE_BYTES_MAX},
    token::{KekId, Profile, Wrapped},
};
use bincode::{Decode, Encode, config};

mod checkpoint;
mod common;
mod policy;
mod secret;

use self::{
    checkpoint::CheckpointWire,
    common::{CommonWire, common_of},
    policy::{GrantsWire, PolicyWire},
    secret::{SecretValueWire, SecretWire},
};

/// Newest format version of records: policies, their parts, dates of stores that have one, and checkpoints of trails are written in it;
/// accounts that remember retired AEK versions, denials with a witness, dates of stores under purge protection and secrets in 3; other
/// accounts, KEKs, other denials by a standby and ids and other dates of stores in 2, all others in 1. Every one from 1 on is read.
pub const RECORD_FORMAT: u8 = 4;

/// What decoding may claim. bincode counts sizes in memory, which are larger than the varints that were written, so
/// that a record of the full length needs more than its length.
const CLAIM_BYTES_MAX: usize = 2 * VALUE_BYTES_MAX;

/// A record of any kind.
pub(super) enum Record {
    Account(AccountRecord),
    Kek(KekRecord),
    Denial(DenialRecord),
    Work(WorkRecord),
    Store(StoreRecord),
    Common(CommonRecord),
    Secret(SecretRecord),
    SecretValue(SecretValueRecord),
    Policy(PolicyRecord),
    Grants(GrantsRecord),
    Checkpoint(CheckpointRecord),
}

pub(super) fn encode_policy(record: &PolicyRecord) -> Result<Vec<u8>> {
    encode(&Key::Policy, &Wire4::Policy(record.into()))
}

pub(super) fn encode_grants(record: &GrantsRecord) -> Result<Vec<u8>> {
    encode(&record.key(), &Wire4::Grants(record.into()))
}

pub(super) fn encode_checkpoint(record: &CheckpointRecord) -> Result<Vec<u8>> {
    encode(&record.key(), &Wire4::Checkpoint(record.into()))
}

pub(super) fn encode_account(record: &AccountRecord) -> Result<Vec<u8>> {
    // So that releases before this one read what holds nothing new to them.
    match record.retired.is_empty() {
        true => encode(&record.key(), &Wire2::Account(record.into())),
        false => encode(&record.key(), &Wire3::Account(record.into(), RetiredWire::list(&record.retired))),
    }
}

pub(super) fn encode_kek(record: &KekRecord) -> Result<Vec<u8>> {
    encode(&record.key(), &Wire2::Kek(record.into()))
}

pub(super) fn encode_denial(record: &DenialRecord) -> Result<Vec<u8>> {
    let denial = DenialWire::from(record);
    match (&record.witness, record.by_standby) {
        (None, false) => encode(&record.key(), &Wire1::Denial(denial)),
        (None, true) => encode(&record.key(), &Wire2::StandbyDenial(denial)),
        (Some(Witness { account, aek_version, digest }), by_standby) => {
            let (account, aek_version, digest) = (account.to_string(), *aek_version, *digest);
            let witnessed = WitnessedDenialWire { denial, by_standby, account, aek_version, digest };
            encode(&record.key(), &Wire3::Denial(witnessed))
        }
    }
}

pub(super) fn encode_work(record: &WorkRecord) -> Result<Vec<u8>> {
    let WorkRecord { fence, holder, until_unix } = *record;
    encode(&Key::Work, &Wire1::Work(WorkWire { fence, holder, until_unix }))
}

pub(super) fn encode_store(record: &StoreRecord) -> Result<Vec<u8>> {
    encode(&Key::Store, &Wire2::Store(StoreWire { id: record.id }))
}

pub(super) fn encode_common(record: &CommonRecord) -> Result<Vec<u8>> {
    let CommonRecord { purge_protection, is_governed, .. } = *record;
    let common = CommonWire::from(record);
    match (is_governed, purge_protection) {
        (false, false) => encode(&Key::Common, &Wire2::Common(common)),
        (false, true) => encode(&Key::Common, &Wire3::ProtectedCommon(common)),
        (true, purge_protection) => encode(&Key::Common, &Wire4::GovernedCommon(common, purge_protection)),
    }
}

pub(super) fn encode_secret(record: &SecretRecord) -> Result<Vec<u8>> {
    encode(&record.key(), &Wire3::Secret(record.into()))
}

pub(super) fn encode_secret_value(record: &SecretValueRecord) -> Result<Vec<u8>> {
    encode(&record.key(), &Wire3::SecretValue(record.into()))
}

/// Reads what was found under `key`, in any format version.
pub(super) fn decode(key: &Key, bytes: &[u8]) -> Result<Record> {
    if bytes.len() > VALUE_BYTES_MAX {
        return refuse(key, format!("has {} bytes, at most {VALUE_BYTES_MAX}", bytes.len()));
    }
    let record = match bytes.first() {
        None => return refuse(key, "is empty"),
        Some(&Wire1::FORMAT) => Record::try_from(decode_as::<Wire1>(key, bytes)?),
        Some(&Wire2::FORMAT) => Record::try_from(decode_as::<Wire2>(key, bytes)?),
        Some(&Wire3::FORMAT) => Record::try_from(decode_as::<Wire3>(key, bytes)?),
        Some(&Wire4::FORMAT) => Record::try_from(decode_as::<Wire4>(key, bytes)?),
        Some(&format) if format > RECORD_FORMAT => {
            return Err(Corrupt::NewerRecord { record: key.to_string(), format, reads: RECORD_FORMAT }.into());
        }
        Some(format) => {
            return refuse(key, format!("has format version {format}, this release reads 1 to {RECORD_FORMAT}"));
        }
    };
    record.map_err(|what| corrupt(key, what))
}

trait Wire: Encode + Decode<()> {
    const FORMAT: u8;
}

fn encode<W: Wire>(key: &Key, wire: &W) -> Result<Vec<u8>> {
    let mut bytes = vec![W::FORMAT];
    match bincode::encode_into_std_write(wire, &mut bytes, config::standard()) {
        Ok(_) if bytes.len() <= VALUE_BYTES_MAX => Ok(bytes),
        Ok(_) => Err(Error::Invalid(format!(
            "{key}: its record has {} bytes, at most {VALUE_BYTES_MAX} are stored; retire AEK versions that no block uses",
            bytes.len()
        ))),
        Err(error) => Err(Error::Invalid(format!("{key}: its record cannot be encoded: {error}"))),
    }
}

fn decode_as<W: Wire>(key: &Key, bytes: &[u8]) -> Result<W> {
    let body = bytes.get(1..).unwrap_or_default();
    let limited = config::standard().with_limit::<CLAIM_BYTES_MAX>();
    let (wire, used) = match bincode::decode_from_slice::<W, _>(body, limited) {
        Ok(decoded) => decoded,
        Err(error) => return refuse(key, format!("cannot be decoded: {error}")),
    };
    if used != body.len() {
        return refuse(key, format!("has {} bytes after its end", body.len().saturating_sub(used)));
    }
    // bincode reads longer forms of small numbers too. One record, one form: else two that are equal differ in bytes.
    if encode(key, &wire).is_ok_and(|canonical| canonical == bytes) {
        Ok(wire)
    } else {
        refuse(key, "is not in the shortest form: keyleash did not write it")
    }
}

/// As many whole characters of `text` as fit into `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1; // ends at 0, which is a boundary
    }
    text.get(..end).unwrap_or_default()
}

// The mirror types. Their fields' order and types are the format: see manual::format before touching them.

/// Format version 1.
#[derive(Encode, Decode)]
enum Wire1 {
    Account(AccountWire1),
    Kek(KekWire1),
    Denial(DenialWire),
    Work(WorkWire),
}

/// Format version 2: accounts and KEKs that are rotated, deleted and moved, denials by a standby, ids and dates of stores.
#[derive(Encode, Decode)]
enum Wire2 {
    Account(AccountWire),
    Kek(KekWire),
    StandbyDenial(DenialWire),
    Store(StoreWire),
    Common(CommonWire),
}

/// Format version 3: accounts that remember retired AEK versions, denials that name a witness, the date of a store under
/// purge protection, secrets and their values.
#[derive(Encode, Decode)]
enum Wire3 {
    /// As in format version 2, and what is behind it.
    Account(AccountWire, Vec<RetiredWire>),
    Denial(WitnessedDenialWire),
    /// As in format version 2, of a store in which nobody purges early.
    ProtectedCommon(CommonWire),
    Secret(SecretWire),
    SecretValue(SecretValueWire),
}

/// Format version 4: policies and their parts, the date of a store that has one, and the newest checkpoints of trails.
#[derive(Encode, Decode)]
enum Wire4 {
    Policy(PolicyWire),
    Grants(GrantsWire),
    /// As in format version 2, and whether nobody purges early.
    GovernedCommon(CommonWire, bool),
    Checkpoint(CheckpointWire),
}

impl Wire for Wire1 {
    const FORMAT: u8 = 1;
}

impl Wire for Wire2 {
    const FORMAT: u8 = 2;
}

impl Wire for Wire3 {
    const FORMAT: u8 = 3;
}

impl Wire for Wire4 {
    const FORMAT: u8 = 4;
}

#[derive(Encode, Decode)]
struct AccountWire1 {
    account: String,
    created_unix: u64,
    versions: Vec<AekWire1>,
}

#[derive(Encode, Decode)]
struct AekWire1 {
    aek_version: u32,
    kek_name: String,
    kek_version: u32,
    kek_id: Vec<u8>,
    profile: u8,
    iv: Vec<u8>,
    wrapped: Vec<u8>,
    check: [u8; CHECK_BYTES],
    created_unix: u64,
}

#[derive(Encode, Decode)]
struct KekWire1 {
    name: String,
    versions: Vec<KekVersionWire1>,
    current: u32,
}

#[derive(Encode, Decode)]
struct KekVersionWire1 {
    version: u32,
    id: Vec<u8>,
    profile: u8,
    created_unix: u64,
}

#[derive(Encode, Decode)]
struct DenialWire {
    kek_name: String,
    kek_version: u32,
    since_unix: u64,
    reason: String,
}

#[derive(Encode, Decode)]
struct WitnessedDenialWire {
    /// As in format version 1.
    denial: DenialWire,
    by_standby: bool,
    account: String,
    aek_version: u32,
    digest: [u8; WITNESS_BYTES],
}

#[derive(Encode, Decode)]
struct WorkWire {
    fence: u64,
    holder: [u8; HOLDER_BYTES],
    until_unix: u64,
}

#[derive(Encode, Decode)]
struct StoreWire {
    id: [u8; STORE_ID_BYTES],
}

#[derive(Encode, Decode)]
struct AccountWire {
    account: String,
    created_unix: u64,
    versions: Vec<AekWire>,
    deleted: Option<DeletionWire>,
    max_age_secs: u64,
    max_blocks: u64,
    max_bytes: u64,
}

#[derive(Encode, Decode)]
struct AekWire {
    /// As in format version 1.
    aek: AekWire1,
    blocks: u64,
    bytes: u64,
}

#[derive(Encode, Decode)]
struct RetiredWire {
    aek_version: u32,
    since_unix: u64,
}

impl RetiredWire {
    fn list(retired: &[RetiredAek]) -> Vec<Self> {
        retired.iter().map(|&RetiredAek { aek_version, since_unix }| Self { aek_version, since_unix }).collect()
    }
}

#[derive(Encode, Decode)]
struct DeletionWire {
    since_unix: u64,
    purge_after_unix: u64,
}

#[derive(Encode, Decode)]
struct KekWire {
    name: String,
    versions: Vec<KekVersionWire>,
    current: u32,
    max_age_secs: u64,
}

#[derive(Encode, Decode)]
struct KekVersionWire {
    /// As in format version 1.
    version: KekVersionWire1,
    token: String,
    retired_unix: Option<u64>,
    backup_attested_unix: Option<u64>,
}

pub(super) const fn profile_code(profile: Profile) -> u8 {
    match profile {
        Profile::AesGcm => 1,
        Profile::RsaOaepSha256 => 2,
        Profile::AesKw => 3,
    }
}

fn profile_of(code: u8) -> Result<Profile, String> {
    Profile::ALL
        .into_iter()
        .find(|profile| profile_code(*profile) == code)
        .ok_or_else(|| format!("names wrap profile {code}, which does not exist"))
}

fn said(error: Error) -> String {
    error.to_string()
}

impl TryFrom<Wire1> for Record {
    type Error = String;

    fn try_from(wire: Wire1) -> Result<Self, String> {
        Ok(match wire {
            Wire1::Account(AccountWire1 { account, created_unix, versions }) => Self::Account(AccountRecord {
                account: AccountId::new(account).map_err(said)?,
                created_unix,
                versions: versions.into_iter().map(|aek| aek_of(aek, Usage::default())).collect::<Result<_, _>>()?,
                deleted: None,
                policy: AekPolicy::default(),
                retired: Vec::new(),
            }),
            Wire1::Kek(KekWire1 { name, versions, current }) => {
                // There was one token then, and it had no name.
                let version = |version| kek_version_of(version, TokenName::default(), None, None);
                Self::Kek(KekRecord {
                    name: KekName::new(name).map_err(said)?,
                    versions: versions.into_iter().map(version).collect::<Result<_, _>>()?,
                    current,
                    policy: KekPolicy::default(),
                })
            }
            Wire1::Denial(wire) => Self::Denial(denial_of(wire, false, None)?),
            Wire1::Work(WorkWire { fence, holder, until_unix }) => Self::Work(WorkRecord { fence, holder, until_unix }),
        })
    }
}

impl TryFrom<Wire2> for Record {
    type Error = String;

    fn try_from(wire: Wire2) -> Result<Self, String> {
        Ok(match wire {
            Wire2::Account(wire) => Self::Account(account_of(wire, Vec::new())?),
            Wire2::Kek(KekWire { name, versions, current, max_age_secs }) => {
                let version = |wire: KekVersionWire| {
                    let token = TokenName::new(wire.token).map_err(said)?;
                    kek_version_of(wire.version, token, wire.retired_unix, wire.backup_attested_unix)
                };
                Self::Kek(KekRecord {
                    name: KekName::new(name).map_err(said)?,
                    versions: versions.into_iter().map(version).collect::<Result<_, _>>()?,
                    current,
                    policy: KekPolicy { max_age_secs },
                })
            }
            Wire2::StandbyDenial(wire) => Self::Denial(denial_of(wire, true, None)?),
            Wire2::Store(StoreWire { id }) => Self::Store(StoreRecord { id }),
            Wire2::Common(common) => Self::Common(common_of(common, false, false)),
        })
    }
}

impl TryFrom<Wire3> for Record {
    type Error = String;

    fn try_from(wire: Wire3) -> Result<Self, String> {
        let (wire, retired) = match wire {
            Wire3::Account(wire, retired) => (wire, retired),
            Wire3::Denial(WitnessedDenialWire { denial, by_standby, account, aek_version, digest }) => {
                let witness = Witness { account: AccountId::new(account).map_err(said)?, aek_version, digest };
                return Ok(Self::Denial(denial_of(denial, by_standby, Some(witness))?));
            }
            Wire3::ProtectedCommon(common) => return Ok(Self::Common(common_of(common, true, false))),
            Wire3::Secret(wire) => return Ok(Self::Secret(wire.try_into()?)),
            Wire3::SecretValue(wire) => return Ok(Self::SecretValue(wire.try_into()?)),
        };
        if retired.is_empty() {
            return Err("is in format version 3 and remembers no retired AEK version: keyleash did not write it".into());
        }
        Ok(Self::Account(account_of(wire, retired)?))
    }
}

impl TryFrom<Wire4> for Record {
    type Error = String;

    fn try_from(wire: Wire4) -> Result<Self, String> {
        Ok(match wire {
            Wire4::Policy(wire) => Self::Policy(wire.try_into()?),
            Wire4::Grants(wire) => Self::Grants(wire.try_into()?),
            Wire4::GovernedCommon(common, protected) => Self::Common(common_of(common, protected, true)),
            Wire4::Checkpoint(wire) => Self::Checkpoint(wire.try_into()?),
        })
    }
}

fn account_of(wire: AccountWire, retired: Vec<RetiredWire>) -> Result<AccountRecord, String> {
    let aek = |AekWire { aek, blocks, bytes }| aek_of(aek, Usage { blocks, bytes });
    let deletion = |DeletionWire { since_unix, purge_after_unix }| Deletion { since_unix, purge_after_unix };
    let retired_aek = |RetiredWire { aek_version, since_unix }| RetiredAek { aek_version, since_unix };
    Ok(AccountRecord {
        account: AccountId::new(wire.account).map_err(said)?,
        created_unix: wire.created_unix,
        versions: wire.versions.into_iter().map(aek).collect::<Result<_, _>>()?,
        deleted: wire.deleted.map(deletion),
        policy: AekPolicy { max_age_secs: wire.max_age_secs, max_blocks: wire.max_blocks, max_bytes: wire.max_bytes },
        retired: retired.into_iter().map(retired_aek).collect(),
    })
}

fn aek_of(wire: AekWire1, used: Usage) -> Result<WrappedAek, String> {
    Ok(WrappedAek {
        aek_version: wire.aek_version,
        kek: KekVersion::new(KekName::new(wire.kek_name).map_err(said)?, wire.kek_version),
        kek_id: KekId::new(wire.kek_id).map_err(said)?,
        profile: profile_of(wire.profile)?,
        wrapped: Wrapped { iv: wire.iv, bytes: wire.wrapped },
        check: wire.check,
        created_unix: wire.created_unix,
        used,
    })
}

fn denial_of(wire: DenialWire, by_standby: bool, witness: Option<Witness>) -> Result<DenialRecord, String> {
    Ok(DenialRecord {
        kek: KekVersion::new(KekName::new(wire.kek_name).map_err(said)?, wire.kek_version),
        since_unix: wire.since_unix,
        reason: wire.reason,
        by_standby,
        witness,
    })
}

fn kek_version_of(
    wire: KekVersionWire1,
    token: TokenName,
    retired_unix: Option<u64>,
    backup_attested_unix: Option<u64>,
) -> Result<KekVersionRecord, String> {
    Ok(KekVersionRecord {
        version: wire.version,
        id: KekId::new(wire.id).map_err(said)?,
        profile: profile_of(wire.profile)?,
        created_unix: wire.created_unix,
        token,
        retired_unix,
        backup_attested_unix,
    })
}

impl From<&AccountRecord> for AccountWire {
    fn from(record: &AccountRecord) -> Self {
        let AekPolicy { max_age_secs, max_blocks, max_bytes } = record.policy;
        let deleted = record
            .deleted
            .map(|Deletion { since_unix, purge_after_unix }| DeletionWire { since_unix, purge_after_unix });
        Self {
            account: record.account.to_string(),
            created_unix: record.created_unix,
            versions: record.versions.iter().map(AekWire::from).collect(),
            deleted,
            max_age_secs,
            max_blocks,
            max_bytes,
        }
    }
}

impl From<&WrappedAek> for AekWire {
    fn from(aek: &WrappedAek) -> Self {
        let Usage { blocks, bytes } = aek.used;
        let aek = AekWire1 {
            aek_version: aek.aek_version,
            kek_name: aek.kek.name.to_string(),
            kek_version: aek.kek.version,
            kek_id: aek.kek_id.as_bytes().to_vec(),
            profile: profile_code(aek.profile),
            iv: aek.wrapped.iv.clone(),
            wrapped: aek.wrapped.bytes.clone(),
            check: aek.check,
            created_unix: aek.created_unix,
        };
        Self { aek, blocks, bytes }
    }
}

impl From<&KekRecord> for KekWire {
    fn from(record: &KekRecord) -> Self {
        let wire = |version: &KekVersionRecord| KekVersionWire {
            version: KekVersionWire1 {
                version: version.version,
                id: version.id.as_bytes().to_vec(),
                profile: profile_code(version.profile),
                created_unix: version.created_unix,
            },
            token: version.token.to_string(),
            retired_unix: version.retired_unix,
            backup_attested_unix: version.backup_attested_unix,
        };
        Self {
            name: record.name.to_string(),
            versions: record.versions.iter().map(wire).collect(),
            current: record.current,
            max_age_secs: record.policy.max_age_secs,
        }
    }
}

impl From<&DenialRecord> for DenialWire {
    fn from(record: &DenialRecord) -> Self {
        Self {
            kek_name: record.kek.name.to_string(),
            kek_version: record.kek.version,
            since_unix: record.since_unix,
            reason: cut(&record.reason, REASON_BYTES_MAX).to_owned(),
        }
    }
}
