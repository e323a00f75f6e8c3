//! The key store in etcd, on real ones: what every store must do, and what becomes of it while members are killed, stop, or are set up
//! wrong. They come by `tests/servers/etcd install`.
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
#[path = "../servers/proxy.rs"]
mod proxy;
#[path = "../servers/etcd.rs"]
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
    server::Etcd,
};
use keyleash::{
    config::store::{EtcdConfig, StoreTls},
    secret::fill_random,
    store::{KeyStore, etcd::EtcdStore},
};
use std::{
    sync::{Arc, OnceLock, mpsc},
    thread,
};

/// Of commands, in the trials of tests/rotation.
const KILLS: u32 = 15;
const MODEL_CASES: u32 = 48;
const PASSING: u32 = 60;
const TOGETHER_ROUNDS: u32 = 5;

fn config(url: &str) -> EtcdConfig {
    let mut config = EtcdConfig::new(url).unwrap();
    config.reach.tls = StoreTls::Plaintext;
    config
}

/// One member for all tests that only use it, in a namespace of its own for each that asks.
fn shared_url() -> String {
    static ENDPOINTS: OnceLock<String> = OnceLock::new();
    let endpoints = ENDPOINTS.get_or_init(|| {
        let (told, endpoints) = mpsc::channel();
        // It lives as long as the thread does, which is as long as the process.
        thread::spawn(move || {
            let etcd = Etcd::begin(1);
            told.send(etcd.endpoints()).unwrap();
            loop {
                thread::park();
            }
        });
        endpoints.recv().expect("etcd did not begin: run tests/servers/etcd install")
    });
    let mut random = [0; 8];
    fill_random(&mut random).unwrap();
    format!("etcd://{endpoints}/test/{}", hex::encode(random))
}

/// What a configuration says of it beside the URL.
fn settings() -> String {
    "tls = \"plaintext\"\n".into()
}

async fn make_store(url: &str) -> Arc<dyn KeyStore> {
    Arc::new(EtcdStore::open_or_create(&config(url)).await.unwrap())
}

async fn open_store(url: &str) -> Arc<dyn KeyStore> {
    Arc::new(EtcdStore::open(&config(url)).await.unwrap())
}

async fn stores() -> (Vec<Arc<dyn KeyStore>>, ()) {
    (vec![make_store(&shared_url()).await], ())
}

/// Where the model's store is, which is opened again and again.
struct Place(EtcdConfig);

impl Place {
    fn new() -> Self {
        Self(config(&shared_url()))
    }

    async fn open(&self) -> EtcdStore {
        EtcdStore::open_or_create(&self.0).await.unwrap()
    }
}
