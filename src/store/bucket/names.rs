//! The names of the objects of one namespace.
//!
//! | name | object |
//! | --- | --- |
//! | `NAMESPACE/@layout` | [`LAYOUT`] |
//! | `NAMESPACE/@record/` ‖ the bytes of a [`Key`] | what is there: [`object`](super::object) |
//! | `NAMESPACE/@wrapped-by/` ‖ KEK name, 00, u32 KEK version ‖ `/` ‖ the bytes of an account's key ‖ `/` ‖ a mark | nothing: [`index`](super::index) |
//!
//! Bytes are written in hexadecimal: their order is that of the names, in which S3 lists, and no name is longer than its 1,024 bytes. No part of
//! a namespace begins with `@`, so that no store stands in another.

use super::object::Mark;
use crate::{
    name::KekVersion,
    store::{Key, envelope::index_prefix},
};

/// What the layout's object holds. A release that lays objects out in another way counts up.
pub(super) const LAYOUT: &str = "keyleash 1";

#[derive(Debug, Clone)]
pub(super) struct Names {
    /// With its slash.
    pub(super) all: String,
}

impl Names {
    pub(super) fn new(namespace: &str) -> Self {
        Self { all: format!("{namespace}/") }
    }

    pub(super) fn layout(&self) -> String {
        format!("{}@layout", self.all)
    }

    /// What the names of records begin with whose keys begin with this.
    pub(super) fn records(&self, prefix: &[u8]) -> String {
        format!("{}@record/{}", self.all, hex(prefix))
    }

    pub(super) fn record(&self, key: &Key) -> String {
        self.records(&key.to_bytes())
    }

    pub(super) fn of_record(&self, name: &str) -> Option<Key> {
        Key::from_bytes(&bytes(name.strip_prefix(&self.records(&[]))?)?).ok()
    }

    /// What the names of a KEK version's marks begin with.
    pub(super) fn marks(&self, kek: &KekVersion) -> String {
        format!("{}@wrapped-by/{}/", self.all, hex(&index_prefix(kek)))
    }

    pub(super) fn mark(&self, kek: &KekVersion, account: &Key, mark: &Mark) -> String {
        format!("{}{}/{}{}", self.marks(kek), hex(&account.to_bytes()), hex(&mark.base), hex(&mark.id))
    }

    /// What stands behind all marks of an account, and before those of the next.
    pub(super) fn behind_marks(&self, kek: &KekVersion, account: &Key) -> String {
        format!("{}{}/~", self.marks(kek), hex(&account.to_bytes()))
    }

    pub(super) fn of_mark(&self, kek: &KekVersion, name: &str) -> Option<(Key, Mark)> {
        let (account, mark) = name.strip_prefix(&self.marks(kek))?.split_once('/')?;
        let (account, mark) = (bytes(account)?, bytes(mark)?);
        let (base, id) = mark.split_first_chunk()?;
        Some((Key::from_bytes(&account).ok()?, Mark { base: *base, id: id.try_into().ok()? }))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pair = |pair: &[u8]| if let [high, low] = pair { Some(digit(high)? << 4 | digit(low)?) } else { None };
    hex.as_bytes().chunks(2).map(pair).collect()
}

#[cfg(all(test, not(keyleash_loom)))]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests
mod tests {
    use super::*;
    use crate::name::{AccountId, KekName};

    #[test]
    fn names_are_in_the_order_of_keys_and_no_longer_than_s3_takes() {
        let names = Names::new(&"n".repeat(128));
        let kek = KekVersion::new(KekName::new("k".repeat(64)).unwrap(), 7);
        let mark = |byte| Mark { base: [byte; 16], id: [byte; 16] };
        let accounts = ["-", "a", "a.b", "ab", &"b".repeat(64)].map(|id| Key::Account(AccountId::new(id).unwrap()));
        let mut listed = Vec::new();
        for account in &accounts {
            assert_eq!(names.of_record(&names.record(account)).as_ref(), Some(account));
            for mark in [mark(0), mark(255)] {
                let name = names.mark(&kek, account, &mark);
                assert_eq!(names.of_mark(&kek, &name), Some((account.clone(), mark)));
                assert!(name.len() <= 1024, "{}", name.len());
                listed.push(name);
            }
            listed.push(names.behind_marks(&kek, account));
        }
        assert!(listed.is_sorted() && accounts.map(|account| names.record(&account)).is_sorted());
        for strange in ["@record/6", "@record/6G", "@record/", "@record/61AA", "x"] {
            assert_eq!(names.of_record(&format!("{}{strange}", names.all)), None, "{strange}");
        }
    }
}
