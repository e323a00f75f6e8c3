//! Hosts of every kind: without a runtime, with one that stands still, is dropped or never yields, with a store that blocks, and
//! those that fork. Time is real here; nothing is judged by it, but for a patience after which a test gives up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // in tests
#![allow(unsafe_code)] // fork(2)

use async_trait::async_trait;
use keyleash::{
    Account, Engine, Error, Result,
    access::{Actions, Grant, Operation, Operations, Pattern},
    account::State,
    clock::Clock,
    config::Settings,
    lease::Phase,
    name::{AccountId, CallerId, GrantId, KekName, KekVersion},
    store::{Filter, Key, KeyStore, Page, Put, StoreVersion, Versioned, memory::MemoryStore, redb::RedbStore},
    token::{
        KekId, Profile,
        scripted::{Act, Call, Script, ScriptedToken},
    },
};
use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};
use tokio::runtime::{Builder, Runtime};

const SECOND: Duration = Duration::from_secs(1);
/// In steps of `PAUSE`.
const PATIENCE: usize = 6000;
const PAUSE: Duration = Duration::from_millis(20);

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// An executor that is none of tokio's.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

fn ask_once<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// Waits, on this thread and beside every runtime, until something has come.
fn wait_for(what: &str, mut has_come: impl FnMut() -> bool) {
    for _ in 0..PATIENCE {
        if has_come() {
            return;
        }
        thread::sleep(PAUSE);
    }
    panic!("{what} has not come");
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn settings() -> Settings {
    Settings::default().poll_interval(SECOND).store_timeout(SECOND).purge_protection(false)
}

fn id(name: &str) -> AccountId {
    AccountId::new(name).unwrap()
}

struct Host {
    engine: Engine,
    script: Script,
    store: Arc<Blocking>,
    kek: KekName,
    kek_id: KekId,
}

impl Host {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: Settings) -> Self {
        let (token, script) = ScriptedToken::new(Clock::default(), settings.store_timeout, 1);
        let store = Arc::new(Blocking::default());
        let engine = Engine::builder(token, store.clone()).settings(settings).start_up_proof(false).build().unwrap();
        let kek = KekName::new("kek").unwrap();
        let kek_id = block_on(engine.create_kek(&kek, Profile::AesGcm)).unwrap().id;
        Self { engine, script, store, kek, kek_id }
    }

    fn account(&self, name: &str) -> Account {
        block_on(self.engine.create_account(&id(name), &self.kek)).unwrap()
    }

    fn caller(&self, id: &str) -> Engine {
        self.engine.caller(CallerId::new(id).unwrap())
    }

    /// Gives `app` all but one operation with what is under `kek`, so that it is looked there which account is, and `boss` all grants.
    /// The grant of `app`.
    fn govern(&self, but: Operation) -> GrantId {
        let grant = |caller: &str, kek: &str, operations| Grant {
            id: GrantId::new("new").unwrap(),
            callers: Pattern::new(caller).unwrap(),
            keks: Pattern::new(kek).unwrap(),
            accounts: Pattern::all(),
            actions: Actions::Operations(operations),
        };
        let all = Operations::ALL.without(Operations::of(&[but]));
        let grants = vec![grant("boss", "*", Operations::of(&[Operation::GrantWrite])), grant("app", "kek", all)];
        block_on(self.engine.add_grants(grants)).unwrap().remove(1)
    }

    fn phase(&self) -> Phase {
        self.engine.leases()[0].phase
    }

    fn is_denied(&self) -> bool {
        let leases = self.engine.leases();
        leases.iter().any(|lease| matches!(lease.phase, Phase::Denied { .. }) && lease.filled_slots == 0)
    }

    /// Another engine on the same token and store, in which all accounts are cold.
    fn restart(&mut self, token: Arc<ScriptedToken>, settings: Settings) {
        let build = Engine::builder(token, self.store.clone()).settings(settings);
        self.engine = build.start_up_proof(false).build().unwrap();
    }
}

/// A store that blocks the thread it is asked on, once it is told to.
#[derive(Default)]
struct Blocking {
    inner: MemoryStore,
    blocks: Mutex<bool>,
    freed: Condvar,
}

