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

const DOMAIN: &[u8; 17] = b"keyleash.block.v1";
/// What stands before the account id.
const FRONT_BYTES: usize = DOMAIN.len() + PREFIX_BYTES + 2;
const AAD_BYTES_MAX: usize = FRONT_BYTES + ACCOUNT_ID_BYTES_MAX + 2 + ADDRESS_BYTES_MAX;

/// Additional data, on the stack. It is put together where it stands: a move would copy all of it, and wait for bytes that
/// were written just before.
pub(super) struct Aad {
    bytes: [u8; AAD_BYTES_MAX],
    len: usize,
}

impl Aad {
    /// A place for additional data, to be filled by [`Aad::put`].
    #[inline]
    pub(super) fn blank() -> Self {
        Self { bytes: [0; AAD_BYTES_MAX], len: 0 }
    }

    /// Fills it.
    ///
    /// # Errors
    /// Never: ids and addresses are bounded where they are made. A bound that is broken all the same must not seal a block.
    #[inline]
    pub(super) fn put(&mut self, prefix: [u8; PREFIX_BYTES], account: &AccountId, address: &Address) -> Result<()> {
        let id = account.as_str().as_bytes();
        let fits = u16::try_from(id.len()).ok().and_then(|id_len| {
            let (front, rest) = self.bytes.split_first_chunk_mut::<FRONT_BYTES>()?;
            let (domain, front) = front.split_first_chunk_mut()?;
            *domain = *DOMAIN;
            let (place, front) = front.split_first_chunk_mut()?;
            *place = prefix;
            *front.first_chunk_mut()? = id_len.to_be_bytes();
            let (place, rest) = rest.split_at_mut_checked(id.len())?;
            place.copy_from_slice(id);
            let (len, rest) = rest.split_first_chunk_mut::<2>()?;
            let (padded, address_len) = address.padded();
            *len = u16::from(address_len).to_be_bytes();
            // All of it: what is behind its length is zero, as it was, and a copy of fixed length is quicker.
            *rest.first_chunk_mut()? = *padded;
            Some(FRONT_BYTES + id.len() + 2 + usize::from(address_len))
        });
        self.len = fits.ok_or_else(too_long)?;
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

    fn aad(prefix: [u8; PREFIX_BYTES], account: &str, address: &[u8]) -> Vec<u8> {
        let mut aad = Aad::blank();
        aad.put(prefix, &AccountId::new(account).unwrap(), &Address::new(address).unwrap()).unwrap();
        aad.as_bytes().to_vec()
    }

    #[test]
    fn the_encoding_is_fixed_and_the_longest_fits() {
        let short = aad([1, 2, 0, 0, 0, 0, 0, 9], "ab", b"xyz");
        assert_eq!(short, b"keyleash.block.v1\x01\x02\0\0\0\0\0\x09\0\x02ab\0\x03xyz");
        let longest = aad([1; 8], &"x".repeat(ACCOUNT_ID_BYTES_MAX), &[7; ADDRESS_BYTES_MAX]);
        assert_eq!(longest.len(), 348);
        assert_eq!(longest[348 - 66..], *[&[0, 64][..], &[7; 64]].concat());
    }

    #[test]
    fn fields_do_not_run_into_one_another() {
        let of = |account, address: &[u8]| aad([0; 8], account, address);
        assert_ne!(of("ab", b"c"), of("a", b"bc"));
        assert_ne!(of("a", b""), of("a", b"\0"));
    }
}
