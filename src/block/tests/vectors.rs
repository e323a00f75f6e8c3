//! The vectors of C2SP XAES-256-GCM (<https://c2sp.org/XAES-256-GCM>, "Test vectors" and "Accumulated randomized tests"),
//! and our own of the commitment, for which no public ones are known.

use super::*;
use shake::{ExtendableOutput, Shake128, Update, XofReader};

/// XAES-256-GCM as the specification has it, with any additional data: ciphertext ‖ tag.
fn seal(backend: Backend, key: &Key, nonce_bytes: &[u8], plaintext: &[u8], aad: &[u8]) -> Vec<u8> {
    let nonce = nonce(nonce_bytes);
    let mut dek = Dek::blank();
    key.with(backend, &account("a"), |sealer| dek.derive(sealer.schedule, &Seed::new(&nonce)));
    let mut sealed = plaintext.to_vec();
    let tag = aead::seal(backend, &dek, &nonce.gcm_bytes(), aad, sealed.as_mut_slice().into()).unwrap();
    let mut opened = vec![0x55; sealed.len()];
    aead::open(backend, &dek, &nonce.gcm_bytes(), aad, &tag, InOutBuf::new(&sealed, &mut opened).unwrap()).unwrap();
    assert_eq!(opened, plaintext);
    sealed.extend(tag);
    sealed
}

#[test]
fn c2sp_printed_vectors() {
    let nonce_bytes = b"ABCDEFGHIJKLMNOPQRSTUVWX";
    let vectors = [
        // MSB(L) = 0
        (
            1,
            "e531954aca063d5b8d9c47a47d4cc6f0",
            "c8612c9ed53fe43e8e005b828a1631a0bbcb6ab2f46514ec4f439fcfd0fa969b",
            "",
            "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271",
        ),
        // MSB(L) = 1
        (
            3,
            "23810ec50edb99f374409466ed1f4b7b",
            "e9c621d4cdd9b11b00a6427ad7e559aeedd66b3857646677748f8ca796cb3fd8",
            "c2sp.org/XAES-256-GCM",
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d",
        ),
    ];
    for (byte, k1, dek_hex, aad, sealed) in vectors {
        let key = Key::new([byte; 32]);
        for &backend in Backend::available() {
            key.with(backend, &account("a"), |sealer| {
                assert_eq!(hex::encode(sealer.schedule.k1()), k1);
                let mut dek = Dek::blank();
                dek.derive(sealer.schedule, &Seed::new(&nonce(nonce_bytes)));
                assert_eq!(hex::encode(dek.expose()), dek_hex);
            });
            assert_eq!(
                hex::encode(seal(backend, &key, nonce_bytes, b"XAES-256-GCM", aad.as_bytes())),
                sealed,
                "{backend}"
            );
        }
    }
}

/// The hash of that many sealed texts, whose inputs are a stream of SHAKE-128.
fn accumulated(backend: Backend, iterations: u32) -> String {
    let mut inputs = Shake128::default().finalize_xof();
    let mut hash = Shake128::default();
    let mut opaque = |len: Option<usize>| {
        let len = len.unwrap_or_else(|| {
            let mut len = [0];
            inputs.read(&mut len);
            usize::from(len[0])
        });
        let mut bytes = vec![0; len];
        inputs.read(&mut bytes);
        bytes
    };
    let key = Key(KeySlot::default());
    for _ in 0..iterations {
        let aek = Aek::copy_from(&opaque(Some(32)).try_into().unwrap()).unwrap();
        key.fill(&aek);
        let (nonce, plaintext, aad) = (opaque(Some(24)), opaque(None), opaque(None));
        hash.update(&seal(backend, &key, &nonce, &plaintext, &aad));
    }
    let mut digest = [0; 32];
    hash.finalize_xof().read(&mut digest);
    hex::encode(digest)
}

#[test]
fn c2sp_accumulated_10_000() {
    for &backend in Backend::available() {
        assert_eq!(
            accumulated(backend, 10_000),
            "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939",
            "{backend}"
        );
    }
}

/// `cargo test --release --lib c2sp_accumulated_1_000_000 -- --ignored`
#[test]
#[ignore = "takes seconds in a release build, a minute without"]
fn c2sp_accumulated_1_000_000() {
    for &backend in Backend::available() {
        assert_eq!(
            accumulated(backend, 1_000_000),
            "2163ae1445985a30b60585ee67daa55674df06901b890593e824b8a7c885ab15",
            "{backend}"
        );
    }
}

#[test]
fn our_own_commitment_vectors() {
    // tests/compat/blocks.py makes them with OpenSSL's CMAC.
    let ramp: [u8; 32] = std::array::from_fn(|at| at as u8);
    let vectors = [
        ([1; 32], *b"ABCDEFGHIJKLMNOPQRSTUVWX", "04076b6085eebab138855fe57811c04112eff989d44120dfff662d5475a383c3"),
        ([3; 32], *b"ABCDEFGHIJKLMNOPQRSTUVWX", "5553cd21d1592b422e3129632a3187eee8a658cdca5c5b32ce86308dcc18e9d1"),
        (ramp, *ramp.first_chunk().unwrap(), "3cdd9026e9549292af954828b5f7024fa64554234d448b4a9d5d60b2385c629d"),
        ([255; 32], [255; 24], "e22a0ba6f600410597b57301bbf2b8743d354903bccc287189fec8f54a872975"),
    ];
    for (aek, nonce_bytes, expected) in vectors {
        Key::new(aek).with(Backend::PureRust, &account("a"), |sealer| {
            assert_eq!(hex::encode(kdf::commitment(sealer.schedule, &nonce(&nonce_bytes))), expected);
        });
    }
}
