//! Keys that sign: made, found by their label, and used. By the first of Ed25519, ECDSA on P-256 and HMAC that the token can do.

use super::fault::{self, Fault, at};
use super::kek::check_label;
use super::verdict;
use crate::secret::fill_random;
use crate::token::{KekId, SigningKey, SigningKind};
use cryptoki::{
    error::RvError,
    mechanism::{
        Mechanism,
        eddsa::{EddsaParams, EddsaSignatureScheme},
    },
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
    types::Ulong,
};
use sha2::{Digest, Sha256};

/// Ed25519 by its OID (RFC 8410), and by its name in PKCS#11: tokens take the one or the other.
const ED25519: [&[u8]; 2] = [b"\x06\x03\x2b\x65\x70", b"\x13\x0cedwards25519"];
/// P-256 by its OID (RFC 5480).
const P256: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
/// Bytes of an HMAC's key.
const HMAC_KEY_BYTES: u64 = 32;
/// What a new key must sign before it counts as one.
const TRIAL: &[u8] = b"keyleash: a trial of a signing key";

const OPERATION: &str = "make signing key";

/// Makes one of this label, which no other key that signs has.
pub(super) fn create(session: &Session, label: &str) -> Result<SigningKey, Fault> {
    check_label(label)?;
    if find(session, label)?.is_some() {
        let what = format!("the token has a signing key {label:?}");
        return Err(fault::misconfigured(OPERATION, what, "use it, or give it another label").into());
    }
    let mut id = vec![0; 16];
    fill_random(&mut id)?;
    let ways = ED25519.into_iter().map(Way::Ed25519).chain([Way::P256, Way::Hmac]);
    let mut refused = Vec::new();
    for way in ways {
        let objects = match way.generate(session, label, &id) {
            Ok(objects) => objects,
            Err(Fault::Code { step, code }) if is_inability(code) => {
                refused.push(format!("{}: {step}: {}", way.name(), verdict::name(code)));
                continue;
            }
            Err(fault) => return Err(fault),
        };
        let made = find(session, label).and_then(|found| {
            let (object, key) = found.ok_or(Fault::KekMissing)?;
            sign_by(session, object, &key.kind, TRIAL)?;
            Ok(key)
        });
        match made {
            Ok(key) => return Ok(key),
            Err(fault) => {
                objects.into_iter().for_each(|object| destroy(session, object));
                match fault {
                    Fault::Code { step, code } if is_inability(code) => {
                        refused.push(format!("{}: {step}: {}", way.name(), verdict::name(code)));
                    }
                    fault => return Err(fault),
                }
            }
        }
    }
    let what = format!("the token makes no key that signs ({})", refused.join("; "));
    Err(fault::misconfigured(OPERATION, what, "keep the signing key in another token").into())
}

/// A way to sign, as a key is made for it.
#[derive(Clone, Copy)]
enum Way {
    Ed25519(&'static [u8]),
    P256,
    Hmac,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Ed25519(_) => "Ed25519",
            Self::P256 => "ECDSA P-256",
            Self::Hmac => "HMAC",
        }
    }

    fn generate(self, session: &Session, label: &str, id: &[u8]) -> Result<Vec<ObjectHandle>, Fault> {
        let common = [Attribute::Token(true), Attribute::Label(label.as_bytes().to_vec()), Attribute::Id(id.to_vec())];
        let guarded = [
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
        ];
        let (mechanism, curve) = match self {
            Self::Ed25519(curve) => (Mechanism::EccEdwardsKeyPairGen, curve),
            Self::P256 => (Mechanism::EccKeyPairGen, P256),
            Self::Hmac => {
                let mut template = [&common[..], &guarded].concat();
                template.extend([
                    Attribute::Class(ObjectClass::SECRET_KEY),
                    Attribute::KeyType(KeyType::GENERIC_SECRET),
                    Attribute::ValueLen(Ulong::new(HMAC_KEY_BYTES)),
                    Attribute::Verify(true),
                ]);
                let key = session.generate_key(&Mechanism::GenericSecretKeyGen, &template);
                return Ok(vec![key.map_err(at("C_GenerateKey"))?]);
            }
        };
        let mut public = common.to_vec();
        public.extend([Attribute::Private(false), Attribute::Verify(true), Attribute::EcParams(curve.to_vec())]);
        let private = [&common[..], &guarded].concat();
        let pair = session.generate_key_pair(&mechanism, &public, &private).map_err(at("C_GenerateKeyPair"))?;
        Ok(vec![pair.0, pair.1])
    }
}

/// A token says so where it cannot do something at all, and nothing of whether it can be reached.
const fn is_inability(code: RvError) -> bool {
    use RvError as Rv;
    matches!(
        code,
        Rv::MechanismInvalid
            | Rv::MechanismParamInvalid
            | Rv::FunctionNotSupported
            | Rv::AttributeTypeInvalid
            | Rv::AttributeValueInvalid
            | Rv::TemplateInconsistent
            | Rv::TemplateIncomplete
            | Rv::DomainParamsInvalid
            | Rv::CurveNotSupported
            | Rv::KeyFunctionNotPermitted
            | Rv::KeyTypeInconsistent
            | Rv::GeneralError
            | Rv::FunctionFailed
    )
}

