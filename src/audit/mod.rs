//! The trail: who used which key, when. One line of JSON an event, in hourly files, which are the leaves of a Merkle tree whose
//! checkpoints are signed in the token: no line can be changed, removed or added later without its being noticed.
//!
//! What is in it and what is promised says the manual, every byte [`manual::format`](mod@crate::manual::format). The engine knows
//! nothing of files: it tells a trail by a trait, and none of what is here runs on a thread of its own.
//!
//! ```no_run
//! use keyleash::{Engine, audit::{Options, TokenSigner, Writer}, config::AuditConfig, name::NodeName, store::KeyStore, token::Token};
//! use std::{sync::Arc, time::Duration};
//!
//! # async fn service(token: Arc<dyn Token>, store: Arc<dyn KeyStore>, config: &AuditConfig) -> keyleash::Result<()> {
//! let signer = Arc::new(TokenSigner::open(token.clone(), &*store).await?);
//! let options = Options::of(config, NodeName::new("web-1")?)?;
//! let trail = Arc::new(Writer::open(options, store.clone(), signer).await?);
//! let engine = Engine::builder(token, store).trail(trail.clone()).build()?;
//! // … and at the end, so that all of it is on disk and signed:
//! engine.close(Duration::from_secs(5)).await?;
//! trail.close(Duration::from_secs(5)).await?;
//! # Ok(())
//! # }
//! ```

pub mod alert;
mod base64;
mod checkpoint;
mod extract;
mod follow;
mod key;
pub mod line;
mod live;
mod note;
mod notes;
mod progress;
mod report;
mod signer;
mod tally;
pub mod tree;
mod unnumbered;
mod verify;
mod vkey;
mod walk;
mod writer;

pub use self::{
    checkpoint::{Checkpoint, Retained, key_name},
    extract::{Asked, Extracted, Request, Shown, extract, verify_extract},
    follow::{AuditSink, BATCH_EVENTS_MAX, COMMAND_MAX, CommandSink, Event, FileSink, Follower, Told, Until},
    key::{HMAC_WARNING, TokenSigner},
    note::{NOTE_BYTES_MAX, Note, SIGNATURES_MAX, Signature},
    report::{Expected, Fault, FaultKind, Report},
    signer::Signer,
    tally::{GROUP_LINES_MAX, Group},
    verify::verify,
    vkey::{KeyId, Keys, Mac, POINT_BYTES, Vkey},
    walk::{Place, read},
    writer::{Options, QUEUE_RECORDS_MAX, STALL_MAX, TrailStatus, Writer},
};
