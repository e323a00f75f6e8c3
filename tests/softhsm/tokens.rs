//! Several real tokens under one engine: two in one module, two in modules of their own, and a clone as a standby.

use crate::bench::{Bench, LABEL, alone, alone_with_shim, eventually, hold_lock, module, operator, real_module};
use keyleash::{
    Account, Engine, Error,
    config::Settings,
    engine::EngineBuilder,
    lease::Phase,
    name::{AccountId, KekName, TokenName},
    secret::Aek,
    store::memory::MemoryStore,
    token::{
        KekHandle, KekSpec, Profile, Token, Verdict,
        pkcs11::{PinSource, Pkcs11Settings, Pkcs11Token, Selector},
    },
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

const SECOND: Duration = Duration::from_secs(1);
const SECOND_LABEL: &str = "second token";
/// As long as [`LABEL`]: it takes its place in a copy of the token's file.
const CLONE_LABEL: &str = "test clone";
const BINDING: [u8; 32] = [7; 32];

fn settings() -> Settings {
    let mut settings = Settings::default();
    (settings.poll_interval, settings.store_timeout) = (2 * SECOND, SECOND);
    (settings.grace, settings.aek_ttl) = (8 * SECOND, 4 * SECOND);
    settings
}

async fn open(bench: &Bench, module: &Path, label: &str) -> Arc<Pkcs11Token> {
    let pin = PinSource::File(bench.pin_file());
    let mut token = Pkcs11Settings::new(module, Selector::Label(label.into()), pin);
    token.call_timeout = SECOND;
    Arc::new(Pkcs11Token::open(token).await.unwrap())
}

/// The module once more under another path: code and state of its own.
fn copy_of_module(bench: &Bench) -> PathBuf {
    let copy = bench.dir.join("libcopy.so");
    std::fs::copy(real_module(), &copy).unwrap();
    copy
}

fn directories(bench: &Bench) -> Vec<PathBuf> {
    std::fs::read_dir(bench.tokens()).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The directories of the bench's token and of a second one.
fn two_tokens(bench: &Bench) -> (PathBuf, PathBuf) {
    let first = directories(bench).remove(0);
    bench.add_token(SECOND_LABEL);
    let second = directories(bench).into_iter().find(|directory| *directory != first).unwrap();
    (first, second)
}

/// A KEK, and what wraps and unwraps under it.
async fn kek(token: &Pkcs11Token) -> (KekHandle, keyleash::token::Wrapped) {
    let spec = KekSpec { label: "kek".into(), profile: Profile::AesGcm, destroyable: true };
    let kek = KekHandle { id: token.create_kek(&spec).await.unwrap().id, profile: Profile::AesGcm };
    let wrapped = token.wrap(&kek, &Aek::generate().unwrap(), &BINDING).await.unwrap();
    (kek, wrapped)
}

fn name(name: &str) -> TokenName {
    TokenName::new(name).unwrap()
}

fn over(first: &Arc<Pkcs11Token>, second: &Arc<Pkcs11Token>, store: &Arc<MemoryStore>) -> EngineBuilder {
    let builder = Engine::builder(first.clone(), store.clone()).token(name("second"), second.clone());
    builder.settings(settings()).start_up_proof(false)
}

fn seal(account: &Account) -> keyleash::Result<()> {
    account.seal_in_place(1_u64, &mut [0; 64]).map(drop)
}

/// Counts how often a module was re-initialised, by what the log says.
struct Reinitialisations(Arc<AtomicUsize>);

impl tracing::Subscriber for Reinitialisations {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().contains("pkcs11::module")
    }

    fn event(&self, event: &tracing::Event<'_>) {
        if event.metadata().fields().field("generation").is_some() {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Between the first pauses and the longest one, 800 ms; without pauses it would be dozens a second.
const REINITIALISATIONS_MAX: usize = 30;

#[test]
fn a_token_that_is_away_costs_another_of_its_module_no_call_and_is_looked_for_in_pauses() {
    alone(
        "tokens::a_token_that_is_away_costs_another_of_its_module_no_call_and_is_looked_for_in_pauses",
        |bench| async move {
            let count = Arc::new(AtomicUsize::new(0));
            tracing::subscriber::set_global_default(Reinitialisations(count.clone())).unwrap();
            let (directory, _) = two_tokens(&bench);
            let first = open(&bench, &real_module(), LABEL).await;
            let second = open(&bench, &real_module(), SECOND_LABEL).await;
            let (kek_of_first, wrapped_by_first) = kek(&first).await;
            let (kek_of_second, wrapped_by_second) = kek(&second).await;
            let away = bench.dir.join("away");
            std::fs::rename(&directory, &away).unwrap();
            let asking = tokio::spawn({
                let first = first.clone();
                let (kek, wrapped) = (kek_of_first.clone(), wrapped_by_first.clone());
                async move {
                    loop {
                        let trouble = first.unwrap(&kek, &wrapped, &BINDING).await.unwrap_err();
                        assert_eq!(trouble.verdict, Verdict::Unreachable, "{trouble}");
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            });
            let until = std::time::Duration::from_secs(6);
            let served = tokio::time::timeout(until, async {
                loop {
                    let unwrapped = second.unwrap(&kek_of_second, &wrapped_by_second, &BINDING).await;
                    unwrapped.unwrap_or_else(|trouble| panic!("the other token's call: {trouble:?}"));
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            });
            assert!(served.await.is_err(), "it ends by the clock");
            assert!(!asking.is_finished(), "what is away is unreachable");
            asking.abort();
            let reinitialised = count.load(Ordering::SeqCst);
            assert!((1..=REINITIALISATIONS_MAX).contains(&reinitialised), "{reinitialised} in 6 s");
            std::fs::rename(&away, &directory).unwrap();
            let mut back = first.unwrap(&kek_of_first, &wrapped_by_first, &BINDING).await;
            for _ in 0..20 {
                if back.is_ok() {
                    break;
                }
                tokio::time::sleep(SECOND / 4).await;
                back = first.unwrap(&kek_of_first, &wrapped_by_first, &BINDING).await;
            }
            back.unwrap();
        },
    );
}

#[test]
fn a_token_whose_files_are_locked_hangs_no_call_of_another_one_in_its_directory() {
    alone("tokens::a_token_whose_files_are_locked_hangs_no_call_of_another_one_in_its_directory", |bench| async move {
        let (directory, _) = two_tokens(&bench);
        let first = open(&bench, &real_module(), LABEL).await;
        let same = open(&bench, &real_module(), SECOND_LABEL).await;
        let apart = open(&bench, &copy_of_module(&bench), SECOND_LABEL).await;
        let (kek_of_first, wrapped_by_first) = kek(&first).await;
        let (kek_of_second, wrapped_by_second) = kek(&same).await;
        let files = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
        let objects: Vec<_> = files.filter(|file| file.extension().is_some_and(|kind| kind == "object")).collect();
        let locks: Vec<_> = objects.iter().map(|object| hold_lock(object)).collect();
        let trouble = first.unwrap(&kek_of_first, &wrapped_by_first, &BINDING).await.unwrap_err();
        assert_eq!((trouble.verdict, first.workers().hung), (Verdict::Unreachable, 1), "{trouble}");
        for (which, token) in [("a module of its own", &apart), ("the same module", &same)] {
            for n in 0..100 {
                let unwrapped = token.unwrap(&kek_of_second, &wrapped_by_second, &BINDING).await;
                unwrapped.unwrap_or_else(|trouble| panic!("{which}, call {n}: {trouble:?}"));
            }
            assert_eq!(token.workers().hung, 0, "{which}");
        }
        drop(locks);
        eventually("the call that hung comes back", || first.workers().hung == 0).await;
        first.unwrap(&kek_of_first, &wrapped_by_first, &BINDING).await.unwrap();
    });
}

#[test]
fn while_a_call_hangs_no_token_of_its_module_is_renewed_and_those_of_another_module_are() {
    let name = "tokens::while_a_call_hangs_no_token_of_its_module_is_renewed_and_those_of_another_module_are";
    alone_with_shim(name, |bench| async move {
        two_tokens(&bench);
        let first = open(&bench, &module(), LABEL).await;
        let same = open(&bench, &module(), SECOND_LABEL).await;
        let apart = open(&bench, &copy_of_module(&bench), SECOND_LABEL).await;
        let (kek_of_first, wrapped_by_first) = kek(&first).await;
        let (kek_of_second, wrapped_by_second) = kek(&same).await;
        bench.fail("C_Decrypt hang count=1");
        let trouble = first.unwrap(&kek_of_first, &wrapped_by_first, &BINDING).await.unwrap_err();
        assert_eq!((trouble.verdict, first.workers().hung), (Verdict::Unreachable, 1), "{trouble}");
        same.unwrap(&kek_of_second, &wrapped_by_second, &BINDING).await.unwrap();
        let refused = same.renew_context().await.unwrap_err();
        assert_eq!(refused.verdict, Verdict::Fatal, "C_Finalize beside a call is a crash: {refused}");
        same.unwrap(&kek_of_second, &wrapped_by_second, &BINDING).await.unwrap();
        apart.renew_context().await.unwrap();
        apart.unwrap(&kek_of_second, &wrapped_by_second, &BINDING).await.unwrap();
        bench.fail("");
        eventually("the call that hung comes back", || first.workers().hung == 0).await;
        same.renew_context().await.unwrap();
        for (token, kek, wrapped) in
            [(&first, &kek_of_first, &wrapped_by_first), (&same, &kek_of_second, &wrapped_by_second)]
        {
            token.unwrap(kek, wrapped, &BINDING).await.unwrap();
        }
    });
}

#[test]
fn an_account_moves_between_real_tokens_and_the_one_that_it_left_can_go() {
    alone("tokens::an_account_moves_between_real_tokens_and_the_one_that_it_left_can_go", |bench| async move {
        let (directory, _) = two_tokens(&bench);
        let first = open(&bench, &real_module(), LABEL).await;
        let second = open(&bench, &copy_of_module(&bench), SECOND_LABEL).await;
        let store = Arc::new(MemoryStore::new());
        let engine = over(&first, &second, &store).build().unwrap();
        let (here, there) = (KekName::new("here").unwrap(), KekName::new("there").unwrap());
        engine.create_kek(&here, Profile::AesGcm).await.unwrap();
        engine.create_kek(&there, keyleash::KekOptions::new(Profile::AesKw).token(name("second"))).await.unwrap();
        let id = AccountId::new("a").unwrap();
        let account = engine.create_account(&id, &here).await.unwrap();
        let left_behind = engine.create_account(&AccountId::new("b").unwrap(), &here).await.unwrap();
        let block = account.seal_to_vec(9_u64, b"before").unwrap();
        assert!(engine.move_account(&id, &there).await.unwrap());
        let record = engine.account_record(&id).await.unwrap();
        assert_eq!(record.versions[0].profile, Profile::AesKw);
        eventually("its handle follows", || engine.leases().iter().any(|lease| lease.kek.name == there)).await;
        tokio::time::sleep(3 * SECOND).await;
        std::fs::rename(&directory, bench.dir.join("away")).unwrap();
        // Longer than grace.
        for _ in 0..100 {
            tokio::time::sleep(SECOND / 10).await;
            assert_eq!(account.open_to_vec(9_u64, &block).unwrap(), b"before");
        }
        eventually("what stayed behind lapses", || matches!(seal(&left_behind), Err(Error::Lapsed(_)))).await;
    });
}

/// Clones the bench's token in place, with the keys that are in it, as a vendor's tool would: under another label and serial.
fn clone_token(bench: &Bench, directory: &Path) {
    let clone = directory.with_file_name("clone");
    let copied = Command::new("cp").arg("-a").args([directory, &clone]).status().unwrap();
    assert!(copied.success());
    let file = clone.join("token.object");
    let mut bytes = std::fs::read(&file).unwrap();
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|window| window == what).unwrap();
    let label = find(&bytes, LABEL.as_bytes());
    bytes[label..label + LABEL.len()].copy_from_slice(CLONE_LABEL.as_bytes());
    // The serial is the last part of the directory's name.
    let of = directory.file_name().unwrap().to_str().unwrap().rsplit('-').next().unwrap().to_owned();
    let serial = of.get(of.len() - 12..).unwrap().as_bytes();
    let at = find(&bytes, serial) + serial.len() - 1;
    bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(directories(bench).len(), 2);
}

#[test]
fn a_clone_of_the_token_serves_while_the_first_is_away_and_not_once_that_denied() {
    alone("tokens::a_clone_of_the_token_serves_while_the_first_is_away_and_not_once_that_denied", |bench| async move {
        let directory = directories(&bench).remove(0);
        let kek = KekName::new("kek").unwrap();
        let store = Arc::new(MemoryStore::new());
        let first = open(&bench, &real_module(), LABEL).await;
        let alone = Engine::builder(first.clone(), store.clone()).settings(settings()).build().unwrap();
        let kek_id = alone.create_kek(&kek, Profile::AesGcm).await.unwrap().id;
        drop(alone);
        clone_token(&bench, &directory);
        let clone = open(&bench, &copy_of_module(&bench), CLONE_LABEL).await;
        let engine = over(&first, &clone, &store).standby(kek.clone(), name("second")).build().unwrap();
        let shown = engine.kek(&kek).await.unwrap();
        assert!(matches!(&shown.versions[0].in_standby, Some((_, Ok(Some(info)))) if info.id == kek_id), "{shown:?}");
        let account = engine.create_account(&AccountId::new("a").unwrap(), &kek).await.unwrap();
        let lease = || engine.leases().remove(0);
        tokio::time::sleep(3 * SECOND).await;
        assert_eq!(lease().on_standby, None);
        std::fs::rename(&directory, bench.dir.join("away")).unwrap();
        // Longer than grace.
        for _ in 0..120 {
            tokio::time::sleep(SECOND / 10).await;
            seal(&account).unwrap();
        }
        assert_eq!((lease().on_standby, lease().phase), (Some(name("second")), Phase::Active));
        let new = engine.create_account(&AccountId::new("new").unwrap(), &kek).await.unwrap();
        std::fs::rename(bench.dir.join("away"), &directory).unwrap();
        eventually("the first token is back", || lease().on_standby.is_none()).await;
        seal(&account).unwrap();
        operator(&["set", &kek_id.to_string(), "decrypt", "false"]);
        eventually("the first token's denial", || matches!(seal(&account), Err(Error::Denied(_)))).await;
        std::fs::rename(&directory, bench.dir.join("away")).unwrap();
        for _ in 0..60 {
            tokio::time::sleep(SECOND / 10).await;
            assert!(matches!(seal(&account), Err(Error::Denied(_))));
            assert!(matches!(seal(&new), Err(Error::Denied(_))));
        }
        std::fs::rename(bench.dir.join("away"), &directory).unwrap();
        operator(&["set", &kek_id.to_string(), "decrypt", "true"]);
        eventually("granted again", || seal(&account).is_ok()).await;
    });
}
