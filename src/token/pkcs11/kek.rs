//! KEKs in the token: how they are made, found, and judged by their attributes.

use super::fault::{self, Fault, at, code_of};
use super::module::lock;
use super::raw::Raw;
use crate::clock::{Clock, Instant};
use crate::token::{KekId, KekInfo, KekSpec, Profile, TokenError};
use cryptoki::{
    error::RvError,
    mechanism::Mechanism,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
    types::Ulong,
};
use std::sync::Mutex;

/// An AES KEK has this many bits.
const AES_BITS: u32 = 256;
/// An RSA KEK is made with this many bits, and refused with fewer.
const RSA_BITS: u32 = 3072;
/// How often in a row the dates must fail, each time while the class is told: trouble that passes looks the same once.
const HIDDEN_SHOWN: usize = 3;
/// Longest CKA_LABEL, in bytes.
const LABEL_BYTES_MAX: usize = 128;

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
    pub(super) dates: Dates,
}

/// CKA_START_DATE and CKA_END_DATE. SoftHSM and kryoptic do not look at them, so keyleash does, at the machine's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Dates {
    /// First and last day of validity, UTC, as YYYYMMDD.
    start: Option<u32>,
    end: Option<u32>,
    /// The token has dates and cannot show them.
    hidden: bool,
}

/// Whether a KEK may be used today.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Term {
    Runs,
    /// Why not.
    Over(String),
    /// Nobody knows; why.
    Unknown(String),
}

/// A clock before this day (YYYYMMDD) was never set, or stands at its beginning: this code is younger.
const CLOCK_SET_FROM: u32 = 20260101;

impl Dates {
    /// From the attributes' bytes.
    fn of(start: &[u8], end: &[u8]) -> Self {
        match (date(start), date(end)) {
            (Ok(start), Ok(end)) => Self { start, end, hidden: false },
            _ => Self { hidden: true, ..Self::default() },
        }
    }

    /// As [`Attributes::refusal`].
    pub(super) fn refusal(self) -> Option<String> {
        let why = "the token fails to tell CKA_START_DATE and CKA_END_DATE: whether the KEK is valid is unknown";
        self.hidden.then(|| why.into())
    }

    /// On the day `today` (YYYYMMDD, UTC).
    pub(super) fn term(self, today: u32) -> Term {
        match (self.start, self.end) {
            (None, None) => Term::Runs,
            _ if today < CLOCK_SET_FROM => Term::Unknown(format!(
                "the machine's clock stands at {today}, so whether CKA_START_DATE has come and CKA_END_DATE is past is unknown"
            )),
            (Some(start), _) if today < start => Term::Over(format!("CKA_START_DATE {start} has not come")),
            (_, Some(end)) if today > end => Term::Over(format!("CKA_END_DATE {end} is past")),
            _ => Term::Runs,
        }
    }
}

