//! Several who rotate and re-wrap one store at the same time, while live handles seal and open without pause.

use crate::TOGETHER_ROUNDS;
use keyleash::{
    Account, Engine, Error,
    block::BlockHeader,
    config::Settings,
    name::{AccountId, KekName, KekVersion},
    rotate::RewrapOptions,
    store::KeyStore,
    token::{
        Profile,
        pkcs11::{PinSource, Pkcs11Settings, Pkcs11Token, Selector},
    },
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

const SEALERS: usize = 2;
/// Of the blocks that are sealed, one in so many is kept to be opened at the end.
const KEPT_EVERY: u64 = 500;
const BLOCK_BYTES: usize = 1024;
/// Of the token, and of the store.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `softhsm/with-token cargo test`"))
}

pub(crate) async fn token() -> Arc<Pkcs11Token> {
    let pin = PinSource::File(variable("KEYLEASH_PIN_FILE").into());
    let label = Selector::Label(variable("KEYLEASH_TOKEN_LABEL"));
    let mut settings = Pkcs11Settings::new(variable("KEYLEASH_MODULE"), label, pin);
    settings.workers = 2;
    settings.call_timeout = CALL_TIMEOUT;
    Arc::new(Pkcs11Token::open(settings).await.unwrap())
}

/// One that hears soon of what others did; and a machine that is busy is no outage.
pub(crate) fn settings() -> Settings {
    Settings::default()
        .poll_interval(Duration::from_secs(5))
        .store_timeout(CALL_TIMEOUT)
        .aek_ttl(Duration::from_secs(6))
        .resume_rate(1_000_000)
}

pub(crate) fn engine(token: &Arc<Pkcs11Token>, store: Arc<dyn KeyStore>) -> Engine {
    Engine::builder(token.clone(), store).settings(settings()).build().unwrap()
}

pub(crate) fn id(number: usize) -> AccountId {
    AccountId::new(format!("a{number:02}")).unwrap()
}

pub(crate) struct Kept {
    account: usize,
    address: u64,
    header: BlockHeader,
    ciphertext: Vec<u8>,
}

fn plaintext(account: usize, address: u64) -> Vec<u8> {
    format!("block {address} of {account} ").into_bytes().into_iter().cycle().take(BLOCK_BYTES).collect()
}

/// Threads that seal and open through live handles and compare every byte, until they are told to stop.
pub(crate) struct Sealers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(u64, Vec<Kept>)>>,
}

impl Sealers {
    pub(crate) async fn start(engine: &Engine, accounts: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for sealer in 0..SEALERS {
            let mut handles = Vec::new();
            for number in (0..accounts).filter(|number| number % SEALERS == sealer) {
                handles.push((number, engine.account(&id(number)).await.unwrap()));
            }
            let (stop, runtime) = (stop.clone(), tokio::runtime::Handle::current());
            threads.push(std::thread::spawn(move || {
                let (mut sealed, mut kept) = (0, Vec::new());
                while !stop.load(Ordering::SeqCst) {
                    for (number, account) in &handles {
                        let address = sealed;
                        let (header, ciphertext) = there_and_back(&runtime, account, *number, address);
                        if sealed % KEPT_EVERY < handles.len() as u64 {
                            kept.push(Kept { account: *number, address, header, ciphertext });
                        }
                        sealed += 1;
                    }
                }
                (sealed, kept)
            }));
        }
        Self { stop, threads }
    }

    /// The blocks that were kept.
    pub(crate) fn stop(self) -> Vec<Kept> {
        self.stop.store(true, Ordering::SeqCst);
        let told: Vec<_> = self.threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        println!("{} blocks sealed, opened and verified", told.iter().map(|(sealed, _)| sealed).sum::<u64>());
        told.into_iter().flat_map(|(_, kept)| kept).collect()
    }
}

