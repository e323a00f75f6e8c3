//! What the owner of a KEK does to it in the token. Drills rehearse it from a process of its own, as in production.

use super::{
    PinSource, Pkcs11Token,
    dates::{Term, today},
    fault::{self, Fault, at, code_of},
    kek::{self, Kek},
    session::Context,
    verdict,
};
use crate::{
    clock::{Clock, Instant},
    token::{KekId, Profile, TokenError},
};
use cryptoki::{
    error::RvError,
    object::{Attribute, AttributeType},
    types::AuthPin,
};
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

    /// Revokes the use of a KEK: takes away what lets it unwrap ([`Operator::switch_of`]), which [`Operator::enable`] undoes.
    ///
    /// # Errors
    /// As [`Operator::enable`].
    pub async fn disable(&self, id: &KekId, profile: Profile) -> Result<Instant, TokenError> {
        self.set_enabled(id, profile, false).await
    }

    /// Grants the use of a KEK again.
    ///
    /// # Errors
    /// [`Verdict::Denied`](super::Verdict::Denied) when the token has no such KEK;
    /// [`Verdict::Misconfigured`](super::Verdict::Misconfigured) when it does not let the attribute be changed, or says that it did
    /// and did not; what else the token fails with.
    pub async fn enable(&self, id: &KekId, profile: Profile) -> Result<Instant, TokenError> {
        self.set_enabled(id, profile, true).await
    }

    async fn set_enabled(&self, id: &KekId, profile: Profile, enabled: bool) -> Result<Instant, TokenError> {
        self.with_kek("set KEK", id, move |context, kek| {
            let (wanted, kind) = match profile {
                Profile::AesKw => (Attribute::Unwrap(enabled), AttributeType::Unwrap),
                Profile::AesGcm | Profile::RsaOaepSha256 => (Attribute::Decrypt(enabled), AttributeType::Decrypt),
            };
            match context.session.update_attributes(kek.key, std::slice::from_ref(&wanted)) {
                Ok(()) => {}
                Err(error) if is_refusal(code_of(&error)) => return Err(not_allowed(kek, profile, code_of(&error))),
                Err(error) => return Err(at("C_SetAttributeValue")(error)),
            }
            let found = context.session.get_attributes(kek.key, &[kind]).map_err(at("C_GetAttributeValue of a KEK"))?;
            if found.first() != Some(&wanted) {
                let what =
                    format!("the token took {} = {enabled}, and still shows another value", Self::switch_of(profile));
                return Err(fault::misconfigured("set KEK", what, OTHER_WAYS).into());
            }
            // What cannot be read is found out by whoever uses it.
            let dates = if enabled {
                kek.dates(context.inside.raw(), context.session, Clock::Boottime.now()).ok()
            } else {
                None
            };
            match dates.map_or(Term::Runs, |dates| dates.term(today())) {
                Term::Runs => Ok(()),
                Term::Over(why) | Term::Unknown(why) => {
                    let what = format!("{} is on, and the KEK denied all the same: {why}", Self::switch_of(profile));
                    Err(fault::misconfigured("set KEK", what, "set its dates in the token, or the machine's clock")
                        .into())
                }
            }
        })
        .await
    }

    /// The attribute of a KEK that lets it unwrap: `CKA_DECRYPT`, or `CKA_UNWRAP` for `aes-kw`.
    #[must_use]
    pub const fn switch_of(profile: Profile) -> &'static str {
        match profile {
            Profile::AesKw => "CKA_UNWRAP",
            Profile::AesGcm | Profile::RsaOaepSha256 => "CKA_DECRYPT",
        }
    }

    /// Destroys a KEK that was made destroyable, both halves. Without a backup nothing that it wrapped is ever opened again.
    ///
    /// # Errors
    /// As [`Operator::enable`].
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

/// Where a token does not let an attribute be changed.
const OTHER_WAYS: &str = "use the vendor's own tool, or take the key away as a whole: change the PIN, or take the token or its partition off";

/// Whether the token says that it will not, whoever tries again.
const fn is_refusal(code: RvError) -> bool {
    use RvError as Rv;
    matches!(
        code,
        Rv::ActionProhibited
            | Rv::AttributeReadOnly
            | Rv::AttributeTypeInvalid
            | Rv::AttributeValueInvalid
            | Rv::FunctionNotSupported
            | Rv::FunctionRejected
            | Rv::SessionReadOnly
            | Rv::TemplateInconsistent
            | Rv::TokenWriteProtected
    )
}

fn not_allowed(kek: &Kek, profile: Profile, code: RvError) -> Fault {
    let why = match kek.attributes.modifiable {
        Some(false) => ", for its CKA_MODIFIABLE is false",
        _ => "",
    };
    let (attribute, code) = (Operator::switch_of(profile), verdict::name(code));
    let what = format!("the token does not let {attribute} of this KEK be changed{why}: C_SetAttributeValue: {code}");
    fault::misconfigured("set KEK", what, OTHER_WAYS).into()
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
