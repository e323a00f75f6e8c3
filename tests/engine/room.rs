//! No more keys are in memory than allowed, whoever holds handles.

use super::*;
use keyleash::Error;

fn filled(engine: &Engine) -> usize {
    engine.leases().iter().map(|lease| lease.filled_slots).sum()
}

#[tokio::test]
async fn handles_that_are_all_held_and_used_hold_no_more_keys_than_allowed() {
    let rig = Rig::with(Settings::default().max_cached_aeks(2)).await;
    let (mut handles, mut blocks) = (Vec::new(), Vec::new());
    for n in 0..20 {
        let account = rig.account(&format!("account-{n}")).await;
        let mut buf = *b"data";
        blocks.push((account.seal_in_place(1_u64, &mut buf).unwrap(), buf));
        handles.push(account);
        assert!(filled(&rig.engine) <= 2, "{n}");
    }
    // By every way in which a key gets into memory.
    for _ in 0..2 {
        for (account, (header, ciphertext)) in handles.iter().zip(&blocks) {
            let mut buf = *ciphertext;
            account.open(1_u64, header, &mut buf).await.unwrap();
            assert_eq!(&buf, b"data");
            assert!(filled(&rig.engine) <= 2);
        }
    }
    for (account, (header, _)) in handles.iter().zip(&blocks) {
        account.warm_for(header).await.unwrap();
        account.seal(2_u64, &mut [0; 9]).await.unwrap();
        assert!(filled(&rig.engine) <= 2);
    }
}

#[tokio::test]
async fn the_bound_counts_aek_versions_and_not_accounts() {
    let rig = Rig::with(Settings::default().max_cached_aeks(2)).await;
    let account = rig.account("a").await;
    let mut blocks = Vec::new();
    for _ in 0..4 {
        let mut buf = *b"data";
        blocks.push((account.seal(1_u64, &mut buf).await.unwrap(), buf));
        rig.engine.rotate_account(account.id()).await.unwrap();
        assert!(filled(&rig.engine) <= 2);
    }
    for (header, ciphertext) in &blocks {
        let mut buf = *ciphertext;
        account.open(1_u64, header, &mut buf).await.unwrap();
        assert_eq!(&buf, b"data");
        assert!(filled(&rig.engine) <= 2);
    }
}

#[tokio::test]
async fn a_key_in_use_keeps_its_room_while_others_come_and_go() {
    let rig = Rig::with(Settings::default().max_cached_aeks(8)).await;
    let busy = rig.account("busy").await;
    let mut cold = 0;
    for n in 0..80 {
        seal(&rig.account(&format!("account-{n}")).await).unwrap();
        if seal(&busy).is_err() {
            cold += 1;
            busy.warm().await.unwrap();
            seal(&busy).unwrap();
        }
    }
    // Ten and more, if whoever came first left first.
    assert!(cold <= 2, "{cold}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_accounts_that_have_room_for_one_key_both_get_through() {
    let rig = Rig::with(Settings::default().max_cached_aeks(1)).await;
    let tasks = [rig.account("a").await, rig.account("b").await].map(|account| {
        tokio::spawn(async move {
            let mut sealed = 0;
            while sealed < 50 {
                match account.seal(1_u64, &mut [0; 64]).await {
                    Ok(_) => sealed += 1,
                    Err(Error::Cold { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(filled(&rig.engine), 1);
}

#[tokio::test]
async fn keys_that_others_took_the_room_of_come_back_with_a_denial_s_end_within_the_bound() {
    let rig = Rig::with(Settings::default().max_cached_aeks(2)).await;
    let accounts = [rig.account("a").await, rig.account("b").await, rig.account("c").await];
    rig.script.disable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    assert_eq!(filled(&rig.engine), 0);
    rig.script.enable(&rig.kek_id);
    rig.pass(20 * SECOND).await;
    assert_eq!(filled(&rig.engine), 2, "those that were there");
    for account in &accounts {
        account.seal(1_u64, &mut [0; 64]).await.unwrap();
        assert!(filled(&rig.engine) <= 2);
    }
}
