//! Promises about a real token, on SoftHSM.
//!
//! Run with `softhsm/with-token cargo test --test softhsm`. Without the variables that it sets these tests fail: a
//! promise that is silently not tested is not kept.
//!
//! SoftHSM reads SOFTHSM2_CONF once per C_Initialize, for the whole process, and its state is the process's. So
//! each test that moves, locks or breaks its token runs alone in a child process (this binary, asked for that one test)
//! with a token of its own in a temporary directory: see `bench::alone`. What an operator does to a token from
//! outside is done by one more child (`bench::operator`), because a process does not see its own POSIX
//! locks and SoftHSM is to learn of changes as it would in production.

// Clippy takes only functions marked as tests for tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod bench;
mod conformance;
mod example;
mod isolation;
mod known_answers;
mod leash;
mod logins;
mod modules;
mod operator;
mod passing;
mod pins;
#[cfg(feature = "drill")]
mod rehearsal;
mod service;
mod setup;
mod shim;
#[cfg(feature = "audit")]
mod signing;
mod survey;
mod tokens;
mod trouble;
#[cfg(all(feature = "audit", feature = "secrets"))]
mod watched;
