//! What the store last said, and what its silence puts off.
//!
//! An outage of the store is an outage (promise 3): AEKs whose TTL passes while their records cannot be read stay in use. But
//! what others changed there (an account's deletion, a newer AEK version) is heard of by nobody meanwhile, so that ends at grace
//! after the store's last word, once the token answers; while that is silent as well, the lease alone ends keys. Common to all
//! leases of an engine, and read on the data path only for an AEK whose TTL is over.

use crate::{
    clock::Instant,
    sync::{AtomicU64, Mutex, MutexGuard},
};
use std::{
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

/// The store answers: nothing is put off.
const ANSWERS: u64 = 0;

#[derive(Debug)]
pub(crate) struct StoreWord {
    grace: Duration,
    aek_ttl: Duration,
    /// Until when TTLs do not bind, while the store is silent; [`ANSWERS`] while it is not.
    put_off_until_ns: AtomicU64,
    /// From when on they bind after its last silence: those that passed in it are refreshed until then.
    binds_from_ns: AtomicU64,
    /// When the newest read that was answered was asked, and when the newest answer came.
    word_ns: AtomicU64,
    heard_ns: AtomicU64,
    silence: Mutex<Option<Silence>>,
}

/// The store does not answer, or answers that it cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Silence {
    since: Instant,
    why: String,
    told: bool,
}

/// A silence of the key store, as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreSilence {
    /// How long it has lasted.
    pub lasting: Duration,
    /// What the store said, or that it did not answer.
    pub why: String,
    /// Until AEKs whose TTL has passed are no longer used: grace after the store's last word.
    pub keys_last: Duration,
}

impl StoreWord {
    pub(crate) fn new(grace: Duration, aek_ttl: Duration) -> Self {
        Self {
            grace,
            aek_ttl,
            put_off_until_ns: AtomicU64::new(ANSWERS),
            binds_from_ns: AtomicU64::new(0),
            word_ns: AtomicU64::new(0),
            heard_ns: AtomicU64::new(0),
            silence: Mutex::default(),
        }
    }

    fn silence(&self) -> MutexGuard<'_, Option<Silence>> {
        // Nothing panics while it is held.
        self.silence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When keys end that live by the store's last word alone.
    fn end(&self) -> Instant {
        Instant::from_nanos(self.word_ns.load(Ordering::SeqCst)).plus(self.grace)
    }

    /// Whether a TTL that is over binds at `now`, which it does from `token` on as far as the token is concerned: not while that
    /// is silent. What it puts off after a silence of its own, for refreshes, is nothing to a store that nothing can be read from.
    #[inline]
    pub(crate) fn lets_bind(&self, now: Instant, token: Option<Instant>) -> bool {
        let Some(token) = token else { return false };
        match self.put_off_until_ns.load(Ordering::Acquire) {
            ANSWERS => now >= token && now.as_nanos() >= self.binds_from_ns.load(Ordering::Acquire),
            until => now.as_nanos() >= until,
        }
    }

    /// What was asked at `asked` is answered, whatever the answer.
    pub(crate) fn heard(&self, asked: Instant, now: Instant) {
        if self.put_off_until_ns.load(Ordering::SeqCst) != ANSWERS {
            let mut silence = self.silence();
            // As after a token's silence; but never beyond what the silence itself could have put off.
            let binds_from = now.plus(self.aek_ttl).min(self.end());
            self.binds_from_ns.fetch_max(binds_from.as_nanos(), Ordering::SeqCst);
            self.put_off_until_ns.store(ANSWERS, Ordering::SeqCst);
            *silence = silence.take().filter(|silence| silence.told);
        }
        self.word_ns.fetch_max(asked.as_nanos(), Ordering::SeqCst);
        self.heard_ns.fetch_max(now.as_nanos(), Ordering::SeqCst);
    }

    /// What was asked at `asked` has failed; unless others were answered meanwhile, that is a silence.
    pub(crate) fn failed(&self, asked: Instant, now: Instant, why: &str) {
        let mut silence = self.silence();
        if self.heard_ns.load(Ordering::SeqCst) > asked.as_nanos() {
            return;
        }
        let before = silence.take().map_or((now, false), |before| match self.is_silent() {
            true => (before.since, before.told),
            false => (now, before.told),
        });
        *silence = Some(Silence { since: before.0, why: why.into(), told: before.1 });
        self.put_off_until_ns.store(self.end().as_nanos().max(1), Ordering::SeqCst);
    }

