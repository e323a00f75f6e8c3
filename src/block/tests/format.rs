//! The header's bytes, and how a reader with any bytes at all fares.

use super::*;
use proptest::prelude::*;

fn header(suite: Suite) -> BlockHeader {
    let committed = matches!(suite, Suite::XaesGcmCommit).then_some([0xcc; 32]);
    let suite = if committed.is_some() { Suite::XaesGcmCommit } else { Suite::XaesGcm };
    let mut header = BlockHeader::blank();
    header.begin(suite, 0x0102_0304, &nonce(&[0xaa; 24]));
    header.finish(&[0xbb; 16], committed.as_ref());
    header
}

#[test]
fn header_bytes_are_those_of_the_format() {
    let mut expected = vec![1, 1, 0, 0, 1, 2, 3, 4];
    expected.extend([0xaa; 24]);
    expected.extend([0xbb; 16]);
    assert_eq!(header(Suite::XaesGcm).as_bytes(), expected);
    expected[1] = 2;
    expected.extend([0xcc; 32]);
    assert_eq!(header(Suite::XaesGcmCommit).as_bytes(), expected);
}

#[test]
fn a_header_comes_back_as_it_was_written() {
    for suite in SUITES {
        let written = header(suite);
        let mut block = written.as_bytes().to_vec();
        assert_eq!(block.len(), suite.header_len());
        assert_eq!(BlockHeader::parse(&block).unwrap(), written);
        block.extend(b"ciphertext");
        assert_eq!(BlockHeader::split(&block).unwrap(), (written, &b"ciphertext"[..]));
        assert_eq!(BlockHeader::len_from(&block[..SUITE_KNOWN_AFTER_BYTES]).unwrap(), written.as_bytes().len());
        assert_eq!((written.suite(), written.aek_version()), (suite, 0x0102_0304));
        assert_eq!(written.nonce(), [0xaa; 24]);
        assert!(format!("{written:?}").contains("aaaa"));
    }
}

#[test]
fn a_header_cut_at_any_byte_is_truncated() {
    for suite in SUITES {
        let bytes = header(suite).as_bytes().to_vec();
        for got in 0..bytes.len() {
            let need = if got < SUITE_KNOWN_AFTER_BYTES { 48 } else { bytes.len() };
            assert_eq!(BlockHeader::parse(&bytes[..got]), Err(Corrupt::HeaderTruncated { need, got }.into()));
        }
    }
}

#[test]
fn other_versions_suites_and_reserved_bytes_are_refused_by_name() {
    let with = |at: usize, byte| {
        let mut bytes = header(Suite::XaesGcmCommit).as_bytes().to_vec();
        bytes[at] = byte;
        BlockHeader::parse(&bytes)
    };
    for byte in 0..=255 {
        if byte != 1 {
            assert_eq!(with(0, byte), Err(Corrupt::HeaderVersion(byte).into()));
        }
        if byte != 1 && byte != 2 {
            assert_eq!(with(1, byte), Err(Corrupt::HeaderSuite(byte).into()));
        }
        if byte != 0 {
            assert_eq!(with(2, byte), Err(Corrupt::HeaderReserved.into()));
            assert_eq!(with(3, byte), Err(Corrupt::HeaderReserved.into()));
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_header_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..100), front in 0..3_u8) {
        let mut bytes = bytes;
        if let [version, suite, zero, also_zero, ..] = &mut bytes[..] && front > 0 {
            (*version, *suite, *zero, *also_zero) = (1, front, 0, 0);
        }
        match BlockHeader::split(&bytes) {
            Ok((header, ciphertext)) => prop_assert_eq!([header.as_bytes(), ciphertext].concat(), bytes),
            Err(error) => prop_assert!(matches!(error, Error::Corrupt(_))),
        }
    }
}
