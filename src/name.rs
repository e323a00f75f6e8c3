//! Names that people give: accounts, KEKs and their versions, callers, roles.

use crate::error::{Error, Result};
use std::{fmt, sync::Arc};

/// Longest account id, in bytes.
pub const ACCOUNT_ID_BYTES_MAX: usize = 255;
/// Longest name of a KEK or token, in bytes: a label of PKCS#11 with its prefix and version stays below 96.
pub const KEK_NAME_BYTES_MAX: usize = 64;

/// What every name and id has: its text, and how it is shown.
macro_rules! text {
    ($($name:ident as $what:literal, $debug:literal;)+) => {$(
        impl $name {
            #[doc = concat!("The ", $what, " as text.")]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(", $debug, ")"), &*self.0)
            }
        }
    )+};
}

// Those that may have blanks or quotes in them are shown in quotes where that matters.
text! {
    AccountId as "id", "{:?}";
    KekName as "name", "{}";
    SecretName as "name", "{}";
    TokenName as "name", "{}";
    NodeName as "name", "{}";
    CallerId as "id", "{:?}";
    Whence as "place", "{:?}";
    RoleName as "name", "{}";
    GrantId as "id", "{}";
}

/// The id of an account: 1 to 255 bytes of UTF-8 without control characters. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(Arc<str>);

impl AccountId {
    /// Checks and takes an id.
    ///
    /// # Errors
    /// [`Error::TooLong`] over 255 bytes; [`Error::Invalid`] when it is empty or has a control character.
    pub fn new(id: impl AsRef<str>) -> Result<Self> {
        let id = id.as_ref();
        if id.is_empty() {
            return Err(Error::Invalid(format!("an account id has 1 to {ACCOUNT_ID_BYTES_MAX} bytes, this one has 0")));
        }
        if id.len() > ACCOUNT_ID_BYTES_MAX {
            let (len, max) = (id.len(), ACCOUNT_ID_BYTES_MAX);
            return Err(Error::TooLong { what: "an account id", len, max, remedy: "use a hash of it" });
        }
        if id.chars().any(char::is_control) {
            return Err(Error::Invalid(format!("account id {id:?} has a control character: leave it out")));
        }
        Ok(Self(id.into()))
    }

    /// As [`AccountId::new`], from bytes that may not be UTF-8.
    ///
    /// # Errors
    /// [`Error::Invalid`], also when the bytes are not UTF-8.
    pub fn from_bytes(id: &[u8]) -> Result<Self> {
        match std::str::from_utf8(id) {
            Ok(id) => Self::new(id),
            Err(error) => Err(Error::Invalid(format!(
                "an account id is UTF-8, this one is not at byte {}: encode it, as hex for example",
                error.valid_up_to()
            ))),
        }
    }
}

/// Names that are safe in labels, paths and configurations: up to `max` bytes, with these beside letters and digits.
fn check_name(what: &str, name: &str, max: usize, beside: &str) -> Result<()> {
    let begins_well = name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    let all_well = name.chars().all(|char| char.is_ascii_alphanumeric() || beside.contains(char));
    if begins_well && all_well && name.len() <= max {
        return Ok(());
    }
    let beside = beside.split("").collect::<Vec<_>>().join(" ");
    Err(Error::Invalid(format!(
        "{what} {name:?}: use 1 to {max} of A-Z a-z 0-9{beside}and begin with a letter or digit"
    )))
}

/// The name of a KEK: 1 to 64 of `A-Z a-z 0-9 . _ -`, beginning with a letter or digit. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KekName(Arc<str>);

impl KekName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a rule above is broken.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        let name = name.as_ref();
        check_name("KEK name", name, KEK_NAME_BYTES_MAX, "._-")?;
        Ok(Self(name.into()))
    }
}

/// Longest name of a secret, in bytes.
pub const SECRET_NAME_BYTES_MAX: usize = 128;

/// The name of a secret within its account: 1 to 128 of `A-Z a-z 0-9 . _ - /`, beginning with a letter or digit. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretName(Arc<str>);

