//! redb's header: which of its two commit slots counts. One bit says so, and no checksum covers it.
//!
//! Layout as in redb's design document, file format 3: flags at byte 9, slots of 128 bytes from bytes 64 and 192 on, each with
//! the number of its commit at byte 104 and the XXH3 (128 bits) of what is before it at byte 112; integers little-endian.

/// redb reads and writes it as one.
pub(super) const HEADER_BYTES: usize = 320;
const FLAGS_AT: usize = 9;
const SECOND_SLOT_COUNTS: u8 = 1;
/// Both phases of the commit were synced in their order, so that redb looks at the slot that counts alone.
const TWO_PHASES: u8 = 4;

const SLOTS_AT: [usize; 2] = [64, 192];
const SLOT_BYTES: usize = 128;
/// Of these the checksum is.
const CHECKED_WORDS: usize = 14;
const NUMBER_AT: usize = 13;

/// Has redb look for the newer commit where the older one counts: a crash came between the two phases of a commit, or the one
/// bit is damaged, and what counts is a state from before a commit that was acknowledged. redb then takes the newer commit if
/// every page of it is whole, and else the older one.
pub(super) fn mend(header: &mut [u8]) {
    let Some(flags) = header.get(FLAGS_AT).copied() else { return };
    let [first, second] = SLOTS_AT.map(|at| commit_number(header.get(at..)?.first_chunk()?));
    let (counts, other) = if flags & SECOND_SLOT_COUNTS == 0 { (first, second) } else { (second, first) };
    // A slot that is damaged says nothing of its age.
    if let (Some(counts), Some(other), Some(flags)) = (counts, other, header.get_mut(FLAGS_AT))
        && other > counts
    {
        *flags &= !TWO_PHASES;
    }
}

/// The number of a slot's commit, if the slot is whole.
fn commit_number(slot: &[u8; SLOT_BYTES]) -> Option<u64> {
    let (words, _) = slot.as_chunks::<8>();
    let words: &[[u8; 8]; CHECKED_WORDS + 2] = words.try_into().ok()?;
    let words = words.map(u64::from_le_bytes);
    let (checked, checksum) = words.split_first_chunk::<CHECKED_WORDS>()?;
    (checksum == xxh3(checked)).then(|| checked.get(NUMBER_AT).copied())?
}

/// XXH3 with 128 bits, low half first, of exactly 112 bytes: its algorithm for 97 to 128 bytes, with its own secret and seed 0.
fn xxh3(data: &[u64; CHECKED_WORDS]) -> [u64; 2] {
    const PRIMES: [u64; 4] =
        [0x9e37_79b1_85eb_ca87, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0x85eb_ca77_c2b2_ae63];
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n] = *data;
    let len = (CHECKED_WORDS * 8) as u64;
    let (mut low, mut high) = (PRIMES[0].wrapping_mul(len), 0_u64);
    let rounds = [[g, h, g, h], [e, f, i, j], [c, d, k, l], [a, b, m, n]];
    for ([one, two, three, four], [s, t, u, v]) in rounds.into_iter().zip(SECRET) {
        low = low.wrapping_add(folded(one ^ s, two ^ t)) ^ three.wrapping_add(four);
        high = high.wrapping_add(folded(three ^ u, four ^ v)) ^ one.wrapping_add(two);
    }
    let sum = low.wrapping_mul(PRIMES[0]).wrapping_add(high.wrapping_mul(PRIMES[3]));
    let sum = sum.wrapping_add(len.wrapping_mul(PRIMES[1]));
    [avalanche(low.wrapping_add(high)), avalanche(sum).wrapping_neg()]
}

fn folded(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    product as u64 ^ (product >> 64) as u64
}

fn avalanche(mut x: u64) -> u64 {
    x ^= x >> 37;
    x = x.wrapping_mul(0x1656_6791_9e37_79f9);
    x ^ (x >> 32)
}

/// The first 128 bytes of XXH3's secret, in the order of the rounds.
const SECRET: [[u64; 4]; 4] = [
    [0x3f34_9ce3_3f76_faa8, 0x1d4f_0bc7_c7bb_dcf9, 0x3159_b4cd_4be0_518a, 0x6473_78d9_c97e_9fc8],
    [0xcb00_c391_bb52_283c, 0xa32e_531b_8b65_d088, 0x4ef9_0da2_9748_6471, 0xd8ac_dea9_46ef_1938],
    [0x78e5_c0cc_4ee6_79cb, 0x2172_ffcc_7dd0_5a82, 0x8e24_43f7_7446_08b8, 0x4c26_3a81_e690_35e0],
    [0xbe4b_a423_396c_feb8, 0x1cad_21f7_2c81_017c, 0xdb97_9083_e96d_d4de, 0x1f67_b3b7_a4a4_4072],
];

#[cfg(test)]
mod tests {
    use super::*;
    use ::redb::{Builder, TableDefinition};
    use std::fs;

    #[test]
    fn the_commit_that_counts_is_the_newer_one_and_a_damaged_slot_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.redb");
        let database = Builder::new().create(&path).unwrap();
        for n in 0..3 {
            let mut transaction = database.begin_write().unwrap();
            transaction.set_quick_repair(true); // which commits in two phases
            transaction.open_table(TableDefinition::<u64, u64>::new("x")).unwrap().insert(n, n).unwrap();
            transaction.commit().unwrap();
        }
        let whole = fs::read(&path).unwrap()[..HEADER_BYTES].to_vec();
        let mended = |header: &[u8]| {
            let mut header = header.to_vec();
            mend(&mut header);
            header
        };
        assert_eq!(whole[FLAGS_AT] & TWO_PHASES, TWO_PHASES);
        assert_eq!(mended(&whole), whole);
        let mut older = whole.clone();
        older[FLAGS_AT] ^= SECOND_SLOT_COUNTS;
        assert_eq!(mended(&older)[FLAGS_AT], older[FLAGS_AT] & !TWO_PHASES);
        for at in SLOTS_AT {
            for bit in 0..SLOT_BYTES * 8 {
                let mut slot: [u8; SLOT_BYTES] = whole[at..at + SLOT_BYTES].try_into().unwrap();
                assert!(commit_number(&slot).is_some());
                slot[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(commit_number(&slot), None, "bit {bit} of the slot at {at}");
            }
        }
    }
}
