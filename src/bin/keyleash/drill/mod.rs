//! `drill`: rehearses the day the key is taken away, on a real token, and holds what it measures against the promises.
//!
//! [`keyleash::drill`] plays, measures and judges. Here is what it plays with: the ground of its own (`ground`), a real load (`load`),
//! the deeds of an operator (`deeds`), which another process does (`act`) where it may (`guard`), the service that `restart` kills
//! (`serve`), and the store of several (`nodes`). Two reports are compared (`compare`).

pub(crate) mod args;

mod act;
mod bar;
mod compare;
mod deeds;
mod ground;
mod guard;
mod load;
mod nodes;
mod serve;
mod terms;

use crate::{
    exit::Failure,
    out_file::OutFile,
    output::Output,
    setup::{Setup, Store},
    warnings,
};
use args::{Drill, Options};
use bar::bar;
use deeds::Deeds;
use ground::Ground;
use keyleash::{
    clock::{unix_now, utc},
    drill::{self, Report, Scenario, Verdict},
    telemetry::trail::{Deed, Subject},
};
use nodes::Nodes;
use serde_json::{Value, json};
use std::{io::Write, path::Path, time::Duration};

/// A fast drill gives up on an end that does not come; another one waits for as long as is promised.
const FAST_PATIENCE: Duration = Duration::from_secs(60);
/// How long the engine may take to come to its end; what hangs in the token is left behind.
const FAREWELL: Duration = Duration::from_secs(10);

pub(crate) async fn run(drill: Drill, config: Option<&Path>, setup: &Setup, output: Output) -> Result<(), Failure> {
    let mut nodes = None;
    let (scenarios, options) = match drill {
        Drill::Revocation(options) => (vec![Scenario::Revocation], options),
        Drill::Destroy(options) => (vec![Scenario::Destroy], options),
        Drill::TokenRemoved(options) => (vec![Scenario::TokenRemoved], options),
        Drill::PinChanged(options) => (vec![Scenario::PinChanged], options),
        Drill::Outage(options) => (vec![Scenario::Outage], options),
        Drill::LongOutage(options) => (vec![Scenario::LongOutage], options),
        Drill::Flapping(options) => (vec![Scenario::Flapping], options),
        Drill::Hang(options) => (vec![Scenario::Hang], options),
        Drill::Restart(options) => (vec![Scenario::Restart], options),
        Drill::Fleet(fleet) => {
            nodes = Nodes::of(&fleet, setup)?;
            (vec![if nodes.is_some() { Scenario::Nodes } else { Scenario::Fleet }], fleet.options)
        }
        Drill::Rotation(options) => (vec![Scenario::Rotation], options),
        // A store on a server wants to be named.
        Drill::All(options) => (Scenario::ALL.into_iter().filter(|one| *one != Scenario::Nodes).collect(), options),
        Drill::Compare { old, new, by } => return compare::run(&old, &new, by, output),
        Drill::Act(act) => return act::act(act, setup).await,
        Drill::Serve(serve) => return serve::serve(serve, setup).await,
    };
    warnings::with_times();
    // Before half an hour of drills is spent for nothing.
    let picture = options.picture.as_deref().map(|path| setup.report(path)).transpose()?;
    let page = options.report.as_deref().map(|path| setup.report(path)).transpose()?;
    let (mut reports, mut failed) = (Vec::new(), None);
    for scenario in &scenarios {
        if scenarios.len() > 1 {
            output.note(&format!("{} drill {} …", utc(unix_now()), scenario.name()));
        }
        match play_on_trail(*scenario, &options, nodes.as_ref(), setup, config, output).await {
            Ok(report) => reports.push(report),
            Err(failure) if reports.is_empty() => return Err(failure),
            Err(failure) => {
                // What was measured until then is not lost.
                failed = Some((scenario.name(), failure));
                break;
            }
        }
    }
    let passed = failed.is_none() && reports.iter().all(Report::passed);
    let drills: Vec<_> = reports.iter().map(|report| with_fast(report, options.fast)).collect();
    let error =
        failed.as_ref().map(|(scenario, failure)| json!({ "scenario": scenario, "message": failure.to_string() }));
    let json = json!({ "format": drill::FORMAT, "passed": passed, "drills": drills, "error": error });
    let lines: Vec<_> = reports.iter().map(Report::to_string).collect();
    // Where one cannot be written the others are: a drill is not to be had again at once.
    let written = [
        output.result(&json, &lines.join("\n")),
        picture.map_or(Ok(()), |file| write(&file, &drill::svg(&reports))),
        page.map_or(Ok(()), |file| write(&file, &drill::html(&reports))),
    ];
    let ended = match failed {
        Some((_, failure)) => Err(failure),
        None => verdict(&reports),
    };
    // Nothing hides that a promise is broken; that it went nowhere is told as well.
    if matches!(ended, Err(Failure::Broken(_))) {
        written.into_iter().filter_map(Result::err).for_each(|failure| output.note(&failure.to_string()));
        return ended;
    }
    written.into_iter().collect::<Result<(), _>>().and(ended)
}

