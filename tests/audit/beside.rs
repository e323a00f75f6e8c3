//! Readers beside a writer that goes on: hours turn, files are compressed and removed under them, and nothing of that is a fault.

use crate::{
    nodes::Nodes,
    rig::{PATIENCE, at_rest, data},
};
use keyleash::{
    audit::{Expected, Keys, Request, extract, verify, verify_extract},
    clock::{Clock, ManualClock},
    name::AccountId,
    telemetry::trail::{Noted, Trail},
};
use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

const HOUR: Duration = Duration::from_secs(3600);
/// How often retention removes something while it is read.
const REMOVALS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trail_is_read_whole_beside_its_writer_while_hours_turn_and_retention_removes_them() {
    let nodes = Nodes::new().await.with_a_date().await;
    let clock = ManualClock::default();
    let options = nodes.options("web-1", &clock).compress_after(2 * HOUR).retention(Some(12 * HOUR));
    let writer = nodes.rig.open(options).await.unwrap();
    let (node, is_over) = (nodes.dir.path().join("web-1"), AtomicBool::new(false));
    writer.write(data(1)).await.unwrap();
    crate::rig::until("signed", || node.join("checkpoints").metadata().is_ok_and(|there| there.len() > 0));
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let clock_of = Clock::Manual(clock.clone());
            for number in 2.. {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                for _ in 0..50 {
                    let mut record = data(number);
                    record.unix_ms = clock_of.wall_unix_ms();
                    assert_eq!(writer.note(record), Noted::Taken);
                }
                at_rest(&writer);
                clock.advance(HOUR / 4);
            }
        });
        let keys = Keys::new().with(nodes.vkey());
        let expected = Expected::by(keys);
        let (mut left, mut removals, mut reads) = (None, 0, 0_u64);
        let request = Request::all(AccountId::new("tenant-1").unwrap());
        let mut wrong = None;
        while removals < REMOVALS && wrong.is_none() && !writing.is_finished() {
            let report = verify(&node, &expected).unwrap();
            wrong = (!report.is_whole()).then(|| format!("read {reads}: {:?}", report.faults));
            let mut out = Vec::new();
            match extract(&node, &request, &mut out) {
                Ok(_) => drop(verify_extract(&mut &*out, &nodes.asked(&["web-1"]), &mut |_, _| {}).unwrap()),
                // No hour has ended yet.
                Err(keyleash::Error::NotFound(_)) => {}
                Err(error) => wrong = Some(format!("extract {reads}: {error}")),
            }
            reads += 1;
            let now = fs::read(node.join("retained")).ok();
            removals += usize::from(now != left);
            left = now;
        }
        is_over.store(true, Ordering::SeqCst);
        assert_eq!(wrong, None, "after {removals} removals");
        println!("{reads} reads beside {removals} removals");
    });
    writer.close(PATIENCE).await.unwrap();
    assert!(verify(&node, &Expected::by(Keys::new().with(nodes.vkey()))).unwrap().is_whole());
}
