//! What stands where in the namespace, and the transactions over it.
//!
//! | key | value |
//! | --- | --- |
//! | `NAMESPACE/@layout` | [`LAYOUT`] |
//! | `NAMESPACE/@record/` ‖ the bytes of a [`Key`] | an [`Envelope`], whose revision is 0: etcd has its own |
//! | `NAMESPACE/@probe` | nothing, while `store check` tries writes |
//! | `NAMESPACE/@wrapped-by/` ‖ KEK name ‖ 00 ‖ u32 KEK version ‖ the bytes of an account's key | nothing |
//!
//! No part of a namespace begins with `@`, so that no store stands in another.

use crate::{
    error::Result,
    name::KekVersion,
    store::{
        Key, Put, StoreVersion,
        envelope::{Envelope, index_key, index_prefix},
        remote::end_of,
    },
};
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse, TxnResponse};
use std::collections::BTreeSet;

/// What the layout's key holds. A release that lays keys out in another way counts up.
pub(super) const LAYOUT: &str = "keyleash 1";
/// Most operations of a transaction, as etcd has it by default (`--max-txn-ops`).
pub(super) const OPERATIONS_MAX: usize = 128;
/// Operations on the index in one transaction within the transaction. Each of them is counted by itself, less those of the outer one: of
/// an account that goes from as many KEK versions as there may be to as many others there are five.
const INDEX_OPERATIONS: usize = 100;

/// The keys of one namespace.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    /// With its slash.
    prefix: Vec<u8>,
}

/// What has to be so for a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Absent,
    Version(i64),
}

impl Keys {
    pub(super) fn new(namespace: &str) -> Self {
        Self { prefix: format!("{namespace}/").into_bytes() }
    }

    fn at(&self, kind: &str, rest: &[u8]) -> Vec<u8> {
        [self.prefix.as_slice(), kind.as_bytes(), rest].concat()
    }

    pub(super) fn layout(&self) -> Vec<u8> {
        self.at("@layout", &[])
    }

    fn record(&self, key: &[u8]) -> Vec<u8> {
        self.at("@record/", key)
    }

    /// What the keys of all records begin with.
    pub(super) fn records(&self) -> Vec<u8> {
        self.record(&[])
    }

    /// The key whose record stands there; `None` where that is none of this release.
    pub(super) fn of_record(&self, place: &[u8]) -> Option<Key> {
        Key::from_bytes(place.strip_prefix(self.records().as_slice())?).ok()
    }

    fn index(&self, rest: &[u8]) -> Vec<u8> {
        self.at("@wrapped-by/", rest)
    }

    /// The layout, and whether there is anything at all.
    pub(super) fn look(&self) -> Txn {
        let any = GetOptions::new().with_prefix().with_keys_only().with_limit(1);
        Txn::new().and_then([TxnOp::get(self.layout(), None), TxnOp::get(self.prefix.clone(), Some(any))])
    }

    /// Makes the namespace a store, where nothing is in it.
    pub(super) fn make(&self) -> Txn {
        // Of a range each key is compared, and of an empty one a key that does not exist.
        let is_empty = Compare::create_revision(self.prefix.clone(), CompareOp::Equal, 0).with_prefix();
        Txn::new().when([is_empty]).and_then([TxnOp::put(self.layout(), LAYOUT, None)])
    }

    /// Writes what is no record.
    pub(super) fn probe(&self) -> Txn {
        Txn::new().and_then([TxnOp::put(self.at("@probe", &[]), "", None)])
    }

    pub(super) fn end_probe(&self) -> Txn {
        Txn::new().and_then([TxnOp::delete(self.at("@probe", &[]), None)])
    }

    pub(super) fn get(&self, keys: &[Key]) -> Txn {
        let get = |key: &Key| TxnOp::get(self.record(&key.to_bytes()), None);
        Txn::new().and_then(keys.iter().map(get).collect::<Vec<_>>())
    }

    /// Keys of records with this prefix, or of the index for a KEK version, behind `after`. Gives also how long what stands before the
    /// bytes of each key is.
    pub(super) fn list(
        &self,
        prefix: &[u8],
        of: Option<&KekVersion>,
        after: Option<&Key>,
        limit: usize,
    ) -> (Txn, usize) {
        let place = match of {
            Some(kek) => self.index(&index_prefix(kek)),
            None => self.record(&[]),
        };
        let (begin, end) = ([place.as_slice(), prefix].concat(), end_of(&[place.as_slice(), prefix].concat()));
        // The next key after one is that with a zero byte more.
        let after = after.map(|after| [place.as_slice(), &after.to_bytes(), &[0]].concat());
        let begin = after.unwrap_or_default().max(begin);
        // Behind the last one: a range whose end is not behind its begin is of nothing, and etcd takes it as that.
        let options = GetOptions::new().with_range(end).with_keys_only().with_limit(limit as i64);
        (Txn::new().and_then([TxnOp::get(begin, Some(options))]), place.len())
    }

