//! What a wrapped AEK is bound to, and its check value.

use crate::{
    name::{AccountId, KekVersion},
    secret::{AEK_BYTES, Aek, scrub_stack},
    token::Binding,
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Length of a check value, in bytes.
pub const CHECK_BYTES: usize = 32;

/// Tells what goes into a context apart from everything else that is ever put under an AEK.
const CONTEXT_PREFIX: &[u8] = b"keyleash.aek.v1";
const HMAC_BLOCK_BYTES: usize = 64;

/// What a wrapped AEK is bound to: `"keyleash.aek.v1" ‖ u16 len ‖ KEK name ‖ u32 KEK version ‖ u16 len ‖ account id ‖
/// u32 AEK version`, integers big-endian.
pub fn context(kek: &KekVersion, account: &AccountId, aek_version: u32) -> Vec<u8> {
    let mut context = CONTEXT_PREFIX.to_vec();
    put_text(&mut context, kek.name.as_str());
    context.extend(kek.version.to_be_bytes());
    put_text(&mut context, account.as_str());
    context.extend(aek_version.to_be_bytes());
    context
}

/// Names have at most 255 bytes, so that their length fits.
fn put_text(context: &mut Vec<u8>, text: &str) {
    context.extend((text.len() as u16).to_be_bytes());
    context.extend(text.as_bytes());
}

/// SHA-256 of a context: the additional data of mechanisms that take some.
pub fn binding(context: &[u8]) -> Binding {
    Sha256::digest(context).into()
}

/// HMAC-SHA256(AEK, context): stored beside the wrapped AEK, compared after every unwrap.
pub fn check_value(aek: &Aek, context: &[u8]) -> [u8; CHECK_BYTES] {
    let check = hmac(aek, context);
    scrub_stack(); // the padded key stood on it
    check
}

#[inline(never)] // so that its frame lies where scrub_stack() overwrites
fn hmac(aek: &Aek, context: &[u8]) -> [u8; CHECK_BYTES] {
    // RFC 2104 pads a short key with zeros. A whole block cannot fail, unlike a slice.
    let mut block = Zeroizing::new([0_u8; HMAC_BLOCK_BYTES]);
    let (key, _padding) = block.split_at_mut(AEK_BYTES);
    key.copy_from_slice(aek.expose());
    let mut hmac = <Hmac<Sha256> as KeyInit>::new((&*block).into());
    hmac.update(context);
    hmac.finalize().into_bytes().into()
}

/// True when `check` is the check value of this AEK and context. Takes the same time whatever differs.
pub fn check_matches(aek: &Aek, context: &[u8], check: &[u8; CHECK_BYTES]) -> bool {
    check_value(aek, context).ct_eq(check).into()
}
