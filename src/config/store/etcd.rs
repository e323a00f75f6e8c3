//! The key store in an etcd cluster.

use super::{Reach, check_namespace, servers_of};
use crate::error::{Error, Result};
use std::fmt;

/// Most members of a cluster that are named.
pub const ETCD_ENDPOINTS_MAX: usize = 16;

/// A key store in an etcd cluster.
///
/// ```
/// use keyleash::config::store::EtcdConfig;
///
/// let config = EtcdConfig::new("etcd://a.example.org:2379,b.example.org:2379/keyleash/production")?;
/// assert_eq!((config.endpoints.len(), config.namespace.as_str()), (2, "keyleash/production"));
/// # Ok::<_, keyleash::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EtcdConfig {
    /// Members of the cluster, `host:port` each, 1 to [`ETCD_ENDPOINTS_MAX`].
    pub endpoints: Vec<String>,
    /// What all keys of the store begin with, up to a slash.
    pub namespace: String,
    /// How they are reached.
    pub reach: Reach,
}

impl EtcdConfig {
    /// Takes an URL, `etcd://HOST:PORT,HOST:PORT/NAMESPACE`; all else as where nothing is said.
    ///
    /// # Errors
    /// [`Error::Misconfigured`], naming what is wrong with it, and never a password in it.
    pub fn new(url: &str) -> Result<Self> {
        Self::parse(url).map_err(Error::Misconfigured)
    }

    /// Its errors do not show the URL.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        const FORM: &str = "write it as in \"etcd://a.example.org:2379,b.example.org:2379/keyleash\"";
        let rest = url.strip_prefix("etcd://").ok_or_else(|| format!("is no URL of an etcd: {FORM}"))?;
        let (endpoints, namespace) = servers_of(rest, FORM)?;
        if endpoints.len() > ETCD_ENDPOINTS_MAX {
            return Err(format!("names {} members, at most {ETCD_ENDPOINTS_MAX} are allowed", endpoints.len()));
        }
        check_namespace(namespace)?;
        Ok(Self { endpoints, namespace: namespace.to_owned(), reach: Reach::default() })
    }

    /// What the settings may not be together.
    ///
    /// # Errors
    /// [`Error::Misconfigured`].
    pub fn validate(&self) -> Result<()> {
        if self.reach.user.as_ref().is_some_and(|user| user.password.is_none()) {
            return Err(Error::Misconfigured(
                "store.password_file is missing, and etcd knows users by it: set it".into(),
            ));
        }
        let checked = self.reach.check(&self.endpoints).and_then(|()| check_namespace(&self.namespace));
        checked.map_err(Error::Misconfigured)
    }
}

/// As the URL has it: no user, no password, nothing that a log should not have.
impl fmt::Display for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd://{}/{}", self.endpoints.join(","), self.namespace)
    }
}
