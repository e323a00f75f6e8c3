//! Known answers that every back end gives before an engine seals with it: a miscompiled or wrongly dispatched cipher must
//! not be found out by blocks that no other machine opens.

use crate::{
    block::{Backend, BlockHeader, Sealer, Suite, address::Address, nonce::Nonce},
    error::{Corrupt, Error, Result},
    name::AccountId,
    secret::{AEK_BYTES, Aek, KeySlot, MemlockPolicy, NewKey, in_flight::Operation},
};
use std::num::NonZeroU64;

const AEK_VERSION: u32 = 1;
const PLAINTEXT: [u8; 12] = *b"XAES-256-GCM";
/// AEK and nonce are those of C2SP's first vector, so this is the ciphertext printed there.
const CIPHERTEXT: [u8; 12] = *b"\xce\x54\x6e\xf6\x3c\x9c\xc6\x07\x65\x92\x36\x09";
const COMMITTED: [u8; 80] = *b"\x01\x02\0\0\0\0\0\x01ABCDEFGHIJKLMNOPQRSTUVWX\
    \xbe\xdb\xb3\xb6\x51\xc4\xdc\x2e\x65\x00\xb5\xb3\xb0\x0b\x25\xab\
    \x04\x07\x6b\x60\x85\xee\xba\xb1\x38\x85\x5f\xe5\x78\x11\xc0\x41\
    \x12\xef\xf9\x89\xd4\x41\x20\xdf\xff\x66\x2d\x54\x75\xa3\x83\xc3";
const PLAIN: [u8; 48] = *b"\x01\x01\0\0\0\0\0\x01ABCDEFGHIJKLMNOPQRSTUVWX\
    \xb1\x2f\xae\x08\x61\xde\xb3\x26\x0f\xbc\x01\x69\x99\x9c\xfc\x2d";

/// Seals and opens a known block with every back end and suite, and has a changed one refused.
///
/// # Errors
/// [`Error::Fatal`] naming the back end that fails, or the one that does when there is no memory for keys.
pub fn self_test() -> Result<()> {
    let slot = KeySlot::default();
    // Of no secret.
    let key = NewKey::set_up(&Aek::copy_from(&[1; AEK_BYTES])?, MemlockPolicy::Warn)?;
    drop(slot.fill(key, NonZeroU64::MIN));
    let mut operation = Operation::enter();
    let Some(schedule) = slot.read(&mut operation, NonZeroU64::MIN.get()) else {
        return Err(Error::Fatal("self-test: a key slot that was filled is empty".into()));
    };
    let account = AccountId::new("self-test")?;
    for &backend in Backend::available() {
        let sealer = Sealer { backend, schedule, account: &account };
        for (suite, header) in [(Suite::XaesGcm, &PLAIN[..]), (Suite::XaesGcmCommit, &COMMITTED[..])] {
            match known_answer(&sealer, suite, header).and_then(|()| round_trip(&sealer, suite)) {
                Ok(()) => {}
                Err(what) => {
                    return Err(Error::Fatal(format!(
                        "self-test of back end {backend}, {suite:?}: {what}; choose another back end or machine"
                    )));
                }
            }
        }
    }
    Ok(())
}

/// What a check found wrong.
type Fault = String;

fn known_answer(sealer: &Sealer<'_>, suite: Suite, expected: &[u8]) -> Result<(), Fault> {
    let address = Address::from(7_u64);
    let nonce = Nonce::from_bytes(b"ABCDEFGHIJKLMNOPQRSTUVWX");
    let mut buf = PLAINTEXT;
    let header = sealer.seal_with(nonce, suite, AEK_VERSION, &address, (&mut buf[..]).into()).map_err(in_words)?;
    ensure(header.as_bytes() == expected && buf == CIPHERTEXT, "a known block was sealed to other bytes")?;
    sealer.open_in_place(&BlockHeader::parse(expected).map_err(in_words)?, &address, &mut buf).map_err(in_words)?;
    ensure(buf == PLAINTEXT, "a known block was opened to other bytes")
}

fn round_trip(sealer: &Sealer<'_>, suite: Suite) -> Result<(), Fault> {
    let address = Address::from(8_u64);
    let (mut sealed, mut opened) = ([0; PLAINTEXT.len()], [0; PLAINTEXT.len()]);
    let header = sealer.seal_into(suite, AEK_VERSION, &address, &PLAINTEXT, &mut sealed).map_err(in_words)?;
    sealer.open_into(&header, &address, &sealed, &mut opened).map_err(in_words)?;
    ensure(opened == PLAINTEXT && sealed != PLAINTEXT, "a block did not come back as it was sealed")?;
    let again = sealer.seal_in_place(suite, AEK_VERSION, &address, &mut opened).map_err(in_words)?;
    ensure(again.nonce() != header.nonce(), "two blocks were sealed with one nonce")?;
    sealed[0] ^= 1;
    let refused = sealer.open_in_place(&header, &address, &mut sealed);
    ensure(refused == Err(Corrupt::Block.into()) && sealed == [0; PLAINTEXT.len()], "a changed block was not refused")
}

fn ensure(holds: bool, fault: &str) -> Result<(), Fault> {
    if holds { Ok(()) } else { Err(fault.into()) }
}

fn in_words(error: Error) -> Fault {
    error.to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_back_end_that_is_compiled_in_passes() {
        super::self_test().unwrap();
    }
}