/// A block sealed, and opened again by the same handle: refused never, cold at most, as an idle account may be.
fn there_and_back(
    runtime: &tokio::runtime::Handle,
    account: &Account,
    number: usize,
    address: u64,
) -> (BlockHeader, Vec<u8>) {
    let plain = plaintext(number, address);
    let mut buf = plain.clone();
    let header = match account.seal_in_place(address, &mut buf) {
        Err(Error::Cold { .. }) => runtime.block_on(account.seal(address, &mut buf)),
        sealed => sealed,
    };
    let header = header.unwrap_or_else(|error| panic!("account {number}: {error}"));
    let mut back = buf.clone();
    let opened = match account.open_in_place(address, &header, &mut back) {
        Err(Error::Cold { .. }) => runtime.block_on(account.open(address, &header, &mut back)),
        opened => opened,
    };
    opened.unwrap_or_else(|error| panic!("account {number}: {error}"));
    assert!(back == plain, "account {number}, block {address}");
    (header, buf)
}

/// Every block that was kept opens in an engine that was just started.
pub(crate) async fn assert_all_open(engine: &Engine, kept: &[Kept]) {
    let versions: BTreeSet<_> = kept.iter().map(|block| block.header.aek_version()).collect();
    assert!(versions.len() > 1, "the live handles never heard of a new AEK version: {versions:?}");
    for Kept { account, address, header, ciphertext } in kept {
        let mut buf = ciphertext.clone();
        engine.account(&id(*account)).await.unwrap().open(*address, header, &mut buf).await.unwrap();
        assert!(buf == plaintext(*account, *address));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_engines_over_one_store_rotate_and_rewrap_under_a_load_and_disturb_nobody() {
    const ACCOUNTS: usize = 24;
    const ROUNDS: u32 = TOGETHER_ROUNDS;
    let directory = tempfile::tempdir().unwrap();
    let token = token().await;
    let store = crate::ground::make(directory.path()).await;
    let (one, two) = (engine(&token, store.clone()), engine(&token, store.clone()));
    let kek = KekName::new(format!("together-{}", std::process::id())).unwrap();
    one.create_kek(&kek, keyleash::KekOptions::new(Profile::AesGcm).destroyable()).await.unwrap();
    for number in 0..ACCOUNTS {
        one.create_account(&id(number), &kek).await.unwrap();
    }
    let sealers = Sealers::start(&one, ACCOUNTS).await;
    let options = RewrapOptions::new().rate(1_000_000);
    let rotator = |engine: Engine, first: usize| {
        let kek = kek.clone();
        tokio::spawn(async move {
            let mut rotated = 0;
            for round in 0..ROUNDS {
                match engine.rotate_kek(&kek).await {
                    Ok(_) | Err(Error::Conflict(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                let report = engine.rewrap_kek(&kek, options, |_| {}).await.unwrap();
                assert_eq!((report.failed, report.stopped), (0, None));
                for number in (first..ACCOUNTS).step_by(2) {
                    engine.rotate_account(&id(number)).await.unwrap();
                }
                let number = ACCOUNTS + first + 2 * round as usize;
                engine.create_account(&id(number), &kek).await.unwrap();
                rotated += 1;
            }
            rotated
        })
    };
    let (first, second) = tokio::join!(rotator(one.clone(), 0), rotator(two.clone(), 1));
    let rotated: u32 = first.unwrap();
    assert_eq!(second.unwrap(), rotated);
    let report = two.rewrap_kek(&kek, options, |_| {}).await.unwrap();
    assert_eq!((report.failed, report.stopped), (0, None));
    // The old versions go; nobody may need them.
    let versions = one.kek(&kek).await.unwrap().versions;
    let (current, old) = versions.split_last().unwrap();
    assert!(current.current);
    for version in old {
        one.retire_kek(&KekVersion::new(kek.clone(), version.record.version)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let kept = sealers.stop();
    let all = ACCOUNTS as u64 + u64::from(2 * ROUNDS);
    assert_eq!(one.count_wrapped_by(&report.to).await.unwrap(), all);
    assert_eq!(one.accounts(None, 1000).await.unwrap().ids.len() as u64, all);
    for number in 0..ACCOUNTS {
        let record = one.account_record(&id(number)).await.unwrap();
        let found: Vec<_> = record.versions.iter().map(|aek| aek.aek_version).collect();
        assert_eq!(found, (1..=ROUNDS + 1).collect::<Vec<_>>(), "each rotation that was acknowledged, once");
    }
    assert_all_open(&engine(&token, store), &kept).await;
}

#[cfg(feature = "cli")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_rotate_and_rewrap_one_store_while_a_third_seals_without_pause() {
    use crate::shop::Shop;
    const ACCOUNTS: usize = 8;
    const ROUNDS: usize = TOGETHER_ROUNDS as usize;
    let shop = Shop::new("processes");
    for number in 0..ACCOUNTS {
        shop.run(&["account", "create", id(number).as_str(), "--kek", &shop.kek]);
    }
    let token = token().await;
    let store = crate::ground::share(shop.directory.path()).await;
    let third = engine(&token, store.clone());
    let sealers = Sealers::start(&third, ACCOUNTS).await;
    let (shop, made) = tokio::task::spawn_blocking(move || {
        let rotator = |first: usize| {
            let mut made = Vec::new();
            for round in 0..ROUNDS {
                let output = shop.output(&["kek", "rotate", &shop.kek, "--json"]);
                match output.status.code() {
                    Some(0) => {
                        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                        made.push((json["kek_version"].as_u64().unwrap(), json["kek_id"].as_str().unwrap().to_owned()));
                    }
                    Some(7) => {} // the other was faster
                    _ => panic!("{}", String::from_utf8_lossy(&output.stderr)),
                }
                shop.run(&["kek", "rewrap", &shop.kek, "--rate", "1000000"]);
                let number = (first + 2 * round) % ACCOUNTS;
                shop.run(&["account", "rotate", id(number).as_str()]);
            }
            made
        };
        let made = std::thread::scope(|scope| {
            let (one, two) = (scope.spawn(|| rotator(0)), scope.spawn(|| rotator(1)));
            [one.join().unwrap(), two.join().unwrap()].concat()
        });
        shop.run(&["kek", "rewrap", &shop.kek]);
        (shop, made)
    })
    .await
    .unwrap();
    // Within one TTL it hears of what the others did, and seals some more.
    let live = third.account(&id(0)).await.unwrap();
    let heard = async {
        while live.aek_version() == 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(2 * settings().aek_ttl, heard).await.expect("a new AEK version is heard of");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let kept = sealers.stop();
    let kek = shop.json(&["kek", "show", &shop.kek]);
    for (version, kek_id) in &made {
        let found = kek["versions"].as_array().unwrap().iter().find(|found| found["kek_version"] == *version);
        assert_eq!(
            found.unwrap()["kek_id"],
            kek_id.as_str(),
            "a version that was acknowledged is the one that is there"
        );
    }
    let current = kek["current"].as_u64().unwrap();
    assert_eq!(made.iter().map(|(version, _)| *version).collect::<BTreeSet<_>>(), (2..=current).collect());
    let all: Vec<_> = (0..ACCOUNTS).map(|number| id(number).to_string()).collect();
    assert_eq!((shop.accounts(None), shop.accounts(Some(current))), (all.clone(), all));
    let fresh = engine(&token, store);
    for number in 0..ACCOUNTS {
        let rotated = (0..2 * ROUNDS).filter(|step| step % ACCOUNTS == number).count();
        let record = fresh.account_record(&id(number)).await.unwrap();
        let found: Vec<_> = record.versions.iter().map(|aek| aek.aek_version as usize).collect();
        assert_eq!(found, (1..=rotated + 1).collect::<Vec<_>>());
    }
    assert_all_open(&fresh, &kept).await;
}
