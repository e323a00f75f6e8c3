//! Engines, accounts and tokens to measure.

use super::counting::Counting;
use keyleash::{
    Account, Engine,
    block::{Backend, Suite},
    clock::Clock,
    name::{AccountId, KekName},
    store::memory::MemoryStore,
    token::{
        Profile, Token,
        pkcs11::{FreshContext, PinSource, Pkcs11Settings, Pkcs11Token, Selector},
        scripted::{Script, ScriptedToken},
    },
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::runtime::Runtime;

/// The seed of scripted tokens and of what is drawn at random: two runs do the same.
pub(crate) const SEED: u64 = 1;
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

pub(crate) fn kek_name(name: &str) -> KekName {
    KekName::new(name).expect("a KEK name")
}

/// The id of the account with a number; all of them are as long.
pub(crate) fn account_id(number: usize) -> AccountId {
    AccountId::new(format!("tenant-{number:07}")).expect("an account id")
}

/// A scripted token that counts, on real time.
pub(crate) fn scripted(clock: Clock) -> (Arc<Counting>, Script) {
    let (token, script) = ScriptedToken::new(clock, CALL_TIMEOUT, SEED);
    (Counting::new(token), script)
}

/// An engine over a scripted token, and as many of its accounts as are asked for.
pub(crate) async fn accounts(backend: Backend, suite: Suite, count: usize) -> Vec<Account> {
    let (token, _) = scripted(Clock::default());
    let engine = Engine::builder(token, Arc::new(MemoryStore::new())).backend(backend).suite(suite);
    let engine = engine.build().expect("an engine");
    let kek = kek_name("bench");
    engine.create_kek(&kek, Profile::AesGcm).await.expect("a KEK");
    let mut accounts = Vec::new();
    for number in 0..count {
        accounts.push(engine.create_account(&account_id(number), &kek).await.expect("an account"));
    }
    accounts
}

/// A variable that softhsm/with-token sets.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: this needs a token. Run it as `softhsm/with-token COMMAND…`"))
}

pub(crate) fn module() -> PathBuf {
    variable("KEYLEASH_MODULE").into()
}

/// The token of softhsm/with-token, with so many workers beside the one that several keep for proofs. The bare loop uses the module too, so it is never finalized.
pub(crate) async fn softhsm(workers: usize) -> Arc<Counting> {
    let label = Selector::Label(variable("KEYLEASH_TOKEN_LABEL"));
    let pin = PinSource::File(variable("KEYLEASH_PIN_FILE").into());
    let mut settings = Pkcs11Settings::new(module(), label, pin);
    settings.workers = workers + usize::from(workers > 1);
    settings.fresh = FreshContext::Never;
    let token = Pkcs11Token::open(settings).await.expect("the token of softhsm/with-token");
    Counting::new(Arc::new(token) as Arc<dyn Token>)
}
