//! Secrets in memory: locked pages of our own, wiped in place.
//!
//! AEKs and their schedules live in cells of pages that are never swapped (`mlock`), left out of core dumps
//! (`MADV_DONTDUMP`) and zero in a forked child (`MADV_WIPEONFORK`). A slot's epoch stands in the same page,
//! so that a child finds every slot empty, never filled with zeros.
#![allow(unsafe_code)] // one of the rooms that may; each block says why it is sound

use crate::{
    error::{Error, Result},
    fork,
    in_flight::{self, Operation},
    sync::{self, Witness},
};
use rustix::{
    mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap},
    process::{Resource, getrlimit},
};
use std::{
    cell::UnsafeCell,
    ffi::c_void,
    fmt,
    mem::MaybeUninit,
    num::NonZeroU64,
    ptr::{self, NonNull},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    },
};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

mod schedule;

pub use schedule::Schedule;
pub(crate) use schedule::scrub_stack;

/// Length of an AEK in bytes.
pub const AEK_BYTES: usize = 32;
/// Size of a cell in bytes: an epoch and an AES-256 schedule with its CMAC subkey.
pub const CELL_BYTES: usize = 272;
const CELL_ALIGN: usize = 16;
/// Pages are mapped and locked in chunks of this many bytes.
const CHUNK_BYTES: usize = 256 * 1024;
const CELLS_PER_CHUNK: usize = CHUNK_BYTES / CELL_BYTES;
/// Cells beside those of the AEKs that are kept: PINs, AEKs on their way to and from the token, and a counter for each thread.
const CELLS_BESIDE: usize = 256;

/// Cells that are free, in chunks that live as long as the process.
static FREE: Mutex<Vec<CellPtr>> = Mutex::new(Vec::new());
static REFUSE_UNLOCKED: AtomicBool = AtomicBool::new(false);
static UNLOCKED_BYTES: AtomicUsize = AtomicUsize::new(0);

struct CellPtr(NonNull<u8>);
// SAFETY: a cell belongs to whoever holds its pointer; the memory is plain and mapped for good.
unsafe impl Send for CellPtr {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while these are held, and the values are whole after every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether memory that cannot be locked is used with a warning (the default) or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemlockPolicy {
    /// Warn, with the number to set.
    #[default]
    Warn,
    /// Refuse to hold a key in it. Holds for the whole process once an engine has asked for it.
    Refuse,
}

/// Checks that `cells` cells can be locked, by RLIMIT_MEMLOCK, and sets the policy.
///
/// # Errors
/// [`Error::Misconfigured`] with the number to set, under [`MemlockPolicy::Refuse`]. Under `Warn` the same text comes back
/// as `Ok(Some(warning))`.
pub fn check_memlock(cells: usize, policy: MemlockPolicy) -> Result<Option<String>> {
    if policy == MemlockPolicy::Refuse {
        REFUSE_UNLOCKED.store(true, Ordering::SeqCst);
    }
    let need = bytes_with(cells) as u64;
    let limit = getrlimit(Resource::Memlock).current;
    let Some(limit) = limit.filter(|limit| *limit < need && !may_lock_without_limit()) else {
        return Ok(None);
    };
    let mut what = format!(
        "RLIMIT_MEMLOCK is {limit} bytes and {need} are needed to keep {cells} AEKs out of swap: \
         set LimitMEMLOCK={need} in the unit (or `ulimit -l {}`)",
        need / 1024,
    );
    let fit = (limit / CHUNK_BYTES as u64 * CELLS_PER_CHUNK as u64).saturating_sub(CELLS_BESIDE as u64);
    if fit > 0 {
        what.push_str(&format!(", or lower max_cached_aeks to {fit}"));
    }
    match policy {
        MemlockPolicy::Warn => Ok(Some(what)),
        MemlockPolicy::Refuse => Err(Error::Misconfigured(what)),
    }
}

/// Key memory with room for so many AEKs.
fn bytes_with(cells: usize) -> usize {
    cells.saturating_add(CELLS_BESIDE).div_ceil(CELLS_PER_CHUNK).saturating_mul(CHUNK_BYTES)
}

/// Bytes of key memory that could not be locked so far.
pub fn unlocked_bytes() -> usize {
    UNLOCKED_BYTES.load(Ordering::Relaxed)
}

/// CAP_IPC_LOCK lifts the limit.
fn may_lock_without_limit() -> bool {
    const CAP_IPC_LOCK: u64 = 1 << 14;
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|caps| caps & CAP_IPC_LOCK != 0)
}

