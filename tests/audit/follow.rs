//! Every event comes to the sink: in order, at least once, whatever becomes of files, sinks and processes.

use crate::{
    crash::{self, KILLS, KILLS_DEFAULT},
    golden::Trail as Golden,
    rig::{NODE, PATIENCE, Rig, START_MS, admin, at_rest, bytes, data, files, record, until},
};
use async_trait::async_trait;
use keyleash::{
    Error, Result,
    audit::{AuditSink, BATCH_EVENTS_MAX, CommandSink, Event, FileSink, Follower, Told, Until, line::Time},
    clock::{Clock, ManualClock},
    telemetry::trail::{Deed, Noted, Outcome, Trail},
};
use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// All that is there.
const ONCE: Until = Until::Time(Time::from_unix_ms(0));
/// Where a child that follows keeps its cursor and its file; only then is it one.
const FOLLOWER: &str = "TRAIL_FOLLOWER_DIRECTORY";
/// The directory that it follows.
const FOLLOWED: &str = "TRAIL_FOLLOWED_DIRECTORY";

/// Takes events, until it is told not to.
#[derive(Default)]
struct Taken {
    events: Vec<Event>,
    /// Batches that it still takes.
    most: Option<usize>,
}

#[async_trait]
impl AuditSink for Taken {
    async fn deliver(&mut self, events: &[Event]) -> Result<(), String> {
        assert!((1..=BATCH_EVENTS_MAX).contains(&events.len()));
        match &mut self.most {
            Some(0) => return Err("it is full".into()),
            Some(most) => *most -= 1,
            None => {}
        }
        self.events.extend_from_slice(events);
        Ok(())
    }
}

impl Taken {
    fn ids(&self) -> Vec<String> {
        self.events.iter().map(Event::id).collect()
    }
}

/// Delivers what is there, and gives why nodes were held.
async fn once(follower: Follower, sink: &mut dyn AuditSink) -> Result<Vec<String>> {
    let mut said = Vec::new();
    let follower = follower
        .deliver(sink, ONCE, &Clock::default(), &mut |told| {
            if let Told::Held(node, why) = told {
                said.push(format!("{node}: {why}"));
            }
        })
        .await?;
    assert_eq!(follower.held().count(), said.len());
    Ok(said)
}

/// The lines of a node as they stand in its files.
fn lines(node: &Path) -> Vec<String> {
    String::from_utf8(bytes(node)).unwrap().lines().map(str::to_owned).collect()
}

fn is_all(taken: &Taken, node: &Path) {
    let taken: Vec<_> = taken.events.iter().map(|event| String::from_utf8(event.line.clone()).unwrap()).collect();
    assert_eq!(taken, lines(node));
}

/// A node by hand: lines of these times, the first in the hour of the file. Nobody writes it.
fn node(directory: &Path, name: &str, times: &[&str]) {
    let hour = directory.join(name).join("y=2026/m=11/d=26/h=01/m=00");
    fs::create_dir_all(&hour).unwrap();
    fs::write(directory.join(name).join("lock"), "").unwrap();
    let line = |(seq, time): (usize, &&str)| {
        format!(
            "{{\"seq\":{seq},\"time\":\"2026-11-26T01:{time}Z\",\"category\":\"AuditEvent\",\"operation\":\"Denied\"}}\n"
        )
    };
    fs::write(hour.join("PT1H.json"), times.iter().enumerate().map(line).collect::<String>()).unwrap();
}

