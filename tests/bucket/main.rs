//! The key store in a bucket, on an S3 server of its own: what every store must do, and what becomes of it while the server fails, stands
//! still, or is set up wrong. It comes by `tests/servers/s3 install`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // helpers of tests

#[path = "../servers/certificates.rs"]
mod certificates;
mod cli;
#[path = "../store/conformance.rs"]
mod conformance;
#[path = "../store/day.rs"]
mod day;
#[path = "../rotation/on_server.rs"]
mod ground;
#[path = "../rotation/kill.rs"]
#[allow(dead_code)] // the trials of secrets use some of it
mod kill;
#[path = "../store/made.rs"]
mod made;
#[path = "../store/model.rs"]
mod model;
#[path = "../servers/proxy.rs"]
#[allow(dead_code)] // no answer is late here
mod proxy;
#[path = "../store/races.rs"]
mod races;
#[path = "../servers/s3.rs"]
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
    server::S3,
};
use keyleash::{
    config::store::{BucketConfig, PasswordSource, StoreTls, StoreUser},
    secret::fill_random,
    store::{KeyStore, bucket::BucketStore},
};
use std::{
    sync::{Arc, OnceLock, mpsc},
    thread,
    time::Duration,
};

/// Of commands, in the trials of tests/rotation.
// How much of each trial: the server takes one request after the other, in Python.
const KILLS: u32 = 3;
const GUARD_ROUNDS: u64 = 5;
const ROUNDS: u64 = 6;
const CROWD: u8 = 4;
const MODEL_CASES: u32 = 4;
const PASSING: u32 = 12;
const TOGETHER_ROUNDS: u32 = 2;
/// Of a secret access key, which the server takes from everybody who is not asked.
const SECRET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bucket/secret");

/// A store in the one server of all tests that only use it.
fn config(url: &str) -> BucketConfig {
    config_at(url, &shared_endpoint())
}

fn config_at(url: &str, endpoint: &str) -> BucketConfig {
    let mut config = BucketConfig::new(url).unwrap();
    config.reach.tls = StoreTls::Plaintext;
    config.reach.endpoint = Some(endpoint.into());
    config.reach.user = Some(StoreUser { name: "anybody".into(), password: Some(PasswordSource::File(SECRET.into())) });
    // Of a machine that is busy.
    config.reach.timeout = Duration::from_secs(60);
    config
}

/// What a configuration says of it beside the URL.
fn settings() -> String {
    let endpoint = shared_endpoint();
    format!(
        "endpoint = \"{endpoint}\"\ntls = \"plaintext\"\nuser = \"anybody\"\npassword_file = \"{SECRET}\"\ntimeout = \"60s\"\n"
    )
}

/// A namespace of its own for each that asks.
fn shared_url() -> String {
    let mut random = [0; 8];
    fill_random(&mut random).unwrap();
    format!("s3://vault/test/t{}", hex::encode(random))
}

fn shared_endpoint() -> String {
    static ENDPOINT: OnceLock<String> = OnceLock::new();
    let endpoint = ENDPOINT.get_or_init(|| {
        let (told, endpoint) = mpsc::channel();
        // It lives as long as the thread does, which is as long as the process.
        thread::spawn(move || {
            let server = S3::begin();
            told.send(server.endpoint()).unwrap();
            loop {
                thread::park();
            }
        });
        endpoint.recv().expect("the S3 server did not begin: run tests/servers/s3 install")
    });
    endpoint.clone()
}

async fn make_store(url: &str) -> Arc<dyn KeyStore> {
    Arc::new(BucketStore::open_or_create(&config(url)).await.unwrap())
}

async fn open_store(url: &str) -> Arc<dyn KeyStore> {
    Arc::new(BucketStore::open(&config(url)).await.unwrap())
}

async fn stores() -> (Vec<Arc<dyn KeyStore>>, ()) {
    (vec![make_store(&shared_url()).await], ())
}

/// Where the model's store is, which is opened again and again.
struct Place(BucketConfig);

impl Place {
    fn new() -> Self {
        Self(config(&shared_url()))
    }

    async fn open(&self) -> BucketStore {
        BucketStore::open_or_create(&self.0).await.unwrap()
    }
}
