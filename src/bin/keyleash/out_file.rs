//! A file that appears at its place when it is complete, or not at all.
//!
//! Until then it has no name (O_TMPFILE), so that it goes with its process however that ends: it may hold plaintext. A file
//! system that has no such files, and a place that is replaced, want a name beside the place; under it the file is locked for
//! as long as its process lives, and one that is found unlocked is removed by the next run.

use crate::exit::Failure;
use keyleash::Error;
use rustix::{
    fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, linkat, openat, renameat_with},
    io::Errno,
};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
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

/// What the names of files in the making end with.
const SUFFIX: &str = ".keyleash";
/// Random digits before that.
const DIGITS: usize = 16;

/// A file in the making. Unless it is [completed](OutFile::complete), nothing is left of it when this is dropped or
/// [abandoned](OutFile::abandon), whichever thread still writes to it.
#[derive(Debug)]
pub(crate) struct OutFile {
    place: PathBuf,
    force: bool,
    /// `None` when it was completed or abandoned.
    making: Mutex<Option<Making>>,
    file: File,
    /// Syncs what was written while more is written; `None` when nothing was to be.
    syncing: Mutex<Option<Syncing>>,
}

/// What a file in the making is called.
#[derive(Debug)]
enum Making {
    Nameless,
    /// Beside its place.
    Named(PathBuf),
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
        if place.file_name().filter(is_last).is_none() {
            return Err(Failure::Usage(format!("{}: is no file name", place.display())));
        }
        let directory = directory_of(place);
        let nameless = if Path::new("/proc/self/fd").is_dir() { nameless(directory) } else { Ok(None) };
        let failed = |error| Failure::io(format!("{}: cannot be made", place.display()), error);
        let nameless = nameless.map_err(failed)?;
        if force || nameless.is_none() {
            remove_left_behind(directory);
        }
        let (file, making) = match nameless {
            Some(file) => (file, Making::Nameless),
            None => {
                let (file, path) = named(place)?;
                (file, Making::Named(path))
            }
        };
        Ok(Self { place: place.into(), force, making: Mutex::new(Some(making)), file, syncing: Mutex::default() })
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
        self.complete_if(|| Ok(()))
    }

    /// As [`OutFile::complete`], if `at_last` agrees, which is asked when the file is durable: that takes a while.
    pub(crate) fn complete_if(&self, at_last: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        let failed = |error| Failure::io(self.place.display(), error);
        self.end_syncing().map_err(failed)?;
        self.file.sync_all().map_err(failed)?;
        at_last()?;
        let mut making = self.making();
        match &*making {
            None => return Err(failed(io::Error::new(io::ErrorKind::Interrupted, "was abandoned"))),
            Some(Making::Nameless) if !self.force => self.link(&self.place)?,
            Some(Making::Nameless) => {
                // A link replaces nothing, a rename does.
                lock(&self.file).map_err(failed)?;
                let beside = beside(&self.place)?;
                self.link(&beside)?;
                *making = Some(Making::Named(beside.clone()));
                self.rename(&beside)?;
            }
            Some(Making::Named(path)) => self.rename(path)?,
        }
        *making = None;
        sync_directory_of(&self.place).map_err(failed)
    }

    /// Gives the nameless file a name that nothing has.
    fn link(&self, path: &Path) -> Result<(), Failure> {
        let nameless = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        match linkat(CWD, nameless, CWD, path, AtFlags::SYMLINK_FOLLOW) {
            Err(Errno::EXIST) => Err(exists(&self.place)),
            linked => linked.map_err(|error| Failure::io(self.place.display(), error.into())),
        }
    }

    fn rename(&self, path: &Path) -> Result<(), Failure> {
        let failed = |error| Failure::io(self.place.display(), error);
        let flags = if self.force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, path, CWD, &self.place, flags) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(exists(&self.place)),
            // NFS and others have no such flag.
            Err(Errno::INVAL | Errno::NOSYS) => self.rename_to_nothing(path),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Where no flag says that nothing is to be replaced: a link replaces nothing either, and where there are none, what is replaced is
    /// an empty file of our own.
    fn rename_to_nothing(&self, path: &Path) -> Result<(), Failure> {
        let failed = |error| Failure::io(self.place.display(), error);
        match fs::hard_link(path, &self.place) {
            Ok(()) => return fs::remove_file(path).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(exists(&self.place)),
            Err(_) => {}
        }
        match OpenOptions::new().write(true).create_new(true).mode(MODE).open(&self.place) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(exists(&self.place)),
            made => drop(made.map_err(failed)?),
        }
        fs::rename(path, &self.place).map_err(failed)
    }

    /// Removes what was written.
    pub(crate) fn abandon(&self) {
        if let Some(Making::Named(path)) = self.making().take() {
            // Whatever ended the work is said, not this.
            let _ = fs::remove_file(path);
        }
    }

    fn making(&self) -> MutexGuard<'_, Option<Making>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OutFile {
    fn drop(&mut self) {
        self.abandon();
    }
}

