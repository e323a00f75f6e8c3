//! A child of `fork` has none of the threads of its parent, and every lock as it stood in that instant: one that another thread
//! held then stays locked for good. So a child of a process that had an engine is told so before it comes to a lock.

use crate::{
    error::{Error, Result},
    secret::fork_generation,
};
use std::sync::atomic::{AtomicU64, Ordering};

/// The generation of the process that first had an engine; 0 before. A child inherits it, and has another one.
static HOME: AtomicU64 = AtomicU64::new(0);

/// This process has an engine from now on.
///
/// # Errors
/// As [`refuse_child`], and as [`fork_generation`].
pub(crate) fn settle() -> Result<()> {
    let generation = fork_generation()?;
    let _ = HOME.compare_exchange(0, generation, Ordering::AcqRel, Ordering::Acquire);
    refuse_child()
}

/// The error of every call in a forked child.
///
/// # Errors
/// [`Error::Fatal`] in a child of a process that had an engine.
#[inline]
pub(crate) fn refuse_child() -> Result<()> {
    if in_child() { Err(is_child()) } else { Ok(()) }
}

/// True in a child of a process that had an engine.
#[inline]
pub(crate) fn in_child() -> bool {
    let home = HOME.load(Ordering::Acquire);
    // Where there was an engine there is the memory that tells.
    home != 0 && fork_generation().is_ok_and(|generation| generation != home)
}

#[cold]
fn is_child() -> Error {
    Error::Fatal(
        "this process was forked from one that had an engine, and has neither its threads nor its keys: build the engine after \
         the fork, in a process whose parent had none, or start another program (exec)"
            .into(),
    )
}
