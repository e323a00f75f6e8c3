//! Blocks sealed or opened one after the other, up to the first that fails.

use super::Account;
use crate::{
    block::{Address, BlockHeader},
    error::Error,
};

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
}
