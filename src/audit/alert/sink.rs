//! Alerts behind a trail that is followed, and where their notices go.

use super::{Alerts, Notice, Time};
use crate::{
    audit::{AuditSink, CommandSink, Event, FileSink, line::Line},
    clock::{Clock, Instant},
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};
use tokio::sync::Mutex;

/// Where notices are brought.
#[async_trait]
pub trait NoticeSink: Send {
    /// Takes notices, one or more, in their order. Where it fails all of them are brought again, with the same ids. Dropped, it gives up.
    ///
    /// # Errors
    /// Why they could not be taken, and the remedy.
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), String>;

    /// What the last failure of [`NoticeSink::tell`] says of other notices. Where nothing is known, [`Failed::Unclear`].
    fn failed(&self) -> Failed {
        Failed::Unclear
    }
}

/// What it says of other notices that some were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Failed {
    /// Nothing can be brought now, whatever it is: a server does not answer, a disk is full.
    Away,
    /// That may be of these notices, or of all.
    #[default]
    Unclear,
    /// These are refused for good, and others need not be.
    ForGood,
}

#[async_trait]
impl NoticeSink for Box<dyn NoticeSink> {
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), String> {
        (**self).tell(notices).await
    }

    fn failed(&self) -> Failed {
        (**self).failed()
    }
}

/// Not of one alone, since it is tried with others too, for so long.
const PATIENCE: Duration = Duration::from_secs(60 * 60);
/// What was set aside is brought again so often,
const ASIDE_AGAIN: Duration = Duration::from_secs(10 * 60);
/// and for so long.
const ASIDE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Most that are set aside; one more, and the oldest is given up.
const ASIDE_NOTICES_MAX: usize = 10_000;
/// In a row so many are tried, each by itself, of which none is taken;
const EACH_MAX: usize = 8;
/// and about so long.
const EACH_FOR: Duration = Duration::from_secs(60);

/// Appends them, a line of JSON each.
#[async_trait]
impl NoticeSink for FileSink {
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), String> {
        self.take(notices.iter().flat_map(Notice::json).collect()).await
    }

    fn failed(&self) -> Failed {
        Failed::Away
    }
}

/// Gives it a line of JSON for each.
#[async_trait]
impl NoticeSink for CommandSink {
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), String> {
        self.take(notices.iter().flat_map(Notice::json).collect()).await
    }

    fn failed(&self) -> Failed {
        if self.has_answered() { Failed::Unclear } else { Failed::Away }
    }
}

/// Gives the events of a trail to rules, and their notices to a sink. Events are acknowledged once whoever is to be told has been told.
///
/// A notice that is not taken holds up the others for an hour at most: where they come together each is tried by itself. Where others are
/// taken, where it is refused for good ([`Failed::ForGood`]), or after that hour it is set aside, in memory, and so is what comes later of the
/// same trouble: brought again every ten minutes for a day, and then given up. Of both [`AlertSink::on_untaken`] hears. A sink that
/// takes nothing at all because it is away ([`Failed::Away`]) has all of them kept, and no event acknowledged.
///
/// What troubles there are is in memory: a process that begins anew tells of what it sees from then on. Of what is not proved engines say
/// so every ten minutes.
pub struct AlertSink {
    alerts: Alerts,
    to: Box<dyn NoticeSink>,
    /// What the sink has not taken yet.
    owed: Vec<Notice>,
    /// Since when none of it is taken.
    failing: Option<Instant>,
    /// What holds up nothing any more.
    aside: VecDeque<Aside>,
    given_up: u64,
    on_untaken: Box<dyn FnMut(&str) + Send>,
    /// Up to where the rules have seen each node: events that are brought again are not counted again.
    seen: BTreeMap<String, u64>,
    /// An event took time along since the last tick.
    is_busy: bool,
    /// Events were brought and not acknowledged.
    is_behind: bool,
    clock: Clock,
}

struct Aside {
    notice: Notice,
    since: Instant,
    next: Instant,
}

/// A trouble: its end comes behind its beginning.
fn trouble(notice: &Notice) -> (String, String) {
    (notice.rule.clone(), notice.subject.clone())
}

impl fmt::Debug for AlertSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlertSink").field("alerts", &self.alerts).field("owed", &self.owed).finish_non_exhaustive()
    }
}

