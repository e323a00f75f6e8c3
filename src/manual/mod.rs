//! The manual: pages without code.
//!
//! - [`promises`]: what keyleash promises, how each promise is enforced, and what it assumes.
//! - [`threats`]: whom it protects against, and whom it does not.
//! - [`format`](mod@format): every byte at rest, enough to write a reader in another language.
//! - [`operations`]: set-up, PINs, memory limits, backups, tests.
//! - [`tokens`]: what attributes, flags and codes of a token decide, and what the tokens that were tried say.
//! - [`settings`]: every key of the configuration, its default and bounds.
//! - [`drills`]: rehearsals on a real token, and their report.
//! - [`performance`]: what is measured, how, and how to read a target that was missed.
//! - [`changes`]: where this differs from its starting design and why, and what stays compatible.

pub mod changes;
pub mod drills;
pub mod format;
pub mod operations;
pub mod performance;
pub mod promises;
pub mod settings;
pub mod threats;
pub mod tokens;
