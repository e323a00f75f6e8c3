//! The command line `keyleash`: thin, over the library. One file per group of commands; `file.rs` is the sealed file.

mod account;
mod alert;
mod args;
mod audit;
mod completions;
mod config;
mod consent;
mod drill;
mod exit;
mod file;
mod grant;
mod inspect;
mod kek;
mod kek_switch;
mod lazy_token;
mod man;
mod monitor;
mod on_trail;
mod open_store;
mod open_token;
mod os_caller;
mod out_file;
mod output;
mod profiles;
mod progress;
mod quickstart;
mod refused_pins;
mod schedule;
mod seal;
mod secret;
mod setup;
mod shared_store;
mod signals;
mod status;
mod store;
mod streams;
#[path = "../../drill/text.rs"]
mod text;
mod token;
mod warnings;

use args::{Cli, Command, Open, Seal};
use clap::{CommandFactory, FromArgMatches, error::ErrorKind};
use exit::Failure;
use keyleash::{
    Error,
    token::pkcs11::{end_of_process, exit_at_once},
};
use output::Output;
use setup::Setup;
use std::{
    cell::OnceCell,
    env,
    io::{self, Write},
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    time::Duration,
};
use streams::Standard;
use tokio::runtime::{Builder, Runtime};

/// Threads of the runtime: the token has its own, and a command does one thing at a time.
const RUNTIME_THREADS: usize = 2;
/// How long an interrupted thread may take to come to an end and wipe what it holds. One that waits for input never does.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long a token may take to end a call that nobody waits for any more: as long as an RSA key pair takes to make.
const TOKEN_FAREWELL: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    if let Some(refused) = refuse_stores() {
        return refused;
    }
    let (cli, words) = match parse() {
        Ok(parsed) => parsed,
        Err(error) => return not_parsed(&error),
    };
    let output = Output::new(cli.json).quiet(cli.quiet);
    // What panics is said in words of our own, by whoever waits for it.
    panic::set_hook(Box::new(move |panicked| {
        // One of redb's is caught, and said as the damage that it is.
        if let Some(place) = panicked.location().filter(|place| !cli.json && !place.file().contains("/redb-")) {
            output.note(&format!("keyleash: a fault of the program at {place}; please report it"));
        }
    }));
    if !cli.json && !cli.quiet {
        warnings::show(cli.verbose);
    }
    #[cfg(feature = "planted-faults")]
    let _ = writeln!(
        std::io::stderr(),
        "keyleash: THIS BUILD BREAKS ITS PROMISES ON PURPOSE (Cargo feature planted-faults): it must serve nobody"
    );
    // tokio panics where there are no descriptors for it.
    let built =
        panic::catch_unwind(|| Builder::new_multi_thread().worker_threads(RUNTIME_THREADS).enable_all().build());
    match built.unwrap_or_else(|_| Err(io::Error::other("there is too little of something: descriptors, it may be"))) {
        Ok(runtime) => {
            // A status of the table, and a line where lines are read, also of what was never to happen.
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| run_to_end(&runtime, cli, &words, output)))
                .unwrap_or_else(|_| {
                    Err(Error::Fatal("a fault of the program ended the command; please report it".into()).into())
                });
            warnings::end();
            runtime.shutdown_timeout(FAREWELL);
            let all_left = end_of_process(TOKEN_FAREWELL);
            let status = end(output, outcome);
            if !all_left {
                exit_at_once(status);
            }
            status.into()
        }
        Err(error) => end(output, Err(Failure::io("starting threads", error))).into(),
    }
}

/// Before a word is written: none may go behind the end of a store, that of `--help` neither. It is said on the other stream.
fn refuse_stores() -> Option<ExitCode> {
    let [output, error] = [Standard::Output, Standard::Error].map(Standard::is_store);
    let (stream, elsewhere) = match (output, error) {
        (false, false) => return None,
        (true, false) => (Standard::Output, Some(Standard::Error)),
        (false, true) => (Standard::Error, Some(Standard::Output)),
        (true, true) => (Standard::Error, None),
    };
    let failure = Failure::Usage(format!(
        "{} is a key store: what is written behind its end damages it; redirect it elsewhere",
        stream.name()
    ));
    if let Some(Ok(mut elsewhere)) = elsewhere.map(Standard::file) {
        Output::new(env::args_os().any(|arg| arg == "--json")).failure_to(&mut elsewhere, &failure);
    }
    Some(ExitCode::from(failure.code()))
}