impl AlertSink {
    /// Of these rules, to this sink.
    pub fn new(alerts: Alerts, to: impl NoticeSink + 'static) -> Self {
        Self {
            alerts,
            to: Box::new(to),
            owed: Vec::new(),
            failing: None,
            aside: VecDeque::new(),
            given_up: 0,
            on_untaken: Box::new(|why| tracing::error!("{why}")),
            seen: BTreeMap::new(),
            is_busy: false,
            is_behind: false,
            clock: Clock::default(),
        }
    }

    /// Who hears of a notice that is set aside or given up, with why, and the notice as a line of JSON. Else it is logged.
    #[must_use]
    pub fn on_untaken(mut self, hear: impl FnMut(&str) + Send + 'static) -> Self {
        self.on_untaken = Box::new(hear);
        self
    }

    #[cfg(test)]
    pub(super) fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// How many notices are set aside or were given up: not taken, and no event is kept for them.
    pub fn untaken(&self) -> u64 {
        self.given_up.saturating_add(self.aside.len() as u64)
    }

    /// Time goes by, while no event comes: some times a minute, by the wall clock. While events do come, it is theirs that counts: those of a
    /// trail that is behind are not of now.
    ///
    /// # Errors
    /// As [`NoticeSink::tell`]; what was not taken is brought with the next call.
    pub async fn tick(&mut self, now: Time) -> Result<(), String> {
        if !std::mem::take(&mut self.is_busy) && !self.is_behind {
            self.owed.extend(self.alerts.tick(now));
        }
        self.pay().await
    }

    /// A node's trail cannot be followed, or with `None` can again: what [`Follower::deliver`](crate::audit::Follower::deliver) tells.
    ///
    /// # Errors
    /// As [`AlertSink::tick`].
    pub async fn held(&mut self, node: &str, why: Option<&str>) -> Result<(), String> {
        let now = self.now();
        self.owed.extend(self.alerts.held(now, node, why));
        self.pay().await
    }

    fn now(&self) -> Time {
        Time::from_unix_ms(self.clock.wall_unix_ms())
    }

    async fn pay(&mut self) -> Result<(), String> {
        self.bring_aside().await;
        self.follow_aside("it is not the first of its trouble");
        if self.owed.is_empty() {
            self.failing = None;
            return Ok(());
        }
        let Err(why) = self.to.tell(&self.owed).await else {
            self.owed.clear();
            self.failing = None;
            return Ok(());
        };
        let since = *self.failing.get_or_insert_with(|| self.clock.now());
        if self.to.failed() == Failed::Away {
            return Err(why);
        }
        let (refused, is_any_taken) = self.each(&why).await;
        let is_too_long = self.clock.now().since(since) >= PATIENCE;
        for (notice, why, is_for_good) in refused {
            if is_for_good || is_any_taken || is_too_long {
                self.owed.retain(|owed| owed.id() != notice.id());
                self.set_aside(notice, &why);
            }
        }
        self.follow_aside(&why);
        if is_any_taken {
            self.failing = None;
        }
        if self.owed.is_empty() { Ok(()) } else { Err(why) }
    }

    /// Each by itself: those that were not taken, why, and whether that is for good; and whether any was taken. Those that were are not
    /// owed any more.
    async fn each(&mut self, why: &str) -> (Vec<(Notice, String, bool)>, bool) {
        let (begun, owed) = (self.clock.now(), self.owed.clone());
        if let [one] = &owed[..] {
            return (vec![(one.clone(), why.to_owned(), self.to.failed() == Failed::ForGood)], false);
        }
        let (mut refused, mut held, mut is_any_taken) = (Vec::new(), BTreeSet::new(), false);
        for notice in owed {
            if held.contains(&trouble(&notice)) {
                continue;
            }
            if !is_any_taken && refused.len() >= EACH_MAX || self.clock.now().since(begun) >= EACH_FOR {
                break;
            }
            match self.to.tell(std::slice::from_ref(&notice)).await {
                Ok(()) => {
                    is_any_taken = true;
                    self.owed.retain(|owed| owed.id() != notice.id());
                }
                Err(_) if self.to.failed() == Failed::Away => break,
                Err(why) => {
                    held.insert(trouble(&notice));
                    refused.push((notice, why, self.to.failed() == Failed::ForGood));
                }
            }
        }
        // Not the same ones first each time.
        let is_tried = |notice: &Notice| held.contains(&trouble(notice));
        self.owed.sort_by_key(is_tried);
        (refused, is_any_taken)
    }

