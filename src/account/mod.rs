//! The handle of an account: seal and open. This file is the data path.
//!
//! Nothing here awaits, allocates (but what the caller asked for), or takes a lock that another core contends for.
//! Every seal and open, in this order: enters as an operation in flight, compares CLOCK_BOOTTIME with the end of its
//! lease, finds its slot filled in the lease's epoch, counts a block that is sealed, derives the block's own DEK, seals or
//! opens, and looks at the lease again before it reports success.

use crate::{
    block::{self, Address, Backend, BlockHeader, Sealer, Suite},
    clock::Instant,
    error::{Corrupt, Error, Result},
    keyring::{Keyring, Owner, made_anew},
    name::AccountId,
    planted,
    secret::{fork, in_flight::Operation},
    slots::{
        account_keys::AccountKeys,
        slot::{AekSlot, Selection},
    },
    store::record::Usage,
};
use std::{fmt, sync::Arc, time::Duration};
use tokio::task::coop;

/// From this length on a block takes long enough for the clock to be read again before success is reported. A shorter
/// one counts as of its first look at the clock; a denial that arrived meanwhile is seen in both cases.
const SECOND_LOOK_BYTES_MIN: usize = 64 * 1024;

/// How often the async forms warm an account that goes cold again at once (others took its room, or a TTL shorter than an unwrap)
/// before they say [`Error::Cold`].
const WARM_ROUNDS_MAX: usize = 8;
/// How long [`Account::ready`] waits before it tries again without having heard of a change.
const READY_RETRY: Duration = Duration::from_secs(1);

/// An account's handle. Cheap to clone; seals and opens from any thread without awaiting.
///
/// A handle outlives denial and resumption: while its key may not be used, every call says why
/// ([`Error::Denied`], [`Error::Lapsed`], [`Error::Unreachable`], [`Error::Cold`]); afterwards the same handle works.
///
/// | what is sealed or opened | at once, on the data path | async: warms first where that takes it |
/// | --- | --- | --- |
/// | a buffer in place | [`seal_in_place`](Self::seal_in_place), [`open_in_place`](Self::open_in_place), [`reseal_in_place`](Self::reseal_in_place) | [`seal`](Self::seal), [`open`](Self::open), [`reseal`](Self::reseal) |
/// | one buffer into another | [`seal_into`](Self::seal_into), [`open_into`](Self::open_into) | |
/// | into one new `Vec`, the header in front | [`seal_to_vec`](Self::seal_to_vec), [`open_to_vec`](Self::open_to_vec) | |
/// | many buffers in place | [`seal_batch`](Self::seal_batch), [`open_batch`](Self::open_batch) | |
///
/// There is no form for a plaintext in pieces, as the ciphers take one slice: read the pieces into one buffer, one behind the other, and
/// seal it in place. And none writes to memory that was never written, which the pure-Rust cipher could not be given without
/// `unsafe`, and of which a block that is refused would have to leave every byte zero: to spare the zeros of a new buffer, give the
/// same one to `seal_into` or `open_into` again.
#[derive(Clone)]
pub struct Account {
    keys: Arc<AccountKeys>,
    owner: Arc<Owner>,
    backend: Backend,
    suite: Suite,
}

impl Selection<'_> {
    /// True while nothing was denied since the selection, nor, for a long block, the lease has ended.
    #[inline]
    pub(crate) fn still_holds(&self, bytes: usize, keyring: &Keyring) -> bool {
        let runs = |now: Instant| self.leash.runs_at(now);
        self.leash.epoch() == self.epoch && (bytes < SECOND_LOOK_BYTES_MIN || runs(keyring.clock.now()))
    }
}

/// Whether an account can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Blocks can be sealed.
    Ready,
    /// The key is not in memory; [`Account::warm`] brings it there.
    Cold,
    /// Denied, lapsed, or cold while the token is unreachable: says since when, why, and what to do.
    Refused(Error),
}

