//! The seam of the trail: what was done with keys, by whom, and how it ended. Who keeps it stands above the engine, which knows this
//! trait alone.
//!
//! A [`Record`] is made of names and numbers: no field of it can hold a key, a value of a secret, or an error's text. There are two kinds.
//! What an *administrative* call changes is written before it is done ([`Outcome::Asked`]) and once it ended, with one [`Correlation`], and
//! [`Trail::write`] is waited for: without the first of the two nothing is done, unless it only takes the use of something away. What happens to *data* (an account is opened, a key
//! unwrapped, a lease denied) is told by [`Trail::note`], which nobody waits for; seals and opens are summed by handle and minute
//! ([`Deed::Blocks`]).

use crate::{
    access::{Grant, Role},
    error::{Error, Result},
    name::{AccountId, CallerId, GrantId, KekName, RoleName, SecretName, TokenName, Whence},
};
use async_trait::async_trait;
use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// Bytes of a [`Correlation`].
pub const CORRELATION_BYTES: usize = 16;
/// Where the half of an engine begins in one of what it says of itself; before it stands its process.
pub(crate) const ENGINE_AT: usize = CORRELATION_BYTES / 2;
/// Longest return code of a token that is kept, in bytes: the longest of PKCS#11 has 43.
const CODE_BYTES_MAX: usize = 64;

/// Keeps records of what was done with keys. Shared by engines and commands of a process; each method may be called at any time and from
/// any thread.
#[async_trait]
pub trait Trail: Send + Sync + fmt::Debug {
    /// Takes a record of what happened to data. Never waits: where its queue, which has a bound, is full, the record is lost, and the
    /// trail is broken.
    fn note(&self, record: Record) -> Noted;

    /// Takes a record of an administrative call. It is durable when this returns, and so is all that was taken before it. Where it cannot be
    /// written, one of what was only asked for is forgotten; that of an end is kept until it can be, or counted as lost.
    ///
    /// # Errors
    /// [`Error::Trail`], with the remedy: whatever was asked for is not to be begun, unless it only takes something away.
    async fn write(&self, record: Record) -> Result<()>;

    /// Makes durable what was taken so far.
    ///
    /// # Errors
    /// [`Error::Trail`]: some of it is not.
    async fn flush(&self) -> Result<()>;

    /// Whether data may be sealed, opened and read. Asked about once a second, as an account is opened or a secret read, and where a call
    /// could not be written; at once.
    ///
    /// # Errors
    /// [`Error::Trail`], with the remedy, where what is done could not be kept, and its operator wants it to be refused then.
    fn serves(&self) -> Result<()>;

    /// False where so much waits that who can wait for it, by [`Trail::flush`], better does before more comes. At once.
    fn has_room(&self) -> bool {
        true
    }

    /// Why what is done cannot be kept, whatever its operator wants of data then; `None` while it can. Asked about once a second; at once.
    fn trouble(&self) -> Option<String> {
        self.serves().err().map(|error| error.to_string())
    }

    /// How it stands, for metrics; `None` where it does not say. At once.
    fn standing(&self) -> Option<Standing> {
        None
    }
}

/// What became of a record that nobody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum Noted {
    /// It was taken, and will be written.
    Taken,
    /// It is lost, and counted, for this reason; whatever it is of goes on.
    Lost(Error),
    /// It is lost, and counted, for this reason; whatever it is of is to be refused, and nothing of it given out.
    Refused(Error),
}

/// How a trail stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing {
    /// How long the oldest record has waited that is not durable yet; zero where all are.
    pub lag: Duration,
    /// Records that wait to be durable.
    pub waiting: u64,
    /// Records that were lost since it was opened.
    pub lost: u64,
    /// It cannot be kept.
    pub is_broken: bool,
}

/// What was done, asked for, refused or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// When, in milliseconds since 1970 by the wall clock, which may be set back.
    pub unix_ms: u64,
    /// What.
    pub deed: Deed,
    /// How it ended.
    pub outcome: Outcome,
    /// To what.
    pub on: Subject,
    /// By whom.
    pub by: Asker,
    /// How long it took, where that was measured.
    pub took: Option<Duration>,
    /// How many blocks of how many bytes, of [`Deed::Blocks`].
    pub sums: Option<Sums>,
}

