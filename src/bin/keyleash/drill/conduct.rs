//! One drill from its first block to its last: load, act, end state, undoing, everybody back.

use super::{
    act::{Held, blocking, set_pin},
    args::Options,
    ground::{Ground, write_pin},
    load::{Listener, Load},
    machine::Machine,
    outcome::{Outcome, Outcomes},
    restart,
    rotation::{self, Rotated},
    scenario::{FLAPS, Owed, Scenario},
    timeline::{Recorder, Timeline},
    wait::Wait,
};
use crate::{exit::Failure, output::hex, status::phase_name};
use keyleash::{
    Engine,
    clock::{Clock, Instant, unix_now},
    config::{RESUMPTION_MAX, Settings},
    secret::fill_random,
    token::{Profile, TokenInfo},
};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub(crate) const OK: Outcomes = Outcomes::of(&[Outcome::Ok]);
/// While accounts come back one after the other, each says why it is not back yet.
pub(crate) const RESUMING: Outcomes =
    Outcomes::of(&[Outcome::Ok, Outcome::Denied, Outcome::Lapsed, Outcome::Unreachable, Outcome::Cold]);
/// A fast drill gives up on an end that does not come; another one waits for as long as is promised.
const FAST_PATIENCE: Duration = Duration::from_secs(60);
/// How much longer than promised the end state is waited for, so that a promise that is missed is told in numbers.
const LATE: Duration = Duration::from_secs(5);
/// The lease is looked at this often, or more rarely where looking at all accounts takes long.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const LOOK_EVERY_FLEET: Duration = Duration::from_millis(50);
/// A fleet has more accounts than this.
const FLEET_MIN: usize = 1000;
/// Intervals of the timeline in a poll interval.
const INTERVALS_PER_POLL: u32 = 10;

/// A drill that is over.
#[derive(Debug, Clone)]
pub(crate) struct Finished {
    pub(crate) scenario: Scenario,
    pub(crate) settings: Settings,
    pub(crate) fast: bool,
    pub(crate) operator: bool,
    pub(crate) accounts: u32,
    pub(crate) threads: u32,
    pub(crate) profile: Profile,
    pub(crate) slack: Duration,
    pub(crate) token: TokenInfo,
    pub(crate) started_unix: u64,
    pub(crate) timeline: Timeline,
    /// Unwraps that the token served, and that it did not.
    pub(crate) unwraps: (u64, u64),
    /// What `rotation` did.
    pub(crate) rotated: Option<Rotated>,
}

/// How long each interval of the timeline is.
pub(crate) fn interval(settings: &Settings) -> Duration {
    settings.poll_interval / INTERVALS_PER_POLL
}

/// How long everybody may take to come back before the drill gives up.
pub(crate) fn patience(options: &Options) -> Duration {
    if options.fast { FAST_PATIENCE } else { RESUMPTION_MAX + slack(options) }
}

pub(crate) fn slack(options: &Options) -> Duration {
    Duration::from_millis(options.slack.into())
}

/// Runs one drill on prepared ground, and gives what was recorded.
pub(crate) async fn conduct(
    scenario: Scenario,
    options: &Options,
    mut ground: Ground,
    customers: Vec<super::load::Customer>,
    wait: &Wait,
) -> Result<Finished, Failure> {
    let clock = Clock::default();
    let started_unix = unix_now();
    let accounts = customers.len();
    let recorder = Arc::new(Recorder::new(clock.now(), interval(&ground.settings), accounts));
    recorder.expect(clock.now(), OK);
    let machine = Machine::watch(recorder.clone())?;
    let mut rotated = None;
    let end;
    let unwraps = if scenario == Scenario::Restart {
        let unwraps = restart::conduct(options, &mut ground, customers, &recorder, wait).await?;
        end = clock.now();
        unwraps
    } else {
        let Some(engine) = ground.engine.clone() else {
            return Err(Failure::Usage("the drill has no engine".into()));
        };
        let before = ground.token.unwraps();
        let listener: Arc<dyn Listener> = recorder.clone();
        let look = Look::start(&engine, recorder.clone(), accounts);
        let ids: Vec<_> = customers.iter().map(|customer| customer.id.clone()).collect();
        let load = Load::start(customers, options.threads as usize, &engine, &listener)?;
        if scenario == Scenario::Rotation {
            rotated = Some(rotation::conduct(&mut ground, options, &engine, &ids, &recorder, wait).await?);
        } else {
            Stage { ground: &mut ground, recorder: &recorder, options, wait, held: None, away: None }
                .play(scenario)
                .await?;
        }
        // Before the load ends: what it does not do after this is no trouble.
        end = clock.now();
        load.stop().await;
        drop(look);
        let after = ground.token.unwraps();
        (after.0 - before.0, after.1 - before.1)
    };
    drop(machine);
    let timeline = recorder.read(end);
    let finished = Finished {
        scenario,
        settings: ground.settings.clone(),
        fast: options.fast,
        operator: options.operator,
        accounts: u32::try_from(accounts).unwrap_or(u32::MAX),
        threads: options.threads,
        profile: options.profile,
        slack: slack(options),
        token: ground.info.clone(),
        started_unix,
        timeline,
        unwraps,
        rotated,
    };
    ground.engine = None;
    // Undoing what is left starts processes.
    blocking(move || {
        drop(ground);
        Ok(())
    })
    .await?;
    Ok(finished)
}

