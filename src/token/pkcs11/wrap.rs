//! The three wrap profiles, each a few calls on one session. Steps only: retry and verdict are [`super::session`]'s.

use super::fault::{self, Fault, at};
use super::kek::Kek;
use super::raw::Raw;
use crate::secret::{AEK_BYTES, Aek, fill_random, scrub_stack};
use crate::token::{Binding, Profile, TokenError, Wrapped};
use cryptoki::{
    mechanism::{
        Mechanism, MechanismType,
        aead::GcmParams,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
    },
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
    types::Ulong,
};
use zeroize::{Zeroize, Zeroizing};

/// Length of the IV that keyleash offers, in bytes (NIST SP 800-38D, 8.2.2: random).
const GCM_IV_BYTES: usize = 12;
const GCM_TAG_BYTES: usize = 16;
const GCM_TAG_BITS: Ulong = Ulong::new(128);
/// RFC 3394 adds one block of 8 bytes. Tokens report more when asked for the length first.
const KW_BYTES: usize = AEK_BYTES + 8;

/// Wraps `aek`.
pub(super) fn wrap(
    session: &Session,
    kek: &Kek,
    profile: Profile,
    aek: &Aek,
    binding: &Binding,
) -> Result<Wrapped, Fault> {
    let wrapping = kek.wrapping.ok_or_else(|| {
        let why = kek.attributes.half().unwrap_or_else(|| "nothing in the token wraps by it".into());
        half_a_key(&kek.attributes.id, &why)
    })?;
    let mut iv = Vec::new();
    let bytes = match profile {
        Profile::AesGcm => {
            iv = vec![0; GCM_IV_BYTES];
            fill_random(&mut iv)?;
            let mechanism = gcm(&mut iv, binding)?;
            // Some HSMs write an IV of their own into the parameter: it is stored as it stands after the call.
            session.encrypt(&mechanism, wrapping, aek.expose()).map_err(at("C_Encrypt with CKM_AES_GCM"))?
        }
        Profile::RsaOaepSha256 => {
            session.encrypt(&oaep(), wrapping, aek.expose()).map_err(at("C_Encrypt with CKM_RSA_PKCS_OAEP"))?
        }
        Profile::AesKw => kw_wrap(session, wrapping, aek)?,
    };
    let least = match profile {
        Profile::AesGcm => AEK_BYTES + GCM_TAG_BYTES,
        Profile::RsaOaepSha256 => AEK_BYTES + 1,
        Profile::AesKw => KW_BYTES,
    };
    if !(least..=Wrapped::BYTES_MAX).contains(&bytes.len()) {
        let what = format!("the token wrapped 32 bytes into {}, at least {least} were expected", bytes.len());
        return Err(fault::misconfigured("wrap", what, "use another profile").into());
    }
    Ok(Wrapped { iv, bytes })
}

/// The error of a KEK that unwraps and cannot wrap.
pub(super) fn half_a_key(id: &[u8], why: &str) -> TokenError {
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    fault::misconfigured(
        "wrap",
        format!("KEK {id} is half a key: {why}"),
        "what it wrapped is opened as before; `keyleash kek show` names the half",
    )
}

/// Unwraps. A record that no token could unwrap is refused without asking this one.
pub(super) fn unwrap(
    raw: Option<&Raw>,
    session: &Session,
    kek: &Kek,
    profile: Profile,
    wrapped: &Wrapped,
    binding: &Binding,
) -> Result<Aek, Fault> {
    check_record(profile, wrapped)?;
    let aek = match profile {
        Profile::AesGcm => {
            // The token may write to the parameter.
            let mut iv = wrapped.iv.clone();
            let mechanism = gcm(&mut iv, binding)?;
            decrypt(raw, session, &mechanism, kek.key, &wrapped.bytes)
        }
        Profile::RsaOaepSha256 => decrypt(raw, session, &oaep(), kek.key, &wrapped.bytes),
        Profile::AesKw => kw_unwrap(raw, session, kek.key, &wrapped.bytes),
    };
    scrub_stack();
    aek
}

