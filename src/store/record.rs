//! What stands in the key store's values, byte for byte, and what a wrapped AEK is bound to.
//!
//! A record is one byte of format version, then bincode 2 (standard configuration) of a private mirror type. This
//! file alone names bincode; `tests/compat/` pins the bytes and `manual::format` spells them out. A record that has
//! other fields is a new format version, which releases before it refuse by name; a new kind of record is a new
//! variant of the mirror type and leaves the version alone.

use super::{Key, Put, VALUE_BYTES_MAX};
use crate::{
    error::{Corrupt, Error, Result},
    name::{AccountId, KekName, KekVersion},
    secret::{AEK_BYTES, Aek, scrub_stack},
    token::{Binding, KekId, Profile, Wrapped},
};
use bincode::{Decode, Encode, config};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Format version of the records that this release writes, the first byte of each.
pub const RECORD_FORMAT: u8 = 1;
/// Most AEK versions of an account.
pub const AEK_VERSIONS_MAX: usize = 256;
/// Most versions of a KEK.
pub const KEK_VERSIONS_MAX: usize = 1024;
/// Longest reason of a denial, in bytes; a longer one is cut.
pub const REASON_BYTES_MAX: usize = 1024;
/// Length of a check value, in bytes.
pub const CHECK_BYTES: usize = 32;

/// What decoding may claim. bincode counts sizes in memory, which are larger than the varints that were written, so
/// that a record of the full length needs more than its length.
const CLAIM_BYTES_MAX: usize = 2 * VALUE_BYTES_MAX;

/// Tells what goes into a context apart from everything else that is ever put under an AEK.
const CONTEXT_PREFIX: &[u8] = b"keyleash.aek.v1";
const HMAC_BLOCK_BYTES: usize = 64;

/// An account: its wrapped AEKs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRecord {
    /// The account.
    pub account: AccountId,
    /// When it was made, in seconds since 1970; shown, never decided by.
    pub created_unix: u64,
    /// 1 to [`AEK_VERSIONS_MAX`] AEK versions, strictly ascending, from 1 up. The last is the current one.
    pub versions: Vec<WrappedAek>,
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
    /// [`check_value`] of the AEK and its [`context`].
    pub check: [u8; CHECK_BYTES],
    /// When the AEK version was made, in seconds since 1970.
    pub created_unix: u64,
}

/// A KEK: its versions in the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KekRecord {
    /// The KEK.
    pub name: KekName,
    /// 1 to [`KEK_VERSIONS_MAX`] versions, strictly ascending, from 1 up, each with a CKA_ID of its own.
    pub versions: Vec<KekVersionRecord>,
    /// The version that wraps new AEKs; one of `versions`.
    pub current: u32,
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
}

/// The last denial of a KEK version, kept until a proof so that a restart does not forget it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DenialRecord {
    /// The KEK version.
    pub kek: KekVersion,
    /// Since when, in seconds since 1970.
    pub since_unix: u64,
    /// Why, in words. Cut to [`REASON_BYTES_MAX`] when it is encoded: a denial must stick however long its reason is.
    pub reason: String,
}

impl AccountRecord {
    /// The key that it is stored under.
    pub fn key(&self) -> Key {
        Key::Account(self.account.clone())
    }

