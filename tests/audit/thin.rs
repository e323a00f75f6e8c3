//! Checkpoints go with the lines that retention removes, and what is left is verified as before.

use crate::{
    nodes::Nodes,
    rig::{PATIENCE, at_rest, data, until},
    second::second_by,
};
use keyleash::{
    audit::{Checkpoint, Expected, FaultKind, Keys, Note, Request, extract, verify, verify_extract},
    clock::{Clock, ManualClock},
    name::AccountId,
    telemetry::trail::Trail,
};
use std::{fs, time::Duration};

const HOUR: Duration = Duration::from_secs(3600);

fn notes(text: &str) -> Vec<(Note, Checkpoint)> {
    let blocks: Vec<_> = text.split_inclusive("\n\n").collect();
    let note = |pair: &[&str]| {
        let note = Note::parse(pair.concat().strip_suffix('\n').unwrap().as_bytes()).unwrap();
        (note.clone(), Checkpoint::of(&note).unwrap())
    };
    blocks.chunks_exact(2).map(note).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_by_which_nothing_is_verified_any_more_go_and_those_behind_stay() {
    let nodes = Nodes::new().await.with_a_date().await;
    let (clock, node) = (ManualClock::default(), nodes.dir.path().join("web-1"));
    let options = || nodes.options("web-1", &clock).retention(Some(24 * HOUR));
    let place = node.join("checkpoints");
    // What a crash left in the making of one is cleared away.
    fs::create_dir(&node).unwrap();
    fs::write(node.join(".checkpoints.0123.new"), "torn").unwrap();
    let writer = nodes.rig.open(options()).await.unwrap();
    assert!(!node.join(".checkpoints.0123.new").exists());
    let (mut number, wall) = (0, Clock::Manual(clock.clone()));
    let mut write = async |writer: &keyleash::audit::Writer| {
        number += 1;
        let mut record = data(number);
        record.unix_ms = wall.wall_unix_ms();
        writer.write(record).await.unwrap();
        until("signed", || {
            let status = writer.status().unwrap();
            status.checkpoint.is_some_and(|(size, _)| size == status.lines)
        });
        at_rest(writer);
    };
    for _ in 0..60 {
        write(&writer).await;
        clock.advance(Duration::from_secs(61));
    }
    let before = fs::read_to_string(&place).unwrap();
    assert!(notes(&before).len() >= 60);
    clock.advance(48 * HOUR);
    write(&writer).await;
    until("thinned", || {
        at_rest(&writer);
        clock.advance(HOUR);
        fs::metadata(&place).unwrap().len() < before.len() as u64 / 2
    });
    // It goes on behind them.
    at_rest(&writer);
    write(&writer).await;
    writer.close(PATIENCE).await.unwrap();
    let after = notes(&fs::read_to_string(&place).unwrap());
    let expected = Expected::by(Keys::new().with(nodes.vkey()));
    let report = verify(&node, &expected).unwrap();
    assert!(report.is_whole() && report.retained > 0 && report.uncovered() == 0, "{report:?}");
    assert!(after.first().unwrap().1.size >= report.retained && after.len() >= 2, "{after:?}");
    let (is_whole, said) = second_by(&nodes.vkey(), "trail", &node, &[]);
    assert!(is_whole, "{said}");
    // A customer goes on from each that is left behind what was removed.
    for (note, checkpoint) in after.iter().filter(|(_, there)| there.size > report.retained) {
        let mut request = Request::all(AccountId::new("tenant-1").unwrap());
        request.since = Some(note.clone());
        let (mut out, mut asked) = (Vec::new(), nodes.asked(&["web-1"]));
        extract(&node, &request, &mut out).unwrap();
        asked.since = vec![checkpoint.clone()];
        asked.from = extract(&node, &request, &mut Vec::new()).unwrap().from;
        verify_extract(&mut &*out, &asked, &mut |_, _| {}).unwrap();
    }
    // The next start goes on, and a line that is cut off is missed.
    let writer = nodes.rig.open(options()).await.unwrap();
    write(&writer).await;
    writer.close(PATIENCE).await.unwrap();
    assert!(verify(&node, &expected).unwrap().is_whole());
    let newest = crate::rig::files(&node).pop().unwrap();
    let lines = fs::read_to_string(&newest).unwrap();
    let cut = lines.trim_end().rfind('\n').unwrap();
    fs::write(&newest, &lines[..=cut]).unwrap();
    let report = verify(&node, &expected).unwrap();
    assert!(report.faults.iter().any(|fault| fault.kind == FaultKind::Cut), "{report:?}");
}
