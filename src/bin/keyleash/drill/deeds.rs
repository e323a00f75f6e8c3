//! What a drill does to its token: by another process, or by a person who is told.

use super::{
    act::{Held, blocking, set_pin},
    args::Options,
    ground::{Ground, destroy_at_the_end, write_pin},
    nodes::{self, Nodes},
};
use crate::{exit::Failure, output::hex};
use async_trait::async_trait;
use keyleash::{
    Engine,
    clock::{Clock, Instant},
    drill::{Done, Operator, Scenario, Who},
    name::{KekName, KekVersion},
    secret::fill_random,
    token::KekId,
};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

/// The operator of a drill on its ground.
pub(crate) struct Deeds<'a> {
    ground: &'a mut Ground,
    options: &'a Options,
    nodes: Option<&'a Nodes>,
    scenario: Scenario,
    accounts: usize,
    held: Option<Held>,
    /// From where to where the token was moved.
    away: Option<(PathBuf, PathBuf)>,
}

#[async_trait]
impl Operator for Deeds<'_> {
    type Error = Failure;

    fn who(&self) -> Who {
        if self.ground.actor.is_operator() { Who::Person } else { Who::Process }
    }

    async fn take(&mut self) -> Result<Done, Failure> {
        let kek = self.kek_words();
        let what = match self.scenario {
            Scenario::Destroy => format!("destroy {kek}, of which the token's backup has a copy"),
            Scenario::TokenRemoved => "take the token away from its module".into(),
            Scenario::PinChanged => "change the token's user PIN".into(),
            Scenario::Outage | Scenario::LongOutage | Scenario::Flapping => "make the token unreachable".into(),
            Scenario::Hang => "make calls to the token hang".into(),
            _ => format!("disable {kek}"),
        };
        let at = match self.scenario {
            _ if self.ground.actor.is_operator() => self.ground.act(&what, Vec::new()).await?,
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
            _ => self.switch("disable", &what).await?,
        };
        Ok(Done { what, at })
    }

    async fn give(&mut self) -> Result<Done, Failure> {
        let kek = self.kek_words();
        let what = match self.scenario {
            Scenario::Destroy => "restore the token from its backup".into(),
            Scenario::TokenRemoved => "put the token back".into(),
            Scenario::PinChanged => "give the service the new PIN".into(),
            Scenario::Outage | Scenario::LongOutage | Scenario::Flapping => "make the token reachable".into(),
            Scenario::Hang => "let calls to the token end".into(),
            _ => format!("enable {kek}"),
        };
        let at = match self.scenario {
            Scenario::PinChanged if self.ground.actor.is_operator() => {
                let what = format!("write the new PIN to {}", self.ground.directory.join("pin").display());
                self.ground.act(&what, Vec::new()).await?
            }
            _ if self.ground.actor.is_operator() => self.ground.act(&what, Vec::new()).await?,
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
                match self.away.take() {
                    None => now(),
                    Some((place, away)) => {
                        self.ground.act(&what, vec!["move".into(), away.into(), place.into()]).await?
                    }
                }
            }
            _ => self.switch("enable", &what).await?,
        };
        Ok(Done { what, at })
    }

    /// Makes the next version, or adopts the one that a person makes.
    async fn rotate(&mut self, engine: &Engine, name: &KekName) -> Result<u32, Failure> {
        let made = match self.ground.actor.is_operator() {
            false => engine.rotate_kek(name).await?,
            true => {
                let id = self.made_by_operator(engine, name).await?;
                engine.adopt_kek(name, &id).await?
            }
        };
        destroy_at_the_end(&mut self.ground.undo, &self.ground.launch, &made.id);
        Ok(made.version)
    }

    async fn destroy(&mut self, old: &KekVersion, id: &KekId) -> Result<Option<Done>, Failure> {
        let id = id.to_string();
        let what = format!("destroy version {} in the token (CKA_ID {id})", old.version);
        let at = self.ground.act(&what, words(["destroy", &id])).await?;
        Ok(Some(Done { what: format!("destroy version {} in the token", old.version), at }))
    }

    async fn reach(&mut self, reachable: bool) -> Result<Done, Failure> {
        let what = if reachable { "make the token reachable" } else { "make the token unreachable" };
        let command = match self.ground.actor.is_operator() {
            true => Vec::new(),
            false => {
                let (place, away) = (self.ground.tokens()?, self.beside("tokens.away")?);
                let (from, to) = if reachable { (away, place) } else { (place, away) };
                vec!["move".into(), from.into(), to.into()]
            }
        };
        Ok(Done { what: what.into(), at: self.ground.act(what, command).await? })
    }

    async fn lose_leader(&mut self) -> Result<Option<Done>, Failure> {
        let Some(command) = self.nodes.and_then(|nodes| nodes.lose_leader.clone()) else { return Ok(None) };
        let at = now();
        blocking(move || nodes::run(&command)).await?;
        Ok(Some(Done { what: "kill the leader of the store".into(), at }))
    }

    fn start(&mut self) -> Result<Child, Failure> {
        let mut command = self.ground.launch.hidden("__serve")?;
        let (accounts, threads) = (self.accounts.to_string(), self.options.threads.to_string());
        command.arg(&self.ground.directory).args([accounts, threads]);
        if self.options.fast {
            command.arg("--fast");
        }
        if let Some(nodes) = self.nodes {
            command.arg("--store").arg(&nodes.url);
        }
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        spawned.map_err(|error| Failure::io("starting the service", error))
    }
}

impl<'a> Deeds<'a> {
    pub(crate) fn new(
        ground: &'a mut Ground,
        options: &'a Options,
        nodes: Option<&'a Nodes>,
        scenario: Scenario,
        accounts: usize,
    ) -> Self {
        if let Ok(place) = ground.tokens()
            && scenario == Scenario::Restart
        {
            let away = place.with_file_name("tokens.away");
            ground.undo.push(move || drop(fs::rename(away, place)));
        }
        Self { ground, options, nodes, scenario, accounts, held: None, away: None }
    }

    /// The KEK as people find it in the token.
    fn kek_words(&self) -> String {
        match self.ground.actor.is_operator() {
            true => format!("the KEK {} (CKA_ID {})", self.ground.kek.label, self.ground.kek.id),
            false => format!("the KEK {}", self.ground.kek.label),
        }
    }

    /// The key that a person made in the token, as HSM vendors rotate.
    async fn made_by_operator(&self, engine: &Engine, name: &KekName) -> Result<KekId, Failure> {
        let before = unknown(engine).await?;
        let current = engine.kek(name).await?.versions.iter().map(|version| version.record.version).max();
        let what = format!(
            "make a key in the token like the KEK {} (CKA_ID {}), with another CKA_ID, to be adopted as version {}",
            self.ground.kek.label,
            self.ground.kek.id,
            current.unwrap_or_default() + 1
        );
        self.ground.act(&what, Vec::new()).await?;
        let made: Vec<_> = unknown(engine).await?.difference(&before).cloned().collect();
        match <[KekId; 1]>::try_from(made) {
            Ok([id]) => Ok(id),
            Err(several) => Err(Failure::Usage(format!(
                "{} new keys were found in the token that could be KEKs, one is needed: see `keyleash kek list`",
                several.len()
            ))),
        }
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

async fn unknown(engine: &Engine) -> Result<BTreeSet<KekId>, Failure> {
    Ok(engine.unknown_keks().await?.into_iter().map(|kek| kek.id).collect())
}

fn now() -> Instant {
    Clock::default().now()
}

fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
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
