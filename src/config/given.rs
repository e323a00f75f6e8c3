//! A value as it was given, in the file or in a variable, and what it must be.

use super::items::Item;
use crate::{
    error::{Error, Result},
    secret::MemlockPolicy,
};
use std::{ffi::OsString, net::IpAddr, path::PathBuf, time::Duration};
use toml::de::DeValue;

const DURATION_FORM: &str = "write a whole number and a unit, \"100ms\", \"15s\", \"30 min\", \"1h\" or \"90d\"";

/// A value as it was given, of the right type but not yet judged.
pub(super) enum Given {
    /// A string of the file, or a variable.
    Text(OsString),
    /// A number of the file, as it is written.
    Number(String),
}

impl Given {
    pub(super) fn of_toml(origin: &str, item: Item, value: &DeValue<'_>) -> Result<Self> {
        let wants_number = matches!(
            item,
            Item::Slot
                | Item::Workers
                | Item::ResumeRate
                | Item::FreshProofEvery
                | Item::MaxCachedAeks
                | Item::MailPort
                | Item::MetricAccounts
        );
        let is_duration = matches!(
            item,
            Item::TokenCallTimeout
                | Item::PollInterval
                | Item::CallTimeout
                | Item::Grace
                | Item::AekTtl
                | Item::Retention
                | Item::AuditCompressAfter
                | Item::AuditRetention
                | Item::MailTimeout
                | Item::StoreTimeout
        );
        let is_switch = matches!(item, Item::RequireRecoverable | Item::PurgeProtection);
        match value {
            DeValue::Boolean(on) if is_switch => Ok(Self::Text(on.to_string().into())),
            DeValue::String(text) if !wants_number && !is_switch => Ok(Self::Text(text.as_ref().into())),
            DeValue::Integer(number) if wants_number => {
                let number = i128::from_str_radix(number.as_str(), number.radix());
                number.map(|number| Self::Number(number.to_string())).map_err(|_| bad(origin, "is no whole number"))
            }
            DeValue::Integer(number) if is_duration => Err(no_unit(origin, number.as_str())),
            DeValue::Float(number) if is_duration => Err(no_unit(origin, number.as_str())),
            other => {
                let wanted = match (wants_number, is_switch) {
                    (true, _) => "a whole number without quotes",
                    (_, true) => "true or false without quotes",
                    _ => "a string in quotes",
                };
                Err(bad(origin, &format!("must be {wanted}, this is of type {}", other.type_str())))
            }
        }
    }

    pub(super) fn of_variable(origin: &str, item: Item, value: OsString) -> Result<Self> {
        let is_path = matches!(
            item,
            Item::Module
                | Item::PinFile
                | Item::Store
                | Item::StoreCa
                | Item::StoreCert
                | Item::StoreKey
                | Item::StorePasswordFile
                | Item::AuditDirectory
                | Item::MailPasswordFile
                | Item::MailCa
        );
        if !is_path && value.to_str().is_none() {
            return Err(bad(origin, "is not UTF-8"));
        }
        Ok(Self::Text(value))
    }

    /// As it was written; where the PIN may be, only that something is.
    pub(super) fn shown(&self, item: Item) -> String {
        match self {
            _ if [Item::PinEnv, Item::StorePasswordEnv].contains(&item) => "(set)".into(),
            // What is refused may have a password in it.
            Self::Text(text) if [Item::StoreUrl, Item::StoreEndpoint].contains(&item) => {
                super::store::shown_url(&text.to_string_lossy())
            }
            Self::Number(text) => text.clone(),
            Self::Text(text) => text.to_string_lossy().into_owned(),
        }
    }

    /// It is an URL, where it could be a path.
    pub(super) fn names_scheme(&self) -> bool {
        matches!(self, Self::Text(text) if super::store::scheme_of(text).is_some())
    }

    pub(super) fn string(self, origin: &str) -> Result<String> {
        let text = match self {
            Self::Number(text) => text,
            Self::Text(text) => text.into_string().map_err(|_| bad(origin, "is not UTF-8"))?,
        };
        if text.is_empty() { Err(empty(origin)) } else { Ok(text) }
    }

