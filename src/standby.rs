//! What the first token of a lease last said, which decides whether its standby may be asked: pure, as `lease.rs`.
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
    /// In this silence the store was looked into, and knows of no denial that came after the first token's last grant.
    looked: bool,
    /// The newest grant was the standby's.
    on_standby: bool,
}

impl FirstWord {
    /// As the store remembers it from before this process. Whose denial that was is not known: it counts as the first token's.
    pub(crate) fn new(denied_before: bool) -> Self {
        Self { denied: denied_before, ..Self::default() }
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
        (self.silent, self.looked) = (None, false);
    }

    /// The store knows of no denial.
    pub(crate) fn looked(&mut self) {
        self.looked = self.silent.is_some();
    }

    /// Whom to ask for an AEK now: whoever is known to be silent keeps nobody waiting.
    pub(crate) fn whom_to_ask(&self) -> Voice {
        if self.may_go_over() == Some(true) { Voice::Standby } else { Voice::First }
    }

    /// Whether the standby may be asked now; `None` when the store must be looked into first.
    pub(crate) fn may_go_over(&self) -> Option<bool> {
        match (self.denied, self.silent) {
            (true, _) | (_, None) => Some(false),
            (false, Some(_)) => self.looked.then_some(true),
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
    const GRANTED: Verdict = Verdict::Granted { asked: NOW, epoch: 1 };

    fn silent() -> FirstWord {
        let mut first = FirstWord::default();
        first.is_silent(NOW);
        first.looked();
        first
    }

    #[test]
    fn the_standby_is_asked_in_a_silence_alone_and_once_the_store_was_looked_into() {
        let mut first = FirstWord::default();
        first.looked();
        assert_eq!((first.may_go_over(), first.whom_to_ask()), (Some(false), Voice::First));
        first.is_silent(NOW);
        assert_eq!((first.may_go_over(), first.whom_to_ask()), (None, Voice::First), "a look before a silence is none");
        first.looked();
        assert_eq!((first.may_go_over(), first.whom_to_ask()), (Some(true), Voice::Standby));
        first.answers();
        first.is_silent(NOW);
        assert_eq!(first.may_go_over(), None, "another silence, another look");
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
                first.looked();
                assert_eq!(first.may_go_over(), Some(false));
                assert!(!first.lets_count(Voice::Standby, GRANTED), "asked before the denial");
                first.hear(Voice::Standby, GRANTED, true);
                first.hear(Voice::First, GRANTED, false); // a late one, of an earlier epoch
                first.hear(Voice::First, Verdict::Unreachable, false);
            }
            first.hear(Voice::First, GRANTED, true);
            first.is_silent(NOW);
            first.looked();
            assert_eq!(first.may_go_over(), Some(true));
        }
    }

    #[test]
    fn a_denial_by_the_standby_counts_while_the_first_token_is_silent_and_can_be_taken_back() {
        let mut first = silent();
        assert!(first.lets_count(Voice::Standby, Verdict::Denied));
        first.hear(Voice::Standby, Verdict::Denied, false);
        assert_eq!(first.may_go_over(), Some(true), "it may grant again");
        first.answers();
        assert!(!first.lets_count(Voice::Standby, Verdict::Denied), "the first one speaks for itself");
        assert!(!first.lets_count(Voice::Standby, Verdict::Unreachable));
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
