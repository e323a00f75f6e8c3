//! Rotation, re-wrap and moving, on the manual clock.

use crate::{Rig, SECOND, account_id, build, of_suite, settle};
use keyleash::{
    Account, Corrupt, Engine, Error,
    block::Suite,
    clock::utc,
    config::Settings,
    name::{KekName, KekVersion},
    rotate::{RewrapOptions, RewrapProgress, RewrapReport},
    store::{
        Filter, Key, KeyStore, Put,
        memory::MemoryStore,
        record::{AccountRecord, KekPolicy, KekRecord},
    },
    token::{KekId, KekSpec, Profile, Token, scripted::Call},
};
use std::sync::Arc;

fn seal(account: &Account) -> Result<Vec<u8>, Error> {
    account.seal_to_vec(1_u64, b"data")
}

async fn rewrap(rig: &Rig) -> RewrapReport {
    let options = RewrapOptions::new().rate(1_000_000);
    rig.meanwhile(rig.engine.rewrap_kek(&rig.kek, options, |_| {})).await.unwrap()
}

fn version(rig: &Rig, version: u32) -> KekVersion {
    KekVersion::new(rig.kek.clone(), version)
}

async fn wrapped_by(engine: &Engine, id: &str) -> Vec<String> {
    let record = engine.account_record(&account_id(id)).await.unwrap();
    record.versions.iter().map(|aek| format!("{}:{}", aek.aek_version, aek.kek)).collect()
}

/// Another engine over the same token and store, as another process would have it.
fn other(rig: &Rig) -> Engine {
    build(&rig.token, &rig.store, &rig.clock, Settings::default())
}

#[tokio::test]
async fn new_aeks_go_under_the_new_kek_version_and_old_ones_stay_until_they_are_rewrapped() {
    let rig = Rig::new().await;
    let old = rig.account("old").await;
    let block = seal(&old).unwrap();
    let made = rig.engine.rotate_kek(&rig.kek).await.unwrap();
    assert_eq!((made.version, made.profile), (2, Profile::AesGcm));
    rig.account("new").await;
    assert_eq!(wrapped_by(&rig.engine, "old").await, ["1:kek/1"]);
    assert_eq!(wrapped_by(&rig.engine, "new").await, ["1:kek/2"]);
    let calls = rig.script.calls(Call::Unwrap);
    let dry = RewrapOptions::new().dry_run();
    let report = rig.engine.rewrap_kek(&rig.kek, dry, |_| {}).await.unwrap();
    assert_eq!((report.accounts, report.aeks, report.failed, report.stopped), (1, 1, 0, None));
    assert_eq!(rig.script.calls(Call::Unwrap), calls, "a dry run asks the token nothing");
    assert_eq!(wrapped_by(&rig.engine, "old").await, ["1:kek/1"]);
    let report = rewrap(&rig).await;
    assert_eq!((report.accounts, report.aeks, report.failed, report.stopped), (1, 1, 0, None));
    assert_eq!(report.to, version(&rig, 2));
    assert_eq!(wrapped_by(&rig.engine, "old").await, ["1:kek/2"]);
    assert_eq!(old.open_to_vec(1_u64, &block).unwrap(), b"data");
    rig.pass(30 * SECOND).await;
    // Nobody needs version 1 any more: its end denies nobody.
    rig.meanwhile(rig.engine.retire_kek(&version(&rig, 1))).await.unwrap();
    rig.script.destroy(&rig.kek_id);
    for _ in 0..40 {
        rig.pass(SECOND).await;
        seal(&old).unwrap();
    }
    assert_eq!(rewrap(&rig).await.accounts, 0, "nothing is left to do");
}

#[tokio::test]
async fn a_kek_version_that_still_wraps_or_is_current_is_not_retired() {
    let rig = Rig::new().await;
    rig.account("a").await;
    rig.account("b").await;
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    let error = rig.meanwhile(rig.engine.retire_kek(&version(&rig, 1))).await.unwrap_err().to_string();
    assert!(error.contains("wraps AEKs of 2 accounts") && error.contains("account list --kek kek/1"), "{error}");
    let error = rig.meanwhile(rig.engine.retire_kek(&version(&rig, 2))).await.unwrap_err().to_string();
    assert!(error.contains("wraps new AEKs") && error.contains("kek rotate kek"), "{error}");
    assert!(matches!(rig.meanwhile(rig.engine.retire_kek(&version(&rig, 3))).await, Err(Error::NotFound(_))));
    rewrap(&rig).await;
    rig.meanwhile(rig.engine.retire_kek(&version(&rig, 1))).await.unwrap();
    rig.meanwhile(rig.engine.retire_kek(&version(&rig, 1))).await.unwrap();
    let kek = rig.engine.kek(&rig.kek).await.unwrap();
    assert!(kek.versions[0].record.retired_unix.is_some() && kek.versions[1].record.retired_unix.is_none());
    assert_eq!(rig.engine.rotate_kek(&rig.kek).await.unwrap().version, 3);
}