    /// Writes, or without a `put` deletes. `was` are the KEK versions under which the key is found until then. Where it is refused the
    /// answer has what stands at the layout's key, at `key`, and at each guard.
    pub(super) fn write(&self, key: &Key, expected: Expected, put: Option<&Put>, was: &[KekVersion]) -> Txn {
        let (record, guards) = (self.record(&key.to_bytes()), put.map(|put| put.guards.as_slice()).unwrap_or_default());
        let guard = |(key, version): &(Key, StoreVersion)| {
            Compare::mod_revision(self.record(&key.to_bytes()), CompareOp::Equal, revision_of(version))
        };
        let is_expected = match expected {
            Expected::Absent => Compare::create_revision(record.clone(), CompareOp::Equal, 0),
            Expected::Version(revision) => Compare::mod_revision(record.clone(), CompareOp::Equal, revision),
        };
        // Nothing is written to a namespace that was emptied, or given to somebody else, meanwhile.
        let is_ours = Compare::value(self.layout(), CompareOp::Equal, LAYOUT);
        let compares: Vec<_> = [is_ours, is_expected].into_iter().chain(guards.iter().map(guard)).collect();
        let revision = |key| TxnOp::get(key, Some(GetOptions::new().with_keys_only()));
        let mut look = vec![TxnOp::get(self.layout(), None), revision(record.clone())];
        look.extend(guards.iter().map(|(key, _)| revision(self.record(&key.to_bytes()))));

        let indexed =
            |keks: &[KekVersion]| keks.iter().map(|kek| self.index(&index_key(kek, key))).collect::<BTreeSet<_>>();
        let (was, is) = (indexed(was), indexed(put.map(|put| put.wrapped_by.as_slice()).unwrap_or_default()));
        let gone = was.difference(&is).map(|key| TxnOp::delete(key.as_slice(), None));
        let new = is.difference(&was).map(|key| TxnOp::put(key.as_slice(), "", None));
        let mut index: Vec<_> = gone.chain(new).collect();
        let mut operations = vec![match put {
            Some(put) => {
                let envelope = Envelope { revision: 0, wrapped_by: put.wrapped_by.clone(), record: &put.value };
                TxnOp::put(record, envelope.encode(key), None)
            }
            None => TxnOp::delete(record, None),
        }];
        if index.len() < INDEX_OPERATIONS {
            operations.append(&mut index);
        }
        while !index.is_empty() {
            let some: Vec<_> = index.drain(..index.len().min(INDEX_OPERATIONS)).collect();
            operations.push(TxnOp::txn(Txn::new().and_then(some)));
        }
        Txn::new().when(compares).and_then(operations).or_else(look)
    }
}

/// What was found at each key that was asked for.
pub(super) fn found(answer: &TxnResponse) -> Vec<Vec<KeyValue>> {
    let of = |response| match response {
        TxnOpResponse::Get(mut found) => found.take_kvs(),
        _ => Vec::new(),
    };
    answer.op_responses().into_iter().map(of).collect()
}

pub(super) fn version_of(revision: i64) -> StoreVersion {
    StoreVersion(revision.to_be_bytes().to_vec())
}

/// Of what is no version of ours, a revision that nothing has.
pub(super) fn revision_of(version: &StoreVersion) -> i64 {
    // That of a key that does not exist is 0.
    <[u8; 8]>::try_from(version.0.as_slice())
        .map(i64::from_be_bytes)
        .ok()
        .filter(|revision| *revision > 0)
        .unwrap_or(-1)
}

/// A record as it stands there, with its KEK versions and its revision.
pub(super) fn open(key: &Key, stored: &KeyValue) -> Result<(Vec<u8>, Vec<KekVersion>, i64)> {
    let envelope = Envelope::decode(key, stored.value(), "its bytes in etcd were changed; restore them from a copy")?;
    Ok((envelope.record.to_vec(), envelope.wrapped_by, stored.mod_revision()))
}
