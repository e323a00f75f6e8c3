//! Runs the transcripts in `tests/cli/` against the real binary and a real token.
//!
//! A transcript reads like a manual page. `$ COMMAND` is run by bash in a fresh directory, where `keyleash` and
//! `with-token` are in the PATH; the lines under it are its standard output and error together, up to an empty line;
//! `? N` behind them is its exit status, 0 if it is not there. `[..]` stands for any characters in a line, `...` for any
//! lines. All else is text.

// Helpers of a test may fail it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::Mechanism,
    object::Attribute,
    session::{Session, UserType},
    types::{AuthPin, Ulong},
};
use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
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
    alerts,
    alerts_kept,
    audit,
    audit_hmac,
    damaged_files,
    damaged_stores,
    denied_and_unreachable,
    full_disk,
    grants,
    interrupted,
    keks,
    kept_token,
    main_job,
    manual_pages,
    monitoring,
    odd_keys,
    out_files,
    quickstart,
    read_only,
    refused_pins,
    rotation,
    rotation_trouble,
    schedule,
    secret_hooks,
    secrets,
    set_up_wrong,
    settings,
    stores,
    streams,
    take_away,
    token_check,
    tokens,
    trail_files,
    trail_full,
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

#[test]
fn the_readme_tells_the_story_as_it_happens() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, story) = readme.split_once("```console\n").expect("the README has a story");
    let (story, _) = story.split_once("```").expect("the story has an end");
    assert_eq!(parse(story).len(), 8, "make, seal, take away, give back");
    run_text("README.md", &story.replace('…', "[..]"));
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
    run_text(&format!("{name}.txt"), &text);
}

/// How often a transcript begins anew.
const INSTANTS_MAX: usize = 3;

/// SoftHSM's token, which all transcripts share, is unreachable for an instant when another process logs in (the manual on modules): a
/// command says so and ends. A transcript that does not expect it begins anew, in a directory of its own.
fn run_text(name: &str, text: &str) {
    for instant in 1.. {
        match try_text(name, text) {
            Err((said, true)) if instant < INSTANTS_MAX => {
                println!("met an instant of SoftHSM's, and begins anew: {said}")
            }
            Err((said, _)) => panic!("{said}"),
            Ok(()) => return,
        }
    }
}

/// What a step said instead of what is expected, and whether that was an instant of SoftHSM's.
fn try_text(name: &str, text: &str) -> Result<(), (String, bool)> {
    let sandbox = tempfile::tempdir().unwrap();
    for step in parse(text) {
        let (output, status) = bash(&step.command, sandbox.path());
        // An empty line would end the expectation.
        let lines: Vec<_> = output.lines().filter(|line| !line.is_empty()).collect();
        let expected: Vec<_> = step.output.iter().map(String::as_str).collect();
        if status != step.status || !lines_match(&expected, &lines) {
            let is_unreachable = |line: &&str| line.contains("unreachable");
            let is_instant = lines.iter().any(is_unreachable) && !expected.iter().any(is_unreachable);
            return Err((format!("{name} line {}:\n$ {}\n{output}? {status}\n", step.line, step.command), is_instant));
        }
    }
    Ok(())
}

fn bash(command: &str, directory: &Path) -> (String, i32) {
    let binaries = Path::new(env!("CARGO_BIN_EXE_keyleash")).parent().unwrap();
    let softhsm = concat!(env!("CARGO_MANIFEST_DIR"), "/softhsm");
    let path = format!("{}:{softhsm}:{}", binaries.display(), env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-c", &format!("exec 2>&1; {command}")])
        .current_dir(directory)
        .env("PATH", path)
        .env("TEST_BINARY", env::current_exe().unwrap())
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

/// How often the text stands in the writable memory of a process.
fn places_in_memory(of: &Child, text: &[u8]) -> usize {
    let process = Path::new("/proc").join(of.id().to_string());
    let maps = fs::read_to_string(process.join("maps")).unwrap();
    let memory = File::open(process.join("mem")).unwrap();
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let writable = maps.lines().filter_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        rest.starts_with("rw").then_some((hex(start)?, hex(end)?))
    });
    let places = |(start, end): (u64, u64)| {
        let mut bytes = vec![0; (end - start) as usize];
        // What cannot be read ([vvar]) holds nothing.
        memory
            .read_exact_at(&mut bytes, start)
            .map_or(0, |()| bytes.windows(text.len()).filter(|at| *at == text).count())
    };
    writable.map(places).sum()
}

/// Runs `keyleash ARGS` with `first` on its standard input, then `rest` in small pieces, and looks until `text` is nowhere
/// in it, while it waits for more.
fn forgets(args: &[&str], directory: &Path, first: &[u8], rest: &[u8], text: &[u8]) -> bool {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyleash"));
    let mut process =
        command.args(args).current_dir(directory).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = process.stdin.take().unwrap();
    input.write_all(first).unwrap();
    for piece in rest.chunks(1000) {
        sleep(Duration::from_millis(1)); // or many would be read as one, over all that was before
        input.write_all(piece).unwrap();
    }
    let forgotten = (0..50).any(|_| {
        sleep(Duration::from_millis(100));
        places_in_memory(&process, text) == 0
    });
    drop(input);
    process.wait().unwrap();
    forgotten
}

