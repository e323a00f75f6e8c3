//! What is kept with the cursor, and taken up by whoever comes next.

use super::{
    super::state::{Known, STATE_BYTES_MAX},
    sinks::{Desk, Picky, event},
    *,
};
use crate::{
    audit::AuditSink,
    clock::{Clock, ManualClock},
    name::NodeName,
};
use std::sync::{Arc, Mutex};

/// As it is after a restart.
fn restarted(alerts: &Alerts) -> Alerts {
    let mut known = alerts.known();
    let text = Known::whole(&known.text().unwrap(), alerts.now);
    let (mut known, now) = Known::parse(&text).unwrap();
    let mut anew = Alerts::new(alerts.rules().to_vec()).unwrap();
    assert_eq!(anew.take_up(&mut known, now), []);
    anew
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn a_process_that_begins_anew_wherever_the_one_before_ended_says_what_that_one_would_have_said(
        steps in prop::collection::vec((anything(), prop::bool::weighted(0.05)), 1..500)
    ) {
        let mut alerts = Alerts::new(every_rule()).unwrap();
        let (mut anew, mut wall, mut its) = (Alerts::new(every_rule()).unwrap(), 0, 0);
        for (one, restarts) in steps {
            if restarts {
                anew = restarted(&anew);
            }
            prop_assert_eq!(step(&mut alerts, &mut wall, one), step(&mut anew, &mut its, one));
        }
    }
}

