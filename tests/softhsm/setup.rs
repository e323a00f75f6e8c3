//! Set-ups that are wrong, each with its own clear error.

use crate::bench::{Bench, LABEL, PIN, PIN_VARIABLE, alone, context, module, operator, session, variable};
use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, KeyType, ObjectClass},
    session::Session,
    types::{Date, Ulong},
};
use keyleash::{
    secret::Aek,
    token::{
        KekHandle, KekId, KekSpec, Profile, Token, TokenError, Verdict,
        pkcs11::{PinSource, Pkcs11Settings, Pkcs11Token, Selector},
    },
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use std::time::Duration;

async fn refusal(settings: Pkcs11Settings) -> TokenError {
    Pkcs11Token::open(settings).await.unwrap_err()
}

/// The token that with-token made, as a service would open it.
#[tokio::test]
async fn the_token_of_with_token_opens_by_its_variables() {
    let label = variable("KEYLEASH_TOKEN_LABEL");
    let pin = PinSource::File(variable("KEYLEASH_PIN_FILE").into());
    let token =
        Pkcs11Token::open(Pkcs11Settings::new(module(), Selector::Label(label.clone()), pin.clone())).await.unwrap();
    let info = token.info().await.unwrap();
    assert_eq!(info.label, label);
    assert!(info.mechanisms.contains(&"CKM_AES_GCM".into()), "{:?}", info.mechanisms);
    let by_serial = Pkcs11Settings::new(module(), Selector::Serial(info.serial.clone()), pin.clone());
    assert_eq!(Pkcs11Token::open(by_serial).await.unwrap().info().await.unwrap().label, label);
    let by_slot = Pkcs11Settings::new(module(), Selector::Slot(info.slot), pin);
    assert_eq!(Pkcs11Token::open(by_slot).await.unwrap().info().await.unwrap().serial, info.serial);
}

#[tokio::test]
async fn bounds_are_kept() {
    let sound = Pkcs11Settings::new(module(), Selector::Slot(0), PinSource::Env("UNSET".into()));
    for (workers, hung_max, call_timeout) in [
        (0, 8, Duration::from_secs(5)),
        (31, 8, Duration::from_secs(5)),
        (2, 65, Duration::from_secs(5)),
        (2, 8, Duration::from_millis(99)),
        (2, 8, Duration::from_secs(61)),
    ] {
        let mut settings = sound.clone();
        (settings.workers, settings.hung_max, settings.call_timeout) = (workers, hung_max, call_timeout);
        let error = refusal(settings).await;
        assert_eq!((error.verdict, error.operation), (Verdict::Misconfigured, "check settings"), "{error}");
    }
}

#[test]
fn a_module_that_is_none_is_refused_with_its_path() {
    alone("setup::a_module_that_is_none_is_refused_with_its_path", |bench| async move {
        let text = bench.dir.join("text.so");
        std::fs::write(&text, "no library").unwrap();
        let libc = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc = libc
            .lines()
            .find_map(|line| line.split_whitespace().last().filter(|path| path.contains("libc.so")))
            .unwrap();
        for path in [text, libc.into(), bench.dir.join("missing.so")] {
            let mut settings = bench.settings();
            settings.module = path.clone();
            let error = refusal(settings).await;
            assert_eq!(error.verdict, Verdict::Misconfigured);
            assert!(error.what.contains(path.to_str().unwrap()) && !error.remedy.is_empty(), "{error:?}");
        }
    });
}

#[test]
fn a_pin_that_is_not_there_is_an_error_before_the_token_is_asked() {
    alone("setup::a_pin_that_is_not_there_is_an_error_before_the_token_is_asked", |bench| async move {
        for (content, word) in
            [(None, "No such file"), (Some("\n".to_owned()), "is empty"), (Some("x".repeat(300)), "255")]
        {
            let file = bench.dir.join("other-pin");
            let _ = std::fs::remove_file(&file);
            if let Some(content) = content {
                std::fs::write(&file, content).unwrap();
            }
            let mut settings = bench.settings();
            settings.pin = PinSource::File(file);
            let error = refusal(settings).await;
            assert_eq!(error.verdict, Verdict::Misconfigured);
            assert!(error.what.contains("other-pin") && error.what.contains(word), "{error}");
        }
        let mut settings = bench.settings();
        settings.pin = PinSource::Env("KEYLEASH_TEST_UNSET".into());
        assert!(refusal(settings).await.what.contains("KEYLEASH_TEST_UNSET"));
    });
}

#[test]
fn the_end_of_a_line_is_no_part_of_a_pin_from_a_variable() {
    alone("setup::the_end_of_a_line_is_no_part_of_a_pin_from_a_variable", |bench| async move {
        let mut settings = bench.settings();
        settings.pin = PinSource::Env(PIN_VARIABLE.into());
        assert!(Pkcs11Token::open(settings).await.unwrap().list_keks().await.is_ok());
    });
}

#[test]
fn a_refused_pin_is_tried_once_and_never_again() {
    alone("setup::a_refused_pin_is_tried_once_and_never_again", |bench| async move {
        let error = refusal(with_pin(&bench, Arc::new(|| Ok(b"wrong one".to_vec())))).await;
        assert_eq!(error.verdict, Verdict::Denied, "{error:?}");
        assert!(error.what.contains("CKR_PIN_INCORRECT"), "{error}");
        assert!(!format!("{error:?}").contains("wrong one"));

        // Starts during an outage; when the token comes, the PIN proves wrong.
        let away = bench.dir.join("away");
        std::fs::rename(bench.tokens(), &away).unwrap();
        let pin = Arc::new(std::sync::Mutex::new("wrong two".to_owned()));
        let asked = Arc::new(AtomicUsize::new(0));
        let source = {
            let (pin, asked) = (pin.clone(), asked.clone());
            move || {
                asked.fetch_add(1, Ordering::SeqCst);
                Ok(pin.lock().unwrap().clone().into_bytes())
            }
        };
        let mut settings = with_pin(&bench, Arc::new(source));
        settings.workers = 4;
        let token = Arc::new(Pkcs11Token::open(settings).await.unwrap());
        std::fs::rename(&away, bench.tokens()).unwrap();
        let mut refused = token.list_keks().await;
        while matches!(&refused, Err(error) if error.verdict == Verdict::Unreachable) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            refused = token.list_keks().await;
        }
        assert_eq!(refused.unwrap_err().verdict, Verdict::Denied);
        // The PIN is right now, but what it was stays refused: were it tried, it would be taken or count.
        let before = asked.load(Ordering::SeqCst);
        for _ in 0..20 {
            assert_eq!(token.list_keks().await.unwrap_err().verdict, Verdict::Denied);
        }
        assert!(asked.load(Ordering::SeqCst) > before, "the source is asked, for it may have another PIN");
        *pin.lock().unwrap() = PIN.into();
        assert!(token.list_keks().await.is_ok(), "another PIN is tried");
    });
}

