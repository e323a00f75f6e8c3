//! What all engines of a store must agree on: its date, by which its records are dated and compared, for how long any of them
//! may not know of a new AEK version, and whether anything may be purged before its retention is over.
//!
//! Wall clocks are behind, ahead, or begin in 1970, that of whoever writes a date as well as that of whoever compares one. So
//! nothing that is stored is compared with one. The store's date goes forward by what engines saw pass by CLOCK_BOOTTIME: who
//! writes it adds no more than passed since it first saw it as it was. While nobody looks it stands still: what should pass takes
//! longer then, and never less.
//!
//! No two engines see it at one instant, so between two writes each knows two dates. The *earliest* counts from when it saw the
//! record at the latest; the *latest* from before the record can have been written. What is written down is the latest, and what
//! is compared with that the earliest, of a record that was read after what is compared. With every write of the date its
//! distance from real time stays or grows, so the difference is never more than what passed.
//!
//! Processes of one boot of one machine share CLOCK_BOOTTIME, which lets commands see time pass that run for a moment only. That a
//! machine was not copied, or put back, together with its memory (copies have the same boot) its wall clock has to confirm: what
//! passed by one of the two alone is not believed.

use super::Keyring;
use crate::{
    clock::{BOOT_BYTES, Clock, Instant, utc},
    config::{DATE_EVERY, Settings},
    error::{Error, Result},
    store::{CONFLICTS_MAX, Key, Put, StoreVersion, again_and_again, load_common, newest_date, record::CommonRecord},
};
use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// The date is looked at so often by every engine, and written when it is as old as [`DATE_EVERY`].
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(60);
/// By so much a wall clock may run otherwise than CLOCK_BOOTTIME between two looks, and confirm it.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(60);

/// 2020-01-01: a wall clock that stands before it was never set.
const CLOCK_SET_MIN_UNIX: u64 = 1_577_836_800;

/// What one engine knows of it.
#[derive(Debug, Default)]
pub(crate) struct Common {
    known: Mutex<Known>,
    /// The store knows how long this engine may not know of a new AEK version.
    is_agreed: AtomicBool,
}

#[derive(Debug, Default)]
struct Known {
    sight: Option<Sight>,
    latest: Option<Line>,
}

/// The record as it was seen last.
#[derive(Debug, Clone)]
struct Sight {
    record: CommonRecord,
    version: StoreVersion,
    earliest: Line,
}

/// A date that goes forward with CLOCK_BOOTTIME.
#[derive(Debug, Clone, Copy)]
struct Line {
    date_unix: u64,
    from: Instant,
}

impl Line {
    fn earliest(self, now: Instant) -> u64 {
        self.date_unix.saturating_add(now.since(self.from).as_secs())
    }

    fn latest(self, now: Instant) -> u64 {
        self.date_unix.saturating_add(whole_secs(now.since(self.from)))
    }
}

/// Seconds, the last one counted whole.
fn whole_secs(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0))
}

/// A date to be written down, good for a write that rests on it.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    pub(crate) unix: u64,
    version: StoreVersion,
}

impl Stamp {
    /// The write that holds the date: not to be done once the store's date was written again, so that a write that is held up does
    /// not come with a date that is long over.
    pub(crate) fn guard(&self, put: Put) -> Put {
        put.resting_on(Key::Common, self.version.clone())
    }
}

/// What has to be known to say that something is over for every engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Agreed {
    pub(crate) date_unix: u64,
    pub(crate) aek_overlap: Duration,
    /// Nobody purges before a retention is over.
    pub(crate) purge_protection: bool,
}

impl Common {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing panics while it is held.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the record is now.
    fn saw(&self, record: CommonRecord, version: StoreVersion, clock: &Clock) -> Sight {
        let now = clock.now();
        let mut known = self.known();
        if let Some(sight) = known.sight.as_ref().filter(|sight| sight.version == version) {
            return sight.clone();
        }
        let date_unix = record.date_unix;
        let passed = passed_here(&record, clock, now);
        let earliest = Line { date_unix, from: passed.map_or(now, |(least, _)| now.minus(least)) };
        if let (None, Some((_, most))) = (known.latest, passed) {
            known.latest = Some(Line { date_unix, from: now.minus(most) });
        }
        let sight = Sight { record, version, earliest };
        known.sight = Some(sight.clone());
        sight
    }

    /// Notes what this engine wrote, having begun at `record.boottime_ns`.
    fn wrote(&self, record: CommonRecord, version: StoreVersion) -> Sight {
        let line = Line { date_unix: record.date_unix, from: Instant::from_nanos(record.boottime_ns) };
        let sight = Sight { record, version, earliest: line };
        *self.known() = Known { sight: Some(sight.clone()), latest: Some(line) };
        sight
    }
}

