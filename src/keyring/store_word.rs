//! What the store's answers, and its silence, say of the store itself.

use super::Keyring;
use crate::{
    clock::Instant,
    config::Settings,
    error::{Error, Result},
    telemetry::{Event, trail::Deed},
};

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

    /// Tells of a store that has been silent for as long as a proof may take to ask it again, and of the end of that; the trail too.
    pub(crate) fn tell_of_store(&self, now: Instant) {
        let Settings { poll_interval, store_timeout, .. } = self.settings;
        let (event, deed) = match self.store_word.news(now, poll_interval + store_timeout) {
            Some((true, why)) => (Event::StoreSilent { why }, Deed::StoreSilent),
            Some((false, _)) => (Event::StoreAnswers, Deed::StoreAnswers),
            None => return,
        };
        self.teller.tell(event);
        self.note_of_itself(deed, |_| {});
    }
}