/// Writes down where the lease stands, until it is dropped.
pub(crate) struct Look(tokio::task::JoinHandle<()>);

impl Look {
    fn start(engine: &Engine, recorder: Arc<Recorder>, accounts: usize) -> Self {
        let engine = engine.clone();
        Self(tokio::spawn(look(engine, accounts, move |at, leases| recorder.leases(at, leases))))
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells KEK version, phase and AEKs in memory of each lease again and again.
pub(crate) async fn look(engine: Engine, accounts: usize, tell: impl Fn(Instant, &[(u32, &str, usize)])) {
    let clock = Clock::default();
    let pause = if accounts > FLEET_MIN { LOOK_EVERY_FLEET } else { LOOK_EVERY };
    loop {
        let leases = engine.leases();
        // After the look: what is told as wiped was.
        let at = clock.now();
        let leases: Vec<_> =
            leases.iter().map(|lease| (lease.kek.version, phase_name(lease.phase), lease.filled_slots)).collect();
        tell(at, &leases);
        clock.sleep_until(at.plus(pause)).await;
    }
}

struct Stage<'a> {
    ground: &'a mut Ground,
    recorder: &'a Arc<Recorder>,
    options: &'a Options,
    wait: &'a Wait,
    held: Option<Held>,
    /// From where to where the token was moved.
    away: Option<(PathBuf, PathBuf)>,
}

impl Stage<'_> {
    async fn play(&mut self, scenario: Scenario) -> Result<(), Failure> {
        let Settings { poll_interval, grace, .. } = self.ground.settings;
        let owed = scenario.owed(&self.ground.settings);
        let recorder = self.recorder;
        let begun = now();
        self.wait.until(begun.plus(patience(self.options)), || recorder.all_are(Outcome::Ok, begun)).await;
        // A proof or two of the watch, as in a service that has run for a while.
        self.wait.rest("load", poll_interval * 2).await;
        let late = slack(self.options) + LATE;
        if matches!(owed, Owed::Denied(_) | Owed::Lapsed) {
            recorder.keys_before(keys_in(self.ground, std::process::id()).await?);
        }
        match owed {
            Owed::Denied(within) => {
                let act = self.take(scenario, Outcomes::of(&[Outcome::Ok, Outcome::Denied])).await?;
                self.wait.until(act.plus(within + late), || recorder.all_are(Outcome::Denied, act)).await;
                self.search(act.plus(within + late)).await?;
                self.wait.rest("denied", poll_interval).await;
            }
            Owed::Lapsed => {
                let act = self.take(scenario, Outcomes::of(&[Outcome::Ok, Outcome::Lapsed])).await?;
                self.wait.until(act.plus(grace + late), || recorder.all_are(Outcome::Lapsed, act)).await;
                self.search(act.plus(grace + late)).await?;
                self.wait.rest("lapsed", poll_interval).await;
            }
            Owed::Service(_) if scenario == Scenario::Flapping => {
                for flap in 0..FLAPS {
                    self.take(scenario, OK).await?;
                    self.wait.rest("unreachable", poll_interval * 3 / 2).await;
                    if flap + 1 < FLAPS {
                        self.give(scenario, OK).await?;
                        self.wait.rest("reachable", poll_interval * 3 / 2).await;
                    }
                }
            }
            Owed::Undisturbed => {} // played in `rotation`
            Owed::Service(lasting) => {
                let act = self.take(scenario, OK).await?;
                self.wait.rest("unreachable", act.plus(lasting).since(now())).await;
            }
        }
        let expected = if matches!(owed, Owed::Service(_)) { OK } else { RESUMING };
        let undone = self.give(scenario, expected).await?;
        let back = || recorder.all_are(Outcome::Ok, undone) && recorder.phase() == "active";
        if self.wait.until(undone.plus(patience(self.options)), back).await {
            recorder.expect(now(), OK);
        }
        self.wait.rest("active", poll_interval * 2).await;
        if scenario == Scenario::PinChanged && self.ground.actor.is_operator() {
            // What is cleaned up after the drill logs in with the PIN of the settings.
            self.ground.act("change the token's user PIN back to what it was", Vec::new()).await?;
        }
        Ok(())
    }