impl SecretName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a rule above is broken.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        let name = name.as_ref();
        check_name("secret name", name, SECRET_NAME_BYTES_MAX, "._-/")?;
        Ok(Self(name.into()))
    }
}

/// Which secret: a name, and the account that it is a name in. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretId {
    /// Whose it is.
    pub account: AccountId,
    /// What it is called there.
    pub name: SecretName,
}

impl SecretId {
    /// The secret of this name of this account.
    pub const fn new(account: AccountId, name: SecretName) -> Self {
        Self { account, name }
    }
}

/// `NAME of account ID`.
impl fmt::Display for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of account {}", self.name, self.account)
    }
}

/// What the only token of a set-up is called where nobody named it.
const TOKEN_NAME_DEFAULT: &str = "default";

/// The name of a token in a set-up: as a [`KekName`]. Cheap to clone. `default` where nobody named it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenName(Arc<str>);

impl TokenName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is no 1 to 64 of `A-Z a-z 0-9 . _ -`, beginning with a letter or digit.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        check_name("token name", name.as_ref(), KEK_NAME_BYTES_MAX, "._-")?;
        Ok(Self(name.as_ref().into()))
    }
}

impl Default for TokenName {
    fn default() -> Self {
        Self(TOKEN_NAME_DEFAULT.into())
    }
}

/// The name of a node: of one process that writes a trail. As a [`KekName`]. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is no 1 to 64 of `A-Z a-z 0-9 . _ -`, beginning with a letter or digit.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        check_name("node name", name.as_ref(), KEK_NAME_BYTES_MAX, "._-")?;
        Ok(Self(name.as_ref().into()))
    }
}

/// Longest id of a caller, in bytes.
pub const CALLER_ID_BYTES_MAX: usize = 128;

/// Who asks: an application or a person. 1 to 128 bytes of UTF-8 without control characters, without `*`, and without blanks but between
/// others. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallerId(Arc<str>);

impl CallerId {
    /// Checks and takes an id.
    ///
    /// # Errors
    /// [`Error::TooLong`] over 128 bytes; [`Error::Invalid`] when a rule above is broken.
    pub fn new(id: impl AsRef<str>) -> Result<Self> {
        let id = id.as_ref();
        if id.len() > CALLER_ID_BYTES_MAX {
            let (len, max) = (id.len(), CALLER_ID_BYTES_MAX);
            return Err(Error::TooLong { what: "the id of a caller", len, max, remedy: "use a shorter one" });
        }
        // What is not seen could make one caller look like another.
        let is_unseen = |char: char| {
            char.is_control()
                || char != ' ' && char.is_whitespace()
                || matches!(char, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        };
        if id.is_empty() || id.trim() != id || id.contains('*') || id.chars().any(is_unseen) {
            return Err(Error::Invalid(format!(
                "id {id:?} of a caller: use 1 to {CALLER_ID_BYTES_MAX} bytes that are seen, no *, and no blanks around them"
            )));
        }
        Ok(Self(id.into()))
    }

    /// True at once for clones of one another.
    #[inline]
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

/// Longest place that a call comes from, in bytes.
pub const WHENCE_BYTES_MAX: usize = 256;

/// Where a call comes from, as the program says that makes it: an address, a host, a user of one. It is kept in the trail, and decides
/// nothing. 1 to 256 bytes of UTF-8 without control characters. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Whence(Arc<str>);

impl Whence {
    /// Checks and takes a place.
    ///
    /// # Errors
    /// [`Error::TooLong`] over 256 bytes; [`Error::Invalid`] when it is empty or has a control character.
    pub fn new(place: impl AsRef<str>) -> Result<Self> {
        let place = place.as_ref();
        if place.len() > WHENCE_BYTES_MAX {
            let (len, max) = (place.len(), WHENCE_BYTES_MAX);
            return Err(Error::TooLong {
                what: "where a call comes from",
                len,
                max,
                remedy: "use a shorter name of it",
            });
        }
        if place.is_empty() || place.chars().any(char::is_control) {
            return Err(Error::Invalid(format!(
                "{place:?}, where a call comes from: use 1 to {WHENCE_BYTES_MAX} bytes without control characters"
            )));
        }
        Ok(Self(place.into()))
    }
}

/// The name of a role: as a [`KekName`]. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoleName(Arc<str>);

impl RoleName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is no 1 to 64 of `A-Z a-z 0-9 . _ -`, beginning with a letter or digit.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        check_name("role name", name.as_ref(), KEK_NAME_BYTES_MAX, "._-")?;
        Ok(Self(name.as_ref().into()))
    }
}

