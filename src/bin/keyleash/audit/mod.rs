//! `audit verify`, `extract`, `verify-extract`, `show`, `follow`, `key create`, `key show`.

pub(crate) mod args;
pub(crate) mod follow;
pub(crate) mod key;
mod show;

use crate::{
    exit::Failure,
    out_file::OutFile,
    output::{Output, columns, count, size},
    setup::{Setup, Store},
    streams::Standard,
};
use args::{Audit, Extract, Keys as KeyArgs, Verify, VerifyExtract};
use keyleash::{
    Error,
    access::Operation,
    audit::{self, Asked, Checkpoint, Expected, Keys, NOTE_BYTES_MAX, Note, Report, Request, Shown, Vkey},
    name::AccountId,
    store::{Filter, Key, PAGE_KEYS_MAX, load_checkpoint, record::CheckpointRecord},
};
use serde_json::{Value, json};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// What a trail ends with that is not as it was written: as other bytes that were damaged.
const NOT_WHOLE: u8 = 5;

pub(crate) async fn run(command: Audit, setup: &Setup, output: Output) -> Result<(), Failure> {
    match command {
        Audit::Key(command) => key::run(command, setup, output).await,
        Audit::Verify(args) => {
            let nodes = nodes(&args.nodes, setup)?;
            expect_reader(&args.nodes, setup).await?;
            let stored = match args.nodes.is_empty() {
                true => stored(setup, output).await?,
                false => Vec::new(), // a copy, of any store's
            };
            blocking(move || verify(&args, &nodes, &stored, output)).await
        }
        Audit::Extract(args) => {
            let node = one_node(args.node.as_deref(), setup)?;
            expect_reader(args.node.as_slice(), setup).await?;
            if let Some(out) = &args.output {
                setup.own_files().refuse_to_replace(out)?;
            }
            blocking(move || extract(&args, &node, output)).await
        }
        Audit::VerifyExtract(args) => blocking(move || verify_extract(&args, output)).await,
        Audit::Show(args) => {
            let nodes = nodes(&args.nodes, setup)?;
            expect_reader(&args.nodes, setup).await?;
            blocking(move || show::run(&args, &nodes, output)).await
        }
        Audit::Follow(args) => follow::run(args, setup, output).await,
    }
}

/// The newest checkpoints of all nodes, as the key store has them. None, which is told, where that is not to be had: a running service
/// has an embedded store for itself.
async fn stored(setup: &Setup, output: Output) -> Result<Vec<CheckpointRecord>, Failure> {
    let found = async {
        let store = setup.store(Store::Read).await?;
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = store.list(&Filter::Checkpoints, after.as_ref(), PAGE_KEYS_MAX).await?;
            for key in page.keys {
                let Key::Checkpoint(node) = key else { continue };
                found.extend(load_checkpoint(&*store, &node).await?.map(|(record, _)| record));
            }
            after = page.next;
            if after.is_none() {
                return Ok::<_, Failure>(found);
            }
        }
    };
    match found.await {
        Err(Failure::Engine(Error::Store(why) | Error::NotFound(why))) => {
            output.note(&format!(
                "keyleash: not compared with the key store, which knows the newest checkpoint of each node: {why}"
            ));
            Ok(Vec::new())
        }
        found => found,
    }
}

/// Of the trail that is configured grants say who reads it, where its store is there. A copy of one is read by whoever has its files.
async fn expect_reader(named: &[PathBuf], setup: &Setup) -> Result<(), Failure> {
    match setup.store(Store::Read).await {
        Ok(store) if named.is_empty() => setup.expect_over_all(store, Operation::AuditRead).await,
        _ => Ok(()),
    }
}

async fn blocking(work: impl FnOnce() -> Result<(), Failure> + Send + 'static) -> Result<(), Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::io("reading", io::Error::other(error)))?
}

/// Those that are named, or all that are configured.
fn nodes(named: &[PathBuf], setup: &Setup) -> Result<Vec<PathBuf>, Failure> {
    if !named.is_empty() {
        return Ok(named.to_vec());
    }
    let Some(audit) = setup.audit() else {
        return Err(Failure::Usage(
            "name the directory of a node, or the directory of [audit] in the configuration".into(),
        ));
    };
    let failed = |error| Failure::io(audit.directory.display(), error);
    let mut nodes = Vec::new();
    for entry in fs::read_dir(&audit.directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if is_node(&path) {
            nodes.push(path);
        }
    }
    nodes.sort_unstable();
    match nodes.is_empty() {
        true => Err(Error::NotFound(format!("a trail of any node in {}", audit.directory.display())).into()),
        false => Ok(nodes),
    }
}

