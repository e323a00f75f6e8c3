//! Servers that are killed or stand still, answers that get lost, connections that run out, and a standby that takes over.

use crate::{
    account, config,
    proxy::{proxy, slow_proxy},
    put,
    server::Postgres,
    shared_server,
    trial::{self, at_last, random_ms},
};
use keyleash::{
    Error,
    config::store::PostgresConfig,
    store::{Filter, KeyStore, postgres::PostgresStore},
};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// With a short time for each call, of which a busy machine may need several.
pub(crate) async fn open_at_last(config: &PostgresConfig) -> PostgresStore {
    at_last(async || PostgresStore::open_or_create(config).await).await
}

fn unsettled(outcome: &Result<impl std::fmt::Debug, Error>) -> &str {
    match outcome {
        Err(Error::Store(what)) => what,
        other => panic!("{other:?}"),
    }
}

async fn trial(postgres: &mut Postgres, harm: impl FnOnce(&mut Postgres)) {
    let open =
        async |url: &str| Arc::new(PostgresStore::open_or_create(&config(url)).await.unwrap()) as Arc<dyn KeyStore>;
    let url = postgres.url("trial");
    let harm = || {
        harm(postgres);
        postgres.await_health();
    };
    trial::trial(open, &[url], harm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_acknowledged_write_is_lost_however_often_the_server_is_killed() {
    trial(&mut Postgres::begin(), |postgres| {
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(100) + random_ms(300));
            postgres.kill();
            thread::sleep(random_ms(200));
            postgres.restart();
        }
        thread::sleep(Duration::from_millis(500));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_acknowledged_write_is_lost_while_the_server_stands_still_or_ends_its_connections() {
    trial(&mut Postgres::begin(), |postgres| {
        for n in 0..4 {
            thread::sleep(Duration::from_millis(100) + random_ms(300));
            if n % 2 == 0 {
                postgres.stop();
                thread::sleep(random_ms(1500));
                postgres.go_on();
            } else {
                postgres
                    .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'keyleash'");
                postgres.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'keyleash'");
            }
        }
        thread::sleep(Duration::from_millis(500));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_is_lost_is_not_known_and_is_not_done_again() {
    let (port, is_mute) = proxy(shared_server());
    let direct =
        PostgresStore::open_or_create(&config(&format!("postgres://{}/postgres/lost", shared_server()))).await.unwrap();
    let mut through = config(&format!("postgres://127.0.0.1:{port}/postgres/lost"));
    through.reach.timeout = Duration::from_secs(1);
    let store = open_at_last(&through).await;
    for step in 0..3 {
        let key = account(format!("a{step}"));
        // A connection is there, so that the write is sent.
        at_last(async || store.get(&key).await).await;
        is_mute.store(true, SeqCst);
        let outcome = store.create(&key, put([step], &[])).await;
        assert!(unsettled(&outcome).contains("whether it was written is not known"), "{outcome:?}");
        is_mute.store(false, SeqCst);
        // It is there once, and whoever asks is told so.
        let found = at_last(async || store.get(&key).await).await.expect("it was written");
        assert_eq!(found.value, [step]);
        assert_eq!(direct.get(&key).await.unwrap().unwrap().version, found.version);
        assert!(matches!(store.create(&key, put([9], &[])).await, Err(Error::Exists(_))));
    }
}

/// Passes on what is said, but for the first word of each transaction while `is_spoilt`: the statements behind it are none, then.
fn spoiling_proxy(to: String) -> (u16, Arc<AtomicBool>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let (port, is_spoilt) = (listener.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
    let spoilt = is_spoilt.clone();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(&to).unwrap());
            let (mut back, mut there) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut back, &mut there));
            let (spoilt, mut from, mut to) = (spoilt.clone(), client, server);
            thread::spawn(move || {
                let mut bytes = [0; 65536];
                while let Ok(n @ 1..) = from.read(&mut bytes) {
                    let begin = bytes[..n].windows(6).position(|word| word == b"BEGIN ");
                    if let Some(begin) = begin.filter(|_| spoilt.load(SeqCst)) {
                        bytes[begin] = b'X';
                    }
                    if to.write_all(&bytes[..n]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    (port, is_spoilt)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_was_not_begun_writes_nothing() {
    let (port, is_spoilt) = spoiling_proxy(shared_server());
    let store = open_at_last(&config(&format!("postgres://127.0.0.1:{port}/postgres/spoilt"))).await;
    let made = store.create(&account("a"), put([1], &[])).await.unwrap();
    is_spoilt.store(true, SeqCst);
    unsettled(&store.create(&account("b"), put([2], &[])).await);
    unsettled(&store.replace(&account("a"), &made, put([2], &[])).await);
    unsettled(&store.delete(&account("a"), &made).await);
    is_spoilt.store(false, SeqCst);
    assert_eq!(store.get(&account("b")).await.unwrap(), None);
    assert_eq!(store.get(&account("a")).await.unwrap().unwrap().version, made);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_waits_on_a_server_that_stands_still_is_told_so_in_time_and_goes_on_with_it_later() {
    let postgres = Postgres::begin();
    let mut config = config(&postgres.url("still"));
    config.reach.timeout = Duration::from_secs(1);
    let store = open_at_last(&config).await;
    let _ = store.create(&account("a"), put([1], &[])).await;
    let made = at_last(async || store.get(&account("a")).await).await.unwrap().version;
    postgres.stop();
    for _ in 0..3 {
        let outcome = store.get(&account("a")).await;
        assert!(unsettled(&outcome).contains("no answer within"), "{outcome:?}");
    }
    unsettled(&store.replace(&account("a"), &made, put([2], &[])).await);
    unsettled(&store.list(&Filter::Accounts, None, 10).await);
    postgres.go_on();
    let mut replaced = Err(Error::Store(String::new()));
    while let Err(Error::Store(_) | Error::Conflict(_)) = &replaced {
        let version = at_last(async || store.get(&account("a")).await).await.unwrap().version;
        replaced = store.replace(&account("a"), &version, put([3], &[])).await;
    }
    replaced.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waits_for_somebody_ends_in_time_and_the_server_does_not_go_on_for_it() {
    let postgres = Postgres::begin();
    let mut config = config(&postgres.url("waits"));
    config.reach.timeout = Duration::from_secs(2);
    let store = open_at_last(&config).await;
    let made = at_last(async || match store.create(&account("a"), put([1], &[])).await {
        Err(Error::Exists(_)) => Ok(store.get(&account("a")).await?.unwrap().version),
        made => made,
    })
    .await;
    // Somebody's maintenance holds the table.
    let held = "BEGIN; LOCK waits.record; SELECT pg_sleep(60)";
    let sql = postgres.server();
    let (host, port) = sql.split_once(':').unwrap();
    let mut maintenance = std::process::Command::new("psql");
    let mut maintenance =
        maintenance.args(["-X", "-q", "-h", host, "-p", port, "-U", "postgres", "-c", held]).spawn().unwrap();
    while postgres.sql("SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = 'waits.record'::regclass") == "0" {
        thread::sleep(Duration::from_millis(20));
    }
    // Many more than there are connections.
    let store = Arc::new(store);
    let calls: Vec<_> = (0..40)
        .map(|n| {
            let (store, made) = (store.clone(), made.clone());
            tokio::spawn(async move {
                match n % 2 {
                    0 => store.get(&account("a")).await.map(drop),
                    _ => store.replace(&account("a"), &made, put([2], &[])).await.map(drop),
                }
            })
        })
        .collect();
    for call in calls {
        unsettled(&call.await.unwrap());
    }
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'keyleash' AND state <> 'idle'";
    while postgres.sql(waits) != "0" {
        thread::sleep(Duration::from_millis(50));
    }
    maintenance.kill().unwrap();
    maintenance.wait().unwrap();
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'psql' AND pid <> pg_backend_pid()");
    // Nothing was written that nobody was told of.
    let found = at_last(async || store.get(&account("a")).await).await.unwrap();
    assert!(found.version == made || found.value == [2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_gives_up_leaves_no_connection_that_answers_another() {
    let (port, _, late) = slow_proxy(shared_server());
    let store = open_at_last(&config(&format!("postgres://127.0.0.1:{port}/postgres/early"))).await;
    let keys: Vec<_> = (0..8_u8).map(|n| account(format!("a{n}"))).collect();
    for (n, key) in keys.iter().enumerate() {
        store.create(key, put([n as u8], &[])).await.unwrap();
    }
    for round in 0..12 {
        late.store(30, SeqCst);
        // Dropped on its way there, on its way back, or in between.
        let _ = tokio::time::timeout(Duration::from_millis(3 + 4 * round), store.get_many(&keys)).await;
        let _ = tokio::time::timeout(Duration::from_millis(3 + 4 * round), store.get(&keys[7])).await;
        late.store(0, SeqCst);
        for (n, key) in keys.iter().enumerate() {
            let found = at_last(async || store.get(key).await).await;
            assert_eq!(found.unwrap().value, [n as u8]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_answer_is_passed_over_within_one_call_and_by_those_who_gave_up_before() {
    let postgres = Postgres::begin();
    PostgresStore::open_or_create(&config(&postgres.url("next"))).await.unwrap();
    // It takes connections, and says nothing.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let both = format!("postgres://{},{}/postgres/next", silent.local_addr().unwrap(), postgres.server());
    let mut config = config(&both);
    config.reach.timeout = Duration::from_secs(4);
    let store = PostgresStore::open(&config).await.unwrap();
    store.create(&account("a"), put([1], &[])).await.unwrap();
    // Longer for each server than the callers wait.
    config.reach.timeout = Duration::from_secs(60);
    config.servers.rotate_left(1);
    let (patience, store) = (Duration::from_millis(400), PostgresStore::open(&config).await.unwrap());
    // The one that it is connected to stands still.
    postgres.stop();
    let waits = async || tokio::time::timeout(patience, store.get(&account("a"))).await;
    for _ in 0..4 {
        assert!(waits().await.is_err());
    }
    postgres.go_on();
    let mut tries = 0..40;
    while !matches!(waits().await, Ok(Ok(Some(_)))) {
        tries.next().expect("the one that says nothing is asked again and again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_callers_has_its_own_time() {
    let postgres = Postgres::begin();
    let mut config = config(&postgres.url("many"));
    config.reach.timeout = Duration::from_secs(1);
    let store = Arc::new(open_at_last(&config).await);
    postgres.stop();
    let call = |n: u32| {
        let store = store.clone();
        tokio::spawn(async move { store.get(&account(format!("a{n}"))).await })
    };
    // One after the other, or as many at a time as there are connections, they would take minutes.
    let calls: Vec<_> = (0..800).map(call).collect();
    let all = async {
        for call in calls {
            unsettled(&call.await.unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.expect("each ends in its time");
    postgres.go_on();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_two_requests_has_one_deadline() {
    let (port, _, late) = slow_proxy(shared_server());
    let mut config = config(&format!("postgres://127.0.0.1:{port}/postgres/late"));
    config.reach.timeout = Duration::from_secs(2);
    let store = open_at_last(&config).await;
    for n in 0..40 {
        at_last(async || match store.create(&account(format!("a{n:02}")), put(vec![7; 250_000], &[])).await {
            Err(Error::Exists(_)) => Ok(()),
            made => made.map(drop),
        })
        .await;
    }
    late.store(1200, SeqCst);
    let keys: Vec<_> = (0..40).map(|n| account(format!("a{n:02}"))).collect();
    for outcome in store.get_many(&keys).await {
        unsettled(&outcome);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_few_connections_left_serves_many_callers_one_after_the_other() {
    // Three are for its owner, and one of the two is in use.
    let postgres = Postgres::begin_with(&["max_connections=5", "max_wal_senders=0"], &[]);
    postgres.sql("CREATE ROLE few LOGIN; GRANT CREATE ON DATABASE postgres TO few");
    let mut config = config(&postgres.url("few"));
    config.reach.user.as_mut().unwrap().name = "few".into();
    config.reach.timeout = Duration::from_secs(20);
    let store = Arc::new(PostgresStore::open_or_create(&config).await.unwrap());
    let calls: Vec<_> = (0..60)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let key = account(format!("a{n}"));
                store.create(&key, put([n], &[])).await.unwrap();
                store.get(&key).await.unwrap().unwrap().value
            })
        })
        .collect();
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap(), [n as u8]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_may_give_each_transaction_another_connection() {
    let postgres = Postgres::begin();
    let pooler = postgres.pooler();
    let mut config = config(&format!("postgres://127.0.0.1:{}/postgres/pooled", pooler.port));
    config.reach.timeout = Duration::from_secs(20);
    let store = Arc::new(open_at_last(&config).await);
    let calls: Vec<_> = (0..40_u8)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let key = account(format!("a{}", n % 10));
                for step in 0..5 {
                    match store.get(&key).await.unwrap() {
                        None => drop(store.create(&key, put([step], &[crate::kek("k", 1)])).await),
                        Some(found) => drop(store.replace(&key, &found.version, put([step], &[])).await),
                    }
                }
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(store.list(&Filter::Accounts, None, 100).await.unwrap().keys.len(), 10);
    let left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    assert_eq!(postgres.sql(left), "0");
    assert_eq!(postgres.sql("SELECT count(*) FROM pg_prepared_statements"), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_not_read_and_when_it_takes_over_has_all_that_was_acknowledged_and_the_old_primary_is_left_alone()
{
    let mut first = Postgres::begin();
    let mut second = first.standby(&[]);
    // From here on each commit waits for it.
    first.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'");
    first.sql("SELECT pg_reload_conf()");
    let both = format!("postgres://{},{}/postgres/both", second.server(), first.server());
    let store = open_at_last(&config(&both)).await;
    for n in 0..20_u8 {
        store.create(&account(format!("a{n}")), put([n], &[])).await.unwrap();
    }
    let alone = PostgresStore::open(&config(&second.url("both"))).await;
    assert!(unsettled(&alone).contains("it is a standby"), "{alone:?}");
    let probe = store.probe().await.unwrap().unwrap();
    assert!(!probe.lacks.iter().any(|lack| lack.contains("replicas")), "{:?}", probe.lacks);

    let old_connection = open_at_last(&config(&first.url("both"))).await;
    first.kill();
    second.promote();
    second.sql("ALTER SYSTEM SET synchronous_standby_names = ''");
    second.sql("SELECT pg_reload_conf()");
    for n in 0..20_u8 {
        let found = at_last(async || store.get(&account(format!("a{n}"))).await).await;
        assert_eq!(found.expect("it was acknowledged").value, [n]);
    }
    let version = store.get(&account("a0")).await.unwrap().unwrap().version;
    at_last(async || match store.replace(&account("a0"), &version, put([99], &[])).await {
        Err(Error::Conflict(_)) => Ok(version.clone()),
        done => done,
    })
    .await;

    // It comes back, and takes itself for the primary.
    first.restart();
    second.kill();
    let outcome = store.get(&account("a0")).await;
    assert!(unsettled(&outcome).contains("was the primary before another one"), "{outcome:?}");
    second.restart();
    assert_eq!(at_last(async || store.get(&account("a0")).await).await.unwrap().value, [99]);
    // Who never heard of the new one cannot know.
    assert_eq!(at_last(async || old_connection.get(&account("a0")).await).await.unwrap().value, [0]);
    let probe = store.probe().await.unwrap().unwrap();
    assert!(probe.lacks.iter().any(|lack| lack.contains("asynchronous")), "{:?}", probe.lacks);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_of_two_databases_in_one_url_are_told_apart() {
    let (mut one, two) = (Postgres::begin(), Postgres::begin());
    PostgresStore::open_or_create(&config(&two.url("same"))).await.unwrap();
    let both = format!("postgres://{},{}/postgres/same", one.server(), two.server());
    let store = open_at_last(&config(&both)).await;
    store.create(&account("a"), put([1], &[])).await.unwrap();
    one.kill();
    let outcome = store.get(&account("a")).await;
    let outcome = if unsettled(&outcome).contains("another store") { outcome } else { store.get(&account("a")).await };
    assert!(unsettled(&outcome).contains("another store"), "{outcome:?}");
}
