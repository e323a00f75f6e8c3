//! Records: their bytes are pinned, everything else is refused by name, and nothing makes the decoder panic.

use crate::kek;
use hmac::{Hmac, KeyInit, Mac};
use keyleash::{
    Corrupt, Error, Result,
    access::{Actions, Grant, Operation, Operations, Pattern, Role},
    name::{AccountId, GrantId, KekName, KekVersion, NodeName, RoleName, SecretId, SecretName, TokenName},
    secret::Aek,
    store::{
        self, Key, KeyStore, PartId, VALUE_BYTES_MAX,
        memory::MemoryStore,
        record::{
            AEK_VERSIONS_MAX, AccountRecord, AekPolicy, CHECKPOINT_BYTES_MAX, CheckpointRecord, CommonRecord, Deletion,
            DenialRecord, GrantsRecord, KEK_VERSIONS_MAX, KekPolicy, KekRecord, KekVersionRecord, Making, PolicyPart,
            PolicyRecord, REASON_BYTES_MAX, RetiredAek, Rotation, SecretRecord, SecretValueRecord, SecretVersion,
            StoreRecord, Usage, Witness, WorkRecord, WrappedAek, binding, check_matches, check_value, context,
        },
    },
    token::{KekId, Profile, Wrapped},
};
use proptest::{collection::vec, prelude::*, test_runner::Config};
use sha2::{Digest, Sha256};

const ACCOUNT_1: &str = include_str!("../compat/records/account-v1.hex");
const ACCOUNT: &str = include_str!("../compat/records/account-v2.hex");
const RETIRED: &str = include_str!("../compat/records/account-v3.hex");
const KEK_1: &str = include_str!("../compat/records/kek-v1.hex");
const KEK: &str = include_str!("../compat/records/kek-v2.hex");
const DENIAL: &str = include_str!("../compat/records/denial-v1.hex");
const STORE: &str = include_str!("../compat/records/store-v2.hex");
const COMMON: &str = include_str!("../compat/records/common-v2.hex");
const PROTECTED_COMMON: &str = include_str!("../compat/records/common-v3.hex");
const STANDBY_DENIAL: &str = include_str!("../compat/records/denial-v2.hex");
const WITNESSED_DENIAL: &str = include_str!("../compat/records/denial-v3.hex");
const POLICY: &str = include_str!("../compat/records/policy-v4.hex");
const GRANTS: &str = include_str!("../compat/records/grants-v4.hex");
const GOVERNED_COMMON: &str = include_str!("../compat/records/common-v4.hex");
const CHECKPOINT: &str = include_str!("../compat/records/checkpoint-v4.hex");
const WORK: &str = include_str!("../compat/records/work-v1.hex");
const SECRET: &str = include_str!("../compat/records/secret-v3.hex");
const SECRET_VALUE: &str = include_str!("../compat/records/secret-value-v3.hex");

fn golden(text: &str) -> Vec<u8> {
    let digits = text.lines().flat_map(|line| line.split('#').next()).flat_map(str::split_whitespace);
    hex::decode(digits.collect::<String>()).unwrap()
}

fn bytes(range: std::ops::Range<u8>) -> Vec<u8> {
    range.collect()
}

fn account() -> AccountRecord {
    let aek = |aek_version, kek, kek_id, profile, iv, bytes_: Vec<u8>, created_unix, used| WrappedAek {
        aek_version,
        kek,
        kek_id: KekId::new(kek_id).unwrap(),
        profile,
        wrapped: Wrapped { iv, bytes: bytes_ },
        check: bytes(0x80..0xa0).try_into().unwrap(),
        created_unix,
        used,
    };
    let (used, unused) = (Usage { blocks: 1 << 16, bytes: 1 << 32 }, Usage::default());
    let (main, other) = (kek("main", 1), kek("other", 70_000));
    AccountRecord {
        account: AccountId::new("alice").unwrap(),
        created_unix: 1_700_000_000,
        versions: vec![
            aek(1, main, vec![0xbe, 0xef], Profile::AesGcm, bytes(0..12), bytes(0x40..0x70), 1_700_000_000, used),
            aek(300, other, vec![7], Profile::AesKw, vec![], bytes(0xa0..0xc8), 1 << 33, unused),
        ],
        deleted: Some(Deletion { since_unix: 1_700_086_400, purge_after_unix: 1_700_717_952 }),
        policy: AekPolicy { max_age_secs: 31_536_000, max_blocks: 0, max_bytes: 1 << 40 },
        retired: Vec::new(),
    }
}

fn with_retired() -> AccountRecord {
    let retired = |aek_version, since_unix| RetiredAek { aek_version, since_unix };
    AccountRecord { retired: vec![retired(7, 1_700_086_400), retired(299, 1 << 33)], ..account() }
}

fn kek_record() -> KekRecord {
    let version = |version, id: Vec<u8>, profile, created_unix, token, retired_unix, backup_attested_unix| {
        let (id, token) = (KekId::new(id).unwrap(), TokenName::new(token).unwrap());
        KekVersionRecord { version, id, profile, created_unix, token, retired_unix, backup_attested_unix }
    };
    let id = (0..16).map(|n| n * 0x11).collect();
    KekRecord {
        name: KekName::new("tenant-7").unwrap(),
        versions: vec![
            version(1, vec![0xbe, 0xef], Profile::AesGcm, 0, "default", Some(300), None),
            version(3, id, Profile::RsaOaepSha256, 250, "eu-hsm", None, Some(251)),
        ],
        current: 3,
        policy: KekPolicy::default(),
    }
}

