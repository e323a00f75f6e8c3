//! The records of a secret: its head, which says what versions there are, and one record per version with the sealed value.

use super::{
    Deletion, check_ascending, corrupt, other_kind, same_name,
    wire::{self, Record},
};
use crate::{
    block::{BlockHeader, HEADER_BYTES_MAX},
    error::{Error, Result},
    name::SecretId,
    store::{Key, Put},
};

/// Longest value of a secret, in bytes.
pub const SECRET_BYTES_MAX: usize = 64 * 1024;
/// Most versions of a secret.
pub const SECRET_VERSIONS_MAX: usize = 256;
/// Longest content type of a version, in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 128;
/// Most tags of a version.
pub const TAGS_MAX: usize = 16;
/// Longest name of a tag, in bytes.
pub const TAG_NAME_BYTES_MAX: usize = 64;
/// Longest value of a tag, in bytes.
pub const TAG_VALUE_BYTES_MAX: usize = 256;
/// Content types and tags of all versions of a secret together, in bytes.
pub const SECRET_WORDS_BYTES_MAX: usize = 192 * 1024;
/// Longest path of a hook, in bytes.
pub const HOOK_BYTES_MAX: usize = 1024;

/// The head of a secret: all but its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRecord {
    /// Whose it is, and what it is called.
    pub id: SecretId,
    /// When the account was made, in seconds since 1970: a secret of an account that was purged is none of one that was made anew.
    pub account_created_unix: u64,
    /// 1 to [`SECRET_VERSIONS_MAX`], strictly ascending, from 1 up; with gaps, where a version was never acknowledged.
    pub versions: Vec<SecretVersion>,
    /// Deleted, and not purged yet: it can be undeleted.
    pub deleted: Option<Deletion>,
    /// How it is rotated by schedule.
    pub rotation: Option<Rotation>,
}

/// One version of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretVersion {
    /// Its number.
    pub version: u32,
    /// When it was made, in seconds since 1970 by the store's date.
    pub created_unix: u64,
    /// Not given out before, in seconds since 1970 by the wall clock of whoever reads.
    pub not_before_unix: Option<u64>,
    /// Not given out from then on, in seconds since 1970 by the wall clock of whoever reads.
    pub expires_unix: Option<u64>,
    /// Given out at all.
    pub enabled: bool,
    /// What the value is, in words of the service: `text/plain`, say. At most [`CONTENT_TYPE_BYTES_MAX`] bytes; empty if nobody said.
    pub content_type: String,
    /// Names and values, at most [`TAGS_MAX`], strictly ascending by name. In clear.
    pub tags: Vec<(String, String)>,
}

/// How a secret is rotated by schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// From one version to the next, in seconds.
    pub every_secs: u64,
    /// For how long the version before stays valid, in seconds.
    pub overlap_secs: u64,
    /// How long the hook may take, in seconds.
    pub timeout_secs: u64,
    /// What makes the next version: the absolute path of a program.
    pub hook: String,
    /// The header of an empty block of the account, whose address is made of the secret's id and the four fields above: whoever writes
    /// to the store and has not the account's AEK cannot have another program run.
    pub proof: Vec<u8>,
    /// When the next version is due, in seconds since 1970 by the store's date.
    pub due_unix: u64,
    /// Runs of the hook that failed since the last that did not.
    pub failures: u32,
    /// A version that a hook was begun for, and that is not there yet.
    pub making: Option<Making>,
}

/// A version that a hook makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Making {
    /// The number that it shall have, behind all that are there.
    pub version: u32,
    /// Which run of the hook, drawn at random: the fence. What an earlier run brings is not taken.
    pub run: u64,
    /// Until when nobody else runs the hook, in seconds since 1970 by the store's date; 0 when it has ended and failed.
    pub until_unix: u64,
}

impl SecretRecord {
    /// The key that it is stored under.
    pub fn key(&self) -> Key {
        Key::Secret(self.id.clone())
    }

    /// Its bytes, to be stored.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a rule of the fields is broken.
    pub fn put(&self) -> Result<Put> {
        self.check().map_err(|what| Error::Invalid(format!("{}: {what}", self.key())))?;
        Ok(Put { value: wire::encode_secret(self)?, wrapped_by: Vec::new(), guards: Vec::new() })
    }

