//! `keyleash seal` of a file beside `rage`, `gpg --symmetric` and `cat`, on one disk.
//!
//! The input is in the page cache of all of them, the output is a new file, nothing of an earlier turn is left to be written when
//! one begins, and they take turns. Two times are told. *Until it is on the disk*: the command, then a sync of its output; a sealed
//! copy that a power cut takes away was none. *Until the command returns*: keyleash has synced file and directory by then,
//! the others have not.
//!
//! What each does. keyleash: the AEK unwrapped in the token, blocks of 64 KiB under a DEK each, bound to their place in the file.
//! rage: an X25519 recipient (a passphrase would spend a second in scrypt), chunks of 64 KiB in ChaCha20-Poly1305. gpg: a passphrase
//! from a file, AES-256 in CFB with an MDC, no compression. cat: reads and writes.

use crate::{
    Scale,
    common::pairs::{Rounds, Spread},
    table::Table,
};
use keyleash::clock::Clock;
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// The account and KEK that seal.
const ACCOUNT: &str = "bench";
const CHUNK_BYTES: usize = 1 << 20;
/// On a slow disk there are fewer rounds than were asked for, so that they end within this time; never fewer than these.
const ROUNDS_TIME: Duration = Duration::from_secs(6 * 60);
const ROUNDS_MIN: usize = 3;
/// Of /proc/self/stat.
const TICKS_HZ: f64 = 100.0;

/// The command line's binary, where it is compiled.
const KEYLEASH: Option<&str> = option_env!("CARGO_BIN_EXE_keyleash");

/// Where the files are, and who works on them.
struct Yard {
    dir: PathBuf,
    input: PathBuf,
    output: PathBuf,
    tools: Vec<Tool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Keyleash,
    Rage,
    Gpg,
    Cat,
}

/// One turn of one tool.
#[derive(Debug, Clone, Copy)]
struct Turn {
    returned_ns: f64,
    durable_ns: f64,
    cpu_ns: f64,
}

impl Tool {
    const ALL: [Self; 4] = [Self::Keyleash, Self::Rage, Self::Gpg, Self::Cat];

    const fn name(self) -> &'static str {
        match self {
            Self::Keyleash => "keyleash",
            Self::Rage => "rage",
            Self::Gpg => "gpg",
            Self::Cat => "cat",
        }
    }
}

/// Rows, and a line that says which versions were compared.
pub(crate) fn seal_a_file(scale: &Scale, dir: &Path, table: &mut Table) -> io::Result<String> {
    let yard = Yard::new(dir, scale.file_bytes, table)?;
    let versions = yard.versions();
    if yard.tools.first() != Some(&Tool::Keyleash) {
        return Ok(versions);
    }
    let (clock, mut warm_up) = (Clock::default(), Duration::ZERO);
    for &tool in &yard.tools {
        let start = clock.now();
        yard.turn(tool)?;
        warm_up += clock.now().since(start);
    }
    let in_time = (ROUNDS_TIME.as_secs_f64() / warm_up.as_secs_f64()) as usize;
    let rounds = scale.file_rounds.min(in_time.max(ROUNDS_MIN));
    let mut turns: Vec<Vec<Turn>> = vec![Vec::new(); yard.tools.len()];
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..yard.tools.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for place in order {
            turns[place].push(yard.turn(yard.tools[place])?);
        }
    }
    fs::remove_dir_all(&yard.dir)?;
    let of = |what: fn(&Turn) -> f64| Rounds::from_ns(turns.iter().map(|of| of.iter().map(what).collect()).collect());
    let (durable, returned, cpu) = (of(|turn| turn.durable_ns), of(|turn| turn.returned_ns), of(|turn| turn.cpu_ns));
    let gib_s = |ns: Spread| scale.file_bytes as f64 / ns.median * 1e9 / f64::from(1 << 30);
    for (place, tool) in yard.tools.iter().enumerate().skip(1) {
        let speeds = |rounds: &Rounds| format!("{:.2} and {:.2} GiB/s", gib_s(rounds.ns(0)), gib_s(rounds.ns(place)));
        let size = scale.file_bytes >> 20;
        table.put(
            &format!("file, {}", tool.name()),
            durable.ratio(0, place),
            format!("{size} MiB, {rounds} rounds: {}", speeds(&durable)),
        );
        table.put(&format!("file, {}, returned", tool.name()), returned.ratio(0, place), speeds(&returned));
        if *tool != Tool::Cat {
            table.put(&format!("file, {}, cpu", tool.name()), cpu.ratio(0, place), "");
        }
    }
    Ok(versions)
}

impl Yard {
    fn new(dir: &Path, bytes: u64, table: &mut Table) -> io::Result<Self> {
        let _ = fs::remove_dir_all(dir); // of a run that was stopped
        fs::create_dir_all(dir)?;
        let (input, output) = (dir.join("input"), dir.join("output"));
        write_input(&input, bytes)?;
        let mut yard = Self { dir: dir.into(), input, output, tools: Vec::new() };
        for tool in Tool::ALL {
            match yard.set_up(tool) {
                Ok(()) => yard.tools.push(tool),
                Err(why) => table.leave_out(format!("a file through {}: {why}", tool.name())),
            }
        }
        Ok(yard)
    }

