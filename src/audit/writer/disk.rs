//! The directory of a node as its writer has it: lines and notes are durable when a call here returns, and what happens to the files
//! under its feet is noticed with every one.

use crate::{
    audit::{
        progress::{self, LOCK},
        walk::HourFile,
    },
    error::{Error, Result},
    name::NodeName,
};
use std::{
    fmt,
    fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

/// In a node's directory: the signed notes of the tree's size and root.
pub(super) const CHECKPOINTS: &str = "checkpoints";
/// The files say who did what: nobody else needs to read them, unless their owner says so.
pub(super) const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;
/// How soon a lock is tried again that somebody holds.
const LOCK_AGAIN: Duration = Duration::from_millis(20);
/// How often at least: who follows a trail looks by the lock whether somebody writes, and has it for an instant.
const LOCK_TRIES_MIN: u128 = 6;

/// What a test has happen in the place of a disk that is slow or fails: called before what was written is synced.
#[derive(Clone)]
pub(super) struct Hook(pub(super) Arc<dyn Fn() -> io::Result<()> + Send + Sync>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
}

/// Which file it is, whatever its path.
pub(super) type Id = (u64, u64);

pub(super) fn id(metadata: &Metadata) -> Id {
    (metadata.dev(), metadata.ino())
}

/// What went wrong, and the remedy, in words.
pub(super) type Trouble = String;

/// An open file, which has to stay what its path leads to.
#[derive(Debug)]
struct Kept {
    file: File,
    path: PathBuf,
    id: Id,
    /// Bytes that were acknowledged.
    len: u64,
}

/// What is at a file's place.
enum There {
    It,
    Nothing,
}

impl Kept {
    fn of(file: File, path: PathBuf) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { file, path, id: id(&metadata), len: metadata.len() })
    }

    fn show(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    fn failed(&self, what: &str, error: &io::Error) -> Trouble {
        let remedy = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => "make room",
            _ => "see to the disk",
        };
        format!("{}: {what}: {error}; {remedy}, and it goes on by itself", self.show())
    }

    /// Looks at what is at its place.
    fn look(&self) -> Result<There, Trouble> {
        let there = match fs::symlink_metadata(&self.path) {
            Ok(there) => there,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(There::Nothing),
            Err(error) => return Err(self.failed("looking at it", &error)),
        };
        if id(&there) != self.id {
            return Err(format!(
                "{}: another file took its place; move that one away, and the trail puts its own back",
                self.show()
            ));
        }
        if there.len() != self.len {
            return Err(format!(
                "{}: somebody else wrote to it: it has {} bytes, the trail wrote {}; {}",
                self.show(),
                there.len(),
                self.len,
                match there.len() > self.len {
                    true => format!("keep a copy, and then cut it: truncate -s {} FILE", self.len),
                    false => "put it back from a copy".to_owned(),
                }
            ));
        }
        Ok(There::It)
    }

    /// Puts the file back whose name is gone: its bytes are still there, because it is open.
    fn put_back(&mut self) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        make_folders(folder)?;
        let temporary = temporary(&self.path);
        // Takes nobody's place.
        let copied = self.copy_to(&temporary).and_then(|copy| fs::hard_link(&temporary, &self.path).map(|()| copy));
        // On a full disk above all, where it is tried again and again.
        let _ = fs::remove_file(&temporary);
        let put_back = Self::of(copied?, self.path.clone())?;
        tracing::warn!(file = %self.path.display(), "a file of the trail was removed or moved, and was put back");
        // It is what is at its place from now on, whatever becomes of the folder.
        *self = put_back;
        sync_folder(self.path.parent().unwrap_or(Path::new(".")))
    }

    fn copy_to(&self, place: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let copy = options.read(true).write(true).create(true).truncate(true).mode(FILE_MODE).open(place)?;
        let (mut buffer, mut at) = (vec![0; 64 * 1024], 0);
        while at < self.len {
            let most = usize::try_from(self.len - at).unwrap_or(usize::MAX).min(buffer.len());
            let part = buffer.get_mut(..most).unwrap_or_default();
            self.file.read_exact_at(part, at)?;
            copy.write_all_at(part, at)?;
            at += part.len() as u64;
        }
        copy.sync_all()?;
        Ok(copy)
    }

    /// Sees to it that it is at its place.
    fn stand(&mut self) -> Result<(), Trouble> {
        match self.look()? {
            There::It => Ok(()),
            There::Nothing => {
                self.put_back()
                    .map_err(|error| self.failed("it was removed or moved, and cannot be put back", &error))?;
                self.look().map(|_| ())
            }
        }
    }

    /// Appends bytes to what has just been looked at, durably; of what fails nothing stays.
    fn append(&mut self, bytes: &[u8], before_sync: Option<&Hook>) -> Result<(), Trouble> {
        let before = self.len;
        let written = self.file.write_all_at(bytes, before).and_then(|()| {
            before_sync.map_or(Ok(()), |hook| hook.0())?;
            self.file.sync_data()
        });
        let done = written.map_err(|error| self.failed("writing", &error)).and_then(|()| {
            self.len = before + bytes.len() as u64;
            match self.look()? {
                There::It => Ok(()),
                There::Nothing => Err(format!("{}: it was removed or moved while it was written", self.show())),
            }
        });
        if done.is_err() {
            self.len = before;
            // What cannot be cut off now is told as somebody else's with the next look, and cut off by the next start.
            let _ = self.file.set_len(before);
        }
        done
    }
}

