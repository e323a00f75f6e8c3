//! The token: where KEKs live and AEKs are wrapped and unwrapped.
//!
//! [`Token`] is the seam. [`pkcs11`] stands on a real PKCS#11 module; [`scripted`] plays schedules that no
//! real token can be made to follow, and is held to the real one's behaviour by the same conformance tests.

use crate::{
    clock::Instant,
    error::{Corrupt, Error, Refusal, Result},
    secret::Aek,
};
use async_trait::async_trait;
use std::{fmt, str::FromStr, time::Duration};

pub(crate) mod budget;
mod line;
pub mod pkcs11;
pub mod scripted;
pub(crate) mod seats;
mod signing;
pub mod unwraps;

pub use self::signing::{SigningKey, SigningKind};

/// Begins the CKA_LABEL of every KEK that keyleash makes; the rest is `NAME/VERSION`.
pub(crate) const LABEL_PREFIX: &str = "keyleash/";

/// How an AEK is wrapped in the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Profile {
    /// C_Encrypt with CKM_AES_GCM under an AES-256 KEK; the binding is the additional data, the tag has 128 bits.
    AesGcm,
    /// C_Encrypt with CKM_RSA_PKCS_OAEP, SHA-256 and MGF1-SHA256, under an RSA-3072 KEK; no label.
    RsaOaepSha256,
    /// C_WrapKey with CKM_AES_KEY_WRAP (RFC 3394, mechanism 0x2109) under an AES-256 KEK; 40 bytes.
    AesKw,
}

impl Profile {
    /// Every profile, the default first.
    pub const ALL: [Self; 3] = [Self::AesGcm, Self::RsaOaepSha256, Self::AesKw];

    /// The name in configurations, records and the CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AesGcm => "aes-gcm",
            Self::RsaOaepSha256 => "rsa-oaep-sha256",
            Self::AesKw => "aes-kw",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|profile| profile.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|profile| profile.name()).collect();
            Error::Invalid(format!("unknown profile {name:?}: use one of {}", names.join(", ")))
        })
    }
}

/// CKA_ID of a KEK, by which a record names it: 1 to 64 bytes, unique in the token.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KekId(Vec<u8>);

impl KekId {
    /// Longest CKA_ID that keyleash takes, in bytes.
    pub const BYTES_MAX: usize = 64;

    /// Checks and takes an id.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is empty or longer than 64 bytes.
    pub fn new(id: impl Into<Vec<u8>>) -> Result<Self> {
        let id = id.into();
        if id.is_empty() || id.len() > Self::BYTES_MAX {
            return Err(Error::Invalid(format!(
                "a CKA_ID has 1 to {} bytes, this one has {}",
                Self::BYTES_MAX,
                id.len()
            )));
        }
        Ok(Self(id))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KekId({self})")
    }
}

/// A KEK as the token addresses it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KekHandle {
    /// Its CKA_ID.
    pub id: KekId,
    /// How it wraps.
    pub profile: Profile,
}

/// SHA-256 of the wrapping context (`store::record` computes it): additional data where the mechanism takes any.
pub type Binding = [u8; 32];

/// A wrapped AEK as the token gave it: opaque bytes of any length within the limits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrapped {
    /// What the mechanism needs beside the ciphertext: the IV of aes-gcm as the token reported it, else empty.
    pub iv: Vec<u8>,
    /// The ciphertext (with the tag for aes-gcm).
    pub bytes: Vec<u8>,
}

impl Wrapped {
    /// Longest IV, in bytes.
    pub const IV_BYTES_MAX: usize = 64;
    /// Longest wrapped AEK, in bytes: RSA-8192.
    pub const BYTES_MAX: usize = 1024;
}

/// What a new KEK shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KekSpec {
    /// CKA_LABEL, at most 128 bytes.
    pub label: String,
    /// How it wraps; fixes type and size: AES-256, or RSA-3072.
    pub profile: Profile,
    /// CKA_DESTROYABLE: only when asked, so that deletion cannot happen by accident.
    pub destroyable: bool,
}

/// A KEK that is in the token, with the attributes that keyleash judges it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KekInfo {
    /// Its CKA_ID.
    pub id: KekId,
    /// CKA_LABEL, lossily as text.
    pub label: String,
    /// The profile that its type and usage allow; `None` when they fit none.
    pub profile: Option<Profile>,
    /// Key size in bits.
    pub bits: u32,
    /// CKA_DESTROYABLE; `None` where the token does not say.
    pub destroyable: Option<bool>,
    /// CKA_MODIFIABLE; `None` where the token does not say.
    pub modifiable: Option<bool>,
    /// False when CKA_DECRYPT (or CKA_UNWRAP for aes-kw) is off: an operator disabled it.
    pub enabled: bool,
    /// Why keyleash refuses it, attribute named (extractable, decrypts and wraps, …); `None` when it is sound.
    pub refused: Option<String>,
    /// Why it unwraps and cannot wrap, attribute named (CKA_ENCRYPT off, a public half that is missing, double or another key's). What it
    /// wrapped is opened; nothing new is wrapped by it. `None` when it is whole, or disabled.
    pub half: Option<String>,
    /// What weakens a promise without breaking it, attribute named (CKA_PRIVATE off, CKA_SIGN on, …), for whoever owns the key;
    /// [`crate::manual::tokens`] says why each. Empty when nothing does.
    pub warnings: Vec<String>,
    /// What tells that somebody outside of the token may have the key, attribute named: it was imported, or could once be
    /// read. `None` when nothing does. No reason to refuse a key that an operator named; one to not take it unasked.
    pub known_outside: Option<String>,
}

