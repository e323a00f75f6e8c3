//! Seals and opens through the whole data path (lease check, nonce, derivation, AEAD), beside the raw limit in the same
//! group: aws-lc-rs with a fresh key for each block, and with one fixed key.
//!
//!     cargo bench --bench block

#![allow(missing_docs, clippy::unwrap_used)] // criterion's macros; a benchmark that cannot start must stop

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use keyleash::{
    Account, Engine,
    block::{Address, Backend},
    clock::Clock,
    name::{AccountId, KekName},
    store::memory::MemoryStore,
    token::{Profile, scripted::ScriptedToken},
};
use std::{hint::black_box, sync::Arc, time::Duration};

const SIZES: [usize; 4] = [512, 4096, 65_536, 1 << 20];

async fn account(backend: Backend) -> Account {
    let (token, _) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 1);
    let engine = Engine::builder(token, Arc::new(MemoryStore::new())).backend(backend).build().unwrap();
    let kek = KekName::new("bench").unwrap();
    engine.create_kek(&kek, Profile::AesGcm, false).await.unwrap();
    engine.create_account(&AccountId::new("bench").unwrap(), &kek).await.unwrap()
}

fn blocks(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let accounts: Vec<_> =
        Backend::available().iter().map(|backend| (backend, runtime.block_on(account(*backend)))).collect();
    let address = Address::object([7; 16], 42);
    for size in SIZES {
        let mut buf = vec![7_u8; size];
        let mut group = criterion.benchmark_group(format!("{size} B"));
        group.throughput(Throughput::Bytes(size as u64));
        for (backend, account) in &accounts {
            group.bench_function(BenchmarkId::new("keyleash seal", backend), |bench| {
                bench.iter(|| black_box(account.seal_in_place(address, &mut buf).unwrap()));
            });
            let header = account.seal_in_place(address, &mut buf).unwrap();
            let sealed = buf.clone();
            let mut plain = vec![0; size];
            group.bench_function(BenchmarkId::new("keyleash open_into", backend), |bench| {
                bench.iter(|| account.open_into(address, &header, &sealed, &mut plain).unwrap());
            });
        }
        let seal = |key: &LessSafeKey, buf: &mut [u8]| {
            let nonce = Nonce::assume_unique_for_key([3; 12]);
            let _ = black_box(key.seal_in_place_separate_tag(nonce, Aad::from([1; 48]), buf).unwrap());
        };
        let new = || LessSafeKey::new(UnboundKey::new(&AES_256_GCM, black_box(&[7; 32])).unwrap());
        group.bench_function("aws-lc-rs, fresh key", |bench| bench.iter(|| seal(&new(), &mut buf)));
        let fixed = new();
        group.bench_function("aws-lc-rs, fixed key", |bench| bench.iter(|| seal(&fixed, &mut buf)));
        group.finish();
    }
}

criterion_group!(benches, blocks);
criterion_main!(benches);
