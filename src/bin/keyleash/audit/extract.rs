//! `audit extract` and `audit verify-extract`.

use super::{
    account,
    args::{Extract, VerifyExtract},
    checkpoints, note,
};
use crate::{
    exit::Failure,
    out_file::OutFile,
    output::{Output, columns, count},
    streams::Standard,
};
use keyleash::{
    Error,
    audit::{self, Asked, Checkpoint, Extracted, Keys, Note, Request, Shown},
    name::NodeName,
    store::record::CheckpointRecord,
};
use serde_json::{Value, json};
use std::{
    ffi::OsString,
    fs::File,
    io::{BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

/// What a node is called.
fn name_of(node: &Path) -> Result<NodeName, Failure> {
    let node = node.canonicalize().map_err(|error| Failure::input(node, error))?;
    Ok(NodeName::new(node.file_name().unwrap_or_default().to_string_lossy())?)
}

fn names(of: &[OsString]) -> Result<Vec<NodeName>, Failure> {
    of.iter().map(|name| Ok(NodeName::new(name.to_string_lossy())?)).collect()
}

/// The nodes that are shown, each with its directory: all, or those of these names.
pub(super) fn nodes(there: Vec<PathBuf>, named: &[OsString]) -> Result<Vec<(NodeName, PathBuf)>, Failure> {
    let (named, mut nodes) = (names(named)?, Vec::<(NodeName, PathBuf)>::new());
    for path in there {
        let name = name_of(&path)?;
        if let Some((_, other)) = nodes.iter().find(|(other, _)| *other == name) {
            return Err(Failure::Usage(format!(
                "{} and {} are both of node {name}: name one of them",
                other.display(),
                path.display()
            )));
        }
        nodes.push((name, path));
    }
    if let Some(missing) = named.iter().find(|name| !nodes.iter().any(|(there, _)| there == *name)) {
        return Err(Error::NotFound(format!("a trail of node {missing}")).into());
    }
    nodes.retain(|(name, _)| named.is_empty() || named.contains(name));
    Ok(nodes)
}

/// Tells of nodes that the key store knows, and of which nothing is there.
pub(super) fn tell_removed(nodes: &[(NodeName, PathBuf)], stored: &[CheckpointRecord], output: Output) {
    for record in stored.iter().filter(|record| !nodes.iter().any(|(name, _)| *name == record.node)) {
        output.note(&format!(
            "keyleash: node {} is not in it: the key store knows its trail, and its directory is not there",
            record.node
        ));
    }
}

/// What came of a node.
type Outcome = (NodeName, Extracted);

/// Writes the parts of all nodes. Those that have none yet are told.
fn write(
    nodes: &[(NodeName, PathBuf)],
    requests: &[Request],
    is_named: bool,
    out: &mut dyn Write,
    output: Output,
) -> Result<(Vec<Outcome>, Vec<String>), Failure> {
    let (mut outcomes, mut missing, mut first) = (Vec::new(), Vec::new(), None);
    for ((name, path), request) in nodes.iter().zip(requests) {
        match audit::extract(path, request, out) {
            Ok(extracted) => outcomes.push((name.clone(), extracted)),
            Err(error @ Error::NotFound(_)) if !is_named => {
                output.note(&format!("keyleash: node {name} is not in it: {error}"));
                missing.push(name.to_string());
                first.get_or_insert(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    match first {
        Some(error) if outcomes.is_empty() => Err(error.into()),
        _ => Ok((outcomes, missing)),
    }
}

/// What is asked of each node: from its own checkpoint on.
fn requests(args: &Extract, nodes: &[(NodeName, PathBuf)]) -> Result<Vec<Request>, Failure> {
    let node_of = |note: &Note| -> Result<String, Failure> {
        let origin = Checkpoint::of(note)?.origin;
        Ok(origin.rsplit('/').next().unwrap_or_default().to_owned())
    };
    let mut since = args.since.iter().map(|path| note(path)).collect::<Result<Vec<_>, _>>()?;
    let mut requests = Vec::new();
    for (name, _) in nodes {
        let mut request = Request::all(account(&args.account)?);
        (request.from, request.to) = (args.span.from, args.span.to);
        let mut others = Vec::new();
        for note in since {
            match node_of(&note)? == name.as_str() {
                true if request.since.is_some() => {
                    return Err(Failure::Usage(format!("--since: two checkpoints are of node {name}: give one")));
                }
                true => request.since = Some(note),
                false => others.push(note),
            }
        }
        since = others;
        requests.push(request);
    }
    match since.first() {
        Some(other) => {
            let node = node_of(other)?;
            Err(Failure::Usage(format!("--since: a checkpoint of node {node}, which is none of these")))
        }
        None => Ok(requests),
    }
}

pub(super) fn run(args: &Extract, nodes: &[(NodeName, PathBuf)], output: Output) -> Result<(), Failure> {
    let requests = requests(args, nodes)?;
    let is_named = !args.nodes.is_empty() || nodes.len() == 1;
    let out = args.output.as_deref().filter(|path| *path != Path::new("-"));
    let out = out.map(|place| OutFile::create(place, args.force)).transpose()?;
    let (outcomes, missing) = match &out {
        Some(out) => {
            let mut writer = BufWriter::new(out.writer()?);
            let written = write(nodes, &requests, is_named, &mut writer, output)?;
            writer.flush().map_err(|error| Failure::io("the extract", error))?;
            drop(writer);
            out.complete()?;
            written
        }
        None => {
            // Past the buffer of the standard library.
            let mut whole = Vec::new();
            let written = write(nodes, &requests, is_named, &mut whole, output)?;
            Standard::Output.file()?.write_all(&whole).map_err(Failure::stdout)?;
            written
        }
    };
    for (name, Extracted { from, to, .. }) in &outcomes {
        if args.span.from.is_some_and(|asked| *to < asked) {
            output
                .note(&format!("keyleash: node {name}: no tally is of the span: its last lines are shown, up to {to}"));
        } else if let Some(asked) = args.span.to.filter(|asked| asked > to) {
            output.note(&format!("keyleash: node {name}: there is no tally of {asked} yet: it ends at {to}"));
        }
        if let Some(from) = from.filter(|from| args.span.from.is_some_and(|asked| asked < *from)) {
            output.note(&format!("keyleash: node {name}: what was before is gone: it begins at {from}"));
        }
    }
    let lines = outcomes.iter().map(|(_, extracted)| extracted.lines).sum();
    let node = |(name, extracted): &Outcome| {
        json!({
            "node": name.as_str(), "lines": extracted.lines, "groups": extracted.groups,
            "from": extracted.from.map(|from| from.to_string()), "to": extracted.to.to_string(),
        })
    };
    let account = account(&args.account)?;
    let result = json!({
        "account": account.as_str(), "lines": lines, "nodes": outcomes.iter().map(node).collect::<Vec<_>>(), "missing": missing,
    });
    let text = format!("{} of account {account}, of {}\n", count(lines, "line"), count(outcomes.len() as u64, "node"));
    match out {
        Some(_) => output.result(&result, &text),
        None => output.result_beside_data(&result),
    }
}

pub(super) fn verify(args: &VerifyExtract, keys: Keys, output: Output) -> Result<(), Failure> {
    let mut asked = Asked::by(keys);
    asked.account = args.account.as_deref().map(account).transpose()?;
    asked.nodes = names(&args.nodes)?;
    (asked.from, asked.to) = (args.span.from, args.span.to);
    asked.since = checkpoints(&args.since, &asked.keys)?;
    let input = match args.extract.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => File::open(path).map_err(|error| Failure::input(path, error))?,
        None => Standard::Input.file()?,
    };
    let mut lines = Vec::new();
    let shown = audit::verify_extract(&mut BufReader::new(input), &asked, &mut |node, line| {
        if args.lines {
            lines.push((node.clone(), line.to_owned()));
        }
    })?;
    let account = shown.first().map(|shown| shown.account.clone()).unwrap_or_default();
    let number = shown.iter().map(|shown| shown.lines).sum::<u64>();
    let result = json!({
        "account": account, "lines": number, "nodes": shown.iter().map(node_json).collect::<Vec<_>>(),
        "shown": args.lines.then(|| lines.iter().filter_map(|(node, line)| line_json(node, line)).collect::<Vec<_>>()),
    });
    let mut text = columns(
        &[("account", account), ("lines", format!("{number}, of {}", count(shown.len() as u64, "node")))]
            .map(|(name, value)| vec![name.into(), value]),
    );
    shown.iter().for_each(|shown| text.push_str(&node_lines(shown)));
    for (_, line) in &lines {
        text.push_str(line);
        text.push('\n');
    }
    output.result(&result, &text)
}

fn line_json(node: &NodeName, line: &str) -> Option<Value> {
    let mut line: Value = serde_json::from_str(line).ok()?;
    line.as_object_mut()?.insert("node".into(), node.as_str().into());
    Some(line)
}

fn node_json(shown: &Shown) -> Value {
    json!({
        "node": shown.node.as_str(), "origin": shown.origin, "lines": shown.lines,
        "from": shown.from.map(|from| from.to_string()), "to": shown.to.to_string(),
        "first": shown.span.start, "end": shown.span.end,
        "checkpoint": { "size": shown.checkpoint.size, "time": shown.checkpoint.time },
    })
}

fn node_lines(shown: &Shown) -> String {
    let Shown { origin, lines, from, to, checkpoint, .. } = shown;
    let rows = [
        ("trail", origin.clone()),
        ("  lines", format!("{lines}, and none of this trail was left out")),
        ("  from", from.map_or_else(|| "the trail's beginning".into(), |from| from.to_string())),
        ("  to", to.to_string()),
        ("  checkpoint", format!("of {} lines", checkpoint.size)),
    ];
    columns(&rows.map(|(name, value)| vec![name.into(), value]))
}
