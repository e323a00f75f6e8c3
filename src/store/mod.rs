//! The key store: where wrapped AEKs and the names of KEKs are kept.
//!
//! [`KeyStore`] is the seam: keys and bounded values with compare-and-put, so that etcd, PostgreSQL or an
//! object store with conditional put fit behind it. What the bytes mean is [`record`]'s business; whether
//! a store of one's own keeps the contract is said by [`check`].

pub(crate) use self::changes::Apart;
pub use self::changes::Changes;
pub use self::policy::{PART_ID_BYTES, PartId, load_policy};
pub use self::probe::Probe;
pub use self::record::load_checkpoint;
use self::record::{
    AEK_VERSIONS_MAX, AccountRecord, CommonRecord, DenialRecord, KekRecord, SecretRecord, StoreRecord, WorkRecord,
};
pub(crate) use self::walk::{Pages, all_keys, kek_names, newest_date, read_accounts};
use crate::{
    error::{Corrupt, Error, Result},
    name::{AccountId, KekName, KekVersion, NodeName, SecretId, SecretName},
};
use async_trait::async_trait;
use std::fmt;

#[cfg(feature = "bucket")]
pub mod bucket;
mod changes;
pub mod check;
pub mod copy;
pub(crate) mod envelope;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod memory;
pub(crate) mod policy;
#[cfg(feature = "postgres")]
pub mod postgres;
mod probe;
pub mod record;
pub mod redb;
#[cfg(any(feature = "bucket", feature = "etcd", feature = "postgres"))]
mod remote;
mod walk;
pub(crate) mod word;

/// Longest value, in bytes: below the limit of every store that is meant (etcd: 1.5 MiB).
pub const VALUE_BYTES_MAX: usize = 256 * 1024;
/// Most keys in a page.
pub const PAGE_KEYS_MAX: usize = 1000;
/// Most KEK versions under which one key is found: one per AEK version.
pub const WRAPPED_BY_MAX: usize = AEK_VERSIONS_MAX;

/// Most other records that a write rests on.
pub const GUARDS_MAX: usize = 8;

/// How often a change is tried again because somebody else changed the record in between. Each such somebody got on.
pub(crate) const CONFLICTS_MAX: usize = 32;

const ACCOUNT_KIND: u8 = b'a';
const KEK_KIND: u8 = b'k';
const DENIAL_KIND: u8 = b'd';
const WORK_KIND: u8 = b'w';
const STORE_KIND: u8 = b's';
const COMMON_KIND: u8 = b'c';
const SECRET_KIND: u8 = b'x';
const SECRET_VALUE_KIND: u8 = b'v';
const POLICY_KIND: u8 = b'p';
const GRANTS_KIND: u8 = b'g';
const CHECKPOINT_KIND: u8 = b't';

/// What a record is about. The byte form (`kind as u8 ‖ name`) is the key in stores that want bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Key {
    /// An account with its wrapped AEKs.
    Account(AccountId),
    /// A KEK with its versions.
    Kek(KekName),
    /// The last denial of a KEK version, kept so that denial is sticky across restarts.
    Denial(KekVersion),
    /// Who does the scheduled work. There is one.
    Work,
    /// What the store is known by in tokens. There is one.
    Store,
    /// What all engines of the store must agree on. There is one.
    Common,
    /// A secret: its versions, without their values.
    Secret(SecretId),
    /// The sealed value of one version of a secret.
    SecretValue(SecretId, u32),
    /// The head of the policy: roles, and which parts it has. There is one, from the first grant on.
    Policy,
    /// A part of the policy: grants. It is never replaced.
    Grants(PartId),
    /// The newest checkpoint of a node's trail.
    Checkpoint(NodeName),
}

