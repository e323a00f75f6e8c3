//! Opening and making the file, and what is said when that fails.

use super::pages::{Known, Pages};
use super::read_only::ReadOnly;
use crate::{
    error::{Corrupt, Error, Result},
    secret::fill_random,
};
use ::redb::{
    Builder, Database, Error as RedbError, ReadableDatabase, StorageBackend, TableDefinition, TableError,
    backends::FileBackend,
};
use rustix::fs::OFlags;
use std::{
    ffi::OsString,
    fmt::Display,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("keyleash.meta");
pub(super) const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("keyleash.records");
pub(super) const INDEX: TableDefinition<&[u8], ()> = TableDefinition::new("keyleash.wrapped_by");
/// In [`META`]: the last revision that was given, u64 big-endian.
pub(super) const REVISION: &str = "revision";
/// In [`META`]: the format of this file, u32 big-endian.
const FORMAT: &str = "format";
const FORMAT_VERSION: u32 = 1;

/// What every redb file begins with.
const REDB_MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";
/// redb's own default is 1 GiB, too much for a service that has records of some hundred bytes.
const CACHE_BYTES: usize = 64 * 1024 * 1024;
/// Longest name, in bytes, that the file in the making shows in its own: file systems have room for 255.
const NAME_SHOWN_MAX: usize = 200;
/// The file says which accounts there are: nobody else needs to read it.
const FILE_MODE: u32 = 0o600;

/// Opens the store, and makes it when there is none.
pub(super) fn open_or_create(path: &Path, known: &Arc<Known>) -> Result<Database> {
    match open(path, known) {
        Err(Error::NotFound(_)) => create(path, known),
        opened => opened,
    }
}

/// Opens a store that exists.
pub(super) fn open(path: &Path, known: &Arc<Known>) -> Result<Database> {
    check_file(path)?;
    guarded(path, || {
        if !known.is_verified() {
            // Whoever made it may have died before it did so.
            sync_directory(directory_of(path)).map_err(|error| io_failed(path, &error))?;
        }
        let backend = || {
            let file = OpenOptions::new().read(true).write(true).open(path).map_err(|error| io_failed(path, &error))?;
            let opened = file.metadata().map_err(|error| io_failed(path, &error))?;
            let backend = FileBackend::new(file).map_err(|error| failed(path, error.into()))?; // locks it
            let there = fs::metadata(path).map_err(|error| io_failed(path, &error))?;
            // What is written to a file that is not at its place any more is lost.
            if (opened.dev(), opened.ino()) != (there.dev(), there.ino()) {
                return Err(Error::Store(format!(
                    "{}: another store took its place just now: try again",
                    path.display()
                )));
            }
            Ok(backend)
        };
        let database = verified(path, backend, known)?;
        check_format(path, &database)?;
        Ok(database)
    })
}

/// Opens a store that is only read: neither the file nor its directory is written to.
pub(super) fn open_read_only(path: &Path, known: &Arc<Known>) -> Result<Database> {
    check_file(path)?;
    // What redb writes is in memory alone, so that nothing that was known of it is true of the file.
    known.forget();
    guarded(path, || {
        let backend = || {
            let file = File::open(path).map_err(|error| io_failed(path, &error))?;
            let backend = FileBackend::new(file).map_err(|error| failed(path, error.into()))?;
            ReadOnly::new(backend).map_err(|error| io_failed(path, &error))
        };
        let database = verified(path, backend, known)?;
        check_format(path, &database)?;
        Ok(database)
    })
}

/// Opens what `backend` gives, with every page that redb's trees reach verified: now, or since this process had it open last.
fn verified<B: StorageBackend>(name: &Path, backend: impl Fn() -> Result<B>, known: &Arc<Known>) -> Result<Database> {
    loop {
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(!known.is_verified());
        match builder.create_with_backend(Pages::new(backend()?, known.clone())) {
            Ok(database) => return Ok(database),
            Err(_) if known.is_stale() => known.forget(),
            Err(error) => return Err(failed(name, error.into())),
        }
    }
}

/// Should redb panic all the same: damage that checksums do not tell, which is of its own making. Whoever calls this gives up
/// the database that it happened in.
pub(super) fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(damaged(path, "redb failed over it")))
}

/// Closes the store. redb writes as it does so; nothing that was acknowledged rests on it.
pub(super) fn close(path: &Path, database: Option<Database>) {
    let closed = guarded(path, || {
        drop(database);
        Ok(())
    });
    if let Err(error) = closed {
        tracing::warn!(%error, "the key store was not closed cleanly");
    }
}

