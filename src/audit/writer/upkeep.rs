//! Compression and retention, of files that are not written any more. Nobody waits for it, and what it cannot do it tries again.

use super::{
    Options, Trust, disk,
    disk::{Thinned, sync_folder, temporary},
    on_thread, patiently,
    queue::Shared,
    recover::{RETAINED, retained_note},
};
use crate::{
    audit::{
        checkpoint::{Checkpoint, Retained},
        line::Time,
        note::{NOTE_BYTES_MAX, Note},
        notes::{Next, Notes},
        tree::{Frontier, leaf_hash},
        walk::{Head, HourFile, Step, Walk, hour_files, open_file},
    },
    error::{Error, Result},
    store::{KeyStore, load_common},
};
use flate2::{Compression, GzBuilder, bufread::GzDecoder};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How often it is looked whether an hour has passed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const HOUR_SECS: u64 = 60 * 60;
const BUFFER_BYTES: usize = 64 * 1024;

/// What is done about old files.
pub(super) struct Upkeep {
    pub(super) shared: Arc<Shared>,
    /// The node's directory.
    pub(super) folder: PathBuf,
    pub(super) trust: Trust,
    pub(super) origin: String,
    pub(super) store: Arc<dyn KeyStore>,
    pub(super) options: Options,
}

impl Upkeep {
    /// Once at the start, and then with each hour.
    pub(super) async fn run(self) {
        let mut done = None;
        loop {
            let hour = self.shared.clock.wall_unix() / HOUR_SECS;
            // What is broken is not gone about with.
            if done != Some(hour) && self.shared.trouble().is_none() {
                if let Err(error) = self.turn().await {
                    tracing::warn!("{}: its old files: {error}", self.shared.name);
                }
                done = Some(hour);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn turn(&self) -> Result<()> {
        let (folder, wall) = (self.folder.clone(), self.shared.clock.wall_unix());
        let until = wall.saturating_sub(self.options.compress_after.as_secs());
        on_thread(move || compress_until(&folder, until)).await?;
        let Some(retention) = self.options.retention else { return Ok(()) };
        // A wall clock that jumped ahead must not remove everything: the store's date is moved by none.
        let store = self.store.clone();
        let common = patiently("the key store", async move { load_common(&*store).await }).await?;
        let Some((common, _)) = common else { return Ok(()) };
        let until = wall.min(common.date_unix).saturating_sub(retention.as_secs());
        self.remove_until(until).await
    }

    /// Removes the oldest files whose hour ended before, and leaves a signed note in their place.
    async fn remove_until(&self, until: u64) -> Result<()> {
        let trust = &self.trust;
        let retained = retained_note(&self.folder)?;
        if let Some(note) = &retained {
            trust.check(note).await?;
        }
        let begin = retained.as_ref().map(Retained::of).transpose()?.map_or_else(Frontier::new, |left| left.frontier);
        let (folder, gone) = (self.folder.clone(), begin.size());
        let Some(cut) = on_thread(move || find_cut(&folder, begin, until)).await? else { return Ok(()) };
        let mut signed = None;
        if cut.frontier.size() > gone {
            // What stands in the place of the lines is signed only if it leads to what was signed while they were there.
            trust.check(&cut.witness).await?;
            let text = Retained::new(&*self.origin, cut.frontier.clone(), self.shared.clock.wall_unix()).text();
            let (signer, to_sign) = (trust.signer.clone(), text.clone());
            let signature = patiently("the token", async move { signer.sign(to_sign.as_bytes()).await }).await?;
            let note = Note::new(text)?.signed(trust.vkey.signature(&signature)?).to_string();
            signed = Some(note);
            tracing::info!("{}: retention removes lines in front of line {}", self.shared.name, cut.frontier.size());
        }
        let (folder, shared) = (self.folder.clone(), self.shared.clone());
        // In one piece: where the trail is closed meanwhile, it is done all the same.
        on_thread(move || {
            if let Some(note) = signed {
                let place = folder.join(RETAINED);
                replace(&place, |file| file.write_all(note.as_bytes())).map_err(|error| failed(&place, &error))?;
            }
            for file in cut.files {
                remove(&folder, &file).map_err(|error| failed(&folder.join(file.name()), &error))?;
            }
            let place = folder.join(disk::CHECKPOINTS);
            let thinned = thin(&place, cut.frontier.size()).map_err(|error| failed(&place, &error))?;
            if thinned.is_some() {
                shared.lock().thinned = thinned;
            }
            Ok(())
        })
        .await
    }
}

fn failed(path: &Path, error: &io::Error) -> Error {
    Error::Trail(format!("{}: {error}; see to the disk", path.display()))
}

/// When an hour ended, in seconds since 1970.
fn end_of(hour: &str) -> u64 {
    let begin = Time::parse(&format!("{hour}:00:00.000Z")).map_or(u64::MAX, |time| time.unix_ms() / 1000);
    begin.saturating_add(HOUR_SECS)
}

/// The files but the newest, which is written.
fn old_files(folder: &Path) -> Result<Vec<HourFile>> {
    let mut files = hour_files(folder)?;
    files.pop();
    Ok(files)
}

/// Compresses the files whose hour ended before.
fn compress_until(folder: &Path, until: u64) -> Result<()> {
    for file in old_files(folder)?.into_iter().filter(|file| !file.is_compressed && end_of(&file.hour) <= until) {
        let plain = folder.join(file.name());
        compress(&plain, &folder.join(HourFile { is_compressed: true, ..file }.name()))
            .map_err(|error| failed(&plain, &error))?;
    }
    Ok(())
}

fn compress(plain: &Path, compressed: &Path) -> io::Result<()> {
    remove_leftovers(plain)?;
    let digest = |reader: &mut dyn Read| -> io::Result<[u8; 32]> {
        let (mut sha, mut buffer) = (Sha256::new(), vec![0; BUFFER_BYTES]);
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(sha.finalize().into()),
                read => sha.update(buffer.get(..read).unwrap_or_default()),
            }
        }
    };
    replace(compressed, |file| {
        let mut gzip = GzBuilder::new().write(io::BufWriter::new(&mut *file), Compression::default());
        io::copy(&mut open_file(plain)?, &mut gzip)?;
        gzip.finish()?.flush()?;
        // The original goes only where the copy says the same.
        let copy = BufReader::with_capacity(BUFFER_BYTES, File::open(format!("/proc/self/fd/{}", fd(file)))?);
        match digest(&mut GzDecoder::new(copy))? == digest(&mut open_file(plain)?)? {
            true => Ok(()),
            false => Err(io::Error::other("what was compressed does not come back as it was")),
        }
    })?;
    fs::remove_file(plain)?;
    sync_folder(plain.parent().unwrap_or(Path::new(".")))
}

fn fd(file: &File) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(file)
}