/// By hand, as a process leaves it that is killed between its two looks, the second of which would have found an account.
#[tokio::test]
async fn a_retirement_that_was_cut_off_is_taken_back_where_the_version_is_used_after_all() {
    let rig = Rig::new().await;
    rig.account("a").await;
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    let key = Key::Kek(rig.kek.clone());
    let found = rig.store.get(&key).await.unwrap().unwrap();
    let mut record = KekRecord::decode(&key, &found.value).unwrap();
    record.versions[0].retired_unix = Some(1_800_000_000);
    rig.store.replace(&key, &found.version, record.put().unwrap()).await.unwrap();
    let is_retired = async || rig.engine.kek(&rig.kek).await.unwrap().versions[0].record.retired_unix.is_some();
    assert!(is_retired().await);
    let error = rig.meanwhile(rig.engine.retire_kek(&version(&rig, 1))).await.unwrap_err().to_string();
    assert!(error.contains("still wraps AEKs of 1 account:"), "{error}");
    assert!(!is_retired().await, "its key may be deleted by whoever believes it");
    rewrap(&rig).await;
    rig.meanwhile(rig.engine.retire_kek(&version(&rig, 1))).await.unwrap();
    assert!(is_retired().await);
}

#[tokio::test]
async fn a_kek_version_that_is_another_key_than_was_shown_is_not_retired() {
    let rig = Rig::new().await;
    rig.account("a").await;
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    rewrap(&rig).await;
    let shown = rig.engine.retirable_kek(&version(&rig, 1)).await.unwrap();
    let mut another = shown.clone();
    another.id = KekId::new([9, 9]).unwrap();
    let refused = rig.meanwhile(rig.engine.retire_kek_as_shown(&rig.kek, &another)).await;
    assert!(matches!(&refused, Err(Error::Conflict(what)) if what.contains("was not retired")), "{refused:?}");
    let retired = async || rig.engine.kek(&rig.kek).await.unwrap().versions[0].record.retired_unix;
    assert_eq!(retired().await, None);
    rig.meanwhile(rig.engine.retire_kek_as_shown(&rig.kek, &shown)).await.unwrap();
    assert!(retired().await.is_some());
}

#[tokio::test]
async fn an_account_that_was_wrapped_while_its_kek_version_was_retired_is_moved_on() {
    let rig = Rig::new().await;
    rig.account("a").await;
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    rewrap(&rig).await;
    let before = rig.store.get(&Key::Kek(rig.kek.clone())).await.unwrap().unwrap();
    rig.meanwhile(rig.engine.retire_kek(&version(&rig, 1))).await.unwrap();
    // The creation read the KEK's record before the rotation, and is written after the retirement.
    let late = other(&rig);
    let at = account_id("late");
    let retired = rig.store.get(&Key::Kek(rig.kek.clone())).await.unwrap().unwrap();
    let mut old = keyleash::store::record::KekRecord::decode(&Key::Kek(rig.kek.clone()), &before.value).unwrap();
    old.current = 1;
    rig.store.replace(&Key::Kek(rig.kek.clone()), &retired.version, old.put().unwrap()).await.unwrap();
    rig.script.set_latency(3 * SECOND);
    let creation = tokio::spawn({
        let (late, at, kek) = (late.clone(), at.clone(), rig.kek.clone());
        async move { late.create_account(&at, &kek).await }
    });
    settle().await; // it is in the token
    let now = rig.store.get(&Key::Kek(rig.kek.clone())).await.unwrap().unwrap();
    let put = Put { value: retired.value, wrapped_by: Vec::new(), guards: Vec::new() };
    rig.store.replace(&Key::Kek(rig.kek.clone()), &now.version, put).await.unwrap();
    let account = rig.meanwhile(creation).await.unwrap().unwrap();
    seal(&account).unwrap();
    assert_eq!(wrapped_by(&rig.engine, "late").await, ["1:kek/2"]);
}

