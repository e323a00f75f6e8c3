//! What the failures of a connection and of a statement mean, and what to do about them.

use crate::{
    config::store::PostgresConfig,
    store::remote::{CERTIFICATES, why},
};
use tokio_postgres::{
    Error as PgError,
    error::{DbError, SqlState},
};

/// Of what a server says, so many characters are told.
const WORDS_MAX: usize = 300;

/// Why a server gave no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// There is no connection to a primary, and nothing was sent.
    Away(String),
    /// It was not done, and may be tried again.
    Undone(String),
    /// It may have been done.
    Unsettled(String),
    /// It was not, and would not be the next time.
    Refused(String),
}

impl Trouble {
    pub(super) fn map(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Away(what) => Self::Away(change(what)),
            Self::Undone(what) => Self::Undone(change(what)),
            Self::Unsettled(what) => Self::Unsettled(change(what)),
            Self::Refused(what) => Self::Refused(change(what)),
        }
    }

    pub(super) fn what(self) -> String {
        let (Self::Away(what) | Self::Undone(what) | Self::Unsettled(what) | Self::Refused(what)) = self;
        what
    }
}

/// What a server says, cut and without what a terminal would obey. Its details are left out: they show values.
fn words(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().take(WORDS_MAX).map(shown).collect()
}

fn said(error: &DbError) -> String {
    words(error.message())
}

fn user(config: &PostgresConfig) -> String {
    match &config.reach.user {
        Some(user) => format!("user {}", user.name),
        None => "this process's user".into(),
    }
}

/// Of one that was to be made: nothing but who asks was sent.
pub(super) fn of_connection(error: &PgError, config: &PostgresConfig) -> Trouble {
    let (user, PostgresConfig { database, .. }) = (user(config), config);
    if let Some(error) = error.as_db_error() {
        let said = said(error);
        return match *error.code() {
            SqlState::INVALID_PASSWORD => Trouble::Refused(format!(
                "it does not take {user} and the password: see store.user, and where the password is from"
            )),
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION => Trouble::Refused(format!(
                "it does not let {user} in ({said}): see store.user, store.cert and store.tls, and its pg_hba.conf"
            )),
            SqlState::INVALID_CATALOG_NAME => {
                Trouble::Refused(format!("there is no database {database}: make it, or name another one in store.url"))
            }
            SqlState::INSUFFICIENT_PRIVILEGE => Trouble::Refused(format!(
                "{user} may not use database {database} ({said}): GRANT CONNECT ON DATABASE to that user"
            )),
            SqlState::PROTOCOL_VIOLATION => Trouble::Refused(said),
            SqlState::TOO_MANY_CONNECTIONS => {
                Trouble::Undone(format!("{said}: raise its max_connections, or put a pooler in between"))
            }
            _ => Trouble::Away(said),
        };
    }
    let (kind, why) = (error.to_string(), words(&why(error)));
    match why.as_str() {
        "password missing" => Trouble::Refused(format!(
            "it wants a password of {user}: set store.user, and store.password_file or store.password_env"
        )),
        "server does not support TLS" => {
            Trouble::Refused("it has no TLS: set ssl = on there, or to this machine store.tls to \"plaintext\"".into())
        }
        _ if why.contains("certificate") || why.contains("alert") => Trouble::Refused(format!("{why}; {CERTIFICATES}")),
        _ if kind.starts_with("authentication error") || kind.starts_with("invalid configuration") => {
            Trouble::Refused(why)
        }
        _ => Trouble::Away(why),
    }
}

/// Of a statement before the last one. What has the server's word undid the transaction.
pub(super) fn of_statement(error: &PgError, is_begin: bool, config: &PostgresConfig) -> Trouble {
    let Some(error) = error.as_db_error() else { return Trouble::Unsettled(words(&why(error))) };
    let (said, PostgresConfig { schema, .. }) = (said(error), config);
    match *error.code() {
        SqlState::INSUFFICIENT_PRIVILEGE => Trouble::Refused(format!(
            "{} may not do this ({said}): grant what the manual has of schema {schema}",
            user(config)
        )),
        SqlState::UNDEFINED_TABLE | SqlState::INVALID_SCHEMA_NAME | SqlState::UNDEFINED_COLUMN => {
            Trouble::Refused(format!("the store was removed from its schema {schema} ({said})"))
        }
        // Of what is made once.
        SqlState::DUPLICATE_SCHEMA | SqlState::DUPLICATE_TABLE | SqlState::UNIQUE_VIOLATION => Trouble::Refused(said),
        SqlState::DISK_FULL => Trouble::Refused(format!("{said}: nothing was written; make room there")),
        // A standby begins no transaction that could write.
        SqlState::FEATURE_NOT_SUPPORTED if is_begin => Trouble::Away(said),
        SqlState::READ_ONLY_SQL_TRANSACTION => Trouble::Away(said),
        // Of the protocol, of data, of what is not there, and of damage: each gets the same again.
        ref code if ["08", "0A", "22", "23", "42", "XX"].iter().any(|class| code.code().starts_with(class)) => {
            Trouble::Refused(said)
        }
        _ => Trouble::Undone(said),
    }
}

/// Of the last one, which may have been done but where the server says that it was a conflict.
pub(super) fn of_commit(error: &PgError) -> Trouble {
    match error.as_db_error() {
        Some(error)
            if [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(error.code()) =>
        {
            Trouble::Undone(said(error))
        }
        Some(error) => Trouble::Unsettled(said(error)),
        None => Trouble::Unsettled(words(&why(error))),
    }
}