/// One cell of locked memory, zero when it is taken and wiped when it is given back.
struct LockedCell(NonNull<u8>);

// SAFETY: the cell is plain memory that this value alone owns; what is shared goes through `KeySlot`'s protocol.
unsafe impl Send for LockedCell {}
// SAFETY: `&LockedCell` gives reading only, but for `KeySlot`, which synchronises.
unsafe impl Sync for LockedCell {}

impl LockedCell {
    fn take() -> Result<Self> {
        let mut free = lock(&FREE);
        if free.is_empty() {
            let refuses = REFUSE_UNLOCKED.load(Ordering::SeqCst);
            // SAFETY: the range is a mapping that nobody else knows yet.
            map_chunk(&mut free, refuses, |base| unsafe { mlock(base, CHUNK_BYTES) })?;
        }
        match free.pop() {
            Some(CellPtr(cell)) => Ok(Self(cell)),
            None => Err(Error::Fatal("no memory for keys".into())),
        }
    }

    fn bytes(&self) -> &[u8; CELL_BYTES] {
        // SAFETY: the cell is mapped, initialised (zero or written) and CELL_BYTES long; nobody writes while it is shared
        // as bytes: only `Aek` and `Pin` do that, and they write before they share.
        unsafe { self.0.cast::<[u8; CELL_BYTES]>().as_ref() }
    }

    fn bytes_mut(&mut self) -> &mut [u8; CELL_BYTES] {
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { self.0.cast::<[u8; CELL_BYTES]>().as_mut() }
    }
}

impl Drop for LockedCell {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        if fork::in_child() {
            return; // the list may be locked for good
        }
        lock(&FREE).push(CellPtr(self.0));
    }
}

fn map_chunk(
    free: &mut Vec<CellPtr>,
    refuses_unlocked: bool,
    lock_chunk: impl FnOnce(*mut c_void) -> rustix::io::Result<()>,
) -> Result<()> {
    let failed = |what: &str, error| Error::Fatal(format!("cannot get memory for keys: {what}: {error}"));
    // SAFETY: a new anonymous mapping touches no memory that exists.
    let base =
        unsafe { mmap_anonymous(ptr::null_mut(), CHUNK_BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }
            .map_err(|error| failed("mmap", error))?;
    let give_back = || {
        // SAFETY: the range is the mapping made above, of which no cell was given out.
        if let Err(error) = unsafe { munmap(base, CHUNK_BYTES) } {
            tracing::warn!(%error, "memory for keys that is not used cannot be given back");
        }
    };
    let advise = |advice, name| {
        // SAFETY: the range is the mapping made above, which nobody else knows yet.
        unsafe { madvise(base, CHUNK_BYTES, advice) }.map_err(|error| failed(name, error))
    };
    advise(Advice::LinuxDontDump, "MADV_DONTDUMP")
        .and_then(|()| advise(Advice::LinuxWipeOnFork, "MADV_WIPEONFORK"))
        .inspect_err(|_| give_back())?;
    if let Err(error) = lock_chunk(base) {
        if refuses_unlocked {
            give_back();
            return Err(Error::Misconfigured(format!(
                "key memory cannot be locked ({error}): raise RLIMIT_MEMLOCK by at least {CHUNK_BYTES} bytes"
            )));
        }
        if UNLOCKED_BYTES.fetch_add(CHUNK_BYTES, Ordering::Relaxed) == 0 {
            tracing::warn!(%error, "key memory cannot be locked and may reach swap: raise RLIMIT_MEMLOCK");
        }
    }
    for cell in 0..CELLS_PER_CHUNK {
        // SAFETY: the offset is inside the mapping, which is page-aligned and lives for good.
        let cell = unsafe { base.cast::<u8>().add(cell * CELL_BYTES) };
        free.extend(NonNull::new(cell).map(CellPtr));
    }
    Ok(())
}

/// An unwrapped AEK in locked memory. Wiped on drop; `Debug` shows nothing; equality is constant-time.
pub struct Aek(LockedCell);

impl Aek {
    /// A new random AEK from the operating system.
    ///
    /// # Errors
    /// [`Error::Fatal`] when the OS has no randomness or no memory.
    pub fn generate() -> Result<Self> {
        let mut cell = LockedCell::take()?;
        fill_random(&mut cell.bytes_mut()[..AEK_BYTES])?;
        Ok(Self(cell))
    }

    /// Copies an AEK in. The caller wipes its own copy.
    ///
    /// # Errors
    /// [`Error::Fatal`] when there is no memory.
    pub fn copy_from(bytes: &[u8; AEK_BYTES]) -> Result<Self> {
        let mut cell = LockedCell::take()?;
        cell.bytes_mut()[..AEK_BYTES].copy_from_slice(bytes);
        Ok(Self(cell))
    }

    /// The secret itself, to be borrowed for as short as can be and never copied to memory that is not wiped.
    pub fn expose(&self) -> &[u8; AEK_BYTES] {
        let bytes = self.0.bytes();
        // SAFETY: the cell is longer than an AEK, and `u8` arrays have no alignment.
        unsafe { &*bytes.as_ptr().cast::<[u8; AEK_BYTES]>() }
    }
}

impl PartialEq for Aek {
    fn eq(&self, other: &Self) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

impl Eq for Aek {}

impl fmt::Debug for Aek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Aek(…)")
    }
}

