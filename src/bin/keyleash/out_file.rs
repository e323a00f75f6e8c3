//! A file that appears at its place when it is complete, or not at all.

use crate::exit::Failure;
use keyleash::Error;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

/// Whatever was sealed or opened is its owner's alone.
const MODE: u32 = 0o600;
/// Longest name, in bytes, that the temporary file shows in its own: file systems have room for 255.
const NAME_SHOWN_MAX: usize = 200;
/// So much is written before it is synced for the first time, and again. Long enough for a disk to be busy with, short enough that
/// little is left for the end.
const SYNC_BYTES: u64 = 32 * 1024 * 1024;

/// A file in the making, beside its place under a name of its own. Unless it is [completed](OutFile::complete), it is
/// removed when this is dropped or [abandoned](OutFile::abandon), whichever thread still writes to it.
#[derive(Debug)]
pub(crate) struct OutFile {
    place: PathBuf,
    force: bool,
    /// `None` when it was completed or abandoned.
    temporary: Mutex<Option<PathBuf>>,
    file: File,
    /// Syncs what was written while more is written; `None` when nothing was to be.
    syncing: Mutex<Option<Syncing>>,
}

/// The thread that syncs, and what tells it to: now, or never again.
#[derive(Debug)]
struct Syncing {
    tell: SyncSender<Told>,
    thread: JoinHandle<io::Result<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Sync,
    End,
}

/// Writes to a file in the making, and has it synced on the way: the disk works while the blocks are sealed, and not only when
/// the last of them was.
#[derive(Debug)]
pub(crate) struct OutWriter {
    file: File,
    unsynced_bytes: u64,
    tell: SyncSender<Told>,
}

