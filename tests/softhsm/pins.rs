//! Which PINs are tried, and when: through the fault shim, with SoftHSM's own count of wrong ones as the witness.

use crate::bench::{Bench, LABEL, PIN, alone, alone_with_shim, context, eventually, operator, slot};
use cryptoki::session::SessionState;
use keyleash::{
    secret::Aek,
    token::{
        KekHandle, KekSpec, Profile, Token, TokenError, Verdict, Wrapped,
        pkcs11::{PinSource, Pkcs11Settings, Pkcs11Token, Selector},
    },
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

const BINDING: [u8; 32] = [5; 32];
const LOOK: Duration = Duration::from_millis(50);
const COUNT_LOW: u64 = 0x1_0000;
const FINAL_TRY: u64 = 0x2_0000;

struct Account {
    kek: KekHandle,
    aek: Aek,
    wrapped: Wrapped,
}

impl Account {
    async fn new(token: &Pkcs11Token) -> Self {
        let spec = KekSpec { label: "keyleash/x/1".into(), profile: Profile::AesGcm, destroyable: true };
        let kek = KekHandle { id: token.create_kek(&spec).await.unwrap().id, profile: Profile::AesGcm };
        let aek = Aek::generate().unwrap();
        let wrapped = token.wrap(&kek, &aek, &BINDING).await.unwrap();
        Self { kek, aek, wrapped }
    }

    async fn unwrap(&self, token: &Pkcs11Token) -> Result<(), TokenError> {
        let aek = token.unwrap(&self.kek, &self.wrapped, &BINDING).await?;
        assert_eq!(aek, self.aek);
        Ok(())
    }

    /// Until it unwraps; every refusal on the way has one of these verdicts.
    async fn comes_back(&self, token: &Pkcs11Token, on_the_way: &[Verdict]) {
        for _ in 0..400 {
            match self.unwrap(token).await {
                Ok(()) => return,
                Err(error) => assert!(on_the_way.contains(&error.verdict), "{error:?}"),
            }
            tokio::time::sleep(LOOK).await;
        }
        panic!("the token never came back");
    }
}

/// A source that a test changes, and how often it was asked.
#[derive(Clone)]
struct Source(Arc<Mutex<String>>, Arc<AtomicUsize>);

impl Source {
    fn new(pin: &str) -> Self {
        Self(Arc::new(Mutex::new(pin.into())), Arc::default())
    }

    fn becomes(&self, pin: &str) {
        *self.0.lock().unwrap() = pin.into();
    }

    fn settings(&self, bench: &Bench) -> Pkcs11Settings {
        let source = self.clone();
        let mut settings = bench.settings();
        settings.pin = PinSource::Callback(Arc::new(move || {
            source.1.fetch_add(1, Ordering::SeqCst);
            Ok(source.0.lock().unwrap().clone().into_bytes())
        }));
        settings
    }
}

/// Whether SoftHSM has counted a wrong PIN since the last right one.
fn counted(bench: &Bench) -> bool {
    bench.fail("");
    let pkcs11 = context();
    pkcs11.get_token_info(slot(&pkcs11)).unwrap().user_pin_count_low()
}

#[test]
fn a_pin_that_worked_outlives_a_login_that_fails_after_somebody_else_mistyped() {
    alone_with_shim(
        "pins::a_pin_that_worked_outlives_a_login_that_fails_after_somebody_else_mistyped",
        |bench| async move {
            let token = bench.open().await;
            let account = Account::new(&token).await;
            for code in [0x5, 0x6, 0x30, 0x8000_0001_u64] {
                operator(&["mistype"]);
                assert!(counted(&bench));
                bench.fail(&format!("C_Login rv={code:#x} count=1"));
                token.renew_context().await.unwrap();
                account.comes_back(&token, &[Verdict::Unreachable]).await;
                assert!(!counted(&bench), "the right PIN was entered");
            }
        },
    );
}

#[test]
fn a_pin_that_the_token_counted_denies_until_somebody_has_entered_a_right_one() {
    alone_with_shim(
        "pins::a_pin_that_the_token_counted_denies_until_somebody_has_entered_a_right_one",
        |bench| async move {
            let source = Source::new(PIN);
            let mut settings = source.settings(&bench);
            settings.call_timeout = Duration::from_secs(30);
            let token = Arc::new(Pkcs11Token::open(settings).await.unwrap());
            let account = Arc::new(Account::new(&token).await);
            token.renew_context().await.unwrap();
            // A wrong PIN is counted while ours is being compared.
            bench.fail("C_Login hang rv=0x5");
            let asked = source.1.load(Ordering::SeqCst);
            let call = tokio::spawn({
                let (token, account) = (token.clone(), account.clone());
                async move { account.unwrap(&token).await }
            });
            while source.1.load(Ordering::SeqCst) == asked {
                tokio::time::sleep(LOOK).await;
            }
            tokio::time::sleep(20 * LOOK).await;
            operator(&["mistype"]);
            bench.fail("");
            let error = call.await.unwrap().unwrap_err();
            assert!(error.verdict == Verdict::Denied && error.what.contains("CKF_USER_PIN_COUNT_LOW"), "{error:?}");
            // Were it tried, it would be taken.
            for _ in 0..60 {
                assert_eq!(account.unwrap(&token).await.unwrap_err().verdict, Verdict::Denied);
                tokio::time::sleep(LOOK).await;
            }
            operator(&["log-in"]);
            account.comes_back(&token, &[Verdict::Denied]).await;
        },
    );
}

#[test]
fn a_wrong_new_pin_is_not_tried_when_it_would_lock_the_token() {
    alone_with_shim("pins::a_wrong_new_pin_is_not_tried_when_it_would_lock_the_token", |bench| async move {
        let source = Source::new(PIN);
        let token = Pkcs11Token::open(source.settings(&bench)).await.unwrap();
        let account = Account::new(&token).await;
        source.becomes("a wrong new one");
        let last_try = format!("C_GetTokenInfo flags={FINAL_TRY:#x}");
        bench.fail(&last_try);
        token.renew_context().await.unwrap();
        for _ in 0..3 {
            let error = account.unwrap(&token).await.unwrap_err();
            assert!(error.verdict == Verdict::Denied && error.what.contains("would lock"), "{error:?}");
        }
        assert!(!counted(&bench));
        bench.fail(&last_try);
        token.renew_context().await.unwrap();
        source.becomes(PIN);
        account.unwrap(&token).await.unwrap();
        // One that was found logged in was not compared, so that it is not the one that worked.
        source.becomes("another wrong one");
        account.unwrap(&Pkcs11Token::open(source.settings(&bench)).await.unwrap()).await.unwrap();
        account.unwrap(&token).await.unwrap();
        token.renew_context().await.unwrap();
        assert!(account.unwrap(&token).await.unwrap_err().what.contains("would lock"));
        assert!(!counted(&bench));
    });
}

#[test]
fn no_unknown_pin_is_tried_while_the_token_does_not_say_what_it_counted() {
    alone_with_shim("pins::no_unknown_pin_is_tried_while_the_token_does_not_say_what_it_counted", |bench| async move {
        let source = Source::new("wrong from the start");
        // The token describes itself to be found, among SoftHSM's two slots, and then no more.
        bench.fail("C_GetTokenInfo rv=0x30 after=2");
        let token = Pkcs11Token::open(source.settings(&bench)).await.unwrap();
        assert_eq!(token.list_keks().await.unwrap_err().verdict, Verdict::Unreachable);
        assert!(!counted(&bench));
        // By slot id, for tokens that never describe themselves, each start tries it once, and whoever tries more must say so.
        let mut settings = source.settings(&bench);
        let pkcs11 = context();
        settings.token = Selector::Slot(slot(&pkcs11).id());
        bench.fail("C_GetTokenInfo rv=0x30\nC_Login rv=0x5 count=1");
        let by_slot = Pkcs11Token::open(settings).await.unwrap();
        for _ in 0..60 {
            assert_eq!(by_slot.list_keks().await.unwrap_err().verdict, Verdict::Unreachable);
            tokio::time::sleep(LOOK).await;
        }
        assert!(!counted(&bench), "a second one would have been");
    });
}

#[test]
fn a_locked_or_expired_pin_serves_once_the_token_takes_it_again() {
    alone_with_shim("pins::a_locked_or_expired_pin_serves_once_the_token_takes_it_again", |bench| async move {
        let token = bench.open().await;
        let account = Account::new(&token).await;
        for (code, name) in [(0xa4, "CKR_PIN_LOCKED"), (0xa3, "CKR_PIN_EXPIRED"), (0x200, "CKR_FUNCTION_REJECTED")] {
            bench.fail(&format!("C_Login rv={code:#x}"));
            token.renew_context().await.unwrap();
            for _ in 0..40 {
                let error = account.unwrap(&token).await.unwrap_err();
                assert!(error.verdict == Verdict::Denied && error.what.contains(name), "{error:?}");
                tokio::time::sleep(LOOK).await;
            }
            bench.fail("");
            account.comes_back(&token, &[Verdict::Denied]).await;
        }
    });
}

#[test]
fn a_pin_that_another_process_changed_is_taken_by_whoever_opens_the_token_again() {
    let name = "pins::a_pin_that_another_process_changed_is_taken_by_whoever_opens_the_token_again";
    alone(name, |bench| async move {
        let is_logged_out = || {
            // keyleash began this context, and may begin the next one.
            let pkcs11 = context();
            let session = pkcs11.open_ro_session(slot(&pkcs11)).unwrap();
            session.get_session_info().unwrap().session_state() == SessionState::RoPublic
        };
        let mut was = PIN;
        for pin in [PIN, "another pin", PIN] {
            if pin != was {
                operator(&["set-pin", was, pin]);
            }
            let token = Pkcs11Token::open(Source::new(pin).settings(&bench)).await.unwrap();
            let account = Account::new(&token).await;
            account.unwrap(&token).await.unwrap();
            drop(token);
            eventually("the last session is closed", is_logged_out).await;
            was = pin;
        }
        assert!(!counted(&bench));
    });
}

#[test]
fn the_right_pin_that_an_old_context_refused_is_taken_as_soon_as_a_fresh_one_may_begin() {
    let name = "pins::the_right_pin_that_an_old_context_refused_is_taken_as_soon_as_a_fresh_one_may_begin";
    alone_with_shim(name, |bench| async move {
        bench.add_token("busy");
        let (busy, source) = (Source::new(PIN), Source::new(PIN));
        let (mut busy, mut settings) = (busy.settings(&bench), source.settings(&bench));
        busy.token = Selector::Label("busy".into());
        (busy.call_timeout, settings.call_timeout) = (Duration::from_secs(60), Duration::from_secs(60));
        let (busy, token) = (Pkcs11Token::open(busy).await.unwrap(), Pkcs11Token::open(settings).await.unwrap());
        let (there, here) = (Account::new(&busy).await, Account::new(&token).await);
        // While a call is in the module nobody may begin a context.
        bench.fail("C_Decrypt hang");
        let busy = Arc::new(busy);
        let call = tokio::spawn({
            let busy = busy.clone();
            async move { there.unwrap(&busy).await }
        });
        while token.renew_context().await.is_ok() {}
        operator(&["set-pin", PIN, "another pin"]);
        source.becomes("another pin");
        let pkcs11 = context();
        // Nobody is logged in where a context was begun just now.
        let _ = pkcs11.open_ro_session(slot(&pkcs11)).unwrap().logout();
        let refused = here.unwrap(&token).await.unwrap_err();
        assert!(refused.verdict == Verdict::Denied && refused.what.contains("CKR_PIN_INCORRECT"), "{refused:?}");
        // Once its pause is over it is not tried there again.
        let mut words = String::new();
        for _ in 0..200 {
            tokio::time::sleep(LOOK).await;
            let refused = here.unwrap(&token).await.unwrap_err();
            assert_eq!(refused.verdict, Verdict::Denied, "{refused:?}");
            words = refused.what;
            if !words.contains("a moment ago") {
                break;
            }
        }
        assert!(words.contains("the token refused this PIN") && !words.contains("C_Login"), "{words}");

        bench.fail("");
        call.await.unwrap().unwrap();
        here.comes_back(&token, &[Verdict::Denied]).await;
    });
}

#[test]
fn what_a_token_says_of_itself_is_not_lost_over_one_field() {
    alone_with_shim("pins::what_a_token_says_of_itself_is_not_lost_over_one_field", |bench| async move {
        let odd = ["odd-time", "nul-padding", "odd-time nul-padding"].into_iter().zip(1..);
        let says = |(odd, at): (&str, u32), flags: u64| format!("# {at}\nC_GetTokenInfo {odd} flags={flags:#x}");
        // A wrong PIN is not tried at the last try, whatever the time is. First of all: no PIN is asked for where the process is logged
        // in, and it is until the last session of a token that was dropped is closed.
        for what in odd.clone() {
            bench.fail(&says(what, COUNT_LOW | FINAL_TRY));
            let wrong = Pkcs11Token::open(Source::new("wrong").settings(&bench)).await.unwrap_err();
            assert!(wrong.verdict == Verdict::Denied && wrong.what.contains("would lock"), "{what:?}: {wrong:?}");
            assert!(!counted(&bench), "{what:?}");
        }
        for what in odd {
            bench.fail(&says(what, COUNT_LOW));
            let token = bench.open().await;
            let info = token.info().await.unwrap();
            assert_eq!(info.label, LABEL, "{what:?}");
            assert!(!info.serial.is_empty() && !info.serial.contains('\0'), "{what:?}: {info:?}");
            let mut by_serial = bench.settings();
            by_serial.token = Selector::Serial(info.serial);
            assert!(Pkcs11Token::open(by_serial).await.unwrap().list_keks().await.is_ok(), "{what:?}");
        }
    });
}

#[test]
fn a_token_that_vanishes_between_the_listing_and_the_find_is_unreachable() {
    alone_with_shim(
        "pins::a_token_that_vanishes_between_the_listing_and_the_find_is_unreachable",
        |bench| async move {
            let token = bench.open().await;
            let account = Account::new(&token).await;
            // The list is asked for by two calls; before each find that finds nothing, and after the last.
            for calls in 0..6 {
                bench.fail(&format!("C_FindObjects nothing\nC_GetSlotList rv=0xe0 after={calls}"));
                token.renew_context().await.unwrap();
                let error = account.unwrap(&token).await.unwrap_err();
                assert_eq!(error.verdict, Verdict::Unreachable, "it vanished after {calls} calls: {error:?}");
                bench.fail("");
                account.comes_back(&token, &[Verdict::Unreachable]).await;
            }
            bench.fail("C_FindObjects nothing");
            token.renew_context().await.unwrap();
            assert_eq!(account.unwrap(&token).await.unwrap_err().verdict, Verdict::Denied, "it was there all the time");
        },
    );
}
