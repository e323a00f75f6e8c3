//! What is counted, and what is refused.

use super::{ledger::Left, *};
use crate::name::AccountId;

const NONE: AekPolicy = AekPolicy { max_age_secs: 0, max_blocks: 0, max_bytes: 0 };

fn at(secs: u64) -> Instant {
    Instant::from_nanos(secs * 1_000_000_000)
}

fn used(blocks: u64, bytes: u64) -> Usage {
    Usage { blocks, bytes }
}

fn aek() -> Counted {
    Counted { account: AccountId::new("a").unwrap(), aek_version: 1, created_unix: 7 }
}

fn meter(limits: Limits, seen: Usage, policy: AekPolicy) -> (Arc<Ledger>, Arc<Meter>) {
    let ledger = Ledger::new(limits);
    let meter = Meter::new(&ledger, aek(), seen, policy);
    (ledger, Arc::new(meter))
}

/// Counts until it is refused.
fn fill(meter: &Meter, bytes: usize) -> u64 {
    (0..).take_while(|_| meter.count(0, bytes, || at(1)).is_ok()).count() as u64
}

#[test]
fn no_block_is_sealed_behind_the_limit_of_the_suite_and_the_error_says_what_to_do() {
    let limits = Limits { blocks: 100, bytes: 1000 };
    let (_, meter) = meter(limits, used(40, 0), NONE);
    assert_eq!(fill(&meter, 1), 60);
    let error = meter.count(0, 1, || at(1)).unwrap_err();
    assert!(matches!(error, Error::Exhausted(_)) && error.to_string().contains("account rotate a"), "{error}");
    let taken = meter.take();
    assert_eq!(taken, used(60, 60));
    meter.wrote(used(100, 60), NONE);
    assert_eq!(fill(&meter, 1), 0, "writing it down gives no room");
}

#[test]
fn bytes_behind_the_limit_stop_sealing_once_they_are_known() {
    let (_, meter) = meter(Limits { blocks: 100, bytes: 1000 }, used(0, 900), NONE);
    meter.count(0, 100, || at(1)).unwrap();
    meter.take();
    meter.wrote(used(1, 1000), NONE);
    assert!(matches!(meter.count(0, 1, || at(1)), Err(Error::Exhausted(_))));
}

#[test]
fn what_other_engines_sealed_counts_as_soon_as_the_record_is_read() {
    let (_, meter) = meter(Limits { blocks: 100, bytes: 1000 }, used(0, 0), NONE);
    meter.count(0, 1, || at(1)).unwrap();
    meter.learn(used(97, 0), NONE);
    assert_eq!(fill(&meter, 1), 2);
    meter.learn(used(0, 0), NONE);
    assert_eq!(fill(&meter, 1), 0, "an older record gives nothing back");
}

#[test]
fn sealing_stops_when_too_much_could_not_be_written_down_and_goes_on_when_it_is() {
    let (_, meter) = meter(Limits::SUITE, used(0, 0), NONE);
    meter.few.blocks.store(UNWRITTEN_BLOCKS_MAX - 2, Ordering::Relaxed);
    assert_eq!(fill(&meter, 1), 2);
    assert!(matches!(meter.count(0, 1, || at(1)), Err(Error::Store(_))));
    let taken = meter.take();
    meter.give_back(taken);
    assert!(matches!(meter.count(0, 1, || at(1)), Err(Error::Store(_))), "the store failed");
    let taken = meter.take();
    assert_eq!(taken, used(UNWRITTEN_BLOCKS_MAX, 2));
    meter.wrote(taken, NONE);
    meter.count(0, 1, || at(1)).unwrap();
}

#[test]
fn what_is_counted_ahead_is_sealed_up_to_the_limit_and_never_counted_again() {
    let (_, meter) = meter(Limits { blocks: 100, bytes: 1000 }, used(90, 0), NONE);
    meter.wrote_ahead(used(10, 100), used(100, 100), NONE);
    assert_eq!(fill(&meter, 1), 10, "the limit leaves room for what was counted for it");
    assert_eq!((meter.take(), meter.take_ahead()), (used(0, 0), used(0, 90)));
    let (_, meter) = super::tests::meter(Limits::SUITE, used(0, 0), NONE);
    meter.wrote_ahead(used(4, 400), used(4, 400), NONE);
    (0..6).for_each(|_| meter.count(0, 100, || at(1)).unwrap());
    assert_eq!((meter.take(), meter.take()), (used(2, 200), used(0, 0)));
    meter.wrote_ahead(used(4, 400), used(10, 1000), NONE);
    meter.count(0, 100, || at(1)).unwrap();
    assert_eq!((meter.take(), meter.take_ahead(), meter.take_ahead()), (used(0, 0), used(3, 300), used(0, 0)));
}

