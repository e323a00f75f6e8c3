//! Sinks that keyleash has itself: a file, and a command.

use super::{AuditSink, Event, cursor::folder};
use crate::{
    audit::writer::sync_folder,
    child::{Running, said},
    clock::Clock,
};
use async_trait::async_trait;
use rustix::fs::{MemfdFlags, memfd_create};
use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Seek, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// A command that takes longer over events is killed, and they are brought to it again.
pub const COMMAND_MAX: Duration = Duration::from_secs(300);
/// Between two looks at a command that runs.
const PAUSE: Duration = Duration::from_millis(5);
/// What every event begins with here.
const BEGIN: &[u8] = b"{\"id\":\"";
/// Longest event, with its id and node.
const EVENT_BYTES_MAX: u64 = 32 * 1024;

fn lines(events: &[Event]) -> Vec<u8> {
    events.iter().flat_map(Event::json).collect()
}

/// Does what blocks; what it does is given up when this is dropped, where it looks.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&AtomicBool) -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    struct Stop(Arc<AtomicBool>);
    impl Drop for Stop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let stop = Stop(Arc::default());
    let stopped = stop.0.clone();
    let done = tokio::task::spawn_blocking(move || work(&stopped)).await;
    done.unwrap_or_else(|_| Err("the thread that brought them failed; see the log".into()))
}

/// Appends events to a file, a line each, and acknowledges them when they are on the disk. One that was moved away is begun anew.
#[derive(Debug)]
pub struct FileSink {
    path: PathBuf,
}

impl FileSink {
    /// To the file of this name, which is made where there is none.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Lines that begin as events do.
    pub(in crate::audit) async fn take(&self, bytes: Vec<u8>) -> Result<(), String> {
        let path = self.path.clone();
        blocking(move |_| append(&path, &bytes).map_err(|error| format!("{}: {error}", path.display()))).await
    }
}

#[async_trait]
impl AuditSink for FileSink {
    async fn deliver(&mut self, events: &[Event]) -> Result<(), String> {
        self.take(lines(events)).await
    }
}

fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed(); // a pipe that nobody reads
    let mut options = OpenOptions::new();
    let file =
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path)?;
    let there = file.metadata()?;
    if !there.is_file() {
        return Err(io::Error::other("it is no regular file; use a command to write elsewhere"));
    }
    let end = whole_end(&file, there.size())?;
    if end == 0 {
        sync_folder(folder(path))?;
    }
    let written = file.write_all_at(bytes, end).and_then(|()| file.set_len(end + bytes.len() as u64));
    let written = written.and_then(|()| file.sync_data());
    if written.is_err() {
        let _ = file.set_len(end);
    }
    written
}

/// Where its last whole line ends: what a crash tore behind that was never acknowledged.
fn whole_end(file: &File, len: u64) -> io::Result<u64> {
    let from = len.saturating_sub(EVENT_BYTES_MAX);
    let mut bytes = vec![0; usize::try_from(len - from).unwrap_or_default()];
    file.read_exact_at(&mut bytes, from)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let torn = bytes.get(whole..).unwrap_or_default();
    if torn.is_empty() || (whole > 0 || from == 0) && (torn.starts_with(BEGIN) || BEGIN.starts_with(torn)) {
        return Ok(from + whole as u64);
    }
    Err(io::Error::new(
        ErrorKind::InvalidData,
        "its last line has no end, and is no event: it is another file; name one of its own",
    ))
}

/// Gives events to a command, a line each on its standard input, and acknowledges them when it ends with success. It is begun anew for
/// each batch, and killed with all that it began where it takes longer than [`COMMAND_MAX`], or this is dropped. It reads all
/// or nothing: also where this process is killed meanwhile, which leaves it running.
#[derive(Debug)]
pub struct CommandSink {
    program: OsString,
    args: Vec<OsString>,
    /// Not for it to see.
    hidden: Vec<OsString>,
}

/// A command did not take what it was given.
pub(in crate::audit) enum CommandFailure {
    /// It ended by itself, and said so.
    Said(String),
    /// It could not be started, or had to be killed.
    None(String),
}

impl CommandSink {
    /// This program, with these arguments.
    pub fn new(program: impl Into<OsString>, args: impl IntoIterator<Item = OsString>) -> Self {
        Self { program: program.into(), args: args.into_iter().collect(), hidden: Vec::new() }
    }

    /// Does not give it this variable of the environment: one that holds a PIN.
    #[must_use]
    pub fn without(mut self, variable: impl Into<OsString>) -> Self {
        self.hidden.push(variable.into());
        self
    }

    /// Gives it lines.
    pub(in crate::audit) async fn take(&self, bytes: Vec<u8>) -> Result<(), CommandFailure> {
        let name = Path::new(&self.program).display().to_string();
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        for variable in &self.hidden {
            command.env_remove(variable);
        }
        let status = blocking(move |stop| run(command, &bytes, stop)).await;
        match status.map_err(|why| CommandFailure::None(format!("{name}: {why}")))? {
            status if status.success() => Ok(()),
            status => Err(CommandFailure::Said(format!("{name}: {}", said(status)))),
        }
    }
}

#[async_trait]
impl AuditSink for CommandSink {
    async fn deliver(&mut self, events: &[Event]) -> Result<(), String> {
        let taken = self.take(lines(events)).await;
        taken.map_err(|(CommandFailure::Said(why) | CommandFailure::None(why))| why)
    }
}

/// How it ended, by itself.
fn run(mut command: Command, bytes: &[u8], stop: &AtomicBool) -> Result<ExitStatus, String> {
    let io = |error: io::Error| error.to_string();
    // In memory, and whole before the command begins: it need not be waited for, and is not torn where this process ends.
    let mut input = File::from(memfd_create("keyleash-events", MemfdFlags::CLOEXEC).map_err(|error| io(error.into()))?);
    input.write_all(bytes).and_then(|()| input.rewind()).map_err(io)?;
    command.stdin(Stdio::from(input));
    let mut running = Running::begin(command).map_err(|error| format!("cannot be started: {error}"))?;
    let clock = Clock::default();
    let give_up = clock.now().plus(COMMAND_MAX);
    while !running.has_ended().map_err(io)? {
        if stop.load(Ordering::SeqCst) {
            return Err("it was given up".into());
        }
        if clock.now() >= give_up {
            return Err(format!("it did not end in {} s, and was killed", COMMAND_MAX.as_secs()));
        }
        thread::sleep(PAUSE);
    }
    running.end().map_err(io)
}
