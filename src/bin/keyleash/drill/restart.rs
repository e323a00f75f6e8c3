//! The drill `restart`: a service in a process of its own is killed and started while active, while denied, while denied and
//! unreachable, and while unreachable.

use super::{
    act::blocking,
    args::Options,
    conduct::{OK, RESUMING, kek_words, keys_in, patience, slack, words},
    ground::Ground,
    load::Customer,
    outcome::{Outcome, Outcomes},
    serve,
    timeline::{FIRST_KEK_VERSION, Recorder},
    wait::Wait,
};
use crate::exit::Failure;
use keyleash::clock::{Clock, Instant};
use std::{
    ffi::OsString,
    fs,
    io::BufReader,
    process::{Child, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

const DENIED: Outcomes = Outcomes::of(&[Outcome::Denied]);
const UNREACHABLE: Outcomes = Outcomes::of(&[Outcome::Unreachable]);
/// How much longer than promised a denial is waited for.
const LATE: Duration = Duration::from_secs(5);

/// The service. Killed when it is dropped.
struct Service {
    process: Child,
    listening: Option<thread::JoinHandle<()>>,
}

impl Drop for Service {
    fn drop(&mut self) {
        // SIGKILL: no farewell. One that ended already is no trouble.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}

struct Play<'a> {
    ground: &'a Ground,
    options: &'a Options,
    recorder: &'a Arc<Recorder>,
    service: Option<Service>,
    accounts: usize,
}

impl Play<'_> {
    /// Kills the service, if there is one, and starts it anew. From now on `right` is right.
    async fn restart(&mut self, what: &str, right: Outcomes) -> Result<Instant, Failure> {
        let at = Clock::default().now();
        if let Some(service) = self.service.take() {
            blocking(move || {
                drop(service);
                Ok(())
            })
            .await?;
            self.recorder.act("step", format!("kill the process and start it again {what}"), at);
            self.recorder.lease(at, FIRST_KEK_VERSION, "none", 0);
        }
        let arguments: Vec<OsString> = vec![
            self.ground.directory.clone().into(),
            self.accounts.to_string().into(),
            self.options.threads.to_string().into(),
        ];
        let mut command = self.ground.launch.hidden("__serve")?;
        command.args(arguments);
        if self.options.fast {
            command.arg("--fast");
        }
        let starting = |error| Failure::io("starting the service", error);
        // All that is told by the one before was told by now.
        let from = Clock::default().now();
        self.recorder.expect(from, right);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(starting)?;
        let Some(lines) = process.stdout.take() else { return Err(Failure::Usage("the service is mute".into())) };
        let recorder = self.recorder.clone();
        let listen = move || serve::listen(BufReader::new(lines), &recorder);
        let listening = thread::Builder::new().name("drill-listen".into()).spawn(listen).map_err(starting)?;
        self.service = Some(Service { process, listening: Some(listening) });
        Ok(from)
    }

    async fn keys(&self) -> Result<u64, Failure> {
        let Some(service) = &self.service else { return Ok(0) };
        keys_in(self.ground, service.process.id()).await
    }

    async fn act(
        &self,
        kind: &'static str,
        what: &str,
        arguments: Vec<OsString>,
        right: Outcomes,
    ) -> Result<Instant, Failure> {
        self.recorder.expect(Clock::default().now(), right);
        let at = self.ground.act(what, arguments).await?;
        self.recorder.act(kind, what, at);
        Ok(at)
    }

    async fn switch(&self, command: &str, kind: &'static str, right: Outcomes) -> Result<Instant, Failure> {
        let (id, profile) = (self.ground.kek.id.to_string(), self.options.profile);
        let what = format!("{command} {}", kek_words(self.ground));
        self.act(kind, &what, words([command, &id, profile.name()]), right).await
    }

    /// Moves the token away, or back.
    async fn reach(&self, reachable: bool, right: Outcomes) -> Result<Instant, Failure> {
        if self.ground.actor.is_operator() {
            let what = if reachable { "make the token reachable" } else { "make the token unreachable" };
            return self.act("step", what, Vec::new(), right).await;
        }
        let place = self.ground.tokens()?;
        let away = place.with_file_name("tokens.away");
        let (what, from, to) = match reachable {
            true => ("make the token reachable", away, place),
            false => ("make the token unreachable", place, away),
        };
        self.act("step", what, vec!["move".into(), from.into(), to.into()], right).await
    }
}

/// Plays it. Gives no count of unwraps: the processes that were killed took theirs with them.
pub(crate) async fn conduct(
    options: &Options,
    ground: &mut Ground,
    customers: Vec<Customer>,
    recorder: &Arc<Recorder>,
    wait: &Wait,
) -> Result<(u64, u64), Failure> {
    serve::keep(&ground.directory, &customers)?;
    let accounts = customers.len();
    // The store belongs to one process at a time.
    drop(customers);
    ground.engine = None;
    if let Ok(place) = ground.tokens() {
        let away = place.with_file_name("tokens.away");
        ground.undo.push(move || drop(fs::rename(away, place)));
    }
    let settings = ground.settings.clone();
    let poll = settings.poll_interval;
    let mut play = Play { ground, options, recorder, service: None, accounts };
    let begun = play.restart("", OK).await?;
    let all = |outcome, since: Instant| move || recorder.all_are(outcome, since);
    wait.until(begun.plus(patience(options)), all(Outcome::Ok, begun)).await;
    wait.rest("active", poll).await;

    let started = play.restart("while active", OK).await?;
    wait.until(started.plus(patience(options)), all(Outcome::Ok, started)).await;
    wait.rest("active", poll).await;

    recorder.keys_before(play.keys().await?);
    let act = play.switch("disable", "act", OK.with(DENIED)).await?;
    let bound = poll + settings.store_timeout + slack(options) + LATE;
    wait.until(act.plus(bound), all(Outcome::Denied, act)).await;
    wait.until(act.plus(bound), || recorder.aeks() == 0).await;
    recorder.keys_left(play.keys().await?);
    let started = play.restart("while denied", DENIED).await?;
    wait.until(started.plus(bound), all(Outcome::Denied, started)).await;
    wait.rest("denied", poll * 2).await;

    play.reach(false, DENIED).await?;
    let started = play.restart("while denied and unreachable", DENIED).await?;
    wait.until(started.plus(bound), all(Outcome::Denied, started)).await;
    wait.rest("denied", poll * 2).await;
    play.reach(true, DENIED).await?;
    wait.rest("denied", poll).await;
    let undone = play.switch("enable", "undoing", RESUMING).await?;
    let back = || recorder.all_are(Outcome::Ok, undone) && recorder.phase() == "active";
    wait.until(undone.plus(patience(options)), back).await;
    recorder.expect(Clock::default().now(), OK);
    wait.rest("active", poll).await;

    play.reach(false, OK.with(UNREACHABLE)).await?;
    let started = play.restart("while unreachable", UNREACHABLE).await?;
    wait.until(started.plus(bound), all(Outcome::Unreachable, started)).await;
    wait.rest("unreachable", poll * 2).await;
    let reached = play.reach(true, RESUMING).await?;
    wait.until(reached.plus(patience(options)), all(Outcome::Ok, reached)).await;
    recorder.expect(Clock::default().now(), OK);
    wait.rest("active", poll).await;
    let service = play.service.take();
    blocking(move || {
        drop(service);
        Ok(())
    })
    .await?;
    Ok((0, 0))
}
