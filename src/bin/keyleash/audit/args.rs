//! The command line of `audit`.

use clap::{Args, Subcommand, ValueEnum};
use keyleash::audit::line::Time;
use std::{ffi::OsString, fmt, path::PathBuf};

const VERIFY_HELP: &str = "\
Examples:
  keyleash audit verify --key trail.pub
  keyleash audit verify /srv/audit/web-1 --key trail.pub --kept last-week.note

Ends with 0 when the lines are as they were written, and with 5 when not. Lines
behind the newest checkpoint are counted: no signature covers them yet. That
lines and checkpoints were cut back together is noticed by a checkpoint that was
kept elsewhere alone: --kept.";

const EXTRACT_HELP: &str = "\
Examples:
  keyleash audit extract --account alice -o alice.extract
  keyleash audit extract /srv/audit --account alice --node web-1 --node web-2
  keyleash audit extract --account alice --from 2026-11-01 --to 2026-12-01 --since october.note

It has whole groups of lines, each up to its tally: up to an hour more than was
asked for at each end. Of other accounts it shows nothing. A node that has no
tally of the span yet is told, and is not in it. Whoever gets it checks it with
`keyleash audit verify-extract` and the public key, and names the nodes that it
has to show.";

const VERIFY_EXTRACT_HELP: &str = "\
Examples:
  keyleash audit verify-extract alice.extract --key trail.pub --account alice
  keyleash audit verify-extract alice.extract --key trail.pub --account alice --node web-1 --node web-2 --from 2026-11-01 --to 2026-12-01

It says which nodes it shows, and that of each nothing was left out. Whether
there are others it cannot know: name those that served the account, and it
fails where one is not shown.";

const KEY_HELP: &str = "\
Examples:
  keyleash audit key create
  keyleash audit key show > trail.pub

It is found by its label, which has the store's id in it. To begin another one,
take the label of the old one away in the token, or destroy it there; keep its
public half, and name it in audit.earlier_keys and for --key.";

const FOLLOW_HELP: &str = "\
Examples:
  keyleash audit follow --cursor /var/lib/keyleash/cursor --sink stdout
  keyleash audit follow --cursor cursor --once --sink file events.json
  keyleash audit follow --cursor cursor --sink command curl -fsS --data-binary @- https://queue.example/

Each event is a line of JSON: the line of the trail, and in front of it its id,
NODE/NUMBER, which is the same whenever it is delivered. Options of audit follow
stand before PATH or CMD. CMD has up to 1,000 events on its standard input, and
acknowledges them by ending with 0. What was not acknowledged is brought again.

Ends with 5 where a node is held: lines of it are missing or were changed.";

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Say whether trails are as they were written: what was changed, removed, added, reordered or cut, and where. Needs no token.
    #[command(after_help = VERIFY_HELP)]
    Verify(Verify),
    /// Write one account's lines in the trails of all nodes, with the proof that of none of these trails any was left out, changed or
    /// added.
    #[command(after_help = EXTRACT_HELP)]
    Extract(Extract),
    /// The key in the token that signs the trail.
    #[command(subcommand, after_help = KEY_HELP)]
    Key(super::key::Key),
    /// Say whether an extract proves what it shows. Needs the public key alone.
    #[command(after_help = VERIFY_EXTRACT_HELP)]
    VerifyExtract(VerifyExtract),
    /// Show lines, filtered. Verifies nothing.
    #[command(
        after_help = "Examples:\n  keyleash audit show --account alice --from 2026-11-26\n  keyleash audit show --failed --caller 'web-*' --json"
    )]
    Show(Show),
    /// Bring every event to a file, a command or standard output: in order, at least once, and go on as they come.
    #[command(after_help = FOLLOW_HELP)]
    Follow(Follow),
}