impl Blocking {
    fn set(&self, blocks: bool) {
        *self.blocks.lock().unwrap() = blocks;
        self.freed.notify_all();
    }

    fn stand(&self) {
        let blocks = self.blocks.lock().unwrap();
        drop(self.freed.wait_while(blocks, |blocks| *blocks).unwrap());
    }
}

#[async_trait]
impl KeyStore for Blocking {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>> {
        self.stand();
        self.inner.get(key).await
    }
    async fn create(&self, key: &Key, put: Put) -> Result<StoreVersion> {
        self.stand();
        self.inner.create(key, put).await
    }
    async fn replace(&self, key: &Key, expected: &StoreVersion, put: Put) -> Result<StoreVersion> {
        self.stand();
        self.inner.replace(key, expected, put).await
    }
    async fn delete(&self, key: &Key, expected: &StoreVersion) -> Result<()> {
        self.stand();
        self.inner.delete(key, expected).await
    }
    async fn shred(&self, _: Vec<Vec<u8>>) -> Result<()> {
        Ok(())
    }

    async fn list(&self, filter: &Filter, after: Option<&Key>, limit: usize) -> Result<Page> {
        self.stand();
        self.inner.list(filter, after, limit).await
    }
}

#[test]
fn a_host_without_a_runtime_can_do_everything() {
    let directory = tempfile::tempdir().unwrap();
    let (token, script) = ScriptedToken::new(Clock::default(), SECOND, 1);
    block_on(async {
        let store = Arc::new(RedbStore::open_or_create(directory.path().join("store")).await.unwrap());
        let engine = Engine::builder(token, store).settings(settings()).build().unwrap();
        let mut events = engine.events();
        let (kek, tenant) = (KekName::new("kek").unwrap(), id("tenant"));
        let made = engine.create_kek(&kek, Profile::AesGcm).await.unwrap();
        let account = engine.create_account(&tenant, &kek).await.unwrap();
        let mut block = *b"block";
        let header = account.seal(1_u64, &mut block).await.unwrap();
        account.open(1_u64, &header, &mut block).await.unwrap();
        account.warm().await.unwrap();
        account.warm_for(&header).await.unwrap();
        account.ready().await.unwrap();
        assert_eq!(engine.account(&tenant).await.unwrap().id(), &tenant);
        assert_eq!(engine.rotate_account(&tenant).await.unwrap(), 2);
        let rotated = engine.rotate_kek(&kek).await.unwrap();
        let told = AtomicUsize::new(0);
        let rewrapped = engine.rewrap_kek(&kek, Default::default(), |_| {
            told.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(rewrapped.await.unwrap().aeks, 2);
        assert!(told.into_inner() > 1);
        engine.retire_kek(&KekVersion::new(kek.clone(), 1)).await.unwrap();
        engine.set_aek_policy(&tenant, Default::default()).await.unwrap();
        assert_eq!(engine.keks().await.unwrap()[0].versions.len(), 2);
        assert!(engine.unknown_keks().await.unwrap().is_empty() && made.id != rotated.id);
        assert_eq!(engine.accounts(None, 10).await.unwrap().ids.len(), 1);
        engine.schedule(10).await.unwrap();
        engine.write_usage().await.unwrap();
        assert!(engine.status().await.tokens[0].info.is_ok());
        script.disable(&rotated.id);
        while account.seal(1_u64, &mut block).await.is_ok() {}
        assert!(matches!(account.seal(1_u64, &mut block).await, Err(Error::Denied(_))));
        script.enable(&rotated.id);
        account.ready().await.unwrap(); // which waits for the watch
        assert!(events.next().await.is_some());
        engine.delete_account(&tenant).await.unwrap();
        engine.purge_account(&tenant, keyleash::When::Now).await.unwrap();
        assert!(engine.close(SECOND).await.unwrap().is_clean());
    });
}

/// It takes a look at the store, with a deadline, for which the host has no clock.
#[test]
fn a_host_without_a_runtime_is_told_what_a_caller_may() {
    let host = Host::new();
    drop(host.account("a"));
    host.govern(Operation::Seal);
    let app = host.caller("app");
    for _ in 0..20 {
        assert_eq!(block_on(app.account_record(&id("a"))).unwrap().account, id("a"));
        assert!(matches!(block_on(app.account_record(&id("none"))), Err(Error::Forbidden(_))));
        block_on(app.account(&id("a"))).unwrap();
    }
    block_on(app.create_account(&id("b"), &host.kek)).unwrap();
    block_on(app.delete_account(&id("b"))).unwrap();
}

/// Whoever asks first, and never goes on.
#[test]
fn a_call_that_stands_still_keeps_no_grant_from_being_taken_away() {
    let host = Host::new();
    drop(host.account("a"));
    let grant = host.govern(Operation::Seal);
    let (token, _) = ScriptedToken::new(Clock::default(), SECOND, 1);
    host.store.set(true);
    let engine = Engine::builder(token, host.store.clone()).settings(settings()).start_up_proof(false).build().unwrap();
    let app = engine.caller(CallerId::new("app").unwrap());
    let still = current_thread();
    let record = id("a");
    let mut stands = pin!(app.account_record(&record));
    {
        let _in_runtime = still.enter();
        assert!(stands.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    host.store.set(false);
    let other = current_thread();
    let asked = || other.block_on(app.account_record(&id("a")));
    wait_for("the policy", || asked().is_ok());
    block_on(host.caller("boss").remove_grant(&grant)).unwrap();
    wait_for("the end of the grant", || matches!(asked(), Err(Error::Forbidden(_))));
}

#[test]
fn a_host_that_never_runs_its_runtime_delays_no_proof_and_a_lapse_wipes_all_the_same() {
    let settings =
        Settings::default().poll_interval(SECOND).store_timeout(SECOND).grace(4 * SECOND).aek_ttl(4 * SECOND);
    let host = Host::with(settings);
    let runtime = current_thread();
    let account = runtime.block_on(host.engine.create_account(&id("a"), &host.kek)).unwrap();
    host.script.disable(&host.kek_id);
    wait_for("the denial", || host.is_denied());
    assert!(matches!(account.state(), State::Refused(Error::Denied(_))));
    host.script.enable(&host.kek_id);
    wait_for("the resumption", || account.state() == State::Ready);
    host.script.set_unreachable(true);
    wait_for("the lapse", || matches!(host.phase(), Phase::Lapsed { .. }) && host.engine.leases()[0].filled_slots == 0);
    assert!(matches!(account.seal_in_place(1_u64, &mut [0; 9]), Err(Error::Lapsed(_))));
}

#[test]
fn a_host_whose_every_thread_is_blocked_delays_no_proof() {
    let host = Host::new();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let account = runtime.block_on(host.engine.create_account(&id("a"), &host.kek)).unwrap();
    let (blocked, free) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    for _ in 0..2 {
        let (blocked, free) = (blocked.clone(), free.clone());
        runtime.spawn(async move {
            blocked.fetch_add(1, Ordering::SeqCst);
            while !free.load(Ordering::SeqCst) {
                thread::sleep(PAUSE);
            }
        });
    }
    wait_for("a host that is blocked", || blocked.load(Ordering::SeqCst) == 2);
    host.script.disable(&host.kek_id);
    wait_for("the denial", || host.is_denied());
    assert!(matches!(account.state(), State::Refused(Error::Denied(_))));
    free.store(true, Ordering::SeqCst);
}

#[test]
fn opens_of_a_runtime_that_stands_still_hold_up_no_others() {
    let settings = settings();
    let mut host = Host::with(settings.clone());
    (0..40).for_each(|n| drop(host.account(&format!("a-{n}"))));
    let (token, script) = ScriptedToken::new(Clock::default(), settings.store_timeout, 2);
    host.script.clone_keks_to(&script);
    host.restart(token, settings);
    script.set_latency(PAUSE);
    let still = current_thread();
    let opening: Vec<_> = (0..30)
        .map(|n| {
            let engine = host.engine.clone();
            still.spawn(async move { engine.account(&id(&format!("a-{n}"))).await })
        })
        .collect();
    // They begin, and are never polled again.
    still.block_on(async {
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
    });
    let other = current_thread();
    for n in (0..40).rev() {
        other.block_on(host.engine.account(&id(&format!("a-{n}")))).unwrap();
        host.account(&format!("b-{n}"));
    }
    drop((opening, still));
}

#[test]
fn a_runtime_that_is_dropped_costs_only_its_own_calls() {
    let settings = settings().poll_interval(60 * SECOND); // as long as the token's calls may take
    let mut host = Host::with(settings.clone());
    for n in 0..10 {
        drop(host.account("a"));
        let (token, script) = ScriptedToken::new(Clock::default(), 60 * SECOND, 2);
        host.script.clone_keks_to(&script);
        host.restart(token, settings.clone());
        script.push(Call::Unwrap, Act::Hang);
        let (dropped, stays) =
            (current_thread(), Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());
        let open = || {
            let engine = host.engine.clone();
            async move { engine.account(&id("a")).await }
        };
        dropped.spawn(open());
        dropped.block_on(async {
            for _ in 0..=n {
                tokio::task::yield_now().await;
            }
        });
        let waits = stays.spawn(open());
        wait_for("the unwrap", || script.in_flight() == 1);
        drop(dropped);
        thread::sleep(PAUSE);
        script.release();
        let account = stays.block_on(waits).unwrap().unwrap();
        stays.block_on(account.seal(1_u64, &mut [0; 9])).unwrap();
        block_on(host.engine.delete_account(&id("a"))).unwrap();
        block_on(host.engine.purge_account(&id("a"), keyleash::When::Now)).unwrap();
    }
}

#[test]
fn async_forms_in_a_loop_let_the_hosts_other_tasks_run() {
    let host = Host::new();
    let account = host.account("a");
    let header = account.seal_in_place(1_u64, &mut [0; 9]).unwrap();
    for form in 0..6 {
        let has_run = Arc::new(AtomicBool::new(false));
        current_thread().block_on(async {
            let runs = has_run.clone();
            tokio::spawn(async move { runs.store(true, Ordering::SeqCst) });
            for _ in 0..100_000 {
                if has_run.load(Ordering::SeqCst) {
                    return;
                }
                match form {
                    0 => drop(account.seal(1_u64, &mut [0; 9]).await.unwrap()),
                    1 => drop(account.open(1_u64, &header, &mut [0; 9]).await),
                    2 => account.warm().await.unwrap(),
                    3 => account.warm_for(&header).await.unwrap(),
                    4 => account.ready().await.unwrap(),
                    _ => drop(host.engine.account(&id("a")).await.unwrap()),
                }
            }
            panic!("form {form} starves the host");
        });
    }
}

#[test]
fn a_host_without_a_runtime_opens_and_warms_and_waits_no_longer_than_it_says() {
    let settings = settings();
    let mut host = Host::with(settings.clone());
    drop(host.account("a"));
    let (token, script) = ScriptedToken::new(Clock::default(), SECOND, 2);
    host.script.clone_keks_to(&script);
    host.restart(token, settings);
    let account = host.engine.account_blocking(&id("a"), 30 * SECOND).unwrap();
    account.seal_in_place(1_u64, &mut [0; 9]).unwrap();
    assert_eq!(host.engine.wipe_now(&host.kek), 1);
    account.warm_blocking(30 * SECOND).unwrap();
    account.seal_in_place(1_u64, &mut [0; 9]).unwrap();
    host.engine.wipe_now(&host.kek);
    script.standing(Call::Unwrap, Act::Hang);
    let late = account.warm_blocking(PAUSE / 10);
    assert!(matches!(late, Err(Error::Cold { .. } | Error::Unreachable(_))), "{late:?}");
}

#[test]
fn a_store_that_blocks_its_thread_delays_no_proof_and_whoever_waits_is_told() {
    let settings = settings();
    let mut host = Host::with(settings.clone());
    drop((host.account("cold"), host.account("warm")));
    let (token, script) = ScriptedToken::new(Clock::default(), SECOND, 2);
    host.script.clone_keks_to(&script);
    host.restart(token, settings);
    let account = block_on(host.engine.account(&id("warm"))).unwrap();
    host.store.set(true);
    assert!(matches!(block_on(host.engine.account(&id("cold"))), Err(Error::Store(_))));
    account.seal_in_place(1_u64, &mut [0; 9]).unwrap();
    script.disable(&host.kek_id);
    wait_for("the denial", || host.is_denied());
    assert!(matches!(account.state(), State::Refused(Error::Denied(_))));
    host.store.set(false);
    script.enable(&host.kek_id);
    block_on(account.ready()).unwrap();
    block_on(host.engine.account(&id("cold"))).unwrap();
}

#[test]
fn an_engine_ends_with_its_last_handle_wherever_that_is_dropped_and_disturbs_no_other() {
    let other = Host::new();
    let its = other.account("a");
    for place in 0..3 {
        let host = Host::new();
        let account = host.account("a");
        let Host { engine, store, .. } = host;
        drop(engine);
        account.seal_in_place(1_u64, &mut [0; 9]).unwrap();
        match place {
            0 => drop(account),
            1 => current_thread().block_on(async { drop(account) }),
            _ => drop(current_thread().spawn(async move { drop(account) })), // with a runtime that is dropped
        }
        wait_for("the end of the engine", || Arc::strong_count(&store) == 1);
    }
    its.seal_in_place(1_u64, &mut [0; 9]).unwrap();
    other.script.disable(&other.kek_id);
    wait_for("the denial", || other.is_denied());
}

/// What a child of a fork finds. True when every call is refused as one.
fn is_refused_as_a_child(engine: &Engine, account: &Account) -> bool {
    let fatal = |error: Option<Error>| matches!(error, Some(Error::Fatal(text)) if text.contains("forked"));
    let mut buf = [0; 9];
    let refused = fatal(account.seal_in_place(1_u64, &mut buf).err())
        && fatal(ask_once(account.seal(1_u64, &mut buf)).and_then(Result::err))
        && fatal(ask_once(account.warm()).and_then(Result::err))
        && fatal(ask_once(account.ready()).and_then(Result::err))
        && fatal(ask_once(engine.account(account.id())).and_then(Result::err))
        && fatal(ask_once(engine.account_record(account.id())).and_then(Result::err))
        && matches!(account.state(), State::Refused(Error::Fatal(_)))
        && engine.leases().is_empty()
        && engine.events().try_next().is_none()
        && fatal(ask_once(engine.close(SECOND)).and_then(Result::err));
    drop((engine.clone(), account.clone()));
    refused
}

/// Ends the child; `None` when it hung.
fn forked(engine: &Engine, account: &Account) -> Option<bool> {
    // SAFETY: the child has one thread; it asks for errors, which take no lock that another thread may have held, allocates by
    // an allocator that expects forks, and ends without running destructors.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above. The alarm ends a child that hangs.
        unsafe {
            libc::alarm(30);
            libc::_exit(if is_refused_as_a_child(engine, account) { 0 } else { 1 });
        }
    }
    let mut status = 0;
    // SAFETY: the child made above.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status) == 0)
}

#[test]
fn a_forked_child_gets_an_error_from_every_call_and_never_hangs() {
    // `KEYLEASH_FORKS=5000 cargo test --test hosts fork` looks longer.
    let forks = std::env::var("KEYLEASH_FORKS").map_or(200, |forks| forks.parse().unwrap());
    let mut host = Host::new();
    drop((host.account("denied"), host.account("warm")));
    // Of what the caller of a handle may not do, and of what takes a look at the store, too.
    host.govern(Operation::Seal);
    host.engine = host.caller("app");
    let [denied, warm] = ["denied", "warm"].map(|name| block_on(host.engine.account(&id(name))).unwrap());
    host.script.disable(&host.kek_id);
    wait_for("the denial", || host.is_denied());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert!(denied.seal_in_place(1_u64, &mut [0; 9]).is_err());
                    host.engine.leases();
                    drop((host.engine.events(), ask_once(host.engine.account(&id("warm")))));
                }
            });
        }
        let hung = (0..forks).find(|n| {
            let fork = || forked(&host.engine, if n % 2 == 0 { &denied } else { &warm });
            // A thread that never sealed, too.
            let refused = if n % 10 == 0 { thread::scope(|scope| scope.spawn(fork).join().unwrap()) } else { fork() };
            refused != Some(true)
        });
        stop.store(true, Ordering::Relaxed);
        assert_eq!(hung, None, "the child of this fork hung, or was not refused");
    });
}
