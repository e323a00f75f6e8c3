use super::*;
use keyleash::{
    Engine,
    block::Suite,
    clock::Clock,
    name::KekName,
    store::memory::MemoryStore,
    token::{Profile, scripted::ScriptedToken},
};
use std::{sync::Arc, time::Duration};
use tokio::runtime::Runtime;

const HEADER_LEN: usize = 8 + 2 + 2 + 5 + 16 + 4 + DIGEST_BYTES; // account "alice"
const BLOCK_HEADER_LEN: usize = 48;
const FULL: usize = BLOCK_HEADER_LEN + BLOCK_BYTES;

/// An engine without a token, and account alice.
struct World {
    runtime: Runtime,
    engine: Engine,
}

impl World {
    fn new() -> Self {
        Self::of_suite(Suite::XaesGcm)
    }

    fn of_suite(suite: Suite) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let engine = runtime.block_on(async {
            let (token, _script) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 7);
            let engine = Engine::builder(token, Arc::new(MemoryStore::new())).suite(suite).build().unwrap();
            let kek = KekName::new("tenants").unwrap();
            engine.create_kek(&kek, Profile::AesGcm).await.unwrap();
            for id in ["alice", "bobby"] {
                engine.create_account(&AccountId::new(id).unwrap(), &kek).await.unwrap();
            }
            engine
        });
        Self { runtime, engine }
    }

    fn keys(&self, id: &AccountId) -> Result<Keys, Failure> {
        Ok(Keys::new(self.runtime.block_on(self.engine.account(id))?, self.runtime.handle().clone()))
    }

    fn seal(&self, plain: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::new();
        let keys = self.keys(&AccountId::new("alice").unwrap()).unwrap();
        let (_, totals) = seal(&keys, &mut &*plain, &mut sealed, |_| Ok(())).unwrap();
        assert_eq!(totals.plaintext_bytes, plain.len() as u64);
        sealed
    }

    /// The outcome, and what was written before it.
    fn open(&self, sealed: &[u8]) -> (Result<(), Failure>, Vec<u8>) {
        let (mut plain, mut input) = (Vec::new(), sealed);
        let mut all = || {
            let file = FileHeader::read(&mut input)?;
            open(&file, &self.keys(&file.account)?, &mut input, &mut plain, |_| Ok(()))?;
            Ok(())
        };
        let outcome = all();
        (outcome, plain)
    }

    /// Refused with these words, after `written` bytes of `plain` and no other.
    fn refuses(&self, sealed: &[u8], words: &str, plain: &[u8], written: usize) {
        let (outcome, out) = self.open(sealed);
        let Err(Failure::Engine(Error::Corrupt(Corrupt::File(what)))) = outcome else {
            panic!("expected {words:?}, got {outcome:?}");
        };
        assert!(what.contains(words), "expected {words:?}, got {what:?}");
        assert!(out == plain[..written], "{what}: wrote {} bytes instead of {written}", out.len());
    }
}

fn plain(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// Where block `index` begins, if all before it are full.
fn begin(index: usize) -> usize {
    HEADER_LEN + index * FULL
}

#[test]
fn every_length_comes_back_byte_for_byte_in_the_fewest_blocks() {
    for suite in [Suite::XaesGcm, Suite::XaesGcmCommit] {
        let world = World::of_suite(suite);
        let full = BLOCK_BYTES;
        for len in [0, 1, 47, 48, full - 1, full, full + 1, 2 * full - 1, 2 * full, 2 * full + 1, 5 * full] {
            let plain = plain(len);
            let sealed = world.seal(&plain);
            let blocks = len.div_ceil(full).max(1);
            assert_eq!(sealed.len(), HEADER_LEN + blocks * suite.header_len() + len);
            let (outcome, opened) = world.open(&sealed);
            outcome.unwrap();
            assert!(opened == plain, "{len} bytes");
        }
    }
}

#[test]
fn reads_that_come_in_drips_make_the_same_blocks() {
    struct Drip<'a>(&'a [u8]);
    impl Read for Drip<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let len = buf.len().min(self.0.len()).min(1 + self.0.len() % 977);
            self.0.read(&mut buf[..len])
        }
    }
    let world = World::new();
    let plain = plain(2 * BLOCK_BYTES + 5);
    let keys = world.keys(&AccountId::new("alice").unwrap()).unwrap();
    let mut sealed = Vec::new();
    seal(&keys, &mut Drip(&plain), &mut sealed, |_| Ok(())).unwrap();
    assert_eq!(sealed.len(), begin(3) - BLOCK_BYTES + 5);
    let (mut input, mut opened) = (io::BufReader::with_capacity(7, Drip(&sealed)), Vec::new());
    let file = FileHeader::read(&mut input).unwrap();
    open(&file, &keys, &mut input, &mut opened, |_| Ok(())).unwrap();
    assert!(opened == plain);
}

