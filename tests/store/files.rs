//! Paths, files and disks that are not as they should be: each has its own error, and nothing is lost.

use crate::{account, child, kek, put};
use keyleash::{
    Corrupt, Error,
    store::{Filter, KeyStore, redb::RedbStore},
};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Opens, and gives the error's text, which names the path.
async fn refusal(path: &Path) -> Error {
    let error = RedbStore::open(path).await.unwrap_err();
    assert!(error.to_string().contains(&*path.to_string_lossy()), "{error}");
    error
}

fn assert_misconfigured(error: &Error, words: &str) {
    assert!(matches!(error, Error::Misconfigured(text) if text.contains(words)), "{error}");
}

#[tokio::test]
async fn a_new_store_is_for_its_owner_alone_and_leaves_nothing_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    drop(RedbStore::open_or_create(&path).await.unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["store.redb"]);
    RedbStore::open(&path).await.unwrap();
    drop(RedbStore::open_or_create(directory.path().join("x".repeat(255))).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_make_one_store_at_once_none_destroys_anothers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let path = path.clone();
            tokio::spawn(async move {
                loop {
                    match RedbStore::open_or_create(&path).await {
                        Ok(store) => break store.create(&account(format!("{n}")), put([], &[])).await.unwrap(),
                        Err(error) => assert!(error.to_string().contains("open in another process"), "{error}"),
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let store = RedbStore::open_or_create(&path).await.unwrap();
    assert_eq!(store.list(&Filter::Accounts, None, 99).await.unwrap().keys.len(), 8);
}

#[tokio::test]
async fn a_file_that_is_no_store_of_ours_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("some.file");
    for (content, words) in [
        (b"".to_vec(), "is empty"),
        (b"x".to_vec(), "no redb file"),
        (b"[token]\nlabel = \"a\"\n".repeat(1000), "no redb file"),
        (b"SQLite format 3\0".repeat(512), "no redb file"),
    ] {
        fs::write(&path, &content).unwrap();
        assert_misconfigured(&refusal(&path).await, words);
        assert_eq!(fs::read(&path).unwrap(), content);
    }

    let other = directory.path().join("other.redb");
    let database = redb::Database::create(&other).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(redb::TableDefinition::<u64, u64>::new("theirs")).unwrap().insert(1, 2).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert_misconfigured(&refusal(&other).await, "another program");
}

#[tokio::test]
async fn a_store_of_a_later_format_is_refused_with_both_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    drop(RedbStore::open_or_create(&path).await.unwrap());
    for (format, words) in [(&[0, 0, 0, 2][..], "store format 2, this release reads 1"), (b"?", "does not say")] {
        let database = redb::Database::open(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        let meta = redb::TableDefinition::<&str, &[u8]>::new("keyleash.meta");
        transaction.open_table(meta).unwrap().insert("format", format).unwrap();
        transaction.commit().unwrap();
        drop(database);
        let error = refusal(&path).await;
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_path_that_cannot_hold_a_store_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("no/such/store.redb");
    let error = RedbStore::open_or_create(&missing).await.unwrap_err();
    assert_misconfigured(&error, "there is no directory");
    assert_misconfigured(&error, "no/such; make it");
    assert!(!directory.path().join("no").exists());

    assert_misconfigured(&refusal(directory.path()).await, "regular file");
    let pipe = directory.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    assert_misconfigured(&refusal(&pipe).await, "regular file");
    let file = directory.path().join("file");
    fs::write(&file, "x").unwrap();
    assert_misconfigured(&refusal(&file.join("store.redb")).await, "a file where a directory should be");
}

#[tokio::test]
async fn a_cut_store_is_refused_and_never_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (path, cut) = (directory.path().join("store.redb"), directory.path().join("cut.redb"));
    let store = RedbStore::open_or_create(&path).await.unwrap();
    store.create(&account("a"), put("value", &[])).await.unwrap();
    drop(store);
    let bytes = fs::read(&path).unwrap();
    for len in [0, 1, 8, 9, 64, 320, 511, 4095, 4096, 8192, bytes.len() / 2] {
        fs::write(&cut, &bytes[..len]).unwrap();
        let error = refusal(&cut).await;
        if len >= 9 {
            assert!(matches!(&error, Error::Corrupt(_)) && error.to_string().contains("damaged"), "{len}: {error}");
        } else {
            assert_misconfigured(&error, if len == 0 { "is empty" } else { "no redb file" });
        }
        assert_eq!(fs::read(&cut).unwrap().len(), len);
    }
}

/// redb panics over it when it does not verify the file first.
#[tokio::test]
async fn damage_that_redb_does_not_look_for_is_damage_all_the_same() {
    const TABLE: &[u8] = b"keyleash.meta";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    drop(RedbStore::open_or_create(&path).await.unwrap());
    let mut bytes = fs::read(&path).unwrap();
    let places: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(TABLE)).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| bytes[*at] = 0xff); // no UTF-8
    fs::write(&path, bytes).unwrap();
    let error = refusal(&path).await;
    assert!(matches!(&error, Error::Corrupt(_)) && error.to_string().contains("damaged"), "{error}");
}

/// redb fails as it closes the file, which it does when the store is dropped, when it did not verify the file first.
#[tokio::test]
async fn damage_that_shows_when_the_store_is_dropped_does_not_end_the_process() {
    const WORD: [u8; 8] = [0xff; 8]; // of redb's lists of free pages
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open_or_create(&path).await.unwrap();
    store.create(&account("a"), put(b"value", &[])).await.unwrap();
    drop(store);
    let whole = fs::read(&path).unwrap();
    let is_first = |at: &usize| whole[*at..].starts_with(&WORD) && whole[at - 1] != 0xff;
    for at in (1..whole.len()).filter(is_first) {
        let mut bytes = whole.clone();
        bytes[at + 4] = 0xfd;
        fs::write(&path, bytes).unwrap();
        match RedbStore::open_or_create(&path).await {
            Ok(store) => drop((store.get(&account("a")).await, store)),
            Err(error) => assert!(matches!(&error, Error::Corrupt(_)), "{at}: {error}"),
        }
    }
}

/// By somebody who kept redb's own checksums right.
#[tokio::test]
async fn a_record_that_was_changed_in_the_file_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open_or_create(&path).await.unwrap();
    store.create(&account("alice"), put("change me", &[kek("k", 1)])).await.unwrap();
    store.create(&account("bob"), put("another", &[])).await.unwrap();
    drop(store);
    let database = redb::Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let records = redb::TableDefinition::<&[u8], &[u8]>::new("keyleash.records");
        let mut records = transaction.open_table(records).unwrap();
        let mut value = redb::ReadableTable::get(&records, &b"aalice"[..]).unwrap().unwrap().value().to_vec();
        *value.last_mut().unwrap() ^= 1;
        records.insert(&b"aalice"[..], value.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    let store = RedbStore::open(&path).await.unwrap();
    let error = store.get(&account("alice")).await.unwrap_err();
    assert!(matches!(&error, Error::Corrupt(Corrupt::Record { record, .. }) if record == "account alice"), "{error}");
    assert_eq!(store.get(&account("bob")).await.unwrap().unwrap().value, b"another");
}

#[tokio::test]
async fn a_store_that_is_not_there_is_no_empty_store() {
    let directory = tempfile::tempdir().unwrap();
    for path in ["store.redb", "not-mounted/store.redb"].map(|path| directory.path().join(path)) {
        let error = refusal(&path).await;
        assert!(matches!(&error, Error::NotFound(text) if text.contains("mount what it is on")), "{error}");
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn a_store_that_rests_is_free_for_others_and_goes_on_where_they_left_off() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let one = RedbStore::open_or_create(&path).await.unwrap();
    one.create(&account("a"), put("1", &[])).await.unwrap();
    one.rest();
    let other = RedbStore::open(&path).await.unwrap();
    let error = one.wake().await.unwrap_err();
    assert!(matches!(&error, Error::Store(text) if text.contains("open in another process")), "{error}");
    other.create(&account("b"), put("2", &[])).await.unwrap();
    other.rest();
    assert_eq!(one.get(&account("b")).await.unwrap().unwrap().value, b"2");
    one.rest();
    for _ in 0..2 {
        other.wake().await.unwrap();
        assert_eq!(other.list(&Filter::Accounts, None, 10).await.unwrap().keys.len(), 2);
        other.rest();
    }
}

/// A child that has the store open until it is killed.
pub(crate) async fn hold(path: &Path) {
    let _store = RedbStore::open_or_create(path).await.unwrap();
    println!("\nheld");
    std::future::pending().await
}

#[tokio::test]
async fn a_store_that_another_process_has_open_is_refused_until_that_one_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let mut holder = child::command(&[], &child::this_exe(), "hold", &path).spawn().unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "held"));
    let error = refusal(&path).await;
    assert!(matches!(&error, Error::Store(text) if text.contains("open in another process")), "{error}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    RedbStore::open_or_create(&path).await.unwrap();
}

