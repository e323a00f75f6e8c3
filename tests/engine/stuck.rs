//! A seal that does not end, because its thread was stopped in the midst of it: what a page does that never comes.
#![allow(unsafe_code)] // signals

use super::*;
use keyleash::{
    Error,
    access::{Actions, Grant, Operation, Operations, Pattern},
    lease::Change,
    name::{CallerId, GrantId, KekVersion},
    store::load_denial,
    telemetry::{Event, Events},
};
use std::os::unix::thread::JoinHandleExt;
use std::{
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// Long enough to be stopped in its midst.
const BLOCK_BYTES: usize = 32 << 20;
/// What is looked at of either end, to tell what is written from what is not yet.
const EDGE_BYTES: usize = 64;

/// The test whose thread is stopped: there is one signal handler for all.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
static STOP: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_: libc::c_int) {
    STOPPED.store(true, Ordering::SeqCst);
    while STOP.load(Ordering::SeqCst) {
        // SAFETY: async-signal-safe.
        unsafe { libc::usleep(1000) };
    }
}

fn lock(buf: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    buf.lock().unwrap()
}

struct Stuck {
    thread: Option<thread::JoinHandle<Result<(), Error>>>,
    buf: Arc<Mutex<Vec<u8>>>,
}

impl Stuck {
    fn seal(account: &Account) -> Self {
        let account = account.clone();
        Self::of(&[7; BLOCK_BYTES], move |buf| account.seal_in_place(1_u64, buf).map(drop))
    }

    fn of(before: &[u8], work: impl Fn(&mut [u8]) -> Result<(), Error> + Send + Sync + 'static) -> Self {
        let work = Arc::new(work);
        let handler: extern "C" fn(libc::c_int) = stop;
        // SAFETY: the handler is async-signal-safe, and nothing else in this process uses the signal.
        unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
        loop {
            let (begun, buf) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(before.to_vec())));
            let bytes = lock(&buf).as_ptr() as usize;
            STOP.store(true, Ordering::SeqCst);
            STOPPED.store(false, Ordering::SeqCst);
            let working = thread::spawn({
                let (work, begun, buf) = (work.clone(), begun.clone(), buf.clone());
                move || {
                    let mut buf = lock(&buf);
                    begun.store(true, Ordering::SeqCst);
                    let done = work(&mut buf);
                    while STOP.load(Ordering::SeqCst) {
                        thread::yield_now(); // there to be stopped, if too late
                    }
                    done
                }
            });
            while !begun.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            thread::sleep(Duration::from_micros(500));
            // SAFETY: the thread is not joined yet.
            unsafe { libc::pthread_kill(working.as_pthread_t(), libc::SIGUSR1) };
            while !STOPPED.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            // In the midst of its bytes, and not before them, where it may hold a lock that everybody needs, or behind them.
            // SAFETY: the buffer lives as long as the lock that holds it, and nobody writes to it while its thread is stopped.
            let now = unsafe { std::slice::from_raw_parts(bytes as *const u8, before.len()) };
            let in_the_midst = now[..EDGE_BYTES] != before[..EDGE_BYTES]
                && now[before.len() - EDGE_BYTES..] == before[before.len() - EDGE_BYTES..];
            let stuck = Self { thread: Some(working), buf };
            if in_the_midst {
                return stuck;
            }
            stuck.end().0.unwrap();
        }
    }

    /// Goes on, and gives what came of it.
    fn end(mut self) -> (Result<(), Error>, Vec<u8>) {
        STOP.store(false, Ordering::SeqCst);
        let sealed = self.thread.take().unwrap().join().unwrap();
        let buf = std::mem::take(&mut *lock(&self.buf));
        (sealed, buf)
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        STOP.store(false, Ordering::SeqCst);
    }
}

