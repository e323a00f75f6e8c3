//! `audit verify`, `extract`, `verify-extract`, `show`, `follow`, `key create`, `key show`.

pub(crate) mod args;
mod extract;
pub(crate) mod follow;
pub(crate) mod key;
mod show;

use crate::{
    exit::Failure,
    output::{Output, columns, count, size},
    setup::{Setup, Store},
};
use args::{Audit, Verify};
use keyleash::{
    Error,
    access::Operation,
    audit::{self, Checkpoint, Expected, Keys, NOTE_BYTES_MAX, Note, Report},
    name::AccountId,
    store::{Filter, Key, PAGE_KEYS_MAX, load_checkpoint, record::CheckpointRecord},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// What a trail ends with that is not as it was written: as other bytes that were damaged.
const NOT_WHOLE: u8 = 5;

pub(crate) async fn run(command: Audit, setup: &Setup, output: Output) -> Result<(), Failure> {
    match command {
        Audit::Key(command) => key::run(command, setup, output).await,
        Audit::Verify(args) => {
            expect_reader(&args.nodes, setup).await?;
            // First, so that of each the directory is there already.
            let stored = match args.nodes.is_empty() {
                true => stored(setup, output).await?,
                false => Vec::new(), // a copy, of any store's
            };
            let nodes = nodes(&args.nodes, setup)?;
            let keys = key::trusted(&args.keys, setup, output).await?;
            blocking(move || verify(&args, keys, &nodes, &stored, output)).await
        }
        Audit::Extract(args) => {
            expect_reader(&args.dirs, setup).await?;
            if let Some(out) = &args.output {
                setup.own_files().refuse_to_replace(out)?;
            }
            let stored = match args.dirs.is_empty() && args.nodes.is_empty() {
                true => stored(setup, output).await?,
                false => Vec::new(),
            };
            let nodes = extract::nodes(nodes(&args.dirs, setup)?, &args.nodes)?;
            extract::tell_removed(&nodes, &stored, output);
            blocking(move || extract::run(&args, &nodes, output)).await
        }
        Audit::VerifyExtract(args) => {
            let keys = key::trusted(&args.keys, setup, output).await?;
            blocking(move || extract::verify(&args, keys, output)).await
        }
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
        let mut all = Vec::new();
        for dir in named {
            // One that is no node's may be that of nodes.
            match if is_node(dir) { Vec::new() } else { below(dir).unwrap_or_default() } {
                nodes if nodes.is_empty() => all.push(dir.clone()),
                nodes => all.extend(nodes),
            }
        }
        return Ok(all);
    }
    let Some(audit) = setup.audit() else {
        return Err(Failure::Usage(
            "name the directory of a node, or the directory of [audit] in the configuration".into(),
        ));
    };
    match below(&audit.directory).map_err(|error| Failure::io(audit.directory.display(), error))? {
        nodes if nodes.is_empty() => {
            Err(Error::NotFound(format!("a trail of any node in {}", audit.directory.display())).into())
        }
        nodes => Ok(nodes),
    }
}

/// The nodes below a directory, by name.
fn below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut nodes = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if is_node(&path) {
            nodes.push(path);
        }
    }
    nodes.sort_unstable();
    Ok(nodes)
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

/// The start of a file that is short.
fn read_short(path: &Path) -> Result<Vec<u8>, Failure> {
    let (file, mut bytes) = (File::open(path).map_err(|error| Failure::input(path, error))?, Vec::new());
    let read = file.take(4 * NOTE_BYTES_MAX as u64).read_to_end(&mut bytes);
    read.map_err(|error| Failure::input(path, error)).map(|_| bytes)
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

fn verify(
    args: &Verify,
    keys: Keys,
    nodes: &[PathBuf],
    stored: &[CheckpointRecord],
    output: Output,
) -> Result<(), Failure> {
    let mut expected = Expected::by(keys);
    let mut kept = checkpoints(&args.kept, &expected.keys)?;
    for record in stored {
        let note = Note::parse(record.note.as_bytes())?;
        note.verify(&expected.keys)?;
        kept.push(Checkpoint::of(&note)?);
    }
    let (mut reports, mut lines, mut bad) = (Vec::new(), String::new(), 0);
    let (mut used, mut none) = (BTreeSet::new(), None);
    for node in nodes {
        let failed = |error| Failure::io(node.display(), error);
        let path = node.canonicalize().map_err(failed)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Each is of one of the nodes, of which several copies may be named.
        let of_node = |kept: &&Checkpoint| kept.origin.rsplit('/').next() == Some(&*name);
        expected.kept = kept.iter().filter(of_node).cloned().collect();
        used.extend(expected.kept.iter().map(|kept| kept.origin.clone()));
        let report = match audit::verify(node, &expected) {
            // As a start left it that wrote nothing: it says nothing of the others.
            Err(error @ Error::NotFound(_)) if nodes.len() > 1 => {
                output.note(&format!("keyleash: {error}"));
                none.get_or_insert(error);
                continue;
            }
            report => report?,
        };
        bad += usize::from(!report.is_whole());
        lines.push_str(&report_lines(node, &report));
        reports.push(report_json(node, &report));
    }
    kept.retain(|kept| !used.contains(&kept.origin));
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
    if let Some(error) = none.filter(|_| reports.is_empty()) {
        return Err(error.into());
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
    if report.leftover > 0 {
        rows.push(("left over", format!("{} that retention was about to remove", count(report.leftover, "line"))));
    }
    if report.kept_before > 0 {
        let kept = count(report.kept_before, "checkpoint");
        rows.push(("not compared", format!("{kept} kept elsewhere, of lines that retention removed")));
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
        "bytes": report.bytes, "lines": report.lines, "retained": report.retained, "leftover": report.leftover,
        "kept_before": report.kept_before, "checkpoints": report.checkpoints,
        "covered": report.newest.as_ref().map(|newest| newest.size), "uncovered": report.uncovered(), "torn": report.torn,
        "faults": report.faults.iter().map(fault).collect::<Vec<_>>(), "more_faults": report.more_faults,
    })
}
