//! RustCrypto's `aes-gcm`. Its schedule and GHASH key wipe themselves on drop (feature `zeroize`); copies that moves of
//! them left on the stack are overwritten by the caller ([`crate::block`] scrubs below every seal and open).

use super::Failure;
use crate::block::{header::Tag, kdf::Dek};
use aes::{Aes256Enc, cipher::consts::U12};
use aes_gcm::{
    AesGcm, KeyInit,
    aead::{AeadInOut, inout::InOutBuf},
};

/// GCM encrypts only: without the decryption schedule, setting a key takes half the time.
type Gcm = AesGcm<Aes256Enc, U12>;

pub(super) fn seal(dek: &Dek, nonce: &[u8; 12], aad: &[u8], mut buf: InOutBuf<'_, '_, u8>) -> Result<Tag, Failure> {
    let sealed = Gcm::new(dek.expose().into()).encrypt_inout_detached(nonce.into(), aad, buf.reborrow());
    sealed.map(Into::into).map_err(|_| {
        buf.get_out().fill(0);
        Failure::Broken
    })
}

pub(super) fn open(
    dek: &Dek,
    nonce: &[u8; 12],
    aad: &[u8],
    tag: &Tag,
    mut buf: InOutBuf<'_, '_, u8>,
) -> Result<(), Failure> {
    let opened = Gcm::new(dek.expose().into()).decrypt_inout_detached(nonce.into(), aad, buf.reborrow(), tag.into());
    // The only other error, a text over the limit of GCM, cannot come: blocks are far shorter.
    opened.map_err(|_| {
        buf.get_out().fill(0);
        Failure::Refused
    })
}
