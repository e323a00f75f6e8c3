//! Supervision: a task of the engine that died is started again, and one that stalled is ended first; both are told.

use super::TICK;
use crate::{home::beat::Beat, keyring::Keyring, telemetry::Event};
use std::{sync::Arc, time::Duration};
use tokio::task::AbortHandle;

/// A task that showed no sign of life for this long, beyond what a proof may take, is stalled.
pub(super) const STALL_MIN: Duration = Duration::from_secs(10);

/// Runs a task of the upkeep for as long as the engine lives. Looked after from where the proofs are: it may be stuck.
pub(crate) fn supervise(
    keyring: &Arc<Keyring>,
    name: &'static str,
    start: impl Fn(&Arc<Keyring>, Arc<Beat>, bool) -> AbortHandle + Send + 'static,
) {
    keyring.home.proofs.spawn(supervised(keyring.clone(), name, start));
}

/// Runs a task for as long as the engine lives, and starts it again when it died or stalled. There is never a second one
/// beside it: one that is stuck in a call cannot be ended, and another would get stuck as well, until no thread is left.
pub(super) async fn supervised(
    keyring: Arc<Keyring>,
    name: &str,
    start: impl Fn(&Arc<Keyring>, Arc<Beat>, bool) -> AbortHandle,
) {
    let stall = STALL_MIN.max(keyring.settings.poll_interval + keyring.tokens.proof_max());
    let mut restarted = false;
    loop {
        let beat = Arc::new(Beat::default());
        beat.at(keyring.clock.now());
        let task = start(&keyring, beat.clone(), restarted);
        restarted = true;
        let mut stalled = false;
        loop {
            let now = keyring.clock.now();
            keyring.clock.sleep_until(now.plus(TICK)).await;
            if keyring.is_closed() {
                task.abort();
                return;
            }
            if task.is_finished() {
                if !stalled {
                    keyring.teller.tell(Event::WatchRestarted { why: format!("the task `{name}` died") });
                }
                break;
            }
            // After a suspend everybody is late: the task gets a tick to show life.
            if !stalled && beat.last() < now && now.since(beat.last()) > stall {
                task.abort();
                stalled = true;
                let why = format!("the task `{name}` stalled; it begins anew as soon as it can be ended");
                keyring.teller.tell(Event::WatchRestarted { why });
            }
        }
    }
}
