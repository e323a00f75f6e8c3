//! Settings and configuration: what breaks a promise is refused by name, and what is misspelt is never a default.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // helpers of tests

use keyleash::{
    Error,
    config::{
        CACHED_AEKS_MAX, CONFIG_BYTES_MAX, Config, ConfigFile, OnFailure, PinSource, STORE_DEFAULT, Settings,
        StoreConfig, TokenSelector, WORKERS_DEFAULT,
    },
    secret::MemlockPolicy,
};
use proptest::prelude::*;
use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf, time::Duration};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);
const MIN: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

fn text_of(error: Error) -> String {
    assert!(matches!(error, Error::Misconfigured(_)), "{error}");
    error.to_string()
}

fn with(change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = Settings::default();
    change(&mut settings);
    settings
}

#[test]
fn the_defaults_keep_every_promise_without_a_warning() {
    let settings = Settings::default();
    settings.validate().unwrap();
    assert_eq!(settings.warnings(), Vec::<String>::new());
    assert_eq!((settings.poll_interval, settings.store_timeout), (15 * S, 5 * S));
    assert_eq!((settings.grace, settings.aek_ttl), (30 * MIN, 10 * MIN));
}

#[test]
fn a_broken_bound_names_the_setting_the_value_the_bound_and_the_promise() {
    type Case = (fn(&mut Settings), [&'static str; 4]);
    let cases: [Case; 20] = [
        (
            |s| s.grace = 55 * MIN,
            ["fresh_proof_every is 20 and grace is 55 min", "18 or less", "3280 s or less", "promise 1"],
        ),
        (|s| s.fresh_proof_every = 119, ["fresh_proof_every is 119", "118 or less", "1795 s or less", "promise 1"]),
        (|s| s.retention = 6 * DAY, ["retention", "6 d", "7 d to 90 d", "promise 5"]),
        (|s| s.retention = 91 * DAY, ["retention", "91 d", "7 d to 90 d", "owner asked"]),
        (|s| s.poll_interval = 999 * MS, ["poll_interval", "999 ms", "1 s to 1 min", "promise 3"]),
        (|s| s.poll_interval = 61 * S, ["poll_interval", "61 s", "1 s to 1 min", "promise 2"]),
        (|s| s.store_timeout = 99 * MS, ["store_timeout", "99 ms", "100 ms to 1 min", "promise 3"]),
        (|s| s.store_timeout = 61 * S, ["store_timeout", "61 s", "100 ms to 1 min", "promise 1"]),
        (|s| s.store_timeout = 16 * S, ["store_timeout", "16 s", "at most poll_interval (15 s)", "promise 1"]),
        (|s| s.grace = 24 * S, ["grace", "24 s", "at least poll_interval + 2 * call_timeout (25 s)", "promise 3"]),
        (|s| s.grace = 60 * MIN, ["grace", "60 min", "at most 3580 s", "promise 1"]),
        (|s| s.grace = Duration::MAX, ["grace", "", "at most 3580 s", "promise 1"]),
        (|s| s.aek_ttl = Duration::ZERO, ["aek_ttl", "0 s", "at least 10 s", "promise 2"]),
        (|s| s.aek_ttl = Duration::from_millis(9_999), ["aek_ttl", "9999 ms", "at least 10 s", "promise 2"]),
        (
            |s| (s.aek_ttl, s.store_timeout) = (Duration::from_millis(999), Duration::from_millis(100)),
            ["aek_ttl", "999 ms", "at least 1 s", "promise 2"],
        ),
        (|s| s.aek_ttl = 31 * MIN, ["aek_ttl", "31 min", "at most grace (30 min)", "promise 1"]),
        (|s| s.resume_rate = 0, ["resume_rate", "0", "at least 1", "promise 2"]),
        (|s| s.max_cached_aeks = 0, ["max_cached_aeks", "0", "1 to 100000000", "promise 6"]),
        (|s| s.max_cached_aeks = CACHED_AEKS_MAX + 1, ["max_cached_aeks", "100000001", "1 to 100000000", "promise 6"]),
        (|s| s.metric_accounts = 10_001, ["metric_accounts", "10001", "0 to 10000", "four series"]),
    ];
    for (change, words) in cases {
        let text = text_of(with(change).validate().unwrap_err());
        for word in words {
            assert!(text.contains(word), "{text} should say {word}");
        }
    }
}

#[test]
fn every_bound_itself_is_allowed() {
    for settings in [
        with(|s| (s.poll_interval, s.store_timeout) = (S, S)),
        with(|s| (s.poll_interval, s.store_timeout) = (MIN, MIN)),
        with(|s| s.store_timeout = 100 * MS),
        with(|s| s.store_timeout = s.poll_interval),
        with(|s| (s.grace, s.aek_ttl) = (25 * S, 25 * S)),
        with(|s| s.grace = 55 * MIN - 20 * S),
        with(|s| (s.grace, s.fresh_proof_every) = (60 * MIN - 35 * S, 1)),
        with(|s| s.fresh_proof_every = 118),
        with(|s| s.aek_ttl = s.grace),
        with(|s| s.aek_ttl = 10 * S),
        with(|s| (s.aek_ttl, s.store_timeout) = (S, Duration::from_millis(100))),
        with(|s| (s.resume_rate, s.max_cached_aeks) = (1, 1)),
        with(|s| s.max_cached_aeks = CACHED_AEKS_MAX),
    ] {
        settings.validate().unwrap_or_else(|error| panic!("{settings:?}: {error}"));
    }
}

proptest! {
    /// Promise 1 as arithmetic: no configuration that is accepted can break the hour, or the proof's own bound.
    #[test]
    fn whatever_is_accepted_keeps_the_hour(poll in 0..70_000_u64, call in 0..70_000_u64, grace in 0..4_000_000_u64, ttl in 0..4_000_000_u64, every in 1..100_u32) {
        let settings = with(|s| (s.poll_interval, s.store_timeout, s.grace, s.aek_ttl, s.fresh_proof_every) =
            (poll as u32 * MS, call as u32 * MS, grace as u32 * MS, ttl as u32 * MS, every));
        let fresh = settings.poll_interval * settings.fresh_proof_every;
        let keeps = fresh + settings.grace + settings.poll_interval + settings.store_timeout <= 60 * MIN
            && settings.store_timeout <= settings.poll_interval && settings.poll_interval <= 60 * S && poll >= 1000
            && call >= 100 && poll + 2 * call <= grace && ttl >= 1000.max(2 * call) && ttl <= grace;
        prop_assert_eq!(settings.validate().is_ok(), keeps);
    }
}

#[test]
fn a_rate_that_cannot_resume_every_account_in_time_is_said_with_the_numbers_to_set() {
    let settings = with(|s| s.resume_rate = 200);
    settings.validate().unwrap();
    let warnings = settings.warnings();
    assert_eq!(warnings.len(), 2);
    for word in
        ["1000000 accounts", "84 min", "200 unwraps/s", "30 min", "resume_rate to 556", "max_cached_aeks to 360000"]
    {
        assert!(warnings[0].contains(word), "{} should say {word}", warnings[0]);
    }
    assert_eq!(settings.resumption_warning(360_000), None);
    assert!(settings.resumption_warning(360_001).unwrap().contains("31 min"));
    let enough = with(|s| (s.resume_rate, s.aek_ttl) = (556, 30 * MIN));
    assert_eq!(enough.resumption_warning(1_000_000), None);
}

#[test]
fn a_rate_that_cannot_refresh_every_account_within_its_ttl_is_said_with_the_numbers_to_set() {
    let settings = with(|s| s.resume_rate = 600);
    let warnings = settings.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for word in
        ["1000000 accounts in use", "need 2667 unwraps/s", "10 min", "aek_ttl to 2667 s", "max_cached_aeks to 225000"]
    {
        assert!(warnings[0].contains(word), "{} should say {word}", warnings[0]);
    }
    assert_eq!(settings.refresh_warning(225_000), None);
    for enough in [
        with(|s| s.resume_rate = 2667),
        with(|s| (s.resume_rate, s.aek_ttl, s.grace) = (600, 2667 * S, 50 * MIN)),
        with(|s| (s.resume_rate, s.max_cached_aeks) = (600, 225_000)),
    ] {
        enough.validate().unwrap();
        assert_eq!(enough.warnings(), Vec::<String>::new());
    }
}

const WHOLE: &str = r#"# every key that there is
[token]
module = "/usr/lib/softhsm/libsofthsm2.so"
label = "production"
pin_file = "/run/secrets/pin"
workers = 0x8

[store]
path = "keys.redb"

[lease]
poll_interval = "20s"
call_timeout = "2500ms"
grace = "20 min"
aek_ttl = "5m"
resume_rate = 1_000
fresh_proof_every = 7

[cache]
max_cached_aeks = 50_000
memlock = "refuse"

[keys]
require_recoverable = true
retention = "30d"
purge_protection = false

[metrics]
metric_accounts = 100
"#;

fn parse(text: &str) -> Result<ConfigFile, Error> {
    ConfigFile::parse(text, "keyleash.toml")
}

/// The file with these variables over it.
fn layered(text: &str, variables: &[(&str, &str)]) -> Result<Config, Error> {
    let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
    let names = variables.iter().map(|(name, _)| OsString::from(name)).chain(["PATH".into(), "HOME".into()]);
    parse(text)?.overlay(names, find)?.resolve()
}

#[test]
fn every_key_of_the_file_arrives() {
    let config = layered(WHOLE, &[]).unwrap();
    assert_eq!(config.token.module, Some("/usr/lib/softhsm/libsofthsm2.so".into()));
    assert_eq!(config.token.selector, Some(TokenSelector::Label("production".into())));
    assert_eq!(config.token.pin, Some(PinSource::File("/run/secrets/pin".into())));
    assert_eq!((config.token.workers, config.store), (8, StoreConfig::Redb("keys.redb".into())));
    let settings = Settings::default()
        .poll_interval(20 * S)
        .store_timeout(2500 * MS)
        .grace(20 * MIN)
        .aek_ttl(5 * MIN)
        .resume_rate(1000)
        .max_cached_aeks(50_000)
        .memlock(MemlockPolicy::Refuse)
        .fresh_proof_every(7)
        .require_recoverable(true)
        .retention(30 * DAY)
        .purge_protection(false)
        .scheduled_work(true)
        .metric_accounts(100);
    assert_eq!(config.settings, settings);
}

#[test]
fn without_a_word_the_defaults_hold() {
    let config = layered("", &[]).unwrap();
    assert_eq!(config.settings, Settings::default());
    assert_eq!(config.store, StoreConfig::Redb(STORE_DEFAULT.into()));
    assert_eq!((config.token.module, config.token.selector, config.token.pin), (None, None, None));
    assert_eq!(config.token.workers, WORKERS_DEFAULT);
}

/// The bound is on the label that the token has, not on how it is written.
#[test]
fn a_label_that_is_typed_as_it_is_listed_is_as_long_as_what_it_stands_for() {
    let bells = "\u{7}".repeat(32);
    let listed = [
        bells.escape_debug().to_string(),
        "\"".repeat(32).escape_debug().to_string(),
        "\u{fffd}".repeat(32),
        format!("{bells}  \n"),
        "ä".repeat(16),
    ];
    for label in listed {
        let config = layered("", &[("KEYLEASH_TOKEN_LABEL", &label)]).unwrap();
        assert_eq!(config.token.selector, Some(TokenSelector::Label(label)));
    }
    for label in ["x".repeat(33), "\\u{7}".repeat(33), "ä".repeat(17), "\\u{7".repeat(32)] {
        assert!(
            text_of(layered("", &[("KEYLEASH_TOKEN_LABEL", &label)]).unwrap_err()).contains("at most 32"),
            "{label}"
        );
    }
}

#[test]
fn every_variable_stands_over_the_file() {
    let variables = [
        ("KEYLEASH_MODULE", "/m.so"),
        ("KEYLEASH_TOKEN_SLOT", "7"),
        ("KEYLEASH_PIN_ENV", "HSM_PIN"),
        ("KEYLEASH_WORKERS", "2"),
        ("KEYLEASH_STORE", "/var/k.redb"),
        ("KEYLEASH_POLL_INTERVAL", "10s"),
        ("KEYLEASH_CALL_TIMEOUT", "1s"),
        ("KEYLEASH_GRACE", "10 min"),
        ("KEYLEASH_AEK_TTL", "60s"),
        ("KEYLEASH_RESUME_RATE", "300"),
        ("KEYLEASH_MAX_CACHED_AEKS", "1000"),
        ("KEYLEASH_MEMLOCK", "warn"),
        ("KEYLEASH_REQUIRE_RECOVERABLE", "false"),
        ("KEYLEASH_RETENTION", "168h"),
        ("KEYLEASH_PURGE_PROTECTION", "true"),
        ("KEYLEASH_METRIC_ACCOUNTS", "7"),
        ("KEYLEASH_CONFIG", "read elsewhere"),
    ];
    let config = layered(WHOLE, &variables).unwrap();
    assert_eq!(config.token.module, Some("/m.so".into()));
    assert_eq!(config.token.selector, Some(TokenSelector::Slot(7)), "it takes the place of the file's label");
    assert_eq!(config.token.pin, Some(PinSource::Env("HSM_PIN".into())), "it takes the place of the file's pin_file");
    assert_eq!((config.token.workers, config.store), (2, StoreConfig::Redb("/var/k.redb".into())));
    let settings = Settings::default()
        .poll_interval(10 * S)
        .store_timeout(S)
        .grace(10 * MIN)
        .aek_ttl(MIN)
        .resume_rate(300)
        .max_cached_aeks(1000)
        .memlock(MemlockPolicy::Warn)
        .fresh_proof_every(7)
        .require_recoverable(false)
        .retention(7 * DAY)
        .purge_protection(true)
        .scheduled_work(true)
        .metric_accounts(7);
    assert_eq!(config.settings, settings);
    for (name, selector) in [
        ("KEYLEASH_TOKEN_LABEL", TokenSelector::Label("x".into())),
        ("KEYLEASH_TOKEN_SERIAL", TokenSelector::Serial("x".into())),
    ] {
        assert_eq!(layered(WHOLE, &[(name, "x")]).unwrap().token.selector, Some(selector));
    }
    let bounds = text_of(layered(WHOLE, &[("KEYLEASH_GRACE", "2h")]).unwrap_err());
    assert!(bounds.contains("grace is 120 min") && bounds.contains("promise 1"), "{bounds}");
}

const SEVERAL: &str = r#"
[[token]]
name = "hsm-a"
module = "/a.so"
serial = "01"
pin_file = "/pin-a"
workers = 4

[[token]]
name = "hsm-b"
module = "/b.so"
label = "b"
pin_env = "PIN_B"
call_timeout = "2s"

[[kek]]
name = "tenants"
standby = "hsm-b"
"#;

#[test]
fn several_tokens_have_names_the_first_is_the_default_and_variables_stand_over_it_alone() {
    let config = layered(SEVERAL, &[("KEYLEASH_TOKEN_LABEL", "a"), ("KEYLEASH_WORKERS", "9")]).unwrap();
    let Config { token, other_tokens, standbys, settings, .. } = config;
    assert_eq!((token.name.as_str(), token.selector), ("hsm-a", Some(TokenSelector::Label("a".into()))));
    assert_eq!((token.module, token.workers, token.call_timeout), (Some("/a.so".into()), 9, 5 * S));
    let [other] = &other_tokens[..] else { panic!("{other_tokens:?}") };
    assert_eq!((other.name.as_str(), &other.selector), ("hsm-b", &Some(TokenSelector::Label("b".into()))));
    assert_eq!((&other.module, other.workers), (&Some("/b.so".into()), WORKERS_DEFAULT));
    assert_eq!((&other.pin, other.call_timeout), (&Some(PinSource::Env("PIN_B".into())), 2 * S));
    let standbys: Vec<_> = standbys.iter().map(|(kek, token)| (kek.as_str(), token.as_str())).collect();
    assert_eq!((standbys, settings), (vec![("tenants", "hsm-b")], Settings::default()));
    let one = layered("[token]\nname = \"hsm\"\ncall_timeout = \"1s\"", &[]).unwrap();
    assert_eq!((one.token.name.as_str(), one.token.call_timeout), ("hsm", S));
    let named = layered(WHOLE, &[("KEYLEASH_TOKEN_NAME", "hsm"), ("KEYLEASH_TOKEN_CALL_TIMEOUT", "1s")]).unwrap();
    assert_eq!((named.token.name.as_str(), named.token.call_timeout), ("hsm", S));
    assert_eq!(layered(WHOLE, &[]).unwrap().token.name.as_str(), "default");
}

#[test]
fn tokens_that_cannot_stand_beside_each_other_are_refused_with_their_line() {
    let cases = [
        (SEVERAL.replace("hsm-b\"\nmodule", "hsm-a\"\nmodule"), "line 9: two tokens are named hsm-a"),
        (
            SEVERAL.replace("standby = \"hsm-b\"", "standby = \"hsm-c\""),
            "line 18: kek.standby: there is no token hsm-c",
        ),
        (SEVERAL.replace("\"2s\"", "\"16s\""), "token hsm-b: call_timeout is 16 s, allowed is at most poll_interval"),
        (SEVERAL.replace("\"2s\"", "\"20ms\""), "token hsm-b: call_timeout is 20 ms, allowed is 100 ms"),
        ("[[token]]\nname = \"t\"\n".repeat(65), "more than 64 tokens"),
    ];
    for (text, words) in cases {
        let error = text_of(layered(&text, &[]).unwrap_err());
        assert!(error.contains(words), "{error} should say {words}");
    }
}

#[test]
fn the_pin_itself_is_named_and_never_read() {
    let names = [OsString::from("KEYLEASH_PIN")];
    let lookup = |name: &str| {
        assert_ne!(name, "KEYLEASH_PIN", "the PIN was read");
        None
    };
    let config = parse(WHOLE).unwrap().overlay(names, lookup).unwrap().resolve().unwrap();
    assert_eq!(config.token.pin, Some(PinSource::Env("KEYLEASH_PIN".into())));
    let own = layered("[token]\npin_env = \"KEYLEASH_MY_PIN\"", &[("KEYLEASH_MY_PIN", "1234")]).unwrap();
    assert_eq!(own.token.pin, Some(PinSource::Env("KEYLEASH_MY_PIN".into())), "a variable that pin_env names is known");

    let two = text_of(layered("", &[("KEYLEASH_PIN", "1234"), ("KEYLEASH_PIN_FILE", "/p")]).unwrap_err());
    assert!(two.contains("given twice") && !two.contains("1234"), "{two}");
    for text in
        ["[token]\npin = \"1234\"", "[token]\npin_env = \"1234\"", "[token]\npin_env = 1234", "[token]\npin \"1234\""]
    {
        let error = text_of(layered(text, &[]).unwrap_err());
        assert!(error.contains("keyleash.toml line 2") && !error.contains("1234"), "{error}");
    }
    let error = text_of(layered("", &[("KEYLEASH_PIN_ENV", "12-34")]).unwrap_err());
    assert!(error.contains("not the PIN") && !error.contains("12-34"), "{error}");
}

#[test]
fn what_is_wrong_in_the_file_is_named_with_its_line() {
    let cases = [
        ("[lease]\npoll_intervall = \"15s\"", 2, "did you mean poll_interval?"),
        ("[lease]\n\n\ngarce = \"15s\"", 4, "did you mean grace?"),
        ("[lease]\nwhatever = 1", 2, "known are poll_interval, call_timeout, grace, aek_ttl, resume_rate"),
        ("[lease]\nmax_cached_aeks = 5", 2, "belongs in [cache]"),
        ("[leas]\n", 1, "did you mean lease?"),
        ("[[token]]\nlabel = \"a\"", 1, "a [[token]] has a name"),
        ("[[cache]]\nmemlock = \"warn\"", 1, "cache is a section"),
        ("[[token]]\nname = \"a\"\n[[token]]\n", 3, "a [[token]] has a name"),
        ("[[token]]\nname = \"a/b\"", 2, "use 1 to 64 of"),
        ("[[token]]\nname = \"a\"\nlabl = \"b\"", 3, "did you mean label?"),
        ("[[token]]\nname = \"a\"\npin = \"1\"", 3, "a PIN does not stand in a configuration"),
        ("[[token]]\nname = \"a\"\nlabel = \"b\"\nslot = 1", 4, "named twice"),
        ("[[token]]\nname = \"a\"\nslot = 1\n[[token]]\nname = \"b\"\nslot = -1", 6, "whole numbers from 0"),
        ("token = [1]", 1, "write each token as [[token]]"),
        ("[[lease]]\ngrace = \"1s\"", 1, "lease is a section"),
        ("[kek]\nname = \"k\"", 1, "as [[kek]]"),
        ("kek = 3", 1, "as [[kek]]"),
        ("[[kek]]\nname = \"k\"", 1, "has a name and a standby"),
        ("[[kek]]\nnam = \"k\"", 2, "did you mean name?"),
        ("[[kek]]\nname = \"k/1\"", 2, "use 1 to 64 of"),
        ("[[kek]]\nname = 3", 2, "must be a string"),
        ("[[kek]]\nname = \"k\"\nstandby = \"\"", 3, "is empty"),
        ("[[kek]]\nname = \"k\"\nstandby = \"a\"\n[[kek]]\nname = \"k\"\nstandby = \"b\"", 4, "twice"),
        ("token = 3", 1, "token is a section"),
        ("\ngrace = \"15s\"\n", 2, "belongs in [lease]"),
        ("\ngrase = \"15s\"\n", 2, "did you mean grace?"),
        ("[x.y]\nz = 1", 1, "there is no section [x]"),
        ("[lease]\ngrace = 15", 2, "write \"15s\""),
        ("[lease]\ngrace = 1.5", 2, "has no unit"),
        ("[lease]\ngrace = \"15\"", 2, "15 has no unit; write \"15s\" for seconds, \"15 min\""),
        ("[lease]\ngrace = \"15 sec\"", 2, "\"30 min\""),
        ("[lease]\ngrace = \"1.5h\"", 2, "whole number and a unit"),
        ("[lease]\ngrace = \"-1s\"", 2, "whole number and a unit"),
        ("[lease]\ngrace = \"\"", 2, "is empty"),
        ("[lease]\ngrace = \"99999999999999999999s\"", 2, "whole number and a unit"),
        ("[lease]\ngrace = \"18446744073709551615h\"", 2, "whole number and a unit"),
        ("[lease]\ngrace = true", 2, "must be a string in quotes, this is of type boolean"),
        ("[lease]\nresume_rate = \"200\"", 2, "whole number without quotes, this is of type string"),
        ("[lease]\nresume_rate = -1", 2, "whole numbers from 0 to 4294967295"),
        ("[lease]\nresume_rate = 4294967296", 2, "is 4294967296; allowed"),
        ("[lease]\nresume_rate = 1e3", 2, "of type float"),
        ("[token]\nworkers = 0", 2, "from 1 to 30"),
        ("[token]\nworkers = 65", 2, "from 1 to 30"),
        ("[token]\nslot = 99999999999999999999999999999999999999999999", 2, "no whole number"),
        ("[token]\nlabel = \"\"", 2, "is empty"),
        ("[token]\nlabel = \"123456789012345678901234567890123\"", 2, "33 bytes, tokens have at most 32"),
        ("[token]\nlabel = \"a\"\nserial = \"b\"", 3, "named twice"),
        ("[token]\npin_file = \"a\"\npin_env = \"b\"", 3, "given twice"),
        ("[token]\nmodule = 1", 2, "must be a string"),
        ("[store]\npath = [\"a\"]", 2, "of type array"),
        ("[keys]\npurge_protection = \"no\"", 2, "must be true or false without quotes"),
        ("[cache]\nmemlock = \"maybe\"", 2, "\"warn\" or \"refuse\""),
        ("[store]\npath = \"a\"\npath = \"b\"", 3, "duplicate"),
        ("[store\n", 1, ""),
        ("[lease]\nb = 1\na = 1", 2, "there is no key b"),
    ];
    for (text, line, words) in cases {
        let error = text_of(parse(text).unwrap_err());
        assert!(error.contains(&format!("keyleash.toml line {line}: ")), "{text:?}: {error}");
        assert!(error.contains(words), "{text:?}: {error}");
    }
    // A value out of bounds is the settings' affair.
    let error = text_of(layered("[lease]\npoll_interval = \"2 min\"", &[]).unwrap_err());
    assert!(error.contains("poll_interval is 2 min"), "{error}");
}

#[test]
fn what_is_wrong_in_the_environment_is_named_with_its_variable() {
    for (name, value, words) in [
        ("KEYLEASH_GRASE", "30 min", "did you mean KEYLEASH_GRACE?"),
        ("KEYLEASH_TOKEN_LABLE", "x", "did you mean KEYLEASH_TOKEN_LABEL?"),
        ("KEYLEASH_GRACE", "30", "30 has no unit"),
        ("KEYLEASH_WORKERS", "four", "is four; allowed are whole numbers from 1 to 30"),
        ("KEYLEASH_STORE", "", "is empty"),
        ("KEYLEASH_TOKEN_SLOT", "-1", "whole numbers"),
    ] {
        let error = text_of(layered(WHOLE, &[(name, value)]).unwrap_err());
        assert!(error.contains(&format!("environment variable {name}: ")) && error.contains(words), "{error}");
    }
    let two = [("KEYLEASH_TOKEN_LABEL", "a"), ("KEYLEASH_TOKEN_SERIAL", "b")];
    assert!(text_of(layered("", &two).unwrap_err()).contains("named twice"));

    let bytes = OsString::from_vec(vec![b'/', 0xff]);
    let lookup = |wanted: &'static str| {
        let bytes = bytes.clone();
        move |name: &str| (name == wanted).then(|| bytes.clone())
    };
    let error = text_of(parse("").unwrap().overlay([], lookup("KEYLEASH_TOKEN_LABEL")).unwrap_err());
    assert!(error.contains("KEYLEASH_TOKEN_LABEL: is not UTF-8"), "{error}");
    let config = parse("").unwrap().overlay([], lookup("KEYLEASH_STORE")).unwrap().resolve().unwrap();
    assert_eq!(config.store.path().unwrap().as_os_str(), bytes, "a path may be any bytes");
}

#[test]
fn a_file_that_is_missing_too_long_or_no_text_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keyleash.toml");
    assert!(matches!(ConfigFile::read(&path), Err(Error::NotFound(text)) if text.contains("keyleash.toml")));
    std::fs::write(&path, WHOLE).unwrap();
    assert_eq!(ConfigFile::read(&path).unwrap(), ConfigFile::parse(WHOLE, path.to_str().unwrap()).unwrap());
    std::fs::write(&path, "#".repeat(CONFIG_BYTES_MAX)).unwrap();
    ConfigFile::read(&path).unwrap();
    std::fs::write(&path, "#".repeat(CONFIG_BYTES_MAX + 1)).unwrap();
    assert!(text_of(ConfigFile::read(&path).unwrap_err()).contains("longer than 65536 bytes"));
    std::fs::write(&path, b"# \xff").unwrap();
    assert!(text_of(ConfigFile::read(&path).unwrap_err()).contains("cannot be read"));
    assert!(text_of(ConfigFile::read(directory.path()).unwrap_err()).contains("cannot be read"));
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "(\\[|\\]|=|\"|[a-z_]{1,5}|token|kek|\\[\\[|\\]\\]|name|standby|lease|grace|[0-9]{1,3}|\\.|\n| |#|é){0,30}") {
        let _ = parse(&text);
    }
}

