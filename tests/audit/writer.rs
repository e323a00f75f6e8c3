//! The writer of a trail: what was acknowledged is there, and what is not kept is told.

use crate::rig::{
    NODE, PATIENCE, Rig, START_MS, TestSigner, admin, at_rest, data, numbers, operations, put_date, read, record, until,
};
use keyleash::{
    Error,
    audit::{Checkpoint, Note, Options, Signer, Vkey},
    clock::{Clock, ManualClock},
    config::{ConfigFile, OnFailure},
    name::NodeName,
    store::load_checkpoint,
    telemetry::trail::{Deed, Noted, Outcome, Trail},
};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

const HOUR: Duration = Duration::from_secs(3600);
const HOUR_MS: u64 = 3_600_000;
const DAY: Duration = Duration::from_secs(24 * 3600);
const FIRST: &str = "y=2023/m=11/d=14/h=22/m=00/PT1H.json";

fn manual() -> (ManualClock, Clock) {
    let clock = ManualClock::default();
    (clock.clone(), Clock::Manual(clock))
}

async fn stored_size(rig: &Rig) -> u64 {
    let (record, _) = load_checkpoint(&*rig.store, &NodeName::new(NODE).unwrap()).await.unwrap().unwrap();
    Checkpoint::of(&Note::parse(record.note.as_bytes()).unwrap()).unwrap().size
}

#[tokio::test]
async fn an_administrative_record_is_on_disk_when_its_write_returns_and_a_checkpoint_over_all_when_it_is_closed() {
    let rig = Rig::new();
    let writer = rig.open(rig.options()).await.unwrap();
    for number in 0..3 {
        assert_eq!(writer.note(data(number * 2)), Noted::Taken);
        writer.write(admin(number * 2 + 1)).await.unwrap();
        let text = fs::read_to_string(rig.file()).unwrap();
        assert!(text.ends_with('\n') && text.lines().count() == 2 + 2 * number as usize, "{text}");
    }
    assert_eq!(writer.note(data(6)), Noted::Taken);
    writer.flush().await.unwrap();
    writer.close(PATIENCE).await.unwrap();
    let (lines, checkpoints) = rig.read();
    assert_eq!(numbers(&lines), (0..7).collect::<Vec<_>>());
    assert_eq!(operations(&lines).last(), Some(&"Tally"));
    assert_eq!((checkpoints.last(), stored_size(&rig).await), (Some(&8), 8));
    // What is closed takes nothing, and a second close is none.
    assert!(matches!(writer.write(admin(9)).await, Err(Error::Trail(_))));
    writer.close(PATIENCE).await.unwrap();
    let again = rig.open(rig.options()).await.unwrap();
    again.write(admin(7)).await.unwrap();
    again.close(PATIENCE).await.unwrap();
    let (lines, checkpoints) = rig.read();
    assert_eq!((numbers(&lines), checkpoints.last()), ((0..8).collect(), Some(&10)));
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&rig.file()), mode(&rig.node())), (0o600, 0o700));
}