/// What passed since the record was written, at least and at most, where that was in this boot of this machine.
fn passed_here(record: &CommonRecord, clock: &Clock, now: Instant) -> Option<(Duration, Duration)> {
    if clock.boot().is_none_or(|boot| boot != record.boot) {
        return None;
    }
    let by_boottime = Duration::from_nanos(now.as_nanos().checked_sub(record.boottime_ns)?);
    let by_wall = Duration::from_secs(clock.wall_unix().checked_sub(record.wall_unix)?);
    let confirmed = by_boottime.abs_diff(by_wall) <= CLOCKS_APART_MAX;
    // A wall clock shows whole seconds.
    confirmed.then(|| (by_boottime.min(by_wall), by_boottime.max(by_wall + Duration::from_secs(1))))
}

/// What the date of a new store begins with: nothing moves it by hand afterwards, for it says for which AEK versions nobody seals any more.
fn begin(wall_unix: u64) -> Result<u64> {
    if wall_unix >= CLOCK_SET_MIN_UNIX {
        return Ok(wall_unix);
    }
    Err(Error::Misconfigured(format!(
        "the machine's clock says {}: set it first, for the store's date begins with it, and no command sets that later",
        utc(wall_unix)
    )))
}

/// What an engine adds to what the store has of it already. Of each setting the strictest counts.
#[derive(Debug, Clone, Copy, Default)]
struct Terms {
    aek_overlap_secs: u64,
    purge_protection: bool,
    is_governed: bool,
}

impl Terms {
    fn are_in(self, record: &CommonRecord) -> bool {
        record.aek_overlap_secs >= self.aek_overlap_secs
            && (record.purge_protection || !self.purge_protection)
            && (record.is_governed || !self.is_governed)
    }
}

/// The record as it is to be written now, dated `date_unix`.
fn written(date_unix: u64, terms: Terms, clock: &Clock) -> CommonRecord {
    let boot: [u8; BOOT_BYTES] = clock.boot().unwrap_or_default();
    let (boottime_ns, wall_unix) = (clock.now().as_nanos(), clock.wall_unix());
    let Terms { aek_overlap_secs, purge_protection, is_governed } = terms;
    CommonRecord { date_unix, boot, boottime_ns, wall_unix, aek_overlap_secs, purge_protection, is_governed }
}

impl Keyring {
    /// The store's date, to be written down in a record.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Corrupt`] when the store's date cannot be read; [`Error::Conflict`].
    pub(crate) async fn stamp(&self) -> Result<u64> {
        let latest = self.common.known().latest;
        match latest {
            Some(latest) => Ok(latest.latest(self.clock.now())),
            None => Ok(self.stamp_for_write().await?.unix),
        }
    }

    /// As [`Keyring::stamp`], for a write whose age is counted by what others may not know: it rests on the date.
    ///
    /// # Errors
    /// As [`Keyring::stamp`].
    pub(crate) async fn stamp_for_write(&self) -> Result<Stamp> {
        for _ in 0..CONFLICTS_MAX {
            let sight = self.look().await?;
            let latest = self.common.known().latest;
            if let Some(latest) = latest {
                return Ok(Stamp { unix: latest.latest(self.clock.now()), version: sight.version });
            }
            // Written by another boot, who knows when: by one's own write that is known.
            let _ = self.write_common(&sight, Terms::default()).await?;
        }
        Err(again_and_again("the", Key::Common))
    }

    /// The store's date, for what costs nothing when it is done at another time: its earliest, by what was read last.
    ///
    /// # Errors
    /// As [`Keyring::stamp`].
    pub(crate) async fn date(&self) -> Result<u64> {
        let seen = self.common.known().sight.as_ref().map(|sight| sight.earliest);
        let line = match seen {
            Some(line) => line,
            None => self.look().await?.earliest,
        };
        Ok(line.earliest(self.clock.now()))
    }

    /// What says that something is over for every engine. To be asked for after the record was read that it is about.
    ///
    /// # Errors
    /// As [`Keyring::stamp`].
    pub(crate) async fn agreed(&self) -> Result<Agreed> {
        let sight = self.kept().await?;
        Ok(Agreed {
            date_unix: sight.earliest.earliest(self.clock.now()),
            aek_overlap: self.settings.aek_overlap().max(Duration::from_secs(sight.record.aek_overlap_secs)),
            purge_protection: self.settings.purge_protection || sight.record.purge_protection,
        })
    }

