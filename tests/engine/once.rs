//! What is opened, and made first where it is not there: as often as anybody asks, it is made once.

use super::*;
use keyleash::{
    Error, KekOptions,
    name::TokenName,
    token::{
        Verdict,
        scripted::{Act, Call},
    },
};

fn name(name: &str) -> KekName {
    KekName::new(name).unwrap()
}

#[tokio::test]
async fn a_kek_that_two_make_at_once_is_one_and_leaves_no_key_that_nobody_names() {
    let rig = Rig::new().await;
    rig.script.set_latency(SECOND / 4);
    let (engine, kek) = (&rig.engine, name("new"));
    let make = || engine.get_or_create_kek(&kek, Profile::AesGcm);
    let (one, two, three) = rig.meanwhile(async { tokio::join!(make(), make(), make()) }).await;
    let (one, two, three) = (one.unwrap(), two.unwrap(), three.unwrap());
    assert!(one == two && two == three, "{one:?}, {two:?}, {three:?}");
    assert_eq!(rig.script.calls(Call::CreateKek), 2, "the rig's own, and this one");
    assert_eq!(rig.meanwhile(engine.unknown_keks()).await.unwrap().len(), 0);
}

#[tokio::test]
async fn of_two_engines_that_make_one_kek_at_once_both_get_the_one_that_counts() {
    let rig = Rig::new().await;
    let there = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    rig.script.set_latency(SECOND / 4);
    let kek = name("new");
    let both = async {
        tokio::join!(
            rig.engine.get_or_create_kek(&kek, Profile::AesGcm),
            there.get_or_create_kek(&kek, Profile::AesGcm)
        )
    };
    let (here, there) = rig.meanwhile(both).await;
    assert_eq!(here.unwrap(), there.unwrap());
}

#[tokio::test]
async fn what_is_there_is_opened_during_an_outage_and_nothing_is_asked_of_the_token() {
    let rig = Rig::new().await;
    let account = rig.account("a").await;
    rig.script.set_unreachable(true);
    let kek = rig.engine.get_or_create_kek(&rig.kek, Profile::AesGcm).await.unwrap();
    assert_eq!((kek.version, &kek.id), (1, &rig.kek_id));
    let again = rig.engine.get_or_create_account(account.id(), &rig.kek).await.unwrap();
    seal(&again).unwrap();
    let made = rig.meanwhile(rig.engine.get_or_create_kek(&name("new"), Profile::AesGcm)).await;
    assert!(matches!(made, Err(Error::Unreachable(_))), "{made:?}");
}

#[tokio::test]
async fn a_kek_that_is_there_and_is_another_than_was_asked_for_is_not_passed_off_as_it() {
    let rig = Rig::new().await;
    let asked =
        [KekOptions::new(Profile::AesKw), KekOptions::new(Profile::AesGcm).token(TokenName::new("elsewhere").unwrap())];
    for (options, word) in asked.into_iter().zip(["aes-kw", "elsewhere"]) {
        let error = rig.engine.get_or_create_kek(&rig.kek, options).await.unwrap_err();
        assert!(matches!(&error, Error::Exists(what) if what.contains(word)), "{error}");
    }
}

#[tokio::test]
async fn an_account_that_two_make_at_once_is_one() {
    let rig = Rig::new().await;
    let there = build(&rig.token, &rig.store, &rig.clock, Settings::default());
    rig.script.set_latency(SECOND / 4);
    let (id, kek) = (account_id("a"), &rig.kek);
    let all = async {
        let here = &rig.engine;
        tokio::join!(
            here.get_or_create_account(&id, kek),
            here.get_or_create_account(&id, kek),
            there.get_or_create_account(&id, kek)
        )
    };
    let (one, two, three) = rig.meanwhile(all).await;
    let (one, two, three) = (one.unwrap(), two.unwrap(), three.unwrap());
    let block = one.seal_to_vec(1_u64, b"data").unwrap();
    for account in [&one, &two, &three] {
        opens(&rig, account, &block).await;
    }
}

#[tokio::test]
async fn an_account_that_was_deleted_is_not_made_anew_by_whoever_asks_for_it() {
    let rig = Rig::new().await;
    let id = account_id("a");
    rig.account("a").await;
    rig.engine.delete_account(&id).await.unwrap();
    let error = rig.engine.get_or_create_account(&id, &rig.kek).await.unwrap_err();
    assert!(matches!(&error, Error::NotFound(what) if what.contains("undelete")), "{error}");
    rig.script.standing(Call::Unwrap, Act::fail(Verdict::Denied));
    let error = rig.engine.get_or_create_account(&account_id("b"), &rig.kek).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error}");
}