#[tokio::test]
async fn a_key_that_an_operator_made_is_adopted_if_it_is_of_the_right_kind() {
    let rig = Rig::new().await;
    rig.account("a").await;
    let make = |label: &str, profile| {
        let spec = KekSpec { label: label.into(), profile, destroyable: false };
        let token = rig.token.clone();
        async move { token.create_kek(&spec).await.unwrap().id }
    };
    let (good, wrong) = (make("vendor-rotated", Profile::AesGcm).await, make("other", Profile::AesKw).await);
    let adopt = async |name: &KekName, id: &KekId| rig.engine.adopt_kek(name, id).await;
    let error = adopt(&rig.kek, &wrong).await.unwrap_err().to_string();
    assert!(error.contains("is for aes-kw") && error.contains("KEK kek is aes-gcm"), "{error}");
    let missing = KekId::new([9, 9]).unwrap();
    assert!(matches!(adopt(&rig.kek, &missing).await, Err(Error::NotFound(_))));
    assert!(matches!(adopt(&KekName::new("none").unwrap(), &good).await, Err(Error::NotFound(_))));
    assert!(matches!(adopt(&rig.kek, &rig.kek_id).await, Err(Error::Exists(_))));
    rig.script.disable(&good);
    assert!(adopt(&rig.kek, &good).await.is_err());
    rig.script.enable(&good);
    assert_eq!(adopt(&rig.kek, &good).await.unwrap().version, 2);
    assert!(matches!(adopt(&rig.kek, &good).await, Err(Error::Exists(_))));
    assert_eq!(rewrap(&rig).await.accounts, 1);
    assert_eq!(wrapped_by(&rig.engine, "a").await, ["1:kek/2"]);
}

#[tokio::test]
async fn a_rotation_that_a_crash_cut_short_takes_the_key_that_it_left() {
    let rig = Rig::new().await;
    let spec = KekSpec { label: rig.label(2).await, profile: Profile::AesGcm, destroyable: false };
    let left = rig.token.create_kek(&spec).await.unwrap().id;
    assert_eq!(rig.engine.rotate_kek(&rig.kek).await.unwrap().id, left);
}

#[tokio::test]
async fn two_stores_on_one_token_have_no_key_in_common_whatever_their_keks_are_called_and_whoever_crashes() {
    let rig = Rig::new().await;
    let other = Arc::new(MemoryStore::new());
    let theirs = build(&rig.token, &other, &rig.clock, Settings::default());
    // The same name; and here the making was cut short between token and store.
    let key = Key::Kek(rig.kek.clone());
    let record = rig.store.get(&key).await.unwrap().unwrap();
    rig.store.delete(&key, &record.version).await.unwrap();
    let their_kek = theirs.create_kek(&rig.kek, Profile::AesGcm).await.unwrap().id;
    assert_ne!(their_kek, rig.kek_id);
    assert_eq!(rig.engine.create_kek(&rig.kek, Profile::AesGcm).await.unwrap().id, rig.kek_id, "its own is taken up");
    let second = rig.engine.rotate_kek(&rig.kek).await.unwrap().id;
    assert_ne!(theirs.rotate_kek(&rig.kek).await.unwrap().id, second);
    // Nor by name.
    let adopted = theirs.adopt_kek(&rig.kek, &second).await;
    assert!(matches!(&adopted, Err(Error::Misconfigured(what)) if what.contains("another store")), "{adopted:?}");
}

#[tokio::test]
async fn a_key_under_two_names_is_not_retired_under_one_of_them() {
    let rig = Rig::new().await;
    // As a release took it that went by labels alone.
    let mut record = rig.engine.kek(&rig.kek).await.unwrap().versions.remove(0).record;
    record.version = 1;
    let name = KekName::new("twin").unwrap();
    let twin = KekRecord { name, versions: vec![record], current: 1, policy: KekPolicy::default() };
    rig.store.create(&twin.key(), twin.put().unwrap()).await.unwrap();
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    let refused = rig.engine.retire_kek(&KekVersion::new(rig.kek.clone(), 1)).await;
    assert!(matches!(&refused, Err(Error::Invalid(what)) if what.contains("KEK twin/1")), "{refused:?}");
}