/// Where anything of a trail is left; not `lost+found`, nor what a start left that failed.
fn is_node(path: &Path) -> bool {
    let is_of_it = |name: &OsStr| {
        let name = name.to_string_lossy();
        name == "checkpoints" || name == "retained" || name.starts_with("y=")
    };
    fs::read_dir(path)
        .is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|entry| is_of_it(&entry.file_name()))))
}

fn one_node(named: Option<&Path>, setup: &Setup) -> Result<PathBuf, Failure> {
    let named: Vec<_> = named.map(Path::to_owned).into_iter().collect();
    match &nodes(&named, setup)?[..] {
        [node] => Ok(node.clone()),
        nodes => Err(Failure::Usage(format!("there are {} nodes: name the directory of one", nodes.len()))),
    }
}

/// The start of a file that is short.
fn read_short(path: &Path) -> Result<Vec<u8>, Failure> {
    let (file, mut bytes) = (File::open(path).map_err(|error| Failure::input(path, error))?, Vec::new());
    let read = file.take(4 * NOTE_BYTES_MAX as u64).read_to_end(&mut bytes);
    read.map_err(|error| Failure::input(path, error)).map(|_| bytes)
}

/// Keys as they are, and files of keys.
fn keys(args: &KeyArgs) -> Result<Keys, Failure> {
    let mut keys = Keys::new();
    for key in &args.keys {
        if let Some(vkey) = key.to_str().and_then(|key| Vkey::parse(key).ok()) {
            keys = keys.with(vkey);
            continue;
        }
        let bytes = read_short(Path::new(key))?;
        let lines = String::from_utf8_lossy(&bytes);
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            keys = keys.with(Vkey::parse(line)?);
        }
    }
    Ok(keys)
}

fn note(path: &Path) -> Result<Note, Failure> {
    Ok(Note::parse(&read_short(path)?)?)
}

/// Checkpoints in files, which one of the keys signed.
fn checkpoints(paths: &[PathBuf], keys: &Keys) -> Result<Vec<Checkpoint>, Failure> {
    let read = |path: &PathBuf| {
        let note = note(path)?;
        note.verify(keys)?;
        Ok(Checkpoint::of(&note)?)
    };
    paths.iter().map(read).collect()
}

fn account(id: &OsStr) -> Result<AccountId, Failure> {
    Ok(AccountId::from_bytes(id.as_bytes())?)
}

fn verify(args: &Verify, nodes: &[PathBuf], stored: &[CheckpointRecord], output: Output) -> Result<(), Failure> {
    let mut expected = Expected::by(keys(&args.keys)?);
    let mut kept = checkpoints(&args.kept, &expected.keys)?;
    for record in stored {
        let note = Note::parse(record.note.as_bytes())?;
        note.verify(&expected.keys)?;
        kept.push(Checkpoint::of(&note)?);
    }
    let (mut reports, mut lines, mut bad) = (Vec::new(), String::new(), 0);
    for node in nodes {
        let failed = |error| Failure::io(node.display(), error);
        let path = node.canonicalize().map_err(failed)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Each is of one of the nodes.
        let of_node = |kept: &Checkpoint| kept.origin.rsplit('/').next() == Some(&*name);
        (expected.kept, kept) = kept.into_iter().partition(of_node);
        let report = audit::verify(node, &expected)?;
        bad += usize::from(!report.is_whole());
        lines.push_str(&report_lines(node, &report));
        reports.push(report_json(node, &report));
    }
    if let Some(kept) = kept.iter().find(|_| stored.is_empty()) {
        return Err(Failure::Usage(format!("--kept: a checkpoint of {}, which is none of these nodes", kept.origin)));
    }
    for Checkpoint { origin, size, .. } in &kept {
        bad += 1;
        lines.push_str(&format!(
            "trail  {origin}\n  {size} lines of it were signed, and there is nothing of it: its directory was removed\n"
        ));
        reports.push(json!({ "trail": origin, "whole": false, "signed": size, "removed": true }));
    }
    output.result(&json!({ "whole": bad == 0, "nodes": reports }), &lines)?;
    match bad {
        0 => Ok(()),
        _ => Err(Failure::Partial {
            what: format!("{} of {} not as it was written", count(bad as u64, "trail"), nodes.len() + kept.len()),
            code: NOT_WHOLE,
        }),
    }
}

