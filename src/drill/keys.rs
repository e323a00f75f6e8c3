//! Where the keys are: a search through the memory of the process that serves, for the AEKs that the drill's token gave or took and
//! for every round key of their schedules. What the engine says of itself is not asked.

use super::error::Error;
use crate::{secret::Aek, token::KekId};
use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    os::unix::fs::FileExt,
    sync::{Mutex, PoisonError},
};
use zeroize::Zeroizing;

const ROUND_KEY: usize = 16;
const ROUNDS: usize = 15;
/// Bytes of memory that are looked at at once.
const WINDOW: usize = 1 << 20;
const WORD: usize = 8;
/// Places are told apart by so many bits first, which needs no look into the set.
const SIFT_BITS: u32 = 20;

/// Round keys, by the KEK that wraps their AEKs, every byte inverted, so that knowing them is not what the search finds.
#[derive(Default)]
pub(crate) struct Keys(Mutex<HashMap<KekId, HashSet<[u8; ROUND_KEY]>>>);

impl Keys {
    /// From now on it is searched for.
    pub(crate) fn learn(&self, kek: &KekId, aek: &Aek) {
        let mut keks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = keks.entry(kek.clone()).or_default();
        let first = inverted(aek.expose());
        if !known.contains(&first) {
            known.extend(schedule(aek.expose()));
        }
    }

    /// Whether one of these KEKs is known.
    pub(crate) fn is_any(&self, keks: &[KekId]) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keks.iter().any(|kek| known.contains_key(kek))
    }

    /// In how many places of the process's writable memory one of those of these KEKs stands.
    ///
    /// # Errors
    /// When the system does not let this process read that one's memory.
    pub(crate) fn find(&self, keks: &[KekId], process: u32) -> Result<u64, Error> {
        let known: HashSet<_> = {
            let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            keks.iter().filter_map(|kek| known.get(kek)).flatten().copied().collect()
        };
        let mut sift = vec![false; 1 << SIFT_BITS];
        for key in &known {
            let plain = u32::from_ne_bytes([!key[0], !key[1], !key[2], !key[3]]);
            sift.get_mut(place(plain)).into_iter().for_each(|there| *there = true);
        }
        let path = |file: &str| format!("/proc/{process}/{file}");
        let failed = |error| Error::io(format!("searching the memory of process {process}"), error);
        let memory = File::open(path("mem")).map_err(failed)?;
        let maps = fs::read_to_string(path("maps")).map_err(failed)?;
        // Where it reads to, the search would find what it has just read elsewhere.
        let mut window = Zeroizing::new(vec![0; WINDOW]);
        let own = match process == std::process::id() {
            true => window.as_ptr() as u64..window.as_ptr() as u64 + WINDOW as u64,
            false => 0..0,
        };
        let mut found = 0;
        for (start, end) in maps.lines().filter_map(writable) {
            let mut at = start;
            while at < end {
                let len = usize::try_from(end - at).unwrap_or(WINDOW).min(WINDOW);
                let Some(window) = window.get_mut(..len) else { break };
                // A mapping that is gone by now, or that nobody can read, holds nothing.
                if memory.read_exact_at(window, at).is_ok() {
                    found +=
                        spots(window, &known, &sift).filter(|spot| !own.contains(&(at + *spot as u64))).count() as u64;
                }
                // Overlapping, so that a key across the border of two windows is seen.
                at += if len < WINDOW { len } else { len - ROUND_KEY } as u64;
            }
        }
        Ok(found)
    }
}

/// Byte by byte, because a copy of the key itself would stay on the stack, for the search to find.
fn inverted(key: &[u8]) -> [u8; ROUND_KEY] {
    let mut inverted = [0; ROUND_KEY];
    inverted.iter_mut().zip(key).for_each(|(to, from)| *to = !*from);
    inverted
}

fn place(first: u32) -> usize {
    (first.wrapping_mul(0x9e37_79b1) >> (u32::BITS - SIFT_BITS)) as usize
}