/// A child that opens, and reports the error.
pub(crate) async fn report_refusal(path: &Path) {
    match RedbStore::open_or_create(path).await {
        Ok(_) => println!("\nopened"),
        Err(error) => println!("\nrefused: {error}"),
    }
}

/// The line of the output that says how it went.
fn outcome(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with("refused") || line.starts_with("opened"));
    line.unwrap_or_else(|| panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr))).to_owned()
}

#[tokio::test]
async fn a_store_that_this_user_may_not_write_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    drop(RedbStore::open_or_create(&path).await.unwrap());
    // Root may write everything, so the child is somebody else, who must reach this binary and the file.
    let exe = directory.path().join("exe");
    // Linked where it can be: copies of it have filled disks.
    fs::hard_link(child::this_exe(), &exe).or_else(|_| fs::copy(child::this_exe(), &exe).map(drop)).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&exe, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let root = rustix::process::geteuid().is_root();
    let run = |path: &Path| {
        let mut command = child::command(&[], &exe, "refused", path);
        if root {
            command.uid(65534).gid(65534);
        }
        outcome(&command.output().unwrap())
    };
    let said = run(&path);
    assert!(said.contains("misconfigured") && said.contains("may not be read and written by this user"), "{said}");
    if root {
        let said = run(&directory.path().join("new.redb"));
        assert!(said.contains("may not be read and written"), "{said}");
    }
}

