//! The time seam: CLOCK_BOOTTIME in production, a manual clock in tests.
//!
//! Leases are compared with CLOCK_BOOTTIME because it runs on while a machine is suspended, so that a
//! machine never wakes with live keys, and because nobody can step it.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

/// Length of what tells one boot of a machine from another, in bytes.
pub const BOOT_BYTES: usize = 16;

/// An instant of CLOCK_BOOTTIME, in nanoseconds since the machine booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// The instant `ns` nanoseconds after boot.
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns)
    }

    /// Nanoseconds since boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// This instant plus `duration`, at most the last instant there is (584 years after boot).
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// This instant less `duration`, at least the boot.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to this instant; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What a manual clock at 0 says in seconds since 1970.
const MANUAL_UNIX_START: u64 = 1_700_000_000;

/// Where time comes from. Cheap to clone.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Clock {
    /// The machine's CLOCK_BOOTTIME.
    #[default]
    Boottime,
    /// Time that moves only when a test says so.
    Manual(ManualClock),
}

impl Clock {
    /// Now.
    #[inline]
    pub fn now(&self) -> Instant {
        match self {
            Self::Boottime => {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
                // The kernel counts from boot: both fields are non-negative.
                Instant((now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64))
            }
            Self::Manual(manual) => manual.now(),
        }
    }

    /// Seconds since 1970 by the wall clock, for what is shown and never compared; on a manual clock what it counts from 2023-11-14
    /// on. What decides something has the store's date, which no wall clock moves.
    pub fn wall_unix(&self) -> u64 {
        match self {
            Self::Boottime => unix_now(),
            Self::Manual(manual) => manual.wall_unix(),
        }
    }

    /// As [`Clock::wall_unix`], in milliseconds.
    pub fn wall_unix_ms(&self) -> u64 {
        match self {
            Self::Boottime => u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX),
            Self::Manual(manual) => {
                let ms = manual.now().as_nanos() / 1_000_000 % 1_000;
                manual.wall_unix().saturating_mul(1_000).saturating_add(ms)
            }
        }
    }

    /// What tells this boot of this machine from every other, while which CLOCK_BOOTTIME can be compared between processes; `None`
    /// where the system does not say.
    pub(crate) fn boot(&self) -> Option<[u8; BOOT_BYTES]> {
        match self {
            Self::Boottime => boot_id(),
            Self::Manual(manual) => Some(u128::from(manual.boot).to_be_bytes()),
        }
    }

    /// Resolves at `deadline` or later. After a suspend it may resolve late by up to [`SLEEP_SLICE_MAX`].
    pub async fn sleep_until(&self, deadline: Instant) {
        match self {
            Self::Boottime => loop {
                let left = deadline.since(self.now());
                if left.is_zero() {
                    return;
                }
                // tokio's timer stands still in suspend, so a long sleep is cut into slices.
                tokio::time::sleep(left.min(SLEEP_SLICE_MAX)).await;
            },
            Self::Manual(manual) => manual.sleep_until(deadline).await,
        }
    }

    /// Runs `future` until `deadline`; `None` when the deadline came first.
    pub async fn until<F: Future>(&self, deadline: Instant, future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = self.sleep_until(deadline) => None,
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boottime => "Clock::Boottime",
            Self::Manual(_) => "Clock::Manual",
        })
    }
}

/// The longest single timer: bounds how late a task notices a resume from suspend.
pub const SLEEP_SLICE_MAX: Duration = Duration::from_secs(1);

/// A clock that a test moves. Clones share the time.
#[derive(Clone, Debug)]
pub struct ManualClock {
    shared: Arc<Shared>,
    /// How far the wall clock is ahead of where it began.
    wall_ahead_secs: i64,
    boot: u64,
}

impl Default for ManualClock {
    fn default() -> Self {
        static BOOTS: AtomicU64 = AtomicU64::new(1);
        Self { shared: Arc::default(), wall_ahead_secs: 0, boot: BOOTS.fetch_add(1, Ordering::SeqCst) }
    }
}

#[derive(Debug, Default)]
struct Shared {
    ns: AtomicU64,
    sleepers: Mutex<Sleepers>,
}

/// Who sleeps, in the order in which they wake; of one deadline, in the order in which they fell asleep, so that a
/// simulation sees the same again.
#[derive(Debug, Default)]
struct Sleepers {
    so_far: u64,
    waiting: BTreeMap<(Instant, u64), Waker>,
}

impl ManualClock {
    /// A clock that stands at `start`.
    pub fn new(start: Instant) -> Self {
        let clock = Self::default();
        clock.shared.ns.store(start.0, Ordering::SeqCst);
        clock
    }