    fn set_aside(&mut self, notice: Notice, why: &str) {
        let now = self.clock.now();
        self.say(&notice, &format!("not taken, and set aside: {why}; it is brought again for a day"));
        self.aside.push_back(Aside { notice, since: now, next: now.plus(ASIDE_AGAIN) });
        while self.aside.len() > ASIDE_NOTICES_MAX
            && let Some(oldest) = self.aside.pop_front()
        {
            self.give_up(&oldest.notice, "too many are set aside");
        }
    }

    /// What is owed of a trouble of which something is set aside is too.
    fn follow_aside(&mut self, why: &str) {
        let aside: BTreeSet<_> = self.aside.iter().map(|aside| trouble(&aside.notice)).collect();
        let (behind, owed) =
            std::mem::take(&mut self.owed).into_iter().partition(|owed| aside.contains(&trouble(owed)));
        self.owed = owed;
        behind.into_iter().for_each(|notice: Notice| self.set_aside(notice, why));
    }

    async fn bring_aside(&mut self) {
        let (begun, mut held, mut at) = (self.clock.now(), BTreeSet::new(), 0);
        while let Some(aside) = self.aside.get(at)
            && self.clock.now().since(begun) < EACH_FOR
        {
            let (notice, is_old) = (aside.notice.clone(), begun.since(aside.since) >= ASIDE_MAX);
            if aside.next > begun || held.contains(&trouble(&notice)) {
                held.insert(trouble(&notice));
                at += 1;
                continue;
            }
            let told = self.to.tell(std::slice::from_ref(&notice)).await;
            match told {
                Ok(()) => {
                    self.aside.remove(at);
                }
                Err(_) if self.to.failed() == Failed::Away => return,
                Err(why) if is_old => {
                    self.aside.remove(at);
                    self.give_up(&notice, &why);
                }
                Err(_) => {
                    held.insert(trouble(&notice));
                    if let Some(aside) = self.aside.get_mut(at) {
                        aside.next = begun.plus(ASIDE_AGAIN);
                    }
                    at += 1;
                }
            }
        }
    }

    fn give_up(&mut self, notice: &Notice, why: &str) {
        self.given_up = self.given_up.saturating_add(1);
        self.say(notice, &format!("given up: {why}"));
    }

    fn say(&mut self, notice: &Notice, what: &str) {
        let json = notice.json();
        (self.on_untaken)(&format!("a notice is {what}: {}", String::from_utf8_lossy(json.trim_ascii_end())));
    }
}

#[async_trait]
impl AuditSink for AlertSink {
    async fn deliver(&mut self, events: &[Event]) -> Result<(), String> {
        let (now, before) = (self.now(), self.alerts.now);
        for event in events {
            let seen = self.seen.entry(event.node.to_string()).or_default();
            // Followed lines were parsed; what is no line says nothing to a rule.
            if event.seq >= *seen
                && let Ok(line) = Line::parse(&event.line)
            {
                *seen = event.seq.saturating_add(1);
                self.owed.extend(self.alerts.line(now, event.node.as_str(), &line));
            }
        }
        // Of nodes whose clocks are behind it is the wall clock by which time goes by.
        self.is_busy |= self.alerts.now > before;
        let paid = self.pay().await;
        self.is_behind = paid.is_err();
        paid
    }
}

/// The same for whoever follows, and for whoever lets time go by beside.
#[derive(Debug, Clone)]
pub struct SharedAlerts(Arc<Mutex<AlertSink>>);

impl SharedAlerts {
    /// Shares it.
    pub fn new(sink: AlertSink) -> Self {
        Self(Arc::new(Mutex::new(sink)))
    }

    /// As [`AlertSink::tick`].
    ///
    /// # Errors
    /// As [`AlertSink::tick`].
    pub async fn tick(&self, now: Time) -> Result<(), String> {
        self.0.lock().await.tick(now).await
    }

    /// As [`AlertSink::untaken`].
    pub async fn untaken(&self) -> u64 {
        self.0.lock().await.untaken()
    }

    /// As [`AlertSink::held`].
    ///
    /// # Errors
    /// As [`AlertSink::tick`].
    pub async fn held(&self, node: &str, why: Option<&str>) -> Result<(), String> {
        self.0.lock().await.held(node, why).await
    }
}

#[async_trait]
impl AuditSink for SharedAlerts {
    async fn deliver(&mut self, events: &[Event]) -> Result<(), String> {
        self.0.lock().await.deliver(events).await
    }
}