fn directory_of(place: &Path) -> &Path {
    place.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

/// Makes what was linked or renamed there outlive a crash.
pub(crate) fn sync_directory_of(place: &Path) -> io::Result<()> {
    File::open(directory_of(place))?.sync_all()
}

/// A new file without a name; `None` where the file system has none.
fn nameless(directory: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(CWD, directory, flags, Mode::from_raw_mode(MODE)) {
        Ok(file) => Ok(Some(file.into())),
        // A kernel that does not know the flag sees the directory opened for writing.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A new file beside `place`, locked.
fn named(place: &Path) -> Result<(File, PathBuf), Failure> {
    let failed = |error| Failure::io(format!("{}: cannot be made", place.display()), error);
    loop {
        let path = beside(place)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path).map_err(failed)?;
        lock(&file).map_err(failed)?;
        // Another run may have found it before it was locked, and removed it.
        if file.metadata().map_err(failed)?.nlink() > 0 {
            return Ok((file, path));
        }
    }
}

/// Says, for as long as this process lives, that the file is not one that was left behind.
fn lock(file: &File) -> io::Result<()> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        // No such locks here, or another run is just looking at it: it finds no name, or goes on.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS | Errno::WOULDBLOCK) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A new name beside `place`.
fn beside(place: &Path) -> Result<PathBuf, Failure> {
    let mut random = [0; DIGITS / 2];
    keyleash::secret::fill_random(&mut random)?;
    let mut name = OsString::from(".");
    // A long name has no room for more.
    if let Some(own) = place.file_name().filter(|own| own.len() <= NAME_SHOWN_MAX) {
        name.push(own);
    }
    name.push(format!(".{:0DIGITS$x}{SUFFIX}", u64::from_ne_bytes(random)));
    Ok(place.with_file_name(name))
}

fn is_in_the_making(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let digits = name.strip_suffix(SUFFIX.as_bytes()).and_then(|name| name.split_last_chunk::<DIGITS>());
    digits.is_some_and(|(front, digits)| {
        front.starts_with(b".") && front.ends_with(b".") && digits.iter().all(u8::is_ascii_hexdigit)
    })
}

/// Removes the files in the making whose process is dead: they may hold plaintext.
fn remove_left_behind(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| is_in_the_making(&entry.file_name())) {
        let path = entry.path();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = openat(CWD, &path, flags, Mode::empty()).map(File::from) else { continue };
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if is_file && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            match fs::remove_file(&path) {
                Ok(()) => tracing::warn!("{}: removed, a process that died had left it unfinished", path.display()),
                Err(error) => tracing::warn!(%error, "{}: an unfinished file cannot be removed", path.display()),
            }
        }
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
    fn replaces_nothing_where_a_rename_has_no_flag_for_that() {
        let directory = tempfile::tempdir().unwrap();
        let (place, making) = (directory.path().join("out"), directory.path().join("making"));
        let out = OutFile::create(&place, false).unwrap();
        fs::write(&making, b"ours").unwrap();
        fs::write(&place, b"theirs").unwrap();
        assert_eq!(out.rename_to_nothing(&making).unwrap_err().kind(), "exists");
        assert_eq!(fs::read(&place).unwrap(), b"theirs");
        fs::remove_file(&place).unwrap();
        out.rename_to_nothing(&making).unwrap();
        assert_eq!((fs::read(&place).unwrap(), names(directory.path())), (b"ours".to_vec(), vec!["out".into()]));
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
    fn does_not_appear_when_it_counts_no_more_once_it_is_durable() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("out");
        let out = OutFile::create(&place, false).unwrap();
        let mut writer = out.writer().unwrap();
        writer.write_all(b"sealed").unwrap();
        let ended = || out.syncing().is_none();
        let refused = out.complete_if(|| {
            assert!(ended() && !place.exists(), "asked between the last sync and the link");
            Err(Failure::Usage("its AEK version was retired meanwhile".into()))
        });
        assert_eq!(refused.unwrap_err().kind(), "usage");
        drop(out);
        assert_eq!(names(directory.path()), [""; 0]);
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
    fn has_no_name_until_it_is_complete_so_that_no_kill_leaves_plaintext() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("out");
        for force in [false, true] {
            let out = OutFile::create(&place, force).unwrap();
            out.writer().unwrap().write_all(b"secret").unwrap();
            assert_eq!(names(directory.path()).len(), usize::from(force), "the one of the round before");
            out.complete().unwrap();
        }
        assert_eq!(names(directory.path()), ["out"]);
    }

    #[test]
    fn where_files_have_names_those_of_dead_processes_go_and_those_of_living_ones_stay() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("out");
        let (file, living) = named(&place).unwrap();
        let dead = beside(&place).unwrap();
        fs::write(&dead, b"plaintext").unwrap();
        for theirs in [".out.keyleash", "out.0123456789abcdef.keyleash", ".out.0123456789abcdeX.keyleash"] {
            fs::write(directory.path().join(theirs), b"").unwrap();
        }
        let out = OutFile::create(&place, true).unwrap();
        assert!(living.exists() && !dead.exists());
        out.complete().unwrap();
        drop(file);
        remove_left_behind(directory.path());
        assert!(!living.exists());
        assert_eq!(names(directory.path()).len(), 4, "nobody else's file is touched");
    }

    #[test]
    fn where_files_have_names_it_appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("out");
        let out = |force| {
            let (file, path) = named(&place).unwrap();
            let making = Mutex::new(Some(Making::Named(path)));
            OutFile { place: place.clone(), force, making, file, syncing: Mutex::default() }
        };
        drop(out(false));
        assert_eq!(names(directory.path()), [""; 0]);
        out(false).complete().unwrap();
        assert_eq!(out(false).complete().unwrap_err().kind(), "exists");
        out(true).complete().unwrap();
        assert_eq!(names(directory.path()), ["out"]);
    }

    #[test]
    fn whatever_name_the_place_may_have_there_is_one_beside_it() {
        use std::os::unix::ffi::OsStrExt;
        let directory = tempfile::tempdir().unwrap();
        for name in [&[0xff; 100][..], &[0xff; 200], &[b'x'; 200], &[b'x'; 255]] {
            let place = directory.path().join(OsStr::from_bytes(name));
            OutFile::create(&place, false).unwrap().complete().unwrap();
            assert!(place.exists());
            OutFile::create(&place, true).unwrap().complete().unwrap();
            drop(named(&place).unwrap());
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
