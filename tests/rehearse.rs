//! Drills as a service plays them that links the crate: what they were given may be wrong, and what broke them may come at any time. No
//! promise is said to be kept that was not seen, and what was taken is given back.

// Helpers of a test may fail it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use async_trait::async_trait;
use keyleash::{
    Account, Engine, Error,
    clock::Clock,
    config::Settings,
    drill::{self, Done, Drill, Hand, Operator, Report, Scenario, Tap, Verdict},
    name::{AccountId, KekName},
    store::memory::MemoryStore,
    token::{
        KekId, Profile,
        scripted::{Script, ScriptedToken},
    },
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

const SECOND: Duration = Duration::from_secs(1);

/// A service with two accounts under the KEK `kept`, and one under `other`.
struct Service {
    engine: Engine,
    tap: Arc<Tap>,
    kek: KekName,
    owner: Owner,
}

impl Service {
    async fn start() -> Self {
        let settings =
            Settings::default().poll_interval(SECOND).store_timeout(SECOND).grace(10 * SECOND).aek_ttl(10 * SECOND);
        let (token, script) = ScriptedToken::new(Clock::default(), SECOND, 1);
        let tap = Tap::new(token);
        let engine = Engine::builder(tap.clone(), Arc::new(MemoryStore::new())).settings(settings).build().unwrap();
        let kek = KekName::new("kept").unwrap();
        let made = engine.create_kek(&kek, Profile::AesGcm).await.unwrap();
        let other = KekName::new("other").unwrap();
        engine.create_kek(&other, Profile::AesGcm).await.unwrap();
        for (account, kek) in [("a", &kek), ("b", &kek), ("elsewhere", &other)] {
            engine.create_account(&id(account), kek).await.unwrap();
        }
        let owner = Owner { script, id: made.id, taken: Arc::default(), given: Arc::default(), fails: false };
        Self { engine, tap, kek, owner }
    }

    /// Of a KEK that the owner has enabled again, which the engine finds at one of its next polls.
    async fn account(&self, name: &str) -> Account {
        for _ in 0..600 {
            match self.engine.account(&id(name)).await {
                Err(Error::Denied(_)) => tokio::time::sleep(SECOND / 10).await,
                opened => return opened.unwrap(),
            }
        }
        panic!("{name} stays denied");
    }

    fn drill(&self) -> Drill {
        Drill::new(&self.engine, &self.tap, &self.kek).patience(10 * SECOND).slack(5 * SECOND)
    }
}

/// Disables the KEK, and enables it.
struct Owner {
    script: Script,
    id: KekId,
    /// Held by whoever is in the midst of something that must not meet the act.
    taken: Arc<Mutex<bool>>,
    given: Arc<AtomicU32>,
    fails: bool,
}

#[async_trait]
impl Operator for Owner {
    type Error = drill::Error;

    async fn take(&mut self) -> Result<Done, drill::Error> {
        if self.fails {
            return Err(Error::Invalid("the owner is not in".into()).into());
        }
        let mut taken = self.taken.lock().unwrap();
        let done = Done { what: "disable the KEK".into(), at: Clock::default().now() };
        self.script.disable(&self.id);
        *taken = true;
        Ok(done)
    }

    async fn give(&mut self) -> Result<Done, drill::Error> {
        self.given.fetch_add(1, Ordering::SeqCst);
        let done = Done { what: "enable the KEK".into(), at: Clock::default().now() };
        self.script.enable(&self.id);
        *self.taken.lock().unwrap() = false;
        Ok(done)
    }
}

fn id(name: &str) -> AccountId {
    AccountId::new(name).unwrap()
}

/// Seals and opens, and looks at what comes out where it is told to.
fn serve(account: Account, looks: bool) -> impl FnMut(&mut Hand) + Send + 'static {
    move |hand| {
        let sealed = hand.operation(|| {
            account.warm_blocking(SECOND)?;
            account.seal_to_vec(42_u64, b"a block")
        });
        let Some(sealed) = sealed else { return };
        if let Some(opened) = hand.operation(|| account.open_to_vec(42_u64, &sealed))
            && looks
        {
            hand.verify(&opened, b"a block");
        }
    }
}

