//! The round trip at start-up.

use crate::{Rig, SECOND};
use keyleash::{
    Engine, Error, Result,
    clock::Clock,
    store::{Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned, memory::MemoryStore},
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

/// A store that is set up to read from a replica.
struct Stale(MemoryStore);

#[async_trait::async_trait]
impl KeyStore for Stale {
    fn check_settings(&self) -> Result<()> {
        Err(Error::Misconfigured("reads = \"replica\": set it to \"primary\"".into()))
    }

    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        self.0.get(key).await
    }

    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        self.0.create(key, put).await
    }

    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
        self.0.replace(key, expected, put).await
    }

    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
        self.0.delete(key, expected).await
    }

    async fn shred(&self, _: Vec<Vec<u8>>) -> Result<()> {
        Ok(())
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        self.0.list(filter, after, limit).await
    }
}

#[tokio::test]
async fn no_engine_is_built_on_a_store_that_does_not_read_the_newest() {
    let rig = Rig::new().await;
    let store = std::sync::Arc::new(Stale(MemoryStore::new()));
    let refused = Engine::builder(rig.token.clone(), store).on_current_runtime().build().unwrap_err();
    assert!(matches!(&refused, Error::Misconfigured(text) if text.contains("primary")), "{refused}");
}
