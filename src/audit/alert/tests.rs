//! Rules on what is seen, at times that the test says.

use super::*;
use crate::{
    access::Pattern,
    lease::{Change, Phase},
    name::{KekName, KekVersion},
    token::KekId,
};
use proptest::prelude::*;

mod sinks;
mod state;

const MINUTE: u64 = 60_000;
/// Later than all that is seen.
const YEAR: u64 = 365 * 24 * 60 * MINUTE;

fn at(ms: u64) -> Time {
    Time::from_unix_ms(1_700_000_000_000 + ms)
}

fn alerts(when: When) -> Alerts {
    Alerts::new(vec![Rule::new("rule", when).unwrap()]).unwrap()
}

fn line(ms: u64, operation: &str, more: &str) -> Line {
    let text = format!(r#"{{"seq":7,"time":"{}","category":"AuditEvent","operation":"{operation}"{more}}}"#, at(ms));
    Line::parse(text.as_bytes()).unwrap()
}

fn kek() -> KekVersion {
    KekVersion::new(KekName::new("tenants").unwrap(), 1)
}

fn lease(change: Change) -> Event {
    Event::Lease { kek: kek(), change, trouble: None }
}

/// What was said, in short: `+` as it begins, `-` as it is over.
fn said(notices: &[Notice]) -> Vec<String> {
    notices.iter().map(|notice| format!("{}{}", if notice.is_over { '-' } else { '+' }, notice.subject)).collect()
}

const DONE: &str = r#","result":"done""#;

fn by(caller: &str) -> String {
    format!(r#"{DONE},"caller":"{caller}""#)
}

#[test]
fn a_stranger_is_told_once_and_over_after_quiet_and_whoever_is_on_the_list_never() {
    let mut alerts = alerts(When::Stranger { callers: vec![Pattern::new("web-*").unwrap()] });
    for operation in ["AccountOpen", "SecretGet", "KeyUnwrap", "KekCreate"] {
        assert_eq!(alerts.line(at(YEAR), "n", &line(0, operation, &by("web-1"))), []);
    }
    let first = alerts.line(at(YEAR), "n", &line(1, "SecretGet", &by("eve")));
    assert_eq!(said(&first), ["+caller eve"]);
    assert_eq!((first[0].event.as_deref(), first[0].since), (Some("n/7"), at(1)));
    assert_eq!(alerts.line(at(YEAR), "n", &line(9 * MINUTE, "AccountOpen", &by("eve"))), [], "the same trouble");
    assert_eq!(said(&alerts.line(at(YEAR), "n", &line(9 * MINUTE, "AccountOpen", DONE))), ["+a caller without a name"]);
    assert_eq!(alerts.tick(at(19 * MINUTE - 1)), [], "nine minutes and a bit since the last");
    let over = alerts.tick(at(19 * MINUTE));
    assert_eq!(said(&over), ["-a caller without a name", "-caller eve"]);
    assert_eq!((over[1].count, over[1].since), (2, at(1)));
    assert_eq!(
        said(&alerts.line(at(YEAR), "n", &line(20 * MINUTE, "SecretGet", &by("eve")))),
        ["+caller eve"],
        "a new one"
    );
}

#[test]
fn what_was_not_done_or_is_the_engines_own_is_no_use_of_a_key() {
    let mut alerts = alerts(When::Stranger { callers: vec![Pattern::new("web-*").unwrap()] });
    for (operation, more) in [
        ("AccountOpen", r#","result":"failed","caller":"eve""#),
        ("SecretGet", r#","result":"asked","caller":"eve""#),
        ("KeyUnwrap", DONE),
        ("Blocks", r#","result":"done","caller":"eve","sealed":0,"opened":0,"forbidden":4"#),
        ("GrantAdded", r#","result":"done","caller":"eve""#),
    ] {
        assert_eq!(alerts.line(at(YEAR), "n", &line(0, operation, more)), [], "{operation}");
    }
    let blocks = r#","result":"done","caller":"eve","sealed":0,"opened":1"#;
    assert_eq!(said(&alerts.line(at(YEAR), "n", &line(0, "Blocks", blocks))), ["+caller eve"]);
}

#[test]
fn a_denial_is_one_trouble_whether_the_trail_or_the_engine_tells_it_first_and_over_with_a_grant() {
    let of_kek = r#","kek":"tenants","kek_version":1,"code":"CKR_KEY_FUNCTION_NOT_PERMITTED""#;
    let mut alerts = alerts(When::Denied);
    let told = alerts.line(at(YEAR), "n", &line(0, "Denied", of_kek));
    assert_eq!(told[0].to_string(), "rule: KEK tenants/1: denied: CKR_KEY_FUNCTION_NOT_PERMITTED (n/7)");
    assert_eq!(alerts.event(at(1), &lease(Change::Denied)), []);
    assert_eq!(alerts.event(at(2), &lease(Change::Lapsed)), [], "not of this rule");
    assert_eq!(alerts.tick(at(100 * MINUTE)), [], "quiet is no grant");
    assert_eq!(alerts.event(at(100 * MINUTE), &lease(Change::Resuming)), [], "the node has not said so");
    assert_eq!(said(&alerts.line(at(YEAR), "n", &line(100 * MINUTE, "Resuming", of_kek))), ["-KEK tenants/1"]);
    assert_eq!(alerts.line(at(YEAR), "n", &line(100 * MINUTE, "Resumed", of_kek)), [], "it was over");
    assert_eq!(said(&alerts.event(at(101 * MINUTE), &lease(Change::Denied))), ["+KEK tenants/1"]);
}

#[test]
fn so_many_refusals_in_a_minute_are_no_trouble_and_one_more_is() {
    let mut alerts = alerts(When::Forbidden { more_than: 3, within: Duration::from_secs(60) });
    let refused = |ms| line(ms, "Forbidden", r#","result":"failed","caller":"eve","asked":"KekCreate""#);
    for ms in [0, 10_000, 20_000] {
        assert_eq!(alerts.line(at(YEAR), "n", &refused(ms)), []);
    }
    assert_eq!(alerts.line(at(YEAR), "n", &refused(61_000)), [], "the first is a minute ago");
    assert_eq!(alerts.line(at(YEAR), "n", &line(61_500, "Forbidden", r#","caller":"bob""#)), [], "another caller");
    assert_eq!(said(&alerts.line(at(YEAR), "n", &refused(62_000))), ["+caller eve"]);
    // Those of a handle are in its sums, and in the line of the first of them not once more.
    let of_handle = line(0, "Forbidden", r#","caller":"tom","asked":"Blocks""#);
    assert_eq!(alerts.line(at(YEAR), "n", &of_handle), []);
    assert_eq!(
        alerts.line(at(YEAR), "n", &line(62_000, "Blocks", r#","result":"done","caller":"tom","forbidden":3"#)),
        []
    );
    let one = line(62_000, "Blocks", r#","result":"done","caller":"tom","forbidden":1"#);
    assert_eq!(said(&alerts.line(at(YEAR), "n", &one)), ["+caller tom"]);
}

#[test]
fn unwraps_far_from_their_usual_rate_are_told_once_that_is_known() {
    let mut alerts = alerts(When::UnusualUnwraps { times: 5, at_least: 20 });
    let mut unwrap =
        |ms| said(&alerts.line(at(YEAR), "n", &line(ms, "KeyUnwrap", r#","result":"done","kek":"tenants""#)));
    assert!((0..100).all(|n| unwrap(n).is_empty()), "nothing is usual yet");
    for minute in 1..=120 {
        assert!((0..10).all(|n| unwrap(minute * MINUTE + n).is_empty()), "ten a minute");
    }
    let storm: Vec<_> = (0..100).map(|n| unwrap(121 * MINUTE + n)).collect();
    let first = storm.iter().position(|said| !said.is_empty()).unwrap();
    assert!((50..60).contains(&first), "told at {first}");
    assert_eq!(storm.concat(), ["+KEK tenants"], "once");
    assert_eq!(said(&alerts.tick(at(140 * MINUTE))), ["-KEK tenants"]);
}

#[test]
fn unwraps_above_a_rate_are_told_by_kek() {
    let mut alerts = alerts(When::Unwraps { more_than: 2, within: Duration::from_secs(1) });
    let mut unwrap = |ms, kek| said(&alerts.line(at(YEAR), "n", &line(ms, "KeyUnwrap", &format!(r#","kek":"{kek}""#))));
    assert!(unwrap(0, "a").is_empty() && unwrap(1, "a").is_empty() && unwrap(2, "b").is_empty());
    assert_eq!(unwrap(3, "a"), ["+KEK a"]);
}

#[test]
fn keys_of_a_token_that_changed_are_told_and_over_once_the_kek_is_back() {
    let mut alerts = alerts(When::KekChanged);
    assert_eq!(said(&alerts.event(at(0), &Event::KekReplaced { kek: kek() })), ["+KEK tenants/1"]);
    assert_eq!(alerts.event(at(1), &Event::KekMissing { kek: kek(), current: true }), []);
    assert_eq!(said(&alerts.event(at(2), &Event::KekBack { kek: kek() })), ["-KEK tenants/1"]);
    let (token, id, label) = (TokenName::default(), KekId::new(vec![7]).unwrap(), "x".into());
    assert_eq!(said(&alerts.event(at(3), &Event::KekUnknown { token, id, label })), ["+token default, CKA_ID 07"]);
}

#[test]
fn a_broken_trail_spent_workers_and_missing_proofs_are_told_and_over_when_they_are() {
    let rules = [
        ("trail", When::TrailBroken),
        ("workers", When::WorkersSpent),
        ("proofs", When::NotProved { longer_than: Duration::from_secs(60) }),
    ];
    let rules = rules.map(|(name, when)| Rule::new(name, when).unwrap());
    let mut alerts = Alerts::new(rules.into()).unwrap();
    assert_eq!(
        said(&alerts.line(at(YEAR), "web-1", &line(0, "TrailBroken", r#","reason":"disk full""#))),
        ["+trail of web-1"]
    );
    let whole = alerts.line(at(YEAR), "web-1", &line(1, "TrailResumed", r#","dropped":4"#));
    assert!(whole[0].is_over && whole[0].what.contains("4 records were lost"), "{whole:?}");
    let token = TokenName::default();
    let workers = |alive| Workers { alive, hung: 2, hung_max: 2 };
    assert_eq!(
        said(&alerts.event(at(2), &Event::WorkerLost { token: token.clone(), workers: workers(0) })),
        ["+token default"]
    );
    assert_eq!(alerts.workers(at(3), &token, workers(0)), []);
    assert_eq!(said(&alerts.workers(at(4), &token, workers(1))), ["-token default"]);
    let lease = |proved_s| LeaseStatus {
        kek: kek(),
        token: token.clone(),
        on_standby: None,
        phase: Phase::Active,
        proved_ago: Some(Duration::from_secs(proved_s)),
        fresh_ago: None,
        ends_in: Duration::ZERO,
        filled_slots: 0,
        wanted_slots: 0,
        trouble: None,
    };
    assert_eq!(alerts.leases(at(5), &[lease(60)]), []);
    assert_eq!(said(&alerts.leases(at(6), &[lease(61)])), ["+KEK tenants/1"]);
    assert_eq!(alerts.leases(at(7), &[lease(76)]), []);
    assert_eq!(said(&alerts.leases(at(8), &[lease(3)])), ["-KEK tenants/1"]);
    // Never: nobody tried, and then it was tried in vain.
    let never = |trouble: Option<&str>| LeaseStatus { proved_ago: None, trouble: trouble.map(Into::into), ..lease(0) };
    assert_eq!(alerts.leases(at(9), &[never(None)]), []);
    assert_eq!(alerts.leases(at(10), &[never(Some("silent"))]), []);
    assert_eq!(alerts.leases(at(10 + MINUTE), &[never(Some("silent"))]), []);
    assert_eq!(said(&alerts.leases(at(11 + MINUTE), &[never(Some("silent"))])), ["+KEK tenants/1"]);
    assert_eq!(said(&alerts.leases(at(12 + MINUTE), &[lease(0)])), ["-KEK tenants/1"]);
}

#[test]
fn however_many_callers_come_what_is_remembered_has_a_bound_and_those_beyond_are_one_trouble() {
    let mut alerts = alerts(When::Stranger { callers: vec![Pattern::new("web-*").unwrap()] });
    let mut told = 0;
    for n in 0..SUBJECTS_MAX + 500 {
        told += alerts.line(at(YEAR), "n", &line(0, "SecretGet", &by(&format!("eve-{n}")))).len();
    }
    assert_eq!((told, alerts.troubles.len()), (SUBJECTS_MAX + 1, SUBJECTS_MAX + 1));
    assert_eq!(alerts.tick(at(10 * MINUTE)).len(), SUBJECTS_MAX + 1, "all over");
    assert!(alerts.troubles.is_empty());
}

#[test]
fn what_is_not_told_apart_is_over_by_quiet_alone() {
    let mut alerts = alerts(When::Denied);
    let denied = |version| Event::Lease {
        kek: KekVersion::new(KekName::new("tenants").unwrap(), version),
        change: Change::Denied,
        trouble: None,
    };
    let count = SUBJECTS_MAX as u32 + 2;
    let told: usize = (1..=count).map(|version| alerts.event(at(0), &denied(version)).len()).sum();
    assert_eq!(told, SUBJECTS_MAX + 1);
    assert_eq!(said(&alerts.tick(at(10 * MINUTE))), ["-others"]);
}

#[test]
fn what_one_node_has_another_does_not_end_and_a_command_has_whichever_node_is_free() {
    let of_kek = r#","kek":"tenants","kek_version":1"#;
    let mut alerts = alerts(When::Denied);
    let mut hear = |node, ms, operation| said(&alerts.line(at(YEAR), node, &line(ms, operation, of_kek)));
    assert_eq!(hear("web-1", 0, "Denied"), ["+KEK tenants/1"]);
    assert_eq!(hear("web-2", 1, "Granted"), [""; 0], "of another node");
    assert_eq!(hear("web-2", 2, "Denied"), [""; 0], "the same trouble");
    assert_eq!(hear("web-1", 3, "Resuming"), [""; 0], "the other has it still");
    assert_eq!(hear("web-2", 4, "Resuming"), ["-KEK tenants/1"]);
    assert_eq!(hear("web.cli-2", 5, "Denied"), ["+KEK tenants/1"]);
    assert_eq!(hear("web.cli", 6, "Granted"), ["-KEK tenants/1"], "the next command");
}

#[test]
fn what_is_not_proved_for_as_long_as_its_rule_allows_is_told_from_the_trail_and_over_when_it_is_proved() {
    let of_kek = r#","kek":"tenants","kek_version":1"#;
    let late = |took_s: u64| format!(r#"{of_kek},"took_us":{}"#, took_s * 1_000_000);
    let mut alerts = alerts(When::NotProved { longer_than: Duration::from_secs(120) });
    assert_eq!(alerts.line(at(YEAR), "a", &line(MINUTE, "NotProved", &late(60))), [], "for a minute");
    assert_eq!(alerts.line(at(YEAR), "b", &line(MINUTE, "Proved", of_kek)), []);
    assert_eq!(alerts.tick(at(2 * MINUTE)), []);
    let told = alerts.tick(at(2 * MINUTE + 1));
    assert_eq!(told[0].to_string(), "rule: KEK tenants/1: not proved for 120 s (a/7)");
    assert_eq!(told[0].since, at(0), "whenever it is noticed");
    assert_eq!(alerts.tick(at(10 * MINUTE)), [], "once");
    assert_eq!(said(&alerts.line(at(YEAR), "a", &line(11 * MINUTE, "Proved", of_kek))), ["-KEK tenants/1"]);
    // In time, and a process that is gone: neither is told.
    let given_up = format!(r#","result":"dropped"{of_kek}"#);
    assert_eq!(alerts.line(at(YEAR), "a", &line(12 * MINUTE, "NotProved", &late(60))), []);
    assert_eq!(said(&alerts.tick(at(14 * MINUTE))), ["+KEK tenants/1"]);
    let over = alerts.line(at(YEAR), "a", &line(15 * MINUTE, "Proved", &given_up));
    assert!(over[0].is_over && over[0].what.starts_with("nobody asks for it any more"), "{over:?}");
    for (n, end) in ["Proved", "EngineBegin", "EngineClose"].into_iter().enumerate() {
        let from = (20 + 10 * n as u64) * MINUTE;
        assert_eq!(alerts.line(at(YEAR), "a", &line(from, "NotProved", &late(60))), []);
        assert_eq!(alerts.line(at(YEAR), "a", &line(from, end, of_kek)), []);
        assert_eq!(alerts.tick(at(from + 9 * MINUTE)), [], "{end}");
    }
}

#[test]
fn workers_secrets_and_keys_are_told_from_the_trail_too() {
    let rules = [
        ("workers", When::WorkersSpent),
        ("store", When::StoreSilent),
        ("secrets", When::SecretExpired),
        ("keys", When::KekChanged),
        ("trail", When::TrailBroken),
    ];
    let mut alerts = Alerts::new(rules.map(|(name, when)| Rule::new(name, when).unwrap()).into()).unwrap();
    let mut hear = |node, operation, more| said(&alerts.line(at(YEAR), node, &line(0, operation, more)));
    let token = r#","token":"default""#;
    assert_eq!(hear("a", "WorkersSpent", token), ["+token default on a"]);
    assert_eq!(hear("b", "WorkersSpent", token), ["+token default on b"]);
    assert_eq!(hear("a", "WorkersBack", token), ["-token default on a"]);
    assert_eq!(hear("b", "EngineBegin", ""), ["-token default on b"], "it was started anew");
    assert_eq!(hear("a", "StoreSilent", ""), ["+key store of a"]);
    assert_eq!(hear("b", "StoreSilent", ""), ["+key store of b"]);
    assert_eq!(hear("a", "StoreAnswers", ""), ["-key store of a"]);
    assert_eq!(hear("b", "EngineBegin", ""), ["-key store of b"], "it says so anew");
    let secret = r#","account":"shop","secret":"db","secret_version":3"#;
    assert_eq!(hear("a", "SecretExpired", secret), ["+secret db of account shop"]);
    assert_eq!(hear("b", "SecretExpired", secret), [""; 0]);
    assert_eq!(hear("c", "SecretSet", r#","result":"failed","account":"shop","secret":"db""#), [""; 0]);
    assert_eq!(
        hear("c", "SecretSet", r#","result":"done","account":"shop","secret":"db""#),
        ["-secret db of account shop"]
    );
    let kek = r#","kek":"tenants","kek_version":1"#;
    assert_eq!(hear("a", "KekMissing", kek), ["+KEK tenants/1"]);
    assert_eq!(hear("a", "KekBack", kek), ["-KEK tenants/1"]);
    assert_eq!(hear("a", "KekUnknown", token), ["+token default"]);
    assert_eq!(said(&alerts.held(at(1), "a", Some("it was cut"))), ["+trail of a"]);
    assert_eq!(alerts.held(at(2), "a", Some("it is gone")), []);
    assert_eq!(said(&alerts.held(at(3), "a", None)), ["-trail of a"]);
    assert_eq!(said(&alerts.event(at(4), &Event::TrailBroken { why: "full".into() })), ["+trail of this process"]);
    assert_eq!(said(&alerts.event(at(5), &Event::TrailWhole)), ["-trail of this process"]);
}

#[test]
fn a_clock_that_is_a_year_ahead_takes_nobody_along() {
    let mut alerts = alerts(When::Stranger { callers: vec![Pattern::new("web-*").unwrap()] });
    assert_eq!(said(&alerts.line(at(0), "wrong", &line(YEAR, "SecretGet", &by("eve")))), ["+caller eve"]);
    assert_eq!(said(&alerts.tick(at(10 * MINUTE))), ["-caller eve"], "quiet goes by");
    let right = alerts.line(at(11 * MINUTE), "right", &line(11 * MINUTE, "SecretGet", &by("eve")));
    assert_eq!((right[0].since, right[0].time), (at(11 * MINUTE), at(11 * MINUTE)));
}

#[test]
fn of_however_many_callers_each_is_counted_by_itself() {
    let mut alerts = alerts(When::Forbidden { more_than: 2, within: Duration::from_secs(60) });
    let mut refused = |caller: &str| said(&alerts.line(at(YEAR), "n", &line(0, "Forbidden", &by(caller))));
    for n in 0..3 * SUBJECTS_MAX {
        assert_eq!(refused(&format!("eve-{n}")), [""; 0], "once each");
    }
    assert_eq!([refused("tom"), refused("tom"), refused("tom")].concat(), ["+caller tom"]);
    assert!(alerts.windows.len() <= SUBJECTS_MAX);
    alerts.tick(at(2 * MINUTE));
    assert!(alerts.windows.is_empty(), "what nobody counts any more is forgotten");
}

type Step = (u8, u8, u16, u64, bool);

/// What comes to all rules at once, of few subjects and of many.
fn anything() -> impl Strategy<Value = Step> {
    (0..16_u8, 0..4_u8, prop_oneof![0..3_u16, 0..2000_u16], 0..5 * MINUTE, any::<bool>())
}

/// One of each kind that a clock alone does not have to tell, but for the one that counts in fractions.
fn every_rule() -> Vec<Rule> {
    let minute = Duration::from_secs(60);
    let rules = [
        When::Stranger { callers: vec![Pattern::new("web-*").unwrap()] },
        When::Denied,
        When::Lapsed,
        When::Forbidden { more_than: 1, within: minute },
        When::Unwraps { more_than: 1, within: minute },
        When::KekChanged,
        When::TrailBroken,
        When::NotProved { longer_than: minute },
        When::WorkersSpent,
        When::StoreSilent,
        When::SecretExpired,
    ];
    rules.into_iter().map(|when| Rule::new(when.name(), when).unwrap()).collect()
}

fn step(alerts: &mut Alerts, wall: &mut u64, (kind, node, subject, ms, goes_on): Step) -> Vec<Notice> {
    if goes_on {
        *wall += ms;
    }
    // Behind, or ahead.
    let time = if goes_on { *wall } else { wall.saturating_sub(ms) + ms % 7 * MINUTE };
    let node = ["a", "b", "host.cli", "host.cli-2"][usize::from(node)];
    let on = format!(
        r#","result":"done","caller":"eve-{subject}","kek":"k","kek_version":{subject},"token":"t{subject}","account":"a","secret":"s{subject}","took_us":9"#
    );
    let operations = [
        "SecretGet",
        "Forbidden",
        "KeyUnwrap",
        "Denied",
        "Lapsed",
        "Resuming",
        "KekReplaced",
        "KekUnknown",
        "NotProved",
        "Proved",
        "WorkersSpent",
        "WorkersBack",
        "StoreSilent",
        "StoreAnswers",
        "SecretExpired",
        "SecretSet",
        "EngineBegin",
    ];
    match operations.get(usize::from(kind)) {
        Some(operation) => alerts.line(at(*wall), node, &line(time, operation, &on)),
        None if goes_on => alerts.held(at(*wall), node, Some("gone")),
        None => alerts.held(at(*wall), node, None),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn whatever_comes_a_trouble_begins_and_is_over_in_turn_with_ids_of_its_own_and_in_bounded_memory(
        steps in prop::collection::vec(anything(), 1..1500)
    ) {
        let rules = every_rule();
        let count = rules.len();
        let mut alerts = Alerts::new(rules).unwrap();
        let (mut wall, mut open, mut ids) = (0_u64, BTreeMap::new(), BTreeSet::new());
        for one in steps {
            let notices = step(&mut alerts, &mut wall, one);
            for notice in notices {
                prop_assert!(ids.insert(notice.id()), "twice: {}", notice.id());
                let key = (notice.rule.clone(), notice.subject.clone());
                if notice.is_over {
                    prop_assert_eq!(open.remove(&key), Some(notice.since), "over, and did not begin");
                    prop_assert!(notice.time >= notice.since);
                } else {
                    prop_assert_eq!(open.insert(key, notice.since), None, "begins, and is not over");
                }
            }
            prop_assert_eq!(open.len(), alerts.troubles.len());
            let most = count * (SUBJECTS_MAX + 1);
            prop_assert!(alerts.troubles.len() + alerts.waiting.len() + alerts.windows.len() <= 3 * most);
        }
    }
}

#[test]
fn a_clock_that_is_behind_ends_nothing_and_begins_nothing_twice() {
    let mut alerts = alerts(When::Stranger { callers: vec![Pattern::new("web-*").unwrap()] });
    assert_eq!(said(&alerts.line(at(YEAR), "a", &line(5 * MINUTE, "SecretGet", &by("eve")))), ["+caller eve"]);
    assert_eq!(alerts.line(at(YEAR), "b", &line(0, "SecretGet", &by("eve"))), [], "a node whose lines come late");
    assert_eq!(alerts.tick(at(0)), []);
}

#[test]
fn when_the_clock_of_who_follows_is_set_back_time_goes_by_all_the_same() {
    let rules = [
        ("refused", When::Forbidden { more_than: 2, within: Duration::from_secs(60) }),
        ("strangers", When::Stranger { callers: vec![Pattern::new("web-*").unwrap()] }),
        ("proofs", When::NotProved { longer_than: Duration::from_secs(420) }),
    ];
    let rules = rules.map(|(name, when)| Rule::new(name, when).unwrap());
    let mut alerts = Alerts::new(rules.into()).unwrap();
    let wrong = 600 * MINUTE;
    let mut hear = |ms, operation, more: &str| said(&alerts.line(at(ms), "n", &line(ms, operation, more)));
    assert_eq!(hear(wrong, "SecretGet", &by("eve")), ["+caller eve"]);
    assert_eq!(hear(wrong, "Forbidden", &by("web-1")), [""; 0]);
    assert_eq!(hear(wrong, "NotProved", r#","kek":"k","kek_version":1"#), [""; 0]);
    // Ten hours back.
    assert_eq!(hear(0, "Forbidden", &by("web-1")), [""; 0]);
    for minutes in 1..4 {
        assert_eq!(hear(2 * minutes * MINUTE, "Forbidden", &by("web-1")), [""; 0], "none in a minute");
    }
    assert_eq!(said(&alerts.tick(at(8 * MINUTE))), ["+KEK k/1"]);
    assert_eq!(said(&alerts.tick(at(10 * MINUTE))), ["-caller eve"]);
}

#[test]
fn an_engine_that_begins_beside_another_in_its_process_ends_nothing_of_that_and_one_of_the_next_process_does() {
    let workers = Rule::new("workers", When::WorkersSpent).unwrap();
    let proofs = Rule::new("proofs", When::NotProved { longer_than: Duration::from_secs(60) }).unwrap();
    let mut alerts = Alerts::new(vec![workers, proofs]).unwrap();
    let by_engine =
        |process: char, engine: char| format!("{}{}", process.to_string().repeat(16), engine.to_string().repeat(16));
    let mut hear = |ms, operation, process, engine| {
        let more = format!(
            r#","kek":"k","kek_version":1,"token":"t","took_us":0,"correlation":"{}""#,
            by_engine(process, engine)
        );
        said(&alerts.line(at(YEAR), "a", &line(ms, operation, &more)))
    };
    assert_eq!(hear(0, "EngineBegin", 'a', '1'), [""; 0]);
    assert_eq!(hear(0, "NotProved", 'a', '1'), [""; 0]);
    assert_eq!(hear(1, "WorkersSpent", 'a', '1'), ["+token t on a"]);
    assert_eq!(hear(2, "EngineBegin", 'a', '2'), [""; 0], "another one beside it");
    assert_eq!(hear(3, "NotProved", 'a', '2'), [""; 0]);
    assert_eq!(hear(2 * MINUTE, "EngineBegin", 'a', '3'), ["+KEK k/1"]);
    assert_eq!(hear(2 * MINUTE, "Proved", 'a', '2'), [""; 0], "the first does not prove it");
    assert_eq!(hear(2 * MINUTE, "EngineClose", 'a', '3'), [""; 0]);
    assert_eq!(hear(3 * MINUTE, "EngineBegin", 'b', '1'), ["-token t on a", "-KEK k/1"], "the next process");
    assert_eq!(hear(4 * MINUTE, "WorkersSpent", 'b', '1'), ["+token t on a"]);
    assert_eq!(hear(5 * MINUTE, "EngineClose", 'b', '1'), ["-token t on a"]);
}

#[test]
fn rules_out_of_bounds_are_refused_by_name_and_each_is_rehearsed() {
    let hour = Duration::from_secs(3600);
    for (name, when) in [
        ("", When::Denied),
        ("a b", When::Denied),
        ("none", When::Stranger { callers: Vec::new() }),
        ("long", When::Forbidden { more_than: 1, within: 25 * hour }),
        ("short", When::NotProved { longer_than: Duration::from_millis(999) }),
        ("times", When::UnusualUnwraps { times: 1, at_least: 1 }),
    ] {
        let refused = Rule::new(name, when).unwrap_err().to_string();
        assert!(refused.contains(&format!("alert {name}")) || refused.contains(&format!("{name:?}")), "{refused}");
    }
    assert!(Rule::new("a", When::Denied).unwrap().quiet(Duration::ZERO).is_err());
    let rule = || Rule::new("twice", When::Lapsed).unwrap();
    assert!(Alerts::new(vec![rule(), rule()]).unwrap_err().to_string().contains("two alerts are named twice"));
    let alerts = Alerts::new(vec![rule(), Rule::new("other", When::Denied).unwrap()]).unwrap();
    assert_eq!(alerts.rehearse(at(0)).iter().filter(|notice| !notice.is_over).count(), 2);
    assert!(alerts.troubles.is_empty());
}
