//! What others change in a store that has a feed: heard of at once, believed in nothing, and missed without harm.

use super::*;
use async_trait::async_trait;
use keyleash::{
    Error, Result,
    lease::Phase,
    name::KekVersion,
    store::{Changes, Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned, record::DenialRecord},
    telemetry::{Event, Events},
    token::scripted::Call,
};
use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A store that tells what is changed in it.
struct Fed {
    inner: Arc<MemoryStore>,
    hearers: Mutex<Vec<UnboundedSender<Key>>>,
    is_away: AtomicBool,
}

struct Feed(UnboundedReceiver<Key>);

#[async_trait]
impl Changes for Feed {
    async fn next(&mut self) -> Result<Vec<Key>> {
        let broke = || Error::Store("the connection was cut".into());
        let mut keys = vec![self.0.recv().await.ok_or_else(broke)?];
        keys.extend(std::iter::from_fn(|| self.0.try_recv().ok()));
        Ok(keys)
    }
}

impl Fed {
    fn over(rig: &Rig) -> Arc<Self> {
        Arc::new(Self { inner: rig.store.clone(), hearers: Mutex::default(), is_away: AtomicBool::new(false) })
    }

    fn tell(&self, key: &Key) {
        self.hearers.lock().unwrap().retain(|hearer| hearer.send(key.clone()).is_ok());
    }

    /// All feeds break, and while it is away none can be opened.
    fn cut(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::SeqCst);
        self.hearers.lock().unwrap().clear();
    }
}

#[async_trait]
impl KeyStore for Fed {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        self.inner.get(key).await
    }

    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        let version = self.inner.create(key, put).await?;
        self.tell(key);
        Ok(version)
    }

    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
        let version = self.inner.replace(key, expected, put).await?;
        self.tell(key);
        Ok(version)
    }

    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
        self.inner.delete(key, expected).await?;
        self.tell(key);
        Ok(())
    }

    async fn shred(&self, remains: Vec<Vec<u8>>) -> Result<()> {
        self.inner.shred(remains).await
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        self.inner.list(filter, after, limit).await
    }

    async fn changes(&self) -> Result<Option<Box<dyn Changes>>> {
        if self.is_away.load(Ordering::SeqCst) {
            return Err(Error::Store("no feed can be opened".into()));
        }
        let (sender, receiver) = unbounded_channel();
        self.hearers.lock().unwrap().push(sender);
        Ok(Some(Box::new(Feed(receiver))))
    }
}

fn engine(rig: &Rig, store: &Arc<Fed>, settings: Settings) -> Engine {
    Engine::builder(rig.token.clone(), store.clone())
        .on_current_runtime()
        .settings(settings.purge_protection(false).scheduled_work(false))
        .clock(Clock::Manual(rig.clock.clone()))
        .jitter_seed(1)
        .start_up_proof(false)
        .build()
        .unwrap()
}

fn kek(rig: &Rig) -> KekVersion {
    KekVersion::new(rig.kek.clone(), 1)
}

/// Of the feed, what was told since.
fn told(events: &mut Events) -> Vec<Event> {
    let of_feed = |event: &Event| matches!(event, Event::ChangesUnheard { .. } | Event::ChangesHeard);
    std::iter::from_fn(|| events.try_next()).filter(of_feed).collect()
}

/// Where there is no feed, or it is broken, a TTL later.
#[tokio::test]
async fn what_another_engine_did_to_an_account_is_heard_of_at_once() {
    for is_heard in [true, false] {
        let rig = Rig::new().await;
        let store = Fed::over(&rig);
        let [here, there] = [(); 2].map(|()| engine(&rig, &store, Settings::default()));
        settle().await;
        let ids = ["gone", "rotated", "moved"].map(account_id);
        let mut accounts = Vec::new();
        for id in &ids {
            there.create_account(id, &rig.kek).await.unwrap();
            accounts.push(rig.meanwhile(here.account(id)).await.unwrap());
        }
        let [gone, rotated, moved] = &accounts[..] else { unreachable!() };
        let next = KekName::new("next").unwrap();
        there.create_kek(&next, Profile::AesGcm).await.unwrap();
        if !is_heard {
            store.cut(true);
        }
        rig.meanwhile(there.delete_account(&ids[0])).await.unwrap();
        rig.meanwhile(there.rotate_account(&ids[1])).await.unwrap();
        rig.meanwhile(there.move_account(&ids[2], &next)).await.unwrap();
        let noticed = || {
            let is_moved = here.leases().iter().any(|lease| lease.kek.name == next);
            (seal(gone).is_err(), rotated.seal_in_place(1_u64, &mut [0; 64]).unwrap().aek_version() == 2, is_moved)
        };
        rig.pass(SECOND).await;
        assert_eq!(noticed(), (is_heard, is_heard, is_heard));
        for _ in 0..11 * 60 {
            let _ = (seal(gone), seal(rotated), seal(moved));
            rig.pass_by(SECOND, SECOND).await;
        }
        assert_eq!(noticed(), (true, true, true), "within a TTL");
        seal(moved).unwrap();
    }
}