#[tokio::test]
async fn records_that_nobody_waits_for_are_durable_by_themselves_and_many_of_one_millisecond_keep_their_order() {
    let rig = Rig::new();
    let writer = rig.open(rig.options()).await.unwrap();
    (0..5_000).for_each(|number| assert_eq!(writer.note(data(number)), Noted::Taken));
    until("durable", || writer.status().unwrap().lines == 5_000);
    assert_eq!(numbers(&rig.read().0), (0..5_000).collect::<Vec<_>>());
    // And a checkpoint by itself.
    until("a checkpoint", || writer.status().unwrap().checkpoint.is_some());
    drop(writer);
    // What is dropped gives its directory back, on its own thread.
    let again = rig.open(rig.options()).await.unwrap();
    assert_eq!(operations(&rig.read().0).last(), Some(&"Tally"));
    again.close(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_group_of_lines_ends_with_its_tally_however_many_come() {
    let rig = Rig::new();
    let writer = rig.open(rig.options()).await.unwrap();
    for part in 0..14 {
        (0..5_000).for_each(|number| assert_eq!(writer.note(data(part * 5_000 + number)), Noted::Taken));
        writer.flush().await.unwrap();
    }
    writer.close(PATIENCE).await.unwrap();
    let (lines, _) = rig.read();
    let tallies: Vec<_> =
        lines.iter().filter(|line| line.operation == "Tally").map(|line| (line.seq, line.first)).collect();
    assert_eq!(tallies, [(65_536, Some(0)), (70_001, Some(65_537))]);
    assert_eq!(numbers(&lines).len(), 70_000);
}

#[tokio::test]
async fn two_writers_on_one_directory_are_refused_by_name() {
    let rig = Rig::new();
    let writer = rig.open(rig.options()).await.unwrap();
    let at_once = || rig.options().lock_patience(Duration::ZERO);
    let error = rig.open(at_once()).await.unwrap_err();
    assert!(error.to_string().contains(NODE) && error.to_string().contains("audit.node"), "{error}");
    // Nor by taking the lock's file away.
    fs::remove_file(rig.node().join("lock")).unwrap();
    writer.write(admin(0)).await.unwrap();
    assert!(rig.open(at_once()).await.is_err());
    writer.close(PATIENCE).await.unwrap();
    rig.open(rig.options()).await.unwrap().close(PATIENCE).await.unwrap();
}

/// As short commands do, of which any number runs at once.
#[tokio::test]
async fn who_may_write_the_trail_of_one_node_or_another_takes_the_first_that_is_free() {
    let rig = Rig::new();
    let node = |name: &str| NodeName::new(name).unwrap();
    let options = || rig.options().lock_patience(Duration::ZERO).or_node(node("node-2")).or_node(node("node-3"));
    let (one, two) = (rig.open(options()).await.unwrap(), rig.open(options()).await.unwrap());
    let nodes = [&one, &two].map(|writer| writer.status().unwrap().node);
    assert_eq!(nodes, [node(NODE), node("node-2")]);
    let three = rig.open(options()).await.unwrap();
    let error = rig.open(options()).await.unwrap_err();
    assert!(error.to_string().contains("node-1, node-2, node-3"), "{error}");
    for writer in [&one, &two, &three] {
        writer.write(admin(0)).await.unwrap();
    }
    two.close(PATIENCE).await.unwrap();
    // A child of another test may have the lock, between its fork and its exec.
    let again = rig.open(options().lock_patience(PATIENCE)).await.unwrap();
    assert_eq!(again.status().unwrap().node, node("node-2"));
    for writer in [one, three, again] {
        writer.close(PATIENCE).await.unwrap();
    }
    for name in [NODE, "node-2", "node-3"] {
        assert_eq!(read(&rig.directory.join(name), &rig.keys()).0.len(), 2, "a line and a tally in {name}");
    }
}

/// What an earlier key signed is gone on with where the configuration has that key, and not else.
#[tokio::test]
async fn a_trail_goes_on_under_a_new_key_where_the_configuration_has_the_earlier_one() {
    let mut rig = Rig::new();
    let writer = rig.open(rig.options()).await.unwrap();
    writer.write(admin(0)).await.unwrap();
    writer.close(PATIENCE).await.unwrap();
    let earlier = rig.signer.vkey().to_owned();
    rig.signer = TestSigner::new(8);
    assert!(matches!(rig.open(rig.options()).await, Err(Error::Corrupt(_))), "nobody it knows signed that");
    let configured = |keys: &str| {
        let text = format!("[audit]\ndirectory = {:?}\nearlier_keys = {keys:?}\n", rig.directory.display().to_string());
        ConfigFile::parse(&text, "t").and_then(ConfigFile::resolve).map(|config| config.audit.unwrap())
    };
    for (no_key, why) in [("x", "t line 3: audit.earlier_keys: \"x\" is no key"), (",", "is no key")] {
        let error = configured(no_key).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    let error = Options::of(&configured("a+b+c").unwrap(), NodeName::new(NODE).unwrap()).unwrap_err();
    assert!(error.to_string().contains("audit.earlier_keys"), "{error}");
    let config = configured(&format!("{earlier}, {}", TestSigner::new(9).vkey())).unwrap();
    let options = Options::of(&config, NodeName::new(NODE).unwrap()).unwrap().lock_patience(PATIENCE);
    let writer = rig.open(options).await.unwrap();
    writer.write(admin(1)).await.unwrap();
    writer.close(PATIENCE).await.unwrap();
    let keys = rig.keys().with(Vkey::parse(&earlier).unwrap());
    assert_eq!(numbers(&read(&rig.node(), &keys).0), [0, 1]);
}

#[tokio::test]
async fn two_processes_that_write_under_one_name_into_two_directories_are_found_out_by_the_store() {
    let rig = Rig::new();
    let mut other = Rig::new();
    other.store = rig.store.clone();
    let (one, two) = (rig.open(rig.options()).await.unwrap(), other.open(other.options()).await.unwrap());
    one.write(admin(0)).await.unwrap();
    until("stored", || one.status().unwrap().stored > 0);
    two.write(admin(9)).await.unwrap();
    until("found out", || two.serves().is_err());
    let error = two.write(admin(1)).await.unwrap_err();
    assert!(error.to_string().contains("another process writes a trail of node node-1"), "{error}");
    one.close(PATIENCE).await.unwrap();
    drop(two);
    let mut third = Rig::new();
    third.store = rig.store.clone();
    assert!(third.open(third.options()).await.is_err(), "with an empty directory: lines are missing there");
}

#[tokio::test]
async fn each_hour_has_its_file_and_a_clock_that_is_set_back_begins_none() {
    let (rig, (manual, clock)) = (Rig::new(), manual());
    let writer = rig.open(rig.options().clock(clock)).await.unwrap();
    let at = |ms: u64, number| record(START_MS + ms, Deed::KekCreate, Outcome::Asked, number);
    writer.write(at(0, 0)).await.unwrap();
    manual.advance(HOUR);
    // The tally of an hour that ended comes though nothing else does.
    until("a tally", || writer.status().unwrap().lines == 2);
    writer.write(at(HOUR_MS, 1)).await.unwrap();
    writer.write(at(0, 2)).await.unwrap();
    writer.write(at(3 * HOUR_MS, 3)).await.unwrap();
    writer.close(PATIENCE).await.unwrap();
    let hour = |day: u32, hour: u32| format!("y=2023/m=11/d={day:02}/h={hour:02}/m=00/PT1H.json");
    assert_eq!(rig.files(), [hour(14, 22), hour(14, 23), hour(15, 1)]);
    let (lines, _) = rig.read();
    assert_eq!(numbers(&lines), [0, 1, 2, 3]);
    let expected = ["KekCreate", "Tally", "KekCreate", "KekCreate", "Tally", "KekCreate", "Tally"];
    assert_eq!(operations(&lines), expected);
    // A restart under a clock that is behind goes on in the newest file.
    let writer = rig.open(rig.options()).await.unwrap();
    writer.write(at(0, 4)).await.unwrap();
    writer.close(PATIENCE).await.unwrap();
    assert_eq!((rig.files().len() >= 3, numbers(&rig.read().0)), (true, vec![0, 1, 2, 3, 4]));
}

#[tokio::test]
async fn what_a_crash_tore_is_cut_off_and_the_tree_goes_on() {
    let rig = Rig::new();
    let writer = rig.open(rig.options()).await.unwrap();
    for number in 0..10 {
        writer.write(admin(number)).await.unwrap();
    }
    writer.close(PATIENCE).await.unwrap();
    let whole = (fs::read(rig.file()).unwrap(), fs::read(rig.node().join("checkpoints")).unwrap());
    for torn in [&b"{\"seq\":11,\"ti"[..], b"x"] {
        fs::OpenOptions::new().append(true).open(rig.file()).unwrap().write_all(torn).unwrap();
        for note in [&b"keyleash/00"[..], b"keyleash/00\n5\nAAAA\n\n", b"keyleash/00\n5\nAAAA\n\n\xe2\x80\x94 key"] {
            let mut notes = fs::OpenOptions::new().append(true).open(rig.node().join("checkpoints")).unwrap();
            notes.write_all(note).unwrap();
            rig.open(rig.options()).await.unwrap().close(PATIENCE).await.unwrap();
            assert!((fs::read(rig.file()).unwrap(), fs::read(rig.node().join("checkpoints")).unwrap()) == whole);
        }
    }
    // Whole lines behind the last checkpoint are gone on from.
    fs::write(rig.node().join("checkpoints"), &whole.1[..whole.1.len() / 2]).unwrap();
    let writer = rig.open(rig.options()).await.unwrap();
    writer.write(admin(10)).await.unwrap();
    writer.close(PATIENCE).await.unwrap();
    assert_eq!(numbers(&rig.read().0), (0..11).collect::<Vec<_>>());
}

/// The end of the checkpoints that is read begins anywhere: within a letter of several bytes too, as each signature has one.
#[tokio::test]
async fn the_last_checkpoint_is_found_wherever_the_part_begins_that_is_read() {
    let rig = Rig::new();
    for number in 0..2 {
        let writer = rig.open(rig.options()).await.unwrap();
        writer.write(admin(number)).await.unwrap();
        writer.close(PATIENCE).await.unwrap();
    }
    let notes = fs::read_to_string(rig.node().join("checkpoints")).unwrap();
    for letters in 0..3 {
        let before = ["\u{2014}".repeat(30_000), "x".repeat(letters)].concat();
        fs::write(rig.node().join("checkpoints"), format!("{before}\n\n{notes}")).unwrap();
        rig.open(rig.options()).await.unwrap().close(PATIENCE).await.unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for path in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let to = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &to),
            false => drop(fs::copy(&path, &to).unwrap()),
        }
    }
}

/// No checkpoint is signed over lines that somebody changed while nobody wrote.
#[tokio::test]
async fn a_trail_that_was_changed_cut_or_put_back_is_not_gone_on_with() {
    let (rig, (manual, clock)) = (Rig::new(), manual());
    let writer = rig.open(rig.options().clock(clock.clone())).await.unwrap();
    writer.write(admin(0)).await.unwrap();
    writer.close(PATIENCE).await.unwrap();
    let earlier = fs::read(rig.file()).unwrap();
    let earlier = (earlier, fs::read(rig.node().join("checkpoints")).unwrap());
    // What a crash leaves behind a checkpoint: lines without a tally.
    let writer = rig.open(rig.options().clock(clock)).await.unwrap();
    for number in 1..5 {
        writer.write(admin(number)).await.unwrap();
    }
    until("a checkpoint over all", || {
        manual.advance(Duration::from_secs(2));
        writer.status().unwrap().stored == 6
    });
    let (lines, notes) = (fs::read(rig.file()).unwrap(), fs::read(rig.node().join("checkpoints")).unwrap());
    let text = String::from_utf8(lines.clone()).unwrap();
    let all: Vec<_> = text.lines().collect();
    let joined = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>().into_bytes();
    let mut after = Rig::new();
    after.store = rig.store.clone();
    let put = |lines: &[u8], notes: &[u8]| {
        copy(&rig.node(), &after.node());
        fs::write(after.file(), lines).unwrap();
        fs::write(after.node().join("checkpoints"), notes).unwrap();
    };
    for (what, lines, notes) in [
        ("put back whole", earlier.0, earlier.1),
        ("cut", joined(&all[..5]), notes.clone()),
        ("emptied", Vec::new(), notes.clone()),
        ("emptied with its checkpoints", Vec::new(), Vec::new()),
        ("a line changed", text.replace("00000004\"", "00000005\"").into_bytes(), notes.clone()),
        (
            "a line of before the tally changed, and the tally",
            text.replace("\"first\":0", "\"first\":1").into_bytes(),
            notes.clone(),
        ),
        ("a line removed", joined(&[&all[..4], &all[5..]].concat()), notes.clone()),
        ("two swapped", joined(&[&all[..4], &[all[5], all[4]]].concat()), notes.clone()),
        ("one doubled", joined(&[&all[..], &[all[5]]].concat()), notes.clone()),
        ("one added", joined(&[&all[..], &["{\"seq\":6}"]].concat()), notes.clone()),
    ] {
        put(&lines, &notes);
        let error = after.open(after.options()).await.unwrap_err();
        assert!(matches!(error, Error::Corrupt(_)), "{what}: {error}");
        assert!(error.to_string().contains("audit verify"), "{what}: {error}");
        assert_eq!(fs::read(after.file()).unwrap(), lines, "{what}: it is left as it is");
    }
    put(&lines, &notes);
    // Nor is a checkpoint trusted that another key signed.
    after.signer = TestSigner::new(8);
    assert!(matches!(after.open(after.options()).await, Err(Error::Corrupt(_))));
    let known = Vkey::parse(TestSigner::new(7).vkey()).unwrap();
    let writer = after.open(after.options().earlier_key(known)).await.unwrap();
    writer.close(PATIENCE).await.unwrap();
}

/// What is done to the files while they are written: the trail says so, and goes on by itself where it can.
#[tokio::test]
async fn a_file_that_is_removed_moved_cut_or_written_to_is_noticed_and_what_was_acknowledged_is_put_back() {
    let rig = Rig::new();
    let writer = rig.open(rig.options()).await.unwrap();
    writer.write(admin(0)).await.unwrap();
    let file = rig.file();
    // Removed, with the folders that it stood in, or moved: put back.
    fs::remove_dir_all(rig.node().join("y=".to_owned() + &file.display().to_string().split("y=").nth(1).unwrap()[..4]))
        .unwrap();
    writer.write(admin(1)).await.unwrap();
    assert_eq!(numbers(&rig.read().0), [0, 1]);
    fs::rename(&file, file.with_extension("away")).unwrap();
    // Also without anything to write.
    until("put back", || file.exists());
    fs::remove_file(rig.node().join("checkpoints")).unwrap();
    writer.write(admin(2)).await.unwrap();
    assert_eq!(numbers(&rig.read().0), [0, 1, 2]);
    // Another one in its place, and one that somebody else wrote to: refused, until it is as it was.
    let broken = async |what: &str, number: u128| {
        let error = writer.write(admin(number)).await.unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert!(writer.serves().unwrap_err().to_string().contains(what));
        assert_eq!(writer.note(data(number)), Noted::Taken, "it is held until it can be written");
    };
    let copy = file.with_extension("copy");
    fs::copy(&file, &copy).unwrap();
    fs::rename(&copy, &file).unwrap();
    broken("another file took its place", 3).await;
    fs::remove_file(&file).unwrap();
    until("kept again", || writer.serves().is_ok());
    let len = fs::metadata(&file).unwrap().len();
    fs::OpenOptions::new().append(true).open(&file).unwrap().write_all(b"forged\n").unwrap();
    broken("somebody else wrote to it", 4).await;
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(len).unwrap();
    until("kept again", || writer.serves().is_ok());
    // The whole directory.
    let away = rig.directory.join("away");
    fs::rename(rig.node(), &away).unwrap();
    broken("moved or removed", 5).await;
    fs::create_dir(rig.node()).unwrap();
    broken("replaced by another", 6).await;
    fs::remove_dir(rig.node()).unwrap();
    fs::rename(&away, rig.node()).unwrap();
    until("kept again", || writer.serves().is_ok());
    writer.close(PATIENCE).await.unwrap();
    let (lines, _) = rig.read();
    assert_eq!(numbers(&lines), [0, 1, 2, 3, 4, 5, 6]);
    let told = |operation| lines.iter().filter(|line| line.operation == operation).count();
    assert_eq!((told("TrailBroken"), told("TrailResumed")), (3, 3));
    assert!(lines.iter().all(|line| line.dropped.unwrap_or(0) == 0), "nothing was lost");
}

#[tokio::test]
async fn while_the_disk_is_full_calls_are_refused_with_nothing_written_and_data_goes_by_on_failure() {
    for on_failure in [OnFailure::Refuse, OnFailure::Continue] {
        let (rig, full) = (Rig::new(), Arc::new(AtomicBool::new(false)));
        let options = rig.options().on_failure(on_failure).before_sync({
            let full = full.clone();
            move || if full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        });
        let writer = rig.open(options).await.unwrap();
        writer.write(admin(0)).await.unwrap();
        until("a checkpoint", || writer.status().unwrap().stored == 1);
        full.store(true, Ordering::SeqCst);
        let before = fs::read(rig.file()).unwrap();
        let error = writer.write(admin(1)).await.unwrap_err();
        assert!(matches!(error, Error::Trail(_)) && error.to_string().contains("make room"), "{error}");
        assert_eq!(fs::read(rig.file()).unwrap(), before, "nothing half-done");
        assert_eq!(writer.serves().is_ok(), on_failure == OnFailure::Continue);
        // What was done all the same is not lost: the end of an act, and data.
        let end = record(START_MS, Deed::KekRotate, Outcome::Done, 2);
        assert!(writer.write(end).await.is_err());
        assert_eq!(writer.note(data(3)), Noted::Taken);
        assert!(writer.flush().await.is_err());
        assert!(writer.status().unwrap().broken.is_some());
        full.store(false, Ordering::SeqCst);
        until("kept again", || writer.status().unwrap().broken.is_none());
        writer.serves().unwrap();
        writer.write(admin(4)).await.unwrap();
        writer.close(PATIENCE).await.unwrap();
        let (lines, _) = rig.read();
        assert_eq!(numbers(&lines), [0, 2, 3, 4]);
        let expected = ["KekCreate", "TrailBroken", "KekRotate", "AccountOpen", "TrailResumed", "KekCreate", "Tally"];
        assert_eq!(operations(&lines), expected);
        assert!(lines[1].reason.as_ref().unwrap().contains("make room"));
        assert_eq!(lines[4].dropped, Some(0));
    }
}

#[tokio::test]
async fn a_token_that_is_silent_holds_up_no_line_and_the_checkpoint_comes_when_it_answers() {
    let (rig, (manual, clock)) = (Rig::new(), manual());
    rig.signer.silent.store(true, Ordering::SeqCst);
    let writer = rig.open(rig.options().clock(clock)).await.unwrap();
    writer.write(admin(0)).await.unwrap();
    writer.write(admin(1)).await.unwrap();
    writer.serves().unwrap();
    assert_eq!(writer.status().unwrap().checkpoint, None);
    rig.signer.silent.store(false, Ordering::SeqCst);
    until("a checkpoint", || {
        manual.advance(Duration::from_secs(61));
        writer.status().unwrap().checkpoint.is_some_and(|(size, _)| size >= 2)
    });
    writer.close(PATIENCE).await.unwrap();
    let (lines, checkpoints) = rig.read();
    assert_eq!(checkpoints.last(), Some(&(lines.len() as u64)));
}

#[tokio::test]
async fn files_are_compressed_after_a_day_and_removed_by_age_with_a_note_in_their_place() {
    let (rig, (manual, clock)) = (Rig::new(), manual());
    let options = || rig.options().clock(clock.clone()).retention(Some(3 * DAY));
    let writer = rig.open(options()).await.unwrap();
    let day = |days: u64, number| record(START_MS + days * 24 * HOUR_MS, Deed::KekCreate, Outcome::Asked, number);
    for days in 0..3_u32 {
        writer.write(day(u64::from(days), u128::from(days))).await.unwrap();
        at_rest(&writer);
        manual.advance(DAY);
    }
    until("compressed, and the plain ones gone", || {
        rig.files().iter().filter(|file| file.ends_with(".gz")).count() == 2
    });
    assert!(!rig.node().join(FIRST).exists());
    assert_eq!(numbers(&rig.read().0), [0, 1, 2]);
    // The store knows no date yet: nothing is removed, whatever the wall clock says.
    manual.advance(2 * HOUR);
    assert_eq!(rig.files().iter().filter(|file| file.contains("d=14")).count(), 1);
    put_date(&*rig.store, START_MS / 1000 + 4 * 24 * 3600).await;
    manual.advance(2 * DAY);
    writer.write(day(5, 3)).await.unwrap();
    until("removed", || {
        manual.advance(HOUR);
        rig.node().join("retained").exists() && rig.files().iter().all(|file| !file.contains("d=14"))
    });
    // As the store's date has it, and not the wall clock, which is hours or days ahead by now.
    assert!(rig.files().iter().any(|file| file.contains("d=16")), "{:?}", rig.files());
    writer.close(PATIENCE).await.unwrap();
    let (lines, _) = rig.read();
    assert_eq!(numbers(&lines).last(), Some(&3));
    assert!(lines[0].seq > 0 && lines[0].operation == "Tally");
    // And it goes on from there.
    let writer = rig.open(options()).await.unwrap();
    writer.write(day(5, 4)).await.unwrap();
    writer.close(PATIENCE).await.unwrap();
    assert_eq!(numbers(&rig.read().0).last(), Some(&4));
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_not_made_where_a_mount_is_missing() {
    let rig = Rig::new();
    let options = keyleash::audit::Options::new(rig.directory.join("mnt"), NodeName::new(NODE).unwrap());
    let error = rig.open(options).await.unwrap_err();
    assert!(matches!(error, Error::Misconfigured(_)) && error.to_string().contains("mount"), "{error}");
}
