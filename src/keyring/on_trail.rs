//! What the engine tells its trail, and when it is not told to go on.
//!
//! Nobody waits for what is noted; a call that changes something waits until it is written that it was asked for, for as long as a call of
//! the store may take. What the trail says of itself is looked at once a second, and by each call that uses data: of what is lost nothing
//! is given out.

use super::Keyring;
use crate::{
    clock::{Clock, Instant},
    error::{Error, Result},
    name::{AccountId, KekName, KekVersion},
    slots::{account_keys::AccountKeys, tally::Tally},
    telemetry::Event,
    telemetry::trail::{Asker, Correlation, Deed, Noted, Outcome, Record, Standing, Subject, Sums, Trail, Who},
    token::seats::Seat,
};
use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Of many records one in so many is waited for, and with it those before it.
const WRITTEN_AT_ONCE: usize = 64;
/// Of many sums so many may wait to be written: the queue of a trail has a bound.
const SUMS_AT_ONCE: usize = 1024;
/// Who uses data waits so long for room in a queue that fills up. Longer, and the trail is as slow as one that is broken.
const ROOM_PATIENCE: Duration = Duration::from_secs(1);
/// What takes keys or grants away waits so long for the line that says that it was asked for.
const TAKING_AWAY_PATIENCE: Duration = Duration::from_secs(1);

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

/// So many secrets past their expiry are remembered as told; with one more all are told once more.
#[cfg(feature = "secrets")]
const EXPIRED_MAX: usize = 100_000;

/// The engine's end of its trail.
#[derive(Debug, Default)]
pub(crate) struct OnTrail {
    trail: Option<Arc<dyn Trail>>,
    /// Of what the engine says of itself.
    own: OnceLock<Correlation>,
    /// Of all handles that are open, or were since they were last summed.
    tallies: Mutex<VecDeque<Arc<Tally>>>,
    /// It was told that the trail is broken.
    is_broken: AtomicBool,
    /// KEK versions whose lease was forgotten with its trouble, since it was asked last.
    given_up: Mutex<BTreeSet<KekVersion>>,
    /// Versions of secrets that it was told are past their expiry.
    #[cfg(feature = "secrets")]
    expired: Mutex<std::collections::BTreeMap<crate::name::SecretId, u32>>,
}

impl OnTrail {
    pub(crate) fn new(trail: Option<Arc<dyn Trail>>) -> Self {
        Self { trail, ..Self::default() }
    }

    /// True where there is a trail.
    pub(crate) fn is_kept(&self) -> bool {
        self.trail.is_some()
    }

    fn has_room(&self) -> bool {
        self.trail.as_ref().is_none_or(|trail| trail.has_room())
    }

    /// How the trail stands, where there is one that says it.
    pub(crate) fn standing(&self) -> Option<Standing> {
        self.trail.as_ref()?.standing()
    }

    /// Nobody uses the KEK version any more, or whoever wanted to could not.
    pub(super) fn give_up(&self, kek: &KekVersion) {
        if self.is_kept() {
            self.given_up.lock().unwrap_or_else(PoisonError::into_inner).insert(kek.clone());
        }
    }

