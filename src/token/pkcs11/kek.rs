//! KEKs in the token: how they are made and found. What they are judged by is in `attributes`.

use super::attributes::{AES_BITS, Attributes, RSA_BITS, Read, read};
use super::dates::{Dates, read_dates};
use super::fault::{self, Fault, at, code_of};
use super::module::lock;
use super::raw::Raw;
use crate::clock::{Clock, Instant};
use crate::token::{KekId, KekSpec, Profile, TokenError};
use cryptoki::{
    error::RvError,
    mechanism::Mechanism,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
    types::Ulong,
};
use std::sync::Mutex;

/// Longest CKA_LABEL, in bytes.
const LABEL_BYTES_MAX: usize = 128;

/// A KEK that was found, judged sound, and may be used in this generation of the module.
#[derive(Debug)]
pub(super) struct Kek {
    /// The secret or private key.
    pub(super) key: ObjectHandle,
    /// What wraps: the key itself, or the public half; `None` where [`Attributes::half`] says why.
    pub(super) wrapping: Option<ObjectHandle>,
    pub(super) attributes: Attributes,
    /// The dates of `key`, and since when they are known to be these: they may be set on a KEK that is in use.
    dates: Mutex<(Dates, Instant)>,
}

impl Kek {
    fn new(key: ObjectHandle, wrapping: Option<ObjectHandle>, attributes: Attributes, read: Instant) -> Self {
        let dates = Mutex::new((attributes.dates, read));
        Self { key, wrapping, attributes, dates }
    }

    /// The dates as they were at `asked`, or later.
    pub(super) fn dates(&self, raw: Option<&Raw>, session: &Session, asked: Instant) -> Result<Dates, Fault> {
        let (dates, read) = *lock(&self.dates);
        if read >= asked {
            return Ok(dates);
        }
        let read = Clock::Boottime.now();
        let dates = read_dates(raw, session, self.key)?;
        let mut kept = lock(&self.dates);
        if kept.1 < read {
            *kept = (dates, read);
        }
        Ok(dates)
    }
}

/// The KEK with this CKA_ID, sound or not; `None` when there is none.
///
/// # Errors
/// Misconfigured when two keys have the id: which one is meant cannot be known.
pub(super) fn find(session: &Session, id: &KekId) -> Result<Option<Kek>, Fault> {
    let template = [Attribute::Token(true), Attribute::Id(id.as_bytes().to_vec())];
    let asked = Clock::Boottime.now();
    let objects = session.find_objects(&template).map_err(at("C_FindObjects"))?;
    let mut found: Option<Kek> = None;
    for object in objects {
        let Some(Read { attributes, wrapping }) = read(session, object)? else { continue };
        if found.is_some() {
            let what = format!("two keys of the token have the CKA_ID {id}");
            return Err(fault::misconfigured("find KEK", what, "give one of them another CKA_ID, or delete it").into());
        }
        found = Some(Kek::new(object, wrapping, attributes, asked));
    }
    Ok(found)
}

/// Whether what wraps with `kek` has this CKA_ID now. A token that does not tell it is believed: no other key is seen there.
pub(super) fn is_named(raw: Option<&Raw>, session: &Session, kek: &Kek, id: &KekId) -> Result<bool, Fault> {
    let object = kek.wrapping.unwrap_or(kek.key);
    let step = at("C_GetAttributeValue of CKA_ID");
    let Some(raw) = raw else {
        let found = session.get_attributes(object, &[AttributeType::Id]).map_err(step)?;
        return Ok(!matches!(found.first(), Some(Attribute::Id(found)) if found != id.as_bytes()));
    };
    let mut found = [0; KekId::BYTES_MAX];
    match raw.attribute(session, object, AttributeType::Id, &mut found) {
        Ok(len) => Ok(found.get(..len) == Some(id.as_bytes())),
        Err(error) => match code_of(&error) {
            // A longer one.
            RvError::BufferTooSmall => Ok(false),
            RvError::AttributeTypeInvalid | RvError::AttributeSensitive => Ok(true),
            _ => Err(step(error)),
        },
    }
}

/// Every AES secret key and RSA private key of the token, in the token's order, whether a record can name it or not.
pub(super) fn list(session: &Session) -> Result<Vec<Attributes>, Fault> {
    let mut keks = Vec::new();
    for class in [ObjectClass::SECRET_KEY, ObjectClass::PRIVATE_KEY] {
        let template = [Attribute::Token(true), Attribute::Class(class)];
        for object in session.find_objects(&template).map_err(at("C_FindObjects"))? {
            keks.extend(read(session, object)?.map(|found| found.attributes));
        }
    }
    Ok(keks)
}

/// Which of the attributes are asked for that some tokens do not take in a template.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Optional {
    All,
    /// Those that keep a key to its use, and none that says what may be done to it.
    Use,
    None,
}

