//! What the secrets of an account ask of its AEK versions and of its end. The secrets themselves are above the engine; that no secret
//! is lost by retirement, and none outlives its account, holds for an engine as well that is built without them.

use crate::{
    error::{Error, Result},
    keyring::Keyring,
    name::AccountId,
    store::{
        self, Filter, Key, StoreVersion, Versioned,
        record::{AccountRecord, SecretRecord, SecretValueRecord},
    },
};

impl Keyring {
    /// Refuses to retire an AEK version that a value of a secret is sealed under. A value that is stored later is sealed under the
    /// version that was current when `refuse_to_retire` read the account, or a newer one: its head rests on the account's record.
    pub(super) async fn refuse_for_secrets(&self, account: &AccountRecord, aek_versions: &[u32]) -> Result<()> {
        let id = &account.account;
        let refuse = |what: String, aek_version: u32| {
            Err(Error::Invalid(format!(
                "{what} is sealed under AEK version {aek_version} of account {id}: `keyleash secret reseal --account {id}` moves what is \
                 under older versions to the current one"
            )))
        };
        for key in store::all_keys(&*self.store, &Filter::SecretsOf(id.clone())).await? {
            let Some(Versioned { value, .. }) = self.store.get(&key).await? else { continue };
            let record = SecretRecord::decode(&key, &value)?;
            if record.account_created_unix != account.created_unix {
                continue; // of an account of this id that was purged
            }
            for version in &record.versions {
                let key = Key::SecretValue(record.id.clone(), version.version);
                let Some(Versioned { value, .. }) = self.store.get(&key).await? else { continue };
                let aek_version = SecretValueRecord::decode(&key, &value)?.aek_version()?;
                if aek_versions.contains(&aek_version) {
                    return refuse(key.to_string(), aek_version);
                }
            }
            if let Some(rotation) = &record.rotation {
                let aek_version = rotation.aek_version()?;
                if aek_versions.contains(&aek_version) {
                    return refuse(format!("the rotation of {key}"), aek_version);
                }
            }
        }
        Ok(())
    }

    /// Every record of an account's secrets, values too that no head names.
    pub(super) async fn secrets_records(&self, id: &AccountId) -> Result<Vec<(Key, StoreVersion)>> {
        let mut records = Vec::new();
        for filter in [Filter::SecretsOf(id.clone()), Filter::SecretValuesOf(id.clone())] {
            for key in store::all_keys(&*self.store, &filter).await? {
                if let Some(Versioned { version, .. }) = self.store.get(&key).await? {
                    records.push((key, version));
                }
            }
        }
        Ok(records)
    }

    /// Removes what was of an account that is gone. What somebody else made since is another account's.
    pub(super) async fn remove_secrets(&self, id: &AccountId, records: Vec<(Key, StoreVersion)>) -> Result<()> {
        for (key, seen) in records {
            match self.store.delete(&key, &seen).await {
                Ok(()) | Err(Error::NotFound(_) | Error::Conflict(_)) => {}
                Err(error) => {
                    return Err(Error::Store(format!(
                        "account {id} is purged, but {key} is still there, sealed under a key that is gone; purge the account again: {error}"
                    )));
                }
            }
        }
        Ok(())
    }
}
