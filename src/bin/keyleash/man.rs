//! `man`: a page for each command, from what `--help` says.

use crate::{
    args::Cli,
    exit::Failure,
    output::{Output, count},
};
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use serde_json::json;
use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

pub(crate) fn run(directory: &Path, output: Output) -> Result<(), Failure> {
    let mut written = Vec::new();
    let mut command = Cli::command();
    command.build();
    write(&command, "keyleash", directory, &mut written)?;
    let line = format!("{} written to {}\n", count(written.len() as u64, "page"), directory.display());
    output.result(&json!({ "directory": directory.display().to_string(), "pages": written }), &line)
}

/// The page of a command, and those of the commands below it.
fn write(command: &Command, name: &str, directory: &Path, written: &mut Vec<String>) -> Result<(), Failure> {
    let page = format!("{name}.1");
    let mut text = Vec::new();
    let failed = |error| Failure::io(directory.join(&page).display(), error);
    Man::new(command.clone().display_name(name)).title(name).render(&mut text).map_err(failed)?;
    let place = directory.join(&page);
    // Half a page is none.
    let written_whole = |mut file: File| file.write_all(&text).inspect_err(|_| drop(fs::remove_file(&place)));
    File::create(&place).and_then(written_whole).map_err(failed)?;
    written.push(page);
    let shown = |below: &&Command| !below.is_hide_set() && below.get_name() != "help";
    for below in command.get_subcommands().filter(shown) {
        write(below, &format!("{name}-{}", below.get_name()), directory, written)?;
    }
    Ok(())
}
