//! Seals and opens in place, and from one buffer into another, allocate nothing: neither in Rust nor in the C below it.
//!
//! Rust's allocations are counted by a global allocator, and all of the process's by `malloc` and its kin, which this binary
//! defines over glibc's: whatever calls them, AWS-LC or libc itself, calls these. Each thread counts its own.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(unsafe_code)] // an allocator and the C functions under it cannot be watched otherwise
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // in tests

use keyleash::{
    Account, Engine, Result,
    account::{OpenItem, SealItem},
    block::{Address, Backend, ObjectId, Suite},
    clock::Clock,
    name::{AccountId, KekName},
    store::memory::MemoryStore,
    telemetry::trail::{Noted, Record, Trail},
    token::{Profile, scripted::ScriptedToken},
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    ffi::{c_int, c_void},
    hint::black_box,
    sync::Arc,
    time::Duration,
};

/// More seals than a nonce generator makes nonces before it is seeded anew.
const SEALS_PAST_A_SEED: usize = 50_000;

thread_local! {
    /// Calls of the global allocator, and of malloc and its kin. Without a destructor, so that they need no allocation.
    static RUST: Cell<u64> = const { Cell::new(0) };
    static HEAP: Cell<u64> = const { Cell::new(0) };
}

fn count(calls: &'static std::thread::LocalKey<Cell<u64>>) {
    // A thread that is ending allocates as well.
    let _ = calls.try_with(|calls| calls.set(calls.get() + 1));
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all is left to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(&RUST);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(&RUST);
        // SAFETY: the caller's.
        unsafe { System.dealloc(at, layout) }
    }
}

// glibc's own, under names that nobody else defines.
unsafe extern "C" {
    fn __libc_malloc(bytes: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, bytes: usize) -> *mut c_void;
    fn __libc_realloc(at: *mut c_void, bytes: usize) -> *mut c_void;
    fn __libc_memalign(align: usize, bytes: usize) -> *mut c_void;
    fn __libc_free(at: *mut c_void);
}

/// Defines a function of the C heap that counts and hands on.
macro_rules! watched {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? = $body:expr;)*) => { $(
        /// # Safety
        /// As the C function of this name.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($argument: $type),*) $(-> $result)? {
            count(&HEAP);
            // SAFETY: the caller's, handed on unchanged.
            unsafe { $body }
        }
    )* };
}

watched! {
    malloc(bytes: usize) -> *mut c_void = __libc_malloc(bytes);
    calloc(count: usize, bytes: usize) -> *mut c_void = __libc_calloc(count, bytes);
    realloc(at: *mut c_void, bytes: usize) -> *mut c_void = __libc_realloc(at, bytes);
    memalign(align: usize, bytes: usize) -> *mut c_void = __libc_memalign(align, bytes);
    aligned_alloc(align: usize, bytes: usize) -> *mut c_void = __libc_memalign(align, bytes);
    posix_memalign(to: *mut *mut c_void, align: usize, bytes: usize) -> c_int = {
        let got = __libc_memalign(align, bytes);
        to.write(got);
        if got.is_null() { libc::ENOMEM } else { 0 }
    };
}

/// # Safety
/// As the C function of this name.
#[unsafe(no_mangle)]
unsafe extern "C" fn free(at: *mut c_void) {
    if !at.is_null() {
        count(&HEAP);
    }
    // SAFETY: the caller's, handed on unchanged.
    unsafe { __libc_free(at) }
}

/// Calls of Rust's allocator and of the C heap by this thread during `work`.
fn calls(work: impl FnOnce()) -> (u64, u64) {
    let before = (RUST.get(), HEAP.get());
    work();
    (RUST.get() - before.0, HEAP.get() - before.1)
}

#[test]
fn an_allocation_in_rust_and_one_in_c_are_counted() {
    let (rust, heap) = calls(|| drop(black_box(Box::new(7_u64))));
    assert_eq!((rust, heap), (2, 2), "a box is made and freed");
    let (rust, heap) = calls(|| {
        // SAFETY: a C string goes in, and what comes out is freed once.
        unsafe { libc::free(black_box(libc::strdup(c"in libc".as_ptr())).cast()) }
    });
    assert_eq!((rust, heap), (0, 2), "libc allocates and frees");
    use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
    let key = || LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap());
    drop(key());
    let (rust, heap) = calls(|| drop(black_box(key())));
    assert!(heap > rust, "AWS-LC puts a context on the heap: {heap} calls, {rust} of them from Rust");
}

async fn account(backend: Backend, suite: Suite) -> Account {
    both(backend, suite, suite).await.0
}

/// An account, and the same one of an engine that seals in another suite.
async fn both(backend: Backend, suite: Suite, other: Suite) -> (Account, Account) {
    let (token, _) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 1);
    let store = Arc::new(MemoryStore::new());
    let build = |suite| Engine::builder(token.clone(), store.clone()).backend(backend).suite(suite).build().unwrap();
    let (engine, other) = (build(suite), build(other));
    let (kek, id) = (KekName::new("kek").unwrap(), AccountId::new("a").unwrap());
    engine.create_kek(&kek, Profile::AesGcm).await.unwrap();
    (engine.create_account(&id, &kek).await.unwrap(), other.account(&id).await.unwrap())
}

