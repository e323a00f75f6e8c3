//! The acts: done to the token by a process of its own, as in production, or by a person.
//!
//! The process is this binary again with the hidden command `drill __act`; it prints the instant just before the act
//! (CLOCK_BOOTTIME, which all processes share), so that what is measured from it is never too short.

use super::{
    args::{Act, Deed},
    guard::{may_move, may_touch},
};
use crate::{exit::Failure, open_token::wait_until_listed, setup::Setup, streams::Standard};
use keyleash::{
    Error,
    clock::{Clock, Instant},
    token::{
        KekId, Token,
        pkcs11::{self, Pkcs11Token, operator::Operator},
    },
};
use rustix::fs::{FlockOperation, fcntl_lock};
use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// The other side: does the act in this process, where the drill itself may act and nowhere else.
pub(crate) async fn act(act: Act, setup: &Setup) -> Result<(), Failure> {
    let clock = Clock::default();
    let Act { token_serial, deed } = act;
    let operator = || operator(setup, token_serial.as_deref());
    let at = match deed {
        Deed::Enable { id, profile } => operator().await?.enable(&kek_id(&id)?, profile).await.map_err(Error::from)?,
        Deed::Disable { id, profile } => {
            operator().await?.disable(&kek_id(&id)?, profile).await.map_err(Error::from)?
        }
        Deed::Destroy { id } => operator().await?.destroy(&kek_id(&id)?).await.map_err(Error::from)?,
        Deed::SetPin { new } => {
            let old = setup.token_settings()?.pin;
            let new = pkcs11::PinSource::File(new);
            operator().await?.set_pin(&old, &new).await.map_err(Error::from)?
        }
        Deed::LogIn => {
            let at = clock.now();
            drop(operator().await?);
            at
        }
        Deed::Move { from, to } => {
            may_move(&[&from, &to])?;
            let at = clock.now();
            fs::rename(&from, &to).map_err(|error| Failure::io(from.display(), error))?;
            at
        }
        Deed::Restore { backup, place } => {
            may_move(&[&backup, &place])?;
            let at = clock.now();
            restore(&backup, &place).map_err(|error| Failure::io(place.display(), error))?;
            at
        }
        Deed::HoldLock { files } => {
            may_move(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
            return hold_lock(&files, &clock);
        }
    };
    say(at)
}

/// How often a PIN is changed that the token does not keep.
const PIN_CHANGES_MAX: usize = 10;

/// Changes the token's PIN from what is in `old` to what is in `new`, by processes of this binary, and gives when. Once more where
/// the new one turns out to be lost: SoftHSM does that when another process logs in at that instant (`src/manual/modules.md`), and
/// a PIN that was not changed denies nobody.
pub(crate) fn set_pin(launch: &Launch, old: &Path, new: &Path) -> Result<Instant, Failure> {
    let with_pin = |pin: &Path, arguments| {
        let mut command = launch.act(arguments)?;
        command.env_remove("KEYLEASH_PIN").env_remove("KEYLEASH_PIN_ENV").env("KEYLEASH_PIN_FILE", pin);
        run(command)
    };
    for _ in 0..PIN_CHANGES_MAX {
        let at = with_pin(old, vec!["set-pin".into(), new.into()])?;
        match with_pin(new, vec!["log-in".into()]) {
            Err(failure) if failure.to_string().contains("CKR_PIN_INCORRECT") => {
                tracing::warn!(
                    "the token lost the new PIN, because another process logged in meanwhile: changing it again"
                );
            }
            // Also when it could not be asked: what the drill measures will say.
            _ => return Ok(at),
        }
    }
    Err(failed(&format!(
        "the token's PIN was changed {PIN_CHANGES_MAX} times, and the token kept the old one each time"
    )))
}

fn say(at: Instant) -> Result<(), Failure> {
    let line = format!("{}\n", at.as_nanos());
    Standard::Output.file()?.write_all(line.as_bytes()).map_err(Failure::stdout)
}

async fn operator(setup: &Setup, told: Option<&str>) -> Result<Operator, Failure> {
    let token = Pkcs11Token::open(setup.token_settings()?).await.map_err(Error::from)?;
    wait_until_listed(&token).await;
    may_touch(told, &token.info().await.map_err(Error::from)?)?;
    Ok(Operator::new(token))
}

fn kek_id(hex: &str) -> Result<KekId, Failure> {
    let digits: Option<Vec<u32>> = hex.chars().map(|digit| digit.to_digit(16)).collect();
    let bytes = digits
        .unwrap_or_default()
        .chunks_exact(2)
        .map(|pair| pair.iter().fold(0, |byte, digit| byte * 16 + *digit as u8))
        .collect::<Vec<u8>>();
    Ok(KekId::new(bytes)?)
}

/// Puts the backup in the place of what is there.
fn restore(backup: &Path, place: &Path) -> io::Result<()> {
    let gone = place.with_extension("gone");
    fs::rename(place, &gone)?;
    fs::rename(backup, place)?;
    fs::remove_dir_all(&gone)
}

/// Holds POSIX locks until standard input ends, so that they end with whoever asked for them, however it ends.
fn hold_lock(files: &[PathBuf], clock: &Clock) -> Result<(), Failure> {
    let at = clock.now();
    let mut held = Vec::new();
    for path in files {
        let failed = |error: io::Error| Failure::io(path.display(), error);
        let file = fs::File::options().read(true).write(true).open(path).map_err(failed)?;
        fcntl_lock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        held.push(file);
    }
    say(at)?;
    // However it ends, the locks end with it.
    let _ = Standard::Input.file()?.read(&mut [0]);
    Ok(())
}

/// Who does the acts.
#[derive(Debug, Clone)]
pub(crate) enum Actor {
    /// A process of this binary.
    Process(Launch),
    /// A person, who is told what to do.
    Operator,
}

impl Actor {
    /// Does the act and gives when. `words` says it to a person.
    pub(crate) async fn act(&self, words: &str, command: Vec<OsString>) -> Result<Instant, Failure> {
        match self {
            Self::Process(launch) => {
                let command = launch.act(command)?;
                blocking(move || run(command)).await
            }
            Self::Operator => self.ask(words).await,
        }
    }

    /// Tells a person what to do, and waits until it is done.
    async fn ask(&self, words: &str) -> Result<Instant, Failure> {
        let words = words.to_owned();
        blocking(move || {
            // Also with --json: the person sits at standard error.
            let _ = writeln!(io::stderr().lock(), "\n>> {words}; then press Enter");
            let mut line = String::new();
            let failed = |error| Failure::io(Standard::Input.name(), error);
            // With the buffer: what came with this line is for the next question. One that is closed has ended.
            #[allow(clippy::disallowed_methods)]
            let read = io::stdin().lock().read_line(&mut line).map_err(failed)?;
            if read == 0 {
                return Err(Failure::Usage("standard input ended before the operator said that it is done".into()));
            }
            Ok(Clock::default().now())
        })
        .await
    }

    pub(crate) fn is_operator(&self) -> bool {
        matches!(self, Self::Operator)
    }
}

/// This binary again, with a hidden command.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) config: Option<PathBuf>,
    /// The token that this drill may act on: it has asked before.
    pub(crate) serial: String,
}

