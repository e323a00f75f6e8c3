//! This test binary run again as another process, in a role of its own.

use std::{
    path::Path,
    process::{Command, Stdio},
};

const ROLE: &str = "STORE_TEST_ROLE";
const PATH: &str = "STORE_TEST_PATH";

/// A command that runs `role` on `path`, behind the words of `wrapper` (`unshare -m`), and reports on standard output.
pub(crate) fn command(wrapper: &[&str], exe: &Path, role: &str, path: &Path) -> Command {
    let mut words: Vec<_> = wrapper.iter().map(AsRef::as_ref).collect();
    words.push(exe.as_os_str());
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["child::child", "--exact", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env(PATH, path).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

pub(crate) fn this_exe() -> std::path::PathBuf {
    std::env::current_exe().unwrap()
}

/// Not a test by itself: what a child does, chosen by the environment.
#[test]
fn child() {
    let (Ok(role), Some(path)) = (std::env::var(ROLE), std::env::var_os(PATH)) else { return };
    let path = Path::new(&path);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        match role.as_str() {
            "write" => crate::crash::write_forever(path).await,
            "hold" => crate::files::hold(path).await,
            "full" => crate::files::fill_disk(path).await,
            "refused" => crate::files::report_refusal(path).await,
            other => panic!("no role {other}"),
        }
    });
}