fn with_pin(bench: &Bench, callback: Arc<keyleash::token::pkcs11::PinCallback>) -> Pkcs11Settings {
    let mut settings = bench.settings();
    settings.pin = PinSource::Callback(callback);
    settings
}

#[test]
fn a_label_that_matches_none_names_what_there_is() {
    alone("setup::a_label_that_matches_none_names_what_there_is", |bench| async move {
        let mut settings = bench.settings();
        settings.token = Selector::Label("no such token".into());
        // Not listed is unreachable, and no reason not to start.
        let error = Pkcs11Token::open(settings).await.unwrap().info().await.unwrap_err();
        assert_eq!(error.verdict, Verdict::Unreachable);
        assert!(error.what.contains("no such token") && error.what.contains(LABEL), "{error}");
    });
}

#[test]
fn a_label_that_matches_two_tokens_is_refused() {
    alone("setup::a_label_that_matches_two_tokens_is_refused", |bench| async move {
        bench.add_token(LABEL);
        let error = refusal(bench.settings()).await;
        assert_eq!(error.verdict, Verdict::Misconfigured);
        assert!(error.what.contains("several tokens") && error.remedy.contains("serial"), "{error:?}");
    });
}

/// Makes an AES key in the token as an operator with another tool might.
fn imprudent_key(id: u8, change: &[Attribute]) -> KekHandle {
    let mut template = vec![
        Attribute::Token(true),
        Attribute::Label(b"imprudent".to_vec()),
        Attribute::Id(vec![id; 4]),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
    ];
    let sound = [
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::ValueLen(Ulong::new(32)),
    ];
    let changed = |one: &&Attribute| !change.iter().any(|other| other.attribute_type() == one.attribute_type());
    template.extend(sound.iter().filter(changed).cloned());
    template.extend(change.iter().cloned());
    let pkcs11 = context();
    session(&pkcs11).generate_key(&Mechanism::AesKeyGen, &template).unwrap();
    KekHandle { id: KekId::new([id; 4]).unwrap(), profile: Profile::AesGcm }
}

