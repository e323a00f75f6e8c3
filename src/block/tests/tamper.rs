//! The tamper matrix: whatever is changed, moved, swapped or cut is refused with its own error, and the output is zero.

use super::*;

const VERSION: u32 = 7;
const PLAINTEXT: &[u8] = b"a block that nobody may change, long enough to be more than one AES block";

struct Block {
    key: Key,
    account: AccountId,
    address: Address,
    header: BlockHeader,
    ciphertext: Vec<u8>,
}

fn sealed(suite: Suite) -> Block {
    let (key, account, address) = (Key::new([9; 32]), account("alice"), Address::from(7_u64));
    let mut ciphertext = PLAINTEXT.to_vec();
    let header = key.with(Backend::default(), &account, |sealer| {
        sealer.seal_in_place(suite, VERSION, &address, &mut ciphertext).unwrap()
    });
    Block { key, account, address, header, ciphertext }
}

impl Block {
    /// Opens with every back end, in place and into another buffer; all must agree, and show plaintext only on success.
    fn open(&self) -> Result<()> {
        let mut results = Vec::new();
        for &backend in Backend::available() {
            self.key.with(backend, &self.account, |sealer| {
                let mut in_place = self.ciphertext.clone();
                let mut into = vec![0x55; self.ciphertext.len()];
                for (result, output) in [
                    (sealer.open_in_place(&self.header, &self.address, &mut in_place), in_place),
                    (sealer.open_into(&self.header, &self.address, &self.ciphertext, &mut into), into),
                ] {
                    match &result {
                        Ok(()) => assert_eq!(output, PLAINTEXT),
                        Err(_) => assert!(output.iter().all(|byte| *byte == 0), "{backend} left bytes in the output"),
                    }
                    results.push(result);
                }
            });
        }
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{results:?}");
        results.remove(0)
    }

    /// Opens what is read from `header`.
    fn open_with(&mut self, header: &[u8]) -> Result<()> {
        self.header = BlockHeader::parse(header)?;
        self.open()
    }

    fn header_bytes(&self) -> Vec<u8> {
        self.header.as_bytes().to_vec()
    }
}

#[test]
fn an_untouched_block_opens() {
    for suite in SUITES {
        sealed(suite).open().unwrap();
    }
}

#[test]
fn every_bit_of_the_header_is_refused_with_its_own_error() {
    for suite in SUITES {
        let committed = suite == Suite::XaesGcmCommit;
        for bit in 0..suite.header_len() * 8 {
            let mut block = sealed(suite);
            let mut bytes = block.header_bytes();
            let at = bit / 8;
            bytes[at] ^= 1 << (bit % 8);
            let expected = match at {
                0 => Corrupt::HeaderVersion(bytes[0]),
                1 => Corrupt::HeaderSuite(bytes[1]),
                2..4 => Corrupt::HeaderReserved,
                4..8 | 32..48 => Corrupt::Block,
                8..32 if !committed => Corrupt::Block,
                _ => Corrupt::Commitment,
            };
            assert_eq!(block.open_with(&bytes), Err(expected.into()), "{suite:?}, bit {bit}");
        }
    }
}

#[test]
fn every_bit_of_the_ciphertext_is_refused() {
    for suite in SUITES {
        let mut block = sealed(suite);
        for bit in 0..block.ciphertext.len() * 8 {
            block.ciphertext[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(block.open(), Err(Corrupt::Block.into()), "{suite:?}, bit {bit}");
            block.ciphertext[bit / 8] ^= 1 << (bit % 8);
        }
        block.open().unwrap();
    }
}

#[test]
fn a_truncated_or_lengthened_ciphertext_is_refused() {
    for suite in SUITES {
        let mut block = sealed(suite);
        let whole = block.ciphertext.clone();
        for len in 0..whole.len() {
            block.ciphertext = whole[..len].to_vec();
            assert_eq!(block.open(), Err(Corrupt::Block.into()), "{suite:?}, cut to {len}");
        }
        block.ciphertext = [&whole[..], &[0]].concat();
        assert_eq!(block.open(), Err(Corrupt::Block.into()));
    }
}

#[test]
fn a_block_moved_to_another_account_or_address_is_refused() {
    for suite in SUITES {
        for other in ["bob", "alic", "alice "] {
            let moved = Block { account: account(other), ..sealed(suite) };
            assert_eq!(moved.open(), Err(Corrupt::Block.into()));
        }
        for other in [Address::from(8_u64), Address::from(7_u128), Address::new(b"").unwrap()] {
            let moved = Block { address: other, ..sealed(suite) };
            assert_eq!(moved.open(), Err(Corrupt::Block.into()));
        }
    }
}

#[test]
fn a_block_under_another_aek_is_refused() {
    for (suite, expected) in [(Suite::XaesGcm, Corrupt::Block), (Suite::XaesGcmCommit, Corrupt::Commitment)] {
        let swapped = Block { key: Key::new([8; 32]), ..sealed(suite) };
        assert_eq!(swapped.open(), Err(expected.into()));
    }
}

#[test]
fn a_block_relabelled_with_another_aek_version_is_refused() {
    // Even where two versions had one AEK.
    for suite in SUITES {
        let mut block = sealed(suite);
        let mut bytes = block.header_bytes();
        bytes[4..8].copy_from_slice(&(VERSION + 1).to_be_bytes());
        assert_eq!(block.open_with(&bytes), Err(Corrupt::Block.into()));
    }
}

#[test]
fn exchanged_headers_and_ciphertexts_are_refused() {
    for suite in SUITES {
        let (one, two) = (sealed(suite), sealed(suite));
        let exchanged = Block { header: two.header, ..one };
        assert_eq!(exchanged.open(), Err(Corrupt::Block.into()));
    }
}

#[test]
fn one_suite_is_not_taken_for_the_other() {
    // A committed block whose header is cut to look plain: the suite is in the additional data.
    let mut block = sealed(Suite::XaesGcmCommit);
    let mut bytes = block.header_bytes();
    bytes[1] = 1;
    assert_eq!(block.open_with(&bytes[..48]), Err(Corrupt::Block.into()));
    assert_eq!(block.open_with(&bytes), Err(Corrupt::Block.into()));
    // A plain block that pretends to be committed: too short by itself, and no commitment of anybody.
    let mut block = sealed(Suite::XaesGcm);
    let mut bytes = block.header_bytes();
    bytes[1] = 2;
    assert_eq!(block.open_with(&bytes), Err(Corrupt::HeaderTruncated { need: 80, got: 48 }.into()));
    bytes.extend([0; 32]);
    assert_eq!(block.open_with(&bytes), Err(Corrupt::Commitment.into()));
    // Even with the right commitment, which whoever holds the AEK could compute, the tag is that of another suite.
    let commitment = block.key.with(Backend::PureRust, &block.account, |sealer| {
        kdf::commitment(sealer.schedule, &block.header.nonce_of_block())
    });
    bytes[48..].copy_from_slice(&commitment);
    assert_eq!(block.open_with(&bytes), Err(Corrupt::Block.into()));
}
