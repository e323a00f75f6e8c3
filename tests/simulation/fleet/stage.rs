//! What the script and the seams share.

use super::{
    hsm::{Fault, Grant, Hsm},
    oracle::{Call, Oracle},
    shelf::Shelves,
};
use keyleash::{
    clock::{Instant, ManualClock},
    token::{KekId, TokenError},
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;

pub(crate) struct Stage {
    /// The first token, and its standby where there is one.
    pub(crate) hsms: Vec<Hsm>,
    pub(crate) shelves: Shelves,
    pub(crate) oracle: Oracle,
    /// Processes that were killed: nothing that they do reaches anything any more.
    pub(crate) killed: BTreeSet<usize>,
    /// Processes whose host is suspended: nothing reaches them.
    pub(crate) suspended: BTreeSet<usize>,
    pub(crate) woken: Arc<Notify>,
    /// The world's time.
    pub(crate) real: ManualClock,
    pub(crate) trace: Option<Vec<String>>,
}

pub(crate) type Shared = Arc<Mutex<Stage>>;

pub(crate) fn lock(shared: &Shared) -> MutexGuard<'_, Stage> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nothing comes back to a process that was killed, and nothing to one that is suspended before it wakes.
pub(crate) async fn gate(shared: &Shared, process: usize) {
    loop {
        let woken = {
            let stage = lock(shared);
            if !stage.killed.contains(&process) && !stage.suspended.contains(&process) {
                return;
            }
            stage.woken.clone()
        };
        woken.notified().await;
    }
}

impl Stage {
    pub(crate) fn now(&self) -> Instant {
        self.real.now()
    }

    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        let now = self.now();
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>10.3} {}", now.as_nanos() as f64 / 1e9, what()));
        }
    }

    /// The oracle sees what is true now.
    pub(crate) fn look(&mut self) {
        let now = self.now();
        self.oracle.look(&self.hsms, &self.shelves, now);
    }

    pub(crate) fn unwrap_begins(&mut self, process: usize, hsm: usize, kek: &KekId, wrapped: &[u8]) -> u64 {
        let now = self.now();
        let call = self.oracle.begin(Call { process, hsm, kek: kek.clone(), at: now }, wrapped);
        let what = self.oracle.of_record(wrapped);
        self.note(|| format!("process {process} asks token {hsm} for {what}: call {call}"));
        call
    }

    pub(crate) fn unwrap_ends(&mut self, call: u64, told: Result<(Grant, Instant), &TokenError>) {
        self.note(|| match &told {
            Ok((how, _)) => format!("call {call} gives the AEK: {how:?}"),
            Err(trouble) => format!("call {call} gives {:?}: {}", trouble.verdict, trouble.what),
        });
        let now = self.now();
        self.oracle.land(call, told.map_err(|trouble| trouble.verdict), now);
    }

    pub(crate) fn fault_strikes(&mut self, process: usize, fault: Fault, call_timeout: Duration) {
        let now = self.now();
        self.note(|| format!("the next call of process {process} meets {fault:?}"));
        self.oracle.disturb(process, now.plus(call_timeout));
        if fault == Fault::Hang {
            self.oracle.hangs(process);
        }
    }

    /// As vendors' clusters do: what is made in the first token is in the standby at once.
    pub(crate) fn kek_made(&mut self) {
        if let [first, standby] = &mut self.hsms[..] {
            first.clone_to(standby);
        }
        self.look();
    }
}
