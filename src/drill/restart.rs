//! The drill `restart`: a service in a process of its own is killed and started while active, while denied, while denied and
//! unreachable, and while unreachable. It tells line by line what comes of every operation:
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
    operator::Operator,
    outcome::{Outcome, Outcomes, Run},
    play::{OK, RESUMING, Stage, blocking, now, whole},
    timeline::{Chunk, Listener, Recorder},
};
use crate::clock::Instant;
use std::{
    fmt::Write as _,
    io::{BufRead, BufReader},
    process::Child,
    thread,
};

const DENIED: Outcomes = Outcomes::of(&[Outcome::Denied]);
const UNREACHABLE: Outcomes = Outcomes::of(&[Outcome::Unreachable]);
/// Of the lease that the process tells.
const KEK_VERSION: u32 = 1;

/// The service. Killed when it is dropped.
pub(crate) struct Service {
    process: Child,
    listening: Option<thread::JoinHandle<()>>,
}

impl Drop for Service {
    fn drop(&mut self) {
        // SIGKILL: no farewell. One that ended already is no trouble.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}

impl<O: Operator> Stage<'_, O> {
    /// Plays `restart`.
    pub(crate) async fn restarts(&mut self) -> Result<(), O::Error> {
        let (recorder, wait, patience) = (self.recorder, self.wait, self.terms.patience);
        let poll = self.terms.settings.poll_interval;
        let late = self.late(poll + self.terms.timeout);
        let all = |outcome, since: Instant| move || recorder.all_are(outcome, since);
        let service = &mut None;
        let begun = self.restart(service, "", OK).await?;
        wait.until(begun.plus(patience), all(Outcome::Ok, begun)).await;
        wait.rest("active", poll).await;

        let started = self.restart(service, "while active", OK).await?;
        wait.until(started.plus(patience), all(Outcome::Ok, started)).await;
        wait.rest("active", poll).await;

        recorder.keys_before(self.keys(service).await?);
        let act = self.take(OK.with(DENIED)).await?;
        wait.until(act.plus(late), all(Outcome::Denied, act)).await;
        wait.until(act.plus(late), || recorder.aeks() == 0).await;
        recorder.keys_left(self.keys(service).await?);
        let started = self.restart(service, "while denied", DENIED).await?;
        wait.until(started.plus(late), all(Outcome::Denied, started)).await;
        wait.rest("denied", poll * 2).await;

        self.reach(false, DENIED).await?;
        let started = self.restart(service, "while denied and unreachable", DENIED).await?;
        wait.until(started.plus(late), all(Outcome::Denied, started)).await;
        wait.rest("denied", poll * 2).await;
        self.reach(true, DENIED).await?;
        wait.rest("denied", poll).await;
        let undone = self.give(RESUMING).await?;
        let back = || recorder.all_are(Outcome::Ok, undone) && recorder.phase() == "active";
        wait.until(undone.plus(patience), back).await;
        recorder.expect(now(), OK);
        wait.rest("active", poll).await;

        self.reach(false, OK.with(UNREACHABLE)).await?;
        let started = self.restart(service, "while unreachable", UNREACHABLE).await?;
        wait.until(started.plus(late), all(Outcome::Unreachable, started)).await;
        wait.rest("unreachable", poll * 2).await;
        let reached = self.reach(true, RESUMING).await?;
        wait.until(reached.plus(patience), all(Outcome::Ok, reached)).await;
        recorder.expect(now(), OK);
        wait.rest("active", poll).await;
        let service = service.take();
        Ok(blocking(move || drop(service)).await?)
    }

    /// Kills the service, if there is one, and starts it anew. From now on `right` is right.
    async fn restart(
        &mut self,
        service: &mut Option<Service>,
        what: &str,
        right: Outcomes,
    ) -> Result<Instant, O::Error> {
        let at = now();
        if let Some(service) = service.take() {
            blocking(move || drop(service)).await?;
            self.step(format!("kill the process and start it again {what}"), at);
            self.recorder.lease(at, KEK_VERSION, "none", 0);
        }
        // All that is told by the one before was told by now.
        let from = now();
        self.recorder.expect(from, right);
        let started = service.insert(Service { process: self.operator.start()?, listening: None });
        let lines =
            started.process.stdout.take().ok_or(Error::Operator("started a service without a standard output"))?;
        let recorder = self.recorder.clone();
        let listen = move || listen(BufReader::new(lines), &recorder);
        let listening = thread::Builder::new().name("drill-listen".into()).spawn(listen);
        started.listening = Some(listening.map_err(|error| Error::io("starting a thread", error))?);
        Ok(from)
    }

    async fn keys(&self, service: &Option<Service>) -> Result<u64, Error> {
        let Some(service) = service else { return Ok(0) };
        self.keys_in(service.process.id()).await
    }

    /// Moves the token away, or back.
    async fn reach(&mut self, reachable: bool, right: Outcomes) -> Result<Instant, O::Error> {
        self.recorder.expect(now(), right);
        let done = whole(&self.acting, self.operator.reach(reachable)).await?;
        self.away = !reachable;
        Ok(self.note("step", done))
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
fn listen(lines: impl BufRead, recorder: &Recorder) {
    let mut examples = Vec::new();
    for line in lines.lines().map_while(Result::ok) {
        // The last line of a process that was killed may be cut short.
        if let Some(chunk) = parse(&line, &mut examples, recorder) {
            recorder.absorb(chunk);
        }
    }
}

fn parse(line: &str, examples: &mut Vec<(Outcome, String)>, recorder: &Recorder) -> Option<Chunk> {
    let (kind, rest) = line.split_once(' ')?;
    let mut fields = rest.split(' ');
    let mut number = || fields.next()?.parse::<u64>().ok();
    match kind {
        "r" => {
            let account = usize::try_from(number()?).ok()?;
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
            recorder.lease(Instant::from_nanos(at), KEK_VERSION, fields.next()?, aeks);
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
        listen(told.as_bytes(), &recorder);
        let timeline = recorder.read(Instant::from_nanos(20));
        assert_eq!(timeline.runs[0], [Run { outcome: Outcome::Ok, from: 1, first: 2, to: 3, count: 4 }]);
        assert_eq!(timeline.operations(Outcome::Denied), 7);
        assert_eq!((timeline.compared_bytes, timeline.unverified_bytes, timeline.lease.len()), (9, 3, 1));
    }
}
