//! Bytes of old versions, after three rotations of each kind and three moves: the golden blocks of `tests/compat/`, under an
//! account and a KEK whose records are written in format version 1.

use keyleash::{
    Account, Engine,
    block::{Address, BlockHeader},
    clock::Clock,
    name::{AccountId, KekName, KekVersion},
    rotate::RewrapOptions,
    secret::Aek,
    store::{
        Filter, Key, KeyStore, Put,
        memory::MemoryStore,
        record::{AccountRecord, KekRecord, binding, check_value, context},
    },
    token::{KekHandle, KekSpec, Profile, Token, scripted::ScriptedToken},
};
use std::{sync::Arc, time::Duration};

const BLOCKS: [&str; 6] = [
    include_str!("../compat/block-v1-suite1-empty.txt"),
    include_str!("../compat/block-v1-suite1-short.txt"),
    include_str!("../compat/block-v1-suite1-long.txt"),
    include_str!("../compat/block-v1-suite2-empty.txt"),
    include_str!("../compat/block-v1-suite2-short.txt"),
    include_str!("../compat/block-v1-suite2-long.txt"),
];

fn field<'a>(file: &'a str, name: &str) -> &'a str {
    let mut fields = file.lines().filter_map(|line| line.split_once(" ="));
    fields.find(|(key, _)| *key == name).unwrap().1.trim()
}

fn bytes(file: &str, name: &str) -> Vec<u8> {
    hex::decode(field(file, name)).unwrap()
}

/// `manual::format`: a length, or a number below 251, is one byte.
fn with_len(bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 251);
    [&[bytes.len() as u8], bytes].concat()
}

const CREATED: [u8; 5] = [0xfc, 0x00, 0xf1, 0x53, 0x65];

/// A KEK of one version, in format version 1.
fn kek_v1(name: &KekName, id: &[u8]) -> Vec<u8> {
    [&[1, 1][..], &with_len(name.as_str().as_bytes()), &[1, 1], &with_len(id), &[1], &CREATED, &[1]].concat()
}

/// An account of one AEK version, in format version 1.
fn account_v1(
    id: &AccountId,
    aek_version: u8,
    kek: &KekName,
    kek_id: &[u8],
    iv: &[u8],
    aek: &[u8],
    check: &[u8],
) -> Vec<u8> {
    [
        &[1, 0][..],
        &with_len(id.as_str().as_bytes()),
        &CREATED,
        &[1, aek_version],
        &with_len(kek.as_str().as_bytes()),
        &[1],
        &with_len(kek_id),
        &[1],
        &with_len(iv),
        &with_len(aek),
        check,
        &CREATED,
    ]
    .concat()
}

struct Golden {
    token: Arc<ScriptedToken>,
    store: Arc<MemoryStore>,
    id: AccountId,
    kek: KekName,
}

impl Golden {
    /// A store as a release of format version 1 left it.
    async fn new() -> Self {
        let (token, _) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 1);
        let store = Arc::new(MemoryStore::new());
        let (id, kek) = (AccountId::from_bytes(&bytes(BLOCKS[0], "account")).unwrap(), KekName::new("old").unwrap());
        let spec = KekSpec { label: "keyleash/old/1".into(), profile: Profile::AesGcm, destroyable: false };
        let kek_id = token.create_kek(&spec).await.unwrap().id;
        let version: u32 = field(BLOCKS[0], "version").parse().unwrap();
        let aek = Aek::copy_from(&bytes(BLOCKS[0], "aek").try_into().unwrap()).unwrap();
        let context = context(&KekVersion::new(kek.clone(), 1), &id, version);
        let handle = KekHandle { id: kek_id.clone(), profile: Profile::AesGcm };
        let wrapped = token.wrap(&handle, &aek, &binding(&context)).await.unwrap();
        let check = check_value(&aek, &context);
        let record = account_v1(&id, version as u8, &kek, kek_id.as_bytes(), &wrapped.iv, &wrapped.bytes, &check);
        let put = Put { value: record, wrapped_by: vec![KekVersion::new(kek.clone(), 1)], guards: Vec::new() };
        store.create(&Key::Account(id.clone()), put).await.unwrap();
        let put = Put { value: kek_v1(&kek, kek_id.as_bytes()), wrapped_by: Vec::new(), guards: Vec::new() };
        store.create(&Key::Kek(kek.clone()), put).await.unwrap();
        Self { token, store, id, kek }
    }

    /// As a process that was just started.
    fn engine(&self) -> Engine {
        Engine::builder(self.token.clone(), self.store.clone()).build().unwrap()
    }

    async fn assert_all_open(&self, live: &Account, after: &str) {
        let fresh = self.engine().account(&self.id).await.unwrap();
        for file in BLOCKS {
            let header = BlockHeader::parse(&bytes(file, "header")).unwrap();
            let address = Address::new(&bytes(file, "address")).unwrap();
            for account in [live, &fresh] {
                let mut buf = bytes(file, "ciphertext");
                account.open(address, &header, &mut buf).await.unwrap_or_else(|error| panic!("after {after}: {error}"));
                assert_eq!(buf, bytes(file, "plaintext"), "after {after}");
            }
        }
    }
}

