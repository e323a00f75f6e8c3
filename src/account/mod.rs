//! The handle of an account: seal and open. This file is the data path; what waits for anything is in `warm.rs`.
//!
//! Nothing here awaits, allocates (but what the caller asked for), or takes a lock that another core contends for.
//! Every seal and open, in this order: looks whether its caller may, enters as an operation in flight, compares CLOCK_BOOTTIME with the end of its
//! lease, finds its slot filled in the lease's epoch, counts a block that is sealed, derives the block's own DEK, seals or
//! opens, and looks at the lease again before it reports success.

use crate::{
    access::{self, Operation as Granted, Permit, Scope},
    block::{self, Address, Backend, BlockHeader, Sealer, Suite},
    clock::Instant,
    error::{Error, Result},
    keyring::{Keyring, Owner, on_trail::asked_by_blocking},
    name::{AccountId, CallerId, KekName},
    planted,
    secret::{fork, in_flight::Operation},
    slots::{
        account_keys::AccountKeys,
        slot::{AekSlot, Selection},
        tally::Tally,
    },
    telemetry::trail::{Deed, Outcome, Why},
};
use std::{fmt, sync::Arc};

mod batch;
mod warm;

pub use self::{
    batch::{BatchError, OpenItem, SealItem},
    warm::State,
};

/// From this length on a block takes long enough for the clock to be read again before success is reported. A shorter
/// one counts as of its first look at the clock; a denial that arrived meanwhile is seen in both cases.
const SECOND_LOOK_BYTES_MIN: usize = 64 * 1024;

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
    /// What the caller may do who opened it; `None` for one without a name.
    permit: Option<Arc<Permit>>,
    /// Where it is counted what is done; `None` without a trail.
    tally: Option<Arc<Tally>>,
}

impl Selection<'_> {
    /// True while nothing was denied since the selection, nor, for a long block, the lease has ended.
    #[inline]
    pub(crate) fn still_holds(&self, bytes: usize, keyring: &Keyring) -> bool {
        let runs = |now: Instant| self.leash.runs_at(now);
        self.leash.epoch() == self.epoch && (bytes < SECOND_LOOK_BYTES_MIN || runs(keyring.clock.now()))
    }
}

impl Account {
    pub(crate) fn new(
        keys: Arc<AccountKeys>,
        owner: Arc<Owner>,
        permit: Option<Arc<Permit>>,
        tally: Option<Arc<Tally>>,
        (backend, suite): (Backend, Suite),
    ) -> Self {
        Self { keys, owner, backend, suite, permit, tally }
    }

    /// As [`Account::expect`], and counts nothing.
    pub(crate) fn may(&self, operation: Granted) -> Result<()> {
        match self.keyring().access.force.lets(self.permit.as_deref(), operation) {
            true => Ok(()),
            false => Err(self.why_forbidden(operation)),
        }
    }

    /// Whether the caller may still do this who opened the handle.
    #[inline(always)]
    pub(crate) fn expect(&self, operation: Granted) -> Result<()> {
        match self.keyring().access.force.lets(self.permit.as_deref(), operation) {
            true => Ok(()),
            false => Err(self.forbidden(operation)),
        }
    }

    #[cold]
    #[inline(never)]
    fn forbidden(&self, operation: Granted) -> Error {
        let why = self.why_forbidden(operation);
        if let Error::Forbidden(_) = &why {
            self.keyring().by_account.forbidden(self.id());
        }
        if let (Error::Forbidden(_), Some(tally)) = (&why, &self.tally)
            && tally.forbidden()
        {
            asked_by_blocking(Some(tally.who.asks()), || {
                let outcome = || Outcome::Failed(Why::of(&why));
                self.keyring().note_of(Deed::Forbidden, outcome, |record| {
                    (record.on.account, record.on.asked) = (Some(self.id().clone()), Some(Deed::Blocks));
                });
            });
        }
        why
    }

    fn why_forbidden(&self, operation: Granted) -> Error {
        let on = Scope::account(self.id(), None);
        if let Err(forked) = fork::refuse_child() {
            return forked; // where a lock may be held for good
        }
        if let Some(why) = self.keyring().access.force.withheld() {
            return why;
        }
        self.keyring().access.force.count_refused();
        let asked = match &self.permit {
            Some(permit) => permit.ask(operation),
            None => self.keyring().access.force.ask(None, operation, on),
        };
        // It may have been granted by now; this call came before.
        asked.err().unwrap_or_else(|| access::forbidden(self.caller(), operation, on))
    }

