//! Outages, hangs and forks. Nothing here measures time: the promised deadline is given several times over.

use crate::bench::{PIN, alone, alone_with_shim, context, eventually, hold_lock, operator, session};
use keyleash::{
    secret::Aek,
    token::{
        KekHandle, KekSpec, Profile, Token, TokenError, Verdict, Wrapped,
        pkcs11::{FreshContext, Pkcs11Token},
    },
};
use std::{sync::Arc, time::Duration};

const BINDING: [u8; 32] = [5; 32];

async fn account(token: &dyn Token) -> (KekHandle, Aek, Wrapped) {
    let spec = KekSpec { label: "keyleash/x/1".into(), profile: Profile::AesGcm, destroyable: true };
    let kek = KekHandle { id: token.create_kek(&spec).await.unwrap().id, profile: Profile::AesGcm };
    let aek = Aek::generate().unwrap();
    let wrapped = token.wrap(&kek, &aek, &BINDING).await.unwrap();
    (kek, aek, wrapped)
}

async fn until_it_unwraps(token: &dyn Token, kek: &KekHandle, wrapped: &Wrapped) -> Aek {
    for _ in 0..100 {
        match token.unwrap(kek, wrapped, &BINDING).await {
            Ok(aek) => return aek,
            Err(error) => assert_eq!(error.verdict, Verdict::Unreachable, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the token never came back");
}

#[test]
fn a_token_that_goes_away_is_unreachable_and_comes_back_without_a_restart() {
    alone("trouble::a_token_that_goes_away_is_unreachable_and_comes_back_without_a_restart", |bench| async move {
        let token = bench.open().await;
        // Another token handle on the module: it must live through the re-initialisation.
        let bystander = bench.open().await;
        let (kek, aek, wrapped) = account(&token).await;
        assert_eq!(bystander.unwrap(&kek, &wrapped, &BINDING).await.unwrap(), aek);
        for _ in 0..2 {
            let away = bench.dir.join("away");
            std::fs::rename(bench.tokens(), &away).unwrap();
            for _ in 0..3 {
                let error = token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err();
                assert_eq!(error.verdict, Verdict::Unreachable, "not denied: {error}");
                let found = token.find_kek(&kek.id).await.unwrap_err();
                assert_eq!(found.verdict, Verdict::Unreachable, "not absent: {found}");
            }
            std::fs::rename(&away, bench.tokens()).unwrap();
            assert_eq!(until_it_unwraps(&token, &kek, &wrapped).await, aek);
            assert_eq!(until_it_unwraps(&bystander, &kek, &wrapped).await, aek);
        }
        let workers = token.workers();
        assert_eq!((workers.alive, workers.hung), (3, 0));
    });
}

#[test]
fn an_engine_may_start_while_the_token_is_away() {
    alone("trouble::an_engine_may_start_while_the_token_is_away", |bench| async move {
        let (kek, aek, wrapped) = account(&bench.open().await).await;
        let away = bench.dir.join("away");
        std::fs::rename(bench.tokens(), &away).unwrap();
        let token = Pkcs11Token::open(bench.settings()).await.unwrap();
        assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err().verdict, Verdict::Unreachable);
        std::fs::rename(&away, bench.tokens()).unwrap();
        assert_eq!(until_it_unwraps(&token, &kek, &wrapped).await, aek);
    });
}

#[test]
fn a_proof_takes_no_answer_that_is_older_than_itself() {
    alone_with_shim("trouble::a_proof_takes_no_answer_that_is_older_than_itself", |bench| async move {
        let token = bench.open().await;
        let (kek, aek, wrapped) = account(&token).await;
        let is_back = async || {
            bench.fail("");
            assert_eq!(token.prove(&kek, &wrapped, &BINDING).await.unwrap(), aek);
        };
        // What others try meanwhile begins a pause each time, and a longer one.
        bench.fail("C_Decrypt rv=0x30\nC_Initialize rv=0x5");
        let mut tried = 0;
        while tried < 6 {
            let error = token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err();
            assert_eq!(error.verdict, Verdict::Unreachable, "{error}");
            tried += u32::from(error.what.contains("C_Initialize") && !error.what.contains("a moment ago"));
        }
        is_back().await;

        token.renew_context().await.unwrap();
        bench.fail("C_Login rv=0x30");
        let error = token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err();
        assert!(error.verdict == Verdict::Unreachable && error.what.contains("C_Login"), "{error}");
        is_back().await;
    });
}

#[test]
fn a_hang_costs_a_worker_and_never_the_caller() {
    alone("trouble::a_hang_costs_a_worker_and_never_the_caller", |bench| async move {
        let mut settings = bench.settings();
        settings.call_timeout = Duration::from_millis(400);
        (settings.workers, settings.hung_max) = (1, 2);
        let token = Arc::new(Pkcs11Token::open(settings).await.unwrap());
        let (kek, aek, wrapped) = account(&*token).await;
        let objects = bench.objects();
        let held: Vec<_> = objects.iter().map(|file| hold_lock(file)).collect();

        // A caller that does not wait for its answer leaves no worker behind uncounted.
        let dropped = tokio::time::timeout(Duration::from_millis(50), token.unwrap(&kek, &wrapped, &BINDING)).await;
        assert!(dropped.is_err(), "it should hang");
        eventually("the dropped call is counted", || token.workers().hung == 1).await;
        assert_eq!(token.workers().alive, 1, "its worker was replaced");

        let mut verdicts = Vec::new();
        while !token.workers().restart_needed() && verdicts.len() < 8 {
            verdicts.push(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err().verdict);
        }
        assert_eq!(
            verdicts,
            [Verdict::Unreachable; 2],
            "the budget is two hung calls, and the place of the third stays empty"
        );
        let error = token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err();
        assert_eq!(error.verdict, Verdict::Fatal, "{error}");

        drop(held);
        eventually("the hung calls come back", || token.workers().hung == 0).await;
        assert_eq!(token.workers().alive, 1);
        assert_eq!(until_it_unwraps(&*token, &kek, &wrapped).await, aek);
    });
}

#[test]
fn the_module_is_not_finalized_under_a_call_that_hangs() {
    alone("trouble::the_module_is_not_finalized_under_a_call_that_hangs", |bench| async move {
        let mut settings = bench.settings();
        settings.call_timeout = Duration::from_millis(400);
        let token = Pkcs11Token::open(settings).await.unwrap();
        let (kek, aek, wrapped) = account(&token).await;
        let held: Vec<_> = bench.objects().iter().map(|file| hold_lock(file)).collect();
        assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err().verdict, Verdict::Unreachable);
        assert_eq!(token.workers().hung, 1);
        let refused = token.renew_context().await.unwrap_err();
        assert!(refused.verdict == Verdict::Fatal && refused.what.contains("hang"), "{refused}");

        // What does not touch the locked files still finds the token gone, and would have to re-initialise.
        let away = bench.dir.join("away");
        std::fs::rename(bench.tokens(), &away).unwrap();
        let error = token.info().await.unwrap_err();
        assert_eq!(error.verdict, Verdict::Unreachable);
        assert!(error.what.contains("hang") || error.what.contains("did not answer"), "{error}");
        std::fs::rename(&away, bench.tokens()).unwrap();

        drop(held);
        eventually("the hung calls come back", || token.workers().hung == 0).await;
        assert_eq!(until_it_unwraps(&token, &kek, &wrapped).await, aek);
    });
}

#[test]
fn a_logout_elsewhere_in_the_process_is_neither_a_denial_nor_a_missing_kek() {
    alone("trouble::a_logout_elsewhere_in_the_process_is_neither_a_denial_nor_a_missing_kek", |bench| async move {
        let token = bench.open().await;
        let (kek, aek, wrapped) = account(&token).await;
        let pkcs11 = context();
        session(&pkcs11).logout().unwrap();
        assert!(token.find_kek(&kek.id).await.unwrap().is_some());
        session(&pkcs11).logout().unwrap();
        assert_eq!(token.list_keks().await.unwrap().len(), 1);
        session(&pkcs11).logout().unwrap();
        assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap(), aek);
    });
}