/// `unshare` with a mount namespace of our own, when this machine lets us mount; else the test says that it was left out.
fn mounting() -> Option<Vec<&'static str>> {
    let candidates = [vec!["unshare", "--mount"], vec!["unshare", "--user", "--map-root-user", "--mount"]];
    let can = |words: &Vec<&str>| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["mount", "-t", "tmpfs", "none", "/mnt"]);
        command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let found = candidates.into_iter().find(can);
    if found.is_none() {
        eprintln!("LEFT OUT: this machine lets nobody mount a file system");
    }
    found
}

fn mount(at: &Path, options: &str) {
    let mut command = Command::new("mount");
    assert!(command.args(["-t", "tmpfs", "-o", options, "none"]).arg(at).status().unwrap().success());
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_needs_no_restart() {
    let Some(wrapper) = mounting() else { return };
    let directory = tempfile::tempdir().unwrap();
    let output = child::command(&wrapper, &child::this_exe(), "full", directory.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("survived"), "{text}\n{errors}");
}

/// A child with a small file system of its own: writes until it is full, makes room, goes on.
pub(crate) async fn fill_disk(directory: &Path) {
    mount(directory, "size=3m");
    let path = directory.join("store.redb");
    let store = RedbStore::open_or_create(&path).await.unwrap();
    let key = |n: usize| account(format!("account-{n:04}"));
    let value = |n: usize| vec![n as u8; 2000];

    // With the disk full by another file, the store fails soon; it goes on by itself when there is room again.
    let mut acknowledged = 0;
    let filler = directory.join("filler");
    for round in 0..4 {
        let mut file = fs::File::create(&filler).unwrap();
        let free = 64 * 1024 * round; // full at different points of a commit
        while file.write_all(&[1; 4096]).is_ok() {}
        let len = file.metadata().unwrap().len();
        file.set_len(len.saturating_sub(free)).unwrap();
        let mut failed = 0;
        let mut n = acknowledged;
        while failed < 3 {
            match store.create(&key(n), put(value(n), &[kek("k", 1)])).await {
                Ok(_) => acknowledged += 1,
                // A write that was not acknowledged may be there.
                Err(Error::Exists(_)) => acknowledged += 1,
                Err(error) => {
                    assert!(matches!(&error, Error::Store(text) if text.contains("disk is full")), "{error}");
                    failed += 1;
                    n = acknowledged;
                    continue;
                }
            }
            n += 1;
        }
        drop(file);
        fs::remove_file(&filler).unwrap();
        for n in 0..acknowledged {
            assert_eq!(store.get(&key(n)).await.unwrap().unwrap().value, value(n), "round {round}");
        }
        match store.create(&key(acknowledged), put(value(acknowledged), &[kek("k", 1)])).await {
            Ok(_) | Err(Error::Exists(_)) => acknowledged += 1,
            Err(error) => panic!("there is room again, but {error}"),
        }
    }
    drop(store);
    let store = RedbStore::open(&path).await.unwrap();
    for n in 0..acknowledged {
        assert_eq!(store.get(&key(n)).await.unwrap().unwrap().value, value(n));
    }
    // A store that does not fit is not there by half.
    drop(store);
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    let new = directory.join("new.redb");
    let error = RedbStore::open_or_create(&new).await.unwrap_err();
    assert!(error.to_string().contains("disk is full") && error.to_string().contains("new.redb"), "{error}");
    assert!(!new.exists());
    let mut names: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert_eq!(names, [filler, path]);
    println!("\nsurvived with {acknowledged} accounts");
}

#[tokio::test]
async fn a_read_only_file_system_is_named() {
    let Some(mut wrapper) = mounting() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    drop(RedbStore::open_or_create(&path).await.unwrap());
    let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    let place = directory.path().to_str().unwrap().to_owned();
    wrapper.extend(["sh", "-c", script, &place]);
    for path in [path, directory.path().join("new.redb")] {
        let said = outcome(&child::command(&wrapper, &child::this_exe(), "refused", &path).output().unwrap());
        assert!(said.contains("misconfigured") && said.contains("read-only file system"), "{said}");
    }
}

#[tokio::test]
async fn a_copy_in_the_stores_place_gives_no_version_again_that_a_held_up_write_names() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copied) = (directory.path().join("store.redb"), directory.path().join("copy.redb"));
    let store = RedbStore::open_or_create(&path).await.unwrap();
    let first = store.create(&account("a"), put("1", &[])).await.unwrap();
    store.snapshot(&copied).await.unwrap();
    let held_up = store.replace(&account("a"), &first, put("2", &[])).await.unwrap();
    let copy = RedbStore::open(&copied).await.unwrap();
    copy.diverge().await.unwrap();
    copy.replace(&account("a"), &first, put("3", &[])).await.unwrap();
    let late = copy.replace(&account("a"), &held_up, put("4", &[])).await;
    assert!(matches!(late, Err(Error::Conflict(_))), "{late:?}");
    drop(copy);
    let copy = RedbStore::open(&copied).await.unwrap();
    assert_eq!(copy.get(&account("a")).await.unwrap().unwrap().value, b"3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_that_is_taken_while_others_write_is_the_store_at_one_instant() {
    let directory = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(RedbStore::open_or_create(directory.path().join("store.redb")).await.unwrap());
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for n in 0..300_u32 {
                store.create(&account(format!("{n:04}")), put(n.to_be_bytes(), &[kek("k", 1)])).await.unwrap();
            }
        }
    });
    let mut before = 0;
    for n in 0..5 {
        let path = directory.path().join(format!("snapshot-{n}"));
        store.snapshot(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let again = store.snapshot(&path).await;
        assert!(matches!(&again, Err(Error::Exists(_))), "{again:?}");
        let snapshot = RedbStore::open(&path).await.unwrap();
        let keys = snapshot.list(&Filter::WrappedBy(kek("k", 1)), None, 1000).await.unwrap().keys;
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(*key, account(format!("{n:04}")), "what came first is there");
            assert_eq!(snapshot.get(key).await.unwrap().unwrap().value, (n as u32).to_be_bytes());
        }
        assert!(keys.len() >= before);
        before = keys.len();
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
    store.snapshot(directory.path().join("all")).await.unwrap();
    let all = RedbStore::open(directory.path().join("all")).await.unwrap();
    assert_eq!(all.list(&Filter::Accounts, None, 1000).await.unwrap().keys.len(), 300);
    let nowhere = store.snapshot(directory.path().join("no/where")).await.unwrap_err();
    assert_misconfigured(&nowhere, "no directory");
}

#[tokio::test]
async fn a_file_that_goes_away_while_it_is_in_use_is_an_outage_and_no_account_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (path, away) = (directory.path().join("store.redb"), directory.path().join("away.redb"));
    let store = RedbStore::open_or_create(&path).await.unwrap();
    store.create(&account("a"), put([1], &[])).await.unwrap();
    store.rest(); // as after an I/O error
    fs::rename(&path, &away).unwrap();
    let is_outage = |outcome: Result<(), Error>| assert!(matches!(outcome, Err(Error::Store(_))), "{outcome:?}");
    is_outage(store.get(&account("a")).await.map(drop));
    is_outage(store.create(&account("b"), put([1], &[])).await.map(drop));
    is_outage(store.list(&Filter::Accounts, None, 10).await.map(drop));
    fs::create_dir(&path).unwrap();
    is_outage(store.get(&account("a")).await.map(drop));
    fs::remove_dir(&path).unwrap();
    fs::write(&path, b"").unwrap();
    is_outage(store.get(&account("a")).await.map(drop));
    fs::rename(&away, &path).unwrap();
    assert!(store.get(&account("a")).await.unwrap().is_some());
}