/// Opens a store in what stands for its file, and makes it when that is empty.
pub(super) fn open_backend<B: StorageBackend>(
    name: &Path,
    backend: impl Fn() -> B,
    known: &Arc<Known>,
) -> Result<Database> {
    let is_new = backend().len().map_err(|error| io_failed(name, &error))? == 0;
    guarded(name, || {
        let database = verified(name, || Ok(backend()), known)?;
        if is_new {
            write_format(&database).map_err(|error| failed(name, error))?;
        }
        check_format(name, &database)?;
        Ok(database)
    })
}

/// Refuses what cannot be a redb file, before redb looks at it.
fn check_file(path: &Path) -> Result<()> {
    // Opening a pipe that nobody writes to would take for ever.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NotFound(format!(
                "store {}: there is no such file; correct the path, mount what it is on, or make a store there",
                path.display()
            )));
        }
        Err(error) => return Err(io_failed(path, &error)),
    };
    let metadata = file.metadata().map_err(|error| io_failed(path, &error))?;
    if !metadata.is_file() {
        return Err(misconfigured(path, "is no regular file; name a file"));
    }
    let mut head = Vec::new();
    file.take(REDB_MAGIC.len() as u64).read_to_end(&mut head).map_err(|error| io_failed(path, &error))?;
    if head.is_empty() {
        // Making it anew here would hide that a store was truncated.
        return Err(misconfigured(
            path,
            "is empty; if it never held a store, delete it, else restore it from a copy (`keyleash store restore FILE`)",
        ));
    }
    if head != REDB_MAGIC {
        return Err(misconfigured(path, "is no store of keyleash (no redb file); name another file"));
    }
    Ok(())
}

/// Refuses a redb file that is another program's, or of another format.
fn check_format(path: &Path, database: &Database) -> Result<()> {
    let meta = match database.begin_read().map_err(|error| failed(path, error.into()))?.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => {
            return Err(misconfigured(path, "is a redb file of another program; name another file"));
        }
        Err(error) => return Err(failed(path, error.into())),
    };
    let format = meta.get(FORMAT).map_err(|error| failed(path, error.into()))?;
    let format = format.and_then(|bytes| bytes.value().try_into().ok().map(u32::from_be_bytes));
    match format {
        Some(FORMAT_VERSION) => Ok(()),
        Some(other) => Err(misconfigured(
            path,
            &format!("has store format {other}, this release reads {FORMAT_VERSION}; use the release that wrote it"),
        )),
        None => Err(damaged(path, "it does not say its format")),
    }
}

/// Copies a file that nobody writes to meanwhile. As [`create`], and nothing is there before.
pub(super) fn copy(path: &Path, to: &Path) -> Result<()> {
    let io = |error: io::Error| io_failed(to, &error);
    let (directory, temporary) = beside(to)?;
    let copied = || {
        let mut source = File::open(path).map_err(|error| io_failed(path, &error))?;
        let mut options = OpenOptions::new();
        let mut copy = options.write(true).create_new(true).mode(FILE_MODE).open(&temporary).map_err(io)?;
        io::copy(&mut source, &mut copy).map_err(io)?;
        copy.sync_all().map_err(io)?;
        match fs::hard_link(&temporary, to) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::Exists(format!("{}: name another file", to.display())))
            }
            linked => linked.map_err(|error| no_link(to, &error)),
        }
    };
    let copied = copied();
    let _ = fs::remove_file(&temporary);
    copied?;
    sync_directory(directory).map_err(io)
}

/// Makes the store beside its place and links it there whole, so that a crash leaves no half of one.
fn create(path: &Path, known: &Arc<Known>) -> Result<Database> {
    let (directory, temporary) = beside(path)?;
    let made = make(path, &temporary, directory, known);
    // Gone already when it was linked; else whatever failed is said, not this.
    let _ = fs::remove_file(&temporary);
    match made? {
        Some(database) => Ok(database),
        None => open(path, known), // somebody else was faster
    }
}