#[test]
fn a_token_without_a_user_pin_is_denied_and_serves_once_it_has_one() {
    alone("trouble::a_token_without_a_user_pin_is_denied_and_serves_once_it_has_one", |bench| async move {
        let token = bench.open().await;
        operator(&["reset-token"]);
        token.renew_context().await.unwrap();
        for _ in 0..3 {
            let error = token.list_keks().await.unwrap_err();
            assert_eq!(error.verdict, Verdict::Denied, "{error}");
            assert!(error.what.contains("CKR_USER_PIN_NOT_INITIALIZED"), "{error}");
            assert!(error.remedy.contains("security officer"), "{error}");
        }
        let error = Pkcs11Token::open(bench.settings()).await.unwrap_err();
        assert_eq!(error.verdict, Verdict::Denied, "{error}");
        operator(&["init-pin"]);
        assert_eq!(token.list_keks().await.unwrap(), [], "the PIN was not refused, so it is tried");
    });
}

/// SoftHSM fails at C_GetTokenInfo once it has logged in there, as it does when the folder is away.
#[test]
#[allow(unsafe_code)]
fn a_token_in_a_read_only_folder_serves_and_one_that_goes_away_from_there_is_no_denial() {
    let name = "trouble::a_token_in_a_read_only_folder_serves_and_one_that_goes_away_from_there_is_no_denial";
    alone(name, |bench| async move {
        use std::os::unix::fs::PermissionsExt;
        let chmod = |path: &std::path::Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let (kek, aek, wrapped) = account(&bench.open().await).await;
        // Another process, if only by its rights: as root nothing is read-only.
        chmod(&bench.dir, 0o755);
        for file in ["pin", "softhsm2.conf"] {
            chmod(&bench.dir.join(file), 0o444);
        }
        for folder in std::fs::read_dir(bench.tokens()).unwrap() {
            let folder = folder.unwrap().path();
            std::fs::read_dir(&folder).unwrap().for_each(|file| chmod(&file.unwrap().path(), 0o444));
            chmod(&folder, 0o555);
        }
        chmod(&bench.tokens(), 0o555);
        let away = bench.dir.join("away");
        if rustix::process::geteuid().is_root() {
            // To move the tokens away later.
            std::os::unix::fs::chown(&bench.dir, Some(65_534), Some(65_534)).unwrap();
            // SAFETY: changes the ids of this process alone, which was started for this test.
            assert_eq!(unsafe { (libc::setgid(65_534), libc::setuid(65_534)) }, (0, 0));
        }
        let token = Arc::new(bench.open().await);
        for _ in 0..2 {
            let callers: Vec<_> = (0..8)
                .map(|_| {
                    let (token, kek, wrapped) = (token.clone(), kek.clone(), wrapped.clone());
                    tokio::spawn(async move { token.unwrap(&kek, &wrapped, &BINDING).await.unwrap() })
                })
                .collect();
            for caller in callers {
                assert_eq!(caller.await.unwrap(), aek);
            }
            assert_eq!(token.info().await.unwrap().label, crate::bench::LABEL);
            assert_eq!(token.list_keks().await.unwrap().len(), 1);
            assert!(token.find_kek(&kek.id).await.unwrap().is_some());
            token.renew_context().await.unwrap();
        }
        assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap(), aek);
        std::fs::rename(bench.tokens(), &away).unwrap();
        for _ in 0..3 {
            let error = token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err();
            assert_eq!(error.verdict, Verdict::Unreachable, "{error}");
        }
        std::fs::rename(&away, bench.tokens()).unwrap();
        assert_eq!(until_it_unwraps(&*token, &kek, &wrapped).await, aek);
    });
}