/// A key that could be a KEK but for its CKA_ID, by which records name KEKs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnaddressableKey {
    /// CKA_LABEL, lossily as text.
    pub label: String,
    /// `AES` or `RSA`.
    pub kind: &'static str,
    /// Key size in bits.
    pub bits: u32,
    /// What is wrong with its CKA_ID.
    pub why: String,
}

/// What the token says about itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TokenInfo {
    /// Module path and library description.
    pub module: String,
    /// Slot id; changes when SoftHSM's tokens do.
    pub slot: u64,
    /// CKA token label, trimmed.
    pub label: String,
    /// Serial number, trimmed.
    pub serial: String,
    /// Manufacturer and model, trimmed.
    pub model: String,
    /// Mechanism names as PKCS#11 writes them (`CKM_AES_GCM`), sorted. A list proves nothing: see [`Token::probe`].
    pub mechanisms: Vec<String>,
}

/// A whole round trip that worked: create (or use) a key, wrap, unwrap, compare, and a corrupt wrapping refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Median time of one wrap.
    pub wrap: Duration,
    /// Median time of one unwrap.
    pub unwrap: Duration,
}

/// The workers' health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Workers {
    /// Workers that take calls.
    pub alive: usize,
    /// Workers abandoned in a call that hangs.
    pub hung: usize,
    /// How many may hang before the process must be restarted.
    pub hung_max: usize,
}

impl Workers {
    /// True when only a restart of the process helps: nobody is left to take a call.
    pub const fn restart_needed(self) -> bool {
        self.alive == 0
    }
}

/// What a failed token call means. Never confuse [`Verdict::Denied`] with [`Verdict::Unreachable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// The token says no.
    Denied,
    /// Another key stands in the KEK's place, under its CKA_ID: a denial, and told as what it is besides.
    Replaced,
    /// The token does not answer, or answers that it cannot.
    Unreachable,
    /// The call waited too long for its turn and never entered the module, while others were answered: says nothing of the
    /// token or the KEK. Try again.
    Busy,
    /// This wrapped AEK alone is refused; the KEK works.
    BadRecord,
    /// The token or the KEK is set up in a way that cannot work. Denied, if it worked before.
    Misconfigured,
    /// Only a restart of the process can help.
    Fatal,
}

/// A token call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {what}")]
pub struct TokenError {
    /// What it means.
    pub verdict: Verdict,
    /// What was being done (`unwrap`, `login`, `find KEK` …).
    pub operation: &'static str,
    /// What happened, with the return code's name where there is one. Never a PIN or a key.
    pub what: String,
    /// What the operator should do.
    pub remedy: String,
    /// The return code that decided it, by its name (`CKR_PIN_LOCKED`), where one did.
    pub code: Option<String>,
}

impl TokenError {
    /// One that no return code decided.
    pub fn new(verdict: Verdict, operation: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict, operation, what: what.into(), remedy: remedy.into(), code: None }
    }
}

