//! The KEKs' handles, kept from call to call: which of them still mean what they meant.
//!
//! A handle dies with the context (C_Finalize), and with the login: PKCS#11 2.40 ends the application's handles of private objects at
//! C_Logout, and the last session that is closed logs out. Then not one handle is dead but all. Were only the one forgotten
//! that failed, then the next KEK's would fail in turn, on the only session of a token with one worker, whose closing
//! ends the login once more and with it the handle that was just found: with two KEKs in use that never ends.

use super::kek::Kek;
use super::module::lock;
use crate::token::KekHandle;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

/// KEKs whose handles are kept; beyond that some are looked up again.
pub(super) const KEKS_KEPT_MAX: usize = 4096;

/// A span in which handles mean the same: from one loss of them all to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Era {
    /// The context's.
    generation: u64,
    losses: u64,
}

/// `K` is a test's: the binding lets nobody make a handle.
pub(super) struct Handles<K = Kek>(Mutex<Cache<K>>);

struct Cache<K> {
    era: Era,
    keks: HashMap<KekHandle, Arc<K>>,
}

impl<K> Default for Handles<K> {
    fn default() -> Self {
        Self(Mutex::new(Cache { era: Era::default(), keks: HashMap::new() }))
    }
}

impl<K> Cache<K> {
    fn begin(&mut self, era: Era) {
        self.keks.clear();
        self.era = era;
    }
}

impl<K> Handles<K> {
    /// The KEK's handles where they are known; else the era in which they are about to be found.
    pub(super) fn get(&self, handle: &KekHandle, generation: u64) -> Result<Arc<K>, Era> {
        let mut cache = lock(&self.0);
        if cache.era.generation != generation {
            let losses = cache.era.losses;
            cache.begin(Era { generation, losses });
        }
        cache.keks.get(handle).cloned().ok_or(cache.era)
    }

    /// Keeps what was found, unless all handles were lost since `era` was told.
    pub(super) fn keep(&self, handle: &KekHandle, era: Era, kek: &Arc<K>) {
        let mut cache = lock(&self.0);
        if cache.era != era {
            return;
        }
        if cache.keks.len() >= KEKS_KEPT_MAX {
            cache.keks.clear();
        }
        cache.keks.insert(handle.clone(), kek.clone());
    }

    /// This one may be dead.
    pub(super) fn forget(&self, handle: &KekHandle) {
        lock(&self.0).keks.remove(handle);
    }

    /// All are dead: the login was lost, or the context.
    pub(super) fn lose(&self) {
        let mut cache = lock(&self.0);
        let era = Era { losses: cache.era.losses + 1, ..cache.era };
        cache.begin(era);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{KekId, Profile};

    fn kek(number: u8) -> (KekHandle, Arc<u8>) {
        let handle = KekHandle { id: KekId::new([number]).unwrap(), profile: Profile::AesGcm };
        (handle, Arc::new(number))
    }

    #[test]
    fn a_lost_login_takes_every_handle_and_one_that_failed_only_itself() {
        let handles = Handles::default();
        let keks = [kek(1), kek(2)];
        let keep_all = |generation| {
            for (handle, found) in &keks {
                let era = handles.get(handle, generation).unwrap_err();
                handles.keep(handle, era, found);
                assert!(handles.get(handle, generation).is_ok());
            }
        };
        keep_all(1);
        handles.forget(&keks[0].0);
        assert!(handles.get(&keks[0].0, 1).is_err() && handles.get(&keks[1].0, 1).is_ok());
        handles.lose();
        keep_all(1);
        keep_all(2);
    }

    #[test]
    fn a_handle_that_was_found_before_the_login_was_lost_is_not_kept_after_it() {
        let handles = Handles::default();
        let (handle, found) = kek(1);
        let era = handles.get(&handle, 1).unwrap_err();
        handles.lose();
        handles.keep(&handle, era, &found);
        let era = handles.get(&handle, 1).unwrap_err();
        assert!(handles.get(&handle, 2).is_err(), "a new context");
        handles.keep(&handle, era, &found);
        assert!(handles.get(&handle, 2).is_err());
    }
}