/// Asks a future once, as a child of a fork can: the threads that would wake it are the parent's.
fn ask_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(answer) => Some(answer),
        std::task::Poll::Pending => None,
    }
}

fn tells_of_a_fork(refused: Option<Result<(), TokenError>>) -> bool {
    let Some(Err(error)) = refused else { return false };
    error.verdict == Verdict::Fatal && error.what.contains("forked") && error.remedy.contains("after the fork")
}

#[test]
#[allow(unsafe_code)]
fn a_forked_child_gets_an_error_and_never_the_sessions_of_its_parent() {
    alone("trouble::a_forked_child_gets_an_error_and_never_the_sessions_of_its_parent", |bench| async move {
        let token = bench.open().await;
        let (kek, aek, wrapped) = account(&token).await;
        // SAFETY: the child of a fork has one thread; it asks for errors that need no other, and ends without running destructors.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let refused = tells_of_a_fork(ask_once(token.unwrap(&kek, &wrapped, &BINDING)).map(|one| one.map(drop)))
                && tells_of_a_fork(ask_once(token.find_kek(&kek.id)).map(|one| one.map(drop)))
                && tells_of_a_fork(ask_once(token.renew_context()));
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(if refused { 0 } else { 1 }) };
        }
        let mut status = -1;
        // SAFETY: waits for our own child, and writes its status to a variable of ours.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "the child was not refused: {status:#x}");
        assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap(), aek, "the parent's token works on");
    });
}

