//! After a seal or open nothing of the block's key is left on the stack, however it ended.

use super::*;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use std::{collections::HashMap, os::unix::fs::FileExt};

/// How far below the test's own frame is searched: far deeper than a seal goes.
const BELOW_BYTES: usize = 96 * 1024;

/// The 15 round keys of AES-256 (FIPS 197, 5.2).
fn round_keys(key: &[u8; 32]) -> [[u8; 16]; 15] {
    let times = |mut a: u8, mut b: u8| {
        let mut product = 0;
        while b > 0 {
            product ^= if b & 1 == 1 { a } else { 0 };
            a = (a << 1) ^ (0x1b * (a >> 7));
            b >>= 1;
        }
        product
    };
    let sub = |byte: u8| {
        let inverse = (0..=255).find(|other| times(byte, *other) == 1).unwrap_or(0);
        (0..5).fold(0x63, |sum, turn| sum ^ inverse.rotate_left(turn))
    };
    let mut words: Vec<[u8; 4]> = key.as_chunks::<4>().0.to_vec();
    let mut constant = 1;
    for at in 8..60 {
        let mut word = words[at - 1];
        if at % 8 == 0 {
            word.rotate_left(1);
            word = word.map(sub);
            word[0] ^= constant;
            constant = times(constant, 2);
        } else if at % 8 == 4 {
            word = word.map(sub);
        }
        words.push(std::array::from_fn(|byte| words[at - 8][byte] ^ word[byte]));
    }
    std::array::from_fn(|round| words[4 * round..][..4].concat().try_into().unwrap())
}

#[test]
fn round_keys_are_those_of_fips_197() {
    // FIPS 197, A.3.
    let key = hex::decode("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4").unwrap();
    let keys = round_keys(&key.try_into().unwrap());
    assert_eq!(hex::encode(keys[14]), "fe4890d1e6188d0b046df344706c631e");
}

/// The stack below the caller.
#[inline(never)]
fn stack_below() -> Vec<u8> {
    let mut below = vec![0; BELOW_BYTES];
    let here = (&raw const below).addr();
    std::fs::File::open("/proc/self/mem").unwrap().read_exact_at(&mut below, (here - BELOW_BYTES) as u64).unwrap();
    below
}

/// The product of two blocks in GHASH's field (SP 800-38D, 6.3).
fn product(one: u128, other: u128) -> u128 {
    let (mut sum, mut shifted) = (0, other);
    for bit in (0..128).rev() {
        sum ^= if one >> bit & 1 == 1 { shifted } else { 0 };
        shifted = (shifted >> 1) ^ (if shifted & 1 == 1 { 0xe1 << 120 } else { 0 });
    }
    sum
}

#[test]
fn products_are_those_of_the_specification() {
    // The GCM specification, test case 2: C · H = X_1.
    let (c, h) = (0x0388_dace_60b6_a392_f328_c2b9_71b2_fe78, 0x66e9_4bd4_ef8a_2c3b_884c_fa59_ca34_2b2e);
    assert_eq!(product(c, h), 0x5e2e_c746_9170_6288_2c85_b068_5353_deb7);
}

/// The powers of GHASH's key H that a back end may keep (SP 800-38D, 6.4): plainly, and as implementations with a carry-less
/// multiplication have them: bytes reversed and shifted by one bit.
fn hash_keys(dek: &[u8; 32]) -> Vec<[u8; 16]> {
    const POWERS: usize = 48;
    let mut h = [0; 16].into();
    aes::Aes256Enc::new(dek.into()).encrypt_block(&mut h);
    let h = u128::from_be_bytes(h.into());
    let powers = std::iter::successors(Some(h), |power| Some(product(*power, h))).take(POWERS);
    let forms = |power: u128| {
        let doubled = (power << 1) ^ (if power >> 127 == 1 { 0xc200_0000_0000_0000_0000_0000_0000_0001 } else { 0 });
        [power.to_be_bytes(), power.to_le_bytes(), doubled.to_le_bytes()]
    };
    powers.flat_map(forms).collect()
}

/// What must not be left behind by a seal or open of the block with this header, and what it is called.
fn secrets(aek: &[u8; 32], header: &BlockHeader) -> HashMap<[u8; 16], String> {
    let seed = Seed::new(&header.nonce_of_block());
    let mut dek = Dek::blank();
    let k1 = Key::new(*aek).with(Backend::PureRust, &account("a"), |sealer| {
        dek.derive(sealer.schedule, &seed);
        *sealer.schedule.k1()
    });
    let mut masked = [[0; 16]; 2];
    seed.mask(&k1, &mut masked);
    let of = |what: &'static str, keys: Vec<[u8; 16]>| {
        keys.into_iter().enumerate().map(move |(number, key)| (key, format!("{what} {number}")))
    };
    of("the AEK's round key", round_keys(aek).into())
        .chain(of("the DEK's round key", round_keys(dek.expose()).into()))
        .chain(of("the DEK's hash key", hash_keys(dek.expose())))
        .chain(of("the AEK's K1, or a masked message", vec![k1, masked[0], masked[1]]))
        .collect()
}

