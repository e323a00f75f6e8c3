//! The key store in a bucket of an object store that speaks S3.

use super::{Reach, StoreTls, check_bare, check_namespace, check_server};
use crate::error::{Error, Result};
use std::fmt;

/// Longest name of a bucket, in bytes: that of S3.
pub const BUCKET_NAME_BYTES_MAX: usize = 63;
/// Shortest.
const BUCKET_NAME_BYTES_MIN: usize = 3;
/// What the names of S3's directory buckets end with.
const DIRECTORY_BUCKETS: [&str; 2] = ["--x-s3", "--xa-s3"];

/// A key store in a bucket.
///
/// ```
/// use keyleash::config::store::BucketConfig;
///
/// let config = BucketConfig::new("s3://example-vault/keyleash/production")?;
/// assert_eq!((config.bucket.as_str(), config.namespace.as_str()), ("example-vault", "keyleash/production"));
/// # Ok::<_, keyleash::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BucketConfig {
    /// The bucket.
    pub bucket: String,
    /// What the names of all objects of the store begin with, up to a slash.
    pub namespace: String,
    /// How it is reached: where, as whom. The user is the id of an access key, and its password the secret, with which requests are signed;
    /// without a user it is what AWS's programs take from the environment, or the role of the machine.
    pub reach: Reach,
}

impl BucketConfig {
    /// Takes an URL, `s3://BUCKET/NAMESPACE`; all else as where nothing is said.
    ///
    /// # Errors
    /// [`Error::Misconfigured`], naming what is wrong with it, and never a password in it.
    pub fn new(url: &str) -> Result<Self> {
        Self::parse(url).map_err(Error::Misconfigured)
    }

    /// Its errors do not show the URL.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        const FORM: &str = "write it as in \"s3://example-vault/keyleash\"";
        let rest = url.strip_prefix("s3://").ok_or_else(|| format!("is no URL of a bucket: {FORM}"))?;
        check_bare(rest, FORM)?;
        let (bucket, namespace) = rest.split_once('/').ok_or_else(|| format!("names no namespace: {FORM}"))?;
        check_bucket(bucket)?;
        check_namespace(namespace)?;
        Ok(Self { bucket: bucket.to_owned(), namespace: namespace.to_owned(), reach: Reach::default() })
    }

    /// What the settings may not be together.
    ///
    /// # Errors
    /// [`Error::Misconfigured`].
    pub fn validate(&self) -> Result<()> {
        self.check().map_err(Error::Misconfigured)
    }

    fn check(&self) -> Result<(), String> {
        check_bucket(&self.bucket)?;
        check_namespace(&self.namespace)?;
        let Reach { identity, user, endpoint, region, .. } = &self.reach;
        if user.as_ref().is_some_and(|user| user.password.is_none()) {
            return Err("store.password_file is missing, and requests are signed with it: set it to the file of the secret access key".into());
        }
        if identity.is_some() {
            return Err(
                "store.cert is set, and a bucket knows nobody by a certificate: leave store.cert and store.key out"
                    .into(),
            );
        }
        if region.as_ref().is_some_and(|region| {
            region.is_empty() || region.len() > 64 || !region.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        }) {
            return Err("store.region is no region: write it as in \"eu-central-1\"".into());
        }
        let server = match endpoint {
            None => None,
            Some(endpoint) => Some(server_of(endpoint, self.reach.tls)?),
        };
        // A password is sent to nobody: it signs.
        let reach = Reach { user: None, ..self.reach.clone() };
        reach.check(&[server.unwrap_or_else(|| "s3.amazonaws.com:443".into())])
    }
}

/// What connects wants to know.
#[cfg(feature = "bucket")]
impl BucketConfig {
    /// Where the server is, as an URL without the bucket; `None` for AWS's of the region.
    pub(crate) fn endpoint_url(&self) -> Option<String> {
        let endpoint = self.reach.endpoint.as_deref()?;
        let scheme = if self.reach.tls == StoreTls::On { "https" } else { "http" };
        Some(format!(
            "{scheme}://{}",
            endpoint.split_once("://").map_or(endpoint, |(_, server)| server).trim_end_matches('/')
        ))
    }

    /// Whether the way to the server is without TLS.
    pub(crate) fn is_plain(&self) -> bool {
        self.reach.tls != StoreTls::On
    }
}

/// As the URL has it: no user, no password, nothing that a log should not have.
impl fmt::Display for BucketConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.namespace)
    }
}

/// `host:port` of an endpoint, with the port that it has where none is named.
fn server_of(endpoint: &str, tls: StoreTls) -> Result<String, String> {
    const FORM: &str = "write it as in \"s3.example.org:9000\", or with \"https://\" before it";
    let wrong = |what: String| format!("store.endpoint {what}");
    check_bare(endpoint, FORM).map_err(wrong)?;
    let (scheme, server) = endpoint.split_once("://").map_or((None, endpoint), |(scheme, rest)| (Some(scheme), rest));
    match (scheme, tls) {
        (None, _)
        | (Some("https"), StoreTls::On)
        | (Some("http"), StoreTls::Plaintext | StoreTls::PlaintextAnywhere) => {}
        (Some("http"), _) => {
            return Err(
                "store.endpoint is http, and TLS is spoken: use https, or to this machine store.tls = \"plaintext\""
                    .into(),
            );
        }
        (Some("https"), _) => {
            return Err("store.endpoint is https, and store.tls is plaintext: leave store.tls out".into());
        }
        (Some(_), _) => return Err(wrong(format!("is no http or https: {FORM}"))),
    }
    let server = server.trim_end_matches('/');
    let bare = server.rsplit(']').next().unwrap_or_default();
    let server = if bare.contains(':') {
        server.to_owned()
    } else {
        format!("{server}:{}", if tls == StoreTls::On { 443 } else { 80 })
    };
    check_server(&server, FORM).map_err(|what| wrong(format!(": {what}")))?;
    Ok(server)
}