fn report_lines(node: &Path, report: &Report) -> String {
    let newest = report.newest.as_ref();
    let mut rows = vec![
        ("trail", report.origin.clone().unwrap_or_else(|| node.display().to_string())),
        ("lines", format!("{} in {}, {}", report.lines, count(report.files, "file"), size(report.bytes))),
        ("checkpoints", report.checkpoints.to_string()),
        ("covered", newest.map_or_else(|| "none".into(), |newest| format!("the first {}", newest.size))),
        ("behind the newest checkpoint", format!("{}, which no signature covers", count(report.uncovered(), "line"))),
    ];
    if report.retained > 0 {
        rows.push(("removed by retention", format!("the first {}", report.retained)));
    }
    if report.torn > 0 {
        rows.push((
            "torn",
            format!("{} behind the last line, by a crash or just being written", count(report.torn, "byte")),
        ));
    }
    rows.push(("verdict", if report.is_whole() { "as it was written".into() } else { "NOT as it was written".into() }));
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    let mut lines = columns(&rows);
    for fault in &report.faults {
        lines.push_str(&format!("  {fault}\n"));
    }
    if report.more_faults > 0 {
        lines.push_str(&format!("  and {} more\n", report.more_faults));
    }
    lines
}

fn report_json(node: &Path, report: &Report) -> Value {
    let fault = |fault: &audit::Fault| {
        json!({
            "kind": fault.kind.to_string(), "file": fault.place.file, "line": fault.place.line, "what": fault.what,
        })
    };
    json!({
        "directory": node.display().to_string(), "origin": report.origin, "whole": report.is_whole(), "files": report.files,
        "bytes": report.bytes, "lines": report.lines, "retained": report.retained, "checkpoints": report.checkpoints,
        "covered": report.newest.as_ref().map(|newest| newest.size), "uncovered": report.uncovered(), "torn": report.torn,
        "faults": report.faults.iter().map(fault).collect::<Vec<_>>(), "more_faults": report.more_faults,
    })
}

fn extract(args: &Extract, node: &Path, output: Output) -> Result<(), Failure> {
    let mut request = Request::all(account(&args.account)?);
    (request.from, request.to) = (args.span.from, args.span.to);
    request.since = args.since.as_deref().map(note).transpose()?;
    let out = args.output.as_deref().filter(|path| *path != Path::new("-"));
    let out = out.map(|place| OutFile::create(place, args.force)).transpose()?;
    let extracted = match &out {
        Some(out) => {
            let extracted = audit::extract(node, &request, &mut BufWriter::new(out.writer()?))?;
            out.complete()?;
            extracted
        }
        None => {
            // Past the buffer of the standard library.
            let mut whole = Vec::new();
            let extracted = audit::extract(node, &request, &mut whole)?;
            Standard::Output.file()?.write_all(&whole).map_err(Failure::stdout)?;
            extracted
        }
    };
    if let Some((asked, to)) = args.span.to.zip(Some(extracted.to)).filter(|(asked, to)| asked > to) {
        output.note(&format!("keyleash: there is no tally of {asked} yet: it ends at {to}"));
    }
    if let Some(from) = extracted.from.filter(|from| args.span.from.is_some_and(|asked| asked < *from)) {
        output.note(&format!("keyleash: what was before is gone: it begins at {from}"));
    }
    let result = json!({
        "account": request.account.as_str(), "lines": extracted.lines, "groups": extracted.groups,
        "from": extracted.from.map(|from| from.to_string()), "to": extracted.to.to_string(),
    });
    let lines = format!("{} of account {}\n", count(extracted.lines, "line"), request.account);
    match out {
        Some(_) => output.result(&result, &lines),
        None => output.result_beside_data(&result),
    }
}

fn verify_extract(args: &VerifyExtract, output: Output) -> Result<(), Failure> {
    let mut asked = Asked::by(keys(&args.keys)?);
    asked.account = args.account.as_deref().map(account).transpose()?;
    (asked.from, asked.to) = (args.span.from, args.span.to);
    asked.since = checkpoints(&args.since, &asked.keys)?;
    let input = match args.extract.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => File::open(path).map_err(|error| Failure::input(path, error))?,
        None => Standard::Input.file()?,
    };
    let mut lines = Vec::new();
    let shown = audit::verify_extract(&mut BufReader::new(input), &asked, &mut |line| {
        if args.lines {
            lines.push(line.to_owned());
        }
    })?;
    let Shown { origin, account, lines: number, from, to, span, checkpoint, .. } = shown;
    let from = from.map(|from| from.to_string());
    let result = json!({
        "origin": origin, "account": account, "lines": number, "from": from, "to": to.to_string(),
        "first": span.start, "end": span.end,
        "checkpoint": { "size": checkpoint.size, "time": checkpoint.time },
        "shown": args.lines.then(|| lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<Value>>()),
    });
    let rows = [
        ("trail", origin),
        ("account", account),
        ("lines", format!("{number}, and none of this trail was left out")),
        ("from", from.unwrap_or_else(|| "the trail's beginning".into())),
        ("to", to.to_string()),
        ("checkpoint", format!("of {} lines", checkpoint.size)),
    ];
    let mut text = columns(&rows.map(|(name, value)| vec![name.into(), value]));
    for line in &lines {
        text.push_str(line);
        text.push('\n');
    }
    output.result(&result, &text)
}