/// Makes keys as other tools do, for transcripts: `"$TEST_BINARY" --exact makes_keys --ignored`, with a key on each line of
/// KEYLEASH_TEST_KEYS: its label, its CKA_ID in hex (`-` for none), that of its public half if it is RSA, and what differs from a
/// sound KEK; with `hmac` one that makes HMACs, as of a token without signatures. `set ID encrypt=false` changes one that is there.
#[test]
#[ignore = "transcripts call it"]
fn makes_keys() {
    let Ok(keys) = env::var("KEYLEASH_TEST_KEYS") else { return };
    let pkcs11 = Pkcs11::new(env::var("KEYLEASH_MODULE").unwrap()).unwrap();
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let slot = pkcs11.get_slots_with_initialized_token().unwrap()[0];
    let session = pkcs11.open_rw_session(slot).unwrap();
    let pin = fs::read_to_string(env::var("KEYLEASH_PIN_FILE").unwrap()).unwrap();
    session.login(UserType::User, Some(&AuthPin::from(pin.trim()))).unwrap();
    for key in keys.lines().filter(|line| !line.trim().is_empty()) {
        make_key(&session, &key.split_whitespace().collect::<Vec<_>>());
    }
}

fn flag(name: &str, value: bool) -> Attribute {
    match name {
        "private" => Attribute::Private(value),
        "sensitive" => Attribute::Sensitive(value),
        "extractable" => Attribute::Extractable(value),
        "encrypt" => Attribute::Encrypt(value),
        "decrypt" => Attribute::Decrypt(value),
        "wrap" => Attribute::Wrap(value),
        "unwrap" => Attribute::Unwrap(value),
        "sign" => Attribute::Sign(value),
        "derive" => Attribute::Derive(value),
        "modifiable" => Attribute::Modifiable(value),
        other => panic!("{other}"),
    }
}

fn make_key(session: &Session, words: &[&str]) {
    let of = |id: &str| hex::decode(id.trim_start_matches('-')).unwrap();
    if let ["set", id, change] = words {
        let (name, value) = change.split_once('=').unwrap();
        let attribute = [flag(name, value == "true")];
        session.update_attributes(session.find_objects(&[Attribute::Id(of(id))]).unwrap()[0], &attribute).unwrap();
        return;
    }
    if let [label, id, "hmac"] = words {
        let mut key = vec![Attribute::Token(true), Attribute::Label((*label).into()), Attribute::Id(of(id))];
        let flags = ["private", "sensitive", "sign"].map(|on| (on, true)).into_iter().chain([("extractable", false)]);
        key.extend(flags.map(|(name, value)| flag(name, value)));
        key.push(Attribute::ValueLen(Ulong::new(32)));
        session.generate_key(&Mechanism::GenericSecretKeyGen, &key).unwrap();
        return;
    }
    let (mut template, mut public) = (BTreeMap::new(), None);
    let flags = ["sensitive", "encrypt", "decrypt"].map(|on| (on, true));
    template
        .extend(flags.into_iter().chain(["extractable", "wrap", "unwrap", "sign", "derive"].map(|off| (off, false))));
    template.insert("private", true);
    for word in &words[2..] {
        match word.split_once('=') {
            Some(("public", id)) => public = Some(of(id)),
            Some((name, value)) => drop(template.insert(name, value == "true")),
            None => panic!("{word}"),
        }
    }
    let named = |id: Vec<u8>| vec![Attribute::Token(true), Attribute::Label(words[0].into()), Attribute::Id(id)];
    let is_public = |name: &&str| ["encrypt", "wrap"].contains(name);
    let mut key = named(of(words[1]));
    match public {
        None => {
            key.extend(template.iter().map(|(name, value)| flag(name, *value)));
            key.push(Attribute::ValueLen(Ulong::new(32)));
            session.generate_key(&Mechanism::AesKeyGen, &key).unwrap();
        }
        Some(id) => {
            let mut half = named(id);
            half.extend(template.iter().filter(|(name, _)| is_public(name)).map(|(name, value)| flag(name, *value)));
            half.extend([Attribute::ModulusBits(Ulong::new(3072)), Attribute::PublicExponent(vec![1, 0, 1])]);
            key.extend(template.iter().filter(|(name, _)| !is_public(name)).map(|(name, value)| flag(name, *value)));
            session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &half, &key).unwrap();
        }
    }
}

#[test]
fn plaintext_that_was_sealed_or_opened_is_nowhere_in_the_process() {
    const BLOCK_BYTES: usize = 64 * 1024;
    let sandbox = tempfile::tempdir().unwrap();
    let directory = sandbox.path();
    let (made, status) = bash("keyleash kek create memory && keyleash account create alice --kek memory", directory);
    assert_eq!(status, 0, "{made}");

    let text = b"plain, secret text";
    let secret = text.repeat(BLOCK_BYTES / text.len() + 1);
    let plain = [&secret[..BLOCK_BYTES], &[0; 3 * BLOCK_BYTES]].concat();
    let (first, rest) = plain.split_at(BLOCK_BYTES);
    assert!(forgets(&["seal", "--account", "alice", "-o", "sealed"], directory, first, rest, text), "after sealing");

    let sealed = fs::read(directory.join("sealed")).unwrap();
    // Neither all of it, lest the process ends, nor so little that the second block is not opened yet.
    let (first, rest) = sealed[..3 * BLOCK_BYTES].split_at(BLOCK_BYTES);
    assert!(forgets(&["open", "-o", "opened"], directory, first, rest, text), "after opening");
}

#[test]
fn wildcards_stand_for_any_characters_and_any_lines() {
    assert!(line_matches("a[..]c[..]", "abcd"));
    assert!(line_matches("[..]", ""));
    assert!(!line_matches("a[..]c", "abcd"));
    assert!(lines_match(&["...", "b", "..."], &["a", "b"]));
    assert!(!lines_match(&["a"], &["a", "b"]));
}
