//! A small block store that links the engine: fixed-size blocks of a virtual disk in one file, each sealed under its
//! account and its place on the disk.
//!
//!     softhsm/with-token cargo run --example block_store
//!
//! What to see in it: the address is the block's place (a block that is copied elsewhere does not open), the header is
//! kept beside the ciphertext, and the store's own code never sees a key.

use keyleash::{
    Account, Engine, Error, KekOptions,
    block::{Address, BlockHeader, HEADER_BYTES_MAX},
    name::{AccountId, KekName},
    store::memory::MemoryStore,
    token::{
        Profile,
        pkcs11::{PinSource, Pkcs11Settings, Pkcs11Token, Selector},
    },
};
use std::{env::var, fs::File, os::unix::fs::FileExt, sync::Arc};

const BLOCK_BYTES: usize = 4096;
const RECORD_BYTES: usize = HEADER_BYTES_MAX + BLOCK_BYTES;

/// A virtual disk: record `n` of the file is the header and the ciphertext of block `n`.
struct Disk {
    file: File,
    id: [u8; 16],
    account: Account,
}

impl Disk {
    async fn write(&self, n: u64, plaintext: &[u8; BLOCK_BYTES]) -> Result<(), Box<dyn std::error::Error>> {
        let mut record = [0; RECORD_BYTES];
        let (front, ciphertext) = record.split_at_mut(HEADER_BYTES_MAX);
        let header = loop {
            match self.account.seal_into(Address::object(self.id, n), plaintext, ciphertext) {
                // Not used for a while: fetch the key from the token and try again.
                Err(Error::Cold { .. }) => self.account.warm().await?,
                sealed => break sealed?,
            }
        };
        front.split_at_mut(header.as_bytes().len()).0.copy_from_slice(header.as_bytes());
        Ok(self.file.write_all_at(&record, n * RECORD_BYTES as u64)?)
    }

    async fn read(&self, n: u64) -> Result<[u8; BLOCK_BYTES], Box<dyn std::error::Error>> {
        let mut record = [0; RECORD_BYTES];
        self.file.read_exact_at(&mut record, n * RECORD_BYTES as u64)?;
        let (front, ciphertext) = record.split_at(HEADER_BYTES_MAX);
        let (header, _) = BlockHeader::split(front)?;
        let mut plaintext = [0; BLOCK_BYTES];
        loop {
            match self.account.open_into(Address::object(self.id, n), &header, ciphertext, &mut plaintext) {
                Err(Error::Cold { .. }) => self.account.warm_for(&header).await?,
                opened => break Ok(opened.map(|()| plaintext)?),
            }
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let label = Selector::Label(var("KEYLEASH_TOKEN_LABEL")?);
    let pin = PinSource::File(var("KEYLEASH_PIN_FILE")?.into());
    let token = Pkcs11Token::open(Pkcs11Settings::new(var("KEYLEASH_MODULE")?, label, pin)).await?;
    let engine = Engine::builder(Arc::new(token), Arc::new(MemoryStore::default())).build()?;
    let kek = KekName::new("block-store-example")?;
    engine.create_kek(&kek, KekOptions::new(Profile::AesGcm).destroyable()).await?;
    let account = engine.create_account(&AccountId::new("tenant-1")?, &kek).await?;

    let disk = Disk { file: tempfile::tempfile()?, id: *b"disk-0000000001\0", account };
    for n in 0..256 {
        disk.write(n, &[n as u8; BLOCK_BYTES]).await?;
    }
    for n in 0..256 {
        assert_eq!(disk.read(n).await?, [n as u8; BLOCK_BYTES]);
    }
    println!("256 blocks written, read back and compared");

    // Somebody copies block 7 over block 8 on the disk: it does not open there.
    let mut record = [0; RECORD_BYTES];
    disk.file.read_exact_at(&mut record, 7 * RECORD_BYTES as u64)?;
    disk.file.write_all_at(&record, 8 * RECORD_BYTES as u64)?;
    match disk.read(8).await {
        Err(error) => println!("block 7 copied over block 8: {error}"),
        Ok(_) => return Err("a moved block opened".into()),
    }
    Ok(())
}
