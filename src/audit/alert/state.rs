//! What rules and their sink know, as text that is kept with the cursor: a process that begins anew goes on where the one before ended,
//! wherever that was.

use super::{Alerts, Notice, Trouble, Usual, Waiting, Window};
use crate::{audit::line::Time, config::alert::kind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the text says that it is.
const FORM: &str = "keyleash.alerts.v1";
/// Longest text. Where it would be longer, rates are left out, and counted anew.
pub(super) const STATE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What is known.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    /// Up to where the rules have seen each node.
    pub(super) seen: BTreeMap<String, u64>,
    lasted: Time,
    troubles: Vec<Of<Trouble>>,
    waiting: Vec<Of<Waiting>>,
    windows: Vec<Of<Window>>,
    usual: Vec<Of<Usual>>,
    pub(super) owed: Vec<Kept>,
    pub(super) aside: Vec<KeptAside>,
    /// Since when none of what is owed is taken.
    pub(super) failing: Option<Time>,
}

/// By a rule's place and a subject.
type Subjects<T> = BTreeMap<(usize, String), T>;

/// Of a rule and a subject.
#[derive(Debug, Serialize, Deserialize)]
struct Of<T> {
    rule: String,
    when: String,
    subject: String,
    is: T,
}

/// A [`Notice`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    rule: String,
    when: String,
    is_over: bool,
    subject: String,
    what: String,
    since: Time,
    time: Time,
    count: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event: Option<String>,
}

/// One that is set aside.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeptAside {
    pub(super) notice: Kept,
    pub(super) since: Time,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    alerts: String,
    now: Time,
    known: Known,
}

impl From<&Notice> for Kept {
    fn from(notice: &Notice) -> Self {
        let Notice { rule, when, is_over, subject, what, since, time, count, event } = notice.clone();
        Self { rule, when: when.to_owned(), is_over, subject, what, since, time, count, event }
    }
}

impl Kept {
    /// `None` where it is of a rule that this version has none of.
    pub(super) fn notice(self) -> Option<Notice> {
        let Self { rule, when, is_over, subject, what, since, time, count, event } = self;
        Some(Notice { rule, when: kind(&when)?, is_over, subject, what, since, time, count, event })
    }
}

impl Known {
    /// As text; what is known and the time until which it is. `None` where it is too long, also without rates.
    pub(super) fn text(&mut self) -> Option<String> {
        // Texts and numbers alone: that does not fail.
        let text = |known: &Self| serde_json::to_string(known).ok().filter(|text| text.len() <= STATE_BYTES_MAX);
        text(self).or_else(|| {
            tracing::warn!(
                "what alerts know has more than {STATE_BYTES_MAX} bytes: rates are counted anew after a restart"
            );
            (self.windows, self.usual) = Default::default();
            text(self)
        })
    }

    /// The whole, with the time.
    pub(super) fn whole(known: &str, now: Time) -> String {
        format!(r#"{{"alerts":"{FORM}","now":"{now}","known":{known}}}"#)
    }

    pub(super) fn parse(text: &str) -> Option<(Self, Time)> {
        let text: Text = serde_json::from_str(text).ok()?;
        (text.alerts == FORM).then_some((text.known, text.now))
    }
}

impl Alerts {
    pub(super) fn known(&self) -> Known {
        Known {
            lasted: self.lasted,
            troubles: self.of(&self.troubles),
            waiting: self.of(&self.waiting),
            windows: self.of(&self.windows),
            usual: self.of(&self.usual),
            ..Known::default()
        }
    }

    fn of<T: Clone>(&self, map: &Subjects<T>) -> Vec<Of<T>> {
        let of = |((at, subject), is): (&(usize, String), &T)| {
            let rule = self.rules.get(*at)?;
            let (rule, when) = (rule.name.clone(), rule.when.name().to_owned());
            Some(Of { rule, when, subject: subject.clone(), is: is.clone() })
        };
        map.iter().filter_map(of).collect()
    }

    /// Takes up what was known. Of troubles whose rule is gone it gives that they are over: nothing else could end them.
    pub(super) fn take_up(&mut self, known: &mut Known, now: Time) -> Vec<Notice> {
        (self.now, self.lasted) = (now, known.lasted);
        let rules = &self.rules;
        let place = |rule: &str, when: &str| rules.iter().position(|it| it.name == rule && it.when.name() == when);
        fn put<T>(from: Vec<Of<T>>, place: impl Fn(&str, &str) -> Option<usize>) -> (Subjects<T>, Vec<Of<T>>) {
            let (mut map, mut left) = (BTreeMap::new(), Vec::new());
            for of in from {
                match place(&of.rule, &of.when) {
                    Some(at) => drop(map.insert((at, of.subject), of.is)),
                    None => left.push(of),
                }
            }
            (map, left)
        }
        let (troubles, gone) = put(std::mem::take(&mut known.troubles), place);
        let (waiting, _) = put(std::mem::take(&mut known.waiting), place);
        let (windows, _) = put(std::mem::take(&mut known.windows), place);
        let (usual, _) = put(std::mem::take(&mut known.usual), place);
        (self.troubles, self.waiting, self.windows, self.usual) = (troubles, waiting, windows, usual);
        let over = |Of { rule, when, subject, is: Trouble { since, count, what, event, .. } }: Of<Trouble>| {
            let what = format!("its rule is not in the configuration any more ({what})");
            Kept { rule, when, is_over: true, subject, what, since, time: now, count, event }.notice()
        };
        gone.into_iter().filter_map(over).collect()
    }
}
