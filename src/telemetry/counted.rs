//! Each kind of event has a name, and is counted under it.

use super::Event;
use crate::lease::Change;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! names {
    ($($event:pat => $name:literal,)+) => {
        /// The names of all kinds of events, as [`Event::name`] gives them.
        pub const EVENT_NAMES: &[&str] = &[$($name),+];

        impl Event {
            /// The name of its kind: `lease_denied`. Stable: metrics and alerts go by it.
            pub const fn name(&self) -> &'static str {
                match self {
                    $($event => $name,)+
                }
            }
        }
    };
}

names! {
    Event::Lease { change: Change::Granted, .. } => "lease_granted",
    Event::Lease { change: Change::Unreachable, .. } => "lease_unreachable",
    Event::Lease { change: Change::Denied, .. } => "lease_denied",
    Event::Lease { change: Change::Lapsed, .. } => "lease_lapsed",
    Event::Lease { change: Change::Resuming, .. } => "lease_resuming",
    Event::Lease { change: Change::Resumed, .. } => "lease_resumed",
    Event::KekReplaced { .. } => "kek_replaced",
    Event::ProfileFailed { .. } => "profile_failed",
    Event::WorkerLost { .. } => "worker_lost",
    Event::ContextNotRenewed { .. } => "context_not_renewed",
    Event::ContextRenewed { .. } => "context_renewed",
    Event::ProofCrowdedOut { .. } => "proof_crowded_out",
    Event::StoreSilent { .. } => "store_silent",
    Event::StoreAnswers => "store_answers",
    Event::ChangesUnheard { .. } => "changes_unheard",
    Event::ChangesHeard => "changes_heard",
    Event::TrailBroken { .. } => "trail_broken",
    Event::TrailWhole => "trail_whole",
    Event::NoRecordToProve { .. } => "no_record_to_prove",
    Event::StandbyTookOver { .. } => "standby_took_over",
    Event::StandbyDone { .. } => "standby_done",
    Event::StandbyUnfit { .. } => "standby_unfit",
    Event::WatchRestarted { .. } => "watch_restarted",
    Event::WipeWaits { .. } => "wipe_waits",
    Event::WipeDone { .. } => "wipe_done",
    Event::AccountFailed { .. } => "account_failed",
    Event::AekRotated { .. } => "aek_rotated",
    Event::KekRotated { .. } => "kek_rotated",
    Event::Rewrapped { .. } => "rewrapped",
    Event::ScheduleFailed { .. } => "schedule_failed",
    Event::KekUnknown { .. } => "kek_unknown",
    Event::KekMissing { .. } => "kek_missing",
    Event::KekBack { .. } => "kek_back",
    Event::SecretRotated { .. } => "secret_rotated",
    Event::PolicyInForce { .. } => "policy_in_force",
    Event::PolicyDamaged { .. } => "policy_damaged",
    Event::Missed(_) => "missed",
}

/// How often each kind was told.
#[derive(Debug)]
pub(super) struct EventCounts([AtomicU64; EVENT_NAMES.len()]);

impl Default for EventCounts {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; EVENT_NAMES.len()])
    }
}

impl EventCounts {
    pub(super) fn count(&self, event: &Event) {
        let of = EVENT_NAMES.iter().zip(&self.0).find(|(name, _)| **name == event.name());
        if let Some((_, count)) = of {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn so_far(&self) -> Vec<(&'static str, u64)> {
        EVENT_NAMES.iter().copied().zip(self.0.iter().map(|count| count.load(Ordering::Relaxed))).collect()
    }
}
