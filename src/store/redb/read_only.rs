//! A file that is only read. redb writes when it opens a store, and when it closes one; that stays in memory here, and goes with the
//! opening.

use ::redb::{BackendError, StorageBackend, backends::FileBackend};
use std::{
    collections::BTreeMap,
    io,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

const BLOCK_BYTES: u64 = 4096;

#[derive(Debug)]
pub(super) struct ReadOnly {
    file: FileBackend,
    over: Mutex<Over>,
}

/// What differs from the file.
#[derive(Debug)]
struct Over {
    len: u64,
    /// What lies before it and is no block of these is the file's; what lies behind it is zero.
    from_file: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl ReadOnly {
    pub(super) fn new(file: FileBackend) -> io::Result<Self> {
        let len = file.len()?;
        Ok(Self { file, over: Mutex::new(Over { len, from_file: len, blocks: BTreeMap::new() }) })
    }

    fn over(&self) -> MutexGuard<'_, Over> {
        // Whole after every step.
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As the file has it.
    fn below(&self, over: &Over, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = over.from_file.saturating_sub(offset).min(out.len() as u64) as usize;
        let (file, rest) = out.split_at_mut(there);
        rest.fill(0);
        if file.is_empty() { Ok(()) } else { self.file.read(offset, file) }
    }
}

/// Where the bytes from `offset` on, `len` of them, meet a block: from which of them, from which of the block's, and how many.
fn meeting(offset: u64, len: usize, block: u64) -> (usize, usize, usize) {
    let (begin, end) = (block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
    let (from, to) = (offset.max(begin), (offset + len as u64).min(end));
    ((from - offset) as usize, (from - begin) as usize, to.saturating_sub(from) as usize)
}

fn met(offset: u64, len: usize) -> std::ops::Range<u64> {
    offset / BLOCK_BYTES..(offset + len as u64).div_ceil(BLOCK_BYTES)
}

impl StorageBackend for ReadOnly {
    fn len(&self) -> io::Result<u64> {
        Ok(self.over().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let over = self.over();
        if offset.saturating_add(out.len() as u64) > over.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.below(&over, offset, out)?;
        for (number, block) in over.blocks.range(met(offset, out.len())) {
            let (at, in_block, count) = meeting(offset, out.len(), *number);
            if let (Some(out), Some(block)) = (out.get_mut(at..at + count), block.get(in_block..in_block + count)) {
                out.copy_from_slice(block);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut over = self.over();
        for number in met(offset, data.len()) {
            if !over.blocks.contains_key(&number) {
                let mut block = vec![0; BLOCK_BYTES as usize];
                self.below(&over, number * BLOCK_BYTES, &mut block)?;
                over.blocks.insert(number, block);
            }
            let (at, in_block, count) = meeting(offset, data.len(), number);
            let block = over.blocks.get_mut(&number).and_then(|block| block.get_mut(in_block..in_block + count));
            if let (Some(block), Some(data)) = (block, data.get(at..at + count)) {
                block.copy_from_slice(data);
            }
        }
        over.len = over.len.max(offset + data.len() as u64);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut over = self.over();
        if len < over.len {
            over.from_file = over.from_file.min(len);
            over.blocks.split_off(&len.div_ceil(BLOCK_BYTES));
            let kept = (len % BLOCK_BYTES) as usize;
            let last = over.blocks.get_mut(&(len / BLOCK_BYTES)).and_then(|block| block.get_mut(kept..));
            last.into_iter().for_each(|cut| cut.fill(0));
        }
        over.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    /// Shared whatever is asked: it keeps writers out, and none is here.
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn what_is_written_is_read_back_and_the_file_stays_as_it_is() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..10_000_u32).map(|at| at as u8).collect();
        file.write_all(&bytes).unwrap();
        let backend = ReadOnly::new(FileBackend::new(file.reopen().unwrap()).unwrap()).unwrap();
        let mut model = bytes.clone();
        let same = |model: &[u8]| {
            let mut all = vec![7; model.len()];
            backend.read(0, &mut all).unwrap();
            assert!(backend.len().unwrap() == model.len() as u64 && all == model);
        };
        for (offset, len) in [(0_usize, 320_usize), (4090, 12), (9990, 200), (4096, 8192), (12_288, 1)] {
            let data = vec![0xa5; len];
            model.resize(model.len().max(offset + len), 0);
            model[offset..offset + len].copy_from_slice(&data);
            backend.write(offset as u64, &data).unwrap();
            same(&model);
        }
        for len in [20_000, 5000, 9000, 100, 4096] {
            model.resize(len, 0);
            backend.set_len(len as u64).unwrap();
            same(&model);
        }
        assert!(backend.read(4000, &mut [0; 97]).is_err());
        assert_eq!(std::fs::read(file.path()).unwrap(), bytes);
    }
}
