//! The round trip at start-up.

use crate::{Rig, SECOND};
use keyleash::{
    Engine,
    clock::Clock,
    telemetry::Event,
    token::{
        Verdict,
        scripted::{Act, Call},
    },
};

fn restart(rig: &mut Rig) {
    let clock = Clock::Manual(rig.clock.clone());
    rig.engine =
        Engine::builder(rig.token.clone(), rig.store.clone()).on_current_runtime().clock(clock).build().unwrap();
}

fn failed(events: &mut keyleash::telemetry::Events) -> Vec<String> {
    let mut failed = Vec::new();
    while let Some(event) = events.try_next() {
        if let Event::ProfileFailed { profile, kek, error } = event {
            failed.push(format!("{profile} {kek}: {error}"));
        }
    }
    failed
}

#[tokio::test]
async fn a_profile_that_fails_its_round_trip_is_told_once_the_token_answers() {
    let mut rig = Rig::new().await;
    rig.script.set_unreachable(true);
    restart(&mut rig);
    let mut events = rig.engine.events();
    rig.pass(60 * SECOND).await;
    assert_eq!(failed(&mut events), Vec::<String>::new(), "an outage says nothing of a profile");
    rig.script.set_unreachable(false);
    rig.script.standing(Call::Wrap, Act::fail(Verdict::Misconfigured));
    rig.pass(60 * SECOND).await;
    let told = failed(&mut events);
    assert!(told.len() == 1 && told[0].starts_with("aes-gcm kek/1: misconfigured"), "{told:?}");
}

#[tokio::test]
async fn a_round_trip_that_works_is_made_once_and_tells_nothing() {
    let mut rig = Rig::new().await;
    let wraps = rig.script.calls(Call::Wrap);
    restart(&mut rig);
    let mut events = rig.engine.events();
    rig.pass(120 * SECOND).await;
    assert_eq!(rig.script.calls(Call::Wrap), wraps + 1);
    assert_eq!(failed(&mut events), Vec::<String>::new());
}
