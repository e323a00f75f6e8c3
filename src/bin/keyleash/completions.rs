//! `completions`.

use crate::{args::Cli, exit::Failure, output::Output};
use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::json;

pub(crate) fn run(shell: Shell, output: Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "keyleash", &mut script);
    let script = String::from_utf8_lossy(&script);
    output.result(&json!({ "shell": shell.to_string(), "script": script }), &script)
}
