//! The command line.

use crate::{
    consent::Consent,
    exit::{self, Failure},
    profiles::profiles,
    streams::Standard,
};
use clap::{Args, Parser, Subcommand};
use keyleash::token::Profile;
use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

const EXAMPLES: &str = "\
Examples:
  softhsm/with-token keyleash quickstart    the whole way, on a token of its own
  keyleash token check                      is this token set up well?
  keyleash kek create tenants
  keyleash account create alice --kek tenants
  tar c photos | keyleash seal --account alice -o photos.sealed
  keyleash open photos.sealed | tar x

Settings come from keyleash.toml (or --config FILE), and over it from
KEYLEASH_MODULE, KEYLEASH_TOKEN_LABEL, KEYLEASH_PIN_FILE, KEYLEASH_STORE
(./keyleash.redb) and the other KEYLEASH_* variables.

With --json the result is one JSON object on standard output, or on standard
error when standard output carries data; a failure is
{\"error\": {\"kind\", \"message\", \"exit\"}} on standard error.
";

const SEAL_EXAMPLES: &str = "\
Examples:
  keyleash seal --account alice notes.txt -o notes.sealed
  pg_dump | keyleash seal --account alice > dump.sealed

OUT appears only when it is complete: it is written beside its place, as
.OUT.*.keyleash, and renamed. Only SIGKILL and power loss leave that behind:
delete it. OUT has mode 0600.";

const OPEN_EXAMPLES: &str = "\
Examples:
  keyleash open notes.sealed -o notes.txt
  keyleash open < dump.sealed | psql

The account is named in the sealed file. Only bytes that were authenticated are
written, block by block; that a file was cut short shows only at its end. So on
standard output wait for exit status 0 before you trust that it is the whole.
OUT appears only when it is; SIGKILL and power loss leave .OUT.*.keyleash
beside it, with plaintext: delete that.";

const SWITCH_EXAMPLES: &str = "\
Examples:
  keyleash kek disable tenants    asks, and says what it will do
  keyleash kek enable tenants --yes

Switches CKA_DECRYPT (CKA_UNWRAP for aes-kw) of the key in the token. The store
is only read, and that the KEK is denied is no hindrance.";

const SCHEDULE_HELP: &str = "\
Policies are set by `keyleash kek policy` and `keyleash account policy`. A
service does what is due by itself; where only commands are used, call
`keyleash schedule --run` from a timer. Of all that would work, one process at a
time does. What was missed is caught up once.

Ends with 5 when something that is due failed, or a record that cannot be read
may be due; it is reported, and left as it was.";

const GRANT_HELP: &str = "\
A caller is an id of 1 to 128 bytes, or the beginning of ids with a * behind it.
The caller of a command is the user of the operating system, by the real user id:
the name in /etc/passwd, or uid:N. Without any grant everybody may do everything;
the first one ends that for good, and must give grant.write to somebody.

Operations: get wrap unwrap seal open create rotate rewrap move delete undelete
purge secret.get secret.set audit.read grant.write drill
Roles: reader, contributor (all but what shows secrets or destroys), operator
(what is done to keys, not to data), and those of `keyleash grant role add`.

Examples:
  keyleash grant add alice --role operator
  keyleash grant add 'web-*' --operations unwrap,seal,open --kek tenants
  keyleash grant test web-7 open --account t-1";

/// HSM-backed envelope encryption, whose keys stay on a leash.
///
/// Who takes the KEK away from the token takes the data away.
#[derive(Debug, Parser)]
#[command(name = "keyleash", version, after_help = format!("{EXAMPLES}\n{}", exit::help()))]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Show results and failures as JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say no warnings, and show no progress.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Say what happens on the way, with times.
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub(crate) verbose: bool,
    /// Read settings from this file [default: keyleash.toml, if there is one].
    #[arg(long, global = true, value_name = "FILE", env = "KEYLEASH_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a KEK and an account, seal a file, open it, compare, and say what to try next.
    Quickstart(Quickstart),
    /// Look at the token.
    #[command(subcommand)]
    Token(Token),
    /// KEKs (the keys that never leave the token): make, list, rotate, re-wrap, retire.
    #[command(subcommand)]
    Kek(Kek),
    /// Accounts: make, list, rotate, move, delete.
    #[command(subcommand)]
    Account(Account),
    /// Secrets of an account (credentials, keys, certificates): set, get, list, delete.
    #[command(subcommand)]
    Secret(crate::secret::args::Secret),
    /// Who may do what: grants and roles, which all processes of the store obey.
    #[command(subcommand, after_help = GRANT_HELP)]
    Grant(crate::grant::Grant),
    /// The trail of who used which key: verify it, show it, give a customer their part of it.
    #[command(subcommand)]
    Audit(crate::audit::args::Audit),
    /// Tell somebody of what the trail shows: [[alert]] in the configuration.
    #[command(subcommand, after_help = crate::alert::HELP)]
    Alert(crate::alert::Alert),
    /// Look at the store.
    #[command(subcommand)]
    Store(Store),
    /// Show the settings in force, or begin a file of them.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Seal a file or a stream of any length for an account.
    #[command(after_help = SEAL_EXAMPLES)]
    Seal(Seal),
    /// Open a sealed file or stream.
    #[command(after_help = OPEN_EXAMPLES)]
    Open(Open),
    /// Show what a sealed file says of itself: account, AEK versions, blocks. Needs neither token nor store, and verifies nothing.
    Inspect(Inspect),
    /// Show token, KEKs, and the leases that a proof under each KEK gives.
    ///
    /// Ends with 0 when all are granted, else as the first that is not; with 2 when one is granted and wraps nothing new.
    Status(StatusArgs),
    /// Show what is due for rotation by policy, what comes next, and who does it; or do it.
    #[command(after_help = SCHEDULE_HELP)]
    Schedule(ScheduleArgs),
    /// Rehearse revocation, outage and resumption on the token, under load, and measure them against the promises.
    #[command(subcommand)]
    Drill(crate::drill::args::Drill),
    /// Print shell completions.
    #[command(
        after_help = "Example:\n  keyleash completions bash > ~/.local/share/bash-completion/completions/keyleash"
    )]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Write a manual page for each command (keyleash.1, keyleash-seal.1, …).
    #[command(after_help = "Example:\n  keyleash man ~/.local/share/man/man1 && man keyleash-seal")]
    Man {
        /// Where to, which must be there. Pages that are there are replaced.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Go on, and show each change as it comes, a line (or with --json an object) each, until interrupted.
    #[arg(long)]
    pub(crate) watch: bool,
    /// While it watches, answer HTTP there, on this machine alone: /metrics for Prometheus, and for load balancers /health and
    /// /health/KEK (200 for ready and degraded, 503 for dark).
    #[arg(long, value_name = "ADDRESS:PORT", requires = "watch")]
    pub(crate) listen: Option<SocketAddr>,
    /// Show the metrics of this one look instead, as the text that Prometheus reads.
    #[arg(long, conflicts_with = "watch")]
    pub(crate) prometheus: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Quickstart {
    /// What to seal, up to 64 MiB [default: README.md, here or keyleash's own].
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show every key, what is in force, and where it was said. With --json, what is allowed too. Never shows a PIN.
    Show,
    /// Write a file (keyleash.toml, or the one that --config names) with every key and its default as a comment.
    Init,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Show module, slot, token and mechanisms, try every wrap profile, and say what is wrong and what to do.
    ///
    /// Ends with 0 when a profile works on each token. Leaves nothing in a token.
    Check {
        /// Only this one of the tokens that are configured.
        #[arg(long, value_name = "NAME")]
        token: Option<OsString>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Store {
    /// Read all of it, and name what is damaged or missing. Asks no token, changes no record.
    ///
    /// Of a store on a server it says how long a read and a write take, and what the server lacks. Ends with 0 when all of it is whole, with 5
    /// when it is not.
    Check,
    /// Copy a store to a place where none is, of whatever kind, and verify it. What was cut short goes on when it is called again.
    ///
    /// Nobody may write to FROM meanwhile, nor later: the copy is the same store. Both are left as they are where they differ.
    Copy {
        /// A file, or an URL, which is reached by the settings of [store].
        #[arg(value_name = "FROM")]
        from: PathBuf,
        /// The same.
        #[arg(value_name = "TO")]
        to: PathBuf,
    },
    /// Copy the store, as it is at one instant, to a file that is not there yet, and verify the copy.
    ///
    /// A service that has the store open does so itself (RedbStore::snapshot). Without the token's KEKs, or their backup, it opens nothing.
    Snapshot {
        /// The copy; mode 0600.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Put a snapshot in the store's place, once it is verified. What was there stays beside it.
    Restore {
        /// The snapshot, which is only read.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        consent: Consent,
    },
    /// Write over what was deleted or replaced and is still in the file: wrappings that a re-wrap or a move replaced, above all.
    ///
    /// `account purge` and `account retire` do it by themselves. Takes room on the disk, for a while, of the size of the file at most.
    Shred,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Kek {
    /// Make a KEK in a token: sensitive, not extractable.
    #[command(after_help = "Example:\n  keyleash kek create tenants --profile aes-gcm")]
    Create {
        /// 1 to 64 of A-Z a-z 0-9 . _ - beginning with a letter or digit.
        name: OsString,
        /// How it wraps.
        #[arg(long, default_value = Profile::ALL[0].name(), value_parser = profiles())]
        profile: Profile,
        /// Allow its deletion in the token. Without it a KEK can be disabled, and enabled again, but not deleted by accident.
        #[arg(long)]
        destroyable: bool,
        /// The token to make it in, where several are configured [default: the first].
        #[arg(long, value_name = "NAME")]
        token: Option<OsString>,
    },
    /// List the KEKs of the store, and keys in the tokens that the store does not know.
    List,
    /// Show a KEK's versions.
    Show {
        /// Its name.
        name: OsString,
    },
    /// Make the next version in the token, or adopt one that an operator made, and wrap new AEKs by it.
    ///
    /// What older versions wrap stays under them until `kek rewrap`. No block is touched.
    #[command(after_help = "Example:\n  keyleash kek rotate tenants && keyleash kek rewrap tenants")]
    Rotate {
        /// Its name.
        name: OsString,
        /// Adopt the key with this CKA_ID (hex) instead of making one: `kek list` shows what no KEK names.
        #[arg(long, value_name = "ID")]
        adopt: Option<String>,
    },
    /// Move every AEK that older versions wrap to the current one. Call it again to go on after it stopped.
    ///
    /// Ends with 5 when accounts failed; they are reported, and left as they were.
    Rewrap {
        /// Its name.
        name: OsString,
        /// At most so many token calls per second, three for each AEK [default: resume_rate].
        #[arg(long, value_name = "CALLS", value_parser = clap::value_parser!(u32).range(1..))]
        rate: Option<u32>,
        /// Change nothing: count what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Set when a KEK is rotated, and what it wraps re-wrapped, by schedule; show it without options.
    #[command(after_help = "Example:\n  keyleash kek policy tenants --max-age 365d")]
    Policy(KekPolicyArgs),
    /// Take the use of a KEK away in the token, which can be undone: what it wraps goes dark in every service.
    #[command(after_help = SWITCH_EXAMPLES)]
    Disable(KekSwitch),
    /// Give the use of a KEK back in the token: services go on by themselves.
    #[command(after_help = SWITCH_EXAMPLES)]
    Enable(KekSwitch),
    /// Retire a version under which this store has nothing any more.
    #[command(after_help = "Example:\n  keyleash kek retire tenants/1")]
    Retire {
        /// NAME/VERSION.
        version: OsString,
        #[command(flatten)]
        consent: Consent,
    },
    /// Write down that a backup of a version exists; with `require_recoverable` new accounts need it.
    AttestBackup {
        /// NAME/VERSION.
        version: OsString,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Account {
    /// Make an account: a new AEK, stored only wrapped by the KEK.
    #[command(
        after_help = "Examples:\n  keyleash account create alice --kek tenants\n  keyleash account create --stdin --kek tenants < ids.txt"
    )]
    Create {
        /// 1 to 255 bytes of UTF-8 without control characters.
        #[arg(required_unless_present = "stdin")]
        id: Option<OsString>,
        /// Make one for each line of standard input.
        #[arg(long, conflicts_with = "id")]
        stdin: bool,
        /// The KEK that wraps its AEK.
        #[arg(long, value_name = "NAME")]
        kek: OsString,
    },
    /// List all accounts, one per line.
    List {
        /// Only those with an AEK that this KEK version wraps.
        #[arg(long, value_name = "NAME/VERSION")]
        kek: Option<OsString>,
    },
    /// Show an account's wrapped AEKs. With --json, enough for another program to unwrap them with the token.
    Show {
        /// Its id.
        id: OsString,
    },
    /// Add a new AEK version: new blocks are sealed under it, old ones open by the version in their header.
    Rotate {
        /// Its id.
        id: OsString,
    },
    /// Set when an account's AEK is rotated by schedule; show it without options.
    ///
    /// Whichever is reached first counts. What is not given stays as it is.
    #[command(after_help = "Example:\n  keyleash account policy alice --max-age 90d --max-blocks 1000000000")]
    Policy(AekPolicyArgs),
    /// Delete AEK versions that no block uses any more. Blocks that were sealed under them are lost.
    // Before its many values, which would take the id for one of them.
    #[command(override_usage = "keyleash account retire [OPTIONS] <ID> --aek-version <N>...")]
    Retire {
        /// Its id.
        id: OsString,
        /// The AEK versions.
        #[arg(long, value_name = "N", required = true, num_args = 1..)]
        aek_version: Vec<u32>,
        /// Also where another process may still seal under them, which has not heard of the newer version. Only if none has the account open.
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        consent: Consent,
    },
    /// Move an account under another KEK. The old wrapping is gone when it returns.
    Move {
        /// Its id.
        id: OsString,
        /// The KEK that shall wrap its AEKs.
        #[arg(long, value_name = "NAME")]
        kek: OsString,
    },
    /// Delete an account so that it can be brought back during its retention.
    Delete {
        /// Its id.
        id: OsString,
    },
    /// Bring a deleted account back.
    Undelete {
        /// Its id.
        id: OsString,
    },
    /// Destroy every wrapped AEK of a deleted account whose retention is over: its blocks are shredded, for good.
    Purge {
        /// Its id.
        id: OsString,
        /// Before its retention is over, where purge_protection is off.
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        consent: Consent,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ScheduleArgs {
    /// Do what is due. Waits for its turn, unless another process turns out to be at work.
    #[arg(long)]
    pub(crate) run: bool,
    /// Name at most so many accounts that are due.
    #[arg(long, value_name = "N", default_value_t = 20, conflicts_with = "run")]
    pub(crate) limit: usize,
}

#[derive(Debug, Args)]
pub(crate) struct KekSwitch {
    /// NAME, for all its versions that are not retired, or NAME/VERSION.
    #[arg(value_name = "NAME[/VERSION]")]
    pub(crate) kek: OsString,
    /// In this token instead of the one that it was made in: a standby.
    #[arg(long, value_name = "NAME")]
    pub(crate) token: Option<OsString>,
    #[command(flatten)]
    pub(crate) consent: Consent,
}

#[derive(Debug, Args)]
pub(crate) struct KekPolicyArgs {
    /// Its name.
    pub(crate) name: OsString,
    /// Age of the current version, with its unit: 1 hour to 100 years.
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub(crate) max_age: Option<Duration>,
    /// Not by schedule.
    #[arg(long, conflicts_with = "max_age")]
    pub(crate) none: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AekPolicyArgs {
    /// Its id.
    pub(crate) id: OsString,
    /// Age of the current AEK version, with its unit: 1 hour to 100 years.
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub(crate) max_age: Option<Duration>,
    /// Blocks sealed under it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_blocks: Option<u64>,
    /// Plaintext bytes sealed under it: a number, or one with its unit, as in 10GiB or 500MB.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) max_bytes: Option<u64>,
    /// None of them.
    #[arg(long, conflicts_with_all = ["max_age", "max_blocks", "max_bytes"])]
    pub(crate) none: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Seal {
    /// Whose data it is.
    #[arg(long, value_name = "ID")]
    pub(crate) account: OsString,
    #[command(flatten)]
    pub(crate) streams: Streams,
}

#[derive(Debug, Args)]
pub(crate) struct Open {
    #[command(flatten)]
    pub(crate) streams: Streams,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The sealed file [default, and -: standard input].
    #[arg(value_name = "IN")]
    pub(crate) input: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Streams {
    /// Read this file [default, and -: standard input].
    #[arg(value_name = "IN")]
    pub(crate) input: Option<PathBuf>,
    /// Write this file [default, and -: standard output].
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: Option<PathBuf>,
    /// Replace OUT if it exists.
    #[arg(long, requires = "output")]
    pub(crate) force: bool,
}

impl Streams {
    /// The file to read; none for standard input.
    pub(crate) fn input(&self) -> Option<&Path> {
        self.input.as_deref().filter(|path| *path != Path::new("-"))
    }

    /// The file to write; none for standard output.
    pub(crate) fn output(&self) -> Option<&Path> {
        self.output.as_deref().filter(|path| *path != Path::new("-"))
    }

    /// Fails where a standard stream is closed that data or, with `json`, the result goes through.
    pub(crate) fn expect(&self, json: bool) -> Result<(), Failure> {
        let is_data = self.output().is_none();
        let needed = [
            (Standard::Input, self.input().is_none()),
            (Standard::Output, is_data || json),
            (Standard::Error, is_data && json),
        ];
        needed.into_iter().filter(|(_, is_needed)| *is_needed).try_for_each(|(stream, _)| stream.expect())
    }
}

/// Parses an age. humantime's own errors show `10sec` and `10ms`, neither of which is allowed here.
pub(crate) fn age(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write a number and its unit, as in 90d, 12h or 1y 6months".into())
}

/// Parses a number of bytes, 1 or more.
fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 13] = [
        ("", 1),
        ("B", 1),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("PB", 1_000_000_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("PiB", 1 << 50),
    ];
    let wrong = || {
        "write a number of bytes, 1 or more, or one with a unit: kB, MB, GB, TB, PB, KiB, MiB, GiB, TiB, PiB".to_owned()
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
    let (_, factor) = UNITS.into_iter().find(|(name, _)| *name == unit.trim()).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_units_and_bounds() {
        for (text, wanted) in
            [("1", 1), ("10GiB", 10 << 30), ("500 MB", 500_000_000), ("16777215TiB", 16_777_215 << 40)]
        {
            assert_eq!(bytes(text), Ok(wanted), "{text}");
        }
        for text in ["", "0", "0kB", "GiB", "1gib", "1.5GiB", "-1", "16777216TiB", "99999999999999999999", "1 B B", "ä"]
        {
            assert!(bytes(text).unwrap_err().contains("GiB"), "{text}");
        }
    }

    #[test]
    fn help_names_every_exit_status() {
        let help = Cli::command().render_help().to_string();
        for (code, meaning) in exit::TABLE {
            assert!(help.contains(&format!("{code:>3}  {meaning}")), "{code}");
        }
    }
}
