//! The tokens of a configuration: `[token]`, or several `[[token]]`, and the standbys of `[[kek]]`.

use super::{
    PinSource, TokenConfig, TokenSelector, WORKERS_DEFAULT,
    file::{Said, in_order, near, two_pins},
    given::{Given, bad},
    items::Item,
};
use crate::{
    error::{Error, Result},
    name::{KekName, TokenName},
};
use std::{collections::BTreeMap, ops::Range, path::PathBuf, time::Duration};
use toml::de::{DeTable, DeValue};

/// Most tokens of a configuration.
const TOKENS_MAX: usize = 64;

/// What a configuration says of one token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TokenItems {
    pub(super) name: Option<TokenName>,
    pub(super) module: Option<PathBuf>,
    pub(super) selector: Option<TokenSelector>,
    pub(super) pin: Option<PinSource>,
    pub(super) workers: Option<usize>,
    pub(super) call_timeout: Option<Duration>,
}

impl TokenItems {
    pub(super) fn select(&mut self, selector: TokenSelector, origin: &str) -> Result<()> {
        match self.selector.replace(selector) {
            None => Ok(()),
            Some(_) => Err(bad(origin, "the token is named twice: use one of label, serial and slot")),
        }
    }

    pub(super) fn take_pin(&mut self, pin: PinSource, origin: &str) -> Result<()> {
        match self.pin.replace(pin) {
            None => Ok(()),
            Some(_) => Err(two_pins(origin)),
        }
    }

    /// What this says, and where it says nothing, what `below` says.
    pub(super) fn over(self, below: Self) -> Self {
        Self {
            name: self.name.or(below.name),
            module: self.module.or(below.module),
            selector: self.selector.or(below.selector),
            pin: self.pin.or(below.pin),
            workers: self.workers.or(below.workers),
            call_timeout: self.call_timeout.or(below.call_timeout),
        }
    }

    /// `of_all` is the deadline of tokens that have none of their own.
    pub(super) fn resolve(self, of_all: Duration) -> TokenConfig {
        let Self { name, module, selector, pin, workers, call_timeout } = self;
        let (name, workers) = (name.unwrap_or_default(), workers.unwrap_or(WORKERS_DEFAULT));
        let call_timeout = call_timeout.unwrap_or(of_all);
        TokenConfig { name, module, selector, pin, workers, call_timeout }
    }
}

/// A name in the file, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) origin: String,
}

/// The tokens beside the default one, and the standbys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct More {
    others: Vec<Placed<TokenItems>>,
    /// What was said of each of them.
    said: Vec<Vec<Said>>,
    standbys: Vec<(KekName, Placed<TokenName>)>,
}

impl More {
    /// Reads the further `[[token]]` entries; the first one was read as `[token]` is.
    pub(super) fn add_token(&mut self, items: TokenItems, said: Vec<Said>, origin: String) -> Result<()> {
        if self.others.len() + 2 > TOKENS_MAX {
            return Err(bad(&origin, &format!("more than {TOKENS_MAX} tokens")));
        }
        self.others.push(Placed { value: items, origin });
        self.said.push(said);
        Ok(())
    }

    /// The further tokens by name, with what was said of each.
    pub(super) fn said(&self) -> impl Iterator<Item = (Option<&TokenName>, &[Said])> {
        self.others.iter().map(|token| token.value.name.as_ref()).zip(self.said.iter().map(Vec::as_slice))
    }

    /// Each KEK's standby, and where that was said.
    pub(super) fn standbys(&self) -> impl Iterator<Item = (&KekName, &TokenName, &str)> {
        self.standbys.iter().map(|(kek, standby)| (kek, &standby.value, standby.origin.as_str()))
    }

    /// Reads one `[[kek]]` entry.
    pub(super) fn add_kek(
        &mut self,
        origin: &str,
        keys: &DeTable<'_>,
        at: impl Fn(Range<usize>) -> String,
    ) -> Result<()> {
        const KEYS: [&str; 2] = ["name", "standby"];
        let (mut name, mut standby) = (None, None);
        for (key, value) in in_order(keys) {
            let at = at(key.span());
            let key = key.get_ref().as_ref();
            if !KEYS.contains(&key) {
                return Err(bad(&at, &format!("there is no key {key} in [[kek]]; {}", near(key, &KEYS))));
            }
            let at = format!("{at}: kek.{key}");
            let text = Given::of_toml(&at, Item::TokenName, value.get_ref())?.string(&at)?;
            match key {
                "name" => name = Some(KekName::new(&text).map_err(|error| named_badly(&at, error))?),
                _ => {
                    let value = TokenName::new(&text).map_err(|error| named_badly(&at, error))?;
                    standby = Some(Placed { value, origin: at });
                }
            }
        }
        let (Some(name), Some(standby)) = (name, standby) else {
            return Err(bad(origin, "a [[kek]] has a name and a standby"));
        };
        if self.standbys.iter().any(|(known, _)| *known == name) {
            return Err(bad(origin, &format!("KEK {name} stands here twice: it has one standby")));
        }
        self.standbys.push((name, standby));
        Ok(())
    }

    /// The further tokens and the standbys, judged beside the default token.
    pub(super) fn resolve(
        self,
        default: &TokenName,
        call_timeout: Duration,
    ) -> Result<(Vec<TokenConfig>, BTreeMap<KekName, TokenName>)> {
        let mut tokens: Vec<TokenConfig> = Vec::new();
        for Placed { value, origin } in self.others {
            let token = value.resolve(call_timeout);
            if token.name == *default || tokens.iter().any(|other| other.name == token.name) {
                return Err(bad(&origin, &format!("two tokens are named {}: give each a name of its own", token.name)));
            }
            tokens.push(token);
        }
        let mut standbys = BTreeMap::new();
        for (kek, Placed { value: standby, origin }) in self.standbys {
            let names: Vec<_> = [default].into_iter().chain(tokens.iter().map(|token| &token.name)).collect();
            if !names.contains(&&standby) {
                let names: Vec<_> = names.iter().map(|name| name.as_str()).collect();
                return Err(bad(&origin, &format!("there is no token {standby}; {}", near(standby.as_str(), &names))));
            }
            standbys.insert(kek, standby);
        }
        Ok((tokens, standbys))
    }
}

/// A table, and where it stands.
type Table<'v, 'i> = (Range<usize>, &'v DeTable<'i>);

/// The tables of an array like `[[token]]`; `None` when it is none.
pub(super) fn tables<'v, 'i>(
    origin: &str,
    section: &str,
    value: &'v DeValue<'i>,
) -> Result<Option<Vec<Table<'v, 'i>>>> {
    let Some(array) = value.as_array() else { return Ok(None) };
    let table = |entry: &'v toml::Spanned<DeValue<'i>>| match entry.get_ref().as_table() {
        Some(table) => Ok((entry.span(), table)),
        None => Err(bad(origin, &format!("write each {section} as [[{section}]] with its keys below"))),
    };
    array.iter().map(table).collect::<Result<_>>().map(Some)
}

pub(super) fn named_badly(origin: &str, error: Error) -> Error {
    match error {
        Error::Invalid(what) => bad(origin, &what),
        other => other,
    }
}
