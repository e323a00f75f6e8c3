//! `keyleash.toml`, and the `KEYLEASH_*` variables over it.
//!
//! Each thing that can be set has one line in [`ITEMS`], by which both are read. Unknown names are refused with the
//! near one: a misspelt limit must not be a default.

use super::{
    Config, METRIC_ACCOUNTS_MAX, PinSource, Settings, TokenSelector, WORKERS_MAX,
    alert::{self, RULES_MAX, Rule},
    audit::AuditItems,
    given::{Given, bad},
    grants::Grants,
    items::{ITEMS, Item, Named, SECTIONS},
    mail::MailItems,
    store::{PasswordSource, StoreItems},
    tokens::{More, TokenItems, named_badly, tables},
};
pub(super) use crate::access::near;
use crate::{
    access::{Grant, Role},
    error::{Error, Result},
    name::{NodeName, TokenName},
    secret::MemlockPolicy,
};
use std::{
    ffi::OsString,
    io::{ErrorKind, Read},
    ops::Range,
    path::Path,
    time::Duration,
};
use toml::de::{DeTable, DeValue};

/// Longest configuration file, in bytes.
pub const CONFIG_BYTES_MAX: usize = 64 * 1024;
const LABEL_BYTES_MAX: usize = 32; // CK_TOKEN_INFO.label
const SERIAL_BYTES_MAX: usize = 16; // CK_TOKEN_INFO.serialNumber

const VARIABLE_PREFIX: &str = "KEYLEASH_";
/// The PIN itself. Whether it is set is all that is looked at here.
const PIN_VARIABLE: &str = "KEYLEASH_PIN";
/// Variables that are read elsewhere: the path of the file itself, and those of the fault shim (softhsm/fault-shim).
const VARIABLES_ELSEWHERE: [&str; 3] = ["KEYLEASH_CONFIG", "KEYLEASH_SHIM_MODULE", "KEYLEASH_SHIM_CONTROL"];

/// What was said of an item, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    item: Item,
    pub(super) text: String,
    pub(super) origin: String,
}

/// What a configuration file says, and no more: defaults and bounds come with [`ConfigFile::resolve`].
///
/// ```
/// use keyleash::config::ConfigFile;
///
/// let text = r#"
///     [token]
///     module = "/usr/lib/softhsm/libsofthsm2.so"
///     label = "production"
///     pin_file = "/run/secrets/pin"
///     [lease]
///     grace = "20 min"
/// "#;
/// let environment = |name: &str| (name == "KEYLEASH_GRACE").then(|| "10 min".into());
/// let names = ["KEYLEASH_GRACE".into()];
/// let config = ConfigFile::parse(text, "keyleash.toml")?.overlay(names, environment)?.resolve()?;
/// assert_eq!(config.settings.grace.as_secs(), 600);
/// # Ok::<(), keyleash::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigFile {
    token: TokenItems,
    more: More,
    store: StoreItems,
    poll_interval: Option<Duration>,
    call_timeout: Option<Duration>,
    grace: Option<Duration>,
    aek_ttl: Option<Duration>,
    resume_rate: Option<u32>,
    fresh_proof_every: Option<u32>,
    max_cached_aeks: Option<u64>,
    memlock: Option<MemlockPolicy>,
    require_recoverable: Option<bool>,
    retention: Option<Duration>,
    purge_protection: Option<bool>,
    metric_accounts: Option<u32>,
    audit: AuditItems,
    grants: Grants,
    alerts: Vec<Rule>,
    mail: MailItems,
    said: Vec<Said>,
}

