//! What is moved, swapped or damaged between accounts, versions and KEKs is refused by its declared error.

use super::*;
use keyleash::{
    Corrupt, Error,
    block::BlockHeader,
    name::KekVersion,
    rotate::RewrapOptions,
    secret::Aek,
    store::{
        Key, KeyStore, Put,
        record::{AccountRecord, AekPolicy, KekPolicy, RECORD_FORMAT, binding, check_value, context},
    },
    telemetry::Event,
    token::{
        KekHandle, KekId, Token,
        scripted::{Act, Call},
    },
};

async fn record(rig: &Rig, id: &str) -> AccountRecord {
    rig.engine.account_record(&account_id(id)).await.unwrap()
}

async fn overwrite(rig: &Rig, record: &AccountRecord) {
    let key = Key::Account(record.account.clone());
    let version = rig.store.get(&key).await.unwrap().unwrap().version;
    let put = Put { value: record.encode().unwrap(), wrapped_by: record.wrapped_by(), guards: Vec::new() };
    rig.store.replace(&key, &version, put).await.unwrap();
}

fn refused<T: std::fmt::Debug>(outcome: keyleash::Result<T>, corrupt: Corrupt) {
    assert_eq!(outcome.unwrap_err(), Error::Corrupt(corrupt));
}

#[tokio::test]
async fn a_block_moved_to_another_account_address_or_aek_version_is_refused() {
    let rig = Rig::new().await;
    let (one, other) = (rig.account("one").await, rig.account("other").await);
    let block = one.seal_to_vec(5_u64, b"plaintext").unwrap();
    refused(other.open_to_vec(5_u64, &block), Corrupt::Block);
    refused(one.open_to_vec(6_u64, &block), Corrupt::Block);
    let mut other_version = block.clone();
    other_version[7] ^= 2;
    // Another process may have made version 3: only the store can say that nobody did.
    assert!(matches!(one.open_to_vec(5_u64, &other_version), Err(Error::Cold { .. })));
    let (header, _) = BlockHeader::split(&other_version).unwrap();
    refused(one.warm_for(&header).await, Corrupt::AekVersion(3));
    assert_eq!(one.open_to_vec(5_u64, &block).unwrap(), b"plaintext");
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_a_block_is_refused_and_gives_no_plaintext() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let block = account.seal_to_vec(5_u64, b"plaintext").unwrap();
    for bit in 0..block.len() * 8 {
        let mut flipped = block.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let mut error = account.open_to_vec(5_u64, &flipped).unwrap_err();
        if (4..=7).contains(&(bit / 8)) && matches!(error, Error::Cold { .. }) {
            error = account.warm_for(&BlockHeader::split(&flipped).unwrap().0).await.unwrap_err();
        }
        let Error::Corrupt(corrupt) = error else { panic!("bit {bit}: {error}") };
        let declared = match bit / 8 {
            0 => matches!(corrupt, Corrupt::HeaderVersion(_)),
            // Suite 1 to 0, 3, 5 … does not exist; there is no single flip to 2.
            1 => matches!(corrupt, Corrupt::HeaderSuite(_)),
            2 | 3 => corrupt == Corrupt::HeaderReserved,
            4..=7 => matches!(corrupt, Corrupt::AekVersion(_)),
            _ => corrupt == Corrupt::Block,
        };
        assert!(declared, "bit {bit}: {corrupt}");
    }
    for len in 0..block.len() {
        let error = account.open_to_vec(5_u64, &block[..len]).unwrap_err();
        assert!(matches!(error, Error::Corrupt(Corrupt::HeaderTruncated { .. } | Corrupt::Block)), "{len}: {error}");
    }
}

#[tokio::test]
async fn a_refused_block_leaves_no_plaintext_in_the_buffer() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let mut buf = *b"plaintext of a block";
    let header = account.seal_in_place(1_u64, &mut buf).unwrap();
    let ciphertext = buf;
    let mut out = [9; 20];
    refused(account.open_into(2_u64, &header, &ciphertext, &mut out), Corrupt::Block);
    assert_eq!(out, [0; 20]);
    refused(account.open_in_place(2_u64, &header, &mut buf), Corrupt::Block);
    assert_eq!(buf, [0; 20]);
    let split = BlockHeader::split(header.as_bytes()).unwrap();
    assert_eq!(split.1.len(), 0);
}

