//! Fresh proofs: each KEK version gets one in every so many of its own.

use super::*;
use async_trait::async_trait;
use keyleash::{
    secret::Aek,
    token::{Binding, KekHandle, KekInfo, KekSpec, Probe, Token, TokenError, TokenInfo, Workers, Wrapped},
};
use std::{collections::BTreeMap, sync::Mutex};

/// Notes which KEK was unwrapped with right after a renewal, and how often each was.
struct Noted {
    inner: Arc<ScriptedToken>,
    renewed: Mutex<bool>,
    /// Fresh unwraps, and all.
    unwraps: Mutex<BTreeMap<KekId, (u32, u32)>>,
}

#[async_trait]
impl Token for Noted {
    async fn unwrap(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        {
            let fresh = std::mem::take(&mut *self.renewed.lock().unwrap());
            let mut unwraps = self.unwraps.lock().unwrap();
            let counts = unwraps.entry(kek.id.clone()).or_default();
            *counts = (counts.0 + u32::from(fresh), counts.1 + 1);
        }
        self.inner.unwrap(kek, wrapped, binding).await
    }

    async fn renew_context(&self) -> Result<(), TokenError> {
        *self.renewed.lock().unwrap() = true;
        Ok(())
    }

    async fn wrap(&self, kek: &KekHandle, aek: &Aek, binding: &Binding) -> Result<Wrapped, TokenError> {
        self.inner.wrap(kek, aek, binding).await
    }

    async fn info(&self) -> Result<TokenInfo, TokenError> {
        self.inner.info().await
    }

    async fn probe(&self, profile: Profile) -> Result<Probe, TokenError> {
        self.inner.probe(profile).await
    }

    async fn create_kek(&self, spec: &KekSpec) -> Result<KekInfo, TokenError> {
        self.inner.create_kek(spec).await
    }

    async fn find_kek(&self, id: &KekId) -> Result<Option<KekInfo>, TokenError> {
        self.inner.find_kek(id).await
    }

    async fn list_keks(&self) -> Result<Vec<KekInfo>, TokenError> {
        self.inner.list_keks().await
    }

    fn workers(&self) -> Workers {
        self.inner.workers()
    }
}

#[tokio::test]
async fn every_kek_version_gets_a_fresh_proof_in_every_so_many_of_its_own() {
    const EVERY: u32 = 4;
    let rig = Rig::new().await;
    let token = Arc::new(Noted { inner: rig.token.clone(), renewed: Mutex::default(), unwraps: Mutex::default() });
    // An even number of KEK versions, each asked once an interval: a count for all of them would favour some.
    let settings = Settings { fresh_proof_every: EVERY, ..Settings::default() };
    let build =
        Engine::builder(token.clone(), rig.store.clone()).on_current_runtime().settings(settings).start_up_proof(false);
    let engine = build.clock(Clock::Manual(rig.clock.clone())).jitter_seed(1).build().unwrap();
    let mut accounts = Vec::new();
    for n in 0..4 {
        let kek = KekName::new(format!("kek-{n}")).unwrap();
        engine.create_kek(&kek, Profile::AesGcm, false).await.unwrap();
        accounts.push(engine.create_account(&account_id(&format!("account-{n}")), &kek).await.unwrap());
    }
    token.unwraps.lock().unwrap().clear();
    rig.pass(8 * 60 * SECOND).await;
    let unwraps = token.unwraps.lock().unwrap();
    assert_eq!(unwraps.len(), 4);
    for (fresh, all) in unwraps.values() {
        assert!(fresh.abs_diff(all / EVERY) <= 1, "{fresh} of {all}: {unwraps:?}");
    }
    drop(accounts);
}
