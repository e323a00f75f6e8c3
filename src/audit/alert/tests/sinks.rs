//! Where notices go, and what becomes of those that are not taken.

use super::*;
use crate::{
    audit::{AuditSink, Event as TrailEvent},
    clock::{Clock, ManualClock},
    name::NodeName,
};
use async_trait::async_trait;
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

/// Takes notices, or does not.
#[derive(Debug, Clone, Default)]
pub(super) struct Desk {
    pub(super) taken: Arc<Mutex<Vec<Notice>>>,
    is_closed: Arc<AtomicBool>,
}

#[async_trait]
impl NoticeSink for Desk {
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), NotTaken> {
        if self.is_closed.load(Ordering::SeqCst) {
            return Err("closed".to_owned().into());
        }
        self.taken.lock().unwrap().extend_from_slice(notices);
        Ok(())
    }
}

/// Takes those alone that are not of these subjects.
#[derive(Debug, Clone)]
pub(super) struct Picky {
    pub(super) taken: Arc<Mutex<Vec<Notice>>>,
    pub(super) refused: Arc<Mutex<Vec<&'static str>>>,
    how: NotTaken,
}

#[async_trait]
impl NoticeSink for Picky {
    async fn tell(&mut self, notices: &[Notice]) -> Result<(), NotTaken> {
        let refused = self.refused.lock().unwrap();
        if notices.iter().any(|notice| refused.iter().any(|word| notice.subject.contains(word))) {
            return Err(self.how.clone());
        }
        self.taken.lock().unwrap().extend_from_slice(notices);
        Ok(())
    }
}

impl Default for Picky {
    fn default() -> Self {
        Self { taken: Arc::default(), refused: Arc::default(), how: NotTaken::Unclear("not this one".into()) }
    }
}

#[tokio::test]
async fn a_notice_that_is_never_taken_holds_up_no_other_for_ever_and_is_said() {
    let stranger = || Rule::new("strangers", When::Stranger { callers: vec![Pattern::new("web-*").unwrap()] }).unwrap();
    let said_aside = Arc::new(Mutex::new(Vec::new()));
    let sink_to = |desk: &Picky, clock: &ManualClock| {
        let said = said_aside.clone();
        let sink = AlertSink::new(Alerts::new(vec![stranger()]).unwrap(), desk.clone());
        sink.on_untaken(move |why| said.lock().unwrap().push(why.to_owned()))
            .clock(Clock::Manual(clock.with_wall(1_800_000_000)))
    };
    let clock = ManualClock::default;
    let eve = [event(0, 0, "SecretGet", &by("eve"))];
    let both = [event(0, 0, "SecretGet", &by("eve")), event(1, 0, "SecretGet", &by("tom"))];

    // With others: at once. It comes when it can, and what is over not before.
    let (desk, time) = (Picky::default(), clock());
    desk.refused.lock().unwrap().push("eve");
    let mut sink = sink_to(&desk, &time);
    sink.deliver(&both).await.unwrap();
    assert_eq!((said(&desk.taken.lock().unwrap()), sink.untaken()), (vec!["+caller tom".to_owned()], 1));
    assert!(
        said_aside.lock().unwrap()[0].contains("not this one") && said_aside.lock().unwrap()[0].contains("caller eve")
    );
    desk.refused.lock().unwrap().clear();
    sink.tick(at(30 * MINUTE)).await.unwrap();
    sink.tick(at(30 * MINUTE)).await.unwrap();
    assert_eq!(said(&desk.taken.lock().unwrap()), ["+caller tom", "-caller tom"], "not before its time");
    time.advance(11 * 60 * Duration::from_secs(1));
    sink.tick(at(31 * MINUTE)).await.unwrap();
    assert_eq!(said(&desk.taken.lock().unwrap())[2..], ["+caller eve", "-caller eve"]);
    assert_eq!(sink.untaken(), 0);

    // For good: at once. Alone: after an hour. Never taken: given up after a day.
    for (how, minutes) in [(NotTaken::ForGood("never".into()), 0), (NotTaken::Unclear("not now".into()), 61)] {
        let (desk, time) = (Picky { how, ..Picky::default() }, clock());
        desk.refused.lock().unwrap().push("eve");
        let mut sink = sink_to(&desk, &time);
        if minutes > 0 {
            sink.deliver(&eve).await.unwrap_err();
            time.advance(minutes * Duration::from_secs(60));
        }
        sink.deliver(&eve).await.unwrap();
        sink.deliver(&[event(1, 0, "SecretGet", &by("tom"))]).await.unwrap();
        assert_eq!(said(&desk.taken.lock().unwrap()), ["+caller tom"]);
        time.advance(25 * 60 * Duration::from_secs(60));
        sink.tick(at(0)).await.unwrap();
        assert!(said_aside.lock().unwrap().last().unwrap().contains("given up"));
        assert_eq!(sink.untaken(), 1);
    }

    // Away: nothing is set aside, however long.
    let (desk, time) = (Picky { how: NotTaken::Away("away".into()), ..Picky::default() }, clock());
    desk.refused.lock().unwrap().push("eve");
    let mut sink = sink_to(&desk, &time);
    for _ in 0..3 {
        sink.deliver(&both).await.unwrap_err();
        time.advance(90 * Duration::from_secs(60));
    }
    assert_eq!(sink.untaken(), 0);
}