impl Key {
    /// The kind and the name as one byte string, unique and ordered by kind, then name.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (kind, name) = match self {
            Self::Account(id) => (ACCOUNT_KIND, id.to_string()),
            Self::Kek(name) => (KEK_KIND, name.to_string()),
            Self::Denial(kek) => (DENIAL_KIND, kek.to_string()),
            Self::Work => (WORK_KIND, String::new()),
            Self::Store => (STORE_KIND, String::new()),
            Self::Common => (COMMON_KIND, String::new()),
            // No name has a NUL. Numbers of one length have the order of their bytes.
            Self::Secret(SecretId { account, name }) => (SECRET_KIND, format!("{account}\0{name}")),
            Self::SecretValue(SecretId { account, name }, version) => {
                (SECRET_VALUE_KIND, format!("{account}\0{name}\0{version:010}"))
            }
            Self::Policy => (POLICY_KIND, String::new()),
            Self::Grants(part) => (GRANTS_KIND, part.to_string()),
            Self::Checkpoint(node) => (CHECKPOINT_KIND, node.to_string()),
        };
        let mut bytes = vec![kind];
        bytes.extend_from_slice(name.as_bytes());
        bytes
    }

    /// The key whose byte form this is, for implementations of [`KeyStore`].
    ///
    /// # Errors
    /// [`Corrupt::Record`] when it is none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let bad = || {
            Corrupt::Record {
            record: format!("key {}", bytes.escape_ascii()),
            what: "is no name of an account, a KEK, a denial, the scheduled work, the store, its date, its policy, a secret or a trail"
                .into(),
        }
        };
        let (kind, name) = bytes.split_first().ok_or_else(bad)?;
        let name = std::str::from_utf8(name).map_err(|_| bad())?;
        let key = match *kind {
            ACCOUNT_KIND => Self::Account(AccountId::new(name).map_err(|_| bad())?),
            KEK_KIND => Self::Kek(KekName::new(name).map_err(|_| bad())?),
            DENIAL_KIND => {
                let (name, version) = name.rsplit_once('/').ok_or_else(bad)?;
                let version = version.parse().map_err(|_| bad())?;
                Self::Denial(KekVersion::new(KekName::new(name).map_err(|_| bad())?, version))
            }
            WORK_KIND if name.is_empty() => Self::Work,
            STORE_KIND if name.is_empty() => Self::Store,
            COMMON_KIND if name.is_empty() => Self::Common,
            SECRET_KIND => Self::Secret(secret_id(name).ok_or_else(bad)?),
            SECRET_VALUE_KIND => {
                let (secret, version) = name.rsplit_once('\0').ok_or_else(bad)?;
                Self::SecretValue(secret_id(secret).ok_or_else(bad)?, version.parse().map_err(|_| bad())?)
            }
            POLICY_KIND if name.is_empty() => Self::Policy,
            GRANTS_KIND => Self::Grants(PartId(u128::from_str_radix(name, 16).map_err(|_| bad())?.to_be_bytes())),
            CHECKPOINT_KIND => Self::Checkpoint(NodeName::new(name).map_err(|_| bad())?),
            _ => return Err(bad().into()),
        };
        // `01` parses as `1`: two byte forms of one key would be two values of it.
        if key.to_bytes() == bytes { Ok(key) } else { Err(bad().into()) }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(id) => write!(f, "account {id}"),
            Self::Kek(name) => write!(f, "KEK {name}"),
            Self::Denial(kek) => write!(f, "denial of KEK {kek}"),
            Self::Work => f.write_str("holder of the scheduled work"),
            Self::Store => f.write_str("id of the store"),
            Self::Common => f.write_str("date of the store"),
            Self::Secret(id) => write!(f, "secret {id}"),
            Self::SecretValue(id, version) => write!(f, "value of secret {id}, version {version}"),
            Self::Policy => f.write_str("policy of the store"),
            Self::Grants(part) => write!(f, "part {part} of the store's policy"),
            Self::Checkpoint(node) => write!(f, "checkpoint of the trail of node {node}"),
        }
    }
}

fn secret_id(text: &str) -> Option<SecretId> {
    let (account, name) = text.split_once('\0')?;
    Some(SecretId::new(AccountId::new(account).ok()?, SecretName::new(name).ok()?))
}

