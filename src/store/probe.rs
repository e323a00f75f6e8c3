//! What is known of the server that a store is on.

use std::time::Duration;

/// What a store says of the server that it is on, for whoever sets it up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Probe {
    /// How long a read took: the median of some.
    pub read: Duration,
    /// How long a write took: the median of some.
    pub write: Duration,
    /// What it lacks, or what its settings give away; each says what to do.
    pub lacks: Vec<String>,
}
