//! The token's own mechanisms against published vectors: an error here is the token's, and would cost data.

use crate::bench::{alone, context, session};
use cryptoki::{
    mechanism::{
        Mechanism, MechanismType,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
    },
    object::{Attribute, AttributeType, KeyType, ObjectClass},
    session::Session,
    types::Ulong,
};

fn import_aes(session: &Session, key: &str) -> cryptoki::object::ObjectHandle {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
        Attribute::Wrap(true),
        Attribute::Unwrap(true),
        Attribute::Value(hex::decode(key).unwrap()),
    ];
    session.create_object(&template).unwrap()
}

/// RFC 3394, section 4.6: 256 bits of key data with a 256-bit KEK.
#[test]
fn the_token_wraps_as_rfc_3394_prints() {
    alone("known_answers::the_token_wraps_as_rfc_3394_prints", |_| async {
        let pkcs11 = context();
        let session = session(&pkcs11);
        let kek = import_aes(&session, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");
        let data = "00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f";
        let printed = "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21";
        let key = import_aes(&session, data);
        let mut wrapped = session.wrap_key(&Mechanism::AesKeyWrap, kek, key).unwrap();
        wrapped.truncate(40);
        assert_eq!(hex::encode(&wrapped), printed);
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(false),
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
        ];
        let back = session.unwrap_key(&Mechanism::AesKeyWrap, kek, &wrapped, &template).unwrap();
        let value = session.get_attributes(back, &[AttributeType::Value]).unwrap();
        assert_eq!(value, [Attribute::Value(hex::decode(data).unwrap())]);
    });
}

/// SoftHSM does OAEP with SHA-1 alone: that the mechanism works and refuses what was changed, with a fresh key pair.
#[test]
fn the_token_opens_what_its_public_half_sealed_with_oaep() {
    alone("known_answers::the_token_opens_what_its_public_half_sealed_with_oaep", |_| async {
        let pkcs11 = context();
        let session = session(&pkcs11);
        let public = [Attribute::Token(false), Attribute::Encrypt(true), Attribute::ModulusBits(Ulong::new(2048))];
        let private = [Attribute::Token(false), Attribute::Decrypt(true)];
        let (public, private) = session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private).unwrap();
        let oaep =
            Mechanism::from(PkcsOaepParams::new(MechanismType::SHA1, PkcsMgfType::MGF1_SHA1, PkcsOaepSource::empty()));
        let mut sealed = session.encrypt(&oaep, public, &[7; 32]).unwrap();
        assert_eq!(session.decrypt(&oaep, private, &sealed).unwrap(), [7; 32]);
        sealed[9] ^= 1;
        assert!(session.decrypt(&oaep, private, &sealed).is_err());
    });
}
