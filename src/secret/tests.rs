//! Key memory and key slots; part of the room `secret`, whose unsafe code these tests look under.

use super::*;
use crate::secret::in_flight::Operation;
use std::num::NonZeroU64;

const ONE: NonZeroU64 = NonZeroU64::MIN;

fn fill(slot: &KeySlot, aek: &Aek) {
    // Waits for those that use what was there.
    drop(slot.fill(NewKey::set_up(aek, MemlockPolicy::Warn).unwrap(), ONE));
}

#[test]
fn a_refill_replaces_the_key() {
    let slot = KeySlot::default();
    let (first, second) = (Aek::generate().unwrap(), Aek::generate().unwrap());
    fill(&slot, &first);
    assert!(slot.holds(&first) && slot.differs_from(&second));
    fill(&slot, &second);
    assert!(slot.holds(&second) && slot.differs_from(&first));
    drop(slot.take_out());
    assert!(!slot.holds(&second) && !slot.differs_from(&first), "an empty slot");
}

#[test]
fn a_slot_of_another_epoch_is_not_read() {
    let slot = KeySlot::default();
    let mut operation = Operation::enter();
    assert!(slot.read(&mut operation, 0).is_none(), "an empty slot is not read with the epoch of emptiness");
    fill(&slot, &Aek::generate().unwrap());
    assert!(slot.read(&mut operation, 1).is_some());
    assert!(slot.read(&mut operation, 2).is_none());
    assert!(slot.read(&mut operation, 0).is_none());
    assert!(slot.take_out_unless(1).is_none() && slot.epoch().is_some());
    let taken = slot.take_out_unless(2).unwrap();
    assert!(slot.read(&mut operation, 1).is_none() && slot.epoch().is_none() && slot.take_out().is_none());
    drop(operation);
    drop(taken);
}

#[test]
fn a_key_that_is_used_is_wiped_when_it_is_not_and_holds_up_no_other_nor_its_own_slot() {
    let (slot, beside) = (KeySlot::default(), KeySlot::default());
    let aek = Aek::generate().unwrap();
    [&slot, &beside].into_iter().for_each(|slot| fill(slot, &aek));
    let mut operation = Operation::enter();
    let schedule = slot.read(&mut operation, 1).unwrap();
    let taken = [&slot, &beside].map(|slot| (slot.take_out().unwrap(), slot));
    let mut used = TakenOut::wipe_unused(taken.into());
    assert!(used.len() == 1 && std::ptr::eq(used[0].1, &slot), "the other one is wiped");
    // It is filled anew, and the key that is used is what it was.
    let next = Aek::generate().unwrap();
    fill(&slot, &next);
    assert!(slot.holds(&next));
    let (mut block, mut expected) = ([1; 16], [1; 16]);
    schedule.encrypt_block(&mut block);
    beside.read(&mut Operation::enter(), 1).map_or_else(|| fill(&beside, &aek), |_| panic!("it was taken out"));
    beside.read(&mut Operation::enter(), 1).unwrap().encrypt_block(&mut expected);
    assert_eq!(block, expected);
    let (waits, _) = used.pop().unwrap();
    assert_eq!(waits.threads(), [u64::from(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs())]);
    let waits = waits.wiped_unless_used().expect("it is used");
    // Another operation of the thread, with the key that took its place.
    drop(operation);
    let mut operation = Operation::enter();
    assert!(slot.read(&mut operation, 1).is_some());
    assert!(waits.wiped_unless_used().is_none(), "wiped: nobody uses that one");
}

#[test]
fn a_forked_child_wipes_without_waiting_for_operations_of_its_parents_threads() {
    let slot = std::sync::Arc::new(KeySlot::default());
    fill(&slot, &Aek::generate().unwrap());
    let (entered, is_inside) = std::sync::mpsc::channel();
    let (leave, may_leave) = std::sync::mpsc::channel::<()>();
    let reader = std::thread::spawn({
        let slot = slot.clone();
        move || {
            let mut operation = Operation::enter();
            let schedule = slot.read(&mut operation, 1).unwrap();
            entered.send(()).unwrap();
            may_leave.recv().unwrap();
            schedule.encrypt_block(&mut [0; 16]);
        }
    });
    is_inside.recv().unwrap();
    // Else another test's thread might hold one of these locks, for ever in the child.
    let still = (cells::hold_still(), crate::secret::in_flight::hold_still());
    // SAFETY: the child has one thread; it wipes, takes no lock that another thread holds, and ends without running
    // destructors. An alarm ends it where it would wait.
    let child = unsafe { libc::fork() };
    drop(still);
    if child == 0 {
        // SAFETY: as above.
        unsafe {
            libc::alarm(20);
            let is_read = slot.read(&mut Operation::enter(), 1).is_some();
            let used = TakenOut::wipe_unused(vec![(slot.take_out().unwrap(), ())]);
            libc::_exit(if is_read || !used.is_empty() { 1 } else { 0 });
        }
    }
    let mut status = 0;
    // SAFETY: the child made above.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "the child read or waited: {status:#x}");
    let used = TakenOut::wipe_unused(vec![(slot.take_out().unwrap(), ())]);
    assert_eq!(used.len(), 1, "and the parent would have had to");
    leave.send(()).unwrap();
    reader.join().unwrap();
}

#[test]
fn cells_come_back_zeroed() {
    let address = {
        let aek = Aek::copy_from(&[7; AEK_BYTES]).unwrap();
        aek.0.start()
    };
    // SAFETY: chunks are never unmapped; a race with another test could only show that test's zeros or its own key.
    let bytes = unsafe { std::slice::from_raw_parts(address.as_ptr(), AEK_BYTES) };
    assert_ne!(bytes, [7; AEK_BYTES]);
}

#[test]
fn readers_never_see_a_torn_or_wiped_schedule() {
    let slot = std::sync::Arc::new(KeySlot::default());
    let aek = Aek::copy_from(&[9; AEK_BYTES]).unwrap();
    fill(&slot, &aek);
    let mut expected = [1; 16];
    slot.read(&mut Operation::enter(), 1).unwrap().encrypt_block(&mut expected);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reads = std::sync::Arc::new(AtomicU64::new(0));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (slot, stop, reads) = (slot.clone(), stop.clone(), reads.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut operation = Operation::enter();
                    if let Some(schedule) = slot.read(&mut operation, 1) {
                        let mut block = [1; 16];
                        schedule.encrypt_block(&mut block);
                        assert_eq!(block, expected);
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    let mut wipes = 0;
    // However late a busy machine lets the readers begin.
    while wipes < 20_000 || reads.load(Ordering::Relaxed) < 100 && !readers.iter().any(|reader| reader.is_finished()) {
        drop(slot.take_out());
        fill(&slot, &aek);
        assert!(slot.read(&mut Operation::enter(), 1).is_some());
        wipes += 1;
        if wipes % 100 == 0 {
            std::thread::yield_now();
        }
    }
    stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
}

#[test]
fn secrets_are_not_shown() {
    let aek = Aek::copy_from(&[7; AEK_BYTES]).unwrap();
    let pin = Pin::take_from(&mut b"1234".to_vec()).unwrap();
    assert_eq!(format!("{aek:?} {pin:?}"), "Aek(…) Pin(…)");
    assert_eq!(pin.expose(), b"1234");
    assert!(Pin::take_from(&mut Vec::new()).is_err() && Pin::take_from(&mut vec![b'1'; 256]).is_err());
}