#[test]
fn what_is_usual_is_known_after_a_restart() {
    let mut alerts = alerts(When::UnusualUnwraps { times: 5, at_least: 10 });
    let unwrap = |alerts: &mut Alerts, ms| {
        said(&alerts.line(at(YEAR), "n", &line(ms, "KeyUnwrap", r#","result":"done","kek":"k""#)))
    };
    for minute in 0..LEARNING_MINUTES + 1 {
        alerts = restarted(&alerts);
        assert_eq!(unwrap(&mut alerts, minute * MINUTE), [""; 0]);
    }
    let burst: Vec<_> = (0..20).flat_map(|ms| unwrap(&mut alerts, 100 * MINUTE + ms)).collect();
    assert_eq!(burst, ["+KEK k"]);
}

fn rules(rules: &[(&str, When)]) -> Alerts {
    let rule = |(name, when): &(&str, When)| Rule::new(*name, when.clone()).unwrap();
    Alerts::new(rules.iter().map(rule).collect()).unwrap()
}

fn stranger() -> When {
    When::Stranger { callers: vec![Pattern::new("web-*").unwrap()] }
}

fn nodes(next: u64) -> BTreeMap<NodeName, u64> {
    [(NodeName::new("web-1").unwrap(), next)].into()
}

#[tokio::test]
async fn notices_that_were_not_taken_are_the_next_ones_with_their_ages() {
    let time = ManualClock::default().with_wall(1_800_000_000);
    let sink = |desk: &Picky| {
        AlertSink::new(rules(&[("strangers", stranger())]), desk.clone()).clock(Clock::Manual(time.clone()))
    };
    let desk = Picky::default();
    desk.refused.lock().unwrap().push("eve");
    let mut first = sink(&desk);
    first.deliver(&[event(0, 0, "SecretGet", &by("eve")), event(1, 0, "SecretGet", &by("tom"))]).await.unwrap();
    let aside = first.state().unwrap().unwrap();
    assert_eq!((first.untaken(), first.state()), (1, Ok(None)), "nothing has changed");
    first.tick(at(0)).await.unwrap();
    assert_eq!(first.state(), Ok(None), "nor when time goes by");

    // What waits alone is set aside after an hour of them all, and what is set aside given up after a day.
    let mut alone = sink(&desk);
    alone.deliver(&[event(0, 0, "SecretGet", &by("eve"))]).await.unwrap_err();
    let mut owed = alone.state().unwrap().unwrap();
    for _ in 0..4 {
        time.advance(20 * Duration::from_secs(60));
        let mut next = sink(&desk);
        next.take_up(&owed, &nodes(0)).unwrap();
        let _ = next.deliver(&[event(0, 0, "SecretGet", &by("eve"))]).await;
        owed = next.state().unwrap().unwrap_or(owed);
    }
    let mut next = sink(&desk);
    next.take_up(&owed, &nodes(0)).unwrap();
    assert_eq!(next.untaken(), 1, "set aside by one of them");

    let mut last = sink(&desk);
    last.take_up(&aside, &nodes(2)).unwrap();
    time.advance(25 * 60 * Duration::from_secs(60));
    let said_aside = Arc::new(Mutex::new(Vec::new()));
    let hears = said_aside.clone();
    let mut given_up = sink(&desk).on_untaken(move |why| hears.lock().unwrap().push(why.to_owned()));
    given_up.take_up(&aside, &nodes(2)).unwrap();
    given_up.idle().await.unwrap();
    assert!(said_aside.lock().unwrap()[0].contains("given up: not this one"));

    // Taken by the next one, at once, before the end of its trouble.
    desk.refused.lock().unwrap().clear();
    desk.taken.lock().unwrap().clear();
    last.idle().await.unwrap();
    last.idle().await.unwrap();
    assert_eq!(said(&desk.taken.lock().unwrap())[..1], ["+caller eve"]);
    assert_eq!(last.untaken(), 0);
}

#[tokio::test]
async fn who_follows_again_owes_each_notice_once_and_gives_all_that_it_knows_to_be_kept() {
    let desk = Picky::default();
    desk.refused.lock().unwrap().extend(["eve", "tom"]);
    let mut sink = AlertSink::new(rules(&[("strangers", stranger())]), desk.clone());
    let events = [event(0, 0, "SecretGet", &by("eve")), event(1, 0, "SecretGet", &by("tom"))];
    sink.deliver(&events[..1]).await.unwrap_err();
    let first = sink.state().unwrap().unwrap();
    sink.deliver(&events).await.unwrap_err();
    let second = sink.state().unwrap().unwrap();
    // The second was not written: its events are brought again, and it is asked for again.
    sink.take_up(&first, &nodes(0)).unwrap();
    sink.deliver(&events).await.unwrap_err();
    assert_eq!(sink.state().unwrap(), Some(second.clone()));
    sink.take_up(&second, &nodes(0)).unwrap();
    desk.refused.lock().unwrap().clear();
    sink.deliver(&events).await.unwrap();
    assert_eq!(said(&desk.taken.lock().unwrap()), ["+caller eve", "+caller tom"]);
}

#[tokio::test]
async fn a_trouble_whose_rule_is_gone_is_over_and_a_node_that_is_followed_again_too() {
    let desk = Desk::default();
    let both = || rules(&[("broken", When::TrailBroken), ("strangers", stranger())]);
    let mut first = AlertSink::new(both(), desk.clone());
    first.held(&[(NodeName::new("web-1").unwrap(), "it is gone".to_owned())].into());
    first.deliver(&[event(0, 0, "SecretGet", &by("eve"))]).await.unwrap();
    let state = first.state().unwrap().unwrap();
    assert_eq!(said(&desk.taken.lock().unwrap()), ["+trail of web-1", "+caller eve"]);
    desk.taken.lock().unwrap().clear();

    let mut next = AlertSink::new(rules(&[("broken", When::TrailBroken), ("strangers", When::Denied)]), desk.clone());
    next.take_up(&state, &nodes(1)).unwrap();
    next.held(&BTreeMap::new());
    next.idle().await.unwrap();
    let taken = desk.taken.lock().unwrap().clone();
    assert_eq!(said(&taken), ["-caller eve", "-trail of web-1"]);
    assert!(taken[0].what.starts_with("its rule is not in the configuration any more"), "{taken:?}");
}

#[test]
fn what_is_none_of_its_own_or_of_another_moment_is_refused() {
    let desk = Desk::default();
    let sink = || AlertSink::new(rules(&[("strangers", stranger())]), desk.clone());
    let state = sink().state().unwrap().unwrap();
    sink().take_up(&state, &BTreeMap::new()).unwrap();
    let newer = sink().take_up(&state, &nodes(7)).unwrap_err();
    assert!(newer.contains("lines 0 to 6 of node web-1"), "{newer}");
    for at in 0..state.len() {
        let _ = sink().take_up(&state[..at], &nodes(0)).unwrap_err();
    }
    for (from, to) in [
        ("alerts.v1", "alerts.v2"),
        ("\"owed\":[]", "\"owed\":[],\"more\":1"),
        ("\"lasted\":\"1970", "\"lasted\":\"70"),
    ] {
        assert!(state.contains(from), "{state}");
        let _ = sink().take_up(&state.replace(from, to), &nodes(0)).unwrap_err();
    }
}

#[test]
fn what_is_kept_is_bounded_and_rates_go_first() {
    let refused = When::Forbidden { more_than: 1, within: Duration::from_secs(60) };
    let mut alerts = rules(&[("refused", refused), ("strangers", stranger())]);
    alerts.line(at(YEAR), "n", &line(0, "SecretGet", &by("eve")));
    for n in 0..100 {
        let caller = format!("tom-{n}-{}", "x".repeat(STATE_BYTES_MAX / 100));
        window(&mut alerts.windows, 0, &caller).count(at(0), Duration::from_secs(60), 1);
    }
    let text = alerts.known().text().unwrap();
    assert!(text.len() < STATE_BYTES_MAX && text.contains("caller eve") && !text.contains("tom"), "{}", text.len());
}