/// Makes the KEK and gives what the token then says about it.
pub(super) fn create(session: &Session, spec: &KekSpec) -> Result<Attributes, Fault> {
    check_label(&spec.label)?;
    let mut id = vec![0; 16];
    crate::secret::fill_random(&mut id)?;
    let common = |optional| {
        let mut template =
            vec![Attribute::Token(true), Attribute::Label(spec.label.clone().into_bytes()), Attribute::Id(id.clone())];
        if optional == Optional::All {
            template.extend([Attribute::Modifiable(true), Attribute::Destroyable(spec.destroyable)]);
        }
        template
    };
    let generate = |optional| generate(session, spec.profile, &common(optional), optional);
    let mut made = generate(Optional::All);
    // NSS says so to an attribute that its database has no column for, and many a token to trouble that passes.
    let unclear = matches!(&made, Err(Fault::Code { code: RvError::GeneralError, .. }));
    if unclear {
        made = generate(Optional::All);
    }
    let mut left_out = None;
    for (less, without) in [
        (Optional::Use, "CKA_MODIFIABLE and CKA_DESTROYABLE"),
        (Optional::None, "CKA_MODIFIABLE, CKA_DESTROYABLE, CKA_SIGN_RECOVER and CKA_DERIVE"),
    ] {
        if !matches!(&made, Err(Fault::Code { code, .. }) if is_about_attributes(*code)) {
            break;
        }
        (made, left_out) = (generate(less), Some(without));
    }
    let keys = made?;
    let judged = read(session, keys.key).and_then(|found| {
        let found = found.ok_or(Fault::KekMissing)?.attributes;
        if let Some(why) = found.refusal().or_else(|| found.half()) {
            let what = format!("the token made another key than it was asked for: {why}");
            let remedy = "this token cannot hold KEKs with this profile; see its policy";
            return Err(fault::misconfigured("create KEK", what, remedy).into());
        }
        // One that tells it takes it: it was trouble that passed, and the key can be deleted by accident.
        if unclear && left_out.is_some() && found.destroyable == Some(!spec.destroyable) {
            return Err(Fault::Code { step: "C_GenerateKey", code: RvError::GeneralError });
        }
        Ok(found)
    });
    if let (Ok(_), Some(without)) = (&judged, left_out) {
        tracing::warn!(label = spec.label, "the token does not take all of {without} for a new key");
    }
    if judged.is_err() {
        destroy(session, &keys);
    }
    judged
}

/// The rule for labels, for every token alike.
pub(in crate::token) fn check_label(label: &str) -> Result<(), TokenError> {
    if label.is_empty() || label.len() > LABEL_BYTES_MAX {
        return Err(fault::misconfigured(
            "create KEK",
            format!("a label has 1 to {LABEL_BYTES_MAX} bytes, this one has {}", label.len()),
            "choose another label",
        ));
    }
    Ok(())
}

const fn is_about_attributes(code: cryptoki::error::RvError) -> bool {
    use cryptoki::error::RvError as Rv;
    matches!(
        code,
        Rv::AttributeTypeInvalid
            | Rv::AttributeValueInvalid
            | Rv::AttributeReadOnly
            | Rv::TemplateInconsistent
            | Rv::GeneralError
    )
}

/// A key of the session alone, for a probe: gone with it.
pub(super) fn generate_for_probe(session: &Session, profile: Profile) -> Result<Kek, Fault> {
    generate(session, profile, &[Attribute::Token(false)], Optional::None)
}

fn generate(session: &Session, profile: Profile, common: &[Attribute], optional: Optional) -> Result<Kek, Fault> {
    let guarded = [Attribute::Private(true), Attribute::Sensitive(true), Attribute::Extractable(false)];
    let (key, wrapping) = if profile == Profile::RsaOaepSha256 {
        let mut public = common.to_vec();
        public.extend([
            Attribute::Private(false),
            Attribute::Encrypt(true),
            Attribute::Wrap(false),
            Attribute::Verify(false),
            Attribute::ModulusBits(Ulong::new(RSA_BITS.into())),
            Attribute::PublicExponent(vec![1, 0, 1]),
        ]);
        let mut private = common.to_vec();
        private.extend(guarded);
        private.extend([Attribute::Decrypt(true), Attribute::Unwrap(false), Attribute::Sign(false)]);
        if optional != Optional::None {
            // On by default at opencryptoki and NSS.
            private.extend([Attribute::SignRecover(false), Attribute::Derive(false)]);
        }
        let (public, private) = session
            .generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private)
            .map_err(at("C_GenerateKeyPair"))?;
        (private, public)
    } else {
        let crypts = profile == Profile::AesGcm;
        let mut template = common.to_vec();
        template.extend(guarded);
        template.extend([
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::ValueLen(Ulong::new((AES_BITS / 8).into())),
            Attribute::Encrypt(crypts),
            Attribute::Decrypt(crypts),
            Attribute::Wrap(!crypts),
            Attribute::Unwrap(!crypts),
            Attribute::Sign(false),
            Attribute::Verify(false),
            Attribute::Derive(false),
        ]);
        let key = session.generate_key(&Mechanism::AesKeyGen, &template).map_err(at("C_GenerateKey"))?;
        (key, key)
    };
    let attributes = Attributes { rsa: profile == Profile::RsaOaepSha256, ..Attributes::default() };
    Ok(Kek::new(key, Some(wrapping), attributes, Clock::Boottime.now()))
}

/// Destroys both halves, as far as the token lets us.
pub(super) fn destroy(session: &Session, kek: &Kek) {
    for object in [Some(kek.key), kek.wrapping.filter(|half| *half != kek.key)].into_iter().flatten() {
        if let Err(error) = session.destroy_object(object) {
            tracing::debug!(%error, "a key of ours could not be destroyed");
        }
    }
}
