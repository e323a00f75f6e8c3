//! A line of the trail: one event as JSON. What its bytes are says [`manual::format`](mod@crate::manual::format).

use super::unnumbered::Unnumbered;
use crate::{
    access::{Actions, Grant, Operations, Role},
    error::{Error, Result},
    telemetry::trail::Record,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, time::Duration};

/// Longest line, in bytes, without its line break.
pub const LINE_BYTES_MAX: usize = 16 * 1024;
/// Highest number of a line is below this: any reader of JSON can count so far.
pub const LINES_MAX: u64 = 1 << 53;
/// What each line says that it is.
pub const CATEGORY: &str = "AuditEvent";
/// The operation of a line by which the trail says that it was broken: from `time` on, for `reason`.
pub const BROKEN: &str = "TrailBroken";
/// The operation of a line by which it says that it is whole again, and how many records were lost between, in `dropped`.
pub const RESUMED: &str = "TrailResumed";
/// The operation of a line that counts what stands in front of it, by account.
pub const TALLY: &str = "Tally";

/// Behind it there is no date of four digits.
const LAST_UNIX_MS: u64 = 253_402_300_799_999;

/// When, in milliseconds since 1970. Shown as `2026-11-26T01:02:03.004Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// Of milliseconds since 1970; at most the end of the year 9999.
    pub const fn from_unix_ms(ms: u64) -> Self {
        Self(if ms < LAST_UNIX_MS { ms } else { LAST_UNIX_MS })
    }

    /// Milliseconds since 1970.
    pub const fn unix_ms(self) -> u64 {
        self.0
    }

    /// Reads the one form in which it is written.
    pub fn parse(text: &str) -> Option<Self> {
        let since = humantime::parse_rfc3339(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
        let time = Self(u64::try_from(since.as_millis()).ok()?);
        (time.0 <= LAST_UNIX_MS && time.to_string() == text).then_some(time)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + Duration::from_millis(self.0)).fmt(f)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Time({self})")
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("a time is written as 2026-11-26T01:02:03.004Z"))
    }
}

macro_rules! line {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)+) => {
        /// A line. What does not apply to its operation is `None`, and not written.
        #[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[non_exhaustive]
        pub struct Line {
            /// Its number: 0, 1, 2, … over all files of the node.
            pub seq: u64,
            /// What the wall clock said when it happened.
            pub time: Time,
            /// [`CATEGORY`].
            pub category: String,
            /// What was done: the name of a [`Deed`](crate::telemetry::trail::Deed), [`BROKEN`], [`RESUMED`] or [`TALLY`].
            pub operation: String,
            $($(#[$doc])* #[serde(default, skip_serializing_if = "Option::is_none")] pub $name: Option<$type>,)+
        }
    };
}

line! {
    /// How it ended: `asked` (it is about to be done), `done`, `failed` or `dropped` (who asked went away).
    result: String,
    /// Why it failed: the kind of the error, as the command line's JSON names it. Of [`BROKEN`] in words.
    reason: String,
    /// The token's return code, where one decided it.
    code: String,
    /// The operation that was not granted, as grants name it.
    not_granted: String,
    /// What was asked for that was forbidden.
    asked: String,
    /// The KEK.
    kek: String,
    /// Its version.
    kek_version: u32,
    /// The account.
    account: String,
    /// Its AEK versions.
    aek_versions: Vec<u32>,
    /// The secret of the account.
    secret: String,
    /// Its version.
    secret_version: u32,
    /// The grant that was given or taken away.
    grant: LineGrant,
    /// The role that was set or removed.
    role: LineRole,
    /// The token.
    token: String,
    /// Its serial number.
    token_serial: String,
    /// Who asked.
    caller: String,
    /// Where the call came from, as the program said that made it.
    from: String,
    /// 32 hexadecimal digits, the same in all lines of one request.
    correlation: String,
    /// How long it took, in microseconds.
    took_us: u64,
    /// Blocks that a handle sealed since the last such line of it.
    sealed: u64,
    /// Their bytes.
    sealed_bytes: u64,
    /// Blocks that it opened.
    opened: u64,
    /// Their bytes.
    opened_bytes: u64,
    /// Seals and opens that were forbidden.
    forbidden: u64,
    /// Of [`RESUMED`]: how many records were lost.
    dropped: u64,
    /// Of [`TALLY`]: number of the first line of its group.
    first: u64,
    /// Of [`TALLY`]: when the tally before was written.
    since: Time,
    /// Of [`TALLY`]: how many accounts have lines in the group.
    accounts: u64,
    /// Of [`TALLY`]: base64.
    salt: String,
    /// Of [`TALLY`]: base64.
    root: String,
    /// Of [`TALLY`]: base64 of each hash.
    frontier: Vec<String>,
}

/// A grant in a line.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct LineGrant {
    /// Its id; `new` before it has one.
    pub id: String,
    /// To whom: a pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callers: Option<String>,
    /// On which KEKs: a pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keks: Option<String>,
    /// On which accounts: a pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accounts: Option<String>,
    /// What it allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations: Option<Vec<String>>,
    /// Or by which role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

/// A role in a line.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct LineRole {
    /// Its name.
    pub name: String,
    /// What it allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations: Option<Vec<String>>,
    /// Which roles it includes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub includes: Vec<String>,
    /// What it does not allow.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not: Vec<String>,
    /// On which KEKs: a pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keks: Option<String>,
    /// On which accounts: a pattern.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accounts: Option<String>,
}

