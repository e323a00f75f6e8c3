//! What the command ends with, so that a script can tell failures apart. The numbers never change their meaning.

use keyleash::{Corrupt, Error, drill};
use std::{fmt, io, path::Path};

/// Every exit status and when it comes; shown by `--help`.
pub(crate) const TABLE: [(u8, &str); 16] = [
    (0, "done"),
    (1, "input or output failed, or the process must be restarted"),
    (2, "usage, invalid or misconfigured: change the command or the set-up"),
    (3, "denied: the token says no; the owner of the key acts"),
    (4, "unreachable or lapsed: the token does not answer; nothing is lost, run it again later"),
    (5, "corrupt: bytes were damaged, moved, truncated or forged; restore from a copy"),
    (6, "not found"),
    (7, "exists already, or was changed by somebody else meanwhile"),
    (8, "the key store failed: locked by another process, disk full"),
    (9, "a drill measured that a promise does not hold"),
    (10, "a drill could not tell whether a promise holds: the machine was too busy; run it again"),
    (11, "forbidden: the caller has no grant for it; whoever has grant.write acts"),
    (12, "the trail cannot be written: full, unwritable, gone; nothing was done without it"),
    (129, "SIGHUP"),
    (130, "SIGINT (143: SIGTERM): nothing is left of an unfinished OUT"),
    (141, "standard output was closed before all was written"),
];

/// The table as text, for `--help`.
pub(crate) fn help() -> String {
    let mut help = String::from("Exit status:\n");
    for (code, meaning) in TABLE {
        help.push_str(&format!("  {code:>3}  {meaning}\n"));
    }
    help
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The library says why.
    Engine(Error),
    /// Reading or writing `what` failed.
    Io { what: String, error: io::Error },
    /// The command line cannot be right.
    Usage(String),
    /// A part of the work could not be done, and was left as it was; the status is that of the first error.
    Partial { what: String, code: u8 },
    /// A drill measured that promises do not hold; which ones.
    Broken(String),
    /// A drill could not tell whether promises hold; which ones.
    Inconclusive(String),
    /// Standard output was closed by its reader.
    Closed,
    /// A signal of this number asked to stop.
    Interrupted(u8),
}

impl Failure {
    pub(crate) fn io(what: impl fmt::Display, error: io::Error) -> Self {
        Self::Io { what: what.to_string(), error }
    }

    /// `what` was not done; the first error of those that say why decides the status.
    pub(crate) fn partial(what: String, first: Option<&Error>) -> Self {
        Self::Partial { what, code: first.map_or(1, code_of) }
    }

    /// For opening and reading a file that was named.
    pub(crate) fn input(path: &Path, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound(format!("{}: there is no such file", path.display())).into(),
            _ => Self::io(path.display(), error),
        }
    }

    /// Names the stream of which was only known that it was `role`.
    pub(crate) fn of_stream(self, role: &str, name: &str) -> Self {
        match self {
            Self::Io { what, error } if what == role => Self::Io { what: format!("{role} {name}"), error },
            other => other,
        }
    }

    /// For writing to standard output, whose reader may go away.
    pub(crate) fn stdout(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::io("standard output", error),
        }
    }

    /// A damaged sealed file.
    pub(crate) fn file(what: impl Into<String>) -> Self {
        Self::Engine(Corrupt::File(what.into()).into())
    }

    /// One word, for `--json`.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Engine(error) => match error {
                Error::Denied(_) => "denied",
                Error::Forbidden(_) => "forbidden",
                Error::Lapsed(_) => "lapsed",
                Error::Unreachable(_) => "unreachable",
                Error::Cold { .. } => "cold",
                Error::Corrupt(_) => "corrupt",
                Error::NotFound(_) => "not-found",
                Error::Exists(_) => "exists",
                Error::Conflict(_) => "conflict",
                Error::Invalid(_) | Error::Exhausted(_) | Error::TooLong { .. } | Error::NotDeleted(_) => "invalid",
                Error::Misconfigured(_) => "misconfigured",
                Error::Store(_) => "store",
                Error::Trail(_) => "trail",
                Error::Fatal(_) => "fatal",
                Error::Closed => "closed",
                _ => "other",
            },
            Self::Io { .. } => "io",
            Self::Usage(_) => "usage",
            Self::Partial { .. } => "partial",
            Self::Broken(_) => "broken",
            Self::Inconclusive(_) => "inconclusive",
            Self::Closed => "closed",
            Self::Interrupted(_) => "interrupted",
        }
    }

    /// The exit status; one of [`TABLE`].
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Engine(error) => code_of(error),
            Self::Io { .. } => 1,
            Self::Usage(_) => 2,
            Self::Partial { code, .. } => *code,
            Self::Broken(_) => 9,
            Self::Inconclusive(_) => 10,
            Self::Closed => 141,
            Self::Interrupted(signal) => signal.saturating_add(128),
        }
    }
}

