//! Where the key store is: `[store]`. Read by every build; what connects is in [`store`](crate::store).

pub use self::{
    bucket::{BUCKET_NAME_BYTES_MAX, BucketConfig},
    etcd::{ETCD_ENDPOINTS_MAX, EtcdConfig},
    postgres::{POSTGRES_NAME_BYTES_MAX, POSTGRES_SERVERS_MAX, PostgresConfig},
};
use super::{
    STORE_DEFAULT,
    given::{bad, is_this_machine},
};
use crate::error::{Error, Result};
use std::{
    ffi::OsStr,
    fmt,
    net::Ipv6Addr,
    path::{Path, PathBuf},
    time::Duration,
};

mod bucket;
mod etcd;
mod postgres;

/// Longest namespace, in bytes.
pub const NAMESPACE_BYTES_MAX: usize = 128;

/// Longest that a call waits for a server, all that are named asked, where nothing is said: less than an engine waits for its store.
pub const STORE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(4);
/// Shortest that one can be given.
pub const STORE_TIMEOUT_MIN: Duration = Duration::from_millis(100);
/// Longest.
pub const STORE_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Where the key store is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreConfig {
    /// A file of redb.
    Redb(PathBuf),
    /// An etcd cluster; needs the feature `etcd`.
    Etcd(Box<EtcdConfig>),
    /// A database of PostgreSQL; needs the feature `postgres`.
    Postgres(Box<PostgresConfig>),
    /// A bucket of an object store; needs the feature `bucket`.
    Bucket(Box<BucketConfig>),
}

impl StoreConfig {
    /// The file, where it is in one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Redb(path) => Some(path),
            Self::Etcd(_) | Self::Postgres(_) | Self::Bucket(_) => None,
        }
    }

    /// A path, or an URL. What is wrong is said without it.
    fn parse(place: &Path) -> Result<Self, String> {
        let Some((scheme, rest)) = scheme_of(place.as_os_str()) else { return Ok(Self::Redb(place.to_owned())) };
        match scheme {
            "redb" if rest.is_empty() => Err("redb: names no file".into()),
            "redb" => Ok(Self::Redb(rest.into())),
            "etcd" => Ok(Self::Etcd(Box::new(EtcdConfig::parse(&format!("{scheme}:{rest}"))?))),
            "postgres" | "postgresql" => {
                Ok(Self::Postgres(Box::new(PostgresConfig::parse(&format!("{scheme}:{rest}"))?)))
            }
            "s3" => Ok(Self::Bucket(Box::new(BucketConfig::parse(&format!("{scheme}:{rest}"))?))),
            other => Err(format!(
                "there is no store of the kind {other:?}: use a file, redb:FILE, etcd://HOST:PORT/NAMESPACE, \
                 postgres://HOST:PORT/DATABASE/SCHEMA, or s3://BUCKET/NAMESPACE; a file whose name has a colon is written with its directory, as in \"./a:b\""
            )),
        }
    }
}

/// A path, or an URL without anything that a log should not have.
impl fmt::Display for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redb(path) => path.display().fmt(f),
            Self::Etcd(etcd) => etcd.fmt(f),
            Self::Postgres(postgres) => postgres.fmt(f),
            Self::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

/// What stands before the first colon, and what behind, of a text that is no path.
pub(super) fn scheme_of(text: &OsStr) -> Option<(&str, &str)> {
    let (scheme, rest) = text.to_str()?.split_once(':')?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+' || c == '-');
    is_scheme.then_some((scheme, rest))
}

/// An URL without what stands before an `@`.
pub(super) fn shown_url(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, rest)) => format!("(hidden)@{rest}"),
        None => url.to_owned(),
    }
}

/// What a configuration says of stores.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StoreItems {
    place: Option<StoreConfig>,
    tls: Option<StoreTls>,
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) user: Option<String>,
    password: Option<PasswordSource>,
    timeout: Option<Duration>,
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
}

impl StoreItems {
    pub(super) fn set_place(&mut self, place: &Path, origin: &str) -> Result<()> {
        if self.place.is_some() {
            return Err(bad(origin, "the store is named twice: use one of path and url"));
        }
        self.place = Some(StoreConfig::parse(place).map_err(|what| bad(origin, &what))?);
        Ok(())
    }

    pub(super) fn set_tls(&mut self, text: &str, origin: &str) -> Result<()> {
        let Some((_, tls)) = StoreTls::ALL.into_iter().find(|(name, _)| *name == text) else {
            return Err(bad(origin, &format!("is {text:?}; use \"on\", or \"plaintext\" to this machine")));
        };
        self.tls = Some(tls);
        Ok(())
    }