    fn is_silent(&self) -> bool {
        self.put_off_until_ns.load(Ordering::SeqCst) != ANSWERS
    }

    /// The silence that there is.
    pub(crate) fn status(&self, now: Instant) -> Option<StoreSilence> {
        let silence = self.silence().clone().filter(|_| self.is_silent())?;
        let keys_last = self.end().since(now);
        Some(StoreSilence { lasting: now.since(silence.since), why: silence.why, keys_last })
    }

    /// What is to be told now: a silence that has lasted for `patience` (true), or its end (false). Each once.
    pub(crate) fn news(&self, now: Instant, patience: Duration) -> Option<(bool, String)> {
        let mut silence = self.silence();
        let is_silent = self.is_silent();
        let known = silence.as_mut()?;
        if !is_silent {
            return silence.take().map(|ended| (false, ended.why));
        }
        if known.told || now.since(known.since) < patience {
            return None;
        }
        known.told = true;
        Some((true, known.why.clone()))
    }
}

#[cfg(test)]
impl Default for StoreWord {
    fn default() -> Self {
        let crate::config::Settings { grace, aek_ttl, .. } = crate::config::Settings::default();
        Self::new(grace, aek_ttl)
    }
}

#[cfg(all(test, not(keyleash_loom)))]
mod tests {
    use super::*;

    const TTL: u64 = 10;
    const GRACE: u64 = 30;

    fn at(ns: u64) -> Instant {
        Instant::from_nanos(ns)
    }

    fn word() -> StoreWord {
        let word = StoreWord::new(Duration::from_nanos(GRACE), Duration::from_nanos(TTL));
        word.heard(at(100), at(101));
        word
    }

    fn binds(word: &StoreWord, now: u64) -> bool {
        word.lets_bind(at(now), Some(at(0)))
    }

    #[test]
    fn a_silence_puts_ttls_off_until_grace_after_the_last_word_and_longer_only_while_the_token_is_silent_too() {
        let word = word();
        assert!(binds(&word, 101));
        word.failed(at(105), at(110), "away");
        // Whatever the token put off after a silence of its own: one that flaps would put them off for ever.
        for token in [0, 140] {
            assert!(!word.lets_bind(at(129), Some(at(token))) && word.lets_bind(at(130), Some(at(token))));
        }
        assert!(!word.lets_bind(at(130), None), "the lease alone ends keys");
        word.failed(at(120), at(125), "away");
        assert!(!binds(&word, 129) && binds(&word, 130), "each failure puts off nothing more");
    }

    #[test]
    fn after_a_silence_ttls_bind_after_one_more_but_never_later_than_the_silence_could_put_them_off() {
        for (back, from) in [(112, 122), (125, 130), (131, 130)] {
            let word = word();
            word.failed(at(105), at(110), "away");
            word.heard(at(back - 1), at(back));
            assert!(!binds(&word, from - 1) && binds(&word, from), "back at {back}");
            for token in [Some(at(from + 1)), None] {
                assert!(!word.lets_bind(at(from), token), "the token's silence is its own affair");
            }
        }
    }

    #[test]
    fn one_read_that_fails_while_others_are_answered_is_no_silence() {
        let word = word();
        word.heard(at(106), at(107));
        word.failed(at(105), at(110), "slow");
        assert!(binds(&word, 110) && word.status(at(110)).is_none());
    }

    #[test]
    fn a_silence_is_told_once_when_it_lasts_and_so_is_its_end() {
        let (word, patience) = (word(), Duration::from_nanos(5));
        word.failed(at(105), at(110), "away");
        assert_eq!(word.news(at(114), patience), None);
        assert_eq!(word.news(at(115), patience), Some((true, "away".into())));
        assert_eq!(word.news(at(116), patience), None);
        let silence = word.status(at(116)).unwrap();
        assert_eq!((silence.lasting, silence.keys_last), (Duration::from_nanos(6), Duration::from_nanos(14)));
        word.heard(at(117), at(118));
        assert_eq!(word.news(at(118), patience), Some((false, "away".into())));
        assert_eq!((word.news(at(119), patience), word.status(at(119))), (None, None));
        // A short one is not told, nor is its end.
        word.failed(at(119), at(120), "away");
        word.heard(at(121), at(122));
        assert_eq!(word.news(at(130), patience), None);
    }
}
