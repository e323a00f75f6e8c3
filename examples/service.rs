//! How a service lives with keys that can be taken away: what a thread and a task do after each error, and how the process ends.
//!
//!     softhsm/with-token cargo run --example service
//!
//! A block that was taken on is either written or given back; nothing is dropped, and nothing is tried again in a hot loop. A test
//! (`tests/softhsm/example.rs`) takes this very file through a revocation, an outage, a store outage and a shutdown.

use keyleash::{
    Account, Engine, Error, KekOptions,
    engine::Closed,
    name::{AccountId, KekName},
    store::memory::MemoryStore,
    token::{
        Profile,
        pkcs11::{PinSource, Pkcs11Settings, Pkcs11Token, Selector, exit_at_once},
    },
};
use std::{
    collections::BTreeMap,
    env::var,
    mem::discriminant,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// How long an unwrap may take: its turn and its call.
const PATIENCE: Duration = Duration::from_secs(30);
/// The shortest pause before another try, whatever the error says.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// While the key is denied, which may last for days.
const DENIED_PAUSE: Duration = Duration::from_secs(1);

/// A block and its place.
pub struct Block {
    /// Its address.
    pub place: u64,
    /// Plaintext.
    pub data: Vec<u8>,
}

/// How long to wait before the same block is tried again; `None` when that is of no use.
fn pause_after(error: &Error) -> Option<Duration> {
    match error {
        // The token says no. Asking more often changes nothing, and a refused seal asks the token nothing: the block is kept.
        Error::Denied(_) => Some(DENIED_PAUSE),
        // Lapsed and Unreachable: the token is away. Store: the key store is. Cold and Conflict: at once, nearly.
        error => error.retry_after().map(|pause| pause.max(PAUSE_MIN)),
        // Left is what another try does not heal: Corrupt, Exhausted (rotate the account), TooLong, Misconfigured …, which is told with
        // the block's name; and Closed and Fatal, after which the service ends.
    }
}

/// Writes and reads blocks of one account.
pub struct Service {
    engine: Engine,
    account: Account,
    disk: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// True once the service ends; for tasks.
    stopping: watch::Sender<bool>,
    /// The same for threads.
    stopped: (Mutex<bool>, Condvar),
    /// What was told last, and how often something was refused.
    trouble: Mutex<(Option<Error>, u64)>,
}

impl Service {
    /// Over an engine and an account of it.
    pub fn new(engine: Engine, account: Account) -> Arc<Self> {
        let (disk, stopping) = (Mutex::default(), watch::Sender::new(false));
        Arc::new(Self { engine, account, disk, stopping, stopped: Default::default(), trouble: Mutex::default() })
    }

    /// Writes a block, on a thread: waits for as long as its key is away.
    ///
    /// # Errors
    /// Why the block is still the caller's: [`Error::Closed`] when the service ends, else what no other try would heal.
    pub fn write(&self, block: &Block) -> Result<(), Error> {
        loop {
            let Err(error) = self.try_to_write(block) else { return Ok(()) };
            self.tell(&error);
            let pause = pause_after(&error).ok_or(error)?;
            if self.stops_within(pause) {
                return Err(Error::Closed);
            }
        }
    }

    fn try_to_write(&self, block: &Block) -> Result<(), Error> {
        let sealed = match self.account.seal_to_vec(block.place, &block.data) {
            // Not used for a while, or wiped: one unwrap brings it back.
            Err(Error::Cold { .. }) => {
                self.account.warm_blocking(PATIENCE)?;
                self.account.seal_to_vec(block.place, &block.data)?
            }
            sealed => sealed?,
        };
        self.put(block.place, sealed);
        Ok(())
    }

    /// Writes a block, in a task.
    ///
    /// # Errors
    /// As [`Service::write`].
    pub async fn write_async(&self, block: &Block) -> Result<(), Error> {
        let mut stopping = self.stopping.subscribe();
        loop {
            let error = match self.account.seal_to_vec(block.place, &block.data) {
                Ok(sealed) => {
                    self.put(block.place, sealed);
                    return Ok(());
                }
                Err(error) => error,
            };
            self.tell(&error);
            let pause = pause_after(&error).ok_or(error)?;
            let wait = async {
                tokio::time::sleep(pause).await;
                // Brings back what is cold, and sleeps through denial, lapse and outage for as long as they last.
                self.account.ready().await
            };
            tokio::select! {
                ready = wait => ready?,
                _ = stopping.wait_for(|stops| *stops) => return Err(Error::Closed),
            }
        }
    }

    /// Reads a block back.
    ///
    /// # Errors
    /// What [`Account::open_to_vec`] fails with, [`Error::NotFound`] where nothing was written.
    pub async fn read(&self, place: u64) -> Result<Vec<u8>, Error> {
        let sealed = self.sealed(place).ok_or_else(|| Error::NotFound(format!("block {place}")))?;
        self.account.ready().await?;
        self.account.open_to_vec(place, &sealed)
    }

    /// Ends the service. Whoever is in a write gets the block back; then the engine is closed.
    ///
    /// # Errors
    /// As [`Engine::close`].
    pub async fn stop(&self) -> Result<Closed, Error> {
        *self.stopped.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stopped.1.notify_all();
        self.stopping.send_replace(true);
        self.engine.close(PATIENCE).await
    }

    /// What is on the disk.
    pub fn sealed(&self, place: u64) -> Option<Vec<u8>> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).get(&place).cloned()
    }

    /// How often a try was refused.
    pub fn refused(&self) -> u64 {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// True when the service ends within this time.
    fn stops_within(&self, pause: Duration) -> bool {
        let (stopped, told) = &self.stopped;
        let stopped = stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = told.wait_timeout_while(stopped, pause, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Tells an operator of a trouble once, however many blocks meet it. The error names the KEK and the remedy.
    fn tell(&self, error: &Error) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.1 += 1;
        if trouble.0.as_ref().is_none_or(|last| discriminant(last) != discriminant(error)) {
            println!("service: {error}");
            trouble.0 = Some(error.clone());
        }
    }

    fn put(&self, place: u64, sealed: Vec<u8>) {
        // How a block gets to a real disk, torn writes and all: the example `block_store`.
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).insert(place, sealed);
    }
}

