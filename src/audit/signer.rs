//! Who signs checkpoints: a key in the token, behind a trait, so that what is written can be tested without one.

use crate::error::Result;
use async_trait::async_trait;
use std::fmt;

/// A key that signs the notes of a trail.
#[async_trait]
pub trait Signer: Send + Sync + fmt::Debug {
    /// The key as a vkey ([format](mod@crate::manual::format), "Checkpoints"): its name, its id and, where it has one, its public half.
    fn vkey(&self) -> &str;

    /// The signature of a note's text, raw: without the key's id, not in base64. May take its time, as a token does; nothing that is
    /// written waits for it.
    ///
    /// # Errors
    /// What the token says. It is asked again with the next checkpoint.
    async fn sign(&self, text: &[u8]) -> Result<Vec<u8>>;
}
