//! The way back to a key that is not in memory, and what else of a handle waits for something: nothing here is on the data path.

use super::{Account, SECOND_LOOK_BYTES_MIN};
use crate::{
    access::{Operation as Granted, Scope, forbidden},
    block::{Address, BlockHeader},
    error::{Corrupt, Error, Result},
    keyring::{
        made_anew,
        on_trail::{asked_by, asked_by_blocking, asker},
    },
    secret::fork,
    slots::account_keys::AccountKeys,
    store::record::Usage,
    telemetry::trail::Asker,
};
use std::{sync::Arc, time::Duration};
use tokio::task::coop;

/// How often the async forms warm an account that goes cold again at once (others took its room, or a TTL shorter than an unwrap)
/// before they say [`Error::Cold`].
const WARM_ROUNDS_MAX: usize = 8;

/// How long [`Account::ready`] waits before it tries again without having heard of a change.
const READY_RETRY: Duration = Duration::from_secs(1);

/// Whether an account can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Blocks can be sealed.
    Ready,
    /// The key is not in memory; [`Account::warm`] brings it there.
    Cold,
    /// Denied, lapsed, cold while the token is unreachable, or not granted to its caller: says why, and what to do.
    Refused(Error),
}

impl Account {
    /// Whether new blocks can be sealed now, and if not, why.
    pub fn state(&self) -> State {
        let slot = self.keys.current();
        let now = self.keyring().clock.now();
        if let Err(forbidden) = self.expect(Granted::Seal) {
            return State::Refused(forbidden);
        }
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
    /// What waiting cannot heal: [`Error::Forbidden`], [`Error::NotFound`], [`Error::Corrupt`], [`Error::Conflict`], [`Error::Misconfigured`],
    /// [`Error::Closed`], [`Error::Fatal`].
    pub async fn ready(&self) -> Result<()> {
        coop::consume_budget().await;
        self.expect(Granted::Unwrap)?;
        let (keyring, id, permit) = (self.keyring().clone(), self.id().clone(), self.permit.clone());
        let keys = self.keyring().home.call_without_end(asked_by(self.asker(), async move {
            loop {
                let changed = keyring.changed.notified();
                tokio::pin!(changed);
                // Enlist before the attempt, else a change during it would be missed.
                changed.as_mut().enable();
                if keyring.home.is_closed() {
                    return Err(Error::Closed);
                }
                if !keyring.access.force.lets(permit.as_deref(), Granted::Unwrap) {
                    let caller = permit.as_ref().and_then(|permit| permit.caller());
                    return Err(forbidden(caller, Granted::Unwrap, Scope::account(&id, None)));
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
        }));
        self.is_of(&keys.await?)
    }

    /// As [`Account::seal_in_place`], and warms the account first when it is cold.
    ///
    /// # Errors
    /// As [`Account::seal_in_place`] and [`Account::warm`]. [`Error::Cold`] also when more accounts are used at once than there is
    /// room for keys, and others took this one's room again and again: try again.
    pub async fn seal(&self, address: impl Into<Address>, buf: &mut [u8]) -> Result<BlockHeader> {
        let address = address.into();
        warming(buf, || self.warm(), |buf| self.seal_in_place(address, buf)).await
    }

    /// As [`Account::open_in_place`], and warms the account first when it is cold.
    ///
    /// # Errors
    /// As [`Account::open_in_place`] and [`Account::warm`]; [`Error::Cold`] as for [`Account::seal`].
    pub async fn open(&self, address: impl Into<Address>, header: &BlockHeader, buf: &mut [u8]) -> Result<()> {
        let address = address.into();
        warming(buf, || self.warm_for(header), |buf| self.open_in_place(address, header, buf)).await
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
        let warm = || async move {
            self.warm_for(header).await?;
            self.warm().await
        };
        warming(buf, warm, |buf| self.reseal_in_place(address, header, buf)).await
    }

    /// Brings the key into memory, so that new blocks can be sealed: at once when it is there, else after one unwrap.
    /// Call it when a seal says [`Error::Cold`].
    ///
    /// # Errors
    /// As [`crate::Engine::account`]; [`Error::NotFound`] also when the account was purged and made anew under the handle.
    pub async fn warm(&self) -> Result<()> {
        coop::consume_budget().await;
        self.expect(Granted::Unwrap)?;
        // Through the index, so that an evicted account is counted again.
        self.is_of(&self.asking(self.keyring().open_for_caller(self.id())).await?)
    }

    /// As [`Account::warm`], for a caller without a runtime: blocks the thread until the key is there, or `patience` is over. Not on a
    /// thread of an executor.
    ///
    /// # Errors
    /// As [`Account::warm`]; [`Error::Cold`] when `patience` is over.
    pub fn warm_blocking(&self, patience: Duration) -> Result<()> {
        self.expect(Granted::Unwrap)?;
        let open = || self.keyring().open_blocking(self.caller(), self.id(), patience);
        self.is_of(&asked_by_blocking(self.asker(), open)?)
    }

    /// As [`Account::warm`], for opening the block that `header` belongs to, which may be of an older AEK version.
    ///
    /// # Errors
    /// As [`Account::warm`]; [`Error::NotFound`] when that AEK version was retired; [`Error::Corrupt`] when the account never had it.
    pub async fn warm_for(&self, header: &BlockHeader) -> Result<()> {
        coop::consume_budget().await;
        self.expect(Granted::Unwrap)?;
        if matches!(self.slot_of(header), Err(Error::Cold { .. })) {
            let (keyring, id) = (self.keyring().clone(), self.id().clone());
            self.asking(self.keyring().call(async move { keyring.learn(&id).await })).await?;
        }
        let aek_version = header.aek_version();
        let slot = self.keys.version(aek_version).ok_or_else(|| self.keys.absent(aek_version))?;
        self.asking(self.keyring().warm_for_caller(slot)).await.map_err(|error| match error {
            Error::Corrupt(Corrupt::AekVersion(aek_version)) => self.keys.absent(aek_version),
            error => error,
        })
    }

    /// Who asks by the handle: whose call this is on the way of, or who opened it.
    fn asker(&self) -> Option<Asker> {
        asker().or_else(|| self.tally.as_ref().map(|tally| tally.who.asks()))
    }

    fn asking<W: Future>(&self, work: W) -> impl Future<Output = W::Output> {
        asked_by(self.asker(), work)
    }

    /// The keys of the account are its own, and not those of one that was made anew.
    fn is_of(&self, keys: &Arc<AccountKeys>) -> Result<()> {
        if Arc::ptr_eq(keys, &self.keys) { Ok(()) } else { Err(made_anew(self.id())) }
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
        self.expect(Granted::Unwrap)?;
        let aek_version = header.aek_version();
        let slot = self.keys.version(aek_version).ok_or_else(|| self.keys.absent(aek_version))?.clone();
        let keyring = self.keyring().clone();
        let confirmed = self.asking(self.keyring().call(async move { keyring.confirm(&slot).await })).await;
        confirmed.map_err(|error| match error {
            Error::Corrupt(Corrupt::AekVersion(aek_version)) => self.keys.absent(aek_version),
            error => error,
        })
    }

    /// Writes down in the account's record that so many blocks, of so many plaintext bytes, are sealed under its current AEK version,
    /// ahead of their being sealed by this engine, which then does not count them again. For a process that may be killed at any
    /// moment and ends soon: whatever it had sealed by then is counted. [`Engine::write_usage`](crate::Engine::write_usage) takes off
    /// again what was not sealed.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Conflict`], [`Error::Corrupt`]: nothing is counted ahead, and sealing counts as ever.
    pub async fn count_ahead(&self, blocks: u64, bytes: u64) -> Result<()> {
        self.expect(Granted::Seal)?;
        let (keyring, slot) = (self.keyring().clone(), self.keys.current().clone());
        let used = Usage { blocks, bytes };
        self.keyring().home.call(async move { keyring.count_ahead(&slot, used).await }).await
    }

    /// How many blocks are sealed under the current AEK version: what the account's record said when it was last read, of all
    /// engines together, and what this engine sealed since. The end is at [`AEK_BLOCKS_MAX`](crate::block::AEK_BLOCKS_MAX), where
    /// sealing is [`Error::Exhausted`]; an engine that does the scheduled work rotates at half of it. Not for the data path.
    pub fn blocks_sealed(&self) -> u64 {
        self.keys.current().meter().sealed().blocks
    }
}

/// Takes part in the host's cooperative scheduling: what never waits would never let another task run. A big block counts as
/// many small ones.
async fn take_part(buf: &[u8]) {
    for _ in 0..=buf.len() / SECOND_LOOK_BYTES_MIN {
        coop::consume_budget().await;
    }
}

/// Tries, and warms what is cold in between. However often that was, the last try says how it stands.
async fn warming<T, W: Future<Output = Result<()>>>(
    buf: &mut [u8],
    warm: impl Fn() -> W,
    attempt: impl Fn(&mut [u8]) -> Result<T>,
) -> Result<T> {
    take_part(buf).await;
    for _ in 0..WARM_ROUNDS_MAX {
        match attempt(buf) {
            Err(Error::Cold { .. }) => warm().await?,
            settled => return settled,
        }
    }
    attempt(buf)
}
