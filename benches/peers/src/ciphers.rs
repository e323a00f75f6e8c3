//! Peers that are a cipher: the caller has a key and keeps it, draws a nonce for each block, and stores nonce and tag beside the
//! ciphertext. Each in the form of its interface that copies least, from one buffer into another where it has one.

use crate::{ADDRESS, Buffers, Peer, pairs::Side};
use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{AeadInOut, inout::InOutBuf},
};
use openssl::{cipher::Cipher, cipher_ctx::CipherCtx};
use orion::hazardous::aead::xchacha20poly1305;
use std::hint::black_box;
use xaes_256_gcm::Xaes256Gcm;

const KEY: [u8; 32] = [7; 32];
const TAG_BYTES: usize = 16;

/// One 96-bit random nonce for each block bounds a key to 2^32 blocks (NIST SP 800-38D, 8.3).
const FIXED_KEY: &str = "one key for all blocks, 2^32 of them at most; no lease, no key in locked memory";

pub(crate) fn all(plain: &[u8]) -> Vec<Peer> {
    vec![
        aws_lc_fixed(plain),
        aws_lc_fresh(plain),
        ring(plain),
        openssl(plain),
        rust_crypto("aes-gcm", "aes-gcm", FIXED_KEY, Aes256Gcm::new(&KEY.into()), plain),
        rust_crypto(
            "xaes-256-gcm",
            "xaes-256-gcm",
            "the same derivation and bytes as ours; not audited, says its page; no lease",
            Xaes256Gcm::new(&KEY.into()),
            plain,
        ),
        orion(plain),
    ]
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::Rng::fill_bytes(&mut rand::rng(), &mut bytes);
    bytes
}

fn aws_lc_key() -> aws_lc_rs::aead::LessSafeKey {
    use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, black_box(&KEY)).expect("a key"))
}

fn aws_lc(
    name: &'static str,
    difference: &'static str,
    plain: &[u8],
    with_key: impl Fn(&mut dyn FnMut(&aws_lc_rs::aead::LessSafeKey)) + Send + Clone + 'static,
) -> Peer {
    use aws_lc_rs::aead::{Aad, Nonce};
    let nonce = random();
    let (mut sealed, mut tag) = (plain.to_vec(), [0; TAG_BYTES]);
    with_key(&mut |key| {
        let made = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(ADDRESS), &mut sealed);
        tag.copy_from_slice(made.expect("a sealed block").as_ref());
    });
    let with_open_key = with_key.clone();
    Peer {
        name,
        package: "aws-lc-rs",
        difference,
        seal: Side::new(name, move |buffers: &mut Buffers| {
            with_key(&mut |key| {
                let (nonce, mut tag) = (Nonce::assume_unique_for_key(random()), [0; TAG_BYTES]);
                let Buffers { plain, out } = buffers;
                key.seal_out_of_place_scatter(nonce, Aad::from(ADDRESS), plain, out, &[], &mut tag)
                    .expect("a sealed block");
                black_box(tag);
            });
        }),
        open: Side::new(name, move |buffers: &mut Buffers| {
            with_open_key(&mut |key| {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_separate_gather(nonce, Aad::from(ADDRESS), &sealed, &tag, &mut buffers.out)
                    .expect("an opened block");
            });
        }),
    }
}

fn aws_lc_fixed(plain: &[u8]) -> Peer {
    let key = std::sync::Arc::new(aws_lc_key());
    aws_lc("aws-lc-rs, fixed key", FIXED_KEY, plain, move |work| work(&key))
}

fn aws_lc_fresh(plain: &[u8]) -> Peer {
    let difference = "a key set up for each block, which comes from nowhere; no lease";
    aws_lc("aws-lc-rs, fresh key", difference, plain, |work| work(&aws_lc_key()))
}

fn ring(plain: &[u8]) -> Peer {
    use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let new = || LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).expect("a key"));
    let (key, opening, nonce) = (new(), new(), random());
    let mut sealed = plain.to_vec();
    let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(ADDRESS), &mut sealed);
    sealed.extend_from_slice(tag.expect("a sealed block").as_ref());
    Peer {
        name: "ring",
        package: "ring",
        difference: "in place only, so that a copy counts in its open; one key for all blocks, 2^32 of them at most; no lease",
        seal: Side::new("ring", move |buffers: &mut Buffers| {
            let nonce = Nonce::assume_unique_for_key(random());
            let tag = key.seal_in_place_separate_tag(nonce, Aad::from(ADDRESS), &mut buffers.out);
            let _ = black_box(tag.expect("a sealed block"));
        }),
        open: Side::new("ring", {
            let mut work = sealed.clone();
            move |_: &mut Buffers| {
                work.copy_from_slice(&sealed);
                let nonce = Nonce::assume_unique_for_key(nonce);
                black_box(opening.open_in_place(nonce, Aad::from(ADDRESS), &mut work).expect("an opened block"));
            }
        }),
    }
}