/// As [`play`], with a line before it and one behind it where there is a trail, of the store that is configured. What is done to the
/// drill's own accounts is nobody's, and no lines.
async fn play_on_trail(
    scenario: Scenario,
    options: &Options,
    nodes: Option<&Nodes>,
    setup: &Setup,
    config: Option<&Path>,
    output: Output,
) -> Result<Report, Failure> {
    if setup.audit().is_none() {
        return play(scenario, options, nodes, setup, config, output).await;
    }
    let (store, mut on) = (setup.store(Store::Existing).await?, Subject::default());
    on.token = Some(setup.default_token().clone());
    let asked = setup.ask(&store, Deed::DrillPlay, on).await?;
    // A drill takes the token away from whoever has it open, and is to find nobody else.
    setup.close_trail(FAREWELL).await?;
    let outcome = play(scenario, options, nodes, setup, config, output).await;
    setup.end_anew(&store, asked, &outcome).await;
    outcome
}

/// Plays one drill, and leaves nothing of it.
async fn play(
    scenario: Scenario,
    options: &Options,
    nodes: Option<&Nodes>,
    setup: &Setup,
    config: Option<&Path>,
    output: Output,
) -> Result<Report, Failure> {
    let (mut ground, engine, mut customers) = Ground::prepare(scenario, options, nodes, setup, config).await?;
    if let Some(customer) = customers.first_mut().filter(|_| scenario == Scenario::Revocation) {
        customer.set_secret(&engine).await?;
    }
    let is_apart = matches!(scenario, Scenario::Restart | Scenario::Nodes);
    if is_apart {
        serve::keep(&ground.directory, &customers)?;
    }
    let (threads, slack) = (options.threads as usize, Duration::from_millis(options.slack.into()));
    let mut drill =
        drill::Drill::new(&engine, &ground.tap, &ground.name).threads(threads).slack(slack).on_wait(bar(output));
    if let Some(nodes) = nodes {
        drill = drill.nodes(nodes.count as usize);
    }
    if options.fast {
        drill = drill.patience(FAST_PATIENCE);
    }
    let accounts = customers.len();
    for customer in customers {
        drill = drill.account(customer.id.clone(), customer.serve(&engine));
    }
    // Of `restart` the store belongs to the service, a process at a time.
    let engine = Some(engine).filter(|_| !is_apart);
    let played = drill.run(scenario, &mut Deeds::new(&mut ground, options, nodes, scenario, accounts)).await;
    if let Some(engine) = engine {
        // No call of its own meets the undoing: SoftHSM would lose the PIN that is changed back while somebody logs in.
        engine.close(FAREWELL).await?;
    }
    if played.is_ok() && scenario == Scenario::PinChanged && ground.actor.is_operator() {
        // What is cleaned up after the drill logs in with the PIN of the settings.
        ground.act("change the token's user PIN back to what it was", Vec::new()).await?;
    }
    if let Some(nodes) = nodes
        && let Err(failure) = nodes.clear().await
    {
        tracing::warn!(%failure, "the drill's records were left in its store; the next drill there removes them");
    }
    // Undoing what is left starts processes.
    act::blocking(move || {
        drop(ground);
        Ok(())
    })
    .await?;
    played
}

/// The report for programs, with what the command line says of its settings.
fn with_fast(report: &Report, fast: bool) -> Value {
    let mut json = json!(report);
    let settings = json.get_mut("settings").and_then(Value::as_object_mut);
    settings.into_iter().for_each(|settings| drop(settings.insert("fast".into(), fast.into())));
    json
}

fn write(file: &OutFile, text: &str) -> Result<(), Failure> {
    file.writer()?.write_all(text.as_bytes()).map_err(|error| Failure::io("writing the report", error))?;
    file.complete()
}

/// The exit status is the verdict.
fn verdict(reports: &[Report]) -> Result<(), Failure> {
    let with = |verdict| {
        let of = |report: &Report| {
            let scenario = report.scenario().name();
            let promises = report.promises().iter().filter(|promise| promise.verdict == verdict);
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
