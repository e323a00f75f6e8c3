//! Signals that ask to stop.

use crate::exit::Failure;
use std::{fs, future::pending};
use tokio::signal::unix::{SignalKind, signal};

const HANGUP: u8 = 1;
const INTERRUPT: u8 = 2;
const TERMINATE: u8 = 15;

/// Resolves with the number of the signal. One that this process was started to ignore (`nohup`, `&` in a script) stays
/// ignored.
pub(crate) fn interrupted() -> Result<impl Future<Output = u8>, Failure> {
    let ignored = ignored();
    let listen = |number: u8| {
        if ignored & (1 << (number - 1)) != 0 {
            return Ok(None);
        }
        let listening = signal(SignalKind::from_raw(number.into()));
        listening.map(Some).map_err(|error| Failure::io("listening for signals", error))
    };
    let (mut hangup, mut interrupt, mut terminate) = (listen(HANGUP)?, listen(INTERRUPT)?, listen(TERMINATE)?);
    Ok(async move {
        tokio::select! {
            () = received(&mut hangup) => HANGUP,
            () = received(&mut interrupt) => INTERRUPT,
            () = received(&mut terminate) => TERMINATE,
        }
    })
}

async fn received(signal: &mut Option<tokio::signal::unix::Signal>) {
    if let Some(signal) = signal
        && signal.recv().await.is_some()
    {
        return;
    }
    pending().await
}

/// The ignored signals, signal 1 lowest; none where /proc does not tell.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
