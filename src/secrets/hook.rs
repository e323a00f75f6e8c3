//! A hook: a program that is given the current value of a secret and prints the next.
//!
//! It leads a process group of its own, which is killed as it ends, or when its time is up: by who runs it, and where that was killed or
//! stopped, by a watchdog in the group, a few seconds later. So no hook outlives the time for which nobody else runs it.

use super::SecretValue;
use crate::{
    child::{Running, said},
    clock::Clock,
    error::Error,
    store::record::SECRET_BYTES_MAX,
};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::Path,
    process::{ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

/// So much later than a hook's time is up, the watchdog kills it that nobody has killed.
pub(super) const WATCHDOG_SECS: u64 = 5;
/// Between two looks at a hook that neither reads nor writes nor ends.
const PAUSE: Duration = Duration::from_millis(5);
/// Where the environment has no PATH.
const PATH_DEFAULT: &str = "/usr/bin:/bin";
/// Becomes the hook. The watchdog is a grandchild that the hook does not know of, and holds none of its streams.
const SHELL: &str = r#"( { sleep "$1"; kill -KILL 0; } </dev/null >/dev/null 2>&1 & ); exec "$2""#;

/// What a hook is told in its environment, beside PATH.
pub(super) struct Told {
    pub(super) account: String,
    pub(super) name: String,
    /// The version whose value is on its standard input.
    pub(super) version: u32,
    /// The version that it makes.
    pub(super) next_version: u32,
}

/// Runs a hook on a thread of its own, and gives what it printed, or why there is nothing. Dropped, it ends the hook.
pub(super) async fn run(hook: &str, told: Told, input: SecretValue, timeout: Duration) -> Result<SecretValue, String> {
    let (reply, answer) = oneshot::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let _stop_at_end = Stop(stop.clone());
    let hook = hook.to_owned();
    let work = move || drop(reply.send(run_here(&hook, &told, &input, timeout, &stop)));
    let thread = thread::Builder::new().name("keyleash-hook".into()).spawn(work);
    thread.map_err(|error| format!("no thread to run it on: {error}"))?;
    answer.await.unwrap_or_else(|_| Err("the thread that ran it died".into()))
}

struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn run_here(
    hook: &str,
    told: &Told,
    input: &SecretValue,
    timeout: Duration,
    stop: &AtomicBool,
) -> Result<SecretValue, String> {
    let found = fs::metadata(hook).map_err(|error| format!("{hook}: {error}"))?;
    if !found.is_file() || found.permissions().mode() & 0o111 == 0 {
        return Err(format!("{hook}: is no program that may be executed"));
    }
    let mut command = Command::new("/bin/sh");
    command.args(["-c", SHELL, "keyleash-hook"]).arg((timeout.as_secs() + WATCHDOG_SECS).to_string()).arg(hook);
    // Nothing that this process was given: a PIN stands in the environment of some.
    command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_else(|| OsString::from(PATH_DEFAULT)));
    command.env("SECRET_ACCOUNT", &told.account).env("SECRET_NAME", &told.name);
    command.env("SECRET_VERSION", told.version.to_string()).env("SECRET_NEXT_VERSION", told.next_version.to_string());
    command.current_dir(Path::new("/")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = Running::begin(command).map_err(|error| format!("{hook}: cannot be started: {error}"))?;
    let (stdin, stdout) = running.streams();
    let (Some(stdin), Some(stdout)) = (stdin, stdout) else { return Err("it has no streams".into()) };
    let io = |error: io::Error| format!("{hook}: its streams: {error}");
    let mut streams = Streams::new(stdin, stdout, input).map_err(io)?;
    let clock = Clock::default();
    let give_up = clock.now().plus(timeout);
    while !running.has_ended().map_err(io)? {
        let moved = streams.step().map_err(io)?;
        if streams.is_too_long() {
            return Err(format!("{hook}: it printed more than {SECRET_BYTES_MAX} bytes"));
        }
        if stop.load(Ordering::SeqCst) {
            return Err(format!("{hook}: it was given up"));
        }
        if clock.now() >= give_up {
            return Err(format!("{hook}: it did not end in {} s, and was killed", timeout.as_secs()));
        }
        if !moved {
            thread::sleep(PAUSE);
        }
    }
    let status = running.end().map_err(io)?;
    if !status.success() {
        return Err(format!("{hook}: {}", said(status)));
    }
    // Whoever could write more is dead.
    while streams.step().map_err(io)? && !streams.is_too_long() {}
    streams.output(hook)
}

/// What goes into a hook and comes out of it; neither waits.
struct Streams<'a> {
    stdin: Option<ChildStdin>,
    left: &'a [u8],
    stdout: ChildStdout,
    /// With room for the byte that is too much.
    read: Zeroizing<Vec<u8>>,
    len: usize,
}

impl<'a> Streams<'a> {
    fn new(stdin: ChildStdin, stdout: ChildStdout, input: &'a SecretValue) -> io::Result<Self> {
        for fd in [stdin.as_fd(), stdout.as_fd()] {
            fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        }
        let read = Zeroizing::new(vec![0; SECRET_BYTES_MAX + 1]);
        Ok(Self { stdin: Some(stdin), left: input.as_bytes(), stdout, read, len: 0 })
    }

    /// Writes and reads what can be; false when there was nothing.
    fn step(&mut self) -> io::Result<bool> {
        let mut moved = false;
        if let Some(stdin) = &mut self.stdin {
            match stdin.write(self.left) {
                Ok(written) => {
                    self.left = self.left.get(written..).unwrap_or_default();
                    moved = written > 0;
                }
                Err(error) if waits(&error) => {}
                // It does not want to read it.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.left = &[],
                Err(error) => return Err(error),
            }
            if self.left.is_empty() {
                self.stdin = None; // the end, to who reads
            }
        }
        match self.stdout.read(self.read.get_mut(self.len..).unwrap_or_default()) {
            Ok(read) => {
                self.len += read;
                Ok(moved || read > 0)
            }
            Err(error) if waits(&error) => Ok(moved),
            Err(error) => Err(error),
        }
    }

    fn is_too_long(&self) -> bool {
        self.len > SECRET_BYTES_MAX
    }

    fn output(mut self, hook: &str) -> Result<SecretValue, String> {
        if self.is_too_long() {
            return Err(format!("{hook}: it printed more than {SECRET_BYTES_MAX} bytes"));
        }
        if self.len == 0 {
            return Err(format!("{hook}: it printed nothing"));
        }
        self.read.truncate(self.len);
        SecretValue::new(std::mem::take(&mut *self.read)).map_err(|error: Error| error.to_string())
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