/// A token. Implementations run calls outside the async runtime's threads, and each call ends by its deadline: it has the
/// `call_timeout` that the implementation was made with, counted from when it enters the module. One that would hang there ends as
/// [`Verdict::Unreachable`]. Retry on a new session and diagnosis happen inside, within the same deadline.
///
/// Before that it may wait for its turn, a proof and a renewal for one `call_timeout` at most, all else for eight; then it ends as
/// [`Verdict::Busy`]. Proofs and renewals go before all else, and of several workers one is theirs alone.
///
/// Its futures are polled on the engine's threads, the watch's among them: they must not block.
#[async_trait]
pub trait Token: Send + Sync + 'static {
    /// Slot, label, serial, mechanisms.
    async fn info(&self) -> Result<TokenInfo, TokenError>;

    /// Wraps `aek` under `kek`.
    async fn wrap(&self, kek: &KekHandle, aek: &Aek, binding: &Binding) -> Result<Wrapped, TokenError>;

    /// Unwraps. Success says that the token accepted the bytes; the caller verifies the check value.
    async fn unwrap(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError>;

    /// As [`Token::unwrap`], for a proof: it overtakes all else that waits for the token. Whoever wraps another token passes it on
    /// as what it is; only a token at which nothing waits may leave it at an unwrap like any other.
    async fn prove(&self, kek: &KekHandle, wrapped: &Wrapped, binding: &Binding) -> Result<Aek, TokenError> {
        self.unwrap(kek, wrapped, binding).await
    }

    /// Proves a profile by a whole round trip with a session key of its own, which leaves nothing in the token.
    async fn probe(&self, profile: Profile) -> Result<Probe, TokenError>;

    /// Makes a KEK: SENSITIVE, not EXTRACTABLE, MODIFIABLE, DESTROYABLE only when asked; its CKA_ID is 16 random bytes.
    async fn create_kek(&self, spec: &KekSpec) -> Result<KekInfo, TokenError>;

    /// The KEK with this CKA_ID, whether it is sound or refused; `None` when a listed, logged-in token has none.
    async fn find_kek(&self, id: &KekId) -> Result<Option<KekInfo>, TokenError>;

    /// Every secret or private key in the token that could be a KEK, sorted by label and id.
    async fn list_keks(&self) -> Result<Vec<KekInfo>, TokenError>;

    /// Keys that could be KEKs, but for a CKA_ID that no record can name, sorted by label. Nothing to tell where every key has one.
    async fn list_unaddressable(&self) -> Result<Vec<UnaddressableKey>, TokenError> {
        Ok(Vec::new())
    }

    /// Makes the next call come from a freshly initialised context, because some modules hide changes from one that was open
    /// (tpm2-pkcs11, nShield by default). Nothing to do for tokens that notice by themselves. Overtakes like [`Token::prove`].
    ///
    /// # Errors
    /// [`Verdict::Unreachable`] when the token is gone after that; [`Verdict::Fatal`] when a hung call forbids it.
    async fn renew_context(&self) -> Result<(), TokenError> {
        Ok(())
    }

    /// When the context was initialised that calls are made in, by CLOCK_BOOTTIME; answers at once. What the token was told since
    /// may be hidden from it, so proofs from it count only for so long. `None` for tokens that notice by themselves, and where the
    /// context is not keyleash's to end: there a proof is as fresh as it gets. Whoever wraps another token passes it on.
    fn context_began(&self) -> Option<Instant>;

    /// The deadline of its calls, which the engine reckons with: it is said here and nowhere else. 100 ms to 60 s, at most the engine's
    /// `poll_interval`, and always the same. Whoever wraps another token passes it on.
    fn call_timeout(&self) -> Duration;

    /// Calls that are inside of the module, hanging ones too: an engine that is closed waits for their end. Answers at once. Whoever
    /// wraps another token passes it on; 0 where a process may end in the midst of a call.
    fn in_flight(&self) -> usize {
        0
    }

    /// Makes a key that signs, of this label (1 to 128 bytes): Ed25519, or else ECDSA on P-256, or else HMAC-SHA256, whichever the token
    /// can do first. SENSITIVE and not EXTRACTABLE; its CKA_ID is 16 random bytes. As other administrative calls it leaves one worker
    /// to proofs, which go first. Whoever wraps another token passes it on, and the two below.
    ///
    /// # Errors
    /// [`Verdict::Misconfigured`] where the token has one of this label, or makes none that signs.
    async fn create_signing_key(&self, label: &str) -> Result<SigningKey, TokenError> {
        let _ = label;
        Err(signing::unable())
    }

    /// The key of this label that signs; `None` when a listed, logged-in token has none.
    ///
    /// # Errors
    /// [`Verdict::Misconfigured`] where it could be read out of the token, or several have the label.
    async fn find_signing_key(&self, label: &str) -> Result<Option<SigningKey>, TokenError> {
        let _ = label;
        Err(signing::unable())
    }

    /// Signs, as the key's kind says.
    ///
    /// # Errors
    /// [`Verdict::Misconfigured`] when another key has its label by now.
    async fn sign(&self, key: &SigningKey, text: &[u8]) -> Result<Vec<u8>, TokenError> {
        let _ = (key, text);
        Err(signing::unable())
    }

    /// The token's serial number, for the trail; answers at once, by what the token last said of itself. Whoever wraps another token
    /// passes it on; `None` where it is not known.
    fn serial(&self) -> Option<String> {
        None
    }

    /// The workers' health; answers at once.
    fn workers(&self) -> Workers;
}

impl From<TokenError> for Error {
    /// For calls outside any lease. A denial of a KEK in use goes through its lease instead, which remembers it.
    fn from(trouble: TokenError) -> Self {
        let refusal = |trouble: TokenError| {
            Box::new(Refusal {
                subject: "the token".into(),
                kek: None,
                code: trouble.code,
                lasting: None,
                reason: format!("{}: {}", trouble.operation, trouble.what),
                remedy: trouble.remedy,
            })
        };
        match trouble.verdict {
            Verdict::Denied | Verdict::Replaced => Self::Denied(refusal(trouble)),
            Verdict::Unreachable | Verdict::Busy => Self::Unreachable(refusal(trouble)),
            Verdict::BadRecord => Corrupt::WrappedAek(trouble.what).into(),
            Verdict::Misconfigured => Self::Misconfigured(format!("{trouble}; {}", trouble.remedy)),
            Verdict::Fatal => Self::Fatal(format!("{trouble}; {}", trouble.remedy)),
        }
    }
}