impl ConfigFile {
    /// Reads and parses a file.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none; [`Error::Misconfigured`] when it cannot be read, is longer than
    /// [`CONFIG_BYTES_MAX`] or no UTF-8; else as [`ConfigFile::parse`].
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let mut text = String::new();
        // One byte more than allowed tells a file that is too long, whatever its length.
        let limit = CONFIG_BYTES_MAX as u64 + 1;
        match std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text)) {
            Ok(_) => Self::parse(&text, &name),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(Error::NotFound(format!("configuration {name}: there is no such file")))
            }
            Err(error) => Err(Error::Misconfigured(format!("{name}: it cannot be read: {error}"))),
        }
    }

    /// Parses the text of a file; `source_name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Misconfigured`] with the line: no TOML, an unknown section or key (and the near one), a value of the
    /// wrong type, a duration without a unit.
    pub fn parse(text: &str, source_name: &str) -> Result<Self> {
        if text.len() > CONFIG_BYTES_MAX {
            return Err(Error::Misconfigured(format!("{source_name}: it is longer than {CONFIG_BYTES_MAX} bytes")));
        }
        let at = |span: Range<usize>| {
            let before = text.as_bytes().get(..span.start).unwrap_or_default();
            format!("{source_name} line {}", before.iter().filter(|byte| **byte == b'\n').count() + 1)
        };
        let table = DeTable::parse(text).map_err(|error| {
            // The message alone: the error's own Display quotes the line, which may hold what nobody should log.
            bad(&error.span().map_or_else(|| source_name.to_owned(), at), error.message())
        })?;
        let mut file = Self::default();
        for (section, content) in in_order(table.get_ref()) {
            let origin = at(section.span());
            let section = section.get_ref();
            if file.read_array(&origin, section, content.get_ref(), &at)? {
                continue;
            }
            let Some(keys) = content.get_ref().as_table() else {
                return Err(misplaced(&origin, section, content.get_ref()));
            };
            if !SECTIONS.contains(&section.as_ref()) {
                return Err(bad(&origin, &format!("there is no section [{section}]; {}", near(section, &SECTIONS))));
            }
            file.read_section(section, keys, &at)?;
        }
        Ok(file)
    }

    fn read_section(&mut self, section: &str, keys: &DeTable<'_>, at: &impl Fn(Range<usize>) -> String) -> Result<()> {
        for (key, value) in in_order(keys) {
            let origin = at(key.span());
            let named = find_key(&origin, section, key.get_ref())?;
            let origin = format!("{origin}: {section}.{}", named.key);
            self.set(named.item, Given::of_toml(&origin, named.item, value.get_ref())?, &origin)?;
        }
        Ok(())
    }

    /// `[[token]]`, of which the first is the default one, `[[kek]]`, `[[grant]]`, `[[role]]` and `[[alert]]`. False for another section.
    fn read_array(
        &mut self,
        origin: &str,
        section: &str,
        content: &DeValue<'_>,
        at: &impl Fn(Range<usize>) -> String,
    ) -> Result<bool> {
        if !["token", "kek", "grant", "role", "alert"].contains(&section) {
            return Ok(false);
        }
        let Some(tables) = tables(origin, section, content)? else {
            return match section {
                "kek" => Err(bad(origin, "write each KEK that has a standby as [[kek]], with name and standby below")),
                "grant" | "role" | "alert" => {
                    Err(bad(origin, &format!("write each {section} as [[{section}]] with its keys below")))
                }
                _ => Ok(false),
            };
        };
        for (number, (span, keys)) in tables.into_iter().enumerate() {
            let origin = at(span);
            match section {
                "kek" => self.more.add_kek(&origin, keys, at)?,
                "grant" => self.grants.add_grant(&origin, keys, at)?,
                "role" => self.grants.add_role(&origin, keys, at)?,
                "alert" => {
                    let rule = alert::read(&origin, keys, at)?;
                    if self.alerts.len() >= RULES_MAX {
                        return Err(bad(&origin, &format!("at most {RULES_MAX} alerts are allowed")));
                    }
                    if self.alerts.iter().any(|other| other.name() == rule.name()) {
                        return Err(bad(
                            &origin,
                            &format!("two alerts are named {}: give each a name of its own", rule.name()),
                        ));
                    }
                    self.alerts.push(rule);
                }
                _ => {}
            }
            if section != "token" {
                continue;
            }
            let mut one = Self::default();
            one.read_section(section, keys, at)?;
            if one.token.name.is_none() {
                return Err(bad(&origin, "a [[token]] has a name, by which the records of its KEKs name it"));
            }
            match number {
                0 => {
                    self.token = one.token;
                    self.said.append(&mut one.said);
                }
                _ => self.more.add_token(one.token, one.said, origin)?,
            }
        }
        Ok(true)
    }

    /// Puts the `KEYLEASH_*` variables over the file. `names` are the environment's, all of them; `lookup` gives a
    /// value. The value of a PIN is never looked up.
    ///
    /// # Errors
    /// [`Error::Misconfigured`] with the variable: an unknown name (and the near one), an empty or wrong value, two ways
    /// to name the token or the PIN.
    pub fn overlay(
        self,
        names: impl IntoIterator<Item = OsString>,
        lookup: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self> {
        let mut environment = Self::default();
        // A store is named by one variable, whichever it is.
        for named in ITEMS.iter().filter(|named| named.item != Item::StoreUrl) {
            if let Some(value) = lookup(named.variable) {
                let origin = format!("environment variable {}", named.variable);
                environment.set(named.item, Given::of_variable(&origin, named.item, value)?, &origin)?;
            }
        }
        let mut names: Vec<_> = names
            .into_iter()
            .map(|name| name.to_string_lossy().into_owned())
            .filter(|name| name.starts_with(VARIABLE_PREFIX))
            .collect();
        names.sort_unstable();
        if names.iter().any(|name| name == PIN_VARIABLE) {
            let same = PinSource::Env(PIN_VARIABLE.into());
            if environment.token.pin.as_ref().is_some_and(|pin| *pin != same) {
                return Err(two_pins(&format!("environment variable {PIN_VARIABLE}")));
            }
            environment.token.pin = Some(same);
        }
        let layered = environment.over(self);
        let is_known = |name: &str| {
            ITEMS.iter().any(|named| named.variable == name)
                || name == PIN_VARIABLE
                || VARIABLES_ELSEWHERE.contains(&name)
                || layered.token.pin == Some(PinSource::Env(name.into()))
                || layered.store.is_password_variable(name)
        };
        if let Some(unknown) = names.iter().find(|name| !is_known(name)) {
            let mut known: Vec<_> = ITEMS.iter().map(|named| named.variable).collect();
            known.extend(VARIABLES_ELSEWHERE.iter().chain([&PIN_VARIABLE]));
            return Err(bad(
                &format!("environment variable {unknown}"),
                &format!("it is unknown; {}", near(unknown, &known)),
            ));
        }
        Ok(layered)
    }

    /// Fills in the defaults and checks the bounds.
    ///
    /// # Errors
    /// As [`Settings::validate`].
    pub fn resolve(self) -> Result<Config> {
        let default = Settings::default();
        let settings = Settings {
            poll_interval: self.poll_interval.unwrap_or(default.poll_interval),
            store_timeout: self.call_timeout.unwrap_or(default.store_timeout),
            grace: self.grace.unwrap_or(default.grace),
            aek_ttl: self.aek_ttl.unwrap_or(default.aek_ttl),
            resume_rate: self.resume_rate.unwrap_or(default.resume_rate),
            fresh_proof_every: self.fresh_proof_every.unwrap_or(default.fresh_proof_every),
            max_cached_aeks: self.max_cached_aeks.unwrap_or(default.max_cached_aeks),
            memlock: self.memlock.unwrap_or(default.memlock),
            require_recoverable: self.require_recoverable.unwrap_or(default.require_recoverable),
            retention: self.retention.unwrap_or(default.retention),
            purge_protection: self.purge_protection.unwrap_or(default.purge_protection),
            scheduled_work: default.scheduled_work,
            metric_accounts: self.metric_accounts.unwrap_or(default.metric_accounts),
        };
        let call_timeout = settings.store_timeout;
        settings.validate_timeout("call_timeout", call_timeout).map_err(|error| self.located(error))?;
        let token = self.token.resolve(call_timeout);
        let (other_tokens, standbys) = self.more.resolve(&token.name, call_timeout)?;
        for token in [&token].into_iter().chain(&other_tokens) {
            settings.validate_token(&token.name, token.call_timeout)?;
        }
        let (store, stores) = self.store.resolve()?;
        let policy = self.grants.resolve()?;
        let said = |section| {
            let mut of_section = ITEMS.iter().filter(|named| named.section == section);
            of_section.find_map(|named| said_in(&self.said, section, named.key)).map(|said| said.origin.as_str())
        };
        let (audit, mail) = (self.audit.resolve(said("audit"))?, self.mail.resolve(said("mail"))?);
        let alerts = self.alerts;
        Ok(Config { token, other_tokens, standbys, store, stores, settings, policy, audit, alerts, mail })
    }

    /// What this says, and where it says nothing, what `below` says.
    fn over(self, below: Self) -> Self {
        Self {
            token: self.token.over(below.token),
            more: below.more, // no variable speaks of them
            store: self.store.over(below.store),
            poll_interval: self.poll_interval.or(below.poll_interval),
            call_timeout: self.call_timeout.or(below.call_timeout),
            grace: self.grace.or(below.grace),
            aek_ttl: self.aek_ttl.or(below.aek_ttl),
            resume_rate: self.resume_rate.or(below.resume_rate),
            fresh_proof_every: self.fresh_proof_every.or(below.fresh_proof_every),
            max_cached_aeks: self.max_cached_aeks.or(below.max_cached_aeks),
            memlock: self.memlock.or(below.memlock),
            require_recoverable: self.require_recoverable.or(below.require_recoverable),
            retention: self.retention.or(below.retention),
            purge_protection: self.purge_protection.or(below.purge_protection),
            metric_accounts: self.metric_accounts.or(below.metric_accounts),
            audit: self.audit.over(below.audit),
            grants: below.grants, // no variable speaks of them
            alerts: below.alerts,
            mail: self.mail.over(below.mail),
            said: said_over(self.said, below.said),
        }
    }

    /// The grants of the file, each with its place as its id, as they were said.
    pub fn grants(&self) -> &[Grant] {
        self.grants.grants()
    }

    /// The roles of the file, and where each was said.
    pub fn roles(&self) -> impl Iterator<Item = (&Role, &str)> {
        self.grants.roles()
    }

    /// What was said of a key.
    pub(super) fn said_of(&self, section: &str, key: &str) -> Option<&Said> {
        said_in(&self.said, section, key)
    }

    /// The tokens beside the default one, and the standbys.
    pub(super) const fn more(&self) -> &More {
        &self.more
    }

    /// Says where a value was said that is out of its bounds: what is wrong with it begins with its key.
    fn located(&self, error: Error) -> Error {
        let Error::Misconfigured(what) = &error else { return error };
        let key = what.split(' ').next().unwrap_or_default();
        let said = ITEMS.iter().filter(|named| named.key == key).find_map(|named| self.said_of(named.section, key));
        said.map_or(error.clone(), |said| bad(&said.origin, what))
    }

    /// Sets one item, which is set once per file and once per environment.
    fn set(&mut self, item: Item, given: Given, origin: &str) -> Result<()> {
        let item = if item == Item::Store && given.names_scheme() { Item::StoreUrl } else { item };
        self.said.push(Said { item, text: given.shown(item), origin: origin.to_owned() });
        match item {
            Item::TokenName => {
                let name = TokenName::new(given.string(origin)?);
                self.token.name = Some(name.map_err(|error| named_badly(origin, error))?);
            }
            Item::TokenCallTimeout => self.token.call_timeout = Some(given.duration(origin)?),
            Item::Module => self.token.module = Some(given.path(origin)?),
            Item::Store | Item::StoreUrl => self.store.set_place(&given.path(origin)?, origin)?,
            Item::StoreTls => self.store.set_tls(&given.string(origin)?, origin)?,
            Item::StoreCa => self.store.ca = Some(given.path(origin)?),
            Item::StoreCert => self.store.cert = Some(given.path(origin)?),
            Item::StoreKey => self.store.key = Some(given.path(origin)?),
            Item::StoreUser => self.store.user = Some(given.string(origin)?),
            Item::StorePasswordFile => self.store.set_password(PasswordSource::File(given.path(origin)?), origin)?,
            Item::StorePasswordEnv => {
                self.store.set_password(PasswordSource::Env(given.variable_name(origin, "password")?), origin)?
            }
            Item::StoreTimeout => self.store.set_timeout(given.duration(origin)?, origin)?,
            Item::StoreEndpoint => self.store.endpoint = Some(given.string(origin)?),
            Item::StoreRegion => self.store.region = Some(given.string(origin)?),
            Item::Label => self.token.select(TokenSelector::Label(given.text(origin, LABEL_BYTES_MAX)?), origin)?,
            Item::Serial => self.token.select(TokenSelector::Serial(given.text(origin, SERIAL_BYTES_MAX)?), origin)?,
            Item::Slot => self.token.select(TokenSelector::Slot(given.number(origin, 0, u64::MAX)?), origin)?,
            Item::PinFile => self.token.take_pin(PinSource::File(given.path(origin)?), origin)?,
            Item::PinEnv => self.token.take_pin(PinSource::Env(given.variable_name(origin, "PIN")?), origin)?,
            Item::Workers => self.token.workers = Some(given.number(origin, 1, WORKERS_MAX as u64)?),
            Item::PollInterval => self.poll_interval = Some(given.duration(origin)?),
            Item::CallTimeout => self.call_timeout = Some(given.duration(origin)?),
            Item::Grace => self.grace = Some(given.duration(origin)?),
            Item::AekTtl => self.aek_ttl = Some(given.duration(origin)?),
            Item::FreshProofEvery => self.fresh_proof_every = Some(given.number(origin, 1, u32::MAX.into())?),
            Item::ResumeRate => self.resume_rate = Some(given.number(origin, 0, u32::MAX.into())?),
            Item::MaxCachedAeks => self.max_cached_aeks = Some(given.number(origin, 0, u64::MAX)?),
            Item::Memlock => self.memlock = Some(given.memlock(origin)?),
            Item::RequireRecoverable => self.require_recoverable = Some(given.switch(origin)?),
            Item::Retention => self.retention = Some(given.duration(origin)?),
            Item::PurgeProtection => self.purge_protection = Some(given.switch(origin)?),
            Item::MetricAccounts => self.metric_accounts = Some(given.number(origin, 0, METRIC_ACCOUNTS_MAX.into())?),
            Item::AuditDirectory => self.audit.directory = Some(given.path(origin)?),
            Item::AuditNode => {
                let name = NodeName::new(given.string(origin)?);
                self.audit.node = Some(name.map_err(|error| named_badly(origin, error))?);
            }
            Item::AuditOnFailure => self.audit.set_on_failure(&given.string(origin)?, origin)?,
            Item::AuditCompressAfter => self.audit.set_compress_after(given.duration(origin)?, origin)?,
            Item::AuditRetention => self.audit.set_retention(given.duration(origin)?, origin)?,
            Item::AuditEarlierKeys => self.audit.set_earlier_keys(&given.string(origin)?, origin)?,
            Item::MailServer => self.mail.set_server(given.string(origin)?, origin)?,
            Item::MailPort => self.mail.port = Some(given.number(origin, 1, u16::MAX.into())?),
            Item::MailTls => self.mail.set_tls(&given.string(origin)?, origin)?,
            Item::MailFrom => self.mail.set_from(&given.string(origin)?, origin)?,
            Item::MailTo => self.mail.set_to(&given.string(origin)?, origin)?,
            Item::MailUser => self.mail.user = Some(given.string(origin)?),
            Item::MailPasswordFile => self.mail.password_file = Some(given.path(origin)?),
            Item::MailCa => self.mail.ca = Some(given.path(origin)?),
            Item::MailTimeout => self.mail.set_timeout(given.duration(origin)?, origin)?,
        }
        Ok(())
    }
}