    /// Reads what was found under `key`.
    ///
    /// # Errors
    /// [`Corrupt::Record`](crate::Corrupt::Record), also when it is another secret's.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self> {
        let Record::Secret(record) = wire::decode(key, bytes)? else { return other_kind(key) };
        record.check().map_err(|what| corrupt(key, what))?;
        same_name(key, record.key())?;
        Ok(record)
    }

    /// The version with this number.
    pub fn version(&self, version: u32) -> Option<&SecretVersion> {
        self.versions.iter().find(|known| known.version == version)
    }

    /// The number of the newest version. A record that was decoded has one.
    pub fn newest(&self) -> u32 {
        self.versions.last().map_or(0, |version| version.version)
    }

    fn check(&self) -> Result<(), String> {
        check_ascending("secret", self.versions.iter().map(|version| version.version), SECRET_VERSIONS_MAX)?;
        self.versions.iter().try_for_each(SecretVersion::check)?;
        let words: usize = self.versions.iter().map(SecretVersion::words_bytes).sum();
        if words > SECRET_WORDS_BYTES_MAX {
            return Err(format!("content types and tags have {words} bytes, at most {SECRET_WORDS_BYTES_MAX}"));
        }
        self.rotation.as_ref().map_or(Ok(()), |rotation| rotation.check(self.newest()))
    }
}

impl SecretVersion {
    /// Bytes of its content type and tags.
    pub(crate) fn words_bytes(&self) -> usize {
        self.content_type.len() + self.tags.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
    }

    /// The rules of what people say of a version.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self { content_type, tags, not_before_unix, expires_unix, .. } = self;
        check_word("content type", content_type, CONTENT_TYPE_BYTES_MAX)?;
        if tags.len() > TAGS_MAX {
            return Err(format!("a version has at most {TAGS_MAX} tags, this one has {}", tags.len()));
        }
        for (name, value) in tags {
            check_word("name of a tag", name, TAG_NAME_BYTES_MAX)?;
            check_word("value of a tag", value, TAG_VALUE_BYTES_MAX)?;
        }
        if tags.iter().any(|(name, _)| name.is_empty()) || !tags.is_sorted_by(|(one, _), (next, _)| one < next) {
            return Err("tags have names, each another".into());
        }
        match (not_before_unix, expires_unix) {
            (Some(from), Some(until)) if from >= until => Err("a version expires after it begins to be valid".into()),
            _ => Ok(()),
        }
    }
}

impl Rotation {
    /// The AEK version that its proof is of.
    pub(crate) fn aek_version(&self) -> Result<u32> {
        Ok(BlockHeader::parse(&self.proof)?.aek_version())
    }

    fn check(&self, newest: u32) -> Result<(), String> {
        check_word("path of a hook", &self.hook, HOOK_BYTES_MAX)?;
        if !self.hook.starts_with('/') {
            return Err("the path of a hook is absolute".into());
        }
        if self.proof.len() > HEADER_BYTES_MAX {
            return Err(format!("the proof of its hook has {} bytes, at most {HEADER_BYTES_MAX}", self.proof.len()));
        }
        match self.making {
            Some(Making { version, .. }) if version <= newest => {
                Err(format!("version {version} is being made, and version {newest} is there"))
            }
            _ => Ok(()),
        }
    }
}

fn check_word(what: &str, word: &str, max: usize) -> Result<(), String> {
    if word.len() > max {
        return Err(format!("the {what} has at most {max} bytes, this one has {}", word.len()));
    }
    match word.chars().any(char::is_control) {
        true => Err(format!("the {what} {word:?} has a control character: leave it out")),
        false => Ok(()),
    }
}

/// The value of one version of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretValueRecord {
    /// Of which secret.
    pub id: SecretId,
    /// Of which version.
    pub version: u32,
    /// Sealed as a block of the account: the header, and then the ciphertext, of 0 to [`SECRET_BYTES_MAX`] bytes.
    pub block: Vec<u8>,
}

impl SecretValueRecord {
    /// The key that it is stored under.
    pub fn key(&self) -> Key {
        Key::SecretValue(self.id.clone(), self.version)
    }

    /// Its bytes, to be stored.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is no block, or longer than one of a secret may be.
    pub fn put(&self) -> Result<Put> {
        self.check().map_err(|what| Error::Invalid(format!("{}: {what}", self.key())))?;
        Ok(Put { value: wire::encode_secret_value(self)?, wrapped_by: Vec::new(), guards: Vec::new() })
    }

    /// Reads what was found under `key`.
    ///
    /// # Errors
    /// [`Corrupt::Record`](crate::Corrupt::Record), also when it is another version's.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self> {
        let Record::SecretValue(record) = wire::decode(key, bytes)? else { return other_kind(key) };
        record.check().map_err(|what| corrupt(key, what))?;
        same_name(key, record.key())?;
        Ok(record)
    }

    /// The AEK version that it is sealed under.
    pub(crate) fn aek_version(&self) -> Result<u32> {
        Ok(BlockHeader::split(&self.block)?.0.aek_version())
    }

    fn check(&self) -> Result<(), String> {
        if self.version == 0 {
            return Err("names version 0; they count from 1".into());
        }
        let (_, ciphertext) = BlockHeader::split(&self.block).map_err(|error| error.to_string())?;
        if ciphertext.len() > SECRET_BYTES_MAX {
            return Err(format!("its value has {} bytes, at most {SECRET_BYTES_MAX}", ciphertext.len()));
        }
        Ok(())
    }
}