/// Keeps a context with the key in it, which OpenSSL's manual advises for many messages under one key.
fn openssl(plain: &[u8]) -> Peer {
    let seal_with = |context: &mut CipherCtx, nonce: &[u8; 12], plain: &[u8], out: &mut [u8]| {
        let mut tag = [0; TAG_BYTES];
        context.encrypt_init(None, None, Some(nonce)).expect("a nonce");
        context.cipher_update(&ADDRESS, None).expect("additional data");
        context.cipher_update(plain, Some(out)).expect("a sealed block");
        context.cipher_final(&mut []).expect("a sealed block");
        context.tag(&mut tag).expect("a tag");
        tag
    };
    let mut sealing = CipherCtx::new().expect("a context");
    sealing.encrypt_init(Some(Cipher::aes_256_gcm()), Some(&KEY), None).expect("a key");
    let mut opening = CipherCtx::new().expect("a context");
    opening.decrypt_init(Some(Cipher::aes_256_gcm()), Some(&KEY), None).expect("a key");
    let (nonce, mut sealed) = (random(), vec![0; plain.len()]);
    let tag = seal_with(&mut sealing, &nonce, plain, &mut sealed);
    Peer {
        name: "openssl",
        package: "openssl",
        difference: FIXED_KEY,
        seal: Side::new("openssl", move |buffers: &mut Buffers| {
            black_box(seal_with(&mut sealing, &random(), &buffers.plain, &mut buffers.out));
        }),
        open: Side::new("openssl", move |buffers: &mut Buffers| {
            opening.decrypt_init(None, None, Some(&nonce)).expect("a nonce");
            opening.cipher_update(&ADDRESS, None).expect("additional data");
            opening.cipher_update(&sealed, Some(&mut buffers.out)).expect("an opened block");
            opening.set_tag(&tag).expect("a tag");
            opening.cipher_final(&mut []).expect("an opened block");
        }),
    }
}

fn rust_crypto<C: AeadInOut + Clone + Send + 'static>(
    name: &'static str,
    package: &'static str,
    difference: &'static str,
    cipher: C,
    plain: &[u8],
) -> Peer {
    fn nonce<C: AeadInOut>() -> aes_gcm::aead::Nonce<C> {
        let mut nonce = aes_gcm::aead::Nonce::<C>::default();
        rand::Rng::fill_bytes(&mut rand::rng(), &mut nonce);
        nonce
    }
    let (kept, mut sealed) = (nonce::<C>(), plain.to_vec());
    let tag = cipher.encrypt_inout_detached(&kept, &ADDRESS, sealed.as_mut_slice().into()).expect("a sealed block");
    let opening = cipher.clone();
    Peer {
        name,
        package,
        difference,
        seal: Side::new(name, move |buffers: &mut Buffers| {
            let Buffers { plain, out } = buffers;
            let both = InOutBuf::new(plain, out).expect("one length");
            black_box(cipher.encrypt_inout_detached(&nonce::<C>(), &ADDRESS, both).expect("a sealed block"));
        }),
        open: Side::new(name, move |buffers: &mut Buffers| {
            let both = InOutBuf::new(&sealed, &mut buffers.out).expect("one length");
            opening.decrypt_inout_detached(&kept, &ADDRESS, both, &tag).expect("an opened block");
        }),
    }
}

fn orion(plain: &[u8]) -> Peer {
    use xchacha20poly1305::{Nonce, SecretKey, XChaCha20Poly1305};
    let key = || SecretKey::try_from(&KEY).expect("a key");
    let nonce = || Nonce::try_from(&random::<24>()).expect("a nonce");
    let (sealing, opening, kept) = (key(), key(), nonce());
    let mut sealed = vec![0; plain.len() + TAG_BYTES];
    XChaCha20Poly1305::seal(&sealing, &kept, plain, Some(&ADDRESS), &mut sealed).expect("a sealed block");
    let mut out = sealed.clone();
    Peer {
        name: "orion",
        package: "orion",
        difference: "XChaCha20-Poly1305, pure Rust; its plain interface binds nothing, so this is the one below it; no lease",
        seal: Side::new("orion", move |buffers: &mut Buffers| {
            XChaCha20Poly1305::seal(&sealing, &nonce(), &buffers.plain, Some(&ADDRESS), &mut out)
                .expect("a sealed block");
            black_box(&out);
        }),
        open: Side::new("orion", move |buffers: &mut Buffers| {
            XChaCha20Poly1305::open(&opening, &kept, &sealed, Some(&ADDRESS), &mut buffers.out)
                .expect("an opened block");
        }),
    }
}
