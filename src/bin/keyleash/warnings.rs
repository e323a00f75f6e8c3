//! Shows the library's warnings on standard error.

use crate::output::harmless;
use keyleash::{
    clock::{unix_now, utc},
    telemetry::EVENTS_TARGET,
};
use std::{
    fmt::{self, Write as _},
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Warns of the settings when an engine is built.
const SET_UP: &str = "keyleash::engine";

/// Warns that the token is unreachable while it is opened. A command fails then, and says more.
const OPENING: &str = "keyleash::token::pkcs11";

static ENDED: AtomicBool = AtomicBool::new(false);
static WITH_TIMES: AtomicBool = AtomicBool::new(false);
static EVENTS_LEFT_OUT: AtomicBool = AtomicBool::new(false);
static SET_UP_LEFT_OUT: AtomicBool = AtomicBool::new(false);

/// Everything from `least` up, a line each; no spans.
struct Warnings {
    least: Level,
}

/// From here on warnings are shown; and what happens on the way, if it is `verbose`.
pub(crate) fn show(verbose: bool) {
    let least = if verbose { Level::INFO } else { Level::WARN };
    // Fails if it was done before, and then it is done.
    let _ = tracing::subscriber::set_global_default(Warnings { least });
}

/// The command is done, and its runtime is taken down: that something was still under way is no trouble.
pub(crate) fn end() {
    ENDED.store(true, Ordering::SeqCst);
}

/// From here on each line says when it was: of what runs on for a while.
pub(crate) fn with_times() {
    WITH_TIMES.store(true, Ordering::SeqCst);
}

/// From here on events are shown by whoever called this, and nothing is said twice.
pub(crate) fn leave_events_out() {
    EVENTS_LEFT_OUT.store(true, Ordering::SeqCst);
}

/// While an engine is built whose warnings the caller shows.
pub(crate) fn leave_set_up_out(out: bool) {
    SET_UP_LEFT_OUT.store(out, Ordering::SeqCst);
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // In tracing's order the graver level is the smaller one.
        let grave = metadata.is_event() && *metadata.level() <= self.least;
        grave && metadata.target().starts_with("keyleash") && metadata.target() != OPENING
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let left_out = [(EVENTS_TARGET, &EVENTS_LEFT_OUT), (SET_UP, &SET_UP_LEFT_OUT)];
        let target = event.metadata().target();
        let is_shown = left_out.iter().any(|(of, out)| target == *of && out.load(Ordering::SeqCst));
        if is_shown || ENDED.load(Ordering::SeqCst) {
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        if target == EVENTS_TARGET {
            line.fields.clear(); // its words say all of it
        }
        let line = match *event.metadata().level() <= Level::WARN {
            true if WITH_TIMES.load(Ordering::SeqCst) => {
                format!("keyleash: {}: warning: {}{}", utc(unix_now()), line.message, line.fields)
            }
            true => format!("keyleash: warning: {}{}", line.message, line.fields),
            false => format!("keyleash: {}: {}{}", utc(unix_now()), line.message, line.fields),
        };
        // Nobody is left to be told.
        let _ = writeln!(io::stderr().lock(), "{}", harmless(&line));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, "; {name}: {value:?}"),
        };
    }
}