/// Where keys stand, at any alignment. Memory is mostly zero, and no key has eight of those in a row.
fn spots<'a>(
    window: &'a [u8],
    known: &'a HashSet<[u8; ROUND_KEY]>,
    sift: &'a [bool],
) -> impl Iterator<Item = usize> + 'a {
    let is_key = move |spot: &usize| {
        let Some(bytes) = window.get(*spot..).and_then(<[u8]>::first_chunk::<ROUND_KEY>) else { return false };
        let first = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        sift.get(place(first)).is_some_and(|there| *there) && known.contains(&inverted(bytes))
    };
    // A key that begins in one word covers the whole of the next.
    let words = window.chunks(WORD).skip(1).enumerate();
    let filled = words.filter(|(_, next)| next.iter().any(|byte| *byte != 0));
    filled.flat_map(|(word, _)| word * WORD..(word + 1) * WORD).filter(is_key)
}

/// Start and end of a mapping that can be written.
fn writable(line: &str) -> Option<(u64, u64)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    rest.starts_with("rw").then_some((hex(start)?, hex(end)?))
}

/// The AES-256 round keys (FIPS 197), inverted; computed on inverted words, so that none stands anywhere as it is.
fn schedule(aek: &[u8; 32]) -> Vec<[u8; ROUND_KEY]> {
    let sbox = sbox();
    let substituted = |word: u32| {
        u32::from_be_bytes(word.to_be_bytes().map(|byte| sbox.get(usize::from(byte)).copied().unwrap_or(0)))
    };
    let mut words: Vec<u32> = aek.as_chunks::<4>().0.iter().map(|word| !u32::from_be_bytes(*word)).collect();
    let mut round_constant = 1_u8;
    for n in 8..4 * ROUNDS {
        let (Some(last), Some(before)) = (words.get(n - 1).copied(), words.get(n - 8).copied()) else { break };
        let mut word = !last;
        if n % 8 == 0 {
            word = substituted(word.rotate_left(8)) ^ (u32::from(round_constant) << 24);
            round_constant <<= 1;
        } else if n % 8 == 4 {
            word = substituted(word);
        }
        // !(a ^ b) = !a ^ b
        words.push(before ^ word);
    }
    let round_key = |words: &[u32; 4]| {
        let mut key = [0; ROUND_KEY];
        key.as_chunks_mut::<4>().0.iter_mut().zip(words).for_each(|(bytes, word)| *bytes = word.to_be_bytes());
        key
    };
    words.as_chunks::<4>().0.iter().map(round_key).collect()
}

/// The AES S-box, from its definition: the inverse in GF(2^8), then the affine map.
fn sbox() -> Vec<u8> {
    let mut sbox = vec![0x63; 256];
    let (mut p, mut q) = (1_u8, 1_u8);
    loop {
        p = p ^ (p << 1) ^ if p & 0x80 != 0 { 0x1b } else { 0 };
        q ^= q << 1;
        q ^= q << 2;
        q ^= q << 4;
        q ^= if q & 0x80 != 0 { 0x09 } else { 0 };
        let affine = q ^ q.rotate_left(1) ^ q.rotate_left(2) ^ q.rotate_left(3) ^ q.rotate_left(4) ^ 0x63;
        sbox.get_mut(usize::from(p)).into_iter().for_each(|byte| *byte = affine);
        if p == 1 {
            return sbox;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::fill_random;

    /// FIPS 197, A.3.
    #[test]
    fn the_schedule_is_that_of_the_standard() {
        let aek: [u8; 32] = hex::decode("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
            .unwrap()
            .try_into()
            .unwrap();
        let last = schedule(&aek).last().unwrap().map(|byte| !byte);
        assert_eq!(hex::encode(last), "fe4890d1e6188d0b046df344706c631e");
    }

    #[test]
    fn a_key_is_found_where_it_stands_at_any_alignment_until_it_is_wiped() {
        let keys = Keys::default();
        let aek = Aek::generate().unwrap();
        let (kek, other) = (KekId::new([1]).unwrap(), KekId::new([2]).unwrap());
        keys.learn(&kek, &aek);
        let find = |kek: &KekId| keys.find(std::slice::from_ref(kek), std::process::id()).unwrap();
        let mut copy = vec![0_u8; 64];
        fill_random(&mut copy).unwrap();
        copy[11..27].copy_from_slice(&aek.expose()[16..]);
        let both = find(&kek);
        copy.fill(1);
        let alone = find(&kek);
        assert_eq!(find(&other), 0, "under another KEK it may stay");
        assert!(alone > 0 && both > alone, "{both} {alone}");
        drop(aek);
        assert_eq!(find(&kek), 0);
        drop(copy);
    }
}
