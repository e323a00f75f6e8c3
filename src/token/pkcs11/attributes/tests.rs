//! What is refused, warned of and told apart.

use super::{
    read::{bits, number},
    *,
};

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
    let owners = Attributes { decrypt: Some(false), encrypt: Some(false), label: "another".into(), ..known.clone() };
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