fn code_of(error: &Error) -> u8 {
    match error {
        Error::Invalid(_) | Error::Exhausted(_) | Error::TooLong { .. } | Error::NotDeleted(_) => 2,
        Error::Misconfigured(_) => 2,
        Error::Denied(_) => 3,
        Error::Unreachable(_) | Error::Lapsed(_) => 4,
        Error::Corrupt(_) => 5,
        Error::NotFound(_) => 6,
        Error::Exists(_) | Error::Conflict(_) => 7,
        Error::Store(_) => 8,
        Error::Forbidden(_) => 11,
        Error::Trail(_) => 12,
        _ => 1,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Engine(error) => f.write_str(&ended(error)),
            Self::Io { what, error } => write!(f, "{what}: {error}"),
            Self::Usage(what) | Self::Partial { what, .. } | Self::Broken(what) | Self::Inconclusive(what) => {
                f.write_str(what)
            }
            Self::Closed => f.write_str("standard output was closed before all was written"),
            Self::Interrupted(signal) => write!(f, "stopped by signal {signal}"),
        }
    }
}

/// In the words of a command that has ended: a service tries again by itself, and this does not.
pub(crate) fn ended(error: impl fmt::Display) -> String {
    const SAID: [&str; 3] =
        ["keyleash tries again by itself", "keyleash looks again by itself", "it tries again by itself"];
    SAID.iter().fold(error.to_string(), |text, said| text.replace(said, "then run this again"))
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

impl From<drill::Error> for Failure {
    fn from(error: drill::Error) -> Self {
        match error {
            drill::Error::Engine(error) => Self::Engine(error),
            drill::Error::Io { what, error, .. } => Self::Io { what, error },
            other => Self::io("the drill", io::Error::other(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyleash::{
        access::{Actions, Grant, Operation, Operations, Pattern, Policy},
        engine::Judge,
        name::{AccountId, CallerId, GrantId},
        store::memory::MemoryStore,
        token::{TokenError, Verdict},
    };
    use std::{collections::BTreeSet, sync::Arc};

    /// By name, as Rust writes it.
    fn kinds<'a>(errors: impl Iterator<Item = &'a Error>) -> BTreeSet<String> {
        let name = |error| format!("{error:?}").split(|char: char| !char.is_alphanumeric()).next().unwrap().to_owned();
        errors.map(name).collect()
    }

    /// No match here is refused for a kind that it lacks: other packages may not count on there being no others.
    fn kinds_of_the_library() -> BTreeSet<String> {
        let (_, kinds) = include_str!("../../error.rs").split_once("pub enum Error {").unwrap();
        let (kinds, _) = kinds.split_once("\n}").unwrap();
        let begins = kinds
            .lines()
            .filter_map(|line| line.strip_prefix("    "))
            .filter(|line| line.starts_with(char::is_uppercase));
        begins.map(|line| line.split(|char: char| !char.is_alphanumeric()).next().unwrap().to_owned()).collect()
    }

    #[test]
    fn denied_unreachable_corrupt_and_the_rest_end_with_statuses_of_their_own() {
        let from = |verdict| Error::from(TokenError::new(verdict, "test", "", ""));
        let Error::Unreachable(refusal) = from(Verdict::Unreachable) else { panic!("a silence") };
        let grant = Grant {
            id: GrantId::new("g").unwrap(),
            callers: Pattern::new("a").unwrap(),
            keks: Pattern::all(),
            accounts: Pattern::all(),
            actions: Actions::Operations(Operations::ALL),
        };
        let policy = Policy::new(vec![], vec![grant]).unwrap();
        let judged = async {
            let judge = Judge::new(Arc::new(MemoryStore::new()), &policy, CallerId::new("b").unwrap()).await;
            judge.unwrap().permit(Operation::Get, None, None).await.unwrap_err()
        };
        let forbidden = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(judged);
        let cases = [
            (Error::Fatal("".into()), 1, "fatal"),
            (Error::Invalid("".into()), 2, "invalid"),
            (Error::Exhausted("".into()), 2, "invalid"),
            (Error::NotDeleted("".into()), 2, "invalid"),
            (Error::TooLong { what: "", len: 2, max: 1, remedy: "" }, 2, "invalid"),
            (Error::Misconfigured("".into()), 2, "misconfigured"),
            (from(Verdict::Denied), 3, "denied"),
            (forbidden, 11, "forbidden"),
            (from(Verdict::Unreachable), 4, "unreachable"),
            (Error::Lapsed(refusal), 4, "lapsed"),
            (Corrupt::Block.into(), 5, "corrupt"),
            (Error::NotFound("".into()), 6, "not-found"),
            (Error::Exists("".into()), 7, "exists"),
            (Error::Conflict("".into()), 7, "conflict"),
            (Error::Store("".into()), 8, "store"),
            (Error::Trail("".into()), 12, "trail"),
            (Error::Cold { account: AccountId::new("a").unwrap() }, 1, "cold"),
            (Error::Closed, 1, "closed"),
        ];
        assert_eq!(kinds(cases.iter().map(|(error, ..)| error)), kinds_of_the_library(), "a case for each kind");
        for (error, code, kind) in cases {
            let failure = Failure::from(error);
            assert_eq!((failure.code(), failure.kind()), (code, kind));
            assert!(TABLE.iter().any(|(listed, _)| *listed == code), "{code} is not in the table");
        }
        assert_eq!(Failure::Interrupted(15).code(), 143);
    }
}
