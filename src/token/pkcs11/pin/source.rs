//! Where the PIN comes from: read anew before each login, and never the command line.

use super::super::fault;
use crate::{secret::Pin, token::TokenError};
use std::{
    fmt,
    io::Read,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::PathBuf,
    sync::Arc,
};
use zeroize::{Zeroize, Zeroizing};

/// What a [`PinSource::Callback`] is: gives the PIN's bytes, or says in words why it cannot. Called on a worker thread, before
/// each login; what it returns is wiped. A call that never returns costs a worker.
pub type PinCallback = dyn Fn() -> Result<Vec<u8>, String> + Send + Sync;

/// Where the PIN comes from. Never the command line.
#[derive(Clone)]
#[non_exhaustive]
pub enum PinSource {
    /// A regular file with the PIN alone, 1 to 255 bytes; one line end behind it is not part of it. A warning is logged when
    /// others may read it.
    File(PathBuf),
    /// The environment variable of this name, whose value is read as a file's content is. A file is better: the environment is
    /// inherited and shows in /proc.
    Env(String),
    /// A function of the program's own.
    Callback(Arc<PinCallback>),
}

impl fmt::Debug for PinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinSource({self})")
    }
}

impl fmt::Display for PinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "PIN file {}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Callback(_) => f.write_str("PIN callback"),
        }
    }
}

impl PinSource {
    /// Reads the PIN. May block: not for tokio's threads.
    pub(in super::super) fn read(&self) -> Result<Pin, TokenError> {
        let refused = |what: String, remedy: &str| fault::misconfigured("read PIN", format!("{self}: {what}"), remedy);
        let mut bytes = match self {
            Self::File(path) => {
                // Opening a pipe that nobody writes to would take for ever.
                let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
                let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
                let file = file.map_err(|error| {
                    refused(error.to_string(), "write the PIN to the file, readable by this user alone")
                })?;
                let regular = "name a regular file that holds the PIN alone: it is read again for each login";
                let metadata = file.metadata().map_err(|error| refused(error.to_string(), regular))?;
                if !metadata.is_file() {
                    return Err(refused("is no regular file".into(), regular));
                }
                if metadata.permissions().mode() & 0o044 != 0 {
                    tracing::warn!(file = %path.display(), "others may read the PIN file: chmod 600 it");
                }
                // Room for all that is read, so that no copy is left behind by growth.
                let mut bytes = Zeroizing::new(Vec::with_capacity(Pin::BYTES_MAX + 64));
                let limit = Pin::BYTES_MAX as u64 + 3;
                file.take(limit).read_to_end(&mut bytes).map_err(|error| refused(error.to_string(), regular))?;
                bytes
            }
            Self::Env(name) => {
                use std::os::unix::ffi::OsStringExt;
                let value = std::env::var_os(name).map(OsStringExt::into_vec);
                Zeroizing::new(value.ok_or_else(|| refused("is not set".into(), "set it, or use a PIN file"))?)
            }
            Self::Callback(callback) => {
                Zeroizing::new(callback().map_err(|why| refused(why, "see to what the callback asks"))?)
            }
        };
        // What a program gives is the PIN as it is.
        if !matches!(self, Self::Callback(_)) {
            if bytes.last() == Some(&b'\n') {
                bytes.pop();
            }
            // Written on Windows; a shell's `$(cat FILE)` takes the half of that line end away. A PIN that ends so would have to be
            // given some other way.
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
            if bytes.contains(&b'\n') {
                return Err(refused("has several lines".into(), "put the token's PIN there and nothing else"));
            }
        }
        let len = bytes.len();
        match len {
            0 => Err(refused("is empty".into(), "put the token's PIN there: 1 to 255 bytes")),
            1..=Pin::BYTES_MAX => {
                Ok(Pin::take_from(&mut bytes).map_err(|error| fault::fatal("read PIN", error.to_string()))?)
            }
            _ => {
                bytes.zeroize();
                Err(refused(
                    format!("has more than {} bytes", Pin::BYTES_MAX),
                    "put the token's PIN there and nothing else: 1 to 255 bytes",
                ))
            }
        }
    }
}
