//! The command line of the drills.

use crate::profiles::profiles;
use clap::{Args, Subcommand};
use keyleash::token::Profile;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  softhsm/with-token keyleash drill revocation --fast --picture revocation.svg
  keyleash drill outage --json > new.json && keyleash drill compare old.json new.json
  keyleash drill revocation --operator     on a real HSM: says what to do, and waits

A drill makes a KEK and a store of its own and leaves neither behind. Ends with 0
when every promise held, with 9 when one did not, with 10 when the machine was
too busy to tell: run it again.";

#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum Drill {
    /// The KEK is disabled in the token by another process, then enabled again.
    Revocation(Options),
    /// The KEK is destroyed, then the token is restored from a backup.
    Destroy(Options),
    /// The token vanishes from its module for longer than grace, then comes back.
    TokenRemoved(Options),
    /// The user PIN is changed behind the service's back, then the service is given the new one.
    PinChanged(Options),
    /// The token is unreachable for less than grace.
    Outage(Options),
    /// The token is unreachable for longer than grace.
    LongOutage(Options),
    /// The token goes away and comes back again and again.
    Flapping(Options),
    /// Calls into the module hang for a while.
    Hang(Options),
    /// The process is killed and started while active, while denied, and while unreachable.
    Restart(Options),
    /// 10,000 accounts are revoked and resume. With --nodes, so many processes with one store.
    ///
    /// With --nodes one is killed and starts again; the store loses its leader, where --lose-leader says how; the KEK is disabled and
    /// enabled; and one stands still until its lease has ended, with the KEK disabled.
    Fleet(Fleet),
    /// The KEK is rotated, every AEK re-wrapped and rotated, and the old KEK version destroyed, while blocks flow.
    Rotation(Options),
    /// All of the above, one after the other, but for --nodes.
    All(Options),
    /// Compare two reports made with --json. Ends with 9 when a promise does not hold in NEW, or a promise or a scenario is missing.
    Compare {
        /// The earlier report.
        old: PathBuf,
        /// The later report.
        new: PathBuf,
        #[command(flatten)]
        by: CompareBy,
    },
    /// Does an act in a process of its own.
    #[command(name = "__act", hide = true)]
    Act(Act),
    /// The service that `restart` and `fleet --nodes` kill.
    #[command(name = "__serve", hide = true)]
    Serve(Serve),
}

/// What counts as worse, beside a promise that does not hold.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct CompareBy {
    /// A time that is longer, or a rate that is lower, by more than this is worse too. Without it neither alone ever is: the polls are
    /// drawn by lot.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) threshold: Option<u32>,
    /// Compare the scenarios that both reports have: one that is missing in NEW is not worse.
    #[arg(long)]
    pub(crate) common: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Poll 1 s, timeout 1 s, grace 10 s, instead of the settings in force.
    #[arg(long)]
    pub(crate) fast: bool,
    /// Accounts under load [default: 50; rotation: 1000; fleet: 10000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) accounts: Option<u32>,
    /// Threads that seal and open.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) threads: u32,
    /// How the drill's KEK wraps.
    #[arg(long, default_value = Profile::ALL[0].name(), value_parser = profiles())]
    pub(crate) profile: Profile,
    /// The most that the machine's own delay, which is measured, makes inconclusive instead of failed, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=60_000))]
    pub(crate) slack: u32,
    /// Draw the timeline.
    #[arg(long, value_name = "OUT.svg")]
    pub(crate) picture: Option<PathBuf>,
    /// Write a report that needs no network.
    #[arg(long, value_name = "OUT.html")]
    pub(crate) report: Option<PathBuf>,
    /// A person does the acts: says what to do, and waits until told that it is done.
    #[arg(long)]
    pub(crate) operator: bool,
    /// Act destructively on the token with this serial, although with-token did not make it.
    #[arg(long, value_name = "SERIAL")]
    pub(crate) token_serial: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Fleet {
    #[command(flatten)]
    pub(crate) options: Options,
    /// Processes that serve, each with all accounts [accounts: 50].
    #[arg(long, value_name = "N", requires = "store", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) nodes: Option<u32>,
    /// Their store, an URL, which is reached by the settings of [store]. It is empty but for what an earlier drill left, and is so again in
    /// the end.
    #[arg(long, value_name = "URL", requires = "nodes")]
    pub(crate) store: Option<PathBuf>,
    /// Kills the server that leads the store's others.
    #[arg(long, value_name = "COMMAND", requires = "nodes")]
    pub(crate) lose_leader: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Act {
    /// The token that it may act on, although with-token did not make it.
    #[arg(long, value_name = "SERIAL")]
    pub(crate) token_serial: Option<String>,
    #[command(subcommand)]
    pub(crate) deed: Deed,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Deed {
    Enable {
        id: String,
        #[arg(value_parser = profiles())]
        profile: Profile,
    },
    Disable {
        id: String,
        #[arg(value_parser = profiles())]
        profile: Profile,
    },
    Destroy {
        id: String,
    },
    SetPin {
        new: PathBuf,
    },
    LogIn,
    Move {
        from: PathBuf,
        to: PathBuf,
    },
    Restore {
        backup: PathBuf,
        place: PathBuf,
    },
    HoldLock {
        files: Vec<PathBuf>,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Serve {
    /// The drill's directory.
    pub(crate) directory: PathBuf,
    pub(crate) accounts: u32,
    pub(crate) threads: u32,
    #[arg(long)]
    pub(crate) fast: bool,
    /// A store on a server, where it is not in the drill's directory.
    #[arg(long)]
    pub(crate) store: Option<PathBuf>,
}
