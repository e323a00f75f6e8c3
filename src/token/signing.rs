//! Keys of a token that sign: what a trail's checkpoints are signed by.

use super::{KekId, TokenError, Verdict};
use std::fmt;

/// How a key signs, with its public half where it has one.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SigningKind {
    /// Ed25519 (CKM_EDDSA), by the 32 bytes of its public point (RFC 8032). A signature has 64 bytes.
    Ed25519([u8; 32]),
    /// ECDSA on P-256 over SHA-256, by the 65 bytes of its public point, uncompressed (SEC 1, 2.3.3). A signature has 64 bytes: r and s.
    P256([u8; 65]),
    /// HMAC-SHA256 (CKM_SHA256_HMAC), which has no public half: whoever may use the key can make what it makes. 32 bytes.
    Hmac,
}

impl SigningKind {
    /// As people call it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ed25519(_) => "Ed25519",
            Self::P256(_) => "ECDSA P-256",
            Self::Hmac => "HMAC-SHA256",
        }
    }
}

impl fmt::Debug for SigningKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A key of the token that signs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SigningKey {
    /// CKA_LABEL, by which it is found.
    pub label: String,
    /// Its CKA_ID.
    pub id: KekId,
    /// How it signs.
    pub kind: SigningKind,
}

impl SigningKey {
    /// Of a token of one's own.
    pub fn new(label: impl Into<String>, id: KekId, kind: SigningKind) -> Self {
        Self { label: label.into(), id, kind }
    }
}

/// What a token says that has no such keys.
pub(super) fn unable() -> TokenError {
    let (what, remedy) = ("it has no keys that sign", "keep the signing key in another token");
    TokenError::new(Verdict::Misconfigured, "sign", what, remedy)
}
