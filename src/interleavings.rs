//! Every order in which fill, read, wipe, eviction and denial can meet, tried by loom on the real slot, leash and
//! operations in flight (`sync.rs` is the seam). loom itself reports a key's bytes that are read while they are wiped or filled.
//!
//! ```text
//! cargo rustc --profile test --lib --target-dir target/loom -- --cfg keyleash_loom    # then run what it made with `interleavings`
//! ```
//! `LOOM_MAX_PREEMPTIONS` bounds how often a thread is interrupted: 2 unless said otherwise, which finds nearly all that there
//! is to be found; 3 and more take their time.

use crate::{
    clock::{Clock, Instant, ManualClock},
    config::Settings,
    in_flight::{self, Operation},
    lease::{Lease, Verdict},
    leash::Member,
    name::{AccountId, KekName, KekVersion},
    secret::{Aek, KeySlot},
    slot::{AekSlot, Leash},
    standby::Voice,
    store::record::{AekPolicy, Usage},
    tokens::Route,
    usage::{Counted, Ledger, Limits, Meter},
};
use loom::thread;
use std::{num::NonZeroU64, sync::Arc};

const PREEMPTIONS: usize = 2;
const FIRST: NonZeroU64 = NonZeroU64::MIN;
const LATER: Instant = Instant::from_nanos(1_000_000_000);

/// Of a thread, in words: setting a key up scrubs more stack than loom gives to one.
const STACK_WORDS: usize = 64 * 1024;

fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::Builder::new().stack_size(STACK_WORDS).spawn(body).unwrap()
}

fn check(meet: impl Fn() + Sync + Send + 'static) {
    let meet = Arc::new(meet);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(PREEMPTIONS));
    model.max_branches = 100_000; // two wipers that wait for one reader take turns for long
    model.check(move || {
        let meet = meet.clone();
        spawn(move || meet()).join().unwrap();
    });
}

fn aek(byte: u8) -> Aek {
    Aek::copy_from(&[byte; 32]).unwrap()
}

fn filled(epoch: NonZeroU64) -> Arc<KeySlot> {
    let slot = Arc::new(KeySlot::new().unwrap());
    slot.fill(&aek(1), epoch);
    slot
}

/// Reads as a seal does, and gives whether there was a key.
fn read(slot: &KeySlot, epoch: u64) -> bool {
    let operation = Operation::enter();
    slot.read(&operation, epoch).is_some()
}

#[test]
fn no_reader_meets_a_wipe() {
    check(|| {
        let slot = filled(FIRST);
        let reader = spawn({
            let slot = slot.clone();
            move || {
                let first = read(&slot, 1);
                // What was seen empty stays so.
                assert!(first || !read(&slot, 1));
            }
        });
        slot.wipe();
        assert!(slot.is_wiped() && !read(&slot, 1));
        reader.join().unwrap();
    });
}

#[test]
fn no_reader_meets_a_refill() {
    check(|| {
        let slot = filled(FIRST);
        let second = NonZeroU64::new(2).unwrap();
        let reader = spawn({
            let slot = slot.clone();
            move || {
                read(&slot, 1);
                read(&slot, 2);
            }
        });
        slot.fill(&aek(2), second);
        assert!(slot.holds(&aek(2)) && !read(&slot, 1) && read(&slot, 2));
        reader.join().unwrap();
    });
}

#[test]
fn one_wait_serves_two_wipers_and_no_reader_is_left_inside() {
    check(|| {
        let (one, other) = (filled(FIRST), filled(FIRST));
        let reader = spawn({
            let (one, other) = (one.clone(), other.clone());
            move || {
                let operation = Operation::enter();
                one.read(&operation, 1);
                other.read(&operation, 1);
            }
        });
        let wiper = spawn(move || {
            other.wipe();
            assert!(other.is_wiped());
        });
        one.empty();
        one.scrub();
        assert!(one.is_wiped());
        reader.join().unwrap();
        wiper.join().unwrap();
    });
}

#[test]
fn after_the_wait_nobody_is_inside_who_was_before_it() {
    check(|| {
        let gone = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let witness = Arc::new(crate::sync::Witness::default());
        let reader = spawn({
            let (gone, witness) = (gone.clone(), witness.clone());
            move || {
                let operation = Operation::enter();
                let nested = Operation::enter();
                if !gone.load(std::sync::atomic::Ordering::Relaxed) {
                    witness.read();
                }
                drop(nested);
                drop(operation);
            }
        });
        gone.store(true, std::sync::atomic::Ordering::Relaxed);
        in_flight::wait_past(in_flight::ticket());
        witness.write();
        reader.join().unwrap();
    });
}