#[test]
fn the_format_is_as_written_down() {
    let sealed = World::new().seal(b"hello");
    assert_eq!(sealed[..17], *b"KEYLEASH\0\x02\0\x05alice");
    assert_eq!(sealed[33..37], [0, 1, 0, 0]);
    assert_eq!(sealed[37..53], Sha256::digest(&sealed[..37])[..16]);
    assert_eq!(sealed[53..61], [1, 1, 0, 0, 0, 0, 0, 1]);
    assert_eq!(sealed.len(), 53 + 48 + 5);
}

/// As releases wrote it before the header had a digest: the same but for two fields.
fn of_version_1(sealed: &[u8]) -> Vec<u8> {
    let mut old = [&sealed[..37], &sealed[53..]].concat();
    old[9] = 1;
    old
}

#[test]
fn a_file_of_version_1_opens_for_ever() {
    let world = World::new();
    let plain = plain(BLOCK_BYTES + 100);
    let old = of_version_1(&world.seal(&plain));
    let (outcome, opened) = world.open(&old);
    outcome.unwrap();
    assert!(opened == plain);
    world.refuses(&old[..30], "is cut short in its own header", &plain, 0);
    let mut renamed = old;
    renamed[12..17].copy_from_slice(b"carol");
    assert!(matches!(world.open(&renamed).0, Err(Failure::Engine(Error::NotFound(_)))));
}

#[test]
fn a_file_cut_at_any_of_its_first_200_bytes_is_refused_as_cut_short() {
    let world = World::new();
    let plain = plain(2 * BLOCK_BYTES + 100);
    let sealed = world.seal(&plain);
    for end in 0..200 {
        world.refuses(&sealed[..end], "is cut short", &plain, 0);
    }
}

#[test]
fn a_file_cut_at_or_beside_a_block_boundary_is_refused_as_cut_short() {
    let world = World::new();
    for len in [3 * BLOCK_BYTES + 100, 3 * BLOCK_BYTES] {
        let plain = plain(len);
        let sealed = world.seal(&plain);
        for index in 1..=2 {
            // The block before the boundary is not the last one, so it is held back until that is known.
            let whole = (index - 1) * BLOCK_BYTES;
            world.refuses(&sealed[..begin(index) - 1], "is cut short in block", &plain, whole);
            world.refuses(&sealed[..begin(index)], "and nothing follows", &plain, whole);
            for into in [1, 2, 47, 48, 49] {
                world.refuses(&sealed[..begin(index) + into], "it is cut short in", &plain, whole + BLOCK_BYTES);
            }
        }
        world.refuses(
            &sealed[..sealed.len() - 1],
            "is cut short in block",
            &plain,
            len.div_ceil(BLOCK_BYTES) * BLOCK_BYTES - BLOCK_BYTES,
        );
    }
}

#[test]
fn blocks_that_were_swapped_repeated_or_dropped_are_refused_as_out_of_order() {
    let world = World::new();
    let plain = plain(4 * BLOCK_BYTES + 100);
    let sealed = world.seal(&plain);
    let block = |index: usize| &sealed[begin(index)..begin(index + 1).min(sealed.len())];
    let file = |order: &[usize]| {
        [&sealed[..HEADER_LEN], &order.iter().map(|index| block(*index)).collect::<Vec<_>>().concat()].concat()
    };
    assert!(file(&[0, 1, 2, 3, 4]) == sealed);
    let cases: [(&[usize], &str, usize); 6] = [
        (&[1, 0, 2, 3, 4], "block 1 stands in the place of block 0", 0),
        (&[0, 2, 1, 3, 4], "block 2 stands in the place of block 1", 1),
        (&[0, 1, 1, 2, 3, 4], "block 1 stands in the place of block 2", 2),
        (&[0, 1, 3, 4], "block 3 stands in the place of block 2", 2),
        (&[0, 1, 2, 4], "block 4 stands in the place of block 3", 3),
        (&[1, 2, 3, 4], "block 1 stands in the place of block 0", 0),
    ];
    for (order, words, whole) in cases {
        world.refuses(&file(order), words, &plain, whole * BLOCK_BYTES);
    }
}