fn work() -> WorkRecord {
    WorkRecord { fence: 300, holder: bytes(0..16).try_into().unwrap(), until_unix: 1_700_000_000 }
}

fn denial() -> DenialRecord {
    DenialRecord {
        kek: kek("main", 2),
        since_unix: 251,
        reason: "CKR_ä disabled".into(),
        by_standby: false,
        witness: None,
    }
}

/// By the second AEK version of `account`.
fn witnessed_denial() -> DenialRecord {
    let AccountRecord { account, versions, .. } = account();
    DenialRecord { witness: Some(Witness::of(&account, &versions[1])), ..standby_denial() }
}

fn standby_denial() -> DenialRecord {
    DenialRecord { by_standby: true, ..denial() }
}

#[test]
fn the_bytes_never_change() {
    let (a, k, d, w) = (account(), kek_record(), denial(), work());
    assert_eq!(hex::encode(a.encode().unwrap()), hex::encode(golden(ACCOUNT)));
    assert_eq!(hex::encode(k.encode().unwrap()), hex::encode(golden(KEK)));
    assert_eq!(hex::encode(d.encode().unwrap()), hex::encode(golden(DENIAL)));
    assert_eq!(hex::encode(standby_denial().encode().unwrap()), hex::encode(golden(STANDBY_DENIAL)));
    assert_eq!(hex::encode(witnessed_denial().encode().unwrap()), hex::encode(golden(WITNESSED_DENIAL)));
    assert_eq!(hex::encode(w.put().unwrap().value), hex::encode(golden(WORK)));
    assert_eq!(AccountRecord::decode(&a.key(), &golden(ACCOUNT)).unwrap(), a);
    assert_eq!(KekRecord::decode(&k.key(), &golden(KEK)).unwrap(), k);
    assert_eq!(DenialRecord::decode(&d.key(), &golden(DENIAL)).unwrap(), d);
    assert_eq!(DenialRecord::decode(&d.key(), &golden(STANDBY_DENIAL)).unwrap(), standby_denial());
    assert_eq!(DenialRecord::decode(&d.key(), &golden(WITNESSED_DENIAL)).unwrap(), witnessed_denial());
    assert_eq!(WorkRecord::decode(&Key::Work, &golden(WORK)).unwrap(), w);
    let r = with_retired();
    assert_eq!(hex::encode(r.encode().unwrap()), hex::encode(golden(RETIRED)));
    assert_eq!(AccountRecord::decode(&r.key(), &golden(RETIRED)).unwrap(), r);
    let s = StoreRecord { id: [0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77] };
    assert_eq!(hex::encode(s.put().unwrap().value), hex::encode(golden(STORE)));
    assert_eq!(StoreRecord::decode(&Key::Store, &golden(STORE)).unwrap(), s);
    assert_eq!(s.to_string(), "0011223344556677");
    let c = CommonRecord {
        date_unix: 1_700_000_000,
        boot: bytes(0..16).try_into().unwrap(),
        boottime_ns: 1 << 40,
        wall_unix: 250,
        aek_overlap_secs: 3600,
        purge_protection: false,
        is_governed: false,
    };
    assert_eq!(hex::encode(c.put().unwrap().value), hex::encode(golden(COMMON)));
    assert_eq!(CommonRecord::decode(&Key::Common, &golden(COMMON)).unwrap(), c);
    let c = CommonRecord { purge_protection: true, ..c };
    assert_eq!(hex::encode(c.put().unwrap().value), hex::encode(golden(PROTECTED_COMMON)));
    assert_eq!(CommonRecord::decode(&Key::Common, &golden(PROTECTED_COMMON)).unwrap(), c);
    let c = CommonRecord { is_governed: true, ..c };
    assert_eq!(hex::encode(c.put().unwrap().value), hex::encode(golden(GOVERNED_COMMON)));
    assert_eq!(CommonRecord::decode(&Key::Common, &golden(GOVERNED_COMMON)).unwrap(), c);
    let (p, g) = (policy(), grants());
    assert_eq!(hex::encode(g.put().unwrap().value), hex::encode(golden(GRANTS)));
    assert_eq!(GrantsRecord::decode(&g.key(), &golden(GRANTS)).unwrap(), g);
    assert_eq!(hex::encode(p.put().unwrap().value), hex::encode(golden(POLICY)));
    assert_eq!(PolicyRecord::decode(&Key::Policy, &golden(POLICY)).unwrap(), p);
    assert_eq!(g.key().to_bytes(), b"g101112131415161718191a1b1c1d1e1f");
    assert_eq!(Key::from_bytes(&g.key().to_bytes()), Ok(g.key()));
    assert!(Key::from_bytes(b"g10").is_err() && Key::from_bytes(b"g+01112131415161718191a1b1c1d1e1f").is_err());
    assert_eq!((Key::Policy.to_bytes(), Key::from_bytes(b"p")), (b"p".to_vec(), Ok(Key::Policy)));
    let c = checkpoint();
    assert_eq!(hex::encode(c.put().unwrap().value), hex::encode(golden(CHECKPOINT)));
    assert_eq!(CheckpointRecord::decode(&c.key(), &golden(CHECKPOINT)).unwrap(), c);
    assert_eq!((c.key().to_bytes(), Key::from_bytes(b"tweb-1")), (b"tweb-1".to_vec(), Ok(c.key())));
    assert!(Key::from_bytes(b"t").is_err() && Key::from_bytes(b"ta/b").is_err());
}