fn check_record(profile: Profile, wrapped: &Wrapped) -> Result<(), Fault> {
    let refused = |what: &str| Err(fault::bad_record("unwrap", what).into());
    let (iv, bytes) = (wrapped.iv.len(), wrapped.bytes.len());
    match profile {
        // SoftHSM takes an empty IV and a tag of no bits.
        Profile::AesGcm if iv == 0 || iv > Wrapped::IV_BYTES_MAX => refused("the IV does not have 1 to 64 bytes"),
        Profile::AesGcm if bytes < AEK_BYTES + GCM_TAG_BYTES => refused("the wrapped AEK is shorter than key and tag"),
        Profile::AesKw if bytes != KW_BYTES => refused("the wrapped AEK does not have 40 bytes"),
        Profile::AesKw | Profile::RsaOaepSha256 if iv != 0 => {
            refused("the wrapped AEK has an IV, its profile has none")
        }
        _ if bytes == 0 || bytes > Wrapped::BYTES_MAX => refused("the wrapped AEK does not have 1 to 1024 bytes"),
        _ => Ok(()),
    }
}

fn gcm<'a>(iv: &'a mut [u8], binding: &'a Binding) -> Result<Mechanism<'a>, Fault> {
    Ok(Mechanism::AesGcm(GcmParams::new(iv, binding, GCM_TAG_BITS).map_err(at("CK_GCM_PARAMS"))?))
}

fn oaep() -> Mechanism<'static> {
    PkcsOaepParams::new(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, PkcsOaepSource::empty()).into()
}

/// One C_DecryptInit and one C_Decrypt.
fn decrypt(
    raw: Option<&Raw>,
    session: &Session,
    mechanism: &Mechanism<'_>,
    key: ObjectHandle,
    bytes: &[u8],
) -> Result<Aek, Fault> {
    let (init, call) = match mechanism {
        Mechanism::AesGcm(_) => ("C_DecryptInit with CKM_AES_GCM", "C_Decrypt with CKM_AES_GCM"),
        _ => ("C_DecryptInit with CKM_RSA_PKCS_OAEP", "C_Decrypt with CKM_RSA_PKCS_OAEP"),
    };
    let Some(raw) = raw else {
        let plain = Zeroizing::new(session.decrypt(mechanism, key, bytes).map_err(at(call))?);
        return take(&plain, plain.len());
    };
    // Room for whatever a token thinks it may need: tag and IV count at some.
    let mut plain = Zeroizing::new([0; Wrapped::BYTES_MAX]);
    session.decrypt_init(mechanism, key).map_err(at(init))?;
    let len = raw.decrypt(session, bytes, &mut *plain).map_err(at(call))?;
    take(&*plain, len)
}

/// Moves the first `len` bytes of the plaintext, which the caller wipes, to locked memory.
fn take(plain: &[u8], len: usize) -> Result<Aek, Fault> {
    match plain.get(..len).map(<&[u8; AEK_BYTES]>::try_from) {
        Some(Ok(bytes)) => Ok(Aek::copy_from(bytes)?),
        _ => {
            let what = format!("it unwraps to {len} bytes, an AEK has {AEK_BYTES}");
            Err(fault::bad_record("unwrap", what).into())
        }
    }
}

/// Attributes with a key in them, wiped on drop.
struct SecretTemplate(Vec<Attribute>);

impl Drop for SecretTemplate {
    fn drop(&mut self) {
        for attribute in &mut self.0 {
            if let Attribute::Value(value) = attribute {
                value.zeroize();
            }
        }
    }
}

/// A session object, destroyed on drop whatever happens between.
struct Imported<'a> {
    session: &'a Session,
    object: ObjectHandle,
}

impl Drop for Imported<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.session.destroy_object(self.object) {
            // The session is dropped after every error, and its objects with it; after a success this matters.
            tracing::warn!(%error, "an AEK's session object could not be destroyed");
        }
    }
}