    pub(super) fn set_password(&mut self, password: PasswordSource, origin: &str) -> Result<()> {
        if self.password.is_some() {
            return Err(bad(origin, "the password is given twice: use one of password_file and password_env"));
        }
        self.password = Some(password);
        Ok(())
    }

    pub(super) fn set_timeout(&mut self, timeout: Duration, origin: &str) -> Result<()> {
        if !(STORE_TIMEOUT_MIN..=STORE_TIMEOUT_MAX).contains(&timeout) {
            return Err(bad(origin, "allowed is 100ms to 60s"));
        }
        self.timeout = Some(timeout);
        Ok(())
    }

    pub(super) fn is_password_variable(&self, name: &str) -> bool {
        self.password == Some(PasswordSource::Env(name.into()))
    }

    /// What this says, and where it says nothing, what `below` says.
    pub(super) fn over(self, below: Self) -> Self {
        Self {
            place: self.place.or(below.place),
            tls: self.tls.or(below.tls),
            ca: self.ca.or(below.ca),
            cert: self.cert.or(below.cert),
            key: self.key.or(below.key),
            user: self.user.or(below.user),
            password: self.password.or(below.password),
            timeout: self.timeout.or(below.timeout),
            endpoint: self.endpoint.or(below.endpoint),
            region: self.region.or(below.region),
        }
    }

    /// The store, and how others are reached.
    pub(super) fn resolve(self) -> Result<(StoreConfig, Reach)> {
        let must = |key: &str| Error::Misconfigured(format!("store.{key} is missing: set it"));
        let identity = match (self.cert, self.key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, Some(_)) => return Err(must("cert")),
            (Some(_), None) => return Err(must("key")),
        };
        let user = match (self.user, self.password) {
            (None, None) => None,
            (Some(name), password) => Some(StoreUser { name, password }),
            (None, Some(_)) => return Err(must("user")),
        };
        let (tls, timeout) = (self.tls.unwrap_or_default(), self.timeout.unwrap_or(STORE_TIMEOUT_DEFAULT));
        let (endpoint, region) = (self.endpoint, self.region);
        let reach = Reach { tls, ca: self.ca, identity, user, timeout, endpoint, region };
        let place = self.place.unwrap_or_else(|| StoreConfig::Redb(STORE_DEFAULT.into()));
        Ok((reach.set(place)?, reach))
    }
}

/// How a store is reached that is on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reach {
    /// How the way to it is kept.
    pub tls: StoreTls,
    /// The certificates, PEM, that those of the servers are known by; `None` for those of the platform.
    pub ca: Option<PathBuf>,
    /// The client's own certificate and its key, PEM, for a server that asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Who the server takes requests from; `None` where it asks nobody, or goes by the certificate.
    pub user: Option<StoreUser>,
    /// Longest that a call waits, [`STORE_TIMEOUT_MIN`] to [`STORE_TIMEOUT_MAX`].
    pub timeout: Duration,
    /// Where a bucket is, as `host`, `host:port`, or that with `https://` or `http://` before it; `None` for AWS. No other store has one.
    pub endpoint: Option<String>,
    /// The region of a bucket, with which requests to it are signed; `None` for what the environment says (`AWS_REGION`,
    /// `AWS_DEFAULT_REGION`), or at an endpoint of one's own `us-east-1`. No other store has one.
    pub region: Option<String>,
}

/// As where nothing is said.
impl Default for Reach {
    fn default() -> Self {
        let timeout = STORE_TIMEOUT_DEFAULT;
        Self { tls: StoreTls::On, ca: None, identity: None, user: None, timeout, endpoint: None, region: None }
    }
}

impl Reach {
    pub(super) fn at(&self, place: &Path) -> Result<StoreConfig> {
        // Nothing of an URL is shown that may have a password in it.
        let origin =
            scheme_of(place.as_os_str()).map_or_else(|| "store".into(), |(scheme, _)| format!("store {scheme}:"));
        self.set(StoreConfig::parse(place).map_err(|what| bad(&origin, &what))?)
    }

    fn set(&self, mut place: StoreConfig) -> Result<StoreConfig> {
        match &mut place {
            StoreConfig::Redb(_) => {}
            StoreConfig::Etcd(etcd) => {
                etcd.reach = self.clone();
                etcd.validate()?;
            }
            StoreConfig::Postgres(postgres) => {
                postgres.reach = self.clone();
                postgres.validate()?;
            }
            StoreConfig::Bucket(bucket) => {
                bucket.reach = self.clone();
                bucket.validate()?;
            }
        }
        Ok(place)
    }

