//! What a lease knows of the records that prove its KEK version: what was wrapped here since the last proof, which proves nothing, and the
//! witness, by which alone a denial ends. `keyring/vouch.rs` says why, and asks.

use crate::{
    clock::Instant,
    error::Result,
    lease::standby::Voice,
    name::AccountId,
    store::record::{Witness, WrappedAek},
};
use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How often an older one than a witness that is refused is looked for.
const OLDER_LOOK_EVERY: Duration = Duration::from_secs(5 * 60);

/// What vouches for a KEK version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vouched {
    /// A record that was there before was unwrapped.
    ByRecord,
    /// Nothing: it wrapped nothing at that time, in that epoch of its lease.
    Bare { epoch: u64, at: Instant },
}

/// What one lease knows of it.
#[derive(Debug, Default)]
pub(crate) struct VouchNotes {
    /// When the last attempt began, and what came of it. Held while one is under way.
    pub(crate) attempt: tokio::sync::Mutex<Option<(Instant, Result<Vouched>)>>,
    /// AEK versions that were wrapped here since the last proof by a record that was there before.
    young: Mutex<HashMap<AccountId, Young>>,
    /// Since a round trip of this process was the proof, because the KEK version wrapped nothing: whose accounts were wrapped here, until
    /// the store was looked into since something was there.
    alone: Mutex<Option<HashSet<AccountId>>>,
    /// By what a denial ends; with its wrapping, once that was read here.
    witness: Mutex<Option<(Witness, Option<WrappedAek>)>>,
    /// When an older one was last looked for.
    looked_for_older: Mutex<Option<Instant>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Young {
    /// It and the newer ones.
    from_version: u32,
    at: Instant,
}

impl VouchNotes {
    pub(crate) fn young(&self) -> MutexGuard<'_, HashMap<AccountId, Young>> {
        // Nothing panics while it is held.
        self.young.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when this was wrapped here, and no record that was there before has been unwrapped since: it proves nothing.
    pub(crate) fn is_young(&self, account: &AccountId, aek_version: u32) -> bool {
        self.young().get(account).is_some_and(|young| aek_version >= young.from_version)
    }

    fn alone(&self) -> MutexGuard<'_, Option<HashSet<AccountId>>> {
        // Nothing panics while it is held.
        self.alone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A round trip is to be the proof, for the KEK version wraps nothing else as far as is known.
    pub(crate) fn proves_alone(&self, account: &AccountId) {
        self.alone().get_or_insert_default().insert(account.clone());
    }

    /// True while this process's own round trip is the proof, and nobody looked what others wrapped meanwhile.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone().is_some()
    }

    /// A record that the store has was unwrapped: another's, or there are none but those of this process, which so came first.
    pub(crate) fn looked(&self) {
        *self.alone() = None;
    }

    /// True when it was wrapped here, and may be by another key than what others wrapped.
    pub(crate) fn is_own(&self, account: &AccountId) -> bool {
        self.young().contains_key(account) || self.alone().as_ref().is_some_and(|own| own.contains(account))
    }

    pub(crate) fn wrapped(&self, account: &AccountId, aek_version: u32, at: Instant) {
        if let Some(own) = &mut *self.alone() {
            own.insert(account.clone());
        }
        let mut young = self.young();
        let from_version = young.get(account).map_or(aek_version, |young| young.from_version.min(aek_version));
        young.insert(account.clone(), Young { from_version, at });
    }

    /// A proof by this record, that was asked then: what had been wrapped before was wrapped by the KEK, unless it was the standby that
    /// was asked, which says nothing of what is in the first token.
    pub(crate) fn proved(&self, voice: Voice, asked: Instant, account: &AccountId, wrapped: &WrappedAek) {
        if voice == Voice::First {
            self.young().retain(|_, young| young.at >= asked);
        }
        // The first one stays. Any other may be what was wrapped since another key came in the KEK's place.
        self.known_witness().get_or_insert_with(|| (Witness::of(account, wrapped), Some(wrapped.clone())));
    }

    pub(crate) fn known_witness(&self) -> MutexGuard<'_, Option<(Witness, Option<WrappedAek>)>> {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn witness(&self) -> Option<Witness> {
        self.known_witness().as_ref().map(|(witness, _)| witness.clone())
    }

    /// The witness, if its wrapping is known here.
    pub(crate) fn witness_record(&self) -> Option<(AccountId, WrappedAek)> {
        self.known_witness().as_ref().and_then(|(witness, wrapped)| Some((witness.account.clone(), wrapped.clone()?)))
    }

    pub(crate) fn is_witness(&self, account: &AccountId, wrapped: &WrappedAek) -> bool {
        self.known_witness().as_ref().is_some_and(|(witness, _)| *witness == Witness::of(account, wrapped))
    }

    /// The one that a denial's record names.
    pub(crate) fn adopt(&self, witness: &Witness) {
        let mut known = self.known_witness();
        if known.as_ref().is_none_or(|(known, _)| known != witness) {
            *known = Some((witness.clone(), None));
        }
    }

    /// True unless it is known that another account proved first.
    pub(crate) fn may_prove_first(&self, account: &AccountId) -> bool {
        self.known_witness().as_ref().is_none_or(|(witness, wrapped)| wrapped.is_none() || witness.account == *account)
    }

    pub(crate) fn may_look_for_older(&self, now: Instant) -> bool {
        let mut last = self.looked_for_older.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.since(last) >= OLDER_LOOK_EVERY);
        if is_due {
            *last = Some(now);
        }
        is_due
    }

    pub(crate) fn read_witness(&self, account: &AccountId, wrapped: &WrappedAek) {
        *self.known_witness() = Some((Witness::of(account, wrapped), Some(wrapped.clone())));
    }

    /// These AEK versions are gone from the store.
    pub(crate) fn drop_witness(&self, is_gone: impl Fn(&AccountId, u32) -> bool) {
        self.known_witness().take_if(|(witness, _)| is_gone(&witness.account, witness.aek_version));
    }
}