#[test]
fn grants_in_one_line_are_as_many_as_are_there() {
    let text = "grant = [{ caller = \"a\", role = \"reader\" }, { caller = \"b\", role = \"reader\" }]";
    let config = layered(text, &[]).unwrap();
    let ids: Vec<_> = config.policy.grants().iter().map(|grant| grant.id.to_string()).collect();
    assert_eq!(ids, ["keyleash.toml line 1", "keyleash.toml line 1 (2)"]);
}

#[test]
fn a_trail_that_is_kept_nowhere_and_what_would_make_one_useless_is_refused_by_name() {
    let resolve = |text: &str| ConfigFile::parse(text, "k.toml").and_then(ConfigFile::resolve);
    assert_eq!(resolve("").unwrap().audit, None);
    let audit = resolve("[audit]\ndirectory = \"/var/log/keyleash\"\n").unwrap().audit.unwrap();
    assert_eq!((audit.directory.as_path(), audit.node), (std::path::Path::new("/var/log/keyleash"), None));
    assert_eq!((audit.on_failure, audit.compress_after, audit.retention), (OnFailure::Refuse, DAY, None));
    let said = "[audit]\ndirectory = \"d\"\nnode = \"web-1\"\non_failure = \"continue\"\ncompress_after = \"2h\"\nretention = \"400d\"\n";
    let audit = resolve(said).unwrap().audit.unwrap();
    assert_eq!((audit.node.unwrap().as_str(), audit.on_failure), ("web-1", OnFailure::Continue));
    assert_eq!((audit.compress_after, audit.retention), (120 * MIN, Some(400 * DAY)));
    for (line, words) in [
        ("on_failure = \"refuse\"", ["k.toml line 2: audit.on_failure", "set audit.directory"]),
        (
            "directory = \"d\"\non_failure = \"ignore\"",
            ["k.toml line 3: audit.on_failure", "\"refuse\" or \"continue\""],
        ),
        ("directory = \"d\"\nretention = \"1h\"", ["k.toml line 3: audit.retention", "1d or more"]),
        ("directory = \"d\"\ncompress_after = \"1s\"", ["k.toml line 3: audit.compress_after", "1h to 30d"]),
        ("directory = \"d\"\nnode = \"a/b\"", ["k.toml line 3: audit.node", "node name"]),
        ("directory = \"d\"\nretension = \"90d\"", ["there is no key retension in [audit]", "retention"]),
    ] {
        let text = text_of(resolve(&format!("[audit]\n{line}\n")).unwrap_err());
        for word in words {
            assert!(text.contains(word), "{text} should say {word}");
        }
    }
    let variable = |name: &str| (name == "KEYLEASH_AUDIT_DIRECTORY").then(|| "/d".into());
    let file = ConfigFile::parse("[audit]\nnode = \"n\"\n", "k.toml").unwrap();
    let config = file.overlay(["KEYLEASH_AUDIT_DIRECTORY".into()], variable).unwrap().resolve().unwrap();
    assert_eq!(config.audit.unwrap().directory, PathBuf::from("/d"));
}

