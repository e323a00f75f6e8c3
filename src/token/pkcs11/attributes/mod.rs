//! What a key's attributes say of it as a KEK: refused, half a key, warned of, or sound. All of PKCS#11's are in one table, in
//! [the manual](crate::manual::tokens).

use super::dates::{Dates, Term};
use super::fault;
use crate::token::{KekId, KekInfo, Profile, TokenError, UnaddressableKey};
use cryptoki::mechanism::MechanismType;

mod read;

pub(super) use self::read::{Read, read};

/// An AES KEK has this many bits.
pub(super) const AES_BITS: u32 = 256;
/// An RSA KEK is made with this many bits, and refused with fewer.
pub(super) const RSA_BITS: u32 = 3072;
/// The least exponent that encrypts.
const PUBLIC_EXPONENT_MIN: u64 = 3;

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

#[cfg(test)]
mod tests;