    /// What a tool needs before its first turn.
    fn set_up(&self, tool: Tool) -> io::Result<()> {
        match tool {
            Tool::Keyleash => {
                succeed(self.keyleash()?.args(["kek", "create", ACCOUNT]))?;
                succeed(self.keyleash()?.args(["account", "create", ACCOUNT, "--kek", ACCOUNT]))?;
            }
            Tool::Rage => {
                succeed(Command::new("rage").arg("--version"))?;
                succeed(Command::new("rage-keygen").arg("-o").arg(self.dir.join("rage.key")))?;
            }
            Tool::Gpg => {
                succeed(Command::new("gpg").arg("--version"))?;
                // Its home is readable by its owner alone, else it warns.
                let home = self.dir.join("gpg");
                fs::create_dir(&home)?;
                fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
                fs::write(self.dir.join("passphrase"), "a passphrase of a benchmark\n")?;
            }
            Tool::Cat => succeed(Command::new("cat").arg("--version")).map(drop)?,
        }
        Ok(())
    }

    fn keyleash(&self) -> io::Result<Command> {
        let path = KEYLEASH.ok_or_else(|| io::Error::other("the feature `cli` is not compiled in"))?;
        let mut command = Command::new(path);
        // Not the caller's own configuration.
        command.current_dir(&self.dir).env("KEYLEASH_STORE", self.dir.join("store.redb"));
        Ok(command)
    }

    fn command(&self, tool: Tool) -> io::Result<Command> {
        let (input, output) = (&self.input, &self.output);
        Ok(match tool {
            Tool::Keyleash => {
                let mut command = self.keyleash()?;
                command.args(["seal", "--account", ACCOUNT]).arg(input).arg("-o").arg(output);
                command
            }
            Tool::Rage => {
                let key = fs::read_to_string(self.dir.join("rage.key"))?;
                let recipient = key.lines().find_map(|line| line.strip_prefix("# public key: "));
                let mut command = Command::new("rage");
                command.args(["-r", recipient.unwrap_or_default(), "-o"]).arg(output).arg(input);
                command
            }
            Tool::Gpg => {
                let mut command = Command::new("gpg");
                command.arg("--homedir").arg(self.dir.join("gpg"));
                command.args(["--batch", "--quiet", "--no-symkey-cache", "--pinentry-mode", "loopback"]);
                command.arg("--passphrase-file").arg(self.dir.join("passphrase"));
                command.args(["--compress-algo", "none", "--cipher-algo", "AES256", "--symmetric", "-o"]);
                command.arg(output).arg(input);
                command
            }
            Tool::Cat => {
                let mut command = Command::new("cat");
                command.arg(input).stdout(File::create(output)?);
                command
            }
        })
    }

    fn turn(&self, tool: Tool) -> io::Result<Turn> {
        match fs::remove_file(&self.output) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        succeed(Command::new("sync").arg("-f").arg(&self.dir))?;
        let mut command = self.command(tool)?;
        command.stdin(Stdio::null());
        let (clock, cpu) = (Clock::default(), children_cpu_ns()?);
        let start = clock.now();
        let status = command.status()?;
        let returned = clock.now();
        if !status.success() {
            return Err(io::Error::other(format!("{} ended with {status}", tool.name())));
        }
        File::open(&self.output)?.sync_all()?;
        let ns = |end: keyleash::clock::Instant| end.since(start).as_nanos() as f64;
        Ok(Turn { returned_ns: ns(returned), durable_ns: ns(clock.now()), cpu_ns: children_cpu_ns()? - cpu })
    }

    fn versions(&self) -> String {
        let first_line = |program: &str| -> Option<String> {
            let output = Command::new(program).arg("--version").output().ok()?;
            String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
        };
        ["rage", "gpg", "cat"].iter().filter_map(|program| first_line(program)).collect::<Vec<_>>().join(", ")
    }
}

/// Bytes that nobody compresses. Reading them back is not needed: what was written is in the page cache.
fn write_input(path: &Path, bytes: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    keyleash::secret::fill_random(&mut chunk).map_err(io::Error::other)?;
    let mut file = File::create(path)?;
    for number in 0..bytes / CHUNK_BYTES as u64 {
        chunk[..8].copy_from_slice(&number.to_be_bytes());
        file.write_all(&chunk)?;
    }
    file.sync_all()
}

fn succeed(command: &mut Command) -> io::Result<Vec<u8>> {
    let program = PathBuf::from(command.get_program());
    let name = program.file_name().unwrap_or_default().display().to_string();
    let named = |what: &dyn std::fmt::Display| io::Error::other(format!("{name}: {what}"));
    let output = command.output().map_err(|error| named(&error))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(named(&String::from_utf8_lossy(&output.stderr).trim()))
}

/// Processor time of all children that have ended, user and system.
fn children_cpu_ns() -> io::Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The second field, the name in parentheses, may hold spaces; cutime and cstime are the 16th and 17th.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: Vec<f64> = rest.split_whitespace().skip(13).take(2).filter_map(|ticks| ticks.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / TICKS_HZ * 1e9)
}
