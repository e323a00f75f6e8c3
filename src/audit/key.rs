//! The key in the token that signs checkpoints. It is known by its label, which is the name that signatures have: [`key_name`].

use super::{Keys, Note, Signer, Vkey, key_name};
use crate::{
    error::{Error, Result},
    store::{self, KeyStore},
    token::{SigningKey, SigningKind, Token},
};
use async_trait::async_trait;
use std::{fmt, sync::Arc};

/// What a new key signs first, so that one whose signatures nobody can verify is noticed before there is a trail.
const TRIAL: &str = "keyleash: a trial of a signing key\n";

/// What HMACs in the place of signatures cannot prove.
pub const HMAC_WARNING: &str = "this token signs by HMAC alone: who verifies needs the token and the right to use the key, and could have \
                                made the signatures as well; they prove nothing to a customer";

/// Signs with a key of a token.
pub struct TokenSigner {
    token: Arc<dyn Token>,
    key: SigningKey,
    vkey: Vkey,
    /// As it is written.
    written: String,
}

impl TokenSigner {
    /// Makes the signing key of a store's trails in the token: Ed25519, or else ECDSA on P-256, or else HMAC-SHA256, whichever the token
    /// can do first. It can be read by nobody.
    ///
    /// # Errors
    /// [`Error::Exists`] where the token has it already; [`Error::Misconfigured`] where it makes no key that signs; what the token and the store say.
    pub async fn create(token: Arc<dyn Token>, store: &dyn KeyStore) -> Result<Self> {
        let name = key_name(store::store_id(store).await?.id);
        if token.find_signing_key(&name).await?.is_some() {
            return Err(Error::Exists(format!(
                "the signing key {name:?} in the token: `keyleash audit key show` prints it"
            )));
        }
        let key = token.create_signing_key(&name).await?;
        let signer = Self::of(token, key, &name)?;
        if signer.vkey.is_public() {
            let note = Note::new(TRIAL)?;
            let signature = signer.vkey.signature(&signer.sign(TRIAL.as_bytes()).await?)?;
            let keys = Keys::new().with(signer.vkey.clone());
            note.signed(signature).verify(&keys).map_err(|_| {
                Error::Misconfigured(format!(
                    "the token made signing key {name:?}, and what it signs is not verified by the public half that it gives: delete \
                     the key there, and keep the signing key in another token"
                ))
            })?;
        }
        Ok(signer)
    }

    /// The signing key of a store's trails, as the token has it.
    ///
    /// # Errors
    /// [`Error::NotFound`] where it has none; [`Error::Misconfigured`] where it is not used; what the token and the store say.
    pub async fn open(token: Arc<dyn Token>, store: &dyn KeyStore) -> Result<Self> {
        let name = key_name(store::store_id(store).await?.id);
        let key = token.find_signing_key(&name).await?.ok_or_else(|| {
            Error::NotFound(format!(
                "the signing key {name:?} of the trail in the token: `keyleash audit key create` makes it"
            ))
        })?;
        Self::of(token, key, &name)
    }

    fn of(token: Arc<dyn Token>, key: SigningKey, name: &str) -> Result<Self> {
        let vkey = match &key.kind {
            SigningKind::Ed25519(point) => Vkey::ed25519(name, point)?,
            SigningKind::P256(point) => Vkey::p256(name, point)?,
            SigningKind::Hmac => Vkey::hmac(name, key.id.as_bytes())?,
        };
        let written = vkey.to_string();
        Ok(Self { token, key, vkey, written })
    }

    /// The key as who verifies knows it.
    pub const fn public(&self) -> &Vkey {
        &self.vkey
    }

    /// How it signs, as people call it.
    pub const fn kind(&self) -> &'static str {
        self.key.kind.name()
    }

    /// What its signatures cannot prove; `None` where anybody can verify them.
    pub fn warning(&self) -> Option<&'static str> {
        (!self.vkey.is_public()).then_some(HMAC_WARNING)
    }
}

#[async_trait]
impl Signer for TokenSigner {
    fn vkey(&self) -> &str {
        &self.written
    }

    async fn sign(&self, text: &[u8]) -> Result<Vec<u8>> {
        Ok(self.token.sign(&self.key, text).await?)
    }
}

impl fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSigner({})", self.vkey)
    }
}