/// YYYYMMDD as digits; none where it is empty, or filled with what stands for nothing.
fn date(bytes: &[u8]) -> Result<Option<u32>, ()> {
    if bytes.iter().all(|byte| [0, b' ', b'0'].contains(byte)) {
        return Ok(None);
    }
    let digits = (bytes.len() == 8 && bytes.iter().all(u8::is_ascii_digit)).then_some(bytes).ok_or(())?;
    Ok(Some(digits.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0'))))
}

impl Attributes {
    /// The profile that type and usage allow. A disabled key keeps the profile that its other half shows.
    pub(super) fn profile(&self) -> Option<Profile> {
        let crypts = self.encrypt == Some(true) || self.decrypt == Some(true);
        let wraps = self.wrap == Some(true) || self.unwrap == Some(true);
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
        let on = |flag: Option<bool>| flag == Some(true);
        if self.extractable != Some(false) {
            return Some(said("CKA_EXTRACTABLE", self.extractable, "the token could give the KEK away"));
        }
        if self.sensitive != Some(true) {
            return Some(said("CKA_SENSITIVE", self.sensitive, "the token could show the KEK"));
        }
        if on(self.decrypt) && (on(self.wrap) || on(self.unwrap)) {
            let other = if on(self.wrap) { "CKA_WRAP" } else { "CKA_UNWRAP" };
            return Some(format!(
                "CKA_DECRYPT and {other} are both true: a key that wraps and decrypts gives every key of the token away"
            ));
        }
        if let Some(why) = self.dates.refusal() {
            return Some(why);
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

    /// What tells that somebody outside of the token may have the key.
    fn known_outside(&self) -> Option<String> {
        let told = [
            ("CKA_LOCAL", self.local),
            ("CKA_NEVER_EXTRACTABLE", self.never_extractable),
            ("CKA_ALWAYS_SENSITIVE", self.always_sensitive),
        ];
        let (attribute, _) = told.into_iter().find(|(_, value)| *value == Some(false))?;
        Some(format!("{attribute} is false: it was imported, or could once be read"))
    }

    pub(super) fn info(self, today: u32) -> Result<KekInfo, TokenError> {
        let profile = self.profile();
        let usable = if profile == Some(Profile::AesKw) { self.unwrap } else { self.decrypt };
        Ok(KekInfo {
            enabled: usable == Some(true) && self.dates.term(today) == Term::Runs,
            refused: self.refusal(),
            known_outside: self.known_outside(),
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

/// The day of `unix` seconds, UTC, as YYYYMMDD (Hinnant's civil_from_days).
pub(super) fn day(unix: u64) -> u32 {
    let days = unix / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    u32::try_from(year * 10_000 + month * 100 + day).unwrap_or(u32::MAX)
}

pub(super) fn today() -> u32 {
    day(crate::clock::unix_now())
}

/// A KEK that was found, judged sound, and may be used in this generation of the module.
#[derive(Debug)]
pub(super) struct Kek {
    /// The secret or private key.
    pub(super) key: ObjectHandle,
    /// What wraps: the key itself, or the public half.
    pub(super) wrapping: Option<ObjectHandle>,
    pub(super) attributes: Attributes,
    /// The dates of `key`, and since when they are known to be these: they may be set on a KEK that is in use.
    dates: Mutex<(Dates, Instant)>,
}

impl Kek {
    fn new(key: ObjectHandle, wrapping: ObjectHandle, attributes: Attributes, read: Instant) -> Self {
        let dates = Mutex::new((attributes.dates, read));
        Self { key, wrapping: Some(wrapping), attributes, dates }
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

fn read(session: &Session, object: ObjectHandle) -> Result<Option<Attributes>, Fault> {
    let step = "C_GetAttributeValue of a KEK";
    let kind = session.get_attributes(object, &[AttributeType::Class, AttributeType::KeyType]).map_err(at(step))?;
    let rsa = match (kind.first(), kind.get(1)) {
        (Some(Attribute::Class(ObjectClass::SECRET_KEY)), Some(Attribute::KeyType(KeyType::AES))) => false,
        (Some(Attribute::Class(ObjectClass::PRIVATE_KEY)), Some(Attribute::KeyType(KeyType::RSA))) => true,
        _ => return Ok(None),
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
    let mut found = Attributes { rsa, ..Attributes::default() };
    for attribute in session.get_attributes(object, &wanted).map_err(at(step))? {
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
            Attribute::ValueLen(len) => found.bits = u32::try_from(*len).unwrap_or(0).saturating_mul(8),
            Attribute::Modulus(modulus) => found.bits = modulus_bits(&modulus),
            _ => {}
        }
    }
    found.dates = read_dates(None, session, object)?;
    Ok(Some(found))
}

/// Apart from the others, because SoftHSM fails with CKR_GENERAL_ERROR where a private key has a date: it stores it in the clear
/// and decrypts it when it is read.
fn read_dates(raw: Option<&Raw>, session: &Session, object: ObjectHandle) -> Result<Dates, Fault> {
    let [start_date, end_date] = [AttributeType::StartDate, AttributeType::EndDate];
    let (mut start, mut end) = ([0; 8], [0; 8]);
    let at_once = raw.map(|raw| raw.attributes(session, object, [(start_date, &mut start), (end_date, &mut end)]));
    if let Some(Ok([start_len, end_len])) = at_once {
        return Ok(Dates::of(start.get(..start_len).unwrap_or_default(), end.get(..end_len).unwrap_or_default()));
    }
    // One by one, for a token that has but one of them, or none.
    const STEP: &str = "C_GetAttributeValue of a KEK";
    let found = 'shown: {
        for _ in 0..HIDDEN_SHOWN {
            match session.get_attributes(object, &[start_date, end_date]) {
                Ok(found) => break 'shown found,
                Err(error) if !matches!(code_of(&error), RvError::GeneralError) => return Err(at(STEP)(error)),
                Err(_) => {}
            }
            // When the token still tells the class, the dates alone are the trouble, else the token is.
            session.get_attributes(object, &[AttributeType::Class]).map_err(at(STEP))?;
        }
        return Ok(Dates { hidden: true, ..Dates::default() });
    };
    let (mut start, mut end) = (Vec::new(), Vec::new());
    for attribute in found {
        match attribute {
            Attribute::StartDate(date) => start = [&date.year[..], &date.month, &date.day].concat(),
            Attribute::EndDate(date) => end = [&date.year[..], &date.month, &date.day].concat(),
            _ => {}
        }
    }
    Ok(Dates::of(&start, &end))
}

fn modulus_bits(modulus: &[u8]) -> u32 {
    let skip = modulus.iter().take_while(|byte| **byte == 0).count();
    let rest = modulus.get(skip..).unwrap_or_default();
    let zeros = rest.first().map_or(0, |byte| byte.leading_zeros());
    u32::try_from(rest.len()).unwrap_or(0).saturating_mul(8).saturating_sub(zeros)
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
        let Some(attributes) = read(session, object)? else { continue };
        if found.is_some() {
            let what = format!("two keys of the token have the CKA_ID {id}");
            return Err(fault::misconfigured("find KEK", what, "give one of them another CKA_ID, or delete it").into());
        }
        found = Some(Kek::new(object, object, attributes, asked));
    }
    if let Some(kek) = &mut found
        && kek.attributes.rsa
    {
        let mut public = template.to_vec();
        public.push(Attribute::Class(ObjectClass::PUBLIC_KEY));
        let halves = session.find_objects(&public).map_err(at("C_FindObjects"))?;
        kek.wrapping = halves.first().copied();
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

/// Every AES secret key and RSA private key of the token, in the token's order.
pub(super) fn list(session: &Session) -> Result<Vec<Attributes>, Fault> {
    let mut keks = Vec::new();
    for class in [ObjectClass::SECRET_KEY, ObjectClass::PRIVATE_KEY] {
        let template = [Attribute::Token(true), Attribute::Class(class)];
        for object in session.find_objects(&template).map_err(at("C_FindObjects"))? {
            // A key without an id cannot be named in a record.
            keks.extend(read(session, object)?.filter(|found| (1..=KekId::BYTES_MAX).contains(&found.id.len())));
        }
    }
    Ok(keks)
}

/// Attributes that some tokens do not take in a template.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Optional {
    Asked,
    LeftOut,
}

/// Makes the KEK and gives what the token then says about it.
pub(super) fn create(session: &Session, spec: &KekSpec) -> Result<Attributes, Fault> {
    check_label(&spec.label)?;
    let mut id = vec![0; 16];
    crate::secret::fill_random(&mut id)?;
    let common = |optional| {
        let mut template =
            vec![Attribute::Token(true), Attribute::Label(spec.label.clone().into_bytes()), Attribute::Id(id.clone())];
        if optional == Optional::Asked {
            template.extend([Attribute::Modifiable(true), Attribute::Destroyable(spec.destroyable)]);
        }
        template
    };
    let keys = match generate(session, spec.profile, &common(Optional::Asked)) {
        Err(Fault::Code { code, .. }) if is_about_attributes(code) => {
            tracing::warn!(label = spec.label, "the token takes no CKA_MODIFIABLE and CKA_DESTROYABLE for a new key");
            generate(session, spec.profile, &common(Optional::LeftOut))?
        }
        result => result?,
    };
    let judged = read(session, keys.key).and_then(|found| {
        let found = found.ok_or(Fault::KekMissing)?;
        match found.refusal() {
            None => Ok(found),
            Some(why) => Err(fault::misconfigured(
                "create KEK",
                format!("the token made another key than it was asked for: {why}"),
                "this token cannot hold KEKs with this profile; see its policy",
            )
            .into()),
        }
    });
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
        Rv::AttributeTypeInvalid | Rv::AttributeValueInvalid | Rv::AttributeReadOnly | Rv::TemplateInconsistent
    )
}

/// A key of the session alone, for a probe: gone with it.
pub(super) fn generate_for_probe(session: &Session, profile: Profile) -> Result<Kek, Fault> {
    generate(session, profile, &[Attribute::Token(false)])
}

fn generate(session: &Session, profile: Profile, common: &[Attribute]) -> Result<Kek, Fault> {
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
    Ok(Kek::new(key, wrapping, attributes, Clock::Boottime.now()))
}

/// Destroys both halves, as far as the token lets us.
pub(super) fn destroy(session: &Session, kek: &Kek) {
    for object in [Some(kek.key), kek.wrapping.filter(|half| *half != kek.key)].into_iter().flatten() {
        if let Err(error) = session.destroy_object(object) {
            tracing::debug!(%error, "a key of ours could not be destroyed");
        }
    }
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

    #[test]
    fn a_kek_that_could_leave_the_token_is_refused_with_the_attribute_named() {
        assert_eq!(sound().refusal(), None);
        let cases = [
            (Attributes { extractable: Some(true), ..sound() }, "CKA_EXTRACTABLE is true"),
            (Attributes { extractable: None, ..sound() }, "CKA_EXTRACTABLE"),
            (Attributes { sensitive: Some(false), ..sound() }, "CKA_SENSITIVE is false"),
            (Attributes { wrap: Some(true), ..sound() }, "CKA_DECRYPT and CKA_WRAP"),
            (Attributes { unwrap: Some(true), ..sound() }, "CKA_DECRYPT and CKA_UNWRAP"),
            (Attributes { bits: 128, ..sound() }, "CKA_VALUE_LEN is 16"),
            (Attributes { rsa: true, bits: 2048, ..sound() }, "CKA_MODULUS has 2048"),
        ];
        for (attributes, words) in cases {
            let refusal = attributes.refusal().expect(words);
            assert!(refusal.contains(words), "{refusal}");
        }
    }

    #[test]
    fn a_disabled_kek_keeps_its_profile() {
        let disabled = Attributes { decrypt: Some(false), ..sound() };
        assert_eq!(disabled.profile(), Some(Profile::AesGcm));
        assert!(!disabled.info(20260101).unwrap().enabled);
        assert!(sound().info(20260101).unwrap().enabled);
        let wrapping =
            Attributes { encrypt: Some(false), decrypt: Some(false), wrap: Some(true), unwrap: Some(false), ..sound() };
        assert_eq!(wrapping.profile(), Some(Profile::AesKw));
    }

    #[test]
    fn a_kek_is_denied_before_its_first_and_after_its_last_day() {
        let dates = Dates::of(b"20260110", b"20260120");
        assert!(matches!(dates.term(20260109), Term::Over(why) if why.contains("CKA_START_DATE")));
        assert_eq!(dates.term(20260110), Term::Runs);
        assert_eq!(dates.term(20260120), Term::Runs);
        assert!(matches!(dates.term(20260121), Term::Over(why) if why.contains("CKA_END_DATE")));
        assert!(!Attributes { dates, ..sound() }.info(20260121).unwrap().enabled);
        assert_eq!(Dates::default().term(19700101), Term::Runs);
    }

    #[test]
    fn a_clock_that_was_never_set_neither_runs_a_kek_with_dates_nor_denies_it() {
        for dates in [Dates::of(b"20260110", b""), Dates::of(b"", b"20260120"), Dates::of(b"20260110", b"20260120")] {
            for today in [19700101, 19800101, 20251231] {
                assert!(matches!(dates.term(today), Term::Unknown(why) if why.contains("clock")), "{today}");
            }
        }
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
    fn days_follow_the_calendar() {
        for (unix, day_then) in
            [(0, 19700101), (951_782_400, 20000229), (951_868_800, 20000301), (1_798_761_599, 20261231)]
        {
            assert_eq!(day(unix), day_then);
        }
    }

    #[test]
    fn modulus_bits_count_from_the_first_one() {
        assert_eq!(modulus_bits(&[0, 0x80, 0]), 16);
        assert_eq!(modulus_bits(&[0x01, 0]), 9);
        assert_eq!(modulus_bits(&[]), 0);
    }
}
