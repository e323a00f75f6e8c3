//! Attributes read from the token: a key's, and those of the public half that an RSA key wraps with.

use super::{
    super::{
        dates::read_dates,
        fault::{Fault, at},
    },
    Attributes, Public,
};
use cryptoki::{
    error::Error,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};

const STEP: &str = "C_GetAttributeValue of a KEK";

/// What was read of a key that is of a KEK's type.
pub(in super::super) struct Read {
    pub(in super::super) attributes: Attributes,
    /// What wraps: the key itself, or the public half, when that is known.
    pub(in super::super) wrapping: Option<ObjectHandle>,
}

/// Reads a key and its public half; `None` when it is no AES key and no private RSA key.
pub(in super::super) fn read(session: &Session, object: ObjectHandle) -> Result<Option<Read>, Fault> {
    let kind = session.get_attributes(object, &[AttributeType::Class, AttributeType::KeyType]);
    let rsa = match kind.as_deref() {
        Ok([Attribute::Class(ObjectClass::SECRET_KEY), Attribute::KeyType(KeyType::AES)]) => false,
        Ok([Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::KeyType(KeyType::RSA)]) => true,
        // Of a type that the binding has no name for, as vendors' are.
        Ok(_) | Err(Error::NotSupported) => return Ok(None),
        Err(_) => return kind.map(|_| None).map_err(at(STEP)),
    };
    let mut wanted = vec![
        AttributeType::Id,
        AttributeType::Label,
        AttributeType::Sensitive,
        AttributeType::Extractable,
        AttributeType::Decrypt,
        AttributeType::Unwrap,
        AttributeType::Destroyable,
        AttributeType::Modifiable,
        AttributeType::Local,
        AttributeType::AlwaysSensitive,
        AttributeType::NeverExtractable,
    ];
    if rsa {
        wanted.push(AttributeType::Modulus);
    } else {
        wanted.extend([AttributeType::ValueLen, AttributeType::Encrypt, AttributeType::Wrap]);
    }
    let (mut found, mut modulus) = (Attributes { rsa, ..Attributes::default() }, Vec::new());
    let mut told = session.get_attributes(object, &wanted).map_err(at(STEP))?;
    // Apart from what a KEK is refused for: not every token has them all.
    let mut more = vec![AttributeType::Private, AttributeType::Sign, AttributeType::Derive];
    more.extend(if rsa {
        [AttributeType::SignRecover, AttributeType::AlwaysAuthenticate]
    } else {
        [AttributeType::Trusted, AttributeType::SignRecover]
    });
    // Where they cannot be read, nothing is known of them; trouble of the token shows below as well.
    told.extend(session.get_attributes(object, &more).unwrap_or_default());
    for attribute in told {
        match attribute {
            Attribute::Id(id) => found.id = id,
            Attribute::Label(label) => found.label = String::from_utf8_lossy(&label).into_owned(),
            Attribute::Sensitive(value) => found.sensitive = Some(value),
            Attribute::Extractable(value) => found.extractable = Some(value),
            Attribute::Encrypt(value) => found.encrypt = Some(value),
            Attribute::Decrypt(value) => found.decrypt = Some(value),
            Attribute::Wrap(value) => found.wrap = Some(value),
            Attribute::Unwrap(value) => found.unwrap = Some(value),
            Attribute::Destroyable(value) => found.destroyable = Some(value),
            Attribute::Modifiable(value) => found.modifiable = Some(value),
            Attribute::Local(value) => found.local = Some(value),
            Attribute::AlwaysSensitive(value) => found.always_sensitive = Some(value),
            Attribute::NeverExtractable(value) => found.never_extractable = Some(value),
            Attribute::Private(value) => found.private = Some(value),
            Attribute::Sign(value) => found.sign = Some(value),
            Attribute::SignRecover(value) => found.sign_recover = Some(value),
            Attribute::Derive(value) => found.derive = Some(value),
            Attribute::Trusted(value) => found.trusted = Some(value),
            Attribute::AlwaysAuthenticate(value) => found.always_authenticate = Some(value),
            Attribute::ValueLen(len) => found.bits = u32::try_from(*len).unwrap_or(0).saturating_mul(8),
            Attribute::Modulus(bytes) => modulus = number(bytes),
            _ => {}
        }
    }
    // A list with a mechanism that the binding has no name for is not read: that the right one is in it shows with the first call.
    if let Ok(told) = session.get_attributes(object, &[AttributeType::AllowedMechanisms])
        && let Some(Attribute::AllowedMechanisms(allowed)) = told.into_iter().next()
    {
        found.allowed = allowed;
    }
    // As those: nothing rests on them alone.
    for attribute in [AttributeType::CheckValue, AttributeType::UniqueId] {
        match session.get_attributes(object, &[attribute]).unwrap_or_default().pop() {
            Some(Attribute::CheckValue(value)) if !rsa => found.mark = value,
            Some(Attribute::UniqueId(id)) => found.unique_id = id,
            _ => {}
        }
    }
    found.dates = read_dates(None, session, object)?;
    let mut wrapping = Some(object);
    if rsa {
        found.bits = bits(&modulus);
        // One without an address has no half, whatever else has none.
        let (half, public) =
            if found.is_addressable() { public_half(session, &found.id, &modulus)? } else { (None, Public::Missing) };
        (wrapping, found.public, found.mark) = (half, Some(public), modulus);
    }
    Ok(Some(Read { attributes: found, wrapping }))
}

/// The public half of the RSA key with this CKA_ID and modulus, which is empty where the token does not tell it.
fn public_half(session: &Session, id: &[u8], modulus: &[u8]) -> Result<(Option<ObjectHandle>, Public), Fault> {
    let template = [
        Attribute::Token(true),
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Id(id.to_vec()),
    ];
    let half = match session.find_objects(&template).map_err(at("C_FindObjects"))?[..] {
        [] => return Ok((None, Public::Missing)),
        [half] => half,
        _ => return Ok((None, Public::Several)),
    };
    let wanted = [AttributeType::Modulus, AttributeType::PublicExponent, AttributeType::Encrypt, AttributeType::Wrap];
    let (mut encrypt, mut wrap, mut exponent) = (None, None, None);
    for attribute in session.get_attributes(half, &wanted).unwrap_or_default() {
        match attribute {
            Attribute::Modulus(bytes) => {
                let its = number(bytes);
                if !its.is_empty() && !modulus.is_empty() && its != modulus {
                    return Ok((None, Public::AnotherKeys));
                }
            }
            Attribute::PublicExponent(bytes) if bytes.len() <= size_of::<u64>() => {
                exponent = Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
            }
            Attribute::Encrypt(value) => encrypt = Some(value),
            Attribute::Wrap(value) => wrap = Some(value),
            _ => {}
        }
    }
    Ok((Some(half), Public::There { encrypt, wrap, exponent }))
}

/// A big-endian number without the zeros that it is padded with.
pub(super) fn number(mut bytes: Vec<u8>) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    bytes
}

pub(super) fn bits(number: &[u8]) -> u32 {
    let zeros = number.first().map_or(0, |byte| byte.leading_zeros());
    u32::try_from(number.len()).unwrap_or(0).saturating_mul(8).saturating_sub(zeros)
}
