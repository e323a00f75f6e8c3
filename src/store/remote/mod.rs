//! What stores on a server share: connections live on a thread of the store's own, so that they stand still with nobody's runtime.

#[cfg(any(feature = "etcd", feature = "postgres"))]
use super::{Apart, Changes};
use crate::error::{Error, Result};
use std::{sync::Arc, thread, time::Duration};
use tokio::{
    runtime::{Builder, Handle},
    sync::{Semaphore, oneshot},
    task::JoinHandle,
};

pub(super) mod files;

/// What to look at where certificates are not taken.
pub(super) const CERTIFICATES: &str =
    "see store.ca, by which theirs are known, store.cert, by which they know this one, and the names in store.url";

/// How often a read and a write are tried to tell how long they take.
pub(super) const PROBES: usize = 9;

/// A thread with a runtime of its own, on which all that is done with `S` is done. It ends with this.
pub(super) struct Remote<S> {
    /// The store's, as an URL without anything that a log should not have.
    name: String,
    shared: Arc<S>,
    runtime: Handle,
    requests: Arc<Semaphore>,
    /// The thread ends when this is dropped.
    _alive: oneshot::Sender<()>,
}

/// Why a server gave no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// For now, perhaps. A write may have been done.
    Silent(String),
    /// It is the server's word, or what was set up: the same request gets the same.
    Refused(String),
}

impl Failure {
    /// Of a call of the store with this name.
    pub(super) fn named(self, store: &str) -> Error {
        let (Self::Silent(what) | Self::Refused(what)) = self;
        Error::Store(format!("{store}: {what}"))
    }

    /// Of what opens the store.
    pub(super) fn of_set_up(self, store: &str) -> Error {
        match self {
            Self::Refused(what) => Error::Misconfigured(format!("store {store}: {what}")),
            // What one has to another that does not know it.
            Self::Silent(what) if what.contains("certificate") => {
                Error::Misconfigured(format!("store {store}: {what}; {CERTIFICATES}"))
            }
            failure => failure.named(store),
        }
    }
}

/// Ends what is under way for a caller that is gone.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<S: Send + Sync + 'static> Remote<S> {
    /// `requests_max` is how many requests one call has under way.
    pub(super) fn begin(kind: &str, name: String, requests_max: usize, shared: S) -> Result<Self> {
        let failed = |error: std::io::Error| Error::Fatal(format!("store {name}: no thread for it: {error}"));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (alive, ended) = oneshot::channel::<()>();
        let handle = runtime.handle().clone();
        let work = move || drop(runtime.block_on(ended));
        thread::Builder::new().name(format!("keyleash-{kind}")).spawn(work).map_err(failed)?;
        let requests = Arc::new(Semaphore::new(requests_max));
        Ok(Self { name, shared: Arc::new(shared), runtime: handle, requests, _alive: alive })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn closed(&self) -> Error {
        Error::Store(format!("store {}: it was closed", self.name))
    }

    /// On the store's own thread.
    pub(super) async fn run<T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<S>) -> F,
    ) -> Result<T> {
        let mut task = Task(self.runtime.spawn(work(self.shared.clone())));
        let ended = (&mut task.0).await;
        ended.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Hears these on the store's own thread.
    #[cfg(any(feature = "etcd", feature = "postgres"))]
    pub(super) fn hear(&self, changes: impl Changes + 'static) -> Box<dyn Changes> {
        Apart::hear(Box::new(changes), |hearing| self.runtime.spawn(hearing).abort_handle())
    }

    /// Each on the store's own thread, some at a time.
    pub(super) async fn run_each<A, T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        each: Vec<A>,
        work: impl Fn(Arc<S>, A) -> F,
    ) -> Vec<Result<T>> {
        let begin = |one: A| {
            let (permits, work) = (self.requests.clone(), work(self.shared.clone(), one));
            Task(self.runtime.spawn(async move {
                let _permit = permits.acquire_owned().await;
                work.await
            }))
        };
        let tasks: Vec<_> = each.into_iter().map(begin).collect();
        let mut outcomes = Vec::with_capacity(tasks.len());
        for mut task in tasks {
            let ended = (&mut task.0).await;
            outcomes.push(ended.map_err(|_| self.closed()));
        }
        outcomes
    }
}

/// The first key behind all that begin so.
#[cfg(any(feature = "etcd", feature = "postgres"))]
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    // Every prefix has text in it, so that one byte at least is below 255.
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            break;
        }
    }
    end
}

pub(super) fn median(mut spans: Vec<Duration>) -> Duration {
    spans.sort_unstable();
    spans.get(spans.len() / 2).copied().unwrap_or_default()
}

/// The innermost cause, which is the one that says something.
pub(super) fn why(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
