//! The threads that call a module, and their end.
//!
//! A library may have work to do as a thread ends that used it (OpenSSL frees what it keeps per thread), after the last
//! line of the thread's own code and outside of the gate. Were that to happen while the process runs exit handlers, which take away what it
//! stands on, it would be a crash. So as the process ends no such thread ends any more, and those that are about to are
//! waited for.

use crate::clock::{Clock, Instant};
use std::{
    collections::HashMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle, ThreadId},
};

/// Those of this process.
pub(super) static THREADS: Threads = Threads(Mutex::new(None));

pub(super) struct Threads(Mutex<Option<State>>);

#[derive(Default)]
struct State {
    /// The process ends: no thread does.
    held: bool,
    running: HashMap<ThreadId, JoinHandle<()>>,
    /// Past the last line of ours; what libraries do then may be under way.
    leaving: Vec<JoinHandle<()>>,
}

impl Threads {
    fn with<T>(&self, what: impl FnOnce(&mut State) -> T) -> T {
        // Nothing panics while it is held, and the value is whole after every step.
        let mut state: MutexGuard<'_, _> = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        what(state.get_or_insert_default())
    }

    /// Starts a thread. It does not end once [`Threads::hold`] was called.
    pub(super) fn spawn(&'static self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        // The thread cannot leave before it is noted here.
        self.with(|state| {
            let thread = thread::Builder::new().name(name.into()).spawn(move || {
                let _leaving = Leaving(self);
                work();
            })?;
            state.running.insert(thread.thread().id(), thread);
            Ok(())
        })
    }

    fn leave(&self) {
        let gone = self.with(|state| {
            if state.held {
                return None;
            }
            state.leaving.extend(state.running.remove(&thread::current().id()));
            Some(state.leaving.extract_if(.., |thread| thread.is_finished()).collect::<Vec<_>>())
        });
        match gone {
            // They are past all code of ours: this waits for what libraries do, and is itself waited for.
            Some(gone) => gone.into_iter().for_each(|thread| drop(thread.join())),
            None => loop {
                thread::park();
            },
        }
    }

    /// Lets no thread end any more, and waits for those that are about to; false when they have not by `deadline`.
    pub(super) fn hold(&self, clock: &Clock, deadline: Instant) -> bool {
        let leaving = self.with(|state| {
            state.held = true;
            std::mem::take(&mut state.leaving)
        });
        if leaving.is_empty() {
            return true;
        }
        // A join has no deadline of its own.
        let (sender, ended) = mpsc::channel();
        let joining = thread::Builder::new().name("keyleash-farewell".into()).spawn(move || {
            leaving.into_iter().for_each(|thread| drop(thread.join()));
            // Nobody listens past the deadline.
            let _ = sender.send(());
        });
        joining.is_ok() && ended.recv_timeout(deadline.since(clock.now())).is_ok()
    }
}

/// Dropped at the end of a thread, by a panic too.
struct Leaving(&'static Threads);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        cell::RefCell,
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    /// Takes its time as its thread ends, as a library may, and counts that.
    struct Library(&'static AtomicUsize);

    impl Drop for Library {
        fn drop(&mut self) {
            thread::sleep(Duration::from_millis(100));
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    thread_local! {
        static USED: RefCell<Option<Library>> = const { RefCell::new(None) };
    }

    fn threads() -> &'static Threads {
        Box::leak(Box::new(Threads(Mutex::default())))
    }

    fn soon() -> Instant {
        Clock::Boottime.now().plus(Duration::from_secs(60))
    }

    #[test]
    fn the_process_ends_when_no_thread_is_in_the_midst_of_ending_and_then_none_ends() {
        static ENDED: AtomicUsize = AtomicUsize::new(0);
        let threads = threads();
        let (sender, done) = mpsc::channel();
        for _ in 0..4 {
            let sender = sender.clone();
            threads
                .spawn("one that ends", move || {
                    USED.set(Some(Library(&ENDED)));
                    sender.send(()).unwrap();
                })
                .unwrap();
        }
        let (goes_on, goes) = mpsc::channel();
        threads
            .spawn("one that does not", move || {
                USED.set(Some(Library(&ENDED)));
                goes.recv().unwrap();
            })
            .unwrap();
        for _ in 0..4 {
            done.recv().unwrap();
        }
        // Each has sent, and has a few steps to go until it is noted as leaving.
        while threads.with(|state| state.running.len() > 1) {
            thread::yield_now();
        }
        assert!(threads.hold(&Clock::Boottime, soon()));
        assert_eq!(ENDED.load(Ordering::SeqCst), 4, "all that libraries do is done");
        goes_on.send(()).unwrap();
        thread::sleep(Duration::from_millis(300));
        assert_eq!(ENDED.load(Ordering::SeqCst), 4, "and nothing more is begun");
    }

    #[test]
    fn a_thread_that_does_not_come_to_its_end_is_not_waited_for_beyond_the_deadline() {
        static ENDED: AtomicUsize = AtomicUsize::new(0);
        let threads = threads();
        threads.spawn("slow", || USED.set(Some(Library(&ENDED)))).unwrap();
        while threads.with(|state| state.running.len()) > 0 {
            thread::yield_now();
        }
        assert!(!threads.hold(&Clock::Boottime, Clock::Boottime.now()));
    }
}
