//! What the engine tells while it runs: events for subscribers, and log lines for people. Neither carries a secret.

use crate::{
    lease::Change,
    name::{AccountId, KekVersion, SecretId, TokenName},
    store::record::due::Due,
    token::{KekId, Profile, Workers},
};
use std::{fmt, sync::Arc, time::Duration};
use tokio::sync::broadcast;

mod counted;
pub mod trail;

pub use self::counted::EVENT_NAMES;
use self::counted::EventCounts;

/// Events that a slow subscriber may lag behind before it misses some.
const EVENTS_HELD_MAX: usize = 1024;

/// Something that a service or its operators may want to act on. Match fields with `..`: others may come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The lease of a KEK version changed.
    Lease {
        /// The KEK version.
        kek: KekVersion,
        /// How.
        change: Change,
        /// What the token said, where it said something.
        trouble: Option<String>,
    },
    /// The token has another key in the place of this KEK version: taken as a denial.
    KekReplaced {
        /// The KEK version.
        kek: KekVersion,
    },
    /// A wrap profile does not survive a round trip at start-up: AEKs cannot be wrapped, or not be trusted to come back.
    ProfileFailed {
        /// The profile.
        profile: Profile,
        /// The KEK version that it was tried with.
        kek: KekVersion,
        /// What failed, and the remedy.
        error: String,
    },
    /// A token worker hangs in a call and was given up.
    WorkerLost {
        /// Which token's.
        token: TokenName,
        /// The workers' health now.
        workers: Workers,
    },
    /// The token's context could not be renewed for a fresh proof: a call hangs in the module or does not end. It is tried again
    /// with every proof. Told once until it works; if it does not for `fresh_proof_every * poll_interval`, proofs count no
    /// more, and the leases of its KEKs run out within grace.
    ContextNotRenewed {
        /// Which token's.
        token: TokenName,
        /// Why.
        why: String,
    },
    /// The token's context could be renewed again.
    ContextRenewed {
        /// Which token's.
        token: TokenName,
    },
    /// A proof found no worker of its token free in time. The lease runs on, and is not renewed: where this comes with every poll, it
    /// lapses. The token is too slow for the proofs of its KEK versions, or has a single worker that is at other work.
    ProofCrowdedOut {
        /// The KEK version.
        kek: KekVersion,
        /// Which token's workers.
        token: TokenName,
        /// What was waited for.
        why: String,
    },
    /// The key store does not answer, or answers that it cannot. AEKs in use stay in use, for grace after its last word, while their
    /// tokens grant; what is not in memory cannot be opened, and nothing can be made.
    StoreSilent {
        /// What it said, or that it did not answer.
        why: String,
    },
    /// The key store answers again.
    StoreAnswers,
    /// What others change in the key store is not heard of as they do it: it is noticed within `aek_ttl`, and a denial with the next proof.
    /// Told once until it is heard of again.
    ChangesUnheard {
        /// Why the store's feed broke, or could not be opened.
        why: String,
    },
    /// It is heard of again.
    ChangesHeard,
    /// What is done cannot be kept on the trail. Told once until it can be.
    TrailBroken {
        /// Why, and the remedy.
        why: String,
    },
    /// The trail is kept again.
    TrailWhole,
    /// No proof of a KEK version could be asked for: the records of its accounts cannot be read, or are damaged. Its lease runs out
    /// unless one can. Told once until one can.
    NoRecordToProve {
        /// The KEK version.
        kek: KekVersion,
        /// Why.
        why: String,
    },
    /// The first token of a KEK version is silent, and the standby grants in its place.
    StandbyTookOver {
        /// The KEK version.
        kek: KekVersion,
        /// The standby.
        standby: TokenName,
    },
    /// The standby of a KEK version does not grant in the first token's place any more: that one grants again, or the standby
    /// denied.
    StandbyDone {
        /// The KEK version.
        kek: KekVersion,
        /// The standby.
        standby: TokenName,
    },
    /// The standby could not take over: it does not have the KEK version, or another key in its place. It is not used.
    StandbyUnfit {
        /// The KEK version.
        kek: KekVersion,
        /// The standby.
        standby: TokenName,
        /// Why, and the remedy.
        why: String,
    },
    /// A task of the engine died or stalled and was started again. Leases ran on (or out) undisturbed.
    WatchRestarted {
        /// Which task, and why.
        why: String,
    },
    /// A key was taken away, and is still in memory after a second: a seal or open has not ended that uses it, because a page of
    /// its buffer does not come (a mapping of a dead disk) or its thread was stopped. Nothing new can be done with the key, and it
    /// is wiped as soon as that one ends.
    WipeWaits {
        /// The KEK version that it is wrapped under.
        kek: KekVersion,
        /// Its account.
        account: Option<AccountId>,
        /// The threads that it waits for, as the kernel numbers them: see `/proc/PID/task/N/stack`.
        threads: Vec<u64>,
    },
    /// A key is wiped that had to wait for it.
    WipeDone {
        /// The KEK version that it is wrapped under.
        kek: KekVersion,
        /// Its account.
        account: Option<AccountId>,
        /// For how long it waited.
        waited: Duration,
    },
    /// An account could not be unwrapped after a denial or lapse ended, or ahead of its TTL; others go on.
    AccountFailed {
        /// The account.
        account: String,
        /// Why.
        error: String,
    },
    /// The AEK of an account was rotated by schedule.
    AekRotated {
        /// The account.
        account: String,
        /// The AEK version that seals new blocks now.
        aek_version: u32,
        /// Why it was due.
        why: Due,
    },
    /// A KEK was rotated by schedule.
    KekRotated {
        /// The KEK version that wraps new AEKs now.
        kek: KekVersion,
        /// Why it was due.
        why: Due,
    },
    /// A re-wrap by schedule has come to its end.
    Rewrapped {
        /// The KEK version that the accounts were moved to.
        kek: KekVersion,
        /// Accounts that were moved.
        accounts: u64,
        /// Accounts that could not be moved.
        failed: u64,
    },
    /// Something is due by schedule and could not be done. Told once, until it succeeds or fails otherwise.
    ScheduleFailed {
        /// What.
        subject: String,
        /// Why, and the remedy.
        error: String,
    },
    /// A key that could be a KEK came into the token, and no KEK names it: adopt it (`keyleash kek rotate NAME --adopt ID`)
    /// before what it should replace goes.
    KekUnknown {
        /// Which token.
        token: TokenName,
        /// Its CKA_ID.
        id: KekId,
        /// Its label.
        label: String,
    },
    /// A KEK version that is not retired is in the token no more. What this means for its accounts is learned from proofs.
    KekMissing {
        /// The KEK version.
        kek: KekVersion,
        /// True for the version that wraps new AEKs.
        current: bool,
    },
    /// A KEK version that was missing is in the token again.
    KekBack {
        /// The KEK version.
        kek: KekVersion,
    },
    /// A hook made a new version of a secret, which is given out from now on.
    SecretRotated {
        /// The secret.
        secret: SecretId,
        /// The version.
        version: u32,
    },
    /// A policy is in force: the first one that this engine read, or a changed one.
    PolicyInForce {
        /// Counts the policy's changes.
        generation: u64,
    },
    /// The policy of the store cannot be read: it is damaged, or gone. What this engine read last stays in force; where there is nothing
    /// that it read, nobody is granted anything. Told once until it can be read.
    PolicyDamaged {
        /// What is wrong, and the remedy.
        error: String,
    },
    /// The subscriber was too slow and missed this many events.
    Missed(u64),
}