/// Events until one of them is what is looked for; the wiper has a thread of its own, which is waited for.
async fn until_told(rig: &Rig, events: &mut Events, wanted: impl Fn(&Event) -> bool) -> Event {
    loop {
        while let Some(event) = events.try_next() {
            if wanted(&event) {
                return event;
            }
        }
        thread::sleep(Duration::from_millis(5));
        rig.pass(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_stuck_seal_holds_up_no_denial_no_note_of_it_no_eviction_and_no_resumption() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let rig = Rig::with(Settings::default().max_cached_aeks(3)).await;
    let other = KekName::new("other").unwrap();
    let other_id = rig.engine.create_kek(&other, Profile::AesGcm).await.unwrap().id;
    let stuck = rig.account("stuck").await;
    let beside = rig.account("beside").await;
    let elsewhere = rig.engine.create_account(&account_id("elsewhere"), &other).await.unwrap();
    let neighbour = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    let of_neighbour = neighbour.account(&account_id("elsewhere")).await.unwrap();
    let mut events = rig.engine.events();
    let seal_that_hangs = Stuck::seal(&stuck);

    // Both KEKs are denied in one poll, each is told and written down, and no key of theirs is usable.
    rig.script.disable(&rig.kek_id);
    rig.script.disable(&other_id);
    rig.pass(20 * SECOND).await;
    for account in [&stuck, &beside, &elsewhere, &of_neighbour] {
        assert!(matches!(seal(account), Err(Error::Denied(_))), "{account:?}");
    }
    let versions = [&rig.kek, &other].map(|kek| KekVersion::new(kek.clone(), 1));
    let told: Vec<_> = std::iter::from_fn(|| events.try_next()).collect();
    for kek in &versions {
        let denied = |event: &Event| matches!(event, Event::Lease { kek: of, change: Change::Denied, .. } if of == kek);
        assert!(told.iter().any(denied), "the denial of {kek} was not told: {told:?}");
        assert!(load_denial(&*rig.store, kek).await.unwrap().is_some(), "the denial of {kek} is not written down");
    }
    let status = rig.engine.status().await;
    assert!(status.leases.iter().all(|lease| lease.filled_slots == 0), "{status:?}");
    let [waiting] = &status.waiting_wipes[..] else { panic!("{:?}", status.waiting_wipes) };
    assert_eq!((waiting.account.as_ref(), &waiting.kek), (Some(stuck.id()), &versions[0]));
    assert_eq!(waiting.threads.len(), 1);
    assert!(neighbour.status().await.waiting_wipes.is_empty());

    // Granted again, the same handle seals, beside the seal that still hangs.
    rig.script.enable(&rig.kek_id);
    rig.script.enable(&other_id);
    rig.pass(20 * SECOND).await;
    for account in [&stuck, &beside, &elsewhere, &of_neighbour] {
        seal(account).unwrap();
    }
    // Others make it leave, and wait for nobody.
    for n in 0..5 {
        seal(&rig.account(&format!("late-{n}")).await).unwrap();
    }
    assert_eq!(rig.engine.status().await.waiting_wipes.len(), 1, "the key that came after it was not used");

    // Whose key it is, is said to whoever may see the account.
    let grant = Grant {
        id: GrantId::new("new").unwrap(),
        callers: Pattern::new("seer").unwrap(),
        keks: Pattern::all(),
        accounts: Pattern::all(),
        actions: Actions::Operations(Operations::of(&[Operation::Get, Operation::GrantWrite])),
    };
    rig.engine.add_grants(vec![grant]).await.unwrap();
    let [seer, other] = ["seer", "other"].map(|caller| rig.engine.caller(CallerId::new(caller).unwrap()));
    assert_eq!(seer.status().await.waiting_wipes.len(), 1);
    assert_eq!(other.status().await.waiting_wipes, []);

    // When it ends, what it sealed is undone, and its key goes.
    let (sealed, buf) = seal_that_hangs.end();
    assert!(sealed.is_err() && buf.iter().all(|byte| *byte == 7), "{sealed:?}");
    while !seer.status().await.waiting_wipes.is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test]
async fn a_wipe_that_waits_for_long_is_told_with_the_thread_that_it_waits_for() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let rig = Rig::new().await;
    let account = rig.account("stuck").await;
    let mut events = rig.engine.events();
    let seal_that_hangs = Stuck::seal(&account);
    rig.script.disable(&rig.kek_id);
    let waits = until_told(&rig, &mut events, |event| matches!(event, Event::WipeWaits { .. })).await;
    let Event::WipeWaits { account: of, threads, .. } = waits else { unreachable!() };
    assert_eq!(of.as_ref(), Some(account.id()));
    let [thread] = threads[..] else { panic!("{threads:?}") };
    assert!(std::path::Path::new(&format!("/proc/self/task/{thread}")).exists());
    let status = rig.engine.status().await;
    assert!(status.waiting_wipes[0].waits >= SECOND && status.waiting_wipes[0].threads == [thread]);
    assert!(seal_that_hangs.end().0.is_err());
    until_told(&rig, &mut events, |event| matches!(event, Event::WipeDone { .. })).await;
    assert!(rig.engine.status().await.waiting_wipes.is_empty());
}

#[tokio::test]
async fn what_was_under_way_as_the_denial_came_gives_nothing_and_leaves_its_buffer_as_it_was() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    let (plain, mut sealed) = (vec![7; BLOCK_BYTES], vec![7; BLOCK_BYTES]);
    let header = account.seal_in_place(1_u64, &mut sealed).unwrap();
    rig.engine.rotate_account(&account_id("a")).await.unwrap();
    let blank = vec![0; BLOCK_BYTES];
    type Work = Box<dyn Fn(&mut [u8]) -> Result<(), Error> + Send + Sync>;
    let of = || account.clone();
    let (one, two, three, four, five) = (of(), of(), of(), of(), of());
    let (source, ciphertext) = (plain.clone(), sealed.clone());
    let all: [(&str, &[u8], Work); 5] = [
        ("seal", &plain, Box::new(move |buf| one.seal_in_place(1_u64, buf).map(drop))),
        ("open", &sealed, Box::new(move |buf| two.open_in_place(1_u64, &header, buf))),
        ("reseal", &sealed, Box::new(move |buf| three.reseal_in_place(1_u64, &header, buf).map(drop))),
        ("seal into", &blank, Box::new(move |buf| four.seal_into(1_u64, &source, buf).map(drop))),
        ("open into", &blank, Box::new(move |buf| five.open_into(1_u64, &header, &ciphertext, buf))),
    ];
    for (name, before, work) in all {
        account.warm().await.unwrap();
        work(&mut before.to_vec()).unwrap();
        let stuck = Stuck::of(before, work);
        rig.script.disable(&rig.kek_id);
        rig.pass(20 * SECOND).await;
        // Granted again by the time that it goes on: it began before.
        rig.script.enable(&rig.kek_id);
        rig.pass(20 * SECOND).await;
        let (done, buf) = stuck.end();
        assert!(done.is_err(), "{name}: {done:?}");
        assert!(buf == before, "{name}: its buffer is not as it was");
        seal(&account).unwrap();
    }
}
