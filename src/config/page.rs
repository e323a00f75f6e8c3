//! Every key that can be set: what it is, its default and its bounds, once, for `config show`, `config init` and the manual.

use super::{
    AEK_TTL_MIN, AUDIT_RETENTION_MIN, CACHED_AEKS_MAX, CALL_TIMEOUT_MAX, CALL_TIMEOUT_MIN, COMPRESS_AFTER_DEFAULT,
    COMPRESS_AFTER_MAX, COMPRESS_AFTER_MIN, EARLIER_KEYS_MAX, METRIC_ACCOUNTS_MAX, POLL_INTERVAL_MAX,
    POLL_INTERVAL_MIN, RETENTION_MAX, RETENTION_MIN, REVOCATION_MAX, STORE_DEFAULT, Settings, WORKERS_DEFAULT,
    WORKERS_MAX,
    file::{ConfigFile, Said, said_in},
    items::{ITEMS, Item, Named},
    mail::{MAIL_TIMEOUT_DEFAULT, MAIL_TIMEOUT_MAX, MAIL_TIMEOUT_MIN, RECIPIENTS_MAX},
    show,
    store::{STORE_TIMEOUT_DEFAULT, STORE_TIMEOUT_MAX, STORE_TIMEOUT_MIN},
};
use crate::name::{KekName, TokenName};
use std::fmt::Write as _;

/// A key of `keyleash.toml`, and the variable that goes over it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Key {
    /// Its section.
    pub section: &'static str,
    /// Its name there.
    pub key: &'static str,
    /// The environment variable.
    pub variable: &'static str,
    /// What holds where nothing is said; `None` where nothing does.
    pub default: Option<String>,
    /// What is allowed.
    pub bounds: String,
    /// What it is.
    pub about: &'static str,
}

/// A key with what is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shown {
    /// The key.
    pub key: Key,
    /// The `[[token]]` that it is of, where it is not the default one's.
    pub token: Option<TokenName>,
    /// What was said, as it was written; `None` for the default. That of a PIN is never shown.
    pub value: Option<String>,
    /// Where it was said: file and line, or variable.
    pub origin: Option<String>,
}

/// Every key, section by section.
pub fn keys() -> Vec<Key> {
    let mut items: Vec<_> = ITEMS.iter().collect();
    let sections: Vec<_> = ITEMS.iter().map(|named| named.section).collect();
    items.sort_by_key(|named| sections.iter().position(|section| *section == named.section));
    let key = |named: &&Named| {
        let (default, bounds, about) = facts(named.item);
        Key { section: named.section, key: named.key, variable: named.variable, default, bounds, about }
    };
    items.iter().map(key).collect()
}

impl ConfigFile {
    /// Every key with what this says of it: those of each further token too, behind the default one's.
    pub fn shown(&self) -> Vec<Shown> {
        let shown = |key: Key, token: Option<TokenName>, said: Option<&Said>| {
            let (value, origin) = said.map(|said| (said.text.clone(), said.origin.clone())).unzip();
            Shown { key, token, value, origin }
        };
        let (of_token, others): (Vec<_>, Vec<_>) = keys().into_iter().partition(|key| key.section == "token");
        let of_default = of_token.iter().map(|key| shown(key.clone(), None, self.said_of(key.section, key.key)));
        let of_others = self.more().said().flat_map(|(name, said)| {
            of_token.iter().map(move |key| shown(key.clone(), name.cloned(), said_in(said, key.section, key.key)))
        });
        let rest = others.iter().map(|key| shown(key.clone(), None, self.said_of(key.section, key.key)));
        of_default.chain(of_others).chain(rest).collect()
    }

    /// The standby of each KEK that has one, and where that was said.
    pub fn standbys(&self) -> Vec<(KekName, TokenName, String)> {
        let owned =
            |(kek, standby, origin): (&KekName, &TokenName, &str)| (kek.clone(), standby.clone(), origin.to_owned());
        self.more().standbys().map(owned).collect()
    }
}