    pub(super) fn path(self, origin: &str) -> Result<PathBuf> {
        match self {
            Self::Text(text) if !text.is_empty() => Ok(text.into()),
            _ => Err(empty(origin)),
        }
    }

    pub(super) fn text(self, origin: &str, bytes_max: usize) -> Result<String> {
        let text = self.string(origin)?;
        let bytes = bytes_meant(&text);
        if bytes > bytes_max {
            return Err(bad(origin, &format!("has {bytes} bytes, tokens have at most {bytes_max}")));
        }
        Ok(text)
    }

    /// Says nothing about the value: somebody may have put the PIN there.
    pub(super) fn variable_name(self, origin: &str, what: &str) -> Result<String> {
        let name = self.string(origin)?;
        let begins_well = name.bytes().next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_');
        if begins_well && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Ok(name);
        }
        Err(bad(
            origin,
            &format!(
                "is no name of an environment variable; it names the variable that holds the {what}, not the {what}"
            ),
        ))
    }

    pub(super) fn number<N: TryFrom<u64>>(self, origin: &str, min: u64, max: u64) -> Result<N> {
        let text = self.string(origin)?;
        let number = text.parse::<u64>().ok().filter(|number| (min..=max).contains(number));
        number
            .and_then(|number| N::try_from(number).ok())
            .ok_or_else(|| bad(origin, &format!("is {text}; allowed are whole numbers from {min} to {max}")))
    }

    pub(super) fn duration(self, origin: &str) -> Result<Duration> {
        let text = self.string(origin)?;
        let digits = text.trim().bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.trim().split_at_checked(digits).unwrap_or_default();
        let unit_ms = match unit.trim() {
            "" if !number.is_empty() => return Err(no_unit(origin, number)),
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad(origin, &format!("{text:?} is no duration: {DURATION_FORM}"))),
        };
        let number: Option<u64> = number.parse().ok();
        match number.and_then(|number| number.checked_mul(unit_ms)) {
            Some(ms) => Ok(Duration::from_millis(ms)),
            None => Err(bad(origin, &format!("{text:?} is no duration that can be counted: {DURATION_FORM}"))),
        }
    }

    pub(super) fn switch(self, origin: &str) -> Result<bool> {
        match self.string(origin)?.as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(bad(origin, &format!("is {other:?}; use true or false"))),
        }
    }

    pub(super) fn memlock(self, origin: &str) -> Result<MemlockPolicy> {
        match self.string(origin)?.as_str() {
            "warn" => Ok(MemlockPolicy::Warn),
            "refuse" => Ok(MemlockPolicy::Refuse),
            other => Err(bad(origin, &format!("is {other:?}; use \"warn\" or \"refuse\""))),
        }
    }
}

/// A host by name or address: what is sent there does not leave this machine.
pub(super) fn is_this_machine(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

pub(super) fn bad(origin: &str, what: &str) -> Error {
    Error::Misconfigured(format!("{origin}: {what}"))
}

fn empty(origin: &str) -> Error {
    bad(origin, "is empty; leave it out instead")
}

fn no_unit(origin: &str, number: &str) -> Error {
    bad(origin, &format!("{number} has no unit; write \"{number}s\" for seconds, \"{number} min\" or \"{number}ms\""))
}

/// How many bytes of a token's label or serial number this text stands for at least. It may be typed as it is listed: blanks around it
/// do not count, an escape is one character, and so is what stands for a byte that is no text.
fn bytes_meant(text: &str) -> usize {
    let (mut rest, mut bytes) = (text.trim(), 0);
    while let Some(char) = rest.chars().next() {
        let escape = match rest.strip_prefix("\\u{").and_then(|digits| digits.find('}')) {
            Some(digits) => Some("\\u{".len() + digits + 1),
            None if char == '\\' => rest.char_indices().nth(2).map(|(end, _)| end).or(Some(rest.len())),
            None => None,
        };
        let taken = escape.unwrap_or(char.len_utf8());
        bytes += if escape.is_some() || char == char::REPLACEMENT_CHARACTER { 1 } else { taken };
        rest = rest.get(taken..).unwrap_or_default();
    }
    bytes
}