impl Record {
    /// Of a deed on nothing that has a name.
    pub fn new(unix_ms: u64, deed: Deed, outcome: Outcome, by: Asker) -> Self {
        Self { unix_ms, deed, outcome, on: Subject::default(), by, took: None, sums: None }
    }
}

macro_rules! deeds {
    ($($(#[$doc:meta])* $deed:ident,)+) => {
        /// What was done. A name never changes its meaning, and one that was used is used for nothing else.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Deed {
            $($(#[$doc])* $deed,)+
        }

        impl Deed {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$deed,)+];

            /// As it stands in the trail: `KekCreate`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$deed => stringify!($deed),)+
                }
            }
        }
    };
}

deeds! {
    /// A KEK was made.
    KekCreate,
    /// A KEK got its next version, of which the token made the key.
    KekRotate,
    /// A KEK got its next version, a key that an operator had made.
    KekAdopt,
    /// What older versions of a KEK wrap was moved to its current one.
    KekRewrap,
    /// A version of a KEK was retired.
    KekRetire,
    /// It was said when a KEK is due to be rotated.
    KekPolicySet,
    /// It was written down that there is a backup of a version of a KEK.
    KekBackupAttest,
    /// The use of a KEK was taken away in the token.
    KekDisable,
    /// The use of a KEK was given back in the token.
    KekEnable,
    /// An account was made.
    AccountCreate,
    /// An account got its next AEK version.
    AccountRotate,
    /// AEK versions of an account were destroyed.
    AeksRetire,
    /// An account was moved to another KEK, [`Subject::kek`].
    AccountMove,
    /// An account was deleted.
    AccountDelete,
    /// An account was brought back.
    AccountUndelete,
    /// All that opens the blocks of an account was destroyed.
    AccountPurge,
    /// It was said when an account's AEK is due to be rotated.
    AekPolicySet,
    /// The keys of an account were taken out of memory.
    AccountEvict,
    /// The keys of all accounts under a KEK were taken out of memory.
    KekWipe,
    /// A grant was given.
    GrantAdded,
    /// A grant was taken away.
    GrantRemoved,
    /// A role was made or changed.
    RoleSet,
    /// A role was removed.
    RoleRemoved,
    /// What a token can do was tried, with a key made for it.
    TokenProbe,
    /// The scheduled work was done.
    ScheduleRun,
    /// A rehearsal was played.
    DrillPlay,
    /// A secret got a value.
    SecretSet,
    /// A version of a secret was switched on or off.
    SecretSwitch,
    /// A hook made a new value of a secret.
    SecretRotate,
    /// It was said when and by which hook a secret is rotated.
    SecretRotationSet,
    /// A secret was deleted.
    SecretDelete,
    /// A secret was brought back.
    SecretUndelete,
    /// A secret was destroyed.
    SecretPurge,
    /// The secrets of an account were sealed under its current AEK version.
    SecretReseal,
    /// The scheduled rotations of secrets were done.
    SecretScheduleRun,
    /// The signing key of the trail was made.
    AuditKeyCreate,
    /// The store was put back from a copy.
    StoreRestore,
    /// What was freed in the store was made unreadable.
    StoreShred,
    /// An engine began.
    EngineBegin,
    /// An engine was closed.
    EngineClose,
    /// The handle of an account was opened.
    AccountOpen,
    /// An AEK was wrapped in the token.
    KeyWrap,
    /// An AEK was unwrapped in the token.
    KeyUnwrap,
    /// A value of a secret was given out.
    SecretGet,
    /// Blocks were sealed and opened by a handle since the last such record of it.
    Blocks,
    /// A caller was refused what [`Subject::asked`] says.
    Forbidden,
    /// The token grants the use of a KEK: the first proof, or one after a silence.
    Granted,
    /// The token of a KEK became silent.
    Unreachable,
    /// The token denied the use of a KEK.
    Denied,
    /// The token of a KEK was silent for the whole grace.
    Lapsed,
    /// A KEK is granted again after a denial or lapse.
    Resuming,
    /// All accounts of a KEK are back after a denial or lapse.
    Resumed,
    /// The token has another key in the place of a KEK's.
    KekReplaced,
    /// A KEK version is in the token no more.
    KekMissing,
    /// A KEK version that was missing is in the token again.
    KekBack,
    /// A key came into the token that no KEK names.
    KekUnknown,
    /// A KEK version in use is not proved any more, for [`Record::took`].
    NotProved,
    /// One that was not is proved again, or in use no more.
    Proved,
    /// No worker of a token is left that takes calls.
    WorkersSpent,
    /// Some are again.
    WorkersBack,
    /// The key store has not answered for as long as one who asks it waits, and a poll interval.
    StoreSilent,
    /// It answers again.
    StoreAnswers,
    /// The newest version of a secret is past its expiry.
    SecretExpired,
}

