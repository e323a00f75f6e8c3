//! The command line on one store, with the token of the tests; for the tests that name this file by its path.

use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A directory in which `keyleash` is run on one store.
pub(crate) struct Shell {
    pub(crate) folder: TempDir,
    store: String,
}

impl Shell {
    pub(crate) fn new(store: &str) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), store: store.to_owned() }
    }

    pub(crate) fn try_run(&self, line: &str) -> Output {
        let mut command = Command::new("bash");
        let keyleash = std::path::Path::new(env!("CARGO_BIN_EXE_keyleash")).parent().unwrap();
        let path = format!("{}:{}", keyleash.display(), std::env::var("PATH").unwrap());
        command.args(["-c", line]).current_dir(self.folder.path()).stdin(Stdio::null()).env("PATH", path);
        command.env("KEYLEASH_STORE", &self.store).env("KEYLEASH_STORE_TLS", "plaintext").output().unwrap()
    }

    /// What it prints, both of it together.
    pub(crate) fn run(&self, line: &str) -> String {
        let run = self.try_run(line);
        let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        assert!(run.status.success(), "$ {line}\n{said}");
        said
    }

    /// What it prints, without what is said beside it: a build with planted faults says at every start that it is one.
    pub(crate) fn prints(&self, line: &str) -> String {
        self.run(&format!("{{ {line}; }} 2>stderr"))
    }

    pub(crate) fn refused(&self, line: &str, status: i32, words: &[&str]) {
        let run = self.try_run(line);
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(status), "$ {line}\n{said}");
        words.iter().for_each(|word| assert!(said.contains(word), "$ {line}\n{said}: nothing of {word:?}"));
    }
}