/// A token PIN in locked memory: 1 to 255 bytes. Wiped on drop; `Debug` shows nothing.
pub struct Pin {
    cell: LockedCell,
    len: usize,
}

impl Pin {
    /// Longest PIN, in bytes.
    pub const BYTES_MAX: usize = 255;

    /// Takes a PIN and wipes where it came from.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is empty or longer than 255 bytes.
    pub fn take_from(source: &mut Vec<u8>) -> Result<Self> {
        let len = source.len();
        if len == 0 || len > Self::BYTES_MAX {
            source.zeroize();
            return Err(Error::Invalid(format!("a PIN has 1 to {} bytes, this one has {len}", Self::BYTES_MAX)));
        }
        let mut cell = LockedCell::take().inspect_err(|_| source.zeroize())?;
        cell.bytes_mut().iter_mut().zip(source.iter()).for_each(|(to, from)| *to = *from);
        source.zeroize();
        Ok(Self { cell, len })
    }

    /// The secret itself.
    pub fn expose(&self) -> &[u8] {
        self.cell.bytes().get(..self.len).unwrap_or_default()
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin(…)")
    }
}

/// Fills `bytes` from the operating system.
///
/// # Errors
/// [`Error::Fatal`] when it cannot.
pub fn fill_random(bytes: &mut [u8]) -> Result<()> {
    use rand::TryRng as _;
    rand::rngs::SysRng
        .try_fill_bytes(bytes)
        .map_err(|error| Error::Fatal(format!("no randomness from the OS: {error}")))
}

/// The generation of this process among its forks, in a cell that a fork zeroes. Null until it is first asked for.
static GENERATION: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
/// The generation to give next. A child inherits it, so what it takes no ancestor had when it forked.
static GENERATION_NEXT: AtomicU64 = AtomicU64::new(1);

/// A number that differs between a process and its forked children: what was seeded in another generation is stale.
/// Two siblings may share one; each of them differs from the parent that seeded.
///
/// # Errors
/// [`Error::Fatal`] or [`Error::Misconfigured`] when the first call gets no memory that a fork zeroes.
#[inline]
pub(crate) fn fork_generation() -> Result<u64> {
    // SAFETY: null, or a cell that was leaked for this: aligned, mapped for good, and used as this atomic alone.
    match unsafe { GENERATION.load(Ordering::Acquire).as_ref() }.map(|cell| (cell, cell.load(Ordering::Acquire))) {
        Some((_, generation)) if generation != 0 => Ok(generation),
        found => fork_generation_slow(found.map(|(cell, _)| cell)),
    }
}

#[cold]
fn fork_generation_slow(cell: Option<&'static AtomicU64>) -> Result<u64> {
    let cell = match cell {
        Some(cell) => cell,
        None => {
            let mine = LockedCell::take()?;
            let pointer = mine.0.as_ptr().cast::<AtomicU64>();
            match GENERATION.compare_exchange(ptr::null_mut(), pointer, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    std::mem::forget(mine);
                    // SAFETY: zeroed (a valid atomic), aligned (CELL_ALIGN), and leaked just now.
                    unsafe { &*pointer }
                }
                // SAFETY: another thread leaked it; ours goes back.
                Err(theirs) => unsafe { &*theirs },
            }
        }
    };
    let next = GENERATION_NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(cell.compare_exchange(0, next, Ordering::AcqRel, Ordering::Acquire).map_or_else(|found| found, |_| next))
}

