//! The operator: a child process that does to the token what KEYLEASH_TEST_ACT says, as another program would.

use crate::bench::{LABEL, PIN, SO_PIN, context, session, slot};
use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    types::{AuthPin, Date, Ulong},
};
use std::io::Read;

#[test]
fn acts() {
    let Ok(act) = std::env::var("KEYLEASH_TEST_ACT") else { return };
    let words: Vec<&str> = act.lines().collect();
    match words[..] {
        ["init-token", label] => init_token(label),
        ["reset-token"] => reset_token(),
        ["init-pin"] => init_pin(),
        ["set", id, attribute, value] => set(id, attribute, value == "true"),
        ["set-pin", old, new] => set_pin(old, new),
        ["mistype"] => log_in("mistyped", false),
        ["log-in"] => log_in(PIN, true),
        ["set-end", id, year] => set_end(id, year),
        ["replace-token", id, label] => replace_token(id, label),
        ["destroy", id] => with_key(id, |session, key| session.destroy_object(key).unwrap()),
        ["replace-key", id] => replace_key(id),
        ["decoy", id, profile] => decoy(id, profile),
        ["hold-lock", file] => hold_lock(file),
        _ => panic!("no such act: {words:?}"),
    }
}

fn init_token(label: &str) {
    let pkcs11 = context();
    let slots = pkcs11.get_slots_with_token().unwrap();
    let free = slots.into_iter().find(|slot| !pkcs11.get_token_info(*slot).unwrap().token_initialized()).unwrap();
    let so_pin = AuthPin::from(SO_PIN);
    pkcs11.init_token(free, &so_pin, label).unwrap();
    let slots = pkcs11.get_slots_with_initialized_token().unwrap();
    for slot in slots {
        let token = pkcs11.get_token_info(slot).unwrap();
        if token.label() == label && !token.user_pin_initialized() {
            let session = pkcs11.open_rw_session(slot).unwrap();
            session.login(UserType::So, Some(&so_pin)).unwrap();
            session.init_pin(&AuthPin::from(PIN)).unwrap();
        }
    }
}

/// Initialises the token anew: it has no user PIN then.
fn reset_token() {
    let pkcs11 = context();
    pkcs11.init_token(slot(&pkcs11), &AuthPin::from(SO_PIN), LABEL).unwrap();
}

fn init_pin() {
    let pkcs11 = context();
    let session = pkcs11.open_rw_session(slot(&pkcs11)).unwrap();
    session.login(UserType::So, Some(&AuthPin::from(SO_PIN))).unwrap();
    session.init_pin(&AuthPin::from(PIN)).unwrap();
}

/// SoftHSM loses the new PIN when another process logs in at that instant and writes the old one back (`src/manual/modules.md`):
/// so until it is there.
fn set_pin(old: &str, new: &str) {
    const TRIES_MAX: usize = 20;
    for _ in 0..TRIES_MAX {
        in_session(|session| {
            session.login(UserType::User, Some(&AuthPin::from(old))).unwrap();
            session.set_pin(&AuthPin::from(old), &AuthPin::from(new)).unwrap();
        });
        if in_session(|session| session.login(UserType::User, Some(&AuthPin::from(new))).is_ok()) {
            return;
        }
    }
    panic!("the PIN was changed {TRIES_MAX} times and lost each time");
}

/// In a context of its own: SoftHSM hides changes from one that is open.
fn in_session<T>(act: impl FnOnce(&cryptoki::session::Session) -> T) -> T {
    let pkcs11 = context();
    let done = act(&pkcs11.open_rw_session(slot(&pkcs11)).unwrap());
    pkcs11.finalize().unwrap();
    done
}

/// Initialises the token anew and makes another KEK in it, under the name and CKA_ID of the one that was there.
fn replace_token(id: &str, label: &str) {
    let pkcs11 = context();
    let slot = slot(&pkcs11);
    let so_pin = AuthPin::from(SO_PIN);
    pkcs11.init_token(slot, &so_pin, LABEL).unwrap();
    {
        let so = pkcs11.open_rw_session(slot).unwrap();
        so.login(UserType::So, Some(&so_pin)).unwrap();
        so.init_pin(&AuthPin::from(PIN)).unwrap();
        so.logout().unwrap();
    }
    let template = [
        Attribute::Token(true),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Id(hex::decode(id).unwrap()),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::ValueLen(Ulong::new(32)),
    ];
    session(&pkcs11).generate_key(&Mechanism::AesKeyGen, &template).unwrap();
}

/// Another key under the CKA_ID.
fn replace_key(id: &str) {
    with_key(id, |session, key| {
        session.destroy_object(key).unwrap();
        let template = [
            Attribute::Token(true),
            Attribute::Label(b"another".to_vec()),
            Attribute::Id(hex::decode(id).unwrap()),
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::Wrap(false),
            Attribute::Unwrap(false),
            Attribute::ValueLen(Ulong::new(32)),
        ];
        session.generate_key(&Mechanism::AesKeyGen, &template).unwrap();
    });
}

/// Another key under the CKA_ID, which unwraps and may not wrap.
fn decoy(id: &str, profile: &str) {
    with_key(id, |session, key| {
        session.destroy_object(key).unwrap();
        let template = [
            Attribute::Token(true),
            Attribute::Id(hex::decode(id).unwrap()),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Decrypt(profile != "aes-kw"),
            Attribute::Unwrap(profile == "aes-kw"),
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Encrypt(false),
            Attribute::Wrap(false),
            Attribute::ValueLen(Ulong::new(32)),
        ];
        session.generate_key(&Mechanism::AesKeyGen, &template).unwrap();
    });
}

fn with_key(id: &str, act: impl Fn(&Session, ObjectHandle)) {
    let pkcs11 = context();
    let session = session(&pkcs11);
    let id = hex::decode(id).unwrap();
    let found: Vec<_> = [ObjectClass::SECRET_KEY, ObjectClass::PRIVATE_KEY]
        .into_iter()
        .flat_map(|class| session.find_objects(&[Attribute::Id(id.clone()), Attribute::Class(class)]).unwrap())
        .collect();
    assert_eq!(found.len(), 1, "on {LABEL}");
    act(&session, found[0]);
}

fn set(id: &str, attribute: &str, value: bool) {
    let attribute = match attribute {
        "decrypt" => Attribute::Decrypt(value),
        "encrypt" => Attribute::Encrypt(value),
        "unwrap" => Attribute::Unwrap(value),
        "wrap" => Attribute::Wrap(value),
        _ => panic!("{attribute}"),
    };
    with_key(id, |session, key| session.update_attributes(key, std::slice::from_ref(&attribute)).unwrap());
}

/// The token counts a wrong PIN, until the next right one.
fn log_in(pin: &str, right: bool) {
    let pkcs11 = context();
    let session = pkcs11.open_rw_session(slot(&pkcs11)).unwrap();
    assert_eq!(session.login(UserType::User, Some(&AuthPin::from(pin))).is_ok(), right);
}

fn set_end(id: &str, year: &str) {
    let end = Attribute::EndDate(Date::new_from_str_slice(year, "01", "01").unwrap());
    with_key(id, |session, key| session.update_attributes(key, std::slice::from_ref(&end)).unwrap());
}

fn hold_lock(file: &str) {
    let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    println!("held");
    // Until the other side closes its end.
    #[allow(clippy::disallowed_methods)]
    let _ = std::io::stdin().read(&mut [0]);
}
