//! Where the engine lives: threads of its own with runtimes of their own, so that no host can starve, stop or drop what keeps
//! the promises, and a host need not have a runtime at all.
//!
//! There are three, by who may wait for whom. *Proofs* wait for nobody, so the watch has a thread alone, on which no store is
//! asked and no index is kept. *Calls*, which somebody waits for, do not wait for *upkeep*, which goes through a million slots in
//! one step and passes over the whole store. A key store that blocks the thread it is asked on, against its contract, holds up
//! those two and not the proofs.

use crate::error::{Error, Result};
use std::{future::Future, sync::Arc, thread};
use tokio::{
    runtime::{Builder, Handle},
    sync::Notify,
    task::JoinHandle,
};

/// The threads of one engine. They end when it is told so, or dropped.
pub(crate) struct Home {
    /// The watch, its proofs, and the look after the tasks of the others.
    pub(crate) proofs: Room,
    /// Whatever a caller waits for, unwraps above all.
    pub(crate) calls: Room,
    /// What nobody waits for.
    pub(crate) upkeep: Room,
}

impl Home {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`Error::Fatal`] when the system gives none.
    pub(crate) fn build() -> Result<Self> {
        let (proofs, calls, upkeep) = ("keyleash-proofs", "keyleash-calls", "keyleash-upkeep");
        Ok(Self { proofs: Room::build(proofs)?, calls: Room::build(calls)?, upkeep: Room::build(upkeep)? })
    }

    /// All on the current runtime, for tests that decide what runs when.
    ///
    /// # Errors
    /// [`Error::Invalid`] outside of a runtime.
    pub(crate) fn here() -> Result<Self> {
        let Ok(runtime) = Handle::try_current() else {
            return Err(Error::Invalid("on_current_runtime: build the engine inside of a tokio runtime".into()));
        };
        let room = || Room { runtime: runtime.clone(), end: None };
        Ok(Self { proofs: room(), calls: room(), upkeep: room() })
    }

    /// Ends the threads, and drops what still runs there. Waits for nothing, so that whoever drops the engine may do it anywhere,
    /// on one of these threads too.
    pub(crate) fn end(&self) {
        [&self.calls, &self.upkeep, &self.proofs].iter().for_each(|room| room.end());
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.end();
    }
}

/// One thread. What its tasks spawn stays on it.
pub(crate) struct Room {
    runtime: Handle,
    /// Not where the runtime is somebody else's.
    end: Option<Arc<Notify>>,
}

impl Room {
    fn build(name: &str) -> Result<Self> {
        let failed = |error| Error::Fatal(format!("no thread for the engine ({name}): {error}"));
        // All that is compiled in: the host's token and store may be built on tokio's sockets.
        let runtime = Builder::new_current_thread().enable_all().thread_name(name).build().map_err(failed)?;
        let (handle, end) = (runtime.handle().clone(), Arc::new(Notify::new()));
        let ended = end.clone();
        let lives = move || {
            runtime.block_on(ended.notified());
            // Dropped here: waits for writes of the store that are under way, which nobody else has to.
        };
        thread::Builder::new().name(name.into()).spawn(lives).map_err(failed)?;
        Ok(Self { runtime: handle, end: Some(end) })
    }

    /// Runs `task` here; drops it when the engine ends before it.
    pub(crate) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.runtime.spawn(task)
    }

    fn end(&self) {
        self.end.iter().for_each(|end| end.notify_one());
    }
}
