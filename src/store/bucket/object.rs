//! The bytes of the objects that are records.
//!
//! `"keyl" ‖ u8 layout ‖ u8 state ‖ put id ‖ digest ‖ body`, numbers big-endian. The put id is 16 random bytes of each request that writes: no two
//! objects have the same bytes, so that no ETag comes twice, where one is undone neither. The digest is over the key and all else, so
//! that what was changed or moved is refused; it is no MAC.
//!
//! | state | body | size |
//! | --- | --- | --- |
//! | 0, deleted | write id | [`DELETED_BYTES`], which no other has |
//! | 1, settled | value ‖ pad | even |
//! | 2, pending | what is committed: u8 0 ‖ write id where that is nothing, or u8 1 ‖ value; the new value; u8 number of guards ‖ each u16 length ‖ key ‖ u8 length ‖ version; pad | odd |
//!
//! A value is its write id, which is its [`StoreVersion`] ‖ u16 number of KEK versions ‖ each u8 length ‖ KEK name ‖ u32 KEK version ‖ mark ‖
//! u32 length ‖ record. A mark is two write ids: [`index`](super::index). The pad is one zero byte where the size needs one: a listing has
//! names and sizes alone, and so tells what is there, what is not, and what has to be read for that.

use crate::{
    error::{Corrupt, Result},
    name::{KekName, KekVersion},
    secret::fill_random,
    store::{GUARDS_MAX, Key, StoreVersion, VALUE_BYTES_MAX, Versioned, WRAPPED_BY_MAX},
};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A release that lays objects out in another way counts up.
pub(super) const LAYOUT: u8 = 1;
const MAGIC: [u8; 4] = *b"keyl";
const DELETED: u8 = 0;
const SETTLED: u8 = 1;
const PENDING: u8 = 2;

const ID_BYTES: usize = 16;
const DIGEST_BYTES: usize = 16;
const HEAD_BYTES: usize = MAGIC.len() + 2 + ID_BYTES + DIGEST_BYTES;
/// Of an object that says that its key was deleted.
pub(super) const DELETED_BYTES: usize = HEAD_BYTES + ID_BYTES;
/// Longest value with what stands around it: of each KEK version its name with its length, its number, and its mark.
const VALUE_STORED_MAX: usize = ID_BYTES + 2 + WRAPPED_BY_MAX * (1 + 64 + 4 + 2 * ID_BYTES) + 4 + VALUE_BYTES_MAX;
/// Longest object.
pub(super) const OBJECT_BYTES_MAX: usize = HEAD_BYTES + 2 * VALUE_STORED_MAX + GUARDS_MAX * (2 + 512 + 1 + 64) + 3;

/// Of a write, or of a request.
pub(super) type Id = [u8; ID_BYTES];

pub(super) fn new_id() -> Result<Id> {
    let mut id = [0; ID_BYTES];
    fill_random(&mut id)?;
    Ok(id)
}

/// Which write it is by which an account is found under a KEK version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    /// The write that it rested on: no later one can have been replaced by it.
    pub(super) base: Id,
    pub(super) id: Id,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) id: Id,
    pub(super) wrapped_by: BTreeMap<KekVersion, Mark>,
    pub(super) record: Vec<u8>,
}

impl Value {
    pub(super) fn version(&self) -> StoreVersion {
        StoreVersion(self.id.to_vec())
    }

    pub(super) fn is_found_by(&self, kek: &KekVersion, mark: &Mark) -> bool {
        self.wrapped_by.get(kek) == Some(mark)
    }
}

impl From<Value> for Versioned {
    fn from(value: Value) -> Self {
        Self { version: value.version(), value: value.record }
    }
}

/// What is at a key for good, until the next write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Committed {
    /// There never was anything. No object says so.
    Nothing,
    /// By the write with this id.
    Deleted(Id),
    Value(Value),
}

impl Committed {
    /// Of the write that made it so; zero before the first.
    pub(super) fn id(&self) -> Id {
        match self {
            Self::Nothing => Id::default(),
            Self::Deleted(id) => *id,
            Self::Value(value) => value.id,
        }
    }

    pub(super) fn value(&self) -> Option<&Value> {
        if let Self::Value(value) = self { Some(value) } else { None }
    }

    pub(super) fn into_value(self) -> Option<Value> {
        if let Self::Value(value) = self { Some(value) } else { None }
    }
}

