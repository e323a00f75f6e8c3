//! No PIN is tried that may lock the token.

use super::*;
use crate::token::Verdict;
use std::{cell::Cell, sync::Arc, time::Duration};

/// Of a token that does not say what it counted.
fn unknown() -> bool {
    false
}
fn soon() -> Instant {
    Clock::Boottime.now().plus(Duration::from_secs(60))
}

/// Whoever asks for no proof.
fn by(deadline: Instant) -> Caller {
    Caller { operation: "test", deadline, proof: None }
}

fn refuse(tries: &Cell<u32>) -> impl Fn(&Pin, Standing) -> Attempt {
    |_, _| {
        tries.set(tries.get() + 1);
        Attempt::Refused(fault::denied("login", "C_Login: CKR_PIN_INCORRECT"))
    }
}

#[test]
fn a_pin_file_is_a_regular_file_of_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pin");
    let read = |text: &[u8]| {
        std::fs::write(&path, text).unwrap();
        PinSource::File(path.clone()).read().map(|pin| pin.expose().to_vec())
    };
    for text in [&b"1234"[..], b"1234\n", b"1234\r\n", b"1234\r"] {
        assert_eq!(read(text).unwrap(), b"1234");
    }
    assert_eq!(read(&[b'7'; 255]).unwrap(), [b'7'; 255]);
    assert_eq!(read(&[&[b'7'; 255][..], b"\r\n"].concat()).unwrap(), [b'7'; 255]);
    for (text, words) in [
        (&b""[..], "is empty"),
        (b"\n", "is empty"),
        (b"1234\n5678\n", "several lines"),
        (b"1234\n\n", "several lines"),
        (&[b'7'; 256], "more than 255"),
        (&[b'7'; 9000], "more than 255"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("1234"), "{error}");
    }
    let pipe = directory.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    for other in [&pipe, directory.path(), std::path::Path::new("/dev/null")] {
        let error = PinSource::File(other.into()).read().unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
    }
    let error = PinSource::File(directory.path().join("none")).read().unwrap_err().to_string();
    assert!(error.contains("No such file"), "{error}");
}

/// A source whose PIN a test changes.
fn source(pin: &Arc<Mutex<String>>) -> PinSource {
    let pin = pin.clone();
    PinSource::Callback(Arc::new(move || match pin.lock().unwrap().clone().into_bytes() {
        none if none.is_empty() => Err("away".into()),
        pin => Ok(pin),
    }))
}

#[test]
fn what_is_known_of_one_pin_is_known_of_no_other() {
    let pin = Arc::new(Mutex::new("1234".to_owned()));
    let clock = crate::clock::ManualClock::default();
    let pins = Pins { clock: Clock::Manual(clock.clone()), ..Pins::new(source(&pin)) };
    let far = Instant::from_nanos(u64::MAX);
    let standing = |attempt: Attempt| {
        clock.advance(Duration::from_secs(60));
        let mut seen = None;
        let _ = pins.login(&by(far), unknown, |_, standing| {
            seen = Some(standing);
            attempt
        });
        seen
    };
    let (unknown, accepted) = (Standing::default(), Standing { accepted: true, ..Standing::default() });
    assert_eq!(standing(Attempt::NotNeeded), Some(unknown));
    assert_eq!(standing(Attempt::Accepted), Some(unknown), "who finds the process logged in has proved no PIN");
    let failed = || Attempt::Failed { code: RvError::GeneralError, uncounted: false };
    assert_eq!(standing(failed()), Some(accepted));
    assert_eq!(standing(Attempt::NotNeeded), Some(Standing { failures: 1, ..accepted }));
    *pin.lock().unwrap() = "5678".into();
    assert_eq!(standing(Attempt::NotNeeded), Some(unknown), "another PIN in the source");
    *pin.lock().unwrap() = "1234".into();
    let error = fault::denied("login", "C_Login: CKR_GENERAL_ERROR, and it was counted");
    assert_eq!(standing(Attempt::Denied { error, counted: true }), Some(Standing { failures: 1, ..accepted }));
    let counted = Standing { failures: 2, denied: true, counted: true, ..accepted };
    assert_eq!(standing(failed()), Some(counted));
    assert_eq!(standing(Attempt::Accepted), Some(Standing { failures: 3, denied: false, ..counted }));
    assert_eq!(standing(Attempt::Refused(fault::denied("login", "wrong"))), Some(accepted));
    assert_eq!(standing(Attempt::Accepted), None, "refused, whatever it was before");
    pins.forget_refusal();
    assert_eq!(standing(Attempt::NotNeeded), Some(unknown), "so the last try before the token locks is not for it");
}

