//! The service that the drills `restart` and `nodes` kill: a process with an engine and a load, which tells its parent what comes of every
//! operation.

use super::{
    args::Serve,
    ground::{STORE, kek_name, token_settings},
    load::Customer,
    terms::in_force,
};
use crate::{
    exit::Failure,
    open_store::open_store,
    setup::{Setup, Store},
    streams::Standard,
};
use keyleash::{
    Engine, Error,
    clock::Clock,
    config::StoreConfig,
    drill::{Drill, Scenario, Tap},
    name::AccountId,
    store::{KeyStore, redb::RedbStore},
    token::pkcs11::Pkcs11Token,
};
use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long the lock of a process that was just killed may stay.
const STORE_PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// The file of an account's kept block, and its id.
pub(crate) fn kept_path(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("kept-{number}"))
}

/// Writes down what a service must find again.
pub(crate) fn keep(directory: &Path, customers: &[Customer]) -> Result<(), Failure> {
    for (number, customer) in customers.iter().enumerate() {
        let path = kept_path(directory, number);
        let bytes = [customer.id.as_str().as_bytes(), b"\n", &customer.kept].concat();
        fs::write(&path, bytes).map_err(|error| Failure::io(path.display(), error))?;
    }
    Ok(())
}

fn customers(serve: &Serve) -> Result<Vec<Customer>, Failure> {
    let read = |number: u32| {
        let path = kept_path(&serve.directory, number as usize);
        let bytes = fs::read(&path).map_err(|error| Failure::io(path.display(), error))?;
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0);
        let (id, kept) = bytes.split_at(end);
        let kept = kept.get(1..).unwrap_or_default().to_vec();
        Ok(Customer { id: AccountId::from_bytes(id)?, account: None, kept, secret: None })
    };
    (0..serve.accounts).map(read).collect()
}

/// The process: serves until standard input ends, or it is killed.
pub(crate) async fn serve(serve: Serve, setup: &Setup) -> Result<(), Failure> {
    let clock = Clock::default();
    let settings = in_force(Scenario::Restart, setup.settings(), serve.fast, serve.accounts);
    let token = Pkcs11Token::open(token_settings(setup, &settings)?).await.map_err(Error::from)?;
    let place = setup.store_at(serve.store.as_deref().unwrap_or(&serve.directory.join(STORE)))?;
    let give_up = clock.now().plus(STORE_PATIENCE);
    let store = loop {
        match open_alone(&place).await {
            Ok(store) => break store,
            Err(Error::Store(_)) if clock.now() < give_up => clock.sleep_until(clock.now().plus(PAUSE)).await,
            Err(error) => return Err(error.into()),
        }
    };
    let tap = Tap::new(Arc::new(token));
    let engine = Engine::builder(tap.clone(), store).settings(settings).build()?;
    let mut drill = Drill::new(&engine, &tap, &kek_name(&serve.directory)?).threads(serve.threads as usize);
    for customer in customers(&serve)? {
        drill = drill.account(customer.id.clone(), customer.serve(&engine));
    }
    let stdin_ends = tokio::task::spawn_blocking(|| {
        // Its end is what is waited for.
        Standard::Input.file().map(|mut input| drop(input.read(&mut [0])))
    });
    drill.serve(tell, async { drop(stdin_ends.await) }).await.map_err(Failure::from)
}

/// As a service has it: a file for as long as it lives.
async fn open_alone(place: &StoreConfig) -> Result<Arc<dyn KeyStore>, Error> {
    match place {
        StoreConfig::Redb(path) => Ok(Arc::new(RedbStore::open(path).await?)),
        place => Ok(open_store(place, Store::Existing).await?.0),
    }
}

fn tell(lines: &str) {
    // A parent that is gone closed standard input too, which ends this process.
    #[allow(clippy::disallowed_methods)] // from many threads, a line at a time
    let _ = io::stdout().lock().write_all(lines.as_bytes());
}
