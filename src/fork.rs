//! A child of `fork` has none of the threads of its parent, and every lock as it stood in that instant: one that another thread
//! held then stays locked for good. So a child of a process that had an engine is told so before it comes to a lock.

use crate::{
    error::{Error, Result},
    secret::fork_generation,
};
use std::sync::atomic::{AtomicU64, Ordering};

/// The generation of the process that first had an engine; 0 before. A child inherits it, and has another one.
static HOME: AtomicU64 = AtomicU64::new(0);

/// The error of every call in a forked child.
///
/// # Errors
/// [`Error::Fatal`] in a child of a process that had an engine; as [`fork_generation`].
#[inline]
pub(crate) fn refuse_child() -> Result<()> {
    let generation = fork_generation()?;
    let home = HOME.load(Ordering::Acquire);
    if home == generation || home == 0 && settle(generation) { Ok(()) } else { Err(is_child()) }
}

/// True in a child of a process that had an engine.
#[inline]
pub(crate) fn in_child() -> bool {
    refuse_child().is_err()
}

#[cold]
fn settle(generation: u64) -> bool {
    HOME.compare_exchange(0, generation, Ordering::AcqRel, Ordering::Acquire)
        .map_or_else(|home| home == generation, |_| true)
}

#[cold]
fn is_child() -> Error {
    Error::Fatal(
        "this process was forked from one that had an engine, and has neither its threads nor its keys: build the engine after \
         the fork, in a process whose parent had none, or start another program (exec)"
            .into(),
    )
}
