//! What stands in the key store's values, byte for byte, and what a wrapped AEK is bound to.
//!
//! Types and rules are here, the bytes in `wire.rs`.

use super::{Key, Put};
use crate::{
    clock::{BOOT_BYTES, utc},
    error::{Corrupt, Error, Result},
    name::{AccountId, KekName, KekVersion, TokenName},
    secret::{AEK_BYTES, Aek, fill_random, scrub_stack},
    token::{Binding, KekId, Profile, Wrapped},
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

pub(crate) mod due;
mod wire;

pub use self::wire::RECORD_FORMAT;
use self::wire::Record;

/// Most AEK versions of an account.
pub const AEK_VERSIONS_MAX: usize = 256;
/// Most AEK versions of which an account remembers when they were retired; older ones are still known to have been.
pub const RETIRED_AEKS_MAX: usize = 1024;
/// Most versions of a KEK.
pub const KEK_VERSIONS_MAX: usize = 1024;
/// Longest reason of a denial, in bytes; a longer one is cut.
pub const REASON_BYTES_MAX: usize = 1024;
/// Length of a holder's name in [`WorkRecord`], in bytes.
pub const HOLDER_BYTES: usize = 16;
/// Length of a store's id, in bytes.
pub const STORE_ID_BYTES: usize = 8;
/// Length of a witness's digest, in bytes.
pub const WITNESS_BYTES: usize = 32;
/// Length of a check value, in bytes.
pub const CHECK_BYTES: usize = 32;

/// Tells what goes into a context apart from everything else that is ever put under an AEK.
const CONTEXT_PREFIX: &[u8] = b"keyleash.aek.v1";
/// The same, of what a witness's digest is of.
const WITNESS_PREFIX: &[u8] = b"keyleash.witness.v1";
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
    /// [`check_value`] of the AEK and its [`context`].
    pub check: [u8; CHECK_BYTES],
    /// When the AEK version was made, in seconds since 1970.
    pub created_unix: u64,
    /// What was sealed under it, as far as the engines that did it have written it down.
    pub used: Usage,
}

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
    /// [`Error::Invalid`] when a rule of the fields is broken or it is longer than [`super::VALUE_BYTES_MAX`].
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
    /// [`Corrupt::Record`], also when it is another account's record.
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
    /// [`Corrupt::Record`], also when it is another KEK's record.
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
    /// [`Corrupt::Record`], also when it is the denial of another KEK version. A caller that cannot read a denial takes
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