impl Deed {
    /// The one of this name; `None` for one that this release does not know.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|deed| deed.name() == name)
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It is about to be done: a record of the end has the same correlation. Where there is none, the process ended before, or the trail
    /// could not take it any more.
    Asked,
    /// It was done.
    Done,
    /// It was refused, or failed.
    Failed(Why),
    /// Who asked went away before it ended: it was done in part, wholly or not at all.
    Dropped,
}

impl Outcome {
    /// That of a call.
    pub fn of<T>(outcome: &Result<T>) -> Self {
        outcome.as_ref().map_or_else(|error| Self::Failed(Why::of(error)), |_| Self::Done)
    }

    /// As it stands in the trail.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Done => "done",
            Self::Failed(_) => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// Why something failed: of an error what has no free text.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Why {
    /// The error's kind: [`Error::kind`], or `other`.
    pub kind: &'static str,
    /// The token's return code, where one decided it: `CKR_PIN_LOCKED`.
    pub code: Option<String>,
    /// The operation that was not granted, as grants name it.
    pub not_granted: Option<&'static str>,
}

impl Why {
    /// Of what is no error of this library.
    pub const fn unknown() -> Self {
        Self { kind: "other", code: None, not_granted: None }
    }

    /// That of an error.
    pub fn of(error: &Error) -> Self {
        let mut why = Self { kind: error.kind(), code: None, not_granted: None };
        match error {
            Error::Denied(refusal) | Error::Lapsed(refusal) | Error::Unreachable(refusal) => {
                why.code = refusal.code.as_deref().and_then(plain_code);
            }
            Error::Forbidden(forbidden) => why.not_granted = Some(forbidden.operation),
            _ => {}
        }
        why
    }
}

/// A module's own word is kept where it can be nothing but a name.
fn plain_code(code: &str) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_(). ".contains(&byte);
    (code.len() <= CODE_BYTES_MAX && code.bytes().all(is_plain)).then(|| code.to_owned())
}

/// To what something was done; what is not known or does not apply is `None`, or empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Subject {
    /// The KEK.
    pub kek: Option<KekName>,
    /// Its version.
    pub kek_version: Option<u32>,
    /// The account.
    pub account: Option<AccountId>,
    /// Its AEK versions.
    pub aek_versions: Vec<u32>,
    /// The secret of the account.
    pub secret: Option<SecretName>,
    /// The secret's version.
    pub secret_version: Option<u32>,
    /// What of the grants.
    pub grants: Option<OfGrants>,
    /// What was asked for that was forbidden; `None` for what is no deed (a record that was to be read).
    pub asked: Option<Deed>,
    /// The token.
    pub token: Option<TokenName>,
    /// The token's serial number, as it says itself.
    pub token_serial: Option<Arc<str>>,
}

