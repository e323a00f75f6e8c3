//! What the engine tells its trail, and when it is not told to go on.
//!
//! Nobody waits for what is noted; a call that changes something waits until it is written that it was asked for, for as long as a call of
//! the store may take. What the trail says of itself is looked at once a second, and after each such call.

use super::Keyring;
use crate::{
    clock::{Clock, Instant},
    error::{Error, Result},
    name::{AccountId, KekName, KekVersion},
    slots::{account_keys::AccountKeys, tally::Tally},
    telemetry::trail::{Asker, Correlation, Deed, Outcome, Record, Subject, Sums, Trail, Who},
    token::seats::Seat,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Of many records one in so many is waited for, and with it those before it.
const WRITTEN_AT_ONCE: usize = 64;
/// Of many sums so many may wait to be written: the queue of a trail has a bound.
const SUMS_AT_ONCE: usize = 1024;

tokio::task_local! {
    /// Who asked for what is being done.
    static ASKER: Option<Asker>;
}

/// Who asked for what this task does, where that is known.
pub(crate) fn asker() -> Option<Asker> {
    ASKER.try_with(Clone::clone).ok().flatten()
}

/// Does it for somebody: what is told on the way says so. Whoever goes on in another task takes [`asker`] along.
pub(crate) fn asked_by<W: Future>(asker: Option<Asker>, work: W) -> impl Future<Output = W::Output> {
    ASKER.scope(asker, work)
}

/// As [`asked_by`], of what blocks.
pub(crate) fn asked_by_blocking<T>(asker: Option<Asker>, work: impl FnOnce() -> T) -> T {
    ASKER.sync_scope(asker, work)
}

/// The engine's end of its trail.
#[derive(Debug, Default)]
pub(crate) struct OnTrail {
    trail: Option<Arc<dyn Trail>>,
    /// Of all handles that are open, or were since they were last summed.
    tallies: Mutex<Vec<Arc<Tally>>>,
}

impl OnTrail {
    pub(crate) fn new(trail: Option<Arc<dyn Trail>>) -> Self {
        Self { trail, tallies: Mutex::default() }
    }

    /// True where there is a trail.
    pub(crate) fn is_kept(&self) -> bool {
        self.trail.is_some()
    }

    fn tallies(&self) -> MutexGuard<'_, Vec<Arc<Tally>>> {
        // Whole after every step.
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A deed that was asked for, by the trail, and has not ended. Dropped, its end is noted, or that nobody waited for it.
#[must_use]
pub(crate) struct Line {
    /// Not the keyring, which a drill lets go of in the midst of it.
    trail: Arc<dyn Trail>,
    clock: Clock,
    record: Record,
    began: Instant,
    /// Its end is written.
    is_told: bool,
}

impl Line {
    /// The record of its end, to be written. What it `made` is told of what was done.
    pub(crate) fn ended<T>(&mut self, outcome: &Result<T>, made: impl FnOnce(&T, &mut Subject)) -> Record {
        if let Ok(done) = outcome {
            made(done, &mut self.record.on);
        }
        self.end(Outcome::of(outcome));
        self.record.clone()
    }

    /// Its end is written.
    pub(crate) fn told(mut self) {
        self.is_told = true;
    }

    /// It ended so, and whoever did it has no engine any more.
    #[cfg(feature = "drill")]
    pub(crate) fn note_end(mut self, outcome: Outcome) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: Outcome) {
        self.record.unix_ms = self.clock.wall_unix_ms();
        self.record.took = Some(self.clock.now().since(self.began));
        self.record.outcome = outcome;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.is_told {
            return;
        }
        if self.record.outcome == Outcome::Asked {
            self.end(Outcome::Dropped);
        }
        self.trail.note(self.record.clone());
    }
}

impl Keyring {
    /// Tells the trail, and waits for nothing.
    pub(crate) fn note(&self, record: Record) {
        if let Some(trail) = &self.on_trail.trail {
            trail.note(record);
        }
    }

    /// As [`Keyring::note`], made only where there is a trail.
    pub(crate) fn note_of(&self, deed: Deed, outcome: impl FnOnce() -> Outcome, tell: impl FnOnce(&mut Record)) {
        if self.on_trail.is_kept() {
            let by = asker().unwrap_or_else(|| Asker::nobody(Correlation::random()));
            let mut record = Record::new(self.clock.wall_unix_ms(), deed, outcome(), by);
            tell(&mut record);
            self.note(record);
        }
    }

    /// Tells the trail durably. At home.
    ///
    /// # Errors
    /// [`Error::Trail`], also where it does not answer within a `store_timeout`.
    pub(crate) async fn write(&self, record: Record) -> Result<()> {
        let Some(trail) = &self.on_trail.trail else { return Ok(()) };
        let timeout = self.settings.store_timeout;
        let written = self.clock.until(self.clock.now().plus(timeout), trail.write(record)).await;
        let written = written.unwrap_or_else(|| {
            let ms = timeout.as_millis();
            Err(Error::Trail(format!("it was not written within {ms} ms: see what its disk does, and try again")))
        });
        if written.is_err() {
            self.look_at_trail();
        }
        // Whatever it fails with, it is the trail that failed.
        written.map_err(|error| match error {
            error @ Error::Trail(_) => error,
            other => Error::Trail(other.to_string()),
        })
    }

    /// As [`Keyring::write`], of several, in their order: what is noted before something is written is durable with it.
    pub(crate) async fn write_all(&self, records: Vec<Record>) -> Result<()> {
        let last = records.len().saturating_sub(1);
        for (n, record) in records.into_iter().enumerate() {
            if n == last || n % WRITTEN_AT_ONCE == WRITTEN_AT_ONCE - 1 {
                self.write(record).await?;
            } else {
                self.note(record);
            }
        }
        Ok(())
    }

    /// Has it written that something is asked for, which is not to be done where that fails. At home.
    ///
    /// # Errors
    /// As [`Keyring::write`].
    pub(crate) async fn ask_trail(self: &Arc<Self>, deed: Deed, on: Vec<Subject>, by: Asker) -> Result<Vec<Line>> {
        let Some(trail) = &self.on_trail.trail else { return Ok(Vec::new()) };
        let (unix_ms, began) = (self.clock.wall_unix_ms(), self.clock.now());
        let asked = |on| Record { on, ..Record::new(unix_ms, deed, Outcome::Asked, by.clone()) };
        let (clock, is_told) = (&self.clock, false);
        let line = |on| Line { trail: trail.clone(), clock: clock.clone(), record: asked(on), began, is_told };
        let lines: Vec<_> = on.into_iter().map(line).collect();
        match self.write_all(lines.iter().map(|line| line.record.clone()).collect()).await {
            Ok(()) => Ok(lines),
            Err(error) => {
                let refused = Err::<(), _>(error.clone());
                lines.into_iter().for_each(|mut line| drop(line.ended(&refused, |(), _| {})));
                Err(error)
            }
        }
    }

    /// Something that the engine does by itself and that changes something: asked for on the trail first, and told how it ended. At home.
    ///
    /// # Errors
    /// As `work`; [`Error::Trail`]: nothing was done.
    pub(crate) async fn by_itself<T>(
        self: &Arc<Self>,
        deed: Deed,
        on: Subject,
        work: impl Future<Output = Result<T>>,
        made: impl Fn(&T, &mut Subject),
    ) -> Result<T> {
        if !self.on_trail.is_kept() {
            return work.await;
        }
        let by = asker().unwrap_or_else(|| Asker::nobody(Correlation::random()));
        let mut lines = self.ask_trail(deed, vec![on], by.clone()).await?;
        let outcome = asked_by(Some(by), work).await;
        let ended = lines.iter_mut().map(|line| line.ended(&outcome, &made)).collect();
        // It is done: that it was asked for is written, and that the trail is broken it says itself.
        if self.write_all(ended).await.is_ok() {
            lines.into_iter().for_each(Line::told);
        }
        outcome
    }

    /// Does what a caller waits for at home, for whoever asked for it.
    ///
    /// # Errors
    /// As [`Home::call`](crate::home::Home::call).
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.home.call(asked_by(asker(), work)).await
    }

    /// Where it is counted what handles do that are opened for one who asks; `None` without a trail.
    pub(crate) fn tally(&self, keys: &AccountKeys, who: &Who) -> Option<Arc<Tally>> {
        if !self.on_trail.is_kept() {
            return None;
        }
        let (tally, is_new) = keys.tally(who);
        if is_new {
            self.on_trail.tallies().push(tally.clone());
        }
        Some(tally)
    }

    /// Notes what all handles did since this was last called, and waits for none of it. Where there are many, [`Keyring::tell_sums`]
    /// is the way.
    pub(crate) fn note_sums(&self) {
        self.take_sums().into_iter().for_each(|sum| self.note_sum(sum));
    }

    /// As [`Keyring::note_sums`], and gives the trail the time to write them, of which it is told by `beat`. At home.
    pub(crate) async fn tell_sums(&self, beat: impl Fn(Instant)) {
        let mut answers = true;
        for (n, sum) in self.take_sums().into_iter().enumerate() {
            if answers && n > 0 && n % SUMS_AT_ONCE == 0 {
                let give_up = self.clock.now().plus(self.settings.store_timeout);
                // What it cannot write it says itself.
                answers = matches!(self.clock.until(give_up, self.flush_trail()).await, Some(Ok(())));
                beat(self.clock.now());
            }
            self.note_sum(sum);
        }
    }

    fn take_sums(&self) -> Vec<(AccountId, Asker, Sums)> {
        let mut summed = Vec::new();
        {
            let mut tallies = self.on_trail.tallies();
            for tally in std::mem::take(&mut *tallies) {
                summed.extend(tally.take().map(|sums| (tally.account.clone(), tally.who.asks(), sums)));
                // One that nobody has any more ends, unless somebody gets it in this moment.
                match Arc::try_unwrap(tally) {
                    Ok(ended) => summed.extend(ended.take().map(|sums| (ended.account, ended.who.asks(), sums))),
                    Err(tally) => tallies.push(tally),
                }
            }
        }
        summed
    }

    fn note_sum(&self, (account, by, sums): (AccountId, Asker, Sums)) {
        let mut record = Record::new(self.clock.wall_unix_ms(), Deed::Blocks, Outcome::Done, by);
        record.on.kek = self.alive(&account).map(|keys| keys.kek().clone());
        (record.on.account, record.sums) = (Some(account), Some(sums));
        self.note(record);
    }

    /// Looks whether data may be used, by the trail.
    pub(crate) fn look_at_trail(&self) {
        let Some(trail) = &self.on_trail.trail else { return };
        let (why, force) = (trail.serves().err(), &self.access.force);
        if force.withheld() != why {
            if let Some(why) = &why {
                tracing::warn!(%why, "nothing is sealed, opened or read: the trail cannot be written");
            } else {
                tracing::info!("the trail can be written again");
            }
            force.withhold(why);
        }
    }

    /// Makes durable what was told to the trail so far. At home.
    ///
    /// # Errors
    /// [`Error::Trail`].
    pub(crate) async fn flush_trail(&self) -> Result<()> {
        match &self.on_trail.trail {
            Some(trail) => trail.flush().await,
            None => Ok(()),
        }
    }

    /// Notes a call of the token with the AEK of an account.
    pub(super) fn note_key(
        &self,
        deed: Deed,
        seat: &Seat,
        (account, aek_version, kek): (&AccountId, u32, &KekVersion),
        began: Instant,
        outcome: impl FnOnce() -> Outcome,
    ) {
        self.note_of(deed, outcome, |record| {
            record.took = Some(self.clock.now().since(began));
            record.on = of_kek(kek);
            (record.on.account, record.on.aek_versions) = (Some(account.clone()), vec![aek_version]);
            (record.on.token, record.on.token_serial) = (Some(seat.name.clone()), seat.serial().map(Into::into));
        });
    }
}

/// A version of a KEK.
pub(crate) fn of_kek(kek: &KekVersion) -> Subject {
    Subject { kek: Some(kek.name.clone()), kek_version: Some(kek.version), ..Subject::default() }
}

/// A KEK.
pub(crate) fn of_kek_name(kek: &KekName) -> Subject {
    Subject { kek: Some(kek.clone()), ..Subject::default() }
}
