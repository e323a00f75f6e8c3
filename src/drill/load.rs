//! The load: threads that serve the accounts without pause, as the service does, and write down what came of it.
//!
//! They pause for [`REFUSED_PAUSE`] only when everything that they tried was refused.

use super::{
    error::Error,
    outcome::{Outcome, Run},
    timeline::{Chunk, GAP_MIN, Listener, Sealed},
};
use crate::{
    block::BlockHeader,
    clock::{Clock, Instant},
    error,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

const REFUSED_PAUSE: Duration = Duration::from_millis(1);
/// How long a thread may take to end: what one that is stuck in an operation did not do is recorded, and it is left behind.
pub(crate) const STOP_PATIENCE: Duration = Duration::from_secs(30);
const STOP_PAUSE: Duration = Duration::from_millis(5);
/// One that panicked is noticed so soon.
const BROKEN_PAUSE: Duration = Duration::from_millis(100);
/// An operation that ended so much later than the one before it is not part of its run: what was right when it began says nothing of those
/// behind it.
const APART: Duration = Duration::from_millis(500);
/// What a thread learned is told at least this often.
const TELL_EVERY: Duration = Duration::from_millis(20);

/// Serves one account once.
pub(crate) type Serve = Box<dyn FnMut(&mut Hand) + Send>;

/// The threads. Dropping it ends them.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// The accounts of each.
    numbers: Vec<Vec<usize>>,
}

impl Load {
    /// Starts; the accounts are dealt out to the threads, and keep their numbers.
    pub(crate) fn start(accounts: Vec<Serve>, threads: usize, listener: &Arc<dyn Listener>) -> Result<Self, Error> {
        let threads = threads.clamp(1, accounts.len().max(1));
        let mut hands: Vec<Vec<(usize, Serve)>> = (0..threads).map(|_| Vec::new()).collect();
        let count = hands.len();
        for (number, account) in accounts.into_iter().enumerate() {
            if let Some(hand) = hands.get_mut(number % count) {
                hand.push((number, account));
            }
        }
        hands.retain(|hand| !hand.is_empty());
        let mut load = Self { stop: Arc::default(), threads: Vec::new(), numbers: Vec::new() };
        for (thread, accounts) in hands.into_iter().enumerate() {
            let began = Clock::default().now().as_nanos();
            // Told here, because one that is stuck in its first operation tells nothing.
            listener.absorb(Chunk { thread: Some((thread, began)), ..Chunk::default() });
            let hand = Hand {
                thread,
                succeeded_at: began,
                listener: listener.clone(),
                clock: Clock::default(),
                numbers: accounts.iter().map(|(number, _)| *number).collect(),
                last: vec![None; accounts.len()],
                sealed: vec![None; accounts.len()],
                seat: 0,
                began,
                succeeded: false,
                chunk: Chunk::default(),
            };
            load.numbers.push(hand.numbers.clone());
            let stop = load.stop.clone();
            let spawned = thread::Builder::new().name("drill-load".into()).spawn(move || hand.work(accounts, &stop));
            load.threads.push(spawned.map_err(|error| Error::io("starting a thread", error))?);
        }
        Ok(load)
    }

    /// Resolves when a thread has ended that was not told to: it panicked. Not in the midst of an act.
    pub(crate) async fn broken(&self, acting: &AtomicBool) {
        let clock = Clock::default();
        while acting.load(Ordering::SeqCst) || !self.threads.iter().any(JoinHandle::is_finished) {
            clock.sleep_until(clock.now().plus(BROKEN_PAUSE)).await;
        }
    }

