//! The file beside the store that keeps word of PINs that a token refused, from one command to the next.

use keyleash::token::pkcs11::{REFUSAL_NOTES_BYTES_MAX, RefusalNotes};
use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process,
};

/// Behind the store's name.
const SUFFIX: &str = ".refused-pins";
const MODE: u32 = 0o600;
const HEADING: &str = "\
# PINs that a token refused, so that no later command sends one again and locks the token. No PIN stands here, but a
# salted hash of each. It goes when the token takes a PIN. Remove it to have a refused one tried once more.
";

#[derive(Debug)]
pub(crate) struct RefusedPins(PathBuf);

impl RefusedPins {
    pub(crate) fn beside(store: &Path) -> Self {
        let mut name = OsString::from(store);
        name.push(SUFFIX);
        Self(name.into())
    }

    fn keep(&self, notes: &str) -> io::Result<()> {
        if notes.is_empty() {
            return match fs::remove_file(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            };
        }
        let mut making = self.0.clone().into_os_string();
        making.push(format!(".{}", process::id()));
        let making = PathBuf::from(making);
        let _ = fs::remove_file(&making); // of a process of this number that was killed
        let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&making)?;
        let kept = file
            .write_all(format!("{HEADING}{notes}").as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&making, &self.0));
        if kept.is_err() {
            let _ = fs::remove_file(&making);
        }
        kept
    }
}

impl RefusalNotes for RefusedPins {
    fn read(&self) -> String {
        let mut notes = String::new();
        let read =
            File::open(&self.0).and_then(|file| file.take(REFUSAL_NOTES_BYTES_MAX as u64).read_to_string(&mut notes));
        match read {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file = %self.0.display(), %error, "which PINs were refused before cannot be read");
                String::new()
            }
            _ => notes,
        }
    }

    fn write(&self, notes: &str) {
        if let Err(error) = self.keep(notes) {
            let what = "that a PIN was refused cannot be noted, and the next command may send it again";
            tracing::warn!(file = %self.0.display(), %error, "{what}");
        }
    }

    fn place(&self) -> String {
        self.0.display().to_string()
    }
}