/// A write that rests on other records, and is not settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pending {
    /// Never [`Committed::Nothing`].
    pub(super) committed: Committed,
    pub(super) new: Value,
    pub(super) guards: Vec<(Key, StoreVersion)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Object {
    Committed(Committed),
    Pending(Box<Pending>),
}

impl Object {
    pub(super) fn committed(&self) -> &Committed {
        match self {
            Self::Committed(committed) => committed,
            Self::Pending(pending) => &pending.committed,
        }
    }

    /// Whether the object of this size has to be read to know what it says; and else, whether something is there.
    pub(super) fn says(size: u64) -> Option<bool> {
        match size {
            odd if odd % 2 == 1 => None,
            size => Some(size != DELETED_BYTES as u64),
        }
    }

    /// With a put id that nothing has yet.
    pub(super) fn encode(&self, key: &Key) -> Result<Vec<u8>> {
        let (state, mut body) = match self {
            Self::Committed(Committed::Value(value)) => (SETTLED, Vec::with_capacity(value.record.len() + 256)),
            Self::Committed(_) => (DELETED, Vec::new()),
            Self::Pending(pending) => (PENDING, Vec::with_capacity(2 * pending.new.record.len() + 1024)),
        };
        match self {
            Self::Committed(Committed::Value(value)) => write_value(&mut body, value),
            Self::Committed(committed) => body.extend(committed.id()),
            Self::Pending(pending) => {
                match &pending.committed {
                    Committed::Value(value) => {
                        body.push(1);
                        write_value(&mut body, value);
                    }
                    committed => {
                        body.push(0);
                        body.extend(committed.id());
                    }
                }
                write_value(&mut body, &pending.new);
                body.push(pending.guards.len() as u8); // at most GUARDS_MAX
                for (guard, version) in &pending.guards {
                    let guard = guard.to_bytes();
                    body.extend((guard.len() as u16).to_be_bytes()); // less than 512 bytes
                    body.extend(guard);
                    body.push(version.0.len() as u8); // at most 64 bytes
                    body.extend(&version.0);
                }
            }
        }
        if !has_size_of(state, HEAD_BYTES + body.len()) {
            body.push(0);
        }
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
        bytes.extend(MAGIC);
        bytes.extend([LAYOUT, state]);
        bytes.extend(new_id()?);
        bytes.extend(digest(key, &bytes, &body));
        bytes.extend(body);
        Ok(bytes)
    }

    /// Takes the bytes that were found for `key` apart.
    pub(super) fn decode(key: &Key, bytes: &[u8]) -> Result<Self> {
        if let [magic @ .., layout] = *bytes.first_chunk::<{ MAGIC.len() + 1 }>().unwrap_or(&[0; 5])
            && magic == MAGIC
            && layout > LAYOUT
        {
            return Err(Corrupt::NewerRecord { record: key.to_string(), format: layout, reads: LAYOUT }.into());
        }
        let changed = || {
            let what = "its object in the bucket was changed; restore it from a copy";
            Corrupt::Record { record: key.to_string(), what: what.into() }
        };
        Ok(Self::split(key, bytes).ok_or_else(changed)?)
    }

    fn split(key: &Key, bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES - DIGEST_BYTES)?;
        let (found, body) = rest.split_first_chunk::<DIGEST_BYTES>()?;
        let [magic @ .., layout, state] = head.first_chunk::<{ MAGIC.len() + 2 }>()?;
        if *magic != MAGIC
            || *layout != LAYOUT
            || *found != digest(key, head, body)
            || !has_size_of(*state, bytes.len())
        {
            return None;
        }
        let mut body = Bytes(body);
        let object = match *state {
            DELETED => Self::Committed(Committed::Deleted(body.take()?)),
            SETTLED => Self::Committed(Committed::Value(read_value(&mut body)?)),
            _ => {
                let committed = match body.take()? {
                    [0_u8] => Committed::Deleted(body.take()?),
                    [1] => Committed::Value(read_value(&mut body)?),
                    _ => return None,
                };
                let (new, [guards]) = (read_value(&mut body)?, body.take()?);
                let mut guard = || {
                    let len = u16::from_be_bytes(body.take()?);
                    let guard = Key::from_bytes(body.some(len.into())?).ok()?;
                    let [len] = body.take()?;
                    Some((guard, StoreVersion(body.some(len.into())?.to_vec())))
                };
                let guards = (0..guards).map(|_| guard()).collect::<Option<_>>()?;
                Self::Pending(Box::new(Pending { committed, new, guards }))
            }
        };
        matches!(body.0, [] | [0]).then_some(object)
    }
}

