//! What a server wants to be shown, and what it is known by: passwords and certificates, in small files that are read for each connection.

use std::{fs::OpenOptions, io::Read, os::unix::fs::OpenOptionsExt, path::Path};
use zeroize::Zeroizing;

/// Longest password, in bytes.
pub(crate) const PASSWORD_BYTES_MAX: usize = 1024;

/// A small regular file. May block, as files do: not for long.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn read_file(path: &Path, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, String> {
    // Opening a pipe that nobody writes to would take for ever.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| error.to_string())?;
    if !file.metadata().map_err(|error| error.to_string())?.is_file() {
        return Err("it is no regular file".into());
    }
    // Room for a password, so that no copy is left behind by growth.
    let mut bytes = Zeroizing::new(Vec::with_capacity(PASSWORD_BYTES_MAX + 64));
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() > bytes_max { Err(format!("it has more than {bytes_max} bytes")) } else { Ok(bytes) }
}

/// The password that stands there, with a line break behind it or without.
///
/// # Errors
/// What to put there instead, in words.
pub(crate) fn password(bytes: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(bytes).ok().map(|text| text.trim_end_matches(['\r', '\n']));
    let text = text.filter(|text| !text.is_empty() && !text.contains(['\r', '\n', '\0']));
    text.ok_or_else(|| "put the password there and nothing else, as one line of UTF-8".into())
}