#[tokio::test]
async fn a_stray_key_that_one_kek_adopted_is_not_taken_by_another() {
    let rig = Rig::new().await;
    let stray = rig.label(1).await.replace("/kek/", "/b/");
    let spec = KekSpec { label: stray, profile: Profile::AesGcm, destroyable: false };
    let id = rig.token.create_kek(&spec).await.unwrap().id;
    assert_eq!(rig.engine.adopt_kek(&rig.kek, &id).await.unwrap().version, 2);
    let made = rig.engine.create_kek(&KekName::new("b").unwrap(), Profile::AesGcm).await.unwrap();
    assert_ne!(made.id, id);
}

#[tokio::test]
async fn every_live_handle_seals_under_the_new_aek_version_at_once_and_opens_what_was_sealed_before() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let also = rig.engine.account(&account_id("a")).await.unwrap();
    let mut blocks = vec![seal(&account).unwrap()];
    for aek_version in 2..=4 {
        assert_eq!(rig.engine.rotate_account(&account_id("a")).await.unwrap(), aek_version);
        assert_eq!((account.aek_version(), also.aek_version()), (aek_version, aek_version));
        blocks.push(seal(&also).unwrap());
    }
    for (index, block) in blocks.iter().enumerate() {
        let (header, _) = keyleash::block::BlockHeader::split(block).unwrap();
        assert_eq!(header.aek_version(), index as u32 + 1);
        let mut plaintext = block[48..].to_vec();
        account.open(1_u64, &header, &mut plaintext).await.unwrap();
        assert_eq!(plaintext, b"data");
    }
}

#[tokio::test]
async fn another_process_uses_a_new_aek_version_within_one_ttl_and_opens_its_blocks_at_once() {
    let rig = Rig::new().await;
    let here = rig.account("a").await;
    let there = other(&rig).account(&account_id("a")).await.unwrap();
    seal(&there).unwrap();
    rig.engine.rotate_account(&account_id("a")).await.unwrap();
    let block = seal(&here).unwrap();
    let (header, ciphertext) = keyleash::block::BlockHeader::split(&block).unwrap();
    assert_eq!(header.aek_version(), 2);
    assert_eq!(there.aek_version(), 1, "it has not heard of it");
    let mut plaintext = ciphertext.to_vec();
    assert!(matches!(there.open_in_place(1_u64, &header, &mut plaintext), Err(Error::Cold { .. })));
    there.open(1_u64, &header, &mut plaintext).await.unwrap();
    assert_eq!(plaintext, b"data");
    assert_eq!(there.aek_version(), 2);
    // A version that nobody made is asked for in the store, and refused by name.
    let mut forged = header.as_bytes().to_vec();
    forged[7] = 9;
    let (forged, _) = keyleash::block::BlockHeader::split(&forged).unwrap();
    let refused = there.open(1_u64, &forged, &mut plaintext).await;
    assert_eq!(refused, Err(Error::Corrupt(Corrupt::AekVersion(9))));

    rig.engine.rotate_account(&account_id("a")).await.unwrap();
    for _ in 0..600 {
        rig.pass(SECOND).await;
        seal(&there).unwrap(); // never cold on the way
    }
    assert_eq!(there.aek_version(), 3);
}

#[tokio::test]
async fn an_idle_handle_of_another_process_seals_under_the_version_that_is_current_when_it_is_warmed() {
    let rig = Rig::new().await;
    rig.account("a").await;
    let there = other(&rig).account(&account_id("a")).await.unwrap();
    rig.pass(25 * 60 * SECOND).await;
    assert!(matches!(seal(&there), Err(Error::Cold { .. })));
    rig.engine.rotate_account(&account_id("a")).await.unwrap();
    rig.engine.retire_aeks(&account_id("a"), &[1], keyleash::When::Now).await.unwrap();
    there.warm().await.unwrap();
    assert_eq!(there.aek_version(), 2);
    seal(&there).unwrap();
}