#[test]
fn a_fresh_context_sees_what_an_open_one_hides_and_harms_no_call() {
    alone("trouble::a_fresh_context_sees_what_an_open_one_hides_and_harms_no_call", |bench| async move {
        let token = Arc::new(bench.open().await);
        let bystander = Arc::new(bench.open().await);
        let (kek, aek, wrapped) = account(&*token).await;
        // Calls of two tokens on the module, while it is re-initialised again and again.
        let callers: Vec<_> = [token.clone(), token.clone(), bystander.clone(), bystander]
            .into_iter()
            .map(|token| {
                let (kek, wrapped) = (kek.clone(), wrapped.clone());
                tokio::spawn(async move {
                    let mut calls = 0_u32;
                    let mut last = None;
                    while calls < 500 {
                        last = Some(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap());
                        calls += 1;
                    }
                    last.unwrap()
                })
            })
            .collect();
        for _ in 0..20 {
            token.renew_context().await.unwrap();
        }
        for caller in callers {
            assert_eq!(caller.await.unwrap(), aek);
        }
        operator(&["set-pin", PIN, "another pin"]);
        assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap(), aek, "SoftHSM hides it from an open context");
        token.renew_context().await.unwrap();
        assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err().verdict, Verdict::Denied);
    });
}

const FOUND_OPEN: &str = "trouble::a_context_that_was_found_open_is_never_finalized";
const SHARED: &str = "trouble::a_context_that_is_shared_with_the_host_is_never_finalized";

#[test]
fn a_context_that_was_found_open_is_never_finalized() {
    alone(FOUND_OPEN, |bench| async move {
        let host = context();
        let host = session(&host);
        outlives(host, bench.open().await, &bench.dir).await;
    });
}

#[test]
fn a_context_that_is_shared_with_the_host_is_never_finalized() {
    alone(SHARED, |bench| async move {
        let mut settings = bench.settings();
        settings.fresh = FreshContext::Never;
        let token = Pkcs11Token::open(settings).await.unwrap();
        let host = context();
        let host = session(&host);
        outlives(host, token, &bench.dir).await;
    });
}

/// The host's session works through fresh proofs and an outage.
async fn outlives(host: cryptoki::session::Session, token: Pkcs11Token, dir: &std::path::Path) {
    let (kek, aek, wrapped) = account(&token).await;
    for _ in 0..3 {
        token.renew_context().await.unwrap();
        assert!(host.get_session_info().is_ok());
        assert_eq!(token.unwrap(&kek, &wrapped, &BINDING).await.unwrap(), aek);
    }
    std::fs::rename(dir.join("tokens"), dir.join("away")).unwrap();
    for _ in 0..3 {
        let error = token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err();
        assert_eq!(error.verdict, Verdict::Unreachable, "{error}");
        assert!(error.what.contains("this process"), "{error}");
    }
    std::fs::rename(dir.join("away"), dir.join("tokens")).unwrap();
    assert!(host.get_session_info().is_ok());
    // It is the host that gets the token back.
    let pkcs11 = context();
    std::mem::forget(host);
    pkcs11.finalize().unwrap();
    let _host = context();
    assert_eq!(until_it_unwraps(&token, &kek, &wrapped).await, aek);
}

#[test]
fn a_decoy_that_may_not_wrap_is_another_key_and_not_a_silence() {
    alone("trouble::a_decoy_that_may_not_wrap_is_another_key_and_not_a_silence", |bench| async move {
        let token = bench.open().await;
        // SoftHSM has no OAEP with SHA-256.
        for profile in [Profile::AesGcm, Profile::AesKw] {
            let spec = KekSpec { label: format!("keyleash/{profile}/1"), profile, destroyable: true };
            let kek = KekHandle { id: token.create_kek(&spec).await.unwrap().id, profile };
            let wrapped = token.wrap(&kek, &Aek::generate().unwrap(), &BINDING).await.unwrap();
            token.unwrap(&kek, &wrapped, &BINDING).await.unwrap();
            let id = kek.id.to_string();
            // What the owner of the right key switches off makes no other key of it.
            let (off, on) = if profile == Profile::AesKw { ("unwrap", "wrap") } else { ("decrypt", "encrypt") };
            operator(&["set", &id, off, "false"]);
            let error = token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err();
            assert_eq!(error.verdict, Verdict::Denied, "{profile}: {error}");
            operator(&["set", &id, off, "true"]);
            operator(&["set", &id, on, "false"]);
            token.unwrap(&kek, &wrapped, &BINDING).await.unwrap();
            operator(&["decoy", &id, profile.name()]);
            let error = token.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err();
            assert_eq!(error.verdict, Verdict::Replaced, "{profile}: {error}");
            assert!(error.what.contains("CKA_CHECK_VALUE differs"), "{error}");
        }
    });
}
