//! Alerts behind a trail that is followed, and where their notices go.

use super::{Alerts, Notice, Time};
use crate::{
    audit::{AuditSink, CommandSink, Event, FileSink, line::Line},
    clock::Clock,
};
use async_trait::async_trait;
use std::{collections::BTreeMap, fmt, sync::Arc};
use tokio::sync::Mutex;

/// Where notices are brought.
#[async_trait]
pub trait NoticeSink: Send {
    /// Takes notices, one or more, in their order. Where it fails all of them are brought again, with the same ids. Dropped, it gives up.
    ///
    /// # Errors
    /// Why they could not be taken, and the remedy.
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), String>;
}

#[async_trait]
impl NoticeSink for Box<dyn NoticeSink> {
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), String> {
        (**self).tell(notices).await
    }
}

/// Appends them, a line of JSON each.
#[async_trait]
impl NoticeSink for FileSink {
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), String> {
        self.take(notices.iter().flat_map(Notice::json).collect()).await
    }
}

/// Gives it a line of JSON for each.
#[async_trait]
impl NoticeSink for CommandSink {
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), String> {
        self.take(notices.iter().flat_map(Notice::json).collect()).await
    }
}

/// Gives the events of a trail to rules, and their notices to a sink. Events are acknowledged once whoever is to be told has been told.
///
/// What troubles there are is in memory: a process that begins anew tells of what it sees from then on.
pub struct AlertSink {
    alerts: Alerts,
    to: Box<dyn NoticeSink>,
    /// What the sink has not taken yet.
    owed: Vec<Notice>,
    /// Up to where the rules have seen each node: events that are brought again are not counted again.
    seen: BTreeMap<String, u64>,
    /// An event came since the last tick.
    is_busy: bool,
    clock: Clock,
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
            seen: BTreeMap::new(),
            is_busy: false,
            clock: Clock::default(),
        }
    }

    /// Time goes by, while no event comes: some times a minute, by the wall clock. While events do come, it is theirs that counts: those of a
    /// trail that is behind are not of now.
    ///
    /// # Errors
    /// As [`NoticeSink::tell`]; what was not taken is brought with the next call.
    pub async fn tick(&mut self, now: Time) -> Result<(), String> {
        if !std::mem::take(&mut self.is_busy) {
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
        if !self.owed.is_empty() {
            self.to.tell(&self.owed).await?;
            self.owed.clear();
        }
        Ok(())
    }
}

#[async_trait]
impl AuditSink for AlertSink {
    async fn deliver(&mut self, events: &[Event]) -> Result<(), String> {
        self.is_busy = true;
        let now = self.now();
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
        self.pay().await
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
