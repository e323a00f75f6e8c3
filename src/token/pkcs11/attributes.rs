//! What a key's attributes say of it as a KEK: refused, half a key, warned of, or sound. All of PKCS#11's are in one table, in
//! [the manual](crate::manual::tokens).

use super::dates::{Dates, Term, read_dates};
use super::fault::{self, Fault, at};
use crate::token::{KekId, KekInfo, Profile, TokenError, UnaddressableKey};
use cryptoki::{
    error::Error,
    mechanism::MechanismType,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};

/// An AES KEK has this many bits.
pub(super) const AES_BITS: u32 = 256;
/// An RSA KEK is made with this many bits, and refused with fewer.
pub(super) const RSA_BITS: u32 = 3072;
/// The least exponent that encrypts.
const PUBLIC_EXPONENT_MIN: u64 = 3;
const STEP: &str = "C_GetAttributeValue of a KEK";

/// A KEK's objects and the attributes that it is judged by. `None` where the token does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) id: Vec<u8>,
    pub(super) label: String,
    pub(super) rsa: bool,
    pub(super) bits: u32,
    pub(super) sensitive: Option<bool>,
    pub(super) extractable: Option<bool>,
    pub(super) encrypt: Option<bool>,
    pub(super) decrypt: Option<bool>,
    pub(super) wrap: Option<bool>,
    pub(super) unwrap: Option<bool>,
    pub(super) destroyable: Option<bool>,
    pub(super) modifiable: Option<bool>,
    pub(super) local: Option<bool>,
    pub(super) always_sensitive: Option<bool>,
    pub(super) never_extractable: Option<bool>,
    pub(super) private: Option<bool>,
    pub(super) sign: Option<bool>,
    pub(super) sign_recover: Option<bool>,
    pub(super) derive: Option<bool>,
    pub(super) trusted: Option<bool>,
    pub(super) always_authenticate: Option<bool>,
    /// CKA_ALLOWED_MECHANISMS; empty where the token limits nothing, or does not say.
    pub(super) allowed: Vec<MechanismType>,
    /// What wraps by an RSA key; `None` for AES.
    pub(super) public: Option<Public>,
    /// CKA_MODULUS, or CKA_CHECK_VALUE of an AES key: what goes with its value alone. Empty where the token does not tell.
    pub(super) mark: Vec<u8>,
    /// CKA_UNIQUE_ID.
    pub(super) unique_id: Vec<u8>,
    pub(super) dates: Dates,
}

/// The public half of an RSA key: the one public key of that type that has its CKA_ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Public {
    Missing,
    /// Which one is meant cannot be known.
    Several,
    /// Its modulus is another one: what it wraps, the private key never unwraps.
    AnotherKeys,
    There {
        encrypt: Option<bool>,
        wrap: Option<bool>,
        /// `None` where it is not told, or too big for a number.
        exponent: Option<u64>,
    },
}

fn on(flag: Option<bool>) -> bool {
    flag == Some(true)
}

fn off(flag: Option<bool>) -> bool {
    flag == Some(false)
}

impl Attributes {
    /// The profile that type and usage allow. A disabled key keeps the profile that its other half shows.
    pub(super) fn profile(&self) -> Option<Profile> {
        let crypts = on(self.encrypt) || on(self.decrypt);
        let wraps = on(self.wrap) || on(self.unwrap);
        match (self.rsa, crypts, wraps) {
            // Its other half is another object, so that a disabled private key shows no usage at all.
            (true, _, false) => Some(Profile::RsaOaepSha256),
            (false, true, false) => Some(Profile::AesGcm),
            (false, false, true) => Some(Profile::AesKw),
            _ => None,
        }
    }

