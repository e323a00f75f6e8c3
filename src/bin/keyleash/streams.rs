//! The standard streams as they are, not as Rust's standard library has them.
//!
//! That library opens /dev/null in the place of a standard stream that is closed, before `main`, and its handles take a stream that
//! cannot be written (it is open for reading alone) for one that takes everything. Both are a result that went nowhere, and success. So
//! what was closed is looked up before that, and what is read and written here is the descriptor itself: /dev/null that somebody
//! asked for is as good as any other stream, whoever opened it and however.

use crate::exit::Failure;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

/// What every store begins with: it is a file of redb.
const STORE_MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";

/// What a command needs of the standard streams. Asked before it does anything: what it did could not be told afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standard {
    Input,
    Output,
    Error,
}

impl Standard {
    const fn number(self) -> u8 {
        match self {
            Self::Input => 0,
            Self::Output => 1,
            Self::Error => 2,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Input => "standard input",
            Self::Output => "standard output",
            Self::Error => "standard error",
        }
    }

    /// Fails where this process was started without it.
    pub(crate) fn expect(self) -> Result<(), Failure> {
        if !closed::at_start(self.number()) {
            return Ok(());
        }
        let remedy = match self {
            Self::Input => "name a file, or redirect it (`< /dev/null` to read nothing)",
            Self::Output | Self::Error => "redirect it (`/dev/null` throws away what is written)",
        };
        Err(Failure::io(self.name(), io::Error::new(io::ErrorKind::NotConnected, format!("it is closed: {remedy}"))))
    }

    /// Whether it goes behind the end of a store, any store, which opens no more then: whatever is to be said must not be said there.
    pub(crate) fn is_store(self) -> bool {
        let Ok(stream) = self.file() else { return false };
        if !stream.metadata().is_ok_and(|stream| stream.is_file()) {
            return false;
        }
        let mut begin = [0; STORE_MAGIC.len()];
        // By a descriptor of its own: this one may be open for writing alone.
        let read =
            File::open(format!("/dev/fd/{}", stream.as_raw_fd())).and_then(|mut file| file.read_exact(&mut begin));
        read.is_ok() && begin == STORE_MAGIC
    }

    /// Whether the other end of a pipe or socket was closed.
    pub(crate) fn reader_is_gone(self) -> bool {
        let Ok(stream) = self.file() else { return true };
        let mut asked = [PollFd::new(&stream, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut asked, Some(&now)).is_ok()
            && asked.iter().any(|found| found.revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL))
    }

    /// The stream, without the buffer that the standard library puts before it.
    pub(crate) fn file(self) -> Result<File, Failure> {
        self.expect()?;
        // The handles give the descriptor alone, which nobody has closed since `main` began.
        #[allow(clippy::disallowed_methods)]
        let descriptor = match self {
            Self::Input => io::stdin().as_fd().try_clone_to_owned(),
            Self::Output => io::stdout().as_fd().try_clone_to_owned(),
            Self::Error => io::stderr().as_fd().try_clone_to_owned(),
        };
        descriptor.map(File::from).map_err(|error| Failure::io(self.name(), error))
    }
}

/// Whether the two are of one file.
pub(crate) fn is_same_file(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Refuses to write to the end, or the beginning, of what is read: the one never comes to an end, the other destroys what was to be
/// read next. A terminal and a socket are two streams under one name.
pub(crate) fn refuse_onto_itself(input: &Metadata, source: &str, output: &Metadata) -> Result<(), Failure> {
    let kind = input.file_type();
    let is_one = match () {
        () if kind.is_file() || kind.is_fifo() => is_same_file(input, output),
        () if kind.is_block_device() => output.file_type().is_block_device() && input.rdev() == output.rdev(),
        () => false,
    };
    if !is_one {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "{source} is also what standard output writes to: write to another file; `-o OUT --force` replaces a file, this one too, when \
         OUT is complete"
    )))
}

/// Files without which nothing that was sealed is ever opened again.
#[derive(Debug, Clone)]
pub(crate) struct OwnFiles {
    /// `None` where it is in no file.
    pub(crate) store: Option<PathBuf>,
    pub(crate) pins: Vec<PathBuf>,
}

impl OwnFiles {
    /// Refuses the key store for IN or OUT: what would be written there destroys it, with all that was ever sealed; and a copy of it that
    /// is sealed with itself is one that nobody can open when it is needed.
    pub(crate) fn refuse_store(&self, stream: &Metadata, name: &str) -> Result<(), Failure> {
        if !self.store.as_ref().is_some_and(|store| is_at(store, stream)) {
            return Ok(());
        }
        Err(Failure::Usage(format!(
            "{name} is the key store: neither is it replaced by a file, nor sealed with itself; `keyleash store snapshot FILE` copies it"
        )))
    }

    /// Refuses what OUT must not take the place of: the key store, and the file of a PIN, which may stand nowhere else.
    pub(crate) fn refuse_to_replace(&self, place: &Path) -> Result<(), Failure> {
        let Ok(there) = fs::metadata(place) else { return Ok(()) };
        self.refuse_store(&there, &place.display().to_string())?;
        if !self.pins.iter().any(|pin| is_at(pin, &there)) {
            return Ok(());
        }
        Err(Failure::Usage(format!(
            "{}: a PIN of a token stands there, and is not replaced: name another file",
            place.display()
        )))
    }
}

fn is_at(path: &Path, stream: &Metadata) -> bool {
    stream.is_file() && fs::metadata(path).is_ok_and(|there| is_same_file(&there, stream))
}

/// Which descriptors were closed before the standard library opened them. One look, in the only place of the command line with
/// unsafe code: safe code runs after that library, and finds a /dev/null that looks like anybody's.
mod closed {
    #![allow(unsafe_code)]

    use std::{
        ffi::c_int,
        sync::atomic::{AtomicU8, Ordering},
    };

    /// POSIX's name for this number on every system.
    const F_GETFD: c_int = 1;

    /// A bit for each.
    static CLOSED: AtomicU8 = AtomicU8::new(0);

    // SAFETY: the section holds pointers to functions `extern "C"` that the loader calls one after the other before `main`, on the only
    // thread, and this static is one. The function uses nothing that the standard library sets up: a system call and an atomic.
    #[used]
    #[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
    #[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
    static LOOK: extern "C" fn() = look;

    unsafe extern "C" {
        fn fcntl(descriptor: c_int, command: c_int, ...) -> c_int;
    }

    extern "C" fn look() {
        for number in 0..3 {
            // SAFETY: fcntl takes any number for a descriptor, and F_GETFD takes no further argument. It fails for one that is closed, and
            // for nothing else.
            if unsafe { fcntl(number, F_GETFD) } == -1 {
                CLOSED.fetch_or(1 << number, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn at_start(number: u8) -> bool {
        CLOSED.load(Ordering::Relaxed) & 1 << number != 0
    }
}
