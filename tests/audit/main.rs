//! The trail: real files, real processes. No line is lost that was acknowledged, and none changed, removed or added unnoticed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // in tests

mod extract;
mod golden;
mod second;
mod verify;
