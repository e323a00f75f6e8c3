//! Roles: bundles of operations, those that are built in and those of a policy.

use super::{Operation, Operations, Pattern, near};
use crate::{
    error::{Error, Result},
    name::RoleName,
};
use std::collections::BTreeMap;

/// Most roles of a policy.
pub const ROLES_MAX: usize = 128;
/// Most roles that one includes.
pub const ROLE_INCLUDES_MAX: usize = 16;
/// Most scopes that a role comes to, by all that it includes.
const ROLE_SCOPES_MAX: usize = 64;

const READER: Operations = Operations::of(&[Operation::Get, Operation::Unwrap, Operation::Open]);
/// What shows secrets, destroys, takes away in a drill, or could give itself any of that.
const NOT_A_CONTRIBUTORS: Operations = Operations::of(&[
    Operation::SecretGet,
    Operation::Delete,
    Operation::Purge,
    Operation::Drill,
    Operation::GrantWrite,
]);
/// What is done to data, and not to keys.
const NOT_AN_OPERATORS: Operations =
    Operations::of(&[Operation::Unwrap, Operation::Seal, Operation::Open, Operation::SecretGet, Operation::SecretSet]);
const BUILT_IN: [(&str, Operations); 3] = [
    ("reader", READER),
    ("contributor", Operations::ALL.without(NOT_A_CONTRIBUTORS)),
    ("operator", Operations::ALL.without(NOT_AN_OPERATORS)),
];

/// A role of a policy's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its name: none that is built in (`reader`, `contributor`, `operator`).
    pub name: RoleName,
    /// What it bundles.
    pub operations: Operations,
    /// Other roles whose operations it has too, each within the scope of both.
    pub includes: Vec<RoleName>,
    /// What it does not have, though an included role does.
    pub not: Operations,
    /// Its grants are for these KEKs at most.
    pub keks: Pattern,
    /// Its grants are for these accounts at most.
    pub accounts: Pattern,
}

/// What a grant gives.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Actions {
    /// These operations.
    Operations(Operations),
    /// Those of a role.
    Role(RoleName),
}

/// Operations within a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) operations: Operations,
    pub(super) keks: Pattern,
    pub(super) accounts: Pattern,
}

impl Part {
    pub(super) fn of(operations: Operations) -> Self {
        Self { operations, keks: Pattern::all(), accounts: Pattern::all() }
    }

    /// What of it is within a scope.
    pub(super) fn within(&self, keks: &Pattern, accounts: &Pattern) -> Option<Self> {
        let (keks, accounts) = (self.keks.meet(keks)?, self.accounts.meet(accounts)?);
        Some(Self { operations: self.operations, keks, accounts })
    }
}

/// What each role comes to, those that are built in too.
#[derive(Debug, Clone, Default)]
pub(super) struct Roles(BTreeMap<RoleName, Vec<Part>>);

impl Roles {
    /// Works out what each comes to.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the role: a name that is taken or built in, an included role that is unknown, a loop, a contradiction,
    /// one that leaves nothing.
    pub(super) fn resolve(roles: &[Role]) -> Result<Self> {
        let wrong = |role: &Role, what: String| Err(Error::Invalid(format!("role {}: {what}", role.name)));
        if roles.len() > ROLES_MAX {
            return Err(Error::Invalid(format!("there are {} roles, at most {ROLES_MAX} are allowed", roles.len())));
        }
        let mut named = BTreeMap::new();
        for role in roles {
            if built_in(role.name.as_str()).is_some() {
                return wrong(role, "this name is that of a built-in role: choose another".into());
            }
            if named.insert(role.name.clone(), role).is_some() {
                return wrong(role, "it is there twice: leave one out, or name it otherwise".into());
            }
            let both = role.operations.both(role.not);
            if !both.is_empty() {
                return wrong(role, format!("it has {both} and has it not: leave it out of one of operations and not"));
            }
            if role.includes.len() > ROLE_INCLUDES_MAX {
                return wrong(role, format!("it includes {} roles, at most {ROLE_INCLUDES_MAX}", role.includes.len()));
            }
        }
        let mut resolved = Self::default();
        for role in roles {
            resolved.add(role, &named, &mut Vec::new())?;
        }
        Ok(resolved)
    }

    /// `above` are the roles on the way here, each of which includes the next one.
    fn add(&mut self, role: &Role, named: &BTreeMap<RoleName, &Role>, above: &mut Vec<RoleName>) -> Result<()> {
        if self.0.contains_key(&role.name) {
            return Ok(());
        }
        let wrong = |what: String| Err(Error::Invalid(format!("role {}: {what}", role.name)));
        let is_loop = above.contains(&role.name);
        above.push(role.name.clone());
        if is_loop {
            let way: Vec<_> = above.iter().skip_while(|name| **name != role.name).map(RoleName::as_str).collect();
            return wrong(format!("it includes itself, {}: leave one of these out", way.join(" includes ")));
        }
        let mut parts =
            vec![Part { operations: role.operations, keks: role.keks.clone(), accounts: role.accounts.clone() }];
        let mut given = role.operations;
        for name in &role.includes {
            if let Some(included) = named.get(name) {
                self.add(included, named, above)?;
            }
            let included = self.parts(name).map_err(|error| match error {
                Error::Invalid(what) => Error::Invalid(format!("role {}: {what}", role.name)),
                error => error,
            })?;
            given = included.iter().fold(given, |given, part| given.and(part.operations));
            let within = included.iter().filter_map(|part| part.within(&role.keks, &role.accounts));
            parts.extend(within.map(|part| Part { operations: part.operations.without(role.not), ..part }));
        }
        above.pop();
        let idle = role.not.without(given);
        if !idle.is_empty() {
            return wrong(format!("not takes {idle} away, which nothing that it includes has: leave it out"));
        }
        let mut scopes = BTreeMap::<_, Operations>::new();
        for Part { operations, keks, accounts } in parts.into_iter().filter(|part| !part.operations.is_empty()) {
            let there = scopes.entry((keks, accounts)).or_default();
            *there = there.and(operations);
        }
        if scopes.len() > ROLE_SCOPES_MAX {
            return wrong(format!(
                "it comes to {} scopes, at most {ROLE_SCOPES_MAX}: include fewer roles",
                scopes.len()
            ));
        }
        let part = |((keks, accounts), operations)| Part { operations, keks, accounts };
        let parts: Vec<_> = scopes.into_iter().map(part).collect();
        if parts.is_empty() {
            return wrong(
                "nothing is left of it: give it operations, or take less away by not, keks and accounts".into(),
            );
        }
        self.0.insert(role.name.clone(), parts);
        Ok(())
    }

    /// What a role comes to.
    ///
    /// # Errors
    /// [`Error::Invalid`] for one that is unknown.
    pub(super) fn parts(&self, name: &RoleName) -> Result<Vec<Part>> {
        if let Some(operations) = built_in(name.as_str()) {
            return Ok(vec![Part::of(operations)]);
        }
        self.0.get(name).cloned().ok_or_else(|| {
            let known: Vec<_> =
                BUILT_IN.iter().map(|(name, _)| *name).chain(self.0.keys().map(RoleName::as_str)).collect();
            Error::Invalid(format!("there is no role {name}; {}", near(name.as_str(), &known)))
        })
    }
}

fn built_in(name: &str) -> Option<Operations> {
    BUILT_IN.iter().find(|(built_in, _)| *built_in == name).map(|(_, operations)| *operations)
}

impl Role {
    /// The roles that every policy has, and what they bundle.
    pub fn built_in() -> impl Iterator<Item = (&'static str, Operations)> {
        BUILT_IN.into_iter()
    }
}
