//! `drill`: rehearses the day the key is taken away, on a real token, and holds what it measures against the promises.
//!
//! `scenario` says what each drill is, `conduct` plays it on the ground that `ground` prepares: a real load (`load`), acts
//! done by another process (`act`), everything written down (`timeline`), the machine's own delays (`machine`) and where keys stand
//! in memory (`keys`) too. What was measured (`measure`) is judged
//! (`promises`) and told (`report`, `picture`, `html`); two reports are compared (`compare`).

mod act;
pub(crate) mod args;
mod compare;
mod conduct;
mod ground;
mod html;
mod keys;
mod load;
mod machine;
mod measure;
mod outcome;
mod picture;
mod promises;
mod report;
mod restart;
mod rotation;
mod scenario;
mod serve;
mod timeline;
mod wait;

use crate::{exit::Failure, out_file::OutFile, output::Output, setup::Setup, warnings};
use args::{Drill, Options};
use ground::Ground;
use keyleash::clock::{unix_now, utc};
use promises::Verdict;
use report::Report;
use scenario::Scenario;
use serde_json::json;
use std::{io::Write, path::Path};
use wait::Wait;

pub(crate) async fn run(drill: Drill, config: Option<&Path>, setup: &Setup, output: Output) -> Result<(), Failure> {
    let (scenarios, options): (&[Scenario], Options) = match drill {
        Drill::Revocation(options) => (&[Scenario::Revocation], options),
        Drill::Destroy(options) => (&[Scenario::Destroy], options),
        Drill::TokenRemoved(options) => (&[Scenario::TokenRemoved], options),
        Drill::PinChanged(options) => (&[Scenario::PinChanged], options),
        Drill::Outage(options) => (&[Scenario::Outage], options),
        Drill::LongOutage(options) => (&[Scenario::LongOutage], options),
        Drill::Flapping(options) => (&[Scenario::Flapping], options),
        Drill::Hang(options) => (&[Scenario::Hang], options),
        Drill::Restart(options) => (&[Scenario::Restart], options),
        Drill::Fleet(options) => (&[Scenario::Fleet], options),
        Drill::Rotation(options) => (&[Scenario::Rotation], options),
        Drill::All(options) => (&Scenario::ALL, options),
        Drill::Compare { old, new, by } => return compare::run(&old, &new, by, output),
        Drill::Act(act) => return act::act(act, setup).await,
        Drill::Serve(serve) => return serve::serve(serve, setup).await,
    };
    warnings::with_times();
    let wait = Wait::new(output);
    // Before half an hour of drills is spent for nothing.
    let picture = options.picture.as_deref().map(|path| setup.report(path)).transpose()?;
    let page = options.report.as_deref().map(|path| setup.report(path)).transpose()?;
    let (mut reports, mut failed) = (Vec::new(), None);
    for scenario in scenarios {
        if scenarios.len() > 1 {
            output.note(&format!("{} drill {} …", utc(unix_now()), scenario.name()));
        }
        let played = async {
            let (ground, customers) = Ground::prepare(*scenario, &options, setup, config).await?;
            conduct::conduct(*scenario, &options, ground, customers, &wait).await
        };
        match played.await {
            Ok(finished) => reports.push(Report::new(finished)),
            Err(failure) if reports.is_empty() => return Err(failure),
            Err(failure) => {
                // What was measured until then is not lost.
                failed = Some((scenario.name(), failure));
                break;
            }
        }
    }
    let passed = failed.is_none() && reports.iter().all(Report::passed);
    let drills: Vec<_> = reports.iter().map(Report::json).collect();
    let error =
        failed.as_ref().map(|(scenario, failure)| json!({ "scenario": scenario, "message": failure.to_string() }));
    let json = json!({ "format": report::FORMAT, "passed": passed, "drills": drills, "error": error });
    let lines: Vec<_> = reports.iter().map(Report::lines).collect();
    output.result(&json, &lines.join("\n"))?;
    if let Some(file) = picture {
        write(&file, &picture::svg(&reports.iter().collect::<Vec<_>>()))?;
    }
    if let Some(file) = page {
        write(&file, &html::html(&reports))?;
    }
    match failed {
        Some((_, failure)) => Err(failure),
        None => verdict(&reports),
    }
}

fn write(file: &OutFile, text: &str) -> Result<(), Failure> {
    file.writer()?.write_all(text.as_bytes()).map_err(|error| Failure::io("writing the report", error))?;
    file.complete()
}

/// The exit status is the verdict.
fn verdict(reports: &[Report]) -> Result<(), Failure> {
    let with = |verdict| {
        let of = |report: &Report| {
            let scenario = report.finished.scenario.name();
            let promises = report.promises.iter().filter(|promise| promise.verdict == verdict);
            promises.map(|promise| format!("{scenario}: {}", promise.what)).collect::<Vec<_>>()
        };
        reports.iter().flat_map(of).collect::<Vec<_>>().join("; ")
    };
    match reports.iter().map(Report::verdict).max() {
        Some(Verdict::Fail) => Err(Failure::Broken(format!("promises do not hold: {}", with(Verdict::Fail)))),
        Some(Verdict::Inconclusive) => Err(Failure::Inconclusive(format!(
            "the machine was too busy to tell, run it again: {}",
            with(Verdict::Inconclusive)
        ))),
        Some(Verdict::Pass) | None => Ok(()),
    }
}
