//! Slots: where unwrapped AEKs are while they may be used, one per AEK version of an account, and the meters of what is sealed under
//! each.

pub(crate) mod account_keys;
#[cfg(all(test, keyleash_loom))]
mod interleavings;
pub(crate) mod meter;
pub(crate) mod slot;
pub(crate) mod tally;
