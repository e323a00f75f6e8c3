//! Hears of what other engines change in the store, where it has a feed: so an account that one deleted, rotated, re-wrapped or moved, and
//! a denial that one saw, reach the others at once, instead of within a TTL and with their own next proof.
//!
//! Nothing rests on it. What is heard makes this engine read the record, or ask the token, and those say what is so: a store denies
//! nothing and grants nothing by it. What is not heard, because the feed broke or too much came, is noticed as where there is none.

use crate::{
    error::Result,
    home::beat::Beat,
    keyring::{
        Keyring,
        background::{FLIGHTS_MAX, Why, unwrap_in_background},
    },
    name::{AccountId, KekVersion},
    slots::slot::AekSlot,
    store::{Changes, Key},
    telemetry::Event,
};
use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::task::JoinSet;

/// Shows life so often while nothing is heard.
const TICK: Duration = Duration::from_secs(1);
/// A feed that broke is opened again after so long, …
const AGAIN_MIN: Duration = Duration::from_secs(1);
/// … each time twice as long up to this, and from the beginning once one lasted for longer.
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// Most accounts that wait to be looked at; what changes of others is noticed within their TTL.
const WAITING_MAX: usize = 10_000;

/// For as long as the engine lives.
pub(super) async fn hear(keyring: Arc<Keyring>, beat: Arc<Beat>) {
    let (mut pause, mut is_told) = (AGAIN_MIN, false);
    loop {
        let opened = showing_life(&keyring, &beat, keyring.store.changes()).await;
        let began = keyring.clock.now();
        let why = match opened {
            None => return,
            Some(Ok(None)) => {
                showing_life(&keyring, &beat, std::future::pending::<()>()).await;
                return;
            }
            Some(Ok(Some(changes))) => {
                if std::mem::take(&mut is_told) {
                    keyring.teller.tell(Event::ChangesHeard);
                }
                let Err(why) = listen(&keyring, &beat, changes).await else { return };
                why
            }
            Some(Err(why)) => why,
        };
        if !std::mem::replace(&mut is_told, true) {
            keyring.teller.tell(Event::ChangesUnheard { why: why.to_string() });
        }
        let now = keyring.clock.now();
        pause = if now.since(began) > AGAIN_MAX { AGAIN_MIN } else { pause };
        if showing_life(&keyring, &beat, keyring.clock.sleep_until(now.plus(pause))).await.is_none() {
            return;
        }
        pause = (pause * 2).min(AGAIN_MAX);
    }
}

/// What comes of it; `None` where the engine ended before.
async fn showing_life<T>(keyring: &Keyring, beat: &Beat, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    loop {
        let now = keyring.clock.now();
        beat.at(now);
        if keyring.is_closed() {
            return None;
        }
        if let Some(done) = keyring.clock.until(now.plus(TICK), work.as_mut()).await {
            return Some(done);
        }
    }
}

/// Until it breaks, or the engine ends.
async fn listen(keyring: &Arc<Keyring>, beat: &Beat, mut changes: Box<dyn Changes>) -> Result<()> {
    let (mut waiting, mut denials, mut accounts) = (Waiting::default(), JoinSet::new(), JoinSet::new());
    loop {
        let now = keyring.clock.now();
        beat.at(now);
        if keyring.is_closed() {
            return Ok(());
        }
        // Apart: a token that is slow to unwrap keeps no denial waiting.
        while denials.len() < FLIGHTS_MAX
            && let Some(kek) = waiting.denials.pop_first()
        {
            let keyring = keyring.clone();
            denials.spawn(async move { look_at_denial(&keyring, &kek).await });
        }
        while accounts.len() < FLIGHTS_MAX
            && let Some(slot) = waiting.next_slot(keyring)
        {
            unwrap_in_background(keyring, &mut accounts, slot, Why::Heard).await;
        }
        tokio::select! {
            biased; // a simulation sees the same again
            // First: however fast it is told of more.
            Some(_) = denials.join_next() => {}
            Some(_) = accounts.join_next() => {}
            keys = changes.next() => keys?.into_iter().for_each(|key| waiting.add(keyring, key)),
            () = keyring.clock.sleep_until(now.plus(TICK)) => {}
        }
    }
}

/// What was heard of and nobody looked at yet, each once.
#[derive(Default)]
struct Waiting {
    denials: BTreeSet<KekVersion>,
    accounts: BTreeSet<AccountId>,
    /// Of an account that was among them.
    slots: Vec<Arc<AekSlot>>,
}

impl Waiting {
    fn add(&mut self, keyring: &Keyring, key: Key) {
        match key {
            // Of KEK versions that nobody has here there is nothing to ask.
            Key::Denial(kek) if keyring.known_leash(&kek).is_some() => drop(self.denials.insert(kek)),
            Key::Account(id) if self.accounts.len() < WAITING_MAX && keyring.alive(&id).is_some() => {
                self.accounts.insert(id);
            }
            _ => {}
        }
    }

    fn next_slot(&mut self, keyring: &Keyring) -> Option<Arc<AekSlot>> {
        while self.slots.is_empty() {
            let keys = keyring.alive(&self.accounts.pop_first()?);
            let slots = keys.iter().flat_map(|keys| keys.slots());
            let in_use = slots.filter(|slot| !slot.is_retired() && (slot.is_filled() || slot.is_wanted()));
            self.slots.extend(in_use.cloned());
        }
        self.slots.pop()
    }
}

/// One that this engine does not know of, or the end of one that it does: the token is asked which it is.
async fn look_at_denial(keyring: &Keyring, kek: &KekVersion) {
    let Some(leash) = keyring.known_leash(kek) else { return };
    let there = keyring.in_time(keyring.store.get(&Key::Denial(kek.clone()))).await;
    if there.is_ok_and(|there| there.is_some() != leash.is_denied()) {
        leash.heard.store(true, Ordering::SeqCst);
        keyring.stir.notify_one();
    }
}
