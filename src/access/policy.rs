//! Grants, and the question whether they allow something.

use super::{
    Actions, Operation, Operations, Pattern, Scope,
    pattern::ByPattern,
    role::{Part, Role, Roles},
};
use crate::{
    error::{Error, Result},
    name::{ACCOUNT_ID_BYTES_MAX, AccountId, CALLER_ID_BYTES_MAX, CallerId, GrantId, KEK_NAME_BYTES_MAX, KekName},
};
use std::collections::BTreeSet;

/// Most grants of a policy.
pub const GRANTS_MAX: usize = 20_000;

/// What a caller may do, with which KEKs and accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// What it is known by: drawn where a store keeps it, its place where a file does.
    pub id: GrantId,
    /// Which callers.
    pub callers: Pattern,
    /// With which KEKs.
    pub keks: Pattern,
    /// With which accounts. A KEK itself is in the scope of grants for all accounts.
    pub accounts: Pattern,
    /// What they may do.
    pub actions: Actions,
}

/// Grants and roles, worked out so that a question takes no longer for ten thousand of them than for ten.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    grants: Vec<Grant>,
    roles: Vec<Role>,
    /// By callers, then by accounts.
    rules: ByPattern<ByPattern<Vec<Rule>>>,
}

/// A part of what a grant comes to.
#[derive(Debug, Clone)]
struct Rule {
    operations: Operations,
    keks: Pattern,
    /// Its place in `grants`.
    grant: usize,
}

/// As they were given: what they come to is the same then.
impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        (&self.grants, &self.roles) == (&other.grants, &other.roles)
    }
}

impl Eq for Policy {}

impl Policy {
    /// Works grants and roles out.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the role or the grant and the remedy: an unknown role, a loop, a contradiction, what leaves nothing or
    /// could never cover anything; more than [`GRANTS_MAX`] grants or [`ROLES_MAX`](super::ROLES_MAX) roles.
    pub fn new(roles: Vec<Role>, grants: Vec<Grant>) -> Result<Self> {
        if grants.len() > GRANTS_MAX {
            return Err(Error::Invalid(format!(
                "there are {} grants, at most {GRANTS_MAX} are allowed: put several into one by a pattern or a role",
                grants.len()
            )));
        }
        let resolved = Roles::resolve(&roles)?;
        let (mut rules, mut ids) = (ByPattern::<ByPattern<Vec<Rule>>>::default(), BTreeSet::new());
        for (place, grant) in grants.iter().enumerate() {
            let parts = grant.parts(&resolved).map_err(|error| match error {
                Error::Invalid(what) => Error::Invalid(format!("grant {}: {what}", grant.id)),
                error => error,
            })?;
            if !ids.insert(&grant.id) {
                return Err(Error::Invalid(format!("grant {}: it is there twice: leave one out", grant.id)));
            }
            for Part { operations, keks, accounts } in parts {
                rules.entry(&grant.callers).entry(&accounts).push(Rule { operations, keks, grant: place });
            }
        }
        Ok(Self { grants, roles, rules })
    }

    /// The grants.
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }

    /// The roles of its own.
    pub fn roles(&self) -> &[Role] {
        &self.roles
    }

    fn rules<'a>(&'a self, caller: &'a CallerId, on: Scope<'a>) -> impl Iterator<Item = &'a Rule> {
        let (account, kek) = (on.account.map(AccountId::as_str), on.kek.map(KekName::as_str));
        let of_caller = self.rules.covering(Some(caller.as_str()));
        let of_account = of_caller.flat_map(move |accounts| accounts.covering(account)).flatten();
        of_account.filter(move |rule| rule.keks.covers(kek))
    }

    /// All that a caller may do to something. A caller without a name may do nothing.
    pub fn operations(&self, caller: &CallerId, on: Scope<'_>) -> Operations {
        self.rules(caller, on).fold(Operations::NONE, |all, rule| all.and(rule.operations))
    }

    /// A grant by which a caller may do this; `None` where it may not.
    pub fn grant_for(&self, caller: &CallerId, operation: Operation, on: Scope<'_>) -> Option<&Grant> {
        let rule = self.rules(caller, on).find(|rule| rule.operations.has(operation))?;
        self.grants.get(rule.grant)
    }

    /// True when a caller may do this to something, whatever it is.
    pub fn has_anywhere(&self, caller: &CallerId, operation: Operation) -> bool {
        let of_caller = self.rules.covering(Some(caller.as_str()));
        of_caller.flat_map(ByPattern::all).flatten().any(|rule| rule.operations.has(operation))
    }

    /// True when somebody may change it: grants and roles are one whole, so that is a grant of `grant.write` over all of it.
    pub fn has_writer(&self) -> bool {
        let everything = self.rules.all().flat_map(|accounts| accounts.covering(None)).flatten();
        everything.into_iter().any(|rule| rule.keks.is_all() && rule.operations.has(Operation::GrantWrite))
    }
}

impl Grant {
    fn parts(&self, roles: &Roles) -> Result<Vec<Part>> {
        self.callers.name().map(CallerId::new).transpose()?;
        self.keks.name().map(KekName::new).transpose()?;
        self.accounts.name().map(AccountId::new).transpose()?;
        self.callers.expect_at_most(CALLER_ID_BYTES_MAX, "id of a caller")?;
        self.keks.expect_at_most(KEK_NAME_BYTES_MAX, "KEK's name")?;
        self.accounts.expect_at_most(ACCOUNT_ID_BYTES_MAX, "id of an account")?;
        let given = match &self.actions {
            Actions::Operations(operations) => vec![Part::of(*operations)],
            Actions::Role(role) => roles.parts(role)?,
        };
        let parts: Vec<_> = given
            .iter()
            .filter(|part| !part.operations.is_empty())
            .filter_map(|part| part.within(&self.keks, &self.accounts))
            .collect();
        if parts.is_empty() {
            return Err(Error::Invalid(match &self.actions {
                Actions::Operations(_) => "it names no operation: say which".into(),
                Actions::Role(role) => {
                    format!("nothing of role {role} is within its KEKs and accounts: see what that role is for")
                }
            }));
        }
        Ok(parts)
    }
}
