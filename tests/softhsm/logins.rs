//! How often keyleash logs in: once where a login was lost, however many KEKs are in use, and whoever ended it.
//!
//! Logins are counted, not timed: keyleash asks the source of the PIN before each.

use crate::bench::{Bench, PIN, alone, context, session, slot};
use cryptoki::{object::Attribute, session::UserType, types::AuthPin};
use keyleash::{
    secret::Aek,
    token::{
        KekHandle, KekSpec, Profile, Token, Wrapped,
        pkcs11::{FreshContext, PinSource, Pkcs11Token},
    },
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

const BINDING: [u8; 32] = [5; 32];
const KEKS: usize = 3;
const ROUNDS: usize = 50;

/// A token, and how often it was about to log in.
struct Counted {
    token: Arc<Pkcs11Token>,
    logins: Arc<AtomicUsize>,
    keks: Arc<Vec<(KekHandle, Aek, Wrapped)>>,
}

impl Counted {
    async fn open(bench: &Bench, workers: usize, fresh: FreshContext) -> Self {
        let logins = Arc::new(AtomicUsize::new(0));
        let mut settings = bench.settings();
        (settings.workers, settings.fresh) = (workers, fresh);
        settings.pin = PinSource::Callback(Arc::new({
            let logins = logins.clone();
            move || {
                logins.fetch_add(1, Ordering::SeqCst);
                Ok(PIN.as_bytes().to_vec())
            }
        }));
        let token = Arc::new(Pkcs11Token::open(settings).await.unwrap());
        let mut keks = Vec::new();
        for number in 0..KEKS {
            let spec = KekSpec { label: format!("keyleash/{number}/1"), profile: Profile::AesGcm, destroyable: true };
            let kek = KekHandle { id: token.create_kek(&spec).await.unwrap().id, profile: Profile::AesGcm };
            let aek = Aek::generate().unwrap();
            let wrapped = token.wrap(&kek, &aek, &BINDING).await.unwrap();
            keks.push((kek, aek, wrapped));
        }
        let counted = Self { token, logins, keks: Arc::new(keks) };
        counted.use_all().await;
        counted
    }

    /// Uses all KEKs in turn, from several tasks, and gives the number of logins meanwhile.
    async fn use_all(&self) -> usize {
        let before = self.logins.load(Ordering::SeqCst);
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (token, keks) = (self.token.clone(), self.keks.clone());
            callers.spawn(async move {
                for _ in 0..ROUNDS {
                    for (kek, aek, wrapped) in keks.iter() {
                        assert_eq!(token.unwrap(kek, wrapped, &BINDING).await.as_ref(), Ok(aek));
                        token.wrap(kek, aek, &BINDING).await.unwrap();
                    }
                }
            });
        }
        while let Some(done) = callers.join_next().await {
            done.unwrap();
        }
        self.logins.load(Ordering::SeqCst) - before
    }
}

#[test]
fn one_worker_whose_session_is_given_up_logs_in_once_whatever_number_of_keks_is_in_use() {
    alone(
        "logins::one_worker_whose_session_is_given_up_logs_in_once_whatever_number_of_keks_is_in_use",
        |bench| async move {
            let counted = Counted::open(&bench, 1, FreshContext::Reinitialise).await;
            // A probe ends with an unwrap that fails, after which the session is closed: the only one, so that the login and all
            // handles go with it. Every new KEK is probed.
            counted.token.probe(Profile::AesGcm).await.unwrap();
            assert_eq!(counted.use_all().await, 1);
            assert_eq!(counted.use_all().await, 0);
            // A bad record has its session given up several times.
            let (kek, _, wrapped) = &counted.keks[0];
            let mut bad = wrapped.clone();
            bad.bytes[0] ^= 1;
            counted.token.unwrap(kek, &bad, &BINDING).await.unwrap_err();
            assert!(counted.use_all().await <= 1);
            assert_eq!(counted.use_all().await, 0);
        },
    );
}

/// What another part of the process does to the module, while no call is inside.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Its own sessions, opened and closed beside ours.
    Sessions,
    Logout,
    Finalize,
    FinalizeAndInitialize,
    /// It begins a context of its own, in which it is logged in.
    FinalizeAndLogIn,
}

#[test]
fn whatever_else_in_the_process_ends_the_login_costs_one_login() {
    alone("logins::whatever_else_in_the_process_ends_the_login_costs_one_login", |bench| async move {
        // Once it is `Never`, it is for the whole process.
        for fresh in [FreshContext::Reinitialise, FreshContext::Never] {
            for workers in [1, 2] {
                let counted = Counted::open(&bench, workers, fresh).await;
                for act in [
                    Act::Sessions,
                    Act::Logout,
                    Act::Finalize,
                    Act::FinalizeAndInitialize,
                    Act::FinalizeAndLogIn,
                    Act::Finalize,
                ] {
                    let host = perform(act);
                    let logins = counted.use_all().await;
                    // Two workers may ask for the PIN at once; the second one then finds the login made.
                    let allowed = if matches!(act, Act::Sessions) { 0 } else { workers };
                    assert!(logins <= allowed, "{act:?}, {workers} workers, {fresh:?}: {logins} logins");
                    assert_eq!(counted.use_all().await, 0, "{act:?}, {workers} workers, {fresh:?}: not settled");
                    drop(host);
                }
            }
        }
    });
}

