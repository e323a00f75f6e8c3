//! A look at the times of the block path without lease and index; asserts nothing. `benches/` has the real ones.

use super::*;
use crate::clock::Clock;
use aws_lc_rs::aead::{AES_256_GCM, Aad as LcAad, LessSafeKey, Nonce as LcNonce, UnboundKey};
use std::{hint::black_box, time::Duration};

const ROUND: Duration = Duration::from_millis(20);
const ROUNDS: usize = 15;

/// Nanoseconds of one call: the median of rounds.
fn median_ns(mut work: impl FnMut()) -> f64 {
    let clock = Clock::default();
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (start, mut calls) = (clock.now(), 0_u32);
            loop {
                (0..16).for_each(|_| work());
                calls += 16;
                let spent = clock.now().since(start);
                if spent > ROUND {
                    return spent.as_nanos() as f64 / f64::from(calls);
                }
            }
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// `cargo test --release --lib measure -- --ignored --nocapture`
#[test]
#[ignore = "prints times, asserts nothing"]
fn measure() {
    let (key, account, address) = (Key::new([5; 32]), account("tenant-0001"), Address::object([7; 16], 1));
    println!(
        "nonce: {:.1} ns",
        median_ns(|| {
            black_box(Nonce::random().unwrap());
        })
    );
    key.with(Backend::default(), &account, |sealer| {
        let fixed = nonce(&[3; 24]);
        let block = median_ns(|| {
            let mut block = black_box([1; 16]);
            sealer.schedule.encrypt_block(&mut block);
            black_box(&block);
        });
        let derive = median_ns(|| {
            let mut dek = Dek::blank();
            dek.derive(black_box(sealer.schedule), &Seed::new(black_box(&fixed)));
            black_box(&dek);
        });
        println!("one AES block: {block:.1} ns");
        let commit = median_ns(|| {
            black_box(kdf::commitment(black_box(sealer.schedule), black_box(&fixed)));
        });
        println!("derive a DEK: {derive:.1} ns, commitment: {commit:.1} ns");
        println!("scrub: {:.1} ns", median_ns(|| sealer.backend.scrub_stack()));
    });
    for size in [512, 4096, 65_536, 1 << 20] {
        let mut buf = vec![7; size];
        let fresh = median_ns(|| {
            let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, black_box(&[7; 32])).unwrap());
            let nonce = LcNonce::assume_unique_for_key([3; 12]);
            let _ = black_box(key.seal_in_place_separate_tag(nonce, LcAad::from([1; 48]), &mut buf).unwrap());
        });
        let fixed_key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap());
        let fixed = median_ns(|| {
            let nonce = LcNonce::assume_unique_for_key([3; 12]);
            let _ = black_box(fixed_key.seal_in_place_separate_tag(nonce, LcAad::from([1; 48]), &mut buf).unwrap());
        });
        let gbps = |ns: f64| size as f64 / ns;
        println!("{size} B: aws-lc-rs fixed key {:.2} GB/s, fresh key {:.2} GB/s", gbps(fixed), gbps(fresh));
        for &backend in Backend::available() {
            for suite in SUITES {
                key.with(backend, &account, |sealer| {
                    let seal = median_ns(|| {
                        black_box(sealer.seal_in_place(suite, 1, &address, &mut buf).unwrap());
                    });
                    let plaintext = buf.clone();
                    let header = sealer.seal_in_place(suite, 1, &address, &mut buf).unwrap();
                    let mut out = plaintext;
                    let open = median_ns(|| sealer.open_into(&header, &address, black_box(&buf), &mut out).unwrap());
                    println!(
                        "  {backend} {suite:?}: seal {:.2} GB/s ({seal:.0} ns; {:.2} of fresh, {:.2} of fixed), open {:.2} GB/s",
                        gbps(seal),
                        fresh / seal,
                        fixed / seal,
                        gbps(open)
                    );
                });
            }
        }
    }
}