impl Line {
    /// One of the writer's own.
    pub(crate) fn own(seq: u64, time: Time, operation: &str) -> Self {
        Self { seq, time, category: CATEGORY.into(), operation: operation.into(), ..Self::default() }
    }

    /// What a record says, as line `seq`: the writer's bytes, read again.
    ///
    /// # Errors
    /// As [`Line::encode`]; [`Error::Invalid`] from [`LINES_MAX`] on.
    pub fn of(record: &Record, seq: u64) -> Result<Self> {
        let mut bytes = Vec::new();
        Unnumbered::of(record)?.put(seq, &mut bytes);
        Self::parse(&bytes).map_err(Error::Invalid)
    }

    /// Its bytes, without a line break.
    ///
    /// # Errors
    /// [`Error::Invalid`] over [`LINE_BYTES_MAX`], which no record's names come to.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let bytes = serde_json::to_vec(self).map_err(no_line)?;
        fits(bytes.len())?;
        Ok(bytes)
    }

    /// Reads the bytes of a line, without its line break. Names that this release does not know are passed over.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > LINE_BYTES_MAX {
            return Err(format!("has {} bytes, more than {LINE_BYTES_MAX}", bytes.len()));
        }
        let line: Self = serde_json::from_slice(bytes).map_err(|error| format!("is no line of a trail: {error}"))?;
        if line.category != CATEGORY {
            return Err(format!("is no {CATEGORY}"));
        }
        if line.seq >= LINES_MAX {
            return Err(format!("has the number {}, numbers end at 2^53", line.seq));
        }
        Ok(line)
    }
}

pub(super) fn no_line(error: serde_json::Error) -> Error {
    Error::Invalid(format!("a line of the trail: {error}"))
}

pub(super) fn fits(len: usize) -> Result<()> {
    match len {
        0..=LINE_BYTES_MAX => Ok(()),
        len => Err(Error::Invalid(format!("a line of the trail has {len} bytes, at most {LINE_BYTES_MAX} are kept"))),
    }
}

fn names(operations: Operations) -> Vec<String> {
    operations.iter().map(|operation| operation.to_string()).collect()
}

impl From<&Grant> for LineGrant {
    fn from(grant: &Grant) -> Self {
        let (operations, role) = match &grant.actions {
            Actions::Operations(operations) => (Some(names(*operations)), None),
            Actions::Role(role) => (None, Some(role.to_string())),
        };
        Self {
            id: grant.id.to_string(),
            callers: Some(grant.callers.to_string()),
            keks: Some(grant.keks.to_string()),
            accounts: Some(grant.accounts.to_string()),
            operations,
            role,
        }
    }
}

