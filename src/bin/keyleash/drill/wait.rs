//! Waiting, with a bar for a person who waits.

use crate::output::Output;
use indicatif::{ProgressBar, ProgressStyle};
use keyleash::clock::{Clock, Instant};
use std::{
    io::{self, IsTerminal},
    time::Duration,
};

/// A condition is looked at this often …
const PAUSE: Duration = Duration::from_millis(5);
/// … and what takes longer than this gets a bar.
const BAR_MIN: Duration = Duration::from_secs(3);
const TEMPLATE: &str = "{msg:12} {bar:30} {pos} of {len} s";

/// How a drill waits.
#[derive(Debug, Clone)]
pub(crate) struct Wait {
    clock: Clock,
    bars: bool,
}

impl Wait {
    pub(crate) fn new(output: Output) -> Self {
        Self { clock: Clock::default(), bars: !output.is_json() && io::stderr().is_terminal() }
    }

    /// Waits until the condition holds; false when `give_up` came first.
    pub(crate) async fn until(&self, give_up: Instant, condition: impl Fn() -> bool) -> bool {
        let bar = self.bar("waiting", give_up.since(self.clock.now()));
        let from = self.clock.now();
        let mut held = condition();
        while !held && self.clock.now() < give_up {
            bar.set_position(self.clock.now().since(from).as_secs());
            self.clock.sleep_until(self.clock.now().plus(PAUSE)).await;
            held = condition();
        }
        bar.finish_and_clear();
        held
    }

    /// Waits, whatever happens.
    pub(crate) async fn rest(&self, what: &str, time: Duration) {
        let bar = self.bar(what, time);
        let from = self.clock.now();
        let end = from.plus(time);
        while self.clock.now() < end {
            bar.set_position(self.clock.now().since(from).as_secs());
            self.clock.sleep_until(end.min(self.clock.now().plus(Duration::from_secs(1)))).await;
        }
        bar.finish_and_clear();
    }

    fn bar(&self, what: &str, time: Duration) -> ProgressBar {
        if !self.bars || time < BAR_MIN {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(time.as_secs()).with_style(style).with_message(what.to_owned())
    }
}