#[test]
fn counts_are_due_by_number_by_policy_and_after_an_hour() {
    let (_, meter) = meter(Limits::SUITE, used(0, 0), NONE);
    assert!(!meter.is_due(at(0)));
    meter.count(0, 7, || at(1)).unwrap();
    assert!(!meter.is_due(at(10)) && !meter.is_due(at(3609)) && meter.is_due(at(3610)));
    meter.learn(used(0, 0), AekPolicy { max_blocks: 160, ..NONE });
    assert!(!meter.is_due(at(11)));
    fill_to(&meter, 10);
    assert!(meter.is_due(at(11)), "a sixteenth of what the policy allows");
    meter.learn(used(0, 0), NONE);
    assert!(!meter.is_due(at(11)));
    fill_to(&meter, STEP_BLOCKS);
    assert!(meter.is_due(at(11)));
    let taken = meter.take();
    meter.wrote(taken, AekPolicy { max_bytes: taken.bytes + 7, ..NONE });
    assert!(!meter.is_due(at(9999)), "nothing waits");
    meter.count(0, 7, || at(1)).unwrap();
    assert!(meter.is_due(at(12)), "the policy's limit is reached");
}

#[test]
fn a_policy_that_is_read_before_anything_is_counted_says_when_counts_are_due() {
    let (_, meter) = meter(Limits::SUITE, used(0, 0), AekPolicy { max_blocks: 160, ..NONE });
    fill_to(&meter, 9);
    assert!(!meter.is_due(at(1)));
    fill_to(&meter, 10);
    assert!(meter.is_due(at(1)));
}

fn fill_to(meter: &Meter, blocks: u64) {
    while meter.counted().blocks < blocks {
        meter.count(0, 7, || at(1)).unwrap();
    }
}

#[test]
fn no_count_is_lost_or_doubled_when_threads_share_an_account_and_others_write_it_down_meanwhile() {
    const EACH: u64 = 100_000;
    let (_, meter) = meter(Limits::SUITE, used(0, 0), NONE);
    let threads: Vec<_> = (0..6)
        .map(|_| {
            let meter = meter.clone();
            std::thread::spawn(move || {
                for _ in 0..EACH {
                    let operation = crate::secret::in_flight::Operation::enter();
                    meter.count(operation.thread(), 3, || at(1)).unwrap();
                    provide_lanes();
                }
            })
        })
        .collect();
    let mut written = used(0, 0);
    while threads.iter().any(|thread| !thread.is_finished()) {
        written = plus(written, meter.take());
        meter.wrote(written, NONE);
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(meter.lanes.get().is_some(), "they shared no lanes");
    assert_eq!(plus(written, meter.take()), used(6 * EACH, 18 * EACH));
}

#[test]
fn an_account_gets_lanes_only_when_it_is_sealed_much_and_they_keep_its_ceiling() {
    let (_, slow) = meter(Limits::SUITE, used(0, 0), NONE);
    for secs in 0..3 * HOT_BLOCKS {
        slow.count(0, 1, || at(secs)).unwrap();
    }
    assert!(slow.lanes.get().is_none());
    let (_, hot) = meter(Limits { blocks: 3 * HOT_BLOCKS, bytes: u64::MAX }, used(0, 0), NONE);
    while hot.lanes.get().is_none() {
        provide_lanes();
        hot.count(0, 1, || at(1)).unwrap();
    }
    assert_eq!(fill(&hot, 1) + hot.few.counted().blocks, 3 * HOT_BLOCKS);
}

#[test]
fn an_account_is_sealed_much_at_so_many_blocks_within_so_many_milliseconds() {
    // Spare lanes are had in a later round where somebody else takes or makes them in this one.
    for (apart_ms, rounds, much) in [(HOT_WITHIN_MS, 5000, true), (HOT_WITHIN_MS + 1, 10, false)] {
        let (_, meter) = meter(Limits::SUITE, used(0, 0), NONE);
        for round in 0..rounds {
            provide_lanes();
            let now = at(1).plus(round * Duration::from_millis(apart_ms.into()));
            (0..HOT_BLOCKS).for_each(|_| meter.count(0, 1, || now).unwrap());
            if meter.lanes.get().is_some() {
                break;
            }
        }
        assert_eq!(meter.lanes.get().is_some(), much, "{apart_ms} ms");
    }
}

#[test]
fn what_was_counted_when_the_last_handle_went_is_left_to_be_written_down() {
    let (ledger, meter) = meter(Limits::SUITE, used(5, 5), NONE);
    meter.count(0, 9, || at(1)).unwrap();
    drop(meter);
    let on_its_way = ledger.take_left();
    assert!(on_its_way.len() == 1 && ledger.take_left().is_empty());
    assert_eq!((on_its_way[0].aek.clone(), on_its_way[0].used), (aek(), used(1, 9)));
    drop(on_its_way);
    let back = ledger.take_left();
    assert_eq!(back.iter().map(|left| left.used).collect::<Vec<_>>(), [used(1, 9)], "it did not arrive");
    drop(back);
    ledger.take_left().into_iter().for_each(Left::arrived);
    assert!(ledger.take_left().is_empty());
}
