//! keyleash itself: the whole way of a block, lease and all. The first is what the others are compared with.

use crate::{Buffers, Peer, pairs::Side};
use keyleash::{
    Account, Engine,
    block::{Address, Backend, Suite},
    clock::Clock,
    name::{AccountId, KekName},
    store::memory::MemoryStore,
    token::{Profile, scripted::ScriptedToken},
};
use std::{hint::black_box, sync::Arc, sync::OnceLock, time::Duration};
use tokio::runtime::Runtime;

const CALL_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn all(plain: &[u8]) -> Vec<Peer> {
    vec![
        peer("keyleash", Suite::XaesGcm, "", plain),
        peer("keyleash with key commitment", Suite::XaesGcmCommit, "suite 2: a block opens under one AEK alone", plain),
    ]
}

/// Watches and leases live as long as the process.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
    })
}

fn account(suite: Suite) -> Account {
    runtime().block_on(async {
        let (token, _) = ScriptedToken::new(Clock::default(), CALL_TIMEOUT, 1);
        let engine = Engine::builder(token, Arc::new(MemoryStore::new())).backend(Backend::AwsLc).suite(suite);
        let engine = engine.build().expect("an engine");
        let kek = KekName::new("peers").expect("a KEK name");
        engine.create_kek(&kek, Profile::AesGcm).await.expect("a KEK");
        let id = AccountId::new("tenant-0000000").expect("an account id");
        engine.create_account(&id, &kek).await.expect("an account")
    })
}

fn peer(name: &'static str, suite: Suite, difference: &'static str, plain: &[u8]) -> Peer {
    let address = Address::new(&crate::ADDRESS).expect("an address");
    let account = account(suite);
    let mut sealed = plain.to_vec();
    let header = account.seal_in_place(address, &mut sealed).expect("a sealed block");
    let opening = account.clone();
    Peer {
        name,
        package: "keyleash",
        difference,
        seal: Side::new(name, move |buffers: &mut Buffers| {
            black_box(account.seal_into(address, &buffers.plain, &mut buffers.out).expect("a sealed block"));
        }),
        open: Side::new(name, move |buffers: &mut Buffers| {
            opening.open_into(address, &header, &sealed, &mut buffers.out).expect("an opened block");
        }),
    }
}
