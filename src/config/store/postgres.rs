//! The key store in PostgreSQL.

use super::{Reach, servers_of};
use crate::error::{Error, Result};
use std::fmt;

/// Most servers of a database that are named.
pub const POSTGRES_SERVERS_MAX: usize = 16;
/// Longest name of a database or a schema, in bytes: that of PostgreSQL.
pub const POSTGRES_NAME_BYTES_MAX: usize = 63;

/// A key store in a database of PostgreSQL.
///
/// ```
/// use keyleash::config::store::PostgresConfig;
///
/// let config = PostgresConfig::new("postgres://a.example.org:5432,b.example.org:5432/vault/keyleash")?;
/// assert_eq!((config.servers.len(), config.database.as_str(), config.schema.as_str()), (2, "vault", "keyleash"));
/// # Ok::<_, keyleash::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PostgresConfig {
    /// The servers, `host:port` each, 1 to [`POSTGRES_SERVERS_MAX`]: the primary, and those that may become it.
    pub servers: Vec<String>,
    /// The database.
    pub database: String,
    /// The schema, which is the store's own.
    pub schema: String,
    /// How they are reached. A user without a password is one that the server knows by the certificate, or without asking.
    pub reach: Reach,
}

impl PostgresConfig {
    /// Takes an URL, `postgres://HOST:PORT,HOST:PORT/DATABASE/SCHEMA`; all else as where nothing is said.
    ///
    /// # Errors
    /// [`Error::Misconfigured`], naming what is wrong with it, and never a password in it.
    pub fn new(url: &str) -> Result<Self> {
        Self::parse(url).map_err(Error::Misconfigured)
    }

    /// Its errors do not show the URL.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        const FORM: &str = "write it as in \"postgres://a.example.org:5432,b.example.org:5432/vault/keyleash\"";
        let rest = ["postgres://", "postgresql://"].iter().find_map(|scheme| url.strip_prefix(scheme));
        let rest = rest.ok_or_else(|| format!("is no URL of a PostgreSQL: {FORM}"))?;
        let (servers, behind) = servers_of(rest, FORM)?;
        if servers.len() > POSTGRES_SERVERS_MAX {
            return Err(format!("names {} servers, at most {POSTGRES_SERVERS_MAX} are allowed", servers.len()));
        }
        let (database, schema) = behind.split_once('/').unwrap_or((behind, ""));
        check_database(database)?;
        check_schema(schema)?;
        Ok(Self { servers, database: database.to_owned(), schema: schema.to_owned(), reach: Reach::default() })
    }

    /// What the settings may not be together.
    ///
    /// # Errors
    /// [`Error::Misconfigured`].
    pub fn validate(&self) -> Result<()> {
        let checked = self.reach.check(&self.servers).and_then(|()| check_database(&self.database));
        checked.and_then(|()| check_schema(&self.schema)).map_err(Error::Misconfigured)
    }
}

/// As the URL has it: no user, no password, nothing that a log should not have.
impl fmt::Display for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres://{}/{}/{}", self.servers.join(","), self.database, self.schema)
    }
}

fn check_database(database: &str) -> Result<(), String> {
    match database {
        "" => Err("names no database: add one, and a schema, as in \"/vault/keyleash\"".into()),
        long if long.len() > POSTGRES_NAME_BYTES_MAX => {
            Err(format!("database: at most {POSTGRES_NAME_BYTES_MAX} bytes"))
        }
        name if name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) => Ok(()),
        other => Err(format!("database {other:?}: its name is letters, digits, '.', '_' and '-' here")),
    }
}

/// It stands in the text of statements.
fn check_schema(schema: &str) -> Result<(), String> {
    let is_name = schema.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && schema.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    match schema {
        "" => {
            Err("names no schema, which is the store's own: add one behind the database, as in \"/vault/keyleash\""
                .into())
        }
        long if long.len() > POSTGRES_NAME_BYTES_MAX => Err(format!("schema: at most {POSTGRES_NAME_BYTES_MAX} bytes")),
        "information_schema" => Err("schema \"information_schema\" is PostgreSQL's: use one of the store's own".into()),
        system if system.starts_with("pg_") => {
            Err(format!("schema {system:?} is PostgreSQL's: use one of the store's own"))
        }
        _ if is_name => Ok(()),
        other => {
            Err(format!("schema {other:?}: its name is lower-case letters, digits and '_', and begins with no digit"))
        }
    }
}