/// Says what failed, and gives the exit status.
fn end(output: Output, outcome: Result<(), Failure>) -> u8 {
    match outcome {
        Ok(()) => 0,
        Err(failure) => {
            output.failure(&failure);
            failure.code()
        }
    }
}

/// Help and version, or what is wrong with the command line.
fn not_parsed(error: &clap::Error) -> ExitCode {
    let output = Output::new(env::args_os().any(|arg| arg == "--json"));
    let text = error.render().to_string();
    if !error.use_stderr() {
        let written =
            Standard::Output.file().and_then(|mut out| out.write_all(text.as_bytes()).map_err(Failure::stdout));
        return end(output, written).into();
    }
    // `-- --pin` would only make a file name of what was meant as an option.
    let tips = |line: &&str| !line.trim_start().starts_with("tip: to pass '");
    let mut lines: Vec<_> = text.trim_start_matches("error: ").lines().filter(tips).collect();
    lines.dedup_by(|line, before| line.is_empty() && before.is_empty()); // where a tip stood
    let text = lines.join("\n");
    let text = text.trim_end();
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand && !output.is_json() {
        output.note(text);
        return ExitCode::from(Failure::Usage(String::new()).code());
    }
    end(output, Err(Failure::Usage(text.to_owned()))).into()
}

/// The command line, and the words in it that name the command: `kek disable`.
fn parse() -> Result<(Cli, String), clap::Error> {
    let mut command = Cli::command();
    let matches = command.clone().try_get_matches()?;
    let (mut words, mut of) = (Vec::new(), &matches);
    while let Some((word, below)) = of.subcommand() {
        words.push(word);
        of = below;
    }
    let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    Ok((cli, words.join(" ")))
}

fn run_to_end(runtime: &Runtime, cli: Cli, words: &str, output: Output) -> Result<(), Failure> {
    let made = OnceCell::new();
    runtime.block_on(async {
        let interrupted = signals::interrupted()?;
        tokio::select! {
            outcome = run(cli, words, &made, output) => outcome,
            // The command's future is dropped here, and with it what it had begun.
            signal = interrupted => {
                if let Some(setup) = made.get() {
                    // Its keys are wiped, and what it had done is on the trail.
                    let _ = setup.close(FAREWELL).await;
                }
                Err(Failure::Interrupted(signal))
            }
        }
    })
}

/// Before anything is done: what a command did and could not tell of is success to nobody.
fn expect_streams(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Seal(Seal { streams, .. }) | Command::Open(Open { streams }) => streams.expect(cli.json),
        _ => Standard::Output.expect(),
    }
}

async fn run(cli: Cli, words: &str, made: &OnceCell<Setup>, output: Output) -> Result<(), Failure> {
    expect_streams(&cli)?;
    let Cli { config, command, .. } = cli;
    let setup = || Setup::read(config.as_deref(), output, words).map(|setup| made.get_or_init(|| setup));
    let outcome = match command {
        Command::Quickstart(args) => quickstart::run(args, setup()?, output).await,
        Command::Token(command) => token::run(command, setup()?, output).await,
        Command::Kek(command) => kek::run(command, setup()?, output).await,
        Command::Account(command) => account::run(command, setup()?, output).await,
        Command::Secret(command) => secret::run(command, setup()?, output).await,
        Command::Grant(command) => grant::run(command, setup()?, output).await,
        Command::Alert(command) => alert::run(command, setup()?, output).await,
        Command::Audit(command) => audit::run(command, setup()?, output).await,
        Command::Store(command) => store::run(command, setup()?, output).await,
        Command::Seal(args) => seal::seal(args, setup()?, output).await,
        Command::Open(args) => seal::open(args, setup()?, output).await,
        Command::Config(command) => config::run(command, config.as_deref(), output),
        Command::Inspect(args) => inspect::run(args, output).await,
        Command::Status(args) => status::run(args, setup()?, output).await,
        Command::Schedule(args) => schedule::run(args, setup()?, output).await,
        Command::Drill(drill) => drill::run(drill, config.as_deref(), setup()?, output).await,
        Command::Completions { shell } => completions::run(shell, output),
        Command::Man { directory } => man::run(&directory, output),
    };
    match made.get() {
        Some(setup) => outcome.and(setup.close(setup.settings().store_timeout).await),
        None => outcome,
    }
}