fn checkpoint() -> CheckpointRecord {
    let note = "keyleash/0011223344556677/web-1\n300\nAAAA=\n\n— k aGk=\n".into();
    CheckpointRecord { node: NodeName::new("web-1").unwrap(), note }
}

#[test]
fn a_checkpoint_that_was_moved_cut_or_is_too_long_is_refused_by_name() {
    let c = checkpoint();
    for len in 0..golden(CHECKPOINT).len() {
        refused(&c.key(), CheckpointRecord::decode(&c.key(), &golden(CHECKPOINT)[..len]));
    }
    let other = Key::Checkpoint(NodeName::new("web-2").unwrap());
    assert!(refused(&other, CheckpointRecord::decode(&other, &golden(CHECKPOINT))).contains("moved"));
    let long = CheckpointRecord { note: "x".repeat(CHECKPOINT_BYTES_MAX + 1), ..c.clone() };
    assert!(long.put().unwrap_err().to_string().contains("16385 bytes, 1 to 16384"));
    assert!(CheckpointRecord { note: String::new(), ..c }.put().is_err());
}

fn grants() -> GrantsRecord {
    let grant = |id, callers, keks, actions| Grant {
        id: GrantId::new(id).unwrap(),
        callers: Pattern::new(callers).unwrap(),
        keks: Pattern::new(keks).unwrap(),
        accounts: Pattern::all(),
        actions,
    };
    let operations = Operations::of(&[Operation::Unwrap, Operation::Seal, Operation::Open]);
    let role = RoleName::new("operator").unwrap();
    GrantsRecord {
        id: PartId(bytes(0x10..0x20).try_into().unwrap()),
        grants: vec![
            grant("1a2b3c4d", "web-*", "tenants", Actions::Operations(operations)),
            grant("00000007", "alice", "*", Actions::Role(role)),
        ],
    }
}

fn policy() -> PolicyRecord {
    let role = Role {
        name: RoleName::new("auditor").unwrap(),
        operations: Operations::of(&[Operation::AuditRead]),
        includes: vec![RoleName::new("reader").unwrap()],
        not: Operations::of(&[Operation::Unwrap, Operation::Open]),
        keks: Pattern::new("t*").unwrap(),
        accounts: Pattern::all(),
    };
    let digest = Sha256::digest(golden(GRANTS)).into();
    let part = PolicyPart { id: grants().id, digest, grants: 2 };
    PolicyRecord { generation: 300, roles: vec![role], parts: vec![part] }
}

/// Of the records of a policy: every cut and every other bit is refused, or is another policy; nothing panics, and nothing is unlimited.
#[test]
fn a_policy_that_breaks_a_rule_is_refused_by_name() {
    let (g, p) = (grants(), policy());
    for len in 0..golden(GRANTS).len() {
        refused(&g.key(), GrantsRecord::decode(&g.key(), &golden(GRANTS)[..len]));
    }
    for len in 0..golden(POLICY).len() {
        refused(&Key::Policy, PolicyRecord::decode(&Key::Policy, &golden(POLICY)[..len]));
    }
    let flip = |bytes: &[u8], bit: usize| {
        let mut bytes = bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    };
    for bit in 8..golden(GRANTS).len() * 8 {
        let outcome = GrantsRecord::decode(&g.key(), &flip(&golden(GRANTS), bit));
        assert!(outcome.is_err() || outcome != Ok(grants()), "bit {bit}");
    }
    for bit in 8..golden(POLICY).len() * 8 {
        let outcome = PolicyRecord::decode(&Key::Policy, &flip(&golden(POLICY), bit));
        assert!(outcome.is_err() || outcome != Ok(policy()), "bit {bit}");
    }
    // Operations that a newer release knows.
    let at = golden(GRANTS).iter().rposition(|byte| *byte == 0x1c).unwrap();
    let newer = [&golden(GRANTS)[..at], &[0xfc, 0, 0, 2, 0], &golden(GRANTS)[at + 1..]].concat();
    assert!(refused(&g.key(), GrantsRecord::decode(&g.key(), &newer)).contains("does not know"));
    let moved = Key::Grants(PartId([1; 16]));
    assert!(refused(&moved, GrantsRecord::decode(&moved, &golden(GRANTS))).contains("moved"));
    let many = GrantsRecord { grants: vec![g.grants[0].clone(); 401], ..g.clone() };
    assert!(many.put().unwrap_err().to_string().contains("401 grants, 1 to 400"));
    assert!(GrantsRecord { grants: vec![], ..g.clone() }.put().is_err());
    assert!(PolicyRecord { parts: vec![], ..p.clone() }.put().is_err());
    assert!(PolicyRecord { parts: vec![p.parts[0].clone(); 101], ..p }.put().is_err());
    // The longest names that there are fit into a part.
    let long = |max: usize| Pattern::new("x".repeat(max)).unwrap();
    let longest = Grant {
        callers: long(128),
        keks: long(64),
        accounts: long(255),
        actions: Actions::Role(RoleName::new("r".repeat(64)).unwrap()),
        ..g.grants[0].clone()
    };
    assert!(GrantsRecord { grants: vec![longest; 400], ..g }.put().unwrap().value.len() <= VALUE_BYTES_MAX);
}