fn store(text: &str) -> Result<StoreConfig, Error> {
    Ok(ConfigFile::parse(text, "f")?.resolve()?.store)
}

#[test]
fn a_store_is_a_path_or_an_url_and_the_variable_takes_either() {
    let etcd =
        "[store]\nurl = \"etcd://a:1,b:2/n\"\nca = \"c\"\nuser = \"me\"\npassword_env = \"P\"\ntimeout = \"2s\"\n";
    let StoreConfig::Etcd(config) = store(etcd).unwrap() else { panic!("no etcd") };
    assert_eq!(config.endpoints, ["a:1", "b:2"]);
    assert_eq!((config.namespace.as_str(), config.reach.timeout), ("n", Duration::from_secs(2)));
    assert_eq!(config.reach.ca, Some("c".into()));
    assert!(config.reach.user.is_some_and(|user| user.name == "me"));
    assert_eq!(store("[store]\nurl = \"redb:a:b\"").unwrap(), StoreConfig::Redb("a:b".into()));
    for value in ["x.redb", "./a:b", "redb:k", "etcd://[::1]:1/n"] {
        let file = ConfigFile::parse(etcd, "f").unwrap();
        let lookup = |name: &str| (name == "KEYLEASH_STORE").then(|| value.into());
        let file = file.overlay(["KEYLEASH_STORE".into(), "P".into()], lookup).unwrap();
        let shown = file.shown();
        let said: Vec<_> = shown.iter().filter(|one| one.key.section == "store" && one.value.is_some()).collect();
        assert!(!said.iter().any(|one| one.value.as_deref() == Some("etcd://a:1,b:2/n")), "{said:?}");
        assert_eq!(file.resolve().unwrap().store.to_string(), value.trim_start_matches("redb:"));
    }
}

