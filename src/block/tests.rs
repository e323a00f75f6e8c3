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
use crate::{
    in_flight::Operation,
    secret::{Aek, KeySlot},
};
use std::num::NonZeroU64;

/// An AEK in a slot, as an engine holds it.
struct Key(KeySlot);

impl Key {
    fn new(aek: [u8; 32]) -> Self {
        let slot = KeySlot::new().unwrap();
        slot.fill(&Aek::copy_from(&aek).unwrap(), NonZeroU64::MIN);
        Self(slot)
    }

    fn with<T>(&self, backend: Backend, account: &AccountId, work: impl FnOnce(Sealer<'_>) -> T) -> T {
        let operation = Operation::enter();
        work(Sealer { backend, schedule: self.0.read(&operation, 1).unwrap(), account })
    }
}

fn nonce(bytes: &[u8]) -> Nonce {
    Nonce::from_bytes(bytes.try_into().unwrap())
}

fn account(id: &str) -> AccountId {
    AccountId::new(id).unwrap()
}

const SUITES: [Suite; 2] = [Suite::XaesGcm, Suite::XaesGcmCommit];
