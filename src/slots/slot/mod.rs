//! One AEK version of one account, and the slot that holds it while it is unwrapped.

use crate::{
    clock::Instant,
    error::{Error, Result},
    lease::Phase,
    leash::{self, Member, NotAdmitted},
    name::AccountId,
    secret::{Aek, KeySlot, Schedule, in_flight::Operation},
    slots::meter::Meter,
    sync::{AtomicBool, AtomicU64},
};
use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

/// Used since its last unwrap.
const SINCE_UNWRAP: u8 = 1;
/// Used, or filled, since the last look for a key that could make room for another.
const SINCE_LOOK: u8 = 2;

/// The lease of the KEK version that wraps an account's AEK.
pub(crate) type Leash = leash::Leash<AekSlot>;

/// One AEK version of one account. There are a million of them, so every field is worth its bytes.
#[derive(Debug)]
pub(crate) struct AekSlot {
    pub(crate) aek_version: u32,
    pub(crate) leash: Arc<Leash>,
    metered: Metered,
    key: KeySlot,
    /// Until when the AEK may be used without a fresh unwrap of its own, while the token answers: a TTL from when the record was
    /// read for the last one.
    fresh_until_ns: AtomicU64,
    /// From when on it is refreshed, if it is in use.
    refresh_from_ns: AtomicU64,
    /// From when on, while its TTL does not bind, the record is read again: its account may have been deleted.
    check_from_ns: AtomicU64,
    /// [`SINCE_UNWRAP`], [`SINCE_LOOK`].
    used: AtomicU8,
    /// A denial or lapse took the key away while it was in use: resumption brings it back.
    wanted: AtomicBool,
    /// Another slot has taken its place, under the KEK version that the record names by now.
    retired: AtomicBool,
    /// It is in the queue of those that may make room for others (`keyring/room.rs`), whose it is.
    pub(crate) queued: AtomicBool,
}

/// Where it is metered what is sealed under an AEK version.
#[derive(Debug)]
enum Metered {
    Here(Meter),
    /// In the first slot of the AEK version, whose successor this is.
    There(Arc<AekSlot>),
}

// A million of them; see the page of the manual on performance.
#[cfg(all(target_pointer_width = "64", not(keyleash_loom)))]
const _: () = assert!(size_of::<AekSlot>() <= 184);

/// A key that may be used now, and the lease that says so.
pub(crate) struct Selection<'a> {
    pub(crate) schedule: &'a Schedule,
    pub(crate) aek_version: u32,
    pub(crate) leash: &'a Leash,
    pub(crate) meter: &'a Meter,
    pub(crate) epoch: u64,
}

/// What to do with a slot as its TTL goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    /// In use, or wanted back: unwrap it anew before a caller has to wait.
    Refresh,
    /// Nobody used it for a TTL: wipe it, so that idle accounts cost the token nothing.
    Wipe,
    /// Its TTL does not bind, or nobody uses it: see in the store whether the account was deleted.
    Check,
}

impl Member for AekSlot {
    fn key(&self) -> &KeySlot {
        &self.key
    }

    fn lost(&self) {
        self.wanted.store(true, Ordering::SeqCst);
    }

    fn owner(&self) -> Option<&AccountId> {
        Some(self.account())
    }

    fn proves(&self) -> bool {
        !self.is_retired()
    }

    fn wanted_back(&self) -> bool {
        self.is_wanted()
    }
}

impl AekSlot {
    /// An empty slot for the AEK version that `meter` counts, enlisted with its lease.
    pub(crate) fn new(leash: Arc<Leash>, meter: Meter) -> Arc<Self> {
        Self::enlisted(leash, meter.aek.aek_version, Metered::Here(meter))
    }

    /// An empty slot for the same AEK version under another lease. It goes on counting where `self` does.
    pub(crate) fn successor(self: &Arc<Self>, leash: Arc<Leash>) -> Arc<Self> {
        let first = match &self.metered {
            Metered::Here(_) => self,
            Metered::There(first) => first,
        };
        Self::enlisted(leash, self.aek_version, Metered::There(first.clone()))
    }