/// Default, bounds, meaning.
fn facts(item: Item) -> (Option<String>, String, &'static str) {
    let Settings {
        poll_interval,
        store_timeout,
        grace,
        aek_ttl,
        resume_rate,
        max_cached_aeks,
        fresh_proof_every,
        require_recoverable,
        retention,
        purge_protection,
        metric_accounts,
        ..
    } = Settings::default();
    let one = || "one of label, serial and slot".to_owned();
    let pin = || "one of pin_file and pin_env".to_owned();
    match item {
        Item::TokenName => {
            (Some("default".into()), "as a KEK name".into(), "what the records of its KEKs call the token")
        }
        Item::Module => (None, "a file".into(), "the PKCS#11 library"),
        Item::Label => (None, one(), "the token with this label"),
        Item::Serial => (None, one(), "the token with this serial number"),
        Item::Slot => (None, one(), "the token in the slot with this id; some modules renumber theirs"),
        Item::PinFile => (None, pin(), "the file that holds the user PIN; readable by its owner alone"),
        Item::PinEnv => (None, pin(), "the variable that holds the user PIN (KEYLEASH_PIN is read without it)"),
        Item::Workers => {
            (Some(WORKERS_DEFAULT.to_string()), format!("1 to {WORKERS_MAX}"), "threads that call the token")
        }
        Item::TokenCallTimeout => (
            Some("that of [lease]".into()),
            "as that".into(),
            "deadline of a call of this token, where it has one of its own",
        ),
        Item::Store => (Some(STORE_DEFAULT.into()), "a file, or url".into(), "where the wrapped AEKs are"),
        Item::StoreUrl => (
            None,
            "etcd://HOST:PORT,HOST:PORT/NAMESPACE, postgres://HOST:PORT/DATABASE/SCHEMA, s3://BUCKET/NAMESPACE or redb:FILE, \
             instead of path"
                .into(),
            "where the wrapped AEKs are, of many machines",
        ),
        Item::StoreTls => (
            Some("on".into()),
            "on, plaintext (to this machine) or plaintext-anywhere (without a password)".into(),
            "how the way to the store's server is kept from others",
        ),
        Item::StoreCa => (
            Some("[those of the platform]".into()),
            "a file".into(),
            "the certificates, PEM, by which those of the server are known; no others are then",
        ),
        Item::StoreCert => {
            (None, "a file, with a key".into(), "the certificate, PEM, by which the server knows this client")
        }
        Item::StoreKey => (None, "a file, with a cert".into(), "its private key, PEM; readable by its owner alone"),
        Item::StoreUser => (
            None,
            "a name, with a password where it is asked for one".into(),
            "the user of the server; of a bucket the id of an access key",
        ),
        Item::StorePasswordFile => (
            None,
            "one of password_file and password_env".into(),
            "the file that holds that user's password, or secret access key; readable by its owner alone",
        ),
        Item::StorePasswordEnv => {
            (None, "one of password_file and password_env".into(), "the variable that holds that user's password")
        }
        Item::StoreTimeout => (
            Some(show(STORE_TIMEOUT_DEFAULT)),
            format!("{} to {}", show(STORE_TIMEOUT_MIN), show(STORE_TIMEOUT_MAX)),
            "how long a call waits for the store's server, all that are named asked; let it be less than call_timeout",
        ),
        Item::StoreEndpoint => (
            Some("[AWS's of the region]".into()),
            "HOST, HOST:PORT, or that behind https:// or http://".into(),
            "where the server of a bucket is; no other store has one",
        ),
        Item::StoreRegion => (
            Some("[AWS_REGION or AWS_DEFAULT_REGION; at an endpoint of one's own us-east-1]".into()),
            "as in eu-central-1".into(),
            "the region of a bucket; no other store has one",
        ),
        Item::PollInterval => (
            Some(show(poll_interval)),
            format!("{} to {}", show(POLL_INTERVAL_MIN), show(POLL_INTERVAL_MAX)),
            "time between two proofs of a KEK version",
        ),
        Item::CallTimeout => (
            Some(show(store_timeout)),
            format!("{} to {}, at most poll_interval", show(CALL_TIMEOUT_MIN), show(CALL_TIMEOUT_MAX)),
            "deadline of a call of a token, and of a call of the store that a key waits for",
        ),
        Item::Grace => (
            Some(show(grace)),
            format!(
                "at least poll_interval + 2 call_timeout; (fresh_proof_every + 1) poll_interval + grace + call_timeout at most {}",
                show(REVOCATION_MAX)
            ),
            "how long a lease lasts after its last proof while the token is unreachable",
        ),
        Item::AekTtl => (
            Some(show(aek_ttl)),
            format!("at least {} and 2 call_timeout, at most grace", show(AEK_TTL_MIN)),
            "how long an AEK is used without an unwrap of its own",
        ),
        Item::ResumeRate => (
            Some(resume_rate.to_string()),
            format!("1 to {}", u32::MAX),
            "most unwraps per second of each token in the background",
        ),
        Item::FreshProofEvery => (
            Some(fresh_proof_every.to_string()),
            "at least 1; see grace".into(),
            "every so many proofs one comes from a fresh context of the module",
        ),
        Item::MaxCachedAeks => {
            (Some(max_cached_aeks.to_string()), format!("1 to {CACHED_AEKS_MAX}"), "most AEKs in memory")
        }
        Item::Memlock => {
            (Some("warn".into()), "warn or refuse".into(), "what happens when key memory cannot be locked")
        }
        Item::RequireRecoverable => (
            Some(require_recoverable.to_string()),
            "true or false".into(),
            "refuse new accounts under a KEK version of which no backup is attested",
        ),
        Item::Retention => (
            Some(show(retention)),
            format!("{} to {}", show(RETENTION_MIN), show(RETENTION_MAX)),
            "how long a deleted account can be undeleted before it may be purged",
        ),
        Item::PurgeProtection => (
            Some(purge_protection.to_string()),
            "true or false".into(),
            "nobody purges an account before its retention is over",
        ),
        Item::MetricAccounts => (
            Some(metric_accounts.to_string()),
            format!("0 to {METRIC_ACCOUNTS_MAX}"),
            "of so many accounts each is counted in the metrics by its id, of the others all together",
        ),
        Item::AuditDirectory => (
            None,
            "a directory that is there".into(),
            "where the trail is kept, each node in a folder of its name; without it there is no trail",
        ),
        Item::AuditNode => {
            (Some("[the host's name]".into()), "as a KEK name".into(), "the name of this process's node")
        }
        Item::AuditOnFailure => (
            Some("refuse".into()),
            "refuse or continue".into(),
            "what becomes of data operations while the trail cannot be kept",
        ),
        Item::AuditCompressAfter => (
            Some(show(COMPRESS_AFTER_DEFAULT)),
            format!("{} to {}", show(COMPRESS_AFTER_MIN), show(COMPRESS_AFTER_MAX)),
            "how long after its hour a file of the trail is compressed",
        ),
        Item::AuditRetention => (
            None,
            format!("at least {}", show(AUDIT_RETENTION_MIN)),
            "how long after its hour a file of the trail is removed; without it none is",
        ),
        Item::AuditEarlierKeys => (
            None,
            format!("1 to {EARLIER_KEYS_MAX} keys as `keyleash audit key show` prints them, with a comma between two"),
            "keys that signed the trail before the one that signs now",
        ),
        Item::MailServer => (
            None,
            "a name or an IP address".into(),
            "the server that takes notices as mail; its certificate has this name",
        ),
        Item::MailPort => (
            Some("[465; 587 with starttls, 25 without TLS]".into()),
            "1 to 65535".into(),
            "the port of the mail server",
        ),
        Item::MailTls => (
            Some("implicit".into()),
            "implicit, starttls, plaintext (to this machine) or plaintext-anywhere (without a password)".into(),
            "how the way to the mail server is kept from others",
        ),
        Item::MailFrom => (None, "an address".into(), "who sends notices"),
        Item::MailTo => {
            (None, format!("1 to {RECIPIENTS_MAX} addresses, with a comma between two"), "who gets each notice")
        }
        Item::MailUser => (None, "a name, with a password_file".into(), "who the mail server takes mail from"),
        Item::MailPasswordFile => {
            (None, "a file".into(), "the file that holds that user's password; readable by its owner alone")
        }
        Item::MailCa => (
            Some("[those of the platform]".into()),
            "a file".into(),
            "the certificates, PEM, by which the mail server's is known; no others are then",
        ),
        Item::MailTimeout => (
            Some(show(MAIL_TIMEOUT_DEFAULT)),
            format!("{} to {}", show(MAIL_TIMEOUT_MIN), show(MAIL_TIMEOUT_MAX)),
            "how long connecting to the mail server may take, and its word on each mail",
        ),
    }
}