/// The directory of a file that is to be made, and what the file is called there until it is whole.
fn beside(path: &Path) -> Result<(&Path, PathBuf)> {
    let directory = directory_of(path);
    if !directory.is_dir() {
        let what = format!("cannot be made: there is no directory {}; make it", directory.display());
        return Err(misconfigured(path, &what));
    }
    let Some(name) = path.file_name() else {
        return Err(misconfigured(path, "is no file name; name a file"));
    };
    let mut random = [0; 8];
    fill_random(&mut random)?;
    let mut temporary = OsString::from(".");
    // A long name has no room for more.
    if name.len() <= NAME_SHOWN_MAX {
        temporary.push(name);
    }
    temporary.push(format!(".{:016x}.new", u64::from_ne_bytes(random)));
    Ok((directory, directory.join(temporary)))
}

fn no_link(path: &Path, error: &io::Error) -> Error {
    let what = format!("cannot be linked into its place ({error}); use a file system that has hard links");
    misconfigured(path, &what)
}

fn make(path: &Path, temporary: &Path, directory: &Path, known: &Arc<Known>) -> Result<Option<Database>> {
    let io = |error: io::Error| io_failed(path, &error);
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    drop(options.clone().create_new(true).mode(FILE_MODE).open(temporary).map_err(io)?);
    let backend = || {
        let file = options.open(temporary).map_err(io)?;
        FileBackend::new(file).map_err(|error| failed(path, error.into()))
    };
    let database = verified(path, backend, known)?;
    write_format(&database).map_err(|error| failed(path, error))?;
    match fs::hard_link(temporary, path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            drop(database);
            known.forget();
            return Ok(None);
        }
        Err(error) => return Err(no_link(path, &error)),
    }
    fs::remove_file(temporary).map_err(io)?;
    // Without this a power loss could take the name away, and every acknowledged write with it.
    sync_directory(directory).map_err(io)?;
    Ok(Some(database))
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory) {
        Ok(directory) => directory.sync_all(),
        // One that may be gone through and not read. Whoever made the file in it has more rights, or had.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

fn write_format(database: &Database) -> Result<(), RedbError> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(FORMAT, FORMAT_VERSION.to_be_bytes().as_slice())?;
        meta.insert(REVISION, 0_u64.to_be_bytes().as_slice())?;
        transaction.open_table(RECORDS)?;
        transaction.open_table(INDEX)?;
    }
    Ok(transaction.commit()?)
}

fn misconfigured(path: &Path, what: &str) -> Error {
    Error::Misconfigured(format!("store {} {what}", path.display()))
}

fn damaged(path: &Path, why: impl Display) -> Error {
    let what = format!("the file is damaged ({why}); restore it from a copy (`keyleash store restore FILE`)");
    Corrupt::Record { record: format!("store {}", path.display()), what }.into()
}

pub(super) fn io_failed(path: &Path, error: &io::Error) -> Error {
    use io::ErrorKind as Kind;
    let store = |what: &str| Error::Store(format!("{}: {what} ({error})", path.display()));
    match error.kind() {
        Kind::PermissionDenied => {
            misconfigured(path, "may not be read and written by this user; change its owner or mode, or the user")
        }
        Kind::ReadOnlyFilesystem => misconfigured(path, "is on a read-only file system; mount it writable, or move it"),
        Kind::NotADirectory => misconfigured(path, "has a file where a directory should be; correct the path"),
        Kind::IsADirectory => misconfigured(path, "is a directory; name a file"),
        Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => {
            store("the disk is full; make room and try again, nothing that was acknowledged is lost")
        }
        Kind::UnexpectedEof | Kind::InvalidData => damaged(path, error),
        _ => store("I/O error; look at the disk, then try again"),
    }
}

/// What a failure of redb means, with the path and the remedy.
pub(super) fn failed(path: &Path, error: RedbError) -> Error {
    match error {
        RedbError::Io(error) => io_failed(path, &error),
        RedbError::DatabaseAlreadyOpen | RedbError::LockProtocolMismatch => Error::Store(format!(
            "{}: it is open in another process; stop that one (`fuser {0}` names it), or use another store",
            path.display()
        )),
        RedbError::UpgradeRequired(version) => misconfigured(
            path,
            &format!("has redb file format {version}, too old for this release; convert it with redb"),
        ),
        RedbError::PreviousIo | RedbError::DatabaseClosed => {
            Error::Store(format!("{}: an earlier I/O error closed it; try again", path.display()))
        }
        RedbError::Corrupted(_)
        | RedbError::TableTypeMismatch { .. }
        | RedbError::TableDoesNotExist(_)
        | RedbError::TableIsMultimap(_)
        | RedbError::TableIsNotMultimap(_)
        | RedbError::TypeDefinitionChanged { .. } => damaged(path, error),
        other => Error::Store(format!("{}: {other}", path.display())),
    }
}
