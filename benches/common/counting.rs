//! A token that counts its calls, in front of the real one or the scripted one.

use async_trait::async_trait;
use keyleash::{
    clock::Instant,
    secret::Aek,
    token::{
        Binding, KekHandle, KekId, KekInfo, KekSpec, Probe, Profile, Token, TokenError, TokenInfo, Workers, Wrapped,
    },
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// See the module's page.
pub(crate) struct Counting {
    token: Arc<dyn Token>,
    unwraps: AtomicU64,
    others: AtomicU64,
}

impl Counting {
    pub(crate) fn new(token: Arc<dyn Token>) -> Arc<Self> {
        Arc::new(Self { token, unwraps: AtomicU64::new(0), others: AtomicU64::new(0) })
    }

    /// Unwraps so far.
    pub(crate) fn unwraps(&self) -> u64 {
        self.unwraps.load(Ordering::SeqCst)
    }

    /// All calls so far.
    pub(crate) fn calls(&self) -> u64 {
        self.unwraps() + self.others.load(Ordering::SeqCst)
    }

    fn other(&self) -> &dyn Token {
        self.others.fetch_add(1, Ordering::SeqCst);
        &*self.token
    }
}

#[async_trait]
impl Token for Counting {
    async fn info(&self) -> Result<TokenInfo, TokenError> {
        self.other().info().await
    }

    async fn wrap(&self, kek: &KekHandle, aek: &Aek, binding: &Binding) -> Result<Wrapped, TokenError> {
        self.other().wrap(kek, aek, binding).await
    }

    async fn unwrap(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.unwraps.fetch_add(1, Ordering::SeqCst);
        self.token.unwrap(kek, wrapped, binding).await
    }

    async fn prove(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.unwraps.fetch_add(1, Ordering::SeqCst);
        self.token.prove(kek, wrapped, binding).await
    }

    async fn probe(&self, profile: Profile) -> Result<Probe, TokenError> {
        self.other().probe(profile).await
    }

    async fn create_kek(&self, spec: &KekSpec) -> Result<KekInfo, TokenError> {
        self.other().create_kek(spec).await
    }

    async fn find_kek(&self, id: &KekId) -> Result<Option<KekInfo>, TokenError> {
        self.other().find_kek(id).await
    }

    async fn list_keks(&self) -> Result<Vec<KekInfo>, TokenError> {
        self.other().list_keks().await
    }

    async fn renew_context(&self) -> Result<(), TokenError> {
        self.other().renew_context().await
    }

    fn context_began(&self) -> Option<Instant> {
        self.token.context_began()
    }

    fn call_timeout(&self) -> std::time::Duration {
        self.token.call_timeout()
    }

    fn workers(&self) -> Workers {
        self.token.workers()
    }
}