#[test]
fn records_of_format_version_1_are_read() {
    let mut account = AccountRecord { deleted: None, policy: AekPolicy::default(), ..account() };
    account.versions.iter_mut().for_each(|version| version.used = Usage::default());
    assert_eq!(AccountRecord::decode(&account.key(), &golden(ACCOUNT_1)).unwrap(), account);
    let mut kek = kek_record();
    for version in &mut kek.versions {
        (version.token, version.retired_unix, version.backup_attested_unix) = (TokenName::default(), None, None);
    }
    assert_eq!(KekRecord::decode(&kek.key(), &golden(KEK_1)).unwrap(), kek);
}

/// The text of a refusal, which must be of the one kind and name the record.
fn refused<T: std::fmt::Debug>(key: &Key, result: Result<T>) -> String {
    match result {
        Err(Error::Corrupt(Corrupt::Record { record, what })) if record == key.to_string() => what,
        other => panic!("{key}: {other:?}"),
    }
}

#[test]
fn a_record_under_another_name_or_of_another_kind_is_refused_by_name() {
    let bob = Key::Account(AccountId::new("bob").unwrap());
    let what = refused(&bob, AccountRecord::decode(&bob, &golden(ACCOUNT)));
    assert!(what.contains("account alice") && what.contains("moved"), "{what}");
    for (key, bytes) in [(account().key(), golden(KEK)), (account().key(), golden(DENIAL))] {
        assert!(refused(&key, AccountRecord::decode(&key, &bytes)).contains("another kind"));
    }
    let key = kek_record().key();
    assert!(refused(&key, KekRecord::decode(&key, &golden(ACCOUNT))).contains("another kind"));
    let other = Key::Denial(kek("main", 3));
    assert!(refused(&other, DenialRecord::decode(&other, &golden(DENIAL))).contains("denial of KEK main/2"));
    // The right record under the right name, but asked for by a key of another kind.
    let key = Key::Kek(KekName::new("alice").unwrap());
    assert!(refused(&key, AccountRecord::decode(&key, &golden(ACCOUNT))).contains("moved"));
}