/// A counter at 0 that is 0 again in a forked child, in cache lines of its own; it lives as long as the process.
///
/// # Errors
/// As [`KeySlot::new`].
#[cfg(not(keyleash_loom))]
pub(crate) fn counter_that_a_fork_zeroes() -> Result<&'static AtomicU64> {
    const LINES_BYTES: usize = 128; // two, because the prefetcher of x86 fetches pairs
    const _: () = assert!(CELL_BYTES >= 2 * LINES_BYTES);
    let cell = LockedCell::take()?;
    let start = cell.0.as_ptr();
    // SAFETY: less than LINES_BYTES are added, so that LINES_BYTES of the cell are left.
    let counter = unsafe { start.add(start.align_offset(LINES_BYTES).min(CELL_BYTES - LINES_BYTES)) };
    std::mem::forget(cell);
    // SAFETY: zeroed (a valid atomic), aligned, and in a cell that was leaked just now.
    Ok(unsafe { &*counter.cast::<AtomicU64>() })
}

/// The epoch that says "empty".
const EMPTY: u64 = 0;

#[repr(C, align(16))]
struct Body {
    /// The lease epoch in which the slot was filled; [`EMPTY`] when it holds no key. In the page, so that a fork zeroes it.
    epoch: AtomicU64,
    schedule: UnsafeCell<MaybeUninit<Schedule>>,
}

const _: () = assert!(size_of::<Body>() <= CELL_BYTES && align_of::<Body>() <= CELL_ALIGN);
const _: () = assert!(CELL_BYTES.is_multiple_of(CELL_ALIGN));

/// A key slot: holds one AEK's schedule in locked memory, filled and wiped in place while other threads use it.
pub struct KeySlot {
    cell: LockedCell,
    writer: sync::Mutex<Writer>,
    /// Of the schedule.
    witness: Witness,
    /// Stands for the epoch in the cell, where loom could not see it.
    #[cfg(keyleash_loom)]
    loom_epoch: sync::AtomicU64,
}

/// What a writer must know; readers look at the epoch alone. One word: there are a million of them.
#[derive(Default)]
struct Writer(u64);

impl Writer {
    /// Stands above every ticket.
    const OCCUPIED: u64 = 1 << 63;

    /// The cell holds a schedule, usable or emptied but not yet wiped.
    fn occupied(&self) -> bool {
        self.0 & Self::OCCUPIED != 0
    }

    fn set_occupied(&mut self, occupied: bool) {
        self.0 = self.emptied() | if occupied { Self::OCCUPIED } else { 0 };
    }

    /// When it was emptied, as a ticket of `in_flight`.
    fn emptied(&self) -> u64 {
        self.0 & !Self::OCCUPIED
    }

    fn set_emptied(&mut self, ticket: u64) {
        self.0 = self.0 & Self::OCCUPIED | ticket & !Self::OCCUPIED;
    }
}

impl KeySlot {
    /// An empty slot.
    ///
    /// # Errors
    /// [`Error::Fatal`] without memory; [`Error::Misconfigured`] when it cannot be locked and the policy refuses that.
    pub fn new() -> Result<Self> {
        Ok(Self {
            cell: LockedCell::take()?,
            writer: sync::Mutex::default(),
            witness: Witness::default(),
            #[cfg(keyleash_loom)]
            loom_epoch: sync::AtomicU64::new(EMPTY),
        })
    }

    fn body(&self) -> &Body {
        // SAFETY: the cell is big and aligned enough (asserted above), zeroed (a valid Body: an epoch of 0 and uninitialised
        // bytes), and lives as long as `self`. Interior mutability goes through the atomic and the UnsafeCell.
        unsafe { self.cell.0.cast::<Body>().as_ref() }
    }

    #[inline]
    fn filled(&self) -> &sync::AtomicU64 {
        #[cfg(not(keyleash_loom))]
        return &self.body().epoch;
        #[cfg(keyleash_loom)]
        return &self.loom_epoch;
    }

