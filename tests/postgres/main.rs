//! The key store in PostgreSQL, on real ones: what every store must do, and what becomes of it while servers are killed, stop, are slow, or
//! are set up wrong. They come by `tests/servers/postgres install`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // helpers of tests

#[path = "../servers/certificates.rs"]
mod certificates;
mod changes;
mod cli;
#[path = "../store/conformance.rs"]
mod conformance;
#[path = "../store/day.rs"]
mod day;
#[path = "../store/fleet.rs"]
mod fleet;
#[path = "../rotation/on_server.rs"]
mod ground;
#[path = "../store/heard.rs"]
mod heard;
#[path = "../rotation/kill.rs"]
#[allow(dead_code)] // the trials of secrets use some of it
mod kill;
#[path = "../store/made.rs"]
mod made;
#[path = "../store/model.rs"]
mod model;
mod own;
#[path = "../servers/proxy.rs"]
mod proxy;
#[path = "../store/races.rs"]
mod races;
#[path = "../servers/postgres.rs"]
mod server;
mod set_up;
#[path = "../store/shell.rs"]
mod shell;
#[path = "../rotation/shop.rs"]
#[allow(dead_code)]
mod shop;
#[path = "../rotation/together.rs"]
#[allow(dead_code)]
mod together;
#[path = "../store/trial.rs"]
mod trial;
mod trouble;

use self::{
    made::{account, kek, put},
    server::Postgres,
};
use keyleash::{
    config::store::{PostgresConfig, StoreTls, StoreUser},
    secret::fill_random,
    store::{KeyStore, postgres::PostgresStore},
};
use std::{
    sync::{Arc, OnceLock, mpsc},
    thread,
    time::Duration,
};

/// Of commands, in the trials of tests/rotation.
const KILLS: u32 = 3;
const GUARD_ROUNDS: u64 = 30;
const ROUNDS: u64 = 20;
const CROWD: u8 = 12;
const MODEL_CASES: u32 = 48;
const PASSING: u32 = 60;
const TOGETHER_ROUNDS: u32 = 5;

/// As the server's owner, which needs no password here.
fn config(url: &str) -> PostgresConfig {
    let mut config = PostgresConfig::new(url).unwrap();
    config.reach.tls = StoreTls::Plaintext;
    config.reach.user = Some(StoreUser { name: "postgres".into(), password: None });
    // Of a machine that is busy.
    config.reach.timeout = Duration::from_secs(20);
    config
}

/// A schema of its own in the one server of all tests that only use it.
fn shared_url() -> String {
    let mut random = [0; 8];
    fill_random(&mut random).unwrap();
    format!("postgres://{}/postgres/t{}", shared_server(), hex::encode(random))
}

fn shared_server() -> String {
    static SERVER: OnceLock<u16> = OnceLock::new();
    let port = SERVER.get_or_init(|| {
        let (told, port) = mpsc::channel();
        // It lives as long as the thread does, which is as long as the process.
        thread::spawn(move || {
            // Each store has connections of its own, and all tests run at once.
            let postgres = Postgres::begin_with(&["max_connections=400"], &[]);
            told.send(postgres.port).unwrap();
            loop {
                thread::park();
            }
        });
        port.recv().expect("PostgreSQL did not begin: run tests/servers/postgres install")
    });
    format!("127.0.0.1:{port}")
}

/// What a configuration says of it beside the URL.
fn settings() -> String {
    "tls = \"plaintext\"\nuser = \"postgres\"\n".into()
}

async fn make_store(url: &str) -> Arc<dyn KeyStore> {
    Arc::new(PostgresStore::open_or_create(&config(url)).await.unwrap())
}

async fn open_store(url: &str) -> Arc<dyn KeyStore> {
    Arc::new(PostgresStore::open(&config(url)).await.unwrap())
}

async fn stores() -> (Vec<Arc<dyn KeyStore>>, ()) {
    (vec![make_store(&shared_url()).await], ())
}

/// Where the model's store is, which is opened again and again.
struct Place(PostgresConfig);

impl Place {
    fn new() -> Self {
        Self(config(&shared_url()))
    }

    async fn open(&self) -> PostgresStore {
        PostgresStore::open_or_create(&self.0).await.unwrap()
    }
}
