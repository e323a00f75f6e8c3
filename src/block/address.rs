//! What the service says a block is.

use crate::error::{Error, Result};
use std::fmt;

/// Longest address, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 64;

/// What the service says a block is: up to 64 bytes that are bound into the block and not stored in it.
///
/// A block opens only under the address that it was sealed under, so a block that was put in another's place is refused.
/// An older block put back at its own address is not: keyleash keeps no list of blocks, so a service that fears rollback
/// puts a version of its own into the address.
///
/// The encodings below are fixed. Two constructors can make the same bytes (`Address::from(1_u64)` and
/// `Address::new(&[0, 0, 0, 0, 0, 0, 0, 1])`), so a service that mixes several in one account sees to it that they differ:
/// by length, as those of the constructors here do (8, 16 and 24 bytes), or by a first byte of its own.
///
/// ```
/// use keyleash::block::Address;
/// assert_eq!(Address::from(0x0102_u64).as_bytes(), [0, 0, 0, 0, 0, 0, 1, 2]);
/// assert_eq!(Address::object([7; 16], 5).as_bytes().len(), 24);
/// assert!(Address::new(&[0; 65]).is_err());
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
                remedy: "use a hash of it",
            }),
        }
    }

    /// Block `index` of an object: 24 bytes, the id as it is, then the index big-endian.
    /// For an id that is a `u128`, give its `to_be_bytes()`.
    pub fn object(id: [u8; 16], index: u64) -> Self {
        let mut bytes = [0; ADDRESS_BYTES_MAX];
        bytes[..16].copy_from_slice(&id);
        bytes[16..24].copy_from_slice(&index.to_be_bytes());
        Self { bytes, len: 24 }
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