    /// Those that were given up since this was asked last.
    pub(crate) fn given_up(&self) -> BTreeSet<KekVersion> {
        std::mem::take(&mut *self.given_up.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether it was not told yet that this version of a secret is past its expiry; with `None` none is.
    #[cfg(feature = "secrets")]
    pub(crate) fn is_news(&self, secret: &crate::name::SecretId, expired: Option<u32>) -> bool {
        // Whole after every step.
        let mut told = self.expired.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(version) = expired else {
            told.remove(secret);
            return false;
        };
        if told.len() >= EXPIRED_MAX {
            told.clear();
        }
        told.insert(secret.clone(), version) != Some(version)
    }

    fn tallies(&self) -> MutexGuard<'_, VecDeque<Arc<Tally>>> {
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
    /// It ended so. What it `made` is told of what was done.
    pub(crate) fn ended<T>(mut self, outcome: &Result<T>, made: impl FnOnce(&T, &mut Subject)) -> Self {
        if let Ok(done) = outcome {
            made(done, &mut self.record.on);
        }
        self.end(Outcome::of(outcome));
        self
    }

    /// The record of its end, of which the trail is told by whoever has it.
    fn told(mut self) -> Record {
        self.is_told = true;
        self.record.clone()
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
        let _ = self.trail.note(self.record.clone()); // that it was asked for is written
    }
}

impl Keyring {
    /// Tells the trail what goes on whether it takes it or not, and waits for nothing.
    pub(crate) fn note(&self, record: Record) {
        if let Some(trail) = &self.on_trail.trail {
            let _ = trail.note(record); // it counts what it loses
        }
    }

    /// Tells the trail what was done with data, and waits for nothing. Where that is lost, and nothing is to be done unseen, nothing more
    /// is, from this moment on.
    ///
    /// # Errors
    /// [`Error::Trail`]: it is to be refused.
    pub(crate) fn note_use(&self, record: Record) -> Result<()> {
        let Some(trail) = &self.on_trail.trail else { return Ok(()) };
        match trail.note(record) {
            Noted::Taken | Noted::Lost(_) => Ok(()),
            Noted::Refused(why) => {
                self.withhold(Some(&why));
                Err(why)
            }
        }
    }

    fn record_of(
        &self,
        deed: Deed,
        outcome: impl FnOnce() -> Outcome,
        tell: impl FnOnce(&mut Record),
    ) -> Option<Record> {
        self.on_trail.is_kept().then(|| {
            let by = asker().unwrap_or_else(|| Asker::nobody(Correlation::random()));
            let mut record = Record::new(self.clock.wall_unix_ms(), deed, outcome(), by);
            tell(&mut record);
            record
        })
    }

    /// As [`Keyring::note`], made only where there is a trail.
    pub(crate) fn note_of(&self, deed: Deed, outcome: impl FnOnce() -> Outcome, tell: impl FnOnce(&mut Record)) {
        self.record_of(deed, outcome, tell).into_iter().for_each(|record| self.note(record));
    }

    /// What the engine says of itself, and says is over.
    pub(crate) fn note_of_itself(&self, deed: Deed, tell: impl FnOnce(&mut Record)) {
        let tell = |record: &mut Record| {
            record.by.correlation = *self.on_trail.own.get_or_init(Correlation::of_engine);
            tell(record);
        };
        self.note_of(deed, || Outcome::Done, tell);
    }

    /// Tells the trail durably. At home.
    ///
    /// # Errors
    /// [`Error::Trail`], also where it does not answer within so long.
    async fn write(&self, record: Record, timeout: Duration) -> Result<()> {
        let Some(trail) = &self.on_trail.trail else { return Ok(()) };
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
    async fn write_all(&self, records: Vec<Record>, timeout: Duration) -> Result<()> {
        let last = records.len().saturating_sub(1);
        for (n, record) in records.into_iter().enumerate() {
            if n == last || n % WRITTEN_AT_ONCE == WRITTEN_AT_ONCE - 1 {
                self.write(record, timeout).await?;
            } else if let Some(Noted::Lost(why) | Noted::Refused(why)) =
                self.on_trail.trail.as_ref().map(|trail| trail.note(record))
            {
                return Err(why);
            }
        }
        Ok(())
    }

    /// Has it written how these ended. They have: what cannot be written now the trail keeps or counts, and that it is broken it says
    /// itself. At home.
    pub(crate) async fn write_ends(&self, lines: Vec<Line>) {
        let (last, mut is_written) = (lines.len().saturating_sub(1), true);
        for (n, record) in lines.into_iter().map(Line::told).enumerate() {
            if is_written && (n == last || n % WRITTEN_AT_ONCE == WRITTEN_AT_ONCE - 1) {
                is_written = self.write(record, self.settings.store_timeout).await.is_ok();
            } else {
                self.note(record);
            }
        }
    }

    /// Has it written that something is asked for, which is not to be done where that fails, unless it takes something away. At home.
    ///
    /// # Errors
    /// As [`Keyring::write`].
    pub(crate) async fn ask_trail(
        self: &Arc<Self>,
        deed: Deed,
        on: Vec<Subject>,
        by: Asker,
        takes_away: bool,
    ) -> Result<Vec<Line>> {
        let Some(trail) = &self.on_trail.trail else { return Ok(Vec::new()) };
        let (unix_ms, began) = (self.clock.wall_unix_ms(), self.clock.now());
        let asked = |on| Record { on, ..Record::new(unix_ms, deed, Outcome::Asked, by.clone()) };
        let (clock, is_told) = (&self.clock, false);
        let line = |on| Line { trail: trail.clone(), clock: clock.clone(), record: asked(on), began, is_told };
        let lines: Vec<_> = on.into_iter().map(line).collect();
        let timeout = if takes_away { TAKING_AWAY_PATIENCE } else { self.settings.store_timeout };
        match self.write_all(lines.iter().map(|line| line.record.clone()).collect(), timeout).await {
            Ok(()) => Ok(lines),
            Err(why) if takes_away => {
                tracing::warn!("{deed}: done though it is not on the trail that it was asked for: {why}");
                Ok(lines)
            }
            Err(error) => {
                let refused = Err::<(), _>(error.clone());
                lines.into_iter().for_each(|line| drop(line.ended(&refused, |(), _| {})));
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
        let lines = self.ask_trail(deed, vec![on], by.clone(), false).await?;
        let outcome = asked_by(Some(by), work).await;
        self.write_ends(lines.into_iter().map(|line| line.ended(&outcome, &made)).collect()).await;
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
            self.on_trail.tallies().push_back(tally.clone());
        }
        Some(tally)
    }

    /// Notes what all handles did since this was last called, and waits for none of it. Where there are many, [`Keyring::tell_sums`]
    /// is the way.
    pub(crate) fn note_sums(&self) {
        let all = self.on_trail.tallies().len();
        self.take_sums(all).into_iter().for_each(|sum| self.note_sum(sum));
    }

    /// As [`Keyring::note_sums`], and gives the trail the time to write them, of which it is told by `beat`. What it has no room for is
    /// told the next time, unless this `is_last`. At home.
    pub(crate) async fn tell_sums(&self, is_last: bool, beat: impl Fn(Instant)) {
        let (mut left, mut answers) = (self.on_trail.tallies().len(), true);
        while left > 0 {
            let some = left.min(SUMS_AT_ONCE);
            left -= some;
            if !self.on_trail.has_room() && answers {
                answers = self.flushed(self.settings.store_timeout).await;
                beat(self.clock.now());
            }
            if !self.on_trail.has_room() && !is_last {
                return;
            }
            let sums = self.take_sums(some);
            let is_none = sums.is_empty();
            sums.into_iter().for_each(|sum| self.note_sum(sum));
            if answers && left > 0 && !is_none {
                // What it cannot write it says itself.
                answers = self.flushed(self.settings.store_timeout).await;
                beat(self.clock.now());
            }
        }
    }

    async fn flushed(&self, patience: Duration) -> bool {
        let give_up = self.clock.now().plus(patience);
        matches!(self.clock.until(give_up, self.flush_trail()).await, Some(Ok(())))
    }

    /// Of so many tallies, those that were not asked for longest.
    fn take_sums(&self, most: usize) -> Vec<(AccountId, Asker, Sums)> {
        let mut summed = Vec::new();
        let mut tallies = self.on_trail.tallies();
        for _ in 0..most {
            let Some(tally) = tallies.pop_front() else { break };
            summed.extend(tally.take().map(|sums| (tally.account.clone(), tally.who.asks(), sums)));
            // One that nobody has any more ends, unless somebody gets it in this moment.
            match Arc::try_unwrap(tally) {
                Ok(ended) => summed.extend(ended.take().map(|sums| (ended.account, ended.who.asks(), sums))),
                Err(tally) => tallies.push_back(tally),
            }
        }
        summed
    }

    fn note_sum(&self, (account, by, sums): (AccountId, Asker, Sums)) {
        let mut record = Record::new(self.clock.wall_unix_ms(), Deed::Blocks, Outcome::Done, by);
        record.on.kek = self.alive(&account).map(|keys| keys.kek().clone());
        (record.on.account, record.sums) = (Some(account), Some(sums));
        let _ = self.note_use(record); // it was done
    }

    /// Looks at the trail: whether data may be used, and whether it broke or is kept again, of which it tells.
    pub(crate) fn look_at_trail(&self) {
        let Some(trail) = &self.on_trail.trail else { return };
        let trouble = trail.trouble();
        if self.on_trail.is_broken.swap(trouble.is_some(), Ordering::SeqCst) != trouble.is_some() {
            self.teller.tell(trouble.map_or(Event::TrailWhole, |why| Event::TrailBroken { why }));
        }
        let _ = self.trail_serves(); // whoever asks is told
    }

    /// Whether data may be used, by the trail.
    ///
    /// # Errors
    /// [`Error::Trail`]: from now on nothing is.
    pub(crate) fn trail_serves(&self) -> Result<()> {
        let Some(trail) = &self.on_trail.trail else { return Ok(()) };
        let serves = trail.serves();
        self.withhold(serves.as_ref().err());
        serves
    }

    fn withhold(&self, why: Option<&Error>) {
        let force = &self.access.force;
        if force.withheld().as_ref() != why {
            if let Some(why) = why {
                tracing::warn!(%why, "nothing is sealed, opened or read: the trail cannot be written");
            } else {
                tracing::info!("the trail can be written again");
            }
            force.withhold(why.cloned());
        }
    }

    /// Waits, not for long, where so much waits to be written that it would be lost. At home, and so with an outcome: it never fails.
    pub(crate) async fn room_on_trail(self: Arc<Self>) -> Result<()> {
        if !self.on_trail.has_room() {
            self.flushed(ROOM_PATIENCE).await;
        }
        Ok(())
    }

    /// True where nothing is to be waited for by [`Keyring::room_on_trail`].
    pub(crate) fn has_room_on_trail(&self) -> bool {
        self.on_trail.has_room()
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
        let record = self.record_of(deed, outcome, |record| {
            record.took = Some(self.clock.now().since(began));
            record.on = of_kek(kek);
            (record.on.account, record.on.aek_versions) = (Some(account.clone()), vec![aek_version]);
            (record.on.token, record.on.token_serial) = (Some(seat.name.clone()), seat.serial().map(Into::into));
        });
        if let Some(record) = record {
            let _ = self.note_use(record); // who waits for the key is refused by what it withholds
        }
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