/// What of the grants was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OfGrants {
    /// A grant that is given. Before it is, its id is `new`.
    Grant(Grant),
    /// A grant that is taken away.
    Id(GrantId),
    /// A role as it is from now on.
    Role(Role),
    /// A role that is removed.
    Name(RoleName),
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Asker {
    /// The caller; `None` for a call without one, and for what the engine does by itself.
    pub caller: Option<CallerId>,
    /// From where.
    pub from: Option<Whence>,
    /// What is the same in all records of one request.
    pub correlation: Correlation,
}

impl Asker {
    /// Nobody: the engine by itself, or a call without a caller.
    pub const fn nobody(correlation: Correlation) -> Self {
        Self { caller: None, from: None, correlation }
    }

    /// In the name of a caller.
    #[must_use]
    pub fn caller(self, caller: Option<CallerId>) -> Self {
        Self { caller, ..self }
    }

    /// From there.
    #[must_use]
    pub fn from(self, from: Option<Whence>) -> Self {
        Self { from, ..self }
    }
}

/// Who asks by an engine or a handle, which may be asked many times.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Who {
    pub(crate) caller: Option<CallerId>,
    pub(crate) from: Option<Whence>,
    /// Where the service gave one; else each call has its own.
    pub(crate) correlation: Option<Correlation>,
}

impl Who {
    /// For one call.
    pub(crate) fn asks(&self) -> Asker {
        let correlation = self.correlation.unwrap_or_else(Correlation::random);
        Asker { caller: self.caller.clone(), from: self.from.clone(), correlation }
    }
}

/// What is the same in all records of one request, and in the log of the service that asked. Shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Correlation([u8; CORRELATION_BYTES]);

impl Correlation {
    /// One of a service's own: the id of a trace, say.
    pub const fn new(id: [u8; CORRELATION_BYTES]) -> Self {
        Self(id)
    }

    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// Of what an engine says of itself: for as long as it lives the same, and in the first half the same for all engines of one process, so
    /// that who reads it knows which of them is gone.
    pub(crate) fn of_engine() -> Self {
        static PROCESS: OnceLock<[u8; ENGINE_AT]> = OnceLock::new();
        let mut id: [u8; CORRELATION_BYTES] = rand::random();
        let (process, _) = id.split_at_mut(ENGINE_AT);
        process.copy_from_slice(PROCESS.get_or_init(rand::random));
        Self(id)
    }

    /// Its bytes.
    pub const fn bytes(self) -> [u8; CORRELATION_BYTES] {
        self.0
    }
}

impl fmt::Display for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Correlation({self})")
    }
}

/// What a handle did to blocks since it was summed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Sums {
    /// Blocks that were sealed.
    pub sealed: u64,
    /// Their bytes.
    pub sealed_bytes: u64,
    /// Blocks that were opened.
    pub opened: u64,
    /// Their bytes.
    pub opened_bytes: u64,
    /// Seals and opens that were forbidden.
    pub forbidden: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Refusal;

    #[test]
    fn a_deed_is_known_by_its_name_and_no_two_share_one() {
        for deed in Deed::ALL {
            assert_eq!(Deed::parse(deed.name()), Some(*deed));
        }
        assert_eq!(Deed::parse("kekcreate"), None);
    }

    #[test]
    fn of_an_error_no_text_is_kept() {
        let refusal = |code: &str| {
            let text = || "hunter2".to_owned();
            let (subject, reason, remedy) = (text(), text(), text());
            Error::Denied(Box::new(Refusal {
                subject,
                kek: None,
                code: Some(code.into()),
                lasting: None,
                reason,
                remedy,
            }))
        };
        let why = Why::of(&refusal("CKR_PIN_LOCKED"));
        assert_eq!((why.kind, why.code.as_deref()), ("denied", Some("CKR_PIN_LOCKED")));
        assert!(!format!("{why:?}").contains("hunter2"));
        for code in ["a\nb", "\"", &"x".repeat(65)] {
            assert_eq!(Why::of(&refusal(code)).code, None, "{code:?}");
        }
        assert!(!format!("{:?}", Why::of(&Error::Invalid("hunter2".into()))).contains("hunter2"));
    }
}
