//! Accounts: made, opened, evicted, dropped; single-flight.

use super::*;
use keyleash::{
    Corrupt, Error,
    block::{BLOCK_BYTES_MAX, BlockHeader, HEADER_BYTES_MAX, Suite},
    store::{Key, KeyStore},
    token::scripted::{Act, Call},
};

#[tokio::test]
async fn what_was_sealed_opens_in_every_form() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    for len in [0, 1, 15, 16, 17, 4096, 65_536, 100_000] {
        let plain: Vec<u8> = (0..len).map(|n| n as u8).collect();
        let mut buf = plain.clone();
        let header = account.seal_in_place(7_u64, &mut buf).unwrap();
        assert!(len < 16 || buf != plain);
        let mut opened = vec![0; len];
        account.open_into(7_u64, &header, &buf, &mut opened).unwrap();
        assert_eq!(opened, plain);
        account.open_in_place(7_u64, &header, &mut buf).unwrap();
        assert_eq!(buf, plain);
        let header = account.seal_into(8_u64, &plain, &mut buf).unwrap();
        let read = BlockHeader::parse(header.as_bytes()).unwrap();
        account.open_in_place(8_u64, &read, &mut buf).unwrap();
        assert_eq!(buf, plain);
        assert_eq!(account.open_to_vec(9_u64, &account.seal_to_vec(9_u64, &plain).unwrap()).unwrap(), plain);
        let mut async_buf = plain.clone();
        let header = account.seal(1_u64, &mut async_buf).await.unwrap();
        account.open(1_u64, &header, &mut async_buf).await.unwrap();
        assert_eq!(async_buf, plain);
    }
}

#[tokio::test]
async fn a_block_over_64_mib_is_refused_and_untouched() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let mut buf = vec![7; BLOCK_BYTES_MAX + 1];
    let error = account.seal_in_place(1_u64, &mut buf).unwrap_err();
    assert!(matches!(&error, Error::TooLong { max: 67_108_864, .. }), "{error}");
    assert!(buf.iter().all(|byte| *byte == 7));
    buf.truncate(BLOCK_BYTES_MAX);
    let header = account.seal_in_place(1_u64, &mut buf).unwrap();
    account.open_in_place(1_u64, &header, &mut buf).unwrap();
    assert!(buf.iter().all(|byte| *byte == 7));
}

#[tokio::test]
async fn a_thousand_opens_of_one_cold_account_are_one_unwrap() {
    let mut rig = Rig::new().await;
    drop(rig.account("a").await);
    rig.restart();
    let before = rig.script.calls(Call::Unwrap);
    rig.script.push(Call::Unwrap, Act::Delay(SECOND));
    let opens: Vec<_> = (0..1000)
        .map(|_| {
            let engine = rig.engine.clone();
            tokio::spawn(async move { engine.account(&account_id("a")).await })
        })
        .collect();
    settle().await;
    rig.pass(2 * SECOND).await;
    for open in opens {
        open.await.unwrap().unwrap();
    }
    assert_eq!(rig.script.calls(Call::Unwrap) - before, 1);
}

#[tokio::test]
async fn a_leaders_error_is_not_shared_beyond_its_attempt() {
    let mut rig = Rig::new().await;
    drop(rig.account("a").await);
    rig.restart();
    rig.script.push(Call::Unwrap, Act::fail(keyleash::token::Verdict::BadRecord));
    assert!(matches!(rig.engine.account(&account_id("a")).await, Err(Error::Corrupt(Corrupt::WrappedAek(_)))));
    rig.engine.account(&account_id("a")).await.unwrap();
}

