//! What is PostgreSQL's own where several write at once, and where much is read and written.

use crate::{account, config, put, races::trial_of_guards, shared_url};
use keyleash::{
    Error,
    store::{KeyStore, StoreVersion, postgres::PostgresStore},
};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_with_another_isolation_by_default_changes_nothing() {
    for isolation in ["serializable", "repeatable read"] {
        let mut config = config(&shared_url());
        let name = config.schema.clone();
        let url = config.to_string();
        let server = url.split('/').nth(2).unwrap();
        let (host, port) = server.split_once(':').unwrap();
        let sql = format!(
            "CREATE ROLE {name} SUPERUSER LOGIN; ALTER ROLE {name} SET default_transaction_isolation = '{isolation}'"
        );
        let mut psql = std::process::Command::new("psql");
        psql.args(["-X", "-q", "-h", host, "-p", port, "-U", "postgres", "-c", &sql]);
        assert!(psql.status().unwrap().success());
        config.reach.user.as_mut().unwrap().name = name;
        let mut stores = Vec::new();
        for _ in 0..4 {
            stores.push(Arc::new(PostgresStore::open_or_create(&config).await.unwrap()) as Arc<dyn KeyStore>);
        }
        trial_of_guards(stores, 10).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_large_values_are_read_in_several_answers_and_many_changes_are_written_in_few() {
    let store = PostgresStore::open_or_create(&config(&shared_url())).await.unwrap();
    let keys: Vec<_> = (0..100).map(|n| account(format!("a{n:03}"))).collect();
    for (n, key) in keys.iter().enumerate() {
        store.create(key, put(vec![n as u8; 256 * 1024], &[])).await.unwrap();
    }
    // Some that are not there, and one twice.
    let asked = [&[account("none")], &keys[..], &[account("z"), keys[0].clone()]].concat();
    let found = store.get_many(&asked).await;
    assert_eq!(found.len(), asked.len());
    let mut changes = Vec::new();
    for (n, (key, found)) in asked.iter().zip(found).enumerate() {
        let found = found.unwrap();
        assert_eq!(found.is_some(), keys.contains(key));
        if let Some(found) = found.filter(|_| n <= keys.len()) {
            assert_eq!(found.value, vec![(n - 1) as u8; 256 * 1024]);
            changes.push((key.clone(), found.version, put(vec![0; if n % 2 == 0 { 10 } else { 256 * 1024 }], &[])));
        }
    }
    changes[7].1 = StoreVersion(b"another".to_vec());
    changes[8].2 = put(vec![0; 256 * 1024 + 1], &[]);
    changes.push((account("none"), changes[0].1.clone(), put([1], &[])));
    let outcomes = store.replace_many(changes).await;
    for (n, outcome) in outcomes.into_iter().enumerate() {
        match n {
            7 => assert!(matches!(&outcome, Err(Error::Conflict(what)) if what.contains("a007")), "{outcome:?}"),
            8 => assert!(matches!(&outcome, Err(Error::Invalid(_))), "{outcome:?}"),
            100 => assert!(matches!(&outcome, Err(Error::NotFound(_))), "{outcome:?}"),
            _ => drop(outcome.unwrap()),
        }
    }
}
