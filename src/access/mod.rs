//! Who may do what: operations, roles, grants, and the question whether a policy of them allows something. Pure: no store, no clock.
//!
//! A [`Policy`] is asked about a caller, an operation, and what it is done to ([`Scope`]). What nobody granted is refused. What an
//! operation of a handle may do is written into its permit, which is worked out anew whenever the policy changes, or the account
//! comes under another KEK (`force.rs`); the data path reads that one word.

use crate::{
    error::{Error, Forbidden, Result},
    name::{AccountId, CallerId, KekName},
};
use std::fmt;

pub(crate) mod force;
mod pattern;
mod policy;
mod role;

pub(crate) use self::force::{Force, Permit, Permits};
pub use self::{
    pattern::{PATTERN_BYTES_MAX, Pattern},
    policy::{GRANTS_MAX, Grant, Policy},
    role::{Actions, ROLE_INCLUDES_MAX, ROLES_MAX, Role},
};

/// What a caller may be granted. The number of each is its bit at rest, and stays what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// See a KEK or an account: its record, and that it is there.
    Get,
    /// Have a new AEK wrapped.
    Wrap,
    /// Open the handle of an account, for which its AEK is unwrapped.
    Unwrap,
    /// Seal blocks.
    Seal,
    /// Open blocks.
    Open,
    /// Make KEKs and accounts.
    Create,
    /// Give an account or a KEK its next version, and say when that is due.
    Rotate,
    /// Move what older versions of a KEK wrap to the current one.
    Rewrap,
    /// Move an account to another KEK.
    Move,
    /// Delete what can be brought back.
    Delete,
    /// Bring back what was deleted.
    Undelete,
    /// Destroy for good.
    Purge,
    /// Read a secret.
    SecretGet,
    /// Write a secret.
    SecretSet,
    /// Read the trail.
    AuditRead,
    /// Read and change grants and roles. It is over all KEKs and accounts or not at all.
    GrantWrite,
    /// Rehearse, and try what a token can do.
    Drill,
}

impl Operation {
    /// Every one, in the order of their numbers.
    pub const ALL: [Self; 17] = [
        Self::Get,
        Self::Wrap,
        Self::Unwrap,
        Self::Seal,
        Self::Open,
        Self::Create,
        Self::Rotate,
        Self::Rewrap,
        Self::Move,
        Self::Delete,
        Self::Undelete,
        Self::Purge,
        Self::SecretGet,
        Self::SecretSet,
        Self::AuditRead,
        Self::GrantWrite,
        Self::Drill,
    ];

    /// As it is written in grants.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Seal => "seal",
            Self::Open => "open",
            Self::Create => "create",
            Self::Rotate => "rotate",
            Self::Rewrap => "rewrap",
            Self::Move => "move",
            Self::Delete => "delete",
            Self::Undelete => "undelete",
            Self::Purge => "purge",
            Self::SecretGet => "secret.get",
            Self::SecretSet => "secret.set",
            Self::AuditRead => "audit.read",
            Self::GrantWrite => "grant.write",
            Self::Drill => "drill",
        }
    }

    /// Whether it gives or takes data, rather than changing what there is.
    pub(crate) const fn is_of_data(self) -> bool {
        matches!(self, Self::Unwrap | Self::Seal | Self::Open | Self::SecretGet)
    }

    /// The operation of this name.
    ///
    /// # Errors
    /// [`Error::Invalid`], with the one that was meant, it may be.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|operation| operation.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name);
            Error::Invalid(format!("there is no operation {name:?}; {}", near(name, &known)))
        })
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of operations: a bit for each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Operations(u32);

impl Operations {
    /// None.
    pub const NONE: Self = Self(0);
    /// Every one.
    pub const ALL: Self = Self((1 << Operation::ALL.len()) - 1);

    /// These.
    pub const fn of(operations: &[Operation]) -> Self {
        let (mut bits, mut rest) = (0, operations);
        while let [first, others @ ..] = rest {
            bits |= 1 << *first as u32;
            rest = others;
        }
        Self(bits)
    }

    /// As they are at rest.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The set of these bits; `None` where one is of no operation that this release knows.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits & !Self::ALL.0 == 0 { Some(Self(bits)) } else { None }
    }

    /// True when it has this one.
    #[inline]
    pub const fn has(self, operation: Operation) -> bool {
        self.0 & 1 << operation as u32 != 0
    }

    /// What is in either.
    #[must_use]
    pub const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn both(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    /// True when there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = Operation> {
        Operation::ALL.into_iter().filter(move |operation| self.has(*operation))
    }
}

impl FromIterator<Operation> for Operations {
    fn from_iter<I: IntoIterator<Item = Operation>>(operations: I) -> Self {
        operations.into_iter().fold(Self::NONE, |set, operation| set.and(Self::of(&[operation])))
    }
}

impl fmt::Display for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Operation::name).collect();
        f.write_str(&names.join(" "))
    }
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Operations({self})")
    }
}

/// What an operation is done to. Where a part is missing, only what covers all of that part covers it: an account that is under no KEK,
/// because there is none, by grants for all KEKs; a KEK, and with it whatever it wraps, by grants for all accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scope<'a> {
    /// The KEK.
    pub kek: Option<&'a KekName>,
    /// The account.
    pub account: Option<&'a AccountId>,
}

impl<'a> Scope<'a> {
    /// All that there is.
    pub const ALL: Scope<'static> = Scope { kek: None, account: None };

    /// An account, and the KEK that it is under.
    pub const fn account(account: &'a AccountId, kek: Option<&'a KekName>) -> Self {
        Self { kek, account: Some(account) }
    }

    /// A KEK, and whatever it wraps.
    pub const fn kek(kek: &'a KekName) -> Self {
        Self { kek: Some(kek), account: None }
    }
}

/// What is said to a caller that has no grant for it. An account is named by its id alone, whether there is one or not, and under whichever
/// KEK.
pub(crate) fn forbidden(caller: Option<&CallerId>, operation: Operation, on: Scope<'_>) -> Error {
    let on = match (on.kek, on.account) {
        (_, Some(account)) => format!("account {account}"),
        (Some(kek), None) => format!("KEK {kek}"),
        (None, None) => "all KEKs and accounts".to_owned(),
    };
    Error::Forbidden(Box::new(Forbidden { caller: caller.cloned(), operation: operation.name(), on }))
}

/// The near one of the names that are known, or all of them.
pub(crate) fn near(name: &str, known: &[&str]) -> String {
    let nearest = known.iter().min_by_key(|known| strsim::damerau_levenshtein(name, known));
    let is_near = |known: &&&str| strsim::normalized_damerau_levenshtein(name, known) > 0.5;
    match nearest.filter(is_near) {
        Some(known) => format!("did you mean {known}?"),
        None => format!("known are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests;