    /// Its bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a rule of the fields is broken or it is longer than [`VALUE_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.check().map_err(|what| Error::Invalid(format!("{}: {what}", self.key())))?;
        encode(&self.key(), &Wire::Account(self.into()))
    }

    /// Its bytes, to be stored, found by the KEK versions that wrap its AEKs.
    ///
    /// # Errors
    /// As [`AccountRecord::encode`].
    pub fn put(&self) -> Result<Put> {
        Ok(Put { value: self.encode()?, wrapped_by: self.wrapped_by() })
    }

    /// Reads what was found under `key`.
    ///
    /// # Errors
    /// [`Corrupt::Record`], also when it is another account's record.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self> {
        let Wire::Account(wire) = decode(key, bytes)? else { return refuse(key, "holds a record of another kind") };
        let record = Self::try_from(wire).map_err(|what| corrupt(key, what))?;
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

    fn check(&self) -> Result<(), String> {
        check_ascending("AEK", self.versions.iter().map(|version| version.aek_version), AEK_VERSIONS_MAX)?;
        self.versions.iter().try_for_each(WrappedAek::check)
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
        encode(&self.key(), &Wire::Kek(self.into()))
    }

    /// Its bytes, to be stored.
    ///
    /// # Errors
    /// As [`KekRecord::encode`].
    pub fn put(&self) -> Result<Put> {
        Ok(Put { value: self.encode()?, wrapped_by: Vec::new() })
    }

    /// Reads what was found under `key`.
    ///
    /// # Errors
    /// [`Corrupt::Record`], also when it is another KEK's record.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self> {
        let Wire::Kek(wire) = decode(key, bytes)? else { return refuse(key, "holds a record of another kind") };
        let record = Self::try_from(wire).map_err(|what| corrupt(key, what))?;
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
        if self.current().is_none() {
            return Err(format!("its current version {} is not among its versions", self.current));
        }
        let mut ids: Vec<_> = self.versions.iter().map(|version| &version.id).collect();
        ids.sort_unstable();
        match ids.windows(2).find_map(|pair| pair.first().filter(|id| pair.last() == Some(*id))) {
            Some(id) => Err(format!("two of its versions have CKA_ID {id}")),
            None => Ok(()),
        }
    }
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
        encode(&self.key(), &Wire::Denial(self.into()))
    }

    /// Its bytes, to be stored.
    ///
    /// # Errors
    /// As [`DenialRecord::encode`].
    pub fn put(&self) -> Result<Put> {
        Ok(Put { value: self.encode()?, wrapped_by: Vec::new() })
    }

    /// Reads what was found under `key`.
    ///
    /// # Errors
    /// [`Corrupt::Record`], also when it is the denial of another KEK version. A caller that cannot read a denial takes
    /// the KEK version as denied.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self> {
        let Wire::Denial(wire) = decode(key, bytes)? else { return refuse(key, "holds a record of another kind") };
        if wire.reason.len() > REASON_BYTES_MAX {
            return refuse(key, format!("its reason has {} bytes, at most {REASON_BYTES_MAX}", wire.reason.len()));
        }
        let record = Self::try_from(wire).map_err(|what| corrupt(key, what))?;
        record.check().map_err(|what| corrupt(key, what))?;
        same_name(key, record.key())?;
        Ok(record)
    }

    fn check(&self) -> Result<(), String> {
        if self.kek.version == 0 { Err("KEK versions count from 1".into()) } else { Ok(()) }
    }
}

/// What a wrapped AEK is bound to: `"keyleash.aek.v1" ‖ u16 len ‖ KEK name ‖ u32 KEK version ‖ u16 len ‖ account id ‖
/// u32 AEK version`, integers big-endian.
pub fn context(kek: &KekVersion, account: &AccountId, aek_version: u32) -> Vec<u8> {
    let mut context = CONTEXT_PREFIX.to_vec();
    put_text(&mut context, kek.name.as_str());
    context.extend(kek.version.to_be_bytes());
    put_text(&mut context, account.as_str());
    context.extend(aek_version.to_be_bytes());
    context
}

/// Names have at most 255 bytes, so that their length fits.
fn put_text(context: &mut Vec<u8>, text: &str) {
    context.extend((text.len() as u16).to_be_bytes());
    context.extend(text.as_bytes());
}

/// SHA-256 of a context: the additional data of mechanisms that take some.
pub fn binding(context: &[u8]) -> Binding {
    Sha256::digest(context).into()
}

/// HMAC-SHA256(AEK, context): stored beside the wrapped AEK, compared after every unwrap.
pub fn check_value(aek: &Aek, context: &[u8]) -> [u8; CHECK_BYTES] {
    let check = hmac(aek, context);
    scrub_stack(); // the padded key stood on it
    check
}

#[inline(never)] // so that its frame lies where scrub_stack() overwrites
fn hmac(aek: &Aek, context: &[u8]) -> [u8; CHECK_BYTES] {
    // RFC 2104 pads a short key with zeros. A whole block cannot fail, unlike a slice.
    let mut block = Zeroizing::new([0_u8; HMAC_BLOCK_BYTES]);
    let (key, _padding) = block.split_at_mut(AEK_BYTES);
    key.copy_from_slice(aek.expose());
    let mut hmac = <Hmac<Sha256> as KeyInit>::new((&*block).into());
    hmac.update(context);
    hmac.finalize().into_bytes().into()
}

/// True when `check` is the check value of this AEK and context. Takes the same time whatever differs.
pub fn check_matches(aek: &Aek, context: &[u8], check: &[u8; CHECK_BYTES]) -> bool {
    check_value(aek, context).ct_eq(check).into()
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

/// As many whole characters of `text` as fit into `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1; // ends at 0, which is a boundary
    }
    text.get(..end).unwrap_or_default()
}

fn corrupt(key: &Key, what: impl Into<String>) -> Error {
    Corrupt::Record { record: key.to_string(), what: what.into() }.into()
}

fn refuse<T>(key: &Key, what: impl Into<String>) -> Result<T> {
    Err(corrupt(key, what))
}

fn same_name(key: &Key, own: Key) -> Result<()> {
    if *key == own { Ok(()) } else { refuse(key, format!("is the record of {own}: it was moved or exchanged")) }
}