#[tokio::test]
async fn a_retired_aek_version_is_gone_from_record_and_memory_and_the_current_one_cannot_go() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let there = other(&rig).account(&account_id("a")).await.unwrap();
    let block = seal(&account).unwrap();
    let id = account_id("a");
    assert!(matches!(rig.engine.retire_aeks(&id, &[1], keyleash::When::Now).await, Err(Error::Invalid(_))));
    rig.engine.rotate_account(&id).await.unwrap();
    assert!(matches!(rig.engine.retire_aeks(&id, &[7], keyleash::When::Due).await, Err(Error::NotFound(_))));
    rig.engine.retirable_aeks(&id, &[1], keyleash::When::Now).await.unwrap();
    account.open_to_vec(1_u64, &block).unwrap();
    rig.engine.retire_aeks(&id, &[1], keyleash::When::Now).await.unwrap();
    let retired = utc(rig.engine.account_record(&id).await.unwrap().retired[0].since_unix);
    let says_when = |outcome: keyleash::Result<Vec<u8>>| {
        let text = outcome.unwrap_err().to_string();
        assert!(text.starts_with("not found: AEK version 1 of account a: it was retired on"), "{text}");
        assert!(text.contains(&retired), "{text} should say {retired}");
    };
    assert_eq!(wrapped_by(&rig.engine, "a").await, ["2:kek/1"]);
    says_when(account.open_to_vec(1_u64, &block));
    says_when(rig.engine.retire_aeks(&id, &[1], keyleash::When::Now).await.map(|()| Vec::new()));
    let (header, _) = keyleash::block::BlockHeader::split(&block).unwrap();
    let fresh = other(&rig).account(&id).await.unwrap();
    says_when(fresh.open_to_vec(1_u64, &block));
    says_when(fresh.warm_for(&header).await.map(|()| Vec::new()));
    // One that nobody made is no retired one.
    rig.engine.rotate_account(&id).await.unwrap();
    let mut forged = block.clone();
    forged[7] = 0;
    assert_eq!(account.open_to_vec(1_u64, &forged), Err(Error::Corrupt(Corrupt::AekVersion(0))));
    there.open_to_vec(1_u64, &block).unwrap();
    for _ in 0..610 {
        rig.pass(SECOND).await;
        seal(&there).unwrap();
    }
    says_when(there.open_to_vec(1_u64, &block));
}

#[tokio::test]
async fn a_block_is_resealed_under_the_current_version() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let mut buf = b"data".to_vec();
    let old = account.seal_in_place(5_u64, &mut buf).unwrap();
    assert_eq!(account.reseal_in_place(5_u64, &old, &mut buf).unwrap(), old, "it is current");
    rig.engine.rotate_account(&account_id("a")).await.unwrap();
    let before = buf.clone();
    let new = account.reseal_in_place(5_u64, &old, &mut buf).unwrap();
    assert_eq!((new.aek_version(), old.aek_version()), (2, 1));
    assert_ne!(buf, before);
    let mut wrong = before.clone();
    assert!(matches!(account.reseal_in_place(6_u64, &old, &mut wrong), Err(Error::Corrupt(Corrupt::Block))));
    assert!(wrong.iter().all(|byte| *byte == 0), "no plaintext of a block that was refused");
    account.open_in_place(5_u64, &new, &mut buf).unwrap();
    assert_eq!(buf, b"data");
    rig.script.disable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    let mut kept = before.clone();
    assert!(matches!(account.reseal_in_place(5_u64, &old, &mut kept), Err(Error::Denied(_))));
    assert_eq!(kept, before, "a denied key leaves the buffer alone");
}

#[tokio::test]
async fn a_reseal_changes_the_suite_too_and_its_async_form_warms_both_keys() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let committing = of_suite(&rig, Suite::XaesGcmCommit);
    let other = committing.account(&account_id("a")).await.unwrap();
    let mut buf = b"data".to_vec();
    let plain_header = account.seal_in_place(5_u64, &mut buf).unwrap();
    let committed = other.reseal_in_place(5_u64, &plain_header, &mut buf).unwrap();
    assert_eq!((committed.suite(), committed.aek_version()), (Suite::XaesGcmCommit, 1));
    assert_eq!(other.reseal_in_place(5_u64, &committed, &mut buf).unwrap(), committed, "it is of both");
    // The account has another AEK version since, which that engine has not heard of, and the key of neither.
    rig.engine.rotate_account(&account_id("a")).await.unwrap();
    let back = account.reseal_in_place(5_u64, &committed, &mut buf).unwrap();
    assert_eq!((back.suite(), back.aek_version()), (Suite::XaesGcm, 2));
    committing.wipe_now(&rig.kek);
    let before = buf.clone();
    assert!(matches!(other.reseal_in_place(5_u64, &back, &mut buf), Err(Error::Cold { .. })));
    assert_eq!(buf, before);
    let again = rig.meanwhile(other.reseal(5_u64, &back, &mut buf)).await.unwrap();
    assert_eq!((again.suite(), again.aek_version()), (Suite::XaesGcmCommit, 2));
    account.open_in_place(5_u64, &again, &mut buf).unwrap();
    assert_eq!(buf, b"data");
}

