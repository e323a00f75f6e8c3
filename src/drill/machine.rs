//! The machine's own delay: a thread that does nothing but look at the clock, and tells when it was kept from that. What is late
//! by no more than that says nothing of the service.

use super::{error::Error, timeline::Recorder};
use crate::clock::Clock;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

const LOOK_EVERY: Duration = Duration::from_millis(1);
/// What an idle machine takes longer than asked for, too.
const LATE_MIN: Duration = Duration::from_millis(1);

/// The thread. Ends when it is dropped.
pub(crate) struct Machine {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Machine {
    pub(crate) fn watch(recorder: Arc<Recorder>) -> Result<Self, Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let look = move || {
            let clock = Clock::default();
            let mut before = clock.now();
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(LOOK_EVERY);
                let now = clock.now();
                let late = now.since(before).saturating_sub(LOOK_EVERY);
                if late >= LATE_MIN {
                    recorder.late(now, late);
                }
                // Not after the telling, which may have waited: that time belongs to the machine too.
                before = now;
            }
        };
        let thread = thread::Builder::new().name("drill-machine".into()).spawn(look);
        Ok(Self { stop, thread: Some(thread.map_err(|error| Error::io("starting a thread", error))?) })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}
