//! Trouble that passes, through the fault shim: it denies nothing, and ends nothing for good.

use crate::{
    bench::{Bench, MEASURED, PIN, alone_with_shim, context, operator, slot},
    service::{Outcome, SECOND, Service, now},
};
use keyleash::{
    secret::Aek,
    token::{
        KekHandle, KekSpec, Profile, Token, TokenError, Verdict, Wrapped,
        pkcs11::{Pkcs11Settings, Pkcs11Token, Selector},
    },
};
use std::sync::Arc;

const BINDING: [u8; 32] = [5; 32];

struct Account {
    kek: KekHandle,
    wrapped: Wrapped,
}

impl Account {
    async fn new(token: &Pkcs11Token) -> Self {
        let spec = KekSpec { label: "keyleash/x/1".into(), profile: Profile::AesGcm, destroyable: true };
        let kek = KekHandle { id: token.create_kek(&spec).await.unwrap().id, profile: Profile::AesGcm };
        let wrapped = token.wrap(&kek, &Aek::generate().unwrap(), &BINDING).await.unwrap();
        let account = Self { kek, wrapped };
        account.unwrap(token).await.unwrap();
        account
    }

    async fn unwrap(&self, token: &Pkcs11Token) -> Result<(), TokenError> {
        token.unwrap(&self.kek, &self.wrapped, &BINDING).await.map(drop)
    }

    /// Until it unwraps, with whatever fault there is.
    async fn comes_back(&self, token: &Pkcs11Token) {
        let mut last = None;
        for _ in 0..400 {
            match self.unwrap(token).await {
                Ok(()) => return,
                Err(error) => {
                    assert_eq!(error.verdict, Verdict::Unreachable, "{error:?}");
                    last = Some(error);
                }
            }
            tokio::time::sleep(SECOND / 20).await;
        }
        panic!("the token never came back: {last:?}");
    }
}

fn by_slot(bench: &Bench) -> Pkcs11Settings {
    let pkcs11 = context();
    let mut settings = bench.settings();
    settings.token = Selector::Slot(slot(&pkcs11).id());
    let _ = pkcs11.finalize();
    settings
}

#[test]
fn an_error_that_passes_while_a_kek_is_read_is_no_denial() {
    alone_with_shim("passing::an_error_that_passes_while_a_kek_is_read_is_no_denial", |bench| async move {
        let token = bench.open().await;
        let account = Account::new(&token).await;
        for (fresh, places) in [(false, 3), (true, 20)] {
            for (place, count) in (0..places).flat_map(|place| [(place, 1), (place, 2)]) {
                if fresh {
                    token.renew_context().await.unwrap();
                }
                bench.fail(&format!(
                    "# {fresh} {place} {count}\nC_GetAttributeValue rv=0x5 count={count} after={place}"
                ));
                if let Err(error) = account.unwrap(&token).await {
                    let denies = matches!(error.verdict, Verdict::Denied | Verdict::Replaced | Verdict::Misconfigured);
                    assert!(!denies, "fresh {fresh}, {count} after {place}: {error:?}");
                }
                bench.fail("");
                account.comes_back(&token).await;
            }
        }
    });
}

#[test]
fn after_a_finalize_that_failed_the_next_context_is_fresh_again() {
    alone_with_shim("passing::after_a_finalize_that_failed_the_next_context_is_fresh_again", |bench| async move {
        let token = bench.open().await;
        let account = Account::new(&token).await;
        bench.fail("C_Finalize rv=0x30 count=1");
        let error = token.renew_context().await.unwrap_err();
        assert!(error.what.contains("C_Finalize: CKR_DEVICE_ERROR"), "{error}");
        account.unwrap(&token).await.unwrap();
        operator(&["set-pin", PIN, "another pin"]);
        token.renew_context().await.unwrap();
        assert_eq!(account.unwrap(&token).await.unwrap_err().verdict, Verdict::Denied);
    });
}

#[test]
fn a_login_that_never_returns_keeps_the_token_from_nobody_else() {
    alone_with_shim("passing::a_login_that_never_returns_keeps_the_token_from_nobody_else", |bench| async move {
        let mut settings = bench.settings();
        settings.call_timeout = SECOND;
        let token = Pkcs11Token::open(settings).await.unwrap();
        let account = Account::new(&token).await;
        bench.fail("C_Login hang count=1");
        token.renew_context().await.unwrap();
        account.comes_back(&token).await;
        assert_eq!(token.workers().hung, 1, "it is still there");
        bench.fail("");
    });
}

#[test]
fn a_pin_file_that_is_away_denies_nothing_to_a_process_that_was_found_logged_in() {
    alone_with_shim(
        "passing::a_pin_file_that_is_away_denies_nothing_to_a_process_that_was_found_logged_in",
        |bench| async move {
            let first = bench.open().await;
            let account = Account::new(&first).await;
            let second = bench.open().await;
            account.unwrap(&second).await.unwrap();
            let away = bench.dir.join("pin.away");
            std::fs::rename(bench.pin_file(), &away).unwrap();
            second.renew_context().await.unwrap();
            let error = account.unwrap(&second).await.unwrap_err();
            assert_eq!(error.verdict, Verdict::Unreachable, "{error:?}");
            std::fs::rename(&away, bench.pin_file()).unwrap();
            account.comes_back(&second).await;
        },
    );
}