/// One block of a batch to be sealed in place. It is sealed once, however often the batch is tried: one that has its header is
/// passed over, so that a batch that stopped can be given again as it is.
#[derive(Debug)]
pub struct SealItem<'a> {
    address: Address,
    buf: &'a mut [u8],
    /// There when `buf` holds the ciphertext. Set by the seal alone: with one of somebody else's, plaintext would be passed over.
    header: Option<BlockHeader>,
}

impl<'a> SealItem<'a> {
    /// `address` is what the service says the block is, `buf` its plaintext.
    pub fn new(address: impl Into<Address>, buf: &'a mut [u8]) -> Self {
        Self { address: address.into(), buf, header: None }
    }

    /// The header that opens it again; `None` until it is sealed.
    pub fn header(&self) -> Option<&BlockHeader> {
        self.header.as_ref()
    }

    /// Header and ciphertext; `None` when it is not sealed.
    pub fn sealed(self) -> Option<(BlockHeader, &'a mut [u8])> {
        Some((self.header?, self.buf))
    }
}

/// One block of a batch to be opened in place. It is opened once, however often the batch is tried.
#[derive(Debug)]
pub struct OpenItem<'a> {
    address: Address,
    header: &'a BlockHeader,
    buf: &'a mut [u8],
    opened: bool,
}

impl<'a> OpenItem<'a> {
    /// `address` is what the service says the block is, `header` the block's, `buf` its ciphertext.
    pub fn new(address: impl Into<Address>, header: &'a BlockHeader, buf: &'a mut [u8]) -> Self {
        Self { address: address.into(), header, buf, opened: false }
    }

    /// The plaintext; `None` when it is not opened.
    pub fn opened(self) -> Option<&'a mut [u8]> {
        self.opened.then_some(self.buf)
    }
}

/// A batch stopped at an item; those before it are done, it and those after it are untouched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("block {index} of the batch: {error}")]
#[non_exhaustive]
pub struct BatchError {
    /// The item, counted from 0. To try it again, give the same batch again: what is done is passed over. To leave it out, go on
    /// with the rest of the batch from `index + 1`.
    pub index: usize,
    /// Why it was refused.
    pub error: Error,
}

impl Account {
    pub(crate) fn new(keys: Arc<AccountKeys>, owner: Arc<Owner>, backend: Backend, suite: Suite) -> Self {
        Self { keys, owner, backend, suite }
    }

    /// The account's id.
    pub fn id(&self) -> &AccountId {
        &self.keys.id
    }

    /// The AEK version under which new blocks are sealed.
    pub fn aek_version(&self) -> u32 {
        self.keys.current().aek_version
    }

    /// Seals `buf` in place, as the block `address`, and returns the header that opens it again. The ciphertext is as
    /// long as the plaintext: 0 bytes to 64 MiB.
    ///
    /// # Errors
    /// [`Error::Denied`], [`Error::Lapsed`], [`Error::Unreachable`], [`Error::Cold`] when the key may not be used;
    /// [`Error::TooLong`] over 64 MiB; [`Error::Exhausted`] when the AEK version has sealed as much as one may
    /// ([`AEK_BLOCKS_MAX`](crate::block::AEK_BLOCKS_MAX)); [`Error::Store`] when what was sealed could not be written down for
    /// very long. `buf` then still holds the plaintext. [`Error::Fatal`] when the cipher fails.
    pub fn seal_in_place(&self, address: impl Into<Address>, buf: &mut [u8]) -> Result<BlockHeader> {
        self.seal_in_place_at(&address.into(), buf)
    }

    // Not generic, so that the data path is compiled once, with its parts inlined.
    fn seal_in_place_at(&self, address: &Address, buf: &mut [u8]) -> Result<BlockHeader> {
        let mut header = BlockHeader::blank();
        let mut operation = Operation::enter();
        let outcome = self.to_seal(&mut operation, buf.len()).and_then(|key| {
            let sealer = self.sealer(&key);
            sealer.seal(self.suite, key.aek_version, address, buf.into(), &mut header)?;
            if key.still_holds(buf.len(), self.keyring()) {
                return Ok(());
            }
            // Nothing is lost: the caller may have no other copy of the plaintext.
            sealer.open_in_place(&header, address, buf)?;
            Err(Unusable::Revoked)
        });
        self.explain(operation, self.keys.current(), outcome)?;
        Ok(header)
    }

