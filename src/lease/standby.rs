//! What the first token of a lease last said, which decides whether its standby may be asked: pure, as the lease.
//!
//! A standby speaks while the first token is silent, and no longer. Where the first one's last word was a denial it never
//! does: else whoever takes the key away, and then the token, would hand the data to the standby (promise 4).

use crate::{clock::Instant, lease::Verdict};

/// Which of a lease's tokens said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Voice {
    /// The token that the KEK's record names.
    First,
    /// Its standby.
    Standby,
}

/// What is known of the first token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct FirstWord {
    /// Its last word was a denial; silence is no word.
    denied: bool,
    /// Since when it does not answer.
    silent: Option<Instant>,
    /// Until when what the store said counts, which was looked into in this silence, and knows of no denial that came after the
    /// first token's last grant.
    looked_until: Option<Instant>,
    /// The newest grant was the standby's.
    on_standby: bool,
}

impl FirstWord {
    /// As the store remembers it from before this process.
    pub(crate) fn new(denied_before: bool) -> Self {
        Self { denied: denied_before, ..Self::default() }
    }

    /// Its last word was a denial.
    pub(crate) fn has_denied(&self) -> bool {
        self.denied
    }

    /// It does not answer.
    pub(crate) fn is_in_silence(&self) -> bool {
        self.silent.is_some()
    }

    /// Whether what a token said is the lease's business.
    pub(crate) fn lets_count(&self, voice: Voice, verdict: Verdict) -> bool {
        match (voice, verdict) {
            (Voice::First, _) | (_, Verdict::Nothing | Verdict::AllBack { .. }) => true,
            // It was asked before the first token denied.
            (Voice::Standby, Verdict::Granted { .. }) => !self.denied,
            // It was asked while the first token was silent, which answers by now, and speaks for itself.
            (Voice::Standby, Verdict::Denied | Verdict::Unreachable) => self.silent.is_some(),
        }
    }

    /// Takes in what counted; `accepted` says whether a grant renewed the lease. Gives whether the standby took over (true),
    /// or the first token came back (false), if either.
    pub(crate) fn hear(&mut self, voice: Voice, verdict: Verdict, accepted: bool) -> Option<bool> {
        let before = self.on_standby;
        match (voice, verdict) {
            (Voice::First, Verdict::Granted { .. }) if accepted => *self = Self::default(),
            (Voice::First, Verdict::Denied) => *self = Self::new(true),
            (Voice::Standby, Verdict::Granted { .. }) if accepted => self.on_standby = self.silent.is_some(),
            (Voice::Standby, Verdict::Denied) => self.on_standby = false,
            _ => {}
        }
        (before != self.on_standby).then_some(self.on_standby)
    }

    /// It did not answer.
    pub(crate) fn is_silent(&mut self, now: Instant) {
        self.silent.get_or_insert(now);
    }

    /// It answered, whatever it said of one record.
    pub(crate) fn answers(&mut self) {
        (self.silent, self.looked_until) = (None, None);
    }

    /// The store knows of no denial, which counts until then.
    pub(crate) fn looked(&mut self, until: Instant) {
        self.looked_until = self.silent.and(self.looked_until.max(Some(until)));
    }

    /// Whom to ask for an AEK now: whoever is known to be silent keeps nobody waiting.
    pub(crate) fn whom_to_ask(&self, now: Instant) -> Voice {
        if self.may_go_over(now) == Some(true) { Voice::Standby } else { Voice::First }
    }

    /// Whether the standby may be asked now; `None` when the store must be looked into first.
    pub(crate) fn may_go_over(&self, now: Instant) -> Option<bool> {
        match (self.denied, self.silent) {
            (true, _) | (_, None) => Some(false),
            (false, Some(_)) => self.looked_until.is_some_and(|until| now < until).then_some(true),
        }
    }

