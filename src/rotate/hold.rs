//! Who does the scheduled work of a store: one engine at a time, by a lease in the store's work record with a fencing token.
//!
//! The record spares doubled work; that nothing is rotated twice does not depend on it, because every rotation names the
//! version that was seen as due and is a compare-and-put. Every write of the work rests on the record besides, so that none is
//! done after another engine has taken it, however long it was held up. A pass that gets nowhere is no reason to keep the work. What is assumed of clocks: a holder stops by its own CLOCK_BOOTTIME
//! one lease after it last asked to renew. Others take over when the record has not changed for longer than that by *their*
//! CLOCK_BOOTTIME, or when the store's date is [`MARGIN_SECS`] past what the holder wrote.

use crate::{
    clock::{Clock, Instant},
    error::{Error, Result},
    keyring::Keyring,
    secret::fill_random,
    store::{
        self, Key, Put, StoreVersion,
        record::{HOLDER_BYTES, WorkRecord},
    },
};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// For how long an engine of a service holds the work; renewed three times in it.
pub(super) const SERVICE_LEASE: Duration = Duration::from_secs(60);
/// As [`SERVICE_LEASE`], for an engine that works once and ends: whoever comes after a crash need not wait long.
pub(super) const ONCE_LEASE: Duration = Duration::from_secs(10);
/// A holder that did not touch the record for this long is gone, whatever the wall clocks say.
const SILENT_MAX: Duration = Duration::from_secs(75);
/// For a holder of a release that wrote its wall clock's date.
const MARGIN_SECS: u64 = 5;

/// A pass that got nowhere for this long does not keep the work. Longer than anything that is done for one account takes.
pub(super) const STALLED_MAX: Duration = Duration::from_secs(5 * 60);

/// An engine's claim on the scheduled work.
#[derive(Debug)]
pub(super) struct Hold {
    holder: [u8; HOLDER_BYTES],
    lease: Duration,
    /// Until when nobody else takes it; 0 while it is not held.
    valid_until_ns: AtomicU64,
    sight: Mutex<Sight>,
    /// The record's version is known again, or the claim is given up.
    known: Notify,
}

/// The record as it was seen last.
#[derive(Debug, Default)]
struct Sight {
    version: Option<StoreVersion>,
    /// Since when it is so.
    since: Instant,
    /// Under which fence it is held here.
    fence: Option<u64>,
    /// The version of the record by which it is held here; `None` also while that is being written.
    ours: Option<StoreVersion>,
    /// How often it was seen to change in another's hands.
    renewals: u64,
}

/// Who has the scheduled work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// This engine.
    Ours,
    /// Another one, that was seen to be alive since this engine began to look.
    Busy(WorkRecord),
    /// Another one, that may be gone.
    Waiting(WorkRecord),
}

/// One pass's share in the claim: once it was refused it stays over, though the engine may have the work again by then. So
/// what was not done because the work was lost is told from what failed.
#[derive(Debug)]
pub(super) struct Stint {
    hold: Arc<Hold>,
    clock: Clock,
    over: AtomicBool,
    /// Looks at the claim since something was done.
    idle_looks: AtomicU32,
}

impl Stint {
    pub(super) fn new(hold: Arc<Hold>, clock: Clock) -> Arc<Self> {
        Arc::new(Self { hold, clock, over: AtomicBool::new(false), idle_looks: AtomicU32::new(0) })
    }

    /// Something was done, or left, and the next is begun.
    pub(super) fn progressed(&self) {
        self.idle_looks.store(0, Ordering::SeqCst);
    }

    /// To be asked with every look at the claim: true when nothing was done for so many that another engine shall try. Looks are
    /// counted, because a suspend is no time in which anything could be done.
    pub(super) fn is_stalled(&self) -> bool {
        let looks = STALLED_MAX.as_secs_f64() / self.hold.look_every().as_secs_f64();
        f64::from(self.idle_looks.fetch_add(1, Ordering::SeqCst)) >= looks
    }

    /// The write as it is to be done: not after another engine has taken the work.
    pub(super) async fn guard(&self, put: Put) -> Result<Put> {
        self.check()?;
        self.hold.guard(put, &self.clock).await.inspect_err(|_| self.over.store(true, Ordering::SeqCst))
    }

    /// As [`Hold::check`].
    pub(super) fn check(&self) -> Result<()> {
        if self.over.load(Ordering::SeqCst) {
            return Err(lost());
        }
        self.hold.check(self.clock.now()).inspect_err(|_| self.over.store(true, Ordering::SeqCst))
    }
}