#[tokio::test]
async fn many_events_of_one_millisecond_come_in_order_once_and_again_where_the_sink_did_not_take_them() {
    let (rig, beside) = (Rig::new(), tempfile::tempdir().unwrap());
    let cursor = beside.path().join("cursor");
    let open = || Follower::open(&rig.directory, &cursor).unwrap();
    let writer = rig.open(rig.options()).await.unwrap();
    (0..4_500).for_each(|number| assert_eq!(writer.note(data(number)), Noted::Taken));
    writer.flush().await.unwrap();
    let mut taken = Taken { most: Some(2), ..Taken::default() };
    let error = once(open(), &mut taken).await.unwrap_err();
    assert!(matches!(&error, Error::Trail(what) if what.contains("it is full")), "{error}");
    assert_eq!(taken.events.len(), 2 * BATCH_EVENTS_MAX);
    // While it is written.
    taken.most = None;
    once(open(), &mut taken).await.unwrap();
    is_all(&taken, &rig.node());
    assert!(once(open(), &mut taken).await.unwrap().is_empty());
    assert_eq!(taken.events.len(), 4_500, "none again");
    writer.write(admin(9_999)).await.unwrap();
    writer.close(PATIENCE).await.unwrap();
    // And with nobody who writes.
    once(open(), &mut taken).await.unwrap();
    is_all(&taken, &rig.node());
    assert_eq!(taken.ids(), (0..4_502).map(|seq| format!("{NODE}/{seq}")).collect::<Vec<_>>());
    let json = String::from_utf8(taken.events[7].json()).unwrap();
    let line = String::from_utf8(taken.events[7].line.clone()).unwrap();
    assert_eq!(json, format!("{{\"id\":\"{NODE}/7\",\"node\":\"{NODE}\",{}\n", &line[1..]));
    serde_json::from_str::<serde_json::Value>(&json).unwrap();
}

