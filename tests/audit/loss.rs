//! What becomes of records that the disk does not take, or not in time: who is told, and by which call.

use crate::rig::{PATIENCE, Rig, admin, data, numbers, until};
use keyleash::{
    Engine, Error,
    audit::{QUEUE_RECORDS_MAX, STALL_MAX},
    clock::{Clock, ManualClock},
    config::OnFailure,
    name::{AccountId, KekName},
    store::memory::MemoryStore,
    telemetry::trail::{Noted, Trail},
    token::{Profile, scripted::ScriptedToken},
};
use std::{
    io,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// A gate that a disk stands still before.
#[derive(Default)]
struct Gate {
    is_closed: Mutex<bool>,
    opened: Condvar,
    reached: AtomicU64,
}

impl Gate {
    /// For a writer, before it syncs.
    fn hook(self: &Arc<Self>) -> impl Fn() -> io::Result<()> + Send + Sync + use<> {
        let gate = self.clone();
        move || {
            gate.reached.fetch_add(1, Ordering::SeqCst);
            drop(gate.opened.wait_while(gate.is_closed.lock().unwrap(), |closed| *closed).unwrap());
            Ok(())
        }
    }

    fn set(&self, closed: bool) {
        *self.is_closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }

    /// How often it was come to.
    fn reached(&self) -> u64 {
        self.reached.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_disk_that_stands_still_blocks_nobody_and_what_it_could_not_take_is_counted() {
    let (rig, gate, manual) = (Rig::new(), Arc::new(Gate::default()), ManualClock::default());
    let clock = Clock::Manual(manual.clone());
    let writer = rig.open(rig.options().clock(clock).before_sync(gate.hook())).await.unwrap();
    writer.write(admin(0)).await.unwrap();
    until("stored", || writer.status().unwrap().stored == 1);
    gate.set(true);
    let before = gate.reached();
    assert_eq!(writer.note(data(1)), Noted::Taken);
    until("the disk stands still", || gate.reached() > before);
    writer.serves().unwrap();
    // One who waits is refused in time, whatever the disk does.
    let (outcome, ()) = tokio::join!(writer.write(admin(2)), async {
        manual.advance(STALL_MAX + Duration::from_secs(1));
    });
    let error = outcome.unwrap_err();
    assert!(error.to_string().contains("has not answered for 10 s"), "{error}");
    assert!(writer.serves().is_err());
    // And the queue has an end: nobody waits in front of it.
    assert!(writer.has_room());
    let noted: Vec<_> = (0..QUEUE_RECORDS_MAX as u128 + 100).map(|number| writer.note(data(100 + number))).collect();
    assert!(!writer.has_room());
    // It is said of each that is lost, in the call that loses it.
    let lost = noted.iter().filter(|noted| matches!(noted, Noted::Refused(Error::Trail(_)))).count();
    assert_eq!((lost, noted.iter().filter(|noted| **noted == Noted::Taken).count()), (102, QUEUE_RECORDS_MAX - 2));
    assert!(matches!(writer.write(admin(3)).await, Err(Error::Trail(_))));
    let status = writer.status().unwrap();
    assert_eq!((status.waiting, status.dropped), (QUEUE_RECORDS_MAX, 102));
    // For metrics, too: how long the oldest of them has waited.
    let standing = writer.standing().unwrap();
    assert_eq!(standing.lag, STALL_MAX + Duration::from_secs(1));
    assert_eq!((standing.waiting, standing.lost, standing.is_broken), (QUEUE_RECORDS_MAX as u64, 102, true));
    gate.set(false);
    until("kept again", || writer.serves().is_ok() && writer.status().unwrap().waiting == 0);
    let standing = writer.standing().unwrap();
    assert_eq!((standing.lag, standing.waiting), (Duration::ZERO, 0));
    assert_eq!((standing.lost, standing.is_broken), (102, false), "what was lost stays counted");
    writer.close(PATIENCE).await.unwrap();
    let (lines, _) = rig.read();
    let resumed: Vec<_> = lines.iter().filter_map(|line| line.dropped).collect();
    assert_eq!(
        resumed,
        [102],
        "{:?}",
        lines.iter().filter(|line| line.operation.starts_with("Trail")).collect::<Vec<_>>()
    );
    assert_eq!(numbers(&lines).len(), 1 + QUEUE_RECORDS_MAX);
}

/// Whatever loses a record says so at once, and by what was chosen; what is closed keeps nothing.
#[tokio::test]
async fn what_is_lost_as_it_is_closed_or_by_a_fault_is_told() {
    for on_failure in [OnFailure::Refuse, OnFailure::Continue] {
        let is_lost = |noted: Noted, why: &str| match (noted, on_failure) {
            (Noted::Refused(error), OnFailure::Refuse) | (Noted::Lost(error), OnFailure::Continue) => {
                assert!(matches!(error, Error::Trail(_)) && error.to_string().contains(why), "{error}");
            }
            (noted, _) => panic!("{noted:?}"),
        };
        let (rig, gate) = (Rig::new(), Arc::new(Gate::default()));
        let writer = Arc::new(rig.open(rig.options().on_failure(on_failure).before_sync(gate.hook())).await.unwrap());
        writer.write(admin(0)).await.unwrap();
        until("stored", || writer.status().unwrap().stored == 1);
        gate.set(true);
        let before = gate.reached();
        let closing = tokio::spawn({
            let writer = writer.clone();
            async move { writer.close(PATIENCE).await }
        });
        tokio::task::yield_now().await;
        until("the last line", || gate.reached() > before);
        is_lost(writer.note(data(1)), "it was closed");
        gate.set(false);
        let error = closing.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("1 record lost"), "{error}");
        is_lost(writer.note(data(2)), "it was closed");
        assert_eq!(writer.serves().is_ok(), on_failure == OnFailure::Continue, "nothing is kept any more");
        assert_eq!(writer.standing().unwrap().lost, 2);
        assert_eq!(numbers(&rig.read().0), [0]);
        // Its thread fails.
        let rig = Rig::new();
        let writer = rig.open(rig.options().on_failure(on_failure).before_sync(|| panic!("a fault"))).await.unwrap();
        assert_eq!(writer.note(data(0)), Noted::Taken);
        for number in 1..3 {
            let error = writer.write(admin(number)).await.unwrap_err();
            assert!(error.to_string().contains("its thread failed"), "{error}");
        }
        is_lost(writer.note(data(3)), "its thread failed");
        assert_eq!(writer.serves().is_ok(), on_failure == OnFailure::Continue);
        assert!(writer.flush().await.is_err() && writer.close(PATIENCE).await.is_err());
    }
}

/// However many opens come at once, and far more of them than the queue takes: who opens waits for room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_line_of_an_open_is_lost_in_a_burst() {
    const CALLERS: u64 = 32;
    const OPENS: u64 = 2_000;
    let rig = Rig::new();
    let writer = Arc::new(rig.open(rig.options().clock(Clock::default())).await.unwrap());
    let (token, _) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 1);
    let engine = Engine::builder(token, Arc::new(MemoryStore::new())).trail(writer.clone()).build().unwrap();
    let (kek, id) = (KekName::new("kek").unwrap(), AccountId::new("a").unwrap());
    engine.create_kek(&kek, Profile::AesGcm).await.unwrap();
    let _account = engine.create_account(&id, &kek).await.unwrap();
    let before = engine.counts();
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (engine, id) = (engine.clone(), id.clone());
            tokio::spawn(async move {
                for _ in 0..OPENS {
                    engine.account(&id).await.unwrap();
                }
            })
        })
        .collect();
    let blocking = std::thread::spawn({
        let (engine, id) = (engine.clone(), id.clone());
        move || (0..OPENS).for_each(|_| drop(engine.account_blocking(&id, PATIENCE).unwrap()))
    });
    for caller in callers {
        caller.await.unwrap();
    }
    blocking.join().unwrap();
    assert_eq!(writer.standing().unwrap().lost, 0);
    // Blocking ones are counted as the others.
    let counts = engine.counts();
    let looked_up = (counts.index_hits - before.index_hits, counts.index_misses - before.index_misses);
    assert_eq!(looked_up, ((CALLERS + 1) * OPENS, 0));
    engine.close(PATIENCE).await.unwrap();
    writer.close(PATIENCE).await.unwrap();
    let opened = rig.read().0.iter().filter(|line| line.operation == "AccountOpen").count();
    assert_eq!(opened as u64, (CALLERS + 1) * OPENS);
}