#[test]
fn a_source_that_flaps_between_wrong_pins_has_each_tried_once() {
    let pin = Arc::new(Mutex::new("old".to_owned()));
    let (pins, tries) = (Pins::new(source(&pin)), Cell::new(0));
    assert!(pins.login(&by(soon()), unknown, |_, _| Attempt::Accepted).is_ok());
    for _ in 0..5 {
        // While it is away the PIN that worked last stands in, until that was refused too.
        for now in ["new", "", "newer"] {
            *pin.lock().unwrap() = now.into();
            assert!(pins.login(&by(soon()), unknown, refuse(&tries)).is_err());
        }
    }
    assert_eq!(tries.get(), 3);
}

#[test]
fn a_denial_that_is_not_the_pin_s_fault_is_asked_again_after_a_pause_that_does_not_grow() {
    let clock = crate::clock::ManualClock::default();
    let pins = Pins {
        clock: Clock::Manual(clock.clone()),
        ..Pins::new(PinSource::Callback(Arc::new(|| Ok(b"1234".to_vec()))))
    };
    let far = Instant::from_nanos(u64::MAX);
    for _ in 0..8 {
        let locked = fault::denied("login", "C_Login: CKR_PIN_LOCKED");
        let Err(Fault::Settled(_)) =
            pins.login(&by(far), unknown, |_, _| Attempt::Denied { error: locked, counted: false })
        else {
            panic!()
        };
        let Err(Fault::LoginPaused(error)) = pins.login(&by(far), unknown, |_, _| panic!("tried at once")) else {
            panic!()
        };
        assert_eq!(error.verdict, Verdict::Denied, "{error}");
        clock.advance(PAUSE_MIN);
    }
    assert!(pins.login(&by(far), unknown, |_, _| Attempt::Accepted).is_ok());
}

#[test]
fn a_refused_pin_with_a_blank_at_an_end_is_told_of_it() {
    for (pin, told) in [("1234", false), ("1234 ", true), ("\u{feff}1234", true), ("12 34", false)] {
        let pins = Pins::new(PinSource::Callback(Arc::new(move || Ok(pin.as_bytes().to_vec()))));
        let Err(Fault::Settled(error)) = pins.login(&by(soon()), unknown, refuse(&Cell::new(0))) else { panic!() };
        assert_eq!(error.remedy.contains("blank"), told, "{error:?}");
        assert!(!format!("{error:?}").contains("34"), "{error:?}");
    }
}

#[test]
fn a_refused_pin_is_not_tried_again_until_it_changes_or_somebody_asks() {
    let pin = Arc::new(Mutex::new("wrong".to_owned()));
    let (pins, tries) = (Pins::new(source(&pin)), Cell::new(0));
    for _ in 0..5 {
        let Err(Fault::Settled(error)) = pins.login(&by(soon()), unknown, refuse(&tries)) else { panic!() };
        assert_eq!(error.verdict, Verdict::Denied);
        assert!(!format!("{error:?}").contains("wrong"));
    }
    assert_eq!(tries.get(), 1);
    pins.forget_refusal();
    assert!(pins.login(&by(soon()), unknown, refuse(&tries)).is_err());
    assert_eq!(tries.get(), 2);
    *pin.lock().unwrap() = "wrong too".into();
    assert!(pins.login(&by(soon()), unknown, refuse(&tries)).is_err());
    assert_eq!(tries.get(), 3, "another PIN is tried");
    assert!(pins.login(&by(soon()), unknown, refuse(&tries)).is_err());
    assert_eq!(tries.get(), 3);
}

