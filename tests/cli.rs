//! Runs the transcripts in `tests/cli/` against the real binary and a real token.
//!
//! A transcript reads like a manual page. `$ COMMAND` is run by bash in a fresh directory, where `keyleash` and
//! `with-token` are in the PATH; the lines under it are its standard output and error together, up to an empty line;
//! `? N` behind them is its exit status, 0 if it is not there. `[..]` stands for any characters in a line, `...` for any
//! lines. All else is text.

// Helpers of a test may fail it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

macro_rules! transcripts {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })*

        const ALL: &[&str] = &[$(stringify!($name)),*];
    };
}

transcripts! {
    accounts,
    damaged_files,
    denied_and_unreachable,
    full_disk,
    interrupted,
    keks,
    main_job,
    out_files,
    quickstart,
    rotation,
    settings,
    stores,
    streams,
    token_check,
    tokens,
    usage,
}

#[test]
fn every_transcript_is_run() {
    let mut there: Vec<_> = fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    there.sort();
    assert_eq!(there, ALL);
}

fn directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli"))
}

/// One command of a transcript.
#[derive(Debug, Default)]
struct Step {
    line: usize,
    command: String,
    output: Vec<String>,
    status: i32,
}

fn parse(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut in_output = false;
    for (number, line) in text.lines().enumerate() {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { line: number + 1, command: command.into(), ..Step::default() });
            in_output = true;
        } else if let (true, Some(status)) = (in_output, line.strip_prefix("? ")) {
            steps.last_mut().unwrap().status = status.parse().expect("`? N` has a number");
            in_output = false;
        } else if line.is_empty() {
            in_output = false;
        } else if in_output {
            steps.last_mut().unwrap().output.push(line.into());
        }
    }
    steps
}

fn run(name: &str) {
    for variable in ["KEYLEASH_MODULE", "KEYLEASH_TOKEN_LABEL", "KEYLEASH_PIN_FILE", "SOFTHSM2_CONF"] {
        assert!(env::var_os(variable).is_some(), "{variable} is not set: run `softhsm/with-token cargo test`");
    }
    let text = fs::read_to_string(directory().join(format!("{name}.txt"))).unwrap();
    let sandbox = tempfile::tempdir().unwrap();
    for step in parse(&text) {
        let (output, status) = bash(&step.command, sandbox.path());
        // An empty line would end the expectation.
        let lines: Vec<_> = output.lines().filter(|line| !line.is_empty()).collect();
        let expected: Vec<_> = step.output.iter().map(String::as_str).collect();
        if status != step.status || !lines_match(&expected, &lines) {
            panic!("{name}.txt line {}:\n$ {}\n{output}? {status}\n", step.line, step.command);
        }
    }
}

fn bash(command: &str, directory: &Path) -> (String, i32) {
    let binaries = Path::new(env!("CARGO_BIN_EXE_keyleash")).parent().unwrap();
    let softhsm = concat!(env!("CARGO_MANIFEST_DIR"), "/softhsm");
    let path = format!("{}:{softhsm}:{}", binaries.display(), env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-c", &format!("exec 2>&1; {command}")])
        .current_dir(directory)
        .env("PATH", path)
        .env_remove("KEYLEASH_STORE")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code().unwrap_or(-1))
}

fn lines_match(expected: &[&str], lines: &[&str]) -> bool {
    match expected {
        [] => lines.is_empty(),
        ["...", rest @ ..] => (0..=lines.len()).any(|skip| lines_match(rest, &lines[skip..])),
        [first, rest @ ..] => {
            lines.first().is_some_and(|line| line_matches(first, line)) && lines_match(rest, &lines[1..])
        }
    }
}

fn line_matches(expected: &str, line: &str) -> bool {
    match expected.split_once("[..]") {
        None => expected.trim_end() == line.trim_end(),
        Some((front, rest)) => line.strip_prefix(front).is_some_and(|line| {
            line.char_indices().map(|(at, _)| at).chain([line.len()]).any(|at| line_matches(rest, &line[at..]))
        }),
    }
}

#[test]
fn wildcards_stand_for_any_characters_and_any_lines() {
    assert!(line_matches("a[..]c[..]", "abcd"));
    assert!(line_matches("[..]", ""));
    assert!(!line_matches("a[..]c", "abcd"));
    assert!(lines_match(&["...", "b", "..."], &["a", "b"]));
    assert!(!lines_match(&["a"], &["a", "b"]));
}