/// What was said of a key, among what was said.
pub(super) fn said_in<'a>(said: &'a [Said], section: &str, key: &str) -> Option<&'a Said> {
    let named = ITEMS.iter().find(|named| (named.section, named.key) == (section, key))?;
    said.iter().find(|said| said.item == named.item)
}

/// What the upper one says goes over what the lower one says of the same; so do the ways to name a token, and those to a PIN.
fn said_over(mut upper: Vec<Said>, lower: Vec<Said>) -> Vec<Said> {
    let group = |item: Item| match item {
        Item::Label | Item::Serial | Item::Slot => Item::Label,
        Item::PinFile | Item::PinEnv => Item::PinFile,
        Item::Store | Item::StoreUrl => Item::Store,
        Item::StorePasswordFile | Item::StorePasswordEnv => Item::StorePasswordFile,
        item => item,
    };
    let above: Vec<_> = upper.iter().map(|said| group(said.item)).collect();
    upper.extend(lower.into_iter().filter(|said| !above.contains(&group(said.item))));
    upper
}

pub(super) fn two_pins(origin: &str) -> Error {
    bad(
        origin,
        "the PIN is given twice: use one of pin_file (KEYLEASH_PIN_FILE), pin_env (KEYLEASH_PIN_ENV) and KEYLEASH_PIN",
    )
}

