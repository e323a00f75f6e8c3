//! Grants and roles, as the store keeps them for all engines.

use super::{Act, Engine};
use crate::{
    access::{Grant, Operation, Policy, Role},
    error::Result,
    keyring::On,
    name::{GrantId, RoleName},
    store::{self, policy::Change},
    telemetry::trail::{Deed, OfGrants, Subject},
};

impl Engine {
    /// The policy of the store; an empty one where there is none.
    ///
    /// # Errors
    /// [`Error::Forbidden`](crate::Error::Forbidden) without `grant.write`; [`Error::Store`](crate::Error::Store);
    /// [`Error::Corrupt`](crate::Error::Corrupt).
    pub async fn policy(&self) -> Result<Policy> {
        self.permit(&[Operation::GrantWrite], On::All).await?;
        self.at_home(|keyring| async move { Ok(store::load_policy(&*keyring.store).await?.unwrap_or_default()) }).await
    }

    /// Gives grants: all of them, or none. In force in this engine when it returns, and in every other one of the store within about a
    /// second. Their [`Grant::id`] is not looked at: the store draws them, and they are given back in the same order.
    ///
    /// The first grant of a store ends that everybody may do everything there, for good, and gives `grant.write` to somebody.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) where nobody would have `grant.write`, and for what a policy cannot be
    /// ([`Policy::new`]); [`Error::Exists`](crate::Error::Exists) for a grant that gives the same as one that is there;
    /// [`Error::Forbidden`](crate::Error::Forbidden); [`Error::Conflict`](crate::Error::Conflict); [`Error::Store`](crate::Error::Store):
    /// they were given or not; [`Error::Corrupt`](crate::Error::Corrupt).
    pub async fn add_grants(&self, grants: Vec<Grant>) -> Result<Vec<GrantId>> {
        self.change_policy(Change::Add(grants)).await
    }

    /// Takes a grant away. In force in this engine when it returns, for handles that are open too, and in every other one of the store
    /// within about a second.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound); [`Error::Invalid`](crate::Error::Invalid) for the last one by which somebody has
    /// `grant.write`; else as [`Engine::add_grants`].
    pub async fn remove_grant(&self, id: &GrantId) -> Result<()> {
        self.change_policy(Change::Remove(id.clone())).await.map(drop)
    }

    /// Makes a role, or changes what the one of its name is; the grants that are of it follow. A store has roles from its first grant on.
    ///
    /// # Errors
    /// As [`Engine::add_grants`].
    pub async fn set_role(&self, role: Role) -> Result<()> {
        self.change_policy(Change::SetRole(role)).await.map(drop)
    }

    /// Removes a role.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound); [`Error::Invalid`](crate::Error::Invalid) while a grant or another role is of it; else
    /// as [`Engine::add_grants`].
    pub async fn remove_role(&self, name: &RoleName) -> Result<()> {
        self.change_policy(Change::RemoveRole(name.clone())).await.map(drop)
    }

    async fn change_policy(&self, change: Change) -> Result<Vec<GrantId>> {
        let deed = match &change {
            Change::Add(_) => Deed::GrantAdded,
            Change::Remove(_) => Deed::GrantRemoved,
            Change::SetRole(_) => Deed::RoleSet,
            Change::RemoveRole(_) => Deed::RoleRemoved,
        };
        let parts: Vec<_> = match &change {
            Change::Add(grants) => grants.iter().map(|grant| OfGrants::Grant(as_new(grant))).collect(),
            Change::Remove(id) => vec![OfGrants::Id(id.clone())],
            Change::SetRole(role) => vec![OfGrants::Role(role.clone())],
            Change::RemoveRole(name) => vec![OfGrants::Name(name.clone())],
        };
        let act = Act::new(deed, &[Operation::GrantWrite], On::All).each(parts.into_iter());
        let act = act.taking_away_if(deed == Deed::GrantRemoved);
        let caller = self.who.caller.clone();
        let change = self.at_home(|keyring| async move { keyring.change_policy(caller.as_ref(), &change).await });
        let drawn = |ids: &Vec<GrantId>, n: usize, on: &mut Subject| {
            if let (Some(OfGrants::Grant(grant)), Some(id)) = (&mut on.grants, ids.get(n)) {
                grant.id = id.clone();
            }
        };
        self.acting_each(act, Box::pin(change), drawn).await
    }
}

/// Before its id is drawn it has none, whatever was given as one.
fn as_new(grant: &Grant) -> Grant {
    Grant { id: GrantId::of_new(), ..grant.clone() }
}
