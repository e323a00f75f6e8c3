//! Compression and retention, of files that are not written any more. Nobody waits for it, and what it cannot do it tries again.

use super::{
    Options, Trust, disk,
    disk::{sync_folder, temporary},
    on_thread, patiently,
    queue::Shared,
    recover::{RETAINED, retained_note},
};
use crate::{
    audit::{
        checkpoint::{Checkpoint, Retained},
        line::Time,
        note::Note,
        tree::{Frontier, leaf_hash},
        walk::{Head, HourFile, Step, Walk, hour_files},
    },
    error::{Error, Result},
    store::{KeyStore, load_common},
};
use flate2::{Compression, GzBuilder, bufread::GzDecoder};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Write},
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
        if cut.frontier.size() > gone {
            // What stands in the place of the lines is signed only if it leads to what was signed while they were there.
            trust.check(&cut.witness).await?;
            let text = Retained::new(&*self.origin, cut.frontier.clone(), self.shared.clock.wall_unix()).text();
            let (signer, signed) = (trust.signer.clone(), text.clone());
            let signature = patiently("the token", async move { signer.sign(signed.as_bytes()).await }).await?;
            let note = Note::new(text)?.signed(trust.vkey.signature(&signature)?).to_string();
            let folder = self.folder.clone();
            on_thread(move || {
                let place = folder.join(RETAINED);
                replace(&place, |file| file.write_all(note.as_bytes())).map_err(|error| failed(&place, &error))
            })
            .await?;
            tracing::info!("{}: retention removed lines in front of line {}", self.shared.name, cut.frontier.size());
        }
        let folder = self.folder.clone();
        on_thread(move || {
            for file in cut.files {
                remove(&folder, &file).map_err(|error| failed(&folder.join(file.name()), &error))?;
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
        io::copy(&mut File::open(plain)?, &mut gzip)?;
        gzip.finish()?.flush()?;
        // The original goes only where the copy says the same.
        let copy = BufReader::with_capacity(BUFFER_BYTES, File::open(format!("/proc/self/fd/{}", fd(file)))?);
        match digest(&mut GzDecoder::new(copy))? == digest(&mut File::open(plain)?)? {
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
fn remove_leftovers(place: &Path) -> io::Result<()> {
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
    let notes = notes(folder)?;
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
        if let (Some(cut), Some(witness)) = (&cut, notes.get(&frontier.size())) {
            return witnessed(files, cut.clone(), witness, &frontier, changed);
        }
        frontier.append(leaf_hash(walk.line()));
        if let (Some(cut), Some(witness)) = (&cut, notes.get(&frontier.size())) {
            return witnessed(files, cut.clone(), witness, &frontier, changed);
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

/// Every checkpoint, by its size.
fn notes(folder: &Path) -> Result<BTreeMap<u64, (Note, Checkpoint)>> {
    let place = folder.join(disk::CHECKPOINTS);
    let bytes = fs::read(&place).map_err(|error| failed(&place, &error))?;
    let text = String::from_utf8_lossy(&bytes);
    let parts: Vec<_> = text.split("\n\n").collect();
    let pairs = parts.chunks_exact(2).filter_map(|pair| match pair {
        [text, signatures] => Note::parse(format!("{text}\n\n{signatures}\n").as_bytes()).ok(),
        _ => None,
    });
    Ok(pairs
        .filter_map(|note| Checkpoint::of(&note).ok().map(|checkpoint| (checkpoint.size, (note, checkpoint))))
        .collect())
}

/// Removes a file, compressed or not, and the folders that are empty without it.
fn remove(folder: &Path, file: &HourFile) -> io::Result<()> {
    for is_compressed in [false, true] {
        let path = folder.join(HourFile { is_compressed, ..file.clone() }.name());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
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