    /// Why keyleash refuses the key, attribute named.
    pub(super) fn refusal(&self) -> Option<String> {
        if self.extractable != Some(false) {
            return Some(said("CKA_EXTRACTABLE", self.extractable, "the token could give the KEK away"));
        }
        if self.sensitive != Some(true) {
            return Some(said("CKA_SENSITIVE", self.sensitive, "the token could show the KEK"));
        }
        self.two_uses().or_else(|| self.unusable()).or_else(|| self.dates.refusal()).or_else(|| self.too_weak())
    }

    fn two_uses(&self) -> Option<String> {
        let other = match (on(self.wrap), on(self.unwrap)) {
            (true, _) => "CKA_WRAP",
            (_, true) => "CKA_UNWRAP",
            _ => return None,
        };
        if on(self.decrypt) {
            return Some(format!(
                "CKA_DECRYPT and {other} are both true: a key that wraps and decrypts gives every key of the token away"
            ));
        }
        on(self.encrypt).then(|| {
            format!(
                "CKA_ENCRYPT and {other} are both true: counter modes decrypt by encrypting, and a key that wraps and decrypts gives \
                 every key of the token away"
            )
        })
    }

    /// What keeps every call from working, and would look like a token that is away, or says no.
    fn unusable(&self) -> Option<String> {
        if on(self.always_authenticate) {
            return Some("CKA_ALWAYS_AUTHENTICATE is true: each unwrap would need a login of its own".into());
        }
        let profile = self.profile()?;
        let (mechanism, name) = match profile {
            Profile::AesGcm => (MechanismType::AES_GCM, "CKM_AES_GCM"),
            Profile::AesKw => (MechanismType::AES_KEY_WRAP, "CKM_AES_KEY_WRAP"),
            Profile::RsaOaepSha256 => (MechanismType::RSA_PKCS_OAEP, "CKM_RSA_PKCS_OAEP"),
        };
        let lacks = !self.allowed.is_empty() && !self.allowed.contains(&mechanism);
        lacks.then(|| format!("CKA_ALLOWED_MECHANISMS does not have {name}, which {profile} needs"))
    }

    fn too_weak(&self) -> Option<String> {
        if let Some(Public::There { exponent: Some(exponent), .. }) = self.public
            && exponent < PUBLIC_EXPONENT_MIN
        {
            return Some(format!("CKA_PUBLIC_EXPONENT is {exponent}: it encrypts nothing"));
        }
        match (self.rsa, self.bits) {
            (false, AES_BITS) => None,
            (false, bits) => Some(format!("CKA_VALUE_LEN is {} bytes, a KEK has {}", bits / 8, AES_BITS / 8)),
            (true, bits) if bits < RSA_BITS => {
                Some(format!("CKA_MODULUS has {bits} bits, a KEK has {RSA_BITS} or more"))
            }
            (true, _) => None,
        }
    }

    /// Why it wraps nothing although it unwraps, attribute named.
    pub(super) fn half(&self) -> Option<String> {
        let switched_off =
            |what: &str| Some(format!("{what} is false: it unwraps, and wraps nothing new; switch it on"));
        match self.public {
            None if on(self.decrypt) && off(self.encrypt) => switched_off("CKA_ENCRYPT"),
            None if on(self.unwrap) && off(self.wrap) => switched_off("CKA_WRAP"),
            Some(Public::There { encrypt: Some(false), .. }) => switched_off("CKA_ENCRYPT of its public half"),
            Some(Public::Missing) => Some(
                "its public half is not in the token: import the public key (CKO_PUBLIC_KEY), with the same CKA_ID".into(),
            ),
            Some(Public::Several) => Some(
                "several public keys of the token have its CKA_ID: delete those that are not its own, or give them another CKA_ID"
                    .into(),
            ),
            Some(Public::AnotherKeys) => Some(
                "the public key with its CKA_ID has another CKA_MODULUS and belongs to another key: give that one another CKA_ID, \
                 and import its own"
                    .into(),
            ),
            None | Some(Public::There { .. }) => None,
        }
    }

