//! The real binary in a directory of its own, over with-token's token.

use serde_json::Value;
use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

pub(crate) struct Shop {
    pub(crate) directory: tempfile::TempDir,
    /// Of this test alone: all share one token.
    pub(crate) kek: String,
}

impl Shop {
    pub(crate) fn new(name: &str) -> Self {
        assert!(std::env::var_os("KEYLEASH_MODULE").is_some(), "no token: run `softhsm/with-token cargo test`");
        let shop = Self { directory: tempfile::tempdir().unwrap(), kek: format!("{name}-{}", std::process::id()) };
        crate::ground::configure(shop.directory.path());
        shop.run(&["kek", "create", &shop.kek]);
        shop
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyleash"));
        command.args(arguments).current_dir(self.directory.path()).env_remove("KEYLEASH_STORE").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed, and gives its standard output.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// The accounts that are listed, all or those under one KEK version.
    pub(crate) fn accounts(&self, kek: Option<u64>) -> Vec<String> {
        let version = kek.map(|version| format!("{}/{version}", self.kek));
        let filter = version.as_ref().map_or_else(Vec::new, |version| vec!["--kek", version.as_str()]);
        let listed = self.run(&[&["account", "list"], &filter[..]].concat());
        listed.lines().map(str::to_owned).collect()
    }

    pub(crate) fn current_kek(&self) -> u64 {
        self.json(&["kek", "show", &self.kek])["current"].as_u64().unwrap()
    }

    /// Seals a file of an account's own; [`Shop::assert_opens`] finds it again.
    pub(crate) fn seal(&self, account: &str, number: u32) {
        let (plain, sealed) = (self.path(&format!("{account}-{number}.plain")), format!("{account}-{number}.sealed"));
        std::fs::write(&plain, format!("file {number} of {account}\n").repeat(100)).unwrap();
        self.run(&["seal", "--account", account, plain.to_str().unwrap(), "-o", &sealed]);
    }

    pub(crate) fn assert_opens(&self, account: &str, number: u32) {
        let opened = self.run(&["open", &format!("{account}-{number}.sealed")]);
        assert_eq!(opened, read(&self.path(&format!("{account}-{number}.plain"))));
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