/// Every form of seal and open that returns no buffer of its own.
fn seal_and_open(account: &Account, plain: &mut [u8], other: &mut [u8]) {
    let header = account.seal_in_place(1_u64, plain).unwrap();
    account.open_in_place(1_u64, &header, plain).unwrap();
    let header = account.seal_into(2_u64, plain, other).unwrap();
    account.open_into(2_u64, &header, other, plain).unwrap();
    let mut items = [SealItem::new(3_u64, plain)];
    account.seal_batch(&mut items).unwrap();
    let (header, buf) = items.map(SealItem::sealed)[0].take().unwrap();
    account.open_batch(&mut [OpenItem::new(3_u64, &header, buf)]).unwrap();
    let address = || Address::object(ObjectId::hashed(&[b"bucket", b"key"]), 4);
    let header = account.seal_in_place(address(), plain).unwrap();
    account.open_in_place(address(), &header, plain).unwrap();
}

#[tokio::test]
async fn a_seal_and_an_open_allocate_nothing() {
    for backend in Backend::available() {
        for suite in [Suite::XaesGcm, Suite::XaesGcmCommit] {
            let account = account(*backend, suite).await;
            for len in [0, 1, 100, 4096, 100_000, 1 << 20] {
                let (mut plain, mut other) = (vec![7; len], vec![0; len]);
                // A thread's first block seeds its nonces and enlists it among those that a wipe waits for.
                seal_and_open(&account, &mut plain, &mut other);
                let (rust, heap) = calls(|| seal_and_open(&account, &mut plain, &mut other));
                assert_eq!((rust, heap), (0, 0), "{backend} {suite:?}, {len} bytes");
            }
        }
    }
}

/// What it does is summed for the trail.
#[tokio::test]
async fn nor_do_they_where_there_is_a_trail() {
    #[derive(Debug)]
    struct Taker;
    #[async_trait::async_trait]
    impl Trail for Taker {
        fn note(&self, _: Record) -> Noted {
            Noted::Taken
        }
        async fn write(&self, _: Record) -> Result<()> {
            Ok(())
        }
        async fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn serves(&self) -> Result<()> {
            Ok(())
        }
    }
    let (token, _) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 1);
    let engine = Engine::builder(token, Arc::new(MemoryStore::new())).trail(Arc::new(Taker)).build().unwrap();
    let kek = KekName::new("kek").unwrap();
    engine.create_kek(&kek, Profile::AesGcm).await.unwrap();
    let account = engine.create_account(&AccountId::new("a").unwrap(), &kek).await.unwrap();
    let (mut plain, mut other) = ([7; 4096], [0; 4096]);
    seal_and_open(&account, &mut plain, &mut other);
    assert_eq!(calls(|| seal_and_open(&account, &mut plain, &mut other)), (0, 0));
}

#[tokio::test]
async fn nor_does_a_reseal() {
    for backend in Backend::available() {
        let (account, committing) = both(*backend, Suite::XaesGcm, Suite::XaesGcmCommit).await;
        let mut buf = [7; 4096];
        let mut header = account.seal_in_place(1_u64, &mut buf).unwrap();
        let mut there_and_back = || {
            for account in [&committing, &account] {
                let old = header;
                header = account.reseal_in_place(1_u64, &old, &mut buf).unwrap();
                assert_ne!(header.suite(), old.suite());
            }
        };
        there_and_back();
        assert_eq!(calls(there_and_back), (0, 0), "{backend}");
    }
}

#[tokio::test]
async fn nor_does_one_whose_nonces_are_seeded_anew() {
    let account = account(Backend::default(), Suite::default()).await;
    let (mut plain, mut other) = ([7; 16], [0; 16]);
    seal_and_open(&account, &mut plain, &mut other);
    let seals = || (0..SEALS_PAST_A_SEED).for_each(|_| drop(black_box(account.seal_in_place(1_u64, &mut plain))));
    assert_eq!(calls(seals), (0, 0));
}

#[tokio::test]
async fn nor_does_a_block_whose_key_is_not_in_memory() {
    let (token, _) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 1);
    let engine = Engine::builder(token, Arc::new(MemoryStore::new())).build().unwrap();
    let kek = KekName::new("kek").unwrap();
    engine.create_kek(&kek, Profile::AesGcm).await.unwrap();
    let account = engine.create_account(&AccountId::new("a").unwrap(), &kek).await.unwrap();
    let mut buf = [7; 100];
    account.seal_in_place(1_u64, &mut buf).unwrap();
    engine.wipe_now(&kek);
    let mut cold = || assert!(matches!(account.seal_in_place(1_u64, &mut buf), Err(keyleash::Error::Cold { .. })));
    cold();
    assert_eq!(calls(cold), (0, 0));
}

#[tokio::test]
async fn nor_does_a_block_that_is_refused_but_for_the_first_on_a_thread() {
    for backend in Backend::available() {
        let account = account(*backend, Suite::default()).await;
        let mut buf = [7; 100];
        let mut refused = || {
            let header = account.seal_in_place(1_u64, &mut buf).unwrap();
            assert!(account.open_in_place(2_u64, &header, &mut buf).is_err());
        };
        refused(); // AWS-LC makes the thread's error queue
        assert_eq!(calls(refused), (0, 0), "{backend}");
    }
}
