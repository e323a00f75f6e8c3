//! What the owner of a KEK does to it in the token. Drills rehearse it from a process of its own, as in production.

use super::{
    PinSource, Pkcs11Token,
    fault::{self, Fault, at},
    kek::{self, Kek},
    session::Context,
};
use crate::{
    clock::{Clock, Instant},
    token::{KekId, Profile, TokenError},
};
use cryptoki::{object::Attribute, types::AuthPin};
use std::sync::Arc;

/// The owner's hand on a token. An engine that uses the token needs none of it.
///
/// Each act gives the instant just before the token was asked for it: nothing changed earlier.
#[derive(Debug)]
pub struct Operator(Pkcs11Token);

impl Operator {
    /// Acts through this token's login.
    pub const fn new(token: Pkcs11Token) -> Self {
        Self(token)
    }

    /// Revokes the use of a KEK, or grants it again: sets what lets it unwrap (CKA_DECRYPT; CKA_UNWRAP for `aes-kw`), which
    /// can be undone.
    ///
    /// # Errors
    /// [`Verdict::Denied`](super::Verdict::Denied) when the token has no such KEK; what else the token fails with.
    pub async fn set_enabled(&self, id: &KekId, profile: Profile, enabled: bool) -> Result<Instant, TokenError> {
        let attribute = match profile {
            Profile::AesKw => Attribute::Unwrap(enabled),
            Profile::AesGcm | Profile::RsaOaepSha256 => Attribute::Decrypt(enabled),
        };
        self.with_kek("set KEK", id, move |context, kek| {
            let attributes = std::slice::from_ref(&attribute);
            context.session.update_attributes(kek.key, attributes).map_err(at("C_SetAttributeValue"))
        })
        .await
    }

    /// Destroys a KEK that was made destroyable, both halves. Without a backup nothing that it wrapped is ever opened again.
    ///
    /// # Errors
    /// As [`Operator::set_enabled`].
    pub async fn destroy(&self, id: &KekId) -> Result<Instant, TokenError> {
        self.with_kek("destroy KEK", id, |context, kek| {
            let halves = [Some(kek.key), kek.wrapping.filter(|half| *half != kek.key)];
            let destroy = |object| context.session.destroy_object(object).map_err(at("C_DestroyObject"));
            halves.into_iter().flatten().try_for_each(destroy)
        })
        .await
    }

    /// Changes the user PIN.
    ///
    /// # Errors
    /// What the token fails with; [`Verdict::Misconfigured`](super::Verdict::Misconfigured) when a source gives no PIN.
    pub async fn set_pin(&self, old: &PinSource, new: &PinSource) -> Result<Instant, TokenError> {
        let (old, new) = (old.clone(), new.clone());
        let op = move |context: &Context<'_>| {
            context.expect_own_token()?;
            let (old, new) = (text(&old)?, text(&new)?);
            let asked = Clock::Boottime.now();
            context.session.set_pin(&old, &new).map_err(at("C_SetPIN"))?;
            Ok(asked)
        };
        self.0.call("set PIN", self.0.call_timeout, None, op).await
    }

    async fn with_kek(
        &self,
        operation: &'static str,
        id: &KekId,
        act: impl Fn(&Context<'_>, &Kek) -> Result<(), Fault> + Send + Sync + 'static,
    ) -> Result<Instant, TokenError> {
        let (id, act) = (id.clone(), Arc::new(act));
        let op = move |context: &Context<'_>| {
            context.expect_own_token()?;
            let Some(kek) = kek::find(context.session, &id)? else {
                context.would_be_found()?;
                return Err(fault::denied(operation, format!("the token has no KEK {id}")).into());
            };
            let asked = Clock::Boottime.now();
            act(context, &kek)?;
            Ok(asked)
        };
        self.0.call(operation, self.0.call_timeout, None, op).await
    }
}

/// cryptoki takes PINs as text alone, and wipes it.
fn text(source: &PinSource) -> Result<AuthPin, Fault> {
    let pin = source.read()?;
    match std::str::from_utf8(pin.expose()) {
        Ok(pin) => Ok(AuthPin::from(pin)),
        Err(_) => {
            let what = format!("{source}: is no UTF-8");
            Err(fault::misconfigured("set PIN", what, "change this PIN with the token's own tools").into())
        }
    }
}
