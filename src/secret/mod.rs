//! Secrets in memory: locked pages of our own, wiped in place.
//!
//! AEKs and their schedules live in cells of pages that are never swapped (`mlock`), left out of core dumps
//! (`MADV_DONTDUMP`) and zero in a forked child (`MADV_WIPEONFORK`). A slot's epoch stands in the same page,
//! so that a child finds every slot empty, never filled with zeros.
#![allow(unsafe_code)] // one of the rooms that may; each block says why it is sound

use crate::error::{Error, Result};
use std::{
    fmt, ptr,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering},
};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

mod cells;
#[cfg(any(feature = "bucket", feature = "etcd", feature = "mail", feature = "postgres"))]
pub(crate) mod credential;
pub(crate) mod fork;
pub(crate) mod in_flight;
mod key_slot;
mod schedule;

use self::cells::{CELL_BYTES, Cell};
pub use self::cells::{MemlockPolicy, check_memlock, unlocked_bytes};
pub(crate) use self::{
    cells::Refuser,
    key_slot::{KeySlot, NewKey, TakenOut},
    schedule::{Schedule, scrub_stack},
};

/// Length of an AEK in bytes.
pub const AEK_BYTES: usize = 32;

/// An unwrapped AEK in locked memory. Wiped on drop; `Debug` shows nothing; equality is constant-time.
pub struct Aek(Cell);

impl Aek {
    /// A new random AEK from the operating system.
    ///
    /// # Errors
    /// [`Error::Fatal`] when the OS has no randomness or no memory.
    pub fn generate() -> Result<Self> {
        let mut cell = Cell::take(Refuser::policy(), 0)?;
        fill_random(&mut cell.bytes_mut()[..AEK_BYTES])?;
        Ok(Self(cell))
    }

    /// Copies an AEK in. The caller wipes its own copy.
    ///
    /// # Errors
    /// [`Error::Fatal`] when there is no memory.
    pub fn copy_from(bytes: &[u8; AEK_BYTES]) -> Result<Self> {
        let mut cell = Cell::take(Refuser::policy(), 0)?;
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
    cell: Cell,
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
        let mut cell = Cell::take(Refuser::policy(), 0).inspect_err(|_| source.zeroize())?;
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
            let mine = Cell::take(MemlockPolicy::Warn, 0)?; // no secret
            let pointer = mine.start().as_ptr().cast::<AtomicU64>();
            match GENERATION.compare_exchange(ptr::null_mut(), pointer, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    mine.leak();
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

/// Words at 0 that are 0 again in a forked child, in cache lines of their own; they live as long as the process.
///
/// # Errors
/// [`Error::Fatal`] without memory.
#[cfg(not(keyleash_loom))]
pub(crate) fn words_that_a_fork_zeroes<const N: usize>() -> Result<&'static [AtomicU64; N]> {
    const LINES_BYTES: usize = 128; // two, because the prefetcher of x86 fetches pairs
    const _: () = assert!(CELL_BYTES >= 2 * LINES_BYTES);
    const { assert!(size_of::<[AtomicU64; N]>() <= LINES_BYTES) };
    let start = Cell::take(MemlockPolicy::Warn, 0)?.leak().as_ptr(); // no secret
    // SAFETY: less than LINES_BYTES are added, so that LINES_BYTES of the cell are left.
    let words = unsafe { start.add(start.align_offset(LINES_BYTES).min(CELL_BYTES - LINES_BYTES)) };
    // SAFETY: zeroed (valid atomics), aligned, and in a cell that was leaked just now.
    Ok(unsafe { &*words.cast::<[AtomicU64; N]>() })
}

#[cfg(test)]
mod tests;