#[tokio::test]
async fn a_wrapped_aek_moved_between_accounts_is_refused() {
    for profile in Profile::ALL {
        let mut rig = Rig::new().await;
        let kek = KekName::new("other-kek").unwrap();
        rig.engine.create_kek(&kek, profile).await.unwrap();
        for id in ["one", "other"] {
            rig.engine.create_account(&account_id(id), &kek).await.unwrap();
        }
        let mut moved = record(&rig, "one").await;
        moved.versions[0].wrapped = record(&rig, "other").await.versions[0].wrapped.clone();
        overwrite(&rig, &moved).await;
        rig.restart();
        let error = rig.engine.account(&account_id("one")).await.unwrap_err();
        assert!(matches!(&error, Error::Corrupt(Corrupt::WrappedAek(account)) if account.contains("one")), "{error}");
        rig.engine.account(&account_id("other")).await.unwrap();
        // Its check value with it: still bound to the other account's id.
        moved.versions[0].check = record(&rig, "other").await.versions[0].check;
        overwrite(&rig, &moved).await;
        rig.restart();
        let error = rig.engine.account(&account_id("one")).await.unwrap_err();
        assert!(matches!(error, Error::Corrupt(Corrupt::WrappedAek(_))), "{error}");
    }
}

#[tokio::test]
async fn a_wrapped_aek_that_names_another_kek_version_is_refused() {
    let mut rig = Rig::new().await;
    rig.account("a").await;
    let mut moved = record(&rig, "a").await;
    moved.versions[0].kek.version = 2;
    overwrite(&rig, &moved).await;
    rig.restart();
    let error = rig.engine.account(&account_id("a")).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt(Corrupt::WrappedAek(_))), "{error}");
}

#[tokio::test]
async fn a_record_that_names_another_key_of_the_token_vouches_for_nothing_and_denies_nothing() {
    let mut rig = Rig::new().await;
    for id in ["a", "b"] {
        drop(rig.account(id).await);
    }
    rig.restart();
    drop(rig.account("c").await);
    let mut forged = record(&rig, "a").await;
    forged.versions[0].kek_id = KekId::new(vec![9; 16]).unwrap();
    overwrite(&rig, &forged).await;
    for n in 0..6 {
        // Longer than a proof vouches for.
        rig.pass(9 * SECOND).await;
        rig.account(&format!("d{n}")).await.seal_to_vec(1_u64, b"data").unwrap();
    }
}

#[tokio::test]
async fn another_kek_in_the_place_of_the_first_is_noticed_by_the_check_value() {
    let mut rig = Rig::new().await;
    rig.account("a").await;
    rig.restart();
    rig.script.push(Call::Unwrap, keyleash::token::scripted::Act::WrongPlaintext);
    let error = rig.engine.account(&account_id("a")).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt(Corrupt::WrappedAek(_))), "{error}");
}

#[tokio::test]
async fn every_bit_of_a_wrapped_aek_and_its_check_value_counts() {
    let mut rig = Rig::new().await;
    rig.account("a").await;
    let good = record(&rig, "a").await;
    let wrapped = &good.versions[0].wrapped;
    let (iv, bytes) = (wrapped.iv.len(), wrapped.bytes.len());
    for at in 0..iv + bytes + 32 {
        let mut bad = good.clone();
        let version = &mut bad.versions[0];
        let byte = if at < iv {
            &mut version.wrapped.iv[at]
        } else if at < iv + bytes {
            &mut version.wrapped.bytes[at - iv]
        } else {
            &mut version.check[at - iv - bytes]
        };
        *byte ^= 1 << (at % 8);
        overwrite(&rig, &bad).await;
        rig.restart();
        let error = rig.engine.account(&account_id("a")).await.unwrap_err();
        assert!(matches!(error, Error::Corrupt(Corrupt::WrappedAek(_))), "{at}: {error}");
    }
}

/// What was unwrapped in this process before tells damage from another KEK, where there is no other sample.
#[tokio::test]
async fn a_damaged_record_is_no_denial_though_it_is_the_only_one() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    seal(&account).unwrap();
    rig.flip_check("a", 1).await;
    for _ in 0..4 * 15 {
        rig.pass(SECOND).await;
        seal(&account).unwrap();
    }
    rig.pass(Settings::default().aek_ttl * 2).await;
    refused(account.warm().await, Corrupt::WrappedAek("account a".into()));
}

/// Each call well within its deadline, and four of them not.
#[tokio::test]
async fn another_kek_in_the_place_of_the_first_is_noticed_on_a_slow_token() {
    let rig = Rig::new().await;
    let mut accounts = Vec::new();
    for id in ["a", "b", "c", "d"] {
        accounts.push(rig.account(id).await);
    }
    rig.pass(20 * SECOND).await;
    rig.script.set_latency(SECOND * 14 / 10);
    rig.script.standing(Call::Unwrap, Act::WrongPlaintext);
    rig.pass(20 * SECOND).await;
    assert!(matches!(seal(&accounts[0]), Err(Error::Denied(_))));
}