#[tokio::test]
async fn golden_blocks_of_an_old_store_open_after_three_rotations_of_each_kind() {
    let golden = Golden::new().await;
    let raw = golden.store.get(&Key::Account(golden.id.clone())).await.unwrap().unwrap().value;
    assert_eq!(raw[0], 1, "format version 1");
    assert_eq!(AccountRecord::decode(&Key::Account(golden.id.clone()), &raw).unwrap().versions.len(), 1);
    let engine = golden.engine();
    let live = engine.account(&golden.id).await.unwrap();
    golden.assert_all_open(&live, "nothing").await;
    let profiles = [Profile::AesKw, Profile::RsaOaepSha256, Profile::AesGcm];
    let (mut kek, mut resealed) = (golden.kek.clone(), Vec::new());
    for (round, profile) in profiles.into_iter().enumerate() {
        let last = engine.rotate_kek(&kek).await.unwrap().version - 1;
        let options = RewrapOptions::new().rate(1_000_000);
        let report = engine.rewrap_kek(&kek, options, |_| {}).await.unwrap();
        assert_eq!((report.accounts, report.aeks, report.failed, report.stopped), (1, round as u64 + 1, 0, None));
        engine.retire_kek(&KekVersion::new(kek.clone(), last)).await.unwrap();
        golden.assert_all_open(&live, "a KEK rotation").await;

        let aek_version = engine.rotate_account(&golden.id).await.unwrap();
        golden.assert_all_open(&live, "an AEK rotation").await;
        let file = BLOCKS[1];
        let (mut buf, address) = (bytes(file, "ciphertext"), Address::new(&bytes(file, "address")).unwrap());
        let header =
            live.reseal_in_place(address, &BlockHeader::parse(&bytes(file, "header")).unwrap(), &mut buf).unwrap();
        assert_eq!(header.aek_version(), aek_version);
        resealed.push((header, buf));

        let next = KekName::new(format!("kek-{round}")).unwrap();
        engine.create_kek(&next, profile).await.unwrap();
        assert!(engine.move_account(&golden.id, &next).await.unwrap());
        golden.assert_all_open(&live, "a move").await;
        let old = Filter::WrappedBy(KekVersion::new(kek.clone(), last + 1));
        assert!(golden.store.list(&old, None, 1).await.unwrap().keys.is_empty(), "the old wrapping is gone");
        for (header, ciphertext) in &resealed {
            let mut buf = ciphertext.clone();
            live.open(address, header, &mut buf).await.unwrap();
            assert_eq!(buf, bytes(file, "plaintext"));
        }
        kek = next;
    }
    let record = engine.account_record(&golden.id).await.unwrap();
    assert_eq!(record.versions.iter().map(|aek| aek.aek_version).collect::<Vec<_>>(), [7, 8, 9, 10]);
    assert_eq!(record.created_unix, 1_700_000_000, "what stood in the old record is kept");
    let old = golden.store.get(&Key::Kek(golden.kek.clone())).await.unwrap().unwrap().value;
    assert_eq!(KekRecord::decode(&Key::Kek(golden.kek.clone()), &old).unwrap().versions.len(), 2);
}
