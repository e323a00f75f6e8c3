//! How often something was seen of late, and how often it usually is.

use super::{LEARNING_MINUTES, Time};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, time::Duration};

/// A span is counted in so many parts: what was seen longer ago than it is forgotten a part late at most.
const PARTS: u64 = 60;
const MINUTE_MS: u64 = 60_000;
/// The minutes of which the usual is the mean.
const USUAL_MINUTES: u64 = 24 * 60;
/// What was not seen for so long is not known any more.
const FORGOTTEN_MINUTES: u64 = 7 * USUAL_MINUTES;

/// What counts one subject.
pub(super) trait Counts: Default {
    /// When it was seen last, to a part.
    fn last(&self) -> Time;
}

/// So often in the last span of time.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct Window {
    /// When each part begins, and how often in it.
    parts: VecDeque<(u64, u64)>,
}

impl Window {
    /// Counts `times` now; gives how often it was in the span that ends now.
    pub(super) fn count(&mut self, now: Time, span: Duration, times: u64) -> u64 {
        let span_ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let part_ms = (span_ms / PARTS).max(1);
        let begins = now.unix_ms() / part_ms * part_ms;
        match self.parts.back_mut() {
            Some((at, count)) if *at == begins => *count = count.saturating_add(times),
            _ => self.parts.push_back((begins, times)),
        }
        let is_over = |at: u64| at.saturating_add(span_ms) <= begins;
        while self.parts.front().is_some_and(|(at, _)| is_over(*at)) {
            self.parts.pop_front();
        }
        self.parts.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }
}

impl Window {
    /// What was later than now was now.
    pub(super) fn set_back(&mut self, now: Time) {
        // The next one counted begins a part of its own, in their order.
        self.parts.iter_mut().for_each(|(at, _)| *at = (*at).min(now.unix_ms()));
    }
}

impl Counts for Window {
    fn last(&self) -> Time {
        Time::from_unix_ms(self.parts.back().map_or(0, |(at, _)| *at))
    }
}

/// How often it is in a usual minute.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct Usual {
    /// The minute that is being counted.
    minute: Option<u64>,
    count: u64,
    /// Of the minutes before.
    mean: f64,
    minutes: u64,
}

impl Usual {
    /// Counts one now. How often it was in this minute, and is in a usual one, once that is known.
    pub(super) fn count(&mut self, now: Time) -> Option<(u64, f64)> {
        let this = now.unix_ms() / MINUTE_MS;
        let gone = this.saturating_sub(*self.minute.get_or_insert(this));
        if gone > FORGOTTEN_MINUTES {
            *self = Self { minute: Some(this), ..Self::default() };
        } else {
            for _ in 0..gone {
                self.minutes = self.minutes.saturating_add(1);
                self.mean += (self.count as f64 - self.mean) / self.minutes.min(USUAL_MINUTES) as f64;
                self.count = 0;
            }
            self.minute = Some(this);
        }
        self.count = self.count.saturating_add(1);
        (self.minutes >= LEARNING_MINUTES).then_some((self.count, self.mean))
    }

    /// What was later than now was now.
    pub(super) fn set_back(&mut self, now: Time) {
        self.minute = self.minute.map(|minute| minute.min(now.unix_ms() / MINUTE_MS));
    }

    /// Nothing is known any more.
    pub(super) fn is_idle(&self, now: Time) -> bool {
        self.minute.is_none_or(|minute| now.unix_ms() / MINUTE_MS > minute.saturating_add(FORGOTTEN_MINUTES))
    }
}

impl Counts for Usual {
    fn last(&self) -> Time {
        Time::from_unix_ms(self.minute.unwrap_or_default().saturating_mul(MINUTE_MS))
    }
}