#[allow(dead_code)] // in the test that takes this file in
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let label = Selector::Label(var("KEYLEASH_TOKEN_LABEL")?);
    let pin = PinSource::File(var("KEYLEASH_PIN_FILE")?.into());
    let token = Pkcs11Token::open(Pkcs11Settings::new(var("KEYLEASH_MODULE")?, label, pin)).await?;
    let engine = Engine::builder(Arc::new(token), Arc::new(MemoryStore::default())).build()?;
    let kek = KekName::new("service-example")?;
    // Whether this is the first start or the hundredth, and whoever else starts at this moment.
    engine.get_or_create_kek(&kek, KekOptions::new(Profile::AesGcm).destroyable()).await?;
    let account = engine.get_or_create_account(&AccountId::new("tenant-1")?, &kek).await?;

    let service = Service::new(engine, account);
    let thread = std::thread::spawn({
        let service = service.clone();
        move || (0..100).try_for_each(|place| service.write(&Block { place, data: vec![1; 4096] }))
    });
    for place in 100..200 {
        service.write_async(&Block { place, data: vec![2; 4096] }).await?;
    }
    thread.join().map_err(|_| "the thread panicked")??;
    for place in 0..200 {
        assert_eq!(service.read(place).await?.len(), 4096);
    }
    println!("200 blocks written and read back");
    let closed = service.stop().await?;
    if !closed.is_clean() {
        eprintln!("service: the engine left something behind: {closed:?}");
    }
    if closed.calls_inside > 0 {
        exit_at_once(1); // the module's exit handlers would crash under a call
    }
    Ok(())
}
