//! Waiting, and telling for how long.

use crate::clock::{Clock, Instant};
use std::{sync::Arc, time::Duration};

/// A condition is looked at this often.
const PAUSE: Duration = Duration::from_millis(5);
/// Where nothing is waited for but time, it is told this often how much has passed.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What a drill waits for.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Waiting<'a> {
    /// In a word.
    pub what: &'a str,
    /// How long it has waited; `None` when it does no more.
    pub gone: Option<Duration>,
    /// The most that it will.
    pub of: Duration,
}

type Teller = Arc<dyn Fn(Waiting<'_>) + Send + Sync>;

/// How a drill waits.
#[derive(Clone, Default)]
pub(crate) struct Wait {
    clock: Clock,
    pub(crate) teller: Option<Teller>,
}

impl Wait {
    /// Waits until the condition holds; false when `give_up` came first.
    pub(crate) async fn until(&self, give_up: Instant, condition: impl Fn() -> bool) -> bool {
        let (what, from) = ("waiting", self.clock.now());
        let of = give_up.since(from);
        let mut held = condition();
        while !held && self.clock.now() < give_up {
            self.tell(what, Some(from), of);
            self.clock.sleep_until(self.clock.now().plus(PAUSE)).await;
            held = condition();
        }
        self.tell(what, None, of);
        held
    }

    /// Waits, whatever happens.
    pub(crate) async fn rest(&self, what: &str, time: Duration) {
        let from = self.clock.now();
        let end = from.plus(time);
        while self.clock.now() < end {
            self.tell(what, Some(from), time);
            self.clock.sleep_until(end.min(self.clock.now().plus(TELL_EVERY))).await;
        }
        self.tell(what, None, time);
    }

    fn tell(&self, what: &str, from: Option<Instant>, of: Duration) {
        if let Some(teller) = &self.teller {
            teller(Waiting { what, gone: from.map(|from| self.clock.now().since(from)), of });
        }
    }
}
