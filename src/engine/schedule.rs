//! What is rotated by schedule: policies, what is due by them, and one pass of the scheduled work.

use super::{Act, Engine};
use crate::{
    access::Operation,
    error::Result,
    keyring::{
        On,
        on_trail::{asked_by, asker},
    },
    name::{AccountId, KekName},
    rotate::{Schedule, WorkReport},
    store::record::{AekPolicy, KekPolicy},
    telemetry::trail::Deed,
};

impl Engine {
    /// Sets when an account's AEK is rotated by schedule; [`AekPolicy::default`] is never.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound); [`Error::Invalid`](crate::Error::Invalid) for an age out of [`POLICY_AGE_MIN`](crate::rotate::POLICY_AGE_MIN) and
    /// [`POLICY_AGE_MAX`](crate::rotate::POLICY_AGE_MAX); [`Error::Store`](crate::Error::Store), [`Error::Conflict`](crate::Error::Conflict).
    pub async fn set_aek_policy(&self, id: &AccountId, policy: AekPolicy) -> Result<()> {
        let act = Act::new(Deed::AekPolicySet, &[Operation::Rotate], On::Account(id));
        let id = id.clone();
        self.act(act, |keyring| async move { keyring.set_aek_policy(&id, policy).await }).await
    }

    /// Sets when a KEK is rotated, and what it wraps re-wrapped, by schedule; [`KekPolicy::default`] is never.
    ///
    /// # Errors
    /// As [`Engine::set_aek_policy`].
    pub async fn set_kek_policy(&self, name: &KekName, policy: KekPolicy) -> Result<()> {
        let act = Act::new(Deed::KekPolicySet, &[Operation::Rotate], On::Kek(name));
        let name = name.clone();
        self.act(act, |keyring| async move { keyring.set_kek_policy(&name, policy).await }).await
    }

    /// What is due now, what comes next, and who does it. Changes nothing and asks the token nothing; reads every record of the
    /// store once, and names at most `accounts_max` accounts (and [`VIEW_ACCOUNTS_MAX`](crate::rotate::VIEW_ACCOUNTS_MAX)) each.
    ///
    /// # Errors
    /// [`Error::Store`](crate::Error::Store); [`Corrupt::NewerRecord`](crate::Corrupt::NewerRecord) when a newer release does the scheduled work.
    pub async fn schedule(&self, accounts_max: usize) -> Result<Schedule> {
        self.permit(&[Operation::Get], On::All).await?;
        self.at_home(|keyring| async move { keyring.schedule(accounts_max).await }).await
    }

    /// Does the scheduled work of the store once, for a command or a timer: waits until no other engine does it, rotates what is
    /// due, re-wraps what a rotated KEK left behind, and gives the work up. When another engine turns out to be alive and at
    /// work, nothing is done here: [`WorkReport::held_by`].
    ///
    /// # Errors
    /// [`Error::Store`](crate::Error::Store), [`Error::Fatal`](crate::Error::Fatal); [`Error::Corrupt`](crate::Error::Corrupt) when a newer release does the work. What fails later is in the report.
    pub async fn run_schedule(&self) -> Result<WorkReport> {
        let act = Act::new(Deed::ScheduleRun, &[Operation::Rotate, Operation::Rewrap], On::All);
        let run = async {
            let keyring = self.keyring().clone();
            self.keyring().home.call_without_end(asked_by(asker(), async move { keyring.run_schedule().await })).await
        };
        self.acting(act, run, |_, _| {}).await
    }
}
