//! Alerts: `[[alert]]`. What a rule is, and its bounds; what it says to a trail is `audit::alert`'s.

use super::{
    file::near,
    given::bad,
    grants::{Keys, placed},
};
use crate::{
    access::Pattern,
    error::{Error, Result},
};
use std::{ops::Range, time::Duration};
use toml::de::{DeTable, DeValue};

/// Most rules.
pub const RULES_MAX: usize = 256;
/// Longest name of a rule, in bytes.
pub const RULE_NAME_BYTES_MAX: usize = 64;
/// Longest that a rule counts over, or waits.
pub const SPAN_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// For how long nothing must be seen of a trouble that nothing else ends, where its rule says nothing.
pub const QUIET_DEFAULT: Duration = Duration::from_secs(10 * 60);
/// What a rule counts over, where it says nothing.
const WITHIN_DEFAULT: Duration = Duration::from_secs(60);
/// The keys of an `[[alert]]`.
const KEYS: [&str; 9] = ["name", "when", "callers", "more_than", "within", "times", "at_least", "longer_than", "quiet"];
/// What can be said of `when`, and which keys it takes. All is what a trail tells.
const KINDS: [(&str, &[&str]); 12] = [
    ("stranger", &["callers", "quiet"]),
    ("denied", &[]),
    ("lapsed", &[]),
    ("forbidden", &["more_than", "within", "quiet"]),
    ("unwraps", &["more_than", "within", "quiet"]),
    ("unusual-unwraps", &["times", "at_least", "quiet"]),
    ("kek-changed", &[]),
    ("trail-broken", &[]),
    ("not-proved", &["longer_than"]),
    ("workers-spent", &[]),
    ("store-silent", &[]),
    ("secret-expired", &[]),
];

/// What can be said of `when`, where it is that.
#[cfg(feature = "audit")]
pub(crate) fn kind(when: &str) -> Option<&'static str> {
    KINDS.iter().map(|(kind, _)| *kind).find(|kind| *kind == when)
}

/// When a rule fires. Each has troubles of its own by caller, KEK version, KEK, token or node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum When {
    /// A caller that none of these covers used a key: opened an account, sealed or opened, was given a secret. One without a name is
    /// covered by `*` alone.
    Stranger {
        /// Who may.
        callers: Vec<Pattern>,
    },
    /// The token denied the use of a KEK. Over once it grants again.
    Denied,
    /// A token was silent for the whole grace. Over once it grants again.
    Lapsed,
    /// A caller was refused more often than so in any such time.
    Forbidden {
        /// So often is no trouble.
        more_than: u64,
        /// In this time, 1 s to [`SPAN_MAX`].
        within: Duration,
    },
    /// More AEKs were unwrapped under a KEK than so in any such time.
    Unwraps {
        /// So many are no trouble.
        more_than: u64,
        /// In this time, 1 s to [`SPAN_MAX`].
        within: Duration,
    },
    /// In one minute so many times more AEKs were unwrapped under a KEK than in a usual one of the last day. Known
    /// an hour after the first; what lasts becomes usual.
    UnusualUnwraps {
        /// So many times, 2 to 1000.
        times: u32,
        /// Fewer in a minute are no trouble.
        at_least: u64,
    },
    /// The token has another key in a KEK's place, none any more, or one that no KEK names.
    KekChanged,
    /// The trail could not be kept. Over once it can.
    TrailBroken,
    /// A KEK version in use was not proved for longer. Give it some poll intervals.
    NotProved {
        /// So long is no trouble, 1 s to [`SPAN_MAX`].
        longer_than: Duration,
    },
    /// No worker of a token is left that takes calls.
    WorkersSpent,
    /// The key store does not answer, by the word of an engine.
    StoreSilent,
    /// The newest version of a secret is past its expiry, as it is found by who runs its schedule. Over once it has another one, or is
    /// deleted.
    SecretExpired,
}

