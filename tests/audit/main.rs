//! The trail: real files, real processes. No line is lost that was acknowledged, and none changed, removed or added unnoticed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // in tests

mod alerts;
mod beside;
mod crash;
mod extract;
mod follow;
mod forked;
mod golden;
mod hmac;
mod hostile;
mod loss;
mod merge;
mod nodes;
mod rig;
mod second;
mod small_disk;
mod stored;
mod thin;
mod verify;
mod writer;