/// The checkpoints without the oldest of them, in a file that is to take the place of theirs.
#[derive(Debug)]
pub(super) struct Thinned {
    pub(super) file: File,
    pub(super) temporary: PathBuf,
    /// Which file it was made of, and up to where.
    pub(super) of: Id,
    pub(super) to: u64,
}

/// A name beside a file, for what is to take its place whole.
pub(in crate::audit) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{:016x}.new", rand::random::<u64>()))
}

pub(in crate::audit) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes the folders that are missing, each durably.
fn make_folders(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
        Ok(()) => sync_folder(folder.parent().unwrap_or(Path::new("."))),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let Some(above) = folder.parent().filter(|above| !above.as_os_str().is_empty()) else { return Err(error) };
            make_folders(above)?;
            make_folders(folder)
        }
        Err(error) => Err(error),
    }
}

/// The directory, and what is open in it.
#[derive(Debug)]
pub(super) struct Disk {
    node: PathBuf,
    id: Id,
    lock: Kept,
    /// Lines of which those who follow were told that they are durable.
    told: u64,
    hour: Option<(String, Kept)>,
    checkpoints: Kept,
    before_sync: Option<Hook>,
}

impl Disk {
    /// Takes the directory of the first node that is free, for which it waits, and makes it where there is none below a directory that
    /// is there.
    ///
    /// # Errors
    /// [`Error::Misconfigured`] where there is no directory; [`Error::Trail`] where other processes write the trails of all, or the
    /// disk fails.
    pub(super) fn take(
        directory: &Path,
        nodes: &[NodeName],
        patience: Duration,
        before_sync: Option<Hook>,
    ) -> Result<(NodeName, Self)> {
        if !directory.is_dir() {
            return Err(Error::Misconfigured(format!(
                "audit.directory {}: there is no such directory; make it, or mount what it is on",
                directory.display()
            )));
        }
        let mut tries = (patience.as_millis() / LOCK_AGAIN.as_millis() + 1).max(LOCK_TRIES_MIN);
        loop {
            for node in nodes {
                if let Some(disk) = Self::try_take(directory.join(node.as_str()), before_sync.clone())? {
                    return Ok((node.clone(), disk));
                }
            }
            tries -= 1;
            if tries == 0 {
                let names = nodes.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ");
                return Err(Error::Trail(format!(
                    "{}: another process writes the trail of node {names}: give this one a node of its own (audit.node), or end that one",
                    directory.display()
                )));
            }
            thread::sleep(LOCK_AGAIN);
        }
    }

    /// `None` where another process writes there.
    fn try_take(path: PathBuf, before_sync: Option<Hook>) -> Result<Option<Self>> {
        let failed = |error: io::Error| Error::Trail(format!("{}: {error}; see to the directory", path.display()));
        make_folders(&path).map_err(failed)?;
        let Some(lock) = try_lock(&path.join(LOCK)).map_err(failed)? else { return Ok(None) };
        let checkpoints = open(&path.join(CHECKPOINTS)).map_err(failed)?;
        sync_folder(&path).map_err(failed)?;
        let id = id(&fs::metadata(&path).map_err(failed)?);
        Ok(Some(Self { id, lock, told: 0, hour: None, checkpoints, before_sync, node: path }))
    }

    /// The node's directory.
    pub(super) fn node(&self) -> &Path {
        &self.node
    }

    /// Tells those who follow the trail that so many lines are durable. Where that cannot be written they are told with the next ones.
    pub(super) fn tell(&mut self, lines: u64) {
        self.told = lines;
        let _ = progress::tell(&self.lock.file, lines);
        // However much of it was written.
        self.lock.len = self.lock.file.metadata().map_or(self.lock.len, |there| there.len());
    }

    /// The last bytes of the notes, at most `most`.
    pub(super) fn notes_end(&self, most: usize) -> io::Result<Vec<u8>> {
        let from = self.checkpoints.len.saturating_sub(most as u64);
        let mut bytes = vec![0; usize::try_from(self.checkpoints.len - from).unwrap_or(most)];
        self.checkpoints.file.read_exact_at(&mut bytes, from)?;
        Ok(bytes)
    }

    /// Cuts so many bytes off the notes, which a crash tore.
    pub(super) fn cut_notes(&mut self, torn: u64) -> io::Result<()> {
        cut(&mut self.checkpoints, torn)
    }