#[derive(Debug, Args)]
pub(crate) struct Follow {
    /// The file that keeps how far events were acknowledged; made where it is not there, and then all are delivered.
    #[arg(long, value_name = "FILE")]
    pub(crate) cursor: PathBuf,
    /// The directory that has a folder for each node [default: that of [audit]].
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// Where events are brought: stdout, file PATH, or command CMD [ARG]...
    #[arg(long)]
    pub(crate) sink: SinkKind,
    /// The file, to which they are appended, or the command.
    #[arg(value_name = "PATH|CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) to: Vec<OsString>,
    /// End when all is delivered that is there.
    #[arg(long, conflicts_with = "until")]
    pub(crate) once: bool,
    /// End when it is this time, and all is delivered that was there then. In UTC: 2026-11-26, or 2026-11-26T01:02:03Z.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) until: Option<Time>,
    /// Go on behind lines that retention removed before they were delivered, which holds a node else.
    #[arg(long)]
    pub(crate) skip_removed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SinkKind {
    Stdout,
    File,
    Command,
    /// Notices of `alert` alone.
    Mail,
}

impl fmt::Display for SinkKind {
    /// As the usage line has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout takes nothing behind it",
            Self::File => "file takes one PATH behind it",
            Self::Command => "command takes a CMD behind it",
            Self::Mail => "mail takes notices, those of keyleash alert, and nothing behind it",
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct Keys {
    /// A public key as `audit key show` prints it, or a file with one on each line.
    #[arg(long = "key", value_name = "VKEY", required = true)]
    pub(crate) keys: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Directories of nodes, or directories of such [default: that of [audit]].
    #[arg(value_name = "DIR")]
    pub(crate) nodes: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) keys: Keys,
    /// A file with a checkpoint that was kept elsewhere, which the trail has to lead to.
    #[arg(long, value_name = "FILE")]
    pub(crate) kept: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Extract {
    /// Directories of nodes, or directories of such [default: that of [audit]].
    #[arg(value_name = "DIR")]
    pub(crate) dirs: Vec<PathBuf>,
    /// This node of them alone; may stand more than once.
    #[arg(long = "node", value_name = "NODE")]
    pub(crate) nodes: Vec<OsString>,
    /// Whose lines.
    #[arg(long, value_name = "ID")]
    pub(crate) account: OsString,
    #[command(flatten)]
    pub(crate) span: Span,
    /// A file with a checkpoint that whoever gets the extract has already; one of each node, at most.
    #[arg(long, value_name = "FILE")]
    pub(crate) since: Vec<PathBuf>,
    /// Write to this file instead of standard output.
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: Option<PathBuf>,
    /// Replace OUT if it is there.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyExtract {
    /// The extract; - or nothing for standard input.
    #[arg(value_name = "FILE")]
    pub(crate) extract: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) keys: Keys,
    /// Whose lines it has to show.
    #[arg(long, value_name = "ID")]
    pub(crate) account: Option<OsString>,
    /// A node whose trail it has to show; may stand more than once. The span is asked of these alone, and of all where none is named.
    #[arg(long = "node", value_name = "NODE")]
    pub(crate) nodes: Vec<OsString>,
    #[command(flatten)]
    pub(crate) span: Span,
    /// A file with a checkpoint from before, which the trail of its node has to go on from.
    #[arg(long, value_name = "FILE")]
    pub(crate) since: Vec<PathBuf>,
    /// Print its lines, once it is found to prove them.
    #[arg(long)]
    pub(crate) lines: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Span {
    /// From this time on, in UTC: 2026-11-26, or 2026-11-26T01:02:03Z.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) from: Option<Time>,
    /// Up to this time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) to: Option<Time>,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Directories of nodes, or directories of such, shown one after the other [default: that of [audit]].
    #[arg(value_name = "DIR")]
    pub(crate) nodes: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) span: Span,
    /// Of this account; an id, or the beginning of ids with a * behind it. So are the patterns below.
    #[arg(long, value_name = "ID")]
    pub(crate) account: Option<String>,
    /// By this caller.
    #[arg(long, value_name = "ID")]
    pub(crate) caller: Option<String>,
    /// With this KEK.
    #[arg(long, value_name = "NAME")]
    pub(crate) kek: Option<String>,
    /// Of this operation: AccountOpen, KeyUnwrap, Denied, ….
    #[arg(long, value_name = "OPERATION")]
    pub(crate) operation: Option<String>,
    /// Of this request: 32 hexadecimal digits.
    #[arg(long, value_name = "ID")]
    pub(crate) correlation: Option<String>,
    /// Those alone that failed or were forbidden.
    #[arg(long)]
    pub(crate) failed: bool,
    /// Tallies too.
    #[arg(long)]
    pub(crate) tallies: bool,
}

/// Parses a time: a date, or a date and a time, in UTC.
fn time(text: &str) -> Result<Time, String> {
    let whole = if text.len() == "2026-11-26".len() { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let since = humantime::parse_rfc3339_weak(&whole).ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let ms = since.and_then(|since| u64::try_from(since.as_millis()).ok());
    ms.map(Time::from_unix_ms).ok_or_else(|| "write a time in UTC, as in 2026-11-26 or 2026-11-26T01:02:03Z".into())
}
