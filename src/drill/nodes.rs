//! The drill `nodes`: several processes with one store and one token. One is killed and begins anew; the store loses its leader; the key
//! is taken from all of them, and given back; and one stands still until its lease has ended, with the key taken away meanwhile.

use super::{
    error::Error,
    operator::Operator,
    outcome::{Outcome, Outcomes},
    play::{OK, RESUMING, Stage, blocking, now},
    process::{Process, Seat},
    timeline::LeaseOf,
};
use crate::clock::Instant;
use rustix::process::Signal;
use std::{ops::Range, time::Duration};

const DENIED: Outcomes = Outcomes::of(&[Outcome::Denied]);
/// What one says whose lease has ended, before it has asked, and once it has.
const REFUSED: Outcomes = Outcomes::of(&[Outcome::Denied, Outcome::Lapsed, Outcome::Unreachable, Outcome::Cold]);
/// What a process told before it was stopped has been read by then.
const TOLD: Duration = Duration::from_millis(100);

/// The processes, of which each has all accounts.
struct Nodes {
    processes: Vec<Process>,
    accounts: usize,
}

impl Nodes {
    /// The numbers of a process's accounts in the timeline.
    fn numbers(&self, node: usize) -> Range<usize> {
        node * self.accounts..(node + 1) * self.accounts
    }
}

fn lease(node: usize) -> LeaseOf {
    LeaseOf::Node(u32::try_from(node).unwrap_or(u32::MAX).saturating_add(1))
}

impl<O: Operator> Stage<'_, O> {
    /// Plays `nodes`, with so many.
    pub(crate) async fn nodes(&mut self, count: usize, accounts: usize) -> Result<(), O::Error> {
        let (recorder, wait, patience) = (self.recorder, self.wait, self.terms.patience);
        let poll = self.terms.settings.poll_interval;
        let late = self.late(poll + self.terms.timeout);
        let begun = now();
        let mut nodes = Nodes { processes: Vec::new(), accounts };
        for node in 0..count {
            let process = self.begin(&nodes, node)?;
            nodes.processes.push(process);
        }
        wait.until(begun.plus(patience), || recorder.all_are(Outcome::Ok, begun)).await;
        wait.rest("active", poll).await;

        self.kill(&mut nodes, 0).await?;
        if let Some(done) = self.operator.lose_leader().await? {
            self.note("step", done);
            wait.rest("without the store's leader", poll * 4).await;
        }

        recorder.keys_before(self.keys_of(&nodes).await?);
        let act = self.take(OK.with(DENIED)).await?;
        wait.until(act.plus(late), || recorder.all_are(Outcome::Denied, act)).await;
        wait.until(act.plus(late), || recorder.aeks() == 0).await;
        recorder.keys_left(self.keys_of(&nodes).await?);
        wait.rest("denied", poll).await;
        let undone = self.give(RESUMING).await?;
        self.all_back(undone).await;

        if count > 1 {
            self.stop(&nodes, count - 1, late).await?;
        }
        Ok(blocking(move || drop(nodes)).await?)
    }

    /// Kills one, which begins anew: nobody notices, and it serves again.
    async fn kill(&mut self, nodes: &mut Nodes, node: usize) -> Result<(), O::Error> {
        let at = now();
        let killed = nodes.processes.remove(node);
        blocking(move || drop(killed)).await?;
        self.step(format!("kill node {} and start it again", node + 1), at);
        self.recorder.lease(at, lease(node), "none", 0);
        let process = self.begin(nodes, node)?;
        nodes.processes.insert(node, process);
        let (recorder, begun) = (self.recorder, now());
        self.wait.until(begun.plus(self.terms.patience), || recorder.all_are(Outcome::Ok, begun)).await;
        self.wait.rest("active", self.terms.settings.poll_interval).await;
        Ok(())
    }

    /// Stops one until its lease has ended; the key is taken meanwhile, so that whatever it does then is a use of a key that it may not have.
    async fn stop(&mut self, nodes: &Nodes, node: usize, late: Duration) -> Result<(), O::Error> {
        let (recorder, wait, settings) = (self.recorder, self.wait, &self.terms.settings);
        let Some(process) = nodes.processes.get(node) else { return Ok(()) };
        let stopped = now();
        process.signal(Signal::STOP)?;
        self.step(format!("stop node {}", node + 1), stopped);
        wait.rest("stopped", TOLD).await;
        recorder.stopped(stopped, lease(node));

        recorder.expect(now(), OK.with(DENIED));
        let taken = self.do_take("step").await?;
        let others = 0..nodes.numbers(node).start;
        wait.until(taken.plus(late), || recorder.some_are(others.clone(), Outcome::Denied, taken)).await;
        let ended = stopped.plus(settings.grace + settings.poll_interval);
        wait.rest("stopped", ended.since(now())).await;
        recorder.expect(now(), REFUSED);
        let goes_on = now();
        process.signal(Signal::CONT)?;
        self.step(format!("node {} goes on", node + 1), goes_on);
        wait.until(goes_on.plus(late), || recorder.some_are(nodes.numbers(node), Outcome::Denied, goes_on)).await;
        wait.rest("denied", settings.poll_interval * 2).await;
        recorder.expect(now(), RESUMING);
        let given = self.do_give("step").await?;
        self.all_back(given).await;
        Ok(())
    }

    fn begin(&mut self, nodes: &Nodes, node: usize) -> Result<Process, O::Error> {
        let seat = Seat { lease: lease(node), first: nodes.numbers(node).start };
        Ok(Process::of(self.operator.start()?, self.recorder, seat)?)
    }

    /// Until everybody serves again.
    async fn all_back(&self, undone: Instant) {
        let recorder = self.recorder;
        let back = || recorder.all_are(Outcome::Ok, undone) && recorder.is_active();
        if self.wait.until(undone.plus(self.terms.patience), back).await {
            recorder.expect(now(), OK);
        }
        self.wait.rest("active", self.terms.settings.poll_interval * 2).await;
    }

    async fn keys_of(&self, nodes: &Nodes) -> Result<u64, Error> {
        let mut found = 0;
        for process in &nodes.processes {
            found += self.keys_in(process.id()).await?;
        }
        Ok(found)
    }
}
