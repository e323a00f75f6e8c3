//! The command line of `secret`.

use crate::{args::age, consent::Consent};
use clap::{Args, Subcommand};
use keyleash::clock::unix_now;
use std::{
    ffi::OsString,
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

const SET_EXAMPLES: &str = "\
Examples:
  printf %s \"$PASSWORD\" | keyleash secret set db/password --account alice
  keyleash secret set tls/key --account alice key.pem --content-type application/x-pem-file --expires 90d

The value is taken byte for byte, a line end behind it too. It is never an
argument: those of a command are shown to every user of the machine.";

const POLICY_HELP: &str = "\
Example:
  keyleash secret policy db/password --account alice --every 30d --hook /etc/keyleash/new-password

The hook gets the current value on standard input, and SECRET_ACCOUNT,
SECRET_NAME, SECRET_VERSION and SECRET_NEXT_VERSION in an environment that has
beside them PATH alone. What it prints is the next version, byte for byte. It is
run by `keyleash schedule --run`, from a timer, or by a service. If it ends with
another status than 0, prints nothing or more than 64 KiB, or takes too long,
nothing changes, and it is run again later, for the same next version: one that
was killed may have done its work, and must be able to do it again.";

#[derive(Debug, Subcommand)]
pub(crate) enum Secret {
    /// Set a secret: a new version, which is given out from now on. Those before stay.
    #[command(after_help = SET_EXAMPLES)]
    Set(Set),
    /// Give a secret out: its current version, or the one that is named.
    #[command(
        after_help = "Examples:\n  keyleash secret get db/password --account alice\n  keyleash secret get tls/key --account alice -o key.pem"
    )]
    Get(Get),
    /// List the secrets of an account, one per line.
    List {
        /// Whose they are.
        #[arg(long, value_name = "ID")]
        account: OsString,
    },
    /// Show the versions of a secret, without their values.
    Show(Which),
    /// Give a version out again.
    Enable(OneVersion),
    /// Give a version out no more, until it is enabled.
    Disable(OneVersion),
    /// Set how a secret is rotated by a hook, by schedule; show it without options.
    #[command(after_help = POLICY_HELP)]
    Policy(Policy),
    /// Run a secret's hook now, due or not.
    Rotate(Which),
    /// Delete a secret so that it can be brought back during its retention.
    Delete(Which),
    /// Bring a deleted secret back.
    Undelete(Which),
    /// Destroy a deleted secret whose retention is over, all its versions, for good.
    Purge {
        #[command(flatten)]
        which: Which,
        /// Before its retention is over, where purge_protection is off.
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        consent: Consent,
    },
    /// Seal all of an account's secrets under its current AEK version. `account retire` does it by itself.
    Reseal {
        /// Whose they are.
        #[arg(long, value_name = "ID")]
        account: OsString,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Which {
    /// 1 to 128 of A-Z a-z 0-9 . _ - / beginning with a letter or digit.
    pub(crate) name: OsString,
    /// Whose it is.
    #[arg(long, value_name = "ID")]
    pub(crate) account: OsString,
}

#[derive(Debug, Args)]
pub(crate) struct OneVersion {
    #[command(flatten)]
    pub(crate) which: Which,
    /// Its number.
    #[arg(long, value_name = "N")]
    pub(crate) version: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The value, up to 64 KiB [default, and -: standard input].
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// What it is, as in text/plain. In clear in the store.
    #[arg(long, value_name = "TYPE", default_value = "")]
    pub(crate) content_type: String,
    /// Not given out before: a date (UTC), as in 2027-01-31 or 2027-01-31T12:00:00Z, or a time from now, as in 12h.
    #[arg(long, value_name = "WHEN", value_parser = instant)]
    pub(crate) not_before: Option<u64>,
    /// Not given out from then on, likewise.
    #[arg(long, value_name = "WHEN", value_parser = instant)]
    pub(crate) expires: Option<u64>,
    /// A tag; again for the next. In clear in the store.
    #[arg(long, value_name = "NAME=VALUE", value_parser = tag)]
    pub(crate) tag: Vec<(String, String)>,
    /// Not given out until it is enabled.
    #[arg(long)]
    pub(crate) disabled: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Get {
    #[command(flatten)]
    pub(crate) which: Which,
    /// This version instead of the current one.
    #[arg(long, value_name = "N")]
    pub(crate) version: Option<u32>,
    /// Write this file, of mode 0600 [default, and -: standard output].
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: Option<PathBuf>,
    /// Replace OUT if it exists.
    #[arg(long, requires = "output")]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Policy {
    #[command(flatten)]
    pub(crate) which: Which,
    /// From one version to the next, with its unit: 1 second to 100 years.
    #[arg(long, value_name = "AGE", value_parser = age, requires = "hook")]
    pub(crate) every: Option<Duration>,
    /// What makes the next version: the absolute path of a program.
    #[arg(long, value_name = "PATH", requires = "every")]
    pub(crate) hook: Option<PathBuf>,
    /// For how long the version before stays valid.
    #[arg(long, value_name = "TIME", value_parser = age, default_value = "1d", requires = "every")]
    pub(crate) overlap: Duration,
    /// How long the hook may take, up to 1 hour.
    #[arg(long, value_name = "TIME", value_parser = age, default_value = "60s", requires = "every")]
    pub(crate) timeout: Duration,
    /// Not by schedule.
    #[arg(long, conflicts_with_all = ["every", "hook"])]
    pub(crate) none: bool,
}

/// Seconds since 1970.
fn instant(text: &str) -> Result<u64, String> {
    if let Ok(from_now) = humantime::parse_duration(text) {
        return Ok(unix_now().saturating_add(from_now.as_secs()));
    }
    let whole = if text.len() == "2027-01-31".len() { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let date = humantime::parse_rfc3339_weak(&whole).ok().and_then(|date| date.duration_since(UNIX_EPOCH).ok());
    let wrong =
        || "write a date (UTC), as in 2027-01-31 or 2027-01-31T12:00:00Z, or a time from now, as in 90d".to_owned();
    date.map(|date| date.as_secs()).ok_or_else(wrong)
}

fn tag(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times_from_now_are_taken() {
        for (text, unix) in
            [("1970-01-02", 86_400), ("2027-01-31T12:00:00Z", 1_801_396_800), ("2027-01-31 12:00:00", 1_801_396_800)]
        {
            assert_eq!(instant(text), Ok(unix), "{text}");
        }
        assert!(instant("1h").unwrap() >= unix_now() + 3599);
        for text in ["", "tomorrow", "2027-13-01", "1969-01-01", "5"] {
            assert!(instant(text).is_err(), "{text}");
        }
    }
}
