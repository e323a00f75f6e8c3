//! What a lease knows of the records that prove its KEK version: what was wrapped here since the last proof, which proves nothing, and the
//! witness, by which alone a denial ends. `keyring/vouch.rs` says why, and asks.

use crate::{
    clock::Instant,
    error::Result,
    lease::standby::Voice,
    name::AccountId,
    store::{
        StoreVersion,
        record::{Witness, WrappedAek},
    },
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// So many versions of a KEK's record are known as this process's own.
const OWN_VERSIONS_MAX: usize = 64;
/// How often an older one than a witness that is refused is looked for.
const OLDER_LOOK_EVERY: Duration = Duration::from_secs(5 * 60);

/// What vouches for a KEK version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vouched {
    /// A record that was there before was unwrapped, in that epoch of its lease.
    ByRecord { epoch: u64 },
    /// Nothing: it wrapped nothing at that time, in that epoch of its lease. What is wrapped now rests on a [`FirstPlace`], and so comes first or
    /// not at all.
    Bare { epoch: u64, at: Instant },
}

impl Vouched {
    pub(crate) fn is_bare(self) -> bool {
        matches!(self, Self::Bare { .. })
    }

    /// True when what was wrapped on that word may be stored on this one: as little was there, and no refusal came in between.
    pub(crate) fn goes_on_from(self, wrapped: Self) -> bool {
        self.is_bare() == wrapped.is_bare() && self.epoch() == wrapped.epoch()
    }

    /// What is wrapped in another epoch, or verified in one, was not vouched for: the token refused in between.
    pub(crate) fn epoch(self) -> u64 {
        let (Self::ByRecord { epoch } | Self::Bare { epoch, .. }) = self;
        epoch
    }
}

/// The first place under a KEK version that wraps nothing: its KEK's record was written once more, unchanged, and has another version
/// since. What rests on that version is refused once anybody has taken the place after it; who has it holds this until it is stored, so that
/// of one process too one alone comes first.
#[derive(Debug, Default)]
pub(crate) struct FirstPlace {
    /// The versions of the KEK's record, as this process read it, and as it wrote it one after the other.
    versions: Vec<StoreVersion>,
}

impl FirstPlace {
    /// What to rest on, for who read the KEK's record in that version. `None` where it was changed by others since, as far as is known.
    pub(crate) fn for_reader(&self, seen: &StoreVersion) -> Option<&StoreVersion> {
        self.versions.contains(seen).then(|| self.versions.last()).flatten()
    }

    /// The record was written once more.
    pub(crate) fn taken(&mut self, read: StoreVersion, written: StoreVersion) {
        if self.versions.last() != Some(&read) {
            self.versions = vec![read];
        }
        if self.versions.len() >= OWN_VERSIONS_MAX {
            self.versions.remove(0);
        }
        self.versions.push(written);
    }
}

/// What one lease knows of it.
#[derive(Debug, Default)]
pub(crate) struct VouchNotes {
    /// When the last attempt began, and what came of it. Held while one is under way.
    pub(crate) attempt: tokio::sync::Mutex<Option<(Instant, Result<Vouched>)>>,
    /// AEK versions that were wrapped here since the last proof by a record that was there before.
    young: Mutex<HashMap<AccountId, Young>>,
    pub(crate) first_place: Arc<tokio::sync::Mutex<FirstPlace>>,
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

    /// True when it was wrapped here, and may be by another key than what others wrapped.
    pub(crate) fn is_own(&self, account: &AccountId) -> bool {
        self.young().contains_key(account)
    }

    /// It came into the store before anything else under the KEK version: it proves that as well as anything will.
    pub(crate) fn came_first(&self, account: &AccountId) {
        self.young().remove(account);
    }

    pub(crate) fn wrapped(&self, account: &AccountId, aek_version: u32, at: Instant) {
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