impl Write for OutWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unsynced_bytes += written as u64;
        // While a sync is under way this waits for nothing: the next one takes more.
        if self.unsynced_bytes >= SYNC_BYTES && self.tell.try_send(Told::Sync).is_ok() {
            self.unsynced_bytes = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl OutFile {
    /// Begins the file that shall appear at `place`.
    pub(crate) fn create(place: &Path, force: bool) -> Result<Self, Failure> {
        match fs::symlink_metadata(place) {
            Ok(there) if !there.is_file() => {
                return Err(Failure::Usage(format!(
                    "{}: is no regular file; leave -o out and redirect standard output",
                    place.display()
                )));
            }
            Ok(_) if !force => return Err(exists(place)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::io(place.display(), error)),
        }
        // A name with `/` or `/.` behind it is that of a directory, though it has a file name: nothing could be put there in the end.
        let is_last = |name: &&OsStr| place.as_os_str().as_encoded_bytes().ends_with(name.as_encoded_bytes());
        let Some(name) = place.file_name().filter(is_last) else {
            return Err(Failure::Usage(format!("{}: is no file name", place.display())));
        };
        let mut random = [0; 8];
        keyleash::secret::fill_random(&mut random)?;
        let mut temporary = OsString::from(".");
        // A long name has no room for more.
        if name.len() <= NAME_SHOWN_MAX {
            temporary.push(name);
        }
        temporary.push(format!(".{:016x}.keyleash", u64::from_ne_bytes(random)));
        let temporary = place.with_file_name(temporary);
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&temporary);
        let file = file.map_err(|error| Failure::io(format!("{}: cannot be made", place.display()), error))?;
        Ok(Self { place: place.into(), force, temporary: Mutex::new(Some(temporary)), file, syncing: Mutex::default() })
    }

    /// Where it shall appear.
    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// Where to write; once.
    pub(crate) fn writer(&self) -> Result<OutWriter, Failure> {
        let failed = |error| Failure::io(self.place.display(), error);
        let (file, synced) = (self.file.try_clone().map_err(failed)?, self.file.try_clone().map_err(failed)?);
        // No room: who tells it to sync while it does is told that it is busy.
        let (tell, told) = sync_channel(0);
        let sync = move || told.iter().take_while(|told| *told == Told::Sync).try_for_each(|_| synced.sync_data());
        let thread = thread::Builder::new().name("keyleash-sync".into()).spawn(sync).map_err(failed)?;
        *self.syncing() = Some(Syncing { tell: tell.clone(), thread });
        Ok(OutWriter { file, unsynced_bytes: 0, tell })
    }

    fn syncing(&self) -> MutexGuard<'_, Option<Syncing>> {
        self.syncing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the thread that syncs. The system tells of a write that failed once: when that thread was told, the next sync
    /// succeeds.
    fn end_syncing(&self) -> io::Result<()> {
        let Some(Syncing { tell, thread }) = self.syncing().take() else { return Ok(()) };
        // One that failed is not there to be told.
        let _ = tell.send(Told::End);
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that syncs it died")))
    }

    /// Makes the file durable, and puts it at its place.
    pub(crate) fn complete(&self) -> Result<(), Failure> {
        let failed = |error| Failure::io(self.place.display(), error);
        self.end_syncing().map_err(failed)?;
        self.file.sync_all().map_err(failed)?;
        let mut temporary = self.temporary();
        let Some(path) = &*temporary else {
            return Err(failed(io::Error::new(io::ErrorKind::Interrupted, "was abandoned")));
        };
        let flags = if self.force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, path, CWD, &self.place, flags) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(exists(&self.place)),
            // NFS and others have no such flag. It was not there when the work began.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                fs::rename(path, &self.place).map_err(failed)?;
            }
            Err(error) => return Err(failed(error.into())),
        }
        *temporary = None;
        let directory = self.place.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
    }

    /// Removes what was written.
    pub(crate) fn abandon(&self) {
        if let Some(path) = self.temporary().take() {
            // Whatever ended the work is said, not this.
            let _ = fs::remove_file(path);
        }
    }

    fn temporary(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.temporary.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OutFile {
    fn drop(&mut self) {
        self.abandon();
    }
}

fn exists(place: &Path) -> Failure {
    Error::Exists(format!("{}: give another name, or --force to replace it", place.display())).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn appears_whole_with_mode_0600_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("out");
        let out = OutFile::create(&place, false).unwrap();
        out.writer().unwrap().write_all(b"whole").unwrap();
        assert!(!place.exists());
        drop(out);
        assert_eq!(names(directory.path()), [""; 0], "an unfinished file leaves nothing");

        let out = OutFile::create(&place, false).unwrap();
        out.writer().unwrap().write_all(b"whole").unwrap();
        out.complete().unwrap();
        drop(out);
        assert_eq!(names(directory.path()), ["out"]);
        assert_eq!(fs::read(&place).unwrap(), b"whole");
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn replaces_nothing_without_force_even_if_it_appeared_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("out");
        let out = OutFile::create(&place, false).unwrap();
        fs::write(&place, b"theirs").unwrap();
        assert_eq!(out.complete().unwrap_err().kind(), "exists");
        drop(out);
        assert_eq!(OutFile::create(&place, false).unwrap_err().kind(), "exists");
        assert_eq!(fs::read(&place).unwrap(), b"theirs");
        assert_eq!(names(directory.path()), ["out"]);

        let out = OutFile::create(&place, true).unwrap();
        out.writer().unwrap().write_all(b"ours").unwrap();
        out.complete().unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"ours");
    }

    #[test]
    fn is_whole_when_it_was_synced_on_the_way() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("out");
        let out = OutFile::create(&place, false).unwrap();
        let mut writer = out.writer().unwrap();
        for part in [b"syn", b"ced"] {
            writer.unsynced_bytes = SYNC_BYTES;
            writer.write_all(part).unwrap();
        }
        // The writer may still be there: nobody waits for it.
        out.complete().unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"synced");
    }

    #[test]
    fn does_not_appear_when_a_sync_on_the_way_failed_even_if_the_last_one_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("out");
        let out = OutFile::create(&place, false).unwrap();
        let (tell, _) = sync_channel(0);
        let thread = thread::spawn(|| Err(io::Error::other("the disk is gone")));
        *out.syncing() = Some(Syncing { tell, thread });
        assert!(out.complete().unwrap_err().to_string().contains("the disk is gone"));
        assert!(!place.exists());
    }

    #[test]
    fn once_abandoned_it_cannot_appear() {
        let directory = tempfile::tempdir().unwrap();
        let out = OutFile::create(&directory.path().join("out"), false).unwrap();
        out.abandon();
        assert_eq!(out.complete().unwrap_err().kind(), "io");
        assert_eq!(names(directory.path()), [""; 0]);
    }

    #[test]
    fn whatever_name_the_place_may_have_there_is_one_beside_it() {
        use std::os::unix::ffi::OsStrExt;
        let directory = tempfile::tempdir().unwrap();
        for name in [&[0xff; 100][..], &[0xff; 200], &[b'x'; 200], &[b'x'; 255]] {
            let place = directory.path().join(OsStr::from_bytes(name));
            OutFile::create(&place, false).unwrap().complete().unwrap();
            assert!(place.exists());
        }
    }

    #[test]
    fn what_is_no_regular_file_is_not_replaced() {
        assert_eq!(OutFile::create(Path::new("/dev/null"), true).unwrap_err().kind(), "usage");
        assert_eq!(OutFile::create(Path::new("/"), true).unwrap_err().kind(), "usage");
        let directory = tempfile::tempdir().unwrap();
        for name in ["new/", "new/.", "new//", ".."] {
            assert_eq!(OutFile::create(&directory.path().join(name), true).unwrap_err().kind(), "usage", "{name}");
        }
    }
}