/// Makes a file whole beside its place, and puts it there.
fn replace(place: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let temporary = temporary(place);
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create_new(true).mode(disk::FILE_MODE).open(&temporary)?;
    let made = write(&mut file).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, place));
    if made.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    made?;
    sync_folder(place.parent().unwrap_or(Path::new(".")))
}

/// What a crash left in the making beside a file.
pub(super) fn remove_leftovers(place: &Path) -> io::Result<()> {
    for entry in fs::read_dir(place.parent().unwrap_or(Path::new(".")))? {
        let name = entry?.file_name();
        if name.to_string_lossy().starts_with('.') && name.to_string_lossy().ends_with(".new") {
            fs::remove_file(place.with_file_name(name))?;
        }
    }
    Ok(())
}

/// Where lines are cut off.
struct Cut {
    /// What goes.
    files: Vec<HourFile>,
    /// The tree over them.
    frontier: Frontier,
    /// The checkpoint that the lines lead to, of as many lines or more.
    witness: Note,
}

/// Reads the oldest files whose hour ended before, and on to the next checkpoint. `None` where nothing goes.
///
/// The file behind them begins with a tally, so that no group is cut in two.
fn find_cut(folder: &Path, begin: Frontier, until: u64) -> Result<Option<Cut>> {
    let all = hour_files(folder)?;
    let mut due = all.iter().take(all.len().saturating_sub(1)).take_while(|file| end_of(&file.hour) <= until).count();
    while due > 0 && !begins_with_tally(folder, all.get(due)) {
        due -= 1;
    }
    if due == 0 {
        return Ok(None);
    }
    let mut witnesses = Witnesses::open(folder)?;
    let changed = |what: String| {
        Error::Trail(format!(
            "{what}: somebody changed the trail; nothing is removed of it; see `keyleash audit verify`"
        ))
    };
    let files: Vec<_> = all.iter().take(due).cloned().collect();
    let (mut frontier, mut cut) = (begin, None);
    let mut walk = Walk::of(folder, all);
    loop {
        match walk.step() {
            Step::Line => {}
            Step::End => return Err(changed(format!("no checkpoint tells of {} lines or more", frontier.size()))),
            Step::Torn(_) if walk.is_last_file() => continue, // it is being written
            other => return Err(changed(format!("{}: {other:?}", walk.place()))),
        }
        let Some(head) = Head::parse(walk.line()) else { return Err(changed(format!("{}: no line", walk.place()))) };
        if head.seq < frontier.size() {
            continue; // gone already, but for its file
        }
        if head.seq != frontier.size() {
            return Err(changed(format!("{}: line {} should be {}", walk.place(), head.seq, frontier.size())));
        }
        if cut.is_none() && walk.files_begun() > due {
            cut = Some(frontier.clone());
        }
        let is_cut = cut.is_some();
        let witness = witnesses.of(frontier.size()).map(|witness| witness.filter(|_| is_cut))?;
        if let (Some(cut), Some(witness)) = (&cut, witness) {
            return witnessed(files, cut.clone(), &witness, &frontier, changed);
        }
        frontier.append(leaf_hash(walk.line()));
        let witness = witnesses.of(frontier.size()).map(|witness| witness.filter(|_| is_cut))?;
        if let (Some(cut), Some(witness)) = (&cut, witness) {
            return witnessed(files, cut.clone(), &witness, &frontier, changed);
        }
    }
}

