//! A small block store that links the engine: fixed-size blocks of a virtual disk, each sealed under its account and its place on the
//! disk.
//!
//!     softhsm/with-token cargo run --example block_store
//!
//! What to see in it: the address is the block's number on the disk (a block that is copied elsewhere does not open), the header is
//! kept beside the ciphertext, and the store's own code never sees a key.
//!
//! And what a service must do about torn writes: a block whose header or ciphertext is half old and half new opens as neither, so one
//! that is overwritten in place is lost with the power. Here a block goes to a new place, is synced there, and only then the map names
//! that place; until it does, the old block is what there is. What to do while a key is away: the example `service`.

use keyleash::{
    Account, Engine, KekOptions,
    block::{Address, BlockHeader, HEADER_BYTES_MAX},
    name::{AccountId, KekName},
    store::memory::MemoryStore,
    token::{
        Profile,
        pkcs11::{PinSource, Pkcs11Settings, Pkcs11Token, Selector},
    },
};
use std::{
    collections::BTreeMap,
    env::var,
    error::Error,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

const BLOCK_BYTES: usize = 4096;
const RECORD_BYTES: usize = HEADER_BYTES_MAX + BLOCK_BYTES;
/// Block and place, and both again, inverted: an entry that is half written is none.
const ENTRY_BYTES: usize = 16;

/// A virtual disk: two files. Place `p` of the one is the header and the ciphertext of some block; the other is the map, a log that
/// says which, of which the last word on a block counts.
struct Disk {
    data: File,
    map: File,
    map_len: u64,
    places: BTreeMap<u32, u32>,
    id: [u8; 16],
    account: Account,
}

impl Disk {
    fn open(dir: &Path, id: [u8; 16], account: Account) -> io::Result<Self> {
        let open = |name| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join(name));
        let (data, map) = (open("data")?, open("map")?);
        File::open(dir)?.sync_all()?; // the files' names
        let (mut places, mut map_len, mut entry) = (BTreeMap::new(), 0, [0; ENTRY_BYTES]);
        while map.read_exact_at(&mut entry, map_len).is_ok() {
            let Some((n, place)) = read_entry(&entry) else { break }; // torn: it never counted
            places.insert(n, place);
            map_len += ENTRY_BYTES as u64;
        }
        Ok(Self { data, map, map_len, places, id, account })
    }

    async fn write(&mut self, n: u32, plaintext: &[u8; BLOCK_BYTES]) -> Result<(), Box<dyn Error>> {
        let place = self.write_apart(n, plaintext).await?;
        self.map.write_all_at(&entry(n, place), self.map_len)?;
        self.map.sync_data()?;
        // From here on the new block counts, and the place of the old one is free.
        self.map_len += ENTRY_BYTES as u64;
        self.places.insert(n, place);
        Ok(())
    }

    /// Writes the block to a place that no block is in, and says which.
    async fn write_apart(&self, n: u32, plaintext: &[u8; BLOCK_BYTES]) -> Result<u32, Box<dyn Error>> {
        let mut record = [0; RECORD_BYTES];
        let (front, ciphertext) = record.split_at_mut(HEADER_BYTES_MAX);
        ciphertext.copy_from_slice(plaintext);
        let header = self.account.seal(Address::object(self.id, n.into()), ciphertext).await?;
        front.split_at_mut(header.as_bytes().len()).0.copy_from_slice(header.as_bytes());
        let place = (0..).find(|place| !self.places.values().any(|taken| taken == place)).ok_or("the disk is full")?;
        self.data.write_all_at(&record, at(place))?;
        self.data.sync_data()?;
        Ok(place)
    }

    async fn read(&self, n: u32) -> Result<[u8; BLOCK_BYTES], Box<dyn Error>> {
        let place = self.places.get(&n).ok_or("this block was never written")?;
        let mut record = [0; RECORD_BYTES];
        self.data.read_exact_at(&mut record, at(*place))?;
        let (front, ciphertext) = record.split_at_mut(HEADER_BYTES_MAX);
        let (header, _) = BlockHeader::split(front)?;
        self.account.open(Address::object(self.id, n.into()), &header, ciphertext).await?;
        Ok((&*ciphertext).try_into()?)
    }
}

fn at(place: u32) -> u64 {
    u64::from(place) * RECORD_BYTES as u64
}

fn entry(n: u32, place: u32) -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    let words = [n, place, !n, !place];
    entry.chunks_exact_mut(4).zip(words).for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_le_bytes()));
    entry
}

fn read_entry(bytes: &[u8; ENTRY_BYTES]) -> Option<(u32, u32)> {
    let word = |index: usize| Some(u32::from_le_bytes(*bytes.get(4 * index..)?.first_chunk()?));
    let (n, place) = (word(0)?, word(1)?);
    (entry(n, place) == *bytes).then_some((n, place))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let label = Selector::Label(var("KEYLEASH_TOKEN_LABEL")?);
    let pin = PinSource::File(var("KEYLEASH_PIN_FILE")?.into());
    let token = Pkcs11Token::open(Pkcs11Settings::new(var("KEYLEASH_MODULE")?, label, pin)).await?;
    let engine = Engine::builder(Arc::new(token), Arc::new(MemoryStore::default())).build()?;
    let kek = KekName::new("block-store-example")?;
    engine.get_or_create_kek(&kek, KekOptions::new(Profile::AesGcm).destroyable()).await?;
    let account = engine.get_or_create_account(&AccountId::new("tenant-1")?, &kek).await?;

    let (dir, id) = (tempfile::tempdir()?, *b"disk-0000000001\0");
    let mut disk = Disk::open(dir.path(), id, account.clone())?;
    for n in 0..64 {
        disk.write(n, &[n as u8; BLOCK_BYTES]).await?;
    }
    disk.write(5, &[50; BLOCK_BYTES]).await?;
    for n in 0..64 {
        assert_eq!(disk.read(n).await?, [if n == 5 { 50 } else { n as u8 }; BLOCK_BYTES]);
    }
    println!("64 blocks written, read back and compared");

    // The power fails in the midst of writing block 7 anew, and of its entry in the map.
    let place = disk.write_apart(7, &[70; BLOCK_BYTES]).await?;
    disk.data.write_all_at(&[0; RECORD_BYTES / 2], at(place))?;
    disk.map.write_all_at(entry(7, place).split_at(9).0, disk.map_len)?;
    let mut disk = Disk::open(dir.path(), id, account)?;
    assert_eq!(disk.read(7).await?, [7; BLOCK_BYTES]);
    disk.write(7, &[71; BLOCK_BYTES]).await?;
    assert_eq!(disk.read(7).await?, [71; BLOCK_BYTES]);
    println!("a torn write of block 7: the old one is there, and can be written anew");

    // Somebody copies block 7 over block 8 on the disk: it does not open there.
    let place = |n: u32| disk.places.get(&n).copied().ok_or("it was written");
    let (seven, eight) = (place(7)?, place(8)?);
    let mut record = [0; RECORD_BYTES];
    disk.data.read_exact_at(&mut record, at(seven))?;
    disk.data.write_all_at(&record, at(eight))?;
    match disk.read(8).await {
        Err(error) => println!("block 7 copied over block 8: {error}"),
        Ok(_) => return Err("a moved block opened".into()),
    }
    engine.close(Duration::from_secs(10)).await?;
    Ok(())
}