/// Longest id of a grant, in bytes.
const GRANT_ID_BYTES_MAX: usize = 4096;

/// What a grant is known by: eight hex digits where a store keeps it, its place where a file does (`keyleash.toml line 12`).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrantId(Arc<str>);

impl GrantId {
    /// Checks and takes an id.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is empty, or has a control character or more than 4096 bytes.
    pub fn new(id: impl AsRef<str>) -> Result<Self> {
        let id = id.as_ref();
        if id.is_empty() || id.len() > GRANT_ID_BYTES_MAX || id.chars().any(char::is_control) {
            return Err(Error::Invalid(format!("{id:?} is no id of a grant: `keyleash grant list` shows them")));
        }
        Ok(Self(id.into()))
    }

    /// That of a grant which has none yet.
    pub(crate) fn of_new() -> Self {
        Self("new".into())
    }

    /// That of a grant in a store.
    pub(crate) fn of_store(number: u32) -> Self {
        Self(format!("{number:08x}").into())
    }

    /// The number of one in a store.
    pub(crate) fn number(&self) -> Option<u32> {
        let number = u32::from_str_radix(&self.0, 16).ok()?;
        (Self::of_store(number) == *self).then_some(number)
    }
}

/// One version of a KEK; shown as `NAME/VERSION`. Versions count from 1.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KekVersion {
    /// The KEK.
    pub name: KekName,
    /// Its version.
    pub version: u32,
}

impl KekVersion {
    /// Puts the two together.
    pub fn new(name: KekName, version: u32) -> Self {
        Self { name, version }
    }
}

impl fmt::Display for KekVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.version)
    }
}

impl fmt::Debug for KekVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KekVersion({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_ids_are_1_to_255_bytes_of_printable_utf8() {
        assert!(AccountId::new("a").is_ok());
        assert!(AccountId::new("é".repeat(127)).is_ok());
        assert!(AccountId::new("x".repeat(255)).is_ok());
        for (bad, word) in [("", "1 to 255"), (&*"x".repeat(300), "300"), ("a\nb", "control"), ("a\0", "control")] {
            let error = AccountId::new(bad).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(AccountId::from_bytes(b"ab\xff").unwrap_err().to_string().contains("byte 2"));
    }

    #[test]
    fn a_caller_is_seen_as_it_is_and_is_no_pattern() {
        for good in ["a", "uid:1000", "DOMAIN\\some one", "käse", &"x".repeat(128)] {
            assert!(CallerId::new(good).is_ok(), "{good}");
        }
        for bad in ["", " a", "a ", "a*", "*", "a\nb", "a\u{202e}b", "a\u{200b}", "a\u{a0}b", &"x".repeat(129)] {
            assert!(CallerId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_grant_of_a_store_is_known_by_its_number() {
        for number in [0, 0x1a2b_3c4d, u32::MAX] {
            assert_eq!(GrantId::of_store(number).number(), Some(number));
        }
        for other in ["1a2b3c4", "1A2B3C4D", "keyleash.toml line 3", "+1a2b3c4"] {
            assert_eq!(GrantId::new(other).unwrap().number(), None, "{other}");
        }
    }

    #[test]
    fn kek_names_are_safe_in_labels_and_paths() {
        assert!(KekName::new("tenant-7.eu_west").is_ok());
        for bad in ["", "-a", ".a", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(KekName::new(bad).is_err(), "{bad}");
        }
    }
}