#[tokio::test]
async fn a_rewrap_reports_damaged_accounts_and_goes_on() {
    let rig = Rig::new().await;
    for index in 0..20 {
        rig.account(&format!("a{index:02}")).await;
    }
    let key = Key::Account(account_id("a07"));
    let found = rig.store.get(&key).await.unwrap().unwrap();
    let mut record = AccountRecord::decode(&key, &found.value).unwrap();
    record.versions[0].wrapped.bytes[3] ^= 1;
    rig.store.replace(&key, &found.version, record.put().unwrap()).await.unwrap();
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    let report = rewrap(&rig).await;
    assert_eq!((report.accounts, report.failed, &report.stopped), (19, 1, &None));
    assert_eq!(report.failures[0].account, account_id("a07"));
    assert!(matches!(report.failures[0].error, Error::Corrupt(Corrupt::WrappedAek(_))), "{report:?}");
    assert_eq!(AccountRecord::decode(&key, &rig.store.get(&key).await.unwrap().unwrap().value).unwrap(), record);
}

#[tokio::test]
async fn a_rewrap_stops_at_a_denial_and_goes_on_from_there() {
    let rig = Rig::new().await;
    for index in 0..300 {
        rig.account(&format!("a{index:03}")).await;
    }
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    let script = rig.script.clone();
    let id = rig.kek_id.clone();
    let progress = move |progress: RewrapProgress| {
        if progress.done == 100 {
            script.disable(&id);
        }
    };
    let options = RewrapOptions::new().rate(1_000_000);
    let report = rig.meanwhile(rig.engine.rewrap_kek(&rig.kek, options, progress)).await.unwrap();
    assert!(matches!(report.stopped, Some(Error::Denied(_))), "{:?}", report.stopped);
    assert!((100..300).contains(&report.accounts), "{}", report.accounts);
    assert_eq!(rig.engine.count_wrapped_by(&version(&rig, 2)).await.unwrap(), report.accounts);
    rig.script.enable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    let rest = rewrap(&rig).await;
    assert_eq!((rest.accounts, rest.stopped), (300 - report.accounts, None));
    assert_eq!(rig.engine.count_wrapped_by(&version(&rig, 1)).await.unwrap(), 0);
}

#[tokio::test]
async fn an_account_that_several_kek_versions_wrap_is_counted_once_before_and_after() {
    let rig = Rig::new().await;
    for id in ["a", "b"] {
        rig.account(id).await;
    }
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    rig.engine.rotate_account(&account_id("a")).await.unwrap();
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    for dry_run in [true, false] {
        let last = std::sync::Mutex::default();
        let mut options = RewrapOptions::new().rate(1_000_000);
        options.dry_run = dry_run;
        let rewrapping = rig.engine.rewrap_kek(&rig.kek, options, |progress| *last.lock().unwrap() = progress);
        let report = rig.meanwhile(rewrapping).await.unwrap();
        assert_eq!((report.accounts, report.aeks, report.failed, report.stopped), (2, 3, 0, None), "dry: {dry_run}");
        let RewrapProgress { accounts, done, .. } = last.into_inner().unwrap();
        assert_eq!(accounts, done, "dry: {dry_run}");
    }
}

#[tokio::test]
async fn two_engines_rewrap_and_rotate_at_once_and_lose_and_double_nothing() {
    let rig = Rig::new().await;
    let there = other(&rig);
    let mut blocks = Vec::new();
    for index in 0..100 {
        blocks.push(seal(&rig.account(&format!("a{index:02}")).await).unwrap());
    }
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    let options = RewrapOptions::new().rate(1_000_000);
    let ids: Vec<_> = (0..100).map(|index| account_id(&format!("a{index:02}"))).collect();
    let rotating = async {
        for id in &ids {
            there.rotate_account(id).await.unwrap();
        }
    };
    let both = async {
        tokio::join!(
            rig.engine.rewrap_kek(&rig.kek, options, |_| {}),
            there.rewrap_kek(&rig.kek, options, |_| {}),
            rotating
        )
    };
    let (one, two, ()) = rig.meanwhile(both).await;
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((one.failed, two.failed, one.stopped, two.stopped), (0, 0, None, None));
    assert_eq!(rewrap(&rig).await.accounts, 0);
    for (id, block) in ids.iter().zip(&blocks) {
        assert_eq!(wrapped_by(&rig.engine, id.as_str()).await, ["1:kek/2", "2:kek/2"]);
        let account = there.account(id).await.unwrap();
        let (header, ciphertext) = keyleash::block::BlockHeader::split(block).unwrap();
        let mut plaintext = ciphertext.to_vec();
        account.open(1_u64, &header, &mut plaintext).await.unwrap();
        assert_eq!(plaintext, b"data");
    }
}