    fn enlisted(leash: Arc<Leash>, aek_version: u32, metered: Metered) -> Arc<Self> {
        let slot = Arc::new(Self {
            aek_version,
            leash,
            metered,
            key: KeySlot::default(),
            fresh_until_ns: AtomicU64::new(0),
            refresh_from_ns: AtomicU64::new(0),
            check_from_ns: AtomicU64::new(0),
            used: AtomicU8::new(0),
            wanted: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            queued: AtomicBool::new(false),
        });
        slot.leash.enlist(Arc::downgrade(&slot));
        slot
    }

    /// What is sealed under it, and under those before and after it of this AEK version.
    #[inline]
    pub(crate) fn meter(&self) -> &Meter {
        match &self.metered {
            Metered::Here(meter) => meter,
            Metered::There(first) => first.meter(),
        }
    }

    pub(crate) fn account(&self) -> &AccountId {
        &self.meter().aek.account
    }

    /// The key, if it may be used at `now`: the lease runs, the TTL does not bind, the slot is filled in the lease's epoch.
    #[inline(always)]
    pub(crate) fn usable<'a>(&'a self, operation: &'a mut Operation, now: Instant) -> Option<Selection<'a>> {
        let epoch = self.leash.epoch();
        if !self.leash.runs_at(now) {
            return None;
        }
        if self.is_stale(now) {
            return None;
        }
        let schedule = self.key.read(operation, epoch)?;
        // Written once per unwrap and look, so that cores which share the account do not fight over the line.
        if self.used.load(Ordering::Relaxed) != SINCE_UNWRAP | SINCE_LOOK {
            self.used.store(SINCE_UNWRAP | SINCE_LOOK, Ordering::Relaxed);
        }
        Some(Selection { schedule, aek_version: self.aek_version, leash: &self.leash, meter: self.meter(), epoch })
    }

    /// True when its TTL is over and binds, or has been over for as long as anything may put that off.
    #[inline]
    fn is_stale(&self, now: Instant) -> bool {
        let fresh_until = Instant::from_nanos(self.fresh_until_ns.load(Ordering::Acquire));
        now >= fresh_until && (self.leash.ttl_binds_at(now) || now >= fresh_until.plus(self.leash.waiver_max))
    }

    /// As [`AekSlot::usable`], without using it.
    pub(crate) fn is_usable(&self, now: Instant) -> bool {
        self.leash.runs_at(now)
            && !self.is_stale(now)
            && self.key.epoch().is_some_and(|epoch| epoch.get() == self.leash.epoch())
    }

    /// Why it is not usable.
    #[cold]
    pub(crate) fn why_not(&self, now: Instant) -> Error {
        self.leash.why_refused(now).unwrap_or_else(|| self.cold())
    }

    /// Its key is not in memory.
    #[cold]
    pub(crate) fn cold(&self) -> Error {
        Error::Cold { account: self.account().clone() }
    }

    /// Takes an AEK that the token gave in `epoch`, to be refreshed and to be used until the given instants.
    ///
    /// # Errors
    /// Why not, when the lease was denied or ended in between; [`Error::Cold`] when another slot took its place, the account is no
    /// more, or the token must be asked again first.
    pub(crate) fn admit(&self, aek: &Aek, epoch: u64, refresh_from: Instant, fresh_until: Instant) -> Result<()> {
        let admitted = self.leash.admit(epoch, self, aek, |put_in| {
            self.wanted.store(false, Ordering::SeqCst);
            // An answer that was overtaken by a newer one takes nothing away.
            if !put_in && fresh_until.as_nanos() <= self.fresh_until_ns.load(Ordering::Acquire) {
                return;
            }
            match put_in {
                true => self.used.store(SINCE_LOOK, Ordering::Relaxed),
                false => _ = self.used.fetch_and(!SINCE_UNWRAP, Ordering::Relaxed),
            }
            self.refresh_from_ns.store(refresh_from.as_nanos(), Ordering::Release);
            self.check_from(refresh_from);
            self.fresh_until_ns.store(fresh_until.as_nanos(), Ordering::Release);
        });
        let admitted = admitted.map_err(|not| match not {
            NotAdmitted::Refused(error) => error,
            NotAdmitted::AskAgain => self.cold(),
        });
        // Retired meanwhile: whichever of the two came last wipes.
        if self.is_retired() {
            self.wipe();
            return admitted.and(Err(self.cold()));
        }
        admitted
    }