fn check_bucket(bucket: &str) -> Result<(), String> {
    let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_name = bucket.chars().all(|c| is_end(c) || c == '-' || c == '.') && !bucket.contains("..");
    match bucket {
        "" => Err("names no bucket: add one, as in \"s3://example-vault/keyleash\"".into()),
        name if DIRECTORY_BUCKETS.iter().any(|end| name.ends_with(end)) => {
            Err(format!("bucket {name:?} is a directory bucket, which lists without order: use one of general purpose"))
        }
        name if !(BUCKET_NAME_BYTES_MIN..=BUCKET_NAME_BYTES_MAX).contains(&name.len()) => {
            Err(format!("bucket: its name has {BUCKET_NAME_BYTES_MIN} to {BUCKET_NAME_BYTES_MAX} bytes"))
        }
        name if is_name && name.starts_with(is_end) && name.ends_with(is_end) => Ok(()),
        other => Err(format!("bucket {other:?}: its name is lower-case letters, digits, '.' and '-'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::store::{PasswordSource, StoreUser};

    fn told(change: impl FnOnce(&mut BucketConfig)) -> String {
        let mut config = BucketConfig::new("s3://vault/a").unwrap();
        change(&mut config);
        config.validate().map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn what_is_no_bucket_is_refused_by_what_is_wrong_with_it_and_shows_no_password() {
        for (url, said) in [
            ("s3://vault", "names no namespace"),
            ("s3://vault/", "names no namespace"),
            ("s3:///a", "names no bucket"),
            ("s3://Vault/a", "lower-case"),
            ("s3://-vault/a", "lower-case"),
            ("s3://ab/a", "3 to 63"),
            ("s3://vault--use1-az4--x-s3/a", "directory bucket"),
            ("s3://vault/a//b", "with a slash between two"),
            ("s3://key:hunter2@vault/a", "a password does not stand in an URL"),
            ("s3://vault/a?region=x", "set by keys of [store]"),
        ] {
            let error = BucketConfig::new(url).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("hunter2"), "{url}: {error}");
        }
    }

    #[test]
    fn an_endpoint_is_reached_by_tls_but_on_this_machine() {
        let at = |endpoint: &str, tls| {
            told(|config| {
                config.reach.endpoint = Some(endpoint.into());
                config.reach.tls = tls;
            })
        };
        for (endpoint, tls) in [
            ("s3.example.org", StoreTls::On),
            ("https://s3.example.org:9000/", StoreTls::On),
            ("http://127.0.0.1:9000", StoreTls::Plaintext),
            ("[::1]:9000", StoreTls::Plaintext),
            ("s3.example.org:9000", StoreTls::PlaintextAnywhere),
        ] {
            assert_eq!(at(endpoint, tls), "", "{endpoint}");
        }
        for (endpoint, tls, said) in [
            ("http://s3.example.org:9000", StoreTls::On, "TLS is spoken"),
            ("https://127.0.0.1:9000", StoreTls::Plaintext, "store.tls is plaintext"),
            ("http://s3.example.org:9000", StoreTls::Plaintext, "is not this machine"),
            ("ftp://s3.example.org", StoreTls::On, "no http or https"),
            ("https://s3.example.org/bucket", StoreTls::On, "no host and port"),
            ("https://me:hunter2@s3.example.org", StoreTls::On, "a password does not stand"),
            ("s3.example.org:0", StoreTls::On, "no host and port"),
            ("", StoreTls::On, "no host and port"),
        ] {
            let error = at(endpoint, tls);
            assert!(
                error.contains(said) && error.contains("store.") && !error.contains("hunter2"),
                "{endpoint}: {error}"
            );
        }
        // AWS's own are elsewhere.
        assert!(told(|config| config.reach.tls = StoreTls::Plaintext).contains("is not this machine"));
    }

    #[test]
    fn a_user_has_a_secret_which_is_sent_to_nobody_and_nobody_has_a_certificate() {
        let user = |password| Some(StoreUser { name: "AKID".into(), password });
        assert!(told(|config| config.reach.user = user(None)).contains("store.password_file is missing"));
        let secret = Some(PasswordSource::Env("SECRET".into()));
        assert_eq!(
            told(|config| {
                config.reach.user = user(secret);
                config.reach.tls = StoreTls::PlaintextAnywhere;
            }),
            ""
        );
        assert!(told(|config| config.reach.identity = Some(("c".into(), "k".into()))).contains("store.cert"));
        assert!(told(|config| config.reach.region = Some("eu central".into())).contains("store.region"));
    }
}
