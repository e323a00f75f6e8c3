//! Making an end of what was deleted or replaced: redb frees its pages and leaves the bytes in them until something else is
//! written there.
//!
//! So something else is written there: a table of this room's own grows until the file does, which it does once no page is free,
//! and is dropped again. That is all redb's own work, so that a crash at any instant leaves a whole store. Whether it is true is
//! not concluded but looked at: the file is searched for the bytes.

use super::{file::RECORDS, write::in_transaction};
use ::redb::{Database, Error as RedbError, ReadableTable, TableDefinition};
use std::{
    fs::File,
    io::{self, Read},
    ops::Bound,
    path::Path,
};

/// What fills the free pages. A crash may leave it behind, until the next time.
const FILLING: TableDefinition<u64, &[u8]> = TableDefinition::new("keyleash.shred");
/// More than half of a page, so that each takes one.
const FILLING_BYTES: usize = 3000;
/// Records that are written anew in one transaction.
const RECORDS_PER_COMMIT: usize = 1000;
/// How often it is done before it is given up.
pub(super) const ROUNDS_MAX: usize = 4;
/// Of the file that are searched at once.
const SEARCHED_BYTES: usize = if cfg!(test) { 1 << 16 } else { 1 << 20 };

/// Writes over every page that is free. Nobody reads meanwhile: what a reader may still look at is not free. `file_len` is the
/// file's length, in any unit.
pub(super) fn write_over_free_pages(database: &mut Database, file_len: impl Fn() -> usize) -> Result<(), RedbError> {
    // Also what a crash has left of the last time. What one transaction frees, the next ones can have.
    for _ in 0..2 {
        in_transaction(database, |transaction| transaction.delete_table(FILLING).map(drop).map_err(Into::into))?;
    }
    let before = file_len();
    in_transaction(database, |transaction| {
        let mut table = transaction.open_table(FILLING)?;
        let mut number = 0;
        while file_len() <= before {
            table.insert(number, [0; FILLING_BYTES].as_slice())?;
            number += 1;
        }
        Ok(())
    })?;
    in_transaction(database, |transaction| transaction.delete_table(FILLING).map(drop).map_err(Into::into))?;
    // Gives back what it grew by.
    database.compact()?;
    // What compacting left is a file that redb would walk over as it is opened again.
    in_transaction(database, |_| Ok(()))
}

/// Writes every record anew. Two writes of one transaction to one page leave remains of the first in what the second does not
/// fill; a page that is made anew has none.
pub(super) fn rewrite_records(database: &Database) -> Result<(), RedbError> {
    let mut after: Option<Vec<u8>> = None;
    loop {
        let mut records = Vec::new();
        in_transaction(database, |transaction| {
            let mut table = transaction.open_table(RECORDS)?;
            let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            for found in table.range::<&[u8]>((from, Bound::Unbounded))?.take(RECORDS_PER_COMMIT) {
                let (key, value) = found?;
                records.push((key.value().to_vec(), value.value().to_vec()));
            }
            for (key, value) in &records {
                table.remove(key.as_slice())?;
                table.insert(key.as_slice(), value.as_slice())?;
            }
            Ok(())
        })?;
        match records.pop() {
            None => return Ok(()),
            Some((last, _)) => after = Some(last),
        }
    }
}

/// Whether any of `remains` stands in the file.
pub(super) fn is_in(path: &Path, remains: &[Vec<u8>]) -> io::Result<bool> {
    let longest = remains.iter().map(Vec::len).max().unwrap_or(0);
    let mut begins = vec![false; 1 << 16];
    let first = |bytes: &[u8]| bytes.first_chunk().map(|pair| usize::from(u16::from_le_bytes(*pair)));
    for place in remains.iter().filter_map(|bytes| first(bytes)) {
        begins.get_mut(place).into_iter().for_each(|begins| *begins = true);
    }
    let mut file = File::open(path)?;
    let mut window = Vec::with_capacity(SEARCHED_BYTES + longest);
    loop {
        let read = file.by_ref().take(SEARCHED_BYTES as u64).read_to_end(&mut window)?;
        let is_here = |at: usize| {
            let rest = window.get(at..).unwrap_or_default();
            first(rest).and_then(|place| begins.get(place)) == Some(&true)
                && remains.iter().any(|bytes| rest.starts_with(bytes))
        };
        if (0..window.len()).any(is_here) {
            return Ok(true);
        }
        if read == 0 {
            return Ok(false);
        }
        // What stands across two windows is found in the second.
        let keep = window.len().min(longest.saturating_sub(1));
        window.drain(..window.len() - keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remains_are_found_wherever_they_stand_also_across_two_reads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let remains = vec![b"needle one".to_vec(), b"another needle".to_vec()];
        for at in [0, 1, SEARCHED_BYTES - 14, SEARCHED_BYTES - 5, SEARCHED_BYTES, 2 * SEARCHED_BYTES - 1, 200_000] {
            let mut bytes = vec![b'n'; 200_000];
            std::fs::write(&path, &bytes).unwrap();
            assert!(!is_in(&path, &remains).unwrap());
            bytes.splice(at.., *b"another needle");
            std::fs::write(&path, &bytes).unwrap();
            assert!(is_in(&path, &remains).unwrap(), "{at}");
        }
        assert!(!is_in(&path, &[]).unwrap());
    }
}
