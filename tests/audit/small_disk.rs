//! A real disk that is full, and what is done to the files then: a tmpfs in a mount namespace of its own.

use crate::rig::{PATIENCE, Rig, START_MS, admin, data, numbers, record, until};
use keyleash::{
    Error,
    clock::{Clock, ManualClock},
    store::memory::MemoryStore,
    telemetry::trail::{Deed, Noted, Outcome, Trail},
};
use std::{env, fs, io::Write, path::Path, process::Command, sync::Arc, time::Duration};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn on_a_disk_that_is_full_nothing_is_half_done_and_nothing_is_left() {
    for wrapper in [&["unshare", "--mount"][..], &["unshare", "--user", "--map-root-user", "--mount"]] {
        let command = |program: &Path, arguments: &[&str]| {
            let mut command = Command::new(wrapper[0]);
            command.args(&wrapper[1..]).arg(program).args(arguments);
            command
        };
        let mounts = command(Path::new("mount"), &["-t", "tmpfs", "none", "/mnt"]).output();
        if mounts.is_ok_and(|mounts| mounts.status.success()) {
            let test = ["--exact", "small_disk::in_a_namespace_of_its_own", "--ignored", "--nocapture"];
            let output = command(&env::current_exe().unwrap(), &test).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.contains("1 passed"), "{said}\n{errors}");
            return;
        }
    }
    eprintln!("left out: nothing may be mounted here");
}

/// Takes all that is left.
fn fill(directory: &Path) {
    let mut file = fs::File::create(directory.join("fill")).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    while file.write_all(&[0]).is_ok() {}
}

fn names_below(folder: &Path, names: &mut Vec<String>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        names.push(path.file_name().unwrap().to_string_lossy().into_owned());
        if path.is_dir() {
            names_below(&path, names);
        }
    }
}

#[tokio::test]
#[ignore = "run by the test above, where it may mount"]
async fn in_a_namespace_of_its_own() {
    let owned = tempfile::tempdir().unwrap();
    let disk = owned.path();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k", "none"]).arg(disk).status().unwrap();
    assert!(mounted.success());
    let (rig, manual) = (Rig::beside(disk, Arc::new(MemoryStore::new())), ManualClock::default());
    let options = || rig.options().clock(Clock::Manual(manual.clone()));
    let writer = rig.open(options()).await.unwrap();
    writer.write(admin(0)).await.unwrap();
    until("a checkpoint", || writer.status().unwrap().stored == 1);
    fill(disk);
    let mut written = vec![0];
    let error = loop {
        let number = *written.last().unwrap() + 1;
        match writer.write(admin(number)).await {
            Ok(()) => written.push(number),
            Err(error) => break error,
        }
        assert!(number < 100, "it is full");
    };
    assert!(matches!(error, Error::Trail(_)) && error.to_string().contains("make room"), "{error}");
    assert!(writer.serves().is_err());
    assert_eq!(numbers(&rig.read().0), written, "whole lines alone");
    assert_eq!(writer.note(data(1000)), Noted::Taken);
    // Removed while there is no room for its copy.
    let file = rig.file();
    fs::remove_file(&file).unwrap();
    fill(disk);
    let broken = |what: &str| until(what, || writer.status().unwrap().broken.is_some_and(|why| why.contains(what)));
    broken("cannot be put back");
    for _ in 0..3 {
        assert!(writer.flush().await.is_err());
    }
    let mut names = Vec::new();
    names_below(disk, &mut names);
    assert!(names.iter().all(|name| !name.ends_with(".new")), "copies that were begun: {names:?}");
    fs::remove_file(disk.join("fill")).unwrap();
    until("kept again", || writer.serves().is_ok() && file.exists());
    written.push(1000);
    writer.flush().await.unwrap();
    assert_eq!(numbers(&rig.read().0), written);
    // The hour turns on a full disk, and the process ends.
    fill(disk);
    until("at rest", || writer.status().unwrap().waiting == 0);
    manual.advance(HOUR);
    let later = |number| record(START_MS + 3_600_000, Deed::KekRotate, Outcome::Done, number);
    let mut number = 2000;
    while writer.write(later(number)).await.is_ok() {
        written.push(number);
        number += 1;
    }
    let error = writer.close(PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("1 record lost"), "{error}");
    fs::remove_file(disk.join("fill")).unwrap();
    let writer = rig.open(options()).await.unwrap();
    writer.write(later(3000)).await.unwrap();
    written.push(3000);
    writer.close(PATIENCE).await.unwrap();
    assert_eq!(numbers(&rig.read().0), written);
    Command::new("umount").arg("--lazy").arg(disk).status().unwrap();
}
