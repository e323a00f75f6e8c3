//! Writes: many in one transaction, each with its own outcome.

use super::{
    file::{INDEX, META, RECORDS, REVISION},
    version_of,
};
use crate::{
    error::Result,
    store::{
        Key, Put, StoreVersion, conflict,
        envelope::{Envelope, index_key},
        exists, not_found,
    },
};
use ::redb::{Database, Durability, Error as RedbError, ReadableTable, StorageError, Table, WriteTransaction};
use tokio::sync::oneshot;

/// Said of a record whose bytes are not those that were written.
pub(super) const CHANGED: &str = "its bytes were changed in the store's file; restore the file from a copy";

/// The version that a value got; for a delete, the one that it would have got.
pub(super) type Outcome = Result<StoreVersion>;

pub(super) struct Job {
    pub(super) write: Write,
    pub(super) reply: oneshot::Sender<Outcome>,
}

pub(super) enum Write {
    Create { key: Key, put: Put },
    Replace { key: Key, expected: StoreVersion, put: Put },
    Delete { key: Key, expected: StoreVersion },
}

/// Does all writes in one durable transaction. An outcome that is an error has changed nothing; an error of the
/// transaction means that none is acknowledged.
pub(super) fn commit(database: &Database, writes: &[Write]) -> Result<Vec<Outcome>, RedbError> {
    let transaction = begin(database)?;
    let mut tables = Tables::open(&transaction)?;
    let outcomes = writes.iter().map(|write| tables.apply(write)).collect::<Result<Vec<_>, _>>()?;
    tables.close()?;
    if outcomes.iter().any(Result::is_ok) {
        transaction.commit()?;
    } else {
        transaction.abort()?;
    }
    Ok(outcomes)
}

/// A transaction that is durable once it is committed.
fn begin(database: &Database) -> Result<WriteTransaction, RedbError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    // Costs a second sync. In return a crash is not followed by a walk over the whole file, and the
    // commit does not rest on a checksum that whoever chooses account ids might collide.
    transaction.set_quick_repair(true);
    Ok(transaction)
}

/// Does all of some work in one such transaction.
pub(super) fn in_transaction(
    database: &Database,
    work: impl FnOnce(&WriteTransaction) -> Result<(), RedbError>,
) -> Result<(), RedbError> {
    let transaction = begin(database)?;
    work(&transaction)?;
    Ok(transaction.commit()?)
}

/// Goes on with revisions that are further on by so many.
pub(super) fn skip_revisions(database: &Database, by: u64) -> Result<(), RedbError> {
    in_transaction(database, |transaction| {
        let mut tables = Tables::open(transaction)?;
        tables.revision = tables.revision.saturating_add(by);
        tables.close()
    })
}

struct Tables<'t> {
    meta: Table<'t, &'static str, &'static [u8]>,
    records: Table<'t, &'static [u8], &'static [u8]>,
    index: Table<'t, &'static [u8], ()>,
    /// Of the whole file, so that a value that was deleted and made anew has another version.
    revision: u64,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, RedbError> {
        let meta = transaction.open_table(META)?;
        let revision = meta.get(REVISION)?.and_then(|bytes| bytes.value().try_into().ok().map(u64::from_be_bytes));
        let revision = revision.ok_or_else(|| StorageError::Corrupted("the revision is missing".into()))?;
        let (records, index) = (transaction.open_table(RECORDS)?, transaction.open_table(INDEX)?);
        Ok(Self { meta, records, index, revision })
    }

    fn close(mut self) -> Result<(), RedbError> {
        self.meta.insert(REVISION, self.revision.to_be_bytes().as_slice())?;
        Ok(())
    }

    fn apply(&mut self, write: &Write) -> Result<Outcome, RedbError> {
        match write {
            Write::Create { key, put } => {
                if self.records.get(key.to_bytes().as_slice())?.is_some() {
                    return Ok(Err(exists(key)));
                }
                match self.check_guards(put)? {
                    Ok(()) => self.insert(key, put).map(Ok),
                    Err(error) => Ok(Err(error)),
                }
            }
            Write::Replace { key, expected, put } => {
                // The guards first: the removal is done.
                let replaced = match self.check_guards(put)? {
                    Ok(()) => self.remove(key, expected)?,
                    refused => refused,
                };
                match replaced {
                    Ok(()) => self.insert(key, put).map(Ok),
                    Err(error) => Ok(Err(error)),
                }
            }
            Write::Delete { key, expected } => Ok(self.remove(key, expected)?.map(|()| version_of(self.revision + 1))),
        }
    }

    fn check_guards(&self, put: &Put) -> Result<Result<()>, RedbError> {
        for (key, expected) in &put.guards {
            if let Err(refused) = self.check_guard(key, expected)? {
                return Ok(Err(refused));
            }
        }
        Ok(Ok(()))
    }

    fn check_guard(&self, key: &Key, expected: &StoreVersion) -> Result<Result<()>, RedbError> {
        Ok(match self.records.get(key.to_bytes().as_slice())? {
            None => Err(conflict(key)),
            Some(value) => {
                Envelope::decode(key, value.value(), CHANGED).and_then(|found| match version_of(found.revision) {
                    version if version == *expected => Ok(()),
                    _ => Err(conflict(key)),
                })
            }
        })
    }

    fn insert(&mut self, key: &Key, put: &Put) -> Result<StoreVersion, RedbError> {
        self.revision += 1;
        for kek in &put.wrapped_by {
            self.index.insert(index_key(kek, key).as_slice(), ())?;
        }
        let envelope =
            Envelope { revision: self.revision, wrapped_by: put.wrapped_by.clone(), record: put.value.as_slice() };
        self.records.insert(key.to_bytes().as_slice(), envelope.encode(key).as_slice())?;
        Ok(version_of(self.revision))
    }

    /// Removes the value and its places in the index, when it has version `expected`.
    fn remove(&mut self, key: &Key, expected: &StoreVersion) -> Result<Result<()>, RedbError> {
        let wrapped_by = match self.records.get(key.to_bytes().as_slice())? {
            None => return Ok(Err(not_found(key))),
            Some(value) => match Envelope::decode(key, value.value(), CHANGED) {
                Ok(envelope) if version_of(envelope.revision) != *expected => return Ok(Err(conflict(key))),
                Ok(envelope) => envelope.wrapped_by,
                Err(error) => return Ok(Err(error)),
            },
        };
        for kek in &wrapped_by {
            self.index.remove(index_key(kek, key).as_slice())?;
        }
        self.records.remove(key.to_bytes().as_slice())?;
        Ok(Ok(()))
    }
}
