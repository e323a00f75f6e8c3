//! An account made: a new AEK, wrapped, unwrapped again and compared, and its record, which is all that is written to disk for it.

use super::{Keyring, NewProof, gives_not_back, keks::Target};
use crate::{
    clock::utc,
    error::{Error, Result},
    name::{AccountId, KekName},
    secret::Aek,
    slots::account_keys::AccountKeys,
    store::{
        self, CONFLICTS_MAX, Key,
        record::{AccountRecord, Usage, WrappedAek, check_value, context},
    },
};
use std::sync::Arc;

/// The AEK version that an account begins with.
const FIRST_AEK_VERSION: u32 = 1;

impl Keyring {
    /// As [`Engine::create_account`](crate::Engine::create_account), at home.
    pub(crate) async fn create_account(self: &Arc<Self>, id: &AccountId, kek: &KekName) -> Result<Arc<AccountKeys>> {
        let (key, keys) = (Key::Account(id.clone()), self.alive(id));
        let exists = || Error::Exists(format!("account {id}"));
        if let Some((record, _)) = store::load_account(&*self.store, id).await? {
            return Err(match record.deleted {
                None => exists(),
                Some(deletion) => Error::Exists(format!(
                    "account {id}, deleted on {}: undelete it, or purge it to make it anew",
                    utc(deletion.since_unix)
                )),
            });
        }
        // What was in memory under this id is of an account that was purged.
        self.forget_account(id, keys).await;
        self.agree().await?;
        for _ in 0..CONFLICTS_MAX {
            let mut target = self.target(kek).await?;
            let (wrapped, mut proof) = self.new_aek(id, FIRST_AEK_VERSION, &target).await?;
            let record = AccountRecord::new(wrapped.created_unix, id.clone(), wrapped);
            let vouched = proof.vouched;
            let write = async {
                let _place = self.rest_on(&mut target, vouched).await?;
                self.store.create(&key, target.guard(record.put()?)).await
            };
            match self.hold(&mut proof, write).await {
                Err(Error::Exists(_)) => return Err(exists()),
                Err(Error::Conflict(_)) => continue, // the KEK was changed meanwhile, and this version of it perhaps retired
                other => other?,
            };
            // Denied in between: the account exists, and opening it will say so.
            let Some(wrapped) = record.versions.first() else { return self.open(id).await };
            self.stored(id, wrapped, &proof);
            return self.admit_new(&record, wrapped, &proof).await;
        }
        Err(store::again_and_again("KEK", kek))
    }

    /// A new AEK version for `id`, wrapped by `target`, unwrapped again and compared. Not stored yet: the write rests on
    /// [`Keyring::rest_on`], and [`Keyring::stored`] is told of it.
    pub(crate) async fn new_aek(
        self: &Arc<Self>,
        id: &AccountId,
        aek_version: u32,
        target: &Target,
    ) -> Result<(WrappedAek, NewProof)> {
        let Target { kek, record: current, .. } = target;
        if aek_version == FIRST_AEK_VERSION {
            self.check_recoverable(kek, current).await?;
        }
        let aek = Aek::generate()?;
        let context = context(kek, id, aek_version);
        let created_unix = self.stamp().await?;
        let vouched = self.vouch(kek).await?;
        let place = self.leash(kek).await?.on_demand().await;
        let (wrapped, place) = self.wrap(kek, current, (id, aek_version), &aek, vouched, place).await?;
        let wrapped = WrappedAek {
            aek_version,
            kek: kek.clone(),
            kek_id: current.id.clone(),
            profile: current.profile,
            wrapped,
            check: check_value(&aek, &context),
            created_unix,
            used: Usage::default(),
        };
        let proof = self.prove_new(id, &wrapped, vouched, place).await?;
        if proof.aek.as_ref() != Some(&aek) {
            return Err(gives_not_back(&wrapped.kek));
        }
        Ok((wrapped, proof))
    }
}