#[tokio::test]
async fn no_call_touches_a_record_of_a_newer_release() {
    let mut rig = Rig::new().await;
    drop(rig.account("a").await);
    rig.restart(); // nothing of it is in memory
    let (engine, id, kek) = (&rig.engine, account_id("a"), KekVersion::new(rig.kek.clone(), 1));
    let newer = async |key: &Key, wrapped_by: Vec<KekVersion>| {
        let found = rig.store.get(key).await.unwrap().unwrap();
        let value = [&[RECORD_FORMAT + 1], found.value.as_slice()].concat();
        rig.store.replace(key, &found.version, Put { value, wrapped_by, guards: Vec::new() }).await.unwrap();
        rig.store.get(key).await.unwrap().unwrap()
    };
    let told = |error: Error| assert!(matches!(error, Error::Corrupt(Corrupt::NewerRecord { .. })), "{error}");
    let account_key = Key::Account(id.clone());
    let account = newer(&account_key, vec![kek.clone()]).await;
    told(engine.create_account(&id, &rig.kek).await.unwrap_err());
    told(engine.account(&id).await.unwrap_err());
    told(engine.rotate_account(&id).await.unwrap_err());
    told(engine.retire_aeks(&id, &[1], keyleash::When::Now).await.unwrap_err());
    told(engine.move_account(&id, &rig.kek).await.unwrap_err());
    told(engine.delete_account(&id).await.unwrap_err());
    told(engine.undelete_account(&id).await.unwrap_err());
    told(engine.purge_account(&id, keyleash::When::Now).await.unwrap_err());
    told(engine.set_aek_policy(&id, AekPolicy { max_blocks: 1, ..AekPolicy::default() }).await.unwrap_err());
    engine.rotate_kek(&rig.kek).await.unwrap();
    let report = rig.meanwhile(engine.rewrap_kek(&rig.kek, RewrapOptions::default(), |_| {})).await.unwrap();
    assert_eq!((report.accounts, report.failed), (0, 1));
    assert!(engine.retire_kek(&kek).await.is_err(), "it wraps an account");
    assert_eq!(rig.store.get(&account_key).await.unwrap(), Some(account));
    let kek_key = Key::Kek(rig.kek.clone());
    let record = newer(&kek_key, Vec::new()).await;
    told(engine.create_account(&account_id("b"), &rig.kek).await.unwrap_err());
    told(engine.rotate_kek(&rig.kek).await.unwrap_err());
    told(engine.retire_kek(&kek).await.unwrap_err());
    told(engine.attest_backup(&kek).await.unwrap_err());
    told(engine.set_kek_policy(&rig.kek, KekPolicy { max_age_secs: 86_400 }).await.unwrap_err());
    let error = engine.create_kek(&rig.kek, Profile::AesGcm).await.unwrap_err();
    assert!(matches!(error, Error::Exists(_)), "{error}");
    assert_eq!(rig.store.get(&kek_key).await.unwrap(), Some(record));
}

/// Made by somebody who can write the store and has the token wrap.
#[tokio::test]
async fn another_aek_under_the_same_version_does_not_take_the_place_of_the_one_in_use() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let block = account.seal_to_vec(1_u64, b"data").unwrap();
    let mut forged = record(&rig, "a").await;
    let wrapped = &mut forged.versions[0];
    let context = context(&wrapped.kek, &forged.account, wrapped.aek_version);
    let (aek, kek) = (Aek::generate().unwrap(), KekHandle { id: wrapped.kek_id.clone(), profile: wrapped.profile });
    wrapped.wrapped = rig.token.wrap(&kek, &aek, &binding(&context)).await.unwrap();
    wrapped.check = check_value(&aek, &context);
    overwrite(&rig, &forged).await;
    let mut opened = 0;
    for _ in 0..(15 * 60 / 5) {
        rig.pass(5 * SECOND).await;
        match account.open_to_vec(1_u64, &block) {
            Ok(plain) => {
                assert_eq!(plain, b"data");
                opened += 1;
            }
            Err(error) => assert!(matches!(error, Error::Cold { .. } | Error::Denied(_)), "{error}"),
        }
    }
    assert!(opened > 0);
}

#[tokio::test]
async fn records_that_are_damaged_make_no_silence_of_a_token_that_takes_its_time() {
    let rig = Rig::new().await;
    let whole = rig.account("a").await;
    let _damaged = [rig.account("b").await, rig.account("c").await, rig.account("d").await];
    rig.pass(40 * SECOND).await;
    for id in ["b", "c", "d"] {
        rig.flip_wrapping(id, 1).await;
    }
    let mut events = rig.engine.events();
    rig.script.standing(Call::Unwrap, Act::Delay(3 * SECOND));
    for _ in 0..5 * 60 {
        rig.pass(SECOND).await;
        seal(&whole).unwrap();
        let lease = &rig.engine.leases()[0];
        // One poll may come to damaged records alone.
        assert!(lease.proved_ago.unwrap() <= 2 * (15 + 5) * SECOND, "{lease:?}");
    }
    while let Some(event) = events.try_next() {
        assert!(!matches!(event, Event::Lease { .. }), "{event:?}");
    }
}