    /// What the settings may not be together, to servers of these names, `host:port` each.
    fn check(&self, servers: &[String]) -> Result<(), String> {
        let elsewhere = servers.iter().find(|server| !is_here(server));
        match (self.tls, elsewhere) {
            (StoreTls::Plaintext, Some(server)) => {
                return Err(format!(
                    "store.tls is \"plaintext\", and {server} is not this machine: leave it out, or where all that is in between is \
                     trusted use \"plaintext-anywhere\""
                ));
            }
            (StoreTls::PlaintextAnywhere, _) if self.user.as_ref().is_some_and(|user| user.password.is_some()) => {
                return Err("store.tls is \"plaintext-anywhere\", by which no password is sent: use TLS".into());
            }
            (StoreTls::Plaintext | StoreTls::PlaintextAnywhere, _) if self.ca.is_some() || self.identity.is_some() => {
                return Err("store.tls is plaintext, and store.ca or store.cert is set: leave store.tls out".into());
            }
            _ => {}
        }
        if !(STORE_TIMEOUT_MIN..=STORE_TIMEOUT_MAX).contains(&self.timeout) {
            return Err(format!("store.timeout is {}, allowed is 100ms to 60s", super::show(self.timeout)));
        }
        Ok(())
    }
}

/// The servers that an URL names, and what stands behind them and a slash. Its errors do not show the URL: somebody may have put a
/// password there.
fn servers_of<'a>(rest: &'a str, form: &str) -> Result<(Vec<String>, &'a str), String> {
    check_bare(rest, form)?;
    let (servers, behind) = rest.split_once('/').ok_or_else(|| format!("names no namespace: {form}"))?;
    let servers: Vec<_> = servers.split(',').map(str::to_owned).collect();
    servers.iter().try_for_each(|server| check_server(server, form))?;
    Ok((servers, behind))
}

/// Refuses what does not stand in an URL here.
fn check_bare(rest: &str, form: &str) -> Result<(), String> {
    if rest.contains('@') {
        return Err(
            "has a user in it: a password does not stand in an URL; use store.user, and store.password_file or \
                    store.password_env"
                .into(),
        );
    }
    if let Some(more) = rest.chars().find(|c| ['?', '#', '%'].contains(c) || c.is_whitespace() || c.is_control()) {
        return Err(format!("has {more:?} in it, which says nothing here: {form}; all else is set by keys of [store]"));
    }
    Ok(())
}

/// A `host:port`.
fn check_server(server: &str, form: &str) -> Result<(), String> {
    let (host, port) = server.rsplit_once(':').unwrap_or((server, ""));
    if host.is_empty() || host.contains('/') || !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(format!("member {server:?} is no host and port: {form}"));
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_name = |c: char| c.is_ascii_alphanumeric() || ['.', '-', '_'].contains(&c);
    if !bare.map_or_else(|| host.chars().all(is_name), |host| host.parse::<Ipv6Addr>().is_ok()) {
        return Err(format!("member {server:?} has no name or address of a host: an IPv6 address stands in brackets"));
    }
    Ok(())
}

fn check_namespace(namespace: &str) -> Result<(), String> {
    const FORM: &str = "a namespace is letters, digits, '.', '_' and '-', in parts with a slash between two";
    let is_part = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    match namespace {
        "" => Err("names no namespace, under which the store's keys stand: add one, as in \"/keyleash\"".into()),
        long if long.len() > NAMESPACE_BYTES_MAX => Err(format!("namespace: at most {NAMESPACE_BYTES_MAX} bytes")),
        parts if parts.split('/').all(is_part) => Ok(()),
        other => Err(format!("namespace {other:?}: {FORM}")),
    }
}

fn is_here(server: &str) -> bool {
    is_this_machine(server.rsplit_once(':').map_or(server, |(host, _)| host).trim_matches(['[', ']']))
}

/// How the way to a server is kept from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoreTls {
    /// TLS.
    #[default]
    On,
    /// None, to this machine alone.
    Plaintext,
    /// None, to any machine, and never with a password: whoever is in between reads wrapped AEKs, and decides what the store says.
    PlaintextAnywhere,
}

impl StoreTls {
    /// Every one, by its name in a configuration.
    pub const ALL: [(&str, Self); 3] =
        [("on", Self::On), ("plaintext", Self::Plaintext), ("plaintext-anywhere", Self::PlaintextAnywhere)];
}

/// Where a password comes from. Never the password itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordSource {
    /// A file of one line.
    File(PathBuf),
    /// An environment variable of this name.
    Env(String),
}

/// Who a server takes requests from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreUser {
    /// The name.
    pub name: String,
    /// Where the password comes from; read for each connection. `None` where the server knows the user by something else.
    pub password: Option<PasswordSource>,
}
