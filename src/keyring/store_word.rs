//! What the store's answers, and its silence, say of the store itself.

use super::Keyring;
use crate::{
    clock::Instant,
    error::{Error, Result},
    telemetry::Event,
};
use std::time::Duration;

impl Keyring {
    /// A read of the store that somebody waits for, as on the way to an unwrap, so it ends; what comes of it is the store's word.
    pub(crate) async fn in_time<T>(&self, reading: impl Future<Output = Result<T>>) -> Result<T> {
        let (asked, timeout) = (self.clock.now(), self.settings.store_timeout);
        let read = self.clock.until(asked.plus(timeout), reading).await.unwrap_or_else(|| {
            Err(Error::Store(format!(
                "no answer within {} ms: see that the store is reachable and not overloaded, and try again",
                timeout.as_millis()
            )))
        });
        match &read {
            Err(Error::Store(why)) => self.store_word.failed(asked, self.clock.now(), why),
            Ok(_) | Err(_) => self.store_word.heard(asked, self.clock.now()),
        }
        read
    }

    /// Tells of a store that has been silent for as long as a proof may take to ask it again, and of the end of that.
    pub(crate) fn tell_of_store(&self, now: Instant) {
        match self.store_word.news(now, self.store_patience()) {
            Some((true, why)) => self.teller.tell(Event::StoreSilent { why }),
            Some((false, _)) => self.teller.tell(Event::StoreAnswers),
            None => {}
        }
    }

    /// The store has been silent for as long as is told.
    pub(crate) fn is_store_silent(&self, now: Instant) -> bool {
        self.store_word.status(now).is_some_and(|silence| silence.lasting >= self.store_patience())
    }

    fn store_patience(&self) -> Duration {
        self.settings.poll_interval + self.settings.store_timeout
    }
}
