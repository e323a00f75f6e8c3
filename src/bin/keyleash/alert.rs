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
        Told,
        alert::{AlertSink, Alerts, NoticeSink, SharedAlerts},
        line::Time,
    },
    clock::Clock,
};
use std::{
    ffi::OsString,
    sync::{Mutex, PoisonError},
    time::Duration,
};

pub(crate) const HELP: &str = "\
Rules stand in the configuration:
  [[alert]]
  name = \"strangers\"
  when = \"stranger\"       # or denied, lapsed, forbidden, unwraps,
  callers = [\"web-*\"]     # unusual-unwraps, kek-changed, trail-broken,
                          # not-proved, workers-spent, secret-expired

Examples:
  keyleash alert test --sink stdout
  keyleash alert watch --cursor /var/lib/keyleash/alerts --sink command /usr/local/bin/page-somebody
  keyleash alert watch --cursor /var/lib/keyleash/alerts --sink mail

Mail goes as [mail] of the configuration says: server, from, to, and more in
keyleash config show. A build without the feature mail says how to get it.

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
            let sink = sink.on_untaken(move |why| output.failure(&sink_failed(why.to_owned())));
            let shared = SharedAlerts::new(sink);
            let heard = Mutex::new(Vec::new());
            let hear = |told: &Told| {
                let held_now = match told {
                    Told::Held(node, why) => (node.to_string(), Some(why.clone())),
                    Told::GoesOn(node) => (node.to_string(), None),
                    _ => return,
                };
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(held_now);
            };
            let tell_held = async || {
                let taken = std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner));
                let mut told = Ok(());
                for (node, why) in taken {
                    told = shared.held(&node, why.as_deref()).await;
                }
                told
            };
            let tick = async {
                loop {
                    tokio::time::sleep(TICK).await;
                    // What the first could not bring the second does.
                    let _ = tell_held().await;
                    if let Err(why) = shared.tick(now()).await {
                        output.failure(&sink_failed(format!("{why}; again in {} s", TICK.as_secs())));
                    }
                }
            };
            let followed = follow(args, Box::new(shared.clone()), tick, hear, setup, output).await;
            tell_held().await.map_err(sink_failed)?;
            followed?;
            match shared.untaken().await {
                0 => Ok(()),
                notices => Err(held(format!("{} not taken: see what was said of each", count(notices, "notice")))),
            }
        }
        Alert::Test(Test { sink, to }) => {
            let notices = alerts.rehearse(now());
            let mut sink = notice_sink(sink, to, setup)?;
            sink.tell(&notices).await.map_err(sink_failed)?;
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
