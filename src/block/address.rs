//! What the service says a block is.

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fmt;

/// Longest address, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 64;

/// Keeps the digest of an object's name from being one of anything else.
const OBJECT_DOMAIN: &[u8; 18] = b"keyleash.object.v1";

/// What the service says a block is: up to 64 bytes that are bound into the block and not stored in it.
///
/// A block opens only under the address that it was sealed under, so a block that was put in another's place is refused.
/// An older block put back at its own address is not: keyleash keeps no list of blocks, so a service that fears rollback
/// puts a version of its own into the address.
///
/// The encodings below are fixed. Two constructors can make the same bytes (`Address::from(1_u64)` and
/// `Address::new(&[0, 0, 0, 0, 0, 0, 0, 1])`), so a service that mixes several in one account sees to it that they differ:
/// by length, as those of the constructors here do (8, 16, 24, 32 and 40 bytes), or by a first byte of its own.
///
/// Whatever else a block is to be bound to (a bucket, a tenant, a content type, a version) is part of its address as well: it is the
/// one additional data of the service's own. What is longer than 64 bytes goes through [`ObjectId::hashed`], which takes any number
/// of parts of any length.
///
/// ```
/// use keyleash::block::{Address, ObjectId};
/// assert_eq!(Address::from(0x0102_u64).as_bytes(), [0, 0, 0, 0, 0, 0, 1, 2]);
/// assert_eq!(Address::object([7; 16], 5).as_bytes().len(), 24);
/// assert!(Address::new(&[0; 65]).is_err());
///
/// let photo = ObjectId::hashed(&[b"bucket-7", b"photos/2026/11/27.jpg", b"image/jpeg"]); // once for an object
/// assert_eq!(Address::object(photo, 5).as_bytes().len(), 40); // a block of it
/// assert_eq!(Address::from(photo).as_bytes().len(), 32); // an object that is a single block
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    /// Zero behind `len`.
    bytes: [u8; ADDRESS_BYTES_MAX],
    len: u8,
}

impl Address {
    /// An address of the service's own making: these bytes as they are. It may be empty.
    ///
    /// # Errors
    /// [`Error::TooLong`] when there are more than 64 bytes.
    pub fn new(address: &[u8]) -> Result<Self> {
        let mut bytes = [0; ADDRESS_BYTES_MAX];
        match (bytes.get_mut(..address.len()), u8::try_from(address.len())) {
            (Some(front), Ok(len)) => {
                front.copy_from_slice(address);
                Ok(Self { bytes, len })
            }
            _ => Err(Error::TooLong {
                what: "an address",
                len: address.len(),
                max: ADDRESS_BYTES_MAX,
                remedy: "hash it with ObjectId::hashed",
            }),
        }
    }

    /// Block `index` of an object: 24 bytes, or 40 for an id of 32; the id as it is, then the index big-endian.
    /// For an id that is a `u128`, give its `to_be_bytes()`.
    pub fn object(id: impl Into<ObjectId>, index: u64) -> Self {
        let ObjectId(Self { mut bytes, len }) = id.into();
        let index = index.to_be_bytes();
        bytes.iter_mut().skip(usize::from(len)).zip(index).for_each(|(to, from)| *to = from);
        Self { bytes, len: len + 8 }
    }

    /// Its bytes with zeros behind them, and its length.
    #[inline]
    pub(super) fn padded(&self) -> (&[u8; ADDRESS_BYTES_MAX], u8) {
        (&self.bytes, self.len)
    }

    /// The bytes that are bound into the block.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }
}

/// Eight bytes, big-endian: the number of a block on a volume, for example.
impl From<u64> for Address {
    fn from(address: u64) -> Self {
        let mut bytes = [0; ADDRESS_BYTES_MAX];
        bytes[..8].copy_from_slice(&address.to_be_bytes());
        Self { bytes, len: 8 }
    }
}

/// Sixteen bytes, big-endian: a UUID's number, for example.
impl From<u128> for Address {
    fn from(address: u128) -> Self {
        let mut bytes = [0; ADDRESS_BYTES_MAX];
        bytes[..16].copy_from_slice(&address.to_be_bytes());
        Self { bytes, len: 16 }
    }
}

/// What an object is: 16 bytes, or the 32 of [`ObjectId::hashed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectId(Address);

impl ObjectId {
    /// The id of an object whose key is longer than an address may be, or which is bound to more than its key: 32 bytes,
    ///
    /// ```text
    /// SHA-256("keyleash.object.v1" ‖ u64 len ‖ part ‖ u64 len ‖ part …)
    /// ```
    ///
    /// with big-endian lengths in bytes, which keep the parts apart: `["ab", "c"]`, `["a", "bc"]`, `["abc"]` and `["abc", ""]`
    /// are four objects. Whoever opens gives the same parts, in the same order. They cost a hash each time, so an object of
    /// many blocks has its id made once.
    ///
    /// ```
    /// use keyleash::block::{Address, ObjectId};
    /// let id = Address::from(ObjectId::hashed(&[b"bucket-7", b"photos/2026/11/27.jpg"]));
    /// assert_eq!(
    ///     format!("{id:?}"),
    ///     "Address(a4bb0dd365fde39f4be2b045b38ceae718ec314ed1a783d0b2011091858a3e3a)"
    /// );
    /// ```
    pub fn hashed(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new_with_prefix(OBJECT_DOMAIN);
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let mut bytes = [0; ADDRESS_BYTES_MAX];
        bytes[..32].copy_from_slice(&hash.finalize());
        Self(Address { bytes, len: 32 })
    }
}

/// As it is: a UUID, for example.
impl From<[u8; 16]> for ObjectId {
    fn from(id: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(id).into())
    }
}

/// The id alone: of an object that is a single block.
impl From<ObjectId> for Address {
    fn from(id: ObjectId) -> Self {
        id.0
    }
}

/// In hex.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Address(")?;
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_fixed() {
        assert_eq!(Address::from(0x0102_0304_0506_0708_u64).as_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Address::from(1_u128 << 120 | 2).as_bytes(), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        let object = Address::object(*b"0123456789abcdef", 0x1122);
        assert_eq!(object.as_bytes(), b"0123456789abcdef\0\0\0\0\0\0\x11\x22");
        assert_eq!(format!("{:?}", Address::from(255_u64)), "Address(00000000000000ff)");
    }

    #[test]
    fn parts_of_an_object_s_name_do_not_run_into_one_another() {
        let all: [&[&[u8]]; 7] = [&[], &[b""], &[b"", b""], &[b"abc"], &[b"abc", b""], &[b"ab", b"c"], &[b"a", b"bc"]];
        let ids: std::collections::HashSet<_> = all.iter().map(|parts| ObjectId::hashed(parts)).collect();
        assert_eq!(ids.len(), all.len());
        assert_eq!(ObjectId::hashed(&[&[7; 10_000]]), ObjectId::hashed(&[&[7; 10_000]]));
    }

    #[test]
    fn addresses_have_0_to_64_bytes() {
        for len in 0..=ADDRESS_BYTES_MAX {
            let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
            assert_eq!(Address::new(&bytes).unwrap().as_bytes(), bytes);
        }
        let error = Address::new(&[0; 65]).unwrap_err().to_string();
        assert!(error.contains("64") && error.contains("65"), "{error}");
        assert_ne!(Address::new(&[0; 3]).unwrap(), Address::new(&[0; 4]).unwrap());
    }
}