#[test]
fn a_kek_that_could_leave_the_token_is_refused_with_the_attribute_named() {
    alone("setup::a_kek_that_could_leave_the_token_is_refused_with_the_attribute_named", |bench| async move {
        let token = bench.open().await;
        let cases = [
            (vec![Attribute::Extractable(true)], "CKA_EXTRACTABLE"),
            (vec![Attribute::Sensitive(false)], "CKA_SENSITIVE"),
            (vec![Attribute::Wrap(true)], "CKA_WRAP"),
            (vec![Attribute::Unwrap(true)], "CKA_UNWRAP"),
            (vec![Attribute::ValueLen(Ulong::new(16))], "CKA_VALUE_LEN"),
        ];
        for (id, (change, attribute)) in (1..).zip(cases) {
            let kek = imprudent_key(id, &change);
            let error = token.wrap(&kek, &Aek::generate().unwrap(), &[0; 32]).await.unwrap_err();
            assert_eq!(error.verdict, Verdict::Misconfigured, "{attribute}: {error}");
            assert!(error.what.contains(attribute), "{error}");
            let info = token.find_kek(&kek.id).await.unwrap().unwrap();
            assert!(info.refused.unwrap().contains(attribute));
        }
    });
}

/// An RSA pair whose halves have these CKA_IDs.
fn rsa_pair(session: &Session, private: u8, public: u8, change: &[Attribute]) {
    let common = |id: u8| [Attribute::Token(true), Attribute::Id(vec![id; 4]), Attribute::Label(b"pair".to_vec())];
    let mut public = common(public).to_vec();
    let bits = Attribute::ModulusBits(Ulong::new(3072));
    public.extend([bits, Attribute::PublicExponent(vec![1, 0, 1]), Attribute::Encrypt(true), Attribute::Wrap(false)]);
    let mut private = common(private).to_vec();
    private.extend([
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Decrypt(true),
        Attribute::Unwrap(false),
        Attribute::Sign(false),
    ]);
    private.extend(change.iter().cloned());
    session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private).unwrap();
}

#[test]
fn half_a_key_is_misconfigured_by_name_neither_denied_nor_unreachable() {
    alone("setup::half_a_key_is_misconfigured_by_name_neither_denied_nor_unreachable", |bench| async move {
        let token = bench.open().await;
        let kw = [Attribute::Encrypt(false), Attribute::Decrypt(false), Attribute::Unwrap(true)];
        let (gcm, mut kw) = (imprudent_key(1, &[Attribute::Encrypt(false)]), imprudent_key(2, &kw));
        kw.profile = Profile::AesKw;
        let (pkcs11, rsa) =
            (context(), |id| KekHandle { id: KekId::new([id; 4]).unwrap(), profile: Profile::RsaOaepSha256 });
        let session = session(&pkcs11);
        // The private key 3 has no public half, 4 the one of key 3, and 5 its own and that of another key.
        for (private, public) in [(3, 4), (4, 9), (5, 5), (6, 5)] {
            rsa_pair(&session, private, public, &[]);
        }
        let cases = [
            (gcm, "CKA_ENCRYPT is false"),
            (kw, "CKA_WRAP is false"),
            (rsa(3), "its public half is not in the token"),
            (rsa(4), "another CKA_MODULUS"),
            (rsa(5), "several public keys"),
        ];
        for (kek, words) in cases {
            let error = token.wrap(&kek, &Aek::generate().unwrap(), &[0; 32]).await.unwrap_err();
            assert!(error.verdict == Verdict::Misconfigured && error.what.contains(words), "{words}: {error:?}");
            let info = token.find_kek(&kek.id).await.unwrap().unwrap();
            assert!(info.half.as_ref().is_some_and(|half| half.contains(words)), "{words}: {info:?}");
            assert_eq!((info.enabled, info.refused), (true, None), "{words}");
            assert!(token.list_keks().await.unwrap().iter().any(|key| key.id == kek.id && key.half == info.half));
        }
        rsa_pair(&session, 7, 7, &[Attribute::AlwaysAuthenticate(true)]);
        let error = token.wrap(&rsa(7), &Aek::generate().unwrap(), &[0; 32]).await.unwrap_err();
        assert!(error.verdict == Verdict::Misconfigured && error.what.contains("CKA_ALWAYS_AUTHENTICATE"), "{error:?}");
    });
}

