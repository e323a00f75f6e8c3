//! `keyleash schedule --run`, the real binary on a real token, killed with SIGKILL in the midst of its work.

// Helpers of a test may fail it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use keyleash::{
    Engine, Error,
    name::{AccountId, KekName, KekVersion},
    store::{
        Filter, Key, KeyStore, Put, load_account, load_kek, load_work,
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
use tokio::runtime::Builder;

/// Not KEYLEASH_…: the command line refuses a variable of that kind that it does not know.
const ALONE: &str = "SCHEDULE_TEST_ALONE";
const ACCOUNTS: usize = 40;
const HOUR_SECS: u64 = 60 * 60;

/// How far the work has got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Done {
    keks: usize,
    rewrapped: usize,
    rotated: usize,
}

/// When each run is killed: in the rotation of the KEK or after it, in the re-wrap, among the accounts.
const KILLS: [Done; 5] = [
    Done { keks: 0, rewrapped: 0, rotated: 0 },
    Done { keks: 1, rewrapped: 0, rotated: 0 },
    Done { keks: 1, rewrapped: 3, rotated: 0 },
    Done { keks: 1, rewrapped: ACCOUNTS, rotated: 1 },
    Done { keks: 1, rewrapped: ACCOUNTS, rotated: ACCOUNTS / 2 },
];

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `softhsm/with-token cargo test`"))
}

fn account(index: usize) -> AccountId {
    AccountId::new(format!("a{index:03}")).unwrap()
}

/// Waits for whoever has the file open: an engine's tasks end a moment after it, a process that was killed when it is reaped.
async fn open(path: &Path) -> RedbStore {
    for _ in 0..4000 {
        match RedbStore::open_or_create(path).await {
            Err(Error::Store(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            opened => return opened.unwrap(),
        }
    }
    panic!("the store is open for ever");
}

/// A KEK and accounts that all are two hours old and due after one.
async fn make_due(path: &Path, kek: &KekName) {
    let store = Arc::new(RedbStore::open_or_create(path).await.unwrap());
    let (label, pin) = (variable("KEYLEASH_TOKEN_LABEL"), variable("KEYLEASH_PIN_FILE"));
    let settings =
        Pkcs11Settings::new(variable("KEYLEASH_MODULE"), Selector::Label(label), PinSource::File(pin.into()));
    let token = Arc::new(Pkcs11Token::open(settings).await.unwrap());
    let engine = Engine::builder(token, store.clone()).start_up_proof(false).build().unwrap();
    engine.create_kek(kek, Profile::AesGcm).await.unwrap();
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
    // Slow enough that accounts are written a few at a time, and a kill falls between.
    command.env("KEYLEASH_RESUME_RATE", "120").env("KEYLEASH_MAX_CACHED_AEKS", "1000");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn report(output: &Output) -> serde_json::Value {
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {words}"))
}

async fn done(store: &RedbStore, kek: &KekName) -> Done {
    let (record, _) = load_kek(store, kek).await.unwrap().unwrap();
    let mut done = Done { keks: record.versions.len() - 1, ..Done::default() };
    for index in 0..ACCOUNTS {
        let (record, _) = load_account(store, &account(index)).await.unwrap().unwrap();
        done.rewrapped += usize::from(record.versions[0].kek.version == 2);
        done.rotated += record.versions.len() - 1;
    }
    done
}

/// Lets the process work until it has got that far, kills it, and gives how far it got.
async fn kill_at(mut child: Child, path: &Path, kek: &KekName, far: Done) -> Done {
    loop {
        let so_far = done(&open(path).await, kek).await;
        if so_far.keks >= far.keks && so_far.rewrapped >= far.rewrapped && so_far.rotated >= far.rotated {
            break;
        }
        assert!(child.try_wait().unwrap().is_none(), "it ended at {so_far:?}, before {far:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    done(&open(path).await, kek).await
}

/// On a token of its own: what is killed in the midst of a login may leave SoftHSM's token behind without contents.
#[test]
fn what_is_due_is_done_once_however_often_its_process_is_killed() {
    if env::var_os(ALONE).is_some() {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(done_once());
    }
    let status = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/softhsm/with-token"))
        .arg(env::current_exe().unwrap())
        .args(["--exact", "what_is_due_is_done_once_however_often_its_process_is_killed", "--nocapture"])
        .env(ALONE, "yes")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

async fn done_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keyleash.redb");
    let kek = KekName::new(format!("schedule-{}", std::process::id())).unwrap();
    make_due(&path, &kek).await;
    drop(open(&path).await); // so that the first kill finds the work begun
    let mut seen = Vec::new();
    for far in KILLS {
        let child = command(directory.path()).spawn().unwrap();
        seen.push(kill_at(child, &path, &kek, far).await);
        // The time for which it held the work passes at once.
        let store = open(&path).await;
        if let Some((record, version)) = load_work(&store).await.unwrap() {
            let over = WorkRecord { until_unix: 1, ..record };
            store.replace(&Key::Work, &version, over.put().unwrap()).await.unwrap();
        }
    }
    println!("{seen:#?}");
    assert!(seen.iter().any(|done| (1..ACCOUNTS).contains(&done.rewrapped)), "never in the re-wrap");
    assert!(seen.iter().any(|done| (1..ACCOUNTS).contains(&done.rotated)), "never among the accounts");
    let last = report(&command(directory.path()).output().unwrap());
    assert_eq!((&last["failed"], &last["stopped"], &last["held_by"]), (&0.into(), &().into(), &().into()), "{last}");
    let again = report(&command(directory.path()).output().unwrap());
    assert_eq!((&again["accounts"], &again["rewrapped"]), (&0.into(), &0.into()), "{again}");

    let store = open(&path).await;
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

#[tokio::test]
async fn a_record_that_cannot_be_read_is_named_and_is_no_success() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open_or_create(directory.path().join("keyleash.redb")).await.unwrap();
    let rotten = Put { value: vec![1, 0xff, 0xff], wrapped_by: Vec::new(), guards: Vec::new() };
    store.create(&Key::Account(account(7)), rotten).await.unwrap();
    drop(store);
    for arguments in [&["schedule"][..], &["store", "check"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyleash"));
        command.args(arguments).current_dir(directory.path()).env_remove("KEYLEASH_STORE");
        let output = command.output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{arguments:?}: {words}");
        assert!(words.contains("account a007"), "{arguments:?}: {words}");
    }
}
