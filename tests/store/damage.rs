//! A store file in which anything is damaged: it opens with all that was acknowledged, or is refused as damaged. Never less,
//! never something else, never the end of the process.
//!
//! `EVERY_BIT=1 cargo test --test store damage` tries each single bit, for both images.

use crate::{account, kek, put};
use keyleash::{
    Error,
    store::{Filter, Key, KeyStore, Put, redb::RedbStore},
};
use redb::StorageBackend;
use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    sync::{Arc, Mutex},
};
use tokio::runtime::{Builder, Runtime};

const PAGE: usize = 4096;

/// A file in memory.
#[derive(Debug, Clone, Default)]
struct Image(Arc<Mutex<Vec<u8>>>);

impl Image {
    fn of(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(bytes)))
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl StorageBackend for Image {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        assert!(out.len() < 1 << 20, "{} bytes are read at once", out.len());
        let bytes = self.0.lock().unwrap();
        let found = bytes.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(found.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        assert!(len < 1 << 24, "the file grows to {len} bytes");
        self.0.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        let place = bytes.get_mut(offset as usize..offset as usize + data.len());
        place.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?.copy_from_slice(data);
        Ok(())
    }
}

/// All that a store says: every listing, and every value.
type Contents = BTreeMap<String, Vec<(Key, Vec<u8>)>>;

async fn open(image: &Image) -> Result<RedbStore, Error> {
    let image = image.clone();
    RedbStore::open_backend("image", move || image.clone()).await
}

async fn contents(store: &RedbStore) -> Result<Contents, Error> {
    let mut contents = Contents::new();
    for filter in [
        Filter::Accounts,
        Filter::Keks,
        Filter::Denials,
        Filter::WrappedBy(kek("tenants", 1)),
        Filter::WrappedBy(kek("tenants", 2)),
    ] {
        let keys = store.list(&filter, None, 1000).await?.keys;
        let mut values = Vec::new();
        for key in keys.into_iter().chain([Key::Work]) {
            let value = store.get(&key).await?.map(|found| found.value).unwrap_or_default();
            values.push((key, value));
        }
        contents.insert(format!("{filter:?}"), values);
    }
    Ok(contents)
}

async fn write(store: &RedbStore, key: &Key, put: Put) -> Result<(), Error> {
    match store.get(key).await? {
        Some(found) => store.replace(key, &found.version, put).await.map(drop),
        None => store.create(key, put).await.map(drop),
    }
}

/// The bytes of a store that was closed, and of one whose process was killed.
async fn images() -> [(&'static str, Vec<u8>); 2] {
    let image = Image::default();
    let store = open(&image).await.unwrap();
    for name in ["tenants", "others"] {
        write(&store, &Key::Kek(kek(name, 1).name), put(name, &[])).await.unwrap();
    }
    write(&store, &Key::Denial(kek("tenants", 1)), put("no", &[])).await.unwrap();
    write(&store, &Key::Work, put("me", &[])).await.unwrap();
    for n in 0..4 {
        let put = put(format!("account {n}"), &[kek("tenants", 1 + n % 2)]);
        write(&store, &account(format!("account-{n}")), put).await.unwrap();
    }
    drop(store);
    let closed = image.bytes();
    let store = open(&image).await.unwrap();
    for n in 2..6 {
        let put = put(format!("account {n}, again"), &[kek("tenants", 1)]);
        write(&store, &account(format!("account-{n}")), put).await.unwrap();
    }
    [("closed", closed), ("killed", image.bytes())]
}

/// What became of a damaged store.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Whole,
    Named(String),
}