/// A write that fails midway leaves whole lines in the file for an instant, which are cut off again.
#[tokio::test]
async fn what_is_not_durable_is_not_delivered() {
    let (rig, beside) = (Rig::new(), tempfile::tempdir().unwrap());
    let full = Arc::new(AtomicBool::new(false));
    let follower = Arc::new(Mutex::new(Follower::open(&rig.directory, beside.path().join("cursor")).unwrap()));
    let taken = Arc::new(Mutex::new(Vec::new()));
    let look = {
        let (follower, taken) = (follower.clone(), taken.clone());
        move || taken.lock().unwrap().extend(follower.lock().unwrap().next_batch().unwrap())
    };
    let hook = {
        let (full, look) = (full.clone(), look.clone());
        move || {
            // All of it stands in the file now, and is not synced.
            look();
            if full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    };
    let writer = rig.open(rig.options().before_sync(hook)).await.unwrap();
    for round in 0..3 {
        writer.write(admin(10 * round)).await.unwrap();
        full.store(true, Ordering::SeqCst);
        assert!(writer.write(admin(10 * round + 1)).await.is_err());
        assert_eq!(writer.note(data(10 * round + 2)), Noted::Taken);
        full.store(false, Ordering::SeqCst);
        until("kept again", || writer.serves().is_ok());
    }
    writer.close(PATIENCE).await.unwrap();
    look();
    let events = std::mem::take(&mut *taken.lock().unwrap());
    is_all(&Taken { events, most: None }, &rig.node());
}

#[tokio::test]
async fn hours_change_and_files_are_compressed_under_it() {
    let (rig, beside, clock) = (Rig::new(), tempfile::tempdir().unwrap(), ManualClock::default());
    let hour = Duration::from_secs(3600);
    let mut follower = Follower::open(&rig.directory, beside.path().join("cursor")).unwrap();
    let writer = rig.open(rig.options().clock(Clock::Manual(clock.clone()))).await.unwrap();
    let mut taken = Taken::default();
    for number in 0..60_u32 {
        let ms = START_MS + u64::from(number) * 3_600_000;
        writer.write(record(ms, Deed::KekCreate, Outcome::Asked, number.into())).await.unwrap();
        if number % 7 == 0 {
            taken.events.extend(follower.next_batch().unwrap());
            if number % 2 == 0 {
                // And from the cursor.
                follower.acknowledge(&taken.events).unwrap();
                drop(follower);
                follower = Follower::open(&rig.directory, beside.path().join("cursor")).unwrap();
            }
        }
        at_rest(&writer);
        clock.advance(hour);
        if number == 50 {
            until("compressed", || rig.files().iter().any(|file| file.ends_with(".gz")));
        }
    }
    writer.close(PATIENCE).await.unwrap();
    loop {
        let batch = follower.next_batch().unwrap();
        if batch.is_empty() {
            break;
        }
        taken.events.extend(batch);
    }
    is_all(&taken, &rig.node());
}

#[tokio::test]
async fn nodes_are_merged_by_time_and_what_appears_late_comes_late() {
    let (directory, beside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (directory, cursor) = (directory.path(), beside.path().join("cursor"));
    node(directory, "b", &["00:00.000", "10:00.000", "20:00.000"]);
    // A clock that was set back.
    node(directory, "a", &["05:00.000", "10:00.000", "09:00.000", "30:00.000"]);
    fs::create_dir(directory.join("lost+found")).unwrap();
    fs::create_dir(directory.join("other")).unwrap();
    let mut taken = Taken::default();
    once(Follower::open(directory, &cursor).unwrap(), &mut taken).await.unwrap();
    assert_eq!(taken.ids(), ["b/0", "a/0", "a/1", "a/2", "b/1", "b/2", "a/3"]);
    // A node that appears late, and lines of one that come late.
    node(directory, "c", &["00:00.000"]);
    node(directory, "a", &["05:00.000", "10:00.000", "09:00.000", "30:00.000", "01:00.000"]);
    once(Follower::open(directory, &cursor).unwrap(), &mut taken).await.unwrap();
    assert_eq!(taken.ids()[7..], ["c/0", "a/4"]);
    // Another follower, by a cursor of its own, sees all from the beginning.
    let mut all = Taken::default();
    once(Follower::open(directory, beside.path().join("other")).unwrap(), &mut all).await.unwrap();
    assert_eq!(all.ids(), ["b/0", "c/0", "a/0", "a/1", "a/2", "b/1", "b/2", "a/3", "a/4"]);
    // A node that is gone is told.
    fs::rename(directory.join("c"), beside.path().join("c")).unwrap();
    let held = once(Follower::open(directory, &cursor).unwrap(), &mut taken).await.unwrap();
    assert!(matches!(&held[..], [held] if held.starts_with("c: its directory is gone")), "{held:?}");
}

#[tokio::test]
async fn a_line_that_is_torn_is_delivered_when_it_is_whole() {
    let (directory, beside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (directory, cursor) = (directory.path(), beside.path().join("cursor"));
    node(directory, "a", &["00:00.000", "10:00.000"]);
    let file = files(&directory.join("a")).remove(0);
    let whole = fs::read(&file).unwrap();
    let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let mut taken = Taken::default();
    let mut follower = Follower::open(directory, &cursor).unwrap();
    for end in [0, 5, first - 1, first, first + 1, whole.len() - 1, whole.len()] {
        fs::write(&file, &whole[..end]).unwrap();
        taken.events.extend(follower.next_batch().unwrap());
        assert_eq!(taken.events.len(), whole[..end].iter().filter(|byte| **byte == b'\n').count(), "{end}");
    }
    is_all(&taken, &directory.join("a"));
}

#[tokio::test]
async fn a_file_that_is_missing_holds_its_node_by_name_and_no_other_until_it_comes() {
    let beside = tempfile::tempdir().unwrap();
    let golden = Golden::golden("trail");
    let (directory, cursor) = (golden.node.parent().unwrap(), beside.path().join("cursor"));
    node(directory, "z", &["00:00.000"]);
    let (hour, away) = (golden.hours()[1].clone(), beside.path().join("away"));
    fs::rename(&hour, &away).unwrap();
    let mut taken = Taken::default();
    let held = once(Follower::open(directory, &cursor).unwrap(), &mut taken).await.unwrap();
    assert_eq!(taken.ids().len(), 6, "{:?}", taken.ids());
    assert!(taken.ids().contains(&"z/0".to_owned()));
    assert!(
        matches!(&held[..], [held] if held.starts_with("web-1: lines 5 to 7 are not there, and line 8 is")),
        "{held:?}"
    );
    // The one that runs goes on by itself, and says so.
    let follower = Follower::open(directory, &cursor).unwrap();
    let (mut said, mut sink) = (Vec::new(), FileSink::new(beside.path().join("events")));
    let events = || fs::read_to_string(beside.path().join("events")).unwrap_or_default();
    let clock = Clock::default();
    let mut tell = |told| said.push(told);
    tokio::select! {
        followed = follower.deliver(&mut sink, Until::Dropped, &clock, &mut tell) => panic!("{followed:?}"),
        () = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(events(), "");
            fs::rename(&away, &hour).unwrap();
            for _ in 0..12_000 {
                if events().lines().count() == 8 && fs::read_to_string(&cursor).unwrap().contains("\"next\":13") {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("{}", events());
        } => {}
    }
    assert!(matches!(&said[0], Told::Held(node, _) if node.to_string() == "web-1"), "{said:?}");
    let ids = events().lines().map(|line| line.split('"').nth(3).unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(ids, (5..13).map(|seq| format!("web-1/{seq}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_retention_removed_before_it_was_delivered_is_told_by_name_and_not_passed_over() {
    let beside = tempfile::tempdir().unwrap();
    let golden = Golden::golden("trail-retained");
    let (directory, cursor) = (golden.node.parent().unwrap(), beside.path().join("cursor"));
    let at = |nodes: &str| {
        fs::write(&cursor, format!("{{\"cursor\":\"keyleash.audit.cursor.v1\",\"nodes\":{{{nodes}}}}}")).unwrap()
    };
    for (nodes, first) in [
        ("\"web-1\":{\"next\":2}", "lines 2 to 4 are"),
        ("\"web-1\":{\"next\":4}", "line 4 is"),
        ("", "lines 0 to 4 are"),
    ] {
        at(nodes);
        let mut taken = Taken::default();
        let held = once(Follower::open(directory, &cursor).unwrap(), &mut taken).await.unwrap();
        assert!(taken.events.is_empty());
        let expected = format!("web-1: {first} gone, and not delivered: retention removed them");
        assert!(matches!(&held[..], [held] if held.starts_with(&expected)), "{held:?}");
        let follower = Follower::open(directory, &cursor).unwrap().skip_removed(true);
        assert!(once(follower, &mut taken).await.unwrap().is_empty());
        is_all(&taken, &golden.node);
    }
    // Who begins begins with what is there.
    fs::remove_file(&cursor).unwrap();
    let mut taken = Taken::default();
    assert!(once(Follower::open(directory, &cursor).unwrap(), &mut taken).await.unwrap().is_empty());
    is_all(&taken, &golden.node);
}

#[tokio::test]
async fn a_trail_that_was_cut_put_back_or_begun_anew_is_told_and_not_taken_for_the_one_that_was_delivered() {
    let beside = tempfile::tempdir().unwrap();
    let golden = Golden::plain("trail");
    let (directory, cursor) = (golden.node.parent().unwrap(), beside.path().join("cursor"));
    let all = golden.lines();
    once(Follower::open(directory, &cursor).unwrap(), &mut Taken::default()).await.unwrap();
    let mut more = all.clone();
    let next = all[11].1.replace("\"seq\":11", "\"seq\":13");
    more.push((all[12].0.clone(), next.clone()));
    let mut changed = more.clone();
    changed[12].1 = changed[12].1.replace("02:11:00.001", "02:11:00.002");
    let mut rubbish = all.clone();
    rubbish.push((all[12].0.clone(), "{}\n".into()));
    let mut twice = all.clone();
    twice.push(all[12].clone());
    for (what, lines) in [
        ("13 lines were delivered, and 11 are there", all[..11].to_vec()),
        ("13 lines were delivered, and 7 are there", all[..7].to_vec()),
        ("13 lines were delivered, and 0 are there", Vec::new()),
        ("line 12 is not the one that was delivered", changed),
        ("what should be line 13 is no line of a trail", rubbish),
        ("line 12 stands where line 13 should", twice),
    ] {
        golden.put_lines(&lines);
        for hour in golden.hours().into_iter().filter(|hour| fs::metadata(hour).unwrap().len() == 0) {
            fs::remove_file(hour).unwrap();
        }
        let mut taken = Taken::default();
        let held = once(Follower::open(directory, &cursor).unwrap(), &mut taken).await.unwrap();
        assert!(matches!(&held[..], [held] if held.contains(what)), "{what}: {held:?}");
        assert!(taken.events.is_empty(), "{what}");
        for (path, _) in &all {
            fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        }
    }
    golden.put_lines(&more);
    let mut taken = Taken::default();
    assert!(once(Follower::open(directory, &cursor).unwrap(), &mut taken).await.unwrap().is_empty());
    assert_eq!(taken.events[0].line, next.trim_end().as_bytes());
}

#[tokio::test]
async fn a_golden_cursor_is_gone_on_from_for_ever() {
    let (golden, beside) = (Golden::golden("trail"), tempfile::tempdir().unwrap());
    let cursor = beside.path().join("cursor");
    fs::write(&cursor, include_str!("../compat/trail-cursor.json")).unwrap();
    let mut taken = Taken::default();
    let follower = Follower::open(golden.node.parent().unwrap(), &cursor).unwrap();
    assert!(once(follower, &mut taken).await.unwrap().is_empty());
    assert_eq!(taken.ids(), (5..13).map(|seq| format!("web-1/{seq}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn one_process_follows_by_a_cursor() {
    let (directory, beside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cursor = beside.path().join("cursor");
    let first = Follower::open(directory.path(), &cursor).unwrap();
    assert!(matches!(Follower::open(directory.path(), &cursor), Err(Error::Conflict(_))));
    drop(first);
    Follower::open(directory.path(), &cursor).unwrap();
}

#[tokio::test]
async fn a_command_acknowledges_by_its_status_and_gets_all_or_nothing() {
    let (directory, beside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (directory, cursor) = (directory.path(), beside.path().join("cursor"));
    node(directory, "a", &["00:00.000", "10:00.000"]);
    let shell = |script: &str| {
        let args = ["-c", script, "sh"].map(OsString::from).into_iter().chain([beside.path().into()]);
        CommandSink::new("sh", args)
    };
    for (script, why) in [("exit 7", "ended with status 7"), ("kill -TERM $$", "killed by signal 15")] {
        let error = once(Follower::open(directory, &cursor).unwrap(), &mut shell(script)).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    let mut nothing = CommandSink::new("/no/such/command", []);
    assert!(once(Follower::open(directory, &cursor).unwrap(), &mut nothing).await.is_err());
    // What it does not read is its own affair; and a variable that holds a PIN is not for it.
    let mut cat = shell("cat > \"$1/events\"; echo \"${HOME-none}${PATH+there}\" > \"$1/env\"").without("HOME");
    once(Follower::open(directory, &cursor).unwrap(), &mut cat).await.unwrap();
    let events = fs::read_to_string(beside.path().join("events")).unwrap();
    let ids: Vec<_> = events.lines().map(|line| line.split('"').nth(3).unwrap()).collect();
    assert_eq!(ids, ["a/0", "a/1"]);
    assert_eq!(fs::read_to_string(beside.path().join("env")).unwrap(), "nonethere\n");
    // One that is given up is ended, with what it began.
    node(directory, "b", &["00:00.000"]);
    let number = beside.path().join("number");
    let follower = Follower::open(directory, &cursor).unwrap();
    let mut sleeps = shell("sleep 1000 & echo $! > \"$1/new\"; mv \"$1/new\" \"$1/number\"; wait");
    tokio::select! {
        _ = once(follower, &mut sleeps) => panic!("it sleeps"),
        () = async {
            while !number.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        } => {}
    }
    let number = fs::read_to_string(number).unwrap();
    let status = format!("/proc/{}/stat", number.trim());
    // Whoever reaps it may take its time.
    until("it is ended", || fs::read_to_string(&status).map_or(true, |stat| stat.contains(") Z ")));
}

#[tokio::test]
async fn a_file_gets_whole_lines_alone_and_is_begun_anew_where_it_was_moved_away() {
    let (directory, beside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (directory, cursor, path) = (directory.path(), beside.path().join("cursor"), beside.path().join("events"));
    node(directory, "a", &["00:00.000"]);
    let mut sink = FileSink::new(&path);
    once(Follower::open(directory, &cursor).unwrap(), &mut sink).await.unwrap();
    let first = fs::read_to_string(&path).unwrap();
    assert!(first.starts_with("{\"id\":\"a/0\",") && first.lines().count() == 1, "{first}");
    // What a crash tore was never acknowledged.
    for torn in ["{\"id\":\"a/1\",\"no", "{\"i"] {
        fs::write(&path, format!("{first}{torn}")).unwrap();
        fs::remove_file(&cursor).unwrap();
        once(Follower::open(directory, &cursor).unwrap(), &mut sink).await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), first.repeat(2));
    }
    fs::rename(&path, beside.path().join("rotated")).unwrap();
    fs::remove_file(&cursor).unwrap();
    once(Follower::open(directory, &cursor).unwrap(), &mut sink).await.unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), first);
    // Nobody else's file is touched.
    fs::remove_file(&cursor).unwrap();
    for other in ["no events", "text\nand more", &"x".repeat(100_000)] {
        fs::write(&path, other).unwrap();
        let error = once(Follower::open(directory, &cursor).unwrap(), &mut sink).await.unwrap_err();
        assert!(error.to_string().contains("another file"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), other);
    }
}

/// The child of the test that kills.
#[tokio::test]
async fn child_that_follows_until_it_is_killed() {
    let (Some(own), Some(followed)) = (env::var_os(FOLLOWER), env::var_os(FOLLOWED)) else { return };
    let own = Path::new(&own);
    let follower = Follower::open(Path::new(&followed), own.join("cursor")).unwrap();
    println!("follows");
    let mut sink = FileSink::new(own.join("events"));
    let told = &mut |told| println!("told {told:?}");
    follower.deliver(&mut sink, Until::Dropped, &Clock::default(), told).await.unwrap();
}

/// Killed, whatever becomes of the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(child: &mut Child, said: &str) {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut lines = out.by_ref().lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains(said)), "the child goes on until it is killed");
    // Or it would stand still where the pipe is full.
    std::thread::spawn(move || io::copy(&mut out, &mut io::sink()));
}

/// Every line exactly once but for repetitions of what came before: no gap, no other order.
fn delivered(events: &Path, node: &Path) {
    let (all, mut next) = (lines(node), 0);
    for event in fs::read_to_string(events).unwrap().lines() {
        let (front, line) = event.split_once(&format!("\"node\":\"{NODE}\",")).unwrap();
        let seq: usize = front.split(['/', '"']).nth(4).unwrap().parse().unwrap();
        assert!(seq <= next, "line {next} was left out, and {seq} came");
        assert_eq!(format!("{{{line}"), all[seq]);
        next = next.max(seq + 1);
    }
    assert_eq!(next, all.len());
}

#[tokio::test]
async fn no_event_is_left_out_however_often_follower_and_writer_are_killed() {
    let (directory, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (directory, own) = (directory.path(), own.path());
    let kills = env::var(KILLS).map_or(KILLS_DEFAULT, |kills| kills.parse().unwrap());
    let follow = || {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "follow::child_that_follows_until_it_is_killed", "--nocapture", "--test-threads=1"]);
        command.env(FOLLOWER, own).env(FOLLOWED, directory).stdout(Stdio::piped());
        Killed(command.spawn().unwrap())
    };
    for kill in 0..kills {
        let mut writer = Killed(crash::child(
            "crash::child_that_writes_until_it_is_killed",
            directory,
            u128::from(kill) * 1_000_000,
        ));
        let mut follower = follow();
        wait_for(&mut writer.0, "durable");
        wait_for(&mut follower.0, "follows");
        std::thread::sleep(Duration::from_micros(kill * 37_700 % 499_900));
        // The one first, or the other; so that it follows also what nobody writes any more.
        if kill % 2 == 0 { drop(writer) } else { drop(follower) }
    }
    // What the last one left is gone on with, and delivered to the end.
    let rig = Rig::beside(directory, crash::store(directory).await);
    let once_more = |follower| async move { once(follower, &mut FileSink::new(own.join("events"))).await.unwrap() };
    assert!(once_more(Follower::open(directory, own.join("cursor")).unwrap()).await.is_empty());
    delivered(&own.join("events"), &rig.node());
    rig.open(rig.options()).await.unwrap().close(PATIENCE).await.unwrap();
    assert!(once_more(Follower::open(directory, own.join("cursor")).unwrap()).await.is_empty());
    delivered(&own.join("events"), &rig.node());
    rig.read();
}
