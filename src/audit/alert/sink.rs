//! Alerts behind a trail that is followed, and where their notices go.

use super::{
    Alerts, Notice, Time,
    state::{Kept, KeptAside, Known, STATE_BYTES_MAX},
};
use crate::{
    audit::{AuditSink, CommandSink, Event, FileSink, follow::CommandFailure, line::Line},
    clock::{Clock, Instant},
    name::NodeName,
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    time::Duration,
};

/// Where notices are brought.
#[async_trait]
pub trait NoticeSink: Send {
    /// Takes notices, one or more, in their order. Where it fails all of them are brought again, with the same ids. Dropped, it gives up.
    ///
    /// # Errors
    /// Why they were not taken, and what that says of others. Where nothing is known of others, a text becomes
    /// [`NotTaken::Unclear`] by `?`.
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), NotTaken>;
}

/// Why notices were not taken, in words and with the remedy, and what that says of others.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotTaken {
    /// Nothing can be brought now, whatever it is: a server does not answer, a disk is full.
    Away(String),
    /// That may be of these notices, or of all.
    Unclear(String),
    /// These are refused for good, and others need not be.
    ForGood(String),
}

impl NotTaken {
    fn why(self) -> String {
        match self {
            Self::Away(why) | Self::Unclear(why) | Self::ForGood(why) => why,
        }
    }
}

impl From<String> for NotTaken {
    fn from(why: String) -> Self {
        Self::Unclear(why)
    }
}

impl fmt::Display for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Away(why) | Self::Unclear(why) | Self::ForGood(why)) = self;
        f.write_str(why)
    }
}

#[async_trait]
impl NoticeSink for Box<dyn NoticeSink> {
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), NotTaken> {
        (**self).tell(notices).await
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
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), NotTaken> {
        self.take(notices.iter().flat_map(Notice::json).collect()).await.map_err(NotTaken::Away)
    }
}

/// Gives it a line of JSON for each.
#[async_trait]
impl NoticeSink for CommandSink {
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), NotTaken> {
        self.take(notices.iter().flat_map(Notice::json).collect()).await.map_err(|failure| match failure {
            CommandFailure::Said(why) => NotTaken::Unclear(why),
            CommandFailure::None(why) => NotTaken::Away(why),
        })
    }
}

/// Gives the events of a trail to rules, and their notices to a sink. Events are acknowledged once whoever is to be told has been told.
///
/// A notice that is not taken holds up the others for an hour at most: where they come together each is tried by itself. Where others are
/// taken, where it is refused for good ([`NotTaken::ForGood`]), or after that hour it is set aside, and so is what comes later of the
/// same trouble: brought again every ten minutes for a day, and then given up. Of both [`AlertSink::on_untaken`] hears. A sink that
/// takes nothing at all because it is away ([`NotTaken::Away`]) has all of them kept, and no event acknowledged.
///
/// What is known, of troubles, rates and notices that were not taken, is kept with the cursor ([`AuditSink::state`]): whichever process follows by it next
/// goes on with that.
pub struct AlertSink {
    alerts: Alerts,
    to: Box<dyn NoticeSink>,
    /// What the sink has not taken yet.
    owed: Vec<Notice>,
    /// Since when none of it is taken.
    failing: Option<Since>,
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
    /// Why each node is held of which it is known.
    held: BTreeMap<NodeName, String>,
    /// What was given to be kept last.
    kept: String,
    clock: Clock,
}

/// Since when, by the clock that goes by, and for whoever comes after this process by that of the wall.
#[derive(Clone, Copy)]
struct Since(Instant, Time);

impl Since {
    fn now(clock: &Clock) -> Self {
        Self(clock.now(), Time::from_unix_ms(clock.wall_unix_ms()))
    }

    fn from(then: Time, clock: &Clock) -> Self {
        let ago = Duration::from_millis(clock.wall_unix_ms().saturating_sub(then.unix_ms()));
        let ago = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX);
        Self(Instant::from_nanos(clock.now().as_nanos().saturating_sub(ago)), then)
    }
}

