//! The engine's end, and what takes keys out of memory before it.

use super::Engine;
use crate::{
    access::Operation,
    error::{Error, Result},
    keyring::{
        Keyring, On,
        on_trail::{asked_by, asked_by_blocking},
    },
    leash::key_memory::WaitingWipe,
    name::{AccountId, KekName},
    secret::fork,
    telemetry::trail::{Deed, Outcome, Subject},
};
use std::{sync::Arc, time::Duration};

/// How often it is looked whether the last operations and calls have ended.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What the end of an engine left behind. With a store and tokens that answer, and threads that run: nothing.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Closed {
    /// Why some of what was sealed is not written down in its account's record: it is counted by nobody from now on.
    pub unwritten: Option<Error>,
    /// False when the store could not be told of the end of a denial: the next process takes it for one until its first proof.
    pub denials_settled: bool,
    /// Keys that are not wiped, because a seal or open that uses them has not ended.
    pub waiting_wipes: Vec<WaitingWipe>,
    /// Why some of what was told to the trail is not durable; `None` without a trail.
    pub untold: Option<Error>,
    /// Calls that are still inside of a token. A process that ends meanwhile may crash in the module's exit handlers:
    /// [`exit_at_once`](crate::token::pkcs11::exit_at_once) is the way to end then.
    pub calls_inside: usize,
}

impl Closed {
    /// True when nothing is left behind.
    pub fn is_clean(&self) -> bool {
        self.unwritten.is_none()
            && self.untold.is_none()
            && self.denials_settled
            && self.waiting_wipes.is_empty()
            && self.calls_inside == 0
    }
}

impl Engine {
    /// Ends the engine, for all its clones and handles: call it before the process ends. At once, nothing is sealed or opened any more
    /// ([`Error::Closed`]) and every key is wiped. Then, within `patience`, what was sealed is written down in the accounts' records, the
    /// store is told which denials have ended, and the last operations and token calls are waited for.
    ///
    /// Dropped before it is done, it may be called again. An engine whose last handle is dropped without it wipes its keys all the
    /// same, and writes nothing down.
    ///
    /// # Errors
    /// [`Error::Fatal`] in a forked child. What was left undone is in [`Closed`].
    pub async fn close(&self, patience: Duration) -> Result<Closed> {
        fork::refuse_child()?;
        self.keyring().refuse_all();
        let keyring = self.keyring().clone();
        let by = self.asks();
        self.keyring().home.last_call(asked_by(Some(by), async move { Ok(end(&keyring, patience).await) })).await
    }

    /// Takes an account's keys out of memory: its handles are [`Error::Cold`] until they are warmed, which asks the token. What was
    /// counted of it is kept. Nothing is changed in the store.
    ///
    /// # Errors
    /// [`Error::Fatal`] in a forked child, [`Error::Closed`].
    pub async fn evict(&self, id: &AccountId) -> Result<()> {
        let on = Subject { account: Some(id.clone()), ..Subject::default() };
        let evict = async {
            self.is_granted(&[Operation::Unwrap], On::Account(id)).await?;
            let id = id.clone();
            self.at_home(|keyring| async move {
                keyring.shut(&id).await;
                Ok(())
            })
            .await
        };
        self.telling(Deed::AccountEvict, on, evict, |(), _| {}).await
    }

    /// The operator's panic button: takes the keys of all accounts of which a version of this KEK wraps an AEK out of memory, at once,
    /// and without asking token or store. Gives how many accounts that were. They are [`Error::Cold`] until somebody warms them, as the
    /// async forms do by themselves: to keep them away, disable the KEK in the token first. Other engines are not told.
    pub fn wipe_now(&self, kek: &KekName) -> usize {
        if fork::in_child() {
            return 0; // its keys are gone, and a lock may be held for good
        }
        let wiped = self.keyring().wipe_under(kek);
        if self.is_on_trail() {
            let tell =
                || self.keyring().note_of(Deed::KekWipe, || Outcome::Done, |record| record.on.kek = Some(kek.clone()));
            asked_by_blocking(Some(self.asks()), tell);
        }
        wiped
    }
}

async fn end(keyring: &Arc<Keyring>, patience: Duration) -> Closed {
    let clock = &keyring.clock;
    let give_up = clock.now().plus(patience);
    let unwritten = match clock.until(give_up, keyring.write_all_usage()).await {
        Some(written) => written.err(),
        None => Some(Error::Store(format!("no end of writing within {} s", patience.as_secs()))),
    };
    let told = async {
        keyring.tell_sums(true, |_| {}).await;
        keyring.note_of_itself(Deed::EngineClose, |_| {});
        keyring.flush_trail().await
    };
    let untold = match clock.until(give_up, told).await {
        Some(flushed) => flushed.err(),
        None => Some(Error::Trail(format!("no end of writing within {} s", patience.as_secs()))),
    };
    let denials_settled = clock.until(give_up, keyring.denials_settled()).await.is_some();
    keyring.end_tasks();
    loop {
        keyring.memory.wipe_waiting();
        let calls_inside = keyring.tokens.seats().map(|seat| seat.in_flight()).sum();
        let waiting_wipes = keyring.memory.waiting();
        let now = clock.now();
        if now >= give_up || waiting_wipes.is_empty() && calls_inside == 0 {
            return Closed { unwritten, untold, denials_settled, waiting_wipes, calls_inside };
        }
        clock.sleep_until(now.plus(LOOK_EVERY).min(give_up)).await;
    }
}
