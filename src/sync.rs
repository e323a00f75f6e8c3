//! The synchronisation under which keys are filled, read and wiped: that of the standard library, or of loom when
//! `interleavings.rs` is run (`--cfg keyleash_loom`), which then tries every order in which threads can meet.
//!
//! Reference counts, the token's calls and everything that awaits stay as they are: they guard no key's bytes.

#[cfg(keyleash_loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicPtr, AtomicU64, fence},
};
#[cfg(not(keyleash_loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicPtr, AtomicU64, fence},
};

/// A static that loom makes anew for each order that it tries.
macro_rules! global {
    ($name:ident: $type:ty = $value:expr) => {
        #[cfg(not(keyleash_loom))]
        static $name: $type = $value;
        #[cfg(keyleash_loom)]
        loom::lazy_static! { static ref $name: $type = $value; }
    };
}
pub(crate) use global;

/// Waits a little for another thread, longer after many rounds.
#[cfg(not(keyleash_loom))]
pub(crate) fn pause(round: u32) {
    match round {
        0..100 => std::hint::spin_loop(),
        100..1000 => std::thread::yield_now(),
        _ => std::thread::sleep(std::time::Duration::from_micros(50)),
    }
}

#[cfg(keyleash_loom)]
pub(crate) fn pause(_round: u32) {
    loom::thread::yield_now();
}

/// Stands for bytes that are reached through a pointer, so that loom sees who reads and who writes them, and refuses an
/// order in which one does not happen before the other. Nothing otherwise.
#[derive(Default)]
pub(crate) struct Witness(#[cfg(keyleash_loom)] loom::cell::UnsafeCell<()>);

#[cfg(keyleash_loom)]
#[allow(unsafe_code)]
// SAFETY: it holds no bytes; loom reports an access that is not synchronised, and that is what it is for.
unsafe impl Sync for Witness {}

impl Witness {
    /// The bytes are read now.
    #[inline(always)]
    pub(crate) fn read(&self) {
        #[cfg(keyleash_loom)]
        self.0.with(|_| ());
    }

    /// The bytes are written now.
    #[inline(always)]
    pub(crate) fn write(&self) {
        #[cfg(keyleash_loom)]
        self.0.with_mut(|_| ());
    }
}
