//! `inspect`: what a sealed file says of itself. Needs neither token nor store, and proves nothing: whether it is whole, `open` says.

use crate::{
    args::Inspect,
    exit::Failure,
    file::{self, FileHeader},
    output::{Output, columns, count, hex, size},
    streams::Standard,
};
use keyleash::block::Suite;
use serde_json::json;
use std::{collections::BTreeMap, fs::File, io, io::BufReader, path::Path};

pub(crate) async fn run(args: Inspect, output: Output) -> Result<(), Failure> {
    let work = move || {
        let input = match args.input.as_deref().filter(|path| *path != Path::new("-")) {
            Some(path) => File::open(path).map_err(|error| Failure::input(path, error))?,
            None => Standard::Input.file()?,
        };
        inspect(input)
    };
    let found =
        tokio::task::spawn_blocking(work).await.map_err(|error| Failure::io("reading", io::Error::other(error)))??;
    let Found { file, version, blocks, bytes, aek_versions, suites } = found;
    let suites: Vec<_> = suites.into_iter().map(suite_name).collect();
    let result = json!({
        "account": file.account.as_str(), "file_id": hex(&file.file_id), "format": version, "blocks": blocks,
        "plaintext_bytes": bytes,
        "aek_versions": aek_versions.iter().map(|(version, blocks)| json!({ "aek_version": version, "blocks": blocks }))
            .collect::<Vec<_>>(),
        "suites": suites,
    });
    let under = aek_versions.iter().map(|(version, blocks)| format!("{version} ({})", count(*blocks, "block")));
    let rows = [
        ("account", file.account.to_string()),
        ("format", format!("version {version}, {}", suites.join(", "))),
        ("file id", hex(&file.file_id)),
        ("AEK version", under.collect::<Vec<_>>().join(", ")),
        ("blocks", blocks.to_string()),
        ("plaintext", size(bytes)),
    ];
    output.result(&result, &columns(&rows.map(|(name, value)| vec![name.into(), value])))
}

struct Found {
    file: FileHeader,
    version: u16,
    blocks: u64,
    bytes: u64,
    /// Blocks by the AEK version that they name.
    aek_versions: BTreeMap<u32, u64>,
    suites: Vec<Suite>,
}

fn inspect(input: File) -> Result<Found, Failure> {
    let mut input = BufReader::with_capacity(4 * file::BLOCK_BYTES, input);
    let file = FileHeader::read(&mut input)?;
    let (mut aek_versions, mut suites) = (BTreeMap::new(), Vec::new());
    let totals = file::walk(&mut input, |header| {
        *aek_versions.entry(header.aek_version()).or_insert(0) += 1;
        if !suites.contains(&header.suite()) {
            suites.push(header.suite());
        }
    })?;
    let version = file.version();
    Ok(Found { file, version, blocks: totals.blocks, bytes: totals.plaintext_bytes, aek_versions, suites })
}

fn suite_name(suite: Suite) -> &'static str {
    match suite {
        Suite::XaesGcm => "XAES-256-GCM",
        Suite::XaesGcmCommit => "XAES-256-GCM with key commitment",
        _ => "another suite",
    }
}
