//! What is changed in the store, as the primary tells it: by a connection of its own that listens.

use super::{Shared, connect::Connection, schema};
use crate::{
    error::{Error, Result},
    store::{Changes, Key},
};
use async_trait::async_trait;
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::timeout};

/// Most that was told and not taken; one more, and it is broken.
const TOLD_MAX: usize = 16 * 1024;

pub(super) struct Feed {
    shared: Arc<Shared>,
    told: mpsc::Receiver<String>,
    _connection: Connection,
}

impl Feed {
    /// Listens, and looks whether it hears: behind a pooler that gives each transaction another connection nobody would.
    pub(super) async fn open(shared: Arc<Shared>) -> Result<Self> {
        let (sender, told) = mpsc::channel(TOLD_MAX);
        let connection = shared.servers.listen(&schema::channel(shared.id()), sender).await;
        let connection = connection.map_err(|failure| shared.named(failure))?;
        let mut feed = Self { shared, told, _connection: connection };
        feed.ask().await?;
        // Changes may be told before it: nobody heard of this feed then.
        match timeout(feed.patience(), feed.told.recv()).await {
            Ok(Some(_)) => Ok(feed),
            _ => {
                Err(feed
                    .broke("nothing is heard by it; name servers in store.url, and no pooler that shares connections"))
            }
        }
    }

    fn patience(&self) -> Duration {
        self.shared.servers.config.reach.timeout
    }

    fn broke(&self, why: &str) -> Error {
        Error::Store(format!("{}: its feed of changes broke: {why}", self.shared.name))
    }

    /// Has the primary say something, by another connection: one that was the primary before does not hear it.
    async fn ask(&self) -> Result<()> {
        let (servers, ask) = (&self.shared.servers, [schema::notify(self.shared.id())]);
        servers.write(&ask, servers.deadline()).await.map(drop).map_err(|failure| self.shared.named(failure))
    }
}

/// Told is its hex.
fn key_of(told: &str) -> Option<Key> {
    let (pairs, rest) = told.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<_>> = pairs.iter().map(byte).collect();
    bytes.filter(|_| rest.is_empty()).and_then(|bytes| Key::from_bytes(&bytes).ok())
}

#[async_trait]
impl Changes for Feed {
    async fn next(&mut self) -> Result<Vec<Key>> {
        let mut is_asked = false;
        loop {
            match timeout(self.patience(), self.told.recv()).await {
                Ok(Some(told)) => {
                    // That of who asked whether it is there is none.
                    if let Some(key) = key_of(&told) {
                        return Ok(vec![key]);
                    }
                    is_asked = false;
                }
                Ok(None) => return Err(self.broke("the connection ended, or more came than was taken")),
                Err(_) if is_asked => return Err(self.broke("what was said is not heard by it")),
                Err(_) => {
                    is_asked = true;
                    self.ask().await?;
                }
            }
        }
    }
}
