//! Progress for a person who waits.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use keyleash::clock::{Clock, Instant};
use std::{
    io::{self, IsTerminal},
    time::Duration,
};

/// Work that is done sooner shows no bar.
const QUIET: Duration = Duration::from_secs(1);
/// Redraws per second.
const REDRAWS_HZ: u8 = 5;
const WITH_END: &str = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
const ACCOUNTS: &str = "{bar:30} {human_pos} of {human_len} accounts, {per_sec}, {eta} left";
const WITHOUT_END: &str = "{spinner} {bytes}, {bytes_per_sec}";

/// A bar with rate and remaining time, if standard error is a terminal and the work takes a while.
#[derive(Debug)]
pub(crate) struct Progress {
    clock: Clock,
    shown_from: Instant,
    shown: bool,
    /// Counts from the start, so that its rate is right when it is shown. `None` where nobody watches.
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins; `bytes_total` where the end is known. Silent unless `wanted`.
    pub(crate) fn begin(bytes_total: Option<u64>, wanted: bool) -> Self {
        Self::with(bytes_total, if bytes_total.is_some() { WITH_END } else { WITHOUT_END }, wanted)
    }

    /// Begins a count of accounts. Silent unless `wanted`.
    pub(crate) fn accounts(wanted: bool) -> Self {
        Self::with(Some(0), ACCOUNTS, wanted)
    }

    fn with(total: Option<u64>, template: &str, wanted: bool) -> Self {
        let clock = Clock::default();
        let bar = || ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden()).with_style(style(template));
        let bar = (wanted && io::stderr().is_terminal()).then(bar);
        Self { shown_from: clock.now().plus(QUIET), clock, shown: false, bar }
    }

    /// Goes on by `bytes`.
    pub(crate) fn add(&mut self, bytes: usize) {
        let Some(bar) = &self.bar else { return };
        bar.inc(bytes as u64);
        self.show();
    }

    /// Is at `done` of `total`.
    pub(crate) fn at(&mut self, done: u64, total: u64) {
        let Some(bar) = &self.bar else { return };
        bar.set_length(total);
        bar.set_position(done);
        self.show();
    }

    fn show(&mut self) {
        let Some(bar) = &self.bar else { return };
        if !self.shown && self.clock.now() >= self.shown_from {
            self.shown = true;
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS_HZ));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_well_formed() {
        assert!(ProgressStyle::with_template(WITH_END).is_ok());
        assert!(ProgressStyle::with_template(WITHOUT_END).is_ok());
        assert!(ProgressStyle::with_template(ACCOUNTS).is_ok());
    }
}