    /// Goes on in the file of this hour, without its last `torn` bytes.
    pub(super) fn go_on(&mut self, hour: &str, torn: u64) -> io::Result<()> {
        let mut kept = open(&self.node.join(HourFile::plain(hour).name()))?;
        cut(&mut kept, torn)?;
        self.hour = Some((hour.to_owned(), kept));
        Ok(())
    }

    /// Writes lines, each with its line break, into the file of this hour. They are durable when it returns.
    ///
    /// # Errors
    /// What to do about it; nothing was written.
    pub(super) fn write_lines(&mut self, hour: &str, lines: &[u8]) -> Result<(), Trouble> {
        self.look()?;
        let before_sync = self.before_sync.clone();
        if let Some((current, kept)) = &mut self.hour
            && current == hour
        {
            return kept.append(lines, before_sync.as_ref());
        }
        let begun = self.begin(hour).map_err(|error| {
            let node = self.node.display();
            format!("{node}: beginning the file of hour {hour}: {error}; make room, or see to the disk, and it goes on by itself")
        });
        let mut kept = begun?;
        // Only what has lines is the newest file.
        kept.append(lines, before_sync.as_ref())?;
        self.hour = Some((hour.to_owned(), kept));
        Ok(())
    }

    fn begin(&self, hour: &str) -> io::Result<Kept> {
        let path = self.node.join(HourFile::plain(hour).name());
        let folder = path.parent().unwrap_or(&self.node);
        make_folders(folder)?;
        let kept = open(&path)?;
        if kept.len > 0 {
            return Err(io::Error::other("somebody else wrote one; move it away"));
        }
        sync_folder(folder)?;
        Ok(kept)
    }

    /// Writes a signed note behind the others. It is durable when this returns.
    ///
    /// # Errors
    /// As [`Disk::write_lines`].
    pub(super) fn write_note(&mut self, note: &str) -> Result<(), Trouble> {
        self.look()?;
        let before_sync = self.before_sync.clone();
        self.checkpoints.append(format!("{note}\n").as_bytes(), before_sync.as_ref())
    }

    /// Puts the checkpoints without the oldest in their place, with those behind that were written since.
    ///
    /// # Errors
    /// They stay as they are.
    pub(super) fn take_thinned(&mut self, thinned: Thinned) -> io::Result<()> {
        let Thinned { file, temporary, of, to } = thinned;
        let old = &self.checkpoints;
        let mut rest = vec![0; usize::try_from(old.len.saturating_sub(to)).unwrap_or_default()];
        let put = match of == old.id && to <= old.len {
            true => old.file.read_exact_at(&mut rest, to),
            false => Err(io::Error::other("they were put back meanwhile")),
        };
        let put = put.and_then(|()| {
            file.write_all_at(&rest, file.metadata()?.len())?;
            file.sync_all()?;
            fs::rename(&temporary, &old.path)
        });
        if put.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        put?;
        self.checkpoints = Kept::of(file, self.checkpoints.path.clone())?;
        sync_folder(&self.node)
    }

    /// Looks whether all is as it was left.
    ///
    /// # Errors
    /// As [`Disk::write_lines`].
    pub(super) fn look(&mut self) -> Result<(), Trouble> {
        let there = fs::metadata(&self.node).map(|there| id(&there));
        if !there.as_ref().is_ok_and(|there| *there == self.id) {
            return Err(format!(
                "{}: the directory was {}; put it back in its place",
                self.node.display(),
                if there.is_ok() { "replaced by another" } else { "moved or removed" }
            ));
        }
        match self.lock.look()? {
            There::It => {}
            There::Nothing => {
                let lock = try_lock(&self.lock.path).map_err(|error| self.lock.failed("locking", &error))?;
                self.lock =
                    lock.ok_or_else(|| format!("{}: another process took it: end that one", self.lock.path.display()))?;
                self.tell(self.told);
            }
        }
        self.checkpoints.stand()?;
        self.hour.as_mut().map_or(Ok(()), |(_, kept)| kept.stand())
    }

    /// The hour of the file that is written, and its bytes.
    pub(super) fn hour(&self) -> Option<&str> {
        self.hour.as_ref().map(|(hour, _)| hour.as_str())
    }
}

fn open(path: &Path) -> io::Result<Kept> {
    // Opening a pipe that nobody writes to would take for ever.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE).custom_flags(flags.bits() as i32);
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!("{} is no regular file", path.display())));
    }
    Kept::of(file, path.to_owned())
}

fn cut(kept: &mut Kept, torn: u64) -> io::Result<()> {
    if torn > 0 {
        kept.len = kept.len.saturating_sub(torn);
        kept.file.set_len(kept.len)?;
    }
    // What was written before a crash, and is read now, may not have come to the disk yet.
    kept.file.sync_all()
}

/// Locks a file, which the kernel gives back when the process ends, however it ends. `None` when somebody else has it.
fn try_lock(path: &Path) -> io::Result<Option<Kept>> {
    let kept = open(path)?;
    match kept.file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Whoever locks a file that was removed meanwhile has locked nothing.
    Ok(matches!(kept.look(), Ok(There::It)).then_some(kept))
}
