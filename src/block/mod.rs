//! Blocks: sealed under a key of their own, bound to their account and address.
//!
//! A block is sealed with AES-256-GCM under a DEK that is derived from the account's AEK and a random nonce
//! (C2SP XAES-256-GCM), so that an AEK seals a practically unlimited number of blocks. Its header stands beside the
//! ciphertext or in front of it; the ciphertext is as long as the plaintext. The bytes are drawn in
//! [`BlockHeader`]'s page; what binds a block to its place is in [`Address`]'s.
//!
//! # When a block is refused
//! [`Corrupt::Commitment`] or [`Corrupt::Block`], and the whole output
//! buffer is zero: no byte that was not authenticated is left in it. In place that takes the ciphertext too, so whoever wants
//! to try again (with another address, or another copy's header) opens into another buffer, which never writes to the
//! ciphertext. A request that breaks a limit ([`Error::Invalid`], [`Error::TooLong`]) leaves every buffer as it was.
//!
//! # Torn writes
//! A write that is torn is for whoever writes: of a block that is overwritten in place and torn, neither the old nor the new one
//! opens ([`Corrupt::Block`]). So write block and header to a new place, sync, and only then have the map name
//! that place, as the example `block_store` does, or have a log that a block is written to first. Header and ciphertext belong
//! together: they are written, moved and kept as one.

mod aad;
mod address;
mod aead;
mod header;
mod kdf;
mod nonce;
mod self_test;
#[cfg(test)]
mod tests;

pub use address::{ADDRESS_BYTES_MAX, Address, ObjectId};
pub use aead::Backend;
pub use header::{BlockHeader, FORMAT_VERSION, HEADER_BYTES_MAX, SUITE_KNOWN_AFTER_BYTES, Suite};
pub use nonce::NONCE_BYTES;
pub use self_test::self_test;

use crate::{
    error::{Corrupt, Error, Result},
    name::AccountId,
    secret::Schedule,
};
use aad::Aad;
use aes_gcm::aead::inout::InOutBuf;
use kdf::{Dek, Seed};
use nonce::Nonce;
use subtle::ConstantTimeEq;

/// Longest block, in bytes of plaintext (and of ciphertext): 64 MiB.
pub const BLOCK_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most blocks that are sealed under one AEK version, whatever its account's policy says: 2^46. Each takes at most two
/// messages of CMAC under the AEK, of which NIST SP 800-38B (appendix B) recommends no more than 2^48, and at most five calls of
/// AES: told from random with an advantage below 2^-32. A factor of two is left for what crashes keep from being counted.
/// Collisions of nonces, which bind plain AES-GCM to 2^32 blocks, are far behind: C2SP gives 2^80 for a risk of 2^-32.
pub const AEK_BLOCKS_MAX: u64 = 1 << 46;
/// Most plaintext bytes that are sealed under one AEK version: 2^60. Every block has a DEK of its own, so AES-GCM's limits of
/// length hold for each by itself; over all, their advantage stays below 2^-50.
pub const AEK_BYTES_MAX: u64 = 1 << 60;

/// Seals and opens blocks of one account under one AEK version. Borrowed for one call; the data path of `Account`.
#[derive(Clone, Copy)]
pub(crate) struct Sealer<'a> {
    /// Does the AES-256-GCM.
    pub(crate) backend: Backend,
    /// Of the AEK.
    pub(crate) schedule: &'a Schedule,
    /// Bound into every block.
    pub(crate) account: &'a AccountId,
}

