//! The trail: who used which key, when. One line of JSON an event, in hourly files, which are the leaves of a Merkle tree whose
//! checkpoints are signed in the token: no line can be changed, removed or added later without its being noticed.
//!
//! What is in it and what is promised says the manual, every byte [`manual::format`](mod@crate::manual::format). The engine knows
//! nothing of files: it tells a trail by a trait, and none of what is here runs on a thread of its own.

pub mod line;
mod signer;

pub use self::signer::Signer;
