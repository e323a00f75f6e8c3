//! The sealed file: a stream of any length as blocks of 64 KiB.
//!
//! ```text
//! "KEYLEASH"  u16 version = 2  u16 length ‖ account id  file id (16 random bytes)  u32 block size = 65536  digest (16 bytes)
//! { block header (48 or 80 bytes)  ciphertext } …                               integers big-endian
//! ```
//!
//! The digest is the first 16 bytes of the SHA-256 of all before it: a damaged account id shall not pass for an account that
//! is not there. It is no MAC, and needs none, for the blocks are bound to what it covers. Version 1 has no digest, and opens
//! for ever.
//!
//! The address of a block is `file id ‖ u64 index ‖ u8 last`. Every block but the last is full; the last has 0 to 65536
//! bytes and is the one behind which the stream ends, so that an empty input is one empty last block. Account, file id,
//! index and `last` are bound into every block, version and block size have one value each: a file in which anything was
//! changed, moved, cut or added is refused, and only what was authenticated before is written.

use crate::exit::Failure;
use keyleash::{
    Account, Corrupt, Error,
    block::{Address, BlockHeader, SUITE_KNOWN_AFTER_BYTES},
    name::{ACCOUNT_ID_BYTES_MAX, AccountId},
    store::record::StoreRecord,
};
use sha2::{Digest, Sha256};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    io::{self, BufRead, Read, Write},
};
use tokio::runtime::Handle;
use zeroize::Zeroizing;

/// What every sealed file begins with.
pub(crate) const MAGIC: [u8; 8] = *b"KEYLEASH";
/// The format version that this release writes.
pub(crate) const VERSION: u16 = 2;
/// The one before, which had no digest.
const VERSION_WITHOUT_DIGEST: u16 = 1;
/// Plaintext in every block but the last.
pub(crate) const BLOCK_BYTES: usize = 64 * 1024;
const FILE_ID_BYTES: usize = 16;
const DIGEST_BYTES: usize = 16;
/// Of the file id: tells by a chance of 2^-32 wrongly that a file is another store's, or is this one's. Decides no more than words.
const STORE_MARK_BYTES: usize = 4;

/// How far from its place a refused block is looked for, to name what happened to the file.
const SEARCH_BLOCKS: u64 = 1024;
/// How often one block waits for its key: it may be evicted again before it is used, but not for ever.
const WARM_ATTEMPTS_MAX: usize = 16;
/// `read_to_end` looks for the end with this much room, which keeps it from moving plaintext to a larger buffer.
const ROOM_BYTES: usize = 64;

/// An account's keys, for a thread that may block.
#[derive(Debug)]
pub(crate) struct Keys {
    account: Account,
    runtime: Handle,
    /// The store that the account is of, where it has an id.
    store: Option<StoreRecord>,
    /// A header of each AEK version that sealed.
    sealed_under: RefCell<BTreeMap<u32, BlockHeader>>,
}

impl Keys {
    pub(crate) fn new(account: Account, runtime: Handle) -> Self {
        Self { account, runtime, store: None, sealed_under: RefCell::default() }
    }

    pub(crate) fn of_store(self, store: Option<StoreRecord>) -> Self {
        Self { store, ..self }
    }

    pub(crate) fn account(&self) -> &AccountId {
        self.account.id()
    }

    fn seal(&self, address: Address, buf: &mut [u8]) -> Result<BlockHeader, Error> {
        let header = self.seal_warm(address, buf)?;
        self.sealed_under.borrow_mut().entry(header.aek_version()).or_insert(header);
        Ok(header)
    }

    fn seal_warm(&self, address: Address, buf: &mut [u8]) -> Result<BlockHeader, Error> {
        for _ in 1..WARM_ATTEMPTS_MAX {
            match self.account.seal_in_place(address, buf) {
                Err(Error::Cold { .. }) => self.runtime.block_on(self.account.warm())?,
                outcome => return outcome,
            }
        }
        self.account.seal_in_place(address, buf)
    }

    /// Makes sure that whatever was sealed can be opened from what the store has now.
    pub(crate) fn confirm(&self) -> Result<(), Failure> {
        for header in self.sealed_under.borrow().values() {
            self.runtime.block_on(self.account.confirm(header)).map_err(|error| match error {
                Error::NotFound(what) => Error::NotFound(format!("what was sealed here could not be opened: {what}")),
                Error::Store(what) => Error::Store(format!(
                    "it cannot be seen whether what was sealed here could be opened, so it is not: {what}"
                )),
                error => error,
            })?;
        }
        Ok(())
    }

