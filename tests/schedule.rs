//! `keyleash schedule --run`, the real binary on a real token, killed with SIGKILL in the midst of its work.

// Helpers of a test may fail it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use keyleash::{
    Engine,
    name::{AccountId, KekName, KekVersion},
    store::{
        Filter, Key, KeyStore, load_account, load_kek, load_work,
        record::{AekPolicy, KekPolicy, WorkRecord},
        redb::RedbStore,
    },
    token::{
        Profile,
        pkcs11::{PinSource, Pkcs11Settings, Pkcs11Token, Selector},
    },
};
use std::{
    env,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

const ACCOUNTS: usize = 100;
const HOUR_SECS: u64 = 60 * 60;
/// After how long each run is killed: in the rotation of the KEK, in the re-wrap, among the accounts.
const KILLS: [Duration; 5] = [
    Duration::from_millis(60),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(700),
    Duration::from_millis(1000),
];

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `softhsm/with-token cargo test`"))
}

fn account(index: usize) -> AccountId {
    AccountId::new(format!("a{index:03}")).unwrap()
}

/// A KEK and accounts that all are two hours old and due after one.
async fn make_due(path: &Path, kek: &KekName) {
    let store = Arc::new(RedbStore::open(path).await.unwrap());
    let (label, pin) = (variable("KEYLEASH_TOKEN_LABEL"), variable("KEYLEASH_PIN_FILE"));
    let settings =
        Pkcs11Settings::new(variable("KEYLEASH_MODULE"), Selector::Label(label), PinSource::File(pin.into()));
    let token = Arc::new(Pkcs11Token::open(settings).await.unwrap());
    let engine = Engine::builder(token, store.clone()).start_up_proof(false).build().unwrap();
    engine.create_kek(kek, Profile::AesGcm, false).await.unwrap();
    for index in 0..ACCOUNTS {
        engine.create_account(&account(index), kek).await.unwrap();
        let (mut record, seen) = load_account(&*store, &account(index)).await.unwrap().unwrap();
        record.versions[0].created_unix -= 2 * HOUR_SECS;
        record.policy = AekPolicy { max_age_secs: HOUR_SECS, ..AekPolicy::default() };
        store.replace(&record.key(), &seen, record.put().unwrap()).await.unwrap();
    }
    let (mut record, seen) = load_kek(&*store, kek).await.unwrap().unwrap();
    record.versions[0].created_unix -= 2 * HOUR_SECS;
    record.policy = KekPolicy { max_age_secs: HOUR_SECS };
    store.replace(&record.key(), &seen, record.put().unwrap()).await.unwrap();
}

fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyleash"));
    command.args(["schedule", "--run", "--json"]).current_dir(directory).env_remove("KEYLEASH_STORE");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn report(output: &Output) -> serde_json::Value {
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {words}"))
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_due_is_done_once_however_often_its_process_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keyleash.redb");
    let kek = KekName::new(format!("schedule-{}", std::process::id())).unwrap();
    make_due(&path, &kek).await;
    let mut rotated = Vec::new();
    for delay in KILLS {
        let child = command(directory.path()).spawn().unwrap();
        tokio::time::sleep(delay).await;
        kill(child);
        let store = RedbStore::open(&path).await.unwrap();
        let mut done = 0;
        for index in 0..ACCOUNTS {
            let (record, _) = load_account(&store, &account(index)).await.unwrap().unwrap();
            done += record.versions.len() - 1;
        }
        rotated.push(done);
        // Its time passes at once; the last one's has to be waited for.
        if let Some((record, seen)) = load_work(&store).await.unwrap().filter(|_| delay != KILLS[KILLS.len() - 1]) {
            let over = WorkRecord { until_unix: 1, ..record };
            store.replace(&Key::Work, &seen, over.put().unwrap()).await.unwrap();
        }
    }
    println!("accounts that were rotated at each kill: {rotated:?}");
    let last = command(directory.path()).output().unwrap();
    let done = report(&last);
    assert_eq!((&done["failed"], &done["stopped"], &done["held_by"]), (&0.into(), &().into(), &().into()), "{done}");
    let again = report(&command(directory.path()).output().unwrap());
    assert_eq!((&again["accounts"], &again["rewrapped"]), (&0.into(), &0.into()), "{again}");

    let store = RedbStore::open(&path).await.unwrap();
    let (record, _) = load_kek(&store, &kek).await.unwrap().unwrap();
    assert_eq!((record.current, record.versions.len()), (2, 2), "the KEK was rotated once");
    for index in 0..ACCOUNTS {
        let (record, _) = load_account(&store, &account(index)).await.unwrap().unwrap();
        let versions: Vec<_> = record.versions.iter().map(|aek| (aek.aek_version, aek.kek.version)).collect();
        assert_eq!(versions, [(1, 2), (2, 2)], "{}", record.account);
    }
    let old = Filter::WrappedBy(KekVersion::new(kek, 1));
    assert!(store.list(&old, None, 1).await.unwrap().keys.is_empty());
}