/// The store's version of a value: opaque, changed by every write, one of the same bytes too (a revision, a row version; an ETag where
/// that is no digest of the bytes). At most 64 bytes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct StoreVersion(pub Vec<u8>);

/// A value that was read, and the version to compare with when it is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The record, encoded.
    pub value: Vec<u8>,
    /// Its version.
    pub version: StoreVersion,
}

/// A value to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// The record, encoded; at most [`VALUE_BYTES_MAX`].
    pub value: Vec<u8>,
    /// The KEK versions under which [`KeyStore::list`] shall find the key; written in the same atomic step as the value.
    pub wrapped_by: Vec<KekVersion>,
    /// Other records that the value rests on (at most [`GUARDS_MAX`]), and the versions in which they were read: it is written if
    /// each has this version still, in the same atomic step. What a KEK version has just wrapped rests on its KEK's record, which
    /// its retirement changes: so nothing is ever stored under a KEK version that was retired, however long the write was held up.
    pub guards: Vec<(Key, StoreVersion)>,
}

impl Put {
    /// The same, resting on another record too.
    #[must_use]
    pub(crate) fn resting_on(mut self, key: Key, version: StoreVersion) -> Self {
        self.guards.push((key, version));
        self
    }
}

/// Which keys to list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Filter {
    /// All accounts.
    Accounts,
    /// All KEKs.
    Keks,
    /// All denials.
    Denials,
    /// Accounts with an AEK that is wrapped by this KEK version.
    WrappedBy(KekVersion),
    /// All secrets.
    Secrets,
    /// The secrets of one account.
    SecretsOf(AccountId),
    /// The values of all secrets.
    SecretValues,
    /// The values of one account's secrets.
    SecretValuesOf(AccountId),
    /// All parts of the policy.
    Grants,
    /// The newest checkpoints of all trails.
    Checkpoints,
}

impl Filter {
    /// What the byte form of every key begins with that it lets through. But for [`Filter::WrappedBy`] it lets all of those through, and a
    /// store needs to know no more of it.
    pub fn prefix(&self) -> Vec<u8> {
        let of = |kind: u8, account: &AccountId| [&[kind], account.as_str().as_bytes(), &[0]].concat();
        match self {
            Self::Accounts | Self::WrappedBy(_) => vec![ACCOUNT_KIND],
            Self::Keks => vec![KEK_KIND],
            Self::Denials => vec![DENIAL_KIND],
            Self::Secrets => vec![SECRET_KIND],
            Self::SecretsOf(account) => of(SECRET_KIND, account),
            Self::SecretValues => vec![SECRET_VALUE_KIND],
            Self::SecretValuesOf(account) => of(SECRET_VALUE_KIND, account),
            Self::Grants => vec![GRANTS_KIND],
            Self::Checkpoints => vec![CHECKPOINT_KIND],
        }
    }
}

/// A part of a listing, in ascending order of the keys' bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The keys.
    pub keys: Vec<Key>,
    /// Give it to the next call; `None` when this was the last page.
    pub next: Option<Key>,
}

impl Page {
    /// The page of `limit` keys, from up to `limit + 1` that were found: the one too many tells that there is a next page.
    pub fn of(mut keys: Vec<Key>, limit: usize) -> Self {
        let more = keys.len() > limit;
        keys.truncate(limit);
        let next = if more { keys.last().cloned() } else { None };
        Self { keys, next }
    }
}

