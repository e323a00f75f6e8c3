//! What a connection needs of files and the environment.

use crate::{
    config::store::PasswordSource,
    secret::credential::{self, PASSWORD_BYTES_MAX, read_file},
};
use std::{os::unix::ffi::OsStringExt, path::Path};
use zeroize::Zeroizing;

/// Longest certificate or key, in bytes.
const PEM_BYTES_MAX: usize = 64 * 1024;

/// Certificates, or a key.
pub(in crate::store) fn read_pem(setting: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    read_file(path, PEM_BYTES_MAX).map_err(|why| format!("{setting} {}: {why}", path.display()))
}

/// The password, or what is wrong.
pub(in crate::store) fn read_password(source: &PasswordSource) -> Result<String, String> {
    let (named, bytes) = match source {
        PasswordSource::File(path) => {
            (format!("store.password_file {}", path.display()), read_file(path, PASSWORD_BYTES_MAX))
        }
        PasswordSource::Env(name) => {
            let value = std::env::var_os(name).map(|value| Zeroizing::new(value.into_vec()));
            (format!("store.password_env {name}"), value.ok_or_else(|| "it is not set".into()))
        }
    };
    let named = |why: String| format!("{named}: {why}");
    let bytes = bytes.map_err(named)?;
    credential::password(&bytes).map(str::to_owned).map_err(named)
}
