//! Signals that ask to stop.

use crate::exit::Failure;
use std::{fs, future::poll_fn, task::Poll};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Every signal that would end the process and can be caught, but for those that tell of a fault of its own: HUP, INT, QUIT, USR1,
/// USR2, ALRM, TERM, STKFLT, XCPU, XFSZ, VTALRM, PROF, IO, PWR.
const ENDING: [u8; 14] = [1, 2, 3, 10, 12, 14, 15, 16, 24, 25, 26, 27, 29, 30];

/// Resolves with the number of the signal. One that this process was started to ignore (`nohup`, `&` in a script) stays
/// ignored.
pub(crate) fn interrupted() -> Result<impl Future<Output = u8>, Failure> {
    let ignored = ignored();
    let mut heard: Vec<(u8, Signal)> = Vec::new();
    for number in ENDING.into_iter().filter(|number| ignored & (1 << (number - 1)) == 0) {
        let listening = signal(SignalKind::from_raw(number.into()));
        heard.push((number, listening.map_err(|error| Failure::io("listening for signals", error))?));
    }
    Ok(poll_fn(move |cx| {
        for (number, signal) in &mut heard {
            if signal.poll_recv(cx) == Poll::Ready(Some(())) {
                return Poll::Ready(*number);
            }
        }
        Poll::Pending
    }))
}

/// The ignored signals, signal 1 lowest; none where /proc does not tell.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