    /// Once the engine says that it wiped everything, or should have: where keys stand by the memory itself.
    async fn search(&self, give_up: Instant) -> Result<(), Failure> {
        self.wait.until(give_up, || self.recorder.aeks() == 0).await;
        self.recorder.keys_left(keys_in(self.ground, std::process::id()).await?);
        Ok(())
    }

    /// Takes the key away. From then on `right` is right.
    async fn take(&mut self, scenario: Scenario, right: Outcomes) -> Result<Instant, Failure> {
        let kek = kek_words(self.ground);
        let what = match scenario {
            Scenario::Revocation | Scenario::Fleet | Scenario::Restart | Scenario::Rotation => format!("disable {kek}"),
            Scenario::Destroy => format!("destroy {kek}, of which the token's backup has a copy"),
            Scenario::TokenRemoved => "take the token away from its module".into(),
            Scenario::PinChanged => "change the token's user PIN".into(),
            Scenario::Outage | Scenario::LongOutage | Scenario::Flapping => "make the token unreachable".into(),
            Scenario::Hang => "make calls to the token hang".into(),
        };
        self.recorder.expect(now(), right);
        let at = match scenario {
            _ if self.ground.actor.is_operator() => self.ground.act(&what, Vec::new()).await?,
            Scenario::Revocation | Scenario::Fleet | Scenario::Restart | Scenario::Rotation => {
                self.switch("disable", &what).await?
            }
            Scenario::Destroy => {
                let (tokens, backup) = (self.ground.tokens()?, self.beside("backup")?);
                let of = tokens.clone();
                let to = backup.clone();
                blocking(move || copy(&of, &to).map_err(|error| Failure::io(to.display(), error))).await?;
                self.ground.undo.push(move || drop(fs::remove_dir_all(backup)));
                let id = self.ground.kek.id.to_string();
                self.ground.act(&what, words(["destroy", &id])).await?
            }
            Scenario::TokenRemoved => {
                let token = token_directory(&self.ground.tokens()?)?;
                self.move_away(token, "token", &what).await?
            }
            Scenario::Outage | Scenario::LongOutage | Scenario::Flapping => {
                self.move_away(self.ground.tokens()?, "tokens", &what).await?
            }
            Scenario::PinChanged => self.change_pin().await?,
            Scenario::Hang => {
                let mut arguments = words(["hold-lock"]);
                arguments.extend(objects(&self.ground.tokens()?)?);
                let command = self.ground.launch.act(arguments)?;
                let (held, at) = blocking(move || Held::start(command)).await?;
                self.held = Some(held);
                at
            }
        };
        self.recorder.act("act", what, at);
        Ok(at)
    }