    /// Sees to it, before a key is used, that whoever retires an AEK version waits for this engine.
    ///
    /// # Errors
    /// As [`Keyring::stamp`].
    pub(crate) async fn agree(&self) -> Result<()> {
        let is_agreed = &self.common.is_agreed;
        // What the default settings need is waited for by everybody, whatever the store says.
        if is_agreed.load(Ordering::SeqCst) || self.settings.aek_overlap() <= Settings::default().aek_overlap() {
            return Ok(());
        }
        self.insist(self.own_overlap()).await?;
        is_agreed.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn own_overlap(&self) -> Terms {
        Terms { aek_overlap_secs: whole_secs(self.settings.aek_overlap()), ..Terms::default() }
    }

    /// Sees to it, before anything is deleted, that nobody purges it before its retention is over, where this engine has it so.
    ///
    /// # Errors
    /// As [`Keyring::stamp`].
    pub(crate) async fn protect(&self) -> Result<()> {
        if !self.settings.purge_protection {
            return Ok(());
        }
        self.insist(Terms { purge_protection: true, ..Terms::default() }).await
    }

    /// Sees to it that a policy which is gone is missed.
    ///
    /// # Errors
    /// As [`Keyring::stamp`].
    pub(crate) async fn note_governed(&self) -> Result<()> {
        self.insist(Terms { is_governed: true, ..Terms::default() }).await
    }

    /// True when the store's date was seen to say that there is a policy.
    pub(crate) fn is_known_governed(&self) -> bool {
        self.common.known().sight.as_ref().is_some_and(|sight| sight.record.is_governed)
    }

    /// Sees to it that the store has these terms, or stricter ones.
    async fn insist(&self, own: Terms) -> Result<()> {
        for _ in 0..CONFLICTS_MAX {
            let sight = self.look().await?;
            if own.are_in(&sight.record) || self.write_common(&sight, own).await?.is_some() {
                return Ok(());
            }
        }
        Err(again_and_again("the", Key::Common))
    }

    /// What an engine that stays does each minute: writes the date down when it was written long ago, so that what this engine saw
    /// pass outlives it, and that nothing is purged early, where it has it so. What was agreed, again: a store that is put back to what
    /// it was, under an engine that goes on, has forgotten it.
    ///
    /// # Errors
    /// As [`Keyring::stamp`].
    pub(crate) async fn keep_common(&self) -> Result<()> {
        self.protect().await?;
        if self.access.knows_a_policy() {
            self.note_governed().await?;
        }
        if self.common.is_agreed.load(Ordering::SeqCst) {
            self.insist(self.own_overlap()).await?;
        }
        self.kept().await.map(drop)
    }

    /// Writes the date down: to see whether the store takes a write.
    ///
    /// # Errors
    /// As [`Keyring::stamp`].
    pub(crate) async fn write_date(&self) -> Result<()> {
        let sight = self.look().await?;
        self.write_common(&sight, Terms::default()).await.map(drop)
    }

    async fn kept(&self) -> Result<Sight> {
        let sight = self.look().await?;
        let date_unix = sight.earliest.earliest(self.clock.now());
        if date_unix.saturating_sub(sight.record.date_unix) < DATE_EVERY.as_secs() {
            return Ok(sight);
        }
        let written = self.write_common(&sight, Terms::default()).await?;
        // Somebody else was faster: what that wrote is not known here yet, and what was read counts.
        Ok(written.unwrap_or(sight))
    }

    /// Reads the record; makes it where there is none yet. [`Error::Misconfigured`] where a new store would begin in 1970.
    async fn look(&self) -> Result<Sight> {
        for _ in 0..CONFLICTS_MAX {
            if let Some((record, version)) = load_common(&*self.store).await? {
                return Ok(self.common.saw(record, version, &self.clock));
            }
            // No wall clock says what passed since the newest record.
            let date_unix = match newest_date(&*self.store).await? {
                Some(newest) => newest,
                None => begin(self.clock.wall_unix())?,
            };
            let overlap = Settings::default().aek_overlap().max(self.settings.aek_overlap());
            let terms = Terms { aek_overlap_secs: whole_secs(overlap), ..Terms::default() };
            let first = written(date_unix, terms, &self.clock);
            match self.store.create(&Key::Common, first.put()?).await {
                Ok(version) => return Ok(self.common.wrote(first, version)),
                Err(Error::Exists(_)) => {} // another one was faster
                Err(error) => return Err(error),
            }
        }
        Err(again_and_again("the", Key::Common))
    }

    /// Writes the record over what was seen of it: the date that it is by now at least, and at least those terms. `None` when
    /// somebody else was faster.
    async fn write_common(&self, sight: &Sight, terms: Terms) -> Result<Option<Sight>> {
        let date_unix = sight.earliest.earliest(self.clock.now());
        let terms = Terms {
            aek_overlap_secs: sight.record.aek_overlap_secs.max(terms.aek_overlap_secs),
            purge_protection: sight.record.purge_protection || terms.purge_protection,
            is_governed: sight.record.is_governed || terms.is_governed,
        };
        let next = written(date_unix, terms, &self.clock);
        match self.store.replace(&Key::Common, &sight.version, next.put()?).await {
            Ok(version) => Ok(Some(self.common.wrote(next, version))),
            Err(Error::Conflict(_) | Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