fn witnessed(
    files: Vec<HourFile>,
    frontier: Frontier,
    witness: &(Note, Checkpoint),
    at: &Frontier,
    changed: impl Fn(String) -> Error,
) -> Result<Option<Cut>> {
    let (witness, checkpoint) = witness;
    match checkpoint.root == at.root() {
        true => Ok(Some(Cut { files, frontier, witness: witness.clone() })),
        false => Err(changed(format!("the first {} lines are not those that were signed", at.size()))),
    }
}

fn begins_with_tally(folder: &Path, file: Option<&HourFile>) -> bool {
    let Some(file) = file else { return false };
    let mut walk = Walk::of(folder, vec![file.clone()]);
    walk.step() == Step::Line && Head::parse(walk.line()).is_some_and(|head| head.is_tally())
}

/// The checkpoints on the way, one at a time.
struct Witnesses {
    place: PathBuf,
    notes: Notes,
    ahead: Option<(Note, Checkpoint)>,
}

impl Witnesses {
    fn open(folder: &Path) -> Result<Self> {
        let place = folder.join(disk::CHECKPOINTS);
        let notes = Notes::open(&place).map_err(|error| failed(&place, &error))?;
        Ok(Self { place, notes, ahead: None })
    }

    /// That of so many lines, of which there were never asked fewer before.
    fn of(&mut self, size: u64) -> Result<Option<(Note, Checkpoint)>> {
        while self.ahead.as_ref().is_none_or(|(_, ahead)| ahead.size < size) {
            match self.notes.next().map_err(|error| failed(&self.place, &error))? {
                None => return Ok(None),
                Some(Next::Note(note)) => {
                    self.ahead = Checkpoint::of(&note).ok().map(|checkpoint| (note, checkpoint)).or(self.ahead.take());
                }
                Some(Next::Malformed(_) | Next::Torn) => {}
            }
        }
        Ok(self.ahead.clone().filter(|(_, ahead)| ahead.size == size))
    }
}

/// Makes the file of checkpoints anew beside its place, without those of fewer lines than retention removed, which nothing is verified by
/// any more. `None` where they are less than half of it, or it is not as it was written: it is left as it is.
fn thin(place: &Path, retained: u64) -> io::Result<Option<Thinned>> {
    let mut old = open_file(place)?;
    let there = old.metadata()?;
    let mut notes = Notes::of(old.try_clone()?)?;
    let from = loop {
        match notes.next()? {
            Some(Next::Note(note)) => match Checkpoint::of(&note) {
                Ok(checkpoint) if checkpoint.size >= retained => break notes.begin,
                Ok(_) => {}
                Err(_) => return Ok(None),
            },
            Some(Next::Malformed(_) | Next::Torn) | None => return Ok(None),
        }
    };
    if from < there.len().saturating_sub(from) {
        return Ok(None);
    }
    // The last one may be cut off again: whoever puts this in its place copies what is behind.
    let to = there.len().saturating_sub(NOTE_BYTES_MAX as u64 + 1).max(from);
    old.seek(SeekFrom::Start(from))?;
    let temporary = temporary(place);
    let made = (|| {
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create_new(true).mode(disk::FILE_MODE).open(&temporary)?;
        io::copy(&mut old.take(to - from), &mut file)?;
        file.sync_all()?;
        Ok(Thinned { file, temporary: temporary.clone(), of: disk::id(&there), to })
    })();
    if made.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    made.map(Some)
}

/// Removes a file, compressed or not, and the folders that are empty without it.
fn remove(folder: &Path, file: &HourFile) -> io::Result<()> {
    for is_compressed in [false, true] {
        let path = folder.join(HourFile { is_compressed, ..file.clone() }.name());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) => {}
            // The oldest go first on the disk too: what is left when the power fails follows itself, up to what was not to be removed.
            Ok(()) => sync_folder(path.parent().unwrap_or(folder))?,
        }
    }
    let mut above = folder.join(file.name());
    while above.pop() && above != folder {
        if fs::remove_dir(&above).is_err() {
            break; // it is not empty
        }
    }
    Ok(())
}