#[test]
fn a_key_that_no_record_can_name_is_told_with_why() {
    alone("setup::a_key_that_no_record_can_name_is_told_with_why", |bench| async move {
        let token = bench.open().await;
        imprudent_key(1, &[]);
        imprudent_key(2, &[Attribute::Id(vec![])]);
        imprudent_key(3, &[Attribute::Id(vec![7; 65])]);
        let keys = token.list_unaddressable().await.unwrap();
        let why: Vec<_> = keys.iter().map(|key| (key.kind, key.bits, key.why.as_str())).collect();
        assert_eq!(why.len(), 2, "{keys:?}");
        for told in [("AES", 256, "it has no CKA_ID"), ("AES", 256, "its CKA_ID has 65 bytes")] {
            assert!(why.contains(&told), "{told:?}: {keys:?}");
        }
        assert_eq!(token.list_keks().await.unwrap().len(), 1);
        // Twins are listed, and refused by name.
        imprudent_key(1, &[]);
        let twins = token.list_keks().await.unwrap();
        assert_eq!(twins.len(), 2);
        assert!(
            twins.iter().all(|twin| twin.refused.as_ref().is_some_and(|why| why.contains("two keys"))),
            "{twins:?}"
        );
    });
}

#[test]
fn what_weakens_a_kek_is_told_wherever_it_is_found() {
    alone("setup::what_weakens_a_kek_is_told_wherever_it_is_found", |bench| async move {
        let token = bench.open().await;
        let cases = [
            (Attribute::Private(false), "CKA_PRIVATE"),
            (Attribute::Modifiable(false), "CKA_MODIFIABLE"),
            (Attribute::Sign(true), "CKA_SIGN"),
            (Attribute::Derive(true), "CKA_DERIVE"),
        ];
        let others = [Attribute::Sign(false), Attribute::Derive(false)];
        for (id, (change, attribute)) in (1..).zip(cases) {
            let mut changes = vec![change.clone()];
            changes.extend(others.iter().filter(|other| other.attribute_type() != change.attribute_type()).cloned());
            let kek = imprudent_key(id, &changes);
            let info = token.find_kek(&kek.id).await.unwrap().unwrap();
            assert!(matches!(&info.warnings[..], [one] if one.starts_with(attribute)), "{attribute}: {info:?}");
            assert!(token.wrap(&kek, &Aek::generate().unwrap(), &[0; 32]).await.is_ok(), "{attribute}");
        }
        let spec = KekSpec { label: "made here".into(), profile: Profile::AesGcm, destroyable: false };
        assert_eq!(token.create_kek(&spec).await.unwrap().warnings, [""; 0]);
    });
}

#[test]
fn a_kek_is_denied_outside_its_dates_though_softhsm_does_not_look() {
    alone("setup::a_kek_is_denied_outside_its_dates_though_softhsm_does_not_look", |bench| async move {
        let token = bench.open().await;
        let date = |year| Date::new_from_str_slice(year, "01", "01").unwrap();
        for (id, change, attribute) in [
            (1, Attribute::StartDate(date("2999")), "CKA_START_DATE"),
            (2, Attribute::EndDate(date("2001")), "CKA_END_DATE"),
        ] {
            // SoftHSM cannot read a private key's dates back.
            let kek = imprudent_key(id, &[change, Attribute::Private(false)]);
            let error = token.wrap(&kek, &Aek::generate().unwrap(), &[0; 32]).await.unwrap_err();
            assert_eq!(error.verdict, Verdict::Denied, "{error}");
            assert!(error.what.contains(attribute), "{error}");
            let owner = keyleash::token::pkcs11::operator::Operator::new(bench.open().await);
            let error = owner.enable(&kek.id, kek.profile).await.unwrap_err();
            assert!(error.verdict == Verdict::Misconfigured && error.what.contains(attribute), "{error}");
            owner.disable(&kek.id, kek.profile).await.unwrap();
        }
        let hidden = imprudent_key(3, &[Attribute::EndDate(date("2001"))]);
        let error = token.wrap(&hidden, &Aek::generate().unwrap(), &[0; 32]).await.unwrap_err();
        assert!(error.verdict == Verdict::Misconfigured && error.what.contains("CKA_END_DATE"), "{error}");
    });
}

