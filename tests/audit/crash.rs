//! Real processes: killed at any instant, and on a disk that is full.

use crate::rig::{PATIENCE, Rig, admin, data, numbers, operations, until};
use keyleash::{
    Error,
    clock::Clock,
    store::{KeyStore, memory::MemoryStore, redb::RedbStore},
    telemetry::trail::{Noted, Record, Trail},
};
use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

/// Where a child keeps its trail; only then is it one.
const DIRECTORY: &str = "TRAIL_CHILD_DIRECTORY";
/// The number of its first record.
const FIRST: &str = "TRAIL_CHILD_FIRST";
/// How often the long version kills; the short one is below.
pub(crate) const KILLS: &str = "KEYLEASH_AUDIT_KILLS";
pub(crate) const KILLS_DEFAULT: u64 = 6;
/// What a file may have in the test of a full disk, in blocks of 512 bytes, or of 1024: shells differ.
const FILE_BLOCKS: u64 = 64;

/// The store, as soon as nobody has it any more: a writer that was closed lets go of it on a thread of its own, and a process that another
/// test is about to start may have it for an instant.
pub(crate) async fn store(directory: &Path) -> Arc<dyn KeyStore> {
    for _ in 0..12_000 {
        match RedbStore::open_or_create(directory.join("store.redb")).await {
            Ok(store) => return Arc::new(store),
            Err(Error::Store(what)) if what.contains("another process") => {}
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the store is held for two minutes");
}

/// The child of the test that kills: says of each record that it is durable.
#[tokio::test]
async fn child_that_writes_until_it_is_killed() {
    let Some(directory) = env::var_os(DIRECTORY) else { return };
    let mut number: u128 = env::var(FIRST).unwrap().parse().unwrap();
    let rig = Rig::beside(Path::new(&directory), store(Path::new(&directory)).await);
    let writer = rig.open(rig.options().clock(Clock::default())).await.unwrap();
    let now = |mut record: Record| {
        record.unix_ms = Clock::default().wall_unix_ms();
        record
    };
    loop {
        assert_eq!(writer.note(now(data(number))), Noted::Taken);
        writer.write(now(admin(number + 1))).await.unwrap();
        // Flushed: the harness shows it as it comes.
        println!("durable {}", number + 1);
        number += 2;
    }
}

pub(crate) fn child(test: &str, directory: &Path, first: u128) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(DIRECTORY, directory).env(FIRST, first.to_string()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

#[tokio::test]
async fn no_acknowledged_record_is_lost_however_often_the_writer_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let kills = env::var(KILLS).map_or(KILLS_DEFAULT, |kills| kills.parse().unwrap());
    let (mut durable, mut first) = (BTreeSet::new(), 0);
    for kill in 0..kills {
        let mut child = child("crash::child_that_writes_until_it_is_killed", directory.path(), first);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let said = |line: String| line.rsplit_once("durable ").map(|(_, number)| number.parse::<u128>().unwrap());
        // After another number of records each time, and then anywhere in the next one, or in the start.
        let most = kill * 7 % 31;
        let mut before: Vec<u128> = Vec::new();
        while (before.len() as u64) < most {
            let line = lines.next().expect("the child goes on until it is killed");
            before.extend(said(line));
        }
        std::thread::sleep(Duration::from_micros(kill * 377 % 4_999));
        child.kill().unwrap();
        child.wait().unwrap();
        before.extend(lines.filter_map(said));
        durable.extend(before);
        first += 1_000_000;
        let rig = Rig::beside(directory.path(), store(directory.path()).await);
        rig.open(rig.options()).await.unwrap().close(PATIENCE).await.unwrap();
        let (lines, _) = rig.read();
        let there: BTreeSet<_> = numbers(&lines).into_iter().collect();
        assert_eq!(durable.difference(&there).count(), 0, "kill {kill}");
        // What was taken before a record that is durable is durable too.
        assert!(durable.iter().all(|number| there.contains(&(number - 1))), "kill {kill}");
    }
    println!("{kills} kills, {} records that were acknowledged", durable.len());
}

/// The child of the test of a full disk, whose files may not grow behind a limit.
#[tokio::test]
async fn child_whose_files_are_limited() {
    let Some(directory) = env::var_os(DIRECTORY) else { return };
    let rig = Rig::beside(Path::new(&directory), Arc::new(MemoryStore::new()));
    let writer = rig.open(rig.options()).await.unwrap();
    let mut durable = 0;
    let error = loop {
        match writer.write(admin(durable)).await {
            Ok(()) => durable += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Trail(_)) && error.to_string().contains("make room"), "{error}");
    assert!(writer.serves().is_err());
    let (path, len) = (rig.file(), fs::metadata(rig.file()).unwrap().len());
    assert!(len <= FILE_BLOCKS * 1024 && fs::read(&path).unwrap().ends_with(b"\n"), "nothing half-done");
    assert!(writer.write(admin(durable)).await.is_err());
    assert_eq!(writer.note(data(durable + 1)), Noted::Taken);
    let limit = rustix::process::Rlimit { current: None, maximum: None };
    rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
    until("room again", || writer.serves().is_ok());
    writer.close(PATIENCE).await.unwrap();
    let (lines, _) = rig.read();
    assert_eq!(numbers(&lines), (0..durable).chain([durable + 1]).collect::<Vec<_>>());
    let told: Vec<_> = operations(&lines).into_iter().filter(|operation| operation.starts_with("Trail")).collect();
    assert_eq!(told, ["TrailBroken", "TrailResumed"]);
}

#[test]
fn a_full_disk_refuses_calls_and_room_again_is_noticed_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    // The limit's signal is ignored, as a service does that wants the error; the soft limit alone, so that the child can lift it.
    let script = format!("trap '' XFSZ; ulimit -S -f {FILE_BLOCKS}; exec \"$@\"");
    let status = Command::new("sh")
        .args(["-c", &script, "sh"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "crash::child_whose_files_are_limited", "--test-threads=1"])
        .env(DIRECTORY, directory.path())
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
}