    fn writer(&self) -> sync::MutexGuard<'_, Writer> {
        // Nothing panics while it is held.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the schedule of `aek` in, as of the lease epoch `epoch`. Whatever was in is wiped first.
    pub fn fill(&self, aek: &Aek, epoch: NonZeroU64) {
        let mut writer = self.writer();
        self.empty_locked(&mut writer);
        self.scrub_locked(&mut writer);
        self.witness.write();
        // SAFETY: the epoch is EMPTY and every operation that saw another value has ended, so nobody reads the schedule; the
        // writer lock excludes other writers; what stood there was dropped by the scrub.
        unsafe { Schedule::set_up(self.body().schedule.get().cast(), aek) };
        scrub_stack();
        writer.set_occupied(true);
        self.filled().store(epoch.get(), Ordering::Release);
    }

    /// The schedule, when the slot was filled in `epoch` (and this process was not forked since).
    #[inline]
    pub(crate) fn read<'a>(&'a self, _operation: &'a Operation, epoch: u64) -> Option<&'a Schedule> {
        let filled = self.filled().load(Ordering::Acquire);
        if filled == EMPTY || filled != epoch {
            return None;
        }
        self.witness.read();
        // SAFETY: a non-empty epoch was stored after the schedule was written (Release/Acquire). The operation was entered
        // before the epoch was read, so whoever empties the slot waits for it to end before the bytes change.
        Some(unsafe { (*self.body().schedule.get()).assume_init_ref() })
    }

    /// The lease epoch in which the slot was filled, if it is filled.
    pub fn epoch(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(self.filled().load(Ordering::Acquire))
    }

    /// True when the slot holds this AEK, compared in constant time. False when it is empty.
    pub fn holds(&self, aek: &Aek) -> bool {
        self.compare(aek) == Some(true)
    }

    /// True when the slot holds another AEK than this one. False when it is empty.
    pub fn differs_from(&self, aek: &Aek) -> bool {
        self.compare(aek) == Some(false)
    }

    fn compare(&self, aek: &Aek) -> Option<bool> {
        let writer = self.writer();
        if !writer.occupied() || self.epoch().is_none() {
            return None;
        }
        self.witness.read();
        // SAFETY: occupied, and the writer lock is held, so nobody writes or wipes.
        let held = unsafe { (*self.body().schedule.get()).assume_init_ref() };
        Some(held.is_of(aek))
    }

    /// Makes the slot unusable at once; the bytes are wiped by [`KeySlot::scrub`]. Empty many, then scrub many: one wait for all.
    pub fn empty(&self) {
        self.empty_locked(&mut self.writer());
    }

    /// As [`KeySlot::empty`], unless the slot is empty or was filled in the epoch `current`. True when it was emptied.
    pub(crate) fn empty_unless(&self, current: u64) -> bool {
        let mut writer = self.writer();
        let stale = self.epoch().is_some_and(|epoch| epoch.get() != current);
        if stale {
            self.empty_locked(&mut writer);
        }
        stale
    }

    /// Wipes an emptied slot, after the operations in flight that may read it. Does nothing to a filled one.
    pub fn scrub(&self) {
        let mut writer = self.writer();
        if self.epoch().is_none() {
            self.scrub_locked(&mut writer);
        }
    }

    /// [`KeySlot::empty`] and [`KeySlot::scrub`] together.
    pub fn wipe(&self) {
        let mut writer = self.writer();
        self.empty_locked(&mut writer);
        self.scrub_locked(&mut writer);
    }

    /// True when no key bytes are in the cell.
    pub fn is_wiped(&self) -> bool {
        !self.writer().occupied()
    }

    fn empty_locked(&self, writer: &mut Writer) {
        if self.filled().swap(EMPTY, Ordering::SeqCst) != EMPTY {
            writer.set_emptied(in_flight::ticket());
        }
    }

    fn scrub_locked(&self, writer: &mut Writer) {
        if !writer.occupied() {
            return;
        }
        in_flight::wait_past(writer.emptied());
        self.witness.write();
        // SAFETY: the slot was emptied and every operation that could have read it has ended (the wait), the writer lock is
        // held; the bytes hold a Schedule (occupied), whose drop wipes it and frees nothing.
        unsafe { ptr::drop_in_place(self.body().schedule.get().cast::<Schedule>()) };
        writer.set_occupied(false);
    }
}

impl Drop for KeySlot {
    fn drop(&mut self) {
        // Nobody can be reading: an operation borrows the slot. The cell wipes all its bytes as it is given back.
        self.filled().store(EMPTY, Ordering::SeqCst);
    }
}

impl fmt::Debug for KeySlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.epoch().is_some() { "KeySlot(filled)" } else { "KeySlot(empty)" })
    }
}

#[cfg(test)]
mod tests;
