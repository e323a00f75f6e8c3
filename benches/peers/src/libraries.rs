//! Peers that keep keys or make messages by themselves: each call gives a message of its own, in memory of its own.

use crate::{ADDRESS, Buffers, Peer, ours, pairs::Side};
use aws_esdk::{
    client::Client,
    material_providers::{
        self,
        types::{
            AesWrappingAlg, EsdkAlgorithmSuiteId, keyring::KeyringRef,
            material_providers_config::MaterialProvidersConfig,
        },
    },
    types::aws_encryption_sdk_config::AwsEncryptionSdkConfig,
};
use std::{collections::HashMap, hint::black_box};

const KEY: [u8; 32] = [7; 32];

pub(crate) fn all(plain: &[u8]) -> Vec<Peer> {
    vec![tink(plain), age(plain), esdk(plain)]
}

thread_local! {
    /// Its AEADs stay on their thread.
    static TINK: Box<dyn tink_core::Aead> = {
        tink_aead::init();
        let keys = tink_core::keyset::Handle::new(&tink_aead::aes256_gcm_key_template()).expect("a keyset");
        tink_aead::new(&keys).expect("an AEAD")
    };
}

fn tink(plain: &[u8]) -> Peer {
    let sealed = TINK.with(|tink| tink.encrypt(plain, &ADDRESS)).expect("a sealed block");
    Peer {
        name: "tink-rust",
        package: "tink-aead",
        difference: "AES-256-GCM keyset, which rotates by itself; one key for 2^32 blocks at most; allocates each message; no lease",
        seal: Side::new("tink-rust", move |buffers: &mut Buffers| {
            black_box(TINK.with(|tink| tink.encrypt(&buffers.plain, &ADDRESS)).expect("a sealed block"));
        }),
        open: Side::new("tink-rust", move |_: &mut Buffers| {
            black_box(TINK.with(|tink| tink.decrypt(&sealed, &ADDRESS)).expect("an opened block"));
        }),
    }
}

fn age(plain: &[u8]) -> Peer {
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public();
    let sealed = age::encrypt(&recipient, plain).expect("a sealed block");
    Peer {
        name: "rage (crate age)",
        package: "age",
        difference: "made for files: an X25519 exchange for each, ChaCha20-Poly1305; binds no address; any holder of the public key can seal",
        seal: Side::new("age", move |buffers: &mut Buffers| {
            black_box(age::encrypt(&recipient, &buffers.plain).expect("a sealed block"));
        }),
        open: Side::new("age", move |_: &mut Buffers| {
            black_box(age::decrypt(&identity, &sealed).expect("an opened block"));
        }),
    }
}

/// The AWS Encryption SDK with a raw AES keyring: no KMS is asked. The committing suite without signature.
fn esdk(plain: &[u8]) -> Peer {
    let client =
        Client::from_conf(AwsEncryptionSdkConfig::builder().build().expect("a configuration")).expect("a client");
    let keyring = ours::runtime().block_on(keyring());
    let sealed = ours::runtime().block_on(seal(&client, &keyring, plain));
    let (opening, open_keyring) = (client.clone(), keyring.clone());
    Peer {
        name: "aws-esdk, raw AES keyring",
        package: "aws-esdk",
        difference: "a data key for each message, wrapped into it by a key in this process; key commitment; allocates",
        seal: Side::new("aws-esdk", move |buffers: &mut Buffers| {
            black_box(ours::runtime().block_on(seal(&client, &keyring, &buffers.plain)));
        }),
        open: Side::new("aws-esdk", move |_: &mut Buffers| {
            let opened = opening.decrypt().ciphertext(sealed.clone()).keyring(open_keyring.clone());
            let opened = ours::runtime().block_on(opened.encryption_context(bound()).send());
            black_box(opened.expect("an opened block"));
        }),
    }
}

async fn keyring() -> KeyringRef {
    let providers = MaterialProvidersConfig::builder().build().expect("a configuration");
    let providers = material_providers::client::Client::from_conf(providers).expect("a client");
    let keyring =
        providers.create_raw_aes_keyring().key_namespace("keyleash").key_name("peers").wrapping_key(KEY.to_vec());
    keyring.wrapping_alg(AesWrappingAlg::AlgAes256GcmIv12Tag16).send().await.expect("a keyring")
}

/// The encryption context is what it binds: text.
fn bound() -> HashMap<String, String> {
    let address: String = ADDRESS.iter().map(|byte| format!("{byte:02x}")).collect();
    HashMap::from([("address".to_owned(), address)])
}

async fn seal(client: &Client, keyring: &KeyringRef, plain: &[u8]) -> aws_smithy_types::Blob {
    let sealed = client.encrypt().plaintext(aws_smithy_types::Blob::new(plain)).keyring(keyring.clone());
    let sealed =
        sealed.encryption_context(bound()).algorithm_suite_id(EsdkAlgorithmSuiteId::AlgAes256GcmHkdfSha512CommitKey);
    sealed.send().await.expect("a sealed block").ciphertext.expect("a sealed block")
}
