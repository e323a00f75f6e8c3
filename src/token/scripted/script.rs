//! The script that the token follows, and the hand that moves it.

use super::{error, keys::Kek};
use crate::token::{KekId, TokenError, Verdict};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;
use zeroize::Zeroizing;

/// The kinds of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[allow(missing_docs)] // each is the method of `Token` that it is named after
pub enum Call {
    Info,
    Wrap,
    Unwrap,
    Probe,
    CreateKek,
    FindKek,
    ListKeks,
}

/// How a call goes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Act {
    /// As the KEKs stand.
    Serve,
    /// It fails with this.
    Fail(TokenError),
    /// As the KEKs stand as it begins, but the answer takes this long. After the call timeout it is unreachable, and its worker
    /// hangs for the rest.
    Delay(Duration),
    /// As the KEKs stand as it begins, but the answer takes until [`Script::release`].
    Hang,
    /// An unwrap gives another AEK than was wrapped, and a wrap wraps another one. Other calls are served.
    WrongPlaintext,
}

impl Act {
    /// Fails with `verdict` and words that name it as scripted.
    pub fn fail(verdict: Verdict) -> Self {
        Self::Fail(error(verdict, "scripted", "the script says so"))
    }
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) begun: u64,
    pub(super) served: u64,
}

pub(super) struct State {
    pub(super) seed: u64,
    pub(super) drawn: u64,
    pub(super) keks: BTreeMap<KekId, Kek>,
    /// KEKs that were destroyed, for restoring.
    pub(super) graves: BTreeMap<KekId, Kek>,
    pub(super) next: HashMap<Call, VecDeque<Act>>,
    pub(super) standing: HashMap<Call, Act>,
    pub(super) latency: Duration,
    pub(super) unreachable: bool,
    pub(super) counts: HashMap<Call, Counts>,
    pub(super) in_flight: usize,
    pub(super) in_flight_max: usize,
    /// How often hanging calls were released.
    pub(super) releases: u64,
}

impl State {
    pub(super) fn draw(&mut self, what: &str) -> Zeroizing<[u8; 32]> {
        self.drawn += 1;
        let digest = Sha256::new()
            .chain_update(self.seed.to_be_bytes())
            .chain_update(self.drawn.to_be_bytes())
            .chain_update(what.as_bytes())
            .finalize();
        Zeroizing::new(digest.into())
    }

    pub(super) fn count(&mut self, call: Call) -> &mut Counts {
        self.counts.entry(call).or_default()
    }
}

/// The hand that moves a [`ScriptedToken`](super::ScriptedToken). Cheap to clone.
#[derive(Clone)]
pub struct Script {
    pub(super) state: Arc<Mutex<State>>,
    /// Wakes hanging calls. In the order in which they began, so that a simulation sees the same again (a `watch` channel
    /// would wake them in any).
    pub(super) released: Arc<Notify>,
}

impl Script {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and the value is whole after every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next call of this kind goes like this; further ones queue behind it.
    pub fn push(&self, call: Call, act: Act) {
        self.lock().next.entry(call).or_default().push_back(act);
    }

    /// Every call of this kind goes like this, but for those pushed; [`Act::Serve`] ends it.
    pub fn standing(&self, call: Call, act: Act) {
        self.lock().standing.insert(call, act);
    }

    /// Every call takes this long, but for those that are scripted otherwise.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// While on, every call that is not scripted otherwise is unreachable.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.lock().unreachable = unreachable;
    }

    /// Lets every call that hangs now go on.
    pub fn release(&self) {
        self.lock().releases += 1;
        self.released.notify_waiters();
    }

    /// Waits for a release after the first `releases`.
    pub(super) async fn release_after(&self, releases: u64) {
        loop {
            let released = self.released.notified();
            tokio::pin!(released);
            // Enlist before the look, else a release in between would be missed.
            released.as_mut().enable();
            if self.lock().releases > releases {
                return;
            }
            released.await;
        }
    }

    /// Unwraps are denied from now on (CKA_DECRYPT or CKA_UNWRAP off); wraps are not.
    pub fn disable(&self, kek: &KekId) {
        self.change(kek, |kek| kek.unwraps = false);
    }

    /// Undoes [`Script::disable`] and [`Script::disable_wrap`].
    pub fn enable(&self, kek: &KekId) {
        self.change(kek, |kek| (kek.unwraps, kek.wraps) = (true, true));
    }

    /// It is half a key from now on (CKA_ENCRYPT or CKA_WRAP off): wraps are refused, as misconfigured while unwraps are not.
    pub fn disable_wrap(&self, kek: &KekId) {
        self.change(kek, |kek| kek.wraps = false);
    }

    /// The KEK is refused for this reason from now on, as one with a forbidden attribute is.
    pub fn refuse(&self, kek: &KekId, why: &str) {
        self.change(kek, |kek| kek.refused = Some(why.into()));
    }

    /// Deletes the KEK; [`Script::restore`] brings it back.
    pub fn destroy(&self, kek: &KekId) {
        let mut state = self.lock();
        if let Some(dead) = state.keks.remove(kek) {
            state.graves.insert(kek.clone(), dead);
        }
    }

    /// Brings a destroyed KEK back, as from a backup.
    pub fn restore(&self, kek: &KekId) {
        let mut state = self.lock();
        if let Some(risen) = state.graves.remove(kek) {
            state.keks.insert(kek.clone(), risen);
        }
    }

    /// Copies every KEK that is not there yet to another token, as HSM vendors clone them: the same keys, attributes and CKA_IDs.
    pub fn clone_keks_to(&self, other: &Self) {
        let clones: Vec<_> = self.lock().keks.iter().map(|(id, kek)| (id.clone(), kek.twin())).collect();
        let mut other = other.lock();
        for (id, clone) in clones {
            other.keks.entry(id).or_insert(clone);
        }
    }

    /// Puts another key under the same id and label.
    pub fn replace(&self, kek: &KekId) {
        let mut state = self.lock();
        let key = state.draw("replaced KEK");
        if let Some(kek) = state.keks.get_mut(kek) {
            kek.key = key;
            kek.replaced = kek.worked;
        }
    }

    fn change(&self, id: &KekId, change: impl FnOnce(&mut Kek)) {
        self.lock().keks.get_mut(id).map(change);
    }

    /// Calls of this kind so far.
    pub fn calls(&self, call: Call) -> u64 {
        self.lock().count(call).begun
    }

    /// Calls of this kind that succeeded so far.
    pub fn served(&self, call: Call) -> u64 {
        self.lock().count(call).served
    }

    /// Calls that are under way.
    pub fn in_flight(&self) -> usize {
        self.lock().in_flight
    }

    /// The most calls that were ever under way at once.
    pub fn in_flight_max(&self) -> usize {
        self.lock().in_flight_max
    }
}
