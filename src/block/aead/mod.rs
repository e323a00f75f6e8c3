//! AES-256-GCM (NIST SP 800-38D) under the key of one block, by two back ends that make the same bytes.
//!
//! Both work in place or from one buffer into another, allocate nothing and leave no key on the stack. When a block is
//! refused, both leave the whole output zero: aws-lc decrypts before it has the tag and then clears what it wrote, so an
//! output that is left as it was cannot be promised, and one promise for both is worth more than a better one for one.

#[cfg(feature = "aws-lc")]
mod aws_lc;
mod pure_rust;

use crate::{
    block::{header::Tag, kdf::Dek},
    error::{Corrupt, Error, Result},
};
use aes_gcm::aead::inout::InOutBuf;
use std::fmt;

/// The implementation of AES-256-GCM to seal and open with. All make the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// AWS-LC: C and assembly, the fastest. Feature `aws-lc`.
    #[cfg(feature = "aws-lc")]
    #[cfg_attr(docsrs, doc(cfg(feature = "aws-lc")))]
    AwsLc,
    /// RustCrypto's `aes-gcm`. Always there.
    PureRust,
}

impl Backend {
    /// Every back end that is compiled in, the fastest first.
    pub const fn available() -> &'static [Self] {
        &[
            #[cfg(feature = "aws-lc")]
            Self::AwsLc,
            Self::PureRust,
        ]
    }
}

/// How far below a seal or open the stack is overwritten: deeper than the frames in which a back end may have left parts of
/// a DEK or of its schedule. Unoptimised frames are far deeper. `tests::residue` measures how deep they are, and searches the
/// stack for what is left.
/// (What is of the AEK comes from `aes`: on processors with VAES it may spread all round keys on the stack for a single block.)
const SCRUB_BYTES_UNOPTIMISED: usize = 64 * 1024;
#[cfg(feature = "aws-lc")]
const SCRUB_BYTES_AWS_LC: usize = if cfg!(debug_assertions) { SCRUB_BYTES_UNOPTIMISED } else { 4 * 1024 };
const SCRUB_BYTES_PURE_RUST: usize = if cfg!(debug_assertions) { SCRUB_BYTES_UNOPTIMISED } else { 16 * 1024 };

impl Backend {
    #[cfg(test)]
    pub(super) fn scrub_bytes(self) -> usize {
        match self {
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => SCRUB_BYTES_AWS_LC,
            Self::PureRust => SCRUB_BYTES_PURE_RUST,
        }
    }

    /// Overwrites what ended calls left below the caller's frame.
    #[inline]
    pub(super) fn scrub_stack(self) {
        match self {
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => zeroize::zeroize_stack::<SCRUB_BYTES_AWS_LC>(),
            Self::PureRust => zeroize::zeroize_stack::<SCRUB_BYTES_PURE_RUST>(),
        }
    }
}

/// The fastest that is compiled in.
impl Default for Backend {
    fn default() -> Self {
        Self::available().first().copied().unwrap_or(Self::PureRust)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => "aws-lc",
            Self::PureRust => "pure-rust",
        })
    }
}

/// Why a back end made no output. The output is zero.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The tag does not match.
    Refused,
    /// The library failed, which it has no reason to.
    Broken,
}

/// Encrypts `buf` and gives the tag.
///
/// # Errors
/// [`Error::Fatal`] when the library fails; the output is zero then.
#[inline]
pub(super) fn seal(
    backend: Backend,
    dek: &Dek,
    nonce: &[u8; 12],
    aad: &[u8],
    buf: InOutBuf<'_, '_, u8>,
) -> Result<Tag> {
    match backend {
        #[cfg(feature = "aws-lc")]
        Backend::AwsLc => aws_lc::seal(dek, nonce, aad, buf),
        Backend::PureRust => pure_rust::seal(dek, nonce, aad, buf),
    }
    .map_err(|failure| error(backend, &failure))
}

/// Checks the tag and decrypts `buf`.
///
/// # Errors
/// [`Corrupt::Block`] when the tag does not match, [`Error::Fatal`] when the library fails; the output is zero then.
#[inline]
pub(super) fn open(
    backend: Backend,
    dek: &Dek,
    nonce: &[u8; 12],
    aad: &[u8],
    tag: &Tag,
    buf: InOutBuf<'_, '_, u8>,
) -> Result<()> {
    match backend {
        #[cfg(feature = "aws-lc")]
        Backend::AwsLc => aws_lc::open(dek, nonce, aad, tag, buf),
        Backend::PureRust => pure_rust::open(dek, nonce, aad, tag, buf),
    }
    .map_err(|failure| error(backend, &failure))
}

#[cold]
fn error(backend: Backend, failure: &Failure) -> Error {
    match failure {
        Failure::Refused => Corrupt::Block.into(),
        Failure::Broken => Error::Fatal(format!("AES-256-GCM of back end {backend} failed")),
    }
}