    /// What tells that this is another key than `known`, by name: an attribute that nobody can change on a key. One that came back from a
    /// backup may differ in the last ones; so this says nothing of a key that unwraps what the known one wrapped.
    pub(super) fn other_than(&self, known: &Self) -> Option<&'static str> {
        let told = |one: &[u8], other: &[u8]| !one.is_empty() && !other.is_empty() && one != other;
        let turned = |one: Option<bool>, other: Option<bool>| one.zip(other).is_some_and(|(one, other)| one != other);
        let (value, size) =
            if known.rsa { ("CKA_MODULUS", "CKA_MODULUS") } else { ("CKA_CHECK_VALUE", "CKA_VALUE_LEN") };
        [
            ("CKA_KEY_TYPE", self.rsa != known.rsa),
            (value, told(&self.mark, &known.mark)),
            (size, self.bits.min(known.bits) > 0 && self.bits != known.bits),
            ("CKA_LOCAL", turned(self.local, known.local)),
            ("CKA_ALWAYS_SENSITIVE", turned(self.always_sensitive, known.always_sensitive)),
            ("CKA_NEVER_EXTRACTABLE", turned(self.never_extractable, known.never_extractable)),
            ("CKA_UNIQUE_ID", told(&self.unique_id, &known.unique_id)),
        ]
        .into_iter()
        .find_map(|(attribute, differs)| differs.then_some(attribute))
    }

    /// What tells that somebody outside of the token may have the key.
    fn known_outside(&self) -> Option<String> {
        let told = [
            ("CKA_LOCAL", self.local),
            ("CKA_NEVER_EXTRACTABLE", self.never_extractable),
            ("CKA_ALWAYS_SENSITIVE", self.always_sensitive),
        ];
        let (attribute, _) = told.into_iter().find(|(_, value)| off(*value))?;
        Some(format!("{attribute} is false: it was imported, or could once be read"))
    }

    /// What weakens a promise without breaking it, attribute named.
    fn warnings(&self) -> Vec<String> {
        let public_wraps = matches!(self.public, Some(Public::There { wrap: Some(true), .. }));
        let signs = if self.rsa {
            "raw signing decrypts, so that a switched-off CKA_DECRYPT keeps nobody out who has the PIN"
        } else {
            "a MAC by it shows what the cipher makes of chosen bytes, and with that what it wrapped"
        };
        let known = [
            (
                off(self.private),
                "CKA_PRIVATE is false",
                "the token lets it be used without a login, so that neither the PIN nor a change of it keeps anybody out",
            ),
            (
                off(self.modifiable),
                "CKA_MODIFIABLE is false",
                if off(self.destroyable) {
                    "and so is CKA_DESTROYABLE: nobody can disable it or destroy it but with the whole token"
                } else {
                    "nobody can disable it: to revoke it is to destroy it"
                },
            ),
            (on(self.sign), "CKA_SIGN is true", signs),
            (on(self.sign_recover), "CKA_SIGN_RECOVER is true", signs),
            (
                on(self.derive),
                "CKA_DERIVE is true",
                "keys that are derived by it show what the cipher makes of chosen bytes, and with that what it wrapped, also while \
                 CKA_DECRYPT is off",
            ),
            (
                on(self.trusted) && self.profile() == Some(Profile::AesKw),
                "CKA_TRUSTED is true",
                "whoever has the PIN takes keys out of the token by it that only a trusted key may wrap",
            ),
            (
                public_wraps,
                "CKA_WRAP of its public half is true",
                "whoever has the PIN takes other keys out of the token, wrapped by the one half and decrypted by the other",
            ),
        ];
        let known = known.into_iter().filter(|(is_so, ..)| *is_so).map(|(_, what, why)| format!("{what}: {why}"));
        self.known_outside().into_iter().chain(known).collect()
    }

    /// True where records can name it.
    pub(super) fn is_addressable(&self) -> bool {
        (1..=KekId::BYTES_MAX).contains(&self.id.len())
    }

    /// Of a key that no record can name.
    pub(super) fn unaddressable(self) -> UnaddressableKey {
        let why = match self.id.len() {
            0 => "it has no CKA_ID".into(),
            bytes => format!("its CKA_ID has {bytes} bytes"),
        };
        let kind = if self.rsa { "RSA" } else { "AES" };
        UnaddressableKey { label: self.label, kind, bits: self.bits, why }
    }

    pub(super) fn info(self, today: u32) -> Result<KekInfo, TokenError> {
        let profile = self.profile();
        let usable = if profile == Some(Profile::AesKw) { self.unwrap } else { self.decrypt };
        let (term, mut warnings) = (self.dates.term(today), self.warnings());
        if let Term::Over(why) | Term::Unknown(why) = &term {
            warnings.push(why.clone());
        }
        Ok(KekInfo {
            enabled: on(usable) && term == Term::Runs,
            refused: self.refusal(),
            half: self.half(),
            known_outside: self.known_outside(),
            warnings,
            id: KekId::new(self.id)
                .map_err(|error| fault::error(crate::token::Verdict::Misconfigured, "find KEK", error.to_string()))?,
            label: self.label,
            profile,
            bits: self.bits,
            destroyable: self.destroyable,
            modifiable: self.modifiable,
        })
    }
}

