//! The promises on a real token, while another process acts on it. Each scenario has a token and a process of its own.

use crate::{
    bench::{Bench, PIN, alone, operator},
    service::{KEK, OTHER, Outcome, SECOND, Service, now, settings},
};
use keyleash::{
    Engine, Error,
    name::{AccountId, KekName},
    store::redb::RedbStore,
    telemetry::Event,
    token::pkcs11::Pkcs11Token,
};
use std::{path::Path, process::Command, sync::Arc};

/// Scenarios wait most of the time: so all at once.
pub(crate) fn at_once(scenarios: &[fn()]) {
    let failed = std::thread::scope(|scope| {
        let running: Vec<_> = scenarios.iter().map(|scenario| scope.spawn(scenario)).collect();
        running.into_iter().map(|one| one.join()).filter(Result::is_err).count()
    });
    assert_eq!(failed, 0, "scenarios failed; their words are above");
}

#[test]
fn the_promises_hold_whatever_another_process_does_to_the_token() {
    at_once(&[
        disabled_and_enabled,
        destroyed_and_restored,
        pin_changed,
        away_and_back,
        replaced_under_its_name,
        ttl_passed_in_an_outage,
        denial_outlives_a_restart,
        impostor_after_a_restart,
    ]);
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(done.success());
}

/// Puts a backup of the token directory in the place of what is there.
fn restore(bench: &Bench) {
    std::fs::rename(bench.tokens(), bench.dir.join("gone")).unwrap();
    copy(&bench.dir.join("backup"), &bench.tokens());
    std::fs::remove_dir_all(bench.dir.join("gone")).unwrap();
}

