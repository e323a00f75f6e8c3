//! The drill `restart`: a service in a process of its own is killed and started while active, while denied, while denied and
//! unreachable, and while unreachable.

use super::{
    error::Error,
    operator::Operator,
    outcome::{Outcome, Outcomes},
    play::{OK, RESUMING, Stage, blocking, now, whole},
    process::{Process, Seat},
    timeline::LeaseOf,
};
use crate::clock::Instant;

const DENIED: Outcomes = Outcomes::of(&[Outcome::Denied]);
const UNREACHABLE: Outcomes = Outcomes::of(&[Outcome::Unreachable]);
const SEAT: Seat = Seat { lease: LeaseOf::KekVersion(1), first: 0 };

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
        let back = || recorder.all_are(Outcome::Ok, undone) && recorder.is_active();
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
        service: &mut Option<Process>,
        what: &str,
        right: Outcomes,
    ) -> Result<Instant, O::Error> {
        let at = now();
        if let Some(service) = service.take() {
            blocking(move || drop(service)).await?;
            self.step(format!("kill the process and start it again {what}"), at);
            self.recorder.lease(at, SEAT.lease, "none", 0);
        }
        // All that is told by the one before was told by now.
        let from = now();
        self.recorder.expect(from, right);
        *service = Some(Process::of(self.operator.start()?, self.recorder, SEAT)?);
        Ok(from)
    }

    async fn keys(&self, service: &Option<Process>) -> Result<u64, Error> {
        let Some(service) = service else { return Ok(0) };
        self.keys_in(service.id()).await
    }

    /// Moves the token away, or back.
    async fn reach(&mut self, reachable: bool, right: Outcomes) -> Result<Instant, O::Error> {
        self.recorder.expect(now(), right);
        let done = whole(&self.acting, self.operator.reach(reachable)).await?;
        self.away = !reachable;
        Ok(self.note("step", done))
    }
}
