//! What is changed in the namespace, as a member of the cluster tells it.

use super::keys::Keys;
use crate::{
    error::{Error, Result},
    store::{Changes, Key},
};
use async_trait::async_trait;
use etcd_client::{Error as EtcdError, WatchStream};
use std::time::Duration;
use tokio::time::timeout;

/// A watch of the records.
pub(super) struct Feed {
    pub(super) name: String,
    pub(super) stream: WatchStream,
    pub(super) keys: Keys,
    /// After so long without a word it is asked for one, and after as long again it is broken.
    pub(super) patience: Duration,
}

impl Feed {
    fn broke(&self, why: impl std::fmt::Display) -> Error {
        Error::Store(format!("{}: its feed of changes broke: {why}", self.name))
    }
}

#[async_trait]
impl Changes for Feed {
    async fn next(&mut self) -> Result<Vec<Key>> {
        let mut is_asked = false;
        loop {
            let said = match timeout(self.patience, self.stream.message()).await {
                Ok(Ok(Some(said))) => said,
                Ok(Ok(None)) => return Err(self.broke("the member ended it")),
                Ok(Err(error)) => return Err(self.broke(error)),
                Err(_) if is_asked => return Err(self.broke(format!("no word within {:.1?}", 2 * self.patience))),
                Err(_) => {
                    is_asked = true;
                    let asked = timeout(self.patience, self.stream.request_progress()).await;
                    asked.unwrap_or(Ok(())).map_err(|error: EtcdError| self.broke(error))?;
                    continue;
                }
            };
            if said.canceled() {
                return Err(self.broke(format!("the member cancelled it: {}", said.cancel_reason())));
            }
            is_asked = false;
            let keys: Vec<_> =
                said.events().iter().filter_map(|event| self.keys.of_record(event.kv()?.key())).collect();
            if !keys.is_empty() {
                return Ok(keys);
            }
        }
    }
}
