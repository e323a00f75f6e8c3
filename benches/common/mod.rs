//! What the benches share. Each compiles its own copy and uses its part of it.
#![allow(dead_code)]

pub(crate) mod bare;
pub(crate) mod blocks;
pub(crate) mod counting;
pub(crate) mod fleets;
pub(crate) mod pairs;
pub(crate) mod rig;
pub(crate) mod wipe;