impl Hold {
    /// Not held yet.
    ///
    /// # Errors
    /// [`Error::Fatal`] without randomness.
    pub(super) fn new(lease: Duration) -> Result<Self> {
        let mut holder = [0; HOLDER_BYTES];
        fill_random(&mut holder)?;
        let (valid_until_ns, known) = (AtomicU64::new(0), Notify::new());
        Ok(Self { holder, lease, valid_until_ns, sight: Mutex::default(), known })
    }

    /// How often to [`Hold::look`].
    pub(super) fn look_every(&self) -> Duration {
        self.lease / 3
    }

    /// Refuses work that this engine has lost, or may have lost: before every write.
    pub(super) fn check(&self, now: Instant) -> Result<()> {
        if now.as_nanos() < self.valid_until_ns.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(lost())
    }

    async fn guard(&self, put: Put, clock: &Clock) -> Result<Put> {
        loop {
            let known = self.known.notified();
            let mut known = std::pin::pin!(known);
            known.as_mut().enable(); // before the look, else one that comes between is missed
            self.check(clock.now())?;
            let ours = self.sight().ours.clone();
            if let Some(version) = ours {
                return Ok(put.resting_on(Key::Work, version));
            }
            clock.until(Instant::from_nanos(self.valid_until_ns.load(Ordering::SeqCst)), known).await;
        }
    }

    /// Takes the work, or renews it, or sees who has it.
    ///
    /// # Errors
    /// [`Error::Store`], also when the store does not answer in time: what was held runs out by itself. [`Error::Corrupt`] when a
    /// newer release holds the work, in a record that this one does not read and so leaves alone.
    pub(super) async fn look(&self, keyring: &Keyring) -> Result<Standing> {
        let asked = keyring.clock.now();
        let give_up = asked.plus(keyring.settings.store_timeout);
        let looked = keyring.clock.until(give_up, self.look_now(keyring, asked)).await;
        looked.unwrap_or_else(|| Err(Error::Store("no answer in time, for who does the scheduled work".into())))
    }

