//! Key memory: cells of pages that are never swapped, left out of core dumps and zero in a forked child.
//!
//! Cells that could be locked and cells that could not are kept apart, by what `mlock` said of their own pages: under
//! [`MemlockPolicy::Refuse`] no key is ever in a cell that is not locked.
#![allow(unsafe_code)] // part of the room `secret`; each block says why it is sound

use crate::{
    error::{Error, Result},
    planted::{self, Fault},
    secret::fork,
};
use rustix::{
    mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap},
    process::{Resource, getrlimit},
};
use std::{
    collections::BTreeSet,
    ffi::c_void,
    ptr::{self, NonNull},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};
use zeroize::Zeroize;

/// Size of a cell in bytes: an epoch and an AES-256 schedule with its CMAC subkey.
pub(super) const CELL_BYTES: usize = 272;
pub(super) const CELL_ALIGN: usize = 16;
/// Pages are mapped and locked in chunks of this many bytes.
const CHUNK_BYTES: usize = 256 * 1024;
const CELLS_PER_CHUNK: usize = CHUNK_BYTES / CELL_BYTES;
/// Cells beside those of the AEKs that are kept: PINs, AEKs on their way to and from the token, and a line for each thread.
const CELLS_BESIDE: usize = 256;
/// Of the locked cells so many are left to AEKs on their way by keys that must be locked: else no proof could be had any more.
pub(super) const CELLS_SPARED: usize = 128;

const _: () = assert!(CELL_BYTES.is_multiple_of(CELL_ALIGN));

static FREE: Mutex<Free> =
    Mutex::new(Free { locked: Vec::new(), unlocked: Vec::new(), unlocked_chunks: BTreeSet::new() });
/// How many engines there are that refuse key memory which is not locked.
static REFUSERS: AtomicUsize = AtomicUsize::new(0);

/// Cells that are free, in chunks that live as long as the process.
struct Free {
    locked: Vec<CellPtr>,
    unlocked: Vec<CellPtr>,
    /// Where the chunks begin that could not be locked.
    unlocked_chunks: BTreeSet<usize>,
}

struct CellPtr(NonNull<u8>);
// SAFETY: a cell belongs to whoever holds its pointer; the memory is plain and mapped for good.
unsafe impl Send for CellPtr {}

fn free() -> MutexGuard<'static, Free> {
    // Nothing panics while it is held, and the lists are whole after every step.
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Free {
    fn is_locked(&self, address: usize) -> bool {
        let chunk = self.unlocked_chunks.range(..=address).next_back();
        chunk.is_none_or(|start| address - start >= CHUNK_BYTES)
    }

    fn give_back(&mut self, cell: CellPtr) {
        let locked = self.is_locked(cell.0.addr().get());
        if locked { &mut self.locked } else { &mut self.unlocked }.push(cell);
    }

    /// Tries once more to lock what could not be locked before: the limit may have been raised.
    fn lock_again(&mut self) {
        // SAFETY: chunks are mapped for good, and locking changes no byte of them.
        let fails = |start: &usize| unsafe { mlock(ptr::without_provenance_mut(*start), CHUNK_BYTES) }.is_err();
        self.unlocked_chunks.retain(fails);
        std::mem::take(&mut self.unlocked).into_iter().for_each(|cell| self.give_back(cell));
    }
}

/// Whether memory that cannot be locked is used with a warning (the default) or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MemlockPolicy {
    /// Warn, with the number to set.
    #[default]
    Warn,
    /// Refuse to hold a key in it: a key for which no memory can be locked is an [`Error::Misconfigured`]. It holds for the
    /// engine that asked for it. AEKs on their way to and from a token belong to no engine: while there is an engine that
    /// refuses, they are refused as well.
    Refuse,
}

/// While it is held, no AEK on its way is put into memory that is not locked.
#[derive(Debug)]
pub(crate) struct Refuser(());

impl Refuser {
    /// For an engine with this policy.
    pub(crate) fn for_policy(policy: MemlockPolicy) -> Option<Self> {
        (policy == MemlockPolicy::Refuse).then(|| {
            REFUSERS.fetch_add(1, Ordering::SeqCst);
            Self(())
        })
    }

    /// What holds for secrets that belong to no engine.
    pub(super) fn policy() -> MemlockPolicy {
        if REFUSERS.load(Ordering::SeqCst) > 0 { MemlockPolicy::Refuse } else { MemlockPolicy::Warn }
    }
}