/// Opens it, reads all of it, writes, and reads all of it again in another opening.
async fn outcome(bytes: Vec<u8>, expected: &Contents, write_too: bool, what: &str) -> Outcome {
    let image = Image::of(bytes);
    let tried = async {
        let store = open(&image).await?;
        assert_eq!(&contents(&store).await?, expected, "{what}: silent");
        if write_too {
            let new = account("new");
            write(&store, &new, put("new", &[])).await?;
            store.delete(&new, &store.get(&new).await?.unwrap().version).await?;
            drop(store);
            assert_eq!(&contents(&open(&image).await?).await?, expected, "{what}: destroyed by a write");
        }
        Ok(())
    };
    match tried.await {
        Ok(()) => Outcome::Whole,
        Err(error @ (Error::Corrupt(_) | Error::Misconfigured(_))) => {
            let said = error.to_string();
            assert!(!said.contains("failed over it"), "{what}: redb panicked: {said}");
            Outcome::Named(said)
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

/// The bytes that mean something: those of which not all may be changed at once.
async fn meant(bytes: &[u8], expected: &Contents, range: Range<usize>, found: &mut Vec<usize>) {
    let mut changed = bytes.to_vec();
    changed[range.clone()].iter_mut().for_each(|byte| *byte = !*byte);
    if outcome(changed, expected, range.len() >= PAGE, &format!("bytes {range:?} inverted")).await == Outcome::Whole {
        return;
    }
    if range.len() <= 16 {
        found.extend(range);
        return;
    }
    let middle = range.start + range.len() / 2;
    Box::pin(meant(bytes, expected, range.start..middle, found)).await;
    Box::pin(meant(bytes, expected, middle..range.end, found)).await;
}

#[test]
fn a_damaged_bit_anywhere_in_a_store_is_named_or_changes_nothing() {
    let every_bit = std::env::var_os("EVERY_BIT").is_some();
    runtime().block_on(async {
        for (name, bytes) in images().await {
            let expected = contents(&open(&Image::of(bytes.clone())).await.unwrap()).await.unwrap();
            let mut meant_bytes = Vec::new();
            for page in 0..bytes.len() / PAGE {
                meant(&bytes, &expected, page * PAGE..(page + 1) * PAGE, &mut meant_bytes).await;
            }
            let (mut whole, mut named) = (0, 0);
            for (n, at) in meant_bytes.iter().copied().enumerate() {
                // Of a store that was closed every bit; of the other every bit of the header, and one of each byte.
                let bits = if every_bit || name == "closed" || at < 320 { 0..8 } else { n % 8..n % 8 + 1 };
                for bit in bits {
                    let mut changed = bytes.clone();
                    changed[at] ^= 1 << bit;
                    let what = format!("{name}: bit {bit} of byte {at}");
                    match outcome(changed, &expected, false, &what).await {
                        Outcome::Whole => whole += 1,
                        Outcome::Named(_) => named += 1,
                    }
                }
            }
            println!(
                "{name}: {} of {} bytes mean something; {named} bits named, {whole} changed nothing, 0 silent",
                meant_bytes.len(),
                bytes.len()
            );
            assert!(named > 1000);
        }
    });
}

#[test]
fn pages_that_are_swapped_copied_zeroed_or_cut_off_are_named_or_change_nothing() {
    runtime().block_on(async {
        let mut named = 0;
        for (name, bytes) in images().await {
            let expected = contents(&open(&Image::of(bytes.clone())).await.unwrap()).await.unwrap();
            let page = |n: usize| n * PAGE..(n + 1) * PAGE;
            // Those that mean something, and one that does not.
            let (mut pages, mut other) = (Vec::new(), None);
            for n in 0..bytes.len() / PAGE {
                let mut inverted = bytes.clone();
                inverted[page(n)].iter_mut().for_each(|byte| *byte = !*byte);
                match outcome(inverted, &expected, true, &format!("{name}: page {n} inverted")).await {
                    Outcome::Whole => other = Some(n),
                    Outcome::Named(_) => pages.push(n),
                }
            }
            pages.extend(other);
            let mut tried = 0;
            let mut damaged = async |what: String, bytes: Vec<u8>| {
                tried += 1;
                if !bytes.is_empty() {
                    named += u32::from(outcome(bytes, &expected, true, &what).await != Outcome::Whole);
                }
            };
            for one in pages.iter().copied() {
                let mut zeroed = bytes.clone();
                zeroed[page(one)].fill(0);
                damaged(format!("{name}: page {one} zeroed"), zeroed).await;
                for len in [one * PAGE, one * PAGE + 1, one * PAGE + 320] {
                    damaged(format!("{name}: cut at {len}"), bytes[..len].to_vec()).await;
                }
                for other in pages.iter().copied() {
                    let mut copied = bytes.clone();
                    copied.copy_within(page(other), page(one).start);
                    damaged(format!("{name}: page {other} copied over {one}"), copied.clone()).await;
                    if other < one {
                        copied[page(other)].copy_from_slice(&bytes[page(one)]);
                        damaged(format!("{name}: pages {one} and {other} swapped"), copied).await;
                    }
                }
            }
            println!("{name}: pages {pages:?}, {tried} tried");
        }
        println!("{named} named");
        assert!(named > 100);
    });
}

/// The disk rots while a process has the store open.
#[test]
fn damage_that_comes_while_a_store_is_open_is_named_or_changes_nothing() {
    runtime().block_on(async {
        let [(_, bytes), _] = images().await;
        let (mut whole, mut named) = (0, 0);
        for page in 0..bytes.len() / PAGE {
            for at in [0, 1, 2, 5, 9, 40, 77, 150, 400, 1000, 2048, 4095].map(|at| page * PAGE + at) {
                let image = Image::of(bytes.clone());
                let store = open(&image).await.unwrap();
                let expected = contents(&store).await.unwrap();
                // What redb holds in memory hides the disk: it is read again in the next opening, which trusts this one.
                store.rest();
                image.0.lock().unwrap()[at] ^= 4;
                let tried = async {
                    assert_eq!(contents(&store).await?, expected, "byte {at}");
                    let new = account("new");
                    write(&store, &new, put("new", &[])).await?;
                    store.delete(&new, &store.get(&new).await?.unwrap().version).await?;
                    store.rest();
                    assert_eq!(contents(&store).await?, expected, "byte {at}");
                    Ok::<_, Error>(())
                };
                match tried.await {
                    Ok(()) => whole += 1,
                    // An outage of the store, not the fault of an account.
                    Err(Error::Store(said)) if said.contains("the file is damaged") => {
                        assert!(!said.contains("failed over it"), "byte {at}: redb panicked: {said}");
                        named += 1;
                    }
                    Err(error) => panic!("byte {at}: {error}"),
                }
                drop(store);
            }
        }
        println!("{named} named, {whole} changed nothing");
        assert!(named > 20 && whole > 20);
    });
}
