//! Pauses after attempts that failed, and who goes by them: all but proofs that were asked for since.

use super::module::lock;
use crate::clock::Instant;
use std::{sync::Mutex, time::Duration};

/// Shortest pause between two initialisations; doubles with each that does not help.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause, of all but proofs ([`Caller::proof`]).
const BACKOFF_MAX: Duration = Duration::from_millis(800);
/// A pause that a call sits out, so that trouble of a moment is over within the call; in a long outage calls fail at once.
pub(super) const PAUSE_WAITED_MAX: Duration = Duration::from_millis(100);

/// The pauses of one token between re-initialisations for its sake. Those of another one on the module, which works, do not end
/// them: each re-initialisation costs that one its sessions.
#[derive(Default)]
pub(super) struct Pauses(Mutex<Pause>);

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pause {
    pub(super) vain: u32,
    /// When the last attempt began.
    tried: Instant,
    /// When it had failed.
    failed: Instant,
    pub(super) not_before: Instant,
}

impl Pause {
    pub(super) fn back_off(&mut self, tried: Instant, failed: Instant) {
        let pause = BACKOFF_MIN.saturating_mul(1 << self.vain.min(8)).min(BACKOFF_MAX);
        *self = Self { vain: self.vain.saturating_add(1), tried, failed, not_before: failed.plus(pause) };
    }

    /// Until when this caller is kept.
    pub(super) fn end(&self, caller: &Caller) -> Instant {
        match caller.proof {
            // Shorter than what is sat out, and long enough that many KEK versions do not take the module from the other tokens in it.
            Some(asked) if !caller.goes_by(self.tried) => {
                let pause = PAUSE_WAITED_MAX.min(caller.deadline.since(asked) / 4);
                self.not_before.min(self.failed.plus(pause))
            }
            _ => self.not_before,
        }
    }
}

/// Who calls.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) operation: &'static str,
    /// Until when they wait.
    pub(super) deadline: Instant,
    /// When they asked, where it is for a proof. A proof takes no answer that is older than itself: what failed before it was asked for
    /// is tried again for it, however long others pause, whoever tried it and however often. Else a pause that ends just after a proof
    /// would let a token that is back be found a poll late.
    pub(super) proof: Option<Instant>,
}

impl Caller {
    /// Whether an attempt that was begun then, and failed, is their answer too.
    pub(super) fn goes_by(&self, tried: Instant) -> bool {
        self.proof.is_none_or(|asked| asked <= tried)
    }
}

impl Pauses {
    pub(super) fn end_for(&self, caller: &Caller) -> Instant {
        lock(&self.0).end(caller)
    }

    pub(super) fn back_off(&self, now: Instant) {
        lock(&self.0).back_off(now, now);
    }

    pub(super) fn end(&self) {
        let mut pause = lock(&self.0);
        if pause.vain > 0 {
            *pause = Pause::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proof_is_kept_by_what_was_tried_before_it_was_asked_for_longer_than_it_can_sit_out() {
        let ms = |ms: u64| Instant::default().plus(Duration::from_millis(ms));
        let mut pause = Pause::default();
        for _ in 0..12 {
            pause.back_off(ms(1000), ms(1010));
            for timeout in [100, 500, 60_000] {
                for asked in 0..3000 {
                    let deadline = ms(asked + timeout);
                    let proof = Caller { operation: "unwrap", deadline, proof: Some(ms(asked)) };
                    let other = Caller { proof: None, ..proof };
                    assert_eq!(pause.end(&other), pause.not_before);
                    if asked <= 1000 {
                        assert_eq!(pause.end(&proof), pause.not_before, "its own answer, or as new as that");
                        continue;
                    }
                    let waited = pause.end(&proof).since(ms(asked.max(1010)));
                    assert!(waited <= PAUSE_WAITED_MAX && waited.as_millis() <= u128::from(timeout) / 4);
                }
            }
        }
        assert_eq!(pause.not_before, ms(1010).plus(BACKOFF_MAX));
    }
}