/// The entries as they stand in the file, so that the first mistake is the one that is named.
pub(super) fn in_order<'t, 'i>(
    table: &'t DeTable<'i>,
) -> Vec<(&'t toml::Spanned<toml::de::DeString<'i>>, &'t toml::Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// Something at the top of the file that is no section.
fn misplaced(origin: &str, name: &str, value: &DeValue<'_>) -> Error {
    if SECTIONS.contains(&name) {
        return bad(
            origin,
            &format!("{name} is a section: write [{name}] and its keys below, not a {}", value.type_str()),
        );
    }
    match ITEMS.iter().find(|named| named.key == name) {
        Some(named) => bad(origin, &format!("{name} stands outside of a section: it belongs in [{}]", named.section)),
        None => {
            let keys: Vec<_> = ITEMS.iter().map(|named| named.key).collect();
            bad(origin, &format!("there is no key {name}, and keys stand in sections; {}", near(name, &keys)))
        }
    }
}

fn find_key(origin: &str, section: &str, key: &str) -> Result<&'static Named> {
    let mut here = ITEMS.iter().filter(|named| named.section == section);
    if let Some(named) = here.clone().find(|named| named.key == key) {
        return Ok(named);
    }
    let what = if section == "token" && key == "pin" {
        "a PIN does not stand in a configuration; use pin_file or pin_env".into()
    } else if ["mail", "store"].contains(&section) && key == "password" {
        "a password does not stand in a configuration; use password_file".into()
    } else if let Some(elsewhere) = ITEMS.iter().find(|named| named.key == key) {
        format!("{key} belongs in [{}]", elsewhere.section)
    } else {
        let keys: Vec<_> = here.by_ref().map(|named| named.key).collect();
        format!("there is no key {key} in [{section}]; {}", near(key, &keys))
    };
    Err(bad(origin, &what))
}
