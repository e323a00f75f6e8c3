//! Rotation as a whole: beside crashes, kills, other processes and a load, and for bytes of old versions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // in tests

mod crash;
mod disk;
mod faults;
mod golden;
mod ground;
#[cfg(feature = "cli")]
mod kill;
#[cfg(feature = "cli")]
mod secrets;
#[cfg(feature = "cli")]
#[allow(dead_code)] // the command line uses all of it
#[path = "../../src/bin/keyleash/shared_store.rs"]
mod shared_store;
#[cfg(feature = "cli")]
mod shop;
mod together;

/// Of a trial of several that rotate one store.
const TOGETHER_ROUNDS: u32 = 5;
