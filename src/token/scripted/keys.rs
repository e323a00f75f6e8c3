//! The keys of the scripted token, which wrap for real.

use super::{error, script::State};
use crate::{
    secret::{AEK_BYTES, Aek},
    token::{Binding, KekHandle, KekId, KekInfo, Profile, TokenError, Verdict, Wrapped},
};
use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use zeroize::Zeroizing;

const NONCE_BYTES: usize = 12;

pub(super) struct Kek {
    pub(super) key: Zeroizing<[u8; 32]>,
    pub(super) label: String,
    pub(super) profile: Profile,
    pub(super) destroyable: bool,
    pub(super) unwraps: bool,
    pub(super) wraps: bool,
    pub(super) refused: Option<String>,
    /// It has unwrapped a record.
    pub(super) worked: bool,
    /// It was replaced after it had: then a refused record says that this is another key.
    pub(super) replaced: bool,
}

impl Kek {
    /// It as another token has it that never used it.
    pub(super) fn twin(&self) -> Self {
        Self {
            key: self.key.clone(),
            label: self.label.clone(),
            profile: self.profile,
            destroyable: self.destroyable,
            unwraps: self.unwraps,
            wraps: self.wraps,
            refused: self.refused.clone(),
            worked: false,
            replaced: false,
        }
    }
}

pub(super) fn usable<'a>(state: &'a State, handle: &KekHandle, operation: &'static str) -> Result<&'a Kek, TokenError> {
    let Some(kek) = state.keks.get(&handle.id) else {
        return Err(error(Verdict::Denied, operation, format!("the token is there and has no KEK {}", handle.id)));
    };
    if let Some(why) = &kek.refused {
        return Err(error(Verdict::Misconfigured, operation, format!("KEK {} is refused: {why}", handle.id)));
    }
    if kek.profile != handle.profile {
        let what = format!("CKR_KEY_FUNCTION_NOT_PERMITTED: the KEK is for {}", kek.profile);
        return Err(error(Verdict::Denied, operation, what));
    }
    Ok(kek)
}

/// aes-gcm alone takes additional data.
pub(super) fn bound(profile: Profile, binding: &Binding) -> &[u8] {
    if profile == Profile::AesGcm { binding } else { &[] }
}

pub(super) fn wrap(state: &mut State, handle: &KekHandle, aek: &Aek, binding: &Binding) -> Result<Wrapped, TokenError> {
    let drawn = state.draw("nonce");
    let nonce = drawn.first_chunk::<NONCE_BYTES>().copied().unwrap_or_default();
    let kek = usable(state, handle, "wrap")?;
    if !kek.wraps && kek.unwraps {
        return Err(error(Verdict::Misconfigured, "wrap", format!("KEK {} is half a key", handle.id)));
    }
    if !kek.wraps {
        return Err(error(Verdict::Denied, "wrap", "CKR_KEY_FUNCTION_NOT_PERMITTED"));
    }
    let payload = Payload { msg: aek.expose(), aad: bound(handle.profile, binding) };
    let cipher = Aes256Gcm::new((&*kek.key).into());
    let sealed = cipher.encrypt(&nonce.into(), payload).map_err(|_| error(Verdict::Fatal, "wrap", "AES-GCM failed"))?;
    Ok(match handle.profile {
        Profile::AesGcm => Wrapped { iv: nonce.to_vec(), bytes: sealed },
        Profile::AesKw | Profile::RsaOaepSha256 => Wrapped { iv: Vec::new(), bytes: [&nonce[..], &sealed].concat() },
    })
}

pub(super) fn unwrap(
    state: &mut State,
    handle: &KekHandle,
    wrapped: &Wrapped,
    binding: &Binding,
) -> Result<Aek, TokenError> {
    let bad = |what| error(Verdict::BadRecord, "unwrap", what);
    let kek = usable(state, handle, "unwrap")?;
    if !kek.unwraps {
        return Err(error(Verdict::Denied, "unwrap", "CKR_KEY_FUNCTION_NOT_PERMITTED"));
    }
    let (nonce, sealed) = match handle.profile {
        Profile::AesGcm => (wrapped.iv.as_slice(), wrapped.bytes.as_slice()),
        Profile::AesKw | Profile::RsaOaepSha256 => {
            wrapped.bytes.split_at_checked(NONCE_BYTES).ok_or_else(|| bad("the wrapped AEK is too short"))?
        }
    };
    let nonce = <[u8; NONCE_BYTES]>::try_from(nonce).map_err(|_| bad("the IV does not have 12 bytes"))?;
    let payload = Payload { msg: sealed, aad: bound(handle.profile, binding) };
    let plain = Aes256Gcm::new((&*kek.key).into()).decrypt(&nonce.into(), payload).map(Zeroizing::new);
    let plain = plain.map_err(|_| match kek.replaced {
        true => error(Verdict::Replaced, "unwrap", "the KEK is another key than before, under the same CKA_ID"),
        false => bad("CKR_ENCRYPTED_DATA_INVALID"),
    })?;
    let bytes = <&[u8; AEK_BYTES]>::try_from(plain.as_slice()).map_err(|_| bad("it does not unwrap to 32 bytes"))?;
    let aek = Aek::copy_from(bytes).map_err(|failed| error(Verdict::Fatal, "unwrap", failed.to_string()));
    state.keks.entry(handle.id.clone()).and_modify(|kek| kek.worked = true);
    aek
}

pub(super) fn info(id: &KekId, kek: &Kek) -> KekInfo {
    KekInfo {
        id: id.clone(),
        label: kek.label.clone(),
        profile: Some(kek.profile),
        bits: if kek.profile == Profile::RsaOaepSha256 { 3072 } else { 256 },
        destroyable: Some(kek.destroyable),
        modifiable: Some(true),
        enabled: kek.unwraps,
        refused: kek.refused.clone(),
        half: (kek.unwraps && !kek.wraps).then(|| "CKA_ENCRYPT is false: it unwraps, and wraps nothing new".into()),
        warnings: Vec::new(),
        known_outside: None,
    }
}