    /// True when the slot is filled and was used since its last unwrap.
    pub(crate) fn is_in_use(&self) -> bool {
        self.key.epoch().is_some() && self.was_used()
    }

    pub(crate) fn is_filled(&self) -> bool {
        self.key.epoch().is_some()
    }

    /// True when it was used since its last unwrap.
    fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed) & SINCE_UNWRAP != 0
    }

    /// True when it was used, or filled, since it was last asked this.
    pub(crate) fn keeps_its_room(&self) -> bool {
        self.used.fetch_and(!SINCE_LOOK, Ordering::Relaxed) & SINCE_LOOK != 0
    }

    /// True when resumption should bring the key back.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst) && !self.is_retired()
    }

    /// True when another slot has taken its place.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// Takes over from `old`: resumption brings the key back, if it would have brought back the old one's.
    pub(crate) fn inherit(&self, old: &Self) {
        if self.key.epoch().is_none() && (old.is_wanted() || old.is_in_use()) {
            self.lost();
        }
    }

    /// Wipes it for good: another slot has taken its place.
    pub(crate) fn retire(&self) {
        if !self.retired.swap(true, Ordering::SeqCst) {
            self.leash.retired.fetch_add(1, Ordering::SeqCst);
        }
        self.wipe();
    }

    /// Takes its key away until the record was read again, which is done soon where it was in use.
    pub(crate) fn recall(&self) {
        if self.is_in_use() {
            self.lost();
        }
        self.wipe();
    }

    /// Resumption gives up on it (its record is damaged, say); whoever uses it will be told why.
    pub(crate) fn give_up(&self) {
        self.wanted.store(false, Ordering::SeqCst);
    }

    /// What its TTL asks for at `now`. While the token does not answer everything stays until the lease ends, but for what
    /// was deleted.
    pub(crate) fn due(&self, now: Instant) -> Due {
        if self.key.epoch().is_none() {
            // While accounts resume, that brings it back.
            let is_missed = self.is_wanted() && self.leash.answers() && self.leash.lease().phase() == Phase::Active;
            return if is_missed { Due::Refresh } else { Due::Nothing };
        }
        let reached = |at: &AtomicU64| now.as_nanos() >= at.load(Ordering::Acquire);
        let used = self.was_used();
        if self.leash.answers() && used {
            return if reached(&self.refresh_from_ns) { Due::Refresh } else { Due::Nothing };
        }
        if self.leash.answers() && self.is_stale(now) {
            return Due::Wipe;
        }
        // After a silence too, for as long as that puts off the TTL of what nobody uses.
        let ttl_binds = self.leash.answers() && !reached(&self.fresh_until_ns);
        if !ttl_binds && reached(&self.check_from_ns) { Due::Check } else { Due::Nothing }
    }

    /// The next refresh.
    pub(crate) fn refresh_from(&self, at: Instant) {
        self.refresh_from_ns.store(at.as_nanos(), Ordering::Release);
    }

    /// The next look into the store while the token does not answer.
    pub(crate) fn check_from(&self, at: Instant) {
        self.check_from_ns.store(at.as_nanos(), Ordering::Release);
    }

    /// Wipes the key of an account that was deleted; nothing but a warm brings it back.
    pub(crate) fn shut(&self) {
        self.give_up();
        self.wipe();
    }

    /// As [`AekSlot::shut`], when its record could not be read because the account is not there.
    pub(crate) fn shut_if_gone(&self, error: &Error) {
        if matches!(error, Error::NotFound(_)) {
            self.shut();
        }
    }

    /// Wipes the key, as [`Leash::wipe`]; the account is cold then.
    pub(crate) fn wipe(&self) {
        self.leash.wipe(&[self]);
    }

    /// True when the slot holds another AEK than this one.
    pub(crate) fn differs_from(&self, aek: &Aek) -> bool {
        self.key.differs_from(aek)
    }
}

impl Drop for AekSlot {
    fn drop(&mut self) {
        self.wipe();
        if self.is_retired() {
            self.leash.retired.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests;
