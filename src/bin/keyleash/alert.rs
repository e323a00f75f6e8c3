//! `alert watch` and `alert test`.

use crate::{
    audit::{
        args::{Follow, SinkKind},
        follow::{Destination, StdoutSink, follow, held, sink_failed},
    },
    exit::Failure,
    output::{Output, count},
    setup::Setup,
};
use clap::{Args, Subcommand};
use keyleash::{
    Error,
    audit::{
        alert::{AlertSink, Alerts, NoticeSink},
        line::Time,
    },
    clock::Clock,
};
use std::ffi::OsString;

pub(crate) const HELP: &str = "\
Rules stand in the configuration:
  [[alert]]
  name = \"strangers\"
  when = \"stranger\"       # or denied, lapsed, forbidden, unwraps,
  callers = [\"web-*\"]     # unusual-unwraps, kek-changed, trail-broken,
                          # not-proved, workers-spent, store-silent,
                          # secret-expired

Examples:
  keyleash alert test --sink stdout
  keyleash alert watch --cursor /var/lib/keyleash/alerts --sink command /usr/local/bin/page-somebody
  keyleash alert watch --cursor /var/lib/keyleash/alerts --sink mail

Mail goes as [mail] of the configuration says: server, from, to, and more in
keyleash config show. A build without the feature mail says how to get it.

Each notice is a line of JSON, once as a trouble begins and once as it is over
(is_over). What was not taken is brought again, with the same id.";

#[derive(Debug, Subcommand)]
pub(crate) enum Alert {
    /// Follow the trail, as audit follow does, and bring notices instead of events.
    Watch(Follow),
    /// Bring a notice of each rule that says that it is a test, and one that it is over, to see that they arrive.
    Test(Test),
}

#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Where notices are brought: stdout, file PATH, command CMD [ARG]..., or mail, by the [mail] of the configuration.
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
            let sink = AlertSink::new(alerts, notice_sink(args.sink, to, setup)?);
            let mut sink = sink.on_untaken(move |why| output.failure(&sink_failed(why.to_owned())));
            follow(args, &mut sink, setup, output).await?;
            match sink.untaken() {
                0 => Ok(()),
                notices => Err(held(format!("{} not taken: see what was said of each", count(notices, "notice")))),
            }
        }
        Alert::Test(Test { sink, to }) => {
            let notices = alerts.rehearse(now());
            let mut sink = notice_sink(sink, to, setup)?;
            sink.tell(&notices).await.map_err(|untaken| sink_failed(untaken.to_string()))?;
            output.note(&format!("keyleash: {} brought", count(notices.len() as u64, "notice")));
            Ok(())
        }
    }
}

/// Where notices are brought.
fn notice_sink(kind: SinkKind, to: Vec<OsString>, setup: &Setup) -> Result<Box<dyn NoticeSink>, Failure> {
    if kind == SinkKind::Mail && to.is_empty() {
        return mail(setup);
    }
    Ok(match Destination::of(kind, to, setup)? {
        Destination::Stdout => Box::new(StdoutSink),
        Destination::File(file) => Box::new(file),
        Destination::Command(command) => Box::new(command),
    })
}

#[cfg(feature = "mail")]
fn mail(setup: &Setup) -> Result<Box<dyn NoticeSink>, Failure> {
    let Some(mail) = setup.mail() else {
        let what = "there is no [mail] in the configuration: set mail.server, mail.from and mail.to";
        return Err(Error::Misconfigured(what.into()).into());
    };
    Ok(Box::new(keyleash::audit::alert::MailSink::new(mail.clone())?))
}

#[cfg(not(feature = "mail"))]
fn mail(_: &Setup) -> Result<Box<dyn NoticeSink>, Failure> {
    let what = "this keyleash was built without its feature `mail`: build it with `cargo build --release --features mail`, \
                or give notices to a command that sends them (--sink command)";
    Err(Error::Misconfigured(what.into()).into())
}