#[tokio::test]
async fn an_account_moves_to_another_kek_and_its_handle_follows() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let block = seal(&account).unwrap();
    rig.engine.rotate_account(&account_id("a")).await.unwrap();
    let second = KekName::new("second").unwrap();
    assert!(matches!(rig.engine.move_account(&account_id("a"), &second).await, Err(Error::NotFound(_))));
    rig.engine.create_kek(&second, Profile::AesKw).await.unwrap();
    assert!(rig.meanwhile(rig.engine.move_account(&account_id("a"), &second)).await.unwrap());
    assert!(!rig.meanwhile(rig.engine.move_account(&account_id("a"), &second)).await.unwrap(), "it is there");
    assert_eq!(wrapped_by(&rig.engine, "a").await, ["1:second/1", "2:second/1"]);
    let page = rig.store.list(&Filter::WrappedBy(version(&rig, 1)), None, 9).await.unwrap();
    assert!(page.keys.is_empty(), "the old wrapping is gone");
    rig.pass(20 * SECOND).await;
    rig.script.destroy(&rig.kek_id);
    for _ in 0..30 {
        rig.pass(SECOND).await;
        seal(&account).unwrap();
        assert_eq!(account.open_to_vec(1_u64, &block).unwrap(), b"data");
    }
}

#[tokio::test]
async fn new_accounts_only_under_a_kek_that_can_be_restored_where_that_is_asked_for() {
    let rig = Rig::with(Settings::default().require_recoverable(true)).await;
    let create = async |id: &str| rig.engine.create_account(&account_id(id), &rig.kek).await;
    let error = create("a").await.unwrap_err();
    assert!(matches!(&error, Error::Misconfigured(what) if what.contains("kek attest-backup kek/1")), "{error}");
    rig.engine.attest_backup(&version(&rig, 1)).await.unwrap();
    create("a").await.unwrap();
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    assert!(matches!(create("b").await, Err(Error::Misconfigured(_))));
    rig.engine.rotate_account(&account_id("a")).await.unwrap();
}

#[tokio::test]
async fn an_index_that_lost_an_account_does_not_retire_the_kek_version_that_wraps_it() {
    let rig = Rig::new().await;
    rig.account("a").await;
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    let key = Key::Account(account_id("a"));
    let found = rig.store.get(&key).await.unwrap().unwrap();
    let unindexed = Put { value: found.value.clone(), wrapped_by: Vec::new(), guards: Vec::new() };
    let seen = rig.store.replace(&key, &found.version, unindexed).await.unwrap();
    let error = rig.engine.retire_kek(&version(&rig, 1)).await.unwrap_err().to_string();
    assert!(error.contains("wraps AEKs of 1 account"), "{error}");
    assert_eq!(rig.engine.count_wrapped_by(&version(&rig, 1)).await.unwrap(), 1);
    let found_by_check = keyleash::store::check::check(&*rig.store).await.unwrap();
    assert_eq!((found_by_check.accounts, found_by_check.keks, found_by_check.found), (1, 1, 1));
    assert!(found_by_check.findings[0].to_string().contains("index of KEK kek/1"), "{found_by_check:?}");

    // A record that cannot be read may be wrapped by anything.
    let mut damaged = found.value;
    damaged.truncate(20);
    rig.store.replace(&key, &seen, Put { value: damaged, wrapped_by: Vec::new(), guards: Vec::new() }).await.unwrap();
    let error = rig.engine.retire_kek(&version(&rig, 1)).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt(_)) && error.to_string().contains("account a"), "{error}");
    let kek = rig.engine.kek(&rig.kek).await.unwrap();
    assert_eq!(kek.versions[0].record.retired_unix, None);
    let found_by_check = keyleash::store::check::check(&*rig.store).await.unwrap();
    assert!(found_by_check.findings.iter().any(|error| error.to_string().contains("account a")), "{found_by_check:?}");
    let view = rig.engine.schedule(10).await.unwrap();
    assert_eq!((view.unreadable, view.failures.len()), (1, 1));
    assert_eq!(view.failures[0].0, "account a");
}