#[test]
fn every_cut_every_further_byte_and_every_other_format_version_is_refused() {
    let key = account().key();
    let bytes = golden(ACCOUNT);
    for len in 0..bytes.len() {
        refused(&key, AccountRecord::decode(&key, &bytes[..len]));
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(refused(&key, AccountRecord::decode(&key, &longer)).contains("1 bytes after its end"));
    for format in (0..=255).filter(|format| ![1, 2, 3, 4].contains(format)) {
        let mut other = bytes.clone();
        other[0] = format;
        let error = AccountRecord::decode(&key, &other).unwrap_err();
        let is_newer = matches!(error, Error::Corrupt(Corrupt::NewerRecord { .. }));
        assert_eq!(is_newer, format > 4, "{error}");
        let words = format!("record {key}: has format version {format}, this release reads 1 to 4");
        assert!(error.to_string().contains(&words), "{error}");
    }
    let mut none_retired = [bytes.as_slice(), &[0]].concat();
    none_retired[0] = 3;
    assert!(refused(&key, AccountRecord::decode(&key, &none_retired)).contains("remembers no retired"));
    let retired = golden(RETIRED);
    (0..retired.len()).for_each(|len| drop(refused(&key, AccountRecord::decode(&key, &retired[..len]))));
    let long = vec![1; VALUE_BYTES_MAX + 1];
    assert!(refused(&key, AccountRecord::decode(&key, &long)).contains("at most 262144"));
}

#[test]
fn a_longer_form_of_a_number_is_refused() {
    let key = denial().key();
    let bytes = golden(DENIAL);
    // The KEK version 2, in three bytes.
    let longer = [&bytes[..7], &[0xfb, 2, 0], &bytes[8..]].concat();
    assert!(refused(&key, DenialRecord::decode(&key, &longer)).contains("shortest form"));
}

#[test]
fn a_length_that_lies_allocates_nothing() {
    let key = account().key();
    for lie in [[0xfd, 255, 255, 255, 255, 255, 255, 255, 255], [0xfd, 0, 0, 0, 0, 1, 0, 0, 0]] {
        let id = [&[1, 0][..], &lie, b"alice"].concat();
        let versions = [&[1, 0, 5][..], b"alice", &[0], &lie].concat();
        for bytes in [id, versions] {
            assert!(refused(&key, AccountRecord::decode(&key, &bytes)).contains("cannot be decoded"));
        }
    }
}

/// Refused when it is written, with the key and the words; and when it is read.
fn bad_account(words: &str, change: impl FnOnce(&mut AccountRecord)) {
    let mut record = account();
    change(&mut record);
    let error = record.encode().unwrap_err();
    assert!(
        matches!(&error, Error::Invalid(text) if text.contains("account alice") && text.contains(words)),
        "{error}"
    );
    assert!(record.put().is_err());
}

#[test]
fn what_breaks_a_rule_is_not_written() {
    bad_account("0 AEK versions, 1 to 256", |record| record.versions.clear());
    bad_account("count up from 1", |record| record.versions[0].aek_version = 0);
    bad_account("AEK version 1 follows 1", |record| record.versions[1].aek_version = 1);
    bad_account("version 0 of KEK main", |record| record.versions[0].kek.version = 0);
    bad_account("IV of AEK version 1 has 65", |record| record.versions[0].wrapped.iv = vec![0; 65]);
    bad_account("version 300 has 0 bytes", |record| record.versions[1].wrapped.bytes.clear());
    bad_account("has 1025 bytes", |record| record.versions[1].wrapped.bytes = vec![0; 1025]);
    bad_account("257 AEK versions", |record| {
        let version = record.versions[0].clone();
        record.versions = (1..=257).map(|aek_version| WrappedAek { aek_version, ..version.clone() }).collect();
    });
    bad_account("retire AEK versions", |record| {
        let mut version = record.versions[0].clone();
        version.wrapped.bytes = vec![0; Wrapped::BYTES_MAX];
        record.versions = (1..=256).map(|aek_version| WrappedAek { aek_version, ..version.clone() }).collect();
    });

    let retired = |aek_version| RetiredAek { aek_version, since_unix: 0 };
    bad_account("retired AEK version 7 follows 7", |record| record.retired = vec![retired(7), retired(7)]);
    bad_account("AEK version 300 is retired, and", |record| record.retired = vec![retired(300)]);
    bad_account("AEK version 1 is retired, and", |record| record.retired = vec![retired(1)]);
    bad_account("AEK version 301 is retired, and", |record| record.retired = vec![retired(301)]);
    bad_account("1025 retired AEK versions", |record| record.retired = (0..1025).map(retired).collect());

    let bad_kek = |words: &str, change: fn(&mut KekRecord)| {
        let mut record = kek_record();
        change(&mut record);
        let error = record.encode().unwrap_err().to_string();
        assert!(error.contains("KEK tenant-7") && error.contains(words), "{error}");
    };
    bad_kek("current version 2", |record| record.current = 2);
    bad_kek("0 KEK versions", |record| record.versions.clear());
    bad_kek("follows 3", |record| record.versions[0].version = 3);
    bad_kek("current version 1 is retired", |record| record.current = 1);
    bad_kek("two of its versions have CKA_ID beef", |record| {
        let KekVersionRecord { id, token, .. } = record.versions[0].clone();
        (record.versions[1].id, record.versions[1].token) = (id, token);
    });
    let zero = DenialRecord { kek: kek("main", 0), ..denial() };
    assert!(matches!(zero.encode(), Err(Error::Invalid(_))));
}

#[test]
fn what_breaks_a_rule_is_not_read() {
    // (place in the golden account, bytes there, bytes instead, words)
    let cases: [(&[u8], &[u8], &str); 7] = [
        (b"\x05alice", b"\x00", "1 to 255 bytes"),
        (b"\x05alice", b"\x05al\nce", "control character"),
        (b"\x05alice", b"\x05al\xffce", "cannot be decoded"),
        (b"\x04main", b"\x04ma/n", "KEK name"),
        (b"\x02\xbe\xef\x01", b"\x00\x01", "CKA_ID has 1 to 64"),
        (b"\x02\xbe\xef\x01", b"\x02\xbe\xef\x04", "wrap profile 4"),
        (b"\xfb\x2c\x01", b"\x01", "follows 1"),
    ];
    let key = account().key();
    for (from, to, words) in cases {
        let bytes = golden(ACCOUNT);
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        let changed = [&bytes[..at], to, &bytes[at + from.len()..]].concat();
        let what = refused(&key, AccountRecord::decode(&key, &changed));
        assert!(what.contains(words), "{what} should say {words}");
    }
    let mut bytes = golden(KEK);
    let current = bytes.len() - 2;
    let key = kek_record().key();
    for (other, words) in [(2, "current version 2 is not among"), (1, "current version 1 is retired")] {
        bytes[current] = other;
        let what = refused(&key, KekRecord::decode(&key, &bytes));
        assert!(what.contains(words), "{what} should say {words}");
    }
}

#[test]
fn the_largest_records_are_written_and_read() {
    let mut record = account();
    let version = WrappedAek {
        kek: KekVersion::new(KekName::new("k".repeat(64)).unwrap(), u32::MAX),
        kek_id: KekId::new([9; KekId::BYTES_MAX]).unwrap(),
        wrapped: Wrapped { iv: vec![], bytes: vec![3; 768] }, // RSA-6144
        ..record.versions[0].clone()
    };
    record.versions = (1..=AEK_VERSIONS_MAX as u32)
        .map(|aek_version| WrappedAek { aek_version: u32::MAX - 256 + aek_version, ..version.clone() })
        .collect();
    let bytes = record.encode().unwrap();
    assert!(bytes.len() > VALUE_BYTES_MAX * 9 / 10, "{}", bytes.len());
    assert_eq!(AccountRecord::decode(&record.key(), &bytes).unwrap(), record);

    let mut record = kek_record();
    record.versions = (1..=KEK_VERSIONS_MAX as u32)
        .map(|version| KekVersionRecord {
            version,
            id: KekId::new([version.to_be_bytes().as_slice(), &[0; 60]].concat()).unwrap(),
            profile: Profile::AesKw,
            created_unix: u64::MAX,
            token: TokenName::new("t".repeat(64)).unwrap(),
            retired_unix: (version != 3).then_some(u64::MAX),
            backup_attested_unix: Some(u64::MAX),
        })
        .collect();
    assert_eq!(KekRecord::decode(&record.key(), &record.encode().unwrap()).unwrap(), record);
}

#[test]
fn a_denial_sticks_however_long_its_reason_is() {
    let record = DenialRecord { reason: "ä".repeat(4000), ..denial() };
    let read = DenialRecord::decode(&record.key(), &record.encode().unwrap()).unwrap();
    assert_eq!(read.reason, "ä".repeat(REASON_BYTES_MAX / 2));
    let odd = DenialRecord { reason: format!("x{}", "ä".repeat(4000)), ..denial() };
    let read = DenialRecord::decode(&odd.key(), &odd.encode().unwrap()).unwrap();
    assert_eq!(read.reason.len(), REASON_BYTES_MAX - 1);
}

#[test]
fn an_account_is_found_by_each_kek_version_once() {
    let mut record = account();
    record.versions.extend([
        WrappedAek { aek_version: 301, ..record.versions[0].clone() },
        WrappedAek { aek_version: 302, kek: kek("main", 0x100), ..record.versions[0].clone() },
    ]);
    assert_eq!(record.wrapped_by(), [kek("main", 1), kek("main", 256), kek("other", 70_000)]);
    assert_eq!(record.put().unwrap().wrapped_by, record.wrapped_by());
    assert_eq!(record.current().unwrap().aek_version, 302);
    assert_eq!(record.version(300).unwrap().kek, kek("other", 70_000));
    assert_eq!(record.version(2), None);
}

#[tokio::test]
async fn typed_loading_gives_the_record_and_its_version_or_names_the_damage() {
    let store = MemoryStore::new();
    let (a, k, d) = (account(), kek_record(), denial());
    assert_eq!(store::load_account(&store, &a.account).await.unwrap(), None);
    let version = store.create(&a.key(), a.put().unwrap()).await.unwrap();
    store.create(&k.key(), k.put().unwrap()).await.unwrap();
    store.create(&d.key(), d.put().unwrap()).await.unwrap();
    assert_eq!(store::load_account(&store, &a.account).await.unwrap(), Some((a.clone(), version.clone())));
    assert_eq!(store::load_kek(&store, &k.name).await.unwrap().unwrap().0, k);
    assert_eq!(store::load_denial(&store, &d.kek).await.unwrap().unwrap().0, d);
    store
        .replace(&a.key(), &version, store::Put { value: vec![9], wrapped_by: vec![], guards: Vec::new() })
        .await
        .unwrap();
    let error = store::load_account(&store, &a.account).await.unwrap_err().to_string();
    assert!(error.contains("account alice") && error.contains("format version 9"), "{error}");
}

#[test]
fn keys_have_one_byte_form_and_everything_else_is_refused() {
    for key in [account().key(), kek_record().key(), denial().key(), Key::Work, Key::Store, Key::Common] {
        assert_eq!(Key::from_bytes(&key.to_bytes()).unwrap(), key);
    }
    for bad in [
        &b""[..],
        b"a",
        b"x1",
        b"k",
        b"k a",
        b"dmain",
        b"dmain/",
        b"dmain/x",
        b"dmain/01",
        b"dmain/+1",
        b"a\xff",
        b"wx",
        b"sx",
    ] {
        assert!(matches!(Key::from_bytes(bad), Err(Error::Corrupt(Corrupt::Record { .. }))), "{bad:?}");
    }
}

#[test]
fn the_context_is_what_the_format_says() {
    let context = context(&kek("main", 2), &AccountId::new("alice").unwrap(), 0x0102_0304);
    let expected = b"keyleash.aek.v1\x00\x04main\x00\x00\x00\x02\x00\x05alice\x01\x02\x03\x04";
    assert_eq!(context, expected);
    assert_eq!(binding(&context), <[u8; 32]>::from(Sha256::digest(expected)));
}

#[test]
fn the_check_value_is_hmac_sha256_and_tells_keys_and_contexts_apart() {
    let bytes: [u8; 32] = bytes(0..32).try_into().unwrap();
    let aek = Aek::copy_from(&bytes).unwrap();
    let one = context(&kek("main", 1), &AccountId::new("alice").unwrap(), 1);
    let check = check_value(&aek, &one);
    let mut reference = <Hmac<Sha256> as KeyInit>::new_from_slice(&bytes).unwrap();
    reference.update(&one);
    assert_eq!(check, <[u8; 32]>::from(reference.finalize().into_bytes()));
    // Computed with Python's hmac module, so that a change of the crate would be seen.
    assert_eq!(hex::encode(check), "1ca0d17f15e57497d749c2f69e037177eb878c8e46a675949edf1bae5e4f46d6");
    assert!(check_matches(&aek, &one, &check));
    for bit in 0..256 {
        let mut other = check;
        other[bit / 8] ^= 1 << (bit % 8);
        assert!(!check_matches(&aek, &one, &other));
    }
    for other in [
        context(&kek("main", 2), &AccountId::new("alice").unwrap(), 1),
        context(&kek("mai", 1), &AccountId::new("alice").unwrap(), 1),
        context(&kek("main", 1), &AccountId::new("alicf").unwrap(), 1),
        context(&kek("main", 1), &AccountId::new("alice").unwrap(), 2),
    ] {
        assert!(!check_matches(&aek, &other, &check));
    }
    assert!(!check_matches(&Aek::generate().unwrap(), &one, &check));
}

fn names() -> impl Strategy<Value = (AccountId, KekName)> {
    ("[a-z0-9 é/]{1,40}", "[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")
        .prop_map(|(id, name)| (AccountId::new(id).unwrap(), KekName::new(name).unwrap()))
}

prop_compose! {
    fn wrapped()(
        (_, name) in names(), version in 1..=u32::MAX, (blocks, bytes_) in any::<(u64, u64)>(), id in vec(any::<u8>(), 1..=64),
        profile in proptest::sample::select(Profile::ALL.to_vec()), iv in vec(any::<u8>(), 0..=64),
        bytes in vec(any::<u8>(), 1..=600), check in any::<[u8; 32]>(), created_unix in any::<u64>(),
    ) -> WrappedAek {
        WrappedAek {
            aek_version: 0, kek: KekVersion::new(name, version), kek_id: KekId::new(id).unwrap(), profile,
            wrapped: Wrapped { iv, bytes }, check, created_unix, used: Usage { blocks, bytes: bytes_ },
        }
    }
}

prop_compose! {
    fn accounts()(
        (account, _) in names(), created_unix in any::<u64>(), versions in vec(wrapped(), 1..6),
        numbers in proptest::collection::btree_set(1..=u32::MAX, 6), deleted in any::<Option<(u64, u64)>>(),
        (max_age_secs, max_blocks, max_bytes) in any::<(u64, u64, u64)>(),
        gone in proptest::collection::btree_map(1..=u32::MAX, any::<u64>(), 0..6),
    ) -> AccountRecord {
        let current = numbers.iter().copied().take(versions.len()).max().unwrap();
        let is_gone = |(number, _): &(u32, u64)| *number < current && !numbers.contains(number);
        let gone = gone.into_iter().filter(is_gone);
        let retired = gone.map(|(aek_version, since_unix)| RetiredAek { aek_version, since_unix }).collect();
        let versions = versions.into_iter().zip(numbers.clone());
        AccountRecord {
            account, created_unix,
            versions: versions.map(|(version, aek_version)| WrappedAek { aek_version, ..version }).collect(),
            deleted: deleted.map(|(since_unix, purge_after_unix)| Deletion { since_unix, purge_after_unix }),
            policy: AekPolicy { max_age_secs, max_blocks, max_bytes },
            retired,
        }
    }
}

/// Decodes as everything. Whatever is taken is exactly what would be written; of version 1, what is the same record in 2.
fn decode_all(key: &Key, bytes: &[u8]) {
    if bytes.first() == Some(&1) && !matches!(key, Key::Denial(_)) {
        if let Ok(record) = AccountRecord::decode(key, bytes) {
            assert_eq!(AccountRecord::decode(key, &record.encode().unwrap()).unwrap(), record);
        }
        if let Ok(record) = KekRecord::decode(key, bytes) {
            assert_eq!(KekRecord::decode(key, &record.encode().unwrap()).unwrap(), record);
        }
        return;
    }
    if let Ok(record) = AccountRecord::decode(key, bytes) {
        assert_eq!((record.encode().unwrap().as_slice(), &record.key()), (bytes, key));
    }
    if let Ok(record) = KekRecord::decode(key, bytes) {
        assert_eq!((record.encode().unwrap().as_slice(), &record.key()), (bytes, key));
    }
    if let Ok(record) = DenialRecord::decode(key, bytes) {
        assert_eq!((record.encode().unwrap().as_slice(), &record.key()), (bytes, key));
    }
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::default() })]

    #[test]
    fn every_account_is_read_as_it_was_written(record in accounts()) {
        let bytes = record.encode().unwrap();
        prop_assert_eq!(AccountRecord::decode(&record.key(), &bytes).unwrap(), record);
    }

    #[test]
    fn random_bytes_never_panic_and_are_refused_or_canonical(bytes in vec(any::<u8>(), 0..200), kind in 0..3_u8) {
        for key in [account().key(), kek_record().key(), denial().key()] {
            decode_all(&key, &bytes);
            decode_all(&key, &[&[1, kind], bytes.as_slice()].concat());
            decode_all(&key, &[&[2, kind], bytes.as_slice()].concat());
            decode_all(&key, &[&[3, kind], bytes.as_slice()].concat());
        }
    }

    #[test]
    fn mutated_records_never_panic_and_are_refused_or_canonical(
        changes in vec((any::<proptest::sample::Index>(), any::<u8>(), 0..3_u8), 1..4),
    ) {
        for (key, bytes) in [
            (account().key(), golden(ACCOUNT)), (kek_record().key(), golden(KEK)), (denial().key(), golden(DENIAL)),
            (denial().key(), golden(STANDBY_DENIAL)), (denial().key(), golden(WITNESSED_DENIAL)),
        ] {
            let mut mutated = bytes;
            for (at, byte, how) in &changes {
                let at = at.index(mutated.len());
                match how {
                    0 => mutated[at] = *byte,
                    1 => mutated.insert(at, *byte),
                    _ => drop(mutated.remove(at)),
                }
            }
            decode_all(&key, &mutated);
        }
    }
}

