//! What others change in a store, as it is heard of.

use super::Key;
use crate::error::{Error, Result};
use async_trait::async_trait;
use std::pin::Pin;
use tokio::{sync::mpsc, task::AbortHandle};

/// Most that was heard of and not taken yet; then whoever tells waits.
const HELD_MAX: usize = 64;

/// The changes of a store from when this was opened, whoever made them: [`KeyStore::changes`](super::KeyStore::changes).
#[async_trait]
pub trait Changes: Send {
    /// Keys that were written or deleted since the last call, or since this was opened, in any order; waits until there is one. One may
    /// come more than once, or though it did not change. A read that begins after it was named sees the change.
    ///
    /// # Errors
    /// [`Error::Store`](crate::Error::Store) when it broke: of what changed since nobody heard. It is dropped then, and another one opened.
    async fn next(&mut self) -> Result<Vec<Key>>;
}

/// Changes that are heard on another thread than the one where they are taken.
pub(crate) struct Apart {
    heard: mpsc::Receiver<Result<Vec<Key>>>,
    hearing: AbortHandle,
}

impl Apart {
    /// Hears these where `spawn` has it done.
    pub(crate) fn hear(
        mut changes: Box<dyn Changes>,
        spawn: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>) -> AbortHandle,
    ) -> Box<dyn Changes> {
        let (sender, heard) = mpsc::channel(HELD_MAX);
        let hearing = async move {
            loop {
                let next = changes.next().await;
                let is_over = next.is_err();
                if sender.send(next).await.is_err() || is_over {
                    return;
                }
            }
        };
        Box::new(Self { heard, hearing: spawn(Box::pin(hearing)) })
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.hearing.abort();
    }
}

#[async_trait]
impl Changes for Apart {
    async fn next(&mut self) -> Result<Vec<Key>> {
        let ended =
            || Err(Error::Store("its feed of changes ended: the store was closed, or it panicked, see the log".into()));
        self.heard.recv().await.unwrap_or_else(ended)
    }
}
