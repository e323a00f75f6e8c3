//! What a connection needs of files and the environment.

use crate::config::store::PasswordSource;
use std::{fs::OpenOptions, io::Read as _, os::unix::fs::OpenOptionsExt as _, path::Path};

/// Longest password, in bytes.
const PASSWORD_BYTES_MAX: u64 = 1024;
/// Longest certificate or key, in bytes.
const PEM_BYTES_MAX: u64 = 64 * 1024;

/// Certificates, or a key.
pub(super) fn read_pem(setting: &str, path: &Path) -> Result<Vec<u8>, String> {
    read_file(path, PEM_BYTES_MAX).map_err(|why| format!("{setting} {}: {why}", path.display()))
}

/// The password, or what is wrong.
pub(super) fn read_password(source: &PasswordSource) -> Result<String, String> {
    let (named, bytes) = match source {
        PasswordSource::File(path) => {
            let named = format!("store.password_file {}", path.display());
            let bytes = read_file(path, PASSWORD_BYTES_MAX).map_err(|why| format!("{named}: {why}"))?;
            (named, bytes)
        }
        PasswordSource::Env(name) => {
            let named = format!("store.password_env {name}");
            let value = std::env::var_os(name).ok_or_else(|| format!("{named}: it is not set"))?;
            (named, value.into_encoded_bytes())
        }
    };
    let text = String::from_utf8(bytes).ok().map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
    let text = text.filter(|text| !text.is_empty() && !text.contains(['\r', '\n', '\0']));
    text.ok_or_else(|| format!("{named}: put the password there and nothing else, as one line of UTF-8"))
}

/// A small regular file.
fn read_file(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    // What is no file may keep whoever opens it waiting.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| error.to_string())?;
    if !file.metadata().map_err(|error| error.to_string())?.is_file() {
        return Err("it is no regular file".into());
    }
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > bytes_max { Err(format!("it is longer than {bytes_max} bytes")) } else { Ok(bytes) }
}
