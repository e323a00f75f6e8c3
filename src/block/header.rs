//! The header of a sealed block: what a reader needs besides the AEK, the account and the address.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 1 | format version = 1 |
//! | 1 | 1 | suite: 1 = XAES-256-GCM, 2 = XAES-256-GCM with key commitment |
//! | 2 | 2 | zero |
//! | 4 | 4 | AEK version, big-endian |
//! | 8 | 24 | nonce, random |
//! | 32 | 16 | GCM tag |
//! | 48 | 32 | key commitment (suite 2 alone) |

use crate::{
    block::{
        kdf::{COMMITMENT_BYTES, Commitment},
        nonce::Nonce,
    },
    error::{Corrupt, Result},
};
use std::fmt;

/// The format version that this release writes and reads.
pub const FORMAT_VERSION: u8 = 1;
/// Bytes from the start of a block that tell its suite, and so the length of its header ([`BlockHeader::len_from`]).
pub const SUITE_KNOWN_AFTER_BYTES: usize = 2;
/// Longest header of any suite, in bytes.
pub const HEADER_BYTES_MAX: usize = BASE_BYTES + COMMITMENT_BYTES;

/// Length of the header without a commitment.
const BASE_BYTES: usize = 48;
/// Length of what stands before the nonce, which the tag covers as additional data.
pub(super) const PREFIX_BYTES: usize = 8;
/// Length of a GCM tag.
pub(super) const TAG_BYTES: usize = 16;

/// A GCM tag.
pub(super) type Tag = [u8; TAG_BYTES];

/// How a block is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Suite {
    /// XAES-256-GCM (<https://c2sp.org/XAES-256-GCM>). Its header has 48 bytes.
    #[default]
    XaesGcm = 1,
    /// The same with the key commitment of KC-XAES (<https://eprint.iacr.org/2025/758>): a block opens under one AEK alone,
    /// even when whoever made it chose the AEKs. For services that take blocks or AEKs from people they do not trust.
    /// Its header has 80 bytes.
    XaesGcmCommit = 2,
}

impl Suite {
    /// Length in bytes of this suite's header.
    pub const fn header_len(self) -> usize {
        match self {
            Self::XaesGcm => BASE_BYTES,
            Self::XaesGcmCommit => HEADER_BYTES_MAX,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, Corrupt> {
        match byte {
            1 => Ok(Self::XaesGcm),
            2 => Ok(Self::XaesGcmCommit),
            other => Err(Corrupt::HeaderSuite(other)),
        }
    }
}

/// The header of a sealed block: 48 or 80 bytes, kept beside the ciphertext or in front of it.
///
/// It is no secret. All of it is protected: a header with any bit changed is refused here or when the block is opened.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHeader {
    /// Zero behind `suite.header_len()`.
    bytes: [u8; HEADER_BYTES_MAX],
    suite: Suite,
}

impl BlockHeader {
    /// Length in bytes of the header of a contiguous block, from its first [`SUITE_KNOWN_AFTER_BYTES`] bytes or more.
    ///
    /// # Errors
    /// [`Corrupt::HeaderTruncated`], [`Corrupt::HeaderVersion`], [`Corrupt::HeaderSuite`].
    pub fn len_from(block: &[u8]) -> Result<usize> {
        Ok(Self::suite_of(block)?.header_len())
    }

    /// Reads the header at the front of `bytes`. What follows it is not looked at.
    ///
    /// # Errors
    /// [`Corrupt::HeaderTruncated`], [`Corrupt::HeaderVersion`], [`Corrupt::HeaderSuite`] and [`Corrupt::HeaderReserved`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Ok(Self::split(bytes)?.0)
    }

