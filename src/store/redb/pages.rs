//! What stands between redb and its file, so that redb never works on bytes that were damaged.
//!
//! Opening a store verifies the checksum of every page that its trees reach; after that redb trusts what it reads. Here a
//! digest of each block is kept in memory from its first reading or writing on (8 bytes for 4 KiB), and a block that is
//! another one later is an error of I/O, which redb passes on, instead of bytes, over which it may panic. The digests
//! outlive the opening: whoever opens the file again, and finds it as this process left it, need not verify it anew.

use super::header::{self, HEADER_BYTES};
use ::redb::{BackendError, StorageBackend};
use std::{
    io,
    ops::Bound,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

/// redb reads and writes pages of this length and multiples of it, and its header.
const BLOCK_BYTES: usize = 4096;

/// A block that nobody read or wrote yet has this one.
const UNKNOWN: u64 = 0;

/// What is known of a file, for as long as a process has to do with it.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Digests of the blocks. Only writes and changes of length take the lock for themselves.
    blocks: RwLock<Vec<AtomicU64>>,
    /// The header as it was last written, which names the commit: no two have the same.
    header: Mutex<Option<Vec<u8>>>,
    /// Somebody else wrote since.
    is_stale: AtomicBool,
}

impl Known {
    /// Whether a file was verified, and is known since.
    pub(super) fn is_verified(&self) -> bool {
        self.header.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Whether the last opening found that somebody else had written meanwhile.
    pub(super) fn is_stale(&self) -> bool {
        self.is_stale.load(Relaxed)
    }

    /// How many blocks the file has.
    pub(super) fn len(&self) -> usize {
        self.blocks.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The next opening verifies everything.
    pub(super) fn forget(&self) {
        self.blocks.write().unwrap_or_else(PoisonError::into_inner).clear();
        *self.header.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.is_stale.store(false, Relaxed);
    }
}

/// A backend whose blocks are known.
#[derive(Debug)]
pub(super) struct Pages<B> {
    inner: B,
    known: Arc<Known>,
    /// That the header is as it was left has still to be seen.
    must_be_same: AtomicBool,
}

impl<B> Pages<B> {
    pub(super) fn new(inner: B, known: Arc<Known>) -> Self {
        let must_be_same = AtomicBool::new(known.is_verified());
        Self { inner, known, must_be_same }
    }

    fn header_was_read(&self, header: &mut [u8]) -> io::Result<()> {
        if self.must_be_same.swap(false, Relaxed) {
            let known = self.known.header.lock().unwrap_or_else(PoisonError::into_inner);
            if known.as_deref() != Some(&*header) {
                self.known.is_stale.store(true, Relaxed);
                return Err(io::Error::other("another process wrote it meanwhile"));
            }
        }
        header::mend(header);
        Ok(())
    }
}

/// The blocks that lie in `bytes`, which stand at `offset`, with their numbers; the header's is none of them.
fn blocks(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (usize, Option<&[u8]>)> {
    let begin = usize::try_from(offset).unwrap_or(usize::MAX - bytes.len());
    let skipped = begin.next_multiple_of(BLOCK_BYTES) - begin;
    let (cut, whole) = bytes.split_at_checked(skipped).unwrap_or((bytes, &[]));
    let cut = (!cut.is_empty()).then_some((begin / BLOCK_BYTES, None));
    let numbers = begin.div_ceil(BLOCK_BYTES)..;
    let whole = whole.chunks(BLOCK_BYTES).map(|block| (block.len() == BLOCK_BYTES).then_some(block));
    cut.into_iter().chain(numbers.zip(whole)).filter(|(number, _)| *number > 0)
}

/// In memory alone, and quick, for all of a file goes through it three times as it is opened. Each step maps the sums one to one,
/// so that no change of one word goes unseen, and any other by a chance of 2^-64.
fn digest(block: &[u8]) -> u64 {
    let step = |sum: u64, word: u64| (sum.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut sums = [0; 4];
    for row in block.as_chunks::<32>().0 {
        for (sum, word) in sums.iter_mut().zip(row.as_chunks().0) {
            *sum = step(*sum, u64::from_le_bytes(*word));
        }
    }
    sums.into_iter().fold(1, step).max(UNKNOWN + 1)
}

impl<B: StorageBackend> StorageBackend for Pages<B> {
    fn len(&self) -> io::Result<u64> {
        let len = self.inner.len()?;
        let count = usize::try_from(len).unwrap_or(usize::MAX) / BLOCK_BYTES;
        if self.known.blocks.read().unwrap_or_else(PoisonError::into_inner).len() < count {
            let mut blocks = self.known.blocks.write().unwrap_or_else(PoisonError::into_inner);
            blocks.resize_with(count, || AtomicU64::new(UNKNOWN));
        }
        Ok(len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let known = self.known.blocks.read().unwrap_or_else(PoisonError::into_inner);
        self.inner.read(offset, out)?;
        if offset == 0 && out.len() == HEADER_BYTES {
            return self.header_was_read(out);
        }
        for (number, block) in blocks(offset, out) {
            let (Some(block), Some(known)) = (block, known.get(number)) else { continue };
            let found = digest(block);
            let before = known.compare_exchange(UNKNOWN, found, Relaxed, Relaxed);
            if before.is_err_and(|before| before != found) {
                let what = format!("the block at byte {} changed since it was verified", number * BLOCK_BYTES);
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let known = self.known.blocks.write().unwrap_or_else(PoisonError::into_inner);
        let written = self.inner.write(offset, data);
        if offset == 0 && data.len() == HEADER_BYTES {
            let header = written.is_ok().then(|| data.to_vec());
            *self.known.header.lock().unwrap_or_else(PoisonError::into_inner) = header;
        }
        for (number, block) in blocks(offset, data) {
            if let Some(known) = known.get(number) {
                known.store(block.filter(|_| written.is_ok()).map_or(UNKNOWN, digest), Relaxed);
            }
        }
        written
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut known = self.known.blocks.write().unwrap_or_else(PoisonError::into_inner);
        self.inner.set_len(len)?;
        known.resize_with(usize::try_from(len).unwrap_or(usize::MAX) / BLOCK_BYTES, || AtomicU64::new(UNKNOWN));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