pub(super) fn event(seq: u64, ms: u64, operation: &str, more: &str) -> TrailEvent {
    let line = Line { seq, ..line(ms, operation, more) };
    TrailEvent { node: NodeName::new("web-1").unwrap(), seq, time: line.time, line: line.encode().unwrap() }
}

#[tokio::test]
async fn a_notice_that_was_not_taken_is_owed_and_events_that_come_again_are_counted_once() {
    let desk = Desk::default();
    let rule = Rule::new("refused", When::Forbidden { more_than: 2, within: Duration::from_secs(60) }).unwrap();
    let stranger = Rule::new("strangers", When::Stranger { callers: vec![Pattern::new("web-*").unwrap()] }).unwrap();
    let mut sink = AlertSink::new(Alerts::new(vec![rule, stranger]).unwrap(), desk.clone());
    let batch = [event(0, 0, "Forbidden", &by("eve")), event(1, 1, "SecretGet", &by("eve"))];
    desk.is_closed.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(sink.deliver(&batch).await, Err("closed".into()), "not acknowledged");
    }
    desk.is_closed.store(false, Ordering::SeqCst);
    sink.deliver(&batch).await.unwrap();
    assert_eq!(said(&desk.taken.lock().unwrap()), ["+caller eve"], "the stranger; one refusal is no trouble");
    // While events come, the wall clock says nothing: they are of a trail that is behind.
    sink.tick(at(60 * MINUTE)).await.unwrap();
    assert_eq!(desk.taken.lock().unwrap().len(), 1);
    sink.tick(at(60 * MINUTE)).await.unwrap();
    let taken = desk.taken.lock().unwrap().clone();
    assert_eq!(said(&taken), ["+caller eve", "-caller eve"]);
    let ids: BTreeSet<_> = taken.iter().map(Notice::id).collect();
    assert_eq!(ids.len(), 2);
    let json: serde_json::Value = serde_json::from_slice(&taken[0].json()).unwrap();
    assert_eq!((json["rule"].as_str(), json["event"].as_str()), (Some("strangers"), Some("web-1/1")));
    assert!(taken[0].json().starts_with(b"{\"id\":\"strangers/caller eve/"));
}

#[tokio::test]
async fn of_nodes_whose_clocks_are_behind_time_goes_by_while_events_come() {
    let desk = Desk::default();
    let stranger = Rule::new("strangers", When::Stranger { callers: vec![Pattern::new("web-*").unwrap()] }).unwrap();
    let mut sink = AlertSink::new(Alerts::new(vec![stranger]).unwrap(), desk.clone());
    sink.tick(at(60 * MINUTE)).await.unwrap();
    sink.deliver(&[event(0, 0, "SecretGet", &by("eve"))]).await.unwrap();
    for minute in 61..=70 {
        sink.deliver(&[event(minute, minute - 60, "SecretGet", &by("web-1"))]).await.unwrap();
        sink.tick(at(minute * MINUTE)).await.unwrap();
    }
    assert_eq!(said(&desk.taken.lock().unwrap()), ["+caller eve", "-caller eve"]);
    // What waits for a sink that is away is not of the time when it is back.
    desk.is_closed.store(true, Ordering::SeqCst);
    let eve = [event(80, 71 * MINUTE, "SecretGet", &by("eve"))];
    sink.deliver(&eve).await.unwrap_err();
    sink.tick(at(100 * MINUTE)).await.unwrap_err();
    sink.tick(at(100 * MINUTE)).await.unwrap_err();
    desk.is_closed.store(false, Ordering::SeqCst);
    sink.deliver(&eve).await.unwrap();
    sink.deliver(&[event(81, 72 * MINUTE, "SecretGet", &by("eve"))]).await.unwrap();
    assert_eq!(said(&desk.taken.lock().unwrap())[2..], ["+caller eve"], "one trouble");
}