/// A key store. Every successful write is durable when it returns, and atomic: a crash leaves the old value or the new.
/// No operation changes more than one key, so no transaction outlives a call; one that has [`Put::guards`] compares those.
///
/// # What every call must give
///
/// Promises 4 and 5 rest on it, so it is no matter of taste. A write is *over* when any engine anywhere got its answer.
///
/// - **Reads are of the newest.** [`get`](KeyStore::get) and [`get_many`](KeyStore::get_many) see every write that was over before
///   they began, whoever made it (each key is linearizable). On it rest that a denial is found after a restart, that a
///   rotated AEK version is sealed under, and that nobody works under a fence that was passed.
/// - **So are lists.** [`list`](KeyStore::list) of any filter names every key whose creation was over before its first page was
///   asked for, and that was not deleted before its last. Retirement of a KEK version rests on it: it writes "retired", then
///   lists all accounts and reads each; one that is left out is an account whose KEK is destroyed.
/// - **A write compares and puts in one step**, with the value's place in the index, and its guards' versions. Of two with one `expected` at most one is
///   done; an [`Error::Store`] says that it was done or was not.
/// - **Absence is no damage.** "There is none" is answered where that was read. What cannot be read is an error.
///
/// What does not give it, and must be refused by [`KeyStore::check_settings`]: etcd with serializable reads; PostgreSQL on a hot
/// standby or any other replica, with `synchronous_commit = off`, or with one snapshot held over several calls; Consul in the modes
/// `stale` and `default`; DynamoDB without `ConsistentRead`, and its global secondary indexes for lists at all; Redis and MongoDB
/// but with majority writes and linearizable reads; an object store behind a cache or in a replicated bucket; SQLite on a network
/// file system. What does: [`MemoryStore`](memory::MemoryStore), [`RedbStore`](redb::RedbStore) on a local file system, and
/// with their features the stores in etcd, in PostgreSQL, and in a bucket that is not replicated.
///
/// The engine polls its futures on a thread that it keeps for them, inside a current-thread tokio runtime with all drivers that are
/// compiled in. One that blocks there holds up the store's other calls, and nothing else. A call that is dropped was given up, and is
/// best not done later. What a store has running on a runtime of the host's (a connection) stands still with that.
#[async_trait]
pub trait KeyStore: Send + Sync + 'static {
    /// Reads. `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Corrupt`] when the store found damage itself.
    async fn get(&self, key: &Key) -> Result<Option<Versioned>>;

    /// Writes a key that must not exist.
    ///
    /// # Errors
    /// [`Error::Exists`] when it does; [`Error::Conflict`] naming the guard that has another version by now;
    /// [`Error::Store`]: nothing was acknowledged, it may or may not be there.
    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion>;

    /// Replaces the value that has version `expected`.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it has another by now, or a guard has; [`Error::NotFound`] when it is gone; [`Error::Store`].
    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion>;

    /// Reads many: each answered as [`KeyStore::get`] would, in their order. One way there and back, where the store can.
    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Versioned>>> {
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            found.push(self.get(key).await);
        }
        found
    }

    /// Replaces many: each by itself and answered as [`KeyStore::replace`] would, in their order; some may be done and others not.
    /// One commit, where the store can.
    async fn replace_many(&self, changes: Vec<(Key, StoreVersion, Put)>) -> Vec<Result<StoreVersion>> {
        let mut outcomes = Vec::with_capacity(changes.len());
        for (key, expected, put) in changes {
            outcomes.push(self.replace(&key, &expected, put).await);
        }
        outcomes
    }

    /// Refuses settings under which a call would not give what it must (above). Asked once, when an engine is built.
    ///
    /// # Errors
    /// [`Error::Misconfigured`], naming the setting and what it has to be.
    fn check_settings(&self) -> Result<()> {
        Ok(())
    }

    /// Deletes the value that has version `expected`.
    ///
    /// # Errors
    /// As [`KeyStore::replace`].
    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()>;

    /// Makes an end of what was deleted or replaced before: where the store keeps its values, none of `remains` (wrapped AEKs that no
    /// value has any more) can be found from then on. Backups and snapshots are another matter. A store that cannot says so to
    /// its users, and does nothing.
    ///
    /// # Errors
    /// [`Error::Store`]: what was deleted is deleted, and its bytes may still be found.
    async fn shred(&self, remains: Vec<Vec<u8>>) -> Result<()>;

    /// What is changed from now on, by whoever, so that an engine hears at once of what others did. `None` where the store cannot tell:
    /// then it hears of an account as it reads its record, within `aek_ttl`, and of a denial with its own next proof. No promise
    /// rests on it, so one may be left out, or told wrongly: what was heard of is looked at, in the store and in the token.
    ///
    /// # Errors
    /// [`Error::Store`]; it is asked again.
    async fn changes(&self) -> Result<Option<Box<dyn Changes>>> {
        Ok(None)
    }

    /// Tries reads and writes on the server, of nothing that is a record. `None` where there is no server.
    ///
    /// # Errors
    /// [`Error::Store`], and where it may not be written [`Error::Misconfigured`].
    async fn probe(&self) -> Result<Option<Probe>> {
        Ok(None)
    }

    /// Up to `limit` (at most [`PAGE_KEYS_MAX`]) keys after `after`. Keys that live through the whole listing appear once.
    ///
    /// # Errors
    /// [`Error::Store`].
    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page>;
}

