//! What an AEK is used through: its AES-256 encryption schedule and its CMAC subkey.
//!
//! It is set up, used and wiped where it stands, never moved: a move would leave a copy behind. With the feature `aws-lc`
//! the cipher is AWS-LC's, whose assembly keeps round keys in registers; the `aes` crate spills them to the stack on some
//! machines (all 15, fourfold, where it finds VAES), which the pure-Rust build answers by overwriting the stack more deeply.
#![allow(unsafe_code)] // part of the room `secret`; each block says why it is sound

use super::{AEK_BYTES, Aek};
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// Deeper than the frames of the cipher and its set-up, in which the compiler may have left parts of a key.
const SCRUB_BYTES: usize = match (cfg!(debug_assertions), cfg!(feature = "aws-lc")) {
    (true, _) => 64 * 1024,
    (false, true) => 4 * 1024,
    (false, false) => 16 * 1024,
};

/// Overwrites the stack below the caller, where the frames of ended calls may have left key material.
#[inline(never)]
pub(crate) fn scrub_stack() {
    zeroize::zeroize_stack::<SCRUB_BYTES>();
}

/// An AES-256 encryption schedule with its CMAC subkey K1 (NIST SP 800-38B). At most 260 bytes, no pointers; wiped on drop.
#[repr(C)]
pub(crate) struct Schedule {
    cipher: cipher::Cipher,
    k1: [u8; 16],
}

impl Schedule {
    /// Sets the schedule of `aek` up at `at`.
    ///
    /// # Safety
    /// `at` is writable and aligned for a `Schedule`, nobody else reads or writes it meanwhile, and a schedule that stood
    /// there was dropped.
    pub(super) unsafe fn set_up(at: *mut Self, aek: &Aek) {
        // SAFETY: the caller's; the fields are inside of what `at` points to.
        unsafe {
            cipher::Cipher::set_up(&raw mut (*at).cipher, aek.expose());
            (&raw mut (*at).k1).write([0; 16]);
        }
        // SAFETY: both fields are initialised now, and the caller gives exclusive use.
        let schedule = unsafe { &mut *at };
        schedule.cipher.encrypt_block(&mut schedule.k1);
        // Doubling in GF(2^128), without a branch on the secret bit.
        let doubled = u128::from_be_bytes(schedule.k1);
        schedule.k1 = ((doubled << 1) ^ (0x87 & (doubled >> 127).wrapping_neg())).to_be_bytes();
    }

    /// True when this is the schedule of `aek`, compared in constant time.
    pub(super) fn is_of(&self, aek: &Aek) -> bool {
        let mut other = std::mem::MaybeUninit::<Self>::uninit();
        // SAFETY: on this frame, aligned by its type, and set up before it is read; dropped where it stands, once.
        let same = unsafe {
            Self::set_up(other.as_mut_ptr(), aek);
            // K1 is a pseudo-random function of the key; two AEKs with one K1 cannot be found.
            let same = self.k1.ct_eq(&other.assume_init_ref().k1);
            other.assume_init_drop();
            same
        };
        scrub_stack();
        same.into()
    }

    /// AES-256 of one block under the AEK.
    #[inline]
    pub(crate) fn encrypt_block(&self, block: &mut [u8; 16]) {
        self.cipher.encrypt_block(block);
    }

    /// The CMAC subkey K1.
    #[inline]
    pub(crate) fn k1(&self) -> &[u8; 16] {
        &self.k1
    }
}

impl Drop for Schedule {
    fn drop(&mut self) {
        self.k1.zeroize();
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Schedule(…)")
    }
}

#[cfg(feature = "aws-lc")]
mod cipher {
    use super::AEK_BYTES;
    use aws_lc_sys::{AES_KEY, AES_encrypt, AES_set_encrypt_key, CRYPTO_library_init};
    use std::sync::Once;
    use zeroize::Zeroize;

    const AEK_BITS: u32 = AEK_BYTES as u32 * 8;
    static LIBRARY: Once = Once::new();

    pub(super) struct Cipher(AES_KEY);

    impl Cipher {
        /// # Safety
        /// As [`super::Schedule::set_up`].
        pub(super) unsafe fn set_up(at: *mut Self, aek: &[u8; AEK_BYTES]) {
            // SAFETY: takes nothing and may be called at any time; once is enough. It finds out what the CPU can do.
            LIBRARY.call_once(|| unsafe { CRYPTO_library_init() });
            // SAFETY: the caller's for `at`; the key has AEK_BITS bits. It fails only for null pointers and other lengths. The
            // assembly writes 60 words and the number of rounds, so zeroes come first for what it might leave out.
            unsafe {
                at.write_bytes(0, 1);
                AES_set_encrypt_key(aek.as_ptr(), AEK_BITS, &raw mut (*at).0);
            }
        }

        #[inline]
        pub(super) fn encrypt_block(&self, block: &mut [u8; 16]) {
            let at = block.as_mut_ptr();
            // SAFETY: the schedule is set up; 16 bytes are read and written, in place, which AES_encrypt allows.
            unsafe { AES_encrypt(at, at, &raw const self.0) };
        }
    }

    impl Drop for Cipher {
        fn drop(&mut self) {
            self.0.rd_key.zeroize();
            self.0.rounds.zeroize();
        }
    }
}

#[cfg(not(feature = "aws-lc"))]
mod cipher {
    use super::AEK_BYTES;
    use aes::{
        Aes256Enc,
        cipher::{BlockCipherEncrypt, KeyInit},
    };

    /// Wipes itself on drop (feature `zeroize`).
    pub(super) struct Cipher(Aes256Enc);

    impl Cipher {
        /// # Safety
        /// As [`super::Schedule::set_up`].
        pub(super) unsafe fn set_up(at: *mut Self, aek: &[u8; AEK_BYTES]) {
            // SAFETY: the caller's.
            unsafe { at.write(Self(Aes256Enc::new(aek.into()))) };
        }

        #[inline]
        pub(super) fn encrypt_block(&self, block: &mut [u8; 16]) {
            self.0.encrypt_block(block.into());
        }
    }
}
