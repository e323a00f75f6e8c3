//! The value of a secret in memory.

use crate::{
    error::{Error, Result},
    store::record::SECRET_BYTES_MAX,
};
use std::fmt;
use zeroize::Zeroizing;

/// The value of a secret, 0 bytes to 64 KiB: wiped when it is dropped, shown by nothing, and not cloned by accident.
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    /// Takes a value as it is, without a copy: what `bytes` holds is wiped when this is dropped. What it was copied from is not; so read
    /// into it with room for all, for a `Vec` that grows leaves what it held where it was.
    ///
    /// # Errors
    /// [`Error::TooLong`] over 64 KiB; `bytes` is wiped then as well.
    pub fn new(bytes: Vec<u8>) -> Result<Self> {
        let (bytes, max) = (Zeroizing::new(bytes), SECRET_BYTES_MAX);
        match bytes.len() {
            len if len > max => Err(Error::TooLong {
                what: "the value of a secret",
                len,
                max,
                remedy: "seal it as blocks, or a file of it",
            }),
            _ => Ok(Self(bytes)),
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A buffer to be sealed in place, or written over with what is opened.
    pub(super) fn buffer(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(bytes.to_vec())
    }
}

/// Without a byte of it.
impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(..)")
    }
}