fn secret() -> SecretRecord {
    let version =
        |version, enabled, not_before_unix, expires_unix, content_type: &str, tags: &[(&str, &str)]| SecretVersion {
            version,
            created_unix: 1_700_000_000,
            not_before_unix,
            expires_unix,
            enabled,
            content_type: content_type.into(),
            tags: tags.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        };
    SecretRecord {
        id: SecretId::new(AccountId::new("alice").unwrap(), SecretName::new("db/password").unwrap()),
        account_created_unix: 1_700_000_000,
        versions: vec![
            version(1, false, None, Some(1_700_086_400), "", &[]),
            version(3, true, Some(250), None, "text/plain", &[("owner", "ops"), ("tier", "")]),
        ],
        deleted: Some(Deletion { since_unix: 1_700_086_400, purge_after_unix: 1_700_717_952 }),
        rotation: Some(Rotation {
            every_secs: 2_592_000,
            overlap_secs: 86_400,
            timeout_secs: 60,
            hook: "/opt/swap".into(),
            proof: bytes(0x40..0x48),
            due_unix: 1 << 33,
            failures: 2,
            making: Some(Making { version: 4, run: 3, until_unix: 1_700_000_070 }),
        }),
    }
}

fn secret_value() -> SecretValueRecord {
    // Of suite 1, and five bytes of ciphertext.
    let header = [&[1, 1, 0, 0, 0, 0, 0, 7][..], &bytes(0x10..0x28), &bytes(0x30..0x40)].concat();
    SecretValueRecord { id: secret().id, version: 3, block: [header, bytes(0xa0..0xa5)].concat() }
}