/// A configuration file in which every key stands as a comment, with its default.
pub fn template() -> String {
    let mut page = String::from(
        "# keyleash.toml: every key, with its default. Uncomment what you change.\n# KEYLEASH_* variables go over it.\n",
    );
    let mut section = "";
    for Key { section: of, key, variable, default, bounds, about } in keys() {
        if section != of {
            section = of;
            let _ = writeln!(page, "\n[{section}]");
        }
        let quoted = default.filter(|default| !default.contains('[')).map_or_else(
            || "\"\"".to_owned(),
            |default| match default.parse::<u64>().is_ok() || ["true", "false"].contains(&default.as_str()) {
                true => default,
                false => format!("{default:?}"),
            },
        );
        let _ = writeln!(page, "# {about}; {bounds} ({variable})\n# {key} = {quoted}");
    }
    page
}

/// The page of the manual.
#[cfg(test)]
fn manual() -> String {
    let mut page = String::from(
        "# Every key of `keyleash.toml`, its default and bounds\n\nWritten by `src/config/page.rs`, whose test says when it is not.\n\n\
         | section | key | variable | default | allowed | what it is |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for Key { section, key, variable, default, bounds, about } in keys() {
        let default = default.unwrap_or_else(|| "none".into()).replace(['[', ']'], "`");
        let _ = writeln!(page, "| {section} | `{key}` | `{variable}` | {default} | {bounds} | {about} |");
    }
    page.push_str(
        "\nA duration is a number and its unit: ms, s, min, h or d. `[[token]]` and `[[kek]]` are in [several tokens], `[[grant]]`\n\
         and `[[role]]` in [grants of a file].\n\
         `keyleash config show` says what is in force, and from where; `keyleash config init` writes a file with all of these.\n\n\
         [grants of a file]: grants.md#grants-of-a-file\n[several tokens]: operations.md#several-tokens\n",
    );
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_every_key_as_it_is() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/manual/settings.md");
        if std::env::var_os("KEYLEASH_TEST_WRITE_MANUAL").is_some() {
            std::fs::write(path, manual()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), manual(), "run this with KEYLEASH_TEST_WRITE_MANUAL=1");
    }

    #[test]
    fn the_template_says_nothing_as_it_is_and_every_default_in_it_is_one() {
        let template = template();
        assert_eq!(ConfigFile::parse(&template, "t").unwrap(), ConfigFile::default());
        let uncommented: String = template
            .lines()
            .map(|line| {
                line.strip_prefix("# ").filter(|line| line.contains(" = ") && !line.ends_with("\"\"")).unwrap_or("")
            })
            .zip(template.lines())
            .map(|(line, whole)| if whole.starts_with('[') { format!("{whole}\n") } else { format!("{line}\n") })
            .collect();
        // How a trail is kept, or mail sent, says nothing without where.
        let (trail, mail) =
            ("[audit]\ndirectory = \"trail\"\n", "[mail]\nserver = \"m\"\nfrom = \"a@b\"\nto = \"c@d\"\n");
        let uncommented = uncommented.replace("[audit]\n", trail).replace("[mail]\n", mail);
        let config = ConfigFile::parse(&uncommented, "t").unwrap().resolve().unwrap();
        let defaults = ConfigFile::parse(&format!("{trail}{mail}"), "t").unwrap().resolve().unwrap();
        assert_eq!(config, defaults);
    }
}
