//! The benchmark report: every target of the project beside what was measured, as ratios of things that took turns.
//!
//! `benches/report` runs it; `src/manual/performance.md` says how to read it. Writes `report.md`, `report.json` and the pictures
//! to `target/report/`. Ends with 0 whether or not targets were missed: a time is not a test.

// A benchmark that cannot go on must stop.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod blocks;
mod cold;
mod files;
mod fleet;
mod grants;
mod machine;
mod peers;
mod plot;
mod readme;
mod table;
mod targets;

use common::{pairs::Plan, rig};
use machine::Machine;
use serde_json::json;
use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use table::{Rows, Table};

const USAGE: &str =
    "usage: benches/report [--quick] [--readme] [--only PART]…   parts: blocks, cold, grants, fleet, files";
const PARTS: [&str; 5] = ["fleet", "blocks", "cold", "grants", "files"];

/// How much is measured.
pub(crate) struct Scale {
    plan: Plan,
    fleet_accounts: usize,
    wiped_slots: usize,
    wipes: usize,
    cold_accounts: usize,
    cold_rounds: usize,
    file_bytes: u64,
    file_rounds: usize,
}

impl Scale {
    const FULL: Self = Self {
        plan: Plan::FULL,
        fleet_accounts: 1_000_000,
        wiped_slots: 100_000,
        wipes: 10,
        cold_accounts: 10_000,
        cold_rounds: 11,
        file_bytes: 4 << 30,
        file_rounds: 10,
    };
    const QUICK: Self = Self {
        plan: Plan::QUICK,
        fleet_accounts: 20_000,
        wiped_slots: 5_000,
        wipes: 2,
        cold_accounts: 500,
        cold_rounds: 10,
        file_bytes: 32 << 20,
        file_rounds: 10,
    };
}

/// What the command line asks for.
struct Args {
    quick: bool,
    readme: bool,
    parts: Vec<String>,
}

impl Args {
    fn read() -> Result<Self, String> {
        let mut args = Self { quick: false, readme: false, parts: Vec::new() };
        let mut words = env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => args.quick = true,
                "--readme" => args.readme = true,
                "--only" => {
                    let part = words.next().unwrap_or_default();
                    if !PARTS.contains(&part.as_str()) {
                        return Err(format!("no part {part:?}\n{USAGE}"));
                    }
                    args.parts.push(part);
                }
                "--bench" => {} // cargo says so
                other => return Err(format!("unknown argument {other:?}\n{USAGE}")),
            }
        }
        if args.readme && (args.quick || !args.parts.is_empty()) {
            return Err(format!("the READMEs get the whole report or none: --readme goes with nothing else\n{USAGE}"));
        }
        Ok(args)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

fn main() -> ExitCode {
    let outcome = Args::read().map_err(Into::into).and_then(|args| report(&args));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("report: {error}");
            ExitCode::FAILURE
        }
    }
}

fn report(args: &Args) -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = env::var_os("BENCH_REPORT_DIR").map_or_else(|| root.join("target/report"), PathBuf::from);
    fs::create_dir_all(&out)?;
    let scale = if args.quick { Scale::QUICK } else { Scale::FULL };
    let machine = Machine::look();
    let runtime = rig::runtime();
    let mut table = Table::default();
    let mut versions = String::new();

    // The fleet first: memory that other parts had and gave back would hide some of what its accounts take.
    if args.wants("fleet") {
        say("many accounts");
        let panels = fleet::many_accounts(&runtime, &scale, &mut table);
        plot::draw(&out.join("accounts.svg"), "What the number of accounts costs", &panels)?;
        say("wipes");
        fleet::wipes(&runtime, &scale, &mut table);
    }
    if args.wants("blocks") {
        say("blocks");
        let panels = blocks::one_thread(&runtime, scale.plan, &mut table);
        blocks::two_threads(&runtime, scale.plan, &mut table);
        plot::draw(
            &out.join("throughput.svg"),
            "One block on one core, by size, beside the raw limits (grey)",
            &panels,
        )?;
    }
    if args.wants("grants") {
        say("grants");
        grants::under_grants(&runtime, &scale, &mut table);
    }
    if args.wants("cold") {
        say("cold opens");
        let panel = cold::cold_opens(&runtime, &scale, &mut table);
        plot::draw(&out.join("cold.svg"), "Opening an account whose key is not in memory", &[panel])?;
    }
    if args.wants("files") {
        say("files");
        versions = files::seal_a_file(&scale, &out.join("files"), &mut table)?;
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
    table.take_rows_of_others(&out.join("rows"));
    write(args, root, &out, &machine, &table, &versions)
}

fn write(
    args: &Args,
    root: &Path,
    out: &Path,
    machine: &Machine,
    table: &Table,
    versions: &str,
) -> Result<(), Box<dyn Error>> {
    let whole = args.parts.is_empty();
    let text = |rows| {
        let mut text = format!("{}\n\n", machine.line());
        let quick = args.quick.then(|| "this is the quick run: small numbers, rough ratios".to_owned());
        for warning in quick.into_iter().chain(machine.warning()) {
            text += &format!("**Beware**: {warning}.\n\n");
        }
        text += &table.markdown(rows);
        if !versions.is_empty() {
            text += &format!("\nFiles: {versions}.\n");
        }
        if whole {
            text += &match peers::markdown(&out.join("peers.json")) {
                Ok(peers) => format!("\n{peers}"),
                Err(why) => format!("\nNot measured: {why}.\n"),
            };
        }
        text
    };
    let report = text(if whole { Rows::All } else { Rows::Measured });
    let (missed, unmeasured) = table.missed();
    let verdict = format!("{missed} targets missed, {unmeasured} not measured.");
    fs::write(out.join("report.md"), format!("# keyleash: benchmark report\n\n{report}\n{verdict}\n"))?;
    let json = json!({ "machine": machine.json(), "quick": args.quick, "table": table.json() });
    fs::write(out.join("report.json"), serde_json::to_string_pretty(&json)?)?;
    println!("{report}\n{verdict}\n{}", out.join("report.md").display());
    if args.readme {
        readme::fill(root, "benches/README.md", &text(Rows::Readme))?;
        readme::fill(root, "README.md", &format!("{}\n\n{}", machine.line(), table.markdown(Rows::Headlines)))?;
        readme::show_picture(root, out)?;
    }
    Ok(())
}

fn say(part: &str) {
    eprintln!("report: {part}");
}