    /// Opens in place what [`Account::seal_in_place`] sealed.
    ///
    /// # Errors
    /// As sealing, with `buf` as it was: it can be opened again once the key is back. [`Error::Corrupt`] when the block, header,
    /// address or account is not what was sealed: `buf` is then zero; open into another buffer to keep the ciphertext.
    pub fn open_in_place(&self, address: impl Into<Address>, header: &BlockHeader, buf: &mut [u8]) -> Result<()> {
        self.open_in_place_at(&address.into(), header, buf)
    }

    fn open_in_place_at(&self, address: &Address, header: &BlockHeader, buf: &mut [u8]) -> Result<()> {
        let slot = self.slot_of(header)?;
        let mut operation = Operation::enter();
        let outcome = self.select(&mut operation, slot).and_then(|key| {
            let sealer = self.sealer(&key);
            sealer.open_in_place(header, address, buf)?;
            if key.still_holds(buf.len(), self.keyring()) {
                planted::on_opened(buf);
                return Ok(());
            }
            // No plaintext is given, and nothing is lost: whoever waits for the key tries again with this buffer.
            sealer.seal_back(header, address, buf)?;
            Err(Unusable::Revoked)
        });
        self.explain(operation, slot, outcome)
    }

    /// Moves a block to the current AEK version and to the engine's suite: opens it in place and seals it again, and returns the new
    /// header, or the old one when it was of both already. Store block and header anew only on success. A header may be longer than
    /// the one before: see [`Suite::header_len`].
    ///
    /// # Errors
    /// As [`Account::open_in_place`] and [`Account::seal_in_place`]. `buf` is then as it was: the caller may have no other copy
    /// of the block. But with [`Error::Corrupt`] and [`Error::Fatal`] it is zero.
    pub fn reseal_in_place(
        &self,
        address: impl Into<Address>,
        header: &BlockHeader,
        buf: &mut [u8],
    ) -> Result<BlockHeader> {
        let address = address.into();
        let old = self.slot_of(header)?;
        let new = self.keys.current();
        if new.aek_version == old.aek_version && header.suite() == self.suite {
            return Ok(*header);
        }
        let (mut to_new, mut of_old) = (Operation::enter(), Operation::enter());
        let thread = to_new.thread();
        // Both before the first byte is changed, so that a cold key leaves the buffer as it was.
        let outcome = self.select(&mut to_new, new).and_then(|new_key| {
            let old_key = self.select(&mut of_old, old)?;
            self.count(thread, &new_key, buf.len())?;
            let (opener, sealer) = (self.sealer(&old_key), self.sealer(&new_key));
            opener.open_in_place(header, &address, buf)?;
            let resealed = sealer.seal_in_place(self.suite, new_key.aek_version, &address, buf);
            let resealed = resealed.inspect_err(|_| buf.fill(0))?; // it may hold plaintext
            if old_key.still_holds(buf.len(), self.keyring()) && new_key.still_holds(buf.len(), self.keyring()) {
                return Ok(resealed);
            }
            sealer.open_in_place(&resealed, &address, buf)?;
            opener.seal_back(header, &address, buf)?;
            Err(Unusable::Revoked)
        });
        let refused = if new.is_usable(self.keyring().clock.now()) { old } else { new };
        self.explain((to_new, of_old), refused, outcome)
    }

    /// Seals `plaintext`, which is only read, into `ciphertext` of the same length.
    ///
    /// # Errors
    /// As [`Account::seal_in_place`], and [`Error::Invalid`] when the lengths differ.
    pub fn seal_into(
        &self,
        address: impl Into<Address>,
        plaintext: &[u8],
        ciphertext: &mut [u8],
    ) -> Result<BlockHeader> {
        self.seal_into_at(&address.into(), plaintext, ciphertext)
    }