/// The key of this label that signs, which nobody can read out of the token.
pub(super) fn find(session: &Session, label: &str) -> Result<Option<(ObjectHandle, SigningKey)>, Fault> {
    let mut found = None;
    for class in [ObjectClass::PRIVATE_KEY, ObjectClass::SECRET_KEY] {
        let template = [Attribute::Token(true), Attribute::Class(class), Attribute::Label(label.as_bytes().to_vec())];
        for object in session.find_objects(&template).map_err(at("C_FindObjects"))? {
            if found.is_some() {
                let what = format!("two keys of the token have the label {label:?}");
                return Err(fault::misconfigured("find signing key", what, "give one of them another label").into());
            }
            found = Some((object, read(session, object, label)?));
        }
    }
    Ok(found)
}

fn read(session: &Session, object: ObjectHandle, label: &str) -> Result<SigningKey, Fault> {
    let wrong = |what: &str| -> Fault {
        let what = format!("the key {label:?} is not used: {what}");
        fault::misconfigured("find signing key", what, "make one with `keyleash audit key create`").into()
    };
    let asked = [AttributeType::Id, AttributeType::KeyType, AttributeType::Sensitive, AttributeType::Extractable];
    let attributes = session.get_attributes(object, &asked).map_err(at("C_GetAttributeValue"))?;
    let (mut id, mut key_type, mut sensitive, mut extractable) = (Vec::new(), None, false, true);
    for attribute in attributes {
        match attribute {
            Attribute::Id(bytes) => id = bytes,
            Attribute::KeyType(is) => key_type = Some(is),
            Attribute::Sensitive(is) => sensitive = is,
            Attribute::Extractable(is) => extractable = is,
            _ => {}
        }
    }
    if !sensitive || extractable {
        return Err(wrong("CKA_SENSITIVE is false or CKA_EXTRACTABLE is true: its signatures would prove nothing"));
    }
    let id = KekId::new(id).map_err(|error| wrong(&error.to_string()))?;
    let point = || -> Result<Vec<u8>, Fault> {
        let template = [Attribute::Class(ObjectClass::PUBLIC_KEY), Attribute::Id(id.as_bytes().to_vec())];
        let publics = session.find_objects(&template).map_err(at("C_FindObjects"))?;
        let [public] = publics[..] else { return Err(wrong("it has no public half, or several")) };
        let found = session.get_attributes(public, &[AttributeType::EcPoint]).map_err(at("C_GetAttributeValue"))?;
        match found.into_iter().next() {
            Some(Attribute::EcPoint(point)) => Ok(point),
            _ => Err(wrong("the token does not tell its public half")),
        }
    };
    let kind = match key_type {
        Some(KeyType::EC_EDWARDS) => bare::<32>(&point()?).map(SigningKind::Ed25519),
        Some(KeyType::EC) => bare::<65>(&point()?).filter(|point| point.first() == Some(&4)).map(SigningKind::P256),
        Some(KeyType::GENERIC_SECRET | KeyType::SHA256_HMAC) => Some(SigningKind::Hmac),
        _ => None,
    };
    let kind = kind.ok_or_else(|| wrong("it is of no kind that keyleash signs by"))?;
    Ok(SigningKey::new(label, id, kind))
}

/// A point of `N` bytes: as it is, or in an OCTET STRING, or in a BIT STRING. Which of them, releases of PKCS#11 do not agree on.
fn bare<const N: usize>(point: &[u8]) -> Option<[u8; N]> {
    let len = u8::try_from(N).ok()?;
    let (octets, bits) = ([4, len], [3, len + 1, 0]);
    let framed = point.strip_prefix(&octets[..]).or_else(|| point.strip_prefix(&bits[..]));
    framed.and_then(|point| point.try_into().ok()).or_else(|| point.try_into().ok())
}

/// Signs with the key of this label, if it is still the one.
pub(super) fn sign(session: &Session, key: &SigningKey, text: &[u8]) -> Result<Vec<u8>, Fault> {
    let (object, found) = find(session, &key.label)?.ok_or(Fault::KekMissing)?;
    if found != *key {
        let what = format!("another key has the label {:?} by now", key.label);
        return Err(fault::misconfigured("sign", what, "restore the signing key from its backup").into());
    }
    sign_by(session, object, &key.kind, text)
}

fn sign_by(session: &Session, object: ObjectHandle, kind: &SigningKind, text: &[u8]) -> Result<Vec<u8>, Fault> {
    let step = at("C_Sign");
    match kind {
        SigningKind::Ed25519(_) => {
            let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519));
            session.sign(&mechanism, object, text).map_err(step)
        }
        // Over a hash made here: not every token has the mechanism that hashes.
        SigningKind::P256(_) => session.sign(&Mechanism::Ecdsa, object, &Sha256::digest(text)).map_err(step),
        SigningKind::Hmac => session.sign(&Mechanism::Sha256Hmac, object, text).map_err(step),
    }
}

fn destroy(session: &Session, object: ObjectHandle) {
    if let Err(error) = session.destroy_object(object) {
        tracing::debug!(%error, "a signing key that is none could not be destroyed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_read_however_it_is_framed() {
        let point = [7; 32];
        for framed in [point.to_vec(), [&[4, 32][..], &point].concat(), [&[3, 33, 0][..], &point].concat()] {
            assert_eq!(bare(&framed), Some(point), "{framed:?}");
        }
        for other in [&point[..31], &[&[4, 31][..], &point].concat(), &[&[4, 32][..], &point, &[0]].concat(), &[]] {
            assert_eq!(bare::<32>(other), None, "{other:?}");
        }
        let point = [&[4][..], &[1; 64]].concat();
        assert_eq!(bare::<65>(&[&[4, 65][..], &point].concat()).map(Vec::from), Some(point));
    }
}
