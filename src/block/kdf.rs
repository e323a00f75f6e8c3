//! From the AEK and a nonce to the DEK of one block, and to the commitment.
//!
//! The DEK is that of C2SP XAES-256-GCM (<https://c2sp.org/XAES-256-GCM>): the counter KDF of NIST SP 800-108r1 with
//! CMAC-AES256 under the AEK, Label `X` and the nonce's first half as Context. One message fits one AES block, so it
//! costs two encryptions. The commitment is the one of KC-XAES (Kampanakis, Halevi, Ebeid and Campagna,
//! <https://eprint.iacr.org/2025/758>): CMAC-AES256 of two-block messages over the whole nonce, three encryptions.
//! The first blocks of the two kinds of message differ in their first bytes (00 and `X`), so neither can stand for the other.

use crate::{block::nonce::Nonce, secret::Schedule};

/// Length of a commitment.
pub(super) const COMMITMENT_BYTES: usize = 32;
const DEK_BYTES: usize = 32;

/// A key commitment: C_1 ‖ C_2.
pub(super) type Commitment = [u8; COMMITMENT_BYTES];

/// The key of one block. Wiped on drop; it is filled where it stands, because a move would leave a copy behind.
pub(super) struct Dek([u8; DEK_BYTES]);

/// The two messages of the KDF. They are put together before other work: bytes that were just written one by one and are read as
/// a whole make the processor wait.
pub(super) struct Seed([[u8; 16]; 2]);

impl Seed {
    #[inline]
    pub(super) fn new(nonce: &Nonce) -> Self {
        Self([1, 2].map(|counter| join([0, counter, b'X', 0], nonce.kdf()).to_le_bytes()))
    }

    /// Masks the messages with K1, as CMAC's last block is. Byte by byte, which the compiler does as one vector.
    #[inline]
    pub(super) fn mask(&self, k1: &[u8; 16], masked: &mut [[u8; 16]]) {
        for (masked, message) in masked.iter_mut().zip(&self.0) {
            *masked = *message;
            masked.iter_mut().zip(k1).for_each(|(byte, key)| *byte ^= key);
        }
    }
}

impl Dek {
    /// A place for a DEK, to be filled by [`Dek::derive`].
    #[inline]
    pub(super) fn blank() -> Self {
        Self([0; DEK_BYTES])
    }

    /// Fills it: CMAC(00 01 `X` 00 ‖ nonce\[0..12\]) ‖ CMAC(00 02 `X` 00 ‖ nonce\[0..12\]).
    ///
    /// Both messages before the first is encrypted: the cipher would wait for bytes that were stored just before.
    #[inline]
    pub(super) fn derive(&mut self, schedule: &Schedule, seed: &Seed) {
        let halves = self.0.as_chunks_mut().0;
        seed.mask(schedule.k1(), halves);
        halves.iter_mut().for_each(|half| schedule.encrypt_block(half));
    }

    #[cfg(test)]
    pub(super) fn from_bytes(bytes: [u8; DEK_BYTES]) -> Self {
        Self(bytes)
    }

    #[inline]
    pub(super) fn expose(&self) -> &[u8; DEK_BYTES] {
        &self.0
    }
}

impl Drop for Dek {
    #[inline]
    fn drop(&mut self) {
        // Two wide stores; `Zeroize` for bytes would make 32.
        self.0 = [0; DEK_BYTES];
        zeroize::optimization_barrier(&self.0);
    }
}

/// X = AES(`XCMT` ‖ nonce\[0..12\]); C_i = AES(X ⊕ (nonce\[12..24\] ‖ 00 01 00 i) ⊕ K1) for i = 1, 2. It is public.
#[inline]
pub(super) fn commitment(schedule: &Schedule, nonce: &Nonce) -> Commitment {
    let mut chain = join(*b"XCMT", nonce.kdf()).to_le_bytes();
    schedule.encrypt_block(&mut chain);
    let last = nonce.gcm() | 1 << 104;
    let last = last ^ u128::from_le_bytes(chain) ^ u128::from_le_bytes(*schedule.k1());
    let mut commitment = [0; COMMITMENT_BYTES];
    for (half, counter) in commitment.as_chunks_mut::<16>().0.iter_mut().zip(1_u128..) {
        *half = (last ^ counter << 120).to_le_bytes();
        schedule.encrypt_block(half);
    }
    commitment
}

/// A block of four bytes and twelve, as a number whose least byte comes first.
#[inline]
fn join(head: [u8; 4], tail: u128) -> u128 {
    u128::from(u32::from_le_bytes(head)) | tail << 32
}