    /// Who opened it.
    pub fn caller(&self) -> Option<&CallerId> {
        self.permit.as_ref().and_then(|permit| permit.caller())
    }

    #[cfg(feature = "secrets")]
    pub(crate) fn keys(&self) -> &Arc<AccountKeys> {
        &self.keys
    }

    /// The KEK that the account is under.
    pub(crate) fn kek(&self) -> KekName {
        self.keys.kek().clone()
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
    /// [`Error::Forbidden`] when the caller who opened the handle has no grant of `seal` any more;
    /// [`Error::Denied`], [`Error::Lapsed`], [`Error::Unreachable`], [`Error::Cold`] when the key may not be used;
    /// [`Error::TooLong`] over 64 MiB; [`Error::Exhausted`] when the AEK version has sealed as much as one may
    /// ([`AEK_BLOCKS_MAX`](crate::block::AEK_BLOCKS_MAX)); [`Error::Store`] when what was sealed could not be written down for
    /// very long. `buf` then still holds the plaintext. [`Error::Fatal`] when the cipher fails.
    pub fn seal_in_place(&self, address: impl Into<Address>, buf: &mut [u8]) -> Result<BlockHeader> {
        self.seal_in_place_at(&address.into(), buf)
    }

    // Not generic, so that the data path is compiled once, with its parts inlined.
    fn seal_in_place_at(&self, address: &Address, buf: &mut [u8]) -> Result<BlockHeader> {
        self.expect(Granted::Seal)?;
        let mut header = BlockHeader::blank();
        let mut operation = Operation::enter();
        let thread = operation.thread();
        let outcome = self.to_seal(&mut operation, buf.len()).and_then(|key| {
            let sealer = self.sealer(&key);
            sealer.seal(self.suite, key.aek_version, address, buf.into(), &mut header)?;
            if key.still_holds(buf.len(), self.keyring()) {
                self.tally_sealed(thread, buf.len());
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
        self.expect(Granted::Open)?;
        let slot = self.slot_of(header)?;
        let mut operation = Operation::enter();
        let thread = operation.thread();
        let outcome = self.select(&mut operation, slot).and_then(|key| {
            let sealer = self.sealer(&key);
            sealer.open_in_place(header, address, buf)?;
            if key.still_holds(buf.len(), self.keyring()) {
                self.tally_opened(thread, buf.len());
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
    /// header, or the old one when it was of both already: then nothing is opened, and neither the block nor its address nor the lease
    /// is looked at. Store block and header anew only on success. A header may be longer than the one before: see
    /// [`Suite::header_len`].
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
        self.expect(Granted::Open)?;
        self.expect(Granted::Seal)?;
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
                self.tally_opened(thread, buf.len());
                self.tally_sealed(thread, buf.len());
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
        self.expect(Granted::Seal)?;
        let mut header = BlockHeader::blank();
        let mut operation = Operation::enter();
        let thread = operation.thread();
        let outcome = self.to_seal(&mut operation, plaintext.len()).and_then(|key| {
            let buf = block::pair(plaintext, ciphertext)?;
            self.sealer(&key).seal(self.suite, key.aek_version, address, buf, &mut header)?;
            if key.still_holds(plaintext.len(), self.keyring()) {
                self.tally_sealed(thread, plaintext.len());
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
        self.expect(Granted::Open)?;
        let slot = self.slot_of(header)?;
        let mut operation = Operation::enter();
        let thread = operation.thread();
        let outcome = self.select(&mut operation, slot).and_then(|key| {
            self.sealer(&key).open_into(header, address, ciphertext, plaintext)?;
            if key.still_holds(ciphertext.len(), self.keyring()) {
                self.tally_opened(thread, ciphertext.len());
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

    fn keyring(&self) -> &Arc<Keyring> {
        &self.owner.0
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

    /// For the trail.
    #[inline(always)]
    fn tally_sealed(&self, thread: usize, bytes: usize) {
        if let Some(tally) = &self.tally {
            tally.sealed(thread, bytes);
        }
    }

    /// For the trail.
    #[inline(always)]
    fn tally_opened(&self, thread: usize, bytes: usize) {
        if let Some(tally) = &self.tally {
            tally.opened(thread, bytes);
        }
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