fn said(attribute: &str, value: Option<bool>, consequence: &str) -> String {
    match value {
        Some(value) => format!("{attribute} is {value}: {consequence}"),
        None => format!("the token does not tell {attribute}: {consequence}"),
    }
}

/// What was read of a key that is of a KEK's type.
pub(super) struct Read {
    pub(super) attributes: Attributes,
    /// What wraps: the key itself, or the public half, when that is known.
    pub(super) wrapping: Option<ObjectHandle>,
}

/// Reads a key and its public half; `None` when it is no AES key and no private RSA key.
pub(super) fn read(session: &Session, object: ObjectHandle) -> Result<Option<Read>, Fault> {
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
fn number(mut bytes: Vec<u8>) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    bytes
}

fn bits(number: &[u8]) -> u32 {
    let zeros = number.first().map_or(0, |byte| byte.leading_zeros());
    u32::try_from(number.len()).unwrap_or(0).saturating_mul(8).saturating_sub(zeros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Attributes {
        Attributes {
            id: vec![1],
            bits: 256,
            sensitive: Some(true),
            extractable: Some(false),
            encrypt: Some(true),
            decrypt: Some(true),
            wrap: Some(false),
            unwrap: Some(false),
            ..Attributes::default()
        }
    }

    fn sound_rsa() -> Attributes {
        let public = Public::There { encrypt: Some(true), wrap: Some(false), exponent: Some(65537) };
        Attributes { rsa: true, bits: 3072, encrypt: None, wrap: None, public: Some(public), ..sound() }
    }

    fn sound_kw() -> Attributes {
        let (no, yes) = (Some(false), Some(true));
        Attributes { encrypt: no, decrypt: no, wrap: yes, unwrap: yes, ..sound() }
    }

    #[test]
    fn a_kek_that_could_leave_the_token_is_refused_with_the_attribute_named() {
        for good in [sound(), sound_rsa(), sound_kw()] {
            assert_eq!((good.refusal(), good.half(), good.warnings()), (None, None, vec![]));
        }
        let exponent = |exponent| Some(Public::There { encrypt: Some(true), wrap: None, exponent: Some(exponent) });
        let cases = [
            (Attributes { extractable: Some(true), ..sound() }, "CKA_EXTRACTABLE is true"),
            (Attributes { extractable: None, ..sound() }, "CKA_EXTRACTABLE"),
            (Attributes { sensitive: Some(false), ..sound() }, "CKA_SENSITIVE is false"),
            (Attributes { wrap: Some(true), ..sound() }, "CKA_DECRYPT and CKA_WRAP"),
            (Attributes { unwrap: Some(true), ..sound() }, "CKA_DECRYPT and CKA_UNWRAP"),
            (Attributes { encrypt: Some(true), ..sound_kw() }, "CKA_ENCRYPT and CKA_WRAP"),
            (Attributes { bits: 128, ..sound() }, "CKA_VALUE_LEN is 16"),
            (Attributes { bits: 2048, ..sound_rsa() }, "CKA_MODULUS has 2048"),
            (Attributes { public: exponent(1), ..sound_rsa() }, "CKA_PUBLIC_EXPONENT is 1"),
            (Attributes { always_authenticate: Some(true), ..sound_rsa() }, "CKA_ALWAYS_AUTHENTICATE is true"),
            (Attributes { allowed: vec![MechanismType::AES_CBC], ..sound() }, "CKM_AES_GCM"),
            (Attributes { allowed: vec![MechanismType::AES_GCM], ..sound_kw() }, "CKM_AES_KEY_WRAP"),
        ];
        for (attributes, words) in cases {
            let refusal = attributes.refusal().expect(words);
            assert!(refusal.contains(words), "{refusal}");
        }
        let allowed = vec![MechanismType::AES_CBC, MechanismType::AES_GCM];
        assert_eq!(Attributes { allowed, ..sound() }.refusal(), None);
    }

    #[test]
    fn another_key_is_told_by_what_nobody_can_change_on_one() {
        let known = Attributes { mark: vec![1], local: Some(true), unique_id: vec![7], ..sound() };
        let owners =
            Attributes { decrypt: Some(false), encrypt: Some(false), label: "another".into(), ..known.clone() };
        assert_eq!(owners.other_than(&known), None, "what an owner may change");
        let silent = Attributes { mark: vec![], local: None, unique_id: vec![], ..known.clone() };
        assert_eq!((silent.other_than(&known), known.other_than(&silent)), (None, None), "what a token does not tell");
        let cases = [
            (Attributes { rsa: true, ..known.clone() }, "CKA_KEY_TYPE"),
            (Attributes { mark: vec![2], ..known.clone() }, "CKA_CHECK_VALUE"),
            (Attributes { bits: 128, ..known.clone() }, "CKA_VALUE_LEN"),
            (Attributes { local: Some(false), ..known.clone() }, "CKA_LOCAL"),
            (Attributes { unique_id: vec![8], ..known.clone() }, "CKA_UNIQUE_ID"),
        ];
        cases.iter().for_each(|(other, attribute)| assert_eq!(other.other_than(&known), Some(*attribute)));
        let rsa = Attributes { mark: vec![1], ..sound_rsa() };
        assert_eq!(Attributes { mark: vec![2], ..rsa.clone() }.other_than(&rsa), Some("CKA_MODULUS"));
    }

    #[test]
    fn half_a_key_is_told_with_the_half_named() {
        let without = |public| Attributes { public: Some(public), ..sound_rsa() };
        let disabled_half = Public::There { encrypt: Some(false), wrap: None, exponent: None };
        let cases = [
            (Attributes { encrypt: Some(false), ..sound() }, "CKA_ENCRYPT is false"),
            (Attributes { wrap: Some(false), ..sound_kw() }, "CKA_WRAP is false"),
            (without(disabled_half), "CKA_ENCRYPT of its public half is false"),
            (without(Public::Missing), "is not in the token"),
            (without(Public::Several), "several public keys"),
            (without(Public::AnotherKeys), "another CKA_MODULUS"),
        ];
        for (attributes, words) in cases {
            let profile = attributes.profile();
            let info = attributes.info(20260101).unwrap();
            assert!(info.half.as_ref().is_some_and(|half| half.contains(words)), "{words}: {info:?}");
            assert_eq!((info.refused, info.enabled), (None, true), "{words}: what it wrapped is opened");
            assert!(profile.is_some(), "{words}");
        }
        // Both are off: an operator disabled it.
        let disabled = Attributes { encrypt: Some(false), decrypt: Some(false), ..sound() };
        assert_eq!(disabled.half(), None);
    }

    #[test]
    fn what_weakens_a_promise_is_warned_of_with_the_attribute_named() {
        let (no, yes) = (Some(false), Some(true));
        let wrapping_half = Some(Public::There { encrypt: yes, wrap: yes, exponent: None });
        let cases = [
            (Attributes { private: no, ..sound() }, "CKA_PRIVATE is false"),
            (Attributes { modifiable: no, ..sound() }, "CKA_MODIFIABLE is false"),
            (Attributes { sign: yes, ..sound() }, "CKA_SIGN is true"),
            (Attributes { sign: yes, ..sound_rsa() }, "CKA_SIGN is true"),
            (Attributes { sign_recover: yes, ..sound_rsa() }, "CKA_SIGN_RECOVER is true"),
            (Attributes { derive: yes, ..sound() }, "CKA_DERIVE is true"),
            (Attributes { trusted: yes, ..sound_kw() }, "CKA_TRUSTED is true"),
            (Attributes { public: wrapping_half, ..sound_rsa() }, "CKA_WRAP of its public half is true"),
            (Attributes { local: no, ..sound() }, "CKA_LOCAL is false"),
            (Attributes { never_extractable: no, ..sound() }, "CKA_NEVER_EXTRACTABLE is false"),
            (Attributes { always_sensitive: no, ..sound() }, "CKA_ALWAYS_SENSITIVE is false"),
        ];
        for (attributes, words) in cases {
            let info = attributes.info(20260101).unwrap();
            assert!(matches!(&info.warnings[..], [one] if one.starts_with(words)), "{words}: {info:?}");
            assert_eq!((info.refused, info.half), (None, None), "{words}");
        }
    }

    #[test]
    fn a_disabled_kek_keeps_its_profile() {
        let disabled = Attributes { decrypt: Some(false), ..sound() };
        assert_eq!(disabled.profile(), Some(Profile::AesGcm));
        assert!(!disabled.info(20260101).unwrap().enabled);
        assert!(sound().info(20260101).unwrap().enabled);
        assert_eq!(Attributes { unwrap: Some(false), ..sound_kw() }.profile(), Some(Profile::AesKw));
    }

    #[test]
    fn a_kek_is_denied_before_its_first_and_after_its_last_day() {
        let dates = Dates::of(b"20260110", b"20260120");
        assert!(matches!(dates.term(20260109), Term::Over(why) if why.contains("CKA_START_DATE")));
        assert_eq!(dates.term(20260110), Term::Runs);
        assert_eq!(dates.term(20260120), Term::Runs);
        assert!(matches!(dates.term(20260121), Term::Over(why) if why.contains("CKA_END_DATE")));
        let over = Attributes { dates, ..sound() }.info(20260121).unwrap();
        assert!(!over.enabled && over.warnings[0].contains("CKA_END_DATE 20260120 is past"), "{over:?}");
        assert_eq!(Dates::default().term(19700101), Term::Runs);
    }

    #[test]
    fn a_date_is_told_from_none_and_from_one_that_nobody_can_read() {
        for none in [&b""[..], b"\0\0\0\0\0\0\0\0", b"        ", b"00000000"] {
            assert_eq!(Dates::of(none, none), Dates::default());
        }
        for unreadable in [&b"2026-1-1"[..], b"2026011", b"202601101", b"2026 1 1"] {
            let dates = Dates::of(b"", unreadable);
            assert!(dates.refusal().is_some_and(|why| why.contains("CKA_END_DATE")), "{dates:?}");
            assert!(Attributes { dates, ..sound() }.refusal().is_some());
        }
    }

    #[test]
    fn bits_count_from_the_first_one() {
        assert_eq!(bits(&number(vec![0, 0x80, 0])), 16);
        assert_eq!(bits(&number(vec![0x01, 0])), 9);
        assert_eq!(bits(&number(vec![0, 0])), 0);
    }
}
