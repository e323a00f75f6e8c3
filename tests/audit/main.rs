//! The trail: real files, real processes. No line is lost that was acknowledged, and none changed, removed or added unnoticed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // in tests

mod crash;
mod extract;
mod forked;
mod golden;
mod rig;
mod second;
mod verify;
mod writer;