fn has_size_of(state: u8, size: usize) -> bool {
    match state {
        DELETED => size == DELETED_BYTES,
        SETTLED => size.is_multiple_of(2) && size > DELETED_BYTES,
        PENDING => !size.is_multiple_of(2),
        _ => false,
    }
}

fn write_value(to: &mut Vec<u8>, value: &Value) {
    to.extend(value.id);
    to.extend((value.wrapped_by.len() as u16).to_be_bytes()); // at most WRAPPED_BY_MAX
    for (kek, mark) in &value.wrapped_by {
        to.push(kek.name.as_str().len() as u8); // at most 64 bytes
        to.extend(kek.name.as_str().as_bytes());
        to.extend(kek.version.to_be_bytes());
        to.extend(mark.base);
        to.extend(mark.id);
    }
    to.extend((value.record.len() as u32).to_be_bytes()); // at most VALUE_BYTES_MAX
    to.extend(&value.record);
}

fn read_value(from: &mut Bytes<'_>) -> Option<Value> {
    let (id, keks) = (from.take()?, u16::from_be_bytes(from.take()?));
    let mut wrapped_by = BTreeMap::new();
    for _ in 0..keks {
        let [len] = from.take()?;
        let name = KekName::new(std::str::from_utf8(from.some(len.into())?).ok()?).ok()?;
        let kek = KekVersion::new(name, u32::from_be_bytes(from.take()?));
        wrapped_by.insert(kek, Mark { base: from.take()?, id: from.take()? });
    }
    let len = u32::from_be_bytes(from.take()?);
    let record = from.some(usize::try_from(len).ok()?)?.to_vec();
    (record.len() <= VALUE_BYTES_MAX).then_some(Value { id, wrapped_by, record })
}

/// What is left of some bytes.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn some(&mut self, len: usize) -> Option<&'a [u8]> {
        let (some, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(some)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (some, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*some)
    }
}

/// The key is in it, so that an object that was moved to another's place is refused too.
fn digest(key: &Key, head: &[u8], body: &[u8]) -> [u8; DIGEST_BYTES] {
    let key = key.to_bytes();
    let mut sha = Sha256::new();
    sha.update((key.len() as u16).to_be_bytes()); // less than 512 bytes
    sha.update(&key);
    sha.update(head);
    sha.update(body);
    let whole: [u8; 32] = sha.finalize().into();
    let mut digest = [0; DIGEST_BYTES];
    digest.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
    digest
}

#[cfg(all(test, not(keyleash_loom)))]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests
mod tests {
    use super::*;
    use crate::name::AccountId;

    const DELETED_1: &str =
        "6b65796c0100000102030405060708090a0b0c0d0e0ff6f9fedfbbe55e5bcc1e5ca701110d8911111111111111111111111111111111";
    const SETTLED_1: &str = "6b65796c0101000102030405060708090a0b0c0d0e0f2e9ccd5b84c45474d575013316d797c32222222222222222222222222222222200\
        01016b000000070000000000000000000000000000000022222222222222222222222222222222000000067265636f7264";
    const PENDING_1: &str = "6b65796c0102000102030405060708090a0b0c0d0e0fae2291904a3f68ef20b286b7f70808600122222222222222222222222222222222\
        0001016b000000070000000000000000000000000000000022222222222222222222222222222222000000067265636f72643333333333\
        33333333333333333333330001016b00000008222222222222222222222222222222223333333333333333333333333333333300000004\
        6e6578740100026b6b1044444444444444444444444444444444";

    fn account(id: &str) -> Key {
        Key::Account(AccountId::new(id).unwrap())
    }

    fn value(record: &[u8], keks: u32) -> Value {
        let kek =
            |version| (KekVersion::new(KekName::new("k-2").unwrap(), version), Mark { base: [7; 16], id: [8; 16] });
        Value { id: [9; 16], wrapped_by: (0..keks).map(kek).collect(), record: record.to_vec() }
    }

