//! The grants and roles of a configuration: `[[grant]]` and `[[role]]`.

use super::{
    file::{in_order, near},
    given::bad,
    tokens::Placed,
};
use crate::{
    access::{Actions, Grant, Operation, Operations, Pattern, Policy, Role},
    error::{Error, Result},
    name::{GrantId, RoleName},
};
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// What a configuration says of who may do what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Grants {
    grants: Vec<Grant>,
    roles: Vec<Placed<Role>>,
}

/// The keys of one table, each where it stands.
pub(super) struct Keys<'v, 'i> {
    section: &'static str,
    found: Vec<(&'v str, String, &'v DeValue<'i>)>,
}

impl<'v, 'i> Keys<'v, 'i> {
    pub(super) fn read(
        section: &'static str,
        known: &[&'static str],
        keys: &'v DeTable<'i>,
        at: &impl Fn(Range<usize>) -> String,
    ) -> Result<Self> {
        let mut found = Vec::new();
        for (key, value) in in_order(keys) {
            let (at, key) = (at(key.span()), key.get_ref().as_ref());
            if !known.contains(&key) {
                return Err(bad(&at, &format!("there is no key {key} in [[{section}]]; {}", near(key, known))));
            }
            found.push((key, format!("{at}: {section}.{key}"), value.get_ref()));
        }
        Ok(Self { section, found })
    }

    pub(super) fn value(&self, key: &str) -> Option<(&str, &'v DeValue<'i>)> {
        self.found.iter().find(|(found, ..)| *found == key).map(|(_, origin, value)| (origin.as_str(), *value))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<(&str, &'v str)>> {
        let Some((origin, value)) = self.value(key) else { return Ok(None) };
        match value {
            DeValue::String(text) => Ok(Some((origin, text))),
            other => Err(bad(origin, &format!("must be a string in quotes, this is of type {}", other.type_str()))),
        }
    }

    pub(super) fn must(&self, origin: &str, key: &str) -> Result<(&str, &'v str)> {
        self.text(key)?.ok_or_else(|| bad(origin, &format!("a [[{}]] has a {key}", self.section)))
    }

    fn pattern(&self, key: &str) -> Result<Pattern> {
        let Some((origin, text)) = self.text(key)? else { return Ok(Pattern::all()) };
        Pattern::new(text).map_err(|error| placed(origin, error))
    }

    pub(super) fn list<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
        let Some((origin, value)) = self.value(key) else { return Ok(Vec::new()) };
        let wanted = || bad(origin, "must be a list of strings in quotes, as in [\"get\", \"open\"]");
        let entries = value.as_array().ok_or_else(wanted)?;
        let entry = |entry: &toml::Spanned<DeValue<'i>>| match entry.get_ref() {
            DeValue::String(text) => parse(text).map_err(|error| placed(origin, error)),
            _ => Err(wanted()),
        };
        entries.iter().map(entry).collect()
    }

    fn operations(&self, key: &str) -> Result<Operations> {
        Ok(self.list(key, Operation::parse)?.into_iter().collect())
    }
}

/// Says where it was said.
pub(super) fn placed(origin: &str, error: Error) -> Error {
    match error {
        Error::Invalid(what) => bad(origin, &what),
        other => bad(origin, &other.to_string()),
    }
}

impl Grants {
    /// Reads one `[[grant]]`.
    pub(super) fn add_grant(
        &mut self,
        origin: &str,
        keys: &DeTable<'_>,
        at: &impl Fn(Range<usize>) -> String,
    ) -> Result<()> {
        let keys = Keys::read("grant", &["caller", "operations", "role", "kek", "account"], keys, at)?;
        let (caller, text) = keys.must(origin, "caller")?;
        let callers = Pattern::new(text).map_err(|error| placed(caller, error))?;
        let actions = match (keys.value("operations").is_some(), keys.text("role")?) {
            (true, None) => Actions::Operations(keys.operations("operations")?),
            (false, Some((origin, role))) => Actions::Role(RoleName::new(role).map_err(|error| placed(origin, error))?),
            _ => return Err(bad(origin, "a [[grant]] has either operations or a role")),
        };
        // Of several in one line each is another.
        let again = format!("{origin} (");
        let beside =
            self.grants.iter().filter(|grant| grant.id.as_str() == origin || grant.id.as_str().starts_with(&again));
        let id = match beside.count() {
            0 => GrantId::new(origin)?,
            before => GrantId::new(format!("{again}{})", before + 1))?,
        };
        let (keks, accounts) = (keys.pattern("kek")?, keys.pattern("account")?);
        self.grants.push(Grant { id, callers, keks, accounts, actions });
        Ok(())
    }

    /// Reads one `[[role]]`.
    pub(super) fn add_role(
        &mut self,
        origin: &str,
        keys: &DeTable<'_>,
        at: &impl Fn(Range<usize>) -> String,
    ) -> Result<()> {
        let keys = Keys::read("role", &["name", "operations", "includes", "not", "kek", "account"], keys, at)?;
        let (named, name) = keys.must(origin, "name")?;
        let value = Role {
            name: RoleName::new(name).map_err(|error| placed(named, error))?,
            operations: keys.operations("operations")?,
            includes: keys.list("includes", |name| RoleName::new(name))?,
            not: keys.operations("not")?,
            keks: keys.pattern("kek")?,
            accounts: keys.pattern("account")?,
        };
        self.roles.push(Placed { value, origin: origin.to_owned() });
        Ok(())
    }

    pub(super) fn grants(&self) -> &[Grant] {
        &self.grants
    }

    pub(super) fn roles(&self) -> impl Iterator<Item = (&Role, &str)> {
        self.roles.iter().map(|role| (&role.value, role.origin.as_str()))
    }

    /// What they come to.
    pub(super) fn resolve(self) -> Result<Policy> {
        let roles = self.roles.iter().map(|role| role.value.clone()).collect();
        Policy::new(roles, self.grants).map_err(|error| {
            let Error::Invalid(what) = error else { return error };
            // Of a grant its place is the id; of a role it is looked up. The last one of a name is the one too many.
            let is_named = |role: &&Placed<Role>| what.starts_with(&format!("role {}: ", role.value.name));
            match self.roles.iter().rev().find(is_named) {
                Some(role) => bad(&role.origin, &what),
                None => Error::Misconfigured(what.trim_start_matches("grant ").to_owned()),
            }
        })
    }
}
