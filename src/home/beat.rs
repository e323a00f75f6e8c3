//! A sign of life: a task gives it, and whoever supervises the task (`watch/supervise.rs`) looks at it.

use crate::clock::Instant;
use std::sync::atomic::{AtomicU64, Ordering};

/// When a task last showed life.
#[derive(Debug, Default)]
pub(crate) struct Beat(AtomicU64);

impl Beat {
    pub(crate) fn at(&self, now: Instant) {
        self.0.store(now.as_nanos(), Ordering::SeqCst);
    }

    pub(crate) fn last(&self) -> Instant {
        Instant::from_nanos(self.0.load(Ordering::SeqCst))
    }
}
