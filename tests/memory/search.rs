//! The search through the process's memory.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

const ROUND_KEY: usize = 16;
const ROUNDS: usize = 15;
/// Of what [`Needle::of_value`] takes.
#[cfg(feature = "secrets")]
pub(crate) const VALUE_BYTES: usize = ROUNDS * ROUND_KEY;

/// An AEK and its AES-256 round keys (FIPS 197), every byte inverted, so that holding them is not what the search finds.
pub(crate) struct Needle([[u8; ROUND_KEY]; ROUNDS]);

impl Needle {
    pub(crate) fn of(aek: &[u8; 32]) -> Self {
        let sbox = sbox();
        let not = |word: [u8; 4]| word.map(|byte| !byte);
        // The schedule is computed on inverted words: each is inverted for a moment only, in registers.
        let mut words: Vec<[u8; 4]> = aek.chunks(4).map(|word| not(word.try_into().unwrap())).collect();
        let mut round_constant = 1_u8;
        for n in 8..4 * ROUNDS {
            let mut word = not(words[n - 1]);
            if n % 8 == 0 {
                word.rotate_left(1);
                word = word.map(|byte| sbox[usize::from(byte)]);
                word[0] ^= round_constant;
                round_constant <<= 1;
            } else if n % 8 == 4 {
                word = word.map(|byte| sbox[usize::from(byte)]);
            }
            // !(a ^ b) = !a ^ b
            let before = words[n - 8];
            words.push([0, 1, 2, 3].map(|byte| before[byte] ^ word[byte]));
        }
        let mut keys = [[0; ROUND_KEY]; ROUNDS];
        for (key, words) in keys.iter_mut().zip(words.chunks(4)) {
            key.copy_from_slice(words.concat().as_slice());
        }
        Self(keys)
    }

    /// Of a value that is no AEK, in pieces.
    #[cfg(feature = "secrets")]
    pub(crate) fn of_value(value: &[u8]) -> Self {
        let mut pieces = [[0; ROUND_KEY]; ROUNDS];
        for (inverted, byte) in pieces.as_flattened_mut().iter_mut().zip(value) {
            *inverted = !*byte;
        }
        Self(pieces)
    }

    /// How many round keys stand somewhere in writable memory, at any alignment.
    pub(crate) fn find(&self) -> usize {
        let memory = File::open("/proc/self/mem").unwrap();
        // Where it reads to, the search would find what it has just read elsewhere.
        let mut window = vec![0; 1 << 20];
        let own = window.as_ptr() as u64..window.as_ptr() as u64 + window.len() as u64;
        let mut found = 0;
        for (start, end) in writable() {
            let mut at = start;
            while at < end {
                let len = window.len().min((end - at) as usize);
                if memory.read_exact_at(&mut window[..len], at).is_ok() {
                    let spots = self.spots(&window[..len]);
                    for spot in spots.into_iter().map(|spot| at + spot as u64).filter(|spot| !own.contains(spot)) {
                        eprintln!("found at {spot:#x} in {}", mapping(spot));
                        found += 1;
                    }
                }
                // Overlapping, so that a key across the border of two windows is seen.
                at += if len < window.len() { len as u64 } else { (len - ROUND_KEY) as u64 };
            }
        }
        window.fill(0);
        found
    }

    fn spots(&self, window: &[u8]) -> Vec<usize> {
        // The inverted first byte of each key: most places are passed over by one look.
        let mut firsts = [false; 256];
        self.0.iter().for_each(|key| firsts[usize::from(!key[0])] = true);
        let same =
            |bytes: &[u8]| self.0.iter().any(|key| bytes.iter().zip(key).all(|(byte, inverted)| *byte == !inverted));
        let places = 0..window.len().saturating_sub(ROUND_KEY - 1);
        places.filter(|at| firsts[usize::from(window[*at])] && same(&window[*at..*at + ROUND_KEY])).collect()
    }
}

/// The AES S-box, from its definition: the inverse in GF(2^8), then the affine map.
fn sbox() -> [u8; 256] {
    let mut sbox = [0x63; 256];
    let (mut p, mut q) = (1_u8, 1_u8);
    loop {
        p = p ^ (p << 1) ^ if p & 0x80 != 0 { 0x1b } else { 0 };
        q ^= q << 1;
        q ^= q << 2;
        q ^= q << 4;
        q ^= if q & 0x80 != 0 { 0x09 } else { 0 };
        sbox[usize::from(p)] = q ^ q.rotate_left(1) ^ q.rotate_left(2) ^ q.rotate_left(3) ^ q.rotate_left(4) ^ 0x63;
        if p == 1 {
            return sbox;
        }
    }
}

/// What the mapping at an address is, for the message.
fn mapping(at: u64) -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let holds = |line: &&str| {
        let range = line.split(' ').next().unwrap_or_default();
        let ends = range.split_once('-').map(|(a, b)| (u64::from_str_radix(a, 16), u64::from_str_radix(b, 16)));
        matches!(ends, Some((Ok(start), Ok(end))) if (start..end).contains(&at))
    };
    maps.lines().find(holds).unwrap_or("?").to_owned()
}

fn writable() -> Vec<(u64, u64)> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let parse = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        rest.starts_with("rw").then_some((hex(start)?, hex(end)?))
    };
    maps.lines().filter_map(parse).collect()
}

/// Key memory is one or more mappings that are locked (`lo`), not dumped (`dd`) and wiped on fork (`wf`).
pub(crate) fn assert_locked_undumped_and_wiped_on_fork() {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let flags = smaps.lines().filter_map(|line| line.strip_prefix("VmFlags: "));
    let has = |flags: &str, flag: &str| flags.split_whitespace().any(|one| one == flag);
    let locked = flags.filter(|flags| has(flags, "dd") && has(flags, "wf") && has(flags, "lo")).count();
    assert!(locked > 0, "no mapping is locked, left out of dumps and wiped on fork");
}
