//! A token that is opened when it is first asked: where several are configured, trouble with one (a PIN that it refuses, a module
//! that is missing) is no trouble of a command that does not need it.

use crate::open_token::open;
use async_trait::async_trait;
use keyleash::{
    clock::Instant,
    secret::Aek,
    token::{
        Binding, KekHandle, KekId, KekInfo, KekSpec, Probe, Profile, SigningKey, Token, TokenError, TokenInfo,
        UnaddressableKey, Workers, Wrapped,
        pkcs11::{Pkcs11Settings, Pkcs11Token},
    },
};
use tokio::sync::OnceCell;

pub(crate) struct LazyToken {
    settings: Pkcs11Settings,
    opened: OnceCell<Result<Pkcs11Token, TokenError>>,
}

impl LazyToken {
    pub(crate) fn new(settings: Pkcs11Settings) -> Self {
        Self { settings, opened: OnceCell::new() }
    }

    /// The token; why it could not be opened, once that was tried: a PIN that was refused is not tried again.
    async fn get(&self) -> Result<&Pkcs11Token, TokenError> {
        self.opened.get_or_init(|| open(self.settings.clone())).await.as_ref().map_err(Clone::clone)
    }
}

#[async_trait]
impl Token for LazyToken {
    async fn info(&self) -> Result<TokenInfo, TokenError> {
        self.get().await?.info().await
    }

    async fn wrap(&self, kek: &KekHandle, aek: &Aek, binding: &Binding) -> Result<Wrapped, TokenError> {
        self.get().await?.wrap(kek, aek, binding).await
    }

    async fn unwrap(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.get().await?.unwrap(kek, wrapped, binding).await
    }

    async fn prove(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.get().await?.prove(kek, wrapped, binding).await
    }

    async fn probe(&self, profile: Profile) -> Result<Probe, TokenError> {
        self.get().await?.probe(profile).await
    }

    async fn create_kek(&self, spec: &KekSpec) -> Result<KekInfo, TokenError> {
        self.get().await?.create_kek(spec).await
    }

    async fn find_kek(&self, id: &KekId) -> Result<Option<KekInfo>, TokenError> {
        self.get().await?.find_kek(id).await
    }

    async fn list_keks(&self) -> Result<Vec<KekInfo>, TokenError> {
        self.get().await?.list_keks().await
    }

    async fn create_signing_key(&self, label: &str) -> Result<SigningKey, TokenError> {
        self.get().await?.create_signing_key(label).await
    }

    async fn find_signing_key(&self, label: &str) -> Result<Option<SigningKey>, TokenError> {
        self.get().await?.find_signing_key(label).await
    }

    async fn sign(&self, key: &SigningKey, text: &[u8]) -> Result<Vec<u8>, TokenError> {
        self.get().await?.sign(key, text).await
    }

    async fn list_unaddressable(&self) -> Result<Vec<UnaddressableKey>, TokenError> {
        self.get().await?.list_unaddressable().await
    }

    async fn renew_context(&self) -> Result<(), TokenError> {
        self.get().await?.renew_context().await
    }

    fn context_began(&self) -> Option<Instant> {
        // Before it is opened none has begun that an answer could be old in.
        self.opened.get()?.as_ref().ok()?.context_began()
    }

    fn call_timeout(&self) -> std::time::Duration {
        self.settings.call_timeout
    }

    fn serial(&self) -> Option<String> {
        self.opened.get()?.as_ref().ok()?.serial()
    }

    fn in_flight(&self) -> usize {
        self.opened.get().and_then(|opened| opened.as_ref().ok()).map_or(0, Token::in_flight)
    }

    fn workers(&self) -> Workers {
        match self.opened.get() {
            Some(Ok(token)) => token.workers(),
            // As many as there will be.
            None => Workers { alive: self.settings.workers, hung: 0, hung_max: self.settings.hung_max },
            Some(Err(_)) => Workers { alive: 0, hung: 0, hung_max: self.settings.hung_max },
        }
    }
}