#[test]
fn after_any_failure_the_same_pin_waits_and_longer_each_time() {
    let pin = Arc::new(Mutex::new("1234".to_owned()));
    let clock = crate::clock::ManualClock::default();
    let pins = Pins { clock: Clock::Manual(clock.clone()), ..Pins::new(source(&pin)) };
    let (tries, far) = (Cell::new(0), Instant::from_nanos(u64::MAX));
    let fail = |_: &Pin, _| {
        tries.set(tries.get() + 1);
        Attempt::Failed { code: RvError::GeneralError, uncounted: false }
    };
    for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
        let before = tries.get();
        assert!(matches!(pins.login(&by(far), unknown, fail), Err(Fault::Code { step: "C_Login", .. })));
        clock.advance(Duration::from_millis(pause * 1000 - 100));
        for _ in 0..5 {
            let Err(Fault::LoginPaused(error)) = pins.login(&by(far), unknown, fail) else { panic!() };
            assert_eq!(error.verdict, Verdict::Unreachable);
            assert!(error.what.contains("CKR_GENERAL_ERROR") && error.what.contains("0.1 s"), "{error}");
            assert!(!format!("{error:?}").contains("1234"));
        }
        assert_eq!(tries.get(), before + 1, "one C_Login per pause");
        clock.advance(Duration::from_millis(100));
    }
    assert!(pins.login(&by(far), unknown, fail).is_err());
    *pin.lock().unwrap() = "5678".into();
    assert!(pins.login(&by(far), unknown, |_, _| Attempt::Accepted).is_ok(), "another PIN does not wait");
    assert!(matches!(pins.login(&by(far), unknown, fail), Err(Fault::Code { .. })));
    clock.advance(Duration::from_secs(1));
    assert!(
        matches!(pins.login(&by(far), unknown, fail), Err(Fault::Code { .. })),
        "after a success the pause is short again"
    );
    pins.forget_refusal();
    assert!(pins.login(&by(far), unknown, |_, _| Attempt::Accepted).is_ok(), "nor does one that somebody asks for");
}

#[test]
fn a_pin_that_the_token_did_not_count_is_asked_again_at_every_poll_however_often_it_failed() {
    let clock = crate::clock::ManualClock::default();
    let pins = Pins {
        clock: Clock::Manual(clock.clone()),
        ..Pins::new(PinSource::Callback(Arc::new(|| Ok(b"1234".to_vec()))))
    };
    let far = Instant::from_nanos(u64::MAX);
    for _ in 0..40 {
        let failed = Attempt::Failed { code: RvError::GeneralError, uncounted: true };
        assert!(matches!(pins.login(&by(far), unknown, |_, _| failed), Err(Fault::Code { .. })));
        clock.advance(Duration::from_millis(900));
    }
}

#[test]
fn a_proof_takes_no_failure_of_a_login_that_is_older_than_itself_unless_the_token_may_have_counted_it() {
    let far = Instant::from_nanos(u64::MAX);
    let fails: [fn() -> Attempt; 3] = [
        || Attempt::Failed { code: RvError::GeneralError, uncounted: true },
        || Attempt::Failed { code: RvError::GeneralError, uncounted: false },
        || Attempt::Denied { error: fault::denied("login", "C_Login: CKR_PIN_EXPIRED"), counted: false },
    ];
    for (fail, counts_none) in fails.into_iter().flat_map(|fail| [(fail, true), (fail, false)]) {
        let clock = crate::clock::ManualClock::default();
        let pins = Pins {
            clock: Clock::Manual(clock.clone()),
            ..Pins::new(PinSource::Callback(Arc::new(|| Ok(b"1234".to_vec()))))
        };
        assert!(pins.login(&by(far), unknown, |_, _| Attempt::Accepted).is_ok());
        for _ in 0..8 {
            clock.advance(PAUSE_MAX);
            assert!(pins.login(&by(far), || counts_none, |_, _| fail()).is_err());
            let same = Caller { proof: Some(clock.now()), ..by(far) };
            let paused = pins.login(&same, || counts_none, |_, _| panic!("tried twice for one proof"));
            assert!(matches!(paused, Err(Fault::LoginPaused(_))));
            clock.advance(Duration::from_millis(1));
            let next = Caller { proof: Some(clock.now()), ..by(far) };
            let mut tried = false;
            let _ = pins.login(
                &next,
                || counts_none,
                |_, _| {
                    tried = true;
                    fail()
                },
            );
            assert_eq!(tried, counts_none);
        }
    }
}

