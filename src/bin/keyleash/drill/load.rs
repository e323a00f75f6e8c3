//! The load: threads that seal and open blocks of many accounts without pause and verify every byte, as a service would.
//!
//! A service awaits the unwrap of a cold account, and so does the load. It pauses for [`REFUSED_PAUSE`] only when everything
//! that it tried was refused.

use super::{
    outcome::{Outcome, Run},
    timeline::{Chunk, GAP_MIN, Sealed},
};
use crate::exit::Failure;
use keyleash::{
    Account, Engine, Error,
    block::BlockHeader,
    clock::{Clock, Instant},
    name::AccountId,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::runtime::Handle;

/// The block that is sealed anew each time.
const BLOCK_BYTES: usize = 4096;
/// The block that was sealed before everything began, and must open ever after.
const KEPT_BYTES: usize = 256;
const KEPT_ADDRESS: u64 = 1;
const NEW_ADDRESS: u64 = 2;
const REFUSED_PAUSE: Duration = Duration::from_millis(1);
/// How long a thread may take to end: what one that is stuck in an operation did not do is recorded, and it is left behind.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
const STOP_PAUSE: Duration = Duration::from_millis(5);
/// What a thread learned is told at least this often.
const TELL_EVERY: Duration = Duration::from_millis(20);

/// Where the load tells what it learned.
pub(crate) trait Listener: Send + Sync {
    fn absorb(&self, chunk: Chunk);
}

/// One account of the load.
pub(crate) struct Customer {
    pub(crate) id: AccountId,
    /// `None` until it could be opened: a process that starts while it is refused goes on trying.
    pub(crate) account: Option<Account>,
    /// The block that was sealed at the beginning.
    pub(crate) kept: Vec<u8>,
}

impl Customer {
    /// Seals the block that must open ever after.
    pub(crate) fn new(account: Account) -> Result<Self, Error> {
        let id = account.id().clone();
        let kept = account.seal_to_vec(KEPT_ADDRESS, &plaintext(id.as_str(), KEPT_BYTES, 0))?;
        Ok(Self { id, account: Some(account), kept })
    }
}

/// The threads. Dropping it ends them.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts; the customers are dealt out to the threads, and keep their numbers.
    pub(crate) fn start(
        customers: Vec<Customer>,
        threads: usize,
        engine: &Engine,
        listener: &Arc<dyn Listener>,
    ) -> Result<Self, Failure> {
        let mut hands: Vec<Vec<(usize, Customer)>> = (0..threads.max(1)).map(|_| Vec::new()).collect();
        let count = hands.len();
        for (number, customer) in customers.into_iter().enumerate() {
            if let Some(hand) = hands.get_mut(number % count) {
                hand.push((number, customer));
            }
        }
        hands.retain(|hand| !hand.is_empty());
        let mut load = Self { stop: Arc::default(), threads: Vec::new() };
        for (thread, hand) in hands.into_iter().enumerate() {
            let began = Clock::default().now().as_nanos();
            // Told here, because one that is stuck in its first operation tells nothing.
            listener.absorb(Chunk { thread: Some((thread, began)), ..Chunk::default() });
            let worker = Worker {
                thread,
                succeeded_at: began,
                engine: engine.clone(),
                listener: listener.clone(),
                runtime: Handle::current(),
                clock: Clock::default(),
                numbers: hand.iter().map(|(number, _)| *number).collect(),
                last: vec![None; hand.len()],
                sealed: vec![None; hand.len()],
                chunk: Chunk::default(),
            };
            let stop = load.stop.clone();
            let spawned = thread::Builder::new().name("drill-load".into()).spawn(move || worker.work(hand, &stop));
            load.threads.push(spawned.map_err(|error| Failure::io("starting a thread", error))?);
        }
        Ok(load)
    }

    /// Ends the threads, and waits until they have told everything. One that panicked has told that on standard error.
    pub(crate) async fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        let clock = Clock::default();
        let give_up = clock.now().plus(STOP_PATIENCE);
        while self.threads.iter().any(|thread| !thread.is_finished()) && clock.now() < give_up {
            clock.sleep_until(clock.now().plus(STOP_PAUSE)).await;
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

struct Worker {
    engine: Engine,
    listener: Arc<dyn Listener>,
    runtime: Handle,
    clock: Clock,
    numbers: Vec<usize>,
    /// The run of each customer that was not told yet.
    last: Vec<Option<Run>>,
    /// The newest block that each customer sealed and that was not told yet.
    sealed: Vec<Option<Sealed>>,
    /// Which of the threads this is, and when an operation of its last succeeded.
    thread: usize,
    succeeded_at: u64,
    chunk: Chunk,
}

impl Worker {
    fn work(mut self, mut customers: Vec<(usize, Customer)>, stop: &AtomicBool) {
        let mut buf = vec![0; BLOCK_BYTES];
        let (mut round, mut tell_at) = (0_u64, self.clock.now());
        while !stop.load(Ordering::SeqCst) && !customers.is_empty() {
            round += 1;
            let mut succeeded = false;
            for (seat, (number, customer)) in customers.iter_mut().enumerate() {
                let account = match &customer.account {
                    Some(account) => account.clone(),
                    None => match self.open(seat, *number, customer) {
                        Some(account) => account,
                        None => continue,
                    },
                };
                succeeded |= self.serve(seat, *number, &account, &customer.kept, &mut buf, round);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let now = self.clock.now();
                if now >= tell_at {
                    self.tell();
                    tell_at = now.plus(TELL_EVERY);
                }
            }
            if !succeeded {
                self.tell();
                thread::sleep(REFUSED_PAUSE);
            }
        }
        self.tell();
    }

    fn open(&mut self, seat: usize, number: usize, customer: &mut Customer) -> Option<Account> {
        let from = self.clock.now();
        let opened = self.runtime.block_on(self.engine.account(&customer.id));
        if let Err(error) = &opened {
            self.note(seat, number, from, Err(error));
        }
        customer.account = opened.ok();
        customer.account.clone()
    }

    /// A new block there and back, and the kept one back. True when something succeeded.
    fn serve(
        &mut self,
        seat: usize,
        number: usize,
        account: &Account,
        kept: &[u8],
        buf: &mut [u8],
        round: u64,
    ) -> bool {
        let plain = plaintext(account.id().as_str(), buf.len(), round);
        buf.copy_from_slice(&plain);
        let from = self.clock.now().as_nanos();
        let sealed = self.operation(seat, number, account, None, || account.seal_in_place(NEW_ADDRESS, buf));
        let mut succeeded = sealed.is_some();
        if let (Some(header), Some(newest)) = (&sealed, self.sealed.get_mut(seat)) {
            *newest = Some(Sealed { aek_version: header.aek_version(), from });
        }
        if let Some(header) = sealed
            && self
                .operation(seat, number, account, Some(header), || account.open_in_place(NEW_ADDRESS, &header, buf))
                .is_some()
        {
            self.verify(buf, &plain);
        }
        let header = BlockHeader::split(kept).ok().map(|(header, _)| header);
        if let Some(opened) = self.operation(seat, number, account, header, || account.open_to_vec(KEPT_ADDRESS, kept))
        {
            succeeded = true;
            self.verify(&opened, &plaintext(account.id().as_str(), KEPT_BYTES, 0));
        }
        succeeded
    }

    fn verify(&mut self, got: &[u8], plain: &[u8]) {
        if got != plain {
            let differ = got.iter().zip(plain).filter(|(one, other)| one != other).count();
            self.chunk.unverified_bytes += (differ + got.len().abs_diff(plain.len())) as u64;
        }
    }

    /// One operation, tried again after an unwrap where the account is cold: for an open, of the AEK that its header names.
    fn operation<T>(
        &mut self,
        seat: usize,
        number: usize,
        account: &Account,
        opens: Option<BlockHeader>,
        mut op: impl FnMut() -> Result<T, Error>,
    ) -> Option<T> {
        let from = self.clock.now();
        let mut result = op();
        if let Err(Error::Cold { .. }) = result {
            self.chunk.warmed += 1;
            // What it failed with, the second try says too.
            let _ = self.runtime.block_on(async {
                match &opens {
                    None => account.warm().await,
                    Some(header) => account.warm_for(header).await,
                }
            });
            result = op();
        }
        self.note(seat, number, from, result.as_ref().map(|_| ()));
        result.ok()
    }

    fn note(&mut self, seat: usize, number: usize, from: Instant, result: Result<(), &Error>) {
        let outcome = match result {
            Ok(()) => Outcome::Ok,
            Err(error) => Outcome::of::<()>(&Err(error.clone())),
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
        let Some(last) = self.last.get_mut(seat) else { return };
        if last.as_mut().is_some_and(|last| last.extend(&run)) {
            return;
        }
        if let Err(error) = result
            && !self.chunk.examples.iter().any(|(known, _)| *known == outcome)
        {
            self.chunk.examples.push((outcome, error.to_string()));
        }
        self.chunk.runs.extend(last.replace(run).map(|last| (number, last)));
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

/// Bytes that differ with account and round, so that a block that was mixed up with another is found out.
fn plaintext(account: &str, len: usize, round: u64) -> Vec<u8> {
    // FNV-1a, then a multiplicative generator: quick, and no secret.
    let seed = account
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mut state = (seed ^ round) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::timeline::Recorder;
    use keyleash::{
        config::Settings,
        name::KekName,
        store::memory::MemoryStore,
        token::{Profile, scripted::ScriptedToken},
    };

    #[test]
    fn plaintexts_differ_with_account_and_round() {
        let one = plaintext("a", 100, 1);
        assert_eq!(one.len(), 100);
        assert_eq!(one, plaintext("a", 100, 1));
        assert_ne!(one, plaintext("b", 100, 1));
        assert_ne!(one, plaintext("a", 100, 3));
    }

    /// Whatever an operation waits for, its thread is without a success meanwhile.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_load_that_waits_has_a_gap_as_long_as_the_wait() {
        const LATENCY: Duration = Duration::from_millis(300);
        let (token, script) = ScriptedToken::new(Clock::default(), Settings::default().store_timeout, 1);
        let store = Arc::new(MemoryStore::new());
        let engine = || Engine::builder(token.clone(), store.clone()).build().unwrap();
        let (kek, id) = (KekName::new("kek").unwrap(), AccountId::new("account").unwrap());
        let first = engine();
        first.create_kek(&kek, keyleash::KekOptions::new(Profile::AesGcm).destroyable()).await.unwrap();
        let account = first.create_account(&id, &kek).await.unwrap();
        let mut customer = Customer::new(account).unwrap();
        customer.account = None;
        script.set_latency(LATENCY);

        let recorder = Arc::new(Recorder::new(Instant::default(), Duration::from_millis(100), 1));
        let listener: Arc<dyn Listener> = recorder.clone();
        let load = Load::start(vec![customer], 1, &engine(), &listener).unwrap();
        while !recorder.all_are(Outcome::Ok, Instant::default()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        load.stop().await;
        let gaps = recorder.read(Clock::default().now()).gaps;
        let longest = gaps.iter().map(|(from, to)| Duration::from_nanos(to - from)).max();
        assert!(longest.is_some_and(|gap| gap >= LATENCY), "{gaps:?}");
    }
}