    /// The same time on a machine whose wall clock says `wall_unix` now.
    #[must_use]
    pub fn with_wall(&self, wall_unix: u64) -> Self {
        let right = Self { wall_ahead_secs: 0, ..self.clone() }.wall_unix();
        Self { wall_ahead_secs: wall_unix.cast_signed().saturating_sub(right.cast_signed()), ..self.clone() }
    }

    /// The same time on another machine, or after another boot.
    #[must_use]
    pub fn elsewhere(&self) -> Self {
        Self { boot: Self::default().boot, ..self.clone() }
    }

    fn wall_unix(&self) -> u64 {
        (MANUAL_UNIX_START + self.now().as_nanos() / 1_000_000_000).saturating_add_signed(self.wall_ahead_secs)
    }

    /// Where the clock stands.
    pub fn now(&self) -> Instant {
        Instant(self.shared.ns.load(Ordering::SeqCst))
    }

    /// Moves the clock on and wakes every sleeper whose deadline has come.
    pub fn advance(&self, by: Duration) {
        let mut sleepers = self.sleepers();
        let to = self.now().plus(by);
        self.shared.ns.store(to.0, Ordering::SeqCst);
        let later = sleepers.waiting.split_off(&(to, u64::MAX));
        let due = std::mem::replace(&mut sleepers.waiting, later);
        drop(sleepers);
        due.into_values().for_each(Waker::wake);
    }

    /// The earliest deadline that somebody sleeps for: until then nothing happens by itself. It lets a simulation move from
    /// one happening to the next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.sleepers().waiting.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    fn sleepers(&self) -> MutexGuard<'_, Sleepers> {
        // Nothing panics while it is held.
        self.shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sleep_until(&self, deadline: Instant) {
        let place = {
            let mut sleepers = self.sleepers();
            sleepers.so_far += 1;
            Sleeper { clock: self, key: (deadline, sleepers.so_far) }
        };
        std::future::poll_fn(|cx| {
            // The lock, because a move between the look and the enlisting would be missed.
            let mut sleepers = self.sleepers();
            if self.now() >= deadline {
                return Poll::Ready(());
            }
            sleepers.waiting.insert(place.key, cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A place among the sleepers; left when the sleep ends or is given up.
struct Sleeper<'a> {
    clock: &'a ManualClock,
    key: (Instant, u64),
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        self.clock.sleepers().waiting.remove(&self.key);
    }
}

/// Spreads times, so that engines and accounts do not act in step. Not for secrets.
#[derive(Debug)]
pub(crate) struct Jitter(Mutex<StdRng>);

impl Jitter {
    /// Seeded by the operating system, or by a simulation that wants to see the same again.
    pub(crate) fn new(seed: Option<u64>) -> Self {
        Self(Mutex::new(seed.map_or_else(|| StdRng::from_rng(&mut rand::rng()), StdRng::seed_from_u64)))
    }

    /// A number from 0 to `bound` - 1.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next_u64() % bound.max(1)
    }
}

/// Seconds since 1970 for people: `2026-11-24T04:50:00Z`.
pub fn utc(unix: u64) -> String {
    // What lies behind the year 9999 is no date that was ever written down.
    const LAST: u64 = 253_402_300_799;
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_secs(unix.min(LAST))).to_string()
}

/// Read once: it does not change.
fn boot_id() -> Option<[u8; BOOT_BYTES]> {
    static ID: OnceLock<Option<[u8; BOOT_BYTES]>> = OnceLock::new();
    *ID.get_or_init(|| {
        let digits = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().replace('-', "");
        let id = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 2 * BOOT_BYTES)?;
        Some(id.to_be_bytes())
    })
}

/// Seconds since 1970 by the wall clock, for people. Nothing that protects a key or decides of one looks at it.
pub fn unix_now() -> u64 {
    since_1970().as_secs()
}

#[allow(clippy::disallowed_methods)] // the one place
fn since_1970() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boottime_moves_forward() {
        let clock = Clock::default();
        let first = clock.now();
        assert!(clock.now() >= first);
        assert!(first > Instant::default());
    }

    #[tokio::test]
    async fn a_sleeper_on_the_manual_clock_wakes_when_its_deadline_comes_and_not_before() {
        let manual = ManualClock::new(Instant::from_nanos(5));
        let clock = Clock::Manual(manual.clone());
        let deadline = clock.now().plus(Duration::from_secs(2));
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep_until(deadline).await }
        });
        tokio::task::yield_now().await;
        manual.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        manual.advance(Duration::from_secs(1));
        sleeper.await.unwrap();
    }

    #[tokio::test]
    async fn until_gives_none_at_the_deadline() {
        let manual = ManualClock::default();
        let clock = Clock::Manual(manual.clone());
        let deadline = Instant::from_nanos(1);
        assert_eq!(clock.until(deadline, async { 7 }).await, Some(7));
        manual.advance(Duration::from_nanos(1));
        assert_eq!(clock.until(deadline, std::future::pending::<()>()).await, None);
    }
}
