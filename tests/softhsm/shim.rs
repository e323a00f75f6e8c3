//! What no real token can be made to do: through the fault shim.

use crate::{
    bench::{Bench, PIN, alone_with_shim, operator},
    leash::at_once,
    service::{OTHER, Outcome, SECOND, Service, now, settings},
};
use keyleash::{
    name::{AccountId, KekName},
    secret::Aek,
    telemetry::Event,
    token::{
        KekHandle, KekSpec, Profile, Token, Verdict, Wrapped,
        pkcs11::{FreshContext, PinSource, Pkcs11Token},
    },
};
use std::sync::Arc;

const BINDING: [u8; 32] = [5; 32];

#[test]
fn the_promises_hold_whatever_the_module_returns() {
    at_once(&[
        a_code_that_denies,
        troubles_that_pass,
        every_call_fails,
        calls_that_come_too_late,
        calls_that_hang,
        wrong_plaintext,
        a_refused_login,
        a_login_that_fails_is_not_repeated,
        a_failed_login_that_the_token_counts_is_the_last,
        a_context_that_misses_the_pin_denies_nothing,
        a_process_that_ends_in_the_midst_of_a_call_does_not_crash,
        a_slow_token_and_fresh_proofs,
        a_changed_pin_while_a_call_hangs,
        a_changed_pin_while_the_token_is_never_quiet,
        a_storm_of_creations_under_another_kek,
        a_storm_at_a_single_worker,
        who_waits_behind_a_call_that_hangs_for_good,
        every_row_of_the_verdicts,
    ]);
}

