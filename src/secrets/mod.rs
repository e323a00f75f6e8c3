//! Secrets: what a service must keep beside its blocks (an access key, a password, a certificate), in versions, each sealed as a block
//! of the account that it belongs to. So a secret goes dark with the account's KEK and comes back with it.
//!
//! [`manual::secrets`](mod@crate::manual::secrets) says it for people. In the store a secret is a head, which says what versions there
//! are, and one record per version. A new version's value is stored first and then named by the head, in a write that rests on the
//! value, on the head that was read and on the account's record: so a crash leaves the versions before or the versions after, two that
//! write at once get a number each, and no AEK version is retired under a value.
//!
//! | file | what |
//! | --- | --- |
//! | `versions.rs` | versions set and given out, resealing |
//! | `life.rs` | listing, deletion, undeletion, purge |
//! | `rotation.rs` | policies, and whose turn it is to run a hook |
//! | `hook.rs` | a hook while it runs |
//! | `records.rs` | how the records are read and changed |
//! | `value.rs` | a value in memory |

use crate::{
    access::Operation,
    engine::{Act, Engine},
    error::Result,
    keyring::On,
    name::{AccountId, SecretId, SecretName},
    store::record::SecretVersion,
    telemetry::trail::Deed,
};

mod hook;
mod life;
mod records;
mod rotation;
mod value;
mod versions;

pub use self::rotation::{HOOK_TIMEOUT_MAX, ROTATION_MAX, ROTATION_MIN, RotationPolicy, SecretsReport};
pub use self::value::SecretValue;

/// The secrets of an engine's accounts. Cheap to clone; made by [`Engine::secrets`].
#[derive(Debug, Clone)]
pub struct Secrets {
    engine: Engine,
}

/// A version of a secret that was given out.
#[derive(Debug)]
#[non_exhaustive]
pub struct OpenedSecret {
    /// Its value.
    pub value: SecretValue,
    /// What else there is to say of this version.
    pub version: SecretVersion,
}

/// A part of the list of an account's secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SecretPage {
    /// The names, deleted ones that were not purged included.
    pub names: Vec<SecretName>,
    /// Give it to the next call; `None` when this was the last page.
    pub next: Option<SecretName>,
}

/// What is said of a new version of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SetOptions {
    /// What the value is: `text/plain`, say; at most 128 bytes. Empty unless said otherwise.
    pub content_type: String,
    /// Not given out before this, in seconds since 1970 by the wall clock of whoever reads. Always, unless said otherwise.
    pub not_before_unix: Option<u64>,
    /// Not given out from then on, likewise.
    pub expires_unix: Option<u64>,
    /// Given out at all. True unless said otherwise.
    pub enabled: bool,
    /// Up to 16 names (1 to 64 bytes, each another) and values (up to 256 bytes). In clear in the store: nothing secret.
    pub tags: Vec<(String, String)>,
}

impl Default for SetOptions {
    fn default() -> Self {
        Self { content_type: String::new(), not_before_unix: None, expires_unix: None, enabled: true, tags: Vec::new() }
    }
}

impl SetOptions {
    /// Says what the value is.
    #[must_use]
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = content_type.into();
        self
    }

    /// Not given out before this, in seconds since 1970.
    #[must_use]
    pub fn not_before(mut self, unix: u64) -> Self {
        self.not_before_unix = Some(unix);
        self
    }

    /// Not given out from then on, in seconds since 1970.
    #[must_use]
    pub fn expires(mut self, unix: u64) -> Self {
        self.expires_unix = Some(unix);
        self
    }

    /// Whether it is given out at all.
    #[must_use]
    pub fn enabled(mut self, enabled: bool) -> Self {
        self.enabled = enabled;
        self
    }

    /// One tag more.
    #[must_use]
    pub fn tag(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.push((name.into(), value.into()));
        self
    }
}

impl Engine {
    /// The secrets of this engine's accounts.
    pub fn secrets(&self) -> Secrets {
        Secrets { engine: self.clone() }
    }
}

/// What a call does to an account's secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// What was permitted with the whole of which it is a part.
    None,
    /// Shows what there is, without values.
    See,
    /// Gives a value out.
    Get,
    /// Makes a version, or changes what is said of one.
    Set,
    /// Ends what can be brought back.
    Delete,
    /// Brings it back.
    Undelete,
    /// Ends it for good.
    Purge,
    /// Moves what is sealed to the account's next AEK version.
    Reseal,
}

impl Access {
    const fn operations(self) -> &'static [Operation] {
        match self {
            Self::None => &[],
            Self::See => &[Operation::Get],
            Self::Get => &[Operation::SecretGet],
            Self::Set => &[Operation::SecretSet],
            Self::Delete => &[Operation::Delete],
            Self::Undelete => &[Operation::Undelete],
            Self::Purge => &[Operation::Purge],
            Self::Reseal => &[Operation::Rotate],
        }
    }
}

impl Secrets {
    /// What every public call that changes nothing goes through, before anything is read. What is done from then on is done by the
    /// engine's own hand: who may read a secret need not be one who may open blocks.
    async fn permit(&self, account: &AccountId, access: Access) -> Result<()> {
        self.engine.permit(access.operations(), On::Account(account)).await
    }

    /// As [`Secrets::permit`], for what changes something: it is on the trail before it is done.
    fn act(deed: Deed, id: &SecretId, access: Access) -> Act<'_> {
        Act::new(deed, access.operations(), On::Account(&id.account)).with(|on| on.secret = Some(id.name.clone()))
    }
}
