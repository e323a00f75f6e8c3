//! Keys and values for tests of stores.

use keyleash::{
    name::{AccountId, KekName, KekVersion},
    store::{Key, Put},
};

pub(crate) fn account(id: impl AsRef<str>) -> Key {
    Key::Account(AccountId::new(id).unwrap())
}

pub(crate) fn kek(name: &str, version: u32) -> KekVersion {
    KekVersion::new(KekName::new(name).unwrap(), version)
}

pub(crate) fn put(value: impl Into<Vec<u8>>, wrapped_by: &[KekVersion]) -> Put {
    Put { value: value.into(), wrapped_by: wrapped_by.to_vec(), guards: Vec::new() }
}
