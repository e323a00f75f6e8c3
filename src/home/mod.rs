//! Where the engine lives: threads of its own with runtimes of their own, so that no host can starve, stop or drop what keeps
//! the promises, and a host need not have a runtime at all.
//!
//! There are four, by who may wait for whom. *Proofs* wait for nobody, so the watch has a thread alone, on which no index is
//! kept. *Calls*, which somebody waits for, do not wait for *upkeep*, which goes through a million slots in one step and passes
//! over the whole store. The *store* is asked on the fourth, because it is the host's: one that blocks its thread is no worse there
//! than one that does not answer.

use self::store::HomeStore;
use crate::{
    clock::Clock,
    error::{Error, Result},
    secret::fork,
    store::KeyStore,
};
use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};
use tokio::{
    runtime::{Builder, Handle},
    sync::Notify,
    task::JoinHandle,
};
use tracing::Instrument;

pub(crate) mod beat;
mod store;

/// A call of the store that nobody else gives up earlier is given up after this time, or one `aek_ttl` where that is longer.
const STORE_PATIENCE_MIN: Duration = Duration::from_secs(60);
/// The thread of the calls is looked after so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The threads of one engine. They end when it is told so, or dropped.
pub(crate) struct Home {
    /// The watch, its proofs, and the look after the tasks of the others.
    pub(crate) proofs: Room,
    /// Whatever a caller waits for, unwraps above all.
    pub(crate) calls: Room,
    /// What nobody waits for.
    pub(crate) upkeep: Room,
    store: Room,
    /// Wakes all who wait for a call, because it does not come.
    stuck: Notify,
    /// Nothing begins any more.
    closed: AtomicBool,
}

/// Something under way at home for a caller, and dropped with it.
pub(crate) struct Call<T>(JoinHandle<Result<T>>);

impl<T> Drop for Call<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Home {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`Error::Fatal`] when the system gives none.
    pub(crate) fn build() -> Result<Self> {
        let room = |name| Room::build(name);
        Ok(Self {
            proofs: room("keyleash-proofs")?,
            calls: room("keyleash-calls")?,
            upkeep: room("keyleash-upkeep")?,
            store: room("keyleash-store")?,
            stuck: Notify::new(),
            closed: AtomicBool::new(false),
        })
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
        let (proofs, calls, upkeep, store) = (room(), room(), room(), room());
        Ok(Self { proofs, calls, upkeep, store, stuck: Notify::new(), closed: AtomicBool::new(false) })
    }

    /// A key store that is asked on its own thread.
    pub(crate) fn house(&self, store: Arc<dyn KeyStore>, clock: &Clock, aek_ttl: Duration) -> Arc<dyn KeyStore> {
        let (room, clock, patience) = (self.store.clone(), clock.clone(), aek_ttl.max(STORE_PATIENCE_MIN));
        Arc::new(HomeStore { store, room, clock, patience })
    }

    /// From now on nothing begins.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// What is done though nothing begins any more: the end itself.
    ///
    /// # Errors
    /// As [`Home::call`].
    pub(crate) async fn last_call<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        fork::refuse_child()?;
        self.wait(Call(self.calls.spawn(work))).await
    }

    /// As [`Home::call`], for a caller that blocks its thread.
    ///
    /// # Errors
    /// As [`Home::call`]; [`Error::Invalid`] where the engine has no thread of its own that would do it.
    pub(crate) fn call_blocking<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        if self.calls.end.is_none() {
            return Err(Error::Invalid("an engine on the current runtime has no thread to wait for: await it".into()));
        }
        block_on(self.call(work))
    }

    /// Begins what a caller waits for.
    ///
    /// # Errors
    /// [`Error::Fatal`] in a forked child; [`Error::Closed`].
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<Call<T>> {
        fork::refuse_child()?;
        if self.is_closed() {
            return Err(Error::Closed);
        }
        Ok(Call(self.calls.spawn(work.in_current_span())))
    }

    /// Waits for it, on whatever executor. A caller that stands still or goes away costs nobody else anything.
    ///
    /// # Errors
    /// What comes of it; [`Error::Store`] when the thread that does it is blocked; [`Error::Fatal`] when it panicked.
    pub(crate) async fn wait<T>(&self, mut call: Call<T>) -> Result<T> {
        tokio::select! {
            biased;
            done = &mut call.0 => landed(done),
            () = self.stuck.notified() => Err(Error::Store(
                "a token, or who writes the log, blocks the engine's thread, which it must not: nothing was acknowledged; see what \
                 it waits for"
                    .into(),
            )),
        }
    }

    /// Does what a caller waits for.
    ///
    /// # Errors
    /// As [`Home::begin`] and [`Home::wait`].
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.wait(self.begin(work)?).await
    }

    /// As [`Home::call`], for as long as it takes: whoever waits puts a time-out around it.
    ///
    /// # Errors
    /// As [`Home::call`], but for a thread that is blocked.
    pub(crate) async fn call_without_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let mut call = self.begin(work)?;
        landed((&mut call.0).await)
    }

    /// Sees to it that whoever waits for a call has a deadline also where the thread that would keep it is blocked. Runs where the
    /// proofs are. `sleep` sleeps, `tell` is told of each time that the thread is found blocked for longer than `patience`.
    pub(crate) async fn look_after_calls<S: Future<Output = ()>>(
        &self,
        patience: Duration,
        sleep: impl Fn(Duration) -> S,
        tell: impl Fn(),
    ) {
        if self.calls.end.is_none() {
            return; // one runtime does it all
        }
        loop {
            let mut sign_of_life = self.calls.spawn(async {});
            let mut told = false;
            loop {
                tokio::select! {
                    biased;
                    _ = &mut sign_of_life => break,
                    () = sleep(patience) => {}
                }
                if !std::mem::replace(&mut told, true) {
                    tell();
                }
                self.stuck.notify_waiters();
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Ends the threads, and drops what still runs there. Waits for nothing, so that whoever drops the engine may do it anywhere,
    /// on one of these threads too.
    pub(crate) fn end(&self) {
        [&self.calls, &self.upkeep, &self.store, &self.proofs].iter().for_each(|room| room.end());
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.end();
    }
}

/// Unparks whoever blocks.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits on this thread, for what another one does.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let (mut work, waker) = (pin!(work), Waker::from(Arc::new(Unpark(thread::current()))));
    loop {
        if let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(&waker)) {
            return done;
        }
        thread::park();
    }
}

fn landed<T>(done: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    match done {
        Ok(outcome) => outcome,
        Err(died) if died.is_panic() => Err(Error::Fatal(
            "the call panicked, see the log; all else goes on: report it, and see what is stored".into(),
        )),
        Err(_) => Err(Error::Fatal("the engine has ended".into())),
    }
}

/// One thread. What its tasks spawn stays on it.
#[derive(Clone)]
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