fn encode(key: &Key, wire: &Wire) -> Result<Vec<u8>> {
    let mut bytes = vec![RECORD_FORMAT];
    match bincode::encode_into_std_write(wire, &mut bytes, config::standard()) {
        Ok(_) if bytes.len() <= VALUE_BYTES_MAX => Ok(bytes),
        Ok(_) => Err(Error::Invalid(format!(
            "{key}: its record has {} bytes, at most {VALUE_BYTES_MAX} are stored; retire AEK versions that no block uses",
            bytes.len()
        ))),
        Err(error) => Err(Error::Invalid(format!("{key}: its record cannot be encoded: {error}"))),
    }
}

fn decode(key: &Key, bytes: &[u8]) -> Result<Wire> {
    if bytes.len() > VALUE_BYTES_MAX {
        return refuse(key, format!("has {} bytes, at most {VALUE_BYTES_MAX}", bytes.len()));
    }
    let Some((format, body)) = bytes.split_first() else { return refuse(key, "is empty") };
    if *format != RECORD_FORMAT {
        return refuse(key, format!("has format version {format}, this release reads {RECORD_FORMAT}"));
    }
    let limited = config::standard().with_limit::<CLAIM_BYTES_MAX>();
    let (wire, used) = match bincode::decode_from_slice::<Wire, _>(body, limited) {
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

// The mirror types. Their fields' order and types are the format: see manual::format before touching them.

#[derive(Encode, Decode)]
enum Wire {
    Account(AccountWire),
    Kek(KekWire),
    Denial(DenialWire),
}

#[derive(Encode, Decode)]
struct AccountWire {
    account: String,
    created_unix: u64,
    versions: Vec<AekWire>,
}

#[derive(Encode, Decode)]
struct AekWire {
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
struct KekWire {
    name: String,
    versions: Vec<KekVersionWire>,
    current: u32,
}

#[derive(Encode, Decode)]
struct KekVersionWire {
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

const fn profile_code(profile: Profile) -> u8 {
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

impl From<&AccountRecord> for AccountWire {
    fn from(record: &AccountRecord) -> Self {
        Self {
            account: record.account.to_string(),
            created_unix: record.created_unix,
            versions: record.versions.iter().map(AekWire::from).collect(),
        }
    }
}

impl TryFrom<AccountWire> for AccountRecord {
    type Error = String;

    fn try_from(wire: AccountWire) -> Result<Self, String> {
        Ok(Self {
            account: AccountId::new(wire.account).map_err(said)?,
            created_unix: wire.created_unix,
            versions: wire.versions.into_iter().map(WrappedAek::try_from).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&WrappedAek> for AekWire {
    fn from(aek: &WrappedAek) -> Self {
        Self {
            aek_version: aek.aek_version,
            kek_name: aek.kek.name.to_string(),
            kek_version: aek.kek.version,
            kek_id: aek.kek_id.as_bytes().to_vec(),
            profile: profile_code(aek.profile),
            iv: aek.wrapped.iv.clone(),
            wrapped: aek.wrapped.bytes.clone(),
            check: aek.check,
            created_unix: aek.created_unix,
        }
    }
}

impl TryFrom<AekWire> for WrappedAek {
    type Error = String;

    fn try_from(wire: AekWire) -> Result<Self, String> {
        Ok(Self {
            aek_version: wire.aek_version,
            kek: KekVersion::new(KekName::new(wire.kek_name).map_err(said)?, wire.kek_version),
            kek_id: KekId::new(wire.kek_id).map_err(said)?,
            profile: profile_of(wire.profile)?,
            wrapped: Wrapped { iv: wire.iv, bytes: wire.wrapped },
            check: wire.check,
            created_unix: wire.created_unix,
        })
    }
}

impl From<&KekRecord> for KekWire {
    fn from(record: &KekRecord) -> Self {
        let wire = |version: &KekVersionRecord| KekVersionWire {
            version: version.version,
            id: version.id.as_bytes().to_vec(),
            profile: profile_code(version.profile),
            created_unix: version.created_unix,
        };
        Self {
            name: record.name.to_string(),
            versions: record.versions.iter().map(wire).collect(),
            current: record.current,
        }
    }
}

impl TryFrom<KekWire> for KekRecord {
    type Error = String;

    fn try_from(wire: KekWire) -> Result<Self, String> {
        let version = |wire: KekVersionWire| {
            Ok::<_, String>(KekVersionRecord {
                version: wire.version,
                id: KekId::new(wire.id).map_err(said)?,
                profile: profile_of(wire.profile)?,
                created_unix: wire.created_unix,
            })
        };
        Ok(Self {
            name: KekName::new(wire.name).map_err(said)?,
            versions: wire.versions.into_iter().map(version).collect::<Result<_, _>>()?,
            current: wire.current,
        })
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

impl TryFrom<DenialWire> for DenialRecord {
    type Error = String;

    fn try_from(wire: DenialWire) -> Result<Self, String> {
        Ok(Self {
            kek: KekVersion::new(KekName::new(wire.kek_name).map_err(said)?, wire.kek_version),
            since_unix: wire.since_unix,
            reason: wire.reason,
        })
    }
}
