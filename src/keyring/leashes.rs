//! The leases of the KEK versions in use.

use super::Keyring;
use crate::{
    error::{Corrupt, Error, Result},
    lease::{
        Lease, Phase,
        standby::{FirstWord, Voice},
    },
    leash::{LeaseStatus, denial::Seen},
    name::KekVersion,
    slots::slot::Leash,
    store::{self, Key, record::DenialRecord},
    token::{TokenError, Verdict, seats::Route},
};
use std::sync::{Arc, PoisonError, atomic::Ordering};

impl Keyring {
    /// The lease of a KEK version; made when it is first asked for, denied if the store remembers a denial.
    pub(crate) async fn leash(&self, kek: &KekVersion) -> Result<Arc<Leash>> {
        if let Some(leash) = self.known_leash(kek) {
            return Ok(leash);
        }
        let terms = self.settings.terms();
        let key = Key::Denial(kek.clone());
        let found = self.in_time(store::find(&*self.store, &key, DenialRecord::decode)).await;
        // Not before it was read: a context that began meanwhile may be older than the record.
        let now = self.clock.now();
        let denied = Lease::denied_before(terms, now);
        let (lease, trouble, seen) = match found {
            Ok(None) => (Lease::new(terms), None, None),
            Ok(Some(found)) => {
                let why = match &found.0 {
                    Ok(record) => record.reason.clone(),
                    Err(damage) => damage.to_string(),
                };
                (denied, Some(why), Some(Seen::at_start(found, now)))
            }
            // A record that cannot be read was a denial all the same.
            Err(Error::Corrupt(damage)) => (denied, Some(damage.to_string()), None),
            Err(error) => return Err(error),
        };
        let (route, is_retired) = self.route(kek).await?;
        let mut leashes = self.leashes.write().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let (clock, memory, store_word) = (self.clock.clone(), self.memory.clone(), self.store_word.clone());
            let leash = Leash::new(kek.clone(), route, lease, clock, &self.settings, memory, store_word);
            // So that the fresh proofs of many KEK versions do not all come with one poll.
            let first = self.jitter.below(u64::from(self.settings.fresh_proof_every)) as usize;
            leash.proofs.store(first, Ordering::SeqCst);
            if seen.as_ref().is_some_and(|seen| seen.by == Voice::Standby) {
                leash.note_first(|first, _| *first = FirstWord::new(false));
            }
            if let Some(why) = &trouble {
                leash.remember(denied_before(why));
                leash.denial.loaded(now, seen.clone());
            }
            seen.as_ref().and_then(Seen::witness).into_iter().for_each(|witness| leash.vouch.adopt(witness));
            leash.of_retired_kek.store(is_retired, Ordering::SeqCst);
            Arc::new(leash)
        };
        let leash = leashes.entry(kek.clone()).or_insert_with(new).clone();
        drop(leashes);
        if self.is_closed() || self.home.is_closed() {
            leash.close(); // made by what was under way as the engine was closed, or for one that is gone
        }
        self.stir.notify_one();
        Ok(leash)
    }

    /// The token that a KEK version is in, as the KEK's record says, and whether the version is retired. A record that says nothing (it is gone, or damaged) matters
    /// only where there is a choice.
    async fn route(&self, kek: &KekVersion) -> Result<(Route, bool)> {
        let found = self.in_time(store::load_kek(&*self.store, &kek.name)).await;
        let version = match found {
            Ok(record) => record.and_then(|(record, _)| record.version(kek.version).cloned()),
            Err(Error::Corrupt(_)) if self.tokens.only().is_some() => None,
            Err(error) => return Err(error),
        };
        let is_retired = version.as_ref().is_some_and(|version| version.retired_unix.is_some());
        let seat = match (version, self.tokens.only()) {
            (Some(version), _) => self.tokens.holder(kek, &version.token)?,
            (None, Some(only)) => only,
            (None, None) => {
                let what = format!("it does not say in which token version {} is", kek.version);
                return Err(Corrupt::Record { record: format!("KEK {}", kek.name), what }.into());
            }
        };
        Ok((self.tokens.route(kek, seat)?, is_retired))
    }

    /// The lease of a KEK version, if it was asked for before.
    pub(crate) fn known_leash(&self, kek: &KekVersion) -> Option<Arc<Leash>> {
        self.leashes.read().unwrap_or_else(PoisonError::into_inner).get(kek).cloned()
    }

    /// The leases of all KEK versions in use.
    pub(crate) fn leashes(&self) -> Vec<Arc<Leash>> {
        self.leashes.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Forgets a lease that no slot is under; it begins anew, unproven, when an account of its KEK is opened. One that is
    /// denied is kept, because its denial is. True when it was forgotten.
    pub(crate) fn forget_unused(&self, leash: &Arc<Leash>) -> bool {
        let mut leashes = self.leashes.write().unwrap_or_else(PoisonError::into_inner);
        // The map's, the caller's and those of slots whose account moved away: no other slot has it, and nobody gets it
        // while the map is locked. Counted before the retired, who then can only be too few.
        let holders = Arc::strong_count(leash);
        let unused = holders == 2 + leash.retired.load(Ordering::SeqCst);
        let forgotten =
            unused && !matches!(leash.lease().phase(), Phase::Denied { .. }) && leashes.remove(leash.kek()).is_some();
        if forgotten {
            if leash.has_trouble() {
                self.on_trail.give_up(leash.kek());
            }
            self.samples().forget(leash.kek());
        }
        forgotten
    }

    pub(crate) fn leases(&self) -> Vec<LeaseStatus> {
        let mut leases: Vec<_> = self.leashes().iter().map(|leash| leash.status()).collect();
        leases.sort_by(|a, b| a.kek.cmp(&b.kek));
        leases
    }
}

/// What is said of a denial that the store remembers, until the token says something.
fn denied_before(why: &str) -> TokenError {
    TokenError {
        verdict: Verdict::Denied,
        operation: "remembered",
        what: format!("denied before this process had the KEK: {why}"),
        remedy: "the owner of the key must enable it again; service resumes by itself then".into(),
        code: None,
    }
}
