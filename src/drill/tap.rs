//! What a drill sees of the token.

use super::keys::Keys;
use crate::{
    clock::Instant,
    secret::Aek,
    token::{
        Binding, KekHandle, KekId, KekInfo, KekSpec, Probe, Profile, SigningKey, Token, TokenError, TokenInfo,
        UnaddressableKey, Workers, Wrapped,
    },
};
use async_trait::async_trait;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// The token that a rehearsed engine is built over: the token itself, its unwraps counted, and the AEKs known that it wrapped and
/// unwrapped, so that the drill can search the memory for them. It keeps them and their round keys for as long as it lives, inverted.
pub struct Tap {
    token: Arc<dyn Token>,
    pub(crate) keys: Keys,
    served: AtomicU64,
    failed: AtomicU64,
}

impl Tap {
    /// Over the service's own token.
    pub fn new(token: Arc<dyn Token>) -> Arc<Self> {
        let (served, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { token, keys: Keys::default(), served, failed })
    }

    /// Unwraps that succeeded, and that did not.
    pub(crate) fn unwraps(&self) -> (u64, u64) {
        (self.served.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    fn count(&self, kek: &KekHandle, result: Result<Aek, TokenError>) -> Result<Aek, TokenError> {
        result.iter().for_each(|aek| self.keys.learn(&kek.id, aek));
        let counter = if result.is_ok() { &self.served } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }
}

#[async_trait]
impl Token for Tap {
    async fn info(&self) -> Result<TokenInfo, TokenError> {
        self.token.info().await
    }

    async fn wrap(&self, kek: &KekHandle, aek: &Aek, binding: &Binding) -> Result<Wrapped, TokenError> {
        self.keys.learn(&kek.id, aek);
        self.token.wrap(kek, aek, binding).await
    }

    async fn unwrap(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.count(kek, self.token.unwrap(kek, wrapped, binding).await)
    }

    async fn prove(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.count(kek, self.token.prove(kek, wrapped, binding).await)
    }

    async fn probe(&self, profile: Profile) -> Result<Probe, TokenError> {
        self.token.probe(profile).await
    }

    async fn create_kek(&self, spec: &KekSpec) -> Result<KekInfo, TokenError> {
        self.token.create_kek(spec).await
    }

    async fn find_kek(&self, id: &KekId) -> Result<Option<KekInfo>, TokenError> {
        self.token.find_kek(id).await
    }

    async fn list_keks(&self) -> Result<Vec<KekInfo>, TokenError> {
        self.token.list_keks().await
    }

    async fn list_unaddressable(&self) -> Result<Vec<UnaddressableKey>, TokenError> {
        self.token.list_unaddressable().await
    }

    async fn renew_context(&self) -> Result<(), TokenError> {
        self.token.renew_context().await
    }

    fn context_began(&self) -> Option<Instant> {
        self.token.context_began()
    }

    fn call_timeout(&self) -> Duration {
        self.token.call_timeout()
    }

    async fn create_signing_key(&self, label: &str) -> Result<SigningKey, TokenError> {
        self.token.create_signing_key(label).await
    }

    async fn find_signing_key(&self, label: &str) -> Result<Option<SigningKey>, TokenError> {
        self.token.find_signing_key(label).await
    }

    async fn sign(&self, key: &SigningKey, text: &[u8]) -> Result<Vec<u8>, TokenError> {
        self.token.sign(key, text).await
    }

    fn serial(&self) -> Option<String> {
        self.token.serial()
    }

    fn in_flight(&self) -> usize {
        self.token.in_flight()
    }

    fn workers(&self) -> Workers {
        self.token.workers()
    }
}
