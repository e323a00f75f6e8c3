//! A file that appears at its place when it is complete, or not at all.

use crate::exit::Failure;
use keyleash::Error;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Whatever was sealed or opened is its owner's alone.
const MODE: u32 = 0o600;
/// Longest name, in bytes, that the temporary file shows in its own: file systems have room for 255.
const NAME_SHOWN_MAX: usize = 200;

/// A file in the making, beside its place under a name of its own. Unless it is [completed](OutFile::complete), it is
/// removed when this is dropped or [abandoned](OutFile::abandon), whichever thread still writes to it.
#[derive(Debug)]
pub(crate) struct OutFile {
    place: PathBuf,
    force: bool,
    /// `None` when it was completed or abandoned.
    temporary: Mutex<Option<PathBuf>>,
    file: File,
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
        Ok(Self { place: place.into(), force, temporary: Mutex::new(Some(temporary)), file })
    }

    /// Where it shall appear.
    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// Where to write.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Makes the file durable, and puts it at its place.
    pub(crate) fn complete(&self) -> Result<(), Failure> {
        let failed = |error| Failure::io(self.place.display(), error);
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
    use std::{io::Write, os::unix::fs::PermissionsExt};

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
        out.file().write_all(b"whole").unwrap();
        assert!(!place.exists());
        drop(out);
        assert_eq!(names(directory.path()), [""; 0], "an unfinished file leaves nothing");

        let out = OutFile::create(&place, false).unwrap();
        out.file().write_all(b"whole").unwrap();
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
        out.file().write_all(b"ours").unwrap();
        out.complete().unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"ours");
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