    fn open(&self, address: Address, header: &BlockHeader, sealed: &[u8], plain: &mut [u8]) -> Result<(), Error> {
        for _ in 1..WARM_ATTEMPTS_MAX {
            match self.account.open_into(address, header, sealed, plain) {
                Err(Error::Cold { .. }) => self.runtime.block_on(self.account.warm_for(header))?,
                outcome => return outcome,
            }
        }
        self.account.open_into(address, header, sealed, plain)
    }
}

/// What a sealed file says about itself, in front of its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub(crate) account: AccountId,
    pub(crate) file_id: [u8; FILE_ID_BYTES],
    /// That this is what was written is known.
    pub(crate) has_digest: bool,
}

impl FileHeader {
    /// The header of a new file. Its id ends with what tells, to who knows the store, that it was sealed with that one.
    pub(crate) fn random(account: AccountId, store: Option<&StoreRecord>) -> Result<Self, Failure> {
        let mut file_id = [0; FILE_ID_BYTES];
        keyleash::secret::fill_random(&mut file_id)?;
        if let Some(store) = store {
            let mark = store_mark(store, &file_id);
            file_id.iter_mut().rev().zip(mark.into_iter().rev()).for_each(|(to, from)| *to = from);
        }
        Ok(Self { account, file_id, has_digest: true })
    }

    /// Whether it is known to have been sealed with this store. Files of releases before the mark, and of stores without an id, are not.
    pub(crate) fn is_of(&self, store: Option<&StoreRecord>) -> bool {
        // Version 1 is older than the mark.
        self.has_digest && store.is_some_and(|store| self.file_id.ends_with(&store_mark(store, &self.file_id)))
    }

    /// Its format version.
    pub(crate) fn version(&self) -> u16 {
        if self.has_digest { VERSION } else { VERSION_WITHOUT_DIGEST }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let account = self.account.as_str().as_bytes();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_be_bytes());
        // An account id has at most 255 bytes.
        bytes.extend(u16::try_from(account.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend(account);
        bytes.extend(self.file_id);
        bytes.extend((BLOCK_BYTES as u32).to_be_bytes());
        bytes.extend(digest(&bytes));
        bytes
    }

    /// Reads the header and refuses what this release cannot read.
    pub(crate) fn read(input: &mut impl Read) -> Result<Self, Failure> {
        let mut magic = Vec::new();
        fill(input, &mut magic, MAGIC.len())?;
        if !MAGIC.starts_with(&magic) {
            return Err(Failure::file("it is none, for it does not begin with KEYLEASH"));
        }
        if magic.len() < MAGIC.len() {
            return Err(cut_in_header());
        }
        let mut read = magic;
        let version = u16::from_be_bytes(next(input, &mut read)?);
        if ![VERSION_WITHOUT_DIGEST, VERSION].contains(&version) {
            return Err(Failure::file(format!("it has format version {version}, this release reads 1 to {VERSION}")));
        }
        let account_len = usize::from(u16::from_be_bytes(next(input, &mut read)?));
        if account_len > ACCOUNT_ID_BYTES_MAX {
            return Err(Failure::file(format!("it names an account of {account_len} bytes; ids have 1 to 255")));
        }
        let mut account = Vec::new();
        fill(input, &mut account, account_len)?;
        if account.len() < account_len {
            return Err(cut_in_header());
        }
        read.extend(&account);
        let file_id = next(input, &mut read)?;
        let block_size = u32::from_be_bytes(next(input, &mut read)?);
        if version != VERSION_WITHOUT_DIGEST && array::<DIGEST_BYTES>(input)? != digest(&read) {
            return Err(Failure::file("its own header was changed"));
        }
        let account = AccountId::from_bytes(&account)
            .map_err(|error| Failure::file(format!("it names an account that cannot be: {error}")))?;
        if usize::try_from(block_size) != Ok(BLOCK_BYTES) {
            return Err(Failure::file(format!(
                "it has blocks of {block_size} bytes; version {version} has {BLOCK_BYTES}"
            )));
        }
        Ok(Self { account, file_id, has_digest: version != VERSION_WITHOUT_DIGEST })
    }

    /// The address of a block.
    fn address(&self, index: u64, last: bool) -> Result<Address, Error> {
        let mut address = Vec::with_capacity(FILE_ID_BYTES + 9);
        address.extend(self.file_id);
        address.extend(index.to_be_bytes());
        address.push(u8::from(last));
        Address::new(&address)
    }
}

/// What was sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Totals {
    pub(crate) blocks: u64,
    pub(crate) plaintext_bytes: u64,
}

impl Totals {
    fn add(&mut self, bytes: usize) {
        self.blocks += 1;
        self.plaintext_bytes += bytes as u64;
    }
}