    fn seal_into_at(&self, address: &Address, plaintext: &[u8], ciphertext: &mut [u8]) -> Result<BlockHeader> {
        let mut header = BlockHeader::blank();
        let mut operation = Operation::enter();
        let outcome = self.to_seal(&mut operation, plaintext.len()).and_then(|key| {
            let buf = block::pair(plaintext, ciphertext)?;
            self.sealer(&key).seal(self.suite, key.aek_version, address, buf, &mut header)?;
            if key.still_holds(plaintext.len(), self.keyring()) {
                return Ok(());
            }
            ciphertext.fill(0);
            Err(Unusable::Revoked)
        });
        self.explain(operation, self.keys.current(), outcome)?;
        Ok(header)
    }

    /// Opens `ciphertext`, which is only read, into `plaintext` of the same length.
    ///
    /// # Errors
    /// As [`Account::open_in_place`], and [`Error::Invalid`] when the lengths differ. `plaintext` then holds no byte of it.
    pub fn open_into(
        &self,
        address: impl Into<Address>,
        header: &BlockHeader,
        ciphertext: &[u8],
        plaintext: &mut [u8],
    ) -> Result<()> {
        self.open_into_at(&address.into(), header, ciphertext, plaintext)
    }

    fn open_into_at(
        &self,
        address: &Address,
        header: &BlockHeader,
        ciphertext: &[u8],
        plaintext: &mut [u8],
    ) -> Result<()> {
        let slot = self.slot_of(header)?;
        let mut operation = Operation::enter();
        let outcome = self.select(&mut operation, slot).and_then(|key| {
            self.sealer(&key).open_into(header, address, ciphertext, plaintext)?;
            if key.still_holds(ciphertext.len(), self.keyring()) {
                return Ok(());
            }
            plaintext.fill(0);
            Err(Unusable::Revoked)
        });
        self.explain(operation, slot, outcome)
    }

    /// Seals into one new `Vec`: header, then ciphertext.
    ///
    /// # Errors
    /// As [`Account::seal_in_place`].
    pub fn seal_to_vec(&self, address: impl Into<Address>, plaintext: &[u8]) -> Result<Vec<u8>> {
        block::check_len(plaintext.len())?;
        let header_len = self.suite.header_len();
        let mut sealed = vec![0; header_len + plaintext.len()];
        let (front, ciphertext) = sealed.split_at_mut(header_len);
        let header = self.seal_into(address, plaintext, ciphertext)?;
        front.copy_from_slice(header.as_bytes());
        Ok(sealed)
    }

    /// Opens what [`Account::seal_to_vec`] made.
    ///
    /// # Errors
    /// As [`Account::open_into`], and [`Error::Corrupt`] naming what is wrong with the header.
    pub fn open_to_vec(&self, address: impl Into<Address>, sealed: &[u8]) -> Result<Vec<u8>> {
        let (header, ciphertext) = BlockHeader::split(sealed)?;
        block::check_len(ciphertext.len())?;
        let mut plaintext = vec![0; ciphertext.len()];
        self.open_into(address, &header, ciphertext, &mut plaintext)?;
        Ok(plaintext)
    }

