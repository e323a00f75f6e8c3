//! Sealing and opening one block, ours beside the raw limit: aws-lc-rs with one fixed key (the limit of any design) and with a
//! fresh key for each block (the ordinary way to have one), which checks no lease, draws no nonce and derives no key.

use super::pairs::Side;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use keyleash::{
    Account,
    block::{Address, BlockHeader},
};
use std::hint::black_box;

/// As long as what keyleash binds into a block of these accounts.
const AAD: [u8; 67] = [1; 67];
const TAG_BYTES: usize = 16;
/// Buffers begin here in a page, so that no side has a better place than another.
const ALIGN: usize = 4096;

/// What is done with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    SealInPlace,
    /// Into another buffer; the source is only read.
    SealInto,
    OpenInto,
    /// Seals in place and opens in place: what cannot be told apart, because an open in place takes its own input away.
    RoundTripInPlace,
}

impl Work {
    pub(crate) const ALL: [Self; 4] = [Self::SealInPlace, Self::SealInto, Self::OpenInto, Self::RoundTripInPlace];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::SealInPlace => "seal in place",
            Self::SealInto => "seal into another buffer",
            Self::OpenInto => "open into another buffer",
            Self::RoundTripInPlace => "seal and open in place",
        }
    }
}

/// Which key the raw limit uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Raw {
    FixedKey,
    FreshKey,
}

/// The buffers of all sides: `plain` is only read, `sealed` is what they open, `out` is written.
pub(crate) struct Buffers {
    memory: Vec<u8>,
    size: usize,
}

/// `plain`, `sealed`, `out`.
struct Parts<'a>(&'a [u8], &'a mut [u8], &'a mut [u8]);

impl Buffers {
    /// For blocks of `size` bytes, with room for what `sealers` accounts seal.
    pub(crate) fn new(size: usize, sealers: usize) -> Self {
        let room = size.next_multiple_of(ALIGN);
        Self { memory: (0..(sealers + 2) * room + ALIGN).map(|place| place as u8).collect(), size }
    }

    fn parts(&mut self, sealer: usize) -> Parts<'_> {
        let (size, room) = (self.size, self.size.next_multiple_of(ALIGN));
        let offset = self.memory.as_ptr().align_offset(ALIGN);
        let (_, aligned) = self.memory.split_at_mut(offset);
        let (plain, rest) = aligned.split_at_mut(room);
        let (out, sealed) = rest.split_at_mut(room);
        Parts(&plain[..size], &mut sealed[sealer * room..][..size], &mut out[..size])
    }

    /// Seals the plaintext for the account that is sealer number `sealer`. What the first one sealed is opened by the raw
    /// sides too.
    pub(crate) fn seal_for(&mut self, account: &Account, sealer: usize) -> BlockHeader {
        let Parts(plain, sealed, _) = self.parts(sealer);
        account.seal_into(address(), plain, sealed).expect("a sealed block")
    }
}

/// An object and a block of it, as a storage service would name one.
pub(crate) fn address() -> Address {
    Address::object([7; 16], 42)
}

fn key() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, black_box(&[7; 32])).expect("a key"))
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([3; 12])
}

fn raw_seal(key: &LessSafeKey, buf: &mut [u8]) -> [u8; TAG_BYTES] {
    let tag = key.seal_in_place_separate_tag(nonce(), Aad::from(AAD), buf).expect("a sealed block");
    tag.as_ref().try_into().expect("a tag")
}

fn raw_seal_into(key: &LessSafeKey, plain: &[u8], out: &mut [u8]) {
    let mut tag = [0; TAG_BYTES];
    key.seal_out_of_place_scatter(nonce(), Aad::from(AAD), plain, out, &[], &mut tag).expect("a sealed block");
    black_box(tag);
}

/// The tag under which the raw key opens the ciphertext that is there: what decrypts to it is found by encrypting it, because
/// GCM's keystream is its own inverse.
fn raw_tag(buffers: &mut Buffers) -> [u8; TAG_BYTES] {
    let Parts(_, sealed, out) = buffers.parts(0);
    out.copy_from_slice(sealed);
    raw_seal(&key(), out);
    raw_seal(&key(), out)
}

/// A side that does `work` the raw way.
pub(crate) fn raw_side(raw: Raw, work: Work, buffers: &mut Buffers) -> Side<'static, Buffers> {
    let tag = raw_tag(buffers);
    let fixed = key();
    let name = match raw {
        Raw::FixedKey => "aws-lc-rs, fixed key",
        Raw::FreshKey => "aws-lc-rs, fresh key",
    };
    Side::new(name, move |buffers: &mut Buffers| {
        let Parts(plain, sealed, out) = buffers.parts(0);
        let fresh;
        let one_key = match raw {
            Raw::FixedKey => &fixed,
            Raw::FreshKey => {
                fresh = key();
                &fresh
            }
        };
        match work {
            Work::SealInPlace => drop(black_box(raw_seal(one_key, out))),
            Work::SealInto => raw_seal_into(one_key, plain, out),
            Work::OpenInto => {
                one_key.open_separate_gather(nonce(), Aad::from(AAD), sealed, &tag, out).expect("an opened block");
            }
            Work::RoundTripInPlace => {
                let tag = raw_seal(one_key, out);
                // A service opens later, and sets its key up again.
                let again;
                let one_key = match raw {
                    Raw::FixedKey => one_key,
                    Raw::FreshKey => {
                        again = key();
                        &again
                    }
                };
                one_key.open_in_place_separate_tag(nonce(), Aad::from(AAD), &tag, out).expect("an opened block");
            }
        }
    })
}

/// A side that does `work` with the account that is sealer number `sealer`, whose [`Buffers::seal_for`] made `header`.
pub(crate) fn our_side<'a>(
    name: impl Into<String>,
    account: &'a Account,
    (sealer, header): (usize, BlockHeader),
    work: Work,
) -> Side<'a, Buffers> {
    Side::new(name, move |buffers: &mut Buffers| {
        let Parts(plain, sealed, out) = buffers.parts(sealer);
        match work {
            Work::SealInPlace => drop(black_box(account.seal_in_place(address(), out).expect("a sealed block"))),
            Work::SealInto => {
                black_box(account.seal_into(address(), plain, out).expect("a sealed block"));
            }
            Work::OpenInto => account.open_into(address(), &header, sealed, out).expect("an opened block"),
            Work::RoundTripInPlace => {
                let header = account.seal_in_place(address(), out).expect("a sealed block");
                account.open_in_place(address(), &header, out).expect("an opened block");
            }
        }
    })
}

/// What one of several threads does: it seals, with buffers of its own.
pub(crate) fn sealing(account: &Account, size: usize) -> (Side<'_, Buffers>, Buffers) {
    let mut buffers = Buffers::new(size, 1);
    let header = buffers.seal_for(account, 0);
    (our_side("", account, (0, header), Work::SealInPlace), buffers)
}

/// The same, the raw way.
pub(crate) fn raw_sealing(raw: Raw, size: usize) -> (Side<'static, Buffers>, Buffers) {
    let mut buffers = Buffers::new(size, 1);
    (raw_side(raw, Work::SealInPlace, &mut buffers), buffers)
}
