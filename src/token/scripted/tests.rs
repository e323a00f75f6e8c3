//! What the script promises.

use super::{room::HUNG_MAX, *};
use crate::clock::ManualClock;

const BINDING: Binding = [3; 32];
const TIMEOUT: Duration = Duration::from_secs(5);

async fn ready() -> (ManualClock, Arc<ScriptedToken>, Script, KekHandle, Aek, Wrapped) {
    let manual = ManualClock::default();
    let (token, script) = ScriptedToken::new(Clock::Manual(manual.clone()), TIMEOUT, 1);
    let spec = KekSpec { label: "kek".into(), profile: Profile::AesGcm, destroyable: false };
    let handle = KekHandle { id: token.create_kek(&spec).await.unwrap().id, profile: Profile::AesGcm };
    let aek = Aek::copy_from(&[7; 32]).unwrap();
    let wrapped = token.wrap(&handle, &aek, &BINDING).await.unwrap();
    (manual, token, script, handle, aek, wrapped)
}

#[tokio::test]
async fn an_answer_that_was_given_before_a_denial_arrives_after_it() {
    let (manual, token, script, handle, aek, wrapped) = ready().await;
    script.push(Call::Unwrap, Act::Delay(Duration::from_secs(2)));
    let early = tokio::spawn({
        let (token, handle, wrapped) = (token.clone(), handle.clone(), wrapped.clone());
        async move { token.unwrap(&handle, &wrapped, &BINDING).await }
    });
    while script.in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    script.disable(&handle.id);
    assert_eq!(token.unwrap(&handle, &wrapped, &BINDING).await.unwrap_err().verdict, Verdict::Denied);
    manual.advance(Duration::from_secs(2));
    assert_eq!(early.await.unwrap().unwrap(), aek);
}

#[tokio::test]
async fn a_hang_ends_by_the_deadline_and_is_given_back_on_release() {
    let (manual, token, script, handle, _, wrapped) = ready().await;
    script.push(Call::Unwrap, Act::Hang);
    let hung = tokio::spawn({
        let (token, handle, wrapped) = (token.clone(), handle.clone(), wrapped.clone());
        async move { token.unwrap(&handle, &wrapped, &BINDING).await }
    });
    while script.in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    manual.advance(TIMEOUT);
    assert_eq!(hung.await.unwrap().unwrap_err().verdict, Verdict::Unreachable);
    assert_eq!(token.workers().hung, 1);
    script.release();
    while token.workers().hung > 0 {
        tokio::task::yield_now().await;
    }
    assert!(token.unwrap(&handle, &wrapped, &BINDING).await.is_ok());
}

#[tokio::test]
async fn with_every_worker_hung_only_a_restart_helps() {
    let (manual, token, script, handle, _, wrapped) = ready().await;
    script.standing(Call::Unwrap, Act::Hang);
    for _ in 0..HUNG_MAX + WORKERS {
        let hung = tokio::spawn({
            let (token, handle, wrapped) = (token.clone(), handle.clone(), wrapped.clone());
            async move { token.unwrap(&handle, &wrapped, &BINDING).await }
        });
        while script.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
        manual.advance(TIMEOUT);
        assert_eq!(hung.await.unwrap().unwrap_err().verdict, Verdict::Unreachable);
    }
    assert!(token.workers().restart_needed());
    assert_eq!(token.info().await.unwrap_err().verdict, Verdict::Fatal);
}

#[tokio::test]
async fn scripted_acts_come_before_the_standing_one_and_are_counted() {
    let (_, token, script, handle, aek, wrapped) = ready().await;
    script.standing(Call::Unwrap, Act::fail(Verdict::Unreachable));
    script.push(Call::Unwrap, Act::WrongPlaintext);
    assert_ne!(token.unwrap(&handle, &wrapped, &BINDING).await.unwrap(), aek);
    assert_eq!(token.unwrap(&handle, &wrapped, &BINDING).await.unwrap_err().verdict, Verdict::Unreachable);
    script.standing(Call::Unwrap, Act::Serve);
    script.set_unreachable(true);
    assert_eq!(token.unwrap(&handle, &wrapped, &BINDING).await.unwrap_err().verdict, Verdict::Unreachable);
    script.set_unreachable(false);
    assert_eq!(token.unwrap(&handle, &wrapped, &BINDING).await.unwrap(), aek);
    assert_eq!((script.calls(Call::Unwrap), script.served(Call::Unwrap)), (4, 2));
    assert_eq!((script.in_flight(), script.in_flight_max()), (0, 1));
}

#[tokio::test]
async fn the_same_seed_gives_the_same_bytes() {
    let (.., one) = ready().await;
    let (.., other) = ready().await;
    assert_eq!(one, other);
}

#[tokio::test]
async fn a_replaced_kek_is_denied_and_a_restored_one_takes_its_records() {
    let (_, token, script, handle, aek, wrapped) = ready().await;
    script.destroy(&handle.id);
    assert_eq!(token.find_kek(&handle.id).await.unwrap(), None);
    assert_eq!(token.unwrap(&handle, &wrapped, &BINDING).await.unwrap_err().verdict, Verdict::Denied);
    script.restore(&handle.id);
    assert_eq!(token.unwrap(&handle, &wrapped, &BINDING).await.unwrap(), aek);
    script.replace(&handle.id);
    assert_eq!(token.unwrap(&handle, &wrapped, &BINDING).await.unwrap_err().verdict, Verdict::Replaced);
}