#[tokio::test]
async fn an_open_that_is_given_up_does_not_take_the_others_with_it() {
    let mut rig = Rig::new().await;
    drop(rig.account("a").await);
    rig.restart();
    rig.script.push(Call::Unwrap, Act::Delay(SECOND));
    let open = || {
        let engine = rig.engine.clone();
        tokio::spawn(async move { engine.account(&account_id("a")).await })
    };
    let (leader, waiter) = (open(), open());
    settle().await;
    leader.abort();
    rig.pass(2 * SECOND).await;
    waiter.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_account_is_durable_before_its_first_block() {
    let mut rig = Rig::new().await;
    let account = rig.account("a").await;
    let mut buf = *b"block";
    let header = account.seal_in_place(1_u64, &mut buf).unwrap();
    drop(account);
    rig.restart();
    rig.engine.account(&account_id("a")).await.unwrap().open_in_place(1_u64, &header, &mut buf).unwrap();
    assert_eq!(&buf, b"block");
}

#[tokio::test]
async fn accounts_and_keks_that_exist_or_do_not_are_told_apart() {
    let rig = Rig::new().await;
    rig.account("a").await;
    assert!(matches!(rig.engine.create_account(&account_id("a"), &rig.kek).await, Err(Error::Exists(_))));
    assert!(matches!(rig.engine.account(&account_id("b")).await, Err(Error::NotFound(_))));
    let other = KekName::new("other").unwrap();
    assert!(matches!(rig.engine.create_account(&account_id("b"), &other).await, Err(Error::NotFound(_))));
    assert!(matches!(rig.engine.create_kek(&rig.kek, Profile::AesGcm).await, Err(Error::Exists(_))));
    assert!(matches!(rig.engine.kek(&other).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_kek_whose_making_was_cut_short_is_taken_up_again() {
    let rig = Rig::new().await;
    let record = rig.store.get(&Key::Kek(rig.kek.clone())).await.unwrap().unwrap();
    rig.store.delete(&Key::Kek(rig.kek.clone()), &record.version).await.unwrap();
    assert_eq!(rig.engine.unknown_keks().await.unwrap().len(), 1);
    assert_eq!(rig.engine.create_kek(&rig.kek, Profile::AesGcm).await.unwrap().id, rig.kek_id);
    assert_eq!(rig.script.calls(Call::CreateKek), 1);
    // But not one that is refused, or of another profile.
    let other = KekName::new("other").unwrap();
    let id = rig.engine.create_kek(&other, Profile::AesKw).await.unwrap().id;
    let record = rig.store.get(&Key::Kek(other.clone())).await.unwrap().unwrap();
    rig.store.delete(&Key::Kek(other.clone()), &record.version).await.unwrap();
    let wrong = rig.engine.create_kek(&other, Profile::AesGcm).await.unwrap_err();
    assert!(matches!(wrong, Error::Misconfigured(_)), "{wrong}");
    rig.script.refuse(&id, "CKA_EXTRACTABLE is true");
    // It is looked at again for a while: another process may be making it.
    let refused = rig.meanwhile(rig.engine.create_kek(&other, Profile::AesKw)).await.unwrap_err();
    assert!(!matches!(refused, Error::Exists(_)), "{refused}");
}

#[tokio::test]
async fn an_evicted_account_is_cold_on_its_handle_and_warms_again() {
    let rig = Rig::with(Settings::default().max_cached_aeks(2)).await;
    let first = rig.account("a").await;
    let mut others = Vec::new();
    for id in ["b", "c", "d"] {
        others.push(rig.account(id).await);
    }
    rig.engine.status().await; // runs the index's maintenance
    let mut buf = *b"block";
    assert!(matches!(first.seal_in_place(1_u64, &mut buf), Err(Error::Cold { .. })));
    assert_eq!(&buf, b"block", "a refused seal leaves the plaintext");
    first.warm().await.unwrap();
    first.seal_in_place(1_u64, &mut buf).unwrap();
    assert!(rig.engine.status().await.cached_accounts <= 2);
}

#[tokio::test]
async fn no_more_keys_are_in_memory_than_allowed_however_evicted_accounts_are_looked_up() {
    let rig = Rig::with(Settings::default().max_cached_aeks(2)).await;
    let ids = ["a", "b", "c", "d"].map(account_id);
    let mut handles = Vec::new();
    for id in &ids {
        handles.push(rig.account(id.as_str()).await);
    }
    for round in 0..40 {
        let account = rig.engine.account(&ids[round * 3 % 4]).await.unwrap();
        seal(&account).unwrap();
        rig.engine.status().await; // runs the index's maintenance
        let status = rig.engine.status().await;
        assert!(status.cached_accounts <= 2 && status.leases[0].filled_slots <= 2, "{round}: {status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn opens_evictions_drops_and_seals_at_once_never_give_a_wrong_byte() {
    let rig = Rig::with(Settings::default().max_cached_aeks(3)).await;
    let mut sealed = Vec::new();
    for n in 0..8_u8 {
        let account = rig.account(&format!("account-{n}")).await;
        let mut buf = vec![n; 1000];
        sealed.push((account.seal(u64::from(n), &mut buf).await.unwrap(), buf));
    }
    let sealed = Arc::new(sealed);
    let tasks: Vec<_> = (0..4_usize)
        .map(|task| {
            let (engine, sealed) = (rig.engine.clone(), sealed.clone());
            tokio::spawn(async move {
                for round in 0..400 {
                    let n = (round * 7 + task * 3) % sealed.len();
                    let account = engine.account(&account_id(&format!("account-{n}"))).await.unwrap();
                    let (header, ciphertext) = &sealed[n];
                    let mut buf = ciphertext.clone();
                    // Others may take its room again and again; then it is cold, never wrong.
                    while let Err(error) = account.open(n as u64, header, &mut buf).await {
                        assert!(matches!(error, Error::Cold { .. }), "{error}");
                        tokio::task::yield_now().await;
                    }
                    assert_eq!(buf, vec![n as u8; 1000]);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn blocks_of_both_suites_open_on_any_engine() {
    let rig = Rig::new().await;
    let plain = rig.account("a").await;
    let committing = Engine::builder(rig.token.clone(), rig.store.clone())
        .on_current_runtime()
        .clock(Clock::Manual(rig.clock.clone()))
        .suite(Suite::XaesGcmCommit)
        .build()
        .unwrap();
    let other = committing.account(&account_id("a")).await.unwrap();
    let block = other.seal_to_vec(1_u64, b"committed").unwrap();
    assert_eq!(block.len(), HEADER_BYTES_MAX + 9);
    assert_eq!(plain.open_to_vec(1_u64, &block).unwrap(), b"committed");
    let block = plain.seal_to_vec(1_u64, b"plain").unwrap();
    assert_eq!(other.open_to_vec(1_u64, &block).unwrap(), b"plain");
}

#[tokio::test]
async fn handles_keep_working_after_the_engine_is_dropped_until_they_are_dropped_too() {
    let mut rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.restart();
    let mut buf = *b"block";
    account.seal_in_place(1_u64, &mut buf).unwrap();
}

#[test]
fn an_engine_on_the_current_runtime_is_refused_where_there_is_none() {
    let (token, _) = ScriptedToken::new(Clock::default(), SECOND, 1);
    let error = Engine::builder(token, Arc::new(MemoryStore::new())).on_current_runtime().build().unwrap_err();
    assert!(matches!(error, Error::Invalid(_)));
}