#[test]
fn an_end_date_that_is_set_on_a_kek_in_use_counts_from_the_next_call() {
    alone("setup::an_end_date_that_is_set_on_a_kek_in_use_counts_from_the_next_call", |bench| async move {
        let token = bench.open().await;
        let aek = Aek::generate().unwrap();
        let set_end = |kek: &KekHandle, year| operator(&["set-end", &kek.id.to_string(), year]);
        // SoftHSM cannot read a private key's dates back.
        let kek = imprudent_key(1, &[Attribute::Private(false)]);
        let wrapped = token.wrap(&kek, &aek, &[0; 32]).await.unwrap();
        for _ in 0..2 {
            assert_eq!(token.unwrap(&kek, &wrapped, &[0; 32]).await.as_ref(), Ok(&aek));
            set_end(&kek, "2001");
            for result in [token.unwrap(&kek, &wrapped, &[0; 32]).await, token.unwrap(&kek, &wrapped, &[0; 32]).await] {
                let error = result.unwrap_err();
                assert!(error.verdict == Verdict::Denied && error.what.contains("CKA_END_DATE"), "{error}");
            }
            assert_eq!(token.wrap(&kek, &aek, &[0; 32]).await.unwrap_err().verdict, Verdict::Denied);
            set_end(&kek, "2999");
        }
        assert_eq!(token.unwrap(&kek, &wrapped, &[0; 32]).await.as_ref(), Ok(&aek));

        let hidden = imprudent_key(2, &[]);
        let wrapped = token.wrap(&hidden, &aek, &[0; 32]).await.unwrap();
        assert_eq!(token.unwrap(&hidden, &wrapped, &[0; 32]).await.as_ref(), Ok(&aek));
        set_end(&hidden, "2001");
        let error = token.unwrap(&hidden, &wrapped, &[0; 32]).await.unwrap_err();
        assert!(error.verdict == Verdict::Denied && error.what.contains("CKA_END_DATE"), "{error}");
    });
}

#[test]
fn a_kek_of_another_type_or_a_twin_is_refused() {
    alone("setup::a_kek_of_another_type_or_a_twin_is_refused", |bench| async move {
        let token = bench.open().await;
        let mut kek = imprudent_key(1, &[]);
        imprudent_key(1, &[]);
        let error = token.wrap(&kek, &Aek::generate().unwrap(), &[0; 32]).await.unwrap_err();
        assert!(error.verdict == Verdict::Misconfigured && error.what.contains("two keys"), "{error}");
        kek = imprudent_key(2, &[]);
        kek.profile = Profile::RsaOaepSha256;
        let error = token.wrap(&kek, &Aek::generate().unwrap(), &[0; 32]).await.unwrap_err();
        assert!(error.verdict == Verdict::Misconfigured && error.what.contains("CKA_KEY_TYPE"), "{error}");
    });
}

#[test]
fn a_kek_is_not_destroyable_unless_asked() {
    alone("setup::a_kek_is_not_destroyable_unless_asked", |bench| async move {
        let token = bench.open().await;
        let spec = KekSpec { label: "safe".into(), profile: Profile::AesGcm, destroyable: false };
        let kek = token.create_kek(&spec).await.unwrap();
        assert_eq!((kek.destroyable, kek.modifiable), (Some(false), Some(true)));
        let pkcs11 = context();
        let session = session(&pkcs11);
        let object = session.find_objects(&[Attribute::Id(kek.id.as_bytes().to_vec())]).unwrap()[0];
        assert!(session.destroy_object(object).is_err());
    });
}

#[test]
fn softhsm_cannot_do_oaep_with_sha256_and_the_probe_says_so() {
    alone("setup::softhsm_cannot_do_oaep_with_sha256_and_the_probe_says_so", |bench| async move {
        let token = bench.open().await;
        let error = token.probe(Profile::RsaOaepSha256).await.unwrap_err();
        assert_eq!(error.verdict, Verdict::Misconfigured, "{error}");
        assert!(error.what.contains("rsa-oaep-sha256") && error.what.contains("CKR_"), "{error}");
        assert!(error.remedy.contains("aes-gcm"), "{error:?}");
        assert!(token.probe(Profile::AesGcm).await.is_ok(), "the failed probe leaves a working token");
    });
}