impl Sealer<'_> {
    /// Seals `buf`, whose plaintext becomes the ciphertext.
    ///
    /// # Errors
    /// [`Error::Invalid`] over [`BLOCK_BYTES_MAX`]; [`Error::Fatal`] without randomness (`buf` is as it was), or when the
    /// back end fails (`buf` is zero).
    #[inline]
    pub(crate) fn seal_in_place(
        &self,
        suite: Suite,
        aek_version: u32,
        address: &Address,
        buf: &mut [u8],
    ) -> Result<BlockHeader> {
        let mut header = BlockHeader::blank();
        self.seal(suite, aek_version, address, buf.into(), &mut header)?;
        Ok(header)
    }

    /// Seals `plaintext` into `ciphertext`, which is as long.
    ///
    /// # Errors
    /// As [`Sealer::seal_in_place`]; [`Error::Invalid`] also when the lengths differ.
    #[inline]
    pub(crate) fn seal_into(
        &self,
        suite: Suite,
        aek_version: u32,
        address: &Address,
        plaintext: &[u8],
        ciphertext: &mut [u8],
    ) -> Result<BlockHeader> {
        let mut header = BlockHeader::blank();
        self.seal(suite, aek_version, address, pair(plaintext, ciphertext)?, &mut header)?;
        Ok(header)
    }

    /// Opens `buf`, whose ciphertext becomes the plaintext. The schedule must be that of `header.aek_version()`.
    ///
    /// # Errors
    /// [`Corrupt::Commitment`] or [`Corrupt::Block`]: refused, and `buf` is zero. [`Error::Invalid`] over
    /// [`BLOCK_BYTES_MAX`]: `buf` is as it was. [`Error::Fatal`] when the back end fails: `buf` is zero.
    #[inline]
    pub(crate) fn open_in_place(&self, header: &BlockHeader, address: &Address, buf: &mut [u8]) -> Result<()> {
        self.open(header, address, buf.into())
    }

    /// Takes back an open: `buf`, which holds the plaintext that `header` opened to, gets the ciphertext that it was. The nonce
    /// is used again, for the same bytes; for others it seals nothing.
    ///
    /// # Errors
    /// [`Corrupt::Block`] when `buf` holds another plaintext, [`Error::Fatal`] when the back end fails: `buf` is zero.
    pub(crate) fn seal_back(&self, header: &BlockHeader, address: &Address, buf: &mut [u8]) -> Result<()> {
        let again =
            self.seal_with(header.nonce_of_block(), header.suite(), header.aek_version(), address, (&mut *buf).into())?;
        if again.as_bytes().ct_eq(header.as_bytes()).into() {
            return Ok(());
        }
        buf.fill(0);
        Err(Corrupt::Block.into())
    }

    /// Opens `ciphertext` into `plaintext`, which is as long. Never writes to `ciphertext`.
    ///
    /// # Errors
    /// As [`Sealer::open_in_place`], of `plaintext`; [`Error::Invalid`] also when the lengths differ.
    #[inline]
    pub(crate) fn open_into(
        &self,
        header: &BlockHeader,
        address: &Address,
        ciphertext: &[u8],
        plaintext: &mut [u8],
    ) -> Result<()> {
        self.open(header, address, pair(ciphertext, plaintext)?)
    }

    /// Seals `buf` and fills `header`, where it stands: on its way out through many results it would be copied as often.
    ///
    /// # Errors
    /// As [`Sealer::seal_in_place`].
    #[inline]
    pub(crate) fn seal(
        &self,
        suite: Suite,
        aek_version: u32,
        address: &Address,
        buf: InOutBuf<'_, '_, u8>,
        header: &mut BlockHeader,
    ) -> Result<()> {
        check_len(buf.len())?;
        self.seal_under(Nonce::random()?, suite, aek_version, address, buf, header)
    }

    /// The nonce comes in by value, so that it seals once; outside tests it is random.
    #[inline(always)]
    fn seal_under(
        &self,
        nonce: Nonce,
        suite: Suite,
        aek_version: u32,
        address: &Address,
        buf: InOutBuf<'_, '_, u8>,
        header: &mut BlockHeader,
    ) -> Result<()> {
        let seed = Seed::new(&nonce);
        header.begin(suite, aek_version, &nonce);
        let mut aad = Aad::blank();
        aad.put(header.prefix(), self.account, address)?;
        let sealed = self.seal_below(&nonce, &seed, &aad, buf, header);
        self.backend.scrub_stack();
        sealed
    }

    /// As [`Sealer::seal`], under a nonce that is given: one that seals the same bytes again, or a test's.
    fn seal_with(
        &self,
        nonce: Nonce,
        suite: Suite,
        aek_version: u32,
        address: &Address,
        buf: InOutBuf<'_, '_, u8>,
    ) -> Result<BlockHeader> {
        let mut header = BlockHeader::blank();
        self.seal_under(nonce, suite, aek_version, address, buf, &mut header)?;
        Ok(header)
    }

    // A frame of its own, so that the scrub of its caller reaches everything that it leaves on the stack.
    #[inline(never)]
    fn seal_below(
        &self,
        nonce: &Nonce,
        seed: &Seed,
        aad: &Aad,
        buf: InOutBuf<'_, '_, u8>,
        header: &mut BlockHeader,
    ) -> Result<()> {
        let mut dek = Dek::blank();
        dek.derive(self.schedule, seed);
        let tag = aead::seal(self.backend, &dek, &nonce.gcm_bytes(), aad.as_bytes(), buf)?;
        let commitment = match header.suite() {
            Suite::XaesGcm => None,
            Suite::XaesGcmCommit => Some(kdf::commitment(self.schedule, nonce)),
        };
        header.finish(&tag, commitment.as_ref());
        Ok(())
    }

    #[inline]
    pub(crate) fn open(&self, header: &BlockHeader, address: &Address, buf: InOutBuf<'_, '_, u8>) -> Result<()> {
        check_len(buf.len())?;
        let nonce = header.nonce_of_block();
        let seed = Seed::new(&nonce);
        let mut aad = Aad::blank();
        aad.put(header.prefix(), self.account, address)?;
        let opened = self.open_below(header, &nonce, &seed, &aad, buf);
        self.backend.scrub_stack();
        opened
    }

    #[inline(never)] // as `seal_below`
    fn open_below(
        &self,
        header: &BlockHeader,
        nonce: &Nonce,
        seed: &Seed,
        aad: &Aad,
        buf: InOutBuf<'_, '_, u8>,
    ) -> Result<()> {
        if let Some(stored) = header.commitment()
            && !bool::from(kdf::commitment(self.schedule, nonce).ct_eq(&stored))
        {
            buf.into_out().fill(0);
            return Err(Corrupt::Commitment.into());
        }
        let mut dek = Dek::blank();
        dek.derive(self.schedule, seed);
        aead::open(self.backend, &dek, &nonce.gcm_bytes(), aad.as_bytes(), &header.tag(), buf)
    }
}

pub(crate) fn check_len(len: usize) -> Result<()> {
    if len <= BLOCK_BYTES_MAX {
        return Ok(());
    }
    Err(Error::TooLong { what: "a block", len, max: BLOCK_BYTES_MAX, remedy: "seal it in parts" })
}

pub(crate) fn pair<'i, 'o>(input: &'i [u8], output: &'o mut [u8]) -> Result<InOutBuf<'i, 'o, u8>> {
    let (input_len, output_len) = (input.len(), output.len());
    InOutBuf::new(input, output).map_err(|_| {
        Error::Invalid(format!("the output has {output_len} bytes and the input {input_len}: they must be as long"))
    })
}