/// Gives what the host holds open from then on.
fn perform(act: Act) -> Option<cryptoki::session::Session> {
    let pkcs11 = context();
    match act {
        Act::Sessions => drop([session(&pkcs11), session(&pkcs11)]),
        Act::Logout => session(&pkcs11).logout().unwrap(),
        Act::Finalize | Act::FinalizeAndInitialize => pkcs11.finalize().unwrap(),
        Act::FinalizeAndLogIn => {
            pkcs11.finalize().unwrap();
            return Some(session(&context()));
        }
    }
    if matches!(act, Act::FinalizeAndInitialize) {
        context();
    }
    None
}

#[test]
fn an_aek_is_wrapped_by_its_own_kek_in_a_context_that_somebody_else_began() {
    alone("logins::an_aek_is_wrapped_by_its_own_kek_in_a_context_that_somebody_else_began", |bench| async move {
        let counted = Counted::open(&bench, 1, FreshContext::Never).await;
        context().finalize().unwrap();
        // In the new context the numbers that were ours belong to others: our session's to a session of the host's, which is logged
        // in, and the handles of our KEKs, in another order, to the same.
        let host = context();
        let session = host.open_rw_session(slot(&host)).unwrap();
        session.login(UserType::User, Some(&AuthPin::from(PIN))).unwrap();
        for (kek, ..) in counted.keks.iter().rev() {
            assert_eq!(session.find_objects(&[Attribute::Id(kek.id.as_bytes().to_vec())]).unwrap().len(), 1);
        }
        let (first, aek, _) = &counted.keks[0];
        let wrapped = counted.token.wrap(first, aek, &BINDING).await.unwrap();
        // Somebody who finds the KEK anew.
        let other = bench.open().await;
        assert_eq!(other.unwrap(first, &wrapped, &BINDING).await.as_ref(), Ok(aek));
    });
}

#[test]
fn a_session_that_goes_away_while_the_pin_is_fetched_says_nothing_of_the_pin() {
    alone("logins::a_session_that_goes_away_while_the_pin_is_fetched_says_nothing_of_the_pin", |bench| async move {
        // Somebody else mistyped the PIN, which the token's flags tell until the next good login.
        let host = context();
        let session = host.open_rw_session(slot(&host)).unwrap();
        session.login(UserType::User, Some(&AuthPin::from("mistyped"))).unwrap_err();
        drop(session);
        assert!(host.get_token_info(slot(&host)).unwrap().user_pin_count_low());
        let asked = Arc::new(AtomicUsize::new(0));
        let mut settings = bench.settings();
        (settings.workers, settings.fresh) = (1, FreshContext::Never);
        settings.pin = PinSource::Callback(Arc::new({
            let asked = asked.clone();
            move || {
                // The first time is to see that there is one; the second is on a session that is open.
                if asked.fetch_add(1, Ordering::SeqCst) == 1 {
                    host.clone().finalize().unwrap();
                    context();
                }
                Ok(PIN.as_bytes().to_vec())
            }
        }));
        let token = Pkcs11Token::open(settings).await.unwrap();
        token.list_keks().await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    });
}

#[test]
fn a_session_that_became_one_of_another_token_lists_and_makes_no_kek_there() {
    alone("logins::a_session_that_became_one_of_another_token_lists_and_makes_no_kek_there", |bench| async move {
        const OTHER: &str = "another token";
        const SESSIONS: usize = 64;
        bench.add_token(OTHER);
        let counted = Counted::open(&bench, 1, FreshContext::Never).await;
        let (ours, ..) = &counted.keks[0];
        let known = counted.token.list_keks().await.unwrap();
        assert_eq!(known.len(), KEKS);
        let spec = KekSpec { label: "keyleash/new/1".into(), profile: Profile::AesGcm, destroyable: true };
        for made in 0..3 {
            // All numbers that our session can have are now those of sessions that are logged in to the other token.
            context().finalize().unwrap();
            let host = context();
            let slots = host.get_slots_with_initialized_token().unwrap();
            let other = slots.into_iter().find(|slot| host.get_token_info(*slot).unwrap().label() == OTHER).unwrap();
            let sessions: Vec<_> = (0..SESSIONS).map(|_| host.open_rw_session(other).unwrap()).collect();
            sessions[0].login(UserType::User, Some(&AuthPin::from(PIN))).unwrap();
            match made {
                0 => assert_eq!(counted.token.list_keks().await.unwrap(), known),
                1 => assert!(counted.token.find_kek(&ours.id).await.unwrap().is_some()),
                _ => drop(counted.token.create_kek(&spec).await.unwrap()),
            }
            assert_eq!(sessions[0].find_objects(&[]).unwrap(), [], "in the other token");
        }
        assert_eq!(bench.open().await.list_keks().await.unwrap().len(), KEKS + 1);
    });
}