#[test]
#[ignore = "one of the scenarios above"]
fn a_code_that_denies() {
    alone_with_shim("shim::a_code_that_denies", |bench| async move {
        let service = Service::start("CKR_KEY_FUNCTION_NOT_PERMITTED", &bench).await;
        bench.fail("C_DecryptInit rv=0x68");
        service.refuses(Outcome::Denied, now(), service.answer()).await;
        // Denied, then silent, stays denied.
        bench.fail("* rv=0x30");
        let silent = now();
        service.rest(service.settings.grace + 2 * SECOND).await;
        service.stayed(Outcome::Denied, silent);
        bench.fail("");
        service.resumes(now(), service.answer()).await;
        service.end();
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn troubles_that_pass() {
    alone_with_shim("shim::troubles_that_pass", |bench| async move {
        let service = Service::start("troubles that pass", &bench).await;
        let from = now();
        for (number, fault) in [
            "C_Decrypt rv=0x82 count=1",                                // OBJECT_HANDLE_INVALID
            "C_DecryptInit rv=0xb3 count=1",                            // SESSION_HANDLE_INVALID
            "C_DecryptInit rv=0x101 count=1",                           // USER_NOT_LOGGED_IN
            "C_DecryptInit rv=0x90 count=1",                            // OPERATION_ACTIVE
            "C_Decrypt rv=0x30 count=2",                                // DEVICE_ERROR
            "C_Decrypt rv=0x5 count=2",                                 // GENERAL_ERROR
            "C_OpenSession rv=0xb1 count=1\nC_Decrypt rv=0xb0 count=1", // SESSION_COUNT, SESSION_CLOSED
            "* rv=0x80000001 count=3",                                  // a vendor's own
            "C_Decrypt delay=300ms",
        ]
        .into_iter()
        .enumerate()
        {
            bench.fail(&format!("# {number}\n{fault}"));
            service.rest(3 * SECOND / 2).await;
        }
        service.undisturbed(from, now().since(from));
        service.end();
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn every_call_fails() {
    alone_with_shim("shim::every_call_fails", |bench| async move {
        let settings = settings().fresh_proof_every(2);
        let token = Service::token_settings(&bench, &settings);
        let service = Service::with("CKR_DEVICE_ERROR on everything", settings, token, &bench).await;
        let short = now();
        bench.fail("C_Initialize rv=0x5");
        service.rest(3 * SECOND).await;
        bench.fail("");
        let back = now();
        service.rest(2 * SECOND).await;
        service.rides_out(short, back).await;
        let act = now();
        bench.fail("* rv=0x30");
        service.lapses(act).await;
        bench.fail("");
        service.resumes(now(), service.answer()).await;
        service.end();
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn calls_that_come_too_late() {
    alone_with_shim("shim::calls_that_come_too_late", |bench| async move {
        let service = Service::start("C_Decrypt takes 3 s", &bench).await;
        let act = now();
        bench.fail("C_Decrypt delay=3s");
        service.lapses(act).await;
        bench.fail("");
        // The calls under way take their 3 s.
        service.resumes(now().plus(3 * SECOND), service.answer()).await;
        service.end();
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn calls_that_hang() {
    alone_with_shim("shim::calls_that_hang", |bench| async move {
        let settings = settings().fresh_proof_every(2);
        let mut token = Service::token_settings(&bench, &settings);
        token.hung_max = 3;
        let mut service = Service::with("C_Decrypt hangs", settings, token, &bench).await;
        let act = now();
        bench.fail("C_Decrypt hang");
        service.lapses(act).await;
        let workers = service.token.workers();
        assert!(workers.restart_needed(), "{workers:?}");
        assert!(service.heard().iter().any(|event| matches!(event, Event::WorkerLost { .. })));
        service.say(&format!("{workers:?}"));
        bench.fail("");
        service.resumes(now(), service.answer()).await;
        assert!(!service.token.workers().restart_needed());
        service.end();
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn wrong_plaintext() {
    alone_with_shim("shim::wrong_plaintext", |bench| async move {
        let mut service = Service::start("wrong plaintext", &bench).await;
        bench.fail("C_Decrypt wrong-plaintext");
        service.refuses(Outcome::Denied, now(), service.answer()).await;
        assert!(service.heard().iter().any(|event| matches!(event, Event::KekReplaced { .. })));
        bench.fail("");
        service.resumes(now(), service.answer()).await;
        service.end();
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn a_refused_login() {
    alone_with_shim("shim::a_refused_login", |bench| async move {
        let settings = settings().fresh_proof_every(3);
        let token = Service::token_settings(&bench, &settings);
        let service = Service::with("CKR_PIN_INCORRECT once", settings, token, &bench).await;
        bench.fail("C_Login rv=0xa0 count=1");
        let bound = service.settings.fresh_proof_every * service.settings.poll_interval + service.answer();
        service.refuses(Outcome::Denied, now(), bound).await;
        // A second try would be taken, and there is none.
        let from = now();
        service.rest(4 * SECOND).await;
        service.stayed(Outcome::Denied, from);
        service.token.reload_pin();
        service.resumes(now(), service.answer()).await;
        service.end();
    });
}

/// Were there a second C_Login within the pause, the shim would let it pass and the call would succeed.
#[test]
#[ignore = "one of the scenarios above"]
fn a_login_that_fails_is_not_repeated() {
    alone_with_shim("shim::a_login_that_fails_is_not_repeated", |bench| async move {
        for (round, code) in [0x5, 0x6, 0x30, 0x101].into_iter().enumerate() {
            let pause = SECOND;
            bench.fail(&format!("# {round}\nC_Login rv={code:#x} count=1"));
            let from = now();
            let token = bench.open().await;
            let mut refused = 0;
            while let Err(error) = token.list_keks().await {
                assert_eq!(error.verdict, Verdict::Unreachable, "{error}");
                assert!(error.what.contains("C_Login: CKR_"), "{error}");
                refused += 1;
                tokio::time::sleep(SECOND / 20).await;
            }
            assert!(refused > 5 && now().since(from) >= pause, "{refused} in {:?}", now().since(from));
            // With its last session goes the login, and the next round needs one.
            drop(token);
            tokio::time::sleep(SECOND / 2).await;
        }
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn a_failed_login_that_the_token_counts_is_the_last() {
    alone_with_shim("shim::a_failed_login_that_the_token_counts_is_the_last", |bench| async move {
        // Somebody's wrong PIN: SoftHSM sets CKF_USER_PIN_COUNT_LOW.
        let mut wrong = bench.settings();
        wrong.pin = PinSource::Callback(Arc::new(|| Ok(b"wrong".to_vec())));
        assert_eq!(Pkcs11Token::open(wrong).await.unwrap_err().verdict, Verdict::Denied);

        bench.fail("C_GetSlotList rv=0x30");
        let token = bench.open().await;
        bench.fail("C_Login rv=0x5 count=1");
        let from = now();
        let mut denied = 0;
        while now().since(from) < 3 * SECOND {
            match token.list_keks().await.unwrap_err() {
                error if error.verdict == Verdict::Denied => {
                    assert!(error.what.contains("CKF_USER_PIN_COUNT_LOW"), "{error}");
                    denied += 1;
                }
                // The end of the trouble with the slots.
                error => assert!(denied == 0 && error.verdict == Verdict::Unreachable, "{error}"),
            }
            tokio::time::sleep(SECOND / 20).await;
        }
        assert!(denied > 5);
        token.reload_pin();
        assert!(token.list_keks().await.is_ok());
    });
}

/// SoftHSM's, when it was initialised in the instant in which another process logs in.
#[test]
#[ignore = "one of the scenarios above"]
fn a_context_that_misses_the_pin_denies_nothing() {
    alone_with_shim("shim::a_context_that_misses_the_pin_denies_nothing", |bench| async move {
        bench.fail("C_Login rv=0x102 this-context");
        let token = bench.open().await;
        let (kek, aek, wrapped) = account(&token, Profile::AesGcm).await;
        for round in 0..3 {
            bench.fail(&format!("# {round}\nC_Login rv=0x102 this-context"));
            token.renew_context().await.unwrap();
            assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.as_ref(), Ok(&aek));
        }

        // In every context: that is the token's word. No PIN was compared, so that it is tried when there is one.
        bench.fail("C_Login rv=0x102");
        token.renew_context().await.unwrap();
        let error = token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err();
        assert_eq!(error.verdict, Verdict::Denied, "{error}");
        assert!(error.remedy.contains("user PIN"), "{error}");
        assert_eq!(until_it_unwraps(&bench, &token, &kek, &wrapped).await, aek);

        // Where no context may be begun nothing is certain, so nothing is wiped.
        drop(token);
        tokio::time::sleep(SECOND / 2).await;
        let mut settings = bench.settings();
        settings.fresh = FreshContext::Never;
        bench.fail("# never\nC_Login rv=0x102");
        let token = Pkcs11Token::open(settings).await.unwrap();
        let error = token.list_keks().await.unwrap_err();
        assert_eq!(error.verdict, Verdict::Unreachable, "{error}");
        assert!(error.remedy.contains("restart the process"), "{error}");
        assert_eq!(until_it_unwraps(&bench, &token, &kek, &wrapped).await, aek);
    });
}

/// The exit handlers of what is under SoftHSM would take away what the call stands on: see `end_of_process`.
#[test]
#[ignore = "one of the scenarios above"]
fn a_process_that_ends_in_the_midst_of_a_call_does_not_crash() {
    alone_with_shim("shim::a_process_that_ends_in_the_midst_of_a_call_does_not_crash", |bench| async move {
        let token = bench.open().await;
        bench.fail("C_GenerateKey delay=1s");
        let spec = KekSpec { label: "keyleash/ends/1".into(), profile: Profile::AesGcm, destroyable: true };
        assert!(tokio::time::timeout(SECOND / 4, token.create_kek(&spec)).await.is_err(), "it is under way");
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn a_slow_token_and_fresh_proofs() {
    alone_with_shim("shim::a_slow_token_and_fresh_proofs", |bench| async move {
        let settings = settings().fresh_proof_every(1);
        let token = Service::token_settings(&bench, &settings);
        let mut service = Service::with("busy and slow, every proof fresh", settings, token, &bench).await;
        bench.fail("C_Decrypt delay=100ms");
        let from = now();
        let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        // As many as there are workers: whoever waits, waits at the gate.
        let callers: Vec<_> = (0..2)
            .map(|_| {
                let (token, calls) = (service.token.clone(), calls.clone());
                let kek = KekHandle { id: service.kek_id.clone(), profile: Profile::AesGcm };
                tokio::spawn(async move {
                    let aek = Aek::generate().unwrap();
                    let wrapped = token.wrap(&kek, &aek, &BINDING).await.unwrap();
                    while now().since(from) < 8 * SECOND {
                        assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap(), aek);
                        calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.await.unwrap();
        }
        service.undisturbed(from, 8 * SECOND);
        service.say(&format!("{} calls, each answered", calls.load(std::sync::atomic::Ordering::SeqCst)));
        let silent = |event: &&Event| {
            matches!(
                event,
                Event::Lease { change: keyleash::lease::Change::Unreachable, .. } | Event::WorkerLost { .. }
            )
        };
        assert_eq!(service.heard().iter().find(silent), None);
        service.end();
    });
}

/// SoftHSM goes on granting in the context that is there, and no other can be begun.
#[test]
#[ignore = "one of the scenarios above"]
fn a_changed_pin_while_a_call_hangs() {
    alone_with_shim("shim::a_changed_pin_while_a_call_hangs", |bench| async move {
        let settings = settings().fresh_proof_every(3);
        let token = Service::token_settings(&bench, &settings);
        let mut service = Service::with("PIN changed while a call hangs", settings, token, &bench).await;
        bench.fail("C_Decrypt hang count=1");
        while service.token.workers().hung == 0 {
            service.rest(SECOND / 20).await;
        }
        operator(&["set-pin", PIN, "another pin"]);
        let act = now();
        let bound = service.settings.fresh_proof_every * service.settings.poll_interval + service.settings.grace;
        service.refuses(Outcome::Lapsed, act, bound).await;
        let words = service.accounts[0].seal_to_vec(1_u64, b"block").unwrap_err().to_string();
        assert!(words.contains("no fresh proof"), "{words}");
        assert!(service.heard().iter().any(|event| matches!(event, Event::ContextNotRenewed { .. })));
        // The call comes back, and the next proof is a fresh one.
        bench.fail("");
        service.comes(Outcome::Denied).await;
        std::fs::write(bench.pin_file(), "another pin\n").unwrap();
        service.resumes(now(), service.answer()).await;
        service.end();
    });
}

/// Whether or not a context is renewed in a quiet moment, after which the PIN is refused: the bound holds.
#[test]
#[ignore = "one of the scenarios above"]
fn a_changed_pin_while_the_token_is_never_quiet() {
    alone_with_shim("shim::a_changed_pin_while_the_token_is_never_quiet", |bench| async move {
        let settings = settings().fresh_proof_every(3);
        let mut token = Service::token_settings(&bench, &settings);
        token.workers = 6;
        let service = Service::with("PIN changed on a busy token", settings, token, &bench).await;
        let kek = KekHandle { id: service.kek_id.clone(), profile: Profile::AesGcm };
        let wrapped = service.token.wrap(&kek, &Aek::generate().unwrap(), &BINDING).await.unwrap();
        bench.fail("C_Decrypt delay=700ms");
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let (token, kek, wrapped) = (service.token.clone(), kek.clone(), wrapped.clone());
                tokio::spawn(async move {
                    loop {
                        let _ = token.unwrap(&kek, &wrapped, &BINDING).await;
                    }
                })
            })
            .collect();
        service.rest(3 * SECOND).await;
        operator(&["set-pin", PIN, "another pin"]);
        let act = now();
        let bound = service.settings.fresh_proof_every * service.settings.poll_interval + service.settings.grace;
        service.refused_by(act, bound).await;
        callers.iter().for_each(|caller| caller.abort());
        bench.fail("");
        std::fs::write(bench.pin_file(), "another pin\n").unwrap();
        service.comes(Outcome::Ok).await;
        service.end();
    });
}

/// Every call slow, and hundreds waiting: proofs go first, nothing is taken for hung, and a revocation holds as ever.
async fn storm(name: &'static str, workers: usize, bench: Bench) {
    let mut token = Service::token_settings(&bench, &settings());
    token.workers = workers;
    let mut service = Service::with(name, settings(), token, &bench).await;
    bench.fail("C_Encrypt delay=100ms\nC_Decrypt delay=100ms");
    let from = now();
    let engine = service.engine.clone().unwrap();
    let storm: Vec<_> = (0..600)
        .map(|n| {
            let (engine, id) = (engine.clone(), AccountId::new(format!("storm-{n}")).unwrap());
            tokio::spawn(async move { engine.create_account(&id, &KekName::new(OTHER).unwrap()).await })
        })
        .collect();
    service.rest(service.settings.grace + 4 * SECOND).await;
    service.undisturbed(from, now().since(from));
    // Of neither KEK's lease.
    let trouble = |event: &&Event| {
        let is_trouble = matches!(event, Event::Lease { change, .. } if *change != keyleash::lease::Change::Granted);
        is_trouble || matches!(event, Event::WorkerLost { .. } | Event::ProofCrowdedOut { .. })
    };
    assert_eq!(service.heard().iter().find(trouble), None);
    operator(&["set", &service.kek_id.to_string(), "decrypt", "false"]);
    service.refuses(Outcome::Denied, now(), service.answer()).await;
    let made = storm.iter().filter(|one| one.is_finished()).count();
    assert!(made < storm.len(), "no storm any more");
    service.say(&format!("{made} accounts made meanwhile"));
    for one in storm {
        if one.is_finished() {
            drop(one.await.unwrap().unwrap());
        } else {
            one.abort();
        }
    }
    bench.fail("");
    service.end();
}

#[test]
#[ignore = "one of the scenarios above"]
fn a_storm_of_creations_under_another_kek() {
    alone_with_shim("shim::a_storm_of_creations_under_another_kek", |bench| {
        storm("600 creations at once, 3 workers", 3, bench)
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn a_storm_at_a_single_worker() {
    alone_with_shim("shim::a_storm_at_a_single_worker", |bench| storm("600 creations at once, 1 worker", 1, bench));
}

/// No other worker takes the place of the one that hangs: the one that idled beside it, kept for proofs, is all there is.
#[test]
#[ignore = "one of the scenarios above"]
fn who_waits_behind_a_call_that_hangs_for_good() {
    alone_with_shim("shim::who_waits_behind_a_call_that_hangs_for_good", |bench| async move {
        let mut settings = bench.settings();
        (settings.workers, settings.hung_max, settings.call_timeout) = (2, 0, SECOND);
        let token = Arc::new(Pkcs11Token::open(settings).await.unwrap());
        let (kek, aek, wrapped) = account(&token, Profile::AesGcm).await;
        bench.fail("C_Decrypt hang count=1");
        let unwrap = || {
            let (token, kek, wrapped) = (token.clone(), kek.clone(), wrapped.clone());
            tokio::spawn(async move { token.unwrap(&kek, &wrapped, &BINDING).await })
        };
        let hangs = unwrap();
        tokio::time::sleep(SECOND / 2).await;
        let waits = unwrap();
        assert_eq!(hangs.await.unwrap().unwrap_err().verdict, Verdict::Unreachable);
        // Nobody else calls, who would wake it.
        assert_eq!(waits.await.unwrap().unwrap(), aek);
        let workers = token.workers();
        assert_eq!((workers.alive, workers.hung), (1, 1));
        bench.fail("");
    });
}

async fn account(token: &Pkcs11Token, profile: Profile) -> (KekHandle, Aek, Wrapped) {
    let spec = KekSpec { label: format!("keyleash/{profile}/1"), profile, destroyable: true };
    let kek = KekHandle { id: token.create_kek(&spec).await.unwrap().id, profile };
    let aek = Aek::generate().unwrap();
    let wrapped = token.wrap(&kek, &aek, &BINDING).await.unwrap();
    (kek, aek, wrapped)
}

async fn until_it_unwraps(bench: &Bench, token: &Pkcs11Token, kek: &KekHandle, wrapped: &Wrapped) -> Aek {
    bench.fail("");
    for _ in 0..200 {
        match token.unwrap(kek, wrapped, &BINDING).await {
            Ok(aek) => return aek,
            Err(error) => assert_eq!(error.verdict, Verdict::Unreachable, "{error}"),
        }
        tokio::time::sleep(SECOND / 20).await;
    }
    panic!("the token never came back");
}

/// Return codes by their numbers: the table of TOKENS.md, as a module gives them for as long as it is asked.
#[test]
#[ignore = "one of the scenarios above"]
fn every_row_of_the_verdicts() {
    alone_with_shim("shim::every_row_of_the_verdicts", |bench| async move {
        let token = bench.open().await;
        let (gcm, aek, wrapped) = account(&token, Profile::AesGcm).await;
        assert_eq!(token.unwrap(&gcm, &wrapped, &BINDING).await.unwrap(), aek);
        let rows: [(Verdict, &[u64]); 4] = [
            (Verdict::Denied, &[0x68, 0x200, 0x1b, 0x63]),
            (
                Verdict::Unreachable,
                &[
                    0x82,
                    0x60,
                    0xb3,
                    0xb0,
                    0x101,
                    0x90,
                    0x91,
                    0x65,
                    0xb1, // retried in vain
                    0x40,
                    0x41,
                    0x20,
                    0x21,
                    0x110, // of every record, the known good one too
                    0x30,
                    0x32,
                    0x31,
                    0xe0,
                    0xe1,
                    0x3,
                    0x5,
                    0x6,
                    0x50,
                    0x2,
                    0x190,
                    0x8000_0001,
                    0x7777,
                ],
            ),
            // Of a KEK that worked before: somebody changed something.
            (Verdict::Denied, &[0x70, 0x71, 0x7, 0xd0, 0xd1, 0x10, 0x11, 0x12, 0x13, 0x54, 0x62, 0xb5, 0x150]),
            (Verdict::Fatal, &[0xa, 0x9, 0x1a0]),
        ];
        let mut asked = 0;
        for (verdict, codes) in rows {
            for code in codes {
                bench.fail(&format!("C_Decrypt rv={code:#x}"));
                let error = token.unwrap(&gcm, &wrapped, &BINDING).await.unwrap_err();
                assert_eq!(error.verdict, verdict, "{code:#x}: {error}");
                assert_eq!(until_it_unwraps(&bench, &token, &gcm, &wrapped).await, aek, "after {code:#x}");
                asked += 1;
            }
        }
        println!("{}verdicts: {asked} codes", crate::bench::MEASURED);

        // One code alone takes no key away, from a session and with a handle that are new either.
        for code in [0x68, 0x200, 0x1b, 0x63, 0x70, 0x13] {
            token.renew_context().await.unwrap();
            bench.fail(&format!("C_Decrypt rv={code:#x} count=1"));
            let back = token.unwrap(&gcm, &wrapped, &BINDING).await;
            assert_eq!(back.as_ref(), Ok(&aek), "{code:#x} once");
        }

        // Trouble that ends at whatever point of retry and diagnosis is an outage, or nothing at all.
        for code in [0x30, 0x5, 0x6] {
            for count in 1..=16 {
                bench.fail(&format!("C_Decrypt rv={code:#x} count={count}"));
                match token.unwrap(&gcm, &wrapped, &BINDING).await {
                    Ok(back) => assert_eq!(back, aek),
                    Err(error) => assert_eq!(error.verdict, Verdict::Unreachable, "{code:#x} {count} times: {error}"),
                }
                assert_eq!(until_it_unwraps(&bench, &token, &gcm, &wrapped).await, aek);
            }
        }

        let (kw, kw_aek, kw_wrapped) = account(&token, Profile::AesKw).await;
        assert_eq!(token.unwrap(&kw, &kw_wrapped, &BINDING).await.unwrap(), kw_aek);
        let mut corrupt = kw_wrapped.clone();
        corrupt.bytes[0] ^= 1;
        for (verdict, faults, wrapped) in [
            (Verdict::Denied, "C_UnwrapKey rv=0xf0", &kw_wrapped),
            (Verdict::Denied, "C_UnwrapKey rv=0xf2", &kw_wrapped),
            (Verdict::Denied, "C_UnwrapKey rv=0x68", &kw_wrapped),
            (Verdict::Unreachable, "C_UnwrapKey rv=0x30", &kw_wrapped),
            (Verdict::Unreachable, "C_OpenSession rv=0x30\nC_UnwrapKey rv=0xb3", &kw_wrapped),
            (Verdict::BadRecord, "", &corrupt),
        ] {
            bench.fail(faults);
            let error = token.unwrap(&kw, wrapped, &BINDING).await.unwrap_err();
            assert_eq!(error.verdict, verdict, "{faults}: {error}");
            assert_eq!(until_it_unwraps(&bench, &token, &kw, &kw_wrapped).await, kw_aek, "after {faults}");
        }
        bench.fail("C_GetAttributeValue wrong-plaintext");
        assert_ne!(
            token.unwrap(&kw, &kw_wrapped, &BINDING).await.unwrap(),
            kw_aek,
            "found out by the check value alone"
        );
    });
}
