//! Keys that sign notes, as who verifies them knows them: a name, an id, and what a public key is.

use super::{
    base64,
    note::{Signature, is_key_name},
};
use crate::error::{Error, Result};
use hmac::{Hmac, KeyInit, Mac as _};
use p256::ecdsa::signature::Verifier as _;
use sha2::{Digest, Sha256};
use std::{fmt, sync::Arc};
use subtle::ConstantTimeEq;

/// Longest name of a key, in bytes.
const KEY_NAME_BYTES_MAX: usize = 256;
/// Longest CKA_ID of a key, in bytes.
const CKA_ID_BYTES_MAX: usize = 64;
/// The SubjectPublicKeyInfo of a point of P-256 in DER: these bytes, and then the point, uncompressed (SEC 1, 2.3.3).
const SPKI_P256: [u8; 26] =
    *b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
/// Bytes of such a point.
pub const POINT_BYTES: usize = 65;
/// The type of HMACs: C2SP has none, and leaves 0xff for what names itself at more length.
const HMAC_TYPE: &[u8] = b"\xffkeyleash.hmac-sha256.v1";

/// The first bytes of a hash over a key, by which a signature says which of a name's keys made it. It proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// A key that verifies notes, written as `NAME+ID+BASE64`. Of an HMAC's key it says which it is, and verifies nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vkey {
    name: String,
    id: KeyId,
    key: Key,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Ed25519(ed25519_dalek::VerifyingKey),
    P256(p256::ecdsa::VerifyingKey),
    Hmac(Vec<u8>),
}

impl Key {
    /// The type, and the key as that has it.
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => [&[1][..], key.as_bytes()].concat(),
            Self::P256(key) => [&[2][..], &SPKI_P256, key.to_sec1_point(false).as_bytes()].concat(),
            Self::Hmac(cka_id) => [HMAC_TYPE, cka_id].concat(),
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        if let Some(cka_id) = bytes.strip_prefix(HMAC_TYPE) {
            return (1..=CKA_ID_BYTES_MAX).contains(&cka_id.len()).then(|| Self::Hmac(cka_id.to_vec()));
        }
        match bytes.split_first()? {
            (1, key) => {
                let key = ed25519_dalek::VerifyingKey::from_bytes(key.try_into().ok()?).ok()?;
                // Under a key of small order everything is signed.
                (!key.is_weak()).then_some(Self::Ed25519(key))
            }
            (2, spki) => {
                let point = spki.strip_prefix(&SPKI_P256).filter(|point| point.len() == POINT_BYTES)?;
                Some(Self::P256(p256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?))
            }
            _ => None,
        }
    }

    fn id(&self, name: &str) -> KeyId {
        let encoded = self.encode();
        let hash = match self {
            // The type of ECDSA has its own way.
            Self::P256(_) => Sha256::digest(encoded.get(1..).unwrap_or_default()),
            _ => Sha256::new().chain_update(name).chain_update("\n").chain_update(encoded).finalize(),
        };
        let mut id = [0; 4];
        id.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        KeyId(id)
    }
}

impl Vkey {
    fn new(name: &str, encoded: &[u8]) -> Option<Self> {
        let key = Key::decode(encoded)?;
        (is_key_name(name) && name.len() <= KEY_NAME_BYTES_MAX).then(|| Self {
            name: name.to_owned(),
            id: key.id(name),
            key,
        })
    }

    fn made(name: &str, encoded: &[u8]) -> Result<Self> {
        Self::new(name, encoded).ok_or_else(|| {
            Error::Invalid(format!(
                "{name:?} and this public key make no key that verifies: the one or the other is none"
            ))
        })
    }

    /// An Ed25519 key, of the 32 bytes of its point (RFC 8032).
    ///
    /// # Errors
    /// [`Error::Invalid`] where they are none, or a name that no key has.
    pub fn ed25519(name: &str, point: &[u8; 32]) -> Result<Self> {
        Self::made(name, &[&[1][..], point].concat())
    }

    /// A key of ECDSA on P-256, of the 65 bytes of its uncompressed point (SEC 1, 2.3.3).
    ///
    /// # Errors
    /// [`Error::Invalid`] where they are none, or a name that no key has.
    pub fn p256(name: &str, point: &[u8; POINT_BYTES]) -> Result<Self> {
        Self::made(name, &[&[2][..], &SPKI_P256, point].concat())
    }

    /// A key of HMAC-SHA256, of the 1 to 64 bytes of its CKA_ID in its token.
    ///
    /// # Errors
    /// [`Error::Invalid`] where they are none, or a name that no key has.
    pub fn hmac(name: &str, cka_id: &[u8]) -> Result<Self> {
        Self::made(name, &[HMAC_TYPE, cka_id].concat())
    }