struct Aside {
    notice: Notice,
    since: Since,
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
            held: BTreeMap::new(),
            kept: String::new(),
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
        let Err(untaken) = self.to.tell(&self.owed).await else {
            self.owed.clear();
            self.failing = None;
            return Ok(());
        };
        let Since(since, _) = *self.failing.get_or_insert_with(|| Since::now(&self.clock));
        if let NotTaken::Away(why) = untaken {
            return Err(why);
        }
        let (refused, is_any_taken) = self.each(&untaken).await;
        let is_too_long = self.clock.now().since(since) >= PATIENCE;
        for (notice, untaken) in refused {
            if matches!(untaken, NotTaken::ForGood(_)) || is_any_taken || is_too_long {
                self.owed.retain(|owed| owed.id() != notice.id());
                self.set_aside(notice, &untaken.why());
            }
        }
        let why = untaken.why();
        self.follow_aside(&why);
        if is_any_taken {
            self.failing = None;
        }
        if self.owed.is_empty() { Ok(()) } else { Err(why) }
    }

    /// Each by itself, after what was said of all: those that were not taken, and whether any was. Those that were are not owed any more.
    async fn each(&mut self, all: &NotTaken) -> (Vec<(Notice, NotTaken)>, bool) {
        let (begun, owed) = (self.clock.now(), self.owed.clone());
        if let [one] = &owed[..] {
            return (vec![(one.clone(), all.clone())], false);
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
                Err(NotTaken::Away(_)) => break,
                Err(untaken) => {
                    held.insert(trouble(&notice));
                    refused.push((notice, untaken));
                }
            }
        }
        // Not the same ones first each time.
        let is_tried = |notice: &Notice| held.contains(&trouble(notice));
        self.owed.sort_by_key(is_tried);
        (refused, is_any_taken)
    }

    fn set_aside(&mut self, notice: Notice, why: &str) {
        let since = Since::now(&self.clock);
        self.say(&notice, &format!("not taken, and set aside: {why}; it is brought again for a day"));
        self.aside.push_back(Aside { notice, since, next: since.0.plus(ASIDE_AGAIN) });
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
            let (notice, is_old) = (aside.notice.clone(), begun.since(aside.since.0) >= ASIDE_MAX);
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
                Err(NotTaken::Away(_)) => return,
                Err(untaken) if is_old => {
                    self.aside.remove(at);
                    self.give_up(&notice, &untaken.why());
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
            if event.seq < *seen {
                continue;
            }
            *seen = event.seq.saturating_add(1);
            // Followed lines were parsed; what is no line says nothing to a rule.
            if let Ok(line) = Line::parse(&event.line) {
                self.owed.extend(self.alerts.line(now, event.node.as_str(), &line));
            }
        }
        // Of nodes whose clocks are behind it is the wall clock by which time goes by.
        self.is_busy |= self.alerts.now > before;
        let paid = self.pay().await;
        self.is_behind = paid.is_err();
        paid
    }

    async fn idle(&mut self) -> Result<(), String> {
        self.is_busy = false;
        let now = self.now();
        self.tick(now).await
    }

    fn held(&mut self, held: &BTreeMap<NodeName, String>) {
        let now = self.now();
        let is_over = |node: &String| !held.keys().any(|held| held.as_str() == node);
        for node in self.alerts.held_nodes().into_iter().filter(is_over) {
            self.owed.extend(self.alerts.held(now, &node, None));
        }
        for (node, why) in held.iter().filter(|(node, why)| self.held.get(*node) != Some(why)) {
            self.owed.extend(self.alerts.held(now, node.as_str(), Some(why)));
        }
        self.held = held.clone();
    }

    fn state(&mut self) -> Result<Option<String>, String> {
        let aside = |Aside { notice, since, .. }: &Aside| KeptAside { notice: notice.into(), since: since.1 };
        let mut known = self.alerts.known();
        known.seen.clone_from(&self.seen);
        known.owed = self.owed.iter().map(Kept::from).collect();
        known.aside = self.aside.iter().map(aside).collect();
        known.failing = self.failing.map(|since| since.1);
        let known = known.text().ok_or_else(|| {
            format!(
                "what the alerts know has more than {STATE_BYTES_MAX} bytes: divide the rules among several processes"
            )
        })?;
        // That time went by is nothing to write down.
        Ok((known != self.kept).then(|| {
            let whole = Known::whole(&known, self.alerts.now);
            self.kept = known;
            whole
        }))
    }

    fn take_up(&mut self, state: &str, acknowledged: &BTreeMap<NodeName, u64>) -> Result<(), String> {
        let damaged = || "what the alerts knew is damaged, or of another version of keyleash".to_owned();
        let (mut known, now) = Known::parse(state).ok_or_else(damaged)?;
        for (node, next) in acknowledged {
            let seen = known.seen.get(node.as_str()).copied().unwrap_or_default();
            if seen < *next {
                return Err(format!(
                    "lines {seen} to {} of node {node} are behind it, and no rule has seen them",
                    next - 1
                ));
            }
        }
        // A node that somebody took out of the cursor begins anew.
        known.seen.retain(|seen, _| acknowledged.keys().any(|node| node.as_str() == seen));
        let clock = self.clock.clone();
        let gone = self.alerts.take_up(&mut known, now);
        // In the place of what it knew itself, if it followed before: what was kept has that too, or is older and has its events again.
        self.kept.clear();
        self.owed.clear();
        self.aside.clear();
        for kept in known.owed {
            self.owed.push(kept.notice().ok_or_else(damaged)?);
        }
        self.owed.extend(gone); // behind that they began
        for KeptAside { notice, since } in known.aside {
            let notice = notice.notice().ok_or_else(damaged)?;
            self.aside.push_back(Aside { notice, since: Since::from(since, &clock), next: clock.now() });
        }
        (self.seen, self.failing) = (known.seen, known.failing.map(|since| Since::from(since, &clock)));
        Ok(())
    }
}