#[test]
#[ignore = "one of the scenarios above"]
fn disabled_and_enabled() {
    alone("leash::disabled_and_enabled", |bench| async move {
        let service = Service::start("CKA_DECRYPT off and on", &bench).await;
        let id = service.kek_id.to_string();
        for _ in 0..2 {
            operator(&["set", &id, "decrypt", "false"]);
            service.refuses(Outcome::Denied, now(), service.answer()).await;
            operator(&["set", &id, "decrypt", "true"]);
            service.resumes(now(), service.answer()).await;
        }
        service.other_undisturbed();
        service.end();
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn destroyed_and_restored() {
    alone("leash::destroyed_and_restored", |bench| async move {
        let service = Service::start("KEK destroyed and restored", &bench).await;
        copy(&bench.tokens(), &bench.dir.join("backup"));
        operator(&["destroy", &service.kek_id.to_string()]);
        service.refuses(Outcome::Denied, now(), service.answer()).await;
        service.other_undisturbed();
        restore(&bench);
        service.resumes(now(), service.answer()).await;
        service.end();
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn pin_changed() {
    alone("leash::pin_changed", |bench| async move {
        let settings = settings().fresh_proof_every(3);
        let token = Service::token_settings(&bench, &settings);
        let service = Service::with("PIN changed", settings, token, &bench).await;
        let from = now();
        service.rest(4 * SECOND).await;
        service.undisturbed(from, 4 * SECOND);
        operator(&["set-pin", PIN, "another pin"]);
        // SoftHSM shows it to nobody who has an open context: only the fresh proof finds out.
        let bound = service.settings.fresh_proof_every * service.settings.poll_interval + service.answer();
        service.refuses(Outcome::Denied, now(), bound).await;
        std::fs::write(bench.pin_file(), "another pin\n").unwrap();
        service.resumes(now(), service.answer()).await;
        service.end();
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn away_and_back() {
    alone("leash::away_and_back", |bench| async move {
        let service = Service::start("token directory away and back", &bench).await;
        let away = bench.dir.join("away");
        let short = now();
        std::fs::rename(bench.tokens(), &away).unwrap();
        service.rest(3 * SECOND).await;
        std::fs::rename(&away, bench.tokens()).unwrap();
        let back = now();
        service.rest(3 * SECOND).await;
        service.rides_out(short, back).await;
        let act = now();
        std::fs::rename(bench.tokens(), &away).unwrap();
        service.lapses(act).await;
        std::fs::rename(&away, bench.tokens()).unwrap();
        service.resumes(now(), service.answer()).await;
        service.end();
    });
}

/// Within grace, but longer than the rest of any TTL.
#[test]
#[ignore = "one of the scenarios above"]
fn ttl_passed_in_an_outage() {
    alone("leash::ttl_passed_in_an_outage", |bench| async move {
        let settings = settings().grace(12 * SECOND).aek_ttl(6 * SECOND);
        let token = Service::token_settings(&bench, &settings);
        let service = Service::with("TTL passed in an outage", settings, token, &bench).await;
        let away = bench.dir.join("away");
        let act = now();
        std::fs::rename(bench.tokens(), &away).unwrap();
        service.rest(7 * SECOND).await;
        std::fs::rename(&away, bench.tokens()).unwrap();
        let back = now();
        service.rest(3 * SECOND).await;
        service.rides_out(act, back).await;
        service.undisturbed(back, now().since(back));
        service.end();
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn replaced_under_its_name() {
    alone("leash::replaced_under_its_name", |bench| async move {
        let service = Service::start("token initialised anew, another KEK", &bench).await;
        copy(&bench.tokens(), &bench.dir.join("backup"));
        let mut events = service.engine.as_ref().unwrap().events();
        operator(&["replace-token", &service.kek_id.to_string(), &format!("keyleash/{KEK}/1")]);
        service.refuses(Outcome::Denied, now(), service.answer()).await;
        let words = service.accounts[0].seal_to_vec(1_u64, b"block").unwrap_err().to_string();
        assert!(words.contains("another key"), "{words}");
        let told = std::iter::from_fn(|| events.try_next()).any(|event| matches!(event, Event::KekReplaced { .. }));
        assert!(told, "the tag fails before the AEK can be compared, and it is told all the same");
        restore(&bench);
        service.resumes(now(), service.answer()).await;
        service.end();
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn denial_outlives_a_restart() {
    alone("leash::denial_outlives_a_restart", |bench| async move {
        let mut service = Service::start("denied, restarted, unreachable", &bench).await;
        let id = service.kek_id.to_string();
        operator(&["set", &id, "decrypt", "false"]);
        service.refuses(Outcome::Denied, now(), service.answer()).await;
        // All that a process has goes; the store and the token stay.
        service.engine.take();
        service.accounts.clear();
        let settings = service.settings.clone();
        service.end();
        let away = bench.dir.join("away");
        std::fs::rename(bench.tokens(), &away).unwrap();
        let token = Arc::new(Pkcs11Token::open(Service::token_settings(&bench, &settings)).await.unwrap());
        let store = loop {
            // Until the tasks of the engine that is gone have let go of it.
            match RedbStore::open_or_create(bench.dir.join("keys.redb")).await {
                Ok(store) => break Arc::new(store),
                Err(error) => assert!(matches!(error, Error::Store(_)), "{error}"),
            }
            tokio::time::sleep(SECOND / 20).await;
        };
        let engine = Engine::builder(token, store).settings(settings).build().unwrap();
        let account = |kek: &str| AccountId::new(format!("{kek}-0")).unwrap();
        for _ in 0..3 {
            let refused = engine.account(&account(KEK)).await.unwrap_err();
            assert!(matches!(refused, Error::Denied(_)), "{refused}");
            let silent = engine.account(&account(OTHER)).await.unwrap_err();
            assert!(matches!(silent, Error::Unreachable(_)), "{silent}");
            tokio::time::sleep(SECOND).await;
        }
        std::fs::rename(&away, bench.tokens()).unwrap();
        tokio::time::sleep(3 * SECOND).await;
        assert!(matches!(engine.account(&account(KEK)).await, Err(Error::Denied(_))), "and it is disabled still");
        assert!(engine.account(&account(OTHER)).await.is_ok());
        operator(&["set", &id, "decrypt", "true"]);
        tokio::time::sleep(2 * SECOND).await;
        engine.account(&account(KEK)).await.unwrap().seal_to_vec(1_u64, b"again").unwrap();
    });
}

#[test]
#[ignore = "one of the scenarios above"]
fn impostor_after_a_restart() {
    alone("leash::impostor_after_a_restart", |bench| async move {
        let mut service = Service::start("replaced, restarted, and the first call makes an account", &bench).await;
        copy(&bench.tokens(), &bench.dir.join("backup"));
        operator(&["replace-token", &service.kek_id.to_string(), &format!("keyleash/{KEK}/1")]);
        service.refuses(Outcome::Denied, now(), service.answer()).await;
        service.engine.take();
        service.accounts.clear();
        let settings = service.settings.clone();
        service.end();
        let open = async || {
            let token = Arc::new(Pkcs11Token::open(Service::token_settings(&bench, &settings)).await.unwrap());
            let store = loop {
                match RedbStore::open(bench.dir.join("keys.redb")).await {
                    Ok(store) => break Arc::new(store),
                    Err(error) => assert!(matches!(error, Error::Store(_)), "{error}"),
                }
                tokio::time::sleep(SECOND / 20).await;
            };
            Engine::builder(token, store).settings(settings.clone()).build().unwrap()
        };
        let (new, kek) = (AccountId::new("new").unwrap(), KekName::new(KEK).unwrap());
        let engine = open().await;
        for _ in 0..3 {
            let refused = engine.create_account(&new, &kek).await.unwrap_err();
            assert!(matches!(refused, Error::Denied(_)), "{refused}");
            tokio::time::sleep(SECOND).await;
        }
        assert!(matches!(engine.account_record(&new).await, Err(Error::NotFound(_))));
        drop(engine);
        restore(&bench);
        let engine = open().await;
        engine.create_account(&new, &kek).await.unwrap().seal_to_vec(1_u64, b"block").unwrap();
    });
}