/// Of which one proves often, and the other seldom.
#[tokio::test]
async fn a_denial_that_another_engine_saw_and_its_end_are_asked_after_at_once() {
    let rig = Rig::new().await;
    let store = Fed::over(&rig);
    let seldom = Settings::default().poll_interval(60 * SECOND);
    let (often, seldom) = (engine(&rig, &store, Settings::default()), engine(&rig, &store, seldom));
    let mut accounts = Vec::new();
    for engine in [&often, &seldom] {
        let id = account_id(&format!("a{}", accounts.len()));
        accounts.push(rig.meanwhile(engine.create_account(&id, &rig.kek)).await.unwrap());
    }
    rig.pass(90 * SECOND).await;
    for is_denied in [true, false, true, false] {
        // Just after a proof of the one that asks seldom.
        let asked = || seldom.leases()[0].proved_ago.unwrap();
        while !is_denied && seldom.leases()[0].phase == Phase::Active || is_denied && asked() > SECOND {
            rig.pass(SECOND / 4).await;
        }
        match is_denied {
            true => rig.script.disable(&rig.kek_id),
            false => rig.script.enable(&rig.kek_id),
        }
        let knows = |engine: &Engine| (engine.leases()[0].phase == Phase::Active) != is_denied;
        // Its end is written down with the proof after the one that ended it.
        let is_written = async || store.get(&Key::Denial(kek(&rig))).await.unwrap().is_some() == is_denied;
        let mut waited = 0;
        while !knows(&often) || !is_written().await {
            rig.pass(SECOND / 4).await;
            waited += 1;
            assert!(waited < 4 * 120, "{is_denied}");
        }
        rig.pass(3 * SECOND).await;
        assert!(knows(&seldom), "{is_denied}: {:?}", seldom.leases());
        accounts.iter().for_each(|account| assert_eq!(seal(account).is_err(), is_denied));
    }
}

/// Records of denials that no token ever said, as often as it likes; and of accounts that did not change.
#[tokio::test]
async fn a_store_that_tells_lies_denies_nothing_and_has_the_token_asked_hardly_more_often() {
    let rig = Rig::new().await;
    let store = Fed::over(&rig);
    let engine = engine(&rig, &store, Settings::default());
    let account = rig.meanwhile(engine.create_account(&account_id("a"), &rig.kek)).await.unwrap();
    rig.pass(30 * SECOND).await;
    let before = rig.script.calls(Call::Unwrap);
    for turn in 0..240 {
        let lie =
            DenialRecord { kek: kek(&rig), since_unix: turn, reason: "a lie".into(), by_standby: false, witness: None };
        let (key, put) = (Key::Denial(kek(&rig)), lie.put().unwrap());
        match store.get(&key).await.unwrap() {
            Some(found) => drop(store.replace(&key, &found.version, put).await),
            None => drop(store.create(&key, put).await),
        }
        (0..100).for_each(|_| store.tell(&Key::Account(account_id("a"))));
        rig.pass(SECOND / 4).await;
        seal(&account).unwrap();
        assert_eq!(engine.leases()[0].phase, Phase::Active);
    }
    let asked = rig.script.calls(Call::Unwrap) - before;
    // Each poll, and first after 1 s, 1, 2, 4, 8.
    assert!((6..=15).contains(&asked), "{asked} in 60 s");
}

#[tokio::test]
async fn a_feed_that_breaks_is_told_once_and_once_that_it_is_back_and_is_opened_less_and_less_often() {
    let rig = Rig::new().await;
    let store = Fed::over(&rig);
    let engine = engine(&rig, &store, Settings::default());
    let mut events = engine.events();
    let account = rig.meanwhile(engine.create_account(&account_id("a"), &rig.kek)).await.unwrap();
    rig.pass(90 * SECOND).await;
    assert_eq!(told(&mut events), []);
    store.cut(true);
    rig.pass(300 * SECOND).await;
    assert!(matches!(&told(&mut events)[..], [Event::ChangesUnheard { why }] if why.contains("cut")));
    seal(&account).unwrap();
    store.cut(false);
    rig.pass(61 * SECOND).await;
    assert_eq!(told(&mut events), [Event::ChangesHeard]);
    // One that breaks as soon as it is open.
    for _ in 0..1200 {
        store.cut(false);
        rig.pass(SECOND / 4).await;
    }
    let told = told(&mut events).len();
    assert!((2..40).contains(&told), "{told} in 5 minutes");
    seal(&account).unwrap();
}
