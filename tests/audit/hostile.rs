//! What a reading that looked for faults found: each of these was one.

use crate::{
    golden::{Trail, expected},
    nodes::Nodes,
    rig::{PATIENCE, START_MS, at_rest, data},
};
use keyleash::{
    Error, Result,
    audit::{
        Asked, Expected, Keys, QUEUE_RECORDS_MAX, Report, Request, Shown, Writer, extract, verify, verify_extract,
    },
    clock::ManualClock,
    name::AccountId,
    telemetry::trail::{Noted, Record, Trail as _},
};
use std::{
    fs,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

const HOUR_MS: u64 = 3_600_000;

fn at(unix_ms: u64, number: u128) -> Record {
    let mut record = data(number);
    record.unix_ms = unix_ms;
    record
}

fn check(text: &str, asked: &Asked) -> Result<Vec<Shown>> {
    verify_extract(&mut text.as_bytes(), asked, &mut |_, _| {})
}

/// A disk that is slow at the turn of an hour: what waited for it meanwhile is of the hour before.
#[tokio::test]
async fn no_tally_of_an_hour_stands_in_front_of_lines_of_it_that_waited_for_the_disk() {
    for waiting in [1, QUEUE_RECORDS_MAX + 10] {
        let (nodes, clock) = (Nodes::new().await, ManualClock::default());
        let turn = START_MS - START_MS % HOUR_MS + HOUR_MS;
        clock.advance(Duration::from_millis(turn - 5000 - START_MS));
        let (is_slow, slot) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None::<Arc<Writer>>)));
        let hook = {
            let (is_slow, slot, clock) = (is_slow.clone(), slot.clone(), clock.clone());
            move || {
                if is_slow.swap(false, Ordering::SeqCst) {
                    let writer = slot.lock().unwrap().take().unwrap();
                    for _ in 0..waiting {
                        let _ = writer.note(at(turn - 4000, 4));
                    }
                    clock.advance(Duration::from_secs(40));
                }
                Ok(())
            }
        };
        let writer = Arc::new(nodes.rig.open(nodes.options("web-1", &clock).before_sync(hook)).await.unwrap());
        *slot.lock().unwrap() = Some(writer.clone());
        is_slow.store(true, Ordering::SeqCst);
        assert_eq!(writer.note(at(turn - 5000, 1)), Noted::Taken);
        at_rest(&writer);
        writer.close(PATIENCE).await.unwrap();
        let mut asking = Request::all(AccountId::new("tenant-1").unwrap());
        asking.to = Some(keyleash::audit::line::Time::from_unix_ms(turn));
        let (text, mut asked) = (nodes.part("web-1", &asking), nodes.asked(&["web-1"]));
        asked.to = asking.to;
        let all = check(&text, &asked).unwrap().remove(0).lines;
        assert!(all > 1);
        // Who hands it over leaves groups out, from the last one on.
        let rows: Vec<_> = text.split_inclusive('\n').collect();
        for (cut, _) in rows.iter().enumerate().filter(|(_, row)| row.contains("\"tally\"")) {
            if let Ok(shown) = check(&rows[..cut].concat(), &asked) {
                assert_eq!(shown[0].lines, all, "{waiting} waited: some of the hour are left out, and nobody sees it");
            }
        }
    }
}

/// What is asked of a node from a day on is not shown by what ended before.
#[tokio::test]
async fn a_node_that_ended_before_what_is_asked_for_does_not_show_it() {
    let (nodes, clock) = (Nodes::new().await, ManualClock::default());
    let writer = nodes.rig.open(nodes.options("gone", &clock)).await.unwrap();
    assert_eq!(writer.note(data(1)), Noted::Taken);
    writer.close(PATIENCE).await.unwrap();
    let text = nodes.part("gone", &Request::all(AccountId::new("tenant-1").unwrap()));
    let mut asked = nodes.asked(&["gone"]);
    check(&text, &asked).unwrap();
    asked.from = Some(keyleash::audit::line::Time::from_unix_ms(START_MS + HOUR_MS));
    let error = check(&text, &asked).unwrap_err();
    assert!(matches!(&error, Error::Invalid(what) if what.contains("it ends at")), "{error}");
}

/// Opening a pipe that nobody writes to takes for ever.
#[test]
fn what_is_no_file_holds_up_no_reader() {
    for name in ["checkpoints", "retained", "lock", "newest", "zero"] {
        let trail = Trail::golden("trail");
        let path = match name {
            "newest" | "zero" => trail.files().into_iter().find(|path| path.ends_with("PT1H.json")).unwrap(),
            name => trail.node.join(name),
        };
        let _ = fs::remove_file(&path);
        match name {
            "zero" => std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
            _ => assert!(Command::new("mkfifo").arg(&path).status().unwrap().success()),
        }
        let (node, (sender, receiver)) = (trail.node.clone(), mpsc::channel());
        std::thread::spawn(move || {
            let account = AccountId::new("alice").unwrap();
            let extracted = extract(&node, &Request::all(account), &mut Vec::new()).map(drop);
            sender.send((verify(&node, &expected()), extracted)).unwrap();
        });
        let (report, _) = receiver.recv_timeout(PATIENCE / 3).unwrap_or_else(|_| panic!("{name}: it hangs"));
        // Where nobody can be asked how far it is written, it is read to its end.
        assert_eq!(report.is_ok_and(|report| report.is_whole()), name == "lock", "{name}");
    }
}

/// Between its first line and its first checkpoint a trail is as it was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trail_that_has_just_begun_is_waited_for() {
    let (nodes, manual) = (Nodes::new().await, ManualClock::default());
    nodes.rig.signer.silent.store(true, Ordering::SeqCst);
    let writer = nodes.rig.open(nodes.options("web-1", &manual)).await.unwrap();
    writer.write(data(1)).await.unwrap();
    let (expected, node) = (Expected::by(Keys::new().with(nodes.vkey())), nodes.dir.path().join("web-1"));
    let reading = std::thread::spawn(move || -> Report { verify(&node, &expected).unwrap() });
    nodes.rig.signer.silent.store(false, Ordering::SeqCst);
    while !reading.is_finished() && writer.status().unwrap().checkpoint.is_none() {
        at_rest(&writer);
        manual.advance(Duration::from_secs(61));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let report = reading.join().unwrap();
    assert_eq!(report.faults, []);
    writer.close(PATIENCE).await.unwrap();
}
