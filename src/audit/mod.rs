//! The trail: who used which key, when. One line of JSON an event, in hourly files, which are the leaves of a Merkle tree whose
//! checkpoints are signed in the token: no line can be changed, removed or added later without its being noticed.
//!
//! What is in it and what is promised says the manual, every byte [`manual::format`](mod@crate::manual::format). The engine knows
//! nothing of files: it tells a trail by a trait, and none of what is here runs on a thread of its own.

mod base64;
mod checkpoint;
mod extract;
mod follow;
mod key;
pub mod line;
mod note;
mod notes;
mod progress;
mod signer;
mod tally;
pub mod tree;
mod verify;
mod vkey;
mod walk;
mod writer;

pub use self::{
    checkpoint::{Checkpoint, Retained, key_name},
    extract::{Asked, Extracted, Request, Shown, extract, verify_extract},
    follow::{AuditSink, BATCH_EVENTS_MAX, COMMAND_MAX, CommandSink, Event, FileSink, Follower, Told, Until},
    key::TokenSigner,
    note::{NOTE_BYTES_MAX, Note, SIGNATURES_MAX, Signature},
    signer::Signer,
    tally::{GROUP_LINES_MAX, Group},
    verify::{Expected, Fault, FaultKind, Report, verify},
    vkey::{KeyId, Keys, Mac, POINT_BYTES, Vkey},
    walk::{Place, read},
    writer::{Options, QUEUE_RECORDS_MAX, STALL_MAX, TrailStatus, Writer},
};