/// The object that an AEK passes through under aes-kw.
fn passing_template() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

fn kw_wrap(session: &Session, wrapping: ObjectHandle, aek: &Aek) -> Result<Vec<u8>, Fault> {
    let mut template = SecretTemplate(passing_template());
    template.0.push(Attribute::Value(aek.expose().to_vec()));
    let object = session.create_object(&template.0).map_err(at("C_CreateObject"))?;
    drop(template);
    let imported = Imported { session, object };
    let mut bytes = session
        .wrap_key(&Mechanism::AesKeyWrap, wrapping, imported.object)
        .map_err(at("C_WrapKey with CKM_AES_KEY_WRAP"))?;
    bytes.truncate(KW_BYTES);
    Ok(bytes)
}

fn kw_unwrap(raw: Option<&Raw>, session: &Session, key: ObjectHandle, bytes: &[u8]) -> Result<Aek, Fault> {
    let object = session
        .unwrap_key(&Mechanism::AesKeyWrap, key, bytes, &passing_template())
        .map_err(at("C_UnwrapKey with CKM_AES_KEY_WRAP"))?;
    let imported = Imported { session, object };
    const STEP: &str = "C_GetAttributeValue of CKA_VALUE";
    if let Some(raw) = raw {
        // Longer than an AEK, so that a longer key is told from one.
        let mut value = Zeroizing::new([0; 2 * AEK_BYTES]);
        let len = raw.attribute(session, imported.object, AttributeType::Value, &mut *value).map_err(at(STEP))?;
        return take(&*value, len);
    }
    let read = session.get_attributes(imported.object, &[AttributeType::Value]);
    scrub_heap();
    let value = SecretTemplate(read.map_err(at(STEP))?);
    match value.0.first() {
        Some(Attribute::Value(bytes)) => take(bytes, bytes.len()),
        _ => take(&[], 0),
    }
}

/// Overwrites the chunks that the binding has just freed on this thread with the key in them: it reads CKA_VALUE into a buffer
/// of its own, copies that, and frees it as it is. Allocators give freed chunks of a size back first; so take a few and wipe them.
fn scrub_heap() {
    let mut taken: [Vec<u8>; 16] = Default::default();
    for chunk in &mut taken {
        chunk.reserve_exact(AEK_BYTES);
        chunk.resize(AEK_BYTES, 0xa5);
    }
    for chunk in &mut taken {
        chunk.zeroize();
        std::hint::black_box(&chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Verdict;

    #[test]
    fn a_record_that_no_token_could_unwrap_is_bad_without_asking() {
        let wrapped = |iv, bytes| Wrapped { iv: vec![1; iv], bytes: vec![1; bytes] };
        for (profile, record) in [
            (Profile::AesGcm, wrapped(0, 48)),
            (Profile::AesGcm, wrapped(65, 48)),
            (Profile::AesGcm, wrapped(12, 47)),
            (Profile::AesGcm, wrapped(12, 1025)),
            (Profile::AesKw, wrapped(0, 39)),
            (Profile::AesKw, wrapped(0, 48)),
            (Profile::AesKw, wrapped(1, 40)),
            (Profile::RsaOaepSha256, wrapped(0, 0)),
            (Profile::RsaOaepSha256, wrapped(12, 384)),
        ] {
            match check_record(profile, &record) {
                Err(Fault::Settled(error)) => assert_eq!(error.verdict, Verdict::BadRecord),
                other => panic!("{profile}: {other:?}"),
            }
        }
        assert!(check_record(Profile::AesGcm, &wrapped(28, 64)).is_ok(), "a token may append an IV of its own");
        assert!(check_record(Profile::AesKw, &wrapped(0, 40)).is_ok());
        assert!(check_record(Profile::RsaOaepSha256, &wrapped(0, 512)).is_ok());
    }
}