#[test]
fn blocks_of_another_file_or_account_are_refused() {
    let world = World::new();
    let plain = plain(2 * BLOCK_BYTES + 100);
    let (one, other) = (world.seal(&plain), world.seal(&plain));
    let spliced = [&one[..begin(1)], &other[begin(1)..]].concat();
    world.refuses(&spliced, "comes from another file", &plain, BLOCK_BYTES);
    let mut renamed = one.clone();
    let mut rename = |to: &[u8]| {
        renamed[12..17].copy_from_slice(to);
        let digest = digest(&renamed[..37]);
        renamed[37..53].copy_from_slice(&digest);
        renamed.clone()
    };
    world.refuses(&rename(b"bobby"), "block 0 is not what was sealed there", &plain, 0);
    let renamed = rename(b"carol");
    assert!(matches!(world.open(&renamed).0, Err(Failure::Engine(Error::NotFound(_)))));
}

#[test]
fn bytes_behind_the_end_are_refused() {
    let world = World::new();
    for len in [0, 100, BLOCK_BYTES, BLOCK_BYTES + 100] {
        let plain = plain(len);
        let sealed = world.seal(&plain);
        let whole = len.div_ceil(BLOCK_BYTES).max(1) * BLOCK_BYTES - BLOCK_BYTES;
        for behind in [b"\n".as_slice(), &[0; 100], &sealed] {
            world.refuses(&[&sealed, behind].concat(), "has bytes behind its end", &plain, whole);
        }
    }
}

#[test]
fn a_flipped_bit_in_the_file_header_is_refused() {
    let world = World::new();
    let plain = plain(100);
    let sealed = world.seal(&plain);
    for bit in 0..8 * HEADER_LEN {
        let mut flipped = sealed.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let (outcome, out) = world.open(&flipped);
        let failure = outcome.unwrap_err();
        let expected = match bit / 8 {
            0..8 => "does not begin with KEYLEASH",
            8..10 => "has format version",
            10..12 => "", // another length: whatever then stands where the account was
            _ => "its own header was changed",
        };
        assert_eq!(failure.kind(), "corrupt", "bit {bit}: {failure}");
        assert!(failure.to_string().contains(expected), "bit {bit}: {failure}");
        assert!(out.is_empty(), "bit {bit}");
    }
}

#[test]
fn a_flipped_bit_in_a_block_is_refused_and_nothing_from_there_on_is_written() {
    let world = World::new();
    let plain = plain(BLOCK_BYTES + 100);
    let sealed = world.seal(&plain);
    for bit in 0..8 * BLOCK_HEADER_LEN {
        let mut flipped = sealed.clone();
        flipped[begin(1) + bit / 8] ^= 1 << (bit % 8);
        world.refuses(&flipped, "block 1", &plain, BLOCK_BYTES);
    }
    for at in [begin(0) + BLOCK_HEADER_LEN, begin(1) - 1] {
        let mut flipped = sealed.clone();
        flipped[at] ^= 1;
        world.refuses(&flipped, "block 0", &plain, 0);
    }
}

#[test]
fn what_is_no_sealed_file_is_said_to_be_none() {
    let world = World::new();
    for bytes in [b"#!/bin/sh\n".as_slice(), b"KEYLEASX", b"P"] {
        world.refuses(bytes, "does not begin with KEYLEASH", &[], 0);
    }
    world.refuses(b"KEYLEASH\0\x01\xff\xff", "names an account of 65535 bytes", &[], 0);
    let rest = [[0; FILE_ID_BYTES].as_slice(), &[0, 1, 0, 0]].concat();
    for account in [b"\0\x01\xff".as_slice(), b"\0\0"] {
        world.refuses(&[b"KEYLEASH\0\x01", account, &rest].concat(), "names an account that cannot be", &[], 0);
    }
}

#[test]
fn the_work_can_be_stopped_between_two_blocks() {
    let world = World::new();
    let keys = world.keys(&AccountId::new("alice").unwrap()).unwrap();
    let mut blocks = 0;
    let stopped = seal(&keys, &mut io::repeat(0), &mut io::sink(), |_| {
        blocks += 1;
        if blocks == 3 { Err(Failure::Interrupted(2)) } else { Ok(()) }
    });
    assert_eq!((stopped.unwrap_err().kind(), blocks), ("interrupted", 3));
}
