//! What takes something away is shown first, and done only when somebody said so.

use crate::{exit::Failure, output::Output, streams::Standard};
use clap::Args;
use keyleash::Error;
use std::{
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, Write},
};

/// How often what was agreed to beforehand is looked at anew, where others change it meanwhile.
const AGAIN_MAX: u32 = 32;

/// What was said of it on the command line.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Consent {
    /// Do it without asking. Where no terminal can be asked, nothing is done without it.
    #[arg(long)]
    yes: bool,
    /// Change nothing: show what would be done.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
}

impl Consent {
    /// Looks at what is there, and does to it, as it was shown, what `would` says in full, where somebody agrees. What was agreed to
    /// before anything was shown is for whatever there is: it is looked at anew where others change it meanwhile. Gives what was shown
    /// last, and whether it was done.
    ///
    /// # Errors
    /// As [`Consent::given`], and what `look` and `act` fail with.
    pub(crate) async fn carry_out<S>(
        self,
        output: Output,
        look: impl AsyncFn() -> Result<S, Error>,
        would: impl Fn(&S) -> String,
        act: impl AsyncFn(&S) -> Result<(), Error>,
    ) -> Result<(S, bool), Failure> {
        let mut again = AGAIN_MAX;
        loop {
            again -= 1;
            let shown = look().await?;
            if !self.given(&would(&shown), output).await? {
                return Ok((shown, false));
            }
            match act(&shown).await {
                Err(Error::Conflict(_)) if again > 0 && self.yes => {}
                outcome => return Ok(outcome.map(|()| (shown, true))?),
            }
        }
    }

    /// Whether somebody agreed beforehand, to whatever there is.
    pub(crate) const fn is_given(self) -> bool {
        self.yes
    }

    /// Whether it is to be done; `false` for a dry run, of which the result says what would be. `what` is shown where
    /// somebody is asked.
    ///
    /// # Errors
    /// [`Failure::Usage`], with `what`, where nobody agreed and nobody can be asked, and where the answer was no.
    pub(crate) async fn given(self, what: &str, output: Output) -> Result<bool, Failure> {
        if self.dry_run || self.yes {
            return Ok(self.yes);
        }
        let terminal = Standard::Input.file().ok().filter(File::is_terminal);
        let Some(input) = terminal.filter(|_| !output.is_json() && io::stderr().is_terminal()) else {
            return Err(Failure::Usage(format!(
                "{what}\nnothing was done: there is no terminal to ask; say --yes, or --dry-run to look"
            )));
        };
        output.note(what);
        // A thread may wait for the answer while a signal is heard.
        let answer =
            tokio::task::spawn_blocking(|| ask(input)).await.map_err(io::Error::other).and_then(|answer| answer);
        match answer.map_err(|error| Failure::io("standard input", error))?.trim() {
            "y" | "Y" | "yes" | "YES" | "Yes" => Ok(true),
            _ => Err(Failure::Usage("nothing was done: the answer was not yes".into())),
        }
    }
}

fn ask(input: File) -> io::Result<String> {
    let mut err = io::stderr().lock();
    write!(err, "Go on? [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    BufReader::new(input).read_line(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const SAID_BEFOREHAND: Consent = Consent { yes: true, dry_run: false };

    /// Of something that is another at each look: how it ends where it may be done from the look `done_from` on, and after how many looks.
    async fn changing(consent: Consent, done_from: u32) -> (Result<(u32, bool), Failure>, u32) {
        let looks = Cell::new(0);
        let look = async || {
            looks.set(looks.get() + 1);
            Ok(looks.get())
        };
        let act = async |shown: &u32| match *shown < done_from {
            true => Err(Error::Conflict("it is another by now".into())),
            false => Ok(()),
        };
        (consent.carry_out(Output::new(false), look, u32::to_string, act).await, looks.get())
    }

    #[tokio::test]
    async fn what_was_agreed_to_beforehand_is_done_to_what_there_is_by_then() {
        assert!(matches!(changing(SAID_BEFOREHAND, 3).await, (Ok((3, true)), 3)));
        let (given_up, looks) = changing(SAID_BEFOREHAND, u32::MAX).await;
        assert!(matches!(given_up, Err(Failure::Engine(Error::Conflict(_)))) && looks == AGAIN_MAX);
    }

    #[tokio::test]
    async fn a_look_does_nothing() {
        assert!(matches!(changing(Consent { yes: false, dry_run: true }, 0).await, (Ok((1, false)), 1)));
    }
}