#[test]
fn the_bytes_of_secrets_never_change_and_nothing_else_is_read_for_them() {
    let (secret, value) = (secret(), secret_value());
    assert_eq!(hex::encode(secret.put().unwrap().value), hex::encode(golden(SECRET)));
    assert_eq!(SecretRecord::decode(&secret.key(), &golden(SECRET)).unwrap(), secret);
    assert_eq!(hex::encode(value.put().unwrap().value), hex::encode(golden(SECRET_VALUE)));
    assert_eq!(SecretValueRecord::decode(&value.key(), &golden(SECRET_VALUE)).unwrap(), value);
    for len in 0..golden(SECRET).len() {
        refused(&secret.key(), SecretRecord::decode(&secret.key(), &golden(SECRET)[..len]));
    }
    for len in 0..golden(SECRET_VALUE).len() {
        refused(&value.key(), SecretValueRecord::decode(&value.key(), &golden(SECRET_VALUE)[..len]));
    }
    let of =
        |account: &str, name: &str| SecretId::new(AccountId::new(account).unwrap(), SecretName::new(name).unwrap());
    for id in [of("alice", "db/passwore"), of("alicf", "db/password")] {
        let (head, sealed) = (Key::Secret(id.clone()), Key::SecretValue(id, 3));
        assert!(refused(&head, SecretRecord::decode(&head, &golden(SECRET))).contains("moved or exchanged"));
        assert!(
            refused(&sealed, SecretValueRecord::decode(&sealed, &golden(SECRET_VALUE))).contains("moved or exchanged")
        );
    }
    let other = Key::SecretValue(value.id.clone(), 4);
    assert!(refused(&other, SecretValueRecord::decode(&other, &golden(SECRET_VALUE))).contains("version 3"));
    assert!(
        refused(&secret.key(), SecretRecord::decode(&secret.key(), &golden(SECRET_VALUE))).contains("another kind")
    );
}

