//! The additional data of a block: where it belongs, so that it opens nowhere else.
//!
//! `"keyleash.block.v1"` ‖ header\[0..8\] ‖ u16 len ‖ account id ‖ u16 len ‖ address, integers big-endian.
//! The lengths keep an account id and an address from running into one another.

use crate::{
    block::{
        address::{ADDRESS_BYTES_MAX, Address},
        header::PREFIX_BYTES,
    },
    error::{Error, Result},
    name::{ACCOUNT_ID_BYTES_MAX, AccountId},
};

const DOMAIN: &[u8] = b"keyleash.block.v1";
const AAD_BYTES_MAX: usize = DOMAIN.len() + PREFIX_BYTES + 2 + ACCOUNT_ID_BYTES_MAX + 2 + ADDRESS_BYTES_MAX;

/// Additional data, on the stack.
pub(super) struct Aad {
    bytes: [u8; AAD_BYTES_MAX],
    len: usize,
}

impl Aad {
    /// # Errors
    /// Never: ids and addresses are bounded where they are made. A bound that is broken all the same must not seal a block.
    pub(super) fn new(prefix: [u8; PREFIX_BYTES], account: &AccountId, address: &Address) -> Result<Self> {
        let mut aad = Self { bytes: [0; AAD_BYTES_MAX], len: 0 };
        aad.put(DOMAIN)?;
        aad.put(&prefix)?;
        aad.put_with_len(account.as_str().as_bytes())?;
        aad.put_with_len(address.as_bytes())?;
        Ok(aad)
    }

    fn put_with_len(&mut self, field: &[u8]) -> Result<()> {
        let len = u16::try_from(field.len()).map_err(|_| too_long())?;
        self.put(&len.to_be_bytes())?;
        self.put(field)
    }

    #[inline]
    fn put(&mut self, field: &[u8]) -> Result<()> {
        let end = self.len.saturating_add(field.len());
        self.bytes.get_mut(self.len..end).ok_or_else(too_long)?.copy_from_slice(field);
        self.len = end;
        Ok(())
    }

    #[inline]
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

#[cold]
fn too_long() -> Error {
    Error::Fatal(format!(
        "additional data is longer than {AAD_BYTES_MAX} bytes: an account id or address broke its bound"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_fixed_and_the_longest_fits() {
        let account = AccountId::new("ab").unwrap();
        let aad = Aad::new([1, 2, 0, 0, 0, 0, 0, 9], &account, &Address::new(b"xyz").unwrap()).unwrap();
        assert_eq!(aad.as_bytes(), b"keyleash.block.v1\x01\x02\0\0\0\0\0\x09\0\x02ab\0\x03xyz");
        let account = AccountId::new("x".repeat(ACCOUNT_ID_BYTES_MAX)).unwrap();
        let aad = Aad::new([1; 8], &account, &Address::new(&[7; ADDRESS_BYTES_MAX]).unwrap()).unwrap();
        assert_eq!(aad.as_bytes().len(), 348);
    }

    #[test]
    fn fields_do_not_run_into_one_another() {
        let of = |account, address: &[u8]| {
            let account = AccountId::new(account).unwrap();
            Aad::new([0; 8], &account, &Address::new(address).unwrap()).unwrap().as_bytes().to_vec()
        };
        assert_ne!(of("ab", b"c"), of("a", b"bc"));
        assert_ne!(of("a", b""), of("a", b"\0"));
    }
}