    fn objects() -> Vec<Object> {
        let guards = [(account("bob"), StoreVersion(vec![3; 16])), (Key::Work, StoreVersion(Vec::new()))];
        let mut objects = vec![Object::Committed(Committed::Deleted([1; 16]))];
        for n in 0..4 {
            let (value, record) = (value(&b"rec"[..n.min(3)], n as u32), vec![5; n]);
            objects.push(Object::Committed(Committed::Value(value.clone())));
            for committed in [Committed::Deleted([2; 16]), Committed::Value(self::value(&record, 1))] {
                objects.push(Object::Pending(Box::new(Pending {
                    committed,
                    new: value.clone(),
                    guards: guards[..n.min(2)].to_vec(),
                })));
            }
        }
        objects
    }

    #[test]
    fn an_object_tells_by_its_size_whether_something_is_there_and_never_has_the_same_bytes_twice() {
        for object in objects() {
            let key = account("alice");
            let bytes = object.encode(&key).unwrap();
            assert_eq!(Object::decode(&key, &bytes).unwrap(), object);
            assert_ne!(object.encode(&key).unwrap(), bytes);
            let is_there = match &object {
                Object::Committed(committed) => Some(committed.value().is_some()),
                Object::Pending(_) => None,
            };
            assert_eq!(Object::says(bytes.len() as u64), is_there, "{object:?}");
        }
    }

    #[test]
    fn every_changed_bit_and_every_cut_of_an_object_is_refused() {
        for object in objects() {
            let bytes = object.encode(&account("alice")).unwrap();
            let refused = |bytes: &[u8]| Object::decode(&account("alice"), bytes).is_err();
            for bit in 0..bytes.len() * 8 {
                let mut changed = bytes.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(refused(&changed), "bit {bit} of {object:?}");
            }
            for len in 0..bytes.len() {
                assert!(refused(&bytes[..len]), "cut at {len}");
            }
            let error = Object::decode(&account("bob"), &bytes).unwrap_err();
            assert!(error.to_string().contains("account bob"), "{error}");
        }
    }

    #[test]
    fn the_longest_object_is_as_long_as_is_read() {
        let kek = |version| {
            (KekVersion::new(KekName::new("k".repeat(64)).unwrap(), version), Mark { base: [7; 16], id: [8; 16] })
        };
        let value = || Value {
            id: [9; 16],
            wrapped_by: (0..WRAPPED_BY_MAX as u32).map(kek).collect(),
            record: vec![1; VALUE_BYTES_MAX],
        };
        let guards = vec![(account(&"a".repeat(64)), StoreVersion(vec![3; 64])); GUARDS_MAX];
        let pending = Pending { committed: Committed::Value(value()), new: value(), guards };
        let bytes = Object::Pending(Box::new(pending)).encode(&account("a")).unwrap();
        assert!((OBJECT_BYTES_MAX - 4096..=OBJECT_BYTES_MAX).contains(&bytes.len()), "{}", bytes.len());
    }

    /// Written by another program, from src/manual/format.md.
    #[test]
    fn objects_of_layout_1_are_read_as_they_were_written() {
        let read = |hex: &str| Object::decode(&account("alice"), &hex::decode(hex).unwrap()).unwrap();
        let kek = |version| KekVersion::new(KekName::new("k").unwrap(), version);
        let value = |id: u8, version, base: u8, record: &[u8]| Value {
            id: [id; 16],
            wrapped_by: [(kek(version), Mark { base: [base; 16], id: [id; 16] })].into(),
            record: record.to_vec(),
        };
        let settled = Committed::Value(value(0x22, 7, 0, b"record"));
        let pending = Pending {
            committed: settled.clone(),
            new: value(0x33, 8, 0x22, b"next"),
            guards: vec![(Key::Kek(KekName::new("k").unwrap()), StoreVersion(vec![0x44; 16]))],
        };
        assert_eq!(read(DELETED_1), Object::Committed(Committed::Deleted([0x11; 16])));
        assert_eq!(read(SETTLED_1), Object::Committed(settled));
        assert_eq!(read(PENDING_1), Object::Pending(Box::new(pending)));
    }

    #[test]
    fn an_object_of_a_newer_layout_says_so_and_is_left() {
        let mut bytes = hex::decode(SETTLED_1).unwrap();
        bytes[4] = LAYOUT + 1;
        let error = Object::decode(&account("alice"), &bytes).unwrap_err();
        assert!(matches!(error, crate::error::Error::Corrupt(Corrupt::NewerRecord { .. })), "{error}");
    }
}
