//! What more than one file of these tests needs.

mod backends;
mod compat;
mod format;
mod measure;
mod residue;
mod tamper;
mod vectors;
mod wycheproof;

use super::*;
use crate::secret::{Aek, KeySlot, MemlockPolicy, NewKey, in_flight::Operation};
use std::num::NonZeroU64;

/// An AEK in a slot, as an engine holds it.
struct Key(KeySlot);

impl Key {
    fn new(aek: [u8; 32]) -> Self {
        let key = Self(KeySlot::default());
        key.fill(&Aek::copy_from(&aek).unwrap());
        key
    }

    fn fill(&self, aek: &Aek) {
        drop(self.0.fill(NewKey::set_up(aek, MemlockPolicy::Warn).unwrap(), NonZeroU64::MIN));
    }

    fn with<T>(&self, backend: Backend, account: &AccountId, work: impl FnOnce(Sealer<'_>) -> T) -> T {
        let mut operation = Operation::enter();
        work(Sealer { backend, schedule: self.0.read(&mut operation, 1).unwrap(), account })
    }
}

fn nonce(bytes: &[u8]) -> Nonce {
    Nonce::from_bytes(bytes.try_into().unwrap())
}

fn account(id: &str) -> AccountId {
    AccountId::new(id).unwrap()
}

const SUITES: [Suite; 2] = [Suite::XaesGcm, Suite::XaesGcmCommit];