    async fn look_now(&self, keyring: &Keyring, asked: Instant) -> Result<Standing> {
        let found = store::find(&*keyring.store, &Key::Work, WorkRecord::decode).await?;
        let (now_unix, until_unix) =
            (keyring.date().await?, keyring.stamp().await?.saturating_add(self.lease.as_secs()));
        let Some((record, version)) = found else {
            let first = WorkRecord { fence: 1, holder: self.holder, until_unix };
            return match keyring.store.create(&Key::Work, first.put()?).await {
                Ok(version) => Ok(self.took(version, first.fence, asked)),
                Err(Error::Exists(_)) => Ok(Standing::Waiting(first)),
                Err(error) => Err(error),
            };
        };
        let record = record.unwrap_or_else(|_| damaged(now_unix));
        let free = self.see(&record, &version, asked, now_unix);
        // Also when it ran out meanwhile, or the store acknowledged nothing: nobody else has taken it.
        let ours = record.holder == self.holder && record.until_unix != 0;
        if !ours && !free {
            self.drop_claim();
            return Ok(match self.sight().renewals {
                0 => Standing::Waiting(record),
                _ => Standing::Busy(record),
            });
        }
        let fence = if ours { record.fence } else { record.fence.saturating_add(1) };
        let next = WorkRecord { fence, holder: self.holder, until_unix };
        self.sight().ours = None;
        match keyring.store.replace(&Key::Work, &version, next.put()?).await {
            Ok(version) => Ok(self.took(version, fence, asked)),
            Err(Error::Conflict(_) | Error::NotFound(_)) => {
                self.drop_claim();
                Ok(Standing::Waiting(record))
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the work up, so that the next one need not wait.
    pub(super) async fn release(&self, keyring: &Keyring) {
        let (fence, version) = {
            let sight = self.sight();
            (sight.fence, sight.version.clone())
        };
        self.drop_claim();
        if let (Some(fence), Some(version)) = (fence, version)
            && let Ok(put) = (WorkRecord { fence, holder: self.holder, until_unix: 0 }).put()
            && let give_up = keyring.clock.now().plus(keyring.settings.store_timeout)
            && let Some(Err(error)) =
                keyring.clock.until(give_up, keyring.store.replace(&Key::Work, &version, put)).await
        {
            // It runs out by itself.
            tracing::warn!(%error, "the scheduled work was not given up");
        }
    }

    fn sight(&self) -> MutexGuard<'_, Sight> {
        // Nothing panics while it is held.
        self.sight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the record is now. True when nobody has the work.
    fn see(&self, record: &WorkRecord, version: &StoreVersion, now: Instant, now_unix: u64) -> bool {
        let mut sight = self.sight();
        if sight.version.as_ref() != Some(version) {
            if sight.version.is_some() && record.holder != self.holder && record.until_unix != 0 {
                sight.renewals += 1;
            }
            (sight.version, sight.since) = (Some(version.clone()), now);
        }
        is_free(record, now.since(sight.since), now_unix)
    }

    fn took(&self, version: StoreVersion, fence: u64, asked: Instant) -> Standing {
        let mut sight = self.sight();
        sight.ours = Some(version.clone());
        (sight.version, sight.since, sight.fence, sight.renewals) = (Some(version), asked, Some(fence), 0);
        self.valid_until_ns.store(asked.plus(self.lease).as_nanos(), Ordering::SeqCst);
        drop(sight);
        self.known.notify_waiters();
        Standing::Ours
    }

    fn drop_claim(&self) {
        self.valid_until_ns.store(0, Ordering::SeqCst);
        let mut sight = self.sight();
        (sight.fence, sight.ours) = (None, None);
        drop(sight);
        self.known.notify_waiters();
    }
}

/// Under which claim something is done.
#[derive(Clone, Copy)]
pub(super) struct Claim<'a>(pub(super) Option<&'a Stint>);

impl Claim<'_> {
    /// What somebody asked for, whoever does the scheduled work.
    pub(super) const NONE: Self = Self(None);

    /// As [`Stint::check`].
    pub(super) fn check(self) -> Result<()> {
        self.0.map_or(Ok(()), Stint::check)
    }

    /// A write that rested on the claim met a conflict. Where that is the claim's own, it was renewed meanwhile or is another engine's,
    /// which the next look tells.
    pub(super) fn met_conflict(self, what: &str) {
        if let Some(stint) = self.0.filter(|_| is_of_work(what)) {
            stint.hold.sight().ours = None;
        }
    }

    /// As [`Stint::guard`].
    pub(super) async fn guard(self, put: Put) -> Result<Put> {
        match self.0 {
            Some(stint) => stint.guard(put).await,
            None => Ok(put),
        }
    }
}

/// True for a conflict that names the record of the work.
pub(super) fn is_of_work(conflict: &str) -> bool {
    conflict == Key::Work.to_string()
}

/// True when nobody has the work: it was given up, or its time is over by the store's date or by how long it did not change.
fn is_free(record: &WorkRecord, unchanged_for: Duration, now_unix: u64) -> bool {
    unchanged_for >= SILENT_MAX || now_unix >= record.until_unix.saturating_add(MARGIN_SECS)
}

/// Stands for a record that cannot be read: taken over when it stays so, under a fence that nobody counted up to.
fn damaged(now_unix: u64) -> WorkRecord {
    WorkRecord { fence: now_unix, holder: [0; HOLDER_BYTES], until_unix: u64::MAX }
}

/// What is said to work whose holder is another engine by now.
fn lost() -> Error {
    Error::Conflict("the scheduled work: another engine does it, or may do it, by now".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::ManualClock,
        config::Settings,
        home::Home,
        keyring::{access::PolicySource, on_trail::OnTrail},
        store::{KeyStore, load_work, memory::MemoryStore, record::RECORD_FORMAT},
        token::{scripted::ScriptedToken, seats::Tokens},
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn keyring() -> (Arc<Keyring>, ManualClock, Arc<MemoryStore>) {
        let manual = ManualClock::new(Instant::from_nanos(1));
        let clock = Clock::Manual(manual.clone());
        let (token, _) = ScriptedToken::new(clock.clone(), 5 * SECOND, 1);
        let store = Arc::new(MemoryStore::new());
        let tokens = Tokens::of_test(token, &clock);
        let home = Home::here().unwrap();
        let policy = PolicySource::None;
        let keyring =
            Keyring::new(tokens, store.clone(), clock, Settings::default(), home, Some(1), policy, OnTrail::default());
        (Arc::new(keyring), manual, store)
    }

    fn hold() -> Hold {
        Hold::new(SERVICE_LEASE).unwrap()
    }

    async fn fence(keyring: &Keyring) -> u64 {
        load_work(&*keyring.store).await.unwrap().unwrap().0.fence
    }

    #[tokio::test]
    async fn one_at_a_time_has_the_work_and_a_holder_that_is_gone_is_replaced_under_a_higher_fence() {
        let (keyring, clock, _) = keyring();
        let (one, two) = (hold(), hold());
        assert_eq!(one.look(&keyring).await.unwrap(), Standing::Ours);
        for _ in 0..20 {
            clock.advance(one.look_every());
            assert!(one.check(keyring.clock.now()).is_ok());
            assert_ne!(two.look(&keyring).await.unwrap(), Standing::Ours);
            assert_eq!(one.look(&keyring).await.unwrap(), Standing::Ours);
        }
        assert!(matches!(two.look(&keyring).await.unwrap(), Standing::Busy(_)), "it was seen to be alive");
        assert_eq!(fence(&keyring).await, 1);
        // It hangs from here on.
        clock.advance(59 * SECOND);
        assert!(one.check(keyring.clock.now()).is_ok());
        assert_ne!(two.look(&keyring).await.unwrap(), Standing::Ours, "it may still work");
        clock.advance(SECOND);
        assert!(one.check(keyring.clock.now()).is_err(), "it stops before anybody takes over");
        assert_ne!(
            two.look(&keyring).await.unwrap(),
            Standing::Ours,
            "its release may have written its wall clock's date"
        );
        clock.advance(5 * SECOND);
        assert_eq!(two.look(&keyring).await.unwrap(), Standing::Ours);
        assert_eq!(fence(&keyring).await, 2);
        assert!(matches!(one.look(&keyring).await.unwrap(), Standing::Waiting(_) | Standing::Busy(_)));
        assert!(one.check(keyring.clock.now()).is_err() && two.check(keyring.clock.now()).is_ok());
    }

    #[tokio::test]
    async fn a_holder_whose_wall_clock_is_far_ahead_is_replaced_all_the_same_once_it_is_silent() {
        let (keyring, clock, store) = keyring();
        let ahead = WorkRecord { fence: 7, holder: [9; HOLDER_BYTES], until_unix: u64::MAX };
        store.create(&Key::Work, ahead.put().unwrap()).await.unwrap();
        let one = hold();
        for _ in 0..75 {
            assert!(matches!(one.look(&keyring).await.unwrap(), Standing::Waiting(_)));
            clock.advance(SECOND);
        }
        assert_eq!(one.look(&keyring).await.unwrap(), Standing::Ours);
        assert_eq!(fence(&keyring).await, 8);
    }

    #[tokio::test]
    async fn a_record_that_is_damaged_is_replaced_once_it_stays_so() {
        let (keyring, clock, store) = keyring();
        let put = crate::store::Put { value: vec![1], wrapped_by: Vec::new(), guards: Vec::new() };
        store.create(&Key::Work, put).await.unwrap();
        let one = hold();
        assert!(matches!(one.look(&keyring).await.unwrap(), Standing::Waiting(_)));
        clock.advance(SILENT_MAX);
        assert_eq!(one.look(&keyring).await.unwrap(), Standing::Ours);
        assert!(fence(&keyring).await > 1_000_000);
    }

    #[tokio::test]
    async fn a_record_of_a_newer_release_is_left_alone_and_told_by_name() {
        let (keyring, clock, store) = keyring();
        let value = [&[RECORD_FORMAT + 1], b"whatever it says".as_slice()].concat();
        let put = crate::store::Put { value: value.clone(), wrapped_by: Vec::new(), guards: Vec::new() };
        store.create(&Key::Work, put).await.unwrap();
        let one = hold();
        for _ in 0..3 {
            let error = one.look(&keyring).await.unwrap_err().to_string();
            let version = format!("format version {}", RECORD_FORMAT + 1);
            assert!(error.contains("scheduled work") && error.contains(&version), "{error}");
            assert!(one.check(keyring.clock.now()).is_err());
            clock.advance(SILENT_MAX);
        }
        assert_eq!(store.get(&Key::Work).await.unwrap().unwrap().value, value);
    }

    #[tokio::test]
    async fn work_that_was_given_up_is_taken_at_once_and_two_who_take_it_at_once_do_not_both_get_it() {
        let (keyring, _, _) = keyring();
        let (one, two, three) = (hold(), hold(), hold());
        assert_eq!(one.look(&keyring).await.unwrap(), Standing::Ours);
        one.release(&keyring).await;
        assert!(one.check(keyring.clock.now()).is_err());
        let (second, third) = tokio::join!(two.look(&keyring), three.look(&keyring));
        let ours = [second.unwrap(), third.unwrap()].iter().filter(|standing| **standing == Standing::Ours).count();
        assert_eq!((ours, fence(&keyring).await), (1, 2));
    }
}
