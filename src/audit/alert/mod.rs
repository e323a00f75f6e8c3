//! Alerts: rules over what a trail and an engine tell. A pure state machine, without clock, file or thread: what was seen comes in with its
//! time, and notices go out, once for each trouble as it begins and once as it is over.
//!
//! Whoever follows a trail gives its lines ([`Alerts::line`]), whoever has an engine its events and leases ([`Alerts::event`],
//! [`Alerts::leases`], [`Alerts::workers`]); what both tell is one trouble. [`Alerts::tick`] lets time go by where nothing is seen.
//!
//! ```
//! use keyleash::audit::alert::{Alerts, Rule, When};
//! use keyleash::{access::Pattern, audit::line::Line};
//!
//! let callers = vec![Pattern::new("web-*")?];
//! let mut alerts = Alerts::new(vec![Rule::new("strangers", When::Stranger { callers })?])?;
//! let line = br#"{"seq":7,"time":"2026-11-26T01:02:03.004Z","category":"AuditEvent","operation":"SecretGet","result":"done","caller":"eve","account":"shop","secret":"db/key"}"#;
//! let line = Line::parse(line).unwrap();
//! let notices = alerts.line(line.time, "web-1", &line);
//! assert_eq!(notices[0].to_string(), "strangers: caller eve: SecretGet of secret db/key of account shop, by a caller that is not on the list (web-1/7)");
//! # Ok::<_, keyleash::Error>(())
//! ```

use self::{
    seen::{Engine, Kind, Seen},
    window::{Counts, Usual, Window},
};
use super::line::{Line, Time};
use crate::{
    error::{Error, Result},
    leash::LeaseStatus,
    name::TokenName,
    telemetry::Event,
    token::Workers,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

#[cfg(feature = "mail")]
mod mail;
mod seen;
mod sink;
mod state;
mod window;

#[cfg(feature = "mail")]
pub use self::mail::MailSink;
pub use self::sink::{AlertSink, NotTaken, NoticeSink};
pub use crate::config::alert::{QUIET_DEFAULT, RULE_NAME_BYTES_MAX, RULES_MAX, Rule, SPAN_MAX, When};

/// Most troubles of one rule at once, each of another caller, KEK, …; what comes beyond is one trouble, of [`OTHERS`]. As many are counted
/// at once: one more takes the place of the one that was seen the longest ago.
pub const SUBJECTS_MAX: usize = 1000;
/// Most nodes that one trouble is known of.
const NODES_MAX: usize = 1000;
/// A clock that is so much earlier than it was before was set back.
const SET_BACK: Duration = Duration::from_secs(10);
/// The subject of what is too many.
pub const OTHERS: &str = "others";
/// A usual rate is known after so many minutes.
pub const LEARNING_MINUTES: u64 = 60;

/// What somebody is to be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Notice {
    /// The name of the rule.
    pub rule: String,
    /// What it is a rule of: [`When::name`].
    pub when: &'static str,
    /// The trouble is over; else it begins.
    pub is_over: bool,
    /// Whose trouble it is: `caller eve`, `KEK tenants/1`. With the rule and `since` it tells one trouble from all others.
    pub subject: String,
    /// What happened, in words.
    pub what: String,
    /// When it began.
    pub since: Time,
    /// When this was noticed.
    pub time: Time,
    /// How often it was seen so far.
    pub count: u64,
    /// Where the trail has it that it was seen first: `web-1/17`, node and number of the line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
}

impl Notice {
    /// The same whenever the same is noticed, so that whoever gets it twice knows: rule, subject, when it began, `begin` or `over`.
    pub fn id(&self) -> String {
        self.id_of(self.is_over)
    }

    /// Of the notice that it begins, or that it is over.
    fn id_of(&self, is_over: bool) -> String {
        let what = if is_over { "over" } else { "begin" };
        format!("{}/{}/{}/{what}", self.rule, self.subject, self.since)
    }

    /// A line of JSON, its id in front, with a line break behind.
    pub fn json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct WithId<'a> {
            id: String,
            #[serde(flatten)]
            notice: &'a Notice,
        }
        // Texts and numbers alone: that does not fail.
        let mut line = serde_json::to_vec(&WithId { id: self.id(), notice: self }).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// A line for people.
impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, is_over, subject, what, since, count, event, .. } = self;
        match is_over {
            true => write!(f, "{rule}: {subject}: over (since {since}, seen {count} times): {what}")?,
            false => write!(f, "{rule}: {subject}: {what}")?,
        }
        event.iter().try_for_each(|event| write!(f, " ({event})"))
    }
}