/// The target of the log lines that say an event once more: who shows the events themselves leaves these out.
pub const EVENTS_TARGET: &str = "keyleash::event";

/// A line for people.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |account: &Option<AccountId>| {
            account.as_ref().map_or_else(|| "an account".to_owned(), |account| format!("account {account}"))
        };
        match self {
            Self::Lease { kek, change, trouble: None } => write!(f, "{kek} {}", change),
            Self::Lease { kek, change, trouble: Some(trouble) } => write!(f, "{kek} {}: {trouble}", change),
            Self::KekReplaced { kek } => {
                write!(f, "KEK {kek}: the token has another key in its place; restore the KEK from its backup")
            }
            Self::ProfileFailed { profile, kek, error } => {
                write!(f, "profile {profile}, tried with KEK {kek}: {error}")
            }
            Self::WorkerLost { token, workers: Workers { alive, hung, hung_max } } => write!(
                f,
                "token {token}: a worker hangs in a call and was given up; {alive} alive, {hung} of {hung_max} hang"
            ),
            Self::ContextNotRenewed { token, why } => {
                write!(f, "token {token}: its context could not be renewed for a fresh proof: {why}")
            }
            Self::ContextRenewed { token } => write!(f, "token {token}: its context could be renewed again"),
            Self::ProofCrowdedOut { kek, token, why } => {
                write!(f, "KEK {kek}: a proof found no worker of token {token} free in time: {why}")
            }
            Self::StoreSilent { why } => write!(f, "the store is silent: {why}; keys in use go on"),
            Self::StoreAnswers => f.write_str("the store answers again"),
            Self::ChangesUnheard { why } => {
                write!(f, "what others change in the store is noticed within a TTL, and not at once: {why}")
            }
            Self::ChangesHeard => f.write_str("what others change in the store is heard of at once again"),
            Self::TrailBroken { why } => f.write_str(why),
            Self::TrailWhole => f.write_str("the trail is kept again"),
            Self::NoRecordToProve { kek, why } => write!(f, "KEK {kek}: there is no record to prove it with: {why}"),
            Self::StandbyTookOver { kek, standby } => write!(f, "KEK {kek}: standby {standby} took over"),
            Self::StandbyDone { kek, standby } => write!(f, "KEK {kek}: standby {standby} is done"),
            Self::StandbyUnfit { kek, standby, why } => {
                write!(f, "KEK {kek}: standby {standby} cannot take over: {why}")
            }
            Self::WatchRestarted { why } => write!(f, "a task of the engine was started again: {why}"),
            Self::WipeWaits { kek, account, threads } => {
                write!(
                    f,
                    "a key of {} under KEK {kek} is still used by an operation that does not end, of ",
                    named(account)
                )?;
                let threads = threads.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
                write!(f, "threads {threads}")
            }
            Self::WipeDone { kek, account, waited } => write!(
                f,
                "a key of {} under KEK {kek} is wiped, {} s after it was taken away",
                named(account),
                waited.as_secs()
            ),
            Self::AccountFailed { account, error } => write!(f, "account {account}: {error}"),
            Self::AekRotated { account, aek_version, why } => {
                write!(f, "account {account}: AEK version {aek_version} seals new blocks ({why})")
            }
            Self::KekRotated { kek, why } => write!(f, "KEK {kek}: wraps new AEKs ({why})"),
            Self::Rewrapped { kek, accounts, failed } => {
                let noun = if *accounts == 1 { "account" } else { "accounts" };
                write!(f, "KEK {kek}: {accounts} {noun} re-wrapped, {failed} failed")
            }
            Self::ScheduleFailed { subject, error } => write!(f, "{subject}: not done by schedule: {error}"),
            Self::KekUnknown { token, id, label } => write!(
                f,
                "token {token}: a new key that no KEK names, label {label:?}, CKA_ID {id}: `keyleash kek rotate NAME --adopt {id}` \
                 adopts it"
            ),
            Self::KekMissing { kek, current } => {
                let current = if *current { ", which wraps new AEKs," } else { "" };
                write!(f, "KEK {kek}{current} is in its token no more, and not retired")
            }
            Self::KekBack { kek } => write!(f, "KEK {kek} is in its token again"),
            Self::SecretRotated { secret, version } => write!(f, "secret {secret}: a hook made version {version}"),
            Self::PolicyInForce { generation } => write!(f, "policy {generation} is in force"),
            Self::PolicyDamaged { error } => write!(f, "the policy cannot be read: {error}"),
            Self::Missed(1) => f.write_str("1 event was missed"),
            Self::Missed(missed) => write!(f, "{missed} events were missed"),
        }
    }
}

