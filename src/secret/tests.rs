//! Key memory and key slots; part of `secret.rs`, whose unsafe code these tests look under.

use super::*;

const ONE: NonZeroU64 = NonZeroU64::MIN;

fn raw(slot: &KeySlot) -> Vec<u8> {
    // SAFETY: the cell is mapped and CELL_BYTES long; no other thread uses it in these tests.
    unsafe { std::slice::from_raw_parts(slot.cell.0.as_ptr(), CELL_BYTES) }.to_vec()
}

#[test]
fn a_wiped_slot_holds_only_zeros() {
    let slot = KeySlot::new().unwrap();
    let aek = Aek::generate().unwrap();
    slot.fill(&aek, ONE);
    assert!(raw(&slot).windows(32).any(|bytes| bytes == aek.expose()), "the schedule begins with the key");
    assert!(slot.holds(&aek));
    slot.wipe();
    assert!(raw(&slot).iter().all(|byte| *byte == 0));
    assert!(!slot.holds(&aek) && slot.is_wiped());
}

#[test]
fn a_slot_of_another_epoch_is_not_read() {
    let slot = KeySlot::new().unwrap();
    slot.fill(&Aek::generate().unwrap(), ONE);
    let operation = Operation::enter();
    assert!(slot.read(&operation, 1).is_some());
    assert!(slot.read(&operation, 2).is_none());
    assert!(slot.read(&operation, 0).is_none());
    drop(operation);
    slot.empty();
    assert!(!slot.is_wiped());
    slot.scrub();
    assert!(slot.is_wiped());
    let operation = Operation::enter();
    assert!(slot.read(&operation, 0).is_none(), "an empty slot is not read with the epoch of emptiness");
}

#[test]
fn a_refill_replaces_the_key() {
    let slot = KeySlot::new().unwrap();
    let (first, second) = (Aek::generate().unwrap(), Aek::generate().unwrap());
    slot.fill(&first, ONE);
    slot.fill(&second, ONE);
    assert!(slot.holds(&second) && !slot.holds(&first));
}

#[test]
fn memory_that_cannot_be_locked_and_is_refused_is_given_back() {
    let mut bases = std::collections::HashSet::new();
    for _ in 0..100 {
        let mut free = Vec::new();
        let refused = map_chunk(&mut free, true, |base| {
            bases.insert(base.addr());
            Err(rustix::io::Errno::NOMEM)
        });
        assert!(matches!(refused, Err(Error::Misconfigured(_))) && free.is_empty());
    }
    assert!(bases.len() < 50, "{} of 100 mappings are at places of their own: they pile up", bases.len());
}

#[test]
fn the_memory_that_is_asked_for_holds_all_keys_and_what_stands_beside_them() {
    let mut chunk = Vec::new();
    map_chunk(&mut chunk, false, |_| Ok(())).unwrap();
    for cells in [1, 64, 963, 1_000, 1_000_000] {
        assert!(bytes_with(cells) / CHUNK_BYTES * chunk.len() > cells, "{cells}");
    }
}

#[test]
fn a_forked_child_wipes_without_waiting_for_operations_of_its_parents_threads() {
    let slot = KeySlot::new().unwrap();
    slot.fill(&Aek::generate().unwrap(), ONE);
    let (entered, is_inside) = std::sync::mpsc::channel();
    let (leave, may_leave) = std::sync::mpsc::channel::<()>();
    let reader = std::thread::spawn(move || {
        let _operation = Operation::enter();
        entered.send(()).unwrap();
        may_leave.recv().unwrap();
    });
    is_inside.recv().unwrap();
    // SAFETY: the child has one thread; it wipes, takes no lock that another thread holds for long, and ends without
    // running destructors. An alarm ends it where it would wait.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above.
        unsafe {
            libc::alarm(20);
            slot.wipe();
            libc::_exit(if slot.is_wiped() { 0 } else { 1 });
        }
    }
    let mut status = 0;
    // SAFETY: the child made above.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "the child waited: {status:#x}");
    leave.send(()).unwrap();
    reader.join().unwrap();
}

#[test]
fn cells_come_back_zeroed() {
    let address = {
        let aek = Aek::copy_from(&[7; AEK_BYTES]).unwrap();
        aek.0.0
    };
    // SAFETY: chunks are never unmapped; a race with another test could only show that test's zeros or its own key.
    let bytes = unsafe { std::slice::from_raw_parts(address.as_ptr(), AEK_BYTES) };
    assert_ne!(bytes, [7; AEK_BYTES]);
}

#[test]
fn readers_never_see_a_torn_or_wiped_schedule() {
    let slot = std::sync::Arc::new(KeySlot::new().unwrap());
    let aek = Aek::copy_from(&[9; AEK_BYTES]).unwrap();
    slot.fill(&aek, ONE);
    let mut expected = [1; 16];
    slot.read(&Operation::enter(), 1).unwrap().encrypt_block(&mut expected);
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let reads = std::sync::Arc::new(AtomicU64::new(0));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (slot, stop, reads) = (slot.clone(), stop.clone(), reads.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let operation = Operation::enter();
                    if let Some(schedule) = slot.read(&operation, 1) {
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
        slot.wipe();
        slot.fill(&aek, ONE);
        assert!(slot.read(&Operation::enter(), 1).is_some());
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