/// A trouble that is not over.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Trouble {
    since: Time,
    last: Time,
    count: u64,
    what: String,
    event: Option<String>,
    /// Only quiet ends it.
    until_quiet: bool,
    /// Who says so, and has not said that it is over.
    nodes: BTreeSet<String>,
}

/// A KEK version that is not proved, and has not been for as long as a rule allows.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Waiting {
    /// Of each node, since when.
    nodes: BTreeMap<String, Time>,
    event: Option<String>,
}

/// Rules, and what troubles there are.
#[derive(Debug)]
pub struct Alerts {
    rules: Vec<Rule>,
    /// The latest time that was heard of: time never goes back here, whichever node's clock is behind, but with the clock of who follows.
    now: Time,
    /// By rule and subject.
    troubles: BTreeMap<(usize, String), Trouble>,
    /// What will be one when it lasts.
    waiting: BTreeMap<(usize, String), Waiting>,
    /// When the last one that lasted was over: what lasts began later, and has another id.
    lasted: Time,
    windows: BTreeMap<(usize, String), Window>,
    usual: BTreeMap<(usize, String), Usual>,
}

impl Alerts {
    /// Without any trouble.
    ///
    /// # Errors
    /// [`Error::Invalid`] when two rules have one name, or there are more than [`RULES_MAX`].
    pub fn new(rules: Vec<Rule>) -> Result<Self> {
        if rules.len() > RULES_MAX {
            return Err(Error::Invalid(format!("{} alerts, at most {RULES_MAX} are allowed", rules.len())));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = rules.iter().find(|rule| !names.insert(rule.name.as_str())) {
            return Err(Error::Invalid(format!("two alerts are named {}: give each a name of its own", twice.name)));
        }
        let (now, troubles, waiting, lasted, windows, usual) = Default::default();
        Ok(Self { rules, now, troubles, waiting, lasted, windows, usual })
    }

    /// The rules.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// A line of a node's trail, at the time that it says, or `now`, the wall clock's, where that is earlier: a node whose clock is ahead
    /// takes nobody along. Lines of several nodes may come as they are followed, late ones late.
    pub fn line(&mut self, now: Time, node: &str, line: &Line) -> Vec<Notice> {
        self.see(now, line.time.min(now), Seen::of_line(node, line))
    }

    /// A node's trail cannot be followed, or with `None` can again ([`Told::Held`](super::Told::Held),
    /// [`Told::GoesOn`](super::Told::GoesOn)): to the rules a trail that is broken.
    pub fn held(&mut self, now: Time, node: &str, why: Option<&str>) -> Vec<Notice> {
        self.see(now, now, vec![Seen::of_held(node, why)])
    }

    /// The nodes of which it was said last that they cannot be followed.
    fn held_nodes(&self) -> BTreeSet<String> {
        let held = |((_, subject), trouble): (&(usize, String), &Trouble)| {
            let node = seen::held_node(subject).filter(|_| trouble.nodes.contains(seen::FOLLOWER));
            node.map(str::to_owned)
        };
        self.troubles.iter().filter_map(held).collect()
    }

    /// An event of an engine.
    pub fn event(&mut self, now: Time, event: &Event) -> Vec<Notice> {
        self.see(now, now, Seen::of_event(event))
    }

    /// The leases of an engine, as they are now.
    pub fn leases(&mut self, now: Time, leases: &[LeaseStatus]) -> Vec<Notice> {
        self.see(now, now, leases.iter().map(|lease| Seen::of_lease(now, lease)).collect())
    }

    /// The workers of a token, as they are now.
    pub fn workers(&mut self, now: Time, token: &TokenName, workers: Workers) -> Vec<Notice> {
        self.see(now, now, vec![Seen::of_workers(token, workers)])
    }

    /// Time goes by: says what is over because nothing was seen of it any more.
    pub fn tick(&mut self, now: Time) -> Vec<Notice> {
        self.see(now, now, Vec::new())
    }

    /// What each rule would say, as a trouble begins and as it is over: to see that notices arrive where they should. Changes nothing.
    pub fn rehearse(&self, now: Time) -> Vec<Notice> {
        let of = |rule: &Rule| {
            [false, true].map(|is_over| Notice {
                rule: rule.name.clone(),
                when: rule.when.name(),
                is_over,
                subject: "rehearsal".into(),
                what: "this is a test, nothing has happened".into(),
                since: now,
                time: now,
                count: 1,
                event: None,
            })
        };
        self.rules.iter().flat_map(of).collect()
    }

    fn see(&mut self, wall: Time, now: Time, seen: Vec<Seen>) -> Vec<Notice> {
        // No time that was heard of is later than that clock was then.
        if since(self.now, wall) > SET_BACK {
            self.set_back(wall);
        }
        self.now = self.now.max(now);
        let mut notices = self.quiet();
        notices.extend(self.lasting());
        for seen in seen {
            if let Kind::Began(engine) | Kind::Ended(engine) = &seen.kind {
                let is_begin = matches!(seen.kind, Kind::Began(_));
                let is_gone = |says: &str| Engine::ends(engine.as_ref(), is_begin, &seen.node, says);
                notices.extend(self.gone(is_gone));
            }
            for rule in 0..self.rules.len() {
                notices.extend(self.judge(rule, &seen));
            }
        }
        notices
    }

    /// The clock of who follows was set back: what was later is of this moment, so that time goes by.
    fn set_back(&mut self, now: Time) {
        (self.now, self.lasted) = (now, self.lasted.min(now));
        self.troubles.values_mut().for_each(|trouble| trouble.last = trouble.last.min(now));
        let waiting = self.waiting.values_mut().flat_map(|waiting| waiting.nodes.values_mut());
        waiting.for_each(|since| *since = (*since).min(now));
        self.windows.values_mut().for_each(|window| window.set_back(now));
        self.usual.values_mut().for_each(|usual| usual.set_back(now));
    }

    /// What one rule says to what was seen.
    fn judge(&mut self, at: usize, seen: &Seen) -> Option<Notice> {
        let rule = self.rules.get(at)?;
        let (now, subject) = (self.now, seen.subject.clone());
        // Until quiet, or until it is said to be over.
        let (until_quiet, what) = match (&rule.when, &seen.kind) {
            (When::Stranger { callers }, Kind::Used { caller, operation }) => {
                if callers.iter().any(|pattern| pattern.covers(caller.as_deref())) {
                    return None;
                }
                (true, format!("{operation}, by a caller that is not on the list"))
            }
            (When::Forbidden { more_than, within }, Kind::Forbidden(times)) => {
                let (more_than, within) = (*more_than, *within);
                let count = window(&mut self.windows, at, &subject).count(now, within, *times);
                if count <= more_than {
                    return None;
                }
                (true, format!("refused more than {more_than} times in {}", humantime::format_duration(within)))
            }
            (When::Unwraps { more_than, within }, Kind::Unwrapped) => {
                let (more_than, within) = (*more_than, *within);
                let count = window(&mut self.windows, at, &subject).count(now, within, 1);
                if count <= more_than {
                    return None;
                }
                (true, format!("more than {more_than} unwraps in {}", humantime::format_duration(within)))
            }
            (When::UnusualUnwraps { times, at_least }, Kind::Unwrapped) => {
                let (times, at_least) = (*times, *at_least);
                let usual = window(&mut self.usual, at, &subject).count(now);
                let (count, mean) =
                    usual.filter(|(count, mean)| *count >= at_least && *count as f64 > f64::from(times) * mean)?;
                (true, format!("{count} unwraps in a minute, where {mean:.1} are usual"))
            }
            (When::Denied, Kind::Denied(what)) | (When::Lapsed, Kind::Lapsed(what)) => (false, what.clone()),
            (When::KekChanged, Kind::KekChanged(what)) => (false, what.clone()),
            (When::KekChanged, Kind::KekUnknown(what)) => (true, what.clone()),
            (When::TrailBroken, Kind::TrailBroken(what)) => (false, what.clone()),
            (When::WorkersSpent, Kind::WorkersSpent) => (false, "no worker is left: restart the process".into()),
            (When::StoreSilent, Kind::StoreSilent(what)) => (false, what.clone()),
            (When::SecretExpired, Kind::SecretExpired(what)) => (false, what.clone()),
            (When::NotProved { .. }, Kind::NotProvedSince(time)) => {
                let (time, key) = ((*time).max(self.lasted).min(now), known(&self.waiting, at, &subject));
                let event = seen.event.clone();
                let waiting = self.waiting.entry(key).or_insert_with(|| Waiting { nodes: BTreeMap::new(), event });
                if waiting.nodes.len() < NODES_MAX {
                    waiting.nodes.entry(seen.node.clone()).or_insert(time);
                }
                return None;
            }
            (When::NotProved { longer_than }, Kind::ProvedAgo(ago)) if ago > longer_than => {
                (false, format!("not proved for {} s", ago.as_secs()))
            }
            (When::NotProved { .. }, kind @ (Kind::ProvedAgo(_) | Kind::GivenUp)) => {
                self.waits_no_more(at, &subject, &seen.node);
                let is_proved = matches!(kind, Kind::ProvedAgo(_));
                let why = if is_proved { "it is proved again" } else { "nobody asks for it any more" };
                return self.over(at, &subject, &seen.node, why);
            }
            (When::Denied | When::Lapsed, Kind::Granted) => {
                return self.over(at, &subject, &seen.node, "the token grants again");
            }
            (When::KekChanged, Kind::Granted) => return self.over(at, &subject, &seen.node, "it is the KEK again"),
            (When::TrailBroken, Kind::TrailWhole(what)) => return self.over(at, &subject, &seen.node, what),
            (When::WorkersSpent, Kind::WorkersAlive) => {
                return self.over(at, &subject, &seen.node, "workers take calls");
            }
            (When::StoreSilent, Kind::StoreAnswers) => return self.over(at, &subject, &seen.node, "it answers again"),
            (When::SecretExpired, Kind::SecretRenewed(what)) => return self.over(at, &subject, &seen.node, what),
            _ => return None,
        };
        self.trouble((at, subject), now, until_quiet, what, seen.event.clone(), [seen.node.clone()].into())
    }

    /// A trouble is seen: told, if it is a new one.
    fn trouble(
        &mut self,
        (at, subject): (usize, String),
        since: Time,
        until_quiet: bool,
        what: String,
        event: Option<String>,
        nodes: BTreeSet<String>,
    ) -> Option<Notice> {
        let key = known(&self.troubles, at, &subject);
        if let Some(trouble) = self.troubles.get_mut(&key) {
            (trouble.last, trouble.count) = (self.now, trouble.count.saturating_add(1));
            let room = NODES_MAX.saturating_sub(trouble.nodes.len());
            trouble.nodes.extend(nodes.into_iter().take(room));
            return None;
        }
        let until_quiet = until_quiet || key.1 == OTHERS; // nothing else could end what is not told apart
        let (last, what_it_is) = (self.now, what.clone());
        let trouble = Trouble { since, last, count: 1, what: what_it_is, event, until_quiet, nodes };
        let notice = self.notice(&key, &trouble, false, what);
        self.troubles.insert(key, trouble);
        notice
    }

    /// A node says that a trouble is over: it is, if it was one, and no other node has it.
    fn over(&mut self, at: usize, subject: &str, node: &str, why: &str) -> Option<Notice> {
        let key = (at, subject.to_owned());
        let trouble = self.troubles.get_mut(&key)?;
        if !trouble.nodes.remove(node) || !trouble.nodes.is_empty() || trouble.until_quiet {
            return None;
        }
        self.end(&key, why)
    }

    /// A process that begins has none of the workers of the one before, and says anew what it does not prove or reach: what engines say that
    /// are gone is over.
    fn gone(&mut self, is_gone: impl Fn(&str) -> bool) -> Vec<Notice> {
        let rules = &self.rules;
        let is_of_process = |(at, _): &(usize, String)| {
            let when = rules.get(*at).map(|rule| &rule.when);
            matches!(when, Some(When::WorkersSpent | When::StoreSilent | When::NotProved { .. }))
        };
        self.waiting.retain(|key, waiting| {
            if is_of_process(key) {
                waiting.nodes.retain(|says, _| !is_gone(says));
            }
            !waiting.nodes.is_empty()
        });
        let mut gone = Vec::new();
        for (key, trouble) in self.troubles.iter().filter(|(key, _)| is_of_process(key)) {
            gone.extend(trouble.nodes.iter().filter(|says| is_gone(says)).map(|says| (key.clone(), says.clone())));
        }
        let over =
            |((at, subject), says): ((usize, String), String)| self.over(at, &subject, &says, "its process ended");
        gone.into_iter().filter_map(over).collect()
    }

    fn end(&mut self, key: &(usize, String), why: &str) -> Option<Notice> {
        let trouble = self.troubles.remove(key)?;
        let notice = self.notice(key, &trouble, true, why.to_owned());
        // The next one of it has another id, also where time stands still.
        self.now = self.now.max(Time::from_unix_ms(trouble.since.unix_ms().saturating_add(1)));
        if self.rules.get(key.0).is_some_and(|rule| matches!(rule.when, When::NotProved { .. })) {
            self.lasted = self.now;
        }
        notice
    }

    fn waits_no_more(&mut self, at: usize, subject: &str, node: &str) {
        let key = (at, subject.to_owned());
        if let Some(waiting) = self.waiting.get_mut(&key) {
            waiting.nodes.remove(node);
            if waiting.nodes.is_empty() {
                self.waiting.remove(&key);
            }
        }
    }

    /// What has lasted as long as its rule allows is a trouble.
    fn lasting(&mut self) -> Vec<Notice> {
        let (now, rules) = (self.now, &self.rules);
        let longer_than = |at: usize| match rules.get(at).map(|rule| &rule.when) {
            Some(When::NotProved { longer_than }) => *longer_than,
            _ => Duration::MAX,
        };
        let mut lasting = Vec::new();
        self.waiting.retain(|key, waiting| {
            let is_long = |time: &Time| since(now, *time) > longer_than(key.0);
            if let Some(first) = waiting.nodes.values().copied().filter(is_long).min() {
                let long: BTreeSet<_> =
                    waiting.nodes.iter().filter(|(_, time)| is_long(time)).map(|(node, _)| node.clone()).collect();
                waiting.nodes.retain(|node, _| !long.contains(node));
                lasting.push((key.clone(), first, long, waiting.event.clone()));
            }
            !waiting.nodes.is_empty()
        });
        let mut notices = Vec::new();
        for (key, first, nodes, event) in lasting {
            // Of the time since when, and not of this moment: noticed again it is the same.
            let what = format!("not proved for {} s", since(now, first).as_secs());
            notices.extend(self.trouble(key, first, false, what, event, nodes));
        }
        notices
    }

    /// What nothing was seen of for the quiet of its rule is over, and what nobody counts any more is forgotten.
    fn quiet(&mut self) -> Vec<Notice> {
        let now = self.now;
        let quiet_of = |at: usize| self.rules.get(at).map_or(QUIET_DEFAULT, |rule| rule.quiet);
        let is_over = |(at, _): &(usize, String), trouble: &Trouble| {
            trouble.until_quiet && since(now, trouble.last) >= quiet_of(*at)
        };
        let over: Vec<_> =
            self.troubles.iter().filter(|(key, trouble)| is_over(key, trouble)).map(|(key, _)| key.clone()).collect();
        let span_of = |at: usize| self.rules.get(at).map_or(SPAN_MAX, |rule| rule.when.within());
        self.windows.retain(|(at, _), window| since(now, window.last()) <= span_of(*at));
        self.usual.retain(|_, usual| !usual.is_idle(now));
        over.into_iter().filter_map(|key| self.end(&key, "nothing was seen of it since")).collect()
    }

    fn notice(
        &self,
        (at, subject): &(usize, String),
        trouble: &Trouble,
        is_over: bool,
        what: String,
    ) -> Option<Notice> {
        let Trouble { since, count, .. } = *trouble;
        let what = if is_over { format!("{what} ({})", trouble.what) } else { what };
        let (rule, subject) = (self.rules.get(*at)?, subject.clone());
        let (rule, when) = (rule.name.clone(), rule.when.name());
        Some(Notice { rule, when, is_over, subject, what, since, time: self.now, count, event: trouble.event.clone() })
    }
}

/// Its own, or where there are too many of its rule the one of all others.
fn known<T>(map: &BTreeMap<(usize, String), T>, at: usize, subject: &str) -> (usize, String) {
    let key = (at, subject.to_owned());
    let of_rule = || map.range((at, String::new())..(at + 1, String::new())).count();
    if map.contains_key(&key) || of_rule() < SUBJECTS_MAX { key } else { (at, OTHERS.to_owned()) }
}

/// That of this subject. Where there are too many it takes the place of the one that was seen the longest ago: counted together, many
/// who are no trouble would be one.
fn window<'a, T: Counts>(map: &'a mut BTreeMap<(usize, String), T>, at: usize, subject: &str) -> &'a mut T {
    let key = (at, subject.to_owned());
    if !map.contains_key(&key) {
        let of_rule = || map.range((at, String::new())..(at + 1, String::new()));
        if of_rule().count() >= SUBJECTS_MAX {
            let oldest = of_rule().min_by_key(|(_, counts)| counts.last()).map(|(key, _)| key.clone());
            oldest.map(|oldest| map.remove(&oldest));
        }
    }
    map.entry(key).or_default()
}

/// Time from `earlier` to `now`; zero where that is later.
fn since(now: Time, earlier: Time) -> Duration {
    Duration::from_millis(now.unix_ms().saturating_sub(earlier.unix_ms()))
}

#[cfg(test)]
mod tests;