    /// The newest grant was the standby's.
    pub(crate) fn is_on_standby(&self) -> bool {
        self.on_standby
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_nanos(5);
    const UNTIL: Instant = Instant::from_nanos(9);
    const GRANTED: Verdict = Verdict::Granted { asked: NOW, context: NOW, epoch: 1 };

    fn silent() -> FirstWord {
        let mut first = FirstWord::default();
        first.is_silent(NOW);
        first.looked(UNTIL);
        first
    }

    #[test]
    fn the_standby_is_asked_in_a_silence_alone_and_once_the_store_was_looked_into() {
        let mut first = FirstWord::default();
        let says = |first: &FirstWord, now| (first.may_go_over(now), first.whom_to_ask(now));
        first.looked(UNTIL);
        assert_eq!(says(&first, NOW), (Some(false), Voice::First));
        first.is_silent(NOW);
        assert_eq!(says(&first, NOW), (None, Voice::First), "a look before a silence is none");
        first.looked(UNTIL);
        assert_eq!(says(&first, NOW), (Some(true), Voice::Standby));
        assert_eq!(says(&first, UNTIL), (None, Voice::First), "a look does not count for ever");
        first.looked(NOW);
        assert_eq!(says(&first, NOW), (Some(true), Voice::Standby), "an answer that was overtaken takes nothing away");
        first.answers();
        first.is_silent(NOW);
        assert_eq!(first.may_go_over(NOW), None, "another silence, another look");
    }

    #[test]
    fn a_denial_by_the_first_token_shuts_the_standby_out_until_the_first_one_grants() {
        for mut first in [FirstWord::new(true), {
            let mut heard = silent();
            heard.hear(Voice::First, Verdict::Denied, false);
            heard
        }] {
            for _ in 0..3 {
                first.is_silent(NOW);
                first.looked(UNTIL);
                assert_eq!(first.may_go_over(NOW), Some(false));
                assert!(!first.lets_count(Voice::Standby, GRANTED), "asked before the denial");
                first.hear(Voice::Standby, GRANTED, true);
                first.hear(Voice::First, GRANTED, false); // a late one, of an earlier epoch
                first.hear(Voice::First, Verdict::Unreachable, false);
            }
            first.hear(Voice::First, GRANTED, true);
            first.is_silent(NOW);
            first.looked(UNTIL);
            assert_eq!(first.may_go_over(NOW), Some(true));
        }
    }

    #[test]
    fn a_denial_by_the_standby_counts_while_the_first_token_is_silent_and_can_be_taken_back() {
        let mut first = silent();
        assert!(first.lets_count(Voice::Standby, Verdict::Denied));
        first.hear(Voice::Standby, Verdict::Denied, false);
        assert_eq!(first.may_go_over(NOW), Some(true), "it may grant again");
        first.answers();
        assert!(!first.lets_count(Voice::Standby, Verdict::Denied), "the first one speaks for itself");
        assert!(!first.lets_count(Voice::Standby, Verdict::Unreachable));
    }

    #[test]
    fn a_lease_lives_on_the_standby_from_a_grant_that_renewed_it_until_a_denial_or_the_first_token_is_back() {
        let mut first = silent();
        assert!(first.is_in_silence() && !first.is_on_standby());
        assert_eq!(first.hear(Voice::Standby, GRANTED, false), None, "it came late, and renewed nothing");
        assert!(!first.is_on_standby());
        for (voice, verdict, accepted) in [(Voice::Standby, Verdict::Denied, false), (Voice::First, GRANTED, true)] {
            first.hear(Voice::Standby, GRANTED, true);
            assert!(first.is_on_standby());
            assert_eq!(first.hear(voice, verdict, accepted), Some(false), "{voice:?} says {verdict:?}");
            assert!(!first.is_on_standby() && !first.has_denied());
        }
        assert!(!first.is_in_silence());
        first.hear(Voice::First, Verdict::Denied, false);
        assert!(first.has_denied() && FirstWord::new(true).has_denied());
    }

    #[test]
    fn who_took_over_is_told_once() {
        let mut first = silent();
        assert_eq!(first.hear(Voice::Standby, GRANTED, true), Some(true));
        assert_eq!(first.hear(Voice::Standby, GRANTED, true), None);
        assert_eq!(first.hear(Voice::First, GRANTED, true), Some(false));
        assert_eq!(first.hear(Voice::First, GRANTED, true), None);
    }
}