#[test]
fn a_refusal_by_a_context_that_may_be_older_than_the_pin_is_not_its_end() {
    let clock = crate::clock::ManualClock::default();
    let pins = Pins {
        clock: Clock::Manual(clock.clone()),
        ..Pins::new(PinSource::Callback(Arc::new(|| Ok(b"1234".to_vec()))))
    };
    let far = Instant::from_nanos(u64::MAX);
    let doubted = Attempt::Doubted(fault::denied("login", "C_Login: CKR_PIN_INCORRECT"));
    assert!(pins.login(&by(far), unknown, |_, _| doubted).is_err());
    assert!(matches!(pins.login(&by(far), unknown, |_, _| panic!("at once")), Err(Fault::LoginPaused(_))));
    clock.advance(PAUSE_MIN);
    let (tries, mut seen) = (Cell::new(0), None);
    let refused = pins.login(&by(far), unknown, |pin, standing| {
        seen = Some(standing);
        refuse(&tries)(pin, standing)
    });
    assert!(refused.is_err());
    assert_eq!(seen, Some(Standing { failures: 1, denied: true, doubted: true, ..Standing::default() }));
    clock.advance(PAUSE_MAX);
    assert!(pins.login(&by(far), unknown, refuse(&tries)).is_err());
    assert_eq!(tries.get(), 1);
}

/// Logs in at each poll, and each login hangs that is made. Gives how many are.
fn logins_that_hang(pins: &Pins, clock: &crate::clock::ManualClock, counts_none: bool, polls: u32) -> u32 {
    if polls == 0 {
        return 0;
    }
    let (second, made) = (Duration::from_secs(1), Cell::new(0));
    let others = || made.set(made.get() + logins_that_hang(pins, clock, counts_none, polls - 1));
    let paused = pins.login(
        &by(clock.now().plus(second)),
        || counts_none,
        |_, _| {
            clock.advance(second);
            made.set(1);
            others();
            Attempt::NotNeeded
        },
    );
    if made.get() == 0 {
        assert!(matches!(paused, Err(Fault::LoginPaused(_))));
        clock.advance(second);
        others();
    }
    made.get()
}

#[test]
fn a_login_that_never_returned_is_made_again_at_the_next_poll_where_the_token_counted_none() {
    for (counts_none, expected) in [(true, 10), (false, 5)] {
        let clock = crate::clock::ManualClock::default();
        let pins = Pins {
            clock: Clock::Manual(clock.clone()),
            ..Pins::new(PinSource::Callback(Arc::new(|| Ok(b"1234".to_vec()))))
        };
        assert!(pins.login(&by(clock.now().plus(REST)), unknown, |_, _| Attempt::Accepted).is_ok());
        assert_eq!(logins_that_hang(&pins, &clock, counts_none, 20), expected);
    }
}

#[test]
fn a_login_that_never_returns_keeps_nobody_out_and_counts_as_one_that_failed() {
    let clock = crate::clock::ManualClock::default();
    let pins = Pins {
        clock: Clock::Manual(clock.clone()),
        ..Pins::new(PinSource::Callback(Arc::new(|| Ok(b"1234".to_vec()))))
    };
    let (far, second) = (Instant::from_nanos(u64::MAX), Duration::from_secs(1));
    let late = pins.login(&by(clock.now().plus(second)), unknown, |_, _| {
        clock.advance(second);
        let Err(Fault::LoginPaused(error)) = pins.login(&by(far), unknown, |_, _| panic!("tried at once")) else {
            panic!()
        };
        assert!(error.verdict == Verdict::Unreachable && error.what.contains("did not come back"), "{error}");
        clock.advance(second);
        let next = pins.login(&by(far), unknown, |_, standing| {
            assert_eq!(standing, Standing { failures: 1, ..Standing::default() });
            Attempt::Accepted
        });
        assert!(next.is_ok());
        Attempt::NotNeeded
    });
    assert!(late.is_ok() && pins.lock().busy.is_none());
}

