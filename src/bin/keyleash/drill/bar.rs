//! A bar for a person who waits.

use crate::output::Output;
use indicatif::{ProgressBar, ProgressStyle};
use keyleash::drill::Waiting;
use std::{
    io::{self, IsTerminal},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// What takes longer than this gets a bar.
const BAR_MIN: Duration = Duration::from_secs(3);
const TEMPLATE: &str = "{msg:12} {bar:30} {pos} of {len} s";

/// Shows what a drill waits for, to a person.
pub(crate) fn bar(output: Output) -> impl Fn(Waiting<'_>) + Send + Sync + 'static {
    let shown = !output.is_json() && io::stderr().is_terminal();
    let bar: Mutex<Option<ProgressBar>> = Mutex::default();
    move |waiting| {
        let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.gone {
            Some(gone) if shown && waiting.of >= BAR_MIN => {
                bar.get_or_insert_with(|| new(&waiting)).set_position(gone.as_secs());
            }
            _ => bar.take().iter().for_each(ProgressBar::finish_and_clear),
        }
    }
}

fn new(waiting: &Waiting<'_>) -> ProgressBar {
    let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(waiting.of.as_secs()).with_style(style).with_message(waiting.what.to_owned())
}