    /// Seals many blocks in place. Each asks the lease for itself. Those that are sealed already are passed over.
    ///
    /// # Errors
    /// [`BatchError`] at the first item that fails: those before it have their headers, it and the rest still hold plaintext.
    pub fn seal_batch(&self, items: &mut [SealItem<'_>]) -> Result<(), BatchError> {
        for (index, item) in items.iter_mut().enumerate().filter(|(_, item)| item.header.is_none()) {
            item.header =
                Some(self.seal_in_place(item.address, item.buf).map_err(|error| BatchError { index, error })?);
        }
        Ok(())
    }

    /// Opens many blocks in place. Each asks the lease for itself. Those that are opened already are passed over.
    ///
    /// # Errors
    /// [`BatchError`] at the first item that fails: those before it hold plaintext, it is as [`Account::open_in_place`]
    /// says, the rest are untouched.
    pub fn open_batch(&self, items: &mut [OpenItem<'_>]) -> Result<(), BatchError> {
        for (index, item) in items.iter_mut().enumerate().filter(|(_, item)| !item.opened) {
            self.open_in_place(item.address, item.header, item.buf).map_err(|error| BatchError { index, error })?;
            item.opened = true;
        }
        Ok(())
    }

    /// Whether new blocks can be sealed now, and if not, why.
    pub fn state(&self) -> State {
        let slot = self.keys.current();
        let now = self.keyring().clock.now();
        if slot.is_usable(now) {
            return State::Ready;
        }
        if let Err(forked) = fork::refuse_child() {
            return State::Refused(forked);
        }
        match slot.why_not(now) {
            Error::Cold { .. } => State::Cold,
            refused => State::Refused(refused),
        }
    }

    /// Resolves when the account can be used again: warms it when it is cold, and waits through denial, lapse and outage
    /// for as long as they last. Put a time-out around it.
    ///
    /// # Errors
    /// What waiting cannot heal: [`Error::NotFound`], [`Error::Corrupt`], [`Error::Conflict`], [`Error::Misconfigured`],
    /// [`Error::Closed`], [`Error::Fatal`].
    pub async fn ready(&self) -> Result<()> {
        coop::consume_budget().await;
        let (keyring, id) = (self.keyring().clone(), self.id().clone());
        let keys = self.keyring().home.call_without_end(async move {
            loop {
                let changed = keyring.changed.notified();
                tokio::pin!(changed);
                // Enlist before the attempt, else a change during it would be missed.
                changed.as_mut().enable();
                if keyring.home.is_closed() {
                    return Err(Error::Closed);
                }
                match keyring.open(&id).await {
                    Err(
                        Error::Denied(_)
                        | Error::Lapsed(_)
                        | Error::Unreachable(_)
                        | Error::Cold { .. }
                        | Error::Store(_),
                    ) => {}
                    settled => return settled,
                }
                let again = keyring.clock.now().plus(READY_RETRY);
                keyring.clock.until(again, changed).await;
            }
        });
        self.is_of(&keys.await?)
    }

    /// As [`Account::seal_in_place`], and warms the account first when it is cold.
    ///
    /// # Errors
    /// As [`Account::seal_in_place`] and [`Account::warm`]. [`Error::Cold`] also when more accounts are used at once than there is
    /// room for keys, and others took this one's room again and again: try again.
    pub async fn seal(&self, address: impl Into<Address>, buf: &mut [u8]) -> Result<BlockHeader> {
        let address = address.into();
        take_part(buf).await;
        for _ in 0..WARM_ROUNDS_MAX {
            match self.seal_in_place(address, buf) {
                Err(Error::Cold { .. }) => self.warm().await?,
                settled => return settled,
            }
        }
        self.seal_in_place(address, buf)
    }

    /// As [`Account::open_in_place`], and warms the account first when it is cold.
    ///
    /// # Errors
    /// As [`Account::open_in_place`] and [`Account::warm`]; [`Error::Cold`] as for [`Account::seal`].
    pub async fn open(&self, address: impl Into<Address>, header: &BlockHeader, buf: &mut [u8]) -> Result<()> {
        let address = address.into();
        take_part(buf).await;
        for _ in 0..WARM_ROUNDS_MAX {
            match self.open_in_place(address, header, buf) {
                Err(Error::Cold { .. }) => self.warm_for(header).await?,
                settled => return settled,
            }
        }
        self.open_in_place(address, header, buf)
    }

    /// As [`Account::reseal_in_place`], and warms both of its AEK versions first when one is cold.
    ///
    /// # Errors
    /// As [`Account::reseal_in_place`], [`Account::warm`] and [`Account::warm_for`]; [`Error::Cold`] as for [`Account::seal`].
    pub async fn reseal(
        &self,
        address: impl Into<Address>,
        header: &BlockHeader,
        buf: &mut [u8],
    ) -> Result<BlockHeader> {
        let address = address.into();
        take_part(buf).await;
        for _ in 0..WARM_ROUNDS_MAX {
            match self.reseal_in_place(address, header, buf) {
                Err(Error::Cold { .. }) => {
                    self.warm_for(header).await?;
                    self.warm().await?;
                }
                settled => return settled,
            }
        }
        self.reseal_in_place(address, header, buf)
    }

    fn keyring(&self) -> &Arc<Keyring> {
        &self.owner.0
    }

    /// Writes down in the account's record that so many blocks, of so many plaintext bytes, are sealed under its current AEK version,
    /// ahead of their being sealed by this engine, which then does not count them again. For a process that may be killed at any
    /// moment and ends soon: whatever it had sealed by then is counted. [`Engine::write_usage`](crate::Engine::write_usage) takes off
    /// again what was not sealed.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Conflict`], [`Error::Corrupt`]: nothing is counted ahead, and sealing counts as ever.
    pub async fn count_ahead(&self, blocks: u64, bytes: u64) -> Result<()> {
        let (keyring, slot) = (self.keyring().clone(), self.keys.current().clone());
        let used = Usage { blocks, bytes };
        self.keyring().home.call(async move { keyring.count_ahead(&slot, used).await }).await
    }

    /// Brings the key into memory, so that new blocks can be sealed: at once when it is there, else after one unwrap.
    /// Call it when a seal says [`Error::Cold`].
    ///
    /// # Errors
    /// As [`crate::Engine::account`]; [`Error::NotFound`] also when the account was purged and made anew under the handle.
    pub async fn warm(&self) -> Result<()> {
        coop::consume_budget().await;
        // Through the index, so that an evicted account is counted again.
        self.is_of(&self.keyring().open_for_caller(self.id()).await?)
    }

    /// As [`Account::warm`], for a caller without a runtime: blocks the thread until the key is there, or `patience` is over. Not on a
    /// thread of an executor.
    ///
    /// # Errors
    /// As [`Account::warm`]; [`Error::Cold`] when `patience` is over.
    pub fn warm_blocking(&self, patience: Duration) -> Result<()> {
        self.is_of(&self.keyring().open_blocking(self.id(), patience)?)
    }

    /// How many blocks are sealed under the current AEK version: what the account's record said when it was last read, of all
    /// engines together, and what this engine sealed since. The end is at [`AEK_BLOCKS_MAX`](crate::block::AEK_BLOCKS_MAX), where
    /// sealing is [`Error::Exhausted`]; an engine that does the scheduled work rotates at half of it. Not for the data path.
    pub fn blocks_sealed(&self) -> u64 {
        self.keys.current().meter().sealed().blocks
    }

    /// The keys of the account are its own, and not those of one that was made anew.
    fn is_of(&self, keys: &Arc<AccountKeys>) -> Result<()> {
        if Arc::ptr_eq(keys, &self.keys) { Ok(()) } else { Err(made_anew(self.id())) }
    }

    /// As [`Account::warm`], for opening the block that `header` belongs to, which may be of an older AEK version.
    ///
    /// # Errors
    /// As [`Account::warm`]; [`Error::NotFound`] when that AEK version was retired; [`Error::Corrupt`] when the account never had it.
    pub async fn warm_for(&self, header: &BlockHeader) -> Result<()> {
        coop::consume_budget().await;
        if matches!(self.slot_of(header), Err(Error::Cold { .. })) {
            let (keyring, id) = (self.keyring().clone(), self.id().clone());
            self.keyring().home.call(async move { keyring.learn(&id).await }).await?;
        }
        let aek_version = header.aek_version();
        let slot = self.keys.version(aek_version).ok_or_else(|| self.keys.absent(aek_version))?;
        self.keyring().warm_for_caller(slot).await.map_err(|error| match error {
            Error::Corrupt(Corrupt::AekVersion(aek_version)) => self.keys.absent(aek_version),
            error => error,
        })
    }

    /// Makes sure that a block that was sealed with this handle can be opened from what the store has now: reads the account's record
    /// anew, and unwraps the AEK version that sealed it. For a process that does not have its store to itself, as the command line
    /// does not: while it seals, another one may put an older copy of the store in its place, or destroy AEK versions.
    /// While the token does not answer, the record alone is looked at.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the account or the AEK version is not there any more, or is another one; [`Error::Corrupt`];
    /// [`Error::Store`] when that cannot be seen; [`Error::Denied`].
    pub async fn confirm(&self, header: &BlockHeader) -> Result<()> {
        let aek_version = header.aek_version();
        let slot = self.keys.version(aek_version).ok_or_else(|| self.keys.absent(aek_version))?.clone();
        let keyring = self.keyring().clone();
        let confirmed = self.keyring().home.call(async move { keyring.confirm(&slot).await }).await;
        confirmed.map_err(|error| match error {
            Error::Corrupt(Corrupt::AekVersion(aek_version)) => self.keys.absent(aek_version),
            error => error,
        })
    }

    /// Of a version that is newer than all that are known, only the store can say whether there is one.
    #[inline]
    fn slot_of(&self, header: &BlockHeader) -> Result<&Arc<AekSlot>> {
        let aek_version = header.aek_version();
        self.keys.version(aek_version).ok_or_else(|| match aek_version > self.aek_version() {
            true => Error::Cold { account: self.id().clone() },
            false => self.keys.absent(aek_version),
        })
    }

    /// The key for a block of `bytes` bytes that is to be sealed now, which is counted.
    #[inline(always)]
    fn to_seal<'a>(&'a self, operation: &'a mut Operation, bytes: usize) -> Result<Selection<'a>, Unusable> {
        planted::on_seal(|| self.keys.current().leash.lease().phase())?;
        let thread = operation.thread();
        let key = self.select(operation, self.keys.current())?;
        self.count(thread, &key, bytes)?;
        Ok(key)
    }

    /// Before it is sealed: the limits of the suite hold whatever happens in between.
    #[inline(always)]
    fn count(&self, thread: usize, key: &Selection<'_>, bytes: usize) -> Result<()> {
        block::check_len(bytes)?;
        key.meter.count(thread, bytes, || self.keyring().clock.now())
    }

    #[inline(always)]
    fn select<'a>(&'a self, operation: &'a mut Operation, slot: &'a AekSlot) -> Result<Selection<'a>, Unusable> {
        if planted::stays_away(&self.keys.id) {
            return Err(Unusable::Revoked);
        }
        slot.usable(operation, self.keyring().clock.now()).ok_or(Unusable::Revoked)
    }