    /// Splits a contiguous block into its header and its ciphertext.
    ///
    /// # Errors
    /// As [`BlockHeader::parse`].
    pub fn split(block: &[u8]) -> Result<(Self, &[u8])> {
        let suite = Self::suite_of(block)?;
        let need = suite.header_len();
        let Some((front, ciphertext)) = block.split_at_checked(need) else {
            return Err(Corrupt::HeaderTruncated { need, got: block.len() }.into());
        };
        let mut bytes = [0; HEADER_BYTES_MAX];
        for (to, from) in bytes.iter_mut().zip(front) {
            *to = *from;
        }
        if bytes[2..4] != [0, 0] {
            return Err(Corrupt::HeaderReserved.into());
        }
        Ok((Self { bytes, suite }, ciphertext))
    }

    fn suite_of(block: &[u8]) -> Result<Suite, Corrupt> {
        match block {
            [FORMAT_VERSION, suite, ..] => Suite::from_byte(*suite),
            [FORMAT_VERSION] | [] => Err(Corrupt::HeaderTruncated { need: BASE_BYTES, got: block.len() }),
            [version, ..] => Err(Corrupt::HeaderVersion(*version)),
        }
    }

    /// The first eight bytes, which name suite and AEK version and are part of the additional data.
    #[inline]
    pub(super) fn prefix(&self) -> [u8; PREFIX_BYTES] {
        Self::prefix_of(self.suite, self.aek_version())
    }

    fn prefix_of(suite: Suite, aek_version: u32) -> [u8; PREFIX_BYTES] {
        let [a, b, c, d] = aek_version.to_be_bytes();
        [FORMAT_VERSION, suite as u8, 0, 0, a, b, c, d]
    }

    /// A place for a header.
    #[inline]
    pub(crate) fn blank() -> Self {
        Self { bytes: [0; HEADER_BYTES_MAX], suite: Suite::XaesGcm }
    }

    /// Fills a blank header with what is known before the block is sealed; tag and commitment follow. It is filled where it
    /// stands: bytes that were just written one by one and are moved as a whole make the processor wait.
    #[inline]
    pub(super) fn begin(&mut self, suite: Suite, aek_version: u32, nonce: &Nonce) {
        debug_assert_eq!(self.bytes[32..], [0; HEADER_BYTES_MAX - 32], "a blank header");
        self.suite = suite;
        self.bytes[..8].copy_from_slice(&Self::prefix_of(suite, aek_version));
        self.bytes[8..32].copy_from_slice(&nonce.to_bytes());
    }

    #[inline]
    pub(super) fn finish(&mut self, tag: &Tag, commitment: Option<&Commitment>) {
        self.bytes[32..48].copy_from_slice(tag);
        if let Some(commitment) = commitment {
            self.bytes[48..80].copy_from_slice(commitment);
        }
    }

    /// The bytes to store: 48 or 80.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.suite.header_len()).unwrap_or(&self.bytes)
    }

    /// How the block is sealed.
    #[inline]
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The version of the account's AEK that it is sealed under.
    #[inline]
    pub fn aek_version(&self) -> u32 {
        u32::from_be_bytes([self.bytes[4], self.bytes[5], self.bytes[6], self.bytes[7]])
    }

    /// The nonce.
    #[inline]
    pub fn nonce(&self) -> [u8; 24] {
        copy(&self.bytes[8..32])
    }

    #[inline]
    pub(super) fn nonce_of_block(&self) -> Nonce {
        Nonce::from_bytes(&self.nonce())
    }

    #[inline]
    pub(super) fn tag(&self) -> Tag {
        copy(&self.bytes[32..48])
    }

    /// The commitment, in suite 2.
    pub(super) fn commitment(&self) -> Option<Commitment> {
        match self.suite {
            Suite::XaesGcm => None,
            Suite::XaesGcmCommit => Some(copy(&self.bytes[48..80])),
        }
    }
}

/// `from` has N bytes, by the constants at every call.
#[inline]
fn copy<const N: usize>(from: &[u8]) -> [u8; N] {
    let mut to = [0; N];
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
    to
}

impl fmt::Debug for BlockHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockHeader({:?}, AEK version {}, nonce ", self.suite, self.aek_version())?;
        self.nonce().iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}