fn verdict(report: &Report, name: &str) -> Option<Verdict> {
    report.promises().iter().find(|promise| promise.name == name).map(|promise| promise.verdict)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_that_would_show_nothing_of_the_kek_is_refused_before_anything_is_taken() {
    let mut service = Service::start().await;
    let nobody = service.drill().run(Scenario::Outage, &mut service.owner).await;
    assert!(nobody.is_err(), "no account: {}", nobody.unwrap());
    let account = service.account("elsewhere").await;
    let elsewhere = service.drill().account(id("elsewhere"), serve(account, true));
    let elsewhere = elsewhere.run(Scenario::Rotation, &mut service.owner).await;
    assert!(elsewhere.is_err(), "an account under another KEK: {}", elsewhere.unwrap());
    assert_eq!(service.engine.kek(&service.kek).await.unwrap().versions.len(), 1, "nothing was rotated");
    let ghost = service.drill().account(id("ghost"), |_| {}).run(Scenario::Revocation, &mut service.owner).await;
    assert!(matches!(ghost, Err(drill::Error::Engine(Error::NotFound(_)))), "no such account");

    let (token, _script) = ScriptedToken::new(Clock::default(), SECOND, 1);
    let tap = Tap::new(token);
    let beside = Drill::new(&service.engine, &tap, &service.kek).patience(SECOND);
    let beside = beside.account(id("a"), serve(service.account("a").await, true));
    let beside = beside.run(Scenario::Revocation, &mut service.owner).await;
    assert!(beside.is_err(), "a tap that the engine is not over: {}", beside.unwrap());

    let drill = service.drill().account(id("a"), serve(service.account("a").await, true));
    service.engine.close(60 * SECOND).await.unwrap();
    let closed = drill.run(Scenario::Revocation, &mut service.owner).await;
    assert!(matches!(closed, Err(drill::Error::Engine(Error::Closed))), "a closed engine");
    assert_eq!(service.owner.given.load(Ordering::SeqCst), 0, "nothing was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_said_to_be_kept_for_an_account_that_nobody_tried_or_for_bytes_that_nobody_looked_at() {
    let mut service = Service::start().await;
    let mut of_b = serve(service.account("b").await, false);
    let taken = service.owner.taken.clone();
    // Waits by itself for the key to come back, which a service might.
    let waits = move |hand: &mut Hand| {
        let taken = taken.lock().unwrap();
        if !*taken {
            of_b(hand);
        }
    };
    let drill = service.drill().account(id("a"), serve(service.account("a").await, false)).account(id("b"), waits);
    let report = drill.run(Scenario::Revocation, &mut service.owner).await.unwrap();
    assert_ne!(report.verdict(), Verdict::Pass, "{report}");
    assert_eq!(verdict(&report, "unverified-bytes"), Some(Verdict::Fail), "{report}");
    assert_eq!(verdict(&report, "never-refused"), Some(Verdict::Fail), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_is_given_back_when_the_load_breaks_and_nothing_is_that_was_not_taken() {
    let mut service = Service::start().await;
    let mut of_a = serve(service.account("a").await, true);
    let taken = service.owner.taken.clone();
    let breaks = move |hand: &mut Hand| {
        let is_taken = *taken.lock().unwrap();
        assert!(!is_taken, "on purpose");
        of_a(hand);
    };
    let broken = service.drill().account(id("a"), breaks).run(Scenario::Revocation, &mut service.owner).await;
    assert!(matches!(broken, Err(drill::Error::Load)));
    assert_eq!(service.owner.given.load(Ordering::SeqCst), 1, "the KEK is enabled again");

    // Whoever sets the most gets what there is.
    service.owner.fails = true;
    let drill = Drill::new(&service.engine, &service.tap, &service.kek).threads(usize::MAX).slack(Duration::MAX);
    let account = service.account("b").await;
    let failed = drill.account(id("b"), serve(account, true)).run(Scenario::Revocation, &mut service.owner).await;
    assert!(matches!(failed, Err(drill::Error::Engine(Error::Invalid(_)))));
    assert_eq!(service.owner.given.load(Ordering::SeqCst), 1, "an act that failed half-way is its operator's to undo");
}
