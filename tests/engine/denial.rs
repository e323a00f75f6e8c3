//! Denials in the store: sticky across restarts, whatever deletes come late and whoever else writes them.

use super::{hand::HandStore, *};
use keyleash::{
    Error,
    name::KekVersion,
    store::{Key, KeyStore, Put, load_denial, record::DenialRecord},
};

fn key(rig: &Rig) -> KekVersion {
    KekVersion::new(rig.kek.clone(), 1)
}

async fn record(rig: &Rig) -> Option<DenialRecord> {
    load_denial(&*rig.store, &key(rig)).await.unwrap().map(|(record, _)| record)
}

/// What another process would write.
async fn write(rig: &Rig, since_unix: u64) {
    let record = DenialRecord { kek: key(rig), since_unix, reason: "another process".into() };
    let key = Key::Denial(key(rig));
    let put = Put { value: record.encode().unwrap(), wrapped_by: Vec::new() };
    let version = rig.store.get(&key).await.unwrap().unwrap().version;
    rig.store.replace(&key, &version, put).await.unwrap();
}

async fn opens(rig: &mut Rig) -> keyleash::Result<()> {
    rig.restart();
    rig.engine.account(&account_id("a")).await.map(drop)
}

#[tokio::test]
async fn a_delete_that_comes_late_does_not_take_the_next_denial_with_it() {
    let mut rig = Rig::new().await;
    let store = HandStore::over(&rig.store);
    let build = Engine::builder(rig.token.clone(), store.clone()).on_current_runtime();
    rig.engine = build.clock(Clock::Manual(rig.clock.clone())).jitter_seed(1).build().unwrap();
    let account = rig.account("a").await;
    rig.script.disable(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    assert!(record(&rig).await.is_some());
    store.hold_deletes();
    rig.script.enable(&rig.kek_id);
    rig.pass(40 * SECOND).await;
    account.seal_in_place(1_u64, &mut [0; 64]).unwrap();
    assert!(record(&rig).await.is_some(), "its deletes are under way");
    rig.script.disable(&rig.kek_id);
    rig.pass(22 * SECOND).await; // one delete after the other is waited for, for 5 s
    assert!(matches!(account.seal_in_place(1_u64, &mut [0; 64]), Err(Error::Denied(_))));
    rig.script.set_unreachable(true);
    store.let_go();
    settle().await;
    assert!(record(&rig).await.is_some(), "the denial in force was deleted on behalf of the one before it");
    let error = opens(&mut rig).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error}");
}

#[tokio::test]
async fn a_proof_does_not_clear_the_denial_that_another_process_saw_after_it() {
    let mut rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.script.disable(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    write(&rig, u64::MAX / 2).await; // as late as can be
    rig.script.enable(&rig.kek_id);
    rig.pass(60 * SECOND).await;
    account.seal_in_place(1_u64, &mut [0; 64]).unwrap();
    assert_eq!(record(&rig).await.map(|record| record.since_unix), Some(u64::MAX / 2), "it is that process's to clear");
    write(&rig, 1).await; // long before the proofs of this one
    rig.pass(20 * SECOND).await;
    assert_eq!(record(&rig).await, None, "nobody else may be there to clear it");
    rig.script.set_unreachable(true);
    let error = opens(&mut rig).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error}");
}

#[tokio::test]
async fn a_denial_that_another_process_cleared_is_written_again_while_it_goes_on() {
    let mut rig = Rig::new().await;
    drop(rig.account("b").await);
    let _account = rig.account("a").await;
    rig.script.disable(&rig.kek_id);
    rig.pass(16 * SECOND).await;
    let key = Key::Denial(key(&rig));
    let version = rig.store.get(&key).await.unwrap().unwrap().version;
    rig.store.delete(&key, &version).await.unwrap();
    rig.pass(16 * SECOND).await;
    assert!(record(&rig).await.is_some());
    rig.script.set_unreachable(true);
    let error = opens(&mut rig).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error}");
    // What was found at the start is the new process's to clear.
    rig.script.set_unreachable(false);
    rig.script.enable(&rig.kek_id);
    rig.pass(2 * SECOND).await;
    opens(&mut rig).await.unwrap();
    rig.pass(SECOND).await;
    assert_eq!(record(&rig).await, None);
}
