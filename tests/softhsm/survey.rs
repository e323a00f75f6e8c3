//! What a token says, for the tables of `src/manual/tokens.md`: printed by `softhsm/token-matrix`, judged by nobody.

use crate::bench::{MEASURED, alone, context, session, slot};
use cryptoki::{
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    types::AuthPin,
};
use keyleash::token::{KekSpec, Profile, Token};

const ATTRIBUTES: &[AttributeType] = &[
    AttributeType::Private,
    AttributeType::Modifiable,
    AttributeType::Copyable,
    AttributeType::Destroyable,
    AttributeType::Local,
    AttributeType::AlwaysSensitive,
    AttributeType::NeverExtractable,
    AttributeType::Sign,
    AttributeType::SignRecover,
    AttributeType::Derive,
    AttributeType::Trusted,
    AttributeType::WrapWithTrusted,
    AttributeType::AlwaysAuthenticate,
    AttributeType::AllowedMechanisms,
    AttributeType::StartDate,
    AttributeType::EndDate,
    AttributeType::KeyGenMechanism,
    AttributeType::UniqueId,
];

fn told(session: &Session, object: ObjectHandle) -> String {
    let one = |attribute: &AttributeType| match session.get_attributes(object, &[*attribute]) {
        Ok(values) => values.first().map_or_else(|| format!("{attribute:?}=-"), |value| format!("{value:?}")),
        Err(error) => format!("{attribute:?}: {error}"),
    };
    ATTRIBUTES.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
#[ignore = "softhsm/token-matrix asks it of each token"]
fn what_the_token_says() {
    alone("survey::what_the_token_says", |bench| async move {
        let who = std::env::var("KEYLEASH_MATRIX").unwrap_or_default();
        let token = bench.open().await;
        for profile in Profile::ALL {
            let spec = KekSpec { label: profile.name().into(), profile, destroyable: true };
            let made = match token.create_kek(&spec).await {
                Ok(made) => made,
                Err(error) => {
                    println!("{MEASURED}says|{who}|{profile}|{}", error.what);
                    continue;
                }
            };
            let pkcs11 = context();
            let session = session(&pkcs11);
            for class in [ObjectClass::SECRET_KEY, ObjectClass::PRIVATE_KEY] {
                let template = [Attribute::Id(made.id.as_bytes().to_vec()), Attribute::Class(class)];
                for object in session.find_objects(&template).unwrap() {
                    println!("{MEASURED}says|{who}|{profile}|{}", told(&session, object));
                }
            }
        }
        drop(token);
        let pkcs11 = context();
        let slot = slot(&pkcs11);
        let session = pkcs11.open_rw_session(slot).unwrap();
        let _ = session.logout();
        for attempt in 1..=3 {
            let code = session.login(UserType::User, Some(&AuthPin::from("wrong"))).map_err(|error| error.to_string());
            let flags = pkcs11.get_token_info(slot).map(|info| {
                (info.user_pin_count_low(), info.user_pin_final_try(), info.user_pin_locked(), info.label().to_owned())
            });
            println!("{MEASURED}says|{who}|wrong PIN {attempt}|{code:?}, low, final, locked: {flags:?}");
        }
    });
}