    #[inline(always)]
    fn sealer<'a>(&'a self, key: &Selection<'a>) -> Sealer<'a> {
        #[cfg(test)]
        tests::midst();
        Sealer { backend: self.backend, schedule: key.schedule, account: &self.keys.id }
    }

    /// For tests: an operation that uses the key and does not end, as a seal does whose buffer's page never comes. `None` where a seal
    /// would be refused. It ends as it is dropped.
    #[doc(hidden)]
    pub fn stuck_operation(&self) -> Option<StuckOperation> {
        let mut operation = Operation::enter();
        let begins = self.select(&mut operation, self.keys.current()).is_ok();
        begins.then(|| StuckOperation { _operation: operation, _of: self.clone() })
    }

    /// Leaves the operations, so that the key can be wiped, then says why it could not be used.
    #[inline]
    fn explain<T, O>(&self, operations: O, slot: &AekSlot, outcome: Result<T, Unusable>) -> Result<T> {
        drop(operations);
        outcome.map_err(|unusable| match unusable {
            Unusable::Revoked => fork::refuse_child().err().unwrap_or_else(|| slot.why_not(self.keyring().clock.now())),
            Unusable::Other(error) => error,
        })
    }
}

/// See [`Account::stuck_operation`].
#[doc(hidden)]
pub struct StuckOperation {
    // Dropped in this order: the last handle waits for nobody.
    _operation: Operation,
    _of: Account,
}

/// Takes part in the host's cooperative scheduling: what never waits would never let another task run. A big block counts as
/// many small ones.
async fn take_part(buf: &[u8]) {
    for _ in 0..=buf.len() / SECOND_LOOK_BYTES_MIN {
        coop::consume_budget().await;
    }
}

/// Why an operation ended without success; the reason for a revocation is looked up after the operation was left.
enum Unusable {
    Revoked,
    Other(Error),
}

impl From<Error> for Unusable {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("id", self.id()).field("aek_version", &self.aek_version()).finish()
    }
}

#[cfg(test)]
mod tests;