/// The engine's end.
#[derive(Debug, Clone)]
pub(crate) struct Teller {
    sender: broadcast::Sender<Event>,
    counts: Arc<EventCounts>,
}

impl Teller {
    pub(crate) fn new() -> Self {
        Self { sender: broadcast::channel(EVENTS_HELD_MAX).0, counts: Arc::default() }
    }

    pub(crate) fn tell(&self, event: Event) {
        self.counts.count(&event);
        match &event {
            Event::Lease { kek, change, trouble } => {
                let trouble = trouble.as_deref();
                tracing::info!(target: EVENTS_TARGET, %kek, %change, trouble, "{event}");
            }
            good @ (Event::AekRotated { .. }
            | Event::PolicyInForce { .. }
            | Event::KekRotated { .. }
            | Event::KekBack { .. }
            | Event::SecretRotated { .. }
            | Event::ContextRenewed { .. }
            | Event::StoreAnswers
            | Event::ChangesHeard
            | Event::TrailWhole
            | Event::WipeDone { .. }
            | Event::Rewrapped { failed: 0, .. }) => tracing::info!(target: EVENTS_TARGET, "{good}"),
            other => tracing::warn!(target: EVENTS_TARGET, "{other}"),
        }
        // Nobody needs to listen.
        let _ = self.sender.send(event);
    }

    pub(crate) fn subscribe(&self) -> Events {
        Events(Some(self.sender.subscribe()))
    }

    /// How often each kind of event was told, by its name.
    pub(crate) fn counts(&self) -> Vec<(&'static str, u64)> {
        self.counts.so_far()
    }
}

/// A stream of events from the moment of subscription on.
#[derive(Debug)]
pub struct Events(Option<broadcast::Receiver<Event>>);

impl Events {
    /// A forked child hears nothing.
    pub(crate) fn of_child() -> Self {
        Self(None)
    }

    /// The next event; `None` when the engine is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.as_mut()?.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Event::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// The next event if there is one already.
    pub fn try_next(&mut self) -> Option<Event> {
        match self.0.as_mut()?.try_recv() {
            Ok(event) => Some(event),
            Err(broadcast::error::TryRecvError::Lagged(missed)) => Some(Event::Missed(missed)),
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_subscriber_is_told_how_much_it_missed() {
        let teller = Teller::new();
        let mut events = teller.subscribe();
        for _ in 0..EVENTS_HELD_MAX + 3 {
            teller.tell(Event::WatchRestarted { why: "test".into() });
        }
        assert_eq!(events.next().await, Some(Event::Missed(3)));
        assert!(matches!(events.try_next(), Some(Event::WatchRestarted { .. })));
        drop(teller);
        while let Some(event) = events.next().await {
            assert!(matches!(event, Event::WatchRestarted { .. }));
        }
    }
}
