//! A fleet: engines on several hosts, a standby, modules that answer from memory, calls that hang, stores that lose answers.

pub(crate) mod schedule;

mod hsm;
mod oracle;
mod room;
mod shelf;
mod stage;
mod world;