/// Refuses what no store takes, for implementations of [`KeyStore`].
///
/// # Errors
/// [`Error::Invalid`] for a value over [`VALUE_BYTES_MAX`], over [`WRAPPED_BY_MAX`] KEK versions, or any of them for
/// something that is no account; over [`GUARDS_MAX`] guards.
pub fn check_put(key: &Key, put: &Put) -> Result<()> {
    if put.value.len() > VALUE_BYTES_MAX {
        return Err(Error::Invalid(format!(
            "{key}: its record has {} bytes, at most {VALUE_BYTES_MAX} are stored; retire AEK versions that no block uses",
            put.value.len()
        )));
    }
    if put.wrapped_by.len() > WRAPPED_BY_MAX {
        return Err(Error::Invalid(format!(
            "{key}: wrapped by {} KEK versions, at most {WRAPPED_BY_MAX} are indexed; retire AEK versions that no block uses",
            put.wrapped_by.len()
        )));
    }
    if put.guards.len() > GUARDS_MAX {
        return Err(Error::Invalid(format!(
            "{key}: rests on {} records, at most {GUARDS_MAX} are compared",
            put.guards.len()
        )));
    }
    if !put.wrapped_by.is_empty() && !matches!(key, Key::Account(_)) {
        return Err(Error::Invalid(format!("{key}: only accounts are wrapped by KEK versions")));
    }
    Ok(())
}

/// The page length that a caller of [`KeyStore::list`] gets: at most [`PAGE_KEYS_MAX`].
///
/// # Errors
/// [`Error::Invalid`] for 0, whose page would say nothing and end the listing.
pub fn check_limit(limit: usize) -> Result<usize> {
    if limit == 0 { Err(Error::Invalid("a page has at least 1 key".into())) } else { Ok(limit.min(PAGE_KEYS_MAX)) }
}

/// What implementations answer when `key` should be made and is there.
pub fn exists(key: &Key) -> Error {
    Error::Exists(key.to_string())
}

/// What implementations answer when `key` is not there.
pub fn not_found(key: &Key) -> Error {
    Error::NotFound(key.to_string())
}

/// What implementations answer when `key` has another version than expected.
pub fn conflict(key: &Key) -> Error {
    Error::Conflict(key.to_string())
}

