//! The one place where what a configuration says of a store becomes a store.

use crate::{setup::Store, shared_store::SharedStore};
use keyleash::{Error, config::StoreConfig, store::KeyStore};
use std::sync::Arc;

/// The store, and whether it was made just now.
///
/// # Errors
/// [`Error::Misconfigured`], of a kind that this build has not; and what opening it fails with.
pub(crate) async fn open_store(place: &StoreConfig, need: Store) -> Result<(Arc<dyn KeyStore>, bool), Error> {
    match place {
        StoreConfig::Redb(path) => {
            let opened = match need {
                Store::Create => SharedStore::open(path.clone(), true).await,
                Store::Existing => SharedStore::open(path.clone(), false).await,
                Store::Read => SharedStore::open_to_read(path.clone()).await,
            };
            let store = opened?;
            let is_new = store.is_new();
            Ok((Arc::new(store), is_new))
        }
        #[cfg(feature = "etcd")]
        StoreConfig::Etcd(config) => {
            use keyleash::store::etcd::EtcdStore;
            match EtcdStore::open(config).await {
                Ok(store) => Ok((Arc::new(store), false)),
                Err(Error::NotFound(_)) if need == Store::Create => {
                    Ok((Arc::new(EtcdStore::open_or_create(config).await?), true))
                }
                Err(error) => Err(error),
            }
        }
        #[cfg(feature = "postgres")]
        StoreConfig::Postgres(config) => {
            use keyleash::store::postgres::PostgresStore;
            match PostgresStore::open(config).await {
                Ok(store) => Ok((Arc::new(store), false)),
                Err(Error::NotFound(_)) if need == Store::Create => {
                    Ok((Arc::new(PostgresStore::open_or_create(config).await?), true))
                }
                Err(error) => Err(error),
            }
        }
        other => {
            let kind = other.to_string();
            let kind = kind.split(':').next().unwrap_or_default();
            Err(Error::Misconfigured(format!(
                "store {other}: this keyleash was built without {kind}: build it with `--features {kind}`"
            )))
        }
    }
}