    /// Ends the threads, and waits until they have told everything. Gives the accounts of those that did not end in time.
    pub(crate) async fn stop(mut self, patience: Duration) -> Result<Vec<usize>, Error> {
        self.stop.store(true, Ordering::SeqCst);
        let clock = Clock::default();
        let give_up = clock.now().plus(patience);
        while self.threads.iter().any(|thread| !thread.is_finished()) && clock.now() < give_up {
            clock.sleep_until(clock.now().plus(STOP_PAUSE)).await;
        }
        let mut stuck = Vec::new();
        for (thread, numbers) in self.threads.drain(..).zip(self.numbers.drain(..)) {
            match thread.is_finished() {
                true => thread.join().map_err(|_| Error::Load)?,
                false => stuck.extend(numbers),
            }
        }
        Ok(stuck)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// A thread of the load, with which an account's service says what it does.
pub struct Hand {
    listener: Arc<dyn Listener>,
    clock: Clock,
    numbers: Vec<usize>,
    /// The run of each account that was not told yet.
    last: Vec<Option<Run>>,
    /// The newest block that each account sealed and that was not told yet.
    sealed: Vec<Option<Sealed>>,
    /// Whose turn it is, when its newest operation began, and whether one of this round succeeded.
    seat: usize,
    began: u64,
    succeeded: bool,
    /// Which of the threads this is, and when an operation of its last succeeded.
    thread: usize,
    succeeded_at: u64,
    chunk: Chunk,
}

impl Hand {
    /// One operation of the account, as a user of the service waits for it: a seal, an open, a write. It is timed, and what it came to
    /// is held against what is owed at that time. It is to end with an error rather than to wait until the key is back; that it warms
    /// an account that is cold is part of it.
    pub fn operation<T>(&mut self, operation: impl FnOnce() -> Result<T, error::Error>) -> Option<T> {
        let from = self.clock.now();
        self.began = from.as_nanos();
        let result = operation();
        self.note(from, result.as_ref().map(|_| ()));
        self.succeeded |= result.is_ok();
        result.ok()
    }

    /// Holds what came out against what went in. A drill of which nothing was held so has not shown that it comes out right, and fails.
    pub fn verify(&mut self, got: &[u8], plain: &[u8]) {
        self.chunk.compared_bytes += got.len().max(plain.len()) as u64;
        if got != plain {
            let differ = got.iter().zip(plain).filter(|(one, other)| one != other).count();
            self.chunk.unverified_bytes += (differ + got.len().abs_diff(plain.len())) as u64;
        }
    }

    /// The newest operation sealed a block with this header. [`Scenario::Rotation`](super::Scenario::Rotation) looks in it for the AEK
    /// version; no other needs it.
    pub fn sealed(&mut self, header: &BlockHeader) {
        if let Some(newest) = self.sealed.get_mut(self.seat) {
            *newest = Some(Sealed { aek_version: header.aek_version(), from: self.began });
        }
    }

    /// The newest operation waited for an unwrap of its own. Counted, and not judged.
    pub fn warmed(&mut self) {
        self.chunk.warmed += 1;
    }

    fn work(mut self, mut accounts: Vec<(usize, Serve)>, stop: &AtomicBool) {
        let mut tell_at = self.clock.now();
        while !stop.load(Ordering::SeqCst) {
            self.succeeded = false;
            for (seat, (_, serve)) in accounts.iter_mut().enumerate() {
                self.seat = seat;
                serve(&mut self);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let now = self.clock.now();
                if now >= tell_at {
                    self.tell();
                    tell_at = now.plus(TELL_EVERY);
                }
            }
            if !self.succeeded {
                self.tell();
                thread::sleep(REFUSED_PAUSE);
            }
        }
        self.tell();
    }

    fn note(&mut self, from: Instant, result: Result<(), &error::Error>) {
        let outcome = match result {
            Ok(()) => Outcome::Ok,
            Err(error) => Outcome::of(error),
        };
        let to = self.clock.now();
        self.chunk.longest = self.chunk.longest.max(to.since(from));
        if outcome == Outcome::Ok {
            if to.since(Instant::from_nanos(self.succeeded_at)) >= GAP_MIN {
                self.chunk.gaps.push((self.succeeded_at, to.as_nanos()));
            }
            self.succeeded_at = to.as_nanos();
        }
        let run = Run::one(outcome, from.as_nanos(), to.as_nanos());
        let Some(last) = self.last.get_mut(self.seat) else { return };
        let goes_on = |last: &mut Run| to.since(Instant::from_nanos(last.to)) < APART && last.extend(&run);
        if last.as_mut().is_some_and(goes_on) {
            return;
        }
        if let Err(error) = result
            && !self.chunk.examples.iter().any(|(known, _)| *known == outcome)
        {
            self.chunk.examples.push((outcome, error.to_string()));
        }
        let told = last.replace(run);
        self.chunk.runs.extend(told.zip(self.numbers.get(self.seat)).map(|(told, number)| (*number, told)));
    }

    fn tell(&mut self) {
        for (last, number) in self.last.iter_mut().zip(&self.numbers) {
            self.chunk.runs.extend(last.take().map(|last| (*number, last)));
        }
        for (sealed, number) in self.sealed.iter_mut().zip(&self.numbers) {
            self.chunk.sealed.extend(sealed.take().map(|sealed| (*number, sealed)));
        }
        self.chunk.thread = Some((self.thread, self.succeeded_at));
        self.listener.absorb(std::mem::take(&mut self.chunk));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Engine, KekOptions,
        config::Settings,
        drill::timeline::Recorder,
        name::{AccountId, KekName},
        store::memory::MemoryStore,
        token::{Profile, scripted::ScriptedToken},
    };

    /// Whatever an operation waits for, its thread is without a success meanwhile.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_load_that_waits_has_a_gap_as_long_as_the_wait() {
        const LATENCY: Duration = Duration::from_millis(300);
        let (token, script) = ScriptedToken::new(Clock::default(), Settings::default().store_timeout, 1);
        let store = Arc::new(MemoryStore::new());
        let engine = || Engine::builder(token.clone(), store.clone()).build().unwrap();
        let (kek, id) = (KekName::new("kek").unwrap(), AccountId::new("account").unwrap());
        let first = engine();
        first.create_kek(&kek, KekOptions::new(Profile::AesGcm).destroyable()).await.unwrap();
        first.create_account(&id, &kek).await.unwrap();
        script.set_latency(LATENCY);

        let recorder = Arc::new(Recorder::new(Instant::default(), Duration::from_millis(100), 1));
        let listener: Arc<dyn Listener> = recorder.clone();
        let second = engine();
        let mut account = None;
        let serve = Box::new(move |hand: &mut Hand| match &account {
            None => account = hand.operation(|| second.account_blocking(&id, STOP_PATIENCE)),
            Some(account) => drop(hand.operation(|| account.seal_to_vec(1_u64, b"a block"))),
        });
        let load = Load::start(vec![serve], 1, &listener).unwrap();
        while !recorder.all_are(Outcome::Ok, Instant::default()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        load.stop(STOP_PATIENCE).await.unwrap();
        let gaps = recorder.read(Clock::default().now()).gaps;
        let longest = gaps.iter().map(|(from, to)| Duration::from_nanos(to - from)).max();
        assert!(longest.is_some_and(|gap| gap >= LATENCY), "{gaps:?}");
    }

    #[tokio::test]
    async fn a_load_that_panics_is_broken_and_no_load_that_succeeded() {
        let listener: Arc<dyn Listener> = Arc::new(Recorder::new(Instant::default(), Duration::from_millis(100), 2));
        let serve: [Serve; 2] = [Box::new(|_| panic!("on purpose")), Box::new(|_| {})];
        let load = Load::start(serve.into(), 2, &listener).unwrap();
        load.broken(&AtomicBool::new(false)).await;
        assert!(matches!(load.stop(STOP_PATIENCE).await, Err(Error::Load)));
    }

    #[tokio::test]
    async fn the_accounts_of_a_thread_that_does_not_end_are_told() {
        let listener: Arc<dyn Listener> = Arc::new(Recorder::new(Instant::default(), Duration::from_millis(100), 3));
        let (_held, waits) = std::sync::mpsc::channel::<()>();
        let (tell, in_it) = std::sync::mpsc::channel();
        let hangs = Box::new(move |_: &mut Hand| {
            let _ = tell.send(());
            let _ = waits.recv();
        });
        let serve: [Serve; 3] = [Box::new(|_| {}), hangs, Box::new(|_| {})];
        let load = Load::start(serve.into(), usize::MAX, &listener).unwrap();
        in_it.recv().unwrap();
        assert!(load.stop(Duration::from_millis(200)).await.unwrap().contains(&1));
    }
}