#[test]
fn a_token_chosen_by_slot_whose_folder_is_away_is_unreachable() {
    alone_with_shim("passing::a_token_chosen_by_slot_whose_folder_is_away_is_unreachable", |bench| async move {
        let account = Account::new(&bench.open().await).await;
        let token = Pkcs11Token::open(by_slot(&bench)).await.unwrap();
        account.unwrap(&token).await.unwrap();
        let away = bench.dir.join("away");
        std::fs::rename(bench.tokens(), &away).unwrap();
        for _ in 0..3 {
            let error = account.unwrap(&token).await.unwrap_err();
            assert_eq!(error.verdict, Verdict::Unreachable, "{error:?}");
        }
        std::fs::rename(&away, bench.tokens()).unwrap();
    });
}

#[test]
fn a_login_that_compared_nothing_is_no_try_of_the_pin() {
    alone_with_shim("passing::a_login_that_compared_nothing_is_no_try_of_the_pin", |bench| async move {
        let account = Account::new(&bench.open().await).await;
        let settings = by_slot(&bench);
        bench.fail("C_GetTokenInfo rv=0x30");
        let token = Pkcs11Token::open(settings).await.unwrap();
        account.unwrap(&token).await.unwrap();
        // CKR_HOST_MEMORY, CKR_DEVICE_REMOVED, CKR_TOKEN_NOT_PRESENT.
        for code in [0x2, 0x32, 0xe0] {
            bench.fail(&format!("C_GetTokenInfo rv=0x30\nC_Login rv={code:#x} count=6"));
            token.renew_context().await.unwrap();
            account.comes_back(&token).await;
        }
    });
}

#[test]
fn another_key_in_a_kek_s_place_is_told_from_silence_on_a_slow_token() {
    alone_with_shim("passing::another_key_in_a_kek_s_place_is_told_from_silence_on_a_slow_token", |bench| async move {
        let service = Service::start("another key in a slow token", &bench).await;
        bench.fail("C_Decrypt delay=150ms");
        service.rest(3 * SECOND).await;
        operator(&["replace-key", &service.kek_id.to_string()]);
        service.refuses(Outcome::Denied, now(), service.answer()).await;
        service.end();
    });
}

/// A denial takes more calls than an unwrap: what comes after the deadline is a silence, and grace is longer than a poll.
#[test]
fn a_denial_is_heard_from_a_token_of_which_every_call_takes_its_time() {
    alone_with_shim("passing::a_denial_is_heard_from_a_token_of_which_every_call_takes_its_time", |bench| async move {
        let mut settings = bench.settings();
        settings.call_timeout = 2 * SECOND;
        let token = Pkcs11Token::open(settings).await.unwrap();
        let account = Account::new(&token).await;
        bench.fail("* delay=50ms");
        let from = now();
        account.unwrap(&token).await.unwrap();
        println!("{MEASURED}an unwrap of 50 ms a call: {:?}", now().since(from));
        operator(&["set", &account.kek.id.to_string(), "decrypt", "false"]);
        for _ in 0..2 {
            let from = now();
            let error = account.unwrap(&token).await.unwrap_err();
            println!("{MEASURED}a denial of 50 ms a call: {:?}", now().since(from));
            assert_eq!(error.verdict, Verdict::Denied, "{error:?}");
        }
    });
}

#[test]
fn calls_that_hang_and_are_no_unwraps_leave_workers_for_those() {
    alone_with_shim("passing::calls_that_hang_and_are_no_unwraps_leave_workers_for_those", |bench| async move {
        let mut settings = bench.settings();
        settings.call_timeout = SECOND / 2;
        let token = Pkcs11Token::open(settings).await.unwrap();
        let account = Account::new(&token).await;
        bench.fail("C_EncryptInit hang");
        for _ in 0..16 {
            let error = token.wrap(&account.kek, &Aek::generate().unwrap(), &BINDING).await.unwrap_err();
            assert_eq!(error.verdict, Verdict::Unreachable, "{error:?}");
        }
        token.prove(&account.kek, &account.wrapped, &BINDING).await.unwrap();
        account.unwrap(&token).await.unwrap();
        bench.fail("");
        let mut wraps = false;
        for _ in 0..400 {
            wraps = token.wrap(&account.kek, &Aek::generate().unwrap(), &BINDING).await.is_ok();
            if wraps {
                break;
            }
            tokio::time::sleep(SECOND / 20).await;
        }
        assert!(wraps, "{:?}", token.workers());
    });
}

#[test]
fn who_waits_no_more_takes_nobody_s_turn() {
    alone_with_shim("passing::who_waits_no_more_takes_nobody_s_turn", |bench| async move {
        let token = Arc::new(bench.open().await);
        let before = token.list_keks().await.unwrap().len();
        bench.fail("C_GenerateKey delay=300ms");
        let callers: Vec<_> = (0..40)
            .map(|number| {
                let token = token.clone();
                let spec =
                    KekSpec { label: format!("keyleash/x/{number}"), profile: Profile::AesGcm, destroyable: true };
                tokio::spawn(async move { token.create_kek(&spec).await })
            })
            .collect();
        tokio::time::sleep(SECOND / 10).await;
        callers.iter().for_each(|caller| caller.abort());
        // Its turn is after all of theirs.
        let made = token.list_keks().await.unwrap().len() - before;
        assert!(made <= 10, "{made} KEKs made for callers who were gone");
    });
}

/// It did three times in ten.
#[test]
fn a_process_that_ends_as_calls_that_hung_come_back_does_not_crash() {
    alone_with_shim("passing::a_process_that_ends_as_calls_that_hung_come_back_does_not_crash", |bench| async move {
        let mut settings = bench.settings();
        settings.call_timeout = SECOND / 2;
        bench.fail("C_Login hang");
        let tokens: Vec<_> = (0..16).map(|_| tokio::spawn(Pkcs11Token::open(settings.clone()))).collect();
        for token in tokens {
            assert_eq!(token.await.unwrap().unwrap().workers().hung, 1);
        }
        bench.fail("");
    });
}
