//! Where the trail is kept, and what holds when it cannot be: `[audit]`.

use super::given::bad;
use crate::{error::Result, name::NodeName};
use std::{path::PathBuf, time::Duration};

/// A file of the trail is compressed this long after its hour, where nothing is said.
pub const COMPRESS_AFTER_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);
/// Soonest that a file of the trail is compressed after its hour.
pub const COMPRESS_AFTER_MIN: Duration = Duration::from_secs(60 * 60);
/// Latest that it is.
pub const COMPRESS_AFTER_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Shortest time for which the lines of the trail are kept.
pub const AUDIT_RETENTION_MIN: Duration = Duration::from_secs(24 * 60 * 60);

/// Most keys that signed before.
pub const EARLIER_KEYS_MAX: usize = 16;

/// What becomes of data operations while the trail cannot be kept. Administrative calls are refused either way; leases, wipes and denials
/// never wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// They are refused: nothing is done unseen.
    #[default]
    Refuse,
    /// They go on; once the trail can be kept again it says how many records were lost.
    Continue,
}

/// Where the trail is kept, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditConfig {
    /// The directory; each node has a folder of its name there.
    pub directory: PathBuf,
    /// The name of this process's node; the host's name where nothing was said.
    pub node: Option<NodeName>,
    /// What becomes of data operations while the trail cannot be kept.
    pub on_failure: OnFailure,
    /// Files are compressed this long after their hour, [`COMPRESS_AFTER_MIN`] to [`COMPRESS_AFTER_MAX`].
    pub compress_after: Duration,
    /// Files are removed this long after their hour, at least [`AUDIT_RETENTION_MIN`]; `None` keeps them for ever.
    pub retention: Option<Duration>,
    /// Keys that signed before the one that signs now, each as `keyleash audit key show` printed it.
    pub earlier_keys: Vec<String>,
}

/// What a configuration says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct AuditItems {
    pub(super) directory: Option<PathBuf>,
    pub(super) node: Option<NodeName>,
    pub(super) on_failure: Option<OnFailure>,
    pub(super) compress_after: Option<Duration>,
    pub(super) retention: Option<Duration>,
    pub(super) earlier_keys: Option<Vec<String>>,
}

impl AuditItems {
    pub(super) fn set_on_failure(&mut self, text: &str, origin: &str) -> Result<()> {
        self.on_failure = Some(match text {
            "refuse" => OnFailure::Refuse,
            "continue" => OnFailure::Continue,
            other => return Err(bad(origin, &format!("is {other:?}; use \"refuse\" or \"continue\""))),
        });
        Ok(())
    }

    pub(super) fn set_compress_after(&mut self, after: Duration, origin: &str) -> Result<()> {
        if !(COMPRESS_AFTER_MIN..=COMPRESS_AFTER_MAX).contains(&after) {
            return Err(bad(
                origin,
                "allowed is 1h to 30d: who looks for the last hours finds them as they are, and a disk is not filled",
            ));
        }
        self.compress_after = Some(after);
        Ok(())
    }

    pub(super) fn set_retention(&mut self, retention: Duration, origin: &str) -> Result<()> {
        if retention < AUDIT_RETENTION_MIN {
            return Err(bad(
                origin,
                "allowed is 1d or more: a trail that forgets sooner tells nobody anything (promise 7)",
            ));
        }
        self.retention = Some(retention);
        Ok(())
    }

    /// Each `NAME+ID+BASE64`, with a comma between two. What is in them is for the trail to read.
    pub(super) fn set_earlier_keys(&mut self, text: &str, origin: &str) -> Result<()> {
        let keys: Vec<_> = text.split(',').map(|key| key.trim().to_owned()).collect();
        if keys.len() > EARLIER_KEYS_MAX {
            return Err(bad(origin, &format!("has {} keys; allowed are {EARLIER_KEYS_MAX}", keys.len())));
        }
        let is_key = |key: &String| key.splitn(3, '+').filter(|part| !part.is_empty()).count() == 3;
        if let Some(other) = keys.iter().find(|key| !is_key(key)) {
            let remedy = "write each as `keyleash audit key show` printed it, with a comma between two";
            return Err(bad(origin, &format!("{other:?} is no key; {remedy}")));
        }
        self.earlier_keys = Some(keys);
        Ok(())
    }

    /// What this says, and where it says nothing, what `below` says.
    pub(super) fn over(self, below: Self) -> Self {
        Self {
            directory: self.directory.or(below.directory),
            node: self.node.or(below.node),
            on_failure: self.on_failure.or(below.on_failure),
            compress_after: self.compress_after.or(below.compress_after),
            retention: self.retention.or(below.retention),
            earlier_keys: self.earlier_keys.or(below.earlier_keys),
        }
    }

    /// `origin` is where something was said of it, if anything was.
    pub(super) fn resolve(self, origin: Option<&str>) -> Result<Option<AuditConfig>> {
        let Self { directory, node, on_failure, compress_after, retention, earlier_keys } = self;
        let Some(directory) = directory else {
            return match origin {
                None => Ok(None),
                Some(origin) => Err(bad(
                    origin,
                    "says how a trail is kept, and nothing says where: set audit.directory, or leave this out",
                )),
            };
        };
        Ok(Some(AuditConfig {
            directory,
            node,
            on_failure: on_failure.unwrap_or_default(),
            compress_after: compress_after.unwrap_or(COMPRESS_AFTER_DEFAULT),
            retention,
            earlier_keys: earlier_keys.unwrap_or_default(),
        }))
    }
}