impl Launch {
    /// Acts on the drill's token.
    pub(crate) fn act(&self, deed: Vec<OsString>) -> Result<Command, Failure> {
        let mut command = self.hidden("__act")?;
        command.arg("--token-serial").arg(&self.serial).args(deed);
        Ok(command)
    }

    pub(crate) fn hidden(&self, name: &str) -> Result<Command, Failure> {
        let binary = env::current_exe().map_err(|error| Failure::io("finding this binary", error))?;
        let mut command = Command::new(binary);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command.arg("drill").arg(name).stdin(Stdio::null());
        Ok(command)
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::io("a thread of the drill", io::Error::other(error))),
    }
}

/// Runs an act to its end.
pub(super) fn run(mut command: Command) -> Result<Instant, Failure> {
    let output = command.output().map_err(|error| Failure::io("starting the act", error))?;
    let words = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(failed(&words));
    }
    instant(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| failed(&words))
}

fn failed(words: &str) -> Failure {
    Failure::io("the act failed", io::Error::other(words.trim().trim_start_matches("keyleash: ").to_owned()))
}

fn instant(line: &str) -> Option<Instant> {
    line.trim().parse().ok().map(Instant::from_nanos)
}

/// A process that holds the token's locks. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Held(Child);

impl Held {
    /// Starts it, and gives when the locks began.
    pub(crate) fn start(mut command: Command) -> Result<(Self, Instant), Failure> {
        let starting = |error| Failure::io("starting the act", error);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(starting)?;
        let mut held = Self(child);
        let mut line = String::new();
        if let Some(out) = held.0.stdout.take() {
            BufReader::new(out).read_line(&mut line).map_err(starting)?;
        }
        let at = instant(&line).ok_or_else(|| failed("it could not hold the locks"))?;
        Ok((held, at))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It ends by itself when standard input does; this is quicker.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