#[tokio::test]
async fn a_rewrap_moves_what_the_index_lost_before_it_says_that_all_is_moved() {
    let rig = Rig::new().await;
    for id in ["a", "b", "c"] {
        rig.account(id).await;
    }
    rig.engine.rotate_kek(&rig.kek).await.unwrap();
    for id in ["a", "c"] {
        let key = Key::Account(account_id(id));
        let found = rig.store.get(&key).await.unwrap().unwrap();
        let unindexed = Put { value: found.value.clone(), wrapped_by: Vec::new(), guards: Vec::new() };
        rig.store.replace(&key, &found.version, unindexed).await.unwrap();
    }
    let report = rig.meanwhile(rig.engine.rewrap_kek(&rig.kek, Default::default(), |_| {})).await.unwrap();
    assert_eq!((report.accounts, report.aeks, report.failed, report.stopped), (3, 3, 0, None));
    for id in ["a", "b", "c"] {
        assert_eq!(wrapped_by(&rig.engine, id).await, ["1:kek/2"]);
    }
    rig.pass(20 * SECOND).await;
    rig.meanwhile(rig.engine.retire_kek(&version(&rig, 1))).await.unwrap();
    let indexed = rig.store.list(&Filter::WrappedBy(version(&rig, 2)), None, 9).await.unwrap();
    assert_eq!(indexed.keys.len(), 3, "the index has them again");
}

#[tokio::test]
async fn consent_to_a_retirement_is_for_the_blocks_that_were_shown_and_for_none_that_came_after() {
    let rig = Rig::new().await;
    let (id, account) = (account_id("a"), rig.account("a").await);
    let there = other(&rig).account(&id).await.unwrap();
    rig.engine.rotate_account(&id).await.unwrap();
    let shown = rig.engine.retirable_aeks(&id, &[1], keyleash::When::Now).await.unwrap();
    let late = other(&rig);
    let handle = late.account(&id).await.unwrap();
    drop(handle);
    // Another engine, which has not heard of the rotation, seals under what somebody is about to destroy.
    let block = seal(&there).unwrap();
    assert_eq!(there.aek_version(), 1);
    drop(there);
    let mut record = rig.engine.account_record(&id).await.unwrap();
    record.versions[0].used.blocks += 1; // as that one writes it down
    let version = rig.store.get(&record.key()).await.unwrap().unwrap().version;
    rig.store.replace(&record.key(), &version, record.put().unwrap()).await.unwrap();
    let refused = rig.engine.retire_aeks_as_shown(&shown, &[1], keyleash::When::Now).await.unwrap_err();
    assert!(matches!(&refused, Error::Conflict(what) if what.contains("not as it was shown")), "{refused}");
    crate::opens(&rig, &account, &block).await;
    let shown = rig.engine.retirable_aeks(&id, &[1], keyleash::When::Now).await.unwrap();
    rig.engine.retire_aeks_as_shown(&shown, &[1], keyleash::When::Now).await.unwrap();
    assert_eq!(wrapped_by(&rig.engine, "a").await, ["2:kek/1"]);
}

#[tokio::test]
async fn what_another_store_could_not_open_is_not_confirmed_though_number_and_date_of_its_aek_are_the_same() {
    let rig = Rig::new().await;
    let (id, account) = (account_id("a"), rig.account("a").await);
    let older = rig.engine.account_record(&id).await.unwrap();
    rig.engine.rotate_account(&id).await.unwrap();
    let header = account.seal_in_place(1_u64, &mut [0; 64]).unwrap();
    assert_eq!(header.aek_version(), 2);
    account.confirm(&header).await.unwrap();
    rig.script.set_unreachable(true);
    rig.meanwhile(account.confirm(&header)).await.unwrap();
    rig.script.set_unreachable(false);
    // The store is put back to before the rotation, …
    let version = rig.store.get(&older.key()).await.unwrap().unwrap().version;
    rig.store.replace(&older.key(), &version, older.put().unwrap()).await.unwrap();
    let back = other(&rig).account(&id).await.unwrap();
    // … and rotated anew in the same second.
    other(&rig).rotate_account(&id).await.unwrap();
    drop(back);
    assert!(matches!(account.confirm(&header).await, Err(Error::NotFound(_) | Error::Conflict(_) | Error::Corrupt(_))));
    let older_still = AccountRecord { versions: older.versions.clone(), ..older.clone() };
    let version = rig.store.get(&older.key()).await.unwrap().unwrap().version;
    rig.store.replace(&older.key(), &version, older_still.put().unwrap()).await.unwrap();
    assert!(account.confirm(&header).await.is_err());
}