#[test]
fn a_source_that_never_returns_keeps_nobody_out_and_what_it_gives_too_late_is_not_tried() {
    let clock = crate::clock::ManualClock::default();
    let inner: Arc<Mutex<Option<Arc<Pins>>>> = Arc::default();
    let (others, time) = (inner.clone(), clock.clone());
    let source = PinSource::Callback(Arc::new(move || {
        let other = others.lock().unwrap().take();
        if let Some(pins) = other {
            time.advance(Duration::from_secs(1));
            assert!(pins.login(&by(Instant::from_nanos(u64::MAX)), unknown, |_, _| Attempt::Accepted).is_ok());
        }
        Ok(b"1234".to_vec())
    }));
    let pins = Arc::new(Pins { clock: Clock::Manual(clock.clone()), ..Pins::new(source) });
    *inner.lock().unwrap() = Some(pins.clone());
    let deadline = clock.now().plus(Duration::from_secs(1));
    let Err(Fault::Settled(error)) = pins.login(&by(deadline), unknown, |_, _| panic!("tried")) else { panic!() };
    assert_eq!(error.verdict, Verdict::Unreachable);
}

#[test]
fn a_source_that_gives_no_pin_is_a_matter_of_set_up_at_the_start_and_an_outage_after_that() {
    let pins = Pins::new(PinSource::Callback(Arc::new(|| Err("away".into()))));
    for verdict in [Verdict::Misconfigured, Verdict::Unreachable] {
        let Err(Fault::Settled(error)) = pins.login(&by(soon()), unknown, |_, _| panic!("tried")) else { panic!() };
        assert_eq!(error.verdict, verdict);
        pins.note_at_work();
    }
}

#[test]
fn a_login_that_was_not_made_leaves_the_pin_free() {
    let pins = Pins::new(PinSource::Callback(Arc::new(|| Ok(b"1234".to_vec()))));
    let locked = |_: &Pin, _| Attempt::Withheld(fault::denied("login", "the token has locked its user PIN").into());
    let Err(Fault::Settled(error)) = pins.login(&by(soon()), unknown, locked) else { panic!() };
    assert_eq!(error.verdict, Verdict::Denied);
    assert!(pins.login(&by(soon()), unknown, |_, _| Attempt::Accepted).is_ok(), "once it is unlocked");
}

#[test]
fn the_pin_that_worked_last_serves_while_its_source_is_away() {
    let pin = Arc::new(Mutex::new("1234".to_owned()));
    let pins = Pins::new(source(&pin));
    assert!(pins.login(&by(soon()), unknown, |_, _| Attempt::Accepted).is_ok());
    pin.lock().unwrap().clear();
    let mut used = Vec::new();
    let result = pins.login(&by(soon()), unknown, |pin, _| {
        used = pin.expose().to_vec();
        Attempt::Accepted
    });
    assert!(result.is_ok());
    assert_eq!(used, b"1234");
}

#[test]
fn a_second_login_waits_for_the_first_and_not_beyond_its_deadline() {
    let pins = Pins::new(PinSource::Callback(Arc::new(|| Ok(b"1234".to_vec()))));
    let result = pins.login(&by(soon()), unknown, |_, _| {
        let past = Clock::Boottime.now();
        let Err(Fault::Settled(error)) = pins.login(&by(past), unknown, |_, _| Attempt::Accepted) else { panic!() };
        assert_eq!(error.verdict, Verdict::Unreachable);
        Attempt::Accepted
    });
    assert!(result.is_ok());
}