fn assert_clean(aek: &[u8; 32], header: &BlockHeader, what: &str) {
    let stack = stack_below();
    let secrets = secrets(aek, header);
    let found: Vec<_> = found_in(&stack, &secrets).map(|(depth, name)| format!("{name}, {depth} bytes deep")).collect();
    assert!(found.is_empty(), "{what}: on the stack are {found:?}");
}

/// Which of the secrets stand on the stack, and how many bytes below the frame that called.
fn found_in<'a>(stack: &'a [u8], secrets: &'a HashMap<[u8; 16], String>) -> impl Iterator<Item = (usize, &'a String)> {
    let windows = stack.array_windows::<16>().enumerate();
    windows.filter_map(|(at, bytes)| Some((stack.len() - at, secrets.get(bytes)?)))
}

/// What the test itself left there.
fn clear_below() {
    zeroize::zeroize_stack::<{ 2 * BELOW_BYTES }>();
}

#[test]
fn nothing_of_a_key_is_left_on_the_stack() {
    let aek: [u8; 32] = std::array::from_fn(|at| (at as u8).wrapping_mul(73) ^ 0x5c);
    let (key, account) = (Key::new(aek), account("a"));
    let (address, elsewhere) = (Address::from(1_u64), Address::from(2_u64));
    for &backend in Backend::available() {
        for suite in SUITES {
            for len in [0, 100, 4096, 70_000] {
                let mut buf = vec![7; len];
                clear_below();
                let header = key.with(backend, &account, |sealer| sealer.seal_in_place(suite, 1, &address, &mut buf));
                let header = header.unwrap();
                assert_clean(&aek, &header, &format!("{backend} {suite:?}, sealed {len}"));
                let mut copy = buf.clone();
                for (place, opens) in [(&address, true), (&elsewhere, false)] {
                    copy.copy_from_slice(&buf);
                    clear_below();
                    let opened = key.with(backend, &account, |sealer| sealer.open_in_place(&header, place, &mut copy));
                    assert_clean(&aek, &header, &format!("{backend} {suite:?}, opened {len}: {opened:?}"));
                    assert_eq!(opened.is_ok(), opens);
                }
            }
        }
    }
}

/// What no call leaves on the stack by chance.
const PAINT: u8 = 0xa5;

#[inline(never)]
fn paint_below() {
    std::hint::black_box(&mut [PAINT; 2 * BELOW_BYTES]);
}

/// How many bytes below the frame that called it a call wrote to at most.
fn depth_of_writing(stack: &[u8]) -> usize {
    stack.iter().position(|byte| *byte != PAINT).map_or(0, |at| stack.len() - at)
}

/// How deep the calls below a seal and an open write, and leave key material, where nobody scrubs.
#[derive(Debug, Default)]
struct Deepest {
    written: usize,
    secret: usize,
}

impl Deepest {
    fn see(&mut self, stack: &[u8], secrets: &HashMap<[u8; 16], String>) {
        self.written = self.written.max(depth_of_writing(stack));
        self.secret = self.secret.max(found_in(stack, secrets).map(|(depth, _)| depth).max().unwrap_or(0));
    }
}

fn deepest(backend: Backend) -> Deepest {
    let aek = [7; 32];
    let (key, account, address) = (Key::new(aek), account("a"), Address::from(1_u64));
    let mut deepest = Deepest::default();
    for (suite, len) in SUITES.into_iter().flat_map(|suite| [0, 1, 100, 1000, 4096, 70_000].map(|len| (suite, len))) {
        let mut buf = vec![7; len];
        let nonce = Nonce::random().unwrap();
        let seed = Seed::new(&nonce);
        let mut header = BlockHeader::blank();
        header.begin(suite, 1, &nonce);
        let secrets = secrets(&aek, &header);
        let mut aad = Aad::blank();
        aad.put(header.prefix(), &account, &address).unwrap();
        key.with(backend, &account, |sealer| {
            paint_below();
            sealer.seal_below(&nonce, &seed, &aad, (&mut *buf).into(), &mut header).unwrap();
            deepest.see(&stack_below(), &secrets);
            paint_below();
            sealer.open_below(&header, &nonce, &seed, &aad, (&mut *buf).into()).unwrap();
            deepest.see(&stack_below(), &secrets);
        });
    }
    deepest
}

/// AWS-LC's assembly for AVX-512 leaves hash keys and round keys at the very end of its frame, so all of that must be reached.
#[test]
fn no_call_of_a_seal_or_open_reaches_deeper_than_the_scrub() {
    for &backend in Backend::available() {
        let deepest = deepest(backend);
        println!("{backend}: {deepest:?} of {} bytes", backend.scrub_bytes());
        assert!(0 < deepest.written && deepest.written <= backend.scrub_bytes(), "{backend}: {deepest:?}");
    }
}

#[test]
fn the_search_finds_a_key_that_is_left() {
    #[inline(never)]
    fn leave(secret: [u8; 16]) {
        let mut deep = [0; 16 * 1024];
        deep[16..32].copy_from_slice(&secret);
        std::hint::black_box(&deep);
    }
    leave([0xe7; 16]);
    let secrets = HashMap::from([([0xe7; 16], "the one that was left".to_owned())]);
    assert!(found_in(&stack_below(), &secrets).count() > 0);
}
