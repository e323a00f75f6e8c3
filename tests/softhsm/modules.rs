//! One library, whatever the paths that it is loaded by; and what a copy of it is.

use crate::bench::{Bench, LABEL, MEASURED, alone, operator, real_module, variable};
use keyleash::{
    secret::Aek,
    token::{KekHandle, KekSpec, Profile, Token, Verdict, Wrapped, pkcs11::Pkcs11Token},
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

const BINDING: [u8; 32] = [5; 32];
/// Fresh contexts of one token under the calls of the other. With a gate for each a process dies in far fewer.
const RENEWALS: usize = 150;
const NO_BIND_MOUNT: i32 = 77;

fn original(bench: &Bench) -> PathBuf {
    let path = bench.dir.join("libone.so");
    if !path.exists() {
        std::fs::copy(real_module(), &path).unwrap();
    }
    path
}

async fn open(bench: &Bench, module: &Path) -> Arc<Pkcs11Token> {
    let mut settings = bench.settings();
    settings.module = module.into();
    Arc::new(Pkcs11Token::open(settings).await.unwrap())
}

async fn account(token: &Pkcs11Token) -> (KekHandle, Wrapped) {
    let spec = KekSpec { label: "keyleash/x/1".into(), profile: Profile::AesGcm, destroyable: true };
    let kek = KekHandle { id: token.create_kek(&spec).await.unwrap().id, profile: Profile::AesGcm };
    let wrapped = token.wrap(&kek, &Aek::generate().unwrap(), &BINDING).await.unwrap();
    (kek, wrapped)
}

/// Calls through one, and meanwhile a fresh context again and again through the other. Gives how many calls there were, and how many
/// found the token unreachable.
async fn storm(calls: &Arc<Pkcs11Token>, renewals: &Pkcs11Token) -> (usize, usize) {
    let (kek, wrapped) = account(calls).await;
    let (over, done, unreachable) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::default());
    let callers: Vec<_> = (0..2)
        .map(|_| {
            let (token, kek, wrapped) = (calls.clone(), kek.clone(), wrapped.clone());
            let (over, done, unreachable): (_, _, Arc<AtomicUsize>) =
                (over.clone(), done.clone(), Arc::clone(&unreachable));
            tokio::spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    done.fetch_add(1, Ordering::SeqCst);
                    if let Err(error) = token.unwrap(&kek, &wrapped, &BINDING).await {
                        assert_eq!(error.verdict, Verdict::Unreachable, "{error:?}");
                        unreachable.fetch_add(1, Ordering::SeqCst);
                    }
                }
            })
        })
        .collect();
    for _ in 0..RENEWALS {
        let _ = renewals.renew_context().await;
        let _ = renewals.unwrap(&kek, &wrapped, &BINDING).await;
    }
    over.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
    (done.load(Ordering::SeqCst), unreachable.load(Ordering::SeqCst))
}

async fn is_one(bench: &Bench, other: &Path) {
    let (first, second) = (open(bench, &original(bench)).await, open(bench, other).await);
    assert_eq!(format!("{first:?}"), format!("{second:?}"), "one module, by the path of the first");
    assert_eq!(storm(&first, &second).await.1, 0);
}

#[test]
fn two_paths_of_one_library_stand_behind_one_gate() {
    alone("modules::two_paths_of_one_library_stand_behind_one_gate", |bench| async move {
        let (hard, soft) = (bench.dir.join("libhard.so"), bench.dir.join("libsoft.so"));
        std::fs::hard_link(original(&bench), &hard).unwrap();
        std::os::unix::fs::symlink(original(&bench), &soft).unwrap();
        is_one(&bench, &hard).await;
        is_one(&bench, &soft).await;
        // Over the first: the loader goes by the name, and has that library already.
        std::fs::copy(real_module(), bench.dir.join("next")).unwrap();
        std::fs::rename(bench.dir.join("next"), original(&bench)).unwrap();
        is_one(&bench, &original(&bench)).await;
    });
}

#[test]
fn a_bind_mount_of_a_library_stands_behind_its_gate() {
    alone("modules::a_bind_mount_of_a_library_stands_behind_its_gate", |bench| async move {
        let bound = bench.dir.join("libbound.so");
        std::fs::write(&bound, "").unwrap();
        let mount = format!(
            "mount --bind \"$1\" \"$2\" || exit {NO_BIND_MOUNT}; exec \"$3\" --exact modules::through_a_bind_mount --nocapture --ignored"
        );
        let mut child = Command::new("unshare");
        child.args(["--mount", "sh", "-c", &mount, "sh"]).arg(original(&bench)).arg(&bound);
        let output = child.arg(std::env::current_exe().unwrap()).env("KEYLEASH_TEST_BOUND", &bound).output();
        match output {
            Ok(output) if output.status.success() => {
                assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
            }
            Ok(output) if output.status.code() == Some(NO_BIND_MOUNT) || output.stdout.is_empty() => {
                println!("{MEASURED}bind mount: not permitted here");
            }
            Err(error) => println!("{MEASURED}bind mount: no unshare here: {error}"),
            Ok(output) => panic!("{output:?}"),
        }
    });
}

#[test]
#[ignore = "run by the one above"]
fn through_a_bind_mount() {
    let Ok(bound) = std::env::var("KEYLEASH_TEST_BOUND") else { return };
    let bench = Bench { dir: variable("KEYLEASH_TEST_DIR").into() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(is_one(&bench, Path::new(&bound)));
}

/// A copy is another library to the loader, with a context of its own; what the two share is outside of the process's memory.
#[test]
fn a_copy_of_a_library_is_a_module_of_its_own() {
    alone("modules::a_copy_of_a_library_is_a_module_of_its_own", |bench| async move {
        let copy = bench.dir.join("libcopy.so");
        std::fs::copy(real_module(), &copy).unwrap();
        let (first, second) = (open(&bench, &original(&bench)).await, open(&bench, &copy).await);
        assert_ne!(format!("{first:?}"), format!("{second:?}"));
        let (calls, unreachable) = storm(&first, &second).await;
        println!("{MEASURED}a copy on the same token, {RENEWALS} contexts: {unreachable} of {calls} calls unreachable");
        drop((first, second));
        // The token is whole.
        operator(&["log-in"]);
        assert!(open(&bench, &original(&bench)).await.info().await.unwrap().label == LABEL);
    });
}