    /// Gives the key back.
    async fn give(&mut self, scenario: Scenario, right: Outcomes) -> Result<Instant, Failure> {
        let kek = kek_words(self.ground);
        let what = match scenario {
            Scenario::Revocation | Scenario::Fleet | Scenario::Restart | Scenario::Rotation => format!("enable {kek}"),
            Scenario::Destroy => "restore the token from its backup".into(),
            Scenario::TokenRemoved => "put the token back".into(),
            Scenario::PinChanged => "give the service the new PIN".into(),
            Scenario::Outage | Scenario::LongOutage | Scenario::Flapping => "make the token reachable".into(),
            Scenario::Hang => "let calls to the token end".into(),
        };
        self.recorder.expect(now(), right);
        let at = match scenario {
            Scenario::PinChanged if self.ground.actor.is_operator() => {
                let what = format!("write the new PIN to {}", self.ground.directory.join("pin").display());
                self.ground.act(&what, Vec::new()).await?
            }
            _ if self.ground.actor.is_operator() => self.ground.act(&what, Vec::new()).await?,
            Scenario::Revocation | Scenario::Fleet | Scenario::Restart | Scenario::Rotation => {
                self.switch("enable", &what).await?
            }
            Scenario::Destroy => {
                let (backup, tokens) = (self.beside("backup")?, self.ground.tokens()?);
                self.ground.act(&what, vec!["restore".into(), backup.into(), tokens.into()]).await?
            }
            Scenario::PinChanged => {
                let new = self.ground.directory.join("new-pin");
                let pin = fs::read(&new).map_err(|error| Failure::io(new.display(), error))?;
                let at = now();
                write_pin(&self.ground.directory.join("pin"), &zeroize::Zeroizing::new(pin))?;
                at
            }
            Scenario::Hang => {
                let at = now();
                self.held = None;
                at
            }
            Scenario::TokenRemoved | Scenario::Outage | Scenario::LongOutage | Scenario::Flapping => {
                let Some((place, away)) = self.away.take() else { return Ok(now()) };
                self.ground.act(&what, vec!["move".into(), away.into(), place.into()]).await?
            }
        };
        self.recorder.act("undoing", what, at);
        Ok(at)
    }

    async fn switch(&self, command: &str, what: &str) -> Result<Instant, Failure> {
        let (id, profile) = (self.ground.kek.id.to_string(), self.options.profile);
        self.ground.act(what, words([command, &id, profile.name()])).await
    }

    fn beside(&self, name: &str) -> Result<PathBuf, Failure> {
        Ok(self.ground.tokens()?.with_file_name(name))
    }

    async fn move_away(&mut self, place: PathBuf, name: &str, what: &str) -> Result<Instant, Failure> {
        let away = self.beside(&format!("{name}.away"))?;
        let (back, to) = (away.clone(), place.clone());
        // Whatever ends the drill; nothing is there to be moved when it was moved back.
        self.ground.undo.push(move || drop(fs::rename(back, to)));
        self.away = Some((place.clone(), away.clone()));
        self.ground.act(what, vec!["move".into(), place.into(), away.into()]).await
    }

    async fn change_pin(&mut self) -> Result<Instant, Failure> {
        let directory = self.ground.directory.clone();
        let (pin, old, new) = (directory.join("pin"), directory.join("old-pin"), directory.join("new-pin"));
        let was = fs::read(&pin).map_err(|error| Failure::io(pin.display(), error))?;
        write_pin(&old, &zeroize::Zeroizing::new(was))?;
        let mut random = [0; 16];
        fill_random(&mut random)?;
        write_pin(&new, hex(&random).as_bytes())?;
        let launch = self.ground.launch.clone();
        let (from, to) = (old.clone(), new.clone());
        let at = blocking(move || set_pin(&launch, &from, &to)).await?;
        let launch = self.ground.launch.clone();
        self.ground.undo.push(move || {
            if let Err(failure) = set_pin(&launch, &new, &old) {
                tracing::warn!(%failure, "the token's PIN could not be changed back");
            }
        });
        Ok(at)
    }
}

fn now() -> Instant {
    Clock::default().now()
}

/// Places in a process's memory where an AEK of the drill, or a round key of one, stands.
pub(crate) async fn keys_in(ground: &Ground, process: u32) -> Result<u64, Failure> {
    let token = ground.token.clone();
    blocking(move || token.keys.find(process)).await
}

/// The KEK as people find it in the token.
pub(crate) fn kek_words(ground: &Ground) -> String {
    match ground.actor.is_operator() {
        true => format!("the KEK {} (CKA_ID {})", ground.kek.label, ground.kek.id),
        false => format!("the KEK {}", ground.kek.label),
    }
}

pub(crate) fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.map(OsString::from).into()
}

/// The one token of with-token's SoftHSM.
fn token_directory(tokens: &Path) -> Result<PathBuf, Failure> {
    let failed = |error| Failure::io(tokens.display(), error);
    for entry in fs::read_dir(tokens).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            return Ok(path);
        }
    }
    Err(failed(std::io::Error::new(std::io::ErrorKind::NotFound, "holds no token")))
}

/// SoftHSM's object files.
fn objects(tokens: &Path) -> Result<Vec<OsString>, Failure> {
    let token = token_directory(tokens)?;
    let failed = |error| Failure::io(token.display(), error);
    let mut objects = Vec::new();
    for entry in fs::read_dir(&token).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "object") {
            objects.push(path.into());
        }
    }
    Ok(objects)
}

/// Copies a directory of files and directories.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