impl Drop for Refuser {
    fn drop(&mut self) {
        REFUSERS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Checks that so many more cells can be locked: by RLIMIT_MEMLOCK, and by what the process has locked of it. What could not be
/// locked before is tried once more.
///
/// # Errors
/// [`Error::Misconfigured`] with the number to set, under [`MemlockPolicy::Refuse`]. Under `Warn` the same text comes back
/// as `Ok(Some(warning))`.
pub fn check_memlock(cells: usize, policy: MemlockPolicy) -> Result<Option<String>> {
    let mut free = free();
    free.lock_again();
    let there = free.locked.len();
    drop(free);
    let need = bytes_with(cells, there) as u64;
    let limit = getrlimit(Resource::Memlock).current;
    let locked = status("VmLck:")
        .and_then(|kib| kib.trim_end_matches("kB").trim().parse().ok())
        .map_or(0, |kib: u64| kib * 1024);
    let Some(limit) = limit.filter(|limit| limit.saturating_sub(locked) < need && !may_lock_without_limit()) else {
        return Ok(None);
    };
    let of_them = if locked == 0 { String::new() } else { format!(", of which {locked} are used,") };
    let total = locked.saturating_add(need);
    let mut what = format!(
        "RLIMIT_MEMLOCK is {limit} bytes{of_them} and {need} are needed to keep {cells} AEKs out of swap: \
         set LimitMEMLOCK={total} in the unit (or `ulimit -l {}`)",
        total.div_ceil(1024),
    );
    let room = limit.saturating_sub(locked) / CHUNK_BYTES as u64 * CELLS_PER_CHUNK as u64;
    let fit = room.saturating_add(there as u64).saturating_sub(CELLS_BESIDE as u64);
    if fit > 0 {
        what.push_str(&format!(", or lower max_cached_aeks to {fit}"));
    }
    match policy {
        MemlockPolicy::Warn => Ok(Some(what)),
        MemlockPolicy::Refuse => Err(Error::Misconfigured(what)),
    }
}

/// Key memory with room for so many AEKs, and what stands beside them, of which `there` cells are there and free.
pub(super) fn bytes_with(cells: usize, there: usize) -> usize {
    let missing = cells.saturating_add(CELLS_BESIDE).saturating_sub(there);
    missing.div_ceil(CELLS_PER_CHUNK).saturating_mul(CHUNK_BYTES)
}

/// Bytes of key memory that could not be locked so far.
pub fn unlocked_bytes() -> usize {
    free().unlocked_chunks.len() * CHUNK_BYTES
}

/// CAP_IPC_LOCK lifts the limit.
fn may_lock_without_limit() -> bool {
    const CAP_IPC_LOCK: u64 = 1 << 14;
    let effective = status("CapEff:").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
    effective.is_some_and(|caps| caps & CAP_IPC_LOCK != 0)
}

/// What the kernel says of this process.
fn status(field: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix(field))?.trim().to_owned())
}

/// One cell of key memory, zero when it is taken and wiped when it is given back.
pub(super) struct Cell(NonNull<u8>);

// SAFETY: the cell is plain memory that this value alone owns; what is shared goes through `KeySlot`'s protocol.
unsafe impl Send for Cell {}
// SAFETY: `&Cell` gives reading only.
unsafe impl Sync for Cell {}

impl Cell {
    /// Under [`MemlockPolicy::Refuse`] leaves so many others free as are `spared`.
    ///
    /// # Errors
    /// [`Error::Fatal`] without memory; [`Error::Misconfigured`] when it cannot be locked and the policy refuses that.
    pub(super) fn take(policy: MemlockPolicy, spared: usize) -> Result<Self> {
        let refuses = policy == MemlockPolicy::Refuse;
        let mut free = free();
        let found = match pop_allowed(&mut free, refuses.then_some(spared)) {
            Some(cell) => Some(cell),
            None => {
                // SAFETY: the range is a mapping that nobody else knows yet.
                map_chunk(&mut free, refuses, |base| unsafe { mlock(base, CHUNK_BYTES) })?;
                pop_allowed(&mut free, refuses.then_some(spared))
            }
        };
        found.map(|cell| Self(cell.0)).ok_or_else(|| Error::Fatal("no memory for keys".into()))
    }

    pub(super) fn bytes(&self) -> &[u8; CELL_BYTES] {
        // SAFETY: the cell is mapped, initialised (zero or written) and CELL_BYTES long; nobody writes while it is shared
        // as bytes: only `Aek` and `Pin` do that, and they write before they share.
        unsafe { self.0.cast::<[u8; CELL_BYTES]>().as_ref() }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8; CELL_BYTES] {
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { self.0.cast::<[u8; CELL_BYTES]>().as_mut() }
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.0
    }