    /// Reads one as it is written.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it is none, or was mangled.
    pub fn parse(text: &str) -> Result<Self> {
        let parse = || {
            let mut parts = text.split('+');
            let (name, id) = (parts.next()?, parts.next()?);
            // Base64 may have a `+` in it.
            let encoded = text.get(name.len() + id.len() + 2..)?;
            let vkey = Self::new(name, &base64::decode(encoded)?)?;
            (vkey.id.to_string() == id).then_some(vkey)
        };
        parse().ok_or_else(|| {
            Error::Invalid(format!(
                "{text:?} is no public key of a trail: it is one line, NAME+ID+BASE64, as `keyleash audit key show` prints it"
            ))
        })
    }

    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key's id.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// Whether anybody who has it can verify with it, without a token.
    pub const fn is_public(&self) -> bool {
        !matches!(self.key, Key::Hmac(_))
    }

    /// The signature of a note, of what a token gives for its text: by CKM_EDDSA 64 bytes, by CKM_ECDSA_SHA256 the 64 of r and s, by
    /// CKM_SHA256_HMAC 32.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it is none of this kind of key. Whether it is right is not looked at.
    pub fn signature(&self, from_token: &[u8]) -> Result<Signature> {
        let bytes = match &self.key {
            Key::Ed25519(_) if from_token.len() == ed25519_dalek::SIGNATURE_LENGTH => Some(from_token.to_vec()),
            Key::P256(_) => {
                p256::ecdsa::Signature::from_slice(from_token).ok().map(|raw| raw.to_der().as_bytes().to_vec())
            }
            Key::Hmac(_) if from_token.len() == Sha256::output_size() => Some(from_token.to_vec()),
            _ => None,
        };
        let bytes = bytes.ok_or_else(|| {
            Error::Invalid(format!(
                "what the token gave as a signature of key {self} is none: {} bytes",
                from_token.len()
            ))
        })?;
        Ok(Signature { name: self.name.clone(), id: self.id, bytes })
    }
}

impl fmt::Display for Vkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}+{}", self.name, self.id, base64::encode(&self.key.encode()))
    }
}

/// Makes the HMACs of a key that stays where it is: in its token.
pub trait Mac: Send + Sync + fmt::Debug {
    /// HMAC-SHA256 of a text.
    ///
    /// # Errors
    /// What the token says.
    fn mac(&self, text: &[u8]) -> Result<[u8; 32]>;
}

/// A key in memory, for tests and tools that have it.
impl Mac for zeroize::Zeroizing<Vec<u8>> {
    fn mac(&self, text: &[u8]) -> Result<[u8; 32]> {
        let mac = Hmac::<Sha256>::new_from_slice(self).map_err(|_| Error::Invalid("no key of an HMAC".into()))?;
        Ok(mac.chain_update(text).finalize().into_bytes().into())
    }
}

/// What comes of verifying one signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    Bad,
    NeedsToken,
}

/// A key that is trusted.
#[derive(Debug, Clone)]
pub(super) struct Trusted {
    vkey: Vkey,
    mac: Option<Arc<dyn Mac>>,
}

impl Trusted {
    pub(super) fn verify(&self, text: &[u8], signature: &[u8]) -> Result<Verdict> {
        let is_good = match (&self.vkey.key, &self.mac) {
            (Key::Ed25519(key), _) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(text, &signature).is_ok()),
            (Key::P256(key), _) => {
                p256::ecdsa::Signature::from_der(signature).is_ok_and(|signature| key.verify(text, &signature).is_ok())
            }
            (Key::Hmac(_), Some(mac)) => bool::from(mac.mac(text)?.ct_eq(signature)),
            (Key::Hmac(_), None) => return Ok(Verdict::NeedsToken),
        };
        Ok(if is_good { Verdict::Good } else { Verdict::Bad })
    }
}

/// The keys that are trusted: usually one, more where it was replaced.
#[derive(Debug, Clone, Default)]
pub struct Keys(Vec<Trusted>);

impl Keys {
    /// None yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Trusts a key too.
    #[must_use]
    pub fn with(mut self, vkey: Vkey) -> Self {
        self.0.push(Trusted { vkey, mac: None });
        self
    }

    /// Trusts a key of HMACs too, that this makes.
    #[must_use]
    pub fn with_mac(mut self, vkey: Vkey, mac: Arc<dyn Mac>) -> Self {
        self.0.push(Trusted { vkey, mac: Some(mac) });
        self
    }

    /// Whether there are none, which verifies nothing.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that are trusted.
    pub fn iter(&self) -> impl Iterator<Item = &Vkey> {
        self.0.iter().map(|trusted| &trusted.vkey)
    }

    pub(super) fn find(&self, name: &str, id: KeyId) -> impl Iterator<Item = &Trusted> {
        self.0.iter().filter(move |trusted| trusted.vkey.name == name && trusted.vkey.id == id)
    }
}