/// Seals `input` to its end. `step` is told of the bytes of each block that was written, and can stop the work.
pub(crate) fn seal(
    keys: &Keys,
    input: &mut impl Read,
    output: &mut impl Write,
    mut step: impl FnMut(usize) -> Result<(), Failure>,
) -> Result<(FileHeader, Totals), Failure> {
    let file = FileHeader::random(keys.account().clone(), keys.store.as_ref())?;
    output.write_all(&file.encode()).map_err(writing)?;
    let (mut block, mut next) = (plain_buffer(), plain_buffer());
    let mut totals = Totals::default();
    fill(input, &mut block, BLOCK_BYTES)?;
    loop {
        // A block that is full is the last one only if nothing follows it. Behind a short one the end was seen.
        next.clear();
        if block.len() == BLOCK_BYTES {
            fill(input, &mut next, BLOCK_BYTES)?;
        }
        let last = next.is_empty();
        let header = keys.seal(file.address(totals.blocks, last)?, &mut block)?;
        output.write_all(header.as_bytes()).map_err(writing)?;
        output.write_all(&block).map_err(writing)?;
        totals.add(block.len());
        step(block.len())?;
        if last {
            output.flush().map_err(writing)?;
            return Ok((file, totals));
        }
        std::mem::swap(&mut block, &mut next);
    }
}

/// Opens the blocks behind `file`'s header to the end of `input`. Each block is written when it was authenticated, so on
/// an error `output` holds a beginning of the plaintext, and nothing else.
pub(crate) fn open(
    file: &FileHeader,
    keys: &Keys,
    input: &mut impl BufRead,
    output: &mut impl Write,
    mut step: impl FnMut(usize) -> Result<(), Failure>,
) -> Result<Totals, Failure> {
    let (mut sealed, mut plain) = (Vec::with_capacity(BLOCK_BYTES + ROOM_BYTES), plain_buffer());
    let mut totals = Totals::default();
    loop {
        let index = totals.blocks;
        let header = read_block_header(input, index)?;
        fill(input, &mut sealed, BLOCK_BYTES)?;
        let last = sealed.len() < BLOCK_BYTES || input.fill_buf().map_err(reading)?.is_empty();
        plain.resize(sealed.len(), 0);
        match keys.open(file.address(index, last)?, &header, &sealed, &mut plain) {
            Ok(()) => {}
            Err(Error::Corrupt(Corrupt::Block | Corrupt::Commitment)) => {
                let refused = Refused { file, keys, index, last, header, sealed: &sealed };
                return Err(Failure::file(refused.diagnose(&mut plain)?));
            }
            Err(Error::Corrupt(what)) => return Err(Failure::file(format!("block {index}: {what}"))),
            Err(error) => return Err(error.into()),
        }
        output.write_all(&plain).map_err(writing)?;
        totals.add(plain.len());
        step(plain.len())?;
        if last {
            output.flush().map_err(writing)?;
            return Ok(totals);
        }
    }
}

/// Looks at the headers of the blocks behind `file`'s header to the end of `input`, and authenticates nothing.
pub(crate) fn walk(input: &mut impl BufRead, mut see: impl FnMut(&BlockHeader)) -> Result<Totals, Failure> {
    let mut sealed = Vec::with_capacity(BLOCK_BYTES + ROOM_BYTES);
    let mut totals = Totals::default();
    loop {
        see(&read_block_header(input, totals.blocks)?);
        fill(input, &mut sealed, BLOCK_BYTES)?;
        totals.add(sealed.len());
        if sealed.len() < BLOCK_BYTES || input.fill_buf().map_err(reading)?.is_empty() {
            return Ok(totals);
        }
    }
}

fn read_block_header(input: &mut impl Read, index: u64) -> Result<BlockHeader, Failure> {
    let cut = || Failure::file(format!("it is cut short in the header of block {index}"));
    let mut bytes = Vec::with_capacity(keyleash::block::HEADER_BYTES_MAX + ROOM_BYTES);
    fill(input, &mut bytes, SUITE_KNOWN_AFTER_BYTES)?;
    if bytes.is_empty() {
        return Err(Failure::file(format!("it is cut short: block {index} is missing")));
    }
    let named = |error| match error {
        Error::Corrupt(Corrupt::HeaderTruncated { .. }) => cut(),
        Error::Corrupt(what) => Failure::file(format!("block {index}: {what}")),
        error => error.into(),
    };
    let header_len = BlockHeader::len_from(&bytes).map_err(named)?;
    let mut rest = Vec::new();
    fill(input, &mut rest, header_len.saturating_sub(bytes.len()))?;
    bytes.extend(rest);
    BlockHeader::parse(&bytes).map_err(named)
}

