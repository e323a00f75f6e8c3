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
    lease::{Lease, Verdict, standby::Voice},
    leash::{Member, key_memory::KeyMemory},
    name::{AccountId, KekName, KekVersion},
    secret::{Aek, KeySlot, MemlockPolicy, NewKey, TakenOut, in_flight::Operation},
    slots::{
        meter::{Counted, Ledger, Limits, Meter},
        slot::{AekSlot, Leash},
    },
    store::record::{AekPolicy, Usage},
    token::seats::Route,
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

fn key(byte: u8) -> NewKey {
    NewKey::set_up(&aek(byte), MemlockPolicy::Warn).unwrap()
}

fn filled(epoch: NonZeroU64) -> Arc<KeySlot> {
    let slot = Arc::<KeySlot>::default();
    drop(slot.fill(key(1), epoch));
    slot
}

/// Reads as a seal does, and gives whether there was a key.
fn read(slot: &KeySlot, epoch: u64) -> bool {
    slot.read(&mut Operation::enter(), epoch).is_some()
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
        drop(slot.take_out()); // waits for the reader
        assert!(!read(&slot, 1));
        reader.join().unwrap();
    });
}

#[test]
fn no_reader_meets_a_refill_nor_waits_for_the_wipe_of_what_was_there() {
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
        let before = slot.fill(key(2), second);
        assert!(slot.holds(&aek(2)) && !read(&slot, 1) && read(&slot, 2));
        drop(before);
        reader.join().unwrap();
    });
}

#[test]
fn a_look_at_many_wipes_none_that_is_used() {
    check(|| {
        let (one, other) = (filled(FIRST), filled(FIRST));
        let reader = spawn({
            let (one, other) = (one.clone(), other.clone());
            move || {
                // As a reseal, and then a seal.
                let (mut to, mut from) = (Operation::enter(), Operation::enter());
                let _ = (one.read(&mut to, 1), other.read(&mut from, 1));
                one.read(&mut from, 1);
            }
        });
        let taken = [one.take_out(), other.take_out()].map(|taken| (taken.unwrap(), ()));
        let mut waiting = TakenOut::wipe_unused(taken.into());
        while let Some((taken, ())) = waiting.pop() {
            waiting.extend(taken.wiped_unless_used().map(|taken| (taken, ())));
            thread::yield_now();
        }
        reader.join().unwrap();
    });
}

#[test]
fn two_wipers_take_a_key_out_once() {
    check(|| {
        let slot = filled(FIRST);
        let reader = spawn({
            let slot = slot.clone();
            move || read(&slot, 1)
        });
        let wiper = spawn({
            let slot = slot.clone();
            move || slot.take_out().is_some()
        });
        let here = slot.take_out().is_some();
        assert!(here != wiper.join().unwrap() && !read(&slot, 1));
        reader.join().unwrap();
    });
}

fn leash_and_slot() -> (Arc<Leash>, Arc<AekSlot>, u64, Arc<KeyMemory>) {
    let kek = KekVersion::new(KekName::new("k").unwrap(), 1);
    let clock = Clock::Manual(ManualClock::new(Instant::from_nanos(1)));
    let settings = Settings::default();
    let (route, lease) = (Route::of_test(&clock), Lease::new(settings.terms()));
    let memory = KeyMemory::of_test(&clock);
    let leash = Arc::new(Leash::new(kek, route, lease, clock, &settings, memory.clone(), Arc::default()));
    let ledger = Ledger::new(Limits::SUITE);
    let aek = Counted { account: AccountId::new("a").unwrap(), aek_version: 1, created_unix: 1 };
    let meter = Meter::new(&ledger, aek, Usage::default(), AekPolicy::default());
    let slot = AekSlot::new(leash.clone(), meter);
    let epoch = prove(&leash);
    (leash, slot, epoch, memory)
}

/// Nothing is left: neither in the slot, nor of what was used as it was taken out.
fn is_wiped(slot: &AekSlot, memory: &KeyMemory) -> bool {
    while memory.wipe_waiting() > 0 {
        thread::yield_now();
    }
    slot.key().epoch().is_none() && memory.filled() == 0
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
        let (leash, slot, epoch, memory) = leash_and_slot();
        let denier = spawn({
            let leash = leash.clone();
            move || drop(leash.step(Voice::First, Verdict::Denied, None))
        });
        let admitted = slot.admit(&aek(1), epoch, LATER, LATER).is_ok();
        denier.join().unwrap();
        assert!(is_wiped(&slot, &memory), "denied, and a key is there");
        assert_eq!(slot.is_wanted(), admitted, "what was in memory comes back after the denial");
    });
}

#[test]
fn a_key_that_was_admitted_after_a_new_proof_survives_the_wipe_of_the_denial_before_it() {
    check(|| {
        let (leash, slot, epoch, memory) = leash_and_slot();
        slot.admit(&aek(1), epoch, LATER, LATER).unwrap();
        let denier = spawn({
            let leash = leash.clone();
            move || drop(leash.step(Voice::First, Verdict::Denied, None))
        });
        let epoch = prove(&leash);
        let admitted = slot.admit(&aek(1), epoch, LATER, LATER).is_ok();
        denier.join().unwrap();
        let current = slot.key().epoch().map(NonZeroU64::get) == Some(leash.epoch());
        let denied = leash.lease().proved().is_none();
        while memory.wipe_waiting() > 0 {
            thread::yield_now();
        }
        assert!(current || slot.is_wanted() || !admitted, "a key was lost, and nobody will bring it back");
        assert!(!(current && denied), "a key is there after a denial");
    });
}

#[test]
fn a_seal_that_meets_a_denial_and_an_eviction_reads_whole_keys_only() {
    check(|| {
        let (leash, slot, epoch, memory) = leash_and_slot();
        slot.admit(&aek(1), epoch, LATER, LATER).unwrap();
        let reader = spawn({
            let slot = slot.clone();
            move || {
                let mut operation = Operation::enter();
                slot.usable(&mut operation, Instant::from_nanos(1)).is_some()
            }
        });
        let evicter = spawn({
            let slot = slot.clone();
            move || slot.wipe()
        });
        leash.step(Voice::First, Verdict::Denied, None);
        let mut operation = Operation::enter();
        assert!(slot.usable(&mut operation, Instant::from_nanos(1)).is_none(), "usable after the denial returned");
        drop(operation);
        reader.join().unwrap();
        evicter.join().unwrap();
        assert!(is_wiped(&slot, &memory));
    });
}

#[test]
fn an_admission_that_meets_a_retirement_leaves_no_key_behind() {
    check(|| {
        let (leash, slot, epoch, memory) = leash_and_slot();
        let retirer = spawn({
            let slot = slot.clone();
            move || slot.retire()
        });
        // Admitted or not: the answer came to a slot that is none any more.
        let _ = slot.admit(&aek(1), epoch, LATER, LATER);
        retirer.join().unwrap();
        assert!(is_wiped(&slot, &memory), "retired, and a key is there");
        assert!(!slot.is_wanted() && leash.member(0).is_none());
    });
}
