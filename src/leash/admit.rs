//! A freshly unwrapped key put into its slot: only in the epoch in which it was asked for, and on a young proof.

use super::{Leash, Member};
use crate::{
    error::Error,
    lease::{Phase, Verdict},
    secret::{Aek, NewKey},
};
use std::num::NonZeroU64;

/// Why a key was not admitted.
pub(crate) enum NotAdmitted {
    /// The lease was denied or ended, or the engine is gone; or there is no memory for the key.
    Refused(Error),
    /// Nobody knows what the token says by now: it is to be asked again first.
    AskAgain,
}

impl<M: Member> Leash<M> {
    /// Fills the slot of `member`, unless the lease was denied or ended since the token was asked in `epoch`, or has no young proof; then
    /// tells `admitted`, before a denial can take the key away again, whether the key was put in (or was there already).
    ///
    /// A lease that nobody was under is not polled. So whoever brings the first key late, because the store was slow, must not
    /// put it in on what the token said before that.
    pub(crate) fn admit(
        &self,
        epoch: u64,
        member: &M,
        aek: &Aek,
        admitted: impl FnOnce(bool),
    ) -> Result<(), NotAdmitted> {
        let slot = member.key();
        let set_up = || NewKey::set_up(aek, self.memory.policy).map_err(NotAdmitted::Refused);
        // Outside the lock, unless it is taken away in this moment.
        let key = if slot.holds(aek) { None } else { Some(set_up()?) };
        let inner = self.inner();
        let now = self.clock.now();
        let unproven = inner.lease.phase() == Phase::Unproven;
        let admits = epoch == inner.lease.epoch() && (unproven || now < inner.lease.end()) && !inner.closed;
        let filled_in = NonZeroU64::new(epoch).filter(|_| admits);
        let Some(filled_in) = filled_in else {
            // Denied and granted again since: the token says yes to whoever asks now.
            let phase = inner.lease.step(Verdict::Nothing, now).0.phase();
            let granted = !inner.closed && matches!(phase, Phase::Active | Phase::Resuming { .. });
            return Err(if granted { NotAdmitted::AskAgain } else { NotAdmitted::Refused(self.refusal(&inner, now)) });
        };
        if inner.lease.proved().is_none_or(|proved| now >= proved.plus(self.proof_age_max)) {
            return Err(NotAdmitted::AskAgain);
        }
        if slot.epoch() == Some(filled_in) && slot.holds(aek) {
            admitted(false); // a refresh: the key in use stays where it is
            return Ok(());
        }
        let key = key.map_or_else(set_up, Ok)?;
        self.memory.fills_one();
        // A denial waits for this lock, and then takes out what is filled here.
        let before = slot.fill(key, filled_in);
        admitted(true);
        drop(inner);
        self.memory.wipe(&self.kek, before.into_iter().map(|taken| (taken, member.owner())).collect());
        Ok(())
    }
}
