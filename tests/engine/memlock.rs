//! Under `MemlockPolicy::Refuse` no key is in memory that is not locked: by what was locked in fact, engine by engine. Each case
//! in a process of its own, which may lock 1 MiB at most.
#![allow(unsafe_code)] // limits of a process

use super::*;
use keyleash::{
    Error,
    secret::{MemlockPolicy, Pin, unlocked_bytes},
};
use std::{os::unix::process::CommandExt, process::Command};

const CHILD: &str = "KEYLEASH_TEST_MEMLOCK_CHILD";
const LIMIT_BYTES: u64 = 1 << 20;
/// Of key memory that is locked at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Runs `work` in a child that may lock [`LIMIT_BYTES`].
fn alone(name: &str, work: impl AsyncFnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(work());
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([name, "--exact", "--nocapture"]).env(CHILD, "1");
    // SAFETY: system calls that are async-signal-safe.
    unsafe {
        child.pre_exec(|| {
            libc::prctl(libc::PR_CAPBSET_DROP, 14, 0, 0, 0); // CAP_IPC_LOCK, which lifts the limit; nobody but root has it
            let limit = libc::rlimit { rlim_cur: LIMIT_BYTES, rlim_max: LIMIT_BYTES };
            if libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        })
    };
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// How much may be locked from now on.
fn allow(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: LIMIT_BYTES };
    // SAFETY: a system call that reads a structure of ours.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }, 0);
}

/// Locks memory that is no key memory.
fn lock_beside(bytes: usize) {
    let memory = Vec::leak(vec![0_u8; bytes]);
    // SAFETY: the memory is ours and lives for good.
    assert_eq!(unsafe { libc::mlock(memory.as_ptr().cast(), bytes) }, 0);
}

fn settings(max_cached_aeks: u64, memlock: MemlockPolicy) -> Settings {
    Settings::default().max_cached_aeks(max_cached_aeks).memlock(memlock)
}

fn try_build(settings: Settings) -> keyleash::Result<Engine> {
    let clock = ManualClock::new(Instant::from_nanos(1_000_000_000));
    let (token, _) = ScriptedToken::new(Clock::Manual(clock.clone()), settings.store_timeout, 7);
    Engine::builder(token, Arc::new(MemoryStore::new())).settings(settings).clock(Clock::Manual(clock)).build()
}

#[test]
fn an_engine_that_refuses_is_refused_where_the_process_has_used_its_limit() {
    alone("memlock::an_engine_that_refuses_is_refused_where_the_process_has_used_its_limit", async || {
        drop(try_build(settings(3000, MemlockPolicy::Refuse)).unwrap()); // 4 chunks, which are the limit
        lock_beside(LIMIT_BYTES as usize - 2 * CHUNK_BYTES);
        let refused = try_build(settings(3000, MemlockPolicy::Refuse)).unwrap_err().to_string();
        for part in ["RLIMIT_MEMLOCK is 1048576 bytes, of which ", "LimitMEMLOCK=", "lower max_cached_aeks to "] {
            assert!(refused.contains(part), "{refused}");
        }
        let warned = try_build(settings(3000, MemlockPolicy::Warn)).unwrap();
        assert!(warned.warnings().iter().any(|warning| warning.contains("of which")), "{:?}", warned.warnings());
    });
}

#[test]
fn an_engine_that_was_refused_leaves_its_policy_to_nobody() {
    alone("memlock::an_engine_that_was_refused_leaves_its_policy_to_nobody", async || {
        allow(0);
        assert!(matches!(try_build(settings(10, MemlockPolicy::Refuse)), Err(Error::Misconfigured(_))));
        let rig = Rig::with(settings(10, MemlockPolicy::Warn)).await;
        seal(&rig.account("a").await).unwrap();
        assert!(rig.engine.status().await.unlocked_bytes > 0);
    });
}

#[test]
fn memory_that_was_not_locked_for_a_pin_is_used_for_no_key_that_must_be_locked() {
    alone("memlock::memory_that_was_not_locked_for_a_pin_is_used_for_no_key_that_must_be_locked", async || {
        allow(0);
        let _pin = Pin::take_from(&mut b"1234".to_vec()).unwrap();
        assert_eq!(unlocked_bytes(), CHUNK_BYTES);
        allow(LIMIT_BYTES);
        let rig = Rig::with(settings(100, MemlockPolicy::Refuse)).await;
        seal(&rig.account("a").await).unwrap();
        assert_eq!(unlocked_bytes(), 0, "locked now, or the key would be in it");
    });
}

#[test]
fn a_key_for_which_no_memory_can_be_locked_any_more_is_refused_and_those_that_are_there_work_on() {
    alone(
        "memlock::a_key_for_which_no_memory_can_be_locked_any_more_is_refused_and_those_that_are_there_work_on",
        async || {
            let rig = Rig::with(settings(2000, MemlockPolicy::Refuse)).await;
            let first = rig.account("first").await;
            allow(0);
            let mut accounts = Vec::new();
            let refused = loop {
                match rig.engine.create_account(&account_id(&format!("account-{}", accounts.len())), &rig.kek).await {
                    Ok(account) => accounts.push(account),
                    Err(error) => break error,
                }
                assert!(accounts.len() < 2000);
            };
            assert!(matches!(&refused, Error::Misconfigured(what) if what.contains("RLIMIT_MEMLOCK")), "{refused}");
            assert_eq!(unlocked_bytes(), 0);
            seal(&first).unwrap();
            assert!(accounts.len() > 500, "{}", accounts.len());
        },
    );
}