impl When {
    /// As `when` has it in a configuration: `stranger`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stranger { .. } => "stranger",
            Self::Denied => "denied",
            Self::Lapsed => "lapsed",
            Self::Forbidden { .. } => "forbidden",
            Self::Unwraps { .. } => "unwraps",
            Self::UnusualUnwraps { .. } => "unusual-unwraps",
            Self::KekChanged => "kek-changed",
            Self::TrailBroken => "trail-broken",
            Self::NotProved { .. } => "not-proved",
            Self::WorkersSpent => "workers-spent",
            Self::StoreSilent => "store-silent",
            Self::SecretExpired => "secret-expired",
        }
    }

    /// The time that it counts in; the longest where it does not count.
    #[cfg(feature = "audit")]
    pub(crate) fn within(&self) -> Duration {
        match self {
            Self::Forbidden { within, .. } | Self::Unwraps { within, .. } => *within,
            _ => SPAN_MAX,
        }
    }
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub(crate) name: String,
    pub(crate) when: When,
    pub(crate) quiet: Duration,
}

impl Rule {
    /// Checks and takes a rule.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the name is not 1 to [`RULE_NAME_BYTES_MAX`] of `A-Z a-z 0-9 . _ -`, or a bound above is broken.
    pub fn new(name: impl Into<String>, when: When) -> Result<Self> {
        let name = name.into();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > RULE_NAME_BYTES_MAX || !name.bytes().all(is_plain) {
            return Err(Error::Invalid(format!(
                "alert {name:?}: a name has 1 to {RULE_NAME_BYTES_MAX} of A-Z a-z 0-9 . _ -"
            )));
        }
        let span = |what, span: Duration| match (Duration::from_secs(1)..=SPAN_MAX).contains(&span) {
            true => Ok(()),
            false => Err(Error::Invalid(format!("alert {name}: {what} is allowed from 1s to 1d"))),
        };
        match &when {
            When::Stranger { callers } if callers.is_empty() => {
                return Err(Error::Invalid(format!("alert {name}: name the callers that may use keys")));
            }
            When::Forbidden { within, .. } | When::Unwraps { within, .. } => span("within", *within)?,
            When::NotProved { longer_than } => span("longer_than", *longer_than)?,
            When::UnusualUnwraps { times, .. } if !(2..=1000).contains(times) => {
                return Err(Error::Invalid(format!("alert {name}: times is allowed from 2 to 1000")));
            }
            _ => {}
        }
        Ok(Self { name, when, quiet: QUIET_DEFAULT })
    }