/// A number with its noun: `1 account`, `2 accounts`.
pub(crate) fn number_of(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// What is said when somebody was faster [`CONFLICTS_MAX`] times.
pub(crate) fn again_and_again(kind: &str, name: impl std::fmt::Display) -> Error {
    Error::Conflict(format!("{kind} {name}, again and again: see who changes it, and try again"))
}

/// Reads an account; `None` when there is none.
///
/// # Errors
/// [`Error::Store`]; [`Error::Corrupt`] when its record is damaged or another's.
pub async fn load_account(store: &dyn KeyStore, account: &AccountId) -> Result<Option<(AccountRecord, StoreVersion)>> {
    load(store, Key::Account(account.clone()), AccountRecord::decode).await
}

/// Reads a KEK; `None` when there is none.
///
/// # Errors
/// As [`load_account`].
pub async fn load_kek(store: &dyn KeyStore, kek: &KekName) -> Result<Option<(KekRecord, StoreVersion)>> {
    load(store, Key::Kek(kek.clone()), KekRecord::decode).await
}

/// Reads the denial of a KEK version; `None` when there is none.
///
/// # Errors
/// As [`load_account`]. Denial is sticky: on any error take the KEK version as denied.
pub async fn load_denial(store: &dyn KeyStore, kek: &KekVersion) -> Result<Option<(DenialRecord, StoreVersion)>> {
    load(store, Key::Denial(kek.clone()), DenialRecord::decode).await
}

/// Reads who does the scheduled work; `None` when nobody ever did.
///
/// # Errors
/// As [`load_account`].
pub async fn load_work(store: &dyn KeyStore) -> Result<Option<(WorkRecord, StoreVersion)>> {
    load(store, Key::Work, WorkRecord::decode).await
}

/// Reads what all engines of the store must agree on; `None` before any wrote it.
///
/// # Errors
/// As [`load_account`].
pub async fn load_common(store: &dyn KeyStore) -> Result<Option<(CommonRecord, StoreVersion)>> {
    load(store, Key::Common, CommonRecord::decode).await
}

/// Reads the head of a secret; `None` when there is none.
///
/// # Errors
/// As [`load_account`].
pub async fn load_secret(store: &dyn KeyStore, id: &SecretId) -> Result<Option<(SecretRecord, StoreVersion)>> {
    load(store, Key::Secret(id.clone()), SecretRecord::decode).await
}

/// What the store is known by in tokens; made, and written down, where there is nothing yet.
///
/// # Errors
/// [`Error::Store`]; [`Error::Corrupt`]; [`Error::Fatal`] without randomness.
pub(crate) async fn store_id(store: &dyn KeyStore) -> Result<StoreRecord> {
    for _ in 0..CONFLICTS_MAX {
        if let Some((record, _)) = load(store, Key::Store, StoreRecord::decode).await? {
            return Ok(record);
        }
        let record = StoreRecord::random()?;
        match store.create(&Key::Store, record.put()?).await {
            Ok(_) => return Ok(record),
            Err(Error::Exists(_)) => {} // another one was faster
            Err(error) => return Err(error),
        }
    }
    Err(again_and_again("the", Key::Store))
}

/// A record as it was found, damaged or not, and the version by which it can be replaced or deleted.
pub(crate) type Found<R> = (std::result::Result<R, Corrupt>, StoreVersion);

/// Reads a record for whoever may write over one that is damaged. The record of a newer release is an error, so that there is no
/// version to touch it by.
///
/// # Errors
/// [`Error::Store`]; [`Corrupt::NewerRecord`]; [`Error::Corrupt`] when the store found damage itself.
pub(crate) async fn find<R>(
    store: &dyn KeyStore,
    key: &Key,
    decode: fn(&Key, &[u8]) -> Result<R>,
) -> Result<Option<Found<R>>> {
    let Some(Versioned { value, version }) = store.get(key).await? else { return Ok(None) };
    match decode(key, &value) {
        Ok(record) => Ok(Some((Ok(record), version))),
        Err(Error::Corrupt(damage)) if !matches!(damage, Corrupt::NewerRecord { .. }) => {
            Ok(Some((Err(damage), version)))
        }
        Err(error) => Err(error),
    }
}

async fn load<R>(
    store: &dyn KeyStore,
    key: Key,
    decode: fn(&Key, &[u8]) -> Result<R>,
) -> Result<Option<(R, StoreVersion)>> {
    let Some(Versioned { value, version }) = store.get(&key).await? else { return Ok(None) };
    Ok(Some((decode(&key, &value)?, version)))
}