fn leash_and_slot() -> (Arc<Leash>, Arc<AekSlot>, u64) {
    let kek = KekVersion::new(KekName::new("k").unwrap(), 1);
    let clock = Clock::Manual(ManualClock::new(Instant::from_nanos(1)));
    let settings = Settings::default();
    let (route, lease) = (Route::of_test(&clock), Lease::new(settings.terms()));
    let leash = Arc::new(Leash::new(kek, route, lease, clock, &settings));
    let ledger = Ledger::new(Limits::SUITE);
    let aek = Counted { account: AccountId::new("a").unwrap(), aek_version: 1, created_unix: 1 };
    let meter = Meter::new(&ledger, aek, Usage::default(), AekPolicy::default());
    let slot = AekSlot::new(leash.clone(), meter).unwrap();
    let epoch = prove(&leash);
    (leash, slot, epoch)
}

fn prove(leash: &Leash) -> u64 {
    let (epoch, _) = leash.asking();
    let asked = Instant::from_nanos(1);
    leash.step(Voice::First, Verdict::Granted { asked, context: asked, epoch }, None);
    epoch
}

#[test]
fn an_admission_that_meets_a_denial_leaves_no_key_behind_and_is_resumed_if_it_came_first() {
    check(|| {
        let (leash, slot, epoch) = leash_and_slot();
        let denier = spawn({
            let leash = leash.clone();
            move || leash.step(Voice::First, Verdict::Denied, None)
        });
        let admitted = slot.admit(&aek(1), epoch, LATER, LATER).is_ok();
        denier.join().unwrap();
        assert!(slot.key().epoch().is_none() && slot.key().is_wiped(), "denied, and a key is there");
        assert_eq!(slot.is_wanted(), admitted, "what was in memory comes back after the denial");
    });
}

#[test]
fn a_key_that_was_admitted_after_a_new_proof_survives_the_wipe_of_the_denial_before_it() {
    check(|| {
        let (leash, slot, epoch) = leash_and_slot();
        slot.admit(&aek(1), epoch, LATER, LATER).unwrap();
        let denier = spawn({
            let leash = leash.clone();
            move || leash.step(Voice::First, Verdict::Denied, None)
        });
        let epoch = prove(&leash);
        let admitted = slot.admit(&aek(1), epoch, LATER, LATER).is_ok();
        denier.join().unwrap();
        let current = slot.key().epoch().map(NonZeroU64::get) == Some(leash.epoch());
        let denied = leash.lease().proved().is_none();
        assert!(current || slot.is_wanted() || !admitted, "a key was lost, and nobody will bring it back");
        assert!(!(current && denied), "a key is there after a denial");
    });
}

#[test]
fn a_seal_that_meets_a_denial_and_an_eviction_reads_whole_keys_only() {
    check(|| {
        let (leash, slot, epoch) = leash_and_slot();
        slot.admit(&aek(1), epoch, LATER, LATER).unwrap();
        let reader = spawn({
            let slot = slot.clone();
            move || {
                let operation = Operation::enter();
                slot.usable(&operation, Instant::from_nanos(1)).is_some()
            }
        });
        let evicter = spawn({
            let slot = slot.clone();
            move || slot.wipe()
        });
        leash.step(Voice::First, Verdict::Denied, None);
        let operation = Operation::enter();
        assert!(slot.usable(&operation, Instant::from_nanos(1)).is_none(), "usable after the denial returned");
        drop(operation);
        reader.join().unwrap();
        evicter.join().unwrap();
        assert!(slot.key().is_wiped());
    });
}

#[test]
fn an_admission_that_meets_a_retirement_leaves_no_key_behind() {
    check(|| {
        let (leash, slot, epoch) = leash_and_slot();
        let retirer = spawn({
            let slot = slot.clone();
            move || slot.retire()
        });
        // Admitted or not: the answer came to a slot that is none any more.
        let _ = slot.admit(&aek(1), epoch, LATER, LATER);
        retirer.join().unwrap();
        assert!(slot.key().epoch().is_none() && slot.key().is_wiped(), "retired, and a key is there");
        assert!(!slot.is_wanted() && leash.member(0).is_none());
    });
}
