//! Seals or opens blocks of 4 KiB in place, for a counter of instructions that looks at `counted_seals` and `counted_opens` alone, and at
//! the same with a trail.

use keyleash::{
    Account, Engine,
    block::BlockHeader,
    clock::Clock,
    name::{AccountId, KekName},
    store::memory::MemoryStore,
    telemetry::trail::{Noted, Record, Trail},
    token::{Profile, scripted::ScriptedToken},
};
use std::{error::Error, hint::black_box, sync::Arc, time::Duration};

const BLOCK_BYTES: usize = 4096;
const ACCOUNT: &str = "tenant-0000001";
/// Past what a thread does once: it enlists, and seeds its nonces.
const WARM_UP: u64 = 8192;
/// Too few for the nonces to be seeded anew.
const COUNTED: usize = 1000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (token, _) = ScriptedToken::new(Clock::default(), Duration::from_secs(5), 1);
    let store = Arc::new(MemoryStore::new());
    let engine = Engine::builder(token.clone(), store.clone()).build()?;
    let kek = KekName::new("kek")?;
    engine.create_kek(&kek, Profile::AesGcm).await?;
    let account = engine.create_account(&AccountId::new(ACCOUNT)?, &kek).await?;
    let mut buf = vec![7; BLOCK_BYTES];
    warm_up(&account, &mut buf)?;
    let mut blocks = vec![buf.clone(); COUNTED];
    let mut headers = Vec::with_capacity(COUNTED);
    counted_seals(&account, &mut blocks, &mut headers)?;
    counted_opens(&account, &mut blocks, &headers)?;
    // What the threads of another engine do meanwhile would be counted.
    drop((engine, account));
    let engine = Engine::builder(token, store).trail(Arc::new(Taker)).build()?;
    let account = engine.account(&AccountId::new(ACCOUNT)?).await?;
    warm_up(&account, &mut buf)?;
    headers.clear();
    counted_seals_on_trail(&account, &mut blocks, &mut headers)?;
    counted_opens_on_trail(&account, &mut blocks, &headers)?;
    println!("{COUNTED}");
    Ok(())
}

fn warm_up(account: &Account, buf: &mut [u8]) -> keyleash::Result<()> {
    for n in 0..WARM_UP {
        let header = account.seal_in_place(n, &mut buf[..16])?;
        account.open_in_place(n, &header, &mut buf[..16])?;
    }
    Ok(())
}

/// A trail that takes everything.
#[derive(Debug)]
struct Taker;

#[async_trait::async_trait]
impl Trail for Taker {
    fn note(&self, _: Record) -> Noted {
        Noted::Taken
    }

    async fn write(&self, _: Record) -> keyleash::Result<()> {
        Ok(())
    }

    async fn flush(&self) -> keyleash::Result<()> {
        Ok(())
    }

    fn serves(&self) -> keyleash::Result<()> {
        Ok(())
    }
}

// Loops, because the counter does not see the end of a function that ends in a jump to another.

#[inline(never)]
fn counted_seals(account: &Account, blocks: &mut [Vec<u8>], headers: &mut Vec<BlockHeader>) -> keyleash::Result<()> {
    for block in blocks {
        headers.push(account.seal_in_place(black_box(7_u64), block)?);
    }
    Ok(())
}

#[inline(never)]
fn counted_opens(account: &Account, blocks: &mut [Vec<u8>], headers: &[BlockHeader]) -> keyleash::Result<()> {
    for (block, header) in blocks.iter_mut().zip(headers) {
        account.open_in_place(black_box(7_u64), header, block)?;
    }
    Ok(())
}

#[inline(never)]
fn counted_seals_on_trail(
    account: &Account,
    blocks: &mut [Vec<u8>],
    headers: &mut Vec<BlockHeader>,
) -> keyleash::Result<()> {
    for block in blocks {
        headers.push(account.seal_in_place(black_box(8_u64), block)?);
    }
    Ok(())
}

#[inline(never)]
fn counted_opens_on_trail(account: &Account, blocks: &mut [Vec<u8>], headers: &[BlockHeader]) -> keyleash::Result<()> {
    for (block, header) in blocks.iter_mut().zip(headers) {
        account.open_in_place(black_box(8_u64), header, block)?;
    }
    Ok(())
}
