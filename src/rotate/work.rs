//! The scheduled work: a task of the engine that holds the work, or waits for it, and passes over the store now and then.

use super::{
    hold::{Hold, ONCE_LEASE, SERVICE_LEASE, STALLED_MAX, Standing, Stint},
    pass::{Notes, Pass, WorkReport},
};
use crate::{
    error::{Error, Result},
    home::beat::Beat,
    keyring::Keyring,
};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::task::JoinSet;

/// From one pass over the store to the next. What is due by age is found this late at most, what is due by counts at once
/// by the engine that does the work. Passing over 1,000,000 accounts in the embedded store takes some 35 s of one core, spread
/// over five minutes and more (`pass.rs` rests nine times as long as it works).
pub const PASS_EVERY: Duration = Duration::from_secs(15 * 60);
/// The task shows life this often.
const TICK: Duration = Duration::from_secs(5);
/// How often a pass that is done once looks whether it is its turn.
const TURN_EVERY: Duration = Duration::from_millis(500);

/// The scheduled work of an engine, for as long as it lives.
pub(crate) async fn work(keyring: Arc<Keyring>, beat: Arc<Beat>) {
    let hold = match Hold::new(SERVICE_LEASE) {
        Ok(hold) => Arc::new(hold),
        Err(error) => {
            tracing::error!(%error, "no scheduled work");
            return;
        }
    };
    let notes = Arc::new(Notes::default());
    let (mut passes, mut stint) = (JoinSet::new(), None::<Arc<Stint>>);
    let begin = keyring.clock.now();
    // Not at once: whoever begins many engines, or one that soon ends, has no use for it.
    let (mut next_look, mut next_pass) = (begin.plus(hold.look_every()), begin);
    loop {
        let now = keyring.clock.now();
        beat.at(now);
        if keyring.is_closed() {
            return;
        }
        if now >= next_look && !passes.is_empty() && stint.as_ref().is_some_and(|stint| stint.is_stalled()) {
            // Whatever it waits for never comes, here at least.
            passes.shutdown().await;
            notes.tell_stalled(&keyring);
            hold.release(&keyring).await;
            next_look = now.plus(STALLED_MAX); // others first
        }
        if now >= next_look {
            next_look = now.plus(hold.look_every());
            match hold.look(&keyring).await {
                Ok(Standing::Ours) => {}
                Ok(Standing::Busy(_) | Standing::Waiting(_)) => {
                    passes.abort_all();
                    next_pass = now; // whoever takes over begins at once
                }
                Err(error) => {
                    tracing::warn!(%error, "who does the scheduled work is not known");
                    notes.tell_if_newer(&keyring, &error);
                }
            }
        }
        if passes.is_empty() && hold.check(keyring.clock.now()).is_ok() {
            let began = stint.insert(Stint::new(hold.clone(), keyring.clock.clone())).clone();
            let pass = Pass::new(keyring.clone(), began, Some(notes.clone()));
            if now >= next_pass {
                next_pass = now.plus(PASS_EVERY);
                keyring.due.take(); // they are among all
                passes.spawn(async move { drop(pass.run().await) });
            } else {
                let due = keyring.due.take();
                if !due.is_empty() {
                    passes.spawn(async move { drop(pass.run_for(due).await) });
                }
            }
        }
        tokio::select! {
            biased; // every branch leads to the same look around, and a simulation sees the same again
            () = keyring.clock.sleep_until(now.plus(TICK).min(next_look)) => {}
            () = keyring.due.stir.notified() => {}
            // One that panicked is begun again when the next is due.
            Some(_) = passes.join_next() => {}
        }
    }
}

impl Keyring {
    /// As [`Engine::run_schedule`](crate::Engine::run_schedule), at home.
    pub(crate) async fn run_schedule(self: &Arc<Self>) -> Result<WorkReport> {
        let keyring = self;
        let hold = Arc::new(Hold::new(ONCE_LEASE)?);
        loop {
            match hold.look(keyring).await? {
                Standing::Ours => break,
                Standing::Busy(holder) => return Ok(WorkReport { held_by: Some(holder), ..WorkReport::default() }),
                Standing::Waiting(_) => keyring.clock.sleep_until(keyring.clock.now().plus(TURN_EVERY)).await,
            }
        }
        let stint = Stint::new(hold.clone(), keyring.clock.clone());
        let mut pass = pin!(Pass::new(self.clone(), stint.clone(), None).run());
        let keep = async {
            loop {
                keyring.clock.sleep_until(keyring.clock.now().plus(hold.look_every())).await;
                if stint.is_stalled() {
                    return; // it runs out by itself
                }
                match hold.look(keyring).await {
                    Ok(Standing::Ours) => {}
                    Ok(_) => return, // the pass finds out, and says what it had done
                    // It runs out by itself, and every write asks.
                    Err(error) => tracing::warn!(%error, "the scheduled work could not be held on to"),
                }
            }
        };
        let report = tokio::select! {
            biased;
            () = keep => pass.as_mut().await,
            report = &mut pass => report,
        };
        hold.release(keyring).await;
        Ok(report)
    }
}

impl WorkReport {
    /// What a caller should be told, when not all was done.
    pub fn trouble(&self) -> Option<&Error> {
        self.stopped.as_ref().or_else(|| self.failures.first().map(|(_, error)| error))
    }
}
