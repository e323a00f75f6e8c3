//! The back ends make the same bytes, in place and into another buffer; and the limits hold in both.

use super::*;
use proptest::prelude::*;

const SEALED_BYTES_MAX: usize = 70_000;

fn any_address() -> impl Strategy<Value = Address> {
    prop::collection::vec(any::<u8>(), 0..=ADDRESS_BYTES_MAX).prop_map(|bytes| Address::new(&bytes).unwrap())
}

/// Lengths around what ciphers treat apart (blocks, strides of 8 and 16 blocks), and any others.
fn any_len() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..600_usize,
        (0..270_usize, 0..3_usize).prop_map(|(n, d)| (n * 256 + d).saturating_sub(1)),
        0..=SEALED_BYTES_MAX
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn back_ends_make_the_same_blocks_and_open_each_others(
        aek: [u8; 32],
        nonce_bytes: [u8; 24],
        version: u32,
        committed: bool,
        id in "[a-zA-Z0-9é/_.-]{1,120}",
        address in any_address(),
        len in any_len(),
        seed: u8,
        flip: prop::sample::Index,
    ) {
        let suite = SUITES[usize::from(committed)];
        let plaintext: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect();
        let (key, account) = (Key::new(aek), account(&id));
        let mut made = Vec::new();
        for &backend in Backend::available() {
            key.with(backend, &account, |sealer| {
                let mut in_place = plaintext.clone();
                let buf = in_place.as_mut_slice().into();
                let header = sealer.seal_with(nonce(&nonce_bytes), suite, version, &address, buf).unwrap();
                let mut into = vec![0x55; len];
                let pair = InOutBuf::new(&plaintext, &mut into).unwrap();
                let also = sealer.seal_with(nonce(&nonce_bytes), suite, version, &address, pair).unwrap();
                assert_eq!((header, &in_place), (also, &into));
                made.push((header, in_place));
            });
        }
        prop_assert!(made.windows(2).all(|pair| pair[0] == pair[1]));
        let (header, ciphertext) = made.remove(0);
        for &backend in Backend::available() {
            key.with(backend, &account, |sealer| {
                let mut in_place = ciphertext.clone();
                sealer.open_in_place(&header, &address, &mut in_place).unwrap();
                let mut into = vec![0x55; len];
                sealer.open_into(&header, &address, &ciphertext, &mut into).unwrap();
                assert_eq!((&in_place, &into), (&plaintext, &plaintext));
                if len > 0 {
                    let mut changed = ciphertext.clone();
                    changed[flip.index(len)] ^= 0x10;
                    let kept = changed.clone();
                    assert_eq!(sealer.open_into(&header, &address, &changed, &mut into), Err(Corrupt::Block.into()));
                    assert_eq!((into, &changed), (vec![0; len], &kept), "output zero, input as it was");
                    assert_eq!(sealer.open_in_place(&header, &address, &mut changed), Err(Corrupt::Block.into()));
                    assert_eq!(changed, vec![0; len]);
                }
            });
        }
    }
}

#[test]
fn every_length_up_to_a_kilobyte_is_the_same_in_every_back_end() {
    let (key, account, address) = (Key::new([5; 32]), account("a"), Address::from(1_u64));
    for len in 0..=1100 {
        let seal = |backend| {
            key.with(backend, &account, |sealer| {
                let mut buf = vec![3; len];
                let view = buf.as_mut_slice().into();
                let header = sealer.seal_with(nonce(&[6; 24]), Suite::XaesGcm, 1, &address, view).unwrap();
                (header, buf)
            })
        };
        let first = seal(Backend::PureRust);
        assert!(Backend::available().iter().all(|backend| seal(*backend) == first), "{len} bytes");
    }
}

#[test]
fn a_block_over_64_mib_is_invalid_and_its_buffer_untouched() {
    let (key, account, address) = (Key::new([5; 32]), account("a"), Address::from(1_u64));
    let mut buf = vec![7; BLOCK_BYTES_MAX + 1];
    for &backend in Backend::available() {
        key.with(backend, &account, |sealer| {
            let error = sealer.seal_in_place(Suite::XaesGcm, 1, &address, &mut buf).unwrap_err();
            assert!(matches!(&error, Error::TooLong { len: 67_108_865, max: 67_108_864, .. }));
            let header = sealer.seal_in_place(Suite::XaesGcm, 1, &address, &mut []).unwrap();
            assert!(matches!(sealer.open_in_place(&header, &address, &mut buf), Err(Error::TooLong { .. })));
            assert!(buf.iter().all(|byte| *byte == 7));
        });
    }
}

#[test]
fn a_block_of_64_mib_comes_back() {
    let (key, account, address) = (Key::new([5; 32]), account("a"), Address::from(1_u64));
    let mut buf = vec![7; BLOCK_BYTES_MAX];
    key.with(Backend::default(), &account, |sealer| {
        let header = sealer.seal_in_place(Suite::XaesGcmCommit, 1, &address, &mut buf).unwrap();
        assert!(buf.iter().any(|byte| *byte != 7));
        sealer.open_in_place(&header, &address, &mut buf).unwrap();
        assert!(buf.iter().all(|byte| *byte == 7));
    });
}

#[test]
fn buffers_of_different_lengths_are_invalid_and_untouched() {
    let (key, account, address) = (Key::new([5; 32]), account("a"), Address::from(1_u64));
    key.with(Backend::default(), &account, |sealer| {
        let mut out = [0x55; 4];
        let sealed = sealer.seal_into(Suite::XaesGcm, 1, &address, &[1; 5], &mut out);
        assert!(matches!(sealed, Err(Error::Invalid(what)) if what.contains('4') && what.contains('5')));
        let header = sealer.seal_in_place(Suite::XaesGcm, 1, &address, &mut [1; 5]).unwrap();
        assert!(matches!(sealer.open_into(&header, &address, &[1; 5], &mut out), Err(Error::Invalid(_))));
        assert_eq!(out, [0x55; 4]);
    });
}
