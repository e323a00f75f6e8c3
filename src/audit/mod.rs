//! The trail: who used which key, when. One line of JSON an event, in hourly files, which are the leaves of a Merkle tree whose
//! checkpoints are signed in the token: no line can be changed, removed or added later without its being noticed.
//!
//! What is in it and what is promised says the manual, every byte [`manual::format`](mod@crate::manual::format). The engine knows
//! nothing of files: it tells a trail by a trait, and none of what is here runs on a thread of its own.

mod base64;
mod checkpoint;
pub mod line;
mod note;
mod signer;
#[allow(dead_code)] // soon
mod tally;
#[allow(dead_code, unused_imports)] // soon
pub mod tree;
mod vkey;
#[allow(dead_code)] // soon
mod walk;

pub use self::{
    checkpoint::{Checkpoint, Retained, key_name},
    note::{NOTE_BYTES_MAX, Note, SIGNATURES_MAX, Signature},
    signer::Signer,
    tally::{GROUP_LINES_MAX, Group},
    vkey::{KeyId, Keys, Mac, POINT_BYTES, Vkey},
    walk::Place,
};
