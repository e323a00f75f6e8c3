//! A service in a process of its own, and what it tells the drill line by line of every operation:
//!
//! ```text
//! r ACCOUNT OUTCOME FROM FIRST TO COUNT    a run of operations
//! v BYTES                                  bytes that were looked at
//! b BYTES                                  bytes that came out wrong
//! x OUTCOME WORDS                          a refusal in words
//! w COUNT                                  operations that waited for an unwrap
//! l AT AEKS PHASE                          the lease
//! ```

use super::{
    error::Error,
    outcome::{Outcome, Run},
    timeline::{Chunk, LeaseOf, Listener, Recorder},
};
use crate::clock::Instant;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fmt::Write as _,
    io::{BufRead, BufReader},
    process::Child,
    sync::Arc,
    thread,
};

/// Where what a process tells is written down.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seat {
    /// Whose lease it tells.
    pub(crate) lease: LeaseOf,
    /// The number of the first of its accounts.
    pub(crate) first: usize,
}

/// The service. Killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    listening: Option<thread::JoinHandle<()>>,
}

impl Process {
    /// Listens to what the process tells.
    pub(crate) fn of(child: Child, recorder: &Arc<Recorder>, seat: Seat) -> Result<Self, Error> {
        let mut process = Self { child, listening: None };
        let lines = process.child.stdout.take();
        let lines = lines.ok_or(Error::Operator("started a service without a standard output"))?;
        let recorder = recorder.clone();
        let listen = move || listen(BufReader::new(lines), &recorder, seat);
        let listening = thread::Builder::new().name("drill-listen".into()).spawn(listen);
        process.listening = Some(listening.map_err(|error| Error::io("starting a thread", error))?);
        Ok(process)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Stops it, so that it does nothing more, or has it go on.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), Error> {
        kill_process(Pid::from_child(&self.child), signal).map_err(|error| Error::io("sending a signal", error.into()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL: no farewell. One that ended already is no trouble.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}

/// The side of the process: writes down what it tells its parent.
pub(crate) struct Teller<T>(pub(crate) T);

impl<T: Fn(&str)> Teller<T> {
    /// The leases of the KEK.
    pub(crate) fn leases(&self, at: Instant, leases: &[(u32, &str, usize)]) {
        for (_, phase, aeks) in leases {
            (self.0)(&format!("l {} {aeks} {phase}\n", at.as_nanos()));
        }
    }
}

impl<T: Fn(&str) + Send + Sync> Listener for Teller<T> {
    fn absorb(&self, chunk: Chunk) {
        let mut lines = String::new();
        for (outcome, words) in chunk.examples {
            let _ = writeln!(lines, "x {} {}", outcome as usize, words.replace('\n', " "));
        }
        for (account, run) in chunk.runs {
            let Run { outcome, from, first, to, count } = run;
            let _ = writeln!(lines, "r {account} {} {from} {first} {to} {count}", outcome as usize);
        }
        if chunk.compared_bytes > 0 {
            let _ = writeln!(lines, "v {}", chunk.compared_bytes);
        }
        if chunk.unverified_bytes > 0 {
            let _ = writeln!(lines, "b {}", chunk.unverified_bytes);
        }
        if chunk.warmed > 0 {
            let _ = writeln!(lines, "w {}", chunk.warmed);
        }
        (self.0)(&lines);
    }
}

/// The parent's side: writes down what the process tells, until it ends.
fn listen(lines: impl BufRead, recorder: &Recorder, seat: Seat) {
    let mut examples = Vec::new();
    for line in lines.lines().map_while(Result::ok) {
        // The last line of a process that was killed may be cut short.
        if let Some(chunk) = parse(&line, &mut examples, recorder, seat) {
            recorder.absorb(chunk);
        }
    }
}

fn parse(line: &str, examples: &mut Vec<(Outcome, String)>, recorder: &Recorder, seat: Seat) -> Option<Chunk> {
    let (kind, rest) = line.split_once(' ')?;
    let mut fields = rest.split(' ');
    let mut number = || fields.next()?.parse::<u64>().ok();
    match kind {
        "r" => {
            let account = usize::try_from(number()?).ok()?.checked_add(seat.first)?;
            let outcome = Outcome::from_number(usize::try_from(number()?).ok()?)?;
            let run = Run { outcome, from: number()?, first: number()?, to: number()?, count: number()? };
            Some(Chunk { runs: vec![(account, run)], examples: examples.clone(), ..Chunk::default() })
        }
        "v" => Some(Chunk { compared_bytes: number()?, ..Chunk::default() }),
        "b" => Some(Chunk { unverified_bytes: number()?, ..Chunk::default() }),
        "w" => Some(Chunk { warmed: number()?, ..Chunk::default() }),
        "x" => {
            let (outcome, words) = rest.split_once(' ')?;
            let outcome = Outcome::from_number(outcome.parse().ok()?)?;
            examples.retain(|(known, _)| *known != outcome);
            examples.push((outcome, words.to_owned()));
            None
        }
        "l" => {
            let (at, aeks) = (number()?, usize::try_from(number()?).ok()?);
            recorder.lease(Instant::from_nanos(at), seat.lease, fields.next()?, aeks);
            None
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_a_process_tells_is_written_down_and_a_cut_line_is_not() {
        let recorder = Recorder::new(Instant::default(), Duration::from_nanos(10), 2);
        let told = "l 5 2 active\nr 0 0 1 2 3 4\nr 1 1 1 2 3 7\nx 1 denied: why\nv 9\nb 3\nr 0 1 9";
        listen(told.as_bytes(), &recorder, Seat { lease: LeaseOf::KekVersion(1), first: 0 });
        let timeline = recorder.read(Instant::from_nanos(20));
        assert_eq!(timeline.runs[0], [Run { outcome: Outcome::Ok, from: 1, first: 2, to: 3, count: 4 }]);
        assert_eq!(timeline.operations(Outcome::Denied), 7);
        assert_eq!((timeline.compared_bytes, timeline.unverified_bytes, timeline.lease.len()), (9, 3, 1));
    }

    #[test]
    fn what_one_of_several_tells_is_of_its_own_accounts_and_its_own_lease() {
        let recorder = Recorder::new(Instant::default(), Duration::from_nanos(10), 4);
        let seat = Seat { lease: LeaseOf::Node(2), first: 2 };
        listen("l 5 2 active\nr 1 0 1 2 3 4\nr 9 0 1 2 3 4\n".as_bytes(), &recorder, seat);
        let timeline = recorder.read(Instant::from_nanos(20));
        assert_eq!(timeline.runs.iter().map(Vec::len).collect::<Vec<_>>(), [0, 0, 0, 1]);
        assert_eq!(timeline.leases(), [LeaseOf::Node(2)]);
    }
}