/// A block that was refused at its place.
struct Refused<'a> {
    file: &'a FileHeader,
    keys: &'a Keys,
    index: u64,
    last: bool,
    header: BlockHeader,
    sealed: &'a [u8],
}

impl Refused<'_> {
    /// Names what happened to the file. It tries where else the block would open, so it takes up to a second, once.
    fn diagnose(&self, plain: &mut [u8]) -> Result<String, Failure> {
        let index = self.index;
        let full = self.sealed.len() == BLOCK_BYTES;
        if full && self.opens_at(index, !self.last, self.sealed, plain)? {
            return Ok(if self.last {
                format!("it is cut short: block {index} is not its last, and nothing follows")
            } else {
                format!("it has bytes behind its end: block {index} is its last, and more follows")
            });
        }
        for place in index.saturating_sub(SEARCH_BLOCKS)..=index.saturating_add(SEARCH_BLOCKS) {
            for last in [false, true] {
                if place != index && (full || last) && self.opens_at(place, last, self.sealed, plain)? {
                    return Ok(format!("it is out of order: block {place} stands in the place of block {index}"));
                }
            }
        }
        for end in (0..self.sealed.len()).rev() {
            let sealed = self.sealed.get(..end).unwrap_or_default();
            if self.opens_at(index, true, sealed, plain)? {
                return Ok(format!("it has bytes behind its end: block {index} is its last and has {end} bytes"));
            }
        }
        // Later blocks are not refused for being another store's.
        if index == 0 && self.keys.store.is_some() && !self.file.is_of(self.keys.store.as_ref()) {
            return Ok("block 0 does not open: the file was sealed with another store than this one, whose account of this name has \
                       another AEK; or, by a release before this one, with this store, and was changed since"
                .into());
        }
        Ok(if full {
            format!("it was changed: block {index} is not what was sealed there, or comes from another file")
        } else {
            format!("it is cut short in block {index}, or that block was changed")
        })
    }

    fn opens_at(&self, index: u64, last: bool, sealed: &[u8], plain: &mut [u8]) -> Result<bool, Failure> {
        let Some(plain) = plain.get_mut(..sealed.len()) else { return Ok(false) };
        match self.keys.open(self.file.address(index, last)?, &self.header, sealed, plain) {
            Ok(()) => Ok(true),
            Err(Error::Corrupt(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn plain_buffer() -> Zeroizing<Vec<u8>> {
    Zeroizing::new(Vec::with_capacity(BLOCK_BYTES + ROOM_BYTES))
}

/// Fills `buf` with the next `len` bytes, or with fewer at the end.
fn fill(input: &mut impl Read, buf: &mut Vec<u8>, len: usize) -> Result<(), Failure> {
    buf.clear();
    input.by_ref().take(len as u64).read_to_end(buf).map(drop).map_err(reading)
}

/// What the id of a file that is sealed with this store ends with, after the random bytes that it begins with.
fn store_mark(store: &StoreRecord, file_id: &[u8; FILE_ID_BYTES]) -> [u8; STORE_MARK_BYTES] {
    let mut sha = Sha256::new();
    sha.update(b"keyleash.file.store.v1");
    sha.update(store.id);
    sha.update(file_id.get(..FILE_ID_BYTES - STORE_MARK_BYTES).unwrap_or_default());
    let whole: [u8; 32] = sha.finalize().into();
    let mut mark = [0; STORE_MARK_BYTES];
    mark.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
    mark
}

fn digest(header: &[u8]) -> [u8; DIGEST_BYTES] {
    let whole: [u8; 32] = Sha256::digest(header).into();
    let mut digest = [0; DIGEST_BYTES];
    digest.iter_mut().zip(whole).for_each(|(to, from)| *to = from);
    digest
}

/// The next bytes, which are added to what was `read`.
fn next<const N: usize>(input: &mut impl Read, read: &mut Vec<u8>) -> Result<[u8; N], Failure> {
    let bytes = array(input)?;
    read.extend(bytes);
    Ok(bytes)
}

fn array<const N: usize>(input: &mut impl Read) -> Result<[u8; N], Failure> {
    let mut bytes = Vec::with_capacity(N);
    fill(input, &mut bytes, N)?;
    bytes.try_into().map_err(|_| cut_in_header())
}

fn cut_in_header() -> Failure {
    Failure::file("it is cut short in its own header")
}

fn reading(error: io::Error) -> Failure {
    Failure::io(READING, error)
}

/// What a stream is called in an error here, where its name is not known.
pub(crate) const READING: &str = "reading";
pub(crate) const WRITING: &str = "writing";

fn writing(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::io(WRITING, error),
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