    /// Never given back, unless by [`Cell::from_start`].
    pub(super) fn leak(self) -> NonNull<u8> {
        let start = self.0;
        std::mem::forget(self);
        start
    }

    /// # Safety
    /// `start` is that of a cell that was leaked, and nobody uses it any more.
    #[cfg(not(keyleash_loom))]
    pub(super) unsafe fn from_start(start: NonNull<u8>) -> Self {
        Self(start)
    }
}

/// With `locked_and_spared` a locked one alone, if more than so many are free.
fn pop_allowed(free: &mut Free, locked_and_spared: Option<usize>) -> Option<CellPtr> {
    match locked_and_spared {
        Some(spared) if free.locked.len() <= spared => None,
        Some(_) => free.locked.pop(),
        None => free.locked.pop().or_else(|| free.unlocked.pop()),
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if !planted::is(Fault::WipeOmitted) {
            self.bytes_mut().zeroize();
        }
        if fork::in_child() {
            return; // the list may be locked for good
        }
        free().give_back(CellPtr(self.0));
    }
}

fn map_chunk(
    free: &mut Free,
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
    let locked = lock_chunk(base);
    if let Err(error) = locked {
        if refuses_unlocked {
            give_back();
            return Err(Error::Misconfigured(format!(
                "key memory cannot be locked ({error}): raise RLIMIT_MEMLOCK by at least {CHUNK_BYTES} bytes, or lower \
                 max_cached_aeks"
            )));
        }
        if free.unlocked_chunks.is_empty() {
            tracing::warn!(%error, "key memory cannot be locked and may reach swap: raise RLIMIT_MEMLOCK");
        }
        free.unlocked_chunks.insert(base.addr());
    }
    for cell in 0..CELLS_PER_CHUNK {
        // SAFETY: the offset is inside the mapping, which is page-aligned and lives for good.
        let cell = unsafe { base.cast::<u8>().add(cell * CELL_BYTES) };
        if let Some(cell) = NonNull::new(cell) {
            if locked.is_ok() { &mut free.locked } else { &mut free.unlocked }.push(CellPtr(cell));
        }
    }
    Ok(())
}

/// Nobody takes a cell or gives one back until it is dropped: for a test that forks.
#[cfg(test)]
pub(super) fn hold_still() -> impl Drop {
    free()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Free {
        Free { locked: Vec::new(), unlocked: Vec::new(), unlocked_chunks: BTreeSet::new() }
    }

    #[test]
    fn memory_that_cannot_be_locked_and_is_refused_is_given_back() {
        let mut bases = std::collections::HashSet::new();
        for _ in 0..100 {
            let mut free = none();
            let refused = map_chunk(&mut free, true, |base| {
                bases.insert(base.addr());
                Err(rustix::io::Errno::NOMEM)
            });
            assert!(matches!(refused, Err(Error::Misconfigured(_))) && free.unlocked.is_empty());
        }
        assert!(bases.len() < 50, "{} of 100 mappings are at places of their own: they pile up", bases.len());
    }

    #[test]
    fn a_cell_that_is_not_locked_is_never_given_to_who_refuses_it() {
        let mut free = none();
        map_chunk(&mut free, false, |_| Err(rustix::io::Errno::NOMEM)).unwrap();
        assert!(pop_allowed(&mut free, Some(0)).is_none());
        let cell = pop_allowed(&mut free, None).unwrap();
        map_chunk(&mut free, true, |_| Ok(())).unwrap();
        free.give_back(cell); // where it came from
        assert_eq!(
            (0..).map_while(|_| pop_allowed(&mut free, Some(CELLS_SPARED))).count(),
            CELLS_PER_CHUNK - CELLS_SPARED
        );
        assert_eq!((0..).map_while(|_| pop_allowed(&mut free, Some(0))).count(), CELLS_SPARED);
        assert_eq!((0..).map_while(|_| pop_allowed(&mut free, None)).count(), CELLS_PER_CHUNK);
    }

    #[test]
    fn the_memory_that_is_asked_for_holds_all_keys_and_what_stands_beside_them() {
        for cells in [1, 64, 963, 1_000, 1_000_000] {
            for there in [0, 7, 900] {
                assert!(bytes_with(cells, there) / CHUNK_BYTES * CELLS_PER_CHUNK + there > cells, "{cells}");
            }
        }
    }
}
