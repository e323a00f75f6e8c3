//! AWS-LC, called below aws-lc-rs: its context stands on the stack, which saves an allocation for each block. AWS-LC's own
//! cleanup of a GCM context wipes nothing; the caller overwrites it with everything else that a call leaves behind
//! ([`crate::block`] scrubs below every seal and open), so that it is not wiped twice.
#![allow(unsafe_code)] // one of the rooms that may; each block says why it is sound

use super::Failure;
use crate::block::{
    header::{TAG_BYTES, Tag},
    kdf::Dek,
};
use aes_gcm::aead::inout::InOutBuf;
use aws_lc_sys::{
    CRYPTO_library_init, ERR_clear_error, EVP_AEAD_CTX, EVP_AEAD_CTX_cleanup, EVP_AEAD_CTX_init,
    EVP_AEAD_CTX_open_gather, EVP_AEAD_CTX_seal_scatter, EVP_aead_aes_256_gcm,
};
use std::{mem::MaybeUninit, ptr, sync::Once};

/// What AWS-LC's functions return when they succeed.
const OK: i32 = 1;

static LIBRARY: Once = Once::new();

/// A context that is set up where it stands: a move would leave a copy of the schedule where no scrub may reach.
struct Context(MaybeUninit<EVP_AEAD_CTX>);

impl Context {
    #[inline]
    fn blank() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Sets the key. Without success the context must not be used.
    #[inline]
    fn set(&mut self, dek: &Dek) -> Result<(), Failure> {
        // SAFETY: takes nothing and may be called at any time; once is enough.
        LIBRARY.call_once(|| unsafe { CRYPTO_library_init() });
        let key = dek.expose();
        // SAFETY: the context is writable and big enough by its type; init reads nothing of it, and the key is `key.len()`
        // bytes long. The AEAD is a static object. No ENGINE is given.
        let set = unsafe {
            EVP_AEAD_CTX_init(
                self.0.as_mut_ptr(),
                EVP_aead_aes_256_gcm(),
                key.as_ptr(),
                key.len(),
                TAG_BYTES,
                ptr::null_mut(),
            )
        };
        if set == OK { Ok(()) } else { Err(Failure::Broken) }
    }
}

impl Drop for Context {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `blank` is followed by `set` in both functions below, and init always sets the one field that cleanup
        // reads, when it fails too. Nothing reads the context after this.
        unsafe { EVP_AEAD_CTX_cleanup(self.0.as_mut_ptr()) };
    }
}

pub(super) fn seal(dek: &Dek, nonce: &[u8; 12], aad: &[u8], buf: InOutBuf<'_, '_, u8>) -> Result<Tag, Failure> {
    let mut context = Context::blank();
    if let Err(failure) = context.set(dek) {
        buf.into_out().fill(0);
        return Err(failure);
    }
    let mut tag = [0; TAG_BYTES];
    let mut tag_len = 0;
    let len = buf.len();
    let (input, output) = buf.into_raw();
    // SAFETY: the context is set. Input and output are `len` bytes each and either the same or apart, which is what an
    // InOutBuf guarantees and this function asks for; the tag is apart from both. Every other pointer goes with its own
    // length; there is no extra input.
    let sealed = unsafe {
        EVP_AEAD_CTX_seal_scatter(
            context.0.as_ptr(),
            output,
            tag.as_mut_ptr(),
            &raw mut tag_len,
            tag.len(),
            nonce.as_ptr(),
            nonce.len(),
            input,
            len,
            ptr::null(),
            0,
            aad.as_ptr(),
            aad.len(),
        )
    };
    // A failure has cleared the output.
    if sealed == OK && tag_len == TAG_BYTES { Ok(tag) } else { Err(forget(Failure::Broken)) }
}

pub(super) fn open(
    dek: &Dek,
    nonce: &[u8; 12],
    aad: &[u8],
    tag: &Tag,
    buf: InOutBuf<'_, '_, u8>,
) -> Result<(), Failure> {
    let mut context = Context::blank();
    if let Err(failure) = context.set(dek) {
        buf.into_out().fill(0);
        return Err(failure);
    }
    let len = buf.len();
    let (input, output) = buf.into_raw();
    // SAFETY: as in `seal`; the tag is read only.
    let opened = unsafe {
        EVP_AEAD_CTX_open_gather(
            context.0.as_ptr(),
            output,
            nonce.as_ptr(),
            nonce.len(),
            input,
            len,
            tag.as_ptr(),
            tag.len(),
            aad.as_ptr(),
            aad.len(),
        )
    };
    // A refusal has cleared the output: EVP_AEAD_CTX_open_gather does so on every error.
    if opened == OK { Ok(()) } else { Err(forget(Failure::Refused)) }
}

/// Empties the thread's error queue, so that a refused block is not taken for an error of whoever calls AWS-LC next. (The
/// first error of a thread makes AWS-LC allocate that queue, once: the only allocation here, and only for what is refused.)
#[cold]
fn forget(failure: Failure) -> Failure {
    // SAFETY: takes nothing and touches the calling thread's queue alone.
    unsafe { ERR_clear_error() };
    failure
}
