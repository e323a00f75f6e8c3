//! How far a trail is durable, as its writer tells those who follow it on the same machine.
//!
//! What stands in a file may be cut off again: a write that failed midway, a sync that failed. So who follows reads no line that the writer
//! has not acknowledged. It says which those are in the file that it holds locked; where nobody holds it nobody cuts anything off but a
//! line that is torn.

use super::walk::open_file;
use std::{
    fs::{File, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::Path,
};

/// In a node's directory: who has it locked writes the trail.
pub(super) const LOCK: &str = "lock";
/// Decimal digits of any number of lines.
const DIGITS: usize = 20;
/// The number twice, each with a line break: one who reads while it is written sees two that differ.
pub(super) const PROGRESS_BYTES: usize = 2 * (DIGITS + 1);
/// How often it is read again where the two differ.
const READS_MAX: usize = 100;

/// Says that so many lines are durable.
pub(super) fn tell(lock: &File, lines: u64) -> io::Result<()> {
    let number = format!("{lines:020}\n");
    lock.write_all_at(format!("{number}{number}").as_bytes(), 0)
}

fn parse(bytes: &[u8]) -> Option<u64> {
    let (one, two) = bytes.split_at_checked(DIGITS + 1)?;
    let digits = one.strip_suffix(b"\n").filter(|digits| digits.iter().all(u8::is_ascii_digit));
    (one == two).then(|| std::str::from_utf8(digits?).ok()?.parse().ok()).flatten()
}

/// Whether somebody writes, and how many lines are durable then; `None` where nobody does, and every whole line stays.
pub(super) fn ask(node: &Path) -> io::Result<Option<u64>> {
    let lock = match open_file(&node.join(LOCK)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // For an instant: a writer that begins tries more than once.
    match lock.try_lock_shared() {
        Ok(()) => return Ok(None),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let mut bytes = [0; PROGRESS_BYTES];
    for _ in 0..READS_MAX {
        match lock.read_exact_at(&mut bytes, 0).map(|()| parse(&bytes)) {
            Ok(Some(lines)) => return Ok(Some(lines)),
            Ok(None) => {}
            // It has only just begun.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Some(0)),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard_while_it_is_locked_and_half_of_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK);
        assert_eq!(ask(folder.path()).unwrap(), None);
        let lock = File::create(&path).unwrap();
        tell(&lock, 17).unwrap();
        assert_eq!(ask(folder.path()).unwrap(), None, "nobody writes");
        lock.lock().unwrap();
        assert_eq!(ask(folder.path()).unwrap(), Some(17));
        for lines in [0, 18, u64::MAX] {
            tell(&lock, lines).unwrap();
            assert_eq!(ask(folder.path()).unwrap(), Some(lines));
        }
        // A second number that is another, as it is while it is written.
        lock.write_all_at(b"9", DIGITS as u64 + 2).unwrap();
        assert_eq!(ask(folder.path()).unwrap(), Some(0));
        lock.set_len(5).unwrap();
        assert_eq!(ask(folder.path()).unwrap(), Some(0));
    }
}