#[test]
fn a_secret_that_breaks_a_rule_is_not_written() {
    let bad = |words: &str, change: &dyn Fn(&mut SecretRecord)| {
        let mut record = secret();
        change(&mut record);
        let error = record.put().unwrap_err().to_string();
        assert!(error.contains("secret db/password of account alice") && error.contains(words), "{error}");
    };
    bad("0 secret versions", &|record| record.versions.clear());
    bad("secret version 1 follows 1", &|record| record.versions[1].version = 1);
    bad("expires after it begins", &|record| record.versions[1].expires_unix = Some(250));
    bad("control character", &|record| record.versions[1].content_type = "a\nb".into());
    bad("at most 128 bytes", &|record| record.versions[1].content_type = "a".repeat(129));
    bad("each another", &|record| record.versions[1].tags[1].0 = "owner".into());
    bad("each another", &|record| record.versions[1].tags[0].0.clear());
    bad("at most 16 tags", &|record| {
        record.versions[1].tags = (0..17).map(|tag| (format!("{tag:02}"), String::new())).collect();
    });
    bad("at most 196608", &|record| {
        record.versions[1].tags = (0..16).map(|tag| (format!("{tag:02}"), "v".repeat(256))).collect();
        let version = record.versions[1].clone();
        record.versions = (1..=60).map(|number| SecretVersion { version: number, ..version.clone() }).collect();
        record.rotation = None;
    });
    bad("is absolute", &|record| record.rotation.as_mut().unwrap().hook = "swap".into());
    bad("version 3 is being made", &|record| {
        record.rotation.as_mut().unwrap().making.as_mut().unwrap().version = 3;
    });
    let long = SecretValueRecord { block: [&secret_value().block[..48], &vec![0; 65_537]].concat(), ..secret_value() };
    assert!(long.put().unwrap_err().to_string().contains("65537 bytes, at most 65536"));
    assert!(SecretValueRecord { version: 0, ..secret_value() }.put().is_err());
    assert!(SecretValueRecord { block: vec![1; 47], ..secret_value() }.put().is_err());
}

/// The largest of both, so that what may be set can be stored.
#[test]
fn the_largest_secret_is_written_and_read() {
    let mut record = secret();
    let version = SecretVersion {
        content_type: "c".repeat(128),
        tags: (0..2).map(|tag| (format!("{tag}{}", "n".repeat(63)), "v".repeat(256))).collect(),
        ..record.versions[1].clone()
    };
    record.rotation = None;
    record.versions =
        (0..256).map(|back| SecretVersion { version: u32::MAX - 255 + back, ..version.clone() }).collect();
    assert_eq!(SecretRecord::decode(&record.key(), &record.put().unwrap().value).unwrap(), record);
    let value = SecretValueRecord { block: [&secret_value().block[..48], &[9; 65_536]].concat(), ..secret_value() };
    assert_eq!(SecretValueRecord::decode(&value.key(), &value.put().unwrap().value).unwrap(), value);
}