#[test]
fn what_is_wrong_with_a_store_is_said_with_its_line_and_no_password_is_shown() {
    for (keys, said) in [
        ("url = \"mysql://a/b\"", "f line 2: store.url: there is no store of the kind \"mysql\""),
        ("url = \"etcd://me:hunter2@a:1/n\"", "f line 2: store.url: has a user in it"),
        ("url = \"redb:\"", "names no file"),
        ("url = \"redb:a\"\npath = \"b\"", "f line 3: store.path: the store is named twice"),
        ("password = \"hunter2\"", "f line 2: a password does not stand in a configuration; use password_file"),
        ("url = \"etcd://a:1/n\"\nuser = \"a\"", "store.password_file is missing"),
        ("url = \"postgres://me:hunter2@a:1/d/s\"", "f line 2: store.url: has a user in it"),
        ("url = \"postgres://a:1/d/S\"", "f line 2: store.url: schema \"S\""),
        ("url = \"postgres://a:1/d/s\"\ntls = \"plaintext\"", "a:1 is not this machine"),
        ("password_file = \"a\"", "store.user is missing"),
        ("password_file = \"a\"\npassword_env = \"B\"", "f line 3: store.password_env: the password is given twice"),
        ("password_env = \"hunter2!\"", "it names the variable that holds the password, not the password"),
        ("cert = \"a\"", "store.key is missing"),
        ("tls = \"off\"", "f line 2: store.tls: is \"off\"; use \"on\""),
        ("timeout = \"2 min\"", "f line 2: store.timeout: allowed is 100ms to 60s"),
        ("url = \"etcd://a:1/n\"\ntls = \"plaintext\"", "a:1 is not this machine"),
        (
            "url = \"etcd://a:1/n\"\ntls = \"plaintext-anywhere\"\nuser = \"a\"\npassword_env = \"B\"",
            "by which no password is sent",
        ),
    ] {
        let error = store(&format!("[store]\n{keys}\n")).unwrap_err().to_string();
        assert!(error.contains(said) && !error.contains("hunter2"), "{keys}: {error}");
    }
    let hidden = ConfigFile::parse("[store]\nurl = \"etcd://me:hunter2@a:1/n\"\n", "f");
    assert!(hidden.is_err_and(|error| !error.to_string().contains("hunter2")));
}
