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
            on_server(need, EtcdStore::open(config), EtcdStore::open_or_create(config)).await
        }
        #[cfg(feature = "postgres")]
        StoreConfig::Postgres(config) => {
            use keyleash::store::postgres::PostgresStore;
            on_server(need, PostgresStore::open(config), PostgresStore::open_or_create(config)).await
        }
        #[cfg(feature = "bucket")]
        StoreConfig::Bucket(config) => {
            use keyleash::store::bucket::BucketStore;
            on_server(need, BucketStore::open(config), BucketStore::open_or_create(config)).await
        }
        other => {
            let kind = match other {
                StoreConfig::Etcd(_) => "etcd",
                StoreConfig::Postgres(_) => "postgres",
                _ => "bucket",
            };
            Err(Error::Misconfigured(format!(
                "store {other}: this keyleash was built without {kind}: build it with `--features {kind}`"
            )))
        }
    }
}

/// As the caller needs it, by what opens it, and by what also makes it where there is none.
#[cfg(any(feature = "bucket", feature = "etcd", feature = "postgres"))]
async fn on_server<S: KeyStore>(
    need: Store,
    open: impl Future<Output = Result<S, Error>>,
    make: impl Future<Output = Result<S, Error>>,
) -> Result<(Arc<dyn KeyStore>, bool), Error> {
    match open.await {
        Ok(store) => Ok((Arc::new(store), false)),
        Err(Error::NotFound(_)) if need == Store::Create => Ok((Arc::new(make.await?), true)),
        Err(error) => Err(error),
    }
}