impl From<&Role> for LineRole {
    fn from(role: &Role) -> Self {
        Self {
            name: role.name.to_string(),
            operations: Some(names(role.operations)),
            includes: role.includes.iter().map(ToString::to_string).collect(),
            not: names(role.not),
            keks: Some(role.keks.to_string()),
            accounts: Some(role.accounts.to_string()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        access::{Operation, Pattern},
        error::Forbidden,
        name::{AccountId, CallerId, GrantId, KekName, RoleName, SecretName, TokenName, Whence},
        telemetry::trail::{Asker, Correlation, Deed, OfGrants, Outcome, Sums, Why},
    };
    use proptest::prelude::*;

    pub(in crate::audit) fn longest() -> Record {
        // What JSON writes with two bytes for one.
        let long = |max: usize| "\"".repeat(max);
        let mut record = Record::new(
            u64::MAX,
            Deed::RoleSet,
            Outcome::Failed(Why::of(&Error::Forbidden(Box::new(Forbidden {
                caller: None,
                operation: "audit.read",
                on: String::new(),
            })))),
            Asker::nobody(Correlation::new([0xff; 16]))
                .caller(Some(CallerId::new(long(128)).unwrap()))
                .from(Some(Whence::new(long(256)).unwrap())),
        );
        let kek = KekName::new("k".repeat(64)).unwrap();
        record.on.kek = Some(kek);
        record.on.kek_version = Some(u32::MAX);
        record.on.account = Some(AccountId::new(long(255)).unwrap());
        record.on.aek_versions = vec![u32::MAX; crate::store::record::AEK_VERSIONS_MAX];
        record.on.secret = Some(SecretName::new("s".repeat(128)).unwrap());
        record.on.secret_version = Some(u32::MAX);
        record.on.token = Some(TokenName::new("t".repeat(64)).unwrap());
        record.on.token_serial = Some(long(64).into());
        let operations = Operations::of(&Operation::ALL);
        record.on.grants = Some(OfGrants::Role(Role {
            name: RoleName::new("r".repeat(64)).unwrap(),
            operations,
            includes: vec![RoleName::new("i".repeat(64)).unwrap(); 16],
            not: operations,
            keks: Pattern::new("x".repeat(64)).unwrap(),
            accounts: Pattern::new(long(255)).unwrap(),
        }));
        record.took = Some(Duration::MAX);
        record.sums = Some(Sums {
            sealed: u64::MAX,
            sealed_bytes: u64::MAX,
            opened: u64::MAX,
            opened_bytes: u64::MAX,
            forbidden: u64::MAX,
        });
        record
    }

    #[test]
    fn the_longest_record_fits_into_a_line_and_comes_back_as_it_was() {
        let line = Line::of(&longest(), LINES_MAX - 1).unwrap();
        let bytes = line.encode().unwrap();
        assert!(bytes.len() < LINE_BYTES_MAX * 3 / 4, "{} bytes", bytes.len());
        assert!(!bytes.contains(&b'\n'));
        assert_eq!(Line::parse(&bytes), Ok(line));
    }

    #[test]
    fn a_line_reads_as_the_manual_has_it() {
        let by = Asker::nobody(Correlation::new([7; 16])).caller(Some(CallerId::new("web").unwrap()));
        let mut record = Record::new(1_700_000_000_004, Deed::AccountOpen, Outcome::Done, by);
        record.on.account = Some(AccountId::new("tenant-7 \"ä\"").unwrap());
        record.took = Some(Duration::from_micros(1234));
        let expected = r#"{"seq":3,"time":"2023-11-14T22:13:20.004Z","category":"AuditEvent","operation":"AccountOpen","result":"done","account":"tenant-7 \"ä\"","caller":"web","correlation":"07070707070707070707070707070707","took_us":1234}"#;
        assert_eq!(String::from_utf8(Line::of(&record, 3).unwrap().encode().unwrap()).unwrap(), expected);
        record.on.grants = Some(OfGrants::Grant(Grant {
            id: GrantId::new("new").unwrap(),
            callers: Pattern::all(),
            keks: Pattern::all(),
            accounts: Pattern::all(),
            actions: Actions::Operations(Operations::of(&[Operation::Open])),
        }));
        let line = Line::of(&record, 3).unwrap().encode().unwrap();
        assert!(
            String::from_utf8(line.clone())
                .unwrap()
                .contains(r#""grant":{"id":"new","callers":"*","keks":"*","accounts":"*","operations":["open"]}"#),
            "{}",
            String::from_utf8_lossy(&line)
        );
    }

    #[test]
    fn what_is_no_line_is_refused_and_what_is_new_is_passed_over() {
        let line = |rest: &str| format!(r#"{{"seq":1,"time":"2023-11-14T22:13:20.004Z",{rest}}}"#);
        let ok = r#""category":"AuditEvent","operation":"New","result":"fine","new":{"a":[1]}"#;
        assert_eq!(Line::parse(line(ok).as_bytes()).unwrap().operation, "New");
        for bad in [
            "".to_owned(),
            "{}".into(),
            "[]".into(),
            line(r#""category":"Other","operation":"New""#),
            line(r#""category":"AuditEvent""#),
            line(r#""category":"AuditEvent","operation":"A","operation":"B""#),
            line(ok) + " x",
            line(ok).replace(".004Z", "Z"),
            line(ok).replace(".004Z", ".0040Z"),
            line(ok).replace("\"seq\":1", "\"seq\":-1"),
            line(ok).replace("\"seq\":1", "\"seq\":9007199254740992"),
            format!(r#"{{"pad":"{}",{}"#, "x".repeat(LINE_BYTES_MAX), &line(ok)[1..]),
            "[".repeat(LINE_BYTES_MAX),
        ] {
            assert!(Line::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_of_lines_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Line::parse(&bytes);
        }

        #[test]
        fn every_time_comes_back(ms in 0..=LAST_UNIX_MS) {
            let time = Time::from_unix_ms(ms);
            prop_assert_eq!(Time::parse(&time.to_string()), Some(time));
        }
    }
}
