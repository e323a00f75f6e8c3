//! `alert watch` and `alert test`.

use crate::{
    audit::{
        args::{Follow, SinkKind},
        follow::{Destination, StdoutSink, follow, sink_failed},
    },
    exit::Failure,
    output::{Output, count},
    setup::Setup,
};
use clap::{Args, Subcommand};
use keyleash::{
    Error,
    audit::{
        alert::{AlertSink, Alerts, NoticeSink, SharedAlerts},
        line::Time,
    },
    clock::Clock,
};
use std::{ffi::OsString, time::Duration};

pub(crate) const HELP: &str = "\
Rules stand in the configuration:
  [[alert]]
  name = \"strangers\"
  when = \"stranger\"       # or denied, lapsed, forbidden, unwraps,
  callers = [\"web-*\"]     # unusual-unwraps, kek-changed, trail-broken

Examples:
  keyleash alert test --sink stdout
  keyleash alert watch --cursor /var/lib/keyleash/alerts --sink command /usr/local/bin/page-somebody

Each notice is a line of JSON, once as a trouble begins and once as it is over
(is_over). What was not taken is brought again, with the same id.";

/// Between two looks at what has become quiet.
const TICK: Duration = Duration::from_secs(10);

#[derive(Debug, Subcommand)]
pub(crate) enum Alert {
    /// Follow the trail, as audit follow does, and bring notices instead of events.
    Watch(Follow),
    /// Bring a notice of each rule that says that it is a test, and one that it is over, to see that they arrive.
    Test(Test),
}

#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Where notices are brought: stdout, file PATH, or command CMD [ARG]...
    #[arg(long)]
    sink: SinkKind,
    /// The file, to which they are appended, or the command.
    #[arg(value_name = "PATH|CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    to: Vec<OsString>,
}

pub(crate) async fn run(command: Alert, setup: &Setup, output: Output) -> Result<(), Failure> {
    let alerts = Alerts::new(setup.alerts().to_vec())?;
    if alerts.rules().is_empty() {
        let what = "there is no [[alert]] in the configuration: `keyleash alert --help` shows one";
        return Err(Error::Misconfigured(what.into()).into());
    }
    let now = || Time::from_unix_ms(Clock::default().wall_unix_ms());
    match command {
        Alert::Watch(mut args) => {
            let to = std::mem::take(&mut args.to);
            let sink = match Destination::of(args.sink, to, setup)? {
                Destination::Stdout => AlertSink::new(alerts, StdoutSink),
                Destination::File(file) => AlertSink::new(alerts, file),
                Destination::Command(command) => AlertSink::new(alerts, command),
            };
            let shared = SharedAlerts::new(sink);
            let ticking = shared.clone();
            let tick = async move {
                loop {
                    tokio::time::sleep(TICK).await;
                    if let Err(why) = ticking.tick(now()).await {
                        output.failure(&sink_failed(format!("{why}; again in {} s", TICK.as_secs())));
                    }
                }
            };
            follow(args, Box::new(shared), tick, setup, output).await
        }
        Alert::Test(Test { sink, to }) => {
            let notices = alerts.rehearse(now());
            let mut sink: Box<dyn NoticeSink> = match Destination::of(sink, to, setup)? {
                Destination::Stdout => Box::new(StdoutSink),
                Destination::File(file) => Box::new(file),
                Destination::Command(command) => Box::new(command),
            };
            sink.tell(&notices).await.map_err(sink_failed)?;
            output.note(&format!("keyleash: {} brought", count(notices.len() as u64, "notice")));
            Ok(())
        }
    }
}