    /// For how long nothing must be seen of a trouble that nothing else ends (a stranger, a rate), until it is over. Default
    /// [`QUIET_DEFAULT`].
    ///
    /// # Errors
    /// [`Error::Invalid`] but from 1 s to [`SPAN_MAX`].
    pub fn quiet(mut self, quiet: Duration) -> Result<Self> {
        if !(Duration::from_secs(1)..=SPAN_MAX).contains(&quiet) {
            return Err(Error::Invalid(format!("alert {}: quiet is allowed from 1s to 1d", self.name)));
        }
        self.quiet = quiet;
        Ok(self)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When it fires.
    pub fn when(&self) -> &When {
        &self.when
    }
}

/// Reads one `[[alert]]`.
pub(super) fn read(origin: &str, keys: &DeTable<'_>, at: &impl Fn(Range<usize>) -> String) -> Result<Rule> {
    let keys = Keys::read("alert", &KEYS, keys, at)?;
    let (_, name) = keys.must(origin, "name")?;
    let (of_when, kind) = keys.must(origin, "when")?;
    let Some((_, takes)) = KINDS.iter().find(|(known, _)| *known == kind) else {
        let kinds = KINDS.map(|(known, _)| known);
        return Err(bad(of_when, &format!("there is no {kind:?}; {}", near(kind, &kinds))));
    };
    for key in KEYS.iter().skip(2) {
        if let Some((origin, _)) = keys.value(key)
            && !takes.contains(key)
        {
            return Err(bad(origin, &format!("has no meaning where when = {kind:?}: leave it out")));
        }
    }
    let number = |key: &str| -> Result<u64> {
        let Some((origin, value)) = keys.value(key) else {
            return Err(bad(origin, &format!("when = {kind:?} takes {key}: set it")));
        };
        let digits = match value {
            DeValue::Integer(number) => number.to_string().parse().ok(),
            _ => None,
        };
        digits.ok_or_else(|| bad(origin, "must be a whole number, 0 or more"))
    };
    let span = |key: &str| -> Result<Option<Duration>> {
        let Some((origin, text)) = keys.text(key)? else { return Ok(None) };
        let span = humantime::parse_duration(text);
        span.map(Some).map_err(|_| bad(origin, "must be a time with its unit, as in \"90 s\" or \"5 min\""))
    };
    let when = match kind {
        "stranger" => When::Stranger { callers: keys.list("callers", |text| Pattern::new(text))? },
        "denied" => When::Denied,
        "lapsed" => When::Lapsed,
        "kek-changed" => When::KekChanged,
        "trail-broken" => When::TrailBroken,
        "workers-spent" => When::WorkersSpent,
        "store-silent" => When::StoreSilent,
        "secret-expired" => When::SecretExpired,
        "not-proved" => match span("longer_than")? {
            Some(longer_than) => When::NotProved { longer_than },
            None => return Err(bad(of_when, "not-proved takes longer_than: set it, to some poll intervals")),
        },
        "unusual-unwraps" => {
            let times = u32::try_from(number("times")?).unwrap_or(u32::MAX);
            When::UnusualUnwraps { times, at_least: number("at_least")? }
        }
        counted => {
            let (more_than, within) = (number("more_than")?, span("within")?.unwrap_or(WITHIN_DEFAULT));
            match counted {
                "forbidden" => When::Forbidden { more_than, within },
                _ => When::Unwraps { more_than, within },
            }
        }
    };
    let quiet = span("quiet")?.unwrap_or(QUIET_DEFAULT);
    Rule::new(name, when).and_then(|rule| rule.quiet(quiet)).map_err(|error| placed(origin, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigFile;

    fn rules(text: &str) -> Result<Vec<Rule>> {
        Ok(ConfigFile::parse(text, "f")?.resolve()?.alerts)
    }

    #[test]
    fn an_alert_is_read_as_it_is_written() {
        let text = "[[alert]]\nname = \"a\"\nwhen = \"stranger\"\ncallers = [\"web-*\", \"db\"]\nquiet = \"5 min\"\n\
                    [[alert]]\nname = \"b\"\nwhen = \"forbidden\"\nmore_than = 9\n\
                    [[alert]]\nname = \"c\"\nwhen = \"unusual-unwraps\"\ntimes = 5\nat_least = 100\n\
                    [[alert]]\nname = \"d\"\nwhen = \"denied\"\n";
        let callers = ["web-*", "db"].map(|text| Pattern::new(text).unwrap()).into();
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let rule = |name, when| Rule::new(name, when).unwrap();
        let expected = [
            rule("a", When::Stranger { callers }).quiet(minutes(5)).unwrap(),
            rule("b", When::Forbidden { more_than: 9, within: minutes(1) }),
            rule("c", When::UnusualUnwraps { times: 5, at_least: 100 }),
            rule("d", When::Denied),
        ];
        assert_eq!(rules(text).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_with_an_alert_is_said_with_its_line_and_key() {
        for (keys, said) in [
            ("when = \"denied\"", "f line 1: a [[alert]] has a name"),
            ("name = \"a\"", "f line 1: a [[alert]] has a when"),
            ("name = \"a\"\nwhen = \"denyed\"", "f line 3: alert.when: there is no \"denyed\"; "),
            ("name = \"a\"\nwhen = \"denied\"\nwithin = \"1 min\"", "f line 4: alert.within: has no meaning where"),
            ("name = \"a\"\nwhen = \"forbidden\"", "takes more_than: set it"),
            ("name = \"a\"\nwhen = \"forbidden\"\nmore_than = -1", "f line 4: alert.more_than: must be a whole number"),
            (
                "name = \"a\"\nwhen = \"unwraps\"\nmore_than = 1\nwithin = \"9\"",
                "f line 5: alert.within: must be a time",
            ),
            (
                "name = \"a\"\nwhen = \"unwraps\"\nmore_than = 1\nwithin = \"2 days\"",
                "f line 1: alert a: within is allowed",
            ),
            ("name = \"a\"\nwhen = \"stranger\"", "name the callers"),
            ("name = \"a\"\nwhen = \"denied\"\ncaller = [\"b\"]", "f line 4: there is no key caller in [[alert]]; "),
            ("name = \"a b\"\nwhen = \"denied\"", "a name has 1 to 64"),
            (
                "name = \"a\"\nwhen = \"denied\"\n[[alert]]\nname = \"a\"\nwhen = \"lapsed\"",
                "f line 4: two alerts are named a",
            ),
        ] {
            let error = rules(&format!("[[alert]]\n{keys}\n")).unwrap_err().to_string();
            assert!(error.contains(said), "{keys}: {error}");
        }
    }
}
